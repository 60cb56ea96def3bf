package main_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// A deployer brings a directory of definitions to a machine.
type deployer struct {
	*machine
	from string
	run  func() (output string, changed int, err error)
}

// newDeployer makes a machine without byokd.toml, and a directory of definitions
// that has it.
func newDeployer(t *testing.T) *deployer {
	d := &deployer{machine: newMachine(t), from: t.TempDir()}
	toml, err := os.ReadFile(d.path("byokd.toml"))
	if err == nil {
		err = errors.Join(os.Remove(d.path("byokd.toml")), os.Mkdir(filepath.Join(d.from, "groups.d"), 0o755),
			os.Chmod(d.path("groups.d"), 0o755), os.Chmod(d.dir, 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
	d.define("byokd.toml", string(toml))
	return d
}

// define writes a file of the directory of definitions.
func (d *deployer) define(name, content string) {
	d.t.Helper()
	if err := os.WriteFile(filepath.Join(d.from, name), []byte(content), 0o644); err != nil {
		d.t.Fatal(err)
	}
}

func (d *deployer) group(name, rotation, aws string) {
	d.define("groups.d/"+name+".toml", fmt.Sprintf("[rotation]\nevery = \"90d\"\n%s\n[aws]\nregion = %q\nalias = \"alias/%s\"\n%s\n", rotation, region, name, aws))
}

// good is a run that has to succeed and change so many things; -1: some.
func (d *deployer) good(what string, want int) {
	d.t.Helper()
	output, changed, err := d.run()
	if err != nil || changed != want && !(want < 0 && changed > 0) {
		d.t.Fatalf("%s: %d changed, want %d; %v\n%s", what, changed, want, err, output)
	}
}

// check runs everything that configuration management does to byokd.
func (d *deployer) check() {
	t := d.t
	t.Helper()
	d.define("groups.d/payments-policy.json", `{"Version": "2012-10-17", "Statement": [{"Sid": "all", "Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::111122223333:root"}, "Action": "kms:*", "Resource": "*"}]}`)
	d.group("payments", "", `policy_file = "payments-policy.json"`)
	d.group("orders", "", "")
	d.good("the first run", -1)
	d.start()
	for _, group := range []string{"payments", "orders"} {
		d.until("the first generation of "+group, func() bool { return d.active(group) == 1 })
	}
	d.good("the second run", 0)

	d.group("payments", `force = "2026-11-incident"`, `policy_file = "payments-policy.json"`)
	d.good("a run with a new force value", 1)
	d.until("it rotates", func() bool { return d.active("payments") == 2 && d.idle() })
	d.good("a run with a force value that was seen", 0)
	if err := d.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	d.until("a reload", func() bool { return strings.Contains(d.log.String(), "msg=reloaded") })
	if n := d.active("payments"); n != 2 || !d.idle() {
		t.Errorf("a force value that was seen rotates again: generation %d", n)
	}

	d.group("orders", `evry = "30d"`, "")
	before, _ := os.ReadFile(d.path("groups.d/orders.toml"))
	output, _, err := d.run()
	if err == nil || !strings.Contains(output, "rotation.evry: unknown key; did you mean every?") {
		t.Errorf("a bad file: %v\n%s", err, output)
	}
	if after, _ := os.ReadFile(d.path("groups.d/orders.toml")); string(after) != string(before) || len(after) == 0 {
		t.Errorf("a bad file was put in place:\n%s", after)
	}
	d.group("orders", "", "")
	d.good("a run with it mended", 0)

	// byokd.toml, of which not all follows a reload.
	restarted := func() bool { _, err := os.Stat(d.path("restart")); return err == nil }
	if !restarted() {
		t.Error("byokd.toml came, and byokd was not restarted")
	}
	os.Remove(d.path("restart"))
	toml, err := os.ReadFile(filepath.Join(d.from, "byokd.toml"))
	if err != nil {
		t.Fatal(err)
	}
	d.good("a run without a change", 0)
	if restarted() {
		t.Error("nothing has changed, and byokd was restarted")
	}
	d.define("byokd.toml", strings.Replace(string(toml), "[credentials.prod]", "call_timeout = \"3m\"\n[credentials.prod]", 1))
	d.good("a run with another byokd.toml", 1)
	if !restarted() {
		t.Error("byokd.toml has changed, and byokd was not restarted")
	}
	d.define("byokd.toml", "nonsense = 1\n"+string(toml))
	if output, _, err := d.run(); err == nil || !strings.Contains(output, "byokd.toml:1:1: nonsense: unknown key") && !strings.Contains(output, "1:1: nonsense: unknown key") {
		t.Errorf("a bad byokd.toml: %v\n%s", err, output)
	}
	d.define("byokd.toml", strings.Replace(string(toml), "[credentials.prod]", "call_timeout = \"3m\"\n[credentials.prod]", 1))

	// A bad policy is put in place, since nothing can tell by itself whose it is, and
	// the run fails. byokd goes on with the last good one.
	policy, err := os.ReadFile(filepath.Join(d.from, "groups.d/payments-policy.json"))
	if err != nil {
		t.Fatal(err)
	}
	d.define("groups.d/payments-policy.json", "{")
	if output, _, err := d.run(); err == nil || !strings.Contains(output, "aws.policy_file: ") {
		t.Errorf("a bad policy: %v\n%s", err, output)
	}
	d.define("groups.d/payments-policy.json", string(policy))
	d.good("a run with the policy mended", -1)
	d.until("it is idle", d.idle)
}

// The role of docs/ansible, with a real ansible-playbook on this machine.
func TestAnsible(t *testing.T) {
	d := newDeployer(t)
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	group, err := user.LookupGroupId(me.Gid)
	if err != nil {
		t.Fatal(err)
	}
	roles, err := filepath.Abs("../../docs/ansible/roles")
	if err != nil {
		t.Fatal(err)
	}
	d.define("site.yml", fmt.Sprintf(`- hosts: localhost
  gather_facts: false
  roles:
    - role: byokd
      vars:
        byokd_config: %[1]q
        byokd_groups_dir: %[2]q
        byokd_purge: true
        byokd_package: ""
        byokd_service: ""
        byokd_secrets: {hsm.pin: %[3]q}
        byokd_restart: %[8]q
        byokd_etc: %[4]q
        byokd_byokctl: %[5]q
        byokd_owner: %[6]q
        byokd_group: %[7]q
        byokd_user: %[6]q
`, filepath.Join(d.from, "byokd.toml"), filepath.Join(d.from, "groups.d"), d.token.PIN, d.dir, filepath.Join(programs, "byokctl"), me.Username, group.Name, "touch "+d.path("restart")))
	recap := regexp.MustCompile(`localhost +: ok=\d+ +changed=(\d+) +unreachable=0 +failed=0`)
	d.run = func() (string, int, error) {
		home := t.TempDir()
		cmd := exec.Command("ansible-playbook", "--connection", "local", "--inventory", "localhost,", filepath.Join(d.from, "site.yml"))
		cmd.Env = append(os.Environ(), "HOME="+home, "ANSIBLE_ROLES_PATH="+roles, "ANSIBLE_NOCOLOR=1", "ANSIBLE_PIPELINING=1", "ANSIBLE_LOCALHOST_WARNING=False",
			"ANSIBLE_PYTHON_INTERPRETER=auto_silent", "LC_ALL=C.UTF-8")
		out, err := cmd.CombinedOutput()
		changed := 0
		if m := recap.FindStringSubmatch(string(out)); m != nil {
			fmt.Sscan(m[1], &changed)
		} else if err == nil {
			err = errors.New("no recap")
		}
		return string(out), changed, err
	}
	d.check()

	if err := os.Remove(filepath.Join(d.from, "groups.d/orders.toml")); err != nil {
		t.Fatal(err)
	}
	d.good("a run without a group", 1)
	d.until("its group is removed", func() bool {
		out, _ := d.byokctl("status", "orders")
		return strings.Contains(out, "removed")
	})
	if n := len(d.sim.Keys(account, region)); n != 3 {
		t.Errorf("%d KMS keys, want 3: a group that goes keeps its keys", n)
	}
	if out, status := d.byokctl("status", "payments"); status != 0 || !strings.Contains(out, "ok") {
		t.Errorf("status %d\n%s", status, out)
	}
	d.stop(syscall.SIGTERM)
}

// The pipeline of docs/examples/deploy.sh: install and reload.
func TestDeploy(t *testing.T) {
	d := newDeployer(t)
	d.run = func() (string, int, error) {
		cmd := exec.Command("../../docs/examples/deploy.sh", d.from)
		reload := "true"
		if d.cmd != nil {
			reload = fmt.Sprint("kill -HUP ", d.cmd.Process.Pid)
		}
		cmd.Env = append(os.Environ(), "PATH="+programs+":"+os.Getenv("PATH"), "BYOKD_ETC="+d.dir, "BYOKD_RELOAD="+reload, "BYOKD_RESTART=touch "+d.path("restart"))
		out, err := cmd.CombinedOutput()
		return string(out), strings.Count(string(out), d.dir+"/groups.d/") + strings.Count(string(out), d.dir+"/byokd.toml\n"), err
	}
	d.check()
	d.stop(syscall.SIGTERM)
}
