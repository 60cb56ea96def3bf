package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
)

// target returns the key that an alias points at; no key where the alias does
// not exist.
func target(ctx context.Context, kms KMS, alias string) (Key, error) {
	key, err := kms.DescribeKey(ctx, alias)
	if errors.Is(err, ErrNotFound) {
		return Key{}, nil
	}
	if err != nil {
		return Key{}, fmt.Errorf("look at %s: %w", alias, err)
	}
	return key, nil
}

// ownAlias returns the key that the definition's alias points at, and an
// Operator fault when that key is not the group's by database or tags.
func (r *run) ownAlias(ctx context.Context) (Key, error) {
	key, err := target(ctx, r.kms, r.def.Alias)
	if err != nil || key.ID == "" {
		return key, err
	}
	if _, ok := byKey(r.generations, key.ID); ok {
		return key, nil
	}
	tags, err := r.kms.KeyTags(ctx, key.ID)
	if err != nil && !errors.Is(err, ErrDenied) && !errors.Is(err, ErrNotFound) {
		return key, fmt.Errorf("read the tags of %s: %w", key.ID, err)
	}
	if owner := tags[TagGroup]; owner == r.job.Group || owner != "" && owner == r.def.PreviousName {
		return key, nil
	}
	return key, foreignAlias(r.def.Alias, key.ID, r.generations)
}

// foreignAlias is the fault of an alias that points at a key which is not the
// group's, with what a person can do about it.
func foreignAlias(alias, keyID string, generations []Generation) error {
	if len(generations) == 0 {
		return operator(WaitAlias, "%s points at KMS key %s, which is not this group's, so it is not moved: "+
			"to take that key over, write active_key_id = %q under [aws] in the group's file; otherwise choose another alias", alias, keyID, keyID)
	}
	back := "point it back at one of the group's keys"
	if g, ok := activeOf(generations); ok {
		back = "point it back at KMS key " + g.KeyID
	}
	return operator(WaitAlias, "%s points at KMS key %s, which is not this group's, so it is not moved: %s and run byokctl retry, or choose another alias "+
		"(active_key_id = %q would take that key over in a group that has no generation yet)", alias, keyID, back, keyID)
}

// aliasIntent is the journalled intent of activate: the key that the alias is
// moved from ("": a new alias), and that it is moved to.
type aliasIntent struct {
	From    string `json:"from"`
	FromARN string `json:"from_arn"`
	To      string `json:"to"`

	Found bool   `json:"found,omitempty"` // it pointed there before the job came to move it
	Back  string `json:"back,omitempty"`  // why it is being put back; "": it is not
}

// activate points the alias at the new generation and proves that it works
// through the alias; where it does not, the alias goes back. Before that the
// generation can be given up; after it everything is driven forward.
func activate(ctx context.Context, r *run, s *Step) (Change, error) {
	g, err := r.own()
	if err != nil {
		return Change{}, err
	}
	if r.job.Kind == Rotate && r.inPlace(g) {
		return activateInPlace(ctx, r, g, s)
	}
	intent, now, err := r.aliasIntent(ctx, g, s)
	if err != nil {
		return Change{}, err
	}
	if intent.Back != "" {
		return Change{}, r.putBack(ctx, g, intent, s)
	}
	first := g.ActivatedAt.IsZero() && r.job.Kind == Rotate
	if now.ID == intent.To {
		intent.Found = intent.Found || first // this job has not come to move it
	} else {
		// An attempt may have waited for a person since the key was verified.
		if err := r.ready(ctx, g); err != nil {
			return Change{}, err
		}
		if first { // from here on the alias may have pointed at it
			if err := r.mayBeActive(ctx, &g, r.now()); err != nil {
				return Change{}, err
			}
		}
		if now, err = target(ctx, r.kms, r.def.Alias); err != nil {
			return Change{}, err
		}
	}
	if err := r.moveAlias(ctx, now.ID, intent); first && errors.Is(err, errNotMoved) {
		return Change{}, errors.Join(err, r.mayBeActive(ctx, &g, time.Time{}))
	} else if err != nil {
		return Change{}, err
	}
	if intent.Back, err = r.canary(ctx, g, intent); err != nil {
		return Change{}, err
	}
	if intent.Back != "" {
		return Change{}, r.putBack(ctx, g, intent, s)
	}

	at := r.now()
	c := Change{Audit: []AuditEntry{r.audit("move alias", "%s from %s to %s", r.def.Alias, orNone(intent.From), g.KeyID)}}
	for _, old := range r.generations {
		if old.Stage == Active && old.Number != g.Number {
			old.Stage, old.LeftAt = Previous, at
			c.Generations = append(c.Generations, old)
		}
	}
	g.Stage, g.LeftAt, g.KeptAt, g.DisabledAt = Active, time.Time{}, time.Time{}, time.Time{}
	if r.job.Kind == Rotate { // a roll back is no rotation
		g.ActivatedAt = at
	}
	c.Generations = append(c.Generations, g)
	c.Plan = r.plan(c.Generations)
	disableAt := disabledAt(c.Plan, intent.From, r.generations)
	r.emit(&c, AliasMoved, g.Account, resources(g.KeyARN, intent.FromARN, aliasARN(g.KeyARN, r.def.Alias)), map[string]any{
		"alias":                   r.def.Alias,
		"previous_key_id":         orNull(intent.From),
		"previous_key_arn":        orNull(intent.FromARN),
		"new_key_id":              g.KeyID,
		"new_key_arn":             g.KeyARN,
		"generation":              g.Number,
		"trigger":                 r.job.Trigger,
		"previous_key_disabled":   !disableAt.IsZero() && r.def.DisablePrevious && r.def.DisablePreviousAfter == 0,
		"previous_key_disable_at": timeOrNull(disableAt),
	})
	s.Message = fmt.Sprintf("%s points at KMS key %s", r.def.Alias, g.KeyID)
	if intent.From != "" {
		s.Message += ", before at " + intent.From
	}
	return c, nil
}

// mayBeActive records since when the alias may have pointed at the generation;
// zero: it has not.
func (r *run) mayBeActive(ctx context.Context, g *Generation, since time.Time) error {
	g.ActivatedAt = since
	return r.record(ctx, Change{Generations: []Generation{*g}})
}

// errNotMoved is an alias of which it is certain that it was not moved.
var errNotMoved = errors.New("not moved")

// notMoved wraps KMS's refusal to move an alias, if it is one.
func notMoved(err error) error {
	if c := ClassOf(err); c == Unknown || c == Interrupted {
		return err
	}
	return fmt.Errorf("%w: %w", errNotMoved, err)
}

// plan is what is to be retired once the changed generations are as they are.
func (r *run) plan(changed []Generation) *Plan {
	generations := slices.Clone(r.generations)
	for _, g := range r.spread(changed) {
		generations[slices.IndexFunc(generations, func(old Generation) bool { return old.Number == g.Number })] = g
	}
	return Retirements(r.def, generations, r.job.Trigger, r.now())
}

// disabledAt is when a plan disables a KMS key; zero: it does not.
func disabledAt(p *Plan, keyID string, generations []Generation) time.Time {
	for _, n := range p.Jobs {
		if n.Request.Retire == RetireDisable && slices.ContainsFunc(generations, func(g Generation) bool { return g.Number == n.Generation && g.KeyID == keyID }) {
			return n.DueAt
		}
	}
	return time.Time{}
}

// aliasIntent returns the intent of an earlier attempt to activate g, else makes
// one of what the alias points at now and puts it into the journal. It returns that key
// as well.
func (r *run) aliasIntent(ctx context.Context, g Generation, s *Step) (intent aliasIntent, now Key, err error) {
	if len(s.Data) > 0 {
		if err := json.Unmarshal(s.Data, &intent); err != nil {
			return intent, now, &Fault{Class: Permanent, Err: fmt.Errorf("read the step's intent: %w", err)}
		}
	}
	if intent.To == g.KeyID {
		if intent.Back == "" {
			now, err = target(ctx, r.kms, r.def.Alias)
		}
		return intent, now, err
	}
	if now, err = r.ownAlias(ctx); err != nil {
		return intent, now, err
	}
	old, ok := r.active()
	moved := old.ActivatedAt
	for _, other := range r.generations {
		if other.LeftAt.After(moved) {
			moved = other.LeftAt
		}
	}
	justMoved := r.now().Sub(moved).Abs() < settleLook
	if r.job.Kind == Rollback && justMoved {
		// Where it still reads back at the key before, that would look like done.
		return intent, now, &Fault{Class: Transient, After: settleLook, Err: fmt.Errorf("%s was moved a moment ago: it is pointed back once that shows everywhere", r.def.Alias)}
	}
	if ok && now.ID != "" && now.ID != old.KeyID && now.ID != g.KeyID && justMoved {
		return intent, now, &Fault{Class: Transient, Err: fmt.Errorf(
			"%s reads back at KMS key %s although it was moved to %s a moment ago: looking again", r.def.Alias, now.ID, old.KeyID)}
	}
	intent = aliasIntent{From: now.ID, FromARN: now.ARN, To: g.KeyID}
	if now.ID == g.KeyID { // a person has pointed it there already
		intent.From, intent.FromARN, intent.Found = "", "", true
		if ok && old.KeyID != g.KeyID {
			intent.From, intent.FromARN = old.KeyID, old.KeyARN
		}
	}
	s.Data = mustJSON(intent)
	return intent, now, r.record(ctx, Change{Steps: []Step{*s}})
}

// moveAlias moves the alias as intended: only from the key that this job saw it
// at, never over somebody else's move. That it reads back is to be seen yet.
func (r *run) moveAlias(ctx context.Context, now string, intent aliasIntent) error {
	alias := r.def.Alias
	switch now {
	case intent.To:
		return nil
	case "":
		if err := r.kms.CreateAlias(ctx, alias, intent.To); err != nil && !errors.Is(err, ErrExists) {
			return notMoved(err)
		}
	case intent.From:
		err := r.kms.UpdateAlias(ctx, alias, intent.To)
		if errors.Is(err, ErrNotFound) {
			return notMoved(&Fault{Class: Transient, Err: err}) // gone since the look; the next attempt creates it
		}
		if err != nil {
			return notMoved(err)
		}
	default:
		return notMoved(movedByOther(alias, now, intent))
	}
	return nil
}

// readsBack returns nil when the alias reads back at a key that this job has
// pointed it at.
func (r *run) readsBack(ctx context.Context, intent aliasIntent, want string) error {
	var at string
	err := r.poll(ctx, "move "+r.def.Alias, func() (bool, error) {
		key, err := r.kms.DescribeKey(ctx, r.def.Alias)
		at = key.ID
		return err == nil && key.ID == want, err
	})
	return r.orMoved(err, at, intent)
}

// orMoved returns a look's error, or who is to blame where the look has ended
// with the alias at a key that this job has nothing to do with.
func (r *run) orMoved(err error, at string, intent aliasIntent) error {
	if err != nil && ClassOf(err) != Interrupted && at != "" && at != intent.From && at != intent.To {
		return movedByOther(r.def.Alias, at, intent)
	}
	return err
}

// movedByOther is the fault of an alias that somebody else has moved.
func movedByOther(alias, now string, intent aliasIntent) error {
	back := "delete it"
	if intent.From != "" {
		back = "point it back at " + intent.From
	}
	return operator(WaitAlias, "%s was moved by somebody else: it points at KMS key %s, and this job was to move it from %s to %s; "+
		"%s and run byokctl retry, or cancel the job", alias, now, orNone(intent.From), intent.To, back)
}

// unusableLooks is at how many looks, within some two seconds, the key that the
// alias was moved to must be unusable to be taken for it: it worked before the
// move, and KMS shows what has changed sooner at one place than at another.
const unusableLooks = 4

// canary proves that the alias resolves to the new key and that the key works
// through it. It returns what is wrong with the key, "" for nothing; an error
// where that cannot be told. Where byokd may not encrypt or decrypt, that the
// alias reads back at the enabled key must do.
func (r *run) canary(ctx context.Context, g Generation, intent aliasIntent) (unusable string, err error) {
	var at string
	bad := 0
	err = r.poll(ctx, r.def.Alias+" at "+g.KeyID, func() (bool, error) {
		key, err := r.kms.DescribeKey(ctx, r.def.Alias)
		if at = key.ID; err != nil || at != g.KeyID {
			return false, err
		}
		if unusable = ""; key.State != "Enabled" {
			unusable = "it is in state " + key.State
		} else if r.def.Verify != "describe" {
			err := r.seal(ctx, r.def.Alias, g.KeyID)
			switch {
			case err == nil || errors.Is(err, ErrDenied):
			case errors.Is(err, ErrIncorrectKey): // the alias still encrypts with the key before
				return false, nil
			case errors.Is(err, ErrState) || ClassOf(err) == Permanent:
				unusable = err.Error()
			default:
				return false, err
			}
		}
		if unusable == "" {
			return true, nil
		}
		bad++
		return bad == unusableLooks, nil
	})
	return unusable, r.orMoved(err, at, intent)
}

// putBack points the alias back at the key that this job has moved it from, since
// the new one turned out not to be usable. It always returns an error: the job
// begins again with verify. No event tells of such a move, since consumers take
// KMS Alias Moved for a rotation that was made; the audit trail does, and the
// failed rotation's own event.
func (r *run) putBack(ctx context.Context, g Generation, intent aliasIntent, s *Step) error {
	alias, why := r.def.Alias, intent.Back
	stays, err := r.staysMoved(ctx, intent)
	if err != nil {
		return err
	}
	if stays != "" {
		intent.Back = ""
		s.Data = mustJSON(intent) // the next attempt looks anew
		why = fmt.Sprintf("%s points at KMS key %s of generation %d, which is not usable: %s. It is not put back: %s", alias, intent.To, g.Number, why, stays)
		if r.job.Kind == Rollback { // whose refusal would mean that the alias is as before
			return operator(WaitConfig, "%s; make one of the two keys usable, then run byokctl retry", why)
		}
		return r.unready(ctx, g, why)
	}
	s.Data = mustJSON(intent)
	if err := r.record(ctx, Change{Steps: []Step{*s}}); err != nil {
		return err
	}
	now, err := target(ctx, r.kms, alias)
	if err != nil {
		return err
	}
	switch now.ID {
	case intent.From, "": // an earlier attempt did not come to record it; or somebody has deleted the alias
	case intent.To:
		err := r.kms.UpdateAlias(ctx, alias, intent.From)
		if errors.Is(err, ErrNotFound) {
			return &Fault{Class: Transient, Err: err} // gone since the look
		}
		if err != nil {
			return err
		}
		if err := r.readsBack(ctx, intent, intent.From); err != nil {
			return err
		}
	default:
		return movedByOther(alias, now.ID, intent)
	}
	r.log.Warn("alias was put back", "alias", alias, "key_id", intent.From, "from", intent.To, "reason", why)
	verify := *r.step("verify")
	verify.State, verify.Message = Failed, fmt.Sprintf("%s was moved to KMS key %s and put back on %s, since the new key is not usable: %s", alias, intent.To, intent.From, why)
	*s = Step{Name: s.Name, State: Pending, Message: verify.Message}
	c := Change{Steps: []Step{verify, *s},
		Audit: []AuditEntry{r.audit("put alias back", "%s, moved from %s to %s, is back at %s: %s", alias, intent.From, intent.To, intent.From, why)}}
	if old, ok := byKey(r.generations, intent.From); ok && g.Stage == Active {
		// A reconciliation has met the alias at the new key meanwhile.
		g.Stage, old.Stage = Previous, Active
		c.Generations = []Generation{g, old}
	}
	if err := r.record(ctx, c); err != nil {
		return err
	}
	return r.unready(ctx, g, verify.Message)
}

// unready is the error of a generation whose key does not work through the alias.
// ready says what to do about it, or has the key material imported again.
func (r *run) unready(ctx context.Context, g Generation, why string) error {
	if err := r.ready(ctx, g); err != nil {
		return fmt.Errorf("%s; %w", why, err)
	}
	return operator(WaitConfig, "%s; see to it that the key can be used, then run byokctl retry", why)
}

// staysMoved says why an alias is not put back; "": it is.
func (r *run) staysMoved(ctx context.Context, intent aliasIntent) (why string, err error) {
	switch {
	case intent.Found:
		return "this job has not moved it", nil
	case intent.From == "":
		return "before this job it did not exist", nil
	}
	old, err := r.kms.DescribeKey(ctx, intent.From)
	switch {
	case errors.Is(err, ErrNotFound):
		return fmt.Sprintf("KMS key %s, where it pointed before, no longer exists", intent.From), nil
	case err != nil:
		return "", err
	case old.State != "Enabled":
		return fmt.Sprintf("KMS key %s, where it pointed before, is in state %s", intent.From, old.State), nil
	}
	return "", nil
}

// aliasARN is the ARN of an alias in the account and Region of a key.
func aliasARN(keyARN, alias string) string {
	for i := len(keyARN) - 1; i >= 0; i-- {
		if keyARN[i] == ':' {
			return keyARN[:i+1] + alias
		}
	}
	return ""
}
