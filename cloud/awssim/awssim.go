// Package awssim simulates AWS KMS, EventBridge, STS, the Resource Groups Tagging
// API and Service Quotas' request quotas of KMS as one http.Handler, for tests and
// for trying byokd without an AWS account.
//
// It speaks the real wire protocols with real cryptography: imported key
// material is unwrapped with RSA-OAEP, Encrypt and Decrypt are AES-256-GCM
// under the imported bytes. It holds any number of accounts and Regions; a
// request's account is that of its access key, its Region and service are
// those of its Signature Version 4 credential scope.
//
// Everything is kept in memory, or in a file: see [Open]. The simulator gives no protection: it shows
// what it holds to whoever reaches it, so it belongs on loopback.
package awssim

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// DefaultAccount is the account of every access key when [Options.Credentials]
// is empty. It is one of the account numbers that AWS's documentation uses in
// examples.
const DefaultAccount = "111122223333"

// Options configure a [Sim]. The zero value is a simulator that accepts every
// access key.
type Options struct {
	// Now tells the time; nil means time.Now. [Sim.Advance] adds to it.
	Now func() time.Time

	// Pairs holds the RSA pairs that wrap key material. Simulators in one
	// process may share it, because making a pair of 4096 bits takes most of a
	// second. Nil means a pool of its own with one pair of each size.
	Pairs *Pairs

	// Credentials are the access keys that the simulator knows. If there are
	// none, every access key is accepted as [DefaultAccount]'s and signatures
	// are not verified, except those of sessions that AssumeRole gave out.
	Credentials []Credential

	// Roles are the roles that AssumeRole knows. If there are none, any role
	// can be assumed.
	Roles []Role

	// Regions are the Regions whose endpoint the simulator is: a request that is
	// signed for another one is refused. If there are none, it is that of all.
	// By a name such as kms.eu-central-1.localhost it is always that of one.
	Regions []string

	// IAM subjects every principal to IAM and to key policies: one without a
	// Policy can do only what a key policy or a grant lets it do, and principals
	// in key policies must be known. Without IAM, only those that have a Policy
	// are judged, and the others may do everything.
	IAM bool

	// Before is called before a request has had any effect, After when it has
	// had its effect and before it is answered. A fault that they return takes
	// the place of what would follow. Both are called without locks held, from
	// many goroutines at once, and may block.
	Before, After func(Request) *Fault

	// Quotas limits requests per second; nil: no limit.
	Quotas *Quotas

	// Consistency makes reads lag behind writes; the zero value: they do not.
	Consistency Consistency

	// Latency is how long each request waits, in real time, before it has had
	// any effect.
	Latency time.Duration

	// KMSEvents puts KMS's own events on the default bus: of rotations,
	// expired key material and deleted keys.
	KMSEvents bool

	// RotationTime is how long RotateKeyOnDemand takes, by the simulator's
	// clock. Zero: the rotation is over when the answer comes.
	RotationTime time.Duration

	// UsageTrackedFrom is when GetKeyLastUsage begins to track: of an older key
	// it does not know the whole life. The zero value: before the first key.
	UsageTrackedFrom time.Time

	// Log gets a record per request; nil means none.
	Log *slog.Logger
}

// A Credential is a long-term access key and whose it is.
type Credential struct {
	AccessKeyID     string `json:"access_key_id"`
	SecretAccessKey string `json:"secret_access_key"`
	Account         string `json:"account"`       // 12 digits
	ARN             string `json:"arn,omitempty"` // the principal; empty: user/awssim of the account

	// Policy is the IAM policy document that says what the principal may do,
	// null for none. See [Options.IAM].
	Policy json.RawMessage `json:"policy,omitempty"`
}

// A Role can be assumed.
type Role struct {
	ARN        string `json:"arn"`
	ExternalID string `json:"external_id,omitempty"` // if set, AssumeRole must name it

	// Policy is the IAM policy document of the role's sessions, as in
	// [Credential].
	Policy json.RawMessage `json:"policy,omitempty"`
}

// A Sim is the simulator. It is an http.Handler and safe for concurrent use.
type Sim struct {
	options     Options
	pairs       *Pairs
	credentials map[string]Credential
	roles       map[string]Role
	tokenKey    []byte // authenticates import tokens

	mu       sync.Mutex
	offset   time.Duration
	realms   map[place]*realm
	sessions map[string]*session // by access key ID
	policies map[string]*policy  // of principals, by ARN
	deleted  map[string]bool     // principals that are gone, by ARN
	buckets  map[bucketName]*bucket
	events   []Event
	log      requestLog

	deliveries []Delivery

	stateFile string     // empty: none
	saving    sync.Mutex // held while the file is written, before mu
}

// A place is one account in one Region.
type place struct{ account, region string }

// A realm is what one account has in one Region.
type realm struct {
	place
	keys    map[string]*key
	aliases map[string]*alias
	buses   map[string]*bus

	pastAliases map[string][]past[*alias] // by name

	next time.Time // nothing expires or is destroyed before; zero: nothing ever
}

// New returns a simulator. It panics if an IAM policy among the options is
// malformed: see [CheckPolicy].
func New(o Options) *Sim {
	s := &Sim{
		options:     o,
		pairs:       o.Pairs,
		credentials: make(map[string]Credential),
		roles:       make(map[string]Role),
		tokenKey:    randomBytes(32),
		realms:      make(map[place]*realm),
		sessions:    make(map[string]*session),
		policies:    make(map[string]*policy),
		deleted:     make(map[string]bool),
		buckets:     make(map[bucketName]*bucket),
	}
	if s.options.Now == nil {
		s.options.Now = time.Now
	}
	if s.pairs == nil {
		s.pairs = NewPairs(1)
	}
	if s.options.Log == nil {
		s.options.Log = slog.New(slog.DiscardHandler)
	}
	for _, c := range o.Credentials {
		if c.ARN == "" {
			c.ARN = "arn:aws:iam::" + c.Account + ":user/awssim"
		}
		s.credentials[c.AccessKeyID] = c
		s.mustSetPolicy(c.ARN, c.Policy)
	}
	for _, r := range o.Roles {
		s.roles[r.ARN] = r
		s.mustSetPolicy(r.ARN, r.Policy)
	}
	return s
}

// Now returns the simulator's time: that of [Options.Now] plus what
// [Sim.Advance] added. Expiry, deletion and import tokens follow it, and so
// does the Date of every answer.
func (s *Sim) Now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now()
}

func (s *Sim) now() time.Time { return s.options.Now().Add(s.offset) }

// Advance moves the simulator's clock forward. It panics if d is negative.
func (s *Sim) Advance(d time.Duration) {
	if d < 0 {
		panic("awssim: the clock does not go back")
	}
	s.mu.Lock()
	s.offset += d
	s.mu.Unlock()
	s.saveOrLog()
}

// realm returns what the account has in the Region, with all that has expired
// by now gone.
func (s *Sim) realm(p place, now time.Time) *realm {
	r := s.realms[p]
	if r == nil {
		r = &realm{
			place:   p,
			keys:    make(map[string]*key),
			aliases: make(map[string]*alias),

			pastAliases: make(map[string][]past[*alias]),

			buses: map[string]*bus{"default": newBus("default", "", now)},
		}
		s.realms[p] = r
	}
	s.settle(now)
	return r
}

// settle lets happen what was due by now: key material expires, rotations
// come to an end, keys whose waiting period is over are destroyed together with
// their aliases.
func (s *Sim) settle(now time.Time) {
	for _, r := range s.realms {
		if r.next.IsZero() || now.Before(r.next) {
			continue
		}
		r.next = time.Time{}
		for _, k := range r.keys {
			s.settleKey(r, k, now)
		}
	}
}

func (s *Sim) settleKey(r *realm, k *key, now time.Time) {
	if !k.deletion.IsZero() && !now.Before(k.deletion) {
		s.destroy(r, k)
		return
	}
	r.wake(k.deletion)
	s.settleRotation(r, k, now)
	for _, m := range k.allMaterials() {
		if m.bytes == nil || !m.expires {
			continue
		}
		if now.Before(m.validTo) {
			r.wake(m.validTo)
		} else {
			s.emit(k, now, "KMS Imported Key Material Expiration", fields{"key-id": k.id, "key-material-id": m.id})
			s.drop(k, m)
		}
	}
}

// destroy ends a key. The primary of a multi-Region key that was waiting for
// its last replica to go begins its own waiting period.
func (s *Sim) destroy(r *realm, k *key) {
	s.emit(k, k.deletion, "KMS CMK Deletion", fields{"key-id": k.id})
	delete(r.keys, k.id)
	for name, a := range r.aliases {
		if a.target == k.id {
			delete(r.aliases, name)
		}
	}
	for _, other := range s.related(k) {
		if other.waiting && len(s.related(other)) == 1 {
			other.waiting = false
			other.deletion = k.deletion.AddDate(0, 0, other.window)
			s.realms[place{other.account, other.region}].wake(other.deletion)
		}
	}
}

// wake makes settle look again at t; the zero time is no time.
func (r *realm) wake(t time.Time) {
	if !t.IsZero() && (r.next.IsZero() || t.Before(r.next)) {
		r.next = t
	}
}

// arn returns the ARN of a resource of a service in the realm.
func (p place) arn(service, resource string) string {
	return "arn:" + partition(p.region) + ":" + service + ":" + p.region + ":" + p.account + ":" + resource
}

// partition returns the partition of a Region, by the prefixes that AWS's
// endpoint rules use.
func partition(region string) string {
	for prefix, partition := range map[string]string{
		"cn-":      "aws-cn",
		"us-gov-":  "aws-us-gov",
		"eusc-":    "aws-eusc",
		"us-iso-":  "aws-iso",
		"us-isob-": "aws-iso-b",
		"eu-isoe-": "aws-iso-e",
		"us-isof-": "aws-iso-f",
		"eu-isof-": "aws-iso-f",
	} {
		if strings.HasPrefix(region, prefix) {
			return partition
		}
	}
	return "aws"
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// newUUID returns a random UUID (version 4, RFC 9562).
func newUUID() string {
	b := randomBytes(16)
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// readAll reads at most limit bytes and reports whether there were more.
func readAll(r io.Reader, limit int64) (b []byte, more bool, err error) {
	b, err = io.ReadAll(io.LimitReader(r, limit+1))
	if int64(len(b)) > limit {
		return nil, true, err
	}
	return b, false, err
}
