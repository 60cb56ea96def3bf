package daemon

import (
	"sync"
	"testing"

	"byokd/daemon/control"
)

// TestStatusLeavesNobodyOut: a group that changes while the groups are looked at is
// told of with the others, as it was a moment ago or as it is now.
func TestStatusLeavesNobodyOut(t *testing.T) {
	m := newMany(t, fewGroups)
	stop := make(chan struct{})
	var changing sync.WaitGroup
	for i := range fewGroups {
		changing.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					m.d.groups.changed([]string{manyName(i)})
				}
			}
		})
	}
	for range 200 {
		groups, err := m.d.Status(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(groups) != fewGroups {
			t.Errorf("%d of %d groups are told of", len(groups), fewGroups)
			break
		}
		for _, g := range groups {
			if g.State != control.GroupOK || g.Active.Generation == nil {
				t.Fatalf("%+v", g)
			}
		}
	}
	close(stop)
	changing.Wait()
	if one, err := m.d.Status(t.Context(), []string{manyName(3)}); err != nil || len(one) != 1 || one[0].Group != manyName(3) {
		t.Errorf("%+v, %v", one, err)
	}
}
