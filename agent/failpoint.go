package agent

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// FailpointEnv names failpoints to use, as "name=exit,name=exit". Each kills the agent once: a mark in the agent's folder
// (failpoints/<name>) remembers it.
const FailpointEnv = "SKYLOOM_FAILPOINTS"

// Failpoints lists the places where the agent can be made to die.
var Failpoints = []string{
	"submit-before-journal",
	"submit-after-journal",
	"placed",
	"before-prepare",
	"before-start",
	"after-start",
	"after-stage",
	"before-exit-record-read",
	"after-exit-record-read",
	"before-finish",
	"after-finish",
	"cancel-before-kill",
	"cancel-after-kill",
	"drain-before-journal",
	"drain-after-journal",
	"hook-before-start",
	"hook-after-start",
	"self-end",
	"upgrade-before-rename",
	"upgrade-after-rename",
}

// failpoint kills this process if the named point is armed and was not used before.
func (a *Agent) failpoint(name string) {
	armed := os.Getenv(FailpointEnv)
	if armed == "" {
		return
	}
	for f := range strings.SplitSeq(armed, ",") {
		if f != name+"=exit" {
			continue
		}
		os.MkdirAll(a.path("failpoints"), 0o700)
		m, err := os.OpenFile(filepath.Join(a.path("failpoints"), name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return
		}
		m.Close()
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}
