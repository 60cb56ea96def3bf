package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// ErrUnreachable is wrapped by errors of a [Client] that could not reach the
// daemon, or lost it. Whether it has done what was asked is then unknown;
// asking again is safe, since requests join what is open.
var ErrUnreachable = errors.New("byokd cannot be reached")

// callTimeout is how long the daemon may take to answer what it answers from
// its database. A login to a token has no limit here: the daemon has one.
const callTimeout = 30 * time.Second

// A Client asks a daemon over its control socket. Errors of the daemon are
// *[Error], errors on the way wrap [ErrUnreachable]. It may be used by several
// goroutines.
type Client struct {
	http *http.Client
}

// NewClient returns a client for the socket at path. It does not connect yet.
func NewClient(path string) *Client {
	return &Client{&http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
		IdleConnTimeout: idleTimeout / 2, // sooner than the server
	}}}
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Ping returns nil if a daemon answers.
func (c *Client) Ping(ctx context.Context) error { return c.get(ctx, "/v1/ping", nil, &struct{}{}) }

// Status returns the named groups, or all for none, worst first.
func (c *Client) Status(ctx context.Context, groups ...string) (status []GroupStatus, err error) {
	err = c.get(ctx, "/v1/status", url.Values{"group": groups}, &status)
	return status, err
}

// StatusJSON is Status as the daemon answers it, for who passes it on.
func (c *Client) StatusJSON(ctx context.Context, groups ...string) (status json.RawMessage, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := c.send(ctx, http.MethodGet, "/v1/status", url.Values{"group": groups}, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if status, err = io.ReadAll(resp.Body); err != nil {
		return nil, lost(ctx, err)
	}
	return status, nil
}

// Overview returns all groups, worst first, but leaves the healthy ones out if they
// are more than healthy.
func (c *Client) Overview(ctx context.Context, healthy int) (o Overview, err error) {
	err = c.get(ctx, "/v1/overview", url.Values{"healthy": {strconv.Itoa(healthy)}}, &o)
	return o, err
}

// Keys returns a group's generations in ascending order.
func (c *Client) Keys(ctx context.Context, group string) (keys []Key, err error) {
	err = c.get(ctx, "/v1/groups/"+url.PathEscape(group)+"/keys", nil, &keys)
	return keys, err
}

// Jobs returns the jobs that the filter chooses, newest first.
func (c *Client) Jobs(ctx context.Context, filter JobFilter) (jobs []JobSummary, err error) {
	err = c.get(ctx, "/v1/jobs", query(filter.Limit, "group", filter.Group, "state", filter.State), &jobs)
	return jobs, err
}

// query makes a query of a limit and of those parameters that are not empty.
func query(limit int, pairs ...string) url.Values {
	q := url.Values{"limit": {strconv.Itoa(limit)}}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			q.Set(pairs[i], pairs[i+1])
		}
	}
	return q
}

// Timeline returns the generations over time of the named groups, or of all for
// none, worst first.
func (c *Client) Timeline(ctx context.Context, groups ...string) (timelines []Timeline, err error) {
	err = c.get(ctx, "/v1/timeline", url.Values{"group": groups}, &timelines)
	return timelines, err
}

// Plan returns what byokd will do with the named groups, or with all for none, by
// name; with rotate, what a rotation at once would do.
func (c *Client) Plan(ctx context.Context, rotate bool, groups ...string) (plans []Plan, err error) {
	q := url.Values{"group": groups}
	if rotate {
		q.Set("rotate", "1")
	}
	err = c.get(ctx, "/v1/plan", q, &plans)
	return plans, err
}

// Events returns the events that the filter chooses, newest first.
func (c *Client) Events(ctx context.Context, filter EventFilter) (events []Event, err error) {
	err = c.get(ctx, "/v1/events", query(filter.Limit, "group", filter.Group, "state", filter.State), &events)
	return events, err
}

// Audit returns the audit entries that the filter chooses, newest first.
func (c *Client) Audit(ctx context.Context, filter AuditFilter) (entries []AuditEntry, err error) {
	err = c.get(ctx, "/v1/audit", query(filter.Limit, "group", filter.Group, "job", filter.JobID), &entries)
	return entries, err
}

// Job returns one job.
func (c *Client) Job(ctx context.Context, id string) (job Job, err error) {
	err = c.get(ctx, "/v1/jobs/"+url.PathEscape(id), nil, &job)
	return job, err
}

// Watch calls changed with the job as it is and again each time that it has
// changed, and returns nil after a final one. An error of changed ends it and
// is returned. When the daemon goes away before the job is final the error
// wraps [ErrUnreachable].
func (c *Client) Watch(ctx context.Context, id string, changed func(Job) error) error {
	resp, err := c.send(ctx, http.MethodGet, "/v1/jobs/"+url.PathEscape(id), url.Values{"follow": {"1"}}, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := json.NewDecoder(resp.Body)
	for {
		var j Job
		if err := lines.Decode(&j); err != nil {
			return lost(ctx, err)
		}
		if err := changed(j); err != nil {
			return err
		}
		if j.Final() {
			return nil
		}
	}
}

// Rotate asks for a rotation of the groups, or of all of them with all set, and
// returns the jobs.
func (c *Client) Rotate(ctx context.Context, groups []string, all bool) (jobs []Job, err error) {
	err = c.post(ctx, "/v1/rotate", rotateRequest{groups, all}, &jobs)
	return jobs, err
}

// Sync asks for a synchronization and returns its job.
func (c *Client) Sync(ctx context.Context, request SyncRequest) (job Job, err error) {
	err = c.post(ctx, "/v1/sync", request, &job)
	return job, err
}

// Rollback asks for the alias of a group to be pointed back and returns the job.
func (c *Client) Rollback(ctx context.Context, request RollbackRequest) (job Job, err error) {
	err = c.post(ctx, "/v1/rollback", request, &job)
	return job, err
}

// Keep asks for the end of a generation's retirement and returns the job.
func (c *Client) Keep(ctx context.Context, request KeepRequest) (job Job, err error) {
	err = c.post(ctx, "/v1/keep", request, &job)
	return job, err
}

// Drift compares the groups, or all where none is named, with AWS and returns
// what differs. It takes as long as AWS does.
func (c *Client) Drift(ctx context.Context, groups ...string) (list []Drift, err error) {
	err = c.call(ctx, http.MethodPost, "/v1/drift", nil, driftRequest{groups}, &list)
	return list, err
}

// Retry makes retryable jobs run now: those named, or all of them with all set.
// It returns those that it changed.
func (c *Client) Retry(ctx context.Context, ids []string, all bool) (jobs []Job, err error) {
	err = c.post(ctx, "/v1/retry", retryRequest{ids, all}, &jobs)
	return jobs, err
}

// Cancel cancels a job that has not finished.
func (c *Client) Cancel(ctx context.Context, id string) (job Job, err error) {
	err = c.post(ctx, "/v1/jobs/"+url.PathEscape(id)+"/cancel", struct{}{}, &job)
	return job, err
}

// HSM returns the state of all tokens.
func (c *Client) HSM(ctx context.Context) (hsms []HSMStatus, err error) {
	err = c.get(ctx, "/v1/hsm", nil, &hsms)
	return hsms, err
}

// Login lifts the block on logging in to the named HSM, tries once, and returns
// the state of all tokens. It takes as long as the token does.
func (c *Client) Login(ctx context.Context, name string) (hsms []HSMStatus, err error) {
	err = c.call(ctx, http.MethodPost, "/v1/hsm/login", nil, loginRequest{name}, &hsms)
	return hsms, err
}

// Daemon returns what concerns the daemon as a whole.
func (c *Client) Daemon(ctx context.Context) (daemon DaemonStatus, err error) {
	err = c.get(ctx, "/v1/daemon", nil, &daemon)
	return daemon, err
}

func (c *Client) get(ctx context.Context, path string, query url.Values, result any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return c.call(ctx, http.MethodGet, path, query, nil, result)
}

func (c *Client) post(ctx context.Context, path string, body, result any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return c.call(ctx, http.MethodPost, path, nil, body, result)
}

// call sends a request and reads its whole answer into result.
func (c *Client) call(ctx context.Context, method, path string, query url.Values, body, result any) error {
	resp, err := c.send(ctx, method, path, query, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(result); err != nil {
		return lost(ctx, err)
	}
	return nil
}

// send sends a request and returns the answer if it is a good one.
func (c *Client) send(ctx context.Context, method, path string, query url.Values, body any) (*http.Response, error) {
	var content io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		content = bytes.NewReader(b)
	}
	// The host has no meaning on this socket.
	req, err := http.NewRequestWithContext(ctx, method, "http://byokd"+path, content)
	if err != nil {
		return nil, err
	}
	req.URL.RawQuery = query.Encode()
	resp, err := c.http.Do(req)
	if err != nil {
		// The URL is of no use to a person, the error inside names the socket.
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err
		}
		return nil, lost(ctx, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	e := new(Error)
	if err := json.NewDecoder(resp.Body).Decode(e); err != nil || e.Code == "" {
		return nil, &Error{Internal, "byokd answered " + resp.Status}
	}
	return nil, e
}

// lost classes an error of the connection or of what came through it. The
// caller's own cancellation stays what it is.
func lost(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	_, syntax := errors.AsType[*json.SyntaxError](err)
	_, shape := errors.AsType[*json.UnmarshalTypeError](err)
	switch {
	case syntax, shape:
		return fmt.Errorf("read byokd's answer, which may be of another version: %w", err)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: it closed the connection", ErrUnreachable)
	}
	return fmt.Errorf("%w: %w", ErrUnreachable, err)
}
