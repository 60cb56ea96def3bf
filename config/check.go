package config

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

var (
	// tableName is a name that a user gives an [hsm.NAME] or [credentials.NAME].
	tableName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$`)

	// regionName is the form of AWS's Region codes, such as eu-central-1,
	// us-gov-west-1 and eusc-de-east-1.
	regionName = regexp.MustCompile(`^[a-z]{2,8}(-[a-z]+)+-[0-9]{1,2}$`)

	// attributeName is a CKA_ name, with or without the prefix.
	attributeName = regexp.MustCompile(`^[A-Z][A-Z0-9_]*$`)

	accountID = regexp.MustCompile(`^[0-9]{12}$`)
	roleARN   = regexp.MustCompile(`^arn:aws[a-z-]*:iam::[0-9]{12}:role/[\x21-\x7e]+$`)

	// busName and busARN are EventBridge's forms (API reference, PutEvents).
	busName = regexp.MustCompile(`^[/.\-_A-Za-z0-9]{1,256}$`)
	busARN  = regexp.MustCompile(`^arn:aws[a-z-]*:events:[a-z]{2,8}(-[a-z]+)+-[0-9]{1,2}:[0-9]{12}:event-bus/[/.\-_A-Za-z0-9]{1,256}$`)

	// credentialName is what systemd takes as the name of a credential.
	credentialName = regexp.MustCompile(`^[^/:\x00-\x20]{1,255}$`)
)

// detailTypes are the events that byokd emits, which hooks can be put on.
var detailTypes = []string{
	"KMS Alias Moved", "KMS Key Material Rotated", "KMS Key Synchronized",
	"KMS Key Material Deleted", "KMS Key Disabled", "KMS Key Deletion Scheduled",
	"BYOK Rotation Failed", "BYOK Rotation Overdue", "BYOK Key Expiring",
	"BYOK Drift Detected", "BYOK Group Invalid",
}

// checkConfig checks what the values of byokd.toml mean. Where a problem is
// about a value already, nothing further is said of it.
func (d *document) checkConfig(c *Config, opts Options, dirs directories) {
	d.notEmpty("groups_dir", c.GroupsDir)
	d.notEmpty("state_dir", c.StateDir)
	d.notEmpty("runtime_dir", c.RuntimeDir)
	d.timezone("timezone", c.Timezone)
	if d.ok("drift_check") && c.DriftCheck != 0 && c.DriftCheck < Duration(time.Minute) {
		d.problemf("drift_check", `must be at least "1m", or "0s" for off`)
	}
	for _, name := range slices.Sorted(maps.Keys(c.HSMs)) {
		d.checkHSM(name, c.HSMs[name], opts, dirs)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Credentials)) {
		d.checkCredential(name, c.Credentials[name], opts, dirs)
	}
	d.checkAWS(c.AWS)
	d.checkEvents(c)
	d.listenAddress("metrics.listen", c.Metrics.Listen, false)
	d.listenAddress("page.listen", c.Page.Listen, true)
	for _, name := range slices.Sorted(maps.Keys(c.Hooks)) {
		if name != "*" && !slices.Contains(detailTypes, name) {
			d.problemf(join("hooks", name), `is not a detail-type that byokd emits: use "*" or one of %s`, list(detailTypes))
		}
		if command := c.Hooks[name]; len(command) > 0 && d.ok(join("hooks", name)) && !opts.SkipFiles {
			d.checkCode(join("hooks", name), command[0], "program", dirs)
		}
	}
}

func (d *document) checkHSM(name string, h HSM, opts Options, dirs directories) {
	prefix := join("hsm", name)
	if !d.ok(prefix) {
		return // not a table
	}
	key := func(k string) string { return join(prefix, k) }
	d.tableName(prefix, name)
	if !opts.SkipFiles {
		d.checkModule(key("module"), h.Module, dirs)
	}
	if h.TokenLabel == "" && h.TokenSerial == "" && d.ok(key("token_label"), key("token_serial")) {
		d.problemf(key("token_label"), "is required, or token_serial, or both: they say which token it is")
	}
	d.exactlyOne(prefix, "the user PIN",
		option{"pin_file", h.PINFile != ""}, option{"pin_credential", h.PINCredential != ""})
	d.checkSecret(key("pin_file"), key("pin_credential"), h.PINCredential, h.pin, opts, dirs)
	d.checkTemplate(key("key_template"), h.KeyTemplate)
}

// checkModule checks the PKCS#11 module, which runs inside byokd: whoever can
// change it, or put another in its place, has the keys.
func (d *document) checkModule(key, path string, dirs directories) {
	if !d.ok(key) {
		return
	}
	if path == "" {
		d.problemf(key, "is required: the absolute path of the PKCS#11 module")
		return
	}
	if !filepath.IsAbs(path) {
		d.problemf(key, "%q must be an absolute path, so that no search path decides what is loaded", path)
		return
	}
	d.checkCode(key, path, "module", dirs)
}

// checkCode checks a file that byokd runs. One that is not there is none of its
// business: see [Config.Missing].
func (d *document) checkCode(key, path, what string, dirs directories) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return
	case err != nil:
		d.problemf(key, "%s cannot be looked at: %v", path, reason(err))
		return
	case !info.Mode().IsRegular():
		d.problemf(key, "%s %v: give the path of the %s itself", path, errNotRegular, what)
		return
	}
	if err := checkMode(path, info); err != nil {
		d.problemf(key, "%s %v", path, err)
		return
	}
	if err := dirs.check(path); err != nil {
		d.problemf(key, "%s %v", path, err)
	}
}

// checkSecret checks the name of a systemd credential, and the file without
// reading it.
func (d *document) checkSecret(fileKey, credentialKey, credential string, f SecretFile, opts Options, dirs directories) {
	if !d.ok(fileKey, credentialKey) || opts.SkipFiles {
		return
	}
	if credential != "" && (!credentialName.MatchString(credential) || credential == "." || credential == "..") {
		d.problemf(credentialKey, "%q is not the name of a systemd credential: give the name alone, as in LoadCredential=NAME:PATH", credential)
		return
	}
	key := fileKey
	if credential != "" {
		key = credentialKey
	}
	if _, err := f.inspect(dirs); err != nil && !(opts.SkipSecrets && errors.Is(err, fs.ErrPermission)) {
		d.problemf(key, "%v", err)
	}
}

// checkTemplate refuses attributes that byokd's own work, or the safety of a
// key, rests on.
func (d *document) checkTemplate(table string, template map[string]Attribute) {
	for _, name := range slices.Sorted(maps.Keys(template)) {
		bare := strings.TrimPrefix(name, "CKA_")
		key := join(table, bare)
		if d.given(join(table, name)) {
			if d.given(key) {
				d.problemf(key, "is there with and without CKA_: keep one")
				continue
			}
			key = join(table, name)
		}
		if !d.ok(key) {
			continue
		}
		a := template[name]
		switch {
		case !attributeName.MatchString(bare):
			d.problemf(key, `is not the name of an attribute: write it as in PKCS#11, such as "CKA_MODIFIABLE" or "MODIFIABLE"`)
		case slices.Contains([]string{"SENSITIVE", "TOKEN", "PRIVATE", "VALUE"}, bare):
			d.problemf(key, "cannot be changed: keys are always sensitive, private token objects; remove it")
		case slices.Contains([]string{"LABEL", "ID"}, bare):
			d.problemf(key, "cannot be changed: byokd finds its keys by it; remove it")
		case slices.Contains([]string{"CLASS", "KEY_TYPE", "VALUE_LEN"}, bare) && !a.Omit:
			d.problemf(key, `cannot be changed: keys are AES-256; remove it, or say "omit"`)
		case bare == "EXTRACTABLE" && !a.Omit && a.Value != true:
			d.problemf(key, `must be true or "omit": a key that cannot be wrapped cannot be imported`)
		}
	}
}

func (d *document) checkCredential(name string, c Credential, opts Options, dirs directories) {
	prefix := join("credentials", name)
	if !d.ok(prefix) {
		return
	}
	key := func(k string) string { return join(prefix, k) }
	d.tableName(prefix, name)
	d.exactlyOne(prefix, "the credentials",
		option{"access_key_csv", c.AccessKeyCSV != ""}, option{"access_key_credential", c.AccessKeyCredential != ""},
		option{"profile", c.Profile != ""}, option{"credential_process", c.CredentialProcess != ""},
		option{"default_chain", c.DefaultChain})
	if c.AccessKeyCSV != "" || c.AccessKeyCredential != "" {
		d.checkSecret(key("access_key_csv"), key("access_key_credential"), c.AccessKeyCredential, c.accessKey, opts, dirs)
	}
	if c.Profile == "" && d.ok(key("profile")) {
		for _, k := range []string{"shared_config_file", "shared_credentials_file"} {
			if d.given(key(k)) && d.ok(key(k)) {
				d.problemf(key(k), "is for profile only: add profile, or remove it")
			}
		}
	}
	if c.RoleARN != "" && d.ok(key("role_arn")) && !roleARN.MatchString(c.RoleARN) {
		d.problemf(key("role_arn"), `%q is not the ARN of a role: write it as "arn:aws:iam::111122223333:role/NAME"`, c.RoleARN)
	}
	if c.ExternalID != "" && c.RoleARN == "" && d.ok(key("external_id"), key("role_arn")) {
		d.problemf(key("external_id"), "is for role_arn only: add role_arn, or remove it")
	}
	if c.Account != "" && d.ok(key("account")) && !accountID.MatchString(c.Account) {
		d.problemf(key("account"), `%q is not the ID of an AWS account: write its twelve digits in quotes`, c.Account)
	}
}

func (d *document) checkAWS(a AWS) {
	d.endpoint("aws.kms_endpoint", a.KMSEndpoint)
	d.endpoint("aws.eventbridge_endpoint", a.EventBridgeEndpoint)
	d.endpoint("aws.sts_endpoint", a.STSEndpoint)
	d.endpoint("aws.tagging_endpoint", a.TaggingEndpoint)
	d.endpoint("aws.servicequotas_endpoint", a.ServiceQuotasEndpoint)
	for _, region := range slices.Sorted(maps.Keys(a.Endpoints)) {
		prefix, e := join("aws.endpoints", region), a.Endpoints[region]
		if d.ok(prefix) && !regionName.MatchString(region) {
			d.problemf(prefix, "%q is not the code of a Region, such as eu-central-1", region)
		}
		d.endpoint(prefix+".kms", e.KMS)
		d.endpoint(prefix+".events", e.Events)
		d.endpoint(prefix+".sts", e.STS)
		d.endpoint(prefix+".tagging", e.Tagging)
		d.endpoint(prefix+".servicequotas", e.ServiceQuotas)
	}
	quotas := a.Quotas.Keys()
	for _, name := range slices.Sorted(maps.Keys(quotas)) {
		// Written so that NaN is refused too.
		if key, q := "aws.quotas."+name, *quotas[name]; d.ok(key) && !(q > 0 && q <= math.MaxInt32) {
			d.problemf(key, "must be more than 0 requests per second")
		}
	}
}

func (d *document) checkEvents(c *Config) {
	e := c.Events
	if d.ok("events.bus") && !busName.MatchString(e.Bus) && !busARN.MatchString(e.Bus) {
		d.problemf("events.bus", "%q is neither the name nor the ARN of an event bus", e.Bus)
	}
	if d.ok("events.source") {
		switch {
		case e.Source == "":
			d.problemf("events.source", `must not be empty: leave it out for "byokd"`)
		case strings.HasPrefix(e.Source, "aws."):
			d.problemf("events.source", `%q must not begin with "aws.", which EventBridge keeps for AWS`, e.Source)
		}
	}
	if e.Region != "" {
		d.region("events.region", e.Region)
	}
	if _, ok := c.Credentials[e.Credential]; !ok && e.Credential != "" && d.ok("events.credential") {
		d.problemf("events.credential", "%s", unknownTable("credentials", e.Credential, slices.Sorted(maps.Keys(c.Credentials))))
	}
}

// unknownTable says that byokd.toml lacks the table that a key refers to.
func unknownTable(kind, name string, names []string) string {
	if len(names) == 0 {
		return fmt.Sprintf("there is no [%s] in byokd.toml: add it", join(kind, name))
	}
	return fmt.Sprintf("there is no [%s] in byokd.toml: use one of %s, or add it", join(kind, name), list(names))
}

// An option is one of several keys that exclude each other.
type option struct {
	key  string
	used bool
}

// exactlyOne checks that one of several keys of a table is used. The problem
// stands at the second one that is too much, or at the table.
func (d *document) exactlyOne(table, what string, options ...option) {
	var all, used []string
	for _, o := range options {
		if !d.ok(join(table, o.key)) {
			return // it cannot be told whether it is meant to count
		}
		all = append(all, o.key)
		if o.used {
			used = append(used, o.key)
		}
	}
	switch len(used) {
	case 0:
		d.problemf(table, "has no source for %s: add one of %s", what, list(all))
	case 1:
	default:
		d.problemf(join(table, used[1]), "%s excludes %s: keep one of them", used[0], list(used[1:]))
	}
}

func (d *document) tableName(key, name string) {
	if !tableName.MatchString(name) {
		d.problemf(key, "%q is not a good name: use letters, digits, - and _, at most 63", name)
	}
}

func (d *document) notEmpty(key, value string) {
	if value == "" && d.ok(key) {
		d.problemf(key, "must not be empty: leave it out for the default")
	}
}

func (d *document) region(key, value string) {
	if d.ok(key) && !regionName.MatchString(value) {
		d.problemf(key, "%q is not the code of a Region, such as eu-central-1", value)
	}
}

// timezone returns nil where the zone is not good.
func (d *document) timezone(key, name string) *time.Location {
	if !d.ok(key) {
		return nil
	}
	// The time package takes "" for UTC, and "Local" for whatever the machine has.
	loc, err := time.LoadLocation(name)
	if err != nil || name == "" || name == "Local" {
		d.problemf(key, `%q is not a time zone: use an IANA name, such as "UTC" or "Europe/Berlin"`, name)
		return nil
	}
	return loc
}

func (d *document) endpoint(key, value string) {
	if value == "" || !d.ok(key) {
		return
	}
	if err := CheckEndpoint(value); err != nil {
		d.problemf(key, "%v", err)
	}
}

// CheckEndpoint checks the override of an AWS endpoint, from byokd.toml or
// from the environment: an https URL, or an http URL on loopback, of scheme,
// host and port only, with at most a path. The error does not show the value,
// which may hold a password.
func CheckEndpoint(endpoint string) error {
	u, err := url.Parse(endpoint)
	if err != nil || u.Hostname() == "" || u.Opaque != "" {
		return errors.New(`is not a URL: write it as "https://HOST" or "https://HOST:PORT"`)
	}
	switch {
	case u.User != nil:
		return errors.New("must not hold a user name or password: remove it")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return errors.New("must have no query and no fragment: remove what begins with ? or #")
	case u.Scheme == "https":
		return nil
	case u.Scheme != "http":
		return errors.New("must begin with https://")
	case !isLoopback(u.Hostname()):
		return errors.New("must begin with https://; http:// is for loopback addresses only, since an endpoint decides under whose key HSM keys are wrapped")
	}
	return nil
}

// loopbackEndpoint reports whether a good endpoint is on loopback.
func loopbackEndpoint(endpoint string) bool {
	u, err := url.Parse(endpoint)
	return err == nil && isLoopback(u.Hostname())
}

// isLoopback reports whether a host is a loopback address, or the name that is
// reserved for them (RFC 6761, section 6.3).
func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}

func (d *document) listenAddress(key, value string, loopback bool) {
	if value == "" || !d.ok(key) {
		return
	}
	host, port, err := net.SplitHostPort(value)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	switch {
	case err != nil:
		d.problemf(key, `%q is not an address: write it as "127.0.0.1:PORT"`, value)
	case loopback && !isLoopback(host):
		d.problemf(key, `%q is not a loopback address: use "127.0.0.1:PORT" or "[::1]:PORT"`, value)
	}
}

// list joins names for a message: "a", "a or b", "a, b or c".
func list(names []string) string {
	switch n := len(names); n {
	case 0:
		return ""
	case 1:
		return names[0]
	default:
		return strings.Join(names[:n-1], ", ") + " or " + names[n-1]
	}
}
