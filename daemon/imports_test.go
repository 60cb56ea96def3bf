package daemon_test

import (
	"encoding/json"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// mayImport is the table of docs/architecture.md: what of byokd, and which third
// parties, each package may import outside its tests.
var mayImport = map[string]struct{ byokd, third []string }{
	"byokd/schedule":                  {third: []string{"github.com/robfig/cron/"}},
	"byokd/config":                    {byokd: []string{"byokd/schedule"}, third: []string{"github.com/pelletier/go-toml/"}},
	"byokd/hsm":                       {third: []string{"github.com/miekg/pkcs11"}},
	"byokd/hsm/hsmtest":               {byokd: []string{"byokd/hsm"}, third: []string{"github.com/miekg/pkcs11"}},
	"byokd/cloud":                     {third: []string{"github.com/aws/aws-sdk-go-v2", "github.com/aws/smithy-go", "github.com/hashicorp/awspolicyequivalence"}},
	"byokd/systemd":                   {},
	"byokd/daemon/jobstore":           {third: []string{"modernc.org/sqlite"}},
	"byokd/daemon/jobstore/storetest": {byokd: []string{"byokd/daemon/jobstore"}},
	"byokd/daemon/lifecycle":          {},
	"byokd/daemon/control":            {},
	"byokd/daemon": {
		byokd: []string{"byokd/cloud", "byokd/config", "byokd/hsm", "byokd/schedule", "byokd/systemd",
			"byokd/daemon/control", "byokd/daemon/jobstore", "byokd/daemon/lifecycle"},
		third: []string{"github.com/fsnotify/fsnotify", "github.com/prometheus/client_golang"},
	},
	"byokd/cmd/byokd":   {byokd: []string{"byokd/config", "byokd/daemon", "byokd/daemon/control", "byokd/systemd"}},
	"byokd/cmd/byokctl": {byokd: []string{"byokd/config", "byokd/daemon", "byokd/daemon/control"}, third: []string{"github.com/spf13/cobra"}},
	"byokd/cmd/awssim":  {byokd: []string{"byokd/cloud/awssim"}},
}

// A package under one of these serves the simulator: it may import what it needs,
// but for the parts of byokd that are not of the cloud.
const simulators = "byokd/cloud/"

// testOnly must not be part of any program.
var testOnly = []string{"testing", "go.uber.org/goleak", "pgregory.net/rapid", "github.com/google/go-cmp", "github.com/rogpeppe/go-internal",
	"github.com/santhosh-tekuri/jsonschema/v6", "go.yaml.in/yaml/v3", "byokd/hsm/hsmtest", "byokd/daemon/jobstore/storetest"}

type goPackage struct {
	ImportPath, Name, Doc string
	Imports, Deps         []string
	Module                *struct{ Path string }
	GoFiles               []string
}

func packages(t *testing.T) []goPackage {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Name,Doc,Imports,Deps,GoFiles,CgoFiles", "byokd/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	var list []goPackage
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := d.Decode(&p); err == io.EOF {
			return list
		} else if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
}

func TestImports(t *testing.T) {
	seen := 0
	for _, p := range packages(t) {
		if len(p.GoFiles) > 0 && p.Doc == "" {
			t.Errorf("%s has no doc comment", p.ImportPath)
		}
		if p.Name == "main" {
			for _, dep := range testOnly {
				if slices.Contains(p.Deps, dep) {
					t.Errorf("the program %s has %s in it", p.ImportPath, dep)
				}
			}
		}
		rule, ok := mayImport[p.ImportPath]
		if strings.HasPrefix(p.ImportPath, simulators) {
			for _, i := range p.Imports {
				if strings.HasPrefix(i, "byokd/") && i != "byokd/cloud" && !strings.HasPrefix(i, simulators) {
					t.Errorf("%s imports %s", p.ImportPath, i)
				}
			}
			continue
		}
		if !ok {
			t.Errorf("%s is not in the table of who imports whom: put it there and into docs/architecture.md", p.ImportPath)
			continue
		}
		seen++
		for _, i := range p.Imports {
			first, _, _ := strings.Cut(i, "/")
			switch {
			case first == "byokd":
				if !slices.Contains(rule.byokd, i) {
					t.Errorf("%s imports %s", p.ImportPath, i)
				}
			case strings.HasPrefix(i, "golang.org/x/"):
				if p.ImportPath == "byokd/daemon/lifecycle" || p.ImportPath == "byokd/daemon/control" {
					t.Errorf("%s imports %s, and is to import the standard library only", p.ImportPath, i)
				}
			case strings.Contains(first, "."):
				if !slices.ContainsFunc(rule.third, func(family string) bool { return strings.HasPrefix(i, family) }) {
					t.Errorf("%s imports %s", p.ImportPath, i)
				}
			}
		}
	}
	if seen != len(mayImport) {
		t.Errorf("%d of the %d packages of the table are there", seen, len(mayImport))
	}
}

// lifecycle compiles without cgo, and without AWS or PKCS#11 among what it needs.
func TestLifecycleStandsAlone(t *testing.T) {
	for _, p := range packages(t) {
		if p.ImportPath != "byokd/daemon/lifecycle" {
			continue
		}
		for _, dep := range p.Deps {
			if first, _, _ := strings.Cut(dep, "/"); first == "byokd" || strings.Contains(first, ".") && first != "vendor" {
				t.Errorf("lifecycle needs %s", dep)
			}
		}
	}
	build := exec.Command("go", "build", "byokd/daemon/lifecycle")
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Errorf("without cgo: %s", out)
	}
}
