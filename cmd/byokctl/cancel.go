package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func (t *tool) cancelCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "cancel JOB",
		Short:             "Cancel a job that has not finished",
		Args:              exactlyOne("JOB"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, args []string) error {
			client, err := t.connect()
			if err != nil {
				return err
			}
			defer client.Close()
			job, err := client.Cancel(c.Context(), args[0])
			if err != nil {
				return err
			}
			fmt.Fprintln(t.out, job.ID, job.State)
			return nil
		},
	}
}
