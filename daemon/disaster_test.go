package daemon_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	"github.com/miekg/pkcs11"

	"byokd/cloud/awssim"
	"byokd/daemon"
	"byokd/daemon/control"
	"byokd/daemon/jobstore"
	"byokd/hsm"
	"byokd/hsm/hsmtest"
)

// mountState gives the state_dir a file system of its own, of so many bytes,
// with an empty database on it. That needs root.
func (w *world) mountState(size int) {
	w.t.Helper()
	state := w.path("state")
	if err := syscall.Mount("tmpfs", state, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", size)); err != nil {
		w.t.Skipf("NOT TESTED: a file system of its own for the database cannot be mounted (that needs root): %v", err)
	}
	w.t.Cleanup(func() {
		w.halt()
		if err := syscall.Unmount(state, 0); err != nil {
			w.t.Errorf("unmount %s: %v", state, err)
		}
	})
	w.initState()
}

// fill fills the file system of the database.
func (w *world) fill() {
	f, err := os.OpenFile(w.path("state/filler"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return // there is not even room for its name
	}
	defer f.Close()
	for size := 1 << 20; size >= 512; {
		if n, err := f.Write(make([]byte, size)); err != nil && n == 0 {
			size /= 2
		}
	}
}

// empty makes room again.
func (w *world) empty() {
	w.t.Helper()
	if err := os.Remove(w.path("state/filler")); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) rotate(names ...string) []control.Job {
	w.t.Helper()
	jobs, err := w.client.Rotate(w.t.Context(), names, false)
	if err != nil {
		w.t.Fatal(err)
	}
	return jobs
}

// pending is how many events wait in the outbox.
func (w *world) pending() int {
	w.t.Helper()
	d, err := w.client.Daemon(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return d.Outbox.Pending
}

// checkEvents checks that the bus has had all events of each group, from the
// first on, and each fact under one ID; inOrder: that none came before one of
// its group that it follows.
func (w *world) checkEvents(inOrder bool) (total, doubles int) {
	w.t.Helper()
	type fact struct {
		group    string
		sequence float64
	}
	ids, known, last := make(map[fact]string), make(map[string]fact), make(map[string]float64)
	for _, d := range w.allEvents() {
		f := fact{d["group"].(string), d["sequence"].(float64)}
		id := d["event_id"].(string)
		if before, ok := known[id]; ok {
			doubles++
			if before != f {
				w.t.Errorf("event %s is %v and %v", id, before, f)
			}
			continue
		}
		if other, ok := ids[f]; ok {
			w.t.Errorf("%v is both event %s and event %s", f, other, id)
		}
		ids[f], known[id] = id, f
		if inOrder && f.sequence != last[f.group]+1 {
			w.t.Errorf("group %s: event %v came after %v", f.group, f.sequence, last[f.group])
		}
		last[f.group] = max(last[f.group], f.sequence)
	}
	for group, n := range last {
		for s := 1.0; s <= n; s++ {
			if _, ok := ids[fact{group, s}]; !ok {
				w.t.Errorf("group %s: event %v of %v never came", group, s, n)
			}
		}
	}
	return len(known), doubles
}

// checkKeys checks that there is one KMS key and one HSM object for each
// generation of the groups, and that each alias is on the newest. It stops byokd.
func (w *world) checkKeys(generations map[string]int) {
	w.t.Helper()
	total := 0
	for name, n := range generations {
		total += n
		keys, err := w.client.Keys(w.t.Context(), name)
		if err != nil {
			w.t.Fatal(err)
		}
		if len(keys) != n {
			w.t.Errorf("group %s has %d generations, want %d", name, len(keys), n)
		}
		if last := keys[len(keys)-1]; last.State != "active" || string(last.KeyID) != w.alias(name) {
			w.t.Errorf("the alias of %s points at %s; the newest generation is %+v", name, w.alias(name), last)
		}
	}
	if n := len(w.keys()); n != total {
		w.t.Errorf("there are %d KMS keys, want %d", n, total)
	}
	if err := w.halt(); err != nil {
		w.t.Errorf("byokd ended with %v", err)
	}
	if objects := w.objects(); !maps.Equal(objects, generations) {
		w.t.Errorf("HSM objects %v, want %v", objects, generations)
	}
}

// objects counts the groups' keys on the token. byokd must not be running: in
// one process only one can have the module.
func (w *world) objects() map[string]int {
	w.t.Helper()
	modules := hsm.NewModules(slog.New(slog.DiscardHandler))
	defer modules.Close(context.Background())
	token := modules.Token(hsm.Config{Name: "test", Module: w.token.Module, TokenLabel: w.token.Label, PIN: w.token.UserPIN})
	refs, err := token.List(w.t.Context(), "byokd/", 0)
	if err != nil {
		w.t.Fatal(err)
	}
	objects := make(map[string]int)
	for _, ref := range refs {
		objects[strings.Split(ref.Label, "/")[1]]++
	}
	return objects
}

// allEvents are the details of all events that AWS has received, as they came.
func (w *world) allEvents() (details []map[string]any) {
	w.t.Helper()
	for _, e := range w.sim.Events() {
		var detail map[string]any
		if err := json.Unmarshal(e.Envelope.Detail, &detail); err != nil {
			w.t.Fatal(err)
		}
		details = append(details, detail)
	}
	return details
}

// The disk with the database is full in the middle of rotations: status tells,
// nothing is lost, and byokd goes on by itself when there is room again.
func TestDiskFull(t *testing.T) {
	w := newWorld(t)
	w.mountState(6 << 20)
	names := []string{"one", "two", "three"}
	for _, name := range names {
		w.group(name, every, "")
	}
	w.start()
	for _, name := range names {
		w.untilGeneration(name, 1)
	}
	w.until("all events are on the bus", func() bool { return w.pending() == 0 })

	// Fill it while the rotations are between KMS's CreateKey and the import.
	w.faults(func(r awssim.Request) *awssim.Fault {
		if r.Operation == "GetParametersForImport" {
			w.fill()
		}
		return nil
	}, nil)
	want := 1
	w.until("the disk is full", func() bool {
		// The write-ahead log has room for a while.
		if w.problem("one", "database") != "" {
			return true
		}
		if _, err := w.client.Rotate(t.Context(), names, false); err != nil {
			return w.problem("one", "database") != ""
		}
		return false
	})
	if p := w.problem("one", "database"); !strings.Contains(p, "is full: make room; byokd goes on by itself then") {
		t.Errorf("status says %q", p)
	}
	// A request file is not lost meanwhile, even if it cannot be stored.
	w.write("run/requests/rotate.one", "")
	w.until("the request is taken", func() bool { _, err := os.Stat(w.path("run/requests/rotate.one")); return err != nil })
	w.faults(nil, nil)
	w.empty()
	w.until("byokd goes on", func() bool {
		return w.problem("one", "database") == "" && w.problem("two", "database") == "" && w.log.contains("the database can be written again")
	})
	w.until("no request waits", func() bool {
		files, _ := filepath.Glob(w.path("run/requests/.taken/*"))
		return len(files) == 0
	})
	generations := make(map[string]int)
	for _, name := range names {
		w.until("the jobs of "+name+" have ended", func() bool { return len(w.openJobs(name)) == 0 })
		generations[name] = w.generation(name)
		if generations[name] <= want {
			t.Errorf("group %s has generation %d", name, generations[name])
		}
	}
	w.until("all events are on the bus", func() bool { return w.pending() == 0 })
	w.checkKeys(generations)
	w.checkEvents(true)
	t.Logf("generations: %v", generations)
}

// TestRotateOnAFullDisk: who asks for a rotation is told what to do, and status has the
// problem from then on, not less of it.
func TestRotateOnAFullDisk(t *testing.T) {
	w := newWorld(t)
	w.mountState(6 << 20)
	w.group("payments", every, "")
	w.start()
	w.untilGeneration("payments", 1)
	w.until("byokd is at rest", func() bool { return w.pending() == 0 && len(w.openJobs("payments")) == 0 })
	w.fill()
	for range 3 {
		var err error
		w.until("a rotation cannot be stored", func() bool {
			_, err = w.client.Rotate(t.Context(), nil, true)
			return err != nil
		})
		if !strings.Contains(err.Error(), "make room") {
			t.Errorf("who asks is told: %v", err)
		}
		if w.problem("payments", "database") == "" {
			t.Error("status does not tell that the disk is full")
		}
	}
	if w.log.contains("the database can be written again") {
		t.Error("the log has it that the database can be written")
	}
	w.empty()
	w.until("the database can be written", func() bool { return w.problem("payments", "database") == "" })
}

// On a full disk byokd does not start, says what to do, and starts when there is
// room again: systemd tries that every few seconds.
func TestDiskFullAtStart(t *testing.T) {
	w := newWorld(t)
	w.mountState(6 << 20)
	w.group("payments", every, "")
	w.start()
	w.untilGeneration("payments", 1)
	w.halt()
	w.fill()
	for range 2 {
		err := w.launch()
		if err == nil || daemon.ExitStatus(err) != daemon.ExitFault || !strings.Contains(err.Error(), "is full: make room; byokd goes on by itself then") {
			t.Errorf("on a full disk byokd ends with %v, status %d", err, daemon.ExitStatus(err))
		}
	}
	w.empty()
	w.start()
	w.rotated("payments")
	w.untilGeneration("payments", 2)
	w.checkKeys(map[string]int{"payments": 2})
}

// Twice in a row the disk is full when the token has answered a login: byokd knows
// all the same how these logins ended, and goes on by itself.
func TestDiskFullInLogin(t *testing.T) {
	w := newWorld(t)
	w.mountState(6 << 20)
	faults := hsmtest.NewFaults()
	var login, closed atomic.Int64 // which one, and sessions closed since
	faults.Set(func(op string, n int) (bool, uint) {
		switch {
		case op == "C_Login" && n <= 2:
			w.fill()
			closed.Store(0)
			login.Store(int64(n))
		case op == "C_CloseSession":
			closed.Add(1)
		}
		return true, pkcs11.CKR_OK
	})
	w.hsm = []hsm.Option{hsm.WithLibrary(faults.Wrap)}
	w.group("payments", every, "")
	w.start()
	for n := range int64(2) {
		w.until("a login", func() bool { return login.Load() == n+1 })
		w.until("it is given up, since its result cannot be stored", func() bool { return closed.Load() > 0 })
		w.empty()
	}
	w.untilGeneration("payments", 1)
	if n, want := w.logins(), faults.Calls("C_Login"); n != want {
		t.Errorf("the database knows of %d logins, and there were %d", n, want)
	}
}

// A database that is not what it was: byokd does not start on it, exits with 78
// and says what to do. Nothing is made.
func TestDamagedDatabase(t *testing.T) {
	w := newWorld(t)
	w.group("payments", every, "")
	w.start()
	w.untilGeneration("payments", 1)
	w.until("all events are on the bus", func() bool { return w.pending() == 0 })
	w.halt()
	db := w.path("state/byokd.db")
	whole, err := os.ReadFile(db)
	if err != nil {
		t.Fatal(err)
	}
	page := int(binary.BigEndian.Uint16(whole[16:])) // of SQLite's header
	changes := w.changes()
	const remedy, newer = "byokctl init", "a newer byokd: install that version again"
	flipped := func(at int) []byte { b := bytes.Clone(whole); b[at] ^= 0xff; return b }
	cases := []struct {
		name    string
		content []byte
		message string
	}{
		{"empty", nil, remedy},
		{"cut to half a page", whole[:page/2], remedy},
		{"cut to half", whole[:len(whole)/2/page*page], remedy},
		{"cut by a page", whole[:len(whole)-page], remedy},
		{"cut within a page", whole[:len(whole)-100], remedy},
		{"garbage", bytes.Repeat([]byte("garbage\n"), 4096), remedy},
		{"zeros", make([]byte, len(whole)), remedy},
		{"a flipped magic", flipped(0), remedy},
		{"a flipped application ID", flipped(68), remedy},
		{"a newer schema", func() []byte {
			b := bytes.Clone(whole)
			binary.BigEndian.PutUint32(b[60:], 999) // user_version
			return b
		}(), newer},
	}
	for at := page; at < len(whole); at += page {
		if flags := whole[at]; flags == 2 || flags == 5 || flags == 10 || flags == 13 { // a page of a b-tree
			cases = append(cases, struct {
				name    string
				content []byte
				message string
			}{fmt.Sprintf("a flipped page %d", at/page+1), flipped(at), remedy})
		}
	}
	if len(cases) < 20 {
		t.Fatalf("there are %d cases only", len(cases))
	}
	for _, c := range cases {
		if err := os.WriteFile(db, c.content, 0o600); err != nil {
			t.Fatal(err)
		}
		err := w.launch()
		var ee *daemon.ExitError
		if !errors.As(err, &ee) || ee.Status != daemon.ExitHelpless || !strings.Contains(err.Error(), c.message) || !strings.Contains(err.Error(), db) {
			t.Errorf("%s: byokd ends with %v", c.name, err)
			w.halt()
		}
		if now, err := os.ReadFile(db); err != nil || !bytes.Equal(now, c.content) {
			t.Errorf("%s: the file was changed: %v", c.name, err)
		}
	}
	if n := w.changes() - changes; n != 0 {
		t.Errorf("%d requests changed something in AWS", n)
	}
	// The remedy is one.
	w.loseDatabase()
	w.start()
	w.until("the generation is found again", func() bool { return w.generation("payments") == 1 })
	w.checkKeys(map[string]int{"payments": 1})
}

// A database that is spoilt under a running byokd ends it, with 78 again.
func TestDatabaseSpoiltWhileRunning(t *testing.T) {
	w := newWorld(t)
	w.group("payments", every, "")
	w.start()
	w.untilGeneration("payments", 1)
	info, err := os.Stat(w.path("state/byokd.db"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"state/byokd.db", "state/byokd.db-wal"} {
		if err := os.WriteFile(w.path(name), bytes.Repeat([]byte("garbage\n"), int(info.Size()/8)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var ended error
	w.until("byokd ends", func() bool {
		select {
		case ended = <-w.ended:
			w.ended = nil
			return true
		default:
			w.client.Rotate(t.Context(), []string{"payments"}, false)
			return false
		}
	})
	w.client.Close()
	var ee *daemon.ExitError
	if !errors.As(ended, &ee) || ee.Status != daemon.ExitHelpless || !strings.Contains(ended.Error(), "byokctl init") {
		t.Fatalf("byokd ends with %v", ended)
	}
	w.loseDatabase()
	w.start()
	w.until("the generation is found again", func() bool { return w.generation("payments") >= 1 })
}

// A state_dir that cannot be written: byokd says so when it starts.
func TestReadOnlyState(t *testing.T) {
	w := newWorld(t)
	w.mountState(4 << 20)
	w.group("payments", every, "")
	w.start()
	w.untilGeneration("payments", 1)
	w.halt()
	remount := func(flags uintptr) {
		t.Helper()
		if err := syscall.Mount("", w.path("state"), "", syscall.MS_REMOUNT|flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	remount(syscall.MS_RDONLY)
	err := w.launch()
	if err == nil {
		t.Fatal("byokd starts on a state_dir that cannot be written")
	}
	t.Logf("status %d: %v", daemon.ExitStatus(err), err)
	if !strings.Contains(err.Error(), w.path("state/byokd.db")) {
		t.Errorf("the message does not name the database: %v", err)
	}
	remount(0)
	w.start()
	w.until("the group is known", func() bool { return w.generation("payments") == 1 })
	w.checkKeys(map[string]int{"payments": 1})
}

// EventBridge is away for a week in which keys are rotated.
func TestEventBridgeAwayForAWeek(t *testing.T) {
	w := newWorld(t)
	now := time.Now().UTC().Truncate(24 * time.Hour).Add(12 * time.Hour)
	w.at(now)
	w.group("daily", `schedule = "0 3 * * *"`, "")
	w.group("weekly", `every = "3d"`, "")
	w.start()
	w.untilGeneration("daily", 1)
	w.untilGeneration("weekly", 1)
	w.until("all events are on the bus", func() bool { return w.pending() == 0 })
	w.faults(func(r awssim.Request) *awssim.Fault {
		if r.Service == "events" {
			return &awssim.Fault{Drop: true}
		}
		return nil
	}, nil)
	for day := 1; day <= 7; day++ {
		now = now.Add(24 * time.Hour)
		w.at(now)
		w.untilGeneration("daily", 1+day)
		w.untilGeneration("weekly", 1+day/3)
		if day == 4 {
			w.restart()
		}
	}
	w.until("status tells", func() bool { return w.problem("daily", "events") != "" })
	if n := w.pending(); n != 9 {
		t.Errorf("%d events wait, want 9", n)
	}
	if s := w.status("daily"); s.State != control.GroupOK {
		t.Errorf("that events wait is no fault of a group, but its state is %s: %+v", s.State, s.Problems)
	}
	w.faults(nil, nil)
	w.at(now.Add(time.Minute))
	w.until("all events are on the bus", func() bool { return w.pending() == 0 })
	w.until("status has nothing to tell", func() bool { return w.problem("daily", "events") == "" })
	if total, doubles := w.checkEvents(true); total != 11 || doubles != 0 {
		t.Errorf("the bus has had %d events, %d of them twice; want 11", total, doubles)
	}
}

// TestEventsTriedAtStart: a byokd that starts tries at once what waits for its next
// attempt, and so its status tells what is in the way.
func TestEventsTriedAtStart(t *testing.T) {
	w := newWorld(t)
	w.at(time.Now()) // where it stands, so that no next attempt comes
	w.group("payments", every, "")
	w.faults(func(r awssim.Request) *awssim.Fault {
		if r.Service == "events" {
			return &awssim.Fault{Code: "ServiceUnavailable", Status: 503}
		}
		return nil
	}, nil)
	w.start()
	w.untilGeneration("payments", 1)
	w.until("no event is due", func() bool {
		events, err := w.client.Events(t.Context(), control.EventFilter{State: control.EventPending})
		return err == nil && len(events) > 0 && len(w.openJobs("payments")) == 0 &&
			!slices.ContainsFunc(events, func(e control.Event) bool { return e.NextAttempt.IsZero() })
	})
	w.restart()
	w.until("status tells that events are not sent", func() bool { return w.problem("payments", "events") != "" })
	if err := w.halt(); err != nil {
		t.Fatal(err)
	}
	w.faults(nil, nil)
	w.start()
	w.until("all events are on the bus", func() bool { return w.pending() == 0 })
}

// PutEvents to a bus that does not exist answers 200 and drops the events, so
// none is sent before there is one.
func TestUnknownBus(t *testing.T) {
	w := newWorld(t)
	now := time.Now()
	w.at(now)
	w.configure(`events.bus = "audit"`)
	w.group("payments", every, "")
	w.start()
	w.untilGeneration("payments", 1)
	w.rotate("payments")
	w.untilGeneration("payments", 2)
	w.until("status names the bus", func() bool {
		return strings.Contains(w.problem("payments", "events"), `event bus "audit" does not exist in Region `+testRegion+`: create it, or correct [events] bus`)
	})
	if n := w.pending(); n != 2 || w.requests("PutEvents") != 0 {
		t.Errorf("%d events wait, %d requests sent events", n, w.requests("PutEvents"))
	}
	client := eventbridge.New(eventbridge.Options{Region: testRegion, BaseEndpoint: aws.String(w.aws.URL),
		Credentials: credentials.NewStaticCredentialsProvider(adminKey, adminSecret, ""), HTTPClient: w.aws.Client()})
	if _, err := client.CreateEventBus(t.Context(), &eventbridge.CreateEventBusInput{Name: aws.String("audit")}); err != nil {
		t.Fatal(err)
	}
	w.at(now.Add(2 * time.Minute))
	w.until("all events are on the bus", func() bool { return w.pending() == 0 })
	if total, _ := w.checkEvents(true); total != 2 || w.problem("payments", "events") != "" {
		t.Errorf("the bus has had %d events; problem: %s", total, w.problem("payments", "events"))
	}
}

// An event that EventBridge will never take is parked: its group's later ones go
// on, and those of other groups never noticed.
func TestPoisonedEvent(t *testing.T) {
	w := newWorld(t)
	w.group("payments", every, "")
	w.group("other", every, "")
	w.start()
	w.untilGeneration("payments", 1)
	w.untilGeneration("other", 1)
	w.until("all events are on the bus", func() bool { return w.pending() == 0 })
	w.halt()
	store, err := jobstore.Open(t.Context(), w.path("state/byokd.db"), jobstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	err = store.Emit(t.Context(), jobstore.Event{ID: "poisoned", Group: "payments", DetailType: strings.Repeat("x", 200),
		Detail: []byte(`{}`), OccurredAt: time.Now(), Region: testRegion, Credential: "prod"})
	if err := errors.Join(err, store.Close()); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.until("it is parked", func() bool { d, err := w.client.Daemon(t.Context()); return err == nil && d.Outbox.Parked == 1 })
	w.rotate("payments", "other")
	w.untilGeneration("payments", 2)
	w.untilGeneration("other", 2)
	w.until("the others are on the bus", func() bool { return w.pending() == 0 && len(w.eventDetails("KMS Alias Moved")) == 4 })
	if !w.log.contains("event is parked") || !strings.Contains(w.problem("payments", "event-parked"), "poisoned") || w.problem("other", "event-parked") != "" {
		t.Errorf("log and status do not tell of the parked event, or of the wrong group: %+v", w.status("payments").Problems)
	}
}

// Credentials that are gone, and come back.
func TestCredentialsGoneAndBack(t *testing.T) {
	w := newWorld(t)
	w.group("payments", every, "")
	w.start()
	w.untilGeneration("payments", 1)
	w.until("all events are on the bus", func() bool { return w.pending() == 0 })
	csv, err := os.ReadFile(w.path("prod.csv"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(w.path("prod.csv")); err != nil {
		t.Fatal(err)
	}
	w.rotate("payments")
	w.until("the job waits for a person", func() bool { return strings.Contains(w.problem("payments", "waiting-permission"), "prod.csv") })
	w.write("prod.csv", string(csv))
	w.untilGeneration("payments", 2) // the file's change is enough
	w.until("all events are on the bus", func() bool { return w.pending() == 0 })
	w.checkKeys(map[string]int{"payments": 2})
	w.checkEvents(true)
}

// A credential is renamed while events wait for the bus: those that came about
// under the old name are delivered all the same, before the later ones.
func TestEventsOfARenamedCredential(t *testing.T) {
	w := newWorld(t)
	w.group("payments", every, "")
	var away atomic.Bool
	away.Store(true)
	w.faults(func(r awssim.Request) *awssim.Fault {
		if r.Operation == "PutEvents" && away.Load() {
			return &awssim.Fault{Status: 503, Code: "InternalFailure"}
		}
		return nil
	}, nil)
	w.start()
	w.untilGeneration("payments", 1)
	w.halt()
	b, err := os.ReadFile(w.path("byokd.toml"))
	if err != nil {
		t.Fatal(err)
	}
	w.write("byokd.toml", strings.Replace(string(b), "[credentials.prod]", "[credentials.live]", 1))
	away.Store(false)
	w.start()
	w.rotated("payments")
	w.until("all events are on the bus", func() bool { return w.pending() == 0 })
	w.checkKeys(map[string]int{"payments": 2})
	w.checkEvents(true)
}

// The HSM closes sessions, forgets the login, fails or is full in the middle of
// rotations: what can be mended at once is, within the attempt; one key comes of
// each rotation.
func TestHSMFailsUnderRotations(t *testing.T) {
	w := newWorld(t)
	faults := hsmtest.NewFaults()
	w.hsm = []hsm.Option{hsm.WithLibrary(faults.Wrap), hsm.WithReinitEvery(0)}
	w.group("payments", every, "")
	w.start()
	w.untilGeneration("payments", 1)
	generation := 1
	for _, c := range []struct {
		op       string
		code     uint
		done     bool // the token does what it is asked for all the same
		attempts int
	}{
		{"C_WrapKey", pkcs11.CKR_SESSION_HANDLE_INVALID, false, 1},
		{"C_GetAttributeValue", pkcs11.CKR_SESSION_CLOSED, false, 1},
		{"C_WrapKey", pkcs11.CKR_USER_NOT_LOGGED_IN, false, 1},
		{"C_WrapKey", pkcs11.CKR_DEVICE_ERROR, false, 1},
		{"C_GenerateKey", pkcs11.CKR_DEVICE_ERROR, true, 1},
		{"C_GenerateKey", pkcs11.CKR_DEVICE_REMOVED, false, 1},
		{"C_GenerateKey", pkcs11.CKR_DEVICE_MEMORY, false, 2},
	} {
		if c.done {
			faults.Lose(c.op, c.code, 1)
		} else {
			faults.Fail(c.op, c.code, 1)
		}
		job := w.rotated("payments")
		generation++
		if job.State != control.JobCompleted || job.Attempt != c.attempts || w.generation("payments") != generation {
			t.Errorf("%s, %v: the job is %s after %d attempts, want %d: %s", c.op, pkcs11.Error(c.code), job.State, job.Attempt, c.attempts, job.Error)
		}
	}
	faults.Set(nil)
	w.until("all events are on the bus", func() bool { return w.pending() == 0 })
	w.checkKeys(map[string]int{"payments": generation})
	w.checkEvents(true)
}

// A call into the HSM that never returns ends byokd, to be restarted; then the
// rotation goes on.
func TestHSMHangs(t *testing.T) {
	w := newWorld(t)
	faults := hsmtest.NewFaults()
	w.hsm = []hsm.Option{hsm.WithLibrary(faults.Wrap)}
	toml, err := os.ReadFile(w.path("byokd.toml"))
	if err != nil {
		t.Fatal(err)
	}
	w.write("byokd.toml", strings.Replace(string(toml), "[hsm.main]\n", "[hsm.main]\ncall_timeout = \"5s\"\n", 1))
	w.group("payments", every, "")
	w.start()
	w.untilGeneration("payments", 1)
	hanging, release := faults.Hang("C_WrapKey")
	defer release()
	w.askRotation("payments")
	<-hanging
	err = <-w.ended
	w.ended = nil
	w.client.Close()
	var ee *daemon.ExitError
	if !errors.As(err, &ee) || ee.Status != daemon.ExitRestart || !strings.Contains(err.Error(), "[hsm.main] has not returned within call_timeout") {
		t.Fatalf("byokd ends with %v", err)
	}
	release()
	faults.Finalize() // as the end of the process does
	w.start()
	w.untilGeneration("payments", 2)
	w.until("all events are on the bus", func() bool { return w.pending() == 0 })
	w.checkKeys(map[string]int{"payments": 2})
}

// An HSM that goes away in the middle of rotations, and comes back.
func TestHSMUnplugged(t *testing.T) {
	w := newWorld(t)
	direct := *w.token
	server := hsmtest.P11Kit(t, w.token)
	w.token = &server.Token
	w.configure("")
	toml, err := os.ReadFile(w.path("byokd.toml"))
	if err != nil {
		t.Fatal(err)
	}
	w.write("byokd.toml", string(toml)+fmt.Sprintf("[hsm.direct]\nmodule = %q\ntoken_label = %q\npin_file = \"hsm.pin\"\n", direct.Module, direct.Label))
	group := func(name, hsm string) {
		w.write("groups.d/"+name+".toml", fmt.Sprintf("hsm = %q\n[rotation]\n%s\n[aws]\nregion = %q\nalias = \"alias/%s\"\n", hsm, every, testRegion, name))
	}
	remote := []string{"a", "b", "c"}
	for _, name := range remote {
		group(name, "main")
	}
	group("near", "direct")
	w.start()
	for _, name := range append(remote, "near") {
		w.untilGeneration(name, 1)
	}

	// The cable is pulled while the second of three is between its key in the HSM
	// and the import.
	creates := w.requests("CreateKey")
	pulled := make(chan struct{})
	w.faults(func(r awssim.Request) *awssim.Fault {
		if r.Operation == "CreateKey" && w.requests("CreateKey") == creates+2 {
			server.Kill()
			close(pulled)
			w.faults(nil, nil)
		}
		return nil
	}, nil)
	w.rotate(remote...)
	<-pulled
	w.until("status tells", func() bool { return w.problem("c", "hsm-unavailable") != "" })
	if w.problem("near", "hsm-unavailable") != "" {
		t.Error("the other HSM's group is said to be without its HSM")
	}
	w.rotate("near")
	w.untilGeneration("near", 2)
	for _, name := range remote {
		for _, j := range w.openJobs(name) {
			t.Logf("%s: %s, attempt %d, waits for %q: %s", name, j.State, j.Attempt, j.WaitingFor, j.Error)
			if j.WaitingFor != "" {
				t.Errorf("the job of %s waits for a person: %s", name, j.WaitingFor)
			}
		}
	}

	begun := time.Now()
	server.Start()
	generations := map[string]int{"near": 2}
	for _, name := range remote {
		w.untilGeneration(name, 2)
		generations[name] = 2
	}
	t.Logf("byokd went on %s after the HSM was back", time.Since(begun).Round(100*time.Millisecond))
	w.until("status has nothing to tell", func() bool { return w.problem("c", "hsm-unavailable") == "" })
	w.token = &direct // to count its objects
	w.until("all events are on the bus", func() bool { return w.pending() == 0 })
	w.checkKeys(generations)
	w.checkEvents(true)
}

// The Region is changed while the group's first rotation runs and has not taken a
// generation yet: the key is made in the new Region, and there only.
func TestRegionChangedUnderTheFirstRotation(t *testing.T) {
	const other = "eu-west-1"
	w := newWorld(t)
	w.start()
	reached, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	w.faults(func(r awssim.Request) *awssim.Fault {
		if r.Operation == "DescribeKey" && slices.ContainsFunc(w.openJobs("payments"), func(j control.JobSummary) bool { return j.State == control.JobRunning }) {
			once.Do(func() { close(reached); <-release })
		}
		return nil
	}, nil)
	w.group("payments", every, "")
	<-reached
	w.write("groups.d/payments.toml", fmt.Sprintf("[rotation]\n%s\n[aws]\nregion = %q\nalias = \"alias/payments\"\n", every, other))
	w.until("the change is seen", func() bool { return w.log.contains("definition has changed") })
	close(release)
	w.untilGeneration("payments", 1)
	if n := len(w.keys()); n != 0 {
		t.Errorf("there are %d KMS keys in the old Region", n)
	}
	if keys := w.sim.Keys(testAccount, other); len(keys) != 1 || w.sim.Alias(testAccount, other, "alias/payments") != keys[0].ID {
		t.Errorf("KMS keys in the new Region: %+v", keys)
	}
	w.until("all is well", func() bool { return w.status("payments").State == control.GroupOK })
	if jobs := w.jobs("payments"); len(jobs) != 1 {
		t.Errorf("jobs %+v", jobs)
	}
	w.halt()
	if objects := w.objects(); !maps.Equal(objects, map[string]int{"payments": 1}) {
		t.Errorf("HSM objects %v", objects)
	}
}
