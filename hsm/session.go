package hsm

import (
	"context"
	"errors"

	"github.com/miekg/pkcs11"
)

// Access to the token that a session has.
const (
	readOnly  uint = pkcs11.CKF_SERIAL_SESSION
	readWrite uint = pkcs11.CKF_SERIAL_SESSION | pkcs11.CKF_RW_SESSION
)

// A session is a PKCS#11 session for one operation. It is used by one goroutine
// and closed after it, never pooled: opening one costs microseconds, closing it
// removes the session objects that it made, and a session that was open before
// the token lost its storage tells less than a fresh one.
type session struct {
	t    *Token
	m    *module
	conn *connection
	h    pkcs11.SessionHandle
}

// use runs an operation with a place in the module and in a new session.
func (t *Token) use(ctx context.Context, m *module, conn *connection, access uint, fn func(*session) error) error {
	if err := m.gate.enter(ctx, false); err != nil {
		return err
	}
	defer m.gate.leave()
	if generation, ok := m.current(); !ok || generation != conn.generation {
		return errStale
	}
	t.mu.Lock()
	if conn.readWrite {
		access = readWrite
	}
	t.mu.Unlock()
	err := t.within(m, conn, access, fn)
	if access == readOnly && errors.Is(err, pkcs11.Error(pkcs11.CKR_SESSION_READ_ONLY)) {
		// Some tokens make not even session objects in such a session.
		t.mu.Lock()
		conn.readWrite = true
		t.mu.Unlock()
		err = t.within(m, conn, readWrite, fn)
	}
	return err
}

func (t *Token) within(m *module, conn *connection, access uint, fn func(*session) error) error {
	h, err := call(m, t.cfg.CallTimeout, "C_OpenSession", func(lib Library) (pkcs11.SessionHandle, error) {
		return lib.OpenSession(conn.slot, access)
	})
	if err != nil {
		return err
	}
	t.mu.Lock()
	t.inUse++
	t.mu.Unlock()
	s := &session{t: t, m: m, conn: conn, h: h}
	defer s.close()
	return fn(s)
}

func (s *session) close() {
	err := s.run("C_CloseSession", func(lib Library) error { return lib.CloseSession(s.h) })
	_, hung := errors.AsType[*hungError](err)
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	s.t.inUse--
	if hung {
		s.t.abandoned++
	}
}

// ask calls a function of the module.
func ask[T any](s *session, op string, f func(Library) (T, error)) (T, error) {
	return call(s.m, s.t.cfg.CallTimeout, op, f)
}

// run calls a function of the module that has no result.
func (s *session) run(op string, f func(Library) error) error {
	_, err := ask(s, op, func(lib Library) (struct{}, error) { return struct{}{}, f(lib) })
	return err
}

func (s *session) tokenInfo() (pkcs11.TokenInfo, error) {
	return ask(s, "C_GetTokenInfo", func(lib Library) (pkcs11.TokenInfo, error) { return lib.GetTokenInfo(s.conn.slot) })
}

func (s *session) generate(template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	return ask(s, "C_GenerateKey", func(lib Library) (pkcs11.ObjectHandle, error) {
		return lib.GenerateKey(s.h, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, template)
	})
}

func (s *session) create(template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	return ask(s, "C_CreateObject", func(lib Library) (pkcs11.ObjectHandle, error) { return lib.CreateObject(s.h, template) })
}

func (s *session) destroy(o pkcs11.ObjectHandle) error {
	return s.run("C_DestroyObject", func(lib Library) error { return lib.DestroyObject(s.h, o) })
}

// attributes reads attributes of an object. One that the object does not have
// makes all of them an error.
func (s *session) attributes(o pkcs11.ObjectHandle, types ...uint) ([][]byte, error) {
	template := make([]*pkcs11.Attribute, len(types))
	for i, typ := range types {
		template[i] = pkcs11.NewAttribute(typ, nil)
	}
	as, err := ask(s, "C_GetAttributeValue", func(lib Library) ([]*pkcs11.Attribute, error) {
		return lib.GetAttributeValue(s.h, o, template)
	})
	if err != nil {
		return nil, err
	}
	values := make([][]byte, len(types))
	for i := range types {
		values[i] = as[i].Value
	}
	return values, nil
}

// objects returns the handles of the objects that match, at most limit of them
// unless that is 0.
func (s *session) objects(template []*pkcs11.Attribute, limit int) (found []pkcs11.ObjectHandle, err error) {
	if err := s.run("C_FindObjectsInit", func(lib Library) error { return lib.FindObjectsInit(s.h, template) }); err != nil {
		return nil, err
	}
	defer func() {
		if e := s.run("C_FindObjectsFinal", func(lib Library) error { return lib.FindObjectsFinal(s.h) }); err == nil {
			err = e
		}
	}()
	const batch = 256
	for limit == 0 || len(found) < limit {
		// A module may give fewer than it was asked for; only none is the end.
		some, err := ask(s, "C_FindObjects", func(lib Library) ([]pkcs11.ObjectHandle, error) {
			some, _, err := lib.FindObjects(s.h, batch)
			return some, err
		})
		if err != nil {
			return nil, err
		}
		if len(some) == 0 {
			break
		}
		found = append(found, some...)
	}
	return found, nil
}

func (s *session) wrapKey(algorithm string, wrapping, key pkcs11.ObjectHandle) ([]byte, error) {
	return ask(s, "C_WrapKey", func(lib Library) ([]byte, error) {
		return lib.WrapKey(s.h, []*pkcs11.Mechanism{algorithms[algorithm].mechanism()}, wrapping, key)
	})
}

// encrypt encrypts one message with an AES session key.
func (s *session) encrypt(mech *pkcs11.Mechanism, key pkcs11.ObjectHandle, message []byte) ([]byte, error) {
	if err := s.run("C_EncryptInit", func(lib Library) error {
		return lib.EncryptInit(s.h, []*pkcs11.Mechanism{mech}, key)
	}); err != nil {
		return nil, err
	}
	return ask(s, "C_Encrypt", func(lib Library) ([]byte, error) { return lib.Encrypt(s.h, message) })
}
