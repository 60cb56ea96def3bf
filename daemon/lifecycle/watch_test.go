package lifecycle_test

import (
	"strings"
	"testing"

	"byokd/daemon/lifecycle"
)

// What keys need one day is missed on the day on which it goes.
func TestWatch(t *testing.T) {
	def := definition()
	def.Mode = "in-place"
	for _, tt := range []struct {
		name   string
		happen func(w *world)
		want   []string // codes, each with a word of its message
	}{
		{"nothing", func(*world) {}, nil},
		{"an object lost", func(w *world) { w.hsm.lose(w.generation(1).HSMID) }, []string{"hsm-object-missing", "its 3 generations is unusable"}},
		{"4 rotations left", func(w *world) { w.keyOf(1).use(lifecycle.MaxRotations - 2 - 4) }, nil},
		{"3 rotations left", func(w *world) { w.keyOf(1).use(lifecycle.MaxRotations - 2 - 3) }, []string{"rotations-left", "3 more times"}},
		{"the key gone", func(w *world) { delete(w.kms.keys, w.generation(1).KeyID) }, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			for range 3 {
				w.rotate(def)
			}
			tt.happen(w)
			w.lookOnly = true
			objects, err := w.engine.Objects(t.Context(), def.HSM)
			if err != nil {
				t.Fatal(err)
			}
			found, err := w.engine.Watch(t.Context(), def, objects)
			switch {
			case err != nil:
				t.Error(err)
			case tt.want == nil && len(found) > 0:
				t.Errorf("found %v", found)
			case tt.want != nil && (len(found) != 1 || found[0].Code != tt.want[0] || !strings.Contains(found[0].Message, tt.want[1])):
				t.Errorf("found %v, want %v", found, tt.want)
			}
		})
	}
}
