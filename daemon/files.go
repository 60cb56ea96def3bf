package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"byokd/daemon/lifecycle"
)

// requestsAdvice is what to do where files in requests/ cannot be moved or read.
const requestsAdvice = "see that requests/ and what is in it belong to byokd's user, and that its file system is writable and has room"

// newDefinitionWatcher returns a watcher of the group files and of the policy files
// that they name, wherever these lie.
func (d *Daemon) newDefinitionWatcher() *watcher {
	w := newWatcher(d.cfg.Load().GroupsDir, d.settleTime, isDefinition, d.log)
	w.itself = true
	d.dir.Follow = w.follow
	return w
}

// watchDefinitions watches until ctx ends.
func (d *Daemon) watchDefinitions(ctx context.Context, p *pulse) {
	d.watcher.pulse = p
	d.watcher.run(ctx, func(names []string) {
		for i, name := range names {
			names[i] = d.watcher.path(name)
		}
		d.loadChanged(ctx, names)
	})
}

// watchRequests watches the request files until ctx ends, those included that
// were dropped while byokd was down.
func (d *Daemon) watchRequests(ctx context.Context, p *pulse) {
	w := newWatcher(d.cfg.Load().RequestsDir(), d.settleTime, isRequest, d.log)
	w.initial, w.pulse = true, p
	w.run(ctx, func(names []string) {
		for _, name := range names {
			d.takeRequest(ctx, w, name)
		}
	})
}

func (d *Daemon) settleTime() time.Duration { return time.Duration(d.cfg.Load().Settle) }

// isDefinition reports whether a file in groups_dir can matter: any but those
// that editors and transfers leave for a while, since policies lie there too.
func isDefinition(name string) bool {
	return !strings.HasPrefix(name, ".") && !strings.HasSuffix(name, "~") && !strings.HasSuffix(name, ".swp") && !strings.HasSuffix(name, ".tmp")
}

// takeRequest obeys one request file or rejects it. A file that cannot be taken
// is left where it is and met again by the watcher.
func (d *Daemon) takeRequest(ctx context.Context, w *watcher, name string) {
	d.taking.Lock()
	defer d.taking.Unlock()
	r, err := d.requests.take(name)
	switch {
	case err != nil:
		d.log.Error("request file cannot be taken yet; it is tried again", "file", name, "err", err, "advice", requestsAdvice)
		w.forget(name)
		d.untaken.Store(true)
	case r != nil:
		d.obey(ctx, r)
	}
}

// takeLeftovers obeys the requests that were taken and have no job yet: before
// byokd was last ended, or while the database could not be written.
func (d *Daemon) takeLeftovers(ctx context.Context) {
	d.taking.Lock()
	defer d.taking.Unlock()
	d.untaken.Store(false)
	left, err := d.requests.leftovers()
	if err != nil {
		d.log.Error("requests that were taken before cannot be read yet; they are tried again", "err", err, "advice", requestsAdvice)
		d.untaken.Store(true)
	}
	for _, r := range left {
		d.obey(ctx, r)
	}
}

// obey makes a job of a request, and removes its file when that is durable.
func (d *Daemon) obey(ctx context.Context, r *request) {
	d.loading.Lock()
	defer d.loading.Unlock()
	log := d.log.With("group", r.Group, "request", r.Verb)
	a, err := d.requested(ctx, r)
	if errors.Is(err, errNotYet) {
		// Its file stays among the taken ones, and is met again soon.
		d.untaken.Store(true)
		return
	}
	if refused := (*refusal)(nil); err != nil && !errors.As(err, &refused) {
		// The database could not be asked: its file stays among the taken ones.
		d.storeFailed("look a request's target up", err)
		d.untaken.Store(true)
		return
	}
	if err != nil {
		log.Error("request is rejected", "err", err, "advice", "correct it and drop it again; it lies in requests/rejected, with the reason")
		if err := d.requests.reject(r, err.Error()); err != nil {
			log.Error("request cannot be put with the rejected ones", "err", err, "advice", requestsAdvice)
		}
		return
	}
	job, joined, err := d.enqueue(ctx, a)
	if err != nil {
		// Its file stays among the taken ones.
		d.storeFailed("store a request", err)
		d.untaken.Store(true)
		return
	}
	log.Info("request is taken", "job", job.ID, "joined", joined)
	if err := d.requests.done(r); err != nil {
		log.Warn("request file cannot be removed; it has its job", "err", err)
	}
}

// A refusal is why a request cannot be obeyed, whenever it is asked again.
type refusal struct{ reason string }

func (r *refusal) Error() string { return r.reason }

func refuse(format string, args ...any) error { return &refusal{fmt.Sprintf(format, args...)} }

// errNotYet is for a request whose group's file has just been dropped.
var errNotYet = errors.New("the group's file has not settled yet")

// requested is what a request asks for, or why it cannot be obeyed.
func (d *Daemon) requested(ctx context.Context, r *request) (ask, error) {
	if !d.cfg.Load().Designated {
		return ask{}, refuse("not designated: this byokd changes nothing in AWS; ask on the designated device")
	}
	g, ok := d.groups.get(r.Group)
	switch {
	case ok && g.def == nil && g.invalid != nil:
		return ask{}, refuse("the file of group %q has never been a good one: see `byokctl status %s`", r.Group, r.Group)
	case !ok || g.def == nil:
		// A directory of that name is no group, however long one waits.
		if info, err := os.Stat(filepath.Join(d.cfg.Load().GroupsDir, r.Group+".toml")); err == nil && !info.IsDir() {
			return ask{}, errNotYet
		}
		return ask{}, refuse("there is no group %q", r.Group)
	case g.gone:
		return ask{}, refuse("the file of group %q is gone", r.Group)
	}
	a := ask{group: g.def, trigger: triggerRequest, key: "request:" + r.UniqueKey, urgent: true, by: r.By}
	switch r.Verb {
	case "rotate":
		a.kind = lifecycle.Rotate
	case "sync":
		a.kind = lifecycle.Synchronize
		a.request = lifecycle.Request{Asked: true, Generation: r.Body.Generation, KeyID: r.Body.KeyID,
			ImportMaterial: r.Body.ImportMaterial, UpdatePolicy: r.Body.UpdatePolicy, DeleteMaterial: r.Body.DeleteMaterial}
		if err := d.checkTarget(ctx, g, a.request); err != nil {
			return ask{}, err
		}
	default:
		return ask{}, refuse("a request is named rotate.GROUP or sync.GROUP, not %s.%s", r.Verb, r.Group)
	}
	return a, nil
}

// checkTarget refuses a synchronization of a generation that there is not.
func (d *Daemon) checkTarget(ctx context.Context, g group, r lifecycle.Request) error {
	if r.Generation == nil && r.KeyID == "" {
		return nil
	}
	generations, err := d.store.Generations(ctx, g.name)
	if err != nil {
		return err
	}
	id := r.KeyID[strings.LastIndexByte(r.KeyID, '/')+1:]
	for _, gen := range generations {
		if r.Generation != nil && gen.Number == *r.Generation || r.KeyID != "" && gen.KeyID == id {
			return nil
		}
	}
	if r.Generation != nil {
		return refuse("group %s has no generation %d: see `byokctl keys %s`", g.name, *r.Generation, g.name)
	}
	return refuse("KMS key %s is no generation of group %s: see `byokctl keys %s`", r.KeyID, g.name, g.name)
}
