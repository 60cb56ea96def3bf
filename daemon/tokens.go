package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"byokd/config"
	"byokd/daemon/control"
	"byokd/daemon/jobstore"
	"byokd/daemon/lifecycle"
	"byokd/hsm"
)

const (
	// tokenLook is how often each token is looked at: one that is back has its
	// jobs started within a minute.
	tokenLook = 20 * time.Second

	// awayLook is how often one is looked at that is away; the module is not
	// initialised more often than that.
	awayLook = 5 * time.Second

	// tokenCheck is how often a connected token is asked to prove that it works.
	tokenCheck = time.Minute
)

// tokens are the HSMs of byokd.toml.
type tokens struct {
	d       *Daemon
	modules *hsm.Modules
	m       map[string]*token
}

// A token is one [hsm.NAME] with what stands round its logins.
type token struct {
	d     *Daemon
	name  string
	cfg   config.HSM
	token *hsm.Token

	poke chan struct{} // a job has met an unavailable token

	mu       sync.Mutex
	login    int64     // the attempt being recorded
	unstored string    // its result, which the database has not taken yet; "": none
	identity string    // of the PIN file when a login was last refused or tried
	away     error     // why the token is unavailable; nil: it is there, or nobody has looked
	since    time.Time // since when
	checked  time.Time
	there    bool // connected when last looked at
	noted    bool // looked at since the start
}

func newTokens(d *Daemon, cfg *config.Config) *tokens {
	ts := &tokens{d: d, modules: hsm.NewModules(d.log, d.HSMOptions...), m: make(map[string]*token)}
	for name, c := range cfg.HSMs {
		t := &token{d: d, name: name, cfg: c, poke: make(chan struct{}, 1)}
		template := make(map[string]any)
		for attribute, value := range c.KeyTemplate {
			switch v := value.Value.(type) {
			case uint64:
				template[attribute] = int64(v)
			default:
				template[attribute] = v
			}
			if value.Omit {
				template[attribute] = "omit"
			}
		}
		t.token = ts.modules.Token(hsm.Config{Name: name, Module: c.Module, TokenLabel: c.TokenLabel, TokenSerial: c.TokenSerial,
			Wrapping: c.Wrapping, MaxParallel: c.MaxParallel, CallTimeout: time.Duration(c.CallTimeout),
			InitReserved: c.InitReserved, KeyTemplate: template, PIN: t.pin, Logins: t, Logger: d.log})
		ts.m[name] = t
	}
	return ts
}

// pin reads the token's user PIN.
func (t *token) pin(context.Context) ([]byte, error) {
	secret, err := t.cfg.PIN()
	if err != nil {
		return nil, err
	}
	return slices.Clone(secret.Reveal()), nil
}

// pinIdentity tells versions of the PIN file apart; "" for a credential.
func (t *token) pinIdentity() string {
	if t.cfg.PINCredential != "" {
		return ""
	}
	return fileIdentity(t.cfg.PINSource().Path())
}

// fileIdentity tells versions of a file apart without looking into it.
func fileIdentity(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return "missing"
	}
	id := fmt.Sprintf("%d bytes, changed %s", info.Size(), info.ModTime().UTC().Format(time.RFC3339Nano))
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		id += fmt.Sprintf(", inode %d", st.Ino)
	}
	return id
}

// Before is called before each C_Login: it refuses one that could lock the
// token, and has the database know of the others before the token does.
func (t *token) Before(ctx context.Context, flags hsm.TokenFlags) error {
	if err := t.storeResult(ctx); err != nil {
		return fmt.Errorf("record the login before this one: %w", err)
	}
	identity := t.pinIdentity()
	logins, err := t.d.store.Logins(ctx, t.name, 2)
	if err != nil {
		return fmt.Errorf("read the record of logins: %w", err)
	}
	if reason := loginBlocked(logins, identity, flags); reason != "" {
		return fmt.Errorf("%w to [hsm.%s]: %s; correct the PIN, then run `byokctl hsm --login %s`", hsm.ErrLoginRefused, t.name, reason, t.name)
	}
	id, err := t.d.store.BeginLogin(ctx, t.name, identity)
	if err != nil {
		return fmt.Errorf("record the login: %w", err)
	}
	t.mu.Lock()
	t.login, t.identity = id, identity
	t.mu.Unlock()
	return nil
}

// loginBlocked says why nothing may log in to a token; "": it may.
func loginBlocked(logins []jobstore.Login, identity string, flags hsm.TokenFlags) string {
	if ok, reason := jobstore.LoginAllowed(logins, identity); !ok {
		return reason
	}
	switch permitted := jobstore.LoginPermitted(logins); {
	case flags.Locked && !permitted:
		return "the token's PIN is locked; have its security officer unlock it"
	case flags.FinalTry && !permitted:
		return "one more wrong PIN would lock the token"
	}
	return ""
}

// After is called with the result of each C_Login. One that the database does not
// take, on a full disk, is kept in mind: byokd has not died in that login.
func (t *token) After(ctx context.Context, err error) error {
	result := jobstore.LoginOK
	switch {
	case hsm.WaitingFor(err) == lifecycle.WaitPIN:
		// Whatever a token has against a PIN: the same one is not tried again.
		result = jobstore.LoginIncorrect
		t.d.log.Error("the token refused the PIN; it is not tried again, since tokens lock", "hsm", t.name, "err", err,
			"advice", "correct the PIN; a changed pin_file is noticed, for a pin_credential run byokctl hsm --login "+t.name)
	case err != nil:
		result = jobstore.LoginError
	}
	t.mu.Lock()
	t.unstored = result
	t.mu.Unlock()
	return t.storeResult(ctx)
}

// storeResult records the result of the last login, if that is still to be done.
func (t *token) storeResult(ctx context.Context) error {
	t.mu.Lock()
	id, result := t.login, t.unstored
	t.mu.Unlock()
	if result == "" {
		return nil
	}
	// Not found: it was recorded although an error was returned.
	if err := t.d.store.EndLogin(ctx, id, result); err != nil && !errors.Is(err, jobstore.ErrNotFound) {
		return err
	}
	t.mu.Lock()
	t.unstored = ""
	t.mu.Unlock()
	return nil
}

// run looks at the tokens until ctx ends. It connects to those that are not
// connected and wakes their jobs when they come back.
func (ts *tokens) run(ctx context.Context) {
	var each sync.WaitGroup
	for _, t := range ts.m {
		each.Go(func() { t.run(ctx) })
	}
	each.Wait()
}

func (t *token) run(ctx context.Context) {
	for {
		select {
		case <-t.token.Hung():
			t.hung(ctx)
			return
		default:
		}
		t.look(ctx)
		pause := tokenLook
		if t.isAway() {
			pause = awayLook
		}
		select {
		case <-ctx.Done():
			return
		case <-t.token.Hung():
		case <-t.poke:
		case <-time.After(pause):
		}
	}
}

// look connects, or checks the connection, and notes what came of it.
func (t *token) look(ctx context.Context) {
	t.mu.Lock()
	fresh, there, away := time.Since(t.checked) < tokenCheck, t.there, t.away
	t.mu.Unlock()
	switch connected := t.token.Info().Connected; {
	case connected && there && away == nil && fresh:
		return
	case connected && there:
		err := t.token.Check(ctx)
		t.mu.Lock()
		t.checked = time.Now()
		t.mu.Unlock()
		if err != nil || away != nil {
			t.note(ctx, err)
		}
	default:
		// Connected since the last look, perhaps by a job, or not yet.
		t.note(ctx, t.token.Connect(ctx))
	}
}

// note records whether the token is there. Only what time may mend makes it
// unavailable, so that its jobs are parked; with what a person must mend, jobs
// run into it and say so.
func (t *token) note(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	t.mu.Lock()
	t.there, t.noted = err == nil, true
	t.mu.Unlock()
	if hsm.WaitingFor(err) == lifecycle.WaitPIN || hsm.WaitingFor(err) == lifecycle.WaitConfig {
		t.setAway(nil)
		return
	}
	was := t.setAway(err)
	switch {
	case err != nil && was == nil:
		t.d.log.Error("HSM is unavailable; its jobs wait, and start by themselves when it is back", "hsm", t.name, "err", err)
	case err == nil && was != nil:
		t.d.log.Info("HSM is back", "hsm", t.name)
	}
	if err == nil {
		t.wake(ctx)
	}
}

func (t *token) setAway(err error) (was error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	was = t.away
	if err != nil && was == nil {
		t.since = t.d.Now()
	}
	t.away = err
	return was
}

// wake starts the jobs that waited for this token, and looks for the keys of
// groups that could not be looked for without it.
func (t *token) wake(ctx context.Context) {
	if _, err := t.d.store.Wake(ctx, jobstore.WakeFilter{HSMs: []string{t.name}, WaitingFor: []string{"", lifecycle.WaitPIN, lifecycle.WaitConfig}}); err != nil {
		t.d.storeFailed("wake the jobs of an HSM", err)
	}
	wake(t.d.jobsWake)
	t.d.groups.lookAgain()
}

// hung ends byokd once the jobs of other HSMs have finished: a call into a
// module cannot be cancelled, so only a new process can use the module again.
func (t *token) hung(ctx context.Context) {
	err := fmt.Errorf("%w: a call into the module of [hsm.%s] has not returned within call_timeout", errHSMUnavailable, t.name)
	t.setAway(err)
	t.d.ending.Store(true)
	t.d.log.Error("HSM hangs: byokd restarts when the jobs of other HSMs have finished", "hsm", t.name, "err", err)
	for {
		busy, serr := t.d.busyElsewhere(ctx)
		if serr == nil && !busy {
			break
		}
		select {
		case <-ctx.Done():
			return
		case <-t.d.changes.wait():
		case <-time.After(5 * time.Second):
		}
	}
	t.d.fail(&ExitError{ExitRestart, err})
}

// busyElsewhere reports whether a job of an HSM that works is running.
func (d *Daemon) busyElsewhere(ctx context.Context) (bool, error) {
	open, err := d.store.OpenJobs(ctx)
	if err != nil {
		return false, err
	}
	away := d.tokens.unavailable()
	return slices.ContainsFunc(open, func(j jobstore.Job) bool {
		return j.State == jobstore.Running && !slices.Contains(away, j.HSM)
	}), nil
}

// unavailable are the names of the HSMs whose jobs are parked.
func (ts *tokens) unavailable() []string {
	var away []string
	for _, name := range slices.Sorted(maps.Keys(ts.m)) {
		if ts.m[name].isAway() {
			away = append(away, name)
		}
	}
	return away
}

func (t *token) isAway() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.away != nil
}

// met has a token looked at that a job could not use.
func (ts *tokens) met(name string, err error) {
	if t, ok := ts.m[name]; ok && errors.Is(err, hsm.ErrTokenUnavailable) {
		t.mu.Lock()
		t.checked = time.Time{}
		t.mu.Unlock()
		wake(t.poke)
	}
}

// blocked says why nothing may log in to the token; "": it may.
func (t *token) blocked(ctx context.Context) string {
	logins, err := t.d.store.Logins(ctx, t.name, 2)
	if err != nil {
		return ""
	}
	return loginBlocked(logins, t.pinIdentity(), t.token.Info().Flags)
}

// problem is what is wrong with the token; nil: nothing that is known.
func (t *token) problem(ctx context.Context) *problem {
	t.mu.Lock()
	away, since := t.away, t.since
	t.mu.Unlock()
	info := t.token.Info()
	switch {
	case away != nil:
		return &problem{"hsm-unavailable", fmt.Sprintf("[hsm.%s]: %v", t.name, away), since}
	case info.Connected:
		return nil
	}
	if reason := t.blocked(ctx); reason != "" {
		return &problem{"hsm-login", fmt.Sprintf("[hsm.%s]: byokd does not log in: %s; correct the PIN, then run `byokctl hsm --login %s`", t.name, reason, t.name), t.d.started}
	}
	if info.Err != nil {
		return &problem{"hsm", fmt.Sprintf("[hsm.%s]: %v", t.name, info.Err), t.d.started}
	}
	return nil
}

// LookAtHSMs does what `byokctl hsm` shows where no byokd runs: it logs in to the
// tokens of a configuration, under the same record of logins as byokd, and
// returns their state. With login not empty it first lifts the block on logging
// in to that one, and looks at no other. It fails while a byokd runs on the same
// state.
func LookAtHSMs(ctx context.Context, cfg *config.Config, login, by string) (_ []control.HSMStatus, err error) {
	store, err := jobstore.Open(ctx, cfg.Database(), jobstore.Options{})
	if err != nil {
		return nil, err
	}
	d := &Daemon{Options: DefaultOptions(), log: slog.New(slog.DiscardHandler), store: store, workers: newWorkers(), started: time.Now()}
	ts := newTokens(d, cfg)
	defer func() {
		closeCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), hsmCloseTimeout)
		defer cancel()
		err = errors.Join(err, ts.close(closeCtx), store.Close())
	}()
	if login != "" {
		if err := ts.permit(ctx, login, by); err != nil {
			return nil, err
		}
	}
	var statuses []control.HSMStatus
	for _, name := range slices.Sorted(maps.Keys(ts.m)) {
		if login != "" && name != login {
			continue
		}
		// What is wrong with it is in its status.
		_ = ts.m[name].token.Connect(ctx)
		statuses = append(statuses, ts.m[name].status(ctx))
	}
	return statuses, nil
}

// permit lifts the block on logging in to a token.
func (ts *tokens) permit(ctx context.Context, name, by string) error {
	if ts.m[name] == nil {
		return controlError(control.Usage, "there is no [hsm.%s] in byokd.toml; there are %v", name, slices.Sorted(maps.Keys(ts.m)))
	}
	return ts.d.store.PermitLogin(ctx, name, jobstore.AuditEntry{Actor: by, Action: "permit login", Detail: "[hsm." + name + "]"})
}

// get returns a token as the engine uses it.
func (ts *tokens) get(name string) (lifecycle.HSM, error) {
	t, ok := ts.m[name]
	if !ok {
		return nil, &lifecycle.Fault{Class: lifecycle.Operator, WaitingFor: lifecycle.WaitConfig,
			Err: fmt.Errorf("there is no [hsm.%s] in byokd.toml: add it and restart byokd", name)}
	}
	return engineHSM{t.token}, nil
}

// close logs out and finalizes the modules.
func (ts *tokens) close(ctx context.Context) error { return ts.modules.Close(ctx) }

// An engineHSM is a token as the engine wants it.
type engineHSM struct{ t *hsm.Token }

func (h engineHSM) Algorithm(ctx context.Context) (string, error) {
	algorithm, err := h.t.Algorithm(ctx)
	return algorithm, hsmFault(err)
}

func (h engineHSM) Generate(ctx context.Context, label string, id []byte) error {
	return hsmFault(h.t.GenerateAES(ctx, hsm.KeyRef{Label: label, ID: id}))
}

func (h engineHSM) Find(ctx context.Context, label string, id []byte) error {
	return hsmFault(h.t.Find(ctx, hsm.KeyRef{Label: label, ID: id}))
}

func (h engineHSM) List(ctx context.Context, prefix string, age time.Duration) ([]lifecycle.HSMKey, error) {
	refs, err := h.t.List(ctx, prefix, age)
	keys := make([]lifecycle.HSMKey, len(refs))
	for i, ref := range refs {
		keys[i] = lifecycle.HSMKey(ref)
	}
	return keys, hsmFault(err)
}

func (h engineHSM) Wrap(ctx context.Context, label string, id []byte, algorithm string, spki []byte) ([]byte, error) {
	wrapped, err := h.t.Wrap(ctx, hsm.KeyRef{Label: label, ID: id}, algorithm, spki)
	return wrapped, hsmFault(err)
}

func (h engineHSM) Destroy(ctx context.Context, label string, id []byte) error {
	err := h.t.Destroy(ctx, hsm.KeyRef{Label: label, ID: id})
	if errors.Is(err, hsm.ErrKeyNotFound) {
		return nil
	}
	return hsmFault(err)
}

// hsmFault gives an error of a token its class.
func hsmFault(err error) error {
	if err == nil {
		return nil
	}
	f := &lifecycle.Fault{Class: lifecycle.Class(hsm.ClassOf(err)), WaitingFor: hsm.WaitingFor(err), Err: err}
	if errors.Is(err, hsm.ErrKeyNotFound) {
		f.Err = fmt.Errorf("%w: %w", lifecycle.ErrNotFound, err)
	}
	return f
}
