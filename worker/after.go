package worker

import (
	"context"
	"errors"
	"time"

	"go.temporal.io/api/serviceerror"

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

// afters tells managed jobs that what they waited for has come, or can no longer come. A job stays due until the engine
// has the signal, so that a server that dies in between has the next one tell it.
func (s *server) afters(ctx context.Context) {
	changed, stop := s.store.Subscribe(store.WaitTopic)
	defer stop()
	poll := time.NewTicker(15 * time.Second) // for what other servers on this database have written
	defer poll.Stop()
	for {
		due, err := s.store.DueWaits(ctx)
		if err != nil && ctx.Err() == nil {
			s.log.Warn("jobs that wait for others", "error", err)
		}
		for _, w := range due {
			err := s.client.SignalWorkflow(ctx, w.Workflow, "", activities.SignalWaited, nil)
			var missing *serviceerror.NotFound
			switch {
			case errors.As(err, &missing):
				err = s.store.ForgetWait(ctx, w.JobID)
			case err == nil:
				err = s.store.WaitTold(ctx, w.JobID)
			}
			if err != nil && ctx.Err() == nil {
				s.log.Warn("jobs that wait for others", "job", w.JobID, "error", err)
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
