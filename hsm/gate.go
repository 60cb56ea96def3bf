package hsm

import (
	"context"
	"slices"
	"sync"
)

// A gate limits how many operations are inside a module at once. It is a
// semaphore whose limit can shrink while it is in use, and which can be held
// alone, by whoever initialises the module again. Those who wait are served by their
// rank (see [WithRank]), and within one first come, first served; nobody goes before a
// lone holder who came earlier, so that it is not kept out by a stream of others.
type gate struct {
	mu     sync.Mutex
	limit  int // places; 0 until the first call of lower
	used   int
	alone  bool
	closed error // given to all who come or wait
	queue  []*waiter
}

type waiter struct {
	rank  int
	alone bool
	done  chan error // buffered; gets one value
}

type rankKey struct{}

// WithRank returns a context whose operations wait for a place in a module behind those
// of a lower rank, as it is when they come; the rank of others is 0. Where many begin
// the same piece of work, of some operations each, those of the lowest rank then get
// through with it first, instead of all of them at the end. rank may be called by
// several goroutines.
func WithRank(ctx context.Context, rank func() int) context.Context {
	return context.WithValue(ctx, rankKey{}, rank)
}

// lower sets the limit to n if that is less than it was.
func (g *gate) lower(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.limit == 0 || n < g.limit {
		g.limit = n
	}
}

// enter waits for a place, or for all of them if alone is set. It gives up when
// ctx is done or the gate is closed. Every enter that returns nil needs one leave.
func (g *gate) enter(ctx context.Context, alone bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	w := &waiter{alone: alone, done: make(chan error, 1)}
	if rank, ok := ctx.Value(rankKey{}).(func() int); ok {
		w.rank = rank()
	}
	g.mu.Lock()
	if g.closed != nil {
		defer g.mu.Unlock()
		return g.closed
	}
	at := len(g.queue)
	for at > 0 && !w.alone && !g.queue[at-1].alone && g.queue[at-1].rank > w.rank {
		at--
	}
	g.queue = slices.Insert(g.queue, at, w)
	g.admit()
	g.mu.Unlock()

	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
	}
	g.mu.Lock()
	if i := slices.Index(g.queue, w); i >= 0 {
		g.queue = slices.Delete(g.queue, i, i+1)
		g.admit() // it may have been at the head, in the way of others
		g.mu.Unlock()
		return ctx.Err()
	}
	g.mu.Unlock()
	if err := <-w.done; err != nil {
		return err
	}
	g.leave()
	return ctx.Err()
}

// leave gives the place back.
func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.used--
	g.alone = false
	g.admit()
}

// shut refuses everybody from now on with err, those who wait included.
func (g *gate) shut(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed == nil {
		g.closed = err
	}
	for _, w := range g.queue {
		w.done <- g.closed
	}
	g.queue = nil
}

// admit lets in whoever may enter, in order. The caller holds mu.
func (g *gate) admit() {
	for len(g.queue) > 0 && !g.alone {
		w := g.queue[0]
		if w.alone && g.used > 0 || !w.alone && g.used >= g.limit {
			return
		}
		g.used++
		g.alone = w.alone
		g.queue = g.queue[1:]
		w.done <- nil
	}
}
