package config_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"byokd/config"
)

func TestSecretShowsNothing(t *testing.T) {
	const pin = "hunter2"
	s := config.NewSecret([]byte(pin))
	if string(s.Reveal()) != pin {
		t.Fatalf("Reveal returns %q", s.Reveal())
	}
	// A field that is not exported is out of reach of the methods of its type.
	wrapped := struct {
		Public  config.Secret
		private config.Secret
	}{s, s}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%p"} {
		fmt.Fprintf(&out, verb+"\n", s)
		fmt.Fprintf(&out, verb+"\n", &s)
		fmt.Fprintf(&out, verb+"\n", wrapped)
		fmt.Fprintf(&out, verb+"\n", &wrapped)
	}
	if err := json.NewEncoder(&out).Encode(wrapped); err != nil {
		t.Fatal(err)
	}
	text := slog.New(slog.NewTextHandler(&out, nil))
	text.Info("text", "pin", s, "in", wrapped)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("json", "pin", s, "in", wrapped)
	fmt.Fprintln(&out, s.String(), s.GoString(), s)
	for _, leak := range []string{pin, fmt.Sprintf("%x", pin), fmt.Sprintf("%X", pin), fmt.Sprint([]byte(pin))} {
		if strings.Contains(out.String(), leak) {
			t.Errorf("%q is in\n%s", leak, &out)
		}
	}
	if !strings.Contains(out.String(), "[redacted]") {
		t.Errorf("nothing says [redacted]:\n%s", &out)
	}
	if b := (config.Secret{}).Reveal(); len(b) != 0 {
		t.Errorf("the zero Secret reveals %q", b)
	}
}

func TestPIN(t *testing.T) {
	tests := []struct{ name, content, want, err string }{
		{"plain", "1234", "1234", ""},
		{"newline", "1234\n", "1234", ""},
		{"one newline only", "1234\n\n", "1234\n", ""},
		{"newline of Windows", "1234\r\n", "1234", ""},
		{"spaces are part of it", " 12 34 ", " 12 34 ", ""},
		{"empty", "", "", "is empty"},
		{"only a newline", "\n", "", "is empty"},
		{"far too long", strings.Repeat("1", 1<<17), "", "is longer than"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tr := newTree(t, map[string]string{"hsm.pin": tt.content})
			hsm := tr.load(t).HSMs["main"]
			if got, want := hsm.PINSource().Path(), tr.path("hsm.pin"); got != want {
				t.Errorf("the PIN is in %s, want %s", got, want)
			}
			pin, err := hsm.PIN()
			switch {
			case tt.err == "" && err != nil:
				t.Error(err)
			case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
				t.Errorf("error %v does not say %q", err, tt.err)
			case string(pin.Reveal()) != tt.want:
				t.Errorf("the PIN is %q, want %q", pin.Reveal(), tt.want)
			}
		})
	}
}

// The checks are made again at each read, since load was long ago.
func TestSecretIsCheckedWhenRead(t *testing.T) {
	tests := []struct {
		name string
		harm func(t *testing.T, tr tree)
		want string
	}{
		{"gone", func(t *testing.T, tr tree) { os.Remove(tr.path("hsm.pin")) }, "no such file"},
		{"readable by group", func(t *testing.T, tr tree) { chmod(t, tr.path("hsm.pin"), 0o640) }, "has mode 0640"},
		{"directory writable", func(t *testing.T, tr tree) { chmod(t, tr.dir, 0o777|os.ModeSticky) }, "lies in directory"},
		{"FIFO", func(t *testing.T, tr tree) {
			os.Remove(tr.path("hsm.pin"))
			if err := syscall.Mkfifo(tr.path("hsm.pin"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "not a regular file"},
		{"link into a directory that others may write to", func(t *testing.T, tr tree) {
			tr.write(t, "open/hsm.pin", "1234", 0o600)
			chmod(t, tr.path("open"), 0o777)
			os.Remove(tr.path("hsm.pin"))
			if err := os.Symlink("open/hsm.pin", tr.path("hsm.pin")); err != nil {
				t.Fatal(err)
			}
		}, "/open, which group or others may write to"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tr := newTree(t, nil)
			hsm := tr.load(t).HSMs["main"]
			if _, err := hsm.PIN(); err != nil {
				t.Fatal(err)
			}
			tt.harm(t, tr)
			if _, err := hsm.PIN(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v does not say %q", err, tt.want)
			}
		})
	}
}

func TestSecretOwner(t *testing.T) {
	tr := newTree(t, nil)
	const stranger, daemon = 12345, 54321
	if os.Geteuid() == 0 {
		if err := os.Chown(tr.path("hsm.pin"), stranger, -1); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(tr.path("hsm.pin"))
	if err != nil {
		t.Fatal(err)
	}
	fileOwner := int(info.Sys().(*syscall.Stat_t).Uid)

	tr.opts.UID = daemon
	_, err = config.Load(tr.path("byokd.toml"), tr.opts)
	want := fmt.Sprintf("belongs to user %d: it must be owned by root or by byokd's user", fileOwner)
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v does not say %q", err, want)
	}
	tr.opts.UID = fileOwner
	if _, err := config.Load(tr.path("byokd.toml"), tr.opts); err != nil {
		t.Errorf("refused for its owner: %v", err)
	}
	tr.opts.UID = -1
	if _, err := config.Load(tr.path("byokd.toml"), tr.opts); err != nil {
		t.Errorf("refused where byokd's user is not known: %v", err)
	}
}

func TestSystemdCredential(t *testing.T) {
	tr := newTree(t, map[string]string{"byokd.toml": `
[hsm.main]
module = "$DIR/module.so"
token_label = "byokd"
pin_credential = "hsm-pin"
[credentials.prod]
access_key_credential = "prod.csv"
`})
	// What systemd makes has permissions of systemd's choice.
	tr.write(t, "run/hsm-pin", "1234\n", 0o644)
	tr.write(t, "run/prod.csv", "id,key\n", 0o644)
	chmod(t, tr.path("run"), 0o777)

	cfg := tr.load(t)
	if _, err := cfg.HSMs["main"].PIN(); err == nil || !strings.Contains(err.Error(), "LoadCredential=hsm-pin:PATH") {
		t.Errorf("without $CREDENTIALS_DIRECTORY: error %v", err)
	}
	if n := len(cfg.Missing()); n != 2 {
		t.Errorf("%d missing, want 2: %v", n, cfg.Missing())
	}

	tr.opts.LookupEnv = func(key string) (string, bool) { return tr.path("run"), key == "CREDENTIALS_DIRECTORY" }
	cfg = tr.load(t)
	pin, err := cfg.HSMs["main"].PIN()
	if err != nil || string(pin.Reveal()) != "1234" {
		t.Errorf("PIN %q, %v", pin.Reveal(), err)
	}
	source, ok := cfg.Credentials["prod"].AccessKeySource()
	if !ok || source.Credential() != "prod.csv" || source.Path() != tr.path("run/prod.csv") {
		t.Errorf("source %v, %v", source, ok)
	}
	csv, err := source.Read()
	if err != nil || string(csv.Reveal()) != "id,key\n" {
		t.Errorf("CSV %q, %v", csv.Reveal(), err)
	}
	if m := cfg.Missing(); len(m) != 0 {
		t.Error(m)
	}
}

// byokctl check is run by people who may not look at secrets.
func TestSkipSecrets(t *testing.T) {
	tr := newTree(t, map[string]string{"byokd.toml": strings.Replace(baseConfig, "hsm.pin", "secrets/hsm.pin", 1)})
	tr.write(t, "secrets/hsm.pin", "1234", 0o600)
	chmod(t, tr.path("secrets"), 0)
	defer chmod(t, tr.path("secrets"), 0o700)
	chmod(t, filepath.Dir(tr.dir), 0o755)

	load := func() error {
		_, err := config.Load(tr.path("byokd.toml"), tr.opts)
		return err
	}
	if err := unprivileged(t, load); err == nil || !strings.Contains(err.Error(), "hsm.main.pin_file: "+tr.path("secrets/hsm.pin")+" cannot be looked at: permission denied") {
		t.Errorf("byokd's own load: error %v", err)
	}
	tr.opts.SkipSecrets = true
	if err := unprivileged(t, load); err != nil {
		t.Errorf("refused: %v", err)
	}
	// What can be seen is checked.
	chmod(t, tr.path("prod.csv"), 0o644)
	if err := unprivileged(t, load); err == nil || !strings.Contains(err.Error(), "prod.csv has mode 0644") {
		t.Errorf("error %v does not name the open secret", err)
	}
}

// unprivileged runs f without root's right to look at everything.
func unprivileged(t *testing.T, f func() error) error {
	t.Helper()
	if os.Geteuid() != 0 {
		return f()
	}
	result := make(chan error)
	go func() {
		// The file system user ID belongs to the thread, which ends with this
		// goroutine, as it is never unlocked.
		runtime.LockOSThread()
		const nobody = 65534
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETFSUID, nobody, 0, 0); errno != 0 {
			result <- errno
			return
		}
		result <- f()
	}()
	return <-result
}

// A value that stands at the wrong key may be a secret.
func TestProblemsShowNoSecret(t *testing.T) {
	tr := newTree(t, map[string]string{"byokd.toml": `
pin = "hunter2"
[hsm.main]
module = "$DIR/module.so"
token_label = "byokd"
pin_file = ["hunter2"]
pin = "hunter2"
[credentials.prod]
secret_access_key = "hunter2"
credential_process = 2
[aws]
kms_endpoint = "https://me:hunter2@example.com"
sts_endpoint = "https://example.com/?token=hunter2"
`})
	_, err := config.Load(tr.path("byokd.toml"), tr.opts)
	if err == nil {
		t.Fatal("accepted")
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("the secret is in the message:\n%v", err)
	}
}

// A secret that is kept is not read while its file is the same, and each change of
// the file counts at once.
func TestKeptSecret(t *testing.T) {
	tr := newTree(t, map[string]string{"hsm.pin": "1234"})
	file := tr.load(t).HSMs["main"].PINSource()
	fresh := file.Keep()
	kept := file.Keep()
	kept.SetTick(-time.Hour) // as if the file were old
	read := func(want string) {
		t.Helper()
		for _, k := range []*config.KeptSecret{kept, fresh} {
			secret, err := k.Read()
			if err != nil || string(secret.Reveal()) != want {
				t.Errorf("read %q, %v, want %q", secret.Reveal(), err, want)
			}
			clear(secret.Reveal()) // as a caller may
		}
	}
	read("1234")
	read("1234")
	reads := func(k *config.KeptSecret) float64 { return testing.AllocsPerRun(10, func() { k.Read() }) }
	if again, anew := reads(kept), reads(fresh); again > anew/3 {
		t.Errorf("%v allocations to read what is kept, %v to read it anew", again, anew)
	}
	tr.write(t, "other.pin", "4321", 0o600)
	if err := os.Rename(tr.path("other.pin"), tr.path("hsm.pin")); err != nil {
		t.Fatal(err)
	}
	read("4321")
	time.Sleep(20 * time.Millisecond) // the clock of files goes in ticks
	tr.write(t, "hsm.pin", "5678", 0o600)
	read("5678")
	time.Sleep(20 * time.Millisecond)
	chmod(t, tr.path("hsm.pin"), 0o640)
	for _, k := range []*config.KeptSecret{kept, fresh} {
		if _, err := k.Read(); err == nil || !strings.Contains(err.Error(), "has mode 0640") {
			t.Errorf("after chmod: %v", err)
		}
	}
	os.Remove(tr.path("hsm.pin"))
	if _, err := kept.Read(); err == nil {
		t.Error("a secret whose file is gone is read")
	}
}
