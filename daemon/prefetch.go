package daemon

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"byokd/cloud"
	"byokd/daemon/lifecycle"
)

const (
	// prefetchLook is how often it is looked at what import parameters are to be
	// fetched ahead.
	prefetchLook = 5 * time.Minute

	// leastWait is what a rotation would have to wait for its import parameters at
	// least for them to be fetched ahead.
	leastWait = 2 * time.Second

	// Fetching begins ahead of a wave by twice what its requests take at the quota, and
	// prefetchSlack, but no earlier than longestPrefetch: import parameters are valid
	// for 24 hours (GetParametersForImport in the AWS KMS API Reference), and a
	// definition may change meanwhile. What is left of the validity is leastValidity at
	// least when they are used.
	prefetchSlack   = 30 * time.Minute
	longestPrefetch = 20 * time.Hour
	leastValidity   = 10 * time.Minute

	// mostPrefetched is how many import parameters are kept at once. Each has up to 6144
	// bytes of token (ImportKeyMaterial in the AWS KMS API Reference).
	mostPrefetched = 1000
)

// A prefetcher fetches import parameters ahead for rotations in place that are due at
// one time: their KMS keys are there, and GetParametersForImport is what they would
// wait for. What it has fetched is in memory alone; a rotation that finds none there
// fetches them itself.
type prefetcher struct {
	mu   sync.Mutex
	done map[plannedRotation]bool // for which nothing is to be fetched any more
	kept map[parametersFor]lifecycle.ImportParameters
	busy map[string]bool // places at which something is being fetched
}

// A plannedRotation is the next one of a group by its schedule.
type plannedRotation struct {
	group   string
	at      time.Time
	inPlace bool // by its definition; it may be the first one of its KMS key all the same
}

// parametersFor says what import parameters are good for.
type parametersFor struct{ region, keyID, algorithm string }

// wants reports whether something is to be fetched for a rotation.
func (p *prefetcher) wants(r plannedRotation) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.done[r] && len(p.kept) < mostPrefetched
}

// finish notes that nothing is to be fetched for a rotation any more.
func (p *prefetcher) finish(r plannedRotation) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done == nil {
		p.done = make(map[plannedRotation]bool)
	}
	p.done[r] = true
}

// keep keeps import parameters until they are used or too old.
func (p *prefetcher) keep(f parametersFor, parameters lifecycle.ImportParameters) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.kept == nil {
		p.kept = make(map[parametersFor]lifecycle.ImportParameters)
	}
	p.kept[f] = parameters
}

// take returns import parameters that were fetched ahead and are still good, at AWS's
// time. They are given out once: whoever finds them refused gets fresh ones.
func (p *prefetcher) take(f parametersFor, now time.Time) (parameters lifecycle.ImportParameters, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	parameters, ok = p.kept[f]
	delete(p.kept, f)
	return parameters, ok && now.Before(parameters.ValidTo.Add(-leastValidity))
}

// drop forgets what is past.
func (p *prefetcher) drop(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for r := range p.done {
		if r.at.Before(now) {
			delete(p.done, r)
		}
	}
	for f, parameters := range p.kept {
		if !now.Before(parameters.ValidTo) {
			delete(p.kept, f)
		}
	}
}

// begin reports whether nothing is being fetched at a place yet, and that something
// is from now on, until end is called.
func (p *prefetcher) begin(place string) (end func(), ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.busy[place] {
		return nil, false
	}
	if p.busy == nil {
		p.busy = make(map[string]bool)
	}
	p.busy[place] = true
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.busy, place)
	}, true
}

// late are those of the rotations at one place that are in place and would wait for
// their import parameters, with all others and at so many a second, earliest first.
func late(rotations []plannedRotation, perSecond float64) (waiting []plannedRotation) {
	slices.SortFunc(rotations, func(a, b plannedRotation) int {
		return cmp.Or(a.at.Compare(b.at), strings.Compare(a.group, b.group))
	})
	var free time.Time // when the quota lets the next one through
	for _, r := range rotations {
		if free.Before(r.at) {
			free = r.at
		}
		if r.inPlace && free.Sub(r.at) >= leastWait {
			waiting = append(waiting, r)
		}
		free = free.Add(requestsTake(1, perSecond))
	}
	return waiting
}

func requestsTake(n int, perSecond float64) time.Duration {
	return time.Duration(float64(n) / perSecond * float64(time.Second))
}

// begins is when fetching ahead for rotations begins, the earliest of which is first.
func begins(waiting []plannedRotation, perSecond float64) time.Time {
	return waiting[0].at.Add(-min(2*requestsTake(len(waiting), perSecond)+prefetchSlack, longestPrefetch))
}

// planned are the rotations until a time from now on, by account, or credential while
// that is not known, and Region.
func (d *Daemon) planned(now, end time.Time) map[string][]plannedRotation {
	places := make(map[string][]plannedRotation)
	for name, at := range d.runner.Before(end) {
		if g, ok := d.groups.get(name); ok && g.def != nil && at.After(now) {
			place := cmp.Or(g.row.Account, g.def.Credential) + " " + g.def.AWS.Region
			places[place] = append(places[place], plannedRotation{name, at.UTC(), g.def.Rotation.Mode != "alias"})
		}
	}
	return places
}

// prefetchAll fetches import parameters ahead of planned waves, until ctx ends. What a
// look costs grows with the rotations that are due within longestPrefetch.
func (d *Daemon) prefetchAll(ctx context.Context, p *pulse) {
	var fetching sync.WaitGroup
	defer fetching.Wait()
	for {
		d.prefetchDue(ctx, &fetching)
		if !p.sleep(ctx, prefetchLook, d.prefetchWake) {
			return
		}
	}
}

// prefetchDue begins to fetch what is to be fetched by now, at all places at once.
func (d *Daemon) prefetchDue(ctx context.Context, fetching *sync.WaitGroup) {
	now := d.Now()
	d.prefetch.drop(now)
	if !d.cfg.Load().Designated {
		return
	}
	for place, rotations := range d.planned(now, now.Add(longestPrefetch)) {
		g, ok := d.groups.get(rotations[0].group)
		if !ok || g.def == nil {
			continue
		}
		rate := d.cloud.ImportRate(g.def.Credential, g.def.AWS.Region)
		waiting := late(rotations, rate)
		if len(waiting) == 0 || now.Before(begins(waiting, rate)) {
			continue
		}
		end, ok := d.prefetch.begin(place)
		if !ok {
			continue
		}
		fetching.Go(func() {
			defer end()
			if n := d.prefetchFor(ctx, waiting); n > 0 {
				d.log.Info("import parameters were fetched ahead of a wave of rotations", "place", place, "groups", n, "due_at", waiting[0].at.UTC())
			}
		})
	}
}

// prefetchFor fetches import parameters for rotations of one place, and returns for how
// many. What AWS refuses for a group is left to its rotation, which tells of it, and what
// else fails to the next look.
func (d *Daemon) prefetchFor(ctx context.Context, waiting []plannedRotation) (n int) {
	for _, r := range waiting {
		if at, ok := d.runner.At(r.group); !ok || !at.Equal(r.at) || !r.at.After(d.Now()) || !d.prefetch.wants(r) {
			continue
		}
		fetched, err := d.prefetchOne(ctx, r)
		switch {
		case ctx.Err() != nil:
			return n
		case untilLater(err):
			d.log.Debug("import parameters cannot be fetched ahead now", "group", r.group, "err", err)
			return n
		case err != nil:
			d.log.Debug("import parameters cannot be fetched ahead; the rotation fetches them", "group", r.group, "err", err)
		case fetched:
			n++
		}
	}
	return n
}

// untilLater reports whether an error is one that all requests of a place have.
func untilLater(err error) bool {
	return errors.Is(err, cloud.ErrUnreachable) || errors.Is(err, cloud.ErrThrottled) || errors.Is(err, cloud.ErrCredentials)
}

// prefetchOne fetches the import parameters of one rotation, unless it makes a fresh
// KMS key.
func (d *Daemon) prefetchOne(ctx context.Context, r plannedRotation) (fetched bool, err error) {
	g, ok := d.groups.get(r.group)
	if !ok || g.def == nil {
		return false, nil
	}
	generations, err := d.allGenerations(ctx, []string{r.group})
	if err != nil {
		return false, err
	}
	next, _ := rotation(d.definition(g.def), generations[r.group], r.at)
	if next.KeyID == "" {
		d.prefetch.finish(r)
		return false, nil
	}
	if slices.Contains(d.tokens.unavailable(), g.def.HSM) {
		return false, nil
	}
	token, err := d.tokens.get(g.def.HSM)
	if err != nil {
		return false, err
	}
	// From then on the quota is the rotations'.
	ctx, cancel := context.WithTimeout(cloud.WithPriority(ctx, cloud.Background), r.at.Sub(d.Now()))
	defer cancel()
	algorithm, err := token.Algorithm(ctx)
	if err != nil {
		return false, err
	}
	k, err := d.cloud.KMS(g.def.Credential, g.def.AWS.Region)
	if err != nil {
		return false, err
	}
	parameters, err := k.ParametersForImport(ctx, string(next.KeyID), algorithm)
	if !untilLater(err) {
		d.prefetch.finish(r)
	}
	if err != nil {
		return false, err
	}
	d.prefetch.keep(parametersFor{g.def.AWS.Region, string(next.KeyID), algorithm}, lifecycle.ImportParameters(parameters))
	return true, nil
}
