package hsm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/miekg/pkcs11"
)

// reinitEvery is the least time between two attempts to initialise a module
// again. Each costs every token of the module a login.
const reinitEvery = 5 * time.Second

// sparing times reinitEvery is the least time between two initialisations on
// behalf of a token that is absent while others of its module are connected.
const sparing = 12

// Modules owns the PKCS#11 modules of a process: one for each library,
// however many tokens and symbolic links lead to it, since C_Initialize and
// C_Finalize are per process. A process needs one Modules.
type Modules struct {
	log         *slog.Logger
	wrap        func(Library) Library
	reinitEvery time.Duration

	mu      sync.Mutex
	closed  bool
	modules map[string]*module // by resolved path
}

// An Option changes what [NewModules] returns. The options are for tests.
type Option func(*Modules)

// WithLibrary puts wrap's result in the place of each module that is loaded,
// so that a test can put faults in front of it.
func WithLibrary(wrap func(Library) Library) Option {
	return func(ms *Modules) { ms.wrap = wrap }
}

// WithReinitEvery sets the least time between two attempts to initialise a
// module again, 5 s by default.
func WithReinitEvery(d time.Duration) Option {
	return func(ms *Modules) { ms.reinitEvery = d }
}

// NewModules returns an empty Modules. It logs to log unless that is nil; a
// token's [Config] can name another logger.
func NewModules(log *slog.Logger, opts ...Option) *Modules {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	ms := &Modules{log: log, reinitEvery: reinitEvery, modules: make(map[string]*module)}
	for _, o := range opts {
		o(ms)
	}
	return ms
}

// Token returns the token that cfg describes. It does no I/O: the token
// connects at its first use, and what is wrong with cfg is returned there, as
// it is by [Config.Validate].
func (ms *Modules) Token(cfg Config) *Token {
	cfg = cfg.withDefaults(ms.log)
	t := &Token{
		cfg:        cfg,
		modules:    ms,
		connecting: make(chan struct{}, 1),
		listing:    make(chan struct{}, 1),
		hung:       make(chan struct{}),
		errors:     make(map[string]uint64),
	}
	t.cfgErr = cfg.Validate()
	return t
}

// Close waits until no call is inside any module, refuses further ones, and
// finalizes the modules. When ctx is done first, or a call has hung, that
// module is left as it is, and the error says so: finalizing a module under a
// running call can crash the process.
func (ms *Modules) Close(ctx context.Context) error {
	ms.mu.Lock()
	ms.closed = true
	modules := ms.modules
	ms.modules = nil
	ms.mu.Unlock()

	var errs []error
	for _, m := range modules {
		if err := m.close(ctx); err != nil {
			errs = append(errs, fmt.Errorf("close PKCS#11 module %s: %w", m.path, err))
		}
	}
	return errors.Join(errs...)
}

// module returns the module of a token's configuration, loaded but perhaps not
// initialised.
func (ms *Modules) module(t *Token) (*module, error) {
	cfg := t.cfg
	// A file that is missing now may be installed later: look each time.
	path, err := filepath.EvalSymlinks(cfg.Module)
	if err != nil {
		if pe, ok := errors.AsType[*fs.PathError](err); ok {
			err = pe.Err
		}
		return nil, operator(waitConfig, "PKCS#11 module %s: %w: install it or correct [hsm.%s] module", cfg.Module, err, cfg.Name)
	}
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if ms.closed {
		return nil, ErrClosed
	}
	m := ms.modules[path]
	if m == nil {
		lib, err := openLibrary(path)
		if err != nil {
			return nil, operator(waitConfig, "PKCS#11 module %s: %w: install it or correct [hsm.%s] module", cfg.Module, err, cfg.Name)
		}
		if ms.wrap != nil {
			lib = ms.wrap(lib)
		}
		m = &module{
			path:        path,
			lib:         lib,
			log:         ms.log.With("module", path),
			reserved:    cfg.InitReserved,
			owner:       cfg.Name,
			callTimeout: cfg.CallTimeout,
			reinitEvery: ms.reinitEvery,
		}
		if cfg.InitReserved != "" {
			m.initOptions = append(m.initOptions, reservedOption(cfg.InitReserved))
		}
		ms.modules[path] = m
	}
	if m.reserved != cfg.InitReserved {
		return nil, operator(waitConfig, "[hsm.%s] and [hsm.%s] use the same PKCS#11 module, which is initialised once: give both the same init_reserved",
			m.owner, cfg.Name)
	}
	m.gate.lower(cfg.MaxParallel)
	m.add(t)
	return m, nil
}

// A module is one loaded PKCS#11 library.
type module struct {
	path        string
	lib         Library
	log         *slog.Logger
	reserved    string        // C_Initialize's pReserved
	owner       string        // name of the token that loaded it
	callTimeout time.Duration // of C_Initialize and C_Finalize
	initOptions []pkcs11.InitializeOption
	reinitEvery time.Duration

	gate gate // places inside the library

	mu          sync.Mutex
	tokens      []*Token
	generation  int // counts successful C_Initialize; handles of an older one are void
	initialised bool
	stale       error     // why it must be initialised again; nil: it need not
	since       time.Time // of the latest C_Initialize that worked
	lastTry     time.Time // when it was last tried to initialise it again
	hung        *hungError
}

// add notes a token, so that it hears when a call hangs.
func (m *module) add(t *Token) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !slices.Contains(m.tokens, t) {
		m.tokens = append(m.tokens, t)
	}
	if m.hung != nil {
		t.closeHung()
	}
}

// remove forgets a token that is closed.
func (m *module) remove(t *Token) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tokens = slices.DeleteFunc(m.tokens, func(o *Token) bool { return o == t })
}

// ready returns the generation of the module, having initialised it if it was
// not yet, or is stale.
func (m *module) ready(ctx context.Context) (generation int, err error) {
	if generation, ok := m.current(); ok {
		return generation, nil
	}
	if err := m.gate.enter(ctx, true); err != nil {
		return 0, err
	}
	defer m.gate.leave()
	if generation, ok := m.current(); ok {
		return generation, nil // another did it
	}
	return m.initialise()
}

// current returns the generation, and whether its handles are good.
func (m *module) current() (generation int, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.generation, m.initialised && m.stale == nil
}

// spoil marks the module for initialising again, because of err, unless that
// has happened since the generation that err is from.
func (m *module) spoil(generation int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.generation == generation && m.stale == nil {
		m.stale = err
	}
}

// initialise calls C_Initialize, after C_Finalize if need be. The caller is
// alone inside the module.
func (m *module) initialise() (generation int, err error) {
	m.mu.Lock()
	again, cause, initialised := m.stale != nil, m.stale, m.initialised
	if again {
		if wait := m.reinitEvery - time.Since(m.lastTry); !m.lastTry.IsZero() && wait > 0 {
			m.mu.Unlock()
			return 0, &fault{class: Transient, err: fmt.Errorf("%w: %w; the module is initialised again in %v",
				ErrTokenUnavailable, cause, max(wait.Round(time.Second), time.Second))}
		}
		m.lastTry = time.Now()
	}
	m.mu.Unlock()

	if initialised {
		// An error changes nothing: C_Initialize tells how things stand.
		if err := m.run("C_Finalize", Library.Finalize); err != nil {
			m.log.Debug("pkcs11 finalize", "err", err)
			if _, ok := errors.AsType[*hungError](err); ok {
				return 0, err
			}
		}
	}
	err = m.run("C_Initialize", func(lib Library) error { return lib.Initialize(m.initOptions...) })
	if initialised && errors.Is(err, pkcs11.Error(pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED)) {
		err = nil // C_Finalize failed; new sessions may do all the same
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		err = fmt.Errorf("initialise PKCS#11 module %s: %w%s", m.path, err, m.hint(err))
		m.initialised = false
		m.stale = err
		m.lastTry = time.Now()
		return 0, err
	}
	m.generation++
	m.initialised = true
	m.stale = nil
	m.since = time.Now()
	m.log.Debug("pkcs11 module initialised", "generation", m.generation, "because", cause)
	return m.generation, nil
}

// hint says what an error of C_Initialize means to people who know such modules.
func (m *module) hint(err error) string {
	switch _, code := codeOf(err); code {
	case pkcs11.CKR_HOST_MEMORY:
		return " (openCryptoki says so when pkcsslotd is not running)"
	case pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED:
		return ": something else in this process uses it"
	case pkcs11.CKR_ARGUMENTS_BAD:
		if m.reserved == "" {
			return fmt.Sprintf(": the module may want [hsm.%s] init_reserved", m.owner)
		}
		return fmt.Sprintf(": the module refuses [hsm.%s] init_reserved", m.owner)
	case pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_FUNCTION_FAILED:
		return ": see the module's own configuration and log, whether byokd's user may read its files, and whether its unit's sandbox lets it (docs/service.md)"
	}
	return ""
}

// miss marks the module for initialising again because the token t was not
// found, err: many modules look for tokens in C_Initialize only. Where other
// tokens are connected, whom that costs a login, it is done less often.
func (m *module) miss(t *Token, generation int, err error) {
	m.mu.Lock()
	tokens, since := slices.Clone(m.tokens), m.since
	m.mu.Unlock()
	if slices.ContainsFunc(tokens, func(o *Token) bool { return o != t && o.connectedIn(generation) }) &&
		time.Since(since) < sparing*m.reinitEvery {
		return
	}
	m.spoil(generation, err)
}

// run calls a function of the module that has no result.
func (m *module) run(op string, f func(Library) error) error {
	_, err := call(m, m.callTimeout, op, func(lib Library) (struct{}, error) { return struct{}{}, f(lib) })
	return err
}

// call calls a function of the module in a goroutine of its own, since a call
// that hangs can only be walked away from. The caller has a place inside the
// module. What f returns comes back through a channel, so that a late answer
// is lost without harm.
func call[T any](m *module, timeout time.Duration, op string, f func(Library) (T, error)) (T, error) {
	var zero T
	if err := m.hungErr(); err != nil {
		return zero, err
	}
	type answer struct {
		v   T
		err error
	}
	done := make(chan answer, 1)
	go func() {
		v, err := f(m.lib)
		done <- answer{v, err}
	}()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	start := time.Now()
	select {
	case a := <-done:
		err := opError(op, a.err)
		m.log.Debug("pkcs11 call", "op", op, "elapsed", time.Since(start), "err", err)
		return a.v, err
	case <-timer.C:
		return zero, m.hang(op, timeout)
	}
}

// hang notes that a call has not returned in time. From now on the module is
// given up: its places are closed and its tokens told.
func (m *module) hang(op string, timeout time.Duration) error {
	m.mu.Lock()
	first := m.hung == nil
	if first {
		m.hung = &hungError{op: op, module: m.path}
	}
	tokens := slices.Clone(m.tokens)
	m.mu.Unlock()
	if first {
		m.log.Error("pkcs11 call hangs, module given up", "op", op, "call_timeout", timeout)
		m.gate.shut(m.hung)
		for _, t := range tokens {
			t.closeHung()
		}
	}
	return &hungError{op: op, module: m.path, asked: true}
}

// hungErr returns why no call may be made any more, or nil.
func (m *module) hungErr() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.hung != nil {
		return m.hung
	}
	return nil
}

// close drains and finalizes the module.
func (m *module) close(ctx context.Context) error {
	if err := m.gate.enter(ctx, true); err != nil {
		m.gate.shut(ErrClosed)
		return err
	}
	m.gate.shut(ErrClosed)
	m.mu.Lock()
	initialised := m.initialised
	m.initialised = false
	m.mu.Unlock()
	if !initialised {
		return nil
	}
	return m.run("C_Finalize", Library.Finalize)
}
