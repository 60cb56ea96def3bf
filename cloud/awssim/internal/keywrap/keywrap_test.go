package keywrap_test

import (
	"bytes"
	"encoding/hex"
	"testing"

	"byokd/cloud/awssim/internal/keywrap"
)

// The examples of RFC 5649, section 6.
func TestRFC5649(t *testing.T) {
	const key = "5840df6e29b02af1ab493b705bf16ea1ae8338f4dcc176a8"
	for _, test := range []struct{ data, wrapped string }{
		{"c37b7e6492584340bed12207808941155068f738", "138bdeaa9b8fa7fc61f97742e72248ee5ae6ae5360d1ae6a5f54f373fa543b6a"},
		{"466f7250617369", "afbeb0f07dfbf5419200f2ccb50bb24f"},
	} {
		got, err := keywrap.Wrap(unhex(t, key), unhex(t, test.data))
		if err != nil || hex.EncodeToString(got) != test.wrapped {
			t.Errorf("%s wraps to %x, %v", test.data, got, err)
		}
		back, err := keywrap.Unwrap(unhex(t, key), got)
		if err != nil || hex.EncodeToString(back) != test.data {
			t.Errorf("%s unwraps to %x, %v", test.wrapped, back, err)
		}
	}
}

func TestUnwrapRefuses(t *testing.T) {
	key := bytes.Repeat([]byte{7}, 32)
	for size := 1; size < 40; size++ {
		wrapped, err := keywrap.Wrap(key, bytes.Repeat([]byte{1}, size))
		if err != nil {
			t.Fatal(err)
		}
		for i := range wrapped {
			wrapped[i] ^= 0x80
			if _, err := keywrap.Unwrap(key, wrapped); err == nil {
				t.Errorf("%d bytes with byte %d changed unwrap", size, i)
			}
			wrapped[i] ^= 0x80
		}
		for _, n := range []int{0, 1, 8, len(wrapped) - 1} {
			if _, err := keywrap.Unwrap(key, wrapped[:n]); err == nil {
				t.Errorf("%d of %d bytes unwrap", n, len(wrapped))
			}
		}
	}
	if _, err := keywrap.Wrap(key, nil); err == nil {
		t.Error("nothing is wrapped")
	}
	if _, err := keywrap.Wrap(key[:5], key); err == nil {
		t.Error("a key of 5 bytes is taken")
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
