//go:build linux

package supervisor

import (
	"log/slog"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

// ownProc makes this mount namespace's mounts private and mounts a /proc of the PID namespace.
func ownProc() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if link, err := os.Readlink("/proc/self"); err == nil && link == "1" {
		return nil
	}
	return unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
}

// ownHosts binds a copy of the machine's /etc/hosts over it.
func ownHosts(path string) error {
	b, err := os.ReadFile("/etc/hosts")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		return err
	}
	return unix.Mount(path, "/etc/hosts", "", unix.MS_BIND, "")
}

// ownTmp binds a folder over /tmp.
func ownTmp(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o777|os.ModeSticky); err != nil {
		return err
	}
	return unix.Mount(dir, "/tmp", "", unix.MS_BIND, "")
}

// powerOff ends the machine, by its service manager where there is one.
func powerOff(log *slog.Logger) {
	for _, c := range [][]string{{"systemctl", "poweroff"}, {"shutdown", "-h", "now"}, {"poweroff"}} {
		if os.Geteuid() != 0 {
			c = append([]string{"sudo", "-n"}, c...)
		}
		if err := exec.Command(c[0], c[1:]...).Run(); err == nil {
			time.Sleep(time.Minute)
		}
	}
	if os.Geteuid() == 0 {
		unix.Sync()
		log.Error("power off", "error", unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
	}
}
