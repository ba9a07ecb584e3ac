package sshconfig

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const nullDevice = "NUL"

func sameOwner(string, os.FileInfo) {}

// lockStale is the age at which a lock is taken for one of a program that died: work under it takes milliseconds.
const lockStale = 10 * time.Second

// lock holds a folder, by a file in it.
func lock(dir string) (unlock func(), err error) {
	path := filepath.Join(dir, ".skyloom-lock")
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err == nil {
			f.Close()
			return func() { os.Remove(path) }, nil
		}
		if st, serr := os.Stat(path); serr == nil && time.Since(st.ModTime()) > lockStale {
			os.Remove(path)
		} else if serr != nil && !errors.Is(serr, fs.ErrNotExist) {
			return nil, err
		}
		time.Sleep(pause)
	}
}

// Quote makes one word of s for the command line by which ssh runs a proxy, and protects it from ssh's own expansions.
func Quote(s string) string {
	s = escape(s)
	if s != "" && !strings.ContainsAny(s, " \t\"") {
		return s
	}
	return `"` + strings.ReplaceAll(s, `"`, `\"`) + `"`
}
