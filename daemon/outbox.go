package daemon

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"byokd/cloud"
	"byokd/config"
	"byokd/daemon/jobstore"
)

const (
	// outboxBatch is how many events are read at once.
	outboxBatch = 500

	// busCheck is how long a bus that was seen is taken to be there, and
	// busRetry when one that was not seen is looked at again.
	busCheck = 10 * time.Minute
	busRetry = time.Minute

	// storeRetry is the pause after what was sent could not be recorded: it will
	// be sent again.
	storeRetry = 10 * time.Second

	// deniedRetry is when an event is sent again that the credential may not send.
	deniedRetry = time.Hour
)

// An outbox delivers the events of the database to their buses, each group's in
// order, until they are accepted.
type outbox struct {
	d     *Daemon
	pulse *pulse // of run

	mu       sync.Mutex
	buses    map[route]busState
	failures map[route]*problem // why events cannot be delivered on a route
}

// A route is where an event goes, and as whom.
type route struct{ credential, region, bus string }

type busState struct {
	at  time.Time
	err error
}

func newOutbox(d *Daemon) *outbox {
	return &outbox{d: d, buses: make(map[route]busState), failures: make(map[route]*problem)}
}

// run delivers until ctx ends.
func (o *outbox) run(ctx context.Context, p *pulse) {
	o.pulse = p
	for ctx.Err() == nil {
		sent, err := o.deliver(ctx)
		if err != nil && ctx.Err() == nil {
			o.d.storeFailed("deliver events", err)
		}
		if sent > 0 && err == nil {
			continue
		}
		if err != nil {
			p.sleep(ctx, storeRetry, nil)
			continue
		}
		p.sleep(ctx, o.pause(ctx), o.d.outboxWake)
	}
}

// pause is how long nothing can be delivered.
func (o *outbox) pause(ctx context.Context) time.Duration {
	stats, err := o.d.store.OutboxStats(ctx)
	if err != nil || stats.Next.IsZero() {
		return idleLook
	}
	return min(max(stats.Next.Sub(o.d.Now()), time.Second), idleLook)
}

// deliver makes one round through the events that are due, and returns how many
// left the outbox.
func (o *outbox) deliver(ctx context.Context) (int, error) {
	cfg := o.d.cfg.Load()
	if !cfg.Designated || !cfg.Events.Enabled {
		return 0, nil
	}
	due, err := o.d.store.PendingEvents(ctx, o.d.Now(), outboxBatch)
	if err != nil {
		return 0, err
	}
	routes := make(map[route][]jobstore.OutboxEvent)
	var order []route
	way := make(map[string]route) // of each group's first event
	held := make(map[string]bool)
	for _, e := range due {
		r := o.routeOf(cfg, e)
		if first, ok := way[e.Group]; ok && r != first {
			held[e.Group] = true // from here on it is another, and a later round's
		}
		if held[e.Group] {
			continue
		}
		way[e.Group] = r
		if routes[r] == nil {
			order = append(order, r)
		}
		routes[r] = append(routes[r], e)
	}
	sent := 0
	var errs []error
	for _, r := range order {
		n, err := o.send(ctx, cfg, r, routes[r])
		sent += n
		errs = append(errs, err)
	}
	return sent, errors.Join(errs...)
}

// routeOf is where an event goes: by [events], else as its group was when it came
// about, else, where there is no such credential any more, as the group is now.
func (o *outbox) routeOf(cfg *config.Config, e jobstore.OutboxEvent) route {
	r := route{credential: cfg.Events.Credential, region: cfg.Events.Region, bus: cfg.Events.Bus}
	if r.credential == "" {
		r.credential = e.Credential
		if _, there := cfg.Credentials[r.credential]; !there {
			if g, ok := o.d.groups.get(e.Group); ok && g.def != nil {
				r.credential = g.def.Credential
			}
		}
	}
	if r.region == "" {
		r.region = e.Region
	}
	return r
}

// send sends the events of one route and stores what became of each. A group's
// later events are not sent after one of its own that was not accepted.
func (o *outbox) send(ctx context.Context, cfg *config.Config, r route, events []jobstore.OutboxEvent) (int, error) {
	resume := o.pulse.rest()
	bus, err := o.d.cloud.Bus(r.credential, r.region, r.bus)
	if err == nil {
		err = o.check(ctx, r, bus)
	}
	resume()
	if err != nil {
		return 0, o.putOff(ctx, events, err)
	}
	done := 0
	var errs []error
	stopped := make(map[string]bool)
	for len(events) > 0 {
		// One entry of each group at a time: whether the next may go depends on
		// the fate of the one before.
		var now, later []jobstore.OutboxEvent
		taken := make(map[string]bool)
		for _, e := range events {
			switch {
			case stopped[e.Group]:
			case taken[e.Group]:
				later = append(later, e)
			default:
				taken[e.Group] = true
				now = append(now, e)
			}
		}
		if len(now) == 0 {
			break
		}
		entries := make([]cloud.Event, len(now))
		for i, e := range now {
			entries[i] = cloud.Event{DetailType: e.DetailType, Source: cfg.Events.Source, Detail: e.Detail,
				Resources: e.Resources, Time: e.OccurredAt}
		}
		resume := o.pulse.rest()
		results, err := bus.Put(ctx, entries)
		resume()
		if err != nil && ctx.Err() != nil {
			return done, errors.Join(errs...) // sent again after the restart; event_id tells
		}
		for i, e := range now {
			result := results[i]
			// Only what EventBridge says of an entry can be hopeless; a request
			// that failed as a whole says nothing of the events in it.
			poisoned := err == nil && cloud.ClassOf(result.Err) == cloud.Permanent
			ok, serr := o.store(ctx, e, result, poisoned)
			errs = append(errs, serr)
			if ok {
				done++
			} else {
				stopped[e.Group] = true
			}
		}
		events = later
	}
	return done, errors.Join(errs...)
}

// store stores the fate of one event; ok when it left the outbox.
func (o *outbox) store(ctx context.Context, e jobstore.OutboxEvent, result cloud.Result, poisoned bool) (ok bool, err error) {
	ctx = context.WithoutCancel(ctx)
	log := o.d.log.With("group", e.Group, "event_id", e.ID, "detail_type", e.DetailType)
	switch {
	case result.Err == nil:
		o.fail(o.routeOf(o.d.cfg.Load(), e), nil)
		log.Debug("event delivered", "aws_event_id", result.EventID)
		err := o.d.store.Sent(ctx, e.ID, result.EventID, o.d.Now())
		return err == nil, err
	case poisoned:
		log.Error("event is parked: EventBridge does not take it; the group's later events go on", "err", result.Err,
			"advice", "byokctl events --state parked shows it; what it tells of is true all the same")
		err := o.d.store.Park(ctx, e.ID, result.Err.Error())
		return err == nil, err
	}
	o.fail(o.routeOf(o.d.cfg.Load(), e), result.Err)
	next := o.d.Now().Add(backoff(e.Attempt+1, true))
	if errors.Is(result.Err, cloud.ErrDenied) {
		next = o.d.Now().Add(deniedRetry)
	}
	log.Warn("event was not accepted; it is sent again", "attempt", e.Attempt+1, "err", result.Err)
	return false, o.d.store.Failed(ctx, e.ID, next, result.Err.Error())
}

// putOff puts the first event of each group off, and with it the group's others.
func (o *outbox) putOff(ctx context.Context, events []jobstore.OutboxEvent, why error) error {
	if ctx.Err() != nil {
		return nil
	}
	var errs []error
	seen := make(map[string]bool)
	for _, e := range events {
		if !seen[e.Group] {
			seen[e.Group] = true
			_, err := o.store(ctx, e, cloud.Result{Err: why}, false)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// check makes sure that the bus exists, since PutEvents to one that does not
// answers 200 and drops the event. One that cannot be checked is sent to all the
// same, with a warning.
func (o *outbox) check(ctx context.Context, r route, bus *cloud.Bus) error {
	o.mu.Lock()
	state, known := o.buses[r]
	o.mu.Unlock()
	valid := busCheck
	if state.err != nil {
		valid = busRetry
	}
	if age := o.d.Now().Sub(state.at); known && age >= 0 && age < valid {
		return state.err
	}
	err := bus.Check(ctx)
	switch {
	case errors.Is(err, cloud.ErrNotFound):
		err = fmt.Errorf("event bus %q does not exist in Region %s: create it, or correct [events] bus: %w", r.bus, r.region, err)
	case errors.Is(err, cloud.ErrDenied):
		o.d.log.Warn("it cannot be checked that the event bus exists; events are sent all the same", "bus", r.bus, "region", r.region, "err", err)
		err = nil
	case err != nil:
		return err // not an answer: PutEvents will tell the same
	}
	o.mu.Lock()
	o.buses[r] = busState{o.d.Now(), err}
	o.mu.Unlock()
	return err
}

// forget has every bus checked again, after a reload.
func (o *outbox) forget() {
	o.mu.Lock()
	defer o.mu.Unlock()
	clear(o.buses)
}

// fail notes why events cannot be delivered on a route; nil: they can.
func (o *outbox) fail(r route, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	p := o.failures[r]
	switch {
	case err == nil:
		delete(o.failures, r)
	case p == nil:
		o.failures[r] = &problem{"events", err.Error(), o.d.Now()}
	default:
		o.failures[r] = &problem{"events", err.Error(), p.since}
	}
}

// problem is why the events of a definition's group cannot be delivered; nil: they
// can.
func (o *outbox) problem(def *config.Group) *problem {
	o.mu.Lock()
	defer o.mu.Unlock()
	if def == nil || len(o.failures) == 0 {
		return nil
	}
	return o.failures[o.routeOf(o.d.cfg.Load(), jobstore.OutboxEvent{Event: jobstore.Event{Region: def.AWS.Region, Credential: def.Credential}})]
}

// firstProblem is why events cannot be delivered on some route; nil: they can.
func (o *outbox) firstProblem() *problem {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, p := range o.failures {
		return p
	}
	return nil
}
