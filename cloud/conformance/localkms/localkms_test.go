// Package localkms_test runs the conformance suite against local-kms, an
// emulator of KMS that nobody of byokd wrote. It is a module of its own, so
// that local-kms and what it needs stay out of byokd's.
package localkms_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/nsmithuk/local-kms/src/config"
	"github.com/nsmithuk/local-kms/src/data"
	"github.com/nsmithuk/local-kms/src/handler"
	"github.com/sirupsen/logrus"

	"byokd/cloud"
	"byokd/cloud/conformance"
)

// notRun are the steps that local-kms cannot do.
var notRun = map[string]string{
	"account":                        "local-kms has no STS, and KMS lists no key yet from which byokd could tell the account",
	"material has an ID":             "local-kms is older than KeyMaterialId",
	"grant":                          "local-kms has no grants",
	"last usage":                     "local-kms is older than GetKeyLastUsage",
	"event bus":                      "local-kms is KMS only",
	"an event bus that is not there": "local-kms is KMS only",
	"put events":                     "local-kms is KMS only",
}

// deviations are the steps in which local-kms is not as the suite wants it,
// and who is right.
var deviations = map[string]string{
	"no enabling before the import": "local-kms enables a key without material; " +
		"AWS refuses it (Developer Guide, \"Key states of AWS KMS keys\"), so the suite is right",
	"an end more than 365 days ahead is refused": "local-kms has no limit; " +
		"AWS has one of 365 days (API Reference, ImportKeyMaterial), so the suite is right",
	"a key policy that locks everybody out is refused": "local-kms does not look into policies; " +
		"AWS refuses such a one (API Reference, PutKeyPolicy), so the suite is right",
	"cancel deletion": "local-kms leaves the key enabled; " +
		"AWS disables it (API Reference, CancelKeyDeletion), so the suite is right",
}

// serve serves local-kms on loopback. Its own main listens on every interface.
func serve(t *testing.T) string {
	t.Helper()
	config.AWSRegion, config.AWSAccountId = "eu-central-1", "111122223333"
	database := data.NewDatabase(t.TempDir())
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		prefix, operation, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
		method := reflect.ValueOf(handler.NewRequestHandler(r, logger, database)).MethodByName(operation)
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		w.Header().Set("Date", time.Now().UTC().Format(http.TimeFormat))
		w.Header().Set("X-Amzn-RequestId", "local-kms")
		if prefix != "TrentService" || !method.IsValid() {
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, `{"__type":"UnknownOperationException"}`)
			return
		}
		response := method.Call(nil)[0].Interface().(handler.Response)
		w.WriteHeader(response.Code)
		fmt.Fprint(w, response.Body)
	}))
	t.Cleanup(func() {
		server.Close()
		database.Close()
	})
	return server.URL
}

func TestConformance(t *testing.T) {
	url := serve(t)
	target := conformance.Target{
		Region: "eu-central-1", Credential: "run", Patience: 20 * time.Second, NotRun: notRun, Deviations: deviations,
		Settings: cloud.Settings{
			KMSEndpoint: url, STSEndpoint: url, TaggingEndpoint: url,
			WrappingKeySpec: "RSA_2048", Quotas: map[string]float64{"GetParametersForImport": 1000},
			Credentials: map[string]cloud.Credential{"run": {Name: "run", AccessKeyCSV: func() ([]byte, error) {
				return []byte("Access key ID,Secret access key\nAKIACONFORMANCE,secret/of/conformance\n"), nil
			}}},
		},
	}
	count := make(map[conformance.Outcome]int)
	err := conformance.Run(context.WithoutCancel(t.Context()), target, func(r conformance.Result) {
		count[r.Outcome]++
		if r.Outcome == conformance.Failed {
			t.Errorf("%s: %s", r.Step, r.Why)
			return
		}
		t.Logf("%-9s %s: %s", r.Outcome, r.Step, r.Why)
	})
	if err != nil {
		t.Error(err)
	}
	docs, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "awssim.md"))
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintf("%d pass, %d deviate, %d are not run", count[conformance.Passed], count[conformance.Deviates], count[conformance.NotRun])
	if t.Log(got); !strings.Contains(string(docs), got) {
		t.Errorf("docs/awssim.md does not say %q", got)
	}
}
