package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"byokd/daemon/control"

	"github.com/google/go-cmp/cmp"
)

// TestWaitEnds: the exit status when --wait does not see the end of its jobs,
// which testscript cannot tell of a program in the background.
func TestWaitEnds(t *testing.T) {
	const id = "019aa000-0000-7000-8000-000000000001"
	tests := []struct {
		name   string
		end    func(interrupt, stop func())
		status int
		stderr string
	}{
		{"interrupted", func(interrupt, stop func()) { interrupt() }, exitFailed, "byokctl: interrupted; job " + id + " goes on in byokd\n"},
		{"daemon gone", func(interrupt, stop func()) { stop() }, exitUnreachable, "byokctl: byokd cannot be reached: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, err := newFake([]byte(`{"Groups": [{"group": "a"}], "Jobs": [{"id": "` + id + `", "group": "a", "state": "running"}]}`))
			if err != nil {
				t.Fatal(err)
			}
			dir, err := os.MkdirTemp("", "byokctl") // short enough for a socket's name
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			path := filepath.Join(dir, "s")
			l, err := control.Listen(path, "byokd")
			if err != nil {
				t.Fatal(err)
			}
			serving, stop := context.WithCancel(t.Context())
			served := make(chan error, 1)
			go func() {
				served <- (&control.Server{Backend: f, Log: slog.New(slog.DiscardHandler)}).Serve(serving, l)
			}()
			running, interrupt := context.WithCancel(t.Context())
			go func() {
				<-f.watched[id]
				tt.end(interrupt, stop)
			}()
			var out, stderr bytes.Buffer
			status := run(running, []string{"--socket", path, "rotate", "a", "--wait", "--json"}, strings.NewReader(""), &out, &stderr)
			if status != tt.status || !strings.Contains(stderr.String(), tt.stderr) || out.Len() > 0 {
				t.Errorf("status %d, want %d\nstdout: %s\nstderr: %s\nwant    %s", status, tt.status, &out, &stderr, tt.stderr)
			}
			interrupt()
			stop()
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestManyJobs: more jobs than are followed at once.
func TestManyJobs(t *testing.T) {
	const n = 3 * maxFollowed
	f, err := newFake([]byte(`{}`))
	if err != nil {
		t.Fatal(err)
	}
	ids := make([]string, n)
	for i := range n {
		ids[i] = fmt.Sprintf("%d", i)
		f.scenario.Jobs = append(f.scenario.Jobs, control.Job{JobSummary: control.JobSummary{ID: ids[i], State: control.JobCompleted}})
	}
	client := serveFake(t, f)
	shown := 0
	jobs, err := new(tool).wait(t.Context(), client, ids, func(control.Job) error { shown++; return nil })
	if err != nil || shown != n {
		t.Errorf("%d changes shown, want %d; %v", shown, n, err)
	}
	for i, j := range jobs {
		if j.ID != ids[i] {
			t.Fatalf("job %d is %s, want %s", i, j.ID, ids[i])
		}
	}
}

// progressOn is a progress on a terminal of that width, and what it has printed.
func progressOn(total, width int) (*progress, *bytes.Buffer) {
	var b bytes.Buffer
	p := newProgress(screen{Writer: &b, live: true, width: width, height: 24}, total)
	at := time.Date(2026, 11, 23, 18, 0, 10, 0, time.UTC)
	p.now = func() time.Time { return at }
	p.begun = at
	return p, &b
}

// TestLive: on a terminal a last line shows what runs, and goes when there is
// something new.
func TestLive(t *testing.T) {
	at := control.At(time.Date(2026, 11, 23, 18, 0, 0, 0, time.UTC))
	p, b := progressOn(1, 80)
	one := control.Job{JobSummary: control.JobSummary{ID: "1", Group: "a", Kind: "rotate", State: control.JobAvailable}}
	show := func(j control.Job, want string) {
		t.Helper()
		b.Reset()
		if err := p.show(j); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, b.String()); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	}
	const erase = "\r\033[K"
	show(one, erase+"a: waiting to start …")
	one.State = control.JobRunning
	one.Steps = []control.Step{{Name: "generate", State: control.StepRunning, StartedAt: at}, {Name: "create", State: control.StepPending}}
	show(one, erase+"a: generate … (step 1 of 2, 10s)")
	one.Steps[0].State, one.Steps[0].FinishedAt = control.StepDone, control.At(at.Add(3*time.Second))
	one.Steps[1].State = control.StepRunning
	show(one, erase+"2026-11-23T18:00:03Z  a  generate   done       (3s)\na: create … (step 2 of 2)")
	show(one, erase+"a: create … (step 2 of 2)") // nothing new
	b.Reset()
	if p.run()(); b.String() != "\n" {
		t.Errorf("interrupted: %q", b)
	}
	one.State, one.Error, one.NextAttempt = control.JobRetryable, "throttled", control.At(at.Add(time.Minute))
	show(one, erase+"2026-11-23T18:00:10Z  a  rotate     retryable  next attempt 2026-11-23T18:01:00Z; throttled\na: waiting to go on …")
	one.State, one.FinishedAt, one.Error = control.JobDiscarded, at, "no\nluck\033[2J"
	show(one, erase+"2026-11-23T18:00:00Z  a  rotate     discarded  no luck?[2J\n")
	b.Reset()
	if p.run()(); b.Len() > 0 {
		t.Errorf("at the end: %q", b)
	}
}

// TestBar: many jobs are a bar with an estimate; only what goes wrong is a line.
func TestBar(t *testing.T) {
	p, b := progressOn(100, 80)
	places := make(map[string]string)
	jobs := make([]control.Job, 100)
	for i := range jobs {
		jobs[i] = control.Job{JobSummary: control.JobSummary{ID: fmt.Sprint(i), Group: fmt.Sprintf("g%d", i), Kind: "rotate", State: control.JobAvailable}}
		places[jobs[i].ID] = "111122223333 eu-central-1"
		if i < 10 {
			places[jobs[i].ID] = "111122223333 eu-west-1"
		}
	}
	p.quota(places, 0.5, nil)
	last := func(want string) {
		t.Helper()
		_, got, _ := strings.Cut(b.String(), "\r\033[K")
		if got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
		b.Reset()
	}
	show := func(j *control.Job, state string) {
		t.Helper()
		j.State = state
		b.Reset()
		if err := p.show(*j); err != nil {
			t.Fatal(err)
		}
	}
	for i := range jobs {
		show(&jobs[i], control.JobAvailable)
	}
	// 90 of one place at one in two seconds.
	last(strings.Repeat("-", 40) + "  0 of 100, about 3m0s left")
	for i := 10; i < 50; i++ {
		show(&jobs[i], control.JobCompleted)
	}
	last(strings.Repeat("#", 16) + strings.Repeat("-", 24) + "  40 of 100, about 1m40s left")
	// Slower than the quota allows: 40 in 200 s.
	p.begun = p.begun.Add(-200 * time.Second)
	show(&jobs[50], control.JobRunning)
	last(strings.Repeat("#", 15) + strings.Repeat("-", 24) + "  40 of 100, 1 running, about 5m0s left")
	jobs[51].WaitingFor, jobs[51].Error = "permission", "AccessDenied"
	show(&jobs[51], control.JobRetryable)
	last("2026-11-23T18:00:10Z  g51  rotate     retryable  waits for a person: permission; AccessDenied\n" +
		strings.Repeat("#", 6) + strings.Repeat("-", 11) + "  40 of 100, 1 running, 1 wait for a person, about 4m55s left")
	jobs[52].Error, jobs[52].FinishedAt = "it broke", control.At(p.now())
	show(&jobs[52], control.JobDiscarded)
	last("2026-11-23T18:00:10Z  g52  rotate     discarded  it broke\n" +
		"41 of 100, 1 failed, 1 running, 1 wait for a person, about 4m43s left")
	jobs[51].WaitingFor = ""
	for i := range jobs {
		if i != 52 {
			show(&jobs[i], control.JobCompleted)
		}
	}
	last("") // all have finished

	// Without a terminal each end is a line, and there is no bar.
	var plain bytes.Buffer
	p = newProgress(screen{Writer: &plain, width: 80}, 100)
	for i := range jobs[:2] {
		jobs[i].Steps = []control.Step{{Name: "generate", State: control.StepDone}}
		if err := p.show(jobs[i]); err != nil {
			t.Fatal(err)
		}
	}
	p.run()()
	if got := strings.Count(plain.String(), "rotate     completed\n"); got != 2 || strings.Count(plain.String(), "\n") != 2 {
		t.Errorf("plain: %q", &plain)
	}
}

// TestPollManyOpen: of many jobs the states are asked for until all have finished;
// the estimate's quotas come from the daemon.
func TestPollManyOpen(t *testing.T) {
	f, err := newFake([]byte(`{"Groups": [{"group": "a", "account": "1", "region": "r"}], "Daemon": {"quotas": {"get_parameters_for_import": 2, "used": [{"account": "1", "region": "r", "operation": "kms:GetParametersForImport", "per_second": 0.7}]}}}`))
	if err != nil {
		t.Fatal(err)
	}
	const n = maxFollowed + 1
	ids := make([]string, n)
	for i := range n {
		ids[i] = fmt.Sprint(i)
		f.scenario.Jobs = append(f.scenario.Jobs, control.Job{JobSummary: control.JobSummary{ID: ids[i], Group: "a", State: control.JobCompleted}})
	}
	f.scenario.Jobs[7].State = control.JobRunning
	client := serveFake(t, f)
	seen := make(map[string]int)
	jobs, err := new(tool).wait(t.Context(), client, ids, func(j control.Job) error {
		seen[j.State]++
		if j.State == control.JobRunning {
			f.mu.Lock()
			f.scenario.Jobs[7].State = control.JobDiscarded
			f.mu.Unlock()
		}
		return nil
	})
	if err == nil || err.Error() != "1 of 33 jobs did not complete" || len(jobs) != n {
		t.Errorf("%d jobs, %v", len(jobs), err)
	}
	if seen[control.JobRunning] != 1 || seen[control.JobCompleted] != n-1 || seen[control.JobDiscarded] != 1 {
		t.Errorf("seen: %v", seen)
	}
	places, perSecond, learned := quotas(t.Context(), client, jobs)
	if perSecond != 2 || places["7"] != "1 r" || learned["1 r"] != 0.7 {
		t.Errorf("quotas: %v, %v, %v", places, perSecond, learned)
	}
}

// serveFake serves a fake until the test ends and returns a client of it.
func serveFake(t *testing.T, f *fake) *control.Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "byokctl") // short enough for a socket's name
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := control.Listen(filepath.Join(dir, "s"), "byokd")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() {
		served <- (&control.Server{Backend: f, Log: slog.New(slog.DiscardHandler)}).Serve(ctx, l)
	}()
	client := control.NewClient(filepath.Join(dir, "s"))
	t.Cleanup(func() {
		client.Close()
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return client
}
