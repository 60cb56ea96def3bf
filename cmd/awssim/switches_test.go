package main

import (
	"bytes"
	"errors"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go"

	"byokd/cloud/awssim"
)

// client returns a client of a running simulator, which tries once.
func client(t *testing.T, url, accessKey, secret string) *kms.Client {
	t.Helper()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return kms.NewFromConfig(aws.Config{
		Region: "eu-west-1", BaseEndpoint: &url, HTTPClient: &http.Client{Transport: transport},
		Credentials: credentials.NewStaticCredentialsProvider(accessKey, secret, ""),
		Retryer:     func() aws.Retryer { return aws.NopRetryer{} },
	})
}

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	if e, ok := errors.AsType[smithy.APIError](err); !ok || e.ErrorCode() != code {
		t.Errorf("got %v, want %s", err, code)
	}
}

func write(t *testing.T, content string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file.json")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestStateSurvives(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state.json")
	var id string
	t.Run("before", func(t *testing.T) {
		c := client(t, started(t, "--state", state), "a", "b")
		out, err := c.CreateKey(t.Context(), &kms.CreateKeyInput{Origin: types.OriginTypeExternal})
		if err != nil {
			t.Fatal(err)
		}
		id = *out.KeyMetadata.KeyId
		if _, err := c.GetParametersForImport(t.Context(), &kms.GetParametersForImportInput{KeyId: &id, WrappingAlgorithm: types.AlgorithmSpecRsaesOaepSha256, WrappingKeySpec: types.WrappingKeySpecRsa4096}); err != nil {
			t.Fatal(err)
		}
	})
	c := client(t, started(t, "--state", state), "a", "b")
	if _, err := c.DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: &id}); err != nil {
		t.Error(err)
	}
}

func TestHardSwitches(t *testing.T) {
	policy := write(t, `{"Statement":[{"Effect":"Allow","Action":["kms:ListKeys","kms:CreateKey","kms:ListAliases"],"Resource":"*"}]}`)
	url := started(t, "--account", "AKIAONE:one:111111111111", "--iam-policy", "AKIAONE="+policy, "--quotas", "aws,kms:ListKeys=1",
		"--lag", "new-keys=1h", "--fault", "after:drop@CreateKey", "--fault", "before:KMSInternalException:0%@ListKeys")
	c := client(t, url, "AKIAONE", "one")
	_, err := c.GenerateRandom(t.Context(), &kms.GenerateRandomInput{NumberOfBytes: aws.Int32(1)})
	wantCode(t, err, "AccessDeniedException")
	_, err = c.CreateKey(t.Context(), &kms.CreateKeyInput{})
	if _, answered := errors.AsType[smithy.APIError](err); err == nil || answered {
		t.Errorf("the answer was to be lost: %v", err)
	}
	out, err := c.ListKeys(t.Context(), &kms.ListKeysInput{})
	if err != nil || len(out.Keys) != 0 { // the new key is not seen yet
		t.Errorf("listed %+v, %v", out, err)
	}
	_, err = c.ListKeys(t.Context(), &kms.ListKeysInput{})
	wantCode(t, err, "ThrottlingException")
}

// TestDocumented checks that docs/awssim.md has every flag, and no other.
func TestDocumented(t *testing.T) {
	docs, err := os.ReadFile(filepath.Join("..", "..", "docs", "awssim.md"))
	if err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	run(t.Context(), []string{"--help"}, &stdout, &stderr)
	flags := make(map[string]bool)
	for _, found := range regexp.MustCompile(`(?m)^  -([a-z-]+)`).FindAllStringSubmatch(stderr.String(), -1) {
		flags[found[1]] = true
	}
	documented := make(map[string]bool)
	for _, found := range regexp.MustCompile("(?m)^\\| `--([a-z-]+)").FindAllStringSubmatch(string(docs), -1) {
		documented[found[1]] = true
	}
	if !maps.Equal(flags, documented) || len(flags) < 15 {
		t.Errorf("the flags are %v, documented are %v", flags, documented)
	}
}

func TestRegions(t *testing.T) {
	_, err := client(t, started(t, "--regions", "eu-central-1,us-east-1"), "a", "b").ListKeys(t.Context(), &kms.ListKeysInput{}) // of eu-west-1
	wantCode(t, err, "InvalidSignatureException")
	if _, err := client(t, started(t, "--regions", "eu-west-1"), "a", "b").ListKeys(t.Context(), &kms.ListKeysInput{}); err != nil {
		t.Error(err)
	}
}

func TestRoles(t *testing.T) {
	roles := write(t, `[{"arn":"arn:aws:iam::111111111111:role/x","policy":{"Statement":[{"Effect":"Allow","Action":"kms:*","Resource":"*"}]}}]`)
	started(t, "--roles", roles)
}

func TestBadSwitches(t *testing.T) {
	bad := write(t, `{"Statement":[]}`)
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"--quotas", "mine"}, "write aws"},
		{[]string{"--quotas", "aws,CreateKey=1"}, "IAM action"},
		{[]string{"--quotas", "aws,kms:CreateKeys=1"}, "no quota kms:CreateKeys"},
		{[]string{"--quotas", "aws,kms:Encrypt=1"}, "kms:symmetric"},
		{[]string{"--regions", "eu-west-1, us-east-1"}, "no Region"},
		{[]string{"--lag", "soon"}, "new-keys=2s"},
		{[]string{"--lag", "-1s"}, "new-keys=2s"},
		{[]string{"--fault", "sometimes:drop"}, "before or after"},
		{[]string{"--fault", "after:drop:200%"}, "before or after"},
		{[]string{"--fault", "after"}, "before or after"},
		{[]string{"--fault", "after:drop@ImportKeyMaterials"}, "no operation ImportKeyMaterials"},
		{[]string{"--iam-policy", "AKIAONE"}, "AKID=FILE"},
		{[]string{"--iam-policy", "AKIAONE=" + bad}, "no access key AKIAONE"},
		{[]string{"--account", "AKIAONE:one:111111111111", "--iam-policy", "AKIAONE=" + bad}, "no statement"},
		{[]string{"--account", "AKIAONE:one:111111111111", "--iam-policy", "AKIAONE=" + bad + ".none"}, "no such file"},
		{[]string{"--roles", bad}, "JSON array"},
		{[]string{"--roles", write(t, `[{"arn":"x","policy":{}}]`)}, "the IAM policy of x"},
	} {
		var stdout, stderr bytes.Buffer
		if code := run(t.Context(), test.args, &stdout, &stderr); code != exitUsage || !strings.Contains(stderr.String(), test.want) {
			t.Errorf("%v: exit status %d, %q", test.args, code, &stderr)
		}
	}
}

func TestFaultRates(t *testing.T) {
	f, err := parseFault("after:ThrottlingException:25%@Encrypt")
	if err != nil || !f.after || f.Code != "ThrottlingException" || f.rate != 0.25 || f.operation != "Encrypt" {
		t.Errorf("parsed %+v, %v", f, err)
	}
	strike, hits := hook([]fault{f}, true, 1), 0
	for range 1000 {
		if strike(awssim.Request{Operation: "Encrypt"}) != nil {
			hits++
		}
		if strike(awssim.Request{Operation: "Decrypt"}) != nil {
			t.Fatal("another operation is hit")
		}
	}
	if hits < 200 || hits > 300 {
		t.Errorf("hit %d of 1000", hits)
	}
	if hook([]fault{f}, false, 1) != nil {
		t.Error("a fault after the effect comes before it")
	}
}
