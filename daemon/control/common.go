package control

import (
	"fmt"
	"regexp"
	"strings"
)

// commonFrom is how many groups must have the same problem for it to be common.
const commonFrom = 3

// A CommonProblem is one that several groups have, such as a token that is away.
type CommonProblem struct {
	Problem     // as it is told of all of them, since the first of them has it
	Groups  int // how many have it
}

func (p CommonProblem) String() string {
	return fmt.Sprintf("%d groups have problem %s", p.Groups, p.Problem)
}

// CommonProblems are those that are told once for all their groups.
type CommonProblems []CommonProblem

// ofGroup are those parts of a problem's message that differ between groups and
// between one look and the next: IDs of jobs, keys and HSM objects, times,
// generations.
var ofGroup = regexp.MustCompile(`[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+Z|\b([0-9.]+(ms|µs|h|m|s))+\b|\bgeneration [0-9]+|byokd/\.\.\./[0-9]+`)

// general is a problem as it is told of all groups that have it.
func general(g GroupStatus, p Problem) Problem {
	if g.Alias != "" {
		p.Message = strings.ReplaceAll(p.Message, string(g.Alias), "alias/...")
	}
	p.Message = strings.NewReplacer("group "+g.Group+":", "group ...:", "group "+g.Group+" ", "group ... ", "group "+g.Group+",", "group ...,",
		"byokd/"+g.Group+"/", "byokd/.../", "/"+g.Group+".toml:", "/....toml:").Replace(p.Message)
	p.Message = ofGroup.ReplaceAllStringFunc(p.Message, func(s string) string {
		switch {
		case strings.HasPrefix(s, "generation "):
			return "generation ..."
		case strings.HasPrefix(s, "byokd/"):
			return "byokd/.../..."
		}
		return "..."
	})
	return p
}

type commonKey struct{ code, message string }

// FindCommon returns the problems that at least three of the groups have, in the
// order in which the groups have them.
func FindCommon(groups []GroupStatus) CommonProblems {
	found := make(map[commonKey]*CommonProblem)
	var order []*CommonProblem
	for _, g := range groups {
		seen := make(map[commonKey]bool)
		for _, p := range g.Problems {
			p = general(g, p)
			k := commonKey{p.Code, p.Message}
			c := found[k]
			if c == nil {
				c = &CommonProblem{Problem: p}
				found[k] = c
				order = append(order, c)
			}
			if !p.Since.IsZero() && p.Since.Before(c.Since.Time) {
				c.Since = p.Since
			}
			if !seen[k] {
				seen[k] = true
				c.Groups++
			}
		}
	}
	var common CommonProblems
	for _, c := range order {
		if c.Groups >= commonFrom {
			common = append(common, *c)
		}
	}
	return common
}

// Others returns the problems of a group that are not common.
func (c CommonProblems) Others(g GroupStatus) []Problem {
	if len(c) == 0 {
		return g.Problems
	}
	var others []Problem
next:
	for _, p := range g.Problems {
		general := general(g, p)
		for _, of := range c {
			if of.Code == general.Code && of.Message == general.Message {
				continue next
			}
		}
		others = append(others, p)
	}
	return others
}
