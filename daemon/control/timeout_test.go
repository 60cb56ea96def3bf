package control_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"byokd/daemon/control"
)

// A pipeListener hands out ends of net.Pipe, whose deadlines follow the time of
// a synctest bubble.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	select {
	case <-l.done:
	default:
		close(l.done)
	}
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

func (l *pipeListener) dial() net.Conn {
	client, server := net.Pipe()
	l.conns <- server
	return client
}

// servePipe serves the backend inside a bubble until the test ends.
func servePipe(t *testing.T, backend control.Backend) *pipeListener {
	l := &pipeListener{make(chan net.Conn), make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() {
		served <- (&control.Server{Backend: backend, Log: slog.New(slog.DiscardHandler)}).Serve(ctx, l)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return l
}

// TestWatchForDays: a followed job outlives every deadline of the server.
func TestWatchForDays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := servePipe(t, &fake{watch: func(ctx context.Context, id string, changed func(control.Job) error) error {
			for _, state := range []string{control.JobRunning, control.JobRetryable, control.JobCompleted} {
				select {
				case <-time.After(24 * time.Hour):
				case <-ctx.Done():
					return ctx.Err()
				}
				if err := changed(control.Job{JobSummary: control.JobSummary{ID: id, State: state}}); err != nil {
					return err
				}
			}
			return nil
		}})
		tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return l.dial(), nil }}
		defer tr.CloseIdleConnections()
		req, err := http.NewRequest("GET", "http://byokd/v1/jobs/j?follow=1", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		lines := 0
		for s := bufio.NewScanner(resp.Body); s.Scan(); lines++ {
		}
		if lines != 3 {
			t.Errorf("%d lines, want 3", lines)
		}
	})
}

// TestSlowRequest: a client that never ends its request is dropped.
func TestSlowRequest(t *testing.T) {
	for name, begin := range map[string]string{
		"nothing": "",
		"header":  "GET /v1/status HTTP/1.1\r\nHost: b",
		"body":    "POST /v1/rotate HTTP/1.1\r\nHost: byokd\r\nContent-Length: 100\r\n\r\n{",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fake{}
				conn := servePipe(t, f).dial()
				defer conn.Close()
				if _, err := io.WriteString(conn, begin); err != nil {
					t.Fatal(err)
				}
				if err := conn.SetReadDeadline(time.Now().Add(time.Hour)); err != nil {
					t.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, io.ErrClosedPipe) {
					t.Errorf("the connection is still open: %v", err)
				}
				if len(f.calls) > 0 {
					t.Errorf("the backend was asked %q", f.calls)
				}
			})
		})
	}
}

// TestSlowReader: a client that does not read its answer is dropped, and the
// backend's watch ends.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan error)
		conn := servePipe(t, &fake{watch: func(_ context.Context, _ string, changed func(control.Job) error) error {
			for job := sample; ; job.Attempt++ {
				if err := changed(job); err != nil {
					ended <- err
					return err
				}
			}
		}}).dial()
		defer conn.Close()
		if _, err := io.WriteString(conn, "GET /v1/jobs/j?follow=1 HTTP/1.1\r\nHost: byokd\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err == nil {
			t.Error("the watch ended without an error")
		}
	})
}
