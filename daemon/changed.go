package daemon

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"byokd/daemon/jobstore"
	"byokd/daemon/lifecycle"
)

// What is worked out of each group is kept until something of the group changes, so
// that many groups that rest cost nothing. The store tells which groups a
// transaction has changed, and groups itself what has changed in memory.

// keys are those of a group that count from day to day.
type keys struct {
	some    bool                   // there is a generation that is not destroyed
	rotated time.Time              // when the group was last rotated; zero: never
	inUse   []lifecycle.Generation // see jobstore.Keys
	warned  []warned               // what was last told of the end of each
}

// A warned says what was told of the end of a generation's material: for which end,
// and how many days ahead.
type warned struct {
	validTo time.Time
	days    int
}

// A dirty is a set of groups: those of which something has changed since they were
// last taken out of it.
type dirty struct {
	all   bool
	names map[string]struct{}
}

func (c *dirty) add(name string) {
	if c.all {
		return
	}
	if c.names == nil {
		c.names = make(map[string]struct{})
	}
	c.names[name] = struct{}{}
}

// touched notes that something of a group has changed. gs.mu is held.
func (gs *groups) touched(g *group) {
	gs.changes++
	g.version = gs.changes
	gs.toShow.add(g.name)
	gs.toRenew.add(g.name)
	gs.toCompare.add(g.name)
}

// changed notes that the database has something new of groups.
func (gs *groups) changed(names []string) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	for _, name := range names {
		if g, ok := gs.m[name]; ok {
			g.keys = nil
			gs.touched(g)
		}
	}
}

// allChanged notes that everything may be otherwise than it was: byokd.toml, or the
// clock.
func (gs *groups) allChanged() {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	gs.changes++
	for _, g := range gs.m {
		g.version, g.keys = gs.changes, nil
	}
	gs.toShow, gs.toRenew, gs.toCompare = dirty{all: true}, dirty{all: true}, dirty{all: true}
}

// take returns the groups of which something has changed, sorted.
func (gs *groups) take(c *dirty) []string {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	was := *c
	*c = dirty{}
	if was.all {
		return gs.sortedNames()
	}
	return slices.Sorted(maps.Keys(was.names))
}

// giveBack has groups taken again, which could not be dealt with.
func (gs *groups) giveBack(c *dirty, names ...string) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	for _, name := range names {
		c.add(name)
	}
}

// few is how many groups are asked for by name: above it, all are read.
const few = 500

// keysOf returns the keys of the groups named, or of all, reading those that have
// changed.
func (gs *groups) keysOf(ctx context.Context, names ...string) (map[string]*keys, error) {
	gs.mu.Lock()
	if len(names) == 0 {
		names = gs.sortedNames()
	}
	found := make(map[string]*keys, len(names))
	versions := make(map[string]int)
	var missing []string
	for _, name := range names {
		g, ok := gs.m[name]
		switch {
		case !ok:
		case g.keys != nil:
			found[name] = g.keys
		default:
			missing = append(missing, name)
			versions[name] = g.version
		}
	}
	gs.mu.Unlock()
	if len(missing) == 0 {
		return found, nil
	}
	ask := missing
	if len(ask) > few {
		ask = nil
	}
	rows, err := gs.d.store.Keys(ctx, ask...)
	if err != nil {
		return nil, err
	}
	read := make(map[string]*keys, len(missing))
	for _, row := range rows {
		read[row.Group] = newKeys(row)
	}
	gs.mu.Lock()
	defer gs.mu.Unlock()
	for _, name := range missing {
		k := read[name]
		if k == nil {
			k = new(keys) // the database does not know it yet
		}
		found[name] = k
		if g, ok := gs.m[name]; ok && g.version == versions[name] {
			g.keys = k
		}
	}
	return found, nil
}

func newKeys(row jobstore.Keys) *keys {
	k := &keys{some: row.Some, rotated: row.Rotated}
	for _, g := range row.InUse {
		// What nobody asks of them is not kept.
		g.HSMLabel, g.JobID, g.MaterialID, g.Region, g.Account = "", "", "", "", ""
		if id, ok := strings.CutPrefix(g.KeyARN, strings.TrimSuffix(g.KeyARN, g.KeyID)); ok {
			g.KeyID = id // one string for both
		}
		k.inUse = append(k.inUse, generation(g))
		k.warned = append(k.warned, warned{g.WarnedValidTo, g.WarnedDays})
	}
	k.inUse, k.warned = slices.Clip(k.inUse), slices.Clip(k.warned)
	return k
}

// show works out the state of the groups named, or of all for nil, where it is not
// known.
func (d *Daemon) show(ctx context.Context, names []string) error {
	gs := d.groups
	now := d.Now()
	gs.mu.Lock()
	if names == nil {
		names = gs.sortedNames()
	}
	var stale []string
	for _, name := range names {
		if g, ok := gs.m[name]; ok && !g.holds(now) {
			stale = append(stale, name)
		}
	}
	gs.mu.Unlock()
	if len(stale) == 0 {
		return nil
	}
	// What changes from here on makes it stale again.
	groups := make([]group, 0, len(stale))
	for _, name := range stale {
		if g, ok := gs.get(name); ok {
			groups = append(groups, g)
		}
	}
	ask := stale
	if len(ask) > few {
		ask = nil
	}
	v, err := d.view(ctx, ask...)
	if err != nil {
		return err
	}
	for i := range groups {
		s := d.groupStatus(groups[i], v)
		gs.mu.Lock()
		if g, ok := gs.m[s.Group]; ok && g.shownVersion <= groups[i].version {
			g.shown, g.shownVersion = s, groups[i].version
			if gs.nextTurn.IsZero() || s.until.Before(gs.nextTurn) {
				gs.nextTurn = s.until
			}
		}
		gs.mu.Unlock()
	}
	return nil
}

// states returns the groups named, or all for nil, as they are to be shown, by name.
// One that has changed since it was worked out is as it was then.
func (d *Daemon) states(ctx context.Context, names []string) ([]*group, error) {
	if err := d.show(ctx, names); err != nil {
		return nil, err
	}
	gs := d.groups
	gs.mu.Lock()
	defer gs.mu.Unlock()
	if names == nil {
		names = gs.sortedNames()
	}
	list := make([]*group, 0, len(names))
	copies := make([]group, len(names))
	for i, name := range names {
		if g, ok := gs.m[name]; ok && g.shown != nil {
			copies[i] = *g
			list = append(list, &copies[i])
		}
	}
	return list, nil
}
