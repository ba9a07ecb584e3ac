package memory

import (
	"container/heap"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/providers/memory/simagent"
)

// due is a time at which a machine changes by itself.
type due struct {
	at time.Time
	m  *machine
}

type dueHeap []due

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h dueHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *dueHeap) Push(x any)        { *h = append(*h, x.(due)) }
func (h *dueHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}

// schedule notes when the machine changes by itself. Old notes stay and do no harm.
func (c *Cloud) schedule(m *machine) {
	if !m.alive() {
		return
	}
	now := c.clock.Now()
	for _, t := range []time.Time{m.VisibleAt, m.RunningAt, m.StoppedAt, m.DoomAt} {
		if t.After(now) {
			heap.Push(&c.due, due{t, m})
		}
	}
	c.settle(m, now)
}

// advance lets happen what is due.
func (c *Cloud) advance(now time.Time) {
	for len(c.due) > 0 && !c.due[0].at.After(now) {
		d := heap.Pop(&c.due).(due)
		if !d.m.alive() {
			continue
		}
		c.changed = append(c.changed, d.m)
		c.settle(d.m, now)
	}
}

// settle records what the passing of time did to a machine.
func (c *Cloud) settle(m *machine, now time.Time) {
	last := len(m.Bills) - 1
	stopped := !m.StopAsked.IsZero() && !m.StoppedAt.After(now)
	if stopped && last >= 0 && m.Bills[last].To.IsZero() {
		m.Bills[last].To = m.StoppedAt
		c.dirty[m.ID] = true
	}
	if !m.alive() || m.DoomAt.IsZero() || m.DoomAt.After(now) {
		return
	}
	m.DiedAt, m.Reason = m.DoomAt, m.Doom
	m.Unlisted = m.Doom == ReasonDeleted
	if last >= 0 && m.Bills[last].To.IsZero() {
		m.Bills[last].To = m.DiedAt
	}
	c.dirty[m.ID] = true
	c.changed = append(c.changed, m)
	c.agents.Down(m.ID, true)
	c.log.Debug("memory cloud: ended", "node", m.ID, "reason", m.Reason)
}

// arm sets the timer to the next time something happens by itself.
func (c *Cloud) arm() {
	for len(c.due) > 0 && !c.due[0].m.alive() {
		heap.Pop(&c.due)
	}
	if c.closed || len(c.due) == 0 {
		return
	}
	at := c.due[0].at
	if c.disarm != nil {
		if at.Equal(c.armedFor) {
			return
		}
		c.disarm()
	}
	c.armedFor = at
	c.disarm = c.clock.AfterFunc(at.Sub(c.clock.Now()), func() {
		c.mu.Lock()
		c.disarm, c.armedFor = nil, time.Time{}
		closed := c.closed
		c.mu.Unlock()
		if !closed {
			c.begin()()
		}
	})
}

// reachable gives an agent's identity if its node can be reached right now.
func (c *Cloud) reachable(id string) (simagent.Node, error) {
	defer c.begin()()
	m := c.machines[id]
	if f := c.faultFor("dial", m.Cluster, id); f != nil && f.Err != nil {
		return simagent.Node{}, f.Err
	}
	now := c.clock.Now()
	if st := m.state(now); st != providers.NodeRunning {
		return simagent.Node{}, refused(m, "the node is "+string(st))
	}
	if now.Before(m.RunningAt.Add(time.Duration(c.cfg.AgentDelay))) {
		return simagent.Node{}, refused(m, "the node is booting")
	}
	return simagent.Node{ID: m.ID, ClusterName: m.Cluster.Name, ClusterHash: m.Cluster.Hash, Rank: m.Rank, Resources: resourcesOf(m.Spec), Started: m.RunningAt, BinarySHA: m.BinarySHA}, nil
}

// watcher collects changes for one WatchNodes; it keeps the latest of each node.
type watcher struct {
	tag   providers.Tag
	mu    sync.Mutex
	order []string
	nodes map[string]providers.Node
	bell  chan struct{}
}

func (w *watcher) add(m *machine, n providers.Node) {
	if m.Stranger || m.Cluster.Installation != w.tag.Installation || w.tag.ClusterHash != "" && m.Cluster.Hash != w.tag.ClusterHash {
		return
	}
	w.mu.Lock()
	if _, there := w.nodes[n.ID]; !there {
		w.order = append(w.order, n.ID)
	}
	w.nodes[n.ID] = n
	w.mu.Unlock()
	w.wake()
}

func (w *watcher) wake() {
	select {
	case w.bell <- struct{}{}:
	default:
	}
}

func (w *watcher) take() []providers.Node {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]providers.Node, len(w.order))
	for i, id := range w.order {
		out[i] = w.nodes[id]
	}
	w.order = nil
	clear(w.nodes)
	return out
}

// WatchNodes calls f with every listed node as it is, then with every change. Changes that come faster than f takes
// them are merged: f sees the latest state of each node.
func (c *Cloud) WatchNodes(ctx context.Context, tag providers.Tag, f func(providers.Node)) error {
	w := &watcher{tag: tag, nodes: map[string]providers.Node{}, bell: make(chan struct{}, 1)}
	end := c.begin()
	now := c.clock.Now()
	for _, m := range c.machines {
		if !m.Unlisted && !m.VisibleAt.After(now) {
			w.add(m, c.node(m))
		}
	}
	c.watchers[w] = true
	end()
	defer func() {
		c.mu.Lock()
		delete(c.watchers, w)
		c.mu.Unlock()
	}()
	for {
		for _, n := range w.take() {
			f(n)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.bell:
		}
		c.mu.Lock()
		closed := c.closed
		c.mu.Unlock()
		if closed {
			return fmt.Errorf("%s: the cloud was closed", c.cfg.Name)
		}
	}
}
