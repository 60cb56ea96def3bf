package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"byokd/config"

	"github.com/rogpeppe/go-internal/txtar"
)

// addSeeds adds the files of testdata and docs whose path contains part.
func addSeeds(f *testing.F, part string) {
	f.Helper()
	for _, pattern := range []string{"testdata/contract", "../docs/examples"} {
		err := filepath.WalkDir(pattern, func(path string, e os.DirEntry, err error) error {
			if err != nil || e.IsDir() || !strings.HasSuffix(path, ".toml") || !strings.Contains(path, part) {
				return err
			}
			b, err := os.ReadFile(path)
			f.Add(b)
			return err
		})
		if err != nil {
			f.Fatal(err)
		}
	}
	archives, err := filepath.Glob("testdata/mistakes/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, archive := range archives {
		a, err := txtar.ParseFile(archive)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range a.Files {
			if strings.HasSuffix(file.Name, ".toml") && strings.Contains(file.Name, part) {
				f.Add(file.Data)
			}
		}
	}
}

// checkProblems checks what must hold for every refusal.
func checkProblems(t *testing.T, err error, file string) {
	t.Helper()
	problems, ok := errors.AsType[config.Problems](err)
	if !ok || len(problems) == 0 {
		t.Fatalf("the error is no Problems: %#v", err)
	}
	for _, p := range problems {
		if p.File != file || p.Line < 1 || p.Column < 1 || p.Msg == "" {
			t.Errorf("problem without place or message: %#v", p)
		}
	}
}

// FuzzLoad: no content of byokd.toml makes Load panic or be silent.
func FuzzLoad(f *testing.F) {
	addSeeds(f, "byokd.toml")
	tr := newTree(f, nil)
	path := tr.path("byokd.toml")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		cfg, err := config.Load(path, tr.opts)
		if err != nil {
			if len(data) <= 1<<20 {
				checkProblems(t, err, path)
			}
			return
		}
		if follow, restart := config.Changes(cfg, cfg); len(follow)+len(restart) > 0 {
			t.Errorf("differs from itself: %v, %v", follow, restart)
		}
		if !filepath.IsAbs(cfg.GroupsDir) || !filepath.IsAbs(cfg.StateDir) || !filepath.IsAbs(cfg.RuntimeDir) {
			t.Errorf("relative paths: %q %q %q", cfg.GroupsDir, cfg.StateDir, cfg.RuntimeDir)
		}
	})
}

// FuzzGroup: no content of a group file makes LoadGroup panic or be silent,
// and whatever is accepted comes back from the database with its digest.
func FuzzGroup(f *testing.F) {
	addSeeds(f, "groups.d")
	tr := newTree(f, map[string]string{"groups.d/payments-policy.json": "{}", "groups.d/policy.json": "{\"a\": 1}"})
	cfg := tr.load(f)
	path := tr.path("groups.d/payments.toml")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		g, err := config.LoadGroup(cfg, path, tr.opts)
		if err != nil {
			if len(data) <= 1<<20 {
				checkProblems(t, err, path)
			}
			return
		}
		b, err := g.MarshalDefinition()
		if err != nil {
			t.Fatal(err)
		}
		back, err := config.UnmarshalDefinition(b)
		if err != nil {
			t.Fatalf("%v: %s", err, b)
		}
		if back.Digest() != g.Digest() {
			t.Errorf("the digest has changed: %s", b)
		}
		if problems := config.CheckChange(back, g, true); problems != nil {
			t.Errorf("changed: %v", problems)
		}
	})
}
