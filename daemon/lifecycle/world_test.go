package lifecycle_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"byokd/daemon/lifecycle"
)

// tb is what both testing.T and rapid.T can do.
type tb interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// A world is everything that an Engine acts upon: a token, a KMS account and a
// journal, under one clock that nobody but the tests moves.
type world struct {
	t       tb
	now     time.Time
	skew    time.Duration // AWS's clock minus this machine's
	hsm     *fakeHSM
	kms     *fakeKMS
	journal *fakeJournal
	engine  *lifecycle.Engine

	// hook is asked at each call, by its name and its number since calls was
	// emptied: whether the call takes effect, and with which error it returns.
	// errDeath is the death of the process, before or after the effect.
	hook  func(call string, n int) (apply bool, err error)
	calls []string

	cancel      context.CancelFunc // ends the attempt that is running
	lookAgain   bool               // reconcile after each death, as the daemon does
	lookOnly    bool               // nothing may be written: designated = false
	silent      bool               // [events] enabled = false
	maxAttempts int
}

// errDeath is what a hook returns to kill the process at a call.
var errDeath = errors.New("the process dies")

// death is what the process's death panics with.
type death struct{}

func newWorld(t tb) *world {
	w := &world{t: t, now: time.Date(2026, 3, 1, 3, 0, 0, 0, time.UTC), skew: 37 * time.Second, maxAttempts: 60}
	w.hsm = &fakeHSM{w: w, algorithm: "RSAES_OAEP_SHA_256"}
	w.kms = &fakeKMS{w: w, limit: lifecycle.MaxRotations, account: "111122223333", keys: make(map[string]*fakeKey), aliases: make(map[string]*fakeAlias), tokens: make(map[string]fakeToken), denied: make(map[string]bool)}
	w.journal = &fakeJournal{w: w, generations: make(map[string][]lifecycle.Generation), jobs: make(map[string]*jobRow), unique: make(map[string]string), sequence: make(map[string]int)}
	w.start()
	return w
}

// start makes the process's memory anew.
func (w *world) start() {
	w.engine = &lifecycle.Engine{
		Journal: w.journal,
		HSM:     func(string) (lifecycle.HSM, error) { return w.hsm, nil },
		KMS:     func(string, string) (lifecycle.KMS, error) { return w.kms, nil },
		Host:    "hsm1",
		Log:     slog.New(slog.DiscardHandler),
		Now:     func() time.Time { return w.now },
		Sleep: func(ctx context.Context, d time.Duration) error {
			w.advance(d)
			return ctx.Err()
		},
		Announce: func() bool { return !w.silent },
	}
}

func (w *world) advance(d time.Duration) { w.now = w.now.Add(d) }

// do is one call of the engine's to the outside. Errors of its own are classed
// by the fakes.
func (w *world) do(ctx context.Context, name string, writes bool, effect func() error) error {
	if err := ctx.Err(); err != nil {
		return &lifecycle.Fault{Class: lifecycle.Interrupted, Err: err}
	}
	w.calls = append(w.calls, name)
	if writes && w.lookOnly {
		w.t.Errorf("%s was called, and nothing may be written", name)
	}
	apply, injected := true, error(nil)
	if w.hook != nil {
		apply, injected = w.hook(name, len(w.calls))
	}
	var err error
	if apply {
		err = effect()
	}
	if errors.Is(injected, errDeath) {
		panic(death{})
	}
	if injected != nil {
		return injected
	}
	return err
}

// survive calls f and reports whether the process died in it.
func (w *world) survive(f func()) (died bool) {
	defer func() {
		if p := recover(); p != nil {
			if _, ok := p.(death); !ok {
				panic(p)
			}
			died = true
			w.journal.rescue()
			w.start()
		}
	}()
	f()
	return false
}

// attempt runs a job once.
func (w *world) attempt(id string) (err error, died bool) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	w.cancel = cancel
	died = w.survive(func() {
		job := w.journal.claim(id)
		err = w.engine.Run(ctx, &job)
	})
	return err, died
}

// drive attempts a job until it is completed or discarded, as a worker does, and
// returns the last error. A job that waits for a person is tried again every six
// hours, as often as patience says.
func (w *world) drive(id string, patience int) error {
	w.t.Helper()
	backoff := time.Second
	var trail []string
	for range w.maxAttempts {
		err, died := w.attempt(id)
		switch class := lifecycle.ClassOf(err); {
		case died:
			trail = append(trail, "died")
			if w.lookAgain {
				w.reconcileUntilDone(w.journal.jobs[id].def)
			}
			continue
		case err == nil:
			w.journal.finish(id, "completed")
			return nil
		case class == lifecycle.Interrupted:
			w.journal.park(id, "available")
		case class == lifecycle.Permanent:
			w.journal.finish(id, "discarded")
			return err
		case class == lifecycle.Operator:
			w.journal.park(id, "retryable")
			if lifecycle.WaitingFor(err) == "" {
				w.t.Errorf("operator error without what it waits for: %v", err)
			}
			if patience--; patience < 0 {
				return err
			}
			w.advance(6 * time.Hour)
		default:
			w.journal.park(id, "retryable")
			w.advance(backoff)
			backoff = min(2*backoff, time.Hour)
		}
		trail = append(trail, fmt.Sprint(err))
	}
	w.t.Fatalf("job %s does not end; its attempts: %q", id, trail)
	return nil
}

// drain runs every open job to its end, each at its time. It has the patience to
// wait until a key is out of use.
func (w *world) drain() {
	w.t.Helper()
	for {
		id := w.journal.nextDue()
		if id == "" {
			return
		}
		if due := w.journal.jobs[id].due; due.After(w.now) {
			w.now = due
		}
		if err := w.drive(id, 32); err != nil {
			w.t.Fatalf("%s: %v", w.journal.jobs[id].kind, err)
		}
	}
}

// rotate makes a generation and expects that to go well.
func (w *world) rotate(def lifecycle.Definition) {
	w.t.Helper()
	w.advance(time.Hour)
	if err := w.drive(w.journal.enqueue(lifecycle.Rotate, def, lifecycle.Request{}, "schedule"), 0); err != nil {
		w.t.Fatalf("rotate: %v", err)
	}
}

// synchronize runs a synchronization and expects that to go well.
func (w *world) synchronize(def lifecycle.Definition, req lifecycle.Request) string {
	w.t.Helper()
	id := w.journal.enqueue(lifecycle.Synchronize, def, req, "watch")
	if err := w.drive(id, 0); err != nil {
		w.t.Fatalf("synchronize: %v", err)
	}
	return id
}

func (w *world) reconcile(def lifecycle.Definition) (lifecycle.Findings, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	w.cancel = cancel
	var f lifecycle.Findings
	var err error
	if w.survive(func() { f, err = w.engine.Reconcile(ctx, def, !w.lookOnly) }) {
		err = errDeath
	}
	return f, err
}

func (w *world) reconcileUntilDone(def lifecycle.Definition) lifecycle.Findings {
	w.t.Helper()
	var errs []error
	for range 5 {
		f, err := w.reconcile(def)
		if err == nil {
			return f
		}
		errs = append(errs, err)
		w.advance(time.Minute)
	}
	w.t.Fatalf("reconcile: %v", errs)
	return lifecycle.Findings{}
}

// loseDatabase is what the words say.
func (w *world) loseDatabase() {
	old := w.journal
	w.journal = &fakeJournal{w: w, ids: old.ids + 1000, generations: make(map[string][]lifecycle.Generation), jobs: make(map[string]*jobRow), unique: make(map[string]string), sequence: make(map[string]int)}
	w.start()
}

// generation returns a generation of the group payments from the journal.
func (w *world) generation(number int) lifecycle.Generation {
	w.t.Helper()
	for _, g := range w.journal.generations["payments"] {
		if g.Number == number {
			return g
		}
	}
	w.t.Fatalf("generation %d is not in the journal", number)
	return lifecycle.Generation{}
}

// keyOf returns the KMS key of a generation.
func (w *world) keyOf(number int) *fakeKey {
	w.t.Helper()
	k := w.kms.keys[w.generation(number).KeyID]
	if k == nil {
		w.t.Fatalf("generation %d has no KMS key", number)
	}
	return k
}

// step returns a job's step from the journal.
func (w *world) step(id, name string) lifecycle.Step {
	w.t.Helper()
	for _, s := range w.journal.jobs[id].steps {
		if s.Name == name {
			return s
		}
	}
	w.t.Fatalf("job %s has no step %s", id, name)
	return lifecycle.Step{}
}

func ptr[T any](v T) *T { return &v }

// definition is a group's definition in which everything is managed.
func definition() lifecycle.Definition {
	return lifecycle.Definition{
		Group: "payments", HSM: "main", Credential: "prod", Region: "eu-central-1", Alias: "alias/payments",
		Description: ptr("card payments"), Policy: ptr(`{"Version":"2012-10-17","Statement":[{"Sid":"a"}]}`),
		Tags: map[string]string{"team": "payments"}, Verify: "auto",
	}
}

// A picture is what a world looks like, without names and times that differ from
// one run to the next.
type picture struct {
	Generations []generationPicture
	Tokens      []string // labels of the HSM's objects
	Keys        []keyPicture
	Aliases     map[string]int // alias to generation
	Moves       []string
	Events      []string
	Audit       map[string]int
	Jobs        []string
}

type generationPicture struct {
	Number             int
	Stage              lifecycle.Stage
	State              string
	Policy             string
	Tags               map[string]string
	HasKey, HasObject  bool
	Imported, Activate bool
	Expires            bool
}

type keyPicture struct {
	Generation  int
	State       string
	Description string
	Policy      string
	Tags        map[string]string
	Expires     bool
	Own         bool // its material is that of the generation's HSM object
	Materials   []string
}

// picture draws the group payments.
func (w *world) picture() picture {
	p := picture{Aliases: make(map[string]int), Audit: make(map[string]int)}
	number := make(map[string]int) // by key ID
	for _, g := range w.journal.generations["payments"] {
		if _, shared := number[g.KeyID]; !shared {
			number[g.KeyID] = g.Number // the first one's
		}
		p.Generations = append(p.Generations, generationPicture{Number: g.Number, Stage: g.Stage, State: g.State(w.now), Policy: g.Policy, Tags: g.Tags,
			HasKey: g.KeyID != "", HasObject: len(w.hsm.find(g.HSMID)) == 1, Imported: !g.ImportedAt.IsZero(), Activate: !g.ActivatedAt.IsZero(), Expires: !g.ValidTo.IsZero()})
	}
	for _, o := range w.hsm.objects {
		p.Tokens = append(p.Tokens, o.label)
	}
	slices.Sort(p.Tokens)
	for _, id := range slices.Sorted(maps.Keys(w.kms.keys)) {
		k := w.kms.look(id)
		if k == nil || k.State == "PendingDeletion" {
			continue
		}
		tags := maps.Clone(k.tags)
		delete(tags, lifecycle.TagJob)
		delete(tags, lifecycle.TagHSMID)
		kp := keyPicture{Generation: number[id], State: k.State, Description: k.Description, Policy: k.policy, Tags: tags, Expires: !k.ValidTo.IsZero()}
		for _, o := range w.hsm.objects {
			kp.Own = kp.Own || k.MaterialID != "" && k.MaterialID == materialID(k.ARN, o.material)
		}
		for _, m := range k.materials(w.now) {
			label, _, _ := strings.Cut(m.Description, " ")
			kp.Materials = append(kp.Materials, fmt.Sprintf("%s %s imported=%v expires=%v", label, m.State, m.Imported, !m.ValidTo.IsZero()))
		}
		p.Keys = append(p.Keys, kp)
	}
	slices.SortFunc(p.Keys, func(a, b keyPicture) int { return a.Generation - b.Generation })
	for name, a := range w.kms.aliases {
		p.Aliases[name] = number[a.target]
	}
	for _, m := range w.kms.moves {
		from := "new"
		if m.from != "" {
			from = strconv.Itoa(number[m.from])
		}
		p.Moves = append(p.Moves, fmt.Sprintf("%s: %s -> %d", m.alias, from, number[m.to]))
	}
	materials := make(map[string]string)
	for _, g := range w.journal.generations["payments"] {
		materials[g.MaterialID] = g.HSMLabel
	}
	for _, id := range w.kms.rotated {
		p.Moves = append(p.Moves, "rotated to "+materials[id])
	}
	for _, e := range w.journal.events {
		previous := "null"
		if id, _ := e.detail["previous_key_id"].(string); id != "" {
			previous = strconv.Itoa(number[id])
		}
		if id, _ := e.detail["previous_key_material_id"].(string); id != "" {
			previous = fmt.Sprintf("%s left=%v", materials[id], e.detail["rotations_left"])
		}
		p.Events = append(p.Events, fmt.Sprintf("%s generation=%v previous=%s actions=%v disabled=%v", e.DetailType, e.detail["generation"], previous, e.detail["actions"], e.detail["previous_key_disabled"]))
	}
	imported := make(map[string]bool)
	for _, a := range w.journal.audit {
		switch a.Action {
		case "adopt KMS key": // the CreateKey was not answered
			p.Audit["create KMS key"]++
		case "schedule deletion": // of a double
		case "import key material":
			// One that is given up may be imported once more on the way.
			label, _, _ := strings.Cut(a.Detail, " ")
			again := slices.ContainsFunc(w.journal.generations["payments"], func(g lifecycle.Generation) bool {
				return g.HSMLabel == label && g.Stage == lifecycle.Destroyed
			}) && imported[label]
			imported[label] = true
			if !again {
				p.Audit[a.Action]++
			}
		default:
			p.Audit[a.Action]++
		}
	}
	for _, id := range w.journal.order {
		j := w.journal.jobs[id]
		p.Jobs = append(p.Jobs, fmt.Sprintf("%s %s", j.kind, j.state))
	}
	return p
}

// check fails the test where the world is not as it must always be once jobs
// have ended.
func (w *world) check() {
	w.t.Helper()
	generations := w.journal.generations["payments"]
	objects := make(map[string]bool)
	keys := make(map[string]bool)
	ids := make(map[string]int)
	for _, g := range generations {
		if other, taken := ids[g.HSMID]; taken && g.HSMID != "" {
			w.t.Errorf("generations %d and %d have one HSM ID", other, g.Number)
		}
		ids[g.HSMID] = g.Number
		n := len(w.hsm.find(g.HSMID))
		switch {
		case g.HSMID == "":
		case g.Stage == lifecycle.Destroyed && n != 0:
			w.t.Errorf("generation %d is destroyed and has %d HSM objects", g.Number, n)
		case g.Stage != lifecycle.Destroyed && !g.GeneratedAt.IsZero() && n != 1 && g.DeletionDate.IsZero() && !w.hsm.lost[g.HSMID]:
			w.t.Errorf("generation %d has %d HSM objects", g.Number, n)
		}
		objects[g.HSMID] = true
		if g.KeyID != "" {
			keys[g.KeyID] = true
		}
	}
	for _, o := range w.hsm.objects {
		if !objects[fmt.Sprintf("%x", o.id)] && o.label[:len("byokd/payments/")] == "byokd/payments/" {
			w.t.Errorf("HSM object %s, ID %x, is nobody's", o.label, o.id)
		}
	}
	for id, k := range w.kms.keys {
		if k.tags[lifecycle.TagGroup] == "payments" && k.State != "PendingDeletion" && !keys[id] {
			w.t.Errorf("KMS key %s of generation %s is nobody's and not scheduled for deletion", id, k.tags[lifecycle.TagGeneration])
		}
	}
	seen := make(map[string]bool)
	for i, e := range w.journal.events {
		if e.detail["event_id"] != e.ID || seen[e.ID] {
			w.t.Errorf("event ID %s is not one, or not this event's", e.ID)
		}
		seen[e.ID] = true
		if e.sequence != i+1 {
			w.t.Errorf("event %d has sequence %d", i+1, e.sequence)
		}
		for _, name := range []string{"schema", "group", "host", "occurred_at", "region", "account", "job_id"} {
			if _, ok := e.detail[name]; !ok {
				w.t.Errorf("event %s has no %s", e.DetailType, name)
			}
		}
	}
	for _, id := range w.journal.order {
		j := w.journal.jobs[id]
		if j.state != "completed" {
			continue
		}
		if got := len(j.steps); got != len(lifecycle.Steps(j.kind)) {
			w.t.Errorf("completed %s has %d steps recorded", j.kind, got)
		}
		for _, s := range j.steps {
			if s.State != lifecycle.Done && s.State != lifecycle.Skipped || s.StartedAt.IsZero() || s.FinishedAt.IsZero() {
				w.t.Errorf("step %s of a completed %s is %s, %v to %v", s.Name, j.kind, s.State, s.StartedAt, s.FinishedAt)
			}
		}
	}
}

func diff(t *testing.T, what string, want, got any) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}
