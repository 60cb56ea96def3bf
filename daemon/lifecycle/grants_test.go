package lifecycle_test

import (
	"strings"
	"testing"

	"byokd/daemon/lifecycle"
)

func someGrants() []lifecycle.Grant {
	return []lifecycle.Grant{
		{ID: "g1", Name: "backup", Grantee: "arn:aws:iam::111122223333:role/backup", Operations: []string{"Decrypt", "DescribeKey"},
			Retiring: "arn:aws:iam::111122223333:role/admin", ContextSubset: map[string]string{"vault": "a"}},
		{ID: "g2", GranteeService: "rds.amazonaws.com", Operations: []string{"Encrypt", "Decrypt"}, SourceARN: "arn:aws:rds:eu-central-1:111122223333:db:x"},
	}
}

func TestGrantsWarn(t *testing.T) {
	w := newWorld(t)
	w.rotate(definition())
	w.keyOf(1).grants = someGrants()
	w.rotate(definition())
	id := w.journal.order[len(w.journal.order)-1]
	s := w.step(id, "grants")
	for _, word := range []string{w.keyOf(1).ID, "2 grants", "role/backup (Decrypt, DescribeKey)", "rds.amazonaws.com (Encrypt, Decrypt)"} {
		if !strings.Contains(s.Message, word) {
			t.Errorf("the step says %q, not %q", s.Message, word)
		}
	}
	job := w.journal.claim(id)
	if got := lifecycle.GrantsLeft(&job); got != s.Message {
		t.Errorf("left: %q", got)
	}
	w.journal.finish(id, "completed")
	if len(w.keyOf(2).grants) != 0 || len(w.journal.events) != 2 {
		t.Error("more was done than to tell")
	}

	// A reconciliation tells too, until they are gone, or the key is of no use.
	told := func() bool {
		for _, p := range w.reconcileUntilDone(definition()).Problems {
			if p.Code == "grants" && strings.Contains(p.Message, w.keyOf(1).ID) {
				return true
			}
		}
		return false
	}
	if !told() {
		t.Error("the grants left behind are no problem")
	}
	w.kms.denied["Grants"] = true
	if told() {
		t.Error("told of what cannot be seen")
	}
	w.kms.denied["Grants"] = false
	grants := w.keyOf(1).grants
	w.keyOf(1).grants = nil
	if told() {
		t.Error("told of grants that are gone")
	}
	w.keyOf(1).grants = grants
	w.disable(1)
	if told() {
		t.Error("told of a key that is disabled")
	}
	w.check()
}

func TestGrantsCopied(t *testing.T) {
	w := newWorld(t)
	def := definition()
	def.Grants = "copy"
	w.rotate(def)
	w.keyOf(1).grants = someGrants()
	w.rotate(def)
	want := someGrants()
	want[0].ID, want[1].ID, want[1].Name = "grant-1", "grant-2", "byokd:g2"
	diff(t, "grants", want, w.keyOf(2).grants)
	w.rotate(def)
	diff(t, "names of copies stay", []string{"backup", "byokd:g2"}, []string{w.keyOf(3).grants[0].Name, w.keyOf(3).grants[1].Name})
	// Back to a key that has them already.
	w.advance(days)
	if err := w.drive(w.rollback(def, 2), 0); err != nil {
		t.Fatal(err)
	}
	if got := len(w.keyOf(2).grants); got != 2 {
		t.Errorf("%d grants", got)
	}
	w.check()
}

func TestGrantsBlock(t *testing.T) {
	w := newWorld(t)
	def := definition()
	def.Grants = "block"
	w.rotate(def)
	w.keyOf(1).grants = someGrants()
	w.advance(days)
	id := w.journal.enqueue(lifecycle.Rotate, def, lifecycle.Request{}, "schedule")
	wantOperator(t, w.drive(id, 0), lifecycle.WaitConfig, w.keyOf(1).ID, "2 grants", "aws kms revoke-grant", `grants = "copy"`)
	if w.kms.aliases["alias/payments"].target != w.keyOf(1).ID {
		t.Error("the alias has moved")
	}
	w.keyOf(1).grants = nil
	w.drain()
	if w.kms.aliases["alias/payments"].target != w.keyOf(2).ID {
		t.Error("the alias has not moved")
	}
	w.check()
}

// A service at the endpoint that is older than grants does not stop a rotation.
func TestGrantsNotThere(t *testing.T) {
	w := newWorld(t)
	def := definition()
	w.rotate(def)
	w.kms.lacks = "Grants"
	w.advance(days)
	id := w.journal.enqueue(lifecycle.Rotate, def, lifecycle.Request{}, "schedule")
	err := w.drive(id, 0)
	if s := w.step(id, "grants"); err != nil || s.State != lifecycle.Skipped || !strings.Contains(s.Message, "could not be seen") {
		t.Errorf("%v, step %+v", err, s)
	}
}

// Where grants cannot be seen, only those who asked for more than a word wait.
func TestGrantsDenied(t *testing.T) {
	for mode, waits := range map[string]bool{"warn": false, "": false, "copy": true, "block": true} {
		w := newWorld(t)
		def := definition()
		def.Grants = mode
		w.rotate(def)
		w.kms.denied["Grants"] = true
		w.advance(days)
		id := w.journal.enqueue(lifecycle.Rotate, def, lifecycle.Request{}, "schedule")
		err := w.drive(id, 0)
		if waits {
			wantOperator(t, err, lifecycle.WaitPermission)
			continue
		}
		if s := w.step(id, "grants"); err != nil || s.State != lifecycle.Skipped || !strings.Contains(s.Message, "could not be seen") {
			t.Errorf("%q: %v, step %+v", mode, err, s)
		}
	}
}
