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
	dir, err := os.MkdirTemp("", "byokctl")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l, err := control.Listen(filepath.Join(dir, "s"), "byokd")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() {
		served <- (&control.Server{Backend: f, Log: slog.New(slog.DiscardHandler)}).Serve(ctx, l)
	}()
	client := control.NewClient(filepath.Join(dir, "s"))
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
	client.Close()
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// TestLive: on a terminal a last line shows what runs, and goes when there is
// something new.
func TestLive(t *testing.T) {
	at := control.At(time.Date(2026, 11, 23, 18, 0, 0, 0, time.UTC))
	var b bytes.Buffer
	p := newProgress(&b)
	if p.live {
		t.Fatal("a buffer is no terminal")
	}
	p.live = true
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
	one.Steps = []control.Step{{Name: "generate", State: control.StepRunning}, {Name: "create", State: control.StepPending}}
	show(one, erase+"a: generate …")
	one.Steps[0].State, one.Steps[0].FinishedAt = control.StepDone, at
	one.Steps[1].State = control.StepRunning
	show(one, erase+"2026-11-23T18:00:00Z  a  generate   done\na: create …")
	show(one, erase+"a: create …") // nothing new
	two := control.Job{JobSummary: control.JobSummary{ID: "2", Group: "b", Kind: "rotate", State: control.JobRunning}}
	show(two, erase+"0 of 2 finished …")
	b.Reset()
	if p.end(); b.String() != "\n" {
		t.Errorf("interrupted: %q", &b)
	}
	one.State, one.FinishedAt = control.JobCompleted, at
	show(one, erase+"2026-11-23T18:00:00Z  a  rotate     completed\n1 of 2 finished …")
	two.State, two.FinishedAt, two.Error = control.JobDiscarded, at, "no\nluck"
	show(two, erase+"2026-11-23T18:00:00Z  b  rotate     discarded  no luck\n")
	b.Reset()
	if p.end(); b.Len() > 0 {
		t.Errorf("at the end: %q", &b)
	}
}
