package daemon

import (
	"fmt"
	"testing"
	"time"
)

// TestLate: which rotations would wait for import parameters at the quota, and since
// when they are fetched ahead.
func TestLate(t *testing.T) {
	wave := time.Date(2026, 6, 1, 3, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		name      string
		groups    int
		apart     time.Duration
		perSecond float64
		late      int
		begins    time.Duration // before the first of them
	}{
		{"one alone", 1, 0, 1, 0, 0},
		{"two at once", 2, 0, 1, 0, 0},
		{"a wave", 300, 0, 1, 298, 30*time.Minute + 596*time.Second},
		{"a raised quota", 300, 0, 100, 100, 30*time.Minute + 2*time.Second},
		{"spread by jitter", 300, time.Second, 1, 0, 0},
		{"spread too little", 300, 500 * time.Millisecond, 1, 296, 30*time.Minute + 592*time.Second},
		{"more than can be fetched while they are valid", 40_000, 0, 1, 39_998, 20 * time.Hour},
	} {
		var rotations []plannedRotation
		for i := range test.groups {
			rotations = append(rotations, plannedRotation{fmt.Sprintf("g%05d", test.groups-i), wave.Add(time.Duration(i) * test.apart), true})
		}
		waiting := late(rotations, test.perSecond)
		if len(waiting) != test.late {
			t.Errorf("%s: %d would wait, want %d", test.name, len(waiting), test.late)
			continue
		}
		if test.late == 0 {
			continue
		}
		if got := waiting[0].at.Sub(begins(waiting, test.perSecond)); got != test.begins {
			t.Errorf("%s: fetching begins %v ahead, want %v", test.name, got, test.begins)
		}
	}
}
