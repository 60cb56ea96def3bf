package config_test

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"byokd/config"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "write the messages into testdata/mistakes")

// baseConfig is the byokd.toml of cases that bring none.
const baseConfig = `[hsm.main]
module      = "$DIR/module.so"
token_label = "byokd"
pin_file    = "hsm.pin"

[credentials.prod]
access_key_csv = "prod.csv"
account        = "111122223333"
`

// A tree is a configuration directory for a test.
type tree struct {
	dir  string
	opts config.Options
}

func (tr tree) path(name string) string { return filepath.Join(tr.dir, name) }

// newTree writes files into a fresh directory, with good permissions; $DIR in
// them is its path. byokd.toml, the module and the secrets are added where
// they are not among the files.
func newTree(t testing.TB, files map[string]string) tree {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	tr := tree{dir, config.Options{
		UID:       os.Geteuid(),
		LookupEnv: func(string) (string, bool) { return "", false },
	}}
	all := map[string]string{"byokd.toml": baseConfig, "module.so": "ELF", "hsm.pin": "1234\n", "prod.csv": "id,key\n"}
	maps.Copy(all, files)
	chmod(t, dir, 0o755)
	if err := os.Mkdir(tr.path("groups.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	chmod(t, tr.path("groups.d"), 0o755)
	for name, content := range all {
		mode := os.FileMode(0o644)
		if strings.HasSuffix(name, ".pin") || strings.HasSuffix(name, ".csv") {
			mode = 0o600
		}
		tr.write(t, name, content, mode)
	}
	return tr
}

func (tr tree) write(t testing.TB, name, content string, mode os.FileMode) {
	t.Helper()
	path := tr.path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(content, "$DIR", tr.dir)), mode); err != nil {
		t.Fatal(err)
	}
	chmod(t, path, mode)
}

func chmod(t testing.TB, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// load loads byokd.toml, which must be good.
func (tr tree) load(t testing.TB) *config.Config {
	t.Helper()
	cfg, err := config.Load(tr.path("byokd.toml"), tr.opts)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// loadDir loads groups.d.
func (tr tree) loadDir(t testing.TB) *config.Set {
	t.Helper()
	set, err := config.LoadDir(tr.load(t), tr.opts)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// messages loads everything and returns all that is wrong, one problem a line.
func (tr tree) messages(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	cfg, err := config.Load(tr.path("byokd.toml"), tr.opts)
	if err != nil {
		if cfg != nil {
			t.Errorf("Load returned a Config and the error %v", err)
		}
		fmt.Fprintln(&out, err)
	} else {
		set, err := config.LoadDir(cfg, tr.opts)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range slices.Sorted(maps.Keys(set.Problems)) {
			fmt.Fprintln(&out, set.Problems[name])
		}
		groups := slices.Collect(maps.Values(set.Groups))
		cross := config.CheckSet(cfg, groups, nil)
		for _, name := range slices.Sorted(maps.Keys(cross)) {
			fmt.Fprintln(&out, cross[name])
		}
		for _, p := range cfg.Missing() {
			fmt.Fprintln(&out, "missing:", p)
		}
	}
	return strings.NewReplacer(tr.dir+"/", "", tr.dir, "$DIR").Replace(out.String())
}

// TestMistakes holds the whole message of every mistake. Each archive in
// testdata/mistakes is a configuration directory; its file "want" holds the
// messages, and its file "modes", if any, a mode and a path on each line.
func TestMistakes(t *testing.T) {
	archives, err := filepath.Glob("testdata/mistakes/*.txtar")
	if err != nil || len(archives) == 0 {
		t.Fatalf("no archives: %v", err)
	}
	for _, archive := range archives {
		t.Run(strings.TrimSuffix(filepath.Base(archive), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(archive)
			if err != nil {
				t.Fatal(err)
			}
			files := make(map[string]string)
			for _, f := range a.Files {
				files[f.Name] = string(f.Data)
			}
			want, modes := files["want"], files["modes"]
			delete(files, "want")
			delete(files, "modes")
			tr := newTree(t, files)
			for lines := bufio.NewScanner(strings.NewReader(modes)); lines.Scan(); {
				mode, path, _ := strings.Cut(lines.Text(), " ")
				n, err := strconv.ParseUint(mode, 8, 12)
				if err != nil {
					t.Fatal(err)
				}
				chmod(t, tr.path(path), os.FileMode(n&0o777)|os.FileMode(n>>9&1)*os.ModeSticky)
			}
			got := tr.messages(t)
			if *update {
				a.Files = slices.DeleteFunc(a.Files, func(f txtar.File) bool { return f.Name == "want" })
				a.Files = append(a.Files, txtar.File{Name: "want", Data: []byte(got)})
				if err := os.WriteFile(archive, bytes.TrimLeft(txtar.Format(a), "\n"), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if want == "" {
				t.Error("the archive has no messages")
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("messages (-want +got):\n%s", diff)
			}
		})
	}
}
