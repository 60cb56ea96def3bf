package jobstore_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"testing"
	"time"

	"byokd/daemon/jobstore"

	"github.com/google/go-cmp/cmp"
)

func rotate(group, key string) jobstore.NewJob {
	return jobstore.NewJob{Kind: "rotate", Group: group, HSM: "main", Trigger: "schedule", UniqueKey: key}
}

func enqueue(t testing.TB, s *jobstore.Store, n jobstore.NewJob) jobstore.Job {
	t.Helper()
	job, _, err := s.Enqueue(t.Context(), n)
	must(t, err)
	return job
}

// claim claims the next job, which must be the one given.
func claim(t testing.TB, s *jobstore.Store, c *clock, id string) jobstore.Job {
	t.Helper()
	job, err := s.Claim(t.Context(), c.now, "", jobstore.Skip{})
	must(t, err)
	if job == nil {
		t.Fatalf("nothing to claim, want %s", id)
	}
	equal(t, "claimed job", job.ID, id)
	return *job
}

func claimNothing(t testing.TB, s *jobstore.Store, c *clock) {
	t.Helper()
	job, err := s.Claim(t.Context(), c.now, "", jobstore.Skip{})
	must(t, err)
	if job != nil {
		t.Fatalf("claimed %+v, want nothing", job)
	}
}

func load(t testing.TB, s *jobstore.Store, id string) jobstore.Job {
	t.Helper()
	job, err := s.Job(t.Context(), id)
	must(t, err)
	return job
}

func TestEnqueue(t *testing.T) {
	s, _ := newStore(t)
	n := jobstore.NewJob{
		Kind: "rotate", Group: "payments", HSM: "main", Generation: 3, Trigger: "schedule", UniqueKey: "tick:1",
		Definition: []byte(`{"alias":"alias/payments"}`), Request: []byte(`{}`), Urgent: true,
		DueAt: epoch.Add(time.Minute), ScheduledAt: epoch.Add(-time.Second), Steps: []string{"generate", "create"},
		Audit: []jobstore.AuditEntry{{Actor: "schedule", Action: "ask for rotation"}},
	}
	job, joined, err := s.Enqueue(t.Context(), n)
	must(t, err)
	equal(t, "joined", joined, false)
	if !regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(job.ID) {
		t.Errorf("ID %q is no UUIDv7", job.ID)
	}
	want := jobstore.Job{
		ID: job.ID, Kind: "rotate", Group: "payments", HSM: "main", Generation: 3, State: jobstore.Available, Trigger: "schedule",
		Definition: n.Definition, Request: n.Request, Urgent: true, CreatedAt: epoch, ScheduledAt: n.ScheduledAt, DueAt: n.DueAt,
		Steps: []jobstore.Step{{Name: "generate", State: "pending"}, {Name: "create", State: "pending"}},
	}
	if diff := cmp.Diff(want, job); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(want, load(t, s, job.ID)); diff != "" {
		t.Error(diff)
	}
	audit, err := s.Audit(t.Context(), jobstore.AuditFilter{JobID: job.ID})
	must(t, err)
	if diff := cmp.Diff([]jobstore.AuditEntry{{At: epoch, Group: "payments", JobID: job.ID, Actor: "schedule", Action: "ask for rotation"}}, audit); diff != "" {
		t.Error(diff)
	}
	group, err := s.Group(t.Context(), "payments")
	must(t, err)
	if !group.LastTick.Equal(n.ScheduledAt) || !group.FirstSeen.IsZero() {
		t.Errorf("group is %+v", group)
	}

	// The same tick again: nothing happens, also after the job has ended.
	again, joined, err := s.Enqueue(t.Context(), n)
	must(t, err)
	equal(t, "joined", joined, true)
	equal(t, "ID", again.ID, job.ID)
	must(t, s.Cancel(t.Context(), job.ID))
	again, joined, err = s.Enqueue(t.Context(), n)
	must(t, err)
	equal(t, "joined", joined, true)
	equal(t, "state", again.State, jobstore.Cancelled)
	equal(t, "audit rows", query[int](t, s, "SELECT count(*) FROM audit"), 1)

	// The key is the group's own.
	n.Group = "other"
	other, joined, err := s.Enqueue(t.Context(), n)
	must(t, err)
	equal(t, "joined", joined, false)
	equal(t, "another job", other.ID != job.ID, true)

	for _, bad := range []jobstore.NewJob{{Kind: "explode", Group: "payments"}, {Kind: "rotate"}, {Kind: "retire", Group: "payments", Generation: -1}} {
		if _, _, err := s.Enqueue(t.Context(), bad); err == nil {
			t.Errorf("%+v was accepted", bad)
		}
	}
}

func TestJoin(t *testing.T) {
	s, c := newStore(t)
	tick := rotate("payments", "tick:1")
	tick.DueAt = epoch.Add(time.Hour) // jitter
	job := enqueue(t, s, tick)
	claimNothing(t, s, c)

	// Another tick joins and changes nothing but the last tick.
	tick = rotate("payments", "tick:2")
	tick.ScheduledAt = epoch
	tick.Audit = []jobstore.AuditEntry{{Actor: "schedule", Action: "ask for rotation"}}
	joinedJob, joined, err := s.Enqueue(t.Context(), tick)
	must(t, err)
	equal(t, "joined", joined, true)
	if diff := cmp.Diff(job, joinedJob); diff != "" {
		t.Error(diff)
	}
	group, err := s.Group(t.Context(), "payments")
	must(t, err)
	equal(t, "last tick", group.LastTick, epoch)
	tick.UniqueKey, tick.ScheduledAt = "tick:0", epoch.Add(-time.Hour)
	enqueue(t, s, tick)
	group, err = s.Group(t.Context(), "payments")
	must(t, err)
	equal(t, "last tick after an earlier one", group.LastTick, epoch)

	// A person who asks does not wait for the jitter.
	asked := rotate("payments", "request:1")
	asked.Urgent = true
	joinedJob = enqueue(t, s, asked)
	equal(t, "job", joinedJob.ID, job.ID)
	equal(t, "urgent", joinedJob.Urgent, true)
	equal(t, "due", joinedJob.DueAt, epoch)
	claim(t, s, c, job.ID)
	equal(t, "join of a running one", enqueue(t, s, rotate("payments", "request:2")).ID, job.ID)
	equal(t, "due stays past", load(t, s, job.ID).DueAt, epoch)

	// One that waits for time is made due, one that waits for a person is not.
	must(t, s.Retry(t.Context(), job.ID, jobstore.Retry{NextAttempt: epoch.Add(time.Hour), Error: "throttled"}, jobstore.Change{}))
	enqueue(t, s, rotate("payments", "tick:3"))
	claimNothing(t, s, c)
	asked.UniqueKey = "request:3"
	enqueue(t, s, asked)
	claim(t, s, c, job.ID)
	must(t, s.Retry(t.Context(), job.ID, jobstore.Retry{NextAttempt: epoch.Add(time.Hour), WaitingFor: "policy"}, jobstore.Change{}))
	asked.UniqueKey = "request:4"
	enqueue(t, s, asked)
	claimNothing(t, s, c)
	equal(t, "triggers of the job", query[int](t, s, "SELECT count(*) FROM triggers WHERE job_id = ?", job.ID), 8)

	// Others do not join, and neither does what comes after the end.
	sync := jobstore.NewJob{Kind: "synchronize", Group: "payments", UniqueKey: "sync:1"}
	equal(t, "synchronize is its own job", enqueue(t, s, sync).ID != job.ID, true)
	c.advance(time.Hour)
	claimed, err := s.Claim(t.Context(), c.now, "", jobstore.Skip{})
	must(t, err)
	equal(t, "claimed", claimed.ID, job.ID)
	must(t, s.Finish(t.Context(), job.ID, jobstore.Completed, "", jobstore.Change{}))
	equal(t, "a new one", enqueue(t, s, rotate("payments", "tick:4")).ID != job.ID, true)

	// Without a key each asking is its own.
	sync.UniqueKey = ""
	one, two := enqueue(t, s, sync), enqueue(t, s, sync)
	equal(t, "two without key are two", one.ID != two.ID, true)
}

func TestSeen(t *testing.T) {
	s, c := newStore(t)
	check := func(group, key string, want bool) {
		t.Helper()
		seen, err := s.Seen(t.Context(), group, key)
		must(t, err)
		equal(t, key+" seen", seen, want)
	}
	check("payments", "force:a", false)
	must(t, s.MarkSeen(t.Context(), "payments", "force:a"))
	must(t, s.MarkSeen(t.Context(), "payments", "force:a"))
	check("payments", "force:a", true)
	check("other", "force:a", false)

	job, joined, err := s.Enqueue(t.Context(), rotate("payments", "force:a"))
	must(t, err)
	equal(t, "joined", joined, true)
	equal(t, "job", job.ID, "")
	claimNothing(t, s, c)

	enqueue(t, s, rotate("payments", "force:b"))
	check("payments", "force:b", true)
}

// commits counts the transactions in a write-ahead log: frames whose second
// field, the size of the database after the commit, is not zero. See
// https://www.sqlite.org/fileformat2.html#the_write_ahead_log.
func commits(t *testing.T, path string) (n int) {
	t.Helper()
	b, err := os.ReadFile(path + "-wal")
	must(t, err)
	if len(b) < 32 {
		return 0
	}
	frame := 24 + int(binary.BigEndian.Uint32(b[8:]))
	salt := string(b[16:24])
	for b = b[32:]; len(b) >= frame && string(b[8:16]) == salt; b = b[frame:] {
		if binary.BigEndian.Uint32(b[4:]) != 0 {
			n++
		}
	}
	return n
}

func TestEnqueueMany(t *testing.T) {
	path := create(t)
	s := open(t, path)
	var ticks []jobstore.NewJob
	for i := range 10000 {
		tick := rotate(fmt.Sprintf("g%d", i%9000), fmt.Sprintf("tick:%d", i))
		tick.ScheduledAt = epoch
		ticks = append(ticks, tick)
	}
	must(t, s.SetDefinition(t.Context(), "one", []byte("{}"), "", ""))
	before := commits(t, path)
	equal(t, "commits of one call", before, 1)
	done, err := s.EnqueueMany(t.Context(), ticks)
	must(t, err)
	equal(t, "commits of 10,000 ticks", commits(t, path)-before, 1)
	joined := 0
	for _, e := range done {
		if e.Joined {
			joined++
		}
	}
	equal(t, "results", len(done), 10000)
	equal(t, "joined", joined, 1000)
	equal(t, "joined one's job", done[9000].JobID, done[0].JobID)
	open, err := s.OpenJobs(t.Context())
	must(t, err)
	equal(t, "open jobs", len(open), 9000)
	equal(t, "IDs ascend", slices.IsSortedFunc(done[:9000], func(a, b jobstore.Enqueued) int {
		if a.JobID < b.JobID {
			return -1
		}
		return 1
	}), true)

	// Some of them once more: the same jobs.
	again, err := s.EnqueueMany(t.Context(), ticks[8500:9500])
	must(t, err)
	for i := range again {
		if !again[i].Joined || again[i].JobID != done[8500+i].JobID {
			t.Fatalf("tick %d became %+v, was %+v", 8500+i, again[i], done[8500+i])
		}
	}

	// One that cannot be takes all with it.
	_, err = s.EnqueueMany(t.Context(), []jobstore.NewJob{rotate("fresh", "tick:1"), {Kind: "explode", Group: "fresh"}})
	if err == nil {
		t.Error("a job of an unknown kind was accepted")
	}
	_, err = s.Group(t.Context(), "fresh")
	mustBe(t, err, jobstore.ErrNotFound)
}

func TestAdvance(t *testing.T) {
	s, c := newStore(t)
	n := rotate("payments", "tick:1")
	n.Steps = []string{"generate", "create"}
	job := enqueue(t, s, n)
	change := jobstore.Change{
		JobID: job.ID, Generation: 1,
		Steps: []jobstore.Step{
			{Name: "create", State: "running", StartedAt: epoch.Add(time.Second), Data: []byte(`{"tag":1}`)},
			{Name: "import", State: "pending"},
			{Name: "generate", State: "done", StartedAt: epoch, FinishedAt: epoch.Add(time.Second), Message: "made"},
		},
		Generations: []jobstore.Generation{{Group: "payments", Number: 1, Stage: "pre-active", HSMID: "00ff"}},
		Events:      []jobstore.Event{event("payments", job.ID)},
		Audit:       []jobstore.AuditEntry{{At: epoch, Group: "payments", Actor: "schedule", Action: "generate key"}},
		Jobs:        []jobstore.NewJob{{Kind: "retire", Group: "payments", Generation: 0, UniqueKey: "retire:0", DueAt: epoch.Add(24 * time.Hour)}},
	}

	// Not by a worker that does not have it.
	mustBe(t, s.Advance(t.Context(), change), jobstore.ErrNotRunning)
	equal(t, "events", query[int](t, s, "SELECT count(*) FROM outbox"), 0)

	claim(t, s, c, job.ID)
	must(t, s.Advance(t.Context(), change))
	got := load(t, s, job.ID)
	equal(t, "generation", got.Generation, 1)
	if diff := cmp.Diff([]jobstore.Step{change.Steps[2], change.Steps[0], change.Steps[1]}, got.Steps); diff != "" {
		t.Error(diff)
	}
	gens, err := s.Generations(t.Context(), "payments")
	must(t, err)
	if diff := cmp.Diff(change.Generations, gens); diff != "" {
		t.Error(diff)
	}
	audit, err := s.Audit(t.Context(), jobstore.AuditFilter{Group: "payments", JobID: job.ID, Limit: 9})
	must(t, err)
	equal(t, "audit rows", len(audit), 1)
	equal(t, "open jobs", len(openJobs(t, s)), 2)

	// The next one leaves what it does not name.
	must(t, s.Advance(t.Context(), jobstore.Change{JobID: job.ID, Steps: []jobstore.Step{{Name: "create", State: "done"}}}))
	got = load(t, s, job.ID)
	equal(t, "generation", got.Generation, 1)
	equal(t, "first step", got.Steps[0].Message, "made")
	equal(t, "second step", got.Steps[1].State, "done")

	// All or nothing, at every part.
	for name, bad := range map[string]jobstore.Change{
		"step":       {JobID: job.ID, Generation: 2, Steps: []jobstore.Step{{Name: "verify", State: "dancing"}}},
		"generation": {JobID: job.ID, Generation: 2, Generations: []jobstore.Generation{{Group: "payments", Number: 2, Stage: "dancing"}}},
		"group":      {JobID: job.ID, Generation: 2, Generations: []jobstore.Generation{{Group: "nobody", Number: 2, Stage: "active"}}},
		"event":      {JobID: job.ID, Generation: 2, Events: []jobstore.Event{event("payments", ""), {ID: "x", Group: "payments"}}},
		"event of":   {JobID: job.ID, Generation: 2, Events: []jobstore.Event{event("nobody", "")}},
		"job":        {JobID: job.ID, Generation: 2, Jobs: []jobstore.NewJob{{Kind: "explode", Group: "payments"}}},
		"no job":     {Steps: []jobstore.Step{{Name: "verify", State: "done"}}},
	} {
		if err := s.Advance(t.Context(), bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	mustBe(t, s.Advance(t.Context(), jobstore.Change{Generations: []jobstore.Generation{{Group: "nobody", Stage: "active"}}}), jobstore.ErrNotFound)
	equal(t, "generation", load(t, s, job.ID).Generation, 1)
	checkSequences(t, s)

	must(t, s.Finish(t.Context(), job.ID, jobstore.Discarded, "it broke", jobstore.Change{Steps: []jobstore.Step{{Name: "import", State: "failed"}}}))
	got = load(t, s, job.ID)
	if got.State != jobstore.Discarded || got.Error != "it broke" || !got.FinishedAt.Equal(epoch) || got.Steps[2].State != "failed" || got.Open() {
		t.Errorf("finished job is %+v", got)
	}
	mustBe(t, s.Advance(t.Context(), jobstore.Change{JobID: job.ID}), jobstore.ErrNotRunning)
	mustBe(t, s.Finish(t.Context(), job.ID, jobstore.Completed, "", jobstore.Change{}), jobstore.ErrNotRunning)
	mustBe(t, s.Retry(t.Context(), job.ID, jobstore.Retry{NextAttempt: epoch}, jobstore.Change{}), jobstore.ErrNotRunning)
	mustBe(t, s.Release(t.Context(), job.ID), jobstore.ErrNotRunning)
	mustBe(t, s.Advance(t.Context(), jobstore.Change{JobID: "nobody"}), jobstore.ErrNotRunning)

	// Reconciliation has no job.
	must(t, s.Advance(t.Context(), jobstore.Change{Generations: []jobstore.Generation{{Group: "payments", Number: 0, Stage: "active"}}}))
}

func openJobs(t testing.TB, s *jobstore.Store) []jobstore.Job {
	t.Helper()
	jobs, err := s.OpenJobs(t.Context())
	must(t, err)
	return jobs
}

func TestFinishIsOnlyForEnds(t *testing.T) {
	s, c := newStore(t)
	job := enqueue(t, s, rotate("payments", "1"))
	claim(t, s, c, job.ID)
	for _, state := range []string{jobstore.Available, jobstore.Running, jobstore.Retryable, "dancing"} {
		if err := s.Finish(t.Context(), job.ID, state, "", jobstore.Change{}); err == nil {
			t.Errorf("finished as %s", state)
		}
	}
	if err := s.Retry(t.Context(), job.ID, jobstore.Retry{}, jobstore.Change{}); err == nil {
		t.Error("a job that waits for nothing at all was accepted")
	}
	equal(t, "state", load(t, s, job.ID).State, jobstore.Running)
}

func TestRetry(t *testing.T) {
	s, c := newStore(t)
	job := enqueue(t, s, rotate("payments", "1"))
	claim(t, s, c, job.ID)
	next := epoch.Add(time.Minute)
	must(t, s.Retry(t.Context(), job.ID, jobstore.Retry{NextAttempt: next, Error: "throttled"},
		jobstore.Change{Steps: []jobstore.Step{{Name: "create", State: "failed"}}}))
	got := load(t, s, job.ID)
	if got.State != jobstore.Retryable || !got.NextAttempt.Equal(next) || got.Error != "throttled" || got.Attempt != 1 ||
		!got.FirstFailed.Equal(epoch) || !got.FailureReported.IsZero() || !got.StartedAt.Equal(epoch) || len(got.Steps) != 1 {
		t.Errorf("job is %+v", got)
	}
	claimNothing(t, s, c)
	due, err := s.NextDue(t.Context(), c.now)
	must(t, err)
	equal(t, "next due", due, next)

	c.advance(time.Minute)
	got = claim(t, s, c, job.ID)
	if got.Attempt != 2 || !got.NextAttempt.IsZero() || !got.StartedAt.Equal(epoch) || len(got.Steps) != 1 {
		t.Errorf("claimed job is %+v", got)
	}
	must(t, s.Retry(t.Context(), job.ID, jobstore.Retry{WaitingFor: "pin", Error: "PIN incorrect", FailureReported: c.now}, jobstore.Change{}))
	got = load(t, s, job.ID)
	if !got.FirstFailed.Equal(epoch) || !got.FailureReported.Equal(c.now) || got.WaitingFor != "pin" || !got.NextAttempt.IsZero() {
		t.Errorf("job is %+v", got)
	}
	due, err = s.NextDue(t.Context(), c.now)
	must(t, err)
	equal(t, "next due", due.IsZero(), true)

	// For the PIN no time will do, only a person.
	c.advance(1000 * time.Hour)
	claimNothing(t, s, c)
	for _, f := range []jobstore.WakeFilter{
		{JobIDs: []string{"another"}},
		{Groups: []string{"another"}},
		{HSMs: []string{"another"}},
		{WaitingFor: []string{"policy", "permission"}},
		{JobIDs: []string{job.ID}, WaitingFor: []string{"policy"}},
	} {
		n, err := s.Wake(t.Context(), f)
		must(t, err)
		equal(t, "woken", n, 0)
	}
	n, err := s.Wake(t.Context(), jobstore.WakeFilter{HSMs: []string{"main"}, WaitingFor: []string{"permission", "pin"}},
		jobstore.AuditEntry{Actor: "root", Action: "retry job"})
	must(t, err)
	equal(t, "woken", n, 1)
	equal(t, "still says why", load(t, s, job.ID).WaitingFor, "pin")
	audit, err := s.Audit(t.Context(), jobstore.AuditFilter{JobID: job.ID})
	must(t, err)
	equal(t, "audit rows", len(audit), 1)
	equal(t, "audit group", audit[0].Group, "payments")
	got = claim(t, s, c, job.ID)
	equal(t, "waits for", got.WaitingFor, "")
	must(t, s.Retry(t.Context(), job.ID, jobstore.Retry{WaitingFor: "policy", NextAttempt: c.now.Add(6 * time.Hour)}, jobstore.Change{}))
	got = load(t, s, job.ID)
	equal(t, "reported stays", got.FailureReported.IsZero(), false)
	c.advance(6 * time.Hour)
	claim(t, s, c, job.ID)
	n, err = s.Wake(t.Context(), jobstore.WakeFilter{})
	must(t, err)
	equal(t, "woken of running ones", n, 0)
}

func TestReleaseAndRescue(t *testing.T) {
	s, c := newStore(t)
	job := enqueue(t, s, rotate("payments", "1"))
	claim(t, s, c, job.ID)
	must(t, s.Release(t.Context(), job.ID))
	got := load(t, s, job.ID)
	equal(t, "attempt", got.Attempt, 0)
	equal(t, "state", got.State, jobstore.Available)
	claim(t, s, c, job.ID)
	n, err := s.Rescue(t.Context())
	must(t, err)
	equal(t, "rescued", n, 1)
	got = load(t, s, job.ID)
	equal(t, "attempt", got.Attempt, 0)
	mustBe(t, s.Advance(t.Context(), jobstore.Change{JobID: job.ID}), jobstore.ErrNotRunning)
	claim(t, s, c, job.ID)
}

func TestResnapshot(t *testing.T) {
	s, c := newStore(t)
	// One job of each kind of state, in groups of their own so that all can run.
	states := map[string]struct {
		prepare func(id string)
		renewed bool
	}{
		"available": {func(string) {}, true},
		"running":   {func(id string) { claim(t, s, c, id) }, false},
		"released": {func(id string) {
			claim(t, s, c, id)
			must(t, s.Release(t.Context(), id))
		}, true}, // it has not chosen its generation
		"throttled": {func(id string) {
			claim(t, s, c, id)
			must(t, s.Retry(t.Context(), id, jobstore.Retry{NextAttempt: epoch.Add(time.Hour)}, jobstore.Change{}))
		}, true},
		"half-way": {func(id string) {
			claim(t, s, c, id)
			must(t, s.Retry(t.Context(), id, jobstore.Retry{NextAttempt: epoch.Add(time.Hour)}, jobstore.Change{Generation: 3}))
		}, false},
		"waiting": {func(id string) {
			claim(t, s, c, id)
			must(t, s.Retry(t.Context(), id, jobstore.Retry{WaitingFor: "alias"}, jobstore.Change{Steps: []jobstore.Step{{Name: "activate", State: "pending"}}}))
		}, true},
		"activated": {func(id string) {
			claim(t, s, c, id)
			must(t, s.Retry(t.Context(), id, jobstore.Retry{WaitingFor: "alias"}, jobstore.Change{Steps: []jobstore.Step{{Name: "activate", State: "running"}}}))
		}, false},
		"finished": {func(id string) { must(t, s.Cancel(t.Context(), id)) }, false},
	}
	for name, state := range states {
		n := rotate("group-"+name, "1")
		n.Definition = []byte("old")
		n.Urgent = true // so that it is the one claimed
		job := enqueue(t, s, n)
		state.prepare(job.ID)
		want, hsm, count := "old", "main", 0
		if state.renewed {
			want, hsm, count = "new", "other", 1
		}
		for range 2 { // the second time it is new already
			changed, err := s.Resnapshot(t.Context(), n.Group, []byte("new"), "other")
			must(t, err)
			equal(t, name+" changed", changed, count)
			count = 0
		}
		got := load(t, s, job.ID)
		equal(t, name+" has definition", string(got.Definition), want)
		equal(t, name+" has HSM", got.HSM, hsm)
		audit, err := s.Audit(t.Context(), jobstore.AuditFilter{Group: n.Group})
		must(t, err)
		equal(t, name+" audited", len(audit) == 1, state.renewed)
		if got.Open() && got.State != jobstore.Running { // out of the next one's way
			if err := s.Cancel(t.Context(), job.ID); err != nil && !errors.Is(err, jobstore.ErrActivated) {
				t.Fatal(err)
			}
		}
	}
}

func TestCancel(t *testing.T) {
	s, c := newStore(t)
	mustBe(t, s.Cancel(t.Context(), "nobody"), jobstore.ErrNotFound)
	job := enqueue(t, s, rotate("payments", "1"))
	claim(t, s, c, job.ID)
	mustBe(t, s.Cancel(t.Context(), job.ID), jobstore.ErrRunning)
	must(t, s.Retry(t.Context(), job.ID, jobstore.Retry{WaitingFor: "alias", NextAttempt: epoch.Add(time.Hour)}, jobstore.Change{}))
	must(t, s.Cancel(t.Context(), job.ID, jobstore.AuditEntry{Actor: "root", Action: "cancel job"}))
	got := load(t, s, job.ID)
	if got.State != jobstore.Cancelled || got.WaitingFor != "" || !got.NextAttempt.IsZero() || !got.FinishedAt.Equal(epoch) {
		t.Errorf("job is %+v", got)
	}
	mustBe(t, s.Cancel(t.Context(), job.ID), jobstore.ErrFinished)
	audit, err := s.Audit(t.Context(), jobstore.AuditFilter{JobID: job.ID})
	must(t, err)
	equal(t, "audit rows", len(audit), 1)

	// Past the point of no return there is none.
	job = enqueue(t, s, rotate("payments", "2"))
	claim(t, s, c, job.ID)
	must(t, s.Retry(t.Context(), job.ID, jobstore.Retry{WaitingFor: "config"}, jobstore.Change{Steps: []jobstore.Step{{Name: "activate", State: "failed"}}}))
	mustBe(t, s.Cancel(t.Context(), job.ID), jobstore.ErrActivated)
	equal(t, "state", load(t, s, job.ID).State, jobstore.Retryable)

	// Where somebody else has moved the alias there is nothing to drive forward.
	_, err = s.Wake(t.Context(), jobstore.WakeFilter{})
	must(t, err)
	claim(t, s, c, job.ID)
	must(t, s.Retry(t.Context(), job.ID, jobstore.Retry{WaitingFor: "alias"}, jobstore.Change{}))
	must(t, s.Cancel(t.Context(), job.ID))
}

func TestPlan(t *testing.T) {
	s, c := newStore(t)
	planned := func(generation int, action string, due time.Duration) jobstore.NewJob {
		return jobstore.NewJob{Kind: "retire", Group: "payments", Generation: generation, UniqueKey: fmt.Sprintf("plan:%s:%d", action, generation), DueAt: epoch.Add(due)}
	}
	double := enqueue(t, s, jobstore.NewJob{Kind: "retire", Group: "payments", UniqueKey: "retire:double:x", DueAt: epoch.Add(time.Hour)})
	enqueue(t, s, jobstore.NewJob{Kind: "retire", Group: "cards", UniqueKey: "plan:disable:1", DueAt: epoch.Add(1000 * time.Hour)})
	plan := func(jobs ...jobstore.NewJob) map[string]jobstore.Job {
		t.Helper()
		must(t, s.SetPlan(t.Context(), jobstore.Plan{Group: "payments", Jobs: jobs}))
		open := make(map[string]jobstore.Job)
		for _, j := range openJobs(t, s) {
			if j.Group == "payments" && j.Kind == "retire" && j.ID != double.ID {
				open[fmt.Sprintf("%d %s", j.Generation, j.DueAt.Sub(epoch))] = j
			}
		}
		equal(t, "the other jobs", len(openJobs(t, s))-len(open), 2)
		return open
	}
	first := plan(planned(1, "disable", time.Hour), planned(2, "disable", 2*time.Hour))
	equal(t, "made", len(first), 2)
	again := plan(planned(1, "disable", time.Hour), planned(2, "disable", 2*time.Hour))
	equal(t, "the same", again["1 1h0m0s"].ID, first["1 1h0m0s"].ID)

	// Dropped, with an audit row, and another time.
	moved := plan(planned(2, "disable", 3*time.Hour))
	equal(t, "left", len(moved), 1)
	equal(t, "the same job later", moved["2 3h0m0s"].ID, first["2 2h0m0s"].ID)
	equal(t, "dropped", load(t, s, first["1 1h0m0s"].ID).State, jobstore.Cancelled)
	audit, err := s.Audit(t.Context(), jobstore.AuditFilter{JobID: first["1 1h0m0s"].ID})
	must(t, err)
	equal(t, "audit rows", len(audit), 1)

	// Asked for again, it is another job; one that runs is neither made twice nor dropped.
	back := plan(planned(1, "disable", 0), planned(2, "disable", 3*time.Hour))
	equal(t, "made anew", back["1 0s"].ID != first["1 1h0m0s"].ID, true)
	claim(t, s, c, back["1 0s"].ID)
	must(t, s.SetPlan(t.Context(), jobstore.Plan{Group: "payments"}))
	equal(t, "the running one", load(t, s, back["1 0s"].ID).State, jobstore.Running)

	// One that waits for something waits for its new time; one that has ended is made anew.
	must(t, s.Retry(t.Context(), back["1 0s"].ID, jobstore.Retry{WaitingFor: "use", NextAttempt: epoch.Add(6 * time.Hour)}, jobstore.Change{}))
	must(t, s.SetPlan(t.Context(), jobstore.Plan{Group: "payments", Jobs: []jobstore.NewJob{planned(1, "disable", 90*time.Hour)}}))
	job := load(t, s, back["1 0s"].ID)
	equal(t, "state", job.State, jobstore.Available)
	equal(t, "due", job.DueAt, epoch.Add(90*time.Hour))
	c.advance(100 * time.Hour)
	claim(t, s, c, double.ID)
	must(t, s.Finish(t.Context(), double.ID, jobstore.Completed, "", jobstore.Change{}))
	claim(t, s, c, job.ID)
	must(t, s.Finish(t.Context(), job.ID, jobstore.Completed, "", jobstore.Change{}))
	must(t, s.SetPlan(t.Context(), jobstore.Plan{Group: "payments", Jobs: []jobstore.NewJob{planned(1, "disable", 90*time.Hour)}}))
	equal(t, "open jobs of both groups", len(openJobs(t, s)), 2)

	if err := s.SetPlan(t.Context(), jobstore.Plan{Group: "payments", Jobs: []jobstore.NewJob{{Kind: "retire", Group: "payments", UniqueKey: "other"}}}); err == nil {
		t.Error("a job under another key was planned")
	}
}

func TestListJobs(t *testing.T) {
	s, c := newStore(t)
	var ids []string
	for i := range 6 {
		ids = append(ids, enqueue(t, s, rotate(fmt.Sprintf("g%d", i%3), fmt.Sprint(i))).ID)
		if i == 2 {
			for range 3 {
				job, err := s.Claim(t.Context(), c.now, "", jobstore.Skip{})
				must(t, err)
				must(t, s.Finish(t.Context(), job.ID, jobstore.Completed, "", jobstore.Change{}))
			}
			c.advance(-time.Hour) // the clock steps back, and newest is still newest
		}
	}
	slices.Reverse(ids)
	for _, test := range []struct {
		filter jobstore.JobFilter
		want   []string
	}{
		{jobstore.JobFilter{}, ids},
		{jobstore.JobFilter{Limit: 2}, ids[:2]},
		{jobstore.JobFilter{State: jobstore.Completed}, ids[3:]},
		{jobstore.JobFilter{Group: "g0"}, []string{ids[2], ids[5]}},
		{jobstore.JobFilter{Group: "g0", State: jobstore.Available}, ids[2:3]},
		{jobstore.JobFilter{Group: "nobody"}, nil},
	} {
		jobs, err := s.Jobs(t.Context(), test.filter)
		must(t, err)
		var got []string
		for _, j := range jobs {
			got = append(got, j.ID)
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%+v: %v, want %v", test.filter, got, test.want)
		}
	}
	_, err := s.Job(t.Context(), "nobody")
	mustBe(t, err, jobstore.ErrNotFound)
	counts, err := s.Counts(t.Context())
	must(t, err)
	equal(t, "counts", len(counts), 6)
	equal(t, "first count", counts[0], jobstore.JobCount{Group: "g0", Kind: "rotate", State: jobstore.Available, Count: 1})
}
