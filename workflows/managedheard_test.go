package workflows_test

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/testsuite"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/optimizer"
	"github.com/skyloom/skyloom/internal/recovery"
	"github.com/skyloom/skyloom/providers"
)

// lone is a farm with one managed job that is no array: what its agent and its infra say is the test's.
type lone struct {
	*fieldHands
	provision func(activities.ProvisionInput) activities.ProvisionOutput
	submit    func(activities.SubmitInput) (activities.SubmitOutput, error)
	judge     func(activities.JudgeInput) activities.JudgeOutput

	judged atomic.Int32
	gone   []activities.NodesInput // what was deleted of launches that failed
}

func newLone(t *testing.T) *lone {
	f := newFarm(t)
	l := &lone{fieldHands: &fieldHands{f.acts, f}}
	l.provision = func(in activities.ProvisionInput) activities.ProvisionOutput {
		return activities.ProvisionOutput{Ready: true, Nodes: []providers.Node{{ID: in.Ref.Hash}}}
	}
	l.submit = func(in activities.SubmitInput) (activities.SubmitOutput, error) {
		return activities.SubmitOutput{Job: &api.Job{ID: 1, Status: api.JobRunning}}, nil
	}
	l.judge = func(in activities.JudgeInput) activities.JudgeOutput {
		if in.Ended == nil {
			return activities.JudgeOutput{GoesOn: true}
		}
		return activities.JudgeOutput{Decision: recovery.Decide(in.Policy, in.Restarts, recovery.Ending{Status: in.Ended.Status})}
	}
	return l
}

func (l *lone) Plan(_ context.Context, in activities.PlanInput) (activities.PlanOutput, error) {
	if len(in.Failures) > 0 {
		return activities.PlanOutput{Error: optimizer.Explain(in.Failures, nil), Retry: true}, nil
	}
	return l.fieldHands.Plan(context.Background(), in)
}

func (l *lone) Provision(_ context.Context, in activities.ProvisionInput) (activities.ProvisionOutput, error) {
	return l.provision(in), nil
}

func (l *lone) Deprovision(_ context.Context, in activities.NodesInput) (activities.NodesOutput, error) {
	l.gone = append(l.gone, in)
	return activities.NodesOutput{}, nil
}

func (l *lone) Submit(_ context.Context, in activities.SubmitInput) (activities.SubmitOutput, error) {
	return l.submit(in)
}

func (l *lone) Judge(_ context.Context, in activities.JudgeInput) (activities.JudgeOutput, error) {
	if l.judged.Add(1) > 20 {
		return activities.JudgeOutput{}, errors.New("it is judged again and again")
	}
	return l.judge(in), nil
}

// tell signals what a watcher saw of the job's first cluster.
func (l *lone) tell(o activities.Observed) {
	o.Hash = "managed-7-0-1"
	l.env.SignalWorkflow(activities.SignalObserved, o)
}

// ends tells that job 1 of the cluster has succeeded.
func (l *lone) ends() {
	l.tell(activities.Observed{Kind: activities.ObservedJob, Job: &api.Job{ID: 1, Status: api.JobSucceeded}})
}

// succeeds runs the job, with what happens when, and gives its row.
func (l *lone) succeeds(t *testing.T, script func(env *testsuite.TestWorkflowEnvironment)) api.ManagedJob {
	t.Helper()
	err := l.run(arrayInput(""), false, func(env *testsuite.TestWorkflowEnvironment) {
		env.RegisterActivityWithOptions(l, activity.RegisterOptions{SkipInvalidStructFunctions: true, DisableAlreadyRegisteredCheck: true})
		script(env)
	})
	r := l.row()
	if err != nil || r.Status != api.ManagedSucceeded {
		t.Fatalf("%v: %s, %s", err, r.Status, r.FailureReason)
	}
	return r
}

// The cluster tells that a job has ended before the workflow knows the job's number, and tells it once.
func TestEndHeardBeforeTheNumber(t *testing.T) {
	l := newLone(t)
	tries := 0
	l.submit = func(in activities.SubmitInput) (activities.SubmitOutput, error) {
		if tries++; tries <= 3 {
			return activities.SubmitOutput{}, errors.New("no answer") // the patient way follows
		}
		l.ends()
		return activities.SubmitOutput{Job: &api.Job{ID: 1, Status: api.JobPending}}, nil
	}
	r := l.succeeds(t, func(*testsuite.TestWorkflowEnvironment) {})
	if took := r.EndAt.Sub(r.SubmittedAt); took > time.Hour {
		t.Errorf("the end was noticed after %v", took)
	}
}

// A node that was silent for too long answers when it is asked: the job goes on, and is not looked at again until something is heard.
func TestSilentNodeAnswersAfterAll(t *testing.T) {
	l := newLone(t)
	var ranks []int
	judge := l.judge
	l.judge = func(in activities.JudgeInput) activities.JudgeOutput {
		if in.Lost != "" {
			ranks = in.LostRanks
		}
		return judge(in)
	}
	r := l.succeeds(t, func(env *testsuite.TestWorkflowEnvironment) {
		env.RegisterDelayedCallback(func() {
			l.tell(activities.Observed{Kind: activities.ObservedLost, Rank: 1, Message: "has been silent for 5m0s"})
		}, time.Minute)
		env.RegisterDelayedCallback(l.ends, time.Hour)
	})
	if n := l.judged.Load(); n != 2 || r.Recoveries != 0 || !slices.Equal(ranks, []int{1}) {
		t.Errorf("judged %d times, recovered %d times, silent were %v; want 2, 0, [1]", n, r.Recoveries, ranks)
	}
}

// What is heard of the nodes while the job is handed to them counts afterwards.
func TestLookAskedForWhileSubmitting(t *testing.T) {
	l := newLone(t)
	tries := 0
	l.submit = func(in activities.SubmitInput) (activities.SubmitOutput, error) {
		if tries++; tries <= 3 {
			return activities.SubmitOutput{}, errors.New("no answer")
		}
		if tries == 4 {
			l.tell(activities.Observed{Kind: activities.ObservedNodes})
		}
		return activities.SubmitOutput{Job: &api.Job{ID: 1, Status: api.JobRunning}}, nil
	}
	l.judge = func(in activities.JudgeInput) activities.JudgeOutput {
		if in.Ended == nil && tries == 4 {
			l.env.RegisterDelayedCallback(func() {
				l.env.SignalWorkflow(activities.SignalObserved, activities.Observed{Hash: "managed-7-0-2", Kind: activities.ObservedJob, Job: &api.Job{ID: 1, Status: api.JobSucceeded}})
			}, time.Minute)
			return activities.JudgeOutput{Decision: recovery.Decision{Move: recovery.Recover, Reason: "preempted"}}
		}
		return activities.JudgeOutput{Decision: recovery.Decide(in.Policy, in.Restarts, recovery.Ending{Status: in.Ended.Status})}
	}
	r := l.succeeds(t, func(*testsuite.TestWorkflowEnvironment) {})
	if took := r.EndAt.Sub(r.SubmittedAt); r.Recoveries != 1 || took > time.Hour {
		t.Errorf("%d recoveries, ended after %v", r.Recoveries, took)
	}
}

// A host falls silent while its node is awaited. There was room, so the next launch follows soon, and the deletion of what nobody can
// reach does not hold it up.
func TestLaunchLosesItsHost(t *testing.T) {
	l := newLone(t)
	l.provision = func(in activities.ProvisionInput) activities.ProvisionOutput {
		if in.Ref.Hash == "managed-7-0-1" {
			l.env.RegisterDelayedCallback(func() {
				l.tell(activities.Observed{Kind: activities.ObservedSilent, Message: "has been silent for 5m0s"})
			}, 5*time.Minute)
		}
		return activities.ProvisionOutput{Ready: in.Ref.Hash != "managed-7-0-1", Nodes: []providers.Node{{ID: in.Ref.Hash}}}
	}
	l.submit = func(in activities.SubmitInput) (activities.SubmitOutput, error) {
		return activities.SubmitOutput{Job: &api.Job{ID: 1, Status: api.JobSucceeded}}, nil
	}
	r := l.succeeds(t, func(*testsuite.TestWorkflowEnvironment) {})
	if took := r.EndAt.Sub(r.SubmittedAt); r.Attempt != 2 || took < 5*time.Minute || took > 5*time.Minute+10*time.Second {
		t.Errorf("attempt %d has succeeded after %v", r.Attempt, took)
	}
	if len(l.gone) == 0 {
		t.Error("nothing was deleted")
	}
	for _, in := range l.gone {
		if in.Ref.Hash != "managed-7-0-1" || !in.GiveUp || !in.Lost {
			t.Errorf("the deletion of %s gives up: %v, soon: %v", in.Ref.Hash, in.GiveUp, in.Lost)
		}
	}
}
