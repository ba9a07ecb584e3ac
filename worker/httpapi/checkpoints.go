package httpapi

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/skyloom/skyloom/api"
)

// Checkpointer is a Backend that saves checkpoints on demand.
type Checkpointer interface {
	// Checkpoint saves the running tasks of a managed job and gives what stands for each afterwards.
	Checkpoint(ctx context.Context, jobID int64) ([]api.Checkpoint, error)
}

func (s *Server) checkpointRoutes(h huma.API) {
	type jobIn struct {
		ID int64 `path:"id" minimum:"1"`
	}
	op := operation("GET", "/jobs/{id}/checkpoints", "jobs-checkpoints", managedTag, "What was saved of a managed job: by task, the newest first", http.StatusNotFound)
	op.Description = "Each is complete. A task that is recovered starts with the newest one."
	get(h, op, s, func(ctx context.Context, in *jobIn) (api.CheckpointList, error) {
		if _, err := s.managedJob(ctx, in.ID); err != nil {
			return api.CheckpointList{}, err
		}
		list, err := s.o.Store.Checkpoints(ctx, in.ID)
		if list == nil {
			list = []api.Checkpoint{}
		}
		return api.CheckpointList{Checkpoints: list}, err
	})
	op = operation("POST", "/jobs/{id}/checkpoint", "jobs-checkpoint", managedTag, "Save the checkpoints of a managed job's running tasks now", http.StatusNotFound, http.StatusServiceUnavailable)
	op.Description = "It answers once they are durable. A task whose folder holds what its newest checkpoint does gets no new one: that one is answered."
	get(h, op, s, func(ctx context.Context, in *jobIn) (api.CheckpointList, error) {
		b, ok := s.be().(Checkpointer)
		if !ok {
			return api.CheckpointList{}, failure(api.ErrNotSupported, "", "this server saves no checkpoints")
		}
		list, err := b.Checkpoint(ctx, in.ID)
		return api.CheckpointList{Checkpoints: list}, err
	})
}
