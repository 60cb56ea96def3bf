package daemon_test

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"byokd/cloud/awssim"
	"byokd/config"
	"byokd/daemon"
)

// online is what `byokctl check --online` finds of AWS, as lines.
func (w *world) online() []string {
	w.t.Helper()
	cfg := w.config()
	set, err := config.LoadDir(cfg, config.DefaultOptions())
	if err != nil {
		w.t.Fatal(err)
	}
	var groups []*config.Group
	for _, g := range set.Groups {
		groups = append(groups, g)
	}
	var lines []string
	daemon.CheckOnline(w.t.Context(), cfg, groups, func(f daemon.Finding) {
		lines = append(lines, f.State+" "+f.Subject+": "+f.Message)
	})
	return lines
}

// TestCheckOnline breaks what surrounds byokd, one thing at a time: what is
// found names the cause and the remedy, and nothing is changed in AWS.
func TestCheckOnline(t *testing.T) {
	w := newWorld(t)
	w.write("groups.d/policy.json", awsDefaultPolicy)
	w.group("payments", every+"\ndisable_previous = true", `policy_file = "policy.json"`)
	w.start()
	w.untilGeneration("payments", 1)
	w.halt()
	keys := len(w.keys())

	deny := func(operation string) func(t *testing.T) {
		return func(*testing.T) {
			w.deny(func(r awssim.Request) bool { return r.Operation == operation })
		}
	}
	// endpoint puts something else in the place of AWS.
	endpoint := func(url func(t *testing.T) string) func(t *testing.T) {
		return func(t *testing.T) { w.write("byokd.toml", strings.ReplaceAll(w.read("byokd.toml"), w.aws.URL, url(t))) }
	}
	tests := []struct {
		name  string
		spoil func(t *testing.T)
		want  string // part of a finding; "ok": none failed
	}{
		{"nothing", func(*testing.T) {}, "ok"},
		{"CreateKey denied", deny("CreateKey"), "failed credential prod in eu-central-1: kms:CreateKey in eu-central-1: AccessDeniedException: no; grant kms:CreateKey"},
		{"TagResource denied", deny("TagResource"), "grant kms:TagResource to credential"},
		{"UntagResource denied", deny("UntagResource"), "grant kms:UntagResource"},
		{"GetParametersForImport denied", deny("GetParametersForImport"), "grant kms:GetParametersForImport"},
		{"ImportKeyMaterial denied", deny("ImportKeyMaterial"), "grant kms:ImportKeyMaterial"},
		{"PutKeyPolicy denied", deny("PutKeyPolicy"), "grant kms:PutKeyPolicy"},
		{"GetKeyPolicy denied", deny("GetKeyPolicy"), "grant kms:GetKeyPolicy"},
		{"ListResourceTags denied", deny("ListResourceTags"), "grant kms:ListResourceTags"},
		{"CreateAlias denied", deny("CreateAlias"), "grant kms:CreateAlias on the alias"},
		{"Encrypt denied", deny("Encrypt"), "grant kms:Encrypt"},
		{"Decrypt denied", deny("Decrypt"), "grant kms:Decrypt"},
		{"GetKeyLastUsage denied", deny("GetKeyLastUsage"), "grant kms:GetKeyLastUsage"},
		{"GetResources denied", deny("GetResources"), "warning credential prod in eu-central-1: tag:GetResources"},
		{"DescribeEventBus denied", deny("DescribeEventBus"), "warning event bus default in eu-central-1: events:DescribeEventBus"},
		{"ListServiceQuotas denied", func(t *testing.T) {
			w.askServiceQuotas("")
			deny("ListServiceQuotas")(t)
		}, "warning credential prod in eu-central-1: servicequotas:ListServiceQuotas in eu-central-1: AccessDeniedException: no; grant servicequotas:ListServiceQuotas to credential \"prod\""},
		{"Service Quotas", func(*testing.T) { w.askServiceQuotas("") }, "ok credential prod in eu-central-1: Service Quotas tells 1 GetParametersForImport a second\n"},
		{"Service Quotas, and a line", func(*testing.T) { w.askServiceQuotas("get_parameters_for_import = 3") }, "a second; [aws.quotas] sets 3, which comes first"},
		{"the endpoint of Service Quotas", func(*testing.T) { w.askServiceQuotas("") }, "ok servicequotas endpoint 127.0.0.1:"},
		{"no such bus", func(*testing.T) { w.configure("[events]\nbus = \"alerts\"\n") }, "failed event bus alerts in eu-central-1: events:DescribeEventBus for alerts in eu-central-1: ResourceNotFoundException"},
		{"wrong secret", func(*testing.T) {
			w.write("prod.csv", "Access key ID,Secret access key\n"+accessKey+",wrong\n")
		}, "failed credential prod in eu-central-1: sts:GetCallerIdentity in eu-central-1: SignatureDoesNotMatch; AWS does not accept credential \"prod\": put in a valid access key"},
		{"unknown access key", func(*testing.T) { w.write("prod.csv", "Access key ID,Secret access key\nAKIANOBODY,wrong\n") }, "AWS does not accept credential \"prod\""},
		{"another account", func(*testing.T) {
			w.write("byokd.toml", strings.Replace(w.read("byokd.toml"), "[credentials.prod]", "[credentials.prod]\naccount = \"444455556666\"", 1))
		}, "of account 111122223333, but account = \"444455556666\" is set for it"},
		{"no such role", func(*testing.T) {
			w.write("byokd.toml", strings.Replace(w.read("byokd.toml"), "[credentials.prod]", "[credentials.prod]\nrole_arn = \"arn:aws:iam::111122223333:role/none\"", 1))
			deny("AssumeRole")(t)
		}, "grant sts:AssumeRole"},
		{"a policy that locks out", func(*testing.T) {
			w.write("groups.d/policy.json", strings.ReplaceAll(awsDefaultPolicy, ":root", ":user/other"))
		}, "failed key policy of group payments: "},
		{"an alias at another key", func(t *testing.T) {
			keys := w.keys()
			tag := func(name string) {
				_, err := w.kmsClient().TagResource(context.Background(), &kms.TagResourceInput{KeyId: &keys[0].ID, Tags: []types.Tag{{TagKey: aws.String("byokd:group"), TagValue: &name}}})
				if err != nil {
					t.Fatal(err)
				}
			}
			tag("theirs")
			t.Cleanup(func() { tag("payments") })
		}, "warning group payments: alias/payments points at KMS key "},
		{"nobody listens", endpoint(func(t *testing.T) string {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			return "http://" + l.Addr().String()
		}), "cannot be reached: dial tcp 127.0.0.1"},
		{"a certificate of an unknown authority", endpoint(func(t *testing.T) string {
			s := httptest.NewUnstartedServer(http.NotFoundHandler())
			s.Config.ErrorLog = log.New(io.Discard, "", 0)
			s.StartTLS()
			t.Cleanup(s.Close)
			return s.URL
		}), "name its CA in AWS_CA_BUNDLE"},
		{"a clock that is wrong", endpoint(func(t *testing.T) string {
			s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
				rw.Header().Set("Date", time.Now().Add(-7*time.Minute).UTC().Format(http.TimeFormat))
			}))
			t.Cleanup(s.Close)
			return s.URL
		}), "the clock of this machine is wrong by 7m"},
		{"a captive portal", endpoint(func(t *testing.T) string {
			s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
				rw.Header()["Date"] = nil
				rw.Write([]byte("<html>please log in</html>"))
			}))
			t.Cleanup(s.Close)
			return s.URL
		}), "look for a proxy or captive portal"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w.t = t
			w.configure("")
			w.write("prod.csv", "Access key ID,Secret access key\n"+accessKey+","+secretKey+"\n")
			w.write("groups.d/policy.json", awsDefaultPolicy)
			w.faults(nil, nil)
			test.spoil(t)
			lines := w.online()
			all := strings.Join(lines, "\n")
			if test.want != "ok" && !strings.Contains(all, test.want) {
				t.Errorf("no finding says %q:\n%s", test.want, all)
			}
			if test.want == "ok" && (strings.Contains(all, "failed ") || strings.Contains(all, "warning ") || !strings.Contains(all, "may kms:CreateAlias, kms:CreateKey")) {
				t.Errorf("all is well, and this is found:\n%s", all)
			}
			if len(w.keys()) != keys {
				t.Fatalf("there are %d keys, before %d", len(w.keys()), keys)
			}
		})
	}
	w.t = t
	if n := w.requests("ListServiceQuotas"); n != 4 { // once in each test that wants it
		t.Errorf("Service Quotas was asked %d times", n)
	}
	for _, operation := range []string{"UpdateAlias", "DisableKey", "ScheduleKeyDeletion", "DeleteImportedKeyMaterial", "UpdateKeyDescription"} {
		if n := w.requests(operation); n != 0 {
			t.Errorf("%s was sent %d times", operation, n)
		}
	}
}

const awsDefaultPolicy = `{"Version":"2012-10-17","Id":"key-default-1","Statement":[{"Sid":"Enable IAM User Permissions","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:root"},"Action":"kms:*","Resource":"*"}]}`

// askServiceQuotas has Service Quotas asked, with other lines in [aws.quotas].
func (w *world) askServiceQuotas(lines string) {
	w.t.Helper()
	before := w.quotas
	defer func() { w.quotas = before }()
	w.quotas = "from_service_quotas = true\n" + lines
	w.configure("")
}

// read returns the content of a file of the machine.
func (w *world) read(name string) string {
	w.t.Helper()
	b, err := os.ReadFile(w.path(name))
	if err != nil {
		w.t.Fatal(err)
	}
	return string(b)
}
