package daemon_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"byokd/daemon/control"
)

// script writes a shell script to be put on events.
func (w *world) script(name, body string) string {
	w.t.Helper()
	path := w.path(name)
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body), 0o700); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// lines are those of a file that hooks write to.
func (w *world) lines(name string) []string {
	w.t.Helper()
	b, err := os.ReadFile(w.path(name))
	if err != nil && !os.IsNotExist(err) {
		w.t.Fatal(err)
	}
	return strings.FieldsFunc(string(b), func(r rune) bool { return r == '\n' })
}

// hookStatus is a hook as the daemon tells of it.
func (w *world) hookStatus(on string) control.Hook {
	w.t.Helper()
	d, err := w.client.Daemon(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, h := range d.Hooks {
		if h.On == on {
			return h
		}
	}
	return control.Hook{}
}

// TestHooks: a command gets each event of its type as EventBridge would hand it
// over, and nothing of byokd's environment.
func TestHooks(t *testing.T) {
	t.Setenv("BYOKD_TEST_SECRET", "not for hooks")
	w := newWorld(t)
	all := w.script("all", `/bin/cat >>"$1"; echo >>"$1"`)
	moved := w.script("moved", fmt.Sprintf(`/usr/bin/env >%[1]s/env; pwd >%[1]s/cwd; /usr/bin/head -c 1 >>%[1]s/moved.out; echo >>%[1]s/moved.out`, w.dir))
	w.configure(fmt.Sprintf("[hooks]\n\"*\" = [%q, %q]\n\"KMS Alias Moved\" = %q", all, w.path("all.out"), moved))
	w.start()
	w.group("payments", every, "")
	w.untilGeneration("payments", 1)
	w.rotated("payments")
	w.until("the hooks have seen two alias moves", func() bool { return len(w.lines("all.out")) == 2 && len(w.lines("moved.out")) == 2 })
	for i, line := range w.lines("all.out") {
		var event struct {
			Version, ID, Source, Account, Region string
			DetailType                           string `json:"detail-type"`
			Time                                 time.Time
			Resources                            []string
			Detail                               struct {
				EventID  string `json:"event_id"`
				Group    string
				Sequence int
				NewKeyID string `json:"new_key_id"`
			}
		}
		if err := json.Unmarshal([]byte(line), &event); err != nil {
			t.Fatalf("line %d: %v: %s", i, err, line)
		}
		if event.DetailType != "KMS Alias Moved" || event.Source != "byokd" || event.Account != testAccount || event.Region != testRegion ||
			event.Version != "0" || event.ID == "" || event.ID != event.Detail.EventID || event.Detail.Sequence != i+1 ||
			event.Time.IsZero() || len(event.Resources) == 0 || event.Detail.NewKeyID == "" {
			t.Errorf("event %d: %s", i, line)
		}
	}
	// What a shell sets by itself, and nothing else.
	for _, line := range w.lines("env") {
		if name, _, _ := strings.Cut(line, "="); name != "PWD" && name != "OLDPWD" && name != "SHLVL" && name != "_" {
			t.Errorf("the command's environment has %s", line)
		}
	}
	if cwd := w.lines("cwd"); len(cwd) != 1 || cwd[0] != "/" {
		t.Errorf("the command runs in %v", cwd)
	}
	w.until("nothing waits for the hooks", func() bool { h := w.hookStatus("*"); return h.Waiting == 0 && h.Error == "" && !h.RanAt.IsZero() })

	// SIGHUP: one hook goes, the other is another command.
	w.configure(fmt.Sprintf("[hooks]\n\"*\" = [%q, %q]", all, w.path("other.out")))
	w.reload <- struct{}{}
	w.until("byokd has reloaded", func() bool { return w.log.contains("msg=reloaded") })
	w.rotated("payments")
	w.until("the new command has seen the move", func() bool { return len(w.lines("other.out")) == 1 })
	if h := w.hookStatus("KMS Alias Moved"); h.On != "" {
		t.Errorf("a hook that is gone is there: %+v", h)
	}
	if n, m := len(w.lines("all.out")), len(w.lines("moved.out")); n != 2 || m != 2 {
		t.Errorf("the old commands ran %d and %d times", n, m)
	}
}

// TestHookFails: a command that fails is told of and disturbs nothing; a reload,
// or the next success, ends it.
func TestHookFails(t *testing.T) {
	w := newWorld(t)
	bad := w.script("bad", fmt.Sprintf("echo no luck >&2; [ -e %s ]", w.path("good")))
	w.configure(fmt.Sprintf("[metrics]\nlisten = %q\n[hooks]\n\"*\" = %q\n\"BYOK Rotation Failed\" = \"/no/such/program\"", freeAddress(t), bad))
	w.start()
	if !w.log.contains("/no/such/program does not exist: install the program or correct the path") {
		t.Error("the missing program is not told of at start")
	}
	w.group("payments", every, "")
	w.untilGeneration("payments", 1)
	w.until("the failure is a problem of the group", func() bool { return w.problem("payments", "hook-failed") != "" })
	if p := w.problem("payments", "hook-failed"); !strings.Contains(p, `hook "*" failed for event`) || !strings.Contains(p, "exit status 1: no luck") {
		t.Errorf("problem: %s", p)
	}
	if s := w.status("payments"); s.State != control.GroupOK {
		t.Errorf("the group is %s", s.State)
	}
	w.until("the event was sent all the same", func() bool { return len(w.eventDetails("KMS Alias Moved")) == 1 })
	if !w.log.contains("hook failed; it goes on with the next event") {
		t.Error("the log does not tell of it")
	}
	if m := w.scrape(); !strings.Contains(m, `byokd_hook_runs_total{hook="*",result="failed"} 1`) ||
		!strings.Contains(m, `byokd_hook_events_waiting{hook="*"} 0`) ||
		!strings.Contains(m, `byokd_group_problems{code="hook-failed",group="payments"} 1`) {
		t.Errorf("metrics:\n%s", m)
	}
	w.restart() // it is remembered
	if w.problem("payments", "hook-failed") == "" {
		t.Error("the failure is forgotten over a restart")
	}
	w.write("good", "")
	w.rotated("payments")
	w.until("a success ends it", func() bool { return w.problem("payments", "hook-failed") == "" })
	if err := os.Remove(w.path("good")); err != nil {
		t.Fatal(err)
	}
	w.rotated("payments")
	w.until("it fails again", func() bool { return w.problem("payments", "hook-failed") != "" })
	w.reload <- struct{}{}
	w.until("a reload ends it", func() bool { return w.problem("payments", "hook-failed") == "" })
}

// TestHookHangs: a command that hangs blocks neither rotations nor events nor
// other hooks, nor byokd's end; then its event is met again.
func TestHookHangs(t *testing.T) {
	w := newWorld(t)
	// A child of its own, and both deaf to what is asked of them politely.
	hangs := w.script("hangs", fmt.Sprintf(`trap '' TERM HUP INT
(trap '' TERM HUP INT; sleep 1000) &
echo $$ >>%[1]s/pids; echo $! >>%[1]s/pids
[ -e %[1]s/pass ] || wait`, w.dir))
	other := w.script("other", fmt.Sprintf("echo >>%s/other.out", w.dir))
	w.configure(fmt.Sprintf("[hooks]\n\"*\" = %q\n\"KMS Alias Moved\" = %q", hangs, other))
	w.start()
	w.group("payments", every, "")
	w.untilGeneration("payments", 1)
	w.until("the command hangs", func() bool { return len(w.lines("pids")) == 2 })
	w.rotated("payments")
	w.until("events go on", func() bool { return len(w.eventDetails("KMS Alias Moved")) == 2 })
	w.until("so does the other hook", func() bool { return w.hookStatus("KMS Alias Moved").Waiting == 0 })
	if h := w.hookStatus("*"); h.Waiting != 2 || !h.RanAt.IsZero() {
		t.Errorf("the hook that hangs: %+v", h)
	}
	if n := len(w.lines("pids")); n != 2 {
		t.Errorf("%d processes were started, want one command with its child", n)
	}
	if err := w.halt(); err != nil {
		t.Fatal(err)
	}
	w.untilGone(w.lines("pids"))
	w.write("pass", "")
	w.start()
	w.until("both events were met again", func() bool { return len(w.lines("pids")) == 6 && w.hookStatus("*").Waiting == 0 })
	w.untilGone(w.lines("pids")) // what a command leaves in its group goes with it
}

// untilGone waits until there is none of the processes.
func (w *world) untilGone(pids []string) {
	w.t.Helper()
	for _, s := range pids {
		pid, err := strconv.Atoi(s)
		if err != nil {
			w.t.Fatal(err)
		}
		w.until("process "+s+" is gone", func() bool {
			stat, err := os.ReadFile(filepath.Join("/proc", s, "stat"))
			return err != nil || syscall.Kill(pid, 0) != nil || strings.Contains(string(stat), ") Z ")
		})
	}
}

// TestHooksWithoutEventBridge: with [events] off, hooks are told all the same,
// and nothing is ever sent of what they were told.
func TestHooksWithoutEventBridge(t *testing.T) {
	w := newWorld(t)
	all := w.script("all", fmt.Sprintf("/bin/cat >>%[1]s/all.out; echo >>%[1]s/all.out", w.dir))
	hooks := fmt.Sprintf("[hooks]\n\"*\" = %q\n", all)
	w.configure("[events]\nenabled = false\n" + hooks)
	w.start()
	w.group("payments", every, "")
	w.untilGeneration("payments", 1)
	w.until("the hook was told", func() bool { return len(w.lines("all.out")) == 1 })
	events, err := w.client.Events(t.Context(), control.EventFilter{Group: "payments"})
	if err != nil || len(events) != 1 || events[0].State != control.EventLocal {
		t.Fatalf("events %+v, %v", events, err)
	}
	w.configure("[events]\nenabled = true\n" + hooks)
	w.reload <- struct{}{}
	w.until("byokd has reloaded", func() bool { return w.log.contains("msg=reloaded") })
	w.rotated("payments")
	w.until("the second move is on the bus", func() bool { return len(w.eventDetails("KMS Alias Moved")) == 1 })
	if d := w.eventDetails("KMS Alias Moved")[0]; d["sequence"] != 2.0 {
		t.Errorf("sent: %v", d)
	}
}
