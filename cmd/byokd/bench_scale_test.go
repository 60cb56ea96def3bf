package main_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"byokd/config"
	"byokd/daemon/jobstore/storetest"
)

// jobsOfGroup is how many finished jobs a group of a large machine has.
const jobsOfGroup = 100

// placesOf spreads groups over Regions.
var placesOf = []string{"eu-central-1", "eu-west-1", "us-east-1", "us-west-2", "ap-southeast-1"}

// groupName is the name of the group at that position.
func groupName(i int) string { return fmt.Sprintf("group-%05d", i) }

// large fills a machine with so many groups that have been there for years, their
// files and jobs.
func (m *machine) large(groups, jobs int) {
	m.t.Helper()
	old := time.Now().Add(-time.Hour)
	for i := range groups {
		path := m.path("groups.d/" + groupName(i) + ".toml")
		text := fmt.Sprintf("[rotation]\nevery = \"90d\"\n\n[aws]\nregion = %q\nalias = \"alias/%s\"\n[aws.tags]\nteam = \"payments\"\n",
			placesOf[i%len(placesOf)], groupName(i))
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			m.t.Fatal(err)
		}
		os.Chtimes(path, old, old)
	}
	cfg, err := config.Load(m.path("byokd.toml"), config.DefaultOptions())
	if err != nil {
		m.t.Fatal(err)
	}
	dir := config.NewDir(config.DefaultOptions())
	if err := dir.Read(cfg); err != nil {
		m.t.Fatal(err)
	}
	var all []storetest.Group
	for i := range groups {
		g, problems, _ := dir.Get(groupName(i))
		if g == nil {
			m.t.Fatal(problems)
		}
		definition, err := g.MarshalDefinition()
		if err != nil {
			m.t.Fatal(err)
		}
		all = append(all, storetest.Group{Name: g.Name, Definition: definition, Digest: g.Digest(), HSM: g.HSM,
			Account: account, Region: g.AWS.Region, Snapshot: definition})
	}
	if err := storetest.Fill(m.t.Context(), m.path("state/byokd.db"), all, jobs, time.Now()); err != nil {
		m.t.Fatal(err)
	}
}

// startReady starts byokd and returns how long it took to READY.
func (m *machine) startReady(env ...string) time.Duration {
	m.t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path("notify"), Net: "unixgram"})
	if err != nil {
		m.t.Fatal(err)
	}
	defer conn.Close()
	defer os.Remove(m.path("notify"))
	begun := time.Now()
	m.start(append(env, "NOTIFY_SOCKET="+m.path("notify"))...)
	b := make([]byte, 4096)
	conn.SetReadDeadline(begun.Add(10 * time.Minute))
	for {
		n, err := conn.Read(b)
		if err != nil {
			m.t.Fatalf("byokd did not become ready: %v", err)
		}
		if strings.Contains(string(b[:n]), "READY=1") {
			return time.Since(begun)
		}
	}
}

// rss is byokd's resident memory in bytes, cpu its time on a core since it began.
func (m *machine) rss() int64 {
	m.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.cmd.Process.Pid))
	if err != nil {
		m.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
			if err != nil {
				m.t.Fatal(err)
			}
			return kb << 10
		}
	}
	m.t.Fatal("no VmRSS")
	return 0
}

func (m *machine) cpu() time.Duration {
	m.t.Helper()
	// Of all threads: utime and stime of stat, in ticks of 10 ms, would be too coarse.
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", m.cmd.Process.Pid))
	if err != nil {
		m.t.Fatal(err)
	}
	var total time.Duration
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if err != nil {
			continue
		}
		ns, _, _ := strings.Cut(string(text), " ")
		n, _ := strconv.ParseInt(ns, 10, 64)
		total += time.Duration(n)
	}
	return total
}

// timed runs byokctl and returns how long that took.
func (m *machine) timed(args ...string) (time.Duration, string) {
	m.t.Helper()
	cmd := exec.Command(filepath.Join(programs, "byokctl"), append([]string{"--config", m.path("byokd.toml")}, args...)...)
	var best time.Duration
	var out []byte
	for range 5 {
		c := *cmd
		begun := time.Now()
		var err error
		if out, err = c.Output(); err != nil {
			m.t.Fatalf("byokctl %v: %v", args, err)
		}
		if took := time.Since(begun); best == 0 || took < best {
			best = took
		}
	}
	return best, string(out)
}

// atRest waits until byokd has come to rest: until it uses hardly any time.
func (m *machine) atRest() {
	m.t.Helper()
	for range 60 {
		before := m.cpu()
		time.Sleep(2 * time.Second)
		if m.cpu()-before < 10*time.Millisecond {
			return
		}
	}
	m.t.Log("byokd does not come to rest")
}

// quiet has byokd log as it does for a user.
func (m *machine) quiet(more string) {
	m.t.Helper()
	b, err := os.ReadFile(m.path("byokd.toml"))
	if err != nil {
		m.t.Fatal(err)
	}
	m.write("byokd.toml", more+strings.Replace(string(b), `level = "debug"`, `level = "info"`, 1))
}

// BenchmarkScale: the real byokd with 10,000 groups and 1,000,000 finished jobs,
// without comparisons with AWS, whose requests cost what AWS's SDK costs.
func BenchmarkScale(b *testing.B) {
	const groups = 10000
	empty := newMachine(b)
	empty.quiet("drift_check = \"0s\"\n")
	empty.startReady()
	empty.atRest()
	base := empty.rss()
	empty.stop(syscall.SIGTERM)

	m := newMachine(b)
	m.quiet("drift_check = \"0s\"\n")
	m.large(groups, jobsOfGroup)
	size := fmt.Sprintf("%d groups, %d jobs", groups, groups*jobsOfGroup)
	ready := m.startReady()
	fmt.Printf("bench: %s: start to READY %.2f s (to reach: 2 s)\n", size, ready.Seconds())
	m.atRest()
	time.Sleep(time.Minute) // until spare memory is given back
	const idle = 2 * time.Minute
	before := m.cpu()
	time.Sleep(idle)
	fmt.Printf("bench: %s, idle, drift_check off: %.3f %% of a core (to reach: 0.1 %%), %.1f MiB above an empty daemon's %d MiB (to reach: 64 MiB)\n",
		size, float64(m.cpu()-before)/float64(idle)*100, float64(m.rss()-base)/(1<<20), base>>20)
	for _, args := range [][]string{{"status"}, {"status", "--json"}, {"status", groupName(groups / 2)}, {"jobs"}, {"jobs", "--group", groupName(groups / 2)}, {"jobs", "--state", "open"}} {
		took, _ := m.timed(args...)
		fmt.Printf("bench: %s: byokctl %s %d ms (to reach: 100 ms)\n", size, strings.Join(args, " "), took.Milliseconds())
	}
	m.stop(syscall.SIGTERM)
}
