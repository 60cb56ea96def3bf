package awssim

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"strings"
)

// A pattern is an event pattern: what it asks of the members of an object, all
// of which must hold.
type pattern struct {
	members map[string]member
	or      []*pattern // if there are any, one of them must match
}

// A member of a pattern is a pattern of its own, or a list of which one must
// match.
type member struct {
	nested *pattern
	leaves []leaf
}

// A leaf asks something of a value: a string, a json.Number, a bool or nil. A
// value that is not there is absent{}.
type leaf func(value any) bool

type absent struct{}

// A reason is why an event pattern is not valid, in AWS's words where they are
// known.
type reason string

func (r reason) Error() string { return string(r) }

// maxPattern is how many characters an event pattern may have.
const maxPattern = 2048

// parsePattern reads an event pattern.
func parsePattern(document string) (*pattern, error) {
	v, err := decodeNumbers([]byte(document))
	if err != nil {
		return nil, reason("it is not JSON")
	}
	object, ok := v.(map[string]any)
	if !ok {
		return nil, reason("Filter is not an object")
	}
	return newPattern(object)
}

// decodeNumbers decodes JSON with its numbers as they are written.
func decodeNumbers(b []byte) (v any, err error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	if d.More() {
		return nil, reason("more than one value")
	}
	return v, nil
}

func newPattern(object map[string]any) (*pattern, error) {
	if len(object) == 0 {
		return nil, reason("Empty objects are not allowed")
	}
	p := &pattern{members: make(map[string]member)}
	for name, v := range object {
		list, isList := v.([]any)
		nested, isObject := v.(map[string]any)
		var m member
		var err error
		switch {
		case name == "$or" && isList && len(list) >= 2:
			for _, each := range list {
				object, ok := each.(map[string]any)
				if !ok {
					return nil, reason("$or takes a list of objects")
				}
				alternative, err := newPattern(object)
				if err != nil {
					return nil, err
				}
				p.or = append(p.or, alternative)
			}
			continue
		case isObject:
			m.nested, err = newPattern(nested)
		case isList && len(list) == 0:
			err = reason("Empty arrays are not allowed")
		case isList:
			m.leaves, err = newLeaves(list)
		default:
			err = reason(fmt.Sprintf("%q must be an object or an array", name))
		}
		if err != nil {
			return nil, err
		}
		p.members[name] = m
	}
	return p, nil
}

func newLeaves(list []any) (leaves []leaf, err error) {
	for _, v := range list {
		var l leaf
		switch v := v.(type) {
		case []any:
			return nil, reason("a match value must be a string, number, true, false, or null, or an operator")
		case map[string]any:
			if len(v) != 1 {
				return nil, reason("Only one key allowed in match expression")
			}
			for operator, argument := range v {
				if l, err = newOperator(operator, argument); err != nil {
					return nil, err
				}
			}
		default:
			l = func(value any) bool { return value == v } // numbers as they are written
		}
		leaves = append(leaves, l)
	}
	return leaves, nil
}

// onString makes a leaf that asks something of strings.
func onString(ask func(string) bool) leaf {
	return func(value any) bool {
		s, ok := value.(string)
		return ok && ask(s)
	}
}

// textOperators compare strings with a string.
var textOperators = map[string]func(have, want string) bool{
	"prefix":             strings.HasPrefix,
	"suffix":             strings.HasSuffix,
	"equals-ignore-case": strings.EqualFold,
	"wildcard":           func(have, want string) bool { return stars(want, have) },
}

// newOperator makes the leaf of an operator of event patterns.
func newOperator(name string, argument any) (leaf, error) {
	text, isText := argument.(string)
	compare := textOperators[name]
	switch {
	case name == "exists":
		want, ok := argument.(bool)
		if !ok {
			return nil, reason("exists takes true or false")
		}
		return func(value any) bool { return (value != absent{}) == want }, nil
	case name == "anything-but":
		return newAnythingBut(argument)
	case name == "numeric":
		return newNumeric(argument)
	case name == "cidr" && isText:
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, reason(fmt.Sprintf("Malformed CIDR %q", text))
		}
		return onString(func(s string) bool {
			address, err := netip.ParseAddr(s)
			return err == nil && prefix.Contains(address)
		}), nil
	case compare != nil && isText:
		if name == "wildcard" && strings.Contains(text, "**") {
			return nil, reason("Consecutive wildcard characters are not allowed")
		}
		return onString(func(s string) bool { return compare(s, text) }), nil
	case name == "prefix" || name == "suffix":
		object, ok := argument.(map[string]any)
		folded, isText := object["equals-ignore-case"].(string)
		if ok && isText && len(object) == 1 {
			folded = strings.ToLower(folded)
			return onString(func(s string) bool { return compare(strings.ToLower(s), folded) }), nil
		}
	}
	if _, known := textOperators[name]; known || name == "cidr" {
		return nil, reason(fmt.Sprintf("%s takes a string", name))
	}
	return nil, reason(fmt.Sprintf("Unrecognized match type %s", name))
}

// newAnythingBut makes the leaf of an operator that takes one or several
// strings or numbers, or another operator with one or several strings.
func newAnythingBut(argument any) (leaf, error) {
	compare := func(have, want any) bool { return have == want }
	if object, ok := argument.(map[string]any); ok {
		if len(object) != 1 {
			return nil, reason("anything-but takes one operator")
		}
		for name, inner := range object {
			operator := textOperators[name]
			if operator == nil {
				return nil, reason(fmt.Sprintf("anything-but does not take %s", name))
			}
			argument = inner
			compare = func(have, want any) bool {
				h, ok1 := have.(string)
				w, ok2 := want.(string)
				return ok1 && ok2 && operator(h, w)
			}
		}
	}
	list, ok := argument.([]any)
	if !ok {
		list = []any{argument}
	}
	for _, v := range list {
		switch v.(type) {
		case string, json.Number:
		default:
			return nil, reason("anything-but takes strings or numbers")
		}
	}
	if len(list) == 0 {
		return nil, reason("Empty arrays are not allowed")
	}
	return func(value any) bool {
		return value != absent{} && !slices.ContainsFunc(list, func(want any) bool { return compare(value, want) })
	}, nil
}

// newNumeric makes the leaf of one or two comparisons: ["<", 1] or
// [">=", 1, "<", 2].
func newNumeric(argument any) (leaf, error) {
	list, ok := argument.([]any)
	if !ok || len(list) != 2 && len(list) != 4 {
		return nil, reason("numeric takes a list of operators and numbers")
	}
	var all []func(*big.Float) bool
	for i := 0; i < len(list); i += 2 {
		operator, _ := list[i].(string)
		number, _ := list[i+1].(json.Number)
		good, known := map[string]func(int) bool{
			"=": func(c int) bool { return c == 0 },
			"<": func(c int) bool { return c < 0 }, "<=": func(c int) bool { return c <= 0 },
			">": func(c int) bool { return c > 0 }, ">=": func(c int) bool { return c >= 0 },
		}[operator]
		want, ok := parseNumber(number)
		if !known || !ok {
			return nil, reason("numeric takes a list of operators and numbers")
		}
		all = append(all, func(have *big.Float) bool { return good(have.Cmp(want)) })
	}
	return func(value any) bool {
		number, _ := value.(json.Number)
		have, ok := parseNumber(number)
		return ok && !slices.ContainsFunc(all, func(good func(*big.Float) bool) bool { return !good(have) })
	}, nil
}

// parseNumber reads a number of the size that EventBridge compares, which is
// at most five billion either way.
func parseNumber(n json.Number) (*big.Float, bool) {
	if len(n) == 0 || len(n) > 64 {
		return nil, false
	}
	f, _, err := big.ParseFloat(string(n), 10, 128, big.ToNearestEven)
	if err != nil {
		return nil, false
	}
	limit := big.NewFloat(5e9)
	return f, new(big.Float).Abs(f).Cmp(limit) <= 0
}

// stars matches s with a pattern in which * stands for anything and a
// backslash makes the next character plain.
func stars(pattern, s string) bool {
	var parts []string // between the stars
	var part strings.Builder
	for i := 0; i < len(pattern); i++ {
		switch {
		case pattern[i] == '\\' && i+1 < len(pattern):
			i++
			part.WriteByte(pattern[i])
		case pattern[i] == '*':
			parts = append(parts, part.String())
			part.Reset()
		default:
			part.WriteByte(pattern[i])
		}
	}
	last := part.String()
	if len(parts) == 0 {
		return s == last
	}
	if !strings.HasPrefix(s, parts[0]) {
		return false
	}
	s = s[len(parts[0]):]
	for _, p := range parts[1:] {
		i := strings.Index(s, p)
		if i < 0 {
			return false
		}
		s = s[i+len(p):]
	}
	return strings.HasSuffix(s, last)
}

// matches reports whether an event, or an object in one, matches.
func (p *pattern) matches(object map[string]any) bool {
	for name, m := range p.members {
		value, present := object[name]
		if !present {
			value = absent{}
		}
		if !m.matches(value) {
			return false
		}
	}
	return len(p.or) == 0 || slices.ContainsFunc(p.or, func(alternative *pattern) bool { return alternative.matches(object) })
}

// matches asks of an array whether one of its elements matches. An empty array
// is no value at all, and so is an object where a plain value is asked for.
func (m member) matches(value any) bool {
	switch v := value.(type) {
	case []any:
		if len(v) == 0 {
			return m.matches(absent{})
		}
		return slices.ContainsFunc(v, m.matches)
	case map[string]any:
		if m.nested != nil {
			return m.nested.matches(v)
		}
		value = absent{}
	}
	if m.nested != nil {
		return m.nested.matches(nil) // only what asks for absence can match
	}
	return slices.ContainsFunc(m.leaves, func(l leaf) bool { return l(value) })
}
