package lifecycle_test

import (
	"strings"
	"testing"
	"time"

	"byokd/daemon/lifecycle"
)

func retiring(after time.Duration) lifecycle.Definition {
	def := definition()
	def.DisablePrevious, def.DisablePreviousAfter, def.Verify = true, after, "describe"
	return def
}

func TestDisablePreviousIsToldBefore(t *testing.T) {
	for _, after := range []time.Duration{0, 24 * time.Hour} {
		w := newWorld(t)
		w.rotate(retiring(after))
		w.rotate(retiring(after))
		e := w.journal.events[1]
		at, _ := time.Parse(time.RFC3339, e.detail["previous_key_disable_at"].(string))
		if e.detail["previous_key_disabled"] != (after == 0) || !at.Equal(e.OccurredAt.Add(after).Truncate(time.Second)) {
			t.Errorf("after %s: %v", after, e.detail)
		}
		due := w.journal.jobs[w.journal.nextDue()].due
		if !due.Equal(e.OccurredAt.Add(after)) {
			t.Errorf("due at %v", due)
		}
		w.drain()
		if got := w.generation(1).State(w.now); got != "disabled" {
			t.Errorf("generation 1 is %s", got)
		}
		w.check()
	}
}

// A key that an alias points at is not disabled, whether the check meets it or it
// comes between the check and the attempt that would disable.
func TestRetireNotUnderAnAlias(t *testing.T) {
	for _, alias := range []string{"alias/payments", "alias/former", "alias/unknown"} {
		for _, when := range []string{"before", "between"} {
			t.Run(alias+" "+when, func(t *testing.T) {
				w := newWorld(t)
				def := retiring(0)
				def.FormerAliases = []string{"alias/former"}
				w.rotate(def)
				w.rotate(def)
				id := w.journal.nextDue()
				if when == "between" {
					w.kms.denied["DisableKey"] = true
					wantOperator(t, w.drive(id, 0), lifecycle.WaitPermission)
					w.kms.denied["DisableKey"] = false
				}
				w.kms.point(alias, w.keyOf(1).ID)
				wantOperator(t, w.drive(id, 1), lifecycle.WaitAlias, alias, w.keyOf(1).ID)
				if got := w.keyOf(1).State; got != "Enabled" {
					t.Errorf("the key is %s", got)
				}
				w.kms.point(alias, w.keyOf(2).ID)
				w.drain()
				if got := w.keyOf(1).State; got != "Disabled" {
					t.Errorf("the key is %s", got)
				}
				w.check()
			})
		}
	}
}

// An alias that KMS still shows at the key it has just left is waited for.
func TestRetireWaitsForTheAlias(t *testing.T) {
	w := newWorld(t)
	w.rotate(retiring(0))
	w.rotate(retiring(0))
	w.kms.lateAliases = w.now.Sub(w.kms.aliases["alias/payments"].changed) + 20*time.Second
	if err := w.drive(w.journal.nextDue(), 0); err != nil {
		t.Fatal(err)
	}
	if got := w.keyOf(1).State; got != "Disabled" {
		t.Errorf("the key is %s", got)
	}
}

// Unless the definition wants it at once, a key in use is not disabled.
func TestRetireWaitsForUse(t *testing.T) {
	w := newWorld(t)
	w.rotate(retiring(24 * time.Hour))
	w.rotate(retiring(24 * time.Hour))
	id := w.journal.nextDue()
	w.now = w.journal.jobs[id].due
	w.keyOf(1).lastUse = w.kms.Now().Add(-time.Hour)
	wantOperator(t, w.drive(id, 0), lifecycle.WaitUse, "was used at", "byokctl keep payments 1")
	w.advance(18 * time.Hour)
	w.drain()
	if since := w.kms.Now().Sub(w.keyOf(1).lastUse); w.keyOf(1).State != "Disabled" || since < 24*time.Hour {
		t.Errorf("the key is %s, last used %s ago", w.keyOf(1).State, since)
	}

	// Where it may not be known, it is not asked for ever.
	w.rotate(retiring(24 * time.Hour))
	w.kms.denied["LastUsage"], w.kms.denied["KeyAliases"] = true, true
	w.keyOf(2).lastUse = w.kms.Now().Add(24 * time.Hour)
	w.drain()
	if got := w.keyOf(2).State; got != "Disabled" {
		t.Errorf("the key is %s", got)
	}
	w.check()
}

// Jobs that have nothing to retire end well, say why, and tell of nothing.
func TestNothingToRetire(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(w *world, row *jobRow)
		said   string
	}{
		{"active again", func(w *world, row *jobRow) {
			list := w.journal.generations["payments"]
			list[0].Stage, list[1].Stage = lifecycle.Active, lifecycle.Previous
		}, "active"},
		{"scheduled for deletion, recorded", func(w *world, row *jobRow) { w.journal.generations["payments"][0].DeletionDate = w.now.Add(7 * days) }, "pending-deletion"},
		{"scheduled for deletion, not recorded", func(w *world, row *jobRow) {
			k := w.keyOf(1)
			k.State, k.DeletionDate = "PendingDeletion", w.now.Add(7*days)
		}, "PendingDeletion"},
		{"gone", func(w *world, row *jobRow) { delete(w.kms.keys, w.generation(1).KeyID) }, "no longer exists"},
		{"disabled already", func(w *world, row *jobRow) { w.disable(1) }, "disabled"},
		{"active_key_id", func(w *world, row *jobRow) { row.def.ActiveKeyID = w.keyOf(1).ARN }, "active_key_id"},
		{"no material", func(w *world, row *jobRow) {
			w.synchronize(definition(), lifecycle.Request{Asked: true, Generation: ptr(1), DeleteMaterial: true})
		}, "no key material"},
	} {
		for _, when := range []string{"before", "between"} { // the check and the act
			t.Run(tt.name+" "+when, func(t *testing.T) {
				w := newWorld(t)
				w.rotate(retiring(0))
				w.rotate(retiring(0))
				id := w.journal.nextDue()
				if when == "between" {
					w.kms.denied["DisableKey"] = true
					wantOperator(t, w.drive(id, 0), lifecycle.WaitPermission)
					w.kms.denied["DisableKey"] = false
				}
				tt.change(w, w.journal.jobs[id])
				events := len(w.journal.events)
				w.calls = nil
				if err := w.drive(id, 0); err != nil {
					t.Fatal(err)
				}
				if got := len(w.journal.events); got != events || len(w.writes()) != 0 {
					t.Errorf("%d events, wrote %q", got-events, w.writes())
				}
				for _, name := range []string{"retire", "announce"} {
					if got := w.step(id, name); got.State != lifecycle.Skipped {
						t.Errorf("step %s is %s", name, got.State)
					}
				}
				if got := w.step(id, "retire").Message; !strings.Contains(got, tt.said) {
					t.Errorf("said %q", got)
				}
			})
		}
	}
}

// Material that comes back to a key which was to be disabled does not enable it.
func TestRetiredWithoutMaterial(t *testing.T) {
	w := newWorld(t)
	w.rotate(retiring(0))
	w.rotate(retiring(0))
	w.synchronize(definition(), lifecycle.Request{Asked: true, Generation: ptr(1), DeleteMaterial: true})
	w.drain()
	w.synchronize(definition(), lifecycle.Request{Asked: true, Generation: ptr(1), ImportMaterial: true})
	if got := w.keyOf(1).State; got != "Disabled" {
		t.Errorf("the key is %s", got)
	}
}

// Adopted keys, and one that active_key_id names, are not retired with the rest.
func TestNotRetired(t *testing.T) {
	w := newWorld(t)
	foreign := w.kms.addForeign()
	w.kms.point("alias/payments", foreign.ID)
	def := retiring(0)
	def.ActiveKeyID = foreign.ID
	w.reconcileUntilDone(def)
	w.rotate(def)
	w.drain()
	if e := w.journal.events[0].detail; foreign.State != "Enabled" || e["previous_key_id"] != foreign.ID || e["previous_key_disabled"] != false {
		t.Errorf("the adopted key is %s; event %v", foreign.State, e)
	}

	w = newWorld(t)
	empty := w.kms.add("", "", nil)
	def.ActiveKeyID = empty.ARN
	w.reconcileUntilDone(def)
	w.rotate(def)
	w.rotate(def)
	w.drain()
	if empty.State != "Enabled" || w.journal.events[1].detail["previous_key_disabled"] != false {
		t.Errorf("the key that active_key_id names is %s", empty.State)
	}
}

func TestUnknownRetirement(t *testing.T) {
	w := newWorld(t)
	w.rotate(definition())
	id := w.journal.insert(lifecycle.NewJob{Kind: lifecycle.Retire, Group: "payments", Generation: 1, UniqueKey: "x", Definition: definition(), Request: lifecycle.Request{Retire: "explode"}})
	wantPermanent(t, w.drive(id, 0), "explode")
	id = w.journal.insert(lifecycle.NewJob{Kind: lifecycle.Retire, Group: "payments", Generation: 9, UniqueKey: "y", Definition: definition(), Request: lifecycle.Request{Retire: "disable"}})
	wantPermanent(t, w.drive(id, 0), "generation 9")
}

// retiringWholly disables a previous key, deletes its material, and then the key.
func retiringWholly() lifecycle.Definition {
	def := retiring(days)
	def.DeletePreviousMaterialAfter, def.SchedulePreviousDeletionAfter = ptr(10*days), ptr(40*days)
	return def
}

// planned are the retirements that wait, with the days from since until they are due.
func (w *world) planned(since time.Time) map[string]float64 {
	due := make(map[string]float64)
	for key, id := range w.journal.unique {
		if row := w.journal.jobs[id]; strings.HasPrefix(key, lifecycle.PlanKey) && (row.state == "available" || row.state == "retryable") {
			due[strings.TrimPrefix(key, lifecycle.PlanKey)] = row.due.Sub(since).Hours() / 24
		}
	}
	return due
}

func TestRetirementIsPlanned(t *testing.T) {
	w := newWorld(t)
	w.rotate(retiringWholly())
	diff(t, "with one generation", map[string]float64{}, w.planned(w.now))
	w.rotate(retiringWholly())
	left := w.generation(1).LeftAt
	diff(t, "planned", map[string]float64{"disable:1": 1, "material:1": 10, "delete:1": 40}, w.planned(left))

	// Another definition reaches what is previous already.
	plan := func(change func(def *lifecycle.Definition)) map[string]float64 {
		def := retiringWholly()
		change(&def)
		w.journal.setPlan(*lifecycle.Retirements(def, w.journal.generations["payments"], "watch", w.now))
		return w.planned(left)
	}
	diff(t, "later", map[string]float64{"disable:1": 2, "material:1": 10, "delete:1": 40},
		plan(func(def *lifecycle.Definition) { def.DisablePreviousAfter = 2 * days }))
	diff(t, "no longer", map[string]float64{"disable:1": 1},
		plan(func(def *lifecycle.Definition) {
			def.DeletePreviousMaterialAfter, def.SchedulePreviousDeletionAfter = nil, nil
		}))
	diff(t, "nothing", map[string]float64{}, plan(func(def *lifecycle.Definition) { *def = definition() }))
	diff(t, "named by active_key_id", map[string]float64{}, plan(func(def *lifecycle.Definition) { def.ActiveKeyID = w.keyOf(1).ARN }))
	diff(t, "again", map[string]float64{"disable:1": 1, "material:1": 10, "delete:1": 40}, plan(func(*lifecycle.Definition) {}))

	// Material that a person brings back stays for as long again.
	w.synchronize(definition(), lifecycle.Request{Asked: true, Generation: ptr(1), DeleteMaterial: true})
	diff(t, "without material", map[string]float64{"disable:1": 1, "delete:1": 40}, plan(func(*lifecycle.Definition) {}))
	w.now = left.Add(20 * days)
	w.synchronize(definition(), lifecycle.Request{Asked: true, Generation: ptr(1), ImportMaterial: true})
	if got := plan(func(*lifecycle.Definition) {})["material:1"]; got < 30 || got > 30.001 { // AWS's clock is ahead
		t.Errorf("material is deleted after %v days", got)
	}
}

func TestKeepGenerations(t *testing.T) {
	w := newWorld(t)
	def := definition()
	for range 6 {
		w.rotate(def)
	}
	want := func(keep int, want ...string) {
		t.Helper()
		def := def
		def.KeepGenerations = keep
		got := make(map[string]bool)
		for _, n := range lifecycle.Retirements(def, w.journal.generations["payments"], "watch", w.now).Jobs {
			got[n.UniqueKey] = true
			if !n.DueAt.Equal(w.generation(5).LeftAt) {
				t.Errorf("%s is due at %v", n.UniqueKey, n.DueAt)
			}
		}
		all := make(map[string]bool)
		for _, number := range want {
			all[lifecycle.PlanKey+"disable:"+number] = true
		}
		diff(t, "retired", all, got)
	}
	want(0)
	want(6)
	want(3, "1", "2", "3")
	want(1, "1", "2", "3", "4", "5")
	// What is of no use any more takes no place, and what is kept neither.
	w.disable(5)
	want(3, "1", "2")
	list := w.journal.generations["payments"]
	list[3].KeptAt = w.now
	want(3, "1")
	list[2].MaterialDeletedAt = w.now
	want(3)
}

// A KMS key with several generations is retired as one, and not while one of them
// is active; its material is never deleted.
func TestRetirementOfSharedKeys(t *testing.T) {
	now := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	at := func(n int) time.Time { return now.Add(time.Duration(n) * days) }
	in := func(number int, key string, stage lifecycle.Stage, left time.Time) lifecycle.Generation {
		return lifecycle.Generation{Group: "payments", Number: number, KeyID: key, Stage: stage, HSMID: "01", ActivatedAt: at(number), LeftAt: left}
	}
	list := []lifecycle.Generation{
		in(0, "adopted", lifecycle.Previous, at(1)),
		in(1, "a", lifecycle.Previous, at(2)),
		in(2, "a", lifecycle.Previous, at(3)),
		in(3, "b", lifecycle.Previous, at(4)),
		in(4, "b", lifecycle.Active, time.Time{}),
	}
	list[0].HSMID = ""
	due := func(def lifecycle.Definition) map[string]time.Time {
		all := make(map[string]time.Time)
		for _, n := range lifecycle.Retirements(def, list, "watch", now).Jobs {
			all[strings.TrimPrefix(n.UniqueKey, lifecycle.PlanKey)] = n.DueAt
		}
		return all
	}
	def := retiringWholly()
	diff(t, "planned", map[string]time.Time{"disable:2": at(4), "delete:2": at(43)}, due(def))
	def.ManageAdopted = true
	diff(t, "with the adopted one", map[string]time.Time{"disable:0": at(2), "delete:0": at(41), "disable:2": at(4), "delete:2": at(43)}, due(def))
	def = definition()
	def.KeepGenerations = 2
	diff(t, "keep 2", map[string]time.Time{"disable:2": at(3)}, due(def))
	def.KeepGenerations = 3
	diff(t, "keep 3", map[string]time.Time{}, due(def))
	def.KeepGenerations = 2
	list[0].KeptAt, list[1].KeptAt, list[2].KeptAt = at(5), at(5), at(5) // the key is
	diff(t, "kept", map[string]time.Time{}, due(def))
}

// What takes keys away for good waits while they are, or may be, in use.
func TestDeletionWaitsForUse(t *testing.T) {
	for _, action := range []string{lifecycle.RetireMaterial, lifecycle.RetireDelete} {
		def := definition()
		def.Verify = "describe"
		after, within := ptr(10*days), days
		if action == lifecycle.RetireMaterial {
			def.DeletePreviousMaterialAfter = after
		} else {
			def.SchedulePreviousDeletionAfter, within = after, 7*days
		}
		retired := func(w *world) bool {
			g := w.generation(1)
			return !g.MaterialDeletedAt.IsZero() || !g.DeletionDate.IsZero()
		}
		due := func(t *testing.T) (*world, string) {
			w := newWorld(t)
			w.rotate(def)
			w.rotate(def)
			id := w.journal.nextDue()
			w.now = w.journal.jobs[id].due
			return w, id
		}
		t.Run(action+"/never used", func(t *testing.T) {
			w, _ := due(t)
			w.drain()
			if !retired(w) {
				t.Error("it is not retired")
			}
			w.check()
		})
		t.Run(action+"/used yesterday", func(t *testing.T) {
			w, id := due(t)
			w.keyOf(1).lastUse = w.kms.Now().Add(-20 * time.Hour)
			wantOperator(t, w.drive(id, 0), lifecycle.WaitUse, w.keyOf(1).ID, "was used at 2026-03-", "byokctl keep payments 1")
			if retired(w) {
				t.Error("it is retired")
			}
			w.now = w.now.Add(within)
			w.drain()
			if !retired(w) {
				t.Error("it is not retired once it is out of use")
			}
			w.check()
		})
		t.Run(action+"/KMS does not say", func(t *testing.T) {
			w, id := due(t)
			w.keyOf(1).untracked = true
			wantOperator(t, w.drive(id, 0), lifecycle.WaitUse, "KMS does not say", "disable the key")
			w.now = w.now.Add(30 * days)
			wantOperator(t, w.drive(id, 0), lifecycle.WaitUse, "KMS does not say")
			w.keyOf(1).State = "Disabled" // by a person
			wantOperator(t, w.drive(id, 0), lifecycle.WaitUse, "KMS does not say")
			if retired(w) {
				t.Error("it is retired")
			}
			w.now = w.now.Add(within)
			w.drain()
			if !retired(w) {
				t.Error("it is not retired after it was of no use for long enough")
			}
			w.check()
		})
	}
}

// The definition of any group can name a key, and that ends its retirement.
func TestNotRetiredWhereNamed(t *testing.T) {
	w := newWorld(t)
	w.rotate(retiringWholly())
	w.rotate(retiringWholly())
	w.engine.Named = func(keyID string) bool { return keyID == w.keyOf(1).ID }
	w.calls = nil
	w.drain()
	if got := w.writes(); len(got) != 0 {
		t.Errorf("wrote %q", got)
	}
}

// What somebody else has done to a key is taken over, and not told as byokd's.
func TestRetiredBySomebodyElse(t *testing.T) {
	w := newWorld(t)
	w.rotate(retiringWholly())
	w.rotate(retiringWholly())
	k := w.keyOf(1)
	k.forget()
	w.now = w.now.Add(20 * days)
	events := len(w.journal.events)
	for range 2 {
		if err := w.drive(w.journal.nextDue(), 0); err != nil {
			t.Fatal(err)
		}
	}
	if g := w.generation(1); g.MaterialDeletedAt.IsZero() || g.DisabledAt.IsZero() || len(w.journal.events) != events {
		t.Errorf("generation %+v, %d events", g, len(w.journal.events)-events)
	}
	k.State, k.DeletionDate = "PendingDeletion", w.now.Add(50*days)
	w.drain()
	if g := w.generation(1); !g.DeletionDate.Equal(ms(k.DeletionDate)) || len(w.journal.events) != events {
		t.Errorf("generation %+v, %d events", g, len(w.journal.events)-events)
	}
	w.check()
}
