package session

import (
	"context"
	"time"
)

// Complete lists names that begin so, for a shell's completion. It never starts a server, never waits for more than
// two seconds, and is silent about failures.
func (s *Session) Complete(ctx context.Context, kind, incomplete string) []string {
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	c, err := s.Running(ctx)
	if err != nil || c == nil {
		return nil
	}
	names, err := c.Complete(ctx, kind, incomplete)
	if err != nil {
		return nil
	}
	return names
}
