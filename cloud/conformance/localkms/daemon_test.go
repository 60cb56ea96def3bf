package localkms_test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"byokd/cloud"
	"byokd/config"
	"byokd/daemon"
	"byokd/daemon/control"
	"byokd/hsm/hsmtest"
)

// notRunByDaemon are the parts of byokd's flow that local-kms cannot take part in.
var notRunByDaemon = map[string]string{
	"events":           "local-kms is KMS only: [events] is off",
	"account from STS": "local-kms has no STS: account is set in byokd.toml",
	"finding by tags":  "local-kms has no tagging API: byokd lists keys and their tags",
	"grants":           "local-kms has no grants: byokd says that it cannot see whether some are left behind",
	"last usage":       "local-kms is older than GetKeyLastUsage: the previous key is disabled at once",
	"active again": "local-kms is older than KeyMaterialId, without which byokd takes a key that it finds for one that never " +
		"had material: after a lost database it finds its generations, but not which one is active",
	"policies": "local-kms does not look into policies, so that policy_file shows nothing",
}

// A machine is byokd with a SoftHSM token, on local-kms.
type machine struct {
	t      *testing.T
	dir    string
	kms    *cloud.KMS // an administrator's
	client *control.Client
	stop   func()
}

// TestDaemon runs byokd's own flow on local-kms: a file becomes a key, rotation,
// deletion of key material and its import again, disabling, a lost database.
func TestDaemon(t *testing.T) {
	for _, part := range slices.Sorted(maps.Keys(notRunByDaemon)) {
		t.Logf("not run: %s: %s", part, notRunByDaemon[part])
	}
	m := newMachine(t)
	m.start()
	m.write("groups.d/payments.toml", `[rotation]
every = "90d"
keep_valid_for = "100d"
disable_previous = true
disable_previous_after = "0s"
[aws]
region = "eu-central-1"
alias = "alias/payments"
description = "on local-kms"
[aws.tags]
team = "x"
`)
	m.until("the first generation", func() bool { return len(m.keys()) == 1 && m.keys()[0].State == "active" })
	first := m.key("alias/payments")
	if first.State != "Enabled" || first.Origin != "EXTERNAL" || first.Description != "on local-kms" || time.Until(first.ValidTo) < 99*24*time.Hour {
		t.Errorf("the first key is %+v", first)
	}
	sealed, err := m.kms.Encrypt(t.Context(), "alias/payments", []byte("plain"), nil)
	if err != nil {
		t.Fatal(err)
	}

	jobs, err := m.client.Rotate(t.Context(), []string{"payments"}, false)
	if err != nil {
		t.Fatal(err)
	}
	m.done(jobs[0].ID)
	second := m.key("alias/payments")
	if second.ID == first.ID || second.State != "Enabled" {
		t.Errorf("the second key is %+v", second)
	}
	m.until("the previous key is disabled", func() bool { return m.key(first.ID).State == "Disabled" })
	if err := m.kms.EnableKey(t.Context(), first.ID); err != nil {
		t.Fatal(err)
	}
	if opened, err := m.kms.Decrypt(t.Context(), first.ID, sealed, nil); err != nil || string(opened) != "plain" {
		t.Errorf("what the first key encrypted decrypts to %q, %v", opened, err)
	}

	m.sync(control.SyncRequest{Group: "payments", Generation: new(2), DeleteMaterial: true})
	if state := m.key(second.ID).State; state != "PendingImport" {
		t.Errorf("without key material the second key is %s", state)
	}
	m.sync(control.SyncRequest{Group: "payments", Generation: new(2), ImportMaterial: true, UpdatePolicy: true})
	if state := m.key(second.ID).State; state != "Enabled" {
		t.Errorf("with its key material again the second key is %s", state)
	}

	m.stop()
	files, err := filepath.Glob(filepath.Join(m.dir, "state", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	m.start()
	m.until("both generations are found again", func() bool {
		keys := m.keys()
		return len(keys) == 2 && string(keys[0].KeyID) == first.ID && string(keys[1].KeyID) == second.ID
	})
	if now := m.key("alias/payments"); now.ID != second.ID {
		t.Errorf("the alias points at %s", now.ID)
	}
}

func newMachine(t *testing.T) *machine {
	m := &machine{t: t, dir: t.TempDir()}
	token, url := hsmtest.NewSoftHSM(t), serve(t)
	for _, sub := range []string{"groups.d", "state", "run"} {
		if err := os.Mkdir(filepath.Join(m.dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	m.write("hsm.pin", token.PIN)
	m.write("prod.csv", "Access key ID,Secret access key\nAKIABYOKD,secret\n")
	m.write("byokd.toml", fmt.Sprintf(`state_dir = "state"
runtime_dir = "run"
settle = "50ms"
[hsm.main]
module = %q
token_label = %q
pin_file = "hsm.pin"
[credentials.prod]
access_key_csv = "prod.csv"
account = "111122223333"
[aws]
wrapping_key_spec = "RSA_2048"
kms_endpoint = %[3]q
sts_endpoint = %[3]q
tagging_endpoint = %[3]q
[aws.quotas]
get_parameters_for_import = 1000.0
[events]
enabled = false
`, token.Module, token.Label, url))
	aws := cloud.New(cloud.Settings{KMSEndpoint: url, STSEndpoint: url, TaggingEndpoint: url,
		Credentials: map[string]cloud.Credential{"admin": {Name: "admin", AccessKeyCSV: func() ([]byte, error) {
			return []byte("Access key ID,Secret access key\nAKIAADMIN,secret\n"), nil
		}}}})
	t.Cleanup(aws.Close)
	var err error
	if m.kms, err = aws.KMS("admin", "eu-central-1"); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *machine) write(name, content string) {
	m.t.Helper()
	if err := os.WriteFile(filepath.Join(m.dir, name), []byte(content), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

// start makes a database, if there is none, starts byokd and waits until it is
// ready.
func (m *machine) start() {
	m.t.Helper()
	path := filepath.Join(m.dir, "byokd.toml")
	cfg, err := config.Load(path, config.DefaultOptions())
	if err != nil {
		m.t.Fatal(err)
	}
	if _, err := daemon.InitState(cfg); err != nil {
		m.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	o := daemon.DefaultOptions()
	o.ConfigPath, o.Version, o.Logger = path, "test", slog.New(slog.NewTextHandler(m.t.Output(), nil))
	o.Started = func() { close(ready) }
	go func() { ended <- daemon.Run(ctx, o) }()
	select {
	case <-ready:
	case err := <-ended:
		stop()
		m.t.Fatalf("byokd does not start: %v", err)
	}
	m.client = control.NewClient(cfg.Socket())
	m.stop = func() {
		if m.client == nil {
			return
		}
		m.client.Close()
		m.client = nil
		stop()
		if err := <-ended; err != nil {
			m.t.Errorf("byokd ended with %v", err)
		}
	}
	m.t.Cleanup(m.stop)
}

// until waits for a condition; the limit is for a test that hangs.
func (m *machine) until(what string, ok func() bool) {
	m.t.Helper()
	for end := time.Now().Add(60 * time.Second); !ok(); {
		if time.Now().After(end) {
			m.t.Fatalf("this did not come about: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (m *machine) keys() []control.Key {
	m.t.Helper()
	keys, err := m.client.Keys(m.t.Context(), "payments")
	if err != nil {
		return nil // the group is not known yet
	}
	return keys
}

func (m *machine) key(name string) cloud.Key {
	m.t.Helper()
	key, err := m.kms.DescribeKey(m.t.Context(), name)
	if err != nil {
		m.t.Fatal(err)
	}
	return key
}

func (m *machine) sync(r control.SyncRequest) {
	m.t.Helper()
	job, err := m.client.Sync(m.t.Context(), r)
	if err != nil {
		m.t.Fatal(err)
	}
	m.done(job.ID)
}

// done waits until a job has ended, and checks that it did well.
func (m *machine) done(id string) {
	m.t.Helper()
	var job control.Job
	if err := m.client.Watch(m.t.Context(), id, func(j control.Job) error { job = j; return nil }); err != nil {
		m.t.Fatal(err)
	}
	if job.State != control.JobCompleted {
		m.t.Fatalf("job %+v", job)
	}
}
