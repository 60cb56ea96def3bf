package daemon_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"byokd/cloud/awssim"
	"byokd/config"
	"byokd/daemon"
	"byokd/daemon/control"
	"byokd/daemon/jobstore"
	"byokd/hsm"
	"byokd/hsm/hsmtest"
)

func TestMain(m *testing.M) {
	if os.Getenv(asAWS) != "" {
		beAWS()
		return
	}
	goleak.VerifyTestMain(m)
}

const (
	testRegion  = "eu-central-1"
	testAccount = "111122223333"
	accessKey   = "AKIATEST"
	secretKey   = "a-secret-that-must-not-be-logged"

	// An administrator's, who is not byokd.
	adminKey    = "AKIAADMIN"
	adminSecret = "admin"

	otherAccount = "444455556666"
)

// pairs is shared: an RSA-4096 pair takes most of a second of a core.
var pairs = sync.OnceValue(func() *awssim.Pairs { return awssim.NewPairs(1) })

// A world is a machine with an HSM, an AWS to reach, and one byokd on it, which
// can be stopped and started.
type world struct {
	t     testing.TB
	dir   string
	token *hsmtest.Token
	sim   *awssim.Sim
	aws   *httptest.Server
	log   *syncBuffer

	mu     sync.Mutex
	now    time.Time // zero: real time
	wake   func()
	before func(awssim.Request) *awssim.Fault
	after  func(awssim.Request) *awssim.Fault

	hsm    []hsm.Option
	quotas string     // of [aws.quotas]; "": AWS's
	level  slog.Level // of the log; newWorld sets debug
	stop   context.CancelFunc
	ended  chan error
	reload chan struct{}
	client *control.Client
}

// newWorld makes a world without any group; byokd is not started yet.
func newWorld(t testing.TB) *world {
	t.Helper()
	return newWorldWith(t, func(*awssim.Options) {})
}

// newWorldWith is newWorld with another AWS.
func newWorldWith(t testing.TB, change func(*awssim.Options)) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), log: &syncBuffer{}, token: hsmtest.NewSoftHSM(t), quotas: lifted(), level: slog.LevelDebug}
	o := awssim.Options{Pairs: pairs(),
		Credentials: []awssim.Credential{{AccessKeyID: accessKey, SecretAccessKey: secretKey, Account: testAccount},
			{AccessKeyID: "AKIAOTHER", SecretAccessKey: "other", Account: otherAccount},
			{AccessKeyID: adminKey, SecretAccessKey: adminSecret, Account: testAccount, ARN: "arn:aws:iam::" + testAccount + ":user/admin"}},
		Before: func(r awssim.Request) *awssim.Fault { return w.hook(&w.before, r) },
		After:  func(r awssim.Request) *awssim.Fault { return w.hook(&w.after, r) }}
	change(&o)
	w.sim = awssim.New(o)
	w.aws = httptest.NewServer(w.sim)
	t.Cleanup(w.aws.Close)
	for _, sub := range []string{"groups.d", "state", "run"} {
		if err := os.Mkdir(filepath.Join(w.dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	w.write("hsm.pin", w.token.PIN)
	w.write("prod.csv", "\ufeffAccess key ID,Secret access key\r\n"+accessKey+","+secretKey+"\r\n")
	w.configure("")
	w.initState()
	t.Cleanup(func() {
		w.halt()
		w.checkOperations()
		for _, e := range w.sim.Events() {
			if e.Envelope.Source == "byokd" {
				checkEvent(t, e.Envelope)
			}
		}
		if t.Failed() {
			t.Logf("the end of byokd's log, without the calls into the HSM:\n%s", w.log.end())
		}
	})
	return w
}

func (w *world) hook(f *func(awssim.Request) *awssim.Fault, r awssim.Request) *awssim.Fault {
	w.mu.Lock()
	hook := *f
	w.mu.Unlock()
	if hook == nil {
		return nil
	}
	return hook(r)
}

// faults sets what goes wrong with requests, before and after their effect.
func (w *world) faults(before, after func(awssim.Request) *awssim.Fault) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.before, w.after = before, after
}

// deny has AWS deny some requests, and nothing else go wrong.
func (w *world) deny(which func(awssim.Request) bool) {
	w.faults(func(r awssim.Request) *awssim.Fault {
		if which(r) {
			return &awssim.Fault{Code: "AccessDeniedException", Message: "no"}
		}
		return nil
	}, nil)
}

// configure writes byokd.toml; more goes before its tables.
func (w *world) configure(more string) {
	w.write("byokd.toml", fmt.Sprintf(`state_dir = "state"
runtime_dir = "run"
settle = "50ms"
%s
[hsm.main]
module = %q
token_label = %q
pin_file = "hsm.pin"
[credentials.prod]
access_key_csv = "prod.csv"
[aws]
kms_endpoint = %[4]q
eventbridge_endpoint = %[4]q
sts_endpoint = %[4]q
tagging_endpoint = %[4]q
servicequotas_endpoint = %[4]q
[aws.quotas]
%[5]s
[log]
level = "debug"
`, more, w.token.Module, w.token.Label, w.aws.URL, w.quotas))
}

// lifted are quotas so high that nothing waits for them.
func lifted() string {
	var b strings.Builder
	for key := range new(config.Quotas).Keys() {
		fmt.Fprintf(&b, "%s = 1000.0\n", key)
	}
	return b.String()
}

// group writes a group's file, as configuration management does: beside, then
// renamed.
func (w *world) group(name, rotation, aws string) {
	w.write("groups.d/"+name+".toml", fmt.Sprintf("[rotation]\n%s\n[aws]\nregion = %q\nalias = \"alias/%s\"\n%s\n", rotation, testRegion, name, aws))
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

func (w *world) write(name, content string) {
	w.t.Helper()
	path := w.path(name)
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	if err := os.WriteFile(tmp, []byte(content), 0o600); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Rename(tmp, path); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) config() *config.Config {
	w.t.Helper()
	cfg, err := config.Load(w.path("byokd.toml"), config.DefaultOptions())
	if err != nil {
		w.t.Fatal(err)
	}
	return cfg
}

func (w *world) initState() {
	w.t.Helper()
	if _, err := daemon.InitState(w.config()); err != nil {
		w.t.Fatal(err)
	}
}

// clock is the time of byokd; AWS has the real one.
func (w *world) clock() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.now.IsZero() {
		return time.Now()
	}
	return w.now
}

// at stops the clock at a time, or moves it there.
func (w *world) at(now time.Time) {
	w.mu.Lock()
	w.now = now
	wake := w.wake
	w.mu.Unlock()
	if wake != nil {
		wake()
	}
}

// start starts byokd and waits until it is ready.
func (w *world) start() {
	w.t.Helper()
	if err := w.launch(); err != nil {
		w.t.Fatalf("byokd does not start: %v", err)
	}
}

// launch starts byokd; the error is that of a byokd that ended before it was ready.
func (w *world) launch() error {
	w.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	w.stop, w.ended, w.reload = stop, make(chan error, 1), make(chan struct{}, 1)
	ready := make(chan struct{})
	o := daemon.DefaultOptions()
	o.ConfigPath, o.Version, o.Now, o.Reload = w.path("byokd.toml"), "test", w.clock, w.reload
	o.Logger = slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: w.level}))
	o.Started = func() { close(ready) }
	o.HSMOptions = w.hsm
	o.Clock = func(wake func()) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.wake = wake
	}
	go func() { w.ended <- daemon.Run(ctx, o) }()
	select {
	case <-ready:
	case err := <-w.ended:
		stop()
		w.ended = nil
		return err
	}
	w.client = control.NewClient(w.path("run/control.sock"))
	return nil
}

// halt stops byokd gracefully, if it runs, and returns what Run returned.
func (w *world) halt() error {
	if w.ended == nil {
		return nil
	}
	w.stop()
	err := <-w.ended
	w.ended = nil
	w.mu.Lock()
	w.wake = nil
	w.mu.Unlock()
	w.client.Close()
	return err
}

func (w *world) restart() {
	w.t.Helper()
	if err := w.halt(); err != nil {
		w.t.Fatalf("byokd ended with %v", err)
	}
	w.start()
}

// until waits for a condition. The limit is for a test that hangs; no test's
// outcome depends on time.
func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	w.untilWithin(60*time.Second, what, ok)
}

// untilWithin is until for what is much to do.
func (w *world) untilWithin(limit time.Duration, what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(limit); !ok(); {
		if time.Now().After(end) {
			w.t.Fatalf("this did not come about: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (w *world) status(name string) control.GroupStatus {
	w.t.Helper()
	all, err := w.client.Status(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, s := range all {
		if s.Group == name {
			return s
		}
	}
	return control.GroupStatus{}
}

// generation is the number of a group's active generation; 0: none.
func (w *world) generation(name string) int {
	w.t.Helper()
	if n := w.status(name).Active.Generation; n != nil {
		return *n
	}
	return 0
}

func (w *world) untilGeneration(name string, n int) {
	w.t.Helper()
	w.until(fmt.Sprintf("generation %d of %s is active", n, name), func() bool { return w.generation(name) == n })
	w.until("its job has ended", func() bool { return len(w.openJobs(name)) == 0 })
}

func (w *world) jobs(name string) []control.JobSummary {
	w.t.Helper()
	jobs, err := w.client.Jobs(w.t.Context(), control.JobFilter{Group: name})
	if err != nil {
		w.t.Fatal(err)
	}
	return jobs
}

func (w *world) openJobs(name string) []control.JobSummary {
	var open []control.JobSummary
	for _, j := range w.jobs(name) {
		if !j.Final() {
			open = append(open, j)
		}
	}
	return open
}

// problem is the message of a group's problem with that code; "": it has none.
func (w *world) problem(name, code string) string {
	for _, p := range w.status(name).Problems {
		if p.Code == code {
			return p.Message
		}
	}
	return ""
}

// askRotation asks for a rotation and returns the job as it stands.
func (w *world) askRotation(name string) control.Job {
	w.t.Helper()
	jobs, err := w.client.Rotate(w.t.Context(), []string{name}, false)
	if err != nil {
		w.t.Fatal(err)
	}
	return jobs[0]
}

// rotated asks for a rotation and waits for its end.
func (w *world) rotated(name string) control.Job {
	w.t.Helper()
	return w.finished(w.askRotation(name).ID)
}

// finished waits for a job's end and returns it.
func (w *world) finished(id string) control.Job {
	w.t.Helper()
	var job control.Job
	err := w.client.Watch(w.t.Context(), id, func(j control.Job) error { job = j; return nil })
	if err != nil {
		w.t.Fatal(err)
	}
	return job
}

// requests counts the requests of an operation that AWS has seen.
func (w *world) requests(operation string) int { return w.sim.Count(operation) }

// eventDetails are the details of the events of a type that AWS has received.
func (w *world) eventDetails(detailType string) []map[string]any {
	w.t.Helper()
	var details []map[string]any
	for _, e := range w.sim.Events() {
		if e.Envelope.DetailType != detailType {
			continue
		}
		var detail map[string]any
		if err := json.Unmarshal(e.Envelope.Detail, &detail); err != nil {
			w.t.Fatal(err)
		}
		details = append(details, detail)
	}
	return details
}

// alias is the ID of the key that an alias points at; "": it does not exist.
func (w *world) alias(name string) string { return w.sim.Alias(testAccount, testRegion, "alias/"+name) }

func (w *world) keys() []awssim.Key { return w.sim.Keys(testAccount, testRegion) }

// logins counts the logins to the token that the database knows of.
func (w *world) logins() int {
	w.t.Helper()
	store, err := jobstore.Open(w.t.Context(), w.path("state/byokd.db"), jobstore.Options{ReadOnly: true})
	if err != nil {
		w.t.Fatal(err)
	}
	defer store.Close()
	logins, err := store.Logins(w.t.Context(), "main", 0)
	if err != nil {
		w.t.Fatal(err)
	}
	return len(logins)
}

// A syncBuffer collects a log.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// end is what of the log is worth reading under a failure: the lines about the
// HSM's calls are most of it, and more of them would hide what failed.
func (b *syncBuffer) end() string {
	lines := slices.DeleteFunc(strings.SplitAfter(b.String(), "\n"), func(line string) bool {
		return strings.Contains(line, `msg="pkcs11 call"`) || strings.Contains(line, `msg="control request"`)
	})
	return strings.Join(lines[max(0, len(lines)-150):], "")
}

func (b *syncBuffer) contains(s string) bool { return strings.Contains(b.String(), s) }
