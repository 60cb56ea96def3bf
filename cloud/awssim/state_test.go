package awssim_test

import (
	"crypto/sha256"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	ebtypes "github.com/aws/aws-sdk-go-v2/service/eventbridge/types"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"byokd/cloud/awssim"
)

// TestState makes one of everything, opens the file again, and goes on.
func TestState(t *testing.T) {
	file, ctx := filepath.Join(t.TempDir(), "state.json"), t.Context()
	open := func() *fixture {
		t.Helper()
		sim := must[*awssim.Sim](t)(awssim.Open(awssim.Options{Pairs: awssim.NewPairs(1)}, file))
		return serve(t, sim)
	}
	f := open()
	key, material := f.imported()
	must[*kms.CreateAliasOutput](t)(f.kms.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String("alias/a"), TargetKeyId: key.KeyId}))
	must[*kms.TagResourceOutput](t)(f.kms.TagResource(ctx, &kms.TagResourceInput{KeyId: key.KeyId, Tags: []types.Tag{{TagKey: aws.String("a"), TagValue: aws.String("b")}}}))
	must[*kms.ImportKeyMaterialOutput](t)(f.importInto(*key.KeyId, randomBytes(32), func(in *kms.ImportKeyMaterialInput) { in.ImportType = types.ImportTypeNewKeyMaterial }))
	must[*kms.CreateGrantOutput](t)(f.kms.CreateGrant(ctx, &kms.CreateGrantInput{KeyId: key.KeyId, GranteePrincipal: aws.String(annARN), Operations: []types.GrantOperation{types.GrantOperationDecrypt}}))
	enc := must[*kms.EncryptOutput](t)(f.kms.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("x")}))
	signing := f.createAs(types.KeySpecEccSecgP256k1, types.KeyUsageTypeSignVerify, "")
	sig := must[*kms.SignOutput](t)(f.kms.Sign(ctx, &kms.SignInput{KeyId: signing.KeyId, Message: []byte("x"), SigningAlgorithm: types.SigningAlgorithmSpecEcdsaSha256}))
	gone := f.create("")
	must[*kms.ScheduleKeyDeletionOutput](t)(f.kms.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: gone.KeyId, PendingWindowInDays: aws.Int32(7)}))
	must[*eventbridge.PutRuleOutput](t)(f.events.PutRule(ctx, &eventbridge.PutRuleInput{Name: aws.String("r"), EventPattern: aws.String(`{"source":["byokd"]}`)}))
	must[*eventbridge.PutTargetsOutput](t)(f.events.PutTargets(ctx, &eventbridge.PutTargetsInput{Rule: aws.String("r"), Targets: []ebtypes.Target{{Id: aws.String("t"), Arn: aws.String("arn:x")}}}))
	f.put("One", `{"a":1}`, "")
	session := must[*sts.AssumeRoleOutput](t)(f.sts.AssumeRole(ctx, &sts.AssumeRoleInput{RoleArn: aws.String(roleARN), RoleSessionName: aws.String("x1"), DurationSeconds: aws.Int32(7200)})).Credentials
	f.Advance(time.Hour)
	p := f.parameters(*key.KeyId, types.AlgorithmSpecRsaesOaepSha256)

	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file: %v, %v", info.Mode(), err)
	}
	g := open()
	if diff := cmp.Diff(f.Keys(account, region), g.Keys(account, region)); diff != "" {
		t.Errorf("keys (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(f.Rules(), g.Rules()); diff != "" {
		t.Errorf("rules (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(f.Events(), g.Events()); diff != "" {
		t.Errorf("events (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(f.Deliveries(), g.Deliveries()); diff != "" || len(g.Deliveries()) != 1 {
		t.Errorf("deliveries (-before +after):\n%s", diff)
	}
	usage := func(f *fixture) *types.KeyLastUsageData {
		return must[*kms.GetKeyLastUsageOutput](t)(f.kms.GetKeyLastUsage(ctx, &kms.GetKeyLastUsageInput{KeyId: key.KeyId})).KeyLastUsage
	}
	if was, is := usage(f), usage(g); is.Operation != types.KeyLastUsageTrackingOperationEncrypt || !is.Timestamp.Equal(*was.Timestamp) || *is.KmsRequestId != *was.KmsRequestId {
		t.Errorf("last used %+v, and after %+v", was, is)
	}
	if d := g.Now().Sub(f.Now()).Abs(); d > time.Minute {
		t.Errorf("the clocks differ by %v", d)
	}
	must[*kms.ImportKeyMaterialOutput](t)(g.kms.ImportKeyMaterial(ctx, &kms.ImportKeyMaterialInput{
		KeyId: key.KeyId, ImportToken: p.ImportToken, EncryptedKeyMaterial: wrap(t, p.PublicKey, material, sha256.New()),
		ExpirationModel: types.ExpirationModelTypeKeyMaterialDoesNotExpire,
	}))
	dec := must[*kms.DecryptOutput](t)(g.kms.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: enc.CiphertextBlob}))
	if string(dec.Plaintext) != "x" {
		t.Errorf("decrypted %q", dec.Plaintext)
	}
	must[*kms.VerifyOutput](t)(g.kms.Verify(ctx, &kms.VerifyInput{KeyId: signing.KeyId, Message: []byte("x"), SigningAlgorithm: types.SigningAlgorithmSpecEcdsaSha256, Signature: sig.Signature}))
	must[*kms.RotateKeyOnDemandOutput](t)(g.kms.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: key.KeyId}))
	if list := must[*kms.ListGrantsOutput](t)(g.kms.ListGrants(ctx, &kms.ListGrantsInput{KeyId: key.KeyId})); len(list.Grants) != 1 {
		t.Errorf("%d grants", len(list.Grants))
	}
	must[*kms.ListKeysOutput](t)(g.with(*session.AccessKeyId, *session.SecretAccessKey, *session.SessionToken, region).kms.ListKeys(ctx, &kms.ListKeysInput{}))
	g.put("Two", `{}`, "")
	if n := len(g.Deliveries()); n != 2 {
		t.Errorf("%d deliveries", n)
	}
	g.Advance(7 * 24 * time.Hour)
	if _, still := g.Key(account, region, *gone.KeyId); still {
		t.Error("the key is not deleted")
	}

	for _, broken := range []string{"", "{", `{"Version":9}`, `{"Version":1}`, `{"Version":1,"Nonsense":1}`} {
		if err := os.WriteFile(file, []byte(broken), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := awssim.Open(awssim.Options{}, file); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%q: %v", broken, err)
		}
	}
}

// TestStateOfRelatedKeys lets a rotation and a waiting period end while the
// simulator does not run: what belongs together must act together, in whatever
// order the Regions are read.
func TestStateOfRelatedKeys(t *testing.T) {
	ctx := t.Context()
	for range 8 { // the order is another one each time
		file := filepath.Join(t.TempDir(), "state.json")
		now := time.Now()
		open := func() *fixture {
			t.Helper()
			o := awssim.Options{Pairs: pairs, RotationTime: time.Minute, Now: func() time.Time { return now }}
			return serve(t, must[*awssim.Sim](t)(awssim.Open(o, file)))
		}
		here := open()
		at := func(f *fixture) *fixture { return f.with("AKIAEXAMPLE", "secret", "", "eu-west-1") }
		create := func() *string {
			key := must[*kms.CreateKeyOutput](t)(here.kms.CreateKey(ctx, &kms.CreateKeyInput{MultiRegion: aws.Bool(true)})).KeyMetadata
			must[*kms.ReplicateKeyOutput](t)(here.kms.ReplicateKey(ctx, &kms.ReplicateKeyInput{KeyId: key.KeyId, ReplicaRegion: aws.String("eu-west-1")}))
			return key.KeyId
		}
		rotated, ending := create(), create()
		for _, f := range []*fixture{here, at(here)} { // the primary, which waits, and its replica
			must[*kms.ScheduleKeyDeletionOutput](t)(f.kms.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: ending, PendingWindowInDays: aws.Int32(7)}))
		}
		must[*kms.RotateKeyOnDemandOutput](t)(here.kms.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: rotated}))
		now = now.Add(8 * 24 * time.Hour)
		here = open()
		if a, b := here.describe(*rotated).CurrentKeyMaterialId, at(here).describe(*rotated).CurrentKeyMaterialId; *a != *b {
			t.Errorf("after the rotation the primary has %s, the replica %s", *a, *b)
		}
		if state := here.describe(*ending).KeyState; state != types.KeyStatePendingDeletion {
			t.Errorf("after its replica went the primary is %s", state)
		}
	}
}

// TestDeletedStaysDeleted checks that who is gone does not come back with a
// restart, though the options still name them.
func TestDeletedStaysDeleted(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.json")
	o := known
	o.Pairs = pairs
	f := serve(t, must[*awssim.Sim](t)(awssim.Open(o, file)))
	f.DeletePrincipal("arn:aws:iam::123456789012:user/ann")
	for _, f := range []*fixture{f, serve(t, must[*awssim.Sim](t)(awssim.Open(o, file)))} {
		_, err := f.with("AKIAKNOWN", "right", "", region).kms.ListKeys(t.Context(), &kms.ListKeysInput{})
		wantCode(t, err, "UnrecognizedClientException")
	}
}

// TestStateNotWritten checks that a change that cannot be saved is no success.
func TestStateNotWritten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "gone")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	f := serve(t, must[*awssim.Sim](t)(awssim.Open(awssim.Options{Pairs: pairs}, filepath.Join(dir, "state"))))
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	_, err := f.kms.CreateKey(t.Context(), &kms.CreateKeyInput{})
	wantCode(t, err, "InternalFailure")
	if !strings.Contains(err.Error(), "state") {
		t.Error(err)
	}
	must[*kms.ListKeysOutput](t)(f.kms.ListKeys(t.Context(), &kms.ListKeysInput{}))
	if _, err := awssim.Open(awssim.Options{Pairs: pairs}, filepath.Join(dir, "state")); err == nil {
		t.Error("opened in a folder that is not there")
	}
}
