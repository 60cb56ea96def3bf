package lifecycle_test

import (
	"strings"
	"testing"
	"time"

	"byokd/daemon/lifecycle"
)

// What stands in the way of a rotation in place: with in-place a person hears of
// it and of the remedy, and then the job goes on; auto takes a fresh key, but
// never rotates in what somebody else has imported.
func TestInPlaceHindered(t *testing.T) {
	expiring := 90 * 24 * time.Hour
	for _, tt := range []struct {
		name   string
		happen func(w *world)
		says   []string
		remedy func(w *world) // nil: mode = "auto"
		fresh  bool           // auto makes a fresh key
	}{
		{"rotations used up", func(w *world) { w.keyOf(1).use(lifecycle.MaxRotations - 1) }, []string{"25 rotations", `mode = "auto"`}, nil, true},
		{"limit reached", func(w *world) { w.kms.limit = 1 }, []string{"used up its rotations", `mode = "auto"`}, nil, true},
		{"disabled", func(w *world) { w.keyOf(1).State = "Disabled" }, []string{"is disabled", "enable it"}, func(w *world) { w.keyOf(1).State = "Enabled" }, true},
		{"material deleted on request", func(w *world) {
			def := definition()
			def.Mode, def.KeepValidFor = "in-place", expiring
			w.synchronize(def, lifecycle.Request{Asked: true, Generation: ptr(1), DeleteMaterial: true})
		}, []string{"generation 1 was deleted on request", "byokctl sync payments --generation 1"}, func(w *world) {
			def := definition()
			def.Mode, def.KeepValidFor = "in-place", expiring
			w.synchronize(def, lifecycle.Request{Asked: true, Generation: ptr(1), ImportMaterial: true})
		}, true},
		{"an HSM object is lost and the material expires", func(w *world) { w.hsm.lose(w.generation(1).HSMID); w.advance(30 * 24 * time.Hour) },
			[]string{"byokd/payments/1 is not on the token", "backup"}, nil, true},
		{"somebody's material pending", func(w *world) {
			w.keyOf(1).pending = &fakeMaterial{id: "feedc0de", described: "theirs", bytes: []byte("theirs"), imported: w.now}
		}, []string{"feedc0de", "theirs", "delete-imported-key-material"}, func(w *world) { w.keyOf(1).pending = nil }, false},
		{"somebody's material pending after the import", func(w *world) {
			// Between verify and the rotation ours is replaced by theirs.
			w.hook = func(call string, _ int) (bool, error) {
				if p := w.keyOf(1).pending; call == "kms.Encrypt" && p != nil {
					w.keyOf(1).pending = &fakeMaterial{id: "feedc0de", described: "theirs", bytes: []byte("theirs"), imported: w.now}
					w.hook = nil
				}
				return true, nil
			}
		}, []string{"feedc0de", "delete-imported-key-material"}, func(w *world) { w.keyOf(1).pending = nil }, false},
	} {
		for _, mode := range []string{"in-place", "auto"} {
			t.Run(tt.name+"/"+mode, func(t *testing.T) {
				w := newWorld(t)
				def := definition()
				def.Mode, def.KeepValidFor = mode, expiring
				w.rotate(def)
				w.rotate(def)
				tt.happen(w)
				id := w.journal.enqueue(lifecycle.Rotate, def, lifecycle.Request{}, "schedule")
				err := w.drive(id, 0)
				if mode == "auto" && tt.fresh {
					if err != nil || len(w.kms.moves) != 2 {
						t.Errorf("%v; alias moves %v", err, w.kms.moves)
					}
					return
				}
				if lifecycle.ClassOf(err) != lifecycle.Operator || lifecycle.WaitingFor(err) != lifecycle.WaitConfig {
					t.Fatalf("%v, class %s", err, lifecycle.ClassOf(err))
				}
				for _, s := range tt.says {
					if !strings.Contains(err.Error(), s) {
						t.Errorf("it does not say %q: %v", s, err)
					}
				}
				moved := len(w.kms.moves)
				if tt.remedy == nil {
					w.journal.jobs[id].def.Mode = "auto"
					moved++
				} else {
					tt.remedy(w)
				}
				w.advance(time.Hour)
				if err := w.drive(id, 0); err != nil || len(w.kms.moves) != moved {
					t.Errorf("with the remedy: %v; alias moves %v", err, w.kms.moves)
				}
				for _, m := range w.kms.rotated {
					if m == "feedc0de" {
						t.Error("somebody's material was rotated in")
					}
				}
				w.check()
			})
		}
	}
}

// A first rotation, and one whose active key is adopted, gone or being deleted,
// makes a fresh key whatever the mode.
func TestInPlaceFreshKey(t *testing.T) {
	for _, tt := range []struct {
		name  string
		setup func(w *world, def *lifecycle.Definition)
		want  string // of create's message
	}{
		{"first", func(*world, *lifecycle.Definition) {}, "no key to rotate in place yet"},
		{"adopted", func(w *world, def *lifecycle.Definition) {
			def.ActiveKeyID = w.kms.addForeign().ID
			w.kms.point(def.Alias, def.ActiveKeyID)
			w.reconcileUntilDone(*def)
		}, "does not have its material"},
		{"being deleted", func(w *world, def *lifecycle.Definition) {
			w.rotate(*def)
			k := w.keyOf(1)
			k.State, k.DeletionDate = "PendingDeletion", w.now.Add(24*time.Hour)
		}, "scheduled for deletion"},
		{"deleted", func(w *world, def *lifecycle.Definition) {
			w.rotate(*def)
			k := w.keyOf(1)
			k.State, k.DeletionDate = "PendingDeletion", w.now.Add(time.Hour)
			w.advance(2 * time.Hour)
		}, "no longer exists"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			def := definition()
			def.Mode = "in-place"
			tt.setup(w, &def)
			made := len(w.kms.keys)
			id := w.journal.enqueue(lifecycle.Rotate, def, lifecycle.Request{}, "schedule")
			if err := w.drive(id, 0); err != nil {
				t.Fatal(err)
			}
			if s := w.step(id, "create"); !strings.Contains(s.Message, tt.want) || w.kms.made != made+1 && tt.name != "deleted" {
				t.Errorf("create says %q", s.Message)
			}
			w.rotate(def)
			if a, _ := activeOf(w); w.keyOf(a.Number).pending != nil || len(w.keyOf(a.Number).old) != 1 {
				t.Errorf("the next rotation is not in place: %+v", a)
			}
		})
	}
}
