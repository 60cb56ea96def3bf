package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"byokd/daemon/control"

	"github.com/spf13/cobra"
)

const (
	// maxFollowed is how many jobs are followed step by step. Of more than that
	// the states are asked for, every pollPause.
	maxFollowed = 32
	pollPause   = time.Second

	// maxSteps is how many jobs are shown step by step; of more than that, their
	// ends and what goes wrong.
	maxSteps = 8

	// redraw is how often a terminal's last line is drawn anew.
	redraw = time.Second

	// enough is how many jobs must have finished for their pace to count.
	enough = 10
)

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
		p := newProgress(newScreen(out), len(jobs))
		if len(jobs) > 1 {
			p.quota(quotas(ctx, client, jobs))
		}
		ids := make([]string, len(jobs))
		for i, j := range jobs {
			ids[i] = j.ID
		}
		stop := p.run()
		finished, err := t.wait(ctx, client, ids, p.show)
		stop()
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
	follow := t.follow
	if len(ids) > maxFollowed {
		follow = t.poll
	}
	jobs, cause := follow(ctx, client, ids, show)
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
		return nil, t.unfinished(cause, open)
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

// follow watches jobs until all are final, or returns why not.
func (t *tool) follow(ctx context.Context, client *control.Client, ids []string, show func(control.Job) error) ([]control.Job, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex // for show
		jobs = make([]control.Job, len(ids))
	)
	for i, id := range ids {
		wg.Go(func() {
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
	return jobs, context.Cause(ctx)
}

// poll asks for the states of jobs until all are final, or returns why not.
func (t *tool) poll(ctx context.Context, client *control.Client, ids []string, show func(control.Job) error) ([]control.Job, error) {
	jobs := make([]control.Job, len(ids))
	for {
		unfinished, err := client.Jobs(ctx, control.JobFilter{State: control.JobOpen})
		if err != nil {
			return jobs, err
		}
		open := make(map[string]control.JobSummary)
		for _, j := range unfinished {
			open[j.ID] = j
		}
		all := true
		for i, id := range ids {
			if jobs[i].Final() {
				continue
			}
			now, ok := open[id]
			if !ok {
				// It has ended, unless it changed its state while they were listed.
				if jobs[i], err = client.Job(ctx, id); err != nil {
					return jobs, err
				}
			} else if was := jobs[i]; was.State == now.State && was.Attempt == now.Attempt && was.WaitingFor == now.WaitingFor {
				all = false
				continue
			} else {
				jobs[i].JobSummary = now
			}
			all = all && jobs[i].Final()
			if err := show(jobs[i]); err != nil {
				return jobs, err
			}
		}
		if all {
			return jobs, nil
		}
		select {
		case <-ctx.Done():
			return jobs, context.Cause(ctx)
		case <-time.After(pollPause):
		}
	}
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

// quotas returns the account and Region of each job, how many of them a second AWS
// lets through anywhere, and where byokd has found it to be fewer; 0 where that
// cannot be told. It only serves an
// estimate, so what cannot be asked for is left out.
func quotas(ctx context.Context, client *control.Client, jobs []control.Job) (places map[string]string, perSecond float64, learned map[string]float64) {
	daemon, err := client.Daemon(ctx)
	if err != nil {
		return nil, 0, nil
	}
	groups, err := client.Status(ctx)
	if err != nil {
		return nil, 0, nil
	}
	place := make(map[string]string)
	for _, g := range groups {
		place[g.Group] = string(g.Account) + " " + string(g.Region)
	}
	places = make(map[string]string)
	for _, j := range jobs {
		places[j.ID] = place[j.Group]
	}
	learned = make(map[string]float64)
	for _, u := range daemon.Quotas.Used {
		if u.Operation == "kms:GetParametersForImport" {
			learned[string(u.Account)+" "+u.Region] = u.PerSecond
		}
	}
	return places, daemon.Quotas.GetParametersForImport, learned
}

// A progress prints what happens to jobs, a line each. On a terminal a last line,
// which does not stay, shows how far they are.
type progress struct {
	screen
	now   func() time.Time
	begun time.Time
	total int

	places    map[string]string  // account and Region, by job
	perSecond float64            // jobs that AWS lets through at a place; 0: not known
	learned   map[string]float64 // the same, by place, where byokd knows better

	mu    sync.Mutex
	shown map[string]bool        // lines that were printed, by what they tell of
	jobs  map[string]control.Job // as last seen
	drawn bool                   // the last line is on the screen
}

func newProgress(s screen, total int) *progress {
	p := &progress{screen: s, now: time.Now, total: total, shown: make(map[string]bool), jobs: make(map[string]control.Job)}
	p.begun = p.now()
	return p
}

// quota says how fast AWS lets jobs through.
func (p *progress) quota(places map[string]string, perSecond float64, learned map[string]float64) {
	p.places, p.perSecond, p.learned = places, perSecond, learned
}

// run redraws the last line of a terminal until it is stopped, which leaves that
// line behind where jobs go on.
func (p *progress) run() (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(redraw)
		defer ticker.Stop()
		for p.live {
			select {
			case <-done:
				return
			case <-ticker.C:
				p.mu.Lock()
				_, _ = io.WriteString(p, p.erase()+p.last())
				p.mu.Unlock()
			}
		}
	}()
	return func() {
		close(done)
		<-ended
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.drawn {
			fmt.Fprintln(p)
		}
	}
}

// show prints what is new about a job.
func (p *progress) show(j control.Job) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var b strings.Builder
	b.WriteString(p.erase())
	line := func(at control.Time, what, state string, took time.Duration, message string) {
		key := fmt.Sprint(j.ID, at, what, state, message)
		if p.shown[key] {
			return
		}
		p.shown[key] = true
		if at.IsZero() {
			at = control.At(p.now())
		}
		message = oneLine(message)
		if took >= time.Second {
			message = strings.TrimSpace(fmt.Sprintf("%s (%s)", message, took))
		}
		fmt.Fprintln(&b, strings.TrimRight(fmt.Sprintf("%s  %s  %-10s %s%s  %s", at, j.Group, what,
			p.paint(stateColor(state), state), strings.Repeat(" ", max(0, 9-columns(state))), message), " "))
	}
	p.jobs[j.ID] = j
	if p.total <= maxSteps {
		for _, s := range j.Steps {
			switch s.State {
			case control.StepDone, control.StepSkipped, control.StepFailed:
				var took time.Duration
				if !s.StartedAt.IsZero() {
					took = s.FinishedAt.Sub(s.StartedAt.Time)
				}
				line(s.FinishedAt, s.Name, s.State, took, string(s.Message))
			}
		}
	}
	switch {
	case j.State == control.JobRetryable:
		line(control.Time{}, j.Kind, j.State, 0, outlook(j.JobSummary))
	case j.Final() && (j.State != control.JobCompleted || p.total <= maxSteps || !p.live):
		// On a terminal the bar counts the good ones of many.
		line(j.FinishedAt, j.Kind, j.State, 0, outlook(j.JobSummary))
	}
	b.WriteString(p.last())
	_, err := io.WriteString(p, b.String())
	return err
}

// erase takes the last line away.
func (p *progress) erase() string {
	if !p.live {
		return ""
	}
	p.drawn = false
	return "\r\033[K"
}

// last is the line that does not stay: what a job does, or how many have finished.
func (p *progress) last() string {
	if !p.live || len(p.jobs) == 0 {
		return ""
	}
	var finished, bad, running, waiting, parked int
	var one control.Job
	for _, j := range p.jobs {
		one = j
		switch {
		case j.State == control.JobCompleted:
			finished++
		case j.Final():
			finished++
			bad++
		case j.State == control.JobRunning:
			running++
		case j.WaitingFor != "":
			parked++
		case j.State == control.JobRetryable:
			waiting++
		}
	}
	if finished == p.total {
		return ""
	}
	p.drawn = true
	if p.total == 1 {
		return p.cut(one.Group+": "+p.doing(one), p.width-1)
	}
	var parts []string
	part := func(n int, what string, c color) {
		if n > 0 {
			parts = append(parts, p.paint(c, fmt.Sprintf("%d %s", n, what)))
		}
	}
	parts = append(parts, fmt.Sprintf("%d of %d", finished, p.total))
	part(bad, "failed", red)
	part(running, "running", cyan)
	part(waiting, "tried again later", yellow)
	part(parked, "wait for a person", yellow)
	if left := p.left(finished); left > 0 {
		parts = append(parts, "about "+left.String()+" left")
	}
	text := strings.Join(parts, ", ")
	plain := screen{width: p.width}
	room := min(40, p.width-columns(text)-4)
	if room < 10 {
		return plain.cut(plainText(text), p.width-1)
	}
	full, empty := "#", "-"
	if p.fancy {
		full, empty = "█", "░"
	}
	n := room * finished / p.total
	return p.paint(green, strings.Repeat(full, n)) + p.paint(dim, strings.Repeat(empty, room-n)) + "  " + text
}

// doing says what one job does.
func (p *progress) doing(j control.Job) string {
	switch j.State {
	case control.JobRetryable:
		return "waiting to go on …"
	case control.JobAvailable:
		return "waiting to start …"
	}
	for i, s := range j.Steps {
		if s.State != control.StepRunning {
			continue
		}
		text := fmt.Sprintf("%s … (step %d of %d", s.Name, i+1, len(j.Steps))
		if took := p.now().Sub(s.StartedAt.Time).Truncate(time.Second); !s.StartedAt.IsZero() && took >= time.Second {
			text += ", " + took.String()
		}
		return text + ")"
	}
	return "running …"
}

// left estimates how long the jobs that are not finished will take: what AWS's
// quota lets through where the most of them are, and no faster than so far. A job
// that waits for a person is not counted; 0: not known.
func (p *progress) left(finished int) time.Duration {
	var open int
	at := make(map[string]int)
	for id, place := range p.places {
		if j := p.jobs[id]; !j.Final() && j.WaitingFor == "" {
			open++
			at[place]++
		}
	}
	var seconds float64
	for place, n := range at {
		if rate := cmp.Or(p.learned[place], p.perSecond); rate > 0 {
			seconds = max(seconds, float64(n)/rate)
		}
	}
	if finished >= enough {
		seconds = max(seconds, p.now().Sub(p.begun).Seconds()/float64(finished)*float64(open))
	}
	return time.Duration(seconds * float64(time.Second)).Round(time.Second)
}
