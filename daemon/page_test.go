package daemon_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"byokd/cloud/awssim"
	"byokd/daemon/control"
	"byokd/daemon/jobstore"
)

// seed writes a past into the database: groups whose generations are in every
// stretch of their lives, jobs that failed, events that wait. byokd must not run.
func (w *world) seed() {
	w.t.Helper()
	ctx := w.t.Context()
	store, err := jobstore.Open(ctx, w.path("state/byokd.db"), jobstore.Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() {
		if err := store.Close(); err != nil {
			w.t.Fatal(err)
		}
	}()
	now := time.Now()
	day := func(n int) time.Time { return now.AddDate(0, 0, n) }
	generation := func(group string, number int, stage string, from int) jobstore.Generation {
		return jobstore.Generation{Group: group, Number: number, Stage: stage, HSM: "main", HSMLabel: fmt.Sprintf("byokd/%s/%d", group, number),
			HSMID: fmt.Sprintf("%032x", len(group)*100+number), GeneratedAt: day(from), Region: testRegion, Account: testAccount,
			KeyID: fmt.Sprintf("%08x-1234-4321-8888-123456789012", 0x1a2b3c4d*number+len(group)), CreatedAt: day(from), ImportedAt: day(from), ActivatedAt: day(from)}
	}
	var c jobstore.Change
	for i, name := range []string{"payments", "orders", "hr-archive", "ledger"} {
		w.group(name, every, fmt.Sprintf("description = %q", "the keys of "+name))
		if err := store.SetAccount(ctx, name, testAccount); err != nil && i < 0 {
			w.t.Fatal(err)
		}
		if _, _, err := store.Enqueue(ctx, jobstore.NewJob{Kind: "synchronize", Group: name, HSM: "main", Trigger: "start", DueAt: day(1)}); err != nil {
			w.t.Fatal(err)
		}
		first := generation(name, 1, "previous", -360+20*i)
		first.DisabledAt, first.ValidTo = day(-250+20*i), day(5)
		second := generation(name, 2, "previous", -260+20*i)
		second.DeletionDate = day(20 - 5*i)
		third := generation(name, 3, "previous", -160+20*i)
		fourth := generation(name, 4, "active", -85+20*i)
		fourth.ValidTo = day(280)
		c.Generations = append(c.Generations, first, second, third, fourth)
		if name == "hr-archive" {
			c.Generations[len(c.Generations)-1].ValidTo = day(-2)
		}
		if name == "ledger" {
			next := generation(name, 5, "pre-active", -3)
			next.ActivatedAt = time.Time{}
			c.Generations = append(c.Generations, next)
		}
		c.Events = append(c.Events, jobstore.Event{ID: fmt.Sprintf("019aa000-0000-7000-8000-00000000000%d", i), Group: name,
			DetailType: "KMS Alias Moved", Detail: []byte(`{"schema":1}`), OccurredAt: day(-85 + 20*i), Region: testRegion, Credential: "prod"})
	}
	if err := store.Advance(ctx, c); err != nil {
		w.t.Fatal(err)
	}
	if err := store.Park(ctx, c.Events[1].ID, `MalformedDetail: <script>alert("x")</script> is no JSON`); err != nil {
		w.t.Fatal(err)
	}
	if err := store.Failed(ctx, c.Events[0].ID, day(1), "EventBridge cannot be reached"); err != nil {
		w.t.Fatal(err)
	}
	if err := store.Sent(ctx, c.Events[3].ID, "aws", day(-25)); err != nil {
		w.t.Fatal(err)
	}
}

// paged starts a byokd that serves the page, with a past, and returns its URL.
// It is not the designated device, so that nothing changes while it is looked at.
func paged(t *testing.T) (*world, string) {
	w := newWorld(t)
	w.seed()
	w.write("groups.d/broken.toml", "[rotation]\nevery = \"90 days\"\n")
	address := freeAddress(t)
	w.configure(fmt.Sprintf("designated = false\n[page]\nlisten = %q", address))
	w.start()
	return w, "http://" + address
}

// TestPage: what the page says, to whom, and that it can be asked for nothing else.
func TestPage(t *testing.T) {
	w, base := paged(t)
	resp, body := w.get(base + "/")
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/html; charset=utf-8" {
		t.Fatalf("%s, %s", resp.Status, resp.Header.Get("Content-Type"))
	}
	for _, want := range []string{
		"5 groups", "payments", "alias/hr-archive", `class="state bad">expired`, "not designated", "event-parked",
		"broken.toml:2:1: rotation.every", "2 waiting", "1 parked",
		"MalformedDetail: &lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;", // what comes from outside is text
		`class="bar active"`, `class="bar disabled"`, `class="expires"`, `class="now"`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("the page does not have %q", want)
		}
	}
	for _, bad := range []string{"<script", "style=", "onclick", "<form", `src="http`, `href="http`, "@import", "<no value>", "%!"} {
		if strings.Contains(body, bad) {
			t.Errorf("the page has %q", bad)
		}
	}
	if strings.Index(body, ">hr-archive<") > strings.Index(body, ">ledger<") {
		t.Error("the expired group does not come first")
	}
	for name, want := range map[string]string{"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
		"Cache-Control": "no-store", "Cross-Origin-Resource-Policy": "same-origin"} {
		if got := resp.Header.Get(name); got != want {
			t.Errorf("%s: %s", name, got)
		}
	}
	csp := resp.Header.Get("Content-Security-Policy")
	if !strings.HasPrefix(csp, "default-src 'none';") || strings.Contains(csp, "unsafe") || strings.Contains(csp, "script-src") {
		t.Errorf("Content-Security-Policy: %s", csp)
	}

	resp, body = w.get(base + "/groups/ledger")
	for _, want := range []string{"ledger", "byokd/ledger/5", "pre-active", "generation 4, active: ", "the group's", "/groups/ledger/keys.json"} {
		if resp.StatusCode != http.StatusOK || want != "the group's" && !strings.Contains(body, want) {
			t.Errorf("the group's page (%s) does not have %q", resp.Status, want)
		}
	}
	for path, status := range map[string]int{"/?all=1": 200, "/groups/nobody": 404, "/groups/nobody/keys.json": 404, "/nothing": 404,
		"/page/style.css": 404, "/style.css": 200, "/icon.svg": 200, "/v1/rotate": 404, "/groups/..%2f..%2f": 404} {
		if resp, body := w.get(base + path); resp.StatusCode != status {
			t.Errorf("%s: %s, want %d: %s", path, resp.Status, status, body)
		}
	}

	// The JSON is that of byokctl, where nothing changes while both are asked.
	ctx := t.Context()
	same := func(path string, got any, ask func() (any, error)) {
		t.Helper()
		byokctl := func() string {
			v, err := ask()
			if err != nil {
				t.Fatal(err)
			}
			b, _ := json.Marshal(v)
			return string(b)
		}
		var want, body string
		w.until("byokctl has the same before and after "+path, func() bool {
			want = byokctl()
			var resp *http.Response
			resp, body = w.get(base + path)
			if resp.Header.Get("Content-Type") != "application/json" {
				t.Fatalf("%s: %s", path, resp.Header.Get("Content-Type"))
			}
			return want == byokctl()
		})
		if err := json.Unmarshal([]byte(body), got); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if b, _ := json.Marshal(got); string(b) != want || strings.TrimSpace(body) != want {
			t.Errorf("%s:\n%s\nbyokctl has\n%s", path, body, want)
		}
	}
	same("/status.json", new([]control.GroupStatus), func() (any, error) { return w.client.Status(ctx) })
	same("/timeline.json", new([]control.Timeline), func() (any, error) { return w.client.Timeline(ctx) })
	same("/groups/ledger/keys.json", new([]control.Key), func() (any, error) { return w.client.Keys(ctx, "ledger") })
	same("/jobs.json", new([]control.JobSummary), func() (any, error) { return w.client.Jobs(ctx, control.JobFilter{}) })
	same("/daemon.json", new(control.DaemonStatus), func() (any, error) { return w.client.Daemon(ctx) })
	var events []control.Event
	if _, body := w.get(base + "/events.json"); json.Unmarshal([]byte(body), &events) != nil || len(events) != 4 ||
		events[0].State != control.EventParked || events[3].State != control.EventSent {
		t.Errorf("events: %+v", events)
	}
}

// TestPageFoldsProblems: one cause that hits all groups is one line, whatever the
// messages have of each group, and so it is on the page.
func TestPageFoldsProblems(t *testing.T) {
	const many = 12
	w := newWorld(t)
	address := freeAddress(t)
	w.configure(fmt.Sprintf("[page]\nlisten = %q", address))
	for i := range many {
		w.group(fmt.Sprintf("g%02d", i), every, "")
	}
	w.start()
	for i := range many {
		w.untilGeneration(fmt.Sprintf("g%02d", i), 1)
	}

	// folded waits until each group has one of the problems, and returns the page.
	folded := func(codes ...string) string {
		t.Helper()
		w.until("each group has the problem "+codes[0], func() bool {
			groups, err := w.client.Status(t.Context())
			return err == nil && !slices.ContainsFunc(groups, func(g control.GroupStatus) bool {
				return !slices.ContainsFunc(g.Problems, func(p control.Problem) bool { return slices.Contains(codes, p.Code) })
			})
		})
		status := func() ([]control.GroupStatus, control.CommonProblems) {
			groups, err := w.client.Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return groups, control.FindCommon(groups)
		}
		var groups []control.GroupStatus
		var common control.CommonProblems
		var body string
		w.until("the problems are the same before and after the page was asked for", func() bool {
			groups, common = status()
			resp, page := w.get("http://" + address + "/")
			if resp.StatusCode != http.StatusOK {
				t.Fatal(resp.Status, page)
			}
			body = page
			_, after := status()
			return fmt.Sprint(common) == fmt.Sprint(after)
		})
		for _, g := range groups {
			for _, p := range common.Others(g) {
				t.Errorf("%s has a problem of its own: %s", g.Group, p)
			}
		}
		for _, c := range common {
			if !strings.Contains(body, fmt.Sprintf("<strong>%d groups</strong> <strong>%s</strong>", c.Groups, c.Code)) {
				t.Errorf("the page does not tell that %s", c)
			}
		}
		if n := strings.Count(body, `<strong>`+codes[0]+`</strong>`); n > 2 {
			t.Errorf("the page tells %d times of %s:\n%v", n, codes[0], common)
		}
		for i := range many {
			if !strings.Contains(body, fmt.Sprintf(">alias/g%02d<", i)) {
				t.Errorf("the page has lost g%02d", i)
			}
		}
		return body
	}

	w.at(time.Now()) // where it stands: a job that is tried again has its problem no more, for a moment
	w.faults(func(awssim.Request) *awssim.Fault { return &awssim.Fault{Drop: true} }, nil)
	if _, err := w.client.Rotate(t.Context(), nil, true); err != nil {
		t.Fatal(err)
	}
	folded("retrying")
	if err := w.halt(); err != nil {
		t.Fatal(err)
	}

	// A token that byokd does not find when it starts.
	w.token.Label = "another"
	w.configure(fmt.Sprintf("[page]\nlisten = %q", address))
	w.start()
	folded("hsm-unavailable")
	if shots, run := os.Getenv("BYOKD_SCREENSHOTS"), inChromium(t); shots != "" && run != nil {
		run("--window-size=1280,1900", "--screenshot="+filepath.Join(shots, "common.png"), "http://"+address+"/")
		run("--window-size=500,1900", "--blink-settings=preferredColorScheme=0", "--screenshot="+filepath.Join(shots, "common-narrow-dark.png"), "http://"+address+"/")
	}
	if resp, body := w.get("http://" + address + "/groups/g03"); resp.StatusCode != http.StatusOK || !strings.Contains(body, "<strong>hsm-unavailable</strong>") {
		t.Errorf("the group's own page does not have its problem (%s)", resp.Status)
	}
}

// TestPageShowsFreshKeys: a key of a moment ago has a bar, on an axis of months.
func TestPageShowsFreshKeys(t *testing.T) {
	w := newWorld(t)
	address := freeAddress(t)
	w.group("payments", every, "")
	w.configure(fmt.Sprintf("[page]\nlisten = %q", address))
	w.start()
	w.untilGeneration("payments", 1)
	w.rotated("payments")
	_, body := w.get("http://" + address + "/")
	for _, kind := range []string{"active", "previous"} {
		if !strings.Contains(body, `width="0.80%" y="4" height="12" class="bar `+kind+`"`) {
			t.Errorf("the %s key of a moment ago has no bar that is seen", kind)
		}
	}
}

// TestPageRefuses: other methods, and other names for this machine.
func TestPageRefuses(t *testing.T) {
	w, base := paged(t)
	w.get(base + "/") // it is there
	address := strings.TrimPrefix(base, "http://")
	do := func(method, host, path string) (int, string) {
		t.Helper()
		r, err := http.NewRequest(method, base+path, strings.NewReader(""))
		if err != nil {
			t.Fatal(err)
		}
		r.Host = host
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		if method == http.MethodHead && len(b) > 0 {
			t.Errorf("HEAD is answered with %q", b)
		}
		if resp.StatusCode == 200 == strings.Contains(string(b), "for this machine alone") && method != http.MethodHead {
			t.Errorf("%s of %s: %s with %q", method, host, resp.Status, b)
		}
		return resp.StatusCode, resp.Header.Get("Allow")
	}
	for _, method := range []string{"POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"} {
		for _, path := range []string{"/", "/status.json", "/style.css", "/groups/payments", "/v1/rotate"} {
			r, _ := http.NewRequest(method, base+path, nil)
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
			resp, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusMethodNotAllowed || resp.Header.Get("Allow") != "GET, HEAD" {
				t.Errorf("%s %s: %s", method, path, resp.Status)
			}
		}
	}
	_, port, _ := strings.Cut(address, ":")
	for host, want := range map[string]int{
		address: 200, "127.0.0.1": 200, "127.8.8.8:1": 200, "localhost:" + port: 200, "LOCALHOST": 200, "[::1]:8080": 200, "[::1]": 200,
		"evil.example:" + port: 403, "localhost.evil.example": 403, "127.0.0.1.evil.example:" + port: 403, "192.168.1.1": 403, "0.0.0.0:" + port: 403,
		"localhost.": 403, "[fe80::1%25lo]": 403, "127.0.0.1:http": 403, "::ffff:127.0.0.1": 200, "2130706433": 403,
	} {
		if got, _ := do("GET", host, "/"); got != want {
			t.Errorf("Host %s: %d, want %d", host, got, want)
		}
	}
	if got, _ := do("HEAD", address, "/"); got != 200 {
		t.Errorf("HEAD: %d", got)
	}
	if jobs := w.openJobs("payments"); len(jobs) != 1 {
		t.Errorf("%d jobs are open, one was", len(jobs))
	}
}

// TestPageLoopbackOnly: an address that others could reach is refused at load.
func TestPageLoopbackOnly(t *testing.T) {
	w := newWorld(t)
	w.configure("[page]\nlisten = \"0.0.0.0:8080\"")
	if err := w.launch(); err == nil || !strings.Contains(err.Error(), "is not a loopback address") {
		t.Errorf("byokd starts: %v", err)
	}
}

// inChromium returns a function that runs Chromium; nil: there is none.
func inChromium(t *testing.T) func(args ...string) (stdout, stderr string) {
	chromium := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			chromium = path
			break
		}
	}
	if chromium == "" {
		if os.Getenv("CI") != "" {
			t.Fatal("no Chromium is installed: .ci/setup does that with CI set")
		}
		return nil
	}
	return func(args ...string) (stdout, stderr string) {
		t.Helper()
		args = append([]string{"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
			"--disable-component-update", "--disable-sync", "--hide-scrollbars", "--enable-logging=stderr", "--v=0",
			"--user-data-dir=" + t.TempDir()}, args...)
		cmd := exec.CommandContext(t.Context(), chromium, args...)
		var out, errs strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &errs
		if err := cmd.Run(); err != nil {
			t.Fatalf("%s: %v\n%s", chromium, err, &errs)
		}
		return out.String(), errs.String()
	}
}

// TestPageInChromium: a browser shows all of it, loads nothing from
// elsewhere and finds nothing amiss. BYOKD_SCREENSHOTS names a folder
// for pictures of the page.
func TestPageInChromium(t *testing.T) {
	run := inChromium(t)
	if run == nil {
		t.Skip("NOT RUN: the status page was not looked at in a browser, there is no Chromium here: apt-get install chromium")
	}
	w, base := paged(t)
	w.get(base + "/")
	shots := os.Getenv("BYOKD_SCREENSHOTS")
	if shots == "" {
		shots = t.TempDir()
	}
	for _, path := range []string{"/", "/groups/ledger"} {
		dom, console := run("--dump-dom", base+path)
		for _, want := range []string{"<title>", "Timeline", "<rect", "</footer>", "ledger"} {
			if !strings.Contains(dom, want) {
				t.Errorf("%s in Chromium has no %q:\n%.2000s", path, want, dom)
			}
		}
		for _, line := range strings.Split(console, "\n") {
			if strings.Contains(line, "CONSOLE") || strings.Contains(line, "Content Security Policy") {
				t.Errorf("%s: Chromium says: %s", path, line)
			}
		}
	}
	for _, shot := range []struct {
		name, path string
		args       []string
	}{
		{"light", "/", []string{"--window-size=1280,1900"}},
		{"dark", "/", []string{"--window-size=1280,1900", "--blink-settings=preferredColorScheme=0"}},
		{"narrow", "/", []string{"--window-size=500,3400"}},
		{"group", "/groups/ledger", []string{"--window-size=1280,1400"}},
		{"group-narrow-dark", "/groups/ledger", []string{"--window-size=500,2400", "--blink-settings=preferredColorScheme=0"}},
	} {
		file := filepath.Join(shots, shot.name+".png")
		run(append(shot.args, "--screenshot="+file, base+shot.path)...)
		b, err := os.ReadFile(file)
		if err != nil || len(b) < 20_000 || !strings.HasPrefix(string(b), "\x89PNG") {
			t.Errorf("%s: a picture of %d bytes, %v", shot.name, len(b), err)
		}
	}
	if w.log.contains("cannot be shown") {
		t.Error("the log tells of a page that could not be shown")
	}
	if m := regexp.MustCompile(`level=ERROR.*page`).FindString(w.log.String()); m != "" {
		t.Error(m)
	}
}
