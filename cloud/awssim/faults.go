package awssim

import (
	"context"
	"net/http"
	"time"
)

// A Request is one request as the simulator understood it.
type Request struct {
	N         int       // running number, from 1
	Service   string    // kms, events, sts, tagging or servicequotas
	Operation string    // e.g. ImportKeyMaterial
	Region    string    // of the credential scope
	Account   string    // of the access key
	KeyID     string    // KeyId, TargetKeyId or, for lack of both, empty
	AccessKey string    // access key ID
	Time      time.Time // by the simulator's clock
	Body      []byte    // as sent; not to be changed

	// Code is the error code of the answer, empty for success or while there
	// is no answer yet. A dropped or hanging request has Code "(dropped)".
	Code string
}

// A Fault is something that goes wrong with a request. Delay, if any, comes
// first; then one of Drop, Hang and Code, if any.
type Fault struct {
	Delay   time.Duration // of real time
	Drop    bool          // close the connection without an answer
	Hang    bool          // give no answer until the client goes away
	Code    string        // answer with this error code
	Message string        // empty: the usual message of Code, where there is one
	Status  int           // HTTP status; 0: the usual one of Code
}

// dropped is the Code of a request that got no answer.
const dropped = "(dropped)"

// inject does what the fault says, and returns the error to answer with if it
// is of that kind. It does not return from a fault that leaves the request
// unanswered.
func (c *call) inject(ctx context.Context, f *Fault) error {
	if f == nil {
		return nil
	}
	if f.Delay > 0 {
		t := time.NewTimer(f.Delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			c.abort()
		}
	}
	switch {
	case f.Drop:
		c.abort()
	case f.Hang:
		<-ctx.Done()
		c.abort()
	case f.Code != "":
		e := &apiError{status: f.Status, code: f.Code, message: f.Message}
		if e.message == "" {
			e.message = c.usualMessage(f.Code)
		}
		return e
	}
	return nil
}

// abort closes the connection without an answer, which net/http does for a
// handler that panics with this value.
func (c *call) abort() {
	c.sim.note(c.request.N, dropped)
	panic(http.ErrAbortHandler)
}

// usualMessage returns the text that AWS puts to the codes that any operation
// may give.
func (c *call) usualMessage(code string) string {
	switch code {
	case "ThrottlingException", "ThrottledException", "TooManyRequestsException":
		if c.service.name == "kms" {
			return "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls."
		}
		return "Rate exceeded"
	case "AccessDeniedException", "AccessDenied":
		resource := c.request.KeyID
		if resource == "" {
			resource = "*"
		}
		return c.denied(resource)
	}
	return ""
}

// denied returns AWS's message for a principal that may not do this operation.
func (c *call) denied(resource string) string {
	return c.deniedAction(c.service.prefix+":"+c.request.Operation, resource)
}

func (c *call) deniedAction(action, resource string) string {
	return "User: " + c.caller.arn + " is not authorized to perform: " + action + " on resource: " + resource
}

// maxRequests and maxEvents bound what a simulator remembers.
const (
	maxRequests = 200_000
	maxEvents   = 200_000
)

// A requestLog keeps the requests that arrived last.
type requestLog struct {
	count   int // requests ever
	entries []Request
}

// record gives the request its number and keeps it.
func (s *Sim) record(r *Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log.count++
	r.N = s.log.count
	if len(s.log.entries) == maxRequests {
		s.log.entries = append([]Request(nil), s.log.entries[maxRequests/2:]...)
	}
	s.log.entries = append(s.log.entries, *r)
}

// note adds the code of the answer to a request's record.
func (s *Sim) note(n int, code string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := n - 1 - (s.log.count - len(s.log.entries)); i >= 0 && i < len(s.log.entries) {
		s.log.entries[i].Code = code
	}
}

// Requests returns the requests that reached an operation, in the order in
// which they arrived: those of unknown operations or with bad signatures are
// not among them. The oldest are forgotten when there are very many.
func (s *Sim) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Request(nil), s.log.entries...)
}

// Count returns how many of [Sim.Requests] were for the operation, whatever
// came of them.
func (s *Sim) Count(operation string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, r := range s.log.entries {
		if r.Operation == operation {
			n++
		}
	}
	return n
}
