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
	ties    map[string][]string        // by group
	groups  map[string][]string        // by tie
	regions map[string]map[string]bool // groups by Region, where kms_endpoint is for one only
}

// NewRelations returns the relations between no groups yet, under a byokd.toml.
func NewRelations(cfg *Config) *Relations {
	return &Relations{cfg: cfg, ties: make(map[string][]string),
		groups: make(map[string][]string), regions: make(map[string]map[string]bool)}
}

// Set says which definitions a group has: that of its file, and the last good one
// where it is another. Those that are nil are passed over. A group without any is
// known by its name.
func (r *Relations) Set(group string, definitions ...*Group) {
	r.untie(group)
	for region := range r.regions {
		remove(r.regions, region, group)
	}
	ties := []string{"group " + group}
	tie := func(to string) {
		if !slices.Contains(ties, to) {
			ties = append(ties, to)
		}
	}
	for _, g := range definitions {
		if g == nil {
			continue
		}
		tie("alias " + account(g) + " " + g.AWS.Region + " " + g.AWS.Alias)
		if g.AWS.PreviousName != "" {
			tie("group " + g.AWS.PreviousName)
		}
		if oneRegion(r.cfg, g) {
			add(r.regions, g.AWS.Region, group)
		}
	}
	r.ties[group] = slices.Clip(ties)
	for _, tie := range ties {
		r.groups[tie] = append(r.groups[tie], group)
	}
}

// untie takes a group from its ties.
func (r *Relations) untie(group string) {
	for _, tie := range r.ties[group] {
		left := slices.DeleteFunc(r.groups[tie], func(name string) bool { return name == group })
		if len(left) == 0 {
			delete(r.groups, tie)
		} else {
			r.groups[tie] = left
		}
	}
	delete(r.ties, group)
}

// Remove forgets a group.
func (r *Relations) Remove(group string) {
	r.untie(group)
	for region := range r.regions {
		remove(r.regions, region, group)
	}
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
		for _, tie := range r.ties[name] {
			if seen[tie] {
				continue
			}
			seen[tie] = true
			for _, other := range r.groups[tie] {
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
