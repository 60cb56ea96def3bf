package awssim

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"maps"
	"slices"
	"strings"
)

// A ciphertext blob is
//
//	version (1) ‖ length of the ARN (2) ‖ key ARN ‖ material ID (32) ‖ nonce (12) ‖ AES-256-GCM
//
// where all that comes before the nonce, with the encryption context, is
// authenticated.
const blobVersion = 1

// A blob is a ciphertext taken apart.
type blob struct {
	header        []byte
	arn           string
	material      string
	nonce, sealed []byte
}

// parseBlob takes a ciphertext apart.
func parseBlob(b []byte) (p blob, ok bool) {
	const nonce = 12
	if len(b) < 3 || b[0] != blobVersion {
		return p, false
	}
	n := int(binary.BigEndian.Uint16(b[1:]))
	end := 3 + n + sha256.Size
	if len(b) < end+nonce {
		return p, false
	}
	return blob{
		header:   b[:end:end],
		arn:      string(b[3 : 3+n]),
		material: hex.EncodeToString(b[3+n : end]),
		nonce:    b[end : end+nonce],
		sealed:   b[end+nonce:],
	}, true
}

// seal encrypts under the key's current material.
func (k *key) seal(plaintext []byte, context map[string]string) []byte {
	m := k.current()
	id, err := hex.DecodeString(m.id)
	if err != nil {
		panic(err) // materialID made it
	}
	b := binary.BigEndian.AppendUint16([]byte{blobVersion}, uint16(len(k.arn)))
	b = append(b, k.arn...)
	b = append(b, id...)
	aad := associated(b, context)
	nonce := randomBytes(12)
	b = append(b, nonce...)
	return m.gcm().Seal(b, nonce, plaintext, aad)
}

// open decrypts with the material that the ciphertext names.
func (k *key) open(p blob, context map[string]string) ([]byte, error) {
	m := k.material(p.material)
	if m == nil || m == k.pending {
		return nil, fail("InvalidCiphertextException", "")
	}
	plaintext, err := m.gcm().Open(nil, p.nonce, p.sealed, associated(p.header, context))
	if err != nil {
		return nil, fail("InvalidCiphertextException", "")
	}
	return plaintext, nil
}

// gcm returns the cipher of a material, which has 32 bytes.
func (m *material) gcm() cipher.AEAD {
	block, err := aes.NewCipher(m.bytes)
	if err != nil {
		panic(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return gcm
}

// associated returns header and encryption context in one unambiguous form.
func associated(header []byte, context map[string]string) []byte {
	b := slices.Clone(header)
	for _, name := range slices.Sorted(maps.Keys(context)) {
		for _, s := range []string{name, context[name]} {
			b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
			b = append(b, s...)
		}
	}
	return b
}

// ready checks that a key can do a cryptographic operation.
func (c *call) ready(k *key, usage string) error {
	if err := k.require(onlyWhenEnabled); err != nil {
		return err
	}
	return c.requireUsage(k, usage)
}

// dry refuses a dry run of what would have succeeded.
func dry(run bool) error {
	if run {
		return fail("DryRunOperationException", "The request would have succeeded, but the DryRun option is set.")
	}
	return nil
}

// requireAlgorithm refuses an algorithm that is not the key's.
func (k *key) requireAlgorithm(name string) error {
	if !slices.Contains(k.algorithms(), name) {
		return fail("InvalidKeyUsageException", "Algorithm %s is incompatible with key spec %s.", name, k.spec.name)
	}
	return nil
}

// encryptionAlgorithm returns the algorithm of a request, or the default one.
func encryptionAlgorithm(name *string) string {
	if name == nil {
		return symmetricDefault
	}
	return *name
}

// encrypt encrypts for a request that may use the key.
func (k *key) encrypt(algorithm string, plaintext []byte, context map[string]string) ([]byte, error) {
	if err := k.requireAlgorithm(algorithm); err != nil {
		return nil, err
	}
	if k.spec.kind == symmetricKey {
		return k.seal(plaintext, context), nil
	}
	if len(context) > 0 {
		return nil, fail("ValidationException", "An encryption context is for symmetric encryption keys only.")
	}
	return k.encryptOAEP(algorithm, plaintext)
}

type encryptInput struct {
	KeyId               *string `required:"" len:"1,2048"`
	Plaintext           []byte  `required:"" len:"1,4096" sensitive:""`
	EncryptionAlgorithm *string `enum:"SYMMETRIC_DEFAULT RSAES_OAEP_SHA_1 RSAES_OAEP_SHA_256 SM2PKE"`
	EncryptionContext   map[string]string
	GrantTokens         []string `len:"0,10" each:"1,8192"`
	DryRun              bool
}

func (c *call) encrypt(in *encryptInput) (any, error) {
	k, err := c.keyOrAlias(*in.KeyId)
	if err != nil {
		return nil, err
	}
	if err := c.ready(k, encryptDecrypt); err != nil {
		return nil, err
	}
	algorithm := encryptionAlgorithm(in.EncryptionAlgorithm)
	ciphertext, err := k.encrypt(algorithm, in.Plaintext, in.EncryptionContext)
	if err != nil {
		return nil, err
	}
	if err := dry(in.DryRun); err != nil {
		return nil, err
	}
	k.used(c)
	return fields{"KeyId": k.arn, "CiphertextBlob": ciphertext, "EncryptionAlgorithm": algorithm}, nil
}

// deciphered is what became of a ciphertext.
type deciphered struct {
	key       *key
	material  string // ID; empty for an asymmetric key
	plaintext []byte
}

// cipherKey finds the key of a ciphertext, which must be the named one if
// there is a name. The blob is the ciphertext taken apart, if it is of a
// symmetric key.
func (c *call) cipherKey(name *string, ciphertext []byte, algorithm string) (k *key, p blob, err error) {
	p, ok := parseBlob(ciphertext)
	if name != nil {
		if k, err = c.keyOrAlias(*name); err != nil {
			return nil, p, err
		}
		if algorithm == symmetricDefault && ok && !k.made(p.arn) {
			return nil, p, fail("IncorrectKeyException", "The key ID in the request does not identify a CMK that can perform this operation.")
		}
		return k, p, nil
	}
	if algorithm != symmetricDefault {
		return nil, p, fail("ValidationException", "A KeyId is needed to decrypt with an asymmetric key.")
	}
	if !ok {
		return nil, p, fail("InvalidCiphertextException", "")
	}
	if k = c.realm.keys[p.arn[strings.LastIndex(p.arn, "/")+1:]]; k == nil || !k.made(p.arn) {
		return nil, p, fail("AccessDeniedException", "The ciphertext refers to a customer master key that does not exist, "+
			"does not exist in this region, or you are not allowed to access.")
	}
	return k, p, nil
}

// made reports whether a ciphertext that names a key by ARN is this key's: its
// own, or one of a related multi-Region key.
func (k *key) made(arn string) bool {
	_, id, _ := strings.Cut(arn, ":"+k.account+":key/")
	return arn == k.arn || k.multiRegion && id == k.id
}

// decipher finds the key of a ciphertext and decrypts.
func (c *call) decipher(name *string, ciphertext []byte, algorithmName *string, context map[string]string) (d deciphered, err error) {
	algorithm := encryptionAlgorithm(algorithmName)
	k, p, err := c.cipherKey(name, ciphertext, algorithm)
	if err != nil {
		return d, err
	}
	if err := c.ready(k, encryptDecrypt); err != nil {
		return d, err
	}
	if err := k.requireAlgorithm(algorithm); err != nil {
		return d, err
	}
	d.key = k
	if k.spec.kind == symmetricKey {
		if p.arn == "" {
			return d, fail("InvalidCiphertextException", "")
		}
		d.material = p.material
		d.plaintext, err = k.open(p, context)
		return d, err
	}
	if len(context) > 0 {
		return d, fail("ValidationException", "An encryption context is for symmetric encryption keys only.")
	}
	d.plaintext, err = k.decryptOAEP(algorithm, ciphertext)
	return d, err
}

type decryptInput struct {
	CiphertextBlob      []byte  `required:"" len:"1,6144"`
	KeyId               *string `len:"1,2048"`
	EncryptionAlgorithm *string `enum:"SYMMETRIC_DEFAULT RSAES_OAEP_SHA_1 RSAES_OAEP_SHA_256 SM2PKE"`
	EncryptionContext   map[string]string
	GrantTokens         []string `len:"0,10" each:"1,8192"`
	DryRun              bool
}

func (c *call) decrypt(in *decryptInput) (any, error) {
	d, err := c.decipher(in.KeyId, in.CiphertextBlob, in.EncryptionAlgorithm, in.EncryptionContext)
	if err != nil {
		return nil, err
	}
	if err := dry(in.DryRun); err != nil {
		return nil, err
	}
	d.key.used(c)
	out := fields{"KeyId": d.key.arn, "Plaintext": d.plaintext, "EncryptionAlgorithm": encryptionAlgorithm(in.EncryptionAlgorithm)}
	if d.material != "" {
		out["KeyMaterialId"] = d.material
	}
	return out, nil
}

type reEncryptInput struct {
	CiphertextBlob                 []byte  `required:"" len:"1,6144"`
	SourceKeyId                    *string `len:"1,2048"`
	DestinationKeyId               *string `required:"" len:"1,2048"`
	SourceEncryptionContext        map[string]string
	DestinationEncryptionContext   map[string]string
	SourceEncryptionAlgorithm      *string  `enum:"SYMMETRIC_DEFAULT RSAES_OAEP_SHA_1 RSAES_OAEP_SHA_256 SM2PKE"`
	DestinationEncryptionAlgorithm *string  `enum:"SYMMETRIC_DEFAULT RSAES_OAEP_SHA_1 RSAES_OAEP_SHA_256 SM2PKE"`
	GrantTokens                    []string `len:"0,10" each:"1,8192"`
	DryRun                         bool
}

func (c *call) reEncrypt(in *reEncryptInput) (any, error) {
	source, err := c.decipher(in.SourceKeyId, in.CiphertextBlob, in.SourceEncryptionAlgorithm, in.SourceEncryptionContext)
	if err != nil {
		return nil, err
	}
	k, err := c.keyOrAlias(*in.DestinationKeyId)
	if err != nil {
		return nil, err
	}
	if err := c.ready(k, encryptDecrypt); err != nil {
		return nil, err
	}
	algorithm := encryptionAlgorithm(in.DestinationEncryptionAlgorithm)
	ciphertext, err := k.encrypt(algorithm, source.plaintext, in.DestinationEncryptionContext)
	if err != nil {
		return nil, err
	}
	if err := dry(in.DryRun); err != nil {
		return nil, err
	}
	source.key.used(c)
	k.used(c)
	out := fields{
		"CiphertextBlob": ciphertext, "KeyId": k.arn, "DestinationEncryptionAlgorithm": algorithm,
		"SourceKeyId": source.key.arn, "SourceEncryptionAlgorithm": encryptionAlgorithm(in.SourceEncryptionAlgorithm),
	}
	if k.spec.kind == symmetricKey {
		out["DestinationKeyMaterialId"] = k.current().id
	}
	if source.material != "" {
		out["SourceKeyMaterialId"] = source.material
	}
	return out, nil
}

type generateDataKeyInput struct {
	KeyId             *string `required:"" len:"1,2048"`
	KeySpec           *string `enum:"AES_256 AES_128"`
	NumberOfBytes     *int64  `range:"1,1024"`
	EncryptionContext map[string]string
	GrantTokens       []string `len:"0,10" each:"1,8192"`
	DryRun            bool
}

// generateDataKey is GenerateDataKey and GenerateDataKeyWithoutPlaintext.
func (c *call) generateDataKey(in *generateDataKeyInput) (any, error) {
	if (in.KeySpec == nil) == (in.NumberOfBytes == nil) {
		return nil, fail("ValidationException", "Please specify either number of bytes or key spec.")
	}
	k, err := c.keyOrAlias(*in.KeyId)
	if err != nil {
		return nil, err
	}
	if err := c.readyForDataKeys(k); err != nil {
		return nil, err
	}
	if err := dry(in.DryRun); err != nil {
		return nil, err
	}
	n := deref(in.NumberOfBytes)
	switch deref(in.KeySpec) {
	case "AES_256":
		n = 32
	case "AES_128":
		n = 16
	}
	k.used(c)
	plaintext := randomBytes(int(n))
	out := fields{"KeyId": k.arn, "KeyMaterialId": k.current().id, "CiphertextBlob": k.seal(plaintext, in.EncryptionContext)}
	if c.request.Operation == "GenerateDataKey" {
		out["Plaintext"] = plaintext
	}
	return out, nil
}

type macInput struct {
	KeyId        *string  `required:"" len:"1,2048"`
	Message      []byte   `required:"" len:"1,4096" sensitive:""`
	MacAlgorithm *string  `required:"" enum:"HMAC_SHA_224 HMAC_SHA_256 HMAC_SHA_384 HMAC_SHA_512"`
	GrantTokens  []string `len:"0,10" each:"1,8192"`
	DryRun       bool
}

func (c *call) generateMac(in *macInput) (any, error) {
	k, value, err := c.mac(in)
	if err != nil {
		return nil, err
	}
	k.used(c)
	return fields{"KeyId": k.arn, "Mac": value, "MacAlgorithm": *in.MacAlgorithm}, nil
}

// mac computes a MAC.
func (c *call) mac(in *macInput) (*key, []byte, error) {
	k, err := c.keyOrAlias(*in.KeyId)
	if err != nil {
		return nil, nil, err
	}
	if err := c.ready(k, generateVerifyMAC); err != nil {
		return nil, nil, err
	}
	if err := k.requireAlgorithm(*in.MacAlgorithm); err != nil {
		return nil, nil, err
	}
	if err := dry(in.DryRun); err != nil {
		return nil, nil, err
	}
	newHash := map[string]func() hash.Hash{
		"HMAC_SHA_224": sha256.New224, "HMAC_SHA_256": sha256.New, "HMAC_SHA_384": sha512.New384, "HMAC_SHA_512": sha512.New,
	}[*in.MacAlgorithm]
	h := hmac.New(newHash, k.current().bytes)
	h.Write(in.Message)
	return k, h.Sum(nil), nil
}

type verifyMacInput struct {
	macInput
	Mac []byte `required:"" len:"1,6144" sensitive:""`
}

func (c *call) verifyMac(in *verifyMacInput) (any, error) {
	k, value, err := c.mac(&in.macInput)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(value, in.Mac) {
		return nil, fail("KMSInvalidMacException", "")
	}
	k.used(c)
	return fields{"KeyId": k.arn, "MacValid": true, "MacAlgorithm": *in.MacAlgorithm}, nil
}
