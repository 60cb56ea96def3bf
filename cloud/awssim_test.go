package cloud_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"byokd/cloud"
	"byokd/cloud/awssim"
)

// A key's life against the simulator, over HTTP.
func TestAgainstSimulator(t *testing.T) {
	sim := awssim.New(awssim.Options{Pairs: awssim.NewPairs(1), Credentials: []awssim.Credential{
		{AccessKeyID: csvID, SecretAccessKey: csvSecret, Account: account}}})
	server := httptest.NewServer(sim)
	t.Cleanup(server.Close)
	s := settingsFor(server.URL)
	s.WrappingKeySpec = "RSA_2048" // quick to make
	s.Quotas = map[string]float64{"GetParametersForImport": 1000}
	c := open(t, s)
	k, err := c.KMS("prod", region)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	check := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}

	got, err := k.Account(ctx)
	check("account", err)
	if got != account {
		t.Errorf("account %q", got)
	}
	tags := map[string]string{"byokd:group": "payments", "byokd:job": "1"}
	key, err := k.CreateKey(ctx, "card payments", "", tags)
	check("create", err)
	if key.State != "PendingImport" || key.Origin != "EXTERNAL" || key.Account != account || key.Description != "card payments" || key.MaterialID != "" {
		t.Errorf("created %+v", key)
	}
	found, err := k.FindKeys(ctx, map[string]string{"byokd:job": "1"})
	check("find", err)
	if len(found) != 1 || found[0].KeyID != key.ID || found[0].Tags["byokd:group"] != "payments" {
		t.Errorf("found %+v", found)
	}
	if _, err := k.Encrypt(ctx, key.ID, []byte("x"), nil); !errors.Is(err, cloud.ErrState) {
		t.Errorf("encrypt before the import: %v", err)
	}

	material := make([]byte, 32)
	rand.Read(material)
	doImport := func(material []byte, validTo time.Time) (string, error) {
		t.Helper()
		p, err := k.ParametersForImport(ctx, key.ID, "RSAES_OAEP_SHA_256")
		check("parameters", err)
		public, err := x509.ParsePKIXPublicKey(p.PublicKey)
		check("public key", err)
		wrapped, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, public.(*rsa.PublicKey), material, nil)
		check("wrap", err)
		return k.ImportKeyMaterial(ctx, key.ID, p.Token, wrapped, cloud.Import{ValidTo: validTo})
	}
	validTo := k.Now().Add(90 * 24 * time.Hour)
	materialID, err := doImport(material, validTo)
	check("import", err)
	described, err := k.DescribeKey(ctx, key.ID)
	check("describe", err)
	if described.State != "Enabled" || described.MaterialID != materialID || !described.ValidTo.Equal(validTo.Truncate(time.Second)) {
		t.Errorf("described %+v; the material is %s, valid to %v", described, materialID, validTo)
	}
	if _, err := doImport(slices.Repeat([]byte{1}, 32), time.Time{}); !errors.Is(err, cloud.ErrIncorrectMaterial) || cloud.ClassOf(err) != cloud.Permanent {
		t.Errorf("other material: %v", err)
	}
	again, err := doImport(material, time.Time{})
	check("import again", err)
	if again != materialID {
		t.Errorf("the same material is now %s", again)
	}
	if _, err := k.ImportKeyMaterial(ctx, key.ID, []byte("no token"), []byte("x"), cloud.Import{}); !errors.Is(err, cloud.ErrImportToken) {
		t.Errorf("a wrong token: %v", err)
	}

	if _, err := k.DescribeKey(ctx, "alias/payments"); !errors.Is(err, cloud.ErrNotFound) {
		t.Errorf("an alias that is not there: %v", err)
	}
	if err := k.UpdateAlias(ctx, "alias/payments", key.ID); !errors.Is(err, cloud.ErrNotFound) {
		t.Errorf("moving an alias that is not there: %v", err)
	}
	check("create alias", k.CreateAlias(ctx, "alias/payments", key.ID))
	if err := k.CreateAlias(ctx, "alias/payments", key.ID); !errors.Is(err, cloud.ErrConflict) {
		t.Errorf("an alias twice: %v", err)
	}
	check("move alias", k.UpdateAlias(ctx, "alias/payments", key.ID))
	aliases, err := k.KeyAliases(ctx, key.ID)
	check("aliases", err)
	if !slices.Equal(aliases, []string{"alias/payments"}) {
		t.Errorf("aliases %q", aliases)
	}

	canary := map[string]string{"byokd-canary": "payments"}
	secret, err := k.Encrypt(ctx, "alias/payments", []byte("probe"), canary)
	check("encrypt", err)
	plain, err := k.Decrypt(ctx, key.ID, secret, canary)
	check("decrypt", err)
	if !bytes.Equal(plain, []byte("probe")) {
		t.Errorf("decrypted %q", plain)
	}

	check("tag", k.TagKey(ctx, key.ID, map[string]string{"team": "payments"}))
	check("untag", k.UntagKey(ctx, key.ID, []string{"byokd:job"}))
	have, err := k.KeyTags(ctx, key.ID)
	check("tags", err)
	if have["team"] != "payments" || have["byokd:job"] != "" || len(have) != 2 {
		t.Errorf("tags %q", have)
	}
	check("description", k.SetDescription(ctx, key.ID, "other"))
	policy, err := k.KeyPolicy(ctx, key.ID)
	check("policy", err)
	check("put policy", k.PutKeyPolicy(ctx, key.ID, policy))
	if err := k.PutKeyPolicy(ctx, key.ID, `{"Version":`); !errors.Is(err, cloud.ErrPolicy) || cloud.WaitingFor(err) != "policy" {
		t.Errorf("a broken policy: %v", err)
	}

	check("disable", k.DisableKey(ctx, key.ID))
	if _, err := k.Encrypt(ctx, key.ID, []byte("x"), nil); !errors.Is(err, cloud.ErrState) {
		t.Errorf("encrypt while disabled: %v", err)
	}
	check("enable", k.EnableKey(ctx, key.ID))
	check("delete material", k.DeleteKeyMaterial(ctx, key.ID, ""))
	if described, err = k.DescribeKey(ctx, "alias/payments"); err != nil || described.State != "PendingImport" || described.Description != "other" {
		t.Errorf("described %+v, %v", described, err)
	}
	if err := k.EnableKey(ctx, key.ID); !errors.Is(err, cloud.ErrState) {
		t.Errorf("enable without material: %v", err)
	}
	end, err := k.ScheduleDeletion(ctx, key.ID, 7)
	check("schedule deletion", err)
	if d := end.Sub(k.Now()); d < 6*24*time.Hour || d > 8*24*time.Hour {
		t.Errorf("deleted in %v", d)
	}
	if found, err := k.FindKeys(ctx, map[string]string{"team": "payments"}); err != nil || len(found) != 1 {
		t.Errorf("pending deletion: found %v, %v", found, err)
	}

	bus, err := c.Bus("prod", region, "default")
	check("bus", err)
	check("check the bus", bus.Check(ctx))
	results, err := bus.Put(ctx, []cloud.Event{event(`{"schema":1}`), event(`no JSON`), event(`{"schema":2}`)})
	check("put", err)
	if results[0].Err != nil || cloud.ClassOf(results[1].Err) != cloud.Permanent || results[2].Err != nil {
		t.Errorf("put %+v", results)
	}
	var ids []string
	for _, e := range sim.Events() {
		ids = append(ids, e.Envelope.ID)
	}
	if want := []string{results[0].EventID, results[2].EventID}; !slices.Equal(ids, want) {
		t.Errorf("the bus has %q, want %q", ids, want)
	}
	gone, err := c.Bus("prod", region, "gone")
	check("bus", err)
	if err := gone.Check(ctx); !errors.Is(err, cloud.ErrNotFound) {
		t.Errorf("a bus that is not there: %v", err)
	}
}

// An answer that is lost after the effect: Unknown, and the tag finds the key.
func TestLostCreateKey(t *testing.T) {
	sim := awssim.New(awssim.Options{After: func(r awssim.Request) *awssim.Fault {
		if r.Operation == "CreateKey" {
			return &awssim.Fault{Drop: true}
		}
		return nil
	}})
	server := httptest.NewServer(sim)
	t.Cleanup(server.Close)
	k := openKMS(t, settingsFor(server.URL))
	tags := map[string]string{"byokd:job": "1"}
	if _, err := k.CreateKey(t.Context(), "", "", tags); cloud.ClassOf(err) != cloud.Unknown {
		t.Fatalf("class %q: %v", cloud.ClassOf(err), err)
	}
	if found, err := k.FindKeys(t.Context(), tags); err != nil || len(found) != 1 {
		t.Errorf("found %v, %v", found, err)
	}
}
