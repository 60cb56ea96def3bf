package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"byokd/daemon/control"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	testscript.Main(leakFree{m}, map[string]func(){"byokctl": main})
}

// leakFree fails a test run that leaves goroutines behind.
type leakFree struct{ m *testing.M }

func (l leakFree) Run() int {
	status := l.m.Run()
	if err := goleak.Find(); err != nil && status == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return status
}

// A script is run to its end.
func TestScriptsAreNotCutShort(t *testing.T) {
	files, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts (%v)", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		script, _, _ := strings.Cut(string(text), "\n-- ")
		for n, line := range strings.Split(script, "\n") {
			if words := strings.Fields(line); len(words) > 0 && words[0] == "stop" {
				t.Errorf("%s:%d: stop ends the script here; halt stops the daemon", file, n+1)
			}
		}
	}
}

func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			// The tests' own user may have these.
			e.Setenv("BYOKD_CONFIG", filepath.Join(e.WorkDir, "byokd.toml"))
			e.Setenv("BYOKD_SOCKET", filepath.Join(e.WorkDir, "control.sock"))
			// A program under the race detector sleeps a second at its end.
			e.Setenv("GORACE", "atexit_sleep_ms=0")
			// Configuration is refused in a folder that others may write to.
			return os.Chmod(e.WorkDir, 0o700)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":   exits,
			"daemon":  startDaemon,
			"halt":    haltDaemon,
			"asked":   asked,
			"watched": watched,
		},
	})
}

// exits runs a program and compares its exit status:
//
//	exits STATUS PROGRAM [ARG...]
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits STATUS PROGRAM [ARG...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		e, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = e.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}

// A fakeDaemon is the one that a script runs against.
type fakeDaemon struct {
	*fake
	stop func()
}

// daemons has one for each script that runs, by its socket.
var daemons sync.Map

func daemonOf(ts *testscript.TestScript) *fakeDaemon {
	d, ok := daemons.Load(ts.Getenv("BYOKD_SOCKET"))
	if !ok {
		ts.Fatalf("no daemon runs")
	}
	return d.(*fakeDaemon)
}

// startDaemon serves a fake on $BYOKD_SOCKET:
//
//	daemon SCENARIO
func startDaemon(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: daemon SCENARIO")
	}
	f, err := newFake([]byte(ts.ReadFile(args[0])))
	ts.Check(err)
	path := ts.Getenv("BYOKD_SOCKET")
	l, err := control.Listen(path, "byokd")
	ts.Check(err)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() {
		served <- (&control.Server{Backend: f, Log: slog.New(slog.DiscardHandler)}).Serve(ctx, l)
	}()
	stop := sync.OnceFunc(func() {
		cancel()
		ts.Check(<-served)
	})
	daemons.Store(path, &fakeDaemon{f, stop})
	ts.Defer(stop)
}

// haltDaemon stops it. It is not called "stop": that is testscript's own command,
// which ends the script as if all of it had passed.
func haltDaemon(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: halt")
	}
	daemonOf(ts).stop()
}

// asked compares what the daemon was asked to change since the last time:
//
//	asked [REQUEST...]
func asked(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ts.Fatalf("usage: asked [REQUEST...]")
	}
	d := daemonOf(ts)
	d.mu.Lock()
	defer d.mu.Unlock()
	if !slices.Equal(d.asked, args) {
		ts.Fatalf("the daemon was asked %q, want %q", d.asked, args)
	}
	d.asked = nil
}

// watched waits until a follower has been sent all that the daemon knows of an
// unfinished job:
//
//	watched ID
func watched(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: watched ID")
	}
	<-daemonOf(ts).watched[args[0]]
}
