package jobstore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
)

// OpenUnlocked is Open without the lock, so that several processes can race.
func OpenUnlocked(ctx context.Context, path string, o Options) (*Store, error) {
	return open(ctx, path, o, embedded, false)
}

// OpenMigrations is Open of a byokd that has other migrations.
func OpenMigrations(ctx context.Context, path string, migrations fs.FS) (*Store, error) {
	return open(ctx, path, Options{}, migrations, true)
}

// OpenReadOnlyMigrations is that with Options.ReadOnly.
func OpenReadOnlyMigrations(ctx context.Context, path string, migrations fs.FS) (*Store, error) {
	return open(ctx, path, Options{ReadOnly: true}, migrations, true)
}

// Migrations are those of this byokd.
var Migrations fs.FS = embedded

// Path is where the database lies.
func (s *Store) Path() string { return s.path }

// Writer and Reader are the store's handles.
func (s *Store) Writer() *sql.DB { return s.w }
func (s *Store) Reader() *sql.DB { return s.r }

// Waiting is how many wait to write.
func (s *Store) Waiting() int {
	s.writer.mu.Lock()
	defer s.writer.mu.Unlock()
	return len(s.writer.waiting)
}

// Undo has a transaction of the store undone from within, as SQLite does when the
// disk is full.
func (s *Store) Undo(ctx context.Context) error {
	return s.write(ctx, func(t *tx) error {
		_, err := t.exec(`ROLLBACK`)
		return errors.Join(errors.New("as if the disk were full"), err)
	})
}

// changes are what Tell is about, as triggers that note it in temp.changed, whoever
// writes and however.
var changes = func() string {
	script := `CREATE TEMP TABLE IF NOT EXISTS changed (grp TEXT NOT NULL);`
	for i, t := range []struct{ when, row string }{
		{"INSERT ON main.jobs", "NEW"},
		{"UPDATE ON main.jobs", "NEW"},
		{"DELETE ON main.jobs WHEN OLD.state = 'discarded'", "OLD"},
		{"INSERT ON main.generations", "NEW"},
		{"UPDATE ON main.generations", "NEW"},
		{"INSERT ON main.drift", "NEW"},
		{"UPDATE ON main.drift", "NEW"},
		{"DELETE ON main.drift", "OLD"},
		{"UPDATE OF state ON main.outbox WHEN NEW.state = 'parked' OR OLD.state = 'parked'", "NEW"},
	} {
		when, condition, _ := strings.Cut(t.when, " WHEN ")
		if condition != "" {
			condition = "WHEN " + condition
		}
		script += fmt.Sprintf("CREATE TEMP TRIGGER IF NOT EXISTS changed_%d AFTER %s %s BEGIN INSERT INTO changed VALUES (%s.grp); END;", i, when, condition, t.row)
	}
	return script
}()

// Unwatched has a benchmark's transactions be as they are outside of tests.
func Unwatched() { watch = func(*tx) func() { return func() {} } }

// Every transaction of these tests has to note what it changes, and that it does.
func init() {
	watch = func(t *tx) func() {
		var before, after int64
		must := func(err error) {
			if err != nil && !IsDamaged(err) {
				panic(err)
			}
		}
		_, err := t.Conn.(driver.ExecerContext).ExecContext(context.Background(), changes+`DELETE FROM temp.changed`, nil)
		must(err)
		must(t.row(`SELECT total_changes()`, nil, &before))
		return func() {
			must(t.row(`SELECT total_changes() - (SELECT count(*) FROM temp.changed)`, nil, &after))
			rows, err := t.query(`SELECT DISTINCT grp FROM temp.changed`)
			changed, err := collect(rows, err, scanString)
			must(err)
			for _, group := range changed {
				if !slices.Contains(t.changed, group) {
					panic(fmt.Sprintf("group %s was changed and is not noted, %v are", group, t.changed))
				}
			}
			if t.wrote != (after != before) {
				panic(fmt.Sprintf("noted whether something was changed: %v; rows that were: %d", t.wrote, after-before))
			}
		}
	}
}
