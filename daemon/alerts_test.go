package daemon_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	ebtypes "github.com/aws/aws-sdk-go-v2/service/eventbridge/types"
	"go.yaml.in/yaml/v3"

	"byokd/cloud/awssim"
)

const alerts = "../docs/alerts"

// A stack is what docs/alerts/cloudformation.yaml holds of rules.
type stack struct {
	Resources map[string]struct {
		Type       string
		Properties struct {
			EventPattern map[string]any `yaml:"EventPattern"`
			Targets      []struct {
				InputTransformer struct {
					InputPathsMap map[string]string `yaml:"InputPathsMap"`
					InputTemplate string            `yaml:"InputTemplate"`
				} `yaml:"InputTransformer"`
			} `yaml:"Targets"`
		} `yaml:"Properties"`
	} `yaml:"Resources"`
}

// TestAlertRules puts the rules of docs/alerts on a bus: what a rotation and a
// failed one announce reaches their targets as a text for a person.
func TestAlertRules(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(alerts, "cloudformation.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var s stack
	if err := yaml.Unmarshal(raw, &s); err != nil {
		t.Fatal(err)
	}

	w := newWorld(t)
	bus := eventbridge.New(eventbridge.Options{Region: testRegion, BaseEndpoint: aws.String(w.aws.URL),
		Credentials: credentials.NewStaticCredentialsProvider(adminKey, adminSecret, "")})
	for name, file := range map[string]string{"Moves": "moves.json", "Failures": "failures.json"} {
		pattern, err := os.ReadFile(filepath.Join(alerts, file))
		if err != nil {
			t.Fatal(err)
		}
		rule := s.Resources[name].Properties
		var want map[string]any
		if err := json.Unmarshal(pattern, &want); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(rule.EventPattern, want) {
			t.Errorf("the rule %s of CloudFormation has the pattern %v, Terraform's is %v", name, rule.EventPattern, want)
		}
		if _, err := bus.PutRule(t.Context(), &eventbridge.PutRuleInput{Name: &name, EventPattern: aws.String(string(pattern))}); err != nil {
			t.Fatal(err)
		}
		transformer := rule.Targets[0].InputTransformer
		out, err := bus.PutTargets(t.Context(), &eventbridge.PutTargetsInput{Rule: &name, Targets: []ebtypes.Target{{
			Id: aws.String("sns"), Arn: aws.String("arn:aws:sns:" + testRegion + ":" + testAccount + ":byokd"),
			InputTransformer: &ebtypes.InputTransformer{InputPathsMap: transformer.InputPathsMap, InputTemplate: &transformer.InputTemplate}}}})
		if err != nil || out.FailedEntryCount != 0 {
			t.Fatal(out, err)
		}
	}
	for _, e := range examples(t) {
		for name := range map[string]bool{"Moves": true, "Failures": true} {
			want := strings.HasPrefix(e.DetailType, "BYOK ") == (name == "Failures") &&
				(name == "Failures" || e.DetailType == "KMS Alias Moved" || e.DetailType == "KMS Key Material Rotated")
			envelope, err := json.Marshal(e)
			if err != nil {
				t.Fatal(err)
			}
			pattern, err := json.Marshal(s.Resources[name].Properties.EventPattern)
			if err != nil {
				t.Fatal(err)
			}
			got, err := bus.TestEventPattern(t.Context(), &eventbridge.TestEventPatternInput{Event: aws.String(string(envelope)), EventPattern: aws.String(string(pattern))})
			if err != nil {
				t.Fatal(err)
			}
			if got.Result != want {
				t.Errorf("%s matches %s: %v, want %v", e.DetailType, name, got.Result, want)
			}
		}
	}

	w.deny(func(r awssim.Request) bool { return r.Operation == "ImportKeyMaterial" })
	w.group("payments", every, "")
	w.start()
	told := func(rule, text string) bool {
		for _, d := range w.sim.Deliveries() {
			if d.Rule == rule && strings.Contains(d.Input, text) {
				return true
			}
		}
		return false
	}
	w.until("the failure reaches the target", func() bool {
		return told("Failures", "byokd: BYOK Rotation Failed: key group payments on ") && told("Failures", "kms:ImportKeyMaterial")
	})
	w.faults(nil, nil)
	if _, err := w.client.Retry(t.Context(), nil, true); err != nil {
		t.Fatal(err)
	}
	w.untilGeneration("payments", 1)
	w.until("the move reaches the target", func() bool {
		return told("Moves", "byokd: KMS Alias Moved: alias/payments of key group payments is at generation 1, "+w.keys()[0].ARN)
	})
}

// promtool is Prometheus's own checker of rules.
func promtool(t *testing.T) string {
	t.Helper()
	if path, err := exec.LookPath("promtool"); err == nil {
		return path
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(cache, "byokd", "promtool")
	if _, err := os.Stat(path); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("promtool is not there: .ci/setup gets it")
		}
		t.Skip("NOT TESTED: promtool is not there; .ci/setup gets it from Debian's package prometheus")
	}
	return path
}

// panels are the expressions of the Grafana dashboard.
func panels(t *testing.T) []string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(alerts, "grafana-dashboard.json"))
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(raw, &dashboard); err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			list = append(list, target.Expr)
		}
	}
	if len(list) == 0 {
		t.Fatal("the dashboard has no panel")
	}
	return list
}

// TestAlertRulesOfPrometheus has promtool check and test the rules, and check
// the dashboard's expressions.
func TestAlertRulesOfPrometheus(t *testing.T) {
	tool := promtool(t)
	run := func(args ...string) {
		t.Helper()
		cmd := exec.Command(tool, args...)
		cmd.Dir = alerts
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	run("check", "rules", "prometheus.rules.yml")
	run("test", "rules", "prometheus.test.yml")

	var rules strings.Builder
	rules.WriteString("groups:\n- name: dashboard\n  rules:\n")
	for i, expr := range panels(t) {
		expr = strings.ReplaceAll(expr, "$__rate_interval", "5m")
		fmt.Fprintf(&rules, "  - {record: 'panel:%d', expr: %q}\n", i, expr)
	}
	file := filepath.Join(t.TempDir(), "dashboard.rules.yml")
	if err := os.WriteFile(file, []byte(rules.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	run("check", "rules", file)
}

// TestAlertMetrics: each metric that rules and dashboard speak of is one that
// byokd serves.
func TestAlertMetrics(t *testing.T) {
	w := newWorld(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	w.configure(fmt.Sprintf("[metrics]\nlisten = %q\n", address))
	w.group("payments", "every = \"90d\"\nkeep_valid_for = \"365d\"", "")
	w.start()
	w.untilGeneration("payments", 1)
	var served []byte
	w.until("the job that has ended is counted", func() bool {
		response, err := http.Get("http://" + address + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		if served, err = io.ReadAll(response.Body); err != nil {
			t.Fatal(err)
		}
		return bytes.Contains(served, []byte("\nbyokd_step_duration_seconds_bucket{")) && bytes.Contains(served, []byte("\nbyokd_jobs_total{"))
	})

	rules, err := os.ReadFile(filepath.Join(alerts, "prometheus.rules.yml"))
	if err != nil {
		t.Fatal(err)
	}
	text := string(rules) + strings.Join(panels(t), "\n")
	names := regexp.MustCompile(`\bbyokd_[a-z_]+`).FindAllString(text, -1)
	if len(names) < 10 {
		t.Fatalf("rules and dashboard name %q only", names)
	}
	for _, name := range names {
		if !regexp.MustCompile(`(?m)^` + name + `[{ ]`).Match(served) {
			t.Errorf("byokd serves no %s", name)
		}
	}
	for _, state := range regexp.MustCompile(`state="([a-z]+)"`).FindAllStringSubmatch(string(rules), -1) {
		if !strings.Contains("removed invalid expired failing overdue drifted rotating pending ok", state[1]) {
			t.Errorf("a rule asks for the state %s, which there is not", state[1])
		}
	}
}
