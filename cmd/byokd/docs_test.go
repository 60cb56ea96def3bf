package main_test

import (
	"bufio"
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"byokd/daemon/control"
)

// documentedCommands are the commands that the documentation shows, and in which
// file: indented lines, `…`, and what the alert rules say. What docs/quick-start.md
// has in its blocks is run by .ci/quick-start as it stands.
func documentedCommands(t *testing.T) map[string]string {
	t.Helper()
	var files []string
	for _, pattern := range []string{"README.md", "docs/*.md", "docs/man/*", "docs/alerts/prometheus.rules.yml"} {
		found, err := filepath.Glob("../../" + pattern)
		if err != nil || len(found) == 0 {
			t.Fatal(pattern, err)
		}
		files = append(files, found...)
	}
	const program = `(?:byokctl|awssim|apt|apt-get|dnf|systemctl|systemd-[a-z-]+|journalctl|install|usermod|runuser|softhsm2-util|pkcs11-tool|promtool|aws|curl|go|make|ssh|terraform)`
	var (
		fence   = regexp.MustCompile("(?ms)^```.*?^```$")
		next    = regexp.MustCompile(`\\\n +`) // a line goes on
		line    = regexp.MustCompile(`(?m)^ {4}(.*)$`)
		span    = regexp.MustCompile("(?s)`(" + program + " [^`]*)`")
		several = regexp.MustCompile(`; | && | \|+ `)
		begins  = regexp.MustCompile(`^` + program + `( |$)`)
		ends    = regexp.MustCompile(` +#| &$| >|  +`)
		roff    = strings.NewReplacer(`\-`, "-", `\e`, `\`)
	)
	commands := make(map[string]string)
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text := next.ReplaceAllString(fence.ReplaceAllString(string(b), ""), "")
		if filepath.Dir(file) == "../../docs/man" {
			text = roff.Replace(text)
		}
		var found []string
		for _, m := range line.FindAllStringSubmatch(text, -1) {
			found = append(found, m[1])
		}
		for _, m := range span.FindAllStringSubmatch(text, -1) {
			found = append(found, strings.Join(strings.Fields(m[1]), " "))
		}
		for _, f := range found {
			for _, part := range several.Split(ends.Split(f, 2)[0], -1) {
				if part = strings.TrimSpace(part); begins.MatchString(part) {
					commands[part] = strings.TrimPrefix(file, "../../")
				}
			}
		}
	}
	return commands
}

// machineCommands are run on a machine with a byokd, in this order, with the words
// replaced that stand for something; what becomes of the JOB, and what a person is
// asked on a terminal, is said there.
var machineCommands = []struct {
	documented string
	run        string // "": as it is documented
}{
	{"byokctl --config byokd.toml init", "byokctl init"},
	{"byokctl init", ""},
	{"byokctl check", ""},
	{"byokctl check --as byokd FILE", "byokctl check --as byokd DIR/byokd.toml"},
	{"byokctl check --as payments FILE", "byokctl check --as payments DIR/groups.d/payments.toml"},
	{"byokctl check --online", ""},
	{"byokctl recover --dry-run", ""},
	{"byokctl firewall", ""},
	{"byokctl iam-policy", ""},
	{"start byokd", ""},
	{"byokctl status", ""},
	{"byokctl status --json", ""},
	{"byokctl status --check", ""},
	{"byokctl status {{ $labels.group }}", "byokctl status payments"},
	{"byokctl hsm", ""},
	{"byokctl hsm --login NAME", "byokctl hsm --login main"},
	{"byokctl plan", ""},
	{"byokctl drift", ""},
	{"byokctl drift [GROUP...]", "byokctl drift payments"},
	{"byokctl events", ""},
	{"byokctl audit", ""},
	{"byokctl timeline", ""},
	{"byokctl jobs", ""},
	{"byokctl job ID", "byokctl job JOB"},
	{"byokctl keys payments", ""},
	{"byokctl keys GROUP", "byokctl keys payments"},
	{"byokctl rotate payments --wait", ""},
	{"byokctl rotate NAME --wait", "byokctl rotate payments --wait"},
	{"byokctl rotate GROUP", "byokctl rotate payments"},
	{"byokctl rollback payments --wait", ""}, // 4 to 3
	{"byokctl rollback payments", ""},        // 3 to 2
	{"byokctl rollback payments --to 3 --wait", ""},
	{"byokctl sync payments", ""},
	{"byokctl sync {{ $labels.group }}", "byokctl sync payments"},
	{"byokctl sync GROUP", "byokctl sync payments"},
	{"byokctl sync NAME", "byokctl sync payments"},
	{"byokctl sync GROUP --generation N", "byokctl sync payments --generation 2"},
	// It asks, and there is no terminal.
	{"byokctl sync payments --generation 1 --delete-material --wait", "byokctl sync payments --generation 1 --delete-material --wait --yes"},
	{"byokctl sync payments --generation 1 --wait", ""},
	{"byokctl keep GROUP GENERATION", "byokctl keep payments 1"},
	{"byokctl keep GROUP GENERATION --undo", "byokctl keep payments 1 --undo"},
	{"byokctl keep GROUP N", "byokctl keep payments 2"},
	// On a terminal it asks for the Region.
	{"byokctl new cards --write", "byokctl new cards --write --region eu-central-1"},
	{"byokctl new GROUP", "byokctl new orders --region eu-central-1"},
	{"a job waits", ""},
	{"byokctl retry JOB", ""},
	{"byokctl cancel JOB", ""},

	{"awssim", "awssim --listen 127.0.0.1:0"},
	{"awssim --listen 127.0.0.1:0", ""},
	{"awssim --listen 127.0.0.1:4599", "awssim --listen 127.0.0.1:0"},
	{"awssim --account AKIADEMO:demo-secret:111122223333 --state demo.json", "awssim --account AKIADEMO:demo-secret:111122223333 --state DIR/demo.json --listen 127.0.0.1:0"},
	{"awssim --quotas aws --lag 3s --latency 30ms --rotation-time 20s --fault after:drop:5% --fault before:KMSInternalException:1% --fault before:hang:0.1%@ImportKeyMaterial",
		"awssim --quotas aws --lag 3s --latency 30ms --rotation-time 20s --fault after:drop:5% --fault before:KMSInternalException:1% --fault before:hang:0.1%@ImportKeyMaterial --listen 127.0.0.1:0"},
	{"awssim keys", "awssim keys --endpoint URL --json"},
	{"awssim keys --endpoint http://127.0.0.1:4599", "awssim keys --endpoint URL"},
	{"awssim events [--endpoint URL] [--json]", "awssim events --endpoint URL --json"},
	{"awssim events …", "awssim events --endpoint URL"},
	{"curl -s $URL/_awssim/deliveries", "curl -s URL/_awssim/deliveries"},
}

// otherCommands are run elsewhere: there the file has these words. "": nowhere,
// and why.
var otherCommands = map[string]struct{ file, words string }{
	"go test":               {"", "the command's name"},
	"byokctl rotate --wait": {"", "the command's name; a group is missing"},
	"byokctl keep":          {"", "the command's name"},
	"byokctl keys":          {"", "the command's name"},
	"byokctl rollback":      {"", "the command's name"},
	"byokctl rotate":        {"", "the command's name"},
	"byokctl sync":          {"", "the command's name"},

	"apt install ./byokd_VERSION_amd64.deb":    {"docs/quick-start.md", "apt-get install -y ./dist/byokd*"},
	"apt install ./byokd_NEWVERSION_amd64.deb": {".ci/boot-checks", `install_deb "$next"/byokd_`},
	"apt install ./dist/byokd_*_amd64.deb":     {"docs/quick-start.md", "apt-get install -y ./dist/byokd*"},
	"apt remove byokd":                         {".ci/boot-checks", "apt-get remove -y -qq byokd"},
	"apt purge byokd":                          {".ci/boot-checks", "apt-get purge -y -qq byokd"},
	"dnf remove byokd":                         {".ci/boot-checks", "rpm_ --erase byokd"},

	"install -m 644 payments.toml /etc/byokd/groups.d/": {".ci/boot-checks", `install -m 644 /tmp/group "/etc/byokd/groups.d/`},
	"journalctl -u byokd":                               {".ci/boot-checks", "journalctl -u byokd BYOKD_GROUP"},
	"journalctl -u byokd BYOKD_GROUP=payments":          {".ci/boot-checks", "journalctl -u byokd BYOKD_GROUP=payments"},
	"journalctl -u byokd BYOKD_JOB=0199...":             {".ci/boot-checks", "journalctl -u byokd BYOKD_JOB="},
	"journalctl -u byokd-check":                         {".ci/boot-checks", "journalctl -u byokd-check"},
	"systemctl --failed":                                {".ci/boot-checks", "systemctl --failed"},
	"systemctl daemon-reload":                           {"docs/quick-start.md", "systemctl daemon-reload"},
	"systemctl edit byokd":                              {"", "opens an editor"},
	"systemctl enable --now byokd byokd-check.timer":    {".ci/boot-checks", "systemctl enable --now byokd byokd-check.timer"},
	"systemctl reload byokd":                            {".ci/boot-checks", "systemctl reload byokd"},
	"systemctl restart byokd":                           {"docs/quick-start.md", "systemctl restart byokd"},
	"systemctl start byokd":                             {".ci/boot-checks", "systemctl start byokd"},
	"systemctl start byokd-alarm@byokd.service":         {".ci/boot-checks", "systemctl start byokd-alarm@byokd.service"},
	"systemctl status awssim":                           {".ci/boot-checks", "systemctl status awssim"},
	"systemctl status byokd":                            {".ci/boot-checks", "systemctl status byokd"},
	"systemctl stop byokd":                              {".ci/boot-checks", "systemctl stop byokd"},
	"systemd-analyze security byokd":                    {".ci/boot-checks", "systemd-analyze security byokd"},
	"systemd-ask-password -n":                           {"", "asks on a terminal"},
	"systemd-creds encrypt --name=hsm-pin - /etc/credstore.encrypted/byokd.hsm-pin": {".ci/boot-checks", "systemd-creds encrypt --name=hsm-pin - /etc/credstore.encrypted/byokd.hsm-pin"},
	"usermod -aG byokd alice":                                                      {".ci/boot-checks", "usermod -aG byokd alice"},
	"softhsm2-util --delete-token --token byokd":                                   {"docs/quick-start.md", "-- softhsm2-util --delete-token --token byokd"},
	"softhsm2-util --init-token --free --label byokd --so-pin 12345678 --pin 1234": {"docs/quick-start.md", "-- softhsm2-util --init-token --free --label byokd --so-pin 12345678 --pin 1234"},

	"go run ./cloud/awssim/replay [--endpoint URL] FILE...": {"Makefile", "$(GO) run ./cloud/awssim/replay"},
	"go test ./cloud/conformance":                           {"Makefile", "test -count=1 -v ./cloud/conformance "},
	"go test -v ./...)":                                     {"Makefile", "cd cloud/conformance/localkms && $(GO) test"},
	"go test ./config -run TestReference -update":           {"config/reference_test.go", "func TestReference("},
	"go test ./daemon -run TestAlert":                       {"daemon/alerts_test.go", "func TestAlertRules("},
	"go test ./daemon -run TestAlertRules":                  {"daemon/alerts_test.go", "func TestAlertRules("},
	"promtool test rules prometheus.test.yml":               {"daemon/alerts_test.go", `"test", "rules"`},
	"make bench BENCH=Rotations":                            {"Makefile", "\nbench:"},
	"make bench BENCH=Quota":                                {"Makefile", "\nbench:"},
	"make bench BENCH=QuotaAhead":                           {"Makefile", "\nbench:"},
	"make bench BENCH=Scale":                                {"Makefile", "\nbench:"},
	"make bench BENCH=Records":                              {"Makefile", "\nbench:"},
	"make years":                                            {"Makefile", "\nyears:"},
	"make bench BENCH=Script":                               {"Makefile", "\nbench:"},
	"go tool pprof FILE":                                    {"", "looks at a profile that a person has taken"},
	"make boot":                                             {".ci/run", " boot "},
	"make build":                                            {".ci/run", "make build"},
	"make crash":                                            {"Makefile", "crash: setup"},
	"make demo":                                             {".ci/run", "make demo"},
	"make package":                                          {".ci/run", "make package"},
	"make reproducible":                                     {".ci/run", " reproducible "},
	"make sample":                                           {".ci/run", "make sample"},
	"make soak":                                             {"Makefile", "soak: setup"},
	"make test":                                             {".ci/run", "make test"},

	"aws --endpoint-url http://127.0.0.1:4599 kms list-keys":                                                                                           {"", "AWS's own tool; the SDK's requests are tested"},
	`aws --endpoint-url $URL events put-rule --name alert --event-pattern '{"source":["byokd"],"detail-type":[{"suffix":"Failed"}]}'`:                  {"", "AWS's own tool; TestAlertRules puts rules with the SDK"},
	"aws --endpoint-url $URL events put-targets --rule alert --targets Id=1,Arn=arn:aws:sqs:eu-central-1:111122223333:alerts":                          {"", "the same"},
	"aws cloudformation deploy --template-file docs/alerts/cloudformation.yaml --stack-name byokd-alerts --parameter-overrides Email=keys@example.com": {"", "wants an account; TestAlertRules puts the template's rules on a bus"},
	"aws kms cancel-key-deletion":                 {"", "what a person does in AWS"},
	"aws kms enable-key":                          {"", "what a person does in AWS"},
	"aws kms get-parameters-for-import":           {"", "what scripts did before byokd"},
	"ssh -L 9465:127.0.0.1:9465 hsm1":             {"", "another machine"},
	"terraform init":                              {"", "wants an account and Terraform"},
	"terraform apply -var email=keys@example.com": {"", "wants an account and Terraform"},
}

// TestDocumentedCommands runs each command that the documentation shows, or knows
// what runs it.
func TestDocumentedCommands(t *testing.T) {
	documented := documentedCommands(t)
	known := maps.Clone(otherCommands)
	for _, c := range machineCommands {
		if strings.HasPrefix(c.documented, "byokctl ") || strings.HasPrefix(c.documented, "awssim") || strings.HasPrefix(c.documented, "curl ") {
			known[c.documented] = struct{ file, words string }{}
		}
	}
	for _, c := range slices.Sorted(maps.Keys(documented)) {
		if _, ok := known[c]; !ok {
			t.Errorf("%s has `%s`: have it run by machineCommands, or say in otherCommands what runs it", documented[c], c)
		}
	}
	for c := range known {
		if documented[c] == "" {
			t.Errorf("`%s` is documented no more", c)
		}
	}
	for c, by := range otherCommands {
		if by.file == "" {
			continue
		}
		if b, err := os.ReadFile("../../" + by.file); err != nil || !strings.Contains(string(b), by.words) {
			t.Errorf("`%s`: %s does not have %q (%v)", c, by.file, by.words, err)
		}
	}

	m := newMachine(t)
	m.group("payments", "")
	job := ""
	settled := func() {
		t.Helper()
		m.until("no job is open", m.idle)
	}
	for _, c := range machineCommands {
		switch c.documented {
		case "start byokd":
			m.start()
			m.until("payments has its key", func() bool { return m.active("payments") == 1 })
			m.until("byokd knows its token", func() bool {
				out, _ := m.byokctl("hsm")
				return strings.Contains(out, "algorithm")
			})
			settled()
			jobs, _ := m.byokctl("jobs", "--json")
			var list []control.JobSummary
			if err := json.Unmarshal([]byte(jobs), &list); err != nil || len(list) == 0 {
				t.Fatal(err, jobs)
			}
			job = list[0].ID
			continue
		case "a job waits":
			settled()
			m.write("groups.d/policy.json", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:role/other"},"Action":"kms:*","Resource":"*"}]}`)
			m.group("stuck", `policy_file = "policy.json"`)
			m.until("a job of stuck waits for a person", func() bool {
				out, _ := m.byokctl("jobs", "--group", "stuck", "--state", "retryable", "--json")
				var list []control.JobSummary
				if json.Unmarshal([]byte(out), &list) != nil || len(list) != 1 {
					return false
				}
				job = list[0].ID
				return true
			})
			continue
		case "byokctl cancel JOB":
			m.until("the retried job waits again", func() bool {
				out, _ := m.byokctl("jobs", "--group", "stuck", "--state", "retryable", "--json")
				return strings.Contains(out, job)
			})
		}
		line := c.run
		if line == "" {
			line = c.documented
		}
		words := strings.Fields(line)
		for i, w := range words {
			words[i] = strings.NewReplacer("DIR", m.dir, "URL", m.url).Replace(w)
			if w == "JOB" {
				words[i] = job
			}
		}
		switch {
		case words[0] == "byokctl":
			if out, status := m.byokctl(words[1:]...); status != 0 || strings.TrimSpace(out) == "" && line != "byokctl status --check" {
				t.Errorf("%s: exit status %d, output %q", line, status, out)
			}
			// One at a time, as a person would; a job that waits is to stay.
			if m.cmd != nil && words[1] != "retry" && words[1] != "cancel" {
				settled()
			}
		case strings.Contains(line, "--listen"):
			startsAWSSim(t, words[1:])
		default:
			name := words[0]
			if name == "awssim" {
				name = filepath.Join(programs, name)
			}
			if out, err := exec.CommandContext(t.Context(), name, words[1:]...).CombinedOutput(); err != nil || len(out) == 0 {
				t.Errorf("%s: %v, output %q", line, err, out)
			}
		}
	}
}

// TestLinksOfDocs: what README.md and the documentation link to is there, headings
// too, and README.md leads to every page.
func TestLinksOfDocs(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(pages) < 10 {
		t.Fatal(pages, err)
	}
	var (
		link    = regexp.MustCompile(`\]\(([^)]+)\)`)
		heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
		dropped = regexp.MustCompile(`[^\w\- ]`)
	)
	read := func(file string) string {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	linked := make(map[string]bool) // from README.md
	for _, page := range append(pages, "../../README.md") {
		for _, m := range link.FindAllStringSubmatch(read(page), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			path, anchor, _ := strings.Cut(m[1], "#")
			target := page
			if path != "" {
				target = filepath.Join(filepath.Dir(page), path)
			}
			if page == "../../README.md" {
				linked[target] = true
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s: %v", page, m[1], err)
				continue
			}
			if anchor == "" {
				continue
			}
			var anchors []string
			for _, h := range heading.FindAllStringSubmatch(read(target), -1) {
				anchors = append(anchors, strings.ReplaceAll(dropped.ReplaceAllString(strings.ToLower(h[1]), ""), " ", "-"))
			}
			if !slices.Contains(anchors, anchor) {
				t.Errorf("%s links to %s, which has no such heading", page, m[1])
			}
		}
	}
	for _, page := range pages {
		if !linked[page] {
			t.Errorf("README.md does not lead to %s", page)
		}
	}
}

// startsAWSSim runs awssim until it says that it listens.
func startsAWSSim(t *testing.T, args []string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(programs, "awssim"), args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.Contains(line, "listening on http://127.0.0.1:") {
		t.Errorf("awssim %s: %q, %v", strings.Join(args, " "), line, err)
	}
	cmd.Process.Kill()
	cmd.Wait()
}
