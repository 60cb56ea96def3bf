package schedule_test

import (
	"testing"
	"time"
	_ "time/tzdata"

	"byokd/schedule"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	loc, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return loc
}

func parse(t testing.TB, spec string, loc *time.Location) schedule.Schedule {
	t.Helper()
	s, err := schedule.Parse(spec, loc)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// at reads a time like 2026-11-23T03:00:00+01:00, the seconds left out.
func at(t testing.TB, s string) time.Time {
	t.Helper()
	parsed, err := time.Parse("2006-01-02T15:04Z07:00", s)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}
