package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
)

// recordedAccount stands in recordings for the account that was recorded.
const recordedAccount = "111111111111"

// blobWords stand in recordings for blobs.
var blobWords = []string{"import-token", "public-key", "ciphertext-blob", "plaintext", "<signature>", "<mac>", "private-key-plaintext", "private-key-ciphertext-blob"}

var placeholder = regexp.MustCompile(`<[a-z0-9 _-]+(:[0-9]+)?>`)

// match compares a value with what was recorded. A member that was not
// recorded is as wrong as one that is missing.
func (p *player) match(where string, recorded, got any) error {
	switch want := recorded.(type) {
	case map[string]any:
		object, ok := got.(map[string]any)
		if !ok {
			return fmt.Errorf("%s is %v; recorded is an object", where, got)
		}
		for _, name := range slices.Sorted(maps.Keys(want)) {
			if _, ok := object[name]; !ok {
				return fmt.Errorf("%s has no %s", where, name)
			}
			if err := p.match(where+"."+name, want[name], object[name]); err != nil {
				return err
			}
		}
		for _, name := range slices.Sorted(maps.Keys(object)) {
			if _, ok := want[name]; !ok {
				return fmt.Errorf("%s has %s, which was not recorded", where, name)
			}
		}
		return nil
	case []any:
		list, ok := got.([]any)
		if !ok || len(list) != len(want) {
			return fmt.Errorf("%s is %v; recorded is a list of %d", where, got, len(want))
		}
		for i := range want {
			if err := p.match(fmt.Sprintf("%s[%d]", where, i), want[i], list[i]); err != nil {
				return err
			}
		}
		return nil
	case string:
		return p.matchText(where, want, got)
	}
	if recorded != got {
		return fmt.Errorf("%s is %v; recorded is %v", where, got, recorded)
	}
	return nil
}

func (p *player) matchText(where, want string, got any) error {
	wrong := func() error { return fmt.Errorf("%s is %q; recorded is %q", where, fmt.Sprint(got), want) }
	text, isText := got.(string)
	switch {
	case want == "datetime" || want == "date":
		if _, isNumber := got.(json.Number); isNumber {
			return nil
		}
		if _, err := time.Parse(time.RFC3339, text); err != nil {
			return wrong()
		}
		return nil
	case !isText:
		return wrong()
	case slices.Contains(blobWords, want):
		if b, err := base64.StdEncoding.DecodeString(text); err != nil || len(b) == 0 {
			return wrong()
		}
		return nil
	case setOfValues(want) != "":
		if setOfValues(want) != setOfValues(text) {
			return wrong()
		}
		return nil
	}
	expression, names := p.expression(want)
	found := expression.FindStringSubmatch(text)
	if found == nil {
		return wrong()
	}
	for i, name := range names {
		value := found[i+1]
		if !strings.Contains(name, ":") {
			continue // not numbered: it may be another one each time
		}
		if bound, ok := p.bound[name]; ok && bound != value && !strings.HasSuffix(value, "/"+bound) && !strings.HasSuffix(bound, "/"+value) {
			return fmt.Errorf("%s has %s, where %s was %s before", where, value, name, bound)
		}
		p.bound[name] = value
	}
	return nil
}

// expression makes a regular expression of a recorded text, with a group for
// each placeholder.
func (p *player) expression(want string) (*regexp.Regexp, []string) {
	var b strings.Builder
	var names []string
	b.WriteString(`\A(?s:`)
	rest := want
	for {
		at := placeholder.FindStringIndex(rest)
		if at == nil {
			break
		}
		b.WriteString(p.quoted(rest[:at[0]]) + "(.+?)")
		names = append(names, rest[at[0]:at[1]])
		rest = rest[at[1]:]
	}
	b.WriteString(p.quoted(rest) + `)\z`)
	return regexp.MustCompile(b.String()), names
}

func (p *player) quoted(s string) string {
	return regexp.QuoteMeta(strings.ReplaceAll(s, recordedAccount, p.target.account))
}

var enumSet = regexp.MustCompile(`(Member must satisfy enum value set: )\[([^]]*)\]`)

// setOfValues returns a message about an enumeration with its values in order,
// since theirs means nothing; it returns nothing for other texts.
func setOfValues(s string) string {
	found := enumSet.FindStringSubmatch(s)
	if found == nil {
		return ""
	}
	values := strings.Split(found[2], ", ")
	slices.Sort(values)
	return strings.Replace(s, found[2], strings.Join(values, ", "), 1)
}
