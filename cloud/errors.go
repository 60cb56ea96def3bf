package cloud

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os/exec"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials/processcreds"
	smithy "github.com/aws/smithy-go"
)

// Class is what is known after an error, and so what to do next.
type Class string

// The classes of error.
const (
	Transient   Class = "transient"   // it did not happen; try again later
	Unknown     Class = "unknown"     // it may have happened; look, then go on
	Operator    Class = "operator"    // a person must act
	Permanent   Class = "permanent"   // it will never work
	Interrupted Class = "interrupted" // byokd is stopping; no attempt
)

// What an error is, for errors.Is. The SDK's own error is in the chain too,
// except where its text could hold a secret.
var (
	// ErrNotFound: the key, alias or bus does not exist, or not yet: KMS is
	// eventually consistent.
	ErrNotFound = errors.New("not found")
	// ErrThrottled: AWS asked for fewer requests.
	ErrThrottled = errors.New("throttled")
	// ErrDenied: the credential lacks a permission.
	ErrDenied = errors.New("access denied")
	// ErrConflict: the alias exists already.
	ErrConflict = errors.New("already exists")
	// ErrImportToken: the import token is expired, invalid or not for this
	// key; a fresh one is needed.
	ErrImportToken = errors.New("import token not accepted")
	// ErrIncorrectMaterial: KMS holds a record of different material for the key.
	ErrIncorrectMaterial = errors.New("not the material that the key had")
	// ErrIncorrectKey: the ciphertext is of another KMS key than the one named.
	ErrIncorrectKey = errors.New("ciphertext of another key")
	// ErrState: the state of the KMS key does not allow the operation, or
	// not yet.
	ErrState = errors.New("key state does not allow it")
	// ErrLimit: a quota of resources is used up, or a key's rotations.
	ErrLimit = errors.New("limit reached")
	// ErrPolicy: KMS does not take the key policy.
	ErrPolicy = errors.New("key policy not accepted")
	// ErrCredentials: there are no credentials, or AWS does not accept them.
	ErrCredentials = errors.New("credentials missing or not accepted")
	// ErrClock: this machine's clock is too far from AWS's.
	ErrClock = errors.New("clock is wrong")
	// ErrUnreachable: there is no way to AWS: name, network, firewall, proxy.
	ErrUnreachable = errors.New("AWS cannot be reached")
)

// An Error is a failed operation. All methods of [KMS] and [Bus] fail with one.
type Error struct {
	Operation string // the IAM action, e.g. "kms:ImportKeyMaterial"; "": none was begun
	Target    string // key ID, alias or bus; "": none
	Region    string
	Code      string // AWS's error code; "": AWS did not answer
	RequestID string // AWS's; "": AWS did not answer

	class   Class
	waiting string
	detail  string // what is wrong and what to do
	kind    error  // one of the sentinels, or nil
	err     error
}

func (e *Error) Error() string {
	var b strings.Builder
	if e.Operation != "" {
		b.WriteString(e.Operation)
		if e.Target != "" {
			b.WriteString(" for " + e.Target)
		}
		b.WriteString(" in " + e.Region + ": ")
	}
	b.WriteString(e.detail)
	if e.RequestID != "" {
		b.WriteString(" (request " + e.RequestID + ")")
	}
	return b.String()
}

// Unwrap returns what the error is and where it came from.
func (e *Error) Unwrap() []error {
	var errs []error
	for _, err := range []error{e.kind, e.err} {
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// ClassOf returns the class of an error of this package; of any other,
// Interrupted for a cancelled context, else Unknown; "" for nil.
//
//   - Transient: AWS could not be reached, throttled, or was out of order on a
//     read; keys and states that may only not have settled yet (ErrNotFound,
//     ErrState, ErrConflict, ErrImportToken); a wrong clock, which NTP may
//     mend; a credential source that is out of order for now.
//   - Unknown: a changing operation was sent and the answer is lost or is a
//     server error. Such an operation is never repeated by this package.
//   - Operator: permissions, credentials, key policies, limits, configuration,
//     and codes that this package does not know.
//   - Permanent: what would fail the same way for ever.
//   - Interrupted: the caller's context was cancelled before anything changed.
func ClassOf(err error) Class {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.class
	}
	switch {
	case err == nil:
		return ""
	case errors.Is(err, context.Canceled):
		return Interrupted
	}
	return Unknown
}

// WaitingFor returns what a person must mend before the operation can succeed:
// "permission" (a permission or the credentials), "policy" (the key policy) or
// "config"; "" unless the error is of class Operator.
func WaitingFor(err error) string {
	if e, ok := errors.AsType[*Error](err); ok && e.class == Operator {
		return e.waiting
	}
	return ""
}

const (
	waitPermission = "permission"
	waitPolicy     = "policy"
	waitConfig     = "config"
)

// misconfigured makes an Operator error that only a changed configuration mends.
func misconfigured(format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &Error{class: Operator, waiting: waitConfig, detail: err.Error(), err: errors.Unwrap(err)}
}

// A verdict is what an AWS error code means.
type verdict struct {
	class   Class
	waiting string
	kind    error
}

var (
	throttled   = verdict{Transient, "", ErrThrottled}
	denied      = verdict{Operator, waitPermission, ErrDenied}
	unaccepted  = verdict{Operator, waitPermission, ErrCredentials}
	unsettled   = verdict{Transient, "", ErrState}
	missing     = verdict{Transient, "", ErrNotFound}
	hopeless    = verdict{Permanent, "", nil}
	fixConfig   = verdict{Operator, waitConfig, nil}
	outOfOrder  = verdict{Transient, "", nil}
	wrongPolicy = verdict{Operator, waitPolicy, ErrPolicy}
)

// verdicts has the codes of KMS, EventBridge, STS, tagging and Service Quotas,
// request errors and entry errors of PutEvents alike.
//
// Source: the services' API models and "Common Errors" of the KMS API Reference.
var verdicts = map[string]verdict{
	"Throttling":                             throttled,
	"ThrottlingException":                    throttled,
	"ThrottledException":                     throttled,
	"RequestThrottledException":              throttled,
	"RequestThrottled":                       throttled,
	"TooManyRequestsException":               throttled,
	"RequestLimitExceeded":                   throttled,
	"BandwidthLimitExceeded":                 throttled,
	"ProvisionedThroughputExceededException": throttled,
	"PriorRequestNotComplete":                throttled,
	"SlowDown":                               throttled,

	"AccessDeniedException":       denied,
	"AccessDenied":                denied,
	"NotAuthorized":               denied,
	"UnauthorizedOperation":       denied,
	"OptInRequired":               denied,
	"RegionDisabledException":     denied,
	"SubscriptionRequired":        denied,
	"AuthorizationErrorException": denied,
	// Service Quotas may not ask the service itself.
	"DependencyAccessDeniedException": denied,

	"UnrecognizedClientException":         unaccepted,
	"InvalidClientTokenId":                unaccepted,
	"InvalidAccessKeyId":                  unaccepted,
	"InvalidSignatureException":           unaccepted,
	"SignatureDoesNotMatch":               unaccepted,
	"IncompleteSignature":                 unaccepted,
	"IncompleteSignatureException":        unaccepted,
	"MissingAuthenticationToken":          unaccepted,
	"MissingAuthenticationTokenException": unaccepted,
	"AuthFailure":                         unaccepted,
	"ExpiredToken":                        unaccepted,
	"ExpiredTokenException":               unaccepted,
	"IDPRejectedClaim":                    unaccepted,
	"InvalidIdentityToken":                unaccepted,

	"RequestExpired":       {Transient, "", ErrClock},
	"RequestTimeTooSkewed": {Transient, "", ErrClock},

	"NotFoundException":         missing,
	"ResourceNotFoundException": {Operator, waitConfig, ErrNotFound}, // of EventBridge: buses do not come by themselves

	"AlreadyExistsException":           {Transient, "", ErrConflict},
	"ConflictException":                outOfOrder,
	"ConcurrentModificationException":  outOfOrder,
	"KMSInvalidStateException":         unsettled,
	"DisabledException":                unsettled,
	"ExpiredImportTokenException":      {Transient, "", ErrImportToken},
	"InvalidImportTokenException":      {Transient, "", ErrImportToken},
	"IncorrectKeyMaterialException":    {Permanent, "", ErrIncorrectMaterial},
	"MalformedPolicyDocumentException": wrongPolicy,

	"LimitExceededException":    {Operator, waitConfig, ErrLimit},
	"TagException":              fixConfig,
	"InvalidAliasNameException": fixConfig,
	"InvalidAccountIdException": fixConfig,

	"InvalidCiphertextException":          hopeless,
	"IncorrectKeyException":               {Permanent, "", ErrIncorrectKey},
	"InvalidKeyUsageException":            hopeless,
	"InvalidArnException":                 hopeless,
	"InvalidGrantTokenException":          hopeless,
	"InvalidMarkerException":              hopeless,
	"UnsupportedOperationException":       hopeless,
	"UnknownOperationException":           hopeless, // the service there is older than the operation
	"InvalidAction":                       hopeless, // the same, in the query protocol
	"ValidationException":                 hopeless,
	"ValidationError":                     hopeless,
	"SerializationException":              hopeless,
	"InvalidParameterException":           hopeless,
	"IllegalArgumentException":            hopeless,
	"InvalidPaginationTokenException":     hopeless,
	"NoSuchResourceException":             hopeless, // Service Quotas has no KMS in that Region
	"MalformedDetail":                     hopeless,
	"InvalidArgument":                     hopeless,
	"NotAuthorizedForSourceException":     hopeless,
	"NotAuthorizedForDetailTypeException": hopeless,

	"KMSInternalException":        outOfOrder,
	"DependencyTimeoutException":  outOfOrder,
	"KeyUnavailableException":     outOfOrder,
	"InternalException":           outOfOrder,
	"ServiceException":            outOfOrder,
	"InternalFailure":             outOfOrder,
	"InternalServiceException":    outOfOrder,
	"InternalError":               outOfOrder,
	"ServiceUnavailable":          outOfOrder,
	"ServiceUnavailableException": outOfOrder,
	"RequestTimeout":              outOfOrder,
	"RequestTimeoutException":     outOfOrder,
	"IDPCommunicationError":       outOfOrder,
}

// skewLimit is how far a clock may be off before AWS refuses signatures.
//
// Source: AWS SDK for Go, aws/retry; AWS itself allows 5 minutes.
const skewLimit = 4 * time.Minute

// A request is one operation as this package sees it.
type request struct {
	service   string // prefix of the IAM action
	operation string
	target    string
	changes   bool   // sent at most once where it may have been carried out
	grant     string // what to grant, in a message; "": what the operation needs
}

func (r request) action() string { return r.service + ":" + r.operation }

// apiError returns AWS's error, unless what answered did not speak AWS's
// protocol.
func apiError(err error) (smithy.APIError, bool) {
	e, ok := errors.AsType[smithy.APIError](err)
	return e, ok && e.ErrorCode() != "" && e.ErrorCode() != "UnknownError"
}

// fail makes the *Error of a failed call. ctx is the caller's.
func (s *session) fail(ctx context.Context, r request, err error) error {
	e := &Error{Operation: r.action(), Target: r.target, Region: s.region, err: err}
	if c, ok := errors.AsType[*credentialError](err); ok {
		e.explainCredential(s.name, c)
		if ctx.Err() != nil {
			e.class = interruption(ctx)
		}
		return e
	}
	a, ok := errors.AsType[*attemptError](err)
	if !ok {
		a = &attemptError{err: err}
	}
	e.RequestID = a.requestID
	if api, ok := apiError(err); ok {
		e.Code = api.ErrorCode()
		e.explainAnswer(s.name, r, api, a)
	} else {
		e.explainSilence(s, a)
	}

	switch {
	case r.changes && a.mayHaveHappened():
		e.class = Unknown
	case ctx.Err() != nil:
		e.class = interruption(ctx)
	}
	return e
}

func interruption(ctx context.Context) Class {
	if errors.Is(ctx.Err(), context.Canceled) {
		return Interrupted
	}
	return Transient
}

// judge returns what a code means. A code that is not known is left to a
// person, unless AWS takes the blame for it.
func judge(code string, status int) verdict {
	if v, ok := verdicts[code]; ok {
		return v
	}
	switch {
	case status == 429:
		return throttled
	case status >= 500:
		return outOfOrder
	}
	return fixConfig
}

// explainAnswer fills in an error that AWS answered with.
func (e *Error) explainAnswer(credential string, r request, api smithy.APIError, a *attemptError) {
	v := judge(e.Code, a.status)
	e.class, e.waiting, e.kind = v.class, v.waiting, v.kind
	e.detail = e.Code
	if message := api.ErrorMessage(); message != "" && v.kind != ErrCredentials {
		// What AWS says about signatures repeats parts of the request.
		e.detail += ": " + strings.TrimRight(message, ". \n")
	}
	if v.kind == ErrCredentials && a.skew.Abs() > skewLimit {
		e.class, e.waiting, e.kind = Transient, "", ErrClock
	}
	switch e.kind {
	case ErrDenied:
		grant := r.grant
		if grant == "" {
			grant = grantText(r.action())
		}
		e.detail += fmt.Sprintf("; grant %s to credential %q", grant, credential)
	case ErrCredentials:
		e.detail += fmt.Sprintf("; AWS does not accept credential %q: put in a valid access key, or renew the session", credential)
	case ErrClock:
		e.detail += "; the clock of this machine is wrong"
		if a.skew != 0 {
			e.detail += fmt.Sprintf(" by %v", a.skew.Abs().Round(time.Second))
		}
		e.detail += ": set it, and let NTP keep it"
	case ErrPolicy:
		e.detail += "; mend the policy file: principals must exist, and byokd must keep kms:PutKeyPolicy"
	}
}

// cause is what is behind a transport error, without the wrappings that tell the
// endpoint again.
func cause(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}

// explainSilence fills in an error without an answer of AWS.
func (e *Error) explainSilence(s *session, a *attemptError) {
	e.class = Transient
	cause := cause(a.err)
	deadline := errors.Is(cause, context.DeadlineExceeded)
	if n, ok := errors.AsType[net.Error](cause); ok && n.Timeout() {
		deadline = true
	}
	unknownCA, isUnknownCA := errors.AsType[x509.UnknownAuthorityError](cause)
	invalid, isInvalid := errors.AsType[x509.CertificateInvalidError](cause)
	switch {
	case errors.Is(cause, context.Canceled):
		e.class = Interrupted
		e.detail = "given up: byokd is stopping"
	case a.status != 0 && (a.status < 200 || a.status > 299):
		e.detail = fmt.Sprintf("%s answered HTTP %d, and not as AWS does: look for a proxy or captive portal in between", a.endpoint, a.status)
	case a.status != 0:
		e.detail = fmt.Sprintf("the answer of %s cannot be read: %v", a.endpoint, cause)
	case a.sent && deadline:
		e.detail = fmt.Sprintf("no answer of %s within %v", a.endpoint, s.cloud.settings.Timeout)
	case a.sent:
		e.detail = fmt.Sprintf("the connection to %s broke before the answer: %v", a.endpoint, cause)
	case isUnknownCA:
		e.detail = fmt.Sprintf("%s shows a certificate of an unknown authority (%v): where a proxy opens TLS, name its CA in AWS_CA_BUNDLE", a.endpoint, unknownCA)
	case isInvalid && invalid.Reason == x509.Expired:
		e.detail = fmt.Sprintf("the certificate of %s is expired or not yet valid: check the clock of this machine", a.endpoint)
	case a.endpoint != "":
		e.kind = ErrUnreachable
		e.detail = fmt.Sprintf("%s cannot be reached: %v; check network, firewall and proxy", a.endpoint, cause)
	default:
		// The SDK refused to send it: an input that no retry will better.
		e.class = Permanent
		e.detail = cause.Error()
		if deadline {
			e.class = Transient
		}
	}
}

// A credentialError is a credential source that gave no credentials.
type credentialError struct {
	err error
}

func (e *credentialError) Error() string { return e.err.Error() }
func (e *credentialError) Unwrap() error { return e.err }

// Errors about credential sources that are said in our own words.
var (
	errProcessOutput = errors.New("credential_process printed something other than the credentials that AWS describes (JSON, Version 1)")
	errProcessSlow   = errors.New("credential_process took too long")
)

// explainCredential fills in that a call was not sent for lack of credentials.
// Where the source may only be out of order for now, the class is Transient:
// a helper that needs the network fails while the network is down.
func (e *Error) explainCredential(credential string, c *credentialError) {
	e.kind = ErrCredentials
	e.class, e.waiting = Operator, waitPermission
	e.detail = fmt.Sprintf("credential %q: ", credential)

	inner, isInner := errors.AsType[*Error](c.err)
	exit, isExit := errors.AsType[*exec.ExitError](c.err)
	api, isAPI := apiError(c.err)
	a, isAttempt := errors.AsType[*attemptError](c.err)
	noProfile, isNoProfile := errors.AsType[config.SharedConfigProfileNotExistError](c.err)
	switch {
	case isInner:
		e.class, e.waiting, e.detail = inner.class, inner.waiting, e.detail+inner.Error()
	case isAPI:
		if !isAttempt {
			a = &attemptError{}
		}
		operation := request{service: "sts", operation: "AssumeRole"}
		if o, ok := errors.AsType[*smithy.OperationError](c.err); ok {
			operation = request{service: strings.ToLower(o.ServiceID), operation: o.OperationName}
		}
		inner := &Error{Code: api.ErrorCode()}
		inner.explainAnswer(credential, operation, api, a)
		e.Code, e.RequestID = inner.Code, a.requestID
		e.class, e.waiting = inner.class, inner.waiting
		if inner.kind != nil {
			e.kind = inner.kind
		}
		e.detail += operation.action() + ": " + inner.detail
	case isExit:
		e.class, e.waiting = Transient, ""
		e.detail += fmt.Sprintf("credential_process: %v; its own message is in byokd's log", exit)
		if exit.ExitCode() == 126 || exit.ExitCode() == 127 { // sh: not executable, not found
			e.class, e.waiting = Operator, waitConfig
		}
	case errors.Is(c.err, errProcessOutput):
		e.detail += c.err.Error()
	case isNoProfile:
		e.waiting = waitConfig
		e.detail += fmt.Sprintf("the shared AWS configuration has no profile %q", noProfile.Profile)
	case isAttempt && a.status != 0:
		e.class, e.waiting = Transient, ""
		e.detail += fmt.Sprintf("%s answered HTTP %d, and not as AWS does: look for a proxy or captive portal in between", a.endpoint, a.status)
	case isAttempt && a.endpoint != "":
		e.class, e.waiting, e.kind = Transient, "", ErrUnreachable
		e.detail += fmt.Sprintf("%s cannot be reached: %v; check network, firewall and proxy", a.endpoint, cause(a.err))
	case errors.Is(c.err, errProcessSlow), errors.Is(c.err, context.DeadlineExceeded):
		e.class, e.waiting = Transient, ""
		e.detail += c.err.Error()
	default:
		e.detail += c.err.Error()
	}
}

// sanitizeProcess puts an error of credential_process in words that do not
// repeat what the process printed, which may be a secret key.
func sanitizeProcess(err error) error {
	if _, ok := errors.AsType[*processcreds.ProviderError](err); !ok {
		return err
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit
	}
	if e, ok := errors.AsType[*exec.Error](err); ok {
		return e
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, exec.ErrWaitDelay) {
		return errProcessSlow
	}
	return errProcessOutput
}
