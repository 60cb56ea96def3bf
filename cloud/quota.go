package cloud

import (
	"context"
	"time"
)

// A pace hands out turns at a steady rate, in the order in which they were
// asked for. It has no burst: AWS does not publish how large a burst its own
// buckets bear.
type pace struct {
	interval time.Duration
	turn     chan struct{} // held by the one who waits for next
	next     time.Time     // when the next turn may begin; guarded by turn
}

func newPace(perSecond float64) *pace {
	return &pace{
		interval: time.Duration(float64(time.Second) / perSecond),
		turn:     make(chan struct{}, 1),
	}
}

// wait returns when it is the caller's turn. A caller that gives up uses up no
// turn, so that the parked jobs of one HSM do not hold up those of another.
func (p *pace) wait(ctx context.Context) error {
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if d := time.Until(p.next); d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	p.next = time.Now().Add(p.interval)
	return nil
}
