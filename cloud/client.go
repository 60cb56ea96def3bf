package cloud

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	smithymiddleware "github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// appID is in the User-Agent of each request, and so in CloudTrail.
const appID = "byokd"

// dialTimeout is shorter than the SDK's 30 s: an attempt that has not left this
// machine is made again.
const dialTimeout = 10 * time.Second

// Of the connections that wait for the next request, idleOfHost are kept of one
// endpoint and idleOfAll of all: as many jobs as are at most ahead of their import in
// one account and Region. With the SDK's 10 of one endpoint, each moment in which more
// requests end costs others their connections, and new ones a TLS handshake each.
const (
	idleOfHost = 64
	idleOfAll  = 640
)

// openTransport returns the one transport of all clients. It is called with mu
// held.
func (c *Cloud) openTransport() (*http.Transport, error) {
	if c.transport != nil {
		return c.transport, nil
	}
	roots, err := caBundle()
	if err != nil {
		return nil, err
	}
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: awshttp.DefaultDialKeepAliveTimeout}
	c.transport = awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
		t.Proxy = c.proxy
		t.DialContext = dialer.DialContext
		t.MaxIdleConnsPerHost, t.MaxIdleConns = idleOfHost, idleOfAll
		if roots != nil {
			t.TLSClientConfig.RootCAs = roots
		}
	}).GetTransport()
	return c.transport, nil
}

// caBundle reads the CA certificates that AWS_CA_BUNDLE names, in place of the
// system's; nil: there is none.
//
// Source: AWS SDKs and Tools Reference Guide, "General configuration".
func caBundle() (*x509.CertPool, error) {
	path := os.Getenv("AWS_CA_BUNDLE")
	if path == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, misconfigured("AWS_CA_BUNDLE: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, misconfigured("AWS_CA_BUNDLE: %s has no PEM certificate", path)
	}
	return roots, nil
}

// newHTTPClient returns a client that follows no redirect: the request carries
// a signature, and its answer decides under whose key material is wrapped.
func newHTTPClient(t *http.Transport) *http.Client {
	return &http.Client{
		Transport:     t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

var (
	errRedirect = errors.New("redirected; byokd follows no redirects")
	errProxy    = errors.New("the proxy in the environment is not a URL; see HTTPS_PROXY")
)

// proxy chooses the proxy of a request. It is also where a redirect stops that
// a client of the SDK's credential chain would follow: those must be the SDK's
// own kind of client, which follows 307 and 308.
func (c *Cloud) proxy(r *http.Request) (*url.URL, error) {
	if r.Response != nil { // the redirect that caused this request
		return nil, errRedirect
	}
	if c.settings.Proxy != nil {
		return c.settings.Proxy(r)
	}
	u, err := http.ProxyFromEnvironment(r)
	if err != nil {
		return nil, errProxy // the text of err may hold the proxy's password
	}
	return u, nil
}

// buildableClient returns a client of the kind that the SDK's credential chain
// insists on when AWS_CA_BUNDLE is set.
func buildableClient(t *http.Transport) *awshttp.BuildableClient {
	return awshttp.NewBuildableClient().WithTransportOptions(func(own *http.Transport) {
		own.Proxy = t.Proxy
		own.DialContext = t.DialContext
		own.TLSClientConfig = t.TLSClientConfig.Clone()
		own.DisableKeepAlives = true // nobody could close its connections
	})
}

// An attemptError is one failed attempt of a call.
type attemptError struct {
	err       error
	endpoint  string // "": the request was not even made
	sent      bool   // there was a connection, so AWS may have got the request
	status    int    // of the answer; 0: none came
	requestID string
	skew      time.Duration // AWS's clock less this machine's; 0: not known
	again     bool          // the SDK may make another attempt
}

func (e *attemptError) Error() string { return e.err.Error() }
func (e *attemptError) Unwrap() error { return e.err }

// mayHaveHappened reports whether AWS may have carried the request out.
func (e *attemptError) mayHaveHappened() bool {
	return e.sent && (e.status < 300 || e.status > 499)
}

// mayRepeat decides whether another attempt is made. What changes something is
// repeated only where it cannot have happened.
func (e *attemptError) mayRepeat(changes bool) bool {
	if _, ok := errors.AsType[*credentialError](e.err); ok {
		return false
	}
	if dns, ok := errors.AsType[*net.DNSError](e.err); ok && dns.IsNotFound {
		return false
	}
	if changes && e.mayHaveHappened() {
		return false
	}
	if api, ok := apiError(e.err); ok {
		v := judge(api.ErrorCode(), e.status)
		// Credentials that were not accepted have been dropped: the next
		// attempt gets fresh ones, such as a replaced access key.
		return v.kind == ErrThrottled || v.kind == ErrCredentials || e.status >= 500
	}
	return e.endpoint != "" && (e.status == 0 || e.status >= 500 || e.broken())
}

// broken reports whether the connection broke in the middle of the answer.
func (e *attemptError) broken() bool {
	_, isNetwork := errors.AsType[net.Error](e.err)
	return isNetwork || errors.Is(e.err, io.ErrUnexpectedEOF)
}

// newRetryer returns a retryer for one client: three attempts, with the SDK's
// backoff and budget. Besides mayRepeat it knows the SDK's own clock skew
// correction, where a signature is made anew with AWS's time.
func newRetryer() aws.Retryer {
	return retry.NewStandard(func(o *retry.StandardOptions) {
		o.Retryables = []retry.IsErrorRetryable{
			retry.RetryableError{},
			retry.IsErrorRetryableFunc(func(err error) aws.Ternary {
				a, ok := errors.AsType[*attemptError](err)
				return aws.BoolTernary(ok && a.again)
			}),
		}
	})
}

type requestContextKey struct{}

type probeContextKey struct{}

// A probe watches one attempt from the inside.
type probe struct {
	endpoint string
	sent     atomic.Bool
}

// middleware returns the additions to the SDK's stack. service is the prefix of
// its IAM actions, "" for the clients of the SDK's credential chain; id is what
// the client signs with.
func (s *session) middleware(service string, id *identity) []func(*smithymiddleware.Stack) error {
	outer := smithymiddleware.FinalizeMiddlewareFunc("byokdAttempt", func(
		ctx context.Context, in smithymiddleware.FinalizeInput, next smithymiddleware.FinalizeHandler,
	) (smithymiddleware.FinalizeOutput, smithymiddleware.Metadata, error) {
		return s.attempt(ctx, service, id, in, next)
	})
	inner := smithymiddleware.FinalizeMiddlewareFunc("byokdProbe", watch)
	return []func(*smithymiddleware.Stack) error{func(stack *smithymiddleware.Stack) error {
		if _, ok := stack.Finalize.Get("Retry"); !ok {
			return nil
		}
		// Right inside the retry loop, before anything is signed.
		if err := stack.Finalize.Insert(outer, "Retry", smithymiddleware.After); err != nil {
			return err
		}
		// Last, so that it sees this request and not one for credentials.
		return stack.Finalize.Add(inner, smithymiddleware.After)
	}}
}

// A plainBody is the body of a request without WriteTo, which on the SDK's wrapper
// of a body fails with EOF once it is closed. The SDK closes it when an answer has
// come, net/http looks once more for its end then if the answer was quick, takes
// that for a failed request, and closes the connection in the middle of the answer.
type plainBody struct{ io.ReadSeeker }

// watch notes where a request goes and whether it got a connection, and gives it a
// plainBody.
func watch(ctx context.Context, in smithymiddleware.FinalizeInput, next smithymiddleware.FinalizeHandler) (
	smithymiddleware.FinalizeOutput, smithymiddleware.Metadata, error,
) {
	p, _ := ctx.Value(probeContextKey{}).(*probe)
	req, ok := in.Request.(*smithyhttp.Request)
	if ok {
		if body, ok := req.GetStream().(io.ReadSeeker); ok {
			var err error
			if req, err = req.SetStream(plainBody{body}); err != nil {
				return smithymiddleware.FinalizeOutput{}, smithymiddleware.Metadata{}, err
			}
			in.Request = req
		}
	}
	if p != nil && ok {
		p.endpoint = req.URL.Scheme + "://" + req.URL.Host
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
			GotConn: func(httptrace.GotConnInfo) { p.sent.Store(true) },
		})
	}
	return next.HandleFinalize(ctx, in)
}

// attempt makes one attempt of a call: it waits for the quota, limits the time,
// and tells what came of it to clock, log, metrics and error.
func (s *session) attempt(
	ctx context.Context, service string, id *identity, in smithymiddleware.FinalizeInput, next smithymiddleware.FinalizeHandler,
) (smithymiddleware.FinalizeOutput, smithymiddleware.Metadata, error) {
	operation := awsmiddleware.GetOperationName(ctx)
	if service == "" {
		service = strings.ToLower(awsmiddleware.GetServiceID(ctx))
	}
	r, ok := ctx.Value(requestContextKey{}).(request)
	if !ok || r.service != service || r.operation != operation {
		// A request for credentials on behalf of another.
		r = request{service: service, operation: operation}
	}
	quota := s.bucket(r.action())
	var its turn
	if quota != nil {
		var err error
		if its, err = quota.wait(ctx); err != nil {
			return smithymiddleware.FinalizeOutput{}, smithymiddleware.Metadata{}, err
		}
	}
	p := new(probe)
	limited, cancel := context.WithTimeout(context.WithValue(ctx, probeContextKey{}, p), s.cloud.settings.Timeout)
	defer cancel()

	start := time.Now()
	out, metadata, err := next.HandleFinalize(limited, in)
	elapsed := time.Since(start)
	if p.endpoint == "" { // it failed before it was a request
		if quota != nil {
			quota.giveBack(its)
		}
		if err != nil {
			err = &attemptError{err: err}
		}
		return out, metadata, err
	}

	if quota != nil {
		quota.answered(its)
	}
	requestID, _ := awsmiddleware.GetRequestIDMetadata(metadata)
	date, hasDate := awsmiddleware.GetServerTime(metadata)
	if hasDate && requestID != "" && service == ServiceKMS {
		s.clock.set(date)
	}
	code := "OK"
	if err != nil {
		a := &attemptError{err: err, endpoint: p.endpoint, sent: p.sent.Load(), requestID: requestID}
		if response, ok := errors.AsType[*smithyhttp.ResponseError](err); ok {
			a.status = response.HTTPStatusCode()
		}
		if hasDate {
			a.skew = time.Until(date)
		}
		switch api, ok := apiError(err); {
		case ok:
			code = api.ErrorCode()
			switch judge(code, a.status).kind {
			case ErrCredentials:
				id.drop()
			case ErrThrottled:
				if quota != nil {
					quota.throttle(its)
				}
			}
		case a.status != 0:
			code = "foreign"
		case a.sent:
			code = "lost"
		default:
			code = "unreachable"
		}
		a.again = limited.Err() == nil && a.mayRepeat(r.changes)
		err = a
	}
	if s.cloud.settings.Observer != nil {
		s.cloud.settings.Observer(r.action(), code, elapsed)
	}
	s.cloud.log.LogAttrs(ctx, slog.LevelDebug, "aws request",
		slog.String("operation", r.action()), slog.String("region", awsmiddleware.GetRegion(ctx)),
		slog.String("target", r.target), slog.String("code", code),
		slog.Duration("elapsed", elapsed), slog.String("request_id", requestID))
	return out, metadata, err
}

// send makes one call. Its errors are of type *Error.
func send[Out any](ctx context.Context, s *session, r request, call func(context.Context) (*Out, error)) (*Out, error) {
	out, err := call(context.WithValue(ctx, requestContextKey{}, r))
	if err != nil {
		return nil, s.fail(ctx, r, err)
	}
	return out, nil
}
