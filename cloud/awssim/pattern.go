package awssim

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"strconv"
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
	return newPattern(undot(object))
}

// undot makes nested objects of members with dots in their names: "a.b" is the
// same as b in a, in patterns and in events.
func undot(object map[string]any) map[string]any {
	out := make(map[string]any, len(object))
	for name, v := range object {
		if inner, ok := v.(map[string]any); ok {
			v = undot(inner)
		}
		parts := strings.Split(name, ".")
		for i := len(parts) - 1; i > 0; i-- {
			v = map[string]any{parts[i]: v}
		}
		merge(out, parts[0], v)
	}
	return out
}

// merge adds a member to an object that may have one of that name.
func merge(object map[string]any, name string, v any) {
	inner, isObject := v.(map[string]any)
	have, isThere := object[name].(map[string]any)
	if !isObject || !isThere {
		object[name] = v
		return
	}
	for name, v := range inner {
		merge(have, name, v)
	}
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
			l = func(value any) bool { return same(value, v) }
		}
		leaves = append(leaves, l)
	}
	return leaves, nil
}

// same compares two plain values: numbers by what they are worth, as far as
// EventBridge compares numbers, and larger ones as they are written.
func same(have, want any) bool {
	h, ok1 := have.(json.Number)
	w, ok2 := want.(json.Number)
	if ok1 && ok2 {
		x, ok1 := parseNumber(h)
		y, ok2 := parseNumber(w)
		if ok1 && ok2 {
			return x.Cmp(y) == 0
		}
	}
	return have == want
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

// maxStars is how many wildcard characters a value may have before AWS calls the
// rule too complex. How AWS measures that is not documented: six stars in a row
// of repeated sequences are refused.
const maxStars = 5

// newOperator makes the leaf of an operator of event patterns.
func newOperator(name string, argument any) (leaf, error) {
	text, isText := argument.(string)
	compare, known := textOperators[name]
	switch {
	case name == "exists":
		want, ok := argument.(bool)
		if !ok {
			return nil, reason("exists match pattern must be either true or false.")
		}
		return func(value any) bool { return (value != absent{}) == want }, nil
	case name == "anything-but":
		return newAnythingBut(argument)
	case name == "numeric":
		return newNumeric(argument)
	case name == "cidr" && isText:
		return newCIDR(text)
	case name == "cidr":
		return nil, reason("prefix match pattern must be a string") // AWS's word for it
	case !known:
		return nil, reason("Unrecognized match type " + name)
	case isText:
		if err := checkText(name, text); err != nil {
			return nil, err
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
	return nil, reason(name + " match pattern must be a string")
}

// checkText refuses what a text operator does not take.
func checkText(name, text string) error {
	if name != "wildcard" {
		return nil
	}
	if i := strings.Index(text, "**"); i >= 0 {
		return reason(fmt.Sprintf("Consecutive wildcard characters at pos %d", i+1))
	}
	if strings.Count(text, "*") > maxStars {
		return reason("Rule is too complex - try using fewer wildcard characters or fewer repeating character sequences after a wildcard character")
	}
	return nil
}

func newCIDR(text string) (leaf, error) {
	address, mask, ok := strings.Cut(text, "/")
	if !ok || strings.Contains(mask, "/") {
		return nil, reason("Malformed CIDR, one '/' required")
	}
	bits, err := strconv.Atoi(mask)
	if err != nil {
		return nil, reason("Malformed CIDR, mask bits must be an integer")
	}
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return nil, reason("Nonstandard IP address: " + address)
	}
	prefix, err := ip.Prefix(bits)
	if err != nil {
		return nil, reason("Malformed CIDR, mask bits are out of range")
	}
	return onString(func(s string) bool {
		address, err := netip.ParseAddr(s)
		return err == nil && prefix.Contains(address)
	}), nil
}

// newAnythingBut makes the leaf of an operator that takes one or several
// strings or numbers, or another operator with one or several strings.
func newAnythingBut(argument any) (leaf, error) {
	compare := same
	inner := ""
	if object, ok := argument.(map[string]any); ok {
		for inner, argument = range object {
		}
		operator := textOperators[inner]
		if operator == nil || len(object) != 1 {
			return nil, reason("Unsupported anything-but pattern: " + inner)
		}
		if _, nested := argument.(map[string]any); nested {
			return nil, notAnythingBut
		}
		compare = func(have, want any) bool {
			h, ok1 := have.(string)
			w, ok2 := want.(string)
			return ok1 && ok2 && operator(h, w)
		}
	}
	list, isList := argument.([]any)
	if !isList {
		list = []any{argument}
	}
	for _, v := range list {
		if err := checkAnythingBut(inner, v, isList); err != nil {
			return nil, err
		}
	}
	if len(list) == 0 {
		return nil, reason("Empty arrays are not allowed")
	}
	return func(value any) bool {
		return value != absent{} && !slices.ContainsFunc(list, func(want any) bool { return compare(value, want) })
	}, nil
}

const notAnythingBut = reason("Value of anything-but must be an array or single string/number value.")

// checkAnythingBut refuses a value of anything-but, or of the operator inside it.
func checkAnythingBut(inner string, v any, inList bool) error {
	text, isText := v.(string)
	_, isNumber := v.(json.Number)
	affix := inner == "prefix" || inner == "suffix"
	switch {
	case isText && affix && text == "":
		return reason("Null prefix/suffix not allowed")
	case isText:
		return checkText(inner, text)
	case affix:
		return reason("prefix/suffix match pattern must be a string")
	case inner == "wildcard":
		return reason("wildcard match pattern must be a string")
	case inner != "":
		return reason("Inside anything-but/equals-ignore-case list, number|start|null|boolean is not supported.")
	case isNumber:
		return nil
	case inList:
		return reason("Inside anything but list, start|null|boolean is not supported.")
	}
	return notAnythingBut
}

// newNumeric makes the leaf of one or two comparisons: ["<", 1] or
// [">=", 1, "<", 2].
func newNumeric(argument any) (leaf, error) {
	list, ok := argument.([]any)
	if !ok {
		return nil, reason("Value of numeric must be an array.")
	}
	var all []func(*big.Float) bool
	directions := ""
	for i := 0; i < len(list); i += 2 {
		operator, _ := list[i].(string)
		good, known := map[string]func(int) bool{
			"=": func(c int) bool { return c == 0 },
			"<": func(c int) bool { return c < 0 }, "<=": func(c int) bool { return c <= 0 },
			">": func(c int) bool { return c > 0 }, ">=": func(c int) bool { return c >= 0 },
		}[operator]
		switch {
		case !known:
			return nil, reason(fmt.Sprintf("Invalid member in numeric match: %v", list[i]))
		case strings.Contains(directions, operator[:1]) || directions == "=" || operator == "=" && i > 0:
			return nil, reason("Bad numeric range operator: " + operator)
		}
		directions += operator[:1]
		if i+1 == len(list) {
			return nil, reason("Value of " + operator + " must be numeric")
		}
		number, _ := list[i+1].(json.Number)
		want, ok := parseNumber(number)
		if !ok {
			return nil, reason("Value of " + operator + " must be numeric")
		}
		all = append(all, func(have *big.Float) bool { return good(have.Cmp(want)) })
	}
	if len(all) == 0 {
		return nil, reason("Invalid member in numeric match: ]")
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

// matches reports whether an event, or an object in one, matches. An event is
// to be undotted.
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
