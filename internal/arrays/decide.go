package arrays

import (
	"fmt"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/recovery"
)

// MaxBatch bounds the elements of a batch: an agent holds two batches at a time.
const MaxBatch = 1000

const (
	// unknownRounds is how often a cluster's slots are filled by the first batch, when it is not known how long an element takes.
	unknownRounds = 2
	// atMost and atLeast bound the time a batch is made for: what becomes of its elements is decided when all of them have ended, and
	// each batch costs the server one turn.
	atMost  = time.Minute
	atLeast = 5 * time.Second
	// quickest is the time an element is taken to last at least.
	quickest = 10 * time.Millisecond
)

// BatchSize is how many of the todo elements one of so many clusters gets next, each of which runs slots elements at once.
// mean is how long elements took so far; 0: not known. It is 0 only if todo is.
func BatchSize(todo, clusters, slots int, mean time.Duration, known bool) int {
	clusters, slots = max(clusters, 1), max(slots, 1)
	if todo <= 0 {
		return 0
	}
	fair := (todo + clusters - 1) / clusters
	if !known {
		return max(1, min(slots*unknownRounds, fair, MaxBatch))
	}
	mean = max(mean, quickest)
	perSlot := func(d time.Duration) int { return int(float64(slots) * float64(d) / float64(mean)) }
	// Half of a fair share at a time, so that the last batches are small and the clusters end together.
	n := max((fair+1)/2, min(fair, perSlot(atLeast)))
	n = min(n, max(perSlot(atMost), slots))
	return max(1, min(n, todo, MaxBatch))
}

// Wanted is how many clusters so many unfinished elements are worth, at most parallel.
func Wanted(unfinished, parallel, slots int) int {
	slots = max(slots, 1)
	return min(parallel, (unfinished+slots-1)/slots)
}

// MaxReturns is how often an element that an intact cluster could not run goes back.
const MaxReturns = 10

// Try is what is known of one run of an element.
type Try struct {
	Restarts int // counted ones before
	Returns  int // how often it came back from an intact cluster that could not run it
	Ending   recovery.Ending
	// Unfinished: the run had not ended when its cluster was given up.
	Unfinished bool
	// Cancelled: the array was cancelled.
	Cancelled bool
}

// Verdict is what follows for an element.
type Verdict struct {
	Status api.ManagedStatus // PENDING: it is run again
	Counts bool              // a restart that uses up one of the policy's
	Return bool              // it came back from an intact cluster
	Reason string
}

// Decide tells what follows the end of an element's run. A success is never run again, whatever became of its cluster; an
// infra failure gives the element back without counting.
func Decide(p recovery.Policy, t Try) Verdict {
	if t.Cancelled && t.Ending.Status != api.JobSucceeded {
		if t.Unfinished || t.Ending.Status == "" || t.Ending.Status == api.JobCancelled {
			return Verdict{Status: api.ManagedCancelled, Reason: "cancelled"}
		}
		return Verdict{Status: api.ManagedFailed, Reason: recovery.Decide(recovery.Policy{Off: true}, 0, recovery.Ending{Status: t.Ending.Status, ExitCodes: t.Ending.ExitCodes, Reason: t.Ending.Reason}).Reason}
	}
	d := recovery.Decide(p, t.Restarts, t.Ending)
	switch d.Move {
	case recovery.Finish:
		if d.Status == api.ManagedSucceeded {
			return Verdict{Status: api.ManagedSucceeded}
		}
		return Verdict{Status: api.ManagedFailed, Reason: d.Reason}
	case recovery.Recover:
		if t.Ending.Lost {
			return Verdict{Status: api.ManagedPending, Reason: d.Reason}
		}
		if t.Returns >= MaxReturns {
			return Verdict{Status: api.ManagedFailed, Reason: fmt.Sprintf("could not be run, %d times: %s", t.Returns+1, d.Reason)}
		}
		return Verdict{Status: api.ManagedPending, Return: true, Reason: d.Reason}
	}
	return Verdict{Status: api.ManagedPending, Counts: d.Counts, Reason: d.Reason}
}
