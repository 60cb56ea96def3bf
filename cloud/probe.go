package cloud

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

// Reach looks whether a service answers in a Region, through the proxy in force
// and with TLS, by a request that is not signed, and returns the Date of the
// answer. Its errors are those of any call that gets no answer.
func (c *Cloud) Reach(ctx context.Context, service, region string) (date time.Time, err error) {
	s := &session{cloud: c, region: region}
	endpoint, err := c.endpoint(service, region)
	if err != nil {
		return time.Time{}, err
	}
	c.mu.Lock()
	transport, err := c.openTransport()
	c.mu.Unlock()
	if err != nil {
		return time.Time{}, err
	}
	a := &attemptError{endpoint: endpoint}
	limited, cancel := context.WithTimeout(ctx, c.settings.Timeout)
	defer cancel()
	traced := httptrace.WithClientTrace(limited, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { a.sent = true }})
	what := request{service: service, operation: "GET /"}
	r, err := http.NewRequestWithContext(traced, http.MethodGet, endpoint+"/", nil)
	if err != nil {
		return time.Time{}, misconfigured("%s: %w", endpoint, err)
	}
	response, err := newHTTPClient(transport).Do(r)
	if err != nil {
		a.err = err
		return time.Time{}, s.fail(ctx, what, a)
	}
	defer response.Body.Close()
	_, _ = io.CopyN(io.Discard, response.Body, 64<<10) // so that the connection can be used again
	if response.StatusCode == http.StatusProxyAuthRequired {
		a.status, a.err = response.StatusCode, errors.New("proxy authentication required")
		return time.Time{}, s.fail(ctx, what, a)
	}
	date, _ = http.ParseTime(response.Header.Get("Date"))
	return date, nil
}

// ProxyTo returns host and port of the proxy through which a service is reached in
// a Region; "": none is in force.
func (c *Cloud) ProxyTo(service, region string) (string, error) {
	endpoint, err := c.endpoint(service, region)
	if err != nil {
		return "", err
	}
	r, err := http.NewRequest(http.MethodGet, endpoint+"/", nil)
	if err != nil {
		return "", misconfigured("%s: %w", endpoint, err)
	}
	u, err := c.proxy(r)
	if u == nil || err != nil {
		return "", err
	}
	return u.Host, nil // not its user and password
}

// A Caller is who a credential is, by STS.
type Caller struct {
	Account, ARN string
}

// Caller asks STS who the credential is. Nobody can be denied that.
func (k *KMS) Caller(ctx context.Context) (Caller, error) {
	r := request{service: ServiceSTS, operation: "GetCallerIdentity"}
	out, err := send(ctx, k.session, r, func(ctx context.Context) (*sts.GetCallerIdentityOutput, error) {
		return k.sts.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
	})
	if err != nil {
		return Caller{}, err
	}
	return Caller{Account: aws.ToString(out.Account), ARN: aws.ToString(out.Arn)}, nil
}

// ErrNoProbe: there is no request that shows whether an operation is permitted
// and changes nothing.
var ErrNoProbe = errors.New("cannot be tried without doing it")

// A Probe is what permissions are tried on.
type Probe struct {
	KeyID   string            // of a key with its material; "": there is none
	Alias   string            // one that exists; "": there is none
	Tags    map[string]string // of a key that would be made
	Context map[string]string // encryption context of Encrypt and Decrypt
}

// bogus is well-formed and of no use as import token, material or policy.
const bogus = "{}"

// Probe tries whether an operation of KMS or tagging, by its name with the
// prefix of the service, is permitted, without changing anything: reads are
// done, and of what changes something a request is sent that AWS refuses for
// another reason once it has permitted it. nil: it is permitted; ErrDenied: it is
// not; ErrNoProbe where that cannot be known so.
func (k *KMS) Probe(ctx context.Context, operation string, p Probe) error {
	try := func(name string, call func(context.Context) error) error {
		target := p.KeyID
		if name == "CreateKey" || name == "ListAliases" {
			target = ""
		}
		r := reads(name, target) // sent as often as need be: it changes nothing
		_, err := send(ctx, k.session, r, func(ctx context.Context) (*struct{}, error) { return &struct{}{}, call(ctx) })
		if e, ok := errors.AsType[*Error](err); ok && e.Code != "" && e.class != Transient && !errors.Is(err, ErrDenied) && !errors.Is(err, ErrCredentials) ||
			errors.Is(err, ErrImportToken) || errors.Is(err, ErrConflict) {
			return nil // refused, after it was permitted
		}
		return err
	}
	switch operation {
	case "kms:CreateKey":
		return try("CreateKey", func(ctx context.Context) error {
			// KMS makes no key whose policy lets nobody change it again.
			_, err := k.client.CreateKey(ctx, &kms.CreateKeyInput{Origin: types.OriginTypeExternal, KeySpec: types.KeySpecSymmetricDefault,
				KeyUsage: types.KeyUsageTypeEncryptDecrypt, Policy: aws.String(bogus), Tags: toTags(p.Tags)})
			return err
		})
	case "kms:ListAliases":
		return try("ListAliases", func(ctx context.Context) error {
			_, err := k.client.ListAliases(ctx, &kms.ListAliasesInput{Limit: aws.Int32(1)})
			return err
		})
	case "tag:GetResources":
		_, err := k.findByTagging(ctx, p.Tags)
		return err
	}
	if p.KeyID == "" {
		return ErrNoProbe
	}
	switch operation {
	case "kms:DescribeKey":
		_, err := k.DescribeKey(ctx, p.KeyID)
		return err
	case "kms:ListResourceTags":
		_, err := k.KeyTags(ctx, p.KeyID)
		return err
	case "kms:GetKeyPolicy":
		_, err := k.KeyPolicy(ctx, p.KeyID)
		return err
	case "kms:GetKeyLastUsage":
		_, _, err := k.LastUsage(ctx, p.KeyID)
		return err
	case "kms:ListKeyRotations":
		_, err := k.KeyMaterials(ctx, p.KeyID)
		return err
	case "kms:GetKeyRotationStatus":
		_, err := k.RotationStarted(ctx, p.KeyID)
		return err
	case "kms:ListGrants":
		return try("ListGrants", func(ctx context.Context) error {
			_, err := k.client.ListGrants(ctx, &kms.ListGrantsInput{KeyId: &p.KeyID, Limit: aws.Int32(1)})
			return err
		})
	case "kms:Encrypt", "kms:Decrypt":
		ciphertext, err := k.Encrypt(ctx, p.KeyID, []byte("byokd"), p.Context)
		if err == nil && operation == "kms:Decrypt" {
			_, err = k.Decrypt(ctx, p.KeyID, ciphertext, p.Context)
		}
		return err
	case "kms:GetParametersForImport":
		_, err := k.ParametersForImport(ctx, p.KeyID, string(types.AlgorithmSpecRsaesOaepSha256))
		return err
	case "kms:ImportKeyMaterial":
		return try("ImportKeyMaterial", func(ctx context.Context) error {
			_, err := k.client.ImportKeyMaterial(ctx, &kms.ImportKeyMaterialInput{KeyId: &p.KeyID, ImportToken: []byte(bogus),
				EncryptedKeyMaterial: []byte(bogus), ExpirationModel: types.ExpirationModelTypeKeyMaterialDoesNotExpire})
			return err
		})
	case "kms:PutKeyPolicy":
		return try("PutKeyPolicy", func(ctx context.Context) error {
			_, err := k.client.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: &p.KeyID, Policy: aws.String(bogus)})
			return err
		})
	case "kms:TagResource":
		return try("TagResource", func(ctx context.Context) error {
			// Tags beginning with aws: are reserved.
			_, err := k.client.TagResource(ctx, &kms.TagResourceInput{KeyId: &p.KeyID, Tags: toTags(map[string]string{"aws:byokd": ""})})
			return err
		})
	case "kms:UntagResource":
		return try("UntagResource", func(ctx context.Context) error {
			_, err := k.client.UntagResource(ctx, &kms.UntagResourceInput{KeyId: &p.KeyID, TagKeys: []string{"aws:byokd"}})
			return err
		})
	case "kms:CreateAlias":
		if p.Alias == "" {
			return ErrNoProbe
		}
		return try("CreateAlias", func(ctx context.Context) error {
			_, err := k.client.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: &p.Alias, TargetKeyId: &p.KeyID})
			return err
		})
	}
	return ErrNoProbe
}
