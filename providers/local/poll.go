package local

import (
	"context"
	"time"

	"github.com/skyloom/skyloom/agent/proctree"
)

// pollExit waits for the end of a process by looking; false if ctx (nil: none) ended first.
func pollExit(ctx context.Context, p proctree.Proc) bool {
	if ctx == nil {
		ctx = context.Background()
	}
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for p.Alive() {
		select {
		case <-ctx.Done():
			return false
		case <-t.C:
		}
	}
	return true
}
