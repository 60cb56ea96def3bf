package systemd_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func readUnit(t *testing.T) string {
	t.Helper()
	unit, err := os.ReadFile("byokd.service")
	if err != nil {
		t.Fatal(err)
	}
	return string(unit)
}

// What users and the daemon rely on.
func TestUnit(t *testing.T) {
	sections := map[string][]string{}
	section := ""
	for line := range strings.Lines(readUnit(t)) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "["):
			section = line
		case line != "" && line[0] != '#':
			sections[section] = append(sections[section], line)
		}
	}
	want := map[string][]string{
		"[Unit]": {"StartLimitIntervalSec=0", "OnFailure=byokd-alarm@%n.service"},
		"[Service]": {
			"Type=notify", "ExecStart=/usr/bin/byokd", "ExecReload=/bin/kill -HUP $MAINPID", "ExecReload=/bin/sleep 0.2", "User=byokd", "Group=byokd", "UMask=0077",
			"StateDirectory=byokd", "RuntimeDirectory=byokd", "RuntimeDirectoryMode=0750", "RuntimeDirectoryPreserve=yes",
			"Restart=always", "RestartSec=5", "RestartPreventExitStatus=78 243", "WatchdogSec=60", "LimitCORE=0",
			"NoNewPrivileges=yes", "ProtectSystem=strict", "CapabilityBoundingSet=",
		},
		"[Install]": {"WantedBy=multi-user.target"},
	}
	for section, lines := range want {
		for _, line := range lines {
			if !slices.Contains(sections[section], line) {
				t.Errorf("%s has no line %s", section, line)
			}
		}
	}
}

// find returns a program's path. A machine without systemd cannot judge units.
func find(t *testing.T, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Skipf("NOT TESTED: %s is not installed, so nobody has checked the files for systemd", program)
	}
	return path
}

// install copies all units into a folder, with drop-ins for byokd.service, and
// returns the paths of the units. The programs that they name are not installed
// where the tests run.
func install(t *testing.T, dropIns ...string) (units []string) {
	t.Helper()
	dir := t.TempDir()
	copied := func(from, to string) {
		t.Helper()
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		text := regexp.MustCompile(`/usr/bin/byok(d|ctl)|/etc/byokd/alarm`).ReplaceAllString(string(b), "/bin/true")
		if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o700), os.WriteFile(to, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for _, pattern := range []string{"*.service", "*.timer"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			units = append(units, filepath.Join(dir, file))
			copied(file, filepath.Join(dir, file))
		}
	}
	for _, file := range dropIns {
		copied(file, filepath.Join(dir, "byokd.service.d", filepath.Base(file)))
	}
	return units
}

func TestUnitsVerify(t *testing.T) {
	analyze := find(t, "systemd-analyze")
	dropIns, err := filepath.Glob("../docs/examples/byokd.service.d/*.conf")
	if err != nil || len(dropIns) == 0 {
		t.Fatalf("no drop-ins among the examples (%v)", err)
	}
	verify := func(t *testing.T, dropIns ...string) {
		units := install(t, dropIns...)
		if len(units) != 4 {
			t.Fatalf("units: %v, want four", units)
		}
		output, err := exec.Command(analyze, append([]string{"verify", "--man=no"}, units...)...).CombinedOutput()
		if err != nil || len(output) > 0 {
			t.Errorf("systemd-analyze verify: %v\n%s", err, output)
		}
	}
	t.Run("units", func(t *testing.T) { verify(t) })
	for _, file := range dropIns {
		t.Run(filepath.Base(file), func(t *testing.T) { verify(t, file) })
	}
}

// The sandbox: exposure 1.5 or better, which is 15 of systemd-analyze's hundred.
func TestUnitIsTight(t *testing.T) {
	analyze := find(t, "systemd-analyze")
	output, err := exec.Command(analyze, "security", "--offline=true", "--no-pager", "--threshold=15", "byokd.service").CombinedOutput()
	if err != nil {
		t.Errorf("systemd-analyze security: %v\n%s", err, output)
	}
}

// TestUserAndDirectories applies sysusers.d and tmpfiles.d below a directory
// of its own, as an installation does below /.
func TestUserAndDirectories(t *testing.T) {
	sysusers, tmpfiles := find(t, "systemd-sysusers"), find(t, "systemd-tmpfiles")
	if os.Getuid() != 0 {
		t.Skip("NOT TESTED: only root can give files to the user that sysusers.d makes")
	}
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	run := func(program string, args ...string) {
		t.Helper()
		file, err := filepath.Abs(args[len(args)-1])
		if err != nil {
			t.Fatal(err)
		}
		args = append([]string{"--root=" + root}, append(args[:len(args)-1], file)...)
		if output, err := exec.Command(program, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", program, err, output)
		}
	}
	run(sysusers, "sysusers.d/byokd.conf")
	run(tmpfiles, "--create", "tmpfiles.d/byokd.conf")

	passwd, err := os.ReadFile(filepath.Join(root, "etc/passwd"))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Split(strings.TrimSpace(string(passwd)), ":")
	if len(fields) != 7 || fields[0] != "byokd" || fields[5] != "/var/lib/byokd" || fields[6] != "/usr/sbin/nologin" {
		t.Fatalf("passwd: %s", passwd)
	}
	owner := fields[2] + ":" + fields[3]
	want := map[string]string{
		"etc/byokd":          "755 0:0",
		"etc/byokd/groups.d": "755 0:0",
		"var/lib/byokd":      "700 " + owner,
		"run/byokd":          "750 " + owner,
		"run/byokd/requests": "770 " + owner,
	}
	for path, want := range want {
		output, err := exec.Command("stat", "-c", "%a %u:%g", filepath.Join(root, path)).CombinedOutput()
		if got := strings.TrimSpace(string(output)); err != nil || got != want {
			t.Errorf("%s: %s (%v), want %s", path, got, err, want)
		}
	}
}
