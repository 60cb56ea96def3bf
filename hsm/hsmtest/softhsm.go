package hsmtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
)

// errNoSoftHSM says what to install.
var errNoSoftHSM = errors.New("SoftHSM 2 is missing: install it (Debian: apt-get install softhsm2)")

// NewSoftHSM makes an empty SoftHSM token, labelled hsm, in a temporary
// directory and points SOFTHSM2_CONF at it until the test ends. The variable is
// the process's, and SoftHSM reads it in C_Initialize, so one token directory
// can be in use at a time: tests that call NewSoftHSM cannot be parallel, and
// close their hsm.Modules before they end.
func NewSoftHSM(t testing.TB) *Token {
	t.Helper()
	tok, err := SetupSoftHSM(t.TempDir(), "hsm")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", tok.Conf)
	return tok
}

// SetupSoftHSM makes an empty SoftHSM token with the given label in dir, which
// must exist, beside those that are there. The caller sets SOFTHSM2_CONF to the
// token's Conf for whatever process is to use it.
func SetupSoftHSM(dir, label string) (*Token, error) {
	module, ok := firstFile(
		"/usr/lib/softhsm/libsofthsm2.so",   // Debian, Arch
		"/usr/lib64/softhsm/libsofthsm2.so", // Fedora
		"/usr/lib64/pkcs11/libsofthsm2.so",
		"/usr/local/lib/softhsm/libsofthsm2.so",
	)
	if !ok {
		return nil, errNoSoftHSM
	}
	if _, err := exec.LookPath("softhsm2-util"); err != nil {
		return nil, errNoSoftHSM
	}
	if strings.ContainsAny(dir, "\n") {
		return nil, fmt.Errorf("SoftHSM cannot use the directory %q", dir)
	}
	tokens := filepath.Join(dir, "tokens")
	if err := os.MkdirAll(tokens, 0o700); err != nil {
		return nil, err
	}
	conf := filepath.Join(dir, "softhsm2.conf")
	text := fmt.Sprintf("directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n", tokens)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return nil, err
	}
	tok := &Token{Module: module, Label: label, PIN: PIN, Conf: conf, Env: []string{"SOFTHSM2_CONF=" + conf}}
	err := command(tok.Env, "softhsm2-util", "--init-token", "--free", "--label", label, "--so-pin", SOPIN, "--pin", PIN)
	if err != nil {
		return nil, err
	}
	return tok, nil
}

// Fill puts so many AES keys on a SoftHSM token, labelled filler, which nothing may
// have in use meanwhile. They are copies of one, ID and all: to generate ten
// thousand takes minutes.
func Fill(t testing.TB, tok *Token, n int) {
	t.Helper()
	lib := pkcs11.New(tok.Module)
	if err := lib.Initialize(); err != nil {
		t.Fatal(err)
	}
	_, err := fillOne(lib, tok)
	if err := errors.Join(err, lib.Finalize()); err != nil {
		t.Fatal(err)
	}
	paths, err := filepath.Glob(filepath.Join(filepath.Dir(tok.Conf), "tokens", "*", "*.object"))
	if err != nil {
		t.Fatal(err)
	}
	var newest string // token.object is older
	var at time.Time
	for _, path := range paths {
		if fi, err := os.Stat(path); err == nil && filepath.Base(path) != "token.object" && fi.ModTime().After(at) {
			newest, at = path, fi.ModTime()
		}
	}
	object, err := os.ReadFile(newest)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n - 1 {
		name := filepath.Join(filepath.Dir(newest), fmt.Sprintf("f1113700-0000-4000-8000-%012x.object", i))
		if err := os.WriteFile(name, object, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// fillOne makes the key that the others are copies of.
func fillOne(lib *pkcs11.Ctx, tok *Token) (pkcs11.ObjectHandle, error) {
	slots, err := lib.GetSlotList(true)
	if err != nil {
		return 0, err
	}
	for _, slot := range slots {
		ti, err := lib.GetTokenInfo(slot)
		if err != nil || strings.TrimRight(ti.Label, " \x00") != tok.Label {
			continue
		}
		session, err := lib.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		if err != nil {
			return 0, err
		}
		if err := lib.Login(session, pkcs11.CKU_USER, tok.PIN); err != nil {
			return 0, err
		}
		return lib.GenerateKey(session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true), pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32),
			pkcs11.NewAttribute(pkcs11.CKA_LABEL, "filler"), pkcs11.NewAttribute(pkcs11.CKA_ID, []byte("sixteen bytes..."))})
	}
	return 0, fmt.Errorf("no token %q", tok.Label)
}

// SmallDisk gives the files of a SoftHSM token a file system of their own, of so
// many bytes, until the test ends, and returns where it is. That needs root; the
// test is skipped without it.
func SmallDisk(t testing.TB, tok *Token, size int) (dir string) {
	t.Helper()
	dir = filepath.Join(filepath.Dir(tok.Conf), "tokens")
	aside := dir + ".aside"
	if err := os.Rename(dir, aside); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", size)); err != nil {
		missing(t, fmt.Sprintf("root, to mount a small file system: %v", err))
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	if err := os.CopyFS(dir, os.DirFS(aside)); err != nil {
		t.Fatal(err)
	}
	return dir
}
