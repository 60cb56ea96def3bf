package daemon_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"byokd/daemon/control"
)

const day = 24 * time.Hour

// pass lets time pass on both sides.
func (w *world) pass(d time.Duration) {
	w.sim.Advance(d)
	w.at(w.clock().Add(d))
}

// job waits until a job of that kind and trigger of a group has come to its end,
// and returns it.
func (w *world) job(group, kind, trigger string) control.Job {
	w.t.Helper()
	var id string
	w.until(fmt.Sprintf("a %s job of %s with trigger %s is done", kind, group, trigger), func() bool {
		for _, j := range w.jobs(group) {
			if j.Kind == kind && j.Trigger == trigger && j.Final() {
				id = j.ID
				return true
			}
		}
		return false
	})
	return w.finished(id)
}

// told are the details of the events of a type, each once: one whose answer was
// lost when byokd stopped is sent again.
func (w *world) told(detailType string) (details []map[string]any) {
	w.t.Helper()
	seen := make(map[any]bool)
	for _, d := range w.eventDetails(detailType) {
		if id := d["event_id"]; !seen[id] {
			seen[id] = true
			details = append(details, d)
		}
	}
	return details
}

func (w *world) key(group string, generation int) control.Key {
	w.t.Helper()
	keys, err := w.client.Keys(w.t.Context(), group)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, k := range keys {
		if k.Generation == generation {
			return k
		}
	}
	w.t.Fatalf("%s has no generation %d", group, generation)
	return control.Key{}
}

// expiring is a world with a group of two generations under keep_valid_for.
func expiring(t *testing.T, rotation string) *world {
	w := newWorld(t)
	w.group("cards", rotation, "")
	w.at(time.Now())
	w.start()
	w.untilGeneration("cards", 1)
	w.rotated("cards")
	w.until("the next look", func() bool { return w.generation("cards") == 2 })
	return w
}

func TestExpiryRotate(t *testing.T) {
	w := expiring(t, `enabled = false
keep_valid_for = "100d"`) // on_expiry = "rotate"
	before := w.key("cards", 2)
	w.pass(80 * day) // a quarter of 100 d, 14 d at most, lie between rotation and end
	if st := w.status("cards"); st.State != "ok" || !strings.Contains(w.problem("cards", "expiring"), "byokd rotates at "+st.NextRotation.String()) {
		t.Errorf("20 days ahead: %+v", st)
	}
	w.pass(8 * day)
	w.untilGeneration("cards", 3)
	job := w.job("cards", "rotate", "expiry")
	if job.State != "completed" {
		t.Errorf("the rotation: %+v", job)
	}
	if got := w.key("cards", 3).ValidTo; got.Sub(before.ValidTo.Time) < 80*day {
		t.Errorf("the new key is valid to %s, the one before to %s", got, before.ValidTo)
	}
	n := len(w.jobs("cards"))
	w.pass(time.Hour)
	w.pass(40 * day) // the previous ones end, as the definition has it
	w.until("the state is read", func() bool { return w.key("cards", 2).State == "expired" })
	if st := w.status("cards"); st.State != "ok" {
		t.Errorf("status: %+v", st)
	}
	if got := len(w.jobs("cards")); got != n {
		t.Errorf("%d jobs, before %d", got, n)
	}
}

func TestExpiryReimport(t *testing.T) {
	w := expiring(t, `every = "400d"
keep_valid_for = "100d"
on_expiry = "reimport"`)
	before := []control.Key{w.key("cards", 1), w.key("cards", 2)}
	alias := w.alias("cards")
	w.pass(88 * day)
	w.job("cards", "synchronize", "expiry")
	w.until("all jobs have ended", func() bool { return len(w.openJobs("cards")) == 0 })
	for _, old := range before {
		k := w.key("cards", old.Generation)
		if k.ValidTo.Sub(old.ValidTo.Time) < 80*day || k.KeyMaterialID != old.KeyMaterialID || k.KeyID != old.KeyID {
			t.Errorf("generation %d: before %+v, then %+v", old.Generation, old, k)
		}
	}
	if w.alias("cards") != alias || w.generation("cards") != 2 {
		t.Errorf("the alias has moved")
	}
	// Not what was deleted on request.
	job, err := w.client.Sync(t.Context(), control.SyncRequest{Group: "cards", Generation: new(1), DeleteMaterial: true})
	if err != nil {
		t.Fatal(err)
	}
	w.finished(job.ID)
	imports := w.requests("ImportKeyMaterial")
	w.pass(89 * day)
	w.until("the active one is imported again", func() bool { return w.key("cards", 2).ValidTo.Sub(w.clock()) > 90*day })
	if got := w.requests("ImportKeyMaterial"); got != imports+1 || w.key("cards", 1).State != "material-deleted" {
		t.Errorf("%d imports more, generation 1 is %s", got-imports, w.key("cards", 1).State)
	}
}

func TestLetExpire(t *testing.T) {
	w := expiring(t, `enabled = false
keep_valid_for = "100d"
on_expiry = "let-expire"`)
	jobs := len(w.jobs("cards"))
	told := func() []map[string]any { return w.told("BYOK Key Expiring") }
	for _, step := range []struct {
		pass time.Duration
		want int // events in all
	}{{69 * day, 0}, {2 * day, 2}, {day, 2}, {20 * day, 2}, {2 * day, 4}, {day, 4}, {4*day + 12*time.Hour, 6}} {
		w.pass(step.pass)
		w.until(fmt.Sprintf("%d warnings", step.want), func() bool { return len(told()) == step.want })
		w.restart()
	}
	if p := w.problem("cards", "expiring"); !strings.Contains(p, `on_expiry = "let-expire"`) {
		t.Errorf("problem: %q", p)
	}
	d := told()[0]
	if k := w.key("cards", 1); d["valid_to"] != k.ValidTo.String() || d["key_id"] != string(k.KeyID) {
		t.Errorf("event: %v", d)
	}
	w.pass(2 * day)
	w.until("the group is expired", func() bool { return w.status("cards").State == control.GroupExpired })
	if p := w.problem("cards", "expired"); !strings.Contains(p, "byokctl sync cards --generation 2") {
		t.Errorf("problem: %q", p)
	}
	w.restart()
	if got := len(told()); got != 6 {
		t.Errorf("%d warnings", got)
	}
	if got := len(w.jobs("cards")); got != jobs {
		t.Errorf("%d jobs, before %d", got, jobs)
	}

	// A person brings it back: the same material, valid anew.
	before := w.key("cards", 2)
	job, err := w.client.Sync(t.Context(), control.SyncRequest{Group: "cards", ImportMaterial: true, UpdatePolicy: true})
	if err != nil {
		t.Fatal(err)
	}
	if job := w.finished(job.ID); job.State != "completed" {
		t.Fatalf("%+v", job)
	}
	if k := w.key("cards", 2); k.KeyMaterialID != before.KeyMaterialID || k.State != "active" || w.status("cards").State != "ok" {
		t.Errorf("before %+v, then %+v", before, k)
	}
}

// All materials of a KMS key that was rotated in place outlive the first of them.
func TestExpiryInPlace(t *testing.T) {
	for _, on := range []string{"rotate", "reimport"} {
		t.Run(on, func(t *testing.T) {
			w := expiring(t, fmt.Sprintf("enabled = false\nkeep_valid_for = \"100d\"\nmode = \"in-place\"\non_expiry = %q", on))
			id, n := w.alias("cards"), 2
			for range 3 {
				w.pass(88 * day)
				if on == "rotate" {
					n++
				}
				w.until("all are valid for long", func() bool {
					for g := range n {
						if w.generation("cards") != n || w.key("cards", g+1).ValidTo.Sub(w.clock()) < 90*day {
							return false
						}
					}
					return len(w.openJobs("cards")) == 0
				})
				key, _ := w.sim.Key(testAccount, testRegion, id)
				if key.State != "Enabled" || w.alias("cards") != id || w.status("cards").State != control.GroupOK {
					t.Errorf("the key is %s: %+v", key.State, w.status("cards"))
				}
			}
		})
	}
}

// A rotation in place that waits for a person does not end the KMS key.
func TestExpiryInPlaceHindered(t *testing.T) {
	w := expiring(t, "enabled = false\nkeep_valid_for = \"100d\"\nmode = \"in-place\"")
	id := w.alias("cards")
	if _, err := w.person().DisableKey(t.Context(), &kms.DisableKeyInput{KeyId: aws.String(id)}); err != nil {
		t.Fatal(err)
	}
	w.pass(88 * day)
	w.until("the rotation waits", func() bool { return strings.Contains(w.problem("cards", "waiting-config"), "is disabled") })
	w.pass(11*day + 12*time.Hour)
	if job := w.job("cards", "synchronize", "expiry"); job.State != control.JobCompleted {
		t.Errorf("the import: %+v", job)
	}
	for n := range 2 {
		if left := w.key("cards", n+1).ValidTo.Sub(w.clock()); left < 90*day {
			t.Errorf("generation %d ends in %s", n+1, left)
		}
	}
	if key, _ := w.sim.Key(testAccount, testRegion, id); key.State != "Disabled" {
		t.Errorf("the key is %s", key.State)
	}
}

// byokd is down over a weekend, or AWS away, in which the active key's material
// ends.
func TestExpiryAfterAWeekend(t *testing.T) {
	for _, on := range []string{"rotate", "reimport"} {
		t.Run(on, func(t *testing.T) {
			w := expiring(t, fmt.Sprintf("enabled = false\nkeep_valid_for = \"5d\"\non_expiry = %q", on))
			w.pass(2 * day) // not due yet: half of 5 d, less an offset
			jobs := len(w.jobs("cards"))
			if err := w.halt(); err != nil {
				t.Fatal(err)
			}
			w.pass(4 * day)
			key, _ := w.sim.Key(testAccount, testRegion, w.alias("cards"))
			if key.State != "PendingImport" {
				t.Fatalf("the key is %s", key.State)
			}
			w.start()
			w.until("it is valid again", func() bool {
				st := w.status("cards")
				return st.State == "ok" && st.Active.ValidTo.Sub(w.clock()) > 4*day && len(w.openJobs("cards")) == 0
			})
			if got := len(w.jobs("cards")); got != jobs+1 {
				t.Errorf("%d jobs more", got-jobs)
			}
			now, _ := w.sim.Key(testAccount, testRegion, w.alias("cards"))
			if now.State != "Enabled" || on == "reimport" && (now.ID != key.ID || w.key("cards", 1).State != "previous") || on == "rotate" && w.generation("cards") != 3 {
				t.Errorf("the alias points at %+v; generation %d is active", now, w.generation("cards"))
			}
		})
	}
}

// Two hours of validity are enough to try all of it.
func TestShortValidity(t *testing.T) {
	w := newWorld(t)
	w.group("cards", "enabled = false\nkeep_valid_for = \"2h\"\non_expiry = \"reimport\"", "")
	w.at(time.Now())
	w.start()
	w.untilGeneration("cards", 1)
	for range 5 {
		before := w.key("cards", 1)
		w.pass(70 * time.Minute)
		w.until("it is imported again", func() bool {
			return w.key("cards", 1).ValidTo.After(before.ValidTo.Time) && len(w.openJobs("cards")) == 0
		})
	}
	if got := len(w.told("BYOK Key Expiring")); got != 0 {
		t.Errorf("%d warnings of what is never valid for a day", got)
	}
}
