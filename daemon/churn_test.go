package daemon_test

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"byokd/daemon/control"
)

// TestGroupsComeAndGo adds and removes $BYOKD_CHURN groups over and over, with new
// policies each time, a file that never is good and a group that is renamed among
// them: the next time costs nothing that the time before had not.
func TestGroupsComeAndGo(t *testing.T) {
	groups, rounds := int(setting(t, "BYOKD_CHURN", 40)), 7
	w := newWorld(t)
	w.awsElsewhere()
	w.level = 12 // what is logged of bad files is of no use here
	w.configure("drift_check = \"0s\" # which adds series when it comes\n[metrics]\nlisten = \"" + freeAddress(t) + "\"")
	w.start()
	w.group("stays", "enabled = false", "")
	w.untilGeneration("stays", 1)

	type size struct{ heap, resident, descriptors, goroutines, series, groups, rows int }
	look := func(before *size) (s size) {
		for i := range 3000 {
			others, _ := descriptors(t)
			if n := goroutines(); i == 0 || n < s.goroutines {
				s.goroutines = n
			}
			if i == 0 || others < s.descriptors {
				s.descriptors = others
			}
			if before != nil && s.goroutines <= before.goroutines && s.descriptors <= before.descriptors || before == nil && i == 100 {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		for line := range strings.Lines(w.scrape()) {
			if strings.HasPrefix(line, "byokd_") {
				s.series++
			}
		}
		all, err := w.client.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		s.groups, s.rows = len(all), len(w.jobs(""))
		w.log.shorten(1)
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		s.heap, s.resident = int(m.HeapAlloc), resident(t)
		return s
	}
	states := func() map[string]int {
		all, err := w.client.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		n := make(map[string]int)
		for _, s := range all {
			n[s.State]++
		}
		return n
	}

	var sizes []size
	for round := range rounds {
		dir := fmt.Sprintf("policies-%d", round)
		if err := os.Mkdir(w.path(dir), 0o700); err != nil {
			t.Fatal(err)
		}
		for i := range groups {
			file := fmt.Sprintf("%s/%d.json", dir, i%10)
			if i < 10 {
				w.write(file, policy(fmt.Sprintf("Round%dPolicy%d", round, i)))
			}
			w.group(fmt.Sprintf("group-%04d", i), fmt.Sprintf("schedule = \"%d %d * * *\"\ninitial = \"scheduled\"\nkeep_valid_for = \"300d\"", round, i%24),
				fmt.Sprintf("policy_file = \"../%s\"", file))
			w.write(fmt.Sprintf("groups.d/bad-%d-%d.toml", round, i), "every = 7\n")
		}
		w.untilWithin(10*time.Minute, "all groups are there", func() bool {
			n := states()
			return n[control.GroupOK] == 1 && n[control.GroupPending] == groups && n[control.GroupInvalid] == groups
		})
		for i := range groups {
			for _, name := range []string{fmt.Sprintf("group-%04d", i), fmt.Sprintf("bad-%d-%d", round, i)} {
				if err := os.Remove(w.path("groups.d/" + name + ".toml")); err != nil {
					t.Fatal(err)
				}
			}
		}
		w.untilWithin(10*time.Minute, "they are gone", func() bool {
			n := states()
			return n[control.GroupOK] == 1 && n[control.GroupRemoved] == groups && n[control.GroupInvalid] == 0
		})
		var before *size
		if round > 2 {
			before = &sizes[2]
		}
		sizes = append(sizes, look(before))
	}
	t.Logf("%d groups and as many bad files, %d times:", groups, rounds)
	for i, s := range sizes {
		t.Logf("%d: heap %d KiB, resident %d KiB, %d descriptors, %d goroutines, %d series, %d groups, %d jobs", i+1,
			s.heap>>10, s.resident>>10, s.descriptors, s.goroutines, s.series, s.groups, s.rows)
	}
	first := sizes[2]
	for i, s := range sizes[3:] {
		for what, n := range map[string][2]int{"descriptors": {first.descriptors, s.descriptors}, "goroutines": {first.goroutines, s.goroutines},
			"series": {first.series, s.series}, "groups": {first.groups, s.groups}, "jobs": {first.rows, s.rows},
			"bytes of heap": {first.heap + 1<<20, s.heap}} {
			if n[1] > n[0] {
				t.Errorf("%s after round %d: %d, want at most %d", what, i+4, n[1], n[0])
			}
		}
	}
}
