package jobstore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"sync"
)

// A connection to the database, with its statements. In a transaction it is used past
// database/sql, which has a goroutine wait for the end of each transaction and of each
// query in it, and takes as long for a small statement as SQLite does.
type connection struct {
	driver.Conn
	stmts map[string]driver.Stmt // prepared: SQLite takes longer to prepare most of ours than to run them
}

// Connections are those of a handle that have been used so.
type connections struct {
	mu sync.Mutex
	m  map[any]*connection // by what database/sql has of them
}

func (all *connections) of(raw any) *connection {
	all.mu.Lock()
	defer all.mu.Unlock()
	c, ok := all.m[raw]
	if !ok {
		c = &connection{raw.(driver.Conn), make(map[string]driver.Stmt)}
		if all.m == nil {
			all.m = make(map[any]*connection)
		}
		all.m[raw] = c
	}
	return c
}

// drop closes the statements of a connection, without which SQLite keeps it open.
func (all *connections) drop(raw any) {
	all.mu.Lock()
	defer all.mu.Unlock()
	if c, ok := all.m[raw]; ok {
		c.forget()
		delete(all.m, raw)
	}
}

// close closes the handle of the connections, which nobody uses any more.
func (all *connections) close(db *sql.DB) error {
	var errs []error
	for range db.Stats().OpenConnections {
		conn, err := db.Conn(context.Background())
		if err != nil {
			errs = append(errs, err)
			break
		}
		defer conn.Close()
		errs = append(errs, conn.Raw(func(raw any) error { all.drop(raw); return nil }))
	}
	return errors.Join(append(errs, db.Close())...)
}

// transact runs f in a transaction, which begins with the given statement, and
// returns when that is on disk. When it returns an error, nothing of it is.
func (all *connections) transact(ctx context.Context, db *sql.DB, begin string, f func(*connection) error) error {
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	return conn.Raw(func(raw any) error {
		c := all.of(raw)
		if len(c.stmts) > manyStatements {
			c.forget()
		}
		if _, err := c.exec(begin); err != nil {
			return err
		}
		ended := false
		defer func() {
			if !ended { // f has panicked, and database/sql closes the connection
				all.drop(raw)
			}
		}()
		err := f(c)
		if err == nil {
			_, err = c.exec(`COMMIT`)
		}
		ended = true
		if err == nil {
			return nil
		}
		if _, rerr := c.exec(`ROLLBACK`); rerr != nil {
			// SQLite has undone it already, as it does when the disk is full, or the
			// connection is of no use any more: the next transaction gets another.
			all.drop(raw)
			return &lostConnection{err}
		}
		return err
	})
}

// A lostConnection is an error after which database/sql opens another connection.
type lostConnection struct{ error }

func (e *lostConnection) Unwrap() []error { return []error{e.error, driver.ErrBadConn} }

// forget closes all statements.
func (c *connection) forget() {
	for query, stmt := range c.stmts {
		stmt.Close()
		delete(c.stmts, query)
	}
}

func (c *connection) stmt(query string) (driver.Stmt, error) {
	if stmt, ok := c.stmts[query]; ok {
		return stmt, nil
	}
	stmt, err := c.Prepare(query)
	if err == nil {
		c.stmts[query] = stmt
	}
	return stmt, err
}

// exec runs a statement and returns how many rows it changed; of a statement that
// changes none by its nature, that number means nothing.
func (c *connection) exec(query string, args ...any) (int, error) {
	stmt, err := c.stmt(query)
	if err != nil {
		return 0, err
	}
	res, err := stmt.(driver.StmtExecContext).ExecContext(context.Background(), bound(args))
	if err != nil {
		return 0, err
	}
	n, err := res.RowsAffected()
	return int(n), err
}

func (c *connection) query(query string, args ...any) (rows, error) {
	stmt, err := c.stmt(query)
	if err != nil {
		return nil, err
	}
	r, err := stmt.(driver.StmtQueryContext).QueryContext(context.Background(), bound(args))
	if err != nil {
		return nil, err
	}
	return &result{rows: r, values: make([]driver.Value, len(r.Columns()))}, nil
}

// bound are arguments as the driver takes them.
func bound(args []any) []driver.NamedValue {
	values := make([]driver.NamedValue, len(args))
	for i, arg := range args {
		switch v := arg.(type) {
		case int:
			arg = int64(v)
		case *int:
			if arg = nil; v != nil {
				arg = int64(*v)
			}
		}
		values[i] = driver.NamedValue{Ordinal: i + 1, Value: arg}
	}
	return values
}

// Rows are what a query returns, row by row; *sql.Rows are some.
type rows interface {
	Next() bool
	Scan(dest ...any) error
	Err() error
	Close() error
}

// A result is the rows of a query of the connection.
type result struct {
	rows   driver.Rows
	values []driver.Value
	err    error
}

func (r *result) Next() bool {
	if r.err != nil {
		return false
	}
	r.err = r.rows.Next(r.values)
	return r.err == nil
}

func (r *result) Err() error {
	if errors.Is(r.err, io.EOF) {
		return nil
	}
	return r.err
}

func (r *result) Close() error { return r.rows.Close() }

func (r *result) Scan(dest ...any) error {
	if len(dest) != len(r.values) {
		return fmt.Errorf("%d columns for %d values", len(r.values), len(dest))
	}
	for i, d := range dest {
		if err := assign(d, r.values[i]); err != nil {
			return fmt.Errorf("column %d: %w", i, err)
		}
	}
	return nil
}

// assign stores a value of a column, an integer, a text or NULL, in what this package
// scans into.
func assign(dest any, v driver.Value) error {
	if s, ok := dest.(sql.Scanner); ok {
		return s.Scan(v)
	}
	switch v := v.(type) {
	case int64:
		switch d := dest.(type) {
		case *int64:
			*d = v
			return nil
		case *int:
			*d = int(v)
			return nil
		case *bool:
			*d = v != 0
			return nil
		case **int:
			n := int(v)
			*d = &n
			return nil
		}
	case string:
		switch d := dest.(type) {
		case *string:
			*d = v
			return nil
		case *[]byte:
			*d = []byte(v)
			return nil
		}
	case nil:
		switch d := dest.(type) {
		case *[]byte:
			*d = nil
			return nil
		case **int:
			*d = nil
			return nil
		}
	}
	return fmt.Errorf("%T does not fit into %T", v, dest)
}
