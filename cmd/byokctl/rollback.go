package main

import (
	"byokd/daemon/control"

	"github.com/spf13/cobra"
)

func (t *tool) rollbackCommand() *cobra.Command {
	var to int
	var wait bool
	c := &cobra.Command{
		Use:   "rollback GROUP",
		Short: "Point a group's alias back at an earlier generation",
		Long: `Point a group's alias back at an earlier generation whose KMS key is enabled, by
default the one before the active one, and print the ID of the job. The newer key
stays as it is; the next rotation makes a generation with a number of its own.
A rotation in place cannot be undone.`,
		Args:              exactlyOne("GROUP"),
		ValidArgsFunction: t.completeGroups,
		RunE: func(c *cobra.Command, args []string) error {
			request := control.RollbackRequest{Group: args[0]}
			if c.Flags().Changed("to") {
				request.To = &to
			}
			ctx := c.Context()
			client, err := t.connect()
			if err != nil {
				return err
			}
			defer client.Close()
			job, err := client.Rollback(ctx, request)
			if err != nil {
				return err
			}
			return t.finish(ctx, client, []control.Job{job}, wait, true)
		},
	}
	c.Flags().IntVar(&to, "to", 0, "the generation `N`, not the one before")
	waitFlag(c, &wait)
	t.jsonFlag(c)
	return c
}
