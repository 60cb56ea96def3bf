package jobstore_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"byokd/daemon/jobstore"

	"github.com/google/go-cmp/cmp"
)

// TestHooks: each hook sees each event of its type once it is there, in order,
// from where it was when it was made, over restarts.
func TestHooks(t *testing.T) {
	ctx := t.Context()
	s, c := newStore(t)
	emit := func(detailType string) string {
		t.Helper()
		e := event("payments", "")
		e.DetailType = detailType
		if err := s.Emit(ctx, e); err != nil {
			t.Fatal(err)
		}
		return e.ID
	}
	next := func(name string) string {
		t.Helper()
		e, ok, err := s.HookEvent(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		if ok != (e.ID != "") {
			t.Fatalf("ok %t with event %q", ok, e.ID)
		}
		return e.ID
	}
	ran := func(name, id, errText string) {
		t.Helper()
		if err := s.HookRan(ctx, name, id, errText); err != nil {
			t.Fatal(err)
		}
	}
	set := func(names ...string) {
		t.Helper()
		if err := s.SetHooks(ctx, names); err != nil {
			t.Fatal(err)
		}
	}

	emit("KMS Alias Moved") // before there was a hook
	set("*", "BYOK Rotation Failed")
	if got := next("*"); got != "" {
		t.Errorf("a new hook is to see %s, which happened before it was made", got)
	}
	moved, failed := emit("KMS Alias Moved"), emit("BYOK Rotation Failed")
	if got := next("*"); got != moved {
		t.Errorf("* is to see %s, want %s", got, moved)
	}
	if got := next("BYOK Rotation Failed"); got != failed {
		t.Errorf("the hook on failures is to see %s, want %s", got, failed)
	}
	if got := next("no hook"); got != "" {
		t.Errorf("a hook that there is not is to see %s", got)
	}
	c.advance(time.Minute)
	ran("*", moved, "exit status 1")
	want := []jobstore.Hook{
		{Name: "*", RanAt: c.Now(), EventID: moved, Group: "payments", Error: "exit status 1", Waiting: 1},
		{Name: "BYOK Rotation Failed", Waiting: 1},
	}
	got, err := s.Hooks(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("hooks (-want +got)\n%s", diff)
	}

	// Kept names keep their place; a new one begins here; one that went does so too.
	set("*", "KMS Alias Moved")
	if got := next("*"); got != failed {
		t.Errorf("after SetHooks * is to see %s, want %s", got, failed)
	}
	set("*", "BYOK Rotation Failed")
	if got := next("BYOK Rotation Failed"); got != "" {
		t.Errorf("a hook that was away is to see %s", got)
	}
	if err := s.ForgiveHooks(ctx); err != nil {
		t.Fatal(err)
	}
	ran("*", failed, "")
	ran("gone", failed, "")
	if got := next("*"); got != "" {
		t.Errorf("* has seen all and is to see %s", got)
	}
	got, err = s.Hooks(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(got, func(h jobstore.Hook) bool { return h.Error != "" || h.Waiting != 0 }) {
		t.Errorf("hooks %+v", got)
	}
}

// TestHooksHoldPrune: an event stays until the hooks on it have seen it.
func TestHooksHoldPrune(t *testing.T) {
	ctx := t.Context()
	s, c := newStore(t)
	if err := s.SetHooks(ctx, []string{"KMS Alias Moved", "BYOK Key Expiring"}); err != nil {
		t.Fatal(err)
	}
	e := event("payments", "")
	if err := s.Emit(ctx, e); err != nil {
		t.Fatal(err)
	}
	if err := s.Sent(ctx, e.ID, "aws", c.Now()); err != nil {
		t.Fatal(err)
	}
	later := c.Now().Add(time.Hour)
	prune := func(want int) {
		t.Helper()
		if n, err := s.Prune(ctx, later); err != nil || n != want {
			t.Errorf("pruned %d rows, want %d; %v", n, want, err)
		}
	}
	prune(0)
	if err := s.HookRan(ctx, "KMS Alias Moved", e.ID, ""); err != nil {
		t.Fatal(err)
	}
	prune(1)
	// The place of a hook is none of an event that is gone.
	if err := s.HookRan(ctx, "KMS Alias Moved", e.ID, ""); err != nil {
		t.Error(err)
	}
}

// TestLocalEvents: events that are for hooks alone are numbered like the others,
// are never pending, and go in time.
func TestLocalEvents(t *testing.T) {
	ctx := t.Context()
	local := true
	c := &clock{now: epoch}
	s, err := jobstore.Open(ctx, create(t), jobstore.Options{Now: c.Now, Local: func() bool { return local }})
	must(t, err)
	defer s.Close()
	first := event("payments", "")
	if err := s.Emit(ctx, first); err != nil {
		t.Fatal(err)
	}
	local = false
	second := event("payments", "")
	if err := s.Emit(ctx, second); err != nil {
		t.Fatal(err)
	}
	checkSequences(t, s)
	pending, err := s.PendingEvents(ctx, c.Now(), 10)
	if err != nil || len(pending) != 1 || pending[0].ID != second.ID {
		t.Errorf("pending: %+v, %v", pending, err)
	}
	stats, err := s.OutboxStats(ctx)
	if err != nil || stats.Pending != 1 {
		t.Errorf("stats %+v, %v", stats, err)
	}
	events, err := s.Events(ctx, jobstore.EventFilter{State: jobstore.Local})
	if err != nil || len(events) != 1 || events[0].ID != first.ID {
		t.Errorf("local: %+v, %v", events, err)
	}
	if n, err := s.Prune(ctx, c.Now().Add(time.Hour)); err != nil || n != 1 {
		t.Errorf("pruned %d, %v", n, err)
	}
}

// TestUnfinished: one filter for all jobs that have not ended.
func TestUnfinished(t *testing.T) {
	ctx := t.Context()
	s, _ := newStore(t)
	for i := range 3 {
		if _, _, err := s.Enqueue(ctx, jobstore.NewJob{Kind: "synchronize", Group: fmt.Sprintf("g%d", i), Trigger: "start"}); err != nil {
			t.Fatal(err)
		}
	}
	jobs, err := s.Jobs(ctx, jobstore.JobFilter{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Cancel(ctx, jobs[0].ID); err != nil {
		t.Fatal(err)
	}
	open, err := s.Jobs(ctx, jobstore.JobFilter{State: jobstore.Unfinished})
	if err != nil || len(open) != 2 {
		t.Errorf("%d jobs have not ended, want 2; %v", len(open), err)
	}
}

// TestAuditDefinition: the trail says which definition was in force.
func TestAuditDefinition(t *testing.T) {
	ctx := t.Context()
	s, _ := newStore(t)
	if err := s.SetDefinition(ctx, "payments", []byte(`{}`), "d1", "main", jobstore.AuditEntry{Actor: "watch", Action: "take definition", Definition: "d1"}); err != nil {
		t.Fatal(err)
	}
	trail, err := s.Audit(ctx, jobstore.AuditFilter{Group: "payments"})
	if err != nil || len(trail) != 1 || trail[0].Definition != "d1" || trail[0].Group != "payments" || trail[0].At.IsZero() {
		t.Errorf("trail %+v, %v", trail, err)
	}
}
