package activities

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.temporal.io/sdk/activity"
	"golang.org/x/sync/errgroup"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/failpoint"
	"github.com/skyloom/skyloom/internal/filesync"
	"github.com/skyloom/skyloom/internal/filesync/fanout"
)

var (
	fpSyncSend   = failpoint.Register("sync.before-send")
	fpSyncMiddle = failpoint.Register("sync.before-apply")
)

const (
	// plansAtOnce is how many nodes look at their files at a time.
	plansAtOnce = 16
	// syncRounds is how often a sync begins anew because a node lost what it was sent, or broke off.
	syncRounds = 4
	// worthKnowing is the size of a manifest, in bytes, from which asking whether a node has it is worth the call.
	worthKnowing = 8 << 10
	// slowRate is the rate, in bytes per second, below which compressing is worth its time.
	slowRate = 40e6
)

// SyncFiles brings trees to every node by content: a node says what it lacks, gets just that, and puts it in place.
// Idempotent: what is in place, or was sent already, is not sent again.
func (a *Activities) SyncFiles(ctx context.Context, in SyncInput) (SyncOutput, error) {
	defer beat(ctx)()
	p, err := a.provider(in.Provider)
	if err != nil {
		return SyncOutput{}, err
	}
	s := &syncing{a: a, in: in, attempt: int(activity.GetInfo(ctx).Attempt), clients: make([]*agentapi.Client, len(in.Nodes))}
	defer s.close()
	for i, n := range in.Nodes {
		if s.clients[i], err = NodeClient(ctx, p, n); err != nil {
			return SyncOutput{}, a.unreached(ctx, p, in.Ref, in.Nodes, fmt.Errorf("node %d: %w", n.Rank, err))
		}
	}
	var out SyncOutput
	for _, f := range in.Files {
		results, err := s.tree(ctx, f)
		if err != nil {
			if e := fileError(err, f.Dst); e != nil {
				return SyncOutput{Error: e}, nil
			}
			return SyncOutput{}, a.unreached(ctx, p, in.Ref, in.Nodes, err)
		}
		for i, r := range results {
			out.Written += r.Written
			out.Bytes += r.Bytes
			for _, w := range r.Warnings {
				s.say(ctx, api.Event{Kind: api.EventOutput, Message: fmt.Sprintf("node %d: %s", in.Nodes[i].Rank, w)})
			}
		}
	}
	return out, nil
}

// syncing is one run of SyncFiles.
type syncing struct {
	a       *Activities
	in      SyncInput
	attempt int
	clients []*agentapi.Client // by node
	line    int                // of the timeline; a retried activity repeats none
}

func (s *syncing) close() {
	for _, c := range s.clients {
		if c != nil {
			c.Close()
		}
	}
}

func (s *syncing) say(ctx context.Context, ev api.Event) {
	ev.Cluster, ev.Hash, ev.RequestID, ev.Step = s.in.Cluster, s.in.Ref.Hash, s.in.RequestID, "sync"
	s.a.say(ctx, s.in.EventKey, s.line, ev)
	s.line++
}

// tree brings one tree to all nodes.
func (s *syncing) tree(ctx context.Context, f api.FileMount) ([]agentapi.FileResult, error) {
	encoded, err := s.a.Artifacts.ManifestBytes(f.Manifest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &api.Error{Kind: api.ErrNotFound, Message: fmt.Sprintf("the content of %s is no longer kept", f.Dst), Hint: "launch again: it is uploaded anew"}
	}
	var m *filesync.Manifest
	if err == nil {
		m, err = filesync.Decode(bytes.NewReader(encoded), filesync.Limits{})
	}
	if errors.Is(err, filesync.ErrInvalid) { // it will not be any better later
		return nil, &api.Error{Kind: api.ErrInvalid, Message: fmt.Sprintf("the list of files of %s can't be read: %v", f.Dst, err), Hint: "launch again: it is uploaded anew"}
	}
	if err != nil {
		return nil, err
	}
	files, size := m.Totals()
	what := f.Dst
	if f.Source != "" {
		what = f.Source + " → " + f.Dst
	}
	s.say(ctx, api.Event{Kind: api.EventStep, Message: fmt.Sprintf("syncing %s (%s)", what, filesync.AmountText(files, size))})
	t := &treeSync{syncing: s, f: f, what: what, encoded: encoded, m: m, results: make([]agentapi.FileResult, len(s.clients)), settled: make([]bool, len(s.clients))}
	for round := 1; ; round++ {
		err := t.round(ctx)
		if err == nil {
			return t.results, nil
		}
		if round == syncRounds || ctx.Err() != nil || !again(err) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(time.Duration(round*round) * 200 * time.Millisecond):
		}
	}
}

// again says whether a node may fare better at once: it lost what it was sent, or the connection broke.
func again(err error) bool {
	var e *agentapi.Error
	if errors.As(err, &e) {
		return e.Kind == agentapi.KindNotFound
	}
	return cut(err) || !errors.Is(err, fs.ErrNotExist)
}

// cut says that a connection could not be made or broke. An agent's socket that is away looks like a missing file else.
func cut(err error) bool {
	var op *net.OpError
	return errors.As(err, &op)
}

// treeSync is one tree on its way to all nodes.
type treeSync struct {
	*syncing
	f       api.FileMount
	what    string
	encoded []byte
	m       *filesync.Manifest
	results []agentapi.FileResult
	settled []bool // by node: it is as it has to be

	mu     sync.Mutex
	deltas map[string][]byte // by the base: what the manifest has otherwise; nil if it is better sent whole
}

// round plans all nodes that are not settled, sends and applies. It goes on from wherever the one before broke off.
func (t *treeSync) round(ctx context.Context) error {
	missing := make([][]string, len(t.clients))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(plansAtOnce)
	for i := range t.clients {
		if t.settled[i] {
			continue
		}
		g.Go(func() (err error) {
			missing[i], err = t.plan(gctx, i)
			return t.onNode(i, err)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := failpoint.Hit(fpSyncSend); err != nil {
		return err
	}
	tr := &fanout.Transfer{Missing: missing, Sizes: t.m.Sizes(), Peers: t.peers(), Fetch: t.fetch, Done: t.apply}
	tr.Send = t.sender(!tr.ThroughPeers())
	defer t.watch(ctx, tr)()
	err := tr.Run(ctx)
	var ne *fanout.NodeError
	if errors.As(err, &ne) {
		return t.onNode(ne.Node, ne.Err)
	}
	return err
}

func (t *treeSync) onNode(i int, err error) error {
	if err == nil {
		return nil
	}
	return &nodeError{rank: t.in.Nodes[i].Rank, err: err}
}

func (t *treeSync) target() agentapi.FileApply {
	return agentapi.FileApply{Manifest: t.f.Manifest, Dst: t.f.Dst, File: t.f.File, Mirror: t.f.Mirror, Prune: t.f.Prune}
}

// plan asks a node what it lacks, in the order of the tree. A node that lacks nothing is settled by that.
func (t *treeSync) plan(ctx context.Context, i int) ([]string, error) {
	to := t.target()
	to.Now, to.Place = true, !t.peers()
	plan, err := t.ask(ctx, i, to)
	if err != nil {
		return nil, err
	}
	if plan.Applied != nil {
		t.results[i], t.settled[i] = *plan.Applied, true
		return nil, nil
	}
	return t.m.InOrder(plan.Missing), nil
}

// ask sends a node no more of the manifest than it needs: its id if the node has it, or what it has otherwise than the one
// that the node was brought to last.
func (t *treeSync) ask(ctx context.Context, i int, to agentapi.FileApply) (agentapi.FilePlan, error) {
	c := t.clients[i]
	if len(t.encoded) >= worthKnowing {
		known := to
		known.Known = true
		plan, err := c.PlanFiles(ctx, known, nil)
		if err == nil && plan.Unknown && plan.Base != "" {
			if delta := t.delta(plan.Base); delta != nil {
				known.Known, known.Base = false, plan.Base
				plan, err = c.PlanFiles(ctx, known, bytes.NewReader(delta))
			}
		}
		// An agent of an earlier version takes the request for one without a manifest.
		if old := agentapi.IsKind(err, agentapi.KindInvalid); !old && (err != nil || !plan.Unknown) {
			return plan, err
		}
	}
	return c.PlanFiles(ctx, to, bytes.NewReader(t.encoded))
}

// delta is what the manifest has otherwise than base; nil if base is no longer kept, or little is the same.
func (t *treeSync) delta(base string) []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	delta, ok := t.deltas[base]
	if !ok {
		if m, err := t.a.Artifacts.Manifest(base); err == nil {
			if b, err := filesync.Diff(m, t.m).Bytes(); err == nil && len(b) < len(t.encoded)/2 {
				delta = b
			}
		}
		if t.deltas == nil {
			t.deltas = map[string][]byte{}
		}
		t.deltas[base] = delta
	}
	return delta
}

// apply puts a node's files in place.
func (t *treeSync) apply(ctx context.Context, i int) error {
	if t.settled[i] {
		return nil
	}
	if err := failpoint.Hit(fpSyncMiddle); err != nil {
		return err
	}
	r, err := t.clients[i].ApplyFiles(ctx, t.target())
	if err != nil {
		return err
	}
	t.results[i], t.settled[i] = r, true
	return nil
}

// peers says whether the nodes may pass files on to each other: not on one machine, where it would gain nothing.
func (t *treeSync) peers() bool {
	for _, n := range t.in.Nodes {
		if !strings.HasPrefix(n.AgentAddr, "https:") {
			return false
		}
	}
	return true
}

// sender sends from our own store. Where the way is slow it compresses. What need not be passed on may be put in place.
func (t *treeSync) sender(place bool) func(ctx context.Context, i int, hashes []string, progress func(int, int64)) error {
	slow := make([]bool, len(t.clients)) // each node has one sending at a time
	return func(ctx context.Context, i int, hashes []string, progress func(int, int64)) error {
		var sent int64
		o := filesync.PackOptions{Raw: !slow[i], Trusted: true, Progress: func(blobs int, bytes int64) {
			sent = bytes
			progress(blobs, bytes)
		}}
		start := time.Now()
		var err error
		if body := filesync.NewPackBody(ctx, t.a.Artifacts, hashes, o); place {
			err = t.clients[i].PlaceBlobs(ctx, t.target(), body)
		} else {
			err = t.clients[i].SendBlobs(ctx, body)
		}
		if err != nil {
			return err
		}
		onMachine := strings.HasPrefix(t.in.Nodes[i].AgentAddr, "unix:")
		if took := time.Since(start).Seconds(); !onMachine && sent > 256<<10 && float64(sent)/took < slowRate {
			slow[i] = true
		}
		return nil
	}
}

// fetch makes a node ask another one.
func (t *treeSync) fetch(ctx context.Context, i, from int, hashes []string) ([]string, error) {
	got, err := t.clients[i].FetchBlobs(ctx, agentapi.FileFetch{NodeID: t.in.Nodes[from].ID, Hashes: hashes})
	if agentapi.IsKind(err, agentapi.KindNotFound) {
		return hashes, nil // an agent of an earlier version
	}
	if got.Trouble != "" {
		t.a.Log.Warn("a node got files not from its peer", "cluster", t.in.Cluster, "node", t.in.Nodes[i].Rank, "peer", t.in.Nodes[from].Rank, "reason", got.Trouble)
	}
	return got.Missing, err
}

// nodeProgress is how far a node is, as the data of an event.
type nodeProgress struct {
	Rank       int   `json:"rank"`
	Files      int   `json:"files"`
	TotalFiles int   `json:"total_files"`
	Bytes      int64 `json:"bytes"`
	TotalBytes int64 `json:"total_bytes"`
	Done       bool  `json:"done"`
}

// watch tells how far a transfer is: once a second at first, more rarely when it takes long. The function returned ends it.
func (t *treeSync) watch(ctx context.Context, tr *fanout.Transfer) func() {
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		last := ""
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			case <-time.After(progressPause(n)):
			}
			all := make([]nodeProgress, 0, len(t.clients))
			for i, p := range tr.Progress() {
				if p.TotalBlobs > 0 {
					all = append(all, nodeProgress{t.in.Nodes[i].Rank, p.Blobs, p.TotalBlobs, p.Bytes, p.TotalBytes, p.Done})
				}
			}
			text := progressText(all)
			if text == "" || text == last {
				continue
			}
			last = text
			data, _ := json.Marshal(map[string]any{"dst": t.f.Dst, "nodes": all})
			// The key holds the attempt: the numbers of another run are no repetition.
			t.a.say(ctx, fmt.Sprintf("%s/%d/%d", t.in.EventKey, t.line, t.attempt), n, api.Event{Cluster: t.in.Cluster, Hash: t.in.Ref.Hash, RequestID: t.in.RequestID,
				Kind: api.EventStep, Step: "sync", Message: "syncing " + t.what + ": " + text, Data: data})
		}
	}()
	return func() { close(stop); <-done }
}

// progressPause is how long to wait before the nth report: hours of syncing are not hours of lines.
func progressPause(n int) time.Duration {
	switch {
	case n < 20:
		return time.Second
	case n < 60:
		return 5 * time.Second
	}
	return time.Minute
}

// progressText sums the nodes up. Nothing is said when there is nothing to send.
func progressText(all []nodeProgress) string {
	var sum nodeProgress
	done := 0
	for _, p := range all {
		sum.Files += p.Files
		sum.TotalFiles += p.TotalFiles
		sum.Bytes += p.Bytes
		sum.TotalBytes += p.TotalBytes
		if p.Done {
			done++
		}
	}
	if len(all) == 0 || done == len(all) {
		return ""
	}
	text := fmt.Sprintf("%d of %d files, %s of %s", sum.Files, sum.TotalFiles, filesync.SizeText(sum.Bytes), filesync.SizeText(sum.TotalBytes))
	if sum.Files == sum.TotalFiles {
		text = fmt.Sprintf("%d files sent, being put in place", sum.TotalFiles)
	}
	if len(all) == 1 {
		return text
	}
	text += fmt.Sprintf(" to %d nodes, %d done", len(all), done)
	last := -1
	for i, p := range all {
		if !p.Done && (last < 0 || p.Bytes*all[last].TotalBytes < all[last].Bytes*p.TotalBytes) {
			last = i
		}
	}
	if p := all[last]; p.Bytes < p.TotalBytes {
		text += fmt.Sprintf("; node %d is last with %s of %s", p.Rank, filesync.SizeText(p.Bytes), filesync.SizeText(p.TotalBytes))
	}
	return text
}

type nodeError struct {
	rank int
	err  error
}

func (e *nodeError) Error() string { return fmt.Sprintf("node %d: %v", e.rank, e.err) }
func (e *nodeError) Unwrap() error { return e.err }

// fileError tells a user's fault or a full disk from trouble that a retry may mend.
func fileError(err error, dst string) *api.Error {
	var said *api.Error
	if errors.As(err, &said) {
		return said
	}
	var e *agentapi.Error
	if errors.As(err, &e) {
		switch e.Kind {
		case agentapi.KindDiskFull:
			return &api.Error{Kind: api.ErrStorage, Message: fmt.Sprintf("%s: %v", dst, err), Hint: "make room on the node, sync less (see .skyignore), or use a larger disk"}
		case agentapi.KindInvalid, agentapi.KindConflict:
			return &api.Error{Kind: api.ErrInvalid, Message: fmt.Sprintf("%s: %v", dst, err)}
		}
	}
	if cut(err) {
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return &api.Error{Kind: api.ErrNotFound, Message: fmt.Sprintf("%s: content is missing from the artifact store: %v", dst, err), Hint: "launch again: it is uploaded anew"}
	}
	if errors.Is(err, syscall.ENOSPC) {
		return &api.Error{Kind: api.ErrStorage, Message: fmt.Sprintf("%s: %v", dst, err)}
	}
	return nil
}
