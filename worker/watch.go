package worker

import (
	"context"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"go.temporal.io/sdk/client"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/internal/config"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/providers"
)

// Watch does until ctx ends what a server's watcher does, for processes that hold the parts of a server without being
// one, such as tests. ttl is how long a lease is kept without being renewed.
func Watch(ctx context.Context, s *store.Store, p *providers.Registry, c client.Client, log *slog.Logger, ttl time.Duration) {
	w := newWatcher(s, p, c, log, uuid.NewString(), config.Health{SuspectAfter: 10 * time.Second, LostAfter: 5 * time.Minute})
	w.ttl = ttl
	w.run(ctx)
}

// Work runs the workers of a server until stop is called, which waits for what they have begun.
func Work(c client.Client, acts *activities.Activities) (stop func(), err error) {
	ws, err := startWorkers(c, acts)
	if err != nil {
		return nil, err
	}
	return func() { stopWorkers(ws) }, nil
}
