package daemon_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestProblemCodes: each code that a problem can have is in docs/failure-modes.md,
// which docs/json.md refers to.
func TestProblemCodes(t *testing.T) {
	doc, err := os.ReadFile("../docs/failure-modes.md")
	if err != nil {
		t.Fatal(err)
	}
	codes := []string{"metrics", "page"} // named like their tables
	for _, pattern := range []string{"*.go", "lifecycle/*.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatal(pattern, err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			source, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range problemCode.FindAllStringSubmatch(string(source), -1) {
				codes = append(codes, m[1])
			}
			for _, m := range problemKind.FindAllStringSubmatch(string(source), -1) {
				codes = append(codes, map[string]string{"Wait": "waiting-", "Drift": "drift-"}[m[1]]+m[2])
			}
		}
	}
	slices.Sort(codes)
	codes = slices.Compact(codes)
	for _, code := range codes {
		if !strings.HasSuffix(code, "-") && !strings.Contains(string(doc), "`"+code+"`") {
			t.Errorf("docs/failure-modes.md does not have `%s`", code)
		}
	}
	if len(codes) < 45 {
		t.Errorf("only %d codes were found: %q", len(codes), codes)
	}
}

var (
	problemCode = regexp.MustCompile(`(?:\bproblem\{(?:code: *)?|\badd\(|\.problem\(|\bCode: +|\bFinding\{|(?:ObjectMissing|RotationsLeft) += )"([a-z-]+)"`)
	// What a job waits for, and what differs.
	problemKind = regexp.MustCompile(`(?m)^\t(Wait|Drift)[A-Z]\w* += "([a-z-]+)"`)
)
