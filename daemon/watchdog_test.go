package daemon

import (
	"slices"
	"testing"
	"time"
)

func TestStuck(t *testing.T) {
	const limit = int64(time.Minute)
	ps := newPulses()
	resting, working := ps.of("resting"), ps.of("working")
	resume := resting.rest()
	since := working.since.Load()
	stuck := func(at int64, want ...string) {
		t.Helper()
		if got := ps.stuck(at, time.Duration(limit)); !slices.Equal(got, want) {
			t.Errorf("stuck: %v, want %v", got, want)
		}
	}
	stuck(since)
	stuck(since + limit)
	stuck(since+limit+1, "working")

	resume()
	stuck(resting.since.Load()+limit+1, "resting", "working")
	working.rest()
	stuck(resting.since.Load()+limit+1, "resting")

	// Others may be waiting for a load that goes on.
	ps.goesOn()
	stuck(ps.progress.Load() + limit)
	stuck(ps.progress.Load()+limit+1, "resting")

	var none *pulse
	none.rest()()
}
