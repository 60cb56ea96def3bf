package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"byokd/config"

	"github.com/spf13/cobra"
)

func (t *tool) checkCommand() *cobra.Command {
	var as string
	var online bool
	c := &cobra.Command{
		Use:   "check [--online] [--as NAME] [FILE...]",
		Short: "Check the configuration, without a daemon and without reading secrets",
		Long: `Check byokd.toml and all group files, without a daemon and without reading
secrets. With FILEs, check these as group files, together with the others of the
set, each in place of the one that has its name there; what was wrong in others
before is not their fault and not shown.

With --as NAME, the one FILE stands in for groups.d/NAME.toml whatever it is
called, and its relative paths count from there; with --as byokd it stands in
for byokd.toml. So a tool that writes files can have them checked before they
are put in place, as in Ansible: validate: byokctl check --as payments %s

Each problem is a line, "file:line:column: key: what is wrong and what to do".

With --online, the machine's surroundings are looked at as well, without changing
anything: tokens (a running daemon is asked; without one byokctl logs in once, under
byokd's record of logins), endpoints, TLS, clock, credentials, permissions, key
policies and event buses. That reads the secrets: run it as root or byokd's user, and
where byokd's unit sets a proxy or AWS_CA_BUNDLE, with the same in the environment.`,
		Args: func(_ *cobra.Command, files []string) error {
			if online && (as != "" || len(files) > 0) {
				return errors.New("--online looks at what is installed, and takes neither FILE nor --as")
			}
			if t.json && !online {
				return errors.New("--json goes with --online")
			}
			if as != "" && len(files) != 1 {
				return fmt.Errorf("--as needs exactly one FILE, not %d", len(files))
			}
			return nil
		},
		RunE: func(c *cobra.Command, files []string) error {
			if online {
				return t.checkOnline(c.Context())
			}
			var n int
			var err error
			switch {
			case as == "byokd":
				n, err = t.checkConfigAs(files[0])
			case as != "":
				n, err = t.checkGroupAs(as, files[0])
			default:
				n, err = t.checkFiles(files)
			}
			if err != nil {
				return err
			}
			if n == 1 {
				fmt.Fprintln(t.out, "ok: 1 group")
			} else {
				fmt.Fprintf(t.out, "ok: %d groups\n", n)
			}
			return nil
		},
	}
	c.Flags().StringVar(&as, "as", "", "check FILE as it were group `NAME`, or byokd.toml for byokd")
	c.Flags().BoolVar(&online, "online", false, "look at token, endpoints, clock, credentials and permissions too")
	t.jsonFlag(c)
	return c
}

// A setup is a configuration with its groups, as good as it could be read.
type setup struct {
	cfg  *config.Config
	opts config.Options
	set  *config.Set
}

// load reads byokd.toml only.
func (t *tool) load() (*config.Config, error) {
	return config.Load(t.config, config.Options{UID: -1, SkipSecrets: true})
}

// loadAsDaemon reads byokd.toml for doing what the daemon does: with the secrets
// that are its own.
func (t *tool) loadAsDaemon() (*config.Config, error) {
	cfg, err := t.load()
	if err != nil {
		return nil, err
	}
	o := config.DefaultOptions()
	o.UID = daemonUID(cfg.StateDir)
	return config.Load(t.config, o)
}

// read reads byokd.toml and the group files, with files that stand in for others.
func (t *tool) read(standIn map[string]string) (*setup, error) {
	s := &setup{opts: config.Options{UID: -1, SkipSecrets: true, StandIn: standIn}}
	cfg, err := config.Load(t.config, s.opts)
	if err != nil {
		return nil, err
	}
	// Who may own secrets is known only after state_dir is.
	s.opts.UID = daemonUID(cfg.StateDir)
	if s.cfg, err = config.Load(t.config, s.opts); err != nil {
		return nil, err
	}
	if s.set, err = config.LoadDir(s.cfg, s.opts); err != nil {
		return nil, usage("%w", err)
	}
	return s, nil
}

// daemonUID returns the user that byokd runs as: the owner of its state_dir,
// else user byokd, else whoever asks.
func daemonUID(stateDir string) int {
	if info, err := os.Stat(stateDir); err == nil {
		return int(info.Sys().(*syscall.Stat_t).Uid)
	}
	if u, err := user.Lookup("byokd"); err == nil {
		if uid, err := strconv.Atoi(u.Uid); err == nil {
			return uid
		}
	}
	return os.Geteuid()
}

// problems returns those of each group, rules between groups included.
func (s *setup) problems() map[string]config.Problems {
	all := maps.Clone(s.set.Problems)
	groups := slices.Collect(maps.Values(s.set.Groups))
	for name, ps := range config.CheckSet(s.cfg, groups, nil) {
		all[name] = append(slices.Clone(all[name]), ps...)
	}
	return all
}

// checkFiles checks group files, or everything for none, and returns how many
// groups are good.
func (t *tool) checkFiles(files []string) (int, error) {
	s, err := t.read(nil)
	if err != nil {
		return 0, err
	}
	files = slices.DeleteFunc(files, func(f string) bool { return same(f, s.cfg.Path) })
	if len(files) == 0 {
		t.warn(s.cfg.Missing())
		t.warnOfOverloads(s)
		return len(s.set.Groups), newProblems(s.problems(), nil, nil)
	}
	before := s.problems()
	var names []string
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".toml")
		names = append(names, name)
		delete(s.set.Groups, name)
		delete(s.set.Problems, name)
		g, err := config.LoadGroup(s.cfg, f, s.opts)
		problems, ok := errors.AsType[config.Problems](err)
		switch {
		case ok:
			s.set.Problems[name] = problems
		case err != nil:
			return 0, err
		default:
			s.set.Groups[name] = g
		}
	}
	return len(files), newProblems(s.problems(), names, before)
}

// checkGroupAs checks a file as if it were a group's.
func (t *tool) checkGroupAs(name, file string) (int, error) {
	now, err := t.read(nil)
	if err != nil {
		return 0, err
	}
	path := filepath.Join(now.cfg.GroupsDir, name+".toml")
	s, err := t.read(map[string]string{path: file})
	if err != nil {
		return 0, err
	}
	if s.set.Groups[name] == nil && s.set.Problems[name] == nil {
		return 0, usage("%q is not the name of a group", name).hint("a name of a-z, 0-9 and -")
	}
	return 1, newProblems(s.problems(), []string{name}, now.problems())
}

// checkConfigAs checks a file as if it were byokd.toml.
func (t *tool) checkConfigAs(file string) (int, error) {
	s, err := t.read(map[string]string{t.config: file})
	if err != nil {
		return 0, err
	}
	// Without a good byokd.toml in place all problems are the new one's.
	var before map[string]config.Problems
	if now, err := t.read(nil); err == nil {
		before = now.problems()
	}
	t.warn(s.cfg.Missing())
	t.warnOfOverloads(s)
	return len(s.set.Groups), newProblems(s.problems(), nil, before)
}

// newProblems returns the problems of the named groups, and of other groups those
// that were not there before; nil where there are none.
func newProblems(problems map[string]config.Problems, names []string, before map[string]config.Problems) error {
	var found config.Problems
	for _, group := range slices.Sorted(maps.Keys(problems)) {
		for _, p := range problems[group] {
			known := !slices.Contains(names, group) && slices.Contains(before[group], p)
			if !known && !slices.Contains(found, p) {
				found = append(found, p)
			}
		}
	}
	if found == nil {
		return nil
	}
	return found
}

// warn prints what is missing but may come yet. What systemd hands to the
// daemon is of no matter: it is never there for byokctl.
func (t *tool) warn(missing config.Problems) {
	for _, p := range missing {
		if !strings.HasSuffix(p.Key, "_credential") {
			fmt.Fprintln(t.stderr, "warning:", p)
		}
	}
}

// warnOfOverloads prints where the schedules cannot be met at AWS's quotas.
func (t *tool) warnOfOverloads(s *setup) {
	for _, o := range s.set.Overloads(s.cfg, time.Now()) {
		fmt.Fprintf(t.stderr, "warning: %s (groups %s)\n", o.Message, o.Names())
	}
}

// same reports whether two paths are of one file.
func same(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}
