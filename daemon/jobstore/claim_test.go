package jobstore_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"byokd/daemon/jobstore"
)

func TestClaimOrder(t *testing.T) {
	s, c := newStore(t)
	add := func(group, hsm string, due time.Duration, urgent bool) string {
		n := rotate(group, "1")
		n.HSM, n.DueAt, n.Urgent = hsm, epoch.Add(due), urgent
		return enqueue(t, s, n).ID
	}
	late := add("late", "main", -time.Minute, false)
	later := add("later", "main", -time.Minute, false)
	earliest := add("earliest", "main", -time.Hour, false)
	urgent := add("urgent", "main", 0, true)
	other := add("other", "other", -2*time.Hour, true)
	add("future", "main", time.Hour, true)

	skip := jobstore.Skip{HSMs: []string{"other", "third"}}
	for _, want := range []string{urgent, earliest, late, later} {
		job, err := s.Claim(t.Context(), c.now, skip)
		must(t, err)
		if job == nil || job.ID != want {
			t.Fatalf("claimed %+v, want %s", job, want)
		}
		if job.State != jobstore.Running || job.Attempt != 1 || !job.StartedAt.Equal(epoch) {
			t.Errorf("claimed job is %+v", job)
		}
	}
	for _, skip := range []jobstore.Skip{skip, {Groups: []string{"other"}}, {HSMs: []string{"x"}, Groups: []string{"x", "other"}}} {
		job, err := s.Claim(t.Context(), c.now, skip)
		must(t, err)
		if job != nil {
			t.Errorf("claimed %+v", job)
		}
	}
	claim(t, s, c, other)
	due, err := s.NextDue(t.Context(), c.now)
	must(t, err)
	equal(t, "next due", due, epoch.Add(time.Hour))
}

// One job of a group runs at a time, whatever the kinds.
func TestClaimOnePerGroup(t *testing.T) {
	s, c := newStore(t)
	first := enqueue(t, s, rotate("payments", "1"))
	c.advance(time.Second)
	second := enqueue(t, s, jobstore.NewJob{Kind: "synchronize", Group: "payments", UniqueKey: "2"})
	claim(t, s, c, first.ID)
	claimNothing(t, s, c)
	due, err := s.NextDue(t.Context(), c.now)
	must(t, err)
	equal(t, "next due", due.IsZero(), true)
	must(t, s.Finish(t.Context(), first.ID, jobstore.Completed, "", jobstore.Change{}))
	claim(t, s, c, second.ID)
}

// Between two attempts of a job that may have moved the alias no other one moves
// it or retires a key.
func TestClaimBehindAnAliasMove(t *testing.T) {
	s, c := newStore(t)
	retire := func(key string, urgent bool) jobstore.Job {
		return enqueue(t, s, jobstore.NewJob{Kind: "retire", Group: "payments", UniqueKey: key, Urgent: urgent})
	}
	put := func(id, activate string) {
		must(t, s.Retry(t.Context(), id, jobstore.Retry{NextAttempt: c.now.Add(time.Hour)},
			jobstore.Change{Steps: []jobstore.Step{{Name: "activate", State: activate}}}))
	}
	back := enqueue(t, s, jobstore.NewJob{Kind: "rollback", Group: "payments", UniqueKey: "1"})
	claim(t, s, c, back.ID)
	put(back.ID, "failed")
	next, planned := enqueue(t, s, rotate("payments", "2")), retire("plan:disable:1", false)
	elsewhere := enqueue(t, s, rotate("cards", "1"))
	claim(t, s, c, elsewhere.ID)
	claimNothing(t, s, c)
	sync := enqueue(t, s, jobstore.NewJob{Kind: "synchronize", Group: "payments", UniqueKey: "3"})
	keep := retire("control:1", true)
	for _, id := range []string{keep.ID, sync.ID} {
		claim(t, s, c, id)
		must(t, s.Finish(t.Context(), id, jobstore.Completed, "", jobstore.Change{}))
	}
	claimNothing(t, s, c)

	// Put back, it has not moved it.
	c.advance(time.Hour)
	claim(t, s, c, back.ID)
	put(back.ID, "pending")
	claim(t, s, c, next.ID)
	must(t, s.Finish(t.Context(), next.ID, jobstore.Completed, "", jobstore.Change{}))
	claim(t, s, c, planned.ID)
}

func TestNextDue(t *testing.T) {
	s, c := newStore(t)
	due := func() time.Time {
		t.Helper()
		at, err := s.NextDue(t.Context(), c.now)
		must(t, err)
		return at
	}
	equal(t, "of nothing", due().IsZero(), true)
	for i, d := range []time.Duration{3, 1, 2} {
		n := rotate(fmt.Sprint("g", i), "1")
		n.DueAt = epoch.Add(d * time.Hour)
		n.Urgent = d == 3
		enqueue(t, s, n)
	}
	for _, want := range []time.Duration{1, 2, 3} {
		equal(t, "next due", due(), epoch.Add(want*time.Hour))
		c.now = epoch.Add(want * time.Hour)
	}
	equal(t, "when all are due", due().IsZero(), true)
}

func TestClaimRaceOfGoroutines(t *testing.T) {
	s, c := newStore(t)
	for i := range 40 {
		enqueue(t, s, rotate(fmt.Sprint("g", i), "1"))
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var claimed []string
	for range 8 {
		wg.Go(func() {
			for {
				job, err := s.Claim(t.Context(), c.now, jobstore.Skip{})
				if err != nil {
					t.Error(err)
				}
				if job == nil {
					return
				}
				mu.Lock()
				claimed = append(claimed, job.ID)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	equal(t, "claimed", len(claimed), 40)
	slices.Sort(claimed)
	equal(t, "different ones", len(slices.Compact(claimed)), 40)
}

func TestClaimRaceOfProcesses(t *testing.T) {
	path := create(t)
	s := open(t, path)
	const jobs = 60
	for i := range jobs {
		enqueue(t, s, rotate(fmt.Sprint("g", i), "1"))
	}
	must(t, s.Close())

	var racers []*process
	for range 3 {
		racers = append(racers, start(t, "claim", path))
	}
	for _, p := range racers {
		equal(t, "child", p.line(t), "ready")
	}
	for _, p := range racers {
		fmt.Fprintln(p.in, "go")
	}
	var claimed []string
	for _, p := range racers {
		for p.out.Scan() {
			claimed = append(claimed, p.out.Text())
		}
		if err := p.Wait(); err != nil {
			t.Fatalf("%v: %s", err, p.err)
		}
	}
	equal(t, "claimed", len(claimed), jobs)
	slices.Sort(claimed)
	equal(t, "different ones", len(slices.Compact(claimed)), jobs)

	s = open(t, path)
	equal(t, "running", query[int](t, s, "SELECT count(*) FROM jobs WHERE state = 'running' AND attempt = 1"), jobs)
	n, err := s.Rescue(t.Context())
	must(t, err)
	equal(t, "rescued", n, jobs)
}
