package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// inUseWithin is how recent a cryptographic operation must be for a key to count
// as in use.
const inUseWithin = 24 * time.Hour

// retireCheck looks whether there is something to retire, and whether it may be.
func retireCheck(ctx context.Context, r *run, s *Step) (Change, error) {
	g, err := r.own()
	if err != nil {
		return Change{}, err
	}
	why, ok, err := r.mayRetire(ctx, g)
	if err != nil {
		return Change{}, err
	}
	if !ok {
		return r.skip(s, why)
	}
	s.Message = why
	return Change{}, nil
}

// mayRetire returns why the job's retirement may be done; ok = false and why
// where there is nothing to do.
func (r *run) mayRetire(ctx context.Context, g Generation) (why string, ok bool, err error) {
	switch r.job.Request.Retire {
	case "disable":
		return r.mayDisable(ctx, g)
	case "double":
		return r.mayRemoveDouble(ctx, g)
	}
	return "", false, &Fault{Class: Permanent, Err: fmt.Errorf("no retirement %q is known", r.job.Request.Retire)}
}

// retire does it. It looks once more whether it may: days can lie between the
// check and an attempt that succeeds.
func retire(ctx context.Context, r *run, s *Step) (Change, error) {
	g, err := r.own()
	if err != nil {
		return Change{}, err
	}
	if check := r.step("check"); check.State == Skipped {
		return r.retireNothing(s, check.Message)
	}
	if r.job.Request.Retire == "double" {
		return removeDouble(ctx, r, g, s)
	}
	return disable(ctx, r, g, s)
}

func (r *run) retireNothing(s *Step, why string) (Change, error) {
	c, err := r.skip(s, why)
	r.emitNothing(&c)
	return c, err
}

// mayDisable looks whether no alias points at the generation's key and nothing
// uses it. It returns why, and ok = false where there is nothing to retire.
func (r *run) mayDisable(ctx context.Context, g Generation) (why string, ok bool, err error) {
	switch {
	case g.Stage != Previous || !g.DeletionDate.IsZero() || !g.DisabledAt.IsZero():
		return fmt.Sprintf("generation %d is %s: nothing to retire", g.Number, g.State(r.now())), false, nil
	case names(r.def.ActiveKeyID, g.KeyID):
		return fmt.Sprintf("active_key_id names KMS key %s: it is not retired", g.KeyID), false, nil
	}
	// The alias may have left the key a moment ago, and KMS shows that late.
	var pointing []string
	err = r.poll(ctx, "aliases of "+g.KeyID, func() (bool, error) {
		pointing, err = r.aliasesOf(ctx, g.KeyID)
		return err == nil && len(pointing) == 0, err
	})
	if len(pointing) > 0 && ClassOf(err) == Transient {
		return "", false, operator(WaitAlias, "%s points at KMS key %s: a key that an alias points at is not retired; "+
			"move the alias, then run byokctl retry", strings.Join(pointing, ", "), g.KeyID)
	}
	if err != nil {
		return "", false, err
	}
	if r.def.DisablePreviousAfter == 0 {
		return "no alias points at it; the definition wants it disabled at once", true, nil
	}
	last, known, err := lastUsage(ctx, r.kms, g.KeyID)
	switch {
	case err != nil:
		return "", false, err
	case !known:
		return "no alias points at it; whether it is in use KMS does not say", true, nil
	case r.kms.Now().Sub(last) < inUseWithin:
		return "", false, &Fault{Class: Transient, Err: fmt.Errorf("KMS key %s was used at %s: it is disabled once it has not been used for %s",
			g.KeyID, last.UTC().Format(time.RFC3339), inUseWithin)}
	}
	return "no alias points at it; last used " + last.UTC().Format(time.RFC3339), true, nil
}

// lastUsage returns when a key was last used. Where KMS does not say, or not to
// byokd, known is false.
func lastUsage(ctx context.Context, kms KMS, keyID string) (at time.Time, known bool, err error) {
	at, known, err = kms.LastUsage(ctx, keyID)
	if errors.Is(err, ErrDenied) || ClassOf(err) == Permanent {
		return at, false, nil
	}
	return at, known && !at.IsZero(), err
}

// aliasesOf returns the aliases that point at a key, by a look at each alias of
// the definition and at KMS's list where byokd may see it.
func (r *run) aliasesOf(ctx context.Context, keyID string) ([]string, error) {
	var pointing []string
	for _, alias := range append([]string{r.def.Alias}, r.def.FormerAliases...) {
		key, err := target(ctx, r.kms, alias)
		if err != nil {
			return nil, err
		}
		if key.ID == keyID {
			pointing = append(pointing, alias)
		}
	}
	listed, err := r.kms.KeyAliases(ctx, keyID)
	if err != nil && !errors.Is(err, ErrDenied) && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	pointing = append(pointing, listed...)
	slices.Sort(pointing)
	return slices.Compact(pointing), nil
}

// disable disables the generation's key.
func disable(ctx context.Context, r *run, g Generation, s *Step) (Change, error) {
	why, ok, err := r.mayDisable(ctx, g)
	if err != nil {
		return Change{}, err
	}
	if !ok {
		return r.retireNothing(s, why)
	}
	key, err := r.kms.DescribeKey(ctx, g.KeyID)
	switch {
	case errors.Is(err, ErrNotFound):
		return r.retireNothing(s, "KMS key "+g.KeyID+" no longer exists")
	case err != nil:
		return Change{}, err
	case key.State == "PendingImport":
		// Material that comes back would come back enabled: that the definition
		// wants it disabled is kept.
		c, err := r.retireNothing(s, "KMS key "+g.KeyID+" has no key material; should it get it back, it is disabled")
		g.DisabledAt = r.now()
		c.Generations = []Generation{g}
		return c, err
	case key.State != "Enabled" && key.State != "Disabled":
		return r.retireNothing(s, fmt.Sprintf("KMS key %s is in state %s and cannot be disabled", g.KeyID, key.State))
	case key.State == "Enabled":
		if err := r.kms.DisableKey(ctx, g.KeyID); err != nil {
			return Change{}, err
		}
	}
	g.DisabledAt = r.now()
	s.Message = "disabled KMS key " + g.KeyID
	c := Change{Generations: []Generation{g}, Audit: []AuditEntry{r.audit("disable KMS key", "%s of generation %d", g.KeyARN, g.Number)}}
	r.emit(&c, KeyDisabled, g.Account, resources(g.KeyARN), map[string]any{"key_id": g.KeyID, "generation": g.Number})
	return c, nil
}

// retireDouble is the job that schedules the deletion of a double of a
// generation's KMS key. It is made once, however often the double is found.
func (e *Engine) retireDouble(def Definition, trigger string, generation int, keyID string) NewJob {
	return NewJob{Kind: Retire, Group: def.Group, Generation: generation, Trigger: trigger, UniqueKey: "retire:double:" + keyID,
		DueAt: e.now(), Definition: def, Request: Request{Retire: "double", KeyID: keyID}}
}

// mayRemoveDouble looks whether a KMS key is a double of the generation's own
// that nobody has ever used.
func (r *run) mayRemoveDouble(ctx context.Context, g Generation) (why string, ok bool, err error) {
	id := r.job.Request.KeyID
	key, err := r.kms.DescribeKey(ctx, id)
	switch {
	case errors.Is(err, ErrNotFound):
		return fmt.Sprintf("KMS key %s no longer exists", id), false, nil
	case err != nil:
		return "", false, err
	case key.State != "PendingImport" || key.MaterialID != "":
		return fmt.Sprintf("KMS key %s is in state %s or has had key material: byokd leaves it alone", id, key.State), false, nil
	case key.ID == g.KeyID:
		return fmt.Sprintf("KMS key %s is generation %d", id, g.Number), false, nil
	}
	tags, err := r.kms.KeyTags(ctx, id)
	if err != nil {
		return "", false, err
	}
	if tags[TagJob] != g.JobID || tags[TagHSMID] != g.HSMID || g.JobID == "" {
		return fmt.Sprintf("KMS key %s does not have the tags of generation %d: byokd leaves it alone", id, g.Number), false, nil
	}
	pointing, err := r.aliasesOf(ctx, id)
	if err != nil {
		return "", false, err
	}
	if len(pointing) > 0 {
		return fmt.Sprintf("%s points at KMS key %s: byokd leaves it alone", strings.Join(pointing, ", "), id), false, nil
	}
	return fmt.Sprintf("KMS key %s was made beside that of generation %d and never used", id, g.Number), true, nil
}

// removeDouble schedules the deletion of a double.
func removeDouble(ctx context.Context, r *run, g Generation, s *Step) (Change, error) {
	id := r.job.Request.KeyID
	key, err := r.kms.DescribeKey(ctx, id)
	if errors.Is(err, ErrNotFound) {
		return r.retireNothing(s, "KMS key "+id+" no longer exists")
	}
	if err != nil {
		return Change{}, err
	}
	date := key.DeletionDate // set when an attempt did not come to record it
	if key.State != "PendingDeletion" {
		why, ok, err := r.mayRemoveDouble(ctx, g)
		if err != nil {
			return Change{}, err
		}
		if !ok {
			return r.retireNothing(s, why)
		}
		if date, err = r.kms.ScheduleDeletion(ctx, id, deletionDays); err != nil {
			return Change{}, err
		}
	}
	s.Message = fmt.Sprintf("KMS key %s will be deleted at %s", id, date.UTC().Format(time.RFC3339))
	c := Change{Audit: []AuditEntry{r.audit("schedule deletion", "KMS key %s, a double of generation %d, KMS key %s, that was never used", key.ARN, g.Number, orNone(g.KeyARN))}}
	r.emit(&c, DeletionSet, key.Account, resources(key.ARN), map[string]any{"key_id": id, "generation": g.Number})
	return c, nil
}
