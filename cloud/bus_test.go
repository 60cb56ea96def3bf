package cloud_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"byokd/cloud"
)

func openBus(t *testing.T, s cloud.Settings, name string) *cloud.Bus {
	t.Helper()
	b, err := open(t, s).Bus("prod", region, name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func event(detail string) cloud.Event {
	return cloud.Event{DetailType: "KMS Alias Moved", Source: "byokd", Detail: []byte(detail), Resources: []string{keyARN}, Time: time.Unix(1800000000, 0)}
}

// accept answers PutEvents with an ID per entry, its detail.
func accept(q asked) answer {
	var entries []string
	for _, e := range q.body["Entries"].([]any) {
		entries = append(entries, fmt.Sprintf(`{"EventId":%q}`, "id of "+e.(map[string]any)["Detail"].(string)))
	}
	return answer{body: `{"FailedEntryCount":0,"Entries":[` + strings.Join(entries, ",") + `]}`}
}

func TestPut(t *testing.T) {
	f := newFake(t, accept)
	got, err := openBus(t, f.settings(), "default").Put(t.Context(), []cloud.Event{event(`{"a":1}`)})
	if err != nil || len(got) != 1 || got[0].Err != nil || got[0].EventID != `id of {"a":1}` {
		t.Errorf("got %+v, %v", got, err)
	}
	want := map[string]any{"Entries": []any{map[string]any{
		"EventBusName": "default", "Source": "byokd", "DetailType": "KMS Alias Moved", "Detail": `{"a":1}`,
		"Resources": []any{keyARN}, "Time": 1800000000.0,
	}}}
	if d := cmp.Diff(want, f.requests()[0].body); d != "" {
		t.Error(d)
	}
	if got, err := openBus(t, f.settings(), "default").Put(t.Context(), nil); len(got) != 0 || err != nil {
		t.Errorf("nothing: %v, %v", got, err)
	}
}

// An ARN's Region counts.
func TestBusByARN(t *testing.T) {
	var r recorder
	c := open(t, cloud.Settings{Proxy: r.proxy, Credentials: map[string]cloud.Credential{"prod": static()}})
	b, err := c.Bus("prod", region, "arn:aws:events:us-west-2:444455556666:event-bus/audit")
	if err != nil {
		t.Fatal(err)
	}
	b.Check(t.Context())
	if want := []string{"https://events.us-west-2.amazonaws.com"}; !slices.Equal(r.seen(), want) {
		t.Errorf("went to %q", r.seen())
	}
}

func TestPutSplits(t *testing.T) {
	f := newFake(t, accept)
	b := openBus(t, f.settings(), "default")
	var events []cloud.Event
	for i := range 23 {
		events = append(events, event(fmt.Sprint(i)))
	}
	big := strings.Repeat("x", 100*1024)
	for i := range 5 {
		events = append(events, event(fmt.Sprint(big, i)))
	}
	got, err := b.Put(t.Context(), events)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range got {
		if r.Err != nil || r.EventID != "id of "+string(events[i].Detail) {
			t.Errorf("event %d: %v", i, r.Err)
		}
	}
	var sizes []int
	for _, q := range f.requests() {
		sizes = append(sizes, len(q.body["Entries"].([]any)))
	}
	if want := []int{10, 10, 5, 2, 1}; !slices.Equal(sizes, want) {
		t.Errorf("requests of %v entries, want %v", sizes, want)
	}

	// One that is too large is never sent, and does not stop the others.
	f.mu.Lock()
	f.seen = nil
	f.mu.Unlock()
	got, err = b.Put(t.Context(), []cloud.Event{event("1"), event(strings.Repeat("x", 256*1024)), event("2")})
	if err != nil || got[0].Err != nil || got[2].Err != nil {
		t.Errorf("got %+v, %v", got, err)
	}
	if cloud.ClassOf(got[1].Err) != cloud.Permanent || !strings.Contains(got[1].Err.Error(), "fewer than 262144") {
		t.Errorf("too large: %v", got[1].Err)
	}
}

func TestPutEntryErrors(t *testing.T) {
	codes := []struct {
		code    string
		class   cloud.Class
		waiting string
		kind    error
	}{
		{"InternalFailure", cloud.Transient, "", nil},
		{"ThrottlingException", cloud.Transient, "", cloud.ErrThrottled},
		{"AccessDeniedException", cloud.Operator, "permission", cloud.ErrDenied},
		{"InvalidAccountIdException", cloud.Operator, "config", nil},
		{"MalformedDetail", cloud.Permanent, "", nil},
		{"InvalidArgument", cloud.Permanent, "", nil},
		{"NotAuthorizedForSourceException", cloud.Permanent, "", nil},
		{"NotAuthorizedForDetailTypeException", cloud.Permanent, "", nil},
		{"SomethingNew", cloud.Transient, "", nil},
	}
	entries := []string{`{"EventId":"good"}`}
	for _, c := range codes {
		entries = append(entries, fmt.Sprintf(`{"ErrorCode":%q,"ErrorMessage":"the message"}`, c.code))
	}
	f := newFake(t, sequence(answer{body: `{"FailedEntryCount":9,"Entries":[` + strings.Join(entries, ",") + `]}`}))
	got, err := openBus(t, f.settings(), "default").Put(t.Context(), slices.Repeat([]cloud.Event{event("{}")}, 10))
	if err != nil || got[0].EventID != "good" || got[0].Err != nil {
		t.Fatalf("got %+v, %v", got, err)
	}
	for i, c := range codes {
		r := got[i+1]
		if r.EventID != "" || cloud.ClassOf(r.Err) != c.class || cloud.WaitingFor(r.Err) != c.waiting || c.kind != nil && !errors.Is(r.Err, c.kind) {
			t.Errorf("%s: class %q, waiting for %q: %v", c.code, cloud.ClassOf(r.Err), cloud.WaitingFor(r.Err), r.Err)
		}
		if r.Err != nil && !strings.Contains(r.Err.Error(), "events:PutEvents for default in eu-central-1: "+c.code+": the message") {
			t.Errorf("%s: %v", c.code, r.Err)
		}
	}
	if n := len(f.requests()); n != 1 {
		t.Errorf("%d requests", n)
	}
}

func TestPutMissingEntries(t *testing.T) {
	f := newFake(t, sequence(answer{body: `{"Entries":[{"EventId":"1"},{}]}`}))
	got, err := openBus(t, f.settings(), "default").Put(t.Context(), slices.Repeat([]cloud.Event{event("{}")}, 3))
	if err != nil || got[0].Err != nil {
		t.Fatalf("got %+v, %v", got, err)
	}
	for _, r := range got[1:] {
		if cloud.ClassOf(r.Err) != cloud.Transient {
			t.Errorf("class %q: %v", cloud.ClassOf(r.Err), r.Err)
		}
	}
}

// A request that fails as a whole stops there; what was accepted before stays.
func TestPutRequestFails(t *testing.T) {
	n := 0
	f := newFake(t, func(q asked) answer {
		if n++; n > 1 {
			return awsError("AccessDeniedException")
		}
		return accept(q)
	})
	got, err := openBus(t, f.settings(), "default").Put(t.Context(), slices.Repeat([]cloud.Event{event("{}")}, 25))
	if !errors.Is(err, cloud.ErrDenied) || len(f.requests()) != 2 {
		t.Fatalf("%d requests, %v", len(f.requests()), err)
	}
	for i, r := range got {
		if i < 10 && (r.Err != nil || r.EventID == "") || i >= 10 && r.Err != err {
			t.Errorf("event %d: %+v", i, r)
		}
	}
}

// Sending an event twice is allowed, losing one is not.
func TestPutIsRepeated(t *testing.T) {
	n := 0
	f := newFake(t, func(q asked) answer {
		if n++; n == 1 {
			return answer{hangUp: true}
		}
		return accept(q)
	})
	got, err := openBus(t, f.settings(), "default").Put(t.Context(), []cloud.Event{event("{}")})
	if err != nil || got[0].Err != nil || len(f.requests()) != 2 {
		t.Errorf("%d requests, %+v, %v", len(f.requests()), got, err)
	}
}

// One event that spoils the request is found.
func TestPutPoisoned(t *testing.T) {
	f := newFake(t, func(q asked) answer {
		for _, e := range q.body["Entries"].([]any) {
			if e.(map[string]any)["Detail"] == "poison" {
				return awsError("ValidationException")
			}
		}
		return accept(q)
	})
	got, err := openBus(t, f.settings(), "default").Put(t.Context(), []cloud.Event{event("1"), event("poison"), event("3")})
	if err != nil || got[0].EventID != "id of 1" || got[2].EventID != "id of 3" {
		t.Errorf("got %+v, %v", got, err)
	}
	if cloud.ClassOf(got[1].Err) != cloud.Permanent {
		t.Errorf("the poison: %v", got[1].Err)
	}
}

func TestBusCheck(t *testing.T) {
	for name, test := range map[string]struct {
		answer  answer
		kind    error
		class   cloud.Class
		waiting string
		want    string
	}{
		"there":   {answer{body: `{"Name":"audit"}`}, nil, "", "", ""},
		"missing": {awsError("ResourceNotFoundException"), cloud.ErrNotFound, cloud.Operator, "config", "make the bus, or correct [events] bus"},
		"denied":  {awsError("AccessDeniedException"), cloud.ErrDenied, cloud.Operator, "permission", "grant events:DescribeEventBus"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, sequence(test.answer))
			err := openBus(t, f.settings(), "audit").Check(t.Context())
			if !errors.Is(err, test.kind) || cloud.ClassOf(err) != test.class || cloud.WaitingFor(err) != test.waiting {
				t.Errorf("class %q: %v", cloud.ClassOf(err), err)
			}
			if err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("%q does not say %q", err, test.want)
			}
			if got := f.requests()[0].body["Name"]; got != "audit" {
				t.Errorf("asked for bus %v", got)
			}
		})
	}
}
