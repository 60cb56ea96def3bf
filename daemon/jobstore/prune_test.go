package jobstore_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"byokd/daemon/jobstore"
)

func TestPrune(t *testing.T) {
	s, c := newStore(t)
	finish := func(n jobstore.NewJob) string {
		t.Helper()
		n.Steps = []string{"generate"}
		job := enqueue(t, s, n)
		claim(t, s, c, job.ID)
		e := event(n.Group, job.ID)
		must(t, s.Finish(t.Context(), job.ID, jobstore.Completed, "", jobstore.Change{
			Events:      []jobstore.Event{e},
			Generations: []jobstore.Generation{{Group: n.Group, Number: 1, Stage: "active", JobID: job.ID}},
			Audit:       []jobstore.AuditEntry{{Group: n.Group, Actor: "schedule", Action: "rotate"}},
		}))
		must(t, s.Sent(t.Context(), e.ID, "aws", c.now))
		return job.ID
	}
	old := finish(rotate("payments", "tick:1"))
	forced := finish(rotate("payments", "force:1"))
	must(t, s.MarkSeen(t.Context(), "payments", "force:2"))
	must(t, s.MarkSeen(t.Context(), "payments", "skipped:1"))
	must(t, s.Emit(t.Context(), event("payments", "")))
	waiting := enqueue(t, s, rotate("waiting", "tick:1"))
	for range 25 {
		id, err := s.BeginLogin(t.Context(), "main", "")
		must(t, err)
		must(t, s.EndLogin(t.Context(), id, jobstore.LoginOK))
	}
	c.advance(48 * time.Hour)
	claim(t, s, c, waiting.ID)
	young := finish(rotate("payments", "tick:2"))
	must(t, s.MarkSeen(t.Context(), "payments", "skipped:2"))

	n, err := s.Prune(t.Context(), epoch)
	must(t, err)
	equal(t, "pruned of what has just ended", n, 0)
	n, err = s.Prune(t.Context(), epoch.Add(24*time.Hour))
	must(t, err)
	equal(t, "pruned: 2 jobs, 2 events, 5 logins, 1 trigger", n, 10)
	for _, id := range []string{old, forced} {
		_, err = s.Job(t.Context(), id)
		mustBe(t, err, jobstore.ErrNotFound)
	}
	load(t, s, young)
	load(t, s, waiting.ID)
	for key, want := range map[string]bool{"tick:1": false, "force:1": true, "force:2": true, "skipped:1": false, "tick:2": true, "skipped:2": true} {
		seen, err := s.Seen(t.Context(), "payments", key)
		must(t, err)
		equal(t, key+" seen", seen, want)
	}
	job, joined, err := s.Enqueue(t.Context(), rotate("payments", "force:1"))
	must(t, err)
	equal(t, "a forgotten job's force value makes a job", !joined || job.ID != "", false)
	equal(t, "steps", query[int](t, s, "SELECT count(*) FROM steps"), 1)
	equal(t, "events", query[int](t, s, "SELECT count(*) FROM outbox"), 2)
	equal(t, "audit rows", query[int](t, s, "SELECT count(*) FROM audit"), 3)
	equal(t, "generations", query[int](t, s, "SELECT count(*) FROM generations"), 1)
	n, err = s.Prune(t.Context(), epoch.Add(24*time.Hour))
	must(t, err)
	equal(t, "pruned the second time", n, 0)
}

func TestPruneInChunks(t *testing.T) {
	path := create(t)
	s := open(t, path)
	var jobs []jobstore.NewJob
	for i := range 1200 {
		jobs = append(jobs, jobstore.NewJob{Kind: "synchronize", Group: "payments", UniqueKey: fmt.Sprint(i)})
	}
	done, err := s.EnqueueMany(t.Context(), jobs)
	must(t, err)
	_, err = s.Writer().Exec("UPDATE jobs SET state = 'completed', finished_at = 1")
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = s.Prune(ctx, time.Now())
	mustBe(t, err, context.Canceled)
	load(t, s, done[0].JobID)

	s = reopen(t, s) // with an empty log
	n, err := s.Prune(t.Context(), time.Now())
	must(t, err)
	equal(t, "pruned", n, 1200)
	equal(t, "transactions", commits(t, path), 3)
}
