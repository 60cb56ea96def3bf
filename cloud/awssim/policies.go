package awssim

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
)

const (
	// maxPolicy is the size of a key policy in bytes.
	maxPolicy = 32_768

	// policyName is the only name that a key policy can have.
	policyName = "default"
)

// defaultPolicy returns the policy of a key that was made without one. It lets
// the account's IAM policies decide.
func defaultPolicy(p place) *policy {
	return &policy{Version: "2012-10-17", ID: "key-default-1", Statement: list[statement]{{
		Sid: "Enable IAM User Permissions", Effect: "Allow",
		Principal: &principals{map[string]list[string]{"AWS": {rootARN(p.region, p.account)}}},
		Action:    list[string]{"kms:*"}, Resource: list[string]{"*"},
	}}}
}

// rootARN returns the ARN that stands for an account.
func rootARN(region, account string) string {
	return "arn:" + partition(region) + ":iam::" + account + ":root"
}

// A policy is a key policy, as far as the simulator looks into it.
type policy struct {
	Version   string
	ID        string `json:"Id"`
	Statement list[statement]
}

type statement struct {
	Sid          string
	Effect       string
	Principal    *principals
	NotPrincipal *principals
	Action       list[string]
	NotAction    list[string]
	Resource     list[string]
	NotResource  list[string]
	Condition    map[string]map[string]conditionValues
}

// A list is one element or an array of them.
type list[T any] []T

// UnmarshalJSON reads either form.
func (l *list[T]) UnmarshalJSON(b []byte) error {
	if b = bytes.TrimSpace(b); len(b) > 0 && b[0] == '[' {
		return decodeStrictly(b, (*[]T)(l))
	}
	var one T
	if err := decodeStrictly(b, &one); err != nil {
		return err
	}
	*l = list[T]{one}
	return nil
}

// principals is "*", or principals by their kind.
type principals struct {
	byKind map[string]list[string]
}

// UnmarshalJSON reads either form. "*" is the same as {"AWS": "*"}.
func (p *principals) UnmarshalJSON(b []byte) error {
	var all string
	if json.Unmarshal(b, &all) == nil {
		p.byKind = map[string]list[string]{"AWS": {all}}
		return nil
	}
	return decodeStrictly(b, &p.byKind)
}

func decodeStrictly(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return d.Decode(v)
}

// parsedPolicy returns the key's policy.
func (k *key) parsedPolicy() *policy {
	var p policy
	if err := decodeStrictly([]byte(k.policy), &p); err != nil {
		panic(err) // cannot be: setPolicy made it, and restore looked at it
	}
	return &p
}

// parsePolicy reads a policy document and checks its grammar.
func parsePolicy(document string) (*policy, error) {
	malformed := func(message string) error { return fail("MalformedPolicyDocumentException", message) }
	var p policy
	if !json.Valid([]byte(document)) {
		return nil, malformed("Policy contains a JSON syntax error.")
	}
	if decodeStrictly([]byte(document), &p) != nil {
		return nil, malformed("Policy does not have the form of a key policy.")
	}
	if p.Version != "" && p.Version != "2012-10-17" && p.Version != "2008-10-17" {
		return nil, malformed("Policy has an unknown version.")
	}
	if len(p.Statement) == 0 {
		return nil, malformed("Policy contains no statement.")
	}
	for _, s := range p.Statement {
		if s.Effect != "Allow" && s.Effect != "Deny" {
			return nil, malformed("Policy contains a statement whose effect is neither Allow nor Deny.")
		}
		if (s.Principal == nil) == (s.NotPrincipal == nil) {
			return nil, malformed("Policy contains a statement that does not have exactly one of Principal and NotPrincipal.")
		}
		for _, ps := range []*principals{s.Principal, s.NotPrincipal} {
			if ps != nil && !ps.valid() {
				return nil, malformed("Policy contains a statement with one or more invalid principals.")
			}
		}
		if err := s.checkCondition(); err != nil {
			return nil, malformed("Policy contains a statement with a condition that is not valid: " + err.Error() + ".")
		}
	}
	return &p, nil
}

// awsPrincipal is what can stand for a principal of AWS. A unique ID, which is
// what becomes of a deleted principal, is not accepted.
const awsPrincipal = `\*|[0-9]{12}|arn:aws[a-z-]*:(iam::[0-9]{12}:(root|(user|role)/[\w+=,.@/-]+)|sts::[0-9]{12}:(assumed-role|federated-user)/[\w+=,.@/-]+)`

func (p *principals) valid() bool {
	for kind, names := range p.byKind {
		for _, name := range names {
			switch kind {
			case "AWS":
				if !compiled(awsPrincipal).MatchString(name) {
					return false
				}
			case "Service", "Federated":
				if name == "" {
					return false
				}
			default:
				return false
			}
		}
	}
	return len(p.byKind) > 0
}

// names reports whether the principals include an identity, by itself or by
// its account.
func (p *principals) names(who identity) bool { return p.namesItself(who) || p.namesAccount(who) }

func (p *principals) namesItself(who identity) bool {
	return p != nil && slices.ContainsFunc(p.byKind["AWS"], func(name string) bool {
		return name == "*" || name == who.arn || who.role != "" && name == who.role
	})
}

func (p *principals) namesAccount(who identity) bool {
	return p != nil && slices.ContainsFunc(p.byKind["AWS"], func(name string) bool {
		return name == who.account || strings.HasSuffix(name, ":iam::"+who.account+":root")
	})
}

// covers reports whether the statement speaks of an action on a resource.
func (s statement) covers(need permission, expand func(string) string) bool {
	isAction := func(pattern string) bool { return wildcard(strings.ToLower(pattern), strings.ToLower(need.action)) }
	isResource := func(pattern string) bool { return matchesResource(pattern, need.resource, expand) }
	actions := slices.ContainsFunc(s.Action, isAction) || len(s.NotAction) > 0 && !slices.ContainsFunc(s.NotAction, isAction)
	resources := slices.ContainsFunc(s.Resource, isResource) || len(s.NotResource) > 0 && !slices.ContainsFunc(s.NotResource, isResource)
	return actions && resources
}

// wildcard matches s with a pattern in which * stands for anything and ? for
// one character. It takes time in proportion to the product of the lengths.
func wildcard(pattern, s string) bool {
	p, i, star, mark := 0, 0, -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i]):
			p++
			i++
		case star >= 0:
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// lockedOut reports whether under a key policy the caller could not put another
// one. Where the key policy leaves it to IAM, IAM must allow it. Conditions are
// not looked at: a statement with one allows and does not deny.
func (c *call) lockedOut(p *policy, keyARN string) bool {
	need := permission{action: "kms:PutKeyPolicy", resource: keyARN}
	theirs := p.unconditional().decide(&c.caller, need)
	if theirs.denied || theirs.allowed || !theirs.delegated || !c.caller.judged {
		return theirs.denied || !theirs.allowed && !theirs.delegated
	}
	mine := c.sim.policies[c.caller.principal()].unconditional().decide(nil, need)
	return mine.denied || !mine.allowed
}

// unconditional returns the policy with what it says under no condition, and
// what it may allow under some.
func (p *policy) unconditional() *policy {
	if p == nil {
		return nil
	}
	q := policy{Version: p.Version}
	for _, s := range p.Statement {
		if s.Effect == "Allow" || len(s.Condition) == 0 {
			s.Condition = nil
			q.Statement = append(q.Statement, s)
		}
	}
	return &q
}

// setPolicy gives a key a policy, and refuses a document that cannot be one.
func (c *call) setPolicy(k *key, document string, bypassLockout bool) error {
	if len(document) > maxPolicy {
		return fail("LimitExceededException", "The key policy has %d bytes, the limit is %d.", len(document), maxPolicy)
	}
	p, err := parsePolicy(document)
	if err != nil {
		return err
	}
	if !c.sim.knowsPrincipals(p) {
		return fail("MalformedPolicyDocumentException", "Policy contains a statement with one or more invalid principals.")
	}
	if !bypassLockout && c.lockedOut(p, k.arn) {
		return fail("MalformedPolicyDocumentException", "The new key policy will not allow you to update the key policy in the future.")
	}
	k.policy = p.rewritten(k.region)
	return nil
}

type putKeyPolicyInput struct {
	KeyId                          *string `required:"" len:"1,2048"`
	PolicyName                     *string `len:"1,128" pattern:"[\\w]+"`
	Policy                         *string `required:"" len:"1,131072" pattern:"[\\u0009\\u000A\\u000D\\u0020-\\u00FF]+"`
	BypassPolicyLockoutSafetyCheck *bool
}

func (c *call) putKeyPolicy(in *putKeyPolicyInput) (any, error) {
	k, err := c.policyKey(in.KeyId, in.PolicyName)
	if err != nil {
		return nil, err
	}
	return nil, c.setPolicy(k, *in.Policy, deref(in.BypassPolicyLockoutSafetyCheck))
}

// policyKey finds the key of a policy by name.
func (c *call) policyKey(id, name *string) (*key, error) {
	k, err := c.key(*id)
	if err != nil {
		return nil, err
	}
	if name != nil && *name != policyName {
		return nil, fail("NotFoundException", "No such policy exists")
	}
	return k, nil
}

type getKeyPolicyInput struct {
	KeyId      *string `required:"" len:"1,2048"`
	PolicyName *string `len:"1,128" pattern:"[\\w]+"`
}

func (c *call) getKeyPolicy(in *getKeyPolicyInput) (any, error) {
	k, err := c.policyKey(in.KeyId, in.PolicyName)
	if err != nil {
		return nil, err
	}
	return fields{"Policy": k.policy, "PolicyName": policyName}, nil
}

type listKeyPoliciesInput struct {
	KeyId  *string `required:"" len:"1,2048"`
	Limit  *int64  `range:"1,1000"`
	Marker *string `len:"1,1024"`
}

func (c *call) listKeyPolicies(in *listKeyPoliciesInput) (any, error) {
	if _, err := c.key(*in.KeyId); err != nil {
		return nil, err
	}
	if in.Marker != nil {
		return nil, fail("InvalidMarkerException", "Invalid marker.")
	}
	return fields{"PolicyNames": []string{policyName}, "Truncated": false}, nil
}
