package hsm

import (
	"bytes"
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/pkcs11"
)

// objects is what a connection knows of the token's keys: the handles of those
// that it has made or found, and the latest list of all. Searching a token takes
// as long as it has objects (a third of a second for ten thousand in SoftHSM),
// while a handle leads to its object at once.
//
// A handle counts in all sessions of the process (PKCS#11 2.40, section 2.2,
// object handles) for as long as the login lasts, so objects ends with its
// connection. It is a hint all the same: who uses one reads in its own session
// what the object is, and searches if that is not the key, for others may have
// removed it and the token may give its handle to another object.
type objects struct {
	mu      sync.Mutex
	handles map[string]pkcs11.ObjectHandle // by CKA_ID

	list    []KeyRef  // in the order of label and ID
	at      time.Time // when the list began to be made; zero: there is none
	listing bool      // another is being made
	changes []change  // since that began
}

// A change is a key that was made or found, or is gone.
type change struct {
	ref    KeyRef
	handle pkcs11.ObjectHandle
	gone   bool
}

// handle returns the handle of the object with an ID, if one is known.
func (o *objects) handle(id []byte) (pkcs11.ObjectHandle, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	h, ok := o.handles[string(id)]
	return h, ok
}

// forget forgets the handle of the object with an ID.
func (o *objects) forget(id []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.handles, string(id))
}

// seen notes that a key is on the token, as the only object with its ID.
func (o *objects) seen(ref KeyRef, h pkcs11.ObjectHandle) { o.change(change{ref: ref, handle: h}) }

// gone notes that a key is not on the token.
func (o *objects) gone(ref KeyRef) { o.change(change{ref: ref, gone: true}) }

func (o *objects) change(c change) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.apply(c)
	if o.listing {
		o.changes = append(o.changes, c)
	}
}

// apply brings handles and list up to a change.
func (o *objects) apply(c change) {
	if o.handles == nil {
		o.handles = make(map[string]pkcs11.ObjectHandle)
	}
	if c.gone {
		delete(o.handles, string(c.ref.ID))
	} else {
		o.handles[string(c.ref.ID)] = c.handle
	}
	if o.at.IsZero() {
		return
	}
	i, ok := slices.BinarySearchFunc(o.list, c.ref, compareRefs)
	switch {
	case c.gone && ok:
		o.list = slices.Delete(o.list, i, i+1)
	case !c.gone && !ok:
		o.list = slices.Insert(o.list, i, c.ref)
	}
}

// begin notes that a list of all keys begins to be made.
func (o *objects) begin() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.listing, o.changes = true, nil
}

// end takes over the list that was begun at a time, and the handles of the keys in
// it; ok is false if it could not be made. What was made or removed meanwhile may
// or may not be in it.
func (o *objects) end(ok bool, at time.Time, refs []KeyRef, handles []pkcs11.ObjectHandle) {
	o.mu.Lock()
	defer o.mu.Unlock()
	changes := o.changes
	o.listing, o.changes = false, nil
	if !ok {
		return
	}
	o.handles = make(map[string]pkcs11.ObjectHandle, len(refs))
	several := make(map[string]bool)
	for i, ref := range refs {
		id := string(ref.ID)
		if _, there := o.handles[id]; there || len(id) == 0 {
			several[id] = true
		}
		o.handles[id] = handles[i]
	}
	maps.DeleteFunc(o.handles, func(id string, _ pkcs11.ObjectHandle) bool { return several[id] })
	slices.SortFunc(refs, compareRefs)
	o.list, o.at = refs, at
	for _, c := range changes {
		o.apply(c)
	}
}

// since returns the keys whose label begins with prefix, in a new slice, from a
// list that began to be made at the given time or later; ok is false if there is
// none.
func (o *objects) since(earliest time.Time, prefix string) (refs []KeyRef, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.at.IsZero() || o.at.Before(earliest) {
		return nil, false
	}
	from, _ := slices.BinarySearchFunc(o.list, KeyRef{Label: prefix}, compareRefs)
	to := from
	for to < len(o.list) && strings.HasPrefix(o.list[to].Label, prefix) {
		to++
	}
	return slices.Clone(o.list[from:to]), true
}

func compareRefs(a, b KeyRef) int {
	return cmp.Or(cmp.Compare(a.Label, b.Label), bytes.Compare(a.ID, b.ID))
}
