package awssim

import (
	"cmp"
	"maps"
	"strings"
)

// serviceQuotasOperations are the operations of Service Quotas.
var serviceQuotasOperations = map[string]operation{
	"ListServiceQuotas": op((*call).listServiceQuotas),
}

// A listedQuota is a request quota of KMS as Service Quotas lists it.
type listedQuota struct {
	name  string // as Quotas has it
	title string // "": that of the operation
	fixed bool   // AWS does not raise it
}

// listedQuotas are the request quotas that a simulator keeps to, by their codes.
// GetKeyLastUsage is not among those that AWS lists.
//
// Source: AWS General Reference, "AWS KMS endpoints and quotas".
var listedQuotas = map[string]listedQuota{
	"L-635264CC": {name: "kms:CancelKeyDeletion"},
	"L-F7504F73": {name: "kms:CreateAlias"},
	"L-0428A42E": {name: "kms:CreateGrant"},
	"L-32B67F4A": {name: "kms:CreateKey"},
	"L-DC14942D": {name: "kms:ecc", title: "Cryptographic operations (ECC & SM2) request rate"},
	"L-2AC98190": {name: "kms:rsa", title: "Cryptographic operations (RSA) request rate"},
	"L-6E3AF000": {name: "kms:symmetric", title: "Cryptographic operations (symmetric) request rate"},
	"L-1F75ADD1": {name: "kms:DeleteAlias"},
	"L-1233BF9B": {name: "kms:DeleteImportedKeyMaterial"},
	"L-FAE8F084": {name: "kms:DescribeKey"},
	"L-6B8C93BD": {name: "kms:DisableKey"},
	"L-CE1DB614": {name: "kms:DisableKeyRotation"},
	"L-BD96F100": {name: "kms:EnableKey"},
	"L-BE799B67": {name: "kms:EnableKeyRotation"},
	"L-A2A30EC6": {name: "kms:GetKeyPolicy"},
	"L-D7711EF4": {name: "kms:GetKeyRotationStatus"},
	"L-515A0541": {name: "kms:GetParametersForImport"},
	"L-E4FBCA5E": {name: "kms:GetPublicKey"},
	"L-99631835": {name: "kms:ImportKeyMaterial"},
	"L-BF3F8F1D": {name: "kms:ListAliases"},
	"L-D39AB822": {name: "kms:ListGrants"},
	"L-79E0D0AB": {name: "kms:ListKeyPolicies"},
	"L-171660E4": {name: "kms:ListKeyRotations"},
	"L-8A08DAEA": {name: "kms:ListKeys"},
	"L-FB6513A2": {name: "kms:ListResourceTags"},
	"L-9DDDE6CA": {name: "kms:PutKeyPolicy"},
	"L-E1C93865": {name: "kms:ReplicateKey"},
	"L-74021A59": {name: "kms:RetireGrant"},
	"L-F20EBCB7": {name: "kms:RevokeGrant"},
	"L-88313D4A": {name: "kms:ScheduleKeyDeletion"},
	"L-7D6DE447": {name: "kms:TagResource"},
	"L-6375F442": {name: "kms:UntagResource"},
	"L-DB3BF542": {name: "kms:UpdateAlias"},
	"L-A3828E1F": {name: "kms:UpdateKeyDescription"},
	"L-F83AC7F7": {name: "kms:UpdatePrimaryRegion"},
	"L-00000001": {name: "kms:RotateKeyOnDemand", fixed: true}, // AWS publishes no code of it: this is none
}

type listServiceQuotasInput struct {
	MaxResults          *int64  `range:"1,100"`
	NextToken           *string `len:"0,2048" pattern:"[a-zA-Z0-9/+]*={0,2}"`
	QuotaAppliedAtLevel *string `enum:"ACCOUNT RESOURCE ALL"`
	QuotaCode           *string `len:"1,128" pattern:"[a-zA-Z][a-zA-Z0-9-]{1,128}"`
	ServiceCode         *string `required:"" len:"1,63" pattern:"[a-zA-Z][a-zA-Z0-9-]{1,63}"`
}

// listServiceQuotas lists the request quotas of KMS that the simulator keeps to in
// the account and Region, and AWS's numbers if it keeps to none. One that is
// lifted is not there.
func (c *call) listServiceQuotas(in *listServiceQuotasInput) (any, error) {
	if *in.ServiceCode != "kms" {
		return nil, fail("NoSuchResourceException", "The request failed because the specified service does not exist.")
	}
	shown := make(map[string]fields)
	for code, q := range listedQuotas {
		perSecond := c.sim.quota(q.name, c.realm.region)
		if perSecond > 0 && deref(in.QuotaAppliedAtLevel) != "RESOURCE" && (in.QuotaCode == nil || *in.QuotaCode == code) {
			shown[code] = c.showQuota(code, q, perSecond)
		}
	}
	if len(shown) == 0 && in.QuotaCode != nil {
		return nil, fail("NoSuchResourceException", "The request failed because the specified quota does not exist.")
	}
	token := in.NextToken
	if deref(token) == "" {
		token = nil
	}
	codes, more, err := page(c, maps.Keys(shown), in.MaxResults, 100, token)
	if err != nil {
		return nil, fail("InvalidPaginationTokenException", "The NextToken is not valid.")
	}
	list := []fields{}
	for _, code := range codes {
		list = append(list, shown[code])
	}
	out := fields{"Quotas": list}
	if more.marker != "" {
		out["NextToken"] = more.marker
	}
	return out, nil
}

func (c *call) showQuota(code string, q listedQuota, perSecond float64) fields {
	return fields{
		"ServiceCode": "kms", "ServiceName": "AWS Key Management Service (AWS KMS)",
		"QuotaArn": c.realm.arn("servicequotas", "kms/"+code), "QuotaCode": code,
		"QuotaName": cmp.Or(q.title, strings.TrimPrefix(q.name, "kms:")+" request rate"),
		"Value":     perSecond, "Unit": "None", "Adjustable": !q.fixed, "GlobalQuota": false, "QuotaAppliedAtLevel": "ACCOUNT",
		"Period": fields{"PeriodValue": 1, "PeriodUnit": "SECOND"},
	}
}
