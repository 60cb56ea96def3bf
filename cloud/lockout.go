package cloud

import (
	"encoding/json"
	"path"
	"strings"

	awsarn "github.com/aws/aws-sdk-go-v2/aws/arn"
)

// LocksOut reports whether KMS would refuse a key policy since it does not let
// the caller, an ARN as STS tells it, change the policy again: no Allow of
// kms:PutKeyPolicy names the caller, the role behind it, or its account. Like
// KMS's own check it looks at actions and principals and not at each condition;
// what cannot be read as a policy does not lock out.
//
// Source: KMS Developer Guide, "Default key policy"; KMS API Reference,
// PutKeyPolicy.
func LocksOut(policy, caller string) bool {
	var document struct{ Statement any }
	arn, err := awsarn.Parse(caller)
	if err != nil || json.Unmarshal([]byte(policy), &document) != nil {
		return false
	}
	accepted := map[string]bool{"*": true, arn.AccountID: true, caller: true, "arn:" + arn.Partition + ":iam::" + arn.AccountID + ":root": true}
	role := "" // of an assumed role, whose path is not in the caller's ARN
	if parts := strings.Split(arn.Resource, "/"); arn.Service == "sts" && parts[0] == "assumed-role" && len(parts) > 1 {
		role = parts[1]
	}
	for _, s := range list(document.Statement) {
		statement, ok := s.(map[string]any)
		if !ok || statement["Effect"] != "Allow" || !grants(statement["Action"], "kms:putkeypolicy") {
			continue
		}
		principal := statement["Principal"]
		if m, ok := principal.(map[string]any); ok {
			principal = m["AWS"]
		}
		for _, p := range list(principal) {
			name, _ := p.(string)
			if accepted[name] || role != "" && path.Base(name) == role && strings.HasPrefix(name, "arn:"+arn.Partition+":iam::"+arn.AccountID+":role/") {
				return false
			}
		}
	}
	return true
}

// grants reports whether one of the patterns of an Action matches, without
// regard to case.
func grants(actions any, want string) bool {
	for _, a := range list(actions) {
		pattern, _ := a.(string)
		// Actions have no slash, so path's star is IAM's.
		if ok, err := path.Match(strings.ToLower(pattern), want); ok && err == nil {
			return true
		}
	}
	return false
}

// list is a value of a policy that may stand alone or in a list.
func list(v any) []any {
	if l, ok := v.([]any); ok {
		return l
	}
	return []any{v}
}
