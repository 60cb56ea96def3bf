package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"byokd/daemon/control"
	"byokd/daemon/jobstore"

	"golang.org/x/sys/unix"
)

const (
	// hookLimit is how long a hook's command may run.
	hookLimit = 60 * time.Second

	// hookOutput is how much of what a command wrote, from the end, is told when
	// it failed.
	hookOutput = 1 << 10

	// hookPipes is how long a command that has ended may still hold its pipes
	// open: what has left its process group is not waited for.
	hookPipes = time.Second
)

var errHookLimit = fmt.Errorf("it had not ended after %s and was killed", hookLimit)

// hooks run the commands of [hooks], each for every event of its detail-type, in
// order and one at a time, once at least: how far it has come is in the
// database. They wait for nobody, and nobody waits for them.
type hooks struct {
	d *Daemon

	mu  sync.Mutex
	set []string // the names that the database has
}

func newHooks(d *Daemon) *hooks { return &hooks{d: d} }

// follow makes the hooks of byokd.toml those of the database.
func (h *hooks) follow(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	names := slices.Sorted(maps.Keys(h.d.cfg.Load().Hooks))
	if h.set != nil && slices.Equal(names, h.set) {
		return nil
	}
	if err := h.d.store.SetHooks(ctx, names); err != nil {
		return err
	}
	h.set = append([]string{}, names...)
	return nil
}

// run runs commands until ctx ends, which kills those that run: their events are
// met again at the next start.
func (h *hooks) run(ctx context.Context, p *pulse) {
	var running sync.WaitGroup
	defer running.Wait()
	defer p.end()
	var mu sync.Mutex
	busy := make(map[string]bool)
	for {
		if err := h.follow(ctx); err != nil {
			h.d.storeFailed("store the hooks", err)
		}
		for name, command := range h.d.cfg.Load().Hooks {
			mu.Lock()
			runs := busy[name]
			mu.Unlock()
			if runs {
				continue
			}
			event, ok, err := h.d.store.HookEvent(ctx, name)
			if err != nil && ctx.Err() == nil {
				h.d.storeFailed("read the events of a hook", err)
			}
			if !ok {
				continue
			}
			mu.Lock()
			busy[name] = true
			mu.Unlock()
			running.Go(func() {
				h.do(ctx, name, command, event)
				mu.Lock()
				delete(busy, name)
				mu.Unlock()
				wake(h.d.hooksWake)
			})
		}
		if !p.sleep(ctx, idleLook, h.d.hooksWake) {
			return
		}
	}
}

// do runs a hook's command for one event and records that it has.
func (h *hooks) do(ctx context.Context, name string, command []string, e jobstore.OutboxEvent) {
	log := h.d.log.With("hook", name, "group", e.Group, "event_id", e.ID, "detail_type", e.DetailType)
	begun := time.Now()
	err := runCommand(ctx, command, h.event(e), hookLimit)
	if ctx.Err() != nil {
		log.Info("hook is broken off: byokd stops; it is run again for this event")
		return
	}
	result, text := "ok", ""
	if err != nil {
		result, text = "failed", err.Error()
		log.Error("hook failed; it goes on with the next event", "command", command[0], "err", err,
			"advice", "mend the command; it is not run again for this event")
	} else {
		log.Debug("hook ran", "elapsed", time.Since(begun).Round(time.Millisecond))
	}
	h.d.metrics.hooks.WithLabelValues(name, result).Inc()
	// Until that is recorded nothing else is run: it would be for this event again.
	for pause := time.Second; ; pause = min(2*pause, idleLook) {
		err := h.d.store.HookRan(context.WithoutCancel(ctx), name, e.ID, text)
		if err == nil {
			return
		}
		h.d.storeFailed("record a run of a hook", err)
		if !sleep(ctx, pause, nil) {
			return
		}
	}
}

// event is what a command reads: the event as EventBridge would hand it to a
// consumer, with byokd's ID for it.
func (h *hooks) event(e jobstore.OutboxEvent) []byte {
	return mustJSON(struct {
		Version    string               `json:"version"`
		ID         string               `json:"id"`
		DetailType string               `json:"detail-type"`
		Source     string               `json:"source"`
		Account    control.String       `json:"account"`
		Time       control.Time         `json:"time"`
		Region     control.String       `json:"region"`
		Resources  control.List[string] `json:"resources"`
		Detail     json.RawMessage      `json:"detail"`
	}{"0", e.ID, e.DetailType, h.d.cfg.Load().Events.Source, control.String(e.Account), control.At(e.OccurredAt),
		control.String(e.Region), e.Resources, e.Detail})
}

// runCommand runs a command with stdin as its input, no environment, / as its
// directory, and a process group of its own, which is killed when the command
// has ended, when the limit has passed, and when ctx ends. The error holds the
// end of what it wrote.
func runCommand(ctx context.Context, command []string, stdin []byte, limit time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errHookLimit)
	defer cancel()
	var out tail
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env = []string{} // nil would be byokd's own
	cmd.Dir = "/"
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	kill := func() error {
		_ = cmd.Process.Kill() // it may have joined another group
		return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	cmd.Cancel = kill
	cmd.WaitDelay = hookPipes
	if err := cmd.Start(); err != nil {
		return err
	}
	// Wait without reaping: until then nobody else can have the group's number.
	for unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	_ = kill() // what it left behind; there may be nothing
	err := cmd.Wait()
	switch {
	case errors.Is(err, exec.ErrWaitDelay):
		err = nil // it has ended well, and something that left its group holds a pipe
	case err != nil && ctx.Err() != nil:
		err = context.Cause(ctx)
	}
	if said := out.String(); err != nil && said != "" {
		err = fmt.Errorf("%w: %s", err, said)
	}
	return err
}

// A tail keeps the end of what is written to it.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if cut := len(t.b) - hookOutput; cut > 0 {
		t.b = append(t.b[:0], t.b[cut:]...)
	}
	return len(p), nil
}

// String is the end in one line.
func (t *tail) String() string {
	return strings.Join(strings.Fields(strings.ToValidUTF8(string(t.b), "?")), " ")
}

// statuses are the hooks as `byokctl status` shows them.
func (h *hooks) statuses(ctx context.Context) ([]control.Hook, error) {
	rows, err := h.d.store.Hooks(ctx)
	if err != nil {
		return nil, err
	}
	commands := h.d.cfg.Load().Hooks
	var all []control.Hook
	for _, row := range rows {
		all = append(all, control.Hook{On: row.Name, Command: control.List[string](commands[row.Name]), Waiting: row.Waiting,
			RanAt: control.At(row.RanAt), EventID: control.String(row.EventID), Error: control.String(row.Error)})
	}
	return all, nil
}
