package hsm_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"

	"byokd/hsm"
)

// A visitor enters a gate in a goroutine and leaves when told to.
type visitor struct {
	leave  chan struct{}
	inside bool
	err    error
}

func visit(ctx context.Context, g *hsm.Gate, alone bool) *visitor {
	v := &visitor{leave: make(chan struct{})}
	go func() {
		if v.err = g.Enter(ctx, alone); v.err != nil {
			return
		}
		v.inside = true
		<-v.leave
		v.inside = false
		g.Leave()
	}()
	synctest.Wait()
	return v
}

func (v *visitor) depart() {
	close(v.leave)
	synctest.Wait()
}

func inside(vs ...*visitor) []bool {
	var in []bool
	for _, v := range vs {
		in = append(in, v.inside)
	}
	return in
}

// TestGateRank: the lower rank goes first, but nobody before a lone holder who waits.
func TestGateRank(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g hsm.Gate
		g.Lower(1)
		ranked := func(rank int, alone bool) *visitor {
			return visit(hsm.WithRank(t.Context(), func() int { return rank }), &g, alone)
		}
		first := ranked(7, false)
		later, alone, last, soon, next, plain := ranked(3, false), ranked(9, true), ranked(2, false), ranked(1, false), ranked(1, false), visit(t.Context(), &g, false)
		for i, v := range []*visitor{first, later, alone, plain, soon, next, last} {
			if !v.inside {
				t.Fatalf("the turn of %d has not come", i)
			}
			v.depart()
		}
	})
}

func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g hsm.Gate
		g.Lower(3)
		g.Lower(2)
		g.Lower(5) // the smallest counts
		expect := func(what string, want []bool, vs ...*visitor) {
			t.Helper()
			if got := inside(vs...); !slices.Equal(got, want) {
				t.Errorf("%s: inside are %v, want %v", what, got, want)
			}
		}
		a, b, c := visit(t.Context(), &g, false), visit(t.Context(), &g, false), visit(t.Context(), &g, false)
		expect("two places", []bool{true, true, false}, a, b, c)

		ctx, cancel := context.WithCancel(t.Context())
		alone := visit(ctx, &g, true)
		d := visit(t.Context(), &g, false)
		a.depart()
		expect("first come", []bool{true, true, false, false}, b, c, alone, d)
		b.depart()
		expect("the lone one keeps others waiting", []bool{true, false, false}, c, alone, d)
		cancel()
		synctest.Wait()
		expect("it gave up", []bool{true, false, true}, c, alone, d)
		if !errors.Is(alone.err, context.Canceled) {
			t.Errorf("gave up with %v", alone.err)
		}

		alone = visit(t.Context(), &g, true)
		c.depart()
		d.depart()
		e := visit(t.Context(), &g, false)
		expect("alone", []bool{true, false}, alone, e)

		down := errors.New("down")
		g.Shut(down)
		synctest.Wait()
		if e.err != down {
			t.Errorf("waiting when it was shut: %v", e.err)
		}
		if err := g.Enter(t.Context(), false); err != down {
			t.Errorf("coming after it was shut: %v", err)
		}
		alone.depart()
	})
}
