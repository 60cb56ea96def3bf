package cloud_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"byokd/cloud"
)

func TestMain(m *testing.M) {
	// The machine's own AWS configuration must not matter.
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "AWS_") {
			os.Unsetenv(name)
		}
	}
	os.Setenv("AWS_CONFIG_FILE", os.DevNull)
	os.Setenv("AWS_SHARED_CREDENTIALS_FILE", os.DevNull)
	goleak.VerifyTestMain(m)
}

const (
	region  = "eu-central-1"
	account = "111122223333"
	keyID   = "1234abcd-12ab-34cd-56ef-1234567890ab"
	keyARN  = "arn:aws:kms:eu-central-1:111122223333:key/" + keyID
)

// An asked is one request as the fake got it.
type asked struct {
	operation string // from X-Amz-Target, or the Action of STS
	body      map[string]any
	form      url.Values
	header    http.Header
}

// An answer is what the fake does about a request.
type answer struct {
	status int    // 0: 200
	body   string // "": {}
	header map[string]string
	hangUp bool            // take the request and close the connection
	wait   <-chan struct{} // before answering
}

func awsError(code string) answer { return awsErrorStatus(400, code) }

func awsErrorStatus(status int, code string) answer {
	return answer{status: status, body: fmt.Sprintf(`{"__type":%q,"message":"the message of %s"}`, code, code)}
}

// A fake is an AWS that answers as it is told. It serves all services.
type fake struct {
	*httptest.Server
	answer func(asked) answer

	mu   sync.Mutex
	seen []asked
}

func newFake(t *testing.T, script func(asked) answer) *fake {
	f := &fake{answer: script}
	f.Server = httptest.NewServer(http.HandlerFunc(f.serve))
	t.Cleanup(f.Close)
	return f
}

func newTLSFake(t *testing.T, script func(asked) answer) *fake {
	f := &fake{answer: script}
	f.Server = httptest.NewUnstartedServer(http.HandlerFunc(f.serve))
	f.Config.ErrorLog = log.New(io.Discard, "", 0)
	f.StartTLS()
	t.Cleanup(f.Close)
	return f
}

// sequence answers one after the other; the last one for ever.
func sequence(answers ...answer) func(asked) answer {
	var mu sync.Mutex
	return func(asked) answer {
		mu.Lock()
		defer mu.Unlock()
		a := answers[0]
		if len(answers) > 1 {
			answers = answers[1:]
		}
		return a
	}
}

func (f *fake) serve(w http.ResponseWriter, r *http.Request) {
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	q := asked{header: r.Header}
	if _, operation, ok := strings.Cut(r.Header.Get("X-Amz-Target"), "."); ok {
		q.operation = operation
		json.Unmarshal(raw, &q.body)
	} else {
		q.form, _ = url.ParseQuery(string(raw))
		q.operation = q.form.Get("Action")
	}
	f.mu.Lock()
	f.seen = append(f.seen, q)
	f.mu.Unlock()

	a := f.answer(q)
	if a.wait != nil {
		select {
		case <-a.wait:
		case <-r.Context().Done():
		}
	}
	if a.hangUp {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	w.Header().Set("X-Amzn-Requestid", "request-1")
	for name, value := range a.header {
		w.Header().Set(name, value)
	}
	if a.status != 0 {
		w.WriteHeader(a.status)
	}
	if a.body == "" {
		a.body = "{}"
	}
	io.WriteString(w, a.body)
}

func (f *fake) requests() []asked {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.seen)
}

func (f *fake) count(operation string) int {
	n := 0
	for _, q := range f.requests() {
		if q.operation == operation {
			n++
		}
	}
	return n
}

const accessKeyCSV = "Access key ID,Secret access key\r\n" + csvID + "," + csvSecret + "\r\n"

// static is a credential from a CSV file.
func static() cloud.Credential {
	return cloud.Credential{Name: "prod", AccessKeyCSV: func() ([]byte, error) { return []byte(accessKeyCSV), nil }}
}

// settings point everything at a fake.
func (f *fake) settings() cloud.Settings { return settingsFor(f.URL) }

func settingsFor(url string) cloud.Settings {
	return cloud.Settings{
		KMSEndpoint: url, EventBridgeEndpoint: url, STSEndpoint: url, TaggingEndpoint: url, ServiceQuotasEndpoint: url,
		Credentials: map[string]cloud.Credential{"prod": static()},
		Logger:      slog.New(slog.DiscardHandler),
	}
}

func open(t *testing.T, s cloud.Settings) *cloud.Cloud {
	t.Helper()
	if s.Logger == nil {
		s.Logger = slog.New(slog.DiscardHandler)
	}
	c := cloud.New(s)
	t.Cleanup(c.Close)
	return c
}

func openKMS(t *testing.T, s cloud.Settings) *cloud.KMS {
	t.Helper()
	k, err := open(t, s).KMS("prod", region)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// A recorder is a Proxy function that lets nothing through and remembers where
// it should have gone.
type recorder struct {
	mu    sync.Mutex
	hosts []string
}

type refusedError struct{}

func (refusedError) Error() string { return "the test lets nothing out" }

func (r *recorder) proxy(req *http.Request) (*url.URL, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hosts = append(r.hosts, req.URL.Scheme+"://"+req.URL.Host)
	return nil, refusedError{}
}

func (r *recorder) seen() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Compact(slices.Clone(r.hosts))
}

func writeFile(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func httpDate(d time.Duration) map[string]string {
	return map[string]string{"Date": time.Now().Add(d).UTC().Format(http.TimeFormat)}
}

// A logBuffer keeps a log for a test to look at.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
