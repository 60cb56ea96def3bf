// Package systemd is what byokd tells its service manager: that it is ready,
// reloads, stops and is alive, and its log records with their fields. The unit
// and its sysusers.d and tmpfiles.d files lie beside it.
package systemd

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A Notifier sends the notifications of sd_notify(3). It does nothing, and
// returns no errors, where the process was not started with NOTIFY_SOCKET.
// Its methods may be called from several goroutines.
type Notifier struct {
	socket   *net.UnixAddr // nil: none
	watchdog time.Duration // as the service manager demands it; 0: not at all
}

// FromEnvironment returns a Notifier for NOTIFY_SOCKET (a path, or a name in
// the abstract namespace that begins with @) and for WATCHDOG_USEC and
// WATCHDOG_PID as sd_watchdog_enabled(3) reads them. The environment is left
// as it is.
func FromEnvironment() *Notifier {
	n := new(Notifier)
	if name := os.Getenv("NOTIFY_SOCKET"); name != "" {
		n.socket = &net.UnixAddr{Name: name, Net: "unixgram"}
	}
	if pid := os.Getenv("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return n // meant for another process
	}
	if usec, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64); err == nil && usec > 0 {
		n.watchdog = time.Duration(usec) * time.Microsecond
	}
	return n
}

// Ready tells that the start, or a reload, is complete.
func (n *Notifier) Ready() error { return n.send("READY=1") }

// Reloading tells that a reload has begun; Ready ends it.
func (n *Notifier) Reloading() error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return fmt.Errorf("read the monotonic clock: %w", err)
	}
	return n.send(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", now.Nano()/1000))
}

// Stopping tells that the process is about to end.
func (n *Notifier) Stopping() error { return n.send("STOPPING=1") }

// Status sets the line that systemctl status shows. Line breaks in it become
// spaces.
func (n *Notifier) Status(status string) error {
	return n.send("STATUS=" + strings.Map(func(r rune) rune {
		if r == '\n' || r == '\r' {
			return ' '
		}
		return r
	}, status))
}

// Watchdog returns the service manager's watchdog.
func (n *Notifier) Watchdog() Watchdog { return Watchdog{n} }

// A Watchdog kills and restarts the process when it has not been heard of for
// too long.
type Watchdog struct{ notifier *Notifier }

// Interval returns how often Ping is to be called, or 0 if there is no
// watchdog. It is half of what the service manager waits for, as
// sd_watchdog_enabled(3) recommends.
func (w Watchdog) Interval() time.Duration { return w.notifier.watchdog / 2 }

// Ping tells that the process is well.
func (w Watchdog) Ping() error { return w.notifier.send("WATCHDOG=1") }

// send sends one datagram of assignments, one a line.
func (n *Notifier) send(state string) error {
	if n.socket == nil {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, n.socket)
	if err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(state)); err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	return nil
}
