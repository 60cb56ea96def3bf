package daemon

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"byokd/config"
	"byokd/daemon/control"

	"golang.org/x/sys/unix"
)

const (
	requestMaxSize      = 4 << 10 // of a body
	requestMaxRejected  = 100     // kept in rejected/
	requestTakenDir     = ".taken"
	requestRejectedDir  = "rejected"
	requestReasonSuffix = ".reason"
)

// requestKey is the fresh name that a request is given when it is taken:
// the time in nanoseconds, so that names sort by age, and 64 random bits.
const requestKey = `[0-9a-f]{32}`

var (
	requestName      = regexp.MustCompile(`^(rotate|sync)\.([a-z0-9][a-z0-9-]{0,62})$`)
	requestTakenName = regexp.MustCompile(`^(` + requestKey + `)\.(rotate|sync)\.([a-z0-9][a-z0-9-]{0,62})$`)
	requestOldName   = regexp.MustCompile(`^(` + requestKey + `)\.`)
)

// A request is a request file that has been taken.
type request struct {
	Verb      string // "rotate" or "sync"
	Group     string
	UniqueKey string // of its job: the same when the request is met again after a crash
	Body      config.Request
	By        string // who owns the file, for the audit trail
	path      string // its name in .taken
}

// requests is the folder of request files. A file in it is taken by renaming
// it into .taken, under a name that is the unique key of its job, and stays
// there until the job is durable: a crash neither loses nor repeats it. What
// cannot be obeyed goes to rejected, with the reason beside it.
//
// The folder can be written to by everybody in byokd's group, so nothing in it
// is trusted: files are opened without following links, and moved before they
// are read, since nobody else can change what .taken holds. Its methods are
// called from one goroutine at a time.
type requests struct {
	dir string
	log *slog.Logger
}

// newRequests makes the folder, and those in it, where they are missing.
func newRequests(dir string, log *slog.Logger) (*requests, error) {
	q := &requests{dir: dir, log: log}
	if err := os.Mkdir(dir, 0o770); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	// Not what the umask left of it: the group may write here.
	if info, err := os.Stat(dir); err != nil {
		return nil, err
	} else if info.Mode().Perm() != 0o770 {
		if err := os.Chmod(dir, 0o770); err != nil {
			return nil, err
		}
	}
	d, err := q.open()
	if err != nil {
		return nil, err
	}
	d.close()
	return q, nil
}

// isRequest reports whether a file in the folder may be a request: names of
// editors' and transfers' temporary files are left alone.
func isRequest(name string) bool {
	if name == requestRejectedDir || strings.HasPrefix(name, ".") {
		return false
	}
	for _, suffix := range []string{"~", ".tmp", ".swp"} {
		if strings.HasSuffix(name, suffix) {
			return false
		}
	}
	return true
}

// take takes the request file of the given name, or rejects it. It returns nil
// where there is no request to obey: none is there, or it was rejected, which
// is logged. After an error the file is where it was, or a leftover.
func (q *requests) take(name string) (*request, error) {
	if !isRequest(name) {
		return nil, nil
	}
	d, err := q.open()
	if err != nil {
		return nil, err
	}
	defer d.close()
	var stat unix.Stat_t
	if err := unix.Fstatat(int(d.dir.Fd()), name, &stat, unix.AT_SYMLINK_NOFOLLOW); errors.Is(err, unix.ENOENT) {
		return nil, nil
	} else if err != nil {
		return nil, &fs.PathError{Op: "stat", Path: filepath.Join(q.dir, name), Err: err}
	}
	key := newRequestKey()
	switch reason := requestFault(&stat); {
	case reason != "":
		return nil, q.rejectFile(d, d.dir, name, key, reason)
	case !requestName.MatchString(name):
		return nil, q.rejectFile(d, d.dir, name, key, "a request is named rotate.GROUP or sync.GROUP")
	}
	taken := key + "." + name
	if err := requestMove(d.dir, name, d.taken, taken); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	return q.read(d, taken)
}

// leftovers returns the requests that were taken and not done, the oldest
// first. What is wrong with one of them does not hold back the others.
func (q *requests) leftovers() ([]*request, error) {
	d, err := q.open()
	if err != nil {
		return nil, err
	}
	defer d.close()
	names, err := d.taken.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	var left []*request
	var faults []error
	for _, name := range names {
		if !requestTakenName.MatchString(name) {
			q.log.Warn("file among the taken requests is not one of them", "file", name)
			continue
		}
		switch r, err := q.read(d, name); {
		case err != nil:
			faults = append(faults, err)
		case r != nil:
			left = append(left, r)
		}
	}
	return left, errors.Join(faults...)
}

// done removes the file of a request whose job is durable.
func (q *requests) done(r *request) error {
	err := os.Remove(filepath.Join(q.dir, requestTakenDir, r.path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// reject puts a request that was taken with the rejected ones. The reason is
// for people, and holds nothing of the request's content.
func (q *requests) reject(r *request, reason string) error {
	d, err := q.open()
	if err != nil {
		return err
	}
	defer d.close()
	return q.rejectFile(d, d.taken, r.path, r.UniqueKey, reason)
}

// read reads a file of .taken. It rejects one that cannot be obeyed, and then
// returns nil.
func (q *requests) read(d *requestDirs, name string) (*request, error) {
	parts := requestTakenName.FindStringSubmatch(name)
	r := &request{UniqueKey: parts[1], Verb: parts[2], Group: parts[3], path: name}
	body, owner, reason, err := requestBody(d.taken, name)
	r.By = "request file of " + control.UserName(owner)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case reason != "":
		return nil, q.rejectFile(d, d.taken, name, r.UniqueKey, reason)
	case r.Verb == "rotate":
		if len(bytes.TrimSpace(body)) > 0 {
			return nil, q.rejectFile(d, d.taken, name, r.UniqueKey, "a rotate request has no content: touch the file")
		}
	default:
		if r.Body, err = config.ParseRequest(body); err != nil {
			return nil, q.rejectFile(d, d.taken, name, r.UniqueKey, err.Error())
		}
	}
	return r, nil
}

// requestBody reads a taken file and who owns it, or says why it is no request.
func requestBody(taken *os.File, name string) (body []byte, owner uint32, reason string, err error) {
	fail := func(op string, err error) ([]byte, uint32, string, error) {
		return nil, 0, "", &fs.PathError{Op: op, Path: filepath.Join(taken.Name(), name), Err: err}
	}
	var stat unix.Stat_t
	if err := unix.Fstatat(int(taken.Fd()), name, &stat, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fail("stat", err)
	}
	if reason := requestFault(&stat); reason != "" {
		return nil, stat.Uid, reason, nil
	}
	if stat.Size == 0 {
		return nil, stat.Uid, "", nil // it may be one that byokd is not allowed to read
	}
	fd, err := unix.Openat(int(taken.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EACCES) {
		return nil, stat.Uid, "byokd may not read it: make it readable for its group before it is renamed in", nil
	} else if err != nil {
		return fail("open", err)
	}
	file := os.NewFile(uintptr(fd), filepath.Join(taken.Name(), name))
	defer file.Close()
	if body, err = io.ReadAll(io.LimitReader(file, requestMaxSize+1)); err != nil {
		return nil, stat.Uid, "", err
	}
	if len(body) > requestMaxSize {
		return nil, stat.Uid, requestTooLarge, nil // whoever has it open went on writing
	}
	return body, stat.Uid, "", nil
}

const requestTooLarge = "it is larger than 4 KiB"

// requestFault says why a file is no request by what it is, or "".
func requestFault(stat *unix.Stat_t) string {
	switch {
	case stat.Mode&unix.S_IFMT != unix.S_IFREG:
		return "it is not a regular file"
	case stat.Size > requestMaxSize:
		return requestTooLarge
	}
	return ""
}

// rejectFile moves a file to rejected, under its key, with the reason beside
// it. The reason comes first: without room for it, the file stays where it is.
func (q *requests) rejectFile(d *requestDirs, from *os.File, name, key, reason string) error {
	original := name
	if from == d.taken {
		original = strings.TrimPrefix(name, key+".")
	}
	to := key + "." + requestPrintable(original)
	if err := requestWriteReason(d.rejected, to+requestReasonSuffix, reason); err != nil {
		return err
	}
	if err := requestMove(from, name, d.rejected, to); err != nil {
		return errors.Join(err, d.removeRejected(to+requestReasonSuffix))
	}
	q.log.Warn("request file is rejected", "file", original, "reason", reason, "rejected_as", to)
	if err := d.pruneRejected(); err != nil {
		q.log.Warn("rejected request files cannot be cleared away", "err", err)
	}
	return nil
}

// requestPrintable makes a short name for rejected out of any name at all.
func requestPrintable(name string) string {
	name = strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', strings.ContainsRune("._-", r):
			return r
		default:
			return '_'
		}
	}, name)
	return name[:min(len(name), 100)]
}

func requestWriteReason(rejected *os.File, name, reason string) error {
	fail := func(op string, err error) error {
		return &fs.PathError{Op: op, Path: filepath.Join(rejected.Name(), name), Err: err}
	}
	fd, err := unix.Openat(int(rejected.Fd()), name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o640)
	if err != nil {
		return fail("create", err)
	}
	file := os.NewFile(uintptr(fd), filepath.Join(rejected.Name(), name))
	_, err = file.WriteString(reason + "\n")
	// Not what the umask left of it: the group may read the reason.
	if err = cmp.Or(err, file.Chmod(0o640), file.Close()); err != nil {
		return errors.Join(err, unix.Unlinkat(int(rejected.Fd()), name, 0))
	}
	return nil
}

// newRequestKey returns a name that no other request has.
func newRequestKey() string {
	var random [8]byte
	rand.Read(random[:]) // never fails
	return fmt.Sprintf("%016x%s", time.Now().UnixNano(), hex.EncodeToString(random[:]))
}

// requestMove renames a file from one folder to another, durably. fs.ErrNotExist
// means that it is not there any more.
func requestMove(from *os.File, name string, to *os.File, newName string) error {
	if err := unix.Renameat(int(from.Fd()), name, int(to.Fd()), newName); err != nil {
		return &os.LinkError{Op: "rename", Old: filepath.Join(from.Name(), name), New: filepath.Join(to.Name(), newName), Err: err}
	}
	return cmp.Or(to.Sync(), from.Sync())
}

// requestDirs are the open folders. They are opened for each request, since the
// folder may have been replaced since the last one.
type requestDirs struct {
	dir, taken, rejected *os.File
}

func (d *requestDirs) close() {
	for _, f := range []*os.File{d.dir, d.taken, d.rejected} {
		if f != nil {
			f.Close()
		}
	}
}

func (q *requests) open() (*requestDirs, error) {
	var d requestDirs
	var err error
	if d.dir, err = os.Open(q.dir); err != nil {
		return nil, err
	}
	if d.taken, err = requestOpenDir(d.dir, requestTakenDir, 0o700); err == nil {
		d.rejected, err = requestOpenDir(d.dir, requestRejectedDir, 0o750)
	}
	if err != nil {
		d.close()
		return nil, err
	}
	return &d, nil
}

// requestOpenDir opens a folder of byokd's in the one that others write to, and
// makes it if need be. One that is a link, or not byokd's own, is refused.
func requestOpenDir(parent *os.File, name string, mode uint32) (*os.File, error) {
	path := filepath.Join(parent.Name(), name)
	if err := unix.Mkdirat(int(parent.Fd()), name, mode); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, &fs.PathError{Op: "mkdir", Path: path, Err: err}
	}
	fd, err := unix.Openat(int(parent.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	dir := os.NewFile(uintptr(fd), path)
	var stat unix.Stat_t
	err = unix.Fstat(fd, &stat)
	switch {
	case err != nil:
	case int(stat.Uid) != os.Geteuid():
		err = errors.New("belongs to another user than byokd's: move it away")
	case stat.Mode&0o777 != mode:
		err = dir.Chmod(os.FileMode(mode)) // not what the umask left of it
	}
	if err != nil {
		dir.Close()
		return nil, fmt.Errorf("folder for request files %s: %w", path, err)
	}
	return dir, nil
}

// pruneRejected removes all but the newest of the rejected requests and their
// reasons.
func (d *requestDirs) pruneRejected() error {
	if _, err := d.rejected.Seek(0, io.SeekStart); err != nil {
		return err
	}
	names, err := d.rejected.Readdirnames(-1)
	if err != nil {
		return err
	}
	names = slices.DeleteFunc(names, func(name string) bool { return !requestOldName.MatchString(name) })
	slices.Sort(names)
	slices.Reverse(names)
	kept, last := 0, ""
	var faults []error
	for _, name := range names {
		if key := requestOldName.FindStringSubmatch(name)[1]; key != last {
			kept, last = kept+1, key
		}
		if kept > requestMaxRejected {
			faults = append(faults, d.removeRejected(name))
		}
	}
	return errors.Join(faults...)
}

// removeRejected removes a rejected file, or folder, without following links.
func (d *requestDirs) removeRejected(name string) error {
	root, err := os.OpenRoot(d.rejected.Name())
	if err != nil {
		return err
	}
	defer root.Close()
	return root.RemoveAll(name)
}
