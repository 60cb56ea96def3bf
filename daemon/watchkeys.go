package daemon

import (
	"context"
	"slices"
	"time"
)

// watchEvery is how often it is looked whether all is there that keys need.
const watchEvery = time.Hour

// watchKeys looks whether all is there that the groups' keys need one day, so
// that a person hears of it on the day on which it goes, until ctx ends.
func (d *Daemon) watchKeys(ctx context.Context, p *pulse) {
	for {
		d.watch(ctx, p)
		if !p.sleep(ctx, expiryLook, d.watchWake) {
			return
		}
	}
}

// watch looks at the groups of which it is time to, with one look at each token.
// What cannot be looked at stays as it was seen last, and is tried again soon:
// that token or AWS are away is told elsewhere.
func (d *Daemon) watch(ctx context.Context, p *pulse) {
	tokens := make(map[string]map[string]bool)
	for _, name := range d.groups.unwatched(d.Now()) {
		g, ok := d.groups.get(name)
		if !ok || g.def == nil || ctx.Err() != nil {
			continue
		}
		objects, seen := tokens[g.def.HSM]
		if !seen {
			resume := p.rest()
			var err error
			objects, err = d.engine.Objects(ctx, g.def.HSM)
			resume()
			if err != nil {
				d.log.Debug("HSM objects cannot be looked for", "hsm", g.def.HSM, "err", err)
			}
			tokens[g.def.HSM] = objects
		}
		if objects == nil {
			continue
		}
		resume := p.rest()
		found, err := d.engine.Watch(ctx, d.definition(g.def), objects)
		resume()
		if err != nil {
			d.log.Debug("it cannot be seen whether all is there that the keys need", "group", name, "err", err)
			continue
		}
		for _, f := range found {
			if !slices.Contains(g.watched, f) {
				d.log.Warn("something that the keys need is missing", "group", name, "problem", f.Code, "message", f.Message)
			}
		}
		now := d.Now()
		d.groups.note(name, func(g *group) {
			if len(found)+len(g.watched) > 0 || g.looked != nil && len(g.looked.Problems) > 0 {
				d.groups.touched(g)
			}
			g.watched, g.watchedAt = found, now
		})
	}
}

// unwatched are the groups of which it is time to look whether all is there, sorted.
func (gs *groups) unwatched(now time.Time) (names []string) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	for name, g := range gs.m {
		if g.def != nil && g.hasKeys && now.Sub(g.watchedAt).Abs() >= watchEvery {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
