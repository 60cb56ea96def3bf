package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"byokd/daemon/control"

	"github.com/spf13/cobra"
)

func (t *tool) planCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "plan [GROUP...]",
		Short: "Show what byokd will do, and when",
		Long: `Show what byokd will do with the GROUPs, or with all groups: the next rotation, what
it leads to, and what is to be retired; with the calls to HSM and AWS, how long that
takes at AWS's quotas, and what the KMS keys cost a month, now and then. Nothing is
done. byokctl rotate --dry-run shows the same for a rotation at once.`,
		ValidArgsFunction: t.completeGroups,
		RunE: func(c *cobra.Command, groups []string) error {
			client, err := t.connect()
			if err != nil {
				return err
			}
			defer client.Close()
			return t.plan(c.Context(), client, groups, false)
		},
	}
	t.jsonFlag(c)
	return c
}

// plan prints what byokd will do.
func (t *tool) plan(ctx context.Context, client *control.Client, groups []string, rotate bool) error {
	plans, err := client.Plan(ctx, rotate, groups...)
	if err != nil {
		return err
	}
	if t.json {
		return t.printJSON(control.List[control.Plan](plans))
	}
	table := newTable("DUE", "GROUP", "WHAT")
	var now, then float64
	actions := 0
	waits := make(map[string]time.Duration)
	for _, p := range plans {
		now, then = now+p.CostNow, then+p.CostThen
		if p.WaitsForQuota > 0 && p.QuotaPerSecond > 0 {
			waits[string(p.Account+" "+p.Region)] += time.Duration(float64(p.WaitsForQuota) / p.QuotaPerSecond * float64(time.Second))
		}
		for _, a := range p.Actions {
			table.row(minute(a.At), p.Group, oneLine(a.Message))
			table.note(strings.Join(a.Calls, ", "))
			actions++
		}
		for _, n := range p.Notes {
			table.row("-", p.Group, oneLine(n))
		}
	}
	if len(plans) == 0 {
		fmt.Fprintln(t.out, "there are no groups")
		return nil
	}
	if err := table.print(t.out); err != nil {
		return err
	}
	var longest time.Duration
	for _, d := range waits {
		longest = max(longest, d)
	}
	fmt.Fprintln(t.out)
	if longest > 0 {
		fmt.Fprintf(t.out, "At the quota of GetParametersForImport the imports take %v, were all due at once.\n", max(longest, time.Second).Round(time.Second))
	}
	if actions > 0 {
		fmt.Fprintf(t.out, "KMS keys cost $%.2f a month now, and $%.2f when all of this is done (%+.2f).\n", now, then, then-now)
	} else {
		fmt.Fprintf(t.out, "KMS keys cost $%.2f a month.\n", now)
	}
	return nil
}
