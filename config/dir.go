package config

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A Dir is groups_dir as it was last read, file by file: what a change costs
// depends on the files that changed, not on how many there are. It is used by one
// goroutine at a time.
type Dir struct {
	// Settle is how long a file must have been unchanged to be read: one that is
	// younger may be half written, and is left as it was. Default: 0, all are
	// read as they are.
	Settle time.Duration

	// Follow, if it is not nil, is called when a first group file names a policy
	// file, and when none names it any more.
	Follow func(policy string, on bool)

	opts  Options
	cfg   *Config
	l     *loader
	files map[string]dirFile // by path
	fresh map[string]bool    // what Read or Look passed over, since it had not settled
	reads int
}

// A dirFile is a group file as it was last read: a group or problems, or neither
// where it has not settled yet.
type dirFile struct {
	group    *Group
	problems Problems
	policy   string // path of the policy file that it names; "": none
}

// NewDir returns a Dir that knows of no file yet.
func NewDir(opts Options) *Dir { return &Dir{opts: opts, files: make(map[string]dirFile)} }

// Unsettled returns the files that the last Read or Look passed over since they had
// not settled: group files and policy files. They are to be looked at again.
func (d *Dir) Unsettled() []string { return slices.Sorted(maps.Keys(d.fresh)) }

// Refused returns the files that the last Read or Look refused for their directory:
// group files and policy files. They are to be looked at later, for that it is
// another by then need not show.
func (d *Dir) Refused() []string { return slices.Sorted(maps.Keys(d.l.refused)) }

// Reads returns how many files have been read, policy files among them.
func (d *Dir) Reads() int { return d.reads + d.l.reads }

// Read reads all group files of groups_dir, those whose names end in .toml and
// do not begin with a dot, and their policy files, whatever was known of them.
// cfg is the byokd.toml that they refer to. The error is for a directory that
// cannot be read; then everything stays as it was.
//
// A file that goes away while the directory is read is not there.
func (d *Dir) Read(cfg *Config) error {
	entries, err := os.ReadDir(cfg.GroupsDir)
	if err != nil {
		return unreadable(cfg, err)
	}
	there := make(map[string]bool, len(entries)+len(d.opts.StandIn))
	for _, e := range entries {
		there[filepath.Join(cfg.GroupsDir, e.Name())] = true
	}
	for path := range d.opts.StandIn {
		there[absolute(path)] = true
	}
	l := newLoader(cfg, d.opts)
	l.fresh = d.passOver
	d.fresh = make(map[string]bool)
	if d.l != nil {
		d.reads += d.l.reads
		l.policies = d.l.policies
		for _, p := range l.policies {
			p.read = false
		}
	}
	d.cfg, d.l = cfg, l
	for path := range d.files {
		there[path] = true
	}
	for path := range there {
		d.load(path)
	}
	return nil
}

// Look reads those of the given files that are group files, or policy files of
// some. It returns the names of the groups that were read, sorted: also those
// whose policy file is not the same as before. The error is as with Read, which
// must have been called.
func (d *Dir) Look(paths ...string) ([]string, error) {
	dir, err := os.Open(d.cfg.GroupsDir)
	if err != nil {
		return nil, unreadable(d.cfg, err)
	}
	dir.Close()
	d.l.dirs, d.l.refused = make(directories), make(map[string]bool) // permissions may have changed
	d.fresh = make(map[string]bool)
	look := make(map[string]bool)
	for _, path := range paths {
		look[path] = true
		if p := d.l.policies[path]; p != nil && !d.passOver(path) {
			was := *p
			d.l.readPolicy(path, p)
			if p.problem != was.problem || string(p.policy) != string(was.policy) || !was.read {
				maps.Copy(look, p.users)
			}
		}
	}
	var names []string
	for path := range look {
		if d.load(path) {
			names = append(names, entry(path))
		}
	}
	slices.Sort(names)
	return names, nil
}

// unreadable is the error for a groups_dir that cannot be read.
func unreadable(cfg *Config, err error) error {
	return fmt.Errorf("groups_dir %s cannot be read: create it, or let byokd's user read it, or correct groups_dir in %s: %w", cfg.GroupsDir, cfg.Path, reason(err))
}

// load reads a file, if it is a group file, or sees that it is gone. It reports
// whether it is or was one.
func (d *Dir) load(path string) bool {
	base := filepath.Base(path)
	if filepath.Dir(path) != d.cfg.GroupsDir || !strings.HasSuffix(base, ".toml") || strings.HasPrefix(base, ".") {
		if _, known := d.files[path]; known { // of another groups_dir
			d.set(path, dirFile{}, false)
		}
		return false
	}
	was, known := d.files[path]
	info, err := os.Stat(path)
	isDir := err == nil && info.IsDir()
	switch {
	case isDir:
		d.set(path, dirFile{}, false)
		return known
	case d.passOver(path):
		d.set(path, was, true)
		return true
	}
	now := dirFile{}
	d.l.named, d.l.waits = "", false
	now.group, now.problems = d.l.load(path)
	now.policy = d.l.named
	if d.l.waits {
		now.group, now.problems = was.group, was.problems
	}
	if now.problems != nil && now.problems[0].File == path {
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			d.set(path, dirFile{}, false)
			return known
		}
	}
	d.set(path, now, true)
	return true
}

// set records what a group file is now, and which policy file it names.
func (d *Dir) set(path string, now dirFile, there bool) {
	was := d.files[path]
	if there {
		d.files[path] = now
	} else {
		delete(d.files, path)
	}
	follow := func(policy string, on bool) {
		if d.Follow != nil {
			d.Follow(policy, on)
		}
	}
	if now.policy != "" {
		p := d.l.policies[now.policy]
		if p.users == nil {
			p.users = make(map[string]bool)
			follow(now.policy, true)
		}
		p.users[path] = true
	}
	if was.policy != "" && was.policy != now.policy {
		p := d.l.policies[was.policy]
		if delete(p.users, path); len(p.users) == 0 {
			delete(d.l.policies, was.policy)
			follow(was.policy, false)
		}
	}
}

// passOver reports whether a file has not settled, and keeps in mind that it was
// passed over then.
func (d *Dir) passOver(path string) bool {
	fresh := d.isFresh(path)
	if fresh {
		d.fresh[path] = true
	}
	return fresh
}

// isFresh reports whether a file has changed a moment ago, and may be half written.
// A time in the future, as of another machine's clock, says nothing.
func (d *Dir) isFresh(path string) bool {
	if d.Settle <= 0 {
		return false
	}
	age := time.Since(changed(path))
	return age >= 0 && age < d.Settle
}

// Settled returns when all files that were there will have settled, if none
// changes again; the zero time: they have.
func (d *Dir) Settled(cfg *Config) time.Time {
	var last time.Time
	look := func(path string) {
		if t := changed(path); t.After(last) && d.isFresh(path) {
			last = t
		}
	}
	entries, _ := os.ReadDir(cfg.GroupsDir) // Read will tell
	for _, e := range entries {
		if name := e.Name(); strings.HasSuffix(name, ".toml") && !strings.HasPrefix(name, ".") {
			look(filepath.Join(cfg.GroupsDir, name))
		}
	}
	if d.l != nil {
		for path := range d.l.policies {
			look(path)
		}
	}
	if last.IsZero() {
		return last
	}
	return last.Add(d.Settle)
}

// changed is when a file was last changed in content or in any other way, the
// zero time where it cannot be looked at. That is its ctime: what copies files sets
// their mtime to any time at all, and each change of content sets both.
func changed(path string) time.Time {
	info, err := os.Stat(path)
	if err != nil || info.IsDir() {
		return time.Time{}
	}
	return time.Unix(info.Sys().(*syscall.Stat_t).Ctim.Unix())
}

// entry is the name of a group file in a Dir or Set: its stem, or its whole name
// where that is what is wrong.
func entry(path string) string {
	base := filepath.Base(path)
	if stem := strings.TrimSuffix(base, ".toml"); groupName.MatchString(stem) {
		return stem
	}
	return base
}

// Get returns a group file as it was last read, a good group or its problems; of
// one that has not settled yet neither. there is false where there is none.
func (d *Dir) Get(name string) (g *Group, problems Problems, there bool) {
	if d.cfg == nil {
		return nil, nil, false
	}
	f, there := d.files[filepath.Join(d.cfg.GroupsDir, strings.TrimSuffix(name, ".toml")+".toml")]
	return f.group, f.problems, there
}

// Names returns the names of all group files, sorted.
func (d *Dir) Names() []string {
	names := make([]string, 0, len(d.files))
	for path := range d.files {
		names = append(names, entry(path))
	}
	slices.Sort(names)
	return names
}
