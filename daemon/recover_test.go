package daemon_test

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"byokd/cloud/awssim"
	"byokd/daemon"
	"byokd/daemon/control"
	"byokd/daemon/jobstore"
)

// loseDatabase stops byokd and makes an empty database in the place of its own.
func (w *world) loseDatabase() {
	w.t.Helper()
	w.halt()
	files, _ := filepath.Glob(w.path("state/*"))
	for _, f := range files {
		if err := os.Remove(f); err != nil {
			w.t.Fatal(err)
		}
	}
	w.initState()
}

// Group files that are refused for their directory are no group to recover, and
// nothing else is wrong.
func TestRecoverRefusedFiles(t *testing.T) {
	w := newWorld(t)
	w.group("payments", every, "")
	w.start()
	w.untilGeneration("payments", 1)
	w.loseDatabase()
	for _, mode := range []os.FileMode{0o775, 0o755} {
		if err := os.Chmod(w.path("groups.d"), mode); err != nil {
			t.Fatal(err)
		}
		groups := w.recover(true)
		if refused := len(groups) == 1 && len(groups[0].Recovered) == 0; refused != (mode == 0o775) {
			t.Errorf("mode %o: %+v", mode, groups)
		}
	}
}

func (w *world) recover(dryRun bool) []daemon.Recovered {
	w.t.Helper()
	groups, err := daemon.Recover(w.t.Context(), w.config(), dryRun, slog.New(slog.NewTextHandler(w.log, nil)))
	if err != nil {
		w.t.Fatal(err)
	}
	return groups
}

// A memory is all that the database holds but the logins.
type memory struct {
	Groups      []jobstore.Group
	Generations []jobstore.Generation
	Jobs        []jobstore.Job
	Audit       []jobstore.AuditEntry
	Events      []jobstore.OutboxEvent
}

func (w *world) memory() (m memory) {
	w.t.Helper()
	ctx := w.t.Context()
	store, err := jobstore.Open(ctx, w.path("state/byokd.db"), jobstore.Options{ReadOnly: true})
	if err != nil {
		w.t.Fatal(err)
	}
	defer store.Close()
	var errs [5]error
	m.Groups, errs[0] = store.Groups(ctx)
	m.Generations, errs[1] = store.AllGenerations(ctx)
	m.Jobs, errs[2] = store.Jobs(ctx, jobstore.JobFilter{})
	m.Audit, errs[3] = store.Audit(ctx, jobstore.AuditFilter{})
	m.Events, errs[4] = store.Events(ctx, jobstore.EventFilter{})
	for _, err := range errs {
		if err != nil {
			w.t.Fatal(err)
		}
	}
	return m
}

// changes counts the requests that change something in AWS.
func (w *world) changes() (n int) {
	for _, r := range w.sim.Requests() {
		if !slices.ContainsFunc([]string{"Describe", "Get", "List"}, func(verb string) bool { return strings.HasPrefix(r.Operation, verb) }) {
			n++
		}
	}
	return n
}

func TestRecover(t *testing.T) {
	w := newWorld(t)
	w.group("cards", every, "")
	w.group("payments", every+"\nforce = \"2026-01\"", "")
	w.start()
	w.untilGeneration("cards", 1)
	w.untilGeneration("payments", 1)
	jobs, err := w.client.Rotate(t.Context(), []string{"payments"}, false)
	if err != nil {
		t.Fatal(err)
	}
	w.finished(jobs[0].ID)
	before, err := w.client.Keys(t.Context(), "payments")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := daemon.Recover(t.Context(), w.config(), false, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "in use by another byokd") || !strings.Contains(err.Error(), "byokctl status") {
		t.Errorf("beside a running byokd: %v", err)
	}
	w.until("all events are on the bus", func() bool { return len(w.eventDetails("KMS Alias Moved")) == 3 })
	w.loseDatabase()
	w.group("fresh", every, "")
	w.write("groups.d/bad.toml", "nonsense")

	check := func(what string, groups []daemon.Recovered) {
		t.Helper()
		var names []string
		for _, g := range groups {
			names = append(names, g.Group)
		}
		if want := []string{"bad", "cards", "fresh", "payments"}; !slices.Equal(names, want) {
			t.Fatalf("%s: groups %v, want %v", what, names, want)
		}
		if bad := groups[0]; bad.Error == "" || len(bad.Problems) == 0 || len(bad.Generations) != 0 {
			t.Errorf("%s: the group that cannot be read: %+v", what, bad)
		}
		if fresh := groups[2]; fresh.Error != "" || len(fresh.Generations)+len(fresh.Problems)+len(fresh.Jobs) != 0 || fresh.AliasKeyID != "" {
			t.Errorf("%s: the group that has nothing: %+v", what, fresh)
		}
		g := groups[3]
		if g.Error != "" || len(g.Problems) != 0 || len(g.Jobs) != 0 || !slices.Equal(g.Recovered, []int{1, 2}) ||
			string(g.AliasKeyID) != w.alias("payments") || g.Account != testAccount || g.Region != testRegion || g.Alias != "alias/payments" {
			t.Errorf("%s: %+v", what, g)
		}
		if len(g.Generations) != 2 {
			t.Fatalf("%s: generations %+v", what, g.Generations)
		}
		for i, k := range g.Generations {
			b := before[i]
			if k.Generation != b.Generation || k.State != b.State || k.KeyID != b.KeyID || k.HSMID != b.HSMID || k.HSMLabel != b.HSMLabel || k.KeyMaterialID != b.KeyMaterialID {
				t.Errorf("%s: generation %+v, before %+v", what, k, b)
			}
		}
	}

	empty, changes := w.memory(), w.changes()
	check("dry run", w.recover(true))
	if after := w.memory(); !reflect.DeepEqual(after, empty) {
		t.Errorf("a dry run has written:\n%+v\nbefore:\n%+v", after, empty)
	}
	if n := w.logins(); n == 0 {
		t.Error("the login of a dry run is not recorded: a wrong PIN could be tried until the token locks")
	}
	check("recover", w.recover(false))
	written := w.memory()
	if len(written.Generations) != 3 || len(written.Jobs) != 0 || len(written.Events) != 0 || len(written.Audit) == 0 {
		t.Errorf("the database has %d generations, %d jobs, %d events, %d audit rows", len(written.Generations), len(written.Jobs), len(written.Events), len(written.Audit))
	}
	if again := w.recover(false)[3]; len(again.Recovered) != 0 || len(again.Generations) != 2 {
		t.Errorf("a second time: %+v", again)
	}
	if n := w.changes() - changes; n != 0 {
		t.Errorf("%d requests changed something in AWS", n)
	}

	// A byokd on it makes nothing but the first key of the group that has none.
	w.start()
	w.untilGeneration("fresh", 1)
	w.until("the rest is as it was", func() bool { return w.generation("payments") == 2 && w.generation("cards") == 1 })
	if n := len(w.jobs("payments")) + len(w.jobs("cards")); n != 0 || len(w.keys()) != 4 {
		t.Errorf("there are %d jobs of groups that were recovered, and %d keys", n, len(w.keys()))
	}
	if s := w.status("payments"); s.State != control.GroupOK || s.NextRotation.IsZero() {
		t.Errorf("status = %+v", s)
	}
}

// What does not match is told, and what cannot be looked at concerns its group only.
func TestRecoverTellsWhatDoesNotMatch(t *testing.T) {
	w := newWorld(t)
	w.group("one", every, "")
	w.group("two", every, "")
	w.start()
	w.untilGeneration("one", 1)
	w.untilGeneration("two", 1)
	w.loseDatabase()
	w.write("groups.d/three.toml", "[rotation]\n"+every+"\n[aws]\nregion = \""+testRegion+"\"\nalias = \"alias/one\"\n")
	if err := os.Remove(w.path("groups.d/one.toml")); err != nil {
		t.Fatal(err)
	}
	w.deny(func(r awssim.Request) bool {
		return r.Operation == "DescribeKey" && strings.Contains(string(r.Body), w.alias("two"))
	})
	groups := w.recover(false)
	if len(groups) != 2 {
		t.Fatalf("groups = %+v", groups)
	}
	three, two := groups[0], groups[1]
	if three.Error != "" || len(three.Generations) != 0 || len(three.Problems) != 1 || three.Problems[0].Code != "alias" ||
		!strings.Contains(three.Problems[0].Message, `active_key_id = "`+w.alias("one")+`"`) {
		t.Errorf("a group whose alias is another's: %+v", three)
	}
	if !strings.Contains(string(two.Error), "kms:DescribeKey") || len(two.Generations) != 0 {
		t.Errorf("a group that cannot be looked for: %+v", two)
	}
	w.faults(nil, nil)
	if two = w.recover(false)[1]; two.Error != "" || !slices.Equal(two.Recovered, []int{1}) {
		t.Errorf("once it can: %+v", two)
	}
	b, err := json.Marshal(three)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"recovered":[]`, `"generations":[]`, `"jobs":[]`, `"error":null`, `"alias_key_id":"`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("JSON lacks %s: %s", want, b)
		}
	}
}

func TestRecoverWithoutDatabase(t *testing.T) {
	w := newWorld(t)
	for name, want := range map[string]string{"": "byokctl init", "rubbish": "damaged"} {
		files, _ := filepath.Glob(w.path("state/*"))
		for _, f := range files {
			os.Remove(f)
		}
		if name != "" {
			w.write("state/byokd.db", strings.Repeat(name, 1000))
		}
		for _, dryRun := range []bool{false, true} {
			if _, err := daemon.Recover(t.Context(), w.config(), dryRun, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%q, dry run %t: %v", name, dryRun, err)
			}
		}
	}
	if n := w.changes(); n != 0 || len(w.sim.Requests()) != 0 {
		t.Errorf("AWS was sent %d requests", len(w.sim.Requests()))
	}
}
