package systemd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// journalSocket is where journald receives its native protocol
// (https://systemd.io/JOURNAL_NATIVE_PROTOCOL/).
const journalSocket = "/run/systemd/journal/socket"

// StderrIsJournal reports whether standard error is the stream to the journal
// that JOURNAL_STREAM names by device and inode, as systemd.exec(5) has it. A
// stderr that was redirected is not.
func StderrIsJournal() bool {
	device, inode, ok := strings.Cut(os.Getenv("JOURNAL_STREAM"), ":")
	if !ok {
		return false
	}
	info, err := os.Stderr.Stat()
	if err != nil {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && strconv.FormatUint(stat.Dev, 10) == device && strconv.FormatUint(stat.Ino, 10) == inode
}

// JournalOptions are the options of a JournalHandler. The zero value is good.
type JournalOptions struct {
	Level      slog.Leveler // the least level that is logged; nil: slog.LevelInfo
	Socket     string       // journald's socket; empty: /run/systemd/journal/socket
	Identifier string       // SYSLOG_IDENTIFIER; empty: the program's name
}

// A JournalHandler is a slog.Handler that sends records to the journal, each
// with its attributes as fields: the attribute group becomes BYOKD_GROUP, job
// BYOKD_JOB, any other in the same way, with the names of slog groups before
// it and an underscore for what a field name cannot hold. MESSAGE is the
// record's message and the attributes as key=value, so that a plain journalctl
// shows all of it. PRIORITY is 7, 6, 4 or 3 for debug, info, warn and error.
type JournalHandler struct {
	conn       *net.UnixConn // not connected: journald may be restarted
	socket     *net.UnixAddr
	level      slog.Leveler
	identifier string

	prefix string // of the open groups, each with a dot after it
	attrs  []journalAttr
}

// A journalAttr is an attribute without structure.
type journalAttr struct {
	key, value string // key with dots between group names
}

// NewJournalHandler returns a handler that sends to journald. It fails if no
// socket can be had; that journald is away shows only when a record is sent.
func NewJournalHandler(opts JournalOptions) (*JournalHandler, error) {
	h := &JournalHandler{level: opts.Level, identifier: opts.Identifier}
	if h.level == nil {
		h.level = slog.LevelInfo
	}
	if h.identifier == "" {
		h.identifier = filepath.Base(os.Args[0])
	}
	h.socket = &net.UnixAddr{Name: opts.Socket, Net: "unixgram"}
	if opts.Socket == "" {
		h.socket.Name = journalSocket
	}
	var err error
	h.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("open a socket for the journal: %w", err)
	}
	return h, nil
}

// Close closes the handler's socket, and with it that of all handlers derived
// from it.
func (h *JournalHandler) Close() error { return h.conn.Close() }

// Enabled implements slog.Handler.
func (h *JournalHandler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= h.level.Level()
}

// WithAttrs implements slog.Handler.
func (h *JournalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	clone := *h
	clone.attrs = slices.Clip(h.attrs)
	for _, a := range attrs {
		clone.attrs = appendAttr(clone.attrs, h.prefix, a)
	}
	return &clone
}

// WithGroup implements slog.Handler.
func (h *JournalHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	clone := *h
	clone.prefix += name + "."
	return &clone
}

// Handle implements slog.Handler.
func (h *JournalHandler) Handle(_ context.Context, r slog.Record) error {
	attrs := slices.Clip(h.attrs)
	r.Attrs(func(a slog.Attr) bool {
		attrs = appendAttr(attrs, h.prefix, a)
		return true
	})
	message := r.Message
	for _, a := range attrs {
		message += " " + quote(a.key) + "=" + quote(a.value)
	}
	b := appendField(nil, "MESSAGE", message)
	b = appendField(b, "PRIORITY", priority(r.Level))
	b = appendField(b, "SYSLOG_IDENTIFIER", h.identifier)
	if !r.Time.IsZero() {
		b = appendField(b, "SYSLOG_TIMESTAMP", r.Time.Format(time.RFC3339Nano))
	}
	for _, a := range attrs {
		b = appendField(b, fieldName(a.key), a.value)
	}
	return h.send(b)
}

// send sends one entry: as a datagram, or, where it is too large for one, as
// the descriptor of a sealed memory file.
func (h *JournalHandler) send(entry []byte) error {
	_, err := h.conn.WriteToUnix(entry, h.socket)
	if errors.Is(err, syscall.EMSGSIZE) || errors.Is(err, syscall.ENOBUFS) {
		err = h.sendFile(entry)
	}
	if err != nil {
		return fmt.Errorf("send a log record to the journal: %w", err)
	}
	return nil
}

func (h *JournalHandler) sendFile(entry []byte) error {
	fd, err := unix.MemfdCreate("journal-entry", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), "journal-entry")
	defer file.Close()
	if _, err := file.Write(entry); err != nil {
		return err
	}
	const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(file.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return err
	}
	_, _, err = h.conn.WriteMsgUnix(nil, unix.UnixRights(int(file.Fd())), h.socket)
	return err
}

// priority maps a level to one of syslog(3).
func priority(level slog.Level) string {
	switch {
	case level >= slog.LevelError:
		return "3"
	case level >= slog.LevelWarn:
		return "4"
	case level >= slog.LevelInfo:
		return "6"
	default:
		return "7"
	}
}

// appendAttr appends a, resolved and with its groups laid flat.
func appendAttr(attrs []journalAttr, prefix string, a slog.Attr) []journalAttr {
	value := a.Value.Resolve()
	if value.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, member := range value.Group() {
			attrs = appendAttr(attrs, prefix, member)
		}
		return attrs
	}
	if a.Key == "" && value.Equal(slog.Value{}) {
		return attrs
	}
	return append(attrs, journalAttr{prefix + a.Key, text(value)})
}

// text formats a value.
func text(value slog.Value) string {
	switch value.Kind() {
	case slog.KindTime:
		return value.Time().Format(time.RFC3339Nano)
	case slog.KindAny:
		return fmt.Sprintf("%+v", value.Any())
	default:
		return value.String()
	}
}

// quote returns s as it is if a reader can tell where it ends, else in Go's
// quotes.
func quote(s string) string {
	unclear := func(r rune) bool {
		return r == ' ' || r == '"' || r == '=' || r == utf8.RuneError || !unicode.IsPrint(r)
	}
	if s == "" || strings.ContainsFunc(s, unclear) {
		return strconv.Quote(s)
	}
	return s
}

// fieldName makes a journal field of an attribute's key: upper-case letters,
// digits and underscores, 64 at most.
func fieldName(key string) string {
	name := "BYOKD_" + strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z':
			return r - 'a' + 'A'
		case 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
			return r
		default:
			return '_'
		}
	}, key)
	return name[:min(len(name), 64)]
}

// appendField appends a field in the native protocol: NAME=value and a line
// feed, or, if the value has line feeds of its own, with its length.
func appendField(b []byte, name, value string) []byte {
	b = append(b, name...)
	if !strings.Contains(value, "\n") {
		b = append(b, '=')
	} else {
		b = append(b, '\n')
		b = binary.LittleEndian.AppendUint64(b, uint64(len(value)))
	}
	b = append(b, value...)
	return append(b, '\n')
}
