package awssim

import (
	"slices"
	"strings"
	"time"
)

// Quotas are request quotas, each for one account and Region. The zero value
// is AWS's default numbers (KMS Developer Guide, "Request quotas"; General
// Reference, "Amazon EventBridge endpoints and quotas" and "Service Quotas
// endpoints and quotas"; Tag Editor User Guide, "Service quotas").
//
// AWS does not publish how many requests it takes at once. A simulator takes as
// many as the quota allows in one second, and at least one.
type Quotas struct {
	// PerSecond replaces numbers, in requests per second, by IAM action such as
	// "kms:CreateKey". The shared quotas of cryptographic operations are
	// "kms:symmetric", "kms:rsa" and "kms:ecc", that of EventBridge's
	// operations other than PutEvents is "events:control".
	PerSecond map[string]float64
}

// SetQuotas replaces the request quotas, whose buckets are full then; nil lifts
// them.
func (s *Sim) SetQuotas(q *Quotas) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.options.Quotas = q
	clear(s.buckets)
}

// HasQuota reports whether requests are charged to a quota of that name, which
// Quotas describes.
func HasQuota(name string) bool {
	switch name {
	case "kms:symmetric", "kms:rsa", "kms:ecc", "events:control":
		return true
	}
	prefix, operation, _ := strings.Cut(name, ":")
	i := slices.IndexFunc(services, func(s *service) bool { return s.prefix == prefix })
	if i < 0 || services[i].sharesQuota(operation) {
		return false
	}
	_, ok := services[i].operations[operation]
	return ok
}

// sharesQuota reports whether an operation has no quota of its own.
func (s *service) sharesQuota(operation string) bool {
	return s.name == "events" && operation != "PutEvents" || s.name == "kms" && cryptographic[operation]
}

// kmsQuotas are AWS's numbers, in requests per second.
var kmsQuotas = map[string]float64{
	"CancelKeyDeletion": 5, "CreateAlias": 5, "CreateGrant": 50, "CreateKey": 5, "DeleteAlias": 15,
	"DeleteImportedKeyMaterial": 15, "DescribeKey": 2000, "DisableKey": 5, "DisableKeyRotation": 5, "EnableKey": 5,
	"EnableKeyRotation": 15, "GetKeyLastUsage": 5, "GetKeyPolicy": 1000, "GetKeyRotationStatus": 1000,
	"GetParametersForImport": 1, "GetPublicKey": 2000, "ImportKeyMaterial": 15, "ListAliases": 500, "ListGrants": 100,
	"ListKeyPolicies": 100, "ListKeyRotations": 100, "ListKeys": 500, "ListResourceTags": 2000, "PutKeyPolicy": 15,
	"ReplicateKey": 5, "RetireGrant": 50, "RevokeGrant": 50, "RotateKeyOnDemand": 5, "ScheduleKeyDeletion": 15,
	"TagResource": 10, "UntagResource": 5, "UpdateAlias": 5, "UpdateKeyDescription": 5, "UpdatePrimaryRegion": 5,
}

// cryptographic are the operations that share quotas, by the kind of key.
var cryptographic = map[string]bool{
	"Decrypt": true, "DeriveSharedSecret": true, "Encrypt": true, "GenerateDataKey": true, "GenerateDataKeyPair": true,
	"GenerateDataKeyPairWithoutPlaintext": true, "GenerateDataKeyWithoutPlaintext": true, "GenerateMac": true,
	"GenerateRandom": true, "ReEncrypt": true, "Sign": true, "Verify": true, "VerifyMac": true,
}

// regionalQuotas are the shared quota of symmetric cryptographic operations
// and that of PutEvents, where a Region has others than most.
var regionalQuotas = map[string]struct{ symmetric, putEvents float64 }{
	"us-east-1": {100_000, 10_000}, "us-west-2": {100_000, 10_000}, "eu-west-1": {100_000, 10_000},
	"us-east-2": {20_000, 2400}, "eu-central-1": {20_000, 2400}, "eu-south-2": {10_000, 2400},
	"us-west-1": {10_000, 1200}, "ap-northeast-1": {20_000, 1200}, "ap-southeast-1": {20_000, 1200},
	"ap-southeast-2": {20_000, 1200}, "eu-west-2": {20_000, 1200},
	"ap-east-1": {10_000, 600}, "ap-northeast-2": {10_000, 600}, "ap-south-1": {10_000, 600}, "ca-central-1": {10_000, 600},
	"eu-north-1": {10_000, 600}, "eu-west-3": {10_000, 600}, "sa-east-1": {10_000, 600},
}

// awsQuota returns AWS's number, 0 for no quota.
func awsQuota(name, region string) float64 {
	special, isSpecial := regionalQuotas[region]
	if !isSpecial {
		special.symmetric, special.putEvents = 10_000, 400
	}
	switch name {
	case "kms:symmetric":
		return special.symmetric
	case "kms:rsa", "kms:ecc":
		return 1000
	case "events:PutEvents":
		return special.putEvents
	case "events:control":
		return 50
	case "tag:GetResources":
		return 15
	case "servicequotas:ListServiceQuotas":
		return 10
	}
	return kmsQuotas[strings.TrimPrefix(name, "kms:")]
}

// A bucket holds the requests that a quota still allows.
type bucket struct {
	left float64
	at   time.Time
}

type bucketName struct {
	place
	name string
}

// quota returns the number in force in a Region, 0 for no quota; where nothing is
// limited, AWS's number. It is called with mu held.
func (s *Sim) quota(name, region string) float64 {
	if q := s.options.Quotas; q != nil {
		if perSecond, replaced := q.PerSecond[name]; replaced {
			return perSecond
		}
	}
	return awsQuota(name, region)
}

// charge takes requests from a quota, and refuses them if there are too few.
func (c *call) charge(p place, name string, requests float64) error {
	perSecond := c.sim.quota(name, p.region)
	if perSecond <= 0 {
		return nil
	}
	most := max(perSecond, requests)
	b := c.sim.buckets[bucketName{p, name}]
	if b == nil {
		b = &bucket{left: most}
		c.sim.buckets[bucketName{p, name}] = b
	} else {
		b.left = min(most, b.left+c.now.Sub(b.at).Seconds()*perSecond)
	}
	b.at = c.now
	if b.left < requests {
		code := "ThrottlingException"
		switch c.service.name {
		case "tagging":
			code = "ThrottledException"
		case "servicequotas":
			code = "TooManyRequestsException"
		}
		return fail(code, "%s", c.usualMessage(code))
	}
	b.left -= requests
	return nil
}

// throttle charges a request to its quotas.
func (c *call) throttle(input any) error {
	if c.sim.options.Quotas == nil {
		return nil
	}
	name := c.service.prefix + ":" + c.request.Operation
	switch shared := c.service.sharesQuota(c.request.Operation); {
	case shared && c.service.name == "events":
		name = "events:control"
	case shared:
		name = "kms:symmetric"
		if k, err := c.keyOrAlias(c.request.KeyID); err == nil {
			switch k.spec.kind {
			case rsaKey:
				name = "kms:rsa"
			case eccKey:
				name = "kms:ecc"
			}
		}
	}
	if err := c.charge(c.realm.place, name, 1); err != nil {
		return err
	}
	if in, ok := input.(*replicateKeyInput); ok {
		return c.charge(place{c.realm.account, *in.ReplicaRegion}, "kms:CreateKey", 2)
	}
	return nil
}
