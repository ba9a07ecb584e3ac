package local

import (
	"context"
	"fmt"
	"time"

	"github.com/skyloom/skyloom/agent/proctree"
	"github.com/skyloom/skyloom/providers"
)

// WatchNodes calls f with every node as it is, then with every change. The end of a process is told by the kernel at
// once; what other processes on this folder do is seen at the next look around. The more nodes there are, the longer a
// look takes and the longer it rests between two, so that looking never takes more than a small part of a core.
func (p *Provider) WatchNodes(ctx context.Context, tag providers.Tag, f func(providers.Node)) error {
	bell := make(chan struct{}, 1)
	p.mu.Lock()
	p.bells[bell] = true
	p.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer func() {
		p.mu.Lock()
		delete(p.bells, bell)
		p.mu.Unlock()
	}()
	ring := func() {
		select {
		case bell <- struct{}{}:
		default:
		}
	}
	last := map[string]providers.Node{}
	awaited := map[proctree.Proc]bool{}
	for {
		began := time.Now()
		recs, err := p.tagged(tag)
		if err != nil {
			return err
		}
		procs := newTable()
		nodes := p.observe(recs, procs)
		took := time.Since(began)
		seen := map[string]bool{}
		for _, n := range nodes {
			seen[n.ID] = true
			if old, ok := last[n.ID]; !ok || old.State != n.State || old.Reason != n.Reason {
				last[n.ID] = n
				f(n)
			}
		}
		for id, n := range last {
			if !seen[id] {
				delete(last, id)
				if n.State != providers.NodeGone {
					n.State, n.Reason = providers.NodeGone, "deleted"
					f(n)
				}
			}
		}
		p.awaitAll(ctx, recs, procs, awaited, ring)
		if err := p.rest(ctx, min(10*took, time.Second), nil); err != nil {
			return err
		}
		if err := p.rest(ctx, min(max(lookAround, 1000*took), 2*time.Minute), bell); err != nil {
			return err
		}
	}
}

// rest waits for a time, or until the bell rings.
func (p *Provider) rest(ctx context.Context, d time.Duration, bell <-chan struct{}) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-p.closed:
		return fmt.Errorf("local: the provider was closed")
	case <-bell:
	case <-t.C:
	}
	return nil
}

// awaitAll waits in the background for the end of every node's init that is not awaited yet.
func (p *Provider) awaitAll(ctx context.Context, recs []*record, procs *table, awaited map[proctree.Proc]bool, ring func()) {
	living := map[proctree.Proc]bool{}
	for _, r := range recs {
		proc := p.findInit(r, procs)
		if proc == nil {
			continue
		}
		living[*proc] = true
		if awaited[*proc] {
			continue
		}
		awaited[*proc] = true
		go func() {
			if awaitExit(ctx, *proc) {
				ring()
			}
		}()
	}
	for proc := range awaited {
		if !living[proc] {
			delete(awaited, proc)
		}
	}
}
