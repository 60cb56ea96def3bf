package awssim

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// conditionValues are the values of a condition: one scalar or an array.
type conditionValues []string

// UnmarshalJSON reads either form. Numbers stay as they are written.
func (v *conditionValues) UnmarshalJSON(b []byte) error {
	decoded, err := decodeNumbers(b)
	if err != nil {
		return err
	}
	scalars, isList := decoded.([]any)
	if !isList {
		scalars = []any{decoded}
	}
	for _, s := range scalars {
		switch s.(type) {
		case string, bool, json.Number:
			*v = append(*v, fmt.Sprint(s))
		default:
			return errors.New("a condition value must be a string, a number or a boolean")
		}
	}
	return nil
}

// A requestContext is what conditions can ask about: values by the name of the
// condition key, which is not case-sensitive and here in lower case.
type requestContext map[string][]string

func (r requestContext) set(name string, values ...string) { r[strings.ToLower(name)] = values }

// A test compares one value of the request with one of the policy.
type test func(have, want string) bool

// tests are the condition operators of IAM, apart from Null and the negated
// ones.
var tests = map[string]test{
	"StringEquals":           func(have, want string) bool { return have == want },
	"StringEqualsIgnoreCase": strings.EqualFold,
	"StringLike":             func(have, want string) bool { return wildcard(want, have) },
	"ArnEquals":              arnLike,
	"ArnLike":                arnLike,
	"Bool":                   strings.EqualFold,
	"BinaryEquals":           func(have, want string) bool { return have == want },
	"NumericEquals":          numeric(func(c int) bool { return c == 0 }),
	"NumericLessThan":        numeric(func(c int) bool { return c < 0 }),
	"NumericLessThanEquals":  numeric(func(c int) bool { return c <= 0 }),

	"NumericGreaterThan":       numeric(func(c int) bool { return c > 0 }),
	"NumericGreaterThanEquals": numeric(func(c int) bool { return c >= 0 }),
	"DateEquals":               date(func(c int) bool { return c == 0 }),
	"DateLessThan":             date(func(c int) bool { return c < 0 }),
	"DateLessThanEquals":       date(func(c int) bool { return c <= 0 }),
	"DateGreaterThan":          date(func(c int) bool { return c > 0 }),
	"DateGreaterThanEquals":    date(func(c int) bool { return c >= 0 }),
	"IpAddress":                inPrefix,
}

// negated are the operators that are true where the other one is not.
var negated = map[string]string{
	"StringNotEquals": "StringEquals", "StringNotEqualsIgnoreCase": "StringEqualsIgnoreCase", "StringNotLike": "StringLike",
	"ArnNotEquals": "ArnEquals", "ArnNotLike": "ArnLike", "NumericNotEquals": "NumericEquals", "DateNotEquals": "DateEquals",
	"NotIpAddress": "IpAddress",
}

// arnLike matches ARNs part by part, so that a * does not go beyond a colon
// except in the last part.
func arnLike(have, want string) bool {
	h, w := strings.SplitN(have, ":", 6), strings.SplitN(want, ":", 6)
	if len(h) != len(w) {
		return false
	}
	for i := range h {
		if !wildcard(w[i], h[i]) {
			return false
		}
	}
	return true
}

func numeric(good func(int) bool) test {
	return func(have, want string) bool {
		h, err1 := strconv.ParseFloat(have, 64)
		w, err2 := strconv.ParseFloat(want, 64)
		if err1 != nil || err2 != nil {
			return false
		}
		switch {
		case h < w:
			return good(-1)
		case h > w:
			return good(1)
		}
		return good(0)
	}
}

// date compares times, written as of RFC 3339 or as epoch seconds.
func date(good func(int) bool) test {
	parse := func(s string) (time.Time, bool) {
		if seconds, err := strconv.ParseInt(s, 10, 64); err == nil {
			return time.Unix(seconds, 0), true
		}
		for _, layout := range []string{time.RFC3339, "2006-01-02"} {
			if t, err := time.Parse(layout, s); err == nil {
				return t, true
			}
		}
		return time.Time{}, false
	}
	return func(have, want string) bool {
		h, ok1 := parse(have)
		w, ok2 := parse(want)
		return ok1 && ok2 && good(h.Compare(w))
	}
}

func inPrefix(have, want string) bool {
	address, err := netip.ParseAddr(have)
	if err != nil {
		return false
	}
	if prefix, err := netip.ParsePrefix(want); err == nil {
		return prefix.Contains(address)
	}
	return have == want
}

// An operator is a condition operator taken apart.
type operator struct {
	test
	null     bool
	negated  bool
	ifExists bool
	any, all bool // ForAnyValue, ForAllValues
}

func parseOperator(name string) (o operator, ok bool) {
	if rest, found := strings.CutPrefix(name, "ForAnyValue:"); found {
		name, o.any = rest, true
	} else if rest, found := strings.CutPrefix(name, "ForAllValues:"); found {
		name, o.all = rest, true
	}
	if name == "Null" {
		o.null = true
		return o, true
	}
	name, o.ifExists = strings.CutSuffix(name, "IfExists")
	if positive, found := negated[name]; found {
		name, o.negated = positive, true
	}
	o.test, ok = tests[name]
	return o, ok
}

// checkCondition refuses operators that IAM does not have.
func (s *statement) checkCondition() error {
	for name := range s.Condition {
		if _, ok := parseOperator(name); !ok {
			return fmt.Errorf("there is no condition operator %q", name)
		}
	}
	return nil
}

// applies reports whether all conditions of the statement hold.
func (s *statement) applies(r requestContext, expand func(string) string) bool {
	for name, keys := range s.Condition {
		o, ok := parseOperator(name)
		if !ok {
			return false // checkCondition saw it
		}
		for key, want := range keys {
			have, present := r[strings.ToLower(key)]
			if !o.holds(have, present, want, expand) {
				return false
			}
		}
	}
	return true
}

func (o operator) holds(have []string, present bool, want conditionValues, expand func(string) string) bool {
	if o.null {
		return len(want) > 0 && strings.EqualFold(want[0], strconv.FormatBool(!present))
	}
	if !present || len(have) == 0 {
		// A negated operator is true of a key that is not there, and so are
		// IfExists and ForAllValues.
		return o.ifExists || o.all || o.negated && !o.any
	}
	one := func(have string) bool {
		matches := slices.ContainsFunc(want, func(w string) bool { return o.test(have, expand(w)) })
		return matches != o.negated
	}
	if o.all || o.negated && !o.any {
		return !slices.ContainsFunc(have, func(h string) bool { return !one(h) })
	}
	return slices.ContainsFunc(have, one)
}

// matchesResource reports whether a resource of a policy covers one of a request:
// part by part, since a * of a policy does not go beyond a colon except in the last
// one. Parts that are missing are *, and variables are those of the request (IAM
// User Guide, "IAM JSON policy elements: Resource").
func matchesResource(pattern, resource string, expand func(string) string) bool {
	if pattern == "*" || resource == "*" {
		return pattern == "*"
	}
	for strings.Count(pattern, ":") < 5 {
		pattern += ":*"
	}
	return arnLike(resource, expand(pattern))
}

// substitute replaces policy variables such as ${aws:username}.
func (r requestContext) substitute(s string) string {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(s, "${")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		name, after, closed := strings.Cut(rest, "}")
		if !closed {
			return b.String() + "${" + rest
		}
		name, ifAbsent, _ := strings.Cut(name, ",")
		switch value, ok := r[strings.ToLower(strings.TrimSpace(name))]; {
		case name == "*" || name == "?" || name == "$":
			b.WriteString(name)
		case ok && len(value) == 1:
			b.WriteString(value[0])
		default:
			b.WriteString(strings.Trim(strings.TrimSpace(ifAbsent), "'"))
		}
		s = after
	}
}
