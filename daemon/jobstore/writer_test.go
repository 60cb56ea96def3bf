package jobstore_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"byokd/daemon/jobstore"
)

// besides begins writings while another is under way, and returns how each ended and
// how many commits that one and they were.
func besides(t *testing.T, s *jobstore.Store, writings ...func(context.Context) error) (errs []error, commits int64) {
	t.Helper()
	before := s.Commits()
	begun, goOn, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- s.Together(t.Context(), func(context.Context) error {
			close(begun)
			<-goOn
			return nil
		})
	}()
	<-begun
	results := make([]chan error, len(writings))
	for i, w := range writings {
		results[i] = make(chan error, 1)
		go func() { results[i] <- w(t.Context()) }()
		for s.Waiting() <= i { // so that they come in order
			time.Sleep(time.Millisecond)
		}
	}
	close(goOn)
	must(t, <-ended)
	for _, r := range results {
		errs = append(errs, <-r)
	}
	return errs, s.Commits() - before
}

// What waits while another writes is one commit; what fails of it is nobody else's
// concern.
func TestWritersShareACommit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "byokd.db")
	must(t, jobstore.Create(path))
	s := open(t, path)
	var writings []func(context.Context) error
	for i := range 20 {
		name := fmt.Sprintf("group-%d", i)
		if i%5 == 4 {
			name = "nobody"
		}
		writings = append(writings, func(ctx context.Context) error {
			if name == "nobody" {
				// Its first half would succeed.
				return s.Together(ctx, func(ctx context.Context) error {
					must(t, s.SetDefinition(ctx, "nobody", []byte("{}"), "d", "main"))
					return s.SetApplied(ctx, "no such group", "d")
				})
			}
			return s.SetDefinition(ctx, name, []byte("{}"), "d", "main")
		})
	}
	errs, commits := besides(t, s, writings...)
	equal(t, "commits", commits, int64(1))
	for i, err := range errs {
		if i%5 == 4 {
			mustBe(t, err, jobstore.ErrNotFound)
			continue
		}
		must(t, err)
		if _, err := s.Group(t.Context(), fmt.Sprintf("group-%d", i)); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.Group(t.Context(), "nobody"); !errors.Is(err, jobstore.ErrNotFound) {
		t.Errorf("half of what failed is there: %v", err)
	}
}

// Where one of several fails, the others are written again without it, and say the
// same as if they had been written once. What Together runs is run once.
func TestOneOfSeveralFails(t *testing.T) {
	for _, together := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "byokd.db")
		must(t, jobstore.Create(path))
		s := open(t, path)
		var made []jobstore.Enqueued
		var job *jobstore.Job
		ran := 0
		writings := []func(context.Context) error{
			func(ctx context.Context) (err error) {
				made, err = s.EnqueueMany(ctx, []jobstore.NewJob{rotation("a"), rotation("b")})
				return err
			},
			func(ctx context.Context) (err error) {
				job, err = s.Claim(ctx, time.Now().Add(time.Hour), "", jobstore.Skip{})
				return err
			},
			func(ctx context.Context) error { // its first half would succeed
				return s.Advance(ctx, jobstore.Change{Generations: []jobstore.Generation{{Group: "a", Number: 1, Stage: "pre-active"}, {Group: "nobody", Number: 1, Stage: "active"}}})
			},
			func(ctx context.Context) error { return s.SetDefinition(ctx, "c", []byte("{}"), "d", "main") },
		}
		if together {
			writings = append(writings, func(ctx context.Context) error {
				return s.Together(ctx, func(ctx context.Context) error {
					ran++
					return s.SetDefinition(ctx, "d", []byte("{}"), "d", "main")
				})
			})
		}
		errs, commits := besides(t, s, writings...)
		equal(t, "commits", commits, int64(1))
		for i, err := range errs {
			if i == 2 {
				mustBe(t, err, jobstore.ErrNotFound)
			} else {
				must(t, err)
			}
		}
		if len(made) != 2 || job == nil || job.ID != made[0].JobID {
			t.Errorf("made %v, claimed %v", made, job)
		}
		if open, err := s.OpenJobs(t.Context()); err != nil || len(open) != 2 || open[0].ID != made[0].JobID || open[0].State != jobstore.Running || open[0].Attempt != 1 {
			t.Errorf("open are %v, %v", open, err)
		}
		if gens, err := s.Generations(t.Context(), "a"); err != nil || len(gens) != 0 {
			t.Errorf("half of what failed is there: %v, %v", gens, err)
		}
		if _, err := s.Group(t.Context(), "c"); err != nil {
			t.Error(err)
		}
		if together {
			equal(t, "runs of what is to be run once", ran, 1)
		}
	}
}

// To look for a job where there is none commits nothing.
func TestNothingToWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "byokd.db")
	must(t, jobstore.Create(path))
	s := open(t, path)
	claim := func(ctx context.Context) error {
		job, err := s.Claim(ctx, time.Now(), "", jobstore.Skip{})
		if job != nil {
			t.Errorf("claimed %v", job)
		}
		return err
	}
	before := s.Commits()
	must(t, claim(t.Context()))
	must(t, s.Together(t.Context(), func(ctx context.Context) error { return claim(ctx) }))
	equal(t, "commits", s.Commits()-before, int64(0))
	errs, commits := besides(t, s, claim, claim)
	must(t, errors.Join(errs...))
	equal(t, "commits", commits, int64(0))
}

// When SQLite undoes the transaction, all whose writing was in it are told so.
func TestWritersLoseACommit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "byokd.db")
	must(t, jobstore.Create(path))
	s := open(t, path)
	define := func(name string) func(context.Context) error {
		return func(ctx context.Context) error { return s.SetDefinition(ctx, name, []byte("{}"), "d", "main") }
	}
	errs, commits := besides(t, s, define("a"), s.Undo, define("b"))
	equal(t, "commits", commits, int64(0))
	for i, name := range []string{"a", "", "b"} {
		if errs[i] == nil {
			t.Errorf("writing %d: no error", i)
		}
		if name == "" {
			continue
		}
		if _, err := s.Group(t.Context(), name); !errors.Is(err, jobstore.ErrNotFound) {
			t.Errorf("%s was said not to be written, and is: %v", name, err)
		}
	}
	must(t, define("a")(t.Context()))
}

// Who stops waiting has written nothing.
func TestWriterStopsWaiting(t *testing.T) {
	path := filepath.Join(t.TempDir(), "byokd.db")
	must(t, jobstore.Create(path))
	s := open(t, path)
	var stopped error
	errs, commits := besides(t, s, func(context.Context) error {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		stopped = s.SetDefinition(ctx, "a", []byte("{}"), "d", "main")
		return s.SetDefinition(t.Context(), "b", []byte("{}"), "d", "main")
	})
	mustBe(t, stopped, context.Canceled)
	must(t, errs[0])
	equal(t, "commits", commits, int64(1))
	if _, err := s.Group(t.Context(), "a"); !errors.Is(err, jobstore.ErrNotFound) {
		t.Errorf("it is there: %v", err)
	}
}

// Where many record at once, with other work in between, a commit waits for more to be
// in it; who records by itself waits for nobody.
func TestCommitsAreGathered(t *testing.T) {
	path := filepath.Join(t.TempDir(), "byokd.db")
	must(t, jobstore.Create(path))
	s := open(t, path)
	const writers, each = 16, 25
	write := func(name string) {
		for i := range each {
			if err := s.SetDefinition(t.Context(), name, []byte("{}"), fmt.Sprint(i), "main"); err != nil {
				t.Error(err)
			}
			time.Sleep(2 * time.Millisecond)
		}
	}
	before := s.Commits()
	write("alone")
	equal(t, "commits of one by itself", s.Commits()-before, int64(each))
	before = s.Commits()
	var wait sync.WaitGroup
	for i := range writers {
		wait.Go(func() { write(fmt.Sprintf("group-%d", i)) })
	}
	wait.Wait()
	if n := s.Commits() - before; n > writers*each/8 {
		t.Errorf("%d commits of %d writings", n, writers*each)
	} else {
		t.Logf("%d commits of %d writings", n, writers*each)
	}
}
