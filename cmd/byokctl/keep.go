package main

import (
	"fmt"
	"strconv"

	"byokd/daemon/control"

	"github.com/spf13/cobra"
)

func (t *tool) keepCommand() *cobra.Command {
	var undo, wait bool
	c := &cobra.Command{
		Use:   "keep GROUP GENERATION",
		Short: "Keep a generation from retirement",
		Long: `Keep a generation from retirement, whatever the definition says, until the alias
has pointed at it again, and print the ID of the job. What waits to be done to its
KMS key is dropped, and a deletion that is scheduled is cancelled: the key is then
as it was before, enabled or disabled.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return fmt.Errorf("a GROUP and a GENERATION are needed")
			}
			if n, err := strconv.Atoi(args[1]); err != nil || n < 0 {
				return fmt.Errorf("%q is not the number of a generation", args[1])
			}
			return nil
		},
		ValidArgsFunction: t.completeGroups,
		RunE: func(c *cobra.Command, args []string) error {
			generation, err := strconv.Atoi(args[1])
			if err != nil {
				return err
			}
			ctx := c.Context()
			client, err := t.connect()
			if err != nil {
				return err
			}
			defer client.Close()
			job, err := client.Keep(ctx, control.KeepRequest{Group: args[0], Generation: generation, Undo: undo})
			if err != nil {
				return err
			}
			return t.finish(ctx, client, []control.Job{job}, wait, true)
		},
	}
	c.Flags().BoolVar(&undo, "undo", false, "keep it no longer: it is retired as the definition says")
	waitFlag(c, &wait)
	t.jsonFlag(c)
	return c
}
