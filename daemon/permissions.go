package daemon

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"byokd/cloud"
	"byokd/config"
	"byokd/daemon/control"
	"byokd/daemon/lifecycle"
)

// A PrincipalPolicy is the least IAM policy for one principal.
type PrincipalPolicy struct {
	Credential string          `json:"credential"`
	Role       control.String  `json:"role"`    // whose policy it is; null: that of the credential's own principal
	Account    control.String  `json:"account"` // null: byokd.toml does not say, and any stands in the ARNs
	Policy     cloud.IAMPolicy `json:"policy"`

	// Wide says that the policy names no single group and alias, because it
	// would be longer than a managed policy may be.
	Wide bool `json:"wide"`
}

// Policies returns the least IAM policies for what byokd does for the groups:
// one for the principal of each credential that it uses, and where a role is
// assumed, one for the role and one for who assumes it.
func Policies(cfg *config.Config, groups []*config.Group) []PrincipalPolicy {
	scopes := make(map[string]*cloud.Scope)
	scope := func(credential string) *cloud.Scope {
		s := scopes[credential]
		if s == nil {
			s = &cloud.Scope{
				Account: account(cfg.Credentials[credential]), OwnerTag: lifecycle.TagGroup, ProbeKey: lifecycle.CanaryContext,
				Aliases: make(map[string][]string), FormerAliases: make(map[string][]string), Source: cfg.Events.Source,
			}
			scopes[credential] = s
		}
		return s
	}
	for _, g := range groups {
		s := scope(g.Credential)
		s.Operations = append(s.Operations, operations(g)...)
		if cfg.AWS.Quotas.FromServiceQuotas {
			s.Operations = append(s.Operations, cloud.ServiceQuotasAction)
		}
		s.Regions = append(s.Regions, g.AWS.Region)
		s.Owners = append(s.Owners, g.Name)
		if g.AWS.PreviousName != "" {
			s.Owners = append(s.Owners, g.AWS.PreviousName)
		}
		s.Aliases[g.AWS.Region] = append(s.Aliases[g.AWS.Region], g.AWS.Alias)
		s.FormerAliases[g.AWS.Region] = append(s.FormerAliases[g.AWS.Region], g.AWS.FormerAliases...)
		if g.AWS.ActiveKeyID != "" {
			s.OtherKeys = append(s.OtherKeys, cloud.ARN("kms", g.AWS.Region, s.Account, "key/"+g.AWS.ActiveKeyID))
		}
		if cfg.Events.Enabled {
			sender := scope(cmp.Or(cfg.Events.Credential, g.Credential))
			sender.Operations = append(sender.Operations, "events:PutEvents", "events:DescribeEventBus")
			bus := cfg.Events.Bus
			if !strings.HasPrefix(bus, "arn:") {
				bus = cloud.ARN("events", cmp.Or(cfg.Events.Region, g.AWS.Region), sender.Account, "event-bus/"+bus)
			}
			sender.Buses = append(sender.Buses, bus)
		}
	}

	var all []PrincipalPolicy
	for _, name := range slices.Sorted(maps.Keys(scopes)) {
		s, role := scopes[name], cfg.Credentials[name].RoleARN
		for _, list := range []*[]string{&s.Regions, &s.Owners, &s.OtherKeys, &s.Buses} {
			slices.Sort(*list)
			*list = slices.Compact(*list)
		}
		p := PrincipalPolicy{Credential: name, Role: control.String(role), Account: control.String(s.Account)}
		p.Policy, p.Wide = s.Policy()
		all = append(all, p)
		if role != "" {
			p := PrincipalPolicy{Credential: name}
			p.Policy, _ = cloud.Scope{Operations: []string{"sts:AssumeRole"}, Role: role}.Policy()
			all = append(all, p)
		}
	}
	return all
}

// operations are what byokd asks of AWS for a group, by its definition.
func operations(g *config.Group) []string {
	r := g.Rotation
	retires := r.DisablePrevious || r.DeletePreviousMaterialAfter != nil || r.SchedulePreviousDeletionAfter != nil || r.KeepGenerations > 0
	list := []string{
		// Looking, at every start and before every step.
		"kms:DescribeKey", "kms:ListResourceTags", "kms:GetKeyPolicy", "tag:GetResources", "kms:ListAliases",
		// After a lost database: which generations a key was rotated to in place.
		"kms:ListKeyRotations",
		// A new generation. KMS takes a policy for a new key, such as a copy of
		// the active key's, only of somebody who could put it.
		"kms:CreateKey", "kms:PutKeyPolicy", "kms:GetParametersForImport", "kms:ImportKeyMaterial", "kms:CreateAlias", "kms:UpdateAlias",
		// A generation that is given up, and the double of one.
		"kms:ScheduleKeyDeletion",
		// Tags may be given and taken at any time, and delete_material asked for.
		"kms:TagResource", "kms:UntagResource", "kms:DeleteImportedKeyMaterial",
	}
	if g.AWS.Description != nil {
		list = append(list, "kms:UpdateKeyDescription")
	}
	if r.Verify != "describe" {
		list = append(list, "kms:Encrypt", "kms:Decrypt")
	}
	if r.Mode != "alias" {
		list = append(list, "kms:RotateKeyOnDemand", "kms:GetKeyRotationStatus")
	}
	if r.DisablePrevious || r.KeepGenerations > 0 || r.KeepValidFor > 0 { // re-imported, a disabled key is disabled again
		list = append(list, "kms:DisableKey")
	}
	if retires {
		list = append(list, "kms:GetKeyLastUsage")
	}
	if r.Mode != "in-place" {
		list = append(list, "kms:ListGrants")
	}
	if r.Grants == "copy" {
		list = append(list, "kms:CreateGrant")
	}
	if r.SchedulePreviousDeletionAfter != nil { // byokctl keep
		list = append(list, "kms:CancelKeyDeletion")
		if !r.DisablePrevious {
			list = append(list, "kms:EnableKey")
		}
	}
	return list
}

// account is the account of a credential, as far as byokd.toml tells it.
func account(c config.Credential) string {
	if parts := strings.Split(c.RoleARN, ":"); c.Account == "" && len(parts) > 4 {
		return parts[4]
	}
	return c.Account
}
