package workflows

import (
	"fmt"
	"time"

	"go.temporal.io/sdk/workflow"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
)

// meetPatience is how long the nodes of a task wait for those of the other tasks of its group before they are given back.
const meetPatience = 8 * time.Minute

// groupMeets says that the tasks of a group begin together and know each other's addresses.
func groupMeets(ctx workflow.Context) bool {
	return workflow.GetVersion(ctx, "groups meet", workflow.DefaultVersion, 1) > workflow.DefaultVersion
}

// meet waits until the nodes of all tasks of the group are up, and tells them each other's addresses. After a recovery those of
// the others are told as well. A task that has ended is not waited for. fail: the others are not there yet.
func (j *job) meet(ctx workflow.Context, r *taskRun) (fail *api.Error) {
	r.up = true
	missing := func() string {
		for _, o := range j.state.Runs {
			if !o.up && !o.Row.Status.Terminal() {
				return o.Row.TaskName
			}
		}
		return ""
	}
	met := func() bool { return missing() == "" || r.halted }
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
func (j *job) neverMet(failed *taskRun) {
	for _, o := range j.state.Runs {
		if o.Row.StartAt != nil {
			return // they have met
		}
	}
	for _, o := range j.state.Runs {
		if o != failed && !o.Row.Status.Terminal() {
			o.alone = failed.Row.TaskName
			o.halt()
		}
	}
}
