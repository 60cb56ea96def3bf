package control_test

import (
	"fmt"
	"testing"
	"time"

	"byokd/daemon/control"
)

// TestFindCommon: a problem of several groups is one, also where its message names
// the group, a job or a time; what fewer have stays theirs.
func TestFindCommon(t *testing.T) {
	messages := []string{
		"byokd cannot look: list keys byokd/%[1]s/…: token unavailable; the module is initialised again in %[2]ds",
		"rotate job 019aa000-0000-7000-8000-00000000000%[2]d: alias/%[1]s: cannot be reached; tried again at 2026-11-23T18:00:0%[2]dZ",
		"/etc/byokd/groups.d/%[1]s.toml:2:1: rotation.every: \"90 days\" is no duration",
		"HSM object byokd/%[1]s/%[2]d, ID 0000000000000000000000000000000%[2]d, is not on the token: generation %[2]d cannot be imported again",
		"look for HSM objects of group %[1]s: no answer within 2m0s for generation %[2]d",
	}
	for _, message := range messages {
		var groups []control.GroupStatus
		for i, name := range []string{"pay", "a", "payments", "orders"} {
			groups = append(groups, control.GroupStatus{Group: name, Alias: control.String("alias/" + name), Problems: []control.Problem{
				{Code: "c", Message: fmt.Sprintf(message, name, i+1), Since: control.At(at.Add(-time.Duration(i) * time.Hour))},
			}})
		}
		groups[1].Problems = append(groups[1].Problems, control.Problem{Code: "own", Message: "m"})
		common := control.FindCommon(groups)
		if len(common) != 1 || common[0].Groups != 4 || !common[0].Since.Equal(at.Add(-3*time.Hour)) {
			t.Errorf("%s:\n%+v", message, common)
			continue
		}
		for i, g := range groups {
			if others := common.Others(g); len(others) != len(g.Problems)-1 {
				t.Errorf("%d: %+v", i, others)
			}
		}
		if common := control.FindCommon(groups[:2]); len(common) != 0 {
			t.Errorf("two groups: %+v", common)
		}
	}
	different := []control.GroupStatus{{Group: "a"}, {Group: "b"}, {Group: "c"}}
	for i := range different {
		different[i].Problems = []control.Problem{{Code: "discarded", Message: fmt.Sprintf("another thing each time: %c", 'x'+i)}}
	}
	if common := control.FindCommon(different); len(common) != 0 {
		t.Errorf("different ones: %+v", common)
	}
}
