package workflows

import (
	"time"

	"go.temporal.io/sdk/workflow"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/api"
)

// SSHUp checks and prepares the hosts of SSH node pools.
func SSHUp(ctx workflow.Context, in api.SSHBody) (api.SSHResult, error) {
	return pools(ctx, in, "ssh.up", "prepare the hosts", acts.PreparePools)
}

// SSHDown removes every trace from the hosts of SSH node pools.
func SSHDown(ctx workflow.Context, in api.SSHBody) (api.SSHResult, error) {
	return pools(ctx, in, "ssh.down", "clean the hosts", acts.CleanPools)
}

func pools(ctx workflow.Context, in api.SSHBody, kind, summary string, activity any) (api.SSHResult, error) {
	var out api.SSHResult
	in.RequestID = requestID(ctx, in.RequestID)
	if err := open(ctx, in.Base, "sky."+kind, kind); err != nil {
		return out, err
	}
	actx := remote(ctx, activities.QueueProvision, summary, 5*time.Minute, 10*time.Minute)
	if err := workflow.ExecuteActivity(actx, activity, in).Get(actx, &out); err != nil {
		return out, ended(ctx, in.RequestID, err)
	}
	out.RequestID = in.RequestID
	return out, closeRequest(ctx, in.RequestID, out)
}
