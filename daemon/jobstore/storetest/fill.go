// Package storetest gives benchmarks and tests databases that have been in use
// for years.
package storetest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"time"

	_ "byokd/daemon/jobstore" // registers the driver
)

// A Group is one that a database is filled with.
type Group struct {
	Name       string
	Definition []byte // the last good one, as config writes it
	Digest     string // of it
	HSM        string
	Account    string
	Region     string
	Snapshot   []byte // the definition as jobs hold it
}

// Steps are those of the kinds of jobs that a database is filled with.
var steps = map[string][]string{
	"rotate":      {"generate", "create", "import", "verify", "grants", "activate", "announce"},
	"synchronize": {"policy", "material", "alias", "announce"},
	"retire":      {"disable"},
}

// Fill fills a database that jobstore.Create has made with groups that have been
// rotated every few days up to now, and with so many finished jobs of each: of
// four one is a rotation, with its generation, its event and its retirement, which
// is the second, and two are synchronizations. The newest generation of a group is
// the active one. It leaves nothing to be done.
//
// The generations are as those that were recovered after the database was lost: it is
// not known when their HSM keys were made, so that nobody misses these on the token.
func Fill(ctx context.Context, path string, groups []Group, jobs int, now time.Time) (err error) {
	u := url.URL{Scheme: "file", Path: path, RawQuery: "mode=rw&_txlock=immediate&_pragma=journal_mode(off)&_pragma=synchronous(off)&_pragma=cache_size(-400000)&_pragma=temp_store(2)"}
	db, err := sql.Open("sqlite", u.String())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(1)
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	f := filler{ctx: ctx, tx: tx}
	f.exec(`CREATE TEMP TABLE fresh (position INTEGER PRIMARY KEY, name TEXT, snapshot TEXT, region TEXT, account TEXT, hsm TEXT, digest TEXT)`)
	first := now.Add(-time.Duration(jobs+4) * jobsApart)
	for i, g := range groups {
		f.exec(`INSERT INTO groups (name, definition, digest, applied_digest, hsm, account, first_seen, enabled_at, sequence, drift_checked)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, g.Name, string(g.Definition), g.Digest, g.Digest, g.HSM, g.Account,
			first.UnixMilli(), first.UnixMilli(), (jobs+3)/4, now.UnixMilli())
		f.exec(`INSERT INTO fresh VALUES (?, ?, ?, ?, ?, ?, ?)`, i, g.Name, string(g.Snapshot), g.Region, g.Account, g.HSM, g.Digest)
	}
	// The n-th job of each group, then the next: as time has gone by.
	for n := range jobs {
		kind := []string{"rotate", "synchronize", "retire", "synchronize"}[n%4]
		generation := n/4 + 1
		at := first.Add(time.Duration(n) * jobsApart)
		id := fmt.Sprintf(`printf('%%08x-%%04x-7%%03x-8%%03x-%%012x', (?1 + position) >> 16, (?1 + position) & 65535, %d, 0, position)`, n%4096)
		f.exec(`INSERT INTO jobs (id, kind, grp, hsm, generation, state, cause, definition, request, urgent, created_at, due_at, scheduled_at,
				started_at, finished_at, attempt)
			SELECT `+id+`, ?2, name, hsm, ?3, 'completed', CASE ?2 WHEN 'rotate' THEN 'schedule' WHEN 'retire' THEN 'schedule' ELSE 'watch' END, snapshot,
				'{"asked":false}', 0, ?1 + position, ?1 + position, CASE ?2 WHEN 'rotate' THEN ?1 END, ?1 + position, ?1 + position + 2000, 1
			FROM fresh ORDER BY position`, at.UnixMilli(), kind, generation)
		for i, step := range steps[kind] {
			f.exec(`INSERT INTO steps (job_id, name, position, state, started_at, finished_at, message, data)
				SELECT `+id+`, ?2, ?3, 'done', ?1 + position, ?1 + position + 200, '', NULL FROM fresh ORDER BY position`, at.UnixMilli(), step, i)
		}
		f.exec(`INSERT INTO triggers (grp, unique_key, job_id, cause, at)
			SELECT name, CASE ?2 WHEN 'rotate' THEN 'tick:' ELSE 'definition:' END || ?3, `+id+`, 'schedule', ?1 FROM fresh ORDER BY position`,
			at.UnixMilli(), kind, at.UTC().Format(time.RFC3339Nano))
		f.exec(`INSERT INTO audit (at, grp, job_id, actor, action, detail, definition)
			SELECT ?1 + position, name, `+id+`, 'schedule', 'ask for ' || ?2, 'trigger schedule', digest FROM fresh ORDER BY position`, at.UnixMilli(), kind)
		if kind != "rotate" {
			continue
		}
		last := n+4 >= jobs
		f.exec(`INSERT INTO generations (grp, number, stage, hsm, hsm_label, hsm_id, generated_at, job_id, region, account, key_id, key_arn,
				material_id, created_at, imported_at, activated_at, disabled_at, left_at, policy, tags)
			SELECT name, ?2, ?3, hsm, 'byokd/' || name || '/' || ?2, `+fmt.Sprintf(keyID, "position", "?2")+`, NULL, `+id+`, region, account,
				printf('%08x-0000-4000-8000-%012x', position, ?2), 'arn:aws:kms:' || region || ':' || account || printf(':key/%08x-0000-4000-8000-%012x', position, ?2),
				printf('%064x', position * 1000 + ?2), ?1, ?1, ?1, CASE ?3 WHEN 'previous' THEN ?1 + 86400000 END, CASE ?3 WHEN 'previous' THEN ?1 + 86400000 END, '', '{}'
			FROM fresh ORDER BY position`, at.UnixMilli(), generation, stage(last))
		f.exec(`INSERT INTO outbox (event_id, grp, sequence, detail_type, detail, resources, occurred_at, job_id, region, account, credential, state, sent_at)
			SELECT `+id+`, name, ?2, 'KMS Alias Moved', printf('{"schema":1,"group":"%s","sequence":%d,"alias":"alias/%s","generation":%d}', name, ?2, name, ?2),
				'["arn:aws:kms:' || region || ':' || account || ':alias/' || name || '"]', ?1, `+id+`, region, account, 'prod', 'sent', ?1 + 1000
			FROM fresh ORDER BY position`, at.UnixMilli(), generation)
	}
	f.exec(`DROP TABLE fresh`)
	if f.err != nil {
		return fmt.Errorf("fill %s: %w", path, f.err)
	}
	return tx.Commit()
}

// jobsApart is how far the jobs of a group lie from each other.
const jobsApart = 90 * time.Hour

// keyID is SQL for the ID of an HSM key.
const keyID = `printf('%%016x%%016x', %s, %s)`

func stage(last bool) string {
	if last {
		return "active"
	}
	return "previous"
}

// A filler runs statements until one fails.
type filler struct {
	ctx context.Context
	tx  *sql.Tx
	err error
}

func (f *filler) exec(query string, args ...any) {
	if f.err == nil {
		_, f.err = f.tx.ExecContext(f.ctx, query, args...)
	}
}
