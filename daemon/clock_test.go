package daemon_test

import (
	"fmt"
	"testing"
	"time"

	"byokd/cloud/awssim"
	"byokd/daemon/control"
)

// The clock is a year ahead for a while: no burst of rotations then, and
// afterwards nothing waits for the year to come round.
func TestClockAYearAhead(t *testing.T) {
	w := newWorld(t)
	base := time.Now().UTC().Truncate(time.Second) // AWS has the real time
	tick := base.Truncate(time.Hour).Add(12 * time.Hour)
	w.at(base)
	w.group("interval", `every = "30d"`, "")
	w.group("cron", fmt.Sprintf("schedule = \"0 %d * * *\"", tick.Hour()), "")
	w.group("stuck", `every = "90d"`, "")
	w.start()
	for _, name := range []string{"interval", "cron", "stuck"} {
		w.untilGeneration(name, 1)
	}
	w.until("all events are on the bus", func() bool { return w.pending() == 0 })

	ahead := base.Add(365 * 24 * time.Hour)
	w.faults(func(r awssim.Request) *awssim.Fault {
		if r.Service == "events" || r.Operation == "ImportKeyMaterial" && w.generationOf(r.KeyID) == "stuck" {
			return &awssim.Fault{Code: "ServiceUnavailable", Status: 503}
		}
		return nil
	}, nil)
	w.at(ahead)
	w.untilGeneration("interval", 2)
	w.untilGeneration("cron", 2)
	w.until("the third waits for its next attempt", func() bool {
		jobs := w.openJobs("stuck")
		return len(jobs) == 1 && jobs[0].State == control.JobRetryable
	})
	w.restart()
	w.until("events wait for their next attempt", func() bool { return w.problem("cron", "events") != "" })
	for _, name := range []string{"interval", "cron"} {
		if n := w.generation(name); n != 2 || len(w.openJobs(name)) != 0 {
			t.Errorf("%s has generation %d and open jobs %v: one rotation for a year that did not pass is enough", name, n, w.openJobs(name))
		}
	}

	// It is set right.
	w.faults(nil, nil)
	w.at(base.Add(10 * time.Minute))
	w.until("the log tells", func() bool { return w.log.contains("the clock was set back") })
	w.at(base.Add(20 * time.Minute)) // for what was put off in the moment of the change
	w.untilGeneration("stuck", 2)
	w.until("all events are on the bus", func() bool { return w.pending() == 0 })
	w.checkEvents(true)
	if next := w.status("cron").NextRotation.Time; !next.Equal(tick) {
		t.Errorf("the next rotation by cron is at %s", next)
	}
	if next := w.status("interval").NextRotation.Time; next.After(base.Add(30*24*time.Hour+time.Minute)) || next.Before(base.Add(29*24*time.Hour)) {
		t.Errorf("the next rotation by interval is at %s", next)
	}
	w.restart()
	w.at(tick)
	w.untilGeneration("cron", 3)
	w.at(base.Add(31 * 24 * time.Hour))
	w.untilGeneration("interval", 3)
	w.untilGeneration("cron", 4)
	w.checkKeys(map[string]int{"interval": 3, "cron": 4, "stuck": 2})
}

// generationOf is the group whose key it is, by its tag.
func (w *world) generationOf(keyID string) string {
	k, _ := w.sim.Key(testAccount, testRegion, keyID)
	return k.Tags["byokd:group"]
}
