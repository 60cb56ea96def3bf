package main_test

import (
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
)

// notified begins to listen to what byokd tells systemd.
func (m *machine) notified() (states <-chan string, socket string) {
	m.t.Helper()
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path("notify"), Net: "unixgram"})
	if err != nil {
		m.t.Fatal(err)
	}
	// Read all the time, as systemd does: byokd waits while the socket is full.
	c := make(chan string, 1000)
	go func() {
		defer close(c)
		for b := make([]byte, 64<<10); ; {
			n, err := notify.Read(b)
			if err != nil {
				return
			}
			c <- string(b[:n])
		}
	}()
	m.t.Cleanup(func() { notify.Close() })
	return c, "NOTIFY_SOCKET=" + m.path("notify")
}

// What systemd is told, and when: READY waits for neither token nor network, a
// reload is one from RELOADING to READY, and STATUS names the next rotation and
// what is wrong.
func TestNotifications(t *testing.T) {
	m := newMachine(t)
	toml := m.read("byokd.toml")
	away := strings.ReplaceAll(strings.Replace(toml, m.token.Module, "/nowhere/module.so", 1), m.url, "http://127.0.0.1:1")
	m.write("byokd.toml", away)
	m.group("payments", "")
	states, socket := m.notified()
	m.start(socket)
	next := func(what string) string {
		t.Helper()
		for state := range states {
			if prefix, _, _ := strings.Cut(state, "="); prefix == what {
				return state
			}
		}
		t.Fatalf("%s is not told", what)
		return ""
	}
	status := func(want string) {
		t.Helper()
		m.until("STATUS says "+want, func() bool { return strings.Contains(next("STATUS"), want) })
	}
	next("READY")
	status("1 groups, next rotation payments at 2")

	reload := func() {
		t.Helper()
		m.cmd.Process.Signal(syscall.SIGHUP)
		if state := next("RELOADING"); !strings.HasPrefix(state, "RELOADING=1\nMONOTONIC_USEC=") {
			t.Errorf("told %q", state)
		}
		next("READY")
	}
	reload()
	m.write("byokd.toml", away+"[hsm.other]\nmodule = \"/nowhere/other.so\"\ntoken_label = \"other\"\npin_file = \"hsm.pin\"\n")
	reload()
	if out, _ := m.byokctl("status"); !strings.Contains(out, "does not take over: hsm.other; systemctl restart byokd") {
		t.Errorf("status does not say that a restart is wanted:\n%s", out)
	}
	m.write("byokd.toml", away+"nonsense = [\n")
	reload()
	status("byokd.toml could not be reloaded: " + m.path("byokd.toml") + ":")
	m.write("byokd.toml", away)
	reload()
	m.write("groups.d/bad.toml", "[rotation]\nevery = 90\n")
	status("bad: " + m.path("groups.d/bad.toml") + ":")
	if err := os.Remove(m.path("groups.d/bad.toml")); err != nil {
		t.Fatal(err)
	}
	m.until("STATUS says no more of it", func() bool { return !strings.Contains(next("STATUS"), "bad") })

	if err := os.Rename(m.path("groups.d"), m.path("elsewhere")); err != nil {
		t.Fatal(err)
	}
	reload()
	status("groups_dir " + m.path("groups.d") + " cannot be read: ")
	if status := m.stop(syscall.SIGTERM); status != 0 {
		t.Errorf("byokd exits with %d", status)
	}
	next("STOPPING")
}

// Why byokd does not start is a message of priority 3 in the journal, each line
// of it.
func TestStartFailureInTheJournal(t *testing.T) {
	m := newMachine(t)
	m.write("byokd.toml", "nonsense = 1\nmore = 2\n")
	stderr, err := os.Create(m.path("stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	info, err := stderr.Stat()
	if err != nil {
		t.Fatal(err)
	}
	stat := info.Sys().(*syscall.Stat_t)
	run := func(env string) string {
		t.Helper()
		if err := stderr.Truncate(0); err != nil {
			t.Fatal(err)
		}
		m.start(env)
		<-m.died
		m.died = nil
		if status := m.cmd.ProcessState.ExitCode(); status != 78 {
			t.Errorf("exit status %d, want 78", status)
		}
		return m.log.String()
	}
	m.stderr = stderr
	run(fmt.Sprintf("JOURNAL_STREAM=%d:%d", stat.Dev, stat.Ino))
	told, err := os.ReadFile(m.path("stderr"))
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("<3>byokd: %[1]s:1:1: nonsense: ", m.path("byokd.toml"))
	lines := strings.Split(strings.TrimSpace(string(told)), "\n")
	if len(lines) != 2 || !strings.HasPrefix(lines[0], want) || !strings.HasPrefix(lines[1], "<3>"+m.path("byokd.toml")+":2:1: more: ") {
		t.Errorf("told:\n%s", told)
	}
	m.stderr = nil
	if told := run("JOURNAL_STREAM="); !strings.HasPrefix(told, "byokd: ") || strings.Contains(told, "<3>") {
		t.Errorf("without a journal: %s", told)
	}
}
