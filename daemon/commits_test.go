package daemon_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// commits is how often byokd has waited for the disk. [metrics] listen must be set.
func (w *world) commits() int {
	w.t.Helper()
	for line := range strings.Lines(w.scrape()) {
		if value, ok := strings.CutPrefix(line, "byokd_database_commits_total "); ok {
			n, err := strconv.Atoi(strings.TrimSpace(value))
			if err != nil {
				w.t.Fatal(err)
			}
			return n
		}
	}
	w.t.Fatal("the commits are not counted")
	return 0
}

// mostCommits is how often the disk may be waited for of one rotation, from who asked
// to the event that EventBridge has.
const mostCommits = 19

func TestCommitsOfARotation(t *testing.T) {
	w := newWorld(t)
	w.configure(fmt.Sprintf("[metrics]\nlisten = %q", freeAddress(t)))
	w.group("payments", `every = "90d"`, "")
	w.start()
	w.untilGeneration("payments", 1)
	delivered := func(n int) {
		w.until("the events are delivered", func() bool { return len(w.eventDetails("KMS Alias Moved")) == n })
		w.until("and it is noted", func() bool {
			d, err := w.client.Daemon(t.Context())
			return err == nil && d.Outbox.Pending == 0
		})
	}
	delivered(1)
	before := w.commits()
	const rotations = 5
	for range rotations {
		w.rotated("payments")
	}
	delivered(1 + rotations)
	n := w.commits() - before
	t.Logf("%d commits for %d rotations", n, rotations)
	if n > rotations*mostCommits {
		t.Errorf("%d rotations took %d commits, at most %d are wanted of each", rotations, n, mostCommits)
	}
}
