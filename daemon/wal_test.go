package daemon_test

import (
	"os"
	"strings"
	"testing"

	"byokd/daemon"
)

// What a killed byokd left of its write-ahead log does not get into a database
// that was made in the place of the old one.
func TestWriteAheadLogLeftBehind(t *testing.T) {
	w := newWorld(t)
	w.group("payments", every, "")
	w.start()
	w.untilGeneration("payments", 1)
	w.rotate("payments")
	w.untilGeneration("payments", 2)
	wal, err := os.ReadFile(w.path("state/byokd.db-wal"))
	if err != nil || len(wal) == 0 {
		t.Fatalf("the write-ahead log is empty: %v", err)
	}
	w.halt()
	if err := os.Remove(w.path("state/byokd.db")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(w.path("state/byokd.db-wal"), wal, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = daemon.InitState(w.config())
	if err != nil {
		t.Logf("byokctl init refuses: %v", err)
		if !strings.Contains(err.Error(), "byokd.db-wal") {
			t.Errorf("the message does not name the file that is in the way: %v", err)
		}
		if err := os.Remove(w.path("state/byokd.db-wal")); err != nil {
			t.Fatal(err)
		}
		w.initState()
	}
	w.start()
	w.until("the generations are found again", func() bool { return w.generation("payments") == 2 })
	if jobs := w.jobs("payments"); len(jobs) != 0 {
		t.Errorf("the new database has jobs of the old one: %+v", jobs)
	}
	w.checkKeys(map[string]int{"payments": 2})
}
