package daemon_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"byokd/cloud/awssim"
	"byokd/daemon/lifecycle"
)

// eventSchemas are the schemas of docs/events by the detail type that each is of.
var eventSchemas = sync.OnceValues(func() (map[string]*jsonschema.Schema, error) {
	files, err := filepath.Glob("../docs/events/*.schema.json")
	if err != nil {
		return nil, err
	}
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	schemas := make(map[string]*jsonschema.Schema)
	for _, file := range files {
		s, err := compiler.Compile(file)
		if err != nil {
			return nil, err
		}
		if filepath.Base(file) != "common.schema.json" {
			schemas[s.Title] = s
		}
	}
	return schemas, nil
})

// checkEvent holds an event's detail against the schema of its detail type.
func checkEvent(t testing.TB, e awssim.Envelope) {
	t.Helper()
	schemas, err := eventSchemas()
	if err != nil {
		t.Fatal(err)
	}
	schema, ok := schemas[e.DetailType]
	if !ok {
		t.Errorf("there is no schema in docs/events for %q", e.DetailType)
		return
	}
	detail, err := jsonschema.UnmarshalJSON(strings.NewReader(string(e.Detail)))
	if err == nil {
		err = schema.Validate(detail)
	}
	if err != nil {
		t.Errorf("%s %s: %v", e.DetailType, e.Detail, err)
	}
}

// examples are the events of docs/events.md.
func examples(t *testing.T) []awssim.Envelope {
	t.Helper()
	page, err := os.ReadFile("../docs/events.md")
	if err != nil {
		t.Fatal(err)
	}
	var events []awssim.Envelope
	for _, block := range strings.Split(string(page), "```json\n")[1:] {
		block, _, _ = strings.Cut(block, "```")
		var e awssim.Envelope
		if err := json.Unmarshal([]byte(block), &e); err != nil {
			t.Fatalf("%v in %s", err, block)
		}
		events = append(events, e)
	}
	return events
}

// TestEventCatalogue: each detail type has its schema and its example, and a
// schema refuses a detail that lacks a field.
func TestEventCatalogue(t *testing.T) {
	schemas, err := eventSchemas()
	if err != nil {
		t.Fatal(err)
	}
	types := []string{lifecycle.AliasMoved, lifecycle.MaterialRotated, lifecycle.KeySynchronized, lifecycle.MaterialDeleted,
		lifecycle.KeyDisabled, lifecycle.DeletionSet, lifecycle.RotationFailed, lifecycle.RotationOverdue,
		lifecycle.GroupInvalid, lifecycle.KeyExpiring, lifecycle.DriftDetected}
	slices.Sort(types)
	if have := slices.Sorted(maps.Keys(schemas)); !slices.Equal(have, types) {
		t.Errorf("schemas of %q, want %q", have, types)
	}
	var shown []string
	for _, e := range examples(t) {
		shown = append(shown, e.DetailType)
		checkEvent(t, e)
		schema, ok := schemas[e.DetailType]
		if !ok {
			continue
		}
		var detail map[string]any
		if err := json.Unmarshal(e.Detail, &detail); err != nil {
			t.Fatal(err)
		}
		for field := range detail {
			less := maps.Clone(detail)
			delete(less, field)
			if schema.Validate(less) == nil {
				t.Errorf("the schema of %s takes a detail without %s", e.DetailType, field)
			}
		}
		detail["added_later"] = 1
		if err := schema.Validate(detail); err != nil {
			t.Errorf("the schema of %s refuses a field that is new: %v", e.DetailType, err)
		}
	}
	slices.Sort(shown)
	if !slices.Equal(shown, types) {
		t.Errorf("docs/events.md shows %q, want %q", shown, types)
	}
}
