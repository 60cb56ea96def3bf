package lifecycle_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"byokd/daemon/lifecycle"
)

// A fakeHSM is a token. Like SoftHSM it lets two objects have one label and ID.
type fakeHSM struct {
	w         *world
	algorithm string
	objects   []object
	made      int
	lost      map[string]bool // IDs of objects that a test has removed
}

type object struct {
	label    string
	id       []byte
	material []byte
}

func (h *fakeHSM) find(hexID string) (found []object) {
	for _, o := range h.objects {
		if hex.EncodeToString(o.id) == hexID {
			found = append(found, o)
		}
	}
	return found
}

// lose removes an object behind byokd's back.
func (h *fakeHSM) lose(hexID string) {
	if h.lost == nil {
		h.lost = make(map[string]bool)
	}
	h.lost[hexID] = true
	h.remove(hexID)
}

func (h *fakeHSM) remove(hexID string) {
	var left []object
	for _, o := range h.objects {
		if hex.EncodeToString(o.id) != hexID {
			left = append(left, o)
		}
	}
	h.objects = left
}

func (h *fakeHSM) Algorithm(ctx context.Context) (string, error) {
	return h.algorithm, h.w.do(ctx, "hsm.Algorithm", false, func() error { return nil })
}

func (h *fakeHSM) Generate(ctx context.Context, label string, id []byte) error {
	return h.w.do(ctx, "hsm.Generate", true, func() error {
		if g, ok := h.w.journal.generationOf(hex.EncodeToString(id)); !ok || g.HSMLabel != label || g.Stage != lifecycle.PreActive {
			h.w.t.Errorf("Generate %s: the journal does not know of it", label)
		}
		if len(id) != 16 {
			h.w.t.Errorf("Generate %s: ID of %d bytes", label, len(id))
		}
		h.add(label, id)
		return nil
	})
}

func (h *fakeHSM) add(label string, id []byte) {
	h.made++
	sum := sha256.Sum256(fmt.Appendf(nil, "material %d", h.made))
	h.objects = append(h.objects, object{label, bytes.Clone(id), sum[:]})
}

func (h *fakeHSM) object(label string, id []byte) (object, error) {
	switch found := h.find(hex.EncodeToString(id)); {
	case len(found) == 0:
		return object{}, &lifecycle.Fault{Class: lifecycle.Permanent, Err: fmt.Errorf("find %s: %w", label, lifecycle.ErrNotFound)}
	case len(found) > 1 || found[0].label != label:
		return object{}, &lifecycle.Fault{Class: lifecycle.Permanent, Err: fmt.Errorf("find %s: %d objects", label, len(found))}
	default:
		return found[0], nil
	}
}

func (h *fakeHSM) Find(ctx context.Context, label string, id []byte) error {
	return h.w.do(ctx, "hsm.Find", false, func() error {
		_, err := h.object(label, id)
		return err
	})
}

func (h *fakeHSM) List(ctx context.Context, prefix string, _ time.Duration) (list []lifecycle.HSMKey, err error) {
	err = h.w.do(ctx, "hsm.List", false, func() error {
		for _, o := range h.objects {
			if strings.HasPrefix(o.label, prefix) {
				list = append(list, lifecycle.HSMKey{Label: o.label, ID: bytes.Clone(o.id)})
			}
		}
		return nil
	})
	return list, err
}

// Wrap makes what fakeKMS can unwrap: the public key, the algorithm and the
// material, which no real token would show.
func (h *fakeHSM) Wrap(ctx context.Context, label string, id []byte, algorithm string, spki []byte) (wrapped []byte, err error) {
	err = h.w.do(ctx, "hsm.Wrap", false, func() error {
		o, err := h.object(label, id)
		if err != nil {
			return err
		}
		if algorithm != h.algorithm {
			return &lifecycle.Fault{Class: lifecycle.Permanent, Err: fmt.Errorf("algorithm %s", algorithm)}
		}
		wrapped = fmt.Appendf(nil, "%s\n%s\n%x", spki, algorithm, o.material)
		return nil
	})
	return wrapped, err
}

func (h *fakeHSM) Destroy(ctx context.Context, label string, id []byte) error {
	return h.w.do(ctx, "hsm.Destroy", true, func() error {
		g, ok := h.w.journal.generationOf(hex.EncodeToString(id))
		if !ok || g.Stage != lifecycle.PreActive || h.w.kms.mayBeInUse(g) {
			h.w.t.Errorf("Destroy %s: it is not a generation that was never active", label)
		}
		h.remove(hex.EncodeToString(id))
		return nil
	})
}
