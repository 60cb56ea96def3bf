package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	maxBody = 64 << 10 // bytes of a request's body; hundreds of groups fit

	readTimeout  = 10 * time.Second // a whole request
	writeTimeout = 10 * time.Second // one answer, or one line of a followed job
	idleTimeout  = time.Minute      // between requests of a connection
	stopTimeout  = 5 * time.Second  // requests that run when Serve is told to stop
)

// A Server answers requests on the control socket. Both fields are required and
// must not change while it serves.
type Server struct {
	Backend Backend

	// Log gets requests at level Debug, and errors with code [Internal] at
	// level Error.
	Log *slog.Logger
}

// Serve answers requests that come in on l until ctx is done, then lets those
// that run finish within seconds, ends the followed ones, closes l and returns
// nil. Any other end is an error. It can be called once per listener.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler:     s.handler(ctx),
		ReadTimeout: readTimeout,
		IdleTimeout: idleTimeout,
		ConnContext: withPeer,
		ErrorLog:    slog.NewLogLogger(s.Log.Handler(), slog.LevelWarn),
		// A request that began before the stop is finished, not cancelled.
		BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		if srv.Shutdown(limit) != nil {
			srv.Close()
		}
	})
	err := srv.Serve(l)
	if !stop() {
		<-stopped
		return nil
	}
	srv.Close()
	return err
}

// handler returns the handler of all resources. Followed jobs end with stop.
func (s *Server) handler(stop context.Context) http.Handler {
	mux := http.NewServeMux()
	handle := func(method, path string, f func(*request) (any, error)) {
		mux.Handle(path, s.resource(method, f))
	}
	handle(http.MethodGet, "/v1/status", s.status)
	handle(http.MethodGet, "/v1/overview", s.overview)
	handle(http.MethodGet, "/v1/groups/{group}/keys", s.keys)
	handle(http.MethodGet, "/v1/timeline", s.timeline)
	handle(http.MethodGet, "/v1/plan", s.plan)
	handle(http.MethodGet, "/v1/events", s.events)
	handle(http.MethodGet, "/v1/audit", s.audit)
	handle(http.MethodGet, "/v1/jobs", s.jobs)
	handle(http.MethodGet, "/v1/jobs/{id}", func(r *request) (any, error) { return s.job(stop, r) })
	handle(http.MethodPost, "/v1/jobs/{id}/cancel", s.cancel)
	handle(http.MethodPost, "/v1/rotate", s.rotate)
	handle(http.MethodPost, "/v1/sync", s.sync)
	handle(http.MethodPost, "/v1/rollback", s.rollback)
	handle(http.MethodPost, "/v1/keep", s.keep)
	handle(http.MethodPost, "/v1/drift", s.drift)
	handle(http.MethodPost, "/v1/retry", s.retry)
	handle(http.MethodGet, "/v1/hsm", s.hsm)
	handle(http.MethodPost, "/v1/hsm/login", s.login)
	handle(http.MethodGet, "/v1/daemon", s.daemon)
	handle(http.MethodGet, "/v1/ping", func(*request) (any, error) { return struct{}{}, nil })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		answer(w, http.StatusNotFound, &Error{Usage, "byokd has no resource " + strconv.Quote(r.URL.Path) + "; is byokctl of another version?"})
	})
	return mux
}

// A request is one request on its way through a handler.
type request struct {
	*http.Request
	w http.ResponseWriter
}

// resource makes a handler out of f, which returns what to answer, or nil when
// it has answered itself.
func (s *Server) resource(method string, f func(*request) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		if r.Method != method {
			w.Header().Set("Allow", method)
			answer(w, http.StatusMethodNotAllowed, &Error{Usage, "only " + method + " is possible here"})
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		result, err := f(&request{r, w})
		status := http.StatusOK
		if err != nil {
			e, ok := errors.AsType[*Error](err)
			if !ok {
				e = &Error{Internal, err.Error()}
			}
			status, result = e.status(), e
		}
		switch {
		case status == http.StatusInternalServerError && r.Context().Err() == nil:
			s.Log.Error("control request", "method", r.Method, "path", r.URL.Path, "err", err)
		default:
			s.Log.Debug("control request", "method", r.Method, "path", r.URL.Path, "status", status, "elapsed", time.Since(start))
		}
		if result != nil {
			answer(w, status, result)
		}
	})
}

// answer writes v as JSON. An error of the connection is the client's to see.
func answer(w http.ResponseWriter, status int, v any) {
	// Fails only where the writer has no deadline, as in tests.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	if b, ok := v.(rawJSON); ok {
		_, _ = w.Write(b)
		return
	}
	_ = json.NewEncoder(w).Encode(v)
}

// query returns the query's parameters, of which only those named may be there.
func (r *request) query(allowed ...string) (url.Values, error) {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, &Error{Usage, "query: " + err.Error()}
	}
	for name := range values {
		if !slices.Contains(allowed, name) {
			return nil, &Error{Usage, fmt.Sprintf("unknown parameter %q", name)}
		}
	}
	return values, nil
}

// body reads the request's body into v. Requests with a body take no query.
func (r *request) body(v any) error {
	if _, err := r.query(); err != nil {
		return err
	}
	b, err := io.ReadAll(r.Body)
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return &Error{Usage, fmt.Sprintf("a request has at most %d bytes", maxBody)}
	}
	if err != nil {
		return &Error{Usage, "read the request: " + err.Error()}
	}
	if err := decodeStrict(b, v); err != nil {
		return &Error{Usage, "request: " + err.Error()}
	}
	return nil
}

func (s *Server) status(r *request) (any, error) {
	q, err := r.query("group")
	if err != nil {
		return nil, err
	}
	groups, err := s.Backend.Status(r.Context(), q["group"])
	if err != nil {
		return nil, err
	}
	SortWorstFirst(groups)
	return statusJSON(groups), nil
}

func (s *Server) overview(r *request) (any, error) {
	q, err := r.query("healthy")
	if err != nil {
		return nil, err
	}
	most, err := number(q, "healthy")
	if err != nil {
		return nil, err
	}
	groups, err := s.Backend.Status(r.Context(), nil)
	if err != nil {
		return nil, err
	}
	SortWorstFirst(groups)
	return newOverview(groups, most), nil
}

func (s *Server) keys(r *request) (any, error) {
	if _, err := r.query(); err != nil {
		return nil, err
	}
	keys, err := s.Backend.Keys(r.Context(), r.PathValue("group"))
	return List[Key](keys), err
}

func (s *Server) jobs(r *request) (any, error) {
	q, err := r.query("group", "state", "limit")
	if err != nil {
		return nil, err
	}
	filter := JobFilter{Group: q.Get("group"), State: q.Get("state")}
	if filter.State != "" && filter.State != JobOpen && !slices.Contains(JobStates, filter.State) {
		return nil, &Error{Usage, fmt.Sprintf("unknown state %q; a job is %s or %s", filter.State, strings.Join(JobStates, ", "), JobOpen)}
	}
	if filter.Limit, err = limit(q); err != nil {
		return nil, err
	}
	jobs, err := s.Backend.Jobs(r.Context(), filter)
	return List[JobSummary](jobs), err
}

// limit is the query's parameter of that name.
func limit(q url.Values) (int, error) { return number(q, "limit") }

// number is a parameter of the query; 0 where it is not there.
func number(q url.Values, name string) (int, error) {
	if !q.Has(name) {
		return 0, nil
	}
	n, err := strconv.Atoi(q.Get(name))
	if err != nil || n < 0 {
		return 0, &Error{Usage, fmt.Sprintf("%s %q is not a number from 0", name, q.Get(name))}
	}
	return n, nil
}

func (s *Server) plan(r *request) (any, error) {
	q, err := r.query("group", "rotate")
	if err != nil {
		return nil, err
	}
	plans, err := s.Backend.Plan(r.Context(), q["group"], q.Get("rotate") == "1")
	return List[Plan](plans), err
}

func (s *Server) timeline(r *request) (any, error) {
	q, err := r.query("group")
	if err != nil {
		return nil, err
	}
	timelines, err := s.Backend.Timeline(r.Context(), q["group"])
	if err != nil {
		return nil, err
	}
	SortTimelines(timelines)
	return List[Timeline](timelines), nil
}

func (s *Server) events(r *request) (any, error) {
	q, err := r.query("group", "state", "limit")
	if err != nil {
		return nil, err
	}
	filter := EventFilter{Group: q.Get("group"), State: q.Get("state")}
	if filter.State != "" && !slices.Contains(EventStates, filter.State) {
		return nil, &Error{Usage, fmt.Sprintf("unknown state %q; an event is %s", filter.State, strings.Join(EventStates, ", "))}
	}
	if filter.Limit, err = limit(q); err != nil {
		return nil, err
	}
	events, err := s.Backend.Events(r.Context(), filter)
	return List[Event](events), err
}

func (s *Server) audit(r *request) (any, error) {
	q, err := r.query("group", "job", "limit")
	if err != nil {
		return nil, err
	}
	filter := AuditFilter{Group: q.Get("group"), JobID: q.Get("job")}
	if filter.Limit, err = limit(q); err != nil {
		return nil, err
	}
	entries, err := s.Backend.Audit(r.Context(), filter)
	return List[AuditEntry](entries), err
}

func (s *Server) job(stop context.Context, r *request) (any, error) {
	q, err := r.query("follow")
	if err != nil {
		return nil, err
	}
	switch q.Get("follow") {
	case "", "0":
		return s.Backend.Job(r.Context(), r.PathValue("id"))
	case "1":
		return nil, s.follow(stop, r)
	}
	return nil, &Error{Usage, "follow is 0 or 1"}
}

// follow writes the job as a line each time that it differs from the line
// before. Once a line is out an error can only cut the answer off.
func (s *Server) follow(stop context.Context, r *request) error {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(stop, cancel)()

	rc := http.NewResponseController(r.w)
	var last []byte
	err := s.Backend.Watch(ctx, r.PathValue("id"), func(j Job) error {
		line, err := json.Marshal(j)
		if err != nil || bytes.Equal(line, last) {
			return err
		}
		if last == nil {
			r.w.Header().Set("Content-Type", "application/x-ndjson")
			r.w.Header().Set("Cache-Control", "no-store")
		}
		last = line
		_ = rc.SetWriteDeadline(time.Now().Add(writeTimeout))
		if _, err := r.w.Write(append(line, '\n')); err != nil {
			return err
		}
		return rc.Flush()
	})
	if err != nil && last != nil {
		if ctx.Err() == nil {
			s.Log.Error("follow a job", "job", r.PathValue("id"), "err", err)
		}
		panic(http.ErrAbortHandler)
	}
	return err
}

func (s *Server) cancel(r *request) (any, error) {
	if err := r.body(&struct{}{}); err != nil {
		return nil, err
	}
	return s.Backend.Cancel(r.Context(), r.PathValue("id"), requester(r.Context()))
}

func (s *Server) rotate(r *request) (any, error) {
	var q rotateRequest
	if err := r.body(&q); err != nil {
		return nil, err
	}
	if q.All == (len(q.Groups) > 0) {
		return nil, &Error{Usage, "a rotation needs either the names of groups or all"}
	}
	jobs, err := s.Backend.Rotate(r.Context(), q.Groups, q.All, requester(r.Context()))
	return List[Job](jobs), err
}

func (s *Server) sync(r *request) (any, error) {
	var q SyncRequest
	if err := r.body(&q); err != nil {
		return nil, err
	}
	if err := q.Check(); err != nil {
		return nil, err
	}
	return s.Backend.Sync(r.Context(), q, requester(r.Context()))
}

func (s *Server) rollback(r *request) (any, error) {
	var q RollbackRequest
	if err := r.body(&q); err != nil {
		return nil, err
	}
	if q.Group == "" {
		return nil, &Error{Usage, "a roll back needs the name of a group"}
	}
	return s.Backend.Rollback(r.Context(), q, requester(r.Context()))
}

func (s *Server) keep(r *request) (any, error) {
	var q KeepRequest
	if err := r.body(&q); err != nil {
		return nil, err
	}
	if q.Group == "" {
		return nil, &Error{Usage, "to keep a generation needs the name of its group"}
	}
	return s.Backend.Keep(r.Context(), q, requester(r.Context()))
}

func (s *Server) drift(r *request) (any, error) {
	var q driftRequest
	if err := r.body(&q); err != nil {
		return nil, err
	}
	list, err := s.Backend.Drift(r.Context(), q.Groups)
	return List[Drift](list), err
}

func (s *Server) retry(r *request) (any, error) {
	var q retryRequest
	if err := r.body(&q); err != nil {
		return nil, err
	}
	if q.All == (len(q.Jobs) > 0) {
		return nil, &Error{Usage, "a retry needs either the IDs of jobs or all"}
	}
	jobs, err := s.Backend.Retry(r.Context(), q.Jobs, q.All, requester(r.Context()))
	return List[Job](jobs), err
}

func (s *Server) hsm(r *request) (any, error) {
	if _, err := r.query(); err != nil {
		return nil, err
	}
	hsms, err := s.Backend.HSM(r.Context(), "", requester(r.Context()))
	return List[HSMStatus](hsms), err
}

func (s *Server) login(r *request) (any, error) {
	var q loginRequest
	if err := r.body(&q); err != nil {
		return nil, err
	}
	if q.Name == "" {
		return nil, &Error{Usage, "a login needs the name of an HSM"}
	}
	hsms, err := s.Backend.HSM(r.Context(), q.Name, requester(r.Context()))
	return List[HSMStatus](hsms), err
}

func (s *Server) daemon(r *request) (any, error) {
	if _, err := r.query(); err != nil {
		return nil, err
	}
	return s.Backend.Daemon(r.Context())
}
