package hsmtest

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// A P11KitServer offers a token over a Unix socket, as if it were in another
// machine. Kill and Start are the cable.
type P11KitServer struct {
	Token Token // the token as seen through p11-kit-client.so

	t      testing.TB
	behind *Token
	socket string
	cmd    *exec.Cmd // nil while it does not run
}

// P11Kit starts a p11-kit server for the token until the test ends. It sets
// P11_KIT_SERVER_ADDRESS in the process's environment, with the same
// consequences as [NewSoftHSM].
func P11Kit(t testing.TB, behind *Token) *P11KitServer {
	t.Helper()
	client, ok := firstFile("/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so", "/usr/lib/aarch64-linux-gnu/pkcs11/p11-kit-client.so",
		"/usr/lib64/pkcs11/p11-kit-client.so")
	if _, err := exec.LookPath("p11-kit"); err != nil || !ok {
		missing(t, "p11-kit's server and client (Debian: apt-get install p11-kit p11-kit-modules)")
	}
	// A socket's path has room for some hundred bytes, which t.TempDir's may exceed.
	dir, err := os.MkdirTemp("", "p11kit")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &P11KitServer{t: t, behind: behind, socket: filepath.Join(dir, "socket")}
	s.Token = Token{Module: client, Label: behind.Label, PIN: behind.PIN, Env: []string{"P11_KIT_SERVER_ADDRESS=unix:path=" + s.socket}}
	t.Setenv("P11_KIT_SERVER_ADDRESS", "unix:path="+s.socket)
	s.Start()
	t.Cleanup(s.Kill)
	return s
}

// Start starts the server if it does not run, and waits until it takes
// connections.
func (s *P11KitServer) Start() {
	s.t.Helper()
	if s.cmd != nil {
		return
	}
	cmd := exec.Command("p11-kit", "server", "--foreground", "--name", s.socket, "--provider", s.behind.Module, "pkcs11:token="+s.behind.Label)
	cmd.Env = append(os.Environ(), s.behind.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.cmd = cmd
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		conn, err := net.Dial("unix", s.socket)
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("p11-kit server: %v", err)
		}
	}
}

// Kill kills the server and the process that it has for each client, and
// removes the socket. The token stays as it is.
func (s *P11KitServer) Kill() {
	if s.cmd == nil {
		return
	}
	syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL) // the process group that Start made
	s.cmd.Wait()
	s.cmd = nil
	os.Remove(s.socket)
}
