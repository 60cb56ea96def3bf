package jobstore_test

import (
	"fmt"
	"testing"
	"time"

	"byokd/daemon/jobstore"
)

// The clock is a year ahead for a while: failures are told of again a day after it
// was set back, as are warnings that came too early, and checks go on.
func TestSetBack(t *testing.T) {
	const year, day = 365 * 24 * time.Hour, 24 * time.Hour
	s, c := newStore(t)
	must(t, s.SetDefinition(t.Context(), "payments", []byte(`{}`), "d1", "main"))
	event := func(n int) jobstore.Event {
		return jobstore.Event{ID: fmt.Sprint("event-", n), Group: "payments", DetailType: "x", Detail: []byte(`{}`), OccurredAt: c.now}
	}
	soon, late := epoch.Add(20*day), epoch.Add(year+2*day) // ValidTo
	must(t, s.Advance(t.Context(), jobstore.Change{Generations: []jobstore.Generation{
		{Group: "payments", Number: 1, Stage: "previous", HSMID: "01", ValidTo: soon},
		{Group: "payments", Number: 2, Stage: "pre-active", HSMID: "02", ValidTo: late}}}))
	if told, err := s.ReportExpiring(t.Context(), 1, soon, 30, event(1)); err != nil || !told {
		t.Fatal(told, err)
	}

	c.advance(year)
	job := enqueue(t, s, rotate("payments", "1"))
	claim(t, s, c, job.ID)
	must(t, s.Retry(t.Context(), job.ID, jobstore.Retry{NextAttempt: c.now.Add(time.Hour), Error: "throttled", FailureReported: c.now}, jobstore.Change{}))
	if told, err := s.ReportExpiring(t.Context(), 2, late, 7, event(2)); err != nil || !told {
		t.Fatal(told, err)
	}
	overdue := c.now.Add(-day)
	if told, err := s.ReportOverdue(t.Context(), overdue, event(3)); err != nil || !told {
		t.Fatal(told, err)
	}
	must(t, s.SetDrift(t.Context(), "payments", c.now, []jobstore.Difference{{KeyID: "k", Kind: "policy", Since: c.now, RepairAt: c.now}}, nil, nil))

	c.now = epoch.Add(time.Hour)
	n, err := s.SetBack(t.Context(), c.now, 7*time.Hour)
	if err != nil || n == 0 {
		t.Fatal(n, err)
	}
	got := load(t, s, job.ID)
	if !got.FirstFailed.Equal(c.now) || !got.FailureReported.Equal(c.now) || !got.NextAttempt.Equal(c.now) {
		t.Errorf("job is %+v", got)
	}
	g, err := s.Group(t.Context(), "payments")
	if err != nil || !g.DriftChecked.Equal(c.now) || !g.OverdueReported.IsZero() {
		t.Errorf("group is %+v, %v", g, err)
	}
	drift, err := s.Drift(t.Context())
	if err != nil || len(drift) != 1 || !drift[0].Since.Equal(c.now) || !drift[0].RepairAt.Equal(c.now) {
		t.Errorf("drift is %+v, %v", drift, err)
	}
	if n, err := s.SetBack(t.Context(), c.now, 7*time.Hour); err != nil || n != 0 {
		t.Errorf("mended once more: %d rows, %v", n, err)
	}
	if told, err := s.ReportExpiring(t.Context(), 1, soon, 30, event(4)); err != nil || told {
		t.Errorf("a warning that came in time is given again: %v", err)
	}
	if told, err := s.ReportExpiring(t.Context(), 2, late, 30, event(5)); err != nil || !told {
		t.Errorf("a warning that came too early is not given again: %v", err)
	}
}
