package hsm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"github.com/miekg/pkcs11"
)

// Logins stands round each C_Login, so that a wrong PIN is tried once and not
// until the token locks. Its methods are called one after the other for one
// token, and never for two logins to it at once.
type Logins interface {
	// Before is called when a login is about to be tried, with what the token
	// says of its PIN. It records the attempt and may refuse it, with an
	// error that wraps [ErrLoginRefused] if a person must act first. The
	// attempt is not made after any error.
	Before(ctx context.Context, flags TokenFlags) error

	// After is called with the result, nil or an [Error]. Its own error makes
	// the login fail. It is not called for a login that never returned. The
	// context is not cancelled even if that of the operation is.
	After(ctx context.Context, err error) error
}

// memory is the Logins of a token that was given none.
type memory struct {
	mu      sync.Mutex
	refused error
}

func (l *memory) Before(_ context.Context, flags TokenFlags) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.refused != nil:
		return fmt.Errorf("%w: it was refused before: %w", ErrLoginRefused, l.refused)
	case flags.Locked:
		return fmt.Errorf("%w: the token's PIN is locked", ErrLoginRefused)
	case flags.FinalTry:
		return fmt.Errorf("%w: one more wrong PIN would lock the token", ErrLoginRefused)
	}
	return nil
}

func (l *memory) After(_ context.Context, err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if WaitingFor(err) == waitPIN {
		l.refused = err
	}
	return nil
}

// login logs in as the user. The login is the process's, not the session's: it
// holds in all sessions with the token until the last one is closed. The
// caller has a place in the module.
func (t *Token) login(ctx context.Context, m *module, conn *connection, flags TokenFlags) error {
	pin, err := t.cfg.PIN(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		return operator(waitConfig, "PIN of [hsm.%s]: %w", t.cfg.Name, err)
	}
	if err := t.cfg.Logins.Before(ctx, flags); err != nil {
		clear(pin)
		return fmt.Errorf("log in to [hsm.%s]: %w", t.cfg.Name, err)
	}
	try := func() error {
		_, err := call(m, t.cfg.CallTimeout, "C_Login", func(lib Library) (struct{}, error) {
			// The string is the buffer itself, so that no copy outlives it.
			return struct{}{}, lib.Login(conn.login, pkcs11.CKU_USER, unsafe.String(unsafe.SliceData(pin), len(pin)))
		})
		return err
	}
	err = try()
	if errors.Is(err, pkcs11.Error(pkcs11.CKR_USER_ALREADY_LOGGED_IN)) {
		// The token has not looked at the PIN. Log out and let it.
		_, err = call(m, t.cfg.CallTimeout, "C_Logout", func(lib Library) (struct{}, error) {
			return struct{}{}, lib.Logout(conn.login)
		})
		if err == nil {
			err = try()
		}
	}
	if _, ok := errors.AsType[*hungError](err); ok {
		return err // no result, and the buffer is still being read
	}
	clear(pin)
	if err := t.cfg.Logins.After(context.WithoutCancel(ctx), err); err != nil {
		return fmt.Errorf("record the login to [hsm.%s]: %w", t.cfg.Name, err)
	}
	return t.explain(err)
}

// explain says what to do about an error of C_Login.
func (t *Token) explain(err error) error {
	_, code := codeOf(err)
	switch code {
	case pkcs11.CKR_OK:
		return err
	case pkcs11.CKR_PIN_INCORRECT:
		return fmt.Errorf("%w of [hsm.%s], and byokd does not try again by itself, since tokens lock: correct the PIN; "+
			"a changed pin_file is noticed, otherwise run byokctl hsm --login %[2]s: %w", ErrPINIncorrect, t.cfg.Name, err)
	case pkcs11.CKR_PIN_LOCKED:
		return fmt.Errorf("the PIN of [hsm.%s] is locked: let the token's security officer unlock it, then run byokctl hsm --login %[1]s: %w", t.cfg.Name, err)
	case pkcs11.CKR_PIN_EXPIRED:
		return fmt.Errorf("the PIN of [hsm.%s] has expired: set a new one on the token and in pin_file: %w", t.cfg.Name, err)
	case pkcs11.CKR_USER_PIN_NOT_INITIALIZED:
		return fmt.Errorf("the token of [hsm.%s] has no user PIN yet: let its security officer set one: %w", t.cfg.Name, err)
	}
	return fmt.Errorf("log in to [hsm.%s]: %w", t.cfg.Name, err)
}
