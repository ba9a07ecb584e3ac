package filesync

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// newFile is a file that is being made. It goes to the kernel without the os package: of a small file's cost half would be
// the calls that prepare for waiting and deadlines, which files never need.
type newFile struct {
	fd   int
	mode uint32
}

// create makes a file that must not exist yet.
func (c *chunk) create(name string, mode uint32) (*newFile, error) {
	if err := c.openDir(); err != nil {
		return nil, err
	}
	fd, err := retryEINTR(func() (int, error) {
		return unix.Openat(int(c.fd.Fd()), name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
	})
	if err != nil {
		return nil, &os.PathError{Op: "create", Path: name, Err: err}
	}
	return &newFile{fd: fd, mode: mode}, nil
}

// take makes a file out of a blob that its source gives away; a file of that name must not exist.
func (c *chunk) take(src Mover, e *Entry, name string) error {
	if err := c.openDir(); err != nil {
		return err
	}
	if err := src.Move(e.Hash, c.fd, name); err != nil {
		return err
	}
	err := c.root.Chmod(name, os.FileMode(e.Mode))
	if err == nil {
		when := time.Unix(0, e.ModTime)
		err = c.root.Chtimes(name, when, when)
	}
	return err
}

func (c *chunk) openDir() (err error) {
	if c.fd == nil {
		c.fd, err = c.root.Open(".")
	}
	return err
}

func (f *newFile) Write(p []byte) (n int, err error) {
	for n < len(p) {
		k, err := retryEINTR(func() (int, error) { return unix.Write(f.fd, p[n:]) })
		if err != nil {
			return n, &os.PathError{Op: "write", Path: "file", Err: err}
		}
		n += k
	}
	return n, nil
}

// finish sets mode and time and closes the file.
func (f *newFile) finish(mtime time.Time) error {
	if f.mode&umask() != 0 {
		if err := unix.Fchmod(f.fd, f.mode); err != nil {
			f.abort()
			return os.NewSyscallError("fchmod", err)
		}
	}
	ts, err := unix.TimeToTimespec(mtime)
	if err == nil {
		times := [2]unix.Timespec{ts, ts}
		// With no path utimensat works on the file itself; package unix has no name for that.
		if _, _, e := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(f.fd), 0, uintptr(unsafe.Pointer(&times)), 0, 0, 0); e != 0 {
			err = e
		}
	}
	if err != nil {
		f.abort()
		return os.NewSyscallError("utimensat", err)
	}
	fd := f.fd
	f.fd = -1
	return os.NewSyscallError("close", unix.Close(fd))
}

// abort closes the file; it is of no use.
func (f *newFile) abort() {
	if f.fd >= 0 {
		_ = unix.Close(f.fd)
		f.fd = -1
	}
}

func retryEINTR(call func() (int, error)) (int, error) {
	for {
		if n, err := call(); err != syscall.EINTR {
			return n, err
		}
	}
}

// umask is the process's, read once: asking the kernel for it would change it for a moment.
var umask = sync.OnceValue(func() uint32 {
	text, _ := os.ReadFile("/proc/self/status")
	for line := range strings.SplitSeq(string(text), "\n") {
		if v, ok := strings.CutPrefix(line, "Umask:"); ok {
			if n, err := strconv.ParseUint(strings.TrimSpace(v), 8, 32); err == nil {
				return uint32(n)
			}
		}
	}
	return 0o777
})
