package jobstore_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"byokd/daemon/jobstore"

	"github.com/google/go-cmp/cmp"
)

func group(t testing.TB, s *jobstore.Store, name string) jobstore.Group {
	t.Helper()
	g, err := s.Group(t.Context(), name)
	must(t, err)
	return g
}

func TestGroups(t *testing.T) {
	s, c := newStore(t)
	for name, set := range map[string]func() error{
		"applied": func() error { return s.SetApplied(t.Context(), "nobody", "d") },
		"enabled": func() error { return s.SetEnabled(t.Context(), "nobody", epoch) },
		"removed": func() error { return s.SetRemoved(t.Context(), "nobody", epoch) },
		"account": func() error { return s.SetAccount(t.Context(), "nobody", "1") },
		"tick":    func() error { return s.SetLastTick(t.Context(), "nobody", epoch) },
		"invalid": func() error { return s.ClearInvalid(t.Context(), "nobody") },
	} {
		err := set()
		mustBe(t, err, jobstore.ErrNotFound)
		if !strings.Contains(err.Error(), "nobody") {
			t.Errorf("%s: %q names no group", name, err)
		}
	}

	// Asked for before its definition was ever good.
	must(t, s.MarkSeen(t.Context(), "payments", "force:1"))
	if diff := cmp.Diff(jobstore.Group{Name: "payments"}, group(t, s, "payments")); diff != "" {
		t.Error(diff)
	}
	must(t, s.SetDefinition(t.Context(), "payments", []byte(`{"a":1}`), "d1", "main"))
	must(t, s.SetApplied(t.Context(), "payments", "d1"))
	must(t, s.SetEnabled(t.Context(), "payments", epoch.Add(time.Minute)))
	must(t, s.SetRemoved(t.Context(), "payments", epoch.Add(time.Hour)))
	must(t, s.SetAccount(t.Context(), "payments", "111122223333"))
	must(t, s.SetLastTick(t.Context(), "payments", epoch.Add(2*time.Hour)))
	c.advance(time.Hour)
	must(t, s.SetDefinition(t.Context(), "payments", []byte(`{"a":2}`), "d2", "other"))
	want := jobstore.Group{
		Name: "payments", Definition: []byte(`{"a":2}`), Digest: "d2", AppliedDigest: "d1", HSM: "other", Account: "111122223333",
		FirstSeen: epoch, EnabledAt: epoch.Add(time.Minute), RemovedAt: epoch.Add(time.Hour), LastTick: epoch.Add(2 * time.Hour),
	}
	if diff := cmp.Diff(want, group(t, s, "payments")); diff != "" {
		t.Error(diff)
	}
	must(t, s.SetEnabled(t.Context(), "payments", time.Time{}))
	must(t, s.SetRemoved(t.Context(), "payments", time.Time{}))
	must(t, s.SetLastTick(t.Context(), "payments", epoch))
	got := group(t, s, "payments")
	if !got.EnabledAt.IsZero() || !got.RemovedAt.IsZero() || !got.LastTick.Equal(epoch) {
		t.Errorf("group is %+v", got)
	}
	must(t, s.SetDefinition(t.Context(), "backups", []byte(`{}`), "d", "main"))
	groups, err := s.Groups(t.Context())
	must(t, err)
	if len(groups) != 2 || groups[0].Name != "backups" || groups[1].Digest != "d2" {
		t.Errorf("groups are %+v", groups)
	}
	_, err = s.Group(t.Context(), "nobody")
	mustBe(t, err, jobstore.ErrNotFound)
}

func TestReportOnce(t *testing.T) {
	s, _ := newStore(t)
	overdue := func(due time.Time) bool {
		t.Helper()
		reported, err := s.ReportOverdue(t.Context(), due, event("payments", ""))
		must(t, err)
		return reported
	}
	equal(t, "first", overdue(epoch), true)
	equal(t, "same due date", overdue(epoch), false)
	equal(t, "another due date", overdue(epoch.Add(time.Hour)), true)
	equal(t, "recorded", group(t, s, "payments").OverdueReported, epoch.Add(time.Hour))

	invalid := func(problems string) bool {
		t.Helper()
		reported, err := s.ReportInvalid(t.Context(), problems, event("payments", ""))
		must(t, err)
		return reported
	}
	equal(t, "first", invalid("a"), true)
	equal(t, "same set", invalid("a"), false)
	equal(t, "another set", invalid("b"), true)
	equal(t, "the first set again", invalid("a"), true)
	must(t, s.ClearInvalid(t.Context(), "payments"))
	equal(t, "after being good", invalid("a"), true)
	equal(t, "events", query[int](t, s, "SELECT count(*) FROM outbox"), 6)
	checkSequences(t, s)

	// Fact and event are one: a bad event leaves no fact.
	if _, err := s.ReportInvalid(t.Context(), "c", jobstore.Event{ID: "x", Group: "payments"}); err == nil {
		t.Error("an event without detail was accepted")
	}
	equal(t, "recorded", group(t, s, "payments").InvalidReported, "a")
}

func TestGenerations(t *testing.T) {
	s, _ := newStore(t)
	must(t, s.SetDefinition(t.Context(), "a", []byte(`{}`), "d", "main"))
	must(t, s.SetDefinition(t.Context(), "b", []byte(`{}`), "d", "main"))
	at := func(n int) time.Time { return epoch.Add(time.Duration(n) * time.Millisecond) }
	full := jobstore.Generation{
		Group: "a", Number: 2, Stage: "active", HSM: "main", HSMLabel: "byokd/a/2", HSMID: "00ff", GeneratedAt: at(1), JobID: "j",
		Region: "eu-central-1", Account: "1", KeyID: "k", KeyARN: "arn", MaterialID: "m", CreatedAt: at(2), ImportedAt: at(3),
		ActivatedAt: at(4), ValidTo: at(5), DisabledAt: at(6), MaterialDeletedAt: at(7), DeletionDate: at(8), LeftAt: at(9), KeptAt: at(10),
		Policy: `{"Statement":[]}`, Tags: map[string]string{"team": "payments", "ü": "<&>"},
	}
	put := func(gens ...jobstore.Generation) error {
		return s.Advance(t.Context(), jobstore.Change{Generations: gens})
	}
	adopted := jobstore.Generation{Group: "a", Number: 0, Stage: "previous", Tags: map[string]string{}}
	other := jobstore.Generation{Group: "b", Number: 1, Stage: "active"}
	must(t, put(full, adopted, other))
	gens, err := s.AllGenerations(t.Context())
	must(t, err)
	if diff := cmp.Diff([]jobstore.Generation{adopted, full, other}, gens); diff != "" {
		t.Error(diff)
	}

	// The next one takes over in one change, whatever the order.
	previous := full
	previous.Stage = "previous"
	previous.DisabledAt = time.Time{}
	next := jobstore.Generation{Group: "a", Number: 3, Stage: "active", HSMID: "01"}
	must(t, put(next, previous))
	gens, err = s.Generations(t.Context(), "a")
	must(t, err)
	if diff := cmp.Diff([]jobstore.Generation{adopted, previous, next}, gens); diff != "" {
		t.Error(diff)
	}

	// Never two active ones, never another key, never gone.
	if put(full) == nil {
		t.Error("two active generations")
	}
	for _, id := range []string{"02", ""} {
		changed := next
		changed.HSMID = id
		if put(changed) == nil {
			t.Errorf("a generation's HSM key was changed to %q", id)
		}
	}
	if _, err := s.Writer().Exec("DELETE FROM generations"); err == nil {
		t.Error("generations were deleted")
	}
	next.KeyID = "k3"
	must(t, put(next))
}

func TestAudit(t *testing.T) {
	s, _ := newStore(t)
	must(t, s.Record(t.Context(), jobstore.AuditEntry{Group: "a", Actor: "root", Action: "one"}, jobstore.AuditEntry{Actor: "root", Action: "two", At: epoch.Add(time.Hour)}))
	entries, err := s.Audit(t.Context(), jobstore.AuditFilter{})
	must(t, err)
	want := []jobstore.AuditEntry{{At: epoch.Add(time.Hour), Actor: "root", Action: "two"}, {At: epoch, Group: "a", Actor: "root", Action: "one"}}
	if diff := cmp.Diff(want, entries); diff != "" {
		t.Error(diff)
	}
	for _, statement := range []string{"DELETE FROM audit", "UPDATE audit SET actor = 'nobody'", "INSERT OR REPLACE INTO audit SELECT * FROM audit"} {
		if _, err := s.Writer().Exec(statement); err == nil {
			t.Errorf("%s went through", statement)
		}
	}
	entries, err = s.Audit(t.Context(), jobstore.AuditFilter{Limit: 1})
	must(t, err)
	if diff := cmp.Diff(want[:1], entries); diff != "" {
		t.Error(diff)
	}
}

func TestRenameGroup(t *testing.T) {
	s, c := newStore(t)
	mustBe(t, s.RenameGroup(t.Context(), "old", "new"), jobstore.ErrNotFound)
	must(t, s.SetDefinition(t.Context(), "old", []byte(`{"old":1}`), "d", "main"))
	mustBe(t, s.RenameGroup(t.Context(), "old", "old"), jobstore.ErrGroupExists)
	must(t, s.SetRemoved(t.Context(), "old", epoch))
	must(t, s.Advance(t.Context(), jobstore.Change{Generations: []jobstore.Generation{{Group: "old", Number: 1, Stage: "active", HSMLabel: "byokd/old/1"}}}))
	must(t, s.MarkSeen(t.Context(), "old", "force:1"))
	must(t, s.Emit(t.Context(), event("old", ""), event("old", "")))
	retire := enqueue(t, s, jobstore.NewJob{Kind: "retire", Group: "old", Generation: 0, UniqueKey: "disable:0", DueAt: epoch.Add(time.Hour)})

	// The new name was seen before the file said what it was.
	must(t, s.Emit(t.Context(), event("new", ""), event("new", ""), event("new", "")))
	must(t, s.SetDefinition(t.Context(), "new", []byte(`{"new":1}`), "n", "main"))
	must(t, s.MarkSeen(t.Context(), "new", "force:1"))
	early := enqueue(t, s, rotate("new", "force:2"))
	claim(t, s, c, early.ID)
	mustBe(t, s.RenameGroup(t.Context(), "old", "new"), jobstore.ErrRunning)
	must(t, s.Release(t.Context(), early.ID))

	must(t, s.RenameGroup(t.Context(), "old", "new"))
	_, err := s.Group(t.Context(), "old")
	mustBe(t, err, jobstore.ErrNotFound)
	g := group(t, s, "new")
	if g.Digest != "d" || !g.RemovedAt.IsZero() || g.Sequence != 3 {
		t.Errorf("group is %+v", g)
	}
	gens, err := s.Generations(t.Context(), "new")
	must(t, err)
	if len(gens) != 1 || gens[0].HSMLabel != "byokd/old/1" {
		t.Errorf("generations are %+v", gens)
	}
	equal(t, "retire job's group", load(t, s, retire.ID).Group, "new")
	equal(t, "early job", load(t, s, early.ID).State, jobstore.Cancelled)
	for key, want := range map[string]bool{"force:1": true, "force:2": false, "disable:0": true} {
		seen, err := s.Seen(t.Context(), "new", key)
		must(t, err)
		equal(t, key+" seen", seen, want)
	}
	events, err := s.PendingEvents(t.Context(), c.now, 10)
	must(t, err)
	equal(t, "events", len(events), 5)
	must(t, s.Emit(t.Context(), event("new", "")))
	equal(t, "sequence goes on", group(t, s, "new").Sequence, 4)

	// A plain one, and one that cannot be.
	must(t, s.RenameGroup(t.Context(), "new", "newer"))
	must(t, s.Advance(t.Context(), jobstore.Change{Generations: []jobstore.Generation{{Group: "newer", Number: 2, Stage: "pre-active"}}}))
	must(t, s.SetDefinition(t.Context(), "other", []byte(`{}`), "d", "main"))
	mustBe(t, s.RenameGroup(t.Context(), "other", "newer"), jobstore.ErrGroupExists)
	audit, err := s.Audit(t.Context(), jobstore.AuditFilter{})
	must(t, err)
	equal(t, "audit rows", len(audit), 3) // two renames, one cancelled job
}

// Keys tells the same as all generations do.
func TestKeys(t *testing.T) {
	s, _ := newStore(t)
	ctx := t.Context()
	at := time.UnixMilli(1_700_000_000_000).UTC()
	later := at.Add(time.Hour)
	gens := []jobstore.Generation{
		{Group: "a", Number: 1, Stage: "previous", HSMID: "1", ImportedAt: at, ActivatedAt: at, ValidTo: later, LeftAt: at},
		{Group: "a", Number: 2, Stage: "previous", HSMID: "2", ImportedAt: at, ActivatedAt: later, ValidTo: later, DisabledAt: at, LeftAt: at},
		{Group: "a", Number: 3, Stage: "previous", HSMID: "3", ImportedAt: at, ActivatedAt: at, LeftAt: at},
		{Group: "a", Number: 4, Stage: "active", HSMID: "4", ImportedAt: at, ActivatedAt: at},
		{Group: "b", Number: 1, Stage: "destroyed", HSMID: "5", ActivatedAt: later},
		{Group: "c", Number: 1, Stage: "pre-active", HSMID: "6"},
	}
	for _, name := range []string{"a", "b", "c", "d"} {
		must(t, s.SetDefinition(ctx, name, []byte("{}"), "digest", "main"))
	}
	must(t, s.Advance(ctx, jobstore.Change{Generations: gens}))
	all, err := s.Keys(ctx)
	must(t, err)
	brief := func(keys []jobstore.Keys) (b []string) {
		for _, k := range keys {
			line := fmt.Sprint(k.Group, " ", k.Some, " ", !k.Rotated.IsZero() && k.Rotated.Equal(later))
			for _, g := range k.InUse {
				line += fmt.Sprint(" ", g.Number)
			}
			b = append(b, line)
		}
		return b
	}
	equal(t, "keys", strings.Join(brief(all), ", "), "a true true 1 4, b false false, c true false, d false false")
	some, err := s.Keys(ctx, "c", "a", "unknown")
	must(t, err)
	equal(t, "keys of two", strings.Join(brief(some), ", "), "a true true 1 4, c true false")
}
