package local

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/agent/gpus"
)

// BenchmarkCreateReadyDelete is the provider's part of a launch and a down: from the request to an answering agent, and
// until all is gone.
func BenchmarkCreateReadyDelete(b *testing.B) {
	ctx := context.Background()
	p, err := New(Options{Root: filepath.Join(b.TempDir(), "local"), Installation: "bench", Agent: theAgent, GPUs: []gpus.GPU{}})
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	for i := 0; b.Loop(); i++ {
		r := ref("bench", fmt.Sprint("b", i))
		ns, err := p.Create(ctx, request(r, 1))
		if err != nil {
			b.Fatal(err)
		}
		h, _ := parseHandle(ns[0])
		c := agentapi.NewUnix(h.Socket)
		for {
			if _, err := c.Info(ctx); err == nil {
				break
			}
		}
		c.Close()
		if err := p.Delete(ctx, r, nil); err != nil {
			b.Fatal(err)
		}
	}
}
