// Package daemon is byokd's process: it reads the configuration, fires
// schedules, watches files, runs jobs, delivers events and serves the control
// socket, and ties the packages that do so together.
//
// A trigger of any kind ends in one place, a row in the job store; workers claim
// rows and drive them through the engine of daemon/lifecycle. Whatever happens
// to the process, the rows say what is left to do.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"byokd/cloud"
	"byokd/config"
	"byokd/daemon/control"
	"byokd/daemon/jobstore"
	"byokd/daemon/lifecycle"
	"byokd/hsm"
	"byokd/schedule"
	"byokd/systemd"
)

// Exit statuses of byokd. Never 2, which is Go's for a panic.
const (
	ExitOK       = 0
	ExitFault    = 1  // systemd restarts it
	ExitRestart  = 75 // to be restarted on purpose (EX_TEMPFAIL of sysexits.h)
	ExitHelpless = 78 // only a person can help (EX_CONFIG of sysexits.h)
)

// hsmCloseTimeout is how long byokd waits at its end for calls into PKCS#11
// modules; no job is running any more then.
const hsmCloseTimeout = 10 * time.Second

// settleWait bounds how long a reload waits for files that have just been written.
const settleWait = 5 * time.Second

// lockWait is how long another byokd on the same state may still be ending, in
// steps of lockPause.
const (
	lockWait  = 3 * time.Second
	lockPause = 100 * time.Millisecond
)

// An ExitError is an error with the exit status that goes with it.
type ExitError struct {
	Status int
	Err    error
}

func (e *ExitError) Error() string { return e.Err.Error() }

// Unwrap returns the error.
func (e *ExitError) Unwrap() error { return e.Err }

// ExitStatus returns the exit status for what Run returned.
func ExitStatus(err error) int {
	if err == nil {
		return ExitOK
	}
	if e, ok := errors.AsType[*ExitError](err); ok {
		return e.Status
	}
	return ExitFault
}

func helpless(format string, args ...any) error {
	return &ExitError{ExitHelpless, fmt.Errorf(format, args...)}
}

// Options are what Run needs of the world around it.
type Options struct {
	ConfigPath string       // byokd.toml; required
	Logger     *slog.Logger // required
	Version    string       // for `byokctl version` and status

	// SetLog is called with [log] at start and when it changes; nil: the Logger
	// does not follow.
	SetLog func(config.Log)

	// Reload asks for what SIGHUP asks for. One with capacity 1 lets a burst of
	// signals be one reload.
	Reload <-chan struct{}

	// Notifier tells systemd; nil: nobody.
	Notifier *systemd.Notifier

	LookupEnv func(string) (string, bool) // default: os.LookupEnv
	Now       func() time.Time            // default: time.Now; schedules, retries and due times follow it

	// Clock, if not nil, is called with a function that makes byokd look at Now
	// again at once, for a clock that is moved by hand.
	Clock func(wake func())

	// Started is called once READY holds; nil: not.
	Started func()

	HSMOptions []hsm.Option // of the PKCS#11 modules; tests put faults in front of them
}

// DefaultOptions are the options of a byokd that is started by hand.
func DefaultOptions() Options {
	return Options{
		ConfigPath: "/etc/byokd/byokd.toml",
		Logger:     slog.Default(),
		LookupEnv:  os.LookupEnv,
		Now:        time.Now,
	}
}

// A Daemon is one running byokd. Several may run in one process, each on a
// state of its own.
type Daemon struct {
	Options
	host    string
	started time.Time
	log     *slog.Logger

	cfg     atomic.Pointer[config.Config]
	store   *jobstore.Store
	cloud   *cloud.Cloud
	tokens  *tokens
	engine  *lifecycle.Engine
	runner  *schedule.Runner
	groups  *groups
	outbox  *outbox
	hooks   *hooks
	metrics *metrics

	listeners *listeners

	socket   net.Listener
	requests *requests

	jobsWake     chan struct{} // a job may have become claimable
	outboxWake   chan struct{} // an event may have become due
	hooksWake    chan struct{} // a hook may be to be run
	groupsWake   chan struct{} // a group may have to be reconciled
	expiryWake   chan struct{} // key material may expire at another time
	watchWake    chan struct{} // the clock was set
	upkeepWake   chan struct{} // old jobs may be to be removed, by a clock that was set
	driftWake    chan struct{} // a group may have to be compared with AWS
	prefetchWake chan struct{} // the clock was set
	tidyWake     chan struct{} // systemd is to be told at once how things are
	loadWake     chan struct{} // again was called
	changes      *broadcast    // something about a job has changed

	watcher    *watcher          // of the group files and their policy files
	dir        *config.Dir       // the group files, as they were last read; guarded by loading
	relations  *config.Relations // of all groups; guarded by loading
	loaded     bool              // all files have been read once; guarded by loading
	againMu    sync.Mutex
	againAll   bool
	againNames []string

	loading   sync.Mutex  // one reload, watched change or request at a time
	taking    sync.Mutex  // held for the request files, before loading
	untaken   atomic.Bool // there may be requests that were taken and have no job
	reloaded  atomic.Pointer[control.Reload]
	workers   *workers
	overloads overloadWatch
	prefetch  prefetcher

	// designated ends when this is no longer the designated device; resign ends it.
	designated atomic.Pointer[context.Context]
	resign     context.CancelFunc
	ending     atomic.Bool // no more jobs are begun: byokd is about to end

	summed summary // as of the last tidy, which alone uses it

	storing    atomic.Pointer[problem] // why the database cannot be written; nil: it can
	unreadable atomic.Pointer[problem] // why groups_dir cannot be read; nil: it can
	fatal      chan error              // ends Run
	pulses     *pulses
}

// Run runs byokd until ctx ends, which is a graceful stop: a running step
// finishes, its job is put back, and Run returns nil. Any other end is an error,
// whose exit status is ExitStatus's.
func Run(ctx context.Context, o Options) error {
	d, err := start(ctx, o)
	if err != nil {
		return err
	}
	return d.run(ctx)
}

// start opens everything that byokd cannot do without. What it has opened is
// closed again when it fails.
func start(ctx context.Context, o Options) (_ *Daemon, err error) {
	if o.LookupEnv == nil {
		o.LookupEnv = os.LookupEnv
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Notifier == nil {
		o.Notifier = new(systemd.Notifier)
	}
	d := &Daemon{Options: o, log: o.Logger, started: o.Now(),
		jobsWake: make(chan struct{}, 1), outboxWake: make(chan struct{}, 1), hooksWake: make(chan struct{}, 1),
		groupsWake: make(chan struct{}, 1), expiryWake: make(chan struct{}, 1), watchWake: make(chan struct{}, 1), upkeepWake: make(chan struct{}, 1), driftWake: make(chan struct{}, 1), prefetchWake: make(chan struct{}, 1), loadWake: make(chan struct{}, 1), tidyWake: make(chan struct{}, 1),
		changes: newBroadcast(), workers: newWorkers(), fatal: make(chan error, 1), pulses: newPulses()}
	if d.host, err = os.Hostname(); err != nil {
		return nil, fmt.Errorf("read this machine's name: %w", err)
	}
	cfg, err := config.Load(o.ConfigPath, d.configOptions())
	if err != nil {
		return nil, &ExitError{ExitHelpless, err}
	}
	d.cfg.Store(cfg)
	d.groups = newGroups(d)
	d.dir, d.relations = config.NewDir(d.configOptions()), config.NewRelations(cfg)
	d.designate()
	d.setLog(cfg)
	d.reloaded.Store(&control.Reload{At: control.At(o.Now()), OK: true})

	d.tellMissing(cfg)

	path := cfg.Database()
	store := jobstore.Options{Now: o.Now, Local: func() bool { return !d.cfg.Load().Events.Enabled }, CheckLater: true}
	d.store, err = jobstore.Open(ctx, path, store)
	for wait := lockWait; errors.Is(err, jobstore.ErrInUse) && wait > 0 && ctx.Err() == nil; wait -= lockPause {
		sleep(ctx, lockPause, nil)
		d.store, err = jobstore.Open(ctx, path, store)
	}
	switch {
	case errors.Is(err, jobstore.ErrNotExist):
		return nil, helpless("there is no database %s: make an empty one with `byokctl init`; byokd then finds its keys again in KMS and the HSM", path)
	case errors.Is(err, jobstore.ErrNewer), errors.Is(err, jobstore.ErrDamaged), errors.Is(err, jobstore.ErrInUse):
		return nil, &ExitError{ExitHelpless, err}
	case jobstore.IsFull(err):
		return nil, fmt.Errorf("%s: %w", diskFull(path), err)
	case jobstore.IsReadOnly(err):
		return nil, fmt.Errorf("the database %s cannot be opened for writing: mount its file system writable, and give state_dir and what is in it to the user that byokd runs as: %w", path, err)
	case err != nil:
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.store.Close())
		}
	}()
	d.store.Tell(d.groups.changed)
	rescued, err := d.store.Rescue(ctx)
	if jobstore.IsFull(err) {
		return nil, fmt.Errorf("%s: %w", diskFull(path), err)
	}
	if err != nil {
		return nil, fmt.Errorf("settle the jobs that were interrupted: %w", err)
	}
	if n, err := d.store.SetBack(ctx, o.Now(), operatorRetry+clockStep); err != nil {
		return nil, err
	} else if n > 0 {
		d.log.Warn("times in the database lay in the future and were mended: the clock was ahead when they were written", "rows", n)
	}
	// What kept events from being sent may be mended; if it is not, status can tell only
	// once it was tried.
	if _, err := d.store.WakeEvents(ctx); err != nil && !jobstore.IsFull(err) {
		return nil, err
	}
	if rescued > 0 {
		d.log.Info("jobs that were interrupted go on", "jobs", rescued)
	}

	d.metrics = newMetrics(d)
	d.listeners = newListeners(d)
	d.cloud = cloud.New(d.cloudSettings(cfg))
	if err := d.cloud.Validate(); err != nil {
		return nil, &ExitError{ExitHelpless, err}
	}
	d.tokens = newTokens(d, cfg)
	d.engine = d.newEngine()
	d.outbox = newOutbox(d)
	d.hooks = newHooks(d)
	if err := d.hooks.follow(ctx); err != nil {
		return nil, err
	}
	d.runner = schedule.NewRunner(o.Now, d.fire)
	d.watcher = d.newDefinitionWatcher()

	if err := os.MkdirAll(cfg.RuntimeDir, 0o750); err != nil {
		return nil, fmt.Errorf("make runtime_dir: %w", err)
	}
	d.requests, err = newRequests(cfg.RequestsDir(), d.log)
	if err != nil {
		return nil, fmt.Errorf("prepare the folder for request files: %w", err)
	}
	if d.socket, err = control.Listen(cfg.Socket(), "byokd"); err != nil {
		return nil, fmt.Errorf("listen on the control socket: %w", err)
	}
	return d, nil
}

func (d *Daemon) configOptions() config.Options {
	return config.Options{LookupEnv: d.LookupEnv, UID: os.Geteuid()}
}

// tellMissing logs what byokd.toml names and is not there.
func (d *Daemon) tellMissing(cfg *config.Config) {
	for _, p := range cfg.Missing() {
		d.log.Error("a file that byokd.toml names is missing", "problem", p.String())
	}
}

// run starts the loops, says READY and waits for the end.
func (d *Daemon) run(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var loops sync.WaitGroup
	loop := func(name string, f func(context.Context, *pulse)) {
		p := d.pulses.of(name)
		loops.Go(func() {
			defer p.end()
			f(ctx, p)
		})
	}
	// Fed to the very end: what runs may take its time to stop.
	fed, feeding := make(chan struct{}), sync.WaitGroup{}
	defer feeding.Wait()
	defer close(fed)

	// Watch, then read: no change falls between the two.
	loop("definitions", d.watchDefinitions)
	select {
	case <-d.watcher.ready:
	case <-ctx.Done():
	}
	d.load(ctx, triggerStart)
	d.takeLeftovers(ctx)

	server := &control.Server{Backend: d, Log: d.log}
	loops.Go(func() {
		if err := server.Serve(ctx, d.socket); err != nil {
			d.fail(fmt.Errorf("serve the control socket: %w", err))
		}
	})
	loop("control", d.probeControl)
	loop("schedules", func(ctx context.Context, p *pulse) {
		d.runner.Idle = p.rest
		d.runner.Run(ctx)
	})
	loop("jobs", func(ctx context.Context, p *pulse) {
		if d.checkDatabase(ctx, p) {
			d.work(ctx, p)
		}
	})
	loop("events", d.outbox.run)
	loop("hooks", d.hooks.run)
	loop("groups", d.groups.run)
	loop("requests", d.watchRequests)
	loop("housekeeping", d.housekeep)
	loop("upkeep", d.upkeep)
	loop("expiry", d.watchExpiry)
	loop("keys", d.watchKeys)
	loop("drift", d.watchDrift)
	loop("prefetch", d.prefetchAll)
	loop("reloads", d.reloads)
	loop("clock", d.watchClock)
	// These are in calls to modules, and to whoever reads metrics and page, all the time.
	loops.Go(func() { d.tokens.run(ctx) })
	loops.Go(func() { d.metrics.serve(ctx) })
	loops.Go(func() { (&page{d: d, places: make(chan struct{}, pageAtOnce)}).serve(ctx) })
	if d.Clock != nil {
		d.Clock(d.wakeAll)
	}

	for _, e := range d.endpoints() {
		what := "an AWS endpoint is overridden"
		if e.Service == cloud.ServiceKMS {
			what += ": it decides under whose key HSM keys are wrapped"
		}
		d.log.Warn(what, "service", e.Service, "region", string(e.Region), "url", e.URL)
	}
	d.log.Info("byokd is ready", "version", d.Version, "groups", d.groups.count(), "designated", d.cfg.Load().Designated)
	d.Notifier.Ready()
	feeding.Go(func() { d.feed(fed) })
	if d.Started != nil {
		d.Started()
	}

	var cause error
	select {
	case <-ctx.Done():
		d.log.Info("byokd stops")
	case cause = <-d.fatal:
		d.log.Error("byokd ends", "err", cause)
	}
	d.Notifier.Stopping()
	stop(cause)
	loops.Wait()
	d.cloud.Close()
	closeCtx, cancel := context.WithTimeout(context.Background(), hsmCloseTimeout)
	defer cancel()
	if err := errors.Join(d.tokens.close(closeCtx), d.store.Close()); err != nil {
		d.log.Warn("not everything could be closed", "err", err)
	}
	return cause
}

// checkDatabase looks for damage in the database before the first job, where that
// takes too long for a start to wait for it. It returns false when ctx has ended.
func (d *Daemon) checkDatabase(ctx context.Context, p *pulse) bool {
	if d.store.Unchecked() {
		d.log.Info("the database is checked for damage before the first job", "path", d.cfg.Load().Database())
	}
	for d.store.Unchecked() && ctx.Err() == nil {
		begun := time.Now()
		resume := p.rest()
		err := d.store.Check(ctx)
		resume()
		switch {
		case err == nil:
			d.log.Info("the database is whole", "elapsed", time.Since(begun).Round(time.Millisecond))
		case ctx.Err() == nil:
			d.storeFailed("check the database for damage", err)
			p.sleep(ctx, tickRetry, nil)
		}
	}
	return ctx.Err() == nil
}

// fail ends Run with an error.
func (d *Daemon) fail(err error) {
	select {
	case d.fatal <- err:
	default: // it is ending already
	}
}

// designate begins a time in which this may be the designated device.
func (d *Daemon) designate() {
	ctx, resign := context.WithCancel(context.Background())
	d.designated.Store(&ctx)
	d.resign = resign
}

// reloads does what SIGHUP asks for.
func (d *Daemon) reloads(ctx context.Context, p *pulse) {
	for {
		resume := p.rest()
		select {
		case <-ctx.Done():
			return
		case <-d.Reload:
			resume()
			d.Notifier.Reloading()
			d.reload(ctx)
			wake(d.jobsWake) // max_jobs and designated may be others now
			d.Notifier.Ready()
		case <-d.loadWake:
			resume()
			d.loadAgain(ctx)
		}
	}
}

// wakeAll makes every loop look at the clock.
func (d *Daemon) wakeAll() {
	d.runner.Wake()
	wake(d.jobsWake)
	d.wakeEvents()
	wake(d.groupsWake)
	wake(d.expiryWake)
	wake(d.watchWake)
	wake(d.upkeepWake)
	wake(d.driftWake)
	wake(d.prefetchWake)
	wake(d.tidyWake)
}

// wakeEvents has everybody who waits for events look for them.
func (d *Daemon) wakeEvents() {
	wake(d.outboxWake)
	wake(d.hooksWake)
}

// announces reports whether anybody is to be told of events.
func (d *Daemon) announces() bool {
	cfg := d.cfg.Load()
	return cfg.Events.Enabled || len(cfg.Hooks) > 0
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// sleep waits for d, a wake-up, or the end of ctx; false for the last.
func sleep(ctx context.Context, d time.Duration, wake <-chan struct{}) bool {
	t := time.NewTimer(max(d, 0))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
	case <-wake:
	}
	return true
}

// A broadcast tells everybody who waits that something has changed.
type broadcast struct {
	mu sync.Mutex
	c  chan struct{}
}

func newBroadcast() *broadcast { return &broadcast{c: make(chan struct{})} }

// wait returns a channel that is closed at the next change.
func (b *broadcast) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.c
}

func (b *broadcast) notify() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.c)
	b.c = make(chan struct{})
}

// A problem is something that a person should know.
type problem struct {
	code, message string
	since         time.Time
}
