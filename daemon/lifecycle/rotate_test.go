package lifecycle_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"byokd/daemon/lifecycle"
)

// try enqueues a rotation and drives it until it ends or waits for a person.
func (w *world) try(def lifecycle.Definition) (id string, err error) {
	w.t.Helper()
	w.advance(time.Hour)
	id = w.journal.enqueue(lifecycle.Rotate, def, lifecycle.Request{}, "schedule")
	return id, w.drive(id, 0)
}

// wantOperator fails the test unless err is an Operator fault that waits for that
// and whose message has all the words.
func wantOperator(t *testing.T, err error, waitingFor string, words ...string) {
	t.Helper()
	if lifecycle.ClassOf(err) != lifecycle.Operator || lifecycle.WaitingFor(err) != waitingFor {
		t.Fatalf("error %v of class %q waiting for %q; want one of a person's, waiting for %q", err, lifecycle.ClassOf(err), lifecycle.WaitingFor(err), waitingFor)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q does not say %q", err, word)
		}
	}
}

func wantPermanent(t *testing.T, err error, words ...string) {
	t.Helper()
	if lifecycle.ClassOf(err) != lifecycle.Permanent {
		t.Fatalf("error %v of class %q; want a permanent one", err, lifecycle.ClassOf(err))
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q does not say %q", err, word)
		}
	}
}

func TestRotateEvent(t *testing.T) {
	w := newWorld(t)
	w.rotate(definition())
	w.rotate(definition())
	one, two := w.keyOf(1), w.keyOf(2)
	e := w.journal.events[1]
	if e.DetailType != lifecycle.AliasMoved || e.Region != "eu-central-1" || e.Account != "111122223333" || e.Credential != "prod" || e.JobID == "" {
		t.Errorf("event %+v", e.Event)
	}
	diff(t, "resources", []string{two.ARN, one.ARN, "arn:aws:kms:eu-central-1:111122223333:alias/payments"}, e.Resources)
	detail := maps.Clone(e.detail)
	for _, name := range []string{"event_id", "occurred_at", "job_id"} {
		if s, _ := detail[name].(string); s == "" {
			t.Errorf("%s is %v", name, detail[name])
		}
		delete(detail, name)
	}
	diff(t, "detail", map[string]any{
		"schema": 1.0, "group": "payments", "host": "hsm1", "region": "eu-central-1", "account": "111122223333",
		"alias": "alias/payments", "previous_key_id": one.ID, "previous_key_arn": one.ARN, "new_key_id": two.ID, "new_key_arn": two.ARN,
		"generation": 2.0, "trigger": "schedule", "previous_key_disabled": false, "previous_key_disable_at": nil,
	}, detail)
	diff(t, "tags", map[string]string{
		"team": "payments", "byokd:group": "payments", "byokd:generation": "2", "byokd:job": w.generation(2).JobID, "byokd:hsm-id": w.generation(2).HSMID,
	}, two.tags)
	w.check()
}

func TestEventsOff(t *testing.T) {
	w := newWorld(t)
	w.silent = true
	id, err := w.try(definition())
	if err != nil {
		t.Fatal(err)
	}
	if got := w.step(id, "announce"); got.State != lifecycle.Skipped || len(w.journal.events) != 0 {
		t.Errorf("announce is %s, %d events", got.State, len(w.journal.events))
	}
}

// A CreateKey whose answer was lost is looked for by its tags for two minutes.
func TestLateTags(t *testing.T) {
	for _, tt := range []struct {
		name        string
		late        time.Duration
		keys, twins int
	}{
		{"at once", 0, 1, 0},
		{"after 90 seconds", 90 * time.Second, 1, 0},
		{"after 3 minutes", 3 * time.Minute, 2, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.kms.lateTags = tt.late
			w.loseAnswer("kms.CreateKey")
			if _, err := w.try(definition()); err != nil {
				t.Fatal(err)
			}
			if got := len(w.kms.keys); got != tt.keys {
				t.Errorf("%d KMS keys, want %d", got, tt.keys)
			}
			w.advance(5 * time.Minute)
			for range 2 { // the second time it is not found anew
				w.calls = nil
				w.reconcileUntilDone(definition())
				w.drain()
			}
			gone := 0
			for _, k := range w.kms.keys {
				if k.State == "PendingDeletion" {
					gone++
				}
			}
			if gone != tt.twins {
				t.Errorf("%d KMS keys are scheduled for deletion, want %d", gone, tt.twins)
			}
			if got := len(w.journal.jobs); got != 1+tt.twins {
				t.Errorf("%d jobs", got)
			}
			w.check()
		})
	}
}

// The look is counted by the clock, which may be set meanwhile: back, and it is
// neither cut short nor goes on until the clock has caught up.
func TestLateTagsAndClockSetBack(t *testing.T) {
	for _, made := range []bool{true, false} {
		w := newWorld(t)
		w.kms.lateTags = 90 * time.Second
		w.hook = func(call string, _ int) (bool, error) {
			if call == "kms.CreateKey" {
				w.hook = nil
				return made, fault(lifecycle.Unknown, errInjected)
			}
			return true, nil
		}
		id := w.journal.enqueue(lifecycle.Rotate, definition(), lifecycle.Request{}, "schedule")
		if err, _ := w.attempt(id); lifecycle.ClassOf(err) != lifecycle.Unknown {
			t.Fatal(err)
		}
		w.journal.park(id, "retryable")
		w.advance(-time.Hour)
		for _, k := range w.kms.keys {
			k.CreatedAt = w.now // AWS's clock was right
		}
		start := w.now
		if err := w.drive(id, 0); err != nil {
			t.Fatal(err)
		}
		if took := w.now.Sub(start); len(w.kms.keys) != 1 || took < 90*time.Second || took > 10*time.Minute {
			t.Errorf("made %t: %d KMS keys after %s", made, len(w.kms.keys), took)
		}
	}
}

// A CreateKey that was refused, or never sent, is not looked for.
func TestCreateKeyRefused(t *testing.T) {
	w := newWorld(t)
	left := 3
	w.hook = func(call string, _ int) (bool, error) {
		if call == "kms.CreateKey" && left > 0 {
			left--
			return false, fault(lifecycle.Transient, errInjected)
		}
		return true, nil
	}
	w.advance(time.Hour)
	start := w.now
	if err := w.drive(w.journal.enqueue(lifecycle.Rotate, definition(), lifecycle.Request{}, "schedule"), 0); err != nil {
		t.Fatal(err)
	}
	if took := w.now.Sub(start); took > time.Minute {
		t.Errorf("took %s", took)
	}
}

// The look goes on in the next rotation when the one that sent CreateKey is over,
// and under the tags that were sent.
func TestLateTagsOfAnEarlierJob(t *testing.T) {
	for late, keys := range map[time.Duration]int{90 * time.Second: 1, 3 * time.Minute: 2} {
		w := newWorld(t)
		w.kms.lateTags = late
		w.loseAnswer("kms.CreateKey")
		first := w.journal.enqueue(lifecycle.Rotate, definition(), lifecycle.Request{}, "schedule")
		if err, _ := w.attempt(first); lifecycle.ClassOf(err) != lifecycle.Unknown {
			t.Fatal(err)
		}
		w.journal.finish(first, "discarded")
		second := w.journal.enqueue(lifecycle.Rotate, definition(), lifecycle.Request{}, "schedule")
		if err := w.drive(second, 0); err != nil {
			t.Fatal(err)
		}
		if got := len(w.kms.keys); got != keys {
			t.Errorf("tags after %s: %d KMS keys", late, got)
		}
		if g := w.generation(1); g.JobID != first || g.Stage != lifecycle.Active {
			t.Errorf("tags after %s: generation 1: %+v", late, g)
		}
		w.advance(time.Hour)
		w.reconcileUntilDone(definition())
		w.drain()
		w.check()
	}
}

// What has happened is recorded although byokd is told to stop meanwhile.
func TestStoppedMeanwhile(t *testing.T) {
	w := newWorld(t)
	w.hook = func(call string, _ int) (bool, error) {
		if call == "kms.CreateKey" {
			w.cancel()
		}
		return true, nil
	}
	id := w.journal.enqueue(lifecycle.Rotate, definition(), lifecycle.Request{}, "schedule")
	if err, _ := w.attempt(id); lifecycle.ClassOf(err) != lifecycle.Interrupted {
		t.Fatalf("error %v", err)
	}
	if got := w.step(id, "create").State; got != lifecycle.Done || w.generation(1).KeyID == "" {
		t.Errorf("step create is %s, the key %q", got, w.generation(1).KeyID)
	}
}

// A key is adopted only if job and HSM ID both match.
func TestAdoptNeedsBothTags(t *testing.T) {
	w := newWorld(t)
	id := w.journal.enqueue(lifecycle.Rotate, definition(), lifecycle.Request{}, "schedule")
	w.hook = func(call string, _ int) (bool, error) {
		if call == "kms.CreateKey" {
			return false, fault(lifecycle.Unknown, errInjected)
		}
		return true, nil
	}
	if err, _ := w.attempt(id); err == nil {
		t.Fatal("no error")
	}
	w.hook = nil
	w.journal.park(id, "retryable")
	for _, tags := range []map[string]string{
		{lifecycle.TagGroup: "other", lifecycle.TagJob: id, lifecycle.TagHSMID: "00"},
		{lifecycle.TagGroup: "other", lifecycle.TagJob: "job-99", lifecycle.TagHSMID: w.generation(1).HSMID},
	} {
		w.kms.add("decoy", "", tags)
	}
	if err := w.drive(id, 0); err != nil {
		t.Fatal(err)
	}
	if got := w.keyOf(1).Description; got != "card payments" {
		t.Errorf("adopted %q", got)
	}
}

// Of several keys with the generation's tags the oldest is taken, and the others
// become retire jobs.
func TestAdoptOldest(t *testing.T) {
	w := newWorld(t)
	id := w.journal.enqueue(lifecycle.Rotate, definition(), lifecycle.Request{}, "schedule")
	w.loseAnswer("kms.CreateKey")
	if err, _ := w.attempt(id); err == nil {
		t.Fatal("no error")
	}
	w.journal.park(id, "retryable")
	var first *fakeKey
	for _, k := range w.kms.keys {
		first = k
	}
	w.advance(10 * time.Second)
	w.kms.add("double", "", first.tags)
	w.drain()
	if got := w.keyOf(1); got != first {
		t.Errorf("adopted %s", got.Description)
	}
	w.check()
	if got := w.journal.events[len(w.journal.events)-1].DetailType; got != lifecycle.DeletionSet {
		t.Errorf("last event is %s", got)
	}
}

// What an unanswered CreateKey of an earlier job made is brought to this job's
// definition, whichever of several it is.
func TestAdoptFromAnEarlierJob(t *testing.T) {
	w := newWorld(t)
	first := w.journal.enqueue(lifecycle.Rotate, definition(), lifecycle.Request{}, "schedule")
	w.loseAnswer("kms.CreateKey")
	if err, _ := w.attempt(first); err == nil {
		t.Fatal("no error")
	}
	w.journal.finish(first, "discarded")
	older := w.kms.add("older", "", map[string]string{lifecycle.TagGroup: "payments", lifecycle.TagGeneration: "1", lifecycle.TagJob: first, lifecycle.TagHSMID: w.generation(1).HSMID})
	older.CreatedAt = w.now.Add(-time.Minute)
	def := definition()
	def.Description, def.Policy, def.Tags = ptr("new"), ptr(`{"new": true}`), map[string]string{"x": "y"}
	w.rotate(def)
	w.drain()
	if k := w.keyOf(1); k != older || k.Description != "new" || k.policy != `{"new": true}` || k.tags["x"] != "y" {
		t.Errorf("the key is %+v", w.keyOf(1))
	}
	w.check()
}

// A generation is given up before CreateKey was answered: the key that it made
// goes with it.
func TestGivenUpUnanswered(t *testing.T) {
	for name, spoil := range map[string]func(w *world){
		"object lost": func(w *world) { w.hsm.lose(w.generation(1).HSMID) },
		"key pending deletion": func(w *world) {
			for _, k := range w.kms.keys {
				k.State, k.DeletionDate = "PendingDeletion", w.now.Add(20*days)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			first := w.journal.enqueue(lifecycle.Rotate, definition(), lifecycle.Request{}, "schedule")
			w.loseAnswer("kms.CreateKey")
			if err, _ := w.attempt(first); err == nil {
				t.Fatal("no error")
			}
			w.journal.finish(first, "discarded")
			spoil(w)
			w.rotate(definition())
			if one, two := w.generation(1), w.generation(2); one.Stage != lifecycle.Destroyed || two.Stage != lifecycle.Active {
				t.Errorf("generation 1 is %s, 2 is %s", one.Stage, two.Stage)
			}
			diff(t, "events", []string{
				"KMS Key Deletion Scheduled generation=1 previous=null actions=<nil> disabled=<nil>",
				"KMS Alias Moved generation=2 previous=null actions=<nil> disabled=false",
			}, w.picture().Events)
			w.check()
		})
	}
}

// Without a driven clock the engine waits by its own timers, and no longer than
// its context lasts.
func TestTimers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.kms.lateAliases = 3 * time.Second
		w.hook = func(string, int) (bool, error) {
			w.now = time.Now()
			return true, nil
		}
		w.engine.Now, w.engine.Sleep = nil, nil
		start := time.Now()
		job := w.journal.claim(w.journal.enqueue(lifecycle.Rotate, definition(), lifecycle.Request{}, "schedule"))
		if err := w.engine.Run(t.Context(), &job); err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(start); waited < 3*time.Second || waited > 10*time.Second {
			t.Errorf("waited %s", waited)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		job = w.journal.claim(w.journal.enqueue(lifecycle.Rotate, definition(), lifecycle.Request{}, "schedule"))
		w.kms.lateAliases = time.Hour
		if err := w.engine.Run(ctx, &job); !errors.Is(err, context.DeadlineExceeded) && lifecycle.ClassOf(err) != lifecycle.Interrupted {
			t.Errorf("error %v", err)
		}
	})
}

// A double that has been put to use meanwhile is left alone.
func TestDoubleInUse(t *testing.T) {
	for _, tt := range []struct {
		name string
		use  func(w *world, k *fakeKey)
	}{
		{"it has material", func(w *world, k *fakeKey) { k.State, k.MaterialID, k.material = "Enabled", "x", []byte("x") }},
		{"an alias points at it", func(w *world, k *fakeKey) { w.kms.point("alias/other", k.ID) }},
		{"its tags have changed", func(w *world, k *fakeKey) { k.tags[lifecycle.TagJob] = "nobody" }},
		{"it is gone", func(w *world, k *fakeKey) { delete(w.kms.keys, k.ID) }},
	} {
		for _, when := range []string{"check", "retire"} {
			t.Run(tt.name+" at "+when, func(t *testing.T) {
				w := newWorld(t)
				w.rotate(definition())
				double := w.kms.add("double", "", w.keyOf(1).tags)
				w.reconcileUntilDone(definition())
				if when == "retire" { // the check is done before, and retire denied once
					w.kms.denied["ScheduleDeletion"] = true
					wantOperator(t, w.drive(w.journal.nextDue(), 0), lifecycle.WaitPermission)
					w.kms.denied["ScheduleDeletion"] = false
				}
				tt.use(w, double)
				w.drain()
				if double.State == "PendingDeletion" {
					t.Errorf("scheduled for deletion")
				}
			})
		}
	}
}

func TestNumberIsNotUsedAgain(t *testing.T) {
	w := newWorld(t)
	w.kms.denied["CreateKey"] = true
	for range 2 {
		id, err := w.try(definition())
		wantOperator(t, err, lifecycle.WaitPermission)
		w.journal.finish(id, "discarded")
	}
	if got := len(w.journal.generations["payments"]); got != 1 {
		t.Fatalf("%d generations; the second rotation did not go on with the first one's", got)
	}
	w.hsm.lose(w.generation(1).HSMID)
	w.kms.denied["CreateKey"] = false
	w.rotate(definition())
	if one, two := w.generation(1), w.generation(2); one.Stage != lifecycle.Destroyed || two.Stage != lifecycle.Active || one.HSMID == two.HSMID {
		t.Errorf("generations %+v and %+v", one, two)
	}
	w.check()
}

// The pre-active generation's key is gone for good, at each step that meets it.
func TestGivenUp(t *testing.T) {
	for _, operation := range []string{"ParametersForImport", "Encrypt", "UpdateAlias"} {
		for name, spoil := range map[string]func(w *world){
			"key pending deletion": func(w *world) {
				k := w.keyOf(2)
				k.State, k.DeletionDate = "PendingDeletion", w.now.Add(20*24*time.Hour)
			},
			"key deleted": func(w *world) { delete(w.kms.keys, w.generation(2).KeyID) },
		} {
			t.Run(operation+", "+name, func(t *testing.T) {
				w := newWorld(t)
				def := definition()
				def.Verify = "crypto"
				w.rotate(def)
				w.kms.denied[operation] = true
				id, err := w.try(def)
				wantOperator(t, err, lifecycle.WaitPermission)
				w.kms.denied[operation] = false
				spoil(w)
				if err := w.drive(id, 0); err != nil {
					t.Fatal(err)
				}
				if two, three := w.generation(2), w.generation(3); two.Stage != lifecycle.Destroyed || three.Stage != lifecycle.Active {
					t.Errorf("generation 2 is %s, 3 is %s", two.Stage, three.Stage)
				}
				if got := w.kms.aliases["alias/payments"].target; got != w.keyOf(3).ID {
					t.Errorf("the alias points at %s", got)
				}
				w.check()
			})
		}
	}
}

// An HSM object that vanishes between generate and import ends the generation.
func TestObjectVanishes(t *testing.T) {
	w := newWorld(t)
	w.hook = func(call string, _ int) (bool, error) {
		if call == "hsm.Wrap" && len(w.journal.generations["payments"]) == 1 {
			w.hsm.lose(w.generation(1).HSMID)
		}
		return true, nil
	}
	w.rotate(definition())
	w.check()
	if got := w.generation(1).Stage; got != lifecycle.Destroyed {
		t.Errorf("generation 1 is %s", got)
	}
}

// A token that says it generated a key and has none is not gone on with.
func TestTokenLosesKeys(t *testing.T) {
	w := newWorld(t)
	lose := true
	w.hook = func(call string, _ int) (bool, error) { return call != "hsm.Generate" || !lose, nil }
	id := w.journal.enqueue(lifecycle.Rotate, definition(), lifecycle.Request{}, "initial")
	if err, _ := w.attempt(id); err == nil || lifecycle.ClassOf(err) == lifecycle.Permanent {
		t.Fatalf("error %v", err)
	}
	if len(w.kms.keys) != 0 {
		t.Error("a KMS key was made")
	}
	lose = false
	w.journal.park(id, "retryable")
	if err := w.drive(id, 0); err != nil {
		t.Fatal(err)
	}
	w.check()
}

// A generation is not given up while the group's alias points at its key.
func TestNotGivenUpUnderTheAlias(t *testing.T) {
	w := newWorld(t)
	w.rotate(definition())
	w.kms.denied["UpdateAlias"] = true
	id, err := w.try(definition())
	wantOperator(t, err, lifecycle.WaitPermission)
	w.journal.finish(id, "discarded")
	w.kms.point("alias/payments", w.keyOf(2).ID)
	w.hsm.lose(w.generation(2).HSMID)
	_, err = w.try(definition())
	wantOperator(t, err, lifecycle.WaitAlias, "alias/payments", w.keyOf(2).ID)
	if got := w.keyOf(2).State; got != "Enabled" {
		t.Errorf("the alias's key is %s", got)
	}
}

// Once the alias may have pointed at a generation nothing of it is destroyed.
func TestNotGivenUpAfterActivate(t *testing.T) {
	for name, spoil := range map[string]func(w *world){
		"key pending deletion": func(w *world) {
			k := w.keyOf(2)
			k.State, k.DeletionDate = "PendingDeletion", w.now.Add(20*days)
		},
		"object lost": func(w *world) {
			w.hsm.lose(w.generation(2).HSMID)
			w.keyOf(2).forget()
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.rotate(definition())
			w.advance(time.Hour)
			w.loseAnswer("kms.UpdateAlias")
			id := w.journal.enqueue(lifecycle.Rotate, definition(), lifecycle.Request{}, "schedule")
			if err, _ := w.attempt(id); lifecycle.ClassOf(err) != lifecycle.Unknown {
				t.Fatal(err)
			}
			w.journal.park(id, "retryable")
			w.kms.point("alias/payments", w.keyOf(1).ID) // by a person
			w.kms.denied["UpdateAlias"] = true           // which says nothing of the first one
			wantOperator(t, w.drive(id, 0), lifecycle.WaitPermission)
			w.kms.denied["UpdateAlias"] = false
			spoil(w)
			deletion := w.keyOf(2).DeletionDate
			if err := w.drive(id, 0); err != nil {
				t.Fatal(err)
			}
			if g := w.generation(2); g.Stage != lifecycle.Previous || !g.DeletionDate.Equal(deletion) || !w.keyOf(2).DeletionDate.Equal(deletion) {
				t.Errorf("generation 2: %+v", g)
			}
			if got := w.generation(3).Stage; got != lifecycle.Active {
				t.Errorf("generation 3 is %s", got)
			}
			w.check()
		})
	}
}

// Material that somebody else imported into the new key is not taken for the HSM's.
func TestForeignMaterial(t *testing.T) {
	w := newWorld(t)
	w.kms.denied["ParametersForImport"] = true
	id, err := w.try(definition())
	wantOperator(t, err, lifecycle.WaitPermission)
	w.kms.denied["ParametersForImport"] = false
	k := w.keyOf(1)
	k.State, k.material, k.MaterialID = "Enabled", []byte("known to somebody"), "0123"
	wantOperator(t, w.drive(id, 0), lifecycle.WaitConfig, k.ID)
	if len(w.kms.aliases) != 0 {
		t.Fatal("the alias points at it")
	}
	k.State, k.DeletionDate = "PendingDeletion", w.now.Add(7*24*time.Hour)
	if err := w.drive(id, 0); err != nil {
		t.Fatal(err)
	}
	w.check()
}

// The key loses its material while the job waits before activate.
func TestMaterialGoneBeforeActivate(t *testing.T) {
	for _, operation := range []string{"Encrypt", "CreateAlias"} {
		t.Run(operation, func(t *testing.T) {
			w := newWorld(t)
			def := definition()
			def.Verify, def.KeepValidFor = "crypto", 30*24*time.Hour
			w.kms.denied[operation] = true
			id, err := w.try(def)
			wantOperator(t, err, lifecycle.WaitPermission)
			w.kms.denied[operation] = false
			w.advance(40 * 24 * time.Hour)
			if err := w.drive(id, 0); err != nil {
				t.Fatal(err)
			}
			if left := w.keyOf(1).ValidTo.Sub(w.kms.Now()); w.keyOf(1).State != "Enabled" || left < 29*24*time.Hour {
				t.Errorf("the key is %s, its material valid for %s", w.keyOf(1).State, left)
			}
			w.check()
		})
	}
}

func TestDisabledBeforeActivate(t *testing.T) {
	w := newWorld(t)
	def := definition()
	w.kms.denied["CreateAlias"] = true
	id, err := w.try(def)
	wantOperator(t, err, lifecycle.WaitPermission)
	w.kms.denied["CreateAlias"] = false
	w.keyOf(1).State = "Disabled"
	wantOperator(t, w.drive(id, 0), lifecycle.WaitConfig, w.keyOf(1).ID)
	w.keyOf(1).State = "Enabled"
	if err := w.drive(id, 0); err != nil {
		t.Fatal(err)
	}
}

func TestImportToken(t *testing.T) {
	for _, tt := range []struct {
		name    string
		refused int
	}{{"expired once", 1}, {"expired twice", 2}} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			left := tt.refused
			w.hook = func(call string, _ int) (bool, error) {
				if call == "kms.ImportKeyMaterial" && left > 0 {
					left--
					w.advance(25 * time.Hour) // the request came a day late
				}
				return true, nil
			}
			w.rotate(definition())
			tokens := 0
			for _, c := range w.calls {
				if c == "kms.ParametersForImport" {
					tokens++
				}
			}
			if tokens != tt.refused+1 {
				t.Errorf("%d tokens were fetched", tokens)
			}
			w.check()
		})
	}
}

func TestVerify(t *testing.T) {
	for _, tt := range []struct {
		verify string
		denied bool
		want   string // beginning of the step's message; "": waits for a permission
	}{
		{"crypto", false, "crypto:"},
		{"crypto", true, ""},
		{"auto", false, "crypto:"},
		{"auto", true, "describe:"},
		{"describe", true, "describe:"},
	} {
		for _, operation := range []string{"Encrypt", "Decrypt"} {
			w := newWorld(t)
			w.kms.denied[operation] = tt.denied
			def := definition()
			def.Verify = tt.verify
			id, err := w.try(def)
			if tt.want == "" {
				wantOperator(t, err, lifecycle.WaitPermission)
				if len(w.kms.aliases) != 0 {
					t.Error("the alias points at a key that was not verified")
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := w.step(id, "verify").Message; !strings.HasPrefix(got, tt.want) {
				t.Errorf("verify = %q, %s denied %t: %q", tt.verify, operation, tt.denied, got)
			}
		}
	}
}

// A key that decrypts to something else never gets the alias.
// What is denied of a key that was just created is tried again sooner: KMS sees
// the tags that a permission goes by late.
func TestDeniedOfANewKey(t *testing.T) {
	w := newWorld(t)
	w.kms.denied["ParametersForImport"] = true
	def := definition()
	id, err := w.try(def)
	wantOperator(t, err, lifecycle.WaitPermission)
	if after := lifecycle.RetryAfter(err); after != time.Minute {
		t.Errorf("tried again after %v", after)
	}
	w.now = w.now.Add(10 * time.Minute)
	err, _ = w.attempt(id)
	wantOperator(t, err, lifecycle.WaitPermission)
	if after := lifecycle.RetryAfter(err); after != 0 {
		t.Errorf("tried again after %v, although the key is not new", after)
	}
}

func TestVerifyFindsAWrongKey(t *testing.T) {
	w := newWorld(t)
	def := definition()
	w.hook = func(call string, _ int) (bool, error) { return call != "kms.Decrypt", nil } // answers with nothing
	_, err := w.try(def)
	wantPermanent(t, err, "decrypts to something else")
	if len(w.kms.aliases) != 0 {
		t.Error("the alias points at it")
	}
}

func TestValidTo(t *testing.T) {
	for _, tt := range []struct {
		keep, want time.Duration // want from AWS's clock
	}{
		{0, 0},
		{90 * 24 * time.Hour, 90 * 24 * time.Hour},
		{365 * 24 * time.Hour, 365*24*time.Hour - 10*time.Minute},
	} {
		for _, skew := range []time.Duration{37 * time.Second, -8 * time.Hour, 400 * 24 * time.Hour} {
			w := newWorld(t)
			w.skew = skew
			w.now = w.now.Add(123456789 * time.Nanosecond)
			def := definition()
			def.KeepValidFor = tt.keep
			var sent time.Time
			w.hook = func(call string, _ int) (bool, error) {
				if call == "kms.ImportKeyMaterial" {
					sent = w.kms.Now()
				}
				return true, nil
			}
			w.rotate(def)
			want := time.Time{}
			if tt.keep > 0 {
				want = sent.Add(tt.want).Truncate(time.Second)
			}
			if got := w.keyOf(1).ValidTo; !got.Equal(want) || !w.generation(1).ValidTo.Equal(want) {
				t.Errorf("keep_valid_for = %s, skew %s: %v, recorded %v; want %v", tt.keep, skew, got, w.generation(1).ValidTo, want)
			}
		}
	}
}

// What an earlier rotation left is imported again when its validity has aged.
func TestGoingOnCountsValidityAnew(t *testing.T) {
	w := newWorld(t)
	def := definition()
	def.KeepValidFor, def.Verify = 30*24*time.Hour, "crypto"
	w.kms.denied["Encrypt"] = true
	id, err := w.try(def)
	wantOperator(t, err, lifecycle.WaitPermission)
	w.journal.finish(id, "discarded")
	w.kms.denied["Encrypt"] = false
	w.advance(20 * 24 * time.Hour)
	w.rotate(def)
	if left := w.keyOf(1).ValidTo.Sub(w.kms.Now()); left < 29*24*time.Hour {
		t.Errorf("valid for %s", left)
	}
	if got := len(w.kms.keys); got != 1 {
		t.Errorf("%d KMS keys", got)
	}
}

// An import whose answer was lost is found, not repeated.
func TestImportAnswerLost(t *testing.T) {
	for _, keep := range []time.Duration{0, 90 * 24 * time.Hour} {
		w := newWorld(t)
		def := definition()
		def.KeepValidFor = keep
		w.loseAnswer("kms.ImportKeyMaterial")
		w.rotate(def)
		n := 0
		for _, c := range w.calls {
			if c == "kms.ImportKeyMaterial" {
				n++
			}
		}
		if n != 1 {
			t.Errorf("keep_valid_for = %s: %d imports", keep, n)
		}
		if g := w.generation(1); !g.ValidTo.Equal(w.keyOf(1).ValidTo) || g.ImportedAt.IsZero() {
			t.Errorf("keep_valid_for = %s: recorded %+v", keep, g)
		}
		// The record is such that nothing has changed.
		w.calls = nil
		w.synchronize(def, lifecycle.Request{})
		if slices.Contains(w.calls, "kms.ImportKeyMaterial") {
			t.Errorf("keep_valid_for = %s: imported again by a synchronization", keep)
		}
	}
}

func TestClassOf(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want lifecycle.Class
		wait string
	}{
		{nil, "", ""},
		{errInjected, lifecycle.Unknown, ""},
		{fmt.Errorf("call: %w", context.Canceled), lifecycle.Interrupted, ""},
		{context.DeadlineExceeded, lifecycle.Unknown, ""},
		{errors.Join(errInjected, fault(lifecycle.Operator, errInjected)), lifecycle.Operator, lifecycle.WaitPermission},
		{&lifecycle.Fault{Class: lifecycle.Interrupted, Err: fault(lifecycle.Operator, errInjected)}, lifecycle.Interrupted, ""},
	} {
		if got := lifecycle.ClassOf(tt.err); got != tt.want {
			t.Errorf("ClassOf(%v) = %q, want %q", tt.err, got, tt.want)
		}
		if got := lifecycle.WaitingFor(tt.err); got != tt.wait {
			t.Errorf("WaitingFor(%v) = %q, want %q", tt.err, got, tt.wait)
		}
	}
}

func TestState(t *testing.T) {
	now := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	g := lifecycle.Generation{Stage: lifecycle.Active}
	for _, tt := range []struct {
		want string
		set  func()
	}{
		{"active", func() {}},
		{"active", func() { g.ValidTo = now.Add(time.Second) }},
		{"disabled", func() { g.DisabledAt = now }},
		{"material-deleted", func() { g.MaterialDeletedAt = now }},
		{"expired", func() { g.ValidTo = now }},
		{"pending-deletion", func() { g.DeletionDate = now.Add(time.Second) }},
		{"destroyed", func() { g.DeletionDate = now }},
		{"destroyed", func() { g.DeletionDate, g.Stage = now.Add(time.Second), lifecycle.Destroyed }},
		{"destroyed", func() { g.Stage = lifecycle.Destroyed }},
	} {
		tt.set()
		if got := g.State(now); got != tt.want {
			t.Errorf("state of %+v is %q, want %q", g, got, tt.want)
		}
	}
}

func TestNewID(t *testing.T) {
	now := time.UnixMilli(0x0123456789ab)
	id := lifecycle.NewID(now)
	if len(id) != 36 || !strings.HasPrefix(id, "01234567-89ab-7") || !strings.ContainsRune("89ab", rune(id[19])) || id == lifecycle.NewID(now) {
		t.Errorf("%q is no UUIDv7 of that time", id)
	}
}

func TestUnknownKind(t *testing.T) {
	w := newWorld(t)
	id := w.journal.enqueue("explode", definition(), lifecycle.Request{}, "control")
	wantPermanent(t, w.drive(id, 0), "explode")
}

// A worker that has lost its job cannot write.
func TestJobLost(t *testing.T) {
	w := newWorld(t)
	job := w.journal.claim(w.journal.enqueue(lifecycle.Rotate, definition(), lifecycle.Request{}, "schedule"))
	w.hook = func(call string, _ int) (bool, error) {
		if call == "journal.Record" {
			return false, errors.New("not running") // as apply says, which fails the test
		}
		return true, nil
	}
	if err := w.engine.Run(t.Context(), &job); lifecycle.ClassOf(err) != lifecycle.Unknown {
		t.Errorf("error %v", err)
	}
	if len(w.hsm.objects)+len(w.kms.keys) != 0 {
		t.Error("something was made")
	}
}
