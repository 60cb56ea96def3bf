package lifecycle_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"byokd/daemon/lifecycle"
)

// TestRandom lets byokd, its users, AWS, the token and the database do as they
// like, in any order, with calls that fail and a process that dies, and demands
// that everything is in order once it is left in peace. What must never happen at
// all, the fakes themselves refuse.
func TestRandom(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		w.lookAgain = true
		w.maxAttempts = 400
		def := definition()
		def.Mode = rapid.SampledFrom([]string{"alias", "in-place", "auto"}).Draw(t, "mode")
		w.rotate(def)
		var rotation string // open, or ended

		open := func(id string) bool {
			row := w.journal.jobs[id]
			return row != nil && row.state != "completed" && row.state != "discarded"
		}
		// do drives a job with one mishap at most, and leaves it where it waits
		// for a person.
		do := func(id string) error {
			w.calls = nil
			at, m := rapid.IntRange(0, 40).Draw(t, "call"), mishaps[rapid.IntRange(0, len(mishaps)-1).Draw(t, "mishap")]
			w.hook = func(name string, n int) (bool, error) {
				journal := len(name) > 8 && name[:8] == "journal."
				if n != at || journal && !m.journal || !journal && m.notOthers {
					return true, nil
				}
				return m.apply, m.err(w)
			}
			defer func() { w.hook = nil }()
			return w.drive(id, 0)
		}
		someGeneration := func() lifecycle.Generation {
			list := w.journal.generations["payments"]
			return list[rapid.IntRange(0, len(list)-1).Draw(t, "generation")]
		}
		ask := func(req lifecycle.Request) {
			do(w.journal.enqueue(lifecycle.Synchronize, def, req, "control"))
		}
		// settle has the jobs that somebody has made or left carried on.
		settle := func() {
			for _, id := range slices.Clone(w.journal.order) {
				if open(id) && !w.journal.jobs[id].due.After(w.now) {
					if err := do(id); lifecycle.ClassOf(err) == lifecycle.Permanent && !w.journal.jobs[id].req.Asked {
						t.Errorf("%s: %v", w.journal.jobs[id].kind, err)
					}
				}
			}
		}
		foreign := w.kms.addForeign()

		actions := map[string]func(){
			"rotate": func() {
				if !open(rotation) { // asking again joins
					rotation = w.journal.enqueue(lifecycle.Rotate, def, lifecycle.Request{}, "request")
				}
				if err := do(rotation); lifecycle.ClassOf(err) == lifecycle.Permanent {
					t.Errorf("rotate: %v", err)
				}
			},
			"change the definition": func() {
				def.Tags = map[string]string{rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "tag"): "x"}
				def.Policy = rapid.SampledFrom([]*string{nil, ptr(`{"p": 1}`), ptr(`{"p": 2}`)}).Draw(t, "policy")
				def.Description = rapid.SampledFrom([]*string{nil, ptr("one"), ptr("two")}).Draw(t, "description")
				def.KeepValidFor = rapid.SampledFrom([]time.Duration{0, 60 * days, 365 * days}).Draw(t, "keep_valid_for")
				if rapid.IntRange(0, 3).Draw(t, "change of mode") == 0 {
					def.Mode = rapid.SampledFrom([]string{"alias", "in-place", "auto"}).Draw(t, "mode")
				}
				def.DisablePrevious = rapid.Bool().Draw(t, "disable_previous") && def.Mode != "in-place"
				def.DisablePreviousAfter = rapid.SampledFrom([]time.Duration{0, 24 * time.Hour}).Draw(t, "disable_previous_after")
				def.Verify = rapid.SampledFrom([]string{"auto", "crypto", "describe"}).Draw(t, "verify")
				if err := do(w.journal.enqueue(lifecycle.Synchronize, def, lifecycle.Request{}, "watch")); lifecycle.ClassOf(err) == lifecycle.Permanent {
					t.Errorf("synchronize: %v", err)
				}
			},
			"ask for material": func() {
				ask(lifecycle.Request{Asked: true, Generation: ptr(someGeneration().Number), ImportMaterial: true, UpdatePolicy: true})
			},
			"delete material": func() {
				ask(lifecycle.Request{Asked: true, Generation: ptr(someGeneration().Number), DeleteMaterial: true})
			},
			"carry on": settle,
			"wait":     func() { w.advance(time.Duration(rapid.IntRange(1, 2000).Draw(t, "hours")) * time.Hour) },
			"somebody deletes the alias": func() {
				w.kms.point(def.Alias, "")
			},
			"somebody moves the alias": func() {
				if g := someGeneration(); w.kms.look(g.KeyID) != nil && w.kms.keys[g.KeyID].State != "PendingDeletion" {
					w.kms.point(def.Alias, g.KeyID)
				}
			},
			"somebody takes the alias": func() { w.kms.point(def.Alias, foreign.ID) },
			"somebody disables a key": func() {
				if k := w.kms.look(someGeneration().KeyID); k != nil && k.State == "Enabled" {
					k.State = "Disabled"
				}
			},
			"the next key fails once the alias is on it": func() {
				fail := rapid.SampledFrom([]func(k *fakeKey){
					func(k *fakeKey) { k.State = "Disabled" },
					(*fakeKey).forget,
					func(k *fakeKey) { k.State, k.DeletionDate = "PendingDeletion", w.kms.Now().Add(30*days) },
				}).Draw(t, "failure")
				w.kms.onMove = func(m move) {
					if g, ok := w.journal.generationOf(w.kms.keys[m.to].tags[lifecycle.TagHSMID]); ok && g.Stage == lifecycle.PreActive {
						w.kms.onMove = nil
						fail(w.kms.keys[m.to])
					}
				}
			},
			"somebody deletes the new key": func() {
				g := someGeneration()
				if k := w.kms.look(g.KeyID); k != nil && g.Stage == lifecycle.PreActive && len(w.kms.aliasesOf(g.KeyID)) == 0 {
					k.State, k.DeletionDate = "PendingDeletion", w.kms.Now().Add(7*days)
				}
			},
			"the token loses the new key": func() {
				if g := someGeneration(); g.Stage == lifecycle.PreActive {
					w.hsm.lose(g.HSMID)
				}
			},
			"somebody uses up rotations": func() {
				if g, ok := activeOf(w); ok && w.kms.look(g.KeyID) != nil {
					w.kms.keys[g.KeyID].use(rapid.IntRange(1, lifecycle.MaxRotations).Draw(t, "rotations"))
				}
			},
			"somebody takes a permission, or gives it": func() {
				op := rapid.SampledFrom([]string{"CreateKey", "ImportKeyMaterial", "Encrypt", "UpdateAlias", "CreateAlias", "PutKeyPolicy", "TagKey", "DisableKey", "ScheduleDeletion", "RotateKeyOnDemand", "DeleteKeyMaterial"}).Draw(t, "operation")
				w.kms.denied[op] = !w.kms.denied[op]
			},
			"AWS is slow": func() {
				w.kms.lateKeys = time.Duration(rapid.IntRange(0, 5).Draw(t, "keys")) * time.Second
				w.kms.lateTags = time.Duration(rapid.IntRange(0, 200).Draw(t, "tags")) * time.Second
				w.kms.lateAliases = time.Duration(rapid.IntRange(0, 20).Draw(t, "aliases")) * time.Second
				w.kms.lateMaterials = time.Duration(rapid.IntRange(0, 20).Draw(t, "materials")) * time.Second
				w.kms.rotationTime = time.Duration(rapid.IntRange(0, 200).Draw(t, "rotation")) * time.Second
			},
			"the daemon starts": func() { w.reconcileUntilDone(def) },
			"the database is lost": func() {
				w.advance(10 * time.Minute) // all tags are found by now
				w.loseDatabase()
				rotation = ""
				w.reconcileUntilDone(def)
			},
		}
		names := slices.Sorted(maps.Keys(actions))
		for range rapid.IntRange(1, 25).Draw(t, "actions") {
			w.advance(2 * time.Hour)
			if a := w.kms.aliases[def.Alias]; a != nil {
				if k := w.kms.look(a.target); k != nil && k.State == "Enabled" {
					k.lastUse = w.kms.Now() // everybody uses the active key
				}
			}
			if len(w.journal.generations["payments"]) == 0 {
				t.Fatalf("no generations")
			}
			actions[rapid.SampledFrom(names).Draw(t, "action")]()
		}

		// Left in peace, with what a person is asked to mend mended.
		clear(w.kms.denied)
		w.kms.onMove = nil
		w.kms.lateKeys, w.kms.lateTags, w.kms.lateAliases, w.kms.lateMaterials = 0, 0, 0, 0
		w.advance(time.Hour)
		for _, id := range w.journal.order {
			if row := w.journal.jobs[id]; open(id) && row.req.Asked {
				w.journal.finish(id, "discarded") // what was asked for may have become impossible
			}
		}
		rotates := 0 // the generation of the open rotation
		for _, row := range w.journal.jobs {
			if row.kind == lifecycle.Rotate && row.state != "completed" && row.state != "discarded" {
				rotates = row.generation
			}
		}
		for _, g := range w.journal.generations["payments"] {
			if k := w.kms.look(g.KeyID); k != nil && (g.Stage == lifecycle.PreActive || g.Stage == lifecycle.Active || g.Number == rotates) && k.State == "Disabled" {
				k.State = "Enabled"
			}
		}
		w.restoreAlias(def.Alias)
		w.reconcileUntilDone(def)
		for id := w.journal.nextDue(); id != ""; id = w.journal.nextDue() {
			if due := w.journal.jobs[id].due; due.After(w.now) {
				w.now = due
			}
			switch err := w.drive(id, 1); { // an alias may have to be put back first
			case lifecycle.WaitingFor(err) == lifecycle.WaitAlias && w.journal.jobs[id].kind == lifecycle.Retire:
				w.journal.finish(id, "discarded") // somebody uses the old key
			case lifecycle.WaitingFor(err) == lifecycle.WaitConfig && w.journal.jobs[id].kind == lifecycle.Synchronize && len(w.hsm.lost) > 0:
				w.journal.finish(id, "discarded") // the object of an old generation is lost
			case lifecycle.WaitingFor(err) == lifecycle.WaitUse: // time heals that
			case lifecycle.WaitingFor(err) == lifecycle.WaitConfig && w.journal.jobs[id].def.Mode == "in-place":
				w.journal.jobs[id].def.Mode = "auto" // as the message says, or instead of what it says
			case lifecycle.WaitingFor(err) == lifecycle.WaitAlias:
				w.followAlias(id, def.Alias)
			case err != nil:
				t.Fatalf("%s: %v", w.journal.jobs[id].kind, err)
			}
		}
		def.DisablePrevious = false
		if def.Mode == "in-place" {
			def.Mode = "auto"
		}
		if _, err := w.try(def); err != nil {
			t.Fatalf("the last rotation: %v", err)
		}
		w.reconcileUntilDone(def)
		w.drain()
		w.check()
		active, ok := activeOf(w)
		if !ok || w.kms.aliases[def.Alias] == nil || w.kms.aliases[def.Alias].target != active.KeyID {
			t.Errorf("the alias points at %+v, active is %d", w.kms.aliases[def.Alias], active.Number)
		}
		for _, g := range w.journal.generations["payments"] {
			if g.Stage == lifecycle.PreActive || g.Number > active.Number {
				t.Errorf("generation %d is %s, active is %d", g.Number, g.Stage, active.Number)
			}
		}
		if k := w.keyOf(active.Number); k.State != "Enabled" || k.MaterialID != materialID(k.ARN, w.hsm.find(active.HSMID)[0].material) {
			t.Errorf("the active key is %s", k.State)
		}
	})
}

// restoreAlias points the alias back where the active generation is.
func (w *world) restoreAlias(alias string) {
	if a, ok := activeOf(w); ok && w.kms.look(a.KeyID) != nil && w.kms.keys[a.KeyID].State != "PendingDeletion" {
		w.kms.point(alias, a.KeyID)
	} else {
		w.kms.point(alias, "")
	}
}

// followAlias points the alias where a waiting rotation expects it.
func (w *world) followAlias(id, alias string) {
	w.t.Helper()
	for _, s := range w.journal.jobs[id].steps {
		if s.Name == "activate" && len(s.Data) > 0 {
			var intent struct{ From string }
			if err := json.Unmarshal(s.Data, &intent); err != nil {
				w.t.Fatalf("%v", err)
			}
			if w.kms.look(intent.From) == nil {
				intent.From = ""
			}
			w.kms.point(alias, intent.From)
			return
		}
	}
	w.t.Fatalf("job %s waits for an alias and has no intent: %s", id, fmt.Sprint(w.journal.jobs[id].steps))
}
