package fanout

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// Limits of one batch from the source: what a cut connection sends again, at most, and how soon a rate is known.
const (
	firstBatch = 1 << 20
	batchBytes = 32 << 20
	batchBlobs = 4000
	// atOnce is how many nodes the source serves at a time.
	atOnce = 16
)

// Limits from which nodes pass blobs on to each other.
const (
	PeerNodes = 4        // nodes that lack something
	PeerBytes = 32 << 20 // bytes that go out in all
)

// Transfer is one distribution. Nodes are numbered from 0.
type Transfer struct {
	// Missing names, by node, the blobs it lacks, in the order of sending.
	Missing [][]string
	// Sizes has the size of every blob in bytes.
	Sizes map[string]int64
	// Peers says that nodes can reach each other.
	Peers bool
	// Send sends blobs of the source to a node. progress is told the blobs and bytes of this call so far.
	Send func(ctx context.Context, node int, hashes []string, progress func(blobs int, bytes int64)) error
	// Fetch makes a node get blobs from another. The reply names those that it did not get; err is the node's own trouble,
	// while that of the peer is only a reason why all are still lacking.
	Fetch func(ctx context.Context, node, from int, hashes []string) (lacking []string, err error)
	// Done is called once for each node, from any goroutine, when it has all and nobody needs anything from it.
	Done func(ctx context.Context, node int) error

	init   sync.Once
	meters []meter
}

// Progress is how far one node is.
type Progress struct {
	Blobs, TotalBlobs int
	Bytes, TotalBytes int64
	Done              bool
}

type meter struct {
	blobs, bytes atomic.Int64
	total        int64
	done         atomic.Bool
}

// NodeError says which node an error is about.
type NodeError struct {
	Node int
	Err  error
}

func (e *NodeError) Error() string { return fmt.Sprintf("node %d: %v", e.Node, e.Err) }

func (e *NodeError) Unwrap() error { return e.Err }

func (t *Transfer) setup() {
	t.init.Do(func() {
		t.meters = make([]meter, len(t.Missing))
		for i, hashes := range t.Missing {
			for _, h := range hashes {
				t.meters[i].total += t.Sizes[h]
			}
		}
	})
}

// Progress tells how far each node is. It may be called while Run runs.
func (t *Transfer) Progress() []Progress {
	t.setup()
	out := make([]Progress, len(t.meters))
	for i := range t.meters {
		m := &t.meters[i]
		out[i] = Progress{Blobs: int(m.blobs.Load()), TotalBlobs: len(t.Missing[i]), Bytes: m.bytes.Load(), TotalBytes: m.total, Done: m.done.Load()}
	}
	return out
}

// Run brings everything to every node. Its error is a NodeError, or that of ctx.
func (t *Transfer) Run(ctx context.Context) error {
	t.setup()
	if !t.ThroughPeers() {
		return t.each(ctx, func(ctx context.Context, node int) error {
			if err := t.straight(ctx, node, t.Missing[node]); err != nil {
				return err
			}
			return t.done(ctx, node)
		})
	}
	if err := newSwarm(t).run(ctx); err != nil {
		return err
	}
	return t.each(ctx, t.done)
}

// ThroughPeers says whether nodes pass blobs on. Then they must keep them until they are done.
func (t *Transfer) ThroughPeers() bool {
	t.setup()
	var nodes int
	var bytes int64
	for i := range t.meters {
		if len(t.Missing[i]) > 0 {
			nodes++
			bytes += t.meters[i].total
		}
	}
	return t.Peers && nodes >= PeerNodes && bytes > PeerBytes
}

func (t *Transfer) each(ctx context.Context, do func(context.Context, int) error) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for node := range t.Missing {
		g.Go(func() error {
			if err := do(gctx, node); err != nil {
				return &NodeError{node, err}
			}
			return nil
		})
	}
	return g.Wait()
}

func (t *Transfer) done(ctx context.Context, node int) error {
	if err := t.Done(ctx, node); err != nil {
		return err
	}
	t.meters[node].done.Store(true)
	return nil
}

// straight sends blobs of the source to a node, in batches.
func (t *Transfer) straight(ctx context.Context, node int, hashes []string) error {
	limit := int64(firstBatch)
	for len(hashes) > 0 {
		n := t.batch(hashes, limit)
		if err := t.send(ctx, node, hashes[:n]); err != nil {
			return err
		}
		hashes, limit = hashes[n:], batchBytes
	}
	return nil
}

// batch says how many of the blobs make a batch of at most so many bytes, one at least.
func (t *Transfer) batch(hashes []string, limit int64) int {
	n, bytes := 0, int64(0)
	for n < len(hashes) && n < batchBlobs && (n == 0 || bytes+t.Sizes[hashes[n]] <= limit) {
		bytes += t.Sizes[hashes[n]]
		n++
	}
	return n
}

func (t *Transfer) send(ctx context.Context, node int, hashes []string) error {
	m := &t.meters[node]
	blobs, bytes := m.blobs.Load(), m.bytes.Load()
	err := t.Send(ctx, node, hashes, func(b int, n int64) {
		m.blobs.Store(blobs + int64(b))
		m.bytes.Store(bytes + n)
	})
	if err != nil {
		m.blobs.Store(blobs)
		m.bytes.Store(bytes)
		return err
	}
	t.got(node, blobs, bytes, hashes)
	return nil
}

// got counts blobs that have arrived.
func (t *Transfer) got(node int, blobs, bytes int64, hashes []string) {
	for _, h := range hashes {
		bytes += t.Sizes[h]
	}
	t.meters[node].blobs.Store(blobs + int64(len(hashes)))
	t.meters[node].bytes.Store(bytes)
}
