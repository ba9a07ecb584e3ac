package workflows

import (
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/skyloom/skyloom/activities"
)

var acts *activities.Activities

// HistoryLimit is the length, in events, from which an idle cluster's workflow continues as new. It must stay the same
// while workflows run; only tests set it.
var HistoryLimit = 2000

// local is for short side effects on our own store: no event but a marker, retried until the store answers.
func local(ctx workflow.Context, summary string) workflow.Context {
	return workflow.WithLocalActivityOptions(ctx, workflow.LocalActivityOptions{
		StartToCloseTimeout:    10 * time.Second,
		ScheduleToCloseTimeout: 24 * time.Hour,
		RetryPolicy:            &temporal.RetryPolicy{InitialInterval: 100 * time.Millisecond, BackoffCoefficient: 2, MaximumInterval: 10 * time.Second},
		Summary:                summary,
	})
}

// brief is for a local activity whose failure must not hold up what follows.
func brief(ctx workflow.Context, summary string) workflow.Context {
	return workflow.WithLocalActivityOptions(ctx, workflow.LocalActivityOptions{
		StartToCloseTimeout:    3 * time.Second,
		ScheduleToCloseTimeout: 5 * time.Second,
		RetryPolicy:            &temporal.RetryPolicy{InitialInterval: 100 * time.Millisecond, BackoffCoefficient: 2, MaximumAttempts: 3},
		Summary:                summary,
	})
}

// remote is for work on the infra or the nodes. It heartbeats, so that a killed server delays it by seconds only, and
// is retried until limit.
func remote(ctx workflow.Context, queue, summary string, once, limit time.Duration) workflow.Context {
	return workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
		TaskQueue:              queue,
		StartToCloseTimeout:    once,
		ScheduleToCloseTimeout: limit,
		HeartbeatTimeout:       heartbeat,
		WaitForCancellation:    true,
		RetryPolicy:            &temporal.RetryPolicy{InitialInterval: 200 * time.Millisecond, BackoffCoefficient: 2, MaximumInterval: 30 * time.Second},
		Summary:                summary,
	})
}

const (
	// heartbeat is how long a silent activity is believed to run.
	heartbeat = 4 * time.Second
	// forever bounds what must end in the end, such as a teardown.
	forever = 365 * 24 * time.Hour
	// provisionPatience is how long nodes that were accepted may take to become ready.
	provisionPatience = 15 * time.Minute
	// redeliver is the safety timer of a request that waits for its cluster's reply.
	redeliver = 6 * time.Hour
)
