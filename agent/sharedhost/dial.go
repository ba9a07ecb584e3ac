//go:build linux

package sharedhost

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"strconv"
	"syscall"
)

// dial joins stdin and stdout to a node's socket, after a line that says so: for an sshd that forwards no sockets, and for a
// socket that is root's.
func dial(nonce, socket string) int {
	c, err := net.Dial("unix", socket)
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		if path, perr := exec.LookPath("sudo"); perr == nil {
			if self, serr := os.Executable(); serr == nil {
				syscall.Exec(path, []string{"sudo", "-n", self, "host", VerbDial, nonce, socket}, os.Environ())
			}
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer c.Close()
	// The agent makes its socket anew when it starts: from now on sshd may open it for the login.
	if uid, err := strconv.Atoi(os.Getenv("SUDO_UID")); err == nil && os.Geteuid() == 0 {
		os.Lchown(socket, uid, -1)
	}
	fmt.Printf("\n%s\n", Begin(nonce))
	go func() {
		io.Copy(c, os.Stdin)
		c.(*net.UnixConn).CloseWrite()
	}()
	io.Copy(os.Stdout, c)
	return 0
}
