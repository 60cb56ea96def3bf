package daemon

import (
	"context"
	"errors"
	"slices"
	"strings"

	"byokd/config"
	"byokd/daemon/control"
)

// reload does what SIGHUP asks for: byokd.toml is read anew, then all group
// files. A bad byokd.toml changes nothing of the old one.
func (d *Daemon) reload(ctx context.Context) {
	old := d.cfg.Load()
	cfg, err := config.Load(d.ConfigPath, d.configOptions())
	if err != nil {
		d.log.Error("byokd.toml is bad: everything stays as it was", "err", err, "advice", "mend the lines that err names (byokctl check shows them too), then reload byokd")
		d.reloaded.Store(&control.Reload{At: control.At(d.Now()), Error: control.String(err.Error())})
		wake(d.tidyWake)
		return
	}
	follow, restart := config.Changes(old, cfg)
	if len(restart) > 0 {
		d.log.Warn("changed keys of byokd.toml need a restart to count", "keys", strings.Join(restart, ", "), "advice", "systemctl restart byokd; running jobs go on after it")
	}
	next := followed(old, cfg)
	d.cfg.Store(next)
	d.setLog(next)
	d.tellMissing(next)
	if slices.ContainsFunc(follow, func(key string) bool { return strings.HasPrefix(key, "credentials") }) {
		d.cloud.SetCredentials(credentials(next))
		d.groups.lookAnew() // they may lead to another account now
	}
	d.permissionsChanged(ctx) // a person has been at work
	if err := errors.Join(d.store.ForgiveHooks(ctx), d.hooks.follow(ctx)); err != nil {
		d.storeFailed("store the hooks", err)
	}
	d.outbox.forget()
	if !old.Designated && next.Designated {
		d.log.Info("this is the designated device now")
		d.groups.lookAnew()
	}
	if old.Designated && !next.Designated {
		d.resign()
		d.designate()
		d.log.Warn("this is no longer the designated device: nothing in AWS or the HSM is changed from here")
	}
	d.load(ctx, triggerSighup)
	d.groups.allChanged()
	d.reloaded.Store(&control.Reload{At: control.At(d.Now()), OK: true, Restart: restart})
	d.log.Info("reloaded", "groups", d.groups.count())
	d.wakeAll()
}

// followed is a configuration with those keys of a newer one that follow SIGHUP.
func followed(old, cfg *config.Config) *config.Config {
	next := *old
	next.Designated, next.Log, next.Events, next.Credentials = cfg.Designated, cfg.Log, cfg.Events, cfg.Credentials
	next.MaxJobs, next.Timezone, next.Settle = cfg.MaxJobs, cfg.Timezone, cfg.Settle
	next.DriftCheck, next.Hooks = cfg.DriftCheck, cfg.Hooks
	return &next
}

// setLog has the log follow [log].
func (d *Daemon) setLog(cfg *config.Config) {
	if d.SetLog != nil {
		d.SetLog(cfg.Log)
	}
}
