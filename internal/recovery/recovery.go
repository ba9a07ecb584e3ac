// Package recovery decides what follows when a managed job's attempt ends: done, again, or elsewhere. It is pure: values in,
// values out; no clock, no network, no workflow engine.
//
// Invariants: a success is never run again; an error of the user's code is restarted at most as often as was asked for, and a loss of
// the infra without limit; the same values give the same decision.
package recovery

import (
	"fmt"
	"hash/fnv"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/optimizer"
)

// Strategy is where a lost job is brought up again.
type Strategy string

// Strategies.
const (
	// Failover tries the region it was in first, then anywhere.
	Failover Strategy = "FAILOVER"
	// EagerNextRegion leaves out the region it was lost in at first, then tries anywhere.
	EagerNextRegion Strategy = "EAGER_NEXT_REGION"
)

// Known tells whether there is such a strategy.
func Known(s string) bool { return Strategy(s) == Failover || Strategy(s) == EagerNextRegion }

// Policy is what the task file says about recovery.
type Policy struct {
	Strategy    Strategy `json:"strategy"`
	MaxRestarts int      `json:"max_restarts_on_errors"`
	Codes       []int    `json:"recover_on_exit_codes,omitempty"` // restarts for these do not count
	Off         bool     `json:"off,omitempty"`                   // no recovery at all
}

// Ending is how an attempt ended.
type Ending struct {
	Status    api.JobStatus `json:"status,omitempty"` // of the job on its cluster; empty: not known
	ExitCodes []int         `json:"exit_codes,omitempty"`
	Reason    string        `json:"reason,omitempty"`
	// Lost says that the cluster is not whole any more: the infra is to blame, whatever the job's status.
	Lost bool `json:"lost,omitempty"`
}

// Move is what to do.
type Move string

// Moves.
const (
	Finish  Move = "finish"
	Restart Move = "restart" // the user's code failed and may try again, on the same cluster if it is whole
	Recover Move = "recover" // the infra failed: bring up a new cluster
)

// Decision is a move and why.
type Decision struct {
	Move   Move              `json:"move"`
	Status api.ManagedStatus `json:"status,omitempty"` // with Finish
	Counts bool              `json:"counts,omitempty"` // a restart that uses up one of the policy's
	Reason string            `json:"reason"`
}

// Decide tells what follows the end of an attempt; restarts is how many counted ones there were.
func Decide(p Policy, restarts int, e Ending) Decision {
	if e.Status == api.JobSucceeded {
		return Decision{Move: Finish, Status: api.ManagedSucceeded, Reason: "every rank exited with 0"}
	}
	if e.Lost || e.Status == "" || e.Status == api.JobFailedDriver {
		if p.Off {
			return Decision{Move: Finish, Status: api.ManagedFailed, Reason: "lost, and job_recovery is none: " + e.Reason}
		}
		return Decision{Move: Recover, Reason: orElse(e.Reason, "the cluster was lost")}
	}
	if e.Status == api.JobCancelled {
		return Decision{Move: Finish, Status: api.ManagedFailed, Reason: "its job was cancelled on the cluster, not through `sky jobs cancel`"}
	}
	failed := api.ManagedFailed
	if e.Status == api.JobFailedSetup {
		failed = api.ManagedFailedSetup
	}
	if !p.Off {
		for _, c := range e.ExitCodes {
			if c != 0 && contains(p.Codes, c) {
				return Decision{Move: Restart, Reason: fmt.Sprintf("exit code %d is among recover_on_exit_codes", c)}
			}
		}
		if restarts < p.MaxRestarts {
			return Decision{Move: Restart, Counts: true, Reason: fmt.Sprintf("%s; restart %d of %d", describe(e), restarts+1, p.MaxRestarts)}
		}
	}
	return Decision{Move: Finish, Status: failed, Reason: describe(e)}
}

func describe(e Ending) string {
	if e.Reason != "" {
		return e.Reason
	}
	for rank, c := range e.ExitCodes {
		if c != 0 {
			return fmt.Sprintf("rank %d exited with %d", rank, c)
		}
	}
	return "the job ended " + string(e.Status)
}

func contains(list []int, v int) bool {
	for _, x := range list {
		if x == v {
			return true
		}
	}
	return false
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// Place is where the lost attempt ran.
type Place = optimizer.Place

// FirstTries is how many rounds a strategy keeps to its first preference.
const FirstTries = 3

// Blocks rules out places for round n (from 0) of a recovery, among those that there are: with Failover all but the old region, with
// EagerNextRegion the old region, and nothing once the first rounds have failed, or if nothing would be left.
func Blocks(s Strategy, round int, old Place, all []Place) []optimizer.Block {
	if round >= FirstTries || old.Cloud == "" {
		return nil
	}
	var out []optimizer.Block
	kept := 0
	for _, p := range all {
		same := p == old
		if s == Failover != same {
			out = append(out, optimizer.Block{Cloud: p.Cloud, Region: p.Region})
		} else {
			kept++
		}
	}
	if kept == 0 {
		return nil
	}
	return out
}

// Relaunch is how long a launch waits before round n (from 0) that had a place, and lost it before its nodes were ready. There is room,
// so the first rounds follow soon: after 2, 8 and 32 s; if it goes on like that it waits as one that finds no place.
func Relaunch(job int64, n int) time.Duration {
	if n < 3 {
		return 2 * time.Second << (2 * n)
	}
	return Backoff(job, n-3)
}

// Backoff is how long a launch that found no place waits before round n (from 0): 60 s, growing by 1.6 up to five minutes, spread by up
// to 40 % either way so that many jobs do not come back at once. The spread follows from the job's number.
func Backoff(job int64, n int) time.Duration {
	d := 60 * time.Second
	for range n {
		if d = d * 8 / 5; d >= 5*time.Minute {
			d = 5 * time.Minute
			break
		}
	}
	h := fnv.New32a()
	fmt.Fprintf(h, "%d/%d", job, n)
	spread := float64(h.Sum32()%1000)/1000*0.8 - 0.4
	return d + time.Duration(spread*float64(d))
}
