package config

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
)

// redacted is what a Secret shows of itself.
const redacted = "[redacted]"

// A Secret is a PIN or the content of a credential file. It prints, marshals
// and logs as "[redacted]"; only Reveal gives its bytes. The zero value is
// empty.
type Secret struct {
	// In a closure, because fmt and others reach into unexported fields of
	// other types without asking for their methods, and follow pointers.
	reveal func() []byte
}

// NewSecret returns a Secret that keeps b itself, not a copy.
func NewSecret(b []byte) Secret { return Secret{func() []byte { return b }} }

// Reveal returns the secret bytes themselves, so that a caller may zero them
// when they are used up.
func (s Secret) Reveal() []byte {
	if s.reveal == nil {
		return nil
	}
	return s.reveal()
}

// Format prints "[redacted]" for every verb.
func (s Secret) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

// String returns "[redacted]".
func (s Secret) String() string { return redacted }

// GoString returns "[redacted]".
func (s Secret) GoString() string { return redacted }

// MarshalText returns "[redacted]".
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// LogValue returns "[redacted]".
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// maxSecretSize bounds what is read of a secret file. A PIN has tens of bytes,
// the IAM console's CSV a few hundred.
const maxSecretSize = 64 << 10

// A SecretFile is the place of a secret: a file of the administrator's, or a
// systemd credential. It holds no secret itself.
type SecretFile struct {
	path       string // absolute; "" where $CREDENTIALS_DIRECTORY is not set
	credential string // name of the systemd credential; "": a file of its own
	exempt     bool   // in $CREDENTIALS_DIRECTORY, whose permissions are systemd's
	uid        int    // the user besides root who may own the file; negative: not known
}

// Path returns the absolute path of the file, for a watcher; "" for a systemd
// credential where $CREDENTIALS_DIRECTORY is not set.
func (f SecretFile) Path() string { return f.path }

// Credential returns the name of the systemd credential; "" for a file.
func (f SecretFile) Credential() string { return f.credential }

// String names the place for a message.
func (f SecretFile) String() string {
	if f.credential != "" {
		return "systemd credential " + f.credential
	}
	return f.path
}

// Read reads the secret anew, after checking that its file is regular, owned
// by root or byokd's user, open to nobody else, and in a directory that only
// its owner can write to. Nothing of the content is in the error.
func (f SecretFile) Read() (Secret, error) {
	if f.path == "" {
		return Secret{}, fmt.Errorf("%s: $CREDENTIALS_DIRECTORY is not set: add LoadCredential=%s:PATH to the unit, and start byokd by systemd", f, f.credential)
	}
	file, info, err := open(f.path)
	if err != nil {
		return Secret{}, fmt.Errorf("read %s: %w", f, err)
	}
	defer file.Close()
	if !f.exempt {
		if err := f.check(info); err != nil {
			return Secret{}, fmt.Errorf("%s %w", f, err)
		}
		if err := make(directories).check(f.path); err != nil {
			return Secret{}, fmt.Errorf("%s %w", f, err)
		}
	}
	b, err := readAtMost(file, maxSecretSize)
	if err != nil {
		return Secret{}, fmt.Errorf("%s %w", f, err)
	}
	return NewSecret(b), nil
}

// check applies the rules for a secret file's owner and mode.
func (f SecretFile) check(info os.FileInfo) error {
	if uid := owner(info); f.uid >= 0 && uid != 0 && uid != f.uid {
		return fmt.Errorf("belongs to user %d: it must be owned by root or by byokd's user; run: chown %d %s", uid, f.uid, f.path)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("has mode %04o: group and others must have no access; run: chmod go= %s", info.Mode().Perm(), f.path)
	}
	return nil
}

// inspect applies the checks that need no content. missing is true, and err
// nil, where there is no such file.
func (f SecretFile) inspect(dirs directories) (missing bool, err error) {
	if f.path == "" {
		return true, nil
	}
	info, err := os.Stat(f.path)
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("%s cannot be looked at: %w", f, reason(err))
	}
	if !info.Mode().IsRegular() {
		return false, fmt.Errorf("%s %w", f, errNotRegular)
	}
	if f.exempt {
		return false, nil
	}
	if err := f.check(info); err != nil {
		return false, fmt.Errorf("%s %w", f, err)
	}
	if err := dirs.check(f.path); err != nil {
		return false, fmt.Errorf("%s %w", f, err)
	}
	return false, nil
}

// secretFile returns the place that a file key or a credential key names; one
// of the two is "".
func (o Options) secretFile(path, credential string) SecretFile {
	dir, _ := o.lookupEnv("CREDENTIALS_DIRECTORY")
	f := SecretFile{path: path, credential: credential, uid: o.UID}
	if credential != "" && dir != "" {
		f.path = filepath.Join(dir, credential)
	}
	f.exempt = dir != "" && strings.HasPrefix(f.path, filepath.Clean(dir)+"/")
	return f
}
