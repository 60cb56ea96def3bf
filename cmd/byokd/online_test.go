package main_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
)

// TestCheckOnline: what a first installation gets wrong with its token, one
// thing at a time, with no byokd running; and then with one.
func TestCheckOnline(t *testing.T) {
	m := newMachine(t)
	m.group("payments", "")
	toml := m.read("byokd.toml")
	replace := func(old, new string) func() {
		return func() { m.write("byokd.toml", strings.Replace(toml, old, new, 1)) }
	}
	for _, test := range []struct {
		name  string
		spoil func()
		want  string
	}{
		{"nothing", func() {}, ""},
		{"no database", func() { os.Rename(m.path("state/byokd.db"), m.path("state/away")) }, "byokctl init"},
		{"no module", replace(m.token.Module, "/nowhere/module.so"), "failed   byokd.toml: "},
		{"something else than a module", replace(m.token.Module, "/etc/passwd"), "failed   token of [hsm.main]: "},
		{"no such token", replace(`token_label = "`, `token_label = "other-`), "failed   token of [hsm.main]: "},
		{"no PIN", func() { os.Remove(m.path("hsm.pin")) }, "hsm.pin"},
		{"a PIN that others can read", func() { os.Chmod(m.path("hsm.pin"), 0o644) }, "hsm.pin"},
		{"no access key", func() { os.Remove(m.path("prod.csv")) }, "prod.csv"},
		{"a bad group", func() { m.write("groups.d/bad.toml", "evry = 1\n") }, "failed   group bad: "},
		// Last: byokd's record keeps everybody from trying again.
		{"a wrong PIN", func() { m.write("hsm.pin", "9999") }, "the token said that the PIN is incorrect; it is not tried again"},
		{"a wrong PIN once more", func() { m.write("hsm.pin", "9999") }, "failed   token of [hsm.main]: "},
	} {
		m.write("byokd.toml", toml)
		m.write("hsm.pin", m.token.PIN)
		m.write("prod.csv", "Access key ID,Secret access key\nAKIATEST,secret\n")
		os.Remove(m.path("groups.d/bad.toml"))
		os.Rename(m.path("state/away"), m.path("state/byokd.db"))
		test.spoil()
		out, status := m.byokctl("check", "--online")
		switch {
		case test.want == "" && (status != 0 || !strings.Contains(out, "nothing failed: ") || !strings.Contains(out, "proven by a self-test")):
			t.Errorf("%s: exit status %d and\n%s", test.name, status, out)
		case test.want != "" && (status == 0 || !strings.Contains(out, test.want)):
			t.Errorf("%s: exit status %d, and nothing says %q:\n%s", test.name, status, test.want, out)
		}
	}

	m.write("hsm.pin", m.token.PIN)
	if out, status := m.byokctl("hsm", "--login", "main"); status != 0 {
		t.Fatal(out)
	}
	m.start()
	m.until("byokd knows its token", func() bool {
		out, _ := m.byokctl("hsm")
		return strings.Contains(out, "algorithm") && !strings.Contains(out, "logged in itself")
	})
	if out, status := m.byokctl("check", "--online"); status != 0 || !strings.Contains(out, "runs, and was asked about the tokens") {
		t.Errorf("with byokd running: exit status %d and\n%s", status, out)
	}
}

// TestCheckOnlineThroughAProxy: what AWS was looked for through is told, since
// byokctl has the environment of whoever runs it and byokd that of its unit.
func TestCheckOnlineThroughAProxy(t *testing.T) {
	m := newMachine(t)
	m.group("payments", "")
	toml := m.read("byokd.toml")
	// AWS's own endpoints, through a proxy that lets nothing out.
	var kept []string
	for line := range strings.Lines(toml) {
		if !strings.Contains(line, "_endpoint") {
			kept = append(kept, line)
		}
	}
	m.write("byokd.toml", strings.Join(kept, ""))
	proxy := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.WriteHeader(http.StatusForbidden)
	}))
	defer proxy.Close()
	t.Setenv("HTTPS_PROXY", strings.Replace(proxy.URL, "//", "//byokd:hidden@", 1))
	out, status := m.byokctl("check", "--online")
	want := "(through proxy " + strings.TrimPrefix(proxy.URL, "http://") + ")"
	if status != 1 || !strings.Contains(out, want) || strings.Contains(out, "hidden") {
		t.Errorf("exit status %d, and nothing says %q:\n%s", status, want, out)
	}
}
