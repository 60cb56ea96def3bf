package cloud

import (
	"slices"
	"strings"
)

// A Resource is a kind of thing that a permission is granted on.
type Resource string

// The kinds of resource.
const (
	Everything Resource = "*"   // the action knows no resource
	Keys       Resource = "key" // KMS keys
	NewKeys    Resource = "new" // KMS keys that are being made, with their tags
	Aliases    Resource = "alias"
	Buses      Resource = "event-bus"
	Roles      Resource = "role"
)

// A Permission is an IAM action and what it is granted on.
type Permission struct {
	Action string // e.g. "kms:UpdateAlias"
	On     Resource
	which  string // in a message, where the action is needed on several things
}

// permissions are what each operation that this package sends needs, by the
// operation's name with the prefix of its service. Without a row an operation
// needs the action of its own name, on keys.
//
// Source: KMS Developer Guide, "AWS KMS permissions" and "Controlling access to
// aliases"; Service Authorization Reference.
var permissions = map[string][]Permission{
	"kms:CreateKey":   {{"kms:CreateKey", Everything, ""}, {"kms:TagResource", NewKeys, ""}},
	"kms:CreateAlias": {{"kms:CreateAlias", Aliases, "the alias"}, {"kms:CreateAlias", Keys, "the key"}},
	"kms:UpdateAlias": {{"kms:UpdateAlias", Aliases, "the alias"}, {"kms:UpdateAlias", Keys, "the key that it leaves"},
		{"kms:UpdateAlias", Keys, "the key that it moves to"}},
	"kms:DeleteAlias": {{"kms:DeleteAlias", Aliases, "the alias"}, {"kms:DeleteAlias", Keys, "the key"}},
	"kms:ListAliases": {{"kms:ListAliases", Everything, ""}},
	"kms:ListKeys":    {{"kms:ListKeys", Everything, ""}},

	"tag:GetResources":        {{"tag:GetResources", Everything, ""}},
	ServiceQuotasAction:       {{ServiceQuotasAction, Everything, ""}},
	"events:PutEvents":        {{"events:PutEvents", Buses, ""}},
	"events:DescribeEventBus": {{"events:DescribeEventBus", Buses, ""}},
	"sts:AssumeRole":          {{"sts:AssumeRole", Roles, ""}},
	"sts:GetCallerIdentity":   {}, // nobody can be denied it
}

// Permissions returns what an operation needs, by its name with the prefix of
// its service, e.g. "kms:CreateKey"; none where everybody may.
func Permissions(operation string) []Permission {
	if p, ok := permissions[operation]; ok {
		return slices.Clone(p)
	}
	return []Permission{{operation, Keys, ""}}
}

// grantText says in a message what is to be granted for an operation.
func grantText(operation string) string {
	var parts []string
	needs := Permissions(operation)
	for i, p := range needs {
		switch {
		case i > 0 && needs[i-1].Action == p.Action:
			parts[len(parts)-1] += sep(i+1 < len(needs) && needs[i+1].Action == p.Action) + "on " + p.which
		case p.which != "":
			parts = append(parts, p.Action+" on "+p.which)
		default:
			parts = append(parts, p.Action)
		}
	}
	return strings.Join(parts, " and ")
}

// sep is what stands between two things of a list.
func sep(more bool) string {
	if more {
		return ", "
	}
	return " and "
}
