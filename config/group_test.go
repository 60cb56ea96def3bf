package config_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"byokd/config"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// group is the text of a good group file, to which keys of [aws] can be added.
func group(alias string) string {
	return fmt.Sprintf("[rotation]\nevery = \"90d\"\n[aws]\nregion = \"eu-central-1\"\nalias = %q\n", alias)
}

// loadGroup loads groups.d/payments.toml, which must be good.
func (tr tree) loadGroup(t testing.TB) *config.Group {
	t.Helper()
	g, err := config.LoadGroup(tr.load(t), tr.path("groups.d/payments.toml"), tr.opts)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestGroupDefaults(t *testing.T) {
	tr := newTree(t, map[string]string{
		"byokd.toml":             "timezone = 'Europe/Berlin'\n" + baseConfig,
		"groups.d/payments.toml": group("alias/payments"),
	})
	const d = config.Duration(24 * time.Hour)
	want := &config.Group{
		Name: "payments", Account: "111122223333",
		HSM: "main", Service: "aws", Credential: "prod",
		KeyType: "aes", KeyLength: 256, KeyUsage: "encrypt-decrypt",
		Rotation: config.Rotation{
			Enabled: true, Every: 90 * d, Timezone: "Europe/Berlin", Missed: "run-once", Initial: "now",
			Mode: "alias", Verify: "auto", OnExpiry: "rotate", DisablePreviousAfter: d, OverdueAfter: d,
			Grants: "warn", Drift: "report",
		},
		AWS: config.GroupAWS{Region: "eu-central-1", Alias: "alias/payments"},
	}
	got := tr.loadGroup(t)
	if diff := cmp.Diff(want, got, sameConfig); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got.Path != tr.path("groups.d/payments.toml") {
		t.Errorf("Path is %s", got.Path)
	}
	if loc, err := got.Location(); err != nil || loc.String() != "Europe/Berlin" {
		t.Errorf("Location is %v, %v", loc, err)
	}
}

// The group of the contract: every key, defaults and examples.
func TestContractGroup(t *testing.T) {
	tr := newTree(t, map[string]string{
		"groups.d/payments.toml":        read(t, "testdata/contract/groups.d/payments.toml"),
		"groups.d/payments-policy.json": "{}",
	})
	written := tr.loadGroup(t)
	tr.write(t, "groups.d/payments.toml", `
aws = { region = "eu-central-1", alias = "alias/payments", description = "card payments", policy_file = "payments-policy.json", tags.team = "payments" }
rotation = { every = "2160h", timezone = "Europe/Berlin", keep_valid_for = "8760h" }
`, 0o644)
	leftOut := tr.loadGroup(t)
	if diff := cmp.Diff(written, leftOut, sameConfig); diff != "" {
		t.Errorf("written (-) and left out (+):\n%s", diff)
	}
	if written.Digest() != leftOut.Digest() {
		t.Error("the digests differ")
	}
}

func TestInitial(t *testing.T) {
	const key = "active_key_id = '1234abcd-12ab-34cd-56ef-1234567890ab'\n"
	tests := []struct{ rotation, aws, want string }{
		{"", "", "now"},
		{"", key, "scheduled"},
		{"initial = 'now'\n", key, "now"},
		{"initial = 'scheduled'\n", "", "scheduled"},
	}
	for _, tt := range tests {
		tr := newTree(t, map[string]string{"groups.d/payments.toml": "[rotation]\n" + tt.rotation + strings.TrimPrefix(group("alias/payments"), "[rotation]\n") + tt.aws})
		if got := tr.loadGroup(t).Rotation.Initial; got != tt.want {
			t.Errorf("%q with %q: initial %s, want %s", tt.rotation, tt.aws, got, tt.want)
		}
	}
}

func TestActiveKeyID(t *testing.T) {
	const id = "1234abcd-12ab-34cd-56ef-1234567890ab"
	const multiRegion = "mrk-1234abcd12ab34cd56ef1234567890ab"
	tests := []struct{ in, want string }{
		{id, id},
		{multiRegion, multiRegion},
		{"arn:aws:kms:eu-central-1:111122223333:key/" + id, id},
		{"arn:aws:kms:eu-central-1:111122223333:key/" + multiRegion, multiRegion},
	}
	for _, tt := range tests {
		tr := newTree(t, map[string]string{"groups.d/payments.toml": group("alias/payments") + fmt.Sprintf("active_key_id = %q\n", tt.in)})
		if got := tr.loadGroup(t).AWS.ActiveKeyID; got != tt.want {
			t.Errorf("%s is read as %s, want %s", tt.in, got, tt.want)
		}
	}
}

// The limits that a value may reach.
func TestGroupAccepts(t *testing.T) {
	tests := []struct{ name, rotation, aws string }{
		{"keep_valid_for of 365d", "every = '363d23h'\nkeep_valid_for = '365d'", ""},
		{"keep_valid_for just long enough", "schedule = '0 3 1 */3 *'\njitter = '1h'\nkeep_valid_for = '93d2h'", ""},
		{"keep_valid_for without a schedule", "enabled = false\nkeep_valid_for = '1d'", ""},
		{"keep_valid_for given as nothing", "every = '1000d'\nkeep_valid_for = ''", ""},
		{"schedule with every given as nothing", "every = ''\nschedule = '@monthly'", ""},
		{"the 29th of February", "schedule = '0 0 29 2 *'", ""},
		{"schedule kept while it is off", "enabled = false\nevery = '1d'", ""},
		{"every of a minute", "every = '1m'", ""},
		{"everything at its longest", "every = '1d'\nforce = '" + strings.Repeat("f", 256) + "'",
			"description = '" + strings.Repeat("ü", 8192) + "'\nformer_aliases = ['alias/" + strings.Repeat("a", 250) + "']"},
		{"empty description", "every = '1d'", "description = ''"},
		{"tags", "every = '1d'", "[aws.tags]\n'" + strings.Repeat("k", 128) + "' = '" + strings.Repeat("ß", 256) + "'\n'a b_.:/=+-@7' = ''\n'my:aws:' = 'aws:'"},
		{"previous_name", "every = '1d'", "previous_name = 'cards'"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tr := newTree(t, map[string]string{"groups.d/payments.toml": "[rotation]\n" + tt.rotation + "\n[aws]\nregion = 'us-gov-west-1'\nalias = 'alias/payments'\n" + tt.aws})
			tr.loadGroup(t)
		})
	}
}

func TestRegions(t *testing.T) {
	tests := []struct {
		region string
		ok     bool
	}{
		{"eu-central-1", true}, {"us-gov-west-1", true}, {"ap-southeast-5", true}, {"us-iso-east-1", true}, {"eusc-de-east-1", true},
		{"eu-central", false}, {"central-1", false}, {"EU-CENTRAL-1", false}, {"eu-central-1a", false}, {" eu-central-1", false}, {"eu-central-1\\n", false},
	}
	for _, tt := range tests {
		tr := newTree(t, map[string]string{"groups.d/payments.toml": strings.Replace(group("alias/payments"), "eu-central-1", tt.region, 1)})
		if _, err := config.LoadGroup(tr.load(t), tr.path("groups.d/payments.toml"), tr.opts); (err == nil) != tt.ok {
			t.Errorf("%q: %v", tt.region, err)
		}
	}
}

// Comments, order, spacing, spelled-out defaults and the place of files are no
// change of a definition; everything else is.
func TestDigest(t *testing.T) {
	base := `
[rotation]
every = "90d"
[aws]
region = "eu-central-1"
alias = "alias/payments"
policy_file = "policy.json"
former_aliases = ["alias/a", "alias/b"]
[aws.tags]
team = "payments"
zone = "eu"
`
	files := map[string]string{"groups.d/payments.toml": base, "groups.d/policy.json": "{}", "groups.d/same.json": "{}", "groups.d/other.json": "{ }"}
	tr := newTree(t, files)
	digest := func(t *testing.T, toml string) string {
		t.Helper()
		tr.write(t, "groups.d/payments.toml", toml, 0o644)
		return tr.loadGroup(t).Digest()
	}
	want := digest(t, base)
	same := map[string]string{
		"comments and spacing": "# hello\n" + strings.ReplaceAll(base, " = ", "   =\t") + "# bye",
		"CRLF":                 strings.ReplaceAll(base, "\n", "\r\n"),
		"order": `
aws.tags = { zone = "eu", team = "payments" }
aws.former_aliases = ["alias/b", "alias/a", "alias/b"]
aws.policy_file = "policy.json"
aws.alias = "alias/payments"
aws.region = "eu-central-1"
rotation.every = "90d"`,
		"defaults written out": "hsm = 'main'\nkey_length = 256\n" + strings.Replace(base, "[aws]", "jitter = '0s'\ndisable_previous_after = '1d'\ntimezone = 'UTC'\nkeep_valid_for = ''\n[aws]\nactive_key_id = ''", 1),
		"another spelling":     strings.Replace(base, `"90d"`, "'2160h0m'", 1),
		"another policy path":  strings.Replace(base, `"policy.json"`, "'../groups.d/same.json'", 1),
	}
	for _, name := range slices.Sorted(maps.Keys(same)) {
		t.Run(name, func(t *testing.T) {
			if digest(t, same[name]) != want {
				t.Error("the digest has changed")
			}
		})
	}
	change := func(old, new string) string { return strings.Replace(base, old, new, 1) }
	different := map[string]string{
		"every":          change("90d", "91d"),
		"alias":          change("alias/payments", "alias/payment"),
		"tag value":      change(`"payments"`, `"payment"`),
		"tag name":       change("team", "crew"),
		"tag gone":       change("zone = \"eu\"\n", ""),
		"policy":         change("policy.json", "other.json"),
		"no policy":      change("policy_file = \"policy.json\"\n", ""),
		"former alias":   change(`, "alias/b"`, ""),
		"description":    change("[aws.tags]", "description = ''\n[aws.tags]"),
		"force":          change("[aws]", "force = 'x'\n[aws]"),
		"disabled":       change("[aws]", "enabled = false\n[aws]"),
		"schedule":       change(`every = "90d"`, `schedule = "@monthly"`),
		"disable at 0s":  change("[aws]", "disable_previous_after = '0s'\n[aws]"),
		"keep_valid_for": change("[aws]", "keep_valid_for = '365d'\n[aws]"),
		"active_key_id":  change("[aws.tags]", "active_key_id = '1234abcd-12ab-34cd-56ef-1234567890ab'\n[aws.tags]"),
	}
	seen := map[string]string{want: "base"}
	for _, name := range slices.Sorted(maps.Keys(different)) {
		d := digest(t, different[name])
		if other, ok := seen[d]; ok {
			t.Errorf("%s has the digest of %s", name, other)
		}
		seen[d] = name
	}
}

// Any order of the keys of any tables makes the same definition.
func TestDigestIgnoresOrder(t *testing.T) {
	tr := newTree(t, map[string]string{"groups.d/policy.json": "{}"})
	tables := map[string][]string{
		"rotation": {"every = '90d'", "jitter = '1h'", "force = 'x'", "disable_previous = true", "verify = 'crypto'"},
		"aws":      {"region = 'eu-central-1'", "alias = 'alias/payments'", "description = 'd'", "policy_file = 'policy.json'"},
		"aws.tags": {"a = '1'", "b = '2'", "'c d' = '3'"},
	}
	var want string
	rapid.Check(t, func(rt *rapid.T) {
		var b strings.Builder
		for _, table := range rapid.Permutation([]string{"rotation", "aws", "aws.tags"}).Draw(rt, "tables") {
			fmt.Fprintf(&b, "[%s]%s\n", table, rapid.SampledFrom([]string{"", " # comment", "\n\n"}).Draw(rt, "end"))
			for _, line := range rapid.Permutation(tables[table]).Draw(rt, "keys") {
				b.WriteString(line + "\n")
			}
		}
		tr.write(t, "groups.d/payments.toml", b.String(), 0o644)
		g, err := config.LoadGroup(tr.load(t), tr.path("groups.d/payments.toml"), tr.opts)
		if err != nil {
			rt.Fatal(err)
		}
		if want == "" {
			want = g.Digest()
		}
		if g.Digest() != want {
			rt.Fatalf("the digest depends on the order:\n%s", b.String())
		}
	})
}

func TestDefinitionRoundTrip(t *testing.T) {
	tr := newTree(t, map[string]string{"groups.d/policy.json": "{\"Sid\": \"\u00fc < >\"}\n", "groups.d/payments.toml": `
[rotation]
schedule = "0 3 1 */3 *"
jitter = "1w2d"
keep_valid_for = "365d"
disable_previous_after = "0s"
[aws]
region = "eu-central-1"
alias = "alias/payments"
description = ""
policy_file = "policy.json"
former_aliases = ["alias/old"]
[aws.tags]
"a b" = "ü"
`})
	for _, keep := range []bool{true, false} {
		if !keep {
			tr.write(t, "groups.d/payments.toml", group("alias/payments"), 0o644)
		}
		g := tr.loadGroup(t)
		b, err := g.MarshalDefinition()
		if err != nil {
			t.Fatal(err)
		}
		back, err := config.UnmarshalDefinition(b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(g, back, cmp.FilterPath(func(p cmp.Path) bool { return p.String() == "src" }, cmp.Ignore()), cmp.AllowUnexported(config.Group{})); diff != "" {
			t.Errorf("(-before +after):\n%s", diff)
		}
		if g.Digest() != back.Digest() {
			t.Error("the digest has changed")
		}
		if keep && !strings.Contains(string(b), `"keep_valid_for":"365d"`) {
			t.Errorf("durations are no strings: %s", b)
		}
		p := back.Problem("aws.alias", "wrong")
		if got, want := p.String(), tr.path("groups.d/payments.toml")+": aws.alias: wrong"; got != want {
			t.Errorf("problem %q, want %q", got, want)
		}
	}
}

// A definition may come from an older or a newer byokd.
func TestUnmarshalDefinition(t *testing.T) {
	g, err := config.UnmarshalDefinition([]byte(`{"name":"payments","hsm":"main","aws":{"region":"eu-central-1","alias":"alias/payments","colour":"red"},"rotation":{"every":"90d"}}`))
	if err != nil {
		t.Fatal(err)
	}
	if g.Rotation.Missed != "run-once" || g.Rotation.Initial != "now" || !g.Rotation.Enabled || g.KeyLength != 256 || g.Policy != nil {
		t.Errorf("defaults are missing: %+v", g)
	}
	for _, bad := range []string{"", "null", "[]", "{}", `{"name":"../x"}`, `{"name":"a","rotation":{"every":"3mo"}}`, `{"name":"a","Group":null}x`} {
		if g, err := config.UnmarshalDefinition([]byte(bad)); err == nil {
			t.Errorf("%q was accepted as %+v", bad, g)
		}
	}
}

func TestGroupProblem(t *testing.T) {
	tr := newTree(t, map[string]string{"groups.d/payments.toml": "# comment\n" + group("alias/payments") + "tags.'a b' = ''\nformer_aliases = [\n'alias/x']"})
	g := tr.loadGroup(t)
	tests := []struct{ key, want string }{
		{"aws.alias", ":6:1: aws.alias: m"},
		{`aws.tags."a b"`, `:7:6: aws.tags."a b": m`},
		{"aws.former_aliases[0]", ":9:1: aws.former_aliases[0]: m"},
		{"aws.description", ":4:2: aws.description: m"},
		{"hsm", ":1:1: hsm: m"},
	}
	for _, tt := range tests {
		if got, want := g.Problem(tt.key, "m").String(), g.Path+tt.want; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestLoadDir(t *testing.T) {
	tr := newTree(t, map[string]string{
		"groups.d/a.toml":        group("alias/a"),
		"groups.d/b.toml":        "bad",
		"groups.d/.c.toml":       "bad",
		"groups.d/d.toml.swp":    "bad",
		"groups.d/dir.toml/x":    "bad",
		"groups.d/Big.toml":      "bad",
		"elsewhere/linked.toml":  group("alias/linked"),
		"groups.d/payments.json": "bad",
	})
	for name, target := range map[string]string{"groups.d/e.toml": "../elsewhere/linked.toml", "groups.d/dangling.toml": "none"} {
		if err := os.Symlink(target, tr.path(name)); err != nil {
			t.Fatal(err)
		}
	}
	set := tr.loadDir(t)
	if diff := cmp.Diff([]string{"a", "e"}, slices.Sorted(maps.Keys(set.Groups))); diff != "" {
		t.Errorf("good groups (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"Big.toml", "b", "dangling"}, slices.Sorted(maps.Keys(set.Problems))); diff != "" {
		t.Errorf("bad groups (-want +got):\n%s", diff)
	}
	if again := tr.loadDir(t); again.Digest != set.Digest {
		t.Error("the digest changes by itself")
	}
	tr.write(t, "groups.d/b.toml", "bad again", 0o644)
	changed := tr.loadDir(t)
	if changed.Digest == set.Digest {
		t.Error("the digest does not change with a problem")
	}
	tr.write(t, "groups.d/a.toml", group("alias/A"), 0o644)
	if tr.loadDir(t).Digest == changed.Digest {
		t.Error("the digest does not change with a group")
	}

	cfg := tr.load(t)
	if err := os.RemoveAll(cfg.GroupsDir); err != nil {
		t.Fatal(err)
	}
	_, err := config.LoadDir(cfg, tr.opts)
	if err == nil || !strings.Contains(err.Error(), cfg.GroupsDir) || !strings.Contains(err.Error(), "create it") {
		t.Errorf("error %v does not name the directory and what to do", err)
	}
}

func TestCheckSet(t *testing.T) {
	// A group: name, and what its claim depends on.
	type g struct {
		name, account, credential, region, alias, previous string
		former                                             []string
		generation, gone                                   bool
	}
	tests := []struct {
		name     string
		endpoint string
		groups   []g
		want     map[string]string // group to part of its message
	}{
		{"alone", "", []g{{name: "a"}}, nil},
		{"both bad", "", []g{{name: "a"}, {name: "b"}}, map[string]string{"a": "claimed by group b", "b": "claimed by group a"}},
		{"three", "", []g{{name: "a"}, {name: "b"}, {name: "c"}}, map[string]string{"a": "claimed by group b, c", "b": "a, c", "c": "a, b"}},
		{"one has a generation", "", []g{{name: "a"}, {name: "b", generation: true}, {name: "c"}}, map[string]string{"a": "claimed by group b,", "c": "claimed by group b,"}},
		{"both have one", "", []g{{name: "a", generation: true}, {name: "b", generation: true}}, map[string]string{"a": "group b", "b": "group a"}},
		{"other Region", "", []g{{name: "a"}, {name: "b", region: "eu-west-1"}}, nil},
		{"other alias", "", []g{{name: "a"}, {name: "b", alias: "alias/b"}}, nil},
		{"other account", "", []g{{name: "a", account: "111122223333"}, {name: "b", account: "222233334444"}}, nil},
		{"same account, other credential", "", []g{{name: "a", account: "111122223333"}, {name: "b", account: "111122223333", credential: "dev"}}, map[string]string{"a": "group b", "b": "group a"}},
		{"other credential, no account", "", []g{{name: "a"}, {name: "b", credential: "dev"}}, nil},
		{"former alias", "", []g{{name: "a"}, {name: "b", alias: "alias/b", former: []string{"alias/payments"}}}, nil},
		{"renamed", "", []g{{name: "a", gone: true, generation: true}, {name: "b", previous: "a"}}, nil},
		{"renamed and not said", "", []g{{name: "a", gone: true, generation: true}, {name: "b"}}, map[string]string{"b": `add previous_name = "a"`}},
		{"renamed and claimed", "", []g{{name: "a", gone: true, generation: true}, {name: "b", previous: "a"}, {name: "c"}}, map[string]string{"b": "group c", "c": "group b"}},
		{"renamed twice", "", []g{{name: "a", gone: true, generation: true}, {name: "b", previous: "a"}, {name: "c", alias: "alias/c", previous: "a"}},
			map[string]string{"b": "previous_name of several", "c": "previous_name of several"}},
		{"old file is still there", "", []g{{name: "a", generation: true}, {name: "b", alias: "alias/b", previous: "a"}}, map[string]string{"b": "group a still has its file"}},
		{"a name that was given up is used again", "", []g{{name: "a"}, {name: "b", alias: "alias/b", previous: "a", generation: true}}, nil},
		{"endpoint, one Region", "https://example.com", []g{{name: "a"}, {name: "b", alias: "alias/b"}}, nil},
		{"endpoint, two Regions", "https://example.com", []g{{name: "a"}, {name: "b", region: "eu-west-1"}}, map[string]string{"a": "one Region", "b": "one Region"}},
		{"endpoint, two Regions, one with a generation", "https://example.com", []g{{name: "a", generation: true}, {name: "b", region: "eu-west-1"}}, map[string]string{"b": "one Region"}},
		{"endpoint, a group that is gone", "https://example.com", []g{{name: "a", gone: true}, {name: "b", region: "eu-west-1"}}, nil},
		{"endpoint, the other Region has its own", "https://example.com", []g{{name: "a"}, {name: "b", region: "us-east-1"}}, nil},
		{"endpoint on loopback", "http://127.0.0.1:4566", []g{{name: "a"}, {name: "b", region: "eu-west-1"}}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := &config.Config{AWS: config.AWS{KMSEndpoint: tt.endpoint, Endpoints: map[string]config.Endpoints{"us-east-1": {KMS: "https://us.example.com"}}}}
			var groups []*config.Group
			has := make(map[string]bool)
			for _, g := range tt.groups {
				has[g.name] = g.generation
				or := func(s, other string) string {
					if s == "" {
						return other
					}
					return s
				}
				groups = append(groups, &config.Group{
					Name: g.name, Account: g.account, Credential: or(g.credential, "prod"), Gone: g.gone,
					AWS: config.GroupAWS{Region: or(g.region, "eu-central-1"), Alias: or(g.alias, "alias/payments"), PreviousName: g.previous, FormerAliases: g.former},
				})
			}
			got := config.CheckSet(cfg, groups, func(name string) bool { return has[name] })
			if diff := cmp.Diff(slices.Sorted(maps.Keys(tt.want)), slices.Sorted(maps.Keys(got))); diff != "" {
				t.Errorf("bad groups (-want +got):\n%s\n%v", diff, got)
			}
			for name, want := range tt.want {
				if msg := got[name].Error(); !strings.Contains(msg+",", want) {
					t.Errorf("group %s: %q does not say %q", name, msg, want)
				}
			}
		})
	}
}

func TestCheckChange(t *testing.T) {
	base := config.Group{
		Name: "payments", HSM: "main", Service: "aws", Credential: "prod", Account: "111122223333",
		KeyType: "aes", KeyLength: 256, KeyUsage: "encrypt-decrypt",
		AWS: config.GroupAWS{Region: "eu-central-1", Alias: "alias/payments"},
	}
	tests := []struct {
		name   string
		change func(*config.Group)
		want   string // key
	}{
		{"hsm", func(g *config.Group) { g.HSM = "spare" }, "hsm"},
		{"service", func(g *config.Group) { g.Service = "azure" }, "service"},
		{"key_type", func(g *config.Group) { g.KeyType = "rsa" }, "key_type"},
		{"key_length", func(g *config.Group) { g.KeyLength = 128 }, "key_length"},
		{"key_usage", func(g *config.Group) { g.KeyUsage = "sign" }, "key_usage"},
		{"Region", func(g *config.Group) { g.AWS.Region = "eu-west-1" }, "aws.region"},
		{"account", func(g *config.Group) { g.Account = "222233334444" }, "credential"},
		{"credential of the same account", func(g *config.Group) { g.Credential = "other" }, ""},
		{"credential without account", func(g *config.Group) { g.Credential, g.Account = "other", "" }, ""},
		{"alias", func(g *config.Group) { g.AWS.Alias = "alias/other" }, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			changed := base
			tt.change(&changed)
			if ps := config.CheckChange(&base, &changed, false); ps != nil {
				t.Errorf("refused without a generation: %v", ps)
			}
			ps := config.CheckChange(&base, &changed, true)
			switch {
			case tt.want == "" && len(ps) == 0:
			case len(ps) == 1 && ps[0].Key == tt.want && strings.Contains(ps[0].Msg, "make a new group in a file with another name"):
			default:
				t.Errorf("got %v, want a problem at %q", ps, tt.want)
			}
		})
	}
}

// The message of a refused change, with its position.
func TestCheckChangeMessage(t *testing.T) {
	tr := newTree(t, map[string]string{"groups.d/payments.toml": group("alias/payments")})
	old := tr.loadGroup(t)
	tr.write(t, "groups.d/payments.toml", strings.Replace(group("alias/payments"), "eu-central-1", "eu-west-1", 1), 0o644)
	ps := config.CheckChange(old, tr.loadGroup(t), true)
	want := filepath.Join(tr.dir, "groups.d/payments.toml") + `:4:1: aws.region: cannot change from "eu-central-1" to "eu-west-1" once the group has a key: change it back, or make a new group in a file with another name`
	if ps.Error() != want {
		t.Errorf("got  %s\nwant %s", ps, want)
	}
}
