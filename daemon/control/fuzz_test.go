package control_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"byokd/daemon/control"
)

// A strict backend fails the test when the server lets through what it must not.
type strict struct {
	fake
	t *testing.T
}

func (s *strict) Jobs(ctx context.Context, f control.JobFilter) ([]control.JobSummary, error) {
	if f.Limit < 0 {
		s.t.Errorf("limit %d", f.Limit)
	}
	return s.fake.Jobs(ctx, f)
}

func (s *strict) Rotate(ctx context.Context, groups []string, all bool, by string) ([]control.Job, error) {
	if all == (len(groups) > 0) {
		s.t.Errorf("rotate %q, all %t", groups, all)
	}
	return s.fake.Rotate(ctx, groups, all, by)
}

func (s *strict) Sync(ctx context.Context, r control.SyncRequest, by string) (control.Job, error) {
	named := r.Generation != nil || r.KeyID != ""
	if r.Group == "" || r.Generation != nil && (*r.Generation < 0 || r.KeyID != "") || r.DeleteMaterial && (!named || r.ImportMaterial) {
		s.t.Errorf("sync %+v", r)
	}
	return s.fake.Sync(ctx, r, by)
}

func (s *strict) Retry(ctx context.Context, ids []string, all bool, by string) ([]control.Job, error) {
	if all == (len(ids) > 0) {
		s.t.Errorf("retry %q, all %t", ids, all)
	}
	return s.fake.Retry(ctx, ids, all, by)
}

func (s *strict) HSM(ctx context.Context, login, by string) ([]control.HSMStatus, error) {
	if by == "" {
		s.t.Error("hsm by nobody")
	}
	return s.fake.HSM(ctx, login, by)
}

// FuzzHandler: whatever comes in, the answer is JSON with a status that a client
// knows, and nothing that contradicts itself reaches the backend.
func FuzzHandler(f *testing.F) {
	f.Add("GET", "/v1/status?group=a&group=b", "")
	f.Add("GET", "/v1/groups/a%2fb/keys", "")
	f.Add("GET", "/v1/jobs?state=running&limit=3", "")
	f.Add("GET", "/v1/jobs/j?follow=1", "")
	f.Add("POST", "/v1/jobs/j/cancel", "{}")
	f.Add("POST", "/v1/rotate", `{"groups": ["a"], "all": false}`)
	f.Add("POST", "/v1/sync", `{"group": "a", "generation": 3, "key_id": null, "delete_material": true}`)
	f.Add("POST", "/v1/drift", `{"groups": ["a"]}`)
	f.Add("POST", "/v1/retry", `{"all": true}`)
	f.Add("POST", "/v1/hsm/login", `{"name": "main"}`)
	f.Add("GET", "/v1/hsm", "")
	f.Add("GET", "/v1/daemon", "")
	f.Add("PUT", "/v1/../v1/status", "[")
	f.Fuzz(func(t *testing.T, method, target, body string) {
		u, err := url.ParseRequestURI(target)
		if err != nil || !strings.HasPrefix(target, "/") {
			return // not a request line that net/http lets through
		}
		req, err := http.NewRequest(method, "http://byokd", strings.NewReader(body))
		if err != nil {
			return
		}
		req.URL.Path, req.URL.RawPath, req.URL.RawQuery = u.Path, u.RawPath, u.RawQuery
		backend := &strict{t: t}
		backend.watch = func(_ context.Context, _ string, changed func(control.Job) error) error { return changed(sample) }
		rec := httptest.NewRecorder()
		(&control.Server{Backend: backend, Log: slog.New(slog.DiscardHandler)}).Handler(t.Context()).ServeHTTP(rec, req)

		if len(backend.calls) > 1 {
			t.Errorf("the backend was asked %q", backend.calls)
		}
		switch rec.Code {
		case http.StatusMovedPermanently, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
			return // the path was cleaned
		case http.StatusOK:
			if len(backend.calls) != 1 {
				t.Errorf("answered without the backend: %s", rec.Body)
			}
		case http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed:
			if len(backend.calls) != 0 {
				t.Errorf("refused with %d after the backend was asked %q", rec.Code, backend.calls)
			}
			var e control.Error
			if err := json.Unmarshal(rec.Body.Bytes(), &e); err != nil || e.Code == "" || e.Message == "" {
				t.Errorf("status %d with body %s", rec.Code, rec.Body)
			}
		default:
			t.Errorf("status %d", rec.Code)
		}
		for d := json.NewDecoder(bytes.NewReader(rec.Body.Bytes())); ; {
			var v any
			if err := d.Decode(&v); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("the answer is not JSON: %v\n%s", err, rec.Body)
			}
		}
	})
}
