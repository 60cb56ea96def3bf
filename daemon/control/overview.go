package control

import (
	"encoding/json"
	"strconv"
	"time"
)

// An Overview is what `byokctl status` shows of many groups: those that are not
// healthy, worst first, and of the healthy ones, where they are many, how many there
// are.
type Overview struct {
	Groups  List[GroupStatus] `json:"groups"`  // all but those that are left out
	Healthy int               `json:"healthy"` // that are left out
	Next    *GroupStatus      `json:"next"`    // of these the one that rotates next; null: none does
}

// Healthy reports whether nothing is wrong with a group.
func (g GroupStatus) Healthy() bool { return g.State == GroupOK && len(g.Problems) == 0 }

// newOverview leaves the healthy groups out, which are the last ones, if they are more
// than most.
func newOverview(groups []GroupStatus, most int) Overview {
	o := Overview{Groups: groups}
	sick := len(groups)
	for sick > 0 && groups[sick-1].Healthy() {
		sick--
	}
	if len(groups)-sick <= most {
		return o
	}
	o.Groups, o.Healthy = groups[:sick], len(groups)-sick
	for i := sick; i < len(groups); i++ {
		if g := &groups[i]; !g.NextRotation.IsZero() && (o.Next == nil || g.NextRotation.Before(o.Next.NextRotation.Time)) {
			o.Next = g
		}
	}
	return o
}

// All are all groups, worst first. Those that were left out have a state and nothing
// more, but for the first of them, which rotates next.
func (o Overview) All() []GroupStatus {
	all := append(make([]GroupStatus, 0, len(o.Groups)+o.Healthy), o.Groups...)
	for i := range o.Healthy {
		g := GroupStatus{State: GroupOK}
		if i == 0 && o.Next != nil {
			g = *o.Next
		}
		all = append(all, g)
	}
	return all
}

// A rawJSON is an answer that is JSON already.
type rawJSON []byte

// statusJSON is what encoding/json makes of groups, in a tenth of the time: there may
// be ten thousand.
func statusJSON(groups []GroupStatus) rawJSON {
	b := append(make([]byte, 0, 64+512*len(groups)), '[')
	for i, g := range groups {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendText(append(b, `{"group":`...), g.Group)
		b = appendText(append(b, `,"state":`...), g.State)
		b = appendOrNull(append(b, `,"alias":`...), g.Alias)
		b = appendOrNull(append(b, `,"region":`...), g.Region)
		b = appendOrNull(append(b, `,"account":`...), g.Account)
		b = append(b, `,"active":{"generation":`...)
		if n := g.Active.Generation; n != nil {
			b = strconv.AppendInt(b, int64(*n), 10)
		} else {
			b = append(b, "null"...)
		}
		b = appendOrNull(append(b, `,"key_id":`...), g.Active.KeyID)
		b = appendOrNull(append(b, `,"key_arn":`...), g.Active.KeyARN)
		b = appendTime(append(b, `,"valid_to":`...), g.Active.ValidTo)
		b = appendTime(append(b, `},"last_rotation":`...), g.LastRotation)
		b = appendTime(append(b, `,"next_rotation":`...), g.NextRotation)
		b = append(b, `,"problems":[`...)
		for i, p := range g.Problems {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendText(append(b, `{"code":`...), p.Code)
			b = appendText(append(b, `,"message":`...), p.Message)
			b = appendTime(append(b, `,"since":`...), p.Since)
			b = append(b, '}')
		}
		b = append(b, `]}`...)
	}
	return append(b, "]\n"...)
}

func appendText(b []byte, s string) []byte {
	for i := range len(s) {
		switch c := s[i]; {
		case c < ' ', c > '~', c == '"', c == '\\', c == '<', c == '>', c == '&':
			quoted, _ := json.Marshal(s) // a string always encodes
			return append(b, quoted...)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}

func appendOrNull(b []byte, s String) []byte {
	if s == "" {
		return append(b, "null"...)
	}
	return appendText(b, string(s))
}

func appendTime(b []byte, t Time) []byte {
	if t.IsZero() {
		return append(b, "null"...)
	}
	return append(t.UTC().AppendFormat(append(b, '"'), time.RFC3339), '"')
}
