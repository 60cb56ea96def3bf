package config

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
)

// A Duration is a length of time, never negative. In TOML it is a string in
// Go's syntax with the further units d (24 hours, also across a change of
// daylight saving time) and w (7 d), as in "90d" or "1w2d12h". m is minutes;
// months and years, which differ in length, are refused.
type Duration time.Duration

// Lengths of the units that Go's time package does not have.
const (
	day  = 24 * time.Hour
	week = 7 * day
)

// durationUnits are the units of a Duration.
const durationUnits = "w, d, h, m (minutes), s, ms, us or ns"

// ParseDuration parses a Duration. Its error says what is wrong and what to
// write.
func ParseDuration(s string) (Duration, error) {
	if s == "" {
		return 0, errors.New(`must not be empty: write a number and a unit, such as "90d"`)
	}
	if strings.HasPrefix(s, "-") {
		return 0, fmt.Errorf("%q must not be negative", s)
	}
	if s == "0" {
		return 0, nil
	}
	rest := strings.TrimPrefix(s, "+")
	if rest == "" {
		return 0, fmt.Errorf("%q %w", s, errNotDuration)
	}
	var sum time.Duration
	for rest != "" {
		digits := span(rest, true)
		unit := span(rest[len(digits):], false)
		rest = rest[len(digits)+len(unit):]
		d, err := parseSegment(digits, unit)
		if err != nil {
			return 0, fmt.Errorf("%q %w", s, err)
		}
		if sum > math.MaxInt64-d {
			return 0, fmt.Errorf("%q %w", s, errTooLong)
		}
		sum += d
	}
	return Duration(sum), nil
}

var (
	errNotDuration = errors.New(`is not a duration: write a number and a unit, such as "90d"`)
	errTooLong     = errors.New("is too long: durations end at 292 years")
)

// span returns the longest prefix of s that is made of number characters, or
// of other characters.
func span(s string, number bool) string {
	for i := range len(s) {
		if (s[i] == '.' || '0' <= s[i] && s[i] <= '9') != number {
			return s[:i]
		}
	}
	return s
}

// parseSegment parses one number with its unit.
func parseSegment(digits, unit string) (time.Duration, error) {
	if strings.Trim(digits, ".") == "" || strings.Count(digits, ".") > 1 {
		return 0, errNotDuration
	}
	factor := time.Duration(1)
	switch unit {
	case "d":
		unit, factor = "h", 24
	case "w":
		unit, factor = "h", 7*24
	case "ns", "us", "µs", "μs", "ms", "s", "m", "h":
	case "M", "mo", "mon", "mons", "month", "months", "y", "yr", "yrs", "year", "years":
		return 0, errors.New(`counts in months or years, which differ in length: write days, such as "30d"`)
	case "":
		return 0, fmt.Errorf("has a number without a unit: use %s", durationUnits)
	default:
		return 0, fmt.Errorf("has the unknown unit %q: use %s", unit, durationUnits)
	}
	d, err := time.ParseDuration(digits + unit)
	if err != nil {
		return 0, errTooLong // number and unit are well-formed
	}
	if d > math.MaxInt64/factor {
		return 0, errTooLong
	}
	return d * factor, nil
}

// UnmarshalText parses text as [ParseDuration] does.
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := ParseDuration(string(text))
	if err != nil {
		return err
	}
	*d = parsed
	return nil
}

// MarshalText returns the text of [Duration.String].
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// String returns the duration in days and Go's units, without parts that are
// zero: "90d", "1d12h", "30m", "0s". [ParseDuration] reads it back unchanged.
func (d Duration) String() string {
	days, rest := time.Duration(d)/day, time.Duration(d)%day
	if days == 0 && rest == 0 {
		return "0s"
	}
	var b strings.Builder
	if days > 0 {
		fmt.Fprintf(&b, "%dd", days)
	}
	if rest != 0 {
		s := rest.String()
		if strings.HasSuffix(s, "m0s") {
			s = strings.TrimSuffix(s, "0s")
		}
		if strings.HasSuffix(s, "h0m") {
			s = strings.TrimSuffix(s, "0m")
		}
		b.WriteString(s)
	}
	return b.String()
}
