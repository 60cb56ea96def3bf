package schedule_test

import (
	"fmt"
	"testing"
	"time"

	"byokd/schedule"

	"pgregory.net/rapid"
)

const group = "payments"

func TestJitter(t *testing.T) {
	tick := at(t, "2026-11-23T03:00Z")
	if got := schedule.Jitter(group, tick, 0); got != 0 {
		t.Errorf("Jitter without a maximum = %v", got)
	}
	if got := schedule.Jitter(group, tick, -time.Hour); got != 0 {
		t.Errorf("Jitter with a negative maximum = %v", got)
	}
	// The offset outlives restarts and upgrades, so the hash is for ever.
	if got, want := schedule.Jitter(group, tick, time.Hour), 35*time.Minute+55*time.Second+314586953; got != want {
		t.Errorf("Jitter = %v, want %v", got, want)
	}
	if a, b := schedule.Jitter(group, tick, time.Hour), schedule.Jitter(group, tick.In(zone(t, "Asia/Tokyo")), time.Hour); a != b {
		t.Errorf("Jitter depends on the time zone: %v, %v", a, b)
	}
	var buckets [10]int
	for i := range 10000 {
		j := schedule.Jitter(fmt.Sprintf("group-%d", i), tick, 10*time.Minute)
		if j < 0 || j >= 10*time.Minute {
			t.Fatalf("Jitter = %v, want it in [0, 10m)", j)
		}
		buckets[j/time.Minute]++
	}
	for i, n := range buckets {
		if n < 800 || n > 1200 {
			t.Errorf("%d of 10000 groups in minute %d: %v", n, i, buckets)
		}
	}
}

func TestRuleNext(t *testing.T) {
	const day = 24 * time.Hour
	daily := parse(t, "0 3 * * *", time.UTC)
	minutely := parse(t, "* * * * *", time.UTC)
	var none time.Time
	since := at(t, "2026-11-01T00:00Z")
	offset := func(tick string) time.Duration { return schedule.Jitter(group, at(t, tick), 6*time.Hour) }

	tests := []struct {
		name   string
		rule   schedule.Rule
		state  schedule.State
		now    string
		tick   string // "": none
		at     string // "": the tick
		plus   time.Duration
		missed int
	}{
		{name: "zero rule", state: schedule.State{Since: since}, now: "2026-11-10T00:00Z"},
		{name: "zero state", rule: schedule.Rule{Schedule: daily}, now: "2026-11-10T00:00Z"},
		{name: "zero state, every", rule: schedule.Rule{Every: day}, now: "2026-11-10T00:00Z"},

		{name: "future", rule: schedule.Rule{Schedule: daily}, state: schedule.State{Since: since}, now: "2026-11-01T00:00Z", tick: "2026-11-01T03:00Z"},
		{name: "future, after the last", rule: schedule.Rule{Schedule: daily}, state: schedule.State{Since: since, LastTick: at(t, "2026-11-01T03:00Z")}, now: "2026-11-01T03:00Z", tick: "2026-11-02T03:00Z"},
		{name: "clock set back", rule: schedule.Rule{Schedule: daily}, state: schedule.State{Since: since, LastTick: at(t, "2026-11-05T03:00Z")}, now: "2026-11-02T00:00Z", tick: "2026-11-06T03:00Z"},
		{name: "an asked rotation uses up none", rule: schedule.Rule{Schedule: daily}, state: schedule.State{Since: since, LastRotation: at(t, "2026-11-02T02:59Z"), LastTick: at(t, "2026-11-01T03:00Z")}, now: "2026-11-02T02:59Z", tick: "2026-11-02T03:00Z"},
		{name: "due now", rule: schedule.Rule{Schedule: daily}, state: schedule.State{Since: since}, now: "2026-11-01T03:00Z", tick: "2026-11-01T03:00Z"},
		{name: "a minute late is on time", rule: schedule.Rule{Schedule: daily}, state: schedule.State{Since: since}, now: "2026-11-01T03:01Z", tick: "2026-11-01T03:00Z"},
		{name: "one missed", rule: schedule.Rule{Schedule: daily}, state: schedule.State{Since: since}, now: "2026-11-01T03:02Z", tick: "2026-11-01T03:00Z", missed: 1},
		{name: "five missed", rule: schedule.Rule{Schedule: daily}, state: schedule.State{Since: since}, now: "2026-11-06T00:00Z", tick: "2026-11-05T03:00Z", missed: 5},
		{name: "four missed and one on time", rule: schedule.Rule{Schedule: daily}, state: schedule.State{Since: since}, now: "2026-11-05T03:00Z", tick: "2026-11-05T03:00Z", missed: 4},
		{name: "a lot missed", rule: schedule.Rule{Schedule: minutely}, state: schedule.State{Since: at(t, "2006-11-01T00:00Z")}, now: "2026-11-06T00:00Z", tick: "2026-11-06T00:00Z", missed: 1000},
		{name: "skip, a minute late", rule: schedule.Rule{Schedule: daily, SkipMissed: true}, state: schedule.State{Since: since}, now: "2026-11-01T03:01Z", tick: "2026-11-01T03:00Z"},
		{name: "skip", rule: schedule.Rule{Schedule: daily, SkipMissed: true}, state: schedule.State{Since: since}, now: "2026-11-06T12:00Z", tick: "2026-11-07T03:00Z"},
		{name: "skip a lot", rule: schedule.Rule{Schedule: minutely, SkipMissed: true}, state: schedule.State{Since: at(t, "2006-11-01T00:00Z")}, now: "2026-11-06T00:00Z", tick: "2026-11-05T23:59Z"},
		{name: "a new schedule has no past", rule: schedule.Rule{Schedule: daily}, state: schedule.State{Since: since, Changed: at(t, "2026-11-09T12:00Z"), LastTick: at(t, "2026-11-02T00:00Z")}, now: "2026-11-09T12:00Z", tick: "2026-11-10T03:00Z"},

		{name: "jitter", rule: schedule.Rule{Schedule: daily, Jitter: 6 * time.Hour}, state: schedule.State{Since: since}, now: "2026-11-01T00:00Z", tick: "2026-11-01T03:00Z", plus: offset("2026-11-01T03:00Z")},
		{name: "restarted between tick and jitter", rule: schedule.Rule{Schedule: daily, Jitter: 6 * time.Hour}, state: schedule.State{Since: since}, now: "2026-11-01T03:05Z", tick: "2026-11-01T03:00Z", plus: offset("2026-11-01T03:00Z")},
		{name: "skip does not skip what waits for its jitter", rule: schedule.Rule{Schedule: daily, Jitter: 6 * time.Hour, SkipMissed: true}, state: schedule.State{Since: since}, now: "2026-11-01T03:05Z", tick: "2026-11-01T03:00Z", plus: offset("2026-11-01T03:00Z")},
		{name: "yesterday's was missed, today's waits", rule: schedule.Rule{Schedule: daily, Jitter: 6 * time.Hour}, state: schedule.State{Since: since}, now: "2026-11-02T03:00Z", tick: "2026-11-01T03:00Z", plus: offset("2026-11-01T03:00Z"), missed: 1},

		{name: "every, no generation", rule: schedule.Rule{Every: 9 * day}, state: schedule.State{Since: since}, now: "2026-11-01T00:00Z", tick: "2026-11-10T00:00Z"},
		{name: "every, from the last rotation", rule: schedule.Rule{Every: 9 * day}, state: schedule.State{Since: since, LastRotation: at(t, "2026-11-05T07:00Z")}, now: "2026-11-05T07:00Z", tick: "2026-11-14T07:00Z"},
		{name: "every, missed", rule: schedule.Rule{Every: 9 * day}, state: schedule.State{Since: since, LastRotation: at(t, "2026-11-05T07:00Z")}, now: "2026-11-20T07:00Z", tick: "2026-11-14T07:00Z", missed: 1},
		{name: "every, missed thrice", rule: schedule.Rule{Every: 2 * day}, state: schedule.State{Since: since, LastRotation: at(t, "2026-11-05T07:00Z")}, now: "2026-11-12T07:00Z", tick: "2026-11-11T07:00Z", missed: 3},
		{name: "every, skip", rule: schedule.Rule{Every: 2 * day, SkipMissed: true}, state: schedule.State{Since: since, LastRotation: at(t, "2026-11-05T07:00Z")}, now: "2026-11-12T07:00Z", tick: "2026-11-13T07:00Z"},
		{name: "every, enqueued but not rotated", rule: schedule.Rule{Every: 9 * day}, state: schedule.State{Since: since, LastRotation: at(t, "2026-11-05T07:00Z"), LastTick: at(t, "2026-11-14T07:00Z")}, now: "2026-11-14T07:00Z", tick: "2026-11-23T07:00Z"},
		{name: "every, shortened", rule: schedule.Rule{Every: 2 * day}, state: schedule.State{Since: since, Changed: at(t, "2026-11-20T12:00Z"), LastRotation: at(t, "2026-11-05T07:00Z")}, now: "2026-11-20T12:00Z", tick: "2026-11-19T07:00Z", at: "2026-11-20T12:00Z"},
		{name: "every, shortened, jitter", rule: schedule.Rule{Every: 2 * day, Jitter: 6 * time.Hour}, state: schedule.State{Since: since, Changed: at(t, "2026-11-20T12:00Z"), LastRotation: at(t, "2026-11-05T07:00Z")}, now: "2026-11-20T12:00Z", tick: "2026-11-19T07:00Z", at: "2026-11-20T12:00Z", plus: offset("2026-11-19T07:00Z")},
		{name: "every, shortened, jitter, asked again", rule: schedule.Rule{Every: 2 * day, Jitter: 6 * time.Hour}, state: schedule.State{Since: since, Changed: at(t, "2026-11-20T12:00Z"), LastRotation: at(t, "2026-11-05T07:00Z")}, now: "2026-11-20T12:30Z", tick: "2026-11-19T07:00Z", at: "2026-11-20T12:00Z", plus: offset("2026-11-19T07:00Z")},
		{name: "every, shortened, skip", rule: schedule.Rule{Every: 2 * day, SkipMissed: true}, state: schedule.State{Since: since, Changed: at(t, "2026-11-20T12:00Z"), LastRotation: at(t, "2026-11-05T07:00Z")}, now: "2026-11-20T12:00Z", tick: "2026-11-19T07:00Z", at: "2026-11-20T12:00Z"},
		{name: "every, lengthened", rule: schedule.Rule{Every: 90 * day}, state: schedule.State{Since: since, Changed: at(t, "2026-11-20T12:00Z"), LastRotation: at(t, "2026-11-05T07:00Z")}, now: "2026-11-20T12:00Z", tick: "2027-02-03T07:00Z"},
		{name: "every, enabled again", rule: schedule.Rule{Every: 9 * day, Jitter: 6 * time.Hour}, state: schedule.State{Since: since, LastRotation: at(t, "2026-09-05T07:00Z")}, now: "2026-11-01T00:00Z", tick: "2026-10-29T07:00Z", at: "2026-11-01T00:00Z", plus: offset("2026-10-29T07:00Z")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tick, due, missed := tt.rule.Next(group, tt.state, at(t, tt.now))
			wantTick, wantAt := none, none
			if tt.tick != "" {
				wantTick = at(t, tt.tick)
				wantAt = wantTick.Add(tt.plus)
			}
			if tt.at != "" {
				wantAt = at(t, tt.at).Add(tt.plus)
			}
			if !tick.Equal(wantTick) || !due.Equal(wantAt) || missed != tt.missed {
				t.Errorf("Next = %v, %v, %d\nwant   %v, %v, %d", tick, due, missed, wantTick, wantAt, tt.missed)
			}
		})
	}
}

// A fired tick of the simulation below.
type fired struct {
	tick, at, done time.Time
	missed         int
}

// A daemon that is up for a while, down for a while, reloads now and then, and
// fires up to half a minute late.
type simulation struct {
	*rapid.T
	rule    schedule.Rule
	state   schedule.State
	rotates bool // a tick becomes a rotation
	fired   []fired
	up      [][2]time.Time
	now     time.Time
}

func (s *simulation) run(days int) {
	end := s.now.Add(time.Duration(days) * 24 * time.Hour)
	for s.now.Before(end) {
		stop := s.now.Add(s.duration("up", 5*24*time.Hour))
		s.up = append(s.up, [2]time.Time{s.now, stop})
		for s.now.Before(stop) {
			tick, at, missed := s.rule.Next(group, s.state, s.now)
			reload := s.now.Add(s.duration("reload", 24*time.Hour))
			if tick.IsZero() || at.After(reload) || at.After(stop) {
				s.now = reload
				continue
			}
			if at.After(s.now) {
				s.now = at
			}
			if !tick.After(s.state.LastTick) {
				s.Fatalf("tick %v again, after %v", tick, s.state.LastTick)
			}
			fire := fired{tick: tick, at: s.now, missed: missed}
			s.state.LastTick = tick
			s.now = s.now.Add(s.duration("late", 30*time.Second))
			fire.done = s.now
			s.fired = append(s.fired, fire)
			if s.rotates {
				s.state.LastRotation = s.now
			}
		}
		s.now = stop.Add(s.duration("down", 4*24*time.Hour))
	}
	s.up = append(s.up, [2]time.Time{s.now, s.now.Add(time.Second)})
}

func (s *simulation) duration(label string, limit time.Duration) time.Duration {
	return time.Duration(rapid.Int64Range(1, int64(limit/time.Second)).Draw(s.T, label)) * time.Second
}

// wasUp reports whether the daemon ran for all of [from, to].
func (s *simulation) wasUp(from, to time.Time) bool {
	for _, span := range s.up {
		if !from.Before(span[0]) && !to.After(span[1]) {
			return true
		}
	}
	return false
}

func drawRule(t *rapid.T) schedule.Rule {
	rule := schedule.Rule{
		Jitter:     rapid.SampledFrom([]time.Duration{0, time.Minute, time.Hour, 30 * time.Hour}).Draw(t, "jitter"),
		SkipMissed: rapid.Bool().Draw(t, "skip"),
	}
	loc, err := time.LoadLocation(rapid.SampledFrom(zones).Draw(t, "zone"))
	if err != nil {
		t.Fatal(err)
	}
	spec := rapid.SampledFrom([]string{"30 2 * * *", "0 */6 * * *", "0 3 * * 1", "0 3 1 * *", "*/15 1,2 * * *", "@hourly"}).Draw(t, "spec")
	rule.Schedule, err = schedule.Parse(spec, loc)
	if err != nil {
		t.Fatal(err)
	}
	return rule
}

func TestNoTickLostOrDoubled(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		start := time.Unix(rapid.Int64Range(1.7e9, 1.9e9).Draw(t, "start"), 0).UTC()
		s := &simulation{T: t, rule: drawRule(t), state: schedule.State{Since: start}, now: start}
		s.run(rapid.IntRange(1, 60).Draw(t, "days"))

		for i, f := range s.fired {
			due := f.tick.Add(schedule.Jitter(group, f.tick, s.rule.Jitter))
			if f.at.Before(due) {
				t.Errorf("tick %v fired at %v, which is before it is due (%v)", f.tick, f.at, due)
			}
			if i > 0 && !f.tick.After(s.fired[i-1].tick) {
				t.Errorf("tick %v after %v", f.tick, s.fired[i-1].tick)
			}
		}

		// What is due at the last start is fired then.
		for {
			tick, at, missed := s.rule.Next(group, s.state, s.now)
			if at.After(s.now) {
				break
			}
			s.fired = append(s.fired, fired{tick: tick, at: s.now, done: s.now, missed: missed})
			s.state.LastTick = tick
		}

		for tick := s.rule.Schedule.Next(start); !tick.After(s.now); tick = s.rule.Schedule.Next(tick) {
			due := tick.Add(schedule.Jitter(group, tick, s.rule.Jitter))
			up := s.wasUp(due, due.Add(30*time.Second))
			answered := false
			for _, f := range s.fired {
				if s.rule.SkipMissed && s.rule.Jitter == 0 && f.tick.Equal(tick) && f.at.Sub(due) > time.Minute {
					t.Errorf("tick %v was missed, and yet fired at %v", tick, f.at)
				}
				// A later tick may be due before, and takes it along.
				inTime := !f.at.Before(tick) && f.at.Sub(due) <= 30*time.Second
				answered = answered || !f.tick.Before(tick) && inTime
			}
			if up && !answered {
				t.Errorf("tick %v (due %v) not fired in time, though the daemon was up", tick, due)
			}
			if !s.rule.SkipMissed && !due.After(s.now) && tick.After(s.state.LastTick) {
				t.Errorf("tick %v (due %v) lost", tick, due)
			}
		}
	})
}

// TestMissedCountsEachTickOnce adds up what run-once reports: no tick is counted
// twice, and without jitter each one that was not fired is counted.
func TestMissedCountsEachTickOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		start := time.Unix(rapid.Int64Range(1.7e9, 1.9e9).Draw(t, "start"), 0).UTC()
		s := &simulation{T: t, rule: drawRule(t), state: schedule.State{Since: start}, now: start}
		s.rule.SkipMissed, s.rule.Jitter = false, 0
		s.run(rapid.IntRange(1, 60).Draw(t, "days"))
		if len(s.fired) == 0 {
			return
		}
		ticks := 0
		for tick := s.rule.Schedule.Next(start); !tick.After(s.state.LastTick); tick = s.rule.Schedule.Next(tick) {
			ticks++
		}
		told := 0
		for _, f := range s.fired {
			// One that is fired on time is not counted as missed.
			if f.at.Sub(f.tick) <= time.Minute {
				told++
			}
			told += f.missed
		}
		if told != ticks {
			t.Errorf("%d ticks passed, %d were fired or counted: %v", ticks, told, s.fired)
		}
	})
}

// TestEveryRotatesInTime checks that a rotation is never early, never more than
// the longest possible delay late while the daemon is up, and that each one
// restarts the interval.
func TestEveryRotatesInTime(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		start := time.Unix(rapid.Int64Range(1.7e9, 1.9e9).Draw(t, "start"), 0).UTC()
		every := time.Duration(rapid.IntRange(1, 20*24).Draw(t, "hours")) * time.Hour
		jitter := rapid.SampledFrom([]time.Duration{0, time.Minute, time.Hour}).Draw(t, "jitter")
		s := &simulation{T: t, rule: schedule.Rule{Every: every, Jitter: min(jitter, every/2)}, state: schedule.State{Since: start}, now: start, rotates: true}
		s.run(rapid.IntRange(1, 90).Draw(t, "days"))

		last := start
		for _, f := range s.fired {
			due := last.Add(every)
			if f.at.Before(due) {
				t.Errorf("rotated at %v, due only at %v", f.at, due)
			}
			latest := due.Add(s.rule.Jitter)
			if s.wasUp(due, latest) && f.at.After(latest) {
				t.Errorf("rotated at %v, due at %v with up to %v of jitter", f.at, due, s.rule.Jitter)
			}
			if (f.at.Sub(f.tick)-s.rule.Jitter > time.Minute) && f.missed == 0 {
				t.Errorf("rotated at %v for %v, and nothing is told to be missed", f.at, f.tick)
			}
			if f.tick.Sub(last)%every > 30*time.Second {
				t.Errorf("tick %v is no whole interval after %v", f.tick, last)
			}
			last = f.done
		}
	})
}

// TestShortenedEveryIsNotPushedOut re-evaluates at random moments: the due time
// stays, and is within the jitter of the change.
func TestShortenedEveryIsNotPushedOut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rotated := time.Unix(rapid.Int64Range(1.7e9, 1.9e9).Draw(t, "rotated"), 0).UTC()
		every := time.Duration(rapid.IntRange(2, 400).Draw(t, "hours")) * time.Hour
		changed := rotated.Add(every).Add(time.Duration(rapid.IntRange(0, 1e6).Draw(t, "seconds")) * time.Second)
		rule := schedule.Rule{Every: every, Jitter: time.Hour, SkipMissed: rapid.Bool().Draw(t, "skip")}
		state := schedule.State{Since: rotated.Add(-time.Hour), Changed: changed, LastRotation: rotated}
		tick, due, _ := rule.Next(group, state, changed)
		if due.Before(changed) || due.Sub(changed) >= rule.Jitter {
			t.Fatalf("changed at %v, due at %v", changed, due)
		}
		for now := changed; now.Before(due); now = now.Add(time.Duration(rapid.IntRange(1, 2000).Draw(t, "later")) * time.Second) {
			tick2, due2, missed := rule.Next(group, state, now)
			if !tick2.Equal(tick) || !due2.Equal(due) || missed != 0 {
				t.Fatalf("at %v: %v due %v, %d missed; before: %v due %v", now, tick2, due2, missed, tick, due)
			}
		}
	})
}
