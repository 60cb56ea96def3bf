package config

import (
	"maps"
	"slices"
)

// Relations say which groups [CheckSet] has to see together: those that claim one
// alias, and those of which one was called what the other is called. Groups that
// are not related are nothing to each other, so that a change of one is judged
// without looking at the others.
type Relations struct {
	cfg     *Config
	ties    map[string]map[string]bool // by group
	groups  map[string]map[string]bool // by tie
	regions map[string]map[string]bool // groups by Region, where kms_endpoint is for one only
}

// NewRelations returns the relations between no groups yet, under a byokd.toml.
func NewRelations(cfg *Config) *Relations {
	return &Relations{cfg: cfg, ties: make(map[string]map[string]bool),
		groups: make(map[string]map[string]bool), regions: make(map[string]map[string]bool)}
}

// Set says which definitions a group has: that of its file, and the last good one
// where it is another. Those that are nil are passed over. A group without any is
// known by its name.
func (r *Relations) Set(group string, definitions ...*Group) {
	for tie := range r.ties[group] {
		remove(r.groups, tie, group)
	}
	for region := range r.regions {
		remove(r.regions, region, group)
	}
	ties := map[string]bool{"group " + group: true}
	for _, g := range definitions {
		if g == nil {
			continue
		}
		ties["alias "+account(g)+" "+g.AWS.Region+" "+g.AWS.Alias] = true
		if g.AWS.PreviousName != "" {
			ties["group "+g.AWS.PreviousName] = true
		}
		if oneRegion(r.cfg, g) {
			add(r.regions, g.AWS.Region, group)
		}
	}
	r.ties[group] = ties
	for tie := range ties {
		add(r.groups, tie, group)
	}
}

// Remove forgets a group.
func (r *Relations) Remove(group string) {
	r.Set(group)
	remove(r.groups, "group "+group, group)
	delete(r.ties, group)
}

// Of adds to the names of groups those of all that are related to them, directly
// or through others.
func (r *Relations) Of(names map[string]bool) {
	if len(r.regions) > 1 {
		for name := range r.ties { // what kms_endpoint allows only one of
			names[name] = true
		}
		return
	}
	seen := make(map[string]bool) // ties
	for todo := slices.Collect(maps.Keys(names)); len(todo) > 0; {
		name := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for tie := range r.ties[name] {
			if seen[tie] {
				continue
			}
			seen[tie] = true
			for other := range r.groups[tie] {
				if !names[other] {
					names[other] = true
					todo = append(todo, other)
				}
			}
		}
	}
}

func add(m map[string]map[string]bool, key, name string) {
	if m[key] == nil {
		m[key] = make(map[string]bool)
	}
	m[key][name] = true
}

func remove(m map[string]map[string]bool, key, name string) {
	if delete(m[key], name); len(m[key]) == 0 {
		delete(m, key)
	}
}
