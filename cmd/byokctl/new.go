package main

import (
	"bufio"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"byokd/config"

	"github.com/spf13/cobra"
)

// newGroupText is the file that `byokctl new` writes.
//
//go:embed new.toml.tmpl
var newGroupText string

// A newGroup is what `byokctl new` asks for; "" leaves the default.
type newGroup struct {
	Name, Region, Alias, Description, Every, Schedule, KeepValidFor, HSM, Credential, ActiveKeyID, PolicyFile string
}

func (t *tool) newCommand() *cobra.Command {
	var g newGroup
	var write bool
	c := &cobra.Command{
		Use:   "new GROUP [--region REGION] [--alias ALIAS] [--every DURATION | --schedule CRON] [--write]",
		Short: "Write a commented group file",
		Long: `Write a commented file for a new key group, from flags, and on a terminal from
questions for what is missing. It is checked with the rest of the configuration, and
printed; with --write it goes into groups_dir, where a running byokd finds it and
makes the group's first key.`,
		Args:              exactlyOne("GROUP"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(_ *cobra.Command, args []string) error {
			g.Name = args[0]
			return t.newGroup(g, write)
		},
	}
	f := c.Flags()
	f.StringVar(&g.Region, "region", "", "the `REGION` of the keys")
	f.StringVar(&g.Alias, "alias", "", "the `ALIAS` that applications use (default alias/GROUP)")
	f.StringVar(&g.Description, "description", "", "the keys' description `TEXT`")
	f.StringVar(&g.Every, "every", "", "rotate every `DURATION`, such as 90d (default 90d, where no schedule is given)")
	f.StringVar(&g.Schedule, "schedule", "", "rotate on `CRON`, five fields, or @monthly and the like")
	f.StringVar(&g.KeepValidFor, "keep-valid-for", "", "let the key material expire after `DURATION`")
	f.StringVar(&g.HSM, "hsm", "", "the [hsm.`NAME`] that makes the keys, where there are several")
	f.StringVar(&g.Credential, "credential", "", "the [credentials.`NAME`] to use, where there are several")
	f.StringVar(&g.ActiveKeyID, "active-key-id", "", "begin with the KMS key `ID`")
	f.StringVar(&g.PolicyFile, "policy-file", "", "the key policy, a JSON `FILE`")
	f.BoolVar(&write, "write", false, "put the file into groups_dir")
	c.MarkFlagsMutuallyExclusive("every", "schedule")
	return c
}

func (t *tool) newGroup(g newGroup, write bool) error {
	s, err := t.read(nil)
	if err != nil {
		return err
	}
	path := filepath.Join(s.cfg.GroupsDir, g.Name+".toml")
	if _, err := os.Lstat(path); err == nil {
		return failed("%s is there already; nothing was written", path)
	}
	if err := t.askForGroup(&g, s.cfg); err != nil {
		return err
	}
	var text strings.Builder
	if err := template.Must(template.New("group").Funcs(template.FuncMap{"quote": strconv.Quote}).Parse(newGroupText)).Execute(&text, g); err != nil {
		return fmt.Errorf("write the group's file: %w", err)
	}

	draft, err := os.CreateTemp("", "byokctl-new-")
	if err != nil {
		return fmt.Errorf("write the group's file: %w", err)
	}
	defer os.Remove(draft.Name())
	_, err = draft.WriteString(text.String())
	if err = errors.Join(err, draft.Close()); err != nil {
		return fmt.Errorf("write the group's file: %w", err)
	}
	if _, err := t.checkGroupAs(g.Name, draft.Name()); err != nil {
		return err
	}
	if !write {
		_, err := io.WriteString(t.out, text.String())
		return err
	}
	// Created, never overwritten, and only whole: byokd waits until a file has
	// been unchanged for [settle], and does not read names with a leading dot.
	hidden := filepath.Join(s.cfg.GroupsDir, "."+g.Name+".toml.new")
	if err := os.WriteFile(hidden, []byte(text.String()), 0o644); err != nil {
		return fmt.Errorf("write the group's file: %w", err)
	}
	defer os.Remove(hidden)
	switch err := os.Link(hidden, path); {
	case errors.Is(err, fs.ErrExist):
		return failed("%s is there already; nothing was written", path)
	case err != nil:
		return fmt.Errorf("write the group's file: %w", err)
	}
	fmt.Fprintf(t.out, "%s is written; a running byokd makes its first key: byokctl status %s\n", path, g.Name)
	return nil
}

// askForGroup asks on a terminal for what no flag gave, and fills in defaults.
func (t *tool) askForGroup(g *newGroup, cfg *config.Config) error {
	in := bufio.NewReader(t.in)
	ask := func(value *string, question, fallback string) error {
		if *value != "" {
			return nil
		}
		if !terminal(t.in) {
			*value = fallback
			return nil
		}
		fmt.Fprintf(t.stderr, "%s [%s]: ", question, fallback)
		answer, err := in.ReadString('\n')
		if err != nil && err != io.EOF {
			return fmt.Errorf("read the answer: %w", err)
		}
		if *value = strings.TrimSpace(answer); *value == "" {
			*value = fallback
		}
		return nil
	}
	choose := func(value *string, table string, names []string) error {
		if len(names) < 2 {
			return nil // there is nothing to choose, so nothing to write
		}
		return ask(value, table+" ("+strings.Join(names, ", ")+")", names[0])
	}
	if err := ask(&g.Region, "Region", cfg.Events.Region); err != nil {
		return err
	}
	if g.Region == "" {
		return usage("a group needs a Region").hint("--region")
	}
	if err := ask(&g.Alias, "Alias", "alias/"+g.Name); err != nil {
		return err
	}
	if g.Schedule == "" {
		if err := ask(&g.Every, "Rotate every", "90d"); err != nil {
			return err
		}
	}
	return errors.Join(
		choose(&g.HSM, "HSM", slices.Sorted(maps.Keys(cfg.HSMs))),
		choose(&g.Credential, "Credential", slices.Sorted(maps.Keys(cfg.Credentials))))
}
