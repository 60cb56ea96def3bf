package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
)

// changed is what a synchronization's step has changed, kept in the step's data
// until the event at the end tells of it.
type changed struct {
	Generations []int `json:"generations"`            // about to be changed, or changed
	Recorded    []int `json:"recorded,omitempty"`     // changed, with the audit entry written
	WasDisabled []int `json:"was_disabled,omitempty"` // to be disabled again after an import
}

func (s *Step) changed() changed {
	var c changed
	if len(s.Data) > 0 {
		// Unreadable data costs one line of an event, not the job.
		_ = json.Unmarshal(s.Data, &c)
	}
	return c
}

// targets returns the generations that a synchronization is about: the one that
// was named, else the active one; for an automatic one all that are usable.
func (r *run) targets() ([]Generation, error) {
	req := r.job.Request
	if !req.Asked {
		var all []Generation
		for _, g := range r.generations {
			if g.Stage != Destroyed && g.KeyID != "" && g.DeletionDate.IsZero() {
				all = append(all, g)
			}
		}
		return all, nil
	}
	switch {
	case req.Generation != nil:
		g, ok := r.generation(*req.Generation)
		if !ok {
			return nil, &Fault{Class: Permanent, Err: fmt.Errorf("group %s has no generation %d: see byokctl keys %s", r.job.Group, *req.Generation, r.job.Group)}
		}
		return r.usable(g)
	case req.KeyID != "":
		id := req.KeyID[strings.LastIndexByte(req.KeyID, '/')+1:] // an ARN will do as well
		g, ok := byKey(r.generations, id)
		if !ok {
			return nil, &Fault{Class: Permanent, Err: fmt.Errorf("KMS key %s is no generation of group %s: see byokctl keys %s", req.KeyID, r.job.Group, r.job.Group)}
		}
		return r.usable(g)
	}
	g, ok := r.active()
	if !ok {
		return nil, &Fault{Class: Permanent, Err: fmt.Errorf("group %s has no active generation yet", r.job.Group)}
	}
	return r.usable(g)
}

func (r *run) usable(g Generation) ([]Generation, error) {
	if g.Stage == Destroyed || g.KeyID == "" || !g.DeletionDate.IsZero() {
		return nil, &Fault{Class: Permanent, Err: fmt.Errorf("generation %d is %s and cannot be synchronized", g.Number, g.State(r.now()))}
	}
	return []Generation{g}, nil
}

// targetKeys returns one generation for each KMS key of the targets: the current
// one, or the one that was named.
func (r *run) targetKeys() ([]Generation, error) {
	targets, err := r.targets()
	if err != nil || r.job.Request.Asked {
		return targets, err
	}
	return slices.DeleteFunc(targets, func(g Generation) bool {
		current, _ := byKey(r.generations, g.KeyID)
		return g.Number != current.Number
	}), nil
}

// targetMaterials returns the targets with all other generations of their KMS
// keys: one whose material is missing takes the whole key down.
func (r *run) targetMaterials() ([]Generation, error) {
	targets, err := r.targets()
	if err != nil || !r.job.Request.Asked {
		return targets, err
	}
	return materialsOf(r.generations, targets[0].KeyID), nil
}

// each does something to every target. do looks first, calls intend before an
// effect, and returns; what it was about to change is thereby in the journal
// before it happens, and the event at the end tells of it whatever comes between.
// Keys that are scheduled for deletion, or gone, are left out. What a
// person must mend in one generation, or nobody can, does not keep the others waiting.
func (r *run) each(ctx context.Context, s *Step, verb string, of func() ([]Generation, error), do func(ctx context.Context, g *Generation, key Key, intend func() error) error) error {
	targets, err := of()
	if err != nil {
		return err
	}
	var left []string
	var failed []error
	for _, g := range targets {
		key, err := r.kms.DescribeKey(ctx, g.KeyID)
		switch {
		case errors.Is(err, ErrNotFound) && r.now().Sub(g.CreatedAt) < goneAfter:
			return &Fault{Class: Transient, Err: fmt.Errorf("generation %d: %w", g.Number, err)}
		case errors.Is(err, ErrNotFound) || err == nil && key.State == "PendingDeletion":
			why := fmt.Sprintf("generation %d: KMS key %s is scheduled for deletion or gone", g.Number, g.KeyID)
			if r.job.Request.Asked {
				return &Fault{Class: Permanent, Err: errors.New(why)}
			}
			left = append(left, why)
			continue
		case err != nil:
			return fmt.Errorf("generation %d: %w", g.Number, err)
		}
		before := g
		intend := func() error {
			done := s.changed()
			if slices.Contains(done.Generations, g.Number) {
				return nil
			}
			done.Generations = append(done.Generations, g.Number)
			s.Data = mustJSON(done)
			return r.record(ctx, Change{Steps: []Step{*s}, Generations: []Generation{g}})
		}
		if err := do(ctx, &g, key, intend); err != nil {
			err = fmt.Errorf("generation %d: %w", g.Number, err)
			if c := ClassOf(err); c != Operator && c != Permanent {
				return err
			}
			failed = append(failed, err)
			continue
		}
		var c Change
		if !reflect.DeepEqual(before, g) {
			c.Generations = []Generation{g}
		}
		if done := s.changed(); slices.Contains(done.Generations, g.Number) && !slices.Contains(done.Recorded, g.Number) {
			done.Recorded = append(done.Recorded, g.Number)
			recorded := *s // s itself says so once that is true
			recorded.Data = mustJSON(done)
			c.Steps = []Step{recorded}
			c.Audit = []AuditEntry{r.audit(verb, "generation %d, KMS key %s", g.Number, g.KeyARN)}
		}
		if c.Generations != nil || c.Audit != nil {
			if err := r.record(ctx, c); err != nil {
				return err
			}
		}
	}
	if len(failed) > 0 {
		return errors.Join(failed...)
	}
	if done := s.changed(); len(done.Generations) > 0 {
		left = slices.Insert(left, 0, fmt.Sprintf("%s of generation %s", verb, numbers(done.Generations)))
	}
	s.Message = "as defined"
	if len(left) > 0 {
		s.Message = strings.Join(left, "; ")
	}
	return nil
}

func numbers(list []int) string {
	var b strings.Builder
	for i, n := range list {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprint(&b, n)
	}
	return b.String()
}

// syncPolicy makes the key policies what the definition says.
func syncPolicy(ctx context.Context, r *run, s *Step) (Change, error) {
	switch {
	case r.job.Request.Asked && !r.job.Request.UpdatePolicy:
		return r.skip(s, "not asked for")
	case r.def.Policy == nil:
		return r.skip(s, "policy_file is not set: the key policy is not managed")
	}
	return Change{}, r.each(ctx, s, "set key policy", r.targetKeys, func(ctx context.Context, g *Generation, key Key, intend func() error) error {
		have, err := r.kms.KeyPolicy(ctx, g.KeyID)
		if err != nil {
			return err
		}
		if !r.samePolicy(have, *r.def.Policy) {
			if err := intend(); err != nil {
				return err
			}
			if err := r.kms.PutKeyPolicy(ctx, g.KeyID, *r.def.Policy); err != nil {
				return err
			}
		}
		g.Policy = *r.def.Policy
		return nil
	})
}

// samePolicy reports whether two key policies mean the same.
func (e *Engine) samePolicy(a, b string) bool {
	if e.SamePolicy != nil {
		return e.SamePolicy(a, b)
	}
	var x, y any
	if json.Unmarshal([]byte(a), &x) != nil || json.Unmarshal([]byte(b), &y) != nil {
		return a == b
	}
	return reflect.DeepEqual(x, y)
}

// syncTags sets the managed tags and removes those that byokd once set and the
// definition no longer has. Other tags are not touched.
func syncTags(ctx context.Context, r *run, s *Step) (Change, error) {
	return Change{}, r.each(ctx, s, "set tags", r.targetKeys, func(ctx context.Context, g *Generation, key Key, intend func() error) error {
		have, err := r.kms.KeyTags(ctx, g.KeyID)
		if err != nil {
			return err
		}
		set, gone := r.tagDifference(*g, have)
		if len(set) > 0 || len(gone) > 0 {
			// The new ones are byokd's from before they are set, so that they are
			// removed some day even if this job never comes to record them.
			both := maps.Clone(r.def.Tags)
			if both == nil {
				both = make(map[string]string)
			}
			maps.Copy(both, g.Tags)
			g.Tags = both
			if err := intend(); err != nil {
				return err
			}
		}
		if len(set) > 0 {
			if err := r.kms.TagKey(ctx, g.KeyID, set); err != nil {
				return err
			}
		}
		if len(gone) > 0 {
			if err := r.kms.UntagKey(ctx, g.KeyID, gone); err != nil {
				return err
			}
		}
		if !maps.Equal(g.Tags, r.def.Tags) {
			g.Tags = r.def.Tags
		}
		return nil
	})
}

// tagDifference returns the tags to set on a generation's key that has these
// ones, and those to remove.
func (r *run) tagDifference(g Generation, have map[string]string) (set map[string]string, gone []string) {
	want := r.def.Tags
	if g.Number > 0 && g.JobID != "" {
		want = r.tags(g)
	}
	set = make(map[string]string)
	for name, value := range want {
		if old, ok := have[name]; !ok || old != value {
			set[name] = value
		}
	}
	for name := range g.Tags {
		_, wanted := want[name]
		if _, there := have[name]; there && !wanted {
			gone = append(gone, name)
		}
	}
	slices.Sort(gone)
	return set, gone
}

// syncDescription sets the description of the active key.
func syncDescription(ctx context.Context, r *run, s *Step) (Change, error) {
	if r.def.Description == nil {
		return r.skip(s, "description is not set: not managed")
	}
	active, ok := r.active()
	if !ok || !active.DeletionDate.IsZero() {
		return r.skip(s, "no active generation")
	}
	return Change{}, r.each(ctx, s, "set description", r.targetKeys, func(ctx context.Context, g *Generation, key Key, intend func() error) error {
		if g.KeyID != active.KeyID {
			return nil
		}
		if key.Description == *r.def.Description {
			return nil
		}
		if err := intend(); err != nil {
			return err
		}
		return r.kms.SetDescription(ctx, g.KeyID, *r.def.Description)
	})
}

// syncMaterial imports or deletes key material.
func syncMaterial(ctx context.Context, r *run, s *Step) (Change, error) {
	req := r.job.Request
	switch {
	case req.Asked && req.DeleteMaterial:
		return deleteMaterial(ctx, r, s)
	case req.Asked && !req.ImportMaterial:
		return r.skip(s, "not asked for")
	}
	var left []string // why nothing was imported
	err := r.each(ctx, s, "import key material", r.targetMaterials, func(ctx context.Context, g *Generation, key Key, intend func() error) (err error) {
		missing, isNew := key.State == "PendingImport", false
		if g.Stage == Active && key.State == "Enabled" && !slices.Contains(s.changed().WasDisabled, g.Number) {
			g.DisabledAt = time.Time{} // a person has enabled it
		}
		if r.shares(*g) {
			materials, err := r.kms.KeyMaterials(ctx, g.KeyID)
			if err != nil {
				return err
			}
			m, there := materialIn(materials, *g)
			missing, isNew = !m.Imported, !there
			key.ValidTo = m.ValidTo
		}
		if why := r.notImported(*g, key, missing, s.changed()); why != "" {
			left = append(left, fmt.Sprintf("generation %d: %s", g.Number, why))
			return nil
		}
		wasDisabled := key.State == "Disabled" || key.State == "PendingImport" && !g.DisabledAt.IsZero()
		if done := s.changed(); wasDisabled && !slices.Contains(done.WasDisabled, g.Number) {
			// KMS may enable a key whose material comes back; that it was disabled
			// must outlive a crash between the import and DisableKey. One that a
			// person has enabled stays so.
			done.WasDisabled = append(done.WasDisabled, g.Number)
			s.Data = mustJSON(done)
			if err := r.record(ctx, Change{Steps: []Step{*s}}); err != nil {
				return err
			}
		}
		if *g, err = r.importMaterial(ctx, *g, isNew, intend); err != nil {
			return err
		}
		if slices.Contains(s.changed().WasDisabled, g.Number) {
			return r.disableAgain(ctx, *g)
		}
		return nil
	})
	if err != nil {
		return Change{}, err
	}
	if len(s.changed().Generations) == 0 && len(left) > 0 {
		if req.Asked {
			return r.skip(s, strings.Join(left, "; "))
		}
		s.Message = strings.Join(left, "; ")
	}
	return Change{}, nil
}

// disableAgain disables a key that an import may have enabled. A key with other
// material still missing cannot be, and need not: it is unusable.
func (r *run) disableAgain(ctx context.Context, g Generation) error {
	if r.shares(g) {
		if key, err := r.kms.DescribeKey(ctx, g.KeyID); err != nil || key.State == "PendingImport" {
			return err
		}
	}
	return r.disableKey(ctx, g.KeyID)
}

// notImported says why a synchronization leaves a generation's material as it
// is; "" where it imports it. What this very job was about to import when it was
// interrupted is imported again, which is harmless.
func (r *run) notImported(g Generation, key Key, missing bool, done changed) string {
	asked := r.job.Request.Asked
	current, _ := byKey(r.generations, g.KeyID)
	switch {
	case slices.Contains(done.Recorded, g.Number):
		return "its material has been imported by this job"
	case slices.Contains(done.Generations, g.Number):
		return ""
	case g.HSMID == "":
		return "adopted, byokd does not have its material"
	case g.Stage == PreActive && (g.ImportedAt.IsZero() || !asked || r.inPlace(g)):
		return "the rotation that makes it imports it"
	case asked && !missing && r.def.KeepValidFor == 0 && key.ValidTo.IsZero():
		return "its material is present and does not expire"
	case asked:
		return ""
	case g.ImportedAt.IsZero():
		return "it never had material"
	case !g.MaterialDeletedAt.IsZero():
		return "its material was deleted on request"
	case !g.DisabledAt.IsZero():
		return "byokd disabled it, and an import may enable it"
	case !g.ValidTo.IsZero() && g.ValidTo.Before(r.job.Request.ExpiringBefore):
		return ""
	case current.Stage == Previous && !g.ValidTo.IsZero() && !r.kms.Now().Before(g.ValidTo):
		return "its material has expired"
	case !missing && !r.validityChanged(g) && !(r.job.Request.Repair && otherValidity(g, key)):
		return "its material is present"
	}
	return ""
}

// otherValidity reports whether KMS has another ValidTo for material that is
// present than the journal.
func otherValidity(g Generation, key Key) bool {
	return key.ValidTo.Sub(g.ValidTo).Abs() >= time.Second
}

// disableKey disables a key and returns when it reads back so.
func (r *run) disableKey(ctx context.Context, keyID string) error {
	if err := r.kms.DisableKey(ctx, keyID); err != nil {
		return err
	}
	return r.poll(ctx, "disable "+keyID, func() (bool, error) {
		key, err := r.kms.DescribeKey(ctx, keyID)
		return err == nil && key.State == "Disabled", err
	})
}

// syncState disables the keys again that byokd had disabled and somebody has
// enabled, but for those that are kept. It enables none: to disable a key is what a person does in an
// emergency, and byokd does not fight that.
func syncState(ctx context.Context, r *run, s *Step) (Change, error) {
	if !r.job.Request.Repair {
		return r.skip(s, "for the repair of drift only")
	}
	var left []string
	err := r.each(ctx, s, "disable KMS key", r.targetKeys, func(ctx context.Context, g *Generation, key Key, intend func() error) error {
		if g.DisabledAt.IsZero() || key.State != "Enabled" {
			return nil
		}
		if !g.KeptAt.IsZero() {
			g.DisabledAt = time.Time{}
			left = append(left, fmt.Sprintf("generation %d is kept: its KMS key stays enabled", g.Number))
			return nil
		}
		pointing, err := r.aliasesOf(ctx, g.KeyID)
		if err != nil {
			return err
		}
		if len(pointing) > 0 {
			left = append(left, fmt.Sprintf("generation %d: %s points at its KMS key, which stays enabled", g.Number, strings.Join(pointing, ", ")))
			return nil
		}
		if err := intend(); err != nil {
			return err
		}
		return r.disableKey(ctx, g.KeyID)
	})
	if err == nil && len(left) > 0 {
		s.Message += "; " + strings.Join(left, "; ")
	}
	return Change{}, err
}

// validityChanged reports whether the generation's material would get another
// ValidTo under the definition than the one it has.
func (r *run) validityChanged(g Generation) bool {
	want := validTo(g.ImportedAt, r.def.KeepValidFor)
	if want.IsZero() || g.ValidTo.IsZero() {
		return want.IsZero() != g.ValidTo.IsZero()
	}
	return want.Sub(g.ValidTo).Abs() > time.Minute
}

// deleteMaterial deletes the material of the generation that was named.
func deleteMaterial(ctx context.Context, r *run, s *Step) (Change, error) {
	if req := r.job.Request; req.Generation == nil && req.KeyID == "" {
		return Change{}, &Fault{Class: Permanent, Err: errors.New("delete_material needs generation or key_id: nothing was deleted")}
	}
	targets, err := r.targets()
	if err != nil {
		return Change{}, err
	}
	g := targets[0]
	if !g.MaterialDeletedAt.IsZero() {
		return r.skip(s, fmt.Sprintf("the material of generation %d is deleted already", g.Number))
	}
	if g.HSMID == "" {
		return Change{}, &Fault{Class: Permanent, Err: fmt.Errorf("generation %d is adopted: byokd does not have its material and could not bring it back, so it does not delete it", g.Number)}
	}
	key, err := r.kms.DescribeKey(ctx, g.KeyID)
	if err != nil {
		return Change{}, err
	}
	if key.State == "PendingDeletion" {
		return Change{}, &Fault{Class: Permanent, Err: fmt.Errorf("KMS key %s is scheduled for deletion", g.KeyID)}
	}
	if g.Stage == PreActive && r.inPlace(g) {
		return r.skip(s, fmt.Sprintf("generation %d waits for its rotation: nothing was encrypted with its material, and a rotation that is given up deletes it", g.Number))
	}
	material := g.MaterialID
	present := func() (bool, error) {
		if r.shares(g) {
			materials, err := r.kms.KeyMaterials(ctx, g.KeyID)
			m, there := materialIn(materials, g)
			if err == nil && !there {
				err = &Fault{Class: Permanent, Err: fmt.Errorf("KMS key %s has no material of generation %d", g.KeyID, g.Number)}
			}
			material = m.ID
			return m.Imported, err
		}
		key, err := r.kms.DescribeKey(ctx, g.KeyID)
		return key.State != "PendingImport", err
	}
	is, err := present()
	if err != nil {
		return Change{}, err
	}
	if is {
		loss, err := r.loss(ctx, g)
		if err != nil {
			return Change{}, err
		}
		intent := changed{Generations: []int{g.Number}}
		if key.State == "Disabled" { // which it no longer is without material
			intent.WasDisabled = intent.Generations
		}
		s.Data, s.Message = mustJSON(intent), "deleting "+loss
		if err := r.record(ctx, Change{Steps: []Step{*s}}); err != nil {
			return Change{}, err
		}
		r.log.Warn("key material is deleted, as was asked", "generation", g.Number, "key_id", g.KeyID, "effect", loss)
		if err := r.kms.DeleteKeyMaterial(ctx, g.KeyID, material); err != nil {
			return Change{}, err
		}
		if err := r.poll(ctx, "delete material of "+g.KeyID, func() (bool, error) {
			is, err := present()
			return err == nil && !is, err
		}); err != nil {
			return Change{}, err
		}
	}
	g.MaterialDeletedAt, g.ValidTo = r.now(), time.Time{}
	if len(s.changed().WasDisabled) > 0 && g.DisabledAt.IsZero() {
		g.DisabledAt = r.now() // by a person: material that comes back does not enable it
	}
	c := Change{Generations: []Generation{g}, Audit: []AuditEntry{r.audit("delete key material", "generation %d, KMS key %s", g.Number, g.KeyARN)}}
	r.emit(&c, MaterialDeleted, g.Account, resources(g.KeyARN), map[string]any{"key_id": g.KeyID, "generation": g.Number})
	s.Data = mustJSON(changed{Generations: []int{g.Number}})
	s.Message = fmt.Sprintf("deleted the material of generation %d: nothing encrypted under KMS key %s can be decrypted until byokctl sync %s --generation %d brings it back",
		g.Number, g.KeyID, r.job.Group, g.Number)
	return c, nil
}

// loss says what stops working when a generation's material is deleted.
func (r *run) loss(ctx context.Context, g Generation) (string, error) {
	loss := fmt.Sprintf("the material of generation %d: from then on nothing that was encrypted under KMS key %s can be decrypted, by anybody", g.Number, g.KeyID)
	if all := materialsOf(r.generations, g.KeyID); len(all) > 1 {
		loss += fmt.Sprintf(", which is all that the key's %d generations have encrypted: one missing material takes the whole KMS key down", len(all))
	}
	pointing, err := r.aliasesOf(ctx, g.KeyID)
	if err != nil {
		return "", err
	}
	if len(pointing) > 0 {
		loss += fmt.Sprintf(", and nothing can be encrypted or decrypted through %s", strings.Join(pointing, ", "))
	}
	last, known, err := lastUsage(ctx, r.kms, g.KeyID)
	if err != nil {
		return "", err
	}
	switch {
	case known && last.IsZero():
		loss += "; it was never used"
	case known:
		loss += "; it was last used at " + last.UTC().Format(time.RFC3339)
	}
	return loss, nil
}

// syncAlias creates the alias at the active key where there is none, and tells
// of everything that the job has changed. It moves no alias: that somebody else
// has moved it is reported.
func syncAlias(ctx context.Context, r *run, s *Step) (Change, error) {
	c, err := r.ensureAlias(ctx, s)
	if err == nil {
		r.emitSynchronized(&c, s)
	}
	return c, err
}

// ensureAlias creates the alias at the active key where there is none.
func (r *run) ensureAlias(ctx context.Context, s *Step) (Change, error) {
	var c Change
	active, ok := r.active()
	switch {
	case !ok || !active.DeletionDate.IsZero():
		s.State, s.Message = Skipped, "no active generation"
	default:
		now, err := r.ownAlias(ctx)
		if err != nil {
			return Change{}, err
		}
		switch now.ID {
		case active.KeyID:
			s.Message = fmt.Sprintf("%s points at KMS key %s", r.def.Alias, active.KeyID)
			if len(s.Data) > 0 {
				r.aliasCreated(&c, s, active) // by an attempt that did not come to record it
			}
		case "":
			key, err := r.kms.DescribeKey(ctx, active.KeyID)
			if err != nil && !errors.Is(err, ErrNotFound) {
				return Change{}, err
			}
			if err != nil || key.State == "PendingDeletion" {
				s.State, s.Message = Skipped, fmt.Sprintf("KMS key %s is scheduled for deletion or gone: no alias is pointed at it", active.KeyID)
				break
			}
			s.Data = mustJSON(changed{Generations: []int{active.Number}})
			if err := r.record(ctx, Change{Steps: []Step{*s}}); err != nil {
				return Change{}, err
			}
			intent := aliasIntent{To: active.KeyID}
			if err := r.moveAlias(ctx, "", intent); err != nil {
				return Change{}, err
			}
			if err := r.readsBack(ctx, intent, intent.To); err != nil {
				return Change{}, err
			}
			r.aliasCreated(&c, s, active)
		default:
			s.State = Skipped
			s.Message = fmt.Sprintf("%s points at KMS key %s, not at the active one, %s: somebody has moved it, and only a rotation moves it", r.def.Alias, now.ID, active.KeyID)
			r.log.Warn("alias was moved by somebody else", "alias", r.def.Alias, "key_id", now.ID, "expected", active.KeyID)
		}
	}
	return c, nil
}

func (r *run) aliasCreated(c *Change, s *Step, active Generation) {
	s.Data = mustJSON(changed{Generations: []int{active.Number}})
	s.Message = fmt.Sprintf("created %s at KMS key %s", r.def.Alias, active.KeyID)
	c.Audit = append(c.Audit, r.audit("create alias", "%s at %s", r.def.Alias, active.KeyID))
	r.emit(c, AliasMoved, active.Account, resources(active.KeyARN, aliasARN(active.KeyARN, r.def.Alias)), map[string]any{
		"alias":                   r.def.Alias,
		"previous_key_id":         nil,
		"previous_key_arn":        nil,
		"new_key_id":              active.KeyID,
		"new_key_arn":             active.KeyARN,
		"generation":              active.Number,
		"trigger":                 r.job.Trigger,
		"previous_key_disabled":   false,
		"previous_key_disable_at": nil,
	})
}

// emitSynchronized tells of each generation that this job has changed; of one
// that was asked for also when nothing had to be changed.
func (r *run) emitSynchronized(c *Change, alias *Step) {
	actions := make(map[int][]string)
	for _, part := range []string{"policy", "material", "state", "description", "tags", "alias"} {
		s := r.step(part)
		if part == alias.Name {
			s = alias
		}
		for _, n := range s.changed().Generations {
			actions[n] = append(actions[n], part)
		}
	}
	if r.job.Request.Asked {
		if targets, err := r.targets(); err == nil && actions[targets[0].Number] == nil {
			actions[targets[0].Number] = []string{}
		}
	}
	if len(actions) == 0 {
		if r.step("announce").State == Pending {
			r.emitNothing(c)
		}
		return
	}
	for _, n := range slices.Sorted(maps.Keys(actions)) {
		g, ok := r.generation(n)
		if !ok {
			continue
		}
		r.emit(c, KeySynchronized, g.Account, resources(g.KeyARN),
			map[string]any{"key_id": g.KeyID, "generation": n, "actions": actions[n]})
	}
}

func (r *run) skip(s *Step, why string) (Change, error) {
	s.State, s.Message = Skipped, why
	return Change{}, nil
}
