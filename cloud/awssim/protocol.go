package awssim

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"
)

// maxBody bounds a request's body. PutEvents takes 1 MB of entries; in JSON,
// with escapes, that is a few times as much.
const maxBody = 8 << 20

// An apiError is an error answer of a service.
type apiError struct {
	status  int // 0: the usual status of the code
	code    string
	message string
}

func (e *apiError) Error() string { return e.code + ": " + e.message }

// fail returns an error answer. The message is formatted only if there are
// arguments.
func fail(code, format string, args ...any) error {
	if len(args) > 0 {
		format = fmt.Sprintf(format, args...)
	}
	return &apiError{code: code, message: format}
}

// usualStatus returns the HTTP status of an error code where the answer does
// not say otherwise. On the JSON services all client errors are 400, missing
// permissions included; the query protocol of STS says 403 to those.
func usualStatus(code string, query bool) int {
	switch code {
	case "KMSInternalException", "DependencyTimeoutException", "KeyUnavailableException",
		"InternalException", "InternalServiceException", "InternalFailure", "InternalError", "ServiceException":
		return http.StatusInternalServerError
	case "ServiceUnavailableException", "ServiceUnavailable":
		return http.StatusServiceUnavailable
	case "AccessDenied", "InvalidClientTokenId", "SignatureDoesNotMatch", "MissingAuthenticationToken", "ExpiredToken":
		if query {
			return http.StatusForbidden
		}
	case "RequestEntityTooLargeException":
		return http.StatusRequestEntityTooLarge
	}
	return http.StatusBadRequest
}

// A service is one AWS service.
type service struct {
	name       string // in the credential scope
	prefix     string // of its IAM actions
	target     string // X-Amz-Target without the operation; empty: query protocol
	operations map[string]operation
}

func (s *service) query() bool { return s.target == "" }

// An operation decodes its input and runs. The input is decoded and prepared
// without the simulator's lock; run holds it.
type operation struct {
	input func() any
	run   func(c *call, input any) (any, error)
}

// op makes an operation of a function over its input type.
func op[In any](run func(*call, *In) (any, error)) operation {
	return operation{
		input: func() any { return new(In) },
		run:   func(c *call, input any) (any, error) { return run(c, input.(*In)) },
	}
}

// A preparer is an input with work that is done before the lock is taken.
type preparer interface{ prepare(*Sim) error }

// fields is an output.
type fields map[string]any

// services are all services, by name. STS is the one with the query protocol.
var services = []*service{
	{name: "kms", prefix: "kms", target: "TrentService", operations: kmsOperations},
	{name: "events", prefix: "events", target: "AWSEvents", operations: eventsOperations},
	{name: "tagging", prefix: "tag", target: "ResourceGroupsTaggingAPI_20170126", operations: taggingOperations},
	{name: "servicequotas", prefix: "servicequotas", target: "ServiceQuotasV20190624", operations: serviceQuotasOperations},
	{name: "sts", prefix: "sts", operations: stsOperations},
}

// HasOperation reports whether the simulator has an operation of that name, of
// whatever service.
func HasOperation(name string) bool {
	return slices.ContainsFunc(services, func(s *service) bool { _, ok := s.operations[name]; return ok })
}

// A call is a request on its way through the simulator.
type call struct {
	sim       *Sim
	id        string // request ID
	service   *service
	operation operation
	request   Request
	caller    identity

	source, userAgent string // the client's address, and what it calls itself

	// For the time of operation.run:
	now   time.Time
	realm *realm
}

// ServeHTTP answers one request. POST / is for the AWS services, paths below
// /_awssim/ and GET / are the simulator's own.
func (s *Sim) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/" || r.Method == http.MethodGet || r.Method == http.MethodHead {
		s.servePage(w, r)
		return
	}
	c := &call{sim: s, id: newUUID(), source: r.RemoteAddr, userAgent: r.UserAgent()}
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		c.source = host
	}
	w.Header().Set("Date", s.Now().UTC().Format(http.TimeFormat))
	w.Header().Set("X-Amzn-RequestId", c.id)
	out, err := c.serve(r)
	if c.request.N > 0 {
		code := ""
		if e, ok := errors.AsType[*apiError](err); ok {
			code = e.code
		}
		s.note(c.request.N, code)
		s.options.Log.Info("request", "n", c.request.N, "service", c.service.name, "operation", c.request.Operation,
			"region", c.request.Region, "account", c.request.Account, "key_id", c.request.KeyID, "code", code)
	}
	if c.service != nil && c.service.query() {
		c.answerXML(w, out, err)
		return
	}
	answerJSON(w, out, err)
}

func (c *call) serve(r *http.Request) (any, error) {
	body, tooLong, err := readAll(r.Body, maxBody)
	if err != nil {
		return nil, fail("SerializationException", "the body could not be read")
	}
	if err := c.route(r, body); err != nil {
		return nil, err
	}
	if tooLong {
		return nil, fail("RequestEntityTooLargeException", "")
	}
	if err := c.authenticate(r, body); err != nil {
		return nil, err
	}
	known := false
	c.operation, known = c.service.operations[c.request.Operation]
	if !known {
		if c.service.query() {
			return nil, fail("InvalidAction", "Could not find operation %s for version %s", c.request.Operation, stsVersion)
		}
		return nil, fail("UnknownOperationException", "")
	}
	c.request.Service = c.service.name
	c.request.Body = body
	input, inputErr := c.decode(body)
	c.request.Time = c.sim.Now()
	c.sim.record(&c.request)

	if latency := c.sim.options.Latency; latency > 0 {
		if err := c.inject(r.Context(), &Fault{Delay: latency}); err != nil {
			return nil, err
		}
	}
	if before := c.sim.options.Before; before != nil {
		if err := c.inject(r.Context(), before(c.request)); err != nil {
			return nil, err
		}
	}
	out, err := c.apply(input, inputErr)
	if err == nil && changes(c.request.Operation) {
		if err := c.sim.save(); err != nil {
			c.sim.options.Log.Error("the state could not be saved", "error", err)
			return nil, err
		}
	}
	if after := c.sim.options.After; after != nil {
		request := c.request
		if e, ok := errors.AsType[*apiError](err); ok {
			request.Code = e.code
		}
		if err := c.inject(r.Context(), after(request)); err != nil {
			return nil, err
		}
	}
	return out, err
}

// route finds service and operation.
func (c *call) route(r *http.Request, body []byte) error {
	target := r.Header.Get("X-Amz-Target")
	if target == "" && strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
		for _, s := range services {
			if s.query() {
				c.service = s
				c.request.Operation = formValue(body, "Action")
				return nil
			}
		}
	}
	prefix, name, _ := strings.Cut(target, ".")
	for _, s := range services {
		if s.target == prefix && !s.query() {
			c.service, c.request.Operation = s, name
			return nil
		}
	}
	return fail("UnknownOperationException", "")
}

// decode reads the input of the operation, and what the request log wants to
// know of it.
func (c *call) decode(body []byte) (any, error) {
	input := c.operation.input()
	if c.service.query() {
		return input, decodeForm(body, input)
	}
	var about struct{ KeyId, TargetKeyId string }
	_ = json.Unmarshal(body, &about) // as far as it can be read: the real decoding follows
	c.request.KeyID = about.KeyId
	if c.request.KeyID == "" {
		c.request.KeyID = about.TargetKeyId
	}
	return input, decodeJSON(body, input)
}

// apply validates the input and lets the operation have its effect.
func (c *call) apply(input any, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	if err := validate(input); err != nil {
		if e, ok := errors.AsType[*apiError](err); ok && c.service.query() {
			e.code = "ValidationError"
		}
		return nil, err
	}
	if p, ok := input.(preparer); ok {
		if err := p.prepare(c.sim); err != nil {
			return nil, err
		}
	}
	s := c.sim
	s.mu.Lock()
	defer s.mu.Unlock()
	c.now = s.now()
	c.realm = s.realm(place{c.request.Account, c.request.Region}, c.now)
	if err := c.throttle(input); err != nil {
		return nil, err
	}
	if err := c.authorize(input); err != nil {
		return nil, err
	}
	return c.operation.run(c, input)
}

// decodeJSON reads a JSON object into the input. No body means no members.
func decodeJSON(body []byte, input any) error {
	if len(bytes.TrimSpace(body)) == 0 {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(body))
	if bytes.TrimSpace(body)[0] != '{' {
		return fail("SerializationException", "Start of structure or map found where not expected.")
	}
	if err := d.Decode(input); err != nil {
		if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			return fail("SerializationException", "class %s can not be converted to %s", e.Value, e.Type.Name())
		}
		return fail("SerializationException", "")
	}
	if _, err := d.Token(); err != io.EOF {
		return fail("SerializationException", "")
	}
	return nil
}

// answerJSON answers in awsJson1.1. A nil output is that of an operation
// without one: an empty body.
func answerJSON(w http.ResponseWriter, out any, err error) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	status := http.StatusOK
	if err != nil {
		e := asAPIError(err)
		status = e.status
		if status == 0 {
			status = usualStatus(e.code, false)
		}
		out = map[string]string{"__type": e.code, "message": e.message}
	}
	if out == nil {
		w.Header().Set("Content-Length", "0")
		w.WriteHeader(status)
		return
	}
	body, err := json.Marshal(out)
	if err != nil {
		// Every output is made of strings, numbers and times in range.
		panic(err)
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // a client that went away needs no answer
}

// answerXML answers in the query protocol.
func (c *call) answerXML(w http.ResponseWriter, out any, err error) {
	w.Header().Set("Content-Type", "text/xml")
	status := http.StatusOK
	if err != nil {
		e := asAPIError(err)
		status = e.status
		if status == 0 {
			status = usualStatus(e.code, true)
		}
		kind := "Sender"
		if status >= 500 {
			kind = "Receiver"
		}
		out = &xmlError{Space: stsSpace, Type: kind, Code: e.code, Message: e.message, RequestID: c.id}
	}
	body, err := xml.Marshal(out)
	if err != nil {
		panic(err) // as in answerJSON
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

func asAPIError(err error) *apiError {
	if e, ok := errors.AsType[*apiError](err); ok {
		return e
	}
	return &apiError{code: "InternalFailure", message: err.Error()}
}

// xmlError is the error of the query protocol.
type xmlError struct {
	XMLName   xml.Name `xml:"ErrorResponse"`
	Space     string   `xml:"xmlns,attr"`
	Type      string   `xml:"Error>Type"`
	Code      string   `xml:"Error>Code"`
	Message   string   `xml:"Error>Message"`
	RequestID string   `xml:"RequestId"`
}

// A timestamp is a time on the wire: epoch seconds, with a fraction.
type timestamp struct{ time.Time }

// MarshalJSON writes epoch seconds, to the millisecond.
func (t timestamp) MarshalJSON() ([]byte, error) {
	return fmt.Appendf(nil, "%.3f", float64(t.UnixMilli())/1000), nil
}

// maxEpoch is the last second of the year 9999.
const maxEpoch = 253402300799

// UnmarshalJSON reads epoch seconds.
func (t *timestamp) UnmarshalJSON(b []byte) error {
	var seconds float64
	if err := json.Unmarshal(b, &seconds); err != nil {
		return err
	}
	if math.Abs(seconds) > maxEpoch {
		return errors.New("time out of range")
	}
	t.Time = time.UnixMilli(int64(math.Round(seconds * 1000)))
	return nil
}

// deref returns what p points to, or the zero value.
func deref[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}
