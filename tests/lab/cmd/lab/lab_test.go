//go:build linux

package main

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/skyloom/skyloom/tests/lab"
)

func TestMain(m *testing.M) {
	if os.Getenv("LAB_MAIN") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestPlay goes through what a person would do; the commands run as processes of their own.
func TestPlay(t *testing.T) {
	lab.New(t, lab.Options{}) // skips where there can be none
	if c, err := net.Dial("unix", socket); err == nil {
		c.Close()
		t.Skip("somebody's lab is up on this machine")
	}
	cmd := func(want string, args ...string) string {
		t.Helper()
		c := exec.Command(os.Args[0], args...)
		c.Env = append(os.Environ(), "LAB_MAIN=1")
		out, err := c.CombinedOutput()
		if !strings.Contains(string(out), want) {
			t.Errorf("lab %s: no %q in %q (%v)", strings.Join(args, " "), want, out, err)
		}
		return string(out)
	}
	cmd("no lab is up", "list")
	t.Cleanup(func() { cmd("", "down"); cmd("no lab is up", "list") })
	cmd("10.77.0.12", "up", "2", "-gpus", "H100:2:81920", "-user", "alice")
	cmd("H100", "ssh", "h1", "nvidia-smi -L; hostname")
	cmd("root", "run", "h2", "id", "-un")
	cmd("", "kill", "h2")
	cmd("alice      down", "list")
	cmd("", "boot", "h2")
	cmd("10.78.0.13", "up", "3", "-behind", "h1")
	cmd("h3", "ssh", "h3", "hostname")
	cmd("10.77.0.1", "exec", "sh", "-c", "cat /proc/net/fib_trie")
	cmd("ip: 10.77.0.11", "pools")
	cmd("there is no host", "cut", "h9")
	cmd("lab help", "frobnicate", "h1")
	if c := exec.Command(os.Args[0], "run", "h1", "exit 7"); true {
		c.Env = append(os.Environ(), "LAB_MAIN=1")
		if err := c.Run(); c.ProcessState.ExitCode() != 7 {
			t.Errorf("exit code of the command: %v", err)
		}
	}
}
