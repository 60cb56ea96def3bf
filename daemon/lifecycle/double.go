package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// retireDouble is the job that schedules the deletion of a double of a
// generation's KMS key. It is made once, however often the double is found.
func (e *Engine) retireDouble(def Definition, trigger string, generation int, keyID string) NewJob {
	return NewJob{Kind: Retire, Group: def.Group, Generation: generation, Trigger: trigger, UniqueKey: "retire:double:" + keyID,
		DueAt: e.now(), Definition: def, Request: Request{Retire: RetireDouble, KeyID: keyID}}
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
