package hsm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/pkcs11"

	"byokd/hsm"
	"byokd/hsm/hsmtest"
)

// A loginLog is a Logins that writes down what it is told.
type loginLog struct {
	mu     sync.Mutex
	lines  []string
	before error // what Before answers
	after  error
}

func (l *loginLog) Before(_ context.Context, flags hsm.TokenFlags) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, fmt.Sprintf("before %+v", flags))
	return l.before
}

func (l *loginLog) After(ctx context.Context, err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	line := "after"
	if e, ok := errors.AsType[*hsm.Error](err); ok {
		line += " " + e.Name()
	}
	if ctx.Err() != nil {
		line += " with a context that is done"
	}
	l.lines = append(l.lines, line)
	return l.after
}

// take returns the lines since the last time.
func (l *loginLog) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := l.lines
	l.lines = nil
	return lines
}

const noFlags = "before {CountLow:false FinalTry:false Locked:false}"

func checkLogins(t *testing.T, l *loginLog, want ...string) {
	t.Helper()
	if got := l.take(); !slices.Equal(got, want) {
		t.Errorf("logins: %q, want %q", got, want)
	}
}

func TestWrongPIN(t *testing.T) {
	tok := hsmtest.NewSoftHSM(t)
	faults := hsmtest.NewFaults()
	ms := newModules(t, hsm.WithLibrary(faults.Wrap))
	var logins loginLog
	pin, buffers := "9999", [][]byte{}
	cfg := config(tok)
	cfg.Logins = &logins
	cfg.PIN = func(context.Context) ([]byte, error) {
		b := []byte(pin)
		buffers = append(buffers, b)
		return b, nil
	}
	token := ms.Token(cfg)
	err := token.Connect(t.Context())
	if !errorIs(err, hsm.ErrPINIncorrect, hsm.Operator) || hsm.WaitingFor(err) != "pin" ||
		!errors.Is(err, pkcs11.Error(pkcs11.CKR_PIN_INCORRECT)) {
		t.Fatalf("wrong PIN: %v", err)
	}
	if strings.Contains(err.Error(), pin) || !strings.Contains(err.Error(), "byokctl hsm --login main") {
		t.Errorf("message: %v", err)
	}
	checkLogins(t, &logins, noFlags, "after CKR_PIN_INCORRECT")
	if n := faults.Calls("C_Login"); n != 1 {
		t.Errorf("C_Login was called %d times", n)
	}

	logins.before = fmt.Errorf("%w until a person acts", hsm.ErrLoginRefused)
	err = token.Connect(t.Context())
	if !errorIs(err, hsm.ErrLoginRefused, hsm.Operator) || hsm.WaitingFor(err) != "pin" {
		t.Errorf("refused: %v", err)
	}
	checkLogins(t, &logins, "before {CountLow:true FinalTry:false Locked:false}")

	logins.before = errors.New("database is full")
	if err := token.Connect(t.Context()); !errorIs(err, logins.before, hsm.Transient) {
		t.Errorf("not recorded: %v", err)
	}
	if n := faults.Calls("C_Login"); n != 1 {
		t.Errorf("C_Login was called %d times", n)
	}

	logins.before, pin = nil, hsmtest.PIN
	if err := token.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	logins.take()
	for _, b := range buffers {
		if !bytes.Equal(b, make([]byte, len(b))) {
			t.Errorf("a PIN buffer was left as %q", b)
		}
	}

	// A wrong PIN is noticed although the process is logged in, and the login
	// of the other does not suffer.
	cfg.PIN = func(context.Context) ([]byte, error) { return []byte("9999"), nil }
	if err := ms.Token(cfg).Connect(t.Context()); !errors.Is(err, hsm.ErrPINIncorrect) {
		t.Errorf("wrong PIN while logged in: %v", err)
	}
	logins.take()
	mustGenerate(t, token, "byokd/x/1")
	checkLogins(t, &logins, "before {CountLow:true FinalTry:false Locked:false}", "after")
}

// Without a Logins, a token remembers.
func TestWrongPINWithoutLogins(t *testing.T) {
	tok := hsmtest.NewSoftHSM(t)
	faults := hsmtest.NewFaults()
	cfg := config(tok)
	cfg.PIN = func(context.Context) ([]byte, error) { return nil, nil } // SoftHSM: CKR_ARGUMENTS_BAD
	token := newModules(t, hsm.WithLibrary(faults.Wrap)).Token(cfg)
	for range 3 {
		if err := token.Connect(t.Context()); hsm.WaitingFor(err) != "pin" {
			t.Errorf("empty PIN: %v", err)
		}
	}
	if n := faults.Calls("C_Login"); n != 1 {
		t.Errorf("C_Login was called %d times", n)
	}
}

// A login that cannot be recorded does not count.
func TestLoginNotRecorded(t *testing.T) {
	tok := hsmtest.NewSoftHSM(t)
	logins := &loginLog{after: errors.New("database is full")}
	cfg := config(tok)
	cfg.Logins = logins
	token := newModules(t).Token(cfg)
	if err := token.Connect(t.Context()); !errorIs(err, logins.after, hsm.Transient) {
		t.Errorf("connect: %v", err)
	}
	if token.Info().Connected {
		t.Error("connected")
	}
	checkLogins(t, logins, noFlags, "after")
}

// What C_Login says that may be its way of refusing a PIN is not tried again
// at once.
func TestDoubtfulLogin(t *testing.T) {
	tok := hsmtest.NewSoftHSM(t)
	faults := hsmtest.NewFaults()
	var logins loginLog
	cfg := config(tok)
	cfg.Logins = &logins
	token := newModules(t, hsm.WithLibrary(faults.Wrap)).Token(cfg)
	faults.Fail("C_Login", pkcs11.CKR_FUNCTION_FAILED, 1)
	if err := token.Connect(t.Context()); hsm.ClassOf(err) != hsm.Transient {
		t.Errorf("connect: %v", err)
	}
	checkLogins(t, &logins, noFlags, "after CKR_FUNCTION_FAILED")
}

func TestPINClasses(t *testing.T) {
	tok := hsmtest.NewSoftHSM(t)
	for _, code := range []uint{pkcs11.CKR_PIN_LOCKED, pkcs11.CKR_PIN_EXPIRED, pkcs11.CKR_PIN_LEN_RANGE, pkcs11.CKR_USER_PIN_NOT_INITIALIZED} {
		t.Run(hsm.Name(code), func(t *testing.T) {
			faults := hsmtest.NewFaults()
			token := newModules(t, hsm.WithLibrary(faults.Wrap)).Token(config(tok))
			faults.Fail("C_Login", code, 1)
			err := token.Connect(t.Context())
			if hsm.ClassOf(err) != hsm.Operator || hsm.WaitingFor(err) != "pin" || !errors.Is(err, pkcs11.Error(code)) {
				t.Errorf("%s, waiting for %q: %v", hsm.ClassOf(err), hsm.WaitingFor(err), err)
			}
		})
	}
}

// An operation whose context ends while it logs in has its login recorded.
func TestLoginRecordedAfterCancel(t *testing.T) {
	tok := hsmtest.NewSoftHSM(t)
	faults := hsmtest.NewFaults()
	var logins loginLog
	cfg := config(tok)
	cfg.Logins = &logins
	token := newModules(t, hsm.WithLibrary(faults.Wrap)).Token(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	faults.Set(func(op string, _ int) (bool, uint) {
		if op == "C_Login" {
			cancel()
		}
		return true, pkcs11.CKR_OK
	})
	if err := token.Connect(ctx); hsm.ClassOf(err) != hsm.Interrupted {
		t.Errorf("connect: %v", err)
	}
	checkLogins(t, &logins, noFlags, "after")
}
