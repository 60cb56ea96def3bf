package awssim_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"hash"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/resourcegroupstaggingapi"
	"github.com/aws/aws-sdk-go-v2/service/servicequotas"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"

	"byokd/cloud/awssim"
)

const (
	account = awssim.DefaultAccount
	region  = "eu-central-1"
)

// pairs are shared by all tests, since making them takes time.
var pairs = awssim.NewPairs(1)

// A fixture is a simulator behind HTTP, with a client of each service.
type fixture struct {
	*awssim.Sim
	t       *testing.T
	url     string
	config  aws.Config
	kms     *kms.Client
	events  *eventbridge.Client
	sts     *sts.Client
	tagging *resourcegroupstaggingapi.Client
	quotas  *servicequotas.Client
}

func start(t *testing.T, o awssim.Options) *fixture {
	t.Helper()
	if o.Pairs == nil {
		o.Pairs = pairs
	}
	return serve(t, awssim.New(o))
}

func serve(t *testing.T, sim *awssim.Sim) *fixture {
	t.Helper()
	server := httptest.NewServer(sim)
	t.Cleanup(server.Close)
	return (&fixture{Sim: sim, t: t, url: server.URL}).with("AKIAEXAMPLE", "secret", "", region)
}

// with returns the fixture with clients of other credentials or another Region.
func (f *fixture) with(accessKey, secret, token, region string) *fixture {
	g := *f
	transport := &http.Transport{}
	f.t.Cleanup(transport.CloseIdleConnections)
	g.config = aws.Config{
		Region:       region,
		BaseEndpoint: &f.url,
		Credentials:  credentials.NewStaticCredentialsProvider(accessKey, secret, token),
		HTTPClient:   &http.Client{Transport: transport},
		Retryer:      func() aws.Retryer { return aws.NopRetryer{} },
	}
	g.kms = kms.NewFromConfig(g.config)
	g.events = eventbridge.NewFromConfig(g.config)
	g.sts = sts.NewFromConfig(g.config)
	g.tagging = resourcegroupstaggingapi.NewFromConfig(g.config)
	g.quotas = servicequotas.NewFromConfig(g.config)
	return &g
}

// must fails the test if err is set. It is used as must(t)(f.kms.Op(…)).
func must[T any](t *testing.T) func(T, error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// wantError checks code and message of an AWS error.
func wantError(t *testing.T, err error, code, message string) {
	t.Helper()
	e, ok := errors.AsType[smithy.APIError](err)
	if !ok {
		t.Fatalf("got error %v, want %s", err, code)
	}
	if e.ErrorCode() != code || e.ErrorMessage() != message {
		t.Errorf("got %s: %q\nwant %s: %q", e.ErrorCode(), e.ErrorMessage(), code, message)
	}
}

// wantCode checks the code of an AWS error.
func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	if e, ok := errors.AsType[smithy.APIError](err); !ok || e.ErrorCode() != code {
		t.Errorf("got error %v, want %s", err, code)
	}
}

// create makes a key.
func (f *fixture) create(origin types.OriginType) *types.KeyMetadata {
	f.t.Helper()
	return must[*kms.CreateKeyOutput](f.t)(f.kms.CreateKey(f.t.Context(), &kms.CreateKeyInput{Origin: origin})).KeyMetadata
}

// imported makes a key with material, which does not expire.
func (f *fixture) imported() (*types.KeyMetadata, []byte) {
	f.t.Helper()
	key, material := f.create(types.OriginTypeExternal), randomBytes(32)
	must[*kms.ImportKeyMaterialOutput](f.t)(f.importInto(*key.KeyId, material, func(in *kms.ImportKeyMaterialInput) {}))
	return f.describe(*key.KeyId), material
}

func (f *fixture) describe(id string) *types.KeyMetadata {
	f.t.Helper()
	return must[*kms.DescribeKeyOutput](f.t)(f.kms.DescribeKey(f.t.Context(), &kms.DescribeKeyInput{KeyId: &id})).KeyMetadata
}

// parameters gets a wrapping key of 2048 bits and its token.
func (f *fixture) parameters(id string, algorithm types.AlgorithmSpec) *kms.GetParametersForImportOutput {
	f.t.Helper()
	return must[*kms.GetParametersForImportOutput](f.t)(f.kms.GetParametersForImport(f.t.Context(), &kms.GetParametersForImportInput{
		KeyId: &id, WrappingAlgorithm: algorithm, WrappingKeySpec: types.WrappingKeySpecRsa2048,
	}))
}

// wrap wraps material as a client would.
func wrap(t *testing.T, publicKey, material []byte, h hash.Hash) []byte {
	t.Helper()
	public := must[any](t)(x509.ParsePKIXPublicKey(publicKey)).(*rsa.PublicKey)
	return must[[]byte](t)(rsa.EncryptOAEP(h, rand.Reader, public, material, nil))
}

// importInto imports material that does not expire, with fresh parameters,
// unless change makes it otherwise.
func (f *fixture) importInto(id string, material []byte, change func(*kms.ImportKeyMaterialInput)) (*kms.ImportKeyMaterialOutput, error) {
	f.t.Helper()
	p := f.parameters(id, types.AlgorithmSpecRsaesOaepSha256)
	in := &kms.ImportKeyMaterialInput{
		KeyId:                &id,
		ImportToken:          p.ImportToken,
		EncryptedKeyMaterial: wrap(f.t, p.PublicKey, material, sha256.New()),
		ExpirationModel:      types.ExpirationModelTypeKeyMaterialDoesNotExpire,
	}
	change(in)
	return f.kms.ImportKeyMaterial(f.t.Context(), in)
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// until returns an import's change to material that expires after d.
func (f *fixture) until(d time.Duration) func(*kms.ImportKeyMaterialInput) {
	return func(in *kms.ImportKeyMaterialInput) {
		in.ExpirationModel = types.ExpirationModelTypeKeyMaterialExpires
		in.ValidTo = aws.Time(f.Now().Add(d))
	}
}

func TestImport(t *testing.T) {
	for _, test := range []struct {
		algorithm types.AlgorithmSpec
		hash      func() hash.Hash
	}{
		{types.AlgorithmSpecRsaesOaepSha256, sha256.New},
		{types.AlgorithmSpecRsaesOaepSha1, sha1.New},
	} {
		t.Run(string(test.algorithm), func(t *testing.T) {
			f, ctx := start(t, awssim.Options{}), t.Context()
			key := f.create(types.OriginTypeExternal)
			if key.Enabled || key.KeyState != types.KeyStatePendingImport || key.CurrentKeyMaterialId != nil || key.ExpirationModel != "" {
				t.Errorf("new key is %v, enabled %v", key.KeyState, key.Enabled)
			}
			p := f.parameters(*key.KeyId, test.algorithm)
			if *p.KeyId != *key.Arn {
				t.Errorf("KeyId is %s, want the ARN", *p.KeyId)
			}
			if d := time.Until(*p.ParametersValidTo); d < 23*time.Hour || d > 24*time.Hour {
				t.Errorf("parameters are valid for %v", d)
			}
			material := randomBytes(32)
			out := must[*kms.ImportKeyMaterialOutput](t)(f.kms.ImportKeyMaterial(ctx, &kms.ImportKeyMaterialInput{
				KeyId: key.KeyId, ImportToken: p.ImportToken,
				EncryptedKeyMaterial: wrap(t, p.PublicKey, material, test.hash()),
				ExpirationModel:      types.ExpirationModelTypeKeyMaterialDoesNotExpire,
			}))
			after := f.describe(*key.KeyId)
			if !after.Enabled || after.KeyState != types.KeyStateEnabled || *after.CurrentKeyMaterialId != *out.KeyMaterialId ||
				after.ExpirationModel != types.ExpirationModelTypeKeyMaterialDoesNotExpire || after.ValidTo != nil {
				t.Errorf("after import the key is %+v", after)
			}
			if got, want := f.Keys(account, region)[0].Materials[0].Fingerprint, hexSHA256(material); got != want {
				t.Errorf("fingerprint %s, want %s", got, want)
			}

			enc := must[*kms.EncryptOutput](t)(f.kms.Encrypt(ctx, &kms.EncryptInput{
				KeyId: key.KeyId, Plaintext: []byte("plain"), EncryptionContext: map[string]string{"a": "b"},
			}))
			dec := must[*kms.DecryptOutput](t)(f.kms.Decrypt(ctx, &kms.DecryptInput{
				CiphertextBlob: enc.CiphertextBlob, EncryptionContext: map[string]string{"a": "b"},
			}))
			if string(dec.Plaintext) != "plain" || *dec.KeyMaterialId != *out.KeyMaterialId || *dec.KeyId != *key.Arn {
				t.Errorf("decrypted to %+v", dec)
			}
			for _, context := range []map[string]string{nil, {"a": "c"}, {"a": "b", "c": "d"}} {
				_, err := f.kms.Decrypt(ctx, &kms.DecryptInput{KeyId: key.KeyId, CiphertextBlob: enc.CiphertextBlob, EncryptionContext: context})
				wantError(t, err, "InvalidCiphertextException", "")
			}

			must[*kms.DeleteImportedKeyMaterialOutput](t)(f.kms.DeleteImportedKeyMaterial(ctx, &kms.DeleteImportedKeyMaterialInput{KeyId: key.KeyId}))
			gone := f.describe(*key.KeyId)
			if gone.Enabled || gone.KeyState != types.KeyStatePendingImport || *gone.CurrentKeyMaterialId != *out.KeyMaterialId || gone.ExpirationModel != "" {
				t.Errorf("after deletion the key is %+v", gone)
			}
			_, err := f.importInto(*key.KeyId, randomBytes(32), func(*kms.ImportKeyMaterialInput) {})
			wantCode(t, err, "IncorrectKeyMaterialException")
			again := must[*kms.ImportKeyMaterialOutput](t)(f.importInto(*key.KeyId, material, func(*kms.ImportKeyMaterialInput) {}))
			if *again.KeyMaterialId != *out.KeyMaterialId {
				t.Errorf("the same bytes have ID %s, then %s", *out.KeyMaterialId, *again.KeyMaterialId)
			}
			must[*kms.DecryptOutput](t)(f.kms.Decrypt(ctx, &kms.DecryptInput{
				CiphertextBlob: enc.CiphertextBlob, EncryptionContext: map[string]string{"a": "b"},
			}))
		})
	}
}

func TestImportRefused(t *testing.T) {
	f := start(t, awssim.Options{})
	other := f.create(types.OriginTypeExternal)
	for _, test := range []struct {
		name   string
		size   int
		change func(in *kms.ImportKeyMaterialInput)
		code   string
	}{
		{"16 bytes", 16, func(*kms.ImportKeyMaterialInput) {}, "IncorrectKeyMaterialException"},
		{"33 bytes", 33, func(*kms.ImportKeyMaterialInput) {}, "IncorrectKeyMaterialException"},
		{"damaged", 32, func(in *kms.ImportKeyMaterialInput) { in.EncryptedKeyMaterial[0] ^= 1 }, "InvalidCiphertextException"},
		{"cut", 32, func(in *kms.ImportKeyMaterialInput) { in.EncryptedKeyMaterial = in.EncryptedKeyMaterial[1:] }, "InvalidCiphertextException"},
		{"wrong hash", 32, func(in *kms.ImportKeyMaterialInput) {
			p := f.parameters(*in.KeyId, types.AlgorithmSpecRsaesOaepSha1)
			in.ImportToken, in.EncryptedKeyMaterial = p.ImportToken, wrap(t, p.PublicKey, randomBytes(32), sha256.New())
		}, "InvalidCiphertextException"},
		{"token of another key", 32, func(in *kms.ImportKeyMaterialInput) {
			in.ImportToken = f.parameters(*other.KeyId, types.AlgorithmSpecRsaesOaepSha256).ImportToken
		}, "InvalidImportTokenException"},
		{"damaged token", 32, func(in *kms.ImportKeyMaterialInput) { in.ImportToken[40] ^= 1 }, "InvalidImportTokenException"},
		{"short token", 32, func(in *kms.ImportKeyMaterialInput) { in.ImportToken = []byte{1} }, "InvalidImportTokenException"},
		{"ValidTo without model", 32, func(in *kms.ImportKeyMaterialInput) { in.ValidTo = aws.Time(time.Now().Add(time.Hour)) }, "ValidationException"},
		{"ValidTo past", 32, f.until(-time.Second), "ValidationException"},
		{"ValidTo too far", 32, f.until(365*24*time.Hour + time.Minute), "ValidationException"},
		{"an ID for new material", 32, func(in *kms.ImportKeyMaterialInput) {
			in.ImportType, in.KeyMaterialId = types.ImportTypeNewKeyMaterial, aws.String(hexSHA256(nil))
		}, "ValidationException"},
		{"existing where there is none", 32, func(in *kms.ImportKeyMaterialInput) {
			in.ImportType = types.ImportTypeExistingKeyMaterial
		}, "IncorrectKeyMaterialException"},
	} {
		t.Run(test.name, func(t *testing.T) {
			key := f.create(types.OriginTypeExternal)
			_, err := f.importInto(*key.KeyId, randomBytes(test.size), test.change)
			wantCode(t, err, test.code)
			if got := f.describe(*key.KeyId).KeyState; got != types.KeyStatePendingImport {
				t.Errorf("the key is %s", got)
			}
		})
	}
}

func TestImportToken(t *testing.T) {
	f := start(t, awssim.Options{})
	key := f.create(types.OriginTypeExternal)
	p := f.parameters(*key.KeyId, types.AlgorithmSpecRsaesOaepSha256)
	in := &kms.ImportKeyMaterialInput{
		KeyId: key.KeyId, ImportToken: p.ImportToken, EncryptedKeyMaterial: wrap(t, p.PublicKey, randomBytes(32), sha256.New()),
	}
	_, err := f.kms.ImportKeyMaterial(t.Context(), in)
	wantError(t, err, "ValidationException", "A validTo date must be set if the ExpirationModel is KEY_MATERIAL_EXPIRES")
	in.ExpirationModel = types.ExpirationModelTypeKeyMaterialDoesNotExpire

	must[*kms.ImportKeyMaterialOutput](t)(f.kms.ImportKeyMaterial(t.Context(), in)) // the failure before did not use it up
	_, err = f.kms.ImportKeyMaterial(t.Context(), in)
	wantCode(t, err, "InvalidImportTokenException")

	in.ImportToken = f.parameters(*key.KeyId, types.AlgorithmSpecRsaesOaepSha256).ImportToken
	f.Advance(24 * time.Hour)
	_, err = f.kms.ImportKeyMaterial(t.Context(), in)
	wantCode(t, err, "ExpiredImportTokenException")
}

func TestWrappingRefused(t *testing.T) {
	f := start(t, awssim.Options{})
	key := f.create(types.OriginTypeExternal)
	for _, algorithm := range []types.AlgorithmSpec{
		types.AlgorithmSpecRsaesPkcs1V15, types.AlgorithmSpecRsaAesKeyWrapSha1, types.AlgorithmSpecRsaAesKeyWrapSha256, types.AlgorithmSpecSm2pke,
	} {
		_, err := f.kms.GetParametersForImport(t.Context(), &kms.GetParametersForImportInput{
			KeyId: key.KeyId, WrappingAlgorithm: algorithm, WrappingKeySpec: types.WrappingKeySpecRsa2048,
		})
		wantCode(t, err, "UnsupportedOperationException")
	}
}

func TestExpiry(t *testing.T) {
	f, ctx := start(t, awssim.Options{}), t.Context()
	key, material := f.imported()
	must[*kms.ImportKeyMaterialOutput](t)(f.importInto(*key.KeyId, material, f.until(2*time.Hour)))
	if got := f.describe(*key.KeyId); got.ExpirationModel != types.ExpirationModelTypeKeyMaterialExpires || got.ValidTo == nil {
		t.Fatalf("ExpirationModel %s, ValidTo %v", got.ExpirationModel, got.ValidTo)
	}
	must[*kms.DisableKeyOutput](t)(f.kms.DisableKey(ctx, &kms.DisableKeyInput{KeyId: key.KeyId}))
	f.Advance(time.Hour)
	if got := f.describe(*key.KeyId).KeyState; got != types.KeyStateDisabled {
		t.Errorf("before ValidTo the key is %s", got)
	}
	f.Advance(time.Hour)
	if got := f.describe(*key.KeyId); got.KeyState != types.KeyStatePendingImport || got.ExpirationModel != "" || got.ValidTo != nil {
		t.Errorf("after ValidTo the key is %+v", got)
	}
	must[*kms.ImportKeyMaterialOutput](t)(f.importInto(*key.KeyId, material, f.until(time.Hour)))
	if got := f.describe(*key.KeyId).KeyState; got != types.KeyStateEnabled {
		t.Errorf("a key whose material came back is %s, want Enabled whatever it was before", got)
	}
}

func TestSeveralMaterials(t *testing.T) {
	f, ctx := start(t, awssim.Options{}), t.Context()
	key, first := f.imported()
	id := *key.KeyId
	asNew := func(in *kms.ImportKeyMaterialInput) {
		in.ImportType = types.ImportTypeNewKeyMaterial
		in.KeyMaterialDescription = aws.String("second one")
	}
	old := must[*kms.EncryptOutput](t)(f.kms.Encrypt(ctx, &kms.EncryptInput{KeyId: &id, Plaintext: []byte("old")}))

	_, err := f.importInto(id, first, asNew)
	wantCode(t, err, "IncorrectKeyMaterialException")
	second := randomBytes(32)
	pending := must[*kms.ImportKeyMaterialOutput](t)(f.importInto(id, second, asNew))
	if got := *f.describe(id).CurrentKeyMaterialId; got != *key.CurrentKeyMaterialId {
		t.Errorf("current material is %s before the rotation", got)
	}
	_, err = f.importInto(id, randomBytes(32), asNew)
	e, ok := errors.AsType[*types.KMSInvalidStateException](err)
	if !ok {
		t.Fatalf("got %v, want KMSInvalidStateException", err)
	}
	if n := len(f.Keys(account, region)[0].Materials); n != 2 {
		t.Errorf("the key has %d materials", n)
	}
	if want := ") cannot be imported into KMS key " + *key.Arn + ", because another key material (id: " + *pending.KeyMaterialId + ") is pending rotation."; !strings.HasSuffix(e.ErrorMessage(), want) {
		t.Errorf("message %q does not end in %q", e.ErrorMessage(), want)
	}

	must[*kms.RotateKeyOnDemandOutput](t)(f.kms.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: &id}))
	if got := *f.describe(id).CurrentKeyMaterialId; got != *pending.KeyMaterialId {
		t.Errorf("current material is %s after the rotation", got)
	}
	dec := must[*kms.DecryptOutput](t)(f.kms.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: old.CiphertextBlob}))
	if *dec.KeyMaterialId != *key.CurrentKeyMaterialId {
		t.Errorf("old ciphertext is of material %s", *dec.KeyMaterialId)
	}
	list := must[*kms.ListKeyRotationsOutput](t)(f.kms.ListKeyRotations(ctx, &kms.ListKeyRotationsInput{KeyId: &id}))
	if len(list.Rotations) != 1 || list.Rotations[0].RotationType != types.RotationTypeOnDemand || *list.Rotations[0].KeyMaterialDescription != "second one" {
		t.Errorf("rotations: %+v", list.Rotations)
	}
	all := must[*kms.ListKeyRotationsOutput](t)(f.kms.ListKeyRotations(ctx, &kms.ListKeyRotationsInput{KeyId: &id, IncludeKeyMaterial: types.IncludeKeyMaterialAllKeyMaterial}))
	if len(all.Rotations) != 2 || all.Rotations[0].KeyMaterialState != types.KeyMaterialStateNonCurrent || all.Rotations[1].KeyMaterialState != types.KeyMaterialStateCurrent {
		t.Errorf("materials: %+v", all.Rotations)
	}

	// Any permanent material that is missing stops the whole key.
	must[*kms.DeleteImportedKeyMaterialOutput](t)(f.kms.DeleteImportedKeyMaterial(ctx, &kms.DeleteImportedKeyMaterialInput{KeyId: &id, KeyMaterialId: key.CurrentKeyMaterialId}))
	if got := f.describe(id).KeyState; got != types.KeyStatePendingImport {
		t.Errorf("without the first material the key is %s", got)
	}
	must[*kms.ImportKeyMaterialOutput](t)(f.importInto(id, first, func(*kms.ImportKeyMaterialInput) {}))
	if got := f.describe(id).KeyState; got != types.KeyStateEnabled {
		t.Errorf("with all material the key is %s", got)
	}
	// A pending one does not count.
	third := must[*kms.ImportKeyMaterialOutput](t)(f.importInto(id, randomBytes(32), asNew))
	must[*kms.DeleteImportedKeyMaterialOutput](t)(f.kms.DeleteImportedKeyMaterial(ctx, &kms.DeleteImportedKeyMaterialInput{KeyId: &id, KeyMaterialId: third.KeyMaterialId}))
	if got := f.describe(id).KeyState; got != types.KeyStateEnabled {
		t.Errorf("after the pending material went the key is %s", got)
	}
}

func TestRotationLimit(t *testing.T) {
	f := start(t, awssim.Options{})
	key := f.create(types.OriginTypeAwsKms)
	for range 25 {
		must[*kms.RotateKeyOnDemandOutput](t)(f.kms.RotateKeyOnDemand(t.Context(), &kms.RotateKeyOnDemandInput{KeyId: key.KeyId}))
	}
	_, err := f.kms.RotateKeyOnDemand(t.Context(), &kms.RotateKeyOnDemandInput{KeyId: key.KeyId})
	wantError(t, err, "LimitExceededException", "The on-demand rotations limit has been reached for the given keyId. "+
		"No more on-demand rotations can be performed for this key: "+*key.Arn)

	pages := kms.NewListKeyRotationsPaginator(f.kms, &kms.ListKeyRotationsInput{KeyId: key.KeyId, Limit: aws.Int32(10)})
	var ids []string
	for pages.HasMorePages() {
		for _, r := range must[*kms.ListKeyRotationsOutput](t)(pages.NextPage(t.Context())).Rotations {
			ids = append(ids, *r.KeyMaterialId)
		}
	}
	slices.Sort(ids)
	if n := len(slices.Compact(ids)); n != 25 {
		t.Errorf("%d rotations listed", n)
	}
}

func TestHMAC(t *testing.T) {
	f, ctx := start(t, awssim.Options{}), t.Context()
	key := must[*kms.CreateKeyOutput](t)(f.kms.CreateKey(ctx, &kms.CreateKeyInput{
		Origin: types.OriginTypeExternal, KeySpec: types.KeySpecHmac256, KeyUsage: types.KeyUsageTypeGenerateVerifyMac,
	})).KeyMetadata
	out := must[*kms.ImportKeyMaterialOutput](t)(f.importInto(*key.KeyId, randomBytes(64), func(*kms.ImportKeyMaterialInput) {}))
	if out.KeyMaterialId != nil || f.describe(*key.KeyId).CurrentKeyMaterialId != nil {
		t.Error("an HMAC key shows a material ID")
	}
	mac := must[*kms.GenerateMacOutput](t)(f.kms.GenerateMac(ctx, &kms.GenerateMacInput{KeyId: key.KeyId, Message: []byte("m"), MacAlgorithm: types.MacAlgorithmSpecHmacSha256}))
	must[*kms.VerifyMacOutput](t)(f.kms.VerifyMac(ctx, &kms.VerifyMacInput{KeyId: key.KeyId, Message: []byte("m"), Mac: mac.Mac, MacAlgorithm: types.MacAlgorithmSpecHmacSha256}))
	_, err := f.kms.VerifyMac(ctx, &kms.VerifyMacInput{KeyId: key.KeyId, Message: []byte("n"), Mac: mac.Mac, MacAlgorithm: types.MacAlgorithmSpecHmacSha256})
	wantError(t, err, "KMSInvalidMacException", "")
	_, err = f.kms.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("x")})
	wantError(t, err, "InvalidKeyUsageException", *key.Arn+" key usage is GENERATE_VERIFY_MAC which is not valid for Encrypt.")
	_, err = f.kms.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: key.KeyId})
	wantError(t, err, "UnsupportedOperationException", "")
}

// TestStates is the table of key states of the developer guide, for a key with
// imported material.
func TestStates(t *testing.T) {
	f, ctx := start(t, awssim.Options{}), t.Context()
	const (
		ok         = ""
		isDisabled = "DisabledException: ARN is disabled."
		isImport   = "KMSInvalidStateException: ARN is pending import."
		isDeletion = "KMSInvalidStateException: ARN is pending deletion."
		notPending = "KMSInvalidStateException: ARN is not pending deletion."
		unsupp     = "UnsupportedOperationException: ARN origin is EXTERNAL which is not valid for this operation."
		nothing    = "KMSInvalidStateException: No available key material pending rotation for the key: ARN."
	)
	err1 := func(_ any, err error) error { return err }
	source, _ := f.imported()
	must[*kms.CreateAliasOutput](t)(f.kms.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String("alias/moved"), TargetKeyId: source.KeyId}))
	sealed := must[*kms.EncryptOutput](t)(f.kms.Encrypt(ctx, &kms.EncryptInput{KeyId: source.KeyId, Plaintext: []byte("x")}))
	tags := []types.Tag{{TagKey: aws.String("a"), TagValue: aws.String("b")}}
	for _, test := range []struct {
		operation                                         string
		enabled, disabled, pendingDeletion, pendingImport string
		do                                                func(id *string) error
	}{
		{"GetParametersForImport", ok, ok, isDeletion, ok, func(id *string) error {
			return err1(f.kms.GetParametersForImport(ctx, &kms.GetParametersForImportInput{KeyId: id, WrappingAlgorithm: types.AlgorithmSpecRsaesOaepSha256, WrappingKeySpec: types.WrappingKeySpecRsa2048}))
		}},
		{"ImportKeyMaterial", "InvalidImportTokenException: ", "InvalidImportTokenException: ", isDeletion, "InvalidImportTokenException: ", func(id *string) error {
			return err1(f.kms.ImportKeyMaterial(ctx, &kms.ImportKeyMaterialInput{KeyId: id, ImportToken: []byte{1}, EncryptedKeyMaterial: []byte{1}, ExpirationModel: types.ExpirationModelTypeKeyMaterialDoesNotExpire}))
		}},
		{"DeleteImportedKeyMaterial", ok, ok, ok, ok, func(id *string) error {
			return err1(f.kms.DeleteImportedKeyMaterial(ctx, &kms.DeleteImportedKeyMaterialInput{KeyId: id}))
		}},
		{"DescribeKey", ok, ok, ok, ok, func(id *string) error {
			return err1(f.kms.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: id}))
		}},
		{"GetKeyPolicy", ok, ok, ok, ok, func(id *string) error {
			return err1(f.kms.GetKeyPolicy(ctx, &kms.GetKeyPolicyInput{KeyId: id}))
		}},
		{"PutKeyPolicy", ok, ok, ok, ok, func(id *string) error {
			return err1(f.kms.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: id, Policy: aws.String(rootPolicy)}))
		}},
		{"ListKeyPolicies", ok, ok, ok, ok, func(id *string) error {
			return err1(f.kms.ListKeyPolicies(ctx, &kms.ListKeyPoliciesInput{KeyId: id}))
		}},
		{"ListAliases", ok, ok, ok, ok, func(id *string) error {
			return err1(f.kms.ListAliases(ctx, &kms.ListAliasesInput{KeyId: id}))
		}},
		{"ListGrants", ok, ok, ok, ok, func(id *string) error {
			return err1(f.kms.ListGrants(ctx, &kms.ListGrantsInput{KeyId: id}))
		}},
		{"ListResourceTags", ok, ok, ok, ok, func(id *string) error {
			return err1(f.kms.ListResourceTags(ctx, &kms.ListResourceTagsInput{KeyId: id}))
		}},
		{"ListKeyRotations", ok, ok, ok, ok, func(id *string) error {
			return err1(f.kms.ListKeyRotations(ctx, &kms.ListKeyRotationsInput{KeyId: id}))
		}},
		{"GetKeyLastUsage", ok, ok, ok, ok, func(id *string) error {
			return err1(f.kms.GetKeyLastUsage(ctx, &kms.GetKeyLastUsageInput{KeyId: id}))
		}},
		{"Encrypt", ok, isDisabled, isDeletion, isImport, func(id *string) error {
			return err1(f.kms.Encrypt(ctx, &kms.EncryptInput{KeyId: id, Plaintext: []byte("x")}))
		}},
		{"Decrypt", "InvalidCiphertextException: ", isDisabled, isDeletion, isImport, func(id *string) error {
			return err1(f.kms.Decrypt(ctx, &kms.DecryptInput{KeyId: id, CiphertextBlob: []byte("x")}))
		}},
		{"GenerateDataKey", ok, isDisabled, isDeletion, isImport, func(id *string) error {
			return err1(f.kms.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: id, KeySpec: types.DataKeySpecAes256}))
		}},
		{"GenerateDataKeyWithoutPlaintext", ok, isDisabled, isDeletion, isImport, func(id *string) error {
			return err1(f.kms.GenerateDataKeyWithoutPlaintext(ctx, &kms.GenerateDataKeyWithoutPlaintextInput{KeyId: id, KeySpec: types.DataKeySpecAes256}))
		}},
		{"GenerateDataKeyPair", ok, isDisabled, isDeletion, isImport, func(id *string) error {
			return err1(f.kms.GenerateDataKeyPair(ctx, &kms.GenerateDataKeyPairInput{KeyId: id, KeyPairSpec: types.DataKeyPairSpecEccNistP256}))
		}},
		{"ReEncrypt to it", ok, isDisabled, isDeletion, isImport, func(id *string) error {
			return err1(f.kms.ReEncrypt(ctx, &kms.ReEncryptInput{CiphertextBlob: sealed.CiphertextBlob, DestinationKeyId: id}))
		}},
		{"CreateGrant", ok, isDisabled, isDeletion, isImport, func(id *string) error {
			return err1(f.kms.CreateGrant(ctx, &kms.CreateGrantInput{KeyId: id, GranteePrincipal: aws.String(annARN), Operations: []types.GrantOperation{types.GrantOperationDecrypt}}))
		}},
		{"EnableKeyRotation", unsupp, unsupp, unsupp, unsupp, func(id *string) error {
			return err1(f.kms.EnableKeyRotation(ctx, &kms.EnableKeyRotationInput{KeyId: id}))
		}},
		{"DisableKeyRotation", unsupp, unsupp, unsupp, unsupp, func(id *string) error {
			return err1(f.kms.DisableKeyRotation(ctx, &kms.DisableKeyRotationInput{KeyId: id}))
		}},
		{"EnableKey", ok, ok, isDeletion, isImport, func(id *string) error {
			return err1(f.kms.EnableKey(ctx, &kms.EnableKeyInput{KeyId: id}))
		}},
		{"DisableKey", ok, ok, isDeletion, isImport, func(id *string) error {
			return err1(f.kms.DisableKey(ctx, &kms.DisableKeyInput{KeyId: id}))
		}},
		{"CreateAlias", ok, ok, isDeletion, ok, func(id *string) error {
			return err1(f.kms.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String("alias/" + *id), TargetKeyId: id}))
		}},
		{"UpdateAlias", ok, ok, isDeletion, ok, func(id *string) error {
			return err1(f.kms.UpdateAlias(ctx, &kms.UpdateAliasInput{AliasName: aws.String("alias/moved"), TargetKeyId: id}))
		}},
		{"UpdateAlias away", ok, ok, ok, ok, func(id *string) error {
			return err1(f.kms.UpdateAlias(ctx, &kms.UpdateAliasInput{AliasName: aws.String("alias/here-" + *id), TargetKeyId: source.KeyId}))
		}},
		{"DeleteAlias", ok, ok, ok, ok, func(id *string) error {
			return err1(f.kms.DeleteAlias(ctx, &kms.DeleteAliasInput{AliasName: aws.String("alias/here-" + *id)}))
		}},
		{"ScheduleKeyDeletion", ok, ok, isDeletion, ok, func(id *string) error {
			return err1(f.kms.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: id}))
		}},
		{"CancelKeyDeletion", notPending, notPending, ok, notPending, func(id *string) error {
			return err1(f.kms.CancelKeyDeletion(ctx, &kms.CancelKeyDeletionInput{KeyId: id}))
		}},
		{"TagResource", ok, ok, isDeletion, ok, func(id *string) error {
			return err1(f.kms.TagResource(ctx, &kms.TagResourceInput{KeyId: id, Tags: tags}))
		}},
		{"UntagResource", ok, ok, isDeletion, ok, func(id *string) error {
			return err1(f.kms.UntagResource(ctx, &kms.UntagResourceInput{KeyId: id, TagKeys: []string{"a"}}))
		}},
		{"UpdateKeyDescription", ok, ok, isDeletion, ok, func(id *string) error {
			return err1(f.kms.UpdateKeyDescription(ctx, &kms.UpdateKeyDescriptionInput{KeyId: id, Description: aws.String("d")}))
		}},
		{"RotateKeyOnDemand", nothing, isDisabled, isDeletion, isImport, func(id *string) error {
			return err1(f.kms.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: id}))
		}},
		{"GetKeyRotationStatus", ok, ok, ok, unsupp, func(id *string) error {
			return err1(f.kms.GetKeyRotationStatus(ctx, &kms.GetKeyRotationStatusInput{KeyId: id}))
		}},
	} {
		for state, want := range map[types.KeyState]string{
			types.KeyStateEnabled: test.enabled, types.KeyStateDisabled: test.disabled,
			types.KeyStatePendingDeletion: test.pendingDeletion, types.KeyStatePendingImport: test.pendingImport,
		} {
			t.Run(test.operation+" in "+string(state), func(t *testing.T) {
				key, _ := f.imported()
				must[*kms.CreateAliasOutput](t)(f.kms.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String("alias/here-" + *key.KeyId), TargetKeyId: key.KeyId}))
				var err error
				switch state {
				case types.KeyStateDisabled:
					_, err = f.kms.DisableKey(ctx, &kms.DisableKeyInput{KeyId: key.KeyId})
				case types.KeyStatePendingDeletion:
					_, err = f.kms.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: key.KeyId})
				case types.KeyStatePendingImport:
					_, err = f.kms.DeleteImportedKeyMaterial(ctx, &kms.DeleteImportedKeyMaterialInput{KeyId: key.KeyId})
				}
				if err != nil {
					t.Fatal(err)
				}
				if got := f.describe(*key.KeyId).KeyState; got != state {
					t.Fatalf("the key is %s", got)
				}
				got := ""
				if err := test.do(key.KeyId); err != nil {
					e, ok := errors.AsType[smithy.APIError](err)
					if !ok {
						t.Fatal(err)
					}
					got = e.ErrorCode() + ": " + e.ErrorMessage()
				}
				if want := strings.ReplaceAll(want, "ARN", *key.Arn); got != want {
					t.Errorf("got %q, want %q", got, want)
				}
			})
		}
	}
}

func TestDeletion(t *testing.T) {
	f, ctx := start(t, awssim.Options{}), t.Context()
	key, _ := f.imported()
	must[*kms.CreateAliasOutput](t)(f.kms.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String("alias/a"), TargetKeyId: key.KeyId}))
	for _, days := range []int32{6, 31} {
		_, err := f.kms.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: key.KeyId, PendingWindowInDays: &days})
		wantCode(t, err, "ValidationException")
	}
	out := must[*kms.ScheduleKeyDeletionOutput](t)(f.kms.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: key.KeyId, PendingWindowInDays: aws.Int32(7)}))
	if *out.KeyId != *key.Arn || out.KeyState != types.KeyStatePendingDeletion || *out.PendingWindowInDays != 7 {
		t.Errorf("got %+v", out)
	}
	must[*kms.CancelKeyDeletionOutput](t)(f.kms.CancelKeyDeletion(ctx, &kms.CancelKeyDeletionInput{KeyId: key.KeyId}))
	if got := f.describe(*key.KeyId).KeyState; got != types.KeyStateDisabled {
		t.Errorf("after cancelling the key is %s", got)
	}
	// Without material it is pending import again, and an import enables it.
	empty, material := f.imported()
	must[*kms.DeleteImportedKeyMaterialOutput](t)(f.kms.DeleteImportedKeyMaterial(ctx, &kms.DeleteImportedKeyMaterialInput{KeyId: empty.KeyId}))
	must[*kms.ScheduleKeyDeletionOutput](t)(f.kms.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: empty.KeyId}))
	must[*kms.CancelKeyDeletionOutput](t)(f.kms.CancelKeyDeletion(ctx, &kms.CancelKeyDeletionInput{KeyId: empty.KeyId}))
	if got := f.describe(*empty.KeyId).KeyState; got != types.KeyStatePendingImport {
		t.Errorf("after cancelling the key without material is %s", got)
	}
	must[*kms.ImportKeyMaterialOutput](t)(f.importInto(*empty.KeyId, material, func(*kms.ImportKeyMaterialInput) {}))
	if got := f.describe(*empty.KeyId).KeyState; got != types.KeyStateEnabled {
		t.Errorf("with its material again the key is %s", got)
	}

	must[*kms.ScheduleKeyDeletionOutput](t)(f.kms.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: key.KeyId, PendingWindowInDays: aws.Int32(7)}))
	f.Advance(7 * 24 * time.Hour)
	_, err := f.kms.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: key.KeyId})
	wantError(t, err, "NotFoundException", "Key '"+*key.Arn+"' does not exist")
	if f.Alias(account, region, "alias/a") != "" {
		t.Error("the alias outlived its key")
	}
}
