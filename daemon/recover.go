package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"byokd/cloud"
	"byokd/config"
	"byokd/daemon/control"
	"byokd/daemon/jobstore"
	"byokd/daemon/lifecycle"
	"byokd/schedule"
)

// A Recovered is what `byokctl recover` found of one key group, in the shape that
// --json prints. All fields are always there, null where unknown.
type Recovered struct {
	Group   string         `json:"group"`
	Alias   control.String `json:"alias"` // null: the group's file cannot be read, and never could
	Region  control.String `json:"region"`
	Account control.String `json:"account"`

	// AliasKeyID is the ID of the KMS key that the alias points at; null: there is
	// no such alias, or it could not be looked at.
	AliasKeyID control.String `json:"alias_key_id"`

	Recovered   control.List[int]                `json:"recovered"`   // numbers of the generations that the database did not have
	Generations control.List[control.Key]        `json:"generations"` // all, as the database has them now, or would have them
	Jobs        control.List[control.JobSummary] `json:"jobs"`        // that are open: what byokd will do when it runs
	Problems    control.List[control.Problem]    `json:"problems"`    // what does not match
	Error       control.String                   `json:"error"`       // why the group could not be looked for; null: it was
}

// Recover does what `byokctl recover` is for where no byokd runs: it takes into
// the database what it lacks of the group files, the keys in KMS with byokd's
// tags, the aliases, and the objects on the tokens, as a byokd does at its first
// start on an empty database. It makes no key and changes nothing in AWS or the
// HSM. The definitions of recovered groups count as applied, and their force
// values as seen.
//
// With dryRun the database is left as it is, but for the record of logins to the
// tokens: a login that is not recorded could be one of several that lock a token.
// What is returned is then what Recover would have made of it.
//
// Groups come by name. What keeps one from being looked for is in its Error and
// concerns no other. Recover itself fails where there is no database, where it
// cannot be opened, and while a byokd runs on it.
func Recover(ctx context.Context, cfg *config.Config, dryRun bool, log *slog.Logger) (_ []Recovered, err error) {
	path := cfg.Database()
	if dryRun {
		copied, remove, err := copyDatabase(ctx, path)
		if err != nil {
			return nil, recoverError(err)
		}
		defer remove()
		path = copied
	}
	// The tokens record their logins in the database itself, whatever the rest of
	// Recover works on.
	store, err := jobstore.Open(ctx, cfg.Database(), jobstore.Options{})
	if err != nil {
		return nil, recoverError(err)
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	d, err := newRecoverer(cfg, store, nil, log)
	if err != nil {
		return nil, err
	}
	defer d.cloud.Close()
	defer func() {
		closeCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), hsmCloseTimeout)
		defer cancel()
		err = errors.Join(err, d.tokens.close(closeCtx))
	}()
	if !dryRun {
		return d.recoverAll(ctx)
	}
	trial, err := jobstore.Open(ctx, path, jobstore.Options{})
	if err != nil {
		return nil, fmt.Errorf("try it out on a copy of the database: %w", err)
	}
	defer func() { err = errors.Join(err, trial.Close()) }()
	onCopy, err := newRecoverer(cfg, trial, d.tokens, log)
	if err != nil {
		return nil, err
	}
	defer onCopy.cloud.Close()
	return onCopy.recoverAll(ctx)
}

// recoverError says what to do where the database cannot be opened.
func recoverError(err error) error {
	if errors.Is(err, jobstore.ErrInUse) {
		return fmt.Errorf("%w: it finds its keys by itself, at its start and again when it can look; see `byokctl status` and `byokctl keys GROUP`, or stop it first", err)
	}
	return err
}

// newRecoverer returns as much of a Daemon as looking for keys needs. Without
// tokens it makes some that record their logins in store.
func newRecoverer(cfg *config.Config, store *jobstore.Store, tokens *tokens, log *slog.Logger) (*Daemon, error) {
	d := &Daemon{Options: DefaultOptions(), log: log, store: store, tokens: tokens, changes: newBroadcast(), workers: newWorkers(), fatal: make(chan error, 1), pulses: newPulses()}
	d.dir, d.relations = config.NewDir(d.configOptions()), config.NewRelations(cfg)
	d.started = d.Now()
	var err error
	if d.host, err = os.Hostname(); err != nil {
		return nil, fmt.Errorf("read this machine's name: %w", err)
	}
	d.cfg.Store(cfg)
	d.metrics = newMetrics(d)
	d.cloud = cloud.New(d.cloudSettings(cfg))
	if err := d.cloud.Validate(); err != nil {
		return nil, err
	}
	if d.tokens == nil {
		d.tokens = newTokens(d, cfg)
	}
	d.engine = d.newEngine()
	d.groups = newGroups(d)
	store.Tell(d.groups.changed)
	d.outbox = newOutbox(d)
	d.runner = schedule.NewRunner(d.Now, func([]schedule.Tick) {}) // it does not run
	return d, nil
}

// copyDatabase copies the database into a folder of its own, which remove
// removes. It must not be in use.
func copyDatabase(ctx context.Context, path string) (copied string, remove func(), err error) {
	// Closing writes everything back into the one file. A byokd that starts in
	// between keeps Recover from opening the database again.
	store, err := jobstore.Open(ctx, path, jobstore.Options{})
	if err != nil {
		return "", nil, err
	}
	if err := store.Close(); err != nil {
		return "", nil, err
	}
	dir, err := os.MkdirTemp("", "byokctl-recover-")
	if err != nil {
		return "", nil, err
	}
	remove = func() { os.RemoveAll(dir) }
	copied = filepath.Join(dir, filepath.Base(path))
	if err := copyFile(copied, path); err != nil {
		remove()
		return "", nil, fmt.Errorf("copy the database: %w", err)
	}
	return copied, remove, nil
}

func copyFile(to, from string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, in)
	return err
}

// recoverAll reads the group files as at byokd's start and looks for the keys of
// each group.
func (d *Daemon) recoverAll(ctx context.Context) ([]Recovered, error) {
	// A byokd goes on with what it knows when it cannot read the folder.
	if _, err := config.LoadDir(d.cfg.Load(), d.configOptions()); err != nil {
		return nil, err
	}
	d.load(ctx, triggerStart)
	if err := d.storeError(); err != nil {
		return nil, err
	}
	all := []Recovered{}
	for _, name := range d.groups.names() {
		g, ok := d.groups.get(name)
		if !ok {
			continue
		}
		r, err := d.recoverGroup(ctx, g)
		if err != nil {
			return nil, fmt.Errorf("group %s: %w", name, err)
		}
		all = append(all, r)
	}
	return all, nil
}

// storeError is why the database does not take what it should; nil: it does.
func (d *Daemon) storeError() error {
	select {
	case err := <-d.fatal:
		return err
	default:
	}
	if p := d.storing.Load(); p != nil {
		return errors.New(p.message)
	}
	return nil
}

// recoverGroup looks for one group's keys. The error is one of the database, or
// that ctx has ended: what else goes wrong is part of the result.
func (d *Daemon) recoverGroup(ctx context.Context, g group) (Recovered, error) {
	r := Recovered{Group: g.name, Account: control.String(g.row.Account)}
	problem := func(code, message string) {
		r.Problems = append(r.Problems, control.Problem{Code: code, Message: message, Since: control.At(d.Now())})
	}
	for _, p := range g.invalid {
		problem("invalid", p.String())
	}
	if g.gone {
		problem("removed", "the group's file is gone: no more rotations; its keys stay as they are")
	}
	if g.def == nil {
		r.Error = "the group's file cannot be taken, so that it is not known where to look"
		return r, nil
	}
	r.Alias, r.Region = control.String(g.def.AWS.Alias), control.String(g.def.AWS.Region)
	before, err := d.store.Generations(ctx, g.name)
	if err != nil {
		return r, err
	}
	def := d.definition(g.def)
	// As the designated device, or nothing would be recorded. Reconcile itself
	// changes nothing but the journal either way.
	found, err := d.engine.Reconcile(ctx, def, true)
	if err := cmp.Or(ctx.Err(), d.storeError()); err != nil {
		return r, err
	}
	if err != nil {
		r.Error = control.String(err.Error())
	} else {
		r.AliasKeyID = control.String(found.AliasKeyID)
		for _, f := range found.Problems {
			problem(f.Code, f.Message)
		}
		if err := d.tookOver(ctx, g, found, len(before) == 0); err != nil {
			return r, err
		}
		if account, err := d.account(ctx, def); err == nil {
			r.Account = control.String(account)
			if err := d.store.SetAccount(ctx, g.name, account); err != nil {
				return r, err
			}
		}
	}
	after, err := d.store.Generations(ctx, g.name)
	if err != nil {
		return r, err
	}
	for _, row := range after {
		if !slices.ContainsFunc(before, func(b jobstore.Generation) bool { return b.Number == row.Number }) {
			r.Recovered = append(r.Recovered, row.Number)
		}
	}
	if r.Generations, err = d.Keys(ctx, g.name); err != nil {
		return r, err
	}
	open, err := d.store.OpenJobs(ctx)
	if err != nil {
		return r, err
	}
	for _, job := range open {
		if job.Group == g.name {
			r.Jobs = append(r.Jobs, controlJob(job, false).JobSummary)
		}
	}
	return r, nil
}

// tookOver notes what goes with recovered keys: a lost database is no change of
// the definition, and no new force value.
func (d *Daemon) tookOver(ctx context.Context, g group, found lifecycle.Findings, empty bool) error {
	switch {
	case len(found.Generations) > 0 && g.row.AppliedDigest == "":
		return d.takeAsApplied(ctx, g)
	case empty && !found.Fresh() && g.def.Rotation.Force != "":
		return d.store.MarkSeen(ctx, g.name, forceKey(g.def.Rotation.Force))
	}
	return nil
}
