package daemon

import (
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"byokd/config"
	"byokd/daemon/control"
	"byokd/daemon/jobstore/storetest"
	"byokd/schedule"
)

// What many groups cost is counted here, on daemons that have started and of which no
// loop runs, so that nothing else counts: commits, queries, files, allocations. It
// must be the same for few groups and for many.

const fewGroups = 20

// many is a daemon with groups that have been there for years. Its clock stands.
type many struct {
	*torturer
	d   *Daemon
	now atomic.Int64
}

func newMany(t testing.TB, groups int) *many {
	m := &many{torturer: newTorturer(t, 1)}
	m.now.Store(time.Now().UnixNano())
	b, err := os.ReadFile(m.path("byokd.toml"))
	watcherDo(t, err)
	m.put("byokd.toml", "settle = \"1ms\"\ndrift_check = \"1h\"\n"+replaced(t, string(b), "settle = \"20ms\"\ndesignated = false\n", "", "[events]\nenabled = false\n", ""))
	watcherDo(t, os.RemoveAll(m.path("v0")), os.Mkdir(m.path("v0"), 0o755))
	for i := range groups {
		m.file(i, "")
	}
	dir := config.NewDir(config.DefaultOptions())
	watcherDo(t, dir.Read(m.config()))
	var all []storetest.Group
	for i := range groups {
		g, problems, _ := dir.Get(manyName(i))
		if g == nil {
			t.Fatal(problems)
		}
		definition, err := g.MarshalDefinition()
		watcherDo(t, err)
		all = append(all, storetest.Group{Name: g.Name, Definition: definition, Digest: g.Digest(), HSM: g.HSM,
			Account: "111122223333", Region: g.AWS.Region, Snapshot: definition})
	}
	watcherDo(t, storetest.Fill(t.Context(), m.path("state/byokd.db"), all, 8, m.clock()))
	o := DefaultOptions()
	o.ConfigPath, o.Now, o.Logger = m.path("byokd.toml"), m.clock, slog.New(slog.DiscardHandler)
	m.d, err = start(t.Context(), o)
	watcherDo(t, err)
	t.Cleanup(func() {
		watcherDo(t, m.d.tokens.close(t.Context()), m.d.store.Close(), m.d.socket.Close())
	})
	time.Sleep(5 * time.Millisecond) // for the files to settle
	m.d.load(t.Context(), triggerStart)
	if n := m.d.groups.count(); n != groups {
		t.Fatalf("%d groups were loaded", n)
	}
	return m
}

func replaced(t testing.TB, s string, pairs ...string) string {
	for i := 0; i < len(pairs); i += 2 {
		before, after, ok := cutOnce(s, pairs[i])
		if !ok {
			t.Fatalf("there is no %q in %s", pairs[i], s)
		}
		s = before + pairs[i+1] + after
	}
	return s
}

func cutOnce(s, sep string) (before, after string, ok bool) {
	for i := 0; i+len(sep) <= len(s); i++ {
		if s[i:i+len(sep)] == sep {
			return s[:i], s[i+len(sep):], true
		}
	}
	return s, "", false
}

func manyName(i int) string { return fmt.Sprintf("many-%05d", i) }

func (m *many) file(i int, more string) string {
	path := m.path("v0/" + manyName(i) + ".toml")
	watcherDo(m.t, os.WriteFile(path, []byte(fmt.Sprintf("[rotation]\nevery = \"90d\"\n[aws]\nregion = \"eu-central-1\"\nalias = \"alias/%s\"\n%s", manyName(i), more)), 0o600))
	return m.d0(i)
}

// d0 is a group's file as the daemon knows it.
func (m *many) d0(i int) string {
	return m.path("groups.d/" + manyName(i) + ".toml")
}

func (m *many) clock() time.Time { return time.Unix(0, m.now.Load()) }

// costs are what something costs.
type costs struct{ commits, queries, reads, allocations int64 }

func (m *many) costs() costs {
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	return costs{m.d.store.Commits(), m.d.store.Queries(), int64(m.d.dir.Reads()), int64(mem.Mallocs)}
}

// of is what f costs.
func (m *many) of(f func()) costs {
	f() // what is done once
	before := m.costs()
	f()
	after := m.costs()
	return costs{after.commits - before.commits, after.queries - before.queries, after.reads - before.reads, after.allocations - before.allocations}
}

// same fails where something costs more with many groups than with few.
func same(t *testing.T, what string, few, many costs) {
	t.Helper()
	t.Logf("%s costs %+v with %d groups, %+v with %d", what, few, fewGroups, many, manyGroups)
	// Maps grow, and lists of names are made anew now and then.
	if many.allocations > 2*few.allocations+200 {
		t.Errorf("%s: %d allocations with %d groups, %d with %d", what, few.allocations, fewGroups, many.allocations, manyGroups)
	}
	few.allocations, many.allocations = 0, 0
	if few != many {
		t.Errorf("%s costs %+v with %d groups, and %+v with %d", what, few, fewGroups, many, manyGroups)
	}
}

func TestCostsDoNotGrow(t *testing.T) {
	a, b := newMany(t, fewGroups), newMany(t, manyGroups)
	for _, test := range []struct {
		what string
		do   func(m *many) func()
		want func(c costs) bool
	}{
		{"one changed file", func(m *many) func() {
			n := 0
			return func() {
				n++
				path := m.file(7, fmt.Sprintf("description = \"%d\"\n", n))
				time.Sleep(5 * time.Millisecond)
				m.d.loadChanged(t.Context(), []string{path})
			}
		}, func(c costs) bool { return c.reads == 1 && c.commits == 1 }},
		{"housekeeping at rest", func(m *many) func() {
			return func() { m.d.tidy(t.Context()) }
		}, func(c costs) bool { return c.commits == 0 && c.queries < 5 }},
		{"a look at what expires, at rest", func(m *many) func() {
			due := new(dueList)
			return func() { watcherDo(t, m.d.expire(t.Context(), due)) }
		}, func(c costs) bool { return c.commits == 0 && c.queries == 0 }},
		{"a look for groups that are to be looked for, at rest", func(m *many) func() {
			return func() { m.d.groups.dueLooks(m.clock()) }
		}, func(c costs) bool { return c.commits == 0 && c.queries == 0 }},
		{"a look for keys to be watched, at rest", func(m *many) func() {
			for i := range m.d.groups.count() {
				m.d.groups.note(manyName(i), func(g *group) { g.watchedAt = m.clock() })
			}
			return func() { m.d.watch(t.Context(), nil) }
		}, func(c costs) bool { return c.commits == 0 && c.queries == 0 }},
		{"the state of one group", func(m *many) func() {
			return func() {
				m.d.groups.changed([]string{manyName(3)})
				list, err := m.d.Status(t.Context(), []string{manyName(3)})
				if watcherDo(t, err); len(list) != 1 || list[0].State != control.GroupOK || *list[0].Active.Generation != 2 {
					t.Errorf("its state is %+v", list)
				}
			}
		}, func(c costs) bool { return c.commits == 0 && c.queries < 12 }},
		{"the jobs of one group", func(m *many) func() {
			return func() {
				jobs, err := m.d.Jobs(t.Context(), control.JobFilter{Group: manyName(3), Limit: 5})
				if watcherDo(t, err); len(jobs) != 5 {
					t.Errorf("it has %d jobs", len(jobs))
				}
			}
		}, func(c costs) bool { return c.commits == 0 && c.queries == 1 }},
	} {
		few, many := a.of(test.do(a)), b.of(test.do(b))
		same(t, test.what, few, many)
		if !test.want(many) {
			t.Errorf("%s costs %+v", test.what, many)
		}
	}
}

// The states of all groups are read from the database once, and then kept.
func TestStatesAreKept(t *testing.T) {
	m := newMany(t, manyGroups)
	status := func() {
		list, err := m.d.Status(t.Context(), nil)
		if watcherDo(t, err); len(list) != manyGroups {
			t.Errorf("%d groups are shown", len(list))
		}
	}
	before := m.costs()
	status()
	first := m.costs()
	status()
	if n := first.queries - before.queries; n > 12 {
		t.Errorf("the states of %d groups took %d queries", manyGroups, n)
	}
	if n := m.costs().queries - first.queries; n > 3 {
		t.Errorf("once they are known they took %d queries", n)
	}
}

// Ticks that come together, files that do, and what is asked for at once are stored
// together.
func TestStoredTogether(t *testing.T) {
	m := newMany(t, manyGroups)
	commits := int64((manyGroups + together - 1) / together)

	m.now.Add(int64(100 * 24 * time.Hour)) // all are due
	var ticks []schedule.Tick
	for _, name := range m.d.groups.names() {
		ticks = append(ticks, schedule.Tick{Group: name})
	}
	before := m.costs()
	m.d.fire(ticks)
	after := m.costs()
	if n := after.commits - before.commits; n != commits {
		t.Errorf("%d ticks took %d commits, want %d", manyGroups, n, commits)
	}
	if n := after.queries - before.queries; n > 2*commits { // of the keys, before and after
		t.Errorf("%d ticks took %d queries, want at most %d", manyGroups, n, 2*commits)
	}
	open, err := m.d.store.OpenJobs(t.Context())
	if watcherDo(t, err); len(open) != manyGroups {
		t.Errorf("%d ticks made %d jobs", manyGroups, len(open))
	}
	before = m.costs()
	m.d.fire(ticks)
	if n := m.costs().commits - before.commits; n != 0 {
		t.Errorf("the same ticks again took %d commits", n)
	}
	before = m.costs()
	asked, err := m.d.Rotate(t.Context(), nil, true, "somebody")
	if watcherDo(t, err); len(asked) != manyGroups {
		t.Errorf("%d jobs are answered, of %d", len(asked), manyGroups)
	}
	if n := m.costs().commits - before.commits; n != commits {
		t.Errorf("asking for all rotations took %d commits, want %d", n, commits)
	}

	for i := range manyGroups {
		m.file(manyGroups+i, "")
	}
	time.Sleep(5 * time.Millisecond)
	before = m.costs()
	m.d.load(t.Context(), triggerSighup)
	after = m.costs()
	if n := after.commits - before.commits; n != commits {
		t.Errorf("%d new groups took %d commits, want %d", manyGroups, n, commits)
	}
	if n := after.reads - before.reads; n != 2*manyGroups {
		t.Errorf("%d files were read, of %d", n, 2*manyGroups)
	}
	before = after
	m.d.load(t.Context(), triggerSighup)
	if n := m.costs().commits - before.commits; n != 0 {
		t.Errorf("a reload that found nothing new took %d commits", n)
	}
}
