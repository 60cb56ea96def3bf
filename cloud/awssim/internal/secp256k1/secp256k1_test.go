package secp256k1_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os/exec"
	"testing"

	"byokd/cloud/awssim/internal/secp256k1"
)

// A key that openssl made: "openssl ecparam -name secp256k1 -genkey -noout |
// openssl pkcs8 -topk8 -nocrypt -outform DER", its public key, and a signature
// by "openssl dgst -sha256 -sign" over "message".
const (
	opensslKey    = "308184020100301006072a8648ce3d020106052b8104000a046d306b02010104205f62bae47e030697e418c7a90cb233f46fe321dccfca3a4c7b345a03c328ee4ba14403420004aaaea06595f94f40fa8084bd61143c72e2120ef2f17b5f57d64127c30cd292f406e4d6ad0d0bd13de8a1bb85cddab03128f6b4af77c9fe44b811d95f2723202a"
	opensslPublic = "3056301006072a8648ce3d020106052b8104000a03420004aaaea06595f94f40fa8084bd61143c72e2120ef2f17b5f57d64127c30cd292f406e4d6ad0d0bd13de8a1bb85cddab03128f6b4af77c9fe44b811d95f2723202a"
	opensslSig    = "30440220217967cc7d5d09505e700f13022dedb81a0a4fd4f675a5e1701ad83d6eba51be022012938aa9a4087b44441668f010eb19d82ac00439c59104253fb90a42bb8818b0"
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestOpenSSL(t *testing.T) {
	k, err := secp256k1.ParsePKCS8(unhex(t, opensslKey))
	if err != nil {
		t.Fatal(err)
	}
	spki, err := k.MarshalPKIX()
	if err != nil || !bytes.Equal(spki, unhex(t, opensslPublic)) {
		t.Errorf("public key %x, %v", spki, err)
	}
	public, err := secp256k1.ParsePKIX(spki)
	if err != nil || !public.Equal(&k.PublicKey) {
		t.Fatalf("parsed %v, %v", public, err)
	}
	digest := sha256.Sum256([]byte("message"))
	if !public.Verify(digest[:], unhex(t, opensslSig)) {
		t.Error("openssl's signature is refused")
	}
	digest[0] ^= 1
	if public.Verify(digest[:], unhex(t, opensslSig)) {
		t.Error("openssl's signature is accepted for another digest")
	}
}

func TestRoundTrip(t *testing.T) {
	k := secp256k1.Generate()
	der, err := k.MarshalPKCS8()
	if err != nil {
		t.Fatal(err)
	}
	again, err := secp256k1.ParsePKCS8(der)
	if err != nil || !again.Equal(&k.PublicKey) {
		t.Fatalf("parsed %v, %v", again, err)
	}
	digest := sha256.Sum256([]byte("x"))
	sig, err := k.Sign(nil, digest[:], nil)
	if err != nil || !again.Verify(digest[:], sig) {
		t.Errorf("signature %x, %v", sig, err)
	}
	if secp256k1.Generate().Verify(digest[:], sig) {
		t.Error("another key verifies it")
	}
	for i := range der {
		broken := bytes.Clone(der)
		broken[i] ^= 0x55
		if k, err := secp256k1.ParsePKCS8(broken); err == nil && k.Equal(&again.PublicKey) && i > 40 && i < 60 {
			t.Errorf("byte %d changed: the same key", i)
		}
	}
	if _, err := secp256k1.ParsePKIX(der); err == nil {
		t.Error("a private key is taken for a public one")
	}
}

// TestOpenSSLReads lets openssl read what the package writes, where there is one.
func TestOpenSSLReads(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Log("NOT RUN: there is no openssl here")
		return
	}
	k := secp256k1.Generate()
	der, err := k.MarshalPKCS8()
	if err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(t.Context(), openssl, "pkey", "-inform", "DER", "-pubout", "-outform", "DER")
	command.Stdin = bytes.NewReader(der)
	out, err := command.Output()
	if err != nil {
		t.Fatal(err)
	}
	if spki, err := k.MarshalPKIX(); err != nil || !bytes.Equal(spki, out) {
		t.Errorf("openssl's public key is %x, ours %x, %v", out, spki, err)
	}
}
