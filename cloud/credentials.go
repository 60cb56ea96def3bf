package cloud

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials/processcreds"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/signin"
	"github.com/aws/aws-sdk-go-v2/service/sso"
	"github.com/aws/aws-sdk-go-v2/service/ssooidc"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go/logging"
	smithymiddleware "github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// A Credential is one [credentials.NAME] table: exactly one source, and
// optionally a role on top.
type Credential struct {
	Name string

	// AccessKeyCSV returns the content of an access key CSV file. It is
	// called whenever credentials are needed, so that a replaced file counts
	// at once; see [ParseAccessKeyCSV].
	AccessKeyCSV func() ([]byte, error)

	// Profile names a profile of the shared AWS configuration, in the files
	// named or in AWS's default places. Its endpoint settings do not count.
	Profile               string
	SharedConfigFile      string
	SharedCredentialsFile string

	// CredentialProcess is a shell command that prints credentials, see
	// "Process credential provider" in the AWS SDKs and Tools Reference Guide.
	CredentialProcess string

	// DefaultChain asks the SDK's default chain, the EC2 metadata service
	// included. No other source asks that service.
	DefaultChain bool

	RoleARN    string // "": no role on top
	ExternalID string // for the role; "": none

	// Account is the account ID that must be behind the credential; "": any.
	Account string
}

// expiryWindow is how long before their end credentials are renewed.
const expiryWindow = time.Minute

// An identity is what requests are signed with.
type identity struct {
	provider aws.CredentialsProvider
	drop     func() // forgets credentials that AWS did not accept
}

// newIdentity returns the identity of the session, role included.
func (s *session) newIdentity(transport *http.Transport) (*identity, error) {
	base, err := s.newSource(transport)
	if err != nil || s.source.RoleARN == "" {
		return base, err
	}
	stsURL, err := s.cloud.endpoint(ServiceSTS, s.region)
	if err != nil {
		return nil, err
	}
	client := sts.New(s.stsOptions(stsURL, base, transport))
	role := stscreds.NewAssumeRoleProvider(client, s.source.RoleARN, func(o *stscreds.AssumeRoleOptions) {
		o.RoleSessionName = sessionName()
		if s.source.ExternalID != "" {
			o.ExternalID = &s.source.ExternalID
		}
	})
	return cached(role.Retrieve), nil
}

// newSource returns the identity without a role.
func (s *session) newSource(transport *http.Transport) (*identity, error) {
	c := s.source
	count := 0
	for _, given := range []bool{c.AccessKeyCSV != nil, c.Profile != "", c.CredentialProcess != "", c.DefaultChain} {
		if given {
			count++
		}
	}
	if count != 1 {
		return nil, misconfigured("credential %q has %d sources: give exactly one of access_key_csv, access_key_credential, profile, credential_process, default_chain", s.name, count)
	}
	switch {
	case c.AccessKeyCSV != nil:
		var key accessKey
		read := func(context.Context) (aws.Credentials, error) { return key.read(c.AccessKeyCSV) }
		return &identity{provider: classed(read), drop: func() {}}, nil
	case c.CredentialProcess != "":
		return cached(newProcess(c.CredentialProcess).Retrieve), nil
	}
	return cached(func(ctx context.Context) (aws.Credentials, error) {
		// Loaded anew each time: a profile's keys may have been replaced.
		return s.loadChain(ctx, transport)
	}), nil
}

// An accessKey is what was last found in an access key CSV file.
type accessKey struct {
	mu    sync.Mutex
	of    []byte // the content
	creds aws.Credentials
}

// read reads the content, and parses it where it is another one than the last time.
func (k *accessKey) read(read func() ([]byte, error)) (aws.Credentials, error) {
	content, err := read()
	if err != nil {
		return aws.Credentials{}, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.of != nil && bytes.Equal(k.of, content) {
		return k.creds, nil
	}
	id, secret, err := ParseAccessKeyCSV(content)
	if err != nil {
		return aws.Credentials{}, err
	}
	k.of, k.creds = bytes.Clone(content), aws.Credentials{AccessKeyID: id, SecretAccessKey: secret, Source: "access key CSV"}
	return k.creds, nil
}

// newProcess is the SDK's provider without a terminal on its standard input,
// and with an end even where a grandchild keeps its output open.
func newProcess(command string) *processcreds.Provider {
	return processcreds.NewProviderCommand(processcreds.NewCommandBuilderFunc(func(ctx context.Context) (*exec.Cmd, error) {
		cmd := exec.CommandContext(ctx, "/bin/sh", "-c", command)
		cmd.Stderr = os.Stderr
		cmd.WaitDelay = 5 * time.Second
		return cmd, nil
	}))
}

// classed marks the errors of a credential source as such.
func classed(retrieve aws.CredentialsProviderFunc) aws.CredentialsProvider {
	return aws.CredentialsProviderFunc(func(ctx context.Context) (aws.Credentials, error) {
		creds, err := retrieve(ctx)
		if err != nil {
			if _, ok := errors.AsType[*credentialError](err); ok {
				return aws.Credentials{}, err // of the source below a role
			}
			return aws.Credentials{}, &credentialError{sanitizeProcess(err)}
		}
		return creds, nil
	})
}

func cached(retrieve aws.CredentialsProviderFunc) *identity {
	cache := aws.NewCredentialsCache(classed(retrieve), func(o *aws.CredentialsCacheOptions) {
		o.ExpiryWindow = expiryWindow
	})
	return &identity{provider: cache, drop: cache.Invalidate}
}

// loadChain asks the SDK's credential chain, of a profile or the default one.
func (s *session) loadChain(ctx context.Context, transport *http.Transport) (aws.Credentials, error) {
	c := s.source
	pin, err := s.pinEndpoints()
	if err != nil {
		return aws.Credentials{}, err
	}
	options := []func(*config.LoadOptions) error{
		config.WithRegion(s.region),
		config.WithAppID(appID),
		config.WithLogger(logging.Nop{}),
		config.WithHTTPClient(buildableClient(transport)),
		// The chain's own clients go where pinEndpoints says.
		config.WithUseFIPSEndpoint(aws.FIPSEndpointStateDisabled),
		config.WithUseDualStackEndpoint(aws.DualStackEndpointStateDisabled),
		config.WithAPIOptions(append(s.middleware("", &identity{drop: func() {}}), pin)),
	}
	if c.Profile != "" {
		options = append(options, config.WithSharedConfigProfile(c.Profile))
	}
	if c.SharedConfigFile != "" {
		options = append(options, config.WithSharedConfigFiles([]string{c.SharedConfigFile}))
	}
	if c.SharedCredentialsFile != "" {
		options = append(options, config.WithSharedCredentialsFiles([]string{c.SharedCredentialsFile}))
	}
	if !c.DefaultChain {
		options = append(options, config.WithEC2IMDSClientEnableState(imds.ClientDisabled))
	}
	cfg, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return aws.Credentials{}, err
	}
	return cfg.Credentials.Retrieve(ctx)
}

// pinEndpoints returns an addition to the stacks of the clients that the SDK's
// credential chain makes for itself. It puts their requests back to byokd's own
// endpoint, or AWS's, wherever a shared configuration file would send them.
func (s *session) pinEndpoints() (func(*smithymiddleware.Stack) error, error) {
	stsURL, err := s.cloud.endpoint(ServiceSTS, s.region)
	if err != nil {
		return nil, err
	}
	endpointOf := func(ctx context.Context, serviceID string) (string, error) {
		region := awsmiddleware.GetRegion(ctx)
		switch serviceID {
		case sts.ServiceID:
			return stsURL, nil
		case sso.ServiceID:
			e, err := sso.NewDefaultEndpointResolverV2().ResolveEndpoint(ctx, sso.EndpointParameters{Region: &region}.WithDefaults())
			return e.URI.String(), err
		case ssooidc.ServiceID:
			e, err := ssooidc.NewDefaultEndpointResolverV2().ResolveEndpoint(ctx, ssooidc.EndpointParameters{Region: &region}.WithDefaults())
			return e.URI.String(), err
		case signin.ServiceID:
			e, err := signin.NewDefaultEndpointResolverV2().ResolveEndpoint(ctx, signin.EndpointParameters{Region: &region}.WithDefaults())
			return e.URI.String(), err
		}
		return "", nil // the metadata services of EC2 and containers
	}
	m := smithymiddleware.FinalizeMiddlewareFunc("byokdPinEndpoint", func(
		ctx context.Context, in smithymiddleware.FinalizeInput, next smithymiddleware.FinalizeHandler,
	) (smithymiddleware.FinalizeOutput, smithymiddleware.Metadata, error) {
		serviceID := awsmiddleware.GetServiceID(ctx)
		endpoint, err := endpointOf(ctx, serviceID)
		if err != nil {
			return smithymiddleware.FinalizeOutput{}, smithymiddleware.Metadata{}, err
		}
		if req, ok := in.Request.(*smithyhttp.Request); ok && endpoint != "" {
			u, err := url.Parse(endpoint)
			if err != nil {
				return smithymiddleware.FinalizeOutput{}, smithymiddleware.Metadata{}, err
			}
			if serviceID == sts.ServiceID {
				req.URL.Path = u.Path + "/"
			}
			req.URL.Scheme, req.URL.Host = u.Scheme, u.Host
		}
		return next.HandleFinalize(ctx, in)
	})
	return func(stack *smithymiddleware.Stack) error {
		if _, ok := stack.Finalize.Get("ResolveEndpointV2"); !ok {
			return nil
		}
		return stack.Finalize.Insert(m, "ResolveEndpointV2", smithymiddleware.After)
	}, nil
}

// sessionName is the name of a role's session: byokd-HOST, in the characters
// and the 64 that STS allows (STS API Reference, AssumeRole).
func sessionName() string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "unknown"
	}
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', strings.ContainsRune("_=,.@-", r):
			return r
		}
		return '-'
	}, fmt.Sprintf("byokd-%s", host))
	return name[:min(len(name), 64)]
}
