package local

import (
	"os"

	"github.com/skyloom/skyloom/internal/failpoint"
)

// Variables of the server's environment by which tests crash the agents of its nodes: they become failpoint.Env and
// failpoint.EnvDir of a node's init. The server's own points are not the nodes'.
const (
	EnvAgentFailpoints   = "SKYLOOM_AGENT_FAILPOINTS"
	EnvAgentFailpointDir = "SKYLOOM_AGENT_FAILPOINT_DIR"
)

// agentFailpoints is what a node's environment gets of them: nothing, outside of tests.
func agentFailpoints() []string {
	points := os.Getenv(EnvAgentFailpoints)
	if points == "" {
		return nil
	}
	env := []string{failpoint.Env + "=" + points}
	if dir := os.Getenv(EnvAgentFailpointDir); dir != "" {
		env = append(env, failpoint.EnvDir+"="+dir)
	}
	return env
}
