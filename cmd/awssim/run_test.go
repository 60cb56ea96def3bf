package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	ebtypes "github.com/aws/aws-sdk-go-v2/service/eventbridge/types"
	"github.com/aws/aws-sdk-go-v2/service/kms"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// started runs the simulator until the test ends, and returns its URL.
func started(t *testing.T, args ...string) string {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	reader, writer := io.Pipe()
	var stderr bytes.Buffer
	done := make(chan int)
	go func() {
		code := run(ctx, append([]string{"--listen", "127.0.0.1:0"}, args...), writer, &stderr)
		writer.Close()
		done <- code
	}()
	t.Cleanup(func() {
		stop()
		if code := <-done; code != exitDone {
			t.Errorf("exit status %d: %s", code, &stderr)
		}
	})
	line, err := bufio.NewReader(reader).ReadString('\n')
	url, ok := strings.CutPrefix(strings.TrimSpace(line), "awssim: listening on ")
	if err != nil || !ok {
		stop()
		t.Fatalf("printed %q: %v", line, err)
	}
	return url
}

func TestServe(t *testing.T) {
	accounts := filepath.Join(t.TempDir(), "accounts.json")
	if err := os.WriteFile(accounts, []byte(`[{"access_key_id":"AKIATWO","secret_access_key":"two","account":"222222222222"}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	url := started(t, "--account", "AKIAONE:one:111111111111", "--accounts", accounts)
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	for _, secret := range []string{"one", "two"} {
		config := aws.Config{
			Region: "eu-west-1", BaseEndpoint: &url, HTTPClient: &http.Client{Transport: transport},
			Credentials: credentials.NewStaticCredentialsProvider("AKIA"+strings.ToUpper(secret), secret, ""),
		}
		key, err := kms.NewFromConfig(config).CreateKey(t.Context(), &kms.CreateKeyInput{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := kms.NewFromConfig(config).CreateAlias(t.Context(), &kms.CreateAliasInput{AliasName: aws.String("alias/" + secret), TargetKeyId: key.KeyMetadata.KeyId}); err != nil {
			t.Fatal(err)
		}
		if _, err := eventbridge.NewFromConfig(config).PutEvents(t.Context(), &eventbridge.PutEventsInput{Entries: []ebtypes.PutEventsRequestEntry{
			{Source: aws.String("test"), DetailType: aws.String("Made"), Detail: aws.String(`{ "by": "` + secret + `" }`)},
		}}); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		args []string
		want []string
	}{
		{[]string{"keys", "--endpoint", url}, []string{"alias/one", "alias/two", "eu-west-1", "Enabled", "AWS_KMS"}},
		{[]string{"keys", "--endpoint", url + "/", "--json"}, []string{`"account": "111111111111"`, `"account": "222222222222"`}},
		{[]string{"events", "--endpoint", url}, []string{"bus default  test  Made\n  {\"by\":\"one\"}\n", `{"by":"two"}`}},
		{[]string{"events", "--json", "--endpoint", url}, []string{`"detail-type": "Made"`, `"bus": "default"`}},
	} {
		var stdout, stderr bytes.Buffer
		if code := run(t.Context(), test.args, &stdout, &stderr); code != exitDone {
			t.Errorf("%v: exit status %d: %s", test.args, code, &stderr)
		}
		for _, want := range test.want {
			if !strings.Contains(stdout.String(), want) {
				t.Errorf("%v: printed %s, want %q", test.args, &stdout, want)
			}
		}
	}
}

func TestMistakes(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.json")
	if err := os.WriteFile(bad, []byte(`{`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--listen", "0.0.0.0:0"}, exitUsage, "only loopback addresses"},
		{[]string{"--listen", "example.com:1"}, exitUsage, "only loopback addresses"},
		{[]string{"--listen", ":4599"}, exitUsage, "only loopback addresses"},
		{[]string{"--listen", "4599"}, exitUsage, "HOST:PORT"},
		{[]string{"--wrapping-pairs", "0"}, exitUsage, "at least 1"},
		{[]string{"--account", "a:b"}, exitUsage, "AKID:SECRET:ACCOUNT"},
		{[]string{"--account", "a:b:c"}, exitUsage, "12 digits"},
		{[]string{"--accounts", bad}, exitUsage, "JSON array"},
		{[]string{"--accounts", bad + ".none"}, exitUsage, "no such file"},
		{[]string{"--nonsense"}, exitUsage, "nonsense"},
		{[]string{"frobnicate"}, exitUsage, "unexpected argument"},
		{[]string{"keys", "--endpoint", "http://127.0.0.1:1"}, exitFault, "must be running"},
	} {
		var stdout, stderr bytes.Buffer
		if code := run(t.Context(), test.args, &stdout, &stderr); code != test.code || !strings.Contains(stderr.String(), test.want) {
			t.Errorf("%v: exit status %d, %q", test.args, code, &stderr)
		}
	}
}
