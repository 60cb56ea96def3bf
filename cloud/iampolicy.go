package cloud

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"strings"
)

// maxManagedPolicy is how many characters a managed IAM policy may have, not
// counting white space.
//
// Source: IAM User Guide, "IAM and AWS STS quotas".
const maxManagedPolicy = 6144

// A Scope is what one principal of IAM is to do, and with what.
type Scope struct {
	Operations []string // with the prefix of their service, e.g. "kms:CreateKey"

	Account string   // in ARNs; "": not known, and any account stands there
	Regions []string // of the keys

	// OwnerTag is the tag on the principal's own keys, and Owners are the values
	// that it may have.
	OwnerTag string
	Owners   []string
	// OtherKeys are ARNs of keys that need not have the tag.
	OtherKeys []string
	// Aliases by Region, with their prefix alias/; FormerAliases are only looked at.
	Aliases, FormerAliases map[string][]string

	// ProbeKey is the key of the encryption context that is all that Encrypt and
	// Decrypt are granted under, with the values of Owners.
	ProbeKey string

	Buses  []string // ARNs
	Source string   // of events

	Role string // ARN, for sts:AssumeRole
}

// An IAMPolicy is a policy document of IAM.
type IAMPolicy struct {
	Version   string
	Statement []IAMStatement
}

// An IAMStatement is one statement of an IAMPolicy; all of them allow.
type IAMStatement struct {
	Sid       string
	Effect    string
	Action    []string
	Resource  []string
	Condition IAMConditions `json:",omitempty"`
}

// IAMConditions are values by operator and condition key.
type IAMConditions map[string]map[string][]string

// Policy returns the least policy for the scope: each action only on what the
// scope names. Where that would be longer than a managed policy may be, wide is
// true: any value of the owner tag, and for aliases their common prefix, stand
// for the single ones.
func (s Scope) Policy() (p IAMPolicy, wide bool) {
	p = s.policy("StringEquals")
	if p.size() <= maxManagedPolicy {
		return p, false
	}
	s.Owners = []string{"*"}
	s.Aliases, s.FormerAliases = commonPrefixes(s.Aliases), commonPrefixes(s.FormerAliases)
	return s.policy("StringLike"), true
}

// size is what IAM counts.
func (p IAMPolicy) size() int {
	b, err := json.Marshal(p)
	if err != nil {
		panic(err) // strings can always be written
	}
	return len(b)
}

func commonPrefixes(aliases map[string][]string) map[string][]string {
	short := make(map[string][]string)
	for region, names := range aliases {
		if len(names) == 0 {
			continue
		}
		prefix := slices.Min(names)
		for last := slices.Max(names); !strings.HasPrefix(last, prefix); {
			prefix = prefix[:len(prefix)-1]
		}
		short[region] = []string{prefix + "*"}
	}
	return short
}

// policy builds the document. equals is the operator that compares owners and
// aliases.
func (s Scope) policy(equals string) IAMPolicy {
	p := IAMPolicy{Version: "2012-10-17"}
	allow := func(sid string, actions, resources []string, conditions IAMConditions) {
		if len(actions) > 0 && len(resources) > 0 {
			p.Statement = append(p.Statement, IAMStatement{Sid: sid, Effect: "Allow", Action: actions, Resource: resources, Condition: conditions})
		}
	}
	on := s.actions()
	keys := s.arns("kms", map[string][]string{"": {"key/*"}})
	owned := func(key string) IAMConditions { return IAMConditions{equals: {key: s.Owners}} }

	everywhere, create := without(on[Everything], "kms:CreateKey")
	conditions := owned("aws:RequestTag/" + s.OwnerTag)
	conditions.add("StringEquals", "kms:KeyOrigin", "EXTERNAL")
	conditions.add("StringEquals", "kms:KeySpec", "SYMMETRIC_DEFAULT")
	conditions.add("StringEquals", "aws:RequestedRegion", s.Regions...)
	allow("MakeKeys", create, []string{"*"}, conditions)
	allow("TagNewKeys", on[NewKeys], keys, owned("aws:RequestTag/"+s.OwnerTag))
	allow("Find", everywhere, []string{"*"}, nil)

	other, probe := without(on[Keys], "kms:Encrypt", "kms:Decrypt")
	allow("OwnKeys", other, keys, owned("aws:ResourceTag/"+s.OwnerTag))
	allow("NamedKeys", other, s.OtherKeys, nil)
	if _, describe := without(other, "kms:DescribeKey"); len(describe) > 0 {
		allow("LookAtAliases", describe, keys, IAMConditions{equals: {"kms:RequestAlias": unique(values(s.Aliases, s.FormerAliases))}})
	}
	conditions = owned("aws:ResourceTag/" + s.OwnerTag)
	conditions.add(equals, "kms:EncryptionContext:"+s.ProbeKey, s.Owners...)
	conditions.add("ForAllValues:StringEquals", "kms:EncryptionContextKeys", s.ProbeKey)
	allow("ProbeOwnKeys", probe, keys, conditions)
	if len(s.OtherKeys) > 0 {
		conditions = maps.Clone(conditions)
		conditions[equals] = map[string][]string{"kms:EncryptionContext:" + s.ProbeKey: s.Owners}
		allow("ProbeNamedKeys", probe, s.OtherKeys, conditions)
	}
	allow("Aliases", on[Aliases], s.arns("kms", s.Aliases), nil)
	put, look := without(on[Buses], "events:DescribeEventBus")
	allow("SendEvents", put, s.Buses, IAMConditions{"StringEquals": {"events:source": {s.Source}}})
	allow("LookAtBuses", look, s.Buses, nil)
	if s.Role != "" {
		allow("AssumeRole", on[Roles], []string{s.Role}, nil)
	}
	return p
}

func (c IAMConditions) add(operator, key string, values ...string) {
	if c[operator] == nil {
		c[operator] = make(map[string][]string)
	}
	c[operator][key] = values
}

// actions returns the actions of the scope's operations, by what they are
// granted on, sorted.
func (s Scope) actions() map[Resource][]string {
	on := make(map[Resource][]string)
	for _, operation := range s.Operations {
		for _, p := range Permissions(operation) {
			on[p.On] = append(on[p.On], p.Action)
		}
	}
	for resource, actions := range on {
		on[resource] = unique(actions)
	}
	return on
}

// arns returns the ARNs of resources by Region; those of Region "" are in each
// of the scope's.
func (s Scope) arns(service string, byRegion map[string][]string) []string {
	var arns []string
	for _, region := range s.Regions {
		for _, name := range slices.Concat(byRegion[region], byRegion[""]) {
			arns = append(arns, ARN(service, region, s.Account, name))
		}
	}
	return unique(arns)
}

// ARN returns the ARN of a resource; account "" is any.
func ARN(service, region, account, resource string) string {
	return "arn:" + partition(region) + ":" + service + ":" + region + ":" + cmp.Or(account, "*") + ":" + resource
}

// partition returns the partition in the ARNs of a Region.
//
// Source: the partitions of AWS's endpoint rules, in the SDK.
func partition(region string) string {
	for prefix, partition := range map[string]string{
		"cn-": "aws-cn", "us-gov-": "aws-us-gov", "eusc-": "aws-eusc", "us-iso-": "aws-iso", "us-isob-": "aws-iso-b",
		"eu-isoe-": "aws-iso-e", "us-isof-": "aws-iso-f", "eu-isof-": "aws-iso-f",
	} {
		if strings.HasPrefix(region, prefix) {
			return partition
		}
	}
	return "aws"
}

// without splits a list into those that are not among some, and those that are.
func without(list []string, some ...string) (rest, taken []string) {
	for _, each := range list {
		if slices.Contains(some, each) {
			taken = append(taken, each)
		} else {
			rest = append(rest, each)
		}
	}
	return rest, taken
}

func values(maps ...map[string][]string) (all []string) {
	for _, m := range maps {
		for _, list := range m {
			all = append(all, list...)
		}
	}
	return all
}

func unique(list []string) []string {
	list = slices.Clone(list)
	slices.Sort(list)
	return slices.Compact(list)
}
