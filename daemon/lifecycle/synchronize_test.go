package lifecycle_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"byokd/daemon/lifecycle"
)

// imports counts the ImportKeyMaterial calls since calls was emptied.
func (w *world) imports() (n int) {
	for _, c := range w.calls {
		if c == "kms.ImportKeyMaterial" {
			n++
		}
	}
	return n
}

// writes lists the calls since calls was emptied that change AWS or the token.
func (w *world) writes() (list []string) {
	for _, c := range w.calls {
		switch c {
		case "hsm.Generate", "hsm.Destroy", "kms.CreateKey", "kms.ImportKeyMaterial", "kms.DeleteKeyMaterial", "kms.PutKeyPolicy", "kms.TagKey", "kms.UntagKey",
			"kms.SetDescription", "kms.EnableKey", "kms.DisableKey", "kms.ScheduleDeletion", "kms.CancelDeletion", "kms.CreateGrant", "kms.CreateAlias", "kms.UpdateAlias":
			list = append(list, c)
		}
	}
	return list
}

const days = 24 * time.Hour

// What a definition does not manage is not touched, and what byokd once set and
// the definition no longer has is removed.
func TestManaged(t *testing.T) {
	w := newWorld(t)
	w.rotate(definition())
	k := w.keyOf(1)
	k.Description, k.policy, k.tags["theirs"] = "a person's", `{"a": "person"}`, "kept"
	def := definition()
	def.Description, def.Policy, def.Tags = nil, nil, map[string]string{"new": "tag"}
	id := w.synchronize(def, lifecycle.Request{})
	if k.Description != "a person's" || k.policy != `{"a": "person"}` {
		t.Errorf("description %q, policy %s", k.Description, k.policy)
	}
	if _, old := k.tags["team"]; old || k.tags["new"] != "tag" || k.tags["theirs"] != "kept" || k.tags[lifecycle.TagGroup] != "payments" {
		t.Errorf("tags %v", k.tags)
	}
	for _, name := range []string{"policy", "description"} {
		if got := w.step(id, name); got.State != lifecycle.Skipped || got.Message == "" {
			t.Errorf("step %s is %s: %s", name, got.State, got.Message)
		}
	}
	diff(t, "recorded tags", map[string]string{"new": "tag"}, w.generation(1).Tags)
}

// A tag that was set by a job which never came to record it is byokd's all the same.
func TestTagOfAFailedJob(t *testing.T) {
	w := newWorld(t)
	w.rotate(definition())
	def := definition()
	def.Tags = map[string]string{"team": "payments", "brief": "x"}
	w.hook = func(call string, _ int) (bool, error) {
		if call == "kms.TagKey" {
			return true, fault(lifecycle.Permanent, errInjected)
		}
		return true, nil
	}
	id := w.journal.enqueue(lifecycle.Synchronize, def, lifecycle.Request{}, "watch")
	wantPermanent(t, w.drive(id, 0))
	w.hook = nil
	w.synchronize(definition(), lifecycle.Request{})
	if _, ok := w.keyOf(1).tags["brief"]; ok {
		t.Errorf("tags %v", w.keyOf(1).tags)
	}
}

// The tag byokd:group follows the group's name.
func TestRenamedGroup(t *testing.T) {
	w := newWorld(t)
	w.rotate(definition())
	label := w.generation(1).HSMLabel
	def := definition()
	def.Group, def.PreviousName = "cards", "payments"
	list := w.journal.generations["payments"]
	for i := range list {
		list[i].Group = "cards"
	}
	w.journal.generations = map[string][]lifecycle.Generation{"cards": list}
	w.synchronize(def, lifecycle.Request{})
	g := w.journal.generations["cards"][0]
	if got := w.kms.keys[g.KeyID].tags[lifecycle.TagGroup]; got != "cards" {
		t.Errorf("tag %s", got)
	}
	if g.HSMLabel != label {
		t.Errorf("label %s", g.HSMLabel)
	}
}

// An automatic synchronization is about every generation that can be used.
func TestAutomaticTargets(t *testing.T) {
	w := newWorld(t)
	for range 4 {
		w.rotate(definition())
	}
	pending := w.keyOf(1) // by a person, and the journal does not know
	pending.State, pending.DeletionDate = "PendingDeletion", w.now.Add(30*days)
	delete(w.kms.keys, w.generation(2).KeyID)
	def := definition()
	def.Policy = ptr(`{"new": true}`)
	id := w.synchronize(def, lifecycle.Request{})
	if pending.policy == *def.Policy || w.keyOf(3).policy != *def.Policy || w.keyOf(4).policy != *def.Policy {
		t.Errorf("policies %q, %q, %q", pending.policy, w.keyOf(3).policy, w.keyOf(4).policy)
	}
	if got := w.step(id, "policy").Message; !strings.Contains(got, "generation 1:") || !strings.Contains(got, "generation 2:") {
		t.Errorf("message %q", got)
	}
	// Named, they are mistakes.
	for n := 1; n <= 2; n++ {
		id := w.journal.enqueue(lifecycle.Synchronize, def, lifecycle.Request{Asked: true, Generation: &n, UpdatePolicy: true, ImportMaterial: true}, "control")
		wantPermanent(t, w.drive(id, 0), "generation")
	}
	w.check()
}

func TestAskedTargets(t *testing.T) {
	w := newWorld(t)
	def := definition()
	ask := func(req lifecycle.Request) error {
		req.Asked, req.UpdatePolicy, req.ImportMaterial = true, true, true
		return w.drive(w.journal.enqueue(lifecycle.Synchronize, def, req, "control"), 0)
	}
	wantPermanent(t, ask(lifecycle.Request{}), "no active generation")
	w.rotate(def)
	w.rotate(def)
	def.Policy = ptr(`{"new": true}`)
	if err := ask(lifecycle.Request{}); err != nil {
		t.Fatal(err)
	}
	if one, two := w.keyOf(1).policy, w.keyOf(2).policy; one == *def.Policy || two != *def.Policy {
		t.Errorf("policies %s and %s", one, two)
	}
	if err := ask(lifecycle.Request{KeyID: w.keyOf(1).ARN}); err != nil {
		t.Fatal(err)
	}
	if one := w.keyOf(1).policy; one != *def.Policy {
		t.Errorf("policy %s", one)
	}
	wantPermanent(t, ask(lifecycle.Request{Generation: ptr(7)}), "no generation 7")
	wantPermanent(t, ask(lifecycle.Request{KeyID: "nobody's"}), "nobody's")
	w.check()
}

// An event tells of an asked synchronization even when nothing had to be done.
func TestAskedIsAlwaysTold(t *testing.T) {
	w := newWorld(t)
	w.rotate(definition())
	w.rotate(definition())
	w.kms.point("alias/payments", "")
	id := w.synchronize(definition(), lifecycle.Request{Asked: true, Generation: ptr(1), ImportMaterial: true, UpdatePolicy: true})
	diff(t, "events", []string{
		"KMS Alias Moved generation=2 previous=null actions=<nil> disabled=false",
		"KMS Key Synchronized generation=1 previous=null actions=[] disabled=<nil>",
		"KMS Key Synchronized generation=2 previous=null actions=[alias] disabled=<nil>",
	}, w.picture().Events[2:])
	if got := w.step(id, "material"); got.State != lifecycle.Skipped || !strings.Contains(got.Message, "present") {
		t.Errorf("step material is %s: %s", got.State, got.Message)
	}
}

// The announce step says which events were queued.
func TestAnnounceNamesEvents(t *testing.T) {
	w := newWorld(t)
	w.rotate(definition())
	w.rotate(definition())
	def := definition()
	def.Policy, def.Alias = ptr(`{"new": true}`), "alias/cards"
	id := w.synchronize(def, lifecycle.Request{})
	if got := len(w.journal.events); got != 5 {
		t.Fatalf("%d events", got)
	}
	for _, e := range w.journal.events[2:] {
		if got := w.step(id, "announce").Message; !strings.Contains(got, e.ID) {
			t.Errorf("%q does not name %s", got, e.ID)
		}
	}
}

func TestNotAskedFor(t *testing.T) {
	w := newWorld(t)
	w.rotate(definition())
	def := definition()
	def.Policy, def.KeepValidFor = ptr(`{"new": true}`), 90*days
	w.calls = nil
	id := w.synchronize(def, lifecycle.Request{Asked: true})
	if w.imports() != 0 || slices.Contains(w.calls, "kms.PutKeyPolicy") {
		t.Errorf("calls %q", w.calls)
	}
	for _, name := range []string{"policy", "material"} {
		if got := w.step(id, name); got.State != lifecycle.Skipped {
			t.Errorf("step %s is %s", name, got.State)
		}
	}
}

// Material: what an automatic synchronization imports and what it leaves.
func TestAutomaticMaterial(t *testing.T) {
	for _, tt := range []struct {
		name    string
		keep    time.Duration // then
		newKeep time.Duration // now
		change  func(w *world)
		want    int // imports
	}{
		{"present", 0, 0, func(*world) {}, 0},
		{"present, expiring", 90 * days, 90 * days, func(w *world) { w.advance(50 * days) }, 0},
		{"missing against the record", 0, 0, func(w *world) { w.keyOf(1).forget() }, 1},
		{"expires from now on", 0, 90 * days, func(*world) {}, 2},
		{"expires no more", 90 * days, 0, func(*world) {}, 2},
		{"expires earlier", 90 * days, 60 * days, func(*world) {}, 2},
		{"longer than KMS allows", 365 * days, 365 * days, func(*world) {}, 0},
		{"the active one expired", 90 * days, 90 * days, func(w *world) { w.advance(91 * days) }, 1},
		{"deleted on request", 0, 0, func(w *world) {
			w.synchronize(definition(), lifecycle.Request{Asked: true, Generation: ptr(1), DeleteMaterial: true})
		}, 0},
		{"deleted on request, expires from now on", 0, 90 * days, func(w *world) {
			w.synchronize(definition(), lifecycle.Request{Asked: true, Generation: ptr(1), DeleteMaterial: true})
		}, 1},
		{"disabled by byokd", 0, 90 * days, func(w *world) { w.disable(1) }, 1},
		{"disabled by a person", 0, 90 * days, func(w *world) { w.keyOf(1).State = "Disabled" }, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			def := definition()
			def.KeepValidFor = tt.keep
			w.rotate(def)
			w.rotate(def)
			tt.change(w)
			state := w.keyOf(1).State
			w.calls = nil
			def.KeepValidFor = tt.newKeep
			w.synchronize(def, lifecycle.Request{})
			if got := w.imports(); got != tt.want {
				t.Errorf("%d imports, want %d", got, tt.want)
			}
			if got := w.keyOf(1).State; state == "Disabled" && got != state {
				t.Errorf("the disabled key is %s", got)
			}
			w.calls = nil
			w.synchronize(def, lifecycle.Request{})
			if got := w.imports(); got != 0 {
				t.Errorf("%d imports the second time", got)
			}
			w.check()
		})
	}
}

// disable has byokd retire a generation that is no longer active.
func (w *world) disable(n int) {
	w.t.Helper()
	def := definition()
	def.DisablePrevious = true
	id := w.journal.insert(lifecycle.NewJob{Kind: lifecycle.Retire, Group: "payments", Generation: n, Trigger: "schedule", DueAt: w.now,
		UniqueKey: "test disable", Definition: def, Request: lifecycle.Request{Retire: "disable"}})
	if err := w.drive(id, 0); err != nil {
		w.t.Fatalf("retire: %v", err)
	}
	if w.keyOf(n).State != "Disabled" || w.generation(n).DisabledAt.IsZero() {
		w.t.Fatalf("generation %d is %s", n, w.keyOf(n).State)
	}
}

// What was asked for is imported even where an automatic one would not: deleted
// on request, disabled by byokd, expired.
func TestAskedMaterial(t *testing.T) {
	for _, tt := range []struct {
		name   string
		keep   time.Duration
		change func(w *world)
		want   int
		state  string
	}{
		{"present", 0, func(*world) {}, 0, "Enabled"},
		{"present, expiring", 90 * days, func(*world) {}, 1, "Enabled"},
		{"deleted on request", 0, func(w *world) {
			w.synchronize(definition(), lifecycle.Request{Asked: true, Generation: ptr(1), DeleteMaterial: true})
		}, 1, "Enabled"},
		{"disabled by byokd", 90 * days, func(w *world) { w.disable(1) }, 1, "Disabled"},
		{"disabled by byokd, then deleted", 0, func(w *world) {
			w.disable(1)
			w.synchronize(definition(), lifecycle.Request{Asked: true, Generation: ptr(1), DeleteMaterial: true})
		}, 1, "Disabled"},
		{"expired", 90 * days, func(w *world) { w.advance(100 * days) }, 1, "Enabled"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			def := definition()
			def.KeepValidFor = tt.keep
			w.rotate(def)
			w.rotate(def)
			tt.change(w)
			before := w.kms.look(w.generation(1).KeyID).ValidTo
			w.advance(time.Hour)
			w.calls = nil
			w.synchronize(def, lifecycle.Request{Asked: true, Generation: ptr(1), ImportMaterial: true, UpdatePolicy: true})
			if got := w.imports(); got != tt.want {
				t.Errorf("%d imports, want %d", got, tt.want)
			}
			k, g := w.keyOf(1), w.generation(1)
			if k.State != tt.state || !g.MaterialDeletedAt.IsZero() {
				t.Errorf("the key is %s, recorded %+v", k.State, g)
			}
			if tt.keep > 0 && (!k.ValidTo.After(before) || !g.ValidTo.Equal(k.ValidTo)) {
				t.Errorf("valid to %v, recorded %v, before %v", k.ValidTo, g.ValidTo, before)
			}
			w.check()
		})
	}
}

func TestDeleteMaterial(t *testing.T) {
	w := newWorld(t)
	w.rotate(definition())
	w.rotate(definition())
	ask := func(req lifecycle.Request) (string, error) {
		req.Asked, req.DeleteMaterial = true, true
		id := w.journal.enqueue(lifecycle.Synchronize, definition(), req, "control")
		return id, w.drive(id, 0)
	}
	_, err := ask(lifecycle.Request{})
	wantPermanent(t, err, "generation", "key_id")
	if _, err := ask(lifecycle.Request{KeyID: w.keyOf(1).ID}); err != nil {
		t.Fatal(err)
	}
	if got := w.generation(1).State(w.now); got != "material-deleted" || w.keyOf(1).State != "PendingImport" || w.keyOf(2).State != "Enabled" {
		t.Errorf("generation 1 is %s", got)
	}
	events := len(w.journal.events)
	id, err := ask(lifecycle.Request{Generation: ptr(1)})
	if err != nil {
		t.Fatal(err)
	}
	if got := w.step(id, "material"); got.State != lifecycle.Skipped {
		t.Errorf("deleted again: step is %s", got.State)
	}
	if got := len(w.journal.events); got != events+1 {
		t.Errorf("%d events of it", got-events)
	}
	// One that is not asked for deletes nothing, whatever it says.
	id = w.journal.enqueue(lifecycle.Synchronize, definition(), lifecycle.Request{DeleteMaterial: true, Generation: ptr(2)}, "watch")
	if err := w.drive(id, 0); err != nil {
		t.Fatal(err)
	}
	if got := w.keyOf(2).State; got != "Enabled" {
		t.Errorf("generation 2 is %s", got)
	}
	k := w.keyOf(2)
	k.State, k.DeletionDate = "PendingDeletion", w.now.Add(7*days)
	_, err = ask(lifecycle.Request{Generation: ptr(2)})
	wantPermanent(t, err, "scheduled for deletion")
	w.check()
}

// The HSM object of a generation that is in use is missing: a person is told, and
// nothing is given up.
func TestObjectMissing(t *testing.T) {
	w := newWorld(t)
	w.rotate(definition())
	w.hsm.lose(w.generation(1).HSMID)
	w.keyOf(1).forget()
	id := w.journal.enqueue(lifecycle.Synchronize, definition(), lifecycle.Request{}, "start")
	wantOperator(t, w.drive(id, 0), lifecycle.WaitConfig, "byokd/payments/1", "backup")
	if got := w.generation(1).Stage; got != lifecycle.Active {
		t.Errorf("generation 1 is %s", got)
	}
}

// What waits for a person in one generation does not keep the others waiting.
func TestOneGenerationWaits(t *testing.T) {
	w := newWorld(t)
	w.rotate(definition())
	w.rotate(definition())
	w.hsm.lose(w.generation(1).HSMID)
	def := definition()
	def.KeepValidFor = 90 * days
	id := w.journal.enqueue(lifecycle.Synchronize, def, lifecycle.Request{}, "watch")
	wantOperator(t, w.drive(id, 1), lifecycle.WaitConfig, "generation 1:")
	if w.keyOf(1).ValidTo != w.generation(1).ValidTo || w.keyOf(2).ValidTo.IsZero() || !w.keyOf(2).ValidTo.Equal(w.generation(2).ValidTo) {
		t.Errorf("valid to %v and %v", w.keyOf(1).ValidTo, w.keyOf(2).ValidTo)
	}
	if got := w.imports(); got != 3 {
		t.Errorf("%d imports, want one beside the rotations' two", got)
	}
}

// Neither does what can never work.
func TestOneGenerationFails(t *testing.T) {
	w := newWorld(t)
	def := definition()
	def.KeepValidFor = 90 * days
	w.rotate(def)
	w.rotate(def)
	w.hsm.objects[0].material = []byte(strings.Repeat("x", 32))
	w.advance(80 * days)
	end := w.keyOf(2).ValidTo
	id := w.journal.enqueue(lifecycle.Synchronize, def, lifecycle.Request{ExpiringBefore: end.Add(time.Second)}, "expiry")
	wantPermanent(t, w.drive(id, 0), "generation 1:")
	if !w.keyOf(2).ValidTo.After(end) {
		t.Errorf("generation 2 is valid to %v still", end)
	}
}

// A key that a person has enabled is not disabled again by an import.
func TestEnabledStaysEnabled(t *testing.T) {
	for n := 1; n <= 2; n++ {
		w := newWorld(t)
		def := definition()
		def.KeepValidFor = 90 * days
		w.rotate(def)
		w.rotate(def)
		w.keyOf(n).State = "Disabled"
		w.synchronize(def, lifecycle.Request{Asked: true, Generation: &n, DeleteMaterial: true})
		w.synchronize(def, lifecycle.Request{Asked: true, Generation: &n, ImportMaterial: true})
		if got := w.keyOf(n).State; got != "Disabled" {
			t.Fatalf("generation %d: the key that was disabled is %s with its material", n, got)
		}
		w.keyOf(n).State = "Enabled"
		w.synchronize(def, lifecycle.Request{Asked: true, Generation: &n, ImportMaterial: true})
		if got := w.keyOf(n).State; got != "Enabled" {
			t.Errorf("generation %d: the key that a person has enabled is %s", n, got)
		}
		if got := w.generation(2).State(w.now); got != "active" {
			t.Errorf("generation 2 is %s", got)
		}
	}
}

// The token has another key under the generation's label and ID.
func TestIncorrectMaterial(t *testing.T) {
	w := newWorld(t)
	w.rotate(definition())
	w.hsm.objects[0].material = []byte(strings.Repeat("x", 32))
	w.keyOf(1).forget()
	id := w.journal.enqueue(lifecycle.Synchronize, definition(), lifecycle.Request{}, "start")
	wantPermanent(t, w.drive(id, 0), "not the material")
}

func TestSynchronizeAlias(t *testing.T) {
	w := newWorld(t)
	w.rotate(definition())
	w.rotate(definition())

	// A synchronization moves no alias back.
	w.kms.point("alias/payments", w.keyOf(1).ID)
	id := w.synchronize(definition(), lifecycle.Request{})
	if got := w.kms.aliases["alias/payments"].target; got != w.keyOf(1).ID {
		t.Errorf("the alias was moved to %s", got)
	}
	if got := w.step(id, "alias"); got.State != lifecycle.Skipped || !strings.Contains(got.Message, w.keyOf(1).ID) || !strings.Contains(got.Message, w.keyOf(2).ID) {
		t.Errorf("step alias is %s: %s", got.State, got.Message)
	}

	foreign := w.kms.addForeign()
	w.kms.point("alias/payments", foreign.ID)
	id = w.journal.enqueue(lifecycle.Synchronize, definition(), lifecycle.Request{}, "watch")
	wantOperator(t, w.drive(id, 0), lifecycle.WaitAlias, foreign.ID, w.keyOf(2).ID)

	// A changed alias is made at the active key; the old one stays.
	def := definition()
	def.Alias = "alias/cards"
	w.journal.finish(id, "discarded")
	w.synchronize(def, lifecycle.Request{})
	if a := w.kms.aliases["alias/cards"]; a == nil || a.target != w.keyOf(2).ID || w.kms.aliases["alias/payments"].target != foreign.ID {
		t.Errorf("aliases %v", w.picture().Aliases)
	}
	if e := w.journal.events[2]; e.DetailType != lifecycle.AliasMoved || e.detail["previous_key_id"] != nil || e.detail["alias"] != "alias/cards" {
		t.Errorf("event %v", e.detail)
	}
	w.check()
}

// Somebody else is first to create the alias, elsewhere.
func TestAliasCreatedBySomebodyElse(t *testing.T) {
	w := newWorld(t)
	w.rotate(definition())
	foreign := w.kms.addForeign()
	w.kms.point("alias/payments", "")
	w.hook = func(call string, _ int) (bool, error) {
		if call == "kms.CreateAlias" {
			w.kms.point("alias/payments", foreign.ID)
		}
		return true, nil
	}
	id := w.journal.enqueue(lifecycle.Synchronize, definition(), lifecycle.Request{}, "watch")
	wantOperator(t, w.drive(id, 0), lifecycle.WaitAlias, foreign.ID)
	if got := w.kms.aliases["alias/payments"].target; got != foreign.ID {
		t.Errorf("the alias points at %s", got)
	}
}

// Material that waits for a rotation is not what a person means who asks for a
// deletion, and least of all is the current one.
func TestPendingMaterialIsNotDeleted(t *testing.T) {
	w := newWorld(t)
	def := definition()
	def.Mode = "in-place"
	w.rotate(def)
	w.kms.denied["ImportKeyMaterial"] = true
	w.drive(w.journal.enqueue(lifecycle.Rotate, def, lifecycle.Request{}, "schedule"), 0)
	if g := w.generation(2); g.KeyID != w.generation(1).KeyID || g.MaterialID != "" {
		t.Fatalf("generation 2 is %+v", g)
	}
	id := w.synchronize(def, lifecycle.Request{Asked: true, Generation: ptr(2), DeleteMaterial: true})
	if s := w.step(id, "material"); s.State != lifecycle.Skipped || w.keyOf(1).State != "Enabled" {
		t.Errorf("step %+v, the key is %s", s, w.keyOf(1).State)
	}
}
