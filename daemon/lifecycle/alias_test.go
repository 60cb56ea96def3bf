package lifecycle_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"byokd/daemon/lifecycle"
)

func TestForeignAlias(t *testing.T) {
	w := newWorld(t)
	foreign := w.kms.addForeign()
	w.kms.point("alias/payments", foreign.ID)
	id, err := w.try(definition())
	wantOperator(t, err, lifecycle.WaitAlias, "alias/payments", foreign.ID, `active_key_id = "`+foreign.ID+`"`)
	if len(w.journal.generations) != 0 || len(w.hsm.objects) != 0 || len(w.kms.keys) != 1 {
		t.Error("something was made")
	}
	if got := w.step(id, "generate"); got.State != lifecycle.Failed || !strings.Contains(got.Message, "active_key_id") {
		t.Errorf("step generate is %s: %s", got.State, got.Message)
	}

	// The person takes the line over: the waiting job goes on.
	def := definition()
	def.ActiveKeyID = foreign.ID
	w.reconcileUntilDone(def)
	if err := w.drive(id, 0); err != nil {
		t.Fatal(err)
	}
	if got, want := w.kms.moves[0], (move{"alias/payments", foreign.ID, w.keyOf(1).ID}); got != want {
		t.Errorf("moved %v, want %v", got, want)
	}
}

// A key that carries the group's tags is the group's, even if it is in no journal.
func TestAliasOwnedByTags(t *testing.T) {
	for _, owner := range []string{"payments", "cards"} {
		w := newWorld(t)
		k := w.kms.add("", "", map[string]string{lifecycle.TagGroup: owner})
		w.kms.point("alias/payments", k.ID)
		def := definition()
		def.PreviousName = "cards"
		w.rotate(def)
		if got := w.kms.aliases["alias/payments"].target; got != w.keyOf(1).ID {
			t.Errorf("owner %s: the alias points at %s", owner, got)
		}
	}
}

// Somebody moves the alias: before a rotation, between its intent and its act, or
// while it waits to be tried again.
func TestAliasMovedBySomebodyElse(t *testing.T) {
	for _, foreign := range []bool{true, false} {
		w := newWorld(t)
		w.rotate(definition())
		w.rotate(definition())
		two := w.keyOf(2).ID
		elsewhere := w.keyOf(1).ID
		if foreign {
			elsewhere = w.kms.addForeign().ID
		}
		w.hook = func(call string, _ int) (bool, error) {
			if call == "journal.Record" && w.stepRuns("activate") {
				w.kms.point("alias/payments", elsewhere) // while the intent is written
			}
			return true, nil
		}
		id, err := w.try(definition())
		wantOperator(t, err, lifecycle.WaitAlias, "alias/payments", elsewhere, two, w.keyOf(3).ID)
		if got := w.kms.aliases["alias/payments"].target; got != elsewhere {
			t.Errorf("the alias was moved to %s", got)
		}
		w.hook = nil

		// It stays so until a person points it back.
		wantOperator(t, w.drive(id, 3), lifecycle.WaitAlias)
		w.kms.point("alias/payments", two)
		if err := w.drive(id, 0); err != nil {
			t.Fatal(err)
		}
		if got := w.kms.aliases["alias/payments"].target; got != w.keyOf(3).ID {
			t.Errorf("the alias points at %s", got)
		}
		w.check()
	}
}

// Whatever the call of activate after which somebody moves the alias: up to the
// last look before the act it is seen.
func TestAliasMovedAtAnyTime(t *testing.T) {
	setUp := func() (w *world, id string) {
		w = newWorld(t)
		w.rotate(definition())
		w.rotate(definition())
		w.advance(time.Hour)
		w.calls = nil
		return w, w.journal.enqueue(lifecycle.Rotate, definition(), lifecycle.Request{}, "schedule")
	}
	w, id := setUp()
	if err := w.drive(id, 0); err != nil {
		t.Fatal(err)
	}
	intent, act := 0, slices.Index(w.calls, "kms.UpdateAlias")
	for i, call := range w.calls[:act] { // the first record after that of the running step
		if call == "kms.Decrypt" {
			intent = i + 4
		}
	}
	if act-intent < 4 || w.calls[intent] != "journal.Record" {
		t.Fatalf("the intent is not call %d of %q", intent, w.calls)
	}
	for i := intent; i < act; i++ {
		w, id := setUp()
		w.hook = func(_ string, n int) (bool, error) {
			if n == i+1 {
				w.kms.point("alias/payments", w.keyOf(1).ID)
			}
			return true, nil
		}
		wantOperator(t, w.drive(id, 0), lifecycle.WaitAlias, w.keyOf(1).ID)
		if got := w.kms.aliases["alias/payments"].target; got != w.keyOf(1).ID {
			t.Errorf("moved at call %d, %s: the alias points at %s", i+1, w.calls[i], got)
		}
	}
}

// stepRuns reports whether the running job's step is recorded as running. What
// activate records next is its intent.
func (w *world) stepRuns(name string) bool {
	for _, row := range w.journal.jobs {
		if row.state == "running" {
			return slices.ContainsFunc(row.steps, func(s lifecycle.Step) bool { return s.Name == name && s.State == lifecycle.Running })
		}
	}
	return false
}

func TestAliasDeletedMeanwhile(t *testing.T) {
	for _, when := range []string{"before", "after the intent", "at the act"} {
		w := newWorld(t)
		w.rotate(definition())
		if when == "before" {
			w.kms.point("alias/payments", "")
		}
		w.hook = func(call string, _ int) (bool, error) {
			if when == "after the intent" && call == "journal.Record" && w.stepRuns("activate") || when == "at the act" && call == "kms.UpdateAlias" {
				w.kms.point("alias/payments", "")
				w.hook = nil
			}
			return true, nil
		}
		w.rotate(definition())
		if a := w.kms.aliases["alias/payments"]; a == nil || a.target != w.keyOf(2).ID {
			t.Errorf("deleted %s: the alias is %+v", when, a)
		}
		if got, want := w.journal.events[1].detail["previous_key_id"] == nil, when == "before"; got != want {
			t.Errorf("deleted %s: previous_key_id is %v", when, w.journal.events[1].detail["previous_key_id"])
		}
		w.check()
	}
}

// An alias that a person has put back on an older generation of the group is
// moved on by the next rotation, from where it is.
func TestAliasAtAnOlderGeneration(t *testing.T) {
	w := newWorld(t)
	for range 3 {
		w.rotate(definition())
	}
	w.kms.point("alias/payments", w.keyOf(1).ID)
	w.rotate(definition())
	event := w.journal.events[3].detail
	if event["previous_key_id"] != w.keyOf(1).ID || w.kms.aliases["alias/payments"].target != w.keyOf(4).ID {
		t.Errorf("event %v, alias at %s", event, w.kms.aliases["alias/payments"].target)
	}
	w.check()
}

// The alias points at the new key before the job comes to move it.
func TestAliasAlreadyThere(t *testing.T) {
	w := newWorld(t)
	w.rotate(definition())
	w.hook = func(call string, _ int) (bool, error) {
		if call == "kms.Decrypt" {
			w.kms.point("alias/payments", w.keyOf(2).ID)
		}
		return true, nil
	}
	w.rotate(definition())
	if got := w.journal.events[1].detail["previous_key_id"]; got != w.keyOf(1).ID {
		t.Errorf("previous_key_id is %v", got)
	}
	w.check()
}

// An alias that still reads back at the key before the active one a moment after
// it was moved is not believed.
func TestStaleAliasBeforeRotation(t *testing.T) {
	w := newWorld(t)
	w.rotate(definition())
	w.rotate(definition())
	w.kms.aliases["alias/payments"].changed = w.now
	w.kms.lateAliases = 20 * time.Second
	if err := w.drive(w.journal.enqueue(lifecycle.Rotate, definition(), lifecycle.Request{}, "request"), 0); err != nil {
		t.Fatal(err)
	}
	if got := w.journal.events[2].detail["previous_key_id"]; got != w.keyOf(2).ID {
		t.Errorf("previous_key_id is %v", got)
	}
	w.check()
}

// An alias that never reads back is an attempt that failed, not a success.
func TestAliasNeverReadsBack(t *testing.T) {
	w := newWorld(t)
	w.rotate(definition())
	w.kms.lateAliases = time.Hour
	w.advance(2 * time.Hour)
	id := w.journal.enqueue(lifecycle.Rotate, definition(), lifecycle.Request{}, "schedule")
	err, _ := w.attempt(id)
	if lifecycle.ClassOf(err) != lifecycle.Transient {
		t.Fatalf("error %v", err)
	}
	if got := w.generation(2).Stage; got != lifecycle.PreActive {
		t.Errorf("generation 2 is %s", got)
	}
	w.journal.park(id, "retryable")
	if err := w.drive(id, 0); err != nil {
		t.Fatal(err)
	}
	diff(t, "moves", []string{"alias/payments: new -> 1", "alias/payments: 1 -> 2"}, w.picture().Moves)
}
