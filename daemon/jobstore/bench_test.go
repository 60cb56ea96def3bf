package jobstore_test

import (
	"fmt"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"modernc.org/sqlite"

	"byokd/daemon/jobstore"
	"byokd/daemon/jobstore/storetest"
)

// A cost is what the store has taken of what is scarce.
type cost struct {
	cpu     time.Duration
	allocs  uint64
	commits int64
	pages   int // written to the log
}

// costOf is what f costs with a store.
func costOf(tb testing.TB, s *jobstore.Store, f func()) cost {
	tb.Helper()
	now := func() (c cost) {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return cost{ownCPU(), m.Mallocs, s.Commits(), pagesWritten(tb, s)}
	}
	before := now()
	f()
	after := now()
	return cost{after.cpu - before.cpu, after.allocs - before.allocs, after.commits - before.commits, after.pages - before.pages}
}

// ownCPU is the processor time that this process has used.
func ownCPU() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// pagesWritten is how many pages the writer has written since the store was opened.
func pagesWritten(tb testing.TB, s *jobstore.Store) (n int) {
	tb.Helper()
	conn, err := s.Writer().Conn(tb.Context())
	must(tb, err)
	defer conn.Close()
	must(tb, conn.Raw(func(dc any) error {
		n, _, err = dc.(sqlite.DBStatus).Status(sqlite.DBStatusCacheWrite, false)
		return err
	}))
	return n
}

// used is a database of so many groups that has been in use for years.
func used(tb testing.TB, groups, jobs int) (*jobstore.Store, []storetest.Group) {
	tb.Helper()
	jobstore.Unwatched()
	path := filepath.Join(tb.TempDir(), "byokd.db")
	must(tb, jobstore.Create(path))
	all := make([]storetest.Group, groups)
	for i := range all {
		name := fmt.Sprintf("group-%05d", i)
		all[i] = storetest.Group{Name: name, Definition: snapshot(name), Digest: testDigest, HSM: "main", Account: "111122223333", Region: "eu-central-1", Snapshot: snapshot(name)}
	}
	must(tb, storetest.Fill(tb.Context(), path, all, jobs, time.Now().Add(-time.Hour)))
	s, err := jobstore.Open(tb.Context(), path, jobstore.Options{CheckLater: true})
	must(tb, err)
	s.Tell(func([]string) {})
	tb.Cleanup(func() { s.Close() })
	return s, all
}

const (
	testDigest = "f003200c6ccb78da6be9b890b9a03e31924d45317465227c72ad43de6381786a"
	testPolicy = `{"Version":"2012-10-17","Id":"key-default-1","Statement":[{"Sid":"Enable IAM User Permissions","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:root"},"Action":"kms:*","Resource":"*"}]}`
)

var rotateSteps = []string{"generate", "create", "import", "verify", "grants", "activate", "announce"}

// snapshot is a definition as jobs hold it.
func snapshot(name string) []byte {
	return fmt.Appendf(nil, `{"group":%q,"hsm":"main","credential":"prod","region":"eu-central-1","alias":"alias/%s","description":null,"tags":{"team":"payments"},`+
		`"policy":null,"active_key_id":"","mode":"alias","keep_valid_for":0,"verify":"auto","disable_previous":false,"disable_previous_after":0,`+
		`"delete_previous_material_after":null,"schedule_previous_deletion_after":null,"keep_generations":0,"manage_adopted":false,"grants":"warn",`+
		`"former_aliases":null,"previous_name":"","digest":%q}`, name, name, testDigest)
}

// playRotation has the store record what a rotation of a group with a number of
// generations records, one record after the other as the daemon does.
func playRotation(tb testing.TB, s *jobstore.Store, group string, generations int) {
	ctx := tb.Context()
	must := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	now := time.Now()
	audit := func(action, detail string) []jobstore.AuditEntry {
		return []jobstore.AuditEntry{{At: now, Group: group, Actor: "uid 0 (root)", Action: action, Detail: detail, Definition: testDigest}}
	}
	number := generations + 1
	asked, _, err := s.Enqueue(ctx, jobstore.NewJob{Kind: "rotate", Group: group, HSM: "main", Trigger: "control",
		UniqueKey: fmt.Sprintf("control:%d", number), Urgent: true, Definition: snapshot(group), Request: []byte(`{"asked":true,"by":"uid 0 (root)"}`), Steps: rotateSteps,
		Audit: audit("ask for rotate", "trigger control")})
	must(err)
	var job *jobstore.Job
	for job == nil { // another may have claimed it, with a later time than this one's
		job, err = s.Claim(ctx, time.Now(), asked.Place, jobstore.Skip{})
		must(err)
	}
	group = job.Group // another's, where several play
	gens, err := s.Generations(ctx, group)
	must(err)
	active := gens[len(gens)-1]
	number = active.Number + 1

	record := func(c jobstore.Change) {
		c.JobID = job.ID
		must(s.Advance(ctx, c))
	}
	step := func(i int, state, message, data string) jobstore.Step {
		st := jobstore.Step{Name: rotateSteps[i], State: state, StartedAt: now, Message: message}
		if state == "done" {
			st.FinishedAt = now
		}
		if data != "" {
			st.Data = []byte(data)
		}
		return st
	}
	keyID := fmt.Sprintf("76222efa-4cd5-4035-8b29-%012d", number)
	arn := "arn:aws:kms:eu-central-1:111122223333:key/" + keyID
	g := jobstore.Generation{Group: group, Number: number, Stage: "pre-active", HSM: "main", HSMLabel: fmt.Sprintf("byokd/%s/%d", group, number),
		HSMID: fmt.Sprintf("%032x", now.UnixNano()), Region: "eu-central-1"}
	record(jobstore.Change{Steps: []jobstore.Step{step(0, "running", "", "")}})
	_, err = s.Job(ctx, job.ID) // see journal.superseded
	must(err)
	record(jobstore.Change{Generation: number, Steps: []jobstore.Step{step(0, "running", "", "")}, Generations: []jobstore.Generation{g}})
	g.GeneratedAt = now
	record(jobstore.Change{Steps: []jobstore.Step{step(0, "done", "generated "+g.HSMLabel+" on the token", ""), step(1, "running", "", "")},
		Generations: []jobstore.Generation{g}, Audit: audit("generate key", "HSM object "+g.HSMLabel+", ID "+g.HSMID)})
	g.JobID, g.Policy = job.ID, testPolicy
	sent := `{"sent_at":"2026-11-28T09:23:09.120636029Z","answered":false}`
	record(jobstore.Change{Steps: []jobstore.Step{step(1, "running", "", sent)}, Generations: []jobstore.Generation{g}})
	g.Account, g.KeyID, g.KeyARN, g.CreatedAt = "111122223333", keyID, arn, now
	record(jobstore.Change{Steps: []jobstore.Step{step(1, "done", "created KMS key "+keyID, sent), step(2, "running", "", "")},
		Generations: []jobstore.Generation{g}, Audit: audit("create KMS key", arn)})
	record(jobstore.Change{Steps: []jobstore.Step{step(2, "running", "", sent)}})
	g.MaterialID, g.ImportedAt = "1715e918dbd58ce6bb781e2b1ef7f331983eab972fec09919a28c26b78abfe18", now
	record(jobstore.Change{Steps: []jobstore.Step{step(2, "done", "imported "+g.HSMLabel+" into KMS key "+keyID, sent), step(3, "running", "", "")},
		Generations: []jobstore.Generation{g}, Audit: audit("import key material", g.HSMLabel+" into "+arn)})
	record(jobstore.Change{Steps: []jobstore.Step{step(3, "done", "crypto: KMS key "+keyID+" encrypts and decrypts", ""), step(4, "running", "", "")}})
	record(jobstore.Change{Steps: []jobstore.Step{step(4, "done", "there are no grants on KMS key "+active.KeyID, ""), step(5, "running", "", "")}})
	from := fmt.Sprintf(`{"from":%q,"from_arn":%q,"to":%q}`, active.KeyID, active.KeyARN, keyID)
	record(jobstore.Change{Steps: []jobstore.Step{step(5, "running", "", from)}})
	g.ActivatedAt = now
	record(jobstore.Change{Generations: []jobstore.Generation{g}})
	g.Stage, active.Stage, active.LeftAt = "active", "previous", now
	eventID := fmt.Sprintf("%s-%d", group, number)
	record(jobstore.Change{Steps: []jobstore.Step{step(5, "done", "alias/"+group+" points at KMS key "+keyID+", before at "+active.KeyID, from), step(6, "done", "KMS Alias Moved queued", "")},
		Generations: []jobstore.Generation{active, g},
		Events: []jobstore.Event{{ID: eventID, Group: group, DetailType: "KMS Alias Moved", OccurredAt: now, JobID: job.ID, Region: "eu-central-1", Account: "111122223333", Credential: "prod",
			Resources: []string{arn, active.KeyARN, "arn:aws:kms:eu-central-1:111122223333:alias/" + group},
			Detail: fmt.Appendf(nil, `{"schema":1,"event_id":%q,"group":%q,"host":"h","occurred_at":"2026-11-28T09:23:09Z","region":"eu-central-1","account":"111122223333","job_id":%q,"alias":"alias/%s",`+
				`"previous_key_id":%q,"previous_key_arn":%q,"new_key_id":%q,"new_key_arn":%q,"generation":%d,"trigger":"control","previous_key_disabled":false,"previous_key_disable_at":null}`,
				eventID, group, job.ID, group, active.KeyID, active.KeyARN, keyID, arn, number)}},
		Audit: audit("move alias", "alias/"+group+" from "+active.KeyARN+" to "+arn), Plan: &jobstore.Plan{Group: group}})
	events, err := s.PendingEvents(ctx, time.Now(), 100)
	must(err)
	must(s.Finish(ctx, job.ID, jobstore.Completed, "", jobstore.Change{}))
	for _, e := range events {
		if e.Group == group {
			must(s.Sent(ctx, e.ID, "aws-"+e.ID, time.Now()))
		}
	}
	must(s.SetPlan(ctx, jobstore.Plan{Group: group}))
	_, err = s.Keys(ctx, group)
	must(err)
	_, err = s.NextDue(ctx, time.Now())
	must(err)
}

// BenchmarkRecords has the store record rotations, as the daemon does, and tells what
// that costs without all that a rotation does beside it.
func BenchmarkRecords(b *testing.B) {
	s, groups := used(b, 1000, 100)
	next := 0
	for _, together := range []int{1, 16} {
		play := func(n int) {
			var wait sync.WaitGroup
			queue := make(chan string, n)
			for range n {
				queue <- groups[next%len(groups)].Name
				next++
			}
			close(queue)
			for range together {
				wait.Go(func() {
					for g := range queue {
						playRotation(b, s, g, 1000+next)
					}
				})
			}
			wait.Wait()
		}
		play(50)
		const n, batch = 500, 25
		least := time.Hour // others on the machine cost time too: cold caches
		c := costOf(b, s, func() {
			for range n / batch {
				begun := ownCPU()
				play(batch)
				least = min(least, (ownCPU()-begun)/batch)
			}
		})
		fmt.Printf("bench: the records of a rotation, %d at once, among 100,000 finished jobs: %.2f ms of CPU (the best %d: %.2f ms), %.1f commits, %.0f pages written, %d allocations\n",
			together, float64(c.cpu.Microseconds())/1000/n, batch, float64(least.Microseconds())/1000, float64(c.commits)/n, float64(c.pages)/n, c.allocs/n)
	}
}

// BenchmarkEnqueueMany makes a rotation of each of ten thousand groups, 250 in a
// commit as the daemon does with ticks of one instant.
func BenchmarkEnqueueMany(b *testing.B) {
	const together = 250
	s, groups := used(b, 10000, 10)
	tick := time.Now().Truncate(time.Second)
	enqueue := func(first, n int) {
		for ; n > 0; first, n = first+together, n-together {
			var jobs []jobstore.NewJob
			for _, g := range groups[first : first+together] {
				jobs = append(jobs, jobstore.NewJob{Kind: "rotate", Group: g.Name, HSM: "main", Trigger: "schedule", UniqueKey: "tick:" + tick.Format(time.RFC3339),
					Definition: g.Snapshot, Request: []byte(`{"asked":false}`), ScheduledAt: tick, DueAt: tick, Steps: rotateSteps,
					Audit: []jobstore.AuditEntry{{At: tick, Group: g.Name, Actor: "byokd", Action: "ask for rotate", Detail: "trigger schedule", Definition: testDigest}}})
			}
			_, err := s.EnqueueMany(b.Context(), jobs)
			must(b, err)
		}
	}
	enqueue(0, 1000)
	const n = 9000
	begun := time.Now()
	c := costOf(b, s, func() { enqueue(1000, n) })
	fmt.Printf("bench: %d rotations asked for at once, among 100,000 finished jobs: %.2f s, each %.0f µs of CPU, %.1f pages written, %d allocations; %d commits\n",
		n, time.Since(begun).Seconds(), float64(c.cpu.Microseconds())/n, float64(c.pages)/n, c.allocs/n, c.commits)
}
