package config_test

import (
	"math"
	"strings"
	"testing"
	"time"

	"byokd/config"

	"pgregory.net/rapid"
)

func TestParseDuration(t *testing.T) {
	tests := []struct {
		in   string
		want time.Duration
		out  string
	}{
		{"0", 0, "0s"},
		{"0s", 0, "0s"},
		{"1s", time.Second, "1s"},
		{"90m", 90 * time.Minute, "1h30m"},
		{"24h", 24 * time.Hour, "1d"},
		{"36h", 36 * time.Hour, "1d12h"},
		{"90d", 90 * 24 * time.Hour, "90d"},
		{"1w", 7 * 24 * time.Hour, "7d"},
		{"1w2d12h", (9*24 + 12) * time.Hour, "9d12h"},
		{"1.5d", 36 * time.Hour, "1d12h"},
		{"0.5w", 84 * time.Hour, "3d12h"},
		{"1h0m1s", time.Hour + time.Second, "1h0m1s"},
		{"10m", 10 * time.Minute, "10m"},
		{"1d1ms", 24*time.Hour + time.Millisecond, "1d1ms"},
		{"1us1ns", 1001, "1.001µs"},
		{"+5s", 5 * time.Second, "5s"},
		{"106751d", 106751 * 24 * time.Hour, "106751d"},
	}
	for _, tt := range tests {
		t.Run(tt.in, func(t *testing.T) {
			got, err := config.ParseDuration(tt.in)
			if err != nil {
				t.Fatal(err)
			}
			if time.Duration(got) != tt.want {
				t.Errorf("got %v, want %v", time.Duration(got), tt.want)
			}
			if got.String() != tt.out {
				t.Errorf("prints %s, want %s", got, tt.out)
			}
		})
	}
}

func TestParseDurationRefuses(t *testing.T) {
	tests := []struct{ in, want string }{
		{"", "must not be empty"},
		{"-1s", "must not be negative"},
		{"-90d", "must not be negative"},
		{"90", "number without a unit"},
		{"1h30", "number without a unit"},
		{"3mo", "write days"},
		{"3M", "write days"},
		{"1month", "write days"},
		{"3 months", "unknown unit"},
		{"1y", "write days"},
		{"90days", "unknown unit"},
		{"90 d", "unknown unit"},
		{"forever", "not a duration"},
		{".d", "not a duration"},
		{"1.2.3d", "not a duration"},
		{"+", "not a duration"},
		{"d", "not a duration"},
		{"106752d", "292 years"},
		{"106751d24h", "292 years"},
		{"9999999999999999999w", "292 years"},
		{"9999999999999999999ns", "292 years"},
	}
	for _, tt := range tests {
		t.Run(tt.in, func(t *testing.T) {
			d, err := config.ParseDuration(tt.in)
			if err == nil {
				t.Fatalf("accepted as %v", d)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q does not say %q", err, tt.want)
			}
		})
	}
}

func TestDurationRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := config.Duration(rapid.Int64Range(0, math.MaxInt64).Draw(t, "d"))
		back, err := config.ParseDuration(d.String())
		if err != nil {
			t.Fatal(err)
		}
		if back != d {
			t.Fatalf("%d prints as %s, which reads as %d", d, d, back)
		}
	})
}
