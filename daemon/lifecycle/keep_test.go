package lifecycle_test

import (
	"strings"
	"testing"
	"time"

	"byokd/daemon/lifecycle"
)

// keep asks that a generation be kept.
func (w *world) keep(def lifecycle.Definition, number int) string {
	return w.ask(def, lifecycle.Retire, number, lifecycle.RetireKeep)
}

// rollback asks for a roll back to a generation.
func (w *world) rollback(def lifecycle.Definition, number int) string {
	return w.ask(def, lifecycle.Rollback, number, "")
}

func (w *world) ask(def lifecycle.Definition, kind lifecycle.Kind, number int, retire string) string {
	id := w.journal.enqueue(kind, def, lifecycle.Request{Generation: &number, Retire: retire}, "control")
	w.journal.jobs[id].generation = number
	return id
}

func TestKeep(t *testing.T) {
	w := newWorld(t)
	def := retiringWholly()
	w.rotate(def)
	w.rotate(def)
	if err := w.drive(w.keep(def, 1), 0); err != nil {
		t.Fatal(err)
	}
	diff(t, "planned", map[string]float64{}, w.planned(w.now))
	w.rotate(def)
	left := w.generation(2).LeftAt
	diff(t, "planned after the next rotation", map[string]float64{"disable:2": 1, "material:2": 10, "delete:2": 40}, w.planned(left))

	// Kept twice is kept, and nothing happens to the key.
	w.calls = nil
	id := w.keep(def, 1)
	if err := w.drive(id, 0); err != nil || len(w.writes()) != 0 {
		t.Errorf("%v, wrote %q", err, w.writes())
	}
	if got := w.step(id, "check"); got.State != lifecycle.Skipped || !strings.Contains(got.Message, "kept since") {
		t.Errorf("check: %+v", got)
	}

	// A job that was under way when it came finds it kept.
	late := w.journal.insert(lifecycle.NewJob{Kind: lifecycle.Retire, Group: "payments", Generation: 1, UniqueKey: "x", Definition: def, Request: lifecycle.Request{Retire: lifecycle.RetireDisable}})
	if err := w.drive(late, 0); err != nil || w.keyOf(1).State != "Enabled" {
		t.Errorf("%v, the key is %s", err, w.keyOf(1).State)
	}

	// Until somebody says otherwise, or it becomes active again.
	if err := w.drive(w.ask(def, lifecycle.Retire, 1, lifecycle.RetireRelease), 0); err != nil {
		t.Fatal(err)
	}
	if got := len(w.planned(left)); got != 6 {
		t.Errorf("%d jobs are planned", got)
	}
	w.drive(w.keep(def, 1), 0)
	if err := w.drive(w.rollback(def, 1), 0); err != nil {
		t.Fatal(err)
	}
	if g := w.generation(1); !g.KeptAt.IsZero() || !g.LeftAt.IsZero() {
		t.Errorf("generation %+v", g)
	}
	w.check()
}

// What a deletion that is cancelled leaves behind is what was there before.
func TestKeepRestores(t *testing.T) {
	for _, tt := range []struct {
		name   string
		def    func(*lifecycle.Definition)
		before func(w *world)
		want   string
		said   string
	}{
		{"enabled", func(*lifecycle.Definition) {}, func(*world) {}, "Enabled", "Enabled"},
		{"disabled by byokd", func(def *lifecycle.Definition) { def.DisablePrevious = true }, func(*world) {}, "Disabled", "enable it in KMS"},
		{"disabled by a person", func(*lifecycle.Definition) {}, func(w *world) { w.keyOf(1).State = "Disabled" }, "Disabled", "enable it in KMS"},
		{"without material", func(def *lifecycle.Definition) { def.DeletePreviousMaterialAfter = ptr(9 * days) }, func(*world) {}, "PendingImport", "byokctl sync payments --generation 1"},
		{"scheduled by a person", func(*lifecycle.Definition) {}, func(w *world) {
			k := w.keyOf(1)
			k.State, k.DeletionDate = "PendingDeletion", w.now.Add(60*days)
		}, "Disabled", "enable it in KMS"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			def := definition()
			def.SchedulePreviousDeletionAfter = ptr(10 * days)
			tt.def(&def)
			w.rotate(def)
			w.rotate(def)
			tt.before(w)
			w.drain()
			if got := w.generation(1).State(w.now); got != "pending-deletion" {
				t.Fatalf("generation 1 is %s", got)
			}
			id := w.keep(def, 1)
			if err := w.drive(id, 0); err != nil {
				t.Fatal(err)
			}
			if got := w.keyOf(1).State; got != tt.want {
				t.Errorf("the key is %s", got)
			}
			if got := w.step(id, "retire").Message; !strings.Contains(got, tt.said) {
				t.Errorf("said %q", got)
			}
			diff(t, "planned", map[string]float64{}, w.planned(w.now))
			w.check()
		})
	}
}

func TestKeepRefused(t *testing.T) {
	w := newWorld(t)
	def := definition()
	def.SchedulePreviousDeletionAfter = ptr(10 * days)
	w.rotate(def)
	wantPermanent(t, w.drive(w.keep(def, 1), 0), "generation 1 is active")
	w.rotate(def)
	w.drain()
	w.advance(31 * days)
	wantPermanent(t, w.drive(w.keep(def, 1), 0), "generation 1 is destroyed")
	if got := w.generation(1).HSMID; len(w.hsm.find(got)) != 1 {
		t.Error("its HSM object is gone")
	}
}

func TestRollback(t *testing.T) {
	w := newWorld(t)
	def := retiringWholly()
	w.rotate(def)
	w.rotate(def)
	rotated := lifecycle.LastRotation(w.journal.generations["payments"])
	if err := w.drive(w.rollback(def, 1), 0); err != nil {
		t.Fatal(err)
	}
	if a := w.kms.aliases["alias/payments"]; a.target != w.keyOf(1).ID {
		t.Errorf("the alias points at %s", a.target)
	}
	if got := lifecycle.LastRotation(w.journal.generations["payments"]); !got.Equal(rotated) {
		t.Errorf("last rotation %v, was %v", got, rotated)
	}
	left := w.generation(2).LeftAt
	got := w.planned(left)
	if got["material:2"] > 10.001 { // since its import, of which AWS's clock tells
		t.Errorf("the material is deleted after %v days", got["material:2"])
	}
	delete(got, "material:2")
	diff(t, "planned", map[string]float64{"disable:2": 1, "delete:2": 40}, got)
	e := w.journal.events[2]
	if e.detail["trigger"] != "control" || e.detail["generation"] != 1.0 || e.detail["previous_key_id"] != w.keyOf(2).ID || e.detail["new_key_id"] != w.keyOf(1).ID {
		t.Errorf("event %v", e.detail)
	}

	// Forward again, and then the next one has a number of its own.
	if err := w.drive(w.rollback(def, 2), 0); err != nil {
		t.Fatal(err)
	}
	w.rotate(def)
	if g := w.generation(3); g.Stage != lifecycle.Active {
		t.Errorf("generation 3 is %s", g.Stage)
	}
	w.check()
}

// A rotation that follows a roll back at once is not taken in by an alias that KMS
// still shows where it was.
func TestRotateRightAfterRollback(t *testing.T) {
	w := newWorld(t)
	w.rotate(definition())
	w.rotate(definition())
	w.kms.lateAliases = 20 * time.Second
	if err := w.drive(w.rollback(definition(), 1), 0); err != nil {
		t.Fatal(err)
	}
	w.kms.lateAliases = 25 * time.Second
	if err := w.drive(w.journal.enqueue(lifecycle.Rotate, definition(), lifecycle.Request{}, "control"), 0); err != nil {
		t.Fatal(err)
	}
	diff(t, "moves", []string{"alias/payments: new -> 1", "alias/payments: 1 -> 2", "alias/payments: 2 -> 1", "alias/payments: 1 -> 3"}, w.picture().Moves)
	w.check()
}

// Where the alias can neither stay nor go back, a roll back is not given up: the
// alias is not as it was, and that is told once one of the keys can be used.
func TestRollbackNotPutBack(t *testing.T) {
	w := newWorld(t)
	w.rotate(definition())
	w.rotate(definition())
	w.advance(time.Hour)
	one, two := w.keyOf(1), w.keyOf(2)
	w.afterMove(2, func(k *fakeKey) { k.State, two.State = "Disabled", "Disabled" })
	id := w.rollback(definition(), 1)
	wantOperator(t, w.drive(id, 0), lifecycle.WaitConfig, "not put back", one.ID, two.ID)
	one.State = "Enabled"
	w.journal.park(id, "retryable")
	if err := w.drive(id, 0); err != nil {
		t.Fatal(err)
	}
	if g := w.generation(1); g.Stage != lifecycle.Active || w.kms.aliases["alias/payments"].target != one.ID {
		t.Errorf("generation 1 is %s, the alias points at %s", g.Stage, w.kms.aliases["alias/payments"].target)
	}
	if n := len(w.journal.events); n != 3 || w.journal.events[2].detail["new_key_id"] != one.ID {
		t.Errorf("%d events", n)
	}
}

func TestRollbackRefused(t *testing.T) {
	for _, tt := range []struct {
		name   string
		before func(w *world)
		said   []string
	}{
		{"disabled by byokd", func(w *world) { w.disable(1) }, []string{"disabled", "aws kms enable-key"}},
		{"disabled by a person", func(w *world) { w.keyOf(1).State = "Disabled" }, []string{"disabled", "aws kms enable-key"}},
		{"without material", func(w *world) { w.keyOf(1).forget() }, []string{"no key material", "byokctl sync payments --generation 1"}},
		{"material deleted", func(w *world) {
			w.synchronize(definition(), lifecycle.Request{Asked: true, Generation: ptr(1), DeleteMaterial: true})
		}, []string{"material-deleted", "byokctl sync payments --generation 1"}},
		{"to be deleted", func(w *world) {
			k := w.keyOf(1)
			k.State, k.DeletionDate = "PendingDeletion", w.now.Add(7*days)
		}, []string{"will be deleted", "byokctl keep payments 1"}},
		{"to be deleted, recorded", func(w *world) { w.journal.generations["payments"][0].DeletionDate = w.now.Add(days) }, []string{"will be deleted", "byokctl keep payments 1"}},
		{"deleted", func(w *world) { w.journal.generations["payments"][0].DeletionDate = w.now }, []string{"destroyed"}},
		{"gone", func(w *world) { delete(w.kms.keys, w.generation(1).KeyID) }, []string{"no longer exists"}},
		{"expired", func(w *world) { w.journal.generations["payments"][0].ValidTo = w.now }, []string{"expired", "byokctl sync"}},
		{"active", func(w *world) {
			list := w.journal.generations["payments"]
			list[0].Stage, list[1].Stage = lifecycle.Active, lifecycle.Previous
		}, []string{"active one already"}},
		{"in place", func(w *world) {
			list := w.journal.generations["payments"]
			list[0].KeyID = list[1].KeyID
		}, []string{"rotation in place cannot be undone"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.rotate(definition())
			w.rotate(definition())
			tt.before(w)
			w.calls = nil
			events := len(w.journal.events)
			wantPermanent(t, w.drive(w.rollback(definition(), 1), 0), tt.said...)
			if got := w.writes(); len(got) != 0 || len(w.journal.events) != events {
				t.Errorf("wrote %q, %d events", got, len(w.journal.events)-events)
			}
		})
	}

	// Where the alias is somebody else's it waits, as a rotation does.
	w := newWorld(t)
	w.rotate(definition())
	w.rotate(definition())
	foreign := w.kms.addForeign()
	w.kms.point("alias/payments", foreign.ID)
	wantOperator(t, w.drive(w.rollback(definition(), 1), 0), lifecycle.WaitAlias, foreign.ID)
}

func TestRollbackTarget(t *testing.T) {
	g := func(number int, key string, stage lifecycle.Stage) lifecycle.Generation {
		return lifecycle.Generation{Group: "payments", Number: number, KeyID: key, Stage: stage}
	}
	for _, tt := range []struct {
		name string
		list []lifecycle.Generation
		to   *int
		want int
		said string
	}{
		{"none", nil, nil, 0, "no active generation"},
		{"the first", []lifecycle.Generation{g(1, "a", lifecycle.Active)}, nil, 0, "none before it"},
		{"the one before", []lifecycle.Generation{g(1, "a", lifecycle.Previous), g(2, "b", lifecycle.Previous), g(3, "c", lifecycle.Destroyed), g(4, "d", lifecycle.Active)}, nil, 2, ""},
		{"the adopted one", []lifecycle.Generation{g(0, "a", lifecycle.Previous), g(1, "b", lifecycle.Active)}, nil, 0, ""},
		{"not a later one", []lifecycle.Generation{g(1, "a", lifecycle.Active), g(2, "b", lifecycle.Previous)}, nil, 0, "none before it"},
		{"a later one, named", []lifecycle.Generation{g(1, "a", lifecycle.Active), g(2, "b", lifecycle.Previous)}, ptr(2), 2, ""},
		{"unknown", []lifecycle.Generation{g(1, "a", lifecycle.Active)}, ptr(7), 0, "no generation 7"},
		{"never active", []lifecycle.Generation{g(1, "a", lifecycle.Active), g(2, "b", lifecycle.PreActive)}, ptr(2), 0, "never active"},
		{"in place", []lifecycle.Generation{g(1, "a", lifecycle.Previous), g(2, "a", lifecycle.Active)}, nil, 0, "cannot be undone"},
		{"not the current material", []lifecycle.Generation{g(1, "a", lifecycle.Previous), g(2, "a", lifecycle.Previous), g(3, "b", lifecycle.Active)}, ptr(1), 0, "--to 2"},
	} {
		got, err := lifecycle.RollbackTarget(tt.list, tt.to, time.Now())
		switch {
		case tt.said == "" && (err != nil || got.Number != tt.want):
			t.Errorf("%s: %d, %v", tt.name, got.Number, err)
		case tt.said != "" && (err == nil || !strings.Contains(err.Error(), tt.said)):
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// A key that byokd had disabled and a person has enabled stays enabled once its
// generation is kept, whichever came first, and counts as enabled.
func TestKeepEnabled(t *testing.T) {
	for _, first := range []string{"keep", "enable"} {
		t.Run(first, func(t *testing.T) {
			w := newWorld(t)
			def := definition()
			def.DisablePrevious = true
			w.rotate(def)
			w.rotate(def)
			w.drain()
			if got := w.generation(1).State(w.now); got != "disabled" {
				t.Fatalf("generation 1 is %s", got)
			}
			w.advance(time.Hour)
			if first == "enable" {
				w.keyOf(1).State = "Enabled"
			}
			if err := w.drive(w.keep(def, 1), 0); err != nil {
				t.Fatal(err)
			}
			w.keyOf(1).State = "Enabled"
			if err := w.drive(w.journal.enqueue(lifecycle.Synchronize, def, lifecycle.Request{Repair: true}, "drift"), 0); err != nil {
				t.Fatal(err)
			}
			if g := w.generation(1); w.keyOf(1).State != "Enabled" || g.State(w.now) != "previous" {
				t.Errorf("the key is %s, generation 1 %s", w.keyOf(1).State, g.State(w.now))
			}
			if got := words(w.drift(def, true)); len(got) > 0 {
				t.Errorf("differs: %v", got)
			}
		})
	}
}
