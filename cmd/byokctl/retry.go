package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func (t *tool) retryCommand() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "retry {JOB... | --all}",
		Short: "Try jobs again now that wait for their next attempt",
		Args: func(_ *cobra.Command, ids []string) error {
			switch {
			case all && len(ids) > 0:
				return fmt.Errorf("give jobs or --all, not both")
			case !all && len(ids) == 0:
				return fmt.Errorf("name the jobs to try again, or say --all")
			}
			return nil
		},
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, ids []string) error {
			client, err := t.connect()
			if err != nil {
				return err
			}
			defer client.Close()
			jobs, err := client.Retry(c.Context(), ids, all)
			if err != nil {
				return err
			}
			for _, j := range jobs {
				fmt.Fprintln(t.out, j.ID)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&all, "all", false, "try all jobs that wait")
	return c
}
