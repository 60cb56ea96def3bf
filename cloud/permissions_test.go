package cloud_test

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"slices"
	"strings"
	"testing"

	"byokd/cloud"
)

// TestEveryOperationIsKnown reads which operations this package sends, so that a
// new one cannot be without a row, unless it is one on keys.
func TestEveryOperationIsKnown(t *testing.T) {
	onKeys := []string{
		"kms:CancelKeyDeletion", "kms:Decrypt", "kms:DeleteImportedKeyMaterial", "kms:DescribeKey", "kms:DisableKey", "kms:EnableKey", "kms:Encrypt",
		"kms:GetKeyLastUsage", "kms:GetKeyPolicy", "kms:GetKeyRotationStatus", "kms:GetParametersForImport", "kms:ImportKeyMaterial",
		"kms:ListKeyRotations", "kms:ListResourceTags", "kms:PutKeyPolicy", "kms:RotateKeyOnDemand", "kms:ScheduleKeyDeletion",
		"kms:TagResource", "kms:UntagResource", "kms:UpdateKeyDescription", "kms:ListGrants", "kms:CreateGrant",
	}
	seen := 0
	for _, operation := range sentOperations(t) {
		seen++
		needs := cloud.Permissions(operation)
		byDefault := len(needs) == 1 && needs[0] == cloud.Permission{Action: operation, On: cloud.Keys}
		if byDefault && !slices.Contains(onKeys, operation) {
			t.Errorf("%s is sent: give it a row in permissions.go, or name it here as one on keys", operation)
		}
	}
	if seen < 25 {
		t.Errorf("only %d operations were found: this test looks for them in the wrong way", seen)
	}
}

// sentOperations are the literals that make requests: the first argument of
// reads and changes, and the members of a request.
func sentOperations(t *testing.T) (operations []string) {
	files, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	services := map[string]string{"ServiceKMS": "kms", "ServiceEvents": "events", "ServiceSTS": "sts", "ServiceQuotas": "servicequotas"}
	text := func(e ast.Expr) string {
		switch e := e.(type) {
		case *ast.BasicLit:
			return strings.Trim(e.Value, `"`)
		case *ast.Ident:
			return services[e.Name]
		}
		return ""
	}
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".go") || strings.HasSuffix(f.Name(), "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), f.Name(), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr:
				if f, ok := n.Fun.(*ast.Ident); ok && (f.Name == "reads" || f.Name == "changes") && len(n.Args) > 0 && text(n.Args[0]) != "" { // a probe's is not its own
					operations = append(operations, "kms:"+text(n.Args[0]))
				}
			case *ast.CompositeLit:
				if name, ok := n.Type.(*ast.Ident); !ok || name.Name != "request" {
					return true
				}
				members := make(map[string]string)
				for _, e := range n.Elts {
					if kv, ok := e.(*ast.KeyValueExpr); ok {
						members[kv.Key.(*ast.Ident).Name] = text(kv.Value)
					}
				}
				if members["operation"] != "" && members["service"] != "" {
					operations = append(operations, members["service"]+":"+members["operation"])
				}
			}
			return true
		})
	}
	return operations
}

// scope is one of two groups, with everything in it.
func scope() cloud.Scope {
	return cloud.Scope{
		Operations: []string{"kms:CreateKey", "kms:DescribeKey", "kms:UpdateAlias", "kms:Encrypt", "tag:GetResources", "events:PutEvents", "events:DescribeEventBus", "sts:GetCallerIdentity"},
		Account:    "111122223333", Regions: []string{"cn-north-1", "eu-central-1"},
		OwnerTag: "byokd:group", Owners: []string{"orders", "payments"}, ProbeKey: "byokd-canary",
		OtherKeys:     []string{"arn:aws:kms:eu-central-1:111122223333:key/1234"},
		Aliases:       map[string][]string{"eu-central-1": {"alias/payments"}, "cn-north-1": {"alias/orders"}},
		FormerAliases: map[string][]string{"eu-central-1": {"alias/cards"}, "cn-north-1": nil},
		Buses:         []string{"arn:aws:events:eu-central-1:111122223333:event-bus/default"}, Source: "byokd",
	}
}

func TestPolicyOfScope(t *testing.T) {
	p, wide := scope().Policy()
	if wide || p.Version != "2012-10-17" {
		t.Errorf("version %s, wide %v", p.Version, wide)
	}
	const keys = "arn:aws-cn:kms:cn-north-1:111122223333:key/* arn:aws:kms:eu-central-1:111122223333:key/*"
	want := []string{
		"MakeKeys | kms:CreateKey | * | StringEquals aws:RequestTag/byokd:group=orders,payments; StringEquals aws:RequestedRegion=cn-north-1,eu-central-1; StringEquals kms:KeyOrigin=EXTERNAL; StringEquals kms:KeySpec=SYMMETRIC_DEFAULT",
		"TagNewKeys | kms:TagResource | " + keys + " | StringEquals aws:RequestTag/byokd:group=orders,payments",
		"Find | tag:GetResources | * | ",
		"OwnKeys | kms:DescribeKey kms:UpdateAlias | " + keys + " | StringEquals aws:ResourceTag/byokd:group=orders,payments",
		"NamedKeys | kms:DescribeKey kms:UpdateAlias | arn:aws:kms:eu-central-1:111122223333:key/1234 | ",
		"LookAtAliases | kms:DescribeKey | " + keys + " | StringEquals kms:RequestAlias=alias/cards,alias/orders,alias/payments",
		"ProbeOwnKeys | kms:Encrypt | " + keys + " | ForAllValues:StringEquals kms:EncryptionContextKeys=byokd-canary; StringEquals aws:ResourceTag/byokd:group=orders,payments; StringEquals kms:EncryptionContext:byokd-canary=orders,payments",
		"ProbeNamedKeys | kms:Encrypt | arn:aws:kms:eu-central-1:111122223333:key/1234 | ForAllValues:StringEquals kms:EncryptionContextKeys=byokd-canary; StringEquals kms:EncryptionContext:byokd-canary=orders,payments",
		"Aliases | kms:UpdateAlias | arn:aws-cn:kms:cn-north-1:111122223333:alias/orders arn:aws:kms:eu-central-1:111122223333:alias/payments | ",
		"SendEvents | events:PutEvents | arn:aws:events:eu-central-1:111122223333:event-bus/default | StringEquals events:source=byokd",
		"LookAtBuses | events:DescribeEventBus | arn:aws:events:eu-central-1:111122223333:event-bus/default | ",
	}
	if got := strings.Join(lines(p), "\n"); got != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

// TestWidePolicy has more groups than a managed policy has room for.
func TestWidePolicy(t *testing.T) {
	s := scope()
	for i := range 500 {
		s.Owners = append(s.Owners, fmt.Sprintf("group-%d", i))
		s.Aliases["eu-central-1"] = append(s.Aliases["eu-central-1"], fmt.Sprintf("alias/pay-%d", i))
	}
	p, wide := s.Policy()
	document, err := json.Marshal(p)
	if err != nil || !wide || len(document) > 6144 {
		t.Fatalf("wide %v, %d characters, %v", wide, len(document), err)
	}
	got := strings.Join(lines(p), "\n")
	for _, part := range []string{
		"StringLike aws:ResourceTag/byokd:group=*", "eu-central-1:111122223333:alias/pay* ", "cn-north-1:111122223333:alias/orders* ",
		"StringLike kms:RequestAlias=alias/cards*,alias/orders*,alias/pay*", "StringLike kms:EncryptionContext:byokd-canary=*",
	} {
		if !strings.Contains(got+" ", part) {
			t.Errorf("%s is missing in\n%s", part, got)
		}
	}
}

// lines writes a policy as a line for each statement.
func lines(p cloud.IAMPolicy) (all []string) {
	for _, s := range p.Statement {
		var conditions []string
		for operator, keys := range s.Condition {
			for key, values := range keys {
				conditions = append(conditions, operator+" "+key+"="+strings.Join(values, ","))
			}
		}
		slices.Sort(conditions)
		all = append(all, strings.Join([]string{s.Sid, strings.Join(s.Action, " "), strings.Join(s.Resource, " "), strings.Join(conditions, "; ")}, " | "))
	}
	return all
}
