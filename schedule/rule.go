package schedule

import (
	"crypto/sha256"
	"encoding/binary"
	"time"
)

const (
	// grace is how late a tick may be and still count as on time: due work may
	// start up to a minute late (the Runner sleeps at most half of that), and
	// a reload in that moment must not make a missed tick of it.
	grace = time.Minute

	// maxWalk bounds the number of ticks that are looked at one by one, and so
	// the count of missed ones.
	maxWalk = 1000
)

// Jitter returns the offset in [0, max) by which the given tick of a group is
// delayed: always the same for the same group and tick, and spread evenly over
// groups and ticks. It is 0 where max is not positive.
func Jitter(group string, tick time.Time, max time.Duration) time.Duration {
	if max <= 0 {
		return 0
	}
	b := []byte(group)
	b = append(b, 0)
	b = binary.BigEndian.AppendUint64(b, uint64(tick.Unix()))
	b = binary.BigEndian.AppendUint32(b, uint32(tick.Nanosecond()))
	sum := sha256.Sum256(b)
	return time.Duration(binary.BigEndian.Uint64(sum[:8]) % uint64(max))
}

// A Rule is what a group's definition says about when it rotates. The zero
// Rule never does.
type Rule struct {
	// Schedule is the calendar schedule; nil where Every counts.
	Schedule Schedule

	// Every is the interval since the last rotation. It is read only where
	// Schedule is nil; not positive means never.
	Every time.Duration

	// Jitter is the upper bound of the offset by which ticks are delayed.
	Jitter time.Duration

	// SkipMissed makes nothing of ticks that passed unseen (missed = "skip").
	// Otherwise any number of them makes one rotation ("run-once").
	SkipMissed bool
}

// State is what a group has behind it, as far as it matters to its Rule.
type State struct {
	// Since is when the group was first seen, or enabled if that was later.
	// It is always known; a State without any time has no next tick.
	Since time.Time

	// Changed is when the rule became what it is, if it was ever changed; the
	// zero time otherwise, and that is safe where it is not known. It has to
	// be a recorded time that stays the same until the next change.
	Changed time.Time

	// LastTick is the last tick for which a job was enqueued. It and those
	// before it are never returned again.
	LastTick time.Time

	// LastRotation is when the active generation became active; the zero time
	// where there is no generation.
	LastRotation time.Time
}

// Next returns the tick that a group is to be woken for next, the time at
// which to do it, and how many ticks have passed unseen that this one stands
// for, itself included. A tick is an instant of the schedule, by which the job
// is known, and at is the tick with its jitter. An at that is not after now
// means: due. The zero tick means that the group has none to wait for.
//
// The ticks of a Schedule are those after Since, Changed and LastTick: a new
// schedule has no past. (Ticks of the schedule before that are looked for with
// the old Rule, before it is given up.) Those of Every are LastRotation+Every
// and each whole interval more; without a generation they count from Since.
// The later ones matter only if the first was used and brought no rotation,
// or if the Rule skips.
//
// A tick of Every that a shortened interval, or enabling, has put into the past
// is due at the time of that change (the later of Since and Changed), with
// jitter. As both are recorded times and jitter depends on group and tick
// only, asking again, at whatever time, does not push it out.
//
// When several ticks are due, Next returns the latest of them, and missed
// counts them, up to 1000. One that is at most a minute late is on time: it is
// not counted. With SkipMissed, Next passes over those that are later than
// that, and missed is 0. Where jitter is longer than the distance of ticks, a
// tick may be due before an earlier one, and then takes that along.
//
// Next is a pure function. Nothing is lost or doubled over restarts, so long as
// LastTick is recorded together with the job that the tick enqueues.
func (r Rule) Next(group string, s State, now time.Time) (tick, at time.Time, missed int) {
	ticks, base := r.ticks(s)
	if ticks == nil || base.IsZero() {
		return time.Time{}, time.Time{}, 0
	}
	r.Jitter = max(r.Jitter, 0)
	due := func(tick time.Time) time.Time {
		return later(tick, s.floor()).Add(Jitter(group, tick, r.Jitter))
	}
	// soonest returns the tick after from that is due first, among those that
	// are not due before limit.
	soonest := func(from, limit time.Time) time.Time {
		var best time.Time
		for range maxWalk {
			t := ticks.Next(from)
			if t.IsZero() || !best.IsZero() && t.After(due(best)) {
				break
			}
			if d := due(t); !d.Before(limit) && (best.IsZero() || d.Before(due(best))) {
				best = t
			}
			from = t
		}
		return best
	}
	first := ticks.Next(base)
	if first.IsZero() {
		return first, first, 0
	}
	if first.After(now) {
		tick = soonest(base, time.Time{})
		return tick, due(tick), 0
	}
	late := now.Add(-grace)

	if r.SkipMissed {
		// Ticks older than this are late whatever their jitter.
		from := base
		if t := latest(ticks, base, late.Add(-r.Jitter-1)); t.After(s.floor()) {
			from = t
		}
		tick = soonest(from, late)
		if tick.IsZero() {
			tick = ticks.Next(now)
		}
		if tick.IsZero() {
			return tick, tick, 0
		}
		return tick, due(tick), 0
	}

	passed, from := time.Time{}, base
	if t := latest(ticks, base, now.Add(-r.Jitter)); t.After(s.floor()) {
		passed, from = t, t
	}
	for range maxWalk {
		t := ticks.Next(from)
		if t.IsZero() || t.After(now) {
			break
		}
		if !due(t).After(now) {
			passed = t
		}
		from = t
	}
	if passed.IsZero() {
		tick = soonest(base, time.Time{})
		return tick, due(tick), 0
	}
	t := first
	for range maxWalk {
		if due(t).Before(late) {
			missed++
		}
		if !t.Before(passed) {
			break
		}
		t = ticks.Next(t)
	}
	return passed, due(passed), missed
}

// ticks returns the rule's ticks, and the time after which they count.
func (r Rule) ticks(s State) (Schedule, time.Time) {
	if r.Schedule != nil {
		return r.Schedule, later(s.floor(), s.LastTick)
	}
	if r.Every <= 0 {
		return nil, time.Time{}
	}
	ticks := interval{start: s.LastRotation, every: r.Every}
	if ticks.start.IsZero() {
		ticks.start = s.Since
	}
	base := later(ticks.start, s.LastTick)
	// Of those that lie before the rule took effect only the latest counts.
	if t := latest(ticks, base, s.floor()); !t.IsZero() {
		base = t.Add(-1)
	}
	return ticks, base
}

// floor is when the group's present rule took effect.
func (s State) floor() time.Time { return later(s.Since, s.Changed) }

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// latest returns the last tick in (base, limit], or the zero time.
func latest(s Schedule, base, limit time.Time) time.Time {
	// Next(low) is in (base, limit] and Next(high) is not.
	low, high := base, limit
	within := func(t time.Time) bool {
		next := s.Next(t)
		return !next.IsZero() && !next.After(limit)
	}
	if !low.Before(high) || !within(low) {
		return time.Time{}
	}
	for high.Sub(low) > 1 {
		if middle := low.Add(high.Sub(low) / 2); within(middle) {
			low = middle
		} else {
			high = middle
		}
	}
	return s.Next(low)
}

// An interval ticks each whole interval after start. Its ticks are in start's
// location.
type interval struct {
	start time.Time
	every time.Duration
}

func (i interval) Next(t time.Time) time.Time {
	if t.Before(i.start) {
		return i.start.Add(i.every)
	}
	return i.start.Add((t.Sub(i.start)/i.every + 1) * i.every)
}
