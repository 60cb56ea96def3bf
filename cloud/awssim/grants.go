package awssim

import (
	"encoding/base64"
	"encoding/hex"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
)

// maxGrants is AWS's quota of grants per key.
const maxGrants = 50_000

// A grant lets somebody do something with a key.
type grant struct {
	id, name    string
	grantee     string // ARN of a principal, or the name of a service
	retiring    string
	operations  []string
	constraints *grantConstraints
	created     time.Time
}

type grantConstraints struct {
	EncryptionContextSubset map[string]string `json:",omitempty"`
	EncryptionContextEquals map[string]string `json:",omitempty"`
	SourceArn               *string           `json:",omitempty" len:"0,1600"`
}

// allow reports whether the constraints let pass a request with an encryption
// context. The simulator acts for no resource, so that a SourceArn never does.
func (g *grantConstraints) allow(context map[string]string) bool {
	switch {
	case g == nil:
		return true
	case g.SourceArn != nil:
		return false
	case g.EncryptionContextEquals != nil && !maps.Equal(g.EncryptionContextEquals, context):
		return false
	}
	for name, value := range g.EncryptionContextSubset {
		if got, ok := context[name]; !ok || got != value {
			return false
		}
	}
	return true
}

// grantable are the operations that a grant can permit, by what they need: a
// kind and usage of key. An empty list is for every key.
var grantable = map[string][]string{
	"Decrypt": {encryptDecrypt}, "Encrypt": {encryptDecrypt}, "ReEncryptFrom": {encryptDecrypt}, "ReEncryptTo": {encryptDecrypt},
	"GenerateDataKey": {symmetricDefault}, "GenerateDataKeyWithoutPlaintext": {symmetricDefault},
	"GenerateDataKeyPair": {symmetricDefault}, "GenerateDataKeyPairWithoutPlaintext": {symmetricDefault},
	"Sign": {signVerify}, "Verify": {signVerify},
	"GetPublicKey": {"asymmetric"},
	"GenerateMac":  {generateVerifyMAC}, "VerifyMac": {generateVerifyMAC},
	"DeriveSharedSecret": {keyAgreement},
	"CreateGrant":        nil, "RetireGrant": nil, "DescribeKey": nil,
}

// grantable reports whether a grant on the key can permit an operation.
func (k *key) grantable(operation string) bool {
	needs, known := grantable[operation]
	switch {
	case !known:
		return false
	case len(needs) == 0, needs[0] == k.usage, needs[0] == k.spec.name:
		return true
	}
	return needs[0] == "asymmetric" && k.spec.kind.asymmetric()
}

type createGrantInput struct {
	KeyId                    *string           `required:"" len:"1,2048"`
	GranteePrincipal         *string           `len:"1,256" pattern:"^[\\w+=,.@:/-]+$"`
	GranteeServicePrincipal  *string           `len:"1,256" pattern:"^[\\w+=,.@:/-]+$"`
	RetiringPrincipal        *string           `len:"1,256" pattern:"^[\\w+=,.@:/-]+$"`
	RetiringServicePrincipal *string           `len:"1,256" pattern:"^[\\w+=,.@:/-]+$"`
	Operations               []string          `required:"" eachEnum:"Decrypt Encrypt GenerateDataKey GenerateDataKeyWithoutPlaintext ReEncryptFrom ReEncryptTo Sign Verify GetPublicKey CreateGrant RetireGrant DescribeKey GenerateDataKeyPair GenerateDataKeyPairWithoutPlaintext GenerateMac VerifyMac DeriveSharedSecret"`
	Constraints              *grantConstraints ``
	GrantTokens              []string          `len:"0,10" each:"1,8192"`
	Name                     *string           `len:"1,256" pattern:"^[a-zA-Z0-9:/_-]+$"`
	DryRun                   bool
}

func (c *call) createGrant(in *createGrantInput) (any, error) {
	k, err := c.key(*in.KeyId)
	if err != nil {
		return nil, err
	}
	if (in.GranteePrincipal == nil) == (in.GranteeServicePrincipal == nil) {
		return nil, fail("ValidationException", "Specify either GranteePrincipal or GranteeServicePrincipal.")
	}
	if in.RetiringPrincipal != nil && in.RetiringServicePrincipal != nil {
		return nil, fail("ValidationException", "Specify either RetiringPrincipal or RetiringServicePrincipal.")
	}
	for _, principal := range []*string{in.GranteePrincipal, in.RetiringPrincipal} {
		if principal != nil && (*principal == "*" || !compiled(awsPrincipal).MatchString(*principal)) {
			return nil, fail("InvalidArnException", "ARN does not refer to a valid principal: %s", *principal)
		}
	}
	for _, operation := range in.Operations {
		if !k.grantable(operation) {
			return nil, fail("ValidationException", "Operation %s is not one that a grant can permit on a key of spec %s and usage %s.", operation, k.spec.name, k.usage)
		}
	}
	if g := in.Constraints; g != nil && (g.EncryptionContextEquals != nil || g.EncryptionContextSubset != nil) && k.spec.kind != symmetricKey {
		return nil, fail("ValidationException", "An encryption context constraint is for symmetric encryption keys only.")
	}
	if err := k.require(onlyWhenEnabled); err != nil {
		return nil, err
	}
	made := &grant{
		name: deref(in.Name), grantee: deref(in.GranteePrincipal) + deref(in.GranteeServicePrincipal),
		retiring: deref(in.RetiringPrincipal) + deref(in.RetiringServicePrincipal), operations: in.Operations, constraints: in.Constraints,
	}
	for id, g := range k.grants { // a name makes the request idempotent
		made.id, made.created = id, g.created
		if made.name != "" && reflect.DeepEqual(made, g) {
			return fields{"GrantId": id, "GrantToken": c.sim.grantToken(k, id)}, dry(in.DryRun)
		}
	}
	if len(k.grants) >= maxGrants {
		return nil, fail("LimitExceededException", "The key %s has %d grants, which is the limit.", k.arn, maxGrants)
	}
	if err := dry(in.DryRun); err != nil {
		return nil, err
	}
	made.id, made.created = hex.EncodeToString(randomBytes(32)), c.now
	k.grants[made.id] = made
	return fields{"GrantId": made.id, "GrantToken": c.sim.grantToken(k, made.id)}, nil
}

// grantToken returns a token that names a grant. No two are alike.
func (s *Sim) grantToken(k *key, id string) string {
	b := []byte(hex.EncodeToString(randomBytes(8)) + "/" + id + "/" + k.arn)
	return base64.RawURLEncoding.EncodeToString(append(b, s.tokenMAC(b)...))
}

// parseGrantToken returns what a grant token names.
func (s *Sim) parseGrantToken(token string) (keyARN, id string, ok bool) {
	b, err := base64.RawURLEncoding.DecodeString(token)
	const mac = 32
	if err != nil || len(b) < mac || string(s.tokenMAC(b[:len(b)-mac])) != string(b[len(b)-mac:]) {
		return "", "", false
	}
	parts := strings.SplitN(string(b[:len(b)-mac]), "/", 3)
	if len(parts) != 3 {
		return "", "", false
	}
	return parts[2], parts[1], true
}

// show returns a grant as the lists show it.
func (g *grant) show(k *key) fields {
	f := fields{
		"KeyId": k.arn, "GrantId": g.id, "CreationDate": timestamp{g.created}, "Operations": g.operations,
		"IssuingAccount": "arn:" + partition(k.region) + ":iam::" + k.account + ":root",
	}
	for member, value := range map[string]string{"Name": g.name, "GranteePrincipal": g.grantee, "RetiringPrincipal": g.retiring} {
		if strings.HasSuffix(value, ".amazonaws.com") {
			member = strings.Replace(member, "Principal", "ServicePrincipal", 1)
		}
		if value != "" {
			f[member] = value
		}
	}
	if g.constraints != nil {
		f["Constraints"] = g.constraints
	}
	return f
}

type listGrantsInput struct {
	KeyId                   *string `required:"" len:"1,2048"`
	Limit                   *int64  `range:"1,100"`
	Marker                  *string `len:"1,1024"`
	GrantId                 *string `len:"1,128"`
	GranteePrincipal        *string `len:"1,256" pattern:"^[\\w+=,.@:/-]+$"`
	GranteeServicePrincipal *string `len:"1,256" pattern:"^[\\w+=,.@:/-]+$"`
}

func (c *call) listGrants(in *listGrantsInput) (any, error) {
	k, err := c.key(*in.KeyId)
	if err != nil {
		return nil, err
	}
	grantee := deref(in.GranteePrincipal) + deref(in.GranteeServicePrincipal)
	matching := maps.Clone(k.grants)
	maps.DeleteFunc(matching, func(id string, g *grant) bool {
		return in.GrantId != nil && id != *in.GrantId || grantee != "" && g.grantee != grantee
	})
	ids, more, err := page(c, maps.Keys(matching), in.Limit, 50, in.Marker)
	if err != nil {
		return nil, err
	}
	grants := []fields{}
	for _, id := range ids {
		grants = append(grants, matching[id].show(k))
	}
	return more.into(fields{"Grants": grants}), nil
}

type listRetirableGrantsInput struct {
	Limit                    *int64  `range:"1,100"`
	Marker                   *string `len:"1,1024"`
	RetiringPrincipal        *string `len:"1,256" pattern:"^[\\w+=,.@:/-]+$"`
	RetiringServicePrincipal *string `len:"1,256" pattern:"^[\\w+=,.@:/-]+$"`
}

func (c *call) listRetirableGrants(in *listRetirableGrantsInput) (any, error) {
	retiring := deref(in.RetiringPrincipal) + deref(in.RetiringServicePrincipal)
	if retiring == "" {
		return nil, fail("ValidationException", "Specify either RetiringPrincipal or RetiringServicePrincipal.")
	}
	matching := make(map[string]fields)
	for _, k := range c.realm.keys {
		for id, g := range k.grants {
			if g.retiring == retiring {
				matching[id] = g.show(k)
			}
		}
	}
	ids, more, err := page(c, maps.Keys(matching), in.Limit, 50, in.Marker)
	if err != nil {
		return nil, err
	}
	grants := []fields{}
	for _, id := range ids {
		grants = append(grants, matching[id])
	}
	return more.into(fields{"Grants": grants}), nil
}

type revokeGrantInput struct {
	KeyId   *string `required:"" len:"1,2048"`
	GrantId *string `required:"" len:"1,128"`
	DryRun  bool
}

func (c *call) revokeGrant(in *revokeGrantInput) (any, error) {
	k, err := c.key(*in.KeyId)
	if err != nil {
		return nil, err
	}
	return c.endGrant(k, *in.GrantId, in.DryRun)
}

func (c *call) endGrant(k *key, id string, dryRun bool) (any, error) {
	if k.grants[id] == nil {
		return nil, fail("NotFoundException", "Grant ID %s not found", id)
	}
	if err := dry(dryRun); err != nil {
		return nil, err
	}
	delete(k.grants, id)
	return nil, nil
}

type retireGrantInput struct {
	GrantToken *string `len:"1,8192"`
	KeyId      *string `len:"1,2048"`
	GrantId    *string `len:"1,128"`
	DryRun     bool
}

// retireGrant finds the grant by its token, or by key and ID.
func (c *call) retireGrant(in *retireGrantInput) (any, error) {
	arn, id := deref(in.KeyId), deref(in.GrantId)
	switch {
	case in.GrantToken != nil && in.KeyId == nil && in.GrantId == nil:
		var ok bool
		if arn, id, ok = c.sim.parseGrantToken(*in.GrantToken); !ok {
			return nil, fail("InvalidGrantTokenException", "")
		}
	case in.GrantToken != nil || arn == "" || id == "":
		return nil, fail("ValidationException", "Specify either a GrantToken or both KeyId and GrantId.")
	}
	k, err := c.key(arn)
	if err != nil {
		return nil, err
	}
	if g := k.grants[id]; g != nil && !g.retirable(c.caller) {
		if err := c.judge(c.onKey("kms:RetireGrant", k, in)); err != nil {
			return nil, err
		}
	}
	return c.endGrant(k, id, in.DryRun)
}

// retirable reports whether somebody may retire the grant: the account that
// made it, the retiring principal, and the grantee if the grant says so.
func (g *grant) retirable(who identity) bool {
	return !who.judged || who.is(g.retiring) || who.is(g.grantee) && slices.Contains(g.operations, "RetireGrant")
}

// is reports whether the identity is the principal of that ARN, or is in the
// account or the role of that ARN.
func (who identity) is(principal string) bool {
	return principal != "" && (principal == who.arn || principal == who.role || principal == who.account ||
		strings.HasSuffix(principal, ":iam::"+who.account+":root"))
}
