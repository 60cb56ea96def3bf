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
	// aheadLook is how often it is looked at what import parameters are to be fetched
	// ahead.
	aheadLook = 5 * time.Minute

	// leastWait is what a rotation would have to wait for its import parameters at
	// least for them to be fetched ahead.
	leastWait = 2 * time.Second

	// Fetching begins ahead of a wave by twice what its requests take at the quota, and
	// aheadSlack, but no earlier than longestAhead: import parameters are valid for 24
	// hours (GetParametersForImport in the AWS KMS API Reference), and a definition may
	// change meanwhile. What is left of the validity is leastValidity at least when they
	// are used.
	aheadSlack    = 30 * time.Minute
	longestAhead  = 20 * time.Hour
	leastValidity = 10 * time.Minute
)

// An aheadWatch fetches import parameters ahead for rotations in place that are due at
// one time: their KMS keys are there, and GetParametersForImport is what they would
// wait for. What it has fetched is in memory alone; a rotation that finds none there
// fetches them itself.
type aheadWatch struct {
	mu      sync.Mutex
	planned map[string]plannedRotation // of the groups that may be rotated in place, by name
	kept    map[parametersFor]lifecycle.ImportParameters
	busy    map[string]bool // places at which something is being fetched
}

// A plannedRotation is the next one of a group by its schedule.
type plannedRotation struct {
	group              string
	credential, region string
	at                 time.Time
}

func (r plannedRotation) place() string { return r.credential + " " + r.region }

// parametersFor says what import parameters are good for.
type parametersFor struct{ region, keyID, algorithm string }

// plan notes when a group is to be rotated next; zero: it is not.
func (a *aheadWatch) plan(g group, at time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if at.IsZero() || g.def == nil || g.def.Rotation.Mode == "alias" {
		delete(a.planned, g.name)
		return
	}
	if a.planned == nil {
		a.planned = make(map[string]plannedRotation)
	}
	a.planned[g.name] = plannedRotation{g.name, g.def.Credential, g.def.AWS.Region, at}
}

// forget is plan for a group that is gone.
func (a *aheadWatch) forget(name string) { a.plan(group{name: name}, time.Time{}) }

// stands reports whether a rotation is planned as it was.
func (a *aheadWatch) stands(r plannedRotation) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.planned[r.group] == r
}

// before are the rotations planned from now until a time, by place.
func (a *aheadWatch) before(now, end time.Time) map[string][]plannedRotation {
	a.mu.Lock()
	defer a.mu.Unlock()
	places := make(map[string][]plannedRotation)
	for _, r := range a.planned {
		if r.at.After(now) && r.at.Before(end) {
			places[r.place()] = append(places[r.place()], r)
		}
	}
	return places
}

// keep keeps import parameters until they are used or of no use any more.
func (a *aheadWatch) keep(f parametersFor, p lifecycle.ImportParameters) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.kept == nil {
		a.kept = make(map[parametersFor]lifecycle.ImportParameters)
	}
	a.kept[f] = p
}

func (a *aheadWatch) has(f parametersFor) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, ok := a.kept[f]
	return ok
}

// take returns import parameters that were fetched ahead and are still good, at AWS's
// time. They are given out once: whoever finds them refused gets fresh ones.
func (a *aheadWatch) take(f parametersFor, now time.Time) (p lifecycle.ImportParameters, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p, ok = a.kept[f]
	delete(a.kept, f)
	return p, ok && now.Before(p.ValidTo.Add(-leastValidity))
}

// drop forgets what is not good any more.
func (a *aheadWatch) drop(now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for f, p := range a.kept {
		if !now.Before(p.ValidTo) {
			delete(a.kept, f)
		}
	}
}

// begin reports whether nothing is being fetched at a place yet, and that something
// is from now on, until end is called.
func (a *aheadWatch) begin(place string) (end func(), ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.busy[place] {
		return nil, false
	}
	if a.busy == nil {
		a.busy = make(map[string]bool)
	}
	a.busy[place] = true
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.busy, place)
	}, true
}

// late are those of the rotations at one place that would wait for their import
// parameters at so many a second, earliest first.
func late(rotations []plannedRotation, perSecond float64) (waiting []plannedRotation) {
	slices.SortFunc(rotations, func(a, b plannedRotation) int {
		return cmp.Or(a.at.Compare(b.at), strings.Compare(a.group, b.group))
	})
	var free time.Time // when the quota lets the next one through
	for _, r := range rotations {
		if free.Before(r.at) {
			free = r.at
		}
		if free.Sub(r.at) >= leastWait {
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
	return waiting[0].at.Add(-min(2*requestsTake(len(waiting), perSecond)+aheadSlack, longestAhead))
}

// fetchAhead fetches import parameters ahead of planned waves, until ctx ends. What it
// costs while nothing is near grows with the groups that are rotated in place.
func (d *Daemon) fetchAhead(ctx context.Context, p *pulse) {
	var fetching sync.WaitGroup
	defer fetching.Wait()
	for {
		d.fetchDue(ctx, &fetching)
		if !p.sleep(ctx, aheadLook, d.aheadWake) {
			return
		}
	}
}

// fetchDue begins to fetch what is to be fetched by now, at all places at once.
func (d *Daemon) fetchDue(ctx context.Context, fetching *sync.WaitGroup) {
	now := d.Now()
	d.ahead.drop(now)
	if !d.cfg.Load().Designated {
		return
	}
	for place, rotations := range d.ahead.before(now, now.Add(longestAhead)) {
		credential, region := rotations[0].credential, rotations[0].region
		rate := d.cloud.ImportRate(credential, region)
		waiting := late(rotations, rate)
		if len(waiting) == 0 || now.Before(begins(waiting, rate)) {
			continue
		}
		end, ok := d.ahead.begin(place)
		if !ok {
			continue
		}
		fetching.Go(func() {
			defer end()
			n, err := d.fetchAll(ctx, waiting)
			if n > 0 {
				d.log.Info("import parameters were fetched ahead of a wave of rotations", "credential", credential, "region", region,
					"groups", n, "due_at", waiting[0].at.UTC())
			}
			if err != nil && ctx.Err() == nil {
				d.log.Debug("import parameters cannot be fetched ahead; the rotations fetch them", "credential", credential, "region", region, "err", err)
			}
		})
	}
}

// fetchAll fetches import parameters for rotations of one place, and returns how many
// it has got. What fails is left to the next look, or to the rotation.
func (d *Daemon) fetchAll(ctx context.Context, waiting []plannedRotation) (n int, err error) {
	for _, r := range waiting {
		fetched, err := d.fetchFor(ctx, r)
		switch {
		case fetched:
			n++
		case errors.Is(err, cloud.ErrNotFound), errors.Is(err, cloud.ErrState):
			// It is the rotation that tells of it.
		case err != nil:
			return n, err
		}
	}
	return n, nil
}

// fetchFor fetches the import parameters of one rotation, unless they are there, or it
// has begun, or makes a fresh KMS key.
func (d *Daemon) fetchFor(ctx context.Context, r plannedRotation) (fetched bool, err error) {
	g, ok := d.groups.get(r.group)
	if !ok || g.def == nil || ctx.Err() != nil {
		return false, ctx.Err()
	}
	generations, err := d.allGenerations(ctx, []string{r.group})
	if err != nil {
		return false, err
	}
	next, _ := rotation(d.definition(g.def), generations[r.group], r.at)
	token, err := d.tokens.get(g.def.HSM)
	if next.KeyID == "" || err != nil {
		return false, err
	}
	algorithm, err := token.Algorithm(ctx)
	if err != nil {
		return false, err
	}
	f := parametersFor{r.region, string(next.KeyID), algorithm}
	left := r.at.Sub(d.Now())
	if left <= 0 || d.ahead.has(f) || !d.ahead.stands(r) {
		return false, nil
	}
	k, err := d.cloud.KMS(r.credential, r.region)
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, left) // then its turns are the rotations'
	defer cancel()
	p, err := k.ParametersForImport(cloud.WithPriority(ctx, cloud.Background), f.keyID, algorithm)
	if err != nil {
		return false, err
	}
	d.ahead.keep(f, lifecycle.ImportParameters(p))
	return true, nil
}
