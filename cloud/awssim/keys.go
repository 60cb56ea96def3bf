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
)

// The origins of key material.
const (
	originKMS      = "AWS_KMS"
	originExternal = "EXTERNAL"
)

// Key usages.
const (
	encryptDecrypt    = "ENCRYPT_DECRYPT"
	generateVerifyMAC = "GENERATE_VERIFY_MAC"
)

// A kind is a family of key specs with the same rules.
type kind int

const (
	symmetricKey kind = iota
	macKey
)

// A keySpec is what KMS calls by that name.
type keySpec struct {
	name        string
	kind        kind
	usages      []string
	least, most int    // bytes of material
	algorithms  string // the member of KeyMetadata that lists them
	algorithm   string
}

// keySpecs are the specs of keys that the simulator can make. Imported HMAC
// keys have at least the length of the digest and at most 1024 bits.
var keySpecs = map[string]*keySpec{
	"SYMMETRIC_DEFAULT": {"SYMMETRIC_DEFAULT", symmetricKey, []string{encryptDecrypt}, 32, 32, "EncryptionAlgorithms", "SYMMETRIC_DEFAULT"},
	"HMAC_224":          {"HMAC_224", macKey, []string{generateVerifyMAC}, 28, 128, "MacAlgorithms", "HMAC_SHA_224"},
	"HMAC_256":          {"HMAC_256", macKey, []string{generateVerifyMAC}, 32, 128, "MacAlgorithms", "HMAC_SHA_256"},
	"HMAC_384":          {"HMAC_384", macKey, []string{generateVerifyMAC}, 48, 128, "MacAlgorithms", "HMAC_SHA_384"},
	"HMAC_512":          {"HMAC_512", macKey, []string{generateVerifyMAC}, 64, 128, "MacAlgorithms", "HMAC_SHA_512"},
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
	created     time.Time

	disabled bool      // by DisableKey or CancelKeyDeletion
	deletion time.Time // when it is to be destroyed; zero unless PendingDeletion
	window   int       // days between ScheduleKeyDeletion and deletion

	tags       map[string]string
	everTagged bool

	materials []*material // permanently associated, oldest first; the last is current
	pending   *material   // imported, to become current by RotateKeyOnDemand
	rotations int         // on demand
	lastUse   *keyUse

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
	case !k.complete():
		return pendingImport
	case k.disabled:
		return disabled
	}
	return enabled
}

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

// used notes a successful cryptographic operation.
func (k *key) used(c *call) {
	k.lastUse = &keyUse{operation: c.request.Operation, requestID: c.id, eventID: newUUID(), at: c.now}
}

// metadata returns the key as DescribeKey shows it.
func (k *key) metadata() fields {
	state := k.state()
	f := fields{
		"AWSAccountId":          k.account,
		"Arn":                   k.arn,
		"CreationDate":          timestamp{k.created},
		"CustomerMasterKeySpec": k.spec.name,
		"Description":           k.description,
		"Enabled":               state == enabled,
		"KeyId":                 k.id,
		"KeyManager":            "CUSTOMER",
		"KeySpec":               k.spec.name,
		"KeyState":              state,
		"KeyUsage":              k.usage,
		"MultiRegion":           k.multiRegion,
		"Origin":                k.origin,
		k.spec.algorithms:       []string{k.spec.algorithm},
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
	if k.multiRegion {
		f["MultiRegionConfiguration"] = fields{
			"MultiRegionKeyType": "PRIMARY",
			"PrimaryKey":         fields{"Arn": k.arn, "Region": k.region},
			"ReplicaKeys":        []fields{},
		}
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
		a := c.realm.aliases[resource]
		if a == nil {
			return nil, fail("NotFoundException", "Alias %s is not found.", c.realm.arn("kms", resource))
		}
		return c.realm.keys[a.target], nil
	}
	if !compiled(keyIDPattern).MatchString(resource) {
		return nil, fail("NotFoundException", "Invalid keyId '%s'", name)
	}
	k := c.realm.keys[resource]
	if k == nil {
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
