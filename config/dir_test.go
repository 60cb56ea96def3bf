package config_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"byokd/config"

	"github.com/google/go-cmp/cmp"
)

func groupFile(alias, more string) string {
	return fmt.Sprintf("[rotation]\nevery = \"90d\"\n[aws]\nregion = \"eu-central-1\"\nalias = \"alias/%s\"\n%s\n", alias, more)
}

// What is refused for its directory is told of, and what is wrong in itself is not.
func TestDirRefused(t *testing.T) {
	tr := newTree(t, map[string]string{
		"groups.d/good.toml": groupFile("good", `policy_file = "../open/p.json"`), "groups.d/bad.toml": "nonsense", "open/p.json": "{}"})
	dir := config.NewDir(tr.opts)
	refused := func(open, groups os.FileMode, want ...string) {
		t.Helper()
		for name, mode := range map[string]os.FileMode{"open": open, "groups.d": groups} {
			if err := os.Chmod(tr.path(name), mode); err != nil {
				t.Fatal(err)
			}
		}
		if err := dir.Read(tr.load(t)); err != nil {
			t.Fatal(err)
		}
		for i := range want {
			want[i] = tr.path(want[i])
		}
		if got := dir.Refused(); !slices.Equal(got, want) {
			t.Errorf("refused for their directories: %q, want %q", got, want)
		}
	}
	refused(0o755, 0o755)
	refused(0o777, 0o755, "open/p.json")
	refused(0o755, 0o775, "groups.d/bad.toml", "groups.d/good.toml")
	refused(0o755, 0o755)
}

// What a change costs does not depend on how many groups there are.
func TestDirReadsWhatChanged(t *testing.T) {
	const groups, sharing = 300, 3
	files := map[string]string{"groups.d/shared.json": "{}", "elsewhere/own.json": "{}"}
	for i := range groups {
		more := ""
		if i < sharing {
			more = `policy_file = "shared.json"`
		}
		files[fmt.Sprintf("groups.d/g%d.toml", i)] = groupFile(fmt.Sprint("g", i), more)
	}
	tr := newTree(t, files)
	followed := make(map[string]bool)
	dir := config.NewDir(tr.opts)
	dir.Follow = func(policy string, on bool) {
		if followed[policy] == on {
			t.Errorf("%s is followed already: %v", policy, on)
		}
		followed[policy] = on
	}
	if err := dir.Read(tr.load(t)); err != nil {
		t.Fatal(err)
	}
	if n, want := dir.Reads(), groups+1; n != want {
		t.Errorf("%d files read at first, want %d: each once", n, want)
	}
	group := groupFile("g7", `policy_file = "../elsewhere/own.json"`)
	steps := []struct {
		name    string
		change  func()
		look    string
		reads   int
		changed []string
	}{
		{"one group", func() { tr.write(t, "groups.d/g200.toml", groupFile("other", ""), 0o644) }, "groups.d/g200.toml", 1, []string{"g200"}},
		{"a shared policy", func() { tr.write(t, "groups.d/shared.json", `{"a":1}`, 0o644) }, "groups.d/shared.json", 1 + sharing, []string{"g0", "g1", "g2"}},
		{"a policy touched only", func() {}, "groups.d/shared.json", 1, nil},
		{"a file of no group", func() { tr.write(t, "groups.d/README", "", 0o644) }, "groups.d/README", 0, nil},
		{"a policy elsewhere", func() { tr.write(t, "groups.d/g7.toml", group, 0o644) }, "groups.d/g7.toml", 2, []string{"g7"}},
		{"which changes", func() { tr.write(t, "elsewhere/own.json", `{"b":1}`, 0o644) }, "elsewhere/own.json", 2, []string{"g7"}},
		{"and goes", func() { os.Remove(tr.path("elsewhere/own.json")) }, "elsewhere/own.json", 2, []string{"g7"}},
		{"and is named no more", func() { tr.write(t, "groups.d/g7.toml", groupFile("g7", ""), 0o644) }, "groups.d/g7.toml", 1, []string{"g7"}},
		{"a group gone", func() { os.Remove(tr.path("groups.d/g9.toml")) }, "groups.d/g9.toml", 1, []string{"g9"}},
	}
	for _, s := range steps {
		before := dir.Reads()
		s.change()
		names, err := dir.Look(tr.path(s.look))
		if err != nil {
			t.Fatal(err)
		}
		if n := dir.Reads() - before; n != s.reads {
			t.Errorf("%s: %d files read, want %d", s.name, n, s.reads)
		}
		if !slices.Equal(names, s.changed) {
			t.Errorf("%s: groups %v, want %v", s.name, names, s.changed)
		}
	}
	if want := map[string]bool{tr.path("groups.d/shared.json"): true, tr.path("elsewhere/own.json"): false}; !maps.Equal(followed, want) {
		t.Errorf("followed %v, want %v", followed, want)
	}
}

// A file that has just been written may be half written: it is as it was before,
// and so is a group whose policy file is one.
func TestDirSettle(t *testing.T) {
	tr := newTree(t, map[string]string{
		"groups.d/a.toml": groupFile("a", ""),
		"groups.d/b.toml": groupFile("b", `policy_file = "b.json"`),
		"groups.d/b.json": `{"old":1}`,
	})
	cfg := tr.load(t)
	dir := config.NewDir(tr.opts)
	if err := dir.Read(cfg); err != nil {
		t.Fatal(err)
	}
	digest := func(name string) string {
		g, problems, there := dir.Get(name)
		if !there || problems != nil {
			t.Fatalf("%s: there %v, problems %v", name, there, problems)
		}
		if g == nil {
			return ""
		}
		return g.Digest()
	}
	a, b := digest("a"), digest("b")

	dir.Settle = time.Hour
	tr.write(t, "groups.d/a.toml", "[rotation]\neve", 0o644)
	tr.write(t, "groups.d/b.json", `{"hal`, 0o644)
	tr.write(t, "groups.d/c.toml", groupFile("c", ""), 0o644)
	if dir.Settled(cfg).IsZero() {
		t.Error("files that were just written are settled")
	}
	check := func(c string) {
		t.Helper()
		if digest("a") != a || digest("b") != b || digest("c") != c {
			t.Error("a file counts before it has settled")
		}
	}
	if err := dir.Read(cfg); err != nil {
		t.Fatal(err)
	}
	check("")
	if _, err := dir.Look(tr.path("groups.d/b.toml"), tr.path("groups.d/b.json"), tr.path("groups.d/a.toml")); err != nil {
		t.Fatal(err)
	}
	check("")

	tr.write(t, "groups.d/a.toml", groupFile("a", `description = "new"`), 0o644)
	tr.write(t, "groups.d/b.json", `{"whole":1}`, 0o644)
	dir.Settle = 0
	if !dir.Settled(cfg).IsZero() {
		t.Error("nothing is waited for, and still something has to settle")
	}
	names, err := dir.Look(tr.path("groups.d/a.toml"), tr.path("groups.d/b.json"), tr.path("groups.d/c.toml"))
	if err != nil || !slices.Equal(names, []string{"a", "b", "c"}) {
		t.Errorf("read %v (%v), want all three", names, err)
	}
	if digest("a") == a || digest("b") == b || digest("c") == "" {
		t.Error("settled files do not count")
	}
}

// What copies a file may set its mtime, but no other time.
func TestDirSettleMtime(t *testing.T) {
	tr := newTree(t, map[string]string{"groups.d/past.toml": groupFile("past", ""), "groups.d/future.toml": groupFile("future", "")})
	dir := config.NewDir(tr.opts)
	dir.Settle = time.Hour
	for name, by := range map[string]time.Duration{"past": -24 * time.Hour, "future": 24 * time.Hour} {
		at := time.Now().Add(by)
		if err := os.Chtimes(tr.path("groups.d/"+name+".toml"), at, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := dir.Read(tr.load(t)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"past", "future"} {
		if g, _, there := dir.Get(name); g != nil || !there {
			t.Errorf("%s counts before it has settled", name)
		}
	}
	if want := []string{tr.path("groups.d/future.toml"), tr.path("groups.d/past.toml")}; !slices.Equal(dir.Unsettled(), want) {
		t.Errorf("not settled: %v, want %v", dir.Unsettled(), want)
	}
	dir.Settle = 0
	if _, err := dir.Look(tr.path("groups.d/past.toml")); err != nil || len(dir.Unsettled()) > 0 {
		t.Errorf("not settled: %v (%v), want none", dir.Unsettled(), err)
	}
}

// A directory that is changed file by file is known as one that is read at once,
// and groups judged with those they are related to as all of them together.
func TestDirAndRelationsAtRandom(t *testing.T) {
	for seed := range uint64(15) {
		random := rand.New(rand.NewPCG(seed, 5))
		base := baseConfig
		if seed%3 == 2 {
			base += "[aws]\nkms_endpoint = \"https://kms.example.com\"\n"
		}
		tr := newTree(t, map[string]string{"byokd.toml": base, "elsewhere/README": ""})
		cfg := tr.load(t)
		dir := config.NewDir(tr.opts)
		if err := dir.Read(cfg); err != nil {
			t.Fatal(err)
		}
		relations := config.NewRelations(cfg)
		hasGeneration := func(name string) bool { return len(name)%2 == 0 }
		judged := make(map[string]string) // by the rules between groups
		for step := range 200 {
			path := change(t, tr, random)
			// What links to it is another file too.
			names, err := dir.Look(tr.path(path), tr.path("elsewhere/link.json"))
			if err != nil {
				t.Fatal(err)
			}
			related := make(map[string]bool)
			for _, name := range names {
				related[name] = true
			}
			relations.Of(related)
			for _, name := range names {
				if g, _, there := dir.Get(name); there {
					relations.Set(name, g)
				} else {
					relations.Remove(name)
				}
			}
			relations.Of(related)
			var some []*config.Group
			for name := range related {
				delete(judged, name)
				if g, _, _ := dir.Get(name); g != nil {
					some = append(some, g)
				}
			}
			for name, problems := range config.CheckSet(cfg, some, hasGeneration) {
				judged[name] = problems.Error()
			}

			set, err := config.LoadDir(cfg, tr.opts)
			if err != nil {
				t.Fatal(err)
			}
			want, got := make(map[string]string), make(map[string]string)
			for name, g := range set.Groups {
				want[name] = g.Digest()
			}
			for name, problems := range set.Problems {
				want[name] = problems.Error()
			}
			for _, name := range dir.Names() {
				if g, problems, _ := dir.Get(name); g != nil {
					got[name] = g.Digest()
				} else {
					got[name] = problems.Error()
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("seed %d, step %d, after %s: read at once (-) and file by file (+):\n%s", seed, step, path, diff)
			}
			all := make(map[string]string)
			for name, problems := range config.CheckSet(cfg, slices.Collect(maps.Values(set.Groups)), hasGeneration) {
				all[name] = problems.Error()
			}
			if diff := cmp.Diff(all, judged); diff != "" {
				t.Fatalf("seed %d, step %d, after %s: judged together (-) and by relation (+):\n%s", seed, step, path, diff)
			}
		}
	}
}

// change changes one file in a directory of few groups, few aliases and few
// policies, and returns its path.
func change(t *testing.T, tr tree, random *rand.Rand) string {
	policies := []string{"groups.d/p.json", "elsewhere/q.json", "elsewhere/link.json"}
	if random.IntN(4) == 0 {
		path := policies[random.IntN(len(policies))]
		switch {
		case random.IntN(4) == 0:
			os.Remove(tr.path(path))
		case filepath.Base(path) == "link.json":
			os.Remove(tr.path(path))
			if err := os.Symlink([]string{"../groups.d/p.json", "q.json", "nowhere"}[random.IntN(3)], tr.path(path)); err != nil {
				t.Fatal(err)
			}
		default:
			tr.write(t, path, []string{"{}", `{"a":1}`, `{"ha`}[random.IntN(3)], []os.FileMode{0o644, 0o644, 0o666}[random.IntN(3)])
		}
		return path
	}
	name := []string{"a", "b", "cc", "d", "ee", "Bad", "ff"}[random.IntN(7)]
	path := "groups.d/" + name + ".toml"
	if random.IntN(5) == 0 {
		os.Remove(tr.path(path))
		return path
	}
	var more string
	if random.IntN(3) == 0 {
		more += fmt.Sprintf("previous_name = %q\n", []string{"a", "b", "cc", "gone"}[random.IntN(4)])
	}
	if random.IntN(3) == 0 {
		more += fmt.Sprintf("policy_file = %q\n", []string{"p.json", "../elsewhere/q.json", "../elsewhere/link.json"}[random.IntN(3)])
	}
	content := fmt.Sprintf("[rotation]\nevery = \"90d\"\n[aws]\nregion = %q\nalias = \"alias/%d\"\n%s",
		[]string{"eu-central-1", "eu-central-1", "eu-central-1", "us-east-1"}[random.IntN(4)], random.IntN(3), more)
	if random.IntN(8) == 0 {
		content = content[:random.IntN(len(content))]
	}
	tr.write(t, path, content, 0o644)
	return path
}
