package awssim

import (
	"bytes"
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"time"
)

// notPrimary is AWS's message for what only a primary key can do.
const notPrimary = "%s is not a multi-region primary key."

func (k *key) isPrimary() bool { return k.multiRegion && k.primary == k.region }
func (k *key) isReplica() bool { return k.multiRegion && k.primary != k.region }

// related returns a key and, if it is a multi-Region key, its primary and
// replicas, ordered by Region.
func (s *Sim) related(k *key) []*key {
	if !k.multiRegion {
		return []*key{k}
	}
	var all []*key
	for p, r := range s.realms {
		if other := r.keys[k.id]; other != nil && p.account == k.account {
			all = append(all, other)
		}
	}
	slices.SortFunc(all, func(a, b *key) int { return cmp.Compare(a.region, b.region) })
	return all
}

// configuration returns the MultiRegionConfiguration of a multi-Region key.
func (s *Sim) configuration(k *key) fields {
	kind := "REPLICA"
	if k.isPrimary() {
		kind = "PRIMARY"
	}
	f := fields{"MultiRegionKeyType": kind}
	replicas := []fields{}
	for _, each := range s.related(k) {
		about := fields{"Arn": each.arn, "Region": each.region}
		if each.isPrimary() {
			f["PrimaryKey"] = about
		} else {
			replicas = append(replicas, about)
		}
	}
	f["ReplicaKeys"] = replicas
	return f
}

// primaryKey finds a multi-Region primary key that is enabled.
func (c *call) primaryKey(id string) (*key, error) {
	k, err := c.key(id)
	if err != nil {
		return nil, err
	}
	if !k.isPrimary() {
		return nil, fail("UnsupportedOperationException", notPrimary, k.arn)
	}
	return k, k.require(onlyWhenEnabled)
}

type replicateKeyInput struct {
	KeyId                          *string `required:"" len:"1,2048"`
	ReplicaRegion                  *string `required:"" len:"1,32" pattern:"^([a-z]+-){2,3}\\d+$"`
	Policy                         *string `len:"1,131072" pattern:"[\\u0009\\u000A\\u000D\\u0020-\\u00FF]+"`
	BypassPolicyLockoutSafetyCheck *bool
	Description                    *string `len:"0,8192"`
	Tags                           []tag
}

// replicateKey makes a replica, which has no material if its primary key has
// imported material.
func (c *call) replicateKey(in *replicateKeyInput) (any, error) {
	k, err := c.primaryKey(*in.KeyId)
	if err != nil {
		return nil, err
	}
	if partition(*in.ReplicaRegion) != partition(k.region) {
		return nil, fail("ValidationException", "Region %s is not in the partition of %s.", *in.ReplicaRegion, k.arn)
	}
	if err := checkTags(in.Tags, nil); err != nil {
		return nil, err
	}
	there := c.sim.realm(place{k.account, *in.ReplicaRegion}, c.now)
	if there.keys[k.id] != nil {
		return nil, fail("AlreadyExistsException", "Unable to replicate key %s to Region %s: it already exists there.", k.arn, there.region)
	}
	replica := &key{
		id: k.id, arn: there.arn("kms", "key/"+k.id), account: k.account, region: there.region,
		spec: k.spec, usage: k.usage, origin: k.origin, description: deref(in.Description),
		multiRegion: true, primary: k.primary, created: c.now, period: k.period, due: k.due,
		tags: make(map[string]string), spent: make(map[string]time.Time), grants: make(map[string]*grant),
	}
	if replica.policy = defaultPolicy(there.place).rewritten(there.region); in.Policy != nil {
		if err := c.setPolicy(replica, *in.Policy, deref(in.BypassPolicyLockoutSafetyCheck)); err != nil {
			return nil, err
		}
	}
	if len(there.keys) >= maxKeys {
		return nil, fail("LimitExceededException", "The account has %d KMS keys in %s, which is the limit.", maxKeys, there.region)
	}
	for _, m := range k.allMaterials() {
		theirs := *m
		if k.origin == originExternal {
			theirs = material{id: m.id, description: m.description, rotated: m.rotated}
		}
		if m == k.pending {
			replica.pending = &theirs
		} else {
			replica.materials = append(replica.materials, &theirs)
		}
	}
	replica.tag(in.Tags)
	there.keys[replica.id] = replica
	metadata := c.metadata(replica)
	metadata["KeyState"], metadata["Enabled"] = "Creating", false // what DescribeKey says, it says from the next call on
	tags := []fields{}
	for _, name := range slices.Sorted(maps.Keys(replica.tags)) {
		tags = append(tags, fields{"TagKey": name, "TagValue": replica.tags[name]})
	}
	var document bytes.Buffer // without white space, as recorded
	if err := json.Compact(&document, []byte(replica.policy)); err != nil {
		return nil, err // cannot be: it is the simulator's own
	}
	return fields{"ReplicaKeyMetadata": metadata, "ReplicaPolicy": document.String(), "ReplicaTags": tags}, nil
}

type updatePrimaryRegionInput struct {
	KeyId         *string `required:"" len:"1,2048"`
	PrimaryRegion *string `required:"" len:"1,32" pattern:"^([a-z]+-){2,3}\\d+$"`
}

func (c *call) updatePrimaryRegion(in *updatePrimaryRegionInput) (any, error) {
	k, err := c.primaryKey(*in.KeyId)
	if err != nil {
		return nil, err
	}
	related := c.sim.related(k)
	i := slices.IndexFunc(related, func(r *key) bool { return r.isReplica() && r.region == *in.PrimaryRegion })
	if i < 0 {
		return nil, fail("NotFoundException", "%s has no replica in Region %s.", k.arn, *in.PrimaryRegion)
	}
	if err := related[i].require(onlyWhenEnabled); err != nil {
		return nil, err
	}
	related[i].rotations = k.rotations
	for _, each := range related {
		each.primary = *in.PrimaryRegion
	}
	c.sim.realms[place{k.account, *in.PrimaryRegion}].wake(k.due)
	return nil, nil
}
