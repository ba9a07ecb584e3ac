//go:build unix

package claims

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skyloom/skyloom/agent/proctree"
)

// observer tells what the machine shows of a claim's processes.
type observer interface {
	boot() string
	// alive says that a process may still be there.
	alive(p proctree.Proc) bool
	// started says that some process was started with the config file as init.
	started(config string) bool
	// marked says that processes of the node may be there; known is false if this user can't tell.
	marked(c Claim) (some, known bool)
	// folder says whether the node's folder is there; known is false if this user can't tell.
	folder(dir string) (there, known bool)
	// ended says that the node ended itself, leaving nothing.
	ended(dir string) bool
	now() time.Time
}

// young is how long a claim counts whatever is seen of it: its holder may be between two steps.
const young = 2 * time.Second

// stale says why a claim no longer counts, or nothing.
func stale(c Claim, see observer) string {
	switch {
	case c.Boot != see.boot():
		return "the machine was restarted"
	case see.alive(c.Holder), see.started(c.Config), see.now().Sub(c.Since) < young && !see.now().Before(c.Since):
		return ""
	case see.ended(c.Dir):
		return "the node ended itself"
	}
	if there, known := see.folder(c.Dir); known && !there {
		return "the node's folder is gone"
	}
	if c.Isolated {
		return "the node's init has died, and everything with it"
	}
	if some, known := see.marked(c); known && !some {
		return "every process of the node has died"
	}
	return ""
}

// system is the machine itself.
type system struct{}

// BootID tells one run of the machine from another; process ids mean something within one only.
func BootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}

func (system) boot() string { return BootID() }

func (system) now() time.Time { return time.Now() }

func (system) alive(p proctree.Proc) bool {
	if p.PID <= 0 {
		return false
	}
	if p.Alive() {
		return true
	}
	if _, err := os.Stat("/proc/1/stat"); err == nil {
		return false // every process can be seen
	}
	// A /proc that hides other users' processes: a signal still tells whether the number is in use.
	return !errors.Is(syscall.Kill(p.PID, 0), syscall.ESRCH)
}

func (system) started(config string) bool { return FindInit(config).PID != 0 }

// FindInit finds the living init that was started with a config file; the zero Proc if there is none.
func FindInit(config string) proctree.Proc {
	var found proctree.Proc
	d, err := os.Open("/proc")
	if err != nil {
		return found
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	for _, n := range names {
		pid, err := strconv.Atoi(n)
		if err != nil {
			continue
		}
		b, err := os.ReadFile("/proc/" + n + "/cmdline")
		if err != nil || !bytes.Contains(b, []byte(config)) {
			continue
		}
		args := strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
		i := slices.Index(args, "--config")
		if i < 1 || i+1 >= len(args) || args[i-1] != "init" || args[i+1] != config {
			continue
		}
		// Of two inits the older one holds the node; the other is about to find that out.
		if p, ok := proctree.Find(pid); ok && (found.PID == 0 || p.Start < found.Start) {
			found = p
		}
	}
	return found
}

func (system) marked(c Claim) (some, known bool) {
	if len(proctree.WithEnv("SKYLOOM_NODE="+c.Mark)) > 0 {
		return true, true
	}
	if os.Geteuid() == 0 {
		return false, true
	}
	var st unix.Stat_t
	if unix.Stat(c.file, &st) == nil && int(st.Uid) == os.Geteuid() {
		return false, true
	}
	return false, false
}

func (system) folder(dir string) (there, known bool) {
	if !filepath.IsAbs(dir) {
		return false, false
	}
	_, err := os.Lstat(dir)
	switch {
	case err == nil:
		return true, true
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return false, true
	}
	return false, false
}

func (system) ended(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, "agent", "ended.json"))
	return err == nil
}

// writable says that this process may make files in a folder.
func writable(dir string) bool { return unix.Access(dir, unix.W_OK) == nil }
