package hsm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/miekg/pkcs11"
)

// keyBytes is the length of an AES-256 key, the only one that KMS takes for
// SYMMETRIC_DEFAULT.
const keyBytes = 32

// GenerateAES makes an AES-256 key on the token: sensitive, extractable, with
// the label and ID of ref. The ID is one that the caller has drawn at random a
// moment ago, or has looked for with [Token.Find]: GenerateAES does not search the
// token for it before the first attempt, and returns [ErrKeyExists] for an object
// that it knows of. The key was found again in a fresh session when GenerateAES
// returns nil, for a token that has lost its storage can report success.
func (t *Token) GenerateAES(ctx context.Context, ref KeyRef) error {
	template, err := keyTemplate(ref, t.cfg.KeyTemplate)
	if err != nil {
		return operator(waitConfig, "[hsm.%s] key_template: %w", t.cfg.Name, err)
	}
	if len(ref.ID) == 0 {
		return permanent("generate key %v: %w", ref, errNoID)
	}
	sent := false
	err = t.do(ctx, readWrite, func(s *session) error {
		// A key that cannot be wrapped is of no use to anybody.
		if _, err := s.proven(); err != nil {
			return err
		}
		if _, known := s.conn.objects.handle(ref.ID); known || sent {
			switch _, err := s.find(ref); {
			case errors.Is(err, ErrKeyNotFound):
			case err == nil && sent:
				return nil // the answer was lost, but not the key
			case err == nil || errors.Is(err, errMismatch):
				return ErrKeyExists
			default:
				return err
			}
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
		s.conn.objects.seen(ref, key)
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

// Find looks the key up in a fresh session. It returns nil if the object with its
// ID is an AES-256 key, sensitive and extractable, with its label;
// [ErrKeyNotFound] if there is none. The token is searched, which must find
// exactly one object, unless this connection has made or found the key before and
// its handle still leads to it.
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
// the order of label and ID. It may return what was there at most age ago, but for
// keys that this Token has made or removed since: all keys are read to find those
// with a prefix, so that those who look for many groups, one after the other or at
// once, share a look. With an age of 0 the token is read after List was called.
func (t *Token) List(ctx context.Context, prefix string, age time.Duration) ([]KeyRef, error) {
	refs, err := t.list(ctx, prefix, time.Now().Add(-age))
	if err != nil {
		return nil, fmt.Errorf("list keys %s…: %w", prefix, err)
	}
	return refs, nil
}

func (t *Token) list(ctx context.Context, prefix string, earliest time.Time) ([]KeyRef, error) {
	select {
	case t.listing <- struct{}{}:
		defer func() { <-t.listing }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if conn := t.live(); conn != nil {
		if refs, ok := conn.objects.since(earliest, prefix); ok {
			return refs, nil
		}
	}
	var refs []KeyRef
	err := t.do(ctx, readOnly, func(s *session) (err error) {
		if err = s.listAll(); err == nil {
			refs, _ = s.conn.objects.since(time.Time{}, prefix)
		}
		return err
	})
	return refs, err
}

// listAll reads label and ID of every secret key on the token.
func (s *session) listAll() error {
	begun := time.Now()
	var (
		refs    []KeyRef
		handles []pkcs11.ObjectHandle
		done    bool
	)
	s.conn.objects.begin()
	defer func() { s.conn.objects.end(done, begun, refs, handles) }()
	keys, err := s.objects([]*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
	}, 0)
	if err != nil {
		return err
	}
	for _, key := range keys {
		values, err := s.attributes(key, pkcs11.CKA_LABEL, pkcs11.CKA_ID)
		if errors.Is(err, pkcs11.Error(pkcs11.CKR_ATTRIBUTE_TYPE_INVALID)) || errors.Is(err, pkcs11.Error(pkcs11.CKR_OBJECT_HANDLE_INVALID)) {
			continue // somebody else's, without a label or an ID; or removed meanwhile
		}
		if err != nil {
			return err
		}
		refs, handles = append(refs, KeyRef{Label: string(values[0]), ID: values[1]}), append(handles, key)
	}
	done = true
	return nil
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
		if err := s.destroy(key); err != nil {
			s.doubt(ref, err)
			return err
		}
		s.conn.objects.gone(ref)
		return nil
	})
	if err != nil {
		return fmt.Errorf("destroy key %v: %w", ref, err)
	}
	return nil
}

// errMismatch: an object has the key's ID but is not the key as it should be.
var errMismatch = errors.New("not the key as byokd makes it")

var errNoID = errors.New("a key without CKA_ID cannot be told from others")

// find returns the handle of the one object that is the key, having read in this
// session that it is.
func (s *session) find(ref KeyRef) (pkcs11.ObjectHandle, error) {
	if len(ref.ID) == 0 {
		return 0, permanent("%w", errNoID)
	}
	if key, ok := s.conn.objects.handle(ref.ID); ok {
		err := s.verify(key, ref)
		if err == nil {
			return key, nil
		}
		if rungOf(err) != rungNone && !isHandle(err) {
			return 0, err // the handle is not to blame
		}
		// It leads to nothing any more, or to another object.
		s.conn.objects.forget(ref.ID)
	}
	keys, err := s.objects([]*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_ID, ref.ID),
	}, 2)
	switch {
	case err != nil:
		return 0, err
	case len(keys) == 0:
		s.conn.objects.gone(ref)
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
	s.conn.objects.seen(ref, keys[0])
	return keys[0], nil
}

// doubt forgets the handle of a key if an operation with it failed because of a
// handle.
func (s *session) doubt(ref KeyRef, err error) {
	if isHandle(err) {
		s.conn.objects.forget(ref.ID)
	}
}

// isHandle reports whether an error says that an object's handle leads nowhere.
func isHandle(err error) bool {
	_, code := codeOf(err)
	return code == pkcs11.CKR_OBJECT_HANDLE_INVALID || code == pkcs11.CKR_KEY_HANDLE_INVALID
}

// verify checks that an object is the key, as it was meant to be.
func (s *session) verify(key pkcs11.ObjectHandle, ref KeyRef) error {
	yes := []byte{1}
	wanted := []struct {
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
	}
	types := make([]uint, len(wanted))
	for i, want := range wanted {
		types[i] = want.typ
	}
	values, err := s.attributes(key, types...)
	if err != nil && rungOf(err) == rungNone {
		// An object that lacks one may be refused them all: each by itself says
		// which.
		values, err = make([][]byte, len(wanted)), nil
		for i, want := range wanted {
			value, err := s.attributes(key, want.typ)
			if err != nil {
				return fmt.Errorf("%s: %w", want.attr, err)
			}
			values[i] = value[0]
		}
	}
	if err != nil {
		return err
	}
	for i, want := range wanted {
		if !bytes.Equal(values[i], want.value) {
			return fmt.Errorf("%w: %s is %q, want %q", errMismatch, want.attr, values[i], want.value)
		}
	}
	return nil
}

// ulong is a CK_ULONG as it stands in an attribute: eight bytes in the order of
// the machine.
func ulong(v uint64) []byte { return binary.NativeEndian.AppendUint64(nil, v) }
