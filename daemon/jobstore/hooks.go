package jobstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// EveryEvent is the name of the hook that is run for every event.
const EveryEvent = "*"

// A Hook says how far the command on a detail-type, or on every event, has come.
// It has been run for all events up to its position, once at least.
type Hook struct {
	Name    string    // a detail-type, or EveryEvent
	RanAt   time.Time // zero: never
	EventID string    // of the last run
	Group   string    // of that event; "": the event is gone
	Error   string    // of the last run; "": it succeeded, or ForgiveHooks
	Waiting int       // events that it is still to be run for
}

// SetHooks makes these the hooks that there are. A new one begins with the
// events to come; one that is no longer named is forgotten.
func (s *Store) SetHooks(ctx context.Context, names []string) error {
	err := s.write(ctx, func(t *tx) error {
		rows, err := t.query(`SELECT name FROM hooks`)
		known, err := collect(rows, err, scanString)
		if err != nil {
			return err
		}
		for _, name := range known {
			if slices.Contains(names, name) {
				continue
			}
			if _, err := t.exec(`DELETE FROM hooks WHERE name = ?`, name); err != nil {
				return err
			}
		}
		for _, name := range names {
			if _, err := t.exec(`INSERT INTO hooks (name, position) SELECT ?, coalesce(max(id), 0) FROM outbox WHERE true
				ON CONFLICT DO NOTHING`, name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("set the hooks: %w", err)
	}
	return nil
}

// hookEvents is the condition on outbox rows o that the hook h has still to see.
const hookEvents = `o.id > h.position AND (h.name = '` + EveryEvent + `' OR o.detail_type = h.name)`

// HookEvent returns the next event that the hook is to be run for; ok is false
// where there is none.
func (s *Store) HookEvent(ctx context.Context, name string) (e OutboxEvent, ok bool, err error) {
	e, err = scanOutboxEvent(s.reader(ctx).queryRow(quick(ctx), `SELECT `+outboxColumns+` FROM outbox WHERE id =
		(SELECT min(o.id) FROM hooks h JOIN outbox o ON `+hookEvents+` WHERE h.name = ?)`, name))
	if err = notFound(err); errors.Is(err, ErrNotFound) {
		return OutboxEvent{}, false, nil
	} else if err != nil {
		return OutboxEvent{}, false, fmt.Errorf("read the next event of hook %q: %w", name, err)
	}
	return e, true, nil
}

// HookRan records that the hook was run for an event, and what came of it; the
// hook goes on with the event after it. A hook that is gone stays gone.
func (s *Store) HookRan(ctx context.Context, name, eventID, errText string) error {
	err := s.write(ctx, func(t *tx) error {
		_, err := t.exec(`UPDATE hooks SET position = coalesce((SELECT id FROM outbox WHERE event_id = ?1), position), ran_at = ?2, event_id = ?1, error = ?3
			WHERE name = ?4`, eventID, millis(t.now), errText, name)
		return err
	})
	if err != nil {
		return fmt.Errorf("record a run of hook %q: %w", name, err)
	}
	return nil
}

// ForgiveHooks forgets the errors of the last runs: a person has been at work.
func (s *Store) ForgiveHooks(ctx context.Context) error {
	err := s.write(ctx, func(t *tx) error {
		_, err := t.exec(`UPDATE hooks SET error = '' WHERE error <> ''`)
		return err
	})
	if err != nil {
		return fmt.Errorf("forgive the hooks: %w", err)
	}
	return nil
}

// FailedHooks returns the hooks whose last run has failed, by name, without Waiting.
func (s *Store) FailedHooks(ctx context.Context) ([]Hook, error) {
	rows, err := s.reader(ctx).query(quick(ctx), `SELECT h.name, h.ran_at, h.event_id, coalesce(e.grp, ''), h.error
		FROM hooks h LEFT JOIN outbox e ON e.event_id = h.event_id WHERE h.error <> '' ORDER BY h.name`)
	hooks, err := collect(rows, err, func(row scanner) (h Hook, err error) {
		err = row.Scan(&h.Name, scanTime(&h.RanAt), &h.EventID, &h.Group, &h.Error)
		return h, err
	})
	if err != nil {
		return nil, fmt.Errorf("read the hooks that failed: %w", err)
	}
	return hooks, nil
}

// Hooks returns the hooks by name.
func (s *Store) Hooks(ctx context.Context) ([]Hook, error) {
	rows, err := s.reader(ctx).query(ctx, `SELECT h.name, h.ran_at, h.event_id, coalesce(e.grp, ''), h.error,
		(SELECT count(*) FROM outbox o WHERE `+hookEvents+`)
		FROM hooks h LEFT JOIN outbox e ON e.event_id = h.event_id ORDER BY h.name`)
	hooks, err := collect(rows, err, func(row scanner) (h Hook, err error) {
		err = row.Scan(&h.Name, scanTime(&h.RanAt), &h.EventID, &h.Group, &h.Error, &h.Waiting)
		return h, err
	})
	if err != nil {
		return nil, fmt.Errorf("read the hooks: %w", err)
	}
	return hooks, nil
}
