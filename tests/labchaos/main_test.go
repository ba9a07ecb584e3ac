//go:build linux

package labchaos

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/skyloom/skyloom/tests/lab"
)

var binDir string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if err := lab.Available(); err != nil {
		fmt.Println("skipped:", err)
		return 0
	}
	if binDir = os.Getenv("SKYLOOM_BIN"); binDir != "" {
		return m.Run()
	}
	var err error
	if binDir, err = os.MkdirTemp("", "sky-labchaos-bin-"); err != nil {
		fmt.Println(err)
		return 1
	}
	defer os.RemoveAll(binDir)
	for _, name := range []string{"sky-agent", "sky-server"} {
		cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", filepath.Join(binDir, name), "github.com/skyloom/skyloom/cmd/"+name)
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Printf("build %s: %v\n%s", name, err, out)
			return 1
		}
	}
	return m.Run()
}

// number reads a number from the environment. Set says that somebody asked for it: the faults are then apart as they are to be.
func number(name string, otherwise int) (n int, set bool) {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n, true
	}
	return otherwise, false
}

// seeded gives the run's randomness, and says how to have it again.
func seeded(t *testing.T) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	if n, err := strconv.ParseUint(os.Getenv("SKYLOOM_LAB_SEED"), 10, 64); err == nil {
		seed = n
	}
	t.Logf("SKYLOOM_LAB_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// pace is how far faults are apart, and how long a host is away because of one.
type pace struct{ apart, short, long time.Duration }

// paceOf is the pace of a thorough run, or of the one that is part of all tests.
func paceOf(thorough bool) pace {
	if thorough {
		return pace{10 * time.Second, 10 * time.Second, 60 * time.Second}
	}
	return pace{3 * time.Second, 5 * time.Second, 18 * time.Second}
}
