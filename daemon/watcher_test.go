package daemon

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// A watcherModel does with what a watcher delivers what the daemon does: it
// reads the files again. So it knows the directory as the daemon would.
type watcherModel struct {
	t   *testing.T
	dir string
	w   *watcher
	log *watcherLog

	mu      sync.Mutex
	batches [][]string
	count   map[string]int
	content map[string]string // of the files, "mode content"
	changed chan struct{}     // a batch was delivered

	keeps atomic.Int64                  // calls of the filter
	gate  atomic.Pointer[chan struct{}] // deliver waits for it to be closed
	waits atomic.Pointer[chan struct{}] // and says there that it waits
}

func watcherKeep(name string) bool {
	return !strings.HasPrefix(name, ".") && !strings.HasSuffix(name, "~") && !strings.HasSuffix(name, ".tmp") && !strings.HasSuffix(name, ".swp")
}

func newWatcherModel(t *testing.T, dir string, settle time.Duration) *watcherModel {
	m := &watcherModel{t: t, dir: dir, log: new(watcherLog), count: map[string]int{}, content: map[string]string{}, changed: make(chan struct{}, 1)}
	keep := func(name string) bool {
		m.keeps.Add(1)
		return watcherKeep(name)
	}
	m.w = newWatcher(dir, func() time.Duration { return settle }, keep, slog.New(slog.NewTextHandler(m.log, nil)))
	return m
}

// start runs the watcher until the test ends, and waits until it is ready.
func (m *watcherModel) start() {
	m.t.Helper()
	ctx, cancel := context.WithCancel(m.t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { m.w.run(ctx, m.deliver) })
	m.t.Cleanup(func() { cancel(); wg.Wait() })
	<-m.w.ready
}

func (m *watcherModel) deliver(names []string) {
	if gate := m.gate.Load(); gate != nil {
		if waits := m.waits.Load(); waits != nil {
			*waits <- struct{}{}
		}
		<-*gate
	}
	m.mu.Lock()
	m.batches = append(m.batches, names)
	for _, name := range names {
		m.count[name]++
		if state, ok := watcherState(filepath.Join(m.dir, name)); ok {
			m.content[name] = state
		} else {
			delete(m.content, name)
		}
	}
	m.mu.Unlock()
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

func watcherState(path string) (string, bool) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", false
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", false
	}
	return fmt.Sprintf("%v %s", info.Mode(), data), true
}

// until waits for a condition on what was delivered.
func (m *watcherModel) until(what string, condition func() bool) {
	m.t.Helper()
	guard := time.NewTimer(2 * time.Minute)
	defer guard.Stop()
	for {
		m.mu.Lock()
		ok := condition()
		m.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-m.changed:
		case <-guard.C:
			m.t.Fatalf("still waiting until %s; delivered: %v\n%s", what, m.count, m.log)
		}
	}
}

// untilTold waits for a file to be delivered once more than before change.
func (m *watcherModel) untilTold(name string, change func()) {
	m.t.Helper()
	m.mu.Lock()
	before := m.count[name]
	m.mu.Unlock()
	change()
	want, there := watcherState(filepath.Join(m.dir, name))
	m.until(name+" is told", func() bool {
		got, found := m.content[name]
		return m.count[name] > before && got == want && found == there
	})
}

// untilSame waits until what was delivered adds up to what is there.
func (m *watcherModel) untilSame() {
	m.t.Helper()
	entries, err := os.ReadDir(m.dir)
	if err != nil {
		m.t.Fatal(err)
	}
	want := map[string]string{}
	for _, e := range entries {
		if watcherKeep(e.Name()) {
			if state, ok := watcherState(filepath.Join(m.dir, e.Name())); ok {
				want[e.Name()] = state
			}
		}
	}
	m.until("all changes are told", func() bool { return maps.Equal(want, m.content) })
}

// A watcherLog is a log to look into while it is written.
type watcherLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *watcherLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *watcherLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func watcherWrite(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// watcherDo fails the test if one of several steps failed.
func watcherDo(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

const watcherSettle = 20 * time.Millisecond

func TestWatcherInitial(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a.toml", "b.json", ".hidden", "c~", "d.swp", "e.tmp"} {
		watcherWrite(t, filepath.Join(dir, name), name)
	}
	m := newWatcherModel(t, dir, watcherSettle)
	m.w.initial = true
	m.start()
	m.untilSame()
	if len(m.batches) != 1 || len(m.batches[0]) != 2 {
		t.Errorf("batches %v, want one of two files", m.batches)
	}
}

func TestWatcherChanges(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.toml")
	watcherWrite(t, path, "old")
	m := newWatcherModel(t, dir, watcherSettle)
	m.start()
	changes := []struct {
		name string
		do   func()
	}{
		{"written in place", func() { watcherWrite(t, path, "new") }},
		{"written in place, same size", func() { watcherWrite(t, path, "NEW") }},
		{"same size, mtime put back", func() {
			info, err := os.Stat(path)
			watcherDo(t, err)
			watcherWrite(t, path, "neW")
			watcherDo(t, os.Chtimes(path, time.Time{}, info.ModTime()))
		}},
		{"renamed over", func() {
			watcherWrite(t, filepath.Join(dir, ".a.toml.1"), "renamed")
			watcherDo(t, os.Rename(filepath.Join(dir, ".a.toml.1"), path))
		}},
		{"chmod", func() { watcherDo(t, os.Chmod(path, 0o640)) }},
		{"truncated", func() { watcherDo(t, os.Truncate(path, 0)) }},
		{"deleted", func() { watcherDo(t, os.Remove(path)) }},
		{"made again", func() { watcherWrite(t, path, "again") }},
		{"deleted and made again", func() {
			watcherDo(t, os.Remove(path))
			watcherWrite(t, path, "again")
		}},
		{"renamed away", func() { watcherDo(t, os.Rename(path, filepath.Join(dir, "b.toml"))) }},
		{"made a link", func() { watcherDo(t, os.Symlink("b.toml", path)) }},
		{"link to elsewhere", func() {
			watcherDo(t, os.Remove(path), os.Symlink("/dev/null", path))
		}},
		{"dangling link", func() { watcherDo(t, os.Remove(path), os.Symlink("nowhere", path)) }},
		{"linked to itself", func() { watcherDo(t, os.Remove(path), os.Symlink("a.toml", path)) }},
		{"made a directory", func() { watcherDo(t, os.Remove(path), os.Mkdir(path, 0o700)) }},
		{"made a pipe", func() { watcherDo(t, os.Remove(path), syscall.Mkfifo(path, 0)) }},
		{"gone in the end", func() { watcherDo(t, os.Remove(path)) }},
	}
	for _, c := range changes {
		if c.name == "made a pipe" {
			// Reading it would block the model, not the watcher.
			before := m.count["a.toml"]
			m.gate.Store(new(make(chan struct{})))
			c.do()
			watcherDo(t, os.Remove(path), os.Mkdir(path, 0o700))
			close(*m.gate.Load())
			m.until(c.name, func() bool { return m.count["a.toml"] > before })
			continue
		}
		m.untilTold("a.toml", c.do)
	}
	// The ones that are left alone are never told of, also not later.
	for _, name := range []string{".a.swp", "a~", "x.tmp", "x.swp"} {
		watcherWrite(t, filepath.Join(dir, name), "")
	}
	m.untilTold("last", func() { watcherWrite(t, filepath.Join(dir, "last"), "") })
	for name := range m.count {
		if !watcherKeep(name) {
			t.Errorf("%s was told", name)
		}
	}
}

// A file that was there at the start is not told unless it changes.
func TestWatcherNotInitial(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	watcherWrite(t, path, "")
	info, err := os.Stat(path)
	watcherDo(t, err)
	for time.Since(info.ModTime()) <= watcherSettle {
		runtime.Gosched() // it has not settled yet: it would be told
	}
	m := newWatcherModel(t, dir, watcherSettle)
	m.w.rescan = watcherSettle
	m.start()
	m.untilTold("b", func() { watcherWrite(t, filepath.Join(dir, "b"), "") })
	m.untilTold("b", func() { watcherWrite(t, filepath.Join(dir, "b"), "x") })
	if n := m.count["a"]; n != 0 {
		t.Errorf("a file that did not change was told %d times", n)
	}
}

func TestWatcherEndlessWriter(t *testing.T) {
	const settle = time.Second
	dir := t.TempDir()
	m := newWatcherModel(t, dir, settle)
	m.start()

	file, err := os.Create(filepath.Join(dir, "endless"))
	watcherDo(t, err)
	defer file.Close()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var longest time.Duration
	wg.Go(func() {
		for last := time.Now(); ctx.Err() == nil; {
			if _, err := file.WriteString("x"); err != nil {
				t.Error(err)
				return
			}
			now := time.Now()
			longest = max(longest, now.Sub(last))
			last = now
		}
	})
	for i := range 3 {
		name := fmt.Sprintf("file%d", i)
		m.untilTold(name, func() { watcherWrite(t, filepath.Join(dir, name), "x") })
	}
	m.mu.Lock()
	told := m.count["endless"]
	m.mu.Unlock()
	cancel()
	wg.Wait()
	// On a machine that is too busy to write once a second, it may have settled.
	if told > 0 && longest < settle/2 {
		t.Errorf("a file was told %d times while it was written to, at least every %v", told, longest)
	}
	m.untilSame()
}

// The work for one file does not grow with the number of files.
func TestWatcherOneOfMany(t *testing.T) {
	dir := t.TempDir()
	const files = 2000
	for i := range files {
		watcherWrite(t, filepath.Join(dir, fmt.Sprint(i)), "")
	}
	m := newWatcherModel(t, dir, watcherSettle)
	m.start()
	m.keeps.Store(0)
	m.untilTold("1711", func() { watcherWrite(t, filepath.Join(dir, "1711"), "x") })
	if n := m.keeps.Load(); n > 20 {
		t.Errorf("%d files were looked at for one that changed", n)
	}
}

func TestWatcherThousandsOfOperations(t *testing.T) {
	dir := t.TempDir()
	m := newWatcherModel(t, dir, watcherSettle)
	m.start()
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(42, uint64(worker)))
			for i := range 1500 {
				// Each worker has files of its own, so that its steps are not disturbed.
				path := filepath.Join(dir, fmt.Sprintf("w%d-%d", worker, random.IntN(40)))
				content := []byte(strings.Repeat("x", random.IntN(3)) + fmt.Sprint(i))
				var err error
				switch random.IntN(6) {
				case 0, 1:
					err = os.WriteFile(path, content, 0o600)
				case 2:
					temp := filepath.Join(dir, fmt.Sprintf(".w%d.tmp", worker))
					if err = os.WriteFile(temp, content, 0o600); err == nil {
						err = os.Rename(temp, path)
					}
				case 3:
					if err = os.Remove(path); os.IsNotExist(err) {
						err = nil
					}
				case 4:
					if err = os.Chmod(path, 0o600+os.FileMode(random.IntN(8))*8); os.IsNotExist(err) {
						err = nil
					}
				case 5:
					if err = os.Rename(path, fmt.Sprintf("%s-%d", path, random.IntN(3))); os.IsNotExist(err) {
						err = nil
					}
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	m.untilSame()
}

// Ten thousand files at once, while nobody listens: events are lost, changes
// are not.
func TestWatcherManyAtOnce(t *testing.T) {
	dir := t.TempDir()
	m := newWatcherModel(t, dir, watcherSettle)
	gate := make(chan struct{})
	m.gate.Store(&gate)
	m.start()
	watcherWrite(t, filepath.Join(dir, "first"), "") // deliver waits at the gate with this one
	const files = 10000
	for round := range 3 {
		for i := range files {
			path := filepath.Join(dir, fmt.Sprint(i))
			if round == 2 && i%3 == 0 {
				watcherDo(t, os.Remove(path))
			} else {
				watcherWrite(t, path, fmt.Sprint(round))
			}
		}
	}
	close(gate)
	m.untilSame()
}

func TestWatcherDirectoryReplaced(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "groups.d")
	watcherDo(t, os.Mkdir(dir, 0o700))
	watcherWrite(t, filepath.Join(dir, "a"), "1")
	watcherWrite(t, filepath.Join(dir, "b"), "1")
	m := newWatcherModel(t, dir, watcherSettle)
	m.w.initial = true
	m.start()
	m.untilSame()

	t.Run("deleted and made again", func(t *testing.T) {
		watcherDo(t, os.RemoveAll(dir))
		m.until("all are gone", func() bool { return len(m.content) == 0 })
		watcherDo(t, os.Mkdir(dir, 0o700))
		watcherWrite(t, filepath.Join(dir, "b"), "2")
		m.untilSame()
		m.untilTold("b", func() { watcherWrite(t, filepath.Join(dir, "b"), "3") })
	})
	t.Run("at once", func(t *testing.T) {
		watcherDo(t, os.RemoveAll(dir), os.Mkdir(dir, 0o700))
		watcherWrite(t, filepath.Join(dir, "c"), "1")
		m.untilSame()
		m.untilTold("c", func() { watcherWrite(t, filepath.Join(dir, "c"), "2") })
	})
	t.Run("another renamed to its place", func(t *testing.T) {
		next := filepath.Join(parent, "next")
		watcherDo(t, os.Mkdir(next, 0o700))
		watcherWrite(t, filepath.Join(next, "c"), "3")
		watcherWrite(t, filepath.Join(next, "d"), "1")
		watcherDo(t, os.Rename(dir, filepath.Join(parent, "previous")), os.Rename(next, dir))
		m.untilSame()
		// The one that was renamed away is not listened to any more.
		watcherWrite(t, filepath.Join(parent, "previous", "c"), "not this")
		m.untilTold("d", func() { watcherWrite(t, filepath.Join(dir, "d"), "2") })
	})
}

// The directory does not need to be there, nor what it lies in.
func TestWatcherDirectoryMissing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b", "groups.d")
	m := newWatcherModel(t, dir, watcherSettle)
	m.start()
	watcherDo(t, os.MkdirAll(dir, 0o700))
	m.untilTold("x", func() { watcherWrite(t, filepath.Join(dir, "x"), "1") })
	if log := m.log.String(); strings.Count(log, "is not there") != 1 || !strings.Contains(log, "watched again") {
		t.Errorf("log:\n%s", log)
	}
}

// The directory is a link, or is reached through one, as where Kubernetes
// mounts a ConfigMap.
func TestWatcherLinkToDirectory(t *testing.T) {
	for _, depth := range []string{"itself", "on the way"} {
		t.Run(depth, func(t *testing.T) {
			parent := t.TempDir()
			link, dir := filepath.Join(parent, "link"), filepath.Join(parent, "link")
			version := func(n int) string {
				v := filepath.Join(parent, fmt.Sprintf("..v%d", n))
				if depth == "on the way" {
					v = filepath.Join(v, "sub")
				}
				return v
			}
			if depth == "on the way" {
				dir = filepath.Join(link, "sub")
			}
			swap := func(n int) {
				watcherDo(t, os.Symlink(fmt.Sprintf("..v%d", n), filepath.Join(parent, "new")),
					os.Rename(filepath.Join(parent, "new"), link))
			}
			for n := range 5 {
				watcherDo(t, os.MkdirAll(version(n), 0o700))
				watcherWrite(t, filepath.Join(version(n), "a"), fmt.Sprint(n))
				watcherWrite(t, filepath.Join(version(n), fmt.Sprint("only", n)), "")
			}
			swap(0)
			m := newWatcherModel(t, dir, watcherSettle)
			m.w.initial = true
			m.start()
			m.untilSame()
			for n := 1; n < 5; n++ {
				swap(n)
				m.untilSame()
				watcherDo(t, os.RemoveAll(version(n-1)))
				m.untilTold("a", func() { watcherWrite(t, filepath.Join(version(n), "a"), "in place") })
			}
		})
	}
}

// The files are links through ..data, as Kubernetes has them.
func TestWatcherLinkedFiles(t *testing.T) {
	dir := t.TempDir()
	swap := func(n int) {
		version := fmt.Sprintf("..v%d", n)
		watcherDo(t, os.Mkdir(filepath.Join(dir, version), 0o700))
		for _, name := range []string{"a", "b"} {
			watcherWrite(t, filepath.Join(dir, version, name), fmt.Sprint(name, n))
		}
		watcherDo(t, os.Symlink(version, filepath.Join(dir, "..data_tmp")),
			os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	}
	swap(0)
	watcherDo(t, os.Symlink("..data/a", filepath.Join(dir, "a")), os.Symlink("..data/b", filepath.Join(dir, "b")))
	m := newWatcherModel(t, dir, watcherSettle)
	m.start()
	for n := 1; n < 5; n++ {
		m.untilTold("a", func() { swap(n) })
		m.untilSame()
	}
}

// What makes no event is found by reading the directory now and then.
func TestWatcherRescans(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	watcherWrite(t, filepath.Join(elsewhere, "a"), "1")
	watcherDo(t, os.Symlink(filepath.Join(elsewhere, "a"), filepath.Join(dir, "a")))
	m := newWatcherModel(t, dir, watcherSettle)
	m.w.rescan = watcherSettle
	m.start()
	m.untilTold("a", func() { watcherWrite(t, filepath.Join(elsewhere, "a"), "2") })
}

// A file's versions that come in directories of their own leave no watches behind.
func TestWatcherGivesUpWatches(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	version := func(n int) string { return filepath.Join(elsewhere, fmt.Sprint(n), "a") }
	link := filepath.Join(dir, "a")
	watcherDo(t, os.Mkdir(filepath.Dir(version(0)), 0o700))
	watcherWrite(t, version(0), "0")
	watcherDo(t, os.Symlink(version(0), link))
	m := newWatcherModel(t, dir, watcherSettle)
	m.w.rescan = watcherSettle
	m.start()
	before := watcherCount(t)
	for n := 1; n <= 30; n++ {
		watcherDo(t, os.Mkdir(filepath.Dir(version(n)), 0o700))
		watcherWrite(t, version(n), fmt.Sprint(n))
		m.untilTold("a", func() { watcherDo(t, os.Symlink(version(n), link+".tmp"), os.Rename(link+".tmp", link)) })
	}
	guard := time.Now().Add(time.Minute)
	for watcherCount(t) > before {
		if time.Now().After(guard) {
			t.Fatalf("%d directories are watched, and %d were at the beginning", watcherCount(t), before)
		}
		time.Sleep(watcherSettle)
	}
	m.untilTold("a", func() { watcherWrite(t, version(30), "31") })
}

// watcherCount is how many inotify watches this process has.
func watcherCount(t *testing.T) (n int) {
	t.Helper()
	files, err := filepath.Glob("/proc/self/fdinfo/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if b, err := os.ReadFile(file); err == nil { // else it was this Glob's
			n += strings.Count(string(b), "inotify wd:")
		}
	}
	return n
}

func TestWatcherForget(t *testing.T) {
	dir := t.TempDir()
	m := newWatcherModel(t, dir, watcherSettle)
	m.w.rescan = watcherSettle
	tries := 0
	told := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		m.w.run(ctx, func(names []string) {
			for _, name := range names {
				if tries++; tries < 3 {
					m.w.forget(name)
				} else {
					close(told)
				}
			}
		})
	})
	<-m.w.ready
	watcherWrite(t, filepath.Join(dir, "a"), "")
	<-told
	cancel()
	wg.Wait()
	if tries != 3 {
		t.Errorf("told %d times, want 3", tries)
	}
}

// More events than the kernel keeps are lost: that is said, and what they were
// about is found.
func TestWatcherLosesEvents(t *testing.T) {
	limit, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	watcherDo(t, err)
	most, err := strconv.Atoi(strings.TrimSpace(string(limit)))
	watcherDo(t, err)
	dir := t.TempDir()
	m := newWatcherModel(t, dir, watcherSettle)
	m.start()
	gate, waits := make(chan struct{}), make(chan struct{}, 1)
	m.gate.Store(&gate)
	m.waits.Store(&waits)
	watcherWrite(t, filepath.Join(dir, "first"), "")
	<-waits                // from now on nobody listens
	const taken = 64 << 10 // that may have been read from the kernel already
	noise := [2]string{filepath.Join(dir, "noise0"), filepath.Join(dir, "noise1")}
	for i := range most + taken/unix.SizeofInotifyEvent {
		// Not the same file twice, which would be one event.
		watcherWrite(t, noise[i%2], "x")
	}
	watcherWrite(t, filepath.Join(dir, "unheard"), "x")
	m.gate.Store(nil)
	close(gate)
	m.untilSame()
	if log := m.log.String(); !strings.Contains(log, "file events were lost") {
		t.Errorf("log:\n%s", log)
	}
}

// What was refused for its directory is told again at the next look, and when the
// directory's permissions change, though it looks as it did; and only that is.
func TestWatcherLooksLater(t *testing.T) {
	for _, deaf := range []bool{false, true} {
		t.Run(fmt.Sprintf("without inotify=%v", deaf), func(t *testing.T) {
			dir := t.TempDir()
			watcherWrite(t, filepath.Join(dir, "a"), "a")
			m := newWatcherModel(t, dir, watcherSettle)
			m.w.itself, m.w.initial = true, true
			if deaf {
				m.w.rescan = 2 * watcherSettle
				m.w.open = func() (*fsnotify.Watcher, error) { return nil, os.NewSyscallError("inotify_init1", syscall.EMFILE) }
			}
			m.start()
			m.until("a is told", func() bool { return m.count["a"] == 1 })
			for i := range 5 {
				m.w.lookLater(filepath.Join(dir, "a"))
				m.untilTold("a", func() { watcherDo(t, os.Chmod(dir, 0o777), os.Chmod(dir, 0o755)) })
				m.until("a is told once", func() bool { return m.count["a"] == i+2 })
			}
			if log := m.log.String(); strings.Contains(log, "no event told of") {
				t.Errorf("log:\n%s", log)
			}
		})
	}
}

// Without inotify the directory is read now and then, with one warning, and is
// watched again when that is possible.
func TestWatcherWithoutInotify(t *testing.T) {
	for _, limit := range []error{syscall.EMFILE, syscall.ENOSPC} {
		t.Run(limit.Error(), func(t *testing.T) {
			dir := t.TempDir()
			m := newWatcherModel(t, dir, watcherSettle)
			m.w.rescan = 2 * watcherSettle
			var available atomic.Bool
			m.w.open = func() (*fsnotify.Watcher, error) {
				if !available.Load() {
					return nil, os.NewSyscallError("inotify_init1", limit)
				}
				return fsnotify.NewWatcher()
			}
			m.start()
			for i := range 3 {
				m.untilTold("a", func() { watcherWrite(t, filepath.Join(dir, "a"), fmt.Sprint(i)) })
			}
			if log := m.log.String(); strings.Count(log, "falls back to rescanning") != 1 || !strings.Contains(log, "raise fs.inotify") {
				t.Errorf("log:\n%s", log)
			}
			available.Store(true)
			for i := 0; !strings.Contains(m.log.String(), "watched again"); i++ {
				m.untilTold("a", func() { watcherWrite(t, filepath.Join(dir, "a"), fmt.Sprint("again", i)) })
			}
			m.untilTold("a", func() { watcherWrite(t, filepath.Join(dir, "a"), "watched") })
		})
	}
}

func TestWatcherResolve(t *testing.T) {
	root, err := filepath.EvalSymlinks(t.TempDir())
	watcherDo(t, err)
	in := func(name string) string { return filepath.Join(root, name) }
	watcherDo(t, os.MkdirAll(in("real/sub"), 0o700), os.Symlink("real", in("rel")), os.Symlink(in("rel"), in("abs")),
		os.Symlink("../real/../rel/sub", in("real/up")), os.Symlink("loop", in("loop")), os.Symlink("nowhere/at", in("dangling")))
	tests := []struct {
		path, want string
		found      bool
		decide     []string
	}{
		{"real/sub", "real/sub", true, []string{"real"}},
		{"rel/sub", "real/sub", true, []string{"", "real"}},
		{"abs/sub", "real/sub", true, []string{"", "real"}},
		{"real/up", "real/sub", true, []string{"real", ""}},
		{"missing/sub", "missing", false, []string{""}},
		{"real/missing", "real/missing", false, []string{"real"}},
		{"dangling", "nowhere", false, []string{""}},
	}
	for _, tt := range tests {
		t.Run(tt.path, func(t *testing.T) {
			place := watcherResolve(in(tt.path))
			if place.path != in(tt.want) || place.found != tt.found {
				t.Errorf("leads to %s (%v), want %s", place.path, place.found, in(tt.want))
			}
			var decide, want []string
			for _, d := range place.decide {
				decide = append(decide, d.path)
			}
			for _, d := range tt.decide {
				want = append(want, in(d))
			}
			if diff := cmp.Diff(want, decide); diff != "" {
				t.Errorf("decided by (-want +got):\n%s", diff)
			}
		})
	}
	watcherResolve(in("loop")) // ends
}
