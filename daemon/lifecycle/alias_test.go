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
	for i, call := range w.calls[:act] { // the first record after that with which the step begins
		if call == "kms.Grants" {
			intent = i + 3
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

// afterMove does something to the key that the engine next moves the alias to, as
// soon as it has been moved; from is the generation whose key it leaves, 0: none.
func (w *world) afterMove(from int, do func(k *fakeKey)) {
	w.kms.onMove = func(m move) {
		if from == 0 && m.from == "" || from != 0 && m.from == w.keyOf(from).ID {
			w.kms.onMove = nil
			do(w.kms.keys[m.to])
		}
	}
}

// The new key stops working when the alias is on it: the alias goes back, nothing
// tells of a rotation, and a person is told of both keys.
func TestAliasPutBack(t *testing.T) {
	for _, verify := range []string{"auto", "describe"} {
		w := newWorld(t)
		def := definition()
		def.Verify = verify
		w.rotate(def)
		w.afterMove(1, func(k *fakeKey) { k.State = "Disabled" })
		id, err := w.try(def)
		one, two := w.keyOf(1).ID, w.keyOf(2).ID
		wantOperator(t, err, lifecycle.WaitConfig, "moved to KMS key "+two+" and put back on "+one, "Disabled", "enable it")
		if got := w.kms.aliases["alias/payments"].target; got != one {
			t.Errorf("the alias points at %s", got)
		}
		if len(w.journal.events) != 1 || w.generation(1).Stage != lifecycle.Active || w.generation(2).Stage != lifecycle.PreActive {
			t.Errorf("%d events, generation 1 is %s, 2 is %s", len(w.journal.events), w.generation(1).Stage, w.generation(2).Stage)
		}
		for _, step := range []string{"verify", "activate"} {
			if s := w.step(id, step); !strings.Contains(s.Message, "moved to KMS key "+two+" and put back on "+one) {
				t.Errorf("step %s is %s: %q", step, s.State, s.Message)
			}
		}
		if got := w.step(id, "activate"); got.State != lifecycle.Pending || got.Data != nil {
			t.Errorf("step activate is %s, %s: the job could not be cancelled", got.State, got.Data)
		}
		last := w.journal.audit[len(w.journal.audit)-1]
		if last.Action != "put alias back" || !strings.Contains(last.Detail, one) || !strings.Contains(last.Detail, two) {
			t.Errorf("audit: %+v", last)
		}
		wantOperator(t, w.drive(id, 3), lifecycle.WaitConfig, two)
		if n := len(w.kms.moves); n != 3 {
			t.Errorf("%d moves: the alias was moved again to a key that does not work", n)
		}

		w.keyOf(2).State = "Enabled"
		if err := w.drive(id, 0); err != nil {
			t.Fatal(err)
		}
		diff(t, "moves", []string{"alias/payments: new -> 1", "alias/payments: 1 -> 2", "alias/payments: 2 -> 1", "alias/payments: 1 -> 2"}, w.picture().Moves)
		if len(w.journal.events) != 2 {
			t.Errorf("%d events", len(w.journal.events))
		}
		w.check()
	}
}

// An alias stays where it is when there is nothing better: before it did not exist,
// the key before it does not work either, or a person has pointed it there.
func TestAliasNotPutBack(t *testing.T) {
	disable := func(k *fakeKey) { k.State = "Disabled" }
	for name, set := range map[string]func(w *world){
		"before this job it did not exist": func(w *world) { w.afterMove(0, disable) },
		"where it pointed before, is in state Disabled": func(w *world) {
			w.rotate(definition())
			w.afterMove(1, func(k *fakeKey) { disable(k); disable(w.keyOf(1)) })
		},
		"no longer exists": func(w *world) {
			w.rotate(definition())
			w.afterMove(1, func(k *fakeKey) { disable(k); delete(w.kms.keys, w.keyOf(1).ID) })
		},
		"this job has not moved it": func(w *world) {
			w.rotate(definition())
			w.hook = func(call string, _ int) (bool, error) {
				if call == "kms.DescribeKey" && w.stepRuns("activate") { // after its proof
					w.kms.point("alias/payments", w.keyOf(2).ID)
					disable(w.keyOf(2))
				}
				return true, nil
			}
		},
	} {
		w := newWorld(t)
		set(w)
		id, err := w.try(definition())
		w.hook = nil
		last := w.generation(len(w.journal.generations["payments"]))
		wantOperator(t, err, lifecycle.WaitConfig, "alias/payments", last.KeyID, "Disabled", "not put back", name)
		if got := w.kms.aliases["alias/payments"].target; got != last.KeyID || last.Stage != lifecycle.PreActive {
			t.Errorf("%s: the alias points at %s, the generation is %s", name, got, last.Stage)
		}
		moves := len(w.kms.moves)
		w.kms.keys[last.KeyID].State = "Enabled"
		if err := w.drive(id, 0); err != nil {
			t.Fatal(err)
		}
		if got := w.generation(last.Number).Stage; got != lifecycle.Active || len(w.kms.moves) != moves {
			t.Errorf("%s: the generation is %s after %d more moves", name, got, len(w.kms.moves)-moves)
		}
	}
}

// Whatever the call, after the move and while the alias is being put back, at
// which somebody else moves the alias: byokd does not fight, and names the keys.
func TestAliasMovedAfterTheMove(t *testing.T) {
	for _, broken := range []bool{false, true} {
		setUp := func() (w *world, id string) {
			w = newWorld(t)
			w.rotate(definition())
			w.rotate(definition())
			w.rotate(definition())
			if broken {
				w.afterMove(3, func(k *fakeKey) { k.State = "Disabled" })
			}
			w.advance(time.Hour)
			w.calls = nil
			return w, w.journal.enqueue(lifecycle.Rotate, definition(), lifecycle.Request{}, "schedule")
		}
		w, id := setUp()
		if err := w.drive(id, 0); (err != nil) != broken {
			t.Fatal(err)
		}
		// The last look at the alias: in the canary, or before it is put back.
		move := slices.Index(w.calls, "kms.UpdateAlias")
		look := len(w.calls) - 1 - move
		for i, call := range w.calls[move+1:] {
			if broken && call == "kms.UpdateAlias" {
				look = i
				break
			}
			if !broken && call == "kms.Encrypt" {
				look = i
			}
		}
		for i := move + 1; i < move+1+look; i++ {
			w, id := setUp()
			one := w.keyOf(1).ID
			w.hook = func(_ string, n int) (bool, error) {
				if n == i+1 {
					w.kms.point("alias/payments", one)
				}
				return true, nil
			}
			err := w.drive(id, 0)
			wantOperator(t, err, lifecycle.WaitAlias, "moved by somebody else", one, w.keyOf(3).ID, w.keyOf(4).ID)
			if got := w.kms.aliases["alias/payments"].target; got != one {
				t.Errorf("moved at call %d, %s: the alias points at %s", i+1, w.calls[i], got)
			}
			if n := len(w.journal.events); n != 3 {
				t.Errorf("moved at call %d, %s: %d events", i+1, w.calls[i], n)
			}
		}
	}
}

// KMS encrypts by the alias as it was for a while after it reads back at the new key.
func TestAliasEncryptsLate(t *testing.T) {
	w := newWorld(t)
	w.rotate(definition())
	w.kms.lateAliases, w.kms.lateEncrypt = time.Second, 20*time.Second
	w.rotate(definition())
	if since := w.now.Sub(w.kms.aliases["alias/payments"].changed); since < 20*time.Second {
		t.Errorf("the alias was believed %s after the move", since)
	}

	// What goes on for longer than KMS takes is the next attempt's.
	w.kms.lateEncrypt = time.Hour
	id := w.journal.enqueue(lifecycle.Rotate, definition(), lifecycle.Request{}, "schedule")
	if err, _ := w.attempt(id); lifecycle.ClassOf(err) != lifecycle.Transient {
		t.Fatalf("error %v", err)
	}
	w.journal.park(id, "retryable")
	if err := w.drive(id, 0); err != nil {
		t.Fatal(err)
	}
	diff(t, "moves", []string{"alias/payments: new -> 1", "alias/payments: 1 -> 2", "alias/payments: 2 -> 3"}, w.picture().Moves)
}

// That byokd may not encrypt says nothing against the key.
func TestAliasEncryptDenied(t *testing.T) {
	w := newWorld(t)
	w.rotate(definition())
	w.kms.onMove = func(move) { w.kms.denied["Encrypt"] = true }
	w.rotate(definition())
	diff(t, "moves", []string{"alias/payments: new -> 1", "alias/payments: 1 -> 2"}, w.picture().Moves)
}
