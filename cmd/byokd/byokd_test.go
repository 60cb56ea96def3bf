package main_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"byokd/cloud/awssim"
	"byokd/config"
	"byokd/daemon/control"
	"byokd/hsm/hsmtest"
)

// The real programs, built once: byokd with the tag faults, so that it can be
// told to die.
var programs string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "byokd-test-")
	if err != nil {
		panic(err)
	}
	programs = dir
	build := exec.Command("go", "build", "-tags", "faults", "-o", dir+"/", "byokd/cmd/byokd", "byokd/cmd/byokctl", "byokd/cmd/awssim")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		panic(err)
	}
	status := m.Run()
	os.RemoveAll(dir)
	os.Exit(status)
}

const (
	region  = "eu-central-1"
	account = "111122223333"
)

// A machine has an HSM, an AWS to reach, and the real byokd.
type machine struct {
	t      testing.TB
	dir    string
	token  *hsmtest.Token
	sim    *awssim.Sim
	proxy  *proxy // nil: none
	url    string
	log    logBuffer
	stderr *os.File // nil: to log
	cmd    *exec.Cmd
	died   chan error
}

// A logBuffer collects byokd's log.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

var pairs = sync.OnceValue(func() *awssim.Pairs { return awssim.NewPairs(1) })

// newMachine makes a machine with a token and an AWS of its own; byokd is not
// started yet.
func newMachine(t testing.TB) *machine {
	t.Helper()
	m := &machine{t: t, dir: t.TempDir(), sim: awssim.New(awssim.Options{Pairs: pairs()})}
	m.token = m.newToken()
	server := httptest.NewServer(m.sim)
	t.Cleanup(server.Close)
	m.url = server.URL
	m.prepare()
	return m
}

// newToken makes an empty token, which byokd finds by its environment.
func (m *machine) newToken() *hsmtest.Token {
	m.t.Helper()
	if err := os.Mkdir(m.path("token"), 0o700); err != nil {
		m.t.Fatal(err)
	}
	token, err := hsmtest.SetupSoftHSM(m.path("token"), "hsm")
	if err != nil {
		m.t.Fatal(err)
	}
	return token
}

// prepare writes a configuration that reaches AWS at m.url, and the database.
func (m *machine) prepare() {
	m.t.Helper()
	for _, sub := range []string{"groups.d", "state", "run"} {
		if err := os.Mkdir(m.path(sub), 0o700); err != nil {
			m.t.Fatal(err)
		}
	}
	m.configure()
	if out, status := m.byokctl("init"); status != 0 {
		m.t.Fatalf("byokctl init: %s", out)
	}
}

// configure writes byokd.toml and its secrets, and sees to byokd's end.
func (m *machine) configure() {
	m.t.Helper()
	m.write("hsm.pin", m.token.PIN)
	m.write("prod.csv", "Access key ID,Secret access key\nAKIATEST,secret\n")
	m.write("byokd.toml", fmt.Sprintf(`state_dir = "state"
runtime_dir = "run"
settle = "50ms"
[hsm.main]
module = %q
token_label = %q
pin_file = "hsm.pin"
[credentials.prod]
access_key_csv = "prod.csv"
[aws]
kms_endpoint = %[3]q
eventbridge_endpoint = %[3]q
sts_endpoint = %[3]q
tagging_endpoint = %[3]q
[aws.quotas]
%[4]s
[log]
level = "debug"
`, m.token.Module, m.token.Label, m.url, lifted()))
	m.t.Cleanup(func() {
		if m.died != nil {
			m.cmd.Process.Kill()
			<-m.died
		}
		if m.t.Failed() {
			m.t.Logf("byokd's log:\n%s", m.log.String())
		}
	})
}

// lifted are quotas so high that nothing waits for them.
func lifted() string {
	var b strings.Builder
	for key := range new(config.Quotas).Keys() {
		fmt.Fprintf(&b, "%s = 1000.0\n", key)
	}
	return b.String()
}

func (m *machine) path(name string) string { return filepath.Join(m.dir, name) }

// read returns the content of a file of the machine.
func (m *machine) read(name string) string {
	m.t.Helper()
	b, err := os.ReadFile(m.path(name))
	if err != nil {
		m.t.Fatal(err)
	}
	return string(b)
}

func (m *machine) write(name, content string) {
	m.t.Helper()
	tmp := filepath.Join(filepath.Dir(m.path(name)), "."+filepath.Base(name)+".new")
	if err := errors.Join(os.WriteFile(tmp, []byte(content), 0o600), os.Rename(tmp, m.path(name))); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) group(name, more string) { m.define(name, `every = "90d"`, "alias/"+name, more) }

func (m *machine) define(name, rotation, alias, more string) {
	m.write("groups.d/"+name+".toml", fmt.Sprintf("[rotation]\n%s\n[aws]\nregion = %q\nalias = %q\n%s\n", rotation, region, alias, more))
}

// start starts byokd with additions to its environment.
func (m *machine) start(env ...string) {
	m.t.Helper()
	m.cmd = exec.Command(filepath.Join(programs, "byokd"), "--config", m.path("byokd.toml"))
	m.cmd.Env = append(append(os.Environ(), m.token.Env...), append(env, "BYOKD_CREATE_LOOK=500ms")...)
	m.cmd.Stderr = &m.log
	if m.stderr != nil {
		m.cmd.Stderr = m.stderr
	}
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.died = make(chan error, 1)
	go func(cmd *exec.Cmd, died chan error) { died <- cmd.Wait() }(m.cmd, m.died)
}

// stop ends byokd with a signal and returns its exit status; -1: by a signal.
func (m *machine) stop(sig os.Signal) int {
	m.t.Helper()
	m.cmd.Process.Signal(sig)
	<-m.died
	m.died = nil
	return m.cmd.ProcessState.ExitCode()
}

// byokctl runs the real byokctl.
func (m *machine) byokctl(args ...string) (output string, status int) {
	m.t.Helper()
	cmd := exec.Command(filepath.Join(programs, "byokctl"), append([]string{"--config", m.path("byokd.toml")}, args...)...)
	cmd.Env = append(os.Environ(), m.token.Env...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		m.t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// until waits for a condition; the limit is for a test that hangs.
func (m *machine) until(what string, ok func() bool) {
	m.t.Helper()
	for end := time.Now().Add(60 * time.Second); !ok(); {
		if time.Now().After(end) {
			m.t.Fatalf("this did not come about: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// active is the group's active generation by byokctl; 0: none, or no answer.
func (m *machine) active(group string) int {
	var statuses []control.GroupStatus
	out, status := m.byokctl("status", "--json", group)
	if status != 0 || json.Unmarshal([]byte(out), &statuses) != nil || len(statuses) != 1 || statuses[0].Active.Generation == nil {
		return 0
	}
	return *statuses[0].Active.Generation
}

// idle reports whether no job is open, no request waits and no event.
func (m *machine) idle() bool {
	client := control.NewClient(m.path("run/control.sock"))
	defer client.Close()
	jobs, err := client.Jobs(m.t.Context(), control.JobFilter{})
	if err != nil {
		return false
	}
	for _, j := range jobs {
		if !j.Final() {
			return false
		}
	}
	for _, pattern := range []string{"run/requests/[a-z]*.*", "run/requests/.taken/*"} {
		if waiting, _ := filepath.Glob(m.path(pattern)); len(waiting) > 0 {
			return false
		}
	}
	d, err := client.Daemon(m.t.Context())
	return err == nil && d.Outbox.Pending == 0
}

// The whole flow with the real byokd, byokctl and awssim.
func TestPrograms(t *testing.T) {
	sim := exec.Command(filepath.Join(programs, "awssim"), "--listen", "127.0.0.1:0", "--wrapping-pairs", "1")
	out, err := sim.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := sim.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sim.Process.Signal(syscall.SIGTERM); sim.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, dir: t.TempDir(), url: strings.TrimSpace(line[strings.Index(line, "http://"):])}
	m.token = m.newToken()
	m.prepare()

	if out, status := m.byokctl("status"); status != 3 || !strings.Contains(out, "byokd") {
		t.Errorf("byokctl status without a daemon: status %d, %s", status, out)
	}
	if out, status := m.byokctl("init"); status != 0 {
		t.Errorf("a second byokctl init: status %d, %s", status, out)
	}
	if out, status := m.byokctl("hsm"); status != 0 || !strings.Contains(out, "RSAES_OAEP_SHA_1") {
		t.Errorf("byokctl hsm without a daemon: status %d, %s", status, out)
	}
	m.start()
	m.write("groups.d/bad.toml", "[rotation]\nevery = 90\n")
	m.group("payments", "")
	m.until("the file became generation 1", func() bool { return m.active("payments") == 1 })
	if out, _ := m.byokctl("status"); !strings.Contains(out, "bad") || !strings.Contains(out, "invalid") {
		t.Errorf("status does not show the bad file:\n%s", out)
	}
	if out, status := m.byokctl("check"); status != 2 || !strings.Contains(out, "bad.toml:2:") {
		t.Errorf("check: status %d\n%s", status, out)
	}

	if out, status := m.byokctl("rotate", "payments", "--wait"); status != 0 || !strings.Contains(out, "activate") {
		t.Errorf("rotate --wait: status %d\n%s", status, out)
	}
	if n := m.active("payments"); n != 2 {
		t.Errorf("active generation %d, want 2", n)
	}
	m.write("run/requests/rotate.payments", "")
	m.until("the touched request rotated", func() bool { return m.active("payments") == 3 })

	m.group("payments", `description = "changed"`)
	m.cmd.Process.Signal(syscall.SIGHUP)
	m.until("the changed definition is in KMS", func() bool {
		resp, err := http.Get(m.url + "/_awssim/keys")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		var keys []awssim.Key
		body, _ := io.ReadAll(resp.Body)
		if json.Unmarshal(body, &keys) != nil {
			return false
		}
		for _, k := range keys {
			if k.Description == "changed" {
				return true
			}
		}
		return false
	})
	if status := m.stop(syscall.SIGTERM); status != 0 {
		t.Errorf("after SIGTERM byokd exits with %d", status)
	}

	config := m.read("byokd.toml")
	m.write("byokd.toml", "designated = false\n"+config)
	m.start()
	m.until("byokd answers", func() bool { _, status := m.byokctl("status"); return status == 0 })
	if out, status := m.byokctl("rotate", "payments"); status != 1 || !strings.Contains(out, "not designated") {
		t.Errorf("rotate when not designated: status %d, %s", status, out)
	}
	if out, status := m.byokctl("rotate", "nosuch"); status != 2 && status != 1 {
		t.Errorf("rotate of an unknown group: status %d, %s", status, out)
	}
	m.stop(syscall.SIGTERM)

	m.write("byokd.toml", "nonsense = [")
	m.start()
	<-m.died
	m.died = nil
	if status := m.cmd.ProcessState.ExitCode(); status != 78 {
		t.Errorf("with a bad byokd.toml byokd exits with %d, want 78", status)
	}
}

// A panic is no end: the next start goes on, and the exit status is one after
// which systemd restarts byokd.
func TestPanic(t *testing.T) {
	m := newMachine(t)
	m.group("payments", "")
	m.start("BYOKD_FAULT=panic:after:5")
	<-m.died
	m.died = nil
	if status := m.cmd.ProcessState.ExitCode(); status != 2 {
		t.Errorf("exit status %d, want 2", status)
	}
	m.start()
	outcome{generations: 1, events: map[string]int{"KMS Alias Moved": 1}}.reached(m, "payments")
}
