package daemon

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"byokd/daemon/control"
)

const (
	// probeEvery is how often the control socket is tried by byokd itself, and
	// probeTimeout how long an answer may take before it is tried again.
	probeEvery   = 10 * time.Second
	probeTimeout = 10 * time.Second
)

// A pulse shows that one of byokd's loops is alive. A loop works or rests: it
// waits for time or for a wake-up, or is in a call to a module or over a network,
// which may take as long as it likes. One that works on and on is stuck. A nil
// *pulse shows nothing.
type pulse struct {
	name  string
	since atomic.Int64 // on the clock of pulses, when its work began; 0: it rests
	clock func() int64
}

// rest has the loop rest until resume is called.
func (p *pulse) rest() (resume func()) {
	if p == nil {
		return func() {}
	}
	p.since.Store(0)
	return p.work
}

// end has the loop rest for good: it has ended.
func (p *pulse) end() { p.rest() }

func (p *pulse) work() {
	p.since.Store(p.clock())
	stuckIn(p.name)
}

// sleep is a loop's sleep.
func (p *pulse) sleep(ctx context.Context, d time.Duration, wake <-chan struct{}) bool {
	defer p.rest()()
	return sleep(ctx, d, wake)
}

// pulses are those of all loops.
type pulses struct {
	begun time.Time

	mu  sync.Mutex
	all []*pulse

	// progress is when a load last went on: it takes as long as there are groups,
	// and other loops may be waiting for its end.
	progress atomic.Int64
}

func newPulses() *pulses { return &pulses{begun: time.Now()} }

// clock is monotonic, and at least 1. It stands still while the machine sleeps.
func (ps *pulses) clock() int64 { return int64(time.Since(ps.begun)) + 1 }

// of gives a loop its pulse. It works from now on.
func (ps *pulses) of(name string) *pulse {
	p := &pulse{name: name, clock: ps.clock}
	ps.mu.Lock()
	ps.all = append(ps.all, p)
	ps.mu.Unlock()
	p.since.Store(ps.clock())
	return p
}

// goesOn tells that a load makes progress.
func (ps *pulses) goesOn() { ps.progress.Store(ps.clock()) }

// stuck names the loops that have worked for longer than limit at the time now,
// though no load has gone on meanwhile.
func (ps *pulses) stuck(now int64, limit time.Duration) (names []string) {
	progress := ps.progress.Load()
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, p := range ps.all {
		if since := p.since.Load(); since != 0 && now-max(since, progress) > int64(limit) {
			names = append(names, p.name)
		}
	}
	return names
}

// feed feeds the service manager's watchdog until done is closed, but not while
// a loop is stuck: byokd is then killed, with what all goroutines were doing in
// the log, and started again.
func (d *Daemon) feed(done <-chan struct{}) {
	watchdog := d.Notifier.Watchdog()
	every := watchdog.Interval()
	if every == 0 {
		return
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	told := ""
	for {
		switch stuck := strings.Join(d.pulses.stuck(d.pulses.clock(), 2*every), ", "); {
		case stuck == "":
			watchdog.Ping()
			told = ""
		case stuck != told:
			d.log.Error("a part of byokd is stuck: the watchdog is not fed until it goes on", "loops", stuck)
			told = stuck
		}
		select {
		case <-done:
			return
		case <-ticker.C:
		}
	}
}

// probeControl asks at the control socket as byokctl does. It works for as long
// as nobody answers.
func (d *Daemon) probeControl(ctx context.Context, p *pulse) {
	client := control.NewClient(d.cfg.Load().Socket())
	defer client.Close()
	for p.sleep(ctx, probeEvery, nil) {
		for ctx.Err() == nil && !answers(ctx, client) {
			sleep(ctx, time.Second, nil)
		}
	}
}

func answers(ctx context.Context, client *control.Client) bool {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	defer client.Close() // the next one is to be accepted anew
	return client.Ping(ctx) == nil
}
