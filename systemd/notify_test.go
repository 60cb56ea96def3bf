package systemd_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"byokd/systemd"

	"golang.org/x/sys/unix"
)

func receive(t *testing.T, conn *net.UnixConn) string {
	t.Helper()
	b := make([]byte, 64<<10)
	n, err := conn.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

func TestNotifier(t *testing.T) {
	for _, name := range []string{"", fmt.Sprintf("@byokd-test-%d", os.Getpid())} {
		t.Run("socket "+name, func(t *testing.T) {
			conn, name := listen(t, name)
			t.Setenv("NOTIFY_SOCKET", name)
			t.Setenv("WATCHDOG_USEC", "10000000")
			t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
			n := systemd.FromEnvironment()
			tests := []struct {
				call func() error
				want string
			}{
				{n.Ready, "READY=1"},
				{n.Stopping, "STOPPING=1"},
				{n.Watchdog().Ping, "WATCHDOG=1"},
				{func() error { return n.Status("3 groups, all ok") }, "STATUS=3 groups, all ok"},
				{func() error { return n.Status("a\nREADY=1\r\nb") }, "STATUS=a READY=1  b"},
				{func() error { return n.Status("") }, "STATUS="},
			}
			for _, tt := range tests {
				if err := tt.call(); err != nil {
					t.Errorf("%s: %v", tt.want, err)
					continue
				}
				if got := receive(t, conn); got != tt.want {
					t.Errorf("received %q, want %q", got, tt.want)
				}
			}
			if got := n.Watchdog().Interval(); got != 5*time.Second {
				t.Errorf("Interval = %v, want half of what is demanded", got)
			}
		})
	}
}

func TestReloading(t *testing.T) {
	conn, name := listen(t, "")
	t.Setenv("NOTIFY_SOCKET", name)
	monotonic := func() int64 {
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
			t.Fatal(err)
		}
		return now.Nano() / 1000
	}
	before := monotonic()
	if err := systemd.FromEnvironment().Reloading(); err != nil {
		t.Fatal(err)
	}
	after := monotonic()
	got, ok := strings.CutPrefix(receive(t, conn), "RELOADING=1\nMONOTONIC_USEC=")
	usec, err := strconv.ParseInt(got, 10, 64)
	if !ok || err != nil || usec < before || usec > after {
		t.Errorf("MONOTONIC_USEC=%s, want it between %d and %d", got, before, after)
	}
}

func TestNotifierWithoutSocket(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	t.Setenv("WATCHDOG_USEC", "")
	n := systemd.FromEnvironment()
	for _, call := range []func() error{n.Ready, n.Reloading, n.Stopping, n.Watchdog().Ping, func() error { return n.Status("x") }} {
		if err := call(); err != nil {
			t.Error(err)
		}
	}
	if got := n.Watchdog().Interval(); got != 0 {
		t.Errorf("Interval = %v", got)
	}
}

func TestNotifierSocketGone(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "none"))
	if err := systemd.FromEnvironment().Ready(); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("error %v, want it to say that the socket is not there", err)
	}
}

func TestWatchdogEnvironment(t *testing.T) {
	tests := []struct {
		usec, pid string
		want      time.Duration
	}{
		{"", "", 0},
		{"60000000", "", 30 * time.Second},
		{"60000000", strconv.Itoa(os.Getpid()), 30 * time.Second},
		{"60000000", strconv.Itoa(os.Getpid() + 1), 0},
		{"60000000", "nobody", 0},
		{"0", "", 0},
		{"-5", "", 0},
		{"soon", "", 0},
	}
	for _, tt := range tests {
		t.Setenv("WATCHDOG_USEC", tt.usec)
		t.Setenv("WATCHDOG_PID", tt.pid)
		if got := systemd.FromEnvironment().Watchdog().Interval(); got != tt.want {
			t.Errorf("WATCHDOG_USEC=%s WATCHDOG_PID=%s: Interval = %v, want %v", tt.usec, tt.pid, got, tt.want)
		}
	}
}
