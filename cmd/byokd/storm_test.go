package main_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"byokd/daemon/control"
)

// Thousands of SIGHUPs while jobs run and definitions change: every job that was
// asked for is done, the last definitions are in force and in KMS, and byokd is as
// large as before.
func TestSIGHUPStorm(t *testing.T) {
	const groups, rounds, burst = 8, 500, 10
	m := newMachine(t)
	toml := m.read("byokd.toml")
	m.write("byokd.toml", strings.Replace(toml, `"debug"`, `"info"`, 1))
	name := func(i int) string { return fmt.Sprint("g", i) }
	for i := range groups {
		m.group(name(i), `description = "first"`)
	}
	m.start()
	client := control.NewClient(m.path("run/control.sock"))
	defer client.Close()
	for i := range groups {
		m.until("the first generations", func() bool { return m.active(name(i)) == 1 })
	}
	m.until("nothing is to be done", m.idle)

	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 3))
	asked := make(map[string]bool)
	rotations := make(map[string]int)
	described := make(map[string]string)
	storm := func(rounds int) {
		for n := range rounds {
			if n%5 == 0 {
				group := name(random.IntN(groups))
				described[group] = fmt.Sprintf("%x", random.Uint64())
				m.group(group, fmt.Sprintf("description = %q", described[group]))
			}
			if n%10 == 0 {
				group := name(random.IntN(groups))
				jobs, err := client.Rotate(t.Context(), []string{group}, false)
				if err != nil {
					t.Fatal(err)
				}
				if !asked[jobs[0].ID] {
					asked[jobs[0].ID] = true
					rotations[group]++
				}
			}
			before := m.reloads()
			for range burst {
				if err := m.cmd.Process.Signal(syscall.SIGHUP); err != nil {
					t.Fatal(err)
				}
			}
			m.until("a reload after the signals", func() bool { return m.reloads() > before })
		}
		m.until("nothing is to be done", m.idle)
	}
	storm(rounds / 5) // what grows once has grown
	memory, files := m.resident(), m.descriptors()
	storm(rounds)

	if len(asked) == 0 {
		t.Error("no rotation was asked for")
	}
	for id := range asked {
		job, err := client.Job(t.Context(), id)
		if err != nil || job.State != "completed" {
			t.Errorf("job %s that was asked for is %s (%v)", id, job.State, err)
		}
	}
	for i := range groups {
		group := name(i)
		m.until("the last definition is in KMS", func() bool {
			active := m.sim.Alias(account, region, "alias/"+group)
			for _, k := range m.sim.Keys(account, region) {
				if k.ID == active {
					return described[group] == "" || k.Description == described[group]
				}
			}
			return false
		})
		if n, want := m.active(group), 1+rotations[group]; n != want {
			t.Errorf("group %s is at generation %d, want %d: one for each rotation asked for", group, n, want)
		}
	}
	if n := m.reloads(); n < rounds {
		t.Errorf("%d reloads, want %d at least", n, rounds)
	}
	t.Logf("%d signals, %d reloads, %d rotations; memory %d KiB, then %d KiB; descriptors %d, then %d",
		(rounds+rounds/5)*burst, m.reloads(), len(asked), memory, m.resident(), files, m.descriptors())
	// The collector of garbage has its own times, and rotations their rows: what
	// would grow with each of thousands of reloads grows by more than this.
	if now := m.resident(); now > memory+memory/4+16<<10 {
		t.Errorf("byokd had %d KiB of memory, and has %d KiB", memory, now)
	}
	m.until("no more descriptors than before", func() bool { return m.descriptors() <= files+8 })
	if status := m.stop(syscall.SIGTERM); status != 0 {
		t.Errorf("byokd exits with %d", status)
	}
}

// reloads counts the reloads that are done.
func (m *machine) reloads() int {
	m.log.mu.Lock()
	defer m.log.mu.Unlock()
	return bytes.Count(m.log.b.Bytes(), []byte("msg=reloaded"))
}

// resident is byokd's memory in KiB (proc(5), VmRSS).
func (m *machine) resident() int {
	m.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.cmd.Process.Pid))
	if err != nil {
		m.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		m.t.Fatal(err)
	}
	return n
}

// descriptors counts byokd's open files.
func (m *machine) descriptors() int {
	m.t.Helper()
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", m.cmd.Process.Pid))
	if err != nil {
		m.t.Fatal(err)
	}
	return len(open)
}
