package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"byokd/daemon/control"
)

// A table prints aligned columns, with notes under a row that do not count for
// the columns' width.
type table struct {
	rows  [][]string       // the first is the header
	notes map[int][]string // by row

	// optional are columns, from 0, that are left out in this order on a
	// terminal that is too narrow.
	optional []int

	// states is the column, from 0, whose cells are coloured; -1: none is.
	states int
}

func newTable(header ...string) *table {
	t := &table{notes: make(map[int][]string), states: -1}
	for i, name := range header {
		if name == "STATE" {
			t.states = i
		}
	}
	t.row(header...)
	return t
}

func (t *table) row(cells ...string) { t.rows = append(t.rows, cells) }

// note adds a line under the last row.
func (t *table) note(s string) {
	last := len(t.rows) - 1
	t.notes[last] = append(t.notes[last], s)
}

func (t *table) print(w io.Writer) error { return t.printOn(newScreen(w)) }

func (t *table) printOn(s screen) error {
	widths := make([]int, len(t.rows[0]))
	for _, row := range t.rows {
		for i, cell := range row {
			widths[i] = max(widths[i], columns(cell))
		}
	}
	shown := make([]bool, len(widths))
	total := -2
	for i, n := range widths {
		shown[i] = true
		total += n + 2
	}
	for _, i := range t.optional {
		if s.live && total > s.width {
			shown[i] = false
			total -= widths[i] + 2
		}
	}
	for i, row := range t.rows {
		var line strings.Builder
		gap := 0
		for j, cell := range row {
			if !shown[j] {
				continue
			}
			line.WriteString(strings.Repeat(" ", gap))
			gap = widths[j] + 2 - columns(cell)
			switch {
			case i == 0:
				cell = s.paint(bold, cell)
			case j == t.states:
				cell = s.paint(stateColor(cell), cell)
			}
			line.WriteString(cell)
		}
		for _, n := range t.notes[i] {
			line.WriteString("\n  " + s.wrap(oneLine(n), 2))
		}
		if _, err := fmt.Fprintln(s, line.String()); err != nil {
			return err
		}
	}
	return nil
}

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

func minute(t control.Time) string { return t.Minute() }
