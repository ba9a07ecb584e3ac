package agent

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/skyloom/skyloom/api"
)

// killedCode is the exit code of a rank that was ended because another failed.
const killedCode = 137

// result is how a phase ended on one node.
type result struct {
	code     int
	natural  bool // it ended by itself
	vanished bool
	lost     bool
	ordered  bool  // its node had been told to end it, by a driver before the agent's restart or by a stop: another rank tells why
	err      error // the node refused for good
	first    time.Time
}

// resultOf reads a phase that has ended, or that was ended before it could say how.
func resultOf(p *phaseRecord) result {
	switch {
	case p.Exit != nil:
		return result{code: p.Exit.Code, natural: !p.Exit.Terminated}
	case p.Vanished:
		return result{code: killedCode, vanished: true}
	}
	return result{code: killedCode}
}

// allGood says that a phase went well everywhere.
func allGood(res []result) bool {
	return !slices.ContainsFunc(res, func(r result) bool { return !r.natural || r.code != 0 })
}

// verdict says how a job ended whose phase did not go well everywhere. It is a pure function.
func verdict(phase string, nodes []int, res []result, cause error) outcome {
	o := outcome{status: api.JobFailed}
	byItself := true
	bad := -1 // the rank that failed first
	for i, r := range res {
		o.codes = append(o.codes, r.code)
		byItself = byItself && r.natural
		if r.first != (time.Time{}) && (bad < 0 || r.first.Before(res[bad].first)) {
			bad = i
		}
	}
	if bad < 0 {
		bad = slices.IndexFunc(res, func(r result) bool { return r.err != nil || (r.natural && r.code != 0) })
	}
	var lost errLost
	switch {
	case errors.Is(cause, errCancelled) && !byItself:
		return outcome{status: api.JobCancelled, reason: "cancelled", codes: o.codes}
	case errors.Is(cause, errRestarted):
		return outcome{status: api.JobFailed, reason: errRestarted.Error(), codes: o.codes}
	case errors.As(cause, &lost) && !byItself:
		return outcome{status: api.JobFailedDriver, reason: lost.Error(), codes: o.codes}
	case bad < 0:
		if i := slices.IndexFunc(res, func(r result) bool { return r.ordered }); i >= 0 {
			return outcome{status: api.JobFailedDriver, reason: api.NodeName(nodes[i]) + " had been told to end the job's processes, as when it is stopped", codes: o.codes}
		}
		return outcome{status: api.JobFailedDriver, reason: "the job's processes ended without a reason that is known", codes: o.codes}
	}
	r := res[bad]
	where := api.NodeName(nodes[bad])
	if phase == phaseRun && len(nodes) > 1 {
		where = fmt.Sprintf("rank %d (%s)", bad, where)
	}
	switch {
	case r.err != nil:
		o.status, o.reason = api.JobFailedDriver, fmt.Sprintf("%s could not run the job: %v", where, r.err)
	case r.vanished:
		o.status = api.JobFailedDriver
		o.reason = fmt.Sprintf("the process that ran the job on %s vanished (killed, out of memory, or the node was restarted)", where)
	case !r.natural:
		o.status, o.reason = api.JobFailedDriver, fmt.Sprintf("the job's process on %s was ended from outside, as when its node is stopped", where)
	case phase == phaseSetup:
		o.status, o.reason = api.JobFailedSetup, fmt.Sprintf("setup failed on %s with %s", where, codeText(r.code))
	default:
		o.reason = fmt.Sprintf("%s exited with %s", where, codeText(r.code))
	}
	return o
}

func codeText(code int) string {
	s := fmt.Sprintf("code %d", code)
	switch code {
	case 126, 127:
		return s + " (command not found or not executable)"
	case 137:
		return s + " (killed, often for want of memory)"
	case 139:
		return s + " (segmentation fault)"
	}
	return s
}
