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
	"byokd/daemon/control"
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
	syscall.Sync() // byokd does not start while gigabytes are on their way to the disk
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
	b := m.read("byokd.toml")
	m.write("byokd.toml", more+strings.Replace(b, `level = "debug"`, `level = "info"`, 1))
}

// changed changes a group's file and returns how long it took, beyond the settle
// time, until its job was in the database and could be seen.
func (m *machine) changed(group string, settle time.Duration) time.Duration {
	m.t.Helper()
	client := control.NewClient(m.path("run/control.sock"))
	defer client.Close()
	newest := func() string {
		jobs, err := client.Jobs(m.t.Context(), control.JobFilter{Group: group, Limit: 1})
		if err != nil || len(jobs) != 1 {
			m.t.Fatalf("the newest job of %s: %v, %v", group, jobs, err)
		}
		return jobs[0].ID
	}
	path := m.path("groups.d/" + group + ".toml")
	text, err := os.ReadFile(path)
	if err != nil {
		m.t.Fatal(err)
	}
	before := newest()
	if err := os.WriteFile(path, []byte(strings.Replace(string(text), "[aws]\n", "[aws]\ndescription = \"changed\"\n", 1)), 0o600); err != nil {
		m.t.Fatal(err)
	}
	for begun := time.Now(); ; time.Sleep(time.Millisecond) {
		if newest() != before {
			return time.Since(begun) - settle
		}
		if time.Since(begun) > time.Minute {
			m.t.Fatalf("a change of %s makes no job", path)
		}
	}
}

// BenchmarkScale: the real byokd with more and more groups that have a hundred
// finished jobs each, without comparisons with AWS, whose requests cost what AWS's SDK
// costs. docs/performance/plot.awk draws what it prints.
func BenchmarkScale(b *testing.B) {
	empty := newMachine(b)
	empty.quiet("drift_check = \"0s\"\n")
	empty.startReady()
	empty.atRest()
	base := empty.rss()
	empty.stop(syscall.SIGTERM)
	fmt.Printf("bench: an empty daemon: %d MiB resident\n", base>>20)

	for _, groups := range []int{10, 100, 1000, 10000} {
		m := newMachine(b)
		m.quiet("drift_check = \"0s\"\n")
		m.large(groups, jobsOfGroup)
		show := func(what string, value float64, unit, reach string) {
			fmt.Printf("bench: growth: %s: %d groups, %d jobs: %.4g %s (to reach with 10000: %s)\n", what, groups, groups*jobsOfGroup, value, unit, reach)
		}
		millis := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
		show("start to READY", m.startReady().Seconds(), "s", "2 s")
		m.atRest()
		time.Sleep(40 * time.Second) // until spare memory is given back
		const idle = time.Minute     // in which all files are looked at once
		before := m.cpu()
		time.Sleep(idle)
		show("processor when idle", float64(m.cpu()-before)/float64(idle)*100, "% of a core", "0.1 %")
		show("memory above an empty daemon", float64(m.rss()-base)/(1<<20), "MiB", "64 MiB")
		for _, args := range [][]string{{"status"}, {"status", "--json"}, {"status", groupName(groups / 2)}, {"jobs"}, {"jobs", "--group", groupName(groups / 2)}, {"jobs", "--state", "open"}} {
			took, _ := m.timed(args...)
			show("byokctl "+strings.Replace(strings.Join(args, " "), groupName(groups/2), "GROUP", 1), millis(took), "ms", "100 ms")
		}
		best := time.Hour
		for i := range 5 {
			best = min(best, m.changed(groupName(i), 50*time.Millisecond))
		}
		show("changed file to job", millis(best), "ms", "100 ms")
		m.stop(syscall.SIGTERM)
	}
}
