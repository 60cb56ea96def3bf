package jobstore_test

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"byokd/daemon/jobstore"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if mode := os.Getenv("JOBSTORE_CHILD"); mode != "" {
		child(mode, os.Getenv("JOBSTORE_PATH"))
		return
	}
	goleak.VerifyTestMain(m)
}

// child is what this test binary does as a second process.
func child(mode, path string) {
	ctx := context.Background()
	check := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	switch mode {
	case "hold": // have the store open until killed
		_, err := jobstore.Open(ctx, path, jobstore.Options{})
		check(err)
		fmt.Println("open")
		io.Copy(io.Discard, os.Stdin)
	case "claim": // race for all jobs, from the signal on
		s, err := jobstore.OpenUnlocked(ctx, path, jobstore.Options{})
		check(err)
		fmt.Println("ready")
		_, err = bufio.NewReader(os.Stdin).ReadString('\n')
		check(err)
		for {
			job, err := s.Claim(ctx, time.Now(), "", jobstore.Skip{})
			check(err)
			if job == nil {
				break
			}
			fmt.Println(job.ID)
		}
		check(s.Close())
	case "write": // commit, tell, commit, tell, … until killed
		s, err := jobstore.Open(ctx, path, jobstore.Options{})
		check(err)
		_, err = s.Rescue(ctx)
		check(err)
		for i := 0; ; i++ {
			key := fmt.Sprintf("%d-%d", os.Getpid(), i)
			_, _, err := s.Enqueue(ctx, jobstore.NewJob{Kind: "synchronize", Group: "payments", UniqueKey: key})
			check(err)
			fmt.Println("asked", key)
			job, err := s.Claim(ctx, time.Now(), "", jobstore.Skip{})
			check(err)
			check(s.Advance(ctx, jobstore.Change{JobID: job.ID, Steps: []jobstore.Step{{Name: "policy", State: "done"}}}))
			check(s.Finish(ctx, job.ID, jobstore.Completed, "", jobstore.Change{Events: []jobstore.Event{
				{ID: "event of " + job.ID, Group: "payments", Detail: []byte("{}")},
			}}))
			fmt.Println("finished", job.ID)
		}
	}
}

// A process is a running child.
type process struct {
	*exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
	err *bytes.Buffer
}

func start(t *testing.T, mode, path string) *process {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "JOBSTORE_CHILD="+mode, "JOBSTORE_PATH="+path)
	p := &process{Cmd: cmd, err: new(bytes.Buffer)}
	cmd.Stderr = p.err
	out, err := cmd.StdoutPipe()
	must(t, err)
	p.in, err = cmd.StdinPipe()
	must(t, err)
	p.out = bufio.NewScanner(out)
	must(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return p
}

// line waits for the child's next line.
func (p *process) line(t *testing.T) string {
	t.Helper()
	if !p.out.Scan() {
		p.Wait()
		t.Fatalf("child ended: %s", p.err)
	}
	return p.out.Text()
}

// kill ends the child with SIGKILL and returns the lines that it had still written.
func (p *process) kill(t *testing.T) (rest []string) {
	t.Helper()
	must(t, p.Process.Kill())
	for p.out.Scan() {
		rest = append(rest, p.out.Text())
	}
	p.Wait()
	if p.err.Len() > 0 {
		t.Fatalf("child: %s", p.err)
	}
	return rest
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustBe(t testing.TB, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("error is %v, want %v", err, target)
	}
}

func equal[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s is %v, want %v", what, got, want)
	}
}

// clock is a time that tests move.
type clock struct{ now time.Time }

var epoch = time.Date(2026, 3, 29, 1, 30, 0, 0, time.UTC)

func (c *clock) Now() time.Time          { return c.now }
func (c *clock) advance(d time.Duration) { c.now = c.now.Add(d) }

func create(t testing.TB) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "byokd.db")
	must(t, jobstore.Create(path))
	return path
}

// newStore returns an empty store and its clock.
func newStore(t testing.TB) (*jobstore.Store, *clock) {
	t.Helper()
	c := &clock{now: epoch}
	s, err := jobstore.Open(t.Context(), create(t), jobstore.Options{Now: c.Now})
	must(t, err)
	t.Cleanup(func() { s.Close() })
	return s, c
}

// open opens with the real clock.
func open(t testing.TB, path string) *jobstore.Store {
	t.Helper()
	s, err := jobstore.Open(t.Context(), path, jobstore.Options{})
	must(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

// query returns the single value that the query yields.
func query[T any](t testing.TB, s *jobstore.Store, q string, args ...any) T {
	t.Helper()
	var v T
	if err := s.Reader().QueryRow(q, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", q, err)
	}
	return v
}

func TestCreate(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "byokd.db")
	must(t, os.WriteFile(path+".new", []byte("left by a try that was killed"), 0o600))
	must(t, jobstore.Create(path))
	info, err := os.Stat(path)
	must(t, err)
	equal(t, "mode", info.Mode().String(), "-rw-------")
	entries, err := os.ReadDir(dir)
	must(t, err)
	equal(t, "number of files", len(entries), 1)

	before, err := os.ReadFile(path)
	must(t, err)
	mustBe(t, jobstore.Create(path), jobstore.ErrExists)
	after, err := os.ReadFile(path)
	must(t, err)
	if !bytes.Equal(before, after) {
		t.Error("a second Create changed the database")
	}

	s := open(t, path)
	must(t, s.Close())
	must(t, os.Remove(path))
	must(t, os.Symlink("nowhere", path))
	mustBe(t, jobstore.Create(path), jobstore.ErrExists)
	mustBe(t, jobstore.Create(filepath.Join(dir, "missing", "byokd.db")), os.ErrNotExist)
}

func TestCreateGivesFileToDirectoryOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: only root can give files away")
	}
	dir := t.TempDir()
	must(t, os.Chown(dir, 4242, 4343))
	path := filepath.Join(dir, "byokd.db")
	must(t, jobstore.Create(path))
	info, err := os.Stat(path)
	must(t, err)
	owner := info.Sys().(*syscall.Stat_t)
	equal(t, "owner", owner.Uid, 4242)
	equal(t, "group", owner.Gid, 4343)
}

func TestCreateUnderRunningDaemon(t *testing.T) {
	path := create(t)
	open(t, path)
	must(t, os.Remove(path))
	mustBe(t, jobstore.Create(path), jobstore.ErrInUse)
}

func TestOpenNeverCreates(t *testing.T) {
	dir := t.TempDir()
	_, err := jobstore.Open(t.Context(), filepath.Join(dir, "byokd.db"), jobstore.Options{})
	mustBe(t, err, jobstore.ErrNotExist)
	if !strings.Contains(err.Error(), "byokctl init") {
		t.Errorf("%q does not name the command", err)
	}
	entries, err := os.ReadDir(dir)
	must(t, err)
	equal(t, "number of files", len(entries), 0)
}

func TestSpecialPaths(t *testing.T) {
	for _, name := range []string{"a b", "a?mode=memory", "a#b", "100%25", "käse", "a&b=c", "'quoted\"", "x:y"} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), name)
			must(t, os.Mkdir(dir, 0o700))
			path := filepath.Join(dir, name+".db")
			must(t, jobstore.Create(path))
			s := open(t, path)
			must(t, s.SetDefinition(t.Context(), "payments", []byte(`{}`), "d", "main"))
			must(t, s.Close())
			entries, err := os.ReadDir(dir)
			must(t, err)
			equal(t, "number of files after Close", len(entries), 1)
			equal(t, "file", entries[0].Name(), name+".db")
		})
	}
}

func TestRelativePath(t *testing.T) {
	t.Chdir(t.TempDir())
	must(t, jobstore.Create("byokd.db"))
	open(t, "byokd.db")
}

func TestPragmas(t *testing.T) {
	s := open(t, create(t))
	equal(t, "application_id", query[int](t, s, "PRAGMA application_id"), 0x62796f6b)
	equal(t, "user_version", query[int](t, s, "PRAGMA user_version"), len(scripts(t)))

	pragmas := []struct{ name, writer, reader string }{
		{"journal_mode", "wal", "wal"},
		{"synchronous", "2", "2"},
		{"foreign_keys", "1", "1"},
		{"busy_timeout", "5000", "5000"},
		{"query_only", "0", "1"},
	}
	for _, pragma := range pragmas {
		var got string
		must(t, s.Writer().QueryRow("PRAGMA "+pragma.name).Scan(&got))
		equal(t, "writer's "+pragma.name, got, pragma.writer)

	}

	// All of the pool's connections, not only the first one.
	for i := range 4 {
		conn, err := s.Reader().Conn(t.Context())
		must(t, err)
		defer conn.Close()
		for _, pragma := range pragmas {
			var got string
			must(t, conn.QueryRowContext(t.Context(), "PRAGMA "+pragma.name).Scan(&got))
			equal(t, fmt.Sprintf("reader %d's %s", i, pragma.name), got, pragma.reader)
		}
		_, err = conn.ExecContext(t.Context(), "INSERT INTO groups (name) VALUES ('x')")
		if !jobstore.IsReadOnly(err) {
			t.Errorf("reader %d's insert: %v", i, err)
		}
	}
	equal(t, "writer's connections", s.Writer().Stats().MaxOpenConnections, 1)
}

// reopen closes a store and opens it again.
func reopen(t testing.TB, s *jobstore.Store) *jobstore.Store {
	t.Helper()
	path := s.Path()
	must(t, s.Close())
	return open(t, path)
}

func TestTablesAreStrict(t *testing.T) {
	s := open(t, create(t))
	rows, err := s.Reader().Query(`SELECT name, strict FROM pragma_table_list WHERE schema = 'main' AND type = 'table' AND name NOT LIKE 'sqlite_%'`)
	must(t, err)
	defer rows.Close()
	tables := 0
	for rows.Next() {
		var name string
		var strict bool
		must(t, rows.Scan(&name, &strict))
		if !strict {
			t.Errorf("table %s is not STRICT", name)
		}
		tables++
	}
	equal(t, "number of tables", tables, 10)
}

func TestMigrate(t *testing.T) {
	path := create(t)
	s := open(t, path)
	must(t, s.SetDefinition(t.Context(), "payments", []byte(`{"a":1}`), "d", "main"))
	must(t, s.Close())

	later := make(fstest.MapFS)
	for _, name := range scripts(t) {
		data, err := fs.ReadFile(jobstore.Migrations, name)
		must(t, err)
		later[name] = &fstest.MapFile{Data: data}
	}
	now := len(later)
	broken := fmt.Sprintf("migrations/%04d_broken.sql", now+2)
	later[fmt.Sprintf("migrations/%04d_colour.sql", now+1)] = &fstest.MapFile{
		Data: []byte(`ALTER TABLE groups ADD COLUMN colour TEXT NOT NULL DEFAULT 'red'; UPDATE groups SET colour = 'blue';`)}
	later[broken] = &fstest.MapFile{Data: []byte(`ALTER TABLE groups ADD COLUMN taste TEXT; INSERT INTO nowhere VALUES (1);`)}
	var err error

	// One that breaks leaves nothing of those before it.
	if _, err := jobstore.OpenMigrations(t.Context(), path, later); err == nil {
		t.Fatal("a broken migration went through")
	}
	s = open(t, path)
	equal(t, "version", query[int](t, s, "PRAGMA user_version"), now)
	must(t, s.Close())

	delete(later, broken)
	for range 2 { // the second time there is nothing to do
		s, err = jobstore.OpenMigrations(t.Context(), path, later)
		must(t, err)
		equal(t, "version", query[int](t, s, "PRAGMA user_version"), now+1)
		equal(t, "colour", query[string](t, s, "SELECT colour FROM groups WHERE name = 'payments'"), "blue")
		must(t, s.Close())
	}

	// And now this byokd is the older one.
	before, err := os.ReadFile(path)
	must(t, err)
	for _, o := range []jobstore.Options{{}, {ReadOnly: true}} {
		_, err = jobstore.Open(t.Context(), path, o)
		mustBe(t, err, jobstore.ErrNewer)
	}
	after, err := os.ReadFile(path)
	must(t, err)
	if !bytes.Equal(before, after) {
		t.Error("opening a newer database changed it")
	}

	delete(later, "migrations/0001_initial.sql")
	if _, err := jobstore.OpenMigrations(t.Context(), path, later); err == nil {
		t.Error("a gap in the migrations was not noticed")
	}
}

// scripts are the names of the migrations, in order.
func scripts(t *testing.T) []string {
	t.Helper()
	names, err := fs.Glob(jobstore.Migrations, "migrations/*.sql")
	must(t, err)
	return names
}

// TestMigrateFirst: a database of the first schema keeps what it has.
func TestMigrateFirst(t *testing.T) {
	path := filepath.Join(t.TempDir(), "byokd.db")
	must(t, os.WriteFile(path, nil, 0o600))
	first, err := fs.ReadFile(jobstore.Migrations, scripts(t)[0])
	must(t, err)
	db, err := sql.Open("sqlite", "file:"+path+"?_pragma=journal_mode(wal)")
	must(t, err)
	for _, statement := range []string{"PRAGMA application_id = 0x62796f6b", string(first), "PRAGMA user_version = 1",
		`INSERT INTO groups (name, sequence) VALUES ('payments', 2)`,
		`INSERT INTO outbox (id, event_id, grp, sequence, detail_type, detail, occurred_at, job_id, region, account, credential, state, sent_at)
			VALUES (7, 'e1', 'payments', 1, 'KMS Alias Moved', '{}', 1000, 'j', 'r', 'a', 'c', 'sent', 2000)`,
		`INSERT INTO outbox (id, event_id, grp, sequence, detail_type, detail, occurred_at, job_id, region, account, credential, next_attempt)
			VALUES (9, 'e2', 'payments', 2, 'KMS Alias Moved', '{}', 1000, 'j', 'r', 'a', 'c', 3000)`,
		`INSERT INTO audit (at, grp, job_id, actor, action, detail) VALUES (1000, 'payments', 'j', 'schedule', 'move alias', '')`} {
		_, err := db.Exec(statement)
		must(t, err)
	}
	must(t, db.Close())
	s := open(t, path)
	events, err := s.Events(t.Context(), jobstore.EventFilter{Group: "payments"})
	must(t, err)
	if len(events) != 2 || events[0].ID != "e2" || events[0].State != jobstore.Pending || events[1].State != jobstore.Sent {
		t.Errorf("events %+v", events)
	}
	must(t, s.Emit(t.Context(), event("payments", "")))
	equal(t, "ID of the next event", query[int](t, s, "SELECT max(id) FROM outbox"), 10)
	trail, err := s.Audit(t.Context(), jobstore.AuditFilter{})
	must(t, err)
	equal(t, "audit rows", len(trail), 1)
}

// TestMigrateOpenJobs: jobs that wait when schema 7 comes have their place and their
// steps after it, and one that has ended is as it was.
func TestMigrateOpenJobs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "byokd.db")
	must(t, os.WriteFile(path, nil, 0o600))
	db, err := sql.Open("sqlite", "file:"+path+"?_pragma=journal_mode(wal)")
	must(t, err)
	exec := func(statement string) {
		t.Helper()
		_, err := db.Exec(statement)
		must(t, err)
	}
	exec("PRAGMA application_id = 0x62796f6b")
	for _, name := range scripts(t)[:6] {
		script, err := fs.ReadFile(jobstore.Migrations, name)
		must(t, err)
		exec(string(script))
	}
	exec("PRAGMA user_version = 6")
	exec(`INSERT INTO groups (name) VALUES ('a'), ('b'), ('c')`)
	const insert = `INSERT INTO jobs (id, kind, grp, hsm, generation, state, cause, definition, urgent, created_at, due_at, started_at, finished_at)
		VALUES ('%s', 'rotate', '%s', 'main', 0, '%s', 'schedule', '{"credential":"prod","region":"eu-west-1"}', 0, 1, 1, %s, %s)`
	exec(fmt.Sprintf(insert, "1", "a", "available", "NULL", "NULL"))
	exec(fmt.Sprintf(insert, "2", "b", "running", "1", "NULL"))
	exec(fmt.Sprintf(insert, "3", "c", "completed", "1", "2"))
	for _, job := range []string{"1", "2", "3"} {
		exec(fmt.Sprintf(`INSERT INTO steps (job_id, name, position, state, message) VALUES ('%[1]s', 'generate', 0, 'done', 'x'), ('%[1]s', 'activate', 1, 'pending', '')`, job))
	}
	must(t, db.Close())

	s := open(t, path)
	ctx := t.Context()
	due, err := s.Due(ctx, time.Now())
	must(t, err)
	if len(due) != 1 || due[0].Place != "prod eu-west-1" {
		t.Errorf("due at %v", due)
	}
	open, err := s.OpenJobs(ctx)
	must(t, err)
	equal(t, "open jobs", len(open), 2)
	_, joined, err := s.Enqueue(ctx, rotation("b"))
	must(t, err)
	equal(t, "joined", joined, true)
	job, err := s.Claim(ctx, time.Now(), "prod eu-west-1", jobstore.Skip{})
	must(t, err)
	if job == nil || job.ID != "1" || len(job.Steps) != 2 || job.Steps[0].State != "done" || job.Steps[1].State != "pending" {
		t.Fatalf("claimed %+v", job)
	}
	must(t, s.Advance(ctx, jobstore.Change{JobID: "1", Steps: []jobstore.Step{{Name: "activate", State: "running"}}}))
	must(t, s.Finish(ctx, "1", jobstore.Completed, "", jobstore.Change{}))
	for _, id := range []string{"1", "3"} {
		job, err := s.Job(ctx, id)
		if err != nil || job.State != jobstore.Completed || len(job.Steps) != 2 || job.Steps[1].Name != "activate" {
			t.Errorf("job %s: %+v, %v", id, job, err)
		}
	}
	if _, joined, err := s.Enqueue(ctx, rotation("c")); err != nil || joined {
		t.Errorf("a rotation after one that has ended joins: %v, %v", joined, err)
	}
}

func TestMigrateReadOnly(t *testing.T) {
	path := create(t)
	later := make(fstest.MapFS)
	for i := range len(scripts(t)) + 1 {
		later[fmt.Sprintf("migrations/%04d_some.sql", i+1)] = new(fstest.MapFile)
	}
	_, err := jobstore.OpenReadOnlyMigrations(t.Context(), path, later)
	if err == nil || !strings.Contains(err.Error(), "start byokd once") {
		t.Errorf("error is %v", err)
	}
}

func TestDamaged(t *testing.T) {
	path := create(t)
	s := open(t, path)
	for i := range 200 {
		_, _, err := s.Enqueue(t.Context(), jobstore.NewJob{Kind: "synchronize", Group: "payments", UniqueKey: fmt.Sprint(i), Definition: bytes.Repeat([]byte("x"), 500)})
		must(t, err)
	}
	must(t, s.Close())
	good, err := os.ReadFile(path)
	must(t, err)
	if len(good) < 20*4096 {
		t.Fatalf("database of %d bytes is too small for this test", len(good))
	}
	edit := func(f func([]byte) []byte) []byte { return f(bytes.Clone(good)) }
	for name, content := range map[string][]byte{
		"empty":     {},
		"text":      []byte(strings.Repeat("This is no database.\n", 500)),
		"truncated": edit(func(b []byte) []byte { return b[:len(b)/2] }),
		"zeroes":    edit(func(b []byte) []byte { clear(b[4096 : 8*4096]); return b }),
		"flipped": edit(func(b []byte) []byte { // each page's type
			for p := 4096; p < len(b); p += 4096 {
				b[p] ^= 0x40
			}
			return b
		}),
		"another program's": edit(func(b []byte) []byte { b[68] ^= 1; return b }),
	} {
		t.Run(name, func(t *testing.T) {
			must(t, os.WriteFile(path, content, 0o600))
			for _, o := range []jobstore.Options{{}, {ReadOnly: true}} {
				s, err := jobstore.Open(t.Context(), path, o)
				if err == nil {
					s.Close()
				}
				mustBe(t, err, jobstore.ErrDamaged)
				if !jobstore.IsDamaged(err) || jobstore.IsFull(err) || jobstore.IsReadOnly(err) {
					t.Errorf("%v is wrongly classed", err)
				}
			}
			after, err := os.ReadFile(path)
			must(t, err)
			if !bytes.Equal(content, after) {
				t.Error("opening a damaged file changed it")
			}
		})
	}
	must(t, os.WriteFile(path, good, 0o600))
	open(t, path)
}

// Damage that comes while byokd runs is classed by the code of the call that
// meets it.
func TestDamagedWhileOpen(t *testing.T) {
	path := create(t)
	s := open(t, path)
	must(t, s.SetDefinition(t.Context(), "payments", []byte("{}"), "d", "main"))
	s = reopen(t, s)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	info, err := f.Stat()
	must(t, err)
	_, err = f.WriteAt(bytes.Repeat([]byte{0xff}, int(info.Size())-4096), 4096)
	must(t, err)
	_, err = s.Groups(t.Context())
	if !jobstore.IsDamaged(err) {
		t.Errorf("error is %v, want one that is damage", err)
	}
}

func TestNotAFile(t *testing.T) {
	_, err := jobstore.Open(t.Context(), t.TempDir(), jobstore.Options{})
	mustBe(t, err, jobstore.ErrDamaged)
}

func TestInUse(t *testing.T) {
	path := create(t)
	s := open(t, path)
	_, err := jobstore.Open(t.Context(), path, jobstore.Options{})
	mustBe(t, err, jobstore.ErrInUse)

	p := start(t, "hold", path)
	if p.out.Scan() {
		t.Fatalf("a second process opened the store: %s", p.out.Text())
	}
	if p.Wait() == nil || !strings.Contains(p.err.String(), jobstore.ErrInUse.Error()) {
		t.Errorf("second process said %q", p.err)
	}

	// Reading beside it is fine.
	must(t, s.SetDefinition(t.Context(), "payments", []byte("{}"), "d", "main"))
	ro, err := jobstore.Open(t.Context(), path, jobstore.Options{ReadOnly: true})
	must(t, err)
	defer ro.Close()
	groups, err := ro.Groups(t.Context())
	must(t, err)
	equal(t, "number of groups", len(groups), 1)
	mustBe(t, ro.SetApplied(t.Context(), "payments", "d"), jobstore.ErrReadOnly)
	_, err = ro.Claim(t.Context(), time.Now(), "", jobstore.Skip{})
	mustBe(t, err, jobstore.ErrReadOnly)

	// Closed is closed; dead is dead.
	must(t, s.Close())
	p = start(t, "hold", path)
	equal(t, "child", p.line(t), "open")
	_, err = jobstore.Open(t.Context(), path, jobstore.Options{})
	mustBe(t, err, jobstore.ErrInUse)
	p.kill(t)
	open(t, path)
}

// A failed Open gives the lock back.
func TestFailedOpenUnlocks(t *testing.T) {
	path := create(t)
	good, err := os.ReadFile(path)
	must(t, err)
	must(t, os.WriteFile(path, []byte("no database"), 0o600))
	_, err = jobstore.Open(t.Context(), path, jobstore.Options{})
	mustBe(t, err, jobstore.ErrDamaged)
	must(t, os.WriteFile(path, good, 0o600))
	open(t, path)
}

func TestCloseLeavesOneFile(t *testing.T) {
	path := create(t)
	s := open(t, path)
	must(t, s.SetDefinition(t.Context(), "payments", []byte("{}"), "d", "main"))
	if _, err := os.Stat(path + "-wal"); err != nil {
		t.Errorf("no write-ahead log while open: %v", err)
	}
	must(t, s.Close())
	entries, err := os.ReadDir(filepath.Dir(path))
	must(t, err)
	equal(t, "number of files", len(entries), 1)

	// A copy of that file is a backup.
	b, err := os.ReadFile(path)
	must(t, err)
	backup := filepath.Join(t.TempDir(), "byokd.db")
	must(t, os.WriteFile(backup, b, 0o600))
	_, err = open(t, backup).Group(t.Context(), "payments")
	must(t, err)
}

// mountTmpfs mounts a file system of the given size.
func mountTmpfs(t *testing.T, size string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); errors.Is(err, syscall.EPERM) {
		t.Skip("NOT TESTED: mounting a small file system takes root")
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestFullDisk(t *testing.T) {
	dir := mountTmpfs(t, "1200k")
	path := filepath.Join(dir, "byokd.db")
	ballast := filepath.Join(dir, "ballast")
	must(t, os.WriteFile(ballast, make([]byte, 250<<10), 0o600))
	must(t, jobstore.Create(path))
	s := open(t, path)

	enqueue := func(i int) error {
		_, _, err := s.Enqueue(t.Context(), jobstore.NewJob{Kind: "synchronize", Group: "payments", UniqueKey: fmt.Sprint(i), Definition: bytes.Repeat([]byte("x"), 2000)})
		return err
	}
	stored := 0
	var err error
	for err == nil {
		if err = enqueue(stored); err == nil {
			stored++
		}
	}
	if !jobstore.IsFull(err) || jobstore.IsDamaged(err) || jobstore.IsReadOnly(err) {
		t.Fatalf("error is %v, want one of a full disk", err)
	}
	if stored < 10 {
		t.Fatalf("only %d jobs before the disk was full", stored)
	}
	for range 3 { // again and again, and nothing breaks
		if err := enqueue(stored); !jobstore.IsFull(err) {
			t.Fatalf("error is %v, want one of a full disk", err)
		}
	}
	check := func() {
		t.Helper()
		jobs, err := s.Jobs(t.Context(), jobstore.JobFilter{})
		must(t, err)
		equal(t, "number of jobs", len(jobs), stored)
		seen, err := s.Seen(t.Context(), "payments", fmt.Sprint(stored-1))
		must(t, err)
		equal(t, "last one seen", seen, true)
		seen, err = s.Seen(t.Context(), "payments", fmt.Sprint(stored))
		must(t, err)
		equal(t, "refused one seen", seen, false)
	}
	check()

	// With room again it goes on by itself.
	must(t, os.Remove(ballast))
	must(t, enqueue(stored))
	stored++
	check()
	s = reopen(t, s)
	check()
}

func TestCreateOnFullDisk(t *testing.T) {
	dir := mountTmpfs(t, "64k")
	path := filepath.Join(dir, "byokd.db")
	if err := jobstore.Create(path); !jobstore.IsFull(err) {
		t.Errorf("error is %v, want one of a full disk", err)
	}
	entries, err := os.ReadDir(dir)
	must(t, err)
	equal(t, "number of files", len(entries), 0)
}

func TestReadOnlyDisk(t *testing.T) {
	dir := mountTmpfs(t, "2m")
	path := filepath.Join(dir, "byokd.db")
	must(t, jobstore.Create(path))
	must(t, syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""))
	_, err := jobstore.Open(t.Context(), path, jobstore.Options{})
	if !jobstore.IsReadOnly(err) || jobstore.IsDamaged(err) || jobstore.IsFull(err) {
		t.Errorf("error is %v, want one of a read-only disk", err)
	}
	if err := jobstore.Create(filepath.Join(dir, "other.db")); !errors.Is(err, syscall.EROFS) {
		t.Errorf("error is %v, want EROFS", err)
	}
	must(t, syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "size=2m"))
	open(t, path)
}

func TestPermission(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Log("as root permissions do not hold; TestReadOnlyDisk has the case")
		return
	}
	path := create(t)
	must(t, os.Chmod(filepath.Dir(path), 0o500))
	defer os.Chmod(filepath.Dir(path), 0o700)
	_, err := jobstore.Open(t.Context(), path, jobstore.Options{})
	if !jobstore.IsReadOnly(err) {
		t.Errorf("error is %v, want one of a read-only directory", err)
	}
}

func TestCancelledContext(t *testing.T) {
	s := open(t, create(t))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	mustBe(t, s.SetDefinition(ctx, "payments", []byte("{}"), "d", "main"), context.Canceled)
	_, err := s.Groups(ctx)
	mustBe(t, err, context.Canceled)
	must(t, s.SetDefinition(t.Context(), "payments", []byte("{}"), "d", "main"))
}

func TestKill(t *testing.T) {
	path := create(t)
	var asked, finished []string
	for round := range 12 {
		p := start(t, "write", path)
		var lines []string
		for range 1 + round*3 {
			lines = append(lines, p.line(t))
		}
		for _, line := range append(lines, p.kill(t)...) {
			verb, what, ok := strings.Cut(line, " ")
			switch {
			case !ok: // cut short by the kill
			case verb == "asked":
				asked = append(asked, what)
			case verb == "finished":
				finished = append(finished, what)
			}
		}
		s := open(t, path)
		equal(t, "quick_check", query[string](t, s, "PRAGMA quick_check"), "ok")
		for _, key := range asked {
			seen, err := s.Seen(t.Context(), "payments", key)
			must(t, err)
			if !seen {
				t.Errorf("round %d: acknowledged key %s is lost", round, key)
			}
		}
		for _, id := range finished {
			job, err := s.Job(t.Context(), id)
			must(t, err)
			if job.State != jobstore.Completed || len(job.Steps) != 1 || job.Steps[0].State != "done" {
				t.Errorf("round %d: finished job is %+v", round, job)
			}
		}
		checkSequences(t, s)
		events, err := s.Events(t.Context(), jobstore.EventFilter{})
		must(t, err)
		completed, err := s.Jobs(t.Context(), jobstore.JobFilter{State: jobstore.Completed})
		must(t, err)
		equal(t, "number of events", len(events), len(completed))
		must(t, s.Close())
	}
	if len(finished) < 12 {
		t.Errorf("only %d jobs finished: the test tests nothing", len(finished))
	}
}
