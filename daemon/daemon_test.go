package daemon_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"byokd/cloud/awssim"
	"byokd/daemon"
	"byokd/daemon/control"
	"byokd/daemon/lifecycle"
)

const every = `every = "90d"`

// The whole of the main job: a file becomes a key behind an alias; rotations
// follow on demand; jobs, events and logs tell of them.
func TestFileBecomesKey(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.group("payments", every, `description = "card payments"`)
	w.untilGeneration("payments", 1)

	first := w.alias("payments")
	key, ok := w.sim.Key(testAccount, testRegion, first)
	if !ok || key.Origin != "EXTERNAL" || key.State != "Enabled" || key.Description != "card payments" {
		t.Fatalf("the alias points at %+v", key)
	}
	for tag, want := range map[string]string{"byokd:group": "payments", "byokd:generation": "1"} {
		if key.Tags[tag] != want {
			t.Errorf("tag %s = %q, want %q", tag, key.Tags[tag], want)
		}
	}
	keys, err := w.client.Keys(t.Context(), "payments")
	if err != nil {
		t.Fatal(err)
	}
	if len(keys) != 1 || keys[0].State != "active" || string(keys[0].KeyID) != first || string(keys[0].HSMID) != key.Tags["byokd:hsm-id"] {
		t.Errorf("keys = %+v", keys)
	}

	job := w.rotated("payments")
	if job.State != control.JobCompleted || job.Trigger != "control" || job.Generation == nil || *job.Generation != 2 {
		t.Fatalf("job = %+v", job)
	}
	var steps []string
	for _, s := range job.Steps {
		steps = append(steps, s.Name+" "+s.State)
	}
	if got, want := strings.Join(steps, ", "), "generate done, create done, import done, verify done, grants done, activate done, announce done"; got != want {
		t.Errorf("steps: %s, want %s", got, want)
	}
	second := w.alias("payments")
	if second == first {
		t.Fatal("the alias has not moved")
	}
	w.until("both moves are on the bus", func() bool { return len(w.eventDetails("KMS Alias Moved")) == 2 })
	events := w.eventDetails("KMS Alias Moved")
	if events[0]["previous_key_id"] != nil || events[0]["new_key_id"] != first || events[0]["sequence"] != 1.0 || events[0]["trigger"] != "initial" {
		t.Errorf("first event: %v", events[0])
	}
	if e := events[1]; e["previous_key_id"] != first || e["new_key_id"] != second || e["sequence"] != 2.0 ||
		e["job_id"] != job.ID || e["group"] != "payments" || e["account"] != testAccount || e["region"] != testRegion || e["schema"] != 1.0 {
		t.Errorf("second event: %v", e)
	}
	if s := w.status("payments"); s.State != control.GroupOK || len(s.Problems) != 0 || s.NextRotation.IsZero() {
		t.Errorf("status = %+v", s)
	}
	for _, secret := range []string{secretKey, w.token.PIN} {
		if w.log.contains(secret) {
			t.Errorf("the log holds a secret")
		}
	}
	d, err := w.client.Daemon(t.Context())
	if err != nil || len(d.Endpoints) != 4 || d.Endpoints[0].Service != "kms" || d.Endpoints[0].Region != "" || d.Endpoints[0].URL != w.aws.URL {
		t.Errorf("endpoints = %+v, %v", d.Endpoints, err)
	}
	if n := strings.Count(w.log.String(), "an AWS endpoint is overridden"); n != 4 {
		t.Errorf("the log tells of %d overridden endpoints, want 4", n)
	}
	if err := w.halt(); err != nil {
		t.Errorf("a graceful stop ended with %v", err)
	}
}

func TestTouchedRequestRotates(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.group("payments", every, "")
	w.untilGeneration("payments", 1)
	w.write("run/requests/rotate.payments", "")
	w.untilGeneration("payments", 2)
	if job := w.jobs("payments")[0]; job.Trigger != "request" {
		t.Errorf("trigger = %s", job.Trigger)
	}

	w.write("run/requests/rotate.nosuch", "")
	w.write("run/requests/sync.payments", "generation = \"two\"\n")
	w.until("both are rejected", func() bool {
		files, _ := filepath.Glob(w.path("run/requests/rejected/*"))
		return len(files) >= 4 // each with its reason beside it
	})
	if n := w.generation("payments"); n != 2 {
		t.Errorf("active generation = %d", n)
	}
}

// A request that is dropped while byokd is down is obeyed at its start.
func TestRequestWhileDown(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.group("payments", every, "")
	w.untilGeneration("payments", 1)
	w.halt()
	w.write("run/requests/rotate.payments", "")
	w.start()
	w.untilGeneration("payments", 2)
	w.restart()
	w.until("the group is known", func() bool { return w.generation("payments") > 0 })
	if n := len(w.jobs("payments")); n != 2 {
		t.Errorf("there are %d jobs, want 2: a request is obeyed once", n)
	}
}

func TestCronTickRotates(t *testing.T) {
	w := newWorld(t)
	base := time.Now().UTC().Truncate(24 * time.Hour).Add(12 * time.Hour) // noon
	w.at(base)
	w.start()
	w.group("payments", `schedule = "0 3 * * *"`, "")
	w.untilGeneration("payments", 1)
	tick := base.Add(15 * time.Hour)
	if next := w.status("payments").NextRotation.Time; !next.Equal(tick) {
		t.Fatalf("next rotation at %s, want %s", next, tick)
	}
	w.at(tick)
	w.untilGeneration("payments", 2)
	if job := w.jobs("payments")[0]; job.Trigger != "schedule" {
		t.Errorf("trigger = %s", job.Trigger)
	}
	// The same tick again, over a restart, is no second rotation.
	w.restart()
	w.until("the group is known", func() bool { return w.generation("payments") > 0 })
	if n := len(w.jobs("payments")); n != 2 {
		t.Errorf("there are %d jobs, want 2", n)
	}

	// Three ticks pass while byokd is down: one rotation.
	w.halt()
	w.at(tick.Add(72*time.Hour + time.Hour))
	w.start()
	w.untilGeneration("payments", 3)
	if job := w.jobs("payments")[0]; job.Trigger != "missed" {
		t.Errorf("trigger = %s", job.Trigger)
	}
	if n := len(w.jobs("payments")); n != 3 {
		t.Errorf("there are %d jobs, want 3", n)
	}
}

func TestIntervalCountsFromLastRotation(t *testing.T) {
	w := newWorld(t)
	base := time.Now().UTC().Truncate(time.Second)
	w.at(base)
	w.start()
	w.group("payments", `every = "10d"`, "")
	w.untilGeneration("payments", 1)
	w.at(base.Add(9 * 24 * time.Hour))
	w.rotated("payments")
	w.until("the schedule counts from the rotation just made", func() bool {
		return w.status("payments").NextRotation.Time.Equal(base.Add(19 * 24 * time.Hour))
	})
	w.at(base.Add(19 * 24 * time.Hour))
	w.untilGeneration("payments", 3)
}

func TestSIGHUPSynchronizesChangedDefinition(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.group("payments", every, `description = "one"`)
	w.untilGeneration("payments", 1)
	w.group("other", every, "")
	w.untilGeneration("other", 1)

	w.write("policy.json", policy("one"))
	w.write("groups.d/payments-policy.json", policy("one"))
	w.group("payments", every, "description = \"two\"\npolicy_file = \"payments-policy.json\"\n[aws.tags]\nteam = \"cards\"")
	w.reload <- struct{}{}
	key := w.alias("payments")
	w.until("KMS has the new description, policy and tag", func() bool {
		k, _ := w.sim.Key(testAccount, testRegion, key)
		return k.Description == "two" && strings.Contains(k.Policy, `"one"`) && k.Tags["team"] == "cards"
	})
	w.until("the job has ended", func() bool { return len(w.openJobs("payments")) == 0 })
	w.until("an event tells of it", func() bool { return len(w.eventDetails("KMS Key Synchronized")) == 1 })
	if got := w.eventDetails("KMS Key Synchronized")[0]["actions"]; len(got.([]any)) != 3 {
		t.Errorf("actions = %v", got)
	}
	if n := len(w.jobs("other")); n != 1 {
		t.Errorf("the group that did not change has %d jobs, want 1", n)
	}
	// Comments are no change.
	before := len(w.jobs("payments"))
	content, err := os.ReadFile(w.path("groups.d/payments.toml"))
	if err != nil {
		t.Fatal(err)
	}
	w.write("groups.d/payments.toml", "# nothing new\n"+string(content))
	w.reload <- struct{}{}
	w.until("the reload is done", func() bool { return strings.Count(w.log.String(), "msg=reloaded") == 2 })
	if n := len(w.jobs("payments")); n != before {
		t.Errorf("a comment made a job")
	}
}

func policy(sid string) string {
	return `{"Version":"2012-10-17","Statement":[{"Sid":"` + sid + `","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::` + testAccount + `:root"},"Action":"kms:*","Resource":"*"}]}`
}

// A rotation that had begun with an older definition ends after the newer one was
// synchronized, or in the middle of that: the key that it made gets the newer one too.
func TestRotationEndsWithOlderDefinition(t *testing.T) {
	for name, failing := range map[string]string{"after": "", "between two attempts": "UpdateKeyDescription"} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			define := func(version string) {
				w.group("payments", "enabled = false", fmt.Sprintf("description = %q\n[aws.tags]\nversion = %[1]q", version))
			}
			fail := func(operations ...string) {
				w.faults(func(r awssim.Request) *awssim.Fault {
					if slices.Contains(operations, r.Operation) {
						return &awssim.Fault{Code: "ThrottlingException", Status: 400}
					}
					return nil
				}, nil)
			}
			is := func(kind lifecycle.Kind, states ...string) bool {
				return slices.ContainsFunc(w.jobs("payments"), func(j control.JobSummary) bool {
					return j.Kind == string(kind) && slices.Contains(states, j.State)
				})
			}
			define("one")
			w.start()
			w.untilGeneration("payments", 1)

			fail("CreateKey", failing)
			job := w.askRotation("payments")
			w.until("the rotation has begun and failed", func() bool { return is(lifecycle.Rotate, control.JobRetryable) })
			define("two")
			var state string = control.JobCompleted
			if failing != "" {
				state = control.JobRetryable
			}
			w.until("the new definition is synchronized as far as that goes", func() bool { return is(lifecycle.Synchronize, state) })
			fail(failing)
			w.client.Retry(t.Context(), []string{job.ID}, false) // refused where it runs just now
			w.until("generation 2 is active", func() bool { return w.generation("payments") == 2 })
			fail()
			w.until("generation 2 has the newer definition", func() bool {
				k, ok := w.sim.Key(testAccount, testRegion, w.alias("payments"))
				return ok && k.Description == "two" && k.Tags["version"] == "two"
			})
		})
	}
}

func TestNotDesignatedChangesNothing(t *testing.T) {
	w := newWorld(t)
	w.configure("designated = false")
	w.start()
	w.group("payments", every, "")
	w.until("the group is seen", func() bool { return w.status("payments").Group != "" })
	w.write("run/requests/rotate.payments", "")
	w.until("the request is rejected", func() bool {
		files, _ := filepath.Glob(w.path("run/requests/rejected/*"))
		return len(files) >= 2
	})
	_, err := w.client.Rotate(t.Context(), []string{"payments"}, false)
	var ce *control.Error
	if !errors.As(err, &ce) || ce.Code != control.NotDesignated || !strings.Contains(ce.Message, "not designated") {
		t.Errorf("rotate: %v", err)
	}
	w.until("it was looked for the group's keys", func() bool { return w.requests("GetResources") > 0 })
	for _, r := range w.sim.Requests() {
		if !strings.HasPrefix(r.Operation, "Describe") && !strings.HasPrefix(r.Operation, "Get") && !strings.HasPrefix(r.Operation, "List") {
			t.Errorf("AWS was sent %s", r.Operation)
		}
	}

	// Once designated, it goes on.
	w.configure("designated = true")
	w.reload <- struct{}{}
	w.untilGeneration("payments", 1)
}

func TestBadFileAmongGoodOnes(t *testing.T) {
	w := newWorld(t)
	w.group("good", every, "")
	w.write("groups.d/bad.toml", "[rotation]\nevery = \"90 days\"\nevry = 1\n[aws]\nregion = \"eu-central-1\"\nalias = \"payments\"\n")
	w.start()
	w.untilGeneration("good", 1)
	s := w.status("bad")
	if s.State != control.GroupInvalid || len(s.Problems) < 3 {
		t.Errorf("status of the bad one: %+v", s)
	}
	if len(w.jobs("bad")) != 0 {
		t.Error("the bad one has a job")
	}

	// A good group whose file turns bad keeps its last good definition, over a
	// restart too.
	w.write("groups.d/good.toml", "nonsense")
	w.until("the file is refused", func() bool { return w.status("good").State == control.GroupInvalid })
	w.restart()
	w.until("the file is refused", func() bool { return w.status("good").State == control.GroupInvalid })
	if job := w.rotated("good"); job.State != control.JobCompleted {
		t.Errorf("job = %+v", job)
	}
}

// An empty database never means new keys.
func TestDatabaseLost(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.group("payments", every, "")
	w.untilGeneration("payments", 1)
	w.rotated("payments")
	before, err := w.client.Keys(t.Context(), "payments")
	if err != nil {
		t.Fatal(err)
	}
	alias := w.alias("payments")
	lose := func() {
		t.Helper()
		w.halt()
		if err := os.RemoveAll(w.path("state")); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(w.path("state"), 0o700); err != nil {
			t.Fatal(err)
		}
		var ee *daemon.ExitError
		if err := w.launch(); !errors.As(err, &ee) || ee.Status != daemon.ExitHelpless || !strings.Contains(err.Error(), "byokctl init") {
			t.Fatalf("without a database byokd ends with %v", err)
		}
		w.initState()
	}
	same := func() {
		t.Helper()
		w.until("the generations are back", func() bool { return w.generation("payments") == 2 })
		after, err := w.client.Keys(t.Context(), "payments")
		if err != nil {
			t.Fatal(err)
		}
		if len(after) != 2 {
			t.Fatalf("there are %d generations, want 2: %+v", len(after), after)
		}
		for i := range after {
			b, a := before[i], after[i]
			if a.Generation != b.Generation || a.State != b.State || a.KeyID != b.KeyID || a.HSMID != b.HSMID || a.HSMLabel != b.HSMLabel || a.KeyMaterialID != b.KeyMaterialID {
				t.Errorf("generation %d: %+v, before: %+v", b.Generation, a, b)
			}
		}
		if len(w.jobs("payments")) != 0 || w.alias("payments") != alias || len(w.keys()) != 2 {
			t.Errorf("jobs %v, alias at %s, %d keys", w.jobs("payments"), w.alias("payments"), len(w.keys()))
		}
	}
	creates := w.requests("CreateKey")
	lose()
	w.start()
	same()

	// The same with AWS out of reach: the group is pending and nothing is made.
	lose()
	w.faults(func(awssim.Request) *awssim.Fault { return &awssim.Fault{Drop: true} }, nil)
	w.start()
	w.until("the group is pending", func() bool {
		return w.status("payments").State == control.GroupPending && w.problem("payments", "pending") != ""
	})
	if len(w.jobs("payments")) != 0 {
		t.Errorf("jobs = %v", w.jobs("payments"))
	}
	w.faults(nil, nil)
	w.reload <- struct{}{}
	same()
	if n := w.requests("CreateKey"); n != creates {
		t.Errorf("%d keys were created", n-creates)
	}
}

func TestAliasOfSomebodyElse(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.group("one", every, "")
	w.untilGeneration("one", 1)
	theirs := w.alias("one")

	// Another byokd's database, the same account: this group's alias exists.
	w.write("groups.d/two.toml", "[rotation]\n"+every+"\n[aws]\nregion = \""+testRegion+"\"\nalias = \"alias/one\"\n")
	w.until("the second claimant is refused", func() bool { return w.status("two").State == control.GroupInvalid })
	if s := w.status("one"); s.State != control.GroupOK {
		t.Errorf("the group that has the alias: %+v", s)
	}
	if w.alias("one") != theirs || len(w.keys()) != 1 {
		t.Error("the alias moved, or a key was made")
	}
}

func TestWrongPINIsTriedOnce(t *testing.T) {
	w := newWorld(t)
	w.write("hsm.pin", "9999")
	w.group("payments", every, "")
	w.start()
	w.until("status says that byokd does not log in", func() bool { return strings.Contains(w.problem("payments", "hsm-login"), "byokctl hsm --login main") })
	w.restart()
	w.until("status says so after a restart", func() bool { return w.problem("payments", "hsm-login") != "" })
	if n := strings.Count(w.log.String(), "CKR_PIN_INCORRECT"); n == 0 {
		t.Error("the log does not say CKR_PIN_INCORRECT")
	}
	if n := w.logins(); n != 1 {
		t.Errorf("the PIN was tried %d times, want once", n)
	}
	w.write("hsm.pin", w.token.PIN)
	hsms, err := w.client.Login(t.Context(), "main")
	if err != nil {
		t.Fatal(err)
	}
	if len(hsms) != 1 || !hsms[0].Connected || hsms[0].Algorithm == "" {
		t.Errorf("hsm = %+v", hsms)
	}
	w.untilGeneration("payments", 1)
}

func TestMissingModule(t *testing.T) {
	w := newWorld(t)
	module := w.token.Module
	w.token.Module = "/usr/lib/softhsm/no-such-module.so"
	w.configure("")
	w.group("payments", every, "")
	w.start()
	w.until("status says that the module is missing", func() bool { return strings.Contains(w.problem("payments", "hsm"), "no-such-module.so") })
	w.token.Module = module
	w.configure("")
	w.restart()
	w.untilGeneration("payments", 1)
}

func TestWrongCSV(t *testing.T) {
	w := newWorld(t)
	w.write("prod.csv", "nothing,of,the,kind\n")
	w.group("payments", every, "")
	w.start()
	w.until("status says what is wrong with the CSV", func() bool { return strings.Contains(w.problem("payments", "pending"), "Access key ID") })
	w.write("prod.csv", "Access key ID,Secret access key\n"+accessKey+","+secretKey+"\n")
	w.reload <- struct{}{}
	w.untilGeneration("payments", 1)
}

func TestUnreachableEndpoint(t *testing.T) {
	w := newWorld(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	real := w.aws.URL
	w.aws.URL = "http://" + address
	w.configure("")
	w.aws.URL = real
	w.group("payments", every, "")
	w.start()
	w.until("status names the endpoint", func() bool { return strings.Contains(w.problem("payments", "pending"), address) })
	w.configure("")
	w.restart()
	w.untilGeneration("payments", 1)
}

func TestDeniedPermission(t *testing.T) {
	w := newWorld(t)
	w.deny(func(r awssim.Request) bool { return r.Operation == "ImportKeyMaterial" })
	w.group("payments", every, "")
	w.start()
	w.until("the job waits for a permission", func() bool {
		return strings.Contains(w.problem("payments", "waiting-permission"), "kms:ImportKeyMaterial")
	})
	job := w.openJobs("payments")[0]
	if job.WaitingFor != "permission" || job.State != control.JobRetryable {
		t.Errorf("job = %+v", job)
	}
	w.until("an event tells of it", func() bool { return len(w.eventDetails("BYOK Rotation Failed")) == 1 })
	if e := w.eventDetails("BYOK Rotation Failed")[0]; e["waiting_for"] != "permission" || e["will_retry"] != true || e["step"] != "import" {
		t.Errorf("event = %v", e)
	}
	w.faults(nil, nil)
	if _, err := w.client.Retry(t.Context(), []string{job.ID}, false); err != nil {
		t.Fatal(err)
	}
	w.untilGeneration("payments", 1)
	if n := len(w.keys()); n != 1 {
		t.Errorf("there are %d KMS keys, want 1", n)
	}
}

func TestDisablePrevious(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.group("payments", every+"\ndisable_previous = true\ndisable_previous_after = \"0s\"", "")
	w.untilGeneration("payments", 1)
	first := w.alias("payments")
	w.askRotation("payments")
	w.until("the previous key is disabled", func() bool {
		k, _ := w.sim.Key(testAccount, testRegion, first)
		return k.State == "Disabled"
	})
	w.until("an event tells of it", func() bool { return len(w.eventDetails("KMS Key Disabled")) == 1 })
	keys, err := w.client.Keys(t.Context(), "payments")
	if err != nil || keys[0].State != "disabled" || keys[1].State != "active" {
		t.Errorf("keys = %+v, %v", keys, err)
	}
}

func TestDeleteAndReimport(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.group("payments", every, "")
	w.untilGeneration("payments", 1)
	key := w.alias("payments")
	state := func() string { k, _ := w.sim.Key(testAccount, testRegion, key); return k.State }
	one := 1
	job, err := w.client.Sync(t.Context(), control.SyncRequest{Group: "payments", Generation: &one, DeleteMaterial: true})
	if err != nil {
		t.Fatal(err)
	}
	if job := w.finished(job.ID); job.State != control.JobCompleted || state() != "PendingImport" {
		t.Fatalf("job = %+v, key is %s", job, state())
	}
	w.until("an event tells of it", func() bool { return len(w.eventDetails("KMS Key Material Deleted")) == 1 })
	job, err = w.client.Sync(t.Context(), control.SyncRequest{Group: "payments", ImportMaterial: true, UpdatePolicy: true})
	if err != nil {
		t.Fatal(err)
	}
	if job := w.finished(job.ID); job.State != control.JobCompleted || state() != "Enabled" {
		t.Fatalf("job = %+v, key is %s", job, state())
	}
}

// The outbox keeps events while EventBridge is away, and their order.
func TestEventBridgeAway(t *testing.T) {
	w := newWorld(t)
	w.faults(func(r awssim.Request) *awssim.Fault {
		if r.Service == "events" {
			return &awssim.Fault{Status: 503, Code: "ServiceUnavailable"}
		}
		return nil
	}, nil)
	w.start()
	w.group("payments", every, "")
	w.untilGeneration("payments", 1)
	w.rotated("payments")
	status, err := w.client.Daemon(t.Context())
	if err != nil || status.Outbox.Pending != 2 {
		t.Fatalf("outbox = %+v, %v", status.Outbox, err)
	}
	w.faults(nil, nil)
	w.restart()
	w.reload <- struct{}{}
	w.until("both events arrived", func() bool { return len(w.eventDetails("KMS Alias Moved")) == 2 })
	if events := w.eventDetails("KMS Alias Moved"); events[0]["sequence"] != 1.0 || events[1]["sequence"] != 2.0 {
		t.Errorf("out of order: %v", events)
	}
}

// A stop in the middle of a job puts it back, and the next start goes on.
func TestStopInTheMiddle(t *testing.T) {
	w := newWorld(t)
	reached, release := make(chan struct{}), make(chan struct{})
	w.faults(func(r awssim.Request) *awssim.Fault {
		if r.Operation == "ImportKeyMaterial" {
			close(reached)
			<-release
			w.faults(nil, nil)
		}
		return nil
	}, nil)
	w.start()
	w.group("payments", every, "")
	<-reached
	stopped := make(chan error, 1)
	go func() { stopped <- w.halt() }()
	close(release)
	if err := <-stopped; err != nil {
		t.Fatalf("byokd ended with %v", err)
	}
	w.start()
	w.untilGeneration("payments", 1)
	if n := len(w.keys()); n != 1 {
		t.Errorf("there are %d KMS keys, want 1", n)
	}
	if n := len(w.jobs("payments")); n != 1 {
		t.Errorf("there are %d jobs, want 1", n)
	}
}

func TestSecondDaemonIsRefused(t *testing.T) {
	w := newWorld(t)
	w.start()
	second := &world{t: t, dir: w.dir, log: w.log}
	var ee *daemon.ExitError
	if err := second.launch(); !errors.As(err, &ee) || ee.Status != daemon.ExitHelpless {
		t.Errorf("the second byokd ended with %v", err)
	}
}

func TestForceValueRotatesOnce(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.group("payments", every+"\nforce = \"2026-01\"", "")
	w.untilGeneration("payments", 1)
	w.group("payments", every+"\nforce = \"2026-02\"", "")
	w.untilGeneration("payments", 2)
	w.group("payments", every+"\nforce = \"2026-01\"", "")
	w.reload <- struct{}{}
	w.until("the reload is done", func() bool { return w.log.contains("msg=reloaded") })
	w.until("jobs have ended", func() bool { return len(w.openJobs("payments")) == 0 })
	if n := w.generation("payments"); n != 2 {
		t.Errorf("active generation = %d, want 2: a value counts once", n)
	}
}

// A changed alias: the new one is made at the active key, the old one stays and
// is a problem until it is gone or given up.
func TestAliasChanged(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.group("payments", every, "")
	w.untilGeneration("payments", 1)
	key := w.alias("payments")
	renamed := func(more string) {
		w.write("groups.d/payments.toml", "[rotation]\n"+every+"\n[aws]\nregion = \""+testRegion+"\"\nalias = \"alias/cards\"\n"+more)
	}
	renamed("")
	w.until("the new alias is at the active key", func() bool { return w.alias("cards") == key })
	w.until("the old alias is a problem", func() bool { return strings.Contains(w.problem("payments", "old-alias"), "alias/payments") })
	w.until("an event tells of it", func() bool { return len(w.eventDetails("KMS Alias Moved")) == 2 })
	if e := w.eventDetails("KMS Alias Moved")[1]; e["alias"] != "alias/cards" || e["previous_key_id"] != nil || e["new_key_id"] != key {
		t.Errorf("event = %v", e)
	}
	w.until("jobs have ended", func() bool { return len(w.openJobs("payments")) == 0 })
	w.askRotation("payments")
	w.untilGeneration("payments", 2)
	if w.alias("payments") != key || w.alias("cards") == key {
		t.Errorf("the old alias is at %s, the new one at %s; only the new one moves", w.alias("payments"), w.alias("cards"))
	}
	w.restart()
	w.until("the old alias is a problem after a restart", func() bool { return w.problem("payments", "old-alias") != "" })
	renamed("former_aliases = [\"alias/payments\"]\n")
	w.until("it is no problem once given up", func() bool { return w.problem("payments", "old-alias") == "" })
}

// A renamed file with previous_name is the same group; without it, it is refused.
func TestFileRenamed(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.group("payments", every, "")
	w.untilGeneration("payments", 1)
	key := w.alias("payments")
	content, err := os.ReadFile(w.path("groups.d/payments.toml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(w.path("groups.d/payments.toml"), w.path("groups.d/cards.toml")); err != nil {
		t.Fatal(err)
	}
	w.until("the new name is refused", func() bool { return strings.Contains(w.problem("cards", "invalid"), "previous_name") })
	w.write("groups.d/cards.toml", string(content)+"previous_name = \"payments\"\n")
	w.untilGeneration("cards", 1)
	w.until("the old name is no group any more", func() bool { return w.status("payments").Group == "" })
	w.until("the tag has the new name", func() bool {
		k, _ := w.sim.Key(testAccount, testRegion, key)
		return k.Tags["byokd:group"] == "cards"
	})
	w.until("jobs have ended", func() bool { return len(w.openJobs("cards")) == 0 })
	w.askRotation("cards")
	w.untilGeneration("cards", 2)
	if n := len(w.keys()); n != 2 {
		t.Errorf("there are %d KMS keys, want 2", n)
	}
}

// A file that goes ends the rotations and touches no key; one that comes back is
// the same group.
func TestFileGoneAndBack(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.group("payments", every, "")
	w.untilGeneration("payments", 1)
	if err := os.Remove(w.path("groups.d/payments.toml")); err != nil {
		t.Fatal(err)
	}
	w.until("the group is removed", func() bool { return w.status("payments").State == control.GroupRemoved })
	if _, err := w.client.Rotate(t.Context(), []string{"payments"}, false); err == nil {
		t.Error("a removed group can be rotated")
	}
	w.restart()
	w.until("it is removed after a restart too", func() bool { return w.status("payments").State == control.GroupRemoved })
	w.group("payments", every, "")
	w.until("it is back", func() bool { return w.status("payments").State == control.GroupOK })
	if n := len(w.jobs("payments")); n != 1 || len(w.keys()) != 1 {
		t.Errorf("there are %d jobs and %d keys", n, len(w.keys()))
	}
}

// active_key_id takes over a key that was made by hand.
func TestAdoption(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.group("old", every, "")
	w.untilGeneration("old", 1)
	byHand := w.alias("old")
	w.halt()
	// Another machine, where nothing is known of that key but its ID.
	other := newWorld(t)
	other.sim, other.aws = w.sim, w.aws
	other.configure("")
	tags := "byokd:group"
	other.start()
	other.write("groups.d/new.toml", "[rotation]\n"+every+"\n[aws]\nregion = \""+testRegion+"\"\nalias = \"alias/old\"\n")
	other.until("the alias of somebody else is not taken", func() bool {
		return strings.Contains(other.problem("new", "alias"), `active_key_id = "`+byHand+`"`)
	})
	if len(w.keys()) != 1 {
		t.Fatal("a key was made")
	}
	other.write("groups.d/new.toml", "[rotation]\n"+every+"\n[aws]\nregion = \""+testRegion+"\"\nalias = \"alias/old\"\nactive_key_id = \""+byHand+"\"\n")
	other.until("it is generation 0", func() bool { n := other.status("new").Active.Generation; return n != nil && *n == 0 })
	if job := other.rotated("new"); job.State != control.JobCompleted {
		t.Fatalf("job = %+v", job)
	}
	if now := w.alias("old"); now == byHand {
		t.Error("the alias has not moved")
	}
	if k, _ := w.sim.Key(testAccount, testRegion, byHand); k.State != "Enabled" || k.Tags[tags] != "old" {
		t.Errorf("the adopted key: %+v", k)
	}
}

// A secret that is corrected counts at once, though the access key ID stays.
func TestSecretCorrected(t *testing.T) {
	w := newWorld(t)
	csv := func(secret string) {
		w.write("prod.csv", "Access key ID,Secret access key\n"+accessKey+","+secret+"\n")
	}
	csv("mistyped")
	w.group("payments", every, "")
	w.start()
	w.until("status says that AWS does not accept it", func() bool { return strings.Contains(w.problem("payments", "pending"), "does not accept") })
	csv(secretKey)
	w.reload <- struct{}{}
	w.untilGeneration("payments", 1)

	csv("mistyped")
	asked := w.askRotation("payments")
	w.until("the job waits", func() bool {
		open := w.openJobs("payments")
		return len(open) == 1 && open[0].WaitingFor == "permission"
	})
	csv(secretKey)
	w.reload <- struct{}{}
	if job := w.finished(asked.ID); job.State != control.JobCompleted {
		t.Errorf("job = %+v", job)
	}
}

// An account that changes behind a credential is an error, not a place for more keys.
func TestOtherAccount(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.group("payments", every, "")
	w.untilGeneration("payments", 1)
	w.write("other.csv", "Access key ID,Secret access key\nAKIAOTHER,other\n")
	config, err := os.ReadFile(w.path("byokd.toml"))
	if err != nil {
		t.Fatal(err)
	}
	w.write("byokd.toml", string(config)+"[credentials.other]\naccess_key_csv = \"other.csv\"\n")
	w.write("groups.d/payments.toml", "credential = \"other\"\n[rotation]\n"+every+"\n[aws]\nregion = \""+testRegion+"\"\nalias = \"alias/payments\"\n")
	w.reload <- struct{}{}
	w.until("the credential is the other one", func() bool { return strings.Count(w.log.String(), "msg=reloaded") == 1 })
	w.askRotation("payments")
	w.until("the job waits for a person", func() bool { return strings.Contains(w.problem("payments", "waiting-config"), otherAccount) })
	if n := len(w.sim.Keys(otherAccount, testRegion)); n != 0 {
		t.Errorf("there are %d keys in the other account", n)
	}
}

// What was only looked at before byokd became the designated device is looked at
// again, and recorded, before anything is made.
func TestDesignatedAfterDatabaseLost(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.group("payments", every, "")
	w.untilGeneration("payments", 1)
	w.loseDatabase()
	w.configure("designated = false")
	w.start()
	w.until("it was looked for the group's keys", func() bool { return w.status("payments").State != "" && w.requests("GetResources") > 1 })
	w.configure("designated = true")
	w.reload <- struct{}{}
	w.untilGeneration("payments", 1)
	if job := w.rotated("payments"); job.State != control.JobCompleted || *job.Generation != 2 || len(w.keys()) != 2 {
		t.Errorf("job = %+v, %d keys", job, len(w.keys()))
	}
}

// Open jobs of a group whose file goes wait for the file.
func TestFileGoneWhileJobWaits(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.group("payments", every, "")
	w.untilGeneration("payments", 1)
	w.deny(func(r awssim.Request) bool { return r.Operation == "CreateKey" })
	asked := w.askRotation("payments")
	w.until("the job waits", func() bool { return w.openJobs("payments")[0].WaitingFor == "permission" })
	if err := os.Remove(w.path("groups.d/payments.toml")); err != nil {
		t.Fatal(err)
	}
	w.until("the group is removed", func() bool { return w.status("payments").State == control.GroupRemoved })
	w.faults(nil, nil)
	if _, err := w.client.Retry(t.Context(), []string{asked.ID}, false); err != nil {
		t.Fatal(err)
	}
	// Another group's job is run, this one's is not.
	w.group("other", every, "")
	w.untilGeneration("other", 1)
	if n := len(w.openJobs("payments")); n != 1 || len(w.keys()) != 2 {
		t.Errorf("%d open jobs, %d keys", n, len(w.keys()))
	}
	w.group("payments", every, "")
	if job := w.finished(asked.ID); job.State != control.JobCompleted {
		t.Errorf("job = %+v", job)
	}
}

// A force value that is written while the first rotation runs is not lost.
func TestForceDuringFirstRotation(t *testing.T) {
	w := newWorld(t)
	reached, release := make(chan struct{}), make(chan struct{})
	w.faults(func(r awssim.Request) *awssim.Fault {
		if r.Operation == "ImportKeyMaterial" {
			w.faults(nil, nil)
			close(reached)
			<-release
		}
		return nil
	}, nil)
	w.start()
	w.group("payments", every, "")
	<-reached
	w.group("payments", every+"\nforce = \"one\"", "")
	w.until("the change is seen", func() bool { return w.log.contains("definition has changed") })
	close(release)
	w.untilGeneration("payments", 2)
}

// A sync that looks for a new group's keys before byokd does takes nothing from
// the group: its first generation is made all the same.
func TestSyncBeforeFirstLook(t *testing.T) {
	w := newWorld(t)
	w.faults(func(awssim.Request) *awssim.Fault { return &awssim.Fault{Drop: true} }, nil)
	w.start()
	w.group("payments", every, "")
	w.until("the group is pending", func() bool { return w.problem("payments", "pending") != "" })
	if _, err := w.client.Sync(t.Context(), control.SyncRequest{Group: "payments", ImportMaterial: true, UpdatePolicy: true}); err != nil {
		t.Fatal(err)
	}
	w.faults(nil, nil)
	if _, err := w.client.Retry(t.Context(), nil, true); err != nil {
		t.Fatal(err)
	}
	w.untilGeneration("payments", 1)
}

// A byokd that is told that it is no longer the designated device stops in the
// middle of a job, and goes on when it is again.
func TestNoLongerDesignated(t *testing.T) {
	w := newWorld(t)
	reached, release := make(chan struct{}), make(chan struct{})
	w.faults(func(r awssim.Request) *awssim.Fault {
		if r.Operation == "GetParametersForImport" {
			w.faults(nil, nil)
			close(reached)
			<-release
		}
		return nil
	}, nil)
	w.start()
	w.group("payments", every, "")
	<-reached
	w.configure("designated = false")
	w.reload <- struct{}{}
	w.until("the job is put back", func() bool {
		open := w.openJobs("payments")
		return len(open) == 1 && open[0].State == control.JobAvailable
	})
	close(release)
	if n := w.requests("ImportKeyMaterial"); n != 0 {
		t.Errorf("%d imports were made", n)
	}
	w.configure("designated = true")
	w.reload <- struct{}{}
	w.untilGeneration("payments", 1)
	if n := len(w.keys()); n != 1 {
		t.Errorf("there are %d KMS keys, want 1", n)
	}
}

// A request for what is no group is answered: it does not wait for a directory to
// become a file.
func TestRequestForDirectory(t *testing.T) {
	w := newWorld(t)
	if err := os.Mkdir(w.path("groups.d/dir.toml"), 0o700); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.write("run/requests/rotate.dir", "")
	w.until("it is rejected, with the reason", func() bool {
		reasons, _ := filepath.Glob(w.path("run/requests/rejected/*.rotate.dir.reason"))
		if len(reasons) != 1 {
			return false
		}
		reason, _ := os.ReadFile(reasons[0])
		return string(reason) == "there is no group \"dir\"\n"
	})
}
