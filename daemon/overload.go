package daemon

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"byokd/cloud"
	"byokd/config"
	"byokd/daemon/control"
)

// An overloadWatch knows where the groups' schedules cannot be met at AWS's quotas.
type overloadWatch struct {
	stale atomic.Bool // definitions have changed since the last look

	mu    sync.Mutex
	found []*problem
	since map[string]time.Time // by credential and Region
}

func (o *overloadWatch) problems() []*problem {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.found)
}

// lookForOverloads warns of schedules that cannot be met. Its work grows with the
// groups, so it follows a load of all files, and later changes with a delay.
func (d *Daemon) lookForOverloads() {
	d.overloads.stale.Store(false)
	var groups []*config.Group
	for _, name := range d.groups.names() {
		if g, ok := d.groups.get(name); ok && g.def != nil && !g.gone {
			groups = append(groups, g.def)
		}
	}
	cfg, now := d.cfg.Load(), d.Now()
	var overloads []config.Overload
	if cfg.Designated {
		overloads = config.Overloads(cfg, groups, now, d.cloud.ImportQuota)
	}
	o := &d.overloads
	o.mu.Lock()
	defer o.mu.Unlock()
	since := make(map[string]time.Time)
	o.found = nil
	for _, over := range overloads {
		place := over.Credential + " " + over.Region
		since[place] = now
		if before, known := o.since[place]; known {
			since[place] = before
		} else {
			d.log.Warn("schedules cannot be met at AWS's quotas", "credential", over.Credential, "region", over.Region,
				"groups", len(over.Groups), "which", over.Names(), "advice", over.Message)
		}
		o.found = append(o.found, &problem{"quota", over.Message + " (groups " + over.Names() + ")", since[place]})
	}
	o.since = since
}

// importQuota is the quota of imports in force at a place, as placeOf has it; 0:
// not known yet.
func (d *Daemon) importQuota(place string) float64 {
	credential, region, _ := strings.Cut(place, " ")
	return d.cloud.ImportQuota(credential, region)
}

// quotaUses are the quotas of imports in use, and others that AWS has throttled.
func (d *Daemon) quotaUses() []control.QuotaUse {
	var uses []control.QuotaUse
	for _, u := range d.cloud.QuotaUses() {
		if u.Action == cloud.ImportAction || u.Throttled > 0 {
			uses = append(uses, control.QuotaUse{Account: control.String(u.Account), Credential: control.String(u.Credential), Region: u.Region,
				Operation: u.Action, Quota: u.Quota, Source: u.Source, PerSecond: u.PerSecond, Waiting: u.Waiting, Throttled: u.Throttled})
		}
	}
	return uses
}
