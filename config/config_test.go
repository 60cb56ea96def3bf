package config_test

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"byokd/config"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// sameConfig compares what was configured, not where it was written.
var sameConfig = cmp.Options{
	cmpopts.IgnoreUnexported(config.Config{}, config.HSM{}, config.Credential{}, config.Group{}),
	cmpopts.IgnoreFields(config.Config{}, "Path"),
	cmpopts.IgnoreFields(config.Group{}, "Path"),
	cmpopts.IgnoreFields(config.GroupAWS{}, "PolicyFile"),
	cmpopts.EquateEmpty(),
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Every key of the contract is there, with the value that it has when it is
// left out; the examples of the contract are in other tables.
func TestContractShowsTheDefaults(t *testing.T) {
	contract := read(t, "testdata/contract/byokd.toml")
	tr := newTree(t, map[string]string{"byokd.toml": strings.ReplaceAll(contract, "/usr/lib/softhsm/libsofthsm2.so", "$DIR/module.so")})
	written := tr.load(t)

	// Without what is marked as an example and has no default.
	var examples []string
	example := false
	for line := range strings.Lines(contract) {
		if strings.HasPrefix(line, "[") {
			example = strings.HasPrefix(line, "[hsm") || strings.HasPrefix(line, "[credentials") || strings.HasPrefix(line, "[aws.endpoints")
		}
		if example {
			examples = append(examples, line)
		}
	}
	tr.write(t, "byokd.toml", strings.NewReplacer(
		"/usr/lib/softhsm/libsofthsm2.so", "$DIR/module.so",
		`wrapping      = "auto"`, "", "max_parallel  = 1", "", `call_timeout  = "2m"`, "", `init_reserved = ""`, "",
		`role_arn    = ""`, "", `external_id = ""`, "", `account     = ""`, "",
	).Replace(strings.Join(examples, "")), 0o644)
	leftOut := tr.load(t)
	if diff := cmp.Diff(written, leftOut, sameConfig); diff != "" {
		t.Errorf("written (-) and left out (+):\n%s", diff)
	}
	if got, want := len(written.HSMs), 1; got != want {
		t.Errorf("%d HSMs, want %d", got, want)
	}

	// The contract's byokd.toml names every key that the decoder knows.
	for _, key := range tomlKeys(reflect.TypeFor[config.Config]()) {
		if !strings.Contains(contract, key) {
			t.Errorf("the contract does not have the key %s", key)
		}
	}
	group := read(t, "testdata/contract/groups.d/payments.toml")
	for _, key := range tomlKeys(reflect.TypeFor[config.Group]()) {
		if !strings.Contains(group, key) {
			t.Errorf("the contract does not have the key %s", key)
		}
	}
}

// tomlKeys returns the names of all keys of a struct.
func tomlKeys(t reflect.Type) []string {
	var keys []string
	for t.Kind() == reflect.Map || t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return nil
	}
	for f := range t.Fields() {
		if tag := f.Tag.Get("toml"); tag != "" && tag != "-" {
			name, _, _ := strings.Cut(tag, ",")
			keys = append(append(keys, name), tomlKeys(f.Type)...)
		}
	}
	return keys
}

func TestDefaults(t *testing.T) {
	tr := newTree(t, map[string]string{"byokd.toml": ""})
	want := &config.Config{
		GroupsDir:  tr.path("groups.d"),
		StateDir:   "/var/lib/byokd",
		RuntimeDir: "/run/byokd",
		Designated: true,
		Timezone:   "UTC",
		Settle:     config.Duration(time.Second),
		DriftCheck: config.Duration(time.Hour),
		AWS:        config.AWS{WrappingKeySpec: "RSA_4096", Quotas: awsQuotas},
		Events:     config.Events{Enabled: true, Bus: "default", Source: "byokd"},
		Log:        config.Log{Level: "info", Format: "auto"},
		Retention:  config.Retention{Jobs: config.Duration(400 * 24 * time.Hour)},
	}
	cfg := tr.load(t)
	if diff := cmp.Diff(want, cfg, sameConfig); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if cfg.Path != tr.path("byokd.toml") {
		t.Errorf("Path is %s", cfg.Path)
	}
}

// What byokd.toml sets itself is told from AWS's defaults, whatever the value.
func TestGivenQuotas(t *testing.T) {
	for toml, want := range map[string]map[string]float64{
		"": {},
		"[aws.quotas]\nfrom_service_quotas = true":                      {},
		"[aws.quotas]\nget_parameters_for_import = 1.0\ncreate_key = 7": {"get_parameters_for_import": 1, "create_key": 7},
		"aws.quotas = { list_grants = 3 }":                              {"list_grants": 3},
		"aws.quotas.list_grants = 3":                                    {"list_grants": 3},
	} {
		cfg := newTree(t, map[string]string{"byokd.toml": toml}).load(t)
		if diff := cmp.Diff(want, cfg.GivenQuotas()); diff != "" {
			t.Errorf("%q: (-want +got):\n%s", toml, diff)
		}
	}
}

// An explicit key comes before systemd's environment, and that before the
// built-in default.
func TestDirectories(t *testing.T) {
	systemd := map[string]string{"STATE_DIRECTORY": "/var/lib/private/byokd:/var/lib/other", "RUNTIME_DIRECTORY": "/run/byokd-test"}
	tests := []struct {
		name, toml string
		env        map[string]string
		database   string
		requests   string
	}{
		{"built in", "", nil, "/var/lib/byokd/byokd.db", "/run/byokd/requests"},
		{"environment", "", systemd, "/var/lib/private/byokd/byokd.db", "/run/byokd-test/requests"},
		{"empty environment", "", map[string]string{"STATE_DIRECTORY": ""}, "/var/lib/byokd/byokd.db", "/run/byokd/requests"},
		{"explicit", "state_dir = '/srv/state/'\nruntime_dir = 'run'", systemd, "/srv/state/byokd.db", "$DIR/run/requests"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tr := newTree(t, map[string]string{"byokd.toml": tt.toml})
			tr.opts.LookupEnv = func(key string) (string, bool) {
				v, ok := tt.env[key]
				return v, ok
			}
			cfg := tr.load(t)
			if cfg.Database() != tt.database {
				t.Errorf("database %s, want %s", cfg.Database(), tt.database)
			}
			if want := strings.ReplaceAll(tt.requests, "$DIR", tr.dir); cfg.RequestsDir() != want {
				t.Errorf("requests %s, want %s", cfg.RequestsDir(), want)
			}
			if want := filepath.Join(filepath.Dir(cfg.RequestsDir()), "control.sock"); cfg.Socket() != want {
				t.Errorf("socket %s, want %s", cfg.Socket(), want)
			}
		})
	}
}

func TestKeyTemplate(t *testing.T) {
	tr := newTree(t, map[string]string{"byokd.toml": `
[hsm.main]
module = "$DIR/module.so"
token_serial = "42"
pin_file = "hsm.pin"
[hsm.main.key_template]
CKA_MODIFIABLE = false
DERIVE = "omit"
VENDOR_FLAGS = 0x80
CKA_VENDOR_ZONE = "eu"
`})
	want := map[string]config.Attribute{
		"CKA_MODIFIABLE":   {Value: false},
		"CKA_DERIVE":       {Omit: true},
		"CKA_VENDOR_FLAGS": {Value: uint64(0x80)},
		"CKA_VENDOR_ZONE":  {Value: "eu"},
	}
	if diff := cmp.Diff(want, tr.load(t).HSMs["main"].KeyTemplate); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestCheckEndpoint(t *testing.T) {
	tests := []struct {
		url string
		ok  bool
	}{
		{"https://kms.eu-central-1.amazonaws.com", true},
		{"https://vpce-1.example.com:8443/kms", true},
		{"http://127.0.0.1:4566", true},
		{"http://127.8.8.8", true},
		{"http://[::1]:4566", true},
		{"http://localhost:4566", true},
		{"http://localhost.example.com", false},
		{"http://127.0.0.1.example.com", false},
		{"http://0.0.0.0:4566", false},
		{"http://169.254.169.254", false},
		{"HTTP://example.com", false},
		{"https://", false},
		{"https:kms.example.com", false},
		{"kms.example.com:443", false},
		{"//kms.example.com", false},
		{"unix:///run/kms.sock", false},
		{"https://user@kms.example.com", false},
		{"https://kms.example.com#f", false},
		{"https://kms.example.com?", false},
		{"\x7f", false},
	}
	for _, tt := range tests {
		if err := config.CheckEndpoint(tt.url); (err == nil) != tt.ok {
			t.Errorf("%q: %v", tt.url, err)
		}
	}
}

// Whoever validates a file before it is installed has it under another name.
func TestStandIn(t *testing.T) {
	tr := newTree(t, map[string]string{"groups.d/cards.toml": group("alias/cards"), "groups.d/policy.json": "{}"})
	tr.write(t, "tmp/source", group("alias/cards")+"policy_file = \"policy.json\"\n", 0o666)
	chmod(t, tr.path("tmp"), 0o777)

	tr.opts.StandIn = map[string]string{tr.path("groups.d/payments.toml"): tr.path("tmp/source")}
	cfg := tr.load(t)
	set := tr.loadDir(t)
	payments := set.Groups["payments"]
	if payments == nil {
		t.Fatalf("no group payments: %v", set.Problems)
	}
	if string(payments.Policy) != "{}" || payments.AWS.PolicyFile != tr.path("groups.d/policy.json") {
		t.Errorf("policy %q of %s", payments.Policy, payments.AWS.PolicyFile)
	}
	problems := config.CheckSet(cfg, []*config.Group{payments, set.Groups["cards"]}, nil)["payments"]
	if len(problems) != 1 || !strings.HasPrefix(problems[0].String(), tr.path("tmp/source")+":5:1: aws.alias: ") {
		t.Errorf("problems %v", problems)
	}
	if _, err := config.LoadGroup(cfg, tr.path("groups.d/payments.toml"), tr.opts); err != nil {
		t.Error(err)
	}

	tr.write(t, "tmp/source", "designated = 1\ngroups_dir = 'g'\n", 0o666)
	tr.opts.StandIn = map[string]string{tr.path("byokd.toml"): tr.path("tmp/source")}
	_, err := config.Load(tr.path("byokd.toml"), tr.opts)
	if want := tr.path("tmp/source") + ":1:1: designated: must be true or false, not an integer"; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	tr.write(t, "tmp/source", "groups_dir = 'g'\n", 0o666)
	if cfg := tr.load(t); cfg.GroupsDir != tr.path("g") {
		t.Errorf("groups_dir %s", cfg.GroupsDir)
	}
	tr.opts.StandIn[tr.path("byokd.toml")] = tr.path("tmp/none")
	if _, err := config.Load(tr.path("byokd.toml"), tr.opts); err == nil {
		t.Error("a stand-in that does not exist was read")
	}
}

func TestChanges(t *testing.T) {
	oldTOML := `
[hsm.main]
module = "$DIR/module.so"
token_label = "byokd"
pin_file = "hsm.pin"
[hsm.main.key_template]
DERIVE = "omit"
[credentials.prod]
access_key_csv = "prod.csv"
`
	tr := newTree(t, map[string]string{"byokd.toml": oldTOML})
	old := tr.load(t)
	if follow, restart := config.Changes(old, tr.load(t)); len(follow)+len(restart) > 0 {
		t.Errorf("nothing changed, but %v, %v", follow, restart)
	}
	tr.write(t, "byokd.toml", `
designated = false
timezone = "Europe/Berlin"
max_jobs = 3
settle = "2s"
drift_check = "0s"
state_dir = "state"
groups_dir = "g"
[hsm.main]
module = "$DIR/module.so"
token_label = "byokd"
pin_file = "other.pin"
[hsm.main.key_template]
DERIVE = false
[hsm.second]
module = "$DIR/module.so"
token_label = "second"
pin_file = "hsm.pin"
[credentials.prod]
access_key_csv = "prod.csv"
account = "111122223333"
[credentials.dev]
default_chain = true
[aws]
kms_endpoint = "https://example.com"
quotas.get_parameters_for_import = 5
quotas.update_alias = 1.5
endpoints.eu-central-1.kms = "https://example.com"
[log]
level = "debug"
[events]
enabled = false
[metrics]
listen = "127.0.0.1:9464"
[retention]
jobs = "30d"
`, 0o644)
	follow, restart := config.Changes(old, tr.load(t))
	if diff := cmp.Diff([]string{
		"credentials.dev", "credentials.prod.account", "designated", "drift_check", "events.enabled",
		"log.level", "max_jobs", "settle", "timezone",
	}, follow); diff != "" {
		t.Errorf("follow SIGHUP (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{
		"aws.endpoints.eu-central-1", "aws.kms_endpoint", "aws.quotas.get_parameters_for_import", "aws.quotas.update_alias", "groups_dir",
		"hsm.main.key_template.CKA_DERIVE", "hsm.main.pin_file", "hsm.second", "metrics.listen", "retention.jobs", "state_dir",
	}, restart); diff != "" {
		t.Errorf("need a restart (-want +got):\n%s", diff)
	}
}

// Defaults that are written out are no mistake, and each mistake is one message.
func TestOneMessage(t *testing.T) {
	tests := []struct{ name, byokd, rotation, want string }{
		{"default values", "drift_check = '60m'\n[page]\nlisten = ''\n[hooks]\n", `mode = "alias"
on_expiry = "rotate"
delete_previous_material_after = ""
schedule_previous_deletion_after = ""
keep_generations = 0
manage_adopted = false
grants = "warn"
drift = "report"`, ""},
		{"drift check off", "drift_check = '0s'", "", ""},
		{"mistake in hooks", "[hooks]\n'*' = 'relative'", "", `hooks."*": must begin with`},
		{"mistake in page", "[page]\nlisten = '0.0.0.0:80'", "", "page.listen: \"0.0.0.0:80\" is not a loopback"},
		{"combination", "", "mode = 'in-place'\ndisable_previous = true", "rotation.disable_previous: would"},
		{"wrong type", "", "drift = 1", "rotation.drift: must be a string"},
		{"everything", "", "grants = 'copy'\nmode = 'auto'\ndrift = 'repair'\nkeep_generations = 3\nmanage_adopted = true", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tr := newTree(t, map[string]string{
				"byokd.toml":       tt.byokd + "\n" + baseConfig,
				"groups.d/a.toml":  strings.Replace(group("alias/a"), "[rotation]", "[rotation]\n"+tt.rotation, 1),
				"groups.d/ok.toml": group("alias/ok"),
			})
			got := strings.TrimSpace(tr.messages(t))
			if tt.want == "" && got != "" || tt.want != "" && (strings.Count(got, "\n") > 0 || !strings.Contains(got, tt.want)) {
				t.Errorf("got %q, want one message with %q", got, tt.want)
			}
		})
	}
}

// The examples in docs are good, and name nothing that byokd does not know.
func TestExamples(t *testing.T) {
	files := map[string]string{
		"byokd.toml": strings.ReplaceAll(read(t, "../docs/examples/byokd.toml"), "/usr/lib/softhsm/libsofthsm2.so", "$DIR/module.so"),
	}
	for _, name := range []string{"groups.d/payments.toml", "groups.d/payments-policy.json"} {
		files[name] = read(t, filepath.Join("../docs/examples", name))
	}
	// Whatever is commented out is good as well, in place of what excludes it.
	alternative := func(toml string, drop ...string) string {
		var b strings.Builder
		for line := range strings.Lines(toml) {
			key, _, isSetting := strings.Cut(strings.TrimPrefix(line, "# "), "=")
			key = strings.TrimSpace(key)
			switch {
			case isSetting && dropped(drop, key):
			case strings.HasPrefix(line, "# ["), isSetting && strings.HasPrefix(line, "# ") && !strings.ContainsAny(key, " :"):
				b.WriteString(strings.TrimPrefix(line, "# "))
			default:
				b.WriteString(line)
			}
		}
		return b.String()
	}
	others := map[string]string{
		"byokd.toml": alternative(files["byokd.toml"], "pin_credential", "access_key_csv", "access_key_credential", "profile", "shared_config_file", "shared_credentials_file", "credential_process") +
			"[credentials.other]\nprofile = \"byok\"\n",
		"groups.d/payments.toml":        alternative(files["groups.d/payments.toml"], "every", "active_key_id"),
		"groups.d/payments-policy.json": files["groups.d/payments-policy.json"],
	}
	for i, files := range []map[string]string{files, others} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			tr := newTree(t, files)
			if m := tr.messages(t); m != "" {
				t.Errorf("%s\n%s\n%s", m, files["byokd.toml"], files["groups.d/payments.toml"])
			}
			if g := tr.loadDir(t).Groups["payments"]; g == nil || g.Policy == nil || g.AWS.Alias != "alias/payments" {
				t.Errorf("group %+v", g)
			}
		})
	}
}

func dropped(drop []string, key string) bool {
	for _, d := range drop {
		if d == key {
			return true
		}
	}
	return false
}

// awsQuotas are AWS's defaults.
var awsQuotas = config.Quotas{
	GetParametersForImport: 1, ImportKeyMaterial: 15, DeleteImportedKeyMaterial: 15, CreateKey: 5, CreateAlias: 5, UpdateAlias: 5,
	PutKeyPolicy: 15, TagResource: 10, UntagResource: 5, UpdateKeyDescription: 5, EnableKey: 5, DisableKey: 5,
	ScheduleKeyDeletion: 15, CancelKeyDeletion: 5, RotateKeyOnDemand: 5, ListKeyRotations: 100, GetKeyLastUsage: 5,
	CreateGrant: 50, ListGrants: 100,
}
