package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// A Problem is one mistake in a configuration file. Its text never holds a
// secret.
type Problem struct {
	File   string `json:"file"`   // the file that the mistake is in
	Line   int    `json:"line"`   // counted from 1; 0: the file as a whole
	Column int    `json:"column"` // in bytes, counted from 1; 0: the file as a whole
	Key    string `json:"key"`    // dotted TOML key; "": none, as for a syntax error
	Msg    string `json:"msg"`    // what is wrong and what to do
}

// String returns "file:line:column: key: what is wrong and what to do", without
// the parts that are not known.
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
	}
	if p.Key != "" {
		b.WriteString(": " + p.Key)
	}
	b.WriteString(": " + p.Msg)
	return b.String()
}

// Problems are all the mistakes that were found, sorted by file, line and
// column. As an error it prints one Problem a line.
type Problems []Problem

func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// sort orders the problems as they stand in their files.
func (ps Problems) sort() {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(
			cmp.Compare(a.File, b.File),
			cmp.Compare(a.Line, b.Line),
			cmp.Compare(a.Column, b.Column),
			cmp.Compare(a.Key, b.Key),
			cmp.Compare(a.Msg, b.Msg),
		)
	})
}
