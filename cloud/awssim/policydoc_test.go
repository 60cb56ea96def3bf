package awssim_test

import (
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"byokd/cloud/awssim"
)

// TestPolicyIsRewritten puts documents and reads them back: KMS keeps what they
// mean, not how they were written.
func TestPolicyIsRewritten(t *testing.T) {
	f, ctx := start(t, awssim.Options{}), t.Context()
	key := f.create(types.OriginTypeExternal)
	put := `{"Statement":{"Resource":["*"],"Action":["kms:*"],"Principal":{"AWS":["111122223333"]},"Effect":"Allow","Sid":"a"},
		"Id":"x","Version":"2012-10-17"}`
	must[*kms.PutKeyPolicyOutput](t)(f.kms.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: key.KeyId, Policy: &put}))
	const want = `{
  "Version" : "2012-10-17",
  "Id" : "x",
  "Statement" : [ {
    "Sid" : "a",
    "Effect" : "Allow",
    "Principal" : {
      "AWS" : "arn:aws:iam::111122223333:root"
    },
    "Action" : "kms:*",
    "Resource" : "*"
  } ]
}`
	if got := f.policy(*key.KeyId); got != want {
		t.Errorf("got %s", got)
	}

	put = `{"Version":"2012-10-17","Statement":[
		{"Effect":"Allow","Principal":{"AWS":["111122223333","arn:aws:iam::111122223333:role/app"],"Service":["logs.amazonaws.com"]},"Action":["kms:*"],"Resource":["*"]},
		{"Effect":"Deny","Principal":"*","NotAction":["kms:PutKeyPolicy","kms:Describe*"],"Resource":"*",
		 "Condition":{"Bool":{"aws:SecureTransport":false},"StringEquals":{"aws:PrincipalTag/a<b":["x","y"]}}}]}`
	must[*kms.PutKeyPolicyOutput](t)(f.kms.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: key.KeyId, Policy: &put}))
	got := f.policy(*key.KeyId)
	for _, part := range []string{
		`"AWS" : [ "arn:aws:iam::111122223333:root", "arn:aws:iam::111122223333:role/app" ],`,
		`"Service" : "logs.amazonaws.com"`,
		"  }, {\n    \"Effect\" : \"Deny\",\n    \"Principal\" : {\n      \"AWS\" : \"*\"\n    },",
		`"NotAction" : [ "kms:PutKeyPolicy", "kms:Describe*" ],`,
		`"aws:SecureTransport" : "false"`,
		`"aws:PrincipalTag/a<b" : [ "x", "y" ]`,
	} {
		if !strings.Contains(got, part) {
			t.Errorf("%s is missing in %s", part, got)
		}
	}
	// What KMS gave can be put again.
	must[*kms.PutKeyPolicyOutput](t)(f.kms.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: key.KeyId, Policy: &got}))
	if again := f.policy(*key.KeyId); again != got {
		t.Errorf("put again it became %s", again)
	}
}

// TestDeletedPrincipal deletes a role and a user that a key policy names.
func TestDeletedPrincipal(t *testing.T) {
	const role = "arn:aws:iam::111122223333:role/app"
	f, ctx := start(t, awssim.Options{}), t.Context()
	key := f.create(types.OriginTypeExternal)
	put := `{"Version":"2012-10-17","Statement":[
		{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:root"},"Action":"kms:*","Resource":"*"},
		{"Effect":"Allow","Principal":{"AWS":["` + role + `","arn:aws:iam::111122223333:user/kept"]},"Action":"kms:Decrypt","Resource":"*"}]}`
	must[*kms.PutKeyPolicyOutput](t)(f.kms.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: key.KeyId, Policy: &put}))
	id := f.DeletePrincipal(role)
	if !strings.HasPrefix(id, "AROA") || len(id) != 21 {
		t.Errorf("the unique ID of a role is %q", id)
	}
	got := f.policy(*key.KeyId)
	if !strings.Contains(got, `"AWS" : [ "`+id+`", "arn:aws:iam::111122223333:user/kept" ]`) || strings.Contains(got, role) {
		t.Errorf("the policy is %s", got)
	}
	for _, document := range []string{got, put} {
		_, err := f.kms.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: key.KeyId, Policy: aws.String(document)})
		wantError(t, err, "MalformedPolicyDocumentException", "Policy contains a statement with one or more invalid principals.")
	}

	// A user's access key is refused, and nobody else's.
	f = start(t, awssim.Options{Credentials: []awssim.Credential{
		{AccessKeyID: "AKIAEXAMPLE", SecretAccessKey: "secret", Account: account},
	}})
	if id := f.DeletePrincipal("arn:aws:iam::111122223333:user/awssim"); !strings.HasPrefix(id, "AIDA") {
		t.Errorf("the unique ID of a user is %q", id)
	}
	_, err := f.kms.ListKeys(ctx, &kms.ListKeysInput{})
	wantCode(t, err, "UnrecognizedClientException")
}

// policy returns what GetKeyPolicy says.
func (f *fixture) policy(keyID string) string {
	f.t.Helper()
	return *must[*kms.GetKeyPolicyOutput](f.t)(f.kms.GetKeyPolicy(f.t.Context(), &kms.GetKeyPolicyInput{KeyId: &keyID})).Policy
}
