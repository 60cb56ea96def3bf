package jobstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// A Generation is one key of a group: an HSM object and the KMS key made from
// it. In times, zero is none; they are kept in milliseconds.
type Generation struct {
	Group       string
	Number      int    // 0 is an adopted key whose material byokd does not have
	Stage       string // pre-active, active, previous or destroyed
	HSM         string // name of the [hsm.NAME] table
	HSMLabel    string
	HSMID       string // once set, it stays
	GeneratedAt time.Time
	JobID       string // the value of the KMS key's byokd:job tag
	Region      string
	Account     string
	KeyID       string
	KeyARN      string
	MaterialID  string
	CreatedAt   time.Time // of the KMS key
	ImportedAt  time.Time
	ActivatedAt time.Time
	ValidTo     time.Time

	DisabledAt        time.Time
	MaterialDeletedAt time.Time
	DeletionDate      time.Time
	LeftAt            time.Time // by the alias
	KeptAt            time.Time // from retirement, by a person

	Policy string
	Tags   map[string]string

	// What ReportExpiring last told of; written by nothing else.
	WarnedValidTo time.Time
	WarnedDays    int
}

// putGenerations writes generations whole. At most one of a group is active:
// those that are not are written first, so that one can take over from another
// within one Change.
func (t *tx) putGenerations(gens []Generation) error {
	for _, active := range []bool{false, true} {
		for _, g := range gens {
			if (g.Stage == "active") != active {
				continue
			}
			if err := t.putGeneration(g); err != nil {
				return fmt.Errorf("generation %d of %s: %w", g.Number, g.Group, err)
			}
		}
	}
	return nil
}

func (t *tx) putGeneration(g Generation) error {
	t.note(g.Group)
	_, err := t.exec(`INSERT INTO generations (`+generationColumns+`)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (grp, number) DO UPDATE SET stage = excluded.stage, hsm = excluded.hsm, hsm_label = excluded.hsm_label,
			hsm_id = excluded.hsm_id, generated_at = excluded.generated_at, job_id = excluded.job_id, region = excluded.region,
			account = excluded.account, key_id = excluded.key_id, key_arn = excluded.key_arn, material_id = excluded.material_id,
			created_at = excluded.created_at, imported_at = excluded.imported_at, activated_at = excluded.activated_at,
			valid_to = excluded.valid_to, disabled_at = excluded.disabled_at, material_deleted_at = excluded.material_deleted_at,
			deletion_date = excluded.deletion_date, left_at = excluded.left_at,
			kept_at = excluded.kept_at, policy = excluded.policy, tags = excluded.tags`,
		g.Group, g.Number, g.Stage, g.HSM, g.HSMLabel, g.HSMID, millis(g.GeneratedAt), g.JobID, g.Region, g.Account, g.KeyID, g.KeyARN,
		g.MaterialID, millis(g.CreatedAt), millis(g.ImportedAt), millis(g.ActivatedAt), millis(g.ValidTo),
		millis(g.DisabledAt), millis(g.MaterialDeletedAt), millis(g.DeletionDate),
		millis(g.LeftAt), millis(g.KeptAt), g.Policy, jsonText(g.Tags))
	if err != nil {
		t.failed = nil // to see why
		err = errors.Join(t.knowsGroup(g.Group), err)
		t.failed = err
	}
	return err
}

const generationColumns = `grp, number, stage, hsm, hsm_label, hsm_id, generated_at, job_id, region, account, key_id, key_arn,
	material_id, created_at, imported_at, activated_at, valid_to, disabled_at, material_deleted_at, deletion_date, left_at, kept_at, policy, tags`

// selectGenerations has what scanGeneration reads.
const selectGenerations = `SELECT ` + generationColumns + `, warned_valid_to, warned_days FROM generations `

func scanGeneration(row scanner) (g Generation, err error) {
	err = row.Scan(&g.Group, &g.Number, &g.Stage, &g.HSM, &g.HSMLabel, &g.HSMID, scanTime(&g.GeneratedAt), &g.JobID, &g.Region,
		&g.Account, &g.KeyID, &g.KeyARN, &g.MaterialID, scanTime(&g.CreatedAt), scanTime(&g.ImportedAt), scanTime(&g.ActivatedAt),
		scanTime(&g.ValidTo), scanTime(&g.DisabledAt), scanTime(&g.MaterialDeletedAt), scanTime(&g.DeletionDate),
		scanTime(&g.LeftAt), scanTime(&g.KeptAt), &g.Policy, jsonScanner{&g.Tags}, scanTime(&g.WarnedValidTo), &g.WarnedDays)
	return g, err
}

// Generations returns all generations of the group in ascending order,
// destroyed ones included.
func (s *Store) Generations(ctx context.Context, group string) ([]Generation, error) {
	rows, err := s.reader(ctx).query(quick(ctx), selectGenerations+`WHERE grp = ? ORDER BY number`, group)
	gens, err := collect(rows, err, scanGeneration)
	if err != nil {
		return nil, fmt.Errorf("read generations of %s: %w", group, err)
	}
	return gens, nil
}

// AllGenerations returns the generations of the groups named, or of all, by group and
// number.
func (s *Store) AllGenerations(ctx context.Context, groups ...string) ([]Generation, error) {
	where, args := among("grp", groups)
	rows, err := s.reader(ctx).query(ctx, selectGenerations+`WHERE `+where+` ORDER BY grp, number`, args...)
	gens, err := collect(rows, err, scanGeneration)
	if err != nil {
		return nil, fmt.Errorf("read generations: %w", err)
	}
	return gens, nil
}

// Keys are what counts of a group's generations from day to day.
type Keys struct {
	Group string

	// Some tells that the group has a generation that is not destroyed.
	Some bool

	// Rotated is when a generation last became active; zero: none has.
	Rotated time.Time

	// InUse are the active generation, and those whose material ends and under
	// which something can be decrypted until then, ascending. Policy and Tags are
	// left out.
	InUse []Generation
}

// inUse is the condition of the index generations_ending.
const inUse = `valid_to IS NOT NULL AND stage IN ('active', 'previous')
	AND disabled_at IS NULL AND material_deleted_at IS NULL AND deletion_date IS NULL`

// Keys returns the keys of the groups named, or of all, by name. A group that is not
// known is passed over. What it costs does not depend on how many generations a group
// had.
func (s *Store) Keys(ctx context.Context, groups ...string) ([]Keys, error) {
	var all []Keys
	err := s.read(ctx, func(q querier) error {
		of, in, args := "", "", []any(nil)
		if len(groups) > 0 {
			of, in = ` WHERE g.name IN (SELECT value FROM json_each(?))`, ` AND grp IN (SELECT value FROM json_each(?1))`
			args = []any{jsonText(groups)}
		}
		rows, err := q(`SELECT g.name, EXISTS (SELECT 1 FROM generations WHERE grp = g.name AND stage <> 'destroyed'),
			(SELECT max(activated_at) FROM generations WHERE grp = g.name AND stage IN ('active', 'previous')) FROM groups g`+of+` ORDER BY g.name`, args...)
		all, err = collect(rows, err, func(row scanner) (k Keys, err error) {
			err = row.Scan(&k.Group, &k.Some, scanTime(&k.Rotated))
			return k, err
		})
		if err != nil {
			return err
		}
		columns := strings.Replace(generationColumns, "policy, tags", "'', NULL", 1) + `, warned_valid_to, warned_days`
		rows, err = q(`SELECT `+columns+` FROM generations WHERE stage = 'active'`+in+`
			UNION ALL SELECT `+columns+` FROM generations INDEXED BY generations_ending WHERE stage = 'previous' AND `+inUse+in+` ORDER BY grp, number`, args...)
		gens, err := collect(rows, err, scanGeneration)
		if err != nil {
			return err
		}
		at := make(map[string]int, len(all))
		for i, k := range all {
			at[k.Group] = i
		}
		for _, g := range gens {
			k := &all[at[g.Group]]
			k.InUse = append(k.InUse, g)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the keys: %w", err)
	}
	return all, nil
}
