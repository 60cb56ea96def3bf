package daemon

import (
	"container/heap"
	"time"
)

// A dueList knows which of many groups is due first. What it costs to ask, and to
// set one, hardly depends on how many there are. It is used by one goroutine.
type dueList struct {
	waiting dueGroups
	byName  map[string]*dueGroup
}

func newDueList() *dueList { return &dueList{byName: make(map[string]*dueGroup)} }

// set has a group due at a time; the zero time: not at all.
func (l *dueList) set(name string, at time.Time) {
	e := l.byName[name]
	switch {
	case at.IsZero() && e == nil:
	case at.IsZero():
		heap.Remove(&l.waiting, e.index)
		delete(l.byName, name)
	case e == nil:
		e = &dueGroup{name: name, at: at}
		l.byName[name] = e
		heap.Push(&l.waiting, e)
	default:
		e.at = at
		heap.Fix(&l.waiting, e.index)
	}
}

// pop takes the first group out that is due by now; ok is false where none is.
func (l *dueList) pop(now time.Time) (name string, ok bool) {
	if len(l.waiting) == 0 || l.waiting[0].at.After(now) {
		return "", false
	}
	e := heap.Pop(&l.waiting).(*dueGroup)
	delete(l.byName, e.name)
	return e.name, true
}

// next is when the first group is due; zero: none is.
func (l *dueList) next() time.Time {
	if len(l.waiting) == 0 {
		return time.Time{}
	}
	return l.waiting[0].at
}

// within is how long it is from now until the first group is due, at most longest.
func (l *dueList) within(now time.Time, longest time.Duration) time.Duration {
	at := l.next()
	if at.IsZero() {
		return longest
	}
	return min(max(at.Sub(now), 10*time.Millisecond), longest)
}

type dueGroup struct {
	name  string
	at    time.Time
	index int
}

// dueGroups implements heap.Interface, the earliest first.
type dueGroups []*dueGroup

func (h dueGroups) Len() int { return len(h) }

func (h dueGroups) Less(i, j int) bool {
	if !h[i].at.Equal(h[j].at) {
		return h[i].at.Before(h[j].at)
	}
	return h[i].name < h[j].name
}

func (h dueGroups) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *dueGroups) Push(x any) {
	e := x.(*dueGroup)
	e.index = len(*h)
	*h = append(*h, e)
}

func (h *dueGroups) Pop() any {
	last := len(*h) - 1
	e := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return e
}
