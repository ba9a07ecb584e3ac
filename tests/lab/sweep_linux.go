package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// runDir holds a folder for each lab, with a lock that its process holds as long as it lives.
const runDir = "/run/skyloom-lab"

// In a lab's folder scratchLink leads to the one on disk, whose name starts with scratchPrefix.
const scratchLink, scratchPrefix = "scratch", "skyloom-lab-"

// lockFile takes path's lock, waiting for it, and hands back what frees it.
func lockFile(path string) (func(), error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}

// enroll makes the folder of a new lab and locks it, having removed what dead labs left.
func enroll(id string, log func(string, ...any)) (dir string, lock *os.File, err error) {
	if err := os.MkdirAll(runDir, 0o700); err != nil {
		return "", nil, err
	}
	unlock, err := lockFile(filepath.Join(runDir, "lock"))
	if err != nil {
		return "", nil, err
	}
	defer unlock()
	sweep(log)
	dir = filepath.Join(runDir, id)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", nil, err
	}
	if lock, err = os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return "", nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return "", nil, err
	}
	return dir, lock, nil
}

// sweep removes the folders, mounts and cgroups of labs whose process is gone. Their hosts went with it.
func sweep(log func(string, ...any)) {
	labs, _ := os.ReadDir(runDir)
	for _, e := range labs {
		if !e.IsDir() {
			continue
		}
		dir := filepath.Join(runDir, e.Name())
		lock, err := os.Open(filepath.Join(dir, "lock"))
		if err == nil {
			err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		} else if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		if err == nil {
			if err := discard(e.Name()); err != nil {
				log("lab: what the dead lab %s left stays for now: %v", e.Name(), err)
			} else {
				log("lab: removed what the dead lab %s left", e.Name())
			}
		}
		if lock != nil {
			lock.Close()
		}
	}
}

// discard removes a lab's mounts, cgroups and folders.
func discard(id string) error {
	dir := filepath.Join(runDir, id)
	mounts := mountsBelow(dir)
	for _, m := range mounts {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", m, err)
		}
	}
	if err := removeCgroups(id, ""); err != nil {
		return err
	}
	for _, hi := range hierarchies() {
		_ = unix.Rmdir(filepath.Join(hi.mount, cgroupName)) // if this was the last lab
	}
	if to, err := os.Readlink(filepath.Join(dir, scratchLink)); err == nil && strings.HasPrefix(filepath.Base(to), scratchPrefix) {
		if err := os.RemoveAll(to); err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}

// mountsBelow lists what is mounted below dir, deepest first.
func mountsBelow(dir string) (out []string) {
	b, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			out = append(out, f[4])
		}
	}
	sort.Sort(sort.Reverse(sort.StringSlice(out)))
	return out
}
