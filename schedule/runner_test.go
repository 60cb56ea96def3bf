package schedule_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"byokd/schedule"

	"github.com/google/go-cmp/cmp"
)

// In a synctest bubble the time moves only when everybody waits, so these
// tests say exactly when a tick fires.

// each is a callback that is called with each tick by itself.
func each(f func(schedule.Tick)) func([]schedule.Tick) {
	return func(ticks []schedule.Tick) {
		for _, tick := range ticks {
			f(tick)
		}
	}
}

func TestRunnerFiresInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var got []string
		r := schedule.NewRunner(time.Now, each(func(tick schedule.Tick) {
			got = append(got, fmt.Sprint(tick.Group, " ", tick.At.Sub(start), " ", tick.Missed, " at ", time.Since(start)))
		}))
		set := func(group string, tick, at time.Duration, missed int) {
			r.Set(group, start.Add(tick), start.Add(at), missed)
		}
		set("c", time.Hour, 2*time.Hour, 0)
		set("b", time.Hour, 3*time.Hour, 0)
		set("a", -time.Hour, -time.Hour, 4)
		set("gone", time.Hour, time.Hour, 0)
		set("e", time.Hour, time.Hour, 0)
		set("d", 0, 3*time.Hour, 0)
		set("e", 5*time.Hour, 5*time.Hour, 0) // in place of the one before
		r.Remove("gone")
		r.Remove("never there")
		r.Set("c2", start, start.Add(time.Hour), 0)
		r.Set("c2", time.Time{}, time.Time{}, 0) // no tick any more

		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { r.Run(ctx) })
		time.Sleep(10 * time.Hour)
		synctest.Wait()
		want := []string{"a -1h0m0s 4 at 0s", "c 1h0m0s 0 at 2h0m0s", "b 1h0m0s 0 at 3h0m0s", "d 0s 0 at 3h0m0s", "e 5h0m0s 0 at 5h0m0s"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("fired (-want +got):\n%s", diff)
		}
		if group, at, ok := r.Next(); ok {
			t.Errorf("Next = %s, %v, though all have fired", group, at)
		}
		cancel()
		wg.Wait()
	})
}

func TestRunnerSetWhileItSleeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		fired := make(chan time.Duration, 10)
		r := schedule.NewRunner(time.Now, each(func(schedule.Tick) { fired <- time.Since(start) }))
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		wg.Go(func() { r.Run(ctx) })
		synctest.Wait()
		r.Set("late", start, start.Add(time.Hour), 0)
		r.Set("soon", start, start.Add(time.Second), 0)
		if group, at, ok := r.Next(); !ok || group != "soon" || !at.Equal(start.Add(time.Second)) {
			t.Errorf("Next = %s, %v, %v", group, at, ok)
		}
		if got := <-fired; got != time.Second {
			t.Errorf("soon fired after %v", got)
		}
		r.Set("late", start, start.Add(2*time.Second), 0) // it is the first already
		if got := <-fired; got != 2*time.Second {
			t.Errorf("late fired after %v", got)
		}
		cancel()
		wg.Wait()
	})
}

// The callback sets the group's next tick, as the daemon does.
func TestRunnerSetInCallback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		rule := schedule.Rule{Schedule: parse(t, "*/20 * * * *", time.UTC), Jitter: 10 * time.Minute}
		state := schedule.State{Since: start}
		ctx, cancel := context.WithCancel(t.Context())
		var r *schedule.Runner
		var got []time.Time
		set := func() {
			tick, at, missed := rule.Next(group, state, time.Now())
			r.Set(group, tick, at, missed)
		}
		r = schedule.NewRunner(time.Now, each(func(tick schedule.Tick) {
			got = append(got, tick.At)
			if want := tick.At.Add(schedule.Jitter(group, tick.At, rule.Jitter)); !time.Now().Equal(want) {
				t.Errorf("%v fired at %v, want %v", tick.At, time.Now(), want)
			}
			state.LastTick = tick.At
			if len(got) == 100 {
				cancel()
			}
			set()
		}))
		set()
		r.Run(ctx)
		for i, tick := range got {
			if want := start.Add(time.Duration(i+1) * 20 * time.Minute); !tick.Equal(want) {
				t.Fatalf("tick %d is %v, want %v", i, tick, want)
			}
		}
	})
}

// A wall clock that is set forward, or that went on while the machine was
// suspended, is noticed within 30 s without a Wake.
func TestRunnerNoticesClockSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var step time.Duration
		var mu sync.Mutex
		now := func() time.Time {
			mu.Lock()
			defer mu.Unlock()
			return time.Now().Add(step)
		}
		fired := make(chan time.Duration, 1)
		r := schedule.NewRunner(now, each(func(schedule.Tick) { fired <- time.Since(start) }))
		r.Set(group, start.Add(24*time.Hour), start.Add(24*time.Hour), 0)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { r.Run(ctx) })
		time.Sleep(time.Hour + 10*time.Second)
		mu.Lock()
		step = 23 * time.Hour
		mu.Unlock()
		if got := <-fired; got != time.Hour+30*time.Second {
			t.Errorf("fired after %v, want it at the next look", got)
		}

		// Set back: what was due in an hour takes as much longer.
		r.Set(group, now().Add(time.Hour), now().Add(time.Hour), 0)
		mu.Lock()
		step -= 5 * time.Hour
		mu.Unlock()
		from := time.Now()
		<-fired
		if got := time.Since(from); got != 6*time.Hour {
			t.Errorf("fired after %v, want 6h", got)
		}
		cancel()
		wg.Wait()
	})
}

// With a clock of its own, a test moves it and calls Wake.
func TestRunnerWithInjectedClock(t *testing.T) {
	var mu sync.Mutex
	clock := time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)
	now := func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return clock
	}
	fired := make(chan schedule.Tick)
	r := schedule.NewRunner(now, each(func(tick schedule.Tick) { fired <- tick }))
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	wg.Go(func() { r.Run(ctx) })
	for day := range 5 {
		tick := now().Add(24 * time.Hour)
		r.Set(group, tick, tick.Add(time.Hour), day)
		mu.Lock()
		clock = clock.Add(25 * time.Hour)
		mu.Unlock()
		r.Wake()
		if got, want := <-fired, (schedule.Tick{Group: group, At: tick, Missed: day}); got != want {
			t.Errorf("fired %v, want %v", got, want)
		}
	}
	cancel()
	wg.Wait()
}

// A time that carries a monotonic reading is compared by its wall clock.
func TestRunnerIgnoresMonotonicReadings(t *testing.T) {
	at := time.Now().Add(time.Hour)
	fired := make(chan schedule.Tick, 1)
	ctx, cancel := context.WithCancel(t.Context())
	r := schedule.NewRunner(func() time.Time { return at.Round(0) }, each(func(tick schedule.Tick) { fired <- tick; cancel() }))
	r.Set(group, at, at, 0)
	r.Run(ctx)
	<-fired
	if _, at, ok := r.Next(); ok {
		t.Errorf("still waiting for %v", at)
	}
}

func TestRunnerManyGroups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const groups = 10000
		start := time.Now()
		next := make(map[string]time.Time)
		counts := make(map[string]int)
		var previous time.Time
		r := schedule.NewRunner(time.Now, each(func(tick schedule.Tick) {
			counts[tick.Group]++
			if !tick.At.Equal(next[tick.Group]) || tick.At.Before(previous) {
				t.Errorf("%s fired for %v, want %v, after %v", tick.Group, tick.At, next[tick.Group], previous)
			}
			previous = tick.At
		}))
		for i := range groups {
			name := fmt.Sprintf("g%d", i)
			for range 2 {
				next[name] = start.Add(schedule.Jitter(name, start.Add(time.Duration(len(next))), 24*time.Hour))
				r.Set(name, next[name], next[name], 0)
			}
			if i%10 == 0 {
				r.Remove(name)
				delete(next, name)
			}
		}
		noon := start.Add(12 * time.Hour)
		before := r.Before(noon)
		for name, at := range next {
			if got, ok := before[name]; ok != at.Before(noon) || ok && !got.Equal(at) {
				t.Errorf("%s is due at %v, and before noon: %v at %v", name, at, ok, got)
			}
			if got, ok := r.At(name); !ok || !got.Equal(at) {
				t.Errorf("%s is due at %v, %v, want %v", name, got, ok, at)
			}
		}
		if _, ok := r.At("g0"); ok || len(before) >= len(next) {
			t.Errorf("%d of %d groups are due before noon; one that was removed is due: %v", len(before), len(next), ok)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { r.Run(ctx) })
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		cancel()
		wg.Wait()
		if len(counts) != len(next) {
			t.Errorf("%d groups fired, want %d", len(counts), len(next))
		}
		for name, n := range counts {
			if n != 1 {
				t.Errorf("%s fired %d times", name, n)
			}
		}
	})
}
