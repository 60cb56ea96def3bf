package main

import (
	"fmt"
	"slices"
	"strings"

	"byokd/daemon/control"

	"github.com/spf13/cobra"
)

func (t *tool) jobsCommand() *cobra.Command {
	var filter control.JobFilter
	states := append(slices.Clone(control.JobStates), control.JobOpen)
	c := &cobra.Command{
		Use:               "jobs",
		Short:             "Show the jobs, newest first",
		Args:              none,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			switch {
			case filter.Limit < 0:
				return usage("--limit %d is not a number from 0", filter.Limit)
			case filter.State != "" && !slices.Contains(states, filter.State):
				return usage("unknown state %q", filter.State).hint("--state %s", strings.Join(states, ", "))
			}
			client, err := t.connect()
			if err != nil {
				return err
			}
			defer client.Close()
			jobs, err := client.Jobs(c.Context(), filter)
			if err != nil {
				return err
			}
			if t.json {
				return t.printJSON(control.List[control.JobSummary](jobs))
			}
			if len(jobs) == 0 {
				fmt.Fprintln(t.out, "no jobs")
				return nil
			}
			table := newTable("ID", "GROUP", "KIND", "GENERATION", "STATE", "TRIGGER", "CREATED", "FINISHED")
			table.optional = []int{7, 5, 3}
			for _, j := range jobs {
				table.row(j.ID, j.Group, j.Kind, number(j.Generation), j.State, j.Trigger, minute(j.CreatedAt), minute(j.FinishedAt))
				if n := outlook(j); n != "" {
					table.note(n)
				}
			}
			return table.print(t.out)
		},
	}
	c.Flags().StringVar(&filter.Group, "group", "", "only those of group `G`")
	c.Flags().StringVar(&filter.State, "state", "", "only those in state `S`: "+strings.Join(control.JobStates, ", ")+"; or "+control.JobOpen+", not finished")
	c.Flags().IntVar(&filter.Limit, "limit", 50, "the newest `N`; 0: all")
	// Both fail only for a flag that does not exist.
	_ = c.RegisterFlagCompletionFunc("group", t.completeGroups)
	_ = c.RegisterFlagCompletionFunc("state", cobra.FixedCompletions(states, cobra.ShellCompDirectiveNoFileComp))
	t.jsonFlag(c)
	return c
}

// outlook says what an unfinished job waits for, or why one has ended badly.
func outlook(j control.JobSummary) string {
	var parts []string
	if j.WaitingFor != "" && !j.Final() {
		parts = append(parts, "waits for a person: "+string(j.WaitingFor))
	}
	if !j.NextAttempt.IsZero() && !j.Final() {
		parts = append(parts, "next attempt "+j.NextAttempt.String())
	}
	if j.Error != "" && j.State != control.JobCompleted {
		parts = append(parts, string(j.Error))
	}
	return strings.Join(parts, "; ")
}
