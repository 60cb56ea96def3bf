package hsm_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"byokd/hsm"
	"byokd/hsm/hsmtest"
)

// A faultyToken is a connected SoftHSM token with faults in front of it.
type faultyToken struct {
	*hsm.Token
	faults *hsmtest.Faults
	logins *loginLog
	ref    hsm.KeyRef
}

func newFaultyToken(t *testing.T, opts ...hsm.Option) faultyToken {
	t.Helper()
	tok := hsmtest.NewSoftHSM(t)
	f := faultyToken{faults: hsmtest.NewFaults(), logins: &loginLog{}}
	cfg := config(tok)
	cfg.Logins = f.logins
	f.Token = newModules(t, append(opts, hsm.WithLibrary(f.faults.Wrap))...).Token(cfg)
	f.ref = mustGenerate(t, f.Token, "byokd/x/1")
	f.logins.take()
	return f
}

func TestRecovery(t *testing.T) {
	for _, tt := range []struct {
		name          string
		op            string
		code          uint
		times         int
		logins, inits int
	}{
		{"session", "C_FindObjectsInit", pkcs11.CKR_SESSION_HANDLE_INVALID, 1, 0, 0},
		{"closed", "C_WrapKey", pkcs11.CKR_SESSION_CLOSED, 1, 0, 0},
		{"active", "C_FindObjectsInit", pkcs11.CKR_OPERATION_ACTIVE, 1, 0, 0},
		{"handle", "C_WrapKey", pkcs11.CKR_KEY_HANDLE_INVALID, 1, 0, 0},
		{"read-only", "C_CreateObject", pkcs11.CKR_SESSION_READ_ONLY, 1, 0, 0},
		{"session twice", "C_FindObjectsInit", pkcs11.CKR_SESSION_HANDLE_INVALID, 2, 1, 0},
		{"session thrice", "C_FindObjectsInit", pkcs11.CKR_SESSION_HANDLE_INVALID, 3, 2, 1},
		{"login", "C_FindObjects", pkcs11.CKR_USER_NOT_LOGGED_IN, 1, 1, 0},
		{"login twice", "C_FindObjects", pkcs11.CKR_USER_NOT_LOGGED_IN, 2, 2, 1},
		{"removed", "C_WrapKey", pkcs11.CKR_DEVICE_REMOVED, 1, 1, 1},
		{"device", "C_OpenSession", pkcs11.CKR_DEVICE_ERROR, 1, 1, 1},
		{"absent", "C_OpenSession", pkcs11.CKR_TOKEN_NOT_PRESENT, 1, 1, 1},
		{"uninitialised", "C_CreateObject", pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED, 1, 1, 1},
		{"general", "C_GetAttributeValue", pkcs11.CKR_GENERAL_ERROR, 1, 1, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			token := newFaultyToken(t)
			token.Forget() // so that the key is searched for
			inits := token.faults.Calls("C_Initialize")
			token.faults.Fail(tt.op, tt.code, tt.times)
			checkWrap(t, token.Token, token.ref, 2048)
			if got := token.faults.Calls("C_Initialize") - inits; got != tt.inits {
				t.Errorf("initialised %d times more, want %d", got, tt.inits)
			}
			if got := len(token.logins.take()) / 2; got != tt.logins {
				t.Errorf("logged in %d times more, want %d", got, tt.logins)
			}
			want := map[bool]uint64{true: 0, false: uint64(tt.times)}[tt.code == pkcs11.CKR_SESSION_READ_ONLY]
			if got := token.Stats().Errors[hsm.Name(tt.code)]; got != want {
				t.Errorf("counted %d errors, want %d", got, want)
			}
			if got := token.Stats().SessionsInUse; got != 0 {
				t.Errorf("%d sessions left open", got)
			}
		})
	}
}

// An error that stays is reported after all means were tried once, and a
// module is not initialised again and again.
func TestRecoveryEnds(t *testing.T) {
	token := newFaultyToken(t, hsm.WithReinitEvery(time.Hour))
	token.Forget()
	token.faults.Fail("C_FindObjectsInit", pkcs11.CKR_DEVICE_ERROR, 1000)
	err := token.Find(t.Context(), token.ref)
	if !errorIs(err, hsm.ErrTokenUnavailable, hsm.Transient) || !errors.Is(err, pkcs11.Error(pkcs11.CKR_DEVICE_ERROR)) {
		t.Errorf("find: %v", err)
	}
	inits := token.faults.Calls("C_Initialize")
	for range 3 {
		if err := token.Find(t.Context(), token.ref); !errorIs(err, hsm.ErrTokenUnavailable, hsm.Transient) {
			t.Errorf("find: %v", err)
		}
	}
	if got := token.faults.Calls("C_Initialize"); got != inits {
		t.Errorf("initialised %d times more within the hour", got-inits)
	}
	if err := token.Info().Err; !errors.Is(err, hsm.ErrTokenUnavailable) {
		t.Errorf("info: %v", err)
	}
}

// A module that cannot be initialised is tried again, later.
func TestInitializeFails(t *testing.T) {
	tok := hsmtest.NewSoftHSM(t)
	faults := hsmtest.NewFaults()
	token := newModules(t, hsm.WithLibrary(faults.Wrap), hsm.WithReinitEvery(0)).Token(config(tok))
	faults.Fail("C_Initialize", pkcs11.CKR_HOST_MEMORY, 3)
	if err := token.Connect(t.Context()); hsm.ClassOf(err) != hsm.Transient || !strings.Contains(err.Error(), "pkcsslotd") {
		t.Errorf("connect: %v", err)
	}
	var err error
	for range 3 {
		err = token.Connect(t.Context())
	}
	if err != nil {
		t.Error(err)
	}
}

// The other tokens of a module connect again by themselves.
func TestOtherTokenOfModule(t *testing.T) {
	tok := hsmtest.NewSoftHSM(t)
	if _, err := hsmtest.SetupSoftHSM(filepath.Dir(tok.Conf), "second"); err != nil {
		t.Fatal(err)
	}
	faults := hsmtest.NewFaults()
	ms := newModules(t, hsm.WithLibrary(faults.Wrap))
	first := ms.Token(config(tok))
	cfg := config(tok)
	cfg.Name, cfg.TokenLabel = "second", "second"
	second := ms.Token(cfg)
	a, b := mustGenerate(t, first, "byokd/a/1"), mustGenerate(t, second, "byokd/b/1")

	faults.Fail("C_WrapKey", pkcs11.CKR_DEVICE_REMOVED, 1)
	checkWrap(t, first, a, 2048)
	if second.Info().Connected {
		t.Error("the other token says it is connected in a generation that is gone")
	}
	checkWrap(t, second, b, 2048)
	if n := faults.Calls("C_Initialize"); n != 2 {
		t.Errorf("initialised %d times", n)
	}

	// A token that is absent does not cost the other its connection.
	cfg.TokenLabel = "absent"
	absent := ms.Token(cfg)
	for range 3 {
		if err := absent.Connect(t.Context()); !errors.Is(err, hsm.ErrTokenUnavailable) {
			t.Errorf("absent: %v", err)
		}
	}
	if !second.Info().Connected || faults.Calls("C_Initialize") != 2 {
		t.Error("the other token was disconnected")
	}
}

// A key whose making was not answered is found, not made twice.
func TestGenerateAnswerLost(t *testing.T) {
	token := newFaultyToken(t)
	ref := newKey("byokd/x/2")
	token.faults.Lose("C_GenerateKey", pkcs11.CKR_DEVICE_ERROR, 1)
	made := token.faults.Calls("C_GenerateKey")
	// The first call after this is the key's own: the algorithm is proven.
	if err := token.GenerateAES(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	checkList(t, token.Token, ref.Label, ref)
	if got := token.faults.Calls("C_GenerateKey") - made; got < 2 {
		t.Errorf("%d keys made; the self-test was not done again", got)
	}
	checkWrap(t, token.Token, ref, 2048)
}

func TestDestroyAnswerLost(t *testing.T) {
	token := newFaultyToken(t)
	token.faults.Lose("C_DestroyObject", pkcs11.CKR_SESSION_HANDLE_INVALID, 1)
	if err := token.Destroy(t.Context(), token.ref); err != nil {
		t.Fatal(err)
	}
	checkList(t, token.Token, "")
}

// When it stays unknown whether there is a key, the error says so.
func TestGenerateUnknown(t *testing.T) {
	token := newFaultyToken(t)
	ref := newKey("byokd/x/2")
	lost := false
	token.faults.Set(func(op string, _ int) (bool, uint) {
		if op == "C_GenerateKey" {
			lost = true
			return true, pkcs11.CKR_DEVICE_ERROR
		}
		if lost && op == "C_Initialize" {
			return false, pkcs11.CKR_DEVICE_ERROR
		}
		return true, pkcs11.CKR_OK
	})
	if err := token.GenerateAES(t.Context(), ref); hsm.ClassOf(err) != hsm.Unknown {
		t.Errorf("%s: %v", hsm.ClassOf(err), err)
	}
}

// A token that reports success and keeps nothing is found out: neither the handle
// that it gave out nor a search leads to the key in a fresh session.
func TestGeneratedKeyGone(t *testing.T) {
	token := newFaultyToken(t)
	sessions, finds, lost := 0, 0, false
	token.faults.Set(func(op string, _ int) (bool, uint) {
		switch {
		case op == "C_GenerateKey":
			lost = true
		case op == "C_OpenSession" && lost:
			sessions++
		case op == "C_GetAttributeValue" && sessions > 0:
			return false, pkcs11.CKR_OBJECT_HANDLE_INVALID
		case op == "C_FindObjects" && lost:
			finds++
			return false, pkcs11.CKR_OK // nothing found
		}
		return true, pkcs11.CKR_OK
	})
	err := token.GenerateAES(t.Context(), newKey("byokd/x/2"))
	if !errorIs(err, hsm.ErrTokenUnavailable, hsm.Unknown) || sessions != 1 || finds != 1 {
		t.Errorf("%s after %d sessions and %d searches: %v", hsm.ClassOf(err), sessions, finds, err)
	}
}

func TestTokenFull(t *testing.T) {
	for _, code := range []uint{pkcs11.CKR_DEVICE_MEMORY, pkcs11.CKR_HOST_MEMORY} {
		t.Run(hsm.Name(code), func(t *testing.T) {
			token := newFaultyToken(t)
			token.faults.Fail("C_GenerateKey", code, 1)
			err := token.GenerateAES(t.Context(), newKey("byokd/x/2"))
			if hsm.ClassOf(err) != hsm.Transient || !errors.Is(err, pkcs11.Error(code)) || !strings.Contains(err.Error(), "full") {
				t.Errorf("%s: %v", hsm.ClassOf(err), err)
			}
		})
	}
}

func TestClasses(t *testing.T) {
	for _, tt := range []struct {
		op    string
		code  uint
		class hsm.Class
		wait  string
	}{
		{"C_OpenSession", pkcs11.CKR_SESSION_COUNT, hsm.Transient, ""},
		{"C_WrapKey", pkcs11.CKR_KEY_UNEXTRACTABLE, hsm.Permanent, ""},
		{"C_WrapKey", pkcs11.CKR_KEY_NOT_WRAPPABLE, hsm.Operator, "config"},
		{"C_GenerateKey", pkcs11.CKR_TEMPLATE_INCONSISTENT, hsm.Operator, "config"},
		{"C_GenerateKey", pkcs11.CKR_TOKEN_WRITE_PROTECTED, hsm.Operator, "config"},
		{"C_GenerateKey", 0xCE534351, hsm.Transient, ""},
	} {
		t.Run(tt.op+" "+hsm.Name(tt.code), func(t *testing.T) {
			token := newFaultyToken(t)
			token.faults.Fail(tt.op, tt.code, 100)
			var err error
			if tt.op == "C_GenerateKey" {
				err = token.GenerateAES(t.Context(), newKey("byokd/x/2"))
			} else {
				_, err = token.Wrap(t.Context(), token.ref, hsm.OAEPSHA1, spki(t, &rsaKeys[2048]().PublicKey))
			}
			if hsm.ClassOf(err) != tt.class || hsm.WaitingFor(err) != tt.wait || !errors.Is(err, pkcs11.Error(tt.code)) {
				t.Errorf("%s, waiting for %q: %v", hsm.ClassOf(err), hsm.WaitingFor(err), err)
			}
			if !strings.Contains(err.Error(), tt.op+": "+hsm.Name(tt.code)) {
				t.Errorf("message: %v", err)
			}
		})
	}
}

// A token whose answer to C_WrapKey is success, with another hash than it was
// told, must not get to wrap a real key with it.
func TestLyingToken(t *testing.T) {
	tok := hsmtest.NewSoftHSM(t)
	faults := hsmtest.NewFaults()
	faults.Lie()
	ms := newModules(t, hsm.WithLibrary(faults.Wrap))
	token := ms.Token(config(tok))
	algorithm, err := token.Algorithm(t.Context())
	if err != nil || algorithm != hsm.OAEPSHA1 {
		t.Errorf("%q, %v", algorithm, err)
	}
	if p := token.Info().Proofs; len(p) != 2 || p[0].OK || !strings.Contains(p[0].Outcome, "CKR_OK, but") {
		t.Errorf("proofs: %+v", p)
	}
	cfg := config(tok)
	cfg.Wrapping = hsm.OAEPSHA256
	if err := ms.Token(cfg).Connect(t.Context()); !errors.Is(err, hsm.ErrNoAlgorithm) {
		t.Errorf("forced: %v", err)
	}
}

// A module whose way of saying that it cannot do SHA-256 is a general error is
// asked for SHA-1.
func TestSelfTestGeneralError(t *testing.T) {
	tok := hsmtest.NewSoftHSM(t)
	faults := hsmtest.NewFaults()
	token := newModules(t, hsm.WithLibrary(faults.Wrap)).Token(config(tok))
	faults.Fail("C_WrapKey", pkcs11.CKR_GENERAL_ERROR, 2)
	if algorithm, err := token.Algorithm(t.Context()); err != nil || algorithm != hsm.OAEPSHA1 {
		t.Errorf("%q, %v", algorithm, err)
	}
	if n := faults.Calls("C_Initialize"); n != 1 {
		t.Errorf("initialised %d times", n)
	}
}

// If nothing else works either, it is in trouble, and initialised again.
func TestSelfTestInTrouble(t *testing.T) {
	tok := hsmtest.NewSoftHSM(t)
	faults := hsmtest.NewFaults()
	token := newModules(t, hsm.WithLibrary(faults.Wrap)).Token(config(tok))
	faults.Fail("C_WrapKey", pkcs11.CKR_GENERAL_ERROR, 4) // both algorithms, twice each
	if err := token.Connect(t.Context()); err != nil {
		t.Error(err)
	}
	if n := faults.Calls("C_Initialize"); n != 2 {
		t.Errorf("initialised %d times", n)
	}
}

// A token that can do nothing names everything that was tried.
func TestNoAlgorithm(t *testing.T) {
	tok := hsmtest.NewSoftHSM(t)
	faults := hsmtest.NewFaults()
	token := newModules(t, hsm.WithLibrary(faults.Wrap)).Token(config(tok))
	faults.Fail("C_WrapKey", pkcs11.CKR_FUNCTION_NOT_SUPPORTED, 2)
	err := token.Connect(t.Context())
	if !errorIs(err, hsm.ErrNoAlgorithm, hsm.Operator) {
		t.Errorf("connect: %v", err)
	}
	for _, part := range []string{hsm.OAEPSHA256 + ": C_WrapKey: CKR_FUNCTION_NOT_SUPPORTED", hsm.OAEPSHA1 + ": C_WrapKey: CKR_FUNCTION_NOT_SUPPORTED"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is missing in: %v", part, err)
		}
	}
	if err := token.Connect(t.Context()); err != nil { // asked again, it is tried again
		t.Error(err)
	}
}

func TestHangingCall(t *testing.T) {
	tok := hsmtest.NewSoftHSM(t)
	if _, err := hsmtest.SetupSoftHSM(filepath.Dir(tok.Conf), "second"); err != nil {
		t.Fatal(err)
	}
	faults := hsmtest.NewFaults()
	ms := hsm.NewModules(nil, hsm.WithLibrary(faults.Wrap))
	cfg := config(tok)
	cfg.CallTimeout = 5 * time.Second
	token := ms.Token(cfg)
	cfg.Name, cfg.TokenLabel = "second", "second"
	second := ms.Token(cfg)
	ref := mustGenerate(t, token, "byokd/x/1")
	if err := second.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}

	_, release := faults.Hang("C_GenerateKey")
	defer release()
	waiting := make(chan error, 1)
	go func() {
		<-token.Hung()
		waiting <- second.Find(t.Context(), ref)
	}()
	err := token.GenerateAES(t.Context(), newKey("byokd/x/2"))
	if !errorIs(err, hsm.ErrTokenUnavailable, hsm.Unknown) || !strings.Contains(err.Error(), "C_GenerateKey") {
		t.Errorf("%s: %v", hsm.ClassOf(err), err)
	}
	<-second.Hung()
	for _, err := range []error{<-waiting, token.Find(t.Context(), ref), token.Check(t.Context())} {
		if !errorIs(err, hsm.ErrTokenUnavailable, hsm.Transient) {
			t.Errorf("after the hang: %v", err)
		}
	}
	if s := token.Stats(); s.SessionsAbandoned != 1 || s.SessionsInUse != 0 {
		t.Errorf("stats: %+v", s)
	}
	if info := token.Info(); !info.Hung || info.Connected {
		t.Errorf("info: %+v", info)
	}
	third := ms.Token(cfg)
	if err := third.Connect(t.Context()); !errors.Is(err, hsm.ErrTokenUnavailable) {
		t.Errorf("a token that came later: %v", err)
	}
	<-third.Hung()

	if err := ms.Close(t.Context()); !errors.Is(err, hsm.ErrTokenUnavailable) {
		t.Errorf("close: %v", err)
	}
	if n := faults.Calls("C_Finalize"); n != 0 {
		t.Error("finalized under a running call")
	}
	release()
	faults.Finalize()
}

// A context ends the wait for a place, and Close does not finalize a module
// under a running call.
func TestContextLimitsTheWait(t *testing.T) {
	tok := hsmtest.NewSoftHSM(t)
	faults := hsmtest.NewFaults()
	ms := hsm.NewModules(nil, hsm.WithLibrary(faults.Wrap))
	token := ms.Token(config(tok))
	ref := mustGenerate(t, token, "byokd/x/1")

	hanging, release := faults.Hang("C_OpenSession")
	found := make(chan error, 1)
	go func() { found <- token.Find(context.Background(), ref) }()
	<-hanging
	ctx, cancel := context.WithCancel(t.Context())
	blocked := make(chan error, 2)
	go func() { blocked <- token.Find(ctx, ref) }()
	go func() { blocked <- ms.Close(ctx) }()
	cancel()
	for range 2 {
		if err := <-blocked; !errors.Is(err, context.Canceled) && !errors.Is(err, hsm.ErrClosed) {
			t.Errorf("wait for a place: %v", err)
		}
	}
	if n := faults.Calls("C_Finalize"); n != 0 {
		t.Error("finalized under a running call")
	}
	release()
	if err := <-found; err == nil {
		t.Error("the call that was cancelled in the token was no error")
	}
	if err := token.Find(t.Context(), ref); !errors.Is(err, hsm.ErrClosed) {
		t.Errorf("after close: %v", err)
	}
	faults.Finalize()
}

// The cable to the HSM is pulled and put back.
func TestP11KitDisconnect(t *testing.T) {
	server := hsmtest.P11Kit(t, hsmtest.NewSoftHSM(t))
	token := newModules(t, hsm.WithReinitEvery(0)).Token(config(&server.Token))
	ref := mustGenerate(t, token, "byokd/x/1")
	checkWrap(t, token, ref, 4096)

	for range 2 {
		server.Kill()
		for range 2 {
			for _, err := range []error{token.Find(t.Context(), ref), token.Check(t.Context())} {
				if !errorIs(err, hsm.ErrTokenUnavailable, hsm.Transient) {
					t.Fatalf("pulled: %s: %v", hsm.ClassOf(err), err)
				}
			}
			if token.Info().Connected {
				t.Error("connected to nothing")
			}
		}
		server.Start()
		checkWrap(t, token, ref, 2048)
	}

	// Away and back between two operations.
	server.Kill()
	server.Start()
	checkWrap(t, token, ref, 2048)
}

// SoftHSM goes on answering much when its directory is gone; Check is not
// taken in, and what comes back is found again.
func TestStorageGone(t *testing.T) {
	tok := hsmtest.NewSoftHSM(t)
	token := newModules(t, hsm.WithReinitEvery(0)).Token(config(tok))
	ref := mustGenerate(t, token, "byokd/x/1")
	dir := filepath.Join(filepath.Dir(tok.Conf), "tokens")
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	if err := token.Check(t.Context()); hsm.ClassOf(err) != hsm.Transient {
		t.Errorf("check: %v", err)
	}
	if err := token.Find(t.Context(), ref); hsm.ClassOf(err) != hsm.Transient || errors.Is(err, hsm.ErrKeyNotFound) {
		t.Errorf("find: %v", err)
	}
	os.RemoveAll(dir)
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	if err := token.Check(t.Context()); err != nil {
		t.Errorf("check after it came back: %v", err)
	}
	checkWrap(t, token, ref, 2048)
}
