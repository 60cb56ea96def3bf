package daemon_test

import (
	"cmp"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"byokd/cloud"
	"byokd/cloud/awssim"
	"byokd/config"
	"byokd/daemon"
	"byokd/daemon/control"
)

const (
	byokdUser = "arn:aws:iam::" + testAccount + ":user/awssim"
	byokdRole = "arn:aws:iam::" + testAccount + ":role/byokd"
)

// A leastWorld is a world in which byokd has what `byokctl iam-policy` prints,
// less one action, and goes through all that it does in AWS.
type leastWorld struct {
	*world
	missing string // the action that is not granted; "": none
	admin   *cloud.KMS
	named   string // the key that active_key_id names
	twin    string // the double that the flow makes; "": not yet
}

// TestLeastPolicy runs byokd under exactly the least policy, and then under it
// less one action, for each action that stands in it: nothing is missing, and
// nothing is too much.
func TestLeastPolicy(t *testing.T) {
	var actions []string
	t.Run("exactly", func(t *testing.T) {
		w := newLeastWorld(t, "")
		actions = w.actions()
		w.flow()
		for _, r := range w.sim.Requests() {
			if strings.HasPrefix(r.Code, "AccessDenied") {
				t.Errorf("%s was refused to byokd", r.Operation)
			}
		}
		for _, action := range actions { // or what the others look for would be there anyway
			if w.told("grant " + action) { // not what else went wrong with it, such as credentials that expired
				t.Errorf("byokd says that %s is missing, which it has", action)
			}
		}
	})
	for _, action := range actions {
		t.Run("without "+action, func(t *testing.T) { newLeastWorld(t, action).flow() })
	}
}

// checkOperations fails a test in which byokd has sent an operation that no
// policy of `byokctl iam-policy` would grant, whatever the definition.
func (w *world) checkOperations() {
	description, soon := "", config.Duration(0)
	everything := &config.Group{Name: "all", Credential: "prod"}
	everything.AWS.Region, everything.AWS.Alias, everything.AWS.Description = testRegion, "alias/all", &description
	everything.Rotation = config.Rotation{Mode: "auto", Verify: "auto", KeepValidFor: 1, DisablePrevious: true, KeepGenerations: 1,
		DeletePreviousMaterialAfter: &soon, SchedulePreviousDeletionAfter: &soon, Grants: "copy", Drift: "repair", OnExpiry: "reimport"}
	still := *everything // of what is not disabled other things are asked
	still.Rotation.DisablePrevious = false
	cfg := &config.Config{Credentials: map[string]config.Credential{"prod": {RoleARN: byokdRole}}}
	cfg.Events.Enabled, cfg.Events.Bus, cfg.AWS.Quotas.FromServiceQuotas = true, "default", true
	granted := map[string]bool{"sts:GetCallerIdentity": true, "kms:ListKeys": true} // needs nothing; only where there is no tagging API
	for _, p := range daemon.Policies(cfg, []*config.Group{everything, &still}) {
		for _, s := range p.Policy.Statement {
			for _, action := range s.Action {
				granted[action] = true
			}
		}
	}
	prefixes := map[string]string{"tagging": "tag"}
	for _, r := range w.sim.Requests() {
		action := cmp.Or(prefixes[r.Service], r.Service) + ":" + r.Operation
		if r.AccessKey != adminKey && !granted[action] {
			w.t.Errorf("byokd sends %s, which byokctl iam-policy does not grant: see operations in permissions.go", action)
			granted[action] = true
		}
	}
}

func newLeastWorld(t *testing.T, missing string) *leastWorld {
	w := &leastWorld{world: newWorld(t), missing: missing}
	w.quotas += "from_service_quotas = true\n"
	w.configure("")
	toml, err := os.ReadFile(w.path("byokd.toml"))
	if err != nil {
		t.Fatal(err)
	}
	w.write("byokd.toml", strings.Replace(string(toml), "access_key_csv = \"prod.csv\"\n", "access_key_csv = \"prod.csv\"\nrole_arn = \""+byokdRole+"\"\n", 1))
	aws := cloud.New(cloud.Settings{
		KMSEndpoint: w.aws.URL, STSEndpoint: w.aws.URL, TaggingEndpoint: w.aws.URL,
		Credentials: map[string]cloud.Credential{"admin": {Name: "admin", AccessKeyCSV: func() ([]byte, error) {
			return []byte("Access key ID,Secret access key\n" + adminKey + "," + adminSecret + "\n"), nil
		}}},
	})
	t.Cleanup(aws.Close)
	if w.admin, err = aws.KMS("admin", testRegion); err != nil {
		t.Fatal(err)
	}
	key, err := w.admin.CreateKey(t.Context(), "", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	w.named = key.ID
	w.write("groups.d/policy.json", w.keyPolicy("one"))
	w.define("first", "team = \"a\"\ncost = \"b\"")
	w.group("named", every+"\nmode = \"in-place\"", "active_key_id = \""+w.named+"\"")
	for _, p := range w.policies() {
		principal := string(p.Role)
		if principal == "" {
			principal = byokdUser
		}
		if err := w.sim.SetPolicy(principal, without(t, p.Policy, missing)); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// define writes the file of the group that has everything.
func (w *leastWorld) define(description, tags string) {
	w.group("payments", every+"\nkeep_valid_for = \"200d\"\ndisable_previous = true\ndisable_previous_after = \"1h\"\ngrants = \"copy\"\n"+
		"delete_previous_material_after = \"4d\"\nschedule_previous_deletion_after = \"10d\"",
		"description = \""+description+"\"\npolicy_file = \"policy.json\"\n[aws.tags]\n"+tags)
}

func (w *leastWorld) keyPolicy(sid string) string {
	return `{"Version":"2012-10-17","Statement":[{"Sid":"` + sid + `","Effect":"Allow","Principal":{"AWS":"` + testAccount + `"},"Action":"kms:*","Resource":"*"}]}`
}

func (w *leastWorld) policies() []daemon.PrincipalPolicy {
	w.t.Helper()
	cfg := w.config()
	set, err := config.LoadDir(cfg, config.DefaultOptions())
	if err != nil || len(set.Problems) > 0 {
		w.t.Fatal(err, set.Problems)
	}
	return daemon.Policies(cfg, []*config.Group{set.Groups["payments"], set.Groups["named"]})
}

// actions are those of all the policies.
func (w *leastWorld) actions() (all []string) {
	for _, p := range w.policies() {
		for _, s := range p.Policy.Statement {
			all = append(all, s.Action...)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// without returns the document without an action.
func without(t *testing.T, p cloud.IAMPolicy, action string) json.RawMessage {
	t.Helper()
	var kept []cloud.IAMStatement
	for _, s := range p.Statement {
		if s.Action = slices.DeleteFunc(slices.Clone(s.Action), func(a string) bool { return a == action }); len(s.Action) > 0 {
			kept = append(kept, s)
		}
	}
	p.Statement = kept
	if len(kept) == 0 {
		return json.RawMessage(`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"none:none","Resource":"*"}}`)
	}
	document, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return document
}

// flow goes through everything, up to where the missing permission is told of.
func (w *leastWorld) flow() {
	w.t.Helper()
	w.start()
	steps := []struct {
		what string
		do   func()
		ok   func() bool
	}{
		{"the look for generations", func() {}, func() bool { return w.sawKeys("named") }},
		{"the first generations", func() { w.askRotation("named") }, func() bool { return w.settled("payments", 1) && w.settled("named", 1) && w.alias("named") == w.named }},
		{"the events of the first generations", func() {}, func() bool { return len(w.eventDetails("KMS Alias Moved")) == 2 }},
		{"a rotation", func() { w.grant(); w.askRotation("payments"); w.askRotation("named") }, func() bool { return w.settled("payments", 2) && w.settled("named", 2) }},
		{"a changed definition", w.redefine, w.redefined},
		{"deletion of key material", func() { w.ask(control.SyncRequest{Group: "payments", Generation: new(2), DeleteMaterial: true}) },
			func() bool { return w.state(2) == "PendingImport" }},
		{"import of deleted key material", func() { w.ask(control.SyncRequest{Group: "payments", ImportMaterial: true}) },
			func() bool { return w.state(2) == "Enabled" && len(w.pendingJobs()) == 0 }},
		{"disabling of the previous key", func() { w.later(25 * time.Hour) }, func() bool { return w.state(1) == "Disabled" }},
		{"deletion of its key material", func() { w.later(4 * 24 * time.Hour) }, func() bool { return w.state(1) == "PendingImport" }},
		{"its deletion", func() { w.later(8 * 24 * time.Hour) }, func() bool { return w.state(1) == "PendingDeletion" }},
		{"the end of that", func() {
			if _, err := w.client.Keep(w.t.Context(), control.KeepRequest{Group: "payments", Generation: 1}); err != nil {
				w.t.Fatal(err)
			}
		}, func() bool { return w.state(1) == "PendingImport" }},
		{"recovery of a lost database", func() { w.loseDatabase(); w.double(); w.start() },
			func() bool { return w.generation("payments") == 2 && w.generation("named") == 2 }},
		{"deletion of a double", func() {}, func() bool {
			double, _ := w.sim.Key(testAccount, testRegion, w.twin)
			return double.State == "PendingDeletion"
		}},
		{"a rotation after recovery", func() { w.askRotation("payments") }, func() bool { return w.settled("payments", 3) }},
		{"a roll back", func() {
			w.later(30 * time.Minute) // the move before must show everywhere; the previous key is not disabled yet
			if _, err := w.client.Rollback(w.t.Context(), control.RollbackRequest{Group: "payments"}); err != nil {
				w.t.Fatal(err)
			}
		}, func() bool { return w.generation("payments") == 2 && w.alias("payments") == w.key(2).ID }},
	}
	for _, step := range steps {
		step.do()
		told := false
		w.until(step.what+", or what is missing for it", func() bool {
			told = w.missing != "" && w.told(w.missing)
			return told || step.ok()
		})
		if told {
			w.t.Logf("told at: %s", step.what)
			return
		}
	}
	if w.missing != "" {
		w.t.Errorf("nothing was wrong, or nothing was said of it, without %s", w.missing)
	}
}

// told reports whether byokd says that an action is not granted: in a problem,
// a job or its steps, or the log.
func (w *leastWorld) told(action string) bool {
	names := func(s control.String) bool { return strings.Contains(string(s), action) }
	status, err := w.client.Status(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, g := range status {
		if slices.ContainsFunc(g.Problems, func(p control.Problem) bool { return strings.Contains(p.Message, action) }) {
			return true
		}
		for _, j := range w.jobs(g.Group) {
			job, err := w.client.Job(w.t.Context(), j.ID)
			if err != nil {
				w.t.Fatal(err)
			}
			if names(job.Error) || slices.ContainsFunc(job.Steps, func(s control.Step) bool { return names(s.Message) }) {
				return true
			}
		}
	}
	for line := range strings.Lines(w.log.String()) {
		if (strings.Contains(line, "level=WARN") || strings.Contains(line, "level=ERROR")) && strings.Contains(line, action) {
			return true
		}
	}
	return false
}

// sawKeys reports whether byokd has looked for the group's keys and found one.
func (w *leastWorld) sawKeys(name string) bool {
	w.t.Helper()
	keys, err := w.client.Keys(w.t.Context(), name)
	return err == nil && len(keys) > 0
}

func (w *leastWorld) settled(name string, n int) bool {
	return w.generation(name) == n && !slices.ContainsFunc(w.openJobs(name), func(j control.JobSummary) bool { return j.Kind == "rotate" })
}

// pendingJobs are those that are not retirements, which wait for their time.
func (w *leastWorld) pendingJobs() []control.JobSummary {
	return slices.DeleteFunc(w.openJobs("payments"), func(j control.JobSummary) bool { return j.Kind == "retire" })
}

func (w *leastWorld) ask(r control.SyncRequest) {
	w.t.Helper()
	if _, err := w.client.Sync(w.t.Context(), r); err != nil {
		w.t.Fatal(err)
	}
}

// key is the KMS key of a generation of payments.
func (w *leastWorld) key(generation int) awssim.Key {
	w.t.Helper()
	keys, err := w.client.Keys(w.t.Context(), "payments")
	if err != nil {
		w.t.Fatal(err)
	}
	for _, k := range keys {
		if k.Generation == generation {
			key, _ := w.sim.Key(testAccount, testRegion, string(k.KeyID))
			return key
		}
	}
	return awssim.Key{}
}

func (w *leastWorld) state(generation int) string { return w.key(generation).State }

// redefine changes all that is synchronized, and redefined tells when it is.
func (w *leastWorld) redefine() {
	w.write("groups.d/policy.json", w.keyPolicy("two"))
	w.define("second", "team = \"c\"")
}

func (w *leastWorld) redefined() bool {
	key := w.key(2)
	_, cost := key.Tags["cost"]
	return key.Description == "second" && key.Tags["team"] == "c" && !cost && strings.Contains(key.Policy, "two") && len(w.pendingJobs()) == 0
}

// later moves the clocks.
func (w *leastWorld) later(d time.Duration) {
	w.sim.Advance(d)
	w.at(w.sim.Now())
}

// grant lets somebody use the key of payments, which byokd is to copy to the next.
func (w *leastWorld) grant() {
	w.t.Helper()
	g := cloud.Grant{Name: "backup", Grantee: "arn:aws:iam::" + testAccount + ":role/backup", Operations: []string{"Decrypt"}}
	if err := w.admin.CreateGrant(w.t.Context(), w.key(1).ID, g); err != nil {
		w.t.Fatal(err)
	}
}

// double makes what an unanswered CreateKey may leave: a second key with the
// tags of a generation.
func (w *leastWorld) double() {
	w.t.Helper()
	for _, k := range w.keys() {
		if k.Tags["byokd:group"] == "payments" && k.Tags["byokd:generation"] == "2" {
			double, err := w.admin.CreateKey(w.t.Context(), "", "", k.Tags)
			if err != nil {
				w.t.Fatal(err)
			}
			w.twin = double.ID
			return
		}
	}
	w.t.Fatal("there is no key of generation 2")
}
