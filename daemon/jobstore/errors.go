package jobstore

import (
	"errors"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// What opening a store can end in, beside errors of the operating system.
var (
	// ErrNotExist: there is no database. Open never makes one.
	ErrNotExist = errors.New("no database: create it with byokctl init")

	// ErrExists: Create found a database and left it as it is.
	ErrExists = errors.New("the database exists already")

	// ErrNewer: the database was written by a later version of byokd.
	ErrNewer = errors.New("the database belongs to a newer byokd: install that version again, or restore a backup")

	// ErrDamaged: the file is no database, not byokd's, or malformed.
	ErrDamaged = errors.New("the database is damaged: restore a backup, or move it away and run byokctl init (byokd then finds its keys again in KMS and the HSM)")

	// ErrInUse: another byokd works on the same state.
	ErrInUse = errors.New("in use by another byokd")
)

// What a method can end in.
var (
	// ErrNotRunning: the job is not running, so nothing was written. A worker
	// that gets it has lost its job.
	ErrNotRunning = errors.New("job is not running")

	// ErrRunning: a running job stands in the way; try again when it has ended.
	ErrRunning = errors.New("a job is running")

	// ErrFinished: the job has ended already.
	ErrFinished = errors.New("job has finished")

	// ErrActivated: the job's alias has moved, or may have; it only goes forward.
	ErrActivated = errors.New("the alias may have moved already: the job can only be driven forward")

	// ErrNotFound: there is no such job, group, generation or event.
	ErrNotFound = errors.New("not found")

	// ErrGroupExists: a group of that name has generations of its own.
	ErrGroupExists = errors.New("both groups have keys")

	// ErrReadOnly: the store was opened read-only.
	ErrReadOnly = errors.New("the store is open for reading only")
)

// code returns SQLite's extended result code in err's chain, or 0.
// See https://www.sqlite.org/rescode.html.
func code(err error) int {
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		return e.Code()
	}
	return 0
}

// primary returns SQLite's primary result code in err's chain, or 0.
func primary(err error) int { return code(err) & 0xff }

// IsFull reports whether the disk is full or did not take or give bytes: the
// transaction did not happen, and may succeed when the disk is well again.
func IsFull(err error) bool {
	return primary(err) == sqlite3.SQLITE_FULL || primary(err) == sqlite3.SQLITE_IOERR && !IsDamaged(err)
}

// IsReadOnly reports whether the file, its directory or its file system cannot
// be written, or cannot be opened for lack of permission.
func IsReadOnly(err error) bool {
	switch primary(err) {
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM:
		return true
	}
	return false
}

// IsDamaged reports whether the file is no database or a malformed one.
func IsDamaged(err error) bool {
	switch code(err) {
	case sqlite3.SQLITE_IOERR_CORRUPTFS, sqlite3.SQLITE_IOERR_DATA:
		return true
	}
	switch primary(err) {
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return true
	}
	return errors.Is(err, ErrDamaged)
}
