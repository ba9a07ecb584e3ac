package worker

import (
	"context"

	"github.com/skyloom/skyloom/internal/store"
)

// WaitReasons says in words what managed jobs wait for: other jobs, or to be let in.
func (b *backend) WaitReasons(ctx context.Context, jobIDs []int64) (map[int64]string, error) {
	states, err := b.store.AdmissionStates(ctx, jobIDs...)
	if err != nil {
		return nil, err
	}
	waits, err := b.store.JobWaits(ctx, jobIDs...)
	if err != nil {
		return nil, err
	}
	out := map[int64]string{}
	for id, w := range waits {
		if why := store.WaitWords(w); why != "" {
			out[id] = why
		}
	}
	for id, s := range states {
		if why := s.Why(b.acts.Limits); why != "" {
			out[id] = why
		}
	}
	return out, nil
}
