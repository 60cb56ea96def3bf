package cloud_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"byokd/cloud"
)

// What each method asks for.
func TestRequests(t *testing.T) {
	validTo := time.Unix(1798859045, 999_999_999)
	blob := base64.StdEncoding.EncodeToString
	for name, test := range map[string]struct {
		call      call
		operation string
		body      map[string]any
	}{
		"create": {func(ctx context.Context, k *cloud.KMS) error {
			_, err := k.CreateKey(ctx, "card payments", `{"Version":"2012-10-17"}`, map[string]string{"b": "2", "a": ""})
			return err
		}, "CreateKey", map[string]any{
			"Origin": "EXTERNAL", "KeySpec": "SYMMETRIC_DEFAULT", "KeyUsage": "ENCRYPT_DECRYPT",
			"Description": "card payments", "Policy": `{"Version":"2012-10-17"}`,
			"Tags": []any{map[string]any{"TagKey": "a", "TagValue": ""}, map[string]any{"TagKey": "b", "TagValue": "2"}},
		}},
		"create, plain": {func(ctx context.Context, k *cloud.KMS) error {
			_, err := k.CreateKey(ctx, "", "", nil)
			return err
		}, "CreateKey", map[string]any{"Origin": "EXTERNAL", "KeySpec": "SYMMETRIC_DEFAULT", "KeyUsage": "ENCRYPT_DECRYPT"}},
		"describe an alias": {func(ctx context.Context, k *cloud.KMS) error {
			_, err := k.DescribeKey(ctx, "alias/payments")
			return err
		}, "DescribeKey", map[string]any{"KeyId": "alias/payments"}},
		"import": {func(ctx context.Context, k *cloud.KMS) error {
			_, err := k.ImportKeyMaterial(ctx, keyID, []byte("token"), []byte("wrapped"), cloud.Import{})
			return err
		}, "ImportKeyMaterial", map[string]any{
			"KeyId": keyID, "ImportToken": blob([]byte("token")), "EncryptedKeyMaterial": blob([]byte("wrapped")),
			"ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE",
		}},
		"import, expires": {func(ctx context.Context, k *cloud.KMS) error {
			_, err := k.ImportKeyMaterial(ctx, keyID, []byte("token"), []byte("wrapped"), cloud.Import{ValidTo: validTo})
			return err
		}, "ImportKeyMaterial", map[string]any{
			"KeyId": keyID, "ImportToken": blob([]byte("token")), "EncryptedKeyMaterial": blob([]byte("wrapped")),
			"ExpirationModel": "KEY_MATERIAL_EXPIRES", "ValidTo": 1798859045.0,
		}},
		"delete material": {func(ctx context.Context, k *cloud.KMS) error { return k.DeleteKeyMaterial(ctx, keyID, "") },
			"DeleteImportedKeyMaterial", map[string]any{"KeyId": keyID}},
		"get policy": {func(ctx context.Context, k *cloud.KMS) error { _, err := k.KeyPolicy(ctx, keyID); return err },
			"GetKeyPolicy", map[string]any{"KeyId": keyID, "PolicyName": "default"}},
		"put policy": {func(ctx context.Context, k *cloud.KMS) error { return k.PutKeyPolicy(ctx, keyID, "{}") },
			"PutKeyPolicy", map[string]any{"KeyId": keyID, "PolicyName": "default", "Policy": "{}"}},
		"tag": {func(ctx context.Context, k *cloud.KMS) error {
			return k.TagKey(ctx, keyID, map[string]string{"b": "2", "a": "1"})
		}, "TagResource", map[string]any{"KeyId": keyID, "Tags": []any{
			map[string]any{"TagKey": "a", "TagValue": "1"}, map[string]any{"TagKey": "b", "TagValue": "2"}}}},
		"untag": {func(ctx context.Context, k *cloud.KMS) error { return k.UntagKey(ctx, keyID, []string{"a"}) },
			"UntagResource", map[string]any{"KeyId": keyID, "TagKeys": []any{"a"}}},
		"describe it as": {func(ctx context.Context, k *cloud.KMS) error { return k.SetDescription(ctx, keyID, "") },
			"UpdateKeyDescription", map[string]any{"KeyId": keyID, "Description": ""}},
		"enable": {func(ctx context.Context, k *cloud.KMS) error { return k.EnableKey(ctx, keyID) },
			"EnableKey", map[string]any{"KeyId": keyID}},
		"disable": {func(ctx context.Context, k *cloud.KMS) error { return k.DisableKey(ctx, keyID) },
			"DisableKey", map[string]any{"KeyId": keyID}},
		"schedule deletion": {func(ctx context.Context, k *cloud.KMS) error { _, err := k.ScheduleDeletion(ctx, keyID, 7); return err },
			"ScheduleKeyDeletion", map[string]any{"KeyId": keyID, "PendingWindowInDays": 7.0}},
		"create alias": {func(ctx context.Context, k *cloud.KMS) error { return k.CreateAlias(ctx, "alias/p", keyID) },
			"CreateAlias", map[string]any{"AliasName": "alias/p", "TargetKeyId": keyID}},
		"move alias": {func(ctx context.Context, k *cloud.KMS) error { return k.UpdateAlias(ctx, "alias/p", keyID) },
			"UpdateAlias", map[string]any{"AliasName": "alias/p", "TargetKeyId": keyID}},
		"encrypt": {func(ctx context.Context, k *cloud.KMS) error {
			_, err := k.Encrypt(ctx, keyID, []byte("x"), map[string]string{"byokd-canary": "payments"})
			return err
		}, "Encrypt", map[string]any{"KeyId": keyID, "Plaintext": blob([]byte("x")), "EncryptionContext": map[string]any{"byokd-canary": "payments"}}},
		"decrypt": {func(ctx context.Context, k *cloud.KMS) error {
			_, err := k.Decrypt(ctx, keyID, []byte("y"), map[string]string{"byokd-canary": "payments"})
			return err
		}, "Decrypt", map[string]any{"KeyId": keyID, "CiphertextBlob": blob([]byte("y")), "EncryptionContext": map[string]any{"byokd-canary": "payments"}}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, sequence(answer{}))
			if err := test.call(t.Context(), openKMS(t, f.settings())); err != nil {
				t.Fatal(err)
			}
			q := f.requests()[0]
			if q.operation != test.operation {
				t.Errorf("asked for %s", q.operation)
			}
			if d := cmp.Diff(test.body, q.body); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestDescribeKey(t *testing.T) {
	f := newFake(t, sequence(answer{body: `{"KeyMetadata":{"AWSAccountId":"111122223333","KeyId":"` + keyID + `","Arn":"` + keyARN + `",
		"CreationDate":1700000000.5,"Enabled":true,"Description":"d","KeyUsage":"ENCRYPT_DECRYPT","KeyState":"Enabled","ValidTo":1800000000,
		"DeletionDate":1810000000,"Origin":"EXTERNAL","ExpirationModel":"KEY_MATERIAL_EXPIRES","KeyManager":"CUSTOMER","KeySpec":"SYMMETRIC_DEFAULT",
		"CurrentKeyMaterialId":"abc","SomethingNew":1}}`}))
	got, err := openKMS(t, f.settings()).DescribeKey(t.Context(), "alias/payments")
	if err != nil {
		t.Fatal(err)
	}
	want := cloud.Key{
		ID: keyID, ARN: keyARN, Account: account, State: "Enabled", Origin: "EXTERNAL", KeySpec: "SYMMETRIC_DEFAULT",
		KeyUsage: "ENCRYPT_DECRYPT", Manager: "CUSTOMER", MaterialID: "abc", Description: "d",
		CreatedAt: time.UnixMilli(1700000000500).UTC(), ValidTo: time.Unix(1800000000, 0).UTC(), DeletionDate: time.Unix(1810000000, 0).UTC(),
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestLastUsage(t *testing.T) {
	for name, test := range map[string]struct {
		body  string
		at    time.Time
		known bool
	}{
		"used":              {`{"KeyLastUsage":{"Timestamp":1800000000,"Operation":"Decrypt"},"KeyCreationDate":1,"TrackingStartDate":2}`, time.Unix(1800000000, 0), true},
		"never":             {`{"KeyCreationDate":1800000000,"TrackingStartDate":1800000000}`, time.Time{}, true},
		"not since tracked": {`{"KeyCreationDate":1700000000,"TrackingStartDate":1800000000}`, time.Time{}, false},
		"not told":          {`{"KeyCreationDate":1700000000}`, time.Time{}, false},
	} {
		f := newFake(t, sequence(answer{body: test.body}))
		at, known, err := openKMS(t, f.settings()).LastUsage(t.Context(), keyID)
		if err != nil || !at.Equal(test.at) || known != test.known {
			t.Errorf("%s: got %v, %v, %v", name, at, known, err)
		}
	}
}

func TestPages(t *testing.T) {
	f := newFake(t, func(q asked) answer {
		switch {
		case q.operation == "ListAliases" && q.body["Marker"] == nil:
			return answer{body: `{"Aliases":[{"AliasName":"alias/z"}],"Truncated":true,"NextMarker":"m"}`}
		case q.operation == "ListAliases":
			return answer{body: `{"Aliases":[{"AliasName":"alias/a"}]}`}
		case q.body["Marker"] == nil:
			return answer{body: `{"Tags":[{"TagKey":"a","TagValue":"1"}],"Truncated":true,"NextMarker":"m"}`}
		}
		return answer{body: `{"Tags":[{"TagKey":"b","TagValue":"2"}]}`}
	})
	k := openKMS(t, f.settings())
	if got, err := k.KeyAliases(t.Context(), keyID); err != nil || !slices.Equal(got, []string{"alias/a", "alias/z"}) {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := k.KeyTags(t.Context(), keyID); err != nil || !cmp.Equal(got, map[string]string{"a": "1", "b": "2"}) {
		t.Errorf("got %q, %v", got, err)
	}
}

func parameters(t *testing.T, public any) answer {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := json.Marshal(map[string]any{"KeyId": keyARN, "PublicKey": der, "ImportToken": []byte("token"), "ParametersValidTo": 1800000000})
	return answer{body: string(body)}
}

// rsaKey is a public key with any modulus of a size: nothing is wrapped here.
func rsaKey(bits uint, exponent int) *rsa.PublicKey {
	n := new(big.Int).Lsh(big.NewInt(1), bits-1)
	return &rsa.PublicKey{N: n.SetBit(n, 0, 1), E: exponent}
}

func TestParametersForImport(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		spec   string
		answer answer
		want   string // "": it is good
	}{
		"default spec":    {"", parameters(t, rsaKey(4096, 65537)), ""},
		"RSA_3072":        {"RSA_3072", parameters(t, rsaKey(3072, 65537)), ""},
		"too small":       {"RSA_4096", parameters(t, rsaKey(2048, 65537)), "it has 2048 bits, not 4096"},
		"other than told": {"RSA_2048", parameters(t, rsaKey(4096, 65537)), "it has 4096 bits, not 2048"},
		"exponent 3":      {"RSA_4096", parameters(t, rsaKey(4096, 3)), "exponent is not 65537"},
		"not RSA":         {"RSA_4096", parameters(t, ec.Public()), "not an RSA key"},
		"garbage":         {"RSA_4096", answer{body: `{"PublicKey":"AAAA","ImportToken":"AAAA"}`}, "not a public key"},
		"nothing":         {"RSA_4096", answer{}, "not a public key"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, sequence(test.answer))
			s := f.settings()
			s.WrappingKeySpec = test.spec
			got, err := openKMS(t, s).ParametersForImport(t.Context(), keyID, "RSAES_OAEP_SHA_256")
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), f.URL) || cloud.ClassOf(err) != cloud.Permanent {
					t.Errorf("class %q: %v", cloud.ClassOf(err), err)
				}
				if got.PublicKey != nil {
					t.Error("the key was given out")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if string(got.Token) != "token" || !got.ValidTo.Equal(time.Unix(1800000000, 0)) || len(got.PublicKey) == 0 {
				t.Errorf("got %+v", got)
			}
			spec := test.spec
			if spec == "" {
				spec = "RSA_4096"
			}
			want := map[string]any{"KeyId": keyID, "WrappingAlgorithm": "RSAES_OAEP_SHA_256", "WrappingKeySpec": spec}
			if d := cmp.Diff(want, f.requests()[0].body); d != "" {
				t.Error(d)
			}
		})
	}
}

// The quota is per account and Region. An attempt that waits for it has not
// been sent.
func TestQuota(t *testing.T) {
	f := newFake(t, func(q asked) answer {
		if q.operation == "GetCallerIdentity" {
			if signedWith(q) == "AKIAOTHER" {
				return answer{body: callerIdentity("444455556666")}
			}
			return answer{body: callerIdentity(account)}
		}
		return parameters(t, rsaKey(4096, 65537))
	})
	s := f.settings()
	s.Quotas = map[string]float64{"GetParametersForImport": 0.001}
	s.Credentials["same"] = static()
	s.Credentials["other"] = cloud.Credential{AccessKeyCSV: func() ([]byte, error) {
		return []byte(strings.ReplaceAll(accessKeyCSV, csvID, "AKIAOTHER")), nil
	}}
	c := open(t, s)
	ask := func(ctx context.Context, credential, region string) error {
		k, err := c.KMS(credential, region)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := k.Account(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, err = k.ParametersForImport(ctx, keyID, "RSAES_OAEP_SHA_256")
		return err
	}
	for _, free := range [][2]string{{"prod", region}, {"prod", "us-east-1"}, {"other", region}} {
		if err := ask(t.Context(), free[0], free[1]); err != nil {
			t.Errorf("%s: %v", free, err)
		}
	}
	// Credentials that change keep the bucket.
	c.SetCredentials(s.Credentials)
	sent := f.count("GetParametersForImport")
	for _, taken := range [][2]string{{"prod", region}, {"same", region}, {"same", "us-east-1"}} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		err := ask(ctx, taken[0], taken[1])
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || cloud.ClassOf(err) != cloud.Transient {
			t.Errorf("%s: class %q: %v", taken, cloud.ClassOf(err), err)
		}
	}
	if n := f.count("GetParametersForImport"); n != sent {
		t.Errorf("%d were sent beyond the quota", n-sent)
	}
}

// Each attempt takes its turn, not each call: a throttled one is not made again
// before the bucket allows it.
func TestQuotaOfAttempts(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	f := newFake(t, sequence(awsError("ThrottlingException")))
	s := f.settings()
	s.Quotas = map[string]float64{"GetParametersForImport": 0.001}
	s.Observer = func(string, string, time.Duration) {
		// Well past the SDK's own wait, which is a second at most.
		time.AfterFunc(1500*time.Millisecond, cancel)
	}
	_, err := openKMS(t, s).ParametersForImport(ctx, keyID, "RSAES_OAEP_SHA_256")
	if cloud.ClassOf(err) != cloud.Interrupted || len(f.requests()) != 1 {
		t.Errorf("%d requests: %v", len(f.requests()), err)
	}
}

func tagFake(t *testing.T, keys int, tags func(id string) answer, list *answer) *fake {
	return newFake(t, func(q asked) answer {
		switch q.operation {
		case "GetResources":
			return awsError("AccessDeniedException")
		case "ListKeys":
			if list != nil {
				return *list
			}
			start := 0
			if m, ok := q.body["Marker"].(string); ok {
				fmt.Sscan(m, &start)
			}
			var entries []map[string]string
			end := min(start+1000, keys)
			for i := start; i < end; i++ {
				entries = append(entries, map[string]string{"KeyId": fmt.Sprintf("key-%04d", i), "KeyArn": fmt.Sprintf("arn:aws:kms:%s:%s:key/key-%04d", region, account, i)})
			}
			page := map[string]any{"Keys": entries}
			if end < keys {
				page["Truncated"], page["NextMarker"] = true, fmt.Sprint(end)
			}
			body, _ := json.Marshal(page)
			return answer{body: string(body)}
		case "ListResourceTags":
			return tags(q.body["KeyId"].(string))
		}
		return answer{}
	})
}

func tagged(pairs ...string) answer {
	var list []map[string]string
	for i := 0; i < len(pairs); i += 2 {
		list = append(list, map[string]string{"TagKey": pairs[i], "TagValue": pairs[i+1]})
	}
	body, _ := json.Marshal(map[string]any{"Tags": list})
	return answer{body: string(body)}
}

func TestFindKeysByTagging(t *testing.T) {
	mapping := func(arn string, tags string) string {
		return `{"ResourceARN":"` + arn + `","Tags":` + tags + `}`
	}
	const both = `[{"Key":"byokd:group","Value":"payments"},{"Key":"byokd:job","Value":"1"}]`
	f := newFake(t, func(q asked) answer {
		if q.operation != "GetResources" {
			return awsError("ValidationException")
		}
		if token, _ := q.body["PaginationToken"].(string); token == "" {
			return answer{body: `{"PaginationToken":"next","ResourceTagMappingList":[` +
				mapping("arn:aws:kms:eu-central-1:111122223333:key/b", both) + `,` +
				mapping("arn:aws:kms:eu-central-1:111122223333:key/untagged-since", `[]`) + `,` +
				mapping("arn:aws:kms:us-east-1:111122223333:key/elsewhere", both) + `]}`}
		}
		return answer{body: `{"PaginationToken":"","ResourceTagMappingList":[` + mapping("arn:aws:kms:eu-central-1:111122223333:key/a", both) + `]}`}
	})
	want := map[string]string{"byokd:job": "1", "byokd:group": "payments"}
	got, err := openKMS(t, f.settings()).FindKeys(t.Context(), want)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]cloud.TaggedKey{
		{KeyID: "a", ARN: "arn:aws:kms:eu-central-1:111122223333:key/a", Tags: want},
		{KeyID: "b", ARN: "arn:aws:kms:eu-central-1:111122223333:key/b", Tags: want},
	}, got); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(map[string]any{
		"ResourceTypeFilters": []any{"kms:key"},
		"TagFilters": []any{
			map[string]any{"Key": "byokd:group", "Values": []any{"payments"}},
			map[string]any{"Key": "byokd:job", "Values": []any{"1"}},
		},
	}, f.requests()[0].body); d != "" {
		t.Error(d)
	}
}

func TestFindKeysByListing(t *testing.T) {
	tags := func(id string) answer {
		switch id {
		case "key-0003":
			return tagged("byokd:group", "payments", "byokd:job", "1")
		case "key-1004":
			return tagged("byokd:group", "payments")
		case "key-0005":
			return awsError("AccessDeniedException")
		case "key-0006":
			return awsError("NotFoundException")
		}
		return tagged("team", "x")
	}
	f := tagFake(t, 1200, tags, nil)
	k := openKMS(t, f.settings())
	find := func(tags map[string]string, want ...string) {
		t.Helper()
		got, err := k.FindKeys(t.Context(), tags)
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, key := range got {
			ids = append(ids, key.KeyID)
		}
		if !slices.Equal(ids, want) {
			t.Errorf("found %q, want %q", ids, want)
		}
	}
	find(map[string]string{"byokd:group": "payments"}, "key-0003", "key-1004")
	find(map[string]string{"byokd:group": "payments", "byokd:job": "1"}, "key-0003")
	find(map[string]string{"byokd:group": "other"})
	// Tags just seen are not asked for again, but for the key that came and
	// went; the keys are.
	if got := f.count("ListResourceTags"); got != 1200+2 {
		t.Errorf("asked for tags %d times", got)
	}
	if got := f.count("ListKeys"); got != 3*2 {
		t.Errorf("listed %d pages", got)
	}
	if err := k.TagKey(t.Context(), "arn:aws:kms:"+region+":"+account+":key/key-0003", map[string]string{"a": "b"}); err != nil {
		t.Fatal(err)
	}
	find(map[string]string{"byokd:job": "1"}, "key-0003")
	if got := f.count("ListResourceTags"); got != 1200+2+2 {
		t.Errorf("asked for tags %d times after one was changed", got)
	}
}

func TestFindKeysFails(t *testing.T) {
	fine := func(string) answer { return tagged() }
	denied := awsError("AccessDeniedException")
	for name, test := range map[string]struct {
		keys    int
		tags    func(string) answer
		list    *answer
		class   cloud.Class
		waiting string
		want    string
	}{
		"too many":         {cloud.ListLimit + 1, fine, nil, cloud.Operator, "permission", "more than 2000 keys, too many to look at one by one; grant tag:GetResources"},
		"may not list":     {1, fine, &denied, cloud.Operator, "permission", "grant tag:GetResources, or kms:ListKeys and kms:ListResourceTags,"},
		"may read no tags": {3, func(string) answer { return denied }, nil, cloud.Operator, "permission", "the tags of none of 3 keys may be read"},
		"tags fail": {30, func(id string) answer {
			if id == "key-0020" {
				return awsError("KMSInternalException")
			}
			return tagged()
		}, nil, cloud.Transient, "", "kms:ListResourceTags for key-0020"},
	} {
		t.Run(name, func(t *testing.T) {
			f := tagFake(t, test.keys, test.tags, test.list)
			if name == "tags fail" {
				inner := f.answer
				f.answer = func(q asked) answer {
					a := inner(q)
					if strings.Contains(a.body, "KMSInternalException") {
						a.status = 500
					}
					return a
				}
			}
			got, err := openKMS(t, f.settings()).FindKeys(t.Context(), map[string]string{"a": "b"})
			if got != nil || cloud.ClassOf(err) != test.class || cloud.WaitingFor(err) != test.waiting {
				t.Errorf("got %v, class %q: %v", got, cloud.ClassOf(err), err)
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%q does not say %q", err, test.want)
			}
		})
	}
}

// Without an answer of the tagging API, an account without keys has none.
func TestFindKeysInAnEmptyAccount(t *testing.T) {
	f := newFake(t, func(q asked) answer {
		if q.operation == "GetResources" {
			return answer{hangUp: true}
		}
		return answer{body: `{"Keys":[]}`}
	})
	if got, err := openKMS(t, f.settings()).FindKeys(t.Context(), map[string]string{"a": "b"}); len(got) != 0 || err != nil {
		t.Errorf("got %v, %v", got, err)
	}
}

// What the tagging API answers badly must not end in "there are none".
func TestFindKeysBadCredentials(t *testing.T) {
	for _, code := range []string{"UnrecognizedClientException", "ThrottlingException"} {
		f := newFake(t, sequence(awsError(code)))
		if _, err := openKMS(t, f.settings()).FindKeys(t.Context(), nil); err == nil || f.count("ListKeys") != 0 {
			t.Errorf("%s: %v, listed %d times", code, err, f.count("ListKeys"))
		}
	}
}
