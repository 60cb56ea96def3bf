// Replay runs interactions that were recorded from AWS against an endpoint,
// over HTTP with AWS's own protocol, and compares what comes with what AWS
// answered.
//
//	replay [--endpoint URL] FILE...
//
// The recordings are files of JSON, each a list of cases. A case is a list of
// steps: an operation, its request, and the answer or error that was recorded.
// Values that cannot be the same again stand in a recording as placeholders,
// such as <key-id:1> or datetime; a numbered placeholder is the same value
// wherever it stands in its case.
//
// It prints what became of each case and a total. The exit status is 1 if a
// case failed, and 2 after a mistake in the command line.
package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// An endpoint is what cases are replayed against.
type endpoint struct {
	url         string // of KMS
	events      string // URL of EventBridge; empty: the same
	region      string
	account     string // of the credentials
	own         bool   // it is this program's simulator, to which deviations apply
	credentials aws.Credentials
	client      *http.Client
}

// An outcome is how a case ended.
type outcome string

// The outcomes of a case.
const (
	passed  outcome = "passed"
	failed  outcome = "failed"
	skipped outcome = "skipped"

	// deviates is a case that fails for a reason that is known and written
	// down in deviations.
	deviates outcome = "deviates"
)

// A result is what became of a case.
type result struct {
	name    string
	outcome outcome
	steps   int    // that were run
	why     string // empty for a case that passed, unless it is listed to deviate
}

// A file is a file of recordings.
type file struct {
	Cases []recordedCase `json:"cases"`
}

// A recordedCase is one case. Where it has no steps, it is itself the only one.
type recordedCase struct {
	Test      string              `json:"test"`
	Group     string              `json:"group"`
	Materials map[string]material `json:"materials"`
	Steps     []step              `json:"steps"`
	Replay    *bool               `json:"replay"` // false: do not
	Note      string              `json:"note"`
	step

	unknown []string // what it expects that this program cannot check
}

type step struct {
	N        int    `json:"n"`
	Op       string `json:"op"`
	Request  any    `json:"request"`
	Save     string `json:"save"`
	Unwrap   string `json:"unwrap"`
	Response any    `json:"recorded_response"`
	Error    *struct {
		Code    string  `json:"code"`
		Message *string `json:"message"`
		HTTP    int     `json:"http"`
	} `json:"recorded_error"`
	AssertedError *struct {
		Code string `json:"code"`
	} `json:"asserted_error"`
	AssertedFields map[string]any `json:"asserted_fields"`
	AssertedEqual  [][]any        `json:"asserted_equal"`
	Poll           *poll          `json:"poll_until"`
}

// poll is a condition to wait for.
type poll struct {
	Field    string  `json:"field"`
	NotEqual any     `json:"not_equal"`
	Equal    any     `json:"equal"`
	Timeout  float64 `json:"timeout_s"`
}

// replay replays the cases of the files in order. It calls report after each,
// and goes on after a failure. An error is about a file or ctx, not about a
// case.
func replay(ctx context.Context, target endpoint, files []string, report func(result)) error {
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			return fmt.Errorf("read recorded cases: %w", err)
		}
		var f file
		if err := decode(b, &f); err != nil {
			return fmt.Errorf("read recorded cases: %s: %w", name, err)
		}
		var raw struct {
			Cases []map[string]any `json:"cases"`
		}
		if err := decode(b, &raw); err != nil {
			return fmt.Errorf("read recorded cases: %s: %w", name, err)
		}
		for i := range f.Cases {
			f.Cases[i].unknown = unknown(raw.Cases[i])
		}
		if len(f.Cases) == 0 {
			return fmt.Errorf("read recorded cases: %s has none", name)
		}
		for _, c := range f.Cases {
			r := c.run(ctx, target)
			if err := ctx.Err(); err != nil {
				return err
			}
			report(r)
		}
	}
	return nil
}

// unknown returns the members by which a case or its steps expect something that
// this program does not check. A case that has some must not pass.
func unknown(c map[string]any) (names []string) {
	for name, v := range c {
		switch name {
		case "recorded_response", "recorded_error", "asserted_error", "asserted_fields", "asserted_equal", "poll_until":
			continue
		case "steps":
			steps, _ := v.([]any)
			for _, s := range steps {
				if s, ok := s.(map[string]any); ok {
					names = append(names, unknown(s)...)
				}
			}
		}
		if strings.HasPrefix(name, "recorded_") || strings.HasPrefix(name, "asserted_") || strings.HasPrefix(name, "poll_") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// decode decodes JSON with its numbers as they are written.
func decode(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	return d.Decode(v)
}

// errSkip is the reason why a case is not replayed.
type errSkip struct{ reason string }

func (e errSkip) Error() string { return e.reason }

func (c *recordedCase) run(ctx context.Context, target endpoint) result {
	r := result{name: c.Test, outcome: passed}
	if len(c.Steps) == 0 {
		c.Steps = []step{c.step}
		r.name += " " + c.Op
	}
	if c.Replay != nil && !*c.Replay {
		r.outcome, r.why = skipped, "the recording says not to"
		return r
	}
	if len(c.unknown) > 0 {
		r.outcome, r.why = skipped, "what it expects is not known here: "+strings.Join(c.unknown, ", ")
		return r
	}
	p := newPlayer(target, c.Materials)
	defer p.cleanUp(ctx)
	why, known := deviations[r.name]
	known = known && target.own
	for i, s := range c.Steps {
		err := p.play(ctx, s)
		if err == nil {
			r.steps++
			continue
		}
		r.outcome, r.why = failed, fmt.Sprintf("step %d, %s: %v", max(s.N, i+1), s.Op, err)
		if skip, ok := errors.AsType[errSkip](err); ok {
			r.outcome, r.why = skipped, skip.reason
		} else if known {
			r.outcome, r.why = deviates, why+" ("+r.why+")"
		}
		return r
	}
	if known {
		r.why = "though it is listed to deviate: " + why // a file may hold less of the case than was recorded
	}
	return r
}

// services are the services of which operations can be replayed, by operation.
// What is not named here is KMS's.
var services = map[string]string{
	"PutEvents": "AWSEvents", "DescribeEventBus": "AWSEvents", "CreateEventBus": "AWSEvents", "DeleteEventBus": "AWSEvents",
	"ListEventBuses": "AWSEvents", "PutRule": "AWSEvents", "DescribeRule": "AWSEvents", "DeleteRule": "AWSEvents",
	"ListRules": "AWSEvents", "PutTargets": "AWSEvents", "RemoveTargets": "AWSEvents", "ListTargetsByRule": "AWSEvents",
	"ListRuleNamesByTarget": "AWSEvents", "TestEventPattern": "AWSEvents", "EnableRule": "AWSEvents", "DisableRule": "AWSEvents",
}

// An answer is what came.
type answer struct {
	status        int
	code, message string         // of an error
	body          map[string]any // of a success
}

// send sends one request.
func (t endpoint) send(ctx context.Context, operation string, request any) (answer, error) {
	if request == nil {
		request = map[string]any{}
	}
	body, err := json.Marshal(request)
	if err != nil {
		return answer{}, err
	}
	prefix, service, url := "TrentService", "kms", t.url
	if services[operation] != "" {
		prefix, service, url = services[operation], "events", cmp.Or(t.events, t.url)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimRight(url, "/")+"/", bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	r.Header.Set("Content-Type", "application/x-amz-json-1.1")
	r.Header.Set("X-Amz-Target", prefix+"."+operation)
	sum := sha256.Sum256(body)
	if err := v4.NewSigner().SignHTTP(ctx, t.credentials, r, hex.EncodeToString(sum[:]), service, t.region, time.Now()); err != nil {
		return answer{}, fmt.Errorf("sign: %w", err)
	}
	response, err := t.client.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		return answer{}, err
	}
	a := answer{status: response.StatusCode}
	if len(content) > 0 {
		if err := decode(content, &a.body); err != nil {
			return a, fmt.Errorf("the answer, status %d, is not JSON: %.100q", a.status, content)
		}
	}
	if a.status != http.StatusOK {
		a.code, _ = a.body["__type"].(string)
		a.code = a.code[strings.LastIndex(a.code, "#")+1:]
		for _, member := range []string{"message", "Message"} {
			if s, ok := a.body[member].(string); ok {
				a.message = s
			}
		}
	}
	return a, nil
}
