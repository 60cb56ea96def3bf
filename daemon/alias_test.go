package daemon_test

import (
	"strings"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"byokd/cloud/awssim"
)

// kmsClient is a person's way to KMS, past byokd.
func (w *world) kmsClient() *kms.Client {
	return kms.New(kms.Options{Region: testRegion, BaseEndpoint: aws.String(w.aws.URL),
		Credentials: credentials.NewStaticCredentialsProvider(adminKey, adminSecret, ""), HTTPClient: w.aws.Client()})
}

// A person disables the new key in the moment in which the alias is on it: the
// alias goes back, status and events tell of both keys, and the rotation is made
// once the key can be used.
func TestAliasPutBack(t *testing.T) {
	w := newWorld(t)
	w.group("payments", every, "")
	w.start()
	w.untilGeneration("payments", 1)
	old := w.alias("payments")
	var moved atomic.Bool
	w.faults(nil, func(r awssim.Request) *awssim.Fault {
		if r.Operation == "UpdateAlias" && moved.CompareAndSwap(false, true) {
			if _, err := w.kmsClient().DisableKey(t.Context(), &kms.DisableKeyInput{KeyId: &r.KeyID}); err != nil {
				t.Error(err)
			}
		}
		return nil
	})
	id := w.askRotation("payments").ID
	w.until("the job waits for a person", func() bool { return w.problem("payments", "waiting-config") != "" })
	keys, err := w.client.Keys(t.Context(), "payments")
	if err != nil {
		t.Fatal(err)
	}
	new := string(keys[1].KeyID)
	p := w.problem("payments", "waiting-config")
	if !strings.Contains(p, "moved to KMS key "+new+" and put back on "+old) || !strings.Contains(p, "enable it") {
		t.Errorf("status says %q", p)
	}
	if w.alias("payments") != old || keys[0].State != "active" || keys[1].State != "pre-active" {
		t.Errorf("the alias points at %s; generations %s and %s", w.alias("payments"), keys[0].State, keys[1].State)
	}
	w.until("the failure is told", func() bool { return len(w.eventDetails("BYOK Rotation Failed")) == 1 })
	if d := w.eventDetails("BYOK Rotation Failed")[0]; d["step"] != "verify" || !strings.Contains(d["error"].(string), new) || !strings.Contains(d["error"].(string), old) {
		t.Errorf("event %v", d)
	}
	if n := len(w.eventDetails("KMS Alias Moved")); n != 1 {
		t.Errorf("%d events tell of a moved alias", n)
	}

	if _, err := w.kmsClient().EnableKey(t.Context(), &kms.EnableKeyInput{KeyId: &new}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.client.Retry(t.Context(), []string{id}, false); err != nil {
		t.Fatal(err)
	}
	w.untilGeneration("payments", 2)
	w.until("all events are on the bus", func() bool { return w.pending() == 0 })
	if n := len(w.eventDetails("KMS Alias Moved")); n != 2 {
		t.Errorf("%d events tell of a moved alias", n)
	}
	w.checkKeys(map[string]int{"payments": 2})
}

// Such a job can be cancelled: its alias is where it was.
func TestAliasPutBackAndCancelled(t *testing.T) {
	w := newWorld(t)
	w.group("payments", every, "")
	w.start()
	w.untilGeneration("payments", 1)
	var moved atomic.Bool
	w.faults(nil, func(r awssim.Request) *awssim.Fault {
		if r.Operation == "UpdateAlias" && moved.CompareAndSwap(false, true) {
			if _, err := w.kmsClient().DisableKey(t.Context(), &kms.DisableKeyInput{KeyId: &r.KeyID}); err != nil {
				t.Error(err)
			}
		}
		return nil
	})
	id := w.askRotation("payments").ID
	w.until("the job waits for a person", func() bool { return w.problem("payments", "waiting-config") != "" })
	if job, err := w.client.Cancel(t.Context(), id); err != nil || job.State != "cancelled" {
		t.Errorf("cancel: %+v, %v", job, err)
	}
}
