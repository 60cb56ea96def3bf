package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Keepable returns why the generation cannot be kept from retirement; nil: it can.
func (g Generation) Keepable(now time.Time) error {
	if state := g.State(now); g.Stage != Previous || g.KeyID == "" || state == "destroyed" {
		return fmt.Errorf("generation %d is %s: only one that the alias has left, and that still is, can be kept", g.Number, state)
	}
	return nil
}

// keepCheck records that a person keeps the generation's KMS key, or with
// RetireRelease that nobody does any more, and plans its retirement anew.
func keepCheck(ctx context.Context, r *run, g Generation, s *Step) (Change, error) {
	if err := g.Keepable(r.now()); err != nil {
		return Change{}, &Fault{Class: Permanent, Err: err}
	}
	verb := "keep generation"
	switch keep := r.job.Request.Retire == RetireKeep; {
	case keep && g.KeptAt.IsZero():
		g.KeptAt = r.now()
		s.Message = fmt.Sprintf("generation %d, KMS key %s, is kept: nothing of it is retired until the alias has pointed at it again", g.Number, g.KeyID)
	case keep:
		return r.skip(s, fmt.Sprintf("generation %d is kept since %s", g.Number, g.KeptAt.UTC().Format(time.RFC3339)))
	case g.KeptAt.IsZero():
		return r.skip(s, fmt.Sprintf("generation %d was not kept", g.Number))
	default:
		g.KeptAt, verb = time.Time{}, "release generation"
		s.Message = fmt.Sprintf("generation %d is no longer kept: it is retired as the definition says", g.Number)
	}
	return Change{Generations: []Generation{g}, Plan: r.plan([]Generation{g}),
		Audit: []AuditEntry{r.audit(verb, "generation %d, KMS key %s", g.Number, g.KeyARN)}}, nil
}

// keepKey cancels the deletion of the KMS key of a generation that is kept. The
// key is then as it was before: KMS leaves it disabled, so that one that was not
// is enabled. One without material gets it back by a synchronization. One that
// byokd had disabled and a person has enabled counts as enabled from then on.
func keepKey(ctx context.Context, r *run, g Generation, s *Step) (Change, error) {
	if r.job.Request.Retire == RetireRelease {
		return r.retireNothing(s, "what is due is done by jobs of its own")
	}
	key, err := r.kms.DescribeKey(ctx, g.KeyID)
	switch {
	case errors.Is(err, ErrNotFound):
		return Change{}, &Fault{Class: Permanent, Err: fmt.Errorf("KMS key %s no longer exists: nothing can be kept of it", g.KeyID)}
	case err != nil:
		return Change{}, err
	case key.State == "Enabled" && g.DeletionDate.IsZero() && !g.DisabledAt.IsZero() && r.now().Sub(g.DisabledAt) > settleLook:
		c, err := r.retireNothing(s, fmt.Sprintf("KMS key %s, which byokd had disabled, was enabled by a person and stays so", g.KeyID))
		g.DisabledAt = time.Time{}
		c.Generations = []Generation{g}
		return c, err
	case key.State != "PendingDeletion" && g.DeletionDate.IsZero():
		return r.retireNothing(s, fmt.Sprintf("KMS key %s is not scheduled for deletion", g.KeyID))
	case key.State == "PendingDeletion":
		if g.DeletionDate.IsZero() { // not by byokd: how it was before is not known
			g.DeletionDate = key.DeletionDate
			if g.DisabledAt.IsZero() {
				g.DisabledAt = r.now()
			}
			if err := r.record(ctx, Change{Generations: []Generation{g}}); err != nil {
				return Change{}, err
			}
		}
		if err := r.kms.CancelDeletion(ctx, g.KeyID); err != nil && !errors.Is(err, ErrState) { // cancelled since the look
			return Change{}, err
		}
		if key, err = r.until(ctx, "cancel the deletion of "+g.KeyID, g.KeyID, func(k Key) bool { return k.State != "PendingDeletion" }); err != nil {
			return Change{}, err
		}
	}
	if key.State == "Disabled" && g.DisabledAt.IsZero() {
		if err := r.kms.EnableKey(ctx, g.KeyID); err != nil {
			return Change{}, err
		}
		if key, err = r.until(ctx, "enable "+g.KeyID, g.KeyID, func(k Key) bool { return k.State == "Enabled" }); err != nil {
			return Change{}, err
		}
	}
	g.DeletionDate = time.Time{}
	s.Message = fmt.Sprintf("the deletion of KMS key %s is cancelled; it is in state %s", g.KeyID, key.State)
	switch key.State {
	case "PendingImport":
		s.Message += fmt.Sprintf(": byokctl sync %s --generation %d imports its material again", g.Group, g.Number)
	case "Disabled":
		s.Message += ", as before: enable it in KMS to use it"
	}
	c := Change{Generations: []Generation{g}, Audit: []AuditEntry{r.audit("cancel deletion", "KMS key %s of generation %d", g.KeyARN, g.Number)}}
	r.emitNothing(&c)
	return c, nil
}

// until looks at a key until it is as wanted, and returns it.
func (r *run) until(ctx context.Context, what, keyID string, wanted func(Key) bool) (key Key, err error) {
	err = r.poll(ctx, what, func() (bool, error) {
		key, err = r.kms.DescribeKey(ctx, keyID)
		return err == nil && wanted(key), err
	})
	return key, err
}
