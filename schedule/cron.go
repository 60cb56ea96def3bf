// Package schedule says when a key group is due to rotate.
//
// [Parse] turns a cron expression into a [Schedule] that behaves over daylight
// saving time. [Rule] adds what a group's definition says about intervals,
// jitter and missed ticks, and computes the next tick as a pure function of
// the group's [State] and the time. [Runner] is the timer loop that calls back
// when a tick is due.
package schedule

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

// A Schedule is a sequence of ticks.
type Schedule interface {
	// Next returns the first tick strictly after t, or the zero time if there
	// is none. It never goes back as t goes forward.
	Next(t time.Time) time.Time
}

var parser = cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor)

// Parse reads a cron expression of five fields (minute, hour, day of month,
// month, day of week; Sunday is 0) or one of the descriptors @yearly,
// @annually, @monthly, @weekly, @daily, @midnight and @hourly, in the time
// zone loc (nil: UTC). Where both day fields are restricted, a day that
// matches either of them counts, as in crontab(5). The schedule's ticks are
// in loc.
//
// Parse refuses what does not fit byokd's configuration (@every, TZ=, a
// seconds field) and an expression that never fires.
//
// Clock readings that daylight saving time skips make one tick, right after
// the gap, however many of them the gap holds. A reading that occurs twice
// ticks the first time only.
//
// An expression whose hour field takes in every hour follows elapsed time
// instead, so that its ticks keep their distance: "*/15 * * * *" ticks in both
// passes of a repeated hour, and a skipped reading is made up after the gap
// only if its counterpart, as much later as the clock was put forward, is no
// tick of its own.
//
// The returned Schedule may be used from several goroutines.
func Parse(spec string, loc *time.Location) (Schedule, error) {
	spec = strings.TrimSpace(spec)
	upper := strings.ToUpper(spec)
	switch {
	case spec == "":
		return nil, errors.New("empty schedule: write five cron fields or a descriptor like @monthly")
	case strings.HasPrefix(upper, "TZ="), strings.HasPrefix(upper, "CRON_TZ="):
		return nil, errors.New("a schedule takes no TZ= prefix: use the key timezone")
	case strings.HasPrefix(upper, "@EVERY"):
		return nil, errors.New("a schedule takes no @every: use the key every")
	case !strings.HasPrefix(spec, "@"):
		if err := checkFields(strings.Fields(spec)); err != nil {
			return nil, err
		}
	}
	parsed, err := parser.Parse(spec)
	if err != nil {
		return nil, fmt.Errorf("schedule %q: %w", spec, err)
	}
	fields, ok := parsed.(*cron.SpecSchedule)
	if !ok {
		return nil, fmt.Errorf("schedule %q is not a calendar schedule: use the key every", spec)
	}
	if loc == nil {
		loc = time.UTC
	}
	// Readings are looked for in UTC, which has no gaps to stumble over.
	fields.Location = time.UTC
	const everyHour = 1<<24 - 1
	s := &cronSchedule{fields: fields, loc: loc, everyHour: fields.Hour&everyHour == everyHour}
	if s.nextReading(time.Date(2001, time.January, 1, 0, 0, 0, 0, time.UTC)).IsZero() {
		return nil, fmt.Errorf("schedule %q never fires: no month that it names has such a day", spec)
	}
	return s, nil
}

// checkFields refuses what the parser would take for something else, and
// explains what it would refuse without telling what to write.
func checkFields(fields []string) error {
	const want = "a schedule has five fields (minute, hour, day of month, month, day of week), this one has %d"
	switch n := len(fields); {
	case n == 6:
		return fmt.Errorf(want+": leave the seconds out", n)
	case n != 5:
		return fmt.Errorf(want, n)
	}
	for _, field := range fields {
		for item := range strings.SplitSeq(field, ",") {
			if item == "" {
				return fmt.Errorf("schedule field %q has an empty item", field)
			}
			if strings.HasPrefix(item, "*-") || strings.HasPrefix(item, "?-") {
				return fmt.Errorf("schedule field %q: a range needs a number or name on both sides", field)
			}
		}
	}
	isSeparator := func(r rune) bool { return r == ',' || r == '-' }
	if slices.Contains(strings.FieldsFunc(fields[4], isSeparator), "7") {
		return fmt.Errorf("schedule field %q: Sunday is 0 or SUN, not 7", fields[4])
	}
	return nil
}

// A cronSchedule maps the clock readings that an expression names to instants.
// A reading is a time in UTC that shows the same digits as the clock in loc.
type cronSchedule struct {
	fields    *cron.SpecSchedule
	loc       *time.Location
	everyHour bool
}

func (s *cronSchedule) Next(t time.Time) time.Time {
	after, period := t, t.In(s.loc) // any instant in the period of constant offset that is looked at
	for {
		shift := offset(period)
		end := constantUntil(period)
		reading := s.nextReading(after.UTC().Add(shift))
		if reading.IsZero() {
			return time.Time{}
		}
		at := reading.Add(-shift).In(s.loc)
		switch {
		case end.IsZero() || at.Before(end):
			if s.everyHour || !shownBefore(reading, at) {
				return at
			}
			after = at
		case s.makesUp(end, shift):
			return end
		default:
			after, period = end.Add(-1), end
		}
	}
}

// nextReading returns the first reading of the expression after r, or the zero
// time. The parser's own search gives up after five years, and the 29th of
// February can be eight away (2096 to 2104).
func (s *cronSchedule) nextReading(r time.Time) time.Time {
	if next := s.fields.Next(r); !next.IsZero() {
		return next
	}
	return s.fields.Next(time.Date(r.Year()+5, time.December, 31, 23, 59, 59, 0, time.UTC))
}

// makesUp reports whether the instant end, at which the offset changes from
// before, is a tick in place of readings that the clock skips there.
func (s *cronSchedule) makesUp(end time.Time, before time.Duration) bool {
	gap := offset(end) - before
	from := end.UTC().Add(before)
	for r := s.nextReading(from.Add(-1)); !r.IsZero() && r.Before(from.Add(gap)); r = s.nextReading(r) {
		if !s.everyHour {
			return true
		}
		counterpart := r.Add(gap)
		if !s.nextReading(counterpart.Add(-1)).Equal(counterpart) {
			return true
		}
	}
	return false
}

// shownBefore reports whether the clock showed the reading that it shows at at
// once before. No zone has ever turned its clock back by more than a day.
func shownBefore(reading, at time.Time) bool {
	for p := at; ; {
		start, _ := p.ZoneBounds()
		if start.IsZero() || at.Sub(start) > 48*time.Hour {
			return false
		}
		p = start.Add(-1)
		earlier := reading.Add(-offset(p))
		from, _ := p.ZoneBounds()
		if earlier.Before(start) && (from.IsZero() || !earlier.Before(from)) {
			return true
		}
	}
}

// constantUntil returns a time after t up to which the offset from UTC stays
// as it is at t; the zero time means for ever.
func constantUntil(t time.Time) time.Time {
	_, end := t.ZoneBounds()
	if !end.IsZero() && !end.After(t) {
		// In leap years from 2040 on, ZoneBounds of Go 1.26 takes the year to
		// end a day early, and so returns an end in the past on its last day.
		end = t.Add(time.Hour)
	}
	return end
}

func offset(t time.Time) time.Duration {
	_, seconds := t.Zone()
	return time.Duration(seconds) * time.Second
}

// LongestGap returns the longest distance between two consecutive ticks of s
// of which the first is in [from, from+span], or 0 if fewer than two ticks are
// found. Distances under an hour are not told apart: they count as an hour.
// That bounds the work by the number of hours in span, whatever s is, so that
// a span of ten years, which holds every case of leap years and daylight
// saving time, is no burden even for a schedule that ticks each minute.
func LongestGap(s Schedule, from time.Time, span time.Duration) time.Duration {
	tick := s.Next(from.Add(-1))
	end := from.Add(span)
	if tick.IsZero() || tick.After(end) || s.Next(tick).IsZero() {
		return 0
	}
	longest := time.Hour
	for !tick.IsZero() && !tick.After(end) {
		tick, longest = stride(s, tick, longest)
	}
	return longest
}

// stride moves from one tick to a later one, as far as can be told with one
// look that no two ticks passed over are further apart than longest, and
// returns the new longest distance. It returns the zero time after the last tick.
func stride(s Schedule, tick time.Time, longest time.Duration) (time.Time, time.Duration) {
	for look := longest / 8 * 7; look > time.Minute; look /= 2 {
		// If these two are within longest, so are all neighbours between them.
		if next := s.Next(tick.Add(look)); !next.IsZero() && next.Sub(tick) <= longest {
			return next, longest
		}
	}
	next := s.Next(tick)
	if next.IsZero() {
		return next, longest
	}
	return next, max(longest, next.Sub(tick))
}
