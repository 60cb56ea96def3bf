package jobstore

import (
	"context"
	"database/sql/driver"
	"fmt"
	"strings"

	"modernc.org/sqlite"
)

// tellsChanges is the parameter of a connection that notes in temp.changed of which
// groups something was changed. SQLite passes over parameters that it does not know.
const tellsChanges = "_tells_changes=1"

// changeTriggers note it, whoever writes and however.
var changeTriggers = func() string {
	script := `CREATE TEMP TABLE changed (grp TEXT NOT NULL);`
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
		script += fmt.Sprintf("CREATE TEMP TRIGGER changed_%d AFTER %s %s BEGIN INSERT INTO changed VALUES (%s.grp); END;", i, when, condition, t.row)
	}
	return script
}()

func init() {
	sqlite.RegisterConnectionHook(func(conn sqlite.ExecQuerierContext, dsn string) error {
		if !strings.Contains(dsn, tellsChanges) {
			return nil
		}
		_, err := conn.ExecContext(context.Background(), "PRAGMA temp_store = memory;"+changeTriggers, []driver.NamedValue{})
		return err
	})
}
