package main

import (
	"bytes"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"byokd/daemon/control"
)

// A table prints aligned columns, with notes under a row that do not count for
// the columns' width.
type table struct {
	buf   bytes.Buffer
	tab   *tabwriter.Writer
	rows  int
	notes map[int][]string // by row, from 1; 0 is the header
}

func newTable(header ...string) *table {
	t := &table{notes: make(map[int][]string)}
	t.tab = tabwriter.NewWriter(&t.buf, 0, 0, 2, ' ', 0)
	t.row(header...)
	return t
}

func (t *table) row(cells ...string) {
	io.WriteString(t.tab, strings.Join(cells, "\t")+"\n")
	t.rows++
}

// note adds a line under the last row.
func (t *table) note(s string) {
	t.notes[t.rows-1] = append(t.notes[t.rows-1], s)
}

func (t *table) print(w io.Writer) error {
	t.tab.Flush()
	i := 0
	for line := range strings.Lines(t.buf.String()) {
		out := strings.TrimRight(line, " \n") + "\n"
		for _, n := range t.notes[i] {
			out += "  " + oneLine(n) + "\n"
		}
		if _, err := io.WriteString(w, out); err != nil {
			return err
		}
		i++
	}
	return nil
}

// oneLine keeps a message from breaking the table.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// text, number and minute print what may be unknown.

func text(s control.String) string {
	if s == "" {
		return "-"
	}
	return oneLine(string(s))
}

func number(n *int) string {
	if n == nil {
		return "-"
	}
	return strconv.Itoa(*n)
}

func minute(t control.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02 15:04Z")
}
