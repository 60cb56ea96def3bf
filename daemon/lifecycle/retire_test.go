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
	err, _ := w.attempt(id)
	if lifecycle.ClassOf(err) != lifecycle.Transient || !strings.Contains(err.Error(), "was used at") {
		t.Fatalf("error %v", err)
	}
	w.journal.park(id, "retryable")
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
