package cloud_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	smithy "github.com/aws/smithy-go"

	"byokd/cloud"
)

// The calls that the tables below make: one that reads, one that must not be
// made twice, and one that changes something.
func describe(ctx context.Context, k *cloud.KMS) error {
	_, err := k.DescribeKey(ctx, keyID)
	return err
}

func create(ctx context.Context, k *cloud.KMS) error {
	_, err := k.CreateKey(ctx, "", "", map[string]string{"byokd:job": "1"})
	return err
}

func moveAlias(ctx context.Context, k *cloud.KMS) error {
	return k.UpdateAlias(ctx, "alias/payments", keyID)
}

type call = func(context.Context, *cloud.KMS) error

func TestErrors(t *testing.T) {
	reset := answer{hangUp: true}
	html := answer{status: 403, body: "<html>no</html>"}
	garbled := answer{body: `{"KeyMetadata":`}
	for name, test := range map[string]struct {
		call    call
		answer  answer
		class   cloud.Class
		kind    error // nil: none of them
		waiting string
		sent    int
		want    string // in the text
	}{
		// Out of order: reads are repeated, changes are not.
		"read, 500":          {describe, awsErrorStatus(500, "KMSInternalException"), cloud.Transient, nil, "", 3, "KMSInternalException"},
		"read, 503":          {describe, awsErrorStatus(503, "DependencyTimeoutException"), cloud.Transient, nil, "", 3, ""},
		"read, lost":         {describe, reset, cloud.Transient, nil, "", 3, "broke before the answer"},
		"create, 500":        {create, awsErrorStatus(500, "KMSInternalException"), cloud.Unknown, nil, "", 1, ""},
		"create, 503 of LB":  {create, answer{status: 503, body: "busy"}, cloud.Unknown, nil, "", 1, "HTTP 503"},
		"create, lost":       {create, reset, cloud.Unknown, nil, "", 1, "broke before the answer"},
		"create, garbled":    {create, garbled, cloud.Unknown, nil, "", 1, "cannot be read"},
		"move alias, 500":    {moveAlias, awsErrorStatus(500, "KMSInternalException"), cloud.Unknown, nil, "", 1, ""},
		"move alias, lost":   {moveAlias, reset, cloud.Unknown, nil, "", 1, ""},
		"read, unknown 5xx":  {describe, awsErrorStatus(500, "SomethingNew"), cloud.Transient, nil, "", 3, ""},
		"read, unknown code": {describe, awsError("SomethingNew"), cloud.Operator, nil, "config", 1, "SomethingNew"},

		// Throttled cannot have happened.
		"read, throttled":   {describe, awsError("ThrottlingException"), cloud.Transient, cloud.ErrThrottled, "", 3, ""},
		"create, throttled": {create, awsError("ThrottlingException"), cloud.Transient, cloud.ErrThrottled, "", 3, ""},
		"create, 429":       {create, awsErrorStatus(429, "SomethingNew"), cloud.Transient, cloud.ErrThrottled, "", 3, ""},

		// A limit is no throttle.
		"create, limit": {create, awsError("LimitExceededException"), cloud.Operator, nil, "config", 1, ""},

		"not found":      {describe, awsError("NotFoundException"), cloud.Transient, cloud.ErrNotFound, "", 1, "kms:DescribeKey for " + keyID + " in eu-central-1: NotFoundException: the message of NotFoundException (request request-1)"},
		"state":          {describe, awsError("KMSInvalidStateException"), cloud.Transient, cloud.ErrState, "", 1, ""},
		"disabled":       {describe, awsError("DisabledException"), cloud.Transient, cloud.ErrState, "", 1, ""},
		"conflict":       {moveAlias, awsError("AlreadyExistsException"), cloud.Transient, cloud.ErrConflict, "", 1, ""},
		"token expired":  {moveAlias, awsError("ExpiredImportTokenException"), cloud.Transient, cloud.ErrImportToken, "", 1, ""},
		"token invalid":  {moveAlias, awsError("InvalidImportTokenException"), cloud.Transient, cloud.ErrImportToken, "", 1, ""},
		"other key":      {describe, awsError("IncorrectKeyException"), cloud.Permanent, cloud.ErrIncorrectKey, "", 1, ""},
		"other material": {moveAlias, awsError("IncorrectKeyMaterialException"), cloud.Permanent, cloud.ErrIncorrectMaterial, "", 1, ""},
		"validation":     {moveAlias, awsError("ValidationException"), cloud.Permanent, nil, "", 1, ""},
		"wrong origin":   {moveAlias, awsError("UnsupportedOperationException"), cloud.Permanent, nil, "", 1, ""},
		"policy":         {create, awsError("MalformedPolicyDocumentException"), cloud.Operator, cloud.ErrPolicy, "policy", 1, "policy file"},
		"tags":           {create, awsError("TagException"), cloud.Operator, nil, "config", 1, ""},

		"denied":            {moveAlias, awsError("AccessDeniedException"), cloud.Operator, cloud.ErrDenied, "permission", 1, "grant kms:UpdateAlias on the alias"},
		"denied, by action": {describe, awsError("AccessDeniedException"), cloud.Operator, cloud.ErrDenied, "permission", 1, `grant kms:DescribeKey to credential "prod"`},
		"unknown key":       {describe, awsError("UnrecognizedClientException"), cloud.Operator, cloud.ErrCredentials, "permission", 3, "put in a valid access key"},
		"wrong secret":      {create, awsError("InvalidSignatureException"), cloud.Operator, cloud.ErrCredentials, "permission", 3, ""},
		"expired session":   {describe, awsError("ExpiredTokenException"), cloud.Operator, cloud.ErrCredentials, "permission", 3, "renew the session"},

		// Things that are not AWS.
		"proxy's 403":      {create, html, cloud.Transient, nil, "", 1, "answered HTTP 403, and not as AWS does"},
		"redirect 302":     {create, answer{status: 302, header: map[string]string{"Location": "/elsewhere"}}, cloud.Transient, nil, "", 1, "HTTP 302"},
		"redirect 307":     {describe, answer{status: 307, header: map[string]string{"Location": "/elsewhere"}}, cloud.Transient, nil, "", 1, "HTTP 307"},
		"error, no code":   {describe, answer{status: 400, body: `{"error":"x"}`}, cloud.Transient, nil, "", 1, "not as AWS does"},
		"prefixed code":    {describe, answer{status: 400, body: `{"__type":"com.amazonaws.kms#NotFoundException","Message":"m"}`}, cloud.Transient, cloud.ErrNotFound, "", 1, "NotFoundException: m"},
		"code in a header": {describe, answer{status: 400, header: map[string]string{"X-Amzn-ErrorType": "NotFoundException:http://x/"}}, cloud.Transient, cloud.ErrNotFound, "", 1, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, sequence(test.answer))
			err := test.call(t.Context(), openKMS(t, f.settings()))
			if err == nil {
				t.Fatal("no error")
			}
			if got := cloud.ClassOf(err); got != test.class {
				t.Errorf("class %q, want %q: %v", got, test.class, err)
			}
			if got := cloud.WaitingFor(err); got != test.waiting {
				t.Errorf("waiting for %q, want %q", got, test.waiting)
			}
			if got := len(f.requests()); got != test.sent {
				t.Errorf("sent %d times, want %d", got, test.sent)
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("%q does not say %q", err, test.want)
			}
			for _, kind := range kinds {
				if got, want := errors.Is(err, kind), kind == test.kind; got != want {
					t.Errorf("errors.Is(err, %q) = %v", kind, got)
				}
			}
		})
	}
}

var kinds = []error{
	cloud.ErrNotFound, cloud.ErrThrottled, cloud.ErrDenied, cloud.ErrConflict, cloud.ErrImportToken,
	cloud.ErrIncorrectMaterial, cloud.ErrIncorrectKey, cloud.ErrState, cloud.ErrPolicy, cloud.ErrCredentials, cloud.ErrClock, cloud.ErrUnreachable,
}

func TestErrorKeepsTheSDKs(t *testing.T) {
	f := newFake(t, sequence(awsError("NotFoundException")))
	err := describe(t.Context(), openKMS(t, f.settings()))
	api, ok := errors.AsType[smithy.APIError](err)
	if !ok || api.ErrorCode() != "NotFoundException" {
		t.Errorf("the SDK's error is not in the chain of %v", err)
	}
	e, ok := errors.AsType[*cloud.Error](err)
	if !ok || e.Operation != "kms:DescribeKey" || e.Target != keyID || e.Region != region || e.Code != "NotFoundException" || e.RequestID != "request-1" {
		t.Errorf("got %+v", e)
	}
}

func TestClassOfOthers(t *testing.T) {
	if got := cloud.ClassOf(nil); got != "" {
		t.Errorf("nil is %q", got)
	}
	if got := cloud.ClassOf(context.Canceled); got != cloud.Interrupted {
		t.Errorf("a cancelled context is %q", got)
	}
	if got := cloud.ClassOf(errors.New("x")); got != cloud.Unknown {
		t.Errorf("any error is %q", got)
	}
	if got := cloud.WaitingFor(errors.New("x")); got != "" {
		t.Errorf("waiting for %q", got)
	}
}

// A throttled CreateKey is made again, and so is one whose answer was that it
// was throttled at first.
func TestThrottledThenDone(t *testing.T) {
	f := newFake(t, sequence(awsError("ThrottlingException"), answer{body: `{"KeyMetadata":{"KeyId":"` + keyID + `","CreationDate":1798859045.678}}`}))
	key, err := openKMS(t, f.settings()).CreateKey(t.Context(), "", "", nil)
	if err != nil || key.ID != keyID || len(f.requests()) != 2 {
		t.Errorf("got %+v, %v after %d requests", key, err, len(f.requests()))
	}
	if want := time.UnixMilli(1798859045678); !key.CreatedAt.Equal(want) {
		t.Errorf("created at %v, want %v", key.CreatedAt, want)
	}
}

// unusedAddress is one that refuses connections.
func unusedAddress(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestUnreachable(t *testing.T) {
	address := unusedAddress(t)
	var observed []string
	s := settingsFor("http://" + address)
	s.Observer = func(operation, code string, _ time.Duration) { observed = append(observed, operation+" "+code) }
	k := openKMS(t, s)
	for name, call := range map[string]call{"read": describe, "create": create, "move alias": moveAlias} {
		observed = nil
		err := call(t.Context(), k)
		if got := cloud.ClassOf(err); got != cloud.Transient || !errors.Is(err, cloud.ErrUnreachable) {
			t.Errorf("%s: class %q: %v", name, got, err)
		}
		if want := "http://" + address + " cannot be reached: dial tcp " + address + ": connect: connection refused; check network, firewall and proxy"; err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%s: %q does not end in %q", name, err, want)
		}
		if len(observed) != 3 || !strings.HasSuffix(observed[0], " unreachable") {
			t.Errorf("%s: observed %q", name, observed)
		}
	}
}

// Past the time limit a change is Unknown, a read is not.
func TestTimeout(t *testing.T) {
	f := newFake(t, sequence(answer{wait: make(chan struct{})}))
	s := f.settings()
	s.Timeout = 50 * time.Millisecond
	k := openKMS(t, s)
	if err := create(t.Context(), k); cloud.ClassOf(err) != cloud.Unknown || !strings.Contains(err.Error(), "no answer of "+f.URL+" within 50ms") {
		t.Errorf("create: %q: %v", cloud.ClassOf(err), err)
	}
	if err := describe(t.Context(), k); cloud.ClassOf(err) != cloud.Transient {
		t.Errorf("describe: %q: %v", cloud.ClassOf(err), err)
	}
}

func TestCancelled(t *testing.T) {
	for name, test := range map[string]struct {
		call  call
		class cloud.Class
	}{
		"read in flight":   {describe, cloud.Interrupted},
		"change in flight": {create, cloud.Unknown},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			f := newFake(t, func(asked) answer {
				cancel()
				return answer{wait: make(chan struct{})}
			})
			if err := test.call(ctx, openKMS(t, f.settings())); cloud.ClassOf(err) != test.class {
				t.Errorf("got %q, want %q: %v", cloud.ClassOf(err), test.class, err)
			}
			if n := len(f.requests()); n != 1 {
				t.Errorf("%d requests", n)
			}
		})
	}
	t.Run("before it was sent", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		f := newFake(t, sequence(answer{}))
		if err := create(ctx, openKMS(t, f.settings())); cloud.ClassOf(err) != cloud.Interrupted || len(f.requests()) != 0 {
			t.Errorf("got %q after %d requests: %v", cloud.ClassOf(err), len(f.requests()), err)
		}
	})
	t.Run("while it waits to try again", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		f := newFake(t, sequence(awsError("ThrottlingException")))
		s := f.settings()
		s.Observer = func(string, string, time.Duration) { cancel() }
		if err := create(ctx, openKMS(t, s)); cloud.ClassOf(err) != cloud.Interrupted {
			t.Errorf("got %q: %v", cloud.ClassOf(err), err)
		}
	})
}

func TestClock(t *testing.T) {
	const skew = 3 * time.Hour
	t.Run("said plainly", func(t *testing.T) {
		bad := awsError("InvalidSignatureException")
		bad.header = httpDate(skew)
		f := newFake(t, sequence(bad))
		err := describe(t.Context(), openKMS(t, f.settings()))
		if !errors.Is(err, cloud.ErrClock) || errors.Is(err, cloud.ErrCredentials) || cloud.ClassOf(err) != cloud.Transient {
			t.Errorf("got %q: %v", cloud.ClassOf(err), err)
		}
		if err == nil || !strings.Contains(err.Error(), "the clock of this machine is wrong by 3h0m0s: set it") &&
			!strings.Contains(err.Error(), "the clock of this machine is wrong by 2h59m59s: set it") {
			t.Errorf("got %q", err)
		}
	})
	t.Run("corrected by the SDK", func(t *testing.T) {
		bad := awsError("InvalidSignatureException")
		bad.header = httpDate(skew)
		good := answer{body: `{"KeyMetadata":{"KeyId":"` + keyID + `"}}`, header: httpDate(skew)}
		f := newFake(t, sequence(bad, good))
		k := openKMS(t, f.settings())
		if err := create(t.Context(), k); err != nil {
			t.Error(err)
		}
		requests := f.requests()
		first, second := requests[0].header.Get("X-Amz-Date"), requests[1].header.Get("X-Amz-Date")
		a, _ := time.Parse("20060102T150405Z", first)
		b, _ := time.Parse("20060102T150405Z", second)
		if d := b.Sub(a); d < skew-time.Minute {
			t.Errorf("signed at %v and then at %v", a, b)
		}
	})
	t.Run("far off and yet denied", func(t *testing.T) {
		denied := awsError("AccessDeniedException")
		denied.header = httpDate(skew)
		f := newFake(t, sequence(denied))
		if err := describe(t.Context(), openKMS(t, f.settings())); !errors.Is(err, cloud.ErrDenied) {
			t.Errorf("got %v", err)
		}
	})
}

func TestNow(t *testing.T) {
	const ahead = 48 * time.Hour
	f := newFake(t, sequence(answer{header: httpDate(ahead)}))
	c := open(t, f.settings())
	k, err := c.KMS("prod", region)
	if err != nil {
		t.Fatal(err)
	}
	near := func(want time.Time) bool { return k.Now().Sub(want).Abs() < time.Hour }
	if !near(time.Now()) {
		t.Errorf("before the first answer it is %v", k.Now())
	}
	describe(t.Context(), k)
	if !near(time.Now().Add(ahead)) {
		t.Errorf("after an answer it is %v", k.Now())
	}
	// Kept when credentials change, and of no concern to another Region.
	c.SetCredentials(map[string]cloud.Credential{"prod": static()})
	if k, err = c.KMS("prod", region); err != nil || !near(time.Now().Add(ahead)) {
		t.Errorf("with new credentials: %v, %v", k.Now(), err)
	}
	if k, err = c.KMS("prod", "us-east-1"); err != nil || !near(time.Now()) {
		t.Errorf("in another Region: %v, %v", k.Now(), err)
	}
}

// Something in between that is not AWS has no say about the time.
func TestNowOfAProxy(t *testing.T) {
	f := newFake(t, sequence(answer{status: 403, body: "no", header: map[string]string{
		"Date": httpDate(48 * time.Hour)["Date"], "X-Amzn-Requestid": ""}}))
	k := openKMS(t, f.settings())
	describe(t.Context(), k)
	if d := time.Until(k.Now()).Abs(); d > time.Hour {
		t.Errorf("off by %v", d)
	}
}

func TestLogAndObserver(t *testing.T) {
	var log logBuffer
	var mu sync.Mutex
	var observed []string
	f := newFake(t, sequence(awsErrorStatus(500, "KMSInternalException"), answer{body: `{"KeyMetadata":{"KeyId":"` + keyID + `"}}`}, awsError("UnrecognizedClientException")))
	s := f.settings()
	s.Logger = slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	s.Observer = func(operation, code string, d time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		observed = append(observed, operation+" "+code)
	}
	k := openKMS(t, s)
	if err := describe(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	err := describe(t.Context(), k)
	want := []string{"kms:DescribeKey KMSInternalException", "kms:DescribeKey OK"}
	for range 3 {
		want = append(want, "kms:DescribeKey UnrecognizedClientException")
	}
	if !slices.Equal(observed, want) {
		t.Errorf("observed %q, want %q", observed, want)
	}
	for _, key := range []string{`"operation":"kms:DescribeKey"`, `"region":"eu-central-1"`, `"target":"` + keyID, `"code":"OK"`, `"request_id":"request-1"`, `"elapsed":`} {
		if !strings.Contains(log.String(), key) {
			t.Errorf("the log lacks %s", key)
		}
	}
	for _, secret := range []string{csvID, csvSecret} {
		if strings.Contains(log.String(), secret) || strings.Contains(err.Error(), secret) {
			t.Error("the access key is in the log or an error")
		}
	}
}

func TestTLSErrors(t *testing.T) {
	f := newTLSFake(t, sequence(answer{}))
	err := describe(t.Context(), openKMS(t, f.settings()))
	if cloud.ClassOf(err) != cloud.Transient || err == nil || !strings.Contains(err.Error(), "AWS_CA_BUNDLE") {
		t.Errorf("got %q: %v", cloud.ClassOf(err), err)
	}
	if err := create(t.Context(), openKMS(t, f.settings())); cloud.ClassOf(err) != cloud.Transient {
		t.Errorf("a failed handshake is %q: %v", cloud.ClassOf(err), err)
	}
	if n := len(f.requests()); n != 0 {
		t.Errorf("%d requests went through", n)
	}
}
