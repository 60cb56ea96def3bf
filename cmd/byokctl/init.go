package main

import (
	"fmt"

	"byokd/daemon"

	"github.com/spf13/cobra"
)

func (t *tool) initCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "init",
		Short: "Create the database",
		Long: `Create the daemon's database in the state_dir of byokd.toml, as root for the
owner of that folder. Where there is one already nothing is changed.

A new database does not mean new keys: byokd first finds in KMS and in the HSM
what there is.`,
		Args:              none,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			cfg, err := t.load()
			if err != nil {
				return err
			}
			created, err := daemon.InitState(cfg)
			if err != nil {
				return err
			}
			if created {
				fmt.Fprintln(t.out, "created", cfg.Database())
			} else {
				fmt.Fprintln(t.out, cfg.Database(), "is there already; nothing changed")
			}
			return nil
		},
	}
}
