package daemon

import (
	"fmt"
	"testing"
	"time"

	"byokd/schedule"
)

// BenchmarkScaleTicks: all groups have their tick at one instant, until the jobs of all
// are in the database.
func BenchmarkScaleTicks(b *testing.B) {
	for _, groups := range []int{10, 100, 1000, 10000} {
		m := newMany(b, groups)
		m.now.Add(int64(100 * 24 * time.Hour)) // all are due
		var ticks []schedule.Tick
		for _, name := range m.d.groups.names() {
			ticks = append(ticks, schedule.Tick{Group: name})
		}
		commits, begun := m.d.store.Commits(), time.Now()
		m.d.fire(ticks)
		took := time.Since(begun)
		open, err := m.d.store.OpenJobs(b.Context())
		if watcherDo(b, err); len(open) != groups {
			b.Fatalf("%d ticks made %d jobs", groups, len(open))
		}
		fmt.Printf("bench: growth: ticks at one instant to jobs: %d groups, in %d commits: %.4g s (to reach with 10000: 2 s)\n",
			groups, m.d.store.Commits()-commits, took.Seconds())
	}
}
