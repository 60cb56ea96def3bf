package awssim

import (
	"time"
)

// Rotation periods, in days.
const (
	defaultPeriod = 365
)

func (c *call) rotateKeyOnDemand(in *keyInput) (any, error) {
	k, err := c.key(*in.KeyId)
	if err != nil {
		return nil, err
	}
	if k.spec.kind != symmetricKey {
		return nil, fail("UnsupportedOperationException", "")
	}
	if err := k.require(onlyWhenEnabled); err != nil {
		return nil, err
	}
	switch {
	case k.isReplica():
		return nil, fail("UnsupportedOperationException", notPrimary, k.arn)
	case k.rotations >= maxRotations:
		return nil, fail("LimitExceededException", "The on-demand rotations limit has been reached for the given keyId. No more on-demand rotations can be performed for this key: %s", k.arn)
	case !k.started.IsZero():
		return nil, fail("ConflictException", "A rotation of %s is in progress.", k.arn)
	case k.period > 0 && k.due.Sub(c.now) < 20*time.Minute:
		return nil, fail("ConflictException", "An automatic rotation of %s is scheduled within 20 minutes.", k.arn)
	case k.origin == originExternal && !c.sim.pendingEverywhere(k):
		return nil, fail("KMSInvalidStateException", "No available key material pending rotation for the key: %s.", k.arn)
	}
	k.rotations++
	k.started, k.ends = c.now, c.now.Add(c.sim.options.RotationTime)
	c.realm.wake(k.ends)
	c.sim.settleRotation(c.realm, k, c.now)
	return fields{"KeyId": k.arn}, nil
}

// settleRotation ends an on-demand rotation that is over, and does the
// automatic ones that are due.
func (s *Sim) settleRotation(r *realm, k *key, now time.Time) {
	switch {
	case k.started.IsZero():
	case now.Before(k.ends):
		r.wake(k.ends)
	default:
		s.rotate(k, k.ends, false)
		k.started, k.ends = time.Time{}, time.Time{}
	}
	for k.period > 0 && !k.isReplica() && k.state() == enabled {
		if now.Before(k.due) {
			r.wake(k.due)
			return
		}
		s.rotate(k, k.due, true)
		s.setPeriod(k, k.period, k.due.AddDate(0, 0, k.period))
	}
}

// catchUp rotates a key that was disabled when that was due: once, and then it
// goes on from now (API Reference, GetKeyRotationStatus).
func (s *Sim) catchUp(k *key, now time.Time) {
	if k.period == 0 || k.isReplica() {
		return
	}
	due := k.due
	if !now.Before(due) {
		s.rotate(k, now, true)
		due = now.AddDate(0, 0, k.period)
	}
	s.setPeriod(k, k.period, due)
}

// rotate makes new material current: KMS's own, or the pending one.
func (s *Sim) rotate(k *key, at time.Time, automatic bool) {
	b := randomBytes(k.spec.least)
	kind := "ON_DEMAND"
	if automatic {
		kind = "AUTOMATIC"
	}
	for _, each := range s.related(k) {
		before := each.current().id
		if k.origin == originKMS {
			each.add(b)
		} else {
			each.materials = append(each.materials, each.pending)
			each.pending = nil
		}
		each.current().rotated, each.current().automatic = at, automatic
		s.emit(each, at, "KMS CMK Rotation", fields{
			"key-id": each.id, "key-origin": each.origin, "rotation-type": kind,
			"previous-key-material-id": before, "current-key-material-id": each.current().id,
		})
	}
}

// pendingEverywhere reports whether the key and all its replicas have a pending
// material.
func (s *Sim) pendingEverywhere(k *key) bool {
	for _, each := range s.related(k) {
		if each.pending == nil || each.pending.bytes == nil {
			return false
		}
	}
	return true
}

type enableKeyRotationInput struct {
	KeyId                *string `required:"" len:"1,2048"`
	RotationPeriodInDays *int64  `range:"90,2560"`
}

func (c *call) enableKeyRotation(in *enableKeyRotationInput) (any, error) {
	k, err := c.automaticKey(*in.KeyId)
	if err != nil {
		return nil, err
	}
	period := defaultPeriod
	if in.RotationPeriodInDays != nil {
		period = int(*in.RotationPeriodInDays)
	}
	c.sim.setPeriod(k, period, c.now.AddDate(0, 0, period))
	return nil, nil
}

func (c *call) disableKeyRotation(in *keyInput) (any, error) {
	k, err := c.automaticKey(*in.KeyId)
	if err != nil {
		return nil, err
	}
	c.sim.setPeriod(k, 0, time.Time{})
	return nil, nil
}

// automaticKey finds a key that can be rotated automatically. Key material
// that was imported cannot, in whatever state the key is.
func (c *call) automaticKey(id string) (*key, error) {
	k, err := c.key(id)
	if err != nil {
		return nil, err
	}
	if k.spec.kind != symmetricKey {
		return nil, fail("UnsupportedOperationException", "")
	}
	if err := k.requireOrigin(originKMS); err != nil {
		return nil, err
	}
	if k.isReplica() {
		return nil, fail("UnsupportedOperationException", notPrimary, k.arn)
	}
	return k, k.require(onlyWhenEnabled)
}

// setPeriod sets when a key and its replicas are rotated.
func (s *Sim) setPeriod(k *key, period int, due time.Time) {
	for _, each := range s.related(k) {
		each.period, each.due = period, due
		s.realms[place{each.account, each.region}].wake(due) // the zero time is none
	}
}

func (c *call) getKeyRotationStatus(in *keyInput) (any, error) {
	k, err := c.key(*in.KeyId)
	if err != nil {
		return nil, err
	}
	if k.spec.kind != symmetricKey {
		return nil, fail("UnsupportedOperationException", "")
	}
	if k.state() == pendingImport {
		return nil, k.requireOrigin(originKMS)
	}
	// A key that is to be deleted is not rotated, until that is cancelled (API
	// Reference, GetKeyRotationStatus).
	on := k.period > 0 && !k.ending()
	out := fields{"KeyId": k.arn, "KeyRotationEnabled": on}
	if on {
		out["RotationPeriodInDays"], out["NextRotationDate"] = k.period, timestamp{k.due}
	}
	if !k.started.IsZero() {
		out["OnDemandRotationStartDate"] = timestamp{k.started}
	}
	return out, nil
}

// rotation returns an entry of ListKeyRotations.
func (c *call) rotation(k *key, m *material) fields {
	f := fields{"KeyId": k.arn, "KeyMaterialId": m.id, "KeyMaterialState": c.sim.materialState(k, m)}
	if !m.rotated.IsZero() {
		f["RotationDate"], f["RotationType"] = timestamp{m.rotated}, "ON_DEMAND"
		if m.automatic {
			f["RotationType"] = "AUTOMATIC"
		}
	}
	if k.origin != originExternal {
		return f
	}
	f["ImportState"] = "PENDING_IMPORT"
	if m.bytes != nil {
		f["ImportState"], f["ExpirationModel"] = "IMPORTED", doesNotExpire
		if m.expires {
			f["ExpirationModel"], f["ValidTo"] = expires, timestamp{m.validTo}
		}
	}
	if m.description != "" {
		f["KeyMaterialDescription"] = m.description
	}
	return f
}

func (s *Sim) materialState(k *key, m *material) string {
	switch {
	case m == k.current():
		return "CURRENT"
	case m != k.pending:
		return "NON_CURRENT"
	case s.pendingEverywhere(k):
		return "PENDING_ROTATION"
	}
	return "PENDING_MULTI_REGION_IMPORT_AND_ROTATION"
}
