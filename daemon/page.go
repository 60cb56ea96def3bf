package daemon

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"byokd/daemon/control"
)

const (
	// What the page lists unless all is asked for.
	pageGroups    = 200
	pageHealthy   = 50 // healthy groups; more are counted
	pageTimelines = 20
	pageJobs      = 20 // finished ones
	pageOpen      = 50 // those that have not finished; more are counted
	pageEvents    = 20

	// pageTicks is how many dates the axis of a timeline has room for on a phone.
	pageTicks = 4

	// leastBar is how wide a bar is at least that tells what a key is now: what has
	// begun a minute ago is seen on an axis of months. It begins before now, where the
	// axis has some room.
	leastBar percent = 0.8

	// pageAtOnce is how many requests are answered at the same time: each reads
	// the state of all groups.
	pageAtOnce = 2
)

//go:embed page
var pageFiles embed.FS

var pageTemplates = template.Must(template.New("").Funcs(template.FuncMap{
	"minute": func(t control.Time) string {
		if t.IsZero() {
			return "–"
		}
		return t.Minute()
	},
	"away":  away,
	"short": func(s control.String) string { return string(s[:min(8, len(s))]) },
	"text":  func(s control.String) string { return string(s) },
	"number": func(n *int) string {
		if n == nil {
			return "–"
		}
		return strconv.Itoa(*n)
	},
	"tone": tone,
	"legend": func() []string {
		return []string{control.SegmentMade, control.SegmentActive, control.SegmentPrevious, control.SegmentDisabled}
	},
}).ParseFS(pageFiles, "page/*.tmpl"))

// A page is the read-only status page: HTML that needs no script, and the same
// as JSON. Nothing can be changed through it.
type page struct {
	d      *Daemon
	places chan struct{}
}

// serve answers on [page] listen until ctx ends.
func (p *page) serve(ctx context.Context) {
	p.d.listeners.serve(ctx, "page", p.d.cfg.Load().Page.Listen, onLoopback, p.handler())
}

// onLoopback refuses an address that the name localhost led to and that others
// can reach.
func onLoopback(addr net.Addr) error {
	if a, ok := addr.(*net.TCPAddr); ok && a.IP.IsLoopback() {
		return nil
	}
	return fmt.Errorf("%s is not a loopback address", addr)
}

// handler is the whole page with what stands before it.
func (p *page) handler() http.Handler {
	mux := http.NewServeMux()
	html := func(path string, f func(*http.Request) (string, any, error)) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) { p.html(w, r, f) })
	}
	data := func(path string, f func(*http.Request) (any, error)) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) { p.json(w, r, f) })
	}
	html("/{$}", p.overview)
	html("/groups/{group}", p.group)
	data("/status.json", func(r *http.Request) (any, error) {
		groups, err := p.d.Status(r.Context(), nil)
		control.SortWorstFirst(groups)
		return control.List[control.GroupStatus](groups), err
	})
	data("/timeline.json", func(r *http.Request) (any, error) {
		timelines, err := p.d.Timeline(r.Context(), nil)
		control.SortTimelines(timelines)
		return control.List[control.Timeline](timelines), err
	})
	data("/jobs.json", func(r *http.Request) (any, error) {
		jobs, err := p.jobs(r.Context(), "")
		return control.List[control.JobSummary](jobs), err
	})
	data("/events.json", func(r *http.Request) (any, error) {
		events, err := p.events(r.Context(), "")
		return control.List[control.Event](events), err
	})
	data("/daemon.json", func(r *http.Request) (any, error) { return p.d.Daemon(r.Context()) })
	data("/groups/{group}/keys.json", func(r *http.Request) (any, error) {
		keys, err := p.d.Keys(r.Context(), r.PathValue("group"))
		return control.List[control.Key](keys), err
	})
	for _, name := range []string{"style.css", "icon.svg"} {
		mux.HandleFunc("/"+name, func(w http.ResponseWriter, r *http.Request) {
			http.ServeFileFS(w, r, pageFiles, "page/"+name)
		})
	}
	return p.guard(mux)
}

// guard lets through what may be asked for, by whom it may be, and tells the
// browser to load and run nothing but what is served here.
func (p *page) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Permissions-Policy", "interest-cohort=()")
		h.Set("Cache-Control", "no-store")
		switch {
		case !loopbackHost(r.Host):
			// A name that somebody's server resolves to this machine (DNS rebinding)
			// would let that somebody's page read this one.
			http.Error(w, "This page is for this machine alone: ask for it as http://127.0.0.1:PORT/ or http://localhost:PORT/, also through an SSH tunnel.", http.StatusForbidden)
			return
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			h.Set("Allow", "GET, HEAD")
			http.Error(w, "This page can only be read; what changes something is byokctl's.", http.StatusMethodNotAllowed)
			return
		}
		select {
		case p.places <- struct{}{}:
			defer func() { <-p.places }()
			next.ServeHTTP(w, r)
		case <-r.Context().Done():
		}
	})
}

// loopbackHost reports whether a Host header names this machine by a loopback
// address or by localhost, whatever the port: a tunnel has one of its own.
func loopbackHost(host string) bool {
	if name, port, err := net.SplitHostPort(host); err == nil {
		if _, err := strconv.ParseUint(port, 10, 16); err != nil {
			return false
		}
		host = name
	} else {
		host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Zone() == "" && addr.Unmap().IsLoopback()
}

// pageStatus is the HTTP status that goes with an error.
func pageStatus(err error) int {
	if e, ok := errors.AsType[*control.Error](err); ok && e.Code == control.UnknownGroup {
		return http.StatusNotFound
	}
	return http.StatusInternalServerError
}

// html answers with the template and data that f returns.
func (p *page) html(w http.ResponseWriter, r *http.Request, f func(*http.Request) (string, any, error)) {
	name, data, err := f(r)
	var b bytes.Buffer
	if err == nil {
		err = pageTemplates.ExecuteTemplate(&b, name, data)
	}
	if err != nil {
		p.fail(r, err)
		http.Error(w, err.Error(), pageStatus(err))
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = b.WriteTo(w)
}

// json answers with what f returns.
func (p *page) json(w http.ResponseWriter, r *http.Request, f func(*http.Request) (any, error)) {
	v, err := f(r)
	if err != nil {
		p.fail(r, err)
		e, ok := errors.AsType[*control.Error](err)
		if !ok {
			e = &control.Error{Code: control.Internal, Message: err.Error()}
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(pageStatus(err))
		_ = json.NewEncoder(w).Encode(e)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

func (p *page) fail(r *http.Request, err error) {
	if pageStatus(err) == http.StatusInternalServerError && r.Context().Err() == nil {
		p.d.log.Error("the status page cannot be shown", "path", r.URL.Path, "err", err, "advice", "byokctl status may tell more")
	}
}

// jobs are those of a group, or of all for "", that have not finished, then the
// newest that have.
func (p *page) jobs(ctx context.Context, group string) ([]control.JobSummary, error) {
	open, err := p.d.Jobs(ctx, control.JobFilter{Group: group, State: control.JobOpen})
	if err != nil {
		return nil, err
	}
	newest, err := p.d.Jobs(ctx, control.JobFilter{Group: group, Limit: len(open) + pageJobs})
	if err != nil {
		return nil, err
	}
	finished := slices.DeleteFunc(newest, func(j control.JobSummary) bool { return !j.Final() })
	return append(open, finished[:min(len(finished), pageJobs)]...), nil
}

// events are those that wait or are parked, then the newest others.
func (p *page) events(ctx context.Context, group string) ([]control.Event, error) {
	var all []control.Event
	seen := make(map[string]bool)
	for _, state := range []string{control.EventParked, control.EventPending, ""} {
		events, err := p.d.Events(ctx, control.EventFilter{Group: group, State: state, Limit: pageEvents})
		if err != nil {
			return nil, err
		}
		for _, e := range events {
			if !seen[e.EventID] {
				seen[e.EventID] = true
				all = append(all, e)
			}
		}
	}
	return all[:min(len(all), 2*pageEvents)], nil
}

// What both pages show at their top and bottom.
type pageFrame struct {
	Title  string
	Now    control.Time
	Daemon control.DaemonStatus
	Notes  []string
}

func (p *page) frame(ctx context.Context, title string) (pageFrame, error) {
	daemon, err := p.d.Daemon(ctx)
	return pageFrame{Title: title, Now: control.At(p.d.Now()), Daemon: daemon, Notes: daemon.Notes()}, err
}

// A stateCount says how many groups are in a state.
type stateCount struct {
	State string
	Count int
}

func (p *page) overview(r *http.Request) (string, any, error) {
	ctx, all := r.Context(), r.URL.Query().Get("all") == "1"
	frame, err := p.frame(ctx, "byokd on "+p.d.host)
	if err != nil {
		return "", nil, err
	}
	timelines, err := p.d.Timeline(ctx, nil)
	if err != nil {
		return "", nil, err
	}
	groups, err := p.d.Status(ctx, nil)
	if err != nil {
		return "", nil, err
	}
	control.SortWorstFirst(groups)
	control.SortTimelines(timelines)
	common := control.FindCommon(groups)
	jobs, err := p.jobs(ctx, "")
	if err != nil {
		return "", nil, err
	}
	events, err := p.events(ctx, "")
	if err != nil {
		return "", nil, err
	}
	var counts []stateCount
	listed, healthy := 0, 0
	for i, g := range groups {
		if i == 0 || groups[i-1].State != g.State {
			counts = append(counts, stateCount{State: g.State})
		}
		counts[len(counts)-1].Count++
		if g.State == control.GroupOK && len(g.Problems) == 0 {
			healthy++
		} else {
			listed++
		}
	}
	total := len(groups)
	if healthy <= pageHealthy {
		listed = total
	}
	if listed = min(listed, pageGroups); all {
		listed = total
	}
	for i, g := range groups[:listed] {
		groups[i].Problems = common.Others(g)
	}
	open := slices.IndexFunc(jobs, control.JobSummary.Final)
	if open < 0 {
		open = len(jobs)
	}
	waiting := 0 // jobs that are not listed
	if !all && open > pageOpen {
		waiting = open - pageOpen
		jobs = slices.Delete(jobs, pageOpen, open)
	}
	drawn := len(timelines)
	if !all {
		drawn = min(drawn, pageTimelines)
	}
	return "overview.tmpl", struct {
		pageFrame
		Counts           []stateCount
		Common           control.CommonProblems
		Groups           []control.GroupStatus
		Total, NotListed int
		Chart            chart
		NotDrawn         int
		Jobs             []control.JobSummary
		MoreJobs         int
		Events           []control.Event
	}{frame, counts, common, groups[:listed], total, total - listed, newChart(timelines[:drawn], p.d.Now()), len(timelines) - drawn, jobs, waiting, events}, nil
}

func (p *page) group(r *http.Request) (string, any, error) {
	ctx, name := r.Context(), r.PathValue("group")
	groups, err := p.d.Status(ctx, []string{name})
	if err != nil {
		return "", nil, err
	}
	timelines, err := p.d.Timeline(ctx, []string{name})
	if err != nil {
		return "", nil, err
	}
	keys, err := p.d.Keys(ctx, name)
	if err != nil {
		return "", nil, err
	}
	jobs, err := p.jobs(ctx, name)
	if err != nil {
		return "", nil, err
	}
	events, err := p.events(ctx, name)
	if err != nil {
		return "", nil, err
	}
	frame, err := p.frame(ctx, name+" – byokd on "+p.d.host)
	slices.Reverse(keys)
	return "group.tmpl", struct {
		pageFrame
		Group  control.GroupStatus
		Chart  chart
		Keys   []control.Key
		Jobs   []control.JobSummary
		Events []control.Event
	}{frame, groups[0], newChart(timelines, p.d.Now()), keys, jobs, events}, err
}

// A chart is timelines as they are drawn. Positions are in percent of its width.
type chart struct {
	Ticks  []chartTick
	Now    percent
	Groups []chartGroup
}

type percent float64

func (p percent) String() string { return strconv.FormatFloat(float64(p), 'f', 2, 64) + "%" }

type chartTick struct {
	X    percent
	Text string
}

type chartGroup struct {
	control.Timeline
	Next  *percent // the next rotation
	Lanes []chartLane
}

type chartLane struct {
	control.Period
	Bars    []chartBar
	Expires *percent
	Words   string // for who does not see it
}

type chartBar struct {
	Kind     string
	X, Width percent
	Words    string
}

// newChart puts timelines on one axis.
func newChart(timelines []control.Timeline, now time.Time) chart {
	from, to := control.Span(timelines, now)
	at := func(t time.Time) percent {
		return percent(min(max(100*float64(t.Sub(from))/float64(to.Sub(from)), 0), 100))
	}
	c := chart{Now: at(now)}
	ticks, layout := control.Ticks(from, to, pageTicks)
	for _, t := range ticks {
		if x := at(t); x < 90 {
			c.Ticks = append(c.Ticks, chartTick{x, t.Format(layout)})
		}
	}
	for _, l := range timelines {
		g := chartGroup{Timeline: l}
		if !l.NextRotation.IsZero() {
			x := at(l.NextRotation.Time)
			g.Next = &x
		}
		for _, p := range slices.Backward(l.Generations) {
			lane := chartLane{Period: p}
			var words []string
			for _, s := range p.Segments(now) {
				x := at(s.From)
				bar := chartBar{s.Kind, x, at(s.To) - x,
					fmt.Sprintf("%s from %s to %s", s.Kind, control.At(s.From).Minute(), control.At(s.To).Minute())}
				switch s.Kind {
				case control.SegmentGone:
					continue
				case control.SegmentAhead:
					end := at(s.To)
					lane.Expires = &end
					bar.Words = "expires or is deleted " + control.At(s.To).Minute()
				}
				if s.Kind != control.SegmentAhead && s.To.Equal(now) && bar.Width < leastBar {
					bar.X, bar.Width = max(bar.X+bar.Width-leastBar, 0), leastBar
				}
				lane.Bars = append(lane.Bars, bar)
				words = append(words, bar.Words)
			}
			lane.Words = fmt.Sprintf("generation %d, %s: %s", p.Generation, p.State, strings.Join(words, "; "))
			g.Lanes = append(g.Lanes, lane)
		}
		c.Groups = append(c.Groups, g)
	}
	return c
}

// away says how far off a time is, in one unit.
func away(now, t control.Time) string {
	if t.IsZero() {
		return ""
	}
	d := t.Sub(now.Time)
	form := "in %d %s"
	if d < 0 {
		d, form = -d, "%d %s ago"
	}
	for _, u := range []struct {
		unit time.Duration
		name string
	}{{24 * time.Hour, "day"}, {time.Hour, "hour"}, {time.Minute, "minute"}} {
		if n := int(d / u.unit); n > 0 {
			name := u.name
			if n > 1 {
				name += "s"
			}
			return fmt.Sprintf(form, n, name)
		}
	}
	return "now"
}

// tone is how a state is to look: bad, warn, busy, good or still.
func tone(state string) string {
	switch state {
	case control.GroupExpired, control.GroupFailing, control.GroupInvalid, control.JobDiscarded, control.EventParked, "material-deleted":
		return "bad"
	case control.GroupOverdue, control.GroupDrifted, control.GroupRemoved, control.JobRetryable, "pending-deletion":
		return "warn"
	case control.GroupRotating, control.GroupPending, control.JobRunning, control.JobAvailable, "pre-active":
		return "busy"
	case control.GroupOK, control.JobCompleted, control.EventSent, "active":
		return "good"
	}
	return "still"
}
