package jobstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
)

// An Event is a fact for EventBridge. On writing it gets the group's next
// sequence number, merged into its detail.
type Event struct {
	ID         string // UUIDv7, stable over resends
	Group      string
	DetailType string
	Detail     []byte   // JSON object
	Resources  []string // ARNs
	OccurredAt time.Time
	JobID      string // "": none
	Region     string // the group's
	Account    string
	Credential string // the group's
}

// The states of an event.
const (
	Pending = "pending" // to be sent
	Sent    = "sent"    // accepted by EventBridge
	Parked  = "parked"  // refused for good; the group's later ones go on
	Local   = "local"   // for hooks alone: written while events were not to be sent
)

// EventStates are the states of an event.
var EventStates = []string{Pending, Sent, Parked, Local}

// An OutboxEvent is an Event with its fate.
type OutboxEvent struct {
	Event
	Sequence    int64 // within the group, from 1
	State       string
	Attempt     int       // that failed
	NextAttempt time.Time // zero: at once
	SentAt      time.Time
	AWSEventID  string // as EventBridge answered
	Error       string // of the latest attempt that failed
}

// Emit writes events that belong to no job.
func (s *Store) Emit(ctx context.Context, events ...Event) error {
	err := s.write(ctx, func(t *tx) error {
		for _, e := range events {
			if err := t.ensureGroup(e.Group); err != nil {
				return err
			}
			if err := t.insertEvent(e); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("emit: %w", err)
	}
	return nil
}

// insertEvent writes an event under the group's next sequence number. One whose
// ID is there already is left as it is.
func (t *tx) insertEvent(e Event) error {
	var known int
	if err := t.row(`SELECT count(*) FROM outbox WHERE event_id = ?`, []any{e.ID}, &known); err != nil || known > 0 {
		return err
	}
	var sequence int64
	_, err := t.exec(`UPDATE groups SET sequence = sequence + 1 WHERE name = ?`, e.Group)
	if err == nil {
		err = t.row(`SELECT sequence FROM groups WHERE name = ?`, []any{e.Group}, &sequence)
	}
	if err != nil {
		return fmt.Errorf("event %s: group %q: %w", e.DetailType, e.Group, err)
	}
	var detail map[string]json.RawMessage
	err = json.Unmarshal(e.Detail, &detail)
	if err == nil && detail == nil {
		err = errors.New("null")
	}
	if err != nil {
		return fmt.Errorf("event %s: detail is no JSON object: %w", e.DetailType, err)
	}
	detail["sequence"] = fmt.Append(nil, sequence)
	merged, err := json.Marshal(detail)
	if err != nil {
		return fmt.Errorf("event %s: %w", e.DetailType, err)
	}
	if e.OccurredAt.IsZero() {
		e.OccurredAt = t.now
	}
	state := Pending
	if t.local {
		state = Local
	}
	_, err = t.exec(`INSERT INTO outbox (event_id, grp, sequence, detail_type, detail, resources, occurred_at, job_id, region, account, credential, state)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		e.ID, e.Group, sequence, e.DetailType, string(merged), jsonText(e.Resources), millis(e.OccurredAt), e.JobID, e.Region, e.Account, e.Credential, state)
	if err != nil {
		return fmt.Errorf("event %s: %w", e.DetailType, err)
	}
	return nil
}

const outboxColumns = `event_id, grp, detail_type, detail, resources, occurred_at, job_id, region, account, credential,
	sequence, state, attempt, next_attempt, sent_at, aws_event_id, error`

func scanOutboxEvent(row scanner) (e OutboxEvent, err error) {
	err = row.Scan(&e.ID, &e.Group, &e.DetailType, &e.Detail, jsonScanner{&e.Resources}, scanTime(&e.OccurredAt), &e.JobID,
		&e.Region, &e.Account, &e.Credential, &e.Sequence, &e.State, &e.Attempt, scanTime(&e.NextAttempt),
		scanTime(&e.SentAt), &e.AWSEventID, &e.Error)
	return e, err
}

// PendingEvents returns up to limit events that may be sent now, each group's
// in its order. None of a group is returned that comes after one which waits
// for its next attempt. A sender that fails with one of a group must leave the
// group's later ones.
func (s *Store) PendingEvents(ctx context.Context, now time.Time, limit int) ([]OutboxEvent, error) {
	rows, err := s.reader(ctx).query(quick(ctx), `SELECT `+outboxColumns+` FROM outbox o WHERE state = 'pending' AND NOT EXISTS
		(SELECT 1 FROM outbox e WHERE e.grp = o.grp AND e.state = 'pending' AND e.next_attempt > ? AND e.id <= o.id)
		ORDER BY id LIMIT ?`, millis(now), limit)
	events, err := collect(rows, err, scanOutboxEvent)
	if err != nil {
		return nil, fmt.Errorf("read pending events: %w", err)
	}
	return events, nil
}

// setEvent updates an event by one of the updates, the first that is about the state
// it is in.
func (s *Store) setEvent(ctx context.Context, what, id string, updates ...func(*tx) (int, error)) error {
	err := s.write(ctx, func(t *tx) error {
		for _, update := range updates {
			if n, err := update(t); err != nil || n > 0 {
				return err
			}
		}
		return ErrNotFound
	})
	if err != nil {
		return fmt.Errorf("%s event %s: %w", what, id, err)
	}
	return nil
}

// Sent records that EventBridge accepted the event, and under which ID of its own.
func (s *Store) Sent(ctx context.Context, id, awsEventID string, at time.Time) error {
	const sent = `UPDATE outbox SET state = 'sent', next_attempt = NULL, sent_at = ?, aws_event_id = ?, error = '' WHERE event_id = ? AND state = `
	return s.setEvent(ctx, "mark as sent", id, func(t *tx) (int, error) {
		return t.exec(sent+`'pending'`, millis(at), awsEventID, id)
	}, func(t *tx) (int, error) {
		return t.change(sent+`'parked'`, millis(at), awsEventID, id)
	})
}

// Failed records why a pending event was not sent, and when it is tried next.
func (s *Store) Failed(ctx context.Context, id string, next time.Time, errText string) error {
	return s.setEvent(ctx, "put off", id, func(t *tx) (int, error) {
		return t.exec(`UPDATE outbox SET attempt = attempt + 1, next_attempt = ?, error = ? WHERE event_id = ? AND state = 'pending'`, millis(next), errText, id)
	})
}

// Park takes a pending event out of the way that will never be accepted.
func (s *Store) Park(ctx context.Context, id, errText string) error {
	return s.setEvent(ctx, "park", id, func(t *tx) (int, error) {
		return t.change(`UPDATE outbox SET state = 'parked', attempt = attempt + 1, next_attempt = NULL, error = ? WHERE event_id = ? AND state = 'pending'`, errText, id)
	})
}

// Unpark makes a parked event pending again, in its old place.
func (s *Store) Unpark(ctx context.Context, id string) error {
	return s.setEvent(ctx, "unpark", id, func(t *tx) (int, error) {
		return t.change(`UPDATE outbox SET state = 'pending' WHERE event_id = ? AND state = 'parked'`, id)
	})
}

// WakeEvents makes all pending events due, for when what kept them from being
// sent has changed, and returns how many were waiting.
func (s *Store) WakeEvents(ctx context.Context) (n int, err error) {
	err = s.write(ctx, func(t *tx) error {
		n, err = t.exec(`UPDATE outbox SET next_attempt = NULL WHERE state = 'pending' AND next_attempt IS NOT NULL`)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("wake events: %w", err)
	}
	return n, nil
}

// OutboxStats are the outbox at a glance.
type OutboxStats struct {
	Pending int
	Parked  int
	Oldest  time.Time // when the oldest pending event occurred; zero: none is pending
	Next    time.Time // the earliest next attempt; zero: none waits for one
}

// OutboxStats counts what has not been sent.
func (s *Store) OutboxStats(ctx context.Context) (st OutboxStats, err error) {
	err = s.reader(ctx).queryRow(quick(ctx), `SELECT count(*), min(occurred_at), min(next_attempt), (SELECT count(*) FROM outbox WHERE state = 'parked')
		FROM outbox WHERE state = 'pending'`).Scan(&st.Pending, scanTime(&st.Oldest), scanTime(&st.Next), &st.Parked)
	if err != nil {
		return OutboxStats{}, fmt.Errorf("count events: %w", err)
	}
	return st, nil
}

// ParkedEvents returns the parked events of the groups named, or of all, newest
// first.
func (s *Store) ParkedEvents(ctx context.Context, groups ...string) ([]OutboxEvent, error) {
	where, args := among("grp", groups)
	rows, err := s.reader(ctx).query(quick(ctx), `SELECT `+outboxColumns+` FROM outbox INDEXED BY outbox_parked WHERE state = 'parked' AND `+where+` ORDER BY id DESC`, args...)
	events, err := collect(rows, err, scanOutboxEvent)
	if err != nil {
		return nil, fmt.Errorf("list parked events: %w", err)
	}
	return events, nil
}

// An EventFilter chooses events; empty fields choose all.
type EventFilter struct {
	Group string
	State string
	Limit int // 0: none
}

// Events returns events, newest first.
func (s *Store) Events(ctx context.Context, f EventFilter) ([]OutboxEvent, error) {
	query, args := `SELECT `+outboxColumns+` FROM outbox WHERE true`, []any{}
	if f.Group != "" {
		query, args = query+" AND grp = ?", append(args, f.Group)
	}
	switch {
	case slices.Contains(EventStates, f.State):
		query += " AND state = '" + f.State + "'" // not as a parameter, which hides the index of the state
	case f.State != "":
		query, args = query+" AND state = ?", append(args, f.State)
	}
	rows, err := s.reader(ctx).query(ctx, query+` ORDER BY id DESC LIMIT ?`, append(args, limit(f.Limit))...)
	events, err := collect(rows, err, scanOutboxEvent)
	if err != nil {
		return nil, fmt.Errorf("list events: %w", err)
	}
	return events, nil
}
