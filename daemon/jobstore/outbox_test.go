package jobstore_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"byokd/daemon/jobstore"

	"github.com/google/go-cmp/cmp"
)

var eventCount atomic.Int64

// event returns a new event of the group.
func event(group, jobID string) jobstore.Event {
	id := fmt.Sprintf("event-%03d", eventCount.Add(1))
	return jobstore.Event{ID: id, Group: group, DetailType: "KMS Alias Moved", Detail: []byte(`{"event_id":"` + id + `"}`), JobID: jobID}
}

// checkSequences checks that each group's events are numbered from 1 without a
// gap, in the order in which they are sent, and that the detail says so.
func checkSequences(t interface {
	Helper()
	Errorf(string, ...any)
	Fatal(...any)
}, s *jobstore.Store) {
	t.Helper()
	events, err := s.Events(context.Background(), jobstore.EventFilter{})
	if err != nil {
		t.Fatal(err)
	}
	last := map[string]int64{}
	for _, e := range slices.Backward(events) {
		last[e.Group]++
		var detail struct{ Sequence int64 }
		if err := json.Unmarshal(e.Detail, &detail); err != nil {
			t.Fatal(err)
		}
		if e.Sequence != last[e.Group] || detail.Sequence != e.Sequence {
			t.Errorf("event %s of %s has sequence %d, in its detail %d, want %d", e.ID, e.Group, e.Sequence, detail.Sequence, last[e.Group])
		}
	}
	groups, err := s.Groups(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range groups {
		if g.Sequence != last[g.Name] {
			t.Errorf("group %s is at sequence %d, its last event at %d", g.Name, g.Sequence, last[g.Name])
		}
	}
}

func TestEmit(t *testing.T) {
	s, c := newStore(t)
	e := jobstore.Event{
		ID: "e1", Group: "payments", DetailType: "KMS Alias Moved",
		Detail:    []byte(`{"alias":"alias/a<b","previous_key_id":null,"sequence":77,"nested":{"n":1.50}}`),
		Resources: []string{"arn:1", "arn:2"}, OccurredAt: epoch.Add(-time.Second), JobID: "j", Region: "eu-central-1", Account: "1", Credential: "prod",
	}
	must(t, s.Emit(t.Context(), e, jobstore.Event{ID: "e2", Group: "payments", Detail: []byte(` { } `)}))
	must(t, s.Emit(t.Context(), e)) // the same one: no second
	events, err := s.Events(t.Context(), jobstore.EventFilter{})
	must(t, err)
	e.Detail = []byte(`{"alias":"alias/a\u003cb","nested":{"n":1.50},"previous_key_id":null,"sequence":1}`)
	want := []jobstore.OutboxEvent{
		{Event: jobstore.Event{ID: "e2", Group: "payments", Detail: []byte(`{"sequence":2}`), OccurredAt: c.now}, Sequence: 2, State: "pending"},
		{Event: e, Sequence: 1, State: "pending"},
	}
	if diff := cmp.Diff(want, events); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{``, `null`, `[]`, `{"a":1`, `7`} {
		if err := s.Emit(t.Context(), jobstore.Event{ID: "bad", Group: "payments", Detail: []byte(bad)}); err == nil {
			t.Errorf("detail %q was accepted", bad)
		}
	}
	if err := s.Emit(t.Context(), jobstore.Event{Group: "payments", Detail: []byte(`{}`)}); err == nil {
		t.Error("an event without ID was accepted")
	}
	checkSequences(t, s) // what was refused took no number
}

func TestSequencesUnderConcurrency(t *testing.T) {
	s, _ := newStore(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 25 {
				if err := s.Emit(t.Context(), event(fmt.Sprintf("g%d", i%3), "")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	equal(t, "number of events", query[int](t, s, "SELECT count(*) FROM outbox"), 200)
	checkSequences(t, s)
}

func TestOutboxOrder(t *testing.T) {
	s, c := newStore(t)
	pending := func(limit int) (ids []string) {
		t.Helper()
		events, err := s.PendingEvents(t.Context(), c.now, limit)
		must(t, err)
		for _, e := range events {
			ids = append(ids, e.ID)
		}
		return ids
	}
	check := func(want ...string) {
		t.Helper()
		if got := pending(100); !slices.Equal(got, want) {
			t.Errorf("pending are %v, want %v", got, want)
		}
	}
	check()
	for _, e := range []struct{ id, group string }{{"a1", "a"}, {"b1", "b"}, {"a2", "a"}, {"a3", "a"}, {"b2", "b"}} {
		must(t, s.Emit(t.Context(), jobstore.Event{ID: e.id, Group: e.group, Detail: []byte(`{}`)}))
	}
	check("a1", "b1", "a2", "a3", "b2")
	if got := pending(2); !slices.Equal(got, []string{"a1", "b1"}) {
		t.Errorf("two pending are %v", got)
	}

	// One that failed holds up its group, not the other.
	must(t, s.Failed(t.Context(), "a1", c.now.Add(time.Minute), "throttled"))
	check("b1", "b2")
	st, err := s.OutboxStats(t.Context())
	must(t, err)
	if want := (jobstore.OutboxStats{Pending: 5, Oldest: epoch, Next: epoch.Add(time.Minute)}); st != want {
		t.Errorf("stats are %+v, want %+v", st, want)
	}
	must(t, s.Sent(t.Context(), "b1", "aws-1", c.now))
	check("b2")
	c.advance(time.Minute)
	check("a1", "a2", "a3", "b2")
	must(t, s.Sent(t.Context(), "a1", "aws-2", c.now))

	// In the middle: what comes before may go.
	must(t, s.Failed(t.Context(), "a3", c.now.Add(time.Minute), "throttled"))
	check("a2", "b2")
	n, err := s.WakeEvents(t.Context())
	must(t, err)
	equal(t, "woken", n, 1)
	check("a2", "a3", "b2")

	// A parked one is out of the way, and comes back to its place.
	must(t, s.Failed(t.Context(), "a2", c.now.Add(time.Hour), "denied"))
	check("b2")
	must(t, s.Park(t.Context(), "a2", "MalformedDetail"))
	check("a3", "b2")
	st, err = s.OutboxStats(t.Context())
	must(t, err)
	equal(t, "parked", st.Parked, 1)
	parked, err := s.Events(t.Context(), jobstore.EventFilter{Group: "a", State: jobstore.Parked, Limit: 5})
	must(t, err)
	if len(parked) != 1 || parked[0].ID != "a2" || parked[0].Error != "MalformedDetail" || parked[0].Attempt != 2 {
		t.Errorf("parked are %+v", parked)
	}
	mustBe(t, s.Park(t.Context(), "a2", ""), jobstore.ErrNotFound)
	mustBe(t, s.Failed(t.Context(), "a2", c.now, ""), jobstore.ErrNotFound)
	must(t, s.Unpark(t.Context(), "a2"))
	mustBe(t, s.Unpark(t.Context(), "a2"), jobstore.ErrNotFound)
	check("a2", "a3", "b2")

	must(t, s.Sent(t.Context(), "a2", "aws-3", c.now))
	mustBe(t, s.Sent(t.Context(), "a2", "aws-4", c.now), jobstore.ErrNotFound)
	mustBe(t, s.Sent(t.Context(), "nobody", "", c.now), jobstore.ErrNotFound)
	sent, err := s.Events(t.Context(), jobstore.EventFilter{State: jobstore.Sent, Limit: 1})
	must(t, err)
	if len(sent) != 1 || sent[0].AWSEventID != "aws-3" || !sent[0].SentAt.Equal(c.now) || sent[0].Error != "" {
		t.Errorf("sent are %+v", sent)
	}
}
