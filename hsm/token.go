package hsm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/miekg/pkcs11"
)

// Config describes one token, an [hsm.NAME] table of byokd.toml.
type Config struct {
	Name   string // of the table, for messages
	Module string // absolute path of the PKCS#11 module

	// TokenLabel and TokenSerial select the token; at least one is given. Slot
	// numbers change and are never looked at.
	TokenLabel, TokenSerial string

	// Wrapping is "auto", the default: RSAES_OAEP_SHA_256, or RSAES_OAEP_SHA_1
	// where the token cannot do that. Or it is the one algorithm to use.
	Wrapping string

	MaxParallel  int           // operations inside the module at once; default 1
	CallTimeout  time.Duration // for one call into the module; default 2 min
	InitReserved string        // C_Initialize's pReserved; "": a null pointer

	// KeyTemplate adds attributes to generated keys, or overrides or omits
	// byokd's own: a CKA_ name, or 0x and the hexadecimal number of a vendor's
	// attribute, to a bool, an int64, a string, or "omit".
	KeyTemplate map[string]any

	// PIN returns the user PIN. Its buffer is zeroed after use. It is called
	// for each login, so that a changed PIN is seen.
	PIN func(ctx context.Context) ([]byte, error)

	// Logins stands round each C_Login. If it is nil, the token remembers a
	// refused PIN as long as it lives, and does not log in on the last try.
	Logins Logins

	Logger *slog.Logger // default: that of the Modules
}

func (c Config) withDefaults(log *slog.Logger) Config {
	if c.Wrapping == "" {
		c.Wrapping = auto
	}
	if c.MaxParallel == 0 {
		c.MaxParallel = 1
	}
	if c.CallTimeout == 0 {
		c.CallTimeout = 2 * time.Minute
	}
	if c.Logins == nil {
		c.Logins = new(memory)
	}
	if c.Logger == nil {
		c.Logger = log
	}
	c.Logger = c.Logger.With("hsm", c.Name)
	return c
}

// Validate returns what is wrong with the configuration, as far as that can be
// told without touching files or the token. The error is of class Operator.
func (c Config) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("[hsm.%s] %s: %w", c.Name, key, fmt.Errorf(format, args...)))
	}
	if !filepath.IsAbs(c.Module) {
		bad("module", "%q is no absolute path", c.Module)
	}
	if c.TokenLabel == "" && c.TokenSerial == "" {
		bad("token_label", "missing: give the token's label, its token_serial, or both")
	}
	if c.Wrapping != "" && c.Wrapping != auto {
		if _, ok := algorithms[c.Wrapping]; !ok {
			bad("wrapping", "KMS takes no AES key wrapped with %q: use auto, %s or %s", c.Wrapping, OAEPSHA256, OAEPSHA1)
		}
	}
	if c.MaxParallel < 0 {
		bad("max_parallel", "%d is negative", c.MaxParallel)
	}
	if c.CallTimeout < 0 {
		bad("call_timeout", "%v is negative", c.CallTimeout)
	}
	if c.PIN == nil {
		bad("pin_file", "missing: give pin_file or pin_credential")
	}
	if _, err := keyTemplate(KeyRef{}, c.KeyTemplate); err != nil {
		bad("key_template", "%w", err)
	}
	if len(errs) == 0 {
		return nil
	}
	return &fault{Operator, waitConfig, errors.Join(errs...)}
}

// A KeyRef names a key on a token.
type KeyRef struct {
	Label string // CKA_LABEL
	ID    []byte // CKA_ID
}

func (k KeyRef) String() string { return fmt.Sprintf("%s (CKA_ID %x)", k.Label, k.ID) }

// Info is what is known of a token. Text is as the token gives it, without padding.
type Info struct {
	Name      string // of the [hsm.NAME] table
	Connected bool   // logged in, and nothing has failed since
	Hung      bool   // a call into its module has not returned in time
	Err       error  // of the latest operation, unless a key was to blame for it; nil: none

	// From here on as of the latest connection; zero before the first.
	Label, Serial, Manufacturer, Model string
	Firmware                           string // major.minor
	Library, LibraryVersion            string // C_GetInfo's description and version
	Flags                              TokenFlags
	Algorithm                          string  // the proven one; "": none
	Proofs                             []Proof // the algorithms tried, in order
}

// TokenFlags are the flags of CK_TOKEN_INFO that tell of the user's PIN
// (PKCS#11 2.40, section 3.2).
type TokenFlags struct {
	CountLow bool // CKF_USER_PIN_COUNT_LOW: a wrong PIN was given at least once
	FinalTry bool // CKF_USER_PIN_FINAL_TRY: one more wrong PIN locks it
	Locked   bool // CKF_USER_PIN_LOCKED
}

func tokenFlags(flags uint) TokenFlags {
	return TokenFlags{
		CountLow: flags&pkcs11.CKF_USER_PIN_COUNT_LOW != 0,
		FinalTry: flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0,
		Locked:   flags&pkcs11.CKF_USER_PIN_LOCKED != 0,
	}
}

// Stats are a token's counters since the process began.
type Stats struct {
	SessionsInUse     int               // working sessions open now
	SessionsAbandoned int               // left behind in a call that hangs
	Errors            map[string]uint64 // failed operations by CKR_ name
}

// A Token is one token, reached through its module. It connects when it is
// first used and again when it must. All methods may be called concurrently.
// The context limits the wait for a place in the module, not a call inside it;
// that is what [Config.CallTimeout] is for.
type Token struct {
	cfg     Config
	cfgErr  error
	modules *Modules

	connecting chan struct{} // held by whoever connects
	listing    chan struct{} // held by whoever lists all keys
	hung       chan struct{} // closed when a call hangs
	hungOnce   sync.Once

	mu        sync.Mutex
	module    *module // nil until first used
	conn      *connection
	closed    bool
	info      Info // but for Connected and Hung
	inUse     int
	abandoned int
	errors    map[string]uint64
}

// A connection is a login to a token in one generation of its module.
type connection struct {
	generation int
	slot       uint
	login      pkcs11.SessionHandle // keeps the login; does nothing else
	objects    objects              // what is known of the token's keys

	// Guarded by the token's mu.
	readWrite bool   // the token can do nothing in read-only sessions
	algorithm string // proven; "" none yet
}

// errStale means that the module was initialised again meanwhile.
var errStale = errors.New("connection is of an older generation")

// Connect connects to the token unless it is connected, and proves a wrapping
// algorithm unless that is done.
func (t *Token) Connect(ctx context.Context) error {
	_, err := t.prove(ctx)
	return err
}

// Algorithm returns the wrapping algorithm, in KMS's words, that a self-test
// has proven in this connection. Once that is done the token is not asked.
// [ErrNoAlgorithm] names what was tried.
func (t *Token) Algorithm(ctx context.Context) (string, error) {
	if conn := t.live(); conn != nil {
		t.mu.Lock()
		algorithm := conn.algorithm
		t.mu.Unlock()
		if algorithm != "" {
			return algorithm, nil
		}
	}
	return t.prove(ctx)
}

// prove opens a session and returns the wrapping algorithm that is proven in its
// connection.
func (t *Token) prove(ctx context.Context) (string, error) {
	var algorithm string
	err := t.do(ctx, readOnly, func(s *session) (err error) {
		algorithm, err = s.proven()
		return err
	})
	return algorithm, err
}

// Check finds out whether the token works, by asking for its description and
// by making and using a throwaway session key: a token that is gone can go on
// answering calls that need less. What can be mended by reconnecting is.
func (t *Token) Check(ctx context.Context) error {
	return t.do(ctx, readOnly, func(s *session) error {
		ti, err := s.tokenInfo()
		if err != nil {
			return err
		}
		if !t.cfg.selects(ti) {
			return fmt.Errorf("the slot holds another token now: %w", &Error{"C_GetTokenInfo", pkcs11.CKR_TOKEN_NOT_PRESENT})
		}
		t.mu.Lock()
		t.info.Flags = tokenFlags(ti.Flags)
		t.mu.Unlock()
		if _, err := s.proven(); err != nil {
			return err
		}
		key, err := s.throwaway(t.cfg.KeyTemplate)
		if err != nil {
			return err
		}
		defer s.destroy(key)
		_, err = s.encryptBlock(key, make([]byte, 16))
		return err
	})
}

// Info returns what is known of the token without asking it.
func (t *Token) Info() Info {
	t.mu.Lock()
	defer t.mu.Unlock()
	info := t.info
	info.Name = t.cfg.Name
	select {
	case <-t.hung:
		info.Hung = true
	default:
	}
	if t.conn != nil && !info.Hung {
		generation, ok := t.module.current()
		info.Connected = ok && generation == t.conn.generation
	}
	return info
}

// Stats returns the token's counters.
func (t *Token) Stats() Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	return Stats{SessionsInUse: t.inUse, SessionsAbandoned: t.abandoned, Errors: maps.Clone(t.errors)}
}

// Hung returns a channel that is closed once a call into the token's module has
// not returned within its time. All calls of that module are refused from then
// on with [ErrTokenUnavailable]: only a new process can use it again.
func (t *Token) Hung() <-chan struct{} { return t.hung }

func (t *Token) closeHung() { t.hungOnce.Do(func() { close(t.hung) }) }

// Close waits for a place in the module and closes the token's login. Later
// calls return [ErrClosed].
func (t *Token) Close(ctx context.Context) error {
	t.mu.Lock()
	m, conn := t.module, t.conn
	t.closed = true
	t.mu.Unlock()
	if m == nil {
		return nil
	}
	m.remove(t)
	if conn == nil {
		return nil
	}
	return t.drop(ctx, m, conn)
}

// selects reports whether a token is the configured one.
func (c Config) selects(ti pkcs11.TokenInfo) bool {
	return ti.Flags&pkcs11.CKF_TOKEN_INITIALIZED != 0 &&
		(c.TokenLabel == "" || c.TokenLabel == unpad(ti.Label)) &&
		(c.TokenSerial == "" || c.TokenSerial == unpad(ti.SerialNumber))
}

// unpad removes the blanks that PKCS#11 pads text with, and the zero bytes that
// some modules use instead.
func unpad(s string) string { return strings.TrimRight(s, " \x00") }

// connectedIn reports whether the token is connected in a generation.
func (t *Token) connectedIn(generation int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.conn != nil && t.conn.generation == generation
}

// do runs an operation in a session of its own. After an error that a new
// session, a new login or a newly initialised module may mend, it does the
// least of these that has not been tried and runs the operation once more: fn
// must bear to be run up to four times.
func (t *Token) do(ctx context.Context, access uint, fn func(*session) error) error {
	err := t.attempt(ctx, access, fn)
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case err == nil:
		t.info.Err = nil
	case ctx.Err() == nil && !errors.Is(err, ErrKeyNotFound) && !errors.Is(err, ErrKeyExists) && !errors.Is(err, errMismatch):
		t.info.Err = err
	}
	return err
}

func (t *Token) attempt(ctx context.Context, access uint, fn func(*session) error) error {
	m, err := t.attach()
	if err != nil {
		return err
	}
	tried, unknown := rungNone, false
	for {
		conn, err := t.connect(ctx, m)
		if err == nil {
			err = t.use(ctx, m, conn, access, fn)
		}
		if err == nil {
			return nil
		}
		if errors.Is(err, errStale) {
			continue
		}
		t.count(err)
		class := ClassOf(err)
		unknown = unknown || class == Unknown
		next := rungOf(err)
		if next == rungNone || tried == rungModule {
			if next != rungNone {
				err = fmt.Errorf("%w: %w", ErrTokenUnavailable, err)
			}
			if unknown && class == Transient {
				err = &fault{class: Unknown, err: err} // an earlier run may have had its effect
			}
			return err
		}
		tried = max(next, tried+1)
		op, code := codeOf(err)
		t.cfg.Logger.Warn("hsm operation failed, recovering", "op", op, "ckr", name(code), "means", tried.String())
		switch {
		case tried == rungModule && conn != nil:
			m.spoil(conn.generation, err)
		case tried == rungModule:
			generation, _ := m.current()
			m.spoil(generation, err)
		case tried == rungLogin && conn != nil:
			if err := t.drop(ctx, m, conn); err != nil {
				return err
			}
		}
	}
}

// rungOf returns the first means of recovery that may help after an error.
func rungOf(err error) rung {
	if _, ok := errors.AsType[*fault](err); ok || errors.Is(err, ErrTokenUnavailable) {
		return rungNone
	}
	return rungOfCode(codeOf(err))
}

// count counts a failed operation.
func (t *Token) count(err error) {
	if _, code := codeOf(err); code != pkcs11.CKR_OK {
		t.mu.Lock()
		t.errors[name(code)]++
		t.mu.Unlock()
	}
}

// attach finds the token's module, loading it if need be.
func (t *Token) attach() (*module, error) {
	t.mu.Lock()
	m, closed := t.module, t.closed
	t.mu.Unlock()
	switch {
	case t.cfgErr != nil:
		return nil, t.cfgErr
	case closed:
		return nil, ErrClosed
	case m != nil:
		return m, nil
	}
	m, err := t.modules.module(t)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.module = m
	return m, nil
}

// connect returns the connection of the module's present generation, having
// made one if there is none.
func (t *Token) connect(ctx context.Context, m *module) (*connection, error) {
	generation, err := m.ready(ctx)
	if err != nil {
		return nil, err
	}
	if conn := t.connection(generation); conn != nil {
		return conn, nil
	}
	// One login at a time. Nobody waits here with a place in the module: who
	// initialises it again wants all of them.
	select {
	case t.connecting <- struct{}{}:
		defer func() { <-t.connecting }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if conn := t.connection(generation); conn != nil {
		return conn, nil
	}
	if err := m.gate.enter(ctx, false); err != nil {
		return nil, err
	}
	defer m.gate.leave()
	if now, ok := m.current(); !ok || now != generation {
		return nil, errStale
	}
	conn, err := t.establish(ctx, m, generation)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		call(m, t.cfg.CallTimeout, "C_CloseSession", func(lib Library) (struct{}, error) {
			return struct{}{}, lib.CloseSession(conn.login)
		})
		return nil, ErrClosed
	}
	t.conn = conn
	return conn, nil
}

// live returns the connection if its handles are good; nil: there is none.
func (t *Token) live() *connection {
	t.mu.Lock()
	m, closed := t.module, t.closed
	t.mu.Unlock()
	if m == nil || closed || m.hungErr() != nil {
		return nil
	}
	generation, ok := m.current()
	if !ok {
		return nil
	}
	return t.connection(generation)
}

// connection returns the connection if it is of the given generation.
func (t *Token) connection(generation int) *connection {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.conn != nil && t.conn.generation == generation {
		return t.conn
	}
	return nil
}

// establish finds the token and logs in. The caller has a place in the module.
func (t *Token) establish(ctx context.Context, m *module, generation int) (*connection, error) {
	library, err := call(m, t.cfg.CallTimeout, "C_GetInfo", Library.GetInfo)
	if err != nil {
		return nil, err
	}
	slot, ti, err := t.findSlot(m, generation)
	if err != nil {
		return nil, err
	}
	conn := &connection{generation: generation, slot: slot}
	conn.login, err = call(m, t.cfg.CallTimeout, "C_OpenSession", func(lib Library) (pkcs11.SessionHandle, error) {
		return lib.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION)
	})
	if err != nil {
		return nil, err
	}
	if err := t.login(ctx, m, conn, tokenFlags(ti.Flags)); err != nil {
		call(m, t.cfg.CallTimeout, "C_CloseSession", func(lib Library) (struct{}, error) {
			return struct{}{}, lib.CloseSession(conn.login)
		})
		return nil, err
	}
	info := Info{
		Label:          unpad(ti.Label),
		Serial:         unpad(ti.SerialNumber),
		Manufacturer:   unpad(ti.ManufacturerID),
		Model:          unpad(ti.Model),
		Firmware:       version(ti.FirmwareVersion),
		Library:        unpad(library.LibraryDescription),
		LibraryVersion: version(library.LibraryVersion),
		Flags:          tokenFlags(ti.Flags),
	}
	t.mu.Lock()
	t.info = info
	t.mu.Unlock()
	t.cfg.Logger.Info("hsm connected", "label", info.Label, "serial", info.Serial, "model", info.Model, "generation", generation)
	return conn, nil
}

func version(v pkcs11.Version) string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

// findSlot looks for the one slot that holds the configured token.
func (t *Token) findSlot(m *module, generation int) (uint, pkcs11.TokenInfo, error) {
	slots, err := call(m, t.cfg.CallTimeout, "C_GetSlotList", func(lib Library) ([]uint, error) { return lib.GetSlotList(true) })
	if err != nil {
		return 0, pkcs11.TokenInfo{}, err
	}
	var (
		found   []uint
		ti      pkcs11.TokenInfo
		others  []string
		slotErr error
	)
	for _, slot := range slots {
		info, err := call(m, t.cfg.CallTimeout, "C_GetTokenInfo", func(lib Library) (pkcs11.TokenInfo, error) {
			return lib.GetTokenInfo(slot)
		})
		switch {
		case err != nil:
			slotErr = err // perhaps another token's; it counts only if ours is not found
		case t.cfg.selects(info):
			found, ti = append(found, slot), info
		case info.Flags&pkcs11.CKF_TOKEN_INITIALIZED != 0:
			others = append(others, fmt.Sprintf("%q (serial %s)", unpad(info.Label), unpad(info.SerialNumber)))
		}
	}
	switch {
	case len(found) == 1:
		return found[0], ti, nil
	case len(found) > 1:
		return 0, ti, operator(waitConfig, "%d tokens are %s: give both token_label and token_serial in [hsm.%s], or rename one of them",
			len(found), t.cfg.wanted(), t.cfg.Name)
	case slotErr != nil:
		return 0, ti, slotErr
	}
	err = fmt.Errorf("%w: PKCS#11 module %s has no token %s", ErrTokenUnavailable, t.cfg.Module, t.cfg.wanted())
	if len(others) > 0 {
		err = fmt.Errorf("%w, only %s", err, strings.Join(others, ", "))
	}
	err = fmt.Errorf("%w: attach it, let byokd's user read it (a token in files is its maker's), or correct [hsm.%s]", err, t.cfg.Name)
	m.miss(t, generation, err)
	return 0, ti, &fault{class: Transient, err: err}
}

// wanted names the configured token.
func (c Config) wanted() string {
	switch {
	case c.TokenSerial == "":
		return fmt.Sprintf("%q", c.TokenLabel)
	case c.TokenLabel == "":
		return "with serial " + c.TokenSerial
	}
	return fmt.Sprintf("%q with serial %s", c.TokenLabel, c.TokenSerial)
}

// drop forgets a connection and closes its login session.
func (t *Token) drop(ctx context.Context, m *module, conn *connection) error {
	t.mu.Lock()
	if t.conn == conn {
		t.conn = nil
	}
	t.mu.Unlock()
	if err := m.gate.enter(ctx, false); err != nil {
		return err
	}
	defer m.gate.leave()
	if generation, ok := m.current(); !ok || generation != conn.generation {
		return nil // C_Finalize closed it, and the handle may be another's by now
	}
	_, err := call(m, t.cfg.CallTimeout, "C_CloseSession", func(lib Library) (struct{}, error) {
		return struct{}{}, lib.CloseSession(conn.login)
	})
	if err != nil {
		t.cfg.Logger.Debug("close login session", "err", err)
	}
	return nil
}
