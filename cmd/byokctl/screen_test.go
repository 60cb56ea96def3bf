package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"byokd/daemon/control"

	"github.com/google/go-cmp/cmp"
)

// TestTimelines draws generations in every stretch of their lives.
func TestTimelines(t *testing.T) {
	now := time.Date(2026, 11, 27, 0, 0, 0, 0, time.UTC)
	day := func(n int) control.Time { return control.At(now.AddDate(0, 0, n)) }
	timelines := []control.Timeline{
		{Group: "a-group-with-a-long-name", State: "expired", Generations: []control.Period{
			{Generation: 0, State: "previous", ActiveFrom: day(-300), ActiveTo: day(-250)},
			{Generation: 1, State: "expired", MadeAt: day(-260), ActiveFrom: day(-250), ValidTo: day(-20)}}},
		{Group: "payments", State: "ok", NextRotation: day(40), Generations: []control.Period{
			{Generation: 3, State: "disabled", MadeAt: day(-200), ActiveFrom: day(-200), ActiveTo: day(-100), DisabledAt: day(-90), ValidTo: day(100)},
			{Generation: 4, State: "pending-deletion", MadeAt: day(-100), ActiveFrom: day(-100), ActiveTo: day(-50), DeletionDate: day(7)},
			{Generation: 5, State: "active", MadeAt: day(-60), ActiveFrom: day(-50)},
			{Generation: 6, State: "pre-active", MadeAt: day(-1)}}},
		{Group: "new", State: "pending"},
	}
	const want = `                                 2026-04     2026-07     2026-10      2027-01
a-group-with~  expired           .           .           .       |    .
    0  previous          #######=================================|
    1  expired                --##############################   |

payments  ok                     .           .           .       |    >
    3  disabled                       ##############=::::::::::::|............X
    4  pending-deletion                             ######=======|X
    5  active                                            -#######|
    6  pre-active                                               -|

new  pending                     .           .           .       |    .
       no generations yet

- made   # active   = previous   : disabled   X expires or is deleted
> next rotation   | now
`
	s := screen{width: 80}
	if diff := cmp.Diff(want, s.timelines(timelines, now)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	for _, width := range []int{20, 60, 100, 250} {
		s := screen{width: width, color: true, fancy: true}
		for line := range strings.Lines(s.timelines(timelines, now)) {
			if line = strings.TrimSuffix(plainText(line), "\n"); columns(line) > max(width, 45) {
				t.Errorf("width %d: %d columns: %s", width, columns(line), line)
			}
		}
	}
}

// TestStatusScreen: a terminal's status ends with the screen, tells once what
// many have in common, and counts the healthy ones.
func TestStatusScreen(t *testing.T) {
	at := control.At(time.Date(2026, 11, 23, 18, 0, 0, 0, time.UTC))
	var groups []control.GroupStatus
	for i := range 1000 {
		g := control.GroupStatus{Group: fmt.Sprintf("bad-%03d", i), State: control.GroupFailing, NextRotation: at}
		g.Problems = []control.Problem{{Code: "hsm-unavailable", Message: "[hsm.main]: token unavailable", Since: at}}
		g.Alias = control.String("alias/" + g.Group)
		g.Problems = append(g.Problems, control.Problem{Code: "retrying", Message: fmt.Sprintf(
			"rotate job 019aa000-0000-7000-8000-%012d: %s: cannot be reached; tried again at 2026-11-23T18:00:%02dZ", i, g.Alias, i%60)})
		if i == 0 {
			g.Problems = append(g.Problems, control.Problem{Code: "waiting-policy", Message: "AWS does not take the key policy of this group, which is far too long for a line of a terminal"})
		}
		groups = append(groups, g)
	}
	for i := range 2000 {
		groups = append(groups, control.GroupStatus{Group: fmt.Sprintf("ok-%04d", i), State: control.GroupOK})
	}
	var b bytes.Buffer
	s := screen{Writer: &b, live: true, color: true, width: 80, height: 24}
	print := func(all bool) []string {
		t.Helper()
		b.Reset()
		if err := s.status(groups, []string{"events not sent: 3 waiting, 0 parked"}, "hsm1", all); err != nil {
			t.Fatal(err)
		}
		return strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	}
	lines := print(false)
	if len(lines) > s.height-1 {
		t.Errorf("%d lines on a screen of %d:\n%s", len(lines), s.height, &b)
	}
	for _, line := range lines {
		if columns(line) > s.width {
			t.Errorf("%d columns: %s", columns(line), line)
		}
	}
	text := plainText(b.String())
	for _, want := range []string{
		"hsm1: 3000 groups: 1000 failing, 2000 ok; next rotation bad-000, 2026-11-23\n18:00Z\n",
		"! 1000 groups have problem hsm-unavailable: [hsm.main]: token unavailable",
		"! 1000 groups have problem retrying: rotate job ...: alias/...: cannot be",
		"  waiting-policy: AWS does not take",
		"not listed: ", " failing, 2000 ok",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	if n := strings.Count(text, "hsm-unavailable"); n != 1 {
		t.Errorf("the common problem is told %d times", n)
	}
	if !strings.Contains(b.String(), "\033[31mfailing\033[0m") {
		t.Errorf("no colours: %q", b.String()[:200])
	}
	if lines := print(true); len(lines) < 3000 {
		t.Errorf("all: %d lines", len(lines))
	}

	// Without a terminal no bad one is left out, and there is no colour.
	s = screen{Writer: &b, width: 80, height: 24}
	if lines := print(false); len(lines) < 1000 || len(lines) > 1020 || strings.Contains(b.String(), "\033") {
		t.Errorf("plain: %d lines", len(lines))
	}
	// Few healthy ones are listed.
	groups = groups[len(groups)-5:]
	if lines := print(false); !strings.HasPrefix(lines[len(lines)-1], "ok-1999") {
		t.Errorf("few: %s", &b)
	}
}

// TestScreen: what decides on colours and characters.
func TestScreen(t *testing.T) {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		t.Setenv(name, "")
	}
	for locale, want := range map[string]bool{"C.UTF-8": true, "de_DE.utf8": true, "C": false, "de_DE.ISO-8859-1": false} {
		t.Setenv("LANG", locale)
		if utf8Locale() != want {
			t.Errorf("LANG=%s: %t", locale, !want)
		}
	}
	t.Setenv("COLUMNS", "132")
	if s := newScreen(new(bytes.Buffer)); s.live || s.color || s.fancy || s.width != 132 || s.height != plainHeight {
		t.Errorf("a buffer is a screen like %+v", s)
	}
	s := screen{live: true, width: 40}
	if got, want := s.wrap("one two three four five six seven eight nine ten", 4), "one two three four five six seven\n    eight nine ten"; got != want {
		t.Errorf("wrapped: %q, want %q", got, want)
	}
	if got := oneLine("a\n\033[2Jb\tc\x00"); got != "a ?[2Jb c?" {
		t.Errorf("one line: %q", got)
	}
	if got := s.cut("abcdef", 4); got != "abc~" {
		t.Errorf("cut: %q", got)
	}
}

// TestAxisLeavesNoDateOut: dates stand where they begin, one as far from the next as
// the others, as wide as the screen may be.
func TestAxisLeavesNoDateOut(t *testing.T) {
	from := time.Date(2026, 11, 27, 6, 17, 0, 0, time.UTC)
	dated := 0
	for days := 3; days < 120; days++ {
		for width := 40; width < 200; width++ {
			to := from.AddDate(0, 0, days)
			column := func(at time.Time) int { return int(float64(width) * float64(at.Sub(from)) / float64(to.Sub(from))) }
			_, at := axis(from, to, width, column)
			if _, layout := control.Ticks(from, to, width/10); layout != time.DateOnly || len(at) < 3 {
				continue
			}
			dated++
			for i := 2; i < len(at); i++ {
				if a, b := at[i-1]-at[i-2], at[i]-at[i-1]; 2*max(a, b) > 3*min(a, b) { // months differ in length
					t.Fatalf("%d days on %d columns: dates at %v", days, width, at)
				}
			}
		}
	}
	if dated == 0 {
		t.Error("no axis had dates")
	}
}
