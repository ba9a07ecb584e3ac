//go:build linux

package sharedhost

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// tidyFor is how long a call itself removes files before it leaves that to a process of its own.
const tidyFor = 200 * time.Millisecond

// tidy removes what deletes left, in the background if that takes long.
func (h *host) tidy() {
	for _, root := range h.req.Roots {
		if !exists(root) {
			continue
		}
		done := make(chan struct{})
		go func() { sweep(root); close(done) }()
		select {
		case <-done:
		case <-time.After(tidyFor):
			self, err := os.Executable()
			if err != nil {
				return
			}
			null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
			if err != nil {
				return
			}
			cmd := exec.Command(self, "host", VerbSweep, root)
			cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = "/", null, null, null
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
			cmd.Start()
			null.Close()
		}
	}
}

// sweep removes what is in the trash, half written nodes of calls that were killed, and programs that no node runs any more.
func sweep(root string) {
	old, _ := filepath.Glob(filepath.Join(root, "trash", "*"))
	for _, d := range old {
		st, err := os.Lstat(d)
		if err == nil && (strings.HasPrefix(filepath.Base(d), "gone-") || time.Since(st.ModTime()) > 10*time.Minute) {
			removeAll(d)
		}
	}
	os.Remove(filepath.Join(root, "trash")) // if it is empty
	used := map[string]bool{}
	nodes, err := os.ReadDir(filepath.Join(root, "nodes"))
	if err != nil && !os.IsNotExist(err) {
		return
	}
	for _, n := range nodes {
		r, err := readRecord(filepath.Join(root, "nodes", n.Name()))
		if err != nil {
			return
		}
		if r != nil {
			used[filepath.Dir(r.Program)] = true
		}
	}
	if self, err := os.Executable(); err == nil {
		used[filepath.Dir(self)] = true
	}
	programs, _ := filepath.Glob(filepath.Join(root, "bin", "*"))
	for _, d := range programs {
		if st, err := os.Stat(d); err == nil && !used[d] && time.Since(st.ModTime()) > time.Hour {
			os.RemoveAll(d)
		}
	}
}

// removeAll removes a tree, also one whose folders a job made unwritable.
func removeAll(dir string) error {
	if err := os.RemoveAll(dir); err == nil {
		return nil
	}
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			os.Chmod(path, 0o700)
		}
		return nil
	})
	return os.RemoveAll(dir)
}
