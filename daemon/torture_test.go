package daemon

import (
	"bytes"
	stdcmp "cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"byokd/config"

	"github.com/fsnotify/fsnotify"
	"github.com/google/go-cmp/cmp"
)

// A torturer does to group files and policy files what configuration management,
// editors and people do to them, and compares what a daemon has loaded with what is
// on disk. The daemon is not designated: its groups never get keys, so that what is
// loaded depends on nothing but the files.
type torturer struct {
	t       testing.TB
	random  *rand.Rand
	root    string
	d       *Daemon
	log     *watcherLog
	reload  chan struct{}
	stop    func()
	half    map[string]*halfWritten
	version int // of the directory of group files
	data    int // of the directory that files link through
	ops     map[string]int
	deaf    bool          // without inotify
	rescan  time.Duration // how often the deaf look; 0: very often
}

// A halfWritten file is open, and gets more.
type halfWritten struct {
	file *os.File
	rest []byte
}

func newTorturer(t testing.TB, seed uint64) *torturer {
	root, err := filepath.EvalSymlinks(t.TempDir())
	watcherDo(t, err)
	tt := &torturer{t: t, random: rand.New(rand.NewPCG(seed, 1)), root: root, log: new(watcherLog),
		half: make(map[string]*halfWritten), ops: make(map[string]int)}
	for _, dir := range []string{"v0", "v0/..data0", "state", "run", "policies", "far"} {
		watcherDo(t, os.Mkdir(tt.path(dir), 0o755))
	}
	watcherDo(t, os.Symlink("v0", tt.path("groups.d")), os.Symlink("..data0", tt.path("v0/..data")))
	for i := range 3 {
		tt.put(fmt.Sprintf("v0/..data0/k%d.toml", i), tt.content(fmt.Sprint("k", i)))
		watcherDo(t, os.Symlink(fmt.Sprintf("..data/k%d.toml", i), tt.path(fmt.Sprintf("v0/k%d.toml", i))))
	}
	tt.put("hsm.pin", "1234")
	tt.put("prod.csv", "Access key ID,Secret access key\nAKIATEST,secret\n")
	tt.put("byokd.toml", `state_dir = "state"
runtime_dir = "run"
settle = "20ms"
designated = false
[hsm.main]
module = "/nowhere/module.so"
token_label = "byokd"
pin_file = "hsm.pin"
[credentials.prod]
access_key_csv = "prod.csv"
[aws]
kms_endpoint = "http://127.0.0.1:1"
sts_endpoint = "http://127.0.0.1:1"
tagging_endpoint = "http://127.0.0.1:1"
[events]
enabled = false
`)
	_, err = InitState(tt.config())
	watcherDo(t, err)
	t.Cleanup(func() {
		if tt.stop != nil {
			tt.stop()
		}
	})
	return tt
}

func (tt *torturer) path(name string) string { return filepath.Join(tt.root, name) }

func (tt *torturer) put(name, content string) {
	tt.t.Helper()
	// By another way than os.WriteFile: its mode is for new files only.
	watcherDo(tt.t, os.WriteFile(tt.path(name), []byte(content), 0o600), os.Chmod(tt.path(name), 0o600))
}

func (tt *torturer) config() *config.Config {
	cfg, err := config.Load(tt.path("byokd.toml"), config.DefaultOptions())
	watcherDo(tt.t, err)
	return cfg
}

// start starts the daemon.
func (tt *torturer) start() {
	tt.t.Helper()
	ready := make(chan struct{})
	tt.reload = make(chan struct{}, 1)
	o := DefaultOptions()
	o.ConfigPath, o.Reload, o.Started = tt.path("byokd.toml"), tt.reload, func() { close(ready) }
	o.Logger = slog.New(slog.NewTextHandler(tt.log, nil))
	d, err := start(tt.t.Context(), o)
	watcherDo(tt.t, err)
	if tt.deaf {
		d.watcher.rescan = stdcmp.Or(tt.rescan, 50*time.Millisecond)
		d.watcher.open = func() (*fsnotify.Watcher, error) {
			return nil, os.NewSyscallError("inotify_init1", syscall.EMFILE)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.run(ctx) }()
	<-ready
	tt.d = d
	tt.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			tt.t.Errorf("byokd ended with %v", err)
		}
		tt.stop = nil
	}
}

// content is a group file: of few aliases, so that some are claimed twice, and with
// a policy now and then.
func (tt *torturer) content(name string) string {
	r := tt.random
	var more strings.Builder
	switch r.IntN(8) {
	case 0, 1:
		fmt.Fprintf(&more, "policy_file = %q\n", []string{"p0.json", "p1.json", "link.json"}[r.IntN(3)])
	case 2, 3:
		fmt.Fprintf(&more, "policy_file = %q\n", []string{"../policies/q0.json", "../policies/q1.json", "../policies/link.json"}[r.IntN(3)])
	case 4:
		fmt.Fprintf(&more, "previous_name = \"g%d\"\n", r.IntN(30))
	}
	alias := name
	if r.IntN(5) == 0 {
		alias = fmt.Sprint("shared", r.IntN(3))
	}
	s := fmt.Sprintf("# %x\n[rotation]\nevery = \"%dd\"\n[aws]\nregion = \"eu-central-1\"\nalias = \"alias/%s\"\ndescription = \"%x\"\n%s",
		r.Uint64(), 1+r.IntN(300), alias, r.Uint64(), more.String())
	if r.IntN(12) == 0 {
		s = s[:r.IntN(len(s))]
	}
	return s
}

// policy is a policy file, or what should be one.
func (tt *torturer) policy() string {
	s := fmt.Sprintf(`{"Version": "2012-10-17", "Id": "%x", "Statement": []}`, tt.random.Uint64())
	if tt.random.IntN(8) == 0 {
		s = s[:tt.random.IntN(len(s))]
	}
	return s
}

// there ignores that a file which another step has removed is not there.
func (tt *torturer) there(errs ...error) {
	tt.t.Helper()
	for _, err := range errs {
		if !errors.Is(err, fs.ErrNotExist) {
			watcherDo(tt.t, err)
		}
	}
}

// step does one thing.
func (tt *torturer) step() {
	r := tt.random
	name := fmt.Sprintf("g%d", r.IntN(30))
	path := "groups.d/" + name + ".toml"
	rename := func(from, to string) error { return os.Rename(tt.path(from), tt.path(to)) }
	symlink := func(target, at string) {
		watcherDo(tt.t, os.Symlink(target, tt.path(at+".new")), rename(at+".new", at))
	}
	steps := []struct {
		name string
		odds int
		do   func()
	}{
		{"write in place", 20, func() { tt.put(path, tt.content(name)) }},
		{"temporary and rename", 20, func() {
			temp := fmt.Sprintf("groups.d/%s", []string{".ansible_tmp" + name + ".toml", name + ".toml.tmp", name + ".toml~", "." + name + ".toml.Xy12"}[r.IntN(4)])
			tt.put(temp, tt.content(name))
			watcherDo(tt.t, rename(temp, path))
		}},
		{"half written", 8, func() {
			if h := tt.half[path]; h != nil {
				h.more(tt)
				return
			}
			content := []byte(tt.content(name))
			file, err := os.OpenFile(tt.path(path), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
			watcherDo(tt.t, err)
			tt.half[path] = &halfWritten{file, content}
			tt.half[path].more(tt)
		}},
		{"more of a half-written one", 12, func() {
			for _, path := range slices.Sorted(maps.Keys(tt.half)) {
				tt.half[path].more(tt)
				if len(tt.half[path].rest) == 0 {
					tt.finish(path)
				}
			}
		}},
		{"as vim saves", 6, func() {
			tt.put("groups.d/4913", "")
			tt.put("groups.d/."+name+".toml.swp", "b0VIM")
			watcherDo(tt.t, os.Remove(tt.path("groups.d/4913")))
			tt.there(rename(path, path+"~"))
			tt.put(path, tt.content(name))
			tt.there(os.Remove(tt.path(path+"~")), os.Remove(tt.path("groups.d/."+name+".toml.swp")))
		}},
		{"as emacs saves", 6, func() {
			lock := "groups.d/.#" + name + ".toml"
			watcherDo(tt.t, os.Symlink("someone@somewhere.1234:1", tt.path(lock)))
			tt.put("groups.d/#"+name+".toml#", "half of")
			tt.put(path, tt.content(name))
			watcherDo(tt.t, os.Remove(tt.path("groups.d/#"+name+".toml#")), os.Remove(tt.path(lock)))
		}},
		{"delete", 8, func() { tt.there(os.Remove(tt.path(path))) }},
		{"delete and make again", 8, func() {
			tt.there(os.Remove(tt.path(path)))
			tt.put(path, tt.content(name))
		}},
		{"rename", 6, func() { tt.there(rename(path, fmt.Sprintf("groups.d/g%d.toml", r.IntN(30)))) }},
		{"permissions", 8, func() { tt.there(os.Chmod(tt.path(path), []os.FileMode{0o600, 0o644, 0o664, 0o666}[r.IntN(4)])) }},
		{"permissions of the directory", 3, func() { watcherDo(tt.t, os.Chmod(tt.path("groups.d/."), []os.FileMode{0o755, 0o775}[r.IntN(2)])) }},
		{"permissions of the policies", 3, func() { watcherDo(tt.t, os.Chmod(tt.path("policies"), []os.FileMode{0o755, 0o777}[r.IntN(2)])) }},
		{"a policy beside it", 8, func() { tt.put(fmt.Sprintf("groups.d/p%d.json", r.IntN(2)), tt.policy()) }},
		{"a policy elsewhere", 8, func() { tt.put(fmt.Sprintf("policies/q%d.json", r.IntN(2)), tt.policy()) }},
		{"a policy gone", 3, func() {
			tt.there(os.Remove(tt.path([]string{"groups.d/p0.json", "policies/q0.json", "policies/link.json", "groups.d/link.json"}[r.IntN(4)])))
		}},
		{"a policy is a link", 5, func() {
			symlink([]string{"../far/a.json", "../far/b.json", "nowhere", "p0.json", "q0.json"}[r.IntN(5)], []string{"groups.d/link.json", "policies/link.json"}[r.IntN(2)])
		}},
		{"what a policy links to", 8, func() { tt.put(fmt.Sprintf("far/%s.json", []string{"a", "b"}[r.IntN(2)]), tt.policy()) }},
		{"the policies swapped", 3, func() {
			watcherDo(tt.t, os.RemoveAll(tt.path("old")), rename("policies", "old"), os.Mkdir(tt.path("policies"), 0o755))
			tt.put("policies/q1.json", tt.policy())
		}},
		{"a group file is a link", 4, func() {
			tt.finish(path)
			tt.put("far/"+name+".toml", tt.content(name))
			symlink("../far/"+name+".toml", path)
		}},
		{"what group files link through", 4, func() {
			dir, err := filepath.EvalSymlinks(tt.path("groups.d"))
			watcherDo(tt.t, err)
			dir = filepath.Base(dir)
			old := fmt.Sprintf("%s/..data%d", dir, tt.data)
			tt.data++
			now := fmt.Sprintf("..data%d", tt.data)
			watcherDo(tt.t, os.Mkdir(tt.path(dir+"/"+now), 0o755))
			for i := range 3 {
				tt.put(fmt.Sprintf("%s/%s/k%d.toml", dir, now, i), tt.content(fmt.Sprint("k", i)))
			}
			symlink(now, dir+"/..data")
			watcherDo(tt.t, os.RemoveAll(tt.path(old)))
		}},
		{"all swapped by a link", 3, func() {
			for _, path := range slices.Sorted(maps.Keys(tt.half)) {
				tt.finish(path)
			}
			old := fmt.Sprintf("v%d", tt.version)
			tt.version++
			now := fmt.Sprintf("v%d", tt.version)
			watcherDo(tt.t, os.Mkdir(tt.path(now), 0o755), copyTree(tt.path(now), tt.path(old)))
			for range 5 {
				name := fmt.Sprintf("g%d", r.IntN(30))
				watcherDo(tt.t, os.RemoveAll(tt.path(now+"/"+name+".toml")))
				if r.IntN(3) > 0 {
					tt.put(now+"/"+name+".toml", tt.content(name))
				}
			}
			symlink(now, "groups.d")
			if r.IntN(2) == 0 {
				watcherDo(tt.t, os.RemoveAll(tt.path(old)))
			}
		}},
		{"SIGHUP", 3, func() {
			if tt.stop != nil {
				wake(tt.reload)
			}
		}},
	}
	all := 0
	for _, s := range steps {
		all += s.odds
	}
	n := r.IntN(all)
	for _, s := range steps {
		if n -= s.odds; n < 0 {
			tt.ops[s.name]++
			s.do()
			return
		}
	}
}

// more writes a few bytes more.
func (h *halfWritten) more(tt *torturer) {
	n := min(len(h.rest), 1+tt.random.IntN(60))
	_, err := h.file.Write(h.rest[:n])
	watcherDo(tt.t, err)
	h.rest = h.rest[n:]
}

// finish writes what is left of a half-written file.
func (tt *torturer) finish(path string) {
	h := tt.half[path]
	if h == nil {
		return
	}
	_, err := h.file.Write(h.rest)
	watcherDo(tt.t, err, h.file.Close())
	delete(tt.half, path)
}

// copyTree copies a directory of files, links and directories of files.
func copyTree(to, from string) error {
	return filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == from {
			return err
		}
		at := filepath.Join(to, strings.TrimPrefix(path, from))
		switch {
		case e.IsDir():
			return os.Mkdir(at, 0o755)
		case e.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			return errors.Join(err, os.Symlink(target, at))
		}
		data, err := os.ReadFile(path)
		info, statErr := os.Stat(path)
		if err := errors.Join(err, statErr); err != nil {
			return err
		}
		return errors.Join(os.WriteFile(at, data, 0o600), os.Chmod(at, info.Mode().Perm()))
	})
}

// onDisk is what is to be loaded: a digest or problems by group.
func (tt *torturer) onDisk() map[string]string {
	tt.t.Helper()
	cfg := tt.config()
	set, err := config.LoadDir(cfg, config.DefaultOptions())
	watcherDo(tt.t, err)
	want := make(map[string]string)
	for name, g := range set.Groups {
		want[name] = g.Digest()
	}
	for name, problems := range set.Problems {
		want[name] = problems.Error()
	}
	for name, problems := range config.CheckSet(cfg, slices.Collect(maps.Values(set.Groups)), nil) {
		want[name] = problems.Error()
	}
	return want
}

// loaded is what the daemon has loaded, in the same words.
func (tt *torturer) loaded() map[string]string {
	got := make(map[string]string)
	for _, name := range tt.d.groups.names() {
		switch g, ok := tt.d.groups.get(name); {
		case !ok || g.gone:
		case g.invalid != nil:
			got[name] = g.invalid.Error()
		case g.def != nil:
			got[name] = g.def.Digest()
		}
	}
	return got
}

// untilSame waits until what is loaded is what is on disk, and compares the
// database with it.
func (tt *torturer) untilSame(when string) {
	tt.t.Helper()
	want := tt.onDisk()
	var got map[string]string
	for end := time.Now().Add(5 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if tt.d.groups.count() <= len(want) && len(tt.d.groups.names()) >= len(want) { // else not worth the work
			if got = tt.loaded(); maps.Equal(want, got) {
				break
			}
		}
		if time.Now().After(end) {
			tt.t.Fatalf("%s: on disk (-) and loaded (+):\n%s\n%s", when, cmp.Diff(want, got), tt.log)
		}
	}
	tt.d.loading.Lock() // what is told is stored by then
	defer tt.d.loading.Unlock()
	rows, err := tt.d.store.Groups(tt.t.Context())
	watcherDo(tt.t, err)
	for _, row := range rows {
		is, there := want[row.Name]
		if isBad := strings.Contains(is, ": "); row.Definition == nil || isBad {
			continue // the last good one is in the database
		}
		if there != row.RemovedAt.IsZero() || there && row.Digest != is {
			tt.t.Errorf("%s: the database has group %s removed at %v, with digest %s; on disk it is %q", when, row.Name, row.RemovedAt, row.Digest, is)
		}
	}
}

// Thousands of operations on files, in rounds; after each what is loaded is what is
// on disk. In some rounds byokd is down meanwhile, or has no inotify, or loses its
// events.
func TestTorture(t *testing.T) {
	const rounds, steps = tortureRounds, 800
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	tt := newTorturer(t, seed)
	tt.start()
	const unheard = "changes that no event told of were found"
	for round := range rounds {
		heard, began := len(tt.log.String()), time.Now()
		when := fmt.Sprintf("round %d", round)
		switch round % 4 {
		case 0:
			if round > 0 {
				tt.stop() // what is left of lost events is not this round's
				tt.start()
			}
		case 1:
			when += ", byokd down"
			tt.stop()
		case 2:
			when += ", without inotify"
			tt.stop()
			tt.deaf = true
			tt.start()
			tt.deaf = false
		case 3:
			when += ", events lost"
			tt.stop()
			tt.start()
			tt.d.loading.Lock()
			tt.put("groups.d/quiet.toml", "0") // is loaded, or would be: from then on nobody listens
			for i := range 20000 {             // fs.inotify.max_queued_events is 16384
				tt.put("groups.d/noise.toml", fmt.Sprint(i%2))
			}
			watcherDo(t, os.Remove(tt.path("groups.d/noise.toml")), os.Remove(tt.path("groups.d/quiet.toml")))
		}
		for range steps {
			tt.step()
		}
		for _, path := range slices.Sorted(maps.Keys(tt.half)) {
			tt.finish(path)
		}
		switch round % 4 {
		case 1:
			tt.start()
		case 3:
			tt.d.loading.Unlock()
		}
		tt.untilSame(when)
		if round%4 == 0 && strings.Contains(tt.log.String()[heard:], unheard) {
			t.Errorf("%s: an event was missed:\n%s", when, tt.log.String()[heard:])
		}
		t.Logf("%s: %v", when, time.Since(began).Round(time.Millisecond))
	}
	t.Logf("%d operations: %v", rounds*steps, tt.ops)
	log := tt.log.String()
	// Not that events were lost, which TestWatcherLosesEvents has: a step that swaps the
	// directory has the watcher begin anew before it hears of that.
	for _, said := range []string{"falls back to rescanning", unheard} {
		if !strings.Contains(log, said) {
			t.Errorf("the log does not say %q", said)
		}
	}
	if problems := bytes.Count([]byte(log), []byte("the database does not take")); problems > 0 {
		t.Errorf("the database did not take something, %d times:\n%s", problems, log)
	}
}

// A file that has not settled when it is looked at, as where the clock was set back
// a little or a file server has a clock of its own, is looked at again by itself:
// nobody tells of it a second time.
func TestUnsettledIsLookedAtAgain(t *testing.T) {
	tt := newTorturer(t, 1)
	toml, err := os.ReadFile(tt.path("byokd.toml"))
	watcherDo(t, err)
	tt.put("byokd.toml", strings.Replace(string(toml), `settle = "20ms"`, `settle = "500ms"`, 1))
	tt.deaf, tt.rescan = true, time.Hour
	tt.start()
	tt.put("policies/q0.json", `{"Version": "2012-10-17", "Statement": []}`)
	tt.put("groups.d/early.toml", "[rotation]\nevery = \"90d\"\n[aws]\nregion = \"eu-central-1\"\nalias = \"alias/early\"\npolicy_file = \"../policies/q0.json\"\n")
	tt.d.loadChanged(t.Context(), []string{tt.path("groups.d/early.toml")})
	tt.untilSame("early")
	tt.put("policies/q0.json", `{"Version": "2012-10-17", "Id": "new", "Statement": []}`)
	tt.d.loadChanged(t.Context(), []string{tt.path("policies/q0.json")})
	tt.untilSame("early policy")
}

// Ten thousand files at once, and then one that costs one.
func TestTenThousandFilesAtOnce(t *testing.T) {
	const files = manyFiles
	tt := newTorturer(t, 1)
	tt.start()
	file := func(i int, every int) {
		tt.put(fmt.Sprintf("groups.d/many%d.toml", i), fmt.Sprintf("[rotation]\nevery = \"%dd\"\n[aws]\nregion = \"eu-central-1\"\nalias = \"alias/many%d\"\n", every, i))
	}
	for i := range files {
		file(i, 90)
	}
	tt.untilSame("ten thousand files")

	reads := func() int {
		tt.d.loading.Lock()
		defer tt.d.loading.Unlock()
		return tt.d.dir.Reads()
	}
	// What came of the many files may still be on its way: at rest, one change
	// costs one file.
	n := 0
	for try := 0; try < 100 && n != 1; try++ {
		before := reads()
		file(471, 91+try)
		tt.untilSame("one of many")
		n = reads() - before
	}
	if n != 1 {
		t.Errorf("%d files were read for one that changed", n)
	}

	watcherDo(t, os.Mkdir(tt.path("next"), 0o755))
	for i := range files {
		watcherDo(t, os.Link(tt.path(fmt.Sprintf("groups.d/many%d.toml", i)), tt.path(fmt.Sprintf("next/many%d.toml", i))))
	}
	watcherDo(t, os.Symlink("next", tt.path("new")), os.Rename(tt.path("new"), tt.path("groups.d")))
	tt.untilSame("all swapped")
}
