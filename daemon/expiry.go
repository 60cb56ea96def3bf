package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"byokd/daemon/control"
	"byokd/daemon/jobstore"
	"byokd/daemon/lifecycle"
	"byokd/schedule"
)

const (
	day = 24 * time.Hour

	// Material that expires is renewed ahead of its ValidTo by a quarter of its
	// validity, but no more than the first and, so that a long weekend's outage
	// does not end a key, no less than the second; never by more than half.
	longestLead  = 14 * day
	shortestLead = 4 * day

	// tickMargin is how long before the end of validity a rotation of the
	// schedule must be for byokd to leave it to that. config sees to it that
	// those of the schedule are, where it is kept.
	tickMargin = day

	// expiryLook is how often it is looked at the latest what expires.
	expiryLook = time.Minute
)

// expiryWarnings are how many days ahead of ValidTo an event tells of it.
var expiryWarnings = []int{1, 7, 30}

// lead is how long before its end material is renewed that is valid for so long.
// A fixed offset per group makes what was imported at one time not expire again
// at one time.
func lead(group string, validity time.Duration) time.Duration {
	l := min(max(validity/4, shortestLead), longestLead, validity/2)
	return l - schedule.Jitter(group, time.Time{}, l/8)
}

// decrypts reports whether something can be decrypted under a generation's key,
// as far as byokd knows, until its material expires.
func decrypts(g lifecycle.Generation) bool {
	return (g.Stage == lifecycle.Active || g.Stage == lifecycle.Previous) && !g.ImportedAt.IsZero() &&
		g.DeletionDate.IsZero() && g.MaterialDeletedAt.IsZero() && g.DisabledAt.IsZero()
}

// needed reports whether the active generation's KMS key ends with this other
// generation, whose material it holds too.
func needed(g lifecycle.Generation, generations []lifecycle.Generation) bool {
	for _, active := range generations {
		if active.Stage == lifecycle.Active {
			return active.Number != g.Number && active.KeyID == g.KeyID && g.KeyID != ""
		}
	}
	return false
}

// reimports reports whether a generation's material is imported again ahead of its
// end. A rotation in place does that itself with what its KMS key needs; where none
// has come about shortly before the end, it may wait for a person, and the key
// does not wait with it.
func reimports(g group, gen lifecycle.Generation, generations []lifecycle.Generation, now time.Time) bool {
	r := g.def.Rotation
	switch inUse := gen.Stage == lifecycle.Active || needed(gen, generations); {
	case gen.HSMID == "":
		return false
	case r.OnExpiry == "rotate" && r.Mode != "alias" && inUse:
		last := min(tickMargin, gen.ValidTo.Sub(renewedAt(gen))/2)
		return !gen.ValidTo.IsZero() && !now.Before(gen.ValidTo.Add(-last))
	}
	return r.OnExpiry == "reimport" || needed(gen, generations)
}

// renewedAt is when a generation's material is to be renewed; zero: it does not
// expire.
func renewedAt(g lifecycle.Generation) time.Time {
	if g.ValidTo.IsZero() {
		return time.Time{}
	}
	return g.ValidTo.Add(-lead(g.Group, g.ValidTo.Sub(g.ImportedAt)))
}

// A renewal is what on_expiry asks for next; the zero one is nothing.
type renewal struct {
	at   time.Time
	job  lifecycle.Kind
	ends time.Time // ValidTo of what is renewed first
}

// renewal is when a group's key material is renewed, and how. next is the next
// rotation of the schedule; zero: there is none.
func (d *Daemon) renewal(g group, generations []lifecycle.Generation, next time.Time) (r renewal) {
	if g.def == nil || g.gone || !d.cfg.Load().Designated {
		return r
	}
	for _, gen := range generations {
		at := renewedAt(gen)
		if at.IsZero() || !decrypts(gen) {
			continue
		}
		var job lifecycle.Kind
		switch {
		case reimports(g, gen, generations, d.Now()):
			job = lifecycle.Synchronize
		case g.def.Rotation.OnExpiry == "rotate" && (gen.Stage == lifecycle.Active || needed(gen, generations)) &&
			(next.IsZero() || !next.Before(gen.ValidTo.Add(-tickMargin))):
			job = lifecycle.Rotate
		default:
			continue
		}
		if r.at.IsZero() || at.Before(r.at) {
			r = renewal{at, job, gen.ValidTo}
		}
	}
	return r
}

// watchExpiry warns of key material that expires, and asks for what on_expiry
// says, until ctx ends. A group is looked at when something of it has changed, and
// when time has come.
func (d *Daemon) watchExpiry(ctx context.Context, p *pulse) {
	due := new(dueList)
	for {
		if err := d.expire(ctx, due); err != nil && ctx.Err() == nil {
			d.storeFailed("look at what expires", err)
		}
		if !p.sleep(ctx, due.within(d.Now(), expiryLook), d.expiryWake) {
			return
		}
	}
}

// expire looks at the key material of the groups that are due, or have changed.
func (d *Daemon) expire(ctx context.Context, due *dueList) error {
	names := d.groups.take(&d.groups.toRenew)
	now := d.Now()
	for name, ok := due.pop(now); ok; name, ok = due.pop(now) {
		names = append(names, name)
	}
	if len(names) == 0 || !d.cfg.Load().Designated { // when it is, all are looked at
		return nil
	}
	keys, err := d.groups.keysOf(ctx, names...)
	if err != nil {
		d.groups.giveBack(&d.groups.toRenew, names...)
		return err
	}
	var errs []error
	for _, name := range names {
		k := keys[name]
		if k == nil {
			due.set(name, time.Time{})
			continue
		}
		next, err := d.expireGroup(ctx, name, k, now)
		if err != nil {
			errs = append(errs, err)
			next = now.Add(expiryLook)
		}
		due.set(name, next)
	}
	return errors.Join(errs...)
}

// expireGroup looks at the key material of a group, and returns when to look again;
// zero: when something of it has changed.
func (d *Daemon) expireGroup(ctx context.Context, name string, k *keys, now time.Time) (next time.Time, err error) {
	g, ok := d.groups.get(name)
	if !ok || g.def == nil {
		return next, nil
	}
	for i, gen := range k.inUse {
		if decrypts(gen) && !gen.ValidTo.IsZero() {
			if err := d.warnOfExpiry(ctx, g, gen, k.warned[i]); err != nil {
				return next, err
			}
		}
		for _, at := range turns(gen) {
			if at.After(now) && (next.IsZero() || at.Before(next)) {
				next = at
			}
		}
	}
	r, err := d.renew(ctx, name, k)
	switch {
	case err != nil || r.at.IsZero():
	case r.at.After(now):
		if next.IsZero() || r.at.Before(next) {
			next = r.at
		}
	default: // asked for; and again, if nothing comes of it
		if again := r.at.Add((now.Sub(r.at)/r.again() + 1) * r.again()); next.IsZero() || again.Before(next) {
			next = again
		}
	}
	return next, err
}

// warnedDays is how many days ahead it is to be warned of a generation's expiry
// now; 0: not yet, or not at all. What is valid for less than the days of a
// warning is not warned of so early, and what has expired not any more.
func warnedDays(g lifecycle.Generation, now time.Time) int {
	left := g.ValidTo.Sub(now)
	for _, days := range expiryWarnings {
		if ahead := time.Duration(days) * day; left > 0 && left <= ahead && ahead < g.ValidTo.Sub(g.ImportedAt) {
			return days
		}
	}
	return 0
}

// warnOfExpiry emits BYOK Key Expiring where it is time to.
func (d *Daemon) warnOfExpiry(ctx context.Context, g group, gen lifecycle.Generation, told warned) error {
	days := warnedDays(gen, d.Now())
	if days == 0 || told.validTo.Equal(gen.ValidTo) && told.days <= days {
		return nil
	}
	event := lifecycle.NewEvent(d.Now(), d.origin(d.definition(g.def), ""), lifecycle.KeyExpiring, []string{gen.KeyARN}, map[string]any{
		"key_id": gen.KeyID, "generation": gen.Number, "valid_to": gen.ValidTo.UTC().Format(time.RFC3339)})
	reported, err := d.store.ReportExpiring(ctx, gen.Number, gen.ValidTo, days, jobstore.Event(event))
	if err != nil || !reported {
		return err
	}
	d.log.Warn("key material expires", "group", g.name, "generation", gen.Number, "key_id", gen.KeyID, "valid_to", gen.ValidTo.UTC())
	d.wakeEvents()
	return nil
}

// again is how far apart a renewal is asked for again where the job was cancelled or
// given up: some times before the material ends, and daily once it has.
func (r renewal) again() time.Duration { return min(max(r.ends.Sub(r.at)/4, time.Minute), day) }

// renew asks for the job that renews a group's key material, when it is due. It
// returns which one that is.
func (d *Daemon) renew(ctx context.Context, name string, k *keys) (renewal, error) {
	g, ok := d.groups.get(name)
	if !ok || g.def == nil {
		return renewal{}, nil
	}
	generations := k.inUse
	_, next, _ := d.nextAfter(g, k.rotated)
	r := d.renewal(g, generations, next)
	now := d.Now()
	if r.at.IsZero() || r.at.After(now) {
		return r, nil
	}
	key := fmt.Sprintf("expiry:%s:%s:%d", r.job, r.ends.UTC().Format(time.RFC3339), now.Sub(r.at)/r.again())
	if g.renewing == key {
		return r, nil
	}
	d.loading.Lock()
	defer d.loading.Unlock()
	if g, ok = d.groups.get(name); !ok || g.def == nil || g.gone || !d.cfg.Load().Designated {
		return r, nil
	}
	a := ask{kind: r.job, group: g.def, trigger: triggerExpiry, key: key}
	if r.job == lifecycle.Synchronize {
		open, err := d.openJobs(ctx, name, lifecycle.Synchronize)
		if err != nil {
			return r, err
		}
		for _, row := range open {
			if job, err := lifecycleJob(&row); err == nil && r.ends.Before(job.Request.ExpiringBefore) {
				return r, nil // it goes on trying
			}
		}
		for _, gen := range generations { // what is due by now goes with it
			if at := renewedAt(gen); !at.IsZero() && !at.After(now) && decrypts(gen) && reimports(g, gen, generations, now) && !gen.ValidTo.Before(a.request.ExpiringBefore) {
				a.request.ExpiringBefore = gen.ValidTo.Add(time.Second)
			}
		}
	}
	if _, _, err := d.enqueue(ctx, a); err != nil {
		return r, err
	}
	d.log.Info("key material expires and is renewed", "group", name, "how", g.def.Rotation.OnExpiry, "valid_to", r.ends.UTC())
	d.groups.note(name, func(g *group) { g.renewing = key })
	return r, nil
}

// expiryProblems are what a person should know of a group's key material that
// has expired, or will before long.
func (d *Daemon) expiryProblems(g group, v *view, next time.Time) (problems []control.Problem) {
	if g.def == nil {
		return nil
	}
	policy, generations := g.def.Rotation.OnExpiry, v.generations[g.name]
	r := d.renewal(g, generations, next)
	for _, gen := range slices.Backward(generations) {
		if gen.ValidTo.IsZero() || !decrypts(gen) {
			continue
		}
		key := fmt.Sprintf("generation %d, KMS key %s", gen.Number, gen.KeyID)
		active := gen.Stage == lifecycle.Active
		anew := reimports(g, gen, generations, v.now)
		keep := fmt.Sprintf("byokctl sync %s --generation %d imports it anew", g.name, gen.Number)
		if gen.HSMID == "" {
			keep = "byokd does not have its material and cannot import it anew"
		}
		switch {
		case !v.now.Before(gen.ValidTo) && (active || anew || needed(gen, generations)):
			problems = append(problems, control.Problem{Code: "expired", Since: control.At(gen.ValidTo),
				Message: fmt.Sprintf("%s: its key material expired at %s: nothing can be encrypted or decrypted under it; %s", key, gen.ValidTo.UTC().Format(time.RFC3339), keep)})
		case warnedDays(gen, v.now) > 0:
			what := "byokd leaves it so (on_expiry = \"" + policy + "\"); " + keep
			switch {
			case g.gone:
				what = "the group's file is gone, so byokd leaves it so; put the file back"
			case !d.cfg.Load().Designated:
				what = "the designated device does what on_expiry = \"" + policy + "\" says"
			case anew:
				what = "byokd imports it anew at " + renewedAt(gen).UTC().Format(time.RFC3339)
			case (active || needed(gen, generations)) && policy == "rotate":
				at := r.at
				if at.IsZero() || !next.IsZero() && next.Before(at) {
					at = next
				}
				what = "byokd rotates at " + control.At(at).String() + "; to keep it as a previous key: " + keep
			}
			problems = append(problems, control.Problem{Code: "expiring",
				Message: fmt.Sprintf("%s: its key material expires at %s, and then nothing can be decrypted that was encrypted under it: %s", key, gen.ValidTo.UTC().Format(time.RFC3339), what)})
		}
	}
	return problems
}
