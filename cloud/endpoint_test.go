package cloud_test

import (
	"crypto/sha1"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"byokd/cloud"
)

func TestEndpoints(t *testing.T) {
	for name, test := range map[string]struct {
		region     string
		fips, dual bool
		want       [5]string // KMS, events, STS, tagging, Service Quotas; "": AWS has none
	}{
		"plain": {"eu-central-1", false, false, [5]string{
			"https://kms.eu-central-1.amazonaws.com", "https://events.eu-central-1.amazonaws.com",
			"https://sts.eu-central-1.amazonaws.com", "https://tagging.eu-central-1.amazonaws.com",
			"https://servicequotas.eu-central-1.amazonaws.com"}},
		"FIPS, no FIPS for events": {"eu-central-1", true, false, [5]string{
			"https://kms-fips.eu-central-1.amazonaws.com", "https://events.eu-central-1.amazonaws.com",
			"https://sts-fips.eu-central-1.amazonaws.com", "https://tagging.eu-central-1.amazonaws.com",
			"https://servicequotas.eu-central-1.amazonaws.com"}},
		"FIPS in the US": {"us-east-2", true, false, [5]string{
			"https://kms-fips.us-east-2.amazonaws.com", "https://events-fips.us-east-2.amazonaws.com",
			"https://sts-fips.us-east-2.amazonaws.com", "https://tagging.us-east-2.amazonaws.com",
			"https://servicequotas.us-east-2.amazonaws.com"}},
		"FIPS in Canada": {"ca-west-1", true, false, [5]string{
			"https://kms-fips.ca-west-1.amazonaws.com", "https://events-fips.ca-west-1.amazonaws.com",
			"https://sts-fips.ca-west-1.amazonaws.com", "https://tagging.ca-west-1.amazonaws.com",
			"https://servicequotas.ca-west-1.amazonaws.com"}},
		"FIPS in GovCloud": {"us-gov-west-1", true, false, [5]string{
			"https://kms-fips.us-gov-west-1.amazonaws.com", "https://events.us-gov-west-1.amazonaws.com",
			"https://sts.us-gov-west-1.amazonaws.com", "https://tagging.us-gov-west-1.amazonaws.com",
			"https://servicequotas.us-gov-west-1.amazonaws.com"}},
		"dual-stack, never for events": {"eu-central-1", false, true, [5]string{
			"https://kms.eu-central-1.api.aws", "https://events.eu-central-1.amazonaws.com",
			"https://sts.eu-central-1.api.aws", "https://tagging.eu-central-1.api.aws",
			"https://servicequotas.eu-central-1.amazonaws.com"}},
		"FIPS and dual-stack": {"us-west-2", true, true, [5]string{
			"https://kms-fips.us-west-2.api.aws", "https://events-fips.us-west-2.amazonaws.com",
			"https://sts-fips.us-west-2.api.aws", "https://tagging.us-west-2.api.aws",
			"https://servicequotas.us-west-2.amazonaws.com"}},
		"China": {"cn-north-1", false, false, [5]string{
			"https://kms.cn-north-1.amazonaws.com.cn", "https://events.cn-north-1.amazonaws.com.cn",
			"https://sts.cn-north-1.amazonaws.com.cn", "https://tagging.cn-north-1.amazonaws.com.cn",
			"https://servicequotas.cn-north-1.amazonaws.com.cn"}},
		"European Sovereign Cloud": {"eusc-de-east-1", false, false, [5]string{
			"https://kms.eusc-de-east-1.amazonaws.eu", "https://events.eusc-de-east-1.amazonaws.eu",
			"https://sts.eusc-de-east-1.amazonaws.eu", "https://tagging.eusc-de-east-1.amazonaws.eu",
			"https://servicequotas.eusc-de-east-1.amazonaws.eu"}},
		"not a Region": {"eu central", false, false, [5]string{}},
	} {
		t.Run(name, func(t *testing.T) {
			c := open(t, cloud.Settings{UseFIPS: test.fips, UseDualStack: test.dual, FromServiceQuotas: true})
			for i, service := range c.Services() {
				got, overridden := c.Endpoint(service, test.region)
				if got != test.want[i] || overridden {
					t.Errorf("%s: got %q (overridden: %v), want %q", service, got, overridden, test.want[i])
				}
			}
		})
	}
}

// Requests go where Endpoint says, FIPS and all.
func TestEndpointsAreUsed(t *testing.T) {
	var r recorder
	c := open(t, cloud.Settings{UseFIPS: true, FromServiceQuotas: true, Proxy: r.proxy, Credentials: map[string]cloud.Credential{"prod": static()}})
	k, err := c.KMS("prod", "us-east-1")
	if err != nil {
		t.Fatal(err)
	}
	bus, err := c.Bus("prod", "us-east-1", "default")
	if err != nil {
		t.Fatal(err)
	}
	if err := describe(t.Context(), k); !errors.As(err, new(refusedError)) || cloud.ClassOf(err) != cloud.Transient {
		t.Errorf("got %v", err)
	}
	k.Account(t.Context())
	k.FindKeys(t.Context(), map[string]string{"a": "b"})
	bus.Check(t.Context())
	k.ServiceQuotas(t.Context())
	for _, service := range c.Services() {
		if want, _ := c.Endpoint(service, "us-east-1"); !slices.Contains(r.seen(), want) {
			t.Errorf("nothing went to %s, only to %q", want, r.seen())
		}
	}
}

func TestOverrides(t *testing.T) {
	t.Setenv("AWS_ENDPOINT_URL", "https://all.example")
	t.Setenv("AWS_ENDPOINT_URL_EVENTBRIDGE", "https://events.example")
	t.Setenv("AWS_ENDPOINT_URL_RESOURCE_GROUPS_TAGGING_API", "http://127.0.0.1:1")
	t.Setenv("AWS_ENDPOINT_URL_SERVICE_QUOTAS", "https://quotas.example")
	s := cloud.Settings{
		UseFIPS: true, UseDualStack: true, // overrides are taken as they are
		KMSEndpoint: "https://kms.example/",
		Regional:    map[string]cloud.Endpoints{"eu-central-1": {KMS: "https://vpce.example", ServiceQuotas: "https://vpce-quotas.example"}},
	}
	check := func(c *cloud.Cloud, service, region, want string, overridden bool) {
		t.Helper()
		if got, o := c.Endpoint(service, region); got != want || o != overridden {
			t.Errorf("%s in %s: got %q, %v", service, region, got, o)
		}
	}
	c := open(t, s)
	check(c, cloud.ServiceKMS, "eu-central-1", "https://vpce.example", true)
	check(c, cloud.ServiceKMS, "us-east-1", "https://kms.example/", true)
	check(c, cloud.ServiceEvents, "us-east-1", "https://events.example", true)
	check(c, cloud.ServiceSTS, "us-east-1", "https://all.example", true)
	check(c, cloud.ServiceTagging, "us-east-1", "http://127.0.0.1:1", true)
	check(c, cloud.ServiceQuotas, "us-east-1", "https://quotas.example", true)
	check(c, cloud.ServiceQuotas, "eu-central-1", "https://vpce-quotas.example", true)
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	t.Setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
	c = open(t, s)
	check(c, cloud.ServiceKMS, "eu-central-1", "https://vpce.example", true)
	check(c, cloud.ServiceSTS, "us-east-1", "https://sts-fips.us-east-1.api.aws", false)
}

func TestBadOverrides(t *testing.T) {
	for name, test := range map[string]struct{ url, want string }{
		"http":      {"http://kms.example", "http:// is for loopback addresses only, and kms.example is none; use https://"},
		"http, LAN": {"http://10.0.0.1:8080", "loopback"},
		"no scheme": {"kms.example", "not a URL"},
		"no host":   {"https://", "not a URL"},
		"ftp":       {"ftp://127.0.0.1", "neither https:// nor http://"},
		"user":      {"https://u:hunter2@kms.example", "no user"},
		"query":     {"https://kms.example/?a=b", "no user, query or fragment"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, s := range []cloud.Settings{
				{KMSEndpoint: test.url},
				{Regional: map[string]cloud.Endpoints{region: {KMS: test.url}}},
			} {
				s.Credentials = map[string]cloud.Credential{"prod": static()}
				c := open(t, s)
				err := c.Validate()
				if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "hunter2") {
					t.Errorf("got %v", err)
				}
				if cloud.ClassOf(err) != cloud.Operator || cloud.WaitingFor(err) != "config" {
					t.Errorf("class %q, waiting for %q", cloud.ClassOf(err), cloud.WaitingFor(err))
				}
				if _, err := c.KMS("prod", region); cloud.ClassOf(err) != cloud.Operator {
					t.Errorf("KMS: %v", err)
				}
			}
			t.Setenv("AWS_ENDPOINT_URL_KMS", test.url)
			c := open(t, cloud.Settings{Credentials: map[string]cloud.Credential{"prod": static()}})
			if err := c.Validate(); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("environment: %v", err)
			}
			if _, err := c.KMS("prod", region); cloud.ClassOf(err) != cloud.Operator {
				t.Errorf("environment, KMS: %v", err)
			}
		})
	}
	for _, good := range []string{"http://localhost:1", "http://127.9.9.9", "http://[::1]:8080", "https://kms.example:8443/path"} {
		if err := open(t, cloud.Settings{KMSEndpoint: good}).Validate(); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
}

// Endpoints of shared AWS configuration files have no say, not for the services
// and not for the role that a profile assumes.
func TestSharedConfigEndpoints(t *testing.T) {
	file := writeFile(t, "config", `
[profile byok]
region = us-west-2
endpoint_url = https://evil.example
use_fips_endpoint = true
services = evil
role_arn = arn:aws:iam::111122223333:role/byok
source_profile = keys

[profile keys]
aws_access_key_id = AKIAIOSFODNN7EXAMPLE
aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY
endpoint_url = https://evil.example
services = evil

[profile sso]
endpoint_url = https://evil.example
services = evil
sso_account_id = 111122223333
sso_role_name = byok
sso_start_url = https://example.awsapps.com/start
sso_region = eu-west-1

[services evil]
kms =
  endpoint_url = https://evil.example
sts =
  endpoint_url = https://evil.example/with/path
eventbridge =
  endpoint_url = https://evil.example
sso =
  endpoint_url = https://evil.example
resource_groups_tagging_api =
  endpoint_url = https://evil.example
`)
	home := t.TempDir()
	t.Setenv("HOME", home)
	cache := filepath.Join(home, ".aws", "sso", "cache")
	if err := os.MkdirAll(cache, 0o700); err != nil {
		t.Fatal(err)
	}
	token := fmt.Sprintf("%x.json", sha1.Sum([]byte("https://example.awsapps.com/start")))
	if err := os.WriteFile(filepath.Join(cache, token), []byte(`{"accessToken":"t","expiresAt":"2999-01-01T00:00:00Z"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for profile, want := range map[string][]string{
		"sso":  {"https://portal.sso.eu-west-1.amazonaws.com"},
		"keys": {"https://kms.eu-central-1.amazonaws.com"},
		"byok": {"https://sts.eu-central-1.amazonaws.com"},
	} {
		t.Run(profile, func(t *testing.T) {
			var r recorder
			k := openKMS(t, cloud.Settings{Proxy: r.proxy, Credentials: map[string]cloud.Credential{
				"prod": {Profile: profile, SharedConfigFile: file}}})
			if err := describe(t.Context(), k); !errors.As(err, new(refusedError)) {
				t.Errorf("got %v", err)
			}
			if !slices.Equal(r.seen(), want) {
				t.Errorf("went to %q, want %q", r.seen(), want)
			}
		})
	}

	// With AWS_CONFIG_FILE too, and byokd's own override for STS.
	t.Run("own override", func(t *testing.T) {
		t.Setenv("AWS_CONFIG_FILE", file)
		f := newFake(t, stsAndKMS)
		s := f.settings()
		s.Credentials = map[string]cloud.Credential{"prod": {Profile: "byok"}}
		if err := describe(t.Context(), openKMS(t, s)); err != nil {
			t.Error(err)
		}
		if f.count("AssumeRole") != 1 || f.count("DescribeKey") != 1 {
			t.Errorf("got %v", f.requests())
		}
	})
}

// A proxy is used, and gets the name of the endpoint. Loopback addresses are
// never proxied by the environment, so the function is the test's own.
func TestProxy(t *testing.T) {
	var asked atomic.Value
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r.URL.String())
		io.WriteString(w, `{"KeyMetadata":{"KeyId":"`+keyID+`"}}`)
	}))
	defer proxy.Close()
	s := settingsFor("http://127.0.0.1:1")
	u, _ := url.Parse(proxy.URL)
	s.Proxy = http.ProxyURL(u)
	if err := describe(t.Context(), openKMS(t, s)); err != nil {
		t.Fatal(err)
	}
	if got := asked.Load(); got != "http://127.0.0.1:1/" {
		t.Errorf("the proxy was asked for %v", got)
	}

	// It is told without its password, and so is that there is none.
	u.User = url.UserPassword("byokd", "hidden")
	s.Proxy = http.ProxyURL(u)
	if got, err := open(t, s).ProxyTo(cloud.ServiceKMS, "eu-central-1"); got != u.Host || err != nil {
		t.Errorf("the proxy is %q, %v, and should be %q", got, err, u.Host)
	}
	s.Proxy = http.ProxyURL(nil)
	if got, err := open(t, s).ProxyTo(cloud.ServiceKMS, "eu-central-1"); got != "" || err != nil {
		t.Errorf("the proxy is %q, %v, and there is none", got, err)
	}
}

// A CONNECT that the proxy refuses has sent nothing.
func TestProxyRefuses(t *testing.T) {
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusProxyAuthRequired)
	}))
	defer proxy.Close()
	s := settingsFor("https://127.0.0.1:1")
	u, _ := url.Parse(proxy.URL)
	s.Proxy = http.ProxyURL(u)
	err := create(t.Context(), openKMS(t, s))
	if cloud.ClassOf(err) != cloud.Transient || err == nil || !strings.Contains(err.Error(), "Proxy Authentication Required") {
		t.Errorf("got %q: %v", cloud.ClassOf(err), err)
	}
}

// The SDK's own kind of client would follow a 307, and take credentials from
// wherever it leads.
func TestRedirectOfTheChain(t *testing.T) {
	elsewhere := newFake(t, sequence(answer{}))
	f := newFake(t, sequence(answer{status: 307, header: map[string]string{"Location": elsewhere.URL}}))
	t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f.URL)
	s := f.settings()
	s.Credentials["prod"] = cloud.Credential{DefaultChain: true}
	err := describe(t.Context(), openKMS(t, s))
	if cloud.ClassOf(err) != cloud.Transient || err == nil || !strings.Contains(err.Error(), "redirected; byokd follows no redirects") {
		t.Errorf("got %q: %v", cloud.ClassOf(err), err)
	}
	if n := len(elsewhere.requests()); n != 0 {
		t.Errorf("%d requests went elsewhere", n)
	}
}

func TestCABundle(t *testing.T) {
	f := newTLSFake(t, stsAndKMS)
	bundle := writeFile(t, "ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.Certificate().Raw})))
	t.Setenv("AWS_CA_BUNDLE", bundle)
	profile := writeFile(t, "config", "[profile byok]\nrole_arn = arn:aws:iam::111122223333:role/byok\nsource_profile = keys\n[profile keys]\naws_access_key_id = AKIA\naws_secret_access_key = s\n")
	for name, c := range map[string]cloud.Credential{
		"CSV":     static(),
		"profile": {Profile: "byok", SharedConfigFile: profile},
	} {
		s := f.settings()
		s.Credentials["prod"] = c
		if err := describe(t.Context(), openKMS(t, s)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, path := range map[string]string{"missing": bundle + ".no", "no PEM": profile} {
		t.Setenv("AWS_CA_BUNDLE", path)
		_, err := open(t, f.settings()).KMS("prod", region)
		if cloud.ClassOf(err) != cloud.Operator || err == nil || !strings.Contains(err.Error(), "AWS_CA_BUNDLE") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
