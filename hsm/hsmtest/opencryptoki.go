package hsmtest

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// inside marks a process that has openCryptoki's files to itself.
const inside = "HSMTEST_OPENCRYPTOKI"

// setupOpenCryptoki makes a token from nothing in empty file systems. $0 is the
// module's library directory.
const setupOpenCryptoki = `set -eu
mount --make-rprivate /
for dir in /etc/opencryptoki /var/lib/opencryptoki /var/log/opencryptoki /run /dev/shm; do
	mkdir -p $dir
	mount -t tmpfs -o mode=0755 tmpfs $dir
done
chmod 1777 /dev/shm
printf 'version opencryptoki-3.8\nslot 3\n{\nstdll = libpkcs11_sw.so\n}\n' > /etc/opencryptoki/opencryptoki.conf
install -d -m 1777 /run/lock
for dir in /var/lib/opencryptoki /var/lib/opencryptoki/swtok /var/lib/opencryptoki/swtok/TOK_OBJ \
	/run/lock/opencryptoki /run/lock/opencryptoki/swtok /var/log/opencryptoki; do
	install -d -o root -g pkcs11 -m 770 $dir
done
pkcsslotd
n=0
until pkcsconf -t >/dev/null 2>&1; do
	n=$((n + 1)); [ $n -lt 200 ] || { echo "pkcsslotd does not answer" >&2; exit 1; }
	sleep 0.05
done
echo hsm | pkcsconf -I -c 3 -S 87654321 >/dev/null
pkcsconf -P -c 3 -S 87654321 -n "$SOPIN" >/dev/null
pkcsconf -u -c 3 -S "$SOPIN" -n 00001234 >/dev/null
pkcsconf -p -c 3 -U 00001234 -n "$PIN" >/dev/null
`

// OpenCryptoki runs test with an empty openCryptoki soft token. openCryptoki's
// state is the machine's, so the test is run once more in a process of its own
// whose mount, IPC and process namespaces hold nothing else: no token of the
// machine is touched, and its pkcsslotd ends with it. That needs root. t must
// be a test function's own, not a subtest's.
func OpenCryptoki(t *testing.T, test func(tok *Token)) {
	t.Helper()
	module, ok := firstFile("/usr/lib/x86_64-linux-gnu/pkcs11/libopencryptoki.so", "/usr/lib/aarch64-linux-gnu/pkcs11/libopencryptoki.so",
		"/usr/lib64/pkcs11/libopencryptoki.so")
	if _, err := exec.LookPath("pkcsslotd"); err != nil || !ok {
		missing(t, "openCryptoki (Debian: apt-get install opencryptoki, which is in sbin)")
	}
	if os.Getenv(inside) != "" {
		test(&Token{Module: module, Label: "hsm", PIN: PIN})
		return
	}
	if os.Geteuid() != 0 {
		missing(t, "root, which openCryptoki's daemon needs")
	}
	if err := exec.Command("unshare", "--mount", "--ipc", "--pid", "--fork", "true").Run(); err != nil {
		missing(t, "leave to make namespaces, for an openCryptoki of the test's own")
	}
	cmd := exec.Command("unshare", "--mount", "--ipc", "--pid", "--fork", "--mount-proc", "--kill-child",
		"sh", "-c", setupOpenCryptoki+`"$@"`, "sh",
		os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), inside+"=1", "PIN="+PIN, "SOPIN="+SOPIN)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatalf("in the process of its own: %v", err)
	}
}
