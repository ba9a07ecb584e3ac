package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// bootTime is how long a host may take until its sshd listens. It is generous: a loaded machine is no error.
const bootTime = 60 * time.Second

// machine is what a host has while it is up.
type machine struct {
	th      *thread   // a thread inside the host, on which its processes begin
	pid1    *exec.Cmd // the host's PID 1
	ended   chan struct{}
	nl      *netlink // speaks to the host's network
	ns      *os.File // the host's network namespace
	cgroup  *os.File // v2, where its processes begin; nil without v2
	ports   []string // its links on the switch
	console *console
}

// console keeps the end of what PID 1 and sshd say, and tells when sshd listens.
type console struct {
	mu    sync.Mutex
	buf   []byte
	ready chan struct{}
	once  sync.Once
}

func (c *console) Write(p []byte) (int, error) {
	const keep = 64 << 10
	c.mu.Lock()
	defer c.mu.Unlock()
	c.buf = append(c.buf, p...)
	if bytes.Contains(c.buf, []byte("Server listening on ")) {
		c.once.Do(func() { close(c.ready) })
	}
	if len(c.buf) > 2*keep {
		c.buf = append([]byte(nil), c.buf[len(c.buf)-keep:]...)
	}
	return len(p), nil
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.buf)
}

// initScript is PID 1: it takes the rest of the mounts, which only a process inside the PID namespace can make, and
// keeps sshd running as a system's service manager would. dash reaps what is orphaned.
const initScript = `#!/bin/sh
if [ "$1" != up ]; then exec unshare --cgroup /bin/sh /run/lab/init up; fi
mount -t proc proc /proc
mount -a -T /run/lab/fstab
for u in /sys/fs/cgroup/unified /sys/fs/cgroup; do
  [ -d $u/init.scope ] && echo 0 > $u/init.scope/cgroup.procs && read -r c < $u/cgroup.controllers && for x in $c; do echo +$x > $u/cgroup.subtree_control; done
done
trap 'exit 0' TERM
while :; do /usr/sbin/sshd -D -e & wait $!; sleep 1; done
`

// boot starts the host on its disk. The caller holds no lock of the host.
func (h *Host) boot(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.disk == nil {
		return fmt.Errorf("host %s is terminated: Recreate it", h.Name)
	}
	if h.m != nil {
		return nil
	}
	m, err := h.powerOn()
	if err != nil {
		return fmt.Errorf("boot of host %s: %w", h.Name, err)
	}
	h.m = m
	if err := h.waitReady(ctx, m); err != nil {
		return errors.Join(fmt.Errorf("boot of host %s: %w", h.Name, err), h.powerOff())
	}
	if h.disk.first == nil {
		h.disk.first, err = h.disk.stamps()
	}
	return err
}

func (h *Host) waitReady(ctx context.Context, m *machine) error {
	late := time.NewTimer(bootTime)
	defer late.Stop()
	select {
	case <-m.console.ready:
	case <-m.ended:
		return fmt.Errorf("PID 1 ended; its console:\n%s", lastLines(m.console.String(), 10))
	case <-ctx.Done():
		return ctx.Err()
	case <-late.C:
		return fmt.Errorf("no sshd after %s; its console:\n%s", bootTime, lastLines(m.console.String(), 10))
	}
	// From now on the thread sees cgroups as the host's processes do.
	return m.th.do(func() error {
		f, err := os.Open("/proc/1/ns/cgroup")
		if err != nil {
			return err
		}
		defer f.Close()
		return unix.Setns(int(f.Fd()), unix.CLONE_NEWCGROUP)
	})
}

// powerOn makes the host's namespaces and starts its PID 1.
func (h *Host) powerOn() (_ *machine, err error) {
	if err := h.disk.clearTmp(); err != nil {
		return nil, err
	}
	if err := h.makeCgroups(); err != nil {
		return nil, err
	}
	m := &machine{console: &console{ready: make(chan struct{})}, ended: make(chan struct{})}
	defer func() {
		if err != nil {
			m.release()
		}
	}()
	birth, err := h.openV2("") // PID 1 is born at the top, to make that its cgroup namespace's root
	if err != nil {
		return nil, err
	}
	if birth != nil {
		defer birth.Close()
	}
	if m.th, err = newThread(func() error { return h.enter(m) }); err != nil {
		return nil, err
	}
	if err := h.plugAll(m); err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	go func() {
		_, _ = io.Copy(m.console, r)
		r.Close()
	}()
	m.pid1 = &exec.Cmd{Path: "/bin/sh", Args: []string{"init", "/run/lab/init"}, Dir: "/", Stdout: w, Stderr: w,
		Env:         []string{"PATH=" + pathEnv, "HOME=/root"},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}}
	if birth != nil {
		m.pid1.SysProcAttr.UseCgroupFD, m.pid1.SysProcAttr.CgroupFD = true, int(birth.Fd())
	}
	if err := m.th.do(m.pid1.Start); err != nil {
		return nil, fmt.Errorf("PID 1: %w", err)
	}
	go func() {
		_ = m.pid1.Wait()
		close(m.ended)
	}()
	m.cgroup, err = h.openV2("init.scope")
	if err != nil {
		_ = m.pid1.Process.Kill()
		<-m.ended
	}
	return m, err
}

const pathEnv = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// release closes what a machine holds open. Its processes are gone.
func (m *machine) release() {
	m.th.close()
	m.nl.close()
	for _, f := range []*os.File{m.ns, m.cgroup} {
		if f != nil {
			f.Close()
		}
	}
}

// enter turns the calling thread into one of the host: namespaces of its own, the host's disk as its root.
func (h *Host) enter(m *machine) (err error) {
	const news = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET | unix.CLONE_NEWPID
	if err := unix.Unshare(unix.CLONE_FS | news); err != nil {
		return fmt.Errorf("new namespaces: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if m.ns, err = os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())); err != nil {
		return err
	}
	if m.nl, err = openNetlink(); err != nil {
		return err
	}
	if err := m.nl.setLink("lo", true, 0); err != nil {
		return err
	}
	if err := h.joinV1(); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(h.Name)); err != nil {
		return err
	}
	told := h.told() // reads the machine's /proc
	root := filepath.Join(h.disk.dir, "root")
	layers := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,index=off,metacopy=off", h.disk.lower, filepath.Join(h.disk.dir, "up"), filepath.Join(h.disk.dir, "work"))
	if err := unix.Mount("overlay", root, "overlay", 0, layers); err != nil {
		return fmt.Errorf("overlay over %s: %w", h.disk.lower, err)
	}
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return err
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	old := unix.Umask(0)
	defer unix.Umask(old)
	return h.mounts(told)
}

// mounts makes what is in memory on a running machine: /dev, /run, /sys. It runs inside the host.
func (h *Host) mounts(told map[string]string) error {
	for _, m := range []struct {
		kind, at, opts string
		flags          uintptr
	}{
		{"tmpfs", "/dev", "mode=755,size=1m", unix.MS_NOSUID},
		{"tmpfs", "/run", "mode=755", unix.MS_NOSUID | unix.MS_NODEV},
		{"sysfs", "/sys", "", unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"tmpfs", "/sys/fs/cgroup", "mode=755", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"devpts", "/dev/pts", "newinstance,ptmxmode=0666,mode=620,gid=5", unix.MS_NOSUID | unix.MS_NOEXEC},
		{"tmpfs", "/dev/shm", "mode=1777", unix.MS_NOSUID | unix.MS_NODEV},
	} {
		if strings.HasPrefix(m.at, "/dev/") {
			if err := os.Mkdir(m.at, 0o755); err != nil {
				return err
			}
		}
		if err := unix.Mount(m.kind, m.at, m.kind, m.flags, m.opts); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	for name, minor := range map[string]uint32{"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9} {
		if err := mknod(name, 1, minor); err != nil {
			return err
		}
	}
	for i := range h.gpus() {
		if err := mknod(fmt.Sprintf("nvidia%d", i), 195, uint32(i)); err != nil {
			return err
		}
	}
	if err := errors.Join(mknod("tty", 5, 0), mknod("fuse", 10, 229)); err != nil {
		return err
	}
	for name, to := range map[string]string{"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(to, "/dev/"+name); err != nil {
			return err
		}
	}
	for dir, mode := range map[string]fs.FileMode{"/run/sshd": 0o755, "/run/lock": 0o777 | fs.ModeSticky, "/run/lab": 0o700} {
		if err := mkdir(dir, mode, 0, 0); err != nil {
			return err
		}
	}
	var table strings.Builder
	for _, hi := range hierarchies() {
		dir, line := hi.inHost(hybrid())
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		table.WriteString(line)
	}
	for path, content := range told {
		f := "/run/lab/" + filepath.Base(path)
		if err := os.WriteFile(f, []byte(content), 0o444); err != nil {
			return err
		}
		fmt.Fprintf(&table, "%s %s none bind 0 0\n", f, path)
	}
	if err := errors.Join(os.WriteFile("/run/lab/fstab", []byte(table.String()), 0o600), os.WriteFile("/run/lab/init", []byte(initScript), 0o600)); err != nil {
		return err
	}
	if !h.Spec.ReadOnlyHome {
		return nil
	}
	home := h.Spec.home()
	if err := unix.Mount(home, home, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	return wrap(unix.Mount("", home, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""), "read-only "+home)
}

func mknod(name string, major, minor uint32) error {
	return wrap(unix.Mknod("/dev/"+name, unix.S_IFCHR|0o666, int(unix.Mkdev(major, minor))), "/dev/"+name)
}

// plugAll wires the host to its networks.
func (h *Host) plugAll(m *machine) error {
	if h.Spec.Behind != "" {
		return h.plug(m, "eth0", backstage, net.IPv4(10, 78, 0, byte(10+h.n)))
	}
	if err := h.plug(m, "eth0", bridge, net.IPv4(10, 77, 0, byte(10+h.n))); err != nil {
		return err
	}
	if h.isJump {
		if err := h.plugBackstage(m); err != nil {
			return err
		}
	}
	return m.nl.addDefaultRoute(net.ParseIP(gateway))
}

func (h *Host) plugBackstage(m *machine) error {
	return h.plug(m, "eth1", backstage, net.IPv4(10, 78, 0, byte(10+h.n)))
}

// becomeJump puts the host on the second network too, now if it is up and at every boot.
func (h *Host) becomeJump() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.isJump || h.Spec.Behind != "" { // who is behind another is on that network anyway
		return nil
	}
	h.isJump = true
	if h.m == nil {
		return nil
	}
	return h.plugBackstage(h.m)
}

// plug lays a wire from the host's link dev to a bridge. The hardware address stays the same over boots, as a real one
// does; a neighbour that has it in its table finds the host again at once.
func (h *Host) plug(m *machine, dev, to string, ip net.IP) error {
	h.wires++
	port := fmt.Sprintf("h%d.%d", h.n, h.wires) // new each time: the last boot's may still be on its way out
	mac := net.HardwareAddr{2, 0x77, 0, 0, dev[3] - '0', byte(h.n)}
	if err := m.nl.addVeth(dev, mac, port, int(h.lab.ns.Fd())); err != nil {
		return err
	}
	m.ports = append(m.ports, port)
	if err := h.lab.nl.setLink(port, true, h.lab.bridges[to]); err != nil {
		return err
	}
	return m.nl.addAddr(dev, ip, 24)
}
