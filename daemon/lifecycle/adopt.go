package lifecycle

import (
	"context"
	"errors"
	"fmt"
)

// adoptCheck looks at the KMS key that a reconciliation has taken over because
// active_key_id names it, and says what became of it.
func adoptCheck(ctx context.Context, r *run, s *Step) (Change, error) {
	g, err := r.own()
	if err != nil {
		return Change{}, err
	}
	key, err := r.kms.DescribeKey(ctx, g.KeyID)
	if errors.Is(err, ErrNotFound) {
		return Change{}, operator(WaitConfig, "active_key_id: KMS key %s no longer exists: the next rotation makes a key, or restore it, then run byokctl retry", g.KeyID)
	}
	if err != nil {
		return Change{}, err
	}
	switch {
	case g.Stage == PreActive:
		s.Message = fmt.Sprintf("KMS key %s never had key material: the first rotation imports that of generation %d into it", g.KeyID, g.Number)
	case g.HSMID != "":
		s.Message = fmt.Sprintf("KMS key %s is generation %d: its material is on the token as %s", g.KeyID, g.Number, g.HSMLabel)
	case key.Origin == "EXTERNAL":
		s.Message = fmt.Sprintf("KMS key %s is generation %d: byokd does not have its material and never imports it; whoever has it keeps it from expiring", g.KeyID, g.Number)
	default:
		s.Message = fmt.Sprintf("KMS key %s is generation %d, of origin %s: its material is AWS's, not the HSM's. The first rotation leaves it; what it has encrypted needs it on", g.KeyID, g.Number, key.Origin)
	}
	r.log.Info("KMS key adopted", "key_id", g.KeyID, "generation", g.Number, "message", s.Message)
	return Change{}, nil
}

// adoptAlias creates the alias at the adopted key where there is none. One that is
// there stays where it is until the first rotation, and one that points elsewhere
// is somebody's.
func adoptAlias(ctx context.Context, r *run, s *Step) (Change, error) {
	c, err := r.ensureAlias(ctx, s)
	if err == nil && len(c.Steps) == 0 {
		r.emitNothing(&c)
	}
	return c, err
}
