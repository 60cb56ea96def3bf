package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// What is done about grants on the key that the alias leaves.
const (
	grantsCopy  = "copy"
	grantsBlock = "block"
)

// A Grant lets somebody do something with a KMS key.
type Grant struct {
	ID   string // of a grant that is there
	Name string // makes CreateGrant idempotent; "": none

	Grantee, GranteeService   string // one of them: an ARN, or the name of a service
	Retiring, RetiringService string // at most one of them
	Operations                []string

	// Constraints; nil and "": none.
	ContextEquals, ContextSubset map[string]string
	SourceARN                    string
}

// same reports whether two grants allow the same under the same name.
func (g Grant) same(other Grant) bool {
	return g.Name == other.Name && g.Grantee == other.Grantee && g.GranteeService == other.GranteeService &&
		g.Retiring == other.Retiring && g.RetiringService == other.RetiringService && g.SourceARN == other.SourceARN &&
		maps.Equal(g.ContextEquals, other.ContextEquals) && maps.Equal(g.ContextSubset, other.ContextSubset) &&
		slices.Equal(slices.Sorted(slices.Values(g.Operations)), slices.Sorted(slices.Values(other.Operations)))
}

// copied is the grant as it is to be on another key. One without a name gets one,
// so that it is not made twice.
func (g Grant) copied() Grant {
	if g.Name == "" {
		g.Name = "byokd:" + g.ID
	}
	g.ID = ""
	return g
}

// describeGrants says how many grants there are and who holds them.
func describeGrants(list []Grant) string {
	const shown = 5
	var who []string
	for _, g := range list {
		if len(who) == shown {
			who = append(who, "…")
			break
		}
		who = append(who, fmt.Sprintf("%s (%s)", g.Grantee+g.GranteeService, strings.Join(g.Operations, ", ")))
	}
	s := "s"
	if len(list) == 1 {
		s = ""
	}
	return fmt.Sprintf("%d grant%s: %s", len(list), s, strings.Join(who, "; "))
}

// grants looks, before the alias moves, at the grants on the key that it leaves,
// and does what the definition says: whoever holds one does not follow an alias.
func grants(ctx context.Context, r *run, s *Step) (Change, error) {
	g, err := r.own()
	if err != nil {
		return Change{}, err
	}
	if r.job.Kind == Rotate && r.inPlace(g) {
		return r.skip(s, "in place: grants stay with the KMS key")
	}
	left, err := r.ownAlias(ctx)
	if err != nil {
		return Change{}, err
	}
	if left.ID == "" || left.ID == g.KeyID {
		return r.skip(s, fmt.Sprintf("%s leaves no key", r.def.Alias))
	}
	list, err := r.kms.Grants(ctx, left.ID)
	switch {
	case errors.Is(err, ErrNotFound):
		return r.skip(s, "KMS key "+left.ID+" no longer exists")
	case (errors.Is(err, ErrDenied) || ClassOf(err) == Permanent) && r.def.Grants != grantsCopy && r.def.Grants != grantsBlock:
		r.log.Warn("it cannot be seen whether grants are left behind", "key_id", left.ID, "err", err)
		return r.skip(s, fmt.Sprintf("whether KMS key %s has grants could not be seen: %v", left.ID, err))
	case err != nil:
		return Change{}, err
	case len(list) == 0:
		s.Message = "there are no grants on KMS key " + left.ID
		return Change{}, nil
	}
	switch r.def.Grants {
	case grantsBlock:
		return Change{}, operator(WaitConfig, `KMS key %s, which %s is about to leave, has %s. They do not follow an alias (grants = "block"): `+
			`revoke them (aws kms revoke-grant), or write grants = "copy", grants = "warn" or mode = "in-place" under [rotation], or run byokctl retry once they are gone`,
			left.ID, r.def.Alias, describeGrants(list))
	case grantsCopy:
		return r.copyGrants(ctx, g, left, list, s)
	}
	s.Message = grantsLeft(left.ID, r.def.Alias, list)
	s.Data = mustJSON(list)
	r.log.Warn("grants are left behind on the key that the alias leaves", "key_id", left.ID, "grants", len(list))
	return Change{}, nil
}

// grantsLeft says what is left behind on a key.
func grantsLeft(keyID, alias string, list []Grant) string {
	return fmt.Sprintf("KMS key %s, which %s leaves, has %s. Who holds a grant goes on with that key", keyID, alias, describeGrants(list))
}

// GrantsLeft is what a job has found to be left behind; "": nothing.
func GrantsLeft(job *Job) string {
	for _, s := range job.Steps {
		if s.Name == "grants" && s.State == Done && len(s.Data) > 0 && job.Definition.Grants != grantsCopy {
			return s.Message
		}
	}
	return ""
}

// copyGrants makes the grants on the new key that are not on it yet.
func (r *run) copyGrants(ctx context.Context, g Generation, left Key, list []Grant, s *Step) (Change, error) {
	have, err := r.kms.Grants(ctx, g.KeyID)
	if err != nil {
		return Change{}, err
	}
	s.Data = mustJSON(list)
	if err := r.record(ctx, Change{Steps: []Step{*s}}); err != nil {
		return Change{}, err
	}
	for _, grant := range list {
		want := grant.copied()
		if slices.ContainsFunc(have, want.same) {
			continue
		}
		if err := r.kms.CreateGrant(ctx, g.KeyID, want); err != nil {
			return Change{}, fmt.Errorf("copy grant %s of %s: %w", grant.ID, grant.Grantee+grant.GranteeService, err)
		}
	}
	s.Message = fmt.Sprintf("KMS key %s has what KMS key %s has, %s", g.KeyID, left.ID, describeGrants(list))
	return Change{Audit: []AuditEntry{r.audit("copy grants", "from KMS key %s to %s: %s", left.ARN, g.KeyARN, describeGrants(list))}}, nil
}

// grants tells of those that are on the key which the alias has left last.
func (rec *reconciliation) grants(ctx context.Context) {
	if rec.def.Grants == grantsCopy {
		return
	}
	old := retirees(rec.sorted())
	if len(old) == 0 || old[0].State(rec.now()) != string(Previous) {
		return
	}
	list, err := rec.kms.Grants(ctx, old[0].KeyID)
	if err != nil { // nothing depends on it
		rec.Log.Debug("grants cannot be listed", "group", rec.def.Group, "key_id", old[0].KeyID, "err", err)
		return
	}
	if len(list) > 0 {
		rec.problem("grants", "%s", grantsLeft(old[0].KeyID, rec.def.Alias, list))
	}
}
