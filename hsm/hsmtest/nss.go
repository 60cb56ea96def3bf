package hsmtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// NewNSS makes an empty NSS softokn token in a temporary directory. The module
// wants its InitReserved.
func NewNSS(t testing.TB) *Token {
	t.Helper()
	module, ok := firstFile("/usr/lib/x86_64-linux-gnu/libsoftokn3.so", "/usr/lib/aarch64-linux-gnu/libsoftokn3.so", "/usr/lib64/libsoftokn3.so")
	if _, err := exec.LookPath("certutil"); err != nil || !ok {
		missing(t, "NSS softokn (Debian: apt-get install libnss3 libnss3-tools)")
	}
	dir := t.TempDir()
	pw := filepath.Join(dir, "pw")
	if err := os.WriteFile(pw, []byte(PIN), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := command(nil, "certutil", "-N", "-d", "sql:"+dir, "-f", pw); err != nil {
		t.Fatal(err)
	}
	return &Token{
		Module:       module,
		Label:        "NSS Certificate DB",
		PIN:          PIN,
		InitReserved: fmt.Sprintf("configdir='sql:%s' certPrefix='' keyPrefix='' secmod='secmod.db' flags=", dir),
	}
}
