package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strings"

	"byokd/cloud/awssim/internal/keywrap"
	"byokd/cloud/awssim/internal/secp256k1"
)

// A material says what key material a case needs.
type material struct {
	Kind  string `json:"kind"`  // random, ec, rsa or ed25519
	Bytes int    `json:"bytes"` // of random material
	Curve string `json:"curve"`
	Bits  int    `json:"bits"`
	Hex   string `json:"hex"`
}

// A madeMaterial is material, and its public key if it has one.
type madeMaterial struct{ secret, public []byte }

// material makes the material of a name, once.
func (p *player) material(name string) (madeMaterial, error) {
	if m, ok := p.made[name]; ok {
		return m, nil
	}
	about, ok := p.materials[name]
	if !ok {
		return madeMaterial{}, errSkip{"there is no material " + name}
	}
	m, err := about.make()
	if err == nil {
		p.made[name] = m
	}
	return m, err
}

func (about material) make() (m madeMaterial, err error) {
	var private crypto.Signer
	switch {
	case about.Kind == "random":
		m.secret = make([]byte, about.Bytes)
		rand.Read(m.secret)
		return m, nil
	case about.Kind == "rsa":
		private, err = rsa.GenerateKey(rand.Reader, max(about.Bits, 2048))
	case about.Kind == "ed25519":
		_, private, err = ed25519.GenerateKey(rand.Reader)
	case about.Kind == "ec" && about.Curve == "secp256k1":
		k := secp256k1.Generate()
		if m.secret, err = k.MarshalPKCS8(); err == nil {
			m.public, err = k.MarshalPKIX()
		}
		return m, err
	case about.Kind == "ec":
		curve := map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521()}[about.Curve]
		if curve == nil {
			return m, errSkip{"there is no curve " + about.Curve}
		}
		private, err = ecdsa.GenerateKey(curve, rand.Reader)
	default:
		return m, errSkip{"material of kind " + about.Kind + " is not known"}
	}
	if err != nil {
		return m, fmt.Errorf("make a key: %w", err)
	}
	if m.secret, err = x509.MarshalPKCS8PrivateKey(private); err == nil {
		m.public, err = x509.MarshalPKIXPublicKey(private.Public())
	}
	return m, err
}

// wrap wraps material with the answer of GetParametersForImport.
func (p *player) wrap(argument any) (any, error) {
	b, err := json.Marshal(argument)
	if err != nil {
		return nil, err
	}
	var in struct{ Algorithm, Params, Material string }
	if err := json.Unmarshal(b, &in); err != nil {
		return nil, errSkip{"a $wrap that cannot be read"}
	}
	m, err := p.material(in.Material)
	if err != nil {
		return nil, err
	}
	spki, err := p.blob("$" + in.Params + ".PublicKey")
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, fmt.Errorf("the wrapping key: %w", err)
	}
	public, ok := parsed.(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("the wrapping key is a %T", parsed)
	}
	newHash := sha256.New
	if strings.HasSuffix(in.Algorithm, "SHA_1") {
		newHash = sha1.New
	}
	oaep := func(newHash func() hash.Hash, secret []byte) ([]byte, error) {
		return rsa.EncryptOAEP(newHash(), rand.Reader, public, secret, nil)
	}
	switch {
	case strings.HasPrefix(in.Algorithm, "RSAES_OAEP_"):
		return encodeBlob(oaep(newHash, m.secret))
	case strings.HasPrefix(in.Algorithm, "RSA_AES_KEY_WRAP_"):
		key := make([]byte, 32)
		rand.Read(key)
		wrappedKey, err := oaep(newHash, key)
		if err != nil {
			return nil, err
		}
		wrapped, err := keywrap.Wrap(key, m.secret)
		return base64.StdEncoding.EncodeToString(append(wrappedKey, wrapped...)), err
	case in.Algorithm == "RSAES_PKCS1_V1_5":
		return nil, errSkip{"AWS gave up RSAES_PKCS1_V1_5"}
	}
	return nil, errSkip{"wrapping algorithm " + in.Algorithm + " is not known"}
}

// arrived returns the events that arrived at an awssim.
func (t endpoint) arrived(ctx context.Context) ([]map[string]any, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimRight(t.url, "/")+"/_awssim/events", nil)
	if err != nil {
		return nil, err
	}
	response, err := t.client.Do(r)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	var shown []struct {
		Event map[string]any `json:"event"`
	}
	if err != nil || response.StatusCode != http.StatusOK || decode(bytes.TrimSpace(b), &shown) != nil {
		return nil, errSkip{"only awssim says which events arrived"}
	}
	var events []map[string]any
	for _, s := range shown {
		events = append(events, s.Event)
	}
	return events, nil
}
