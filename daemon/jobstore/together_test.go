package jobstore_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"byokd/daemon/jobstore"
	"byokd/daemon/jobstore/storetest"
)

// openTold is a store that notes of which groups it was told that they changed.
func openTold(t testing.TB) (s *jobstore.Store, told func() []string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "byokd.db")
	must(t, jobstore.Create(path))
	var names []string
	s, err := jobstore.Open(t.Context(), path, jobstore.Options{})
	must(t, err)
	s.Tell(func(groups []string) { names = append(names, groups...) })
	t.Cleanup(func() { s.Close() })
	return s, func() []string {
		n := names
		names = nil
		return n
	}
}

func rotation(group string) jobstore.NewJob {
	return jobstore.NewJob{Kind: "rotate", Group: group, HSM: "main", Trigger: "schedule", Definition: []byte("{}"), Steps: []string{"generate", "activate"}}
}

// What is written together is one commit, all or nothing; what fails within it has
// no effect, and what was written is read.
func TestTogether(t *testing.T) {
	s, told := openTold(t)
	ctx := t.Context()
	before := s.Commits()
	must(t, s.Together(ctx, func(ctx context.Context) error {
		for _, name := range []string{"a", "b", "c"} {
			if err := s.SetDefinition(ctx, name, []byte("{}"), "d", "main"); err != nil {
				return err
			}
			if _, _, err := s.Enqueue(ctx, rotation(name)); err != nil {
				return err
			}
		}
		if err := s.SetApplied(ctx, "nobody", "d"); !errors.Is(err, jobstore.ErrNotFound) {
			t.Errorf("a group that there is not: %v", err)
		}
		// The first statement of this one would succeed.
		if err := s.Advance(ctx, jobstore.Change{Generations: []jobstore.Generation{{Group: "a", Number: 1, Stage: "pre-active"}, {Group: "nobody", Number: 1, Stage: "active"}}}); err == nil {
			t.Error("a generation of nobody was stored")
		}
		if g, err := s.Group(ctx, "b"); err != nil || g.Digest != "d" {
			t.Errorf("what was written is read as %v, %v", g, err)
		}
		if open, err := s.OpenJobs(ctx); err != nil || len(open) != 3 {
			t.Errorf("%d jobs within, %v", len(open), err)
		}
		return nil
	}))
	equal(t, "commits", s.Commits()-before, int64(1))
	if names := told(); !slices.Equal(names, []string{"a", "b", "c"}) {
		t.Errorf("told of %v", names)
	}
	if gens, err := s.Generations(ctx, "a"); err != nil || len(gens) != 0 {
		t.Errorf("half of what failed has stayed: %v, %v", gens, err)
	}
	failure := errors.New("on purpose")
	mustBe(t, s.Together(ctx, func(ctx context.Context) error {
		must(t, s.SetDefinition(ctx, "d", []byte("{}"), "d", "main"))
		return failure
	}), failure)
	if _, err := s.Group(ctx, "d"); !errors.Is(err, jobstore.ErrNotFound) {
		t.Errorf("after a failure: %v", err)
	}
	if names := told(); len(names) != 0 {
		t.Errorf("told of %v, which were not changed", names)
	}
}

// Who reads the state of groups hears of each change of it, and of nothing else.
func TestChanged(t *testing.T) {
	s, told := openTold(t)
	ctx := t.Context()
	var job jobstore.Job
	for _, step := range []struct {
		what string
		do   func() error
		want []string
	}{
		{"a definition", func() error { return s.SetDefinition(ctx, "a", []byte("{}"), "d", "main") }, nil},
		{"a job", func() (err error) { job, _, err = s.Enqueue(ctx, rotation("a")); return err }, []string{"a"}},
		{"a claim", func() error { _, err := s.Claim(ctx, time.Now(), "", jobstore.Skip{}); return err }, []string{"a"}},
		{"a step", func() error {
			return s.Advance(ctx, jobstore.Change{JobID: job.ID, Generations: []jobstore.Generation{{Group: "a", Number: 1, Stage: "active"}},
				Events: []jobstore.Event{{ID: "e", Group: "a", DetailType: "t", Detail: []byte("{}")}}})
		}, []string{"a"}},
		{"no claim", func() error { _, err := s.Claim(ctx, time.Now(), "", jobstore.Skip{}); return err }, nil},
		{"an event sent off", func() error { return s.Failed(ctx, "e", time.Now(), "no") }, nil},
		{"an event parked", func() error { return s.Park(ctx, "e", "no") }, []string{"a"}},
		{"an event no longer parked", func() error { return s.Unpark(ctx, "e") }, []string{"a"}},
		{"an event that was sent", func() error { return s.Sent(ctx, "e", "1", time.Now()) }, nil},
		{"a drift", func() error {
			return s.SetDrift(ctx, "a", time.Now(), []jobstore.Difference{{Group: "a", KeyID: "k", Kind: "x", Since: time.Now()}}, nil, nil)
		}, []string{"a"}},
		{"its end", func() error { return s.SetDrift(ctx, "a", time.Now(), nil, nil, nil) }, []string{"a"}},
		{"no drift", func() error { return s.SetDrift(ctx, "a", time.Now(), nil, nil, nil) }, nil},
		{"an end", func() error { return s.Finish(ctx, job.ID, jobstore.Completed, "", jobstore.Change{}) }, []string{"a"}},
		{"a new name", func() error { return s.RenameGroup(ctx, "a", "b") }, []string{"b"}},
		{"a login", func() error { _, err := s.BeginLogin(ctx, "main", ""); return err }, nil},
		{"an old job's end", func() error { _, err := s.Prune(ctx, time.Now().Add(time.Hour)); return err }, nil},
	} {
		must(t, step.do())
		if got := told(); !slices.Equal(got, step.want) {
			t.Errorf("after %s it was told of %v, want %v", step.what, got, step.want)
		}
	}
}

// A large file is checked after it was opened, where that is asked for.
func TestCheckLater(t *testing.T) {
	path := filepath.Join(t.TempDir(), "byokd.db")
	must(t, jobstore.Create(path))
	groups := []storetest.Group{{Name: "a", Definition: []byte("{}"), Digest: "d", HSM: "main", Account: "1", Region: "r", Snapshot: make([]byte, 1<<20)}}
	for i := range groups[0].Snapshot {
		groups[0].Snapshot[i] = 'x'
	}
	must(t, storetest.Fill(t.Context(), path, groups, 70, time.Now()))
	s, err := jobstore.Open(t.Context(), path, jobstore.Options{CheckLater: true})
	must(t, err)
	equal(t, "unchecked", s.Unchecked(), true)
	must(t, s.Check(t.Context()))
	equal(t, "unchecked", s.Unchecked(), false)
	must(t, s.Close())

	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	info, err := f.Stat()
	must(t, err)
	for at := int64(1 << 20); at < info.Size(); at += 4096 {
		_, err := f.WriteAt(make([]byte, 16), at)
		must(t, err)
	}
	must(t, f.Close())
	s, err = jobstore.Open(t.Context(), path, jobstore.Options{CheckLater: true})
	if err == nil { // what it has read was whole
		err = s.Check(t.Context())
		s.Close()
	}
	mustBe(t, err, jobstore.ErrDamaged)
	_, err = jobstore.Open(t.Context(), path, jobstore.Options{})
	mustBe(t, err, jobstore.ErrDamaged)
}
