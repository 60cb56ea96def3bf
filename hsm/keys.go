package hsm

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"
)

// keyBytes is the length of an AES-256 key, the only one that KMS takes for
// SYMMETRIC_DEFAULT.
const keyBytes = 32

// GenerateAES makes an AES-256 key on the token: sensitive, extractable, with
// the label and ID of ref. It returns [ErrKeyExists] if there is an object with
// that ID. The key was found again in a fresh session when GenerateAES returns
// nil, for a token that has lost its storage can report success.
func (t *Token) GenerateAES(ctx context.Context, ref KeyRef) error {
	template, err := keyTemplate(ref, t.cfg.KeyTemplate)
	if err != nil {
		return operator(waitConfig, "[hsm.%s] key_template: %w", t.cfg.Name, err)
	}
	sent := false
	err = t.do(ctx, readWrite, func(s *session) error {
		// A key that cannot be wrapped is of no use to anybody.
		if _, err := s.proven(); err != nil {
			return err
		}
		switch _, err := s.find(ref); {
		case errors.Is(err, ErrKeyNotFound):
		case err == nil && sent:
			return nil // the answer was lost, the key was not
		case err == nil || errors.Is(err, errMismatch):
			return ErrKeyExists
		default:
			return err
		}
		sent = true
		key, err := s.generate(template)
		if _, code := codeOf(err); full(code) {
			return fmt.Errorf("the token, or the memory of its module, is full: delete keys that are not needed any more: %w", err)
		}
		if err != nil {
			return err
		}
		if err := s.verify(key, ref); errors.Is(err, errMismatch) {
			// It is not what was asked for, and nobody knows of it yet.
			return operator(waitConfig, "the token makes other keys than it is asked for: %w: correct [hsm.%s.key_template]",
				errors.Join(err, s.destroy(key)), t.cfg.Name)
		} else if err != nil {
			return err
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("generate key %v: %w", ref, err)
	}
	err = t.Find(ctx, ref)
	if errors.Is(err, ErrKeyNotFound) {
		err = fmt.Errorf("the token reported success, but a fresh session does not find the key: the token may have lost its storage: %w", ErrTokenUnavailable)
	}
	if ClassOf(err) == Transient {
		err = &fault{class: Unknown, err: err} // there may be a key
	}
	if err != nil {
		return fmt.Errorf("generate key %v: %w", ref, err)
	}
	return nil
}

// Find looks the key up in a fresh session. It returns nil if there is exactly
// one object with its ID and that is an AES-256 key, sensitive and extractable,
// with its label; [ErrKeyNotFound] if there is none.
func (t *Token) Find(ctx context.Context, ref KeyRef) error {
	err := t.do(ctx, readOnly, func(s *session) error {
		_, err := s.find(ref)
		return err
	})
	if err != nil {
		return fmt.Errorf("find key %v: %w", ref, err)
	}
	return nil
}

// List returns the secret keys on the token whose label begins with prefix, in
// the order of label and ID.
func (t *Token) List(ctx context.Context, prefix string) ([]KeyRef, error) {
	var refs []KeyRef
	err := t.do(ctx, readOnly, func(s *session) error {
		refs = nil
		keys, err := s.objects([]*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
			pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		}, 0)
		if err != nil {
			return err
		}
		for _, key := range keys {
			label, err := s.attribute(key, pkcs11.CKA_LABEL)
			if errors.Is(err, pkcs11.Error(pkcs11.CKR_ATTRIBUTE_TYPE_INVALID)) {
				continue // somebody else's: it has no label
			}
			if err != nil {
				return err
			}
			if !strings.HasPrefix(string(label), prefix) {
				continue
			}
			id, err := s.attribute(key, pkcs11.CKA_ID)
			if err != nil {
				return err
			}
			refs = append(refs, KeyRef{Label: string(label), ID: id})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list keys %s…: %w", prefix, err)
	}
	slices.SortFunc(refs, func(a, b KeyRef) int {
		return cmp.Or(cmp.Compare(a.Label, b.Label), bytes.Compare(a.ID, b.ID))
	})
	return refs, nil
}

// Destroy removes the key from the token, or returns [ErrKeyNotFound]. Only
// what [Token.Find] would find is removed.
func (t *Token) Destroy(ctx context.Context, ref KeyRef) error {
	sent := false
	err := t.do(ctx, readWrite, func(s *session) error {
		key, err := s.find(ref)
		if sent && errors.Is(err, ErrKeyNotFound) {
			return nil // the answer was lost
		}
		if err != nil {
			return err
		}
		sent = true
		return s.destroy(key)
	})
	if err != nil {
		return fmt.Errorf("destroy key %v: %w", ref, err)
	}
	return nil
}

// errMismatch: an object has the key's ID but is not the key as it should be.
var errMismatch = errors.New("not the key as byokd makes it")

// find returns the handle of the one object that is the key. Handles are not
// kept: they die with the login and with the module's generation.
func (s *session) find(ref KeyRef) (pkcs11.ObjectHandle, error) {
	if len(ref.ID) == 0 {
		return 0, permanent("a key without CKA_ID cannot be told from others")
	}
	keys, err := s.objects([]*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_ID, ref.ID),
	}, 2)
	switch {
	case err != nil:
		return 0, err
	case len(keys) == 0:
		return 0, ErrKeyNotFound
	case len(keys) > 1:
		return 0, &fault{Operator, waitConfig, fmt.Errorf("%w: %d objects on the token have its CKA_ID; remove those that byokd did not make", errMismatch, len(keys))}
	}
	if err := s.verify(keys[0], ref); err != nil {
		if errors.Is(err, errMismatch) {
			err = &fault{Operator, waitConfig, err}
		}
		return 0, err
	}
	return keys[0], nil
}

// verify checks that an object is the key, as it was meant to be.
func (s *session) verify(key pkcs11.ObjectHandle, ref KeyRef) error {
	yes := []byte{1}
	for _, want := range []struct {
		attr  string
		typ   uint
		value []byte
	}{
		{"CKA_CLASS", pkcs11.CKA_CLASS, ulong(pkcs11.CKO_SECRET_KEY)},
		{"CKA_KEY_TYPE", pkcs11.CKA_KEY_TYPE, ulong(pkcs11.CKK_AES)},
		{"CKA_VALUE_LEN", pkcs11.CKA_VALUE_LEN, ulong(keyBytes)},
		{"CKA_LABEL", pkcs11.CKA_LABEL, []byte(ref.Label)},
		{"CKA_ID", pkcs11.CKA_ID, ref.ID},
		{"CKA_TOKEN", pkcs11.CKA_TOKEN, yes},
		{"CKA_SENSITIVE", pkcs11.CKA_SENSITIVE, yes},
		{"CKA_EXTRACTABLE", pkcs11.CKA_EXTRACTABLE, yes},
	} {
		got, err := s.attribute(key, want.typ)
		if err != nil {
			return fmt.Errorf("%s: %w", want.attr, err)
		}
		if !bytes.Equal(got, want.value) {
			return fmt.Errorf("%w: %s is %q, want %q", errMismatch, want.attr, got, want.value)
		}
	}
	return nil
}

// ulong is a CK_ULONG as it stands in an attribute: eight bytes in the order of
// the machine.
func ulong(v uint64) []byte { return binary.NativeEndian.AppendUint64(nil, v) }
