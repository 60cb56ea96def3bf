package lifecycle

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// The kinds of drift.
const (
	DriftAlias       = "alias"         // the alias points at another key
	DriftNoAlias     = "alias-missing" // the alias does not exist
	DriftGone        = "key-missing"   // the KMS key does not exist
	DriftDeletion    = "deletion"      // the key's deletion is scheduled or cancelled by somebody else
	DriftMaterial    = "material"      // key material is missing, or is there and should not be
	DriftValidity    = "expiry"        // it has another ValidTo
	DriftDisabled    = "disabled"      // the key is disabled, and byokd did not do that
	DriftEnabled     = "enabled"       // it is enabled, and byokd had disabled it
	DriftPolicy      = "policy"
	DriftDescription = "description"
	DriftTags        = "tags"
	DriftUnknownKey  = "unknown-key" // a key has the group's tags and is none of its keys
)

// A Difference is one thing that KMS has otherwise than journal or definition.
// KeyID and Kind name it.
type Difference struct {
	Kind       string // one of the Drift constants
	KeyID      string
	KeyARN     string
	Generation *int   // nil: the key is none of the group's
	Expected   string // "": not told in a word
	Found      string
	Message    string // for a person, with what to do; the same as long as the difference is
	Repairable bool   // a synchronization with Request.Repair mends it
}

// maxDifference is how long the text of one difference gets, in bytes.
const maxDifference = 2000

// Drift compares what KMS has with a group's generations and definition, and
// returns what differs, by key and kind. It changes nothing anywhere and asks
// neither journal nor HSM. Where applied is false, KMS was not made to agree with
// this definition yet, and only what the generations say is compared.
//
// It takes three requests, and two or three for each KMS key that is not gone.
// Where one of them fails nothing is known, and the error is returned.
func (e *Engine) Drift(ctx context.Context, def Definition, generations []Generation, applied bool) ([]Difference, error) {
	kms, err := e.KMS(def.Credential, def.Region)
	if err != nil {
		return nil, err
	}
	c := &comparison{run: &run{Engine: e, job: &Job{Group: def.Group, Definition: def}, def: def, kms: kms, generations: generations},
		applied: applied}
	if err := c.tagged(ctx); err != nil {
		return nil, err
	}
	if applied {
		if err := c.alias(ctx); err != nil {
			return nil, err
		}
	}
	looked := make(map[string]bool)
	for _, g := range generations {
		if g.KeyID == "" || g.Stage == Destroyed || looked[g.KeyID] {
			continue
		}
		looked[g.KeyID] = true
		current, _ := byKey(generations, g.KeyID)
		if current.Stage == PreActive {
			continue // the rotation that makes it sees to it
		}
		if err := c.key(ctx, current); err != nil {
			return nil, fmt.Errorf("generation %d: %w", current.Number, err)
		}
	}
	slices.SortFunc(c.found, func(a, b Difference) int { return cmp.Or(cmp.Compare(a.KeyID, b.KeyID), cmp.Compare(a.Kind, b.Kind)) })
	return c.found, nil
}

// A comparison is one run of Drift.
type comparison struct {
	*run
	applied bool
	tags    map[string]map[string]string // by key ID, as the search by tags shows them, which may be late
	found   []Difference
}

// differ notes a difference of a generation's key. Several of one kind and key
// are one.
func (c *comparison) differ(g Generation, kind, expected, found string, repairable bool, format string, args ...any) {
	message := fmt.Sprintf(format, args...)
	if len(message) > maxDifference {
		message = strings.ToValidUTF8(message[:maxDifference], "") + " …"
	}
	for i := range c.found {
		if d := &c.found[i]; d.KeyID == g.KeyID && d.Kind == kind {
			d.Expected, d.Found, d.Message = d.Expected+", "+expected, d.Found+", "+found, d.Message+"; "+message
			d.Repairable = d.Repairable || repairable
			return
		}
	}
	c.found = append(c.found, Difference{Kind: kind, KeyID: g.KeyID, KeyARN: g.KeyARN, Generation: &g.Number,
		Expected: expected, Found: found, Message: message, Repairable: repairable})
}

// sync is the command by which a person has a generation synchronized.
func (c *comparison) sync(g Generation) string {
	return fmt.Sprintf("byokctl sync %s --generation %d", c.job.Group, g.Number)
}

// tagged looks for the keys that carry the group's tags.
func (c *comparison) tagged(ctx context.Context) error {
	c.tags = make(map[string]map[string]string)
	for _, name := range []string{c.job.Group, c.def.PreviousName} {
		if name == "" {
			continue
		}
		keys, err := c.kms.FindKeys(ctx, map[string]string{TagGroup: name})
		if errors.Is(err, ErrDenied) {
			return nil // then each key is asked for its tags
		}
		if err != nil {
			return fmt.Errorf("look for KMS keys of group %s: %w", name, err)
		}
		for _, k := range keys {
			c.tags[k.KeyID] = k.Tags
			if c.expects(k) {
				continue
			}
			key, err := c.kms.DescribeKey(ctx, k.KeyID)
			switch {
			case errors.Is(err, ErrNotFound), err == nil && key.State == "PendingDeletion":
			case err != nil:
				return err
			default:
				c.found = append(c.found, Difference{Kind: DriftUnknownKey, KeyID: k.KeyID, KeyARN: k.ARN, Found: key.State,
					Message: fmt.Sprintf("KMS key %s has the group's tags, says that it is generation %s, and is none of the group's keys: byokd leaves it alone; remove its tags, or schedule its deletion",
						k.KeyID, orNone(k.Tags[TagGeneration]))})
			}
		}
	}
	return nil
}

// expects reports whether a key with these tags is one of the group's, or may be
// that of a CreateKey that was not answered.
func (c *comparison) expects(k TaggedKey) bool {
	return slices.ContainsFunc(c.generations, func(g Generation) bool {
		return g.KeyID == k.KeyID || g.KeyID == "" && g.HSMID != "" && g.HSMID == k.Tags[TagHSMID]
	})
}

// alias looks where the alias points.
func (c *comparison) alias(ctx context.Context) error {
	active, ok := c.active()
	if !ok || !active.DeletionDate.IsZero() {
		return nil
	}
	key, err := target(ctx, c.kms, c.def.Alias)
	switch {
	case err != nil:
		return err
	case key.ID == "":
		c.differ(active, DriftNoAlias, active.KeyID, "", true, "%s does not exist: it is to point at KMS key %s, generation %d; byokctl sync %s creates it", c.def.Alias, active.KeyID, active.Number, c.job.Group)
	case key.ID != active.KeyID:
		whose := "which is not this group's: point it back"
		if g, ours := byKey(c.generations, key.ID); ours {
			whose = fmt.Sprintf("which is generation %d: byokctl rotate %s moves it on from there, or point it back", g.Number, c.job.Group)
		}
		c.differ(active, DriftAlias, active.KeyID, key.ID, false, "%s was moved by somebody else: it is to point at KMS key %s, generation %d, and points at %s, %s", c.def.Alias, active.KeyID, active.Number, key.ID, whose)
	}
	return nil
}

// dateSlack is how much sooner than byokd reckons a key may be deleted: AWS dates
// its answers by the second, and they take their time.
const dateSlack = time.Minute

// key compares one KMS key; g is the current one of its generations.
func (c *comparison) key(ctx context.Context, g Generation) error {
	now := c.kms.Now()
	if !g.DeletionDate.IsZero() && now.After(g.DeletionDate) {
		return nil // gone, as was asked
	}
	key, err := c.kms.DescribeKey(ctx, g.KeyID)
	switch {
	case errors.Is(err, ErrNotFound) && c.now().Sub(g.CreatedAt) < goneAfter:
		return nil // KMS shows a new key late
	case errors.Is(err, ErrNotFound) && !g.DeletionDate.IsZero() && c.kms.Now().After(g.DeletionDate.Add(-dateSlack)):
		return nil // gone in this very moment
	case errors.Is(err, ErrNotFound):
		c.differ(g, DriftGone, "", "", false, "KMS key %s of generation %d does not exist any more: what was encrypted under it is lost; byokctl rotate %s makes another", g.KeyID, g.Number, c.job.Group)
		return nil
	case err != nil:
		return err
	case key.State == "PendingDeletion" && g.DeletionDate.IsZero():
		c.differ(g, DriftDeletion, "", day(key.DeletionDate), false, "KMS key %s of generation %d is scheduled for deletion at %s, and not by byokd: aws kms cancel-key-deletion --key-id %s stops that; then enable the key",
			g.KeyID, g.Number, day(key.DeletionDate), g.KeyID)
		return nil
	case key.State == "PendingDeletion":
		return nil
	case !g.DeletionDate.IsZero():
		c.differ(g, DriftDeletion, day(g.DeletionDate), "", false, "the deletion of KMS key %s of generation %d, scheduled by byokd for %s, was cancelled by somebody else: byokctl keep %s %d takes note of that, without which byokd takes the key for deleted from then on", g.KeyID, g.Number, day(g.DeletionDate), c.job.Group, g.Number)
		return nil
	}
	if err := c.material(ctx, g, key, now); err != nil {
		return err
	}
	switch {
	case key.State == "Disabled" && g.DisabledAt.IsZero():
		c.differ(g, DriftDisabled, "Enabled", key.State, false, "KMS key %s of generation %d is disabled, and not by byokd, which does not enable it: aws kms enable-key --key-id %s does", g.KeyID, g.Number, g.KeyID)
	case key.State == "Enabled" && !g.DisabledAt.IsZero() && g.Stage == Active:
		c.differ(g, DriftEnabled, "Disabled", key.State, true, "KMS key %s of generation %d, the active one, was disabled and is enabled: byokctl sync %s takes note of that", g.KeyID, g.Number, c.job.Group)
	case key.State == "Enabled" && !g.DisabledAt.IsZero():
		c.differ(g, DriftEnabled, "Disabled", key.State, true, "KMS key %s of generation %d is enabled, which byokd had disabled at %s: disable it, or have it stay enabled by byokctl keep %s %d", g.KeyID, g.Number, day(g.DisabledAt), c.job.Group, g.Number)
	}
	if !c.applied {
		return nil
	}
	if c.def.Policy != nil {
		have, err := c.kms.KeyPolicy(ctx, g.KeyID)
		if err != nil {
			return err
		}
		if !c.samePolicy(have, *c.def.Policy) {
			c.differ(g, DriftPolicy, "", "", true, "the key policy of KMS key %s, generation %d, is not as defined: %s; %s writes it again", g.KeyID, g.Number, c.policyDifference(*c.def.Policy, have), c.sync(g))
		}
	}
	if active, ok := c.active(); ok && active.KeyID == g.KeyID && c.def.Description != nil && key.Description != *c.def.Description {
		c.differ(g, DriftDescription, *c.def.Description, key.Description, true, "the description of KMS key %s, generation %d, is %q, defined as %q; byokctl sync %s writes it again", g.KeyID, g.Number, key.Description, *c.def.Description, c.job.Group)
	}
	return c.keyTags(ctx, g)
}

func day(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// keyTags compares the managed tags. The search by tags may show them late, so
// that the key itself is asked where they seem to differ.
func (c *comparison) keyTags(ctx context.Context, g Generation) error {
	have, listed := c.tags[g.KeyID]
	set, gone := c.tagDifference(g, have)
	if !listed || len(set)+len(gone) > 0 {
		var err error
		if have, err = c.kms.KeyTags(ctx, g.KeyID); err != nil {
			return err
		}
		set, gone = c.tagDifference(g, have)
	}
	var expected, found, texts []string
	for _, name := range slices.Sorted(maps.Keys(set)) {
		value, there := have[name]
		expected = append(expected, name+"="+set[name])
		if !there {
			texts = append(texts, fmt.Sprintf("%s = %q is missing", name, set[name]))
			continue
		}
		found = append(found, name+"="+value)
		texts = append(texts, fmt.Sprintf("%s is %q, not %q", name, value, set[name]))
	}
	for _, name := range gone {
		found = append(found, name+"="+have[name])
		texts = append(texts, fmt.Sprintf("%s = %q is to be gone", name, have[name]))
	}
	if len(texts) > 0 {
		c.differ(g, DriftTags, strings.Join(expected, ", "), strings.Join(found, ", "), true, "tags of KMS key %s, generation %d: %s; %s sets them again", g.KeyID, g.Number, strings.Join(texts, "; "), c.sync(g))
	}
	return nil
}

// material compares the key material of all generations of a KMS key.
func (c *comparison) material(ctx context.Context, current Generation, key Key, now time.Time) error {
	if !c.shares(current) {
		c.oneMaterial(current, Material{ID: key.MaterialID, Imported: key.State != "PendingImport", ValidTo: key.ValidTo}, now)
		if current.HSMID != "" && current.MaterialID != "" && key.MaterialID != "" && key.MaterialID != current.MaterialID {
			c.differ(current, DriftMaterial, current.MaterialID, key.MaterialID, false, "KMS key %s of generation %d encrypts with key material %s, which is not the HSM's: byokctl rotate %s makes another key", current.KeyID, current.Number, key.MaterialID, c.job.Group)
		}
		return nil
	}
	materials, err := c.kms.KeyMaterials(ctx, current.KeyID)
	if err != nil {
		return err
	}
	all := materialsOf(c.generations, current.KeyID)
	for _, g := range all {
		m, _ := materialIn(materials, g)
		c.oneMaterial(g, m, now)
	}
	for _, m := range materials {
		i := slices.IndexFunc(all, func(g Generation) bool { return m.is(g) })
		switch {
		case i < 0:
			c.differ(current, DriftMaterial, "", m.ID, false, "KMS key %s has key material %s (description %q, %s), which is of none of the group's generations", current.KeyID, m.ID, m.Description, m.State)
		case m.State == materialCurrent && all[i].Number != current.Number && all[i].Stage != PreActive:
			c.differ(current, DriftMaterial, current.MaterialID, m.ID, false, "KMS key %s encrypts with the key material of generation %d, not with that of %d", current.KeyID, all[i].Number, current.Number)
		}
	}
	return nil
}

// oneMaterial compares the material of one generation.
func (c *comparison) oneMaterial(g Generation, m Material, now time.Time) {
	deleted, expired := !g.MaterialDeletedAt.IsZero(), !g.ValidTo.IsZero() && !now.Before(g.ValidTo)
	mends := g.HSMID != "" && g.DisabledAt.IsZero()
	switch {
	case g.ImportedAt.IsZero() || g.Stage == PreActive:
	case !m.Imported && !deleted && !expired:
		c.differ(g, DriftMaterial, "present", "missing", mends, "the key material of generation %d is missing in KMS key %s: somebody deleted it, and nothing that was encrypted under it can be decrypted; %s imports it again", g.Number, g.KeyID, c.sync(g))
	case m.Imported && deleted:
		c.differ(g, DriftMaterial, "missing", "present", false, "the key material of generation %d, which was deleted on request, is in KMS key %s again: %s --delete-material deletes it", g.Number, g.KeyID, c.sync(g))
	case m.Imported && g.HSMID != "" && otherValidity(g, Key{ValidTo: m.ValidTo}):
		c.differ(g, DriftValidity, ends(g.ValidTo), ends(m.ValidTo), mends, "the key material of generation %d in KMS key %s was imported by somebody else: it expires %s, and byokd had it expire %s; %s imports it anew", g.Number, g.KeyID, ends(m.ValidTo), ends(g.ValidTo), c.sync(g))
	}
}

// ends says when something expires.
func ends(validTo time.Time) string {
	if validTo.IsZero() {
		return "never"
	}
	return "at " + day(validTo)
}

// A policyDocument is a key policy, as far as its differences are told.
type policyDocument struct {
	Version, ID string
	Statements  []map[string]json.RawMessage
}

func parsePolicy(document string) (p policyDocument, ok bool) {
	var d struct {
		Version   string
		Id        string
		Statement json.RawMessage
	}
	if json.Unmarshal([]byte(document), &d) != nil {
		return p, false
	}
	p.Version, p.ID = d.Version, d.Id
	var one map[string]json.RawMessage
	if json.Unmarshal(d.Statement, &one) == nil && one != nil {
		p.Statements = append(p.Statements, one)
		return p, true
	}
	return p, json.Unmarshal(d.Statement, &p.Statements) == nil
}

// policyDifference says for people how a key policy differs from the definition's,
// statement by statement.
func (e *Engine) policyDifference(defined, have string) string {
	want, ok := parsePolicy(defined)
	got, ok2 := parsePolicy(have)
	if !ok || !ok2 {
		return "it is another document"
	}
	var texts []string
	tell := func(format string, args ...any) { texts = append(texts, fmt.Sprintf(format, args...)) }
	if want.Version != got.Version {
		tell("Version is %q, not %q", got.Version, want.Version)
	}
	if want.ID != got.ID {
		tell("Id is %q, not %q", got.ID, want.ID)
	}
	extra := e.statementsLacking(got.Statements, want.Statements)
	for _, missing := range e.statementsLacking(want.Statements, got.Statements) {
		i := slices.IndexFunc(extra, func(s map[string]json.RawMessage) bool {
			return len(s["Sid"]) > 0 && string(s["Sid"]) == string(missing["Sid"])
		})
		if i < 0 {
			tell("statement %s is missing", statementName(missing))
			continue
		}
		changed := extra[i]
		extra = slices.Delete(slices.Clone(extra), i, i+1)
		parts := maps.Clone(missing)
		maps.Copy(parts, changed)
		for _, name := range slices.Sorted(maps.Keys(parts)) {
			a, b := missing[name], changed[name]
			if (a == nil) == (b == nil) && e.sameStatement(map[string]json.RawMessage{name: a}, map[string]json.RawMessage{name: b}) {
				continue
			}
			switch {
			case a == nil:
				tell("statement %s: has %s %s, which is not defined", statementName(missing), name, short(b))
			case b == nil:
				tell("statement %s: has no %s, defined as %s", statementName(missing), name, short(a))
			default:
				tell("statement %s: %s is %s, not %s", statementName(missing), name, short(b), short(a))
			}
		}
	}
	for _, s := range extra {
		tell("statement %s is not in the definition", statementName(s))
	}
	if len(texts) == 0 {
		return "statements are repeated otherwise"
	}
	return strings.Join(texts, "; ")
}

// statementsLacking returns those statements of a that b does not have.
func (e *Engine) statementsLacking(a, b []map[string]json.RawMessage) (lacking []map[string]json.RawMessage) {
	for _, s := range a {
		if !slices.ContainsFunc(b, func(t map[string]json.RawMessage) bool { return e.sameStatement(s, t) }) {
			lacking = append(lacking, s)
		}
	}
	return lacking
}

func (e *Engine) sameStatement(a, b map[string]json.RawMessage) bool {
	document := func(s map[string]json.RawMessage) string {
		return string(mustJSON(map[string]any{"Statement": []any{s}}))
	}
	return e.samePolicy(document(a), document(b))
}

// statementName is a statement's Sid, or what there is of it.
func statementName(s map[string]json.RawMessage) string {
	if sid := string(s["Sid"]); sid != "" && sid != `""` {
		return sid
	}
	return short(mustJSON(s))
}

// short is JSON in not too many words.
func short(b []byte) string {
	const enough = 300
	if len(b) > enough {
		return strings.ToValidUTF8(string(b[:enough]), "") + " …"
	}
	return string(b)
}
