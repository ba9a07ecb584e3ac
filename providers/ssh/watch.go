package ssh

import (
	"context"
	"sync"
	"time"

	"github.com/skyloom/skyloom/agent/sharedhost"
	"github.com/skyloom/skyloom/providers"
)

// WatchNodes calls f for every change under the tag until ctx ends. Hosts that have nodes are asked every so often, and at
// once when the connection to one ended or something went wrong; what was done by this provider is told as the hosts
// answered then, without asking again. A host that falls silent changes nothing.
func (p *Provider) WatchNodes(ctx context.Context, tag providers.Tag, f func(providers.Node)) error {
	w := &watch{p: p, tag: tag, f: f, last: map[string]providers.Node{}, bell: &bell{ring: make(chan struct{}, 1), changed: map[providers.ClusterRef]bool{}}}
	p.mu.Lock()
	p.bells[w.bell] = true
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.bells, w.bell)
		p.mu.Unlock()
	}()
	for {
		w.round(ctx)
		next := time.NewTimer(p.o.Poll)
		for again := false; !again; {
			var ok bool
			if again, ok = w.rest(ctx, next.C); !ok {
				return ctx.Err()
			}
		}
		next.Stop()
	}
}

type watch struct {
	p    *Provider
	tag  providers.Tag
	f    func(providers.Node)
	bell *bell

	mu   sync.Mutex
	last map[string]providers.Node // told, by id
}

// noted tells of clusters what their notes say.
func (w *watch) noted(changed map[providers.ClusterRef]bool) {
	is := map[string]bool{}
	for ref := range changed {
		n := w.p.noteOf(ref)
		if n == nil || ref.Installation != w.tag.Installation && w.tag.Installation != "" || ref.Hash != w.tag.ClusterHash && w.tag.ClusterHash != "" {
			continue
		}
		for _, x := range n.Ranks {
			if x.Node != nil {
				is[x.Node.ID] = true
				w.tell(node(x.Host, x.Addr, *x.Node))
			}
		}
	}
	w.mu.Lock()
	var gone []providers.Node
	for id, n := range w.last {
		if changed[n.Cluster] && !is[id] && n.State != providers.NodeGone {
			n.State, n.Reason = providers.NodeGone, "deleted"
			gone = append(gone, n)
		}
	}
	w.mu.Unlock()
	for _, n := range gone {
		w.tell(n)
	}
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

// rest waits until the hosts are to be asked again, or something was done; ok is false if ctx ended.
func (w *watch) rest(ctx context.Context, next <-chan time.Time) (again, ok bool) {
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
	select {
	case <-ctx.Done():
		return false, false
	case <-next:
	case <-w.bell.ring:
		changed, all := w.p.answered(w.bell)
		w.noted(changed)
		return all, true
	case <-lost:
		// A host that is being restarted may take a moment to be found dead or back.
		select {
		case <-ctx.Done():
			return false, false
		case <-time.After(min(dialAgain, w.p.o.Poll)):
		}
	}
	return true, true
}
