package config

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
	"unique"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// A document is one TOML file while it is decoded and checked. It collects
// every problem, so that one mistake hides no other.
//
// go-toml's own decoder stops at the first wrong type and forgets where a key
// stood. So it only makes the generic tree here, and refuses bad syntax and
// doubled keys; decode fills the structs from the tree, and positions come from
// go-toml's parser.
type document struct {
	file     string
	tree     map[string]any
	pos      map[string]mark
	schema   reflect.Type // the struct of the whole file, to say where a key belongs
	problems Problems
	bad      map[string]bool // keys that a problem is about
	blank    map[string]bool // optional keys given as "", which is the same as leaving them out
}

// A mark is the position of a key.
type mark struct {
	line, column int
	implied      bool // only as part of a longer table name
}

// parse reads the syntax. Where that is bad, it returns a document with
// exactly one problem and no tree.
func parse(file string, data []byte) *document {
	d := &document{
		file:  file,
		pos:   make(map[string]mark),
		bad:   make(map[string]bool),
		blank: make(map[string]bool),
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff")) // some editors begin UTF-8 with a byte-order mark
	err := toml.Unmarshal(data, &d.tree)
	if err == nil {
		err = d.index(data)
	}
	if err == nil {
		return d
	}
	p := Problem{File: file, Msg: "not TOML: " + strings.TrimPrefix(err.Error(), "toml: ")}
	if syntax, ok := errors.AsType[*toml.DecodeError](err); ok {
		p.Line, p.Column = syntax.Position()
	}
	d.tree = nil
	d.problems = Problems{p}
	return d
}

// maxDepth bounds the tables that positions are kept for. The configuration
// has three levels; what lies deeper is an unknown key's.
const maxDepth = 6

// index fills pos.
func (d *document) index(data []byte) error {
	var p unstable.Parser
	p.Reset(data)
	lines := newLines(data)
	var table string
	depth := 0
	for p.NextExpression() {
		e := p.Expression()
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			table, depth = d.markKey("", 0, e.Key(), lines, true)
		case unstable.KeyValue:
			d.markValue(table, depth, e, lines)
		}
	}
	return p.Error()
}

// markValue records the keys of a key-value pair, and those of inline tables
// and elements of arrays in its value.
func (d *document) markValue(prefix string, depth int, pair *unstable.Node, lines lines) {
	key, depth := d.markKey(prefix, depth, pair.Key(), lines, false)
	if depth >= maxDepth {
		return
	}
	value := pair.Value()
	it := value.Children()
	switch value.Kind {
	case unstable.InlineTable:
		for it.Next() {
			d.markValue(key, depth, it.Node(), lines)
		}
	case unstable.Array:
		for i := 0; it.Next(); i++ {
			if raw := it.Node().Raw; raw.Length > 0 {
				d.mark(fmt.Sprintf("%s[%d]", key, i), lines.at(raw.Offset), false)
			}
		}
	}
}

// markKey records each part of a dotted key and returns the whole name.
func (d *document) markKey(prefix string, depth int, parts unstable.Iterator, lines lines, table bool) (string, int) {
	for parts.Next() {
		if depth >= maxDepth {
			return prefix, depth
		}
		n := parts.Node()
		prefix = join(prefix, string(n.Data))
		depth++
		d.mark(prefix, lines.at(n.Raw.Offset), table && n.Next() != nil)
	}
	return prefix, depth
}

func (d *document) mark(key string, at mark, implied bool) {
	at.implied = implied
	if old, ok := d.pos[key]; !ok || old.implied && !implied {
		d.pos[key] = at
	}
}

// lines are the offsets at which the lines of a file begin.
type lines []uint32

func newLines(data []byte) lines {
	l := lines{0}
	for i, c := range data {
		if c == '\n' {
			l = append(l, uint32(i+1))
		}
	}
	return l
}

func (l lines) at(offset uint32) mark {
	i, found := slices.BinarySearch(l, offset)
	if !found {
		i--
	}
	return mark{line: i + 1, column: int(offset-l[i]) + 1}
}

// join appends a key to a dotted name, in quotes where TOML wants them.
func join(prefix, key string) string {
	bare := func(r rune) bool {
		return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '-' || r == '_'
	}
	if key == "" || strings.ContainsFunc(key, func(r rune) bool { return !bare(r) }) {
		key = strconv.Quote(key)
	}
	if prefix == "" {
		return key
	}
	return prefix + "." + key
}

// given reports whether the file has the key, with a value that counts.
func (d *document) given(key string) bool {
	_, ok := d.pos[key]
	return ok && !d.blank[key]
}

// at returns the position of a key, or of the table that it is missing from.
func (d *document) at(key string) (line, column int) {
	for key != "" {
		if m, ok := d.pos[key]; ok {
			return m.line, m.column
		}
		key = key[:max(strings.LastIndexAny(key, ".["), 0)]
	}
	return 1, 1
}

// ok reports whether no problem is about the key, so that its value can be
// relied on in further checks.
func (d *document) ok(keys ...string) bool {
	return !slices.ContainsFunc(keys, func(key string) bool { return d.bad[key] })
}

// problemf records a problem at a key.
func (d *document) problemf(key, format string, args ...any) {
	line, column := d.at(key)
	d.problems = append(d.problems, Problem{d.file, line, column, key, fmt.Sprintf(format, args...)})
	d.bad[key] = true
}

// source is what a decoded file keeps of its positions.
type source struct {
	file      string
	positions []position
}

// A position is small, and its key is shared among all files, since there may
// be ten thousand of them.
type position struct {
	key          unique.Handle[string]
	line, column uint32
}

func (d *document) source() source {
	s := source{file: d.file, positions: make([]position, 0, len(d.pos))}
	for key, m := range d.pos {
		s.positions = append(s.positions, position{unique.Make(key), uint32(m.line), uint32(m.column)})
	}
	return s
}

// has reports whether the file sets a key.
func (s source) has(key string) bool {
	handle := unique.Make(key)
	return slices.ContainsFunc(s.positions, func(pos position) bool { return pos.key == handle })
}

// problem makes a Problem at a key, or at the table that it is missing from.
// Without positions, as in a definition from the database, it names the file.
func (s source) problem(key, msg string) Problem {
	p := Problem{File: s.file, Key: key, Msg: msg}
	if len(s.positions) == 0 {
		return p
	}
	p.Line, p.Column = 1, 1
	for k := key; k != ""; k = k[:max(strings.LastIndexAny(k, ".["), 0)] {
		handle := unique.Make(k)
		if i := slices.IndexFunc(s.positions, func(pos position) bool { return pos.key == handle }); i >= 0 {
			p.Line, p.Column = int(s.positions[i].line), int(s.positions[i].column)
			break
		}
	}
	return p
}

// A tomlDecoder decodes itself from a value of the generic tree. Its error
// says what the value must be.
type tomlDecoder interface{ decodeTOML(value any) error }

// A defaulter is an element of a map of tables that has defaults.
type defaulter interface{ setDefaults() }

// decode fills the struct from the whole file.
func (d *document) decode(v any) {
	target := reflect.ValueOf(v).Elem()
	d.schema = target.Type()
	d.table("", d.tree, target)
}

// table fills a struct from a table, key by key.
func (d *document) table(prefix string, table map[string]any, v reflect.Value) {
	fields := fieldsOf(v.Type())
	for _, name := range slices.Sorted(maps.Keys(table)) {
		key := join(prefix, name)
		f, ok := fields[name]
		if !ok {
			d.problemf(key, "unknown key; %s", d.suggest(prefix, name, fields))
			continue
		}
		field := v.Field(f.index)
		if d.value(key, table[name], field, f.optional); d.ok(key) && !d.blank[key] {
			f.check(d, key, field)
		}
	}
}

// check holds a value against the tags of its field.
func (f field) check(d *document, key string, v reflect.Value) {
	if text := fmt.Sprint(v); len(f.enum) > 0 && !slices.Contains(f.enum, text) {
		quoted := func(s string) string {
			if v.Kind() == reflect.String {
				return strconv.Quote(s)
			}
			return s
		}
		if len(f.enum) == 1 {
			d.problemf(key, "must be %s: there is nothing else", quoted(f.enum[0]))
		} else {
			d.problemf(key, "%s is not known: use %s", quoted(text), list(f.enum))
		}
	}
	if f.max > 0 && v.Len() > f.max {
		d.problemf(key, "must be at most %d bytes long, not %d", f.max, v.Len())
	}
	switch {
	case f.min == "":
	case v.Type() == durationType:
		if least, _ := ParseDuration(f.min); v.Int() < int64(least) {
			d.problemf(key, "must be at least %q", f.min)
		}
	default:
		if least, _ := strconv.ParseInt(f.min, 10, 64); v.Int() < least {
			d.problemf(key, "must be at least %d", least)
		}
	}
}

var durationType = reflect.TypeFor[Duration]()

// value fills one field, list element or map element.
func (d *document) value(key string, value any, v reflect.Value, optional bool) {
	if decoder, ok := v.Addr().Interface().(tomlDecoder); ok {
		if err := decoder.decodeTOML(value); err != nil {
			d.problemf(key, "%v", err)
		}
		return
	}
	if v.Type() == durationType {
		s, ok := value.(string)
		if !ok {
			d.problemf(key, `must be a duration in quotes, such as "90d", not %s`, typeName(value))
			return
		}
		if s == "" && optional {
			d.blank[key] = true
			return
		}
		parsed, err := ParseDuration(s)
		if err != nil {
			d.problemf(key, "%v", err)
			return
		}
		v.SetInt(int64(parsed))
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if value == "" && optional {
			d.blank[key] = true
			return
		}
		v.Set(reflect.New(v.Type().Elem()))
		d.value(key, value, v.Elem(), false)
	case reflect.Struct:
		if table, ok := value.(map[string]any); ok {
			d.table(key, table, v)
			return
		}
		d.wrongType(key, "a table", value)
	case reflect.Map:
		d.mapValue(key, value, v)
	case reflect.Slice:
		list, ok := value.([]any)
		if !ok {
			d.wrongType(key, "an array of strings", value)
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), len(list), len(list)))
		for i, element := range list {
			d.value(fmt.Sprintf("%s[%d]", key, i), element, v.Index(i), false)
		}
	case reflect.String:
		if s, ok := value.(string); ok {
			v.SetString(s)
			return
		}
		d.wrongType(key, "a string in quotes", value)
	case reflect.Bool:
		if b, ok := value.(bool); ok {
			v.SetBool(b)
			return
		}
		d.wrongType(key, "true or false", value)
	case reflect.Int:
		n, ok := value.(int64)
		if !ok {
			d.wrongType(key, "an integer", value)
			return
		}
		if v.OverflowInt(n) {
			d.problemf(key, "%d is too large", n)
			return
		}
		v.SetInt(n)
	case reflect.Float64:
		switch n := value.(type) {
		case float64:
			v.SetFloat(n)
		case int64:
			v.SetFloat(float64(n))
		default:
			d.wrongType(key, "a number", value)
		}
	default:
		panic("config: no decoding for " + v.Type().String())
	}
}

// mapValue fills a map from a table with names that the user chooses.
func (d *document) mapValue(key string, value any, v reflect.Value) {
	table, ok := value.(map[string]any)
	if !ok {
		d.wrongType(key, "a table", value)
		return
	}
	v.Set(reflect.MakeMapWithSize(v.Type(), len(table)))
	for _, name := range slices.Sorted(maps.Keys(table)) {
		element := reflect.New(v.Type().Elem())
		if e, ok := element.Interface().(defaulter); ok {
			e.setDefaults()
		}
		d.value(join(key, name), table[name], element.Elem(), false)
		v.SetMapIndex(reflect.ValueOf(name), element.Elem())
	}
}

func (d *document) wrongType(key, want string, got any) {
	d.problemf(key, "must be %s, not %s", want, typeName(got))
}

// typeName names the TOML type of a value. The value itself is not shown: it
// may be a secret that stands where none belongs.
func typeName(value any) string {
	switch value.(type) {
	case string:
		return "a string"
	case bool:
		return "a boolean"
	case int64:
		return "an integer"
	case float64:
		return "a float"
	case []any:
		return "an array"
	case map[string]any:
		return "a table"
	case time.Time, toml.LocalDate, toml.LocalTime, toml.LocalDateTime:
		return "a date or time"
	}
	return "another type"
}

// A field is how a struct field is written in TOML: the tag toml:"name", or
// toml:"name,optional" where "" is the same as leaving the key out; enum:"a,b"
// lists the values that there are, min:"1" is the least number or duration, and
// max:"256" the most bytes of a string.
type field struct {
	index    int
	optional bool
	enum     []string
	min      string
	max      int
}

var fieldCache sync.Map // reflect.Type to map[string]field

// fieldsOf returns the fields of a struct by their TOML names.
func fieldsOf(t reflect.Type) map[string]field {
	if cached, ok := fieldCache.Load(t); ok {
		return cached.(map[string]field)
	}
	fields := make(map[string]field)
	for i := range t.NumField() {
		tag := t.Field(i).Tag
		if name, option, _ := strings.Cut(tag.Get("toml"), ","); name != "" && name != "-" {
			f := field{index: i, optional: option == "optional", min: tag.Get("min")}
			if enum := tag.Get("enum"); enum != "" {
				f.enum = strings.Split(enum, ",")
			}
			f.max, _ = strconv.Atoi(tag.Get("max"))
			fields[name] = f
		}
	}
	fieldCache.Store(t, fields)
	return fields
}

// suggest says what to do about an unknown key: the known key of the same
// table that it resembles most, or the table that it belongs to.
func (d *document) suggest(table, name string, known map[string]field) string {
	best, distance := "", 1+len(name)/3
	for _, k := range slices.Sorted(maps.Keys(known)) {
		if n := editDistance(name, k); n <= distance {
			best, distance = k, n-1
		}
	}
	if best != "" {
		return fmt.Sprintf("did you mean %s?", best)
	}
	var homes []string
	findTables(d.schema, "", name, &homes)
	for _, home := range homes {
		if home == table {
			continue
		}
		if home == "" {
			return "it belongs at the top of the file, before the first [table]"
		}
		return fmt.Sprintf("it belongs in table [%s]", home)
	}
	return "correct its spelling or remove it"
}

// findTables collects the tables of a schema that have the key.
func findTables(t reflect.Type, prefix, name string, tables *[]string) {
	fields := fieldsOf(t)
	if _, ok := fields[name]; ok {
		*tables = append(*tables, prefix)
	}
	for _, k := range slices.Sorted(maps.Keys(fields)) {
		ft := t.Field(fields[k].index).Type
		key := join(prefix, k)
		if ft.Kind() == reflect.Map {
			ft, key = ft.Elem(), key+".NAME"
		}
		if ft.Kind() == reflect.Struct {
			findTables(ft, key, name, tables)
		}
	}
}

// editDistance returns Levenshtein's distance: how many characters must be
// put in, taken out or exchanged to make one string of the other.
func editDistance(a, b string) int {
	if utf8.RuneCountInString(a) > 64 {
		return len(a) // no key of ours is near
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i, ra := range []rune(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if ra == rune(b[j]) {
				cost = 0
			}
			next := min(row[j]+1, row[j+1]+1, diagonal+cost)
			diagonal, row[j+1] = row[j+1], next
		}
	}
	return row[len(b)]
}
