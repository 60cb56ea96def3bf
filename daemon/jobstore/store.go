// Package jobstore is byokd's durable memory: groups, generations, jobs with
// their steps, the event outbox, the audit trail and the record of logins, in
// one SQLite database.
//
// Every method is one transaction: when it returns nil its effect is on disk,
// and when it returns an error nothing of it is. State changes are guarded, so
// that a worker which has lost its job cannot write. A transaction is never
// held over a call to the outside, and one that has begun is not interrupted by
// its context: a context only limits the wait for the writer.
//
// A Store is safe for concurrent use. One process at a time has it open for
// writing; the lock goes with the process.
package jobstore

import (
	"cmp"
	"context"
	"database/sql"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

//go:embed migrations/*.sql
var embedded embed.FS

// applicationID marks the file as byokd's: "byok" in ASCII. See
// https://www.sqlite.org/pragma.html#pragma_application_id.
const applicationID = 0x62796f6b

// readers is how many reads go on at once beside the writer.
const readers = 4

// Options change how Open works.
type Options struct {
	// ReadOnly opens the store without its lock, beside a running byokd; every
	// method that writes then returns ErrReadOnly.
	ReadOnly bool

	// CheckLater has Open leave the check of a large file for damage to Check, which
	// the caller then calls before it relies on what the database says.
	CheckLater bool

	// Now is the clock of what the store dates itself; nil: time.Now.
	Now func() time.Time

	// Local reports whether events that are written now are for hooks alone and
	// never sent; nil: they are sent.
	Local func() bool
}

// A Store is an open database.
type Store struct {
	path    string
	now     func() time.Time
	local   func() bool
	changed func([]string)
	lock    *os.File // the directory, flock(2)ed; nil: read-only
	w       *sql.DB  // one connection; nil: read-only
	writing connections
	writer  writer
	r       *sql.DB // cannot write
	reading connections
	ids     idSource
	asked   statements
	commits atomic.Int64
	queries atomic.Int64

	unchecked atomic.Bool // whether the file is damaged
}

// Create makes the database, with mode 0600 and an up-to-date schema, and
// nothing else: its directory must be there. As root it gives the file to the
// directory's owner. The database appears whole or not at all. Where there is
// one already, or anything else of that name, Create changes nothing and
// returns ErrExists.
func Create(path string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("create %s: %w", path, err)
		}
	}()
	if path, err = filepath.Abs(path); err != nil {
		return err
	}
	if _, err := os.Lstat(path); err == nil {
		return ErrExists
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	dir, err := lockDir(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	for _, suffix := range []string{"-wal", "-journal"} {
		// SQLite would replay it into the new database.
		if info, err := os.Lstat(path + suffix); err == nil && info.Size() > 0 {
			return fmt.Errorf("%s%s is of the database that was here before: move it to where that one is now", path, suffix)
		}
	}

	// A half-made one of an earlier try is nobody's: we have the lock.
	tmp := path + ".new"
	removeTemp := func() {
		for _, suffix := range []string{"", "-wal", "-shm", "-journal"} {
			os.Remove(tmp + suffix)
		}
	}
	removeTemp()
	defer removeTemp()
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := initialize(tmp); err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		info, err := dir.Stat()
		if err != nil {
			return err
		}
		owner := info.Sys().(*syscall.Stat_t)
		if err := f.Chown(int(owner.Uid), int(owner.Gid)); err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	// Unlike a rename, a link never replaces what has come meanwhile.
	if err := os.Link(tmp, path); errors.Is(err, fs.ErrExist) {
		return ErrExists
	} else if err != nil {
		return err
	}
	return dir.Sync()
}

// initialize writes the schema into the empty file at path.
func initialize(path string) error {
	ctx := context.Background()
	// Before the journal mode, which writes the first page. Prune can make such a
	// file smaller.
	db, err := openWriter(path, "_pragma=auto_vacuum(incremental)")
	if err != nil {
		return err
	}
	defer db.Close()
	migrations, err := readMigrations(embedded)
	if err != nil {
		return err
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, fmt.Sprintf("PRAGMA application_id = %d", applicationID)); err != nil {
		return err
	}
	if err := migrate(ctx, tx, migrations, 0); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	return db.Close()
}

// Open opens the database at path, brings its schema up to date, and takes the
// lock on its directory that keeps other processes out until Close or the end
// of this process.
//
// Its errors wrap ErrNotExist, ErrInUse, ErrNewer or ErrDamaged where one of
// them is the reason. Every start runs SQLite's quick_check over the whole
// file: damage is found before a key is made on the strength of it, not after.
// That takes some seconds for each gigabyte: see Options.CheckLater.
func Open(ctx context.Context, path string, o Options) (*Store, error) {
	return open(ctx, path, o, embedded, true)
}

func open(ctx context.Context, path string, o Options, migrations fs.FS, lock bool) (_ *Store, err error) {
	s := &Store{path: path, now: o.Now, local: o.Local, writer: writer{turn: make(chan struct{}, 1)}}
	if s.now == nil {
		s.now = time.Now
	}
	if s.local == nil {
		s.local = func() bool { return false }
	}
	defer func() {
		if err != nil {
			s.closeAll()
			if IsDamaged(err) && !errors.Is(err, ErrDamaged) {
				err = fmt.Errorf("%w (%w)", ErrDamaged, err)
			}
			err = fmt.Errorf("open %s: %w", path, err)
		}
	}()
	if path, err = filepath.Abs(path); err != nil {
		return nil, err
	}
	scripts, err := readMigrations(migrations)
	if err != nil {
		return nil, err
	}
	switch info, err := os.Stat(path); {
	case errors.Is(err, fs.ErrNotExist):
		return nil, ErrNotExist
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%w: not a regular file", ErrDamaged)
	}
	if !o.ReadOnly && lock {
		if s.lock, err = lockDir(filepath.Dir(path)); err != nil {
			return nil, err
		}
	}

	// Look before anything that writes: a file that is not ours stays as it is.
	size, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	s.unchecked.Store(o.CheckLater && size.Size() > largeFile)
	version, err := inspect(ctx, path, !s.unchecked.Load())
	if err != nil {
		return nil, err
	}
	switch {
	case version > len(scripts):
		return nil, fmt.Errorf("%w (schema %d, this byokd knows %d)", ErrNewer, version, len(scripts))
	case version < len(scripts) && o.ReadOnly:
		return nil, fmt.Errorf("the database has schema %d of an older byokd: start byokd once to bring it to %d", version, len(scripts))
	}
	if o.ReadOnly {
		s.r, err = openHandle(path, "ro", "deferred", readers, "busy_timeout(5000)", "foreign_keys(1)", "query_only(1)")
		return s, err
	}
	if err := prepare(ctx, path, scripts); err != nil {
		return nil, err
	}
	if s.w, err = openWriter(path); err != nil {
		return nil, err
	}
	s.r, err = openHandle(path, "rw", "deferred", readers, "busy_timeout(5000)", "synchronous(full)", "foreign_keys(1)", "query_only(1)")
	if err != nil {
		return nil, err
	}
	return s, nil
}

// prepare sees that a writer is as durable as it was asked to be, and migrates.
func prepare(ctx context.Context, path string, scripts []string) (err error) {
	w, err := openWriter(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	var journal string
	if err := w.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&journal); err != nil {
		return err
	}
	if journal != "wal" {
		return fmt.Errorf("journal mode is %s, not wal: is %s on a local file system?", journal, filepath.Dir(path))
	}
	tx, err := w.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	var version int
	if err := tx.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return err
	}
	if err := migrate(ctx, tx, scripts, version); err != nil {
		return err
	}
	return tx.Commit()
}

// largeFile is from how many bytes on a file is one that Options.CheckLater is about.
const largeFile = 64 << 20

// Unchecked reports whether Open has left the check of the file to Check.
func (s *Store) Unchecked() bool { return s.unchecked.Load() }

// Check looks for damage in the whole file, beside all others who read and write.
// Its error wraps ErrDamaged where there is some. Where Open has looked already, or
// Check has, it does nothing.
func (s *Store) Check(ctx context.Context) error {
	if !s.unchecked.Load() {
		return nil
	}
	db, err := openHandle(s.path, "ro", "deferred", 1, "busy_timeout(5000)")
	if err == nil {
		err = errors.Join(quickCheck(ctx, db), db.Close())
	}
	if err != nil {
		if IsDamaged(err) && !errors.Is(err, ErrDamaged) {
			err = fmt.Errorf("%w (%w)", ErrDamaged, err)
		}
		return fmt.Errorf("check %s: %w", s.path, err)
	}
	s.unchecked.Store(false)
	return nil
}

func quickCheck(ctx context.Context, db *sql.DB) error {
	var result string
	if err := db.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&result); err != nil {
		return err
	}
	if result != "ok" {
		return fmt.Errorf("%w: %s", ErrDamaged, result)
	}
	return nil
}

// inspect checks, without writing, that the file is a database of byokd, and with
// check that it is whole, and returns its schema's version.
func inspect(ctx context.Context, path string, check bool) (version int, err error) {
	db, err := openHandle(path, "ro", "deferred", 1, "busy_timeout(5000)")
	if err != nil {
		return 0, err
	}
	defer db.Close()
	var id int
	if err := db.QueryRowContext(ctx, "PRAGMA application_id").Scan(&id); err != nil {
		return 0, err
	}
	if err := db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return 0, err
	}
	if id != applicationID || version < 1 {
		return 0, fmt.Errorf("%w: not a database that byokctl init made", ErrDamaged)
	}
	if check {
		if err := quickCheck(ctx, db); err != nil {
			return 0, err
		}
	}
	return version, whole(ctx, db, path)
}

// whole checks that the file ends with its last page: SQLite reads zeros for what
// is missing of one. Pages may still be in a write-ahead log, and the file shorter.
func whole(ctx context.Context, db *sql.DB, path string) error {
	var pages, size int64
	if err := db.QueryRowContext(ctx, "PRAGMA page_count").Scan(&pages); err != nil {
		return err
	}
	if err := db.QueryRowContext(ctx, "PRAGMA page_size").Scan(&size); err != nil {
		return err
	}
	if log, err := os.Stat(path + "-wal"); err == nil && log.Size() > 0 {
		return nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Size() < pages*size {
		return fmt.Errorf("%w: it has %d bytes, and its %d pages have %d", ErrDamaged, info.Size(), pages, pages*size)
	}
	return nil
}

// openWriter opens the one connection that writes, with further parameters.
func openWriter(path string, parameters ...string) (*sql.DB, error) {
	mode := strings.Join(append([]string{"rw"}, parameters...), "&")
	return openHandle(path, mode, "immediate", 1, "busy_timeout(5000)", "journal_mode(wal)", "synchronous(full)", "foreign_keys(1)")
}

// openHandle opens a pool of at most conns connections. The pragmas stand in
// the DSN, since one that is run through the pool reaches one connection only.
func openHandle(path, mode, lock string, conns int, pragmas ...string) (*sql.DB, error) {
	u := url.URL{Scheme: "file", Path: path, RawQuery: "mode=" + mode + "&_txlock=" + lock + "&_time_format=sqlite"}
	for _, p := range pragmas {
		u.RawQuery += "&_pragma=" + p
	}
	db, err := sql.Open("sqlite", u.String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(conns)
	return db, nil
}

// readMigrations returns the scripts 0001_NAME.sql, 0002_NAME.sql, … in order.
func readMigrations(fsys fs.FS) ([]string, error) {
	names, err := fs.Glob(fsys, "migrations/*.sql")
	if err != nil {
		return nil, err
	}
	var scripts []string
	for i, name := range names { // Glob sorts
		if prefix := fmt.Sprintf("migrations/%04d_", i+1); !strings.HasPrefix(name, prefix) {
			return nil, fmt.Errorf("migration %s: want %s….sql", name, prefix)
		}
		b, err := fs.ReadFile(fsys, name)
		if err != nil {
			return nil, err
		}
		scripts = append(scripts, string(b))
	}
	return scripts, nil
}

// migrate runs the scripts that come after version.
func migrate(ctx context.Context, tx *sql.Tx, scripts []string, version int) error {
	for i := version; i < len(scripts); i++ {
		if _, err := tx.ExecContext(ctx, scripts[i]); err != nil {
			return fmt.Errorf("migrate to schema %d: %w", i+1, err)
		}
		if _, err := tx.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d", i+1)); err != nil {
			return fmt.Errorf("migrate to schema %d: %w", i+1, err)
		}
	}
	return nil
}

// lockDir takes flock(2) on the directory. A lock on the directory needs no
// file of its own, holds for whatever file lies in it, and dies with the process.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err != syscall.EINTR {
			break
		}
	}
	switch {
	case err == syscall.EWOULDBLOCK:
		f.Close()
		return nil, fmt.Errorf("%s is %w", dir, ErrInUse)
	case err != nil:
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f, nil
}

// Close writes everything back into the one database file, so that a copy of
// it is a whole backup, and gives up the lock.
func (s *Store) Close() error {
	if err := s.closeAll(); err != nil {
		return fmt.Errorf("close %s: %w", s.path, err)
	}
	return nil
}

func (s *Store) closeAll() error {
	var errs []error
	if s.r != nil {
		errs = append(errs, s.reading.close(s.r))
	}
	if s.w != nil {
		if s.r != nil { // it was opened all the way
			_, err := s.w.Exec("PRAGMA wal_checkpoint(TRUNCATE)")
			errs = append(errs, err)
		}
		errs = append(errs, s.writing.close(s.w))
	}
	if s.lock != nil { // last: nobody may come in before all is written
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}

// A tx is one transaction of the writer, with one time for all that it dates.
type tx struct {
	*connection
	store *Store
	now   time.Time
	local bool // events are for hooks alone
	ids   *idSource

	// The first error of SQLite's, after which nothing of the part runs any more: it may
	// have undone the transaction, and each statement would be one by itself.
	failed error

	wrote   bool     // it has changed something
	changed []string // groups of which it has changed what Tell is about, some more than once
}

// txOf is the key of the transaction in the context that Together gives.
type txOf struct{}

// Together runs f, all of whose calls to the store with the context that it is
// given are one transaction: all of them are on disk when it returns nil, and none
// when it returns an error, of f or of the commit. A method that fails within f has
// no effect, and f may go on. f must not keep the context, nor be long: all others
// who write wait meanwhile. What f reads with that context it reads as it has
// written it.
func (s *Store) Together(ctx context.Context, f func(ctx context.Context) error) error {
	return s.writeWhat(ctx, &writing{func(t *tx) error { return f(context.WithValue(ctx, txOf{}, t)) }, true, make(chan error, 1)})
}

// within is the transaction that Together has put into a context; nil: none.
func (s *Store) within(ctx context.Context) *tx {
	if t, ok := ctx.Value(txOf{}).(*tx); ok && t.store == s {
		return t
	}
	return nil
}

// Tell has changed called after each transaction that has changed a generation, a
// job, a difference or whether an event is parked, with the names of their groups, by
// whoever wrote and before the writing method returns. Tell is called before the
// store is used by several goroutines.
func (s *Store) Tell(changed func(groups []string)) { s.changed = changed }

// Commits returns how many transactions have been committed that changed anything:
// how often this has waited for the disk.
func (s *Store) Commits() int64 { return s.commits.Load() }

// Queries returns how many queries have been run outside of transactions that write.
func (s *Store) Queries() int64 { return s.queries.Load() }

// run is the whole of a transaction. It returns the groups of which something has
// changed.
func (t *tx) run(ctx context.Context, f func(*tx) error) (changed []string, err error) {
	err = t.store.writing.transact(context.WithoutCancel(ctx), t.store.w, `BEGIN IMMEDIATE`, func(c *connection) error {
		t.connection = c
		check := watch(t)
		if err := cmp.Or(f(t), t.failed); err != nil {
			return err
		}
		check()
		return nil
	})
	if err != nil {
		return nil, err
	}
	if t.wrote {
		t.store.commits.Add(1)
	}
	slices.Sort(t.changed)
	return slices.Compact(t.changed), nil
}

// watch, of the tests, sees whether a transaction notes all that it changes.
var watch = func(*tx) (check func()) { return func() {} }

// part runs f as a part of the transaction: if it fails nothing of it stays.
func (t *tx) part(f func(*tx) error) error {
	if t.failed != nil {
		return t.failed
	}
	mark := func(query string) error {
		_, err := t.connection.exec(query)
		return err
	}
	if t.failed = mark(`SAVEPOINT part`); t.failed != nil {
		return t.failed
	}
	wrote, noted := t.wrote, len(t.changed)
	err := cmp.Or(f(t), t.failed)
	if err != nil {
		if rerr := mark(`ROLLBACK TO part`); rerr != nil {
			// SQLite has undone the whole transaction, as it does when the disk is full.
			t.failed = fmt.Errorf("%w: %w: %w", errLost, err, rerr)
			return t.failed
		}
		t.wrote, t.changed, t.failed = wrote, t.changed[:noted], nil
	}
	if rerr := mark(`RELEASE part`); rerr != nil {
		t.failed = fmt.Errorf("%w: %w", errLost, errors.Join(err, rerr))
		return t.failed
	}
	return err
}

// errLost: there is no transaction any more, so its other parts are lost too.
var errLost = errors.New("the transaction was undone")

// exec runs a statement and returns how many rows it changed.
func (t *tx) exec(query string, args ...any) (int, error) {
	if t.failed != nil {
		return 0, t.failed
	}
	n, err := t.connection.exec(query, args...)
	t.wrote = t.wrote || n > 0
	t.failed = err
	return n, err
}

func (t *tx) query(query string, args ...any) (rows, error) {
	if t.failed != nil {
		return nil, t.failed
	}
	rows, err := t.connection.query(query, args...)
	t.failed = err
	return rows, err
}

// row runs a query for its first row; ErrNotFound when there is none.
func (t *tx) row(query string, args []any, dest ...any) error {
	rows, err := t.query(query, args...)
	return notFound(first(rows, err, dest...))
}

// first scans the first row; sql.ErrNoRows when there is none.
func first(rows rows, err error, dest ...any) error {
	if err != nil {
		return err
	}
	defer rows.Close()
	if !rows.Next() {
		return cmp.Or(rows.Err(), sql.ErrNoRows)
	}
	return rows.Scan(dest...)
}

// read runs f in a transaction of a reader, which sees one state throughout.
func (s *Store) read(ctx context.Context, f func(querier) error) error {
	if t := s.within(ctx); t != nil {
		return f(t.query)
	}
	return s.reading.transact(ctx, s.r, `BEGIN`, func(c *connection) error {
		return f(func(query string, args ...any) (rows, error) {
			s.queries.Add(1)
			return c.query(query, args...)
		})
	})
}

// quick is a context for a query that takes no time to speak of: for one that can be
// interrupted, database/sql and the driver have a goroutine wait each.
func quick(ctx context.Context) context.Context {
	if ctx.Err() != nil {
		return ctx
	}
	return context.WithoutCancel(ctx)
}

// A reader runs queries, each for itself or in the transaction of Together.
type reader struct {
	s *Store
	t *tx // nil: none
}

func (s *Store) reader(ctx context.Context) reader { return reader{s, s.within(ctx)} }

func (r reader) query(ctx context.Context, query string, args ...any) (rows, error) {
	if r.t != nil {
		return r.t.query(query, args...)
	}
	r.s.queries.Add(1)
	stmt, err := r.s.asked.of(ctx, r.s.r, query)
	if err != nil {
		return nil, err
	}
	return stmt.QueryContext(ctx, args...)
}

func (r reader) queryRow(ctx context.Context, query string, args ...any) scanner {
	return firstRow(func() (rows, error) { return r.query(ctx, query, args...) })
}

// firstRow is the first row of what a query returns.
type firstRow func() (rows, error)

func (f firstRow) Scan(dest ...any) error {
	rows, err := f()
	return first(rows, err, dest...)
}

// A querier runs one query of a transaction.
type querier func(query string, args ...any) (rows, error)

// A scanner is a row.
type scanner interface{ Scan(dest ...any) error }

// collect scans all rows.
func collect[T any](rows rows, err error, scan func(scanner) (T, error)) ([]T, error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, rows.Err()
}

func scanString(row scanner) (s string, err error) {
	err = row.Scan(&s)
	return s, err
}

func notFound(err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return ErrNotFound
	}
	return err
}

// millis is a time on its way into the database: Unix milliseconds, and NULL
// for the zero time.
func millis(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UnixMilli()
}

// timeScanner is a time on its way out of the database.
type timeScanner struct{ t *time.Time }

func scanTime(t *time.Time) timeScanner { return timeScanner{t} }

func (s timeScanner) Scan(v any) error {
	switch v := v.(type) {
	case nil:
		*s.t = time.Time{}
	case int64:
		*s.t = time.UnixMilli(v).UTC()
	default:
		return fmt.Errorf("time is a %T, not an integer", v)
	}
	return nil
}

// text is JSON on its way into a TEXT column: NULL for nil.
func text(b []byte) any {
	if b == nil {
		return nil
	}
	return string(b)
}

// jsonText is a list or map on its way into a TEXT column; nil is NULL.
func jsonText[T []string | map[string]string](v T) any {
	b, err := json.Marshal(v)
	if err != nil || string(b) == "null" { // strings always marshal
		return nil
	}
	return string(b)
}

// jsonScanner is a list or map on its way out of a TEXT column.
type jsonScanner struct{ dest any }

func (s jsonScanner) Scan(v any) error {
	switch v := v.(type) {
	case nil:
		return nil
	case string:
		return json.Unmarshal([]byte(v), s.dest)
	}
	return fmt.Errorf("JSON is a %T, not text", v)
}

// limit is a LIMIT clause's value: SQL's "none" for 0.
func limit(n int) int {
	if n <= 0 {
		return 1<<31 - 1
	}
	return n
}

// among is the condition that a column has one of the values, or none where there
// are none.
func among(column string, values []string) (where string, args []any) {
	if len(values) == 0 {
		return "true", nil
	}
	return column + " IN (SELECT value FROM json_each(?))", []any{jsonText(values)}
}
