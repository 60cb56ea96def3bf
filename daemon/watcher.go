package daemon

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
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

// A watcher tells which files of one directory have changed, and which of those
// elsewhere that it was told to follow. A file counts once it has been unchanged
// for the settle time, each for itself, so that one which is written to for ever
// holds back no other. The work for one file does not depend on how many there
// are.
//
// The directory and the files may be links, or be reached through links, may be
// swapped for others and may be gone for a while: the places where their paths
// could come to mean something else are watched too. Events only say where to
// look. What is delivered depends on what is found there, so nothing rests on
// their order or on none being lost: everything is looked at when watching begins,
// when events were lost, and every minute.
//
// A file of the directory has its name there, one elsewhere its absolute path, and
// the directory itself is called watcherItself.
type watcher struct {
	dir    string // absolute
	settle func() time.Duration
	keep   func(name string) bool
	log    *slog.Logger
	pulse  *pulse

	// initial has the first batch tell all files that are there when run
	// begins; otherwise only what changes from then on is told, and what has not
	// settled then.
	initial bool
	// itself has it told when the permissions of the directory change, or when it
	// comes or goes.
	itself bool
	// ready is closed when changes are noticed and the files that are there
	// have been looked at.
	ready chan struct{}

	rescan time.Duration
	open   func() (*fsnotify.Watcher, error)

	notify   *fsnotify.Watcher // nil: none can be had, or the directory is not there
	at       watcherPlace
	stale    bool      // the directory is another one, whatever its path says
	rescanAt time.Time // when to read the directory next
	swapped  bool      // it is read since it may be another one
	troubled bool      // a warning was logged
	failed   bool      // a watch could not be had since the last scan

	strays  bool                       // there may be watches that nothing needs any more
	watched map[string]watcherDir      // by path, without links
	ways    map[string][]string        // of files that are links or elsewhere: the paths that decide where they lead
	through map[string]map[string]bool // by such a path: the files

	mu       sync.Mutex
	asked    map[string]bool // what follow was called with
	again    []string        // what lookAgain was called with
	later    []string        // what lookLater was
	asks     chan struct{}
	followed map[string]bool

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
	dirs             uint64 // the modes of the directories that a link, or a file elsewhere, lies in
}

type watcherPending struct {
	print watcherPrint
	due   time.Time // when it counts, if it stays so
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

		asked:    make(map[string]bool),
		asks:     make(chan struct{}, 1),
		followed: make(map[string]bool),
	}
}

// watcherItself is what the directory is called among its files.
const watcherItself = "."

// follow begins or ends to watch a file elsewhere, by its absolute path. That it is
// there is told once. It may be called at any time.
func (w *watcher) follow(path string, on bool) {
	w.mu.Lock()
	w.asked[path] = on
	w.mu.Unlock()
	wake(w.asks)
}

// lookAgain has files told once more, by their absolute paths, when they have
// settled: for those that whoever was told of them did not take to have. It may be
// called at any time.
func (w *watcher) lookAgain(paths ...string) {
	if len(paths) == 0 {
		return
	}
	w.mu.Lock()
	w.again = append(w.again, paths...)
	w.mu.Unlock()
	wake(w.asks)
}

// lookLater has files told once more when all are looked at next, by their absolute
// paths: for those that were refused for what is not theirs, such as a directory that
// others may write to. It may be so no more, and look as it did before. It may be
// called at any time.
func (w *watcher) lookLater(paths ...string) {
	w.mu.Lock()
	w.later = append(w.later, paths...)
	w.mu.Unlock()
}

func (w *watcher) takeLater(now time.Time) {
	w.mu.Lock()
	later := w.later
	w.later = nil
	w.mu.Unlock()
	w.checkAgain(later, now)
}

// checkAgain has files told, by their absolute paths, that are watched still.
func (w *watcher) checkAgain(paths []string, now time.Time) {
	for _, path := range paths {
		switch name := filepath.Base(path); {
		case filepath.Dir(path) == w.dir && w.keep(name):
			w.check(name, true, now)
		case w.followed[path]:
			w.check(path, true, now)
		}
	}
}

// takeAsked does what follow and lookAgain were called for.
func (w *watcher) takeAsked(now time.Time) {
	w.mu.Lock()
	asked, again := w.asked, w.again
	w.asked, w.again = make(map[string]bool), nil
	w.mu.Unlock()
	for path, on := range asked {
		switch {
		case filepath.Dir(path) == w.dir && w.keep(filepath.Base(path)):
			// It is among the files of the directory.
		case on:
			w.followed[path] = true
			w.check(path, true, now)
		default:
			w.setWay(path, nil)
			delete(w.followed, path)
			delete(w.pending, path) // its place in the queue is passed over
			delete(w.known, path)
		}
	}
	w.checkAgain(again, now)
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
			if age := time.Since(time.Unix(0, max(p.print.modified, p.print.change))); age < 0 || age >= w.settle() {
				w.known[name] = p.print
				delete(w.pending, name)
			}
		}
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
			w.takeLater(now)
			if found := w.scan(now); found > 0 && !w.swapped {
				w.log.Info("changes that no event told of were found by reading the directory", "files", found)
			}
			w.swapped = false
			w.unwatch()
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
		case <-w.asks:
			resume()
			w.takeAsked(time.Now())
		case e := <-events:
			resume()
			w.heard(e, time.Now())
		case err := <-faults:
			resume()
			w.log.Warn("file events were lost: the directory is read again", "err", err)
			w.rescanAt = time.Now()
		}
	}
}

// heard follows up an event.
func (w *watcher) heard(e fsnotify.Event, now time.Time) {
	moved := e.Has(fsnotify.Create | fsnotify.Remove | fsnotify.Rename)
	if _, ok := w.watched[e.Name]; moved && (ok || e.Name == w.at.path) {
		w.stale = true // it may be another directory now
		w.rescanSoon()
	}
	for name := range w.through[e.Name] {
		w.check(name, true, now)
	}
	switch {
	case e.Name == w.at.path:
		if w.itself {
			w.check(watcherItself, false, now)
		}
		if e.Has(fsnotify.Chmod) {
			w.takeLater(now)
		}
	case filepath.Dir(e.Name) == w.at.path:
		if name := filepath.Base(e.Name); w.keep(name) {
			w.check(name, true, now)
		}
	case moved && !w.at.equal(watcherResolve(w.dir)):
		w.rescanSoon()
	}
}

// rescanSoon has everything looked at: the directory may be another one.
func (w *watcher) rescanSoon() {
	w.swapped = true
	if t := time.Now().Add(watcherPause); t.Before(w.rescanAt) {
		w.rescanAt = t
	}
}

// look begins to watch anew if the directory is not the one that is watched.
func (w *watcher) look() {
	if w.notify == nil || w.stale || w.watched[w.at.path] != w.at.id || !w.at.equal(watcherResolve(w.dir)) {
		w.attach()
	}
}

// attach watches the directory and the places that decide which one it is. It
// does so with a new inotify instance, which has no events of the one before.
// Directories are watched by paths without links, so that each has one name only.
func (w *watcher) attach() {
	w.detach()
	w.stale, w.strays = false, false
	w.at = watcherResolve(w.dir)
	w.watched = make(map[string]watcherDir)
	w.ways, w.through = make(map[string][]string), make(map[string]map[string]bool)
	notify, err := w.open()
	if err != nil {
		w.trouble(err)
		return
	}
	w.notify = notify
	for _, place := range w.at.decide {
		w.watch(place)
	}
	if w.at.found {
		w.watch(w.at.id)
	} else {
		w.trouble(fs.ErrNotExist)
	}
	if !w.at.equal(watcherResolve(w.dir)) {
		w.rescanSoon() // swapped before the watches stood
	}
}

// watch watches a directory; false: it was watched before, or cannot be.
func (w *watcher) watch(place watcherDir) bool {
	is, ok := w.watched[place.path]
	switch {
	case w.notify == nil:
		return false
	case ok && is != place:
		w.stale = true
		w.rescanSoon()
		return false
	case ok:
		return false
	}
	if err := w.notify.Add(place.path); err != nil {
		if !errors.Is(err, fs.ErrNotExist) { // else the scan after its end sees that
			w.trouble(err)
		}
		return false
	}
	w.watched[place.path] = place
	return true
}

// unwatch gives up the watches on directories through which nothing is reached any
// more: each new version of files elsewhere may come in a directory of its own.
func (w *watcher) unwatch() {
	if !w.strays || w.notify == nil {
		return
	}
	w.strays = false
	for path, place := range w.watched {
		if path == w.at.path || len(w.through[path]) > 0 || slices.Contains(w.at.decide, place) {
			continue
		}
		_ = w.notify.Remove(path) // it may have gone with the directory
		delete(w.watched, path)
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
	w.failed = true
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

// scan looks at all files, and returns how many have changed that no event told
// of. Where the directory cannot be read, everything is taken to be as it was,
// unless it is gone.
func (w *watcher) scan(now time.Time) (found int) {
	look := func(name string) {
		if w.check(name, false, now) {
			found++
		}
	}
	if w.itself {
		look(watcherItself)
	}
	dir, err := os.Open(w.dir)
	var names []string
	if err == nil {
		defer dir.Close()
		names, err = dir.Readdirnames(-1)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		w.log.Warn("the directory cannot be read", "err", err)
		return found
	}
	// Nearly always nothing has changed: of many files that must cost next to nothing.
	names = slices.DeleteFunc(names, func(name string) bool { return !w.keep(name) })
	others := len(w.known) // that have been told of, and are not seen below
	changed := len(w.pending) > 0
	for _, name := range names {
		if w.same(dir, name) {
			others--
		} else {
			changed = true
			look(name)
		}
	}
	for name := range w.followed {
		if _, ok := w.known[name]; ok {
			others--
		}
		look(name)
	}
	if _, ok := w.known[watcherItself]; ok {
		others--
	}
	if changed || others > 0 {
		there := maps.Clone(w.followed)
		if there == nil {
			there = make(map[string]bool)
		}
		for _, name := range names {
			there[name] = true
		}
		for name := range w.known {
			if !there[name] {
				look(name)
			}
		}
		for name := range w.pending {
			if !there[name] {
				look(name)
			}
		}
	}
	if w.troubled && !w.failed && w.notify != nil && w.at.found {
		w.troubled = false
		w.log.Info("everything is watched again")
	}
	w.failed = false
	return found
}

// check looks at one file, and has it told once it has settled, if it is not
// as it was told before. It reports whether it found a change that it did not know
// of.
func (w *watcher) check(name string, heard bool, now time.Time) bool {
	print := w.print(name)
	p := w.pending[name]
	switch {
	case p == nil:
		if !heard && print == w.known[name] {
			return false
		}
		p = &watcherPending{}
		w.pending[name] = p
		w.queue = append(w.queue, watcherDue{name, now.Add(w.settle())})
	case !heard && print == p.print:
		return false
	}
	p.print, p.due = print, now.Add(w.settle())
	return true
}

// forget has a file told again when the directory is next read, if it is still
// there then: for one that could not be dealt with. It may be called by deliver
// only.
func (w *watcher) forget(name string) { delete(w.known, name) }

// settled returns the files that have been unchanged for long enough, among them
// those that have come and gone.
func (w *watcher) settled(now time.Time) []string {
	var names []string
	for len(w.queue) > 0 && !w.queue[0].due.After(now) {
		name := w.queue[0].name
		w.queue = w.queue[1:]
		p := w.pending[name]
		if p == nil {
			continue // told to be known, or not followed any more
		}
		if print := w.print(name); print != p.print {
			p.print, p.due = print, now.Add(w.settle())
		}
		if p.due.After(now) {
			w.queue = append(w.queue, watcherDue{name, p.due})
			continue
		}
		delete(w.pending, name)
		// Also one that is as it was: somebody may have read it meanwhile.
		if p.print.found {
			w.known[name] = p.print
		} else {
			delete(w.known, name)
		}
		names = append(names, name)
	}
	return names
}

// path is the path of a file that is watched.
func (w *watcher) path(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(w.dir, name)
}

// same reports whether a file of the directory, no link, is as it was told. Where it
// cannot tell, it is not.
func (w *watcher) same(dir *os.File, name string) bool {
	var stat unix.Stat_t
	const plain = unix.S_IFREG | 0o777
	if err := unix.Fstatat(int(dir.Fd()), name, &stat, unix.AT_SYMLINK_NOFOLLOW); err != nil || stat.Mode&unix.S_IFMT != unix.S_IFREG || stat.Mode&^plain != 0 {
		return false
	}
	return w.pending[name] == nil && w.known[name] == watcherPrint{found: true, size: stat.Size, mode: stat.Mode & 0o777,
		modified: stat.Mtim.Nano(), change: stat.Ctim.Nano(), device: uint64(stat.Dev), inode: stat.Ino, owner: stat.Uid}
}

// print looks at a file, and at what it links to. Where that cannot be looked
// at, the link stands for itself.
func (w *watcher) print(name string) watcherPrint {
	path := w.path(name)
	if name == watcherItself {
		info, err := os.Stat(path)
		if err != nil {
			return watcherPrint{found: !errors.Is(err, fs.ErrNotExist)}
		}
		// Only what decides whether its files are read: it changes with each of them.
		print := watcherPrint{found: true, mode: uint32(info.Mode())}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			print.owner = stat.Uid
		}
		return print
	}
	info, err := os.Lstat(path)
	link := err == nil && info.Mode()&fs.ModeSymlink != 0
	print := watcherPrint{found: true}
	if link || filepath.IsAbs(name) {
		place := w.resolve(name, path)
		for _, dir := range []string{filepath.Dir(path), filepath.Dir(place.path)} {
			if info, err := os.Stat(dir); err == nil {
				print.dirs = print.dirs<<32 | uint64(uint32(info.Mode()))
			}
		}
	} else {
		w.setWay(name, nil)
	}
	if err != nil {
		// One that cannot be looked at is for its reader to complain of.
		print.found = !errors.Is(err, fs.ErrNotExist)
		if !print.found {
			return watcherPrint{}
		}
		return print
	}
	if link {
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			print.link = stat.Ino
		}
		if target, err := os.Stat(path); err == nil {
			info = target
		}
	}
	print.size, print.mode, print.modified = info.Size(), uint32(info.Mode()), info.ModTime().UnixNano()
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		print.device, print.inode, print.owner, print.change = stat.Dev, stat.Ino, stat.Uid, stat.Ctim.Nano()
	}
	return print
}

// resolve finds out where a file lies and watches the places that decide it.
func (w *watcher) resolve(name, path string) watcherPlace {
	for range watcherLinks {
		place := watcherResolve(path)
		added := false
		for _, dir := range place.decide {
			added = w.watch(dir) || added
		}
		if !added {
			w.setWay(name, place.way)
			return place
		}
		// It may have changed before the watches stood.
	}
	return watcherResolve(path) // it changes all the time: the next event tells
}

// setWay notes through which paths a file is reached.
func (w *watcher) setWay(name string, way []string) {
	old := w.ways[name]
	if slices.Equal(old, way) {
		return
	}
	for _, path := range old {
		if delete(w.through[path], name); len(w.through[path]) == 0 {
			delete(w.through, path)
			w.strays = true
		}
	}
	delete(w.ways, name)
	if len(way) == 0 {
		return
	}
	w.ways[name] = way
	for _, path := range way {
		if w.through[path] == nil {
			w.through[path] = make(map[string]bool)
		}
		w.through[path][name] = true
	}
}

// watcherPlace is where the path of a directory leads, and through what.
type watcherPlace struct {
	path   string // without links
	found  bool
	decide []watcherDir // a change in one of these may make it lead elsewhere
	way    []string     // they, and what in them
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
	decides := func(dir, path string) {
		d := watcherIdentity(dir)
		for _, p := range []string{dir, path} {
			if !slices.Contains(place.way, p) {
				place.way = append(place.way, p)
			}
		}
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
			decides(at, next)
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
			decides(at, next)
			place.path = next
			return place
		}
		at = next
	}
	decides(filepath.Dir(at), at)
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
