package main

import (
	"fmt"

	"byokd/daemon/control"

	"github.com/spf13/cobra"
)

func (t *tool) versionCommand() *cobra.Command {
	c := &cobra.Command{
		Use:               "version",
		Short:             "Show the version",
		Args:              none,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			v := control.BuildVersion(version)
			if t.json {
				return t.printJSON(v)
			}
			fmt.Fprintln(t.out, "byokctl", v)
			return nil
		},
	}
	t.jsonFlag(c)
	return c
}
