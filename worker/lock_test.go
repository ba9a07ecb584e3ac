//go:build unix

package worker

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestLockOfADeadServerIsWaitedFor(t *testing.T) {
	home := t.TempDir()
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Skip(err)
	}
	pid := func(n int) {
		if err := os.WriteFile(filepath.Join(home, "server.pid"), fmt.Appendln(nil, n), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pid(cmd.Process.Pid)
	unlock, err := lockHome(home)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(200*time.Millisecond, unlock)
	again, err := lockHome(home)
	if err != nil {
		t.Fatalf("the lock of a dead server was not waited for: %v", err)
	}
	defer again()
	pid(os.Getpid())
	if _, err := lockHome(home); err == nil || !strings.Contains(err.Error(), fmt.Sprint("process ", os.Getpid())) {
		t.Errorf("two servers on one home: %v", err)
	}
}

// TestLockOfAServerThatEnds: a server that is about to end has no process id on file any more; the next one waits for it.
func TestLockOfAServerThatEnds(t *testing.T) {
	home := t.TempDir()
	unlock, err := lockHome(home)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(200*time.Millisecond, unlock)
	again, err := lockHome(home)
	if err != nil {
		t.Fatalf("the lock of a server that ends was not waited for: %v", err)
	}
	defer again()
	time.AfterFunc(200*time.Millisecond, func() { // one that has just begun tells who it is
		_ = os.WriteFile(filepath.Join(home, "server.pid"), fmt.Appendln(nil, os.Getpid()), 0o600)
	})
	if _, err := lockHome(home); err == nil || !strings.Contains(err.Error(), fmt.Sprint("process ", os.Getpid())) {
		t.Errorf("two servers on one home: %v", err)
	}
}
