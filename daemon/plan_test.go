package daemon_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"byokd/cloud/awssim"
	"byokd/daemon/control"
)

func (w *world) planned(rotate bool, name string) control.Plan {
	w.t.Helper()
	plans, err := w.client.Plan(w.t.Context(), rotate, name)
	if err != nil {
		w.t.Fatal(err)
	}
	return plans[0]
}

// TestPlan: what is said beforehand is what happens then, call by call, and
// saying it does nothing.
func TestPlan(t *testing.T) {
	w := newWorld(t)
	w.group("payments", every+"\ndisable_previous = true\ndisable_previous_after = \"1h\"\nschedule_previous_deletion_after = \"40d\"", "")
	w.group("cards", "every = \"90d\"\nmode = \"auto\"", "")
	w.group("frozen", "enabled = false", "")
	w.start()
	w.untilGeneration("payments", 1)
	w.untilGeneration("cards", 1)
	w.untilGeneration("frozen", 1)

	// The changing requests of one rotation, in order, as AWS sees them.
	changing := []string{"CreateKey", "GetParametersForImport", "ImportKeyMaterial", "RotateKeyOnDemand", "CreateAlias", "UpdateAlias", "DisableKey"}
	for _, group := range []string{"payments", "cards"} {
		before := make(map[string]int)
		for _, op := range changing {
			before[op] = w.requests(op)
		}
		p := w.planned(true, group)
		if len(p.Notes) != 0 {
			t.Errorf("notes of a rotation at once: %q", p.Notes)
		}
		i := slices.IndexFunc(p.Actions, func(a control.Action) bool { return a.Kind == "rotate" })
		if i < 0 {
			t.Fatalf("no rotation is planned: %+v", p)
		}
		planned := p.Actions[i]
		if planned.Generation != 2 || p.WaitsForQuota != 1 {
			t.Errorf("plan = %+v", p)
		}
		for _, op := range changing {
			if n := w.requests(op) - before[op]; n != 0 {
				t.Errorf("a dry run has sent %s", op)
			}
		}
		w.rotated(group)
		for _, op := range changing {
			done, said := w.requests(op)-before[op] > 0, slices.Contains(planned.Calls, "kms:"+op)
			if done != said {
				t.Errorf("%s: %s was sent: %v, planned: %v", group, op, done, said)
			}
		}
	}

	p := w.planned(false, "payments")
	var what []string
	for _, a := range p.Actions {
		what = append(what, a.Message)
	}
	all := strings.Join(what, "\n")
	for _, want := range []string{"disable KMS key", "of generation 1", "of generation 2", "schedule the deletion of KMS key", "make generation 3"} {
		if !strings.Contains(all, want) {
			t.Errorf("the plan does not say %q:\n%s", want, all)
		}
	}
	if !slices.IsSortedFunc(p.Actions, func(a, b control.Action) int { return a.At.Compare(b.At.Time) }) {
		t.Errorf("not by time: %+v", p.Actions)
	}
	// Two keys now; then the third alone, the others pending deletion.
	if p.CostNow != 2 || p.CostThen != 1 {
		t.Errorf("cost %v now, %v then", p.CostNow, p.CostThen)
	}
	// In place: one key, and a dollar more for each of the first two rotations.
	if p := w.planned(false, "cards"); p.CostNow != 2 || p.CostThen != 3 {
		t.Errorf("in place: cost %v now, %v then", p.CostNow, p.CostThen)
	}
	if p := w.planned(false, "frozen"); len(p.Actions) != 0 || !strings.Contains(p.Notes[0], "no rotation is planned") {
		t.Errorf("plan of a group without a schedule: %+v", p)
	}
	if next := w.status("payments").NextRotation; !p.Actions[len(p.Actions)-1].At.After(next.Add(-time.Second)) {
		t.Errorf("the plan ends before the next rotation at %v: %+v", next, p.Actions)
	}
}

// TestPlanOfWhatWaits: the first generation of a group that cannot be looked for, and
// a rotation that is open already, come next, and not with the schedule's next tick.
// A first generation that waits for a day is overdue.
func TestPlanOfWhatWaits(t *testing.T) {
	w := newWorld(t)
	w.group("payments", "every = \"90d\"", "")
	w.start()
	w.untilGeneration("payments", 1)
	w.deny(func(r awssim.Request) bool { return r.Service == "kms" })

	w.group("cards", "every = \"90d\"", "")
	w.until("cards cannot be looked for", func() bool { return w.status("cards").State == "pending" && w.problem("cards", "pending") != "" })
	soon := time.Now().Add(day)
	if next := w.status("cards").NextRotation; next.IsZero() || next.After(soon) {
		t.Errorf("cards is to have its first key at %v", next)
	}
	p := w.planned(false, "cards")
	if len(p.Actions) != 1 || p.Actions[0].At.After(soon) || p.Actions[0].Generation != 1 || !strings.Contains(strings.Join(p.Notes, "\n"), "cannot look") {
		t.Errorf("the plan of cards: %+v", p)
	}

	job := w.askRotation("payments")
	w.until("the rotation waits for a person", func() bool {
		open := w.openJobs("payments")
		return len(open) == 1 && open[0].WaitingFor == "permission"
	})
	p = w.planned(false, "payments")
	if len(p.Actions) != 1 || p.Actions[0].At.After(soon) || p.Actions[0].Generation != 2 ||
		!strings.Contains(strings.Join(p.Notes, "\n"), "job "+job.ID+" (rotate) is open and waits for a person (permission)") {
		t.Errorf("the plan of payments: %+v", p)
	}

	w.at(time.Now().Add(25 * time.Hour))
	w.until("the first key of cards is overdue", func() bool { return w.status("cards").State == "overdue" && w.problem("cards", "overdue") != "" })
	w.until("that is told", func() bool {
		return slices.ContainsFunc(w.told("BYOK Rotation Overdue"), func(d map[string]any) bool { return d["group"] == "cards" })
	})
	w.faults(nil, nil)
	w.at(w.clock().Add(day))
	w.untilGeneration("cards", 1)
	w.until("all is well again", func() bool { return w.status("cards").State == "ok" })
}
