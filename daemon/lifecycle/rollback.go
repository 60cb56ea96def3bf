package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// refused is why a roll back cannot be made, whenever it is tried.
func refused(format string, args ...any) error {
	return &Fault{Class: Permanent, Err: fmt.Errorf(format, args...)}
}

// RollbackTarget returns the generation that a roll back goes to: the one of that
// number, or for nil the one before the active one. Its error says why there is
// none that it can go to, as far as the journal knows.
func RollbackTarget(generations []Generation, to *int, now time.Time) (Generation, error) {
	active, ok := activeOf(generations)
	if !ok {
		return Generation{}, errors.New("there is no active generation yet, so there is nothing to roll back")
	}
	var g Generation
	found := false
	for _, other := range generations { // in ascending order
		switch {
		case to != nil && other.Number == *to:
			g, found = other, true
		case to == nil && other.Number < active.Number && other.Stage == Previous:
			g, found = other, true
		}
	}
	group := active.Group
	switch {
	case !found && to != nil:
		return g, fmt.Errorf("group %s has no generation %d: see byokctl keys %s", group, *to, group)
	case !found:
		return g, fmt.Errorf("generation %d is the first one: there is none before it", active.Number)
	case g.Stage == Active:
		return g, fmt.Errorf("generation %d is the active one already", g.Number)
	case g.KeyID == active.KeyID && g.Stage == Previous:
		return g, fmt.Errorf("generation %d is material of KMS key %s, as the active one: a rotation in place cannot be undone, in KMS neither. "+
			"What was encrypted with it still decrypts; --to can name a generation of another KMS key (byokctl keys %s)", g.Number, g.KeyID, group)
	}
	switch state := g.State(now); state {
	case "destroyed":
		return g, fmt.Errorf("generation %d is destroyed: there is nothing to point the alias at", g.Number)
	case "pending-deletion":
		return g, fmt.Errorf("generation %d: its KMS key %s will be deleted at %s; byokctl keep %s %d cancels that, then try again",
			g.Number, g.KeyID, g.DeletionDate.UTC().Format(time.RFC3339), group, g.Number)
	case "expired", "material-deleted":
		return g, fmt.Errorf("generation %d is %s: byokctl sync %s --generation %d brings its material back, then try again", g.Number, state, group, g.Number)
	case "pre-active":
		return g, fmt.Errorf("generation %d was never active: byokctl rotate %s goes on with it", g.Number, group)
	}
	if current, _ := byKey(generations, g.KeyID); current.Number != g.Number {
		return g, fmt.Errorf("generation %d is not what KMS key %s encrypts with, which is generation %d: use --to %d", g.Number, g.KeyID, current.Number, current.Number)
	}
	return g, nil
}

// rollbackCheck looks whether the alias can be pointed back at the generation.
func rollbackCheck(ctx context.Context, r *run, s *Step) (Change, error) {
	g, err := RollbackTarget(r.generations, &r.job.Generation, r.now())
	if err != nil {
		return Change{}, refused("%w", err)
	}
	now, err := r.ownAlias(ctx)
	if err != nil {
		return Change{}, err
	}
	if other, ok := byKey(r.generations, now.ID); ok && other.Stage == PreActive {
		return Change{}, refused("%s points at generation %d, whose rotation has not ended: let it end, then roll back", r.def.Alias, other.Number)
	}
	if err := r.rollbackReady(ctx, g); err != nil {
		return Change{}, err
	}
	s.Message = fmt.Sprintf("KMS key %s of generation %d is enabled", g.KeyID, g.Number)
	return Change{}, nil
}

// rollbackReady returns nil when the alias can be pointed back at the
// generation's key, and else refuses: what a person asked for now is not done
// when it can be done some day.
func (r *run) rollbackReady(ctx context.Context, g Generation) error {
	key, err := r.kms.DescribeKey(ctx, g.KeyID)
	switch {
	case errors.Is(err, ErrNotFound):
		return refused("generation %d: its KMS key %s no longer exists", g.Number, g.KeyID)
	case err != nil:
		return err
	}
	switch key.State {
	case "Enabled":
		return nil
	case "Disabled":
		return refused("generation %d: its KMS key %s is disabled: enable it (aws kms enable-key --key-id %s), then roll back", g.Number, g.KeyID, g.KeyID)
	case "PendingImport":
		return refused("generation %d: KMS key %s has no key material: byokctl sync %s --generation %d brings it back, then roll back", g.Number, g.KeyID, g.Group, g.Number)
	case "PendingDeletion":
		return refused("generation %d: its KMS key %s will be deleted at %s: byokctl keep %s %d cancels that, then roll back",
			g.Number, g.KeyID, key.DeletionDate.UTC().Format(time.RFC3339), g.Group, g.Number)
	}
	return refused("generation %d: its KMS key %s is in state %s", g.Number, g.KeyID, key.State)
}
