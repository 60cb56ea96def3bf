package hsm

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"math/big"
	"slices"

	"github.com/miekg/pkcs11"
)

// Wrapping algorithms of KMS that it takes for AES keys. (It takes the
// RSA_AES_KEY_WRAP ones for RSA and EC keys only; AWS KMS API reference,
// GetParametersForImport.)
const (
	OAEPSHA256 = "RSAES_OAEP_SHA_256"
	OAEPSHA1   = "RSAES_OAEP_SHA_1"
)

// auto lets the self-test choose.
const auto = "auto"

// preference is the order in which algorithms are tried.
var preference = []string{OAEPSHA256, OAEPSHA1}

// An algorithm is RSAES-OAEP with one hash for the label and for MGF1, which is
// how KMS opens it, and with an empty label (RFC 8017, section 7.1).
type algorithm struct {
	hash      crypto.Hash
	mechanism func() *pkcs11.Mechanism
}

var algorithms = map[string]algorithm{
	OAEPSHA256: {crypto.SHA256, oaep(pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256)},
	OAEPSHA1:   {crypto.SHA1, oaep(pkcs11.CKM_SHA_1, pkcs11.CKG_MGF1_SHA1)},
}

func oaep(hash, mgf uint) func() *pkcs11.Mechanism {
	return func() *pkcs11.Mechanism {
		return pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_OAEP, pkcs11.NewOAEPParams(hash, mgf, pkcs11.CKZ_DATA_SPECIFIED, nil))
	}
}

// Wrap wraps the key inside the token under an RSA public key, a DER
// SubjectPublicKeyInfo with 2048, 3072 or 4096 bits and exponent 65537. The
// algorithm must be the one that [Token.Algorithm] returns. The key's bytes
// do not leave the token otherwise: there is no other way if this one fails.
func (t *Token) Wrap(ctx context.Context, ref KeyRef, algorithm string, spki []byte) ([]byte, error) {
	public, err := parseWrappingKey(spki)
	if err != nil {
		return nil, permanent("wrap key %v: %w", ref, err)
	}
	if _, ok := algorithms[algorithm]; !ok {
		return nil, permanent("wrap key %v: KMS takes no AES key wrapped with %q", ref, algorithm)
	}
	var wrapped []byte
	err = t.do(ctx, readOnly, func(s *session) error {
		proven, err := s.proven()
		if err != nil {
			return err
		}
		if algorithm != proven {
			// It has changed since the caller asked, who will ask again.
			return &fault{class: Transient, err: fmt.Errorf("%w: asked for %s, proven is %s now", ErrNoAlgorithm, algorithm, proven)}
		}
		key, err := s.find(ref)
		if err != nil {
			return err
		}
		wrapped, err = s.wrapUnder(public, algorithm, key)
		s.doubt(ref, err)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("wrap key %v: %w", ref, err)
	}
	return wrapped, nil
}

// wrapUnder wraps a key under an RSA public key, which is in the token for as
// long as the session.
func (s *session) wrapUnder(public *rsa.PublicKey, algorithm string, key pkcs11.ObjectHandle) ([]byte, error) {
	wrapping, err := s.create([]*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false),
		pkcs11.NewAttribute(pkcs11.CKA_MODULUS, public.N.Bytes()),
		pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, big.NewInt(int64(public.E)).Bytes()),
		pkcs11.NewAttribute(pkcs11.CKA_WRAP, true),
		// Nothing else: tokens refuse PRIVATE, MODULUS_BITS and TRUSTED here.
	})
	if err != nil {
		return nil, err
	}
	wrapped, err := s.wrapKey(algorithm, wrapping, key)
	if err != nil {
		return nil, err
	}
	if len(wrapped) != public.Size() {
		return nil, operator(waitConfig, "the token wrapped the key into %d bytes, where RSAES-OAEP gives %d: use another module or another token",
			len(wrapped), public.Size())
	}
	return wrapped, nil
}

// parseWrappingKey parses a SubjectPublicKeyInfo and checks that it is a key
// that KMS gives out for wrapping.
func parseWrappingKey(spki []byte) (*rsa.PublicKey, error) {
	parsed, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, fmt.Errorf("wrapping key: %w", err)
	}
	public, ok := parsed.(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("wrapping key is a %T, not an RSA key", parsed)
	}
	if public.E != 65537 {
		return nil, fmt.Errorf("wrapping key has the exponent %d, not 65537", public.E)
	}
	if bits := public.N.BitLen(); !slices.Contains([]int{2048, 3072, 4096}, bits) {
		return nil, fmt.Errorf("wrapping key has %d bits, not 2048, 3072 or 4096", bits)
	}
	return public, nil
}
