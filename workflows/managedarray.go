package workflows

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"go.temporal.io/sdk/workflow"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/arrays"
	"github.com/skyloom/skyloom/internal/cluster"
	"github.com/skyloom/skyloom/internal/store"
)

// arrayState is what an array's workflow knows of its elements: which are still to be handed out, and counts. How each stands is in
// the store.
type arrayState struct {
	Todo    arrays.Set `json:"todo"`
	Batches int64      `json:"batches"` // numbers given out
	// Attempts counts clusters that were brought up, over all lanes: epochs and incarnations follow from it.
	Attempts int   `json:"attempts"`
	Failed   int   `json:"failed"`
	Bad      []int `json:"bad,omitempty"` // the first few that failed
	Done     int   `json:"done"`
	// Slots is how many elements a cluster runs at once, Seconds and Timed how long so many elements took.
	Slots   int     `json:"slots"`
	Seconds float64 `json:"seconds"`
	Timed   int     `json:"timed"`
	// Fatal is why the whole array has failed.
	Fatal  api.ManagedStatus `json:"fatal,omitempty"`
	Reason string            `json:"reason,omitempty"`
	Lanes  []*taskRun        `json:"lanes"`
}

// lane is one of the clusters that an array uses: brought up, given batches, and replaced when it is lost.
type lane struct {
	N int `json:"n"`
	// Up says that it takes batches; Inflight are those it has.
	Up       bool       `json:"up,omitempty"`
	Inflight []inflight `json:"inflight,omitempty"`
	// Retired lanes get no cluster any more.
	Retired bool `json:"retired,omitempty"`
}

type inflight struct {
	Batch    int64      `json:"batch"`
	Elements arrays.Set `json:"elements"`
	// Unsure: it is not known whether the cluster has taken it. Ended: the cluster has told the end of it.
	Unsure bool `json:"unsure,omitempty"`
	Ended  bool `json:"ended,omitempty"`
}

// heard takes note that a batch has ended.
func (l *lane) heard(batch int64) {
	if l == nil {
		return
	}
	if b := l.batch(batch); b != nil {
		b.Ended = true
	}
}

// batch finds a batch by its number; nil if the lane has it no more.
func (l *lane) batch(n int64) *inflight {
	return l.first(func(b inflight) bool { return b.Batch == n })
}

// first gives the first batch of which something is so; nil if there is none.
func (l *lane) first(so func(inflight) bool) *inflight {
	for i := range l.Inflight {
		if so(l.Inflight[i]) {
			return &l.Inflight[i]
		}
	}
	return nil
}

func hasEnded(b inflight) bool { return b.Ended }
func isUnsure(b inflight) bool { return b.Unsure }

func (l *lane) drop(batch int64) {
	l.Inflight = slices.DeleteFunc(slices.Clone(l.Inflight), func(b inflight) bool { return b.Batch == batch })
}

// admission is the number under which a task asks to be let in.
func (r *taskRun) admission(job int64) int64 {
	if r.Lane == nil {
		return job
	}
	return activities.LaneAdmission(job, r.Lane.N)
}

// clusters are all that may have a cluster: tasks, or the lanes of an array.
func (j *job) clusters() []*taskRun {
	if j.state.Array == nil {
		return j.state.Runs
	}
	return append(append([]*taskRun(nil), j.state.Runs...), j.state.Array.Lanes...)
}

// array slides over the elements of an array with a number of clusters. It tells whether the workflow must continue as new.
func (j *job) array() (again bool) {
	spec, row := j.state.Spec.Tasks[0], j.state.Runs[0]
	j.idle(row)
	if j.state.Array == nil {
		a := &arrayState{Todo: arrays.Range(0, spec.Array.Count-1), Slots: 1}
		for n := range spec.Array.Parallel {
			l := &taskRun{Index: 0, Lane: &lane{N: n}}
			l.Row = row.Row
			a.Lanes = append(a.Lanes, l)
		}
		j.state.Array = a
	}
	a := j.state.Array
	if !spec.HasRun {
		j.finish(row, api.ManagedSucceeded, "nothing to run")
		return false
	}
	open := 0
	for _, r := range a.Lanes {
		open++
		workflow.GoNamed(j.root, fmt.Sprintf("cluster %d", r.Lane.N), func(ctx workflow.Context) {
			j.lane(ctx, r, spec)
			open--
		})
	}
	_ = workflow.Await(j.root, func() bool { return j.cancelled || a.over() || j.due() })
	if !j.cancelled && !a.over() {
		// What was signalled and not yet taken in is taken along.
		seen := workflow.GetSignalChannel(j.outer, activities.SignalObserved)
		for o := (activities.Observed{}); seen.ReceiveAsync(&o); o = (activities.Observed{}) {
			j.observe(o)
		}
		return true
	}
	if j.cancelled && row.Row.Status != api.ManagedCancelling {
		row.Row.Status = api.ManagedCancelling
		j.show(row, api.EventStatus, "CANCELLING")
	}
	for _, r := range a.Lanes {
		r.halt()
	}
	_ = workflow.Await(j.root, func() bool { return open == 0 })
	j.endArray(row)
	return false
}

// due says that the workflow should continue as new, and can: every lane waits.
func (j *job) due() bool {
	if !workflow.GetInfo(j.root).GetContinueAsNewSuggested() {
		return false
	}
	for _, r := range j.state.Array.Lanes {
		if !r.parked {
			return false
		}
	}
	return true
}

// over says that no element is left, or none will be run.
func (a *arrayState) over() bool {
	if a.Fatal != "" {
		return true
	}
	if a.Todo.Len() > 0 {
		return false
	}
	for _, r := range a.Lanes {
		if len(r.Lane.Inflight) > 0 {
			return false
		}
	}
	return true
}

// endArray draws the result of an array from its elements.
func (j *job) endArray(row *taskRun) {
	a := j.state.Array
	j.sumLanes()
	count := row.Row.Array.Count
	row.Row.Array.Clusters = 0
	switch {
	case a.Fatal != "":
		j.finish(row, a.Fatal, a.Reason)
	case j.cancelled && a.Done+a.Failed < count:
		j.finish(row, api.ManagedCancelled, fmt.Sprintf("cancelled; %d of %d elements had ended", a.Done+a.Failed, count))
	case a.Failed > 0:
		slices.Sort(a.Bad)
		which := strings.Trim(strings.Join(strings.Fields(fmt.Sprint(a.Bad)), ", "), "[]")
		if a.Failed > len(a.Bad) {
			which += ", …"
		}
		j.finish(row, api.ManagedFailed, fmt.Sprintf("%d of %d elements failed: %s", a.Failed, count, which))
	default:
		j.finish(row, api.ManagedSucceeded, fmt.Sprintf("all %d elements succeeded", count))
	}
}

// sumLanes brings what the lanes have used into the array's row.
func (j *job) sumLanes() {
	row := &j.state.Runs[0].Row
	row.Recoveries, row.CostDollars, row.Array.Clusters = 0, 0, 0
	for _, r := range j.state.Array.Lanes {
		row.Recoveries += r.Row.Recoveries
		row.CostDollars += r.Row.CostDollars
		if r.Lane.Up {
			row.Array.Clusters++
		}
	}
}

// showLane writes what a lane does into the timeline, and the array's row as it stands now.
func (j *job) showLane(r *taskRun, kind api.EventKind, message string) {
	row := j.state.Runs[0]
	j.sumLanes()
	if !j.cancelled {
		j.arrayStatus(row)
	}
	row.Row.Seq++
	ev := r.m.event(cluster.Op{Auto: true}, kind, "job", "cluster %d: %s", r.Lane.N, message)
	ev.Attempt, ev.NextRetry = r.Row.Attempt, r.Row.NextRetry
	r.m.record("write the array's row", store.Batch{ManagedJobs: []api.ManagedJob{row.Row}, Events: []store.Event{ev}})
	a := j.state.Array
	workflow.SetCurrentDetails(r.m.root, fmt.Sprintf("**%s** · %d of %d elements have ended, %d failed · %d clusters\n\n%s", row.Row.Status, a.Done+a.Failed, row.Row.Array.Count, a.Failed, row.Row.Array.Clusters, ev.Message))
}

// arrayStatus draws the array's state from its lanes.
func (j *job) arrayStatus(row *taskRun) {
	now := workflow.Now(j.root)
	up, starting := false, false
	var waits *taskRun
	for _, r := range j.state.Array.Lanes {
		up = up || r.Lane.Up
		switch {
		case r.Row.NextRetry != nil:
			if waits == nil || waits.Row.NextRetry == nil || r.Row.NextRetry.Before(*waits.Row.NextRetry) {
				waits = r
			}
		case r.Row.Status == api.ManagedStarting:
			starting = true
		case r.Row.Details != "" && waits == nil:
			waits = r
		}
	}
	was := &row.Row
	status := api.ManagedPending
	switch {
	case up:
		status = api.ManagedRunning
	case was.StartAt != nil:
		status = api.ManagedRecovering
	case starting:
		status = api.ManagedStarting
	}
	was.Details, was.NextRetry = "", nil
	if waits != nil && !up {
		was.Details, was.NextRetry = waits.Row.Details, waits.Row.NextRetry
	} else if waits != nil {
		was.Details = fmt.Sprintf("%d of %d clusters; the next waits: %s", was.Array.Clusters, was.Array.Parallel, waits.Row.Details)
	}
	if status == was.Status {
		return
	}
	if status == api.ManagedRunning {
		was.RunningSince = &now
		if was.StartAt == nil {
			was.StartAt = &now
		}
	} else if was.RunningSince != nil {
		was.RunSeconds += now.Sub(*was.RunningSince).Seconds()
		was.RunningSince = nil
	}
	was.Status = status
}

// clustersWanted is how many clusters the elements that have not ended are worth.
func (a *arrayState) clustersWanted() int {
	left := a.Todo.Len()
	for _, r := range a.Lanes {
		for _, b := range r.Lane.Inflight {
			left += b.Elements.Len()
		}
	}
	return arrays.Wanted(left, len(a.Lanes), a.Slots)
}

// wants says that the lane should get a cluster.
func (a *arrayState) wants(r *taskRun) bool {
	if a.Todo.Len() == 0 || r.Lane.Retired {
		return false
	}
	have := 0
	for _, o := range a.Lanes {
		if o != r && (o.Lane.Up || o.St.Exists() || o.busy) {
			have++
		}
	}
	return have < a.clustersWanted()
}

// size is how many elements the next batch holds.
func (a *arrayState) size() int {
	mean := time.Duration(0)
	if a.Timed > 0 {
		mean = time.Duration(a.Seconds / float64(a.Timed) * float64(time.Second))
	}
	up := 0
	for _, r := range a.Lanes {
		if !r.Lane.Retired {
			up++
		}
	}
	return arrays.BatchSize(a.Todo.Len(), min(up, max(a.clustersWanted(), 1)), a.Slots, mean, a.Timed > 0)
}
