//go:build !windows

package sshconfig

import (
	"os"
	"strings"
	"syscall"
)

const nullDevice = "/dev/null"

// sameOwner gives a file the owner it had: a root shell in a user's home must not take the user's file away.
func sameOwner(path string, was os.FileInfo) {
	if st, ok := was.Sys().(*syscall.Stat_t); ok {
		_ = os.Chown(path, int(st.Uid), int(st.Gid))
	}
}

// lock holds a folder, on the folder itself: no file is left behind.
func lock(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		if err != syscall.EINTR {
			break
		}
	}
	if err != nil && err != syscall.ENOLCK && err != syscall.ENOTSUP { // a file system without locks: files are still replaced whole
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

// Quote makes one word of s for the shell by which ssh runs a proxy, and protects it from ssh's own expansions.
func Quote(s string) string {
	s = escape(s)
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-:@+=,%", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
