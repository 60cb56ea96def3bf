package config

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"byokd/schedule"
)

// A Group is one file of groups.d with defaults applied: a container for keys
// and the template that makes them.
type Group struct {
	// Name is the group's name: the stem of the file.
	Name string `toml:"-" json:"-"`

	// Path is the absolute path of the file.
	Path string `toml:"-" json:"-"`

	// Policy is the content of the policy file; nil: the key policy is not
	// managed.
	Policy []byte `toml:"-" json:"-"`

	// Account is the account of the group's credential in byokd.toml; "": not
	// given. It is not part of the definition.
	Account string `toml:"-" json:"-"`

	// Gone says that the file is no longer there. It is set by whoever puts a
	// definition from the database among loaded groups for [CheckSet].
	Gone bool `toml:"-" json:"-"`

	// HSM is the name of the [hsm.NAME] that makes the keys. Default: the only
	// one there is.
	HSM string `toml:"hsm" json:"hsm"`

	// Service is where the keys go. Default: "aws".
	Service string `toml:"service" json:"service" enum:"aws"`

	// Credential is the name of the [credentials.NAME] for the account.
	// Default: the only one there is.
	Credential string `toml:"credential" json:"credential"`

	// KeyType is the kind of the keys. Default: "aes".
	KeyType string `toml:"key_type" json:"key_type" enum:"aes"`

	// KeyLength is their length in bits. Default: 256.
	KeyLength int `toml:"key_length" json:"key_length" enum:"256"`

	// KeyUsage is what they are for. Default: "encrypt-decrypt".
	KeyUsage string `toml:"key_usage" json:"key_usage" enum:"encrypt-decrypt"`

	// Rotation is when and how a new key is made: [rotation].
	Rotation Rotation `toml:"rotation" json:"rotation"`

	// AWS is what the keys are in AWS: [aws].
	AWS GroupAWS `toml:"aws" json:"aws"`

	src    source
	digest string // see Digest; "": not worked out
}

// Rotation is when and how a group's next key is made: [rotation].
type Rotation struct {
	// Enabled says whether the schedule runs; false stops nothing else.
	// Default: true.
	Enabled bool `toml:"enabled" json:"enabled"`

	// Every is the interval since the last rotation, whatever made that. It or
	// schedule is required where enabled is true, and not both.
	Every Duration `toml:"every,optional" json:"every" min:"1m"`

	// Schedule is a cron expression of five fields, or a descriptor such as
	// @monthly.
	Schedule string `toml:"schedule" json:"schedule"`

	// Timezone is the IANA time zone of the schedule. Default: byokd.toml's.
	Timezone string `toml:"timezone" json:"timezone"`

	// Jitter delays each scheduled rotation by a fixed offset below it, to
	// spread the groups. Default: "0s".
	Jitter Duration `toml:"jitter" json:"jitter"`

	// Missed is what becomes of ticks that passed while byokd was down, was not
	// designated, or had no file: "run-once" is one rotation for all of them,
	// "skip" waits for the next. Default: "run-once".
	Missed string `toml:"missed" json:"missed" enum:"run-once,skip"`

	// Initial is when the first key is made: "now" is as soon as the group is
	// seen. Default: "now"; with active_key_id "scheduled".
	Initial string `toml:"initial" json:"initial" enum:"now,scheduled"`

	// Force rotates once for each value not seen before, however often it is
	// loaded: for configuration management. At most 256 bytes. Default: none.
	Force string `toml:"force" json:"force" max:"256"` // ours: it is stored, and shown in messages

	// Mode is what a rotation makes: "alias" is a new KMS key each time, to which
	// the alias moves, "in-place" new material in the same KMS key, "auto" in
	// place as long as AWS's 25 rotations last. Default: "alias".
	Mode string `toml:"mode" json:"mode" enum:"alias,in-place,auto"`

	// Verify is how a new key is proven before it is used: "crypto" encrypts and
	// decrypts with it, "describe" looks at its state; "auto" does the first, and
	// the second where access is denied. Default: "auto".
	Verify string `toml:"verify" json:"verify" enum:"auto,crypto,describe"`

	// KeepValidFor is how long imported material is valid, at most 365 days
	// and longer than the rotations are apart. Default: it does not expire.
	KeepValidFor Duration `toml:"keep_valid_for,optional" json:"keep_valid_for"`

	// OnExpiry is what is done ahead of the end of validity: "rotate",
	// "reimport" or "let-expire". Default: "rotate".
	OnExpiry string `toml:"on_expiry" json:"on_expiry" enum:"rotate,reimport,let-expire"`

	// DisablePrevious disables the key that the alias has left. Default: false.
	DisablePrevious bool `toml:"disable_previous" json:"disable_previous"`

	// DisablePreviousAfter is how long after the alias has left it; "0s" is as
	// soon as the alias reads back at the new key. Default: "24h".
	DisablePreviousAfter Duration `toml:"disable_previous_after" json:"disable_previous_after"`

	// DeletePreviousMaterialAfter is how long after the alias has left a key its
	// material is deleted from KMS; the HSM keeps it, and a synchronization
	// brings it back. Of a key that was rotated in place it is not. Default:
	// never.
	DeletePreviousMaterialAfter *Duration `toml:"delete_previous_material_after,optional" json:"delete_previous_material_after"`

	// SchedulePreviousDeletionAfter is how long after the alias has left a key
	// the key's deletion is scheduled, with KMS's waiting period of 30 days.
	// Default: never.
	SchedulePreviousDeletionAfter *Duration `toml:"schedule_previous_deletion_after,optional" json:"schedule_previous_deletion_after"`

	// KeepGenerations is how many generations stay usable: the active one and
	// those that the alias has left last. The KMS keys of the others are disabled
	// once nothing uses them, and nothing more. Those that are disabled, expired
	// or without material already, or kept, do not count. Default: 0, all.
	KeepGenerations int `toml:"keep_generations" json:"keep_generations" min:"0"`

	// ManageAdopted retires generation 0 as well, once active_key_id no longer
	// names it; its material is never deleted. Default: false.
	ManageAdopted bool `toml:"manage_adopted" json:"manage_adopted"`

	// OverdueAfter is how late a rotation may be before it is reported.
	// Default: "24h".
	OverdueAfter Duration `toml:"overdue_after" json:"overdue_after"`

	// Grants is what is done about grants on the key that the alias leaves.
	// Default: "warn".
	Grants string `toml:"grants" json:"grants" enum:"warn,copy,block"`

	// Drift is what is done where AWS is not as defined. Default: "report".
	Drift string `toml:"drift" json:"drift" enum:"report,repair"`
}

// GroupAWS is what a group's keys are in AWS: [aws] of its file.
type GroupAWS struct {
	// Region is the code of the Region. Required.
	Region string `toml:"region" json:"region"`

	// Alias is the alias that points at the active key, with its prefix
	// "alias/". Required.
	Alias string `toml:"alias" json:"alias"`

	// Description is the description of the active key, at most 8192
	// characters. Default: not managed.
	Description *string `toml:"description" json:"description"`

	// ActiveKeyID is the ID or ARN of a KMS key to begin with. It is read only
	// while the group has no generation. Default: none.
	//
	// Here it is always the ID.
	ActiveKeyID string `toml:"active_key_id" json:"active_key_id"`

	// PolicyFile is the file with the key policy, a JSON document of at most
	// 32,768 bytes. Left out, each new key gets a copy of the active key's, and
	// the first one AWS's default. Default: not managed.
	//
	// The path is absolute. The definition is its content, not its path: see
	// [Group.Policy].
	PolicyFile string `toml:"policy_file" json:"-"`

	// FormerAliases are aliases that the group has given up. Default: none.
	//
	// They are sorted.
	FormerAliases []string `toml:"former_aliases" json:"former_aliases"`

	// PreviousName is the group's old name where its file was renamed. Default:
	// none.
	PreviousName string `toml:"previous_name" json:"previous_name"`

	// Tags are the managed tags, at most 46; other tags are never touched.
	// Default: none.
	Tags map[string]string `toml:"tags" json:"tags"`
}

// defaultGroup returns a group without the keys that are required or that
// byokd.toml decides.
func defaultGroup() *Group {
	return &Group{
		Service:   "aws",
		KeyType:   "aes",
		KeyLength: 256,
		KeyUsage:  "encrypt-decrypt",
		Rotation: Rotation{
			Enabled:              true,
			Timezone:             "UTC",
			Missed:               "run-once",
			Mode:                 "alias",
			Verify:               "auto",
			OnExpiry:             "rotate",
			DisablePreviousAfter: Duration(day),
			OverdueAfter:         Duration(day),
			Grants:               "warn",
			Drift:                "report",
		},
	}
}

// Problem returns a Problem at a key of the group's file, for checks beyond
// this package's.
func (g *Group) Problem(key, msg string) Problem { return g.src.problem(key, msg) }

// Location returns the time zone of the group's schedule.
func (g *Group) Location() (*time.Location, error) { return time.LoadLocation(g.Rotation.Timezone) }

// Digest returns the SHA-256, in hex, of what the group's file and policy file
// mean. Comments, order, spacing, the place of the files, and whether a default
// is written out make no difference. A group that was read or unmarshalled must not
// be changed after that.
//
// A stored definition is compared by the Digest of what [UnmarshalDefinition]
// makes of it, not by a stored digest: a later version of byokd may have keys
// that change the digest, but not the meaning.
func (g *Group) Digest() string {
	if g.digest != "" {
		return g.digest
	}
	b, err := json.Marshal(struct {
		*Group
		Name   string
		Policy []byte // nil is not the same as empty
	}{g, g.Name, g.Policy})
	if err != nil {
		panic(err) // the types of Group all marshal
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// A definition is a Group as the database keeps it.
type definition struct {
	Name       string  `json:"name"`
	File       string  `json:"file"`
	PolicyFile string  `json:"policy_file"`
	Policy     *string `json:"policy"`
	Account    string  `json:"account"`
	*Group
}

// MarshalDefinition returns the group as JSON, for the database. It holds no
// secret.
func (g *Group) MarshalDefinition() ([]byte, error) {
	def := definition{Name: g.Name, File: g.Path, PolicyFile: g.AWS.PolicyFile, Account: g.Account, Group: g}
	if g.Policy != nil {
		policy := string(g.Policy)
		def.Policy = &policy
	}
	b, err := json.Marshal(def)
	if err != nil {
		return nil, fmt.Errorf("marshal definition of group %s: %w", g.Name, err)
	}
	return b, nil
}

// UnmarshalDefinition reads what MarshalDefinition wrote, in this version of
// byokd or another: a key that is not there has its default, a key that is not
// known is passed over. The Group has no positions; its Problems name the file.
func UnmarshalDefinition(b []byte) (*Group, error) {
	def := definition{Group: defaultGroup()}
	if err := json.Unmarshal(b, &def); err != nil {
		return nil, fmt.Errorf("unmarshal definition: %w", err)
	}
	if !groupName.MatchString(def.Name) || def.Group == nil {
		return nil, fmt.Errorf("unmarshal definition: %q is not the name of a group", def.Name)
	}
	g := def.Group
	g.Name, g.Path, g.Account, g.AWS.PolicyFile = def.Name, def.File, def.Account, def.PolicyFile
	if def.Policy != nil {
		g.Policy = []byte(*def.Policy)
	}
	g.normalize()
	g.src.file = g.Path
	g.digest = g.Digest()
	return g, nil
}

// normalize makes one form of what means the same.
func (g *Group) normalize() {
	slices.Sort(g.AWS.FormerAliases)
	g.AWS.FormerAliases = slices.Compact(g.AWS.FormerAliases)
	if len(g.AWS.FormerAliases) == 0 {
		g.AWS.FormerAliases = nil
	}
	if len(g.AWS.Tags) == 0 {
		g.AWS.Tags = nil
	}
	if g.Rotation.Initial == "" {
		g.Rotation.Initial = "now"
		if g.AWS.ActiveKeyID != "" {
			g.Rotation.Initial = "scheduled"
		}
	}
	if _, id, ok := strings.Cut(g.AWS.ActiveKeyID, ":key/"); ok {
		g.AWS.ActiveKeyID = id
	}
}

// groupName is what a group may be called.
var groupName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

// AWS's limits, from the API reference of KMS unless said otherwise.
const (
	maxAlias       = 256
	maxDescription = 8192
	maxTags        = 46 // 50 of KMS less byokd's own four
	maxTagKey      = 128
	maxTagValue    = 256
	maxPolicy      = 32768 // Developer Guide, Resource quotas
)

// maxValid is the longest validity that KMS grants imported material.
const maxValid = Duration(365 * day)

var (
	aliasName = regexp.MustCompile(`^alias/[a-zA-Z0-9/_-]+$`)
	keyID     = regexp.MustCompile(`^([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|mrk-[0-9a-f]{32})$`)
	keyARN    = regexp.MustCompile(`^arn:aws[a-z-]*:kms:([a-z0-9-]+):([0-9]{12}):key/(.+)$`)

	// tagText is what tag keys and values are made of (AWS, "Tag your AWS
	// resources").
	tagText = regexp.MustCompile(`^[\p{L}\p{Z}\p{N}_.:/=+\-@]*$`)
)

// LoadGroup reads one group file. cfg is the byokd.toml that it refers to. Its
// error is [Problems], all there are.
func LoadGroup(cfg *Config, path string, opts Options) (*Group, error) {
	g, problems := newLoader(cfg, opts).load(path)
	if problems != nil {
		return nil, problems
	}
	return g, nil
}

// A loader reads group files, and remembers what many of them have in common.
type loader struct {
	cfg         *Config
	opts        Options
	dirs        directories
	zones       map[string]*time.Location
	gaps        map[[2]string]time.Duration // by schedule and time zone
	policies    map[string]*policyFile      // by path: one may be that of thousands
	contents    map[string][]byte           // of policy files, one copy of each
	hsms        []string
	credentials []string

	fresh func(path string) bool // a policy file that may be half written; nil: none is
	named string                 // the policy file that the group file read last names; "": none
	waits bool                   // that one is fresh
	reads int                    // files read

	refused map[string]bool // files that were refused for their directory
}

// manyGaps is more schedules than there are groups.
const manyGaps = 20_000

// A policyFile is a policy file as it was last read.
type policyFile struct {
	read    bool // else it has to be
	policy  []byte
	problem string          // what is wrong with it; "": nothing
	users   map[string]bool // paths of the group files that name it, in a Dir
}

func newLoader(cfg *Config, opts Options) *loader {
	return &loader{
		cfg: cfg, opts: opts,
		dirs:        make(directories),
		refused:     make(map[string]bool),
		zones:       make(map[string]*time.Location),
		gaps:        make(map[[2]string]time.Duration),
		policies:    make(map[string]*policyFile),
		contents:    make(map[string][]byte),
		hsms:        slices.Sorted(maps.Keys(cfg.HSMs)),
		credentials: slices.Sorted(maps.Keys(cfg.Credentials)),
	}
}

func (l *loader) load(path string) (*Group, Problems) {
	name, isTOML := strings.CutSuffix(filepath.Base(path), ".toml")
	if !isTOML || !groupName.MatchString(name) {
		return nil, Problems{{File: path, Msg: fmt.Sprintf("%q is not the name of a group file: rename it to NAME.toml, where NAME is of a-z, 0-9 and -, begins with no -, and has at most 63 characters", filepath.Base(path))}}
	}
	l.reads++
	file, data, err := l.opts.read(path, l.dirs)
	if err != nil {
		l.noteRefused(path, err)
		return nil, Problems{{File: file, Msg: err.Error()}}
	}
	return l.decode(path, file, name, data)
}

// decode makes a group of the bytes of its file.
func (l *loader) decode(path, file, name string, data []byte) (*Group, Problems) {
	d := parse(file, data)
	if d.tree == nil {
		return nil, d.problems
	}
	g := defaultGroup()
	g.Name, g.Path = name, absolute(path)
	g.Rotation.Timezone = l.cfg.Timezone
	d.decode(g)
	l.check(d, g)
	if len(d.problems) > 0 {
		d.problems.sort()
		return nil, d.problems
	}
	g.normalize()
	g.src = d.source()
	g.digest = g.Digest()
	return g, nil
}

// check checks what the values mean, and fills in what byokd.toml and the
// policy file say.
func (l *loader) check(d *document, g *Group) {
	g.HSM = d.reference("hsm", "hsm", g.HSM, l.hsms)
	g.Credential = d.reference("credential", "credentials", g.Credential, l.credentials)
	g.Account = l.cfg.Credentials[g.Credential].Account

	l.checkRotation(d, &g.Rotation)
	l.checkAWS(d, g)
}

// reference resolves the name of a table of byokd.toml.
func (d *document) reference(key, kind, name string, names []string) string {
	switch {
	case !d.ok(key), slices.Contains(names, name):
	case d.given(key):
		d.problemf(key, "%s", unknownTable(kind, name, names))
	case len(names) == 1:
		return names[0]
	case len(names) == 0:
		d.problemf(key, "there is no [%s.NAME] in byokd.toml: add one", kind)
	default:
		d.problemf(key, "is required where byokd.toml has several: use one of %s", list(names))
	}
	return name
}

func (l *loader) checkRotation(d *document, r *Rotation) {
	if d.ok("rotation.enabled", "rotation.every", "rotation.schedule") {
		switch every, cron := d.given("rotation.every"), r.Schedule != ""; {
		case every && cron:
			d.problemf("rotation.schedule", "excludes every: keep one of them")
		case !every && !cron && r.Enabled:
			d.problemf("rotation.every", `is required, or schedule: write every = "90d", or set enabled = false`)
		}
	}
	gap := l.checkSchedule(d, r)

	if r.Mode == "in-place" {
		if r.OnExpiry == "let-expire" {
			d.problemf("rotation.on_expiry", `"let-expire" would end the one KMS key that mode = "in-place" has: use "rotate" or "reimport", or mode = "alias"`)
		}
		if r.DisablePrevious {
			d.problemf("rotation.disable_previous", `would disable the one KMS key that mode = "in-place" has: remove it, or use mode = "alias"`)
		}
	}
	d.checkRetirement(r)
	l.checkValidity(d, r, gap)
}

// checkRetirement checks that what is done to previous keys comes in an order in
// which all of it can be done.
func (d *document) checkRetirement(r *Rotation) {
	const disable, material, deletion = "rotation.disable_previous_after", "rotation.delete_previous_material_after", "rotation.schedule_previous_deletion_after"
	if r.Mode == "in-place" {
		for key, given := range map[string]bool{material: r.DeletePreviousMaterialAfter != nil, deletion: r.SchedulePreviousDeletionAfter != nil,
			"rotation.keep_generations": r.KeepGenerations != 0} {
			if given && d.ok(key) {
				d.problemf(key, `cannot be done: with mode = "in-place" all generations are in one KMS key, which is in use: remove it, or use mode = "alias" or "auto"`)
			}
		}
	}
	for _, after := range []struct {
		key string
		at  *Duration
	}{{material, r.DeletePreviousMaterialAfter}, {deletion, r.SchedulePreviousDeletionAfter}} {
		if after.at != nil && r.DisablePrevious && *after.at < r.DisablePreviousAfter && d.ok(after.key, disable) {
			d.problemf(after.key, "%s is sooner than disable_previous_after, %s: make it longer, so that a key is disabled first and whoever misses it can have it back, or set disable_previous = false",
				*after.at, r.DisablePreviousAfter)
		}
	}
	if m, del := r.DeletePreviousMaterialAfter, r.SchedulePreviousDeletionAfter; m != nil && del != nil && *del < *m && d.ok(material, deletion) {
		d.problemf(material, "%s is later than schedule_previous_deletion_after, %s, when the key goes with its material: make it shorter, or remove it", *m, *del)
	}
}

// gapFrom and gapSpan bound the search for the longest gap of a schedule: as
// cron expressions have no year, any ten years hold all cases.
var gapFrom = time.Date(2020, time.January, 1, 0, 0, 0, 0, time.UTC)

const gapSpan = 3653 * day

// checkSchedule returns the longest time between two rotations, or 0 where
// there is none or it is not known.
func (l *loader) checkSchedule(d *document, r *Rotation) time.Duration {
	zone, ok := l.zones[r.Timezone]
	if !ok {
		if zone = d.timezone("rotation.timezone", r.Timezone); zone != nil {
			l.zones[r.Timezone] = zone
		}
	}
	if r.Schedule == "" || zone == nil || !d.ok("rotation.schedule", "rotation.timezone") {
		return time.Duration(r.Every)
	}
	s, err := schedule.Parse(r.Schedule, zone)
	if err != nil {
		d.problemf("rotation.schedule", "%v", err)
		return 0
	}
	if r.KeepValidFor == 0 {
		return 0 // nobody asks
	}
	id := [2]string{r.Schedule, r.Timezone}
	gap, ok := l.gaps[id]
	if !ok {
		if len(l.gaps) >= manyGaps {
			clear(l.gaps) // of years of changes
		}
		gap = schedule.LongestGap(s, gapFrom, gapSpan)
		l.gaps[id] = gap
	}
	return gap
}

// checkValidity checks keep_valid_for: material must outlive the longest time
// that may pass until the next rotation, and a day on top for its retries.
func (l *loader) checkValidity(d *document, r *Rotation, gap time.Duration) {
	const key = "rotation.keep_valid_for"
	if !d.given(key) || !d.ok(key) {
		return
	}
	if r.KeepValidFor == 0 {
		d.problemf(key, "must be more than 0: leave it out for material that does not expire")
		return
	}
	if r.KeepValidFor > maxValid {
		d.problemf(key, `must be at most "365d": KMS keeps imported material no longer; leave it out for material that does not expire`)
		return
	}
	if !r.Enabled || r.OnExpiry == "reimport" || gap == 0 ||
		!d.ok("rotation.enabled", "rotation.every", "rotation.schedule", "rotation.jitter", "rotation.on_expiry") {
		return
	}
	// Compared without adding, which could overflow.
	if left := time.Duration(r.KeepValidFor) - gap - day; left <= 0 || Duration(left) <= r.Jitter {
		d.problemf(key, `%s is not longer than the longest gap between rotations (%s) + jitter (%s) + 24h, so the active key could expire: make it longer, rotate more often, or set on_expiry = "reimport"`,
			r.KeepValidFor, Duration(gap), r.Jitter)
	}
}

func (l *loader) checkAWS(d *document, g *Group) {
	a := &g.AWS
	if a.Region == "" {
		d.required("aws.region", "the code of the Region, such as eu-central-1")
	} else {
		d.region("aws.region", a.Region)
	}
	if a.Alias == "" {
		d.required("aws.alias", "the alias of the active key, such as alias/"+g.Name)
	} else {
		d.alias("aws.alias", a.Alias)
	}
	for i, alias := range a.FormerAliases {
		key := fmt.Sprintf("aws.former_aliases[%d]", i)
		d.alias(key, alias)
		if d.ok(key, "aws.alias") && alias == a.Alias {
			d.problemf(key, "%s is the group's alias now: remove it from former_aliases", alias)
		}
	}
	if a.Description != nil && d.ok("aws.description") {
		if n := utf8.RuneCountInString(*a.Description); n > maxDescription {
			d.problemf("aws.description", "must be at most %d characters long, not %d", maxDescription, n)
		}
	}
	d.activeKey(g)
	d.tags(a.Tags)
	if a.PreviousName != "" && d.ok("aws.previous_name") {
		switch {
		case !groupName.MatchString(a.PreviousName):
			d.problemf("aws.previous_name", "%q is not the name of a group: give the stem of the old file's name, without .toml", a.PreviousName)
		case a.PreviousName == g.Name:
			d.problemf("aws.previous_name", "is this group's own name: give its old one, or remove it")
		}
	}
	if d.given("aws.policy_file") && d.ok("aws.policy_file") {
		l.policy(d, g)
	}
}

func (d *document) required(key, what string) {
	if d.ok(key, "aws") {
		d.problemf(key, "is required: %s", what)
	}
}

func (d *document) alias(key, alias string) {
	if !d.ok(key) {
		return
	}
	switch {
	case !strings.HasPrefix(alias, "alias/"):
		d.problemf(key, `%q must begin with "alias/"`, alias)
	case strings.HasPrefix(alias, "alias/aws/"):
		d.problemf(key, `%q must not begin with "alias/aws/", which AWS keeps for its own keys: choose another name`, alias)
	case !aliasName.MatchString(alias):
		d.problemf(key, "%q may hold only letters, digits, /, _ and - after alias/", alias)
	case len(alias) > maxAlias:
		d.problemf(key, "must be at most %d characters long, not %d", maxAlias, len(alias))
	}
}

func (d *document) activeKey(g *Group) {
	const key = "aws.active_key_id"
	id := g.AWS.ActiveKeyID
	if id == "" || !d.ok(key) {
		return
	}
	if arn := keyARN.FindStringSubmatch(id); arn != nil {
		if d.ok("aws.region") && g.AWS.Region != "" && arn[1] != g.AWS.Region {
			d.problemf(key, "is a key in %s, but aws.region is %s", arn[1], g.AWS.Region)
			return
		}
		if g.Account != "" && arn[2] != g.Account {
			d.problemf(key, "is a key of account %s, but the account of [credentials.%s] is %s", arn[2], g.Credential, g.Account)
			return
		}
		id = arn[3]
	}
	if !keyID.MatchString(id) {
		d.problemf(key, "%q is neither the ID nor the ARN of a KMS key: it must look like 1234abcd-12ab-34cd-56ef-1234567890ab", g.AWS.ActiveKeyID)
	}
}

func (d *document) tags(tags map[string]string) {
	if len(tags) > maxTags {
		d.problemf("aws.tags", "has %d tags: at most %d, since KMS takes 50 and byokd adds its own", len(tags), maxTags)
	}
	for _, name := range slices.Sorted(maps.Keys(tags)) {
		key := join("aws.tags", name)
		if !d.ok(key) {
			continue
		}
		switch n := utf8.RuneCountInString(name); {
		case strings.HasPrefix(strings.ToLower(name), "aws:"):
			d.problemf(key, `must not begin with "aws:", which AWS keeps for itself: choose another name`)
		case strings.HasPrefix(name, "byokd:"):
			d.problemf(key, `must not begin with "byokd:", which byokd keeps for itself: choose another name`)
		case n < 1 || n > maxTagKey:
			d.problemf(key, "the name of a tag must have 1 to %d characters, not %d", maxTagKey, n)
		case !tagText.MatchString(name):
			d.problemf(key, "the name of a tag may hold only letters, digits, spaces and _ . : / = + - @")
		}
		if !d.ok(key) {
			continue
		}
		switch n := utf8.RuneCountInString(tags[name]); {
		case n > maxTagValue:
			d.problemf(key, "the value of a tag must have at most %d characters, not %d", maxTagValue, n)
		case !tagText.MatchString(tags[name]):
			d.problemf(key, "the value of a tag may hold only letters, digits, spaces and _ . : / = + - @")
		}
	}
}

// policy gives a group the content of the policy file that it names.
func (l *loader) policy(d *document, g *Group) {
	const key = "aws.policy_file"
	path := g.AWS.PolicyFile
	if path == "" {
		d.problemf(key, "must name a file: leave it out for a key policy that is not managed")
		return
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(filepath.Dir(g.Path), path)
		g.AWS.PolicyFile = path
	}
	p := l.policies[path]
	if p == nil {
		p = &policyFile{}
		l.policies[path] = p
	}
	l.named = path
	if !p.read {
		if l.fresh != nil && l.fresh(path) {
			l.waits = true
			return
		}
		l.readPolicy(path, p)
	}
	if p.problem != "" {
		d.problemf(key, "%s %s", path, p.problem)
		return
	}
	g.Policy = p.policy
}

// readPolicy reads and checks a policy file.
func (l *loader) readPolicy(path string, p *policyFile) {
	l.reads++
	p.read, p.policy, p.problem = true, nil, ""
	policy, err := readTrusted(path, maxPolicy, l.dirs)
	if err == nil {
		err = checkPolicy(policy)
	}
	if err != nil {
		l.noteRefused(path, err)
		p.problem = err.Error()
		return
	}
	if len(l.contents) > 2*len(l.policies) {
		clear(l.contents) // of years of changes
	}
	if same, ok := l.contents[string(policy)]; ok {
		policy = same
	}
	l.contents[string(policy)] = policy
	p.policy = policy
}

// noteRefused keeps in mind that a file was refused for its directory.
func (l *loader) noteRefused(path string, err error) {
	if _, ok := errors.AsType[directoryError](err); ok {
		l.refused[path] = true
	}
}

// checkPolicy checks what KMS demands of a key policy's text. Who is allowed
// what is KMS's to judge.
func checkPolicy(policy []byte) error {
	var object map[string]json.RawMessage
	err := json.Unmarshal(policy, &object)
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		at := newLines(policy).at(uint32(max(syntax.Offset-1, 0)))
		return fmt.Errorf("is not JSON: line %d, column %d: %w", at.line, at.column, err)
	}
	if err != nil || object == nil {
		return errors.New("is not a JSON object: a key policy begins with { and has a Statement")
	}
	// API reference, PutKeyPolicy: tab, newline, carriage return, U+0020 to U+00FF.
	for i, r := range string(policy) {
		if r != '\t' && r != '\n' && r != '\r' && (r < ' ' || r > 0xff) {
			at := newLines(policy).at(uint32(i))
			return fmt.Errorf("has the character %q in line %d, column %d: KMS takes characters up to U+00FF", r, at.line, at.column)
		}
	}
	return nil
}
