package awssim

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// stateVersion is that of the form in which state is written.
const stateVersion = 1

// Open returns a simulator that keeps its state in a file. It goes on with what
// the file holds, if there is one, and writes the file anew, atomically, before
// it answers a request that has changed something. Credentials, roles and IAM
// policies are not state, and neither are buckets of quotas and reads that lag.
//
// The file holds key material and private keys in the clear. Cryptographic
// operations do not count as changes, so that GetKeyLastUsage may forget some.
func Open(o Options, file string) (*Sim, error) {
	s := New(o)
	s.stateFile = file
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return s, s.save()
	}
	if err != nil {
		return nil, fmt.Errorf("read the simulator's state: %w", err)
	}
	if err := s.restore(b); err != nil {
		return nil, fmt.Errorf("read the simulator's state: %s: %w", file, err)
	}
	return s, nil
}

// save writes the state to its file, if it has one.
func (s *Sim) save() error {
	if s.stateFile == "" {
		return nil
	}
	s.saving.Lock() // so that the last to be written is the newest
	defer s.saving.Unlock()
	s.mu.Lock()
	b, err := json.Marshal(s.state())
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("write the simulator's state: %w", err)
	}
	if err := writeAtomically(s.stateFile, append(b, '\n')); err != nil {
		return fmt.Errorf("write the simulator's state: %w", err)
	}
	return nil
}

// saveOrLog writes the state after a change that no request has made.
func (s *Sim) saveOrLog() {
	if err := s.save(); err != nil {
		s.options.Log.Error("the state could not be saved", "error", err)
	}
}

func writeAtomically(name string, b []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

// changes reports whether an operation changes what is saved. For
// GetParametersForImport that is the pair, which may be new.
func changes(operation string) bool {
	if cryptographic[operation] {
		return false
	}
	for _, prefix := range []string{"Get", "List", "Describe", "Test"} {
		if strings.HasPrefix(operation, prefix) {
			return operation == "GetParametersForImport"
		}
	}
	return true
}

// The types below are the state as it is written.

type savedState struct {
	Version  int
	Offset   time.Duration
	TokenKey []byte
	Pairs    map[string][][]byte // PKCS #8 by wrapping key spec
	Sessions []savedSession
	Places   []savedPlace
	Events   []Event
	Deleted  []string // principals, by ARN

	Deliveries []savedDelivery
}

type savedDelivery struct {
	Delivery
	Of Event
}

type savedSession struct {
	AccessKey, Account, ARN, UserID, Role, Secret, Token string
	Expires                                              time.Time
}

type savedPlace struct {
	Account, Region string
	Keys            []savedKey
	Aliases         map[string]savedAlias
	Buses           []savedBus
}

type savedAlias struct {
	Target           string
	Created, Updated time.Time
}

type savedBus struct {
	Name, Description string
	Created           time.Time
	Rules             []savedRule
}

type savedRule struct {
	Name, ARN, Description, Pattern, Role string
	Disabled                              bool
	Created                               time.Time
	Targets                               []*target
	Matched                               int
}

type savedKey struct {
	ID, Spec, Usage, Origin, Description, Policy string
	MultiRegion                                  bool
	Primary                                      string
	Created                                      time.Time
	Disabled, Waiting, EverTagged                bool
	Deletion, Started, Ends, Due                 time.Time
	Window, Rotations, Period                    int
	Tags                                         map[string]string
	Materials                                    []savedMaterial
	Pending                                      *savedMaterial
	Spent                                        map[string]time.Time // by import token, in base64
	Grants                                       []savedGrant
	LastUse                                      *savedUse
}

type savedUse struct {
	Operation, RequestID, EventID string
	At                            time.Time
}

type savedMaterial struct {
	ID, Description    string
	Bytes              []byte
	Expires, Automatic bool
	ValidTo, Rotated   time.Time
}

type savedGrant struct {
	ID, Name, Grantee, Retiring string
	Operations                  []string
	Constraints                 *grantConstraints
	Created                     time.Time
}

// state returns what is to be written.
func (s *Sim) state() savedState {
	st := savedState{Version: stateVersion, Offset: s.offset, TokenKey: s.tokenKey, Pairs: s.pairs.save(), Events: s.events}
	for id, each := range s.sessions {
		st.Sessions = append(st.Sessions, savedSession{
			AccessKey: id, Account: each.account, ARN: each.arn, UserID: each.userID, Role: each.role,
			Secret: each.secret, Token: each.token, Expires: each.expires,
		})
	}
	for _, d := range s.deliveries {
		st.Deliveries = append(st.Deliveries, savedDelivery{d, d.Event})
	}
	st.Deleted = slices.Sorted(maps.Keys(s.deleted))
	for p, r := range s.realms {
		sp := savedPlace{Account: p.account, Region: p.region, Aliases: make(map[string]savedAlias)}
		for _, k := range r.keys {
			sp.Keys = append(sp.Keys, k.save())
		}
		for name, a := range r.aliases {
			sp.Aliases[name] = savedAlias{a.target, a.created, a.updated}
		}
		for _, b := range r.buses {
			sb := savedBus{Name: b.name, Description: b.description, Created: b.created}
			for _, each := range b.rules {
				sr := savedRule{
					Name: each.name, ARN: each.arn, Description: each.description, Pattern: each.document, Role: each.role,
					Disabled: each.disabled, Created: each.created, Matched: each.matched,
				}
				for _, t := range each.targets {
					sr.Targets = append(sr.Targets, t)
				}
				sb.Rules = append(sb.Rules, sr)
			}
			sp.Buses = append(sp.Buses, sb)
		}
		st.Places = append(st.Places, sp)
	}
	return st
}

func (k *key) save() savedKey {
	sk := savedKey{
		ID: k.id, Spec: k.spec.name, Usage: k.usage, Origin: k.origin, Description: k.description, Policy: k.policy,
		MultiRegion: k.multiRegion, Primary: k.primary, Created: k.created, Disabled: k.disabled, Waiting: k.waiting,
		EverTagged: k.everTagged, Deletion: k.deletion, Started: k.started, Ends: k.ends, Due: k.due, Window: k.window,
		Rotations: k.rotations, Period: k.period, Tags: k.tags, Spent: make(map[string]time.Time),
	}
	for _, m := range k.allMaterials() {
		sm := savedMaterial{m.id, m.description, m.bytes, m.expires, m.automatic, m.validTo, m.rotated}
		if m == k.pending {
			sk.Pending = &sm
		} else {
			sk.Materials = append(sk.Materials, sm)
		}
	}
	if u := k.lastUse; u != nil {
		sk.LastUse = &savedUse{u.operation, u.requestID, u.eventID, u.at}
	}
	for token, expires := range k.spent {
		sk.Spent[base64.StdEncoding.EncodeToString([]byte(token))] = expires
	}
	for _, g := range k.grants {
		sk.Grants = append(sk.Grants, savedGrant{g.id, g.name, g.grantee, g.retiring, g.operations, g.constraints, g.created})
	}
	return sk
}

// restore takes up a state that was written. The simulator must be new.
func (s *Sim) restore(b []byte) error {
	var st savedState
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&st); err != nil {
		return err
	}
	if st.Version != stateVersion {
		return fmt.Errorf("it is of version %d, this simulator reads version %d", st.Version, stateVersion)
	}
	if len(st.TokenKey) == 0 {
		return errors.New("it has no token key")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.offset, s.tokenKey, s.events = st.Offset, st.TokenKey, st.Events
	for _, d := range st.Deliveries {
		d.Event = d.Of
		s.deliveries = append(s.deliveries, d.Delivery)
	}
	for _, arn := range st.Deleted {
		s.delete(arn)
	}
	if err := s.pairs.restore(st.Pairs); err != nil {
		return err
	}
	for _, each := range st.Sessions {
		s.sessions[each.AccessKey] = &session{
			identity: identity{account: each.Account, arn: each.ARN, userID: each.UserID, role: each.Role},
			secret:   each.Secret, token: each.Token, expires: each.Expires,
		}
	}
	now := s.now()
	for _, sp := range st.Places {
		r := s.realm(place{sp.Account, sp.Region}, now)
		for _, sk := range sp.Keys {
			k, err := sk.restore(r.place)
			if err != nil {
				return fmt.Errorf("key %s: %w", sk.ID, err)
			}
			r.keys[k.id] = k
		}
		for name, a := range sp.Aliases {
			r.aliases[name] = &alias{target: a.Target, created: a.Created, updated: a.Updated}
		}
		for _, sb := range sp.Buses {
			b := newBus(sb.Name, sb.Description, sb.Created)
			for _, sr := range sb.Rules {
				p, err := parsePattern(sr.Pattern)
				if err != nil {
					return fmt.Errorf("rule %s: %w", sr.Name, err)
				}
				b.rules[sr.Name] = &rule{
					name: sr.Name, bus: sb.Name, arn: sr.ARN, description: sr.Description, document: sr.Pattern, pattern: p,
					disabled: sr.Disabled, role: sr.Role, created: sr.Created, targets: make(map[string]*target), matched: sr.Matched,
				}
				for _, t := range sr.Targets {
					b.rules[sr.Name].targets[*t.Id] = t
				}
			}
			r.buses[b.name] = b
		}
	}
	// What was due meanwhile happens when somebody next asks, and not before all
	// Regions are there: related keys act together.
	for _, r := range s.realms {
		r.next = now
	}
	return nil
}

func (sk savedKey) restore(p place) (*key, error) {
	spec := keySpecs[sk.Spec]
	if spec == nil || spec.usages[sk.Usage] == nil {
		return nil, fmt.Errorf("no key of spec %s and usage %s", sk.Spec, sk.Usage)
	}
	if err := decodeStrictly([]byte(sk.Policy), new(policy)); err != nil {
		return nil, fmt.Errorf("the policy of key %s: %w", sk.ID, err)
	}
	k := &key{
		id: sk.ID, arn: p.arn("kms", "key/"+sk.ID), account: p.account, region: p.region, spec: spec, usage: sk.Usage,
		origin: sk.Origin, description: sk.Description, policy: sk.Policy, multiRegion: sk.MultiRegion, primary: sk.Primary,
		created: sk.Created, disabled: sk.Disabled, waiting: sk.Waiting, everTagged: sk.EverTagged, deletion: sk.Deletion,
		started: sk.Started, ends: sk.Ends, due: sk.Due, window: sk.Window, rotations: sk.Rotations, period: sk.Period,
		tags: sk.Tags, spent: make(map[string]time.Time), grants: make(map[string]*grant),
	}
	if k.tags == nil {
		k.tags = make(map[string]string)
	}
	for _, sm := range sk.Materials {
		m, err := sm.restore(spec)
		if err != nil {
			return nil, err
		}
		k.materials = append(k.materials, m)
	}
	if sk.Pending != nil {
		m, err := sk.Pending.restore(spec)
		if err != nil {
			return nil, err
		}
		k.pending = m
	}
	if u := sk.LastUse; u != nil {
		k.lastUse = &keyUse{operation: u.Operation, requestID: u.RequestID, eventID: u.EventID, at: u.At}
	}
	for token, expires := range sk.Spent {
		b, err := base64.StdEncoding.DecodeString(token)
		if err != nil {
			return nil, fmt.Errorf("an import token: %w", err)
		}
		k.spent[string(b)] = expires
	}
	for _, g := range sk.Grants {
		k.grants[g.ID] = &grant{
			id: g.ID, name: g.Name, grantee: g.Grantee, retiring: g.Retiring, operations: g.Operations, constraints: g.Constraints, created: g.Created,
		}
	}
	return k, nil
}

func (sm savedMaterial) restore(spec *keySpec) (*material, error) {
	m := &material{
		id: sm.ID, description: sm.Description, bytes: sm.Bytes, expires: sm.Expires, validTo: sm.ValidTo, rotated: sm.Rotated, automatic: sm.Automatic,
	}
	if len(m.bytes) == 0 {
		m.bytes = nil
	} else if spec.kind.asymmetric() {
		var err error
		if m.private, m.bytes, err = parsePrivate(spec.name, m.bytes); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// save returns the pairs that were made.
func (p *Pairs) save() map[string][][]byte {
	saved := make(map[string][][]byte)
	for spec, l := range p.lists {
		l.mu.Lock()
		for _, each := range l.made {
			saved[spec] = append(saved[spec], x509.MarshalPKCS1PrivateKey(each.private))
		}
		l.mu.Unlock()
	}
	return saved
}

// restore adds pairs that were saved.
func (p *Pairs) restore(saved map[string][][]byte) error {
	for spec, all := range saved {
		l := p.lists[spec]
		if l == nil {
			return fmt.Errorf("there is no wrapping key spec %q", spec)
		}
		for _, der := range all {
			private, err := x509.ParsePKCS1PrivateKey(der)
			if err != nil {
				return fmt.Errorf("a wrapping pair: %w", err)
			}
			made, err := newPairOf(private)
			if err != nil {
				return err
			}
			if _, known := p.byID.LoadOrStore(made.id, made); !known {
				l.mu.Lock()
				l.made = append(l.made, made)
				l.mu.Unlock()
			}
		}
	}
	return nil
}

func newPairOf(private *rsa.PrivateKey) (*pair, error) {
	spki, err := x509.MarshalPKIXPublicKey(&private.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("encode an RSA public key: %w", err)
	}
	return &pair{id: sha256.Sum256(spki), private: private, spki: spki}, nil
}
