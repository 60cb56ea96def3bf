package cloud_test

import (
	"fmt"
	"testing"

	"byokd/cloud"
)

func TestLocksOut(t *testing.T) {
	const user, session = "arn:aws:iam::111122223333:user/byokd", "arn:aws:sts::111122223333:assumed-role/byokd/host"
	statement := func(principal, action string) string {
		return fmt.Sprintf(`{"Statement":[{"Effect":"Deny","Principal":"*","Action":"kms:Decrypt"},{"Effect":"Allow","Principal":%s,"Action":%s,"Resource":"*"}]}`, principal, action)
	}
	for _, test := range []struct {
		policy, caller string
		want           bool
	}{
		{statement(`{"AWS":"arn:aws:iam::111122223333:root"}`, `"kms:*"`), user, false},
		{statement(`{"AWS":"111122223333"}`, `"*"`), user, false},
		{statement(`"*"`, `["kms:Encrypt","kms:Put*"]`), user, false},
		{statement(`{"AWS":["arn:aws:iam::111122223333:user/other","arn:aws:iam::111122223333:user/byokd"]}`, `"KMS:putkeypolicy"`), user, false},
		{statement(`{"AWS":"arn:aws:iam::111122223333:role/path/byokd"}`, `"kms:PutKeyPolicy"`), session, false},
		{statement(`{"AWS":"arn:aws:iam::111122223333:role/other"}`, `"kms:*"`), session, true},
		{statement(`{"AWS":"arn:aws:iam::111122223333:user/other"}`, `"kms:*"`), user, true},
		{statement(`{"AWS":"arn:aws:iam::444455556666:root"}`, `"kms:*"`), user, true},
		{statement(`{"AWS":"arn:aws:iam::111122223333:root"}`, `"kms:Get*"`), user, true},
		{statement(`{"Service":"kms.amazonaws.com"}`, `"kms:*"`), user, true},
		{`{"Statement":{"Effect":"Allow","Principal":{"AWS":"*"},"Action":"kms:*"}}`, user, false},
		{`{}`, user, true},
		{`not JSON`, user, false},
	} {
		if got := cloud.LocksOut(test.policy, test.caller); got != test.want {
			t.Errorf("LocksOut(%s, %s) = %v", test.policy, test.caller, got)
		}
	}
}
