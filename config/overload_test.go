package config_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"byokd/config"
)

func TestOverloads(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 30, 0, 0, time.UTC)
	const hour = config.Duration(time.Hour)
	many := func(n int, change func(i int, r *config.Rotation)) []*config.Group {
		var groups []*config.Group
		for i := range n {
			g := &config.Group{Name: fmt.Sprintf("g%05d", i), Credential: "prod"}
			g.AWS.Region = "eu-central-1"
			g.Rotation = config.Rotation{Enabled: true, OverdueAfter: 24 * hour, Timezone: "UTC"}
			change(i, &g.Rotation)
			groups = append(groups, g)
		}
		return groups
	}
	for name, test := range map[string]struct {
		groups []*config.Group
		quota  float64
		want   string // part of the message; "": none
	}{
		"intervals": {many(10_000, func(_ int, r *config.Rotation) { r.Every = 24 * hour * 90 }), 1, ""},
		"intervals too short": {many(10_000, func(_ int, r *config.Rotation) { r.Every = hour }), 1,
			"10000 groups ask for 240000 rotations a day, and 1 imports a second allow 86400"},
		"raised quota":       {many(10_000, func(_ int, r *config.Rotation) { r.Every = hour }), 3, ""},
		"one wave a quarter": {many(10_000, func(_ int, r *config.Rotation) { r.Schedule = "0 3 1 */3 *" }), 1, ""},
		"a wave is late": {many(10_000, func(_ int, r *config.Rotation) { r.Schedule, r.OverdueAfter = "0 3 1 */3 *", hour }), 1,
			"the last of 10000 rotations due at 2026-04-01T03:00:00Z comes 2h46m40s later, at 1 imports a second, and is overdue after 1h0m0s"},
		"jitter spreads it": {many(10_000, func(_ int, r *config.Rotation) {
			r.Schedule, r.OverdueAfter, r.Jitter = "0 3 1 */3 *", hour, 4*hour
		}), 1, ""},
		"hours spread it": {many(10_000, func(i int, r *config.Rotation) {
			r.Schedule, r.OverdueAfter = fmt.Sprintf("0 %d 1 */3 *", i%24), hour
		}), 1, ""},
		"hourly": {many(4000, func(_ int, r *config.Rotation) { r.Schedule = "@hourly" }), 1, "4000 groups ask for 96000 rotations a day"},
		"an interval and a wave": {append(many(1800, func(_ int, r *config.Rotation) { r.Every = hour }),
			many(2000, func(_ int, r *config.Rotation) { r.Schedule, r.OverdueAfter = "@daily", hour })...), 1,
			"the last of 2000 rotations due at 2026-03-02T00:00:00Z comes 1h6m40s later"},
		"disabled": {many(10_000, func(_ int, r *config.Rotation) { r.Every, r.Enabled = hour, false }), 1, ""},
		"renewals count": {many(10_000, func(_ int, r *config.Rotation) {
			r.Every, r.KeepValidFor, r.OnExpiry = 24*hour*90, hour, "reimport"
		}), 1, "rotations a day"},
		"every minute":          {many(10, func(_ int, r *config.Rotation) { r.Schedule = "* * * * *" }), 1, ""},
		"every minute too many": {many(61, func(_ int, r *config.Rotation) { r.Schedule = "* * * * *" }), 1, "61 groups ask for 87840 rotations a day"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := &config.Config{}
			cfg.AWS.Quotas.GetParametersForImport = test.quota
			all := config.Overloads(cfg, test.groups, now, nil)
			switch {
			case test.want == "" && len(all) > 0:
				t.Errorf("overloaded: %s", all[0].Message)
			case test.want != "" && len(all) != 1:
				t.Errorf("%d places are overloaded", len(all))
			case test.want != "" && (!strings.Contains(all[0].Message, test.want) || !strings.HasPrefix(all[0].Message, "credential prod in eu-central-1: ")):
				t.Errorf("%s\nwant: %s", all[0].Message, test.want)
			}
			// Spread over Regions, each has its own quota.
			for i, g := range test.groups {
				g.AWS.Region = fmt.Sprintf("r-%d", i%100)
			}
			if all := config.Overloads(cfg, test.groups, now, nil); len(all) > 0 {
				t.Errorf("over a hundred Regions: %s", all[0].Message)
			}
		})
	}
}

// A place's own quota counts where one is known, and a place without is left alone.
func TestOverloadsOfPlaces(t *testing.T) {
	groups := make([]*config.Group, 300)
	for i := range groups {
		groups[i] = &config.Group{Name: fmt.Sprintf("g%03d", i), Credential: "prod"}
		groups[i].Rotation = config.Rotation{Enabled: true, Every: config.Duration(time.Minute)}
		groups[i].AWS.Region = []string{"raised", "default", "unknown"}[i%3]
	}
	cfg := &config.Config{}
	cfg.AWS.Quotas.GetParametersForImport = 1
	all := config.Overloads(cfg, groups, time.Now(), func(credential, region string) float64 {
		return map[string]float64{"prod raised": 10, "prod default": 1}[credential+" "+region]
	})
	if len(all) != 1 || all[0].Region != "default" {
		t.Errorf("overloaded: %+v", all)
	}
}

func TestOverloadNames(t *testing.T) {
	o := config.Overload{Groups: []string{"a", "b", "c", "d", "e", "f", "g"}}
	if got := o.Names(); got != "a, b, c, d, e and 2 more" {
		t.Error(got)
	}
	o.Groups = o.Groups[:2]
	if got := o.Names(); got != "a, b" {
		t.Error(got)
	}
}
