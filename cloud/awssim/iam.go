package awssim

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// CheckPolicy reports what is wrong with an IAM policy document of a principal,
// nil if nothing is. Condition keys that the simulator does not know are not
// wrong: they are never there, as for AWS.
func CheckPolicy(document json.RawMessage) error {
	_, err := parseIdentityPolicy(document)
	return err
}

func parseIdentityPolicy(document json.RawMessage) (*policy, error) {
	var p policy
	if err := decodeStrictly(document, &p); err != nil {
		return nil, fmt.Errorf("not the form of an IAM policy document: %w", err)
	}
	if p.Version != "" && p.Version != "2012-10-17" && p.Version != "2008-10-17" {
		return nil, fmt.Errorf("there is no policy version %q", p.Version)
	}
	if len(p.Statement) == 0 {
		return nil, errors.New("it has no statement")
	}
	for i, s := range p.Statement {
		switch {
		case s.Effect != "Allow" && s.Effect != "Deny":
			return nil, fmt.Errorf("statement %d: the effect is neither Allow nor Deny", i+1)
		case s.Principal != nil || s.NotPrincipal != nil:
			return nil, fmt.Errorf("statement %d: the policy of a principal names no principal", i+1)
		case (len(s.Action) == 0) == (len(s.NotAction) == 0):
			return nil, fmt.Errorf("statement %d: exactly one of Action and NotAction is needed", i+1)
		case (len(s.Resource) == 0) == (len(s.NotResource) == 0):
			return nil, fmt.Errorf("statement %d: exactly one of Resource and NotResource is needed", i+1)
		}
		if err := s.checkCondition(); err != nil {
			return nil, fmt.Errorf("statement %d: %w", i+1, err)
		}
	}
	return &p, nil
}

// SetPolicy gives a principal, by the ARN of a user or role, another IAM policy
// document; null takes it away. See [Options.IAM] and [CheckPolicy].
func (s *Sim) SetPolicy(arn string, document json.RawMessage) error {
	var p *policy
	if len(document) > 0 && string(document) != "null" {
		var err error
		if p, err = parseIdentityPolicy(document); err != nil {
			return fmt.Errorf("the IAM policy of %s: %w", arn, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.policies[arn] = p; p == nil {
		delete(s.policies, arn)
	}
	return nil
}

func (s *Sim) mustSetPolicy(arn string, document json.RawMessage) {
	if err := s.SetPolicy(arn, document); err != nil {
		panic("awssim: " + err.Error())
	}
}

// principal returns the ARN to which IAM policies are attached.
func (who identity) principal() string {
	if who.role != "" {
		return who.role
	}
	return who.arn
}

// judges reports whether IAM counts for somebody. The account's root user may
// do everything.
func (s *Sim) judges(who identity) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return (s.options.IAM || s.policies[who.principal()] != nil) && !strings.HasSuffix(who.arn, ":root")
}

// knowsPrincipals reports whether the users and roles in a key policy exist, as
// far as the simulator can know: those that were deleted do not, and with
// [Options.IAM] only those that it has, in the accounts of which it has some.
func (s *Sim) knowsPrincipals(p *policy) bool {
	known, accounts := make(map[string]bool), make(map[string]bool)
	add := func(arn string) {
		known[arn] = true
		if parts := strings.SplitN(arn, ":", 6); len(parts) == 6 {
			accounts[parts[4]] = true
		}
	}
	for _, c := range s.credentials {
		add(c.ARN)
	}
	for arn := range s.roles {
		add(arn)
	}
	for _, st := range p.Statement {
		for _, ps := range []*principals{st.Principal, st.NotPrincipal} {
			if ps == nil {
				continue
			}
			for _, name := range ps.byKind["AWS"] {
				if s.deleted[name] {
					return false
				}
				parts := strings.SplitN(name, ":", 6)
				if s.options.IAM && len(parts) == 6 && parts[2] == "iam" && parts[5] != "root" && accounts[parts[4]] && !known[name] {
					return false
				}
			}
		}
	}
	return true
}

// A permission is what a request needs: an action on a resource.
type permission struct {
	action   string // such as kms:CreateKey
	resource string // ARN or *
	key      *key   // whose policy and grants count; nil: IAM alone decides
	context  requestContext

	encryption map[string]string // encryption context, for the constraints of grants
}

// A decision is what a policy says about a permission.
type decision struct {
	allowed   bool // to the principal itself
	delegated bool // to the principal's account, so that IAM decides
	denied    bool
}

// decide evaluates a policy. An identity is given for key policies, which name
// principals.
func (p *policy) decide(who *identity, need permission) (d decision) {
	if p == nil {
		return d
	}
	expand := func(s string) string { return s }
	if p.Version == "2012-10-17" { // the first with variables
		expand = need.context.substitute
	}
	for _, s := range p.Statement {
		if !s.covers(need, expand) || !s.applies(need.context, expand) {
			continue
		}
		itself, account := true, false
		if who != nil {
			itself, account = s.Principal.namesItself(*who), s.Principal.namesAccount(*who)
			if s.NotPrincipal != nil {
				itself = !s.NotPrincipal.names(*who)
			}
		}
		switch {
		case s.Effect == "Deny":
			d.denied = d.denied || itself || account
		default:
			d.allowed = d.allowed || itself
			d.delegated = d.delegated || account
		}
	}
	return d
}

// judge refuses a permission that the caller does not have. The words are
// AWS's.
func (c *call) judge(need permission) error {
	refuse := func(why string) error {
		code := "AccessDeniedException"
		if c.service.query() {
			code = "AccessDenied"
		}
		return fail(code, "%s", c.deniedAction(need.action, need.resource)+why)
	}
	mine := c.sim.policies[c.caller.principal()].decide(nil, need)
	if mine.denied {
		return refuse(" with an explicit deny in an identity-based policy")
	}
	if need.key == nil {
		if !mine.allowed {
			return refuse(" because no identity-based policy allows the " + need.action + " action")
		}
		return nil
	}
	theirs := need.key.parsedPolicy().decide(&c.caller, need)
	switch {
	case theirs.denied:
		return refuse(" with an explicit deny in a resource-based policy")
	case theirs.allowed, theirs.delegated && mine.allowed, c.granted(need):
		return nil
	case theirs.delegated:
		return refuse(" because no identity-based policy allows the " + need.action + " action")
	}
	return refuse(" because no resource-based policy allows the " + need.action + " action")
}

// granted reports whether a grant on the key gives the permission.
func (c *call) granted(need permission) bool {
	operation := strings.TrimPrefix(need.action, "kms:")
	for _, g := range need.key.grants {
		constraints := g.constraints
		if operation == "DescribeKey" || operation == "RetireGrant" {
			constraints = nil
		}
		if c.caller.is(g.grantee) && slices.Contains(g.operations, operation) && constraints.allow(need.encryption) {
			return true
		}
	}
	return false
}

// authorize refuses a request that the caller may not make.
func (c *call) authorize(input any) error {
	if !c.caller.judged {
		return nil
	}
	for _, need := range c.permissions(input) {
		if err := c.judge(need); err != nil {
			return err
		}
	}
	return nil
}

// permissions returns what a request needs. What names a key or alias that
// does not exist is left to the operation, which says so.
func (c *call) permissions(input any) []permission {
	action := c.service.prefix + ":" + c.request.Operation
	on := func(resource string) []permission {
		return []permission{{action: action, resource: resource, context: c.context(input)}}
	}
	onKey := func(action, name string) []permission { return c.onNamedKey(action, name, input) }
	switch in := input.(type) {
	case *createKeyInput:
		return c.toCreate(in, in.Tags, c.realm.place)
	case *replicateKeyInput:
		there := place{c.realm.account, *in.ReplicaRegion}
		return append(onKey(action, *in.KeyId), c.toCreate(in, in.Tags, there)...)
	case *aliasInput:
		needs := append(on(c.realm.arn("kms", *in.AliasName)), onKey(action, *in.TargetKeyId)...)
		if a := c.realm.aliases[*in.AliasName]; a != nil && c.request.Operation == "UpdateAlias" {
			needs = append(needs, onKey(action, a.target)...)
		}
		return needs
	case *deleteAliasInput:
		needs := on(c.realm.arn("kms", *in.AliasName))
		if a := c.realm.aliases[*in.AliasName]; a != nil {
			needs = append(needs, onKey(action, a.target)...)
		}
		return needs
	case *listAliasesInput, *listKeysInput, *listRetirableGrantsInput, *generateRandomInput:
		return on("*")
	case *retireGrantInput:
		return nil // the grant decides
	case *decryptInput:
		if k, _, err := c.cipherKey(in.KeyId, in.CiphertextBlob, encryptionAlgorithm(in.EncryptionAlgorithm)); err == nil {
			return []permission{c.onKey(action, k, input)}
		}
		return nil
	case *reEncryptInput:
		var needs []permission
		if k, _, err := c.cipherKey(in.SourceKeyId, in.CiphertextBlob, encryptionAlgorithm(in.SourceEncryptionAlgorithm)); err == nil {
			need := c.onKey("kms:ReEncryptFrom", k, input)
			need.setEncryption(in.SourceEncryptionContext)
			needs = append(needs, need)
		}
		for _, need := range onKey("kms:ReEncryptTo", *in.DestinationKeyId) {
			need.setEncryption(in.DestinationEncryptionContext)
			needs = append(needs, need)
		}
		return needs
	case *putEventsInput:
		return c.toPut(in)
	case *assumeRoleInput:
		return on(*in.RoleArn)
	case *struct{}:
		return nil // GetCallerIdentity needs no permission
	}
	if resource, ok := c.eventsResource(input); ok {
		return on(resource)
	}
	if c.service.name == "kms" {
		return onKey(action, c.request.KeyID)
	}
	return on("*")
}

// toCreate returns what is needed to make a key in an account and Region. Its
// tags need a permission of their own, on a key that has no ID yet.
func (c *call) toCreate(input any, tags []tag, there place) []permission {
	context := c.context(input)
	context.set("aws:RequestedRegion", there.region)
	needs := []permission{{action: "kms:CreateKey", resource: "*", context: context}}
	if len(tags) > 0 {
		needs = append(needs, permission{action: "kms:TagResource", resource: there.arn("kms", "key/*"), context: context})
	}
	return needs
}

// toPut returns what is needed to put each event on its bus.
func (c *call) toPut(in *putEventsInput) (needs []permission) {
	for _, e := range in.Entries {
		resource := deref(e.EventBusName)
		if !strings.HasPrefix(resource, "arn:") {
			resource = c.realm.arn("events", "event-bus/"+c.busNamed(e.EventBusName))
		}
		context := c.context(in)
		context.set("events:eventBusInvocation", "false") // it comes from no other bus
		for key, value := range map[string]*string{"events:source": e.Source, "events:detail-type": e.DetailType} {
			if value != nil {
				context.set(key, *value)
			}
		}
		needs = append(needs, permission{action: "events:PutEvents", resource: resource, context: context})
	}
	return needs
}

// onNamedKey returns a permission on a key that a request names in some way.
func (c *call) onNamedKey(action, name string, input any) []permission {
	k, err := c.keyOrAlias(name)
	if err == nil && k != nil {
		need := c.onKey(action, k, input)
		if _, alias, ok := strings.Cut(":"+name, ":alias/"); ok {
			need.context.set("kms:RequestAlias", "alias/"+alias)
		}
		return []permission{need}
	}
	if id := name[strings.LastIndex(name, "/")+1:]; compiled(keyIDPattern).MatchString(id) {
		return []permission{{action: action, resource: c.realm.arn("kms", "key/"+id), context: c.context(input)}}
	}
	return nil
}

func (c *call) onKey(action string, k *key, input any) permission {
	context := c.context(input)
	context.set("kms:KeySpec", k.spec.name)
	context.set("kms:KeyUsage", k.usage)
	context.set("kms:KeyOrigin", k.origin)
	context.set("kms:MultiRegion", strconv.FormatBool(k.multiRegion))
	if k.multiRegion {
		kind := "REPLICA"
		if k.isPrimary() {
			kind = "PRIMARY"
		}
		context.set("kms:MultiRegionKeyType", kind)
	}
	if aliases := slices.Sorted(c.realm.aliasesOf(k.id)); len(aliases) > 0 {
		context.set("kms:ResourceAliases", aliases...)
	}
	for name, value := range k.tags {
		context.set("aws:ResourceTag/"+name, value)
	}
	need := permission{action: action, resource: k.arn, key: k, context: context}
	switch in := input.(type) {
	case *encryptInput:
		need.setEncryption(in.EncryptionContext)
	case *decryptInput:
		need.setEncryption(in.EncryptionContext)
	case *generateDataKeyInput:
		need.setEncryption(in.EncryptionContext)
	case *generateDataKeyPairInput:
		need.setEncryption(in.EncryptionContext)
	}
	return need
}

func (p *permission) setEncryption(context map[string]string) {
	p.encryption = context
	for name, value := range context {
		p.context.set("kms:EncryptionContext:"+name, value)
	}
	if len(context) > 0 {
		p.context.set("kms:EncryptionContextKeys", slices.Sorted(maps.Keys(context))...)
	}
}

// memberKeys are the condition keys that show a member of a request.
var memberKeys = map[string]string{
	"BypassPolicyLockoutSafetyCheck": "kms:BypassPolicyLockoutSafetyCheck",
	"EncryptionAlgorithm":            "kms:EncryptionAlgorithm",
	"ExpirationModel":                "kms:ExpirationModel",
	"ExternalId":                     "sts:ExternalId",
	"GranteePrincipal":               "kms:GranteePrincipal",
	"KeyAgreementAlgorithm":          "kms:KeyAgreementAlgorithm",
	"KeyPairSpec":                    "kms:DataKeyPairSpec",
	"MacAlgorithm":                   "kms:MacAlgorithm",
	"MessageType":                    "kms:MessageType",
	"Operations":                     "kms:GrantOperations",
	"PendingWindowInDays":            "kms:ScheduleKeyDeletionPendingWindowInDays",
	"PrimaryRegion":                  "kms:PrimaryRegion",
	"ReplicaRegion":                  "kms:ReplicaRegion",
	"RetiringPrincipal":              "kms:RetiringPrincipal",
	"RoleSessionName":                "sts:RoleSessionName",
	"RotationPeriodInDays":           "kms:RotationPeriodInDays",
	"SigningAlgorithm":               "kms:SigningAlgorithm",
	"TagKeys":                        "aws:TagKeys",
	"ValidTo":                        "kms:ValidTo",
	"WrappingAlgorithm":              "kms:WrappingAlgorithm",
	"WrappingKeySpec":                "kms:WrappingKeySpec",
}

// context returns what conditions can ask of the caller and the request.
func (c *call) context(input any) requestContext {
	r := make(requestContext)
	r.set("aws:PrincipalArn", c.caller.principal())
	r.set("aws:PrincipalAccount", c.caller.account)
	r.set("aws:userid", c.caller.userID)
	if _, user, ok := strings.Cut(c.caller.arn, ":user/"); ok {
		r.set("aws:username", user[strings.LastIndex(user, "/")+1:])
	}
	r.set("aws:CurrentTime", c.now.UTC().Format(time.RFC3339))
	r.set("aws:EpochTime", strconv.FormatInt(c.now.Unix(), 10))
	r.set("aws:SecureTransport", "true") // it stands for AWS, which is reached by HTTPS
	r.set("aws:SourceIp", c.source)
	if c.userAgent != "" {
		r.set("aws:UserAgent", c.userAgent)
	}
	r.set("aws:ViaAWSService", "false")
	r.set("aws:PrincipalIsAWSService", "false")
	r.set("aws:PrincipalType", "User")
	if c.caller.role != "" {
		r.set("aws:PrincipalType", "AssumedRole")
		r.set("aws:MultiFactorAuthPresent", "false") // long-term access keys have no such key
	}
	r.set("aws:ResourceAccount", c.realm.account)
	r.set("aws:RequestedRegion", c.realm.region)
	if c.service.name == "kms" {
		r.set("kms:CallerAccount", c.caller.account)
	}
	v := reflect.ValueOf(input).Elem()
	for i := range v.NumField() {
		if name := memberKeys[v.Type().Field(i).Name]; name != "" {
			switch value := v.Field(i).Interface().(type) {
			case *string:
				if value != nil {
					r.set(name, *value)
				}
			case *bool:
				if value != nil {
					r.set(name, strconv.FormatBool(*value))
				}
			case *int64:
				if value != nil {
					r.set(name, strconv.FormatInt(*value, 10))
				}
			case *timestamp:
				if value != nil {
					r.set(name, value.UTC().Format(time.RFC3339))
				}
			case []string:
				r.set(name, value...)
			}
		}
	}
	c.addToContext(r, input)
	return r
}

// addToContext adds what does not simply stand in a member: tags, and values
// that have a default.
func (c *call) addToContext(r requestContext, input any) {
	var tags []tag
	switch in := input.(type) {
	case *createKeyInput:
		tags = in.Tags
		r.set("kms:KeySpec", cmp.Or(deref(in.KeySpec), deref(in.CustomerMasterKeySpec), symmetricDefault))
		r.set("kms:KeyUsage", cmp.Or(deref(in.KeyUsage), encryptDecrypt))
		r.set("kms:KeyOrigin", cmp.Or(deref(in.Origin), originKMS))
		r.set("kms:MultiRegion", strconv.FormatBool(in.MultiRegion))
	case *replicateKeyInput:
		tags = in.Tags
	case *tagResourceInput:
		tags = in.Tags
	case *importKeyMaterialInput:
		if in.ExpirationModel == nil {
			r.set("kms:ExpirationModel", expires)
		}
	case *scheduleKeyDeletionInput:
		if in.PendingWindowInDays == nil {
			r.set("kms:ScheduleKeyDeletionPendingWindowInDays", "30")
		}
	case *createGrantInput:
		if g := in.Constraints; g != nil && g.EncryptionContextEquals != nil {
			r.set("kms:GrantConstraintType", "EncryptionContextEquals")
		} else if g != nil && g.EncryptionContextSubset != nil {
			r.set("kms:GrantConstraintType", "EncryptionContextSubset")
		}
	case *encryptInput:
		r.set("kms:EncryptionAlgorithm", encryptionAlgorithm(in.EncryptionAlgorithm))
	case *decryptInput:
		r.set("kms:EncryptionAlgorithm", encryptionAlgorithm(in.EncryptionAlgorithm))
	case *generateDataKeyInput:
		r.set("kms:EncryptionAlgorithm", symmetricDefault)
	}
	if len(tags) > 0 {
		var names []string
		for _, t := range tags {
			names = append(names, *t.TagKey)
			r.set("aws:RequestTag/"+*t.TagKey, *t.TagValue)
		}
		r.set("aws:TagKeys", names...)
	}
}

// eventsResource returns the resource of an operation on a bus or a rule.
func (c *call) eventsResource(input any) (arn string, ok bool) {
	switch in := input.(type) {
	case *busInput:
		return c.realm.arn("events", "event-bus/"+*in.Name), true
	case *describeEventBusInput:
		return c.realm.arn("events", "event-bus/"+c.busNamed(in.Name)), true
	case *ruleInput:
		return c.ruleARN(c.busNamed(in.EventBusName), *in.Name), true
	case *putRuleInput:
		return c.ruleARN(c.busNamed(in.EventBusName), *in.Name), true
	case *putTargetsInput:
		return c.ruleARN(c.busNamed(in.EventBusName), *in.Rule), true
	case *removeTargetsInput:
		return c.ruleARN(c.busNamed(in.EventBusName), *in.Rule), true
	case *listTargetsByRuleInput:
		return c.ruleARN(c.busNamed(in.EventBusName), *in.Rule), true
	}
	return "", false
}

// busNamed returns the name of the bus that a request means.
func (c *call) busNamed(name *string) string { return cmp.Or(busName(deref(name)), "default") }
