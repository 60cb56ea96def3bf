package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

const (
	// listenRetry is when an address is tried again that could not be had.
	listenRetry = 30 * time.Second

	// Limits on a request of a reader, who waits for nothing.
	readerTimeout = 10 * time.Second
	writerTimeout = 30 * time.Second
	readerIdle    = time.Minute
	readerHeader  = 16 << 10 // bytes
)

// listeners are what byokd serves on TCP for readers: metrics and the page.
// byokd rotates without them.
type listeners struct {
	d *Daemon

	mu       sync.Mutex
	failures map[string]*problem // by table of byokd.toml
}

func newListeners(d *Daemon) *listeners { return &listeners{d: d, failures: make(map[string]*problem)} }

// serve serves on the address that the table's listen names until ctx ends; "":
// it does not. An address that cannot be had is tried again. accept, if not nil,
// says what is wrong with the address that came of it.
func (l *listeners) serve(ctx context.Context, table, address string, accept func(net.Addr) error, handler http.Handler) {
	if address == "" {
		return
	}
	for ctx.Err() == nil {
		err := l.serveOnce(ctx, table, address, accept, handler)
		if ctx.Err() != nil {
			return
		}
		l.mu.Lock()
		if l.failures[table] == nil {
			message := fmt.Sprintf("[%s] listen = %q: %v; it is tried again every %s: free the address, or choose another and restart byokd", table, address, err, listenRetry)
			l.failures[table] = &problem{table, message, l.d.Now()}
			l.d.log.Error("an address of byokd.toml cannot be listened on; rotations go on", "table", table, "listen", address, "err", err,
				"advice", "free the address, or choose another and restart byokd")
		}
		l.mu.Unlock()
		sleep(ctx, listenRetry, nil)
	}
}

func (l *listeners) serveOnce(ctx context.Context, table, address string, accept func(net.Addr) error, handler http.Handler) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	defer listener.Close()
	if accept != nil {
		if err := accept(listener.Addr()); err != nil {
			return err
		}
	}
	l.mu.Lock()
	delete(l.failures, table)
	l.mu.Unlock()
	l.d.log.Info("listening", "table", table, "listen", listener.Addr().String())
	server := &http.Server{Handler: handler, ReadTimeout: readerTimeout, WriteTimeout: writerTimeout, IdleTimeout: readerIdle, MaxHeaderBytes: readerHeader}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// problems are why something is not served.
func (l *listeners) problems() []*problem {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []*problem
	for _, table := range slices.Sorted(maps.Keys(l.failures)) {
		all = append(all, l.failures[table])
	}
	return all
}
