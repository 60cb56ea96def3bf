package cloud

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsarn "github.com/aws/aws-sdk-go-v2/aws/arn"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	tagging "github.com/aws/aws-sdk-go-v2/service/resourcegroupstaggingapi"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

// A Key is what KMS says of a key.
type Key struct {
	ID         string // UUID
	ARN        string
	Account    string
	State      string // Enabled, Disabled, PendingImport, PendingDeletion, …
	Origin     string // EXTERNAL, AWS_KMS, …
	KeySpec    string // SYMMETRIC_DEFAULT, …
	KeyUsage   string // ENCRYPT_DECRYPT, …
	Manager    string // CUSTOMER or AWS
	MaterialID string // "": never imported

	Description  string
	CreatedAt    time.Time
	ValidTo      time.Time // zero: does not expire, or no material
	DeletionDate time.Time // zero: not pending deletion
}

// A TaggedKey is a key found by its tags.
type TaggedKey struct {
	KeyID string // UUID
	ARN   string
	Tags  map[string]string
}

// A Grant lets somebody do something with a key.
type Grant struct {
	ID   string // of a grant that is there
	Name string // makes CreateGrant idempotent; "": none

	Grantee, GranteeService   string // one of them: an ARN, or the name of a service
	Retiring, RetiringService string // at most one of them
	Operations                []string

	// Constraints; nil and "": none.
	ContextEquals, ContextSubset map[string]string
	SourceARN                    string
}

// ImportParameters are one wrapping key and the token bound to it; both live 24 h.
type ImportParameters struct {
	PublicKey []byte // SubjectPublicKeyInfo, DER; size and exponent already checked
	Token     []byte
	ValidTo   time.Time
}

// A KMS is AWS KMS in one account and Region, as one credential sees it.
//
// Keys are named by ID or ARN; only DescribeKey, Encrypt and Decrypt take an
// alias too. An alias is given with its alias/ prefix.
type KMS struct {
	*session
	client  *kms.Client
	sts     *sts.Client
	tagging *tagging.Client

	listing chan struct{} // held by the one who lists all keys
	tagsMu  sync.Mutex
	tags    map[string]seenTags // by key ID; see listByTags
}

// reads and changes make the request of a KMS operation.
func reads(operation, target string) request {
	return request{service: ServiceKMS, operation: operation, target: target}
}

func changes(operation, target string) request {
	return request{service: ServiceKMS, operation: operation, target: target, changes: true}
}

// Now returns AWS's time, from the Date of KMS's latest answer in this Region
// and the time that has passed since; before the first answer, this machine's.
func (k *KMS) Now() time.Time { return k.clock.now() }

// Account returns the account ID behind the credential. It asks STS, once per
// access key. Where STS cannot be reached or is denied, the account is taken
// from the role that was assumed or from an ARN that KMS lists; where KMS lists
// none either, from the credential's Account.
//
// Another account than the credential's Account is an error of class Operator
// that names both.
func (k *KMS) Account(ctx context.Context) (string, error) {
	r := request{service: ServiceSTS, operation: "GetCallerIdentity"}
	creds, err := k.identity.provider.Retrieve(ctx)
	if err != nil {
		return "", k.fail(ctx, r, err)
	}
	k.mu.Lock()
	account := k.account
	if k.accountKey != creds.AccessKeyID {
		account = ""
	}
	k.mu.Unlock()
	if account == "" {
		account, err = k.askAccount(ctx, r, creds)
		if err != nil {
			return "", err
		}
		k.mu.Lock()
		k.account, k.accountKey = account, creds.AccessKeyID
		k.mu.Unlock()
		k.cloud.learnedAccount(k.session, account)
	}
	if want := k.source.Account; want != "" && want != account {
		return "", misconfigured("credential %q belongs to account %s, but account = %q is set for it: put in an access key of that account, or correct the line", k.name, account, want)
	}
	return account, nil
}

func (k *KMS) askAccount(ctx context.Context, r request, creds aws.Credentials) (string, error) {
	out, err := send(ctx, k.session, r, func(ctx context.Context) (*sts.GetCallerIdentityOutput, error) {
		return k.sts.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
	})
	if err == nil && aws.ToString(out.Account) != "" {
		return *out.Account, nil
	}
	if errors.Is(err, ErrCredentials) || errors.Is(err, ErrClock) || ClassOf(err) == Interrupted {
		return "", err
	}
	if creds.AccountID != "" && k.source.RoleARN != "" {
		return creds.AccountID, nil // told by STS when the role was assumed
	}
	account, kmsErr := k.accountFromKMS(ctx)
	switch {
	case kmsErr != nil:
		return "", kmsErr
	case account != "":
		return account, nil
	case k.source.Account != "":
		return k.source.Account, nil
	case err == nil:
		err = errors.New("STS named no account")
	}
	return "", fmt.Errorf("the account behind credential %q is not known: STS does not tell, and KMS lists no key or alias yet; set account for it: %w", k.name, err)
}

// accountFromKMS returns "" where there is neither a key nor an alias.
func (k *KMS) accountFromKMS(ctx context.Context) (string, error) {
	aliases, err := send(ctx, k.session, reads("ListAliases", ""), func(ctx context.Context) (*kms.ListAliasesOutput, error) {
		return k.client.ListAliases(ctx, &kms.ListAliasesInput{Limit: aws.Int32(1)})
	})
	if err == nil {
		for _, a := range aliases.Aliases {
			if arn, err := awsarn.Parse(aws.ToString(a.AliasArn)); err == nil && arn.AccountID != "" {
				return arn.AccountID, nil
			}
		}
	} else if !errors.Is(err, ErrDenied) {
		return "", err
	}
	keys, err := send(ctx, k.session, reads("ListKeys", ""), func(ctx context.Context) (*kms.ListKeysOutput, error) {
		return k.client.ListKeys(ctx, &kms.ListKeysInput{Limit: aws.Int32(1)})
	})
	if err != nil {
		return "", err
	}
	for _, key := range keys.Keys {
		if arn, err := awsarn.Parse(aws.ToString(key.KeyArn)); err == nil {
			return arn.AccountID, nil
		}
	}
	return "", nil
}

// CreateKey creates a symmetric encryption key of origin EXTERNAL, without
// material, with its tags and policy; policy "" leaves KMS's default one.
//
// KMS has no idempotency token for it, so it is sent once, and again only where
// the attempt before was throttled, refused or never sent. An error of class
// Unknown means that the key may exist: look for its tags.
func (k *KMS) CreateKey(ctx context.Context, description, policy string, tags map[string]string) (Key, error) {
	in := &kms.CreateKeyInput{
		Origin:   types.OriginTypeExternal,
		KeySpec:  types.KeySpecSymmetricDefault,
		KeyUsage: types.KeyUsageTypeEncryptDecrypt,
		Tags:     toTags(tags),
	}
	r := changes("CreateKey", "")
	if description != "" {
		in.Description = &description
	}
	if policy != "" {
		in.Policy = &policy
	}
	out, err := send(ctx, k.session, r, func(ctx context.Context) (*kms.CreateKeyOutput, error) {
		return k.client.CreateKey(ctx, in)
	})
	if err != nil {
		return Key{}, err
	}
	return toKey(out.KeyMetadata), nil
}

// DescribeKey describes a key by ID, ARN or alias name; ErrNotFound.
func (k *KMS) DescribeKey(ctx context.Context, keyID string) (Key, error) {
	out, err := send(ctx, k.session, reads("DescribeKey", keyID), func(ctx context.Context) (*kms.DescribeKeyOutput, error) {
		return k.client.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &keyID})
	})
	if err != nil {
		return Key{}, err
	}
	return toKey(out.KeyMetadata), nil
}

// ParametersForImport fetches a wrapping key and its import token for a
// wrapping algorithm in KMS's words. It waits for its turn in the account's and
// Region's quota. A public key that is not RSA of exactly the size asked for,
// with exponent 65537, is refused: nothing must be wrapped under it.
func (k *KMS) ParametersForImport(ctx context.Context, keyID, algorithm string) (ImportParameters, error) {
	spec := k.cloud.settings.WrappingKeySpec
	r := reads("GetParametersForImport", keyID)
	out, err := send(ctx, k.session, r, func(ctx context.Context) (*kms.GetParametersForImportOutput, error) {
		return k.client.GetParametersForImport(ctx, &kms.GetParametersForImportInput{
			KeyId:             &keyID,
			WrappingAlgorithm: types.AlgorithmSpec(algorithm),
			WrappingKeySpec:   types.WrappingKeySpec(spec),
		})
	})
	if err != nil {
		return ImportParameters{}, err
	}
	if err := checkWrappingKey(out.PublicKey, spec); err != nil {
		url, _ := k.cloud.Endpoint(ServiceKMS, k.region)
		return ImportParameters{}, &Error{
			Operation: r.action(), Target: keyID, Region: k.region, class: Permanent, err: err,
			detail: fmt.Sprintf("the wrapping key that %s sent is not to be trusted: %v; nothing was wrapped", url, err),
		}
	}
	return ImportParameters{PublicKey: out.PublicKey, Token: out.ImportToken, ValidTo: aws.ToTime(out.ParametersValidTo)}, nil
}

// checkWrappingKey checks a SubjectPublicKeyInfo against a wrapping key spec.
func checkWrappingKey(der []byte, spec string) error {
	var bits int
	if _, err := fmt.Sscanf(spec, "RSA_%d", &bits); err != nil {
		return fmt.Errorf("wrapping key spec %q is not one of RSA_4096, RSA_3072, RSA_2048", spec)
	}
	public, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return errors.New("it is not a public key in DER")
	}
	key, ok := public.(*rsa.PublicKey)
	switch {
	case !ok:
		return errors.New("it is not an RSA key")
	case key.N.BitLen() != bits:
		return fmt.Errorf("it has %d bits, not %d", key.N.BitLen(), bits)
	case key.E != 65537:
		return errors.New("its exponent is not 65537")
	}
	return nil
}

// An Import says which material ImportKeyMaterial imports, and how.
type Import struct {
	// New imports material that the key does not have yet. Beside other material
	// it waits for RotateKeyOnDemand; KMS takes it only while all of the key's
	// material is there and no other waits (ErrState). Else the key's first
	// material is taken as new, and any later one only if the key had it before
	// (ErrIncorrectMaterial).
	New bool

	MaterialID  string    // that the material must have; "": not known; not with New
	Description string    // kept by KMS with the material; "": unchanged
	ValidTo     time.Time // cut to whole seconds; zero: it does not expire
}

// ImportKeyMaterial imports material wrapped under the key of the token and
// returns its ID.
func (k *KMS) ImportKeyMaterial(ctx context.Context, keyID string, token, wrapped []byte, i Import) (materialID string, err error) {
	in := &kms.ImportKeyMaterialInput{
		KeyId:                &keyID,
		ImportToken:          token,
		EncryptedKeyMaterial: wrapped,
		ExpirationModel:      types.ExpirationModelTypeKeyMaterialDoesNotExpire,
	}
	if i.New {
		in.ImportType = types.ImportTypeNewKeyMaterial
	}
	if i.MaterialID != "" {
		in.KeyMaterialId = &i.MaterialID
	}
	if i.Description != "" {
		in.KeyMaterialDescription = &i.Description
	}
	if !i.ValidTo.IsZero() {
		in.ExpirationModel = types.ExpirationModelTypeKeyMaterialExpires
		in.ValidTo = aws.Time(i.ValidTo.Truncate(time.Second))
	}
	out, err := send(ctx, k.session, changes("ImportKeyMaterial", keyID), func(ctx context.Context) (*kms.ImportKeyMaterialOutput, error) {
		return k.client.ImportKeyMaterial(ctx, in)
	})
	if err != nil {
		return "", err
	}
	return aws.ToString(out.KeyMaterialId), nil
}

// DeleteKeyMaterial deletes a material of a key, "" the current one; nil where
// it is deleted already.
func (k *KMS) DeleteKeyMaterial(ctx context.Context, keyID, materialID string) error {
	in := &kms.DeleteImportedKeyMaterialInput{KeyId: &keyID}
	if materialID != "" {
		in.KeyMaterialId = &materialID
	}
	_, err := send(ctx, k.session, changes("DeleteImportedKeyMaterial", keyID), func(ctx context.Context) (*kms.DeleteImportedKeyMaterialOutput, error) {
		return k.client.DeleteImportedKeyMaterial(ctx, in)
	})
	return err
}

// A Material is one of the materials of a key.
type Material struct {
	ID          string // 64 hex digits
	Description string
	State       string    // CURRENT, NON_CURRENT, PENDING_ROTATION, …
	Imported    bool      // false: deleted, expired, or not imported yet
	ValidTo     time.Time // zero: does not expire, or not imported
	RotatedAt   time.Time // when it became current; zero: the first, or pending
	OnDemand    bool      // it became so by RotateKeyOnDemand
}

// KeyMaterials returns all materials of a symmetric key, the pending one included.
func (k *KMS) KeyMaterials(ctx context.Context, keyID string) ([]Material, error) {
	var materials []Material
	pages := kms.NewListKeyRotationsPaginator(k.client, &kms.ListKeyRotationsInput{KeyId: &keyID,
		IncludeKeyMaterial: types.IncludeKeyMaterialAllKeyMaterial})
	for pages.HasMorePages() {
		out, err := send(ctx, k.session, reads("ListKeyRotations", keyID), func(ctx context.Context) (*kms.ListKeyRotationsOutput, error) {
			return pages.NextPage(ctx)
		})
		if err != nil {
			return nil, err
		}
		for _, m := range out.Rotations {
			materials = append(materials, Material{
				ID:          aws.ToString(m.KeyMaterialId),
				Description: aws.ToString(m.KeyMaterialDescription),
				State:       string(m.KeyMaterialState),
				Imported:    m.ImportState == types.ImportStateImported,
				ValidTo:     aws.ToTime(m.ValidTo),
				RotatedAt:   aws.ToTime(m.RotationDate),
				OnDemand:    m.RotationType == types.RotationTypeOnDemand,
			})
		}
	}
	return materials, nil
}

// RotateKeyOnDemand makes the pending material the current one, some time after
// the answer. ErrState where none is pending; ErrLimit where the key's rotations
// are used up.
func (k *KMS) RotateKeyOnDemand(ctx context.Context, keyID string) error {
	_, err := send(ctx, k.session, changes("RotateKeyOnDemand", keyID), func(ctx context.Context) (*kms.RotateKeyOnDemandOutput, error) {
		return k.client.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: &keyID})
	})
	return err
}

// RotationStarted returns since when a rotation on demand is running; zero: none
// is.
func (k *KMS) RotationStarted(ctx context.Context, keyID string) (time.Time, error) {
	out, err := send(ctx, k.session, reads("GetKeyRotationStatus", keyID), func(ctx context.Context) (*kms.GetKeyRotationStatusOutput, error) {
		return k.client.GetKeyRotationStatus(ctx, &kms.GetKeyRotationStatusInput{KeyId: &keyID})
	})
	if err != nil {
		return time.Time{}, err
	}
	return aws.ToTime(out.OnDemandRotationStartDate), nil
}

// policyName is the only name that KMS knows for a key policy.
const policyName = "default"

// KeyPolicy returns the key policy. KMS may have put it in another form than it
// was written in: compare parsed JSON.
func (k *KMS) KeyPolicy(ctx context.Context, keyID string) (string, error) {
	out, err := send(ctx, k.session, reads("GetKeyPolicy", keyID), func(ctx context.Context) (*kms.GetKeyPolicyOutput, error) {
		return k.client.GetKeyPolicy(ctx, &kms.GetKeyPolicyInput{KeyId: &keyID, PolicyName: aws.String(policyName)})
	})
	if err != nil {
		return "", err
	}
	return aws.ToString(out.Policy), nil
}

// PutKeyPolicy replaces the key policy; ErrPolicy where KMS does not take it.
func (k *KMS) PutKeyPolicy(ctx context.Context, keyID, policy string) error {
	_, err := send(ctx, k.session, changes("PutKeyPolicy", keyID), func(ctx context.Context) (*kms.PutKeyPolicyOutput, error) {
		return k.client.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: &keyID, PolicyName: aws.String(policyName), Policy: &policy})
	})
	return err
}

// KeyTags returns all tags of a key.
func (k *KMS) KeyTags(ctx context.Context, keyID string) (map[string]string, error) {
	tags := make(map[string]string)
	pages := kms.NewListResourceTagsPaginator(k.client, &kms.ListResourceTagsInput{KeyId: &keyID})
	for pages.HasMorePages() {
		out, err := send(ctx, k.session, reads("ListResourceTags", keyID), func(ctx context.Context) (*kms.ListResourceTagsOutput, error) {
			return pages.NextPage(ctx)
		})
		if err != nil {
			return nil, err
		}
		for _, t := range out.Tags {
			tags[aws.ToString(t.TagKey)] = aws.ToString(t.TagValue)
		}
	}
	return tags, nil
}

// TagKey sets tags, replacing values that are there.
func (k *KMS) TagKey(ctx context.Context, keyID string, tags map[string]string) error {
	defer k.forgetTags(keyID)
	_, err := send(ctx, k.session, changes("TagResource", keyID), func(ctx context.Context) (*kms.TagResourceOutput, error) {
		return k.client.TagResource(ctx, &kms.TagResourceInput{KeyId: &keyID, Tags: toTags(tags)})
	})
	return err
}

// UntagKey removes tags by name.
func (k *KMS) UntagKey(ctx context.Context, keyID string, names []string) error {
	defer k.forgetTags(keyID)
	_, err := send(ctx, k.session, changes("UntagResource", keyID), func(ctx context.Context) (*kms.UntagResourceOutput, error) {
		return k.client.UntagResource(ctx, &kms.UntagResourceInput{KeyId: &keyID, TagKeys: names})
	})
	return err
}

// SetDescription replaces the description of a key.
func (k *KMS) SetDescription(ctx context.Context, keyID, description string) error {
	_, err := send(ctx, k.session, changes("UpdateKeyDescription", keyID), func(ctx context.Context) (*kms.UpdateKeyDescriptionOutput, error) {
		return k.client.UpdateKeyDescription(ctx, &kms.UpdateKeyDescriptionInput{KeyId: &keyID, Description: &description})
	})
	return err
}

// EnableKey enables a disabled key; ErrState where it has no material.
func (k *KMS) EnableKey(ctx context.Context, keyID string) error {
	_, err := send(ctx, k.session, changes("EnableKey", keyID), func(ctx context.Context) (*kms.EnableKeyOutput, error) {
		return k.client.EnableKey(ctx, &kms.EnableKeyInput{KeyId: &keyID})
	})
	return err
}

// DisableKey disables a key; ErrState where it has no material.
func (k *KMS) DisableKey(ctx context.Context, keyID string) error {
	_, err := send(ctx, k.session, changes("DisableKey", keyID), func(ctx context.Context) (*kms.DisableKeyOutput, error) {
		return k.client.DisableKey(ctx, &kms.DisableKeyInput{KeyId: &keyID})
	})
	return err
}

// ScheduleDeletion schedules the key's deletion after 7 to 30 days and returns
// its date; ErrState where it is scheduled already.
func (k *KMS) ScheduleDeletion(ctx context.Context, keyID string, days int) (time.Time, error) {
	out, err := send(ctx, k.session, changes("ScheduleKeyDeletion", keyID), func(ctx context.Context) (*kms.ScheduleKeyDeletionOutput, error) {
		return k.client.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: &keyID, PendingWindowInDays: aws.Int32(int32(days))})
	})
	if err != nil {
		return time.Time{}, err
	}
	return aws.ToTime(out.DeletionDate), nil
}

// CancelDeletion cancels the key's deletion and leaves it disabled; ErrState
// where none is scheduled.
func (k *KMS) CancelDeletion(ctx context.Context, keyID string) error {
	_, err := send(ctx, k.session, changes("CancelKeyDeletion", keyID), func(ctx context.Context) (*kms.CancelKeyDeletionOutput, error) {
		return k.client.CancelKeyDeletion(ctx, &kms.CancelKeyDeletionInput{KeyId: &keyID})
	})
	return err
}

// LastUsage returns when the key last did a cryptographic operation: the zero
// time where it never did. known is false where KMS has not recorded the whole
// life of the key and nothing in what it has.
func (k *KMS) LastUsage(ctx context.Context, keyID string) (at time.Time, known bool, err error) {
	out, err := send(ctx, k.session, reads("GetKeyLastUsage", keyID), func(ctx context.Context) (*kms.GetKeyLastUsageOutput, error) {
		return k.client.GetKeyLastUsage(ctx, &kms.GetKeyLastUsageInput{KeyId: &keyID})
	})
	if err != nil {
		return time.Time{}, false, err
	}
	if u := out.KeyLastUsage; u != nil && u.Timestamp != nil {
		return *u.Timestamp, true, nil
	}
	created, tracked := aws.ToTime(out.KeyCreationDate), aws.ToTime(out.TrackingStartDate)
	return time.Time{}, !created.IsZero() && !tracked.IsZero() && !tracked.After(created), nil
}

// Grants returns all grants on the key.
func (k *KMS) Grants(ctx context.Context, keyID string) ([]Grant, error) {
	var list []Grant
	pages := kms.NewListGrantsPaginator(k.client, &kms.ListGrantsInput{KeyId: &keyID, Limit: aws.Int32(100)})
	for pages.HasMorePages() {
		out, err := send(ctx, k.session, reads("ListGrants", keyID), func(ctx context.Context) (*kms.ListGrantsOutput, error) {
			return pages.NextPage(ctx)
		})
		if err != nil {
			return nil, err
		}
		for _, e := range out.Grants {
			g := Grant{
				ID: aws.ToString(e.GrantId), Name: aws.ToString(e.Name),
				Grantee: aws.ToString(e.GranteePrincipal), GranteeService: aws.ToString(e.GranteeServicePrincipal),
				Retiring: aws.ToString(e.RetiringPrincipal), RetiringService: aws.ToString(e.RetiringServicePrincipal),
			}
			for _, operation := range e.Operations {
				g.Operations = append(g.Operations, string(operation))
			}
			if c := e.Constraints; c != nil {
				g.ContextEquals, g.ContextSubset, g.SourceARN = c.EncryptionContextEquals, c.EncryptionContextSubset, aws.ToString(c.SourceArn)
			}
			list = append(list, g)
		}
	}
	return list, nil
}

// CreateGrant makes a grant; under a Name, asking twice is asking once.
func (k *KMS) CreateGrant(ctx context.Context, keyID string, g Grant) error {
	in := &kms.CreateGrantInput{KeyId: &keyID}
	for value, member := range map[*string]**string{&g.Name: &in.Name, &g.Grantee: &in.GranteePrincipal, &g.GranteeService: &in.GranteeServicePrincipal,
		&g.Retiring: &in.RetiringPrincipal, &g.RetiringService: &in.RetiringServicePrincipal} {
		if *value != "" {
			*member = value
		}
	}
	for _, operation := range g.Operations {
		in.Operations = append(in.Operations, types.GrantOperation(operation))
	}
	if g.ContextEquals != nil || g.ContextSubset != nil || g.SourceARN != "" {
		in.Constraints = &types.GrantConstraints{EncryptionContextEquals: g.ContextEquals, EncryptionContextSubset: g.ContextSubset}
		if g.SourceARN != "" {
			in.Constraints.SourceArn = &g.SourceARN
		}
	}
	_, err := send(ctx, k.session, changes("CreateGrant", keyID), func(ctx context.Context) (*kms.CreateGrantOutput, error) {
		return k.client.CreateGrant(ctx, in)
	})
	return err
}

// KeyAliases returns the names of the aliases that point at the key, sorted.
func (k *KMS) KeyAliases(ctx context.Context, keyID string) ([]string, error) {
	var names []string
	pages := kms.NewListAliasesPaginator(k.client, &kms.ListAliasesInput{KeyId: &keyID})
	for pages.HasMorePages() {
		out, err := send(ctx, k.session, reads("ListAliases", keyID), func(ctx context.Context) (*kms.ListAliasesOutput, error) {
			return pages.NextPage(ctx)
		})
		if err != nil {
			return nil, err
		}
		for _, a := range out.Aliases {
			names = append(names, aws.ToString(a.AliasName))
		}
	}
	slices.Sort(names)
	return names, nil
}

// CreateAlias makes an alias at a key; ErrConflict where there is one of that
// name.
func (k *KMS) CreateAlias(ctx context.Context, alias, keyID string) error {
	_, err := send(ctx, k.session, changes("CreateAlias", alias), func(ctx context.Context) (*kms.CreateAliasOutput, error) {
		return k.client.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: &alias, TargetKeyId: &keyID})
	})
	return err
}

// UpdateAlias points an existing alias at a key; ErrNotFound where there is no
// such alias.
func (k *KMS) UpdateAlias(ctx context.Context, alias, keyID string) error {
	_, err := send(ctx, k.session, changes("UpdateAlias", alias), func(ctx context.Context) (*kms.UpdateAliasOutput, error) {
		return k.client.UpdateAlias(ctx, &kms.UpdateAliasInput{AliasName: &alias, TargetKeyId: &keyID})
	})
	return err
}

// Encrypt probes a key under an encryption context; ErrState where the key has
// no material or is disabled.
func (k *KMS) Encrypt(ctx context.Context, keyID string, plaintext []byte, encryptionContext map[string]string) ([]byte, error) {
	out, err := send(ctx, k.session, reads("Encrypt", keyID), func(ctx context.Context) (*kms.EncryptOutput, error) {
		return k.client.Encrypt(ctx, &kms.EncryptInput{KeyId: &keyID, Plaintext: plaintext, EncryptionContext: encryptionContext})
	})
	if err != nil {
		return nil, err
	}
	return out.CiphertextBlob, nil
}

// Decrypt probes a key under an encryption context.
func (k *KMS) Decrypt(ctx context.Context, keyID string, ciphertext []byte, encryptionContext map[string]string) ([]byte, error) {
	out, err := send(ctx, k.session, reads("Decrypt", keyID), func(ctx context.Context) (*kms.DecryptOutput, error) {
		return k.client.Decrypt(ctx, &kms.DecryptInput{KeyId: &keyID, CiphertextBlob: ciphertext, EncryptionContext: encryptionContext})
	})
	if err != nil {
		return nil, err
	}
	return out.Plaintext, nil
}

// toTags returns tags in the order of their names, so that the same tags make
// the same request.
func toTags(tags map[string]string) []types.Tag {
	var list []types.Tag
	for _, name := range slices.Sorted(maps.Keys(tags)) {
		list = append(list, types.Tag{TagKey: aws.String(name), TagValue: aws.String(tags[name])})
	}
	return list
}

func toKey(m *types.KeyMetadata) Key {
	if m == nil {
		return Key{}
	}
	return Key{
		ID:           aws.ToString(m.KeyId),
		ARN:          aws.ToString(m.Arn),
		Account:      aws.ToString(m.AWSAccountId),
		State:        string(m.KeyState),
		Origin:       string(m.Origin),
		KeySpec:      string(m.KeySpec),
		KeyUsage:     string(m.KeyUsage),
		Manager:      string(m.KeyManager),
		MaterialID:   aws.ToString(m.CurrentKeyMaterialId),
		Description:  aws.ToString(m.Description),
		CreatedAt:    aws.ToTime(m.CreationDate),
		ValidTo:      aws.ToTime(m.ValidTo),
		DeletionDate: aws.ToTime(m.DeletionDate),
	}
}
