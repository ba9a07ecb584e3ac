//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// cpu is what this process has used, with the children that it has waited for.
func cpu() time.Duration {
	var sum time.Duration
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if unix.Getrusage(who, &u) == nil {
			sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
	}
	return sum
}

func TestTwentyAtOnce(t *testing.T) {
	before, start := cpu(), time.Now()
	l := New(t, Options{Hosts: 20})
	wall, own := time.Since(start), cpu()-before
	var inside time.Duration
	var mem float64
	for _, h := range l.Hosts() {
		if !answers(h) {
			t.Errorf("%s does not answer", h.Name)
		}
		u, err := h.Usage()
		must(t, err)
		inside += u.CPU
		mem += u.MemoryMB
	}
	t.Logf("20 hosts up in %s: %.2f CPU s in this process, %.2f in the hosts (with one connection each), %.1f MB charged to them", wall, own.Seconds(), inside.Seconds(), mem)
	start = time.Now()
	must(t, each(l.Hosts(), (*Host).Reboot))
	t.Logf("20 reboots at once: %s", time.Since(start))
	start = time.Now()
	must(t, l.Host(0).Reboot())
	t.Logf("1 reboot: %s", time.Since(start))
	start = time.Now()
	must(t, l.Close())
	t.Logf("closed in %s", time.Since(start))
}

// leftovers is what there is of a lab on the machine: its folders, mounts and cgroups.
func leftovers(id, scratch string) (out []string) {
	for _, p := range []string{filepath.Join(runDir, id), scratch} {
		if _, err := os.Lstat(p); err == nil && p != "" {
			out = append(out, p)
		}
	}
	out = append(out, mountsBelow(filepath.Join(runDir, id))...)
	for _, hi := range hierarchies() {
		if _, err := os.Lstat(hi.path(id, "")); err == nil {
			out = append(out, hi.path(id, ""))
		}
	}
	return out
}

func TestNothingIsLeft(t *testing.T) {
	links := func() string {
		b, _ := os.ReadFile("/proc/net/dev")
		var names []string
		for line := range strings.Lines(string(b)) {
			name, _, _ := strings.Cut(line, ":")
			names = append(names, strings.TrimSpace(name))
		}
		return strings.Join(names, " ")
	}
	before := links()
	low := HostSpec{Name: "low"}
	if CanLimit() {
		low.MemoryMB = 64
	}
	l := New(t, Options{Specs: []HostSpec{{Name: "jump"}, {Name: "inner", Behind: "jump"}, low}})
	run(t, l.Host(0), "setsid nohup sleep 100000 >/dev/null 2>&1 &")
	if now := links(); now != before {
		t.Errorf("the machine's own links changed: %s, then %s", before, now)
	}
	if len(leftovers(l.id, l.scratch)) == 0 {
		t.Error("a lab that runs does not show")
	}
	must(t, l.Close())
	if left := leftovers(l.id, l.scratch); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestSweep lets a process with a lab die, and looks that its hosts die with it and the next lab removes the rest.
func TestSweep(t *testing.T) {
	if os.Getenv("LAB_TEST_CHILD") != "" {
		l, err := Start(context.Background(), Options{Hosts: 2})
		must(t, err)
		_, err = l.Host(0).Run(bg, "setsid nohup sleep 7654321 >/dev/null 2>&1 &")
		must(t, err)
		fmt.Printf("lab %s %s\n", l.id, l.scratch)
		select {}
	}
	New(t, Options{}) // skips where there can be none
	cmd := exec.Command(os.Args[0], "-test.run=^TestSweep$")
	cmd.Env = append(os.Environ(), "LAB_TEST_CHILD=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	var id, scratch string
	if _, err := fmt.Fscanf(out, "lab %s %s\n", &id, &scratch); err != nil {
		t.Fatal(err)
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if b, _ := exec.Command("sh", "-c", "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '").Output(); !strings.Contains(string(b), "sleep 7654321") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a process of a host outlived the lab's process")
		}
	}
	if len(leftovers(id, scratch)) == 0 {
		t.Skip("the kernel had cleaned up after the dead lab before it could be looked at")
	}
	New(t, Options{Hosts: 1})
	if left := leftovers(id, scratch); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestWithoutRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		if err := Available(); err == nil || !strings.Contains(err.Error(), "root") {
			t.Errorf("%v", err)
		}
		return
	}
	if err := Available(); err != nil {
		t.Skip(err)
	}
	if _, err := Start(bg, Options{Specs: []HostSpec{{Name: "a"}, {Name: "a"}}}); err == nil {
		t.Error("two hosts have one name")
	}
	if _, err := Start(bg, Options{Specs: []HostSpec{{Behind: "nobody"}}}); err == nil {
		t.Error("a host is behind nobody")
	}
	ctx, cancel := context.WithCancel(bg)
	cancel()
	if _, err := Start(ctx, Options{Hosts: 1}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
