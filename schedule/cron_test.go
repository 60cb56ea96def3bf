package schedule_test

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"byokd/schedule"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestParseRefuses(t *testing.T) {
	tests := []struct {
		spec, want string
	}{
		{"", "empty schedule"},
		{"  ", "empty schedule"},
		{"TZ=Europe/Berlin 0 3 * * *", "use the key timezone"},
		{"CRON_TZ=Europe/Berlin 0 3 * * *", "use the key timezone"},
		{"TZ=", "use the key timezone"},
		{" TZ=UTC", "use the key timezone"},
		{"CRON_TZ=", "use the key timezone"},
		{"@every 90d", "use the key every"},
		{"@every", "use the key every"},
		{"@every 1h", "use the key every"},
		{"@reboot", "unrecognized descriptor"},
		{"@", "unrecognized descriptor"},
		{"0 0 3 * * *", "leave the seconds out"},
		{"0 3 * *", "this one has 4"},
		{"0 3 * * * * *", "this one has 7"},
		{"60 3 * * *", "above maximum"},
		{"0 24 * * *", "above maximum"},
		{"0 3 0 * *", "below minimum"},
		{"0 3 * 13 *", "above maximum"},
		{"0 3 * * 7", "Sunday is 0 or SUN"},
		{"0 3 * * 5-7", "Sunday is 0 or SUN"},
		{"0 3 * * FOO", "parse int"},
		{"*/0 * * * *", "positive number"},
		{"5-1 * * * *", "beyond end"},
		{"1,,2 * * * *", "empty item"},
		{", * * * *", "empty item"},
		{"*-5 * * * *", "both sides"},
		{"0 3 30 2 *", "never fires"},
		{"0 3 31 2,4,6,9,11 *", "never fires"},
	}
	for _, tt := range tests {
		t.Run(tt.spec, func(t *testing.T) {
			s, err := schedule.Parse(tt.spec, time.UTC)
			if err == nil {
				t.Fatalf("Parse accepted it: next %v", s.Next(time.Now()))
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q does not say %q", err, tt.want)
			}
		})
	}
}

func TestNext(t *testing.T) {
	tests := []struct {
		spec, zone, from string
		want             []string
	}{
		{"0 3 1 */3 *", "Europe/Berlin", "2026-01-01T03:00+01:00", []string{"2026-04-01T03:00+02:00", "2026-07-01T03:00+02:00", "2026-10-01T03:00+02:00", "2027-01-01T03:00+01:00"}},
		{"@yearly", "UTC", "2026-01-01T00:00Z", []string{"2027-01-01T00:00Z"}},
		{"@annually", "UTC", "2026-01-01T00:00Z", []string{"2027-01-01T00:00Z"}},
		{"@monthly", "Asia/Tokyo", "2026-01-31T23:59+09:00", []string{"2026-02-01T00:00+09:00"}},
		{"@weekly", "UTC", "2026-11-23T00:00Z", []string{"2026-11-29T00:00Z"}},
		{"@daily", "UTC", "2026-11-23T00:00Z", []string{"2026-11-24T00:00Z"}},
		{"@midnight", "UTC", "2026-11-23T00:00Z", []string{"2026-11-24T00:00Z"}},
		{"@hourly", "UTC", "2026-11-23T00:00Z", []string{"2026-11-23T01:00Z"}},
		{" 0 3  * * SUN ", "UTC", "2026-11-23T00:00Z", []string{"2026-11-29T03:00Z"}},
		{"0 0 29 2 *", "UTC", "2096-02-29T00:00Z", []string{"2104-02-29T00:00Z"}},
		{"0 0 13 * 5", "UTC", "2026-11-01T00:00Z", []string{"2026-11-06T00:00Z", "2026-11-13T00:00Z", "2026-11-20T00:00Z", "2026-11-27T00:00Z", "2026-12-04T00:00Z", "2026-12-11T00:00Z", "2026-12-13T00:00Z"}},

		// Spring: the skipped reading ticks right after the gap, once.
		{"30 2 * * *", "Europe/Berlin", "2026-03-28T02:30+01:00", []string{"2026-03-29T03:00+02:00", "2026-03-30T02:30+02:00"}},
		{"*/10 2 * * *", "Europe/Berlin", "2026-03-28T02:50+01:00", []string{"2026-03-29T03:00+02:00", "2026-03-30T02:00+02:00"}},
		{"0 2,3 * * *", "Europe/Berlin", "2026-03-28T03:00+01:00", []string{"2026-03-29T03:00+02:00", "2026-03-30T02:00+02:00"}},
		{"15 2,3 * * *", "Europe/Berlin", "2026-03-28T03:15+01:00", []string{"2026-03-29T03:00+02:00", "2026-03-29T03:15+02:00"}},
		{"30 2 29 3 *", "Europe/Berlin", "2025-12-31T00:00+01:00", []string{"2026-03-29T03:00+02:00", "2027-03-29T02:30+02:00"}},
		{"0 0 * * *", "America/Sao_Paulo", "2018-11-03T00:00-03:00", []string{"2018-11-04T01:00-02:00", "2018-11-05T00:00-02:00"}},
		{"@daily", "Africa/Cairo", "2023-04-27T00:00+02:00", []string{"2023-04-28T01:00+03:00", "2023-04-29T00:00+03:00"}},
		{"15 2 * * *", "Australia/Lord_Howe", "2026-10-03T02:15+10:30", []string{"2026-10-04T02:30+11:00", "2026-10-05T02:15+11:00"}},
		// A day that a country left out.
		{"0 12 30 * *", "Pacific/Apia", "2011-11-30T12:00-10:00", []string{"2011-12-31T00:00+14:00", "2012-01-30T12:00+14:00"}},

		// Autumn: the first of the two.
		{"30 2 * * *", "Europe/Berlin", "2026-10-24T02:30+02:00", []string{"2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"}},
		{"30 1 * * *", "America/New_York", "2026-10-31T01:30-04:00", []string{"2026-11-01T01:30-04:00", "2026-11-02T01:30-05:00"}},
		{"45 1 * * *", "Australia/Lord_Howe", "2026-04-04T01:45+11:00", []string{"2026-04-05T01:45+11:00", "2026-04-06T01:45+10:30"}},
		{"30 23 * * *", "America/Sao_Paulo", "2018-02-16T23:30-02:00", []string{"2018-02-17T23:30-02:00", "2018-02-18T23:30-03:00"}},
		// Asked between the two passes.
		{"30 2 * * *", "Europe/Berlin", "2026-10-25T02:45+02:00", []string{"2026-10-26T02:30+01:00"}},

		// The last day of a leap year for which the zone has a rule but no table.
		{"0 */12 * * *", "Europe/Berlin", "2040-12-30T12:00+01:00", []string{"2040-12-31T00:00+01:00", "2040-12-31T12:00+01:00", "2041-01-01T00:00+01:00"}},
		{"0 3 31 12 *", "Australia/Sydney", "2040-12-31T12:00+11:00", []string{"2041-12-31T03:00+11:00"}},

		// Every hour: elapsed time.
		{"30 * * * *", "Europe/Berlin", "2026-03-29T00:30+01:00", []string{"2026-03-29T01:30+01:00", "2026-03-29T03:30+02:00"}},
		{"*/30 * * * *", "Europe/Berlin", "2026-03-29T01:00+01:00", []string{"2026-03-29T01:30+01:00", "2026-03-29T03:00+02:00"}},
		{"30 * * * *", "Europe/Berlin", "2026-10-25T01:30+02:00", []string{"2026-10-25T02:30+02:00", "2026-10-25T02:30+01:00", "2026-10-25T03:30+01:00"}},
		{"15 * * * *", "Australia/Lord_Howe", "2026-10-04T01:15+10:30", []string{"2026-10-04T02:30+11:00", "2026-10-04T03:15+11:00"}},
		{"0 * 30 12 *", "Pacific/Apia", "2011-12-29T23:00-10:00", []string{"2011-12-31T00:00+14:00", "2012-12-30T00:00+14:00"}},
	}
	for _, tt := range tests {
		t.Run(tt.spec+" "+tt.zone+" "+tt.from, func(t *testing.T) {
			s := parse(t, tt.spec, zone(t, tt.zone))
			tick := at(t, tt.from)
			for _, want := range tt.want {
				next := s.Next(tick)
				if got := next.Format("2006-01-02T15:04Z07:00"); got != want {
					t.Fatalf("Next(%v) = %s, want %s", tick, got, want)
				}
				tick = next
			}
		})
	}
}

// A field of a generated expression: its text and the values it stands for.
type field struct {
	text string
	has  map[int]bool
	star bool
}

func drawField(t *rapid.T, label string, low, high int) field {
	f := field{has: map[int]bool{}}
	add := func(from, to, step int) {
		for v := from; v <= to; v += step {
			f.has[v] = true
		}
	}
	switch rapid.IntRange(0, 3).Draw(t, label) {
	case 0:
		f.text, f.star = "*", true
		add(low, high, 1)
	case 1:
		step := rapid.IntRange(2, 20).Draw(t, label+" step")
		f.text = fmt.Sprintf("*/%d", step)
		add(low, high, step)
	case 2:
		from := rapid.IntRange(low, high).Draw(t, label+" from")
		to := rapid.IntRange(from, high).Draw(t, label+" to")
		f.text = fmt.Sprintf("%d-%d", from, to)
		add(from, to, 1)
	default:
		for _, v := range rapid.SliceOfN(rapid.IntRange(low, high), 1, 4).Draw(t, label+" list") {
			f.has[v] = true
		}
		var items []string
		for _, v := range slices.Sorted(maps.Keys(f.has)) {
			items = append(items, strconv.Itoa(v))
		}
		f.text = strings.Join(items, ",")
	}
	return f
}

var zones = []string{
	"UTC", "Europe/Berlin", "Europe/London", "Europe/Dublin", "America/New_York", "America/Los_Angeles", "America/St_Johns",
	"Australia/Lord_Howe", "Australia/Sydney", "America/Sao_Paulo", "Africa/Cairo", "Africa/Casablanca", "Asia/Beirut",
	"Asia/Tehran", "Asia/Gaza", "America/Havana", "America/Asuncion", "America/Santiago", "Antarctica/Troll", "Pacific/Apia",
	"Pacific/Kwajalein", "Asia/Kathmandu", "Asia/Pyongyang", "America/Caracas", "Pacific/Chatham", "Asia/Amman", "America/Nuuk",
}

// TestNextAgainstEveryMinute compares the schedule with an oracle that looks
// at the clock minute by minute, around changes of the clock in many zones.
func TestNextAgainstEveryMinute(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		loc, err := time.LoadLocation(rapid.SampledFrom(zones).Draw(t, "zone"))
		if err != nil {
			t.Fatal(err)
		}
		minutes := drawField(t, "minute", 0, 59)
		hours := drawField(t, "hour", 0, 23)
		days := drawField(t, "day", 1, 31)
		weekdays := drawField(t, "weekday", 0, 6)
		spec := strings.Join([]string{minutes.text, hours.text, days.text, "*", weekdays.text}, " ")
		everyHour := len(hours.has) == 24

		// Readings are times in UTC that show the same digits. From 1973 on all
		// offsets are whole minutes.
		matches := func(r time.Time) bool {
			day, weekday := days.has[r.Day()], weekdays.has[int(r.Weekday())]
			onDay := day && weekday
			if !days.star && !weekdays.star {
				onDay = day || weekday
			}
			return minutes.has[r.Minute()] && hours.has[r.Hour()] && onDay
		}
		reading := func(x time.Time) time.Time {
			_, offset := x.In(loc).Zone()
			return x.Add(time.Duration(offset) * time.Second)
		}

		start := time.Date(rapid.IntRange(1973, 2060).Draw(t, "year"), 1, 1, 0, 0, 0, 0, time.UTC).
			Add(time.Duration(rapid.IntRange(0, 365*24*60).Draw(t, "minute of year")) * time.Minute)
		if _, change := start.In(loc).ZoneBounds(); !change.IsZero() {
			start = change.UTC().Truncate(time.Minute).Add(-time.Duration(rapid.IntRange(0, 36*60).Draw(t, "minutes before")) * time.Minute)
		}
		end := start.Add(3 * 24 * time.Hour)

		var want []string
		seen := map[time.Time]bool{}
		for x := start.Add(-50 * time.Hour); x.Before(end); x = x.Add(time.Minute) {
			r, before := reading(x), reading(x.Add(-time.Minute))
			tick := matches(r) && (everyHour || !seen[r])
			gap := r.Sub(before) - time.Minute
			for skipped := before.Add(time.Minute); skipped.Before(r); skipped = skipped.Add(time.Minute) {
				if matches(skipped) && !(everyHour && matches(skipped.Add(gap))) {
					tick = true
				}
			}
			seen[r] = true
			if tick && x.After(start) {
				want = append(want, x.In(loc).String())
			}
		}

		s, err := schedule.Parse(spec, loc)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for tick := s.Next(start); tick.Before(end); tick = s.Next(tick) {
			got = append(got, tick.String())
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q in %v from %v: minute by minute (-) and Next (+):\n%s", spec, loc, start, diff)
		}
	})
}

// TestNextNeverGoesBack asks at random instants instead of at ticks.
func TestNextNeverGoesBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		loc, err := time.LoadLocation(rapid.SampledFrom(zones).Draw(t, "zone"))
		if err != nil {
			t.Fatal(err)
		}
		spec := rapid.SampledFrom([]string{"30 2 * * *", "*/7 * * * *", "0 0 * * *", "15 1,2 * * 0", "@monthly", "59 23 28-31 * *"}).Draw(t, "spec")
		s, err := schedule.Parse(spec, loc)
		if err != nil {
			t.Fatal(err)
		}
		a := time.Unix(rapid.Int64Range(100e6, 4e9).Draw(t, "a"), rapid.Int64Range(0, 999999999).Draw(t, "ns"))
		b := a.Add(time.Duration(rapid.Int64Range(0, int64(72*time.Hour)).Draw(t, "step")))
		nextA, nextB := s.Next(a), s.Next(b)
		if !nextA.After(a) || !nextB.After(b) {
			t.Fatalf("Next is not after: %v → %v, %v → %v", a, nextA, b, nextB)
		}
		if nextB.Before(nextA) || nextA.After(b) && !nextA.Equal(nextB) {
			t.Fatalf("%v → %v, but %v → %v", a, nextA, b, nextB)
		}
	})
}

func TestLongestGap(t *testing.T) {
	const day = 24 * time.Hour
	tests := []struct {
		spec, zone string
		span, want time.Duration
	}{
		{"* * * * *", "UTC", 3652 * day, time.Hour},
		{"*/15 * * * *", "Europe/Berlin", 3652 * day, time.Hour},
		{"0 3 * * *", "UTC", 3652 * day, day},
		{"0 3 * * *", "Europe/Berlin", 3652 * day, day + time.Hour},
		{"* 0-11 * 1-6 *", "UTC", 3652 * day, 184*day + 12*time.Hour + time.Minute}, // from 30 June 11:59 to 1 January
		{"@monthly", "UTC", 366 * day, 31 * day},
		{"@yearly", "UTC", 3652 * day, 366 * day},
		{"0 3 1 */3 *", "Europe/Berlin", 3652 * day, 92*day + time.Hour}, // October to January
		{"0 3 1 1 *", "UTC", 10 * day, 0},                                // no tick in the span
		{"0 0 29 2 *", "UTC", 3652 * day, 1461 * day},
		{"30 1-23/2 * * *", "UTC", 3652 * day, 2 * time.Hour},
	}
	from := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for _, tt := range tests {
		t.Run(tt.spec+" "+tt.zone, func(t *testing.T) {
			s := &counted{Schedule: parse(t, tt.spec, zone(t, tt.zone))}
			if got := schedule.LongestGap(s, from, tt.span); got != tt.want {
				t.Errorf("LongestGap = %v, want %v", got, tt.want)
			}
			if limit := 4 * int(tt.span/time.Hour); s.calls > limit {
				t.Errorf("asked for %d ticks, want no more than %d", s.calls, limit)
			}
		})
	}
}

type counted struct {
	schedule.Schedule
	calls int
}

func (c *counted) Next(t time.Time) time.Time {
	c.calls++
	return c.Schedule.Next(t)
}

// TestLongestGapAgainstEveryTick compares it with a walk over all ticks.
func TestLongestGapAgainstEveryTick(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		loc, err := time.LoadLocation(rapid.SampledFrom(zones).Draw(t, "zone"))
		if err != nil {
			t.Fatal(err)
		}
		var fields []string
		for i, limits := range [][2]int{{0, 59}, {0, 23}, {1, 28}, {1, 12}, {0, 6}} {
			fields = append(fields, drawField(t, strconv.Itoa(i), limits[0], limits[1]).text)
		}
		s, err := schedule.Parse(strings.Join(fields, " "), loc)
		if err != nil {
			t.Fatal(err)
		}
		from := time.Unix(rapid.Int64Range(100e6, 4e9).Draw(t, "from"), 0)
		span := time.Duration(rapid.IntRange(1, 40).Draw(t, "days")) * 24 * time.Hour
		end := from.Add(span)
		var want time.Duration
		for tick := s.Next(from.Add(-1)); !tick.After(end); {
			next := s.Next(tick)
			want = max(want, next.Sub(tick), time.Hour)
			tick = next
		}
		if got := schedule.LongestGap(s, from, span); got != want {
			t.Errorf("LongestGap(%v, %v, %v) = %v, want %v", fields, from, span, got, want)
		}
	})
}

func FuzzParse(f *testing.F) {
	for _, spec := range []string{"0 3 1 */3 *", "@monthly", "TZ=", "CRON_TZ=UTC 0 0 * * *", "*/9223372036854775807 * * * *", "0 0 29 2 *", "? ? ? ? ?", "0 0 * JAN-MAR mon"} {
		f.Add(spec)
	}
	loc, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		f.Fatal(err)
	}
	from := time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, spec string) {
		s, err := schedule.Parse(spec, loc)
		if err != nil {
			return
		}
		if next := s.Next(from); !next.After(from) {
			t.Errorf("%q was accepted, and ticks at %v after %v", spec, next, from)
		}
	})
}
