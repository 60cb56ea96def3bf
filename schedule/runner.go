package schedule

import (
	"context"
	"sync"
	"time"
)

// maxSleep is how long the Runner sleeps at most, so that it notices a clock
// that was set and a machine that was suspended: timers count monotonic time,
// which stands still meanwhile.
const maxSleep = 30 * time.Second

// A Tick is an instant of a group's schedule that has become due.
type Tick struct {
	Group  string
	At     time.Time // the nominal tick, without jitter
	Missed int       // as Rule.Next returned it
}

// A Runner calls back when groups are due: one heap, one timer. Its methods
// may be called from several goroutines, and from the callback.
type Runner struct {
	now  func() time.Time
	fire func([]Tick)
	wake chan struct{}

	// Idle, if not nil, is called before each wait, and what it returns after it.
	// It must not change while Run runs.
	Idle func() (resume func())

	mu      sync.Mutex
	waiting Due[Tick]
}

// NewRunner returns a Runner that reads the time from now and calls fire, in
// the goroutine of Run, once for each Set whose time has come: with all those at
// once that have become due since it was last called, the earliest first.
func NewRunner(now func() time.Time, fire func([]Tick)) *Runner {
	return &Runner{
		now:  now,
		fire: fire,
		wake: make(chan struct{}, 1),
	}
}

// Set has the group's tick fired at the time at, or as soon as Run can if that
// has passed, in place of what was set for the group before. The arguments are
// what Rule.Next returned; the zero tick is the same as Remove. Once fired, a
// group is not waiting for anything until it is Set again.
func (r *Runner) Set(group string, tick, at time.Time, missed int) {
	if tick.IsZero() {
		r.Remove(group)
		return
	}
	at = at.Round(0) // without its monotonic reading, which a set clock does not move
	r.mu.Lock()
	first := r.waiting.Set(group, at, Tick{Group: group, At: tick, Missed: missed})
	r.mu.Unlock()
	if first {
		r.Wake()
	}
}

// Remove forgets what was set for the group. A callback that has begun is not
// stopped.
func (r *Runner) Remove(group string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting.Remove(group)
}

// Wake makes Run look at the clock now, for one that was moved by hand.
func (r *Runner) Wake() {
	select {
	case r.wake <- struct{}{}:
	default: // it is about to look anyway
	}
}

// Next returns the group that is due first and when; ok is false if none waits.
func (r *Runner) Next() (group string, at time.Time, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.waiting.First()
}

// At returns when a group is due; ok is false if it does not wait.
func (r *Runner) At(group string) (at time.Time, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.waiting.At(group)
}

// Before returns the groups that are due before a time, and when.
func (r *Runner) Before(end time.Time) map[string]time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.waiting.Before(end)
}

// Run fires ticks until ctx is done. It is called once.
func (r *Runner) Run(ctx context.Context) {
	timer := time.NewTimer(maxSleep)
	defer timer.Stop()
	for ctx.Err() == nil {
		ticks, wait := r.pop()
		if len(ticks) > 0 {
			r.fire(ticks)
			continue
		}
		timer.Reset(wait)
		resume := func() {}
		if r.Idle != nil {
			resume = r.Idle()
		}
		select {
		case <-ctx.Done():
		case <-r.wake:
		case <-timer.C:
		}
		resume()
	}
}

// pop takes the groups that are due out of the heap, or says how long to sleep
// before asking again.
func (r *Runner) pop() (ticks []Tick, wait time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	for {
		_, tick, ok := r.waiting.Pop(now)
		if !ok {
			break
		}
		ticks = append(ticks, tick)
	}
	if _, at, ok := r.waiting.First(); ok {
		return ticks, min(at.Sub(now), maxSleep)
	}
	return ticks, maxSleep
}
