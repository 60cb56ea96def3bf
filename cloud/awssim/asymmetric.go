package awssim

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"byokd/cloud/awssim/internal/secp256k1"
)

// rsaBits are the sizes of the RSA key specs.
var rsaBits = map[string]int{"RSA_2048": 2048, "RSA_3072": 3072, "RSA_4096": 4096}

// curves are those of the ECC key specs that crypto/elliptic has.
var curves = map[string]elliptic.Curve{
	"ECC_NIST_P256": elliptic.P256(),
	"ECC_NIST_P384": elliptic.P384(),
	"ECC_NIST_P521": elliptic.P521(),
}

const (
	specSecp256k1 = "ECC_SECG_P256K1"
	specEd25519   = "ECC_NIST_EDWARDS25519"
)

// newPrivate makes a private key of an asymmetric key spec, and its encoding.
func newPrivate(spec string) (private crypto.Signer, pkcs8 []byte, err error) {
	switch bits, curve := rsaBits[spec], curves[spec]; {
	case bits > 0:
		private, err = rsa.GenerateKey(rand.Reader, bits)
	case curve != nil:
		private, err = ecdsa.GenerateKey(curve, rand.Reader)
	case spec == specSecp256k1:
		private = secp256k1.Generate()
	default:
		_, private, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("make a private key: %w", err)
	}
	pkcs8, err = marshalPrivate(private)
	return private, pkcs8, err
}

func marshalPrivate(private crypto.Signer) ([]byte, error) {
	if k, ok := private.(*secp256k1.PrivateKey); ok {
		return k.MarshalPKCS8()
	}
	return x509.MarshalPKCS8PrivateKey(private)
}

// marshalPublic returns a public key as SubjectPublicKeyInfo.
func marshalPublic(public crypto.PublicKey) ([]byte, error) {
	if k, ok := public.(*secp256k1.PublicKey); ok {
		return k.MarshalPKIX()
	}
	return x509.MarshalPKIXPublicKey(public)
}

// parsePrivate reads a private key of a key spec from PKCS #8, and returns it
// encoded in the form that marshalPrivate gives.
func parsePrivate(spec string, der []byte) (private crypto.Signer, canonical []byte, err error) {
	if spec == specSecp256k1 {
		private, err = secp256k1.ParsePKCS8(der)
	} else {
		var parsed any
		if parsed, err = x509.ParsePKCS8PrivateKey(der); err != nil {
			return nil, nil, errors.New("it is not PKCS #8")
		}
		switch k := parsed.(type) {
		case *rsa.PrivateKey:
			if k.N.BitLen() != rsaBits[spec] {
				return nil, nil, fmt.Errorf("it is an RSA key of %d bits", k.N.BitLen())
			}
			private = k
		case *ecdsa.PrivateKey:
			if k.Curve != curves[spec] {
				return nil, nil, fmt.Errorf("it is a key on %s", k.Curve.Params().Name)
			}
			private = k
		case ed25519.PrivateKey:
			if spec != specEd25519 {
				return nil, nil, errors.New("it is an Ed25519 key")
			}
			private = k
		default:
			return nil, nil, errors.New("it is of another kind")
		}
	}
	if err != nil {
		return nil, nil, err
	}
	canonical, err = marshalPrivate(private)
	return private, canonical, err
}

// prepare makes the private key of an asymmetric key whose material is KMS's.
func (in *createKeyInput) prepare(*Sim) (err error) {
	name := deref(in.KeySpec)
	if name == "" {
		name = deref(in.CustomerMasterKeySpec)
	}
	spec := keySpecs[name]
	if spec != nil && spec.kind.asymmetric() && spec.usages[deref(in.KeyUsage)] != nil && (in.Origin == nil || *in.Origin == originKMS) {
		in.private, in.pkcs8, err = newPrivate(name)
	}
	return err
}

// secretOr returns the material of a new key: a secret, or the private key
// that prepare made.
func (in *createKeyInput) secretOr(spec *keySpec) []byte {
	if spec.kind.asymmetric() {
		return in.pkcs8
	}
	return randomBytes(spec.least)
}

type getPublicKeyInput struct {
	KeyId       *string  `required:"" len:"1,2048"`
	GrantTokens []string `len:"0,10" each:"1,8192"`
}

func (c *call) getPublicKey(in *getPublicKeyInput) (any, error) {
	k, err := c.keyOrAlias(*in.KeyId)
	if err != nil {
		return nil, err
	}
	if !k.spec.kind.asymmetric() {
		return nil, fail("UnsupportedOperationException", "")
	}
	if err := k.require(onlyWhenEnabled); err != nil {
		return nil, err
	}
	spki, err := marshalPublic(k.current().private.Public())
	if err != nil {
		return nil, err
	}
	return fields{
		"KeyId": k.arn, "PublicKey": spki, "KeySpec": k.spec.name, "CustomerMasterKeySpec": k.spec.name,
		"KeyUsage": k.usage, algorithmsMember[k.usage]: k.algorithms(),
	}, nil
}

// digests are the hash functions that end the names of signing algorithms.
var digests = map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512}

type signInput struct {
	KeyId            *string  `required:"" len:"1,2048"`
	Message          []byte   `required:"" len:"1,4096" sensitive:""`
	MessageType      *string  `enum:"RAW DIGEST EXTERNAL_MU"`
	GrantTokens      []string `len:"0,10" each:"1,8192"`
	SigningAlgorithm *string  `required:"" enum:"RSASSA_PSS_SHA_256 RSASSA_PSS_SHA_384 RSASSA_PSS_SHA_512 RSASSA_PKCS1_V1_5_SHA_256 RSASSA_PKCS1_V1_5_SHA_384 RSASSA_PKCS1_V1_5_SHA_512 ECDSA_SHA_256 ECDSA_SHA_384 ECDSA_SHA_512 SM2DSA ML_DSA_SHAKE_256 ED25519_SHA_512 ED25519_PH_SHA_512"`
	DryRun           bool
}

// A message is what is to be signed: as crypto.Signer wants it.
type message struct {
	bytes   []byte
	options crypto.SignerOpts
}

// signer finds the key of a request and what it is to sign.
func (c *call) signer(in *signInput) (*key, message, error) {
	k, err := c.keyOrAlias(*in.KeyId)
	if err != nil {
		return nil, message{}, err
	}
	if err := c.ready(k, signVerify); err != nil {
		return nil, message{}, err
	}
	if err := k.requireAlgorithm(*in.SigningAlgorithm); err != nil {
		return nil, message{}, err
	}
	m, err := in.message()
	return k, m, err
}

func (in *signInput) message() (message, error) {
	name := *in.SigningAlgorithm
	h := digests[name[strings.LastIndex(name, "_")+1:]]
	kind := deref(in.MessageType)
	if kind == "EXTERNAL_MU" || name == "ED25519_SHA_512" && kind == "DIGEST" || name == "ED25519_PH_SHA_512" && kind != "DIGEST" {
		return message{}, fail("ValidationException", "MessageType %s is not valid for SigningAlgorithm %s.", kind, name)
	}
	m := message{bytes: in.Message, options: h}
	switch {
	case name == "ED25519_SHA_512":
		m.options = &ed25519.Options{}
		return m, nil
	case kind == "DIGEST" && len(in.Message) != h.Size():
		return message{}, fail("ValidationException", "Digest is invalid length for algorithm %s.", name)
	case kind != "DIGEST":
		d := h.New()
		d.Write(in.Message)
		m.bytes = d.Sum(nil)
	}
	if strings.HasPrefix(name, "RSASSA_PSS") {
		m.options = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: h}
	}
	if name == "ED25519_PH_SHA_512" {
		m.options = &ed25519.Options{Hash: h}
	}
	return m, nil
}

func (c *call) sign(in *signInput) (any, error) {
	k, m, err := c.signer(in)
	if err != nil {
		return nil, err
	}
	if err := dry(in.DryRun); err != nil {
		return nil, err
	}
	signature, err := k.current().private.Sign(rand.Reader, m.bytes, m.options)
	if err != nil {
		return nil, err
	}
	k.used(c)
	return fields{"KeyId": k.arn, "Signature": signature, "SigningAlgorithm": *in.SigningAlgorithm}, nil
}

type verifyInput struct {
	signInput
	Signature []byte `required:"" len:"1,6144"`
}

func (c *call) verify(in *verifyInput) (any, error) {
	k, m, err := c.signer(&in.signInput)
	if err != nil {
		return nil, err
	}
	if err := dry(in.DryRun); err != nil {
		return nil, err
	}
	good := false
	switch public := k.current().private.Public().(type) {
	case *rsa.PublicKey:
		if options, isPSS := m.options.(*rsa.PSSOptions); isPSS {
			good = rsa.VerifyPSS(public, options.Hash, m.bytes, in.Signature, options) == nil
		} else {
			good = rsa.VerifyPKCS1v15(public, m.options.HashFunc(), m.bytes, in.Signature) == nil
		}
	case *ecdsa.PublicKey:
		good = ecdsa.VerifyASN1(public, m.bytes, in.Signature)
	case *secp256k1.PublicKey:
		good = public.Verify(m.bytes, in.Signature)
	case ed25519.PublicKey:
		good = ed25519.VerifyWithOptions(public, m.bytes, in.Signature, m.options.(*ed25519.Options)) == nil
	}
	if !good {
		return nil, fail("KMSInvalidSignatureException", "")
	}
	k.used(c)
	return fields{"KeyId": k.arn, "SignatureValid": true, "SigningAlgorithm": *in.SigningAlgorithm}, nil
}

// rsaPrivate returns the private key of a key of kind rsaKey.
func (k *key) rsaPrivate() *rsa.PrivateKey { return k.current().private.(*rsa.PrivateKey) }

// encryptOAEP encrypts with an RSA key.
func (k *key) encryptOAEP(algorithm string, plaintext []byte) ([]byte, error) {
	h, public := oaepHashes[algorithm](), &k.rsaPrivate().PublicKey
	if most := public.Size() - 2*h.Size() - 2; len(plaintext) > most {
		return nil, fail("ValidationException", "Algorithm %s and key spec %s cannot encrypt data larger than %d bytes.", algorithm, k.spec.name, most)
	}
	return rsa.EncryptOAEP(h, rand.Reader, public, plaintext, nil)
}

// decryptOAEP decrypts with an RSA key.
func (k *key) decryptOAEP(algorithm string, ciphertext []byte) ([]byte, error) {
	plaintext, err := rsa.DecryptOAEP(oaepHashes[algorithm](), nil, k.rsaPrivate(), ciphertext, nil)
	if err != nil {
		return nil, fail("InvalidCiphertextException", "")
	}
	return plaintext, nil
}

type deriveSharedSecretInput struct {
	KeyId                 *string  `required:"" len:"1,2048"`
	KeyAgreementAlgorithm *string  `required:"" enum:"ECDH"`
	PublicKey             []byte   `required:"" len:"1,8192"`
	GrantTokens           []string `len:"0,10" each:"1,8192"`
	DryRun                bool
}

func (c *call) deriveSharedSecret(in *deriveSharedSecretInput) (any, error) {
	k, err := c.keyOrAlias(*in.KeyId)
	if err != nil {
		return nil, err
	}
	if err := c.ready(k, keyAgreement); err != nil {
		return nil, err
	}
	secret, err := k.agree(in.PublicKey)
	if err != nil {
		return nil, fail("ValidationException", "")
	}
	if err := dry(in.DryRun); err != nil {
		return nil, err
	}
	k.used(c)
	return fields{
		"KeyId": k.arn, "SharedSecret": secret, "KeyAgreementAlgorithm": *in.KeyAgreementAlgorithm, "KeyOrigin": k.origin,
	}, nil
}

// agree does elliptic-curve Diffie-Hellman with somebody's public key.
func (k *key) agree(spki []byte) ([]byte, error) {
	parsed, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, err
	}
	theirs, ok := parsed.(*ecdsa.PublicKey)
	if !ok || theirs.Curve != curves[k.spec.name] {
		return nil, errors.New("a key of another kind")
	}
	public, err := theirs.ECDH()
	if err != nil {
		return nil, err
	}
	private, err := k.current().private.(*ecdsa.PrivateKey).ECDH()
	if err != nil {
		return nil, err
	}
	return private.ECDH(public)
}

type generateDataKeyPairInput struct {
	KeyId             *string `required:"" len:"1,2048"`
	KeyPairSpec       *string `required:"" enum:"RSA_2048 RSA_3072 RSA_4096 ECC_NIST_P256 ECC_NIST_P384 ECC_NIST_P521 ECC_SECG_P256K1 SM2 ECC_NIST_EDWARDS25519"`
	EncryptionContext map[string]string
	GrantTokens       []string `len:"0,10" each:"1,8192"`
	DryRun            bool

	private crypto.Signer
	pkcs8   []byte
}

// prepare makes the pair, which takes time.
func (in *generateDataKeyPairInput) prepare(*Sim) (err error) {
	if *in.KeyPairSpec == "SM2" {
		return fail("UnsupportedOperationException", "Key pairs of spec SM2 are for China Regions only.")
	}
	if !in.DryRun {
		in.private, in.pkcs8, err = newPrivate(*in.KeyPairSpec)
	}
	return err
}

// generateDataKeyPair is GenerateDataKeyPair and
// GenerateDataKeyPairWithoutPlaintext.
func (c *call) generateDataKeyPair(in *generateDataKeyPairInput) (any, error) {
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
	spki, err := marshalPublic(in.private.Public())
	if err != nil {
		return nil, err
	}
	k.used(c)
	out := fields{
		"KeyId": k.arn, "KeyMaterialId": k.current().id, "KeyPairSpec": *in.KeyPairSpec,
		"PublicKey": spki, "PrivateKeyCiphertextBlob": k.seal(in.pkcs8, in.EncryptionContext),
	}
	if c.request.Operation == "GenerateDataKeyPair" {
		out["PrivateKeyPlaintext"] = in.pkcs8
	}
	return out, nil
}

// readyForDataKeys checks that a key can make data keys: that takes a
// symmetric encryption key.
func (c *call) readyForDataKeys(k *key) error {
	if err := c.ready(k, encryptDecrypt); err != nil {
		return err
	}
	if k.spec.kind != symmetricKey {
		return fail("InvalidKeyUsageException", "%s key spec is %s which is not valid for %s.", k.arn, k.spec.name, c.request.Operation)
	}
	return nil
}

type generateRandomInput struct {
	NumberOfBytes    *int64  `range:"1,1024"`
	CustomKeyStoreId *string `len:"1,64"`
}

func (c *call) generateRandom(in *generateRandomInput) (any, error) {
	switch {
	case in.CustomKeyStoreId != nil:
		return nil, fail("CustomKeyStoreNotFoundException", "awssim has no custom key stores.")
	case in.NumberOfBytes == nil:
		return nil, fail("ValidationException", "NumberOfBytes is required.")
	}
	return fields{"Plaintext": randomBytes(int(*in.NumberOfBytes))}, nil
}
