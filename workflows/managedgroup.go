package workflows

import (
	"fmt"
	"slices"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/recovery"
)

// meetPatience is how long the nodes of a task wait for those of the other tasks of its group before they are given back.
const meetPatience = 8 * time.Minute

// groupMeets says that the tasks of a group begin together and know each other's addresses.
func groupMeets(ctx workflow.Context) bool {
	return workflow.GetVersion(ctx, "groups meet", workflow.DefaultVersion, 1) > workflow.DefaultVersion
}

// groupShares says that the tasks of a group are put on one infra.
func groupShares(ctx workflow.Context) bool {
	return workflow.GetVersion(ctx, "groups share an infra", workflow.DefaultVersion, 1) > workflow.DefaultVersion
}

// home is the infra and region that the tasks of a group share.
type home struct {
	place  recovery.Place
	full   []recovery.Place // places that had no room for one of them, since all were tried last
	moves  int              // how often the group went elsewhere
	moving bool
	again  bool // in one of those there may be room later
	met    bool // all were there: a task that is lost later may have to go elsewhere, alone
}

// gather chooses where the group is. Without a common place each task goes where it is cheapest.
func (j *job) gather() {
	var first *taskRun
	n := 0
	for i, r := range j.state.Runs {
		if j.state.Spec.Tasks[i].HasRun {
			if n++; first == nil {
				first = r
			}
		}
	}
	if n < 2 {
		return
	}
	j.idle(first)
	for !j.cancelled {
		out, err := j.planGroup(j.root, nil)
		if err != nil {
			due := workflow.Now(j.root).Add(gatherPause)
			first.Row.Details, first.Row.NextRetry = asError(err).Message, &due
			j.show(first, api.EventRetry, "no place can be chosen for the group yet: %s", first.Row.Details)
			_, _ = workflow.AwaitWithTimeout(j.root, gatherPause, func() bool { return j.cancelled })
			first.Row.Details, first.Row.NextRetry = "", nil
			continue
		}
		switch {
		case out.Home != nil:
			j.home = &home{place: out.Home.Place}
			j.show(first, api.EventStep, "the group goes to %s: $%.2f per hour in all, the cheapest of %d place(s) that can hold each of its tasks", out.Home.Place, out.Home.PricePerHour, out.Among)
		case out.Split:
			j.show(first, api.EventStep, "warning: no infra and region can hold all tasks of the group: each goes where it is cheapest, and they may not reach each other")
		}
		return
	}
}

// gatherPause is how long a group waits for infra that could not be asked what it offers.
const gatherPause = 30 * time.Second

func (j *job) planGroup(root workflow.Context, full []recovery.Place) (out activities.PlanGroupOutput, err error) {
	in := activities.PlanGroupInput{Full: full}
	for _, t := range j.state.Spec.Tasks {
		if t.HasRun {
			in.Tasks = append(in.Tasks, t.Text)
		}
	}
	ctx := workflow.WithLocalActivityOptions(root, workflow.LocalActivityOptions{StartToCloseTimeout: 10 * time.Second, ScheduleToCloseTimeout: 30 * time.Second,
		RetryPolicy: &temporal.RetryPolicy{InitialInterval: 100 * time.Millisecond, BackoffCoefficient: 2, MaximumAttempts: 3}, Summary: "choose a place for the group"})
	err = workflow.ExecuteLocalActivity(ctx, acts.PlanGroup, in).Get(ctx, &out)
	return out, err
}

// hint tells a launch of the task where its group is.
func (j *job) hint(r *taskRun) *activities.HomeHint {
	if j.home == nil {
		return nil
	}
	r.at = j.home.moves
	return &activities.HomeHint{Place: j.home.place, Only: !j.home.met}
}

// astray says that the group has gone elsewhere since the task's launch began.
func (j *job) astray(r *taskRun) bool { return j.home != nil && r.at != j.home.moves }

// move takes the group elsewhere, since one of its tasks could not be launched where it is. Not moved: it stays, as there is no
// other place, and all are tried anew; retry then says whether a later round may succeed in one of them.
func (j *job) move(r *taskRun, why *api.Error, retry bool) (moved, again bool) {
	h := j.home
	if h == nil || h.met {
		return false, retry
	}
	_ = workflow.Await(r.m.root, func() bool { return !h.moving })
	if j.astray(r) || r.halted {
		return true, true
	}
	h.moving = true
	defer func() { h.moving = false }()
	full := append(slices.Clone(h.full), h.place)
	out, err := j.planGroup(r.m.root, full)
	if err != nil || out.Home == nil {
		again = retry || h.again || err != nil
		h.full, h.again = nil, false
		return false, again
	}
	old := h.place
	h.place, h.full, h.again = out.Home.Place, full, h.again || retry
	h.moves++
	j.show(r, api.EventRetry, "not on %s: %s; the group goes to %s: $%.2f per hour in all", old, words(why), h.place, out.Home.PricePerHour)
	return true, true
}

// away says that a task was brought up where its group is not.
func (j *job) away(r *taskRun) {
	if at := (recovery.Place{Cloud: r.St.Provider, Region: r.St.Spec.Region}); j.home != nil && j.home.met && at != j.home.place {
		j.show(r, api.EventStep, "no room in %s, where its group is: it is in %s", j.home.place, at)
	}
}

// meet waits until the nodes of all tasks of the group are up, and tells them each other's addresses. After a recovery those of
// the others are told as well. A task that has ended is not waited for. fail: the others are not there yet, or the group has gone
// elsewhere.
func (j *job) meet(ctx workflow.Context, r *taskRun) (fail *api.Error) {
	r.up = true
	missing := func() string {
		for _, o := range j.state.Runs {
			if (!o.up || j.astray(o)) && !o.Row.Status.Terminal() {
				return o.Row.TaskName
			}
		}
		return ""
	}
	met := func() bool { return missing() == "" || r.halted || j.astray(r) }
	if !met() {
		r.Row.Details = fmt.Sprintf("waits for the nodes of %s", missing())
		j.show(r, api.EventStep, "%s", r.Row.Details)
		if ok, err := workflow.AwaitWithTimeout(ctx, meetPatience, met); err != nil || !ok {
			return &api.Error{Kind: api.ErrResourcesUnavailable, Message: fmt.Sprintf("the nodes of %s were not there within %s", missing(), meetPatience)}
		}
	}
	if r.halted {
		return nil
	}
	if j.astray(r) {
		return &api.Error{Kind: api.ErrResourcesUnavailable, Message: fmt.Sprintf("the group goes to %s", j.home.place)}
	}
	if j.home != nil {
		j.home.met = true
	}
	tell := []*taskRun{r}
	if r.Row.Attempt > 1 {
		tell = j.state.Runs
	}
	hosts := j.hosts()
	for _, o := range tell {
		if !o.up || len(hosts) == 0 {
			continue
		}
		in := activities.TellHostsInput{Provider: o.St.Provider, Nodes: o.St.Nodes, Hosts: agentapi.Hosts{Epoch: o.St.Epoch, Hosts: hosts}}
		actx := remote(r.m.root, activities.QueueMain, "tell "+o.Row.TaskName+" the addresses of its group", 20*time.Second, 2*time.Minute)
		if err := workflow.ExecuteActivity(actx, acts.TellHosts, in).Get(actx, nil); err != nil {
			if o == r {
				return asError(err)
			}
			workflow.GetLogger(r.m.root).Warn("addresses not told", "job", j.in.ID, "task", o.Row.TaskName, "error", err) // it is lost as well, and will be told
		}
	}
	return nil
}

// hosts names the nodes of all tasks of the group: TASK-RANK.GROUP.
func (j *job) hosts() []agentapi.HostEntry {
	var out []agentapi.HostEntry
	for _, r := range j.state.Runs {
		if !r.up {
			continue
		}
		for _, n := range r.St.Nodes {
			if n.InternalIP != "" {
				out = append(out, agentapi.HostEntry{Name: fmt.Sprintf("%s-%d.%s", r.Row.TaskName, n.Rank, j.state.Spec.Name), IP: n.InternalIP})
			}
		}
	}
	return out
}

// neverMet ends a group of which a task could not be launched: the others would wait for it in vain.
func (j *job) neverMet(failed *taskRun, why string) {
	for _, o := range j.state.Runs {
		if o.Row.StartAt != nil {
			return // they have met
		}
	}
	for _, o := range j.state.Runs {
		if o != failed && !o.Row.Status.Terminal() && o.alone == nil {
			o.alone, o.aloneWhy = failed, why
			o.halt()
		}
	}
}
