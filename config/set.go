package config

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// A Set is what LoadDir found in groups_dir. Each file is in one of its maps.
type Set struct {
	// Groups are the good ones, by name. Rules between groups are not checked
	// yet: see [CheckSet].
	Groups map[string]*Group

	// Problems are those of the bad ones, by name; by the file's name where
	// that is what is wrong.
	Problems map[string]Problems

	// Digest is the SHA-256, in hex, of all groups and problems: two Sets with
	// the same Digest say the same.
	Digest string
}

// LoadDir reads all group files of groups_dir, as [Dir.Read] does. A bad file is
// part of the Set; the error is for a directory that cannot be read, and then
// nothing is known of any group.
func LoadDir(cfg *Config, opts Options) (*Set, error) {
	d := NewDir(opts)
	if err := d.Read(cfg); err != nil {
		return nil, err
	}
	s := &Set{Groups: make(map[string]*Group), Problems: make(map[string]Problems)}
	for path, f := range d.files {
		if name := entry(path); f.problems == nil {
			s.Groups[name] = f.group
		} else {
			s.Problems[name] = f.problems
		}
	}
	s.Digest = s.digest()
	return s, nil
}

func (s *Set) digest() string {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(s.Groups)) {
		fmt.Fprintf(h, "group %s %s\n", name, s.Groups[name].Digest())
	}
	for _, name := range slices.Sorted(maps.Keys(s.Problems)) {
		fmt.Fprintf(h, "problems %q %q\n", name, s.Problems[name].Error())
	}
	return hex.EncodeToString(h.Sum(nil))
}

// CheckSet checks the rules between groups, and returns the problems of each
// group that breaks one, by name:
//
//   - In one account and Region an alias belongs to one group. Where several
//     claim it, the one that has a generation keeps it, and the others are
//     bad; if none or several have, all are. Two groups are in one account if
//     their credentials have the same account or, where none is given, are the
//     same credential. Former aliases are not claimed.
//   - A group that is Gone keeps its alias, except from a group that names it
//     as previous_name.
//   - No two groups have the same previous_name, nor one of a group that is
//     still there, as long as they have no generation of their own.
//   - With a kms_endpoint in byokd.toml that is not on loopback, all groups
//     that it is for are in one Region. The Region whose groups have
//     generations keeps it; if none or several have, all groups are bad. The
//     Problems stand at byokd.toml's key.
//
// groups are all that byokd knows: the good ones of a Set, the last good
// definitions of the bad ones and, with Gone set, of those whose file is gone.
// hasGeneration reports whether a group has one; nil: it is not known, and none
// has.
func CheckSet(cfg *Config, groups []*Group, hasGeneration func(group string) bool) map[string]Problems {
	if hasGeneration == nil {
		hasGeneration = func(string) bool { return false }
	}
	c := setCheck{
		cfg:           cfg,
		groups:        slices.SortedFunc(slices.Values(groups), func(a, b *Group) int { return strings.Compare(a.Name, b.Name) }),
		hasGeneration: hasGeneration,
		problems:      make(map[string]Problems),
	}
	c.aliases()
	c.previousNames()
	c.kmsEndpoint()
	for _, ps := range c.problems {
		ps.sort()
	}
	return c.problems
}

type setCheck struct {
	cfg           *Config
	groups        []*Group
	hasGeneration func(string) bool
	problems      map[string]Problems
}

func (c *setCheck) add(g *Group, p Problem) {
	if !g.Gone {
		c.problems[g.Name] = append(c.problems[g.Name], p)
	}
}

// account identifies a group's account as far as it is known.
func account(g *Group) string {
	if g.Account != "" {
		return g.Account
	}
	return "credential " + g.Credential
}

func (c *setCheck) aliases() {
	type place struct{ account, region, alias string }
	claims := make(map[place][]*Group)
	for _, g := range c.groups {
		p := place{account(g), g.AWS.Region, g.AWS.Alias}
		claims[p] = append(claims[p], g)
	}
	for _, claimants := range claims {
		// A group that is gone has left its alias to the one that it became.
		claimants = slices.DeleteFunc(slices.Clone(claimants), func(old *Group) bool {
			return old.Gone && slices.ContainsFunc(claimants, func(g *Group) bool { return !g.Gone && g.AWS.PreviousName == old.Name })
		})
		if len(claimants) < 2 {
			continue
		}
		var keepers []*Group
		for _, g := range claimants {
			if c.hasGeneration(g.Name) {
				keepers = append(keepers, g)
			}
		}
		for _, g := range claimants {
			if len(keepers) == 1 && keepers[0] == g {
				continue
			}
			others := slices.DeleteFunc(slices.Clone(claimants), func(o *Group) bool { return o == g })
			if len(keepers) == 1 {
				others = keepers
			}
			c.add(g, g.Problem("aws.alias", claimed(g.AWS.Alias, others)))
		}
	}
}

// claimed is the message for a group whose alias others claim too.
func claimed(alias string, others []*Group) string {
	if len(others) == 1 && others[0].Gone {
		return fmt.Sprintf("%s belongs to group %s, whose file is gone: if this file is that one renamed, add previous_name = %q to its [aws]; else choose another alias",
			alias, others[0].Name, others[0].Name)
	}
	names := make([]string, len(others))
	for i, o := range others {
		names[i] = o.Name
	}
	return fmt.Sprintf("%s is also claimed by group %s, in the same account and Region: give each group an alias of its own", alias, strings.Join(names, ", "))
}

func (c *setCheck) previousNames() {
	heirs := make(map[string][]*Group)
	there := make(map[string]bool)
	for _, g := range c.groups {
		if !g.Gone {
			there[g.Name] = true
			if g.AWS.PreviousName != "" && !c.hasGeneration(g.Name) {
				heirs[g.AWS.PreviousName] = append(heirs[g.AWS.PreviousName], g)
			}
		}
	}
	for name, groups := range heirs {
		for _, g := range groups {
			switch {
			case there[name]:
				c.add(g, g.Problem("aws.previous_name", fmt.Sprintf("group %s still has its file: remove that file, or previous_name here", name)))
			case len(groups) > 1:
				c.add(g, g.Problem("aws.previous_name", fmt.Sprintf("group %s is the previous_name of several groups: keep it in one of them", name)))
			}
		}
	}
}

// oneRegion reports whether a group is of those that have to be in one Region,
// since kms_endpoint is for them.
func oneRegion(cfg *Config, g *Group) bool {
	endpoint := cfg.AWS.KMSEndpoint
	return endpoint != "" && !loopbackEndpoint(endpoint) && !g.Gone && cfg.AWS.Endpoints[g.AWS.Region].KMS == ""
}

func (c *setCheck) kmsEndpoint() {
	regions := make(map[string][]*Group)
	used := make(map[string]bool) // Regions with a generation
	for _, g := range c.groups {
		if !oneRegion(c.cfg, g) {
			continue
		}
		regions[g.AWS.Region] = append(regions[g.AWS.Region], g)
		if c.hasGeneration(g.Name) {
			used[g.AWS.Region] = true
		}
	}
	if len(regions) < 2 {
		return
	}
	all := slices.Sorted(maps.Keys(regions))
	msg := fmt.Sprintf("is for one Region only, but groups are in %s: write [aws.endpoints.REGION] with kms = for each", strings.Join(all, ", "))
	for region, groups := range regions {
		if len(used) == 1 && used[region] {
			continue
		}
		for _, g := range groups {
			c.add(g, c.cfg.Problem("aws.kms_endpoint", msg))
		}
	}
}
