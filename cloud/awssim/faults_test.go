package awssim_test

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/smithy-go"

	"byokd/cloud/awssim"
)

// TestFaults checks of each fault, before and after the effect, what the
// client sees and whether a key was made.
func TestFaults(t *testing.T) {
	for _, test := range []struct {
		name   string
		fault  awssim.Fault
		code   string // empty: no answer
		status int
		text   string
	}{
		{"throttled", awssim.Fault{Code: "ThrottlingException"}, "ThrottlingException", 400, "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls."},
		{"denied", awssim.Fault{Code: "AccessDeniedException"}, "AccessDeniedException", 400, "User: arn:aws:iam::111122223333:user/awssim is not authorized to perform: kms:CreateKey on resource: *"},
		{"internal", awssim.Fault{Code: "KMSInternalException"}, "KMSInternalException", 500, ""},
		{"unavailable", awssim.Fault{Code: "Whatever", Message: "text", Status: 503, Delay: time.Millisecond}, "Whatever", 503, "text"},
		{"dropped", awssim.Fault{Drop: true}, "", 0, ""},
		{"hanging", awssim.Fault{Hang: true}, "", 0, ""},
		{"slow", awssim.Fault{Delay: time.Hour}, "", 0, ""},
	} {
		for _, after := range []bool{false, true} {
			name := test.name + " before"
			if after {
				name = test.name + " after"
			}
			t.Run(name, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				hook := func(r awssim.Request) *awssim.Fault {
					if r.Operation != "CreateKey" || r.Service != "kms" || r.Region != region || r.Account != account || r.N != 1 {
						return nil
					}
					if test.fault.Hang || test.fault.Delay == time.Hour {
						cancel()
					}
					return &test.fault
				}
				o := awssim.Options{Before: hook}
				if after {
					o = awssim.Options{After: hook}
				}
				f := start(t, o)
				_, err := f.kms.CreateKey(ctx, &kms.CreateKeyInput{})
				if err == nil {
					t.Fatal("the call succeeded")
				}
				if test.code != "" {
					wantError(t, err, test.code, test.text)
					if e, ok := errors.AsType[*awshttp.ResponseError](err); !ok || e.HTTPStatusCode() != test.status || e.ServiceRequestID() == "" {
						t.Errorf("got %v, want status %d", err, test.status)
					}
				} else if _, answered := errors.AsType[smithy.APIError](err); answered {
					t.Errorf("got an answer: %v", err)
				}
				want := 0
				if after {
					want = 1
				}
				if n := len(f.Keys(account, region)); n != want {
					t.Errorf("%d keys were made, want %d", n, want)
				}
				must[*kms.CreateKeyOutput](t)(f.kms.CreateKey(t.Context(), &kms.CreateKeyInput{}))
			})
		}
	}
}

func TestRequests(t *testing.T) {
	f := start(t, awssim.Options{})
	key, _ := f.imported()
	_, err := f.kms.EnableKey(t.Context(), &kms.EnableKeyInput{KeyId: aws.String("nonsense")})
	wantCode(t, err, "NotFoundException")
	var got []string
	for i, r := range f.Requests() {
		got = append(got, strings.ReplaceAll(strings.TrimSpace(r.Operation+" "+r.KeyID+" "+r.Code), *key.KeyId, "KEY"))
		if r.N != i+1 || r.AccessKey != "AKIAEXAMPLE" || r.Time.IsZero() {
			t.Errorf("request %+v", r)
		}
	}
	want := "CreateKey; GetParametersForImport KEY; ImportKeyMaterial KEY; DescribeKey KEY; EnableKey nonsense NotFoundException"
	if got := strings.Join(got, "; "); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// FuzzHandler sends anything as body, target and authorization to the handler.
// It must not panic, and what it answers must be of the protocol.
func FuzzHandler(f *testing.F) {
	sim := awssim.New(awssim.Options{Pairs: pairs, IAM: true, Credentials: []awssim.Credential{
		{AccessKeyID: "AKIA", SecretAccessKey: "s", Account: account, Policy: json.RawMessage(`{"Statement":{"Effect":"Allow","Action":"*","Resource":"*"}}`)},
	}})
	for _, operation := range []string{"CreateKey", "ImportKeyMaterial", "Decrypt", "PutKeyPolicy", "ListKeys"} {
		f.Add("TrentService."+operation, "kms", "", `{"KeyId":"alias/x","Limit":1,"Policy":"{}","CiphertextBlob":"AQAA","ImportToken":"AQ==","EncryptedKeyMaterial":"AA==","ValidTo":1e300}`)
	}
	f.Add("AWSEvents.PutEvents", "events", "", `{"Entries":[{"Source":"a","DetailType":"b","Detail":"{}","Time":1}]}`)
	f.Add("AWSEvents.PutRule", "events", "", `{"Name":"r","EventPattern":"{\"a\":[{\"numeric\":[\">\",1]},{\"anything-but\":{\"prefix\":\"x\"}}],\"$or\":[{\"b\":[1]},{\"c\":[null]}]}"}`)
	f.Add("AWSEvents.PutTargets", "events", "", `{"Rule":"r","Targets":[{"Id":"a","Arn":"arn:x","InputTransformer":{"InputPathsMap":{"a":"$.detail.b[0]"},"InputTemplate":"<a>"}}]}`)
	f.Add("AWSEvents.TestEventPattern", "events", "", `{"EventPattern":"{\"a\":{\"b\":[{\"exists\":false}]}}","Event":"{}"}`)
	f.Add("TrentService.CreateGrant", "kms", "", `{"KeyId":"x","GranteePrincipal":"arn:aws:iam::111122223333:root","Operations":["Decrypt"],"Constraints":{"SourceArn":"x"}}`)
	f.Add("TrentService.Sign", "kms", "", `{"KeyId":"x","Message":"AA==","SigningAlgorithm":"ECDSA_SHA_256"}`)
	f.Add("TrentService.ReplicateKey", "kms", "", `{"KeyId":"mrk-0123456789abcdef0123456789abcdef","ReplicaRegion":"eu-west-1"}`)
	f.Add("ResourceGroupsTaggingAPI_20170126.GetResources", "tagging", "", `{"TagFilters":[{}]}`)
	f.Add("", "sts", "", "Action=AssumeRole&RoleArn=arn:aws:iam::111122223333:role/x&RoleSessionName=ab&DurationSeconds=x")
	f.Add("", "sts", "", "Action=%zz")
	f.Add("TrentService.ListKeys", "kms", "AWS4-HMAC-SHA256 Credential=a/b/c/d/aws4_request, SignedHeaders=host, Signature=0", "{}")
	f.Fuzz(func(t *testing.T, target, service, authorization, body string) {
		r := httptest.NewRequest(http.MethodPost, "http://127.0.0.1/", strings.NewReader(body))
		r.Header["X-Amz-Target"] = []string{target}
		if service == "sts" {
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		if err := v4.NewSigner().SignHTTP(t.Context(), aws.Credentials{AccessKeyID: "AKIA", SecretAccessKey: "s"}, r, hexSHA256([]byte(body)), service, region, time.Now()); err != nil {
			t.Fatal(err)
		}
		if authorization != "" {
			r.Header["Authorization"] = []string{authorization}
		}
		w := httptest.NewRecorder()
		sim.ServeHTTP(w, r)
		if w.Header().Get("X-Amzn-RequestId") == "" || w.Header().Get("Date") == "" {
			t.Fatalf("headers %v", w.Header())
		}
		switch contentType := w.Header().Get("Content-Type"); {
		case contentType == "text/xml":
			if err := xml.Unmarshal(w.Body.Bytes(), new(struct{})); err != nil {
				t.Fatalf("answer %q: %v", w.Body, err)
			}
		case contentType != "application/x-amz-json-1.1":
			t.Fatalf("content type %q", contentType)
		case w.Code == http.StatusOK && w.Body.Len() == 0: // an operation without output
		default:
			var answer map[string]any
			if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
				t.Fatalf("answer %q: %v", w.Body, err)
			}
			if code, _ := answer["__type"].(string); w.Code != http.StatusOK && (w.Code < 400 || code == "" || code == "InternalFailure") {
				t.Fatalf("answer %d %s", w.Code, w.Body)
			}
		}
	})
}
