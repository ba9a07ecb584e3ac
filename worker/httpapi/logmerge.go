package httpapi

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/store"
)

// lastWords is how long a node's stream may go on after the head's has ended, before it is read to its end once more.
const lastWords = 5 * time.Second

// awayFor is how long an agent that can't be reached is tried again for a reader that does not follow.
const awayFor = 3 * time.Second

// cutSince says why the log of a node may end too early.
const cutSince = "its agent can't be reached"

// lostAfter is how long the log of a job that has ended is waited for from an agent that can't be reached.
const lostAfter = 30 * time.Second

// logMerge forwards the log of one job from all nodes of its cluster to one reader. Memory is constant: a buffer per
// node, and a slow reader slows the agents down. What was forwarded is counted per node and phase; a connection to an
// agent that breaks is made anew from there.
type logMerge struct {
	s       *Server
	cluster api.Cluster
	job     api.Job
	follow  bool
	tail    int
	out     *frameWriter
	// task and attempt mark the frames of a managed job.
	task, attempt int

	headDone chan struct{} // closed when the head's log has ended: what the others have now is all there is

	mu      sync.Mutex
	status  api.JobStatus
	reason  string
	missing []*rankLog // nodes whose log may be incomplete
}

// rankLog is how far one node was forwarded.
type rankLog struct {
	rank   int
	node   string
	client *agentapi.Client
	at     offsets
	tail   int
	buf    []byte
}

// run returns nil once the End frame was sent.
func (m *logMerge) run(ctx context.Context, nodes []NodeClient, cursor map[int]offsets) error {
	if err := m.merge(ctx, nodes, cursor); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.missing {
		if err := m.out.frame(api.LogFrame{Rank: r.rank, Node: r.node, Cut: cutSince}, nil); err != nil {
			return err
		}
	}
	return m.out.frame(api.LogFrame{End: true, JobID: m.job.ID, JobName: m.job.Name, Status: m.status, Reason: m.reason}, nil)
}

// merge forwards all there is; cursor says from where, and how far it came.
func (m *logMerge) merge(ctx context.Context, nodes []NodeClient, cursor map[int]offsets) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	// One after the other where all is there already: the same call then gives the same stream.
	inTurn := !m.follow || m.job.Status.Terminal()
	for i, n := range nodes {
		r := &rankLog{rank: n.Rank, node: n.Node, client: n.Client, at: cursor[n.Rank], tail: m.tail, buf: make([]byte, 64<<10)}
		if r.at == nil {
			r.at = offsets{}
			cursor[n.Rank] = r.at
		}
		if r.node == "" {
			r.node = api.NodeName(r.rank)
		}
		head := i == 0
		one := func() {
			if err := m.rank(ctx, r, head); err != nil {
				cancel(err)
			}
			if head {
				close(m.headDone)
			}
		}
		if inTurn {
			one()
		} else {
			wg.Go(one)
		}
		if ctx.Err() != nil {
			break
		}
	}
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// rank forwards one node's log to its end.
func (m *logMerge) rank(ctx context.Context, r *rankLog, head bool) error {
	defer func() { r.client.Close() }()
	var lost time.Time // since when the agent is away of a job that has ended, or for a reader that does not follow
	for tries := 0; ; tries++ {
		last := !m.follow || (!head && closed(m.headDone))
		n := r.at.total()
		end, err := m.read(ctx, r, m.follow && !last)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if m.out.gone() != nil {
			return m.out.gone()
		}
		if r.at.total() != n {
			tries, lost = 0, time.Time{}
		}
		switch {
		case err == nil && head:
			if done, err := m.headEnd(ctx, r, end); done || err != nil {
				return err
			}
		case err == nil && (last || end.Status.Terminal()):
			return nil
		case err == nil: // this node is done, for now; look once more when the job is
		case !head && !last && closed(m.headDone):
			continue
		case agentapi.IsKind(err, agentapi.KindNotFound):
			if head {
				return failure(api.ErrJobNotFound, "See: sky queue "+m.cluster.Name, "there is no job %d on cluster %s", m.job.ID, m.cluster.Name)
			}
			if last {
				return nil // the job never came to this node
			}
		case !m.follow && head:
			return unreachable(m.cluster.Name, err)
		case !m.follow:
			if lost.IsZero() {
				lost = time.Now()
			}
			if m.cluster.Status != api.ClusterUp || time.Since(lost) >= min(awayFor, m.s.lostAfter) || !m.renew(ctx, r) {
				m.lose(r)
				return nil
			}
		default:
			over, err := m.away(ctx, r, head, &lost)
			if over || err != nil {
				return err
			}
		}
		if err := m.pause(ctx, head, tries); err != nil {
			return err
		}
	}
}

// headEnd takes the end of the head's log. While following, an end without the job's is a cut.
func (m *logMerge) headEnd(ctx context.Context, r *rankLog, end api.LogFrame) (done bool, err error) {
	if m.follow && !end.Status.Terminal() {
		j, err := r.client.Job(ctx, m.job.ID)
		if err != nil || !j.Status.Terminal() {
			return false, nil
		}
		if end, err = m.read(ctx, r, false); err != nil { // what came between the two
			return false, nil
		}
		end.Status, end.Reason = j.Status, j.Reason
	}
	if end.Status.Terminal() {
		m.mirror(ctx, r.client)
	}
	m.ended(end.Status, end.Reason)
	return true, nil
}

// mirror brings the row of the job that has just ended to the read model, unless the watcher did: what a reader asks
// after the End frame then agrees with it.
func (m *logMerge) mirror(ctx context.Context, head *agentapi.Client) {
	if m.job.Status.Terminal() {
		return // it had ended before the stream began
	}
	rows, err := m.s.o.Store.Jobs(ctx, store.JobFilter{Hash: m.cluster.Hash, IDs: []int64{m.job.ID}, Limit: 1})
	if err == nil && len(rows) == 1 && rows[0].Status.Terminal() {
		return
	}
	j, err := head.Job(ctx, m.job.ID)
	if err == nil {
		j.Cluster, j.ClusterHash = m.cluster.Name, m.cluster.Hash
		err = m.s.o.Store.PutJobs(ctx, m.cluster.Name, m.cluster.Hash, []api.Job{j})
	}
	if err != nil {
		m.s.log.Info("a job's last row is left to the watcher", "cluster", m.cluster.Name, "job", m.job.ID, "err", err)
	}
}

func (m *logMerge) ended(st api.JobStatus, reason string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status, m.reason = st, reason
}

// away judges what to do about an agent that can't be reached: wait, as long as the job may go on; else give it a
// while, then end without it. The clients are asked for anew: a node may have come back elsewhere.
func (m *logMerge) away(ctx context.Context, r *rankLog, head bool, lost *time.Time) (over bool, err error) {
	m.renew(ctx, r)
	jobs, err := m.s.o.Store.Jobs(ctx, store.JobFilter{Hash: m.cluster.Hash, IDs: []int64{m.job.ID}, Limit: 1})
	if err != nil || len(jobs) == 0 || !jobs[0].Status.Terminal() {
		*lost = time.Time{}
		return false, nil
	}
	c, err := m.s.o.Store.Cluster(ctx, m.cluster.Name)
	gone := errors.Is(err, store.ErrNotFound) || (err == nil && (c.Hash != m.cluster.Hash || c.Status == api.ClusterStopped || c.Status == api.ClusterInit && !head))
	if lost.IsZero() {
		*lost = time.Now()
	}
	if !gone && time.Since(*lost) < m.s.lostAfter {
		return false, nil
	}
	if head {
		m.ended(jobs[0].Status, jobs[0].Reason)
	}
	m.lose(r)
	return true, nil
}

// lose gives a node's log up.
func (m *logMerge) lose(r *rankLog) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.missing = append(m.missing, r)
}

// renew asks for a node's client anew. It is false if the cluster is gone: another one of its name is no heir.
func (m *logMerge) renew(ctx context.Context, r *rankLog) bool {
	nodes, err := m.s.be().NodeClients(ctx, m.cluster.Name)
	if err != nil {
		return true
	}
	c, err := m.s.o.Store.Cluster(ctx, m.cluster.Name)
	gone := errors.Is(err, store.ErrNotFound) || err == nil && c.Hash != m.cluster.Hash
	for _, n := range nodes {
		if n.Rank == r.rank && err == nil && !gone {
			r.client.Close()
			r.client = n.Client
			continue
		}
		n.Client.Close()
	}
	return !gone
}

// pause waits a little longer at each try, 50 ms to 2 s; the end of the head's log ends it.
func (m *logMerge) pause(ctx context.Context, head bool, tries int) error {
	t := time.NewTimer(min(50*time.Millisecond<<min(tries, 10), 2*time.Second))
	defer t.Stop()
	headDone := m.headDone
	if head || closed(headDone) {
		headDone = nil
	}
	select {
	case <-t.C:
		return nil
	case <-headDone:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// read forwards what one connection to an agent gives; the End frame is returned, not forwarded.
func (m *logMerge) read(ctx context.Context, r *rankLog, follow bool) (api.LogFrame, error) {
	q := agentapi.LogQuery{Offsets: r.at.copy(), Follow: follow}
	if len(r.at) == 0 {
		q.Tail = r.tail
	}
	// A node that the job never comes to waits for it without an end: the end of the job ends that.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	heard := make(chan struct{})
	if follow {
		go m.endWithHead(ctx, cancel, heard)
	}
	body, err := r.client.Logs(ctx, m.job.ID, q)
	if err != nil {
		return api.LogFrame{}, err
	}
	defer body.Close()
	if err := m.out.begin(); err != nil {
		return api.LogFrame{}, err
	}
	lr := agentapi.NewLogReader(body)
	for {
		f, data, err := lr.Next()
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return f, err
		}
		if !closed(heard) {
			close(heard)
		}
		if f.Len > 0 {
			if err := m.forward(r, f, data); err != nil {
				return f, err
			}
		}
		if f.End {
			return f, nil
		}
	}
}

// endWithHead ends a connection once the head's log has ended: at once if nothing was heard on it, else a little later.
func (m *logMerge) endWithHead(ctx context.Context, cancel context.CancelFunc, heard <-chan struct{}) {
	select {
	case <-ctx.Done():
		return
	case <-m.headDone:
	}
	if closed(heard) {
		t := time.NewTimer(lastWords)
		defer t.Stop()
		select {
		case <-ctx.Done():
		case <-t.C:
		}
	}
	cancel()
}

// forward passes a frame's bytes on in pieces as they come, without those that were passed on before.
func (m *logMerge) forward(r *rankLog, f api.LogFrame, data io.Reader) error {
	from, known, wanted := r.at.wants(f.Phase)
	if !wanted {
		return nil // the reader skips what is left
	}
	for off, left := f.Offset, int64(f.Len); left > 0; {
		n, err := data.Read(r.buf)
		p, start := r.buf[:n], off
		off, left = off+int64(n), left-int64(n)
		if known && start < from {
			skip := min(from-start, int64(n))
			p, start = p[skip:], start+skip
		}
		if len(p) > 0 {
			piece := api.LogFrame{Rank: r.rank, Node: r.node, Phase: f.Phase, PID: f.PID, Offset: start, Task: m.task, Attempt: m.attempt}
			if f.Rank != r.rank {
				piece.JobRank = &f.Rank
			}
			if err := m.out.frame(piece, p); err != nil {
				return err
			}
			r.at[f.Phase], from, known = off, off, true
		}
		if err == io.EOF && left > 0 {
			return io.ErrUnexpectedEOF
		}
		if err != nil && err != io.EOF {
			return err
		}
	}
	return nil
}

func (o offsets) total() (n int64) {
	for _, v := range o {
		n += v
	}
	return n
}
