package systemd_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/slogtest"
	"time"

	"byokd/systemd"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// entry receives one journal entry as journald would, from a datagram or a
// sealed memory file.
func entry(t *testing.T, conn *net.UnixConn) map[string]string {
	t.Helper()
	b, oob := make([]byte, 1<<18), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := conn.ReadMsgUnix(b, oob)
	if err != nil {
		t.Fatal(err)
	}
	b = b[:n]
	if oobn > 0 {
		messages, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			t.Fatal(err)
		}
		fds, err := unix.ParseUnixRights(&messages[0])
		if err != nil {
			t.Fatal(err)
		}
		file := os.NewFile(uintptr(fds[0]), "entry")
		defer file.Close()
		seals, err := unix.FcntlInt(file.Fd(), unix.F_GET_SEALS, 0)
		if want := unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_SEAL; err != nil || seals != want {
			t.Errorf("seals %#x (%v), want %#x: journald refuses others", seals, err, want)
		}
		if b, err = io.ReadAll(io.NewSectionReader(file, 0, 1<<30)); err != nil {
			t.Fatal(err)
		}
	}
	fields := map[string]string{}
	for len(b) > 0 {
		line, rest, ok := strings.Cut(string(b), "\n")
		if !ok {
			t.Fatalf("entry ends in the middle of a line: %q", line)
		}
		name, value, isText := strings.Cut(line, "=")
		if !isText {
			size := binary.LittleEndian.Uint64([]byte(rest[:8]))
			value, rest = rest[8:8+size], rest[8+size:]
			if rest[0] != '\n' {
				t.Fatalf("field %s has no end", name)
			}
			rest = rest[1:]
		}
		if _, ok := fields[name]; ok {
			t.Fatalf("field %s comes twice", name)
		}
		fields[name] = value
		b = []byte(rest)
	}
	return fields
}

func newHandler(t *testing.T, opts systemd.JournalOptions) (*systemd.JournalHandler, *net.UnixConn) {
	t.Helper()
	conn, name := listen(t, "")
	opts.Socket = name
	h, err := systemd.NewJournalHandler(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h, conn
}

type lazy struct{}

func (lazy) LogValue() slog.Value { return slog.StringValue("resolved") }

func TestJournalFields(t *testing.T) {
	h, conn := newHandler(t, systemd.JournalOptions{Level: slog.LevelDebug, Identifier: "byokd"})
	log := slog.New(h)
	long := strings.Repeat("x", 100)
	tests := []struct {
		name string
		log  func()
		want map[string]string
	}{
		{"plain", func() { log.Info("started") },
			map[string]string{"MESSAGE": "started", "PRIORITY": "6"}},
		{"group and job", func() { log.Warn("step failed", "group", "payments", "job", "0199", "attempt", 3) },
			map[string]string{"MESSAGE": "step failed group=payments job=0199 attempt=3", "PRIORITY": "4", "BYOKD_GROUP": "payments", "BYOKD_JOB": "0199", "BYOKD_ATTEMPT": "3"}},
		{"debug", func() { log.Debug("call") }, map[string]string{"MESSAGE": "call", "PRIORITY": "7"}},
		{"error", func() { log.Error("lost", "err", io.ErrUnexpectedEOF) },
			map[string]string{"MESSAGE": `lost err="unexpected EOF"`, "PRIORITY": "3", "BYOKD_ERR": "unexpected EOF"}},
		{"above error", func() { log.Log(t.Context(), slog.LevelError+4, "worse") }, map[string]string{"MESSAGE": "worse", "PRIORITY": "3"}},
		{"line feeds", func() { log.Info("two\nlines", "err", "a\nb=c", "group", "g") },
			map[string]string{"MESSAGE": "two\nlines err=\"a\\nb=c\" group=g", "PRIORITY": "6", "BYOKD_ERR": "a\nb=c", "BYOKD_GROUP": "g"}},
		{"names", func() { log.Info("m", "key-id", 1, "ümlaut", 2, "1", 3, "_x", 4, long, 5) },
			map[string]string{"MESSAGE": "m key-id=1 ümlaut=2 1=3 _x=4 " + long + "=5", "PRIORITY": "6", "BYOKD_KEY_ID": "1", "BYOKD__MLAUT": "2", "BYOKD_1": "3", "BYOKD__X": "4", "BYOKD_" + strings.ToUpper(long[:58]): "5"}},
		{"groups", func() {
			log.With("a", 1).WithGroup("hsm").With("b", 2).Info("m", slog.Group("c", "d", 3), slog.Group("", "group", "g"))
		}, map[string]string{"MESSAGE": "m a=1 hsm.b=2 hsm.c.d=3 hsm.group=g", "PRIORITY": "6", "BYOKD_A": "1", "BYOKD_HSM_B": "2", "BYOKD_HSM_C_D": "3", "BYOKD_HSM_GROUP": "g"}},
		{"values", func() {
			log.Info("m", "t", time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC), "d", 90*time.Second, "l", lazy{}, "n", nil, "e", "", "q", `say "x"`, "eq", "a=b", "bool", true, "f", 0.5, "s", []string{"a", "b"}, "nul", "a\x00b", "bad", "\xff")
		}, map[string]string{
			"MESSAGE":  `m t=2026-11-23T03:00:00Z d=1m30s l=resolved n=<nil> e="" q="say \"x\"" eq="a=b" bool=true f=0.5 s="[a b]" nul="a\x00b" bad="\xff"`,
			"PRIORITY": "6", "BYOKD_T": "2026-11-23T03:00:00Z", "BYOKD_D": "1m30s", "BYOKD_L": "resolved", "BYOKD_N": "<nil>", "BYOKD_E": "", "BYOKD_Q": `say "x"`, "BYOKD_EQ": "a=b", "BYOKD_BOOL": "true", "BYOKD_F": "0.5", "BYOKD_S": "[a b]", "BYOKD_NUL": "a\x00b", "BYOKD_BAD": "\xff",
		}},
		{"nil pointer", func() { log.Info("m", "err", (*os.PathError)(nil)) },
			map[string]string{"MESSAGE": "m err=<nil>", "PRIORITY": "6", "BYOKD_ERR": "<nil>"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := time.Now()
			tt.log()
			got := entry(t, conn)
			stamp, err := time.Parse(time.RFC3339Nano, got["SYSLOG_TIMESTAMP"])
			if err != nil || stamp.Before(before.Round(0)) || stamp.After(time.Now()) {
				t.Errorf("SYSLOG_TIMESTAMP=%s (%v)", got["SYSLOG_TIMESTAMP"], err)
			}
			delete(got, "SYSLOG_TIMESTAMP")
			tt.want["SYSLOG_IDENTIFIER"] = "byokd"
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("fields (-want +got):\n%s", diff)
			}
		})
	}
}

func TestJournalDefaults(t *testing.T) {
	h, conn := newHandler(t, systemd.JournalOptions{})
	log := slog.New(h)
	log.Debug("not logged")
	log.Info("logged")
	got := entry(t, conn)
	if got["MESSAGE"] != "logged" || got["SYSLOG_IDENTIFIER"] != filepath.Base(os.Args[0]) {
		t.Errorf("received %q", got)
	}
}

// The level may change while the handler is in use.
func TestJournalLevel(t *testing.T) {
	var level slog.LevelVar
	h, conn := newHandler(t, systemd.JournalOptions{Level: &level})
	log := slog.New(h).With("job", "1")
	level.Set(slog.LevelError)
	log.Warn("not logged")
	level.Set(slog.LevelDebug)
	log.Debug("logged")
	if got := entry(t, conn)["MESSAGE"]; got != "logged job=1" {
		t.Errorf("MESSAGE=%q", got)
	}
}

// What is too large for a datagram comes as a memory file.
func TestJournalLargeEntry(t *testing.T) {
	h, conn := newHandler(t, systemd.JournalOptions{})
	large := strings.Repeat("0123456789abcdef", 1<<17)
	slog.New(h).Info("large", "err", large, "group", "g")
	got := entry(t, conn)
	if got["BYOKD_ERR"] != large || got["MESSAGE"] != "large err="+large+" group=g" || got["BYOKD_GROUP"] != "g" {
		t.Errorf("received %d bytes of BYOKD_ERR and %d of MESSAGE", len(got["BYOKD_ERR"]), len(got["MESSAGE"]))
	}
}

// A journald that was restarted gets the next record, and one that is away
// makes an error and nothing worse.
func TestJournalRestart(t *testing.T) {
	h, conn := newHandler(t, systemd.JournalOptions{})
	name := conn.LocalAddr().String()
	record := slog.NewRecord(time.Now(), slog.LevelInfo, "m", 0)
	conn.Close()
	if err := h.Handle(t.Context(), record); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("Handle without a journal: %v", err)
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	conn, _ = listen(t, name)
	if err := h.Handle(t.Context(), record); err != nil {
		t.Fatal(err)
	}
	if got := entry(t, conn)["MESSAGE"]; got != "m" {
		t.Errorf("MESSAGE=%q", got)
	}
}

func TestJournalConcurrently(t *testing.T) {
	h, conn := newHandler(t, systemd.JournalOptions{})
	parent := slog.New(h).With("kind", "rotate")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			log := parent.With("group", i)
			for j := range 50 {
				log.Info("m", "job", j)
			}
		})
	}
	seen := map[string]bool{}
	for range 8 * 50 {
		e := entry(t, conn)
		want := fmt.Sprintf("m kind=rotate group=%s job=%s", e["BYOKD_GROUP"], e["BYOKD_JOB"])
		if e["MESSAGE"] != want || seen[want] {
			t.Errorf("MESSAGE=%q, want %q once", e["MESSAGE"], want)
		}
		seen[want] = true
	}
	wg.Wait()
}

func TestSlogConformance(t *testing.T) {
	var conn *net.UnixConn
	newSlogHandler := func(t *testing.T) slog.Handler {
		var h *systemd.JournalHandler
		h, conn = newHandler(t, systemd.JournalOptions{})
		return h
	}
	slogtest.Run(t, newSlogHandler, func(t *testing.T) map[string]any {
		fields := entry(t, conn)
		words := strings.Fields(fields["MESSAGE"])
		result := map[string]any{slog.MessageKey: words[0], slog.LevelKey: fields["PRIORITY"]}
		if stamp, ok := fields["SYSLOG_TIMESTAMP"]; ok {
			result[slog.TimeKey] = stamp
		}
		for _, word := range words[1:] {
			key, value, ok := strings.Cut(word, "=")
			if !ok {
				t.Fatalf("MESSAGE=%s", fields["MESSAGE"])
			}
			field := "BYOKD_" + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
			if fields[field] != value {
				t.Errorf("%s=%s, but MESSAGE=%s", field, fields[field], fields["MESSAGE"])
			}
			group := result
			names := strings.Split(key, ".")
			for _, name := range names[:len(names)-1] {
				if group[name] == nil {
					group[name] = map[string]any{}
				}
				group = group[name].(map[string]any)
			}
			group[names[len(names)-1]] = value
		}
		return result
	})
}

func TestStderrIsJournal(t *testing.T) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	defer write.Close()
	stderr := os.Stderr
	defer func() { os.Stderr = stderr }()
	os.Stderr = write

	var stat unix.Stat_t
	if err := unix.Fstat(int(write.Fd()), &stat); err != nil {
		t.Fatal(err)
	}
	device, inode := strconv.FormatUint(stat.Dev, 10), strconv.FormatUint(stat.Ino, 10)
	tests := []struct {
		stream string
		want   bool
	}{
		{device + ":" + inode, true},
		{"", false},
		{device, false},
		{device + ":" + inode + "1", false},
		{device + "1:" + inode, false},
		{":", false},
	}
	for _, tt := range tests {
		t.Setenv("JOURNAL_STREAM", tt.stream)
		if got := systemd.StderrIsJournal(); got != tt.want {
			t.Errorf("JOURNAL_STREAM=%q: %v, want %v", tt.stream, got, tt.want)
		}
	}
	t.Setenv("JOURNAL_STREAM", device+":"+inode)
	os.Stderr = stderr
	if systemd.StderrIsJournal() {
		t.Error("a stderr that was redirected is taken for the journal")
	}
}

func BenchmarkJournal(b *testing.B) {
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(b.TempDir(), "socket"), Net: "unixgram"})
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	var wg sync.WaitGroup
	wg.Go(func() {
		for buf := make([]byte, 1<<16); ; {
			if _, err := conn.Read(buf); err != nil {
				return
			}
		}
	})
	h, err := systemd.NewJournalHandler(systemd.JournalOptions{Socket: conn.LocalAddr().String()})
	if err != nil {
		b.Fatal(err)
	}
	defer h.Close()
	log := slog.New(h).With("group", "payments", "job", "0199")
	for b.Loop() {
		log.LogAttrs(context.Background(), slog.LevelInfo, "step done", slog.String("step", "import"), slog.Duration("elapsed", time.Second))
	}
	conn.Close()
	wg.Wait()
}
