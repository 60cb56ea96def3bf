package lifecycle_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"byokd/daemon/lifecycle"
)

// A scenario is something that byokd is asked for, in a world set up for it.
type scenario struct {
	name   string
	setup  func(w *world)
	act    func(w *world) // from here on calls fail
	expect func(t *testing.T, w *world)
}

func fault(class lifecycle.Class, err error) error {
	f := &lifecycle.Fault{Class: class, Err: fmt.Errorf("injected: %w", err)}
	if class == lifecycle.Operator {
		f.WaitingFor = lifecycle.WaitPermission
	}
	return f
}

var errInjected = errors.New("fault")

// A mishap is what can happen at a call.
type mishap struct {
	name      string
	apply     bool
	err       func(w *world) error
	journal   bool // can happen to the journal
	notOthers bool // cannot happen to anything else
	interrupt bool
}

var mishaps = []mishap{
	{name: "transient error", err: func(*world) error { return fault(lifecycle.Transient, errInjected) }},
	{name: "unknown error before effect", err: func(*world) error { return fault(lifecycle.Unknown, errInjected) }},
	{name: "denied", err: func(*world) error { return fault(lifecycle.Operator, lifecycle.ErrDenied) }},
	{name: "effect and unknown error", apply: true, err: func(*world) error { return fault(lifecycle.Unknown, errInjected) }},
	{name: "not written", err: func(*world) error { return errInjected }, journal: true, notOthers: true},
	{name: "written and error", apply: true, err: func(*world) error { return errInjected }, journal: true, notOthers: true},
	{name: "death before effect", err: func(*world) error { return errDeath }, journal: true},
	{name: "death after effect", apply: true, err: func(*world) error { return errDeath }, journal: true},
	{name: "interrupted before effect", interrupt: true, err: func(w *world) error {
		w.cancel()
		return fault(lifecycle.Interrupted, context.Canceled)
	}},
	{name: "interrupted after effect", apply: true, interrupt: true, err: func(w *world) error {
		w.cancel()
		return fault(lifecycle.Unknown, context.Canceled)
	}},
	{name: "interrupted meanwhile", apply: true, interrupt: true, journal: true, err: func(w *world) error {
		w.cancel()
		return nil
	}},
}

// run plays a scenario with one mishap at the nth call of its act, and returns
// the world when everything has ended and a daemon has looked at it once more.
func (s scenario) run(t *testing.T, n int, call string, m mishap, lookAgain bool) *world {
	t.Helper()
	w := newWorld(t)
	w.lookAgain = lookAgain
	s.setup(w)
	if t.Failed() {
		t.Fatalf("the set-up of %s fails", s.name)
	}
	w.calls = nil
	happened := false
	w.hook = func(name string, i int) (bool, error) {
		if i != n || happened {
			return true, nil
		}
		if name != call {
			t.Fatalf("call %d is %s, in the clean run it was %s", n, name, call)
		}
		happened = true
		return m.apply, m.err(w)
	}
	s.act(w)
	if n > 0 && !happened {
		t.Errorf("call %d, %s, never came", n, call)
	}
	w.hook = nil
	w.advance(time.Hour) // a late double's tags are to be found by now
	w.reconcileUntilDone(definition())
	w.drain()
	w.check()
	return w
}

// TestCrashMatrix lets everything that can happen to a call happen to each call
// that a clean run makes, and demands the outcome of the clean run.
func TestCrashMatrix(t *testing.T) {
	var cases atomic.Int64
	t.Cleanup(func() { t.Logf("%d cases", cases.Load()) })
	for _, s := range scenarios() {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			clean := newWorld(t)
			s.setup(clean)
			clean.calls = nil
			s.act(clean)
			calls := slices.Clone(clean.calls)
			w := s.run(t, 0, "", mishap{}, false)
			want := w.picture()
			s.expect(t, w)
			if t.Failed() {
				return
			}
			for i, call := range calls {
				for _, m := range mishaps {
					journal := strings.HasPrefix(call, "journal.")
					if journal && !m.journal || !journal && m.notOthers {
						continue
					}
					for _, lookAgain := range []bool{false, true} {
						if lookAgain && !strings.HasPrefix(m.name, "death") {
							continue
						}
						cases.Add(1)
						name := fmt.Sprintf("%02d %s/%s", i+1, call, m.name)
						if lookAgain {
							name += " and reconciliation"
						}
						t.Run(name, func(t *testing.T) {
							diff(t, "outcome", want, s.run(t, i+1, call, m, lookAgain).picture())
						})
					}
				}
			}
		})
	}
}

// TestInterruptedIsNoAttempt cancels the context at each call of each scenario's
// jobs and demands that the attempt says so, whatever the broken-off call says.
func TestInterruptedIsNoAttempt(t *testing.T) {
	for _, s := range scenarios() {
		t.Run(s.name, func(t *testing.T) {
			clean := newWorld(t)
			s.setup(clean)
			job := clean.journal.nextDue()
			if job == "" {
				return // a reconciliation
			}
			clean.now = clean.journal.jobs[job].due
			clean.calls = nil
			if err, _ := clean.attempt(job); lifecycle.ClassOf(err) == lifecycle.Permanent {
				t.Fatal(err)
			}
			for i, call := range clean.calls {
				if strings.HasPrefix(call, "journal.") {
					continue
				}
				for _, err := range []error{context.Canceled, fault(lifecycle.Unknown, errInjected), fault(lifecycle.Transient, errInjected)} {
					w := newWorld(t)
					s.setup(w)
					w.now = w.journal.jobs[job].due
					w.calls = nil
					w.hook = func(_ string, n int) (bool, error) {
						if n == i+1 {
							w.cancel()
							return false, err
						}
						return true, nil
					}
					if err, _ := w.attempt(job); lifecycle.ClassOf(err) != lifecycle.Interrupted {
						t.Errorf("call %d, %s: %v, class %q", i+1, call, err, lifecycle.ClassOf(err))
					}
				}
			}
		})
	}
}

// scenarios are the inputs of the matrix. Each setup may leave jobs, and act runs
// them to their ends.
func scenarios() []scenario {
	enqueue := func(w *world, kind lifecycle.Kind, def lifecycle.Definition, req lifecycle.Request) {
		w.advance(time.Hour)
		w.journal.enqueue(kind, def, req, "control")
	}
	drain := (*world).drain
	atOnce := definition()
	atOnce.DisablePrevious = true
	expiring := definition()
	expiring.KeepValidFor = 90 * 24 * time.Hour
	copying := definition()
	copying.Policy, copying.Description = nil, nil
	copying.Verify = "describe"
	changed := definition()
	changed.Policy = ptr(`{"Version":"2012-10-17","Statement":[{"Sid":"b"}]}`)
	changed.Description = ptr("cards and more")
	changed.Tags = map[string]string{"owner": "cards"}
	changed.Alias = "alias/cards"
	inPlace := definition()
	inPlace.Mode = "in-place"
	auto := definition()
	auto.Mode = "auto"
	inPlaceExpiring := expiring
	inPlaceExpiring.Mode = "in-place"
	shorter := definition()
	shorter.KeepValidFor = 60 * 24 * time.Hour

	events := func(want ...string) func(t *testing.T, w *world) {
		return func(t *testing.T, w *world) {
			t.Helper()
			diff(t, "events", want, w.picture().Events)
			if got := w.picture(); slices.ContainsFunc(got.Generations, func(g generationPicture) bool { return g.Stage == lifecycle.PreActive }) {
				t.Errorf("a generation is left pre-active: %+v", got.Generations)
			}
		}
	}
	const (
		first  = "KMS Alias Moved generation=1 previous=null actions=<nil> disabled=false"
		second = "KMS Alias Moved generation=2 previous=1 actions=<nil> disabled=false"

		secondInPlace = "KMS Key Material Rotated generation=2 previous=byokd/payments/1 left=24 actions=<nil> disabled=<nil>"
		thirdInPlace  = "KMS Key Material Rotated generation=3 previous=byokd/payments/2 left=23 actions=<nil> disabled=<nil>"
	)
	// putBack expects these moves of the alias after its first, and that the audit
	// trail tells of the one that was put back.
	putBack := func(more func(t *testing.T, w *world), moves ...string) func(t *testing.T, w *world) {
		return func(t *testing.T, w *world) {
			t.Helper()
			more(t, w)
			want := []string{"alias/payments: new -> 1"}
			for _, m := range moves {
				want = append(want, "alias/payments: "+m)
			}
			diff(t, "moves", want, w.picture().Moves)
			if n := w.picture().Audit["put alias back"]; n != 1 {
				t.Errorf("the audit trail has %d aliases put back", n)
			}
		}
	}
	return []scenario{
		{
			name:   "rotate, first generation",
			setup:  func(w *world) { enqueue(w, lifecycle.Rotate, definition(), lifecycle.Request{}) },
			act:    drain,
			expect: events(first),
		},
		{
			name: "rotate, policy copied, describe",
			setup: func(w *world) {
				w.rotate(copying)
				w.keyOf(1).policy = `{"by": "a person"}`
				enqueue(w, lifecycle.Rotate, copying, lifecycle.Request{})
			},
			act: drain,
			expect: func(t *testing.T, w *world) {
				events(first, second)(t, w)
				if got := w.keyOf(2).policy; !strings.Contains(got, "a person") {
					t.Errorf("policy of the new key: %s", got)
				}
			},
		},
		{
			name: "rotate and disable at once",
			setup: func(w *world) {
				w.rotate(atOnce)
				w.kms.lateAliases = 10 * time.Second
				enqueue(w, lifecycle.Rotate, atOnce, lifecycle.Request{})
			},
			act: drain,
			expect: func(t *testing.T, w *world) {
				events(first, "KMS Alias Moved generation=2 previous=1 actions=<nil> disabled=true", "KMS Key Disabled generation=1 previous=null actions=<nil> disabled=<nil>")(t, w)
				if got := w.keyOf(1).State; got != "Disabled" {
					t.Errorf("the previous key is %s", got)
				}
			},
		},
		{
			name: "rotate, expiring, AWS shows everything late",
			setup: func(w *world) {
				w.kms.lateKeys, w.kms.lateTags, w.kms.lateAliases = 3*time.Second, 20*time.Second, 5*time.Second
				enqueue(w, lifecycle.Rotate, expiring, lifecycle.Request{})
			},
			act:    drain,
			expect: events(first),
		},
		{
			name: "rotate, going on with what an earlier rotation left",
			setup: func(w *world) {
				w.rotate(definition())
				w.kms.denied["ParametersForImport"] = true
				id := w.journal.enqueue(lifecycle.Rotate, definition(), lifecycle.Request{}, "schedule")
				if err := w.drive(id, 0); lifecycle.ClassOf(err) != lifecycle.Operator {
					w.t.Fatalf("import: %v", err)
				}
				w.journal.finish(id, "discarded")
				w.kms.denied["ParametersForImport"] = false
				enqueue(w, lifecycle.Rotate, changed, lifecycle.Request{})
				w.kms.point("alias/cards", w.keyOf(1).ID)
			},
			act: drain,
			expect: func(t *testing.T, w *world) {
				events(first, second)(t, w)
				if k := w.keyOf(2); k.Description != *changed.Description || k.policy != *changed.Policy || k.tags["owner"] != "cards" || k.tags["team"] != "" {
					t.Errorf("the key is not as the later definition wants it: %+v", k)
				}
			},
		},
		{
			name: "rotate, earlier generation given up",
			setup: func(w *world) {
				w.rotate(definition())
				w.kms.denied["ParametersForImport"] = true
				id := w.journal.enqueue(lifecycle.Rotate, definition(), lifecycle.Request{}, "schedule")
				if err := w.drive(id, 0); lifecycle.ClassOf(err) != lifecycle.Operator {
					w.t.Fatalf("import: %v", err)
				}
				w.journal.finish(id, "discarded")
				w.kms.denied["ParametersForImport"] = false
				w.hsm.lose(w.generation(2).HSMID)
				enqueue(w, lifecycle.Rotate, definition(), lifecycle.Request{})
			},
			act: drain,
			expect: events(first, "KMS Key Deletion Scheduled generation=2 previous=null actions=<nil> disabled=<nil>",
				"KMS Alias Moved generation=3 previous=1 actions=<nil> disabled=false"),
		},
		{
			name: "rotate, its key scheduled for deletion on the way",
			setup: func(w *world) {
				w.rotate(definition())
				id := w.journal.enqueue(lifecycle.Rotate, definition(), lifecycle.Request{}, "schedule")
				w.kms.denied["ParametersForImport"] = true
				w.drive(id, 0)
				w.kms.denied["ParametersForImport"] = false
				k := w.keyOf(2)
				k.State, k.DeletionDate = "PendingDeletion", w.now.Add(30*24*time.Hour)
			},
			act: drain,
			expect: events(first, "KMS Key Deletion Scheduled generation=2 previous=null actions=<nil> disabled=<nil>",
				"KMS Alias Moved generation=3 previous=1 actions=<nil> disabled=false"),
		},
		{
			name: "rotate, the new key disabled after the move",
			setup: func(w *world) {
				w.rotate(definition())
				w.afterMove(1, func(k *fakeKey) { k.State, k.enableAt = "Disabled", w.now.Add(10*time.Hour) })
				enqueue(w, lifecycle.Rotate, definition(), lifecycle.Request{})
			},
			act:    drain,
			expect: putBack(events(first, second), "1 -> 2", "2 -> 1", "1 -> 2"),
		},
		{
			name: "rotate, the new key's material gone after the move",
			setup: func(w *world) {
				w.rotate(definition())
				w.afterMove(1, (*fakeKey).forget)
				enqueue(w, lifecycle.Rotate, definition(), lifecycle.Request{})
			},
			act:    drain,
			expect: putBack(events(first, second), "1 -> 2", "2 -> 1", "1 -> 2"),
		},
		{
			name: "rotate, the new key scheduled for deletion after the move",
			setup: func(w *world) {
				w.rotate(definition())
				w.afterMove(1, func(k *fakeKey) { k.State, k.DeletionDate = "PendingDeletion", w.now.Add(30*24*time.Hour) })
				enqueue(w, lifecycle.Rotate, definition(), lifecycle.Request{})
			},
			act: drain,
			expect: putBack(events(first, "KMS Alias Moved generation=3 previous=1 actions=<nil> disabled=false"),
				"1 -> 2", "2 -> 1", "1 -> 3"),
		},
		{
			name: "rotate in place",
			setup: func(w *world) {
				w.rotate(inPlace)
				w.kms.lateMaterials, w.kms.rotationTime = 4*time.Second, 90*time.Second
				enqueue(w, lifecycle.Rotate, inPlace, lifecycle.Request{})
			},
			act:    drain,
			expect: events(first, secondInPlace),
		},
		{
			name: "rotate in place, expiring: all material of the key is renewed; describe",
			setup: func(w *world) {
				inPlaceExpiring.Verify = "describe"
				w.rotate(inPlaceExpiring)
				w.rotate(inPlaceExpiring)
				w.advance(60 * 24 * time.Hour)
				enqueue(w, lifecycle.Rotate, inPlaceExpiring, lifecycle.Request{})
			},
			act: drain,
			expect: func(t *testing.T, w *world) {
				events(first, secondInPlace, thirdInPlace)(t, w)
				for _, g := range w.journal.generations["payments"] {
					if left := g.ValidTo.Sub(w.kms.Now()); left < 89*24*time.Hour {
						t.Errorf("generation %d is valid for %s", g.Number, left)
					}
				}
			},
		},
		{
			name: "rotate in place, material of the key is missing",
			setup: func(w *world) {
				w.rotate(inPlace)
				w.rotate(inPlace)
				w.keyOf(1).forgetOld(w.keyOf(1).old[0])
				w.keyOf(1).forget()
				enqueue(w, lifecycle.Rotate, inPlace, lifecycle.Request{})
			},
			act:    drain,
			expect: events(first, secondInPlace, thirdInPlace),
		},
		{
			name: "rotate in place, the alias is gone",
			setup: func(w *world) {
				w.rotate(inPlace)
				w.kms.point("alias/payments", "")
				enqueue(w, lifecycle.Rotate, inPlace, lifecycle.Request{})
			},
			act: drain,
			expect: events(first, secondInPlace,
				"KMS Alias Moved generation=2 previous=null actions=<nil> disabled=false",
				"KMS Key Synchronized generation=2 previous=null actions=[alias] disabled=<nil>"),
		},
		{
			name: "rotate in place, earlier generation given up",
			setup: func(w *world) {
				w.rotate(inPlace)
				w.kms.denied["RotateKeyOnDemand"] = true
				id := w.journal.enqueue(lifecycle.Rotate, inPlace, lifecycle.Request{}, "schedule")
				if err := w.drive(id, 0); lifecycle.ClassOf(err) != lifecycle.Operator {
					w.t.Fatalf("rotate: %v", err)
				}
				w.journal.finish(id, "discarded")
				w.kms.denied["RotateKeyOnDemand"] = false
				w.hsm.lose(w.generation(2).HSMID)
				enqueue(w, lifecycle.Rotate, inPlace, lifecycle.Request{})
			},
			act:    drain,
			expect: events(first, "KMS Key Material Rotated generation=3 previous=byokd/payments/1 left=24 actions=<nil> disabled=<nil>"),
		},
		{
			name: "rotate in place, then the definition wants a fresh key",
			setup: func(w *world) {
				w.rotate(inPlace)
				w.kms.denied["RotateKeyOnDemand"] = true
				id := w.journal.enqueue(lifecycle.Rotate, inPlace, lifecycle.Request{}, "schedule")
				w.drive(id, 0)
				w.journal.finish(id, "discarded")
				w.kms.denied["RotateKeyOnDemand"] = false
				enqueue(w, lifecycle.Rotate, definition(), lifecycle.Request{})
			},
			act:    drain,
			expect: events(first, "KMS Alias Moved generation=3 previous=1 actions=<nil> disabled=false"),
		},
		{
			name: "auto, the key's rotations are used up",
			setup: func(w *world) {
				w.rotate(auto)
				w.rotate(auto)
				w.keyOf(1).use(lifecycle.MaxRotations - 1)
				enqueue(w, lifecycle.Rotate, auto, lifecycle.Request{})
			},
			act:    drain,
			expect: events(first, secondInPlace, "KMS Alias Moved generation=3 previous=1 actions=<nil> disabled=false"),
		},
		{
			name: "auto, the key's rotations turn out to be used up",
			setup: func(w *world) {
				w.rotate(auto)
				w.kms.limit = 0
				enqueue(w, lifecycle.Rotate, auto, lifecycle.Request{})
			},
			act: func(w *world) {
				w.drain()
			},
			expect: events(first, "KMS Alias Moved generation=3 previous=1 actions=<nil> disabled=false"),
		},
		{
			name: "synchronize, one material of several deleted and brought back",
			setup: func(w *world) {
				w.rotate(inPlace)
				w.rotate(inPlace)
				w.rotate(inPlace)
				enqueue(w, lifecycle.Synchronize, inPlace, lifecycle.Request{Asked: true, Generation: ptr(2), DeleteMaterial: true})
				enqueue(w, lifecycle.Synchronize, inPlace, lifecycle.Request{Asked: true, ImportMaterial: true})
			},
			act: drain,
			expect: events(first, secondInPlace, thirdInPlace,
				"KMS Key Material Deleted generation=2 previous=null actions=<nil> disabled=<nil>",
				"KMS Key Synchronized generation=2 previous=null actions=[material] disabled=<nil>",
				"KMS Key Synchronized generation=2 previous=null actions=[material] disabled=<nil>",
				"KMS Key Synchronized generation=3 previous=null actions=[] disabled=<nil>"),
		},
		{
			name: "synchronize a key of several materials, one missing, keep_valid_for changed",
			setup: func(w *world) {
				w.rotate(inPlaceExpiring)
				w.rotate(inPlaceExpiring)
				w.keyOf(1).forgetOld(w.keyOf(1).old[0])
				w.keyOf(1).tags["team"] = "somebody's"
				shorter := shorter
				shorter.Mode = "in-place"
				enqueue(w, lifecycle.Synchronize, shorter, lifecycle.Request{})
			},
			act: drain,
			expect: func(t *testing.T, w *world) {
				events(first, secondInPlace,
					"KMS Key Synchronized generation=1 previous=null actions=[material] disabled=<nil>",
					"KMS Key Synchronized generation=2 previous=null actions=[material tags] disabled=<nil>")(t, w)
				if k := w.keyOf(2); k.State != "Enabled" || k.tags[lifecycle.TagGeneration] != "1" {
					t.Errorf("the key is %s, tags %v", k.State, k.tags)
				}
			},
		},
		{
			name: "reconcile an empty database, rotated in place",
			setup: func(w *world) {
				for range 3 {
					w.rotate(inPlace)
				}
				w.kms.denied["RotateKeyOnDemand"] = true
				id := w.journal.enqueue(lifecycle.Rotate, inPlace, lifecycle.Request{}, "schedule")
				w.drive(id, 0)
				w.kms.denied["RotateKeyOnDemand"] = false
				w.loseDatabase()
			},
			act: func(w *world) {
				w.reconcileUntilDone(inPlace)
				enqueue(w, lifecycle.Rotate, inPlace, lifecycle.Request{})
				w.drain()
			},
			expect: func(t *testing.T, w *world) {
				events("KMS Key Material Rotated generation=4 previous=byokd/payments/3 left=22 actions=<nil> disabled=<nil>")(t, w)
				var stages []lifecycle.Stage
				for _, g := range w.journal.generations["payments"] {
					stages = append(stages, g.Stage)
				}
				diff(t, "stages", []lifecycle.Stage{lifecycle.Previous, lifecycle.Previous, lifecycle.Previous, lifecycle.Active}, stages)
			},
		},
		{
			name: "retire a day later",
			setup: func(w *world) {
				later := definition()
				later.DisablePrevious, later.DisablePreviousAfter = true, 24*time.Hour
				w.rotate(later)
				w.rotate(later)
			},
			act: drain,
			expect: events(first, second,
				"KMS Key Disabled generation=1 previous=null actions=<nil> disabled=<nil>"),
		},
		{
			name: "retire: disable, delete the material, then the key",
			setup: func(w *world) {
				w.rotate(retiringWholly())
				w.rotate(retiringWholly())
			},
			act: drain,
			expect: func(t *testing.T, w *world) {
				events(first, second,
					"KMS Key Disabled generation=1 previous=null actions=<nil> disabled=<nil>",
					"KMS Key Material Deleted generation=1 previous=null actions=<nil> disabled=<nil>",
					"KMS Key Deletion Scheduled generation=1 previous=null actions=<nil> disabled=<nil>")(t, w)
				if got := w.generation(1).State(w.now); got != "pending-deletion" {
					t.Errorf("generation 1 is %s", got)
				}
			},
		},
		{
			name: "retire what is beyond keep_generations",
			setup: func(w *world) {
				def := definition()
				def.KeepGenerations = 2
				w.rotate(def)
				w.rotate(def)
				w.advance(48 * time.Hour) // it is not in use by then
				enqueue(w, lifecycle.Rotate, def, lifecycle.Request{})
			},
			act: drain,
			expect: events(first, second, "KMS Alias Moved generation=3 previous=2 actions=<nil> disabled=false",
				"KMS Key Disabled generation=1 previous=null actions=<nil> disabled=<nil>"),
		},
		{
			name: "keep a generation whose key is to be deleted",
			setup: func(w *world) {
				def := definition()
				def.SchedulePreviousDeletionAfter = ptr(10 * days)
				w.rotate(def)
				w.rotate(def)
				w.drain()
				w.keep(def, 1)
			},
			act: drain,
			expect: func(t *testing.T, w *world) {
				events(first, second, "KMS Key Deletion Scheduled generation=1 previous=null actions=<nil> disabled=<nil>")(t, w)
				if g := w.generation(1); w.keyOf(1).State != "Enabled" || g.KeptAt.IsZero() || !g.DeletionDate.IsZero() {
					t.Errorf("the key is %s, generation %+v", w.keyOf(1).State, g)
				}
			},
		},
		{
			name: "keep a generation that is disabled, before its deletion",
			setup: func(w *world) {
				w.rotate(retiringWholly())
				w.rotate(retiringWholly())
				w.drive(w.journal.nextDue(), 32)
				w.keep(retiringWholly(), 1)
			},
			act: drain,
			expect: func(t *testing.T, w *world) {
				if got := w.keyOf(1).State; got != "Disabled" || len(w.planned(w.now)) != 0 {
					t.Errorf("the key is %s, and %v is planned", got, w.planned(w.now))
				}
			},
		},
		{
			name: "roll back",
			setup: func(w *world) {
				w.rotate(retiringWholly())
				w.rotate(retiringWholly())
				w.kms.lateAliases = 3 * time.Second
				w.rollback(retiringWholly(), 1)
			},
			act: func(w *world) {
				if err := w.drive(w.journal.order[len(w.journal.order)-1], 3); err != nil {
					w.t.Fatalf("roll back: %v", err)
				}
				w.kms.lateAliases = 0
				w.drain()
			},
			expect: func(t *testing.T, w *world) {
				events(first, "KMS Alias Moved generation=2 previous=1 actions=<nil> disabled=false",
					"KMS Alias Moved generation=1 previous=2 actions=<nil> disabled=false",
					"KMS Key Disabled generation=2 previous=null actions=<nil> disabled=<nil>",
					"KMS Key Material Deleted generation=2 previous=null actions=<nil> disabled=<nil>",
					"KMS Key Deletion Scheduled generation=2 previous=null actions=<nil> disabled=<nil>")(t, w)
				if g := w.generation(1); g.Stage != lifecycle.Active || w.keyOf(1).State != "Enabled" {
					t.Errorf("generation 1 is %s, its key %s", g.Stage, w.keyOf(1).State)
				}
			},
		},
		{
			name:  "adopt a key, and rotate away from it",
			setup: func(w *world) { w.kms.addForeign() },
			act: func(w *world) {
				def := definition()
				for id := range w.kms.keys {
					def.ActiveKeyID = id
				}
				w.reconcileUntilDone(def)
				w.drain()
				enqueue(w, lifecycle.Rotate, def, lifecycle.Request{})
				w.drain()
			},
			expect: events("KMS Alias Moved generation=0 previous=null actions=<nil> disabled=false",
				"KMS Alias Moved generation=1 previous=0 actions=<nil> disabled=false"),
		},
		{
			name: "rotate, grants copied",
			setup: func(w *world) {
				def := definition()
				def.Grants = "copy"
				w.rotate(def)
				w.keyOf(1).grants = someGrants()
				enqueue(w, lifecycle.Rotate, def, lifecycle.Request{})
			},
			act: drain,
			expect: func(t *testing.T, w *world) {
				events(first, second)(t, w)
				if got := len(w.keyOf(2).grants); got != 2 {
					t.Errorf("the new key has %d grants", got)
				}
			},
		},
		{
			name: "synchronize everything",
			setup: func(w *world) {
				w.rotate(definition())
				w.rotate(definition())
				w.keyOf(1).tags["theirs"] = "kept"
				enqueue(w, lifecycle.Synchronize, changed, lifecycle.Request{})
			},
			act: drain,
			expect: func(t *testing.T, w *world) {
				events(first, second,
					"KMS Alias Moved generation=2 previous=null actions=<nil> disabled=false",
					"KMS Key Synchronized generation=1 previous=null actions=[policy tags] disabled=<nil>",
					"KMS Key Synchronized generation=2 previous=null actions=[policy description tags alias] disabled=<nil>")(t, w)
				if got := w.keyOf(1).tags["theirs"]; got != "kept" {
					t.Errorf("a foreign tag is gone")
				}
			},
		},
		{
			name: "synchronize, nothing to do",
			setup: func(w *world) {
				w.rotate(definition())
				enqueue(w, lifecycle.Synchronize, definition(), lifecycle.Request{})
			},
			act:    drain,
			expect: events(first),
		},
		{
			name: "synchronize, keep_valid_for changed",
			setup: func(w *world) {
				w.rotate(expiring)
				w.rotate(expiring)
				enqueue(w, lifecycle.Synchronize, shorter, lifecycle.Request{})
			},
			act: drain,
			expect: events(first, second,
				"KMS Key Synchronized generation=1 previous=null actions=[material] disabled=<nil>",
				"KMS Key Synchronized generation=2 previous=null actions=[material] disabled=<nil>"),
		},
		{
			name: "synchronize, ahead of expiry",
			setup: func(w *world) {
				w.rotate(expiring)
				w.rotate(expiring)
				w.advance(80 * 24 * time.Hour)
				enqueue(w, lifecycle.Synchronize, expiring, lifecycle.Request{ExpiringBefore: w.now.Add(20 * 24 * time.Hour)})
			},
			act: drain,
			expect: func(t *testing.T, w *world) {
				events(first, second,
					"KMS Key Synchronized generation=1 previous=null actions=[material] disabled=<nil>",
					"KMS Key Synchronized generation=2 previous=null actions=[material] disabled=<nil>")(t, w)
				for n := 1; n <= 2; n++ {
					if left := w.generation(n).ValidTo.Sub(w.now); left < 89*24*time.Hour {
						t.Errorf("generation %d is valid for %s", n, left)
					}
				}
			},
		},
		{
			name: "synchronize, expired meanwhile",
			setup: func(w *world) {
				w.rotate(expiring)
				w.rotate(expiring)
				w.advance(91 * 24 * time.Hour)
				if got := w.kms.look(w.generation(2).KeyID).State; got != "PendingImport" {
					w.t.Fatalf("the key is %s", got)
				}
				enqueue(w, lifecycle.Synchronize, expiring, lifecycle.Request{ExpiringBefore: w.now})
			},
			act: drain,
			expect: func(t *testing.T, w *world) {
				events(first, second,
					"KMS Key Synchronized generation=1 previous=null actions=[material] disabled=<nil>",
					"KMS Key Synchronized generation=2 previous=null actions=[material] disabled=<nil>")(t, w)
				for n := 1; n <= 2; n++ {
					if k := w.keyOf(n); k.State != "Enabled" || k.MaterialID != w.generation(n).MaterialID {
						t.Errorf("the key of generation %d is %s with material %s", n, k.State, k.MaterialID)
					}
				}
			},
		},
		{
			name: "synchronize, repair",
			setup: func(w *world) {
				both := expiring
				both.DisablePrevious = true
				for range 3 {
					w.rotate(both)
					w.drain()
				}
				w.keyOf(1).State = "Enabled"                           // each by a person
				w.keyOf(2).forget()                                    //
				w.keyOf(3).ValidTo = w.now.Add(3 * time.Hour).UTC()    //
				w.keyOf(3).policy, w.keyOf(3).tags["team"] = "{}", "x" //
				enqueue(w, lifecycle.Synchronize, both, lifecycle.Request{Repair: true})
			},
			act: drain,
			expect: func(t *testing.T, w *world) {
				got := w.picture().Events
				diff(t, "events", []string{
					"KMS Key Synchronized generation=1 previous=null actions=[state] disabled=<nil>",
					"KMS Key Synchronized generation=3 previous=null actions=[policy material tags] disabled=<nil>"}, got[len(got)-2:])
				for n, want := range map[int]string{1: "Disabled", 2: "PendingImport", 3: "Enabled"} {
					if got := w.keyOf(n).State; got != want {
						t.Errorf("the key of generation %d is %s", n, got)
					}
				}
				if left := w.keyOf(3).ValidTo.Sub(w.now); left < 80*24*time.Hour {
					t.Errorf("the active key is valid for %s", left)
				}
			},
		},
		{
			name: "synchronize, repair of material that somebody deleted",
			setup: func(w *world) {
				w.rotate(definition())
				w.rotate(definition())
				w.keyOf(1).forget()
				w.keyOf(2).forget()
				enqueue(w, lifecycle.Synchronize, definition(), lifecycle.Request{Repair: true})
			},
			act: drain,
			expect: events(first, second,
				"KMS Key Synchronized generation=1 previous=null actions=[material] disabled=<nil>",
				"KMS Key Synchronized generation=2 previous=null actions=[material] disabled=<nil>"),
		},
		{
			name: "synchronize, asked, disabled generation",
			setup: func(w *world) {
				w.rotate(expiring)
				w.rotate(expiring)
				w.keyOf(1).State = "Disabled" // by a person
				enqueue(w, lifecycle.Synchronize, expiring, lifecycle.Request{Asked: true, Generation: ptr(1), ImportMaterial: true, UpdatePolicy: true})
			},
			act: drain,
			expect: func(t *testing.T, w *world) {
				events(first, second, "KMS Key Synchronized generation=1 previous=null actions=[material] disabled=<nil>")(t, w)
				if got := w.keyOf(1).State; got != "Disabled" {
					t.Errorf("the key is %s", got)
				}
			},
		},
		{
			name: "synchronize, delete material",
			setup: func(w *world) {
				w.rotate(definition())
				w.rotate(definition())
				enqueue(w, lifecycle.Synchronize, definition(), lifecycle.Request{Asked: true, Generation: ptr(1), DeleteMaterial: true})
			},
			act: drain,
			expect: events(first, second,
				"KMS Key Material Deleted generation=1 previous=null actions=<nil> disabled=<nil>",
				"KMS Key Synchronized generation=1 previous=null actions=[material] disabled=<nil>"),
		},
		{
			name: "synchronize, delete material of a disabled key and bring it back",
			setup: func(w *world) {
				w.rotate(definition())
				w.rotate(definition())
				w.keyOf(1).State = "Disabled" // by a person
				enqueue(w, lifecycle.Synchronize, definition(), lifecycle.Request{Asked: true, Generation: ptr(1), DeleteMaterial: true})
				enqueue(w, lifecycle.Synchronize, definition(), lifecycle.Request{Asked: true, Generation: ptr(1), ImportMaterial: true})
			},
			act: drain,
			expect: func(t *testing.T, w *world) {
				if got := w.keyOf(1).State; got != "Disabled" {
					t.Errorf("the key is %s", got)
				}
			},
		},
		{
			name: "synchronize, asked for material that was deleted",
			setup: func(w *world) {
				w.rotate(definition())
				w.synchronize(definition(), lifecycle.Request{Asked: true, Generation: ptr(1), DeleteMaterial: true})
				enqueue(w, lifecycle.Synchronize, definition(), lifecycle.Request{Asked: true, ImportMaterial: true})
			},
			act: drain,
			expect: events(first,
				"KMS Key Material Deleted generation=1 previous=null actions=<nil> disabled=<nil>",
				"KMS Key Synchronized generation=1 previous=null actions=[material] disabled=<nil>",
				"KMS Key Synchronized generation=1 previous=null actions=[material] disabled=<nil>"),
		},
		{
			name: "reconcile an empty database",
			setup: func(w *world) {
				for range 3 {
					w.rotate(definition())
				}
				w.loseDatabase()
			},
			act: func(w *world) { w.reconcileUntilDone(definition()) },
			expect: func(t *testing.T, w *world) {
				events()(t, w)
				var stages []lifecycle.Stage
				for _, g := range w.journal.generations["payments"] {
					stages = append(stages, g.Stage)
				}
				diff(t, "stages", []lifecycle.Stage{lifecycle.Previous, lifecycle.Previous, lifecycle.Active}, stages)
			},
		},
		{
			name: "reconcile and rotate, a late double about",
			setup: func(w *world) {
				w.kms.lateTags = 3 * time.Minute
				w.loseAnswer("kms.CreateKey")
				id := w.journal.enqueue(lifecycle.Rotate, definition(), lifecycle.Request{}, "initial")
				if err := w.drive(id, 0); err != nil {
					w.t.Fatalf("rotate: %v", err)
				}
				w.hook = nil
				w.advance(time.Hour)
				if got := len(w.kms.keys); got != 2 {
					w.t.Fatalf("%d KMS keys", got)
				}
			},
			act: func(w *world) {
				w.reconcileUntilDone(definition())
				w.drain()
				w.kms.lateTags = 0
				enqueue(w, lifecycle.Rotate, definition(), lifecycle.Request{})
				w.drain()
			},
			expect: events(first, "KMS Key Deletion Scheduled generation=1 previous=null actions=<nil> disabled=<nil>", second),
		},
	}
}

// loseAnswer lets the next call of that name take effect and its answer be lost.
func (w *world) loseAnswer(call string) {
	lost := false
	w.hook = func(name string, _ int) (bool, error) {
		if name == call && !lost {
			lost = true
			return true, fault(lifecycle.Unknown, errInjected)
		}
		return true, nil
	}
}

// TestEveryCallIsCovered fails when an interface has a method that no scenario of
// the matrix calls.
func TestEveryCallIsCovered(t *testing.T) {
	called := make(map[string]bool)
	for _, s := range scenarios() {
		w := newWorld(t)
		s.setup(w)
		w.calls = nil
		s.act(w)
		for _, c := range w.calls {
			called[c] = true
		}
	}
	want := []string{
		"hsm.Algorithm", "hsm.Destroy", "hsm.Find", "hsm.Generate", "hsm.List", "hsm.Wrap",
		"journal.Generations", "journal.Record",
		"kms.Account", "kms.CancelDeletion", "kms.CreateAlias", "kms.CreateGrant", "kms.CreateKey", "kms.Decrypt", "kms.DeleteKeyMaterial", "kms.DescribeKey", "kms.DisableKey", "kms.EnableKey",
		"kms.Encrypt", "kms.FindKeys", "kms.Grants", "kms.ImportKeyMaterial", "kms.KeyAliases", "kms.KeyMaterials", "kms.KeyPolicy", "kms.KeyTags", "kms.LastUsage",
		"kms.ParametersForImport", "kms.PutKeyPolicy", "kms.RotateKeyOnDemand", "kms.RotationStarted", "kms.ScheduleDeletion", "kms.SetDescription", "kms.TagKey", "kms.UntagKey", "kms.UpdateAlias",
	}
	diff(t, "calls", want, slices.Sorted(maps.Keys(called)))
}
