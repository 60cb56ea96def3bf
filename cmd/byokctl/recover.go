package main

import (
	"context"
	"fmt"
	"log/slog"

	"byokd/daemon"
	"byokd/daemon/control"

	"github.com/spf13/cobra"
)

func (t *tool) recoverCommand() *cobra.Command {
	var dryRun bool
	c := &cobra.Command{
		Use:   "recover [--dry-run]",
		Short: "Rebuild the database from KMS and the HSM",
		Long: `Rebuild the database from the tags of the KMS keys, the aliases and the objects on
the tokens, and list what does not match. No key is made, and nothing in AWS or in
the HSM is changed. What the database has already stays.

byokd does the same by itself when it starts on an empty database; this is for
looking first. It wants a database, which byokctl init makes, and that byokd does
not run. Run it as byokd's user, who can read the PIN and the credentials.

With --dry-run the database is left as it is, but for the record of logins to the
tokens. What is printed is what it would have become.

Exit status: 0 each group could be looked for; 1 one could not; 2 usage or
configuration. That something does not match is no failure.`,
		Args:              none,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			return t.recover(c.Context(), dryRun)
		},
	}
	c.Flags().BoolVar(&dryRun, "dry-run", false, "write nothing")
	t.jsonFlag(c)
	return c
}

func (t *tool) recover(ctx context.Context, dryRun bool) error {
	cfg, err := t.loadAsDaemon()
	if err != nil {
		return err
	}
	groups, err := daemon.Recover(ctx, cfg, dryRun, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	if t.json {
		err = t.printJSON(control.List[daemon.Recovered](groups))
	} else {
		err = t.printRecovered(groups, dryRun)
	}
	if err != nil {
		return err
	}
	missed := 0
	for _, g := range groups {
		if g.Error != "" {
			missed++
		}
	}
	if missed > 0 {
		return failed("%d of %d groups could not be looked for", missed, len(groups)).hint("again when that is mended: what is recovered stays so")
	}
	return nil
}

func (t *tool) printRecovered(groups []daemon.Recovered, dryRun bool) error {
	if len(groups) == 0 {
		fmt.Fprintln(t.out, "no groups")
		return nil
	}
	table := newTable("GROUP", "GENERATION", "STATE", "KEY ID", "HSM ID", "FOUND")
	recovered := 0
	for _, g := range groups {
		if len(g.Generations) == 0 {
			table.row(g.Group, "-", "-", "-", "-", "-")
		}
		for _, k := range g.Generations {
			found := "known"
			for _, n := range g.Recovered {
				if n == k.Generation {
					found = "recovered"
				}
			}
			table.row(g.Group, number(&k.Generation), k.State, text(k.KeyID), text(k.HSMID), found)
		}
		if g.Error != "" {
			table.note("error: " + string(g.Error))
		}
		for _, p := range g.Problems {
			table.note(p.Code + ": " + p.Message)
		}
		for _, j := range g.Jobs {
			table.note(fmt.Sprintf("byokd goes on with: %s job %s, %s", j.Kind, j.ID, j.State))
		}
		recovered += len(g.Recovered)
	}
	if err := table.print(t.out); err != nil {
		return err
	}
	outcome := "recovered"
	if dryRun {
		outcome = "would be recovered; nothing was written"
	}
	_, err := fmt.Fprintf(t.out, "\n%s %s\n", generations(recovered), outcome)
	return err
}

func generations(n int) string {
	if n == 1 {
		return "1 generation"
	}
	return fmt.Sprintf("%d generations", n)
}
