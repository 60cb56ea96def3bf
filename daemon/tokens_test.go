package daemon_test

import (
	"fmt"
	"testing"

	"byokd/hsm"
	"byokd/hsm/hsmtest"
)

// A rotation asks a token with two thousand objects for no more than one with ten,
// and never has it search; before their first job, groups share one list of all.
func TestRotationsOnATokenWithManyObjects(t *testing.T) {
	const groups = 5
	var calls []int
	for _, objects := range []int{10, 2000} {
		t.Run(fmt.Sprint(objects), func(t *testing.T) {
			w := newWorld(t)
			hsmtest.Fill(t, w.token, objects)
			faults := hsmtest.NewFaults()
			w.hsm = []hsm.Option{hsm.WithLibrary(faults.Wrap)}
			for i := range groups {
				w.group(fmt.Sprintf("group-%d", i), every, "")
			}
			w.start()
			for i := range groups {
				w.untilGeneration(fmt.Sprintf("group-%d", i), 1)
			}
			searched := faults.Calls("C_FindObjectsInit")
			if searched > groups {
				t.Errorf("%d searches before and in the first rotations of %d groups", searched, groups)
			}
			// The look at the token each minute may come between: it makes a key and
			// no search.
			before, looks := faults.Total(), faults.Calls("C_GetTokenInfo")
			for i := range groups {
				w.rotated(fmt.Sprintf("group-%d", i))
			}
			n := faults.Calls("C_FindObjectsInit") - searched
			if n != 0 {
				t.Errorf("%d searches in %d rotations", n, groups)
			}
			if faults.Calls("C_GetTokenInfo") == looks {
				calls = append(calls, (faults.Total()-before)/groups)
			}
		})
	}
	if len(calls) == 2 && calls[0] != calls[1] {
		t.Errorf("%v calls for a rotation", calls)
	}
	t.Logf("%v calls for a rotation", calls)
}
