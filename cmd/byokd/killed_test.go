package main_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"byokd/cloud/awssim"
)

// An outcome is what must be there in the end, whenever byokd was killed on the
// way: one KMS key and one HSM object for each generation, the alias on the
// newest, and each fact told under one event ID.
type outcome struct {
	generations int
	alias       string         // "": the group's own
	inPlace     bool           // one KMS key has the material of all generations
	states      map[int]string // of KMS keys by generation; those not named are Enabled
	events      map[string]int // by detail type, without doubles
	check       func(m *machine, key func(generation int) awssim.Key)
}

const (
	moved        = "KMS Alias Moved"
	synchronized = "KMS Key Synchronized"
	deleted      = "KMS Key Material Deleted"
	disabled     = "KMS Key Disabled"
	rotated      = "KMS Key Material Rotated"
)

// A killing is something that byokd does while it is killed. A new one is an
// entry in the list.
type killing struct {
	name string
	made func(m *machine)   // the group, before byokd starts for the first time
	past []func(m *machine) // what byokd has been asked for and has done before
	ask  func(m *machine)   // what it finds to do when it starts
	want outcome
}

// group is the name of the group in all of them.
const group = "payments"

func define(rotation, alias, more string) func(m *machine) {
	return func(m *machine) { m.define(group, rotation, alias, more) }
}

func request(kind, body string) func(m *machine) {
	return func(m *machine) { m.write("run/requests/"+kind+"."+group, body) }
}

var (
	quarterly = define(`every = "90d"`, "alias/"+group, "")
	expiring  = define("every = \"90d\"\nkeep_valid_for = \"365d\"", "alias/"+group, "")
	rotate    = request("rotate", "")
)

var killings = []killing{
	{name: "first rotation", ask: quarterly,
		want: outcome{generations: 1, events: map[string]int{moved: 1}}},
	{name: "rotation", made: quarterly, ask: rotate,
		want: outcome{generations: 2, events: map[string]int{moved: 2}}},
	{name: "rotation, expiring", made: expiring, ask: rotate,
		want: outcome{generations: 2, events: map[string]int{moved: 2}, check: expires(1, 2)}},
	{name: "rotation and retirement",
		made: define("every = \"90d\"\ndisable_previous = true\ndisable_previous_after = \"0s\"", "alias/"+group, ""), ask: rotate,
		want: outcome{generations: 2, states: map[int]string{1: "Disabled"}, events: map[string]int{moved: 2, disabled: 1}}},
	{name: "rotation in place", made: define("every = \"90d\"\nmode = \"in-place\"", "alias/"+group, ""), ask: rotate,
		want: outcome{generations: 2, inPlace: true, events: map[string]int{moved: 1, rotated: 1}}},
	{name: "synchronization, automatic", made: expiring, past: []func(*machine){rotate},
		ask: define("every = \"90d\"\nkeep_valid_for = \"200d\"", "alias/"+group, "description = \"cards\"\ntags = {team = \"cards\"}"),
		want: outcome{generations: 2, events: map[string]int{moved: 2, synchronized: 2}, check: func(m *machine, key func(int) awssim.Key) {
			if k := key(2); k.Description != "cards" || k.Tags["team"] != "cards" {
				m.t.Errorf("KMS key %s has description %q, tags %v", k.ID, k.Description, k.Tags)
			}
			expires(1, 2)(m, key)
		}}},
	{name: "synchronization, alias renamed", made: quarterly, ask: define(`every = "90d"`, "alias/cards", ""),
		want: outcome{generations: 1, alias: "alias/cards", events: map[string]int{moved: 2, synchronized: 1}}},
	{name: "synchronization, asked", made: expiring, ask: request("sync", ""),
		want: outcome{generations: 1, events: map[string]int{moved: 1, synchronized: 1}, check: expires(1)}},
	{name: "material deleted", made: quarterly, past: []func(*machine){rotate}, ask: request("sync", "generation = 1\ndelete_material = true\n"),
		want: outcome{generations: 2, states: map[int]string{1: "PendingImport"}, events: map[string]int{moved: 2, deleted: 1, synchronized: 1}}},
	{name: "material imported again", made: quarterly,
		past: []func(*machine){rotate, request("sync", "generation = 1\ndelete_material = true\n")}, ask: request("sync", "generation = 1\n"),
		want: outcome{generations: 2, events: map[string]int{moved: 2, deleted: 1, synchronized: 2}}},
}

// expires checks that the material of generations expires.
func expires(generations ...int) func(m *machine, key func(int) awssim.Key) {
	return func(m *machine, key func(int) awssim.Key) {
		for _, n := range generations {
			if k := key(n); len(k.Materials) != 1 || k.Materials[0].ValidTo.IsZero() {
				m.t.Errorf("generation %d: materials %+v", n, k.Materials)
			}
		}
	}
}

// TestKilled has byokd killed by SIGKILL while it does each of the killings:
// before each of its requests reaches AWS, before each answer reaches byokd, and
// before and after each record of its journal. It then goes on without, and what
// is there in the end is checked. BYOKD_CRASH=all does all of it, hundreds of
// cases; else it is a sample, drawn anew each time.
func TestKilled(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("BYOKD_CRASH_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("BYOKD_CRASH_SEED=%s is no number", s)
		}
		seed = n
	}
	all := os.Getenv("BYOKD_CRASH") == "all"
	chance := rand.New(rand.NewPCG(seed, 0))
	var kills, missed atomic.Int64
	possible := 0
	t.Cleanup(func() {
		t.Logf("byokd was killed %d times in %d kinds of work, and went on each time; %d kills are possible, %d came too late (BYOKD_CRASH_SEED=%d)",
			kills.Load(), len(killings), possible, missed.Load(), seed)
	})
	t.Run("at", func(t *testing.T) {
		for _, k := range killings {
			before, requests, records := k.prepare(t)
			if t.Failed() {
				return
			}
			possible += 2 * (requests + records)
			for _, at := range []struct {
				what  string
				count int
			}{{"request", requests}, {"record", records}} {
				for _, when := range []string{"before", "after"} {
					sample := make([]int, at.count)
					for i := range sample {
						sample[i] = i + 1
					}
					if !all {
						chance.Shuffle(len(sample), func(i, j int) { sample[i], sample[j] = sample[j], sample[i] })
						sample = sample[:min(2, len(sample))]
					}
					for _, n := range sample {
						t.Run(fmt.Sprintf("%s/%s %s %d", k.name, when, at.what, n), func(t *testing.T) {
							t.Parallel()
							if k.killed(t, before, at.what, when, n) {
								kills.Add(1)
								return
							}
							missed.Add(1)
							if n < at.count*3/4 {
								t.Errorf("byokd was done before %s %d of %d: it was not killed", at.what, n, at.count)
							}
						})
					}
				}
			}
		}
	})
}

// A proxy stands between byokd and AWS. It kills byokd before the n-th request
// reaches AWS, or before the answer to it reaches byokd.
type proxy struct {
	aws http.Handler

	mu    sync.Mutex
	count int
	n     int // 0: none
	after bool
	kill  func()
}

// strike has the proxy kill at the n-th request, before or after its effect.
func (p *proxy) strike(n int, after bool, kill func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n, p.after, p.kill = n, after, kill
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.count++
	strikes, after, kill := p.count == p.n, p.after, p.kill
	p.mu.Unlock()
	if !strikes {
		p.aws.ServeHTTP(w, r)
		return
	}
	if after {
		p.aws.ServeHTTP(httptest.NewRecorder(), r)
	}
	kill()
	panic(http.ErrAbortHandler)
}

// prepare does what comes before, then plays what is asked for once without a
// kill, and returns the machine as it was before that, with the numbers of
// requests and records that were made.
func (k killing) prepare(t *testing.T) (before *machine, requests, records int) {
	dir := shortDir(t)
	t.Run(k.name+"/unharmed", func(t *testing.T) {
		m := &machine{t: t, dir: dir}
		before = m
		m.token = m.newToken()
		m.connect(m.prepare)
		if k.made != nil {
			k.made(m)
			m.start()
			m.until("the first generation", func() bool { return m.active(group) == 1 && m.idle() })
			for i, past := range k.past {
				done := m.told()
				past(m)
				m.until(fmt.Sprintf("what was asked for %d. is done", i+1), func() bool { return m.told() > done && m.idle() })
			}
			m.stop(syscall.SIGTERM)
		}
		m = k.copy(t, before)
		k.ask(m)
		m.start("BYOKD_FAULT=count:" + m.path("records"))
		k.want.reached(m, group)
		requests = m.proxy.count
		content, err := os.ReadFile(m.path("records"))
		if err == nil {
			records, err = strconv.Atoi(string(content))
		}
		if err != nil || requests < 5 || records < 5 {
			t.Fatalf("there are %d requests and %d records only: %v", requests, records, err)
		}
	})
	return before, requests, records
}

// connect gives the machine an AWS that keeps its state in a file, behind a
// proxy, and configures byokd for it.
func (m *machine) connect(configure func()) {
	m.t.Helper()
	sim, err := awssim.Open(awssim.Options{Pairs: pairs()}, m.path("aws.json"))
	if err != nil {
		m.t.Fatal(err)
	}
	m.sim, m.proxy = sim, &proxy{aws: sim}
	server := httptest.NewServer(m.proxy)
	m.t.Cleanup(server.Close)
	m.url = server.URL
	configure()
}

// copy makes a machine that is as another was.
func (k killing) copy(t *testing.T, before *machine) *machine {
	t.Helper()
	dir := shortDir(t)
	if err := os.CopyFS(dir, os.DirFS(before.dir)); err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, dir: dir}
	token := *before.token
	token.Conf = m.path("token/softhsm2.conf")
	token.Env = []string{"SOFTHSM2_CONF=" + token.Conf}
	m.token = &token
	content, err := os.ReadFile(before.token.Conf)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(token.Conf, bytes.ReplaceAll(content, []byte(before.dir), []byte(dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	m.connect(m.configure)
	return m
}

// shortDir is a temporary directory whose name leaves room for that of a socket.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "killed")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// killed has byokd die on the way, goes on, and checks the outcome. It reports
// whether byokd was killed at all.
func (k killing) killed(t *testing.T, before *machine, what, when string, n int) (died bool) {
	m := k.copy(t, before)
	k.ask(m)
	var env []string
	started := make(chan struct{})
	var struck atomic.Bool // it is killed from then on, be it done meanwhile
	if what == "record" {
		env = []string{fmt.Sprintf("BYOKD_FAULT=kill:%s:%d", when, n)}
	} else {
		m.proxy.strike(n, when == "after", func() {
			struck.Store(true)
			<-started
			// SoftHSM writes to its token at each login, and a process that is killed in
			// that moment leaves it unreadable.
			m.until("byokd has logged in", func() bool { return strings.Contains(m.log.String(), "hsm wraps") })
			m.cmd.Process.Kill()
		})
	}
	m.start(env...)
	close(started)
	m.until("byokd dies or is done", func() bool {
		select {
		case <-m.died:
			m.died, died = nil, true
			return true
		default:
			return !struck.Load() && k.want.is(m, group)
		}
	})
	if died {
		m.start()
	}
	k.want.reached(m, group)
	return died
}

// is reports whether all that must come about has come about.
func (o outcome) is(m *machine, group string) bool {
	return m.active(group) == o.generations && maps.Equal(m.events(), o.events) && m.idle()
}

// reached waits for the outcome, stops byokd, and checks the rest of it.
func (o outcome) reached(m *machine, group string) {
	t := m.t
	t.Helper()
	m.until(fmt.Sprintf("%d generations and the events %v", o.generations, o.events), func() bool {
		for detailType, n := range m.events() {
			if n > o.events[detailType] {
				t.Fatalf("there are %d different events %s, want %d", n, detailType, o.events[detailType])
			}
		}
		return o.is(m, group)
	})
	m.stop(syscall.SIGTERM)
	newest, materials := o.generations, 1
	if o.inPlace {
		newest, materials = 1, o.generations
	}
	keys := make(map[int]awssim.Key)
	for _, k := range m.sim.Keys(account, region) {
		n, err := strconv.Atoi(k.Tags["byokd:generation"])
		if other, there := keys[n]; err != nil || there || n > newest {
			t.Errorf("KMS key %s has tags %v; there is %s", k.ID, k.Tags, other.ID)
		}
		keys[n] = k
		want := "Enabled"
		if state := o.states[n]; state != "" {
			want = state
		}
		if k.State != want || len(k.Materials) != materials {
			t.Errorf("generation %d: KMS key %s is %s, want %s, with materials %+v", n, k.ID, k.State, want, k.Materials)
		}
	}
	if len(keys) != newest {
		t.Errorf("there are %d KMS keys, want %d", len(keys), newest)
	}
	alias := o.alias
	if alias == "" {
		alias = "alias/" + group
	}
	if at := m.sim.Alias(account, region, alias); at != keys[newest].ID {
		t.Errorf("%s points at %s, not at that of generation %d, %s", alias, at, newest, keys[newest].ID)
	}
	if objects := m.objects(); objects != o.generations {
		t.Errorf("there are %d objects on the token, want %d", objects, o.generations)
	}
	if o.check != nil {
		o.check(m, func(n int) awssim.Key { return keys[n] })
	}
}

// events counts the events on the bus by detail type. Consumers may get one
// twice, but then it is the same event; none of a group is missing.
func (m *machine) events() map[string]int {
	m.t.Helper()
	types := make(map[string]int)
	known := make(map[string]float64) // sequence by event ID
	for _, e := range m.sim.Events() {
		var detail struct {
			EventID  string  `json:"event_id"`
			Sequence float64 `json:"sequence"`
		}
		if e.Envelope.Source != "byokd" {
			continue
		}
		if err := json.Unmarshal(e.Envelope.Detail, &detail); err != nil {
			m.t.Fatal(err)
		}
		if sequence, there := known[detail.EventID]; there {
			if sequence != detail.Sequence {
				m.t.Errorf("event %s is number %v and %v", detail.EventID, sequence, detail.Sequence)
			}
			continue
		}
		known[detail.EventID] = detail.Sequence
		types[e.Envelope.DetailType]++
	}
	for i, sequence := range slices.Sorted(maps.Values(known)) {
		if sequence != float64(i+1) {
			m.t.Errorf("event %d has sequence %v: %v", i+1, sequence, known)
		}
	}
	return types
}

// told is how many events there are on the bus.
func (m *machine) told() (n int) {
	for _, count := range m.events() {
		n += count
	}
	return n
}

// objects counts the objects on the token, each of which SoftHSM keeps in a file.
func (m *machine) objects() int {
	m.t.Helper()
	files, err := filepath.Glob(m.path("token/tokens/*/*.object"))
	if err != nil || len(files) == 0 {
		m.t.Fatalf("the token's files: %v, %v", files, err)
	}
	return len(files) - 1 // but for token.object
}
