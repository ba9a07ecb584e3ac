package failpoint

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

var (
	pointA = Register("test.a")
	pointB = Register("test.b")
)

func configure(t *testing.T, conf, dir string) {
	t.Helper()
	load(conf, dir)
	t.Cleanup(func() { load("", "") })
}

func TestOff(t *testing.T) {
	if err := Hit(pointA); err != nil || on.Load() {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() { _ = Hit(pointA) }); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func TestError(t *testing.T) {
	configure(t, "test.a=error; test.b=error:2", "")
	for i := range 4 {
		if err := Hit(pointA); !errors.Is(err, ErrInjected) || !strings.Contains(err.Error(), "test.a") {
			t.Fatalf("%v", err)
		}
		if err := Hit(pointB); (err != nil) != (i < 2) {
			t.Fatalf("hit %d: %v", i, err)
		}
	}
	if err := Check(); err != nil {
		t.Fatal(err)
	}
}

func TestSleep(t *testing.T) {
	configure(t, "test.a=sleep:30ms", "")
	start := time.Now()
	if err := Hit(pointA); err != nil || time.Since(start) < 30*time.Millisecond {
		t.Fatalf("%v after %v", err, time.Since(start))
	}
}

func TestKillOnce(t *testing.T) {
	dir := t.TempDir()
	configure(t, "test.a=kill", dir)
	kills := 0
	for range 3 {
		if err := hit(pointA, func() {
			if _, err := os.Stat(Marker(dir, pointA)); err != nil {
				t.Errorf("killed before the mark was made: %v", err)
			}
			kills++
		}); err != nil {
			t.Fatal(err)
		}
	}
	if kills != 1 {
		t.Fatalf("%d kills", kills)
	}
	configure(t, "test.a=kill", filepath.Join(dir, "missing"))
	_ = hit(pointA, func() { t.Error("killed without a mark") })
}

// TestKillProcess runs this test binary as the victim.
func TestKillProcess(t *testing.T) {
	if os.Getenv(Env) != "" {
		_ = Hit(pointA)
		os.Exit(7)
	}
	dir := t.TempDir()
	run := func() *exec.ExitError {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKillProcess$")
		cmd.Env = append(os.Environ(), Env+"=test.a=kill", EnvDir+"="+dir)
		var ee *exec.ExitError
		if err := cmd.Run(); !errors.As(err, &ee) {
			t.Fatalf("%v", err)
		}
		return ee
	}
	if ws := run().Sys().(syscall.WaitStatus); !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
		t.Fatalf("%v", ws)
	}
	if code := run().ExitCode(); code != 7 {
		t.Fatalf("the second run ended with %d", code)
	}
}

func TestCheck(t *testing.T) {
	for conf, want := range map[string]string{
		"nobody.knows=error": "no point is called", "test.a=explode": "want kill", "test.a": "want kill", "test.a=sleep:x": "invalid duration",
		"test.a=error:x": "invalid syntax", "test.a=kill": EnvDir,
	} {
		configure(t, conf, "")
		if err := Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", conf, err)
		}
	}
}

func TestRegister(t *testing.T) {
	if !slices.Contains(Names(), "test.b") || !slices.IsSorted(Names()) {
		t.Fatal(Names())
	}
	for _, bad := range []string{"", "test.a", "a=b", "a/b", "a b"} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%q was accepted", bad)
				}
			}()
			Register(bad)
		}()
	}
}

func BenchmarkOff(b *testing.B) {
	for b.Loop() {
		_ = Hit(pointA)
	}
}
