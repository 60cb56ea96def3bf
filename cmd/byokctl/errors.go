package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"

	"byokd/config"
	"byokd/daemon/control"
)

// The exit statuses.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitUnreachable = 3
)

// A failure is an error with its exit status and what to do about it.
type failure struct {
	status int
	err    error
	try    string // "": nothing in particular
}

func (f *failure) Error() string { return f.err.Error() }

func (f *failure) Unwrap() error { return f.err }

// hint sets what to do.
func (f *failure) hint(format string, args ...any) *failure {
	f.try = fmt.Sprintf(format, args...)
	return f
}

func usage(format string, args ...any) *failure {
	return &failure{status: exitUsage, err: fmt.Errorf(format, args...)}
}

func failed(format string, args ...any) *failure {
	return &failure{status: exitFailed, err: fmt.Errorf(format, args...)}
}

// report prints an error of a command and returns the exit status that goes
// with it.
func (t *tool) report(err error, command string) int {
	status, try := t.explain(err, command)
	if problems, ok := errors.AsType[config.Problems](err); ok {
		fmt.Fprintln(t.stderr, problems)
	} else {
		fmt.Fprintln(t.stderr, "byokctl:", err)
	}
	if try != "" {
		fmt.Fprintln(t.stderr, "Try:", try)
	}
	return status
}

// explain returns the exit status of an error and what to do about it.
func (t *tool) explain(err error, command string) (status int, try string) {
	if !t.begun {
		return exitUsage, command + " --help"
	}
	if f, ok := errors.AsType[*failure](err); ok {
		return f.status, cmp.Or(f.try, t.unreachable(f.err))
	}
	if _, ok := errors.AsType[config.Problems](err); ok {
		return exitUsage, ""
	}
	if errors.Is(err, control.ErrUnreachable) {
		return exitUnreachable, t.unreachable(err)
	}
	if e, ok := errors.AsType[*control.Error](err); ok {
		switch e.Code {
		case control.UnknownGroup:
			return exitUsage, "byokctl status, which lists the groups"
		case control.UnknownJob:
			return exitUsage, "byokctl jobs, which lists the jobs"
		case control.Usage:
			return exitUsage, command + " --help"
		case control.NotDesignated:
			return exitFailed, "the same on the designated device, or set designated = true in byokd.toml and reload byokd"
		case control.Conflict:
			return exitFailed, "byokctl jobs and byokctl keys, which show how things stand"
		}
		return exitFailed, "journalctl -u byokd, which may tell more"
	}
	return exitFailed, ""
}

// unreachable says what to do about a daemon that does not answer.
func (t *tool) unreachable(err error) string {
	switch {
	case !errors.Is(err, control.ErrUnreachable):
		return ""
	case errors.Is(err, fs.ErrPermission):
		return "as root, or as a member of group byokd, whom the socket lets in"
	case errors.Is(err, fs.ErrNotExist):
		return "systemctl status byokd, to see whether it runs; --socket, if its socket is not " + t.socket
	}
	return "systemctl status byokd, to see whether it runs"
}
