package lab

import (
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strconv"
	"strings"
)

const userID = 1000

// shown are the folders of the machine that a host sees; everything else at the top is hidden from it.
var shown = map[string]bool{"bin": true, "sbin": true, "lib": true, "lib32": true, "lib64": true, "libx32": true, "libo32": true,
	"usr": true, "etc": true, "var": true, "opt": true}

// prepare writes a fresh host's own files: who may log in, its name and key, and what the spec wants.
func (h *Host) prepare(hostKey string) error {
	steps := []func() error{h.skeleton, h.accounts, h.sudo, func() error { return h.sshd(hostKey) }, h.variants, h.extraFiles}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("files of host %s: %w", h.Name, err)
		}
	}
	return nil
}

// skeleton turns the machine's tree into one of a machine on which nobody has worked yet.
func (h *Host) skeleton() error {
	d := h.disk
	top, err := os.ReadDir(d.lower)
	if err != nil {
		return err
	}
	empty := map[string]fs.FileMode{"/root": 0o700, "/home": 0o755, "/tmp": 0o777 | fs.ModeSticky, "/var/tmp": 0o777 | fs.ModeSticky,
		"/run": 0o755, "/srv": 0o755, "/mnt": 0o755, "/media": 0o755, "/boot": 0o755, "/dev": 0o755, "/proc": 0o555, "/sys": 0o555,
		"/usr/local": 0o755, "/usr/local/bin": 0o755, "/usr/local/sbin": 0o755, "/usr/local/lib": 0o755, "/usr/local/etc": 0o755, "/usr/local/share": 0o755}
	for _, e := range top {
		if _, fresh := empty["/"+e.Name()]; !shown[e.Name()] && !fresh {
			if err := d.hide("/" + e.Name()); err != nil {
				return err
			}
		}
	}
	paths := make([]string, 0, len(empty))
	for p := range empty {
		paths = append(paths, p)
	}
	sort.Strings(paths) // parents first
	for _, p := range paths {
		if err := d.folder(p, empty[p], 0); err != nil {
			return err
		}
	}
	for path, content := range map[string]string{
		"/etc/hostname":    h.Name + "\n",
		"/etc/hosts":       "127.0.0.1 localhost\n127.0.1.1 " + h.Name + "\n",
		"/etc/machine-id":  randomHex(16) + "\n",
		"/etc/resolv.conf": "",
		"/etc/fstab":       "",
		"/etc/motd":        "",
		"/etc/environment": "",
	} {
		if err := d.file(path, content, 0o644, 0, 0); err != nil {
			return err
		}
	}
	return d.hide("/etc/nologin")
}

// accounts leaves the system's users, and adds the host's own.
func (h *Host) accounts() error {
	d, s := h.disk, h.Spec
	hash := "*"
	if s.Password != "" {
		hash = sha512crypt(s.Password, randomHex(8))
	}
	human := map[string]bool{}
	system := func(file string, id int) (out []string) {
		for line := range strings.Lines(d.read(file)) {
			f := strings.Split(strings.TrimSpace(line), ":")
			if len(f) <= id || f[0] == s.User || f[0] == "root" {
				continue
			}
			if n, err := strconv.Atoi(f[id]); err == nil && n >= 1000 && n < 65000 {
				human[f[0]] = true
				continue
			}
			out = append(out, strings.Join(f, ":"))
		}
		return out
	}
	passwd, group := system("/etc/passwd", 2), system("/etc/group", 2)
	rootShell, rootHash := "/bin/bash", "*"
	if s.User == "root" {
		rootShell, rootHash = s.Shell, hash
	}
	passwd = append([]string{"root:x:0:0:root:/root:" + rootShell}, passwd...)
	group = append([]string{"root:x:0:"}, group...)
	const age = ":19700:0:99999:7:::"
	shadow := []string{"root:" + rootHash + age}
	for line := range strings.Lines(d.read("/etc/shadow")) {
		if name, _, _ := strings.Cut(line, ":"); name != "root" && name != s.User && !human[name] {
			shadow = append(shadow, strings.TrimSpace(line))
		}
	}
	if s.User != "root" {
		passwd = append(passwd, fmt.Sprintf("%s:x:%d:%d::%s:%s", s.User, userID, userID, s.home(), s.Shell))
		group = append(group, fmt.Sprintf("%s:x:%d:", s.User, userID))
		shadow = append(shadow, s.User+":"+hash+age)
	}
	for path, lines := range map[string][]string{"/etc/passwd": passwd, "/etc/group": group, "/etc/shadow": shadow} {
		mode := fs.FileMode(0o644)
		if path == "/etc/shadow" {
			mode = 0o600
		}
		if err := d.file(path, strings.Join(lines, "\n")+"\n", mode, 0, 0); err != nil {
			return err
		}
	}
	if err := h.home("/root", 0, 0o700, true, s.User == "root" && s.NoisyRC); err != nil {
		return err
	}
	if s.User == "root" {
		return nil
	}
	return h.home(s.home(), userID, 0o750, !s.NoKey, s.NoisyRC)
}

// home fills a home folder as useradd does, with the lab's key where key says so.
func (h *Host) home(dir string, uid int, mode fs.FileMode, key, noisy bool) error {
	d := h.disk
	if err := d.folder(dir, mode, uid); err != nil {
		return err
	}
	for _, f := range []string{".bashrc", ".profile", ".bash_logout"} {
		content := d.read("/etc/skel/" + f)
		if noisy && f != ".bash_logout" {
			content = noise + content
		}
		if err := d.file(dir+"/"+f, content, 0o644, uid, uid); err != nil {
			return err
		}
	}
	if !key || (uid == 0 && h.Spec.User == "root" && h.Spec.NoKey) {
		return nil
	}
	if err := d.folder(dir+"/.ssh", 0o700, uid); err != nil {
		return err
	}
	return d.file(dir+"/.ssh/authorized_keys", h.lab.publicKey, 0o600, uid, uid)
}

// noise is what an rc file should not do, and many do.
const noise = `echo "*** Welcome to the cluster! Maintenance on Friday. ***"
echo "{\"status\": \"ok\"}"
echo "rc: conda: command not found" >&2
`

func (h *Host) sudo() error {
	d, s := h.disk, h.Spec
	if s.User == "root" && s.Sudo == SudoFree {
		return nil
	}
	rule := "%s ALL=(ALL:ALL) NOPASSWD: ALL\n"
	switch s.Sudo {
	case SudoPassword:
		rule = "%s ALL=(ALL:ALL) ALL\n"
	case SudoNone:
		return h.hideCommand("sudo")
	case SudoBroken:
		return d.file("/usr/bin/sudo", "#!/bin/sh\necho 'sudo: /etc/sudo.conf is owned by uid 65534, should be 0' >&2\n"+
			"echo 'sudo: /usr/bin/sudo must be owned by uid 0 and have the setuid bit set' >&2\nexit 1\n", 0o755, 0, 0)
	case SudoHangs:
		return d.file("/usr/bin/sudo", "#!/bin/sh\nexec sleep 1000000\n", 0o755, 0, 0)
	}
	if err := d.folder("/etc/sudoers.d", 0o750, 0); err != nil {
		return err
	}
	return d.file("/etc/sudoers.d/90-"+s.User, fmt.Sprintf(rule, s.User), 0o440, 0, 0)
}

func (h *Host) sshd(hostKey string) error {
	d, s := h.disk, h.Spec
	if err := d.folder("/etc/ssh", 0o755, 0); err != nil {
		return err
	}
	yes := map[bool]string{true: "yes", false: "no"}
	lines := append(append([]string(nil), s.SSHD...), "Port 22", "HostKey /etc/ssh/ssh_host_ed25519_key", "PermitRootLogin yes", "PubkeyAuthentication yes",
		"PasswordAuthentication "+yes[s.Password != ""], "KbdInteractiveAuthentication no", "UsePAM no", "UseDNS no",
		"AllowTcpForwarding "+yes[!s.NoForward], "MaxStartups 200:30:400", "MaxSessions 200", "PrintMotd no", "AcceptEnv LANG LC_*")
	if !s.NoSFTP {
		lines = append(lines, "Subsystem sftp /usr/lib/openssh/sftp-server")
	}
	if err := d.file("/etc/ssh/sshd_config", strings.Join(lines, "\n")+"\n", 0o644, 0, 0); err != nil {
		return err
	}
	return d.file("/etc/ssh/ssh_host_ed25519_key", hostKey, 0o600, 0, 0)
}

// commandDirs are where commands are, /usr/local being empty.
var commandDirs = []string{"/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/games"}

// hideCommand takes a command away, with its versioned names.
func (h *Host) hideCommand(name string) error {
	for _, dir := range commandDirs {
		if fi, err := os.Lstat(h.disk.low(dir)); err != nil || !fi.IsDir() {
			continue
		}
		found, err := filepath.Glob(h.disk.low(dir) + "/" + name + "*")
		if err != nil {
			return err
		}
		for _, p := range found {
			if rest := strings.TrimPrefix(filepath.Base(p), name); strings.Trim(rest, "0123456789.-") == "" {
				if err := h.disk.hide(dir + "/" + filepath.Base(p)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (h *Host) gpus() (out []fakeGPU) {
	for _, g := range h.Spec.GPUs {
		for range g.Count {
			out = append(out, fakeGPU{index: len(out), memoryMB: g.MemoryMB, name: g.Name})
		}
	}
	return out
}

func (h *Host) variants() error {
	d, s := h.disk, h.Spec
	for _, name := range s.Hide {
		if err := h.hideCommand(name); err != nil {
			return err
		}
	}
	if gpus := h.gpus(); len(gpus) > 0 {
		if err := d.file("/usr/bin/nvidia-smi", nvidiaSMI(gpus), 0o755, 0, 0); err != nil {
			return err
		}
		if err := d.file("/usr/bin/cuda-device-count", deviceCount(len(gpus)), 0o755, 0, 0); err != nil {
			return err
		}
	} else if err := h.hideCommand("nvidia-smi"); err != nil {
		return err
	}
	if s.CPUs > 0 {
		if err := d.file("/usr/bin/nproc", fmt.Sprintf("#!/bin/sh\necho %d\n", h.tellsCPUs()), 0o755, 0, 0); err != nil {
			return err
		}
	}
	if s.Arch == "" {
		return nil
	}
	if err := d.file("/usr/lib/lab/uname", d.read("/usr/bin/uname"), 0o755, 0, 0); err != nil {
		return err
	}
	goArch := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]
	return d.file("/usr/bin/uname", fmt.Sprintf("#!/bin/sh\n/usr/lib/lab/uname \"$@\" | /bin/sed 's/%s/%s/g'\n", goArch, s.Arch), 0o755, 0, 0)
}

func (h *Host) extraFiles() error {
	for path, content := range h.Spec.Files {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("Files: %q is no absolute path", path)
		}
		mode := fs.FileMode(0o644)
		if b := filepath.Base(filepath.Dir(path)); b == "bin" || b == "sbin" {
			mode = 0o755
		}
		if err := h.disk.file(path, content, mode, 0, 0); err != nil {
			return err
		}
	}
	return nil
}

// tellsCPUs is how many CPUs the host says it has.
func (h *Host) tellsCPUs() int { return max(1, int(math.Ceil(h.Spec.CPUs))) }

// told are the files of /proc and /sys that tell of the machine, as the host should tell of itself.
func (h *Host) told() map[string]string {
	out := map[string]string{"/proc/sys/kernel/random/boot_id": bootID() + "\n"}
	if mb := h.Spec.MemoryMB; mb > 0 {
		kb := mb << 10
		free := kb / 10 * 9
		out["/proc/meminfo"] = fmt.Sprintf("MemTotal:       %8d kB\nMemFree:        %8d kB\nMemAvailable:   %8d kB\nBuffers:               0 kB\n"+
			"Cached:                0 kB\nSwapCached:            0 kB\nSwapTotal:             0 kB\nSwapFree:              0 kB\nShmem:                 0 kB\nSReclaimable:          0 kB\n",
			kb, free, free)
	}
	if h.Spec.CPUs > 0 {
		all, _ := os.ReadFile("/proc/cpuinfo")
		one, _, _ := strings.Cut(string(all), "\n\n")
		var b strings.Builder
		for i := range h.tellsCPUs() {
			for line := range strings.Lines(one) {
				if key, _, _ := strings.Cut(line, ":"); strings.TrimSpace(key) == "processor" {
					line = fmt.Sprintf("processor\t: %d\n", i)
				}
				b.WriteString(line)
			}
			b.WriteString("\n\n")
		}
		out["/proc/cpuinfo"] = b.String()
		out["/sys/devices/system/cpu/online"] = fmt.Sprintf("0-%d\n", h.tellsCPUs()-1)
	}
	return out
}
