package daemon_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"

	"byokd/cloud"
	"byokd/config"
)

// The keys of [aws.quotas] and their defaults are those that the client of AWS
// keeps. Quotas of more than 100 a second have none: byokd cannot reach them.
func TestQuotaDefaults(t *testing.T) {
	path := filepath.Join(t.TempDir(), "byokd.toml")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(path, config.DefaultOptions())
	if err != nil {
		t.Fatal(err)
	}
	have := make(map[string]float64)
	for key, perSecond := range cfg.AWS.Quotas.Keys() {
		have[key] = *perSecond
	}
	want := make(map[string]float64)
	for operation, perSecond := range cloud.DefaultQuotas() {
		var key strings.Builder
		for i, r := range operation {
			if unicode.IsUpper(r) && i > 0 {
				key.WriteByte('_')
			}
			key.WriteRune(unicode.ToLower(r))
		}
		if perSecond <= 100 {
			want[key.String()] = perSecond
		}
	}
	if d := cmp.Diff(want, have); d != "" {
		t.Errorf("of the client (-), of byokd.toml (+):\n%s", d)
	}
}
