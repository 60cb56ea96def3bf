package main

import (
	"io"
	"os"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// The size of what is no terminal, or of one that does not say.
const (
	plainWidth  = 80
	plainHeight = 24
)

// A screen is what output goes to. Without a terminal it is plain: no colours,
// ASCII alone, nothing cut off.
type screen struct {
	io.Writer
	live   bool // a terminal
	color  bool
	fancy  bool // more than ASCII
	width  int  // columns
	height int  // lines
}

func newScreen(w io.Writer) screen {
	s := screen{Writer: w, live: terminal(w), width: plainWidth, height: plainHeight}
	if n, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil && n > 0 {
		s.width = n
	}
	if !s.live {
		return s
	}
	if size, err := unix.IoctlGetWinsize(int(w.(*os.File).Fd()), unix.TIOCGWINSZ); err == nil && size.Col > 0 {
		s.width, s.height = int(size.Col), int(size.Row)
	}
	_, plain := os.LookupEnv("NO_COLOR") // no-color.org: present and not empty
	plain = plain && os.Getenv("NO_COLOR") != ""
	s.color = !plain && os.Getenv("TERM") != "dumb"
	s.fancy = utf8Locale() && os.Getenv("TERM") != "dumb"
	return s
}

// utf8Locale reports whether the locale's encoding is UTF-8: locale(7).
func utf8Locale() bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := strings.ToLower(os.Getenv(name)); v != "" {
			return strings.Contains(v, "utf-8") || strings.Contains(v, "utf8")
		}
	}
	return false
}

// A color is an SGR sequence's number; 0: none.
type color int

const (
	bold    color = 1
	dim     color = 2
	red     color = 31
	green   color = 32
	yellow  color = 33
	blue    color = 34
	cyan    color = 36
	magenta color = 35
)

// paint colours a string where the screen has colours.
func (s screen) paint(c color, text string) string {
	if !s.color || c == 0 || text == "" {
		return text
	}
	return "\033[" + strconv.Itoa(int(c)) + "m" + text + "\033[0m"
}

// stateColor is the colour of a state of a group, job, step, generation or event.
func stateColor(state string) color {
	switch state {
	case "expired", "failing", "invalid", "failed", "discarded", "parked", "material-deleted":
		return red
	case "overdue", "drifted", "removed", "retryable", "pending-deletion":
		return yellow
	case "rotating", "pending", "running", "available", "pre-active":
		return cyan
	case "ok", "completed", "done", "active", "sent":
		return green
	case "cancelled", "skipped", "disabled", "destroyed":
		return dim
	}
	return 0
}

// columns is how many columns a string takes.
func columns(s string) int { return utf8.RuneCountInString(plainText(s)) }

// plainText is a text without its colours.
func plainText(s string) string {
	if !strings.Contains(s, "\033[") {
		return s
	}
	var b strings.Builder
	for {
		before, after, ok := strings.Cut(s, "\033[")
		b.WriteString(before)
		if !ok {
			return b.String()
		}
		_, s, _ = strings.Cut(after, "m")
	}
}

// cut shortens a string without colours to a width.
func (s screen) cut(text string, width int) string {
	if columns(text) <= width || width < 1 {
		return text
	}
	mark := "~"
	if s.fancy {
		mark = "…"
	}
	return string([]rune(text)[:width-1]) + mark
}

// wrap breaks a text, whose first line has the given indent already, at the
// screen's width; further lines begin with the indent.
func (s screen) wrap(text string, indent int) string {
	if !s.live || s.width < indent+20 {
		return text
	}
	var b strings.Builder
	column := indent
	for i, word := range strings.Fields(text) {
		switch n := columns(word); {
		case i == 0:
		case column+1+n > s.width:
			b.WriteString("\n" + strings.Repeat(" ", indent))
			column = indent
		default:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += columns(word)
	}
	return b.String()
}

// oneLine keeps a message from breaking the line, and the terminal.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '?'
		}
		return r
	}, strings.Join(strings.Fields(s), " "))
}
