package config

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"
	"github.com/rogpeppe/go-internal/txtar"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// The doc comments and tags of Config and Group, and the examples in
// docs/examples, are the one source of what users read of each key. Made of them
// are
//
//	docs/schema/byokd.schema.json, docs/schema/group.schema.json
//	docs/configuration.md
//	docs/man/byokd.toml.5, docs/man/byokd.group.5
//
// A comment's first paragraph is for users: it begins with the field's name, for
// which the key's is put, and ends with "Required." or "Default: …".

// A refTable is one table of a file, by its name with NAME or REGION for what the
// user chooses.
type refTable struct {
	name  string // "" is the top of the file
	doc   string
	keys  []*refKey
	typ   reflect.Type
	names bool // its keys are names that the user chooses
}

type refKey struct {
	table    *refTable
	name     string
	typ      reflect.Type
	field    field
	doc      string // as a clause that follows the name
	required bool
	def      string // what the comment says of the default; "": nothing
	value    any    // the default as a value of TOML; nil: it is none
	example  string // in TOML
	note     string // on reload, and what is not there yet
}

func (k *refKey) full() string {
	if k.table.name == "" {
		return k.name
	}
	return k.table.name + "." + k.name
}

// A reference is all of one file.
type reference struct {
	file   string
	title  string
	tables []*refTable
}

// comments are the doc comments of the package's types and their fields.
func comments(t *testing.T) (types map[string]string, fields map[string]map[string]string) {
	t.Helper()
	types, fields = make(map[string]string), make(map[string]map[string]string)
	for _, file := range []string{"config.go", "group.go"} {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range f.Decls {
			gen, ok := decl.(*ast.GenDecl)
			if !ok || gen.Tok != token.TYPE {
				continue
			}
			spec := gen.Specs[0].(*ast.TypeSpec)
			types[spec.Name.Name] = gen.Doc.Text()
			if s, ok := spec.Type.(*ast.StructType); ok {
				fields[spec.Name.Name] = make(map[string]string)
				for _, field := range s.Fields.List {
					for _, name := range field.Names {
						fields[spec.Name.Name][name.Name] = field.Doc.Text()
					}
				}
			}
		}
	}
	return types, fields
}

// referTo collects the tables and keys of a file from its Go type and defaults.
func referTo(t *testing.T, file, title string, defaults any) *reference {
	t.Helper()
	types, fields := comments(t)
	examples := exampleValues(t, file)
	r := &reference{file: file, title: title}
	var walk func(name string, v reflect.Value, placeholder string)
	walk = func(name string, v reflect.Value, placeholder string) {
		table := &refTable{name: name, typ: v.Type(), doc: firstParagraph(types[v.Type().Name()])}
		r.tables = append(r.tables, table)
		var inner []func()
		for i := range v.NumField() {
			sf := v.Type().Field(i)
			key, _, _ := strings.Cut(sf.Tag.Get("toml"), ",")
			if key == "" || key == "-" {
				continue
			}
			doc := fields[v.Type().Name()][sf.Name]
			full := strings.TrimPrefix(name+"."+key, ".")
			ft, fv := sf.Type, v.Field(i)
			switch {
			case ft.Kind() == reflect.Struct:
				inner = append(inner, func() { walk(full, fv, placeholder) })
				continue
			case ft.Kind() == reflect.Map && ft.Elem().Kind() == reflect.Struct && ft.Elem() != reflect.TypeFor[Attribute]():
				of := map[string]string{"hsm": "NAME", "credentials": "NAME", "endpoints": "REGION"}[key]
				element := reflect.New(ft.Elem())
				if d, ok := element.Interface().(defaulter); ok {
					d.setDefaults()
				}
				inner = append(inner, func() { walk(full+"."+of, element.Elem(), of) })
				continue
			case ft.Kind() == reflect.Map:
				clause, _, def := userDoc(t, sf.Name, doc)
				of := map[string]string{"key_template": "ATTRIBUTE", "tags": "TAG", "hooks": "EVENT"}[key]
				sub := &refTable{name: full, typ: ft, names: true}
				sub.keys = []*refKey{{table: sub, name: of, typ: ft.Elem(), doc: clause, def: def, example: examples[full+"."+of]}}
				inner = append(inner, func() { r.tables = append(r.tables, sub) })
				continue
			}
			k := &refKey{table: table, name: key, typ: ft, field: fieldsOf(v.Type())[key], example: examples[full]}
			k.doc, k.required, k.def = userDoc(t, sf.Name, doc)
			k.value = k.defaultValue(t, fv)
			table.keys = append(table.keys, k)
		}
		for _, f := range inner {
			f()
		}
	}
	walk("", reflect.ValueOf(defaults).Elem(), "")
	for _, table := range r.tables {
		for _, k := range table.keys {
			if k.example == "" {
				t.Errorf("docs/examples has no example of %s in %s", k.full(), file)
			}
			if top, _, _ := strings.Cut(k.full(), "."); file == "byokd.toml" && !slices.Contains(follows, top) {
				k.note = "Needs a restart."
			}
		}
	}
	return r
}

// firstParagraph is a comment's part for users, in one line.
func firstParagraph(doc string) string {
	doc, _, _ = strings.Cut(doc, "\n\n")
	return strings.Join(strings.Fields(doc), " ")
}

var docLink = regexp.MustCompile(`\[[A-Z]\w*(\.\w+)?\]`)

// userDoc takes a field's comment apart.
func userDoc(t *testing.T, name, doc string) (clause string, required bool, def string) {
	t.Helper()
	text := firstParagraph(doc)
	clause, ok := strings.CutPrefix(text, name+" ")
	if !ok || docLink.MatchString(text) {
		t.Errorf("the comment of %s does not begin with its name, or refers to Go in its first paragraph: %q", name, text)
	}
	clause, required = strings.CutSuffix(clause, " Required.")
	if before, after, ok := strings.Cut(clause, " Default: "); ok {
		clause, def = before, strings.TrimSuffix(after, ".")
	}
	return clause, required, def
}

// defaultValue is the default of a key that has one, which its comment must name.
func (k *refKey) defaultValue(t *testing.T, v reflect.Value) any {
	t.Helper()
	var value any
	switch {
	case v.Type() == durationType:
		value = v.Interface().(Duration).String()
		if said, err := ParseDuration(strings.Trim(k.def, `"`)); err == nil && said == v.Interface().(Duration) {
			return strings.Trim(k.def, `"`) // 24h is 1d
		}
		if v.IsZero() && !strings.HasPrefix(k.def, `"`) {
			return nil
		}
	case v.Kind() == reflect.String, v.Kind() == reflect.Bool, v.Kind() == reflect.Int, v.Kind() == reflect.Float64:
		value = v.Interface()
		if v.IsZero() && v.Kind() == reflect.String {
			return nil
		}
	default:
		return nil
	}
	switch k.full() {
	case "state_dir", "runtime_dir", "rotation.timezone":
		return nil // the comment says where it comes from
	}
	if said := k.def; said != tomlValue(value) && !strings.HasPrefix(said, tomlValue(value)+",") && !strings.HasPrefix(said, tomlValue(value)+";") && !k.required {
		t.Errorf("the comment of %s says that the default is %s; it is %s", k.full(), said, tomlValue(value))
	}
	return value
}

func tomlValue(v any) string {
	if f, ok := v.(float64); ok && f == float64(int(f)) {
		return fmt.Sprintf("%.1f", f)
	}
	if s, ok := v.(string); ok {
		return strconv.Quote(s)
	}
	return fmt.Sprint(v)
}

var exampleLine = regexp.MustCompile(`^(?:# ?)?("[^"]+"|[A-Za-z0-9_-]+) *= *("[^"]*"|\[[^\]]*\]|[^\s#]+)`)

// exampleValues are the values in the files of docs/examples, those in comments
// too, by key.
func exampleValues(t *testing.T, file string) map[string]string {
	t.Helper()
	path := map[string]string{"byokd.toml": "../docs/examples/byokd.toml", "group": "../docs/examples/groups.d/payments.toml"}[file]
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	values := make(map[string]string)
	table := ""
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(strings.TrimPrefix(line, "# "), "["); ok {
			table, _, _ = strings.Cut(name, "]")
			for _, r := range [][2]string{{"hsm.main", "hsm.NAME"}, {"credentials.prod", "credentials.NAME"}, {"aws.endpoints.eu-central-1", "aws.endpoints.REGION"}} {
				if table == r[0] || strings.HasPrefix(table, r[0]+".") {
					table = r[1] + strings.TrimPrefix(table, r[0])
				}
			}
			continue
		}
		if m := exampleLine.FindStringSubmatch(line); m != nil {
			key := strings.TrimPrefix(table+"."+m[1], ".")
			switch table {
			case "hsm.NAME.key_template":
				key = table + ".ATTRIBUTE"
			case "aws.tags":
				key = table + ".TAG"
			case "hooks":
				key = table + ".EVENT"
			}
			if values[key] == "" {
				values[key] = m[2]
			}
		}
	}
	return values
}

// references are both files.
func references(t *testing.T) (daemon, group *reference) {
	t.Helper()
	opts := Options{LookupEnv: func(string) (string, bool) { return "", false }}
	g := defaultGroup()
	g.Rotation.Initial = "now"
	return referTo(t, "byokd.toml", "byokd.toml, the daemon's own configuration", defaultConfig("/etc/byokd/byokd.toml", opts)),
		referTo(t, "group", "groups.d/NAME.toml, a key group", g)
}

// fresh compares a file with what it should hold, or writes it with -update.
func fresh(t *testing.T, path string, want []byte) {
	t.Helper()
	if flag.Lookup("update").Value.String() == "true" {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s is not what config's comments and docs/examples say now: run go test ./config -run TestReference -update (%v)\n%s",
			path, err, cmp.Diff(string(got), string(want)))
	}
}

// A jsonObject keeps the order of its keys.
type jsonObject []jsonField

type jsonField struct {
	key   string
	value any
}

func (o jsonObject) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, f := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		key, _ := json.Marshal(f.key)
		value, err := marshalPlain(f.value)
		if err != nil {
			return nil, err
		}
		b.Write(key)
		b.WriteByte(':')
		b.Write(value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// marshalPlain leaves < and > as they are.
func marshalPlain(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimSpace(b.Bytes()), err
}

// forms are what the decoder demands of single values beyond type and tags, by key.
var forms = map[string]jsonObject{
	"aws.region": {{"pattern", regionName.String()}},
	"aws.alias":  {{"pattern", aliasName.String()}, {"maxLength", maxAlias}, {"not", jsonObject{{"pattern", "^alias/aws/"}}}},
	"aws.former_aliases": {{"items", jsonObject{{"type", "string"}, {"pattern", aliasName.String()}, {"maxLength", maxAlias},
		{"not", jsonObject{{"pattern", "^alias/aws/"}}}}}},
	"aws.description":   {{"maxLength", maxDescription}},
	"aws.active_key_id": {{"pattern", "^$|" + keyID.String() + "|" + keyARN.String()}},
	"aws.policy_file":   {{"minLength", 1}},
	"aws.previous_name": {{"pattern", "^$|" + groupName.String()}},
	"aws.tags": {{"maxProperties", maxTags}, {"propertyNames", jsonObject{{"pattern", tagText.String()}, {"minLength", 1}, {"maxLength", maxTagKey},
		{"not", jsonObject{{"pattern", "^([Aa][Ww][Ss]|byokd):"}}}}}},
	"aws.tags.TAG":             {{"pattern", tagText.String()}, {"maxLength", maxTagValue}},
	"events.region":            {{"pattern", "^$|" + regionName.String()}},
	"events.source":            {{"minLength", 1}, {"not", jsonObject{{"pattern", `^aws\.`}}}},
	"credentials.NAME.account": {{"pattern", "^$|" + accountID.String()}},
	"hooks":                    {{"propertyNames", jsonObject{{"enum", append([]string{"*"}, detailTypes...)}}}},
}

func init() {
	for name := range new(Quotas).Keys() {
		forms["aws.quotas."+name] = jsonObject{{"exclusiveMinimum", 0}}
	}
}

// durationPattern is what ParseDuration takes.
const durationPattern = `^(0|\+?(([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h|d|w))+)$`

// rules are what the decoder demands of keys together, by table.
func rules(table string) jsonObject {
	given := func(key string) jsonObject {
		return jsonObject{{"required", []string{key}}, {"properties", jsonObject{{key, jsonObject{{"minLength", 1}}}}}}
	}
	is := func(key string, value any) jsonObject {
		return jsonObject{{"required", []string{key}}, {"properties", jsonObject{{key, jsonObject{{"const", value}}}}}}
	}
	switch table {
	case "hsm.NAME":
		return jsonObject{
			{"required", []string{"module"}},
			{"oneOf", []any{given("pin_file"), given("pin_credential")}},
			{"anyOf", []any{given("token_label"), given("token_serial")}},
		}
	case "credentials.NAME":
		return jsonObject{{"oneOf", []any{given("access_key_csv"), given("access_key_credential"), given("profile"), given("credential_process"), is("default_chain", true)}}}
	case "rotation":
		return jsonObject{
			{"anyOf", []any{given("every"), given("schedule"), is("enabled", false)}},
			{"not", jsonObject{{"anyOf", []any{
				jsonObject{{"allOf", []any{given("every"), given("schedule")}}},
				jsonObject{{"allOf", []any{is("mode", "in-place"), is("on_expiry", "let-expire")}}},
				jsonObject{{"allOf", []any{is("mode", "in-place"), is("disable_previous", true)}}},
			}}}},
		}
	case "group aws":
		return jsonObject{{"required", []string{"region", "alias"}}}
	case "group":
		return jsonObject{{"required", []string{"rotation", "aws"}}}
	}
	return nil
}

// schema makes the JSON schema of a file.
func (r *reference) schema() []byte {
	byName := make(map[string]*refTable)
	for _, table := range r.tables {
		byName[table.name] = table
	}
	var object func(table *refTable) jsonObject
	children := func(name string) []string {
		var direct []string
		for _, table := range r.tables {
			if rest, ok := strings.CutPrefix(table.name, name); ok && table.name != name && (name == "" || strings.HasPrefix(rest, ".")) {
				parts := strings.Split(strings.TrimPrefix(rest, "."), ".")
				if len(parts) == 1 || len(parts) == 2 && (parts[1] == "NAME" || parts[1] == "REGION") {
					direct = append(direct, table.name)
				}
			}
		}
		return direct
	}
	object = func(table *refTable) jsonObject {
		o := jsonObject{{"type", "object"}}
		if table.doc != "" {
			o = append(o, jsonField{"description", table.doc})
		}
		if table.names {
			k := table.keys[0]
			o = append(o, jsonField{"description", k.description(table.name)})
			return append(append(o, forms[table.name]...), jsonField{"additionalProperties", valueSchema(k)})
		}
		properties := jsonObject{}
		for _, k := range table.keys {
			properties = append(properties, jsonField{k.name, valueSchema(k)})
		}
		for _, name := range children(table.name) {
			child := byName[name]
			key := strings.TrimPrefix(strings.TrimPrefix(name, table.name), ".")
			if key, of, ok := strings.Cut(key, "."); ok {
				pattern := tableName
				if of == "REGION" {
					pattern = regionName
				}
				properties = append(properties, jsonField{key, jsonObject{{"type", "object"}, {"propertyNames", jsonObject{{"pattern", pattern.String()}}},
					{"additionalProperties", object(child)}}})
				continue
			}
			properties = append(properties, jsonField{key, object(child)})
		}
		o = append(o, jsonField{"properties", properties}, jsonField{"additionalProperties", false})
		name := table.name
		if r.file == "group" && (name == "aws" || name == "") {
			name = strings.TrimSpace("group " + name)
		}
		return append(o, rules(name)...)
	}
	s := jsonObject{{"$schema", "http://json-schema.org/draft-07/schema#"}, {"title", r.title}}
	b, err := marshalPlain(append(s, object(byName[""])...))
	if err != nil {
		panic(err)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", "  "); err != nil {
		panic(err)
	}
	out.WriteByte('\n')
	return out.Bytes()
}

// description is the key's text for an editor.
func (k *refKey) description(name string) string {
	s := name + " " + k.doc
	if k.def != "" && k.value == nil {
		s += " Default: " + k.def + "."
	}
	return strings.TrimSpace(s + " " + k.note)
}

func valueSchema(k *refKey) jsonObject {
	var o jsonObject
	if !k.table.names {
		o = append(o, jsonField{"description", k.description(k.name)})
	}
	t := k.typ
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case t == reflect.TypeFor[Attribute]():
		return append(o, jsonField{"type", []string{"boolean", "integer", "string"}}, jsonField{"minimum", 0})
	case t == reflect.TypeFor[Command]():
		program := jsonObject{{"type", "string"}, {"pattern", "^/"}}
		return append(o, jsonField{"oneOf", []any{program,
			jsonObject{{"type", "array"}, {"minItems", 1}, {"items", jsonObject{{"type", "string"}}}}}})
	case t == durationType:
		p := durationPattern
		if k.field.optional {
			p += "|^$"
		}
		o = append(o, jsonField{"type", "string"}, jsonField{"pattern", p})
	case t.Kind() == reflect.String:
		o = append(o, jsonField{"type", "string"})
		if k.field.max > 0 {
			o = append(o, jsonField{"maxLength", k.field.max})
		}
	case t.Kind() == reflect.Bool:
		o = append(o, jsonField{"type", "boolean"})
	case t.Kind() == reflect.Int:
		o = append(o, jsonField{"type", "integer"})
		if k.field.min != "" {
			n, _ := strconv.Atoi(k.field.min)
			o = append(o, jsonField{"minimum", n})
		}
	case t.Kind() == reflect.Float64:
		o = append(o, jsonField{"type", "number"})
	case t.Kind() == reflect.Slice:
		o = append(o, jsonField{"type", "array"})
	default:
		panic("no schema for " + t.String())
	}
	if k.field.enum != nil {
		var enum []any
		for _, e := range k.field.enum {
			if n, err := strconv.Atoi(e); err == nil && t.Kind() == reflect.Int {
				enum = append(enum, n)
			} else {
				enum = append(enum, e)
			}
		}
		o = append(o, jsonField{"enum", enum})
	}
	if k.value != nil {
		o = append(o, jsonField{"default", k.value})
	}
	return append(o, forms[k.full()]...)
}

// markdown makes the reference of a file for docs/configuration.md.
func (r *reference) markdown(out *bytes.Buffer) {
	for _, table := range r.tables {
		if len(table.keys) == 0 {
			continue
		}
		heading := "The top of the file"
		if table.name != "" {
			heading = "[" + table.name + "]"
		}
		fmt.Fprintf(out, "### %s\n\n| key | meaning | default | example |\n|---|---|---|---|\n", heading)
		for _, k := range table.keys {
			cell := func(s string) string { return strings.ReplaceAll(s, "|", `\|`) }
			code := func(s string) string { return "`" + s + "`" }
			name := code(k.name)
			if table.names {
				name = k.name
			}
			def := k.def
			switch {
			case k.required:
				def = "required"
			case k.value != nil:
				def = code(tomlValue(k.value)) + strings.TrimPrefix(k.def, tomlValue(k.value))
			}
			fmt.Fprintf(out, "| %s | %s | %s | %s |\n", name, cell(k.meaning()), cell(def), cell(code(k.example)))
		}
		out.WriteByte('\n')
	}
}

// meaning is a key's text, with the values that it may have.
func (k *refKey) meaning() string {
	s := k.doc
	if len(k.field.enum) > 1 {
		quoted := make([]string, len(k.field.enum))
		for i, e := range k.field.enum {
			quoted[i] = strconv.Quote(e)
		}
		s += " One of " + list(quoted) + "."
	}
	if k.field.min != "" && k.field.min != "0" {
		s += " At least " + k.field.min + "."
	}
	return strings.TrimSpace(s + " " + k.note)
}

// man makes a page of section 5, with an example, which packaging/build puts in.
func (r *reference) man(name, intro, example, see string) []byte {
	escape := func(s string) string {
		s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
		if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
			s = `\&` + s
		}
		return s
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, ".\\\" Made by go test ./config -run TestReference -update\n.TH %s 5 \"\" byokd \"byokd's manual\"\n", strings.ToUpper(escape(name)))
	fmt.Fprintf(&out, ".SH NAME\n%s \\- %s\n.SH DESCRIPTION\n", escape(name), escape(strings.SplitN(r.title, ", ", 2)[1]))
	for _, paragraph := range strings.Split(intro, "\n\n") {
		fmt.Fprintf(&out, "%s\n.PP\n", escape(strings.Join(strings.Fields(paragraph), " ")))
	}
	for _, table := range r.tables {
		if len(table.keys) == 0 {
			continue
		}
		heading := "The top of the file"
		if table.name != "" {
			heading = "[" + table.name + "]"
		}
		fmt.Fprintf(&out, ".SH %s\n", escape(heading))
		for _, k := range table.keys {
			fmt.Fprintf(&out, ".TP\n.B %s\n%s\n", escape(k.name), escape(k.meaning()))
			switch {
			case k.required:
				out.WriteString("Required.\n")
			case k.def != "":
				fmt.Fprintf(&out, "Default: %s.\n", escape(k.def))
			}
			fmt.Fprintf(&out, "Example: %s\n", escape(k.example))
		}
	}
	fmt.Fprintf(&out, ".SH EXAMPLE\nAll keys, with their defaults or an example:\n.PP\n.nf\n@include docs/examples/%s\n.fi\n", example)
	fmt.Fprintf(&out, ".SH SEE ALSO\n.BR byokd (8),\n.BR %s (5),\n.BR byokctl\\-check (1)\n", see)
	return out.Bytes()
}

const configurationHead = `# Configuration

Made by ` + "`go test ./config -run TestReference -update`" + ` of the comments in ` + "`config`" + ` and of
[docs/examples](examples): change those. How to bring files to a machine:
[configuration-management.md](configuration-management.md). For editors and CI there
are JSON schemas of both files in [schema](schema).

Check a change before it goes live: ` + "`byokctl check`" + `. Every mistake is told at once, with
file, line, column, key and what to do; unknown keys are mistakes.

Durations are written ` + "`\"90d\"`, `\"2w\"`, `\"12h\"`, `\"30m\"`" + ` (minutes), ` + "`\"1s\"`" + ` and mixtures such as
` + "`\"1d12h\"`" + `; a day is 24 hours, and there are no months. Relative paths count from the file
that they stand in. A secret file (PIN, CSV) belongs to root or byokd's user and has no
group or other bit; of all other files nobody but the owner may write to them or to their
directory.
`

func TestReference(t *testing.T) {
	daemon, group := references(t)
	fresh(t, "../docs/schema/byokd.schema.json", daemon.schema())
	fresh(t, "../docs/schema/group.schema.json", group.schema())

	var page bytes.Buffer
	page.WriteString(configurationHead)
	page.WriteString("\n## byokd.toml\n\n`/etc/byokd/byokd.toml` is the daemon's own configuration. A reload (SIGHUP) takes over\nwhat does not say that it needs a restart; a bad file changes nothing.\n\n")
	daemon.markdown(&page)
	page.WriteString("## groups.d/NAME.toml\n\nEach file is a key group: a container for keys and the template that makes them. The stem\nof the file is the group's name, of a-z, 0-9 and -, 63 characters at most; names with a\nleading dot are not read. A changed file counts by itself.\n\n")
	group.markdown(&page)
	fresh(t, "../docs/configuration.md", append(bytes.TrimRight(page.Bytes(), "\n"), '\n'))

	const durations = `Durations are written "90d", "2w", "12h", "30m" (minutes), "1s" and mixtures such as "1d12h"; a day is 24 hours, and there are no months. Relative paths count from the file that they stand in.`
	fresh(t, "../docs/man/byokd.toml.5", daemon.man("byokd.toml",
		"/etc/byokd/byokd.toml says where HSMs and credentials are and how byokd behaves. The key groups have files of their own. SIGHUP takes over what does not say that it needs a restart; a bad file changes nothing.\n\n"+durations+
			"\n\nFiles with secrets belong to root or byokd's user and have no mode bit for group or others; files that systemd passes as credentials need none of this.",
		"byokd.toml", "byokd.group"))
	fresh(t, "../docs/man/byokd.group.5", group.man("byokd.group",
		"Each file /etc/byokd/groups.d/NAME.toml is a key group: a container for keys and the template that makes them. NAME is made of lower-case letters, digits and hyphens. A new file makes the first key; a changed one is synchronized to AWS once it has been unchanged for a second; one that goes ends the rotations and touches no key. A bad file is reported, and the last good definition stays in force.\n\n"+durations,
		"groups.d/payments.toml", "byokd.toml"))
}

// schemas compiles both schemas.
func schemas(t *testing.T) (daemon, group *jsonschema.Schema) {
	t.Helper()
	compile := func(path string) *jsonschema.Schema {
		s, err := jsonschema.NewCompiler().Compile(path)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	return compile("../docs/schema/byokd.schema.json"), compile("../docs/schema/group.schema.json")
}

// validate holds a TOML document against a schema, as an editor does.
func validate(s *jsonschema.Schema, data []byte) error {
	var tree map[string]any
	if err := toml.Unmarshal(bytes.TrimPrefix(data, []byte("\ufeff")), &tree); err != nil {
		return err
	}
	b, err := json.Marshal(tree)
	if err != nil {
		return err
	}
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		return err
	}
	return s.Validate(document)
}

// Each example is good for the schema.
func TestSchemaTakesTheExamples(t *testing.T) {
	daemon, group := schemas(t)
	for path, s := range map[string]*jsonschema.Schema{
		"../docs/examples/byokd.toml":              daemon,
		"testdata/contract/byokd.toml":             daemon,
		"../docs/examples/groups.d/payments.toml":  group,
		"testdata/contract/groups.d/payments.toml": group,
	} {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := validate(s, data); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// cannotSay are the mistakes, by archive, that a schema cannot express: they are
// about files and their permissions, other groups, lengths of time, or what a text
// means; what is not there yet is none for a schema. All others are refused by both.
var cannotSay = []string{
	"active-key", "active-key-account", "alias-claimed-twice", "every-too-short", "group-file-writable", "group-names", "groups-dir-writable",
	"hook-writable", "keep-valid-for-over-365d", "keep-valid-for-shorter-than-every", "keep-valid-for-shorter-than-schedule",
	"keep-valid-for-zero", "kms-endpoint-two-regions", "no-hsm", "pin-directory-writable",
	"policy-characters", "policy-directory-writable", "policy-missing", "policy-not-json", "policy-not-object", "policy-too-large",
	"policy-writable", "retirement-order", "schedule-bad", "schedule-every", "schedule-never-fires", "schedule-tz",
	"timezone-local", "timezone-unknown", "which-hsm",
}

// A file without a mistake is good for the schema too, and one with a mistake that
// it can express is not.
func TestSchemaAndDecoder(t *testing.T) {
	daemon, group := schemas(t)
	archives, err := filepath.Glob("testdata/mistakes/*.txtar")
	if err != nil || len(archives) == 0 {
		t.Fatalf("no archives: %v", err)
	}
	both, unsaid := 0, make(map[string]bool)
	for _, archive := range archives {
		a, err := txtar.ParseFile(archive)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(filepath.Base(archive), ".txtar")
		var want string
		for _, f := range a.Files {
			if f.Name == "want" {
				want = string(f.Data)
			}
		}
		for _, f := range a.Files {
			s := group
			if f.Name == "byokd.toml" {
				s = daemon
			} else if !strings.HasPrefix(f.Name, "groups.d/") || strings.HasPrefix(f.Name, "groups.d/.") || !strings.HasSuffix(f.Name, ".toml") {
				continue
			}
			err := validate(s, bytes.ReplaceAll(f.Data, []byte("$DIR"), []byte("/etc/byokd")))
			mistaken := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(f.Name) + `\b`).MatchString(want)
			switch {
			case err != nil && !mistaken:
				t.Errorf("%s, %s: the decoder takes it, the schema does not: %v", name, f.Name, err)
			case err != nil:
				both++
			case mistaken:
				if unsaid[name] = true; !slices.Contains(cannotSay, name) && !strings.HasPrefix(name, "not-yet-") {
					t.Errorf("%s, %s: the schema takes it, the decoder does not", name, f.Name)
				}
			}
		}
	}
	for _, name := range cannotSay {
		if !unsaid[name] {
			t.Errorf("%s: the schema says it: take it out of cannotSay", name)
		}
	}
	t.Logf("%d files with mistakes are refused by both", both)
}

// The schema takes the durations that the decoder takes, and no others but those
// that are too long.
func TestSchemaDurations(t *testing.T) {
	pattern := regexp.MustCompile(durationPattern)
	const alphabet = "01.+-hmsdwM"
	var try func(s string)
	try = func(s string) {
		if _, err := ParseDuration(s); (err == nil) != pattern.MatchString(s) {
			t.Errorf("%q: the decoder says %v, the schema %v", s, err, pattern.MatchString(s))
		}
		if len(s) < 4 {
			for _, c := range alphabet {
				try(s + string(c))
			}
		}
	}
	try("")
	for _, s := range []string{"90d", "1w2d12h", "30m", "1.5h", "100µs", "5 d", "1mo", "1y", "1d 2h"} {
		try(s)
	}
}
