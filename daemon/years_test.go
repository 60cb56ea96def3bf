package daemon_test

import (
	"bufio"
	"bytes"
	"database/sql"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"byokd/cloud/awssim"
	"byokd/hsm"
	"byokd/hsm/hsmtest"
)

// asAWS marks a process of this test binary that is an AWS, whose memory is not
// byokd's.
const asAWS = "BYOKD_TEST_AS_AWS"

// beAWS serves AWS until its standard input ends, and writes its address to its
// standard output. It does not look at signatures, since its clock moves.
func beAWS() {
	server := httptest.NewServer(awssim.New(awssim.Options{Pairs: awssim.NewPairs(1)}))
	fmt.Println(server.URL)
	bufio.NewReader(os.Stdin).ReadString('\n')
	server.Close()
}

// awsElsewhere has another process be AWS.
func (w *world) awsElsewhere() {
	w.t.Helper()
	self, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), asAWS+"=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		w.halt()
		in.Close()
		cmd.Wait()
	})
	url, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		w.t.Fatal(err)
	}
	w.aws.Close()
	w.aws = &httptest.Server{URL: strings.TrimSpace(url)}
}

// years is a life of a byokd without faults, in which nothing may grow.
type years struct {
	*world
	now       time.Time
	db        *sql.DB
	faults    *hsmtest.Faults
	retention time.Duration
	sim       *http.Client
}

// A sample is what a byokd has of everything at some time.
type sample struct {
	at                            time.Time
	rotations                     int
	heap, resident                int
	descriptors, goroutines       int // but for those of connections that are kept for the next request
	connections                   int // of those
	sessions                      int
	jobs, steps, triggers, events int
	kinds                         []string // of events, and how many of each
	logins, generations, audit    int
	pages, free, log              int // log: bytes of the write-ahead log
	expired                       int // jobs and events past their retention
	waiting                       int // jobs that are not due
}

// forward moves byokd's clock and AWS's, and waits until nothing is left to do.
func (y *years) forward(d time.Duration) {
	y.t.Helper()
	response, err := y.sim.Post(y.aws.URL+"/_awssim/clock", "application/json", strings.NewReader(fmt.Sprintf(`{"advance": %q}`, d)))
	if err != nil {
		y.t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		y.t.Fatalf("AWS's clock: %s", response.Status)
	}
	y.now = y.now.Add(d)
	y.at(y.now)
	y.log.shorten(64 << 10)          // it tells each time that the clock was set
	time.Sleep(2 * time.Millisecond) // what comes late is done in the next step
	y.until("everything is done", y.rests)
}

func (y *years) rests() bool {
	return y.number(`SELECT (SELECT count(*) FROM jobs WHERE state = 'running' OR ready_at <= ?1) + (SELECT count(*) FROM outbox WHERE state = 'pending')`, y.now.UnixMilli()) == 0
}

func (y *years) number(query string, args ...any) (n int) {
	y.t.Helper()
	if err := y.db.QueryRow(query, args...).Scan(&n); err != nil {
		y.t.Fatalf("%s: %v", query, err)
	}
	return n
}

// quiet waits until every rotation that is due has been made, and what is past its
// retention has gone.
func (y *years) quiet() {
	y.t.Helper()
	left := ""
	defer func() {
		if left != "" {
			y.t.Logf("%s: %s", y.now, left)
		}
	}()
	y.until("all groups are well, and nothing is due", func() bool {
		all, err := y.client.Status(y.t.Context())
		if err != nil {
			y.t.Fatal(err)
		}
		left = ""
		for _, s := range all {
			if s.State != "ok" || !s.NextRotation.IsZero() && !s.NextRotation.After(y.now) {
				left += fmt.Sprintf("%s is %s, next rotation %s: %v\n", s.Group, s.State, s.NextRotation, s.Problems)
			}
		}
		return left == "" && y.rests()
	})
	y.until("what is past its retention has gone", func() bool { return y.expired() == 0 })
}

// expired is how much is left that retention should have removed by now: it looks
// twice a day.
func (y *years) expired() int {
	before := y.now.Add(-y.retention - 12*time.Hour).UnixMilli()
	return y.number(`SELECT (SELECT count(*) FROM jobs WHERE finished_at < ?1) + (SELECT count(*) FROM outbox WHERE sent_at < ?1)`, before)
}

// sample looks at everything. What comes and goes at any time, it waits for to be
// as few as before.
func (y *years) sample(before *sample) sample {
	y.t.Helper()
	y.quiet()
	s := sample{at: y.now}
	s.descriptors, s.goroutines, s.sessions = math.MaxInt, math.MaxInt, math.MaxInt
	least := func(of *int, n int) { *of = min(*of, n) }
	for i := range 3000 {
		others, connections := descriptors(y.t)
		least(&s.descriptors, others)
		least(&s.goroutines, goroutines())
		least(&s.sessions, y.faults.Calls("C_OpenSession")-y.faults.Calls("C_CloseSession"))
		s.connections = connections
		flat := before != nil && s.descriptors <= before.descriptors && s.goroutines <= before.goroutines && s.sessions <= before.sessions
		if flat || before == nil && i == 100 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	s.heap, s.resident = int(m.HeapAlloc), resident(y.t)
	for table, n := range map[string]*int{"jobs": &s.jobs, "steps": &s.steps, "triggers": &s.triggers, "outbox": &s.events,
		"pin_attempts": &s.logins, "generations": &s.generations, "audit": &s.audit} {
		*n = y.number("SELECT count(*) FROM " + table)
	}
	rows, err := y.db.Query(`SELECT count(*) || ' ' || detail_type FROM outbox GROUP BY detail_type ORDER BY detail_type`)
	if err != nil {
		y.t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var kind string
		if err := rows.Scan(&kind); err != nil {
			y.t.Fatal(err)
		}
		s.kinds = append(s.kinds, kind)
	}
	s.rotations = y.number(`SELECT count(*) FROM generations WHERE activated_at IS NOT NULL`)
	s.waiting = y.number(`SELECT count(*) FROM jobs WHERE state = 'available'`)
	s.pages, s.free = y.number("PRAGMA page_count"), y.number("PRAGMA freelist_count")
	s.expired = y.expired()
	if info, err := os.Stat(y.path("state/byokd.db-wal")); err == nil {
		s.log = int(info.Size())
	}
	return s
}

// descriptors counts this process's, those of sockets to AWS apart.
func descriptors(t testing.TB) (others, connections int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	tcp := make(map[string]bool) // inodes
	for _, file := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		b, _ := os.ReadFile(file)
		for line := range strings.Lines(string(b)) {
			if fields := strings.Fields(line); len(fields) > 9 {
				tcp["socket:["+fields[9]+"]"] = true
			}
		}
	}
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name()))
		switch {
		case err != nil: // the one for reading the directory
		case tcp[target]:
			connections++
		default:
			others++
		}
	}
	return others, connections
}

// goroutines counts them, but for two of each connection to AWS.
func goroutines() int {
	stacks := make([]byte, 1<<20)
	for {
		n := runtime.Stack(stacks, true)
		if n < len(stacks) {
			stacks = stacks[:n]
			break
		}
		stacks = make([]byte, 2*len(stacks))
	}
	n := 0
	for stack := range bytes.SplitSeq(stacks, []byte("\n\n")) {
		if !bytes.Contains(stack, []byte("net/http.(*persistConn)")) {
			n++
		}
	}
	return n
}

// resident is this process's memory, that of the PKCS#11 module included, in bytes.
func resident(t testing.TB) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.Fields(string(b))[1])
	if err != nil {
		t.Fatal(err)
	}
	return n * os.Getpagesize()
}

// TestTenYears lets $BYOKD_GROUPS groups be rotated for $BYOKD_YEARS years, as
// quick as HSM and disk are, and looks once a year whether anything grows that
// should not. Without either it is a sample, with shorter years.
func TestTenYears(t *testing.T) {
	groups, periods := int(setting(t, "BYOKD_GROUPS", 0)), int(setting(t, "BYOKD_YEARS", 0))
	const day = 24 * time.Hour
	period, retention, step := 365*day, 400*day, 5*day
	switch {
	case groups == 0 && periods == 0:
		groups, periods, period, retention, step = 6, 5, 60*day, 60*day, day
	case groups == 0:
		groups = 100
	case periods == 0:
		periods = 10
	}
	if periods < 3 {
		t.Fatal("BYOKD_YEARS: at least 3 are needed to compare them")
	}
	w := newWorld(t)
	w.awsElsewhere()
	w.level = 4 // warnings
	w.configure(fmt.Sprintf("drift_check = \"7d\"\n[retention]\njobs = \"%dd\"", int(retention.Hours()/24)))
	y := &years{world: w, now: time.Now().UTC().Truncate(time.Hour), faults: hsmtest.NewFaults(), retention: retention, sim: &http.Client{}}
	t.Cleanup(y.sim.CloseIdleConnections)
	w.hsm = []hsm.Option{hsm.WithLibrary(y.faults.Wrap)}
	kinds := []string{ // six in ten, three and one
		"every = \"30d\"\ndisable_previous = true\ndisable_previous_after = \"3d\"\nschedule_previous_deletion_after = \"60d\"",
		"every = \"90d\"\ndisable_previous = true",
		"every = \"180d\"\nmode = \"in-place\"",
	}
	define := func(i, version int) {
		kind := kinds[[]int{0, 1, 0, 2, 0, 1, 0, 0, 1, 0}[i%10]]
		w.group(fmt.Sprintf("group-%03d", i), kind+"\njitter = \"20d\"", fmt.Sprintf("description = \"version %d\"", version))
	}
	for i := range groups {
		define(i, 0)
	}
	y.at(y.now)
	w.start()
	w.until("all groups have a key", func() bool {
		all, err := w.client.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range all {
			if s.Active.Generation == nil {
				return false
			}
		}
		return len(all) == groups
	})
	var err error
	if y.db, err = sql.Open("sqlite", "file:"+w.path("state/byokd.db")+"?mode=ro&_pragma=busy_timeout(5000)"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { y.db.Close() })
	y.db.SetMaxOpenConns(1)

	begun := time.Now()
	steps := 0
	samples := []sample{y.sample(nil)}
	for len(samples) <= periods {
		for end := samples[0].at.Add(time.Duration(len(samples)) * period); y.now.Before(end); {
			y.forward(step)
			if steps++; steps%10 == 0 { // a person changes something
				define(steps/10%groups, steps)
				select {
				case w.reload <- struct{}{}:
				default:
				}
			}
		}
		var before *sample
		if len(samples) > 2 {
			before = &samples[2]
		}
		s := y.sample(before)
		samples = append(samples, s)
	}
	t.Logf("%d groups, %d times %d days, retention %d days, in %s:\n%s", groups, periods, int(period.Hours()/24),
		int(retention.Hours()/24), time.Since(begun).Round(time.Second), tallyOf(samples))

	// Flat: as it was when the second period had ended, when retention had begun to
	// remove as much as came.
	first := samples[2]
	t.Logf("events after period 2: %s\nafter the last: %s", strings.Join(first.kinds, ", "), strings.Join(samples[len(samples)-1].kinds, ", "))
	for i, s := range samples[3:] {
		year := i + 3
		for what, n := range map[string][2]int{"descriptors": {first.descriptors, s.descriptors}, "goroutines": {first.goroutines, s.goroutines},
			"sessions": {first.sessions, s.sessions}} {
			if n[1] > n[0] {
				t.Errorf("%s after period %d: %d, and %d after the second", what, year, n[1], n[0])
			}
		}
		if s.connections > 40 {
			t.Errorf("connections to AWS after period %d: %d", year, s.connections)
		}
		if s.expired != 0 {
			t.Errorf("after period %d there are %d jobs and events past their retention", year, s.expired)
		}
		for what, n := range map[string][2]int{"jobs": {first.jobs, s.jobs}, "steps": {first.steps, s.steps}, "triggers": {first.triggers, s.triggers},
			"events": {first.events, s.events}, "logins": {first.logins, s.logins}, "jobs that wait": {first.waiting, s.waiting}} {
			if n[1] > 2*n[0]+groups {
				t.Errorf("rows of %s after period %d: %d, and %d after the second", what, year, n[1], n[0])
			}
		}
		rotations := s.rotations - first.rotations
		if rotations == 0 {
			t.Errorf("there were no rotations in period %d", year)
		}
		if grown, most := s.heap-first.heap, 1<<20+heapPerRotation*rotations; grown > most {
			t.Errorf("the heap has grown by %d bytes by the end of period %d, with %d rotations: want at most %d", grown, year, rotations, most)
		}
		if grown, most := (s.pages-first.pages)*4096, 1<<20+storedPerRotation*rotations; grown > most {
			t.Errorf("the database has grown by %d bytes by the end of period %d, with %d rotations: want at most %d", grown, year, rotations, most)
		}
		if s.log > 8<<20 {
			t.Errorf("the write-ahead log has %d bytes after period %d", s.log, year)
		}
	}
	if err := w.halt(); err != nil {
		t.Errorf("byokd ended with %v", err)
	}
}

// What a rotation leaves for ever, in bytes: in the database a generation and its
// audit rows, in memory where its object is on the token.
const (
	storedPerRotation = 8 << 10
	heapPerRotation   = 1 << 10
)

// tallyOf is a table of samples for people.
func tallyOf(samples []sample) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%4s %9s %8s %8s %5s %6s %5s %5s %7s %7s %8s %8s %7s %8s %7s %7s\n", "year", "rotations", "heap KiB", "RSS KiB",
		"files", "conns", "gorou", "sess", "jobs", "steps", "events", "trigger", "gener", "audit", "DB KiB", "WAL KiB")
	for i, s := range samples {
		fmt.Fprintf(&b, "%4d %9d %8d %8d %5d %6d %5d %5d %7d %7d %8d %8d %7d %8d %7d %7d\n", i, s.rotations, s.heap>>10, s.resident>>10,
			s.descriptors, s.connections, s.goroutines, s.sessions, s.jobs, s.steps, s.events, s.triggers, s.generations, s.audit, s.pages*4, s.log>>10)
	}
	return b.String()
}
