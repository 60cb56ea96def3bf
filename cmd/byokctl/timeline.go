package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"byokd/daemon/control"

	"github.com/spf13/cobra"
)

// timelineGroups is how many groups are drawn unless they are asked for.
const timelineGroups = 20

func (t *tool) timelineCommand() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "timeline [GROUP...]",
		Short: "Draw each group's generations as bars over time",
		Long: `Draw each group's generations as bars over time, worst groups first: when each was
made, active, superseded, disabled, and when it expires; and the next rotation.`,
		ValidArgsFunction: t.completeGroups,
		RunE: func(c *cobra.Command, groups []string) error {
			return t.timeline(c.Context(), groups, all)
		},
	}
	c.Flags().BoolVar(&all, "all", false, fmt.Sprintf("draw all groups, not the worst %d", timelineGroups))
	t.jsonFlag(c)
	return c
}

func (t *tool) timeline(ctx context.Context, names []string, all bool) error {
	client, err := t.connect()
	if err != nil {
		return err
	}
	defer client.Close()
	timelines, err := client.Timeline(ctx, names...)
	if err != nil {
		return err
	}
	if t.json {
		return t.printJSON(control.List[control.Timeline](timelines))
	}
	if len(timelines) == 0 {
		fmt.Fprintln(t.out, noGroups)
		return nil
	}
	left := 0
	if len(names) == 0 && !all && len(timelines) > timelineGroups {
		left = len(timelines) - timelineGroups
		timelines = timelines[:timelineGroups]
	}
	s := newScreen(t.out)
	if _, err := fmt.Fprint(s, s.timelines(timelines, time.Now())); err != nil {
		return err
	}
	if left > 0 {
		fmt.Fprintf(s, "%d more groups; name those to be drawn, or say --all\n", left)
	}
	return nil
}

// strokes are how segments and moments are drawn, in ASCII and otherwise.
var strokes = map[string]struct {
	ascii, fancy rune
	color        color
}{
	control.SegmentMade:     {'-', '░', cyan},
	control.SegmentActive:   {'#', '█', green},
	control.SegmentPrevious: {'=', '▒', blue},
	control.SegmentDisabled: {':', '╌', dim},
	control.SegmentGone:     {' ', ' ', 0},
	control.SegmentAhead:    {'.', '┄', dim},
	markExpires:             {'X', '✕', red},
	markNext:                {'>', '▸', yellow},
	markNow:                 {'|', '│', bold},
}

const (
	markExpires = "expires or is deleted"
	markNext    = "next rotation"
	markNow     = "now"
)

// A cell is one column of a line that is drawn.
type cell struct {
	r     rune
	color color
}

// timelines draws timelines on one axis, as wide as the screen.
func (s screen) timelines(timelines []control.Timeline, now time.Time) string {
	const label = 24 // "   12  pending-deletion  "
	width := max(s.width-label-1, 20)
	from, to := control.Span(timelines, now)
	column := func(t time.Time) int {
		c := int(float64(width) * float64(t.Sub(from)) / float64(to.Sub(from)))
		return min(max(c, 0), width-1)
	}
	line := func(cells []cell) string {
		var b strings.Builder
		for i := 0; i < len(cells); {
			j := i
			var run []rune
			for ; j < len(cells) && cells[j].color == cells[i].color; j++ {
				run = append(run, max(cells[j].r, ' '))
			}
			b.WriteString(s.paint(cells[i].color, string(run)))
			i = j
		}
		return b.String()
	}
	stroke := func(kind string) cell {
		k := strokes[kind]
		if s.fancy {
			return cell{k.fancy, k.color}
		}
		return cell{k.ascii, k.color}
	}
	blank := func() []cell {
		cells := make([]cell, width)
		cells[column(now)] = stroke(markNow)
		return cells
	}
	var b strings.Builder
	out := func(label string, cells []cell) {
		b.WriteString(strings.TrimRight(label+line(cells), " ") + "\n")
	}
	axis, ticks := axis(from, to, width, column)
	out(strings.Repeat(" ", label), axis)
	for i, l := range timelines {
		if i > 0 {
			b.WriteByte('\n')
		}
		title := oneLine(l.Group)
		head := s.paint(bold, s.cut(title, label-2-columns(l.State)-2)) + "  " + s.paint(stateColor(l.State), l.State)
		gap := label - columns(s.cut(title, label-2-columns(l.State)-2)) - 2 - columns(l.State)
		cells := blank()
		for _, c := range ticks {
			if cells[c].r == 0 {
				cells[c] = cell{tick(s.fancy), dim}
			}
		}
		if !l.NextRotation.IsZero() {
			cells[column(l.NextRotation.Time)] = stroke(markNext)
		}
		out(head+strings.Repeat(" ", max(gap, 1)), cells)
		for _, p := range l.Generations {
			cells := blank()
			for _, seg := range p.Segments(now) {
				first, last := column(seg.From), column(seg.To)
				if first == column(now) && first > 0 && seg.Kind != control.SegmentAhead {
					first-- // what has just begun is seen beside now
				}
				for c := first; c <= last; c++ {
					// A short one is seen all the same; a later one begins where it begins.
					if stroke(seg.Kind).r != ' ' && (c < last || c == first || seg.To.Equal(now) && seg.Kind != control.SegmentAhead) && cells[c].r != stroke(markNow).r {
						cells[c] = stroke(seg.Kind)
					}
				}
				if seg.Kind == control.SegmentAhead {
					cells[last] = stroke(markExpires)
				}
			}
			state := s.paint(stateColor(p.State), p.State)
			out(fmt.Sprintf("%5d  %s%s", p.Generation, state, strings.Repeat(" ", max(label-7-columns(p.State), 1))), cells)
		}
		if len(l.Generations) == 0 {
			b.WriteString("       no generations yet\n")
		}
	}
	b.WriteByte('\n')
	used := 0
	for _, kind := range []string{control.SegmentMade, control.SegmentActive, control.SegmentPrevious, control.SegmentDisabled, markExpires, markNext, markNow} {
		c := stroke(kind)
		entry := string(c.r) + " " + kind
		switch {
		case used == 0:
		case used+3+columns(entry) > s.width:
			b.WriteByte('\n')
			used = 0
		default:
			b.WriteString("   ")
			used += 3
		}
		b.WriteString(s.paint(c.color, string(c.r)) + " " + kind)
		used += columns(entry)
	}
	b.WriteByte('\n')
	return b.String()
}

func tick(fancy bool) rune {
	if fancy {
		return '·'
	}
	return '.'
}

// axis writes dates above the columns where they begin, as many as there is room
// for, and returns the columns that they stand at.
func axis(from, to time.Time, width int, column func(time.Time) int) (cells []cell, at []int) {
	cells = make([]cell, width)
	dates, layout := control.Ticks(from, to, width/10)
	if layout == time.DateOnly { // with less room some would be left out between others
		dates, layout = control.Ticks(from, to, width/(len(layout)+2))
	}
	free := 0
	for _, t := range dates {
		c := column(t)
		if c < free || c+len(layout) > width {
			continue
		}
		for i, r := range t.Format(layout) {
			cells[c+i] = cell{r, dim}
		}
		free = c + len(layout) + 2
		at = append(at, c)
	}
	return cells, at
}
