// Package cloud is byokd's side of AWS: KMS, EventBridge, STS, the tagging API and
// Service Quotas, their credentials, endpoints, quotas and errors.
//
// A [Cloud] is made from [Settings] without any I/O. It gives out one [KMS] per
// credential and Region, and [Bus] values for EventBridge. Nothing here knows of
// jobs or key groups.
//
// Two promises hold for every method. An operation that changes something is
// sent again only where the attempt before cannot have been carried out: it was
// throttled, refused, or never left this machine. And every error has a [Class]
// that says what is known of its outcome; classes follow from AWS's error codes,
// the HTTP status and the kind of transport error, never from a text.
//
// Everything is safe for concurrent use.
package cloud

import (
	"context"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"sync"
	"time"

	awsarn "github.com/aws/aws-sdk-go-v2/aws/arn"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	tagging "github.com/aws/aws-sdk-go-v2/service/resourcegroupstaggingapi"
	"github.com/aws/aws-sdk-go-v2/service/servicequotas"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

// Settings configure a Cloud. The zero value uses AWS's own endpoints.
type Settings struct {
	// WrappingKeySpec is the wrapping key asked of KMS: RSA_4096 (also for
	// ""), RSA_3072 or RSA_2048.
	WrappingKeySpec string

	UseFIPS      bool // KMS and STS, and EventBridge where AWS lists a FIPS endpoint
	UseDualStack bool // all but EventBridge and Service Quotas

	// Endpoint overrides for all Regions; "": none.
	KMSEndpoint           string
	EventBridgeEndpoint   string
	STSEndpoint           string
	TaggingEndpoint       string
	ServiceQuotasEndpoint string
	// Regional are overrides per Region; they come first.
	Regional map[string]Endpoints

	// Quotas replaces AWS's default quotas of KMS operations, by name such as
	// CreateKey, in requests per second for each account and Region; see
	// [DefaultQuotas].
	Quotas map[string]float64

	// FromServiceQuotas has Service Quotas asked for the quotas of each account
	// and Region, in the background, when the first request to KMS is sent there
	// and about daily while more follow. What it tells replaces AWS's defaults,
	// not Quotas. While it does not tell, all goes on with what there is.
	FromServiceQuotas bool

	// QuotasTold is called, without locks, when Service Quotas was asked about an
	// account and Region for the first time, when it told other quotas than before,
	// and when a credential turns out to be of an account that it was asked about
	// before; nil: nothing is.
	QuotasTold func()

	// Credentials by name.
	Credentials map[string]Credential

	// Timeout limits each attempt of a call; 0 is one minute.
	Timeout time.Duration

	// Logger gets one Debug record per request sent; nil: slog.Default().
	Logger *slog.Logger

	// Observer is called after each request sent, with the IAM action, and
	// AWS's error code, "OK", "unreachable" (never sent), "lost" (sent, no
	// answer) or "foreign" (answered by something that is not AWS).
	Observer func(operation, code string, d time.Duration)

	// Proxy chooses a proxy per request; nil: http.ProxyFromEnvironment,
	// which never proxies loopback addresses. Its errors stop the request.
	Proxy func(*http.Request) (*url.URL, error)
}

// A Cloud gives access to AWS.
type Cloud struct {
	settings    Settings
	environment Endpoints // overrides of byokd's environment
	log         *slog.Logger

	ctx        context.Context // ends with Close
	cancel     context.CancelFunc
	background sync.WaitGroup // what nobody waits for but Close

	mu          sync.Mutex
	credentials map[string]Credential
	sessions    map[sessionKey]*session
	accounts    map[sessionKey]string // learned last, by sessions of now or before
	buckets     map[bucketKey]*bucket
	watches     map[accountRegion]*quotaWatch
	clocks      map[string]*clock
	transport   *http.Transport // nil: not made yet
}

type sessionKey struct {
	credential, region string
}

// New returns a Cloud. It does no I/O: what is wrong with a credential shows
// when it is first used, and [Cloud.Validate] checks the endpoints.
func New(s Settings) *Cloud {
	if s.WrappingKeySpec == "" {
		s.WrappingKeySpec = "RSA_4096"
	}
	if s.Timeout <= 0 {
		s.Timeout = time.Minute
	}
	if s.Logger == nil {
		s.Logger = slog.Default()
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Cloud{
		ctx:         ctx,
		cancel:      cancel,
		settings:    s,
		environment: endpointsFromEnvironment(),
		log:         s.Logger,
		credentials: maps.Clone(s.Credentials),
		sessions:    make(map[sessionKey]*session),
		accounts:    make(map[sessionKey]string),
		buckets:     make(map[bucketKey]*bucket),
		watches:     make(map[accountRegion]*quotaWatch),
		clocks:      make(map[string]*clock),
	}
}

// SetCredentials replaces the credentials, as at SIGHUP. Values given out
// before go on with the old ones; those given out from now on use the new ones.
// Quotas and AWS's time are kept.
func (c *Cloud) SetCredentials(credentials map[string]Credential) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.credentials = maps.Clone(credentials)
	clear(c.sessions)
}

// Close ends what goes on in the background and closes idle connections.
func (c *Cloud) Close() {
	c.mu.Lock()
	c.cancel()
	c.mu.Unlock()
	c.background.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.transport != nil {
		c.transport.CloseIdleConnections()
	}
}

// KMS returns KMS as a credential sees it in a Region. Asking twice gives the
// same value until [Cloud.SetCredentials].
func (c *Cloud) KMS(credential, region string) (*KMS, error) {
	s, err := c.session(credential, region)
	if err != nil {
		return nil, err
	}
	return s.kms, nil
}

// Bus returns an event bus, by name or ARN. An ARN's Region counts, the region
// given does not then.
func (c *Cloud) Bus(credential, region, bus string) (*Bus, error) {
	s, err := c.session(credential, BusRegion(bus, region))
	if err != nil {
		return nil, err
	}
	client, err := s.events()
	if err != nil {
		return nil, err
	}
	return &Bus{session: s, client: client, name: bus}, nil
}

// BusRegion is the Region of an event bus: that of its ARN, else the one given.
func BusRegion(bus, region string) string {
	if arn, err := awsarn.Parse(bus); err == nil {
		return arn.Region
	}
	return region
}

// A session is one credential in one Region.
type session struct {
	cloud    *Cloud
	name     string // of the credential
	region   string
	source   Credential
	identity *identity
	clock    *clock // KMS's
	kms      *KMS

	mu          sync.Mutex
	eventbridge *eventbridge.Client   // nil: not made yet
	quotas      *servicequotas.Client // nil: not made yet
	account     string                // "": not known
	accountKey  string                // the access key ID that account belongs to
}

func (c *Cloud) session(credential, region string) (*session, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := sessionKey{credential, region}
	if s := c.sessions[key]; s != nil {
		return s, nil
	}
	source, ok := c.credentials[credential]
	if !ok {
		return nil, misconfigured("there is no credential %q: add [credentials.%s] to byokd.toml", credential, credential)
	}
	s := &session{cloud: c, name: credential, region: region, source: source}
	if s.clock = c.clocks[region]; s.clock == nil {
		s.clock = new(clock)
		c.clocks[region] = s.clock
	}
	if err := s.open(); err != nil {
		return nil, err
	}
	c.sessions[key] = s
	return s, nil
}

// open makes the clients. It is called with cloud.mu held.
func (s *session) open() error {
	transport, err := s.cloud.openTransport()
	if err != nil {
		return err
	}
	if s.identity, err = s.newIdentity(transport); err != nil {
		return err
	}
	kmsURL, err := s.cloud.endpoint(ServiceKMS, s.region)
	if err != nil {
		return err
	}
	stsURL, err := s.cloud.endpoint(ServiceSTS, s.region)
	if err != nil {
		return err
	}
	tagURL, err := s.cloud.endpoint(ServiceTagging, s.region)
	if err != nil {
		return err
	}
	s.kms = &KMS{
		session: s,
		client: kms.New(kms.Options{
			AppID: appID, Region: s.region, BaseEndpoint: &kmsURL, Credentials: s.identity.provider,
			HTTPClient: newHTTPClient(transport), Retryer: newRetryer(), APIOptions: s.middleware(ServiceKMS, s.identity),
			HTTPSignerV4: new(signer),
		}),
		sts: sts.New(s.stsOptions(stsURL, s.identity, transport)),
		tagging: tagging.New(tagging.Options{
			AppID: appID, Region: s.region, BaseEndpoint: &tagURL, Credentials: s.identity.provider,
			HTTPClient: newHTTPClient(transport), Retryer: newRetryer(), APIOptions: s.middleware("tag", s.identity),
			HTTPSignerV4: new(signer),
		}),
		tags:    make(map[string]seenTags),
		listing: make(chan struct{}, 1),
	}
	return nil
}

func (s *session) stsOptions(url string, id *identity, transport *http.Transport) sts.Options {
	return sts.Options{
		AppID: appID, Region: s.region, BaseEndpoint: &url, Credentials: id.provider,
		HTTPClient: newHTTPClient(transport), Retryer: newRetryer(), APIOptions: s.middleware(ServiceSTS, id),
		HTTPSignerV4: new(signer),
	}
}

// events returns the session's EventBridge client, made when first wanted: a
// Region may have keys and no events.
func (s *session) events() (*eventbridge.Client, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.eventbridge != nil {
		return s.eventbridge, nil
	}
	url, err := s.cloud.endpoint(ServiceEvents, s.region)
	if err != nil {
		return nil, err
	}
	s.cloud.mu.Lock()
	transport := s.cloud.transport
	s.cloud.mu.Unlock()
	s.eventbridge = eventbridge.New(eventbridge.Options{
		AppID: appID, Region: s.region, BaseEndpoint: &url, Credentials: s.identity.provider,
		HTTPClient: newHTTPClient(transport), Retryer: newRetryer(), APIOptions: s.middleware(ServiceEvents, s.identity),
		HTTPSignerV4: new(signer),
	})
	return s.eventbridge, nil
}

// A clock tells AWS's time from the Date of its latest answer. The zero value
// tells this machine's.
type clock struct {
	mu   sync.Mutex
	date time.Time // AWS's
	at   time.Time // when it came, with its monotonic reading
}

func (c *clock) set(date time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.date, c.at = date, time.Now()
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.date.IsZero() {
		return time.Now()
	}
	return c.date.Add(time.Since(c.at))
}
