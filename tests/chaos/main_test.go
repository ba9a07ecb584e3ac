package chaos

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"
)

var (
	binOnce sync.Once
	binDir  string
	binErr  error
)

func TestMain(m *testing.M) {
	code := m.Run()
	if binDir != "" && binDir != os.Getenv("SKYLOOM_BIN") {
		os.RemoveAll(binDir)
	}
	os.Exit(code)
}

// programs is the folder of sky-server and sky-agent.
func programs(t *testing.T) string {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("what runs is counted in /proc")
	}
	if testing.Short() {
		t.Skip("starts and kills real servers: minutes")
	}
	binOnce.Do(func() {
		if binDir = os.Getenv("SKYLOOM_BIN"); binDir != "" {
			return
		}
		if binDir, binErr = os.MkdirTemp("", "sky-chaos-bin-"); binErr != nil {
			return
		}
		for _, name := range []string{"sky-agent", "sky-server"} {
			cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", filepath.Join(binDir, name), "github.com/skyloom/skyloom/cmd/"+name)
			if out, err := cmd.CombinedOutput(); err != nil {
				binErr = fmt.Errorf("build %s: %w\n%s", name, err, out)
				return
			}
		}
	})
	if binErr != nil {
		t.Fatal(binErr)
	}
	return binDir
}

// randomKills is how often the server is killed at random.
func randomKills() int {
	if n, err := strconv.Atoi(os.Getenv("SKYLOOM_CHAOS_KILLS")); err == nil {
		return n
	}
	if os.Getenv("CI") == "true" {
		return 8 // besides one at every failpoint: more than 20 in all
	}
	return 3
}

// thorough says that every operation is to be killed at every point it passes.
func thorough() bool { return randomKills() >= 100 }

// seeded gives the run's randomness, and says how to have it again.
func seeded(t *testing.T) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	if n, err := strconv.ParseUint(os.Getenv("SKYLOOM_CHAOS_SEED"), 10, 64); err == nil {
		seed = n
	}
	t.Logf("SKYLOOM_CHAOS_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}
