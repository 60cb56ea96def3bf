package daemon_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"byokd/cloud/awssim"
)

// freeAddress is an address on loopback that nobody listens on.
func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// get fetches a URL of byokd's once it answers, and returns status and body.
func (w *world) get(url string) (*http.Response, string) {
	w.t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	var resp *http.Response
	w.until(url+" answers", func() (ok bool) {
		var err error
		resp, err = client.Get(url)
		return err == nil
	})
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp, string(body)
}

// scrape fetches the metrics of the byokd whose byokd.toml has [metrics] listen.
func (w *world) scrape() string {
	w.t.Helper()
	resp, body := w.get("http://" + w.config().Metrics.Listen + "/metrics")
	if resp.StatusCode != http.StatusOK {
		w.t.Fatalf("metrics: %s", resp.Status)
	}
	return body
}

var metricName = regexp.MustCompile("`(byokd_[a-z_]+)(?:\\{([a-z_,]+)\\})?`")

// TestMetrics: a running byokd tells every metric that the documentation names,
// with its labels, and no other.
func TestMetrics(t *testing.T) {
	doc, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := make(map[string]string)
	for _, m := range metricName.FindAllStringSubmatch(string(doc), -1) {
		if m[2] != "" || documented[m[1]] == "" {
			documented[m[1]] = m[2]
		}
	}
	// What the contract with alert rules holds in any case.
	for name, labels := range map[string]string{
		"byokd_jobs_total": "group,kind,result", "byokd_step_duration_seconds": "step", "byokd_last_rotation_timestamp_seconds": "group",
		"byokd_next_rotation_timestamp_seconds": "group", "byokd_active_key_expiry_timestamp_seconds": "group", "byokd_outbox_pending": "",
		"byokd_config_last_reload_successful": "", "byokd_hsm_sessions_in_use": "hsm", "byokd_hsm_errors_total": "hsm,ckr",
		"byokd_aws_requests_total": "operation,code",
	} {
		if got, ok := documented[name]; !ok || got != labels {
			t.Errorf("docs/metrics.md has %s{%s}, want %s{%s}", name, got, name, labels)
		}
	}

	w := newWorld(t)
	told := w.script("told", "exit 1")
	w.configure(fmt.Sprintf("[metrics]\nlisten = %q\n[hooks]\n\"KMS Alias Moved\" = %q", freeAddress(t), told))
	w.write("hsm.pin", "0000") // a token that refuses
	w.start()
	w.until("the token has refused the PIN", func() bool { return w.log.contains("the token refused the PIN") })
	w.write("hsm.pin", w.token.PIN)
	w.group("payments", every+"\nkeep_valid_for = \"200d\"", "")
	w.untilGeneration("payments", 1)
	w.until("the event is delivered", func() bool { return len(w.eventDetails("KMS Alias Moved")) == 1 })
	if _, err := w.client.Drift(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Then AWS takes nothing any more: neither an event nor the rotation that is due.
	w.faults(func(r awssim.Request) *awssim.Fault {
		if r.Operation == "PutEvents" || r.Operation == "CreateKey" {
			return &awssim.Fault{Status: 500, Code: "InternalException"}
		}
		return nil
	}, nil)
	w.at(time.Now().AddDate(0, 0, 120))
	var scraped string
	w.until("the rotation is overdue and an event waits", func() bool {
		scraped = w.scrape()
		return strings.Contains(scraped, "byokd_overdue_since_timestamp_seconds{") && strings.Contains(scraped, "byokd_outbox_oldest_pending")
	})

	labels := make(map[string]string)
	for line := range strings.Lines(scraped) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		name, rest, _ := strings.Cut(line, "{")
		if name == line {
			name, _, _ = strings.Cut(line, " ")
			rest = ""
		}
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if base := strings.TrimSuffix(name, suffix); strings.HasSuffix(base, "_seconds") {
				name = base
			}
		}
		var names []string
		for _, m := range regexp.MustCompile(`([a-z_]+)="`).FindAllStringSubmatch(rest, -1) {
			if m[1] != "le" {
				names = append(names, m[1])
			}
		}
		slices.Sort(names)
		labels[name] = strings.Join(names, ",")
	}
	for name, want := range documented {
		names := strings.FieldsFunc(want, func(r rune) bool { return r == ',' })
		slices.Sort(names)
		got, ok := labels[name]
		if !ok || got != strings.Join(names, ",") {
			t.Errorf("%s: there %t with labels {%s}, the documentation says {%s}", name, ok, got, want)
		}
	}
	for name := range labels {
		if _, ok := documented[name]; !ok {
			t.Errorf("%s is not in docs/metrics.md", name)
		}
	}
	if t.Failed() {
		t.Logf("scraped:\n%s", scraped)
	}
}

// TestAddressTaken: an address that another has is told of, hinders no rotation,
// and is listened on once it is free.
func TestAddressTaken(t *testing.T) {
	w := newWorld(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w.configure(fmt.Sprintf("[metrics]\nlisten = %q", l.Addr()))
	w.start()
	w.group("payments", every, "")
	w.untilGeneration("payments", 1)
	w.until("byokd says so", func() bool {
		d, err := w.client.Daemon(t.Context())
		return err == nil && len(d.Problems) == 1 && d.Problems[0].Code == "metrics" &&
			strings.Contains(d.Problems[0].Message, "address already in use")
	})
}
