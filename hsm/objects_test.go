package hsm_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"byokd/hsm"
	"byokd/hsm/hsmtest"
)

// beside opens a session on a token whose module a Token has initialised and
// logged in to.
func beside(t testing.TB, tok *hsmtest.Token) (*pkcs11.Ctx, pkcs11.SessionHandle) {
	t.Helper()
	lib := pkcs11.New(tok.Module)
	slots, err := lib.GetSlotList(true)
	if err != nil {
		t.Fatal(err)
	}
	for _, slot := range slots {
		if ti, err := lib.GetTokenInfo(slot); err == nil && strings.TrimRight(ti.Label, " \x00") == tok.Label {
			session, err := lib.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { lib.CloseSession(session) })
			return lib, session
		}
	}
	t.Fatalf("no token %s", tok.Label)
	return nil, 0
}

// searches counts what takes as long as the token has objects.
func searches(f *hsmtest.Faults) int {
	return f.Calls("C_FindObjectsInit") + f.Calls("C_FindObjects") + f.Calls("C_FindObjectsFinal")
}

// A key's life takes the same calls on a token with ten objects as on one with two
// thousand, and none of them is a search.
func TestManyObjects(t *testing.T) {
	var calls []int
	for _, objects := range []int{10, 2000} {
		t.Run(fmt.Sprint(objects), func(t *testing.T) {
			tok := hsmtest.NewSoftHSM(t)
			hsmtest.Fill(t, tok, objects)
			faults := hsmtest.NewFaults()
			token := newModules(t, hsm.WithLibrary(faults.Wrap)).Token(config(tok))
			if err := token.Connect(t.Context()); err != nil {
				t.Fatal(err)
			}
			before := faults.Total()
			life(t, token)
			calls = append(calls, faults.Total()-before)
			if n := searches(faults); n != 0 {
				t.Errorf("%d calls to search", n)
			}

			// A key that this connection has not met is searched for once; a list of
			// all of them is one search, after which all are known.
			ref := mustGenerate(t, token, "byokd/y/1")
			token.Forget()
			for range 3 {
				if err := token.Find(t.Context(), ref); err != nil {
					t.Fatal(err)
				}
			}
			if n := faults.Calls("C_FindObjectsInit"); n != 1 {
				t.Errorf("%d searches for one key", n)
			}
			token.Forget()
			checkList(t, token, "byokd/", ref)
			if n := faults.Calls("C_FindObjectsInit"); n != 2 {
				t.Errorf("%d searches for a list", n-1)
			}
			if err := token.Find(t.Context(), ref); err != nil || faults.Calls("C_FindObjectsInit") != 2 {
				t.Errorf("searched for a key that was listed: %v", err)
			}
		})
	}
	// generate: session, key, look; find, twice: session, look; wrap: session, look,
	// public key, wrap; destroy: session, look, destroy. Each session is closed, too.
	if want := 4 + 2*3 + 5 + 4; len(calls) != 2 || calls[0] != want || calls[1] != want {
		t.Errorf("%v calls, want %d", calls, want)
	}
}

// life takes a key through what a rotation asks of the token, and its end.
func life(t *testing.T, token *hsm.Token) {
	t.Helper()
	ref := mustGenerate(t, token, "byokd/x/1")
	algorithm, err := token.Algorithm(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := token.Find(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	if _, err := token.Wrap(t.Context(), ref, algorithm, spki(t, &rsaKeys[2048]().PublicKey)); err != nil {
		t.Fatal(err)
	}
	if err := token.Destroy(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
}

// Those who look for groups one after the other share a look, in which what this
// Token makes and removes is seen at once.
func TestListIsShared(t *testing.T) {
	tok := hsmtest.NewSoftHSM(t)
	faults := hsmtest.NewFaults()
	token := newModules(t, hsm.WithLibrary(faults.Wrap)).Token(config(tok))
	list := func(prefix string, age time.Duration) int {
		t.Helper()
		refs, err := token.List(t.Context(), prefix, age)
		if err != nil {
			t.Fatal(err)
		}
		return len(refs)
	}
	first := mustGenerate(t, token, "byokd/a/1")
	if n := list("byokd/a/", time.Hour); n != 1 {
		t.Errorf("%d keys", n)
	}
	looks := faults.Calls("C_FindObjectsInit")
	mustGenerate(t, token, "byokd/a/2")
	mustGenerate(t, token, "byokd/ab/1")
	if err := token.Destroy(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if a, ab, none := list("byokd/a/", time.Hour), list("byokd/ab/", time.Hour), list("byokd/b/", time.Hour); a != 1 || ab != 1 || none != 0 {
			t.Errorf("%d, %d and %d keys", a, ab, none)
		}
	}
	if n := faults.Calls("C_FindObjectsInit"); n != looks {
		t.Errorf("the token was looked at %d times more", n-looks)
	}

	lib, session := beside(t, tok)
	for i := range 3 {
		if _, err := lib.GenerateKey(session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true), pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32),
			pkcs11.NewAttribute(pkcs11.CKA_LABEL, fmt.Sprintf("byokd/b/%d", i+1)), pkcs11.NewAttribute(pkcs11.CKA_ID, newKey("").ID)}); err != nil {
			t.Fatal(err)
		}
	}
	if old, now := list("byokd/b/", time.Hour), list("byokd/b/", 0); old != 0 || now != 3 {
		t.Errorf("another program's keys: %d in the old look, %d now", old, now)
	}
	if n := list("byokd/", time.Hour); n != 5 {
		t.Errorf("%d keys", n)
	}
	token.Forget()
	if n := list("byokd/", time.Hour); n != 5 {
		t.Errorf("%d keys in a new connection", n)
	}
}

// A handle that leads nowhere, or to another object, is no harm.
func TestStaleHandle(t *testing.T) {
	token := newFaultyToken(t)
	for name, code := range map[string]uint{"gone": pkcs11.CKR_OBJECT_HANDLE_INVALID, "of something without the attributes": pkcs11.CKR_ATTRIBUTE_TYPE_INVALID} {
		found := token.faults.Calls("C_FindObjectsInit")
		token.faults.Fail("C_GetAttributeValue", code, 1)
		checkWrap(t, token.Token, token.ref, 2048)
		want := 1
		if code == pkcs11.CKR_ATTRIBUTE_TYPE_INVALID {
			want = 0 // each attribute by itself is there
		}
		if n := token.faults.Calls("C_FindObjectsInit") - found; n != want {
			t.Errorf("%s: searched %d times, want %d", name, n, want)
		}
	}

	other := mustGenerate(t, token.Token, "byokd/x/2")
	token.Swap(token.ref, other)
	checkWrap(t, token.Token, token.ref, 2048)
	checkWrap(t, token.Token, other, 2048)
	token.Swap(token.ref, other)
	if err := token.Destroy(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	checkList(t, token.Token, "byokd/", token.ref)
	checkWrap(t, token.Token, token.ref, 2048)
	if n := len(token.logins.take()); n != 0 {
		t.Errorf("logged in again: %d", n)
	}
}

// A key that another program has removed is not on the token, whatever handle
// there was.
func TestRemovedByAnother(t *testing.T) {
	tok := hsmtest.NewSoftHSM(t)
	token := newModules(t).Token(config(tok))
	ref := mustGenerate(t, token, "byokd/x/1")
	lib, session := beside(t, tok)
	if err := lib.FindObjectsInit(session, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_ID, ref.ID)}); err != nil {
		t.Fatal(err)
	}
	found, _, err := lib.FindObjects(session, 2)
	if err != nil || len(found) != 1 {
		t.Fatal(found, err)
	}
	lib.FindObjectsFinal(session)
	if err := lib.DestroyObject(session, found[0]); err != nil {
		t.Fatal(err)
	}
	if err := token.Find(t.Context(), ref); !errorIs(err, hsm.ErrKeyNotFound, hsm.Operator) {
		t.Errorf("find: %v", err)
	}
	if err := token.GenerateAES(t.Context(), ref); err != nil {
		t.Errorf("generate again, as after Find said that it is gone: %v", err)
	}
	checkWrap(t, token, ref, 2048)
}
