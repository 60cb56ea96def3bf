// Package config reads byokd's configuration: byokd.toml into a [Config], and
// each file of groups.d into a [Group].
//
// All validation is here. It is strict (unknown keys are mistakes) and reports
// every mistake of every file at once, as [Problems] with file, line, column
// and key. Secrets are kept out: a Config knows where they lie ([SecretFile])
// and reads them when they are asked for.
//
// A Config and a Group do not change once they are loaded, and may be used from
// several goroutines as long as nobody writes to them.
package config

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A Config is byokd.toml with defaults applied. Paths are absolute: relative
// ones are resolved against the directory of the file.
type Config struct {
	// Path is the absolute path of the file.
	Path string `toml:"-"`

	// GroupsDir is the directory of the group files. Default: "groups.d".
	GroupsDir string `toml:"groups_dir"`

	// StateDir is the directory of the database. Default: $STATE_DIRECTORY,
	// which systemd sets, else /var/lib/byokd.
	StateDir string `toml:"state_dir"`

	// RuntimeDir is the directory of the control socket and of request files.
	// Default: $RUNTIME_DIRECTORY, which systemd sets, else /run/byokd.
	RuntimeDir string `toml:"runtime_dir"`

	// Designated says that this machine is the one that rotates. With false,
	// byokd looks, and changes nothing in AWS or in the HSM. Default: true.
	Designated bool `toml:"designated"`

	// Timezone is the IANA time zone for the schedules of groups that name
	// none. Default: "UTC".
	Timezone string `toml:"timezone"`

	// MaxJobs is how many jobs run at once. Default: 0, as many as keep the
	// request quota of each account and Region busy.
	MaxJobs int `toml:"max_jobs" min:"0"`

	// Settle is how long a file must have been unchanged before it counts.
	// Default: "1s".
	Settle Duration `toml:"settle"`

	// DriftCheck is the interval at which each group is compared with AWS,
	// spread over the groups; "0s" is off, else at least "1m". Default: "1h".
	DriftCheck Duration `toml:"drift_check"`

	// HSMs are the tokens, by the name that groups use: [hsm.NAME].
	HSMs map[string]HSM `toml:"hsm"`

	// Credentials are the AWS credentials, by the name that groups use:
	// [credentials.NAME].
	Credentials map[string]Credential `toml:"credentials"`

	// AWS is what holds for all calls to AWS: [aws].
	AWS AWS `toml:"aws"`

	// Events is the EventBridge side: [events].
	Events Events `toml:"events"`

	// Metrics is the Prometheus endpoint: [metrics].
	Metrics Metrics `toml:"metrics"`

	// Page is the status page: [page].
	Page Page `toml:"page"`

	// Log is the daemon's log: [log].
	Log Log `toml:"log"`

	// Retention is how long records are kept: [retention].
	Retention Retention `toml:"retention"`

	// Hooks are commands that are run on events, by detail-type, or "*" for
	// all: [hooks]. A command gets the event as JSON on stdin, a cleared
	// environment, and 60 s. Nobody but its owner may write to the program or
	// to its directory. Default: none.
	Hooks map[string]Command `toml:"hooks"`

	src source
}

// An HSM is one token: a table [hsm.NAME].
type HSM struct {
	// Module is the absolute path of the PKCS#11 module. Nobody but its owner
	// may write to it or to its directory. Required.
	Module string `toml:"module"`

	// TokenLabel is the label of the token. It or token_serial is required;
	// where both are given, both must match.
	TokenLabel string `toml:"token_label" max:"32"` // PKCS#11, CK_TOKEN_INFO: label[32]

	// TokenSerial is the serial number of the token.
	TokenSerial string `toml:"token_serial" max:"16"` // serialNumber[16]

	// PINFile is the file that holds the user PIN; one newline at its end is
	// not part of the PIN. It belongs to root or byokd's user, mode 0600. It or
	// pin_credential is required, and not both.
	//
	// See [HSM.PINSource] and [HSM.PIN].
	PINFile string `toml:"pin_file"`

	// PINCredential is the name of a systemd credential that holds the user
	// PIN.
	PINCredential string `toml:"pin_credential"`

	// Wrapping is the algorithm that keys are wrapped with, in KMS's words;
	// "auto" is the best one that the token proves to be able to do. Default:
	// "auto".
	Wrapping string `toml:"wrapping" enum:"auto,RSAES_OAEP_SHA_256,RSAES_OAEP_SHA_1"`

	// MaxParallel is how many calls may be inside the module at once; many
	// modules are not safe with more than one. Default: 1.
	MaxParallel int `toml:"max_parallel" min:"1"`

	// CallTimeout is how long a PKCS#11 call may take before the HSM counts as
	// unavailable. Default: "2m".
	CallTimeout Duration `toml:"call_timeout" min:"1s"`

	// InitReserved is the string passed to C_Initialize as pReserved, for
	// modules that want one, such as NSS. Default: none.
	InitReserved string `toml:"init_reserved"`

	// KeyTemplate adds or overrides attributes of generated keys: true, false, a
	// number or a string; "omit" leaves an attribute out. CKA_ may be left out
	// of the name. What makes a key safe cannot be changed. Default: none.
	//
	// Here the names always have CKA_.
	KeyTemplate map[string]Attribute `toml:"key_template"`

	pin SecretFile
}

func (h *HSM) setDefaults() {
	*h = HSM{Wrapping: "auto", MaxParallel: 1, CallTimeout: Duration(2 * time.Minute)}
}

// PINSource returns where the PIN lies.
func (h HSM) PINSource() SecretFile { return h.pin }

// PIN reads the PIN: the content of [HSM.PINSource] without one newline at its
// end. An empty PIN is an error.
func (h HSM) PIN() (Secret, error) {
	s, err := h.pin.Read()
	if err != nil {
		return Secret{}, err
	}
	b := s.Reveal()
	if n := len(b); n > 0 && b[n-1] == '\n' {
		b = b[:n-1]
		if n := len(b); n > 0 && b[n-1] == '\r' {
			b = b[:n-1]
		}
	}
	if len(b) == 0 {
		return Secret{}, fmt.Errorf("%s is empty: write the token's user PIN into it", h.pin)
	}
	return NewSecret(b), nil
}

// An Attribute is the value of a PKCS#11 attribute in a key template.
type Attribute struct {
	// Value is a bool, a uint64 or a string; nil where Omit is true.
	Value any

	// Omit says that the attribute must not be in the template: "omit".
	Omit bool
}

func (a *Attribute) decodeTOML(value any) error {
	switch v := value.(type) {
	case bool:
		a.Value = v
	case int64:
		if v < 0 {
			return errors.New("must not be negative: PKCS#11 numbers are unsigned")
		}
		a.Value = uint64(v)
	case string:
		if v == "omit" {
			a.Omit = true
		} else {
			a.Value = v
		}
	default:
		return fmt.Errorf(`must be true, false, an integer, a string or "omit", not %s`, typeName(value))
	}
	return nil
}

// A Credential is one way to authenticate to AWS: a table [credentials.NAME].
// It has exactly one source, and optionally a role on top.
type Credential struct {
	// AccessKeyCSV is the file with the access key as downloaded from the IAM
	// console. It belongs to root or byokd's user, mode 0600.
	//
	// See [Credential.AccessKeySource].
	AccessKeyCSV string `toml:"access_key_csv"`

	// AccessKeyCredential is the name of a systemd credential with the same
	// content. A changed one needs a restart.
	AccessKeyCredential string `toml:"access_key_credential"`

	// Profile is the profile of the AWS shared files.
	Profile string `toml:"profile"`

	// SharedConfigFile is read in place of ~/.aws/config, with profile only.
	SharedConfigFile string `toml:"shared_config_file"`

	// SharedCredentialsFile is read in place of ~/.aws/credentials, with
	// profile only.
	SharedCredentialsFile string `toml:"shared_credentials_file"`

	// CredentialProcess is a command line that prints credentials as AWS's
	// credential_process does, such as IAM Roles Anywhere's helper.
	CredentialProcess string `toml:"credential_process"`

	// DefaultChain uses the AWS SDK's default chain: environment, shared
	// files, container, instance role. Default: false.
	DefaultChain bool `toml:"default_chain"`

	// RoleARN is an IAM role that is assumed with the source's credentials.
	// Default: none.
	RoleARN string `toml:"role_arn"`

	// ExternalID is passed when the role is assumed. Default: none.
	ExternalID string `toml:"external_id"`

	// Account is the ID of the AWS account, twelve digits. If given, another
	// account behind this credential is an error for its groups. Default: any.
	Account string `toml:"account"`

	accessKey SecretFile
}

// AccessKeySource returns where the CSV of the access key lies; ok is false
// where the credential has another source.
func (c Credential) AccessKeySource() (f SecretFile, ok bool) {
	return c.accessKey, c.AccessKeyCSV != "" || c.AccessKeyCredential != ""
}

// An AWS is what holds for all calls to AWS: [aws].
type AWS struct {
	// WrappingKeySpec is the size of the RSA key that KMS makes for an import.
	// Default: "RSA_4096".
	WrappingKeySpec string `toml:"wrapping_key_spec" enum:"RSA_4096,RSA_3072,RSA_2048"`

	// UseFIPSEndpoint uses the FIPS endpoints of KMS and STS, and of
	// EventBridge where AWS lists one. Default: false.
	UseFIPSEndpoint bool `toml:"use_fips_endpoint"`

	// UseDualstackEndpoint uses the dual-stack endpoints of KMS and STS, never
	// of EventBridge. Default: false.
	UseDualstackEndpoint bool `toml:"use_dualstack_endpoint"`

	// KMSEndpoint overrides the endpoint of KMS for all Regions. One that is not
	// on loopback is for one Region only. An endpoint decides under whose key
	// HSM keys are wrapped: http is accepted for loopback addresses only.
	// Default: AWS's own.
	//
	// See [CheckSet].
	KMSEndpoint string `toml:"kms_endpoint"`

	// EventBridgeEndpoint overrides the endpoint of EventBridge for all Regions.
	// Default: AWS's own.
	EventBridgeEndpoint string `toml:"eventbridge_endpoint"`

	// STSEndpoint overrides the endpoint of STS for all Regions. Default: AWS's
	// own.
	STSEndpoint string `toml:"sts_endpoint"`

	// TaggingEndpoint overrides the endpoint of the Resource Groups Tagging API
	// for all Regions. Default: AWS's own.
	TaggingEndpoint string `toml:"tagging_endpoint"`

	// ServiceQuotasEndpoint overrides the endpoint of Service Quotas for all
	// Regions; see [aws.quotas] from_service_quotas. Default: AWS's own.
	ServiceQuotasEndpoint string `toml:"servicequotas_endpoint"`

	// Endpoints override endpoints per Region, and come before those above:
	// [aws.endpoints.REGION]. Default: none.
	Endpoints map[string]Endpoints `toml:"endpoints"`

	// Quotas are AWS's request quotas where they were raised: [aws.quotas].
	Quotas Quotas `toml:"quotas"`
}

// Endpoints are the overrides for one Region. "" leaves a service to the keys
// of [aws].
type Endpoints struct {
	// KMS is the endpoint of KMS. Default: that of [aws].
	KMS string `toml:"kms"`

	// Events is the endpoint of EventBridge. Default: that of [aws].
	Events string `toml:"events"`

	// STS is the endpoint of STS. Default: that of [aws].
	STS string `toml:"sts"`

	// Tagging is the endpoint of the Resource Groups Tagging API. Default: that
	// of [aws].
	Tagging string `toml:"tagging"`

	// ServiceQuotas is the endpoint of Service Quotas. Default: that of [aws].
	ServiceQuotas string `toml:"servicequotas"`
}

// Quotas are request quotas of KMS, in requests per second per account and
// Region, each more than 0. They are those of the operations that byokd sends
// and whose quota it can reach. Their defaults are AWS's, or with
// FromServiceQuotas what Service Quotas tells.
//
// Source: AWS KMS Developer Guide, "Request quotas".
type Quotas struct {
	// FromServiceQuotas asks AWS's Service Quotas, about daily for each account
	// and Region, for the quotas that are in force there. A key that is set here
	// comes first. It needs servicequotas:ListServiceQuotas and one more endpoint;
	// while Service Quotas does not tell, AWS's defaults count. Default: false.
	FromServiceQuotas bool `toml:"from_service_quotas"`

	// GetParametersForImport is the scarce one, of which each import needs one:
	// requests per second, more than 0. Default: 1.0, AWS's.
	GetParametersForImport float64 `toml:"get_parameters_for_import"`

	// ImportKeyMaterial is that of imports: requests per second, more than 0.
	// Default: 15.0, AWS's.
	ImportKeyMaterial float64 `toml:"import_key_material"`

	// DeleteImportedKeyMaterial is that of deleting key material: requests per
	// second, more than 0. Default: 15.0, AWS's.
	DeleteImportedKeyMaterial float64 `toml:"delete_imported_key_material"`

	// CreateKey is that of making KMS keys: requests per second, more than 0.
	// Default: 5.0, AWS's.
	CreateKey float64 `toml:"create_key"`

	// CreateAlias is that of making aliases: requests per second, more than 0.
	// Default: 5.0, AWS's.
	CreateAlias float64 `toml:"create_alias"`

	// UpdateAlias is that of moving aliases: requests per second, more than 0.
	// Default: 5.0, AWS's.
	UpdateAlias float64 `toml:"update_alias"`

	// PutKeyPolicy is that of writing key policies: requests per second, more
	// than 0. Default: 15.0, AWS's.
	PutKeyPolicy float64 `toml:"put_key_policy"`

	// TagResource is that of setting tags: requests per second, more than 0.
	// Default: 10.0, AWS's.
	TagResource float64 `toml:"tag_resource"`

	// UntagResource is that of removing tags: requests per second, more than 0.
	// Default: 5.0, AWS's.
	UntagResource float64 `toml:"untag_resource"`

	// UpdateKeyDescription is that of writing descriptions: requests per
	// second, more than 0. Default: 5.0, AWS's.
	UpdateKeyDescription float64 `toml:"update_key_description"`

	// EnableKey is that of enabling keys: requests per second, more than 0.
	// Default: 5.0, AWS's.
	EnableKey float64 `toml:"enable_key"`

	// DisableKey is that of disabling keys: requests per second, more than 0.
	// Default: 5.0, AWS's.
	DisableKey float64 `toml:"disable_key"`

	// ScheduleKeyDeletion is that of scheduling deletions: requests per second,
	// more than 0. Default: 15.0, AWS's.
	ScheduleKeyDeletion float64 `toml:"schedule_key_deletion"`

	// CancelKeyDeletion is that of cancelling deletions: requests per second,
	// more than 0. Default: 5.0, AWS's.
	CancelKeyDeletion float64 `toml:"cancel_key_deletion"`

	// RotateKeyOnDemand is that of rotating keys in place: requests per second,
	// more than 0. Default: 5.0, AWS's.
	RotateKeyOnDemand float64 `toml:"rotate_key_on_demand"`

	// ListKeyRotations is that of listing the key materials of a key: requests
	// per second, more than 0. Default: 100.0, AWS's.
	ListKeyRotations float64 `toml:"list_key_rotations"`

	// GetKeyLastUsage is that of asking when a key was used: requests per
	// second, more than 0. Default: 5.0, AWS's.
	GetKeyLastUsage float64 `toml:"get_key_last_usage"`

	// CreateGrant is that of copying grants: requests per second, more than 0.
	// Default: 50.0, AWS's.
	CreateGrant float64 `toml:"create_grant"`

	// ListGrants is that of listing grants: requests per second, more than 0.
	// Default: 100.0, AWS's.
	ListGrants float64 `toml:"list_grants"`
}

// Keys returns the quotas by their keys in [aws.quotas].
func (q *Quotas) Keys() map[string]*float64 {
	return map[string]*float64{
		"get_parameters_for_import":    &q.GetParametersForImport,
		"import_key_material":          &q.ImportKeyMaterial,
		"delete_imported_key_material": &q.DeleteImportedKeyMaterial,
		"create_key":                   &q.CreateKey,
		"create_alias":                 &q.CreateAlias,
		"update_alias":                 &q.UpdateAlias,
		"put_key_policy":               &q.PutKeyPolicy,
		"tag_resource":                 &q.TagResource,
		"untag_resource":               &q.UntagResource,
		"update_key_description":       &q.UpdateKeyDescription,
		"enable_key":                   &q.EnableKey,
		"disable_key":                  &q.DisableKey,
		"schedule_key_deletion":        &q.ScheduleKeyDeletion,
		"cancel_key_deletion":          &q.CancelKeyDeletion,
		"rotate_key_on_demand":         &q.RotateKeyOnDemand,
		"list_key_rotations":           &q.ListKeyRotations,
		"get_key_last_usage":           &q.GetKeyLastUsage,
		"create_grant":                 &q.CreateGrant,
		"list_grants":                  &q.ListGrants,
	}
}

// GivenQuotas returns the quotas that byokd.toml sets itself, by their keys in
// [aws.quotas].
func (c *Config) GivenQuotas() map[string]float64 {
	given := make(map[string]float64)
	for key, perSecond := range c.AWS.Quotas.Keys() {
		if c.src.has(join("aws.quotas", key)) {
			given[key] = *perSecond
		}
	}
	return given
}

// defaultQuotas are AWS's.
func defaultQuotas() Quotas {
	return Quotas{
		GetParametersForImport:    1,
		ImportKeyMaterial:         15,
		DeleteImportedKeyMaterial: 15,
		CreateKey:                 5,
		CreateAlias:               5,
		UpdateAlias:               5,
		PutKeyPolicy:              15,
		TagResource:               10,
		UntagResource:             5,
		UpdateKeyDescription:      5,
		EnableKey:                 5,
		DisableKey:                5,
		ScheduleKeyDeletion:       15,
		CancelKeyDeletion:         5,
		RotateKeyOnDemand:         5,
		ListKeyRotations:          100,
		GetKeyLastUsage:           5,
		CreateGrant:               50,
		ListGrants:                100,
	}
}

// Events is the EventBridge side: [events].
type Events struct {
	// Enabled says whether events are sent. Default: true.
	Enabled bool `toml:"enabled"`

	// Bus is the name or ARN of the event bus; an ARN's Region counts before
	// that of the key region. Default: "default".
	Bus string `toml:"bus"`

	// Source is the events' source, which must not begin with "aws.".
	// Default: "byokd".
	Source string `toml:"source" max:"256"`

	// Region is the Region of the bus. Default: the group's.
	Region string `toml:"region"`

	// Credential is the name of the [credentials.NAME] that sends. Default: the
	// group's.
	Credential string `toml:"credential"`
}

// Metrics is the Prometheus endpoint: [metrics].
type Metrics struct {
	// Listen is the address, HOST:PORT. Default: off.
	Listen string `toml:"listen"`
}

// Page is the read-only status page: [page].
type Page struct {
	// Listen is the address, HOST:PORT, on loopback only. Default: off.
	Listen string `toml:"listen"`
}

// Log is the daemon's log on stderr: [log].
type Log struct {
	// Level is the least level that is logged. Default: "info".
	Level string `toml:"level" enum:"debug,info,warn,error"`

	// Format is how it is written; "auto" is the journal's own protocol where
	// stderr is the journal, else text. Default: "auto".
	Format string `toml:"format" enum:"auto,text,json"`
}

// Retention is how long records are kept: [retention].
type Retention struct {
	// Jobs is how long finished jobs are kept. Generations and audit rows are
	// kept for ever. Default: "400d".
	Jobs Duration `toml:"jobs" min:"1h"`
}

// A Command is a program and its arguments; it is not given to a shell. In
// TOML it is an array of strings, or one string for a program without
// arguments. The program is an absolute path.
type Command []string

func (c *Command) decodeTOML(value any) error {
	list, ok := value.([]any)
	if !ok {
		list = []any{value}
	}
	*c = nil
	for _, v := range list {
		s, ok := v.(string)
		if !ok {
			return fmt.Errorf("must be a command: a string or an array of strings, not %s", typeName(v))
		}
		*c = append(*c, s)
	}
	if len(*c) == 0 || !filepath.IsAbs((*c)[0]) {
		return errors.New("must begin with the absolute path of a program")
	}
	return nil
}

// Options are what Load and its kin need from the operating system.
type Options struct {
	// LookupEnv looks an environment variable up. Default: os.LookupEnv.
	LookupEnv func(string) (string, bool)

	// UID is the user that byokd runs as: besides root the only one who may
	// own a secret file. Negative: not known, owners are not checked.
	UID int

	// SkipSecrets leaves out the checks of secret files that the caller has no
	// permission for, as when byokctl check is run by somebody who is not
	// byokd's user. Whatever can be seen is checked all the same.
	SkipSecrets bool

	// SkipFiles leaves out all checks of the files that byokd.toml names, for a
	// caller who only wants to know where the daemon's socket is.
	SkipFiles bool

	// StandIn maps the path of a configuration file to a file whose content is
	// read in its place, whether the first exists or not. Relative paths count
	// from the first, problems name the second, and the permissions of the
	// second, a temporary file, do not matter.
	StandIn map[string]string
}

// DefaultOptions returns the options of a process that reads its own
// configuration.
func DefaultOptions() Options {
	return Options{LookupEnv: os.LookupEnv, UID: os.Geteuid()}
}

func (o Options) lookupEnv(key string) (string, bool) {
	if o.LookupEnv == nil {
		return os.LookupEnv(key)
	}
	return o.LookupEnv(key)
}

// read reads a TOML file or its stand-in, and returns the name for problems.
func (o Options) read(path string, dirs directories) (file string, data []byte, err error) {
	for original, standIn := range o.StandIn {
		if original != path && absolute(original) != absolute(path) {
			continue
		}
		f, _, err := open(standIn)
		if err != nil {
			return standIn, nil, fmt.Errorf("cannot be read: %w", err)
		}
		defer f.Close()
		data, err = readAtMost(f, maxFileSize)
		return standIn, data, err
	}
	data, err = readTrusted(path, maxFileSize, dirs)
	return path, data, err
}

// absolute is filepath.Abs, which fails only where the working directory is
// gone, and then the path as it is will do.
func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// defaultConfig returns the configuration of an empty byokd.toml at path.
func defaultConfig(path string, opts Options) *Config {
	c := &Config{
		Path:       absolute(path),
		GroupsDir:  "groups.d",
		StateDir:   "/var/lib/byokd",
		RuntimeDir: "/run/byokd",
		Designated: true,
		Timezone:   "UTC",
		Settle:     Duration(time.Second),
		DriftCheck: Duration(time.Hour),
		AWS:        AWS{WrappingKeySpec: "RSA_4096", Quotas: defaultQuotas()},
		Events:     Events{Enabled: true, Bus: "default", Source: "byokd"},
		Log:        Log{Level: "info", Format: "auto"},
		Retention:  Retention{Jobs: Duration(400 * day)},
	}
	// Where a unit has several such directories, systemd joins them with colons.
	if dirs, _ := opts.lookupEnv("STATE_DIRECTORY"); dirs != "" {
		c.StateDir, _, _ = strings.Cut(dirs, ":")
	}
	if dirs, _ := opts.lookupEnv("RUNTIME_DIRECTORY"); dirs != "" {
		c.RuntimeDir, _, _ = strings.Cut(dirs, ":")
	}
	return c
}

// Load reads byokd.toml. Its error is [Problems], all there are; also a file
// that cannot be read is one.
//
// Load reads no secret, but checks the permissions of their files. That a
// module or a secret file does not exist is no mistake of byokd.toml's, for
// it may come later: see [Config.Missing].
func Load(path string, opts Options) (*Config, error) {
	dirs := make(directories)
	file, data, err := opts.read(path, dirs)
	if err != nil {
		return nil, Problems{{File: file, Msg: err.Error()}}
	}
	return loadBytes(path, file, data, opts, dirs)
}

func loadBytes(path, file string, data []byte, opts Options, dirs directories) (*Config, error) {
	d := parse(file, data)
	if d.tree == nil {
		return nil, d.problems
	}
	c := defaultConfig(path, opts)
	d.decode(c)
	c.resolve(opts)
	d.checkConfig(c, opts, dirs)
	if len(d.problems) > 0 {
		d.problems.sort()
		return nil, d.problems
	}
	c.src = d.source()
	return c, nil
}

// resolve makes paths absolute and finds the secrets' places.
func (c *Config) resolve(opts Options) {
	base := filepath.Dir(c.Path)
	against := func(path *string) {
		switch {
		case *path == "":
		case filepath.IsAbs(*path):
			*path = filepath.Clean(*path)
		default:
			*path = filepath.Join(base, *path)
		}
	}
	against(&c.GroupsDir)
	against(&c.StateDir)
	against(&c.RuntimeDir)
	for name, h := range c.HSMs {
		against(&h.PINFile)
		h.pin = opts.secretFile(h.PINFile, h.PINCredential)
		h.KeyTemplate = withPrefix(h.KeyTemplate)
		c.HSMs[name] = h
	}
	for name, cred := range c.Credentials {
		against(&cred.AccessKeyCSV)
		against(&cred.SharedConfigFile)
		against(&cred.SharedCredentialsFile)
		cred.accessKey = opts.secretFile(cred.AccessKeyCSV, cred.AccessKeyCredential)
		c.Credentials[name] = cred
	}
}

// withPrefix gives every attribute name its CKA_.
func withPrefix(template map[string]Attribute) map[string]Attribute {
	full := make(map[string]Attribute, len(template))
	for name, a := range template {
		full["CKA_"+strings.TrimPrefix(name, "CKA_")] = a
	}
	return full
}

// Problem returns a Problem at a key of byokd.toml, for checks beyond Load's.
func (c *Config) Problem(key, msg string) Problem { return c.src.problem(key, msg) }

// Database returns the path of the SQLite database.
func (c *Config) Database() string { return filepath.Join(c.StateDir, "byokd.db") }

// Socket returns the path of the control socket.
func (c *Config) Socket() string { return filepath.Join(c.RuntimeDir, "control.sock") }

// RequestsDir returns the directory of request files.
func (c *Config) RequestsDir() string { return filepath.Join(c.RuntimeDir, "requests") }

// Missing returns what byokd.toml refers to and is not there, or not yet:
// PKCS#11 modules, secret files and the programs of hooks. byokd runs without
// them and waits.
func (c *Config) Missing() Problems {
	var missing Problems
	add := func(key, format string, args ...any) {
		missing = append(missing, c.Problem(key, fmt.Sprintf(format, args...)))
	}
	secret := func(prefix, fileKey, credentialKey string, f SecretFile) {
		gone, err := f.inspect(make(directories))
		switch {
		case err != nil || !gone:
		case f.path == "":
			add(join(prefix, credentialKey), "$CREDENTIALS_DIRECTORY is not set, so systemd credential %s cannot be read: add LoadCredential=%s:PATH to the unit", f.credential, f.credential)
		case f.credential != "":
			add(join(prefix, credentialKey), "%s does not exist: add LoadCredential=%s:PATH to the unit", f.path, f.credential)
		default:
			add(join(prefix, fileKey), "%s does not exist: create it, with mode 0600, or correct the path", f.path)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.HSMs)) {
		h := c.HSMs[name]
		prefix := join("hsm", name)
		if _, err := os.Stat(h.Module); errors.Is(err, os.ErrNotExist) {
			add(join(prefix, "module"), "%s does not exist: install the PKCS#11 module or correct the path", h.Module)
		}
		secret(prefix, "pin_file", "pin_credential", h.pin)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Credentials)) {
		if f, ok := c.Credentials[name].AccessKeySource(); ok {
			secret(join("credentials", name), "access_key_csv", "access_key_credential", f)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Hooks)) {
		if _, err := os.Stat(c.Hooks[name][0]); errors.Is(err, os.ErrNotExist) {
			add(join("hooks", name), "%s does not exist: install the program or correct the path", c.Hooks[name][0])
		}
	}
	missing.sort()
	return missing
}
