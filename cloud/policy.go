package cloud

import (
	"encoding/json"
	"reflect"

	awspolicy "github.com/hashicorp/awspolicyequivalence"
)

// SamePolicy reports whether two policy documents mean the same to AWS, which
// gives a document back in another form than it was written in: statements and
// the elements of lists in any order, a list of one as its element, an account
// as the ARN of its root, "Principal": "*" as {"AWS": "*"}. What is not a policy
// document is compared as JSON.
func SamePolicy(a, b string) bool {
	var x, y any
	if json.Unmarshal([]byte(a), &x) != nil || json.Unmarshal([]byte(b), &y) != nil {
		return a == b
	}
	if reflect.DeepEqual(x, y) {
		return true
	}
	if !regular(x) || !regular(y) {
		return false
	}
	p, errA := json.Marshal(x)
	q, errB := json.Marshal(y)
	if errA != nil || errB != nil { // they were JSON before
		return false
	}
	same, err := awspolicy.PoliciesAreEquivalent(string(p), string(q))
	return err == nil && same
}

// regular brings a document into the form that the comparison understands, in
// place, and reports whether it has statements at all: the comparison fails on
// what is none, takes all principals that are plain strings for the same, and
// counts what is there twice.
func regular(document any) bool {
	d, ok := document.(map[string]any)
	if !ok {
		return false
	}
	statements, ok := d["Statement"].([]any)
	if one, single := d["Statement"].(map[string]any); single {
		statements, ok = []any{one}, true
	}
	if !ok {
		return false
	}
	for _, s := range statements {
		statement, ok := s.(map[string]any)
		if !ok {
			return false
		}
		for name, v := range statement {
			switch v := v.(type) {
			case string:
				if name == "Principal" || name == "NotPrincipal" {
					statement[name] = map[string]any{"AWS": v}
				}
			case map[string]any:
				regularLists(v)
			case []any:
				statement[name] = distinct(v)
			}
		}
	}
	d["Statement"] = statements
	return true
}

// regularLists makes all lists below m free of repeats.
func regularLists(m map[string]any) {
	for name, v := range m {
		switch v := v.(type) {
		case map[string]any:
			regularLists(v)
		case []any:
			m[name] = distinct(v)
		}
	}
}

func distinct(list []any) []any {
	var kept []any
	for _, v := range list {
		seen := false
		for _, k := range kept {
			seen = seen || reflect.DeepEqual(k, v)
		}
		if !seen {
			kept = append(kept, v)
		}
	}
	return kept
}
