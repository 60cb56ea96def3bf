package cloud_test

import (
	"errors"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"byokd/cloud"
)

const roleARN = "arn:aws:iam::111122223333:role/byok"

func callerIdentity(account string) string {
	return `<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult>` +
		`<Arn>arn:aws:iam::` + account + `:user/x</Arn><UserId>AIDA</UserId><Account>` + account + `</Account>` +
		`</GetCallerIdentityResult><ResponseMetadata><RequestId>sts-1</RequestId></ResponseMetadata></GetCallerIdentityResponse>`
}

func assumedRole(expires time.Duration) string {
	return `<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult>` +
		`<AssumedRoleUser><Arn>arn:aws:sts::111122223333:assumed-role/byok/s</Arn><AssumedRoleId>AROA:s</AssumedRoleId></AssumedRoleUser>` +
		`<Credentials><AccessKeyId>ASIAROLE</AccessKeyId><SecretAccessKey>rolesecret</SecretAccessKey><SessionToken>roletoken</SessionToken>` +
		`<Expiration>` + time.Now().Add(expires).UTC().Format(time.RFC3339) + `</Expiration></Credentials>` +
		`</AssumeRoleResult><ResponseMetadata><RequestId>sts-1</RequestId></ResponseMetadata></AssumeRoleResponse>`
}

func stsError(status int, code string) answer {
	return answer{status: status, body: `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>` + code +
		`</Code><Message>the message of ` + code + `</Message></Error><RequestId>sts-1</RequestId></ErrorResponse>`}
}

func stsAndKMS(q asked) answer {
	switch q.operation {
	case "AssumeRole":
		return answer{body: assumedRole(time.Hour)}
	case "GetCallerIdentity":
		return answer{body: callerIdentity(account)}
	}
	return answer{body: `{"KeyMetadata":{"KeyId":"` + keyID + `"}}`}
}

// signedWith is the access key ID of a request.
func signedWith(q asked) string {
	m := regexp.MustCompile(`Credential=([^/]+)/\d+/([a-z0-9-]+)/([a-z]+)/`).FindStringSubmatch(q.header.Get("Authorization"))
	if m == nil {
		return ""
	}
	return m[1]
}

// The CSV is read whenever credentials are needed: a replaced file counts at once.
func TestAccessKeyCSVIsReadAnew(t *testing.T) {
	content := accessKeyCSV
	f := newFake(t, stsAndKMS)
	s := f.settings()
	s.Credentials["prod"] = cloud.Credential{AccessKeyCSV: func() ([]byte, error) { return []byte(content), nil }}
	k := openKMS(t, s)
	for _, id := range []string{csvID, "AKIAREPLACED"} {
		content = strings.ReplaceAll(content, csvID, id)
		if err := describe(t.Context(), k); err != nil {
			t.Fatal(err)
		}
		requests := f.requests()
		if got := signedWith(requests[len(requests)-1]); got != id {
			t.Errorf("signed with %q, want %q", got, id)
		}
	}
}

func TestCredentialErrors(t *testing.T) {
	file := writeFile(t, "config", "[profile empty]\nregion = us-east-1\n[profile process]\ncredential_process = echo hunter2\n"+
		"[profile mfa]\nrole_arn = "+roleARN+"\nmfa_serial = x\nsource_profile = process\n")
	csv := func(content string, err error) cloud.Credential {
		return cloud.Credential{AccessKeyCSV: func() ([]byte, error) { return []byte(content), err }}
	}
	for name, test := range map[string]struct {
		credential cloud.Credential
		class      cloud.Class
		waiting    string
		want       string
	}{
		"CSV unreadable":    {csv("", &fs.PathError{Op: "open", Path: "/etc/byokd/prod.csv", Err: fs.ErrPermission}), cloud.Operator, "permission", `credential "prod": open /etc/byokd/prod.csv: permission denied`},
		"CSV wrong":         {csv("hunter2,hunter2", nil), cloud.Operator, "permission", "no columns"},
		"process fails":     {cloud.Credential{CredentialProcess: "echo hunter2; exit 3"}, cloud.Transient, "", "exit status 3"},
		"process missing":   {cloud.Credential{CredentialProcess: "/nonexistent/helper 2>/dev/null"}, cloud.Operator, "config", "exit status 127"},
		"process prints":    {cloud.Credential{CredentialProcess: "echo hunter2"}, cloud.Operator, "permission", "credential_process printed something other"},
		"process, no key":   {cloud.Credential{CredentialProcess: `echo '{"Version":1,"SecretAccessKey":"hunter2"}'`}, cloud.Operator, "permission", "printed something other"},
		"profile's process": {cloud.Credential{Profile: "process", SharedConfigFile: file}, cloud.Operator, "permission", "printed something other"},
		"no such profile":   {cloud.Credential{Profile: "nope", SharedConfigFile: file}, cloud.Operator, "config", `the shared AWS configuration has no profile "nope"`},
		"profile, no keys":  {cloud.Credential{Profile: "empty", SharedConfigFile: file}, cloud.Operator, "permission", `credential "prod": `},
		"profile with MFA":  {cloud.Credential{Profile: "mfa", SharedConfigFile: file}, cloud.Operator, "permission", "MFA"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, stsAndKMS)
			s := f.settings()
			s.Credentials["prod"] = test.credential
			for _, call := range []call{describe, create} {
				err := call(t.Context(), openKMS(t, s))
				if !errors.Is(err, cloud.ErrCredentials) || cloud.ClassOf(err) != test.class || cloud.WaitingFor(err) != test.waiting {
					t.Errorf("class %q, waiting for %q: %v", cloud.ClassOf(err), cloud.WaitingFor(err), err)
				}
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("%q does not say %q", err, test.want)
				}
				for e := err; e != nil; e = errors.Unwrap(e) {
					if strings.Contains(e.Error(), "hunter2") {
						t.Errorf("a secret is in %q", e)
					}
				}
			}
			if n := len(f.requests()); n != 0 {
				t.Errorf("%d requests were sent", n)
			}
		})
	}
}

// No text anywhere in the chain may hold what a process printed.
func TestProcessOutputIsNotInTheChain(t *testing.T) {
	s := newFake(t, stsAndKMS).settings()
	s.Credentials["prod"] = cloud.Credential{CredentialProcess: "echo hunter2"}
	var walk func(error)
	walk = func(err error) {
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%T: %v", err, err)
		}
		switch e := err.(type) {
		case interface{ Unwrap() []error }:
			for _, inner := range e.Unwrap() {
				walk(inner)
			}
		case interface{ Unwrap() error }:
			if inner := e.Unwrap(); inner != nil {
				walk(inner)
			}
		}
	}
	walk(describe(t.Context(), openKMS(t, s)))
}

func TestWrongCredentialTable(t *testing.T) {
	both := static()
	both.Profile = "x"
	c := open(t, cloud.Settings{Credentials: map[string]cloud.Credential{"none": {}, "both": both}})
	for name, want := range map[string]string{"none": "has 0 sources", "both": "has 2 sources", "other": `there is no credential "other"`} {
		_, err := c.KMS(name, region)
		if err == nil || !strings.Contains(err.Error(), want) || cloud.ClassOf(err) != cloud.Operator || cloud.WaitingFor(err) != "config" {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := c.Bus(name, region, "default"); cloud.ClassOf(err) != cloud.Operator {
			t.Errorf("%s, bus: %v", name, err)
		}
	}
	if _, err := open(t, cloud.Settings{Credentials: map[string]cloud.Credential{"prod": static()}}).KMS("prod", ""); cloud.ClassOf(err) != cloud.Operator {
		t.Errorf("no Region: %v", err)
	}
}

func TestCredentialProcess(t *testing.T) {
	counter := writeFile(t, "count", "")
	command := `printf x >> ` + counter + `; echo '{"Version":1,"AccessKeyId":"AKIAPROCESS","SecretAccessKey":"s","SessionToken":"t","Expiration":"` +
		time.Now().Add(time.Hour).UTC().Format(time.RFC3339) + `"}'`
	f := newFake(t, stsAndKMS)
	s := f.settings()
	s.Credentials["prod"] = cloud.Credential{CredentialProcess: command}
	k := openKMS(t, s)
	for range 3 {
		if err := describe(t.Context(), k); err != nil {
			t.Fatal(err)
		}
	}
	if q := f.requests()[0]; signedWith(q) != "AKIAPROCESS" || q.header.Get("X-Amz-Security-Token") != "t" {
		t.Errorf("signed with %q", signedWith(q))
	}
	if runs, _ := os.ReadFile(counter); len(runs) != 1 {
		t.Errorf("the process ran %d times", len(runs))
	}
}

// Credentials that AWS does not accept are fetched anew before the next attempt.
func TestStaleCredentialsAreDropped(t *testing.T) {
	file := writeFile(t, "credentials", "[byok]\naws_access_key_id = AKIAOLD\naws_secret_access_key = old\n")
	f := newFake(t, func(q asked) answer {
		if signedWith(q) == "AKIAOLD" {
			os.WriteFile(file, []byte("[byok]\naws_access_key_id = AKIANEW\naws_secret_access_key = new\n"), 0o600)
			return awsError("UnrecognizedClientException")
		}
		return answer{body: `{"KeyMetadata":{"KeyId":"` + keyID + `"}}`}
	})
	s := f.settings()
	s.Credentials["prod"] = cloud.Credential{Profile: "byok", SharedCredentialsFile: file}
	if err := create(t.Context(), openKMS(t, s)); err != nil {
		t.Error(err)
	}
	if n := len(f.requests()); n != 2 {
		t.Errorf("%d requests", n)
	}
}

// The default chain is the only one that reads the environment.
func TestDefaultChain(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIAENV")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "s")
	f := newFake(t, stsAndKMS)
	s := f.settings()
	s.Credentials["prod"] = cloud.Credential{DefaultChain: true}
	if err := describe(t.Context(), openKMS(t, s)); err != nil {
		t.Fatal(err)
	}
	if got := signedWith(f.requests()[0]); got != "AKIAENV" {
		t.Errorf("signed with %q", got)
	}
}

// Only the default chain asks the EC2 metadata service.
func TestMetadataService(t *testing.T) {
	file := writeFile(t, "config", "[profile empty]\nregion = us-east-1\n")
	for name, test := range map[string]struct {
		credential cloud.Credential
		asked      bool
		kind       error
	}{
		"profile":       {cloud.Credential{Profile: "empty", SharedConfigFile: file}, false, cloud.ErrCredentials},
		"default chain": {cloud.Credential{DefaultChain: true}, true, cloud.ErrUnreachable},
	} {
		var r recorder
		k := openKMS(t, cloud.Settings{Proxy: r.proxy, Credentials: map[string]cloud.Credential{"prod": test.credential}})
		if err := describe(t.Context(), k); !errors.Is(err, test.kind) {
			t.Errorf("%s: %v", name, err)
		}
		if asked := strings.Contains(strings.Join(r.seen(), " "), "169.254.169.254"); asked != test.asked {
			t.Errorf("%s: went to %q", name, r.seen())
		}
	}
}

func TestAssumeRole(t *testing.T) {
	f := newFake(t, stsAndKMS)
	s := f.settings()
	c := static()
	c.RoleARN, c.ExternalID = roleARN, "external-7"
	s.Credentials["prod"] = c
	k := openKMS(t, s)
	for range 2 {
		if err := create(t.Context(), k); err != nil {
			t.Fatal(err)
		}
	}
	if f.count("AssumeRole") != 1 || f.count("CreateKey") != 2 {
		t.Fatalf("%d AssumeRole, %d CreateKey", f.count("AssumeRole"), f.count("CreateKey"))
	}
	q := f.requests()[0]
	if got := q.form; got.Get("RoleArn") != roleARN || got.Get("ExternalId") != "external-7" ||
		!regexp.MustCompile(`^byokd-[\w+=,.@-]{1,58}$`).MatchString(got.Get("RoleSessionName")) {
		t.Errorf("asked %v", got)
	}
	if signedWith(q) != csvID {
		t.Errorf("AssumeRole signed with %q", signedWith(q))
	}
	if q := f.requests()[1]; signedWith(q) != "ASIAROLE" || q.header.Get("X-Amz-Security-Token") != "roletoken" {
		t.Errorf("CreateKey signed with %q", signedWith(q))
	}
}

func TestAssumeRoleFails(t *testing.T) {
	for name, test := range map[string]struct {
		answer  answer
		class   cloud.Class
		waiting string
		kind    error
		want    string
		sent    int
	}{
		"denied":     {stsError(403, "AccessDenied"), cloud.Operator, "permission", cloud.ErrDenied, `credential "prod": sts:AssumeRole: AccessDenied: the message of AccessDenied; grant sts:AssumeRole`, 1},
		"wrong key":  {stsError(403, "InvalidClientTokenId"), cloud.Operator, "permission", cloud.ErrCredentials, "sts:AssumeRole: InvalidClientTokenId", 3},
		"throttled":  {stsError(400, "Throttling"), cloud.Transient, "", cloud.ErrThrottled, "Throttling", 3},
		"hung up":    {answer{hangUp: true}, cloud.Transient, "", cloud.ErrUnreachable, "cannot be reached: EOF; check", 3},
		"a 500":      {stsError(500, "InternalFailure"), cloud.Transient, "", nil, "InternalFailure", 3},
		"not of AWS": {answer{status: 403, body: "<html>"}, cloud.Transient, "", cloud.ErrCredentials, "answered HTTP 403, and not as AWS does", 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, sequence(test.answer))
			s := f.settings()
			c := static()
			c.RoleARN = roleARN
			s.Credentials["prod"] = c
			err := create(t.Context(), openKMS(t, s))
			if cloud.ClassOf(err) != test.class || cloud.WaitingFor(err) != test.waiting {
				t.Errorf("class %q, waiting for %q: %v", cloud.ClassOf(err), cloud.WaitingFor(err), err)
			}
			if test.kind != nil && !errors.Is(err, test.kind) {
				t.Errorf("not %q: %v", test.kind, err)
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%q does not say %q", err, test.want)
			}
			if f.count("CreateKey") != 0 || len(f.requests()) != test.sent {
				t.Errorf("%d requests, %d of them CreateKey", len(f.requests()), f.count("CreateKey"))
			}
		})
	}
}

func TestAccount(t *testing.T) {
	noSTS := func(rest map[string]string) func(asked) answer {
		return func(q asked) answer {
			if body, ok := rest[q.operation]; ok {
				return answer{body: body}
			}
			if q.operation == "GetCallerIdentity" {
				return answer{hangUp: true}
			}
			return awsError("AccessDeniedException")
		}
	}
	alias := `{"Aliases":[{"AliasName":"alias/aws/ebs","AliasArn":"arn:aws:kms:eu-central-1:111122223333:alias/aws/ebs"}]}`
	key := `{"Keys":[{"KeyId":"` + keyID + `","KeyArn":"` + keyARN + `"}]}`
	for name, test := range map[string]struct {
		script  func(asked) answer
		account string // configured
		role    string
		want    string
		class   cloud.Class
	}{
		"STS":                      {stsAndKMS, "", "", account, ""},
		"STS, as configured":       {stsAndKMS, account, "", account, ""},
		"another account":          {stsAndKMS, "999999999999", "", "", cloud.Operator},
		"no STS, an alias":         {noSTS(map[string]string{"ListAliases": alias}), "", "", account, ""},
		"no STS, a key":            {noSTS(map[string]string{"ListAliases": `{"Aliases":[]}`, "ListKeys": key}), "", "", account, ""},
		"no STS, may not list":     {noSTS(map[string]string{"ListKeys": key}), "", "", account, ""},
		"no STS, other account":    {noSTS(map[string]string{"ListKeys": key}), "999999999999", "", "", cloud.Operator},
		"no STS, a role":           {noSTS(map[string]string{"AssumeRole": assumedRole(time.Hour)}), "", roleARN, account, ""},
		"no STS, empty":            {noSTS(map[string]string{"ListAliases": `{}`, "ListKeys": `{}`}), "", "", "", cloud.Transient},
		"no STS, empty, told":      {noSTS(map[string]string{"ListAliases": `{}`, "ListKeys": `{}`}), account, "", account, ""},
		"no STS, nothing is known": {noSTS(nil), "", "", "", cloud.Operator},
		"STS refuses the key":      {sequence(stsError(403, "InvalidClientTokenId")), "", "", "", cloud.Operator},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, test.script)
			s := f.settings()
			c := static()
			c.Account, c.RoleARN = test.account, test.role
			s.Credentials["prod"] = c
			got, err := openKMS(t, s).Account(t.Context())
			if got != test.want || cloud.ClassOf(err) != test.class {
				t.Errorf("got %q, class %q: %v", got, cloud.ClassOf(err), err)
			}
			if name == "another account" && (!strings.Contains(err.Error(), account) || !strings.Contains(err.Error(), "999999999999") || cloud.WaitingFor(err) != "config") {
				t.Errorf("the message does not name both: %v", err)
			}
		})
	}
}

// The account is asked for once per access key.
func TestAccountIsRemembered(t *testing.T) {
	content := accessKeyCSV
	f := newFake(t, func(q asked) answer {
		if signedWith(q) == csvID {
			return answer{body: callerIdentity("111122223333")}
		}
		return answer{body: callerIdentity("444455556666")}
	})
	s := f.settings()
	s.Credentials["prod"] = cloud.Credential{AccessKeyCSV: func() ([]byte, error) { return []byte(content), nil }}
	k := openKMS(t, s)
	for _, want := range []string{"111122223333", "111122223333", "444455556666", "444455556666"} {
		if want == "444455556666" {
			content = strings.ReplaceAll(accessKeyCSV, csvID, "AKIAOTHER")
		}
		if got, err := k.Account(t.Context()); got != want || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
	}
	if n := len(f.requests()); n != 2 {
		t.Errorf("asked %d times", n)
	}
}

func TestSetCredentials(t *testing.T) {
	f := newFake(t, stsAndKMS)
	c := open(t, f.settings())
	first, err := c.KMS("prod", region)
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := c.KMS("prod", region); again != first {
		t.Error("asking twice gives two values")
	}
	c.SetCredentials(map[string]cloud.Credential{"prod": {CredentialProcess: `echo '{"Version":1,"AccessKeyId":"AKIASECOND","SecretAccessKey":"s"}'`}})
	second, err := c.KMS("prod", region)
	if err != nil || second == first {
		t.Fatalf("the same value, %v", err)
	}
	describe(t.Context(), first)
	describe(t.Context(), second)
	if q := f.requests(); signedWith(q[0]) != csvID || signedWith(q[1]) != "AKIASECOND" {
		t.Errorf("signed with %q and %q", signedWith(q[0]), signedWith(q[1]))
	}
	c.SetCredentials(nil)
	if _, err := c.KMS("prod", region); cloud.ClassOf(err) != cloud.Operator {
		t.Errorf("a credential that is gone: %v", err)
	}
}
