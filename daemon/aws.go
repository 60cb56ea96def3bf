package daemon

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"byokd/cloud"
	"byokd/config"
	"byokd/daemon/lifecycle"
)

// cloudSettings are byokd.toml's side of AWS, for the daemon.
func (d *Daemon) cloudSettings(cfg *config.Config) cloud.Settings {
	s := configuredCloud(cfg)
	s.Logger, s.Observer = d.log, d.metrics.request
	s.QuotasTold = func() {
		d.overloads.stale.Store(true)
		wake(d.upkeepWake)
	}
	return s
}

// configuredCloud is byokd.toml's side of AWS.
func configuredCloud(cfg *config.Config) cloud.Settings {
	regional := make(map[string]cloud.Endpoints)
	for region, e := range cfg.AWS.Endpoints {
		regional[region] = cloud.Endpoints(e)
	}
	return cloud.Settings{
		WrappingKeySpec: cfg.AWS.WrappingKeySpec, UseFIPS: cfg.AWS.UseFIPSEndpoint, UseDualStack: cfg.AWS.UseDualstackEndpoint,
		KMSEndpoint: cfg.AWS.KMSEndpoint, EventBridgeEndpoint: cfg.AWS.EventBridgeEndpoint,
		STSEndpoint: cfg.AWS.STSEndpoint, TaggingEndpoint: cfg.AWS.TaggingEndpoint, ServiceQuotasEndpoint: cfg.AWS.ServiceQuotasEndpoint,
		Regional: regional,
		Quotas:   quotas(cfg), FromServiceQuotas: cfg.AWS.Quotas.FromServiceQuotas,
		Credentials: credentials(cfg),
	}
}

// quotas are the [aws.quotas] that byokd.toml sets, by operation.
func quotas(cfg *config.Config) map[string]float64 {
	all := make(map[string]float64)
	for key, perSecond := range cfg.GivenQuotas() {
		operation := ""
		for word := range strings.SplitSeq(key, "_") {
			operation += strings.ToUpper(word[:1]) + word[1:]
		}
		all[operation] = perSecond
	}
	return all
}

// credentials are the [credentials] of byokd.toml.
func credentials(cfg *config.Config) map[string]cloud.Credential {
	all := make(map[string]cloud.Credential)
	for name, c := range cfg.Credentials {
		credential := cloud.Credential{Name: name, Profile: c.Profile, SharedConfigFile: c.SharedConfigFile,
			SharedCredentialsFile: c.SharedCredentialsFile, CredentialProcess: c.CredentialProcess, DefaultChain: c.DefaultChain,
			RoleARN: c.RoleARN, ExternalID: c.ExternalID, Account: c.Account}
		if file, ok := c.AccessKeySource(); ok {
			kept := file.Keep() // each request asks for it
			credential.AccessKeyCSV = func() ([]byte, error) {
				secret, err := kept.Read()
				return secret.Reveal(), err
			}
		}
		all[name] = credential
	}
	return all
}

// kms returns AWS KMS as the engine uses it.
func (d *Daemon) kms(credential, region string) (lifecycle.KMS, error) {
	k, err := d.cloud.KMS(credential, region)
	if err != nil {
		return nil, awsFault(err)
	}
	return engineKMS{k, region, &d.prefetch, d.log}, nil
}

// account is the account behind a definition's credential.
func (d *Daemon) account(ctx context.Context, def lifecycle.Definition) (string, error) {
	k, err := d.kms(def.Credential, def.Region)
	if err != nil {
		return "", err
	}
	return k.Account(ctx)
}

// isOutage reports whether AWS could not be reached at all.
func isOutage(err error) bool { return errors.Is(err, cloud.ErrUnreachable) }

// awsFault gives an error of AWS its class, and the engine's name where it has one.
func awsFault(err error) error {
	if err == nil {
		return nil
	}
	f := &lifecycle.Fault{Class: lifecycle.Class(cloud.ClassOf(err)), WaitingFor: cloud.WaitingFor(err), Err: err}
	for from, to := range map[error]error{
		cloud.ErrNotFound:          lifecycle.ErrNotFound,
		cloud.ErrConflict:          lifecycle.ErrExists,
		cloud.ErrImportToken:       lifecycle.ErrImportToken,
		cloud.ErrIncorrectMaterial: lifecycle.ErrIncorrectMaterial,
		cloud.ErrIncorrectKey:      lifecycle.ErrIncorrectKey,
		cloud.ErrDenied:            lifecycle.ErrDenied,
		cloud.ErrState:             lifecycle.ErrState,
		cloud.ErrLimit:             lifecycle.ErrLimit,
	} {
		if errors.Is(err, from) {
			f.Err = named{error: err, name: to}
		}
	}
	return f
}

// A named error keeps its text and is the engine's sentinel as well.
type named struct {
	error
	name error
}

func (n named) Unwrap() []error { return []error{n.name, n.error} }

// An engineKMS is KMS as the engine wants it.
type engineKMS struct {
	k        *cloud.KMS
	region   string
	prefetch *prefetcher
	log      *slog.Logger
}

// optional says in the log that a look is not granted which the engine can do
// without, and is the less sure for it.
func (e engineKMS) optional(err error) error {
	if errors.Is(err, cloud.ErrDenied) {
		e.log.Warn("byokd goes on without a permission that it could use", "err", err)
	}
	return awsFault(err)
}

func (e engineKMS) Account(ctx context.Context) (string, error) {
	account, err := e.k.Account(ctx)
	return account, awsFault(err)
}

func (e engineKMS) Now() time.Time { return e.k.Now() }

func (e engineKMS) CreateKey(ctx context.Context, description, policy string, tags map[string]string) (lifecycle.Key, error) {
	key, err := e.k.CreateKey(ctx, description, policy, tags)
	return lifecycle.Key(key), awsFault(err)
}

func (e engineKMS) DescribeKey(ctx context.Context, keyID string) (lifecycle.Key, error) {
	key, err := e.k.DescribeKey(ctx, keyID)
	return lifecycle.Key(key), awsFault(err)
}

func (e engineKMS) FindKeys(ctx context.Context, tags map[string]string) ([]lifecycle.TaggedKey, error) {
	found, err := e.k.FindKeys(ctx, tags)
	keys := make([]lifecycle.TaggedKey, len(found))
	for i, key := range found {
		keys[i] = lifecycle.TaggedKey(key)
	}
	return keys, awsFault(err)
}

func (e engineKMS) ParametersForImport(ctx context.Context, keyID, algorithm string) (lifecycle.ImportParameters, error) {
	if p, ok := e.prefetch.take(parametersFor{e.region, keyID, algorithm}, e.k.Now()); ok {
		importing(ctx)
		return p, nil
	}
	p, err := e.k.ParametersForImport(ctx, keyID, algorithm)
	if err == nil {
		importing(ctx)
	}
	return lifecycle.ImportParameters(p), awsFault(err)
}

func (e engineKMS) ImportKeyMaterial(ctx context.Context, keyID string, token, wrapped []byte, i lifecycle.Import) (string, error) {
	id, err := e.k.ImportKeyMaterial(ctx, keyID, token, wrapped, cloud.Import(i))
	return id, awsFault(err)
}

func (e engineKMS) DeleteKeyMaterial(ctx context.Context, keyID, materialID string) error {
	return awsFault(e.k.DeleteKeyMaterial(ctx, keyID, materialID))
}

func (e engineKMS) KeyMaterials(ctx context.Context, keyID string) ([]lifecycle.Material, error) {
	found, err := e.k.KeyMaterials(ctx, keyID)
	materials := make([]lifecycle.Material, len(found))
	for i, m := range found {
		materials[i] = lifecycle.Material(m)
	}
	return materials, awsFault(err)
}

func (e engineKMS) RotateKeyOnDemand(ctx context.Context, keyID string) error {
	return awsFault(e.k.RotateKeyOnDemand(ctx, keyID))
}

func (e engineKMS) RotationStarted(ctx context.Context, keyID string) (time.Time, error) {
	at, err := e.k.RotationStarted(ctx, keyID)
	return at, awsFault(err)
}

func (e engineKMS) KeyPolicy(ctx context.Context, keyID string) (string, error) {
	policy, err := e.k.KeyPolicy(ctx, keyID)
	return policy, awsFault(err)
}

func (e engineKMS) PutKeyPolicy(ctx context.Context, keyID, policy string) error {
	return awsFault(e.k.PutKeyPolicy(ctx, keyID, policy))
}

func (e engineKMS) KeyTags(ctx context.Context, keyID string) (map[string]string, error) {
	tags, err := e.k.KeyTags(ctx, keyID)
	return tags, awsFault(err)
}

func (e engineKMS) TagKey(ctx context.Context, keyID string, tags map[string]string) error {
	return awsFault(e.k.TagKey(ctx, keyID, tags))
}

func (e engineKMS) UntagKey(ctx context.Context, keyID string, names []string) error {
	return awsFault(e.k.UntagKey(ctx, keyID, names))
}

func (e engineKMS) SetDescription(ctx context.Context, keyID, description string) error {
	return awsFault(e.k.SetDescription(ctx, keyID, description))
}

func (e engineKMS) EnableKey(ctx context.Context, keyID string) error {
	return awsFault(e.k.EnableKey(ctx, keyID))
}

func (e engineKMS) DisableKey(ctx context.Context, keyID string) error {
	return awsFault(e.k.DisableKey(ctx, keyID))
}

func (e engineKMS) ScheduleDeletion(ctx context.Context, keyID string, days int) (time.Time, error) {
	date, err := e.k.ScheduleDeletion(ctx, keyID, days)
	return date, awsFault(err)
}

func (e engineKMS) CancelDeletion(ctx context.Context, keyID string) error {
	return awsFault(e.k.CancelDeletion(ctx, keyID))
}

func (e engineKMS) LastUsage(ctx context.Context, keyID string) (time.Time, bool, error) {
	at, known, err := e.k.LastUsage(ctx, keyID)
	return at, known, e.optional(err)
}

func (e engineKMS) Grants(ctx context.Context, keyID string) ([]lifecycle.Grant, error) {
	list, err := e.k.Grants(ctx, keyID)
	grants := make([]lifecycle.Grant, len(list))
	for i, g := range list {
		grants[i] = lifecycle.Grant(g)
	}
	return grants, awsFault(err)
}

func (e engineKMS) CreateGrant(ctx context.Context, keyID string, g lifecycle.Grant) error {
	return awsFault(e.k.CreateGrant(ctx, keyID, cloud.Grant(g)))
}

func (e engineKMS) KeyAliases(ctx context.Context, keyID string) ([]string, error) {
	aliases, err := e.k.KeyAliases(ctx, keyID)
	return aliases, e.optional(err)
}

func (e engineKMS) CreateAlias(ctx context.Context, alias, keyID string) error {
	return awsFault(e.k.CreateAlias(ctx, alias, keyID))
}

func (e engineKMS) UpdateAlias(ctx context.Context, alias, keyID string) error {
	return awsFault(e.k.UpdateAlias(ctx, alias, keyID))
}

func (e engineKMS) Encrypt(ctx context.Context, keyID string, plaintext []byte, encryptionContext map[string]string) ([]byte, error) {
	ciphertext, err := e.k.Encrypt(ctx, keyID, plaintext, encryptionContext)
	return ciphertext, awsFault(err)
}

func (e engineKMS) Decrypt(ctx context.Context, keyID string, ciphertext []byte, encryptionContext map[string]string) ([]byte, error) {
	plaintext, err := e.k.Decrypt(ctx, keyID, ciphertext, encryptionContext)
	return plaintext, awsFault(err)
}

// newEngine ties the engine to the journal, the tokens and AWS.
func (d *Daemon) newEngine() *lifecycle.Engine {
	return &lifecycle.Engine{
		Journal: journal{d}, HSM: d.tokens.get, KMS: d.kms,
		Host: d.host, Log: d.log, Now: d.Now, CreateLook: createLook(), SamePolicy: cloud.SamePolicy,
		Announce: d.announces,
		Named:    func(keyID string) bool { return d.groups.named(keyID) },
	}
}
