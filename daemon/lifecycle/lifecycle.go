// Package lifecycle is the life of a key: it makes generations, moves the
// alias to them, keeps AWS as the definition says and retires what is old.
//
// Everything it does to the world goes through three interfaces that it
// declares itself: [HSM], [KMS] and [Journal]. Each step of a job is look, act,
// verify, record: the intent is in the Journal before the effect, the effect is
// looked for before it is repeated, and the record is one transaction. Going on
// after a crash is therefore the same code as going on after the step before.
//
// The package imports the standard library only.
package lifecycle

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"
)

// Kind is what a job does.
type Kind string

// The kinds of job.
const (
	Rotate      Kind = "rotate"
	Synchronize Kind = "synchronize"
	Retire      Kind = "retire"
	Rollback    Kind = "rollback"
	Adopt       Kind = "adopt"
)

// A Definition is a key group's template as one job sees it: the snapshot that
// is stored in the job's row, never the reloaded one.
type Definition struct {
	Group      string `json:"group"`
	HSM        string `json:"hsm"`        // name of the [hsm.NAME] table
	Credential string `json:"credential"` // name of the [credentials.NAME] table
	Region     string `json:"region"`
	Alias      string `json:"alias"` // with the alias/ prefix

	Description *string           `json:"description"`   // nil: not managed
	Policy      *string           `json:"policy"`        // key policy document; nil: not managed
	Tags        map[string]string `json:"tags"`          // managed tags, without byokd's own
	ActiveKeyID string            `json:"active_key_id"` // a KMS key to begin with

	Mode                 string        `json:"mode"`           // alias ("" too), in-place or auto
	KeepValidFor         time.Duration `json:"keep_valid_for"` // 0: material does not expire
	Verify               string        `json:"verify"`         // auto, crypto or describe
	DisablePrevious      bool          `json:"disable_previous"`
	DisablePreviousAfter time.Duration `json:"disable_previous_after"`

	// Retirement beyond that; nil: never. KeepGenerations 0: all stay usable.
	DeletePreviousMaterialAfter   *time.Duration `json:"delete_previous_material_after"`
	SchedulePreviousDeletionAfter *time.Duration `json:"schedule_previous_deletion_after"`
	KeepGenerations               int            `json:"keep_generations"`
	ManageAdopted                 bool           `json:"manage_adopted"` // generation 0 too

	Grants string `json:"grants"` // on the key that the alias leaves: warn ("" too), copy or block

	FormerAliases []string `json:"former_aliases"`
	PreviousName  string   `json:"previous_name"`

	// Digest is that of the key group's file as it was when the snapshot was made.
	Digest string `json:"digest"`
}

// A Request says which parts of a synchronization are wanted, and for which
// generation. The zero value is the automatic one.
type Request struct {
	Asked          bool   `json:"asked"`      // a person or a request file asked; false: automatic
	By             string `json:"by"`         // who asked, for the audit trail; "": the job's trigger
	Generation     *int   `json:"generation"` // nil: not named
	KeyID          string `json:"key_id"`     // "": not named
	ImportMaterial bool   `json:"import_material"`
	UpdatePolicy   bool   `json:"update_policy"`
	DeleteMaterial bool   `json:"delete_material"`

	// Automatic ones: what drift is repaired of, beside what every automatic one
	// does, and the time before which material expires that is imported again;
	// zero: none for that reason.
	Repair         bool      `json:"repair"`
	ExpiringBefore time.Time `json:"expiring_before,omitzero"`

	// Retire jobs: what is done, one of the Retire constants.
	Retire string `json:"retire"`
}

// A Job is one piece of work as the engine sees it.
type Job struct {
	ID         string // UUIDv7
	Kind       Kind
	Group      string
	Generation int // 0: not chosen yet
	Trigger    string
	Definition Definition
	Request    Request
	CreatedAt  time.Time
	Steps      []Step // as recorded so far, in order
}

// StepState is how far a step is.
type StepState string

// The states of a step.
const (
	Pending StepState = "pending"
	Running StepState = "running"
	Done    StepState = "done"
	Skipped StepState = "skipped"
	Failed  StepState = "failed"
)

// A Step is one recorded step of a job.
type Step struct {
	Name       string
	State      StepState
	StartedAt  time.Time // zero: not started
	FinishedAt time.Time // zero: not finished
	Message    string    // for a person
	Data       []byte    // the step's intent, JSON; nil: none
}

// Stage is a generation's place in its life, as byokd's own journal has it.
type Stage string

// The stages of a generation.
const (
	PreActive Stage = "pre-active" // made or being made, the alias has never pointed at it
	Active    Stage = "active"     // its material is the current one of the key that the alias points at
	Previous  Stage = "previous"   // it was active once
	Destroyed Stage = "destroyed"  // given up, never to be used again
)

// A Generation is one key of a group: an HSM object and the KMS key, or the
// material of a KMS key, made from it. Generations made in place share their KMS
// key, and with it all that the journal holds of a key: see keyFacts.
type Generation struct {
	Group       string
	Number      int // 1, 2, 3, …; 0 is an adopted key whose material byokd does not have
	Stage       Stage
	HSM         string // name of the [hsm.NAME] table
	HSMLabel    string // byokd/GROUP/NUMBER; "" for generation 0
	HSMID       string // CKA_ID, 32 lower-case hex digits; "" for generation 0
	GeneratedAt time.Time
	JobID       string // the value of the KMS key's byokd:job tag; "": none yet
	Region      string
	Account     string
	KeyID       string
	KeyARN      string
	MaterialID  string
	CreatedAt   time.Time // of the KMS key; zero: not created yet
	ImportedAt  time.Time // zero: never imported
	ActivatedAt time.Time // zero: never active; of a pre-active one: since when it may have been
	ValidTo     time.Time // zero: does not expire, or not imported

	DisabledAt        time.Time // the KMS key, by byokd; zero: not
	MaterialDeletedAt time.Time // on request; zero: not
	DeletionDate      time.Time // of the KMS key; zero: not scheduled
	LeftAt            time.Time // by the alias, as Previous; zero: not, or not known
	KeptAt            time.Time // the KMS key, by a person, from retirement; zero: not

	Policy string            // key policy last written by byokd; "": none
	Tags   map[string]string // managed tags last written by byokd
}

// State is the generation's state in the words of `byokctl keys`: the first
// that holds of destroyed, pending-deletion, expired, material-deleted,
// disabled, active, previous, pre-active.
func (g Generation) State(now time.Time) string {
	switch {
	case g.Stage == Destroyed, !g.DeletionDate.IsZero() && !now.Before(g.DeletionDate):
		return "destroyed"
	case !g.DeletionDate.IsZero():
		return "pending-deletion"
	case !g.ValidTo.IsZero() && !now.Before(g.ValidTo):
		return "expired"
	case !g.MaterialDeletedAt.IsZero():
		return "material-deleted"
	case !g.DisabledAt.IsZero():
		return "disabled"
	}
	return string(g.Stage)
}

// Label is the CKA_LABEL of a generation's HSM object.
func Label(group string, generation int) string {
	return fmt.Sprintf("byokd/%s/%d", group, generation)
}

// MaterialDescription is the KeyMaterialDescription of a generation's imports.
// After a lost database it tells which generation a material is.
func MaterialDescription(g Generation) string { return g.HSMLabel + " " + g.HSMID }

// Tags that byokd gives each KMS key that it creates; generation and HSM ID are
// those of the first generation in it.
const (
	TagGroup      = "byokd:group"
	TagGeneration = "byokd:generation"
	TagJob        = "byokd:job"
	TagHSMID      = "byokd:hsm-id"
)

// CanaryContext is the only key of the encryption context under which byokd
// encrypts and decrypts; its value is the group.
const CanaryContext = "byokd-canary"

// An Event is a fact for EventBridge. The Journal gives it its sequence number.
type Event struct {
	ID         string // UUIDv7, stable over resends
	Group      string
	DetailType string
	Detail     []byte   // JSON object without "sequence", which the Journal adds
	Resources  []string // ARNs
	OccurredAt time.Time
	JobID      string // "": none
	Region     string // the group's
	Account    string
	Credential string // the group's
}

// An AuditEntry is one line of the append-only audit trail.
type AuditEntry struct {
	At     time.Time
	Group  string
	JobID  string
	Actor  string // who or what asked: the job's trigger, or a user name
	Action string // verb and object, e.g. "move alias"
	Detail string // for a person; never a secret

	Definition string // digest of the definition that was in force; "": of none
}

// A NewJob is a job that a Change brings forth.
type NewJob struct {
	Kind       Kind
	Group      string
	Generation int
	Trigger    string
	UniqueKey  string // asking twice under one key is asking once
	DueAt      time.Time
	Definition Definition
	Request    Request
}

// A Change is what one transaction of the Journal writes. All of it becomes
// durable, or none of it.
type Change struct {
	JobID       string // the running job that this belongs to; "": none (reconciliation)
	Generation  int    // the job's generation from now on; 0: unchanged
	Steps       []Step // replaced by name
	Generations []Generation
	Events      []Event
	Audit       []AuditEntry
	Jobs        []NewJob
	Plan        *Plan // nil: unchanged
}

// A Plan is all that is to be retired of a group as things stand. The Journal
// makes the jobs of it that it does not have waiting or running, moves those
// whose time has changed, and drops those that wait and are not in it. Their
// UniqueKey begins with [PlanKey].
type Plan struct {
	Group string
	Jobs  []NewJob
}

// PlanKey begins the unique keys of planned jobs, and of no others.
const PlanKey = "plan:"

// A Journal is byokd's durable memory.
type Journal interface {
	// Generations returns all generations of the group in ascending order,
	// destroyed ones included.
	Generations(ctx context.Context, group string) ([]Generation, error)

	// Record makes a Change durable in one transaction before it returns. It
	// fails when the change names a job that is not running, so that a worker
	// that lost its job cannot write.
	Record(ctx context.Context, c Change) error
}

// An HSM is one logged-in token. Its errors are, or wrap, a *Fault.
type HSM interface {
	// Algorithm returns the wrapping algorithm, in KMS's words, that a
	// self-test has proven on this token.
	Algorithm(ctx context.Context) (string, error)

	// Generate makes an AES-256 token object, sensitive and extractable. The ID
	// was drawn at random a moment ago, or Find has said that it is not there.
	Generate(ctx context.Context, label string, id []byte) error

	// Find looks the key up in a fresh session: nil when there is exactly one
	// object with that ID, and its label and attributes are as they must be;
	// ErrNotFound when there is none.
	Find(ctx context.Context, label string, id []byte) error

	// List returns the keys whose label begins with prefix, as they were at most
	// age ago, or after that if byokd has made or destroyed them.
	List(ctx context.Context, prefix string, age time.Duration) ([]HSMKey, error)

	// Wrap wraps the key inside the token under an RSA public key
	// (SubjectPublicKeyInfo, DER) with the algorithm that Algorithm returned.
	Wrap(ctx context.Context, label string, id []byte, algorithm string, spki []byte) ([]byte, error)

	// Destroy removes the key; nil when there is none.
	Destroy(ctx context.Context, label string, id []byte) error
}

// An HSMKey is a key found on a token.
type HSMKey struct {
	Label string
	ID    []byte
}

// A KMS is AWS KMS in one account and Region. Its errors are, or wrap, a *Fault.
type KMS interface {
	// Account returns the account ID behind the credential.
	Account(ctx context.Context) (string, error)

	// Now returns AWS's time, from the Date of its latest answer.
	Now() time.Time

	// CreateKey creates a symmetric key of origin EXTERNAL. It is not
	// idempotent and is sent once: an error of class Unknown means that the
	// key may exist.
	CreateKey(ctx context.Context, description, policy string, tags map[string]string) (Key, error)

	// DescribeKey describes a key by ID, ARN or alias name; ErrNotFound.
	DescribeKey(ctx context.Context, keyID string) (Key, error)

	// FindKeys returns the keys of this account and Region that carry all the
	// given tags, those pending deletion included, with all their tags.
	FindKeys(ctx context.Context, tags map[string]string) ([]TaggedKey, error)

	// ParametersForImport fetches a wrapping key and its import token.
	ParametersForImport(ctx context.Context, keyID, algorithm string) (ImportParameters, error)

	// ImportKeyMaterial imports wrapped material and returns its ID.
	ImportKeyMaterial(ctx context.Context, keyID string, token, wrapped []byte, i Import) (materialID string, err error)

	// DeleteKeyMaterial deletes a material of the key, "" the current one.
	DeleteKeyMaterial(ctx context.Context, keyID, materialID string) error

	// KeyMaterials returns all materials of the key, the pending one included.
	KeyMaterials(ctx context.Context, keyID string) ([]Material, error)

	// RotateKeyOnDemand makes the pending material the current one, some time
	// after the answer. ErrState where none is pending; ErrLimit where the key's
	// rotations are used up.
	RotateKeyOnDemand(ctx context.Context, keyID string) error

	// RotationStarted returns since when a rotation on demand is running; zero:
	// none is.
	RotationStarted(ctx context.Context, keyID string) (time.Time, error)

	KeyPolicy(ctx context.Context, keyID string) (string, error)
	PutKeyPolicy(ctx context.Context, keyID, policy string) error
	KeyTags(ctx context.Context, keyID string) (map[string]string, error)
	TagKey(ctx context.Context, keyID string, tags map[string]string) error
	UntagKey(ctx context.Context, keyID string, names []string) error
	SetDescription(ctx context.Context, keyID, description string) error
	EnableKey(ctx context.Context, keyID string) error
	DisableKey(ctx context.Context, keyID string) error

	// ScheduleDeletion schedules the key's deletion and returns its date.
	ScheduleDeletion(ctx context.Context, keyID string, days int) (time.Time, error)

	// CancelDeletion cancels it; the key is disabled then. ErrState where it was
	// not scheduled.
	CancelDeletion(ctx context.Context, keyID string) error

	// LastUsage returns when the key last did a cryptographic operation: the
	// zero time where it never did. known is false where KMS cannot say.
	LastUsage(ctx context.Context, keyID string) (at time.Time, known bool, err error)

	// Grants returns all grants on the key.
	Grants(ctx context.Context, keyID string) ([]Grant, error)

	// CreateGrant makes a grant. Under a Name, asking twice is asking once.
	CreateGrant(ctx context.Context, keyID string, g Grant) error

	// KeyAliases returns the names of the aliases that point at the key.
	KeyAliases(ctx context.Context, keyID string) ([]string, error)

	CreateAlias(ctx context.Context, alias, keyID string) error
	UpdateAlias(ctx context.Context, alias, keyID string) error

	// Encrypt and Decrypt probe a key under an encryption context; Encrypt takes
	// an alias as well.
	Encrypt(ctx context.Context, keyID string, plaintext []byte, encryptionContext map[string]string) ([]byte, error)
	Decrypt(ctx context.Context, keyID string, ciphertext []byte, encryptionContext map[string]string) ([]byte, error)
}

// A Key is what KMS says of a key.
type Key struct {
	ID         string // UUID
	ARN        string
	Account    string
	State      string // Enabled, Disabled, PendingImport, PendingDeletion, …
	Origin     string // EXTERNAL, AWS_KMS, …
	KeySpec    string // SYMMETRIC_DEFAULT, …
	KeyUsage   string // ENCRYPT_DECRYPT, …
	Manager    string // CUSTOMER or AWS
	MaterialID string // "": never imported

	Description  string
	CreatedAt    time.Time
	ValidTo      time.Time // zero: does not expire, or no material
	DeletionDate time.Time // zero: not pending deletion
}

// A TaggedKey is a key found by its tags.
type TaggedKey struct {
	KeyID string // UUID
	ARN   string
	Tags  map[string]string
}

// ImportParameters are one wrapping key and the token bound to it; both live 24 h.
type ImportParameters struct {
	PublicKey []byte // SubjectPublicKeyInfo, DER; size and exponent already checked
	Token     []byte
	ValidTo   time.Time
}

// An Import says which material ImportKeyMaterial imports, and how.
type Import struct {
	// New imports material that the key does not have yet. Beside other material
	// it waits for RotateKeyOnDemand; KMS takes it only while all of the key's
	// material is there and no other waits (ErrState). Else the key's first
	// material is taken as new, and any later one only if the key had it before
	// (ErrIncorrectMaterial).
	New bool

	MaterialID  string    // that the material must have; "": not known; not with New
	Description string    // kept by KMS with the material; "": unchanged
	ValidTo     time.Time // in whole seconds; zero: it does not expire
}

// A Material is one of the materials of a KMS key.
type Material struct {
	ID          string // 64 hex digits
	Description string
	State       string    // CURRENT, NON_CURRENT, PENDING_ROTATION, …
	Imported    bool      // false: deleted, expired, or not imported yet
	ValidTo     time.Time // zero: does not expire, or not imported
	RotatedAt   time.Time // when it became current; zero: the first, or pending
	OnDemand    bool      // it became so by RotateKeyOnDemand
}

// Class is what is known after an error, and so what to do next.
type Class string

// The classes of error.
const (
	Transient   Class = "transient"   // it did not happen; try again later
	Unknown     Class = "unknown"     // it may have happened; look, then go on
	Operator    Class = "operator"    // a person must act
	Permanent   Class = "permanent"   // it will never work
	Interrupted Class = "interrupted" // byokd is stopping; no attempt
)

// What a job waits for when a person must act.
const (
	WaitPIN        = "pin"
	WaitPermission = "permission"
	WaitPolicy     = "policy"
	WaitAlias      = "alias"
	WaitConfig     = "config"
	WaitUse        = "use" // the key that is to be retired is, or may be, in use
)

// A Fault is an error with its class.
type Fault struct {
	Class      Class
	WaitingFor string // with Operator: one of the Wait constants
	Err        error

	// After, with Transient or Operator, is when it is of use to try again; zero:
	// not known.
	After time.Duration
}

func (f *Fault) Error() string { return f.Err.Error() }

// Unwrap returns the error that was classed.
func (f *Fault) Unwrap() error { return f.Err }

// Sentinels that an HSM or a KMS wraps.
var (
	// ErrNotFound: the key, alias or object does not exist.
	ErrNotFound = errors.New("not found")
	// ErrExists: the alias exists already.
	ErrExists = errors.New("already exists")
	// ErrImportToken: the import token is expired, invalid or not for this
	// key; a fresh one is needed.
	ErrImportToken = errors.New("import token not accepted")
	// ErrIncorrectMaterial: KMS holds a record of different material for this key.
	ErrIncorrectMaterial = errors.New("not the material that the key had")
	// ErrDenied: the caller has no permission.
	ErrDenied = errors.New("access denied")
	// ErrLimit: a quota is used up, or a key's rotations on demand.
	ErrLimit = errors.New("limit reached")
	// ErrIncorrectKey: the ciphertext is of another key than the one named.
	ErrIncorrectKey = errors.New("ciphertext of another key")
	// ErrState: the KMS key's state does not allow the operation.
	ErrState = errors.New("key state does not allow it")
)

// ClassOf returns the class of an error: that of the outermost Fault in its
// chain; Interrupted for a cancelled context, else Unknown, since an error that
// nobody has classed, a deadline among them, tells nothing of what happened.
func ClassOf(err error) Class {
	if f, ok := errors.AsType[*Fault](err); ok {
		return f.Class
	}
	switch {
	case err == nil:
		return ""
	case errors.Is(err, context.Canceled):
		return Interrupted
	}
	return Unknown
}

// WaitingFor returns what a person must mend before the job can go on, or "".
func WaitingFor(err error) string {
	if f, ok := errors.AsType[*Fault](err); ok && f.Class == Operator {
		return f.WaitingFor
	}
	return ""
}

// RetryAfter returns when it is of use to try again, or 0 where that is not known.
func RetryAfter(err error) time.Duration {
	if f, ok := errors.AsType[*Fault](err); ok {
		return f.After
	}
	return 0
}

// operator makes an Operator fault.
func operator(waitingFor, format string, args ...any) error {
	return &Fault{Class: Operator, WaitingFor: waitingFor, Err: fmt.Errorf(format, args...)}
}

// NewID returns a UUIDv7 (RFC 9562, section 5.7) for the given time.
func NewID(now time.Time) string {
	var b [16]byte
	rand.Read(b[:])
	ms := uint64(now.UnixMilli())
	b[0], b[1], b[2], b[3], b[4], b[5] = byte(ms>>40), byte(ms>>32), byte(ms>>24), byte(ms>>16), byte(ms>>8), byte(ms)
	b[6] = b[6]&0x0f | 0x70
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}
