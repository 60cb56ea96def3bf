package control_test

import (
	"testing"
	"time"

	"byokd/daemon/control"

	"github.com/google/go-cmp/cmp"
)

func TestSegments(t *testing.T) {
	day := func(n int) control.Time { return control.At(at.AddDate(0, 0, n)) }
	now := day(100)
	type s = control.Segment
	seg := func(kind string, from, to int) s { return s{Kind: kind, From: day(from).Time, To: day(to).Time} }
	tests := []struct {
		name string
		in   control.Period
		want []s
	}{
		{"nothing known", control.Period{}, nil},
		{"in the future", control.Period{MadeAt: day(101)}, nil},
		{"made", control.Period{MadeAt: day(10)}, []s{seg("made", 10, 100)}},
		{"active", control.Period{MadeAt: day(10), ActiveFrom: day(11)}, []s{seg("made", 10, 11), seg("active", 11, 100)}},
		{"made and active at once", control.Period{MadeAt: day(10), ActiveFrom: day(10)}, []s{seg("active", 10, 100)}},
		{"adopted, with no time of its making", control.Period{ActiveFrom: day(10)}, []s{seg("active", 10, 100)}},
		{"active, expires", control.Period{MadeAt: day(10), ActiveFrom: day(11), ValidTo: day(375)},
			[]s{seg("made", 10, 11), seg("active", 11, 100), seg("ahead", 100, 375)}},
		{"previous, then disabled, pending deletion", control.Period{ActiveFrom: day(11), ActiveTo: day(40), DisabledAt: day(41), DeletionDate: day(120), ValidTo: day(375)},
			[]s{seg("active", 11, 40), seg("previous", 40, 41), seg("disabled", 41, 100), seg("ahead", 100, 120)}},
		{"expired while active", control.Period{ActiveFrom: day(11), ValidTo: day(50)}, []s{seg("active", 11, 50), seg("gone", 50, 100)}},
		{"material deleted", control.Period{ActiveFrom: day(11), ActiveTo: day(40), MaterialDeletedAt: day(60), ValidTo: day(375)},
			[]s{seg("active", 11, 40), seg("previous", 40, 60), seg("gone", 60, 100)}},
		{"destroyed", control.Period{State: "destroyed", MadeAt: day(10), DeletionDate: day(107)}, []s{seg("gone", 10, 100)}},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(tt.want, tt.in.Segments(now.Time)); diff != "" {
			t.Errorf("%s (-want +got)\n%s", tt.name, diff)
		}
	}
}

func TestSpan(t *testing.T) {
	day := func(n int) control.Time { return control.At(at.AddDate(0, 0, n)) }
	from, to := control.Span(nil, at)
	if !from.Equal(at.Add(-90*time.Second)) || !to.Equal(at.Add(time.Hour)) {
		t.Errorf("nothing: %s to %s", from, to)
	}
	from, to = control.Span([]control.Timeline{
		{NextRotation: day(30), Generations: []control.Period{{MadeAt: day(-60), ActiveFrom: day(-59), ActiveTo: day(-10)}}},
		{Generations: []control.Period{{MadeAt: day(-20), ValidTo: day(345)}, {State: "destroyed", DeletionDate: day(700)}}},
	}, at)
	if !from.Equal(day(-60).Add(-405*24*time.Hour/40)) || !to.Equal(day(345).Time) {
		t.Errorf("%s to %s", from, to)
	}
}

func TestTicks(t *testing.T) {
	tests := []struct {
		span time.Duration
		most int
		want []string
	}{
		{time.Hour, 5, []string{"18:00", "19:00"}},
		{20 * time.Hour, 5, []string{"18:00", "00:00", "06:00", "12:00"}},
		{4 * 24 * time.Hour, 5, []string{"2026-11-24", "2026-11-25", "2026-11-26", "2026-11-27"}},
		{365 * 24 * time.Hour, 5, []string{"2027-01", "2027-04", "2027-07", "2027-10"}},
		{365 * 24 * time.Hour, 3, []string{"2027-01", "2027-07"}},
		{10 * 365 * 24 * time.Hour, 5, []string{"2028", "2030", "2032", "2034", "2036"}},
		{100 * 365 * 24 * time.Hour, 5, []string{"2030", "2040", "2050", "2060", "2070", "2080", "2090", "2100", "2110", "2120"}},
	}
	for _, tt := range tests {
		ticks, layout := control.Ticks(at, at.Add(tt.span), tt.most)
		var got []string
		for _, tick := range ticks {
			got = append(got, tick.Format(layout))
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s, %d at most (-want +got)\n%s", tt.span, tt.most, diff)
		}
	}
}
