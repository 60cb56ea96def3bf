package daemon_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"byokd/cloud/awssim"
	"byokd/daemon/control"
)

// newInPlaceWorld is a world with small wrapping keys, since many are needed.
func newInPlaceWorld(t *testing.T) *world {
	w := newWorld(t)
	toml, err := os.ReadFile(w.path("byokd.toml"))
	if err != nil {
		t.Fatal(err)
	}
	w.write("byokd.toml", strings.Replace(string(toml), "[aws]\n", "[aws]\nwrapping_key_spec = \"RSA_2048\"\n", 1))
	return w
}

// A sealer encrypts through a group's alias as the company does, and keeps what it
// made.
type sealer struct {
	w      *world
	kms    *kms.Client
	sealed [][]byte
}

func (w *world) sealer() *sealer { return &sealer{w: w, kms: w.kmsClient()} }

func (s *sealer) seal(alias string) {
	s.w.t.Helper()
	out, err := s.kms.Encrypt(s.w.t.Context(), &kms.EncryptInput{KeyId: aws.String("alias/" + alias), Plaintext: fmt.Appendf(nil, "secret %d", len(s.sealed))})
	if err != nil {
		s.w.t.Fatal(err)
	}
	s.sealed = append(s.sealed, out.CiphertextBlob)
}

// opened counts what can be decrypted; the material that each was encrypted with
// is told.
func (s *sealer) opened() (n int, materials map[string]bool) {
	s.w.t.Helper()
	materials = make(map[string]bool)
	for i, sealed := range s.sealed {
		out, err := s.kms.Decrypt(s.w.t.Context(), &kms.DecryptInput{CiphertextBlob: sealed})
		if err != nil {
			continue
		}
		if string(out.Plaintext) != fmt.Sprintf("secret %d", i) {
			s.w.t.Errorf("ciphertext %d decrypts to %q", i, out.Plaintext)
		}
		n++
		materials[aws.ToString(out.KeyMaterialId)] = true
	}
	return n, materials
}

func (w *world) groupKeys(name string) []control.Key {
	w.t.Helper()
	keys, err := w.client.Keys(w.t.Context(), name)
	if err != nil {
		w.t.Fatal(err)
	}
	return keys
}

// TestAuto takes one group through 60 rotations: in place while a KMS key has
// rotations left, then to a fresh one. Whatever was encrypted in all that time
// still decrypts; and the database can be lost at the end.
func TestAuto(t *testing.T) {
	w := newInPlaceWorld(t)
	w.group("payments", "every = \"30d\"\nmode = \"auto\"\nkeep_valid_for = \"60d\"", "")
	w.at(w.sim.Now())
	w.start()
	w.untilGeneration("payments", 1)
	company := w.sealer()
	company.seal("payments")
	for n := 2; n <= 61; n++ {
		w.pass(30 * 24 * time.Hour)
		w.untilGeneration("payments", n)
		company.seal("payments")
	}
	keys := w.groupKeys("payments")
	if len(keys) != 61 {
		t.Fatalf("%d generations", len(keys))
	}
	var used []string // KMS keys in the order in which they came
	for _, k := range keys {
		if len(used) == 0 || used[len(used)-1] != string(k.KeyID) {
			used = append(used, string(k.KeyID))
		}
		if want := "previous"; k.Generation < 61 && k.State != want && k.State != "expired" {
			t.Errorf("generation %d is %s", k.Generation, k.State)
		}
	}
	if len(used) != 3 || len(w.keys()) != 3 {
		t.Errorf("%d KMS keys, %d in AWS, want 3", len(used), len(w.keys()))
	}
	w.until("all events are delivered", func() bool { return len(w.eventDetails("KMS Key Material Rotated")) >= 58 })
	if moved := w.eventDetails("KMS Alias Moved"); len(moved) != 3 { // the first makes it
		t.Errorf("%d alias moves", len(moved))
	}
	rotated := w.eventDetails("KMS Key Material Rotated")
	if len(rotated) != 58 {
		t.Errorf("%d rotations in place", len(rotated))
	}
	for i, d := range rotated {
		g := int(d["generation"].(float64))
		if left := 25 - (g-1)%26; int(d["rotations_left"].(float64)) != left || d["key_id"] != string(keys[g-1].KeyID) || d["alias"] != "alias/payments" ||
			d["key_material_id"] != string(keys[g-1].KeyMaterialID) || d["previous_key_material_id"] != string(keys[g-2].KeyMaterialID) {
			t.Errorf("event %d: %v, and the keys are %+v and %+v; %d rotations are left", i, d, keys[g-2], keys[g-1], left)
		}
	}
	// The KMS keys that the alias has left are kept alive as any previous one.
	for _, n := range []int{26, 52} {
		job, err := w.client.Sync(t.Context(), control.SyncRequest{Group: "payments", Generation: &n, ImportMaterial: true, UpdatePolicy: true})
		if err != nil {
			t.Fatal(err)
		}
		if job := w.finished(job.ID); job.State != "completed" {
			t.Errorf("synchronize generation %d: %s %s", n, job.State, job.Error)
		}
	}
	if n, materials := company.opened(); n != 61 || len(materials) != 61 {
		t.Errorf("%d of 61 ciphertexts decrypt, under %d materials", n, len(materials))
	}

	want := w.groupKeys("payments")
	w.loseDatabase()
	w.start()
	w.until("all generations are found again", func() bool { return w.generation("payments") == 61 })
	got := w.groupKeys("payments")
	if len(got) != len(want) {
		t.Fatalf("%d generations after the database was lost", len(got))
	}
	for i, k := range want {
		if g := got[i]; g.Generation != k.Generation || g.State != k.State || g.KeyID != k.KeyID || g.KeyMaterialID != k.KeyMaterialID || g.HSMID != k.HSMID || g.HSMLabel != k.HSMLabel || !g.ValidTo.Equal(k.ValidTo.Time) {
			t.Errorf("recovered %+v, was %+v", g, k)
		}
	}
	if job := w.rotated("payments"); job.State != "completed" || w.generation("payments") != 62 || w.alias("payments") != used[2] {
		t.Errorf("rotation after recovery: %s %s", job.State, job.Error)
	}
}

// TestInPlace goes through a key's life in place: asynchronous rotations, a
// warning before they are used up, a person's help, and the move to a fresh key.
func TestInPlace(t *testing.T) {
	w := newInPlaceWorld(t)
	w.group("payments", every+"\nmode = \"in-place\"", "")
	w.start()
	w.untilGeneration("payments", 1)
	company := w.sealer()
	company.seal("payments")
	key := w.alias("payments")
	for n := 2; n <= 26; n++ {
		if job := w.rotated("payments"); job.State != "completed" {
			t.Fatalf("rotation %d: %s", n, job.Error)
		}
		company.seal("payments")
		switch n {
		case 22:
			w.pass(2 * time.Hour)
			if p := w.problem("payments", "rotations-left"); p != "" {
				t.Errorf("a warning with 4 rotations left: %s", p)
			}
		case 23:
			w.at(w.sim.Now().Add(2 * time.Hour))
			w.until("a warning", func() bool { return strings.Contains(w.problem("payments", "rotations-left"), "auto") })
		}
	}
	job := w.askRotation("payments")
	w.until("the job waits for a person", func() bool { return strings.Contains(w.problem("payments", "waiting-config"), `mode = "auto"`) })
	if w.alias("payments") != key || w.generation("payments") != 26 {
		t.Errorf("the alias is at %s, generation %d", w.alias("payments"), w.generation("payments"))
	}
	w.group("payments", every+"\nmode = \"auto\"", "")
	if job := w.finished(job.ID); job.State != "completed" || w.alias("payments") == key {
		t.Errorf("with mode = \"auto\": %s %s", job.State, job.Error)
	}
	company.seal("payments")
	if n, _ := company.opened(); n != 27 {
		t.Errorf("%d of 27 ciphertexts decrypt", n)
	}
	if w.requests("RotateKeyOnDemand") != 25 {
		t.Errorf("%d rotations were asked for", w.requests("RotateKeyOnDemand"))
	}
}

// One material of several is deleted and brought back; an HSM object that a key
// needs is missed within the hour.
func TestInPlaceMaterial(t *testing.T) {
	w := newInPlaceWorld(t)
	w.group("payments", every+"\nmode = \"in-place\"", "")
	w.at(w.sim.Now())
	w.start()
	w.untilGeneration("payments", 1)
	company := w.sealer()
	company.seal("payments")
	for range 3 {
		w.rotated("payments")
		company.seal("payments")
	}
	keys := w.groupKeys("payments")
	id := w.alias("payments")
	request := control.SyncRequest{Group: "payments", Generation: new(2), DeleteMaterial: true}
	asked, err := w.client.Sync(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	job := w.finished(asked.ID)
	if i := slices.IndexFunc(job.Steps, func(s control.Step) bool { return s.Name == "material" }); job.State != "completed" || !strings.Contains(string(job.Steps[i].Message), "generation 2") {
		t.Errorf("delete: %+v", job)
	}
	if !w.log.contains("takes the whole KMS key down") {
		t.Error("it was not said what stops working")
	}
	if n, _ := company.opened(); n != 0 {
		t.Errorf("%d ciphertexts decrypt without the material of one generation", n)
	}
	// A rotation does not bring back what a person has deleted.
	stopped := w.askRotation("payments")
	w.until("the rotation waits", func() bool {
		return strings.Contains(w.problem("payments", "waiting-config"), "byokctl sync payments --generation 2")
	})
	request = control.SyncRequest{Group: "payments", ImportMaterial: true, UpdatePolicy: true}
	if asked, err = w.client.Sync(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	if job := w.finished(asked.ID); job.State != "completed" {
		t.Errorf("bring back: %+v", job)
	}
	if n, materials := company.opened(); n != 4 || !materials[string(keys[1].KeyMaterialID)] {
		t.Errorf("%d of 4 ciphertexts decrypt, under %v", n, materials)
	}
	if _, err := w.client.Retry(t.Context(), []string{stopped.ID}, false); err != nil {
		t.Fatal(err)
	}
	if job := w.finished(stopped.ID); job.State != "completed" || w.alias("payments") != id {
		t.Errorf("the rotation: %+v", job)
	}

}

// A rotation that AWS takes its time for, whose answer is lost, is made once.
func TestInPlaceLostAnswer(t *testing.T) {
	w := newInPlaceWorld(t)
	w.group("payments", every+"\nmode = \"in-place\"", "")
	w.start()
	w.untilGeneration("payments", 1)
	w.faults(nil, func(r awssim.Request) *awssim.Fault {
		if r.Operation == "RotateKeyOnDemand" && w.requests("RotateKeyOnDemand") == 1 {
			return &awssim.Fault{Drop: true}
		}
		return nil
	})
	if job := w.rotated("payments"); job.State != "completed" {
		t.Errorf("%+v", job)
	}
	if n := w.requests("RotateKeyOnDemand"); n != 1 {
		t.Errorf("%d rotations were asked for", n)
	}
	list, err := w.kmsClient().ListKeyRotations(t.Context(), &kms.ListKeyRotationsInput{KeyId: aws.String(w.alias("payments")), IncludeKeyMaterial: types.IncludeKeyMaterialAllKeyMaterial})
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range list.Rotations {
		if want := fmt.Sprintf("byokd/payments/%d %s", i+1, w.groupKeys("payments")[i].HSMID); aws.ToString(m.KeyMaterialDescription) != want {
			t.Errorf("material %d is described %q, want %q", i, aws.ToString(m.KeyMaterialDescription), want)
		}
	}
}
