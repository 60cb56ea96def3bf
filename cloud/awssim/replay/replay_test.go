package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/aws/aws-sdk-go-v2/aws"

	"byokd/cloud/awssim"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var pairs = awssim.NewPairs(1)

// replayed replays one case, with one thing of it replaced, against a new
// simulator.
func replayed(t *testing.T, content string) result {
	t.Helper()
	server := httptest.NewServer(awssim.New(awssim.Options{Pairs: pairs}))
	defer server.Close()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	name := filepath.Join(t.TempDir(), "cases.json")
	if err := os.WriteFile(name, []byte(`{"cases":[`+content+`]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	var results []result
	err := replay(t.Context(), endpoint{
		url: server.URL, region: "eu-central-1", account: awssim.DefaultAccount, client: &http.Client{Transport: transport},
		credentials: aws.Credentials{AccessKeyID: "a", SecretAccessKey: "b"},
	}, []string{name}, func(r result) { results = append(results, r) })
	if err != nil || len(results) != 1 {
		t.Fatalf("results %+v, %v", results, err)
	}
	return results[0]
}

// full uses every form of a recording. Each of the changes below makes it fail
// or skip.
const full = `{"test":"full","materials":{"m1":{"kind":"random","bytes":32},"r":{"kind":"rsa","bits":2048},"e":{"kind":"ec","curve":"P-384"},"k":{"kind":"ec","curve":"secp256k1"},"d":{"kind":"ed25519"}},"steps":[
{"n":1,"op":"CreateKey","request":{"Origin":"EXTERNAL","Description":"by $uid"},"save":"key","unwrap":"KeyMetadata","recorded_response":{"AWSAccountId":"111111111111","Arn":"arn:<partition>:kms:<region>:111111111111:key/<key-id:1>","CreationDate":"datetime","CustomerMasterKeySpec":"SYMMETRIC_DEFAULT","Description":"by <uid:1>","Enabled":false,"EncryptionAlgorithms":["SYMMETRIC_DEFAULT"],"KeyId":"<key-id:1>","KeyManager":"CUSTOMER","KeySpec":"SYMMETRIC_DEFAULT","KeyState":"PendingImport","KeyUsage":"ENCRYPT_DECRYPT","MultiRegion":false,"Origin":"EXTERNAL"}},
{"n":2,"op":"GetParametersForImport","request":{"KeyId":"$key.KeyId","WrappingAlgorithm":"RSAES_OAEP_SHA_256","WrappingKeySpec":"RSA_2048"},"save":"params","recorded_response":{"ImportToken":"import-token","KeyId":"<key-arn>","ParametersValidTo":"datetime","PublicKey":"public-key"},"asserted_equal":[["$params.KeyId","$key.Arn"]]},
{"n":3,"op":"ImportKeyMaterial","request":{"KeyId":"$key.KeyId","ImportToken":"$params.ImportToken","EncryptedKeyMaterial":{"$wrap":{"algorithm":"RSAES_OAEP_SHA_256","params":"params","material":"m1"}}},"recorded_error":{"code":"ValidationException","message":"A validTo date must be set if the ExpirationModel is KEY_MATERIAL_EXPIRES","http":400}},
{"n":4,"op":"ImportKeyMaterial","request":{"KeyId":"$key.KeyId","ImportToken":"$params.ImportToken","EncryptedKeyMaterial":{"$wrap":{"algorithm":"RSAES_OAEP_SHA_256","params":"params","material":"m1"}},"ExpirationModel":"KEY_MATERIAL_DOES_NOT_EXPIRE"},"recorded_response":{"KeyId":"arn:<partition>:kms:<region>:111111111111:key/<key-id:1>","KeyMaterialId":"<m:1>"}},
{"n":5,"op":"DescribeKey","request":{"KeyId":"$key.KeyId"},"poll_until":{"field":"KeyMetadata.KeyState","not_equal":"PendingImport","timeout_s":1},"asserted_fields":{"KeyMetadata":null},"unwrap":"Nothing"},
{"n":6,"op":"Encrypt","request":{"KeyId":"$key.KeyId","Plaintext":{"$bytes":"text"}},"save":"enc"},
{"n":7,"op":"Decrypt","request":{"CiphertextBlob":"$enc.CiphertextBlob"},"save":"dec","asserted_equal":[["$dec.Plaintext",{"$bytes":"text"}],[{"$concat":[{"$bytes":"te"},"xt"]},{"$bytes":"text"}],[{"$slice":["$dec.Plaintext",2]},{"$bytes":"xt"}]]},
{"n":8,"op":"Decrypt","request":{"CiphertextBlob":{"$slice":["$enc.CiphertextBlob",9]}},"recorded_error":{"code":"InvalidCiphertextException","message":"","http":400}},
{"n":9,"op":"DescribeKey","request":{"KeyId":{"$alias_arn":"alias/$uid"}},"asserted_error":{"code":"NotFoundException"}},
{"n":10,"op":"DescribeKey","request":{"KeyId":{"$arn_with_id":["$key.Arn","134f2428-cec1-4b25-a1ae-9048164dba47"]}},"recorded_error":{"code":"NotFoundException","message":"Key '<key-arn>' does not exist","http":400}},
{"n":11,"op":"CreateKey","request":{"KeySpec":"RSA_2048","KeyUsage":"SIGN_VERIFY","Origin":"EXTERNAL"},"save":"rsa","unwrap":"KeyMetadata"},
{"n":12,"op":"GetParametersForImport","request":{"KeyId":"$rsa.KeyId","WrappingAlgorithm":"RSA_AES_KEY_WRAP_SHA_256","WrappingKeySpec":"RSA_2048"},"save":"p2"},
{"n":13,"op":"ImportKeyMaterial","request":{"KeyId":"$rsa.KeyId","ImportToken":"$p2.ImportToken","EncryptedKeyMaterial":{"$wrap":{"algorithm":"RSA_AES_KEY_WRAP_SHA_256","params":"p2","material":"r"}},"ExpirationModel":"KEY_MATERIAL_DOES_NOT_EXPIRE"}},
{"n":14,"op":"GetPublicKey","request":{"KeyId":"$rsa.KeyId"},"save":"pub","asserted_equal":[["$pub.PublicKey",{"$spki":"r"}],[{"$spki":"e"},{"$spki":"e"}],[{"$spki":"k"},{"$spki":"k"}],[{"$spki":"d"},{"$spki":"d"}]]},
{"n":15,"op":"GetKeyPolicy","request":{"KeyId":"$key.KeyId"},"save":"policy","asserted_equal":[[{"$json":"$policy.Policy"},{"$json":"{\"Version\":\"2012-10-17\",\"Id\":\"key-default-1\",\"Statement\":[{\"Sid\":\"Enable IAM User Permissions\",\"Effect\":\"Allow\",\"Principal\":{\"AWS\":\"arn:aws:iam::$account:root\"},\"Action\":\"kms:*\",\"Resource\":\"*\"}]}"}]]},
{"n":16,"op":"CreateKey","request":{"KeyUsage":"RANDOM"},"recorded_error":{"code":"ValidationException","message":"1 validation error detected: Value 'RANDOM' at 'keyUsage' failed to satisfy constraint: Member must satisfy enum value set: [ENCAPSULATE_DECAPSULATE, ENCRYPT_DECRYPT, KEY_AGREEMENT, SIGN_VERIFY, GENERATE_VERIFY_MAC]","http":400}},
{"n":17,"op":"CreateAlias","request":{"AliasName":"alias/$uid","TargetKeyId":"$key.KeyId"}},
{"n":18,"op":"ListAliases","request":{"KeyId":"$key.KeyId"},"unwrap":"Aliases","recorded_response":[{"AliasArn":"arn:<partition>:kms:<region>:111111111111:<alias>","AliasName":"<alias>","CreationDate":"datetime","LastUpdatedDate":"datetime","TargetKeyId":"<key-id:1>"}]}
]}`

func TestReplay(t *testing.T) {
	if r := replayed(t, full); r.outcome != passed || r.steps != 18 {
		t.Fatalf("%+v", r)
	}
	for _, test := range []struct {
		old, new string
		outcome  outcome
		why      string
	}{
		{`"KeyManager":"CUSTOMER"`, `"KeyManager":"AWS"`, failed, `answer.KeyManager is "CUSTOMER"; recorded is "AWS"`},
		{`"MultiRegion":false,`, ``, failed, "answer has MultiRegion, which was not recorded"},
		{`"Enabled":false,`, `"Enabled":true,`, failed, "answer.Enabled is false"},
		{`"Enabled":false,`, `"Enabled":false,"Extra":1,`, failed, "answer has no Extra"},
		{`"CreationDate":"datetime","CustomerMaster`, `"CreationDate":"yesterday","CustomerMaster`, failed, "answer.CreationDate"},
		{`["SYMMETRIC_DEFAULT"]`, `[]`, failed, "a list of 0"},
		{`"recorded_response":{"KeyId":"arn:<partition>:kms:<region>:111111111111:key/<key-id:1>","KeyMaterialId":"<m:1>"}`, `"recorded_response":{"KeyId":"<m:1>","KeyMaterialId":"<m:1>"}`, failed, "was arn:aws"},
		{`"message":"A validTo`, `"message":"a validTo`, failed, `message is "A validTo date`},
		{`"code":"ValidationException","message":"A`, `"code":"NotFoundException","message":"A`, failed, "recorded is NotFoundException"},
		{`,"http":400}},
{"n":4`, `,"http":500}},
{"n":4`, failed, "recorded is 500"},
		{`"asserted_error":{"code":"NotFoundException"}`, `"asserted_error":{"code":"X"}`, failed, "asserted is X"},
		{`"asserted_fields":{"KeyMetadata":null}`, `"asserted_fields":{"KeyMetadata":"x"}`, failed, "asserted is x"},
		{`["$dec.Plaintext",{"$bytes":"text"}]`, `["$dec.Plaintext",{"$bytes":"tekst"}]`, failed, "step 7, Decrypt"},
		{`"not_equal":"PendingImport","timeout_s":1`, `"equal":"Disabled","timeout_s":0.1`, failed, "did not change"},
		{`{"n":16,"op":"CreateKey","request":{"KeyUsage":"RANDOM"}`, `{"n":16,"op":"CreateKey","request":{}`, failed, "success"},
		{`SIGN_VERIFY, GENERATE_VERIFY_MAC]`, `SIGN_VERIFY]`, failed, "enum value set"},
		{`"$params.ImportToken","EncryptedKeyMaterial":{"$wrap":{"algorithm":"RSAES_OAEP_SHA_256","params":"params","material":"m1"}},"Exp`, `"$params.ImportToken","EncryptedKeyMaterial":{"$wrap":{"algorithm":"RSAES_OAEP_SHA_1","params":"params","material":"m1"}},"Exp`, failed, "InvalidCiphertextException"},
		{`"material":"m1"}},"Exp`, `"material":"m9"}},"Exp`, skipped, "no material m9"},
		{`{"$bytes":"text"}},"save":"enc"`, `{"$nonsense":"text"}},"save":"enc"`, skipped, "$nonsense"},
		{`"request":{"KeyId":"$key.KeyId"},"save":"policy"`, `"request":{"KeyId":"$nothing.KeyId"},"save":"policy"`, skipped, "no step saved"},
		{`{"test":"full",`, `{"test":"full","replay":false,`, skipped, "says not to"},
		{`{"n":6,"op":"Encrypt",`, `{"n":6,"op":"Encrypt","asserted_length":{"CiphertextBlob":1},`, skipped, "asserted_length"},
		{`{"test":"full",`, `{"test":"full","recorded_headers":{},`, skipped, "recorded_headers"},
	} {
		if !strings.Contains(full, test.old) {
			t.Fatalf("the case has no %s", test.old)
		}
		if r := replayed(t, strings.Replace(full, test.old, test.new, 1)); r.outcome != test.outcome || !strings.Contains(r.why, test.why) {
			t.Errorf("%s: %+v, want %s: %s", test.new, r, test.outcome, test.why)
		}
	}
}

// TestReplayEvents uses the other form, a case that is its only step, and
// EventBridge.
func TestReplayEvents(t *testing.T) {
	for _, test := range []struct {
		content string
		outcome outcome
	}{
		{`{"test":"one","op":"PutEvents","request":{"Entries":[{"Source":"s","DetailType":"d","Detail":"{}","Time":"<now>"},{"Source":"s","DetailType":"d","Detail":"{}","EventBusName":"<no such bus>"},{"Source":"s","DetailType":"d"}]},
			"recorded_response":{"Entries":[{"EventId":"<id:1>"},{"EventId":"<id:2>"},{"ErrorCode":"InvalidArgument","ErrorMessage":"Parameter Detail is not valid. Reason: Detail is a required argument."}],"FailedEntryCount":1}}`, passed},
		{`{"test":"one","op":"PutEvents","request":{"Entries":[{"Source":"s","DetailType":"d","Detail":"<256 KiB of JSON>"}]},"recorded_error":{"code":"ValidationException","message":"Total size of the entries in the request is over the limit.","http":400}}`, passed},
		{`{"test":"one","op":"SQS message body","recorded_response":{"version":"0","id":"<uuid:1>","detail-type":"T","source":"S","account":"111111111111","time":"date","region":"<region>","resources":[],"detail":{"a":1}}}`, passed},
		{`{"test":"one","op":"SQS message body","recorded_response":{"version":"1","id":"<uuid:1>","detail-type":"T","source":"S","account":"111111111111","time":"date","region":"<region>","resources":[],"detail":{"a":1}}}`, failed},
		{`{"test":"one","op":"DescribeEventBus","request":{"Name":"<no such bus>"},"recorded_error":{"code":"ResourceNotFoundException","message":"Event bus <bus> does not exist.","http":400}}`, passed},
	} {
		if r := replayed(t, test.content); r.outcome != test.outcome || !json.Valid([]byte(test.content)) {
			t.Errorf("%s: %+v", test.content, r)
		}
	}
}

// TestDeviations checks that a case which is listed to deviate may fail, at this
// program's own simulator alone, and that it is told if it passes.
func TestDeviations(t *testing.T) {
	for name := range deviations {
		for usage, want := range map[string]string{"RANDOM": "1 known deviations", "ENCRYPT_DECRYPT": "passed    " + name + ": though it is listed to deviate"} {
			cases := write(t, `{"cases":[{"test":"`+name+`","steps":[{"n":1,"op":"CreateKey","request":{"KeyUsage":"`+usage+`"}}]}]}`)
			var stdout, stderr bytes.Buffer
			code := run(t.Context(), []string{cases}, &stdout, &stderr)
			if code != exitDone || !strings.Contains(stdout.String(), want) {
				t.Errorf("%s: exit status %d, %s%s", usage, code, &stdout, &stderr)
			}
		}
	}
	server := httptest.NewServer(awssim.New(awssim.Options{Pairs: pairs}))
	defer server.Close()
	cases := write(t, `{"cases":[{"test":"test_key_rotations_limits","steps":[{"n":1,"op":"CreateKey","request":{"KeyUsage":"RANDOM"}}]}]}`)
	var stdout, stderr bytes.Buffer
	if code := run(t.Context(), []string{"--endpoint", server.URL, cases}, &stdout, &stderr); code != exitFault {
		t.Errorf("another endpoint: exit status %d, %s%s", code, &stdout, &stderr)
	}
}

func TestBadFiles(t *testing.T) {
	name := filepath.Join(t.TempDir(), "cases.json")
	for _, content := range []string{"", "{", `{"cases":[]}`, `{"cases":[{"steps":1}]}`} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := replay(t.Context(), endpoint{}, []string{name}, func(result) {}); err == nil {
			t.Errorf("%q is replayed", content)
		}
	}
	if err := replay(t.Context(), endpoint{}, []string{name + ".none"}, nil); err == nil {
		t.Error("a file that is not there is replayed")
	}
}

func write(t *testing.T, content string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "cases.json")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestCommand runs the program as the shell does.
func TestCommand(t *testing.T) {
	cases := func(state string) string {
		return write(t, `{"cases":[{"test":"mine","steps":[{"n":1,"op":"CreateKey","request":{"Origin":"EXTERNAL"},"unwrap":"KeyMetadata","asserted_fields":{"KeyState":"`+state+`"}}]},
			{"test":"other","replay":false,"steps":[{"op":"CreateKey"}]}]}`)
	}
	server := httptest.NewServer(awssim.New(awssim.Options{Pairs: pairs}))
	defer server.Close()
	for _, test := range []struct {
		args           []string
		code           int
		stdout, stderr string
	}{
		{[]string{cases("PendingImport")}, exitDone, "passed    mine\nskipped   other: the recording says not to\n1 passed, 0 failed, 1 skipped, 0 known deviations\n", ""},
		{[]string{"--endpoint", server.URL, cases("Enabled")}, exitFault, "failed    mine: step 1, CreateKey: KeyState is PendingImport; asserted is Enabled\nskipped   other: the recording says not to\n0 passed, 1 failed, 1 skipped, 0 known deviations\n", ""},
		{[]string{cases("Enabled") + ".none"}, exitFault, "", "no such file"},
		{nil, exitUsage, "", "name the files"},
		{[]string{"--nonsense"}, exitUsage, "", "nonsense"},
		{[]string{"--help"}, exitDone, "", "allow-aws"},
		{[]string{"--endpoint", "https://kms.eu-central-1.amazonaws.com", "x"}, exitUsage, "", "--allow-aws"},
	} {
		var stdout, stderr bytes.Buffer
		if code := run(t.Context(), test.args, &stdout, &stderr); code != test.code || stdout.String() != test.stdout || !strings.Contains(stderr.String(), test.stderr) {
			t.Errorf("%q: exit status %d, printed %q, %q", test.args, code, &stdout, &stderr)
		}
	}
}
