package hsm

import (
	"context"
	"time"
)

// What the tests look at from outside.
var ParseWrappingKey = parseWrappingKey

// Gate is the semaphore of a module.
type Gate = gate

func (g *gate) Lower(n int)                                 { g.lower(n) }
func (g *gate) Enter(ctx context.Context, alone bool) error { return g.enter(ctx, alone) }
func (g *gate) Leave()                                      { g.leave() }
func (g *gate) Shut(err error)                              { g.shut(err) }

// Encrypt has the token encrypt one block with a key, to compare the key with
// what was unwrapped.
func (t *Token) Encrypt(ctx context.Context, ref KeyRef, block []byte) (out []byte, err error) {
	err = t.do(ctx, readOnly, func(s *session) error {
		key, err := s.find(ref)
		if err != nil {
			return err
		}
		out, err = s.encryptBlock(key, block)
		s.doubt(ref, err)
		return err
	})
	return out, err
}

// GenerateUnchecked makes a key without looking for one with the same ID first.
func (t *Token) GenerateUnchecked(ctx context.Context, ref KeyRef, overrides map[string]any) error {
	template, err := keyTemplate(ref, overrides)
	if err != nil {
		return err
	}
	return t.do(ctx, readWrite, func(s *session) error {
		_, err := s.generate(template)
		return err
	})
}

// Forget forgets what is known of the token's keys.
func (t *Token) Forget() {
	if conn := t.live(); conn != nil {
		conn.objects.mu.Lock()
		defer conn.objects.mu.Unlock()
		conn.objects.handles, conn.objects.list, conn.objects.at = nil, nil, time.Time{}
	}
}

// Swap has the handles that are known of two keys change places.
func (t *Token) Swap(a, b KeyRef) {
	o := &t.live().objects
	o.mu.Lock()
	defer o.mu.Unlock()
	o.handles[string(a.ID)], o.handles[string(b.ID)] = o.handles[string(b.ID)], o.handles[string(a.ID)]
}

// Name returns the name of a CK_RV.
func Name(code uint) string { return name(code) }
