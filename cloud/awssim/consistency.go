package awssim

import (
	"maps"
	"time"
)

// Consistency makes reads lag behind writes, as AWS's do for a while. All times
// are by the simulator's clock. AWS's lags are different each time and mostly
// short; a simulator's are always as long as they are set.
type Consistency struct {
	// NewKeys is how long a new key is not found by any operation.
	NewKeys time.Duration

	// Aliases is how long readers of an alias see it as it was before a change:
	// absent, at another key, or still there. CreateAlias, UpdateAlias and
	// DeleteAlias see the truth.
	Aliases time.Duration

	// Tagging is how long GetResources shows a key's tags as they were before,
	// and a new key not at all.
	Tagging time.Duration
}

// A past is what a reader sees until a time.
type past[T any] struct {
	was   T
	until time.Time
}

// seen returns what a reader sees of a value that has a past. Entries that
// nobody sees any more are taken off the list.
func seen[T any](list *[]past[T], is T, now time.Time) T {
	for len(*list) > 0 {
		if first := (*list)[0]; now.Before(first.until) {
			return first.was
		}
		*list = (*list)[1:]
	}
	return is
}

// visible reports whether a key can be found.
func (c *call) visible(k *key) bool {
	return !c.now.Before(k.created.Add(c.sim.options.Consistency.NewKeys))
}

// changeAlias makes a name an alias, or another one, or none.
func (c *call) changeAlias(name string, to *alias) {
	if lag := c.sim.options.Consistency.Aliases; lag > 0 {
		entry := past[*alias]{c.realm.aliases[name], c.now.Add(lag)}
		c.realm.pastAliases[name] = append(c.realm.pastAliases[name], entry)
	}
	if to == nil {
		delete(c.realm.aliases, name)
		return
	}
	c.realm.aliases[name] = to
}

// readAlias returns an alias as a reader sees it, nil if they see none.
func (c *call) readAlias(name string) *alias {
	list, ok := c.realm.pastAliases[name]
	if !ok {
		return c.realm.aliases[name]
	}
	a := seen(&list, c.realm.aliases[name], c.now)
	if c.realm.pastAliases[name] = list; len(list) == 0 {
		delete(c.realm.pastAliases, name)
	}
	return a
}

// readAliases returns all aliases as a reader sees them.
func (c *call) readAliases() map[string]*alias {
	all := maps.Clone(c.realm.aliases)
	for name := range c.realm.pastAliases {
		if a := c.readAlias(name); a != nil {
			all[name] = a
		} else {
			delete(all, name)
		}
	}
	return all
}

// tagsChange notes that a key's tags are about to change.
func (c *call) tagsChange(k *key) {
	if lag := c.sim.options.Consistency.Tagging; lag > 0 {
		k.pastTags = append(k.pastTags, past[map[string]string]{maps.Clone(k.tags), c.now.Add(lag)})
	}
}

// readTags returns a key's tags as GetResources sees them, and whether it sees
// the key.
func (c *call) readTags(k *key) (tags map[string]string, visible bool) {
	return seen(&k.pastTags, k.tags, c.now), !c.now.Before(k.created.Add(c.sim.options.Consistency.Tagging))
}
