package awssim

import (
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"time"
)

// Expiration models.
const (
	expires       = "KEY_MATERIAL_EXPIRES"
	doesNotExpire = "KEY_MATERIAL_DOES_NOT_EXPIRE"
)

// Import types.
const (
	newMaterial      = "NEW_KEY_MATERIAL"
	existingMaterial = "EXISTING_KEY_MATERIAL"
)

const (
	// maxValidity is how far ahead ValidTo may lie.
	maxValidity = 365 * 24 * time.Hour

	// maxRotations is how many on-demand rotations a key can have.
	maxRotations = 25
)

// A material is what a key encrypts with, or once did.
type material struct {
	id          string // 64 hex digits
	description string
	bytes       []byte        // a secret, or a private key as PKCS #8; nil: deleted or expired
	private     crypto.Signer // the private key of an asymmetric key
	expires     bool
	validTo     time.Time
	rotated     time.Time // when it became current; zero for the first and the pending one
	automatic   bool      // it became current by automatic rotation
}

// materialID returns the ID of material in a key. As with AWS it is a function
// of the two, and related multi-Region keys have it in common; AWS's function
// is not published.
func materialID(k *key, b []byte) string {
	h := sha256.New()
	h.Write([]byte(k.account + ":" + k.id + ":"))
	h.Write(b)
	return hex.EncodeToString(h.Sum(nil))
}

// add makes b the key's current material.
func (k *key) add(b []byte) *material {
	m := &material{id: materialID(k, b), bytes: b}
	k.materials = append(k.materials, m)
	return m
}

// drop deletes a material's bytes. A pending material goes altogether, unless
// it is that of a multi-Region replica, whose primary key decides.
func (s *Sim) drop(k *key, m *material) {
	if m == k.pending && !k.isReplica() {
		k.pending, k.started, k.ends = nil, time.Time{}, time.Time{}
		for _, replica := range s.related(k) {
			replica.pending = nil
		}
		return
	}
	m.bytes, m.private, m.expires, m.validTo = nil, nil, false, time.Time{}
}

// material returns the key's material with an ID, nil if it has none.
func (k *key) material(id string) *material {
	for _, m := range k.allMaterials() {
		if m.id == id {
			return m
		}
	}
	return nil
}

type getParametersForImportInput struct {
	KeyId             *string `required:"" len:"1,2048"`
	WrappingAlgorithm *string `required:"" enum:"RSAES_PKCS1_V1_5 RSAES_OAEP_SHA_1 RSAES_OAEP_SHA_256 RSA_AES_KEY_WRAP_SHA_1 RSA_AES_KEY_WRAP_SHA_256 SM2PKE"`
	WrappingKeySpec   *string `required:"" enum:"RSA_2048 RSA_3072 RSA_4096 SM2"`

	pair *pair
}

// prepare takes a pair, which may have to be made.
func (in *getParametersForImportInput) prepare(s *Sim) (err error) {
	if *in.WrappingKeySpec == "SM2" {
		return fail("UnsupportedOperationException", "Wrapping key spec SM2 is supported in China Regions only.")
	}
	in.pair, err = s.pairs.take(*in.WrappingKeySpec)
	return err
}

func (c *call) getParametersForImport(in *getParametersForImportInput) (any, error) {
	k, err := c.key(*in.KeyId)
	if err != nil {
		return nil, err
	}
	if err := k.requireOrigin(originExternal); err != nil {
		return nil, err
	}
	if err := k.require(unlessDeleting); err != nil {
		return nil, err
	}
	if err := checkWrapping(k.spec, *in.WrappingAlgorithm, *in.WrappingKeySpec); err != nil {
		return nil, err
	}
	t := importToken{keyARN: k.arn, pair: in.pair, algorithm: *in.WrappingAlgorithm, expires: c.now.Add(tokenLife)}
	return fields{
		"KeyId": k.arn, "ImportToken": c.sim.seal(t), "PublicKey": in.pair.spki, "ParametersValidTo": timestamp{t.expires},
	}, nil
}

type importKeyMaterialInput struct {
	KeyId                  *string    `required:"" len:"1,2048"`
	ImportToken            []byte     `required:"" len:"1,6144"`
	EncryptedKeyMaterial   []byte     `required:"" len:"1,6144"`
	ValidTo                *timestamp ``
	ExpirationModel        *string    `enum:"KEY_MATERIAL_EXPIRES KEY_MATERIAL_DOES_NOT_EXPIRE"`
	ImportType             *string    `enum:"NEW_KEY_MATERIAL EXISTING_KEY_MATERIAL"`
	KeyMaterialDescription *string    `len:"0,256" pattern:"^[a-zA-Z0-9:/_\\s.-]+$"`
	KeyMaterialId          *string    `len:"64,64" pattern:"^[a-f0-9]+$"`

	token     importToken
	tokenOK   bool
	bytes     []byte
	unwrapErr error
}

// prepare unwraps the material. What is wrong with it is reported in its turn.
func (in *importKeyMaterialInput) prepare(s *Sim) error {
	if in.token, in.tokenOK = s.unseal(in.ImportToken); in.tokenOK {
		in.bytes, in.unwrapErr = in.token.unwrap(in.EncryptedKeyMaterial)
	}
	return nil
}

func (c *call) importKeyMaterial(in *importKeyMaterialInput) (any, error) {
	doesExpire := in.ExpirationModel == nil || *in.ExpirationModel == expires
	switch {
	case doesExpire && in.ValidTo == nil:
		return nil, fail("ValidationException", "A validTo date must be set if the ExpirationModel is KEY_MATERIAL_EXPIRES")
	case !doesExpire && in.ValidTo != nil:
		return nil, fail("ValidationException", "A validTo date must not be set if the ExpirationModel is KEY_MATERIAL_DOES_NOT_EXPIRE")
	case doesExpire && !in.ValidTo.After(c.now):
		return nil, fail("ValidationException", "The validTo date must be in the future")
	case doesExpire && in.ValidTo.Sub(c.now) > maxValidity:
		return nil, fail("ValidationException", "The validTo date must not be more than 365 days in the future")
	}
	k, err := c.key(*in.KeyId)
	if err != nil {
		return nil, err
	}
	if err := k.requireOrigin(originExternal); err != nil {
		return nil, err
	}
	if err := k.require(unlessDeleting); err != nil {
		return nil, err
	}
	if k.spec.kind != symmetricKey && (in.ImportType != nil || in.KeyMaterialId != nil || in.KeyMaterialDescription != nil) {
		return nil, fail("ValidationException", "ImportType, KeyMaterialId and KeyMaterialDescription are for symmetric encryption keys only")
	}
	if k.isReplica() && in.KeyMaterialDescription != nil {
		return nil, fail("ValidationException", "KeyMaterialDescription is set on the primary key only, which %s is not", k.arn)
	}
	if deref(in.ImportType) == newMaterial && in.KeyMaterialId != nil {
		return nil, fail("ValidationException", "KeyMaterialId must not be set if the ImportType is NEW_KEY_MATERIAL")
	}
	switch {
	case !in.tokenOK || in.token.keyARN != k.arn:
		return nil, fail("InvalidImportTokenException", "")
	case !c.now.Before(in.token.expires):
		return nil, fail("ExpiredImportTokenException", "")
	case in.unwrapErr != nil:
		return nil, fail("InvalidCiphertextException", "")
	}
	private, err := in.readMaterial(k.spec)
	if err != nil {
		return nil, err
	}
	m, err := c.destination(k, in)
	if err != nil {
		return nil, err
	}
	if err := k.spend(in, c.now); err != nil {
		return nil, err
	}
	wasComplete := k.complete()
	if k.material(m.id) == nil {
		first := len(k.materials) == 0
		k.associate(m, first)
		for _, other := range c.sim.related(k) {
			if other != k {
				other.associate(&material{id: m.id}, first)
			}
		}
	}
	m.bytes, m.private, m.expires, m.validTo = in.bytes, private, doesExpire, time.Time{}
	if doesExpire {
		m.validTo = in.ValidTo.Time
		c.realm.wake(m.validTo)
	}
	if in.KeyMaterialDescription != nil {
		for _, each := range c.sim.related(k) {
			each.material(m.id).description = *in.KeyMaterialDescription
		}
	}
	if !wasComplete && k.complete() {
		k.disabled = false // from PendingImport a key becomes Enabled, whatever it was before
	}
	out := fields{"KeyId": k.arn}
	if k.spec.kind == symmetricKey {
		out["KeyMaterialId"] = m.id
	}
	return out, nil
}

// readMaterial checks that the unwrapped bytes are material for a key spec. It
// returns the private key of an asymmetric key, and brings its encoding into
// one form, so that the same key is the same material whoever encoded it.
func (in *importKeyMaterialInput) readMaterial(spec *keySpec) (crypto.Signer, error) {
	if !spec.kind.asymmetric() {
		if len(in.bytes) < spec.least || len(in.bytes) > spec.most {
			return nil, fail("IncorrectKeyMaterialException", "The key material has %d bytes, which is not a length for a %s key.", len(in.bytes), spec.name)
		}
		return nil, nil
	}
	private, canonical, err := parsePrivate(spec.name, in.bytes)
	if err != nil {
		return nil, fail("IncorrectKeyMaterialException", "The key material is not a private key for a %s key: %v.", spec.name, err)
	}
	in.bytes = canonical
	return private, nil
}

// associate makes a material the key's first and only one, or its pending one.
func (k *key) associate(m *material, first bool) {
	if first {
		k.materials = []*material{m}
	} else {
		k.pending = m
	}
}

// destination returns the material that the import is for: one that the key
// has, or a new one that it does not have yet.
func (c *call) destination(k *key, in *importKeyMaterialInput) (*material, error) {
	id := materialID(k, in.bytes)
	known := k.material(id)
	kind := deref(in.ImportType)
	if kind == "" {
		if kind = existingMaterial; len(k.materials) == 0 {
			kind = newMaterial
		}
	}
	switch {
	case kind == existingMaterial && known == nil:
		return nil, fail("IncorrectKeyMaterialException", "The key material is not the same as the material that was imported into %s.", k.arn)
	case kind == existingMaterial && in.KeyMaterialId != nil && *in.KeyMaterialId != id:
		return nil, fail("IncorrectKeyMaterialException", "The key material (id: %s) does not match the id in the request (id: %s).", id, *in.KeyMaterialId)
	case kind == existingMaterial:
		return known, nil
	case k.isReplica():
		return nil, fail("UnsupportedOperationException", notPrimary, k.arn)
	case known != nil:
		return nil, fail("IncorrectKeyMaterialException", "The key material (id: %s) is already associated with %s.", id, k.arn)
	case k.pending != nil:
		return nil, fail("KMSInvalidStateException", "New key material (id: %s) cannot be imported into KMS key %s, because another key material (id: %s) is pending rotation.",
			id, k.arn, k.pending.id)
	case len(k.materials) > 0 && !k.complete():
		return nil, fail("KMSInvalidStateException", "%s is pending import.", k.arn)
	}
	return &material{id: id}, nil
}

// spend lets an import token do its work once. Whether AWS accepts a token
// again after a success is not documented; this is the stricter reading.
func (k *key) spend(in *importKeyMaterialInput, now time.Time) error {
	if _, again := k.spent[string(in.ImportToken)]; again {
		return fail("InvalidImportTokenException", "")
	}
	maps.DeleteFunc(k.spent, func(_ string, expires time.Time) bool { return !now.Before(expires) })
	k.spent[string(in.ImportToken)] = in.token.expires
	return nil
}

type deleteImportedKeyMaterialInput struct {
	KeyId         *string `required:"" len:"1,2048"`
	KeyMaterialId *string `len:"64,64" pattern:"^[a-f0-9]+$"`
}

func (c *call) deleteImportedKeyMaterial(in *deleteImportedKeyMaterialInput) (any, error) {
	k, err := c.key(*in.KeyId)
	if err != nil {
		return nil, err
	}
	if err := k.requireOrigin(originExternal); err != nil {
		return nil, err
	}
	m := k.current()
	if in.KeyMaterialId != nil {
		if m = k.material(*in.KeyMaterialId); m == nil {
			return nil, fail("NotFoundException", "Key material (id: %s) does not exist in KMS key %s.", *in.KeyMaterialId, k.arn)
		}
	}
	out := fields{"KeyId": k.arn}
	if m != nil && m == k.pending && !k.started.IsZero() {
		return nil, fail("KMSInvalidStateException", "The rotation of %s to the key material (id: %s) is in progress.", k.arn, m.id)
	}
	if m != nil {
		c.sim.drop(k, m)
		if k.spec.kind == symmetricKey {
			out["KeyMaterialId"] = m.id
		}
	}
	return out, nil
}

type listKeyRotationsInput struct {
	KeyId              *string `required:"" len:"1,2048"`
	IncludeKeyMaterial *string `enum:"ALL_KEY_MATERIAL ROTATIONS_ONLY"`
	Limit              *int64  `range:"1,1000"`
	Marker             *string `len:"1,1024"`
}

func (c *call) listKeyRotations(in *listKeyRotationsInput) (any, error) {
	k, err := c.key(*in.KeyId)
	if err != nil {
		return nil, err
	}
	if k.spec.kind != symmetricKey {
		return nil, fail("UnsupportedOperationException", "")
	}
	all := make(map[string]*material)
	for i, m := range k.allMaterials() {
		if !m.rotated.IsZero() || deref(in.IncludeKeyMaterial) == "ALL_KEY_MATERIAL" {
			all[fmt.Sprintf("%06d", i)] = m
		}
	}
	names, more, err := page(c, maps.Keys(all), in.Limit, 100, in.Marker)
	if err != nil {
		return nil, err
	}
	rotations := []fields{}
	for _, name := range names {
		rotations = append(rotations, c.rotation(k, all[name]))
	}
	return more.into(fields{"Rotations": rotations}), nil
}
