package awssim_test

import (
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/resourcegroupstaggingapi"

	"byokd/cloud/awssim"
)

// standing is a clock that stands still, so that nothing but Advance fills a
// bucket.
func standing() func() time.Time {
	now := time.Now()
	return func() time.Time { return now }
}

func TestQuotas(t *testing.T) {
	f, ctx := start(t, awssim.Options{Now: standing(), Quotas: &awssim.Quotas{PerSecond: map[string]float64{"kms:symmetric": 2, "tag:GetResources": 1}}}), t.Context()
	const throttled = "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls."
	key, _ := f.imported() // has used the one GetParametersForImport of this second
	parameters := func(f *fixture) error {
		_, err := f.kms.GetParametersForImport(ctx, &kms.GetParametersForImportInput{
			KeyId: key.KeyId, WrappingAlgorithm: types.AlgorithmSpecRsaesOaepSha256, WrappingKeySpec: types.WrappingKeySpecRsa2048,
		})
		return err
	}
	wantError(t, parameters(f), "ThrottlingException", throttled)
	f.Advance(999 * time.Millisecond)
	wantError(t, parameters(f), "ThrottlingException", throttled)
	f.Advance(time.Millisecond)
	if err := parameters(f); err != nil {
		t.Errorf("a second later: %v", err)
	}
	wantCode(t, parameters(f.with("AKIAEXAMPLE", "s", "", "eu-west-1")), "NotFoundException") // another Region, another quota

	for i := range 6 {
		_, err := f.kms.CreateKey(ctx, &kms.CreateKeyInput{})
		if i == 5 {
			wantError(t, err, "ThrottlingException", throttled)
		} else if err != nil {
			t.Errorf("key %d: %v", i, err)
		}
	}
	// The cryptographic operations share one quota.
	must[*kms.GenerateDataKeyOutput](t)(f.kms.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: key.KeyId, KeySpec: types.DataKeySpecAes256}))
	must[*kms.GenerateRandomOutput](t)(f.kms.GenerateRandom(ctx, &kms.GenerateRandomInput{NumberOfBytes: aws.Int32(1)}))
	_, err := f.kms.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("x")})
	wantError(t, err, "ThrottlingException", throttled)

	must[*resourcegroupstaggingapi.GetResourcesOutput](t)(f.tagging.GetResources(ctx, &resourcegroupstaggingapi.GetResourcesInput{}))
	_, err = f.tagging.GetResources(ctx, &resourcegroupstaggingapi.GetResourcesInput{})
	wantError(t, err, "ThrottledException", "Rate exceeded")

	for i := range 51 {
		_, err := f.events.DescribeEventBus(ctx, &eventbridge.DescribeEventBusInput{})
		if i == 50 {
			wantError(t, err, "ThrottlingException", "Rate exceeded")
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestSetQuotas(t *testing.T) {
	f, ctx := start(t, awssim.Options{Now: standing()}), t.Context()
	create := func() error { _, err := f.kms.CreateKey(ctx, &kms.CreateKeyInput{}); return err }
	for range 7 {
		if err := create(); err != nil {
			t.Fatal(err)
		}
	}
	f.SetQuotas(&awssim.Quotas{})
	for range 5 {
		if err := create(); err != nil {
			t.Fatal(err)
		}
	}
	wantCode(t, create(), "ThrottlingException")
	f.SetQuotas(&awssim.Quotas{PerSecond: map[string]float64{"kms:CreateKey": 1}})
	if err := create(); err != nil {
		t.Fatal(err)
	}
	wantCode(t, create(), "ThrottlingException")
	f.SetQuotas(nil)
	if err := create(); err != nil {
		t.Fatal(err)
	}
}

func TestReplicateKeyQuota(t *testing.T) {
	f, ctx := start(t, awssim.Options{Now: standing(), Quotas: &awssim.Quotas{}}), t.Context()
	for i := range 3 {
		key := must[*kms.CreateKeyOutput](t)(f.kms.CreateKey(ctx, &kms.CreateKeyInput{MultiRegion: aws.Bool(true)})).KeyMetadata
		_, err := f.kms.ReplicateKey(ctx, &kms.ReplicateKeyInput{KeyId: key.KeyId, ReplicaRegion: aws.String("eu-west-1")})
		if i < 2 && err != nil {
			t.Errorf("replica %d: %v", i, err)
		} else if i == 2 {
			wantCode(t, err, "ThrottlingException") // 5 CreateKey there, 2 for each replica
		}
	}
}

func TestConsistency(t *testing.T) {
	f, ctx := start(t, awssim.Options{Now: standing(), Consistency: awssim.Consistency{NewKeys: 2 * time.Second, Aliases: time.Second, Tagging: 3 * time.Second}}), t.Context()
	tags := []types.Tag{{TagKey: aws.String("a"), TagValue: aws.String("1")}}
	one := must[*kms.CreateKeyOutput](t)(f.kms.CreateKey(ctx, &kms.CreateKeyInput{Tags: tags})).KeyMetadata
	_, err := f.kms.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: one.KeyId})
	wantError(t, err, "NotFoundException", "Key '"+*one.Arn+"' does not exist")
	_, err = f.kms.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String("alias/a"), TargetKeyId: one.KeyId})
	wantCode(t, err, "NotFoundException")
	if list := must[*kms.ListKeysOutput](t)(f.kms.ListKeys(ctx, &kms.ListKeysInput{})); len(list.Keys) != 0 || len(f.Keys(account, region)) != 1 {
		t.Errorf("listed %d keys", len(list.Keys))
	}
	found := func() int {
		t.Helper()
		out := must[*resourcegroupstaggingapi.GetResourcesOutput](t)(f.tagging.GetResources(ctx, &resourcegroupstaggingapi.GetResourcesInput{}))
		return len(out.ResourceTagMappingList)
	}
	f.Advance(2 * time.Second)
	two := f.create("")
	f.describe(*one.KeyId)
	if n := found(); n != 0 {
		t.Errorf("GetResources shows %d keys already", n)
	}
	f.Advance(time.Second)
	if n := found(); n != 1 {
		t.Errorf("GetResources shows %d keys", n)
	}
	must[*kms.UntagResourceOutput](t)(f.kms.UntagResource(ctx, &kms.UntagResourceInput{KeyId: one.KeyId, TagKeys: []string{"a"}}))
	filter := &resourcegroupstaggingapi.GetResourcesInput{ResourceARNList: []string{*one.Arn}}
	if out := must[*resourcegroupstaggingapi.GetResourcesOutput](t)(f.tagging.GetResources(ctx, filter)); len(out.ResourceTagMappingList[0].Tags) != 1 {
		t.Error("GetResources sees the change already")
	}
	f.Advance(3 * time.Second)
	if out := must[*resourcegroupstaggingapi.GetResourcesOutput](t)(f.tagging.GetResources(ctx, filter)); len(out.ResourceTagMappingList[0].Tags) != 0 {
		t.Error("GetResources does not see the change")
	}

	// The alias is made, moved and deleted; readers see each a second later.
	name := aws.String("alias/a")
	sees := func(want string) {
		t.Helper()
		out, err := f.kms.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: name})
		list := must[*kms.ListAliasesOutput](t)(f.kms.ListAliases(ctx, &kms.ListAliasesInput{}))
		if want == "" {
			wantError(t, err, "NotFoundException", "Alias arn:aws:kms:eu-central-1:111122223333:alias/a is not found.")
			if len(list.Aliases) != 0 {
				t.Errorf("aliases %+v", list.Aliases)
			}
			return
		}
		if err != nil || *out.KeyMetadata.KeyId != want || len(list.Aliases) != 1 || *list.Aliases[0].TargetKeyId != want {
			t.Errorf("%v, aliases %+v, want %s", err, list.Aliases, want)
		}
	}
	must[*kms.CreateAliasOutput](t)(f.kms.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: name, TargetKeyId: one.KeyId}))
	sees("")
	_, err = f.kms.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: name, TargetKeyId: one.KeyId})
	wantCode(t, err, "AlreadyExistsException")
	f.Advance(time.Second / 2)
	must[*kms.UpdateAliasOutput](t)(f.kms.UpdateAlias(ctx, &kms.UpdateAliasInput{AliasName: name, TargetKeyId: two.KeyId}))
	sees("")
	f.Advance(time.Second / 2)
	sees(*one.KeyId)
	f.Advance(time.Second / 2)
	sees(*two.KeyId)
	must[*kms.DeleteAliasOutput](t)(f.kms.DeleteAlias(ctx, &kms.DeleteAliasInput{AliasName: name}))
	sees(*two.KeyId)
	f.Advance(time.Second)
	sees("")
}

func TestLatency(t *testing.T) {
	f := start(t, awssim.Options{Latency: 20 * time.Millisecond})
	began := time.Now()
	f.create("")
	if d := time.Since(began); d < 20*time.Millisecond {
		t.Errorf("answered in %v", d)
	}
}
