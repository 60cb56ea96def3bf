package awssim

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"strings"
	"sync"
	"time"

	"byokd/cloud/awssim/internal/keywrap"
)

// tokenLife is how long an import token and its public key are valid.
const tokenLife = 24 * time.Hour

// Pairs is a pool of RSA pairs for wrapping key material. AWS makes a pair for
// each import token; a simulator that did so would be busy with nothing else,
// so this one makes a number of each size and hands them out in turn. It is
// safe for concurrent use.
type Pairs struct {
	perSpec int
	lists   map[string]*pairList // by wrapping key spec
	byID    sync.Map             // pair.id → *pair
}

// A pairList holds the pairs of one size.
type pairList struct {
	bits int
	mu   sync.Mutex // held while a pair is made
	made []*pair
	next int
}

type pair struct {
	id      [sha256.Size]byte // SHA-256 of spki
	private *rsa.PrivateKey
	spki    []byte // the public key as SubjectPublicKeyInfo
}

// NewPairs returns a pool of perSpec pairs of each size, or one if perSpec is
// less. A pair is made when it is first needed, or by Fill.
func NewPairs(perSpec int) *Pairs {
	return &Pairs{
		perSpec: max(perSpec, 1),
		lists: map[string]*pairList{
			"RSA_2048": {bits: 2048},
			"RSA_3072": {bits: 3072},
			"RSA_4096": {bits: 4096},
		},
	}
}

// Fill makes all pairs of a size that are not made yet. The size is RSA_2048,
// RSA_3072 or RSA_4096. A pair of 4096 bits takes most of a second.
func (p *Pairs) Fill(spec string) error {
	if p.lists[spec] == nil {
		return fmt.Errorf("no wrapping key spec %q: use RSA_2048, RSA_3072 or RSA_4096", spec)
	}
	for range p.perSpec {
		if _, err := p.take(spec); err != nil {
			return err
		}
	}
	return nil
}

// take returns the next pair of a size, which must be one of the three.
func (p *Pairs) take(spec string) (*pair, error) {
	l := p.lists[spec]
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.made) < p.perSpec {
		private, err := rsa.GenerateKey(rand.Reader, l.bits)
		if err != nil {
			return nil, fmt.Errorf("make an RSA pair of %d bits: %w", l.bits, err)
		}
		made, err := newPairOf(private)
		if err != nil {
			return nil, err
		}
		l.made = append(l.made, made)
		p.byID.Store(made.id, made)
	}
	taken := l.made[l.next%len(l.made)]
	l.next++
	return taken, nil
}

// An importToken is what the opaque token of GetParametersForImport says.
type importToken struct {
	keyARN    string
	pair      *pair
	algorithm string
	expires   time.Time
}

// A token on the wire is
//
//	version (1) ‖ nonce (16) ‖ pair (32) ‖ expiry (8) ‖ length (1) ‖ algorithm ‖ key ARN ‖ HMAC-SHA-256 (32)
const (
	tokenVersion = 1
	tokenFixed   = 1 + 16 + sha256.Size + 8 + 1
)

// seal encodes a token. No two are alike.
func (s *Sim) seal(t importToken) []byte {
	b := append([]byte{tokenVersion}, randomBytes(16)...)
	b = append(b, t.pair.id[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(t.expires.UnixMilli()))
	b = append(b, byte(len(t.algorithm)))
	b = append(b, t.algorithm...)
	b = append(b, t.keyARN...)
	return append(b, s.tokenMAC(b)...)
}

// unseal decodes a token that this simulator sealed.
func (s *Sim) unseal(b []byte) (t importToken, ok bool) {
	if len(b) < tokenFixed+sha256.Size || b[0] != tokenVersion {
		return t, false
	}
	b, mac := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if !hmac.Equal(mac, s.tokenMAC(b)) {
		return t, false
	}
	b = b[1+16:]
	id := [sha256.Size]byte(b)
	known, ok := s.pairs.byID.Load(id)
	if !ok {
		return t, false
	}
	b = b[sha256.Size:]
	t.pair = known.(*pair)
	t.expires = time.UnixMilli(int64(binary.BigEndian.Uint64(b)))
	n := int(b[8])
	b = b[9:]
	t.algorithm, t.keyARN = string(b[:n]), string(b[n:])
	return t, true
}

func (s *Sim) tokenMAC(b []byte) []byte {
	mac := hmac.New(sha256.New, s.tokenKey)
	mac.Write(b)
	return mac.Sum(nil)
}

// checkWrapping refuses a wrapping algorithm that is not for material of a key
// spec. Private keys of RSA are too long for RSA-OAEP alone; RSA_AES_KEY_WRAP is
// for private keys only; and AWS gave up RSAES_PKCS1_V1_5 on 10 October 2023.
func checkWrapping(spec *keySpec, algorithm, wrappingSpec string) error {
	_, isOAEP := oaepHashes[algorithm]
	_, isKeyWrap := oaepHashes[strings.Replace(algorithm, "RSA_AES_KEY_WRAP", "RSAES_OAEP", 1)]
	good := isOAEP && spec.kind != rsaKey || isKeyWrap && !isOAEP && spec.kind.asymmetric()
	if isOAEP && spec.name == "ECC_NIST_P521" && wrappingSpec == "RSA_2048" {
		good = false // a private key on P-521 does not fit
	}
	if !good {
		return fail("UnsupportedOperationException", "Wrapping algorithm %s with %s is not valid for key material of a %s key.",
			algorithm, wrappingSpec, spec.name)
	}
	return nil
}

var oaepHashes = map[string]func() hash.Hash{
	"RSAES_OAEP_SHA_256": sha256.New,
	"RSAES_OAEP_SHA_1":   sha1.New,
}

// unwrap decrypts wrapped key material. RSA_AES_KEY_WRAP is a 256-bit AES key
// under RSA-OAEP, and then the material under that key.
func (t importToken) unwrap(wrapped []byte) ([]byte, error) {
	if h := oaepHashes[t.algorithm]; h != nil {
		return rsa.DecryptOAEP(h(), nil, t.pair.private, wrapped, nil)
	}
	h := oaepHashes[strings.Replace(t.algorithm, "RSA_AES_KEY_WRAP", "RSAES_OAEP", 1)]
	if h == nil {
		return nil, fmt.Errorf("no wrapping algorithm %q", t.algorithm)
	}
	size := t.pair.private.Size()
	if len(wrapped) <= size {
		return nil, errors.New("too short")
	}
	key, err := rsa.DecryptOAEP(h(), nil, t.pair.private, wrapped[:size], nil)
	if err != nil {
		return nil, err
	}
	if len(key) != 32 {
		return nil, fmt.Errorf("an AES key of %d bytes", len(key))
	}
	return keywrap.Unwrap(key, wrapped[size:])
}
