package config

import (
	"bytes"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	// keptFor is how long a secret that was read stands for its file without a look
	// at the rights of the directory.
	keptFor = time.Minute

	// clockTick is by how much two changes of a file may be apart and have the same
	// time: four milliseconds on Linux, two seconds on some network file systems.
	clockTick = 3 * time.Second
)

// A KeptSecret reads a SecretFile that is asked for again and again. While the file
// is the same, by inode, size, rights and times, it is not read again, for a minute
// at most; a change of it counts at once. A KeptSecret is safe for concurrent use.
type KeptSecret struct {
	file SecretFile
	tick time.Duration

	mu      sync.Mutex
	content []byte
	of      fileState
	readAt  time.Time
}

// A fileState tells versions of a file apart.
type fileState struct {
	dev, ino     uint64
	size         int64
	mode, uid    uint32
	mtime, ctime syscall.Timespec
}

// Keep returns a KeptSecret of the file.
func (f SecretFile) Keep() *KeptSecret { return &KeptSecret{file: f, tick: clockTick} }

// Read is [SecretFile.Read].
func (k *KeptSecret) Read() (Secret, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	state, ok := stateOf(k.file.path)
	now := time.Now()
	if age := now.Sub(k.readAt); ok && k.content != nil && state == k.of && age >= 0 && age < keptFor {
		return NewSecret(bytes.Clone(k.content)), nil
	}
	k.content = nil
	secret, err := k.file.Read()
	if err != nil {
		return Secret{}, err
	}
	// A file that has just been changed may be changed again without looking so.
	if changed := time.Unix(state.ctime.Unix()); ok && now.Sub(changed) > k.tick {
		k.content, k.of, k.readAt = bytes.Clone(secret.Reveal()), state, now
	}
	return secret, nil
}

func stateOf(path string) (fileState, bool) {
	info, err := os.Stat(path)
	if err != nil {
		return fileState{}, false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fileState{}, false
	}
	return fileState{uint64(st.Dev), st.Ino, st.Size, st.Mode, st.Uid, st.Mtim, st.Ctim}, true
}
