package jobstore_test

import (
	"testing"

	"byokd/daemon/jobstore"
)

func TestLoginAllowed(t *testing.T) {
	type login = jobstore.Login
	const (
		unknown   = jobstore.LoginUnknown
		ok        = jobstore.LoginOK
		incorrect = jobstore.LoginIncorrect
		locked    = jobstore.LoginLocked
		failed    = jobstore.LoginError
		permit    = jobstore.LoginPermit
	)
	for _, test := range []struct {
		name     string
		logins   []login // newest first
		identity string
		want     bool
	}{
		{"first ever", nil, "f1", true},
		{"after success", []login{{Result: ok, PINIdentity: "f1"}}, "f1", true},
		{"after another error", []login{{Result: failed, PINIdentity: "f1"}}, "f1", true},
		{"after locked", []login{{Result: locked, PINIdentity: "f1"}}, "f1", true},
		{"after incorrect", []login{{Result: incorrect, PINIdentity: "f1"}}, "f1", false},
		{"after incorrect, file changed", []login{{Result: incorrect, PINIdentity: "f1"}}, "f2", true},
		{"after incorrect, credential", []login{{Result: incorrect}}, "", false},
		{"after incorrect from file, now credential", []login{{Result: incorrect, PINIdentity: "f1"}}, "", false},
		{"after incorrect from credential, now file", []login{{Result: incorrect}}, "f1", false},
		{"permitted", []login{{Result: permit}, {Result: incorrect}}, "", true},
		{"permitted and incorrect again", []login{{Result: incorrect}, {Result: permit}, {Result: incorrect}}, "", false},
		{"incorrect long ago", []login{{Result: ok}, {Result: permit}, {Result: incorrect}}, "", true},
		{"one without result", []login{{Result: unknown, PINIdentity: "f1"}, {Result: ok, PINIdentity: "f1"}}, "f1", true},
		{"the first without result", []login{{Result: unknown}}, "", true},
		{"two without result", []login{{Result: unknown, PINIdentity: "f1"}, {Result: unknown, PINIdentity: "f1"}}, "f1", false},
		{"two without result, credential", []login{{Result: unknown}, {Result: unknown}}, "", false},
		{"two without result, file changed", []login{{Result: unknown, PINIdentity: "f1"}, {Result: unknown, PINIdentity: "f1"}}, "f2", true},
		{"two without result, one of the file before", []login{{Result: unknown, PINIdentity: "f2"}, {Result: unknown, PINIdentity: "f1"}}, "f2", true},
		{"two without result, permit between", []login{{Result: unknown}, {Result: permit}, {Result: unknown}}, "", true},
		{"two without result, success between", []login{{Result: unknown}, {Result: ok}, {Result: unknown}}, "", true},
		{"without result, changed file was incorrect", []login{{Result: unknown, PINIdentity: "f2"}, {Result: incorrect, PINIdentity: "f1"}}, "f2", true},
		{"without result on top of incorrect", []login{{Result: unknown}, {Result: incorrect}}, "", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, reason := jobstore.LoginAllowed(test.logins, test.identity)
			equal(t, "allowed", got, test.want)
			equal(t, "reason given", reason != "", !test.want)
		})
	}
}

func TestLogins(t *testing.T) {
	s, c := newStore(t)
	allowed := func(identity string) bool {
		t.Helper()
		logins, err := s.Logins(t.Context(), "main", 2)
		must(t, err)
		ok, _ := jobstore.LoginAllowed(logins, identity)
		return ok
	}
	id, err := s.BeginLogin(t.Context(), "main", "f1")
	must(t, err)
	must(t, s.EndLogin(t.Context(), id, jobstore.LoginIncorrect))
	mustBe(t, s.EndLogin(t.Context(), id, jobstore.LoginOK), jobstore.ErrNotFound)
	equal(t, "allowed after incorrect", allowed("f1"), false)
	equal(t, "allowed with another file", allowed("f2"), true)

	// Over a restart, too, and no other token is meant.
	s = reopen(t, s)
	equal(t, "allowed after restart", allowed("f1"), false)
	other, err := s.Logins(t.Context(), "other", 2)
	must(t, err)
	equal(t, "logins of another token", len(other), 0)

	must(t, s.PermitLogin(t.Context(), "main", jobstore.AuditEntry{Actor: "root", Action: "permit login", Detail: "main"}))
	equal(t, "allowed after permit", allowed("f1"), true)
	logins, err := s.Logins(t.Context(), "main", 0)
	must(t, err)
	equal(t, "number of logins", len(logins), 2)
	equal(t, "permitted", jobstore.LoginPermitted(logins), true)
	audit, err := s.Audit(t.Context(), jobstore.AuditFilter{})
	must(t, err)
	equal(t, "audit entries", len(audit), 1)

	c.advance(1)
	for range 2 { // killed in C_Login, twice
		equal(t, "allowed", allowed("f1"), true)
		_, err = s.BeginLogin(t.Context(), "main", "f1")
		must(t, err)
	}
	equal(t, "allowed after two deaths", allowed("f1"), false)
	logins, err = s.Logins(t.Context(), "main", 1)
	must(t, err)
	equal(t, "permitted", jobstore.LoginPermitted(logins), false)
	equal(t, "ended", logins[0].EndedAt.IsZero(), true)

	if err := s.EndLogin(t.Context(), logins[0].ID, "maybe"); err == nil {
		t.Error("a result that there is not was accepted")
	}
}
