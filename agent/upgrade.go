package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/skyloom/skyloom/agent/durable"
)

// Upgrade puts another binary in place: POST /v1/upgrade. It is verified by its hash and by starting it once. The caller
// then lets the agent end with supervisor.ExitRestart. False: that binary runs already.
func (a *Agent) Upgrade(ctx context.Context, want string, body io.Reader) (bool, error) {
	if len(want) != 64 {
		return false, invalid("sha256=%s is not a SHA-256 in hex", want)
	}
	if strings.EqualFold(want, a.sha()) {
		return false, nil
	}
	tmp, err := os.CreateTemp(a.path("bin"), ".sky-agent-*")
	if err != nil {
		return false, diskError(err)
	}
	defer os.Remove(tmp.Name())
	h := newSHA()
	_, err = io.Copy(io.MultiWriter(tmp, h), body)
	if err == nil {
		err = tmp.Chmod(0o755)
	}
	if err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return false, diskError(err)
	}
	if got := hexOf(h); !strings.EqualFold(got, want) {
		return false, invalid("the binary that arrived has SHA-256 %s, not %s: send it again", got, want)
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var out []byte
	for range 20 {
		out, err = exec.CommandContext(ctx, tmp.Name(), "version").CombinedOutput()
		if !errors.Is(err, syscall.ETXTBSY) {
			break
		}
		time.Sleep(50 * time.Millisecond) // a shim being started right now still has the file open
	}
	if err != nil {
		return false, invalid("the binary does not run on this node: %v %.200s", err, out)
	}
	placed := a.path("bin", "sky-agent")
	a.failpoint("upgrade-before-rename")
	if _, err := os.Stat(placed); err == nil {
		os.Remove(placed + ".prev")
		if err := os.Link(placed, placed+".prev"); err != nil && !errors.Is(err, os.ErrExist) {
			a.log.Warn("the binary before is not kept", "error", err)
		}
	}
	if err := os.Rename(tmp.Name(), placed); err != nil {
		return false, diskError(err)
	}
	durable.SyncDir(a.path("bin"))
	a.failpoint("upgrade-after-rename")
	a.log.Info(fmt.Sprintf("upgraded to %s", strings.TrimSpace(string(out))))
	return true, nil
}
