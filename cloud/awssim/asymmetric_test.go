package awssim_test

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"hash"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"byokd/cloud/awssim"
	"byokd/cloud/awssim/internal/keywrap"
	"byokd/cloud/awssim/internal/secp256k1"
)

// A pair is a private key of a test, and its encodings.
type pair struct{ pkcs8, spki []byte }

func newPair(t *testing.T, spec types.KeySpec) pair {
	t.Helper()
	var private crypto.Signer
	switch spec {
	case types.KeySpecRsa2048:
		private = must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 2048))
	case types.KeySpecEccNistP256:
		private = must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	case types.KeySpecEccNistP384:
		private = must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	case types.KeySpecEccNistP521:
		private = must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))
	case types.KeySpecEccNistEdwards25519:
		private = ed25519.NewKeyFromSeed(randomBytes(32))
	case types.KeySpecEccSecgP256k1:
		k := secp256k1.Generate()
		return pair{must[[]byte](t)(k.MarshalPKCS8()), must[[]byte](t)(k.MarshalPKIX())}
	}
	return pair{must[[]byte](t)(x509.MarshalPKCS8PrivateKey(private)), must[[]byte](t)(x509.MarshalPKIXPublicKey(private.Public()))}
}

// wrapAs wraps material by an algorithm of KMS.
func wrapAs(t *testing.T, algorithm types.AlgorithmSpec, publicKey, material []byte) []byte {
	t.Helper()
	switch algorithm {
	case types.AlgorithmSpecRsaesOaepSha1:
		return wrap(t, publicKey, material, sha1.New())
	case types.AlgorithmSpecRsaesOaepSha256:
		return wrap(t, publicKey, material, sha256.New())
	}
	var h hash.Hash = sha1.New()
	if algorithm == types.AlgorithmSpecRsaAesKeyWrapSha256 {
		h = sha256.New()
	}
	key := randomBytes(32)
	return append(wrap(t, publicKey, key, h), must[[]byte](t)(keywrap.Wrap(key, material))...)
}

// importAs imports with a wrapping algorithm.
func (f *fixture) importAs(id string, algorithm types.AlgorithmSpec, material []byte) (*kms.ImportKeyMaterialOutput, error) {
	f.t.Helper()
	p := f.parameters(id, algorithm)
	return f.kms.ImportKeyMaterial(f.t.Context(), &kms.ImportKeyMaterialInput{
		KeyId: &id, ImportToken: p.ImportToken, EncryptedKeyMaterial: wrapAs(f.t, algorithm, p.PublicKey, material),
		ExpirationModel: types.ExpirationModelTypeKeyMaterialDoesNotExpire,
	})
}

func (f *fixture) createAs(spec types.KeySpec, usage types.KeyUsageType, origin types.OriginType) *types.KeyMetadata {
	f.t.Helper()
	return must[*kms.CreateKeyOutput](f.t)(f.kms.CreateKey(f.t.Context(), &kms.CreateKeyInput{KeySpec: spec, KeyUsage: usage, Origin: origin})).KeyMetadata
}

func TestAsymmetricImport(t *testing.T) {
	const sign, encrypt = types.KeyUsageTypeSignVerify, types.KeyUsageTypeEncryptDecrypt
	for _, test := range []struct {
		spec      types.KeySpec
		usage     types.KeyUsageType
		algorithm types.AlgorithmSpec
	}{
		{types.KeySpecRsa2048, sign, types.AlgorithmSpecRsaAesKeyWrapSha256},
		{types.KeySpecRsa2048, encrypt, types.AlgorithmSpecRsaAesKeyWrapSha1},
		{types.KeySpecEccNistP256, sign, types.AlgorithmSpecRsaesOaepSha256},
		{types.KeySpecEccNistP384, sign, types.AlgorithmSpecRsaesOaepSha1},
		{types.KeySpecEccNistP521, sign, types.AlgorithmSpecRsaAesKeyWrapSha256},
		{types.KeySpecEccSecgP256k1, sign, types.AlgorithmSpecRsaesOaepSha1},
		{types.KeySpecEccSecgP256k1, sign, types.AlgorithmSpecRsaAesKeyWrapSha1},
		{types.KeySpecEccNistEdwards25519, sign, types.AlgorithmSpecRsaesOaepSha256},
	} {
		t.Run(string(test.spec)+" "+string(test.usage), func(t *testing.T) {
			f, ctx := start(t, awssim.Options{}), t.Context()
			key := f.createAs(test.spec, test.usage, types.OriginTypeExternal)
			if key.KeyState != types.KeyStatePendingImport || len(key.SigningAlgorithms)+len(key.EncryptionAlgorithms) == 0 {
				t.Errorf("created %+v", key)
			}
			mine, other := newPair(t, test.spec), newPair(t, test.spec)
			out := must[*kms.ImportKeyMaterialOutput](t)(f.importAs(*key.KeyId, test.algorithm, mine.pkcs8))
			if out.KeyMaterialId != nil || f.describe(*key.KeyId).CurrentKeyMaterialId != nil {
				t.Error("an asymmetric key shows a material ID")
			}
			public := must[*kms.GetPublicKeyOutput](t)(f.kms.GetPublicKey(ctx, &kms.GetPublicKeyInput{KeyId: key.KeyId}))
			if !bytes.Equal(public.PublicKey, mine.spki) || public.KeySpec != test.spec || public.KeyUsage != test.usage {
				t.Errorf("the public key is %+v", public)
			}
			for _, algorithm := range public.SigningAlgorithms {
				f.signs(*key.KeyId, algorithm)
			}
			for _, algorithm := range public.EncryptionAlgorithms {
				f.encrypts(*key.KeyId, algorithm)
			}
			must[*kms.DeleteImportedKeyMaterialOutput](t)(f.kms.DeleteImportedKeyMaterial(ctx, &kms.DeleteImportedKeyMaterialInput{KeyId: key.KeyId}))
			_, err := f.kms.GetPublicKey(ctx, &kms.GetPublicKeyInput{KeyId: key.KeyId})
			wantError(t, err, "KMSInvalidStateException", *key.Arn+" is pending import.")
			_, err = f.importAs(*key.KeyId, test.algorithm, other.pkcs8)
			wantCode(t, err, "IncorrectKeyMaterialException")
			_, err = f.importAs(*key.KeyId, test.algorithm, randomBytes(32))
			wantCode(t, err, "IncorrectKeyMaterialException")
			must[*kms.ImportKeyMaterialOutput](t)(f.importAs(*key.KeyId, test.algorithm, mine.pkcs8))
		})
	}
}

// signs checks that a key signs with an algorithm, and verifies.
func (f *fixture) signs(id string, algorithm types.SigningAlgorithmSpec) {
	f.t.Helper()
	ctx, kind, text := f.t.Context(), types.MessageTypeRaw, []byte("message")
	if algorithm == types.SigningAlgorithmSpecEd25519PhSha512 {
		kind, text = types.MessageTypeDigest, randomBytes(64)
	}
	sig := must[*kms.SignOutput](f.t)(f.kms.Sign(ctx, &kms.SignInput{KeyId: &id, Message: text, MessageType: kind, SigningAlgorithm: algorithm}))
	in := &kms.VerifyInput{KeyId: &id, Message: text, MessageType: kind, SigningAlgorithm: algorithm, Signature: sig.Signature}
	if out := must[*kms.VerifyOutput](f.t)(f.kms.Verify(ctx, in)); !out.SignatureValid || out.SigningAlgorithm != algorithm {
		f.t.Errorf("verified %+v", out)
	}
	in.Message = bytes.Clone(text)
	in.Message[0] ^= 1
	_, err := f.kms.Verify(ctx, in)
	wantError(f.t, err, "KMSInvalidSignatureException", "")
}

func (f *fixture) encrypts(id string, algorithm types.EncryptionAlgorithmSpec) {
	f.t.Helper()
	ctx := f.t.Context()
	enc := must[*kms.EncryptOutput](f.t)(f.kms.Encrypt(ctx, &kms.EncryptInput{KeyId: &id, Plaintext: []byte("x"), EncryptionAlgorithm: algorithm}))
	dec := must[*kms.DecryptOutput](f.t)(f.kms.Decrypt(ctx, &kms.DecryptInput{KeyId: &id, CiphertextBlob: enc.CiphertextBlob, EncryptionAlgorithm: algorithm}))
	if string(dec.Plaintext) != "x" || dec.EncryptionAlgorithm != algorithm || dec.KeyMaterialId != nil {
		f.t.Errorf("decrypted %+v", dec)
	}
	_, err := f.kms.Encrypt(ctx, &kms.EncryptInput{KeyId: &id, Plaintext: randomBytes(300), EncryptionAlgorithm: algorithm})
	wantCode(f.t, err, "ValidationException")
	_, err = f.kms.Decrypt(ctx, &kms.DecryptInput{KeyId: &id, CiphertextBlob: enc.CiphertextBlob[1:], EncryptionAlgorithm: algorithm})
	wantError(f.t, err, "InvalidCiphertextException", "")
	_, err = f.kms.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: enc.CiphertextBlob, EncryptionAlgorithm: algorithm})
	wantCode(f.t, err, "ValidationException")
}

func TestWrappingAlgorithms(t *testing.T) {
	f := start(t, awssim.Options{})
	oaep := []types.AlgorithmSpec{types.AlgorithmSpecRsaesOaepSha1, types.AlgorithmSpecRsaesOaepSha256}
	both := []types.AlgorithmSpec{types.AlgorithmSpecRsaAesKeyWrapSha1, types.AlgorithmSpecRsaAesKeyWrapSha256}
	never := []types.AlgorithmSpec{types.AlgorithmSpecRsaesPkcs1V15, types.AlgorithmSpecSm2pke}
	for _, test := range []struct {
		spec     types.KeySpec
		usage    types.KeyUsageType
		oaep, kw bool
	}{
		{types.KeySpecSymmetricDefault, types.KeyUsageTypeEncryptDecrypt, true, false},
		{types.KeySpecHmac256, types.KeyUsageTypeGenerateVerifyMac, true, false},
		{types.KeySpecRsa3072, types.KeyUsageTypeSignVerify, false, true},
		{types.KeySpecEccNistP256, types.KeyUsageTypeKeyAgreement, true, true},
		{types.KeySpecEccNistP521, types.KeyUsageTypeSignVerify, false, true}, // too long for RSA_2048
	} {
		key := f.createAs(test.spec, test.usage, types.OriginTypeExternal)
		try := func(algorithms []types.AlgorithmSpec, good bool) {
			for _, algorithm := range algorithms {
				_, err := f.kms.GetParametersForImport(t.Context(), &kms.GetParametersForImportInput{
					KeyId: key.KeyId, WrappingAlgorithm: algorithm, WrappingKeySpec: types.WrappingKeySpecRsa2048,
				})
				if good != (err == nil) {
					t.Errorf("%s with %s: %v", test.spec, algorithm, err)
				} else if err != nil {
					wantCode(t, err, "UnsupportedOperationException")
				}
			}
		}
		try(oaep, test.oaep)
		try(both, test.kw)
		try(never, false)
	}
}

func TestAsymmetricOfKMS(t *testing.T) {
	f, ctx := start(t, awssim.Options{}), t.Context()
	signing := f.createAs(types.KeySpecEccNistP256, types.KeyUsageTypeSignVerify, "")
	f.signs(*signing.KeyId, types.SigningAlgorithmSpecEcdsaSha256)
	_, err := f.kms.Encrypt(ctx, &kms.EncryptInput{KeyId: signing.KeyId, Plaintext: []byte("x")})
	wantError(t, err, "InvalidKeyUsageException", *signing.Arn+" key usage is SIGN_VERIFY which is not valid for Encrypt.")
	_, err = f.kms.Sign(ctx, &kms.SignInput{KeyId: signing.KeyId, Message: []byte("x"), SigningAlgorithm: types.SigningAlgorithmSpecEcdsaSha384})
	wantCode(t, err, "InvalidKeyUsageException")
	_, err = f.kms.Sign(ctx, &kms.SignInput{KeyId: signing.KeyId, Message: []byte("x"), MessageType: types.MessageTypeDigest, SigningAlgorithm: types.SigningAlgorithmSpecEcdsaSha256})
	wantError(t, err, "ValidationException", "Digest is invalid length for algorithm ECDSA_SHA_256.")
	_, err = f.kms.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: signing.KeyId})
	wantError(t, err, "UnsupportedOperationException", "")

	agreeing := f.createAs(types.KeySpecEccNistP256, types.KeyUsageTypeKeyAgreement, "")
	public := must[*kms.GetPublicKeyOutput](t)(f.kms.GetPublicKey(ctx, &kms.GetPublicKeyInput{KeyId: agreeing.KeyId}))
	theirs := must[*ecdsa.PublicKey](t)(must[any](t)(x509.ParsePKIXPublicKey(public.PublicKey)).(*ecdsa.PublicKey), nil)
	mine := must[*ecdh.PrivateKey](t)(ecdh.P256().GenerateKey(rand.Reader))
	secret := must[[]byte](t)(mine.ECDH(must[*ecdh.PublicKey](t)(theirs.ECDH())))
	derived := must[*kms.DeriveSharedSecretOutput](t)(f.kms.DeriveSharedSecret(ctx, &kms.DeriveSharedSecretInput{
		KeyId: agreeing.KeyId, KeyAgreementAlgorithm: types.KeyAgreementAlgorithmSpecEcdh, PublicKey: must[[]byte](t)(x509.MarshalPKIXPublicKey(mine.PublicKey())),
	}))
	if !bytes.Equal(derived.SharedSecret, secret) || derived.KeyOrigin != types.OriginTypeAwsKms {
		t.Errorf("derived %+v", derived)
	}
	_, err = f.kms.DeriveSharedSecret(ctx, &kms.DeriveSharedSecretInput{KeyId: agreeing.KeyId, KeyAgreementAlgorithm: "ECDH", PublicKey: []byte("x")})
	wantCode(t, err, "ValidationException")

	for _, bad := range []kms.CreateKeyInput{
		{KeySpec: types.KeySpecEccSecgP256k1, KeyUsage: types.KeyUsageTypeKeyAgreement},
		{KeySpec: types.KeySpecRsa2048, KeyUsage: types.KeyUsageTypeGenerateVerifyMac},
		{KeySpec: types.KeySpecRsa2048},
	} {
		_, err := f.kms.CreateKey(ctx, &bad)
		wantCode(t, err, "ValidationException")
	}
	_, err = f.kms.CreateKey(ctx, &kms.CreateKeyInput{KeySpec: types.KeySpecMlDsa44, KeyUsage: types.KeyUsageTypeSignVerify})
	wantCode(t, err, "UnsupportedOperationException")
}

func TestDataKeyPair(t *testing.T) {
	f, ctx := start(t, awssim.Options{}), t.Context()
	key, _ := f.imported()
	for _, spec := range []types.DataKeyPairSpec{types.DataKeyPairSpecEccNistP256, types.DataKeyPairSpecEccSecgP256k1, types.DataKeyPairSpecEccNistEdwards25519} {
		out := must[*kms.GenerateDataKeyPairOutput](t)(f.kms.GenerateDataKeyPair(ctx, &kms.GenerateDataKeyPairInput{KeyId: key.KeyId, KeyPairSpec: spec}))
		dec := must[*kms.DecryptOutput](t)(f.kms.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: out.PrivateKeyCiphertextBlob}))
		if !bytes.Equal(dec.Plaintext, out.PrivateKeyPlaintext) || out.KeyPairSpec != spec || *out.KeyMaterialId != *key.CurrentKeyMaterialId {
			t.Errorf("%s: %+v", spec, out)
		}
	}
	_, err := f.kms.GenerateDataKeyPair(ctx, &kms.GenerateDataKeyPairInput{KeyId: key.KeyId, KeyPairSpec: types.DataKeyPairSpecRsa2048, DryRun: aws.Bool(true)})
	wantError(t, err, "DryRunOperationException", "The request would have succeeded, but the DryRun option is set.")
	without := must[*kms.GenerateDataKeyPairWithoutPlaintextOutput](t)(f.kms.GenerateDataKeyPairWithoutPlaintext(ctx, &kms.GenerateDataKeyPairWithoutPlaintextInput{
		KeyId: key.KeyId, KeyPairSpec: types.DataKeyPairSpecEccNistP384,
	}))
	if len(without.PublicKey) == 0 || len(without.PrivateKeyCiphertextBlob) == 0 {
		t.Errorf("made %+v", without)
	}
	if random := must[*kms.GenerateRandomOutput](t)(f.kms.GenerateRandom(ctx, &kms.GenerateRandomInput{NumberOfBytes: aws.Int32(5)})); len(random.Plaintext) != 5 {
		t.Errorf("%d random bytes", len(random.Plaintext))
	}
	_, err = f.kms.GenerateRandom(ctx, &kms.GenerateRandomInput{NumberOfBytes: aws.Int32(0)})
	wantError(t, err, "ValidationException", "1 validation error detected: Value '0' at 'numberOfBytes' failed to satisfy constraint: Member must have value greater than or equal to 1")
}
