package daemon

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestJobsAhead: four seconds of the quota are ahead of their imports; where that is not
// enough to use it, more.
func TestJobsAhead(t *testing.T) {
	for _, test := range []struct {
		perSecond    float64
		turns        int // between one import and the next
		first, later int // how many are ahead at first, and after many imports
	}{
		{1, 1, 4, 4}, {1, 3, 4, 16}, {0.5, 1, 4, 4}, {0.5, 2, 4, 16}, {10, 1, 40, 40}, {10, 2, 40, 40}, {1000, 1, 64, 64},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorkers()
			var running []func()
			fill := func() int {
				for w.room("here", 0, test.perSecond) {
					behind, ahead, _ := w.begin("here", test.perSecond)
					if n := behind(); n != len(running) {
						t.Fatalf("%+v: %d are said to be ahead, of %d", test, n, len(running))
					}
					running = append(running, ahead)
				}
				return len(running)
			}
			if n := fill(); n != test.first {
				t.Errorf("%+v: %d are ahead at first", test, n)
			}
			for range 50 {
				running[0]()
				running = running[1:]
				fill()
				time.Sleep(time.Duration(float64(test.turns) / test.perSecond * float64(time.Second)))
			}
			if n := fill(); n != test.later {
				t.Errorf("%+v: %d are ahead later", test, n)
			}
		})
	}
}
