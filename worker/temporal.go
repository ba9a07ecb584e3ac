package worker

import (
	"sync"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	sdkworker "go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/workflows"
)

// Register makes the workflows and activities known to a worker.
func Register(w sdkworker.Registry, acts *activities.Activities) {
	for name, f := range Workflows() {
		w.RegisterWorkflowWithOptions(f, workflow.RegisterOptions{Name: name})
	}
	registerActivities(w, acts)
}

func registerActivities(w sdkworker.Registry, acts *activities.Activities) {
	// A few methods are for the API, not for workflows: those that can't be activities are passed over.
	w.RegisterActivityWithOptions(acts, activity.RegisterOptions{SkipInvalidStructFunctions: true})
}

// Workflows are all workflows by the name under which other workflows start them.
func Workflows() map[string]any {
	return map[string]any{
		"Launch": workflows.Launch, "Exec": workflows.Exec, "Start": workflows.Start, "Stop": workflows.Stop, "Down": workflows.Down,
		"Autostop": workflows.Autostop, "CancelJobs": workflows.CancelJobs, "Preempt": workflows.Preempt,
		"Check": workflows.Check, "Refresh": workflows.Refresh, activities.ClusterWorkflow: workflows.Cluster, "Reaper": workflows.Reaper, "ManagedJob": workflows.ManagedJob, "PreemptOwned": workflows.PreemptOwned,
		"ScheduledJobs": workflows.ScheduledJobs,
		"SSHUp":         workflows.SSHUp, "SSHDown": workflows.SSHDown,
	}
}

// stickyWorkflows is how many workflows are kept in memory between two of their tasks, some 80 kB each, most of it stacks. The others
// are read and replayed when something happens to them, which costs a few milliseconds: most of those that wait, wait long.
const stickyWorkflows = 2048

// startWorkers starts one worker per task queue: short work, provisioning, files.
func startWorkers(c client.Client, acts *activities.Activities) ([]sdkworker.Worker, error) {
	sdkworker.SetStickyWorkflowCacheSize(stickyWorkflows)
	queue := func(name string, o sdkworker.Options) sdkworker.Worker {
		o.WorkerStopTimeout = 3 * time.Second
		w := sdkworker.New(c, name, o)
		if o.DisableWorkflowWorker {
			registerActivities(w, acts)
		} else {
			Register(w, acts)
		}
		return w
	}
	ws := []sdkworker.Worker{
		queue(activities.QueueMain, sdkworker.Options{MaxConcurrentWorkflowTaskPollers: 4, MaxConcurrentActivityTaskPollers: 2, MaxConcurrentActivityExecutionSize: 256, MaxConcurrentLocalActivityExecutionSize: 256}),
		queue(activities.QueueProvision, sdkworker.Options{DisableWorkflowWorker: true, MaxConcurrentActivityTaskPollers: 2, MaxConcurrentActivityExecutionSize: 1000}),
		queue(activities.QueueFiles, sdkworker.Options{DisableWorkflowWorker: true, MaxConcurrentActivityTaskPollers: 1, MaxConcurrentActivityExecutionSize: 32}),
	}
	for i, w := range ws {
		if err := w.Start(); err != nil {
			stopWorkers(ws[:i])
			return nil, err
		}
	}
	return ws, nil
}

func stopWorkers(ws []sdkworker.Worker) {
	var wg sync.WaitGroup
	for _, w := range ws {
		wg.Add(1)
		go func() {
			defer wg.Done()
			w.Stop()
		}()
	}
	wg.Wait()
}
