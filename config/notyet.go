package config

import "fmt"

// A later is a key whose feature does not work yet. Its default is always
// accepted; used reports whether the value is another. The mistakes in a value
// come first: where one is found, nothing is said of "not yet".
//
// When a feature is built, its line here goes, and nothing else needs to.
type later[T any] struct {
	key  string
	used func(*T) bool
	hint string // what may stand there; "": the key can only be left out
}

// check records the problem, if there is one.
func (l later[T]) check(d *document, v *T) {
	if !d.okBelow(l.key) || !l.used(v) {
		return
	}
	hint := ""
	if l.hint != "" {
		hint = fmt.Sprintf(", or write %s", l.hint)
	}
	d.problemf(l.key, "this value is not yet supported: leave the key out%s", hint)
}

var laterGroup = []later[Group]{
	{"rotation.grants", func(g *Group) bool { return g.Rotation.Grants != "warn" }, `"warn"`},
}
