package jobstore

import (
	"context"
	"database/sql"
	"io/fs"
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
		return err
	})
}
