package daemon_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"byokd/cloud/awssim"
	"byokd/daemon/control"
	"byokd/daemon/lifecycle"
	"byokd/hsm"
	"byokd/hsm/hsmtest"
	"byokd/schedule"
)

// A soakGroup is a group with the ways in which its definition changes.
type soakGroup struct {
	name     string
	rotation string
	every    time.Duration     // with jitter; 0: by the calendar, or never
	calendar schedule.Schedule // nil: not by the calendar
	since    time.Time
	version  int // of its definition
	disables bool
}

// A soak is years of a byokd's life under a clock that is moved by hand, with
// faults at AWS, restarts, reloads and people in between.
type soak struct {
	*world
	rand   *rand.Rand
	now    time.Time
	groups []*soakGroup

	mu     sync.Mutex // for what the hooks use, with a source of chance of their own
	chance *rand.Rand
	armed  bool
	denied string // an operation that is denied for now
	away   bool   // the HSM
	tally  map[string]int

	disk bool // the database has a file system of its own, which can be filled
}

func (s *soak) count(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tally[what]++
}

// before and after decide what goes wrong with a request.
func (s *soak) beforeRequest(r awssim.Request) *awssim.Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.armed {
		return nil
	}
	fault := func(kind string, f awssim.Fault) *awssim.Fault {
		s.tally["fault before the effect: "+kind]++
		return &f
	}
	if r.Operation == s.denied {
		return fault("denied for a while", awssim.Fault{Code: "AccessDeniedException", Message: "not for now"})
	}
	switch s.chance.IntN(300) {
	case 0:
		return fault("connection lost", awssim.Fault{Drop: true})
	case 1:
		return fault("503", awssim.Fault{Code: "ServiceUnavailable", Status: 503})
	case 2:
		return fault("500", awssim.Fault{Code: "KMSInternalException", Status: 500})
	case 3:
		return fault("throttled", awssim.Fault{Code: "ThrottlingException", Status: 400})
	case 4:
		return fault("slow", awssim.Fault{Delay: time.Duration(s.chance.IntN(200)) * time.Millisecond})
	}
	return nil
}

func (s *soak) afterRequest(r awssim.Request) *awssim.Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.armed {
		return nil
	}
	fault := func(kind string, f awssim.Fault) *awssim.Fault {
		s.tally["fault after the effect: "+kind]++
		return &f
	}
	n := 300
	if strings.HasPrefix(r.Operation, "Create") || r.Operation == "UpdateAlias" || r.Operation == "ImportKeyMaterial" || r.Operation == "PutEvents" {
		n = 60 // where a lost answer matters
	}
	switch s.chance.IntN(n) {
	case 0:
		return fault("answer lost", awssim.Fault{Drop: true})
	case 1:
		return fault("500", awssim.Fault{Code: "InternalFailure", Status: 500})
	case 2:
		return fault("slow answer", awssim.Fault{Delay: time.Duration(s.chance.IntN(200)) * time.Millisecond})
	}
	return nil
}

// hsmCall decides what goes wrong with a call into the HSM. Logins do not fail: two
// without a result in a row wait for a person.
func (s *soak) hsmCall(op string, _ int) (apply bool, code uint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	const ok = pkcs11.CKR_OK
	switch {
	case !s.armed, op == "C_Login", op == "C_Logout", op == "C_Finalize", op == "C_CloseSession":
		return true, ok
	case s.away:
		s.tally["HSM call while it is away"]++
		return false, pkcs11.CKR_DEVICE_REMOVED
	}
	faults := []uint{pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_GENERAL_ERROR}
	n := 400
	switch op {
	case "C_Initialize", "C_GetInfo", "C_GetSlotList", "C_GetTokenInfo", "C_OpenSession":
		faults = faults[2:]
	case "C_GenerateKey":
		faults, n = append(faults, pkcs11.CKR_DEVICE_MEMORY, pkcs11.CKR_USER_NOT_LOGGED_IN), 20
	case "C_WrapKey", "C_DestroyObject":
		faults, n = append(faults, pkcs11.CKR_USER_NOT_LOGGED_IN), 50
	}
	if s.chance.IntN(n) != 0 {
		return true, ok
	}
	code = faults[s.chance.IntN(len(faults))]
	if apply = op == "C_GenerateKey" && code != pkcs11.CKR_DEVICE_MEMORY && s.chance.IntN(2) == 0; apply {
		s.tally["HSM fault: C_GenerateKey done, and "+pkcs11.Error(code).Error()]++
	} else {
		s.tally["HSM fault: "+pkcs11.Error(code).Error()]++
	}
	return apply, code
}

func (s *soak) arm(on bool, denied string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.armed, s.denied, s.away = on, denied, false
}

// unplug takes the HSM away until arm is called.
func (s *soak) unplug() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = true
	s.tally["times that the HSM was away"]++
}

// fillDisk has the database's disk full for some hours in which work comes.
func (s *soak) fillDisk(g *soakGroup) {
	s.t.Helper()
	s.count("times that the disk was full")
	s.fill()
	s.client.Rotate(s.t.Context(), []string{g.name}, false) // which may be refused
	for range 1 + s.rand.IntN(30) {
		s.forward(time.Hour)
		s.rests()
	}
	s.empty()
	s.until("the database is written again", func() bool { return s.problem(g.name, "database") == "" })
}

// define writes a group's file.
func (s *soak) define(g *soakGroup) {
	s.group(g.name, g.rotation, fmt.Sprintf("description = \"version %d\"\n[aws.tags]\nversion = \"%d\"", g.version, g.version))
}

// forward moves byokd's clock and AWS's.
func (s *soak) forward(d time.Duration) {
	s.sim.Advance(d)
	s.now = s.now.Add(d)
	s.at(s.now)
}

// waits are the open jobs that time alone does not explain: retirements that
// are not due yet wait in their own right.
func (s *soak) waits() (jobs []control.JobSummary) {
	all, err := s.client.Jobs(s.t.Context(), control.JobFilter{Limit: 60})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, j := range all {
		if !j.Final() && (j.Kind != string(lifecycle.Retire) || j.State != control.JobAvailable) {
			jobs = append(jobs, j)
		}
	}
	return jobs
}

// rests waits until byokd has nothing to do at this time of the clock, and
// reports whether nothing is open then. What does not come to an end within a
// moment is taken for waiting.
func (s *soak) rests() bool {
	for range 100 {
		jobs := s.waits()
		busy := slices.ContainsFunc(jobs, func(j control.JobSummary) bool { return !j.NextAttempt.After(s.now) })
		switch {
		case len(jobs) == 0 && s.pending() == 0:
			return true
		case len(jobs) > 0 && !busy:
			return false
		}
		time.Sleep(3 * time.Millisecond)
	}
	return false
}

// settle lets time pass by the hour, and what is denied be allowed after some
// hours, until nothing is open and nothing is due.
func (s *soak) settle() {
	s.t.Helper()
	begun, since := time.Now(), s.now
	reasons := make(map[string]int) // why it did not rest, and in how many of the hours
	for hours := 0; ; hours++ {
		rests, due := s.rests(), s.due()
		if rests && due == "" {
			return
		}
		if _, ok := reasons[due]; ok || len(reasons) < 6 {
			reasons[due]++
		}
		if hours == 8 {
			s.arm(true, "")
		}
		if time.Since(begun) > 90*time.Second {
			s.t.Fatalf("%s: this does not come to rest since %s: %+v; %d events wait; %s\nin %d of the hours the jobs did not rest and nothing was due; in the others: %v",
				s.now, since, s.waits(), s.pending(), due, reasons[""], reasons)
		}
		s.forward(time.Hour)
	}
}

// retires lets time pass by the hour until no retirement is planned or under way.
func (s *soak) retires() {
	s.t.Helper()
	for range 60 * 24 {
		s.rests() // else the hours would pass faster than byokd can follow
		if !slices.ContainsFunc(s.groups, func(g *soakGroup) bool {
			return slices.ContainsFunc(s.openJobs(g.name), func(j control.JobSummary) bool { return j.Kind == string(lifecycle.Retire) })
		}) {
			return
		}
		s.forward(time.Hour)
	}
	s.t.Fatalf("%s: retirements are not done in 60 days", s.now)
}

// due names a rotation that should have been made by now; "": there is none.
func (s *soak) due() string {
	all, err := s.client.Status(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	for _, st := range all {
		i := slices.IndexFunc(s.groups, func(g *soakGroup) bool { return g.name == st.Group })
		if i < 0 {
			return "group " + st.Group + " is not one of ours"
		}
		g := s.groups[i]
		last := st.LastRotation.Time
		switch {
		case g.every > 0 && s.now.Sub(last) > g.every:
			return fmt.Sprintf("%s: last rotation at %s", g.name, last)
		case g.calendar != nil:
			for tick := g.calendar.Next(cmp.Or(last, g.since)); !tick.IsZero(); {
				if !tick.After(s.now) && tick.After(g.since) {
					return fmt.Sprintf("%s: tick at %s, last rotation at %s", g.name, tick, last)
				}
				break
			}
		}
		for _, p := range st.Problems {
			if p.Code != "events" && !strings.HasPrefix(p.Code, "retrying") && !strings.HasPrefix(p.Code, "waiting-") {
				return fmt.Sprintf("%s: problem %s: %s", g.name, p.Code, p.Message)
			}
		}
	}
	return ""
}

// act does something that happens in the life of a byokd.
func (s *soak) act() {
	g := s.groups[s.rand.IntN(len(s.groups))]
	switch s.rand.IntN(14) {
	case 12:
		s.unplug()
	case 13:
		// Seldom: byokd looks for room again up to half a minute of real time later.
		if s.disk && s.rand.IntN(4) == 0 {
			s.fillDisk(g)
		}
	case 0, 1:
		s.count("restarts")
		s.restart()
	case 2:
		s.count("SIGHUPs")
		select {
		case s.reload <- struct{}{}:
		default:
		}
	case 3, 4:
		s.count("changed definitions")
		g.version++
		s.define(g)
		if s.rand.IntN(2) == 0 {
			s.count("SIGHUPs")
			select {
			case s.reload <- struct{}{}:
			default:
			}
		}
	case 5, 6:
		s.count("rotations asked for")
		s.rotate(g.name)
	case 7:
		s.count("request files")
		s.write("run/requests/rotate."+g.name, "")
	case 8:
		s.count("synchronizations asked for")
		if _, err := s.client.Sync(s.t.Context(), control.SyncRequest{Group: g.name, ImportMaterial: s.rand.IntN(2) == 0, UpdatePolicy: true}); err != nil {
			s.t.Fatal(err)
		}
	case 9:
		operations := []string{"CreateKey", "ImportKeyMaterial", "UpdateAlias", "Encrypt", "DescribeKey", "PutEvents", "GetParametersForImport", "TagResource"}
		s.arm(true, operations[s.rand.IntN(len(operations))])
	}
}

// setting reads a number of the environment.
func setting(t *testing.T, name string, fallback float64) float64 {
	v := os.Getenv(name)
	if v == "" {
		return fallback
	}
	n, err := strconv.ParseFloat(v, 64)
	if err != nil {
		t.Fatalf("%s=%s is no number", name, v)
	}
	return n
}

// TestSoak runs until $BYOKD_SOAK_YEARS have been simulated or
// $BYOKD_SOAK_MINUTES of real time are over, whichever comes first; without
// either it is a sample. $BYOKD_SOAK_SEED repeats the choices of a run, though
// not what the scheduler makes of them.
func TestSoak(t *testing.T) {
	seed := uint64(setting(t, "BYOKD_SOAK_SEED", float64(rand.Uint32())))
	years := setting(t, "BYOKD_SOAK_YEARS", 0)
	minutes := setting(t, "BYOKD_SOAK_MINUTES", 0)
	switch {
	case minutes == 0 && years == 0:
		minutes = 0.2
	case minutes == 0:
		minutes = 60
	}
	if years == 0 {
		years = 1e6
	}
	t.Logf("BYOKD_SOAK_SEED=%d", seed)

	w := newWorld(t)
	s := &soak{world: w, rand: rand.New(rand.NewPCG(seed, 1)), chance: rand.New(rand.NewPCG(seed, 2)), tally: make(map[string]int),
		now: time.Now().UTC().Truncate(time.Hour)}
	// An AWS that does not look at signatures, since its clock moves too.
	w.aws.Close()
	w.sim = awssim.New(awssim.Options{Pairs: pairs(), Before: s.beforeRequest, After: s.afterRequest})
	w.aws = httptest.NewServer(w.sim)
	t.Cleanup(w.aws.Close)
	w.configure("")
	faults := hsmtest.NewFaults()
	faults.Set(s.hsmCall)
	w.hsm = []hsm.Option{hsm.WithLibrary(faults.Wrap), hsm.WithReinitEvery(20 * time.Millisecond)}
	if s.disk = os.Geteuid() == 0; s.disk {
		w.mountState(64 << 20)
	} else {
		t.Log("the disk with the database does not get full here: that needs root")
	}
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	calendar := func(cron string, l *time.Location) schedule.Schedule {
		c, err := schedule.Parse(cron, l)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	const day = 24 * time.Hour
	s.groups = []*soakGroup{
		{name: "asked", rotation: "enabled = false"},
		{name: "fortnight", rotation: "every = \"14d\"\ndisable_previous = true\ndisable_previous_after = \"3d\"", every: 14 * day, disables: true},
		{name: "monthly", rotation: `schedule = "0 3 1 * *"`, calendar: calendar("0 3 1 * *", time.UTC)},
		{name: "mondays", rotation: "schedule = \"30 2 * * 1\"\ntimezone = \"Europe/Berlin\"", calendar: calendar("30 2 * * 1", berlin)},
		{name: "quarter", rotation: "every = \"90d\"\njitter = \"5d\"", every: 95 * day},
		{name: "thirty", rotation: `every = "30d"`, every: 30 * day},
	}
	s.at(s.now)
	for _, g := range s.groups {
		g.since = s.now
		s.define(g)
	}
	s.start()
	for _, g := range s.groups {
		s.untilGeneration(g.name, 1)
	}
	first, begun := s.now, time.Now()
	s.arm(true, "")
	steps := 0
	for time.Since(begun).Minutes() < minutes && s.now.Sub(first).Hours() < years*365.25*24 {
		steps++
		s.forward(time.Duration(1+s.rand.IntN(20*24)) * time.Hour)
		for range s.rand.IntN(3) {
			s.act()
		}
		if s.rand.IntN(3) > 0 {
			s.settle()
		}
		w.log.shorten(4 << 20)
		if t.Failed() {
			return
		}
	}

	// All is well at AWS again: everything comes to rest.
	s.arm(false, "")
	s.restart()
	s.forward(7 * time.Hour) // what waits for a person is tried again every 6 h
	s.settle()
	s.forward(5 * day) // retirements
	s.retires()
	s.settle()
	s.invariants()

	s.tally["steps of the clock"] = steps
	s.tally["requests that AWS has seen"] = len(w.sim.Requests())
	t.Logf("%.1f years in %s, with seed %d:\n%s", s.now.Sub(first).Hours()/24/365.25, time.Since(begun).Round(time.Second), seed, s.table())
}

func (s *soak) table() string {
	var b strings.Builder
	for _, what := range slices.Sorted(maps.Keys(s.tally)) {
		fmt.Fprintf(&b, "%8d  %s\n", s.tally[what], what)
	}
	return b.String()
}

// invariants checks what must hold of a byokd at rest, and stops it.
func (s *soak) invariants() {
	t := s.t
	owned := make(map[string]string) // KMS keys by ID
	ids := make(map[string]bool)     // hex CKA_IDs of generations that are not destroyed
	objects := make(map[string]int)
	for _, g := range s.groups {
		keys, err := s.client.Keys(t.Context(), g.name)
		if err != nil {
			t.Fatal(err)
		}
		active := 0
		for i, k := range keys {
			if k.KeyID != "" {
				if other := owned[string(k.KeyID)]; other != "" {
					t.Errorf("KMS key %s is generation %d of %s and %s", k.KeyID, k.Generation, g.name, other)
				}
				owned[string(k.KeyID)] = fmt.Sprintf("generation %d of %s", k.Generation, g.name)
			}
			if k.State == "destroyed" {
				s.count("generations given up")
				continue
			}
			if ids[string(k.HSMID)] {
				t.Errorf("two generations have HSM ID %s", k.HSMID)
			}
			ids[string(k.HSMID)] = true
			objects[g.name]++
			s.count("generations")
			kms, ok := s.sim.Key(testAccount, testRegion, string(k.KeyID))
			switch {
			case !ok:
				t.Errorf("generation %d of %s has KMS key %q, which does not exist", k.Generation, g.name, k.KeyID)
			case k.State == "active" && (i != len(keys)-1 || kms.State != "Enabled" || s.alias(g.name) != string(k.KeyID)):
				t.Errorf("%s: generation %d of %d is active, its KMS key %s is %s, the alias is on %s", g.name, i+1, len(keys), k.KeyID, kms.State, s.alias(g.name))
			case kms.Tags["byokd:hsm-id"] != string(k.HSMID) || kms.Tags["byokd:group"] != g.name || kms.Tags["byokd:generation"] != fmt.Sprint(k.Generation):
				t.Errorf("generation %d of %s: KMS key %s has tags %v", k.Generation, g.name, k.KeyID, kms.Tags)
			case len(kms.Materials) != 1:
				t.Errorf("generation %d of %s: KMS key %s has %d materials", k.Generation, g.name, k.KeyID, len(kms.Materials))
			case g.disables && i < len(keys)-2 && kms.State != "Disabled": // the last but one may be of an hour ago
				t.Errorf("generation %d of %s: KMS key %s is %s", k.Generation, g.name, k.KeyID, kms.State)
			case k.State == "active" && (kms.Description != fmt.Sprintf("version %d", g.version) || kms.Tags["version"] != fmt.Sprint(g.version)):
				t.Errorf("%s is at version %d; its KMS key has description %q, tags %v", g.name, g.version, kms.Description, kms.Tags)
			}
			if k.State == "active" {
				active++
			}
		}
		if active != 1 {
			t.Errorf("group %s has %d active generations: %+v", g.name, active, keys)
		}
	}
	for _, k := range s.keys() {
		switch {
		case owned[k.ID] != "":
		case k.State != "PendingDeletion":
			t.Errorf("KMS key %s is nobody's: %s, tags %v", k.ID, k.State, k.Tags)
		}
	}
	for _, j := range s.waits() {
		t.Errorf("open: %+v", j)
	}
	total, doubles := s.checkEvents(false)
	s.tally["events"], s.tally["events that came twice"] = total, doubles
	rotations := make(map[string]string)
	for _, e := range s.sim.Events() {
		var detail struct{ Group, Alias, NewKeyID, EventID string }
		if err := json.Unmarshal(e.Envelope.Detail, &struct {
			Group    *string `json:"group"`
			NewKeyID *string `json:"new_key_id"`
			EventID  *string `json:"event_id"`
		}{&detail.Group, &detail.NewKeyID, &detail.EventID}); err != nil {
			t.Fatal(err)
		}
		if e.Envelope.DetailType != "KMS Alias Moved" {
			continue
		}
		if before, ok := rotations[detail.NewKeyID]; ok && before != detail.EventID {
			t.Errorf("the move to KMS key %s is event %s and event %s", detail.NewKeyID, before, detail.EventID)
		}
		rotations[detail.NewKeyID] = detail.EventID
	}
	s.tally["rotations"] = len(rotations)
	s.tally["KMS keys of lost answers, scheduled for deletion"] = s.requests("ScheduleKeyDeletion")
	n := 0
	for _, count := range objects {
		n += count
	}
	if len(rotations) != n {
		t.Errorf("%d events tell of moved aliases, and there are %d generations", len(rotations), n)
	}
	told := 0 // events of finished jobs go with them, their number stays
	for _, g := range s.memory().Groups {
		told += int(g.Sequence)
	}
	if total != told {
		t.Errorf("the bus has had %d events, and the database has counted %d", total, told)
	}
	if err := s.halt(); err != nil {
		t.Errorf("byokd ended with %v", err)
	}
	if found := s.objects(); !maps.Equal(found, objects) {
		t.Errorf("HSM objects %v, want %v", found, objects)
	}
}

// shorten keeps a log that grows for long from taking all memory.
func (b *syncBuffer) shorten(size int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := b.b.Len(); n > 2*size {
		b.b.Next(n - size)
	}
}
