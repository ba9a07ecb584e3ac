package worker

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/store"
)

// checkAfter refuses a submission that waits for jobs which do not exist.
func (b *backend) checkAfter(ctx context.Context, body api.JobsLaunchBody) error {
	on, err := api.ParseAfter(body.After)
	if err != nil {
		return &api.Error{Kind: api.ErrInvalid, Message: "after: " + err.Error()}
	}
	unknown, err := b.store.UnknownJobs(ctx, body.RequestID, on)
	if err != nil {
		return err
	}
	if len(unknown) > 0 {
		return &api.Error{Kind: api.ErrJobNotFound, Message: "there is no managed job " + api.FormatIDs(unknown) + " to wait for; nothing was submitted", Hint: "see all: sky jobs queue"}
	}
	return nil
}

// Afters tells managed jobs that what they waited for has come, or can no longer come, until ctx ends. A job stays due until
// the engine has the signal, so that when a server dies in between the next one tells it.
func Afters(ctx context.Context, st *store.Store, c client.Client, log *slog.Logger) {
	changed, stop := st.Subscribe(store.WaitTopic)
	defer stop()
	poll := time.NewTicker(15 * time.Second) // for what other servers on this database have written
	defer poll.Stop()
	for {
		due, err := st.DueWaits(ctx)
		if err != nil && ctx.Err() == nil {
			log.Warn("jobs that wait for others", "error", err)
		}
		for _, w := range due {
			err := c.SignalWorkflow(ctx, w.Workflow, "", activities.SignalWaited, nil)
			var missing *serviceerror.NotFound
			switch {
			case errors.As(err, &missing):
				err = st.ForgetWait(ctx, w.JobID)
			case err == nil:
				err = st.WaitTold(ctx, w.JobID)
			}
			if err != nil && ctx.Err() == nil {
				log.Warn("jobs that wait for others", "job", w.JobID, "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-poll.C:
		case <-changed:
		}
	}
}
