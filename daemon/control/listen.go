package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"strconv"
	"syscall"
	"time"
)

// socketMode lets the owner and the group connect, which takes write permission.
const socketMode = 0o660

// Listen makes the control socket at path, mode 0660, owned by the named group
// if there is such a group and the process may give files to it, else by the
// process's own. Nobody else can connect to it at any moment. A socket that is
// there already is replaced when nobody answers on it; anything else at path,
// and a socket on which somebody answers, is an error.
//
// For as long as it takes to make the socket the process's umask is 077.
func Listen(path, group string) (net.Listener, error) {
	if err := removeStale(path); err != nil {
		return nil, err
	}
	umask := syscall.Umask(0o077)
	l, err := net.Listen("unix", path)
	syscall.Umask(umask)
	if err != nil {
		return nil, fmt.Errorf("make the control socket: %w", err)
	}
	if err := share(path, group); err != nil {
		l.Close()
		return nil, fmt.Errorf("share the control socket: %w", err)
	}
	return l, nil
}

// removeStale removes a socket that a byokd left behind when it was killed.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at the control socket: %w", err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is in the way of the control socket and is not a socket; move it away or set another runtime_dir", path)
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		conn.Close()
		return fmt.Errorf("another process answers on %s; stop it first", path)
	}
	// Only a refused connection shows that nobody listens; a full backlog or a
	// missing permission does not.
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("see whether the control socket is in use: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the old control socket: %w", err)
	}
	return nil
}

// share gives the socket to the group, then opens it for the group.
func share(path, group string) error {
	if g, err := user.LookupGroup(group); err == nil {
		gid, err := strconv.Atoi(g.Gid)
		if err != nil {
			return fmt.Errorf("group %s: %w", group, err)
		}
		if err := os.Lchown(path, -1, gid); err != nil && !errors.Is(err, fs.ErrPermission) {
			return err
		}
	}
	return os.Chmod(path, socketMode)
}

// peerKey is the context key of a connection's *syscall.Ucred.
type peerKey struct{}

// withPeer adds to ctx who is at the other end of a Unix socket.
func withPeer(ctx context.Context, conn net.Conn) context.Context {
	if cred, err := peer(conn); err == nil {
		return context.WithValue(ctx, peerKey{}, cred)
	}
	return ctx
}

// peer asks the kernel who connected; unix(7), SO_PEERCRED.
func peer(conn net.Conn) (*syscall.Ucred, error) {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, errors.New("not a Unix socket")
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *syscall.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil {
		return nil, err
	}
	return cred, credErr
}

// requester names the peer of a request for the audit trail.
func requester(ctx context.Context) string {
	cred, ok := ctx.Value(peerKey{}).(*syscall.Ucred)
	if !ok {
		return "unknown"
	}
	return UserName(cred.Uid)
}

// UserName names a user for the audit trail, as in "uid 1000 (alice)".
func UserName(uid uint32) string {
	by := fmt.Sprintf("uid %d", uid)
	if u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10)); err == nil {
		by += " (" + u.Username + ")"
	}
	return by
}
