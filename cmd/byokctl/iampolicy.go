package main

import (
	"fmt"
	"maps"
	"slices"

	"byokd/config"
	"byokd/daemon"
	"byokd/daemon/control"

	"github.com/spf13/cobra"
)

func (t *tool) iamPolicyCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "iam-policy [GROUP...]",
		Short: "Print the least IAM policy for the groups",
		Long: `Print the least IAM policy for what byokd does for the groups, or for all of them:
only the actions that their definitions ask for, only on keys that byokd has tagged
as theirs, on their aliases and on the event bus. Encrypt and Decrypt are granted
under the encryption context byokd-canary only, so that byokd reads nothing but its
own probe. It is made from the files, without a daemon and without AWS; print it
anew when groups come or change.

Each credential gets a document of its own, and with role_arn the role and who
assumes it one each; whose a document is stands before it on stderr. With --json
it is an array of {credential, role, account, policy, wide}.

The key policies must let IAM decide, as AWS's default key policy does.`,
		ValidArgsFunction: t.completeGroups,
		RunE: func(_ *cobra.Command, names []string) error {
			groups, err := t.groups(names)
			if err != nil {
				return err
			}
			policies := daemon.Policies(groups.cfg, groups.list)
			if t.json {
				return t.printJSON(control.List[daemon.PrincipalPolicy](policies))
			}
			for _, p := range policies {
				t.aboutPolicy(groups.cfg, p)
				if err := t.printJSON(p.Policy); err != nil {
					return err
				}
			}
			return nil
		},
	}
	t.jsonFlag(c)
	return c
}

// aboutPolicy says on stderr whose the policy is, and where it is wider than
// it could be.
func (t *tool) aboutPolicy(cfg *config.Config, p daemon.PrincipalPolicy) {
	switch role := cfg.Credentials[p.Credential].RoleARN; {
	case p.Role != "":
		fmt.Fprintf(t.stderr, "credential %q, for the role %s:\n", p.Credential, p.Role)
	case role != "":
		fmt.Fprintf(t.stderr, "credential %q, for who assumes the role %s:\n", p.Credential, role)
	case p.Account == "":
		fmt.Fprintf(t.stderr, "credential %q, with any account in the ARNs (set account in [credentials.%[1]s] to name it):\n", p.Credential)
	default:
		fmt.Fprintf(t.stderr, "credential %q:\n", p.Credential)
	}
	if p.Wide {
		fmt.Fprintln(t.stderr, "too long for a managed policy with each group in it, so wildcards stand for groups and aliases; named groups make it narrower")
	}
}

// A selection is the configuration and some of its groups.
type selection struct {
	cfg  *config.Config
	list []*config.Group // by name
}

// groups reads the files and returns the named groups, or all. A bad file among
// those that are wanted is an error.
func (t *tool) groups(names []string) (selection, error) {
	s, err := t.read(nil)
	if err != nil {
		return selection{}, err
	}
	problems := s.problems()
	if len(names) == 0 {
		if err := newProblems(problems, nil, nil); err != nil {
			return selection{}, err
		}
		names = slices.Collect(maps.Keys(s.set.Groups))
	}
	out := selection{cfg: s.cfg}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		switch {
		case problems[name] != nil:
			return selection{}, problems[name]
		case s.set.Groups[name] == nil:
			return selection{}, usage("there is no group %q in %s", name, s.cfg.GroupsDir).hint("byokctl check, which reads all of them")
		}
		out.list = append(out.list, s.set.Groups[name])
	}
	return out, nil
}
