package fanout

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"
)

// world is a source and nodes that remember what they have and who was asked.
type world struct {
	mu       sync.Mutex
	has      []map[string]bool
	fromSrc  map[string]int
	done     []bool
	dead     map[int]bool // peers that answer nobody
	cutOff   map[int]bool // nodes that reach no peer
	sendErr  func(node int) error
	fetches  atomic.Int64
	tooEarly bool // a node was asked after it was done
}

func newWorld(n int) *world {
	w := &world{fromSrc: map[string]int{}, done: make([]bool, n), dead: map[int]bool{}, cutOff: map[int]bool{}}
	for range n {
		w.has = append(w.has, map[string]bool{})
	}
	return w
}

func (w *world) transfer(missing [][]string, size int64, peers bool) *Transfer {
	sizes := map[string]int64{}
	for _, m := range missing {
		for _, h := range m {
			sizes[h] = size
		}
	}
	return &Transfer{
		Missing: missing, Sizes: sizes, Peers: peers,
		Send: func(ctx context.Context, node int, hashes []string, progress func(int, int64)) error {
			if w.sendErr != nil {
				if err := w.sendErr(node); err != nil {
					return err
				}
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			for i, h := range hashes {
				w.has[node][h] = true
				w.fromSrc[h]++
				progress(i+1, int64(i+1)*size)
			}
			return ctx.Err()
		},
		Fetch: func(ctx context.Context, node, from int, hashes []string) (lacking []string, err error) {
			w.fetches.Add(1)
			w.mu.Lock()
			defer w.mu.Unlock()
			w.tooEarly = w.tooEarly || w.done[from]
			for _, h := range hashes {
				if w.dead[from] || w.cutOff[node] || !w.has[from][h] {
					lacking = append(lacking, h)
					continue
				}
				w.has[node][h] = true
			}
			return lacking, ctx.Err()
		},
		Done: func(_ context.Context, node int) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.done[node] = true
			return nil
		},
	}
}

func (w *world) check(t interface{ Fatalf(string, ...any) }, tr *Transfer) {
	for i, m := range tr.Missing {
		for _, h := range m {
			if !w.has[i][h] {
				t.Fatalf("node %d lacks %s", i, h)
			}
		}
		if !w.done[i] {
			t.Fatalf("node %d was not told that it is done", i)
		}
	}
	for i, p := range tr.Progress() {
		if !p.Done || p.Blobs != p.TotalBlobs || p.Bytes != p.TotalBytes {
			t.Fatalf("progress of node %d at the end: %+v", i, p)
		}
	}
	if w.tooEarly {
		t.Fatalf("a node was asked for blobs after it had been let go")
	}
}

func names(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("blob%04d", i)
	}
	return out
}

func repeat(m []string, n int) [][]string {
	out := make([][]string, n)
	for i := range out {
		out[i] = m
	}
	return out
}

func TestSourceSendsOnce(t *testing.T) {
	for _, c := range []struct {
		name  string
		nodes int
		size  int64
		peers bool
		want  int // times each blob leaves the source
	}{
		{"eight nodes pass on", 8, 1 << 20, true, 1},
		{"four nodes pass on", 4, 1 << 20, true, 1},
		{"three are too few", 3, 1 << 20, true, 3},
		{"too little", 8, 1 << 10, true, 8},
		{"no peers", 8, 1 << 20, false, 8},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(c.nodes)
			tr := w.transfer(repeat(names(100), c.nodes), c.size, c.peers)
			if err := tr.Run(t.Context()); err != nil {
				t.Fatal(err)
			}
			w.check(t, tr)
			for h, n := range w.fromSrc {
				if n != c.want {
					t.Fatalf("%s left the source %d times, not %d", h, n, c.want)
				}
			}
		})
	}
}

func TestPeersThatFail(t *testing.T) {
	w := newWorld(6)
	w.dead[1], w.cutOff[4] = true, true
	tr := w.transfer(repeat(names(200), 6), 1<<20, true)
	if err := tr.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.check(t, tr)
	total := 0
	for _, n := range w.fromSrc {
		total += n
	}
	// The one that is cut off gets all from the source, the others what the dead one alone had.
	if total > 3*200 {
		t.Errorf("%d blobs left the source, of 200", total)
	}
	if w.fetches.Load() == 0 {
		t.Error("nobody asked a peer")
	}
}

func TestFailureNamesTheNode(t *testing.T) {
	for _, peers := range []bool{false, true} {
		w := newWorld(5)
		full := errors.New("disk full")
		w.sendErr = func(node int) error {
			if node == 3 {
				return full
			}
			return nil
		}
		tr := w.transfer(repeat(names(100), 5), 1<<20, peers)
		tr.Missing[3] = append(slices.Clone(tr.Missing[3]), "only there")
		tr.Sizes["only there"] = 1
		err := tr.Run(t.Context())
		var ne *NodeError
		if !errors.As(err, &ne) || ne.Node != 3 || !errors.Is(err, full) {
			t.Errorf("peers %v: %v", peers, err)
		}
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	w := newWorld(5)
	tr := w.transfer(repeat(names(100), 5), 1<<20, true)
	tr.Send = func(ctx context.Context, _ int, _ []string, _ func(int, int64)) error {
		cancel()
		<-ctx.Done()
		return ctx.Err()
	}
	if err := tr.Run(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestAnySets: whatever each node lacks and whoever fails, everyone has all in the end.
func TestAnySets(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		n := rapid.IntRange(1, 9).Draw(r, "nodes")
		w := newWorld(n)
		all := names(rapid.IntRange(1, 120).Draw(r, "blobs"))
		missing := make([][]string, n)
		for i := range missing {
			switch rapid.IntRange(0, 3).Draw(r, "lacks") {
			case 0:
			case 1:
				missing[i] = all[:rapid.IntRange(0, len(all)).Draw(r, "first")]
			default:
				missing[i] = all
			}
			w.dead[i] = rapid.IntRange(0, 4).Draw(r, "dead") == 0
			w.cutOff[i] = rapid.IntRange(0, 4).Draw(r, "cut") == 0
		}
		tr := w.transfer(missing, 4<<20, true)
		if err := tr.Run(context.Background()); err != nil {
			r.Fatal(err)
		}
		w.check(r, tr)
	})
}
