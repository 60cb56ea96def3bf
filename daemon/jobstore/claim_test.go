package jobstore_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

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
		job, err := s.Claim(t.Context(), c.now, "", skip)
		must(t, err)
		if job == nil || job.ID != want {
			t.Fatalf("claimed %+v, want %s", job, want)
		}
		if job.State != jobstore.Running || job.Attempt != 1 || !job.StartedAt.Equal(epoch) {
			t.Errorf("claimed job is %+v", job)
		}
	}
	for _, skip := range []jobstore.Skip{skip, {Gone: []string{"other"}}, {HSMs: []string{"x"}, Gone: []string{"x", "other"}}} {
		job, err := s.Claim(t.Context(), c.now, "", skip)
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
				job, err := s.Claim(t.Context(), c.now, "", jobstore.Skip{})
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

// Jobs are claimed by place, the most urgent first, and the places with due jobs
// are known.
func TestClaimByPlace(t *testing.T) {
	s, c := newStore(t)
	add := func(group, place string, due time.Duration, change func(*jobstore.NewJob)) string {
		credential, region, _ := strings.Cut(place, " ")
		n := rotate(group, group+place)
		n.DueAt, n.Definition = epoch.Add(due), fmt.Appendf(nil, `{"credential": %q, "region": %q}`, credential, region)
		if change != nil {
			change(&n)
		}
		return enqueue(t, s, n).ID
	}
	urgent := func(n *jobstore.NewJob) { n.Urgent = true }
	expiring := func(n *jobstore.NewJob) { n.Expiring = true }
	late := add("a", "prod eu-central-1", -time.Hour, nil)
	joined := add("b", "prod eu-central-1", -time.Minute, nil)
	renewal := add("c", "prod eu-central-1", -time.Minute, expiring)
	asked := add("d", "prod eu-central-1", 0, urgent)
	elsewhere := add("e", "prod us-east-1", -time.Second, nil)
	add("f", "dev us-east-1", time.Hour, urgent)
	if id := add("b", "prod eu-central-1 ", 0, expiring); id != joined {
		t.Errorf("joined %s", id)
	}

	due, err := s.Due(t.Context(), c.now)
	must(t, err)
	want := []jobstore.Due{{Place: "prod eu-central-1", Priority: 2, ReadyAt: epoch}, {Place: "prod us-east-1", ReadyAt: epoch.Add(-time.Second)}}
	if d := cmp.Diff(want, due); d != "" {
		t.Error(d)
	}
	for _, want := range []string{asked, joined, renewal, late, ""} {
		job, err := s.Claim(t.Context(), c.now, "prod eu-central-1", jobstore.Skip{})
		must(t, err)
		switch {
		case want == "" && job != nil, want != "" && (job == nil || job.ID != want):
			t.Fatalf("claimed %+v, want %s", job, want)
		case job != nil && (job.Place != "prod eu-central-1" || job.Urgent != (want == asked) || job.Expiring != (want == joined || want == renewal)):
			t.Errorf("claimed %+v", job)
		}
	}
	due, err = s.Due(t.Context(), c.now)
	must(t, err)
	if d := cmp.Diff(want[1:], due); d != "" {
		t.Error(d)
	}
	for _, since := range []struct {
		after time.Time
		want  []string
	}{{c.now.Add(-time.Second), nil}, {c.now.Add(-time.Second - time.Millisecond), []string{"prod us-east-1"}}} {
		places, err := s.DueSince(t.Context(), since.after, c.now)
		must(t, err)
		if d := cmp.Diff(since.want, places); d != "" {
			t.Errorf("due after %v: %s", since.after, d)
		}
	}
	job, err := s.Claim(t.Context(), c.now, "prod us-east-1", jobstore.Skip{})
	must(t, err)
	equal(t, "claimed", job.ID, elsewhere)
}
