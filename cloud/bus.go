package cloud

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge/types"
)

// Limits of one PutEvents request. Current documents say 1 MB for the size,
// older ones 256 KB, which holds in every Region.
//
// Source: EventBridge User Guide, "Sending events with PutEvents".
const (
	maxEntries   = 10
	maxEntrySize = 256 * 1024 // bytes; the sum must stay below
)

// An Event is one entry of PutEvents.
type Event struct {
	DetailType string
	Source     string
	Detail     []byte // a JSON object
	Resources  []string
	Time       time.Time
}

// size is what EventBridge counts for an entry.
func (e Event) size() int {
	n := 14 + len(e.Source) + len(e.DetailType) + len(e.Detail)
	for _, r := range e.Resources {
		n += len(r)
	}
	return n
}

// A Result is what became of one Event. The class of Err says what to do with
// it: Transient, send it again; Operator, send it again once a person has acted;
// Permanent, it is poisoned and will never be accepted.
type Result struct {
	EventID string // EventBridge's; "": not accepted
	Err     error
}

// A Bus is an EventBridge event bus.
type Bus struct {
	*session
	client *eventbridge.Client
	name   string // or ARN
}

// Put sends events, in as many requests as their number and size ask for. There
// are as many results as events, in the same order. The error is nil unless a
// request as a whole failed: then the events that were not sent for it have that
// same error.
//
// An event may arrive twice. EventBridge accepts events for a bus that does not
// exist and drops them: see [Bus.Check].
func (b *Bus) Put(ctx context.Context, events []Event) ([]Result, error) {
	results := make([]Result, len(events))
	for start := 0; start < len(events); {
		size := events[start].size()
		end := start + 1
		for end < len(events) && end-start < maxEntries && size+events[end].size() < maxEntrySize {
			size += events[end].size()
			end++
		}
		if err := b.put(ctx, events[start:end], results[start:end]); err != nil {
			for i := start; i < len(events); i++ {
				if results[i].EventID == "" && results[i].Err == nil {
					results[i].Err = err
				}
			}
			return results, err
		}
		start = end
	}
	return results, nil
}

// put makes one request.
func (b *Bus) put(ctx context.Context, events []Event, results []Result) error {
	if len(events) == 1 && events[0].size() >= maxEntrySize {
		results[0].Err = b.refused(hopeless, "", fmt.Sprintf("the event has %d bytes, and EventBridge takes fewer than %d", events[0].size(), maxEntrySize))
		return nil
	}
	in := &eventbridge.PutEventsInput{}
	for _, e := range events {
		in.Entries = append(in.Entries, types.PutEventsRequestEntry{
			EventBusName: &b.name,
			DetailType:   aws.String(e.DetailType),
			Source:       aws.String(e.Source),
			Detail:       aws.String(string(e.Detail)),
			Resources:    e.Resources,
			Time:         aws.Time(e.Time),
		})
	}
	r := request{service: ServiceEvents, operation: "PutEvents", target: b.name}
	out, err := send(ctx, b.session, r, func(ctx context.Context) (*eventbridge.PutEventsOutput, error) {
		return b.client.PutEvents(ctx, in)
	})
	if err != nil {
		if ClassOf(err) != Permanent {
			return err
		}
		if len(events) == 1 {
			results[0].Err = err
			return nil
		}
		// One of them spoils the request for all: find it.
		for i := range events {
			if err := b.put(ctx, events[i:i+1], results[i:i+1]); err != nil {
				return err
			}
		}
		return nil
	}
	for i := range results {
		if i >= len(out.Entries) {
			results[i].Err = b.refused(outOfOrder, "", "EventBridge did not say what became of the event")
			continue
		}
		entry := out.Entries[i]
		results[i].EventID = aws.ToString(entry.EventId)
		if code := aws.ToString(entry.ErrorCode); code != "" || results[i].EventID == "" {
			results[i] = Result{Err: b.entryError(code, aws.ToString(entry.ErrorMessage))}
		}
	}
	return nil
}

// entryError makes the error of one entry.
func (b *Bus) entryError(code, message string) error {
	v, known := verdicts[code]
	if !known {
		v = outOfOrder // sending again does no harm
	}
	detail := code
	if message != "" {
		detail += ": " + message
	}
	if v.kind == ErrDenied {
		detail += fmt.Sprintf("; grant events:PutEvents to credential %q, in the policy of another account's bus too", b.session.name)
	}
	return b.refused(v, code, detail)
}

func (b *Bus) refused(v verdict, code, detail string) error {
	return &Error{
		Operation: "events:PutEvents", Target: b.name, Region: b.region, Code: code,
		class: v.class, waiting: v.waiting, kind: v.kind, detail: detail,
	}
}

// Check looks whether the bus exists: ErrNotFound where it does not, ErrDenied
// where the credential may not look.
func (b *Bus) Check(ctx context.Context) error {
	r := request{service: ServiceEvents, operation: "DescribeEventBus", target: b.name}
	_, err := send(ctx, b.session, r, func(ctx context.Context) (*eventbridge.DescribeEventBusOutput, error) {
		return b.client.DescribeEventBus(ctx, &eventbridge.DescribeEventBusInput{Name: &b.name})
	})
	if e, ok := errors.AsType[*Error](err); ok && errors.Is(err, ErrNotFound) {
		e.detail += "; EventBridge would drop the events: make the bus, or correct [events] bus"
	}
	return err
}
