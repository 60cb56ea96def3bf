package daemon_test

import (
	"fmt"
	"os"
	"os/user"
	"slices"
	"strings"
	"testing"

	"byokd/daemon/control"
)

// TestAudit: each act is written under the name of who or what asked for it, with
// the definition that was in force: the user of byokctl, the owner of a request
// file, else the trigger.
func TestAudit(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.group("payments", every, "")
	w.untilGeneration("payments", 1)
	asked := w.rotated("payments")
	w.write("run/requests/rotate.payments", "")
	w.untilGeneration("payments", 3)
	w.group("payments", every, `description = "card payments"`)
	w.until("the definition has been applied", func() bool {
		jobs := w.jobs("payments")
		return len(jobs) == 4 && jobs[0].Kind == "synchronize" && jobs[0].Final()
	})

	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("uid %d (%s)", os.Getuid(), me.Username)
	trail, err := w.client.Audit(t.Context(), control.AuditFilter{Group: "payments"})
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(trail)
	var definitions []string
	moves := make(map[string]int)
	for _, a := range trail {
		if a.At.IsZero() || a.Group != "payments" || len(a.Definition) != 64 {
			t.Errorf("entry %+v", a)
		}
		if a.Action == "take definition" {
			definitions = append(definitions, string(a.Definition))
		}
		if len(definitions) > 0 && string(a.Definition) != definitions[len(definitions)-1] {
			t.Errorf("%s names definition %s, in force is %s", a.Action, a.Definition, definitions[len(definitions)-1])
		}
		if a.Action == "move alias" {
			moves[a.Actor]++
		}
	}
	if len(definitions) != 2 || definitions[0] == definitions[1] {
		t.Errorf("definitions taken: %q", definitions)
	}
	for _, actor := range []string{"initial", name, "request file of " + name} {
		if moves[actor] != 1 {
			t.Errorf("%q moved the alias %d times; all: %v", actor, moves[actor], moves)
		}
	}
	of, err := w.client.Audit(t.Context(), control.AuditFilter{JobID: asked.ID})
	if err != nil {
		t.Fatal(err)
	}
	var did []string
	for _, a := range of {
		if a.Actor != name {
			t.Errorf("%s of the asked job was done for %q", a.Action, a.Actor)
		}
		did = append(did, a.Action)
	}
	slices.Reverse(did)
	if got, want := strings.Join(did, ", "), "ask for rotate, generate key, create KMS key, import key material, move alias"; !strings.HasPrefix(got, want) {
		t.Errorf("the trail of the job: %s, want %s", got, want)
	}
	if some, err := w.client.Audit(t.Context(), control.AuditFilter{Limit: 2}); err != nil || len(some) != 2 {
		t.Errorf("%d entries, %v", len(some), err)
	}

	// And over time: the generations follow each other.
	timelines, err := w.client.Timeline(t.Context(), "payments")
	if err != nil || len(timelines) != 1 || len(timelines[0].Generations) != 3 {
		t.Fatalf("timelines %+v, %v", timelines, err)
	}
	periods := timelines[0].Generations
	for i, p := range periods {
		last := i == len(periods)-1
		if p.MadeAt.IsZero() || p.ActiveFrom.IsZero() || p.ActiveTo.IsZero() != last || !last && !p.ActiveTo.Equal(periods[i+1].ActiveFrom.Time) {
			t.Errorf("generation %d: %+v", p.Generation, p)
		}
	}
	if timelines[0].NextRotation.IsZero() {
		t.Error("no next rotation")
	}
	for _, do := range []func() error{
		func() error { _, err := w.client.Timeline(t.Context(), "nobody"); return err },
		func() error { _, err := w.client.Events(t.Context(), control.EventFilter{Group: "nobody"}); return err },
		func() error { _, err := w.client.Audit(t.Context(), control.AuditFilter{Group: "nobody"}); return err },
	} {
		if err := do(); err == nil || !strings.Contains(err.Error(), `there is no group "nobody"`) {
			t.Errorf("an unknown group: %v", err)
		}
	}
}
