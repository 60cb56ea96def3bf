package main_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A spent is what something took: time, and processor time of the programs that ran
// for it.
type spent struct{ wall, cpu time.Duration }

func (s spent) each(n int) spent { return spent{s.wall / time.Duration(n), s.cpu / time.Duration(n)} }

// A shell is where the script runs: Debian's programs, and what it is told by its
// environment.
type shell struct {
	m   *machine
	env []string
}

func newShell(m *machine) *shell {
	m.t.Helper()
	for _, file := range []string{"/usr/bin/aws", "/usr/bin/pkcs11-tool", "/usr/bin/openssl"} {
		if _, err := os.Stat(file); err != nil {
			m.t.Fatalf("%v: run .ci/setup bench", err)
		}
	}
	return &shell{m, append([]string{"PATH=/usr/bin:/bin", "HOME=" + m.dir, "MODULE=" + m.token.Module, "TOKEN=" + m.token.Label, "PIN=" + m.token.PIN,
		"ENDPOINT=" + m.url, "AWS_REGION=" + region, "AWS_DEFAULT_REGION=" + region, "AWS_ACCESS_KEY_ID=AKIATEST", "AWS_SECRET_ACCESS_KEY=secret",
		"AWS_EC2_METADATA_DISABLED=true", "AWS_PAGER="}, m.token.Env...)}
}

// run runs a program and returns what it printed, and what it and all that it
// started took.
func (s *shell) run(name string, args ...string) (string, spent) {
	s.m.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = s.env
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	begun := time.Now()
	out, err := cmd.Output()
	took := spent{time.Since(begun), cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()}
	if err != nil {
		s.m.t.Fatalf("%s: %v: %s", cmd, err, stderr.String())
	}
	return strings.TrimSpace(string(out)), took
}

// aws runs the aws CLI.
func (s *shell) aws(args ...string) string {
	s.m.t.Helper()
	out, _ := s.run("/usr/bin/aws", append([]string{"--endpoint-url", s.m.url, "--output", "text", "kms"}, args...)...)
	return out
}

// encrypts has KMS encrypt under an alias and checks that the ciphertext, or one of an
// earlier call, is of the key and decrypts.
func (s *shell) encrypts(alias, key string) (ciphertext string) {
	s.m.t.Helper()
	path := s.m.path("plaintext")
	if err := os.WriteFile(path, []byte("a message"), 0o600); err != nil {
		s.m.t.Fatal(err)
	}
	ciphertext = s.aws("encrypt", "--key-id", alias, "--plaintext", "fileb://"+path, "--query", "CiphertextBlob")
	s.decrypts(ciphertext, key)
	return ciphertext
}

func (s *shell) decrypts(ciphertext, key string) {
	s.m.t.Helper()
	blob, err := base64.StdEncoding.DecodeString(ciphertext)
	if err != nil {
		s.m.t.Fatal(err)
	}
	path := s.m.path("ciphertext")
	if err := os.WriteFile(path, blob, 0o600); err != nil {
		s.m.t.Fatal(err)
	}
	fields := strings.Fields(s.aws("decrypt", "--ciphertext-blob", "fileb://"+path, "--query", "[KeyId,Plaintext]"))
	if len(fields) != 2 || !strings.HasSuffix(fields[0], "/"+key) || fields[1] != base64.StdEncoding.EncodeToString([]byte("a message")) {
		s.m.t.Fatalf("the ciphertext, which is of %s, decrypts to %q", key, fields)
	}
}

// processCPU is the processor time that a process has used, in steps of a hundredth
// of a second.
func processCPU(tb testing.TB, pid int) time.Duration {
	tb.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		tb.Fatal(err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+2:]))
	var ticks int
	for _, f := range fields[11:13] { // utime and stime; proc(5)
		n, err := strconv.Atoi(f)
		if err != nil {
			tb.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / 100
}

// BenchmarkScript rotates a key as it is done with a shell script, and one with byokd
// and `byokctl rotate --wait`, one after the other, on the same token and AWS. Both are
// shown to have worked.
func BenchmarkScript(b *testing.B) {
	const byHand, byByokd = 5, 20
	m := newMachine(b)
	s := newShell(m)
	script, err := filepath.Abs("testdata/rotate-by-hand.sh")
	if err != nil {
		b.Fatal(err)
	}

	// What the script moves is there already.
	key := s.aws("create-key", "--query", "KeyMetadata.KeyId")
	s.aws("create-alias", "--alias-name", "alias/by-hand", "--target-key-id", key)
	ciphertexts := map[string]string{}
	var hand spent
	for range byHand {
		out, took := s.run(script, "alias/by-hand")
		hand.wall, hand.cpu = hand.wall+took.wall, hand.cpu+took.cpu
		if out == key || m.sim.Alias(account, region, "alias/by-hand") != out {
			b.Fatalf("the script says %q, and the alias points at %q", out, m.sim.Alias(account, region, "alias/by-hand"))
		}
		key = out
		ciphertexts[key] = s.encrypts("alias/by-hand", key)
	}
	for key, ciphertext := range ciphertexts {
		s.decrypts(ciphertext, key) // after all rotations
	}

	toml := m.read("byokd.toml")
	m.write("byokd.toml", strings.Replace(toml, `level = "debug"`, `level = "info"`, 1))
	m.group("by-byokd", "")
	m.start()
	m.until("the first key is made", func() bool { return m.active("by-byokd") == 1 && m.idle() })
	used := processCPU(b, m.cmd.Process.Pid)
	var byokd spent
	for range byByokd {
		_, took := s.run(filepath.Join(programs, "byokctl"), "--config", m.path("byokd.toml"), "rotate", "--wait", "by-byokd")
		byokd.wall, byokd.cpu = byokd.wall+took.wall, byokd.cpu+took.cpu
	}
	byokd.cpu += processCPU(b, m.cmd.Process.Pid) - used
	s.encrypts("alias/by-byokd", m.sim.Alias(account, region, "alias/by-byokd"))
	if got := m.active("by-byokd"); got != 1+byByokd {
		b.Errorf("generation %d after %d rotations", got, byByokd)
	}
	if status := m.stop(os.Interrupt); status != 0 {
		b.Errorf("byokd exits with %d", status)
	}

	cli, _ := s.run("/usr/bin/aws", "--version")
	h, d := hand.each(byHand), byokd.each(byByokd)
	fmt.Printf("bench: a rotation by shell script (%s, OpenSSL, pkcs11-tool; the key in the clear for a moment, nothing verified): %.2f s, %.2f s of CPU; "+
		"by byokctl rotate --wait, both programs, verified: %.3f s, %.3f s of CPU: 1/%.0f of the time, 1/%.0f of the CPU\n",
		strings.Fields(cli)[0], h.wall.Seconds(), h.cpu.Seconds(), d.wall.Seconds(), d.cpu.Seconds(),
		h.wall.Seconds()/d.wall.Seconds(), h.cpu.Seconds()/d.cpu.Seconds())
}
