package lifecycle_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"byokd/daemon/lifecycle"
)

// drift compares the group payments with the journal, and demands that nothing
// is written.
func (w *world) drift(def lifecycle.Definition, applied bool) []lifecycle.Difference {
	w.t.Helper()
	w.lookOnly = true
	defer func() { w.lookOnly = false }()
	found, err := w.engine.Drift(context.Background(), def, w.journal.generations[def.Group], applied)
	if err != nil {
		w.t.Fatalf("drift: %v", err)
	}
	return found
}

// words are differences as generation, kind and whether they can be repaired.
func words(found []lifecycle.Difference) []string {
	list := []string{}
	for _, d := range found {
		w := "- " + d.Kind
		if d.Generation != nil {
			w = fmt.Sprintf("%d %s", *d.Generation, d.Kind)
		}
		if d.Repairable {
			w += " repairable"
		}
		list = append(list, w)
	}
	return list
}

// goneAt has the KMS key of a generation gone, whose deletion byokd had scheduled for
// a time from now on, by this machine's clock.
func (w *world) goneAt(number int, in time.Duration) {
	all := w.journal.generations["payments"]
	i := slices.IndexFunc(all, func(g lifecycle.Generation) bool { return g.Number == number })
	all[i].DeletionDate = w.now.Add(in)
	delete(w.kms.keys, all[i].KeyID)
}

func TestDrift(t *testing.T) {
	expiring := definition()
	expiring.KeepValidFor = 90 * 24 * time.Hour
	expiring.DisablePrevious = true // generations 1 and 2 are disabled
	for _, c := range []struct {
		name   string
		happen func(w *world)
		want   []string
		say    string // in the message
		stays  []string
	}{
		{"nothing", func(w *world) {}, nil, "", nil},
		{"the policy is changed", func(w *world) {
			w.keyOf(3).policy = `{"Version":"2012-10-17","Statement":[{"Sid":"a","Effect":"Deny"}]}`
		},
			[]string{"3 policy repairable"}, `statement "a": has Effect "Deny", which is not defined`, nil},
		{"a statement is gone, another came", func(w *world) { w.keyOf(1).policy = `{"Statement":[{"Sid":"z"}]}` },
			[]string{"1 policy repairable"}, `Version is "", not "2012-10-17"; statement "a" is missing; statement "z" is not in the definition`, nil},
		{"the policy is in another form", func(w *world) { w.keyOf(3).policy = `{"Statement":[{"Sid":"a"}],"Version":"2012-10-17"}` }, nil, "", nil},
		{"the description is changed", func(w *world) { w.keyOf(3).Description = "theirs" }, []string{"3 description repairable"}, `is "theirs", defined as "card payments"`, nil},
		{"of a previous key", func(w *world) { w.keyOf(1).Description = "theirs" }, nil, "", nil},
		{"tags are changed", func(w *world) {
			w.keyOf(2).tags["team"], w.keyOf(2).tags["theirs"] = "x", "y"
			delete(w.keyOf(2).tags, lifecycle.TagJob)
		}, []string{"2 tags repairable"}, `byokd:job = `, nil},
		{"the group's tag is gone", func(w *world) { delete(w.keyOf(3).tags, lifecycle.TagGroup) }, []string{"3 tags repairable"}, `byokd:group = "payments" is missing`, nil},
		{"the material is deleted", func(w *world) { w.keyOf(3).forget() }, []string{"3 material repairable"}, "byokctl sync payments --generation 3 imports it again", nil},
		{"of a key that byokd has disabled", func(w *world) { w.keyOf(1).forget() }, []string{"1 material"}, "is missing", []string{"1 material"}},
		{"it was imported with another validity", func(w *world) { w.keyOf(3).ValidTo = time.Time{} }, []string{"3 expiry repairable"}, "it expires never, and byokd had it expire at 2026", nil},
		{"the active key is disabled", func(w *world) { w.keyOf(3).State = "Disabled" }, []string{"3 disabled"}, "aws kms enable-key", []string{"3 disabled"}},
		{"a previous one is enabled", func(w *world) { w.keyOf(2).State = "Enabled" }, []string{"2 enabled repairable"}, "which byokd had disabled at 2026", nil},
		{"the deletion of a key is scheduled", func(w *world) {
			k := w.keyOf(1)
			k.State, k.DeletionDate = "PendingDeletion", w.now.Add(30*24*time.Hour)
		}, []string{"1 deletion"}, "aws kms cancel-key-deletion", []string{"1 deletion"}},
		{"a key is gone", func(w *world) { delete(w.kms.keys, w.generation(1).KeyID) }, []string{"1 key-missing"}, "does not exist any more", []string{"1 key-missing"}},
		{"a key whose deletion was near is gone", func(w *world) { w.goneAt(1, w.skew+30*time.Second) }, nil, "", nil},
		{"a key is gone well before its deletion", func(w *world) { w.goneAt(1, 2*time.Hour) }, []string{"1 key-missing"}, "does not exist any more", []string{"1 key-missing"}},
		{"the alias is moved to a previous key", func(w *world) { w.kms.point("alias/payments", w.keyOf(1).ID) }, []string{"3 alias"}, "which is generation 1: byokctl rotate payments moves it on", []string{"3 alias"}},
		{"to a foreign one", func(w *world) { w.kms.point("alias/payments", w.kms.add("", "", nil).ID) }, []string{"3 alias"}, "which is not this group's", nil},
		{"the alias is deleted", func(w *world) { delete(w.kms.aliases, "alias/payments") }, []string{"3 alias-missing repairable"}, "does not exist", nil},
		{"there is a key with the group's tags", func(w *world) {
			w.kms.add("", "", map[string]string{lifecycle.TagGroup: "payments", lifecycle.TagGeneration: "9"})
		}, []string{"- unknown-key"}, "says that it is generation 9", nil},
		{"much at once", func(w *world) {
			w.keyOf(3).policy, w.keyOf(3).Description, w.keyOf(3).tags = `{"Statement":[]}`, "", map[string]string{}
			w.keyOf(3).forget()
			w.keyOf(2).State = "Enabled"
		}, []string{"2 enabled repairable", "3 description repairable", "3 material repairable", "3 policy repairable", "3 tags repairable"}, "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			for range 3 {
				w.rotate(expiring)
				w.drain()
			}
			w.advance(time.Hour)
			c.happen(w)
			w.kms.denied["FindKeys"] = false
			found := w.drift(expiring, true)
			diff(t, "differences", append([]string{}, c.want...), words(found))
			var text strings.Builder
			for _, d := range found {
				fmt.Fprintln(&text, d.Message)
			}
			if !strings.Contains(text.String(), c.say) {
				t.Errorf("the messages do not say %q:\n%s", c.say, text.String())
			}
			diff(t, "again", found, w.drift(expiring, true))

			// Without the search by tags only unknown keys are missed.
			w.kms.denied["FindKeys"] = true
			if c.name != "there is a key with the group's tags" {
				diff(t, "without search", words(found), words(w.drift(expiring, true)))
			}
			w.kms.denied["FindKeys"] = false

			if c.name == "to a foreign one" || c.name == "there is a key with the group's tags" {
				return
			}
			id := w.journal.enqueue(lifecycle.Synchronize, expiring, lifecycle.Request{Repair: true}, "drift")
			if err := w.drive(id, 0); err != nil {
				t.Fatalf("repair: %v", err)
			}
			diff(t, "after the repair", append([]string{}, c.stays...), words(w.drift(expiring, true)))
			if got := w.keyOf(3).MaterialID; got != w.generation(3).MaterialID {
				t.Errorf("material %s", got)
			}
		})
	}
}

// What byokd was asked for, what is on its way and what was not applied yet is no
// drift.
func TestNoDrift(t *testing.T) {
	def := definition()
	def.KeepValidFor = 90 * 24 * time.Hour
	w := newWorld(t)
	w.rotate(def)
	w.rotate(def)
	w.rotate(def)
	w.synchronize(def, lifecycle.Request{Asked: true, Generation: ptr(1), DeleteMaterial: true})
	w.kms.denied["ParametersForImport"] = true // the next rotation stops before its import
	if err := w.drive(w.journal.enqueue(lifecycle.Rotate, def, lifecycle.Request{}, "schedule"), 0); lifecycle.ClassOf(err) != lifecycle.Operator {
		t.Fatal(err)
	}
	w.kms.denied["ParametersForImport"] = false
	none := []string{}
	diff(t, "at once", none, words(w.drift(def, true)))
	other := def
	other.Alias, other.Description, other.Policy, other.Tags = "alias/cards", ptr("x"), ptr(`{"Statement":[]}`), map[string]string{"a": "b"}
	diff(t, "before it is applied", none, words(w.drift(other, false)))
	w.advance(100 * 24 * time.Hour) // the others expire
	diff(t, "expired", none, words(w.drift(def, true)))

	// A CreateKey whose answer was lost.
	w = newWorld(t)
	w.rotate(def)
	w.loseAnswer("kms.CreateKey")
	if err, _ := w.attempt(w.journal.enqueue(lifecycle.Rotate, def, lifecycle.Request{}, "schedule")); lifecycle.ClassOf(err) != lifecycle.Unknown {
		t.Fatal(err)
	}
	w.hook = nil
	diff(t, "an unanswered CreateKey", none, words(w.drift(def, true)))

	// Where AWS cannot be asked nothing is known.
	w.keyOf(1).Description = "theirs"
	for _, call := range []string{"kms.FindKeys", "kms.DescribeKey", "kms.KeyPolicy"} {
		w.hook = func(name string, _ int) (bool, error) {
			if name == call {
				return false, fault(lifecycle.Transient, errInjected)
			}
			return true, nil
		}
		if found, err := w.engine.Drift(t.Context(), def, w.journal.generations["payments"], true); err == nil {
			t.Errorf("%s fails: %v", call, words(found))
		}
	}
}

// A KMS key that was rotated in place is compared material by material.
func TestDriftInPlace(t *testing.T) {
	def := definition()
	def.Mode, def.KeepValidFor = "in-place", 90*24*time.Hour
	for _, c := range []struct {
		name   string
		happen func(w *world, k *fakeKey)
		want   []string
		say    string
	}{
		{"nothing", func(*world, *fakeKey) {}, []string{}, ""},
		{"an old material is deleted", func(w *world, k *fakeKey) { k.forgetOld(k.find(w.generation(1).MaterialID)) }, []string{"1 material repairable"}, "the key material of generation 1 is missing"},
		{"somebody has imported another", func(w *world, k *fakeKey) {
			k.pending = &fakeMaterial{id: "theirs", described: "theirs", bytes: []byte("x")}
		}, []string{"3 material"}, `key material theirs (description "theirs", PENDING_ROTATION), which is of none`},
		{"two are deleted", func(w *world, k *fakeKey) {
			k.forgetOld(k.find(w.generation(1).MaterialID))
			k.forget()
		}, []string{"1 material repairable"}, "generation 3 is missing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			for range 3 {
				w.rotate(def)
				w.drain()
			}
			w.advance(time.Hour)
			c.happen(w, w.keyOf(3))
			found := w.drift(def, true)
			diff(t, "differences", c.want, words(found))
			if len(found) > 0 && !strings.Contains(found[0].Message, c.say) {
				t.Errorf("message: %s", found[0].Message)
			}
			if len(found) > 0 && !found[0].Repairable {
				return
			}
			if err := w.drive(w.journal.enqueue(lifecycle.Synchronize, def, lifecycle.Request{Repair: true}, "drift"), 0); err != nil {
				t.Fatalf("repair: %v", err)
			}
			diff(t, "after the repair", []string{}, words(w.drift(def, true)))
		})
	}
}
