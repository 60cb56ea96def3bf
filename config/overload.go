package config

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"byokd/schedule"
)

// An Overload is a credential and Region whose groups ask for more rotations than
// the quota of GetParametersForImport lets through in time.
type Overload struct {
	Credential string
	Region     string
	Groups     []string // those that rotate by a schedule there, sorted
	Message    string   // what is too much, and what to do
}

const (
	// lookAhead is how far ahead schedules are looked at.
	lookAhead = 400 * day

	// mostTicks is how many ticks are looked at in all.
	mostTicks = 50_000

	// jitterParts is into how many parts jitter spreads a tick here.
	jitterParts = 8
)

// wave is the groups of one place that share a schedule.
type wave struct {
	ticks   []time.Time
	jitter  time.Duration
	overdue time.Duration // the shortest overdue_after
	groups  int
}

// Overloads finds the credentials and Regions where the schedules of groups cannot
// be met at the quotas, from now on. quota returns that of GetParametersForImport
// for a place, in requests per second, 0 where it is not known; nil: byokd.toml has
// it. A place is overloaded where more rotations are
// asked for than its quota allows in the long run, or where what is due at one
// instant ends later than overdue_after. Each rotation needs one request; those
// that renew expiring material in between count too.
//
// It looks at no more than some tens of thousands of ticks, and takes well under a
// second for ten thousand groups.
func Overloads(cfg *Config, groups []*Group, now time.Time, quota func(credential, region string) float64) []Overload {
	if quota == nil {
		quota = func(string, string) float64 { return cfg.AWS.Quotas.GetParametersForImport }
	}
	type place struct{ credential, region string }
	type shape struct {
		spec, zone string
		jitter     Duration
	}
	type load struct {
		names []string
		rate  float64 // of rotations by interval and of renewals, a second
		waves map[shape]*wave
	}
	places := make(map[place]*load)
	clocks := make(map[shape][]time.Time) // by schedule and zone
	for _, g := range groups {
		if g == nil || !g.Rotation.Enabled || g.Gone {
			continue
		}
		at := place{g.Credential, g.AWS.Region}
		l := places[at]
		if l == nil {
			l = &load{waves: make(map[shape]*wave)}
			places[at] = l
		}
		l.names = append(l.names, g.Name)
		r := g.Rotation
		if r.KeepValidFor > 0 && r.OnExpiry == "reimport" {
			l.rate += 1 / time.Duration(r.KeepValidFor).Seconds()
		}
		if r.Schedule == "" {
			if r.Every > 0 {
				l.rate += 1 / time.Duration(r.Every).Seconds()
			}
			continue
		}
		s := shape{r.Schedule, r.Timezone, r.Jitter}
		clocks[shape{spec: s.spec, zone: s.zone}] = nil
		w := l.waves[s]
		if w == nil {
			w = &wave{jitter: time.Duration(r.Jitter), overdue: time.Duration(r.OverdueAfter)}
			l.waves[s] = w
		}
		w.groups++
		w.overdue = min(w.overdue, time.Duration(r.OverdueAfter))
	}
	end := now.Add(lookAhead)
	for s := range clocks {
		most := max(4, mostTicks/len(clocks))
		clocks[s] = ticksOf(s.spec, s.zone, now, end, most)
	}

	var all []Overload
	for at, l := range places {
		perSecond := quota(at.credential, at.region)
		if perSecond <= 0 {
			continue
		}
		var waves []*wave
		for s, w := range l.waves {
			w.ticks = clocks[shape{spec: s.spec, zone: s.zone}]
			waves = append(waves, w)
		}
		if message := overloaded(waves, l.rate, len(l.names), perSecond); message != "" {
			slices.Sort(l.names)
			all = append(all, Overload{Credential: at.credential, Region: at.region, Groups: l.names, Message: fmt.Sprintf("credential %s in %s: %s", at.credential, at.region, message)})
		}
	}
	slices.SortFunc(all, func(a, b Overload) int {
		return cmp.Or(strings.Compare(a.Credential, b.Credential), strings.Compare(a.Region, b.Region))
	})
	return all
}

// ticksOf returns the next ticks of a schedule.
func ticksOf(spec, zone string, now, end time.Time, most int) []time.Time {
	location, err := time.LoadLocation(zone)
	if err != nil {
		return nil
	}
	s, err := schedule.Parse(spec, location)
	if err != nil {
		return nil
	}
	var ticks []time.Time
	for t := s.Next(now); !t.IsZero() && t.Before(end) && len(ticks) < most; t = s.Next(t) {
		ticks = append(ticks, t)
	}
	return ticks
}

// overloaded says what of a place's waves and of rotations at a steady rate is too
// much for its quota; "": nothing.
func overloaded(waves []*wave, rate float64, groups int, perSecond float64) string {
	const do = ": rotate less often, spread the groups over accounts and Regions, or have AWS raise the quota of GetParametersForImport and write it into [aws.quotas]"
	average, shortest, overdue := rate, time.Duration(math.MaxInt64), time.Duration(math.MaxInt64)
	until := time.Time{}
	for _, w := range waves {
		overdue = min(overdue, w.overdue)
		if n := len(w.ticks); n > 1 {
			average += float64(w.groups) * float64(n-1) / w.ticks[n-1].Sub(w.ticks[0]).Seconds()
			if last := w.ticks[n-1]; until.IsZero() || last.Before(until) {
				until = last // no further than all are known
			}
		}
		for i := 1; i < len(w.ticks); i++ {
			shortest = min(shortest, w.ticks[i].Sub(w.ticks[i-1])-w.jitter)
		}
	}
	if average > perSecond {
		return fmt.Sprintf("%d groups ask for %.0f rotations a day, and %g imports a second allow %.0f", groups, average*86400, perSecond, perSecond*86400) + do
	}
	left := perSecond - rate // for the waves
	whole := float64(groups) / left
	if whole <= min(shortest, overdue).Seconds() {
		return "" // one wave of all would end in time, before the next
	}

	type arrival struct {
		at      time.Time
		n       float64
		wave    *wave
		instant time.Time
	}
	var arrivals []arrival
	for _, w := range waves {
		for _, tick := range w.ticks {
			if tick.After(until) && !until.IsZero() {
				break
			}
			if w.jitter == 0 {
				arrivals = append(arrivals, arrival{tick, float64(w.groups), w, tick})
				continue
			}
			for i := range jitterParts {
				arrivals = append(arrivals, arrival{tick.Add(w.jitter * time.Duration(2*i+1) / (2 * jitterParts)), float64(w.groups) / jitterParts, w, tick})
			}
		}
	}
	slices.SortStableFunc(arrivals, func(a, b arrival) int { return a.at.Compare(b.at) })
	var waiting float64
	var last, late time.Time
	var longest, bound time.Duration
	due := make(map[time.Time]float64)
	for _, a := range arrivals {
		waiting = max(0, waiting-left*a.at.Sub(last).Seconds()) + a.n
		last = a.at
		due[a.instant] += a.n
		takes := time.Duration(waiting / left * float64(time.Second))
		if takes > a.wave.overdue && takes > longest {
			longest, bound, late = takes, a.wave.overdue, a.instant
		}
	}
	if longest == 0 {
		return ""
	}
	return fmt.Sprintf("the last of %.0f rotations due at %s comes %v later, at %g imports a second, and is overdue after %v",
		math.Round(due[late]), late.UTC().Format(time.RFC3339), longest.Round(time.Second), perSecond, bound) +
		": give the groups other times or jitter, spread them over accounts and Regions, or have AWS raise the quota of GetParametersForImport and write it into [aws.quotas]"
}

// Names returns the groups of an overload for a person: the first ones.
func (o Overload) Names() string {
	const most = 5
	if len(o.Groups) <= most {
		return strings.Join(o.Groups, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(o.Groups[:most], ", "), len(o.Groups)-most)
}

// Overloads is [Overloads] for the good groups of a set, at byokd.toml's quota.
func (s *Set) Overloads(cfg *Config, now time.Time) []Overload {
	return Overloads(cfg, slices.Collect(maps.Values(s.Groups)), now, nil)
}
