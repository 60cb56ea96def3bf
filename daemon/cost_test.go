package daemon_test

import (
	"testing"
)

// What a rotation costs, by itself, of what is scarce: transactions, each of which
// waits for the disk, and requests.
func TestCostOfARotation(t *testing.T) {
	w := newWorld(t)
	w.configure("[metrics]\nlisten = \"" + freeAddress(t) + "\"")
	w.group("payments", every, "")
	w.start()
	w.untilGeneration("payments", 1)
	w.rotated("payments") // so that there is nothing left of the start
	w.until("all events are on the bus", func() bool { return w.pending() == 0 })
	before, scarce := w.scrape(), w.requests("GetParametersForImport")
	w.rotated("payments")
	w.until("all events are on the bus", func() bool { return w.pending() == 0 })
	after := w.scrape()
	if n := w.requests("GetParametersForImport") - scarce; n != 1 {
		t.Errorf("%d requests of GetParametersForImport", n)
	}
	for name, limit := range map[string]float64{"byokd_database_commits_total": 19, "byokd_aws_requests_total": 24} {
		n := metric(t, after, name) - metric(t, before, name)
		t.Logf("%s: %v", name, n)
		if n > limit {
			t.Errorf("%s: %v of a rotation, want %v at most", name, n, limit)
		}
	}
}
