package awssim

import (
	"crypto"
	"encoding/hex"
	"iter"
	"time"
)

// kmsOperations are the operations of KMS.
var kmsOperations = map[string]operation{
	"CancelKeyDeletion":                   op((*call).cancelKeyDeletion),
	"CreateAlias":                         op((*call).createAlias),
	"CreateGrant":                         op((*call).createGrant),
	"CreateKey":                           op((*call).createKey),
	"Decrypt":                             op((*call).decrypt),
	"DeleteAlias":                         op((*call).deleteAlias),
	"DeleteImportedKeyMaterial":           op((*call).deleteImportedKeyMaterial),
	"DeriveSharedSecret":                  op((*call).deriveSharedSecret),
	"DescribeKey":                         op((*call).describeKey),
	"DisableKey":                          op((*call).disableKey),
	"DisableKeyRotation":                  op((*call).disableKeyRotation),
	"EnableKey":                           op((*call).enableKey),
	"EnableKeyRotation":                   op((*call).enableKeyRotation),
	"Encrypt":                             op((*call).encrypt),
	"GenerateDataKey":                     op((*call).generateDataKey),
	"GenerateDataKeyPair":                 op((*call).generateDataKeyPair),
	"GenerateDataKeyPairWithoutPlaintext": op((*call).generateDataKeyPair),
	"GenerateDataKeyWithoutPlaintext":     op((*call).generateDataKey),
	"GenerateMac":                         op((*call).generateMac),
	"GenerateRandom":                      op((*call).generateRandom),
	"GetKeyLastUsage":                     op((*call).getKeyLastUsage),
	"GetKeyPolicy":                        op((*call).getKeyPolicy),
	"GetKeyRotationStatus":                op((*call).getKeyRotationStatus),
	"GetParametersForImport":              op((*call).getParametersForImport),
	"GetPublicKey":                        op((*call).getPublicKey),
	"ImportKeyMaterial":                   op((*call).importKeyMaterial),
	"ListAliases":                         op((*call).listAliases),
	"ListGrants":                          op((*call).listGrants),
	"ListKeyPolicies":                     op((*call).listKeyPolicies),
	"ListKeyRotations":                    op((*call).listKeyRotations),
	"ListKeys":                            op((*call).listKeys),
	"ListResourceTags":                    op((*call).listResourceTags),
	"ListRetirableGrants":                 op((*call).listRetirableGrants),
	"PutKeyPolicy":                        op((*call).putKeyPolicy),
	"ReEncrypt":                           op((*call).reEncrypt),
	"ReplicateKey":                        op((*call).replicateKey),
	"RetireGrant":                         op((*call).retireGrant),
	"RevokeGrant":                         op((*call).revokeGrant),
	"RotateKeyOnDemand":                   op((*call).rotateKeyOnDemand),
	"ScheduleKeyDeletion":                 op((*call).scheduleKeyDeletion),
	"Sign":                                op((*call).sign),
	"TagResource":                         op((*call).tagResource),
	"UntagResource":                       op((*call).untagResource),
	"UpdateAlias":                         op((*call).updateAlias),
	"UpdateKeyDescription":                op((*call).updateKeyDescription),
	"UpdatePrimaryRegion":                 op((*call).updatePrimaryRegion),
	"Verify":                              op((*call).verify),
	"VerifyMac":                           op((*call).verifyMac),
}

// maxKeys is AWS's quota of KMS keys per account and Region.
const maxKeys = 100_000

type createKeyInput struct {
	Policy                         *string `len:"1,131072" pattern:"[\\u0009\\u000A\\u000D\\u0020-\\u00FF]+"`
	Description                    *string `len:"0,8192"`
	KeyUsage                       *string `enum:"SIGN_VERIFY ENCRYPT_DECRYPT GENERATE_VERIFY_MAC KEY_AGREEMENT ENCAPSULATE_DECAPSULATE"`
	CustomerMasterKeySpec          *string `enum:"RSA_2048 RSA_3072 RSA_4096 ECC_NIST_P256 ECC_NIST_P384 ECC_NIST_P521 ECC_SECG_P256K1 SYMMETRIC_DEFAULT HMAC_224 HMAC_256 HMAC_384 HMAC_512 SM2"`
	KeySpec                        *string `enum:"RSA_2048 RSA_3072 RSA_4096 ECC_NIST_P256 ECC_NIST_P384 ECC_NIST_P521 ECC_SECG_P256K1 SYMMETRIC_DEFAULT HMAC_224 HMAC_256 HMAC_384 HMAC_512 SM2 ML_DSA_44 ML_DSA_65 ML_DSA_87 ECC_NIST_EDWARDS25519 ML_KEM_512 ML_KEM_768 ML_KEM_1024"`
	Origin                         *string `enum:"AWS_KMS EXTERNAL AWS_CLOUDHSM EXTERNAL_KEY_STORE"`
	CustomKeyStoreId               *string `len:"1,64"`
	XksKeyId                       *string `len:"1,128"`
	BypassPolicyLockoutSafetyCheck *bool
	Tags                           []tag
	MultiRegion                    bool

	private crypto.Signer // of an asymmetric key with KMS's material
	pkcs8   []byte
}

func (c *call) createKey(in *createKeyInput) (any, error) {
	name := symmetricDefault
	switch {
	case in.KeySpec != nil && in.CustomerMasterKeySpec != nil:
		return nil, fail("ValidationException", "You cannot specify KeySpec and CustomerMasterKeySpec in the same request. CustomerMasterKeySpec is deprecated.")
	case in.KeySpec != nil:
		name = *in.KeySpec
	case in.CustomerMasterKeySpec != nil:
		name = *in.CustomerMasterKeySpec
	}
	usage := encryptDecrypt
	if in.KeyUsage != nil {
		usage = *in.KeyUsage
	} else if name != symmetricDefault {
		return nil, fail("ValidationException", "You must specify a KeyUsage value for all KMS keys except for symmetric encryption keys.")
	}
	spec := keySpecs[name]
	if spec == nil {
		return nil, fail("UnsupportedOperationException", "awssim has no keys of spec %s.", name)
	}
	if spec.usages[usage] == nil {
		return nil, fail("ValidationException", "KeyUsage %s is not compatible with KeySpec %s", usage, name)
	}
	origin := originKMS
	if in.Origin != nil {
		origin = *in.Origin
	}
	if in.CustomKeyStoreId != nil || in.XksKeyId != nil || origin != originKMS && origin != originExternal {
		return nil, fail("UnsupportedOperationException", "awssim has no custom key stores.")
	}
	if err := checkTags(in.Tags, nil); err != nil {
		return nil, err
	}
	k := &key{
		account: c.realm.account, region: c.realm.region,
		spec: spec, usage: usage, origin: origin,
		description: deref(in.Description),
		multiRegion: in.MultiRegion,
		created:     c.now,
		tags:        make(map[string]string),
		spent:       make(map[string]time.Time),
		grants:      make(map[string]*grant),
	}
	if k.id = newUUID(); k.multiRegion {
		k.id, k.primary = "mrk-"+hex.EncodeToString(randomBytes(16)), k.region
	}
	k.arn = c.realm.arn("kms", "key/"+k.id)
	if k.policy = defaultPolicy(c.realm.place).rewritten(k.region); in.Policy != nil {
		if err := c.setPolicy(k, *in.Policy, deref(in.BypassPolicyLockoutSafetyCheck)); err != nil {
			return nil, err
		}
	}
	if len(c.realm.keys) >= maxKeys {
		return nil, fail("LimitExceededException", "The account has %d KMS keys in this Region, which is the limit.", maxKeys)
	}
	k.tag(in.Tags)
	if origin == originKMS {
		m := k.add(in.secretOr(spec))
		m.private = in.private
	}
	c.realm.keys[k.id] = k
	return fields{"KeyMetadata": c.metadata(k)}, nil
}

type describeKeyInput struct {
	KeyId       *string  `required:"" len:"1,2048"`
	GrantTokens []string `len:"0,10" each:"1,8192"`
}

func (c *call) describeKey(in *describeKeyInput) (any, error) {
	k, err := c.keyOrAlias(*in.KeyId)
	if err != nil {
		return nil, err
	}
	return fields{"KeyMetadata": c.metadata(k)}, nil
}

// A keyInput names a key and nothing else.
type keyInput struct {
	KeyId *string `required:"" len:"1,2048"`
}

type listKeysInput struct {
	Limit  *int64  `range:"1,1000"`
	Marker *string `len:"1,1024"`
}

func (c *call) listKeys(in *listKeysInput) (any, error) {
	ids, more, err := page(c, c.visibleKeys(), in.Limit, 100, in.Marker)
	if err != nil {
		return nil, err
	}
	keys := []fields{}
	for _, id := range ids {
		keys = append(keys, fields{"KeyId": id, "KeyArn": c.realm.keys[id].arn})
	}
	return more.into(fields{"Keys": keys}), nil
}

// visibleKeys returns the IDs of the keys that can be found.
func (c *call) visibleKeys() iter.Seq[string] {
	return func(yield func(string) bool) {
		for id, k := range c.realm.keys {
			if c.visible(k) && !yield(id) {
				return
			}
		}
	}
}

type updateKeyDescriptionInput struct {
	KeyId       *string `required:"" len:"1,2048"`
	Description *string `required:"" len:"0,8192"`
}

func (c *call) updateKeyDescription(in *updateKeyDescriptionInput) (any, error) {
	k, err := c.key(*in.KeyId)
	if err != nil {
		return nil, err
	}
	if err := k.require(unlessDeleting); err != nil {
		return nil, err
	}
	k.description = *in.Description
	return nil, nil
}

func (c *call) enableKey(in *keyInput) (any, error)  { return c.setDisabled(in, false) }
func (c *call) disableKey(in *keyInput) (any, error) { return c.setDisabled(in, true) }

func (c *call) setDisabled(in *keyInput, to bool) (any, error) {
	k, err := c.key(*in.KeyId)
	if err != nil {
		return nil, err
	}
	if err := k.require(withMaterial); err != nil {
		return nil, err
	}
	if k.disabled = to; !to {
		c.sim.catchUp(k, c.now)
	}
	return nil, nil
}

type scheduleKeyDeletionInput struct {
	KeyId               *string `required:"" len:"1,2048"`
	PendingWindowInDays *int64  `range:"1,365"`
}

func (c *call) scheduleKeyDeletion(in *scheduleKeyDeletionInput) (any, error) {
	days := int64(30)
	if in.PendingWindowInDays != nil {
		days = *in.PendingWindowInDays
	}
	if days < 7 || days > 30 {
		return nil, fail("ValidationException", "PendingWindowInDays must be between 7 and 30, not %d.", days)
	}
	k, err := c.key(*in.KeyId)
	if err != nil {
		return nil, err
	}
	if err := k.require(unlessDeleting); err != nil {
		return nil, err
	}
	k.window = int(days)
	out := fields{"KeyId": k.arn, "PendingWindowInDays": k.window}
	if k.isPrimary() && len(c.sim.related(k)) > 1 {
		k.waiting = true
	} else {
		k.deletion = c.now.AddDate(0, 0, k.window)
		c.realm.wake(k.deletion)
		out["DeletionDate"] = timestamp{k.deletion}
	}
	out["KeyState"] = k.state()
	return out, nil
}

func (c *call) cancelKeyDeletion(in *keyInput) (any, error) {
	k, err := c.key(*in.KeyId)
	if err != nil {
		return nil, err
	}
	if !k.ending() {
		return nil, fail("KMSInvalidStateException", "%s is not pending deletion.", k.arn)
	}
	k.deletion, k.waiting, k.window, k.disabled = time.Time{}, false, 0, true
	return fields{"KeyId": k.arn}, nil
}

func (c *call) getKeyLastUsage(in *keyInput) (any, error) {
	k, err := c.key(*in.KeyId)
	if err != nil {
		return nil, err
	}
	from := k.created
	if t := c.sim.options.UsageTrackedFrom; t.After(from) {
		from = t
	}
	use := fields{}
	if u := k.lastUse; u != nil && !u.at.Before(from) {
		use = fields{
			"Operation": u.operation, "Timestamp": timestamp{u.at}, "KmsRequestId": u.requestID,
			"CloudTrailEventId": u.eventID,
		}
	}
	return fields{
		"KeyId": k.arn, "KeyCreationDate": timestamp{k.created}, "TrackingStartDate": timestamp{from}, "KeyLastUsage": use,
	}, nil
}
