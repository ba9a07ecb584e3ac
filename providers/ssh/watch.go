package ssh

import (
	"context"
	"sync"
	"time"

	"github.com/skyloom/skyloom/agent/sharedhost"
	"github.com/skyloom/skyloom/providers"
)

// WatchNodes calls f for every change under the tag until ctx ends. Only hosts that have nodes are asked: every so often, and
// at once when something was done there or the connection to them ended. A host that falls silent changes nothing.
func (p *Provider) WatchNodes(ctx context.Context, tag providers.Tag, f func(providers.Node)) error {
	bell := make(chan struct{}, 1)
	p.mu.Lock()
	p.bells[bell] = true
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.bells, bell)
		p.mu.Unlock()
	}()
	w := &watch{p: p, tag: tag, f: f, last: map[string]providers.Node{}, bell: bell}
	for {
		w.round(ctx)
		if !w.rest(ctx) {
			return ctx.Err()
		}
	}
}

type watch struct {
	p    *Provider
	tag  providers.Tag
	f    func(providers.Node)
	bell chan struct{}

	mu   sync.Mutex
	last map[string]providers.Node // told, by id
}

// round asks every host that has nodes.
func (w *watch) round(ctx context.Context) {
	notes := w.p.matching(w.tag)
	byLink := map[*link]*host{}
	noted := map[string]*link{}
	for _, n := range notes {
		for _, x := range n.Ranks {
			h, err := w.p.now(x.Host)
			if err != nil {
				continue
			}
			byLink[h.link] = h
			if x.Node != nil {
				noted[x.Node.ID] = h.link
			}
		}
	}
	var hosts []*host
	for _, h := range byLink {
		hosts = append(hosts, h)
	}
	answered := map[*link]bool{}
	seen := map[string]bool{}
	var mu sync.Mutex
	each(hosts, func(_ int, h *host) {
		hctx, cancel := context.WithTimeout(ctx, listLimit)
		defer cancel()
		r, err := w.p.call(hctx, h, nil, sharedhost.VerbList, sharedhost.Request{Installation: w.tag.Installation, Hash: w.tag.ClusterHash})
		if err != nil {
			return
		}
		var all []found
		mu.Lock()
		answered[h.link] = true
		for _, n := range r.Nodes {
			seen[n.ID] = true
			all = append(all, found{h, n})
		}
		mu.Unlock()
		for _, n := range r.Nodes {
			w.tell(node(h.Host, h.target.Addr, n))
		}
		w.p.remember(all)
	})
	if ctx.Err() != nil {
		return
	}
	// What was told of, and is neither noted any more nor on a host that answers, is gone.
	w.mu.Lock()
	var gone []providers.Node
	for id, n := range w.last {
		l, known := noted[id]
		if n.State != providers.NodeGone && !seen[id] && (!known || answered[l]) {
			n.State, n.Reason = providers.NodeGone, "deleted"
			gone = append(gone, n)
		}
	}
	w.mu.Unlock()
	for _, n := range gone {
		w.tell(n)
	}
}

func (w *watch) tell(n providers.Node) {
	w.mu.Lock()
	old, told := w.last[n.ID]
	if n.State == providers.NodeGone && n.Reason == "deleted" {
		delete(w.last, n.ID)
	} else {
		w.last[n.ID] = n
	}
	w.mu.Unlock()
	if !told || old.State != n.State || old.Reason != n.Reason {
		w.f(n)
	}
}

// rest waits for the next round; false if ctx ended.
func (w *watch) rest(ctx context.Context) bool {
	lost := make(chan struct{}, 1)
	stop := make(chan struct{})
	defer close(stop)
	for _, h := range w.p.notedHosts(w.tag) {
		x, err := w.p.now(h)
		if err != nil {
			continue
		}
		if ch := x.link.lost(); ch != nil {
			go func() {
				select {
				case <-ch:
					select {
					case lost <- struct{}{}:
					default:
					}
				case <-stop:
				}
			}()
		}
	}
	t := time.NewTimer(w.p.o.Poll)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
	case <-w.bell:
	case <-lost:
		// A host that is being restarted may take a moment to be found dead or back.
		select {
		case <-ctx.Done():
			return false
		case <-time.After(min(dialAgain, w.p.o.Poll)):
		}
	}
	return true
}
