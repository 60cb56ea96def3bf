package daemon

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// watcherRescan is how often the directory is read whether or not anything
	// was heard: network file systems, links to files elsewhere and a renamed
	// grandparent make no events.
	watcherRescan = time.Minute

	// watcherPause gathers events that ask for the directory to be read again.
	watcherPause = 100 * time.Millisecond

	// watcherLinks bounds the links that are followed to the directory, as the
	// kernel does (path_resolution(7)).
	watcherLinks = 40
)

// A watcher tells which files of one directory have changed. A file counts once
// it has been unchanged for the settle time, each for itself, so that one which
// is written to for ever holds back no other. The work for one file does not
// depend on how many there are.
//
// The directory may be a link, or be reached through links, may be swapped for
// another and may be gone for a while: the places where its path could come to
// mean something else are watched too. Events only say where to look. What is
// delivered depends on what is found there, so nothing rests on their order or
// on none being lost: the directory is read when watching begins, when events
// were lost, and every minute.
type watcher struct {
	dir    string // absolute
	settle func() time.Duration
	keep   func(name string) bool
	log    *slog.Logger
	pulse  *pulse

	// initial has the first batch tell all files that are there when run
	// begins; otherwise only what changes from then on is told.
	initial bool
	// ready is closed when changes are noticed and the files that are there
	// have been looked at.
	ready chan struct{}

	rescan time.Duration
	open   func() (*fsnotify.Watcher, error)

	notify   *fsnotify.Watcher // nil: none can be had, or the directory is not there
	at       watcherPlace
	stale    bool      // the directory is another one, whatever its path says
	rescanAt time.Time // when to read the directory next
	troubled bool      // a warning was logged
	links    bool      // some files are links

	known   map[string]watcherPrint // what has been told; not there: gone
	pending map[string]*watcherPending
	queue   []watcherDue // at least one for each pending file
}

// watcherPrint is what makes a file the same file as before. The zero value
// stands for no file.
type watcherPrint struct {
	found            bool
	device, inode    uint64
	size             int64
	mode, owner      uint32
	modified, change int64 // nanoseconds; change notices what a restored mtime hides
	link             uint64
}

type watcherPending struct {
	print watcherPrint
	due   time.Time // when it counts, if it stays so
	heard bool      // an event told of it: it counts even if it looks as before
}

type watcherDue struct {
	name string
	due  time.Time
}

// newWatcher returns a watcher of the files in dir that keep accepts. The
// settle time is asked for again and again and may change.
func newWatcher(dir string, settle func() time.Duration, keep func(name string) bool, log *slog.Logger) *watcher {
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	return &watcher{
		dir:     filepath.Clean(dir),
		settle:  settle,
		keep:    keep,
		log:     log.With("dir", dir),
		ready:   make(chan struct{}),
		rescan:  watcherRescan,
		open:    fsnotify.NewWatcher,
		known:   make(map[string]watcherPrint),
		pending: make(map[string]*watcherPending),
	}
}

// run watches until ctx is done, and calls deliver with the names of files that
// have changed or gone. What happens during that call is noticed after it.
func (w *watcher) run(ctx context.Context, deliver func(names []string)) {
	defer w.detach()
	timer := time.NewTimer(0)
	defer timer.Stop()

	w.rescanAt = time.Now().Add(w.rescan)
	w.attach()
	w.scan(time.Now())
	if !w.initial {
		for name, p := range w.pending {
			w.known[name] = p.print
		}
		clear(w.pending)
		w.queue = nil
	}
	close(w.ready)

	for ctx.Err() == nil {
		if names := w.settled(time.Now()); len(names) > 0 {
			deliver(names)
			continue
		}
		now := time.Now()
		if !now.Before(w.rescanAt) {
			w.rescanAt = now.Add(w.rescan)
			w.look()
			w.scan(now)
		}
		next := w.rescanAt
		if len(w.queue) > 0 && w.queue[0].due.Before(next) {
			next = w.queue[0].due
		}
		timer.Reset(time.Until(next))

		var events chan fsnotify.Event
		var faults chan error
		if w.notify != nil {
			events, faults = w.notify.Events, w.notify.Errors
		}
		resume := w.pulse.rest()
		select {
		case <-ctx.Done():
		case <-timer.C:
			resume()
		case e := <-events:
			resume()
			w.heard(e, time.Now())
		case err := <-faults:
			resume()
			w.log.Warn("file events were lost: the directory is read again", "err", err)
			w.rescanBy(time.Now())
		}
	}
}

// heard follows up an event.
func (w *watcher) heard(e fsnotify.Event, now time.Time) {
	switch {
	case e.Name == w.dir || e.Name == w.at.path:
		if e.Has(fsnotify.Create | fsnotify.Remove | fsnotify.Rename) {
			w.stale = true
			w.rescanBy(now.Add(watcherPause))
		}
	case filepath.Dir(e.Name) != w.dir:
		// Somewhere on the way to the directory.
		if e.Has(fsnotify.Create|fsnotify.Remove|fsnotify.Rename) && !w.at.equal(watcherResolve(w.dir)) {
			w.rescanBy(now.Add(watcherPause))
		}
	case w.keep(filepath.Base(e.Name)):
		w.check(filepath.Base(e.Name), true, now)
	case w.links:
		// It may be what links go through, like the ..data of Kubernetes.
		w.rescanBy(now.Add(watcherPause))
	}
}

func (w *watcher) rescanBy(t time.Time) {
	if t.Before(w.rescanAt) {
		w.rescanAt = t
	}
}

// look begins to watch anew if the directory is not the one that is watched.
func (w *watcher) look() {
	if w.notify == nil || w.stale || !slices.Contains(w.notify.WatchList(), w.dir) || !w.at.equal(watcherResolve(w.dir)) {
		w.attach()
	}
}

// attach watches the directory and the places that decide which one it is. It
// does so with a new inotify instance, which has no events of the one before.
func (w *watcher) attach() {
	w.detach()
	w.stale = false
	w.at = watcherResolve(w.dir)
	notify, err := w.open()
	if err != nil {
		w.trouble(err)
		return
	}
	w.notify = notify
	for _, place := range w.at.decide {
		if err := notify.Add(place.path); err != nil {
			w.log.Debug("no notice of a swapped directory", "path", place.path, "err", err)
		}
	}
	if err := notify.Add(w.dir); err != nil {
		w.trouble(err)
		return
	}
	if w.troubled {
		w.troubled = false
		w.log.Info("the directory is watched again")
	}
	if !w.at.equal(watcherResolve(w.dir)) {
		w.rescanBy(time.Now().Add(watcherPause)) // swapped before the watches stood
	}
}

func (w *watcher) detach() {
	if w.notify != nil {
		w.notify.Close()
		w.notify = nil
	}
}

// trouble warns, once until it is over, that the directory cannot be watched.
func (w *watcher) trouble(err error) {
	if w.troubled {
		return
	}
	w.troubled = true
	switch {
	case errors.Is(err, fs.ErrNotExist):
		w.log.Warn("the directory is not there: byokd waits for it", "err", err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EMFILE):
		w.log.Warn("no inotify watch can be had: byokd falls back to rescanning the directory; raise fs.inotify.max_user_watches or max_user_instances", "every", w.rescan, "err", err)
	default:
		w.log.Warn("no inotify watch can be had: byokd falls back to rescanning the directory", "every", w.rescan, "err", err)
	}
}

// scan looks at all files. Where the directory cannot be read, everything is
// taken to be as it was, unless it is gone.
func (w *watcher) scan(now time.Time) {
	dir, err := os.Open(w.dir)
	var names []string
	if err == nil {
		names, err = dir.Readdirnames(-1)
		dir.Close()
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		w.log.Warn("the directory cannot be read", "err", err)
		return
	}
	w.links = false
	there := make(map[string]bool, len(names))
	for _, name := range names {
		if w.keep(name) {
			there[name] = true
			w.check(name, false, now)
		}
	}
	for name := range w.known {
		if !there[name] {
			w.check(name, false, now)
		}
	}
	for name := range w.pending {
		if !there[name] {
			w.check(name, false, now)
		}
	}
}

// check looks at one file, and has it told once it has settled, if it is not
// as it was told before.
func (w *watcher) check(name string, heard bool, now time.Time) {
	print := w.print(name)
	p := w.pending[name]
	switch {
	case p == nil:
		if !heard && print == w.known[name] {
			return
		}
		p = &watcherPending{}
		w.pending[name] = p
		w.queue = append(w.queue, watcherDue{name, now.Add(w.settle())})
	case !heard && print == p.print:
		return
	}
	p.print, p.due, p.heard = print, now.Add(w.settle()), p.heard || heard
}

// forget has a file told again when the directory is next read, if it is still
// there then: for one that could not be dealt with. It may be called by deliver
// only.
func (w *watcher) forget(name string) { delete(w.known, name) }

// settled returns the files that have been unchanged for long enough.
func (w *watcher) settled(now time.Time) []string {
	var names []string
	for len(w.queue) > 0 && !w.queue[0].due.After(now) {
		name := w.queue[0].name
		w.queue = w.queue[1:]
		p := w.pending[name]
		if print := w.print(name); print != p.print {
			p.print, p.due = print, now.Add(w.settle())
		}
		if p.due.After(now) {
			w.queue = append(w.queue, watcherDue{name, p.due})
			continue
		}
		delete(w.pending, name)
		if was := w.known[name]; p.print == was && (!p.heard || !was.found) {
			continue // as it was, or come and gone
		}
		if p.print.found {
			w.known[name] = p.print
		} else {
			delete(w.known, name)
		}
		names = append(names, name)
	}
	return names
}

// print looks at a file, and at what it links to. Where that cannot be looked
// at, the link stands for itself.
func (w *watcher) print(name string) watcherPrint {
	path := filepath.Join(w.dir, name)
	info, err := os.Lstat(path)
	if err != nil {
		// One that cannot be looked at is for its reader to complain of.
		return watcherPrint{found: !errors.Is(err, fs.ErrNotExist)}
	}
	var link uint64
	if info.Mode()&fs.ModeSymlink != 0 {
		w.links = true
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			link = stat.Ino
		}
		if target, err := os.Stat(path); err == nil {
			info = target
		}
	}
	print := watcherPrint{found: true, size: info.Size(), mode: uint32(info.Mode()), modified: info.ModTime().UnixNano(), link: link}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		print.device, print.inode, print.owner, print.change = stat.Dev, stat.Ino, stat.Uid, stat.Ctim.Nano()
	}
	return print
}

// watcherPlace is where the path of a directory leads, and through what.
type watcherPlace struct {
	path   string // without links
	found  bool
	decide []watcherDir // a change in one of these may make it lead elsewhere
	id     watcherDir   // the directory itself
}

type watcherDir struct {
	path          string
	device, inode uint64
}

func (p watcherPlace) equal(q watcherPlace) bool {
	return p.path == q.path && p.found == q.found && p.id == q.id && slices.Equal(p.decide, q.decide)
}

// watcherResolve follows an absolute path link by link. What decides is each
// directory that holds a link on the way, and that which holds the directory
// itself or, where that is missing, the last one that is there.
func watcherResolve(path string) watcherPlace {
	var place watcherPlace
	decides := func(dir string) {
		d := watcherIdentity(dir)
		if !slices.Contains(place.decide, d) {
			place.decide = append(place.decide, d)
		}
	}
	at, rest, links := "/", watcherParts(path), 0
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		if name == ".." {
			at = filepath.Dir(at)
			continue
		}
		next := filepath.Join(at, name)
		info, err := os.Lstat(next)
		if err == nil && info.Mode()&fs.ModeSymlink != 0 && links < watcherLinks {
			decides(at)
			links++
			var target string
			if target, err = os.Readlink(next); err == nil {
				if filepath.IsAbs(target) {
					at = "/"
				}
				rest = append(watcherParts(target), rest...)
				continue
			}
		}
		if err != nil {
			decides(at)
			place.path = next
			return place
		}
		at = next
	}
	decides(filepath.Dir(at))
	place.path, place.found, place.id = at, true, watcherIdentity(at)
	return place
}

// watcherParts returns the parts of a path that mean something, in order.
func watcherParts(path string) []string {
	return slices.DeleteFunc(strings.Split(path, "/"), func(part string) bool { return part == "" || part == "." })
}

func watcherIdentity(path string) watcherDir {
	d := watcherDir{path: path}
	var stat syscall.Stat_t
	if err := syscall.Stat(path, &stat); err == nil {
		d.device, d.inode = stat.Dev, stat.Ino
	}
	return d
}
