package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// lowerDir is what the hosts' disks are over.
func lowerDir() string {
	if d := os.Getenv("SKYLOOM_LAB_ROOTFS"); d != "" {
		return filepath.Clean(d)
	}
	return "/"
}

var namespacesWork = sync.OnceValue(func() error {
	th, err := newThread(func() error {
		return unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWCGROUP)
	})
	if err != nil {
		return err
	}
	th.close()
	return nil
})

// Available tells why there can be no lab here, or nil. It installs nothing.
func Available() error {
	if os.Geteuid() != 0 {
		return errors.New("hosts need root: run the tests with sudo")
	}
	if b, _ := os.ReadFile("/proc/filesystems"); !strings.Contains(string(b), "\toverlay\n") {
		if out, err := exec.Command("modprobe", "overlay").CombinedOutput(); err != nil {
			return fmt.Errorf("hosts need overlay file systems, which this kernel has not (%s)", strings.TrimSpace(string(out)))
		}
	}
	if err := namespacesWork(); err != nil {
		return fmt.Errorf("hosts need namespaces, which are not allowed here (%w): run outside of a container, or in a privileged one", err)
	}
	if missing := missing(); len(missing) > 0 {
		return fmt.Errorf("hosts need %s: apt-get install openssh-server util-linux", strings.Join(missing, ", "))
	}
	return nil
}

// missing are the programs that a lab cannot do without, those of the hosts looked for where the hosts have them.
func missing() (out []string) {
	if _, err := exec.LookPath("nsenter"); err != nil {
		out = append(out, "nsenter")
	}
	for _, p := range []string{"usr/sbin/sshd", "usr/bin/unshare", "bin/mount", "bin/sh"} {
		if _, err := os.Stat(filepath.Join(lowerDir(), p)); err != nil {
			out = append(out, filepath.Base(p))
		}
	}
	return out
}

// packages are what the lab installs on a Debian machine where something is missing.
var packages = []string{"openssh-server", "openssh-sftp-server", "openssh-client", "util-linux", "sudo", "rsync"}

// welcome are programs that hosts usually have, but can do without.
func welcome() bool {
	for _, p := range []string{"usr/bin/sudo", "usr/bin/rsync", "usr/lib/openssh/sftp-server"} {
		if _, err := os.Stat(filepath.Join(lowerDir(), p)); err != nil {
			return false
		}
	}
	return true
}

var triedWelcome sync.Once

// install gets what is missing by apt-get, where that can be done and is allowed. Services that the packages would start
// are held back.
func install(ctx context.Context, log func(string, ...any)) error {
	if os.Geteuid() != 0 || os.Getenv("SKYLOOM_LAB_INSTALL") == "0" || lowerDir() != "/" {
		return nil
	}
	need := len(missing()) > 0
	if !need && welcome() {
		return nil
	}
	apt, err := exec.LookPath("apt-get")
	if err != nil {
		return nil
	}
	unlock, err := lockFile(filepath.Join(os.TempDir(), "skyloom-lab-install.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	if need = len(missing()) > 0; !need && welcome() {
		return nil // another lab has done it
	}
	const policy = "/usr/sbin/policy-rc.d"
	if _, err := os.Lstat(policy); errors.Is(err, os.ErrNotExist) {
		if err := os.WriteFile(policy, []byte("#!/bin/sh\nexit 101\n"), 0o755); err != nil {
			return err
		}
		defer os.Remove(policy)
	}
	log("lab: installing %s", strings.Join(packages, " "))
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	run := func(args ...string) error {
		cmd := exec.CommandContext(ctx, apt, args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w\n%s", strings.Join(args, " "), err, lastLines(string(out), 5))
		}
		return nil
	}
	args := append([]string{"install", "-y", "-qq", "--no-install-recommends"}, packages...)
	if !need { // one try, from the package lists that are there
		triedWelcome.Do(func() {
			if err := run(args...); err != nil {
				log("lab: sudo, rsync or sftp is missing, and stays so: %v", err)
			}
		})
		return nil
	}
	if run(args...) == nil {
		return nil
	}
	if err := run("update", "-qq"); err != nil {
		return err
	}
	return run(args...)
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
