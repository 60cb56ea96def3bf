package hsm_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"math/big"
	"slices"
	"strings"
	"testing"

	"byokd/hsm"
)

func TestParseWrappingKey(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	odd := func(bits int) *big.Int {
		return new(big.Int).SetBit(new(big.Int).Lsh(big.NewInt(1), uint(bits-1)), 0, 1)
	}
	good := spki(t, &rsaKeys[2048]().PublicKey)
	for _, tt := range []struct {
		name string
		der  []byte
		want string
	}{
		{"nothing", nil, "asn1"},
		{"trailing bytes", append(slices.Clone(good), 0), "trailing"},
		{"cut short", good[:len(good)-1], "asn1"},
		{"elliptic curve", spki(t, &ec.PublicKey), "not an RSA key"},
		{"small exponent", spki(t, &rsa.PublicKey{N: odd(2048), E: 3}), "exponent 3"},
		{"small", spki(t, &rsa.PublicKey{N: odd(1024), E: 65537}), "1024 bits"},
		{"odd size", spki(t, &rsa.PublicKey{N: odd(2056), E: 65537}), "2056 bits"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := hsm.ParseWrappingKey(tt.der); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
		})
	}
	for bits, key := range rsaKeys {
		public, err := hsm.ParseWrappingKey(spki(t, &key().PublicKey))
		if err != nil || !public.Equal(&key().PublicKey) {
			t.Errorf("RSA-%d: %v", bits, err)
		}
	}
}

func FuzzParseWrappingKey(f *testing.F) {
	for _, key := range rsaKeys {
		der := spki(f, &key().PublicKey)
		f.Add(der)
		f.Add(der[:len(der)/2])
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		public, err := hsm.ParseWrappingKey(der)
		if err != nil {
			return
		}
		if bits := public.N.BitLen(); public.E != 65537 || bits != 2048 && bits != 3072 && bits != 4096 {
			t.Errorf("accepted %d bits, exponent %d", bits, public.E)
		}
		if public.Size()*8 != public.N.BitLen() || len(public.N.Bytes()) != public.Size() {
			t.Errorf("modulus is not as long as its blob")
		}
	})
}
