package cloud_test

import (
	"testing"

	"byokd/cloud"
)

func TestSamePolicy(t *testing.T) {
	const policy = `{"Version":"2012-10-17","Id":"p","Statement":[
		{"Sid":"root","Effect":"Allow","Principal":{"AWS":"111122223333"},"Action":["kms:*"],"Resource":"*"},
		{"Sid":"use","Effect":"Allow","Principal":{"AWS":["arn:aws:iam::111122223333:role/a","444455556666"],"Service":"s3.amazonaws.com"},
		 "Action":["kms:Encrypt","kms:Decrypt"],"Resource":["*"],"Condition":{"StringEquals":{"kms:ViaService":["s3.eu-central-1.amazonaws.com","rds.eu-central-1.amazonaws.com"]},"Bool":{"kms:GrantIsForAWSResource":true}}}]}`
	same := []string{
		policy,
		// As AWS gives it back.
		`{"Id":"p","Version":"2012-10-17","Statement":[
		{"Sid":"use","Effect":"Allow","Resource":"*","Action":["kms:Decrypt","kms:Encrypt"],"Principal":{"Service":["s3.amazonaws.com"],"AWS":["arn:aws:iam::444455556666:root","arn:aws:iam::111122223333:role/a"]},
		 "Condition":{"Bool":{"kms:GrantIsForAWSResource":"true"},"StringEquals":{"kms:ViaService":["rds.eu-central-1.amazonaws.com","s3.eu-central-1.amazonaws.com"]}}},
		{"Sid":"root","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:root"},"Action":"kms:*","Resource":"*"}]}`,
		// With an account that is there twice, once as its root.
		`{"Version":"2012-10-17","Id":"p","Statement":[
		{"Sid":"root","Effect":"Allow","Principal":{"AWS":["111122223333","111122223333"]},"Action":["kms:*","kms:*"],"Resource":"*"},
		{"Sid":"use","Effect":"Allow","Principal":{"AWS":["arn:aws:iam::111122223333:role/a","444455556666"],"Service":"s3.amazonaws.com"},
		 "Action":["kms:Encrypt","kms:Decrypt"],"Resource":["*"],"Condition":{"StringEquals":{"kms:ViaService":["s3.eu-central-1.amazonaws.com","rds.eu-central-1.amazonaws.com"]},"Bool":{"kms:GrantIsForAWSResource":["true"]}}}]}`,
	}
	for i, p := range same {
		if !cloud.SamePolicy(policy, p) || !cloud.SamePolicy(p, policy) {
			t.Errorf("form %d of the policy counts as another one", i)
		}
	}

	one := func(statement string) string { return `{"Version":"2012-10-17","Statement":` + statement + `}` }
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{one(`{"Effect":"Allow","Principal":"*","Action":"kms:*"}`), one(`[{"Effect":"Allow","Principal":{"AWS":"*"},"Action":["kms:*"]}]`), true},
		{one(`[{"Effect":"Allow","Principal":"*","Action":"kms:*"}]`), one(`[{"Effect":"Allow","Principal":"111122223333","Action":"kms:*"}]`), false},
		{one(`[{"Effect":"Allow","Principal":"*","Action":"kms:*"}]`), one(`[{"Effect":"Allow","Action":"kms:*"}]`), false},
		{one(`[{"Effect":"Allow","Principal":{"AWS":"111122223333"},"Action":"kms:*"}]`), one(`[{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223334:root"},"Action":"kms:*"}]`), false},
		{one(`[{"Effect":"Allow","Action":"kms:*"}]`), one(`[{"Effect":"Deny","Action":"kms:*"}]`), false},
		{one(`[{"Sid":"a"}]`), one(`[{"Sid":"b"}]`), false},
		{one(`[{"Effect":"Allow","Action":"kms:*","Condition":{"Bool":{"aws:SecureTransport":"true"}}}]`), one(`[{"Effect":"Allow","Action":"kms:*"}]`), false},
		{one(`[{"Sid":"a"},{"Sid":"b"}]`), one(`[{"Sid":"b"},{"Sid":"a"}]`), true},
		{`{"Version":"2008-10-17","Statement":[]}`, `{"Version":"2012-10-17","Statement":[]}`, false},
		// None of these is a policy; none of them may end the program.
		{one(`[null]`), one(`[{"Sid":"a"}]`), false},
		{one(`[null]`), one(`[ null ]`), true},
		{one(`[["a"]]`), one(`[{"Sid":"a"}]`), false},
		{one(`[{"Sid":1}]`), one(`[{"Sid":"1"}]`), false},
		{one(`[{"Condition":["a"]}]`), one(`[{"Condition":{}}]`), false},
		{`{"a": 1, "b": 2}`, `{"b":2,"a":1}`, true},
		{`{"a": 1}`, `{"a": 2}`, false},
		{`[]`, `{}`, false},
		{`no JSON`, `no JSON`, true},
		{`no JSON`, `{}`, false},
		{``, `{}`, false},
	} {
		if got := cloud.SamePolicy(c.a, c.b); got != c.want {
			t.Errorf("SamePolicy(%s, %s) = %v", c.a, c.b, got)
		}
		if got := cloud.SamePolicy(c.b, c.a); got != c.want {
			t.Errorf("SamePolicy(%s, %s) = %v", c.b, c.a, got)
		}
	}
}
