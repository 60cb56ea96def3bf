package jobstore

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// A Group is what byokd knows of a key group beside its generations. In times,
// zero is none; they are kept in milliseconds.
type Group struct {
	Name          string
	Definition    []byte // the last good one, JSON; nil: there never was one
	Digest        string // of Definition
	AppliedDigest string // of the definition that AWS was last made to agree with
	HSM           string // name of the [hsm.NAME] table
	Account       string // AWS account; "": not known yet
	FirstSeen     time.Time
	EnabledAt     time.Time // the schedule's ticks count from here; zero: it is off
	RemovedAt     time.Time // zero: the file is there
	LastTick      time.Time // nominal time of the latest tick dealt with
	Sequence      int64     // of the latest event

	OverdueReported time.Time // the due time that ReportOverdue last told of
	InvalidReported string    // the problems that ReportInvalid last told of

	OldAliases []string // that the definition named before, and that may still be there

	DriftChecked time.Time // when it was last compared with AWS
}

const groupColumns = `name, definition, digest, applied_digest, hsm, account, first_seen, enabled_at, removed_at, last_tick, sequence,
	overdue_reported, invalid_reported, old_aliases, drift_checked`

func scanGroup(row scanner) (g Group, err error) {
	err = row.Scan(&g.Name, &g.Definition, &g.Digest, &g.AppliedDigest, &g.HSM, &g.Account, scanTime(&g.FirstSeen), scanTime(&g.EnabledAt),
		scanTime(&g.RemovedAt), scanTime(&g.LastTick), &g.Sequence, scanTime(&g.OverdueReported), &g.InvalidReported, jsonScanner{&g.OldAliases},
		scanTime(&g.DriftChecked))
	return g, err
}

// Groups returns all groups that were ever known, by name.
func (s *Store) Groups(ctx context.Context) ([]Group, error) {
	rows, err := s.reader(ctx).query(ctx, `SELECT `+groupColumns+` FROM groups ORDER BY name`)
	groups, err := collect(rows, err, scanGroup)
	if err != nil {
		return nil, fmt.Errorf("read groups: %w", err)
	}
	return groups, nil
}

// Group returns one group, or ErrNotFound.
func (s *Store) Group(ctx context.Context, name string) (Group, error) {
	g, err := scanGroup(s.reader(ctx).queryRow(quick(ctx), `SELECT `+groupColumns+` FROM groups WHERE name = ?`, name))
	if err != nil {
		return Group{}, fmt.Errorf("read group %s: %w", name, notFound(err))
	}
	return g, nil
}

// ensureGroup makes the group known.
func (t *tx) ensureGroup(name string) error {
	_, err := t.exec(`INSERT INTO groups (name) VALUES (?) ON CONFLICT DO NOTHING`, name)
	return err
}

// knowsGroup returns ErrNotFound where the foreign keys would say less.
func (t *tx) knowsGroup(name string) error {
	var one int
	if err := t.row(`SELECT 1 FROM groups WHERE name = ?`, []any{name}, &one); err != nil {
		return fmt.Errorf("group %q: %w", name, err)
	}
	return nil
}

// setGroup updates a group that is known.
func (s *Store) setGroup(ctx context.Context, what, name, set string, args ...any) error {
	err := s.write(ctx, func(t *tx) error {
		n, err := t.exec(`UPDATE groups SET `+set+` WHERE name = ?`, append(args, name)...)
		if err == nil && n == 0 {
			err = ErrNotFound
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("set %s of group %s: %w", what, name, err)
	}
	return nil
}

// SetDefinition stores a group's last good definition with its digest and the
// name of its HSM. The first one makes the group seen. It says nothing of
// whether the file is there: see SetRemoved. The audit entry is written with it.
func (s *Store) SetDefinition(ctx context.Context, name string, definition []byte, digest, hsm string, audit ...AuditEntry) error {
	err := s.write(ctx, func(t *tx) error {
		_, err := t.exec(`INSERT INTO groups (name, definition, digest, hsm, first_seen) VALUES (?, ?, ?, ?, ?)
			ON CONFLICT (name) DO UPDATE SET definition = excluded.definition, digest = excluded.digest, hsm = excluded.hsm,
				first_seen = coalesce(groups.first_seen, excluded.first_seen)`,
			name, text(definition), digest, hsm, millis(t.now))
		if err != nil {
			return err
		}
		return t.insertAudit(name, "", audit)
	})
	if err != nil {
		return fmt.Errorf("store the definition of group %s: %w", name, err)
	}
	return nil
}

// SetApplied records the digest of the definition that AWS agrees with.
func (s *Store) SetApplied(ctx context.Context, name, digest string) error {
	return s.setGroup(ctx, "applied digest", name, "applied_digest = ?", digest)
}

// SetEnabled records since when the group's schedule is on; zero: it is off.
func (s *Store) SetEnabled(ctx context.Context, name string, at time.Time) error {
	return s.setGroup(ctx, "schedule", name, "enabled_at = ?", millis(at))
}

// SetRemoved records when the group's file went; zero: it is there.
func (s *Store) SetRemoved(ctx context.Context, name string, at time.Time) error {
	return s.setGroup(ctx, "removal", name, "removed_at = ?", millis(at))
}

// SetOldAliases stores the aliases that the group's definition named before.
func (s *Store) SetOldAliases(ctx context.Context, name string, aliases []string) error {
	return s.setGroup(ctx, "old aliases", name, "old_aliases = ?", jsonText(aliases))
}

// SetAccount records the AWS account behind the group's credential.
func (s *Store) SetAccount(ctx context.Context, name, account string) error {
	return s.setGroup(ctx, "account", name, "account = ?", account)
}

// SetLastTick records that the ticks up to at are dealt with without a job, or,
// when the clock was wrong, that later ones are not. Enqueue moves it forward
// by itself.
func (s *Store) SetLastTick(ctx context.Context, name string, at time.Time) error {
	return s.setGroup(ctx, "last tick", name, "last_tick = ?", millis(at))
}

// ReportOverdue emits e unless the group was reported overdue for that due time
// before, and returns whether it did.
func (s *Store) ReportOverdue(ctx context.Context, due time.Time, e Event) (reported bool, err error) {
	return s.report(ctx, `UPDATE groups SET overdue_reported = ?1 WHERE name = ?2 AND overdue_reported IS DISTINCT FROM ?1`, millis(due), e)
}

// ReportInvalid emits e unless it was this set of problems, named by a digest,
// that was last reported of the group, and returns whether it did.
func (s *Store) ReportInvalid(ctx context.Context, problems string, e Event) (reported bool, err error) {
	return s.report(ctx, `UPDATE groups SET invalid_reported = ?1 WHERE name = ?2 AND invalid_reported <> ?1`, problems, e)
}

// ClearInvalid forgets the problems last reported: the group is good again, so
// that the same ones would be news.
func (s *Store) ClearInvalid(ctx context.Context, name string) error {
	return s.setGroup(ctx, "problems", name, "invalid_reported = ''")
}

func (s *Store) report(ctx context.Context, update string, value any, e Event) (reported bool, err error) {
	err = s.write(ctx, func(t *tx) error {
		reported = false
		if err := t.ensureGroup(e.Group); err != nil {
			return err
		}
		n, err := t.exec(update, value, e.Group)
		if err != nil || n == 0 {
			return err
		}
		reported = true
		return t.insertEvent(e)
	})
	if err != nil {
		return false, fmt.Errorf("report %s of %s: %w", e.DetailType, e.Group, err)
	}
	return reported, nil
}

// RenameGroup makes a group go on under another name: generations, jobs,
// triggers and events are the new name's from then on, and its definition stays
// the last good one until SetDefinition. What is known of the new name already
// joins it; jobs waiting there are cancelled. Definitions in jobs still hold the
// old name, so that Job.Group is what counts.
//
// It returns ErrNotFound when the old group is not known, ErrGroupExists when
// both have generations, and ErrRunning while a job of either runs.
func (s *Store) RenameGroup(ctx context.Context, from, to string) error {
	err := s.write(ctx, func(t *tx) error {
		if from == to {
			return ErrGroupExists
		}
		if err := t.knowsGroup(from); err != nil {
			return err
		}
		var running, taken int
		if err := t.row(`SELECT (SELECT count(*) FROM jobs WHERE grp IN (?1, ?2) AND state = 'running'), (SELECT count(*) FROM generations WHERE grp = ?2)`,
			[]any{from, to}, &running, &taken); err != nil {
			return err
		}
		switch {
		case taken > 0:
			return ErrGroupExists
		case running > 0:
			return ErrRunning
		}
		if err := t.absorb(from, to); err != nil {
			return err
		}
		// The foreign keys carry the name on.
		if _, err := t.exec(`UPDATE groups SET name = ?, removed_at = NULL WHERE name = ?`, to, from); err != nil {
			return err
		}
		t.note(to)
		return t.insertAudit(to, "", []AuditEntry{{Actor: "byokd", Action: "rename group", Detail: fmt.Sprintf("%s is now %s", from, to)}})
	})
	if err != nil {
		return fmt.Errorf("rename group %s to %s: %w", from, to, err)
	}
	return nil
}

// absorb gives what the group to has, no generations among it, to the group
// from, and removes to.
func (t *tx) absorb(from, to string) error {
	var sequence int64
	err := t.row(`SELECT sequence FROM groups WHERE name = ?`, []any{to}, &sequence)
	if errors.Is(err, ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	cancelled, err := t.cancelAll(`grp = ?`, to)
	if err != nil {
		return err
	}
	if err := t.auditEach(cancelled, []AuditEntry{{Actor: "byokd", Action: "cancel job", Detail: fmt.Sprintf("the group is %s under a new name", from)}}); err != nil {
		return err
	}
	// Consumers have seen sequences of both names: go on after the higher.
	if _, err := t.exec(`UPDATE groups SET sequence = ?1 WHERE name = ?2 AND sequence < ?1`, sequence, from); err != nil {
		return err
	}
	for _, update := range []string{
		`UPDATE jobs SET grp = ?1 WHERE grp = ?2`,
		`UPDATE outbox SET grp = ?1 WHERE grp = ?2`,
		`DELETE FROM triggers WHERE grp = ?2 AND unique_key IN (SELECT unique_key FROM triggers WHERE grp = ?1)`,
		`UPDATE triggers SET grp = ?1 WHERE grp = ?2`,
		`DELETE FROM drift WHERE grp = ?2`,
	} {
		if _, err := t.exec(update, from, to); err != nil {
			return err
		}
	}
	t.note(from)
	t.note(to)
	_, err = t.exec(`DELETE FROM groups WHERE name = ?`, to)
	return err
}
