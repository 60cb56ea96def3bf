package awssim_test

import (
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"byokd/cloud/awssim"
)

func TestGrants(t *testing.T) {
	f, ctx := start(t, awssim.Options{}), t.Context()
	key, _ := f.imported()
	const ann, bob = "arn:aws:iam::111122223333:user/ann", "arn:aws:iam::111122223333:role/bob"
	in := func() *kms.CreateGrantInput {
		return &kms.CreateGrantInput{
			KeyId: key.KeyId, GranteePrincipal: aws.String(ann), RetiringPrincipal: aws.String(bob), Name: aws.String("mine"),
			Operations:  []types.GrantOperation{types.GrantOperationDecrypt, types.GrantOperationRetireGrant},
			Constraints: &types.GrantConstraints{EncryptionContextSubset: map[string]string{"a": "b"}},
		}
	}
	first := must[*kms.CreateGrantOutput](t)(f.kms.CreateGrant(ctx, in()))
	again := must[*kms.CreateGrantOutput](t)(f.kms.CreateGrant(ctx, in()))
	if *first.GrantId != *again.GrantId || *first.GrantToken == *again.GrantToken {
		t.Errorf("the same request: grants %s and %s", *first.GrantId, *again.GrantId)
	}
	unnamed := in()
	unnamed.Name = nil
	second := must[*kms.CreateGrantOutput](t)(f.kms.CreateGrant(ctx, unnamed))
	for _, test := range []struct {
		change func(*kms.CreateGrantInput)
		code   string
	}{
		{func(in *kms.CreateGrantInput) { in.Operations = []types.GrantOperation{types.GrantOperationSign} }, "ValidationException"},
		{func(in *kms.CreateGrantInput) { in.Operations = []types.GrantOperation{"Nonsense"} }, "ValidationException"},
		{func(in *kms.CreateGrantInput) { in.GranteePrincipal = nil }, "ValidationException"},
		{func(in *kms.CreateGrantInput) { in.GranteePrincipal = aws.String("nobody") }, "InvalidArnException"},
		{func(in *kms.CreateGrantInput) { in.DryRun = aws.Bool(true); in.Name = nil }, "DryRunOperationException"},
		{func(in *kms.CreateGrantInput) { in.KeyId = f.create(types.OriginTypeExternal).KeyId }, "KMSInvalidStateException"},
	} {
		bad := in()
		test.change(bad)
		_, err := f.kms.CreateGrant(ctx, bad)
		wantCode(t, err, test.code)
	}

	list := must[*kms.ListGrantsOutput](t)(f.kms.ListGrants(ctx, &kms.ListGrantsInput{KeyId: key.KeyId, Limit: aws.Int32(1)}))
	if !list.Truncated || len(list.Grants) != 1 || *list.Grants[0].GranteePrincipal != ann || *list.Grants[0].KeyId != *key.Arn ||
		list.Grants[0].Constraints.EncryptionContextSubset["a"] != "b" {
		t.Errorf("grants %+v", list)
	}
	one := must[*kms.ListGrantsOutput](t)(f.kms.ListGrants(ctx, &kms.ListGrantsInput{KeyId: key.KeyId, GrantId: first.GrantId}))
	if len(one.Grants) != 1 || *one.Grants[0].Name != "mine" {
		t.Errorf("grants %+v", one)
	}
	retirable := must[*kms.ListRetirableGrantsOutput](t)(f.kms.ListRetirableGrants(ctx, &kms.ListRetirableGrantsInput{RetiringPrincipal: aws.String(bob)}))
	if len(retirable.Grants) != 2 {
		t.Errorf("%d retirable grants", len(retirable.Grants))
	}
	must[*kms.RetireGrantOutput](t)(f.kms.RetireGrant(ctx, &kms.RetireGrantInput{GrantToken: first.GrantToken}))
	_, err := f.kms.RetireGrant(ctx, &kms.RetireGrantInput{GrantToken: aws.String("x")})
	wantCode(t, err, "InvalidGrantTokenException")
	_, err = f.kms.RetireGrant(ctx, &kms.RetireGrantInput{KeyId: key.Arn, GrantId: first.GrantId})
	wantCode(t, err, "NotFoundException")
	must[*kms.RevokeGrantOutput](t)(f.kms.RevokeGrant(ctx, &kms.RevokeGrantInput{KeyId: key.KeyId, GrantId: second.GrantId}))
	if list := must[*kms.ListGrantsOutput](t)(f.kms.ListGrants(ctx, &kms.ListGrantsInput{KeyId: key.KeyId})); len(list.Grants) != 0 {
		t.Errorf("left are %+v", list.Grants)
	}
}
