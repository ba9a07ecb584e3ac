package fanout

import (
	"context"
	"sync"

	"golang.org/x/sync/errgroup"
)

const (
	// groupBytes is the size of what travels from node to node as one: small enough that all nodes soon have something to
	// give, big enough that calls do not count.
	groupBytes = 8 << 20
	// uploads is how many peers a node serves at a time, sourceSlots how many nodes the source does.
	uploads     = 2
	sourceSlots = 2
	// mostGroups bounds the bookkeeping: of very big transfers the groups are bigger.
	mostGroups = 256
	// blames is how many peers must find fault with a node before nobody asks it any more, and with how many peers a node
	// may fail before it is taken to be cut off from all of them.
	blames = 2
)

// swarm hands out groups of blobs. The source sends each group once, to the node whose turn it is; from then on nodes get
// it from those that have it. A node holds a group if it lacked all of it and received it: what it had before lies
// elsewhere and is not passed on.
type swarm struct {
	t      *Transfer
	groups [][]string

	mu      sync.Mutex
	changed *sync.Cond
	nodes   []swarmNode
	source  int         // transfers of the source that are going on
	coming  map[int]int // by group: on its way from the source
}

type swarmNode struct {
	need    []([]string) // by group: what this node lacks of it; nil: nothing, or it has it
	holds   []bool       // by group
	whole   []bool       // by group: it lacked all of it
	serving int
	blamed  map[int]bool // peers that it failed to get something from
}

// step is what a node does next.
type step struct {
	group int
	from  int // -1: the source
}

func newSwarm(t *Transfer) *swarm {
	s := &swarm{t: t, coming: map[int]int{}, nodes: make([]swarmNode, len(t.Missing))}
	s.changed = sync.NewCond(&s.mu)
	groupOf := map[string]int{}
	size, bytes := int64(groupBytes), int64(0)
	for i := range t.meters {
		size = max(size, t.meters[i].total/mostGroups)
	}
	for _, missing := range t.Missing { // the first node has most of it, in order; others add what only they lack
		for _, h := range missing {
			if _, ok := groupOf[h]; ok {
				continue
			}
			last := len(s.groups) - 1
			if last < 0 || bytes+t.Sizes[h] > size || len(s.groups[last]) >= batchBlobs*max(1, int(size/groupBytes)) {
				s.groups, bytes = append(s.groups, nil), 0
				last++
			}
			groupOf[h] = last
			s.groups[last] = append(s.groups[last], h)
			bytes += t.Sizes[h]
		}
	}
	for i := range s.nodes {
		n := &s.nodes[i]
		n.blamed = map[int]bool{}
		n.need, n.holds, n.whole = make([][]string, len(s.groups)), make([]bool, len(s.groups)), make([]bool, len(s.groups))
		for _, h := range t.Missing[i] {
			g := groupOf[h]
			n.need[g] = append(n.need[g], h)
		}
		for g := range s.groups {
			n.whole[g] = len(n.need[g]) == len(s.groups[g])
		}
	}
	return s
}

func (s *swarm) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, s.wake)
	defer stop()
	g, gctx := errgroup.WithContext(ctx)
	defer context.AfterFunc(gctx, s.wake)()
	for node := range s.nodes {
		g.Go(func() error {
			for {
				st, ok := s.next(gctx, node)
				if !ok {
					return gctx.Err()
				}
				if err := s.do(gctx, node, st); err != nil {
					return &NodeError{node, err}
				}
			}
		})
	}
	return g.Wait()
}

func (s *swarm) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changed.Broadcast()
}

// next waits for something to do; ok is false when the node has all, or ctx ended.
func (s *swarm) next(ctx context.Context, node int) (st step, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ctx.Err() == nil {
		st, lacks, found := s.choose(node)
		if !lacks {
			return st, false
		}
		if found {
			if st.from < 0 {
				s.source++
				s.coming[st.group]++
			} else {
				s.nodes[st.from].serving++
			}
			return st, true
		}
		s.changed.Wait()
	}
	return st, false
}

// choose picks the group that the fewest nodes hold and a peer with room gives; else one that the source has to send.
func (s *swarm) choose(node int) (st step, lacks, found bool) {
	n := &s.nodes[node]
	fewest := 0
	fresh := -1
	for k := range s.groups {
		g := (k + node*len(s.groups)/len(s.nodes)) % len(s.groups) // nodes begin at different places
		if len(n.need[g]) == 0 {
			continue
		}
		lacks = true
		holders, best := 0, -1
		for p := range s.nodes {
			peer := &s.nodes[p]
			if p == node || !peer.holds[g] || !s.trusts(node, p) {
				continue
			}
			holders++
			if peer.serving < uploads && (best < 0 || peer.serving < s.nodes[best].serving) {
				best = p
			}
		}
		if best >= 0 && (fewest == 0 || holders < fewest) {
			fewest, st, found = holders, step{g, best}, true
		}
		if holders == 0 && s.coming[g] == 0 && fresh < 0 {
			fresh = g
		}
	}
	if !found && fresh >= 0 && s.source < sourceSlots {
		st, found = step{fresh, -1}, true
	}
	return st, lacks, found
}

// trusts says whether a node may ask a peer: neither failed with the other, nor is one of them no good to anybody.
func (s *swarm) trusts(node, peer int) bool {
	if s.nodes[node].blamed[peer] || len(s.nodes[node].blamed) >= blames {
		return false
	}
	by := 0
	for i := range s.nodes {
		if s.nodes[i].blamed[peer] && len(s.nodes[i].blamed) < blames {
			by++
		}
	}
	return by < blames
}

// do carries a step out. What a peer does not give comes from the source, after others had their turn.
func (s *swarm) do(ctx context.Context, node int, st step) error {
	n := &s.nodes[node]
	s.mu.Lock()
	want := n.need[st.group]
	s.mu.Unlock()
	var lacking []string
	var err error
	if st.from < 0 {
		err = s.t.send(ctx, node, want)
	} else {
		lacking, err = s.t.Fetch(ctx, node, st.from, want)
		if err == nil {
			m := &s.t.meters[node]
			s.t.got(node, m.blobs.Load(), m.bytes.Load(), without(want, lacking))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.changed.Broadcast()
	if st.from < 0 {
		s.source--
		s.coming[st.group]--
	} else {
		s.nodes[st.from].serving--
		if len(lacking) > 0 {
			n.blamed[st.from] = true
		}
	}
	if err != nil {
		return err
	}
	n.need[st.group] = lacking
	n.holds[st.group] = len(lacking) == 0 && n.whole[st.group]
	return nil
}

func without(all, some []string) []string {
	if len(some) == 0 {
		return all
	}
	gone := make(map[string]bool, len(some))
	for _, h := range some {
		gone[h] = true
	}
	out := make([]string, 0, len(all))
	for _, h := range all {
		if !gone[h] {
			out = append(out, h)
		}
	}
	return out
}
