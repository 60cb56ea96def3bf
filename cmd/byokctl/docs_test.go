package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestDocumentedCommands: each byokctl command in the documentation is one that
// this byokctl takes, with its flags.
func TestDocumentedCommands(t *testing.T) {
	files, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	command := regexp.MustCompile("`(?:sudo )?byokctl ([^`|]*)`|(?m)^(?:    |# |\\$ )(?:sudo )?byokctl (.*)$")
	seen := 0
	for _, file := range append(files, "../../README.md") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range command.FindAllStringSubmatch(string(text), -1) {
			line := m[1] + m[2]
			for _, end := range []string{"  ", " #", ";", "&&", "||", "|", ">"} {
				line, _, _ = strings.Cut(line, end)
			}
			// Before --help all flags are parsed, and nothing is done.
			words := strings.Fields(line)
			for i, w := range words {
				if w == "N" { // a number
					words[i] = "1"
				}
			}
			words = append(words, "--help")
			var out bytes.Buffer
			if status := run(context.Background(), words, strings.NewReader(""), &out, &out); status != 0 {
				t.Errorf("%s: byokctl %s: exit status %d: %s", filepath.Base(file), line, status, out.String())
			}
			seen++
		}
	}
	if seen < 20 {
		t.Errorf("only %d commands were found", seen)
	}
}
