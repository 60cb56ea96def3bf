package conformance_test

import (
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"byokd/cloud"
	"byokd/cloud/awssim"
	"byokd/cloud/conformance"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// accessKey is the content of an access key file.
func accessKey() ([]byte, error) {
	return []byte("Access key ID,Secret access key\nAKIACONFORMANCE,secret/of/conformance\n"), nil
}

// at returns a target whose services are all at one URL.
func at(url string) conformance.Target {
	return conformance.Target{
		Region: "eu-central-1", Credential: "run", Bus: "default",
		Settings: cloud.Settings{
			KMSEndpoint: url, EventBridgeEndpoint: url, STSEndpoint: url, TaggingEndpoint: url,
			WrappingKeySpec: "RSA_2048", Quotas: map[string]float64{"GetParametersForImport": 1000},
			Credentials: map[string]cloud.Credential{"run": {Name: "run", AccessKeyCSV: accessKey}},
		},
	}
}

// check runs the suite, logs every step, and fails for each that failed.
func check(t *testing.T, target conformance.Target) (outcomes map[string]conformance.Outcome) {
	t.Helper()
	outcomes = make(map[string]conformance.Outcome)
	err := conformance.Run(t.Context(), target, func(r conformance.Result) {
		outcomes[r.Step] = r.Outcome
		if r.Outcome == conformance.Failed {
			t.Errorf("%s: %s", r.Step, r.Why)
			return
		}
		t.Logf("%-9s %s %s", r.Outcome, r.Step, r.Why)
	})
	if err != nil {
		t.Error(err)
	}
	return outcomes
}

// TestConformance runs the suite against byokd's simulator; against the
// endpoint in BYOKD_CONFORMANCE_ENDPOINT; or, if BYOKD_CONFORMANCE_AWS is the
// number of an AWS account, against that account. See docs/awssim.md.
func TestConformance(t *testing.T) {
	url, account := os.Getenv("BYOKD_CONFORMANCE_ENDPOINT"), os.Getenv("BYOKD_CONFORMANCE_AWS")
	if url == "" && account == "" {
		server := httptest.NewServer(awssim.New(awssim.Options{Credentials: []awssim.Credential{
			{AccessKeyID: "AKIACONFORMANCE", SecretAccessKey: "secret/of/conformance", Account: awssim.DefaultAccount},
		}}))
		defer server.Close()
		outcomes := check(t, at(server.URL))
		for _, name := range conformance.Steps() {
			if outcomes[name] != conformance.Passed {
				t.Errorf("%s: %s", name, outcomes[name])
			}
		}
		return
	}
	target := at(url)
	if account != "" {
		t.Logf("WARNING: this makes KMS keys in the AWS account %s, for which AWS charges until their deletion is scheduled, which is at the end.", account)
		target.Settings = cloud.Settings{Credentials: map[string]cloud.Credential{"run": {
			Name: "run", Account: account, Profile: os.Getenv("BYOKD_CONFORMANCE_PROFILE"), DefaultChain: os.Getenv("BYOKD_CONFORMANCE_PROFILE") == "",
		}}}
	}
	if region := os.Getenv("BYOKD_CONFORMANCE_REGION"); region != "" {
		target.Region = region
	}
	if account != "" {
		mustBehind(t, target)
	}
	switch bus := os.Getenv("BYOKD_CONFORMANCE_BUS"); bus {
	case "":
	case "none":
		target.Bus = ""
	default:
		target.Bus = bus
	}
	target.NotRun = make(map[string]string)
	only, not := stepsIn(t, "BYOKD_CONFORMANCE_ONLY"), stepsIn(t, "BYOKD_CONFORMANCE_NOT_RUN")
	for _, name := range conformance.Steps() {
		if slices.Contains(not, name) || len(only) > 0 && !slices.Contains(only, name) {
			target.NotRun[name] = "the environment says so"
		}
	}
	check(t, target)
}

// mustBehind stops the test unless the credentials are the account's that was
// named.
func mustBehind(t *testing.T, target conformance.Target) {
	t.Helper()
	c := cloud.New(target.Settings)
	defer c.Close()
	k, err := c.KMS(target.Credential, target.Region)
	if err == nil {
		_, err = k.Account(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// stepsIn returns the names of steps in an environment variable.
func stepsIn(t *testing.T, variable string) (names []string) {
	t.Helper()
	for name := range strings.SplitSeq(os.Getenv(variable), ",") {
		if name = strings.TrimSpace(name); name == "" {
			continue
		}
		if !slices.Contains(conformance.Steps(), name) {
			t.Fatalf("%s: there is no step %q; there are %q", variable, name, conformance.Steps())
		}
		names = append(names, name)
	}
	return names
}

// TestHardConformance runs the suite against a simulator that lags, is slow,
// and throttles.
func TestHardConformance(t *testing.T) {
	const lag = 300 * time.Millisecond
	server := httptest.NewServer(awssim.New(awssim.Options{
		Consistency: awssim.Consistency{NewKeys: lag, Aliases: lag, Tagging: lag},
		Latency:     2 * time.Millisecond,
		Quotas:      &awssim.Quotas{PerSecond: map[string]float64{"kms:GetParametersForImport": 20}},
	}))
	defer server.Close()
	target := at(server.URL)
	target.Settings.Quotas = map[string]float64{"GetParametersForImport": 15}
	target.Patience = 30 * time.Second
	outcomes := check(t, target)
	for _, name := range conformance.Steps() {
		if outcomes[name] != conformance.Passed {
			t.Errorf("%s: %s", name, outcomes[name])
		}
	}
}

// TestDocumented checks that docs/awssim.md has the right number of steps.
func TestDocumented(t *testing.T) {
	docs, err := os.ReadFile(filepath.Join("..", "..", "docs", "awssim.md"))
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("in %d steps", len(conformance.Steps())); !strings.Contains(string(docs), want) {
		t.Errorf("docs/awssim.md does not say %q", want)
	}
}

// TestOutcomes checks that the suite fails where it should.
func TestOutcomes(t *testing.T) {
	server := httptest.NewServer(awssim.New(awssim.Options{Before: func(r awssim.Request) *awssim.Fault {
		if r.Operation == "EnableKey" || r.Operation == "UpdateAlias" {
			return &awssim.Fault{Code: "AccessDeniedException"}
		}
		return nil
	}}))
	defer server.Close()
	target := at(server.URL)
	target.Bus = ""
	target.NotRun = map[string]string{"expiry": "it takes too long"}
	target.Deviations = map[string]string{"no enabling before the import": "for the test", "tags": "for the test"}
	got := make(map[string]conformance.Outcome)
	if err := conformance.Run(t.Context(), target, func(r conformance.Result) { got[r.Step] = r.Outcome }); err != nil {
		t.Error(err)
	}
	for name, want := range map[string]conformance.Outcome{
		"create": conformance.Passed, "expiry": conformance.NotRun, "no enabling before the import": conformance.Deviates,
		"tags": conformance.Failed, "moving an alias that is not there": conformance.Failed, "move alias": conformance.Failed,
		"disable": conformance.NotRun, "put events": conformance.NotRun, "event bus": conformance.NotRun,
	} {
		if got[name] != want {
			t.Errorf("%s: %s, want %s", name, got[name], want)
		}
	}
}

// TestCleanUp checks that no key is left behind.
func TestCleanUp(t *testing.T) {
	sim := awssim.New(awssim.Options{})
	server := httptest.NewServer(sim)
	defer server.Close()
	target := at(server.URL)
	target.NotRun = map[string]string{"expiry": "it takes too long"}
	check(t, target)
	keys := sim.Keys(awssim.DefaultAccount, target.Region)
	for _, k := range keys {
		if k.State != "PendingDeletion" {
			t.Errorf("key %s is %s", k.Description, k.State)
		}
	}
	if len(keys) != 3 {
		t.Errorf("%d keys were made", len(keys))
	}
}
