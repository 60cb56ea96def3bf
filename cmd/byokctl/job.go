package main

import (
	"encoding/json"
	"fmt"
	"strconv"
	"text/tabwriter"

	"byokd/daemon/control"

	"github.com/spf13/cobra"
)

func (t *tool) jobCommand() *cobra.Command {
	var follow bool
	c := &cobra.Command{
		Use:   "job ID",
		Short: "Show a job with its steps",
		Long: `Show a job with its steps. With --follow show the steps as they happen, until the
job has finished; the exit status is then the job's result. With --follow --json
each line is the job as it stands.`,
		Args:              exactlyOne("ID"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, args []string) error {
			ctx := c.Context()
			client, err := t.connect()
			if err != nil {
				return err
			}
			defer client.Close()
			if follow {
				if !t.json {
					p := newProgress(newScreen(t.out), 1)
					stop := p.run()
					_, err := t.wait(ctx, client, args, p.show)
					stop()
					return err
				}
				lines := json.NewEncoder(t.out)
				_, err := t.wait(ctx, client, args, func(j control.Job) error { return lines.Encode(j) })
				return err
			}
			job, err := client.Job(ctx, args[0])
			if err != nil {
				return err
			}
			if t.json {
				return t.printJSON(job)
			}
			return t.printJob(job)
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "show the steps as they happen")
	t.jsonFlag(c)
	return c
}

func (t *tool) printJob(j control.Job) error {
	w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
	field := func(name, value string) {
		if value != "" && value != "-" {
			fmt.Fprintf(w, "%s\t%s\n", name, oneLine(value))
		}
	}
	field("job", j.ID)
	field("kind", j.Kind)
	field("group", j.Group)
	field("generation", number(j.Generation))
	field("state", j.State)
	field("waiting for", string(j.WaitingFor))
	field("trigger", j.Trigger)
	field("created", j.CreatedAt.String())
	field("started", j.StartedAt.String())
	field("finished", j.FinishedAt.String())
	field("next attempt", j.NextAttempt.String())
	field("attempts", strconv.Itoa(j.Attempt))
	field("error", string(j.Error))
	if err := w.Flush(); err != nil || len(j.Steps) == 0 {
		return err
	}
	fmt.Fprintln(t.out)
	table := newTable("STEP", "STATE", "STARTED", "FINISHED", "MESSAGE")
	for _, s := range j.Steps {
		table.row(s.Name, s.State, s.StartedAt.String(), s.FinishedAt.String(), text(s.Message))
	}
	return table.print(t.out)
}
