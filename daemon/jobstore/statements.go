package jobstore

import (
	"context"
	"database/sql"
	"sync"
)

// manyStatements is how many statements are kept prepared: more than there are
// queries in this package, but for those that are put together from lists.
const manyStatements = 200

// Statements are prepared once and kept: SQLite takes longer to prepare most of
// ours than to run them.
type statements struct {
	mu sync.RWMutex
	m  map[string]*sql.Stmt
}

// get returns a statement that is kept; nil: it is not.
func (s *statements) get(query string) *sql.Stmt {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.m[query]
}

// of returns a statement, which is kept from then on.
func (s *statements) of(ctx context.Context, db *sql.DB, query string) (*sql.Stmt, error) {
	if stmt := s.get(query); stmt != nil {
		return stmt, nil
	}
	stmt, err := db.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if kept := s.m[query]; kept != nil {
		stmt.Close()
		return kept, nil
	}
	if s.m == nil {
		s.m = make(map[string]*sql.Stmt)
	}
	if len(s.m) >= manyStatements {
		for query, old := range s.m { // any; who uses it goes on with it
			old.Close()
			delete(s.m, query)
			break
		}
	}
	s.m[query] = stmt
	return stmt, nil
}
