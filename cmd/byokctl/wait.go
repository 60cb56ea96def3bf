package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"byokd/daemon/control"

	"github.com/spf13/cobra"
)

// maxFollowed is how many jobs are followed at once. The rest wait for their
// turn, which costs their steps' being shown late and nothing else.
const maxFollowed = 32

func waitFlag(c *cobra.Command, wait *bool) {
	c.Flags().BoolVar(wait, "wait", false, "show the steps as they happen and exit with the job's result; Ctrl-C leaves the job running")
}

// finish prints the jobs that a command has asked for: their IDs, or with
// --json themselves, alone or as an array. With wait it follows them first.
func (t *tool) finish(ctx context.Context, client *control.Client, jobs []control.Job, wait, alone bool) error {
	for _, j := range jobs {
		if j.Joined {
			fmt.Fprintf(t.stderr, "byokctl: job %s of %s was open already: joined it\n", j.ID, j.Group)
		}
	}
	var result error
	if wait {
		out := t.out
		if t.json {
			out = t.stderr
		}
		p := newProgress(out)
		ids := make([]string, len(jobs))
		for i, j := range jobs {
			ids[i] = j.ID
		}
		finished, err := t.wait(ctx, client, ids, p.show)
		p.end()
		if finished == nil {
			return err
		}
		result = err
		for i := range finished {
			finished[i].Joined = jobs[i].Joined // known to the answer alone
		}
		jobs = finished
	}
	var err error
	switch {
	case t.json && alone && len(jobs) == 1:
		err = t.printJSON(jobs[0])
	case t.json:
		err = t.printJSON(control.List[control.Job](jobs))
	case !wait:
		for _, j := range jobs {
			fmt.Fprintln(t.out, j.ID)
		}
	}
	return cmp.Or(err, result)
}

// wait follows the jobs until all are final, giving every change to show, one
// at a time. It returns them in the order of ids, and an error unless all are
// completed; no jobs when it could not see the end.
func (t *tool) wait(ctx context.Context, client *control.Client, ids []string, show func(control.Job) error) ([]control.Job, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		wg   sync.WaitGroup
		turn = make(chan struct{}, maxFollowed)
		mu   sync.Mutex // for show
		jobs = make([]control.Job, len(ids))
	)
	for i, id := range ids {
		wg.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			err := client.Watch(ctx, id, func(j control.Job) error {
				mu.Lock()
				defer mu.Unlock()
				jobs[i] = j
				return show(j)
			})
			if err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	var open, bad []string
	for i, j := range jobs {
		switch {
		case !j.Final():
			open = append(open, ids[i])
		case j.State != control.JobCompleted:
			bad = append(bad, j.ID)
		}
	}
	if len(open) > 0 {
		return nil, t.unfinished(context.Cause(ctx), open)
	}
	if len(bad) > 0 {
		err := failed("%d of %d jobs did not complete", len(bad), len(jobs))
		if len(jobs) == 1 {
			err = failed("job %s was %s", bad[0], jobs[0].State)
		}
		return jobs, err.hint("byokctl job %s", bad[0])
	}
	return jobs, nil
}

// unfinished explains why jobs are not followed to their end.
func (t *tool) unfinished(cause error, open []string) error {
	again := "byokctl job " + open[0] + " --follow"
	switch {
	case errors.Is(cause, context.Canceled):
		what := "job " + open[0] + " goes"
		if len(open) > 1 {
			what = fmt.Sprintf("%d jobs go", len(open))
			again = "byokctl jobs"
		}
		return failed("interrupted; %s on in byokd", what).hint("%s", again)
	case errors.Is(cause, control.ErrUnreachable):
		f := &failure{status: exitUnreachable, err: fmt.Errorf("%w; what has begun goes on once byokd is back", cause)}
		return f.hint("%s, then %s", t.unreachable(cause), again)
	}
	return cause
}

// A progress prints the steps of jobs as they happen, a line each. On a
// terminal a last line, which does not stay, shows what runs now.
type progress struct {
	w       io.Writer
	live    bool
	shown   map[string]bool   // lines that were printed, by what they tell of
	running map[string]string // step that runs, by job
	jobs    map[string]bool   // finished, by job
}

func newProgress(w io.Writer) *progress {
	return &progress{
		w:       w,
		live:    terminal(w),
		shown:   make(map[string]bool),
		running: make(map[string]string),
		jobs:    make(map[string]bool),
	}
}

// show prints what is new about a job.
func (p *progress) show(j control.Job) error {
	var b strings.Builder
	if p.live {
		b.WriteString("\r\033[K") // erase the last line
	}
	line := func(at control.Time, what, state, message string) {
		key := fmt.Sprint(j.ID, at, what, state, message)
		if p.shown[key] {
			return
		}
		p.shown[key] = true
		if at.IsZero() {
			at = control.At(time.Now())
		}
		fmt.Fprintln(&b, strings.TrimRight(fmt.Sprintf("%s  %s  %-10s %-9s  %s", at, j.Group, what, state, oneLine(message)), " "))
	}
	p.running[j.ID] = "waiting to start"
	for _, s := range j.Steps {
		switch s.State {
		case control.StepRunning:
			p.running[j.ID] = s.Name
		case control.StepDone, control.StepSkipped, control.StepFailed:
			line(s.FinishedAt, s.Name, s.State, string(s.Message))
		}
	}
	if j.State == control.JobRetryable {
		p.running[j.ID] = "waiting to go on"
		line(control.Time{}, j.Kind, j.State, outlook(j.JobSummary))
	}
	p.jobs[j.ID] = j.Final()
	if j.Final() {
		delete(p.running, j.ID)
		line(j.FinishedAt, j.Kind, j.State, outlook(j.JobSummary))
	}
	if p.live && len(p.running) > 0 {
		b.WriteString(p.last(j))
	}
	_, err := io.WriteString(p.w, b.String())
	return err
}

// end leaves the last line behind, where jobs go on.
func (p *progress) end() {
	if p.live && len(p.running) > 0 {
		fmt.Fprintln(p.w)
	}
}

// last is the line that does not stay.
func (p *progress) last(j control.Job) string {
	if len(p.jobs) == 1 {
		return j.Group + ": " + p.running[j.ID] + " …"
	}
	finished := len(slices.DeleteFunc(slices.Collect(maps.Values(p.jobs)), func(f bool) bool { return !f }))
	return fmt.Sprintf("%d of %d finished …", finished, len(p.jobs))
}
