package jobstore_test

import (
	"testing"
	"time"

	"byokd/daemon/jobstore"
)

func TestDrift(t *testing.T) {
	ctx := t.Context()
	path := create(t)
	s := open(t, path)
	at := time.UnixMilli(1_800_000_000_000).UTC()
	equal(t, "of no group", s.SetDrift(ctx, "cards", at, nil, nil, nil) != nil, true)
	must(t, s.SetDefinition(ctx, "cards", []byte(`{}`), "d", "main"))

	list := []jobstore.Difference{
		{Group: "cards", KeyID: "k1", Kind: "policy", Generation: new(1), Expected: "a", Found: "b", Message: "m", Since: at, RepairAt: at},
		{Group: "cards", KeyID: "k9", Kind: "unknown-key", Message: "n", Since: at},
	}
	event := jobstore.Event{ID: "e1", Group: "cards", DetailType: "BYOK Drift Detected", Detail: []byte(`{}`), OccurredAt: at}
	job := jobstore.NewJob{Kind: "synchronize", Group: "cards", HSM: "main", Trigger: "drift", UniqueKey: "drift:1", DueAt: at, Definition: []byte(`{}`), Steps: []string{"policy"}}
	must(t, s.SetDrift(ctx, "cards", at, list, []jobstore.Event{event}, []jobstore.NewJob{job}))
	must(t, s.Close())

	s = open(t, path)
	got, err := s.Drift(ctx)
	must(t, err)
	equal(t, "differences", len(got), 2)
	for _, d := range got {
		want := list[0]
		if d.Generation == nil {
			want = list[1]
		} else {
			equal(t, "generation", *d.Generation, *want.Generation)
		}
		d.Generation, want.Generation = nil, nil
		equal(t, "difference", d, want)
	}
	g, err := s.Group(ctx, "cards")
	must(t, err)
	equal(t, "checked", g.DriftChecked, at)
	jobs, err := s.OpenJobs(ctx)
	must(t, err)
	equal(t, "jobs", len(jobs), 1)
	stats, err := s.OutboxStats(ctx)
	must(t, err)
	equal(t, "events", stats.Pending, 1)

	// All or nothing.
	event.ID, event.Group = "e2", "nobody"
	equal(t, "an event of no group", s.SetDrift(ctx, "cards", at.Add(time.Hour), nil, []jobstore.Event{event}, nil) != nil, true)
	got, err = s.Drift(ctx)
	must(t, err)
	equal(t, "differences", len(got), 2)

	must(t, s.RenameGroup(ctx, "cards", "payments"))
	got, err = s.Drift(ctx)
	must(t, err)
	equal(t, "group", got[0].Group, "payments")
	must(t, s.SetDrift(ctx, "payments", at.Add(time.Hour), nil, nil, nil))
	got, err = s.Drift(ctx)
	must(t, err)
	equal(t, "differences", len(got), 0)
}

func TestReportExpiring(t *testing.T) {
	ctx := t.Context()
	s := open(t, create(t))
	must(t, s.SetDefinition(ctx, "cards", []byte(`{}`), "d", "main"))
	validTo := time.UnixMilli(1_800_000_000_000).UTC()
	g := jobstore.Generation{Group: "cards", Number: 1, Stage: "active", ValidTo: validTo}
	must(t, s.Advance(ctx, jobstore.Change{Generations: []jobstore.Generation{g}}))
	n := 0
	report := func(validTo time.Time, days int) bool {
		t.Helper()
		n++
		told, err := s.ReportExpiring(ctx, 1, validTo, days, jobstore.Event{ID: string(rune('a' + n)), Group: "cards", DetailType: "BYOK Key Expiring", Detail: []byte(`{}`), OccurredAt: validTo})
		must(t, err)
		return told
	}
	for _, c := range []struct {
		validTo time.Time
		days    int
		want    bool
	}{{validTo, 30, true}, {validTo, 30, false}, {validTo, 7, true}, {validTo, 30, false}, {validTo, 1, true}, {validTo, 1, false},
		{validTo.Add(time.Hour), 30, true}, {validTo.Add(time.Hour), 30, false}} {
		equal(t, "told", report(c.validTo, c.days), c.want)
		must(t, s.Advance(ctx, jobstore.Change{Generations: []jobstore.Generation{g}})) // which does not touch it
	}
	stats, err := s.OutboxStats(ctx)
	must(t, err)
	equal(t, "events", stats.Pending, 4)
	gens, err := s.Generations(ctx, "cards")
	must(t, err)
	equal(t, "days", gens[0].WarnedDays, 30)
	equal(t, "ValidTo", gens[0].WarnedValidTo, validTo.Add(time.Hour))
}
