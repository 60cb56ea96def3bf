//go:build faults

package daemon

import (
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// In a build with the tag faults, $BYOKD_FAULT is HOW:WHEN:N, where HOW is kill
// (SIGKILL) or panic, WHEN is before or after, and N counts the journal's
// records since the start, from 1; or it is count:FILE, and the file has the
// number of records so far. $BYOKD_CREATE_LOOK replaces the engine's CreateLook.
var records atomic.Int64

func beforeRecord() { fault("before", records.Add(1)) }
func afterRecord()  { fault("after", records.Load()) }

func fault(when string, n int64) {
	how, rest, _ := strings.Cut(os.Getenv("BYOKD_FAULT"), ":")
	if how == "count" {
		os.WriteFile(rest, fmt.Append(nil, n), 0o600)
		return
	}
	if rest != fmt.Sprintf("%s:%d", when, n) {
		return
	}
	if how == "panic" {
		panic("injected by BYOKD_FAULT")
	}
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// stuckIn never returns in the loop that $BYOKD_STUCK names, once byokd is ready.
func stuckIn(loop string) {
	if loop == os.Getenv("BYOKD_STUCK") {
		select {}
	}
}

func createLook() time.Duration {
	d, err := time.ParseDuration(os.Getenv("BYOKD_CREATE_LOOK"))
	if err != nil {
		return 0
	}
	return d
}
