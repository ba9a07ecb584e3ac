package agent

import "github.com/skyloom/skyloom/internal/failpoint"

// Failpoints lists the places where the agent can be made to die, in the order of a job's life. They are switched on as
// package failpoint says (SKYLOOM_FAILPOINTS="agent.placed=kill"); init keeps the marks in failpoints/ of the agent's folder.
var Failpoints = []string{
	"agent.submit-before-journal",
	"agent.submit-after-journal",
	"agent.placed",
	"agent.before-prepare",
	"agent.after-stage",
	"agent.before-start",
	"agent.after-start",
	"agent.before-exit-record-read",
	"agent.after-exit-record-read",
	"agent.before-finish",
	"agent.after-finish",
	"agent.cancel-before-kill",
	"agent.cancel-after-kill",
	"agent.drain-before-journal",
	"agent.drain-after-journal",
	"agent.hook-before-start",
	"agent.hook-after-start",
	"agent.self-end",
	"agent.upgrade-before-rename",
	"agent.upgrade-after-rename",
	"agent.files-passing-on",
}

func init() {
	for _, name := range Failpoints {
		failpoint.Register(name)
	}
}

// failpoint kills this process if the point is armed and was not used before; it can also slow it down.
func (a *Agent) failpoint(name string) {
	if err := failpoint.Hit("agent." + name); err != nil {
		a.log.Warn("failpoint", "error", err)
	}
}
