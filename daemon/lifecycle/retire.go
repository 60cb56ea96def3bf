package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// What a retire job does.
const (
	RetireDisable  = "disable"  // the generation's KMS key is disabled
	RetireMaterial = "material" // its key material is deleted from KMS
	RetireDelete   = "delete"   // the deletion of its KMS key is scheduled

	// RetireDouble schedules the deletion of the KMS key Request.KeyID, which an
	// unanswered CreateKey made beside the generation's own.
	RetireDouble = "double"

	// RetireKeep ends the generation's retirement, the scheduled deletion of its
	// KMS key included, and RetireRelease ends that.
	RetireKeep    = "keep"
	RetireRelease = "release"
)

const (
	// inUseWithin is how recent a cryptographic operation must be for a key to
	// count as in use: for what can be taken back at once, and for the deletion
	// of the key.
	inUseWithin      = 24 * time.Hour
	inUseForDeletion = 7 * 24 * time.Hour
)

// A retiree is a KMS key that the alias has left, as the newest of the generations
// in it: with rotation in place there are several.
type retiree struct {
	Generation
	count int
}

// retirees are the KMS keys of which no generation is or may become active, the
// one that the alias has left last first.
func retirees(generations []Generation) (list []retiree) {
	last := LastRotation(generations)
	for _, g := range generations {
		all := materialsOf(generations, g.KeyID)
		if len(all) == 0 || all[len(all)-1].Number != g.Number || slices.ContainsFunc(all, func(g Generation) bool { return g.Stage != Previous }) {
			continue
		}
		k := retiree{g, len(all)}
		for _, other := range all {
			if other.LeftAt.After(k.LeftAt) {
				k.LeftAt = other.LeftAt
			}
		}
		if k.LeftAt.IsZero() {
			k.LeftAt = last // not later than that
		}
		list = append(list, k)
	}
	slices.SortFunc(list, func(a, b retiree) int { return cmp.Or(b.LeftAt.Compare(a.LeftAt), b.Number-a.Number) })
	return list
}

// LastRotation is when a generation was last made active or adopted; a roll back
// is neither. Zero: never.
func LastRotation(generations []Generation) (at time.Time) {
	for _, g := range generations {
		if (g.Stage == Active || g.Stage == Previous) && g.ActivatedAt.After(at) {
			at = g.ActivatedAt
		}
	}
	return at
}

// Retirements is the plan of what is to be retired of a group under a
// definition. A key that is kept, or that the definition's active_key_id names,
// is not in it; generation 0 only where the definition manages it.
//
// Each step is due so long after the alias has left the key; the deletion of
// material, after its last import, if that was later. What goes beyond
// keep_generations is disabled as soon as it does: so many generations, the
// active ones and those that the alias has left last, stay usable.
func Retirements(def Definition, generations []Generation, trigger string, now time.Time) *Plan {
	p := &Plan{Group: def.Group}
	old := retirees(generations)
	var newest time.Time // since when as many are beyond keep_generations as are
	usable := def.KeepGenerations
	if active, ok := activeOf(generations); ok {
		usable -= len(materialsOf(generations, active.KeyID))
	}
	if len(old) > 0 {
		newest = old[0].LeftAt
	}
	for _, k := range old {
		if !k.KeptAt.IsZero() || !k.DeletionDate.IsZero() || names(def.ActiveKeyID, k.KeyID) || k.Number == 0 && !def.ManageAdopted {
			continue
		}
		add := func(action string, due time.Time) {
			p.Jobs = append(p.Jobs, NewJob{Kind: Retire, Group: def.Group, Generation: k.Number, Trigger: trigger,
				UniqueKey: fmt.Sprintf("%s%s:%d", PlanKey, action, k.Number), DueAt: due, Definition: def, Request: Request{Retire: action}})
		}
		var disable time.Time
		if def.DisablePrevious {
			disable = k.LeftAt.Add(def.DisablePreviousAfter)
		}
		if def.KeepGenerations > 0 && k.usable(now) {
			if usable <= 0 && (disable.IsZero() || newest.Before(disable)) {
				disable = newest
			}
			usable -= k.count
		}
		if k.DisabledAt.IsZero() && !disable.IsZero() {
			add(RetireDisable, disable)
		}
		if after := def.DeletePreviousMaterialAfter; after != nil && k.ownMaterial() && k.MaterialDeletedAt.IsZero() {
			from := k.LeftAt
			if k.ImportedAt.After(from) {
				from = k.ImportedAt
			}
			add(RetireMaterial, from.Add(*after))
		}
		if after := def.SchedulePreviousDeletionAfter; after != nil {
			add(RetireDelete, k.LeftAt.Add(*after))
		}
	}
	return p
}

// usable reports whether the key can encrypt and decrypt as far as is recorded.
func (k retiree) usable(now time.Time) bool { return k.State(now) == string(Previous) }

// ownMaterial reports whether the key's material may be deleted: byokd can bring
// it back, and it is all that the key has. One of several in a key is not deleted,
// since that stops all of it.
func (k retiree) ownMaterial() bool { return k.HSMID != "" && k.count == 1 }

// retireCheck looks whether there is something to retire, and whether it may be.
func retireCheck(ctx context.Context, r *run, s *Step) (Change, error) {
	g, err := r.own()
	if err != nil {
		return Change{}, err
	}
	var why string
	var ok bool
	switch r.job.Request.Retire {
	case RetireDisable, RetireMaterial, RetireDelete:
		var key Key
		if key, why, err = r.toRetire(ctx, g); err == nil && why == "" {
			why, err = r.mayRetire(ctx, g, key)
			ok = true
		}
	case RetireKeep, RetireRelease:
		return keepCheck(ctx, r, g, s)
	case RetireDouble:
		why, ok, err = r.mayRemoveDouble(ctx, g)
	default:
		err = &Fault{Class: Permanent, Err: fmt.Errorf("no retirement %q is known", r.job.Request.Retire)}
	}
	if err != nil {
		return Change{}, err
	}
	if !ok {
		return r.skip(s, why)
	}
	s.Message = why
	return Change{}, nil
}

// retire does it. It looks once more whether it may: days can lie between the
// check and an attempt that succeeds.
func retire(ctx context.Context, r *run, s *Step) (Change, error) {
	g, err := r.own()
	if err != nil {
		return Change{}, err
	}
	switch r.job.Request.Retire {
	case RetireKeep, RetireRelease:
		return keepKey(ctx, r, g, s)
	}
	if check := r.step("check"); check.State == Skipped {
		return r.retireNothing(s, check.Message)
	}
	if r.job.Request.Retire == RetireDouble {
		return removeDouble(ctx, r, g, s)
	}
	key, nothing, err := r.toRetire(ctx, g)
	switch {
	case err != nil:
		return Change{}, err
	case nothing != "":
		return r.retireNothing(s, nothing)
	}
	switch r.job.Request.Retire {
	case RetireDisable:
		return r.disable(ctx, g, key, s)
	case RetireMaterial:
		return r.retireMaterial(ctx, g, key, s)
	}
	return r.retireKey(ctx, g, key, s)
}

func (r *run) retireNothing(s *Step, why string) (Change, error) {
	c, err := r.skip(s, why)
	r.emitNothing(&c)
	return c, err
}

// toRetire describes the generation's KMS key, and says why where there is
// nothing to retire.
func (r *run) toRetire(ctx context.Context, g Generation) (key Key, nothing string, err error) {
	action := r.job.Request.Retire
	for _, other := range materialsOf(r.generations, g.KeyID) {
		switch {
		case other.Stage != Previous:
			return key, fmt.Sprintf("generation %d, in KMS key %s, is %s: nothing to retire", other.Number, g.KeyID, other.Stage), nil
		case !other.KeptAt.IsZero():
			return key, fmt.Sprintf("generation %d is kept since %s: it is not retired", other.Number, other.KeptAt.UTC().Format(time.RFC3339)), nil
		}
	}
	switch {
	case g.Stage != Previous || !g.DeletionDate.IsZero() || action == RetireDisable && !g.DisabledAt.IsZero() || action == RetireMaterial && !g.MaterialDeletedAt.IsZero():
		return key, fmt.Sprintf("generation %d is %s: nothing to retire", g.Number, g.State(r.now())), nil
	case action == RetireMaterial && (g.HSMID == "" || r.shares(g)):
		return key, fmt.Sprintf("the material of generation %d is not byokd's alone to delete", g.Number), nil
	case names(r.def.ActiveKeyID, g.KeyID) || r.Named != nil && r.Named(g.KeyID):
		return key, fmt.Sprintf("active_key_id names KMS key %s: it is not retired", g.KeyID), nil
	}
	key, err = r.kms.DescribeKey(ctx, g.KeyID)
	switch {
	case errors.Is(err, ErrNotFound):
		return key, "KMS key " + g.KeyID + " no longer exists", nil
	case err == nil && key.State == "PendingDeletion" && action != RetireDelete:
		return key, fmt.Sprintf("KMS key %s is in state %s", g.KeyID, key.State), nil
	}
	return key, "", err
}

// mayRetire looks whether no alias points at the generation's key and nothing
// uses it, and returns why it may be retired.
func (r *run) mayRetire(ctx context.Context, g Generation, key Key) (why string, err error) {
	// The alias may have left the key a moment ago, and KMS shows that late.
	var pointing []string
	err = r.poll(ctx, "aliases of "+g.KeyID, func() (bool, error) {
		pointing, err = r.aliasesOf(ctx, g.KeyID)
		return err == nil && len(pointing) == 0, err
	})
	if len(pointing) > 0 && ClassOf(err) == Transient {
		return "", operator(WaitAlias, "%s points at KMS key %s: a key that an alias points at is not retired; "+
			"move the alias, then run byokctl retry", strings.Join(pointing, ", "), g.KeyID)
	}
	if err != nil {
		return "", err
	}
	why, err = r.unused(ctx, g, key)
	return "no alias points at it; " + why, err
}

// unused returns why the key counts as not in use, and a fault where it does not.
func (r *run) unused(ctx context.Context, g Generation, key Key) (why string, err error) {
	action, within := r.job.Request.Retire, inUseWithin
	switch {
	case action == RetireDisable && r.def.DisablePrevious && r.def.DisablePreviousAfter == 0:
		return "the definition wants it disabled at once", nil
	case action == RetireDelete:
		within = inUseForDeletion
	}
	last, known, err := lastUsage(ctx, r.kms, g.KeyID)
	switch {
	case err != nil:
		return "", err
	case known && last.IsZero():
		return "it was never used", nil
	case known && r.kms.Now().Sub(last) < within:
		return "", operator(WaitUse, "KMS key %s was used at %s: it is retired once it has not been used for %s; byokd looks again by itself, "+
			"and byokctl keep %s %d ends its retirement", g.KeyID, last.UTC().Format(time.RFC3339), days(within), g.Group, g.Number)
	case known:
		return "last used " + last.UTC().Format(time.RFC3339), nil
	case action == RetireDisable:
		return "whether it is in use KMS does not say", nil
	}
	// A key that could do nothing for a while was not in use.
	idle := g.MaterialDeletedAt
	if key.State == "Disabled" {
		if g.DisabledAt.IsZero() { // by a person: counted from now
			g.DisabledAt = r.now()
			if err := r.record(ctx, Change{Generations: []Generation{g}}); err != nil {
				return "", err
			}
		}
		idle = g.DisabledAt
	}
	if (key.State == "Disabled" || key.State == "PendingImport") && !idle.IsZero() && r.now().Sub(idle) >= within {
		return fmt.Sprintf("whether it was in use KMS does not say, and it has been of no use since %s", idle.UTC().Format(time.RFC3339)), nil
	}
	return "", operator(WaitUse, "whether KMS key %s is in use KMS does not say, and what cannot be undone is not done on that: disable the key, in KMS or by "+
		"disable_previous = true; once nobody has missed it for %s byokd goes on. byokctl keep %s %d ends its retirement", g.KeyID, days(within), g.Group, g.Number)
}

// days is a whole number of days as a person says it.
func days(d time.Duration) string {
	if d == 24*time.Hour {
		return "24 hours"
	}
	return fmt.Sprintf("%d days", d/(24*time.Hour))
}

// lastUsage returns when a key was last used, the zero time where it never was.
// Where KMS does not say, or not to byokd, known is false.
func lastUsage(ctx context.Context, kms KMS, keyID string) (at time.Time, known bool, err error) {
	at, known, err = kms.LastUsage(ctx, keyID)
	if errors.Is(err, ErrDenied) || ClassOf(err) == Permanent {
		return at, false, nil
	}
	return at, known, err
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
func (r *run) disable(ctx context.Context, g Generation, key Key, s *Step) (Change, error) {
	if key.State != "Disabled" { // else perhaps by an attempt that did not come to record it
		if _, err := r.mayRetire(ctx, g, key); err != nil {
			return Change{}, err
		}
	}
	switch key.State {
	case "PendingImport":
		// Material that comes back would come back enabled: that the definition
		// wants it disabled is kept.
		c, err := r.retireNothing(s, "KMS key "+g.KeyID+" has no key material; should it get it back, it is disabled")
		g.DisabledAt = r.now()
		c.Generations = []Generation{g}
		return c, err
	case "Enabled":
		if err := r.kms.DisableKey(ctx, g.KeyID); err != nil {
			return Change{}, err
		}
	case "Disabled":
	default:
		return r.retireNothing(s, fmt.Sprintf("KMS key %s is in state %s and cannot be disabled", g.KeyID, key.State))
	}
	s.Message = "disabled KMS key " + g.KeyID
	g.DisabledAt = r.now()
	c := Change{Generations: []Generation{g}, Audit: []AuditEntry{r.audit("disable KMS key", "%s of generation %d", g.KeyARN, g.Number)}}
	r.emit(&c, KeyDisabled, g.Account, resources(g.KeyARN), map[string]any{"key_id": g.KeyID, "generation": g.Number})
	return c, nil
}

// intend records that what the step does is about to be done.
func (r *run) intend(ctx context.Context, s *Step) error {
	s.Data = mustJSON(struct {
		SentAt time.Time `json:"sent_at"`
	}{r.now()})
	return r.record(ctx, Change{Steps: []Step{*s}})
}

// retireMaterial deletes the generation's material from KMS; the HSM keeps it.
func (r *run) retireMaterial(ctx context.Context, g Generation, key Key, s *Step) (Change, error) {
	if key.State != "PendingImport" {
		if _, err := r.mayRetire(ctx, g, key); err != nil {
			return Change{}, err
		}
		if err := r.intend(ctx, s); err != nil {
			return Change{}, err
		}
	}
	validTo := key.ValidTo
	if key.State != "PendingImport" {
		if err := r.kms.DeleteKeyMaterial(ctx, g.KeyID, ""); err != nil {
			return Change{}, err
		}
		if err := r.poll(ctx, "delete material of "+g.KeyID, func() (bool, error) {
			key, err := r.kms.DescribeKey(ctx, g.KeyID)
			return err == nil && key.State == "PendingImport", err
		}); err != nil {
			return Change{}, err
		}
	}
	g.MaterialDeletedAt, g.ValidTo = r.now(), time.Time{}
	if len(s.Data) == 0 { // it has expired, or somebody else has deleted it
		c, err := r.retireNothing(s, "KMS key "+g.KeyID+" has no key material; it is not imported again unless asked for")
		c.Generations = []Generation{g}
		return c, err
	}
	s.Message = fmt.Sprintf("deleted the material of generation %d: nothing encrypted under KMS key %s can be decrypted until byokctl sync %s --generation %d brings it back",
		g.Number, g.KeyID, g.Group, g.Number)
	r.log.Warn("key material deleted as the definition wants", "generation", g.Number, "key_id", g.KeyID, "valid_to", timeOrNull(validTo))
	c := Change{Generations: []Generation{g}, Audit: []AuditEntry{r.audit("delete key material", "generation %d, KMS key %s", g.Number, g.KeyARN)}}
	r.emit(&c, MaterialDeleted, g.Account, resources(g.KeyARN), map[string]any{"key_id": g.KeyID, "generation": g.Number})
	return c, nil
}

// retireKey schedules the deletion of the generation's KMS key. Its HSM object
// stays, as a proof of what it was: no other KMS key could decrypt with it.
func (r *run) retireKey(ctx context.Context, g Generation, key Key, s *Step) (Change, error) {
	date := key.DeletionDate
	if key.State != "PendingDeletion" {
		if _, err := r.mayRetire(ctx, g, key); err != nil {
			return Change{}, err
		}
		g, _ = r.generation(g.Number)
		if key.State == "Disabled" && g.DisabledAt.IsZero() { // by a person: byokctl keep leaves it so
			g.DisabledAt = r.now()
			if err := r.record(ctx, Change{Generations: []Generation{g}}); err != nil {
				return Change{}, err
			}
		}
		if err := r.intend(ctx, s); err != nil {
			return Change{}, err
		}
		var err error
		if date, err = r.kms.ScheduleDeletion(ctx, g.KeyID, retirementDays); err != nil {
			return Change{}, err
		}
	}
	g.DeletionDate = date
	c := Change{Generations: []Generation{g}}
	if len(s.Data) == 0 {
		if g.DisabledAt.IsZero() { // how it was before is not known: byokctl keep leaves it disabled
			c.Generations[0].DisabledAt = r.now()
		}
		s.State, s.Message = Skipped, fmt.Sprintf("KMS key %s is scheduled for deletion at %s already", g.KeyID, date.UTC().Format(time.RFC3339))
		r.emitNothing(&c)
		return c, nil
	}
	s.Message = fmt.Sprintf("KMS key %s will be deleted at %s: from then on nothing encrypted under it can be decrypted, by anybody; until then byokctl keep %s %d cancels that",
		g.KeyID, date.UTC().Format(time.RFC3339), g.Group, g.Number)
	r.log.Warn("deletion of a KMS key scheduled as the definition wants", "generation", g.Number, "key_id", g.KeyID, "deletion_date", date.UTC(), "valid_to", timeOrNull(key.ValidTo))
	c.Audit = []AuditEntry{r.audit("schedule deletion", "KMS key %s of generation %d, at %s", g.KeyARN, g.Number, date.UTC().Format(time.RFC3339))}
	r.emit(&c, DeletionSet, g.Account, resources(g.KeyARN), map[string]any{"key_id": g.KeyID, "generation": g.Number})
	return c, nil
}
