package lifecycle

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"
)

// errObjectGone is an HSM object that is not on the token any more.
var errObjectGone = errors.New("its HSM object is not on the token")

// generate reserves a generation and makes its key in the HSM. A generation
// that an earlier rotation left pre-active is gone on with.
func generate(ctx context.Context, r *run, s *Step) (Change, error) {
	if _, err := r.ownAlias(ctx); err != nil {
		return Change{}, err
	}
	for {
		g, fresh, err := r.reserve(ctx, s)
		if err != nil {
			return Change{}, err
		}
		id, err := hsmID(g)
		if err != nil {
			return Change{}, err
		}
		// No object can have an ID that was drawn just now, and a token with many
		// takes long to say so.
		err = ErrNotFound
		if !fresh {
			err = r.hsm.Find(ctx, g.HSMLabel, id)
		}
		switch {
		case err == nil:
			s.Message = fmt.Sprintf("found %s on the token", g.HSMLabel)
		case !errors.Is(err, ErrNotFound):
			return Change{}, err
		case !g.GeneratedAt.IsZero() && !g.ActivatedAt.IsZero() && r.inPlace(g):
			// Its material may be the current one: activate looks.
			s.Message = fmt.Sprintf("%s is not on the token any more", g.HSMLabel)
			return Change{}, nil
		case !g.GeneratedAt.IsZero():
			// The key was on the token and is there no more: nothing can come of
			// this generation, and its number is not used again.
			if err := r.giveUp(ctx, g, errObjectGone.Error(), nil); err != nil {
				return Change{}, err
			}
			continue
		default:
			if err := r.hsm.Generate(ctx, g.HSMLabel, id); err != nil {
				return Change{}, err
			}
			// A token that loses keys says so here, before AWS is asked for anything.
			if err := r.hsm.Find(ctx, g.HSMLabel, id); errors.Is(err, ErrNotFound) {
				return Change{}, &Fault{Class: Unknown, Err: fmt.Errorf("the token does not have %s, which it has just generated: %w", g.HSMLabel, err)}
			} else if err != nil {
				return Change{}, fmt.Errorf("look for the key just generated: %w", err)
			}
			s.Message = fmt.Sprintf("generated %s on the token", g.HSMLabel)
		}
		if !g.GeneratedAt.IsZero() {
			return Change{}, nil
		}
		g.GeneratedAt = r.now()
		return Change{Generations: []Generation{g},
			Audit: []AuditEntry{r.audit("generate key", "HSM object %s, ID %s", g.HSMLabel, g.HSMID)}}, nil
	}
}

// hsmID returns the CKA_ID of a generation's HSM object.
func hsmID(g Generation) ([]byte, error) {
	id, err := hex.DecodeString(g.HSMID)
	if err != nil || len(id) == 0 {
		return nil, &Fault{Class: Permanent, Err: fmt.Errorf("generation %d: HSM ID %q is not one", g.Number, g.HSMID)}
	}
	return id, nil
}

// reserve returns the generation that this job works on: the one it has taken,
// else the pre-active one, else a new one, which is in the journal before the
// HSM hears of it; fresh says that it is new.
func (r *run) reserve(ctx context.Context, s *Step) (g Generation, fresh bool, err error) {
	if g, ok := r.generation(r.job.Generation); ok && r.job.Generation != 0 && g.Stage == PreActive {
		return g, false, nil
	}
	next := 1
	var found *Generation
	for _, g := range r.generations {
		next = max(next, g.Number+1)
		if g.Stage == PreActive {
			found = &g
		}
	}
	if fresh = found == nil; fresh {
		found = &Generation{Group: r.job.Group, Number: next, Stage: PreActive, HSM: r.def.HSM,
			HSMLabel: Label(r.job.Group, next), HSMID: newHSMID(), Region: r.def.Region}
	}
	return *found, fresh, r.record(ctx, Change{Generation: found.Number, Steps: []Step{*s}, Generations: []Generation{*found}})
}

// newHSMID chooses the CKA_ID of a key to be generated: 16 random bytes, in hex.
func newHSMID() string {
	id := make([]byte, 16)
	rand.Read(id)
	return hex.EncodeToString(id)
}

// giveUp ends a pre-active generation that can no longer be used: its HSM object
// is destroyed and its KMS key, which nothing was ever encrypted with, scheduled
// for deletion. One that the alias may have pointed at is left as it is and counts
// as previous. The steps are recorded with it.
func (r *run) giveUp(ctx context.Context, g Generation, why string, steps []Step) error {
	if r.inPlace(g) {
		return r.giveUpInPlace(ctx, g, why, steps)
	}
	keys := []TaggedKey{{KeyID: g.KeyID, ARN: g.KeyARN}}
	switch {
	case g.KeyID == "" && g.JobID == "" || names(r.def.ActiveKeyID, g.KeyID): // none, or a person's
		keys = nil
	case g.KeyID == "":
		found, err := r.kms.FindKeys(ctx, map[string]string{TagJob: g.JobID, TagHSMID: g.HSMID})
		if err != nil {
			return fmt.Errorf("look for the key of an unanswered CreateKey: %w", err)
		}
		keys = found
	default:
		at, err := target(ctx, r.kms, r.def.Alias)
		if err != nil {
			return err
		}
		if at.ID == g.KeyID {
			return operator(WaitAlias, "generation %d cannot be gone on with (%s), but %s points at its KMS key %s: "+
				"point the alias at another of the group's keys, then run byokctl retry", g.Number, why, r.def.Alias, g.KeyID)
		}
	}
	if !g.ActivatedAt.IsZero() {
		key, err := r.kms.DescribeKey(ctx, g.KeyID)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		g.Stage, g.DeletionDate, g.LeftAt = Previous, key.DeletionDate, r.now()
		return r.record(ctx, Change{Steps: steps, Generations: []Generation{g},
			Audit: []AuditEntry{r.audit("leave generation", "generation %d, KMS key %s: %s; %s may have pointed at it, so nothing of it is destroyed", g.Number, orNone(g.KeyID), why, r.def.Alias)}})
	}
	r.log.Warn("generation given up", "generation", g.Number, "key_id", g.KeyID, "hsm_label", g.HSMLabel, "reason", why)
	c := Change{Steps: steps, Audit: []AuditEntry{r.audit("give up generation", "generation %d, KMS key %s, HSM object %s: %s", g.Number, orNone(g.KeyID), g.HSMLabel, why)}}
	for _, k := range keys {
		date, err := scheduleDeletion(ctx, r.kms, k.KeyID)
		if err != nil {
			return err
		}
		if date.IsZero() {
			continue
		}
		if k.KeyID == g.KeyID {
			g.DeletionDate = date
		}
		r.event(&c, DeletionSet, g.Account, resources(k.ARN), map[string]any{"key_id": k.KeyID, "generation": g.Number})
	}
	if err := r.destroyObject(ctx, g); err != nil {
		return err
	}
	g.Stage = Destroyed
	c.Generations = []Generation{g}
	return r.record(ctx, c)
}

// destroyObject removes the generation's HSM object, if it has one.
func (r *run) destroyObject(ctx context.Context, g Generation) error {
	id, err := hsmID(g)
	if err != nil {
		return nil
	}
	return r.hsm.Destroy(ctx, g.HSMLabel, id)
}

// scheduleDeletion schedules a key's deletion where that has not been done, and
// returns its date: zero for a key that is gone already.
func scheduleDeletion(ctx context.Context, kms KMS, keyID string) (time.Time, error) {
	key, err := kms.DescribeKey(ctx, keyID)
	switch {
	case errors.Is(err, ErrNotFound):
		return time.Time{}, nil
	case err != nil:
		return time.Time{}, err
	case key.State == "PendingDeletion":
		return key.DeletionDate, nil
	}
	return kms.ScheduleDeletion(ctx, keyID, deletionDays)
}

// restart gives the job's generation up and sends the job back to its first step.
func (r *run) restart(ctx context.Context, g Generation, why string) error {
	reset := make([]Step, len(r.job.Steps))
	for i, s := range r.job.Steps {
		reset[i] = Step{Name: s.Name, State: Pending, Message: fmt.Sprintf("generation %d was given up: %s", g.Number, why)}
		if intent, err := s.createIntent(); s.Name == "create" && err == nil && intent.Fresh != "" {
			reset[i].Data = mustJSON(createIntent{Fresh: intent.Fresh})
		}
	}
	if err := r.giveUp(ctx, g, why, reset); err != nil {
		return err
	}
	return errRestart
}

// key describes the KMS key of the job's generation. A key that is gone or
// scheduled for deletion ends the generation.
func (r *run) key(ctx context.Context, g Generation) (Key, error) {
	key, err := r.kms.DescribeKey(ctx, g.KeyID)
	switch {
	case errors.Is(err, ErrNotFound) && r.now().Sub(g.CreatedAt) > goneAfter:
		return key, r.restart(ctx, g, "KMS key "+g.KeyID+" no longer exists")
	case errors.Is(err, ErrNotFound):
		return key, &Fault{Class: Transient, Err: err} // KMS shows a new key late
	case err != nil:
		return key, err
	case key.State == "PendingDeletion":
		return key, r.restart(ctx, g, "KMS key "+g.KeyID+" is scheduled for deletion")
	}
	return key, nil
}

// ready returns nil when the alias can be pointed at the generation's key. Key
// material that is gone again is imported by the next attempt.
func (r *run) ready(ctx context.Context, g Generation) error {
	if r.job.Kind == Rollback {
		return r.rollbackReady(ctx, g)
	}
	key, err := r.key(ctx, g)
	if err != nil {
		return err
	}
	switch key.State {
	case "Enabled":
		return nil
	case "PendingImport":
		return r.importAgain(ctx, g)
	}
	return notReady(key)
}

// importAgain has the next attempt import key material that is gone.
func (r *run) importAgain(ctx context.Context, g Generation) error {
	var reset []Step
	for _, name := range []string{"import", "verify"} {
		reset = append(reset, Step{Name: name, State: Pending, Message: "the key material is gone: importing it again"})
	}
	if err := r.record(ctx, Change{Steps: reset}); err != nil {
		return err
	}
	return &Fault{Class: Transient, Err: fmt.Errorf("KMS key %s of the new generation has lost key material: importing it again", g.KeyID)}
}

func notReady(key Key) error {
	return operator(WaitConfig, "KMS key %s of the new generation is in state %s: enable it in KMS, or schedule its deletion so that byokd makes another", key.ID, key.State)
}

// own returns the generation that this job works on.
func (r *run) own() (Generation, error) {
	g, ok := r.generation(r.job.Generation)
	if !ok {
		return Generation{}, &Fault{Class: Permanent, Err: fmt.Errorf("generation %d is not in the database", r.job.Generation)}
	}
	return g, nil
}

// createIntent is the journalled intent of create.
type createIntent struct {
	SentAt   time.Time `json:"sent_at"`  // of the latest CreateKey, or when one of an earlier job was first looked for
	Answered bool      `json:"answered"` // with an error that says that there is no key

	// Fresh is why a key is made although the active one seems to have rotations
	// left; "": not known.
	Fresh string `json:"fresh,omitempty"`
}

func (s *Step) createIntent() (intent createIntent, err error) {
	if len(s.Data) > 0 {
		if err := json.Unmarshal(s.Data, &intent); err != nil {
			return intent, &Fault{Class: Permanent, Err: fmt.Errorf("read the step's intent: %w", err)}
		}
	}
	return intent, nil
}

// create makes the KMS key. CreateKey has no idempotency token, so the tags are
// the handle by which a key is found whose CreateKey was never answered.
func create(ctx context.Context, r *run, s *Step) (Change, error) {
	g, err := r.own()
	if err != nil {
		return Change{}, err
	}
	if g.KeyID != "" && r.inPlace(g) {
		return r.skip(s, "in place: KMS key "+g.KeyID+" gets the new key material")
	}
	if g.KeyID != "" {
		return r.created(ctx, g, s)
	}
	intent, err := s.createIntent()
	if err != nil {
		return Change{}, err
	}
	if g.JobID == "" && intent.Fresh == "" {
		old, why, inPlace, err := r.chooseKey(ctx, g)
		if err != nil {
			return Change{}, err
		}
		if inPlace {
			s.State, s.Message = Skipped, why
			return Change{Generations: []Generation{g.withKeyFacts(old)}}, nil
		}
		intent.Fresh = why
	}
	if g.JobID != "" { // a CreateKey was to be sent
		found, err := r.kms.FindKeys(ctx, map[string]string{TagJob: g.JobID, TagHSMID: g.HSMID})
		if err != nil {
			return Change{}, fmt.Errorf("look for the key of an unanswered CreateKey: %w", err)
		}
		if len(found) > 0 {
			return r.adopt(ctx, g, found, s)
		}
		if err := r.lookLonger(ctx, s); err != nil {
			return Change{}, err
		}
	}

	policy, err := r.policyForNewKey(ctx)
	if err != nil {
		return Change{}, err
	}
	if g.JobID == "" {
		g.JobID = r.job.ID
	}
	g.Policy, g.Tags = policy, r.def.Tags
	intent.SentAt, intent.Answered = r.now(), false
	s.Data = mustJSON(intent)
	if err := r.record(ctx, Change{Steps: []Step{*s}, Generations: []Generation{g}}); err != nil {
		return Change{}, err
	}
	description := ""
	if r.def.Description != nil {
		description = *r.def.Description
	}
	key, err := r.kms.CreateKey(ctx, description, policy, r.tags(g))
	if err != nil {
		if c := ClassOf(err); c != Unknown && c != Interrupted {
			intent.Answered = true // KMS said no, or was not asked
			s.Data = mustJSON(intent)
		}
		return Change{}, err
	}
	g.KeyID, g.KeyARN, g.Account, g.CreatedAt = key.ID, key.ARN, key.Account, key.CreatedAt
	s.Message = "created KMS key " + key.ID
	if intent.Fresh != "" {
		s.Message += ", since " + intent.Fresh
	}
	return Change{Generations: []Generation{g}, Audit: []AuditEntry{r.audit("create KMS key", "%s for generation %d", key.ARN, g.Number)}}, nil
}

// lookLonger returns nil when an unanswered CreateKey has been looked for long
// enough, and until then an error that has the job look again.
func (r *run) lookLonger(ctx context.Context, s *Step) error {
	intent, err := s.createIntent()
	if err != nil {
		return err
	}
	if intent.Answered {
		return nil
	}
	now := r.now()
	if intent.SentAt.IsZero() || intent.SentAt.After(now) {
		// Of an earlier job, or before the clock was set back: counted from now.
		intent.SentAt = now
		s.Data = mustJSON(intent)
		if err := r.record(ctx, Change{Steps: []Step{*s}}); err != nil {
			return err
		}
	}
	if until := intent.SentAt.Add(r.createLook()); until.After(now) {
		return &Fault{Class: Transient, After: min(until.Sub(now), lookPause), Err: fmt.Errorf(
			"an earlier CreateKey was not answered and no key with its tags is to be found yet: looking until %s before another key is made", until.UTC().Format(time.RFC3339))}
	}
	return nil
}

func (e *Engine) createLook() time.Duration {
	if e.CreateLook > 0 {
		return e.CreateLook
	}
	return defaultCreateLook
}

// created goes on with a key that the journal knows.
func (r *run) created(ctx context.Context, g Generation, s *Step) (Change, error) {
	key, err := r.key(ctx, g)
	if err != nil {
		return Change{}, err
	}
	if key.Origin != "EXTERNAL" || key.KeySpec != "SYMMETRIC_DEFAULT" {
		return Change{}, &Fault{Class: Permanent, Err: fmt.Errorf("KMS key %s has origin %s and key spec %s, not EXTERNAL and SYMMETRIC_DEFAULT", g.KeyID, key.Origin, key.KeySpec)}
	}
	if g.JobID == "" { // a key that a person made: from now on its tags say whose it is
		g.JobID = r.job.ID
	}
	if err := r.conform(ctx, &g, key); err != nil {
		return Change{}, err
	}
	s.Message = "going on with KMS key " + g.KeyID
	return Change{Generations: []Generation{g}}, nil
}

// conform makes a key that another job or a person has created what this job's
// definition would have made it.
func (r *run) conform(ctx context.Context, g *Generation, key Key) error {
	if r.def.Description != nil && key.Description != *r.def.Description {
		if err := r.kms.SetDescription(ctx, g.KeyID, *r.def.Description); err != nil {
			return err
		}
	}
	if r.def.Policy != nil {
		have, err := r.kms.KeyPolicy(ctx, g.KeyID)
		if err != nil {
			return err
		}
		if !r.samePolicy(have, *r.def.Policy) {
			if err := r.kms.PutKeyPolicy(ctx, g.KeyID, *r.def.Policy); err != nil {
				return err
			}
		}
		g.Policy = *r.def.Policy
	}
	have, err := r.kms.KeyTags(ctx, g.KeyID)
	if err != nil {
		return err
	}
	set, gone := r.tagDifference(*g, have)
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
	g.Tags = r.def.Tags
	return nil
}

// adopt takes the oldest of the keys that carry this generation's tags; a double
// was never used and is scheduled for deletion.
func (r *run) adopt(ctx context.Context, g Generation, found []TaggedKey, s *Step) (Change, error) {
	var best Key
	var doubles []Key
	for _, f := range found {
		key, err := r.kms.DescribeKey(ctx, f.KeyID)
		if errors.Is(err, ErrNotFound) {
			return Change{}, &Fault{Class: Transient, Err: err} // tagged, but not described yet
		}
		if err != nil {
			return Change{}, err
		}
		switch {
		case key.State == "PendingDeletion":
		case best.ID == "":
			best = key
		case key.CreatedAt.Before(best.CreatedAt):
			doubles = append(doubles, best)
			best = key
		default:
			doubles = append(doubles, key)
		}
	}
	if best.ID == "" {
		return Change{}, r.restart(ctx, g, "its KMS key is scheduled for deletion")
	}
	var c Change
	for _, d := range doubles {
		c.Jobs = append(c.Jobs, r.retireDouble(r.def, r.job.Trigger, g.Number, d.ID))
	}
	g.KeyID, g.KeyARN, g.Account, g.CreatedAt = best.ID, best.ARN, best.Account, best.CreatedAt
	if g.JobID != r.job.ID {
		if err := r.conform(ctx, &g, best); err != nil {
			return Change{}, err
		}
	}
	s.Message = "found KMS key " + best.ID + " of an unanswered CreateKey by its tags"
	c.Generations = []Generation{g}
	c.Audit = append(c.Audit, r.audit("adopt KMS key", "%s for generation %d", best.ARN, g.Number))
	return c, nil
}

// tags are all the tags of a generation's KMS key.
func (r *run) tags(g Generation) map[string]string {
	tags := maps.Clone(r.def.Tags)
	if tags == nil {
		tags = make(map[string]string)
	}
	first := g
	if all := materialsOf(r.generations, g.KeyID); len(all) > 0 {
		first = all[0]
	}
	tags[TagGroup] = r.job.Group
	tags[TagGeneration] = strconv.Itoa(first.Number)
	tags[TagJob] = g.JobID
	tags[TagHSMID] = first.HSMID
	return tags
}

// policyForNewKey is the definition's key policy, else a copy of the active
// key's, else "" for AWS's default.
func (r *run) policyForNewKey(ctx context.Context) (string, error) {
	if r.def.Policy != nil {
		return *r.def.Policy, nil
	}
	g, ok := r.active()
	if !ok || g.KeyID == "" {
		return "", nil
	}
	policy, err := r.kms.KeyPolicy(ctx, g.KeyID)
	if errors.Is(err, ErrNotFound) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("copy the key policy of the active key: %w", err)
	}
	return policy, nil
}

// importIntent is the journalled intent of import.
type importIntent struct {
	SentAt time.Time `json:"sent_at"`          // of an ImportKeyMaterial whose outcome is not known
	Others []int     `json:"others,omitempty"` // generations of the same key that are being imported again
}

func (s *Step) importIntent() (intent importIntent, err error) {
	if len(s.Data) > 0 {
		if err := json.Unmarshal(s.Data, &intent); err != nil {
			return intent, &Fault{Class: Permanent, Err: fmt.Errorf("read the step's intent: %w", err)}
		}
	}
	return intent, nil
}

// importNew imports the key material of the job's generation.
func importNew(ctx context.Context, r *run, s *Step) (Change, error) {
	g, err := r.own()
	if err != nil {
		return Change{}, err
	}
	key, err := r.key(ctx, g)
	if err != nil {
		return Change{}, err
	}
	if r.inPlace(g) {
		return importInPlace(ctx, r, g, key, s)
	}
	intent, err := s.importIntent()
	if err != nil {
		return Change{}, err
	}
	if key.State != "PendingImport" && key.State != "Enabled" {
		return Change{}, notReady(key)
	}
	// Material that is there already counts only if it is known to come from the
	// HSM: recorded, or of an import of this job that was not answered. Any other
	// is proven by importing: KMS takes the same material again and no other.
	recorded := g.MaterialID != "" && g.MaterialID == key.MaterialID && !g.ImportedAt.IsZero()
	present := key.State == "Enabled" && key.MaterialID != "" && r.asImported(key.ValidTo)
	switch {
	case present && !intent.SentAt.IsZero():
		g.ImportedAt, g.MaterialID, g.ValidTo, g.MaterialDeletedAt = r.importedAt(key.ValidTo), key.MaterialID, key.ValidTo, time.Time{}
	case present && recorded:
		g.ValidTo = key.ValidTo
		s.Message = "KMS key " + g.KeyID + " has its key material"
		return Change{Generations: []Generation{g}}, nil
	default:
		sent := func() error {
			s.Data = mustJSON(importIntent{SentAt: r.now()})
			return r.record(ctx, Change{Steps: []Step{*s}})
		}
		imported, err := r.importMaterial(ctx, g, false, sent)
		switch {
		case errors.Is(err, errObjectGone):
			return Change{}, r.restart(ctx, g, errObjectGone.Error())
		case errors.Is(err, ErrIncorrectMaterial):
			s.Data = nil
			return Change{}, operator(WaitConfig, "KMS key %s of the new generation holds key material that is not the HSM's: "+
				"schedule its deletion so that byokd makes another key: %w", g.KeyID, err)
		case err != nil:
			if c := ClassOf(err); (c == Operator || c == Permanent) && imported.ImportedAt.Equal(g.ImportedAt) {
				s.Data = nil // KMS said no
			}
			return Change{}, err
		}
		g = imported
	}
	s.Message = "imported " + g.HSMLabel + " into KMS key " + g.KeyID
	if !g.ValidTo.IsZero() {
		s.Message += ", valid to " + g.ValidTo.Format(time.RFC3339)
	}
	return Change{Generations: []Generation{g}, Audit: []AuditEntry{r.audit("import key material", "%s into %s", g.HSMLabel, g.KeyARN)}}, nil
}

// asImported reports whether a ValidTo is the one that an import sent now, or a
// little while ago, would have asked for.
func (r *run) asImported(have time.Time) bool {
	want := validTo(r.kms.Now(), r.def.KeepValidFor)
	if want.IsZero() || have.IsZero() {
		return want.IsZero() == have.IsZero()
	}
	return want.Sub(have).Abs() <= ownImport
}

// importedAt is when material was imported that has this ValidTo.
func (r *run) importedAt(validTo time.Time) time.Time {
	if validTo.IsZero() {
		return r.kms.Now()
	}
	return validTo.Add(-min(r.def.KeepValidFor, maxValidity))
}

// importMaterial wraps the generation's key inside the HSM, imports it, and
// returns the generation as it is then; sent is called right before the import
// is sent. isNew: beside the other material of its KMS key, as material that the
// key does not have yet. Repeating it is harmless: KMS takes the same material
// again.
func (r *run) importMaterial(ctx context.Context, g Generation, isNew bool, sent func() error) (Generation, error) {
	algorithm, err := r.hsm.Algorithm(ctx)
	if err != nil {
		return g, err
	}
	id, err := hsmID(g)
	if err != nil {
		return g, err
	}
	for attempt := 1; ; attempt++ {
		var p ImportParameters
		// A key created a moment ago may not be found yet.
		if err := r.poll(ctx, "import parameters for "+g.KeyID, func() (bool, error) {
			p, err = r.kms.ParametersForImport(ctx, g.KeyID, algorithm)
			return err == nil, err
		}); err != nil {
			return g, err
		}
		wrapped, err := r.hsm.Wrap(ctx, g.HSMLabel, id, algorithm, p.PublicKey)
		if errors.Is(err, ErrNotFound) {
			return g, operator(WaitConfig, "HSM object %s: %w: restore it from the HSM's backup, then run byokctl retry", g.HSMLabel, errObjectGone)
		}
		if err != nil {
			return g, err
		}
		if err := sent(); err != nil {
			return g, err
		}
		now := r.kms.Now()
		validTo := validTo(now, r.def.KeepValidFor)
		i := Import{New: isNew, Description: MaterialDescription(g), ValidTo: validTo}
		if !isNew {
			i.MaterialID = g.MaterialID
		}
		material, err := r.kms.ImportKeyMaterial(ctx, g.KeyID, p.Token, wrapped, i)
		if errors.Is(err, ErrImportToken) && attempt == 1 {
			continue
		}
		if errors.Is(err, ErrImportToken) {
			return g, &Fault{Class: Transient, Err: err}
		}
		if err != nil {
			return g, err
		}
		if g.MaterialID != "" && material != "" && material != g.MaterialID {
			return g, &Fault{Class: Permanent, Err: fmt.Errorf("KMS key %s answers with key material %s, the record says %s", g.KeyID, material, g.MaterialID)}
		}
		if material != "" {
			g.MaterialID = material
		}
		g.ImportedAt, g.ValidTo, g.MaterialDeletedAt = now, validTo, time.Time{}
		break
	}
	return g, r.poll(ctx, "import into "+g.KeyID, func() (bool, error) {
		if r.shares(g) {
			materials, err := r.kms.KeyMaterials(ctx, g.KeyID)
			m, ok := materialIn(materials, g)
			return ok && m.Imported && m.ValidTo.Equal(g.ValidTo), err
		}
		key, err := r.kms.DescribeKey(ctx, g.KeyID)
		if err != nil {
			return false, err
		}
		if g.MaterialID == "" {
			g.MaterialID = key.MaterialID
		}
		return (key.State == "Enabled" || key.State == "Disabled") && key.MaterialID == g.MaterialID, nil
	})
}

// validTo is the ValidTo of an import that is sent now: whole seconds, and never
// so late that KMS would refuse it. Zero: the material does not expire.
func validTo(now time.Time, keep time.Duration) time.Time {
	if keep == 0 {
		return time.Time{}
	}
	return now.Add(min(keep, maxValidity)).Truncate(time.Second).UTC()
}

// verify proves the new key before the alias moves to it.
func verify(ctx context.Context, r *run, s *Step) (Change, error) {
	g, err := r.own()
	if err != nil {
		return Change{}, err
	}
	if r.job.Kind == Rotate && r.inPlace(g) {
		return verifyInPlace(ctx, r, g, s)
	}
	if err := r.ready(ctx, g); err != nil {
		return Change{}, err
	}
	s.Message, err = r.prove(ctx, g)
	return Change{}, err
}

// prove proves that the generation's KMS key can be used, and returns how.
func (r *run) prove(ctx context.Context, g Generation) (how string, err error) {
	if r.def.Verify != "describe" {
		err := r.probe(ctx, g)
		if err == nil {
			return "crypto: KMS key " + g.KeyID + " encrypts and decrypts", nil
		}
		if r.def.Verify == "crypto" || !errors.Is(err, ErrDenied) {
			return "", err
		}
	}
	material := "the key material that was imported"
	err = r.poll(ctx, "verify "+g.KeyID, func() (bool, error) {
		key, err := r.kms.DescribeKey(ctx, g.KeyID)
		if r.inPlace(g) && g.ActivatedAt.IsZero() { // not yet the current one
			material = "key material"
			key.MaterialID = g.MaterialID
		}
		return err == nil && key.State == "Enabled" && (g.Number == 0 || key.Origin == "EXTERNAL" && key.MaterialID == g.MaterialID), err
	})
	if err != nil {
		return "", err
	}
	how = "describe: KMS key " + g.KeyID + " is Enabled"
	if g.Number > 0 {
		how += ", EXTERNAL, and has " + material
	}
	if r.def.Verify != "describe" {
		how += " (kms:Encrypt or kms:Decrypt is not granted)"
	}
	return how, nil
}

// probe encrypts and decrypts by key ID until that goes well.
func (r *run) probe(ctx context.Context, g Generation) error {
	return r.poll(ctx, "verify "+g.KeyID, func() (bool, error) {
		err := r.seal(ctx, g.KeyID, g.KeyID)
		return err == nil, err
	})
}

// seal encrypts by through, a key ID or an alias, and decrypts by key ID, under
// byokd's own encryption context.
func (r *run) seal(ctx context.Context, through, keyID string) error {
	plain := make([]byte, 32)
	rand.Read(plain)
	under := map[string]string{CanaryContext: r.job.Group}
	sealed, err := r.kms.Encrypt(ctx, through, plain, under)
	if err != nil {
		return err
	}
	opened, err := r.kms.Decrypt(ctx, keyID, sealed, under)
	if err != nil {
		return err
	}
	if string(opened) != string(plain) {
		return &Fault{Class: Permanent, Err: fmt.Errorf("KMS key %s decrypts to something else than was encrypted", keyID)}
	}
	return nil
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
