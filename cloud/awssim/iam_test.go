package awssim_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	ebtypes "github.com/aws/aws-sdk-go-v2/service/eventbridge/types"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/resourcegroupstaggingapi"
	"github.com/aws/aws-sdk-go-v2/service/servicequotas"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"byokd/cloud/awssim"
)

const (
	annARN  = "arn:aws:iam::111122223333:user/ann"
	roleARN = "arn:aws:iam::111122223333:role/byok"
)

// people returns options with a principal who is an administrator, and ann with
// an IAM policy.
func people(policy string) awssim.Options {
	return awssim.Options{Credentials: []awssim.Credential{
		{AccessKeyID: "AKIAADMIN", SecretAccessKey: "s", Account: account, ARN: "arn:aws:iam::111122223333:user/admin"},
		{AccessKeyID: "AKIAANN", SecretAccessKey: "s", Account: account, ARN: annARN, Policy: json.RawMessage(policy)},
	}}
}

func allow(statement string) string {
	return `{"Version":"2012-10-17","Statement":[{"Effect":"Allow",` + statement + `}]}`
}

// TestActions checks of operations that an action allows them, and that they
// are refused without it, by name.
func TestActions(t *testing.T) {
	for _, test := range []struct {
		action string
		call   func(f *fixture, id *string) error
	}{
		{"kms:CreateKey", func(f *fixture, _ *string) error {
			_, err := f.kms.CreateKey(f.t.Context(), &kms.CreateKeyInput{})
			return err
		}},
		{"kms:DescribeKey", func(f *fixture, id *string) error {
			_, err := f.kms.DescribeKey(f.t.Context(), &kms.DescribeKeyInput{KeyId: id})
			return err
		}},
		{"kms:GetParametersForImport", func(f *fixture, id *string) error {
			_, err := f.kms.GetParametersForImport(f.t.Context(), &kms.GetParametersForImportInput{
				KeyId: id, WrappingAlgorithm: types.AlgorithmSpecRsaesOaepSha256, WrappingKeySpec: types.WrappingKeySpecRsa2048,
			})
			return err
		}},
		{"kms:CreateAlias", func(f *fixture, id *string) error {
			_, err := f.kms.CreateAlias(f.t.Context(), &kms.CreateAliasInput{AliasName: aws.String("alias/new"), TargetKeyId: id})
			return err
		}},
		{"kms:UpdateAlias", func(f *fixture, id *string) error {
			_, err := f.kms.UpdateAlias(f.t.Context(), &kms.UpdateAliasInput{AliasName: aws.String("alias/old"), TargetKeyId: id})
			return err
		}},
		{"kms:DeleteAlias", func(f *fixture, _ *string) error {
			_, err := f.kms.DeleteAlias(f.t.Context(), &kms.DeleteAliasInput{AliasName: aws.String("alias/old")})
			return err
		}},
		{"kms:ListAliases", func(f *fixture, id *string) error {
			_, err := f.kms.ListAliases(f.t.Context(), &kms.ListAliasesInput{KeyId: id})
			return err
		}},
		{"kms:DisableKey", func(f *fixture, id *string) error {
			_, err := f.kms.DisableKey(f.t.Context(), &kms.DisableKeyInput{KeyId: id})
			return err
		}},
		{"kms:TagResource", func(f *fixture, id *string) error {
			_, err := f.kms.TagResource(f.t.Context(), &kms.TagResourceInput{KeyId: id, Tags: []types.Tag{{TagKey: aws.String("a"), TagValue: aws.String("b")}}})
			return err
		}},
		{"kms:Encrypt", func(f *fixture, _ *string) error {
			_, err := f.kms.Encrypt(f.t.Context(), &kms.EncryptInput{KeyId: aws.String("alias/old"), Plaintext: []byte("x")})
			return err
		}},
		{"kms:ScheduleKeyDeletion", func(f *fixture, id *string) error {
			_, err := f.kms.ScheduleKeyDeletion(f.t.Context(), &kms.ScheduleKeyDeletionInput{KeyId: id})
			return err
		}},
		{"tag:GetResources", func(f *fixture, _ *string) error {
			_, err := f.tagging.GetResources(f.t.Context(), &resourcegroupstaggingapi.GetResourcesInput{})
			return err
		}},
		{"servicequotas:ListServiceQuotas", func(f *fixture, _ *string) error {
			_, err := f.quotas.ListServiceQuotas(f.t.Context(), &servicequotas.ListServiceQuotasInput{ServiceCode: aws.String("kms")})
			return err
		}},
		{"events:PutEvents", func(f *fixture, _ *string) error {
			_, err := f.events.PutEvents(f.t.Context(), &eventbridge.PutEventsInput{Entries: []ebtypes.PutEventsRequestEntry{{Source: aws.String("s"), DetailType: aws.String("d"), Detail: aws.String("{}")}}})
			return err
		}},
		{"events:DescribeEventBus", func(f *fixture, _ *string) error {
			_, err := f.events.DescribeEventBus(f.t.Context(), &eventbridge.DescribeEventBusInput{})
			return err
		}},
	} {
		t.Run(test.action, func(t *testing.T) {
			admin := start(t, people(allow(`"NotAction":"`+test.action+`","Resource":"*"`))).with("AKIAADMIN", "s", "", region)
			ann := admin.with("AKIAANN", "s", "", region)
			key, _ := admin.imported()
			must[*kms.CreateAliasOutput](t)(admin.kms.CreateAlias(t.Context(), &kms.CreateAliasInput{AliasName: aws.String("alias/old"), TargetKeyId: key.KeyId}))
			err := test.call(ann, key.KeyId)
			wantCode(t, err, "AccessDeniedException")
			for _, part := range []string{"User: " + annARN + " is not authorized to perform: " + test.action + " on resource: ", " because no identity-based policy allows the " + test.action + " action"} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("got %v, want %q", err, part)
				}
			}
			if err := admin.SetPolicy(annARN, json.RawMessage(allow(`"Action":"`+test.action+`","Resource":"*"`))); err != nil {
				t.Fatal(err)
			}
			if err := test.call(ann, key.KeyId); err != nil {
				t.Errorf("with the action: %v", err)
			}
		})
	}
}

// TestAliasResources checks that aliases need a permission of their own, and
// both keys when they move.
func TestAliasResources(t *testing.T) {
	admin, ctx := start(t, people(`{"Statement":{"Effect":"Allow","Action":"*","Resource":"*"}}`)).with("AKIAADMIN", "s", "", region), t.Context()
	ann := admin.with("AKIAANN", "s", "", region)
	one, two := admin.create(""), admin.create("")
	must[*kms.CreateAliasOutput](t)(admin.kms.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String("alias/byok-x"), TargetKeyId: one.KeyId}))
	for _, test := range []struct {
		resources string
		missing   string // empty: none
	}{
		{`"*"`, ""},
		{`["arn:aws:kms:*:*:alias/byok-*","arn:aws:kms:*:*:key/*"]`, ""},
		{`["arn:aws:kms:*:*:alias/other-*","arn:aws:kms:*:*:key/*"]`, "arn:aws:kms:eu-central-1:111122223333:alias/byok-x"},
		{`["arn:aws:kms:*:*:alias/byok-*","` + *one.Arn + `"]`, *two.Arn},
		{`["arn:aws:kms:*:*:alias/byok-*","` + *two.Arn + `"]`, *one.Arn},
	} {
		if err := admin.SetPolicy(annARN, json.RawMessage(allow(`"Action":"kms:UpdateAlias","Resource":`+test.resources))); err != nil {
			t.Fatal(err)
		}
		_, err := ann.kms.UpdateAlias(ctx, &kms.UpdateAliasInput{AliasName: aws.String("alias/byok-x"), TargetKeyId: two.KeyId})
		if test.missing == "" && err != nil {
			t.Errorf("%s: %v", test.resources, err)
		} else if test.missing != "" {
			wantError(t, err, "AccessDeniedException", "User: "+annARN+" is not authorized to perform: kms:UpdateAlias on resource: "+test.missing+
				" because no identity-based policy allows the kms:UpdateAlias action")
		}
		must[*kms.UpdateAliasOutput](t)(admin.kms.UpdateAlias(ctx, &kms.UpdateAliasInput{AliasName: aws.String("alias/byok-x"), TargetKeyId: one.KeyId}))
	}
}

// TestResources checks what a resource of a policy covers.
func TestResources(t *testing.T) {
	admin, ctx := start(t, people(`{"Statement":{"Effect":"Allow","Action":"*","Resource":"*"}}`)).with("AKIAADMIN", "s", "", region), t.Context()
	ann := admin.with("AKIAANN", "s", "", region)
	key := admin.create("")
	for resource, good := range map[string]bool{
		`"*"`: true, `"` + *key.Arn + `"`: true, `"arn:aws:kms:eu-central-1:111122223333:key/*"`: true, `"arn:aws:kms:*:*:*"`: true,
		`"arn:aws:kms:eu-?entral-1:111122223333:key/` + (*key.KeyId)[:8] + `*"`: true,
		`"arn:aws:kms:*"`:               true,  // what is missing is *
		`"arn:aws:kms:*:key/*"`:         false, // a * does not go beyond a colon
		`"arn:aws:*` + *key.KeyId + `"`: false,
		`"` + *key.KeyId + `"`:          false,
		`"arn:aws:kms:${aws:RequestedRegion}:${aws:PrincipalAccount}:key/*"`: true,
		`"arn:aws:kms:*:${aws:username}:key/*"`:                              false,
	} {
		if err := admin.SetPolicy(annARN, json.RawMessage(allow(`"Action":"kms:DescribeKey","Resource":`+resource))); err != nil {
			t.Fatal(err)
		}
		_, err := ann.kms.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: key.KeyId})
		if good && err != nil {
			t.Errorf("%s: %v", resource, err)
		} else if !good {
			wantCode(t, err, "AccessDeniedException")
		}
	}
	// The version that a policy has without one knows no variables.
	old := `{"Statement":{"Effect":"Allow","Action":"*","Resource":"arn:aws:kms:${aws:RequestedRegion}:*:key/*"}}`
	if err := admin.SetPolicy(annARN, json.RawMessage(old)); err != nil {
		t.Fatal(err)
	}
	_, err := ann.kms.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: key.KeyId})
	wantCode(t, err, "AccessDeniedException")
}

func TestConditions(t *testing.T) {
	admin, ctx := start(t, people(`{"Statement":{"Effect":"Allow","Action":"*","Resource":"*"}}`)).with("AKIAADMIN", "s", "", region), t.Context()
	ann := admin.with("AKIAANN", "s", "", region)
	key, _ := admin.imported()
	must[*kms.TagResourceOutput](t)(admin.kms.TagResource(ctx, &kms.TagResourceInput{KeyId: key.KeyId, Tags: []types.Tag{{TagKey: aws.String("team"), TagValue: aws.String("Pay")}}}))
	must[*kms.CreateAliasOutput](t)(admin.kms.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String("alias/a"), TargetKeyId: key.KeyId}))
	byAlias, withContext := aws.String("alias/a"), map[string]string{"Who": "me"}
	encrypt := func() error {
		_, err := ann.kms.Encrypt(ctx, &kms.EncryptInput{KeyId: byAlias, Plaintext: []byte("x"), EncryptionContext: withContext})
		return err
	}
	create := func(change func(*kms.CreateKeyInput)) func() error {
		return func() error {
			in := &kms.CreateKeyInput{Origin: types.OriginTypeExternal, Tags: []types.Tag{{TagKey: aws.String("managed-by"), TagValue: aws.String("byokd")}}}
			change(in)
			_, err := ann.kms.CreateKey(ctx, in)
			return err
		}
	}
	for _, test := range []struct {
		condition string
		call      func() error
		good      bool
	}{
		{`{"StringEquals":{"kms:KeyOrigin":"EXTERNAL","kms:KeySpec":"SYMMETRIC_DEFAULT","kms:keyusage":"ENCRYPT_DECRYPT"}}`, encrypt, true},
		{`{"StringEquals":{"kms:KeyOrigin":"AWS_KMS"}}`, encrypt, false},
		{`{"StringEquals":{"kms:KeyOrigin":["AWS_KMS","EXTERNAL"]}}`, encrypt, true},
		{`{"StringNotEquals":{"kms:KeyOrigin":"AWS_KMS"}}`, encrypt, true},
		{`{"StringEquals":{"aws:ResourceTag/team":"Pay"}}`, encrypt, true},
		{`{"StringEquals":{"aws:ResourceTag/team":"pay"}}`, encrypt, false},
		{`{"StringEqualsIgnoreCase":{"aws:ResourceTag/team":"pay"}}`, encrypt, true},
		{`{"StringLike":{"kms:RequestAlias":"alias/*"}}`, encrypt, true},
		{`{"ForAnyValue:StringEquals":{"kms:ResourceAliases":["alias/b","alias/a"]}}`, encrypt, true},
		{`{"ForAllValues:StringLike":{"kms:ResourceAliases":"alias/b*"}}`, encrypt, false},
		{`{"StringEquals":{"kms:EncryptionContext:who":"me"}}`, encrypt, true},
		{`{"StringEquals":{"kms:EncryptionContext:who":"you"}}`, encrypt, false},
		{`{"ForAllValues:StringEquals":{"kms:EncryptionContextKeys":["Who"]}}`, encrypt, true},
		{`{"Null":{"kms:EncryptionContext:who":"false"}}`, encrypt, true},
		{`{"Null":{"kms:EncryptionContext:who":true}}`, encrypt, false},
		{`{"StringEquals":{"aws:nonsense":"x"}}`, encrypt, false},
		{`{"StringEqualsIfExists":{"aws:nonsense":"x"}}`, encrypt, true},
		{`{"StringNotLike":{"aws:nonsense":"x"}}`, encrypt, true},
		{`{"ForAnyValue:StringNotLike":{"aws:nonsense":"x"}}`, encrypt, false},
		{`{"ArnLike":{"aws:PrincipalArn":"arn:aws:iam::*:user/*"}}`, encrypt, true},
		{`{"ArnNotEquals":{"aws:PrincipalArn":"arn:aws:iam::*:user/ann"}}`, encrypt, false},
		{`{"StringEquals":{"aws:username":"${aws:username}","aws:ResourceTag/team":"${aws:nothing, 'Pay'}"}}`, encrypt, true},
		{`{"DateGreaterThan":{"aws:CurrentTime":"2020-01-01T00:00:00Z"},"NumericGreaterThan":{"aws:EpochTime":"1"}}`, encrypt, true},
		{`{"DateLessThan":{"aws:CurrentTime":"2020-01-01T00:00:00Z"}}`, encrypt, false},
		{`{"Bool":{"aws:SecureTransport":true}}`, encrypt, true},
		{`{"IpAddress":{"aws:SourceIp":"10.0.0.0/8"}}`, encrypt, false},
		{`{"IpAddress":{"aws:SourceIp":["10.0.0.0/8","127.0.0.1"]},"StringLike":{"aws:UserAgent":"aws-sdk-go-v2/*"},"Bool":{"aws:ViaAWSService":"false"}}`, encrypt, true},
		{`{"NotIpAddress":{"aws:SourceIp":"127.0.0.0/8"}}`, encrypt, false},
		{`{"StringEquals":{"aws:PrincipalType":"User","aws:ResourceAccount":111122223333,"aws:PrincipalAccount":["111122223333"]}}`, encrypt, true}, // a number as it is written
		{`{"DateLessThan":{"aws:CurrentTime":1600000000}}`, encrypt, false},
		{`{"DateGreaterThan":{"aws:CurrentTime":1600000000},"NumericGreaterThan":{"aws:EpochTime":1600000000}}`, encrypt, true},
		{`{"StringEquals":{"kms:KeyOrigin":"EXTERNAL","aws:RequestTag/managed-by":"byokd"},"ForAllValues:StringEquals":{"aws:TagKeys":"managed-by"}}`, create(func(*kms.CreateKeyInput) {}), true},
		{`{"StringEquals":{"kms:KeyOrigin":"EXTERNAL"}}`, create(func(in *kms.CreateKeyInput) { in.Origin = "" }), false},
		{`{"StringEquals":{"aws:RequestTag/managed-by":"byokd"}}`, create(func(in *kms.CreateKeyInput) { in.Tags = nil }), false},
		{`{"Bool":{"kms:BypassPolicyLockoutSafetyCheck":"false"}}`, create(func(*kms.CreateKeyInput) {}), false},
		{`{"BoolIfExists":{"kms:BypassPolicyLockoutSafetyCheck":"false"}}`, create(func(*kms.CreateKeyInput) {}), true},
		{`{"BoolIfExists":{"kms:BypassPolicyLockoutSafetyCheck":"false"}}`, create(func(in *kms.CreateKeyInput) { in.BypassPolicyLockoutSafetyCheck = true }), false},
		{`{"NumericGreaterThanEquals":{"kms:ScheduleKeyDeletionPendingWindowInDays":"20"}}`, func() error {
			_, err := ann.kms.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: admin.create("").KeyId, PendingWindowInDays: aws.Int32(7)})
			return err
		}, false},
		{`{"StringEquals":{"kms:WrappingAlgorithm":"RSAES_OAEP_SHA_256","kms:WrappingKeySpec":"RSA_2048","kms:ExpirationModel":"KEY_MATERIAL_DOES_NOT_EXPIRE"}}`, func() error {
			_, err := ann.kms.GetParametersForImport(ctx, &kms.GetParametersForImportInput{KeyId: key.KeyId, WrappingAlgorithm: types.AlgorithmSpecRsaesOaepSha256, WrappingKeySpec: types.WrappingKeySpecRsa2048})
			return err
		}, false}, // the expiration model is no condition of this operation
	} {
		if err := admin.SetPolicy(annARN, json.RawMessage(allow(`"Action":["kms:*"],"Resource":"*","Condition":`+test.condition))); err != nil {
			t.Fatal(err)
		}
		err := test.call()
		if test.good && err != nil {
			t.Errorf("%s: %v", test.condition, err)
		} else if !test.good {
			wantCode(t, err, "AccessDeniedException")
		}
	}
}

// TestKeyPolicies checks how key policies, IAM policies and grants go together.
func TestKeyPolicies(t *testing.T) {
	o := people(allow(`"Action":"kms:Encrypt","Resource":"*"`))
	o.IAM = true
	o.Credentials[0].Policy = json.RawMessage(allow(`"Action":"*","Resource":"*"`))
	admin, ctx := start(t, o).with("AKIAADMIN", "s", "", region), t.Context()
	ann := admin.with("AKIAANN", "s", "", region)
	statement := func(effect, principal, action string) string {
		return `{"Effect":"` + effect + `","Principal":{"AWS":"` + principal + `"},"Action":"` + action + `","Resource":"*"}`
	}
	const adminARN, root = "arn:aws:iam::111122223333:user/admin", "arn:aws:iam::111122223333:root"
	manage := statement("Allow", adminARN, "kms:*")
	for _, test := range []struct {
		name, statements       string
		encrypt, describe, why string // codes
	}{
		{"delegated", statement("Allow", root, "kms:*"), "", "AccessDeniedException", "because no identity-based policy allows the kms:DescribeKey action"},
		{"not delegated", manage, "AccessDeniedException", "AccessDeniedException", "because no resource-based policy allows the kms:DescribeKey action"},
		{"by name", manage + "," + statement("Allow", annARN, "kms:DescribeKey"), "AccessDeniedException", "", ""},
		{"denied", statement("Allow", root, "kms:*") + "," + statement("Deny", annARN, "kms:*"), "AccessDeniedException", "AccessDeniedException", "with an explicit deny in a resource-based policy"},
		{"everybody", manage + "," + statement("Allow", "*", "kms:Describe*"), "AccessDeniedException", "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			key := must[*kms.CreateKeyOutput](t)(admin.kms.CreateKey(ctx, &kms.CreateKeyInput{Policy: aws.String(`{"Statement":[` + test.statements + `]}`)})).KeyMetadata
			_, err := ann.kms.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("x")})
			if test.encrypt == "" && err != nil || test.encrypt != "" && err == nil {
				t.Errorf("encrypt: %v", err)
			}
			_, err = ann.kms.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: key.KeyId})
			if test.describe == "" && err != nil || test.describe != "" && (err == nil || !strings.Contains(err.Error(), test.why)) {
				t.Errorf("describe: %v", err)
			}
		})
	}
	key := must[*kms.CreateKeyOutput](t)(admin.kms.CreateKey(ctx, &kms.CreateKeyInput{Policy: aws.String(`{"Statement":[` + manage + `]}`)})).KeyMetadata
	grant := must[*kms.CreateGrantOutput](t)(admin.kms.CreateGrant(ctx, &kms.CreateGrantInput{
		KeyId: key.KeyId, GranteePrincipal: aws.String(annARN), Operations: []types.GrantOperation{types.GrantOperationEncrypt},
		Constraints: &types.GrantConstraints{EncryptionContextEquals: map[string]string{"Who": "me"}},
	}))
	must[*kms.EncryptOutput](t)(ann.kms.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("x"), EncryptionContext: map[string]string{"Who": "me"}}))
	_, err := ann.kms.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("x")})
	wantCode(t, err, "AccessDeniedException")
	_, err = ann.kms.RetireGrant(ctx, &kms.RetireGrantInput{KeyId: key.Arn, GrantId: grant.GrantId})
	wantCode(t, err, "AccessDeniedException")
	must[*kms.RetireGrantOutput](t)(admin.kms.RetireGrant(ctx, &kms.RetireGrantInput{KeyId: key.Arn, GrantId: grant.GrantId}))

	_, err = admin.kms.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: key.KeyId, Policy: aws.String(`{"Statement":[` + statement("Allow", "arn:aws:iam::111122223333:user/gone", "kms:*") + `]}`)})
	wantError(t, err, "MalformedPolicyDocumentException", "Policy contains a statement with one or more invalid principals.")
}

// TestRolePolicy checks that a session has its role's policy, and that assuming
// a role is a permission.
func TestRolePolicy(t *testing.T) {
	o := people(allow(`"Action":"sts:AssumeRole","Resource":"` + roleARN + `"`))
	o.Roles = []awssim.Role{{ARN: roleARN, Policy: json.RawMessage(allow(`"Action":"kms:ListKeys","Resource":"*"`))}, {ARN: roleARN + "2"}}
	f, ctx := start(t, o).with("AKIAANN", "s", "", region), t.Context()
	_, err := f.sts.AssumeRole(ctx, &sts.AssumeRoleInput{RoleArn: aws.String(roleARN + "2"), RoleSessionName: aws.String("x1")})
	wantCode(t, err, "AccessDenied")
	c := must[*sts.AssumeRoleOutput](t)(f.sts.AssumeRole(ctx, &sts.AssumeRoleInput{RoleArn: aws.String(roleARN), RoleSessionName: aws.String("x1")})).Credentials
	session := f.with(*c.AccessKeyId, *c.SecretAccessKey, *c.SessionToken, region)
	must[*kms.ListKeysOutput](t)(session.kms.ListKeys(ctx, &kms.ListKeysInput{}))
	must[*sts.GetCallerIdentityOutput](t)(session.sts.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{}))
	_, err = session.kms.CreateKey(ctx, &kms.CreateKeyInput{})
	wantError(t, err, "AccessDeniedException", "User: arn:aws:sts::111122223333:assumed-role/byok/x1 is not authorized to perform: kms:CreateKey on resource: * because no identity-based policy allows the kms:CreateKey action")
}

func TestCheckPolicy(t *testing.T) {
	for _, test := range []struct{ document, want string }{
		{allow(`"Action":"kms:*","Resource":"*"`), ""},
		{`{}`, "no statement"},
		{`[`, "form of an IAM policy"},
		{`{"Version":"2020","Statement":[]}`, "no policy version"},
		{allow(`"Resource":"*"`), "Action"},
		{allow(`"Action":"kms:*"`), "Resource"},
		{allow(`"Action":"kms:*","Resource":"*","Principal":"*"`), "names no principal"},
		{allow(`"Action":"kms:*","Resource":"*","Condition":{"StringIs":{"a":"b"}}`), `no condition operator "StringIs"`},
		{allow(`"Action":"kms:*","Resource":"*","Condition":{"Bool":{"a":{}}}`), "form of an IAM policy"},
	} {
		err := awssim.CheckPolicy(json.RawMessage(test.document))
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", test.document, err)
		}
	}
}
