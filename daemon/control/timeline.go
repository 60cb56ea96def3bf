package control

import (
	"slices"
	"time"
)

// What a generation is during a [Segment].
const (
	SegmentMade     = "made"     // in the HSM, and the alias has not pointed at it yet
	SegmentActive   = "active"   // the alias points at it
	SegmentPrevious = "previous" // the alias has gone on, and it still decrypts
	SegmentDisabled = "disabled" // its KMS key is disabled
	SegmentGone     = "gone"     // nothing can be decrypted: expired, material deleted, destroyed
	SegmentAhead    = "ahead"    // from now on until it expires or is deleted
)

// A Segment is a stretch of a [Period] in which the generation is one thing.
type Segment struct {
	Kind     string
	From, To time.Time
}

// Segments cuts a period into what the generation has been until now, and, where
// it ends in the future, into what is ahead.
func (p Period) Segments(now time.Time) []Segment {
	cuts := []time.Time{now}
	for _, t := range []Time{p.MadeAt, p.ActiveFrom, p.ActiveTo, p.DisabledAt, p.MaterialDeletedAt, p.DeletionDate, p.ValidTo} {
		if !t.IsZero() && t.Before(now) {
			cuts = append(cuts, t.Time)
		}
	}
	if len(cuts) == 1 {
		return nil // nothing has happened yet
	}
	slices.SortFunc(cuts, time.Time.Compare)
	var all []Segment
	for i, from := range cuts[:len(cuts)-1] {
		kind, to := p.kind(from), cuts[i+1]
		switch last := len(all) - 1; {
		case from.Equal(to):
		case last >= 0 && all[last].Kind == kind:
			all[last].To = to
		default:
			all = append(all, Segment{kind, from, to})
		}
	}
	if end := p.end(); end.After(now) && p.kind(now) != SegmentGone {
		all = append(all, Segment{SegmentAhead, now, end})
	}
	return all
}

// kind is what the generation is from a moment on.
func (p Period) kind(at time.Time) string {
	passed := func(t Time) bool { return !t.IsZero() && !at.Before(t.Time) }
	switch {
	case p.State == "destroyed", passed(p.DeletionDate), passed(p.ValidTo), passed(p.MaterialDeletedAt):
		return SegmentGone
	case passed(p.DisabledAt):
		return SegmentDisabled
	case passed(p.ActiveTo):
		return SegmentPrevious
	case passed(p.ActiveFrom):
		return SegmentActive
	}
	return SegmentMade
}

// end is when nothing can be decrypted any more; zero: that is not planned.
func (p Period) end() time.Time {
	var end time.Time
	for _, t := range []Time{p.ValidTo, p.DeletionDate} {
		if !t.IsZero() && (end.IsZero() || t.Before(end)) {
			end = t.Time
		}
	}
	return end
}

// Span is the time that the timelines cover: from a little before the first
// generation to the last thing that is planned, and now at least.
func Span(timelines []Timeline, now time.Time) (from, to time.Time) {
	from, to = now, now
	take := func(times ...Time) {
		for _, t := range times {
			if t.IsZero() {
				continue
			}
			if t.Before(from) {
				from = t.Time
			}
			if t.After(to) {
				to = t.Time
			}
		}
	}
	for _, l := range timelines {
		take(l.NextRotation)
		for _, p := range l.Generations {
			take(p.MadeAt, p.ActiveFrom)
			if p.kind(now) != SegmentGone {
				take(At(p.end()))
			}
		}
	}
	if to.Sub(from) < time.Hour {
		to = from.Add(time.Hour)
	}
	// A little room, so that what has just begun is seen before now.
	return from.Add(-to.Sub(from) / 40), to
}

// Ticks are moments at which hours, days, months or years begin, at most as many
// as said and a few more, and the layout that shows them.
func Ticks(from, to time.Time, most int) (ticks []time.Time, layout string) {
	from, to = from.UTC(), to.UTC()
	span := to.Sub(from)
	enough := func(step time.Duration) bool { return span <= step*time.Duration(max(most, 1)) }
	const day = 24 * time.Hour
	begin, next := from, func(t time.Time) time.Time { return t.AddDate(10, 0, 0) }
	layout = "2006"
	every := func(years, months int) {
		year, month := from.Year(), 0
		if years > 0 {
			year -= year % years
		} else {
			month = (int(from.Month()) - 1) / months * months
		}
		begin = time.Date(year, time.Month(month+1), 1, 0, 0, 0, 0, time.UTC)
		next = func(t time.Time) time.Time { return t.AddDate(years, months, 0) }
	}
	every(10, 0)
	for _, s := range []struct {
		step          time.Duration
		years, months int
		layout        string
	}{
		{time.Hour, 0, 0, "15:04"}, {3 * time.Hour, 0, 0, "15:04"}, {6 * time.Hour, 0, 0, "15:04"},
		{day, 0, 0, time.DateOnly}, {2 * day, 0, 0, time.DateOnly}, {7 * day, 0, 0, time.DateOnly}, {14 * day, 0, 0, time.DateOnly},
		{30 * day, 0, 1, "2006-01"}, {61 * day, 0, 2, "2006-01"}, {91 * day, 0, 3, "2006-01"}, {182 * day, 0, 6, "2006-01"},
		{365 * day, 1, 0, "2006"}, {730 * day, 2, 0, "2006"}, {1826 * day, 5, 0, "2006"},
	} {
		if !enough(s.step) {
			continue
		}
		layout = s.layout
		if s.years+s.months > 0 {
			every(s.years, s.months)
		} else {
			begin = from.Truncate(s.step)
			next = func(t time.Time) time.Time { return t.Add(s.step) }
		}
		break
	}
	for t := begin; !t.After(to); t = next(t) {
		if !t.Before(from) {
			ticks = append(ticks, t)
		}
	}
	return ticks, layout
}
