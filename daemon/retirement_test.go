package daemon_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"byokd/daemon/control"
)

// seal encrypts something by key ID or alias, as an application does, and opens
// decrypts it.
func (w *world) seal(key string) []byte {
	w.t.Helper()
	out, err := w.kmsClient().Encrypt(w.t.Context(), &kms.EncryptInput{KeyId: &key, Plaintext: []byte("a card number")})
	if err != nil {
		w.t.Fatal(err)
	}
	return out.CiphertextBlob
}

func (w *world) opens(sealed []byte) bool {
	out, err := w.kmsClient().Decrypt(w.t.Context(), &kms.DecryptInput{CiphertextBlob: sealed})
	return err == nil && string(out.Plaintext) == "a card number"
}

// kmsState is the state of the KMS key of a generation.
func (w *world) kmsState(group string, generation int) string {
	w.t.Helper()
	k, _ := w.sim.Key(testAccount, testRegion, string(w.key(group, generation).KeyID))
	return k.State
}

// untilKMS waits until the KMS key of a generation is in a state.
func (w *world) untilKMS(group string, generation int, state string) {
	w.t.Helper()
	w.until("the key is "+state, func() bool { return w.kmsState(group, generation) == state })
}

// retirements are the generations of the retirements that wait.
func (w *world) retirements(group string) (generations []int) {
	for _, j := range w.openJobs(group) {
		if j.Kind == "retire" {
			generations = append(generations, *j.Generation)
		}
	}
	slices.Sort(generations)
	return generations
}

// done waits for the end of a job that was asked for, which must be a good one.
func (w *world) done(job control.Job, err error) control.Job {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
	if job = w.finished(job.ID); job.State != control.JobCompleted {
		w.t.Fatalf("job %+v", job)
	}
	return job
}

// A day with byokd, as docs/operating.md tells it.
func TestOperating(t *testing.T) {
	w := newWorld(t)
	w.at(time.Now())
	w.start()

	// A group, and data under its first key.
	w.group("payments", `every = "90d"`, "")
	w.untilGeneration("payments", 1)
	sealed := w.seal("alias/payments")

	// Rotated twice: the alias leaves each key, and old data still decrypts.
	first := w.alias("payments")
	w.rotated("payments")
	w.rotated("payments")
	if w.alias("payments") == first || !w.opens(sealed) {
		t.Fatal("the alias has not moved, or the old data is gone")
	}
	if keys, err := w.client.Keys(t.Context(), "payments"); err != nil || keys[0].State != "previous" || keys[1].State != "previous" || keys[2].State != "active" {
		t.Fatalf("keys %+v, %v", keys, err)
	}

	// The material of the first key is deleted: its data is of no use. It comes
	// back, and so does the data.
	w.done(w.client.Sync(t.Context(), control.SyncRequest{Group: "payments", Generation: new(1), DeleteMaterial: true}))
	if w.opens(sealed) || w.key("payments", 1).State != "material-deleted" {
		t.Error("the data can be decrypted without the key's material")
	}
	w.done(w.client.Sync(t.Context(), control.SyncRequest{Group: "payments", Generation: new(1), ImportMaterial: true, UpdatePolicy: true}))
	if !w.opens(sealed) {
		t.Error("the data cannot be decrypted with the material back")
	}

	// A changed policy reaches the keys that are there.
	w.write("groups.d/payments-policy.json", policy("operating"))
	w.group("payments", `every = "90d"`, `policy_file = "payments-policy.json"`)
	w.until("all three keys have the policy", func() bool {
		n := 0
		for _, k := range w.keys() {
			if strings.Contains(k.Policy, "operating") {
				n++
			}
		}
		return n == 3
	})

	// "Disable key after rotating", written later, reaches the previous keys too.
	w.group("payments", "every = \"90d\"\ndisable_previous = true\ndisable_previous_after = \"0s\"", `policy_file = "payments-policy.json"`)
	w.untilKMS("payments", 1, "Disabled")
	w.untilKMS("payments", 2, "Disabled")
	w.rotated("payments")
	w.untilKMS("payments", 3, "Disabled")
	if w.opens(sealed) {
		t.Error("a disabled key decrypts")
	}

	// Back to a key before: it must be enabled first, by a person.
	if _, err := w.client.Rollback(t.Context(), control.RollbackRequest{Group: "payments"}); err != nil {
		t.Fatal(err)
	}
	job := w.job("payments", "rollback", "control")
	if job.State != control.JobDiscarded || !strings.Contains(string(job.Error), "aws kms enable-key") {
		t.Errorf("roll back to a disabled key: %+v", job)
	}
	if st := w.status("payments"); st.State != "ok" {
		t.Errorf("after a refused roll back the group is %s, %v", st.State, st.Problems)
	}
	third := string(w.key("payments", 3).KeyID)
	if _, err := w.kmsClient().EnableKey(t.Context(), &kms.EnableKeyInput{KeyId: &third}); err != nil {
		t.Fatal(err)
	}
	before := w.status("payments")
	moved := len(w.eventDetails("KMS Alias Moved"))
	w.pass(time.Minute) // an alias that has just moved is let come to rest
	w.done(w.client.Rollback(t.Context(), control.RollbackRequest{Group: "payments"}))
	after := w.status("payments")
	if w.alias("payments") != third || *after.Active.Generation != 3 || after.LastRotation != before.LastRotation || after.NextRotation != before.NextRotation {
		t.Errorf("rolled back: %+v, before %+v", after, before)
	}
	w.untilKMS("payments", 4, "Disabled")
	w.until("an event tells of it", func() bool { return len(w.eventDetails("KMS Alias Moved")) == moved+1 })
	w.rotated("payments")
	if w.generation("payments") != 5 {
		t.Errorf("generation %d is active", w.generation("payments"))
	}
}

// A key that was used yesterday is not retired, with the reason; one that is not
// used any more is; one that is kept is not.
func TestRetirementGuard(t *testing.T) {
	const retire = `enabled = false
disable_previous = true
disable_previous_after = "2d"
delete_previous_material_after = "10d"
schedule_previous_deletion_after = "40d"`
	w := newWorld(t)
	w.at(time.Now())
	w.start()
	w.group("payments", retire, "")
	w.until("the group is there", func() bool { return w.status("payments").Group != "" })
	w.rotated("payments")
	w.rotated("payments")
	key := string(w.key("payments", 1).KeyID)
	if got := w.retirements("payments"); !slices.Equal(got, []int{1, 1, 1}) {
		t.Fatalf("retirements of %v wait", got)
	}

	w.pass(30 * time.Hour)
	sealed := w.seal(key)
	w.pass(20 * time.Hour)
	w.until("the reason is told", func() bool {
		return strings.Contains(w.problem("payments", "waiting-use"), "KMS key "+key+" was used at")
	})
	if st := w.status("payments"); st.State != "ok" || w.kmsState("payments", 1) != "Enabled" {
		t.Errorf("the group is %s, the key %s", st.State, w.kmsState("payments", 1))
	}
	w.pass(10 * time.Hour)
	w.untilKMS("payments", 1, "Disabled")
	if w.opens(sealed) {
		t.Error("a disabled key decrypts")
	}
	w.pass(10 * day)
	w.untilKMS("payments", 1, "PendingImport")
	w.restart()
	w.pass(30 * day)
	w.untilKMS("payments", 1, "PendingDeletion")
	w.until("events tell of all of it", func() bool {
		return len(w.eventDetails("KMS Key Disabled")) == 1 && len(w.eventDetails("KMS Key Material Deleted")) == 1 && len(w.eventDetails("KMS Key Deletion Scheduled")) == 1
	})

	// Kept, with its material back, and enabled by a person, it is as before.
	w.done(w.client.Keep(t.Context(), control.KeepRequest{Group: "payments", Generation: 1}))
	if got := w.kmsState("payments", 1); got != "PendingImport" {
		t.Errorf("the key is %s", got)
	}
	w.done(w.client.Sync(t.Context(), control.SyncRequest{Group: "payments", Generation: new(1), ImportMaterial: true}))
	if _, err := w.kmsClient().EnableKey(t.Context(), &kms.EnableKeyInput{KeyId: &key}); err != nil {
		t.Fatal(err)
	}
	if !w.opens(sealed) {
		t.Error("old data cannot be decrypted")
	}
	w.restart()
	w.pass(100 * day)
	if got := w.retirements("payments"); len(got) != 0 || !w.opens(sealed) {
		t.Errorf("retirements of %v wait", got)
	}
	w.done(w.client.Keep(t.Context(), control.KeepRequest{Group: "payments", Generation: 1, Undo: true}))
	w.until("it is in use, and that is told", func() bool { return w.problem("payments", "waiting-use") != "" })
	w.pass(8 * day)
	w.untilKMS("payments", 1, "PendingDeletion")
}

// Retirement follows the definition: dropped when it no longer asks, there again
// when it asks again.
func TestRetirementFollowsDefinition(t *testing.T) {
	w := newWorld(t)
	w.at(time.Now())
	w.start()
	w.group("payments", `every = "90d"`, "")
	w.untilGeneration("payments", 1)
	for range 3 {
		w.rotated("payments")
	}
	want := func(rotation string, generations ...int) {
		t.Helper()
		w.group("payments", "every = \"90d\"\n"+rotation, "")
		w.until(rotation+" is planned", func() bool { return slices.Equal(w.retirements("payments"), generations) })
	}
	want("schedule_previous_deletion_after = \"30d\"", 1, 2, 3)
	want("")
	want("disable_previous = true\nschedule_previous_deletion_after = \"30d\"", 1, 1, 2, 2, 3, 3)
	w.restart()
	want("schedule_previous_deletion_after = \"40d\"", 1, 2, 3)
	w.pass(31 * day)
	if got := w.retirements("payments"); !slices.Equal(got, []int{1, 2, 3}) {
		t.Errorf("retirements of %v wait", got)
	}
	want("keep_generations = 2") // disabled at once, since nothing uses them
	w.untilKMS("payments", 1, "Disabled")
	w.untilKMS("payments", 2, "Disabled")
	if got := w.kmsState("payments", 3); got != "Enabled" {
		t.Errorf("generation 3 is %s", got)
	}
	w.until("nothing more is to be done", func() bool { return len(w.openJobs("payments")) == 0 })
}

// Grants on the key that the alias leaves are told of, copied, or waited for.
func TestGrants(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.group("payments", every, "")
	w.untilGeneration("payments", 1)
	first := w.alias("payments")
	for range 3 { // more than one of the same is one page at least
		if _, err := w.kmsClient().CreateGrant(t.Context(), &kms.CreateGrantInput{KeyId: &first, Name: new("backup"),
			GranteePrincipal: new("arn:aws:iam::" + testAccount + ":role/backup"), Operations: []types.GrantOperation{types.GrantOperationDecrypt}}); err != nil {
			t.Fatal(err)
		}
	}
	if notes := strings.Join(w.planned(true, "payments").Notes, "\n"); !strings.Contains(notes, " grants are on KMS key "+first) {
		t.Errorf("the plan says %q", notes)
	}
	w.rotated("payments")
	if p := w.problem("payments", "grants"); !strings.Contains(p, first) || !strings.Contains(p, "1 grant: arn:aws:iam::"+testAccount+":role/backup (Decrypt)") {
		t.Errorf("status says %q", p)
	}
	w.restart()
	second := w.alias("payments")
	w.group("payments", every+"\ngrants = \"block\"", "")
	w.until("after a restart the first look tells of them", func() bool { return w.problem("payments", "grants") != "" })
	w.until("the definition is applied", func() bool { return len(w.openJobs("payments")) == 0 })

	// Copied from the key that has them.
	w.group("payments", every+"\ngrants = \"copy\"", "")
	grants := func(key string) int {
		out, err := w.kmsClient().ListGrants(t.Context(), &kms.ListGrantsInput{KeyId: &key})
		if err != nil {
			t.Fatal(err)
		}
		return len(out.Grants)
	}
	if _, err := w.kmsClient().CreateGrant(t.Context(), &kms.CreateGrantInput{KeyId: &second, GranteePrincipal: new("arn:aws:iam::" + testAccount + ":role/backup"),
		RetiringPrincipal: new("arn:aws:iam::" + testAccount + ":role/admin"), Operations: []types.GrantOperation{types.GrantOperationDecrypt, types.GrantOperationEncrypt},
		Constraints: &types.GrantConstraints{EncryptionContextSubset: map[string]string{"vault": "a"}}}); err != nil {
		t.Fatal(err)
	}
	w.until("the definition is applied", func() bool {
		return len(w.openJobs("payments")) == 0 && strings.Count(w.log.String(), "definition has changed") == 2
	})
	w.rotated("payments")
	third := w.alias("payments")
	if grants(third) != 1 || w.problem("payments", "grants") != "" {
		t.Errorf("%d grants on the new key; %q", grants(third), w.problem("payments", "grants"))
	}

	// Waited for.
	w.group("payments", every+"\ngrants = \"block\"", "")
	w.until("the definition is applied", func() bool {
		return len(w.openJobs("payments")) == 0 && strings.Count(w.log.String(), "definition has changed") == 3
	})
	job := w.askRotation("payments")
	w.until("the job waits", func() bool { return strings.Contains(w.problem("payments", "waiting-config"), `grants = "block"`) })
	if w.alias("payments") != third {
		t.Error("the alias has moved")
	}
	if _, err := w.client.Cancel(t.Context(), job.ID); err != nil {
		t.Errorf("the job that waits cannot be cancelled: %v", err)
	}
}

// What cannot be asked for, and what is asked for at the wrong device.
func TestRollbackAndKeepRefused(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.group("payments", every, "")
	w.untilGeneration("payments", 1)
	ctx := t.Context()
	for _, tt := range []struct {
		ask  func() (control.Job, error)
		code string
		said string
	}{
		{func() (control.Job, error) { return w.client.Rollback(ctx, control.RollbackRequest{Group: "nobody"}) }, control.UnknownGroup, "nobody"},
		{func() (control.Job, error) { return w.client.Rollback(ctx, control.RollbackRequest{Group: "payments"}) }, control.Conflict, "none before it"},
		{func() (control.Job, error) {
			return w.client.Rollback(ctx, control.RollbackRequest{Group: "payments", To: new(7)})
		}, control.Usage, "no generation 7"},
		{func() (control.Job, error) {
			return w.client.Keep(ctx, control.KeepRequest{Group: "payments", Generation: 7})
		}, control.Usage, "no generation 7"},
		{func() (control.Job, error) {
			return w.client.Keep(ctx, control.KeepRequest{Group: "payments", Generation: 1})
		}, control.Conflict, "generation 1 is active"},
	} {
		job, err := tt.ask()
		e, ok := err.(*control.Error)
		if !ok || e.Code != tt.code || !strings.Contains(e.Message, tt.said) {
			t.Errorf("%+v, %v", job, err)
		}
	}
	w.rotated("payments")
	w.configure("designated = false")
	w.restart()
	for _, err := range []error{
		func() error { _, err := w.client.Rollback(ctx, control.RollbackRequest{Group: "payments"}); return err }(),
		func() error {
			_, err := w.client.Keep(ctx, control.KeepRequest{Group: "payments", Generation: 1})
			return err
		}(),
	} {
		if e, ok := err.(*control.Error); !ok || e.Code != control.NotDesignated {
			t.Errorf("not designated: %v", err)
		}
	}
}

// A key of AWS's own making is adopted with a note, its alias is created at it, and
// initial = "now" rotates away from it at once.
func TestAdoptionOfAnAWSKey(t *testing.T) {
	w := newWorld(t)
	out, err := w.kmsClient().CreateKey(t.Context(), &kms.CreateKeyInput{})
	if err != nil {
		t.Fatal(err)
	}
	id := *out.KeyMetadata.KeyId
	w.group("cards", `every = "90d"`, `active_key_id = "`+id+`"`)
	w.start()
	if job := w.job("cards", "adopt", "adopt"); job.State != control.JobCompleted || !strings.Contains(string(job.Steps[0].Message), "origin AWS_KMS") {
		t.Errorf("job %+v", job)
	}
	if w.alias("cards") != id || w.generation("cards") != 0 || len(w.keys()) != 1 {
		t.Errorf("the alias points at %s, generation %d is active", w.alias("cards"), w.generation("cards"))
	}
	w.group("loans", "every = \"90d\"\ninitial = \"now\"", `active_key_id = "`+id+`"`)
	w.untilGeneration("loans", 1)
	if k := w.key("loans", 0); string(k.KeyID) != id || k.State != "previous" {
		t.Errorf("the adopted key: %+v", k)
	}
}
