package lifecycle

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
)

// ObjectMissing and RotationsLeft are the codes of what Watch finds.
const (
	ObjectMissing = "hsm-object-missing"
	RotationsLeft = "rotations-left"
)

// fewRotations is how few rotations in place a key can have left before a person
// is told.
const fewRotations = 3

// Objects returns the CKA_IDs, in hex, of all of byokd's objects on a token.
func (e *Engine) Objects(ctx context.Context, hsm string) (map[string]bool, error) {
	token, err := e.HSM(hsm)
	if err != nil {
		return nil, err
	}
	list, err := token.List(ctx, "byokd/", 0)
	if err != nil {
		return nil, err
	}
	objects := make(map[string]bool)
	for _, o := range list {
		objects[hex.EncodeToString(o.ID)] = true
	}
	return objects, nil
}

// Watch tells what will stop a group's keys one day unless a person acts: HSM
// objects that are not on the token any more, without which material that expires
// or is lost cannot come back; rotations in place that are nearly used up. It
// only looks. objects is what Objects returned for the definition's HSM.
func (e *Engine) Watch(ctx context.Context, def Definition, objects map[string]bool) ([]Finding, error) {
	generations, err := e.Journal.Generations(ctx, def.Group)
	if err != nil {
		return nil, fmt.Errorf("read generations: %w", err)
	}
	findings := missingObjects(generations, func(id string) bool { return objects[id] })
	active, ok := activeOf(generations)
	if def.Mode != modeInPlace || !ok || active.Number == 0 {
		return findings, nil
	}
	kms, err := e.KMS(def.Credential, def.Region)
	if err != nil {
		return findings, err
	}
	materials, err := kms.KeyMaterials(ctx, active.KeyID)
	if errors.Is(err, ErrNotFound) {
		return findings, nil
	}
	if err != nil {
		return findings, err
	}
	if left := rotationsLeft(materials); left <= fewRotations {
		findings = append(findings, Finding{RotationsLeft, fmt.Sprintf("KMS key %s can be rotated in place %d more times, and then rotations wait for a person; "+
			"write mode = \"auto\" under [rotation], which then makes a fresh KMS key and moves the alias", active.KeyID, left)})
	}
	return findings, nil
}

// missingObjects are the HSM objects of generations that may be needed again and
// are not on the token.
func missingObjects(generations []Generation, onToken func(id string) bool) (findings []Finding) {
	for _, g := range generations {
		if onToken(g.HSMID) || g.HSMID == "" || g.GeneratedAt.IsZero() || g.Stage == Destroyed || !g.DeletionDate.IsZero() {
			continue
		}
		message := fmt.Sprintf("HSM object %s, ID %s, is not on the token: generation %d cannot be imported again", g.HSMLabel, g.HSMID, g.Number)
		if n := len(materialsOf(generations, g.KeyID)); n > 1 {
			message += fmt.Sprintf(", and without its material KMS key %s with its %d generations is unusable", g.KeyID, n)
		}
		findings = append(findings, Finding{ObjectMissing, message + "; restore it from the HSM's backup"})
	}
	return findings
}
