package daemon

import (
	"time"

	"byokd/schedule"
)

// A dueList knows which of many groups is due first.
type dueList struct{ schedule.Due[struct{}] }

// set has a group due at a time; the zero time: not at all.
func (l *dueList) set(name string, at time.Time) {
	if at.IsZero() {
		l.Remove(name)
		return
	}
	l.Set(name, at, struct{}{})
}

// pop takes the first group out that is due by now; ok is false where none is.
func (l *dueList) pop(now time.Time) (name string, ok bool) {
	name, _, ok = l.Pop(now)
	return name, ok
}

// within is how long it is from now until the first group is due, at most longest.
func (l *dueList) within(now time.Time, longest time.Duration) time.Duration {
	_, at, ok := l.First()
	if !ok {
		return longest
	}
	return min(max(at.Sub(now), 10*time.Millisecond), longest)
}
