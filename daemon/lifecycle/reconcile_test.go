package lifecycle_test

import (
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"byokd/daemon/lifecycle"
)

// remembered are generations without what only the journal knew.
func remembered(list []lifecycle.Generation) []lifecycle.Generation {
	var out []lifecycle.Generation
	for _, g := range list {
		if g.Stage == lifecycle.Destroyed {
			continue
		}
		g.GeneratedAt, g.ImportedAt, g.ActivatedAt, g.DisabledAt = time.Time{}, time.Time{}, time.Time{}, time.Time{}
		g.LeftAt, g.Policy, g.Tags = time.Time{}, "", nil
		out = append(out, g)
	}
	return out
}

func codes(f lifecycle.Findings) (list []string) {
	for _, p := range f.Problems {
		list = append(list, p.Code)
	}
	return list
}

// After the database is lost the same generations are there, in the same places,
// and nothing in AWS or the HSM was touched.
func TestDatabaseLost(t *testing.T) {
	expiring := definition()
	expiring.KeepValidFor = 90 * days
	denied := func(operation string) func(w *world) {
		return func(w *world) {
			w.rotate(definition())
			w.rotate(definition())
			w.kms.denied[operation] = true
			if _, err := w.try(definition()); err == nil {
				w.t.Fatalf("%s was not denied", operation)
			}
			w.kms.denied[operation] = false
		}
	}
	for _, tt := range []struct {
		name   string
		def    lifecycle.Definition
		before func(w *world)
	}{
		{"one generation", definition(), func(w *world) { w.rotate(definition()) }},
		{"several", definition(), func(w *world) {
			for range 12 {
				w.rotate(definition())
			}
		}},
		{"expiring, some disabled", expiring, func(w *world) {
			w.rotate(expiring)
			w.rotate(expiring)
			w.rotate(expiring)
			w.disable(1)
		}},
		{"a rotation stuck at create", definition(), denied("CreateKey")},
		{"a rotation stuck at import", definition(), denied("ImportKeyMaterial")},
		{"a rotation stuck at activate", definition(), denied("UpdateAlias")},
		{"one given up", definition(), func(w *world) {
			denied("ImportKeyMaterial")(w)
			w.hsm.lose(w.generation(3).HSMID)
			w.drain()
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			tt.before(w)
			want := remembered(w.journal.generations["payments"])
			picture := w.picture()
			w.loseDatabase()
			w.calls = nil
			f := w.reconcileUntilDone(tt.def)
			if got := w.writes(); len(got) != 0 {
				t.Errorf("wrote: %q", got)
			}
			got := remembered(w.journal.generations["payments"])
			// A generation without a key has no job yet whose tag it could have.
			if last := len(want) - 1; want[last].KeyID == "" {
				want[last].JobID, want[last].Account = "", "111122223333"
			}
			// A given-up one is remembered by its key that is pending deletion.
			got = slicesDelete(got, func(g lifecycle.Generation) bool { return !g.DeletionDate.IsZero() })
			diff(t, "generations", want, got)
			after := w.picture()
			if d := cmp.Diff(picture, after, cmpopts.IgnoreFields(picture, "Generations", "Audit", "Jobs", "Events", "Moves")); d != "" {
				t.Errorf("AWS and token (-before +after):\n%s", d)
			}
			if f.Fresh() || f.Foreign || f.Recovered != len(w.journal.generations["payments"]) || len(f.Problems) != 0 {
				t.Errorf("findings %+v", f)
			}

			// A second look finds nothing new, and a synchronization nothing to do.
			w.calls = nil
			if f := w.reconcileUntilDone(tt.def); f.Recovered != 0 {
				t.Errorf("the second time %+v", f)
			}
			w.synchronize(tt.def, lifecycle.Request{})
			for _, c := range w.writes() {
				t.Errorf("%s after recovery", c)
			}
			highest := w.journal.generations["payments"][len(w.journal.generations["payments"])-1].Number
			w.rotate(tt.def)
			active, _ := activeOf(w)
			if want := highest; active.Number < want {
				t.Errorf("generation %d is active after %d", active.Number, want)
			}
			w.check()
		})
	}
}

func slicesDelete(list []lifecycle.Generation, drop func(lifecycle.Generation) bool) (out []lifecycle.Generation) {
	for _, g := range list {
		if !drop(g) {
			out = append(out, g)
		}
	}
	return out
}

func activeOf(w *world) (lifecycle.Generation, bool) {
	for _, g := range w.journal.generations["payments"] {
		if g.Stage == lifecycle.Active {
			return g, true
		}
	}
	return lifecycle.Generation{}, false
}

// The schedule of a recovered group counts from the newest key's CreationDate.
func TestRecoveredSchedule(t *testing.T) {
	w := newWorld(t)
	w.rotate(definition())
	w.advance(30 * days)
	w.rotate(definition())
	w.loseDatabase()
	w.advance(10 * days)
	w.reconcileUntilDone(definition())
	if g := w.generation(2); !g.ActivatedAt.Equal(w.keyOf(2).CreatedAt) {
		t.Errorf("active since %v, created %v", g.ActivatedAt, w.keyOf(2).CreatedAt)
	}
}

func TestFresh(t *testing.T) {
	for _, tt := range []struct {
		name   string
		before func(w *world)
		want   bool
	}{
		{"nothing anywhere", func(*world) {}, true},
		{"another group's key and object", func(w *world) {
			w.kms.add("", "", map[string]string{lifecycle.TagGroup: "payments-eu", lifecycle.TagGeneration: "1"})
			w.hsm.add("byokd/payments-eu/1", []byte("0123456789abcdef"))
		}, true},
		{"the alias", func(w *world) { w.kms.point("alias/payments", w.kms.addForeign().ID) }, false},
		{"an HSM object", func(w *world) { w.hsm.add("byokd/payments/1", []byte("0123456789abcdef")) }, false},
		{"an HSM object without a number", func(w *world) { w.hsm.add("byokd/payments/one", []byte("0123456789abcdef")) }, false},
		{"a KMS key", func(w *world) {
			w.kms.add("", "", map[string]string{lifecycle.TagGroup: "payments", lifecycle.TagGeneration: "1"})
		}, false},
		{"a KMS key without a number", func(w *world) { w.kms.add("", "", map[string]string{lifecycle.TagGroup: "payments"}) }, false},
	} {
		w := newWorld(t)
		tt.before(w)
		f := w.reconcileUntilDone(definition())
		if got := f.Fresh(); got != tt.want {
			t.Errorf("%s: fresh is %t: %+v", tt.name, got, f)
		}
	}
}

// While something cannot be looked at, nothing is recorded.
func TestCannotLook(t *testing.T) {
	setUp := func(t *testing.T) *world {
		w := newWorld(t)
		w.rotate(definition())
		w.rotate(definition())
		w.kms.denied["CreateKey"] = true
		w.try(definition())
		w.loseDatabase()
		w.kms.point("alias/payments", "")
		w.calls = nil
		return w
	}
	clean := setUp(t)
	clean.reconcileUntilDone(definition())
	for i, call := range clean.calls {
		if call == "kms.Account" || call == "kms.LastUsage" || call == "kms.Grants" || call == "journal.Record" {
			continue // missed without harm
		}
		for _, class := range []lifecycle.Class{lifecycle.Transient, lifecycle.Unknown, lifecycle.Operator, lifecycle.Permanent} {
			w := setUp(t)
			w.hook = func(_ string, n int) (bool, error) {
				if n == i+1 {
					return false, fault(class, errInjected)
				}
				return true, nil
			}
			if _, err := w.reconcile(definition()); lifecycle.ClassOf(err) != class || !errors.Is(err, errInjected) {
				t.Errorf("call %d, %s: error %v, want a %s one", i+1, call, err, class)
			}
			if len(w.journal.generations)+len(w.journal.audit)+len(w.journal.jobs) != 0 {
				t.Errorf("call %d, %s: something was recorded", i+1, call)
			}
			if got := w.writes(); len(got) != 0 {
				t.Errorf("call %d, %s: wrote %q", i+1, call, got)
			}
		}
	}
}

func TestAccountNotKnown(t *testing.T) {
	w := newWorld(t)
	w.rotate(definition())
	w.kms.denied["Account"] = true
	if f, err := w.reconcile(definition()); err != nil || len(f.Generations) != 1 {
		t.Errorf("%+v, %v", f, err)
	}
	w.kms.denied["Account"] = false
	w.kms.account = "999988887777"
	_, err := w.reconcile(definition())
	wantOperator(t, err, lifecycle.WaitConfig, "999988887777", "111122223333")
}

// designated = false: everything is seen and nothing written, not even here.
func TestNotDesignated(t *testing.T) {
	named := definition()
	named.ActiveKeyID = "00000000-0000-4000-8000-000000000001"
	for _, tt := range []struct {
		name        string
		def         lifecycle.Definition
		before      func(w *world)
		generations int
		code        string
	}{
		{"an empty database", definition(), func(w *world) {
			w.rotate(definition())
			w.rotate(definition())
			w.loseDatabase()
		}, 2, ""},
		{"a late double", definition(), func(w *world) {
			w.rotate(definition())
			w.kms.add("double", "", w.keyOf(1).tags)
		}, 1, "double-key"},
		{"active_key_id, no alias", named, func(w *world) { w.kms.addForeign() }, 1, ""},
		{"active_key_id, empty", named, func(w *world) { w.kms.add("", "", nil) }, 1, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			tt.before(w)
			generations, jobs, audit := len(w.journal.generations["payments"]), len(w.journal.jobs), len(w.journal.audit)
			w.lookOnly = true
			f, err := w.reconcile(tt.def)
			if err != nil {
				t.Fatal(err)
			}
			if len(f.Generations) != tt.generations || tt.code != strings.Join(codes(f), " ") {
				t.Errorf("findings %+v", f)
			}
			if len(w.journal.generations["payments"]) != generations || len(w.journal.jobs) != jobs || len(w.journal.audit) != audit {
				t.Error("the journal was written to")
			}
		})
	}
}

// Another device was the designated one for a while: this one's journal is behind.
func TestDesignatedAgain(t *testing.T) {
	for _, operation := range []string{"CreateKey", "ImportKeyMaterial", "UpdateAlias"} {
		for _, more := range []int{0, 1, 2} {
			w := newWorld(t)
			w.rotate(definition())
			w.kms.denied[operation] = true
			id, err := w.try(definition())
			wantOperator(t, err, lifecycle.WaitPermission)
			w.kms.denied[operation] = false
			w.journal.finish(id, "discarded")
			here := w.journal

			w.loseDatabase() // the other device has its own
			w.reconcileUntilDone(definition())
			w.rotate(definition())
			for range more {
				w.rotate(definition())
			}
			moves := len(w.kms.moves)
			there := w.journal

			w.journal = here
			w.start()
			w.reconcileUntilDone(definition())
			want := 2 + more
			if active, ok := activeOf(w); !ok || active.Number != want || active.KeyID != there.generations["payments"][want-1].KeyID {
				t.Errorf("stuck at %s, %d more: active is %+v", operation, more, active)
			}
			w.rotate(definition())
			if got := w.kms.moves[moves]; got.to != w.keyOf(want+1).ID {
				t.Errorf("stuck at %s, %d more: the alias was moved to %s", operation, more, got.to)
			}
		}
	}
}

// What cannot be told apart from a key in use is never gone on with, so that it is
// never given up either.
func TestRecoveredKeyThatWasUsed(t *testing.T) {
	for _, tt := range []struct {
		name string
		use  func(k *fakeKey)
		want lifecycle.Stage
	}{
		{"probed by its rotation only", func(*fakeKey) {}, lifecycle.PreActive},
		{"used later", func(k *fakeKey) { k.lastUse = k.CreatedAt.Add(3 * time.Hour) }, lifecycle.Previous},
		{"disabled", func(k *fakeKey) { k.State = "Disabled" }, lifecycle.Previous},
	} {
		w := newWorld(t)
		w.rotate(definition())
		w.rotate(definition())
		tt.use(w.keyOf(2))
		w.kms.point("alias/payments", w.keyOf(1).ID) // by a person: a rollback
		w.loseDatabase()
		w.reconcileUntilDone(definition())
		if got := w.generation(2).Stage; got != tt.want {
			t.Errorf("%s: generation 2 is %s", tt.name, got)
		}
		if got := w.generation(1).Stage; got != lifecycle.Active {
			t.Errorf("%s: generation 1 is %s", tt.name, got)
		}
	}
}

// Material that was deleted stays so, database or no database.
func TestRecoveredWithoutMaterial(t *testing.T) {
	w := newWorld(t)
	w.rotate(definition())
	w.rotate(definition())
	for n := 1; n <= 2; n++ {
		w.synchronize(definition(), lifecycle.Request{Asked: true, Generation: &n, DeleteMaterial: true})
	}
	w.loseDatabase()
	w.reconcileUntilDone(definition())
	w.calls = nil
	w.synchronize(definition(), lifecycle.Request{})
	if w.imports() != 0 || w.generation(2).Stage != lifecycle.Active {
		t.Errorf("%d imports; generation 2 is %s", w.imports(), w.generation(2).Stage)
	}
}

// Objects on the token that no KMS key was made from.
func TestObjectsOnly(t *testing.T) {
	w := newWorld(t)
	w.rotate(definition())
	id := func(b byte) []byte { return append(make([]byte, 15), b) }
	w.hsm.add("byokd/payments/4", id(4))
	w.hsm.add("byokd/payments/7", id(7))
	w.hsm.add("byokd/payments/1", id(1)) // generation 1's number
	w.hsm.add("byokd/payments/x", id(9))
	w.hsm.add("byokd/payments-eu/9", id(8))
	w.loseDatabase()
	f := w.reconcileUntilDone(definition())
	if got := strings.Join(codes(f), " "); got != "unknown-object unknown-object" {
		t.Errorf("problems %v", f.Problems)
	}
	for n, want := range map[int]lifecycle.Stage{1: lifecycle.Active, 4: lifecycle.Previous, 7: lifecycle.PreActive} {
		if got := w.generation(n).Stage; got != want {
			t.Errorf("generation %d is %s, want %s", n, got, want)
		}
	}
	if got := len(w.journal.generations["payments"]); got != 3 {
		t.Errorf("%d generations", got)
	}
	w.rotate(definition())
	w.rotate(definition())
	if w.generation(7).HSMID != hex.EncodeToString(id(7)) || w.generation(8).Stage != lifecycle.Active || w.generation(7).ActivatedAt.IsZero() {
		t.Errorf("generations %+v", w.journal.generations["payments"])
	}
}

func TestProblemsFound(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(w *world)
		want   string
	}{
		{"nothing", func(*world) {}, ""},
		{"object missing", func(w *world) { w.hsm.lose(w.generation(1).HSMID) }, "hsm-object-missing"},
		{"foreign alias", func(w *world) { w.kms.point("alias/payments", w.kms.addForeign().ID) }, "alias"},
		{"key with a generation's number", func(w *world) {
			w.kms.add("", "", map[string]string{lifecycle.TagGroup: "payments", lifecycle.TagGeneration: "1", lifecycle.TagJob: "x", lifecycle.TagHSMID: "y"})
		}, "unknown-key"},
		{"double with material", func(w *world) {
			k := w.kms.add("", "", w.keyOf(1).tags)
			k.State, k.MaterialID = "Enabled", "x"
		}, "unknown-key"},
		{"double under an alias", func(w *world) { w.kms.point("alias/payments", w.kms.add("", "", w.keyOf(1).tags).ID) }, "unknown-key alias"},
		{"key without a number", func(w *world) {
			w.kms.add("", "", map[string]string{lifecycle.TagGroup: "payments", lifecycle.TagGeneration: "first"})
		}, "unknown-key"},
		{"key without HSM ID", func(w *world) {
			w.kms.add("", "", map[string]string{lifecycle.TagGroup: "payments", lifecycle.TagGeneration: "9", lifecycle.TagHSMID: "?"})
		}, "unknown-key"},
	} {
		w := newWorld(t)
		w.rotate(definition())
		tt.change(w)
		w.calls = nil
		f := w.reconcileUntilDone(definition())
		if got := strings.Join(codes(f), " "); got != tt.want {
			t.Errorf("%s: problems %v", tt.name, f.Problems)
		}
		if len(w.writes()) != 0 || w.journal.nextDue() != "" {
			t.Errorf("%s: wrote %q, job %s", tt.name, w.writes(), w.journal.nextDue())
		}
		for _, p := range f.Problems {
			if p.Message == "" {
				t.Errorf("%s: problem without a message", tt.name)
			}
		}
		if f.Foreign != strings.HasSuffix(tt.want, "alias") {
			t.Errorf("%s: foreign is %t", tt.name, f.Foreign)
		}
	}
}

// Tags are found of a key that is gone, or not shown yet: its number is taken.
func TestTagsOfAKeyThatIsNotThere(t *testing.T) {
	for _, onToken := range []bool{false, true} {
		w := newWorld(t)
		id := w.journal.enqueue(lifecycle.Rotate, definition(), lifecycle.Request{}, "schedule")
		w.loseAnswer("kms.CreateKey")
		w.attempt(id)
		w.hook = nil
		lost := w.generation(1).HSMID
		w.loseDatabase()
		w.kms.lateKeys = time.Minute
		if !onToken {
			w.hsm.lose(lost)
		}
		w.reconcileUntilDone(definition())
		want := lifecycle.Destroyed
		if onToken {
			want = lifecycle.PreActive
		}
		if got := w.generation(1).Stage; got != want {
			t.Errorf("on the token %t: generation 1 is %s", onToken, got)
		}
		w.advance(time.Hour)
		w.reconcileUntilDone(definition())
		w.drain()
		w.rotate(definition())
		if g, _ := activeOf(w); (g.Number == 1) != onToken {
			t.Errorf("on the token %t: generation %d is active", onToken, g.Number)
		}
		w.check()
	}
}

// The answer to CreateKey was lost and the journal knows: Reconcile gives the
// waiting job its key.
func TestReconcileFindsTheKey(t *testing.T) {
	w := newWorld(t)
	id := w.journal.enqueue(lifecycle.Rotate, definition(), lifecycle.Request{}, "schedule")
	w.hook = func(call string, _ int) (bool, error) {
		if call == "kms.CreateKey" {
			return true, errDeath
		}
		return true, nil
	}
	if _, died := w.attempt(id); !died {
		t.Fatal("the process lives")
	}
	w.hook = nil
	w.reconcileUntilDone(definition())
	if w.generation(1).KeyID == "" {
		t.Error("generation 1 has no key")
	}
	if err := w.drive(id, 0); err != nil {
		t.Fatal(err)
	}
	w.check()
	if got := len(w.kms.keys); got != 1 {
		t.Errorf("%d KMS keys", got)
	}
}

func TestActiveKeyID(t *testing.T) {
	named := func(k *fakeKey) lifecycle.Definition {
		def := definition()
		def.ActiveKeyID = k.ID
		return def
	}
	t.Run("never had material", func(t *testing.T) {
		for _, alias := range []bool{false, true} {
			w := newWorld(t)
			k := w.kms.add("made by hand", `{"by": "hand"}`, map[string]string{"theirs": "kept"})
			if alias {
				w.kms.point("alias/payments", k.ID)
			}
			f := w.reconcileUntilDone(named(k))
			if f.Fresh() || w.generation(1).Stage != lifecycle.PreActive || w.journal.jobs[w.journal.nextDue()].kind != lifecycle.Adopt {
				t.Errorf("findings %+v, job %q", f, w.journal.nextDue())
			}
			w.drain()
			w.reconcileUntilDone(named(k)) // is no other the second time
			w.rotate(named(k))
			if len(w.kms.keys) != 1 || w.kms.aliases["alias/payments"].target != k.ID || w.generation(1).Stage != lifecycle.Active {
				t.Errorf("%d keys, generation 1 is %s", len(w.kms.keys), w.generation(1).Stage)
			}
			if k.Description != "card payments" || k.policy != *definition().Policy || k.tags["theirs"] != "kept" || k.tags[lifecycle.TagHSMID] != w.generation(1).HSMID ||
				k.tags[lifecycle.TagJob] != w.generation(1).JobID || k.tags["team"] != "payments" {
				t.Errorf("the key is %+v", k)
			}
			w.check()
		}
	})
	t.Run("never had material, object lost before import", func(t *testing.T) {
		w := newWorld(t)
		k := w.kms.add("made by hand", "", nil)
		k.foreign = true
		w.kms.point("alias/payments", k.ID)
		w.reconcileUntilDone(named(k))
		w.kms.denied["ParametersForImport"] = true
		id, err := w.try(named(k))
		wantOperator(t, err, lifecycle.WaitPermission)
		w.kms.denied["ParametersForImport"] = false
		w.hsm.lose(w.generation(1).HSMID)
		if err := w.drive(id, 0); err != nil {
			t.Fatal(err)
		}
		if k.State != "PendingImport" || w.generation(2).Stage != lifecycle.Active {
			t.Errorf("the key is %s, generation 2 %s", k.State, w.generation(2).Stage)
		}
	})
	t.Run("its object is on the token", func(t *testing.T) {
		for _, alias := range []bool{true, false} {
			for _, owner := range []string{"payments", "cards"} { // the label's group
				w := newWorld(t)
				id := []byte("0123456789abcdef")
				w.hsm.add("byokd/"+owner+"/5", id)
				k := w.kms.add("", "", map[string]string{lifecycle.TagGroup: "elsewhere", lifecycle.TagGeneration: "5", lifecycle.TagJob: "job-x", lifecycle.TagHSMID: hex.EncodeToString(id)})
				k.State, k.material, k.MaterialID = "Enabled", w.hsm.objects[0].material, materialID(k.ARN, w.hsm.objects[0].material)
				if alias {
					w.kms.point("alias/payments", k.ID)
				}
				if owner == "payments" {
					// The search by label finds the object first, without its key.
					k.tags[lifecycle.TagGroup] = "payments"
				}
				w.reconcileUntilDone(named(k))
				g := w.generation(5)
				want := lifecycle.Active
				if !alias && owner == "payments" {
					want = lifecycle.PreActive // found by its tags: the alias is not where it was
				}
				if g.Stage != want || g.HSMLabel != "byokd/"+owner+"/5" || g.KeyID != k.ID {
					t.Errorf("alias %t, owner %s: generation %+v", alias, owner, g)
				}
				w.drain()
				w.rotate(named(k))
				if a := w.kms.aliases["alias/payments"]; a == nil {
					t.Errorf("no alias")
				}
			}
		}
	})
	t.Run("any other", func(t *testing.T) {
		for _, origin := range []string{"AWS_KMS", "EXTERNAL"} {
			for _, alias := range []bool{true, false} {
				w := newWorld(t)
				k := w.kms.addForeign()
				k.Origin = origin
				if alias {
					w.kms.point("alias/payments", k.ID)
				}
				start := w.now
				f := w.reconcileUntilDone(named(k))
				g := w.generation(0)
				if f.Fresh() || g.Stage != lifecycle.Active || g.HSMLabel != "" || g.HSMID != "" || g.KeyID != k.ID || !g.ActivatedAt.Equal(start) {
					t.Errorf("generation %+v", g)
				}
				if row := w.journal.jobs[w.journal.nextDue()]; row == nil || row.kind != lifecycle.Adopt || !f.Adopted {
					t.Errorf("job %+v", row)
				}
				w.reconcileUntilDone(named(k))
				w.drain()
				if a := w.kms.aliases["alias/payments"]; a == nil || a.target != k.ID {
					t.Fatalf("the alias is %+v", a)
				}
				if !alias {
					row := w.journal.jobs[w.journal.order[0]]
					if row.trigger != "adopt" || w.journal.events[0].detail["generation"] != 0.0 || w.journal.events[0].DetailType != lifecycle.AliasMoved {
						t.Errorf("job %+v, event %v", row, w.journal.events[0].detail)
					}
				}
				// Its material is never touched, and the next generation is 1.
				k.State = "PendingImport"
				w.calls = nil
				w.synchronize(named(k), lifecycle.Request{Asked: true, ImportMaterial: true, UpdatePolicy: true})
				if w.imports() != 0 {
					t.Error("imported into an adopted key")
				}
				id := w.journal.enqueue(lifecycle.Synchronize, named(k), lifecycle.Request{Asked: true, DeleteMaterial: true, Generation: ptr(0)}, "control")
				wantPermanent(t, w.drive(id, 0), "adopted")
				w.rotate(named(k))
				if got := w.generation(1).Stage; got != lifecycle.Active || w.generation(0).Stage != lifecycle.Previous {
					t.Errorf("generation 1 is %s", got)
				}
				w.check()
			}
		}
	})
	t.Run("read only while the group has no generation", func(t *testing.T) {
		w := newWorld(t)
		w.rotate(definition())
		w.calls = nil
		f := w.reconcileUntilDone(named(w.kms.addForeign()))
		if f.Recovered != 0 || len(f.Problems) != 0 || len(w.writes()) != 0 {
			t.Errorf("findings %+v", f)
		}
	})
	t.Run("mistakes", func(t *testing.T) {
		for _, tt := range []struct {
			name    string
			change  func(w *world, k *fakeKey)
			waiting string
		}{
			{"does not exist", func(w *world, k *fakeKey) { delete(w.kms.keys, k.ID) }, lifecycle.WaitConfig},
			{"the alias is elsewhere", func(w *world, k *fakeKey) { w.kms.point("alias/payments", w.kms.addForeign().ID) }, lifecycle.WaitAlias},
			{"managed by AWS", func(w *world, k *fakeKey) { k.Manager = "AWS" }, lifecycle.WaitConfig},
			{"asymmetric", func(w *world, k *fakeKey) { k.KeySpec = "RSA_2048" }, lifecycle.WaitConfig},
			{"for MACs", func(w *world, k *fakeKey) { k.KeyUsage = "GENERATE_VERIFY_MAC" }, lifecycle.WaitConfig},
			{"pending deletion", func(w *world, k *fakeKey) { k.State, k.DeletionDate = "PendingDeletion", w.now.Add(7*days) }, lifecycle.WaitConfig},
		} {
			w := newWorld(t)
			k := w.kms.addForeign()
			def := named(k)
			tt.change(w, k)
			_, err := w.reconcile(def)
			wantOperator(t, err, tt.waiting, k.ID)
			if len(w.journal.generations)+len(w.journal.jobs) != 0 {
				t.Errorf("%s: something was recorded", tt.name)
			}
		}
	})
}

// A group that was renamed is found under its old name too.
func TestPreviousName(t *testing.T) {
	w := newWorld(t)
	old := definition()
	old.Group = "cards"
	w.rotate(old)
	w.rotate(old)
	w.loseDatabase()
	w.hsm.add("byokd/cards/3", []byte("0123456789abcdef"))
	def := definition()
	def.PreviousName = "cards"
	w.reconcileUntilDone(def)
	for n, want := range map[int]lifecycle.Stage{1: lifecycle.Previous, 2: lifecycle.Active, 3: lifecycle.PreActive} {
		if g := w.generation(n); g.Stage != want || g.HSMLabel != lifecycle.Label("cards", n) {
			t.Errorf("generation %d: %+v", n, g)
		}
	}
	w.rotate(def)
	w.rotate(def)
	if g := w.generation(4); g.Stage != lifecycle.Active || g.HSMLabel != "byokd/payments/4" {
		t.Errorf("generation 4: %+v", g)
	}
}

// The alias's own key counts even where the search by tags is late.
func TestSearchIsLate(t *testing.T) {
	w := newWorld(t)
	w.rotate(definition())
	w.loseDatabase()
	w.kms.lateTags = 1000 * time.Hour
	w.reconcileUntilDone(definition())
	if g := w.generation(1); g.Stage != lifecycle.Active || g.KeyID == "" {
		t.Errorf("generation 1: %+v", g)
	}
}

// Of two keys that claim one number, the one in use is the generation.
func TestDuplicates(t *testing.T) {
	for _, older := range []bool{true, false} { // the double
		for _, alias := range []bool{true, false} {
			for _, material := range []bool{false, true} {
				if material && !alias {
					continue // nothing tells which is in use
				}
				w := newWorld(t)
				w.rotate(definition())
				used := w.keyOf(1)
				twin := w.kms.add("double", "", used.tags)
				if material {
					twin.State, twin.MaterialID = "Enabled", "x"
				}
				if older {
					twin.CreatedAt = used.CreatedAt.Add(-time.Hour)
					delete(w.kms.keys, twin.ID)
					twin.ID = "00000000-0000-4000-8000-000000000000"
					w.kms.keys[twin.ID] = twin
				}
				if !alias {
					w.kms.point("alias/payments", "")
				}
				w.loseDatabase()
				w.reconcileUntilDone(definition())
				if got := w.generation(1).KeyID; got != used.ID {
					t.Errorf("older %t, alias %t, material %t: generation 1 is %s", older, alias, material, got)
				}
				w.drain()
				if (twin.State == "PendingDeletion") == material || used.State != "Enabled" {
					t.Errorf("older %t, alias %t, material %t: the double is %s, the key in use %s", older, alias, material, twin.State, used.State)
				}
			}
		}
	}
}

// Validity that was renewed is not taken for a changed keep_valid_for afterwards;
// one that was changed meanwhile is.
func TestRecoveredValidity(t *testing.T) {
	for _, changed := range []bool{false, true} {
		w := newWorld(t)
		def := definition()
		def.KeepValidFor = 90 * days
		w.rotate(def)
		w.advance(20 * days)
		w.synchronize(def, lifecycle.Request{Asked: true, ImportMaterial: true})
		w.loseDatabase()
		if changed {
			def.KeepValidFor = 300 * days
		}
		w.reconcileUntilDone(def)
		w.calls = nil
		w.synchronize(def, lifecycle.Request{})
		if got := w.imports() == 1; got != changed {
			t.Errorf("changed %t: %d imports", changed, w.imports())
		}
	}
}
