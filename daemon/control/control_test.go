package control_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"byokd/daemon/control"

	"github.com/google/go-cmp/cmp"
)

// A fake answers from its fields and notes what it was asked.
type fake struct {
	groups []control.GroupStatus
	keys   []control.Key
	jobs   []control.JobSummary
	times  []control.Timeline
	plans  []control.Plan
	events []control.Event
	trail  []control.AuditEntry
	job    control.Job
	hsms   []control.HSMStatus
	daemon control.DaemonStatus
	drift  []control.Drift
	err    error
	watch  func(ctx context.Context, id string, changed func(control.Job) error) error

	mu    sync.Mutex
	calls []string
	bys   []string
}

func (f *fake) called(by, format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
	if by != "" {
		f.bys = append(f.bys, by)
	}
}

func (f *fake) Status(_ context.Context, groups []string) ([]control.GroupStatus, error) {
	f.called("", "status %q", groups)
	return f.groups, f.err
}

func (f *fake) Keys(_ context.Context, group string) ([]control.Key, error) {
	f.called("", "keys %q", group)
	return f.keys, f.err
}

func (f *fake) Timeline(_ context.Context, groups []string) ([]control.Timeline, error) {
	f.called("", "timeline %q", groups)
	return f.times, f.err
}

func (f *fake) Plan(_ context.Context, groups []string, rotate bool) ([]control.Plan, error) {
	f.called("", "plan %q %v", groups, rotate)
	return f.plans, f.err
}

func (f *fake) Events(_ context.Context, filter control.EventFilter) ([]control.Event, error) {
	f.called("", "events %+v", filter)
	return f.events, f.err
}

func (f *fake) Audit(_ context.Context, filter control.AuditFilter) ([]control.AuditEntry, error) {
	f.called("", "audit %+v", filter)
	return f.trail, f.err
}

func (f *fake) Jobs(_ context.Context, filter control.JobFilter) ([]control.JobSummary, error) {
	f.called("", "jobs %+v", filter)
	return f.jobs, f.err
}

func (f *fake) Job(_ context.Context, id string) (control.Job, error) {
	f.called("", "job %q", id)
	return f.job, f.err
}

func (f *fake) Watch(ctx context.Context, id string, changed func(control.Job) error) error {
	f.called("", "watch %q", id)
	if f.err != nil {
		return f.err
	}
	return f.watch(ctx, id, changed)
}

func (f *fake) Rotate(_ context.Context, groups []string, all bool, by string) ([]control.Job, error) {
	f.called(by, "rotate %q %t", groups, all)
	return []control.Job{f.job}, f.err
}

func (f *fake) Sync(_ context.Context, r control.SyncRequest, by string) (control.Job, error) {
	generation := "active"
	if r.Generation != nil {
		generation = fmt.Sprint(*r.Generation)
	}
	f.called(by, "sync %q %s %q import=%t policy=%t delete=%t", r.Group, generation, string(r.KeyID), r.ImportMaterial, r.UpdatePolicy, r.DeleteMaterial)
	return f.job, f.err
}

func (f *fake) Rollback(_ context.Context, r control.RollbackRequest, by string) (control.Job, error) {
	to := "before"
	if r.To != nil {
		to = fmt.Sprint(*r.To)
	}
	f.called(by, "rollback %q %s", r.Group, to)
	return f.job, f.err
}

func (f *fake) Keep(_ context.Context, r control.KeepRequest, by string) (control.Job, error) {
	f.called(by, "keep %q %d undo=%t", r.Group, r.Generation, r.Undo)
	return f.job, f.err
}

func (f *fake) Retry(_ context.Context, ids []string, all bool, by string) ([]control.Job, error) {
	f.called(by, "retry %q %t", ids, all)
	return []control.Job{f.job}, f.err
}

func (f *fake) Drift(_ context.Context, groups []string) ([]control.Drift, error) {
	f.called("", "drift %q", groups)
	return f.drift, f.err
}

func (f *fake) Cancel(_ context.Context, id, by string) (control.Job, error) {
	f.called(by, "cancel %q", id)
	return f.job, f.err
}

func (f *fake) HSM(_ context.Context, login, by string) ([]control.HSMStatus, error) {
	f.called(by, "hsm %q", login)
	return f.hsms, f.err
}

func (f *fake) Daemon(context.Context) (control.DaemonStatus, error) {
	f.called("", "daemon")
	return f.daemon, f.err
}

// socketPath returns a path for a socket, short enough for sun_path.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "byokd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "control.sock")
}

// serve serves the backend on a socket until the test ends or stop is called.
func serve(t *testing.T, backend control.Backend) (path string, stop func()) {
	t.Helper()
	path = socketPath(t)
	l, err := control.Listen(path, "byokd")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() {
		served <- (&control.Server{Backend: backend, Log: slog.New(slog.DiscardHandler)}).Serve(ctx, l)
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(stop)
	return path, stop
}

// client serves the backend and returns a client for it.
func client(t *testing.T, backend control.Backend) *control.Client {
	t.Helper()
	path, _ := serve(t, backend)
	c := control.NewClient(path)
	t.Cleanup(c.Close)
	return c
}

var (
	at     = time.Date(2026, 11, 23, 18, 0, 0, 0, time.UTC)
	sample = control.Job{
		JobSummary: control.JobSummary{
			ID: "019aa000-0000-7000-8000-000000000001", Kind: "rotate", Group: "payments", Generation: new(3),
			State: control.JobRetryable, Trigger: "control", WaitingFor: "pin", Joined: true,
			CreatedAt: control.At(at), StartedAt: control.At(at), NextAttempt: control.At(at.Add(time.Hour)), Attempt: 2, Error: "PIN incorrect",
		},
		Steps: []control.Step{
			{Name: "generate", State: control.StepDone, StartedAt: control.At(at), FinishedAt: control.At(at), Message: "made byokd/payments/3"},
			{Name: "create", State: control.StepFailed, StartedAt: control.At(at)},
		},
	}
	sampleGroup = control.GroupStatus{
		Group: "payments", State: control.GroupOK, Alias: "alias/payments", Region: "eu-central-1", Account: "111122223333",
		Active:       control.ActiveKey{Generation: new(0), KeyID: "k", KeyARN: "arn", ValidTo: control.At(at)},
		LastRotation: control.At(at), NextRotation: control.At(at),
		Problems: []control.Problem{{Code: "old-alias", Message: "m", Since: control.At(at)}},
	}
	sampleKey = control.Key{
		Generation: 1, State: "active", KeyID: "k", KeyARN: "arn", KeyMaterialID: "m", HSMLabel: "byokd/payments/1",
		HSMID: "000102030405060708090a0b0c0d0e0f", CreatedAt: control.At(at), ImportedAt: control.At(at), ValidTo: control.At(at),
	}
	sampleHSM = control.HSMStatus{
		Name: "main", Module: "/m.so", Library: "l", TokenLabel: "byokd", TokenSerial: "s", TokenModel: "m", TokenFirmware: "1.0",
		Connected: true, State: "ready", Algorithm: "RSAES_OAEP_SHA_256",
		Proofs: []control.HSMProof{{Algorithm: "RSAES_OAEP_SHA_256", Route: "C_WrapKey", Outcome: "ok"}},
		Error:  "e", LoginBlocked: "b",
	}
	sampleDrift = control.Drift{Group: "payments", CheckedAt: control.At(at), Error: "e", Differences: []control.Difference{{
		Kind: "policy", Generation: new(1), KeyID: "k", Expected: "x", Found: "f", Message: "m", Since: control.At(at)}}}
	sampleDaemon = control.DaemonStatus{
		Version: control.Version{Version: "1.0", Revision: "r", Go: "go1.26", Platform: "linux/amd64"}, Designated: true, Host: "h",
		StartedAt: control.At(at), Config: "/etc/byokd/byokd.toml", LastReload: control.Reload{At: control.At(at), OK: true, Restart: control.List[string]{"hsm.main"}},
		Endpoints: []control.Endpoint{{Service: "kms", URL: "http://127.0.0.1:1"}},
		Outbox:    control.Outbox{Pending: 1, Parked: 2}, Quotas: control.Quotas{GetParametersForImport: 1,
			Used: []control.QuotaUse{{Account: "111122223333", Credential: "prod", Region: "eu-central-1", Operation: "kms:CreateKey", Quota: 5, Source: "default", PerSecond: 4.5, Waiting: 2, Throttled: 1}}}, HSMs: []control.HSMStatus{sampleHSM},
		Hooks:    []control.Hook{{On: "*", Command: []string{"/usr/local/bin/told"}, Waiting: 3, RanAt: control.At(at), EventID: "e", Error: "exit status 1"}},
		Problems: []control.Problem{{Code: "hook-failed", Message: "m", Since: control.At(at)}},
	}
	sampleTimeline = control.Timeline{
		Group: "payments", State: control.GroupOK, Alias: "alias/payments", NextRotation: control.At(at),
		Generations: []control.Period{{Generation: 1, State: "previous", KeyID: "k", MadeAt: control.At(at), ActiveFrom: control.At(at),
			ActiveTo: control.At(at), DisabledAt: control.At(at), MaterialDeletedAt: control.At(at), DeletionDate: control.At(at), ValidTo: control.At(at)}},
	}
	samplePlan = control.Plan{Group: "payments", Account: "111122223333", Region: "eu-central-1", CostNow: 1, CostThen: 2, WaitsForQuota: 1,
		QuotaPerSecond: 1, Notes: []string{"n"}, Actions: []control.Action{{At: control.At(at), Kind: "rotate", Generation: 2, KeyID: "k", Message: "m", Calls: []string{"kms:CreateKey"}}}}
	sampleEvent = control.Event{
		EventID: "e", Sequence: 7, Group: "payments", DetailType: "KMS Alias Moved", State: control.EventPending, OccurredAt: control.At(at),
		JobID: "j", Region: "eu-central-1", Account: "111122223333", Resources: []string{"arn"}, Attempt: 2, NextAttempt: control.At(at),
		SentAt: control.At(at), AWSEventID: "a", Error: "throttled", Detail: json.RawMessage(`{"schema":1}`),
	}
	sampleAudit = control.AuditEntry{At: control.At(at), Group: "payments", JobID: "j", Actor: "uid 1000 (alice)", Action: "ask for rotate",
		Detail: "trigger control", Definition: "d1"}
)

// TestMethods asks for everything once and compares what the backend was asked
// and what came back.
func TestMethods(t *testing.T) {
	f := &fake{
		groups: []control.GroupStatus{sampleGroup}, keys: []control.Key{sampleKey}, jobs: []control.JobSummary{sample.JobSummary},
		times: []control.Timeline{sampleTimeline}, plans: []control.Plan{samplePlan}, events: []control.Event{sampleEvent}, trail: []control.AuditEntry{sampleAudit},
		job: sample, hsms: []control.HSMStatus{sampleHSM}, daemon: sampleDaemon,
		drift: []control.Drift{sampleDrift},
	}
	c := client(t, f)
	ctx := t.Context()
	tests := []struct {
		call string
		do   func() (any, error)
		want any
	}{
		{`status []`, func() (any, error) { return c.Status(ctx) }, f.groups},
		{`status ["a" "b&c=d"]`, func() (any, error) { return c.Status(ctx, "a", "b&c=d") }, f.groups},
		{`keys "payments"`, func() (any, error) { return c.Keys(ctx, "payments") }, f.keys},
		{`keys "../a?b"`, func() (any, error) { return c.Keys(ctx, "../a?b") }, f.keys},
		{`jobs {Group: State: Limit:0}`, func() (any, error) { return c.Jobs(ctx, control.JobFilter{}) }, f.jobs},
		{`jobs {Group:g State:running Limit:7}`, func() (any, error) {
			return c.Jobs(ctx, control.JobFilter{Group: "g", State: "running", Limit: 7})
		}, f.jobs},
		{`plan ["a"] true`, func() (any, error) { return c.Plan(ctx, true, "a") }, f.plans},
		{`timeline ["a" "b"]`, func() (any, error) { return c.Timeline(ctx, "a", "b") }, f.times},
		{`events {Group:g State:parked Limit:7}`, func() (any, error) {
			return c.Events(ctx, control.EventFilter{Group: "g", State: "parked", Limit: 7})
		}, f.events},
		{`audit {Group:g JobID:j Limit:7}`, func() (any, error) {
			return c.Audit(ctx, control.AuditFilter{Group: "g", JobID: "j", Limit: 7})
		}, f.trail},
		{`jobs {Group: State:open Limit:0}`, func() (any, error) {
			return c.Jobs(ctx, control.JobFilter{State: control.JobOpen})
		}, f.jobs},
		{`job "j"`, func() (any, error) { return c.Job(ctx, "j") }, sample},
		{`rotate ["a" "b"] false`, func() (any, error) { return c.Rotate(ctx, []string{"a", "b"}, false) }, []control.Job{sample}},
		{`rotate [] true`, func() (any, error) { return c.Rotate(ctx, nil, true) }, []control.Job{sample}},
		{`sync "a" 3 "" import=false policy=true delete=true`, func() (any, error) {
			return c.Sync(ctx, control.SyncRequest{Group: "a", Generation: new(3), ImportMaterial: true, UpdatePolicy: true, DeleteMaterial: true})
		}, sample},
		{`sync "a" active "k" import=false policy=false delete=false`, func() (any, error) {
			return c.Sync(ctx, control.SyncRequest{Group: "a", KeyID: "k"})
		}, sample},
		{`rollback "a" 0`, func() (any, error) { return c.Rollback(ctx, control.RollbackRequest{Group: "a", To: new(0)}) }, sample},
		{`rollback "a" before`, func() (any, error) { return c.Rollback(ctx, control.RollbackRequest{Group: "a"}) }, sample},
		{`keep "a" 3 undo=true`, func() (any, error) { return c.Keep(ctx, control.KeepRequest{Group: "a", Generation: 3, Undo: true}) }, sample},
		{`drift []`, func() (any, error) { return c.Drift(ctx) }, f.drift},
		{`drift ["a" "b"]`, func() (any, error) { return c.Drift(ctx, "a", "b") }, f.drift},
		{`retry ["j"] false`, func() (any, error) { return c.Retry(ctx, []string{"j"}, false) }, []control.Job{sample}},
		{`retry [] true`, func() (any, error) { return c.Retry(ctx, nil, true) }, []control.Job{sample}},
		{`cancel "j"`, func() (any, error) { return c.Cancel(ctx, "j") }, sample},
		{`hsm ""`, func() (any, error) { return c.HSM(ctx) }, f.hsms},
		{`hsm "main"`, func() (any, error) { return c.Login(ctx, "main") }, f.hsms},
		{`daemon`, func() (any, error) { return c.Daemon(ctx) }, sampleDaemon},
	}
	for _, tt := range tests {
		f.calls = nil
		got, err := tt.do()
		if err != nil {
			t.Errorf("%s: %v", tt.call, err)
			continue
		}
		if want := []string{tt.call}; !slices.Equal(f.calls, want) {
			t.Errorf("backend was asked %q, want %q", f.calls, want)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", tt.call, diff)
		}
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	by := fmt.Sprintf("uid %d (%s)", os.Getuid(), me.Username)
	if want := slices.Repeat([]string{by}, 12); !slices.Equal(f.bys, want) {
		t.Errorf("requests came by %q, want %q", f.bys, want)
	}
}

// TestErrors: an error of the backend reaches the client as it is, by every
// method and for every code.
func TestErrors(t *testing.T) {
	f := &fake{}
	c := client(t, f)
	ctx := t.Context()
	methods := map[string]func() error{
		"Status":   func() error { _, err := c.Status(ctx, "a"); return err },
		"Plan":     func() error { _, err := c.Plan(ctx, false, "a"); return err },
		"Timeline": func() error { _, err := c.Timeline(ctx, "a"); return err },
		"Events":   func() error { _, err := c.Events(ctx, control.EventFilter{}); return err },
		"Audit":    func() error { _, err := c.Audit(ctx, control.AuditFilter{}); return err },
		"Keys":     func() error { _, err := c.Keys(ctx, "a"); return err },
		"Jobs":     func() error { _, err := c.Jobs(ctx, control.JobFilter{}); return err },
		"Job":      func() error { _, err := c.Job(ctx, "j"); return err },
		"Watch":    func() error { return c.Watch(ctx, "j", func(control.Job) error { return nil }) },
		"Rotate":   func() error { _, err := c.Rotate(ctx, nil, true); return err },
		"Sync":     func() error { _, err := c.Sync(ctx, control.SyncRequest{Group: "a"}); return err },
		"Rollback": func() error { _, err := c.Rollback(ctx, control.RollbackRequest{Group: "a"}); return err },
		"Keep":     func() error { _, err := c.Keep(ctx, control.KeepRequest{Group: "a"}); return err },
		"Drift":    func() error { _, err := c.Drift(ctx); return err },
		"Retry":    func() error { _, err := c.Retry(ctx, nil, true); return err },
		"Cancel":   func() error { _, err := c.Cancel(ctx, "j"); return err },
		"HSM":      func() error { _, err := c.HSM(ctx); return err },
		"Login":    func() error { _, err := c.Login(ctx, "main"); return err },
		"Daemon":   func() error { _, err := c.Daemon(ctx); return err },
	}
	for _, code := range []string{control.UnknownGroup, control.UnknownJob, control.NotDesignated, control.Usage, control.Conflict, control.Internal, "of-a-later-version"} {
		f.err = fmt.Errorf("wrapped: %w", &control.Error{Code: code, Message: "what to do"})
		for name, do := range methods {
			err := do()
			e, ok := errors.AsType[*control.Error](err)
			if !ok || e.Code != code || e.Message != "what to do" {
				t.Errorf("%s, code %s: got %v (%T)", name, code, err, err)
			}
			if errors.Is(err, control.ErrUnreachable) {
				t.Errorf("%s, code %s: is ErrUnreachable", name, code)
			}
		}
	}
	f.err = errors.New("disk full")
	_, err := c.Status(ctx)
	if e, ok := errors.AsType[*control.Error](err); !ok || e.Code != control.Internal || e.Message != "disk full" {
		t.Errorf("an error without a code: got %v (%T)", err, err)
	}
}

// TestRefused sends by hand what no client sends.
func TestRefused(t *testing.T) {
	f := &fake{}
	path, _ := serve(t, f)
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", path) }}
	t.Cleanup(tr.CloseIdleConnections)
	tests := []struct {
		method, target, body string
		status               int
		message              string
	}{
		{"GET", "/", "", 404, `no resource "/"`},
		{"GET", "/v2/status", "", 404, `no resource "/v2/status"`},
		{"POST", "/v1/status", "", 405, "only GET"},
		{"HEAD", "/v1/status", "", 405, ""},
		{"GET", "/v1/rotate", "", 405, "only POST"},
		{"DELETE", "/v1/jobs/j", "", 405, "only GET"},
		{"GET", "/v1/jobs/j/cancel", "", 405, "only POST"},
		{"GET", "/v1/status?groups=a", "", 400, `unknown parameter "groups"`},
		{"GET", "/v1/status?group=%zz", "", 400, "query"},
		{"GET", "/v1/daemon?x=1", "", 400, "unknown parameter"},
		{"GET", "/v1/hsm?login=main", "", 400, "unknown parameter"},
		{"GET", "/v1/groups/a/keys?x=1", "", 400, "unknown parameter"},
		{"GET", "/v1/jobs?limit=-1", "", 400, "limit"},
		{"GET", "/v1/jobs?limit=", "", 400, "limit"},
		{"GET", "/v1/jobs?limit=ten", "", 400, "limit"},
		{"GET", "/v1/jobs?state=done", "", 400, "completed"},
		{"GET", "/v1/events?limit=-1", "", 400, "limit"},
		{"GET", "/v1/events?state=done", "", 400, "parked"},
		{"GET", "/v1/events?job=j", "", 400, "unknown parameter"},
		{"GET", "/v1/audit?limit=ten", "", 400, "limit"},
		{"GET", "/v1/audit?state=open", "", 400, "unknown parameter"},
		{"GET", "/v1/timeline?limit=1", "", 400, "unknown parameter"},
		{"POST", "/v1/events", "", 405, "only GET"},
		{"GET", "/v1/jobs/j?follow=yes", "", 400, "follow"},
		{"POST", "/v1/drift", `{"group": ["a"]}`, 400, `unknown field "group"`},
		{"GET", "/v1/drift", "", 405, "only POST"},
		{"POST", "/v1/rotate", "", 400, "EOF"},
		{"POST", "/v1/rotate", "{}", 400, "either"},
		{"POST", "/v1/rotate", `{"groups": ["a"], "all": true}`, 400, "either"},
		{"POST", "/v1/rotate", `{"groups": "a"}`, 400, "request"},
		{"POST", "/v1/rotate", `{"group": ["a"]}`, 400, `unknown field "group"`},
		{"POST", "/v1/rotate", `{"groups": ["a"]} {}`, 400, "more than one"},
		{"POST", "/v1/rotate", `{"groups": ["a"]} ]`, 400, "request"},
		{"POST", "/v1/rotate?all=1", `{"groups": ["a"]}`, 400, "unknown parameter"},
		{"POST", "/v1/rotate", `{"groups": ["` + strings.Repeat("a", 64<<10) + `"]}`, 400, "at most 65536 bytes"},
		{"POST", "/v1/sync", `{}`, 400, "name of a group"},
		{"POST", "/v1/sync", `null`, 400, "name of a group"},
		{"POST", "/v1/sync", `{"group": "a", "force": true}`, 400, `unknown field "force"`},
		{"POST", "/v1/sync", `{"group": "a", "generation": 1, "key_id": "k"}`, 400, "not both"},
		{"POST", "/v1/sync", `{"group": "a", "generation": -1}`, 400, "count from 0"},
		{"POST", "/v1/sync", `{"group": "a", "delete_material": true}`, 400, "generation or key_id"},
		{"POST", "/v1/retry", `{}`, 400, "either"},
		{"POST", "/v1/retry", `{"jobs": ["j"], "all": true}`, 400, "either"},
		{"POST", "/v1/jobs/j/cancel", `{"force": true}`, 400, "unknown field"},
		{"POST", "/v1/hsm/login", `{}`, 400, "name of an HSM"},
	}
	for _, tt := range tests {
		req, err := http.NewRequest(tt.method, "http://byokd"+"/", strings.NewReader(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		req.URL.Path, req.URL.RawQuery, _ = strings.Cut(tt.target, "?")
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Errorf("%s %s: %v", tt.method, tt.target, err)
			continue
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != tt.status || !strings.Contains(string(body), strings.ReplaceAll(tt.message, `"`, `\"`)) {
			t.Errorf("%s %s %.80s:\ngot  %d %s\nwant %d %s", tt.method, tt.target, tt.body, resp.StatusCode, body, tt.status, tt.message)
		}
	}
	if len(f.calls) > 0 {
		t.Errorf("the backend was asked %q", f.calls)
	}
}

// TestSyncDefaults: what is left out of a request is imported and updated.
func TestSyncDefaults(t *testing.T) {
	tests := []struct {
		in   string
		want control.SyncRequest
	}{
		{`{"group": "a"}`, control.SyncRequest{Group: "a", ImportMaterial: true, UpdatePolicy: true}},
		{`{"group": "a", "key_id": null, "generation": 0}`, control.SyncRequest{Group: "a", Generation: new(0), ImportMaterial: true, UpdatePolicy: true}},
		{`{"group": "a", "import_material": false, "update_policy": false}`, control.SyncRequest{Group: "a"}},
		{`{"group": "a", "generation": 2, "delete_material": true}`, control.SyncRequest{Group: "a", Generation: new(2), UpdatePolicy: true, DeleteMaterial: true}},
	}
	for _, tt := range tests {
		var got control.SyncRequest
		if err := json.Unmarshal([]byte(tt.in), &got); err != nil {
			t.Errorf("%s: %v", tt.in, err)
			continue
		}
		if err := got.Check(); err != nil {
			t.Errorf("%s: %v", tt.in, err)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", tt.in, diff)
		}
	}
}

func TestWorstFirst(t *testing.T) {
	problem := []control.Problem{{Code: "c"}}
	f := &fake{groups: []control.GroupStatus{
		{Group: "b", State: control.GroupOK},
		{Group: "a", State: control.GroupOK},
		{Group: "p", State: control.GroupOK, Problems: problem},
		{Group: "c", State: control.GroupPending},
		{Group: "d", State: control.GroupExpired},
		{Group: "e", State: control.GroupFailing},
		{Group: "f", State: control.GroupInvalid},
		{Group: "g", State: "of-a-later-version"},
		{Group: "h", State: control.GroupRemoved},
	}}
	got, err := client(t, f).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var order strings.Builder
	for _, g := range got {
		order.WriteString(g.Group)
	}
	if want := "gdefhcpab"; order.String() != want {
		t.Errorf("order %s, want %s", order.String(), want)
	}
}

func TestWatch(t *testing.T) {
	step := make(chan string)
	f := &fake{watch: func(ctx context.Context, id string, changed func(control.Job) error) error {
		for {
			select {
			case state := <-step:
				j := control.Job{JobSummary: control.JobSummary{ID: id, State: state}}
				for range 2 { // the second one is no change
					if err := changed(j); err != nil {
						return err
					}
				}
				if j.Final() {
					return nil
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}}
	c := client(t, f)
	var states []string
	go func() { step <- control.JobAvailable }()
	// Each state is sent only after the one before has arrived, so that the
	// stream cannot be held back in a buffer.
	next := map[string]string{control.JobAvailable: control.JobRunning, control.JobRunning: control.JobCompleted}
	err := c.Watch(t.Context(), "j", func(j control.Job) error {
		states = append(states, j.State)
		if n := next[j.State]; n != "" {
			step <- n
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{control.JobAvailable, control.JobRunning, control.JobCompleted}; !slices.Equal(states, want) {
		t.Errorf("states %q, want %q", states, want)
	}
}

// TestWatchEnds: a follower that leaves ends the backend's watch, its own
// error comes back, and a daemon that stops is told from a finished job.
func TestWatchEnds(t *testing.T) {
	ended := make(chan error, 1)
	f := &fake{watch: func(ctx context.Context, id string, changed func(control.Job) error) error {
		if err := changed(control.Job{JobSummary: control.JobSummary{ID: id, State: control.JobRunning}}); err != nil {
			return err
		}
		<-ctx.Done()
		ended <- ctx.Err()
		return ctx.Err()
	}}
	path, stop := serve(t, f)
	c := control.NewClient(path)
	t.Cleanup(c.Close)

	enough := errors.New("enough")
	if err := c.Watch(t.Context(), "j", func(control.Job) error { return enough }); err != enough {
		t.Errorf("got %v, want the callback's error", err)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("backend's watch ended with %v", err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	if err := c.Watch(ctx, "j", func(control.Job) error { cancel(); return nil }); !errors.Is(err, context.Canceled) || errors.Is(err, control.ErrUnreachable) {
		t.Errorf("got %v, want context.Canceled alone", err)
	}
	<-ended

	err := c.Watch(t.Context(), "j", func(control.Job) error { go stop(); return nil })
	if !errors.Is(err, control.ErrUnreachable) {
		t.Errorf("daemon stopped: got %v, want ErrUnreachable", err)
	}
	<-ended
}

// TestWatchBackendFails: an error after the first line cuts the stream.
func TestWatchBackendFails(t *testing.T) {
	f := &fake{watch: func(_ context.Context, _ string, changed func(control.Job) error) error {
		if err := changed(sample); err != nil {
			return err
		}
		return errors.New("database is gone")
	}}
	if err := client(t, f).Watch(t.Context(), "j", func(control.Job) error { return nil }); !errors.Is(err, control.ErrUnreachable) {
		t.Errorf("got %v, want ErrUnreachable", err)
	}
}

// TestStopWaits: a request that runs when the server is told to stop gets its
// answer, with its context alive.
func TestStopWaits(t *testing.T) {
	var stop func()
	b := &stopping{fake: &fake{job: sample}, stop: func() { go stop() }}
	path, s := serve(t, b)
	stop = s
	c := control.NewClient(path)
	t.Cleanup(c.Close)
	jobs, err := c.Rotate(t.Context(), []string{"a"}, false)
	if err != nil || len(jobs) != 1 {
		t.Errorf("got %v, %v", jobs, err)
	}
	if b.ctxErr != nil {
		t.Errorf("the request's context ended: %v", b.ctxErr)
	}
}

// stopping is told to stop while it rotates, and goes on once the socket is closed.
type stopping struct {
	*fake
	stop   func()
	ctxErr error
}

func (s *stopping) Rotate(ctx context.Context, groups []string, all bool, by string) ([]control.Job, error) {
	local := ctx.Value(http.LocalAddrContextKey).(net.Addr).String()
	s.stop()
	for {
		conn, err := net.Dial("unix", local)
		if err != nil {
			break
		}
		conn.Close()
	}
	s.ctxErr = ctx.Err()
	return s.fake.Rotate(ctx, groups, all, by)
}

func TestUnreachable(t *testing.T) {
	path := socketPath(t)
	c := control.NewClient(path)
	_, err := c.Status(t.Context())
	if !errors.Is(err, control.ErrUnreachable) || !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("no socket: %v", err)
	}
	stale(t, path)
	if _, err := c.Status(t.Context()); !errors.Is(err, control.ErrUnreachable) || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody listens: %v", err)
	}
	if err := c.Watch(t.Context(), "j", nil); !errors.Is(err, control.ErrUnreachable) {
		t.Errorf("Watch: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Status(ctx); !errors.Is(err, context.Canceled) || errors.Is(err, control.ErrUnreachable) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestNotByokd: what answers on the socket speaks HTTP but is not byokd.
func TestNotByokd(t *testing.T) {
	path := socketPath(t)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	body := ""
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if body == "" {
			http.Error(w, "no such page", http.StatusNotFound)
			return
		}
		io.WriteString(w, body)
	})}
	var wg sync.WaitGroup
	wg.Go(func() { srv.Serve(l) })
	defer wg.Wait()
	defer srv.Close()
	c := control.NewClient(path)
	t.Cleanup(c.Close)
	_, err = c.Status(t.Context())
	if e, ok := errors.AsType[*control.Error](err); !ok || e.Code != control.Internal || !strings.Contains(e.Message, "404") {
		t.Errorf("an error page: %v", err)
	}
	for _, body = range []string{"<html>", `{"group": 1}`, `[{"group": 1}]`} {
		if _, err := c.Status(t.Context()); err == nil || errors.Is(err, control.ErrUnreachable) {
			t.Errorf("%s: %v", body, err)
		}
	}
}

// stale leaves a socket at path on which nobody listens, as a killed process does.
func stale(t *testing.T, path string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
}

func TestListen(t *testing.T) {
	t.Run("fresh", func(t *testing.T) {
		path := socketPath(t)
		me, err := user.Current()
		if err != nil {
			t.Fatal(err)
		}
		group, err := user.LookupGroupId(me.Gid)
		if err != nil {
			t.Fatal(err)
		}
		l, err := control.Listen(path, group.Name)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != os.ModeSocket|0o660 {
			t.Errorf("mode %v, want socket 0660", info.Mode())
		}
		if got := info.Sys().(*syscall.Stat_t).Gid; fmt.Sprint(got) != me.Gid {
			t.Errorf("group %d, want %s", got, me.Gid)
		}
		l.Close()
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("after Close the socket is there: %v", err)
		}
	})
	t.Run("other group", func(t *testing.T) {
		if os.Getuid() != 0 {
			t.Log("not root: files cannot be given to other groups, so the own one stays")
		}
		path := socketPath(t)
		l, err := control.Listen(path, "daemon")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		want := fmt.Sprint(os.Getgid())
		if os.Getuid() == 0 {
			g, err := user.LookupGroup("daemon")
			if err != nil {
				t.Fatal(err)
			}
			want = g.Gid
		}
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(info.Sys().(*syscall.Stat_t).Gid); got != want {
			t.Errorf("group %s, want %s", got, want)
		}
	})
	t.Run("no such group", func(t *testing.T) {
		l, err := control.Listen(socketPath(t), "no-such-group-here")
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
	})
	t.Run("umask", func(t *testing.T) {
		before := syscall.Umask(0o022)
		defer syscall.Umask(before)
		l, err := control.Listen(socketPath(t), "byokd")
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		if now := syscall.Umask(0o022); now != 0o022 {
			t.Errorf("umask is %#o afterwards", now)
		}
	})
	t.Run("stale", func(t *testing.T) {
		path := socketPath(t)
		stale(t, path)
		l, err := control.Listen(path, "byokd")
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
	})
	t.Run("answered", func(t *testing.T) {
		path, _ := serve(t, &fake{})
		if _, err := control.Listen(path, "byokd"); err == nil || !strings.Contains(err.Error(), "another process answers") {
			t.Errorf("got %v", err)
		}
		c := control.NewClient(path)
		t.Cleanup(c.Close)
		if _, err := c.Status(t.Context()); err != nil {
			t.Errorf("the first server has lost its socket: %v", err)
		}
	})
	t.Run("not a socket", func(t *testing.T) {
		path := socketPath(t)
		if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := control.Listen(path, "byokd"); err == nil || !strings.Contains(err.Error(), "not a socket") {
			t.Errorf("got %v", err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
			t.Errorf("the file is gone: %q, %v", b, err)
		}
	})
	t.Run("link to a stale socket", func(t *testing.T) {
		path := socketPath(t)
		stale(t, path+".real")
		if err := os.Symlink(path+".real", path); err != nil {
			t.Fatal(err)
		}
		if _, err := control.Listen(path, "byokd"); err == nil || !strings.Contains(err.Error(), "not a socket") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("no directory", func(t *testing.T) {
		if _, err := control.Listen(filepath.Join(t.TempDir(), "none", "s"), "byokd"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("got %v", err)
		}
	})
}

// TestServeFails: a listener that breaks is an error, not an orderly end.
func TestServeFails(t *testing.T) {
	l, err := control.Listen(socketPath(t), "byokd")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := (&control.Server{Backend: &fake{}, Log: slog.New(slog.DiscardHandler)}).Serve(t.Context(), l); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v, want net.ErrClosed", err)
	}
}
