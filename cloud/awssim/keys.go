package awssim

import (
	"strings"
	"time"
)

// The states of a key.
const (
	enabled         = "Enabled"
	disabled        = "Disabled"
	pendingImport   = "PendingImport"
	pendingDeletion = "PendingDeletion"

	pendingReplicaDeletion = "PendingReplicaDeletion" // of a multi-Region primary key that has replicas
)

// The origins of key material.
const (
	originKMS      = "AWS_KMS"
	originExternal = "EXTERNAL"
)

// Key usages.
const (
	encryptDecrypt    = "ENCRYPT_DECRYPT"
	signVerify        = "SIGN_VERIFY"
	generateVerifyMAC = "GENERATE_VERIFY_MAC"
	keyAgreement      = "KEY_AGREEMENT"
)

// algorithmsMember is the member of KeyMetadata that lists the algorithms of a
// key, by its usage.
var algorithmsMember = map[string]string{
	encryptDecrypt:    "EncryptionAlgorithms",
	signVerify:        "SigningAlgorithms",
	generateVerifyMAC: "MacAlgorithms",
	keyAgreement:      "KeyAgreementAlgorithms",
}

// A kind is a family of key specs with the same rules.
type kind int

const (
	symmetricKey kind = iota
	macKey
	rsaKey
	eccKey
)

func (k kind) asymmetric() bool { return k == rsaKey || k == eccKey }

// sameType reports whether an alias may move between keys of the two kinds: both
// symmetric, both asymmetric or both HMAC (API Reference, UpdateAlias).
func (k kind) sameType(other kind) bool { return k == other || k.asymmetric() && other.asymmetric() }

// A keySpec is what KMS calls by that name.
type keySpec struct {
	name        string
	kind        kind
	usages      map[string][]string // algorithms by key usage
	least, most int                 // bytes of secret material; for private keys see asymmetric.go
}

// symmetricDefault is both a key spec and its only algorithm.
const symmetricDefault = "SYMMETRIC_DEFAULT"

var (
	rsaUsages = map[string][]string{
		encryptDecrypt: {"RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256"},
		signVerify: {
			"RSASSA_PKCS1_V1_5_SHA_256", "RSASSA_PKCS1_V1_5_SHA_384", "RSASSA_PKCS1_V1_5_SHA_512",
			"RSASSA_PSS_SHA_256", "RSASSA_PSS_SHA_384", "RSASSA_PSS_SHA_512",
		},
	}
	ecdh = []string{"ECDH"}
)

// keySpecs are the specs of keys that the simulator can make. Imported HMAC
// keys have at least the length of the digest and at most 1024 bits.
var keySpecs = map[string]*keySpec{
	symmetricDefault: {symmetricDefault, symmetricKey, map[string][]string{encryptDecrypt: {symmetricDefault}}, 32, 32},

	"HMAC_224": {"HMAC_224", macKey, map[string][]string{generateVerifyMAC: {"HMAC_SHA_224"}}, 28, 128},
	"HMAC_256": {"HMAC_256", macKey, map[string][]string{generateVerifyMAC: {"HMAC_SHA_256"}}, 32, 128},
	"HMAC_384": {"HMAC_384", macKey, map[string][]string{generateVerifyMAC: {"HMAC_SHA_384"}}, 48, 128},
	"HMAC_512": {"HMAC_512", macKey, map[string][]string{generateVerifyMAC: {"HMAC_SHA_512"}}, 64, 128},

	"RSA_2048": {"RSA_2048", rsaKey, rsaUsages, 0, 0},
	"RSA_3072": {"RSA_3072", rsaKey, rsaUsages, 0, 0},
	"RSA_4096": {"RSA_4096", rsaKey, rsaUsages, 0, 0},

	"ECC_NIST_P256":         {"ECC_NIST_P256", eccKey, map[string][]string{signVerify: {"ECDSA_SHA_256"}, keyAgreement: ecdh}, 0, 0},
	"ECC_NIST_P384":         {"ECC_NIST_P384", eccKey, map[string][]string{signVerify: {"ECDSA_SHA_384"}, keyAgreement: ecdh}, 0, 0},
	"ECC_NIST_P521":         {"ECC_NIST_P521", eccKey, map[string][]string{signVerify: {"ECDSA_SHA_512"}, keyAgreement: ecdh}, 0, 0},
	"ECC_SECG_P256K1":       {"ECC_SECG_P256K1", eccKey, map[string][]string{signVerify: {"ECDSA_SHA_256"}}, 0, 0},
	"ECC_NIST_EDWARDS25519": {"ECC_NIST_EDWARDS25519", eccKey, map[string][]string{signVerify: {"ED25519_SHA_512", "ED25519_PH_SHA_512"}}, 0, 0},
}

// A key is a KMS key.
type key struct {
	id, arn     string
	account     string
	region      string
	spec        *keySpec
	usage       string
	origin      string
	description string
	policy      string
	multiRegion bool
	primary     string // Region of the primary key, of a multi-Region key
	created     time.Time

	disabled bool      // by DisableKey or CancelKeyDeletion
	deletion time.Time // when it is to be destroyed; zero unless PendingDeletion
	window   int       // days between ScheduleKeyDeletion and deletion
	waiting  bool      // to be deleted when there are no more replicas

	tags       map[string]string
	pastTags   []past[map[string]string]
	everTagged bool

	materials []*material // permanently associated, oldest first; the last is current
	pending   *material   // imported, to become current by RotateKeyOnDemand
	rotations int         // on demand
	started   time.Time   // of an on-demand rotation that is under way
	ends      time.Time   // of the same
	period    int         // days between automatic rotations; 0: they are off
	due       time.Time   // the next automatic rotation
	lastUse   *keyUse

	grants map[string]*grant // by ID

	spent map[string]time.Time // import tokens that did their work, until they expire
}

// A keyUse is a successful cryptographic operation.
type keyUse struct {
	operation, requestID, eventID string
	at                            time.Time
}

// state derives the key's state. What has expired must be gone: realm.settle.
func (k *key) state() string {
	switch {
	case !k.deletion.IsZero():
		return pendingDeletion
	case k.waiting:
		return pendingReplicaDeletion
	case !k.complete():
		return pendingImport
	case k.disabled:
		return disabled
	}
	return enabled
}

// ending reports whether the key is to be deleted.
func (k *key) ending() bool { return !k.deletion.IsZero() || k.waiting }

// complete reports whether all permanently associated material is there.
func (k *key) complete() bool {
	for _, m := range k.materials {
		if m.bytes == nil {
			return false
		}
	}
	return len(k.materials) > 0
}

// allMaterials returns the permanent materials, then the pending one, if any.
func (k *key) allMaterials() []*material {
	all := k.materials[:len(k.materials):len(k.materials)]
	if k.pending != nil {
		all = append(all, k.pending)
	}
	return all
}

// current returns the material that encrypts, nil if there never was any.
func (k *key) current() *material {
	if len(k.materials) == 0 {
		return nil
	}
	return k.materials[len(k.materials)-1]
}

// algorithms returns what can be done with the key.
func (k *key) algorithms() []string { return k.spec.usages[k.usage] }

// used notes a successful cryptographic operation.
func (k *key) used(c *call) {
	k.lastUse = &keyUse{operation: c.request.Operation, requestID: c.id, eventID: newUUID(), at: c.now}
}

// metadata returns a key as DescribeKey shows it.
func (c *call) metadata(k *key) fields {
	state := k.state()
	f := fields{
		"AWSAccountId":            k.account,
		"Arn":                     k.arn,
		"CreationDate":            timestamp{k.created},
		"CustomerMasterKeySpec":   k.spec.name,
		"Description":             k.description,
		"Enabled":                 state == enabled,
		"KeyId":                   k.id,
		"KeyManager":              "CUSTOMER",
		"KeySpec":                 k.spec.name,
		"KeyState":                state,
		"KeyUsage":                k.usage,
		"MultiRegion":             k.multiRegion,
		"Origin":                  k.origin,
		algorithmsMember[k.usage]: k.algorithms(),
	}
	if m := k.current(); m != nil && k.spec.kind == symmetricKey {
		f["CurrentKeyMaterialId"] = m.id
	}
	if k.origin == originExternal && k.complete() {
		f["ExpirationModel"] = doesNotExpire
		if at := k.earliestExpiry(); !at.IsZero() {
			f["ExpirationModel"], f["ValidTo"] = expires, timestamp{at}
		}
	}
	if state == pendingDeletion {
		f["DeletionDate"] = timestamp{k.deletion}
	}
	if state == pendingReplicaDeletion {
		f["PendingDeletionWindowInDays"] = k.window
	}
	if k.multiRegion {
		f["MultiRegionConfiguration"] = c.sim.configuration(k)
	}
	return f
}

// earliestExpiry returns when the first of the permanent materials expires,
// the zero time if none does.
func (k *key) earliestExpiry() time.Time {
	var first time.Time
	for _, m := range k.materials {
		if m.bytes != nil && m.expires && (first.IsZero() || m.validTo.Before(first)) {
			first = m.validTo
		}
	}
	return first
}

// keyIDPattern is that of a key ID, single-Region or multi-Region.
const keyIDPattern = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|mrk-[0-9a-f]{32}"

// key finds a key by ID or ARN.
func (c *call) key(name string) (*key, error) { return c.find(name, false) }

// keyOrAlias finds a key by ID, ARN, alias name or alias ARN.
func (c *call) keyOrAlias(name string) (*key, error) { return c.find(name, true) }

func (c *call) find(name string, aliases bool) (*key, error) {
	resource := name
	if strings.HasPrefix(name, "arn:") {
		var err error
		if resource, err = c.resource(name); err != nil {
			return nil, err
		}
		if id, ok := strings.CutPrefix(resource, "key/"); ok {
			resource = id
		} else if !strings.HasPrefix(resource, "alias/") {
			return nil, fail("InvalidArnException", "Invalid arn %s", name)
		}
	}
	if strings.HasPrefix(resource, "alias/") {
		if !aliases {
			return nil, fail("NotFoundException", "Invalid keyId %s", name)
		}
		a := c.readAlias(resource)
		if a == nil {
			return nil, fail("NotFoundException", "Alias %s is not found.", c.realm.arn("kms", resource))
		}
		resource = a.target
	}
	if !compiled(keyIDPattern).MatchString(resource) {
		return nil, fail("NotFoundException", "Invalid keyId '%s'", name)
	}
	k := c.realm.keys[resource]
	if k == nil || !c.visible(k) {
		return nil, fail("NotFoundException", "Key '%s' does not exist", c.realm.arn("kms", "key/"+resource))
	}
	return k, nil
}

// resource returns the last part of a KMS ARN that belongs to the call's
// account and Region.
func (c *call) resource(arn string) (string, error) {
	parts := strings.SplitN(arn, ":", 6)
	switch {
	case len(parts) < 6 || parts[2] != "kms" || parts[5] == "":
		return "", fail("InvalidArnException", "Invalid arn %s", arn)
	case parts[1] != partition(c.realm.region):
		return "", fail("InvalidArnException", "Invalid arn %s", parts[1])
	case parts[3] != c.realm.region:
		return "", fail("NotFoundException", "Invalid arn %s", parts[3])
	case parts[4] != c.realm.account:
		return "", fail("AccessDeniedException", "%s", c.denied(arn)+" because the resource does not exist in this Region, "+
			"no resource-based policies allow access, or a resource-based policy explicitly denies access")
	}
	return parts[5], nil
}

// usable says which states allow an operation, as in the table "Key states of
// AWS KMS keys" of the developer guide.
type usable struct{ disabled, pendingImport, pendingDeletion bool }

var (
	unlessDeleting  = usable{disabled: true, pendingImport: true}
	withMaterial    = usable{disabled: true}
	onlyWhenEnabled = usable{}
)

// require refuses what the key's state does not allow.
func (k *key) require(u usable) error {
	switch k.state() {
	case disabled:
		if !u.disabled {
			return fail("DisabledException", "%s is disabled.", k.arn)
		}
	case pendingImport:
		if !u.pendingImport {
			return fail("KMSInvalidStateException", "%s is pending import.", k.arn)
		}
	case pendingDeletion:
		if !u.pendingDeletion {
			return fail("KMSInvalidStateException", "%s is pending deletion.", k.arn)
		}
	case pendingReplicaDeletion:
		if !u.pendingDeletion {
			return fail("KMSInvalidStateException", "%s is pending replica deletion.", k.arn)
		}
	}
	return nil
}

// requireOrigin refuses a key of another origin.
func (k *key) requireOrigin(origin string) error {
	if k.origin != origin {
		return fail("UnsupportedOperationException", "%s origin is %s which is not valid for this operation.", k.arn, k.origin)
	}
	return nil
}

// requireUsage refuses a key that is for something else.
func (c *call) requireUsage(k *key, usage string) error {
	if k.usage != usage {
		return fail("InvalidKeyUsageException", "%s key usage is %s which is not valid for %s.", k.arn, k.usage, c.request.Operation)
	}
	return nil
}
