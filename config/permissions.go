package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// maxFileSize bounds a TOML file. The longest sensible one has a few KiB.
const maxFileSize = 1 << 20

var errNotRegular = errors.New("is not a regular file")

// open opens a regular file for reading. It does not wait for the other end of
// a FIFO that lies where a file should be.
func open(path string) (*os.File, fs.FileInfo, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, reason(err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errNotRegular
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

// readAtMost reads all of r, which must not be longer than limit.
func readAtMost(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("cannot be read: %w", reason(err))
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("is longer than %d bytes: shorten it", limit)
	}
	return b, nil
}

// reason takes the path out of an error of package os, for messages that have
// named it already.
func reason(err error) error {
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		return pathErr.Err
	}
	return err
}

// owner returns the user ID that a file belongs to.
func owner(info fs.FileInfo) int {
	return int(info.Sys().(*syscall.Stat_t).Uid)
}

// writable reports whether group or others may write.
func writable(info fs.FileInfo) bool { return info.Mode().Perm()&0o022 != 0 }

// checkMode refuses a file that group or others may write to.
func checkMode(path string, info fs.FileInfo) error {
	if !writable(info) {
		return nil
	}
	return fmt.Errorf("may be written to by group or others (mode %04o); run: chmod go-w %s", info.Mode().Perm(), path)
}

// A directoryError is what is wrong with the directory of a file.
type directoryError struct{ error }

// directories remembers, for one load, what the checks of directories found.
type directories map[string]error

// check refuses a path whose directory group or others may write to, for there
// the file can be replaced. A sticky bit does not help: it protects no name
// that is not there yet. Of a symbolic link the target's directory counts too.
func (d directories) check(path string) error {
	if err := d.checkDir(filepath.Dir(path)); err != nil {
		return err
	}
	if info, err := os.Lstat(path); err != nil || info.Mode()&fs.ModeSymlink == 0 {
		return nil
	}
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return fmt.Errorf("cannot be followed: %w", reason(err))
	}
	return d.checkDir(filepath.Dir(target))
}

func (d directories) checkDir(dir string) error {
	err, seen := d[dir]
	if !seen {
		var info fs.FileInfo
		if info, err = os.Stat(dir); err != nil {
			err = fmt.Errorf("lies in directory %s, which cannot be looked at: %w", dir, reason(err))
		} else if writable(info) {
			err = directoryError{fmt.Errorf("lies in directory %s, which group or others may write to (mode %04o): put it into one that only its owner can write to, or run: chmod go-w %s",
				dir, info.Mode().Perm(), dir)}
		}
		d[dir] = err
	}
	return err
}

// readTrusted reads a file that nobody but its owner may change. The error goes
// after the file's name.
func readTrusted(path string, limit int64, dirs directories) ([]byte, error) {
	f, info, err := open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, errors.New("does not exist: create it or correct the path")
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("cannot be read: %w: let byokd's user read it", err)
	case errors.Is(err, errNotRegular):
		return nil, fmt.Errorf("%w: put a file in its place, or remove it", err)
	case err != nil:
		return nil, fmt.Errorf("cannot be read: %w: mend or remove it", err)
	}
	defer f.Close()
	if err := checkMode(path, info); err != nil {
		return nil, err
	}
	if err := dirs.check(path); err != nil {
		return nil, err
	}
	return readAtMost(f, limit)
}
