package lifecycle

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Findings are what a reconciliation saw.
type Findings struct {
	Generations []Generation // as the journal has them now
	Recovered   int          // how many of them the journal did not have before
	AliasKeyID  string       // where the alias points; "": it does not exist
	Adopted     bool         // they are the key that active_key_id names, and nothing else
	Foreign     bool         // the alias points at a key that is not the group's
	Problems    []Finding

	Account string // of the credential; "": not known

	traces bool // KMS or HSM have something of the group's
}

// A Finding is something that does not fit and that a person may want to mend.
type Finding struct {
	Code    string // fixed word for `status`
	Message string
}

// Fresh reports whether neither journal, KMS nor HSM know a generation and the
// alias does not exist: only then a first generation is made unasked.
func (f Findings) Fresh() bool { return len(f.Generations) == 0 && f.AliasKeyID == "" && !f.traces }

// usedAfter is how long after a key's creation its use by anybody but byokd's
// own verification tells that the alias must have pointed at it once.
const usedAfter = time.Hour

// objectsAge is how old a list of the HSM's objects may be. To make one, a token
// reads all of its objects, ten thousand perhaps; ten thousand groups that are
// looked for after a start share a look a minute.
const objectsAge = time.Minute

// Reconcile compares the journal's generations of a group with the KMS keys that
// carry its tags, the alias's target and the HSM's objects, and takes into the
// journal what it lacks. It fails when any of the three cannot be looked at, and
// then nothing may be made for the group.
//
// It changes nothing in AWS or the HSM. A late double, which is a KMS key that an
// unanswered CreateKey made beside the one that its job went on with, becomes a
// retire job that schedules its deletion.
//
// Where designated is false it only looks: the Findings tell what it would
// record, and the journal is not written to either.
func (e *Engine) Reconcile(ctx context.Context, def Definition, designated bool) (Findings, error) {
	hsm, err := e.HSM(def.HSM)
	if err != nil {
		return Findings{}, err
	}
	kms, err := e.KMS(def.Credential, def.Region)
	if err != nil {
		return Findings{}, err
	}
	generations, err := e.Journal.Generations(ctx, def.Group)
	if err != nil {
		return Findings{}, fmt.Errorf("read generations: %w", err)
	}
	rec := &reconciliation{Engine: e, def: def, hsm: hsm, kms: kms, designated: designated,
		byNumber: make(map[int]Generation), states: make(map[int]Key), listed: make(map[string][]Material), dirty: make(map[int]bool)}
	for _, g := range generations {
		rec.byNumber[g.Number] = g
	}
	if err := rec.look(ctx); err != nil {
		return Findings{}, err
	}
	if err := rec.keys(ctx); err != nil {
		return Findings{}, err
	}
	if err := rec.materials(ctx); err != nil {
		return Findings{}, err
	}
	rec.objects()
	if err := rec.named(ctx); err != nil {
		return Findings{}, err
	}
	if err := rec.stages(ctx); err != nil {
		return Findings{}, err
	}
	if err := rec.record(ctx); err != nil {
		return Findings{}, err
	}
	rec.grants(ctx)
	return rec.findings(len(generations)), nil
}

type reconciliation struct {
	*Engine
	def        Definition
	hsm        HSM
	kms        KMS
	designated bool

	account  string // "": not known
	alias    Key    // zero: does not exist
	tagged   []TaggedKey
	onToken  map[string]HSMKey // by hex ID
	byNumber map[int]Generation
	fresh    []int                 // numbers that the journal did not have
	states   map[int]Key           // what KMS says of the fresh ones
	listed   map[string][]Material // of the KMS keys that were looked into, by ID
	dirty    map[int]bool
	audit    []AuditEntry
	jobs     []NewJob
	problems []Finding
}

func (rec *reconciliation) problem(code, format string, args ...any) {
	rec.problems = append(rec.problems, Finding{code, fmt.Sprintf(format, args...)})
}

func (rec *reconciliation) put(g Generation) {
	rec.byNumber[g.Number], rec.dirty[g.Number] = g, true
}

// add puts a generation that the journal does not have.
func (rec *reconciliation) add(g Generation, key Key) {
	rec.fresh = append(rec.fresh, g.Number)
	rec.states[g.Number] = key
	rec.put(g)
}

func (rec *reconciliation) note(action, format string, args ...any) {
	rec.audit = append(rec.audit, AuditEntry{At: rec.now(), Group: rec.def.Group, Actor: "reconcile", Action: action,
		Detail: fmt.Sprintf(format, args...), Definition: rec.def.Digest})
}

// names are the group's name and the one that it had before.
func (rec *reconciliation) names() []string {
	if rec.def.PreviousName != "" {
		return []string{rec.def.Group, rec.def.PreviousName}
	}
	return []string{rec.def.Group}
}

func (rec *reconciliation) sorted() []Generation {
	var list []Generation
	for _, n := range slices.Sorted(maps.Keys(rec.byNumber)) {
		list = append(list, rec.byNumber[n])
	}
	return list
}

// look asks all three places.
func (rec *reconciliation) look(ctx context.Context) (err error) {
	// The account is for the record; STS is missed without harm.
	if rec.account, err = rec.kms.Account(ctx); err != nil {
		if ctx.Err() != nil {
			return err
		}
		rec.Log.Debug("account not known", "group", rec.def.Group, "err", err)
		rec.account = ""
	}
	for _, g := range rec.byNumber {
		if g.Account != "" && rec.account != "" && g.Account != rec.account {
			return operator(WaitConfig, "the credential leads to account %s, and the group's keys are in account %s: correct the credential, or make a new group", rec.account, g.Account)
		}
	}
	if rec.alias, err = target(ctx, rec.kms, rec.def.Alias); err != nil {
		return err
	}
	rec.onToken = make(map[string]HSMKey)
	for _, name := range rec.names() {
		found, err := rec.kms.FindKeys(ctx, map[string]string{TagGroup: name})
		if err != nil {
			return fmt.Errorf("look for KMS keys of group %s: %w", name, err)
		}
		rec.tagged = append(rec.tagged, found...)
		objects, err := rec.hsm.List(ctx, "byokd/"+name+"/", objectsAge)
		if err != nil {
			return fmt.Errorf("look for HSM objects of group %s: %w", name, err)
		}
		for _, o := range objects {
			rec.onToken[hex.EncodeToString(o.ID)] = o
		}
	}
	if rec.alias.ID != "" {
		// The alias's own key counts even where the search by tags is late.
		known := slices.ContainsFunc(rec.tagged, func(t TaggedKey) bool { return t.KeyID == rec.alias.ID })
		if _, ours := rec.byKey(rec.alias.ID); !known && !ours {
			tags, err := rec.kms.KeyTags(ctx, rec.alias.ID)
			if err != nil && !errors.Is(err, ErrDenied) && !errors.Is(err, ErrNotFound) {
				return fmt.Errorf("read the tags of %s: %w", rec.alias.ID, err)
			}
			if slices.Contains(rec.names(), tags[TagGroup]) {
				rec.tagged = append(rec.tagged, TaggedKey{KeyID: rec.alias.ID, ARN: rec.alias.ARN, Tags: tags})
			}
		}
	}
	return nil
}

func (rec *reconciliation) byKey(keyID string) (Generation, bool) {
	return byKey(rec.sorted(), keyID)
}

// keys takes over the KMS keys that carry the group's tags.
func (rec *reconciliation) keys(ctx context.Context) error {
	type found struct {
		TaggedKey
		number int
		key    Key // zero: KMS does not know it
	}
	var unknown []found
	for _, t := range rec.tagged {
		if _, known := rec.byKey(t.KeyID); known {
			continue
		}
		number, err := strconv.Atoi(t.Tags[TagGeneration])
		if err != nil || number < 1 {
			rec.problem("unknown-key", "KMS key %s has the group's tag but tag %s = %q", t.KeyID, TagGeneration, t.Tags[TagGeneration])
			continue
		}
		key, err := rec.kms.DescribeKey(ctx, t.KeyID)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		unknown = append(unknown, found{t, number, key})
	}
	// Of several that claim one number the likeliest comes first: the alias's
	// target, then one with material, then the oldest that is still usable.
	rank := func(f found) int {
		switch {
		case f.key.ID == "":
			return 4
		case f.key.ID == rec.alias.ID:
			return 0
		case f.key.State == "PendingDeletion":
			return 3
		case f.key.MaterialID == "":
			return 2
		}
		return 1
	}
	slices.SortStableFunc(unknown, func(a, b found) int {
		return cmp.Or(cmp.Compare(a.number, b.number), cmp.Compare(rank(a), rank(b)), a.key.CreatedAt.Compare(b.key.CreatedAt), cmp.Compare(a.KeyID, b.KeyID))
	})
	for _, f := range unknown {
		key, number := f.key, f.number
		g, taken := rec.byNumber[number]
		sameMaker := g.HSMID == f.Tags[TagHSMID] && g.JobID == f.Tags[TagJob] && g.JobID != ""
		switch {
		case key.ID == "" && taken:
			// The tags of a deleted key are found for a while.
		case key.ID == "":
			// Deleted, or not shown yet: its number is not used again either way.
			// Where its HSM object is there the next rotation looks for the key.
			g := Generation{Group: rec.def.Group, Number: number, Stage: Destroyed, HSM: rec.def.HSM, HSMLabel: Label(f.Tags[TagGroup], number),
				HSMID: f.Tags[TagHSMID], JobID: f.Tags[TagJob], Region: rec.def.Region, Account: rec.account}
			if o, ok := rec.onToken[g.HSMID]; ok {
				g.Stage, g.HSMLabel, g.GeneratedAt = Previous, o.Label, rec.now()
			}
			rec.add(g, Key{})
			rec.note("recover generation", "generation %d from the tags of KMS key %s, which does not exist", number, f.ARN)
		case !taken:
			rec.recover(number, f.TaggedKey, key)
		case g.KeyID == "" && sameMaker && g.Stage == PreActive && key.State != "PendingDeletion":
			// Created and never answered; the rotation that made it goes on with it.
			g.KeyID, g.KeyARN, g.Account, g.CreatedAt = key.ID, key.ARN, key.Account, key.CreatedAt
			rec.put(g)
			rec.note("adopt KMS key", "%s for generation %d", key.ARN, number)
		case g.KeyID == "" && g.HSMID != "" && g.HSMID == f.Tags[TagHSMID] && g.Stage == PreActive && key.State != "PendingDeletion" &&
			(key.MaterialID != "" || key.ID == rec.alias.ID):
			// Another device has gone on with it, under a job of its own.
			g.JobID, g.KeyID, g.KeyARN, g.Account, g.CreatedAt = f.Tags[TagJob], key.ID, key.ARN, key.Account, key.CreatedAt
			g.MaterialID, g.ImportedAt, g.ValidTo = key.MaterialID, rec.importedAt(key), key.ValidTo
			rec.put(g)
			rec.note("adopt KMS key", "%s for generation %d, of another device", key.ARN, number)
		case sameMaker && key.MaterialID == "" && key.State == "PendingImport" && key.ID != rec.alias.ID:
			if !rec.designated {
				rec.problem("double-key", "KMS key %s is a double of generation %d, KMS key %s, and was never used", key.ARN, number, orNone(g.KeyARN))
			}
			rec.jobs = append(rec.jobs, rec.retireDouble(rec.def, "start", number, key.ID))
		case key.State != "PendingDeletion":
			rec.problem("unknown-key", "KMS key %s says that it is generation %d, which is KMS key %s: byokd leaves it alone", f.KeyID, number, orNone(g.KeyID))
		}
	}
	return nil
}

// recover makes a generation of what a KMS key and its tags say.
func (rec *reconciliation) recover(number int, t TaggedKey, key Key) Generation {
	g := Generation{Group: rec.def.Group, Number: number, Stage: Previous, HSM: rec.def.HSM, HSMLabel: Label(t.Tags[TagGroup], number), HSMID: t.Tags[TagHSMID],
		GeneratedAt: key.CreatedAt, JobID: t.Tags[TagJob], Region: rec.def.Region, Account: key.Account,
		KeyID: key.ID, KeyARN: key.ARN, MaterialID: key.MaterialID, CreatedAt: key.CreatedAt, ValidTo: key.ValidTo,
		DeletionDate: key.DeletionDate}
	if o, ok := rec.onToken[g.HSMID]; ok {
		g.HSMLabel = o.Label
	}
	if _, err := hsmID(g); err != nil {
		rec.problem("unknown-key", "KMS key %s of generation %d has tag %s = %q: byokd cannot import its material again", key.ID, number, TagHSMID, g.HSMID)
		g.HSMLabel, g.HSMID, g.GeneratedAt = "", "", time.Time{}
	}
	if key.MaterialID != "" {
		g.ImportedAt = rec.importedAt(key)
	}
	_, onToken := rec.onToken[g.HSMID]
	switch {
	case key.State == "PendingDeletion" && key.MaterialID == "" && !onToken:
		g.Stage = Destroyed // it was given up
	case key.State == "Disabled":
		g.DisabledAt = rec.now()
	case key.State == "PendingImport" && key.MaterialID != "":
		g.MaterialDeletedAt = rec.now() // or it expired; nobody but a person brings it back
	}
	rec.add(g, key)
	rec.note("recover generation", "generation %d from the tags of KMS key %s", number, key.ARN)
	return g
}

// materials takes over the generations that were made in place, which are known
// by the descriptions of their KMS key's materials: of the keys that the journal
// did not have, and of those that a rotation in place may have changed behind
// its back.
func (rec *reconciliation) materials(ctx context.Context) error {
	inPlace := rec.def.Mode == modeInPlace || rec.def.Mode == modeAuto
	keys := make(map[string]bool)
	for _, g := range rec.sorted() {
		fresh := slices.Contains(rec.fresh, g.Number) && g.Number > 0
		if g.KeyID != "" && g.MaterialID != "" && g.Stage != Destroyed && (fresh || g.DeletionDate.IsZero()) &&
			(fresh || inPlace && g.KeyID == rec.alias.ID || len(materialsOf(rec.sorted(), g.KeyID)) > 1) {
			keys[g.KeyID] = true
		}
	}
	for _, id := range slices.Sorted(maps.Keys(keys)) {
		if err := rec.materialsOf(ctx, id); err != nil && (inPlace || !errors.Is(err, ErrDenied)) && !errors.Is(err, ErrNotFound) {
			return fmt.Errorf("look for the key material of KMS key %s: %w", id, err)
		}
	}
	return nil
}

// materialsOf takes over the generations that are material of one KMS key.
func (rec *reconciliation) materialsOf(ctx context.Context, keyID string) error {
	materials, err := rec.kms.KeyMaterials(ctx, keyID)
	if err != nil {
		return err
	}
	rec.listed[keyID] = materials
	first := materialsOf(rec.sorted(), keyID)[0]
	for _, m := range materials {
		if number, label, hsmID, ok := rec.describes(first, m); ok {
			rec.material(first, m, number, label, hsmID)
		} else if !m.pending() && m.RotatedAt.IsZero() {
			rec.material(first, m, first.Number, first.HSMLabel, first.HSMID) // the one that the key's tags tell of
		} else {
			rec.problem("unknown-material", "KMS key %s has key material %s (description %q, %s), which is no generation of the group: byokd cannot import it again, and without it the whole key is unusable", keyID, m.ID, m.Description, m.State)
		}
	}
	return nil
}

// describes returns the generation that a material's description names, if it is
// one of the group's, or bears the name of the group that the key was made for.
func (rec *reconciliation) describes(first Generation, m Material) (number int, label, hsmID string, ok bool) {
	label, hsmID, _ = strings.Cut(m.Description, " ")
	slash := strings.LastIndexByte(label, '/')
	number, err := strconv.Atoi(label[slash+1:])
	if err != nil || number < 1 || hsmID == "" {
		return 0, "", "", false
	}
	ok = strings.HasPrefix(first.HSMLabel, label[:slash+1])
	for _, name := range rec.names() {
		ok = ok || label == Label(name, number)
	}
	return number, label, hsmID, ok
}

// material takes over one material of a KMS key, as a generation of that number;
// first is the one that the key was made for.
func (rec *reconciliation) material(first Generation, m Material, number int, label, hsmID string) {
	g, taken := rec.byNumber[number]
	fresh := !taken || slices.Contains(rec.fresh, number)
	switch {
	case taken && (g.HSMID != hsmID || g.KeyID != "" && g.KeyID != first.KeyID):
		rec.problem("unknown-material", "key material %s of KMS key %s says that it is generation %d, HSM ID %s, which is another key: byokd leaves it alone", m.ID, first.KeyID, number, hsmID)
		return
	case taken && g.KeyID == "" && g.Stage != PreActive:
		return // given up
	case taken && g.KeyID == "":
		// Taken for it by a job whose record is lost, or by another device.
		g = g.withKeyFacts(first)
		g.MaterialID, g.ImportedAt, g.ValidTo = m.ID, rec.validFrom(first, m), m.ValidTo
		rec.put(g)
		rec.note("adopt key material", "%s of KMS key %s for generation %d", m.ID, first.KeyARN, number)
	case !taken:
		g = Generation{Group: rec.def.Group, Number: number, Stage: Previous, HSM: rec.def.HSM, HSMLabel: label, HSMID: hsmID, Region: rec.def.Region,
			GeneratedAt: rec.validFrom(first, m), MaterialID: m.ID, ImportedAt: rec.validFrom(first, m), ValidTo: m.ValidTo}.withKeyFacts(first)
		if o, ok := rec.onToken[hsmID]; ok {
			g.HSMLabel = o.Label
		}
		rec.add(g, Key{MaterialID: m.ID})
		rec.note("recover generation", "generation %d from key material %s of KMS key %s", number, m.ID, first.KeyARN)
	case g.Stage == PreActive && g.MaterialID == "" && m.State == materialCurrent: // by a job whose record is lost
		g.MaterialID, g.ImportedAt, g.ValidTo = m.ID, rec.validFrom(first, m), m.ValidTo
		rec.put(g)
	case fresh: // recover took the key's current material and its state for this one's
		g.MaterialID, g.ValidTo, g.ImportedAt, g.MaterialDeletedAt = m.ID, m.ValidTo, rec.validFrom(first, m), time.Time{}
	}
	if fresh && !m.Imported && g.DeletionDate.IsZero() && !m.pending() {
		g.MaterialDeletedAt = rec.now() // or it expired; nobody but a person brings it back
	}
	if fresh {
		rec.put(g)
	}
}

// validFrom is about when a material was imported.
func (rec *reconciliation) validFrom(first Generation, m Material) time.Time {
	at := first.CreatedAt
	if !m.RotatedAt.IsZero() {
		at = m.RotatedAt
	}
	return rec.importedAt(Key{CreatedAt: at, ValidTo: m.ValidTo})
}

// importedAt is when a recovered key's material was imported: when its ValidTo
// was given by the definition as it is, else about when the key was made.
func (rec *reconciliation) importedAt(key Key) time.Time {
	if keep := min(rec.def.KeepValidFor, maxValidity); keep > 0 && !key.ValidTo.IsZero() {
		if at := key.ValidTo.Add(-keep); !at.Before(key.CreatedAt.Truncate(time.Second)) && !at.After(rec.kms.Now()) {
			return at
		}
	}
	return key.CreatedAt
}

// objects takes over HSM objects that no KMS key was made from, and tells of
// those that are missing.
func (rec *reconciliation) objects() {
	owned := make(map[string]bool)
	for _, g := range rec.byNumber {
		owned[g.HSMID] = true
	}
	for _, id := range slices.Sorted(maps.Keys(rec.onToken)) {
		o := rec.onToken[id]
		if owned[id] {
			continue
		}
		number, err := strconv.Atoi(o.Label[strings.LastIndexByte(o.Label, '/')+1:])
		if err != nil || number < 1 {
			rec.problem("unknown-object", "HSM object %s, ID %s, is no generation of the group: byokd leaves it alone", o.Label, id)
			continue
		}
		if g, taken := rec.byNumber[number]; taken {
			rec.problem("unknown-object", "HSM object %s, ID %s, is not generation %d, whose ID is %s: byokd leaves it alone", o.Label, id, number, orNone(g.HSMID))
			continue
		}
		// Its number is not used again; stages decides whether it can be gone on with.
		rec.add(Generation{Group: rec.def.Group, Number: number, Stage: Previous, HSM: rec.def.HSM, HSMLabel: o.Label, HSMID: id,
			GeneratedAt: rec.now(), Region: rec.def.Region, Account: rec.account}, Key{})
		rec.note("recover generation", "generation %d from HSM object %s", number, o.Label)
	}
	rec.problems = append(rec.problems, missingObjects(rec.sorted(), func(id string) bool { _, ok := rec.onToken[id]; return ok })...)
}

// named takes over the KMS key that active_key_id names, while the group has no
// generation.
func (rec *reconciliation) named(ctx context.Context) error {
	id := rec.def.ActiveKeyID
	if id == "" || len(rec.byNumber) > 0 {
		return nil
	}
	key, err := rec.kms.DescribeKey(ctx, id)
	if errors.Is(err, ErrNotFound) {
		return operator(WaitConfig, "active_key_id = %q: there is no such KMS key in account %s, Region %s: correct it or leave it out", id, orUnknown(rec.account), rec.def.Region)
	}
	if err != nil {
		return err
	}
	switch {
	case rec.alias.ID != "" && rec.alias.ID != key.ID:
		return operator(WaitAlias, "%s points at KMS key %s, and active_key_id names %s: make the two agree", rec.def.Alias, rec.alias.ID, key.ID)
	case key.Manager != "CUSTOMER" || key.KeySpec != "SYMMETRIC_DEFAULT" || key.KeyUsage != "ENCRYPT_DECRYPT":
		return operator(WaitConfig, "active_key_id = %q: the KMS key is %s, %s, managed by %s; it must be a customer managed symmetric key for encrypt and decrypt", id, key.KeySpec, key.KeyUsage, key.Manager)
	case key.State == "PendingDeletion":
		return operator(WaitConfig, "active_key_id = %q: the KMS key is scheduled for deletion: cancel that, or leave active_key_id out", id)
	}
	if key.Origin == "EXTERNAL" && key.State == "PendingImport" && key.MaterialID == "" {
		// Nothing was ever in it: the first generation's material goes there.
		rec.put(Generation{Group: rec.def.Group, Number: 1, Stage: PreActive, HSM: rec.def.HSM, HSMLabel: Label(rec.def.Group, 1), HSMID: newHSMID(),
			Region: rec.def.Region, Account: key.Account, KeyID: key.ID, KeyARN: key.ARN, CreatedAt: key.CreatedAt})
		rec.note("adopt KMS key", "%s, which never had material, for generation 1", key.ARN)
		rec.adopted(rec.byNumber[1])
		return nil
	}
	tags, err := rec.kms.KeyTags(ctx, key.ID)
	if err != nil {
		return err
	}
	object, found, err := rec.object(ctx, tags[TagHSMID])
	if err != nil {
		return err
	}
	g := Generation{Group: rec.def.Group, HSM: rec.def.HSM, Region: rec.def.Region, Account: key.Account,
		KeyID: key.ID, KeyARN: key.ARN, MaterialID: key.MaterialID, CreatedAt: key.CreatedAt, ValidTo: key.ValidTo}
	if found {
		number, err := strconv.Atoi(tags[TagGeneration])
		if err != nil || number < 1 {
			number = 1
		}
		g = rec.recover(number, TaggedKey{KeyID: key.ID, ARN: key.ARN, Tags: tags}, key)
		g.HSMLabel = object.Label
		rec.put(g)
		if err := rec.materialsOf(ctx, key.ID); err != nil && !errors.Is(err, ErrDenied) {
			return err
		}
		g = rec.byMaterial(key)
		g.ActivatedAt = rec.newest()
	} else {
		g.ActivatedAt = rec.now() // `every` counts from the adoption
		if key.MaterialID != "" {
			g.ImportedAt = key.CreatedAt
		}
		rec.note("adopt KMS key", "%s, origin %s, as generation 0: byokd does not have its material", key.ARN, key.Origin)
	}
	g.Stage = Active
	rec.put(g)
	rec.adopted(g)
	return nil
}

// adopted makes the job that completes the adoption of a generation's KMS key.
func (rec *reconciliation) adopted(g Generation) {
	rec.jobs = append(rec.jobs, NewJob{Kind: Adopt, Group: rec.def.Group, Generation: g.Number, Trigger: "adopt",
		UniqueKey: "adopt:" + g.KeyID, DueAt: rec.now(), Definition: rec.def})
}

// object looks for the HSM object with this ID among all of byokd's, whatever
// group its label names.
func (rec *reconciliation) object(ctx context.Context, id string) (HSMKey, bool, error) {
	if id == "" {
		return HSMKey{}, false, nil
	}
	all, err := rec.hsm.List(ctx, "byokd/", objectsAge)
	if err != nil {
		return HSMKey{}, false, fmt.Errorf("look for HSM object %s: %w", id, err)
	}
	for _, o := range all {
		if hex.EncodeToString(o.ID) == id {
			return o, true, nil
		}
	}
	return HSMKey{}, false, nil
}

// stages gives the generations that the journal did not have their place: the
// alias's target is active; what is newer has never been active; of these, the
// newest is what the next rotation goes on with.
func (rec *reconciliation) stages(ctx context.Context) error {
	if g := rec.byMaterial(rec.alias); g.KeyID != "" && rec.alias.MaterialID != "" && g.Stage != Active {
		// Besides the ones new to the journal this finds one that the alias was
		// pointed at by somebody else: by another device while this one was not
		// the designated one. Where it was a job of this journal that has not
		// come to record it, that job goes on and tells of it.
		if slices.Contains(rec.fresh, g.Number) || g.Stage == PreActive {
			for _, old := range rec.sorted() {
				if old.Stage == Active {
					old.Stage = Previous
					rec.put(old)
				}
			}
			g.Stage, g.ActivatedAt = Active, rec.newest()
			rec.put(g)
		}
	}
	current := -1
	if g, ok := activeOf(rec.sorted()); ok {
		current = g.Number
	}
	for _, g := range rec.sorted() {
		switch {
		case g.Stage != PreActive:
		case g.Number < current:
			// Another device has gone on with it and beyond it: the alias is not
			// moved back to it.
			g.Stage = Previous
			rec.put(g)
		default:
			return nil // the journal has one, and there is never more than one
		}
	}
	slices.Sort(rec.fresh)
	for _, n := range slices.Backward(rec.fresh) {
		g := rec.byNumber[n]
		if materials := rec.listed[g.KeyID]; len(materials) > 1 {
			// Of a key that has been rotated only the pending material was never active.
			// What is before one that was active is not gone on with either.
			if m, ok := materialIn(materials, g); ok && m.pending() && n > current && g.DeletionDate.IsZero() {
				g.Stage = PreActive
				rec.put(g)
			}
			return nil
		}
		if n <= current || g.Stage != Previous || g.HSMID == "" || !g.DeletionDate.IsZero() || !g.DisabledAt.IsZero() {
			continue
		}
		if rec.states[n].MaterialID != "" {
			if _, ok := rec.onToken[g.HSMID]; !ok {
				continue
			}
			used, err := rec.used(ctx, g)
			if err != nil {
				return err
			}
			if used {
				return nil // those before it are not gone on with either
			}
			g.ActivatedAt = g.CreatedAt // the alias may have been on it, and put back
		}
		g.Stage = PreActive
		rec.put(g)
		return nil
	}
	return nil
}

// byMaterial returns the generation whose material is the current one of a key.
func (rec *reconciliation) byMaterial(key Key) Generation {
	for _, g := range rec.byNumber {
		if g.KeyID == key.ID && key.ID != "" && g.MaterialID == key.MaterialID {
			return g
		}
	}
	g, _ := rec.byKey(key.ID)
	return g
}

// used reports whether a key was used after the time in which its own rotation
// probes it: then others use it, whatever the alias says now, and it must not be
// taken for one that was never active.
func (rec *reconciliation) used(ctx context.Context, g Generation) (bool, error) {
	at, known, err := lastUsage(ctx, rec.kms, g.KeyID)
	return known && at.Sub(g.CreatedAt) > usedAfter, err
}

// newest is the newest key's CreationDate, or when a key was last rotated, from
// which a recovered group's schedule counts.
func (rec *reconciliation) newest() (at time.Time) {
	for _, g := range rec.byNumber {
		if g.CreatedAt.After(at) {
			at = g.CreatedAt
		}
		for _, m := range rec.listed[g.KeyID] {
			if m.RotatedAt.After(at) {
				at = m.RotatedAt
			}
		}
	}
	return at
}

// record makes what was found durable in one transaction.
func (rec *reconciliation) record(ctx context.Context) error {
	if !rec.designated {
		return nil
	}
	c := Change{Audit: rec.audit, Jobs: rec.jobs}
	for _, g := range rec.sorted() {
		if g.Stage == Previous && g.LeftAt.IsZero() && rec.dirty[g.Number] {
			// Not later than this, as far as can be seen.
			if g.LeftAt = LastRotation(rec.sorted()); g.LeftAt.IsZero() {
				g.LeftAt = rec.now()
			}
			rec.put(g)
		}
	}
	// The one that stops being active is written before the one that becomes it.
	for _, active := range []bool{false, true} {
		for _, g := range rec.sorted() {
			if rec.dirty[g.Number] && active == (g.Stage == Active) {
				c.Generations = append(c.Generations, g)
			}
		}
	}
	if len(c.Generations)+len(c.Audit)+len(c.Jobs) == 0 {
		return nil
	}
	if err := rec.Journal.Record(ctx, c); err != nil {
		return fmt.Errorf("record: %w", err)
	}
	return nil
}

// findings are what the caller is told; known is how many generations the
// journal had.
func (rec *reconciliation) findings(known int) Findings {
	f := Findings{Generations: rec.sorted(), Recovered: len(rec.byNumber) - known, AliasKeyID: rec.alias.ID, Account: rec.account,
		Problems: rec.problems, traces: len(rec.tagged)+len(rec.onToken) > 0}
	f.Adopted = len(f.Generations) == 1 && names(rec.def.ActiveKeyID, f.Generations[0].KeyID) &&
		(f.Generations[0].HSMID == "" || f.Generations[0].Stage == PreActive)
	if rec.alias.ID != "" {
		if _, ours := rec.byKey(rec.alias.ID); !ours {
			f.Foreign = true
			f.Problems = append(f.Problems, Finding{"alias", foreignAlias(rec.def.Alias, rec.alias.ID, f.Generations).Error()})
		}
	}
	return f
}

func orUnknown(s string) string {
	if s == "" {
		return "(not known)"
	}
	return s
}
