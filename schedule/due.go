package schedule

import (
	"container/heap"
	"time"
)

// A Due knows which of many names is due first, with something kept for each: one
// heap. What it costs to ask, and to set one, hardly depends on how many there are.
// The zero value is empty. It is used by one goroutine at a time.
type Due[T any] struct {
	waiting entries[T]
	byName  map[string]*entry[T]
}

// Set has a name due at a time, in place of what was set for it before. It reports
// whether the name is the first now.
func (d *Due[T]) Set(name string, at time.Time, value T) (first bool) {
	e := d.byName[name]
	if e != nil {
		e.at, e.value = at, value
		heap.Fix(&d.waiting, e.index)
	} else {
		if d.byName == nil {
			d.byName = make(map[string]*entry[T])
		}
		e = &entry[T]{name: name, at: at, value: value}
		d.byName[name] = e
		heap.Push(&d.waiting, e)
	}
	return e.index == 0
}

// Remove forgets a name, if it is there.
func (d *Due[T]) Remove(name string) {
	if e := d.byName[name]; e != nil {
		heap.Remove(&d.waiting, e.index)
		delete(d.byName, name)
	}
}

// First is what is due first and when; ok is false where nothing is.
func (d *Due[T]) First() (name string, at time.Time, ok bool) {
	if len(d.waiting) == 0 {
		return "", time.Time{}, false
	}
	return d.waiting[0].name, d.waiting[0].at, true
}

// At is when a name is due; ok is false where it is not set.
func (d *Due[T]) At(name string) (at time.Time, ok bool) {
	if e := d.byName[name]; e != nil {
		return e.at, true
	}
	return time.Time{}, false
}

// Before returns the names that are due before a time, and when. What it costs grows
// with how many they are.
func (d *Due[T]) Before(end time.Time) map[string]time.Time {
	due := make(map[string]time.Time)
	var walk func(i int)
	walk = func(i int) {
		if i < len(d.waiting) && d.waiting[i].at.Before(end) { // else nothing below it is
			due[d.waiting[i].name] = d.waiting[i].at
			walk(2*i + 1)
			walk(2*i + 2)
		}
	}
	walk(0)
	return due
}

// Pop takes the first name out that is due by now; ok is false where none is.
func (d *Due[T]) Pop(now time.Time) (name string, value T, ok bool) {
	if len(d.waiting) == 0 || d.waiting[0].at.After(now) {
		return "", value, false
	}
	e := heap.Pop(&d.waiting).(*entry[T])
	delete(d.byName, e.name)
	return e.name, e.value, true
}

type entry[T any] struct {
	name  string
	at    time.Time
	value T
	index int // in the heap
}

// entries implements heap.Interface, the earliest time first; names due at the same
// time come in their order.
type entries[T any] []*entry[T]

func (h entries[T]) Len() int { return len(h) }

func (h entries[T]) Less(i, j int) bool {
	if !h[i].at.Equal(h[j].at) {
		return h[i].at.Before(h[j].at)
	}
	return h[i].name < h[j].name
}

func (h entries[T]) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *entries[T]) Push(x any) {
	e := x.(*entry[T])
	e.index = len(*h)
	*h = append(*h, e)
}

func (h *entries[T]) Pop() any {
	last := len(*h) - 1
	e := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return e
}
