package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"byokd/config"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// A requestFolder is a folder of request files to test with.
type requestFolder struct {
	*requests
	t   testing.TB
	log *bytes.Buffer
}

func newRequestFolder(t testing.TB) *requestFolder {
	t.Helper()
	f := &requestFolder{t: t, log: new(bytes.Buffer)}
	f.reopen(filepath.Join(t.TempDir(), "requests"))
	return f
}

// reopen is a restart of byokd.
func (f *requestFolder) reopen(dir string) {
	f.t.Helper()
	q, err := newRequests(dir, slog.New(slog.NewTextHandler(f.log, nil)))
	if err != nil {
		f.t.Fatal(err)
	}
	f.requests = q
}

func (f *requestFolder) path(name ...string) string {
	return filepath.Join(append([]string{f.dir}, name...)...)
}

func (f *requestFolder) put(name, body string) {
	f.t.Helper()
	if err := os.WriteFile(f.path(name), []byte(body), 0o640); err != nil {
		f.t.Fatal(err)
	}
}

// names lists what is in a folder, but for the two that are always there.
func (f *requestFolder) names(folder string) []string {
	f.t.Helper()
	entries, err := os.ReadDir(f.path(folder))
	if err != nil {
		f.t.Fatal(err)
	}
	names := []string{}
	for _, e := range entries {
		if e.Name() != requestTakenDir && e.Name() != requestRejectedDir {
			names = append(names, e.Name())
		}
	}
	return names
}

func (f *requestFolder) mustTake(name string) *request {
	f.t.Helper()
	r, err := f.take(name)
	if err != nil {
		f.t.Fatal(err)
	}
	if r == nil {
		f.t.Fatalf("%s is no request; log: %s", name, f.log)
	}
	return r
}

func TestRequestTaken(t *testing.T) {
	full := config.Request{ImportMaterial: true, UpdatePolicy: true}
	tests := []struct {
		name, body  string
		verb, group string
		want        config.Request
	}{
		{"rotate.payments", "", "rotate", "payments", config.Request{}},
		{"rotate.payments", "\n", "rotate", "payments", config.Request{}},
		{"rotate.0", "", "rotate", "0", config.Request{}},
		{"rotate.a-b-" + strings.Repeat("c", 59), "", "rotate", "a-b-" + strings.Repeat("c", 59), config.Request{}},
		{"sync.payments", "", "sync", "payments", full},
		{"sync.payments", "generation = 3\nimport_material = false", "sync", "payments", config.Request{Generation: new(3), UpdatePolicy: true}},
		{"sync.payments", "#" + strings.Repeat("x", requestMaxSize-1), "sync", "payments", full},
	}
	for _, tt := range tests {
		t.Run(tt.name+" "+tt.body[:min(20, len(tt.body))], func(t *testing.T) {
			f := newRequestFolder(t)
			f.put(tt.name, tt.body)
			r := f.mustTake(tt.name)
			if r.Verb != tt.verb || r.Group != tt.group || !regexp.MustCompile("^"+requestKey+"$").MatchString(r.UniqueKey) {
				t.Errorf("took %+v", r)
			}
			if diff := cmp.Diff(tt.want, r.Body); diff != "" {
				t.Errorf("body (-want +got):\n%s", diff)
			}
			if left, taken := f.names(""), f.names(requestTakenDir); len(left) != 0 || !slices.Equal(taken, []string{r.UniqueKey + "." + tt.name}) {
				t.Errorf("left %v, taken %v", left, taken)
			}
			if err := f.done(r); err != nil {
				t.Fatal(err)
			}
			if err := f.done(r); err != nil {
				t.Errorf("done again: %v", err)
			}
			if taken := f.names(requestTakenDir); len(taken) != 0 {
				t.Errorf("still taken: %v", taken)
			}
		})
	}
}

func TestRequestLeftAlone(t *testing.T) {
	f := newRequestFolder(t)
	for _, name := range []string{".rotate.payments", "rotate.payments~", "rotate.payments.tmp", "sync.payments.swp"} {
		f.put(name, "")
		if r, err := f.take(name); r != nil || err != nil {
			t.Errorf("take(%s) = %v, %v", name, r, err)
		}
		if _, err := os.Stat(f.path(name)); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"rotate.payments", requestTakenDir, requestRejectedDir} {
		if r, err := f.take(name); r != nil || err != nil {
			t.Errorf("take(%s) = %v, %v", name, r, err)
		}
	}
	if f.log.Len() > 0 || len(f.names(requestRejectedDir)) > 0 {
		t.Errorf("rejected %v; log: %s", f.names(requestRejectedDir), f.log)
	}
}

func TestRequestRejected(t *testing.T) {
	const secret = "hunter2"
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	put := func(body string) func(string) error {
		return func(path string) error { return os.WriteFile(path, []byte(body), 0o640) }
	}
	const naming = "a request is named rotate.GROUP or sync.GROUP"
	tests := []struct {
		name string
		make func(path string) error
		want string
		as   string // in rejected, without its key; "": name
	}{
		{"rotate.link", func(path string) error { return os.Symlink(outside, path) }, "not a regular file", ""},
		{"rotate.dangling", func(path string) error { return os.Symlink("nowhere", path) }, "not a regular file", ""},
		{"sync.pipe", func(path string) error { return syscall.Mkfifo(path, 0o666) }, "not a regular file", ""},
		{"rotate.folder", func(path string) error {
			return errors.Join(os.Mkdir(path, 0o700), os.WriteFile(filepath.Join(path, "x"), nil, 0o600))
		}, "not a regular file", ""},
		{"sync.large", put("#" + strings.Repeat("x", requestMaxSize)), "larger than 4 KiB", ""},
		{"rotate.large", put(strings.Repeat(" ", 10<<20)), "larger than 4 KiB", ""},
		{"rotate.content", put(secret), "a rotate request has no content", ""},
		{"sync.unknown", put(secret + " = 1"), "unknown key", ""},
		{"sync.broken", put(secret), "not TOML", ""},
		{"sync.wrong", put("generation = '" + secret + "'"), "must be a whole number", ""},
		{"sync.danger", put("delete_material = true #" + secret), "name the generation", ""},
		{"sync.binary", put("\x00\xff" + secret), "not TOML", ""},
		{"delete.payments", put(""), naming, ""},
		{"rotate", put(""), naming, ""},
		{"rotate.", put(""), naming, ""},
		{"rotate.Payments", put(""), naming, ""},
		{"rotate.-a", put(""), naming, ""},
		{"rotate.a.b", put(""), naming, ""},
		{"rotate." + strings.Repeat("a", 64), put(""), naming, ""},
		{"rotate.a\nb", put(""), naming, "rotate.a_b"},
		{"rotate.\xff\xfe", put(""), naming, "rotate.__"},
		{strings.Repeat("ü", 127), put(""), naming, strings.Repeat("_", 100)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newRequestFolder(t)
			if err := tt.make(f.path(tt.name)); err != nil {
				t.Fatal(err)
			}
			if r, err := f.take(tt.name); r != nil || err != nil {
				t.Fatalf("take = %+v, %v", r, err)
			}
			if left, taken := f.names(""), f.names(requestTakenDir); len(left)+len(taken) > 0 {
				t.Errorf("left %v, taken %v", left, taken)
			}
			as := tt.as
			if as == "" {
				as = tt.name
			}
			rejected := f.names(requestRejectedDir)
			if len(rejected) != 2 || rejected[1] != rejected[0]+requestReasonSuffix || !regexp.MustCompile("^"+requestKey+"."+regexp.QuoteMeta(as)+"$").MatchString(rejected[0]) {
				t.Fatalf("rejected %q", rejected)
			}
			reason, err := os.ReadFile(f.path(requestRejectedDir, rejected[1]))
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(reason), tt.want) || !strings.Contains(f.log.String(), tt.want) {
				t.Errorf("reason %q, log %q, want %q", reason, f.log, tt.want)
			}
			if bytes.Contains(reason, []byte(secret)) || strings.Contains(f.log.String(), secret) {
				t.Errorf("the request is quoted: reason %q, log %q", reason, f.log)
			}
		})
	}
	if data, err := os.ReadFile(outside); err != nil || string(data) != secret {
		t.Errorf("what a link points to was touched: %q, %v", data, err)
	}
}

func TestRequestRejectedByDaemon(t *testing.T) {
	f := newRequestFolder(t)
	f.put("rotate.payments", "")
	r := f.mustTake("rotate.payments")
	if err := f.reject(r, "not designated"); err != nil {
		t.Fatal(err)
	}
	want := []string{r.UniqueKey + ".rotate.payments", r.UniqueKey + ".rotate.payments.reason"}
	if diff := cmp.Diff(want, f.names(requestRejectedDir)); diff != "" {
		t.Errorf("rejected (-want +got):\n%s", diff)
	}
	reason, err := os.ReadFile(f.path(requestRejectedDir, want[1]))
	if err != nil || string(reason) != "not designated\n" {
		t.Errorf("reason %q, %v", reason, err)
	}
	if taken := f.names(requestTakenDir); len(taken) != 0 {
		t.Errorf("still taken: %v", taken)
	}
}

func TestRequestRejectedKept(t *testing.T) {
	f := newRequestFolder(t)
	var reasons []string
	stranger := f.path(requestRejectedDir, "note")
	if err := os.WriteFile(stranger, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for i := range requestMaxRejected + 20 {
		name := fmt.Sprintf("refused.%d", i)
		if i%2 == 0 {
			f.put(name, "")
		} else if err := os.MkdirAll(f.path(name, "sub", "sub"), 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := f.take(name); err != nil {
			t.Fatal(err)
		}
		reasons = append(reasons, name)
	}
	var got []string
	for _, name := range f.names(requestRejectedDir) {
		if original, ok := strings.CutSuffix(name, requestReasonSuffix); ok {
			if _, err := os.Lstat(f.path(requestRejectedDir, original)); err != nil {
				t.Error(err)
			}
			_, original, _ = strings.Cut(original, ".")
			got = append(got, original)
		}
	}
	if diff := cmp.Diff(reasons[20:], got); diff != "" {
		t.Errorf("kept (-want +got):\n%s", diff)
	}
	if n := len(f.names(requestRejectedDir)); n != 2*requestMaxRejected+1 {
		t.Errorf("%d files kept", n)
	}
	if _, err := os.Stat(stranger); err != nil {
		t.Errorf("a file that is no rejected request was removed: %v", err)
	}
}

// After a crash between the taking and the job's being durable, the request is
// there with the same key. What was dropped meanwhile is one of its own.
func TestRequestLeftovers(t *testing.T) {
	f := newRequestFolder(t)
	var want []*request
	for i := range 10 {
		name := fmt.Sprintf("sync.g%d", 9-i)
		f.put(name, fmt.Sprintf("generation = %d", i))
		want = append(want, f.mustTake(name))
	}
	finished := want[3]
	if err := f.done(finished); err != nil {
		t.Fatal(err)
	}
	want = slices.Delete(want, 3, 4)
	f.put("sync.g0", "generation = 77") // the same name again
	for _, name := range []string{"note", "x.rotate.a", strings.Repeat("0", 32) + ".delete.a"} {
		f.put(filepath.Join(requestTakenDir, name), "")
	}
	bad := strings.Repeat("0", 32) + ".rotate.bad"
	f.put(filepath.Join(requestTakenDir, bad), "content")

	for range 2 { // crash after crash
		f.reopen(f.dir)
		got, err := f.leftovers()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(request{})); diff != "" {
			t.Errorf("leftovers (-want +got):\n%s", diff)
		}
	}
	if rejected := f.names(requestRejectedDir); !slices.Equal(rejected, []string{bad, bad + requestReasonSuffix}) {
		t.Errorf("rejected %v", rejected)
	}
	again := f.mustTake("sync.g0")
	if slices.ContainsFunc(want, func(r *request) bool { return r.UniqueKey == again.UniqueKey }) || *again.Body.Generation != 77 {
		t.Errorf("the request that was dropped meanwhile is %+v", again)
	}
	for _, r := range want {
		if err := f.done(r); err != nil {
			t.Fatal(err)
		}
	}
	got, err := f.leftovers()
	if err != nil || len(got) != 1 || got[0].UniqueKey != again.UniqueKey {
		t.Errorf("left over at last: %v, %v", got, err)
	}
}

// Each file dropped while others are taken makes one request.
func TestRequestsDroppedMeanwhile(t *testing.T) {
	f := newRequestFolder(t)
	const droppers, each = 4, 200
	var wg sync.WaitGroup
	for dropper := range droppers {
		wg.Go(func() {
			for i := range each {
				name := fmt.Sprintf("sync.g%d-%d", dropper, i)
				temp := f.path("." + name)
				if err := errors.Join(os.WriteFile(temp, fmt.Appendf(nil, "generation = %d", i), 0o640), os.Rename(temp, f.path(name))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	dropped := make(chan struct{})
	go func() { wg.Wait(); close(dropped) }()
	keys := map[string]bool{}
	for last := false; ; {
		for _, name := range f.names("") {
			r, err := f.take(name)
			if err != nil {
				t.Fatal(err)
			}
			if r == nil {
				continue // the hidden file
			}
			if keys[r.UniqueKey] || !strings.HasSuffix(r.Group, fmt.Sprintf("-%d", *r.Body.Generation)) {
				t.Errorf("took %+v", r)
			}
			keys[r.UniqueKey] = true
			if err := f.done(r); err != nil {
				t.Fatal(err)
			}
		}
		if last {
			break
		}
		select {
		case <-dropped:
			last = true
		default:
		}
	}
	if len(keys) != droppers*each {
		t.Errorf("took %d requests of %d", len(keys), droppers*each)
	}
}

func TestRequestFolderModes(t *testing.T) {
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	f := newRequestFolder(t)
	f.put("refused", "")
	if _, err := f.take("refused"); err != nil {
		t.Fatal(err)
	}
	reason := f.names(requestRejectedDir)[1]
	for name, want := range map[string]fs.FileMode{"": 0o770, requestTakenDir: 0o700, requestRejectedDir: 0o750, filepath.Join(requestRejectedDir, reason): 0o640} {
		info, err := os.Stat(f.path(name))
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %v, want %v", name, got, want)
		}
	}
	// Modes that were changed are put right at the next start.
	if err := errors.Join(os.Chmod(f.path(), 0o700), os.Chmod(f.path(requestTakenDir), 0o777)); err != nil {
		t.Fatal(err)
	}
	f.reopen(f.dir)
	for name, want := range map[string]fs.FileMode{"": 0o770, requestTakenDir: 0o700} {
		if info, err := os.Stat(f.path(name)); err != nil || info.Mode().Perm() != want {
			t.Errorf("%q: %v, %v", name, info.Mode(), err)
		}
	}
}

// Members of the group can replace what is in the folder. What is not byokd's
// own is not used.
func TestRequestFolderReplaced(t *testing.T) {
	elsewhere := t.TempDir()
	for _, folder := range []string{requestTakenDir, requestRejectedDir} {
		replacements := map[string]func(path string) error{
			"link": func(path string) error { return os.Symlink(elsewhere, path) },
			"file": func(path string) error { return os.WriteFile(path, nil, 0o600) },
		}
		if os.Geteuid() == 0 { // only root can make one of another user
			replacements["another user's"] = func(path string) error {
				return errors.Join(os.Mkdir(path, 0o700), os.Chown(path, 65534, 65534))
			}
		}
		for what, replace := range replacements {
			t.Run(folder+" "+what, func(t *testing.T) {
				f := newRequestFolder(t)
				if err := errors.Join(os.Remove(f.path(folder)), replace(f.path(folder))); err != nil {
					t.Fatal(err)
				}
				f.put("rotate.payments", "")
				if r, err := f.take("rotate.payments"); r != nil || err == nil {
					t.Errorf("take = %v, %v", r, err)
				}
				if _, err := f.leftovers(); err == nil {
					t.Error("leftovers has no error")
				}
				if left := f.names(""); len(left) != 1 {
					t.Errorf("the request is lost: %v", left)
				}
				// Put right, the request is obeyed.
				if err := os.RemoveAll(f.path(folder)); err != nil {
					t.Fatal(err)
				}
				f.mustTake("rotate.payments")
			})
		}
	}
	if entries, err := os.ReadDir(elsewhere); err != nil || len(entries) > 0 {
		t.Errorf("written through a link: %v, %v", entries, err)
	}
}

func TestRequestFolderRemade(t *testing.T) {
	f := newRequestFolder(t)
	if err := errors.Join(os.RemoveAll(f.dir), os.Mkdir(f.dir, 0o770)); err != nil {
		t.Fatal(err)
	}
	f.put("rotate.payments", "")
	f.mustTake("rotate.payments")
	if err := os.RemoveAll(f.dir); err != nil {
		t.Fatal(err)
	}
	if _, err := f.take("rotate.payments"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("take without a folder: %v", err)
	}
}

// Where there is no room for the reason, a bad request stays where it is.
func TestRequestNoRoom(t *testing.T) {
	f := newRequestFolder(t)
	f.put("refused", "")
	f.put("rotate.payments", "content")

	// A limit on the size of files stands in for a full disk.
	signal.Ignore(syscall.SIGXFSZ)
	defer signal.Reset(syscall.SIGXFSZ)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	restore := func() {
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 0, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	_, errRefused := f.take("refused")
	_, errContent := f.take("rotate.payments")
	restore()
	if !errors.Is(errRefused, syscall.EFBIG) || !errors.Is(errContent, syscall.EFBIG) {
		t.Errorf("take = %v and %v", errRefused, errContent)
	}
	if left, taken, rejected := f.names(""), f.names(requestTakenDir), f.names(requestRejectedDir); len(left) != 1 || len(taken) != 1 || len(rejected) != 0 {
		t.Errorf("left %v, taken %v, rejected %v", left, taken, rejected)
	}

	// With room again.
	if r, err := f.take("refused"); r != nil || err != nil {
		t.Errorf("take = %v, %v", r, err)
	}
	if left, err := f.leftovers(); len(left) != 0 || err != nil {
		t.Errorf("leftovers = %v, %v", left, err)
	}
	if rejected := f.names(requestRejectedDir); len(rejected) != 4 {
		t.Errorf("rejected %v", rejected)
	}
}

func FuzzRequest(f *testing.F) {
	f.Add("rotate.payments", []byte(""))
	f.Add("sync.payments", []byte("generation = 3\n"))
	f.Add("sync.payments~", []byte("x"))
	f.Add("..rotate.a", []byte("x"))
	f.Add("rotate.\xff\n", []byte("0123456789abcdef0123456789abcdef"))
	f.Fuzz(func(t *testing.T, name string, body []byte) {
		if name == "" || name == "." || name == ".." || name == requestTakenDir || name == requestRejectedDir || strings.ContainsAny(name, "/\x00") || len(name) > 255 {
			t.Skip("no name that a file can have")
		}
		folder := newRequestFolder(t)
		folder.put(name, string(body))
		r, err := folder.take(name)
		if err != nil {
			t.Fatal(err)
		}
		left, taken, rejected := folder.names(""), folder.names(requestTakenDir), folder.names(requestRejectedDir)
		switch {
		case !isRequest(name):
			if r != nil || len(left) != 1 || len(taken)+len(rejected) > 0 {
				t.Errorf("%q was not left alone: %v, %v, %v", name, r, taken, rejected)
			}
		case r != nil:
			if r.Verb+"."+r.Group != name || len(body) > requestMaxSize || len(left)+len(rejected) > 0 || len(taken) != 1 {
				t.Errorf("%q became %+v: %v, %v, %v", name, r, left, taken, rejected)
			}
			again, err := folder.leftovers()
			if err != nil || len(again) != 1 || !cmp.Equal(again[0], r, cmp.AllowUnexported(request{})) {
				t.Errorf("%+v left over as %v, %v", r, again, err)
			}
		default:
			if len(left)+len(taken) > 0 || len(rejected) != 2 {
				t.Errorf("%q was not rejected: %v, %v, %v", name, left, taken, rejected)
			}
		}
	})
}
