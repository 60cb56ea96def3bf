package jobstore

import (
	"context"
	"fmt"
	"time"
)

// The results of a login.
const (
	LoginUnknown   = ""          // begun, and byokd died before the token answered
	LoginOK        = "ok"        // logged in
	LoginIncorrect = "incorrect" // CKR_PIN_INCORRECT: one attempt fewer is left
	LoginLocked    = "locked"    // CKR_PIN_LOCKED
	LoginError     = "error"     // the token answered something else
	LoginPermit    = "permit"    // no login: an operator's leave to try again
)

// A Login is one attempt to log in to a token, or an operator's permission.
type Login struct {
	ID          int64
	HSM         string // name of the [hsm.NAME] table
	PINIdentity string // which version of the PIN; "" where that cannot be told
	At          time.Time
	EndedAt     time.Time // zero: no result
	Result      string
}

// BeginLogin records, before C_Login is called, that it will be. pinIdentity
// tells versions of a pin_file apart without telling anything of the PIN: it
// must not be derived from it. For a pin_credential it is "".
func (s *Store) BeginLogin(ctx context.Context, hsm, pinIdentity string) (id int64, err error) {
	err = s.write(ctx, func(t *tx) error {
		t.wrote = true
		return t.row(`INSERT INTO pin_attempts (hsm, pin_identity, at, result) VALUES (?, ?, ?, '') RETURNING id`,
			[]any{hsm, pinIdentity, millis(t.now)}, &id)
	})
	if err != nil {
		return 0, fmt.Errorf("record login to %s: %w", hsm, err)
	}
	return id, nil
}

// EndLogin records the result of a login: LoginOK, LoginIncorrect, LoginLocked
// or LoginError.
func (s *Store) EndLogin(ctx context.Context, id int64, result string) error {
	err := s.write(ctx, func(t *tx) error {
		n, err := t.exec(`UPDATE pin_attempts SET result = ?, ended_at = ? WHERE id = ? AND result = ''`, result, millis(t.now), id)
		if err == nil && n == 0 {
			err = ErrNotFound
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("record result %s of login %d: %w", result, id, err)
	}
	return nil
}

// PermitLogin records an operator's leave to log in to the token again.
func (s *Store) PermitLogin(ctx context.Context, hsm string, audit ...AuditEntry) error {
	err := s.write(ctx, func(t *tx) error {
		if _, err := t.exec(`INSERT INTO pin_attempts (hsm, pin_identity, at, ended_at, result) VALUES (?1, '', ?2, ?2, 'permit')`,
			hsm, millis(t.now)); err != nil {
			return err
		}
		return t.insertAudit("", "", audit)
	})
	if err != nil {
		return fmt.Errorf("permit login to %s: %w", hsm, err)
	}
	return nil
}

// Logins returns the latest logins to the token, newest first; limit 0: all.
// LoginAllowed needs two.
func (s *Store) Logins(ctx context.Context, hsm string, n int) ([]Login, error) {
	rows, err := s.reader(ctx).query(quick(ctx), `SELECT id, hsm, pin_identity, at, ended_at, result FROM pin_attempts WHERE hsm = ? ORDER BY id DESC LIMIT ?`,
		hsm, limit(n))
	logins, err := collect(rows, err, func(row scanner) (l Login, err error) {
		err = row.Scan(&l.ID, &l.HSM, &l.PINIdentity, scanTime(&l.At), scanTime(&l.EndedAt), &l.Result)
		return l, err
	})
	if err != nil {
		return nil, fmt.Errorf("read logins to %s: %w", hsm, err)
	}
	return logins, nil
}

// LoginAllowed reports whether byokd may log in to a token whose latest logins,
// newest first, are given, and if not, why. A token locks itself after a few
// wrong PINs, so an incorrect PIN is tried once; two logins in a row without a
// result are taken for the same, since each may have been counted by the token.
// An operator's permission or a PIN file that has changed since lifts that; a
// PIN without identity never counts as changed.
func LoginAllowed(logins []Login, pinIdentity string) (ok bool, reason string) {
	for i, l := range logins {
		changed := l.PINIdentity != "" && pinIdentity != "" && l.PINIdentity != pinIdentity
		switch {
		case l.Result == LoginPermit || changed:
			return true, ""
		case l.Result == LoginIncorrect:
			return false, "the token said that the PIN is incorrect; it is not tried again"
		case l.Result != LoginUnknown:
			return true, ""
		case i == 1:
			return false, "byokd died in two logins in a row, which the token may count as wrong PINs"
		}
	}
	return true, ""
}

// LoginPermitted reports whether an operator's permission has not been used
// yet: what a token that gives its last try (CKF_USER_PIN_FINAL_TRY) asks for.
func LoginPermitted(logins []Login) bool {
	return len(logins) > 0 && logins[0].Result == LoginPermit
}
