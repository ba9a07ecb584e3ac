package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Host is one machine of a lab. It is up after Start and New; its methods may be called from any goroutine.
type Host struct {
	Name     string
	Addr     string // its IPv4 address, the same as long as the lab lives
	Port     int    // sshd's
	User     string // who may log in
	Password string // empty: none
	KeyFile  string // the lab's
	Home     string // User's
	Spec     HostSpec

	lab    *Lab
	n      int // from 1
	isJump bool

	mu      sync.Mutex
	hostKey string // public
	disk    *disk  // nil: terminated
	m       *machine
	wires   int
	last    *console // of the machine that was up last
}

func newHost(l *Lab, n int, s HostSpec) *Host {
	net := 77
	if s.Behind != "" {
		net = 78
	}
	return &Host{Name: s.Name, Addr: fmt.Sprintf("10.%d.0.%d", net, 10+n), Port: 22, User: s.User, Password: s.Password, KeyFile: l.KeyFile,
		Home: s.home(), Spec: s, lab: l, n: n}
}

// create gives the host a fresh disk and a new host key.
func (h *Host) create() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	private, public, err := newKey("root@" + h.Name)
	if err != nil {
		return err
	}
	if h.disk, err = newDisk(filepath.Join(h.lab.dir, h.Name), lowerDir(), h.Spec.DiskMB); err != nil {
		return err
	}
	h.hostKey = strings.TrimSpace(public)
	return h.prepare(private)
}

// HostKey is the public key of its sshd, "ssh-ed25519 AAAA…".
func (h *Host) HostKey() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.hostKey
}

// Up tells whether the host runs.
func (h *Host) Up() bool {
	m, err := h.running()
	if err != nil {
		return false
	}
	select {
	case <-m.ended:
		return false
	default:
		return true
	}
}

func (h *Host) running() (*machine, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.m == nil {
		return nil, fmt.Errorf("host %s is down: boot it first", h.Name)
	}
	return h.m, nil
}

// Boot starts a host that is down, on the disk that it had.
func (h *Host) Boot() error { return h.boot(context.Background()) }

// Kill is a power cut: the network falls silent first, so that no peer hears of it, then every process ends at once.
// Its files stay. When Kill returns nothing of the host runs any more.
func (h *Host) Kill() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.powerOff()
}

func (h *Host) powerOff() error {
	m := h.m
	if m == nil {
		return nil
	}
	h.m, h.last = nil, m.console
	for _, p := range m.ports {
		_ = h.lab.nl.pass(p, false)
	}
	if err := m.pid1.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill host %s: %w", h.Name, err)
	}
	select {
	case <-m.ended: // PID 1 is reaped last, after all others in its namespace
	case <-time.After(30 * time.Second):
		return fmt.Errorf("host %s: a process of it does not end", h.Name)
	}
	m.release()
	return removeCgroups(h.lab.id, h.Name)
}

// Reboot is Kill and Boot: what is on disk stays, /tmp, /run and /dev/shm are empty, and there is another boot_id.
func (h *Host) Reboot() error {
	if err := h.Kill(); err != nil {
		return err
	}
	return h.Boot()
}

// Terminate kills the host and throws its disk away.
func (h *Host) Terminate() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.powerOff(); err != nil {
		return err
	}
	if h.disk == nil {
		return nil
	}
	err := h.disk.remove()
	h.disk = nil
	return err
}

// Recreate makes the host anew: same name and address, a fresh disk, another host key.
func (h *Host) Recreate() error {
	if err := h.Terminate(); err != nil {
		return err
	}
	if err := h.create(); err != nil {
		return err
	}
	return h.Boot()
}

// Cut takes the host off the network: nothing is closed, packets just vanish, both ways. A boot joins it again.
func (h *Host) Cut() error { return h.link(false) }

// Join ends a Cut.
func (h *Host) Join() error { return h.link(true) }

func (h *Host) link(up bool) error {
	m, err := h.running()
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range m.ports {
		errs = append(errs, h.lab.nl.pass(p, up))
	}
	return errors.Join(errs...)
}

// Slow holds the host's traffic to so many bytes a second each way; 0 lets it run again. A boot ends it too.
func (h *Host) Slow(bytesPerSecond int64) error {
	m, err := h.running()
	if err != nil {
		return err
	}
	var errs []error
	for i, p := range m.ports {
		errs = append(errs, h.lab.nl.limit(p, bytesPerSecond), m.nl.limit(fmt.Sprintf("eth%d", i), bytesPerSecond))
	}
	return errors.Join(errs...)
}

// FillDisk makes the host's whole disk full as it is; FreeDisk gives the room back. /run and /dev/shm are not of the disk.
func (h *Host) FillDisk() error { return h.fill(true) }

// FreeDisk ends FillDisk.
func (h *Host) FreeDisk() error { return h.fill(false) }

func (h *Host) fill(full bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.disk == nil {
		return fmt.Errorf("host %s is terminated", h.Name)
	}
	return h.disk.fill(full)
}

// Changes are the paths on its disk that were made or changed since the first boot, and with a "-" before them those
// that are gone; sorted. /tmp and the log of logins do not count. It works on a host that is down too.
func (h *Host) Changes() ([]string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.disk == nil {
		return nil, fmt.Errorf("host %s is terminated", h.Name)
	}
	return h.disk.changes()
}

// Console is the end of what PID 1 and sshd said, in this boot or else the last one.
func (h *Host) Console() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.m != nil:
		return h.m.console.String()
	case h.last != nil:
		return h.last.String()
	}
	return ""
}

// Dial connects to a port of the host from the switch's network. A host behind another is reached from itself.
func (h *Host) Dial(ctx context.Context, port int) (net.Conn, error) {
	addr := net.JoinHostPort(h.Addr, fmt.Sprint(port))
	if h.Spec.Behind == "" {
		return h.lab.Dial(ctx, "tcp", addr)
	}
	m, err := h.running()
	if err != nil {
		return nil, err
	}
	return dialIn(ctx, int(m.ns.Fd()), "tcp", addr)
}

// path is p with ~ for the user's home.
func (h *Host) path(p string) string {
	if rest, ok := strings.CutPrefix(p, "~"); ok {
		return h.Home + rest
	}
	return p
}

func (h *Host) inside(f func() error) error {
	m, err := h.running()
	if err != nil {
		return err
	}
	return m.th.do(f)
}

// WriteFile writes a file inside the host as root, with the folders above it; ~ is User's home, whose files are theirs.
func (h *Host) WriteFile(path string, data []byte, mode fs.FileMode) error {
	p := h.path(path)
	return h.inside(func() error {
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(p, data, mode); err != nil {
			return err
		}
		if err := os.Chmod(p, mode); err != nil {
			return err
		}
		if h.User == "root" || !strings.HasPrefix(p, h.Home+"/") {
			return nil
		}
		for dir := p; dir != h.Home; dir = filepath.Dir(dir) {
			if err := os.Chown(dir, userID, userID); err != nil {
				return err
			}
		}
		return nil
	})
}

// ReadFile reads a file inside the host as root; ~ is User's home.
func (h *Host) ReadFile(path string) (b []byte, err error) {
	e := h.inside(func() error {
		b, err = os.ReadFile(h.path(path))
		return nil
	})
	return b, errors.Join(err, e)
}

// Exists tells whether there is such a path inside the host; a host that is down has none.
func (h *Host) Exists(path string) bool {
	return h.inside(func() error {
		_, err := os.Lstat(h.path(path))
		return err
	}) == nil
}
