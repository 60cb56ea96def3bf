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
