package jobstore

import (
	"context"
	"fmt"
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
	if err := t.knowsGroup(g.Group); err != nil {
		return err
	}
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
	rows, err := s.r.QueryContext(ctx, selectGenerations+`WHERE grp = ? ORDER BY number`, group)
	gens, err := collect(rows, err, scanGeneration)
	if err != nil {
		return nil, fmt.Errorf("read generations of %s: %w", group, err)
	}
	return gens, nil
}

// AllGenerations returns the generations of all groups, by group and number.
func (s *Store) AllGenerations(ctx context.Context) ([]Generation, error) {
	rows, err := s.r.QueryContext(ctx, selectGenerations+`ORDER BY grp, number`)
	gens, err := collect(rows, err, scanGeneration)
	if err != nil {
		return nil, fmt.Errorf("read generations: %w", err)
	}
	return gens, nil
}
