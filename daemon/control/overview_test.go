package control

import (
	"bytes"
	"encoding/json"
	"fmt"
	"testing"
	"time"
)

func statusGroups() []GroupStatus {
	n := 3
	at := At(time.Date(2026, 11, 28, 2, 3, 4, 5, time.FixedZone("x", 3600)))
	groups := []GroupStatus{
		{Group: "sick", State: GroupFailing, Alias: "alias/sick", Problems: []Problem{{Code: "a", Message: "<\"\\ü\n\u2028> & \xff", Since: at}, {Code: "b"}}},
		{Group: "odd", State: GroupOK, Problems: []Problem{{Code: "b", Message: "m"}}, NextRotation: at},
	}
	for i := range 30 {
		g := GroupStatus{Group: fmt.Sprintf("well-%02d", i), State: GroupOK, Alias: "alias/well", Region: "r", Account: "1", LastRotation: at, NextRotation: At(at.Add(time.Duration(i+7) % 11 * time.Hour)),
			Active: ActiveKey{Generation: &n, KeyID: "id", KeyARN: "arn", ValidTo: at}}
		groups = append(groups, g)
	}
	return groups
}

func TestStatusJSON(t *testing.T) {
	for _, groups := range [][]GroupStatus{nil, statusGroups()} {
		var want bytes.Buffer
		if err := json.NewEncoder(&want).Encode(List[GroupStatus](groups)); err != nil {
			t.Fatal(err)
		}
		if got := statusJSON(groups); string(got) != want.String() {
			t.Errorf("it is\n%s, want\n%s", got, want.String())
		}
	}
}

func TestOverview(t *testing.T) {
	groups := statusGroups()
	o := newOverview(groups, 20)
	if len(o.Groups) != 2 || o.Healthy != 30 || o.Next == nil || o.Next.Group != "well-04" {
		t.Errorf("the overview is %+v", o)
	}
	all := o.All()
	if len(all) != len(groups) || all[0].Group != "sick" || all[2].Group != "well-04" || all[3].Group != "" || !all[31].Healthy() {
		t.Errorf("all are %+v", all)
	}
	if o := newOverview(groups, 30); len(o.Groups) != 32 || o.Healthy != 0 || o.Next != nil {
		t.Errorf("with room for all it is %+v", o)
	}
}
