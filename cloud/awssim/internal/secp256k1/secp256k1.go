// Package secp256k1 has private and public keys on the curve of that name
// (SEC 2, section 2.4.1), which the standard library lacks: ECDSA, and the
// encodings in which KMS takes and gives keys.
//
// Its running time depends on the keys. It is for a simulator and its tests,
// never for a key that is to be kept secret.
package secp256k1

import (
	"crypto"
	"crypto/rand"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"io"
	"math/big"
)

// The curve: y² = x³ + 7 modulo p, with base point (gx, gy) of order n.
var (
	p  = number("fffffffffffffffffffffffffffffffffffffffffffffffffffffffefffffc2f")
	n  = number("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141")
	gx = number("79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798")
	gy = number("483ada7726a3c4655da4fbfc0e1108a8fd17b448a68554199c47d08ffb10d4b8")
)

const size = 32 // bytes of a coordinate

func number(hex string) *big.Int {
	i, ok := new(big.Int).SetString(hex, 16)
	if !ok {
		panic("secp256k1: bad number " + hex)
	}
	return i
}

// A PublicKey is a point of the curve, never the one at infinity.
type PublicKey struct{ x, y *big.Int }

// A PrivateKey is a private key and its public key. It is a crypto.Signer and
// safe for concurrent use.
type PrivateKey struct {
	PublicKey
	d *big.Int
}

// Generate returns a new key.
func Generate() *PrivateKey { return newKey(random()) }

// random returns a number from 1 to n-1.
func random() *big.Int {
	for {
		// Package rand's Int fails only if reading randomness does, which it
		// does not since Go 1.24.
		if d, err := rand.Int(rand.Reader, n); err == nil && d.Sign() > 0 {
			return d
		}
	}
}

func newKey(d *big.Int) *PrivateKey {
	x, y := multiply(gx, gy, d)
	return &PrivateKey{PublicKey{x, y}, d}
}

// add adds two points. A nil x is the point at infinity.
func add(x1, y1, x2, y2 *big.Int) (x, y *big.Int) {
	switch {
	case x1 == nil:
		return x2, y2
	case x2 == nil:
		return x1, y1
	}
	slope := new(big.Int)
	if x1.Cmp(x2) != 0 {
		slope.Sub(x2, x1)
		slope.ModInverse(slope.Mod(slope, p), p)
		slope.Mul(slope, new(big.Int).Sub(y2, y1))
	} else if y1.Cmp(y2) == 0 && y1.Sign() != 0 {
		slope.ModInverse(slope.Lsh(y1, 1), p)
		square := new(big.Int).Mul(x1, x1)
		slope.Mul(slope, square.Mul(square, big.NewInt(3)))
	} else {
		return nil, nil
	}
	slope.Mod(slope, p)
	x = new(big.Int).Mul(slope, slope)
	x.Sub(x, x1).Sub(x, x2).Mod(x, p)
	y = new(big.Int).Sub(x1, x)
	y.Mul(y, slope).Sub(y, y1).Mod(y, p)
	return x, y
}

func multiply(x, y, by *big.Int) (sumX, sumY *big.Int) {
	for i := by.BitLen() - 1; i >= 0; i-- {
		sumX, sumY = add(sumX, sumY, sumX, sumY)
		if by.Bit(i) == 1 {
			sumX, sumY = add(sumX, sumY, x, y)
		}
	}
	return sumX, sumY
}

// hash returns the leftmost 256 bits of a digest as a number.
func hash(digest []byte) *big.Int {
	return new(big.Int).SetBytes(digest[:min(len(digest), size)])
}

type signature struct{ R, S *big.Int }

// Public returns the public key, a *PublicKey.
func (k *PrivateKey) Public() crypto.PublicKey { return &k.PublicKey }

// Sign returns an ECDSA signature of a digest (FIPS 186-5, section 6.4) as
// ASN.1. It takes its randomness from crypto/rand; the arguments for it and
// for the hash are not looked at.
func (k *PrivateKey) Sign(_ io.Reader, digest []byte, _ crypto.SignerOpts) ([]byte, error) {
	for {
		nonce := random()
		x, _ := multiply(gx, gy, nonce)
		r := new(big.Int).Mod(x, n)
		s := new(big.Int).Mul(r, k.d)
		s.Add(s, hash(digest))
		s.Mul(s, nonce.ModInverse(nonce, n)).Mod(s, n)
		if r.Sign() != 0 && s.Sign() != 0 {
			return asn1.Marshal(signature{r, s})
		}
	}
}

// Verify reports whether sig is a signature of the digest by the key.
func (k *PublicKey) Verify(digest, sig []byte) bool {
	var v signature
	if rest, err := asn1.Unmarshal(sig, &v); err != nil || len(rest) > 0 ||
		v.R.Sign() <= 0 || v.S.Sign() <= 0 || v.R.Cmp(n) >= 0 || v.S.Cmp(n) >= 0 {
		return false
	}
	inverse := new(big.Int).ModInverse(v.S, n)
	u1 := new(big.Int).Mul(hash(digest), inverse)
	u2 := new(big.Int).Mul(v.R, inverse)
	x1, y1 := multiply(gx, gy, u1.Mod(u1, n))
	x2, y2 := multiply(k.x, k.y, u2.Mod(u2, n))
	x, _ := add(x1, y1, x2, y2)
	return x != nil && new(big.Int).Mod(x, n).Cmp(v.R) == 0
}

// Equal reports whether the keys are the same.
func (k *PublicKey) Equal(other *PublicKey) bool {
	return k.x.Cmp(other.x) == 0 && k.y.Cmp(other.y) == 0
}

var (
	oidECPublicKey = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1} // RFC 5480
	oidCurve       = asn1.ObjectIdentifier{1, 3, 132, 0, 10}       // SEC 2
)

// privateKeyInfo is PKCS #8 (RFC 5208).
type privateKeyInfo struct {
	Version    int
	Algorithm  pkix.AlgorithmIdentifier
	PrivateKey []byte
	Attributes asn1.RawValue `asn1:"optional,tag:0"`
}

// ecPrivateKey is of RFC 5915.
type ecPrivateKey struct {
	Version    int
	PrivateKey []byte
	Curve      asn1.ObjectIdentifier `asn1:"optional,explicit,tag:0"`
	PublicKey  asn1.BitString        `asn1:"optional,explicit,tag:1"`
}

type publicKeyInfo struct {
	Algorithm pkix.AlgorithmIdentifier
	PublicKey asn1.BitString
}

func algorithm() (pkix.AlgorithmIdentifier, error) {
	curve, err := asn1.Marshal(oidCurve)
	return pkix.AlgorithmIdentifier{Algorithm: oidECPublicKey, Parameters: asn1.RawValue{FullBytes: curve}}, err
}

func isCurve(a pkix.AlgorithmIdentifier) bool {
	var curve asn1.ObjectIdentifier
	rest, err := asn1.Unmarshal(a.Parameters.FullBytes, &curve)
	return a.Algorithm.Equal(oidECPublicKey) && err == nil && len(rest) == 0 && curve.Equal(oidCurve)
}

// point returns the uncompressed form of the point (SEC 1, section 2.3.3).
func (k *PublicKey) point() []byte {
	b := make([]byte, 1+2*size)
	b[0] = 4
	k.x.FillBytes(b[1 : 1+size])
	k.y.FillBytes(b[1+size:])
	return b
}

// MarshalPKIX returns the public key as SubjectPublicKeyInfo.
func (k *PublicKey) MarshalPKIX() ([]byte, error) {
	a, err := algorithm()
	if err != nil {
		return nil, err
	}
	point := k.point()
	return asn1.Marshal(publicKeyInfo{a, asn1.BitString{Bytes: point, BitLength: 8 * len(point)}})
}

// MarshalPKCS8 returns the private key as PKCS #8.
func (k *PrivateKey) MarshalPKCS8() ([]byte, error) {
	a, err := algorithm()
	if err != nil {
		return nil, err
	}
	point := k.point()
	inner, err := asn1.Marshal(ecPrivateKey{
		Version: 1, PrivateKey: k.d.FillBytes(make([]byte, size)), PublicKey: asn1.BitString{Bytes: point, BitLength: 8 * len(point)},
	})
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(privateKeyInfo{Algorithm: a, PrivateKey: inner})
}

// ParsePKCS8 reads a private key from PKCS #8. A public key in it must be that
// of the private key.
func ParsePKCS8(der []byte) (*PrivateKey, error) {
	var info privateKeyInfo
	if rest, err := asn1.Unmarshal(der, &info); err != nil || len(rest) > 0 || !isCurve(info.Algorithm) {
		return nil, errors.New("not PKCS #8 of a secp256k1 key")
	}
	var inner ecPrivateKey
	if rest, err := asn1.Unmarshal(info.PrivateKey, &inner); err != nil || len(rest) > 0 || inner.Version != 1 {
		return nil, errors.New("not an EC private key")
	}
	d := new(big.Int).SetBytes(inner.PrivateKey)
	if d.Sign() == 0 || d.Cmp(n) >= 0 {
		return nil, errors.New("the private key is out of range")
	}
	k := newKey(d)
	if given := inner.PublicKey.Bytes; len(given) > 0 && string(given) != string(k.point()) {
		return nil, errors.New("the public key is not that of the private key")
	}
	return k, nil
}

// ParsePKIX reads a public key from SubjectPublicKeyInfo, with the point in its
// uncompressed form.
func ParsePKIX(der []byte) (*PublicKey, error) {
	var info publicKeyInfo
	if rest, err := asn1.Unmarshal(der, &info); err != nil || len(rest) > 0 || !isCurve(info.Algorithm) {
		return nil, errors.New("not the SubjectPublicKeyInfo of a secp256k1 key")
	}
	point := info.PublicKey.Bytes
	if len(point) != 1+2*size || point[0] != 4 {
		return nil, errors.New("not an uncompressed point")
	}
	k := &PublicKey{new(big.Int).SetBytes(point[1 : 1+size]), new(big.Int).SetBytes(point[1+size:])}
	right := new(big.Int).Exp(k.x, big.NewInt(3), p)
	right.Add(right, big.NewInt(7)).Mod(right, p)
	if k.x.Cmp(p) >= 0 || k.y.Cmp(p) >= 0 || new(big.Int).Exp(k.y, big.NewInt(2), p).Cmp(right) != 0 {
		return nil, errors.New("the point is not on the curve")
	}
	return k, nil
}
