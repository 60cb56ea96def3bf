package main

import (
	"bytes"
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"byokd/daemon"
	"byokd/daemon/control"

	"github.com/google/go-cmp/cmp"
)

func jsonDoc(t *testing.T) string {
	t.Helper()
	doc, err := os.ReadFile("../../docs/json.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(doc)
}

// TestDocumentedJSON: each example of docs/json.md is, byte for byte, what its type
// prints, so that no field is missing and none is made up.
func TestDocumentedJSON(t *testing.T) {
	types := map[string]any{
		"GroupStatus": new(control.List[control.GroupStatus]), "Key": new(control.List[control.Key]), "Timeline": new(control.List[control.Timeline]),
		"Event": new(control.List[control.Event]), "AuditEntry": new(control.List[control.AuditEntry]),
		"JobSummary": new(control.List[control.JobSummary]), "Job": new(control.Job), "HSMStatus": new(control.List[control.HSMStatus]),
		"DaemonStatus": new(control.DaemonStatus), "Plan": new(control.List[control.Plan]), "Drift": new(control.List[control.Drift]),
		"Finding": new(control.List[daemon.Finding]), "Recovered": new(control.List[daemon.Recovered]), "Destination": new(control.List[daemon.Destination]),
		"PrincipalPolicy": new(control.List[daemon.PrincipalPolicy]), "Version": new(control.Version),
	}
	for _, m := range regexp.MustCompile("(?s)```json (\\w+)\n(.*?)```").FindAllStringSubmatch(jsonDoc(t), -1) {
		name, example := m[1], m[2]
		v, ok := types[name]
		if !ok {
			t.Errorf("docs/json.md has %s, which is none or is there twice", name)
			continue
		}
		delete(types, name)
		d := json.NewDecoder(strings.NewReader(example))
		d.DisallowUnknownFields()
		if err := d.Decode(v); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var b bytes.Buffer
		if err := (&tool{out: &b}).printJSON(v); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(example, b.String()); diff != "" {
			t.Errorf("%s (-documented +printed)\n%s", name, diff)
		}
	}
	for name := range types {
		t.Errorf("docs/json.md has no example of %s", name)
	}
}

// TestJSONCommands: docs/json.md has a heading with each command that takes --json,
// and with no other.
func TestJSONCommands(t *testing.T) {
	var documented []string
	for _, m := range regexp.MustCompile(`(?m)^## byokctl (.*)$`).FindAllStringSubmatch(jsonDoc(t), -1) {
		for word := range strings.FieldsFuncSeq(m[1], func(r rune) bool { return r == ' ' || r == ',' }) {
			if strings.ToLower(word) == word && !strings.HasPrefix(word, "-") && word != "and" {
				documented = append(documented, word)
			}
		}
	}
	for _, c := range (&tool{}).root().Commands() {
		has := slices.Contains(documented, c.Name())
		if takes := c.Flags().Lookup("json") != nil; takes != has {
			t.Errorf("byokctl %s: takes --json: %t, is in a heading of docs/json.md: %t", c.Name(), takes, has)
		}
		documented = slices.DeleteFunc(documented, func(name string) bool { return name == c.Name() })
	}
	if len(documented) > 0 {
		t.Errorf("docs/json.md has %v, which are no commands", documented)
	}
}
