package main_test

import (
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Each of byokd's loops, stuck: byokd says so and no longer feeds the watchdog,
// whose signal ends it with the status of a panic.
func TestStuckLoop(t *testing.T) {
	source, err := os.ReadFile("../../daemon/daemon.go")
	if err != nil {
		t.Fatal(err)
	}
	loops := regexp.MustCompile(`\tloop\("(\w+)"`).FindAllSubmatch(source, -1)
	if len(loops) < 10 {
		t.Fatalf("%d loops are begun in daemon.go", len(loops))
	}
	for _, name := range loops {
		loop := string(name[1])
		t.Run(loop, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			states, socket := m.notified()
			const watchdog = time.Second
			m.start("BYOKD_STUCK="+loop, socket, "WATCHDOG_USEC=1000000")
			for <-states != "READY=1" {
			}
			// Something to do for every loop.
			m.group("payments", "")
			m.write("run/requests/rotate.nobody", "")
			m.cmd.Process.Signal(syscall.SIGHUP)
			m.until("byokd says that it is stuck", func() bool {
				for line := range strings.Lines(m.log.String()) {
					if strings.Contains(line, "a part of byokd is stuck") && strings.Contains(line, loop) {
						return true
					}
				}
				return false
			})
			// As systemd does: nothing heard for that long, and it is killed.
			m.until("byokd is silent", func() bool {
				silent := time.After(watchdog)
				for {
					select {
					case state := <-states:
						if state == "WATCHDOG=1" {
							return false
						}
					case <-silent:
						return true
					}
				}
			})
			if status := m.stop(syscall.SIGABRT); status != 2 {
				t.Errorf("exit status %d, want 2", status)
			}
			if !strings.Contains(m.log.String(), "stuckIn") {
				t.Errorf("the log does not show where it is stuck")
			}
		})
	}
}
