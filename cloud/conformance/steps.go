package conformance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"byokd/cloud"
)

// errNoEvents says that the target has no EventBridge.
var errNoEvents = errors.New("the target has no event bus")

// steps are what byokd relies on, in an order in which each finds what it needs.
var steps = []step{
	{"account", nil, func(r *run, ctx context.Context) error {
		account, err := r.kms.Account(ctx)
		if err == nil && (len(account) != 12 || strings.Trim(account, "0123456789") != "") {
			return fmt.Errorf("the account is %q", account)
		}
		return err
	}},

	// A key and its first material.
	{"create", nil, func(r *run, ctx context.Context) (err error) {
		r.first, err = r.create(ctx, "byokd conformance, first")
		if err == nil && (r.first.State != "PendingImport" || r.first.Origin != "EXTERNAL" || r.first.MaterialID != "" || r.first.ARN == "" || r.first.Manager != "CUSTOMER") {
			return fmt.Errorf("the new key is %+v", r.first)
		}
		return err
	}},
	{"describe", []string{"create"}, func(r *run, ctx context.Context) error {
		key, err := r.reaches(ctx, r.first.ARN, inState("PendingImport"))
		if err == nil && (key.ID != r.first.ID || key.Description != "byokd conformance, first" || key.KeySpec != "SYMMETRIC_DEFAULT") {
			return fmt.Errorf("the key is %+v", key)
		}
		return err
	}},
	{"describe a key that does not exist", nil, func(r *run, ctx context.Context) error {
		_, err := r.kms.DescribeKey(ctx, "00000000-0000-4000-8000-000000000000")
		return wantError(err, cloud.ErrNotFound)
	}},
	{"find by tag", []string{"create"}, func(r *run, ctx context.Context) error {
		return r.eventually(ctx, func() error {
			found, err := r.kms.FindKeys(ctx, map[string]string{"byokd-conformance": r.id})
			if err == nil && (len(found) != 1 || found[0].KeyID != r.first.ID) {
				return fmt.Errorf("found %+v", found)
			}
			return err
		})
	}},
	{"no use before the import", []string{"describe"}, func(r *run, ctx context.Context) error { return r.refusesUse(ctx, r.first.ID) }},
	{"no enabling before the import", []string{"describe"}, func(r *run, ctx context.Context) error {
		return wantError(r.kms.EnableKey(ctx, r.first.ID), cloud.ErrState)
	}},
	{"parameters live a day", []string{"create"}, func(r *run, ctx context.Context) error {
		p, _, err := r.wrapped(ctx, r.first.ID, randomBytes(32))
		if d := p.ValidTo.Sub(r.kms.Now()); err == nil && (d < 23*time.Hour || d > 24*time.Hour+time.Minute) {
			return fmt.Errorf("they are valid for %v", d)
		}
		return err
	}},
	{"material of 16 bytes is refused", []string{"create"}, func(r *run, ctx context.Context) error {
		return r.refusesImport(ctx, r.first.ID, randomBytes(16))
	}},
	{"damaged material is refused", []string{"create"}, func(r *run, ctx context.Context) error {
		p, w, err := r.wrapped(ctx, r.first.ID, randomBytes(32))
		if err != nil {
			return err
		}
		w[len(w)/2] ^= 1
		_, err = r.kms.ImportKeyMaterial(ctx, r.first.ID, p.Token, w, cloud.Import{})
		return wantClass(err, cloud.Permanent, cloud.Transient) // package cloud may ask for a fresh token first
	}},
	{"import", []string{"create"}, func(r *run, ctx context.Context) (err error) {
		r.material = randomBytes(32)
		if r.materialID, err = r.importInto(ctx, r.first.ID, r.material, time.Time{}); err != nil {
			return err
		}
		key, err := r.reaches(ctx, r.first.ID, inState("Enabled"))
		if err == nil && !key.ValidTo.IsZero() {
			return fmt.Errorf("it is valid to %v", key.ValidTo)
		}
		return err
	}},
	{"material has an ID", []string{"import"}, func(r *run, ctx context.Context) error {
		key, err := r.kms.DescribeKey(ctx, r.first.ID)
		if err == nil && (len(r.materialID) != 64 || key.MaterialID != r.materialID) {
			return fmt.Errorf("imported as %q, described as %q", r.materialID, key.MaterialID)
		}
		return err
	}},
	{"use", []string{"import"}, func(r *run, ctx context.Context) (err error) {
		r.ciphertext, err = r.probe(ctx, r.first.ID)
		return err
	}},
	{"another encryption context is refused", []string{"use"}, func(r *run, ctx context.Context) error {
		if _, err := r.kms.Decrypt(ctx, r.first.ID, r.ciphertext, nil); err == nil {
			return errors.New("it decrypts")
		}
		return nil
	}},
	{"last usage", []string{"use"}, func(r *run, ctx context.Context) error {
		return r.eventually(ctx, func() error {
			at, known, err := r.kms.LastUsage(ctx, r.first.ID)
			if d := r.kms.Now().Sub(at); err == nil && (!known || d < -time.Minute || d > 24*time.Hour) {
				return fmt.Errorf("known %v, at %v", known, at)
			}
			return err
		})
	}},

	// Importing again.
	{"other material is refused", []string{"import"}, func(r *run, ctx context.Context) error {
		_, err := r.importInto(ctx, r.first.ID, randomBytes(32), time.Time{})
		return wantError(err, cloud.ErrIncorrectMaterial)
	}},
	{"a token of another key is refused", []string{"import"}, func(r *run, ctx context.Context) (err error) {
		if r.disabled, err = r.create(ctx, "byokd conformance, third"); err != nil {
			return err
		}
		p, w, err := r.wrapped(ctx, r.disabled.ID, r.material)
		if err != nil {
			return err
		}
		_, err = r.kms.ImportKeyMaterial(ctx, r.first.ID, p.Token, w, cloud.Import{})
		return wantError(err, cloud.ErrImportToken)
	}},
	{"the same material with an end", []string{"import"}, func(r *run, ctx context.Context) error {
		validTo := r.kms.Now().Add(30 * 24 * time.Hour)
		if _, err := r.importInto(ctx, r.first.ID, r.material, validTo); err != nil {
			return err
		}
		_, err := r.reaches(ctx, r.first.ID, func(k cloud.Key) bool {
			return k.State == "Enabled" && k.ValidTo.Equal(validTo.Truncate(time.Second))
		})
		return err
	}},
	{"an end more than 365 days ahead is refused", []string{"import"}, func(r *run, ctx context.Context) error {
		_, err := r.importInto(ctx, r.first.ID, r.material, r.kms.Now().Add(366*24*time.Hour))
		return wantClass(err, cloud.Permanent)
	}},
	{"the same material without an end", []string{"the same material with an end"}, func(r *run, ctx context.Context) error {
		if _, err := r.importInto(ctx, r.first.ID, r.material, time.Time{}); err != nil {
			return err
		}
		_, err := r.reaches(ctx, r.first.ID, func(k cloud.Key) bool { return k.State == "Enabled" && k.ValidTo.IsZero() })
		return err
	}},
	{"delete the material", []string{"use"}, func(r *run, ctx context.Context) error {
		if err := r.kms.DeleteKeyMaterial(ctx, r.first.ID, ""); err != nil {
			return err
		}
		key, err := r.reaches(ctx, r.first.ID, inState("PendingImport"))
		if err == nil && !key.ValidTo.IsZero() {
			return fmt.Errorf("it is valid to %v", key.ValidTo)
		}
		return err
	}},
	{"no use without material", []string{"delete the material"}, func(r *run, ctx context.Context) error {
		return r.refusesUse(ctx, r.first.ID)
	}},
	{"other material is refused after the deletion", []string{"delete the material"}, func(r *run, ctx context.Context) error {
		_, err := r.importInto(ctx, r.first.ID, randomBytes(32), time.Time{})
		return wantError(err, cloud.ErrIncorrectMaterial)
	}},
	{"import again", []string{"delete the material"}, func(r *run, ctx context.Context) error {
		again, err := r.importInto(ctx, r.first.ID, r.material, time.Time{})
		if err != nil {
			return err
		}
		if again != r.materialID {
			return fmt.Errorf("the same material is now %s, it was %s", again, r.materialID)
		}
		if _, err := r.reaches(ctx, r.first.ID, inState("Enabled")); err != nil {
			return err
		}
		return r.decrypts(ctx, r.first.ID, r.ciphertext)
	}},
	{"expiry", nil, func(r *run, ctx context.Context) (err error) {
		if r.expiring, err = r.create(ctx, "byokd conformance, expiring"); err != nil {
			return err
		}
		if _, err := r.importInto(ctx, r.expiring.ID, randomBytes(32), r.kms.Now().Add(3*time.Second)); err != nil {
			return err
		}
		_, err = r.reaches(ctx, r.expiring.ID, inState("PendingImport"))
		return err
	}},

	// The alias.
	{"an alias that is not there", nil, func(r *run, ctx context.Context) error {
		_, err := r.kms.DescribeKey(ctx, r.alias())
		return wantError(err, cloud.ErrNotFound)
	}},
	{"moving an alias that is not there", []string{"import again"}, func(r *run, ctx context.Context) error {
		return wantError(r.kms.UpdateAlias(ctx, r.alias(), r.first.ID), cloud.ErrNotFound)
	}},
	{"create alias", []string{"import again"}, func(r *run, ctx context.Context) error {
		if err := r.kms.CreateAlias(ctx, r.alias(), r.first.ID); err != nil {
			return err
		}
		_, err := r.reaches(ctx, r.alias(), func(k cloud.Key) bool { return k.ID == r.first.ID })
		return err
	}},
	{"create alias twice", []string{"create alias"}, func(r *run, ctx context.Context) error {
		return wantError(r.kms.CreateAlias(ctx, r.alias(), r.first.ID), cloud.ErrConflict)
	}},
	{"list aliases", []string{"create alias"}, func(r *run, ctx context.Context) error {
		return r.eventually(ctx, func() error {
			names, err := r.kms.KeyAliases(ctx, r.first.ID)
			if err == nil {
				err = contains(names, r.alias())
			}
			return err
		})
	}},
	{"use by alias", []string{"create alias"}, func(r *run, ctx context.Context) error {
		_, err := r.probe(ctx, r.alias())
		return err
	}},
	{"move alias", []string{"create alias"}, func(r *run, ctx context.Context) (err error) {
		if r.second, err = r.create(ctx, "byokd conformance, second"); err != nil {
			return err
		}
		if _, err := r.importInto(ctx, r.second.ID, randomBytes(32), time.Time{}); err != nil {
			return err
		}
		if _, err := r.probe(ctx, r.second.ID); err != nil {
			return err
		}
		if err := r.kms.UpdateAlias(ctx, r.alias(), r.second.ID); err != nil {
			return err
		}
		if _, err := r.reaches(ctx, r.alias(), func(k cloud.Key) bool { return k.ID == r.second.ID }); err != nil {
			return err
		}
		return r.decrypts(ctx, r.first.ID, r.ciphertext)
	}},
	{"the other key does not decrypt", []string{"move alias"}, func(r *run, ctx context.Context) error {
		if _, err := r.kms.Decrypt(ctx, r.second.ID, r.ciphertext, map[string]string{"byokd-canary": r.id}); err == nil {
			return errors.New("it decrypts")
		}
		return nil
	}},

	// Disabling.
	{"disable", []string{"move alias"}, func(r *run, ctx context.Context) error {
		if err := r.kms.DisableKey(ctx, r.first.ID); err != nil {
			return err
		}
		if _, err := r.reaches(ctx, r.first.ID, inState("Disabled")); err != nil {
			return err
		}
		return r.refusesUse(ctx, r.first.ID)
	}},
	{"enable", []string{"disable"}, func(r *run, ctx context.Context) error {
		if err := r.kms.EnableKey(ctx, r.first.ID); err != nil {
			return err
		}
		if _, err := r.reaches(ctx, r.first.ID, inState("Enabled")); err != nil {
			return err
		}
		return r.decrypts(ctx, r.first.ID, r.ciphertext)
	}},
	{"a disabled key that gets its material again is enabled", []string{"enable"}, func(r *run, ctx context.Context) error {
		if err := r.kms.DisableKey(ctx, r.first.ID); err != nil {
			return err
		}
		if err := r.kms.DeleteKeyMaterial(ctx, r.first.ID, ""); err != nil {
			return err
		}
		if _, err := r.reaches(ctx, r.first.ID, inState("PendingImport")); err != nil {
			return err
		}
		if _, err := r.importInto(ctx, r.first.ID, r.material, time.Time{}); err != nil {
			return err
		}
		_, err := r.reaches(ctx, r.first.ID, inState("Enabled"))
		return err
	}},

	// Several materials in one key.
	{"new material waits for the rotation", []string{"material has an ID", "enable", "a disabled key that gets its material again is enabled"}, func(r *run, ctx context.Context) (err error) {
		if r.secondID, err = r.importMore(ctx, cloud.Import{New: true, Description: "byokd/conformance/2 " + r.id}); err != nil {
			return err
		}
		return r.eventually(ctx, func() error {
			m, err := r.oneMaterial(ctx, r.secondID)
			if err == nil && (m.State != "PENDING_ROTATION" || !m.Imported || m.Description != "byokd/conformance/2 "+r.id || m.OnDemand) {
				return fmt.Errorf("the pending material is %+v", m)
			}
			if err != nil {
				return err
			}
			m, err = r.oneMaterial(ctx, r.materialID)
			if err == nil && m.State != "CURRENT" {
				return fmt.Errorf("the first material is %+v", m)
			}
			return err
		})
	}},
	{"no second material waits", []string{"new material waits for the rotation"}, func(r *run, ctx context.Context) error {
		p, w, err := r.wrapped(ctx, r.first.ID, randomBytes(32))
		if err != nil {
			return err
		}
		_, err = r.kms.ImportKeyMaterial(ctx, r.first.ID, p.Token, w, cloud.Import{New: true})
		return wantError(err, cloud.ErrState)
	}},
	{"rotate in place", []string{"new material waits for the rotation"}, func(r *run, ctx context.Context) error {
		if err := r.kms.RotateKeyOnDemand(ctx, r.first.ID); err != nil {
			return err
		}
		err := r.eventually(ctx, func() error {
			m, err := r.oneMaterial(ctx, r.secondID)
			if err == nil && (m.State != "CURRENT" || !m.OnDemand || m.RotatedAt.IsZero()) {
				return fmt.Errorf("the new material is %+v", m)
			}
			return err
		})
		if err != nil {
			return err
		}
		at, err := r.kms.RotationStarted(ctx, r.first.ID)
		if err == nil && !at.IsZero() {
			return fmt.Errorf("a rotation is running since %v", at)
		}
		if err != nil {
			return err
		}
		_, err = r.reaches(ctx, r.first.ID, func(k cloud.Key) bool { return k.State == "Enabled" && k.MaterialID == r.secondID })
		return err
	}},
	{"no rotation without pending material", []string{"rotate in place"}, func(r *run, ctx context.Context) error {
		return wantError(r.kms.RotateKeyOnDemand(ctx, r.first.ID), cloud.ErrState)
	}},
	{"old and new ciphertext after a rotation in place", []string{"rotate in place"}, func(r *run, ctx context.Context) error {
		if err := r.decrypts(ctx, r.first.ID, r.ciphertext); err != nil {
			return err
		}
		_, err := r.probe(ctx, r.first.ID)
		return err
	}},
	{"one missing material stops the key", []string{"rotate in place"}, func(r *run, ctx context.Context) error {
		if err := r.kms.DeleteKeyMaterial(ctx, r.first.ID, r.materialID); err != nil {
			return err
		}
		if _, err := r.reaches(ctx, r.first.ID, inState("PendingImport")); err != nil {
			return err
		}
		return r.refusesUse(ctx, r.first.ID)
	}},
	{"new material is refused while another is missing", []string{"one missing material stops the key"}, func(r *run, ctx context.Context) error {
		_, err := r.importMore(ctx, cloud.Import{New: true})
		return wantError(err, cloud.ErrState)
	}},
	{"the missing material brings the key back", []string{"one missing material stops the key"}, func(r *run, ctx context.Context) error {
		p, w, err := r.wrapped(ctx, r.first.ID, r.material)
		if err != nil {
			return err
		}
		if _, err = r.kms.ImportKeyMaterial(ctx, r.first.ID, p.Token, w, cloud.Import{MaterialID: r.secondID}); !errors.Is(err, cloud.ErrIncorrectMaterial) {
			return fmt.Errorf("under the ID of the other material: %w", wantError(err, cloud.ErrIncorrectMaterial))
		}
		if p, w, err = r.wrapped(ctx, r.first.ID, r.material); err != nil {
			return err
		}
		if _, err = r.kms.ImportKeyMaterial(ctx, r.first.ID, p.Token, w, cloud.Import{MaterialID: r.materialID}); err != nil {
			return err
		}
		if _, err := r.reaches(ctx, r.first.ID, inState("Enabled")); err != nil {
			return err
		}
		return r.decrypts(ctx, r.first.ID, r.ciphertext)
	}},
	{"pending material is deleted without harm", []string{"the missing material brings the key back"}, func(r *run, ctx context.Context) error {
		id, err := r.importMore(ctx, cloud.Import{New: true})
		if err != nil {
			return err
		}
		if err := r.kms.DeleteKeyMaterial(ctx, r.first.ID, id); err != nil {
			return err
		}
		if err := r.eventually(ctx, func() error {
			materials, err := r.kms.KeyMaterials(ctx, r.first.ID)
			if err == nil && len(materials) != 2 {
				return fmt.Errorf("the materials are %+v", materials)
			}
			return err
		}); err != nil {
			return err
		}
		return r.decrypts(ctx, r.first.ID, r.ciphertext)
	}},

	// What stands around a key.
	{"tags", []string{"create"}, func(r *run, ctx context.Context) error {
		if err := r.kms.TagKey(ctx, r.first.ID, map[string]string{"a": "1", "b": ""}); err != nil {
			return err
		}
		if err := r.kms.UntagKey(ctx, r.first.ID, []string{"a"}); err != nil {
			return err
		}
		return r.eventually(ctx, func() error {
			have, err := r.kms.KeyTags(ctx, r.first.ID)
			if err == nil {
				err = sameTags(have, map[string]string{"byokd-conformance": r.id, "b": ""})
			}
			return err
		})
	}},
	{"description", []string{"create"}, func(r *run, ctx context.Context) error {
		if err := r.kms.SetDescription(ctx, r.first.ID, "another one"); err != nil {
			return err
		}
		_, err := r.reaches(ctx, r.first.ID, func(k cloud.Key) bool { return k.Description == "another one" })
		return err
	}},
	{"key policy", []string{"create"}, func(r *run, ctx context.Context) error {
		before, err := r.kms.KeyPolicy(ctx, r.first.ID)
		if err != nil {
			return err
		}
		after, err := withSid(before, "byokd-conformance")
		if err != nil {
			return err
		}
		if err := r.kms.PutKeyPolicy(ctx, r.first.ID, after); err != nil {
			return err
		}
		return r.eventually(ctx, func() error {
			got, err := r.kms.KeyPolicy(ctx, r.first.ID)
			if err == nil && !sameJSON(got, after) {
				return fmt.Errorf("the policy is %s", got)
			}
			return err
		})
	}},
	{"a key policy that locks everybody out is refused", []string{"key policy"}, func(r *run, ctx context.Context) error {
		policy, err := r.kms.KeyPolicy(ctx, r.first.ID)
		if err != nil {
			return err
		}
		locked := strings.ReplaceAll(policy, `"kms:*"`, `"kms:DescribeKey"`)
		return wantError(r.kms.PutKeyPolicy(ctx, r.first.ID, locked), cloud.ErrPolicy)
	}},

	{"grant", []string{"import again"}, func(r *run, ctx context.Context) error {
		arn := strings.Split(r.first.ARN, ":")
		if len(arn) != 6 {
			return fmt.Errorf("the ARN of the key is %q", r.first.ARN)
		}
		want := cloud.Grant{
			Name: "byokd-conformance", Grantee: "arn:" + arn[1] + ":iam::" + arn[4] + ":root", Operations: []string{"Decrypt"},
			ContextSubset: map[string]string{"byokd-canary": r.id},
		}
		for range 2 { // under a name, twice is once
			if err := r.kms.CreateGrant(ctx, r.first.ID, want); err != nil {
				return err
			}
		}
		return r.eventually(ctx, func() error {
			grants, err := r.kms.Grants(ctx, r.first.ID)
			if err != nil {
				return err
			}
			if len(grants) == 1 {
				want.ID = grants[0].ID
			}
			if len(grants) != 1 || want.ID == "" || !reflect.DeepEqual(grants[0], want) {
				return fmt.Errorf("the grants are %+v, not %+v", grants, want)
			}
			return nil
		})
	}},

	// The end of a key.
	{"schedule deletion", []string{"move alias"}, func(r *run, ctx context.Context) error {
		at, err := r.kms.ScheduleDeletion(ctx, r.second.ID, 7)
		if d := at.Sub(r.kms.Now()); err == nil && (d < 6*24*time.Hour || d > 8*24*time.Hour+time.Hour) {
			return fmt.Errorf("it is due in %v", d)
		}
		if err != nil {
			return err
		}
		key, err := r.reaches(ctx, r.second.ID, inState("PendingDeletion"))
		if err == nil && key.DeletionDate.IsZero() {
			return errors.New("the key has no deletion date")
		}
		if err != nil {
			return err
		}
		return r.refusesUse(ctx, r.second.ID)
	}},
	{"schedule deletion twice", []string{"schedule deletion"}, func(r *run, ctx context.Context) error {
		_, err := r.kms.ScheduleDeletion(ctx, r.second.ID, 7)
		return wantError(err, cloud.ErrState)
	}},
	{"no alias to a key pending deletion", []string{"schedule deletion"}, func(r *run, ctx context.Context) error {
		return wantError(r.kms.CreateAlias(ctx, r.alias()+"-late", r.second.ID), cloud.ErrState)
	}},
	{"cancel deletion", []string{"schedule deletion"}, func(r *run, ctx context.Context) error {
		if err := r.kms.CancelDeletion(ctx, r.second.ID); err != nil {
			return err
		}
		key, err := r.reaches(ctx, r.second.ID, func(k cloud.Key) bool { return k.State != "PendingDeletion" })
		if err != nil {
			return err
		}
		if key.State != "Disabled" {
			return fmt.Errorf("the key is %s", key.State)
		}
		if err := r.kms.EnableKey(ctx, r.second.ID); err != nil {
			return err
		}
		_, err = r.probe(ctx, r.second.ID)
		return err
	}},
	{"cancel deletion twice", []string{"cancel deletion"}, func(r *run, ctx context.Context) error {
		return wantError(r.kms.CancelDeletion(ctx, r.second.ID), cloud.ErrState)
	}},

	// Events.
	{"event bus", nil, func(r *run, ctx context.Context) error {
		bus, err := r.bus(r.Bus)
		if err != nil {
			return err
		}
		return bus.Check(ctx)
	}},
	{"an event bus that is not there", nil, func(r *run, ctx context.Context) error {
		bus, err := r.bus("byokd-conformance-" + r.id)
		if err != nil {
			return err
		}
		return wantError(bus.Check(ctx), cloud.ErrNotFound)
	}},
	{"put events", []string{"event bus"}, func(r *run, ctx context.Context) error {
		bus, err := r.bus(r.Bus)
		if err != nil {
			return err
		}
		event := func(detail string) cloud.Event {
			return cloud.Event{Source: "byokd.conformance", DetailType: "Conformance Run", Detail: []byte(detail), Time: r.kms.Now()}
		}
		results, err := bus.Put(ctx, []cloud.Event{event(`{"run":"` + r.id + `"}`), event(`no JSON`), event(`{"run":2}`)})
		if err != nil {
			return err
		}
		if results[0].Err != nil || results[0].EventID == "" || results[2].Err != nil {
			return fmt.Errorf("good events: %w", errors.Join(results[0].Err, results[2].Err))
		}
		return wantClass(results[1].Err, cloud.Permanent)
	}},
}

// importMore imports fresh material into the first key.
func (r *run) importMore(ctx context.Context, i cloud.Import) (materialID string, err error) {
	p, w, err := r.wrapped(ctx, r.first.ID, randomBytes(32))
	if err != nil {
		return "", err
	}
	return r.kms.ImportKeyMaterial(ctx, r.first.ID, p.Token, w, i)
}

// oneMaterial returns the first key's material with that ID.
func (r *run) oneMaterial(ctx context.Context, id string) (cloud.Material, error) {
	materials, err := r.kms.KeyMaterials(ctx, r.first.ID)
	if err != nil {
		return cloud.Material{}, err
	}
	for _, m := range materials {
		if m.ID == id {
			return m, nil
		}
	}
	return cloud.Material{}, fmt.Errorf("%+v has no material %s", materials, id)
}

// bus returns an event bus of the target.
func (r *run) bus(name string) (*cloud.Bus, error) {
	if r.Bus == "" {
		return nil, errNoEvents
	}
	return r.cloud.Bus(r.Credential, r.Region, name)
}

// refusesImport checks that material is refused for good.
func (r *run) refusesImport(ctx context.Context, id string, material []byte) error {
	_, err := r.importInto(ctx, id, material, time.Time{})
	return wantClass(err, cloud.Permanent)
}

// wantClass checks that an error is of one of the classes.
func wantClass(err error, want ...cloud.Class) error {
	switch {
	case err == nil:
		return errors.New("it succeeded, which should be refused")
	case !slices.Contains(want, cloud.ClassOf(err)):
		return fmt.Errorf("it is refused as %s, not %v: %w", cloud.ClassOf(err), want, err)
	}
	return nil
}

// withSid returns a policy with another name for its first statement.
func withSid(policy, sid string) (string, error) {
	var document map[string]any
	if err := json.Unmarshal([]byte(policy), &document); err != nil {
		return "", fmt.Errorf("the policy is not JSON: %w", err)
	}
	list, _ := document["Statement"].([]any)
	if len(list) == 0 {
		return "", fmt.Errorf("the policy has no statements: %s", policy)
	}
	statement, ok := list[0].(map[string]any)
	if !ok {
		return "", fmt.Errorf("the policy's first statement is no object: %s", policy)
	}
	statement["Sid"] = sid
	b, err := json.Marshal(document)
	return string(b), err
}

func sameJSON(a, b string) bool {
	var one, other any
	return json.Unmarshal([]byte(a), &one) == nil && json.Unmarshal([]byte(b), &other) == nil && reflect.DeepEqual(one, other)
}
