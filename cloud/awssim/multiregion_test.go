package awssim_test

import (
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"byokd/cloud/awssim"
)

// materials returns the states of a key's materials as ListKeyRotations has them.
func (f *fixture) materials(id string) (states []types.KeyMaterialState) {
	f.t.Helper()
	out := must[*kms.ListKeyRotationsOutput](f.t)(f.kms.ListKeyRotations(f.t.Context(), &kms.ListKeyRotationsInput{
		KeyId: &id, IncludeKeyMaterial: types.IncludeKeyMaterialAllKeyMaterial,
	}))
	for _, r := range out.Rotations {
		states = append(states, r.KeyMaterialState)
	}
	return states
}

func TestMultiRegionImport(t *testing.T) {
	here, ctx := start(t, awssim.Options{}), t.Context()
	there := here.with("AKIAEXAMPLE", "secret", "", "eu-west-1")
	key := must[*kms.CreateKeyOutput](t)(here.kms.CreateKey(ctx, &kms.CreateKeyInput{Origin: types.OriginTypeExternal, MultiRegion: aws.Bool(true)})).KeyMetadata
	id := *key.KeyId
	_, err := here.kms.ReplicateKey(ctx, &kms.ReplicateKeyInput{KeyId: &id, ReplicaRegion: aws.String("eu-west-1")})
	wantError(t, err, "KMSInvalidStateException", *key.Arn+" is pending import.")
	first := randomBytes(32)
	must[*kms.ImportKeyMaterialOutput](t)(here.importInto(id, first, func(*kms.ImportKeyMaterialInput) {}))

	replicated := must[*kms.ReplicateKeyOutput](t)(here.kms.ReplicateKey(ctx, &kms.ReplicateKeyInput{
		KeyId: &id, ReplicaRegion: aws.String("eu-west-1"), Tags: []types.Tag{{TagKey: aws.String("a"), TagValue: aws.String("b")}},
	}))
	if m := replicated.ReplicaKeyMetadata; m.KeyState != types.KeyStateCreating || *m.KeyId != id || m.MultiRegionConfiguration.MultiRegionKeyType != types.MultiRegionKeyTypeReplica {
		t.Errorf("replica %+v", m)
	}
	replica := there.describe(id)
	if replica.KeyState != types.KeyStatePendingImport || *replica.MultiRegionConfiguration.PrimaryKey.Arn != *key.Arn || len(replica.MultiRegionConfiguration.ReplicaKeys) != 1 {
		t.Errorf("replica %+v", replica)
	}
	_, err = there.kms.ReplicateKey(ctx, &kms.ReplicateKeyInput{KeyId: &id, ReplicaRegion: aws.String("eu-west-2")})
	wantCode(t, err, "UnsupportedOperationException")
	_, err = here.kms.ReplicateKey(ctx, &kms.ReplicateKeyInput{KeyId: &id, ReplicaRegion: aws.String("eu-west-1")})
	wantCode(t, err, "AlreadyExistsException")
	_, err = here.kms.ReplicateKey(ctx, &kms.ReplicateKeyInput{KeyId: &id, ReplicaRegion: aws.String("cn-north-1")})
	wantCode(t, err, "ValidationException")

	_, err = there.importInto(id, randomBytes(32), func(*kms.ImportKeyMaterialInput) {})
	wantCode(t, err, "IncorrectKeyMaterialException")
	imported := must[*kms.ImportKeyMaterialOutput](t)(there.importInto(id, first, func(*kms.ImportKeyMaterialInput) {}))
	if *imported.KeyMaterialId != *here.describe(id).CurrentKeyMaterialId {
		t.Error("the replica's material has another ID")
	}
	enc := must[*kms.EncryptOutput](t)(here.kms.Encrypt(ctx, &kms.EncryptInput{KeyId: &id, Plaintext: []byte("x")}))
	must[*kms.DecryptOutput](t)(there.kms.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: enc.CiphertextBlob}))

	// New material: the primary first, then every replica, then the rotation.
	second := randomBytes(32)
	asNew := func(in *kms.ImportKeyMaterialInput) { in.ImportType = types.ImportTypeNewKeyMaterial }
	_, err = there.importInto(id, second, asNew)
	wantError(t, err, "UnsupportedOperationException", *replica.Arn+" is not a multi-region primary key.")
	must[*kms.ImportKeyMaterialOutput](t)(here.importInto(id, second, func(in *kms.ImportKeyMaterialInput) {
		asNew(in)
		in.KeyMaterialDescription = aws.String("of the primary")
	}))
	_, err = there.importInto(id, second, func(in *kms.ImportKeyMaterialInput) { in.KeyMaterialDescription = aws.String("of the replica") })
	wantCode(t, err, "ValidationException")
	list := must[*kms.ListKeyRotationsOutput](t)(there.kms.ListKeyRotations(ctx, &kms.ListKeyRotationsInput{KeyId: &id, IncludeKeyMaterial: types.IncludeKeyMaterialAllKeyMaterial}))
	if got := aws.ToString(list.Rotations[1].KeyMaterialDescription); got != "of the primary" {
		t.Errorf("at the replica the material is described as %q", got)
	}
	if got := here.materials(id); len(got) != 2 || got[1] != types.KeyMaterialStatePendingMultiRegionImportAndRotation {
		t.Errorf("before the replica's import the materials are %v", got)
	}
	_, err = here.kms.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: &id})
	wantError(t, err, "KMSInvalidStateException", "No available key material pending rotation for the key: "+*key.Arn+".")
	must[*kms.ImportKeyMaterialOutput](t)(there.importInto(id, second, func(*kms.ImportKeyMaterialInput) {}))
	if got := there.materials(id); got[1] != types.KeyMaterialStatePendingRotation {
		t.Errorf("the replica's materials are %v", got)
	}
	_, err = there.kms.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: &id})
	wantCode(t, err, "UnsupportedOperationException")
	must[*kms.RotateKeyOnDemandOutput](t)(here.kms.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: &id}))
	if a, b := here.describe(id), there.describe(id); *a.CurrentKeyMaterialId != *b.CurrentKeyMaterialId || *a.CurrentKeyMaterialId == *imported.KeyMaterialId || b.KeyState != types.KeyStateEnabled {
		t.Errorf("after the rotation: %s, %s %s", *a.CurrentKeyMaterialId, *b.CurrentKeyMaterialId, b.KeyState)
	}

	// Deleting permanent material is for one Region, pending material for all.
	must[*kms.DeleteImportedKeyMaterialOutput](t)(there.kms.DeleteImportedKeyMaterial(ctx, &kms.DeleteImportedKeyMaterialInput{KeyId: &id}))
	if a, b := here.describe(id).KeyState, there.describe(id).KeyState; a != types.KeyStateEnabled || b != types.KeyStatePendingImport {
		t.Errorf("the primary is %s, the replica %s", a, b)
	}
	third := must[*kms.ImportKeyMaterialOutput](t)(here.importInto(id, randomBytes(32), asNew))
	must[*kms.DeleteImportedKeyMaterialOutput](t)(here.kms.DeleteImportedKeyMaterial(ctx, &kms.DeleteImportedKeyMaterialInput{KeyId: &id, KeyMaterialId: third.KeyMaterialId}))
	if a, b := here.materials(id), there.materials(id); len(a) != 2 || len(b) != 2 {
		t.Errorf("materials %v, %v", a, b)
	}
}

func TestPrimaryRegion(t *testing.T) {
	here, ctx := start(t, awssim.Options{}), t.Context()
	there := here.with("AKIAEXAMPLE", "secret", "", "eu-west-1")
	key := must[*kms.CreateKeyOutput](t)(here.kms.CreateKey(ctx, &kms.CreateKeyInput{MultiRegion: aws.Bool(true)})).KeyMetadata
	must[*kms.ReplicateKeyOutput](t)(here.kms.ReplicateKey(ctx, &kms.ReplicateKeyInput{KeyId: key.KeyId, ReplicaRegion: aws.String("eu-west-1")}))
	_, err := here.kms.UpdatePrimaryRegion(ctx, &kms.UpdatePrimaryRegionInput{KeyId: key.KeyId, PrimaryRegion: aws.String("eu-west-2")})
	wantCode(t, err, "NotFoundException")
	must[*kms.UpdatePrimaryRegionOutput](t)(here.kms.UpdatePrimaryRegion(ctx, &kms.UpdatePrimaryRegionInput{KeyId: key.KeyId, PrimaryRegion: aws.String("eu-west-1")}))
	if got := there.describe(*key.KeyId).MultiRegionConfiguration.MultiRegionKeyType; got != types.MultiRegionKeyTypePrimary {
		t.Errorf("the other key is %s", got)
	}

	// The primary waits for its replica to go.
	out := must[*kms.ScheduleKeyDeletionOutput](t)(there.kms.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: key.KeyId, PendingWindowInDays: aws.Int32(7)}))
	if out.KeyState != types.KeyStatePendingReplicaDeletion || out.DeletionDate != nil {
		t.Errorf("scheduled %+v", out)
	}
	_, err = there.kms.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("x")})
	wantCode(t, err, "KMSInvalidStateException")
	must[*kms.ScheduleKeyDeletionOutput](t)(here.kms.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: key.KeyId, PendingWindowInDays: aws.Int32(7)}))
	here.Advance(7 * 24 * time.Hour)
	if got := there.describe(*key.KeyId); got.KeyState != types.KeyStatePendingDeletion || got.DeletionDate == nil {
		t.Errorf("after the replica went: %+v", got)
	}
	here.Advance(7 * 24 * time.Hour)
	_, err = there.kms.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: key.KeyId})
	wantCode(t, err, "NotFoundException")
}

func TestRotationTakesTime(t *testing.T) {
	f, ctx := start(t, awssim.Options{RotationTime: time.Minute}), t.Context()
	key, _ := f.imported()
	id := key.KeyId
	next := must[*kms.ImportKeyMaterialOutput](t)(f.importInto(*id, randomBytes(32), func(in *kms.ImportKeyMaterialInput) { in.ImportType = types.ImportTypeNewKeyMaterial }))
	must[*kms.RotateKeyOnDemandOutput](t)(f.kms.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: id}))
	status := must[*kms.GetKeyRotationStatusOutput](t)(f.kms.GetKeyRotationStatus(ctx, &kms.GetKeyRotationStatusInput{KeyId: id}))
	if status.OnDemandRotationStartDate == nil || *f.describe(*id).CurrentKeyMaterialId != *key.CurrentKeyMaterialId {
		t.Errorf("while it runs: %+v", status)
	}
	_, err := f.kms.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: id})
	wantCode(t, err, "ConflictException")
	_, err = f.kms.DeleteImportedKeyMaterial(ctx, &kms.DeleteImportedKeyMaterialInput{KeyId: id, KeyMaterialId: next.KeyMaterialId})
	wantCode(t, err, "KMSInvalidStateException")
	f.Advance(time.Minute)
	status = must[*kms.GetKeyRotationStatusOutput](t)(f.kms.GetKeyRotationStatus(ctx, &kms.GetKeyRotationStatusInput{KeyId: id}))
	if status.OnDemandRotationStartDate != nil || *f.describe(*id).CurrentKeyMaterialId != *next.KeyMaterialId {
		t.Errorf("after it ran: %+v", status)
	}
}

func TestAutomaticRotation(t *testing.T) {
	f, ctx := start(t, awssim.Options{}), t.Context()
	external, _ := f.imported()
	for _, id := range []*string{external.KeyId, f.create(types.OriginTypeExternal).KeyId} {
		_, err := f.kms.EnableKeyRotation(ctx, &kms.EnableKeyRotationInput{KeyId: id})
		wantError(t, err, "UnsupportedOperationException", *f.describe(*id).Arn+" origin is EXTERNAL which is not valid for this operation.")
	}
	key := f.create("")
	must[*kms.EnableKeyRotationOutput](t)(f.kms.EnableKeyRotation(ctx, &kms.EnableKeyRotationInput{KeyId: key.KeyId, RotationPeriodInDays: aws.Int32(90)}))
	status := must[*kms.GetKeyRotationStatusOutput](t)(f.kms.GetKeyRotationStatus(ctx, &kms.GetKeyRotationStatusInput{KeyId: key.KeyId}))
	if !status.KeyRotationEnabled || *status.RotationPeriodInDays != 90 || status.NextRotationDate == nil {
		t.Errorf("status %+v", status)
	}
	f.Advance(181 * 24 * time.Hour)
	out := must[*kms.ListKeyRotationsOutput](t)(f.kms.ListKeyRotations(ctx, &kms.ListKeyRotationsInput{KeyId: key.KeyId}))
	if len(out.Rotations) != 2 || out.Rotations[0].RotationType != types.RotationTypeAutomatic {
		t.Errorf("rotations %+v", out.Rotations)
	}

	// While it is disabled it is not rotated, and once when it is enabled again.
	must[*kms.DisableKeyOutput](t)(f.kms.DisableKey(ctx, &kms.DisableKeyInput{KeyId: key.KeyId}))
	f.Advance(200 * 24 * time.Hour)
	if got := f.materials(*key.KeyId); len(got) != 3 {
		t.Errorf("while it was disabled: materials %v", got)
	}
	must[*kms.EnableKeyOutput](t)(f.kms.EnableKey(ctx, &kms.EnableKeyInput{KeyId: key.KeyId}))
	if got := f.materials(*key.KeyId); len(got) != 4 {
		t.Errorf("after it was enabled: materials %v", got)
	}
	f.Advance(91 * 24 * time.Hour)
	if got := f.materials(*key.KeyId); len(got) != 5 {
		t.Errorf("a period later: materials %v", got)
	}
	// While it is to be deleted its status is false.
	must[*kms.ScheduleKeyDeletionOutput](t)(f.kms.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: key.KeyId}))
	status = must[*kms.GetKeyRotationStatusOutput](t)(f.kms.GetKeyRotationStatus(ctx, &kms.GetKeyRotationStatusInput{KeyId: key.KeyId}))
	if status.KeyRotationEnabled || status.NextRotationDate != nil {
		t.Errorf("while it is to be deleted: %+v", status)
	}
	must[*kms.CancelKeyDeletionOutput](t)(f.kms.CancelKeyDeletion(ctx, &kms.CancelKeyDeletionInput{KeyId: key.KeyId}))
	must[*kms.EnableKeyOutput](t)(f.kms.EnableKey(ctx, &kms.EnableKeyInput{KeyId: key.KeyId}))
	if status = must[*kms.GetKeyRotationStatusOutput](t)(f.kms.GetKeyRotationStatus(ctx, &kms.GetKeyRotationStatusInput{KeyId: key.KeyId})); !status.KeyRotationEnabled {
		t.Errorf("after that was cancelled: %+v", status)
	}
	must[*kms.DisableKeyRotationOutput](t)(f.kms.DisableKeyRotation(ctx, &kms.DisableKeyRotationInput{KeyId: key.KeyId}))
	f.Advance(365 * 24 * time.Hour)
	if got := f.materials(*key.KeyId); len(got) != 5 {
		t.Errorf("materials %v", got)
	}
	_, err := f.kms.EnableKeyRotation(ctx, &kms.EnableKeyRotationInput{KeyId: key.KeyId, RotationPeriodInDays: aws.Int32(89)})
	wantCode(t, err, "ValidationException")
}
