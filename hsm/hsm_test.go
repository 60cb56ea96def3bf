package hsm_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"hash"
	"log/slog"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"byokd/hsm"
	"byokd/hsm/hsmtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// config returns a configuration for a token.
func config(tok *hsmtest.Token) hsm.Config {
	return hsm.Config{
		Name:         "main",
		Module:       tok.Module,
		TokenLabel:   tok.Label,
		InitReserved: tok.InitReserved,
		CallTimeout:  time.Minute,
		PIN:          tok.UserPIN,
	}
}

// newModules returns Modules that are closed when the test ends.
func newModules(t *testing.T, opts ...hsm.Option) *hsm.Modules {
	t.Helper()
	ms := hsm.NewModules(slog.New(slog.NewTextHandler(t.Output(), nil)), opts...)
	t.Cleanup(func() {
		if err := ms.Close(context.Background()); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return ms
}

// newKey returns a fresh reference.
func newKey(label string) hsm.KeyRef {
	id := make([]byte, 16)
	rand.Read(id)
	return hsm.KeyRef{Label: label, ID: id}
}

// mustGenerate makes a key.
func mustGenerate(t *testing.T, token *hsm.Token, label string) hsm.KeyRef {
	t.Helper()
	ref := newKey(label)
	if err := token.GenerateAES(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	return ref
}

// rsaKeys makes wrapping keys as KMS gives them out, once for each size.
var rsaKeys = map[int]func() *rsa.PrivateKey{
	2048: sync.OnceValue(func() *rsa.PrivateKey { return newRSA(2048) }),
	3072: sync.OnceValue(func() *rsa.PrivateKey { return newRSA(3072) }),
	4096: sync.OnceValue(func() *rsa.PrivateKey { return newRSA(4096) }),
}

func newRSA(bits int) *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		panic(err)
	}
	return key
}

func spki(t testing.TB, public any) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// checkWrap wraps a key and checks that what KMS would get out of the blob is
// the key in the token.
func checkWrap(t *testing.T, token *hsm.Token, ref hsm.KeyRef, bits int) {
	t.Helper()
	algorithm, err := token.Algorithm(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	private := rsaKeys[bits]()
	blob, err := token.Wrap(t.Context(), ref, algorithm, spki(t, &private.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	h := map[string]func() hash.Hash{hsm.OAEPSHA256: sha256.New, hsm.OAEPSHA1: sha1.New}[algorithm]
	opened, err := rsa.DecryptOAEP(h(), nil, private, blob, nil)
	if err != nil {
		t.Fatalf("%s under RSA-%d: %v", algorithm, bits, err)
	}
	if len(opened) != 32 {
		t.Fatalf("wrapped %d bytes", len(opened))
	}
	cipher, err := aes.NewCipher(opened)
	if err != nil {
		t.Fatal(err)
	}
	block := []byte("sixteen bytes...")
	want := make([]byte, 16)
	cipher.Encrypt(want, block)
	got, err := token.Encrypt(t.Context(), ref, block)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("what was wrapped is another key than the one in the token")
	}
}

// checkLife takes a key through its life on any token.
func checkLife(t *testing.T, token *hsm.Token) {
	t.Helper()
	ctx := t.Context()
	ref := mustGenerate(t, token, "byokd/payments/1")
	if err := token.GenerateAES(ctx, ref); !errorIs(err, hsm.ErrKeyExists, hsm.Permanent) {
		t.Errorf("generate with an ID that is there: %v", err)
	}
	other := mustGenerate(t, token, "byokd/payments/2")
	mustGenerate(t, token, "somebody else's")
	if err := token.Find(ctx, ref); err != nil {
		t.Error(err)
	}
	if err := token.Find(ctx, hsm.KeyRef{Label: "byokd/payments/9", ID: ref.ID}); hsm.ClassOf(err) != hsm.Operator {
		t.Errorf("find under another label: %v", err)
	}
	if err := token.Find(ctx, newKey(ref.Label)); !errorIs(err, hsm.ErrKeyNotFound, hsm.Operator) {
		t.Errorf("find under another ID: %v", err)
	}
	checkList(t, token, "byokd/payments/", ref, other)

	for bits := range rsaKeys {
		checkWrap(t, token, ref, bits)
	}
	if err := token.Check(ctx); err != nil {
		t.Errorf("check: %v", err)
	}

	if err := token.Destroy(ctx, ref); err != nil {
		t.Error(err)
	}
	if err := token.Destroy(ctx, ref); !errorIs(err, hsm.ErrKeyNotFound, hsm.Operator) {
		t.Errorf("destroy again: %v", err)
	}
	checkList(t, token, "byokd/payments/", other)
	if s := token.Stats(); s.SessionsInUse != 0 || s.SessionsAbandoned != 0 {
		t.Errorf("sessions left: %+v", s)
	}
}

func checkList(t *testing.T, token *hsm.Token, prefix string, want ...hsm.KeyRef) {
	t.Helper()
	got, err := token.List(t.Context(), prefix, 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) {
		t.Fatalf("list %s: %v, want %v", prefix, got, want)
	}
	for i := range want {
		if got[i].Label != want[i].Label || !bytes.Equal(got[i].ID, want[i].ID) {
			t.Errorf("list %s: %v, want %v", prefix, got, want)
		}
	}
}
