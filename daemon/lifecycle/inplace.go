package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Values of rotation.mode.
const (
	modeInPlace = "in-place" // new material in the same KMS key
	modeAuto    = "auto"     // in place while rotations are left, else a fresh KMS key
)

// MaxRotations is how many rotations on demand KMS allows in a key's life.
//
// Source: "Resource quotas" in the AWS KMS Developer Guide.
const MaxRotations = 25

// renewAfter is how much of its validity the other material of a key may have
// used up when the key is rotated.
const renewAfter = 24 * time.Hour

// materialCurrent is the state of the material that a KMS key encrypts with, and
// materialOld of what it once encrypted with; any other is of a pending one.
const (
	materialCurrent = "CURRENT"
	materialOld     = "NON_CURRENT"
)

// pending reports whether the material waits for RotateKeyOnDemand.
func (m Material) pending() bool { return m.State != materialCurrent && m.State != materialOld }

// rotationsLeft is how often a key with these materials can still be rotated.
func rotationsLeft(materials []Material) int {
	left := MaxRotations
	for _, m := range materials {
		if m.OnDemand {
			left--
		}
	}
	return max(left, 0)
}

// is reports whether a material is that of the generation.
func (m Material) is(g Generation) bool {
	return g.HSMID != "" && m.Description == MaterialDescription(g) || g.MaterialID != "" && m.ID == g.MaterialID
}

// materialIn returns the generation's material among those of its KMS key.
func materialIn(materials []Material, g Generation) (Material, bool) {
	i := slices.IndexFunc(materials, func(m Material) bool { return m.is(g) })
	if i < 0 {
		return Material{}, false
	}
	return materials[i], true
}

// inPlace reports whether the generation is material of a KMS key that was made
// for an earlier one.
func (r *run) inPlace(g Generation) bool {
	all := materialsOf(r.generations, g.KeyID)
	return len(all) > 0 && all[0].Number < g.Number
}

// shares reports whether the generation's KMS key has other generations too.
func (r *run) shares(g Generation) bool { return len(materialsOf(r.generations, g.KeyID)) > 1 }

// chooseKey returns the generation whose KMS key the job's generation becomes
// material of. Where a fresh KMS key is to be made instead, why says so, and ok
// is false.
func (r *run) chooseKey(ctx context.Context, own Generation) (old Generation, why string, ok bool, err error) {
	if r.def.Mode != modeInPlace && r.def.Mode != modeAuto {
		return old, "", false, nil
	}
	key, err := r.ownAlias(ctx)
	if err != nil {
		return old, "", false, err
	}
	old, ok = byKey(r.generations, key.ID)
	if key.ID == "" {
		old, ok = r.active() // the alias is gone, its key need not be
	}
	if !ok || old.KeyID == "" {
		return old, "there is no key to rotate in place yet", false, nil
	}
	key, err = r.kms.DescribeKey(ctx, old.KeyID)
	switch {
	case errors.Is(err, ErrNotFound):
		return old, fmt.Sprintf("KMS key %s no longer exists", old.KeyID), false, nil
	case err != nil:
		return old, "", false, err
	case old.Number == 0:
		return old, fmt.Sprintf("KMS key %s is adopted and byokd does not have its material, so it is not rotated in place", key.ID), false, nil
	case key.State == "PendingDeletion":
		return old, fmt.Sprintf("KMS key %s is scheduled for deletion", key.ID), false, nil
	}
	materials, err := r.kms.KeyMaterials(ctx, key.ID)
	if err != nil {
		return old, "", false, err
	}
	why, mend, err := r.hindrance(ctx, key, materials, own)
	switch {
	case err != nil:
		return old, "", false, err
	case why == "":
		return old, fmt.Sprintf("in place: KMS key %s gets the new key material; %d of its %d rotations were left", key.ID, rotationsLeft(materials), MaxRotations), true, nil
	case r.def.Mode == modeAuto:
		return old, why, false, nil
	}
	return old, "", false, hindered(why, mend)
}

// hindrance says why a key cannot be rotated in place, and what a person can do
// about it; "" where it can.
func (r *run) hindrance(ctx context.Context, key Key, materials []Material, own Generation) (why, mend string, err error) {
	if err := r.foreignPending(key.ID, materials, own); err != nil {
		return "", "", err
	}
	lost, err := r.lostIn(ctx, key.ID, materials, own)
	if err != nil {
		return "", "", err
	}
	switch deleted := r.deletedIn(key.ID, materials); {
	case rotationsLeft(materials) == 0:
		return fmt.Sprintf("KMS key %s has used up its %d rotations", key.ID, MaxRotations),
			`write mode = "auto" under [rotation]: a fresh KMS key is made and the alias moved to it`, nil
	case key.State == "Disabled":
		return fmt.Sprintf("KMS key %s is disabled", key.ID), "enable it in KMS, then run byokctl retry", nil
	case deleted != nil:
		return fmt.Sprintf("the material of generation %d was deleted on request, which makes KMS key %s unusable", deleted.Number, key.ID),
			fmt.Sprintf("bring it back with byokctl sync %s --generation %d, then run byokctl retry", r.job.Group, deleted.Number), nil
	case lost != nil:
		return fmt.Sprintf("KMS key %s needs the material of generation %d again, whose HSM object %s is not on the token", key.ID, lost.Number, lost.HSMLabel),
			"restore it from the HSM's backup, then run byokctl retry", nil
	}
	return "", "", nil
}

// hindered is the fault of a key that cannot be rotated in place.
func hindered(why, mend string) error {
	return operator(WaitConfig, `%s, so it cannot be rotated in place (mode = "in-place"): %s`, why, mend)
}

// foreignPending is the fault of a key in which material of somebody else waits
// for a rotation: RotateKeyOnDemand would make it the current one.
func (r *run) foreignPending(keyID string, materials []Material, own Generation) error {
	for _, m := range materials {
		if m.pending() && !m.is(own) {
			return operator(WaitConfig, "KMS key %s has key material %s (description %q) pending rotation, which is not of generation %d, so the key is not rotated: "+
				"whoever imported it rotates the key or deletes that material (aws kms delete-imported-key-material --key-id %s --key-material-id %s); then run byokctl retry",
				keyID, m.ID, m.Description, own.Number, keyID, m.ID)
		}
	}
	return nil
}

// deletedIn returns a generation of the key whose material was deleted on request.
func (r *run) deletedIn(keyID string, materials []Material) *Generation {
	for _, g := range materialsOf(r.generations, keyID) {
		if m, ok := materialIn(materials, g); ok && !m.Imported && !g.MaterialDeletedAt.IsZero() {
			return &g
		}
	}
	return nil
}

// lostIn returns another generation of the key whose material a rotation imports
// again, and whose HSM object is lost.
func (r *run) lostIn(ctx context.Context, keyID string, materials []Material, own Generation) (*Generation, error) {
	for _, g := range materialsOf(r.generations, keyID) {
		m, ok := materialIn(materials, g)
		id, err := hsmID(g)
		if !ok || g.Number == own.Number || !r.renews(m) || err != nil {
			continue
		}
		if err := r.hsm.Find(ctx, g.HSMLabel, id); errors.Is(err, ErrNotFound) {
			return &g, nil
		} else if err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// stillInPlace gives a generation up that was to be rotated in place, where the
// definition, the alias or the key meanwhile ask for something else.
func (r *run) stillInPlace(ctx context.Context, g Generation, key Key, materials []Material) error {
	if r.def.Mode != modeInPlace && r.def.Mode != modeAuto {
		return r.restart(ctx, g, "the definition no longer asks for a rotation in place")
	}
	now, err := r.ownAlias(ctx)
	if err != nil {
		return err
	}
	if now.ID != "" && now.ID != g.KeyID {
		return r.restart(ctx, g, fmt.Sprintf("%s points at KMS key %s now, not at %s", r.def.Alias, now.ID, g.KeyID))
	}
	why, mend, err := r.hindrance(ctx, key, materials, g)
	switch {
	case err != nil || why == "":
		return err
	case r.def.Mode == modeAuto:
		return r.restart(ctx, g, why)
	}
	return hindered(why, mend)
}

// importInPlace imports the generation's material beside what its KMS key has,
// where it waits for the rotation.
func importInPlace(ctx context.Context, r *run, g Generation, key Key, s *Step) (Change, error) {
	materials, err := r.kms.KeyMaterials(ctx, g.KeyID)
	if err != nil {
		return Change{}, err
	}
	own, there := materialIn(materials, g)
	if !there || own.pending() {
		if err := r.stillInPlace(ctx, g, key, materials); err != nil {
			return Change{}, err
		}
	}
	if there && own.State == materialOld {
		return Change{}, r.restart(ctx, g, fmt.Sprintf("KMS key %s has been rotated past its material", g.KeyID))
	}
	if err := r.renew(ctx, g, materials, s); err != nil {
		return Change{}, err
	}
	recorded := !g.ImportedAt.IsZero() && g.MaterialID == own.ID
	switch {
	case there && own.Imported && r.asImported(own.ValidTo) && recorded:
		g.ValidTo = own.ValidTo
		s.Message = fmt.Sprintf("KMS key %s has the key material %s", g.KeyID, own.ID)
		return Change{Generations: []Generation{g}}, nil
	case there && own.Imported && r.asImported(own.ValidTo):
		g.ImportedAt, g.MaterialID, g.ValidTo, g.MaterialDeletedAt = r.importedAt(own.ValidTo), own.ID, own.ValidTo, time.Time{}
	default:
		sent := func() error { return r.importSent(ctx, s, 0) }
		g, err = r.importMaterial(ctx, g, !there, sent)
		switch {
		case errors.Is(err, errObjectGone):
			return Change{}, r.restart(ctx, g, errObjectGone.Error())
		case !there && (errors.Is(err, ErrState) || errors.Is(err, ErrIncorrectMaterial)):
			// KMS shows late what an unanswered import has brought.
			return Change{}, &Fault{Class: Transient, Err: err}
		case err != nil:
			return Change{}, err
		}
	}
	s.Message = fmt.Sprintf("imported %s into KMS key %s as key material %s, which waits for the rotation", g.HSMLabel, g.KeyID, g.MaterialID)
	return Change{Generations: []Generation{g}, Audit: []AuditEntry{r.audit("import key material", "%s into %s", g.HSMLabel, g.KeyARN)}}, nil
}

// importSent records that an import is being sent, of the job's own generation or
// of another one of its KMS key.
func (r *run) importSent(ctx context.Context, s *Step, other int) error {
	intent, err := s.importIntent()
	if err != nil {
		return err
	}
	if other == 0 {
		intent.SentAt = r.now()
	} else if !slices.Contains(intent.Others, other) {
		intent.Others = append(intent.Others, other)
	}
	s.Data = mustJSON(intent)
	return r.record(ctx, Change{Steps: []Step{*s}})
}

// renew imports the other materials of the generation's KMS key again that are
// missing, or that end earlier than they would if they were imported now: the
// first that ends takes the whole key down.
func (r *run) renew(ctx context.Context, g Generation, materials []Material, s *Step) error {
	for _, other := range materialsOf(r.generations, g.KeyID) {
		m, there := materialIn(materials, other)
		if other.Number == g.Number || !there {
			continue
		}
		intent, err := s.importIntent()
		if err != nil {
			return err
		}
		if !r.renews(m) && !slices.Contains(intent.Others, other.Number) {
			continue
		}
		other.MaterialID = m.ID
		if other, err = r.importMaterial(ctx, other, false, func() error { return r.importSent(ctx, s, other.Number) }); err != nil {
			return fmt.Errorf("generation %d: %w", other.Number, err)
		}
		done := *s // s itself says so once that is true
		if intent, err = s.importIntent(); err != nil {
			return err
		}
		intent.Others = slices.DeleteFunc(intent.Others, func(n int) bool { return n == other.Number })
		done.Data = mustJSON(intent)
		if err := r.record(ctx, Change{Steps: []Step{done}, Generations: []Generation{other},
			Audit: []AuditEntry{r.audit("import key material", "%s into %s again", other.HSMLabel, other.KeyARN)}}); err != nil {
			return err
		}
	}
	return nil
}

// renews reports whether a material of the key is imported again when the key is
// rotated.
func (r *run) renews(m Material) bool { return !m.Imported || !r.lasts(m.ValidTo) }

// lasts reports whether a ValidTo is not much earlier than that of an import sent
// now: attempts that wait for a person do not import everything again.
func (r *run) lasts(have time.Time) bool {
	want := validTo(r.kms.Now(), r.def.KeepValidFor)
	if want.IsZero() || have.IsZero() {
		return want.IsZero() == have.IsZero()
	}
	return want.Sub(have).Abs() <= min(renewAfter, r.def.KeepValidFor/2)
}

// readyInPlace returns the generation's material when its KMS key can be
// rotated, or has been.
func (r *run) readyInPlace(ctx context.Context, g Generation) (own Material, materials []Material, err error) {
	key, err := r.key(ctx, g)
	if err != nil {
		return own, nil, err
	}
	if materials, err = r.kms.KeyMaterials(ctx, g.KeyID); err != nil {
		return own, nil, err
	}
	own, there := materialIn(materials, g)
	switch {
	case there && own.State == materialOld:
		err = r.restart(ctx, g, fmt.Sprintf("KMS key %s has been rotated past its material", g.KeyID))
	case !there || !own.Imported || key.State == "PendingImport":
		err = r.importAgain(ctx, g)
	case own.pending():
		err = r.stillInPlace(ctx, g, key, materials)
	}
	if err == nil && key.State != "Enabled" {
		err = operator(WaitConfig, "KMS key %s is in state %s: enable it in KMS, then run byokctl retry", key.ID, key.State)
	}
	return own, materials, err
}

// verifyInPlace proves what can be proven before the rotation: that the material
// waits in the key, and that the key can be used.
func verifyInPlace(ctx context.Context, r *run, g Generation, s *Step) (Change, error) {
	own, _, err := r.readyInPlace(ctx, g)
	if err != nil {
		return Change{}, err
	}
	how, err := r.prove(ctx, g)
	if err != nil {
		return Change{}, err
	}
	s.Message = fmt.Sprintf("key material %s is in KMS key %s; it is proven again once it is the current one; now: %s", own.ID, g.KeyID, how)
	return Change{}, nil
}

// rotateIntent is the journalled intent of a rotation in place: the material that
// was current before.
type rotateIntent struct {
	KeyID string `json:"key_id"`
	From  string `json:"from_material"`
}

// activateInPlace makes the generation's material the current one of its KMS key.
// Before it the material can be deleted without harm; after it everything is
// driven forward.
func activateInPlace(ctx context.Context, r *run, g Generation, s *Step) (Change, error) {
	own, materials, err := r.readyInPlace(ctx, g)
	if err != nil {
		return Change{}, err
	}
	var intent rotateIntent
	if len(s.Data) > 0 {
		if err := json.Unmarshal(s.Data, &intent); err != nil {
			return Change{}, &Fault{Class: Permanent, Err: fmt.Errorf("read the step's intent: %w", err)}
		}
	}
	if own.State != materialCurrent {
		if intent.KeyID != g.KeyID || intent.From == "" {
			if i := slices.IndexFunc(materials, func(m Material) bool { return m.State == materialCurrent }); i >= 0 {
				intent = rotateIntent{KeyID: g.KeyID, From: materials[i].ID}
			}
		}
		if err := r.rotateKey(ctx, &g, intent, s); err != nil {
			return Change{}, err
		}
		if materials, err = r.kms.KeyMaterials(ctx, g.KeyID); err != nil {
			return Change{}, err
		}
	}
	how, err := r.prove(ctx, g)
	if err != nil {
		return Change{}, err
	}
	now, err := r.ownAlias(ctx)
	if err != nil {
		return Change{}, err
	}
	if now.ID != "" && now.ID != g.KeyID {
		return Change{}, operator(WaitAlias, "%s was moved by somebody else: it points at KMS key %s, and this job has rotated KMS key %s; "+
			"point it back at that one and run byokctl retry, or cancel the job", r.def.Alias, now.ID, g.KeyID)
	}

	var c Change
	for _, old := range r.generations {
		if old.Stage == Active && old.Number != g.Number {
			if intent.From == "" && old.KeyID == g.KeyID { // rotated by an attempt that the journal has lost
				intent.From = old.MaterialID
			}
			old.Stage, old.LeftAt = Previous, r.now()
			c.Generations = append(c.Generations, old)
		}
	}
	g.Stage, g.ActivatedAt, g.KeptAt, g.DisabledAt = Active, r.now(), time.Time{}, time.Time{}
	c.Generations = append(c.Generations, g)
	c.Plan = r.plan(c.Generations)
	c.Audit = []AuditEntry{r.audit("rotate key material", "KMS key %s from key material %s to %s", g.KeyARN, orNone(intent.From), g.MaterialID)}
	if now.ID == "" {
		c.Jobs = append(c.Jobs, NewJob{Kind: Synchronize, Group: r.job.Group, Trigger: r.job.Trigger,
			UniqueKey: "alias:" + r.job.ID, DueAt: r.now(), Definition: r.def})
	}
	left := rotationsLeft(materials)
	r.emit(&c, MaterialRotated, g.Account, resources(g.KeyARN, aliasARN(g.KeyARN, r.def.Alias)), map[string]any{
		"alias":                    r.def.Alias,
		"key_id":                   g.KeyID,
		"key_material_id":          g.MaterialID,
		"previous_key_material_id": orNull(intent.From),
		"generation":               g.Number,
		"rotations_left":           left,
	})
	s.Message = fmt.Sprintf("KMS key %s uses key material %s, before %s; %d of its %d rotations are left; %s", g.KeyID, g.MaterialID, orNone(intent.From), left, MaxRotations, how)
	return c, nil
}

// rotateKey has KMS make the generation's material the current one, and returns
// when it is. It is asked once: what an unanswered request has brought about is
// waited for first.
func (r *run) rotateKey(ctx context.Context, g *Generation, intent rotateIntent, s *Step) error {
	isCurrent := func() (bool, error) {
		materials, err := r.kms.KeyMaterials(ctx, g.KeyID)
		if err != nil {
			return false, err
		}
		own, _ := materialIn(materials, *g)
		return own.State == materialCurrent, nil
	}
	what := "rotate " + g.KeyID
	first := g.ActivatedAt.IsZero()
	if !first {
		if err := r.poll(ctx, what, isCurrent); err == nil || ClassOf(err) != Transient {
			return err
		}
	}
	running, err := r.rotating(ctx, g.KeyID)
	if err != nil {
		return err
	}
	if !running {
		if err := r.hasObject(ctx, *g); err != nil {
			return err
		}
		s.Data = mustJSON(intent)
		if first { // from here on it may be the current one
			g.ActivatedAt = r.now()
		}
		if err := r.record(ctx, Change{Steps: []Step{*s}, Generations: []Generation{*g}}); err != nil {
			return err
		}
		err := r.kms.RotateKeyOnDemand(ctx, g.KeyID)
		if c := ClassOf(err); err != nil && first && c != Unknown && c != Interrupted {
			if uerr := r.mayBeActive(ctx, g, time.Time{}); uerr != nil {
				return errors.Join(err, uerr)
			}
		}
		switch {
		case errors.Is(err, ErrLimit) && r.def.Mode == modeAuto:
			why := fmt.Sprintf("KMS key %s has used up its rotations", g.KeyID)
			create := *r.step("create")
			create.Data = mustJSON(createIntent{Fresh: why})
			if err := r.record(ctx, Change{Steps: []Step{create}}); err != nil {
				return err
			}
			return r.restart(ctx, *g, why)
		case errors.Is(err, ErrLimit):
			return operator(WaitConfig, `KMS key %s has used up its rotations, so it cannot be rotated in place (mode = "in-place"): `+
				`write mode = "auto" under [rotation]: a fresh KMS key is made and the alias moved to it: %w`, g.KeyID, err)
		case errors.Is(err, ErrState): // the next attempt looks which
			return &Fault{Class: Transient, Err: err}
		case err != nil:
			return err
		}
	}
	return r.poll(ctx, what, isCurrent)
}

// rotating reports whether a rotation of the key is under way. Of a key whose
// material is missing KMS does not say; it cannot be rotated either.
func (r *run) rotating(ctx context.Context, keyID string) (bool, error) {
	started, err := r.kms.RotationStarted(ctx, keyID)
	if ClassOf(err) == Permanent {
		return false, nil
	}
	return !started.IsZero(), err
}

// hasObject returns nil when the generation's material is in the HSM: without it
// the key that is rotated to it could not be brought back one day.
func (r *run) hasObject(ctx context.Context, g Generation) error {
	id, err := hsmID(g)
	if err != nil {
		return err
	}
	err = r.hsm.Find(ctx, g.HSMLabel, id)
	if errors.Is(err, ErrNotFound) {
		return r.restart(ctx, g, errObjectGone.Error())
	}
	return err
}

// giveUpInPlace ends a generation that was to be material of another one's KMS
// key: its pending material, which nothing was encrypted with, is deleted. The
// key itself is left as it is.
func (r *run) giveUpInPlace(ctx context.Context, g Generation, why string, steps []Step) error {
	materials, err := r.kms.KeyMaterials(ctx, g.KeyID)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	own, there := materialIn(materials, g)
	if there && !own.pending() {
		g.Stage, g.LeftAt = Previous, r.now()
		return r.record(ctx, Change{Steps: steps, Generations: []Generation{g},
			Audit: []AuditEntry{r.audit("leave generation", "generation %d, KMS key %s: %s; the key has been rotated to its material, so nothing of it is destroyed", g.Number, g.KeyID, why)}})
	}
	if there && !g.ActivatedAt.IsZero() {
		// A rotation may have been asked for.
		running, err := r.rotating(ctx, g.KeyID)
		if err != nil {
			return err
		}
		if running || r.now().Sub(g.ActivatedAt).Abs() < goneAfter {
			return &Fault{Class: Transient, Err: fmt.Errorf("generation %d is to be given up (%s), but a rotation of KMS key %s may be under way: looking again", g.Number, why, g.KeyID)}
		}
	}
	r.log.Warn("generation given up", "generation", g.Number, "key_id", g.KeyID, "hsm_label", g.HSMLabel, "reason", why)
	if there {
		if err := r.kms.DeleteKeyMaterial(ctx, g.KeyID, own.ID); err != nil {
			return err
		}
	}
	if err := r.destroyObject(ctx, g); err != nil {
		return err
	}
	g.Stage, g.ActivatedAt = Destroyed, time.Time{}
	return r.record(ctx, Change{Steps: steps, Generations: []Generation{g},
		Audit: []AuditEntry{r.audit("give up generation", "generation %d, key material %s of KMS key %s, HSM object %s: %s", g.Number, orNone(own.ID), g.KeyID, g.HSMLabel, why)}})
}
