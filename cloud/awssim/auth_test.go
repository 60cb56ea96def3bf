package awssim_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"byokd/cloud/awssim"
)

var known = awssim.Options{
	Credentials: []awssim.Credential{{AccessKeyID: "AKIAKNOWN", SecretAccessKey: "right", Account: "123456789012", ARN: "arn:aws:iam::123456789012:user/ann"}},
	Roles:       []awssim.Role{{ARN: "arn:aws:iam::210987654321:role/ops/byok", ExternalID: "shared"}},
}

func TestSignatures(t *testing.T) {
	f := start(t, known)
	must[*kms.ListKeysOutput](t)(f.with("AKIAKNOWN", "right", "", region).kms.ListKeys(t.Context(), &kms.ListKeysInput{}))
	for _, test := range []struct{ name, accessKey, secret, token, code, stsCode string }{
		{"wrong secret", "AKIAKNOWN", "wrong", "", "InvalidSignatureException", "SignatureDoesNotMatch"},
		{"unknown key", "AKIAUNKNOWN", "right", "", "UnrecognizedClientException", "InvalidClientTokenId"},
		{"token of nobody", "AKIAKNOWN", "right", "token", "UnrecognizedClientException", "InvalidClientTokenId"},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := f.with(test.accessKey, test.secret, test.token, region)
			_, err := g.kms.ListKeys(t.Context(), &kms.ListKeysInput{})
			wantCode(t, err, test.code)
			_, err = g.sts.GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
			wantCode(t, err, test.stsCode)
		})
	}
	if n := len(f.Requests()); n != 1 {
		t.Errorf("%d requests got through", n)
	}

	// What the SDK would not send.
	for _, test := range []struct {
		name   string
		at     time.Time
		scope  string
		change func(*http.Request)
		code   string
	}{
		{"good", time.Now(), "kms", func(*http.Request) {}, ""},
		{"old", time.Now().Add(-6 * time.Minute), "kms", func(*http.Request) {}, "Signature expired"},
		{"early", time.Now().Add(6 * time.Minute), "kms", func(*http.Request) {}, "Signature not yet current"},
		{"another service", time.Now(), "events", func(*http.Request) {}, "Credential should be scoped to correct service: 'kms'."},
		{"another target", time.Now(), "kms", func(r *http.Request) { r.Header.Set("X-Amz-Target", "TrentService.DescribeKey") }, "does not match the signature you provided"},
		{"a header that is not signed", time.Now(), "kms", func(r *http.Request) { r.Header.Set("X-Amz-Security", "x") }, "not signed: x-amz-security"},
		{"a target that is not signed", time.Now(), "kms", func(r *http.Request) {
			r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), ";x-amz-target", "", 1))
		}, "not signed: x-amz-target"},
		{"another body", time.Now(), "kms", func(r *http.Request) { r.Body = http.NoBody }, "does not match the signature you provided"},
		{"no signature", time.Now(), "kms", func(r *http.Request) { r.Header.Del("Authorization") }, "MissingAuthenticationTokenException"},
		{"another scheme", time.Now(), "kms", func(r *http.Request) { r.Header.Set("Authorization", "Basic eDp5") }, "IncompleteSignatureException"},
		{"no date", time.Now(), "kms", func(r *http.Request) { r.Header.Del("X-Amz-Date") }, "IncompleteSignatureException"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodPost, "http://127.0.0.1/", strings.NewReader(`{"Limit":5}`))
			r.Header.Set("X-Amz-Target", "TrentService.ListKeys")
			err := v4.NewSigner().SignHTTP(t.Context(), aws.Credentials{AccessKeyID: "AKIAKNOWN", SecretAccessKey: "right"}, r, hexSHA256([]byte(`{"Limit":5}`)), test.scope, region, test.at)
			if err != nil {
				t.Fatal(err)
			}
			test.change(r)
			w := httptest.NewRecorder()
			f.ServeHTTP(w, r)
			if (w.Code == http.StatusOK) != (test.code == "") || !strings.Contains(w.Body.String(), test.code) {
				t.Errorf("got %d %s, want %q", w.Code, w.Body, test.code)
			}
		})
	}

	// The clock of the simulator may be elsewhere.
	f.Advance(24 * time.Hour)
	must[*kms.ListKeysOutput](t)(f.with("AKIAKNOWN", "right", "", region).kms.ListKeys(t.Context(), &kms.ListKeysInput{}))
}

// TestWrongRegion signs for one Region and sends to the endpoint of another.
func TestWrongRegion(t *testing.T) {
	o := known
	o.Regions = []string{"eu-central-1", "eu-west-1"}
	f := start(t, o)
	must[*kms.ListKeysOutput](t)(f.with("AKIAKNOWN", "right", "", "eu-west-1").kms.ListKeys(t.Context(), &kms.ListKeysInput{}))
	other := f.with("AKIAKNOWN", "right", "", "us-east-1")
	const message = "Credential should be scoped to a valid region, not 'us-east-1'."
	_, err := other.kms.ListKeys(t.Context(), &kms.ListKeysInput{})
	wantError(t, err, "InvalidSignatureException", message)
	_, err = other.events.DescribeEventBus(t.Context(), &eventbridge.DescribeEventBusInput{})
	wantError(t, err, "InvalidSignatureException", message)
	_, err = other.sts.GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
	wantError(t, err, "SignatureDoesNotMatch", message)

	// The name by which the simulator is called is that of an endpoint.
	anywhere := start(t, known)
	for _, test := range []struct{ host, region, service, message string }{
		{"kms.eu-central-1.localhost:4599", "eu-central-1", "kms", ""},
		{"kms-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1", "kms", ""},
		{"vpce-1.kms.eu-central-1.vpce.amazonaws.com", "eu-central-1", "kms", ""},
		{"localhost:4599", "us-east-1", "kms", ""},
		{"kms.eu-central-1.localhost:4599", "us-east-1", "kms", message},
		{"kms-fips.eu-central-1.amazonaws.com", "us-east-1", "kms", message},
		{"vpce-1.kms.eu-central-1.vpce.amazonaws.com", "us-east-1", "kms", message},
		{"kms.eu-central-1.localhost", "us-east-1", "events", message + " Credential should be scoped to correct service: 'kms'."},
	} {
		r := httptest.NewRequest(http.MethodPost, "http://"+test.host+"/", strings.NewReader("{}"))
		r.Header.Set("X-Amz-Target", "TrentService.ListKeys")
		if err := v4.NewSigner().SignHTTP(t.Context(), aws.Credentials{AccessKeyID: "AKIAKNOWN", SecretAccessKey: "right"}, r, hexSHA256([]byte("{}")), test.service, test.region, time.Now()); err != nil {
			t.Fatal(err)
		}
		w := httptest.NewRecorder()
		anywhere.ServeHTTP(w, r)
		if (w.Code == http.StatusOK) != (test.message == "") || test.message != "" && !strings.Contains(w.Body.String(), test.message) {
			t.Errorf("%s, signed for %s of %s: %d %s", test.host, test.service, test.region, w.Code, w.Body)
		}
	}
}

func TestSTS(t *testing.T) {
	f, ctx := start(t, known).with("AKIAKNOWN", "right", "", region), t.Context()
	who := must[*sts.GetCallerIdentityOutput](t)(f.sts.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{}))
	if *who.Account != "123456789012" || *who.Arn != "arn:aws:iam::123456789012:user/ann" || !strings.HasPrefix(*who.UserId, "AIDA") {
		t.Errorf("caller is %s %s %s", *who.Account, *who.Arn, *who.UserId)
	}
	role, name := aws.String("arn:aws:iam::210987654321:role/ops/byok"), aws.String("byokd")
	for _, in := range []*sts.AssumeRoleInput{
		{RoleArn: role, RoleSessionName: name},
		{RoleArn: role, RoleSessionName: name, ExternalId: aws.String("other")},
		{RoleArn: aws.String("arn:aws:iam::210987654321:role/other"), RoleSessionName: name, ExternalId: aws.String("shared")},
	} {
		_, err := f.sts.AssumeRole(ctx, in)
		wantError(t, err, "AccessDenied", "User: arn:aws:iam::123456789012:user/ann is not authorized to perform: sts:AssumeRole on resource: "+*in.RoleArn)
	}
	_, err := f.sts.AssumeRole(ctx, &sts.AssumeRoleInput{RoleArn: role, RoleSessionName: aws.String("x")})
	wantError(t, err, "ValidationError", "1 validation error detected: Value 'x' at 'roleSessionName' failed to satisfy constraint: Member must have length greater than or equal to 2")

	out := must[*sts.AssumeRoleOutput](t)(f.sts.AssumeRole(ctx, &sts.AssumeRoleInput{
		RoleArn: role, RoleSessionName: name, ExternalId: aws.String("shared"), DurationSeconds: aws.Int32(900),
	}))
	c := out.Credentials
	g := f.with(*c.AccessKeyId, *c.SecretAccessKey, *c.SessionToken, region)
	who = must[*sts.GetCallerIdentityOutput](t)(g.sts.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{}))
	if *who.Arn != "arn:aws:sts::210987654321:assumed-role/byok/byokd" || *who.Arn != *out.AssumedRoleUser.Arn || *who.Account != "210987654321" {
		t.Errorf("the session is %s of %s", *who.Arn, *who.Account)
	}
	key := must[*kms.CreateKeyOutput](t)(g.kms.CreateKey(ctx, &kms.CreateKeyInput{
		Policy: aws.String(`{"Statement":{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::210987654321:role/ops/byok"},"Action":"kms:*","Resource":"*"}}`),
	})).KeyMetadata
	if *key.AWSAccountId != "210987654321" {
		t.Errorf("the key is in account %s", *key.AWSAccountId)
	}
	_, err = f.with(*c.AccessKeyId, "wrong", *c.SessionToken, region).kms.ListKeys(ctx, &kms.ListKeysInput{})
	wantCode(t, err, "InvalidSignatureException")
	_, err = f.with(*c.AccessKeyId, *c.SecretAccessKey, "", region).kms.ListKeys(ctx, &kms.ListKeysInput{})
	wantCode(t, err, "UnrecognizedClientException")
	f.Advance(15 * time.Minute)
	_, err = g.kms.ListKeys(ctx, &kms.ListKeysInput{})
	wantCode(t, err, "ExpiredTokenException")
	_, err = g.sts.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
	wantCode(t, err, "ExpiredToken")
}
