package jobstore_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"byokd/daemon/jobstore"

	"pgregory.net/rapid"
)

// Whatever happens in whatever order: a group has at most one open rotation and
// one running job, its events are numbered without a gap, nothing that asked is
// lost or asked twice, and an ended job stays as it is.
func TestInvariants(t *testing.T) {
	// Each step is a commit to disk: a quarter of rapid's 100 runs, unless told otherwise.
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue {
		must(t, flag.Set("rapid.checks", "25"))
		defer flag.Set("rapid.checks", f.DefValue)
	}
	dir := t.TempDir()
	template := filepath.Join(dir, "template.db")
	must(t, jobstore.Create(template))
	empty, err := os.ReadFile(template)
	must(t, err)

	rapid.Check(t, func(t *rapid.T) {
		path := filepath.Join(dir, "byokd.db")
		if err := os.WriteFile(path, empty, 0o600); err != nil {
			t.Fatal(err)
		}
		ctx := context.Background()
		c := &clock{now: epoch}
		openStore := func() *jobstore.Store {
			s, err := jobstore.Open(ctx, path, jobstore.Options{Now: c.Now})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		s := openStore()
		defer func() { s.Close() }()

		type ask struct{ group, key string }
		asked := map[ask]string{}    // what asked → its job
		ended := map[string]string{} // job → its state
		var running []string
		lastTick := map[string]time.Time{}

		ok := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		group := rapid.SampledFrom([]string{"a", "b", "c"})
		// takeRunning draws one of the running jobs and forgets it.
		takeRunning := func(t *rapid.T) string {
			if len(running) == 0 {
				t.Skip("no job is running")
			}
			i := rapid.IntRange(0, len(running)-1).Draw(t, "running job")
			id := running[i]
			running = append(running[:i], running[i+1:]...)
			return id
		}
		anyOpen := func(t *rapid.T) jobstore.Job {
			jobs, err := s.OpenJobs(ctx)
			ok(err)
			if len(jobs) == 0 {
				t.Skip("no job is open")
			}
			return rapid.SampledFrom(jobs).Draw(t, "open job")
		}
		t.Repeat(map[string]func(*rapid.T){
			"enqueue": func(t *rapid.T) {
				n := jobstore.NewJob{
					Kind:      rapid.SampledFrom([]string{"rotate", "rotate", "synchronize"}).Draw(t, "kind"),
					Group:     group.Draw(t, "group"),
					HSM:       "main",
					UniqueKey: fmt.Sprint("key", rapid.IntRange(0, 9).Draw(t, "key")),
					Urgent:    rapid.Bool().Draw(t, "urgent"),
					DueAt:     c.now.Add(time.Duration(rapid.IntRange(-1, 2).Draw(t, "due")) * time.Minute),
				}
				if rapid.Bool().Draw(t, "tick") {
					n.ScheduledAt = c.now
					if c.now.After(lastTick[n.Group]) {
						lastTick[n.Group] = c.now
					}
				}
				job, joined, err := s.Enqueue(ctx, n)
				ok(err)
				before, known := asked[ask{n.Group, n.UniqueKey}]
				if known && (job.ID != before || !joined) {
					t.Fatalf("%v became %s, was %s", n.UniqueKey, job.ID, before)
				}
				if !known && !job.Open() {
					t.Fatalf("new key %s joined a job that is %s", n.UniqueKey, job.State)
				}
				asked[ask{n.Group, n.UniqueKey}] = job.ID
			},
			"claim": func(t *rapid.T) {
				job, err := s.Claim(ctx, c.now, "", jobstore.Skip{})
				ok(err)
				if job != nil {
					running = append(running, job.ID)
				}
			},
			"advance": func(t *rapid.T) {
				job := anyOpen(t)
				err := s.Advance(ctx, jobstore.Change{
					JobID:       job.ID,
					Steps:       []jobstore.Step{{Name: rapid.SampledFrom([]string{"generate", "activate"}).Draw(t, "step"), State: "done"}},
					Generations: []jobstore.Generation{{Group: job.Group, Number: rapid.IntRange(0, 3).Draw(t, "number"), Stage: "previous"}},
					Events:      []jobstore.Event{event(job.Group, job.ID)},
					Jobs: []jobstore.NewJob{{Kind: "retire", Group: job.Group, Generation: rapid.IntRange(0, 3).Draw(t, "retired"),
						UniqueKey: "retire:" + job.ID, DueAt: c.now.Add(time.Hour)}},
				})
				if job.State == jobstore.Running {
					ok(err)
				} else if !errors.Is(err, jobstore.ErrNotRunning) {
					t.Fatalf("advanced a job that is %s: %v", job.State, err)
				}
			},
			"finish": func(t *rapid.T) {
				id := takeRunning(t)
				state := rapid.SampledFrom([]string{jobstore.Completed, jobstore.Discarded}).Draw(t, "state")
				job, err := s.Job(ctx, id)
				ok(err)
				ok(s.Finish(ctx, id, state, "", jobstore.Change{Events: []jobstore.Event{event(job.Group, id)}}))
				ended[id] = state
			},
			"retry": func(t *rapid.T) {
				r := jobstore.Retry{NextAttempt: c.now.Add(time.Minute)}
				if rapid.Bool().Draw(t, "person") {
					r = jobstore.Retry{WaitingFor: "pin"}
				}
				ok(s.Retry(ctx, takeRunning(t), r, jobstore.Change{}))
			},
			"release": func(t *rapid.T) { ok(s.Release(ctx, takeRunning(t))) },
			"cancel": func(t *rapid.T) {
				job := anyOpen(t)
				switch err := s.Cancel(ctx, job.ID); {
				case err == nil:
					ended[job.ID] = jobstore.Cancelled
				case job.State == jobstore.Running && errors.Is(err, jobstore.ErrRunning):
				case !errors.Is(err, jobstore.ErrActivated):
					t.Fatal(err)
				}
			},
			"wake": func(t *rapid.T) {
				_, err := s.Wake(ctx, jobstore.WakeFilter{Groups: []string{group.Draw(t, "group")}})
				ok(err)
			},
			"resnapshot": func(t *rapid.T) {
				_, err := s.Resnapshot(ctx, group.Draw(t, "group"), []byte(fmt.Sprint(c.now.UnixMilli())), "main")
				ok(err)
			},
			"send": func(t *rapid.T) {
				events, err := s.PendingEvents(ctx, c.now, 10)
				ok(err)
				for _, e := range events {
					switch rapid.IntRange(0, 3).Draw(t, "answer") {
					case 0:
						ok(s.Failed(ctx, e.ID, c.now.Add(time.Minute), "throttled"))
						return
					case 1:
						ok(s.Park(ctx, e.ID, "malformed"))
					default:
						ok(s.Sent(ctx, e.ID, "aws", c.now))
					}
				}
			},
			"time": func(t *rapid.T) {
				c.advance(time.Duration(rapid.IntRange(-2, 5).Draw(t, "minutes")) * time.Minute)
			},
			"restart": func(t *rapid.T) {
				ok(s.Close())
				s = openStore()
				n, err := s.Rescue(ctx)
				ok(err)
				if n != len(running) {
					t.Fatalf("rescued %d jobs, %d were running", n, len(running))
				}
				running = nil
			},
			"": func(t *rapid.T) {
				var rotations, both, gaps, orphans int
				ok(s.Reader().QueryRow(`SELECT
					(SELECT count(*) FROM (SELECT 1 FROM jobs WHERE kind = 'rotate' AND state IN ('available', 'running', 'retryable') GROUP BY grp HAVING count(*) > 1)),
					(SELECT count(*) FROM (SELECT 1 FROM jobs WHERE state = 'running' GROUP BY grp HAVING count(*) > 1)),
					(SELECT count(*) FROM (SELECT grp FROM outbox GROUP BY grp HAVING max(sequence) <> count(*) OR min(sequence) <> 1)),
					(SELECT count(*) FROM triggers WHERE job_id IS NULL)`).Scan(&rotations, &both, &gaps, &orphans))
				if rotations+both+gaps+orphans > 0 {
					t.Fatalf("%d groups with two open rotations, %d with two running jobs, %d with gaps, %d lost triggers", rotations, both, gaps, orphans)
				}
				checkSequences(t, s)
				jobs, err := s.Jobs(ctx, jobstore.JobFilter{})
				ok(err)
				states := map[string]string{}
				for _, job := range jobs {
					states[job.ID] = job.State
				}
				for id, state := range ended {
					if states[id] != state {
						t.Fatalf("job %s is %s, ended as %s", id, states[id], state)
					}
				}
				for _, id := range running {
					if states[id] != jobstore.Running {
						t.Fatalf("job %s is %s, not running", id, states[id])
					}
				}
				rows, err := s.Reader().Query(`SELECT grp, unique_key, job_id FROM triggers`)
				ok(err)
				defer rows.Close()
				found := map[ask]string{}
				for rows.Next() {
					var a ask
					var id string
					ok(rows.Scan(&a.group, &a.key, &id))
					found[a] = id
				}
				for a, id := range asked {
					if found[a] != id || states[id] == "" {
						t.Fatalf("%v led to job %q, was %s", a, found[a], id)
					}
				}
				for g, tick := range lastTick {
					group, err := s.Group(ctx, g)
					ok(err)
					if !group.LastTick.Equal(tick) {
						t.Fatalf("last tick of %s is %v, want %v", g, group.LastTick, tick)
					}
				}
			},
		})
	})
}
