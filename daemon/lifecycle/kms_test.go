package lifecycle_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"byokd/daemon/lifecycle"
)

// A fakeKMS is KMS in one account and Region. It refuses what KMS refuses, and
// its errors are of the class that leaves the engine the least way out.
type fakeKMS struct {
	w       *world
	account string
	keys    map[string]*fakeKey
	aliases map[string]*fakeAlias
	tokens  map[string]fakeToken
	made    int
	moves   []move          // of aliases, by the engine
	denied  map[string]bool // operations that the caller may not call
	lacks   string          // an operation that the endpoint does not have; "": none

	onMove  func(m move) // called after each of them
	limit   int          // of rotations of a key
	rotated []string     // IDs of materials, by the engine

	// How long AWS takes to show a new key, its tags, a changed alias, and new
	// material, and to rotate a key; and how much longer Encrypt goes by an alias
	// as it was.
	lateKeys, lateTags, lateAliases, lateMaterials, rotationTime, lateEncrypt time.Duration
}

type fakeKey struct {
	lifecycle.Key
	policy   string
	tags     map[string]string
	material []byte // the current one; nil: none, or deleted, or expired
	lastUse  time.Time
	foreign  bool      // a person made it
	enableAt time.Time // when a person enables it who has disabled it; zero: never

	untracked bool // older than KMS's record of use
	grants    []lifecycle.Grant

	pointedAt bool // by an alias, at some time

	described string          // the current material's description
	rotatedAt time.Time       // when it became current; zero: the first
	old       []*fakeMaterial // that were current once, oldest first
	pending   *fakeMaterial
	started   time.Time // a rotation; zero: none runs
}

// A fakeMaterial is a material of a key that is not the current one.
type fakeMaterial struct {
	id, described string
	bytes         []byte // nil: deleted or expired
	validTo       time.Time
	rotatedAt     time.Time
	imported      time.Time
}

// complete reports whether all material that was ever current is there.
func (key *fakeKey) complete() bool {
	return key.material != nil && !slices.ContainsFunc(key.old, func(m *fakeMaterial) bool { return m.bytes == nil })
}

// mayBeInUse reports whether something may have been encrypted with the
// generation's material.
func (k *fakeKMS) mayBeInUse(g lifecycle.Generation) bool {
	key := k.keys[g.KeyID]
	if key == nil || !key.pointedAt || key.foreign {
		return false
	}
	return g.MaterialID == key.MaterialID || key.find(g.MaterialID) != nil && key.pending == nil ||
		key.described == lifecycle.MaterialDescription(g)
}

// use adds rotations that somebody else made.
func (key *fakeKey) use(rotations int) {
	for n := range rotations {
		key.old = append(key.old, &fakeMaterial{id: fmt.Sprintf("theirs-%d", n), bytes: []byte("theirs"), rotatedAt: key.CreatedAt})
	}
}

// find returns the key's material with this ID that is not the current one.
func (key *fakeKey) find(id string) *fakeMaterial {
	if key.pending != nil && key.pending.id == id {
		return key.pending
	}
	for _, m := range key.old {
		if m.id == id {
			return m
		}
	}
	return nil
}

type fakeAlias struct {
	target, before string
	changed        time.Time
}

type fakeToken struct {
	keyID, publicKey, algorithm string
	issued                      time.Time
}

type move struct{ alias, from, to string }

func refuse(class lifecycle.Class, sentinel error, format string, args ...any) error {
	f := &lifecycle.Fault{Class: class, Err: fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), sentinel)}
	if class == lifecycle.Operator {
		f.WaitingFor = lifecycle.WaitPermission
	}
	return f
}

func materialID(arn string, material []byte) string {
	sum := sha256.Sum256(append([]byte(arn), material...))
	return hex.EncodeToString(sum[:])
}

func (k *fakeKMS) do(ctx context.Context, operation string, writes bool, effect func() error) error {
	return k.w.do(ctx, "kms."+operation, writes, func() error {
		if k.denied[operation] {
			return refuse(lifecycle.Operator, lifecycle.ErrDenied, "%s", operation)
		}
		if k.lacks == operation {
			return refuse(lifecycle.Permanent, errors.ErrUnsupported, "%s", operation)
		}
		return effect()
	})
}

// look returns a key as it is now: material expires, keys are deleted.
func (k *fakeKMS) look(id string) *fakeKey {
	key := k.keys[id]
	if key == nil {
		return nil
	}
	if !key.started.IsZero() && k.w.now.Sub(key.started) >= k.rotationTime {
		p := key.pending
		key.old = append(key.old, &fakeMaterial{id: key.MaterialID, described: key.described, bytes: key.material, validTo: key.ValidTo, rotatedAt: key.rotatedAt})
		key.MaterialID, key.described, key.material, key.ValidTo, key.rotatedAt = p.id, p.described, p.bytes, p.validTo, k.Now()
		key.pending, key.started = nil, time.Time{}
	}
	if !key.ValidTo.IsZero() && !k.Now().Before(key.ValidTo) {
		key.forget()
	}
	for _, m := range key.old {
		if !m.validTo.IsZero() && !k.Now().Before(m.validTo) {
			key.forgetOld(m)
		}
	}
	if key.State == "Disabled" && !key.enableAt.IsZero() && !k.w.now.Before(key.enableAt) {
		key.State = "Enabled"
	}
	if !key.DeletionDate.IsZero() && !k.Now().Before(key.DeletionDate) {
		delete(k.keys, id)
		maps.DeleteFunc(k.aliases, func(_ string, a *fakeAlias) bool { return a.target == id })
		return nil
	}
	return key
}

// forget is what is left of a key whose material is deleted or has expired.
func (key *fakeKey) forget() {
	key.material, key.ValidTo = nil, time.Time{}
	if key.State != "PendingDeletion" {
		key.State = "PendingImport"
	}
}

// forgetOld is what is left of a key that has lost material that was current once.
func (key *fakeKey) forgetOld(m *fakeMaterial) {
	m.bytes, m.validTo = nil, time.Time{}
	if key.State != "PendingDeletion" {
		key.State = "PendingImport"
	}
}

// key finds a key by its ID or ARN.
func (k *fakeKMS) key(id string) (*fakeKey, error) {
	id = id[strings.LastIndexByte(id, '/')+1:]
	key := k.look(id)
	if key == nil || k.w.now.Sub(key.CreatedAt) < k.lateKeys {
		return nil, refuse(lifecycle.Permanent, lifecycle.ErrNotFound, "key %s", id)
	}
	return key, nil
}

// usable is key for operations that KMS refuses for a key that is pending deletion.
func (k *fakeKMS) usable(id string) (*fakeKey, error) {
	key, err := k.key(id)
	if err == nil && key.State == "PendingDeletion" {
		return nil, refuse(lifecycle.Permanent, lifecycle.ErrState, "%s is pending deletion", id)
	}
	return key, err
}

func (k *fakeKMS) Account(ctx context.Context) (string, error) {
	return k.account, k.do(ctx, "Account", false, func() error { return nil })
}

func (k *fakeKMS) Now() time.Time { return k.w.now.Add(k.w.skew) }

func (k *fakeKMS) add(description, policy string, tags map[string]string) *fakeKey {
	k.made++
	id := fmt.Sprintf("00000000-0000-4000-8000-%012d", k.made)
	if policy == "" {
		policy = `{"default": true}`
	}
	key := &fakeKey{policy: policy, tags: maps.Clone(tags), Key: lifecycle.Key{ID: id, ARN: "arn:aws:kms:eu-central-1:" + k.account + ":key/" + id, Account: k.account,
		State: "PendingImport", Origin: "EXTERNAL", KeySpec: "SYMMETRIC_DEFAULT", KeyUsage: "ENCRYPT_DECRYPT", Manager: "CUSTOMER",
		Description: description, CreatedAt: k.w.now}}
	if key.tags == nil {
		key.tags = make(map[string]string)
	}
	k.keys[id] = key
	return key
}

func (k *fakeKMS) CreateKey(ctx context.Context, description, policy string, tags map[string]string) (made lifecycle.Key, err error) {
	err = k.do(ctx, "CreateKey", true, func() error {
		if g, ok := k.w.journal.generationOf(tags[lifecycle.TagHSMID]); !ok || g.JobID != tags[lifecycle.TagJob] || g.KeyID != "" || g.Stage != lifecycle.PreActive {
			k.w.t.Errorf("CreateKey: the journal does not know of it")
		}
		if k.w.journal.intent("create") == "" {
			k.w.t.Errorf("CreateKey without an intent")
		}
		if err := checkPolicy(policy); policy != "" && err != nil {
			return err
		}
		made = k.add(description, policy, tags).Key
		return nil
	})
	return made, err
}

func checkPolicy(policy string) error {
	if !json.Valid([]byte(policy)) {
		return &lifecycle.Fault{Class: lifecycle.Operator, WaitingFor: lifecycle.WaitPolicy, Err: fmt.Errorf("malformed policy document")}
	}
	return nil
}

func (k *fakeKMS) DescribeKey(ctx context.Context, id string) (described lifecycle.Key, err error) {
	err = k.do(ctx, "DescribeKey", false, func() error {
		id, err := k.resolve(id, k.lateAliases)
		if err != nil {
			return err
		}
		key, err := k.key(id)
		if err == nil {
			described = key.Key
			for _, m := range key.old {
				if !m.validTo.IsZero() && (described.ValidTo.IsZero() || m.validTo.Before(described.ValidTo)) {
					described.ValidTo = m.validTo
				}
			}
			if key.State == "PendingImport" {
				described.ValidTo = time.Time{}
			}
		}
		return err
	})
	return described, err
}

// resolve returns the ID of the key that an alias reads back at; the ID of a key
// is its own.
func (k *fakeKMS) resolve(id string, late time.Duration) (string, error) {
	if !strings.HasPrefix(id, "alias/") {
		return id, nil
	}
	a := k.aliases[id]
	if a == nil {
		return "", refuse(lifecycle.Permanent, lifecycle.ErrNotFound, "alias %s", id)
	}
	at := a.target
	if k.w.now.Sub(a.changed) < late {
		at = a.before
	}
	if k.look(at) == nil {
		return "", refuse(lifecycle.Permanent, lifecycle.ErrNotFound, "alias %s", id)
	}
	return at, nil
}

func (k *fakeKMS) FindKeys(ctx context.Context, tags map[string]string) (found []lifecycle.TaggedKey, err error) {
	err = k.do(ctx, "FindKeys", false, func() error {
		for _, id := range slices.Sorted(maps.Keys(k.keys)) {
			key := k.keys[id]
			match := k.w.now.Sub(key.CreatedAt) >= k.lateTags
			for name, value := range tags {
				match = match && key.tags[name] == value
			}
			if match {
				found = append(found, lifecycle.TaggedKey{KeyID: id, ARN: key.ARN, Tags: maps.Clone(key.tags)})
			}
		}
		return nil
	})
	return found, err
}

func (k *fakeKMS) ParametersForImport(ctx context.Context, id, algorithm string) (p lifecycle.ImportParameters, err error) {
	err = k.do(ctx, "ParametersForImport", false, func() error {
		key, err := k.usable(id)
		if err != nil {
			return err
		}
		if key.Origin != "EXTERNAL" {
			return refuse(lifecycle.Permanent, lifecycle.ErrState, "origin %s", key.Origin)
		}
		n := len(k.tokens) + 1
		token := fmt.Sprintf("token-%d", n)
		k.tokens[token] = fakeToken{keyID: key.ID, publicKey: fmt.Sprintf("public-%d", n), algorithm: algorithm, issued: k.Now()}
		p = lifecycle.ImportParameters{PublicKey: []byte(k.tokens[token].publicKey), Token: []byte(token), ValidTo: k.Now().Add(24 * time.Hour)}
		return nil
	})
	return p, err
}

func (k *fakeKMS) ImportKeyMaterial(ctx context.Context, id string, token, wrapped []byte, in lifecycle.Import) (material string, err error) {
	validTo := in.ValidTo
	err = k.do(ctx, "ImportKeyMaterial", true, func() error {
		key, err := k.usable(id)
		if err != nil {
			return err
		}
		if k.w.journal.intent("import", "material") == "" {
			k.w.t.Errorf("ImportKeyMaterial without an intent")
		}
		t, ok := k.tokens[string(token)]
		if !ok || t.keyID != key.ID || k.Now().Sub(t.issued) > 24*time.Hour {
			return refuse(lifecycle.Permanent, lifecycle.ErrImportToken, "token %s", token)
		}
		var plain []byte
		parts := strings.Split(string(wrapped), "\n")
		if len(parts) == 3 && parts[0] == t.publicKey && parts[1] == t.algorithm {
			plain, _ = hex.DecodeString(parts[2])
		}
		if len(plain) != 32 {
			return refuse(lifecycle.Permanent, lifecycle.ErrState, "invalid ciphertext")
		}
		if !validTo.IsZero() {
			if validTo.Nanosecond() != 0 || validTo.Location() != time.UTC {
				k.w.t.Errorf("ValidTo %v is not in whole seconds UTC", validTo)
			}
			if left := validTo.Sub(k.Now()); left <= 0 || left > 365*24*time.Hour {
				return refuse(lifecycle.Permanent, lifecycle.ErrState, "ValidTo is %s ahead", left)
			}
		}
		material = materialID(key.ARN, plain)
		if in.New && in.MaterialID != "" {
			k.w.t.Errorf("ImportKeyMaterial of new material with an ID")
		}
		if g, ok := k.w.journal.generationOf(in.Description[strings.LastIndexByte(in.Description, ' ')+1:]); !ok || in.Description != lifecycle.MaterialDescription(g) || !bytes.Equal(plain, k.w.hsm.find(g.HSMID)[0].material) {
			k.w.t.Errorf("ImportKeyMaterial with description %q, which is not that of the material", in.Description)
		}
		known := key.find(material)
		switch {
		case in.MaterialID != "" && in.MaterialID != material:
			return refuse(lifecycle.Permanent, lifecycle.ErrIncorrectMaterial, "import into %s: not the ID", id)
		case key.MaterialID == "" || key.MaterialID == material && !in.New:
			key.material, key.MaterialID, key.ValidTo, key.described = plain, material, validTo, in.Description
		case known != nil && !in.New:
			known.bytes, known.validTo, known.described = plain, validTo, in.Description
			if known == key.pending {
				return nil
			}
		case !in.New || known != nil || key.MaterialID == material:
			return refuse(lifecycle.Permanent, lifecycle.ErrIncorrectMaterial, "import into %s", id)
		case key.pending != nil || !key.complete():
			return refuse(lifecycle.Permanent, lifecycle.ErrState, "import into %s", id)
		default:
			key.pending = &fakeMaterial{id: material, described: in.Description, bytes: plain, validTo: validTo, imported: k.w.now}
			return nil
		}
		if key.complete() {
			key.State = "Enabled" // Whether a disabled key stays so is not documented: the worse is assumed.
		}
		return nil
	})
	return material, err
}

func (k *fakeKMS) DeleteKeyMaterial(ctx context.Context, id, material string) error {
	return k.do(ctx, "DeleteKeyMaterial", true, func() error {
		key, err := k.key(id)
		if err != nil {
			return err
		}
		m := key.find(material)
		if m != nil && m == key.pending {
			if !key.started.IsZero() {
				return refuse(lifecycle.Permanent, lifecycle.ErrState, "a rotation of %s is under way", id)
			}
			if g, ok := k.w.journal.generationOf(m.described[strings.LastIndexByte(m.described, ' ')+1:]); !ok || g.Stage != lifecycle.PreActive {
				k.w.t.Errorf("DeleteKeyMaterial of a pending material that is nobody's, %q", m.described)
			}
			key.pending = nil
			return nil
		}
		asked := false
		for _, row := range k.w.journal.jobs {
			asked = asked || row.state == "running" && (row.req.Asked && row.req.DeleteMaterial || row.req.Retire == lifecycle.RetireMaterial)
		}
		switch {
		case !asked:
			k.w.t.Errorf("DeleteKeyMaterial %s, and nobody has asked for it", id)
		case m != nil:
			key.forgetOld(m)
		case material == "" && len(key.old) > 0:
			k.w.t.Errorf("DeleteKeyMaterial of %s, which has several, and does not say which", id)
		case material == "" || material == key.MaterialID:
			key.forget()
		default:
			return refuse(lifecycle.Permanent, lifecycle.ErrNotFound, "key material %s", material)
		}
		k.mayBeRetired(id)
		return nil
	})
}

func (k *fakeKMS) KeyMaterials(ctx context.Context, id string) (list []lifecycle.Material, err error) {
	err = k.do(ctx, "KeyMaterials", false, func() error {
		key, err := k.key(id)
		if err != nil {
			return err
		}
		list = key.materials(k.w.now.Add(-k.lateMaterials))
		return nil
	})
	return list, err
}

// materials are all materials of a key; a pending one if it was imported by then.
func (key *fakeKey) materials(shown time.Time) (list []lifecycle.Material) {
	for _, m := range key.old {
		list = append(list, lifecycle.Material{ID: m.id, Description: m.described, State: "NON_CURRENT", Imported: m.bytes != nil, ValidTo: m.validTo, RotatedAt: m.rotatedAt, OnDemand: !m.rotatedAt.IsZero()})
	}
	if key.MaterialID != "" {
		list = append(list, lifecycle.Material{ID: key.MaterialID, Description: key.described, State: "CURRENT", Imported: key.material != nil, ValidTo: key.ValidTo, RotatedAt: key.rotatedAt, OnDemand: !key.rotatedAt.IsZero()})
	}
	if p := key.pending; p != nil && !p.imported.After(shown) {
		list = append(list, lifecycle.Material{ID: p.id, Description: p.described, State: "PENDING_ROTATION", Imported: true, ValidTo: p.validTo})
	}
	return list
}

func (k *fakeKMS) RotateKeyOnDemand(ctx context.Context, id string) error {
	return k.do(ctx, "RotateKeyOnDemand", true, func() error {
		key, err := k.usable(id)
		if err != nil {
			return err
		}
		switch {
		case len(key.old) >= k.limit:
			return refuse(lifecycle.Operator, lifecycle.ErrLimit, "rotate %s", id)
		case key.State != "Enabled" || key.pending == nil:
			return refuse(lifecycle.Permanent, lifecycle.ErrState, "rotate %s, which is %s, pending %v", id, key.State, key.pending != nil)
		case !key.started.IsZero():
			return &lifecycle.Fault{Class: lifecycle.Transient, Err: fmt.Errorf("a rotation of %s is under way", id)}
		}
		g, ok := k.w.journal.generationOf(key.pending.described[strings.LastIndexByte(key.pending.described, ' ')+1:])
		if !ok || g.MaterialID != key.pending.id || g.KeyID != key.ID || g.Stage != lifecycle.PreActive || g.ActivatedAt.IsZero() || k.w.journal.intent("activate") == "" {
			k.w.t.Errorf("RotateKeyOnDemand of %s to %q, of which the journal does not know", id, key.pending.described)
		}
		if ok && len(k.w.hsm.find(g.HSMID)) != 1 {
			k.w.t.Errorf("RotateKeyOnDemand of %s to material that is not in the HSM", id)
		}
		k.rotated = append(k.rotated, key.pending.id)
		key.started = k.w.now
		k.look(key.ID)
		return nil
	})
}

func (k *fakeKMS) RotationStarted(ctx context.Context, id string) (at time.Time, err error) {
	err = k.do(ctx, "RotationStarted", false, func() error {
		key, err := k.key(id)
		if err == nil && key.State == "PendingImport" {
			return &lifecycle.Fault{Class: lifecycle.Permanent, Err: fmt.Errorf("origin of %s is not valid for this operation", id)}
		}
		if err == nil && k.w.now.Sub(key.started) >= k.lateMaterials {
			at = key.started
		}
		return err
	})
	return at, err
}

// KeyPolicy answers in another spacing than was put, as KMS may.
func (k *fakeKMS) KeyPolicy(ctx context.Context, id string) (policy string, err error) {
	err = k.do(ctx, "KeyPolicy", false, func() error {
		key, err := k.key(id)
		if err != nil {
			return err
		}
		var b bytes.Buffer
		err = json.Indent(&b, []byte(key.policy), "", "  ")
		policy = b.String()
		return err
	})
	return policy, err
}

func (k *fakeKMS) PutKeyPolicy(ctx context.Context, id, policy string) error {
	return k.do(ctx, "PutKeyPolicy", true, func() error {
		key, err := k.key(id)
		if err != nil {
			return err
		}
		if key.State == "PendingDeletion" {
			k.w.t.Errorf("PutKeyPolicy of %s, which is pending deletion", id)
		}
		if err := checkPolicy(policy); err != nil {
			return err
		}
		key.policy = policy
		return nil
	})
}

func (k *fakeKMS) KeyTags(ctx context.Context, id string) (tags map[string]string, err error) {
	err = k.do(ctx, "KeyTags", false, func() error {
		key, err := k.key(id)
		if err != nil {
			return err
		}
		tags = maps.Clone(key.tags)
		return nil
	})
	return tags, err
}

func (k *fakeKMS) TagKey(ctx context.Context, id string, tags map[string]string) error {
	return k.do(ctx, "TagKey", true, func() error {
		key, err := k.usable(id)
		if err != nil {
			return err
		}
		maps.Copy(key.tags, tags)
		return nil
	})
}

func (k *fakeKMS) UntagKey(ctx context.Context, id string, names []string) error {
	return k.do(ctx, "UntagKey", true, func() error {
		key, err := k.usable(id)
		if err != nil {
			return err
		}
		for _, name := range names {
			if strings.HasPrefix(name, "byokd:") || name == "theirs" {
				k.w.t.Errorf("UntagKey %s", name)
			}
			delete(key.tags, name)
		}
		return nil
	})
}

func (k *fakeKMS) SetDescription(ctx context.Context, id, description string) error {
	return k.do(ctx, "SetDescription", true, func() error {
		key, err := k.usable(id)
		if err == nil {
			key.Description = description
		}
		return err
	})
}

func (k *fakeKMS) EnableKey(ctx context.Context, id string) error {
	return k.do(ctx, "EnableKey", true, func() error {
		key, err := k.usable(id)
		if err != nil {
			return err
		}
		if !k.keeps() {
			k.w.t.Errorf("EnableKey %s: byokd enables no key but one that a person keeps", id)
		}
		key.State = "Enabled"
		return nil
	})
}

func (k *fakeKMS) DisableKey(ctx context.Context, id string) error {
	return k.do(ctx, "DisableKey", true, func() error {
		key, err := k.usable(id)
		if err != nil {
			return err
		}
		if key.State == "PendingImport" {
			return refuse(lifecycle.Permanent, lifecycle.ErrState, "%s is pending import", id)
		}
		k.mayBeRetired(id)
		key.State = "Disabled"
		return nil
	})
}

// mayBeRetired fails the test where a retire job that runs touches a key that an
// alias points at.
func (k *fakeKMS) mayBeRetired(id string) {
	if aliases := k.aliasesOf(id); len(aliases) > 0 && k.w.journal.runs(lifecycle.Retire) {
		k.w.t.Errorf("%s is retired, and %v points at it", id, aliases)
	}
}

func (k *fakeKMS) ScheduleDeletion(ctx context.Context, id string, days int) (date time.Time, err error) {
	err = k.do(ctx, "ScheduleDeletion", true, func() error {
		key, err := k.usable(id)
		if err != nil {
			return err
		}
		if k.mayBeRetired(id); k.w.journal.runs(lifecycle.Retire) && k.w.journal.intent("retire") != "" {
			if days != 30 {
				k.w.t.Errorf("ScheduleDeletion of %s in %d days", id, days)
			}
		} else if aliases := k.aliasesOf(id); len(aliases) > 0 || key.pointedAt || key.foreign || days != 7 {
			k.w.t.Errorf("ScheduleDeletion of %s in %d days, which is not a key that was never used", id, days)
		}
		date = k.Now().Add(time.Duration(days) * 24 * time.Hour)
		key.State, key.DeletionDate = "PendingDeletion", date
		return nil
	})
	return date, err
}

// keeps reports whether a job runs that ends a retirement.
func (k *fakeKMS) keeps() bool {
	for _, row := range k.w.journal.jobs {
		if row.state == "running" && row.req.Retire == lifecycle.RetireKeep {
			return true
		}
	}
	return false
}

func (k *fakeKMS) CancelDeletion(ctx context.Context, id string) error {
	return k.do(ctx, "CancelDeletion", true, func() error {
		key, err := k.key(id)
		if err != nil {
			return err
		}
		if key.State != "PendingDeletion" {
			return refuse(lifecycle.Permanent, lifecycle.ErrState, "%s is not pending deletion", id)
		}
		if !k.keeps() {
			k.w.t.Errorf("CancelDeletion of %s, and nobody has asked for it", id)
		}
		key.DeletionDate, key.State = time.Time{}, "Disabled"
		if !key.complete() {
			key.State = "PendingImport"
		}
		return nil
	})
}

func (k *fakeKMS) LastUsage(ctx context.Context, id string) (at time.Time, known bool, err error) {
	err = k.do(ctx, "LastUsage", false, func() error {
		key, err := k.key(id)
		if err == nil {
			at, known = key.lastUse, !key.lastUse.IsZero() || !key.untracked
		}
		return err
	})
	return at, known, err
}

func (k *fakeKMS) aliasesOf(id string) (names []string) {
	for name, a := range k.aliases {
		if a.target == id {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func (k *fakeKMS) Grants(ctx context.Context, id string) (list []lifecycle.Grant, err error) {
	err = k.do(ctx, "Grants", false, func() error {
		key, err := k.key(id)
		if err == nil {
			list = slices.Clone(key.grants)
		}
		return err
	})
	return list, err
}

func (k *fakeKMS) CreateGrant(ctx context.Context, id string, g lifecycle.Grant) error {
	return k.do(ctx, "CreateGrant", true, func() error {
		key, err := k.usable(id)
		if err != nil {
			return err
		}
		if g.Name == "" || k.w.journal.intent("grants") == "" {
			k.w.t.Errorf("CreateGrant without a name or an intent: %+v", g)
		}
		for _, old := range key.grants {
			old.ID = ""
			if reflect.DeepEqual(old, g) {
				return nil
			}
		}
		g.ID = fmt.Sprintf("grant-%d", len(key.grants)+1)
		key.grants = append(key.grants, g)
		return nil
	})
}

func (k *fakeKMS) KeyAliases(ctx context.Context, id string) (names []string, err error) {
	err = k.do(ctx, "KeyAliases", false, func() error {
		for name, a := range k.aliases {
			if late := k.w.now.Sub(a.changed) < k.lateAliases; !late && a.target == id || late && a.before == id {
				names = append(names, name)
			}
		}
		return nil
	})
	return names, err
}

func (k *fakeKMS) CreateAlias(ctx context.Context, alias, id string) error {
	return k.do(ctx, "CreateAlias", true, func() error {
		key, err := k.usable(id)
		if err != nil {
			return err
		}
		if k.aliases[alias] != nil {
			return refuse(lifecycle.Permanent, lifecycle.ErrExists, "alias %s", alias)
		}
		if k.w.journal.intent("activate", "alias") == "" {
			k.w.t.Errorf("CreateAlias without an intent")
		}
		k.aliases[alias] = &fakeAlias{target: id, changed: k.w.now}
		key.pointedAt = true
		k.moves = append(k.moves, move{alias, "", id})
		if k.onMove != nil {
			k.onMove(k.moves[len(k.moves)-1])
		}
		return nil
	})
}

func (k *fakeKMS) UpdateAlias(ctx context.Context, alias, id string) error {
	return k.do(ctx, "UpdateAlias", true, func() error {
		key, err := k.usable(id)
		if err != nil {
			return err
		}
		a := k.aliases[alias]
		if a == nil {
			return refuse(lifecycle.Permanent, lifecycle.ErrNotFound, "alias %s", alias)
		}
		if k.w.journal.intent("activate") == "" {
			k.w.t.Errorf("UpdateAlias without an intent")
		}
		ours := slices.ContainsFunc(k.w.journal.generations["payments"], func(g lifecycle.Generation) bool { return g.KeyID == a.target })
		if old := k.keys[a.target]; old != nil && old.foreign && !ours {
			k.w.t.Errorf("UpdateAlias moves %s off a key that is not the group's", alias)
		}
		if key.State != "Enabled" {
			k.w.t.Errorf("UpdateAlias points %s at a key that is %s", alias, key.State)
		}
		if a.target != id {
			k.moves = append(k.moves, move{alias, a.target, id})
			*a = fakeAlias{target: id, before: a.target, changed: k.w.now}
			key.pointedAt = true
			if k.onMove != nil {
				k.onMove(k.moves[len(k.moves)-1])
			}
		}
		return nil
	})
}

// point points an alias behind byokd's back; "" deletes it.
func (k *fakeKMS) point(alias, id string) {
	if id == "" {
		delete(k.aliases, alias)
		return
	}
	k.aliases[alias] = &fakeAlias{target: id}
	// The key of an unfinished rotation is not in use, whatever somebody points at it
	// for a while.
	if g, ok := k.w.journal.generationOf(k.keys[id].tags[lifecycle.TagHSMID]); !ok || g.Stage != lifecycle.PreActive {
		k.keys[id].pointedAt = true
	}
}

// addForeign makes a key of origin AWS_KMS that is nobody's of byokd's.
func (k *fakeKMS) addForeign() *fakeKey {
	key := k.add("somebody's", "", map[string]string{"owner": "somebody"})
	key.Origin, key.State, key.material, key.MaterialID, key.foreign = "AWS_KMS", "Enabled", []byte("aws"), "aws", true
	return key
}

func (k *fakeKMS) Encrypt(ctx context.Context, id string, plaintext []byte, under map[string]string) (ciphertext []byte, err error) {
	err = k.do(ctx, "Encrypt", false, func() error {
		id, err := k.resolve(id, k.lateAliases+k.lateEncrypt)
		if err != nil {
			return err
		}
		key, err := k.usable(id)
		if err != nil {
			return err
		}
		if key.State != "Enabled" {
			return refuse(lifecycle.Permanent, lifecycle.ErrState, "%s is %s", id, key.State)
		}
		if len(under) != 1 || under["byokd-canary"] == "" {
			k.w.t.Errorf("Encrypt under %v: iam-policy does not grant that", under)
		}
		key.lastUse = k.Now()
		ciphertext = fmt.Appendf(nil, "%s\n%x\n%s\n%x", id, key.material, under["byokd-canary"], plaintext)
		return nil
	})
	return ciphertext, err
}

func (k *fakeKMS) Decrypt(ctx context.Context, id string, ciphertext []byte, under map[string]string) (plaintext []byte, err error) {
	err = k.do(ctx, "Decrypt", false, func() error {
		key, err := k.usable(id)
		if err != nil {
			return err
		}
		if key.State != "Enabled" {
			return refuse(lifecycle.Permanent, lifecycle.ErrState, "%s is %s", id, key.State)
		}
		parts := strings.Split(string(ciphertext), "\n")
		if len(parts) == 4 && parts[0] != id {
			return refuse(lifecycle.Permanent, lifecycle.ErrIncorrectKey, "%s", parts[0])
		}
		held := parts[1] == hex.EncodeToString(key.material) || slices.ContainsFunc(key.old, func(m *fakeMaterial) bool { return parts[1] == hex.EncodeToString(m.bytes) })
		if len(parts) != 4 || !held || parts[2] != under["byokd-canary"] {
			return refuse(lifecycle.Permanent, lifecycle.ErrState, "invalid ciphertext")
		}
		key.lastUse = k.Now()
		plaintext, err = hex.DecodeString(parts[3])
		return err
	})
	return plaintext, err
}
