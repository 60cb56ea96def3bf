package hsm_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/pkcs11"

	"byokd/hsm"
	"byokd/hsm/hsmtest"
)

// errorIs reports whether err is target and of the given class.
func errorIs(err, target error, class hsm.Class) bool {
	return errors.Is(err, target) && hsm.ClassOf(err) == class
}

func TestSoftHSM(t *testing.T) {
	token := newModules(t).Token(config(hsmtest.NewSoftHSM(t)))
	if token.Info().Connected {
		t.Error("connected before it was used")
	}
	checkLife(t, token)

	info := token.Info()
	if info.Algorithm != hsm.OAEPSHA1 || len(info.Proofs) != 2 || info.Proofs[0].OK || !info.Proofs[1].OK {
		t.Errorf("SoftHSM 2.6 can do OAEP with SHA-1 only: %q, %+v", info.Algorithm, info.Proofs)
	}
	if !strings.Contains(info.Proofs[0].Outcome, "CKR_ARGUMENTS_BAD") {
		t.Errorf("outcome of the first: %q", info.Proofs[0].Outcome)
	}
	if !info.Connected || info.Err != nil || info.Label != "hsm" || info.Serial == "" || info.Model == "" || info.Library == "" || info.LibraryVersion == "" {
		t.Errorf("info: %+v", info)
	}
}

func TestNSS(t *testing.T) {
	token := newModules(t).Token(config(hsmtest.NewNSS(t)))
	checkLife(t, token)
	if got := token.Info().Algorithm; got != hsm.OAEPSHA256 {
		t.Errorf("algorithm %q", got)
	}
}

func TestOpenCryptoki(t *testing.T) {
	hsmtest.OpenCryptoki(t, func(tok *hsmtest.Token) {
		ms := newModules(t)
		token := ms.Token(config(tok))
		checkLife(t, token)
		if got := token.Info().Algorithm; got != hsm.OAEPSHA256 {
			t.Errorf("algorithm %q", got)
		}
		if err := token.Close(t.Context()); err != nil {
			t.Fatal(err)
		}

		// This token counts wrong PINs, says so, and locks after the third.
		cfg := config(tok)
		cfg.PIN = func(context.Context) ([]byte, error) { return []byte("9999"), nil }
		for range 2 {
			err := ms.Token(cfg).Connect(t.Context())
			if !errorIs(err, hsm.ErrPINIncorrect, hsm.Operator) {
				t.Fatalf("wrong PIN: %v", err)
			}
		}
		err := ms.Token(cfg).Connect(t.Context())
		if !errorIs(err, hsm.ErrLoginRefused, hsm.Operator) || errors.Is(err, hsm.ErrPINIncorrect) {
			t.Errorf("the last try was not spared: %v", err)
		}

		// A person who insists locks it; from then on not even the right PIN is tried
		// unasked.
		var logins loginLog
		cfg.Logins = &logins
		if err := ms.Token(cfg).Connect(t.Context()); hsm.ClassOf(err) != hsm.Operator || hsm.WaitingFor(err) != "pin" {
			t.Errorf("the last wrong PIN: %v", err)
		}
		cfg = config(tok)
		if err := ms.Token(cfg).Connect(t.Context()); !errorIs(err, hsm.ErrLoginRefused, hsm.Operator) {
			t.Errorf("the right PIN, when the token is locked: %v", err)
		}
		logins.take()
		cfg.Logins = &logins
		err = ms.Token(cfg).Connect(t.Context())
		if hsm.ClassOf(err) != hsm.Operator || hsm.WaitingFor(err) != "pin" || !errors.Is(err, pkcs11.Error(pkcs11.CKR_PIN_LOCKED)) {
			t.Errorf("the right PIN, asked for: %v", err)
		}
		checkLogins(t, &logins, "before {CountLow:false FinalTry:false Locked:true}", "after CKR_PIN_LOCKED")
	})
}

// A token that is really full says so, loses nothing, and takes keys again when
// there is room. openCryptoki's has room for so many objects, by its MAX_TOK_OBJS.
func TestOpenCryptokiFull(t *testing.T) {
	const room = 2048
	hsmtest.OpenCryptoki(t, func(tok *hsmtest.Token) {
		token := newModules(t).Token(config(tok))
		ref := mustGenerate(t, token, "byokd/x/1")
		lib := pkcs11.New(tok.Module) // byokd's token keeps the module initialised and logged in
		slots, err := lib.GetSlotList(true)
		if err != nil || len(slots) != 1 {
			t.Fatal(slots, err)
		}
		session, err := lib.OpenSession(slots[0], pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		if err != nil {
			t.Fatal(err)
		}
		var fillers []pkcs11.ObjectHandle
		for err == nil && len(fillers) <= room {
			var key pkcs11.ObjectHandle
			key, err = lib.GenerateKey(session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, []*pkcs11.Attribute{
				pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
				pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32), pkcs11.NewAttribute(pkcs11.CKA_LABEL, "filler")})
			if err == nil {
				fillers = append(fillers, key)
			}
		}
		t.Logf("the token is full with %d objects: %v", len(fillers)+1, err)
		if err == nil {
			t.Fatal("the token does not get full")
		}

		second := newKey("byokd/x/2")
		err = token.GenerateAES(t.Context(), second)
		if hsm.ClassOf(err) != hsm.Transient || !strings.Contains(err.Error(), "full") {
			t.Errorf("%s: %v", hsm.ClassOf(err), err)
		}
		checkWrap(t, token, ref, 2048)
		checkList(t, token, "byokd/x/", ref)

		if err := lib.DestroyObject(session, fillers[0]); err != nil {
			t.Fatal(err)
		}
		if err := token.GenerateAES(t.Context(), second); err != nil {
			t.Fatal(err)
		}
		checkWrap(t, token, second, 2048)
	})
}

// SoftHSM keeps each object in a file, and the disk with them is full.
func TestSoftHSMFull(t *testing.T) {
	tok := hsmtest.NewSoftHSM(t)
	dir := hsmtest.SmallDisk(t, tok, 64<<10)
	token := newModules(t, hsm.WithReinitEvery(0)).Token(config(tok))
	ref := mustGenerate(t, token, "byokd/x/1")
	filler, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = filler.Write(make([]byte, 512))
	}
	filler.Close()
	second := newKey("byokd/x/2")
	err = token.GenerateAES(t.Context(), second)
	t.Logf("%s: %v", hsm.ClassOf(err), err)
	if c := hsm.ClassOf(err); c != hsm.Transient && c != hsm.Unknown {
		t.Errorf("%s: %v", c, err)
	}
	if err := os.Remove(filler.Name()); err != nil {
		t.Fatal(err)
	}
	if err := token.Find(t.Context(), second); errors.Is(err, hsm.ErrKeyNotFound) {
		err = token.GenerateAES(t.Context(), second)
		if err != nil {
			t.Fatal(err)
		}
	} else if err != nil {
		t.Fatal(err)
	}
	checkWrap(t, token, ref, 2048)
	checkWrap(t, token, second, 2048)
	checkList(t, token, "byokd/x/", ref, second)
}

func TestForcedAlgorithmIsProvenToo(t *testing.T) {
	tok := hsmtest.NewSoftHSM(t)
	ms := newModules(t)
	cfg := config(tok)
	cfg.Wrapping = hsm.OAEPSHA256
	token := ms.Token(cfg)
	err := token.Connect(t.Context())
	if !errorIs(err, hsm.ErrNoAlgorithm, hsm.Operator) || hsm.WaitingFor(err) != "config" {
		t.Fatalf("SHA-256 on SoftHSM: %v", err)
	}
	for _, part := range []string{"RSAES_OAEP_SHA_256", "CKR_ARGUMENTS_BAD", `[hsm.main] wrapping = "auto"`} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is missing in: %v", part, err)
		}
	}
	ref := newKey("byokd/x/1")
	if err := token.GenerateAES(t.Context(), ref); !errors.Is(err, hsm.ErrNoAlgorithm) {
		t.Errorf("generate: %v", err)
	}
	checkList(t, token, "") // it can look all the same, and nothing was made

	cfg.Wrapping = hsm.OAEPSHA1
	token = ms.Token(cfg)
	if algorithm, err := token.Algorithm(t.Context()); err != nil || algorithm != hsm.OAEPSHA1 {
		t.Errorf("forced SHA-1: %q, %v", algorithm, err)
	}
	ref = mustGenerate(t, token, "byokd/x/1")
	if _, err := token.Wrap(t.Context(), ref, hsm.OAEPSHA256, spki(t, &rsaKeys[2048]().PublicKey)); !errorIs(err, hsm.ErrNoAlgorithm, hsm.Transient) {
		t.Errorf("wrap with what is not proven: %v", err)
	}
	if _, err := token.Wrap(t.Context(), ref, "RSA_AES_KEY_WRAP_SHA_256", spki(t, &rsaKeys[2048]().PublicKey)); hsm.ClassOf(err) != hsm.Permanent {
		t.Errorf("wrap with what KMS does not take: %v", err)
	}
}

func TestTwoTokensOneModule(t *testing.T) {
	tok := hsmtest.NewSoftHSM(t)
	if _, err := hsmtest.SetupSoftHSM(filepath.Dir(tok.Conf), "second"); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "module.so")
	if err := os.Symlink(tok.Module, link); err != nil {
		t.Fatal(err)
	}
	faults := hsmtest.NewFaults()
	ms := newModules(t, hsm.WithLibrary(faults.Wrap))
	first := ms.Token(config(tok))
	cfg := config(tok)
	cfg.Name, cfg.TokenLabel, cfg.Module, cfg.MaxParallel = "second", "second", link, 4
	second := ms.Token(cfg)

	a, b := mustGenerate(t, first, "byokd/a/1"), mustGenerate(t, second, "byokd/b/1")
	checkList(t, first, "byokd/", a)
	checkList(t, second, "byokd/", b)
	if n := faults.Calls("C_Initialize"); n != 1 {
		t.Errorf("one library under two names was initialised %d times", n)
	}
	if first.Info().Serial == second.Info().Serial {
		t.Errorf("both have serial %s", first.Info().Serial)
	}

	cfg = config(tok)
	cfg.TokenSerial = second.Info().Serial
	if err := ms.Token(cfg).Connect(t.Context()); !errorIs(err, hsm.ErrTokenUnavailable, hsm.Transient) {
		t.Errorf("label of one and serial of the other: %v", err)
	}
	cfg.TokenLabel = ""
	if err := ms.Token(cfg).Find(t.Context(), b); err != nil {
		t.Errorf("by serial alone: %v", err)
	}
	cfg = config(tok)
	cfg.InitReserved = "other"
	if err := ms.Token(cfg).Connect(t.Context()); hsm.WaitingFor(err) != "config" {
		t.Errorf("another init_reserved for the same module: %v", err)
	}

	// Closing one leaves the other.
	if err := first.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := first.Find(t.Context(), a); !errorIs(err, hsm.ErrClosed, hsm.Interrupted) {
		t.Errorf("use of a closed token: %v", err)
	}
	checkList(t, second, "byokd/", b)
}

func TestTwoTokensOneLabel(t *testing.T) {
	tok := hsmtest.NewSoftHSM(t)
	if _, err := hsmtest.SetupSoftHSM(filepath.Dir(tok.Conf), tok.Label); err != nil {
		t.Fatal(err)
	}
	err := newModules(t).Token(config(tok)).Connect(t.Context())
	if hsm.WaitingFor(err) != "config" || !strings.Contains(err.Error(), "token_serial") {
		t.Errorf("two tokens of one label: %v", err)
	}
}

func TestParallel(t *testing.T) {
	tok := hsmtest.NewSoftHSM(t)
	token := newModules(t).Token(config(tok))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			ref := newKey("byokd/p/1")
			if err := token.GenerateAES(t.Context(), ref); err != nil {
				t.Error(err)
				return
			}
			if _, err := token.Wrap(t.Context(), ref, hsm.OAEPSHA1, spki(t, &rsaKeys[2048]().PublicKey)); err != nil {
				t.Error(err)
			}
			if err := token.Destroy(t.Context(), ref); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	checkList(t, token, "")
}

func TestConfigMistakes(t *testing.T) {
	tok := hsmtest.NewSoftHSM(t)
	text := filepath.Join(t.TempDir(), "module.so")
	if err := os.WriteFile(text, []byte("no library"), 0o600); err != nil {
		t.Fatal(err)
	}
	libc, err := filepath.Glob("/usr/lib*/*/libdl.so.2")
	if err != nil || len(libc) == 0 {
		libc, _ = filepath.Glob("/lib*/libdl.so.2")
	}
	if len(libc) == 0 {
		t.Fatal("no library found that is no PKCS#11 module")
	}
	ms := newModules(t)
	for _, tt := range []struct {
		name   string
		change func(*hsm.Config)
		want   []string
	}{
		{"missing module", func(c *hsm.Config) { c.Module = "/nowhere/x.so" }, []string{"/nowhere/x.so", "no such file", "correct [hsm.main] module"}},
		{"not a library", func(c *hsm.Config) { c.Module = text }, []string{text, "correct [hsm.main] module"}},
		{"not a PKCS#11 module", func(c *hsm.Config) { c.Module = libc[0] }, []string{"no C_GetFunctionList", "correct [hsm.main] module"}},
		{"relative module", func(c *hsm.Config) { c.Module = "x.so" }, []string{"[hsm.main] module", "absolute"}},
		{"no token", func(c *hsm.Config) { c.TokenLabel = "" }, []string{"token_label", "token_serial"}},
		{"wrapping of other keys", func(c *hsm.Config) { c.Wrapping = "RSA_AES_KEY_WRAP_SHA_256" }, []string{"wrapping", "RSAES_OAEP_SHA_256"}},
		{"no PIN", func(c *hsm.Config) { c.PIN = nil }, []string{"pin_file"}},
		{"PIN not readable", func(c *hsm.Config) {
			c.PIN = func(context.Context) ([]byte, error) { return nil, os.ErrPermission }
		}, []string{"[hsm.main]", "permission denied"}},
		{"negative", func(c *hsm.Config) { c.MaxParallel, c.CallTimeout = -1, -1 }, []string{"max_parallel", "call_timeout"}},
		{"sensitive", func(c *hsm.Config) { c.KeyTemplate = map[string]any{"CKA_SENSITIVE": false} }, []string{"key_template", "CKA_SENSITIVE"}},
		{"unextractable", func(c *hsm.Config) { c.KeyTemplate = map[string]any{"CKA_EXTRACTABLE": false} }, []string{"KMS must get the key"}},
		{"unknown attribute", func(c *hsm.Config) { c.KeyTemplate = map[string]any{"CKA_EXTRACTABEL": true} }, []string{"CKA_EXTRACTABEL"}},
		{"attribute type", func(c *hsm.Config) { c.KeyTemplate = map[string]any{"CKA_WRAP": int64(1)} }, []string{"CKA_WRAP", "true, false"}},
		{"class", func(c *hsm.Config) { c.KeyTemplate = map[string]any{"CKA_CLASS": int64(1)} }, []string{"CKA_CLASS", "omit"}},
		{"no vendor's attribute", func(c *hsm.Config) { c.KeyTemplate = map[string]any{"0x103": true} }, []string{"0x103", "0x80000000"}},
		{"vendor's attribute of a strange type", func(c *hsm.Config) { c.KeyTemplate = map[string]any{"0x80000001": 1.5} }, []string{"whole number"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := config(tok)
			tt.change(&cfg)
			err := ms.Token(cfg).Connect(t.Context())
			if hsm.ClassOf(err) != hsm.Operator || hsm.WaitingFor(err) != "config" {
				t.Fatalf("class %s, waiting for %q: %v", hsm.ClassOf(err), hsm.WaitingFor(err), err)
			}
			for _, part := range tt.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q is missing in: %v", part, err)
				}
			}
		})
	}
}

// A module that is installed later is found without a restart.
func TestModuleAppears(t *testing.T) {
	tok := hsmtest.NewSoftHSM(t)
	cfg := config(tok)
	cfg.Module = filepath.Join(t.TempDir(), "module.so")
	token := newModules(t).Token(cfg)
	if err := token.Connect(t.Context()); hsm.ClassOf(err) != hsm.Operator {
		t.Fatalf("missing: %v", err)
	}
	if err := os.Symlink(tok.Module, cfg.Module); err != nil {
		t.Fatal(err)
	}
	if err := token.Connect(t.Context()); err != nil {
		t.Error(err)
	}
}

// A token that is made while the module is in use is found when it is asked
// for again.
func TestTokenAppears(t *testing.T) {
	tok := hsmtest.NewSoftHSM(t)
	cfg := config(tok)
	cfg.TokenLabel = "later"
	ms := newModules(t, hsm.WithReinitEvery(0))
	neighbour := ms.Token(config(tok))
	ref := mustGenerate(t, neighbour, "byokd/x/1")
	token := ms.Token(cfg)
	err := token.Connect(t.Context())
	if !errorIs(err, hsm.ErrTokenUnavailable, hsm.Transient) {
		t.Fatalf("absent: %v", err)
	}
	for _, part := range []string{`no token "later"`, `only "hsm"`, "[hsm.main]"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is missing in: %v", part, err)
		}
	}
	if got := token.Info().Err; !errors.Is(got, hsm.ErrTokenUnavailable) {
		t.Errorf("info says %v", got)
	}
	if _, err := hsmtest.SetupSoftHSM(filepath.Dir(tok.Conf), "later"); err != nil {
		t.Fatal(err)
	}
	if err := token.Connect(t.Context()); err != nil {
		t.Error(err)
	}
	if info := token.Info(); info.Err != nil || !info.Connected {
		t.Errorf("info: %+v", info)
	}
	if err := neighbour.Find(t.Context(), ref); err != nil {
		t.Errorf("its neighbour: %v", err)
	}
}

func TestKeyTemplate(t *testing.T) {
	tok := hsmtest.NewSoftHSM(t)
	ms := newModules(t)
	cfg := config(tok)
	cfg.KeyTemplate = map[string]any{"CKA_CLASS": "omit", "CKA_KEY_TYPE": "omit", "CKA_DERIVE": "omit", "CKA_MODIFIABLE": false, "CKA_ENCRYPT": false}
	token := ms.Token(cfg)
	ref := mustGenerate(t, token, "byokd/x/1")
	_, err := token.Encrypt(t.Context(), ref, make([]byte, 16))
	if !errors.Is(err, pkcs11.Error(pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED)) {
		t.Errorf("encrypt with a key that was made without: %v", err)
	}

	// Only a trusted wrapping key may wrap such a key, and KMS's is not one.
	cfg.KeyTemplate = map[string]any{"CKA_WRAP_WITH_TRUSTED": true}
	err = ms.Token(cfg).Connect(t.Context())
	if !errorIs(err, hsm.ErrNoAlgorithm, hsm.Operator) || strings.Count(err.Error(), "CKR_KEY_NOT_WRAPPABLE") != 1 {
		t.Errorf("WRAP_WITH_TRUSTED: %v", err)
	}

	// A vendor's attribute that this token does not have.
	cfg.KeyTemplate = map[string]any{"0x80000123": "x"}
	err = ms.Token(cfg).Connect(t.Context())
	if !errorIs(err, hsm.ErrNoAlgorithm, hsm.Operator) || strings.Count(err.Error(), "C_GenerateKey: CKR_ATTRIBUTE_TYPE_INVALID") != 2 {
		t.Errorf("unknown attribute: %v", err)
	}
}

// SoftHSM takes two objects with one ID; byokd never uses either.
func TestDuplicateID(t *testing.T) {
	token := newModules(t).Token(config(hsmtest.NewSoftHSM(t)))
	ref := mustGenerate(t, token, "byokd/x/1")
	if err := token.GenerateUnchecked(t.Context(), ref, nil); err != nil {
		t.Fatal(err)
	}
	checkWrap(t, token, ref, 2048) // the one that this connection has made, by its handle
	token.Forget()
	for what, err := range map[string]error{
		"find":    token.Find(t.Context(), ref),
		"destroy": token.Destroy(t.Context(), ref),
		"wrap": func() error {
			_, err := token.Wrap(t.Context(), ref, hsm.OAEPSHA1, spki(t, &rsaKeys[2048]().PublicKey))
			return err
		}(),
	} {
		if hsm.WaitingFor(err) != "config" || !strings.Contains(err.Error(), "2 objects") {
			t.Errorf("%s: %v", what, err)
		}
	}
	checkList(t, token, "byokd/", ref, ref)
	if err := token.Find(t.Context(), ref); hsm.WaitingFor(err) != "config" {
		t.Errorf("find, when both were listed: %v", err)
	}
	if err := token.GenerateAES(t.Context(), hsm.KeyRef{Label: "byokd/x/2"}); hsm.ClassOf(err) != hsm.Permanent {
		t.Errorf("generate without an ID: %v", err)
	}
}

// An object that has the ID but is not what byokd makes is refused.
func TestForeignObject(t *testing.T) {
	token := newModules(t).Token(config(hsmtest.NewSoftHSM(t)))
	ref := newKey("byokd/x/1")
	// EXTRACTABLE is left out: SoftHSM's default is false.
	if err := token.GenerateUnchecked(t.Context(), ref, map[string]any{"CKA_EXTRACTABLE": "omit"}); err != nil {
		t.Fatal(err)
	}
	if err := token.Find(t.Context(), ref); hsm.WaitingFor(err) != "config" || !strings.Contains(err.Error(), "CKA_EXTRACTABLE") {
		t.Errorf("find: %v", err)
	}
}

// A key that came out otherwise than it was asked for does not stay.
func TestGeneratedOtherwise(t *testing.T) {
	cfg := config(hsmtest.NewSoftHSM(t))
	cfg.KeyTemplate = map[string]any{"CKA_EXTRACTABLE": "omit"}
	token := newModules(t).Token(cfg)
	err := token.GenerateAES(t.Context(), newKey("byokd/x/1"))
	if hsm.WaitingFor(err) != "config" {
		t.Errorf("generate: %v", err)
	}
	checkList(t, token, "")
}
