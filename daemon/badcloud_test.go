package daemon_test

import (
	"hash/fnv"
	"strconv"
	"sync"
	"testing"
	"time"

	"byokd/cloud/awssim"
	"byokd/daemon/control"
)

// TestBadCloud lets byokd make, rotate, delete and bring back keys in an AWS with
// its default quotas, seconds of eventual consistency and 5 % of its answers lost;
// of each operation that changes something, the first answer too. Every job must
// end as on a good day: one key and one HSM object a generation, each move of an
// alias told once.
func TestBadCloud(t *testing.T) {
	const lag = 2 * time.Second
	w := newWorldWith(t, func(o *awssim.Options) {
		o.Quotas = &awssim.Quotas{}
		o.Consistency = awssim.Consistency{NewKeys: lag, Aliases: lag, Tagging: lag}
	})
	var mu sync.Mutex
	met, lost := make(map[string]bool), make(map[string]int)
	w.faults(nil, func(r awssim.Request) *awssim.Fault {
		mu.Lock()
		defer mu.Unlock()
		first := !met[r.Operation] && r.Code == ""
		met[r.Operation] = met[r.Operation] || first
		h := fnv.New32a()
		h.Write([]byte(strconv.Itoa(r.N)))
		if !first && h.Sum32()%20 != 0 {
			return nil
		}
		lost[r.Operation]++
		return &awssim.Fault{Drop: true}
	})
	groups := []string{"a", "b", "c"}
	generations := make(map[string]int)
	w.start()
	for _, name := range groups {
		w.group(name, every+"\ndisable_previous = true\ndisable_previous_after = \"0s\"", "description = \"bad days\"\n[aws.tags]\nteam = \"x\"")
		generations[name] = 2
	}
	for _, name := range groups {
		w.untilGeneration(name, 1)
	}
	asked, err := w.client.Rotate(t.Context(), groups, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, job := range asked {
		if job := w.finished(job.ID); job.State != control.JobCompleted {
			t.Errorf("job = %+v", job)
		}
	}
	for _, r := range []control.SyncRequest{
		{Group: "a", Generation: new(2), DeleteMaterial: true},
		{Group: "a", Generation: new(2), ImportMaterial: true, UpdatePolicy: true},
	} {
		job, err := w.client.Sync(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if job := w.finished(job.ID); job.State != control.JobCompleted {
			t.Errorf("job = %+v", job)
		}
	}
	for _, name := range groups {
		w.until("all jobs of "+name+" have ended", func() bool { return len(w.openJobs(name)) == 0 })
		for _, j := range w.jobs(name) {
			if j.State != control.JobCompleted {
				t.Errorf("job %+v", j)
			}
		}
		keys, err := w.client.Keys(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range []string{"Disabled", "Enabled"} {
			if key, _ := w.sim.Key(testAccount, testRegion, string(keys[i].KeyID)); key.State != want {
				t.Errorf("the key of generation %d of %s is %s, want %s", i+1, name, key.State, want)
			}
		}
	}
	w.until("the events are delivered", func() bool { return w.pending() == 0 })
	w.checkEvents(false)
	moves := make(map[string]bool)
	for _, e := range w.eventDetails("KMS Alias Moved") {
		moves[e["event_id"].(string)] = true
	}
	if len(moves) != 2*len(groups) {
		t.Errorf("%d moves of aliases were told, want %d", len(moves), 2*len(groups))
	}
	throttled := 0
	for _, r := range w.sim.Requests() {
		if r.Code == "ThrottlingException" {
			throttled++
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if throttled == 0 || lost["CreateKey"] == 0 || lost["ImportKeyMaterial"] == 0 || lost["CreateAlias"] == 0 || lost["UpdateAlias"] == 0 {
		t.Errorf("the day was not bad enough: %d requests throttled, answers lost: %v", throttled, lost)
	}
	t.Logf("%d requests, %d throttled, answers lost: %v", len(w.sim.Requests()), throttled, lost)
	w.checkKeys(generations)
}
