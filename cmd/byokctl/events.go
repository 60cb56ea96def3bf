package main

import (
	"fmt"
	"slices"
	"strings"

	"byokd/daemon/control"

	"github.com/spf13/cobra"
)

func (t *tool) eventsCommand() *cobra.Command {
	var filter control.EventFilter
	c := &cobra.Command{
		Use:   "events",
		Short: "Show the events that byokd emitted: what was sent, what waits",
		Long: `Show the events that byokd emitted, newest first: what EventBridge has accepted
(sent), what waits (pending), what it refused for good (parked), and what only
hooks were told of, [events] being off (local).`,
		Args:              none,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			switch {
			case filter.Limit < 0:
				return usage("--limit %d is not a number from 0", filter.Limit)
			case filter.State != "" && !slices.Contains(control.EventStates, filter.State):
				return usage("unknown state %q", filter.State).hint("--state %s", strings.Join(control.EventStates, ", "))
			}
			client, err := t.connect()
			if err != nil {
				return err
			}
			defer client.Close()
			events, err := client.Events(c.Context(), filter)
			if err != nil {
				return err
			}
			if t.json {
				return t.printJSON(control.List[control.Event](events))
			}
			if len(events) == 0 {
				fmt.Fprintln(t.out, "no events")
				return nil
			}
			table := newTable("OCCURRED", "GROUP", "SEQUENCE", "EVENT", "STATE", "SENT", "EVENT ID")
			table.optional = []int{6, 2, 5}
			for _, e := range events {
				table.row(minute(e.OccurredAt), e.Group, fmt.Sprint(e.Sequence), e.DetailType, e.State, minute(e.SentAt), e.EventID)
				if n := fate(e); n != "" {
					table.note(n)
				}
			}
			return table.print(t.out)
		},
	}
	c.Flags().StringVar(&filter.Group, "group", "", "only those of group `G`")
	c.Flags().StringVar(&filter.State, "state", "", "only those in state `S`: "+strings.Join(control.EventStates, ", "))
	c.Flags().IntVar(&filter.Limit, "limit", 50, "the newest `N`; 0: all")
	// Both fail only for a flag that does not exist.
	_ = c.RegisterFlagCompletionFunc("group", t.completeGroups)
	_ = c.RegisterFlagCompletionFunc("state", cobra.FixedCompletions(control.EventStates, cobra.ShellCompDirectiveNoFileComp))
	t.jsonFlag(c)
	return c
}

// fate says why an event has not been sent, and when it is tried next.
func fate(e control.Event) string {
	if e.State == control.EventSent || e.Error == "" {
		return ""
	}
	s := fmt.Sprintf("attempt %d: %s", e.Attempt, e.Error)
	if !e.NextAttempt.IsZero() {
		s = fmt.Sprintf("next attempt %s; %s", e.NextAttempt, s)
	}
	return s
}
