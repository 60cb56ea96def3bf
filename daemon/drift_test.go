package daemon_test

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"byokd/cloud/awssim"
	"byokd/daemon/control"
)

// person is somebody else who works in the account.
func (w *world) person() *kms.Client {
	transport := &http.Transport{}
	w.t.Cleanup(transport.CloseIdleConnections)
	return kms.NewFromConfig(aws.Config{Region: testRegion, BaseEndpoint: &w.aws.URL, HTTPClient: &http.Client{Transport: transport},
		Credentials: credentials.NewStaticCredentialsProvider(adminKey, adminSecret, "")})
}

// drifts are the kinds of drift that a group has as problems.
func (w *world) drifts(group string) (kinds []string) {
	for _, p := range w.status(group).Problems {
		if kind, ok := strings.CutPrefix(p.Code, "drift-"); ok {
			kinds = append(kinds, kind)
		}
	}
	return kinds
}

// policyAsWritten is in a form that AWS does not keep.
const policyAsWritten = `{"Version":"2012-10-17","Statement":[{"Sid":"all","Effect":"Allow","Principal":{"AWS":["111122223333"]},"Action":["kms:*"],"Resource":["*"]},
	{"Sid":"use","Effect":"Allow","Principal":{"AWS":["444455556666","arn:aws:iam::111122223333:role/app"]},"Action":["kms:Encrypt","kms:Decrypt"],"Resource":"*",
	"Condition":{"Bool":{"kms:GrantIsForAWSResource":true},"StringEquals":{"kms:CallerAccount":["111122223333"]}}}]}`

const managed = `description = "card payments"
policy_file = "policy.json"
[aws.tags]
team = "payments"`

// drifting is a world with a group of three generations that are managed in
// every way; the previous ones are disabled.
func drifting(t *testing.T, drift string) *world {
	w := newWorld(t)
	w.write("groups.d/policy.json", policyAsWritten)
	w.group("cards", fmt.Sprintf("enabled = false\nkeep_valid_for = \"300d\"\ndisable_previous = true\ndisable_previous_after = \"0s\"\ndrift = %q", drift), managed)
	w.at(time.Now())
	w.start()
	w.untilGeneration("cards", 1)
	for range 2 {
		w.rotated("cards")
		w.until("all jobs have ended", func() bool { return len(w.openJobs("cards")) == 0 })
	}
	// The database has that a moment before byokd waits for the next comparison from
	// then on, which the clock must not pass.
	w.until("byokd knows", func() bool {
		return strings.Count(w.log.String(), `msg="job completed"`) == len(w.jobs("cards"))
	})
	return w
}

func TestDriftOfEachKind(t *testing.T) {
	type act func(w *world, c *kms.Client, id func(generation int) *string) error
	for _, tt := range []struct {
		kind  string
		do    act
		say   string
		mends bool // repaired
	}{
		{"policy", func(w *world, c *kms.Client, id func(int) *string) error {
			_, err := c.PutKeyPolicy(t.Context(), &kms.PutKeyPolicyInput{KeyId: id(3), Policy: aws.String(strings.ReplaceAll(policyAsWritten, `"kms:Encrypt",`, ""))})
			return err
		}, `statement "use": Action is "kms:Decrypt", not ["kms:Encrypt","kms:Decrypt"]`, true},
		{"description", func(w *world, c *kms.Client, id func(int) *string) error {
			_, err := c.UpdateKeyDescription(t.Context(), &kms.UpdateKeyDescriptionInput{KeyId: id(3), Description: aws.String("theirs")})
			return err
		}, `is "theirs", defined as "card payments"`, true},
		{"tags", func(w *world, c *kms.Client, id func(int) *string) error {
			_, err := c.TagResource(t.Context(), &kms.TagResourceInput{KeyId: id(1), Tags: []types.Tag{{TagKey: aws.String("team"), TagValue: aws.String("other")}}})
			return err
		}, `team is "other", not "payments"`, true},
		{"material", func(w *world, c *kms.Client, id func(int) *string) error {
			_, err := c.DeleteImportedKeyMaterial(t.Context(), &kms.DeleteImportedKeyMaterialInput{KeyId: id(3)})
			return err
		}, "somebody deleted it", true},
		{"enabled", func(w *world, c *kms.Client, id func(int) *string) error {
			_, err := c.EnableKey(t.Context(), &kms.EnableKeyInput{KeyId: id(2)})
			return err
		}, "which byokd had disabled", true},
		{"disabled", func(w *world, c *kms.Client, id func(int) *string) error {
			_, err := c.DisableKey(t.Context(), &kms.DisableKeyInput{KeyId: id(3)})
			return err
		}, "aws kms enable-key", false},
		{"alias", func(w *world, c *kms.Client, id func(int) *string) error {
			_, err := c.UpdateAlias(t.Context(), &kms.UpdateAliasInput{AliasName: aws.String("alias/cards"), TargetKeyId: id(1)})
			return err
		}, "which is generation 1", false},
		{"alias-missing", func(w *world, c *kms.Client, id func(int) *string) error {
			_, err := c.DeleteAlias(t.Context(), &kms.DeleteAliasInput{AliasName: aws.String("alias/cards")})
			return err
		}, "alias/cards does not exist", true},
		{"deletion", func(w *world, c *kms.Client, id func(int) *string) error {
			_, err := c.ScheduleKeyDeletion(t.Context(), &kms.ScheduleKeyDeletionInput{KeyId: id(1)})
			return err
		}, "and not by byokd", false},
		{"unknown-key", func(w *world, c *kms.Client, id func(int) *string) error {
			_, err := c.CreateKey(t.Context(), &kms.CreateKeyInput{Tags: []types.Tag{{TagKey: aws.String("byokd:group"), TagValue: aws.String("cards")}}})
			return err
		}, "is none of the group's keys", false},
	} {
		for _, mode := range []string{"report", "repair"} {
			t.Run(tt.kind+" "+mode, func(t *testing.T) {
				w := drifting(t, mode)
				if found, err := w.client.Drift(t.Context()); err != nil || len(found) != 1 || found[0].Error != "" || len(found[0].Differences) > 0 {
					t.Fatalf("at first: %+v, %v", found, err)
				}
				c := w.person()
				id := func(generation int) *string { return aws.String(string(w.key("cards", generation).KeyID)) }
				if err := tt.do(w, c, id); err != nil {
					t.Fatal(err)
				}
				w.pass(time.Hour)
				w.until("an event", func() bool { return len(w.told("BYOK Drift Detected")) == 1 })
				differences := w.told("BYOK Drift Detected")[0]["differences"].([]any)
				if d := differences[0].(map[string]any); len(differences) != 1 || d["kind"] != tt.kind || !strings.Contains(d["message"].(string), tt.say) {
					t.Errorf("event: %v", differences)
				}
				if mode == "report" || !tt.mends {
					if st := w.status("cards"); st.State != control.GroupDrifted || !strings.Contains(w.problem("cards", "drift-"+tt.kind), tt.say) {
						t.Errorf("status: %+v", st)
					}
					w.restart()
					if got := w.drifts("cards"); len(got) != 1 {
						t.Errorf("differs after a restart: %v", got)
					}
					w.pass(time.Hour)
					if found, err := w.client.Drift(t.Context(), "cards"); err != nil || found[0].Error != "" || len(found[0].Differences) != 1 {
						t.Errorf("asked: %+v, %v", found, err)
					}
					if got := w.drifts("cards"); len(got) != 1 || got[0] != tt.kind {
						t.Errorf("differs after it was asked: %v", got)
					}
					if got := len(w.told("BYOK Drift Detected")); got != 1 {
						t.Errorf("%d events", got)
					}
					for _, j := range w.jobs("cards") {
						if j.Trigger == "drift" {
							t.Errorf("a job: %+v", j)
						}
					}
					return
				}
				if job := w.job("cards", "synchronize", "drift"); job.State != control.JobCompleted {
					t.Errorf("the repair: %+v", job)
				}
				looks := 0
				w.until("it is compared again, and nothing differs", func() bool {
					// Not so fast that AWS finds the signatures of the comparison too old.
					if looks++; looks%40 == 1 {
						w.pass(2 * time.Minute)
					}
					return w.status("cards").State == control.GroupOK
				})
				w.until("what was repaired is told", func() bool { return len(w.told("KMS Key Synchronized")) > 0 })
				if got := len(w.told("KMS Key Synchronized")); got != 1 {
					t.Errorf("%d events of what was repaired", got)
				}
				if k, _ := w.sim.Key(testAccount, testRegion, w.alias("cards")); k.State != "Enabled" || k.ID != *id(3) {
					t.Errorf("the alias points at %+v", k)
				}
				n := len(w.jobs("cards"))
				w.pass(3 * time.Hour)
				found, err := w.client.Drift(t.Context(), "cards")
				if err != nil || len(found) != 1 || len(found[0].Differences) > 0 || found[0].Error != "" {
					t.Errorf("asked: %+v, %v", found, err)
				}
				if got := len(w.jobs("cards")); got != n {
					t.Errorf("%d jobs, before %d", got, n)
				}
			})
		}
	}
}

// On a quiet system nothing drifts, for months, and no check takes many requests.
func TestNoFalseDrift(t *testing.T) {
	w := newWorld(t)
	w.write("groups.d/policy.json", policyAsWritten)
	w.configure(`drift_check = "12h"`)
	w.group("cards", "every = \"30d\"\nkeep_valid_for = \"60d\"\ndisable_previous = true\ndisable_previous_after = \"0s\"\ndrift = \"repair\"", managed)
	w.group("plain", "every = \"20d\"\nkeep_valid_for = \"40d\"\non_expiry = \"reimport\"", "")
	w.at(time.Now())
	w.start()
	w.untilGeneration("cards", 1)
	w.untilGeneration("plain", 1)
	for step := range 120 * 2 {
		w.pass(12 * time.Hour)
		w.until("nothing is open", func() bool {
			for _, name := range []string{"cards", "plain"} {
				if len(w.openJobs(name)) > 0 {
					return false
				}
			}
			return true
		})
		if step%40 == 0 {
			w.restart()
		}
		if step%10 == 0 {
			found, err := w.client.Drift(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range found {
				if f.Error != "" || len(f.Differences) > 0 {
					t.Fatalf("after %d h: %+v", 12*step, f)
				}
			}
		}
	}
	for _, name := range []string{"cards", "plain"} {
		if n := w.generation(name); n < 4 {
			t.Errorf("%s: generation %d", name, n)
		}
		for _, j := range w.jobs(name) {
			if j.Trigger == "drift" || j.State != control.JobCompleted {
				t.Errorf("job: %+v", j)
			}
		}
	}
	if got := w.told("BYOK Drift Detected"); len(got) > 0 {
		t.Errorf("false drift: %v", got)
	}
	if got := w.told("KMS Key Synchronized"); len(got) > 0 {
		for _, e := range got {
			if fmt.Sprint(e["actions"]) != "[material]" {
				t.Errorf("synchronized: %v", e)
			}
		}
	}
	least := 1000 // of several, since a check of the schedule may come in between
	for range 4 {
		before := len(w.sim.Requests())
		if _, err := w.client.Drift(t.Context(), "plain"); err != nil {
			t.Fatal(err)
		}
		least = min(least, len(w.sim.Requests())-before)
	}
	keys := 0
	for n := range w.generation("plain") {
		if w.key("plain", n+1).State != "destroyed" {
			keys++
		}
	}
	if least > 3+2*keys {
		t.Errorf("%d requests for a group of %d keys", least, keys)
	}
}

// While AWS is away nothing is drift, and what was found before stays.
func TestDriftWhileAWSIsAway(t *testing.T) {
	w := drifting(t, "report")
	if _, err := w.person().UpdateKeyDescription(t.Context(), &kms.UpdateKeyDescriptionInput{KeyId: aws.String(w.alias("cards")), Description: aws.String("theirs")}); err != nil {
		t.Fatal(err)
	}
	w.pass(time.Hour)
	w.until("it is seen", func() bool { return len(w.drifts("cards")) == 1 })
	w.faults(func(awssim.Request) *awssim.Fault { return &awssim.Fault{Drop: true} }, nil)
	found, err := w.client.Drift(t.Context())
	if err != nil || len(found) != 1 || found[0].Error == "" {
		t.Errorf("asked: %+v, %v", found, err)
	}
	w.pass(time.Hour)
	w.until("the check fails", func() bool { return strings.Contains(w.log.String(), "group cannot be compared with AWS") })
	if got := w.problem("cards", "drift-check"); got != "" {
		t.Errorf("told at once: %s", got)
	}
	w.pass(20 * time.Minute)
	w.until("that is told", func() bool { return w.problem("cards", "drift-check") != "" })
	if got := w.problem("cards", "drift-description"); got == "" {
		t.Errorf("what was found before is forgotten")
	}
	w.faults(nil, nil)
	w.pass(10 * time.Minute)
	w.until("it is compared again", func() bool { return w.problem("cards", "drift-check") == "" })
	if got := len(w.told("BYOK Drift Detected")); got != 1 {
		t.Errorf("%d events", got)
	}

	// drift_check follows SIGHUP.
	w.configure(`drift_check = "0s"`)
	w.reload <- struct{}{}
	w.until("it is reloaded", func() bool { return strings.Contains(w.log.String(), "msg=reloaded") })
	checks := w.requests("GetKeyPolicy")
	w.pass(5 * time.Hour)
	w.restart()
	w.pass(5 * time.Hour)
	if _, err := w.client.Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := w.requests("GetKeyPolicy"); got != checks {
		t.Errorf("%d checks with drift_check = \"0s\"", got-checks)
	}
}

// A device that is not the designated one compares when asked, and writes nothing.
func TestDriftNotDesignated(t *testing.T) {
	w := drifting(t, "repair")
	if err := w.halt(); err != nil {
		t.Fatal(err)
	}
	w.configure("designated = false")
	if err := os.Remove(w.path("state/byokd.db")); err != nil {
		t.Fatal(err)
	}
	w.initState()
	w.start()
	found, err := w.client.Drift(t.Context())
	if err != nil || len(found) != 1 || found[0].Error != "" || len(found[0].Differences) != 0 {
		t.Fatalf("asked: %+v, %v", found, err)
	}
	if _, err := w.person().UpdateKeyDescription(t.Context(), &kms.UpdateKeyDescriptionInput{KeyId: aws.String(w.alias("cards")), Description: aws.String("theirs")}); err != nil {
		t.Fatal(err)
	}
	found, err = w.client.Drift(t.Context())
	if err != nil || len(found[0].Differences) != 1 || found[0].Differences[0].Kind != "description" {
		t.Errorf("asked: %+v, %v", found, err)
	}
	w.pass(2 * time.Hour)
	if len(w.jobs("cards")) > 0 || len(w.drifts("cards")) > 0 || len(w.told("BYOK Drift Detected")) > 0 {
		t.Errorf("jobs %v, drift %v", w.jobs("cards"), w.drifts("cards"))
	}
}
