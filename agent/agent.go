package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/agent/durable"
	"github.com/skyloom/skyloom/agent/proctree"
	"github.com/skyloom/skyloom/agent/shim"
	"github.com/skyloom/skyloom/agent/supervisor"
	"github.com/skyloom/skyloom/internal/version"
)

// holdTime is how long, after a restart of the whole node, jobs and autostop wait for the server to say what the cluster
// is now.
const holdTime = time.Minute

// Agent is the agent proper of one node. All its state is guarded by mu; processes, the network and flushes are waited
// for outside of it.
type Agent struct {
	cfg         agentapi.NodeConfig
	log         *slog.Logger
	exe         string // what shims are started from
	incarnation string
	started     time.Time
	journal     *durable.Journal

	mu          sync.Mutex
	changed     chan struct{} // closed and replaced at each change
	meta        meta
	cluster     *clusterRecord
	autostop    *agentapi.Autostop
	drain       *drainRecord
	lost        map[string]string // node id → why
	jobs        map[int64]*jobState
	open        []int64 // unfinished jobs, rising
	keys        map[string]int64
	specs       map[int64]*agentapi.JobSpec // only while the journal is replayed
	parts       map[int64]*part
	batches     map[int64]*batchRecord
	hooks       map[string]*hookRecord
	events      []agentapi.Event
	dropped     map[int64]bool // events removed by the journal, only while it is replayed
	coalesceAt  int
	behind      bool // the journal lacks something
	diskTrouble string
	held        bool // the node was restarted: nothing starts or stops until the server has spoken, or holdTime is over
	idle        idleClock
	dueAt       time.Time // monotonic: when a drained node acts alone; zero: not yet told
	ending      bool

	peers    peerSet
	files    fileStore // of syncs
	pictures pictures  // of checkpoints
	kick     chan struct{}
	stop     chan struct{}
	stopped  sync.Once
	exit     int
	drivers  sync.WaitGroup
	sha      func() string
	ssh      sshHost
	// Sessions counts interactive sessions on the node, for autostop's wait_for: jobs_and_ssh. Nil: none.
	Sessions func() int
}

// LoadConfig reads and checks node.json.
func LoadConfig(path string) (agentapi.NodeConfig, error) {
	var c agentapi.NodeConfig
	if err := durable.ReadJSON(path, &c); err != nil {
		return c, fmt.Errorf("node config %s: %w", path, err)
	}
	for _, f := range []struct{ name, value string }{{"dir", c.Dir}, {"home", c.Home}, {"socket", c.Socket}} {
		if !filepath.IsAbs(f.value) {
			return c, fmt.Errorf("node config %s: %s must be an absolute path, it is %q", path, f.name, f.value)
		}
	}
	if c.NodeID == "" {
		return c, fmt.Errorf("node config %s: node_id is missing", path)
	}
	if c.Resources.CPUs <= 0 {
		c.Resources.CPUs = float64(runtime.NumCPU())
	}
	if c.KillGrace <= 0 {
		c.KillGrace = shim.DefaultGrace
	}
	return c, nil
}

// NodeMark is the value that marks every process of a node.
func NodeMark(c agentapi.NodeConfig) string { return c.ClusterHash + "/" + c.NodeID }

// Open reads the state back and takes up the processes that lived on.
func Open(cfg agentapi.NodeConfig, log *slog.Logger) (*Agent, error) {
	a := &Agent{
		cfg: cfg, log: log, exe: proctree.Executable(), incarnation: os.Getenv(supervisor.EnvIncarnation),
		started: time.Now(), changed: make(chan struct{}),
		lost: map[string]string{}, jobs: map[int64]*jobState{}, keys: map[string]int64{},
		specs: map[int64]*agentapi.JobSpec{}, dropped: map[int64]bool{}, coalesceAt: maxEvents, parts: map[int64]*part{}, batches: map[int64]*batchRecord{}, hooks: map[string]*hookRecord{},
		idle: idleClock{kick: make(chan struct{}, 1)}, kick: make(chan struct{}, 1), stop: make(chan struct{}),
	}
	a.Sessions = a.ssh.sessions
	a.sha = sync.OnceValue(func() string { s, _ := fileSHA(a.exe); return s })
	for _, d := range []struct {
		path string
		mode os.FileMode
	}{{cfg.Dir, 0o700}, {a.path("jobs"), 0o700}, {a.path("secrets"), 0o700}, {a.path("bin"), 0o755}, {cfg.Home, 0o755}} {
		if err := os.MkdirAll(d.path, d.mode); err != nil {
			return nil, err
		}
	}
	j, skipped, err := durable.Open(a.path("state.log"), a.apply)
	if err != nil {
		return nil, err
	}
	a.journal = j
	if skipped > 0 {
		log.Error("the journal had broken lines, which were skipped", "lines", skipped)
	}
	a.settle()
	return a, nil
}

// settle brings what was read from the journal into order.
func (a *Agent) settle() {
	for id, j := range a.jobs {
		j.spec = a.specs[id]
		if r := a.batches[j.Batch]; r != nil && id >= r.First && id <= r.Last {
			j.spec = r.spec(int(id - r.First))
		}
		a.keys[j.Row.Key] = id
		a.meta.LastJob = max(a.meta.LastJob, id)
		a.meta.LastEvent = max(a.meta.LastEvent, j.Row.Seq)
		if j.Row.Status.Terminal() {
			j.spec = nil
			close(j.ended)
		} else {
			a.open = append(a.open, id)
		}
	}
	slices.Sort(a.open)
	a.specs = nil
	events := a.events[:0]
	for _, ev := range a.events {
		a.meta.LastEvent = max(a.meta.LastEvent, ev.Seq)
		if ev.Seq > a.meta.Acked && !a.dropped[ev.Seq] {
			events = append(events, ev)
		}
	}
	a.events, a.dropped = events, nil
	a.held = a.meta.Incarnation != a.incarnation && a.meta.Incarnation != ""
}

// Run serves until Stop, and gives the exit code of the process.
func (a *Agent) Run(ctx context.Context) (int, error) {
	servers, err := a.listen()
	if err != nil {
		return 1, err
	}
	a.mu.Lock()
	again := a.meta.Incarnation != ""
	if !a.held { // else an agent that dies before the server has spoken would not know any more that it is to wait
		a.meta.Incarnation = a.incarnation
	}
	b := &durable.Batch{}
	b.Put(keyMeta, a.meta)
	msg := "the agent started"
	if again {
		msg = "the agent started again"
	}
	a.addEvent(b, agentapi.Event{Type: agentapi.EventNode, Message: msg})
	a.commit(b)
	a.resumeParts()
	a.resumeHooks()
	held := a.held
	a.resetIdle()
	a.mu.Unlock()
	if held {
		a.log.Info("the node was restarted: jobs and autostop wait for the server", "at_most", holdTime)
		time.AfterFunc(holdTime, a.unhold)
	} else {
		a.resumeJobs()
	}
	go a.scheduleLoop()
	go a.idleLoop()
	select {
	case <-ctx.Done():
		a.Stop(0)
	case <-a.stop:
	}
	a.ssh.close()
	defer a.files.close()
	for _, s := range servers {
		s.Close()
	}
	a.mu.Lock()
	for _, id := range a.open {
		if d := a.jobs[id].driver; d != nil {
			d.cancel(errShutdown)
		}
	}
	a.mu.Unlock()
	a.drivers.Wait()
	return a.exit, a.journal.Close()
}

// Stop ends Run with an exit code; jobs live on.
func (a *Agent) Stop(code int) {
	a.stopped.Do(func() { a.exit = code; close(a.stop) })
}

// unhold lets jobs go on.
func (a *Agent) unhold() {
	a.mu.Lock()
	was := a.held
	a.held = false
	if was {
		a.meta.Incarnation = a.incarnation
		b := &durable.Batch{}
		b.Put(keyMeta, a.meta)
		a.commit(b)
		a.resetIdle()
		a.dueAt = time.Time{}
	}
	a.mu.Unlock()
	if was {
		a.resumeJobs()
	}
}

func (a *Agent) path(elem ...string) string {
	return filepath.Join(append([]string{a.cfg.Dir}, elem...)...)
}

// now is the wall clock as this node sees it. Durations are never taken from it across restarts.
func (a *Agent) now() time.Time { return time.Now().Add(a.cfg.ClockOffset).UTC() }

func (a *Agent) context() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		select {
		case <-a.stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// notify wakes everyone who waits for a change. The caller holds a.mu.
func (a *Agent) notify() {
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *Agent) epoch() int64 {
	if a.cluster == nil {
		return 0
	}
	return a.cluster.Spec.Epoch
}

// Info tells who the agent is and how it fares.
func (a *Agent) Info() agentapi.Info {
	sha := a.sha()
	a.mu.Lock()
	defer a.mu.Unlock()
	i := agentapi.Info{
		Version: version.Version, BinarySHA: sha, NodeID: a.cfg.NodeID, ClusterHash: a.cfg.ClusterHash, Rank: a.cfg.Rank,
		Epoch: a.epoch(), PID: os.Getpid(), StartedAt: a.started.UTC(), Now: a.now(), Configured: a.cluster != nil,
		Draining: a.drain != nil, LastEvent: a.meta.LastEvent, Acked: a.meta.Acked, ActiveJobs: len(a.open),
		Unfinished: slices.Clone(a.open), Autostop: a.autostop,
	}
	if since, ok := a.idleSince(); ok {
		t := a.now().Add(-since)
		i.IdleSince = &t
	}
	return i
}

// Configure takes a cluster spec: PUT /v1/cluster.
func (a *Agent) Configure(spec agentapi.ClusterSpec) error {
	if spec.Hash != a.cfg.ClusterHash {
		return conflict("this node belongs to cluster %s (%s), not to %s (%s)", a.cfg.ClusterName, a.cfg.ClusterHash, spec.Name, spec.Hash)
	}
	if len(spec.Nodes) == 0 {
		return invalid("a cluster spec names at least one node")
	}
	for i, p := range spec.Nodes {
		if p.Rank != i {
			return invalid("node %d of the cluster spec has rank %d: nodes stand in the order of their ranks", i, p.Rank)
		}
	}
	if spec.Resources.CPUs <= 0 {
		spec.Resources.CPUs = a.cfg.Resources.CPUs
	}
	a.mu.Lock()
	if spec.Epoch < a.epoch() {
		defer a.mu.Unlock()
		return staleEpoch(spec.Epoch, a.epoch())
	}
	fresh := a.cluster == nil || spec.Epoch > a.epoch() || a.cluster.Renewing
	b := &durable.Batch{}
	old := a.cluster
	a.cluster = &clusterRecord{Spec: spec, Renewing: fresh}
	b.Put(keyCluster, a.cluster)
	if err := a.tryCommit(b); err != nil {
		a.cluster = old
		a.mu.Unlock()
		return err
	}
	if fresh {
		a.renew(spec)
	}
	a.notify()
	a.mu.Unlock()
	a.peers.reset()
	a.listenPeers()
	if err := a.journal.Sync(); err != nil {
		return diskError(err)
	}
	a.unhold()
	a.wakeScheduler()
	return nil
}

// renew is what a higher epoch changes. The caller holds a.mu.
func (a *Agent) renew(spec agentapi.ClusterSpec) {
	b := &durable.Batch{}
	a.lost = map[string]string{}
	if a.drain != nil {
		a.drain = nil
		b.Delete(keyDrain)
	}
	if spec.Restarted {
		if a.autostop != nil {
			a.autostop = nil
			b.Delete(keyAutostop)
		}
		a.failRestarted(b)
	} else {
		present := map[string]bool{}
		for _, p := range spec.Nodes {
			present[p.NodeID] = true
		}
		for _, id := range a.open {
			j := a.jobs[id]
			if j.Place == nil {
				continue
			}
			for _, n := range j.nodes() {
				if !present[j.Place.NodeIDs[n]] && j.driver != nil {
					j.driver.cancel(errLost{n, "it is no longer part of the cluster"})
				} else if !present[j.Place.NodeIDs[n]] {
					a.lost[j.Place.NodeIDs[n]] = "it is no longer part of the cluster"
				}
			}
		}
	}
	b.Put(keyLost, a.lost)
	a.cluster = &clusterRecord{Spec: spec}
	b.Put(keyCluster, a.cluster)
	a.resetIdle()
	a.commit(b)
}

func staleEpoch(got, have int64) error {
	return &agentapi.Error{Kind: agentapi.KindStaleEpoch, Detail: fmt.Sprintf("epoch %d is over: this node has seen epoch %d", got, have)}
}

func fileSHA(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := newSHA()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hexOf(h), nil
}

// asError gives any error the shape an agent answers with.
func asError(err error) *agentapi.Error {
	var e *agentapi.Error
	if errors.As(err, &e) {
		return e
	}
	err = diskError(err)
	if errors.As(err, &e) {
		return e
	}
	return &agentapi.Error{Kind: agentapi.KindInternal, Detail: err.Error()}
}
