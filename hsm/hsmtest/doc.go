// Package hsmtest gives tests real PKCS#11 tokens, and faults to put in front
// of them.
//
// SoftHSM is needed: a test that cannot have it fails. The other tokens are
// used where they are installed. Without them [testing.TB.Skip] says what is
// missing, or the test fails if $HSMTEST_REQUIRE_ALL is not empty.
package hsmtest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"testing"
)

// PINs of the tokens that this package makes.
const (
	PIN   = "zq7-Kx4w" // nothing that stands in a log by chance
	SOPIN = "12345678"
)

// A Token is a PKCS#11 token made for a test.
type Token struct {
	Module       string   // absolute path of the module
	Label        string   // CKA_LABEL of the token
	PIN          string   // of the user
	InitReserved string   // C_Initialize's pReserved
	Conf         string   // SoftHSM's configuration file; else ""
	Env          []string // NAME=value pairs that the module reads at C_Initialize
}

// UserPIN returns the user PIN in a new buffer, as hsm.Config wants it.
func (tok *Token) UserPIN(context.Context) ([]byte, error) { return []byte(tok.PIN), nil }

// missing ends a test that needs something that is not installed.
func missing(t testing.TB, what string) {
	t.Helper()
	msg := "NOT TESTED, since something is missing: " + what
	if os.Getenv("HSMTEST_REQUIRE_ALL") != "" {
		t.Fatal(msg)
	}
	fmt.Fprintf(os.Stderr, "%s: %s\n", t.Name(), msg)
	t.Skip(msg)
}

// firstFile returns the first of the paths where there is a file.
func firstFile(paths ...string) (string, bool) {
	for _, p := range paths {
		if fi, err := os.Stat(p); err == nil && fi.Mode().IsRegular() {
			return p, true
		}
	}
	return "", false
}

// command runs a command and returns its output in the error.
func command(env []string, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", cmd, err, out)
	}
	return nil
}
