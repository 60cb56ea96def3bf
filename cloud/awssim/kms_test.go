package awssim_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/google/go-cmp/cmp"

	"byokd/cloud/awssim"
)

// post sends a signed request as it is, without the SDK's own validation.
func post(t *testing.T, h http.Handler, service, target, body string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, "http://127.0.0.1/", strings.NewReader(body))
	r.Header.Set("Content-Type", "application/x-amz-json-1.1")
	r.Header.Set("X-Amz-Target", target)
	err := v4.NewSigner().SignHTTP(t.Context(), aws.Credentials{AccessKeyID: "AKIAEXAMPLE", SecretAccessKey: "secret"}, r, hexSHA256([]byte(body)), service, region, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// TestMessages are the codes and messages that were recorded from AWS, beside
// those of the tables of states and imports.
func TestMessages(t *testing.T) {
	f := start(t, awssim.Options{})
	key := f.create(types.OriginTypeAwsKms)
	must[*kms.CreateAliasOutput](t)(f.kms.CreateAlias(t.Context(), &kms.CreateAliasInput{AliasName: aws.String("alias/taken"), TargetKeyId: key.KeyId}))
	id := *key.KeyId
	const missing = "01234567-89ab-cdef-0123-456789abcdef"
	arn := "arn:aws:kms:" + region + ":" + account + ":"
	long := strings.Repeat("v", 257)
	const one = "1 validation error detected: "
	for _, test := range []struct{ operation, body, code, message string }{
		{"DescribeKey", `{"KeyId":"` + missing + `"}`, "NotFoundException", "Key '" + arn + "key/" + missing + "' does not exist"},
		{"DescribeKey", `{"KeyId":"` + arn + "key/" + missing + `"}`, "NotFoundException", "Key '" + arn + "key/" + missing + "' does not exist"},
		{"DescribeKey", `{"KeyId":"mrk-0123456789abcdef0123456789abcdef"}`, "NotFoundException", "Key '" + arn + "key/mrk-0123456789abcdef0123456789abcdef' does not exist"},
		{"DescribeKey", `{"KeyId":"fake-key-id"}`, "NotFoundException", "Invalid keyId 'fake-key-id'"},
		{"DescribeKey", `{"KeyId":"0123456789abcdef0123456789abcdef"}`, "NotFoundException", "Invalid keyId '0123456789abcdef0123456789abcdef'"},
		{"DescribeKey", `{"KeyId":"mrk-fake-key-id"}`, "NotFoundException", "Invalid keyId 'mrk-fake-key-id'"},
		{"DescribeKey", `{"KeyId":"arn:aws:kms:us-west-2:` + account + `:key/` + id + `"}`, "NotFoundException", "Invalid arn us-west-2"},
		{"DescribeKey", `{"KeyId":"alias/none"}`, "NotFoundException", "Alias " + arn + "alias/none is not found."},
		{"DescribeKey", `{}`, "ValidationException", one + "Value null at 'keyId' failed to satisfy constraint: Member must not be null"},
		{"DescribeKey", `{"KeyId":""}`, "ValidationException", one + "Value '' at 'keyId' failed to satisfy constraint: Member must have length greater than or equal to 1"},
		{"EnableKey", `{"KeyId":"alias/taken"}`, "NotFoundException", "Invalid keyId alias/taken"},
		{"GetParametersForImport", `{"KeyId":"` + id + `","WrappingAlgorithm":"RSAES_OAEP_SHA_256","WrappingKeySpec":"RSA_2048"}`, "UnsupportedOperationException", *key.Arn + " origin is AWS_KMS which is not valid for this operation."},
		{"CreateAlias", `{"AliasName":"no-prefix","TargetKeyId":"` + id + `"}`, "ValidationException", `Alias must start with the prefix "alias/". Please see https://docs.aws.amazon.com/kms/latest/developerguide/kms-alias.html`},
		{"CreateAlias", `{"AliasName":"alias/taken","TargetKeyId":"` + id + `"}`, "AlreadyExistsException", "An alias with the name " + arn + "alias/taken already exists"},
		{"UpdateAlias", `{"AliasName":"alias/none","TargetKeyId":"` + id + `"}`, "NotFoundException", "Alias " + arn + "alias/none is not found."},
		{"UpdateAlias", `{"AliasName":"alias/aws/kms","TargetKeyId":"` + id + `"}`, "NotFoundException", "Alias " + arn + "alias/aws/kms is not found."},
		{"DeleteAlias", `{"AliasName":"no-prefix"}`, "ValidationException", `Alias must start with the prefix "alias/". Please see https://docs.aws.amazon.com/kms/latest/developerguide/kms-alias.html`},
		{"DeleteAlias", `{"AliasName":"alias/none"}`, "NotFoundException", "Alias " + arn + "alias/none is not found."},
		{"TagResource", `{"KeyId":"` + id + `","Tags":[{"TagKey":"a","TagValue":""},{"TagKey":"a","TagValue":""}]}`, "TagException", "Duplicate tag keys"},
		{"TagResource", `{"KeyId":"` + id + `","Tags":[{"TagKey":"AWS:a","TagValue":""}]}`, "TagException", "Tags beginning with aws: are reserved"},
		{"CreateKey", `{"Tags":[` + strings.TrimSuffix(manyTags(51), ",") + `]}`, "TagException", "Too many tags"},
		{"CreateKey", `{"Tags":[{"TagKey":"a","TagValue":"` + long + `"}]}`, "ValidationException", one + "Value '" + long + "' at 'tags.1.member.tagValue' failed to satisfy constraint: Member must have length less than or equal to 256"},
		{"CreateKey", `{"KeySpec":"HMAC_256"}`, "ValidationException", "You must specify a KeyUsage value for all KMS keys except for symmetric encryption keys."},
		{"CreateKey", `{"Policy":"{}"}`, "MalformedPolicyDocumentException", "Policy contains no statement."},
		{"Encrypt", `{"KeyId":"` + id + `","Plaintext":"` + strings.Repeat("AAAA", 1366) + `"}`, "ValidationException", one + "Value at 'plaintext' failed to satisfy constraint: Member must have length less than or equal to 4096"},
		{"Encrypt", `{"KeyId":"` + id + `","Plaintext":"AAAA","DryRun":true}`, "DryRunOperationException", "The request would have succeeded, but the DryRun option is set."},
		{"Decrypt", `{"CiphertextBlob":"AAAA"}`, "InvalidCiphertextException", ""},
		{"ListKeys", `{"Limit":0}`, "ValidationException", one + "Value '0' at 'limit' failed to satisfy constraint: Member must have value greater than or equal to 1"},
		{"UpdateAlias", `{}`, "ValidationException", "2 validation errors detected: Value null at 'aliasName' failed to satisfy constraint: Member must not be null; Value null at 'targetKeyId' failed to satisfy constraint: Member must not be null"},
		{"GetParametersForImport", `{"KeyId":"x","WrappingAlgorithm":"ROT13","WrappingKeySpec":"RSA_2048"}`, "ValidationException", one + "Value 'ROT13' at 'wrappingAlgorithm' failed to satisfy constraint: Member must satisfy enum value set: [RSAES_PKCS1_V1_5, RSAES_OAEP_SHA_1, RSAES_OAEP_SHA_256, RSA_AES_KEY_WRAP_SHA_1, RSA_AES_KEY_WRAP_SHA_256, SM2PKE]"},
		{"UntagResource", `{"KeyId":"` + id + `","TagKeys":["a","` + long + `"]}`, "ValidationException", one + "Value '[a, " + long + "]' at 'tagKeys' failed to satisfy constraint: Member must satisfy constraint: [Member must have length less than or equal to 128, Member must have length greater than or equal to 1]"},
		{"CreateGrant", `{"KeyId":"` + id + `","GranteePrincipal":"` + account + `","Operations":["Fly"]}`, "ValidationException", one + "Value '[Fly]' at 'operations' failed to satisfy constraint: Member must satisfy constraint: [Member must satisfy enum value set: [Decrypt, Encrypt, GenerateDataKey, GenerateDataKeyWithoutPlaintext, ReEncryptFrom, ReEncryptTo, Sign, Verify, GetPublicKey, CreateGrant, RetireGrant, DescribeKey, GenerateDataKeyPair, GenerateDataKeyPairWithoutPlaintext, GenerateMac, VerifyMac, DeriveSharedSecret]]"},
		{"ListGrants", `{"KeyId":"` + id + `","Limit":101}`, "ValidationException", one + "Value '101' at 'limit' failed to satisfy constraint: Member must have value less than or equal to 100"},
		{"PutKeyPolicy", `{"KeyId":"` + id + `","Policy":"\u0100"}`, "ValidationException", one + "Value '\u0100' at 'policy' failed to satisfy constraint: Member must satisfy regular expression pattern: [\\u0009\\u000A\\u000D\\u0020-\\u00FF]+"},
		{"GetKeyPolicy", `{"KeyId":"` + id + `","PolicyName":"a-b"}`, "ValidationException", one + `Value 'a-b' at 'policyName' failed to satisfy constraint: Member must satisfy regular expression pattern: [\w]+`},
		{"ListKeys", `{"Marker":"nonsense"}`, "InvalidMarkerException", "Invalid marker."},
		{"ListKeys", `{"Limit":"many"}`, "SerializationException", "class string can not be converted to int64"},
		{"ListKeys", `[]`, "SerializationException", "Start of structure or map found where not expected."},
		{"ListKeys", `{} {}`, "SerializationException", ""},
		{"Frobnicate", `{}`, "UnknownOperationException", ""},
	} {
		w := post(t, f.Sim, "kms", "TrentService."+test.operation, test.body)
		var got struct {
			Type    string `json:"__type"`
			Message string `json:"message"`
		}
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		if w.Code != http.StatusBadRequest || got.Type != test.code || got.Message != test.message {
			t.Errorf("%s %.80s: got %d %s %q\nwant %s %q", test.operation, test.body, w.Code, got.Type, got.Message, test.code, test.message)
		}
		if w.Header().Get("X-Amzn-RequestId") == "" || w.Header().Get("Date") == "" {
			t.Errorf("%s: headers %v", test.operation, w.Header())
		}
	}
}

func manyTags(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `{"TagKey":"k%d","TagValue":"v"},`, i)
	}
	return b.String()
}

// TestVoid checks that an operation without output has an empty body, and that
// times are numbers.
func TestVoid(t *testing.T) {
	f := start(t, awssim.Options{})
	id := *f.create(types.OriginTypeAwsKms).KeyId
	if w := post(t, f.Sim, "kms", "TrentService.DisableKey", `{"KeyId":"`+id+`"}`); w.Code != http.StatusOK || w.Body.Len() != 0 {
		t.Errorf("DisableKey answers %d %q", w.Code, w.Body)
	}
	var out struct{ KeyMetadata map[string]any }
	if err := json.Unmarshal(post(t, f.Sim, "kms", "TrentService.DescribeKey", `{"KeyId":"`+id+`"}`).Body.Bytes(), &out); err != nil {
		t.Fatal(err)
	}
	created, ok := out.KeyMetadata["CreationDate"].(float64)
	if !ok || time.Since(time.UnixMilli(int64(created*1000))) > time.Minute {
		t.Errorf("CreationDate is %v", out.KeyMetadata["CreationDate"])
	}
	// The whole record, as it was recorded of a key of AWS's own origin.
	delete(out.KeyMetadata, "CreationDate")
	delete(out.KeyMetadata, "CurrentKeyMaterialId")
	want := map[string]any{
		"AWSAccountId": account, "Arn": "arn:aws:kms:" + region + ":" + account + ":key/" + id, "CustomerMasterKeySpec": "SYMMETRIC_DEFAULT",
		"Description": "", "Enabled": false, "EncryptionAlgorithms": []any{"SYMMETRIC_DEFAULT"}, "KeyId": id, "KeyManager": "CUSTOMER",
		"KeySpec": "SYMMETRIC_DEFAULT", "KeyState": "Disabled", "KeyUsage": "ENCRYPT_DECRYPT", "MultiRegion": false, "Origin": "AWS_KMS",
	}
	if d := cmp.Diff(want, out.KeyMetadata); d != "" {
		t.Error(d)
	}
}

func TestAliases(t *testing.T) {
	f, ctx := start(t, awssim.Options{}), t.Context()
	first, second := f.create(types.OriginTypeAwsKms), f.create(types.OriginTypeExternal)
	must[*kms.CreateAliasOutput](t)(f.kms.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String("alias/app"), TargetKeyId: first.Arn}))
	for _, name := range []string{"alias/app", "arn:aws:kms:" + region + ":" + account + ":alias/app"} {
		if got := *f.describe(name).KeyId; got != *first.KeyId {
			t.Errorf("%s is %s", name, got)
		}
	}
	enc := must[*kms.EncryptOutput](t)(f.kms.Encrypt(ctx, &kms.EncryptInput{KeyId: aws.String("alias/app"), Plaintext: []byte("x")}))
	must[*kms.UpdateAliasOutput](t)(f.kms.UpdateAlias(ctx, &kms.UpdateAliasInput{AliasName: aws.String("alias/app"), TargetKeyId: second.KeyId}))
	if got := f.Alias(account, region, "alias/app"); got != *second.KeyId {
		t.Errorf("the alias is at %s", got)
	}
	_, err := f.kms.Decrypt(ctx, &kms.DecryptInput{KeyId: aws.String("alias/app"), CiphertextBlob: enc.CiphertextBlob})
	wantError(t, err, "IncorrectKeyException", "The key ID in the request does not identify a CMK that can perform this operation.")
	must[*kms.DecryptOutput](t)(f.kms.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: enc.CiphertextBlob}))

	hmac := must[*kms.CreateKeyOutput](t)(f.kms.CreateKey(ctx, &kms.CreateKeyInput{KeySpec: types.KeySpecHmac256, KeyUsage: types.KeyUsageTypeGenerateVerifyMac})).KeyMetadata
	_, err = f.kms.UpdateAlias(ctx, &kms.UpdateAliasInput{AliasName: aws.String("alias/app"), TargetKeyId: hmac.KeyId})
	wantCode(t, err, "ValidationException")
	signs := func(spec types.KeySpec) *string { return f.createAs(spec, types.KeyUsageTypeSignVerify, "").KeyId }
	must[*kms.CreateAliasOutput](t)(f.kms.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String("alias/signs"), TargetKeyId: signs(types.KeySpecEccNistP256)}))
	for _, to := range []types.KeySpec{types.KeySpecRsa2048, types.KeySpecEccNistEdwards25519} { // all asymmetric, and of one usage
		must[*kms.UpdateAliasOutput](t)(f.kms.UpdateAlias(ctx, &kms.UpdateAliasInput{AliasName: aws.String("alias/signs"), TargetKeyId: signs(to)}))
	}
	agrees := f.createAs(types.KeySpecEccNistP256, types.KeyUsageTypeKeyAgreement, "").KeyId
	encrypts := f.createAs(types.KeySpecRsa2048, types.KeyUsageTypeEncryptDecrypt, "").KeyId
	for name, target := range map[string]*string{"alias/signs": agrees, "alias/app": encrypts} { // of another usage, of another type
		_, err = f.kms.UpdateAlias(ctx, &kms.UpdateAliasInput{AliasName: &name, TargetKeyId: target})
		wantCode(t, err, "ValidationException")
	}
	for name, code := range map[string]string{
		"alias/": "InvalidAliasNameException", "alias/aws/mine": "InvalidAliasNameException", "alias/a:b": "ValidationException", "alias/a b": "ValidationException",
	} {
		_, err = f.kms.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: &name, TargetKeyId: first.KeyId})
		wantCode(t, err, code)
	}
	_, err = f.kms.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String("alias/b"), TargetKeyId: aws.String("alias/app")})
	wantCode(t, err, "ValidationException")

	for i := range 50 {
		must[*kms.CreateAliasOutput](t)(f.kms.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String(fmt.Sprintf("alias/many/%d", i)), TargetKeyId: first.KeyId}))
	}
	_, err = f.kms.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String("alias/b"), TargetKeyId: first.KeyId})
	wantCode(t, err, "LimitExceededException")
	_, err = f.kms.UpdateAlias(ctx, &kms.UpdateAliasInput{AliasName: aws.String("alias/app"), TargetKeyId: first.KeyId})
	wantCode(t, err, "LimitExceededException")

	pages, n := kms.NewListAliasesPaginator(f.kms, &kms.ListAliasesInput{KeyId: first.KeyId, Limit: aws.Int32(7)}), 0
	for pages.HasMorePages() {
		for _, a := range must[*kms.ListAliasesOutput](t)(pages.NextPage(ctx)).Aliases {
			n++
			if *a.TargetKeyId != *first.KeyId || *a.AliasArn != "arn:aws:kms:"+region+":"+account+":"+*a.AliasName || a.CreationDate == nil {
				t.Errorf("alias %+v", a)
			}
		}
	}
	if n != 50 {
		t.Errorf("%d aliases listed", n)
	}
	must[*kms.DeleteAliasOutput](t)(f.kms.DeleteAlias(ctx, &kms.DeleteAliasInput{AliasName: aws.String("alias/app")}))
	if got := f.Alias(account, region, "alias/app"); got != "" {
		t.Errorf("the deleted alias is at %s", got)
	}
}

func TestTagsAndPages(t *testing.T) {
	f, ctx := start(t, awssim.Options{}), t.Context()
	var tags []types.Tag
	want := make(map[string]string)
	for i := range 50 {
		name := fmt.Sprintf("k%02d", i)
		tags = append(tags, types.Tag{TagKey: &name, TagValue: aws.String("v")})
		want[name] = "v"
	}
	key := must[*kms.CreateKeyOutput](t)(f.kms.CreateKey(ctx, &kms.CreateKeyInput{Tags: tags})).KeyMetadata
	_, err := f.kms.TagResource(ctx, &kms.TagResourceInput{KeyId: key.KeyId, Tags: []types.Tag{{TagKey: aws.String("x"), TagValue: aws.String("")}}})
	wantError(t, err, "TagException", "Too many tags")
	must[*kms.TagResourceOutput](t)(f.kms.TagResource(ctx, &kms.TagResourceInput{KeyId: key.KeyId, Tags: []types.Tag{{TagKey: aws.String("k00"), TagValue: aws.String("other")}}}))
	must[*kms.UntagResourceOutput](t)(f.kms.UntagResource(ctx, &kms.UntagResourceInput{KeyId: key.KeyId, TagKeys: []string{"k01", "never there"}}))
	want["k00"] = "other"
	delete(want, "k01")

	got := make(map[string]string)
	pages := kms.NewListResourceTagsPaginator(f.kms, &kms.ListResourceTagsInput{KeyId: key.KeyId, Limit: aws.Int32(20)})
	for pages.HasMorePages() {
		for _, tag := range must[*kms.ListResourceTagsOutput](t)(pages.NextPage(ctx)).Tags {
			got[*tag.TagKey] = *tag.TagValue
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(want, f.Keys(account, region)[0].Tags); d != "" {
		t.Error(d)
	}

	ids := map[string]bool{*key.KeyId: true}
	for range 24 {
		ids[*f.create(types.OriginTypeAwsKms).KeyId] = true
	}
	keys := kms.NewListKeysPaginator(f.kms, &kms.ListKeysInput{Limit: aws.Int32(10)})
	for n := 0; keys.HasMorePages(); n++ {
		for _, k := range must[*kms.ListKeysOutput](t)(keys.NextPage(ctx)).Keys {
			if !ids[*k.KeyId] {
				t.Errorf("%s is listed twice or was never made", *k.KeyId)
			}
			delete(ids, *k.KeyId)
		}
	}
	if len(ids) != 0 {
		t.Errorf("not listed: %v", ids)
	}
}

func TestPolicies(t *testing.T) {
	f, ctx := start(t, awssim.Options{}), t.Context()
	key := f.create(types.OriginTypeAwsKms)
	got := must[*kms.GetKeyPolicyOutput](t)(f.kms.GetKeyPolicy(ctx, &kms.GetKeyPolicyInput{KeyId: key.KeyId}))
	var document any
	if err := json.Unmarshal([]byte(*got.Policy), &document); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"Version": "2012-10-17", "Id": "key-default-1", "Statement": []any{map[string]any{
		"Sid": "Enable IAM User Permissions", "Effect": "Allow", "Principal": map[string]any{"AWS": "arn:aws:iam::" + account + ":root"}, "Action": "kms:*", "Resource": "*",
	}}}
	if d := cmp.Diff(any(want), document); d != "" {
		t.Error(d)
	}

	policy := func(statements string) string { return `{"Version":"2012-10-17","Statement":` + statements + `}` }
	const root = `{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:root"},"Action":"kms:*","Resource":"*"}`
	const lockout = "The new key policy will not allow you to update the key policy in the future."
	const principal = "Policy contains a statement with one or more invalid principals."
	for _, test := range []struct{ name, policy, code, message string }{
		{"one statement", policy(root), "", ""},
		{"everybody", policy(`[{"Effect":"Allow","Principal":"*","Action":["kms:Put*"],"Resource":["*"]}]`), "", ""},
		{"the caller", policy(`[{"Effect":"Allow","Principal":{"AWS":["arn:aws:iam::111122223333:user/awssim"]},"Action":"kms:putkeypolicy","Resource":"*"}]`), "", ""},
		{"a service too", policy(`[` + root + `,{"Effect":"Allow","Principal":{"Service":"s3.amazonaws.com"},"Action":"kms:Decrypt","Resource":"*","Condition":{"Bool":{"a":"true"}}}]`), "", ""},
		{"statement without effect on anything", policy(`[` + root + `,{"Effect":"Allow","Principal":"*"}]`), "", ""},
		{"another role", policy(`[{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:role/other"},"Action":"kms:*","Resource":"*"}]`), "MalformedPolicyDocumentException", lockout},
		{"another account", policy(strings.ReplaceAll(`[`+root+`]`, account, "999999999999")), "MalformedPolicyDocumentException", lockout},
		{"other actions", policy(strings.ReplaceAll(`[`+root+`]`, "kms:*", "kms:Get*")), "MalformedPolicyDocumentException", lockout},
		{"denied", policy(`[` + root + `,{"Effect":"Deny","Principal":"*","Action":"kms:Put*","Resource":"*"}]`), "MalformedPolicyDocumentException", lockout},
		{"all but", policy(`[{"Effect":"Allow","Principal":"*","NotAction":"kms:PutKeyPolicy","Resource":"*"}]`), "MalformedPolicyDocumentException", lockout},
		{"deleted principal", policy(`[` + root + `,{"Effect":"Allow","Principal":{"AWS":"AIDAEXAMPLE0123456789"},"Action":"kms:Decrypt","Resource":"*"}]`), "MalformedPolicyDocumentException", principal},
		{"not JSON", `{`, "MalformedPolicyDocumentException", "Policy contains a JSON syntax error."},
		{"not a policy", `{"Statements":[]}`, "MalformedPolicyDocumentException", "Policy does not have the form of a key policy."},
		{"no principal", policy(`[{"Effect":"Allow","Action":"kms:*","Resource":"*"}]`), "MalformedPolicyDocumentException", "Policy contains a statement that does not have exactly one of Principal and NotPrincipal."},
		{"too long", policy(`[` + root + `]` + strings.Repeat(" ", 32768)), "LimitExceededException", "The key policy has 32910 bytes, the limit is 32768."},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := f.kms.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: key.KeyId, Policy: &test.policy})
			if test.code == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			wantError(t, err, test.code, test.message)
		})
	}
	other := policy(`[{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:role/other"},"Action":"kms:*","Resource":"*"}]`)
	must[*kms.PutKeyPolicyOutput](t)(f.kms.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: key.KeyId, Policy: &other, BypassPolicyLockoutSafetyCheck: true}))
	_, err := f.kms.CreateKey(ctx, &kms.CreateKeyInput{Policy: &other})
	wantError(t, err, "MalformedPolicyDocumentException", lockout)
	_, err = f.kms.GetKeyPolicy(ctx, &kms.GetKeyPolicyInput{KeyId: key.KeyId, PolicyName: aws.String("other")})
	wantCode(t, err, "NotFoundException")
}

func TestLastUsage(t *testing.T) {
	f, ctx := start(t, awssim.Options{}), t.Context()
	key := f.create(types.OriginTypeAwsKms)
	before := must[*kms.GetKeyLastUsageOutput](t)(f.kms.GetKeyLastUsage(ctx, &kms.GetKeyLastUsageInput{KeyId: key.KeyId}))
	if before.KeyLastUsage == nil || before.KeyLastUsage.Timestamp != nil {
		t.Errorf("a fresh key was used: %+v", before.KeyLastUsage)
	}
	must[*kms.GenerateDataKeyOutput](t)(f.kms.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: key.KeyId, NumberOfBytes: aws.Int32(5)}))
	after := must[*kms.GetKeyLastUsageOutput](t)(f.kms.GetKeyLastUsage(ctx, &kms.GetKeyLastUsageInput{KeyId: key.KeyId}))
	if u := after.KeyLastUsage; u == nil || u.Operation != types.KeyLastUsageTrackingOperationGenerateDataKey || time.Since(*u.Timestamp) > time.Minute {
		t.Errorf("last usage is %+v", after.KeyLastUsage)
	}
	if !after.TrackingStartDate.Equal(*after.KeyCreationDate) {
		t.Errorf("a key of %v is tracked from %v", after.KeyCreationDate, after.TrackingStartDate)
	}

	// A key that is older than the tracking: what it did before is not known.
	f = start(t, awssim.Options{UsageTrackedFrom: time.Now().Add(time.Hour)})
	key = f.create(types.OriginTypeAwsKms)
	use := func() *kms.GetKeyLastUsageOutput {
		must[*kms.GenerateDataKeyOutput](t)(f.kms.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: key.KeyId, NumberOfBytes: aws.Int32(5)}))
		return must[*kms.GetKeyLastUsageOutput](t)(f.kms.GetKeyLastUsage(ctx, &kms.GetKeyLastUsageInput{KeyId: key.KeyId}))
	}
	if got := use(); got.KeyLastUsage.Timestamp != nil || !got.TrackingStartDate.After(*got.KeyCreationDate) {
		t.Errorf("before the tracking: %+v, from %v on", got.KeyLastUsage, got.TrackingStartDate)
	}
	f.Advance(2 * time.Hour)
	if got := use(); got.KeyLastUsage.Timestamp == nil || !got.TrackingStartDate.After(*got.KeyCreationDate) {
		t.Errorf("since the tracking: %+v, from %v on", got.KeyLastUsage, got.TrackingStartDate)
	}
}

func TestReEncrypt(t *testing.T) {
	f, ctx := start(t, awssim.Options{}), t.Context()
	from, to := f.create(types.OriginTypeAwsKms), f.create(types.OriginTypeAwsKms)
	enc := must[*kms.EncryptOutput](t)(f.kms.Encrypt(ctx, &kms.EncryptInput{KeyId: from.KeyId, Plaintext: []byte("x")}))
	again := must[*kms.ReEncryptOutput](t)(f.kms.ReEncrypt(ctx, &kms.ReEncryptInput{CiphertextBlob: enc.CiphertextBlob, DestinationKeyId: to.KeyId}))
	dec := must[*kms.DecryptOutput](t)(f.kms.Decrypt(ctx, &kms.DecryptInput{KeyId: to.KeyId, CiphertextBlob: again.CiphertextBlob}))
	if string(dec.Plaintext) != "x" || *again.SourceKeyId != *from.Arn {
		t.Errorf("got %q from %s", dec.Plaintext, *again.SourceKeyId)
	}
}

// TestAccountsAndRegions checks that nothing leaks from one to the other.
func TestAccountsAndRegions(t *testing.T) {
	f := start(t, awssim.Options{Credentials: []awssim.Credential{
		{AccessKeyID: "AKIAONE", SecretAccessKey: "one", Account: "111111111111"},
		{AccessKeyID: "AKIATWO", SecretAccessKey: "two", Account: "222222222222"},
	}})
	one, two := f.with("AKIAONE", "one", "", region), f.with("AKIATWO", "two", "", region)
	key := one.create(types.OriginTypeAwsKms)
	enc := must[*kms.EncryptOutput](t)(one.kms.Encrypt(t.Context(), &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("x")}))
	for name, other := range map[string]*fixture{"account": two, "Region": f.with("AKIAONE", "one", "", "us-east-1")} {
		_, err := other.kms.DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: key.KeyId})
		wantCode(t, err, "NotFoundException")
		_, err = other.kms.Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: enc.CiphertextBlob})
		wantCode(t, err, "AccessDeniedException")
		if keys := must[*kms.ListKeysOutput](t)(other.kms.ListKeys(t.Context(), &kms.ListKeysInput{})).Keys; len(keys) != 0 {
			t.Errorf("another %s sees %d keys", name, len(keys))
		}
	}
	_, err := two.kms.DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: key.Arn})
	wantCode(t, err, "AccessDeniedException")
	china := f.with("AKIAONE", "one", "", "cn-north-1").create(types.OriginTypeAwsKms)
	if !strings.HasPrefix(*china.Arn, "arn:aws-cn:kms:cn-north-1:111111111111:key/") {
		t.Errorf("ARN %s", *china.Arn)
	}
}

// TestConcurrent is for the race detector, and checks that of many who create
// one alias one wins.
func TestConcurrent(t *testing.T) {
	f, ctx := start(t, awssim.Options{}), t.Context()
	var wg sync.WaitGroup
	won := make(chan string, 8)
	for range cap(won) {
		wg.Go(func() {
			key, err := f.kms.CreateKey(ctx, &kms.CreateKeyInput{Origin: types.OriginTypeExternal})
			if err != nil {
				t.Error(err)
				return
			}
			id := key.KeyMetadata.KeyId
			if _, err := f.kms.GetParametersForImport(ctx, &kms.GetParametersForImportInput{KeyId: id, WrappingAlgorithm: types.AlgorithmSpecRsaesOaepSha256, WrappingKeySpec: types.WrappingKeySpecRsa2048}); err != nil {
				t.Error(err)
			}
			if _, err := f.kms.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String("alias/one"), TargetKeyId: id}); err == nil {
				won <- *id
			}
			f.Keys(account, region)
			f.Requests()
		})
	}
	wg.Wait()
	close(won)
	if id := <-won; len(won) != 0 || f.Alias(account, region, "alias/one") != id {
		t.Errorf("%d more winners", len(won))
	}
	if n := f.Count("CreateAlias"); n != 8 {
		t.Errorf("%d calls counted", n)
	}
}
