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

// fuzzed has one of each that requests can be about, so that fuzzing gets beyond
// what does not exist: in bodies, names stand for what was made.
func fuzzed(f *testing.F) (sim *awssim.Sim, names *strings.Replacer) {
	sim = awssim.New(awssim.Options{Pairs: pairs, IAM: true, Quotas: &awssim.Quotas{PerSecond: map[string]float64{"kms:GetParametersForImport": 0, "kms:CreateKey": 0}},
		RotationTime: time.Millisecond, KMSEvents: true, Credentials: []awssim.Credential{
			{AccessKeyID: "AKIA", SecretAccessKey: "s", Account: account, Policy: json.RawMessage(`{"Statement":{"Effect":"Allow","Action":"*","Resource":"*"}}`)},
		}})
	ask := func(target, service, body string) (answer map[string]any) {
		w := sign(f, sim, target, service, "", body)
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || w.Code != http.StatusOK {
			f.Fatalf("%s: %d %s", target, w.Code, w.Body)
		}
		return answer
	}
	var old []string
	add := func(name string, value any) { old = append(old, name, value.(string)) }
	for name, about := range map[string]string{
		"$AES": `{}`, "$MULTI": `{"MultiRegion":true}`, "$RSA": `{"KeySpec":"RSA_2048","KeyUsage":"SIGN_VERIFY"}`, "$ECC": `{"KeySpec":"ECC_NIST_P256","KeyUsage":"KEY_AGREEMENT"}`,
		"$MAC": `{"KeySpec":"HMAC_256","KeyUsage":"GENERATE_VERIFY_MAC"}`, "$IMPORT": `{"Origin":"EXTERNAL"}`,
	} {
		add(name, ask("TrentService.CreateKey", "kms", about)["KeyMetadata"].(map[string]any)["KeyId"])
	}
	names = strings.NewReplacer(old...)
	add("$BLOB", ask("TrentService.Encrypt", "kms", names.Replace(`{"KeyId":"$AES","Plaintext":"AA=="}`))["CiphertextBlob"])
	add("$TOKEN", ask("TrentService.GetParametersForImport", "kms", names.Replace(`{"KeyId":"$IMPORT","WrappingAlgorithm":"RSAES_OAEP_SHA_256","WrappingKeySpec":"RSA_2048"}`))["ImportToken"])
	add("$GRANT", ask("TrentService.CreateGrant", "kms", names.Replace(`{"KeyId":"$AES","GranteePrincipal":"arn:aws:iam::111122223333:root","Operations":["Decrypt"]}`))["GrantId"])
	add("$SPKI", ask("TrentService.GetPublicKey", "kms", names.Replace(`{"KeyId":"$ECC"}`))["PublicKey"])
	return sim, strings.NewReplacer(old...)
}

// sign sends a signed request straight to the handler.
func sign(tb testing.TB, sim http.Handler, target, service, authorization, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, "http://127.0.0.1/", strings.NewReader(body))
	r.Header["X-Amz-Target"] = []string{target}
	if service == "sts" {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if err := v4.NewSigner().SignHTTP(tb.Context(), aws.Credentials{AccessKeyID: "AKIA", SecretAccessKey: "s"}, r, hexSHA256([]byte(body)), service, region, time.Now()); err != nil {
		tb.Fatal(err)
	}
	if authorization != "" {
		r.Header["Authorization"] = []string{authorization}
	}
	w := httptest.NewRecorder()
	sim.ServeHTTP(w, r)
	return w
}

// FuzzHandler sends anything as body, target and authorization to the handler.
// It must not panic, and what it answers must be of the protocol.
func FuzzHandler(f *testing.F) {
	sim, names := fuzzed(f)
	for _, operation := range []string{"CreateKey", "ImportKeyMaterial", "Decrypt", "PutKeyPolicy", "ListKeys"} {
		f.Add("TrentService."+operation, "kms", "", `{"KeyId":"alias/x","Limit":1,"Policy":"{}","CiphertextBlob":"AQAA","ImportToken":"AQ==","EncryptedKeyMaterial":"AA==","ValidTo":1e300}`)
	}
	for operation, body := range map[string]string{
		"ImportKeyMaterial":         `{"KeyId":"$IMPORT","ImportToken":"$TOKEN","EncryptedKeyMaterial":"AA==","ExpirationModel":"KEY_MATERIAL_EXPIRES","ValidTo":1,"ImportType":"NEW_KEY_MATERIAL"}`,
		"DeleteImportedKeyMaterial": `{"KeyId":"$IMPORT","KeyMaterialId":"0"}`, "GetParametersForImport": `{"KeyId":"$IMPORT","WrappingAlgorithm":"RSA_AES_KEY_WRAP_SHA_1","WrappingKeySpec":"RSA_2048"}`,
		"PutKeyPolicy": `{"KeyId":"$AES","Policy":"{\"Version\":\"2012-10-17\",\"Statement\":{\"Effect\":\"Allow\",\"Principal\":{\"AWS\":[\"111122223333\"]},\"Action\":[\"kms:*\"],\"Resource\":\"*\",\"Condition\":{\"Bool\":{\"a\":true}}}}"}`,
		"Decrypt":      `{"CiphertextBlob":"$BLOB","EncryptionContext":{"a":"b"}}`, "ReEncrypt": `{"CiphertextBlob":"$BLOB","DestinationKeyId":"$AES"}`,
		"Encrypt": `{"KeyId":"$AES","Plaintext":"AA==","EncryptionContext":{"":""},"DryRun":true}`, "GenerateDataKey": `{"KeyId":"$AES","NumberOfBytes":1}`,
		"GenerateMac": `{"KeyId":"$MAC","Message":"AA==","MacAlgorithm":"HMAC_SHA_256"}`, "VerifyMac": `{"KeyId":"$MAC","Message":"AA==","Mac":"AA==","MacAlgorithm":"HMAC_SHA_256"}`,
		"Sign": `{"KeyId":"$RSA","Message":"AA==","MessageType":"DIGEST","SigningAlgorithm":"RSASSA_PSS_SHA_256"}`, "Verify": `{"KeyId":"$RSA","Message":"AA==","Signature":"AA==","SigningAlgorithm":"RSASSA_PKCS1_V1_5_SHA_256"}`,
		"DeriveSharedSecret": `{"KeyId":"$ECC","KeyAgreementAlgorithm":"ECDH","PublicKey":"$SPKI"}`, "GetPublicKey": `{"KeyId":"$RSA"}`,
		"CreateAlias": `{"AliasName":"alias/a","TargetKeyId":"$AES"}`, "UpdateAlias": `{"AliasName":"alias/a","TargetKeyId":"$MULTI"}`, "DeleteAlias": `{"AliasName":"alias/a"}`,
		"ListAliases": `{"KeyId":"$AES","Limit":1,"Marker":"x"}`, "ListGrants": `{"KeyId":"$AES","GrantId":"$GRANT"}`, "RetireGrant": `{"KeyId":"$AES","GrantId":"$GRANT"}`,
		"RotateKeyOnDemand": `{"KeyId":"$AES"}`, "ListKeyRotations": `{"KeyId":"$AES","IncludeKeyMaterial":"ALL_KEY_MATERIAL","Limit":1}`, "EnableKeyRotation": `{"KeyId":"$AES","RotationPeriodInDays":90}`,
		"ReplicateKey": `{"KeyId":"$MULTI","ReplicaRegion":"eu-west-1","Tags":[{"TagKey":"a","TagValue":"b"}]}`, "UpdatePrimaryRegion": `{"KeyId":"$MULTI","PrimaryRegion":"eu-west-1"}`,
		"TagResource": `{"KeyId":"$AES","Tags":[{"TagKey":"a","TagValue":"b"},{}]}`, "UntagResource": `{"KeyId":"$AES","TagKeys":["a"]}`, "ListResourceTags": `{"KeyId":"$AES","Limit":1}`,
		"DisableKey": `{"KeyId":"$RSA"}`, "CancelKeyDeletion": `{"KeyId":"$RSA"}`, "GetKeyLastUsage": `{"KeyId":"$AES"}`, "UpdateKeyDescription": `{"KeyId":"$AES","Description":"x"}`,
		"DescribeKey": `{"KeyId":"arn:aws:kms:eu-central-1:111122223333:key/$AES","GrantTokens":["x"]}`,
	} {
		f.Add("TrentService."+operation, "kms", "", body)
	}
	f.Add("AWSEvents.CreateEventBus", "events", "", `{"Name":"b","Tags":[{"Key":"a","Value":"b"}]}`)
	f.Add("AWSEvents.ListRules", "events", "", `{"NamePrefix":"r","Limit":1,"NextToken":"x"}`)
	f.Add("AWSEvents.RemoveTargets", "events", "", `{"Rule":"r","Ids":["a"],"Force":true}`)
	f.Add("AWSEvents.PutEvents", "events", "", `{"Entries":[{"Source":"a","DetailType":"b","Detail":"{}","Time":1}]}`)
	f.Add("AWSEvents.PutRule", "events", "", `{"Name":"r","EventPattern":"{\"a\":[{\"numeric\":[\">\",1]},{\"anything-but\":{\"prefix\":\"x\"}}],\"$or\":[{\"b\":[1]},{\"c\":[null]}]}"}`)
	f.Add("AWSEvents.PutTargets", "events", "", `{"Rule":"r","Targets":[{"Id":"a","Arn":"arn:x","InputTransformer":{"InputPathsMap":{"a":"$.detail.b[0]"},"InputTemplate":"<a>"}}]}`)
	f.Add("AWSEvents.TestEventPattern", "events", "", `{"EventPattern":"{\"a\":{\"b\":[{\"exists\":false}]}}","Event":"{}"}`)
	f.Add("TrentService.CreateGrant", "kms", "", `{"KeyId":"x","GranteePrincipal":"arn:aws:iam::111122223333:root","Operations":["Decrypt"],"Constraints":{"SourceArn":"x"}}`)
	f.Add("TrentService.Sign", "kms", "", `{"KeyId":"x","Message":"AA==","SigningAlgorithm":"ECDSA_SHA_256"}`)
	f.Add("TrentService.ReplicateKey", "kms", "", `{"KeyId":"mrk-0123456789abcdef0123456789abcdef","ReplicaRegion":"eu-west-1"}`)
	f.Add("ResourceGroupsTaggingAPI_20170126.GetResources", "tagging", "", `{"TagFilters":[{}]}`)
	f.Add("ServiceQuotasV20190624.ListServiceQuotas", "servicequotas", "", `{"ServiceCode":"kms","MaxResults":2,"NextToken":"x"}`)
	f.Add("", "sts", "", "Action=AssumeRole&RoleArn=arn:aws:iam::111122223333:role/x&RoleSessionName=ab&DurationSeconds=x")
	f.Add("", "sts", "", "Action=%zz")
	f.Add("TrentService.ListKeys", "kms", "AWS4-HMAC-SHA256 Credential=a/b/c/d/aws4_request, SignedHeaders=host, Signature=0", "{}")
	f.Fuzz(func(t *testing.T, target, service, authorization, body string) {
		if strings.HasSuffix(target, ".GenerateDataKeyPair") || strings.HasSuffix(target, ".CreateKey") && strings.Contains(body, "RSA") {
			return // makes RSA keys, which takes the time of a thousand others
		}
		w := sign(t, sim, target, service, authorization, names.Replace(body))
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
