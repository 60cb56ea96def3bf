package daemon

import (
	"context"
	"time"
)

const (
	// clockLook is how often it is looked whether the clock was set.
	clockLook = 5 * time.Second

	// clockStep is the least that the clock must have been set by: less is the
	// scheduler of the machine, or NTP at work.
	clockStep = time.Minute
)

// watchClock tells when the clock was set, and after it was set back sees that
// nothing waits for times that were written while it was ahead.
func (d *Daemon) watchClock(ctx context.Context, p *pulse) {
	wall, running := d.Now().Round(0), time.Now()
	for p.sleep(ctx, clockLook, nil) {
		now, elapsed := d.Now().Round(0), time.Since(running)
		step := now.Sub(wall) - elapsed
		wall, running = now, time.Now()
		switch {
		case step >= clockStep:
			d.log.Warn("the clock was set ahead, or the machine was suspended: what came due meanwhile is done now, once", "by", step.Round(time.Second))
			d.wakeAll()
		case step <= -clockStep:
			d.log.Warn("the clock was set back", "by", (-step).Round(time.Second))
			d.setBack(ctx)
		}
	}
}

// setBack mends what was written while the clock was ahead, if it was.
func (d *Daemon) setBack(ctx context.Context) {
	d.loading.Lock()
	defer d.loading.Unlock()
	n, err := d.store.SetBack(ctx, d.Now(), operatorRetry+clockStep)
	if err != nil {
		d.storeFailed("mend what was written while the clock was ahead", err)
		return
	}
	if n > 0 {
		d.log.Warn("times in the database lay in the future and were mended: the clock was ahead when they were written", "rows", n)
	}
	rows, err := d.store.Groups(ctx)
	if err != nil {
		d.storeFailed("read the groups", err)
		return
	}
	for _, row := range rows {
		d.groups.note(row.Name, func(g *group) { g.row = slim(row, g.def) })
	}
	d.groups.allChanged()
	d.outbox.forget()
	for _, name := range d.groups.names() {
		d.plan(name)
	}
	d.groups.lookAgain()
	d.wakeAll()
}
