package main

import (
	"context"
	"fmt"

	"byokd/daemon/control"

	"github.com/spf13/cobra"
)

func (t *tool) rotateCommand() *cobra.Command {
	var all, yes, wait, dry bool
	c := &cobra.Command{
		Use:   "rotate {GROUP... | --all}",
		Short: "Rotate groups now",
		Long: `Rotate groups now, whatever their schedule says, and print the IDs of the jobs.
Where a rotation of a group is open already, that is the job. With --dry-run, print
what it would do, as byokctl plan does, and do nothing.`,
		Args: func(_ *cobra.Command, groups []string) error {
			switch {
			case all && len(groups) > 0:
				return fmt.Errorf("give groups or --all, not both")
			case !all && len(groups) == 0:
				return fmt.Errorf("name the groups to rotate, or say --all")
			}
			return nil
		},
		ValidArgsFunction: t.completeGroups,
		RunE: func(c *cobra.Command, groups []string) error {
			ctx := c.Context()
			client, err := t.connect()
			if err != nil {
				return err
			}
			defer client.Close()
			if dry {
				return t.plan(ctx, client, groups, true)
			}
			if all && !yes {
				if err := t.confirmAll(ctx, client); err != nil {
					return err
				}
			}
			jobs, err := client.Rotate(ctx, groups, all)
			if err != nil {
				return err
			}
			return t.finish(ctx, client, jobs, wait, !all && len(groups) == 1)
		},
	}
	c.Flags().BoolVar(&all, "all", false, "rotate all groups")
	c.Flags().BoolVar(&yes, "yes", false, "do not ask before --all")
	c.Flags().BoolVar(&dry, "dry-run", false, "print what would be done, and do nothing")
	waitFlag(c, &wait)
	t.jsonFlag(c)
	return c
}

// confirmAll asks whether all groups are meant.
func (t *tool) confirmAll(ctx context.Context, client *control.Client) error {
	groups, err := client.Status(ctx)
	if err != nil {
		return err
	}
	n := 0
	for _, g := range groups {
		if g.State != control.GroupRemoved {
			n++
		}
	}
	return t.confirm(fmt.Sprintf("Rotate all groups (%d)?", n))
}
