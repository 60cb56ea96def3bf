package daemon

import (
	"runtime/debug"
	samples "runtime/metrics"
)

const (
	// muchMemory is how many bytes that are not in use are worth a collection to give
	// them back.
	muchMemory = 6 << 20

	// restLooks is for how many looks they must have been there, and byokd at rest.
	restLooks = 3
)

// spareMemory gives memory back to the system while byokd is at rest. Left to itself
// Go keeps as much again as is in use, for the next piece of work: after ten
// thousand files were read, for ever.
type spareMemory struct {
	last  []samples.Sample
	looks int
	left  uint64 // what the last collection could not give back
}

// look is called every now and then.
func (m *spareMemory) look(atRest bool) {
	if m.last == nil {
		m.last = []samples.Sample{{Name: "/memory/classes/heap/free:bytes"}, {Name: "/memory/classes/heap/unused:bytes"},
			{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/heap/live:bytes"}}
	}
	if spare := m.spare(); !atRest || spare < m.left+muchMemory {
		m.looks = 0
		return
	}
	if m.looks++; m.looks < restLooks {
		return
	}
	debug.FreeOSMemory()
	m.looks, m.left = 0, m.spare()
}

// spare is how many bytes are kept from the system and not in use: free, and free in
// part, and what is no longer used since the last collection.
func (m *spareMemory) spare() uint64 {
	samples.Read(m.last)
	spare := m.last[0].Value.Uint64() + m.last[1].Value.Uint64()
	if objects, live := m.last[2].Value.Uint64(), m.last[3].Value.Uint64(); objects > live {
		spare += objects - live
	}
	return spare
}
