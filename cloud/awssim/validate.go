package awssim

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"
)

// validate checks an input against the constraints of the service model, which
// stand in its field tags:
//
//	required   the member must be there
//	len        least,most characters of a string, bytes of a blob, or elements of a list
//	range      least,most of a number
//	pattern    a regular expression for the whole string
//	enum       the values, separated by spaces
//	each       least,most characters of every string of a list; eachPattern and
//	           eachEnum likewise
//	sensitive  the value is not repeated in the message
//
// It reports all violations in one ValidationException with AWS's wording.
func validate(input any) error {
	var found []string
	walk(reflect.ValueOf(input).Elem(), "", &found)
	switch len(found) {
	case 0:
		return nil
	case 1:
		return fail("ValidationException", "1 validation error detected: %s", found[0])
	}
	return fail("ValidationException", "%d validation errors detected: %s", len(found), strings.Join(found, "; "))
}

func walk(v reflect.Value, path string, found *[]string) {
	for i := range v.NumField() {
		field := v.Type().Field(i)
		if field.Anonymous {
			walk(v.Field(i), path, found)
			continue
		}
		if !field.IsExported() {
			continue
		}
		member, value := path+lowerFirst(field.Name), v.Field(i)
		check(value, field.Tag, member, found)
		switch {
		case value.Kind() == reflect.Slice && value.Type().Elem().Kind() == reflect.Struct:
			for n := range value.Len() {
				walk(value.Index(n), fmt.Sprintf("%s.%d.member.", member, n+1), found)
			}
		case value.Kind() == reflect.Slice && value.Type().Elem().Kind() == reflect.String:
			checkEach(value, field.Tag, member, found)
		case value.Kind() == reflect.Pointer && !value.IsNil() && value.Elem().Kind() == reflect.Struct:
			walk(value.Elem(), member+".", found)
		}
	}
}

// checkEach checks the strings of a list. What is wrong with one is said of the
// list, with all that its strings must satisfy.
func checkEach(list reflect.Value, tag reflect.StructTag, path string, found *[]string) {
	var constraints []string
	var rules []string
	if limits, ok := tag.Lookup("each"); ok {
		least, most := bounds(limits)
		constraints = append(constraints, fmt.Sprintf("Member must have length less than or equal to %d", most))
		if least > 0 {
			constraints = append(constraints, fmt.Sprintf("Member must have length greater than or equal to %d", least))
		}
		rules = append(rules, `len:"`+limits+`"`)
	}
	if pattern, ok := tag.Lookup("eachPattern"); ok {
		constraints = append(constraints, "Member must satisfy regular expression pattern: "+pattern)
		rules = append(rules, "pattern:"+strconv.Quote(pattern))
	}
	if enum, ok := tag.Lookup("eachEnum"); ok {
		constraints = append(constraints, "Member must satisfy enum value set: ["+strings.Join(strings.Fields(enum), ", ")+"]")
		rules = append(rules, `enum:"`+enum+`"`)
	}
	var wrong []string
	for n := range list.Len() {
		check(list.Index(n), reflect.StructTag(strings.Join(rules, " ")), path, &wrong)
	}
	if len(wrong) > 0 {
		*found = append(*found, "Value '"+show(list)+"' at '"+path+"' failed to satisfy constraint: Member must satisfy constraint: ["+strings.Join(constraints, ", ")+"]")
	}
}

func check(v reflect.Value, tag reflect.StructTag, path string, found *[]string) {
	absent := v.Kind() == reflect.Pointer && v.IsNil() || v.Kind() == reflect.Slice && v.IsNil()
	_, sensitive := tag.Lookup("sensitive")
	violated := func(constraint string, args ...any) {
		value := "Value "
		switch {
		case absent:
			value += "null "
		case !sensitive:
			value += "'" + show(v) + "' "
		}
		*found = append(*found, value+"at '"+path+"' failed to satisfy constraint: "+fmt.Sprintf(constraint, args...))
	}
	if absent {
		if _, required := tag.Lookup("required"); required {
			violated("Member must not be null")
		}
		return
	}
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	if limits, ok := tag.Lookup("len"); ok {
		least, most := bounds(limits)
		n := int64(0)
		if v.Kind() == reflect.String {
			n = int64(utf8.RuneCountInString(v.String()))
		} else {
			n = int64(v.Len())
		}
		if n < least {
			violated("Member must have length greater than or equal to %d", least)
		}
		if n > most {
			violated("Member must have length less than or equal to %d", most)
		}
	}
	if limits, ok := tag.Lookup("range"); ok {
		least, most := bounds(limits)
		if v.Int() < least {
			violated("Member must have value greater than or equal to %d", least)
		}
		if v.Int() > most {
			violated("Member must have value less than or equal to %d", most)
		}
	}
	if pattern, ok := tag.Lookup("pattern"); ok && !compiled(pattern).MatchString(v.String()) {
		violated("Member must satisfy regular expression pattern: %s", pattern)
	}
	if enum, ok := tag.Lookup("enum"); ok {
		if values := strings.Fields(enum); !slices.Contains(values, v.String()) {
			violated("Member must satisfy enum value set: [%s]", strings.Join(values, ", "))
		}
	}
}

// show prints a value as AWS's servers do, which are written in Java.
func show(v reflect.Value) string {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return "null"
		}
		return show(v.Elem())
	case reflect.Slice:
		if v.IsNil() {
			return "null"
		}
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return fmt.Sprintf("java.nio.HeapByteBuffer[pos=0 lim=%d cap=%[1]d]", v.Len())
		}
		var elements []string
		for i := range v.Len() {
			elements = append(elements, show(v.Index(i)))
		}
		return "[" + strings.Join(elements, ", ") + "]"
	case reflect.Struct:
		if t, ok := v.Interface().(timestamp); ok {
			return t.UTC().Format("Mon Jan 02 15:04:05 UTC 2006")
		}
		var members []string
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() {
				members = append(members, lowerFirst(f.Name)+"="+show(v.Field(i)))
			}
		}
		return upperFirst(v.Type().Name()) + "(" + strings.Join(members, ", ") + ")"
	}
	return fmt.Sprint(v.Interface())
}

// bounds parses "least,most".
func bounds(s string) (least, most int64) {
	l, m, _ := strings.Cut(s, ",")
	least, errL := strconv.ParseInt(l, 10, 64)
	most, errM := strconv.ParseInt(m, 10, 64)
	if errL != nil || errM != nil {
		panic("awssim: bad bounds in a tag: " + s)
	}
	return least, most
}

var patterns sync.Map // string → *regexp.Regexp

// javaEscape is a character as the models write it, whose expressions are Java's.
var javaEscape = regexp.MustCompile(`\\u([0-9A-F]{4})`)

// compiled returns the expression, anchored at both ends.
func compiled(pattern string) *regexp.Regexp {
	if re, ok := patterns.Load(pattern); ok {
		return re.(*regexp.Regexp)
	}
	expression := javaEscape.ReplaceAllString(pattern, `\x{$1}`)
	re, _ := patterns.LoadOrStore(pattern, regexp.MustCompile(`\A(?:`+expression+`)\z`))
	return re.(*regexp.Regexp)
}

func upperFirst(s string) string {
	r, size := utf8.DecodeRuneInString(s)
	return string(unicode.ToUpper(r)) + s[size:]
}

func lowerFirst(s string) string {
	r, size := utf8.DecodeRuneInString(s)
	return string(unicode.ToLower(r)) + s[size:]
}
