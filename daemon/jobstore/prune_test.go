package jobstore_test

import (
	"context"
	"fmt"
	"os"
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
			Steps:       []jobstore.Step{{Name: "generate", State: "done"}},
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

// manyFinished makes n finished jobs with their steps, the i-th at i milliseconds.
func manyFinished(t testing.TB, s *jobstore.Store, n int) {
	t.Helper()
	must(t, s.SetDefinition(t.Context(), "payments", []byte("{}"), "", ""))
	for _, query := range []string{
		`WITH RECURSIVE i(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM i WHERE n < ?1)
			INSERT INTO jobs (id, kind, grp, hsm, generation, state, cause, definition, urgent, created_at, due_at, started_at, finished_at)
			SELECT printf('job-%08d', n), 'rotate', 'payments', 'main', n, 'completed', 'schedule', printf('%500s', n), 0, n, n, n, n FROM i`,
		`WITH steps_of(name, position) AS (VALUES ('generate', 0), ('create', 1), ('import', 2), ('verify', 3), ('grants', 4), ('activate', 5), ('announce', 6))
			INSERT INTO steps (job_id, name, position, state, message) SELECT id, name, position, 'done', 'it is done' FROM jobs, steps_of WHERE ?1 > 0`,
		`INSERT INTO triggers (grp, unique_key, job_id, cause, at) SELECT grp, 'tick:' || id, id, cause, created_at FROM jobs WHERE ?1 > 0`,
	} {
		_, err := s.Writer().Exec(query, n)
		must(t, err)
	}
}

// pages are how many the database has, and how many of them are free.
func pages(t testing.TB, s *jobstore.Store) (all, free int) {
	t.Helper()
	return query[int](t, s, "PRAGMA page_count"), query[int](t, s, "PRAGMA freelist_count")
}

func TestPruneGivesPagesBack(t *testing.T) {
	path := create(t)
	s := open(t, path)
	const jobs = 12000
	manyFinished(t, s, jobs)
	whole, _ := pages(t, s)

	// What a day's retention removes is left for what comes next.
	n, err := s.Prune(t.Context(), time.UnixMilli(jobs/10))
	must(t, err)
	equal(t, "pruned", n, jobs/10-1)
	if all, free := pages(t, s); all != whole || free == 0 {
		t.Errorf("of %d pages %d are free, after a tenth of the jobs of %d pages has gone", all, free, whole)
	}

	n, err = s.Prune(t.Context(), time.UnixMilli(jobs/10*9))
	must(t, err)
	equal(t, "pruned", n, jobs/10*8)
	all, free := pages(t, s)
	if all > whole/5 || free > all/8 {
		t.Errorf("of %d pages %d are free, after nine tenths of the jobs of %d pages have gone", all, free, whole)
	}
	must(t, s.Close())
	info, err := os.Stat(path)
	must(t, err)
	equal(t, "size of the file", info.Size(), int64(all)*4096)
	equal(t, "jobs", query[int](t, open(t, path), "SELECT count(*) FROM jobs"), jobs/10+1)
}

// Others write between any two of Prune's transactions, and not only at its end.
func TestPruneLetsOthersWrite(t *testing.T) {
	s := open(t, create(t))
	const jobs = 10000
	manyFinished(t, s, jobs)
	before := s.Commits()
	done := make(chan struct{})
	others := make(chan int)
	go func() {
		n := 0
		defer func() { others <- n }()
		for {
			select {
			case <-done:
				return
			default:
				if err := s.Record(context.Background(), jobstore.AuditEntry{Actor: "another", Action: "write"}); err != nil {
					t.Error(err)
					return
				}
				n++
			}
		}
	}()
	_, err := s.Prune(t.Context(), time.Now())
	close(done)
	must(t, err)
	n := <-others
	prunes := int(s.Commits()-before) - n
	t.Logf("%d transactions of Prune, %d of another", prunes, n)
	if n < prunes/2 {
		t.Errorf("another got to write %d times during %d transactions of Prune", n, prunes)
	}
}
