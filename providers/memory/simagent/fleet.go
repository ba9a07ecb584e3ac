package simagent

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/providers/memory/internal/journal"
)

// Node is what an agent knows from the cloud.
type Node struct {
	ID          string                 `json:"id"`
	ClusterName string                 `json:"cluster_name"`
	ClusterHash string                 `json:"cluster_hash"`
	Rank        int                    `json:"rank"`
	Resources   agentapi.NodeResources `json:"resources"`
	// Started is when the node came up; a later one than before means that it was stopped in between.
	Started time.Time `json:"started"`
	// BinarySHA is the agent program the node was made with.
	BinarySHA string `json:"binary_sha,omitempty"`
}

// Options of a fleet.
type Options struct {
	Clock       Clock
	JobDuration time.Duration // of jobs whose script does not say
	// Grace is how long an autostop waits for an answer; 0 means two minutes.
	Grace time.Duration
	// SelfEnd is called when an agent ends its node by itself, and whether for good, in a goroutine of its own.
	SelfEnd func(nodeID string, down bool)
	// StateFile keeps the agents across processes; one process at a time.
	StateFile string
}

// Fleet is the agents of a cloud.
type Fleet struct {
	o       Options
	handler http.Handler
	journal *journal.Journal

	mu     sync.Mutex
	agents map[string]*agent
	closed bool

	streamMu sync.Mutex
	streams  map[*stream]bool
	soonest  time.Duration // the shortest beat of a stream
	beating  *time.Timer
}

// NewFleet makes a fleet, with the agents kept in the state file.
func NewFleet(o Options) (*Fleet, error) {
	if o.Clock == nil {
		o.Clock = RealClock{}
	}
	if o.Grace == 0 {
		o.Grace = 2 * time.Minute
	}
	f := &Fleet{o: o, handler: routes(), agents: map[string]*agent{}, streams: map[*stream]bool{}}
	if o.StateFile != "" {
		if err := f.open(); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// open reads the state file and compacts it.
func (f *Fleet) open() error {
	j, err := journal.Open(f.o.StateFile)
	if err != nil {
		return err
	}
	f.journal = j
	if err := j.Lock(); err != nil {
		j.Unlock()
		return err
	}
	defer j.Unlock()
	latest := map[string]json.RawMessage{}
	err = j.Sync(func(b []byte) error {
		var head struct {
			Node Node
			Gone bool
		}
		if err := json.Unmarshal(b, &head); err != nil {
			return err
		}
		if head.Gone {
			delete(latest, head.Node.ID)
		} else {
			latest[head.Node.ID] = append(json.RawMessage(nil), b...)
		}
		return nil
	})
	if err != nil {
		return err
	}
	var lines []any
	for id, b := range latest {
		a := newAgent(f, Node{})
		if err := json.Unmarshal(b, &a.state); err != nil {
			return fmt.Errorf("%s: agent %s: %w", f.o.StateFile, id, err)
		}
		if n := len(a.state.Jobs); n > 0 {
			a.state.LastJob = max(a.state.LastJob, a.state.Jobs[n-1].Row.ID) // of before there was a count
		}
		f.agents[id] = a
		lines = append(lines, b)
	}
	if err := j.Rewrite(lines...); err != nil {
		return err
	}
	for _, a := range f.agents {
		a.begin()()
	}
	return nil
}

// Len is the number of agents.
func (f *Fleet) Len() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.agents)
}

// Dial opens a connection to a node's agent, which starts now if it never ran.
func (f *Fleet) Dial(ctx context.Context, n Node) (net.Conn, error) {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return nil, net.ErrClosed
	}
	a := f.agents[n.ID]
	if a == nil {
		a = newAgent(f, n)
		f.agents[n.ID] = a
	}
	f.mu.Unlock()
	c := newConn(a)
	if err := a.connect(c, n); err != nil {
		return nil, err
	}
	return c, nil
}

// find gives an agent that has been dialled before.
func (f *Fleet) find(nodeID string) *agent {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.agents[nodeID]
}

// Down ends a node's agent: its connections break, its jobs stop. With forget its files are gone too.
func (f *Fleet) Down(nodeID string, forget bool) {
	a := f.find(nodeID)
	if a == nil {
		return
	}
	if forget {
		f.mu.Lock()
		delete(f.agents, nodeID)
		f.mu.Unlock()
	}
	a.down(forget)
}

// Notice tells a node's agent that its node is taken away after d.
func (f *Fleet) Notice(nodeID string, d time.Duration) {
	if a := f.find(nodeID); a != nil {
		end := a.begin()
		a.notice(d)
		end()
	}
}

// Cut takes a node's network away for d: its connections break and new ones time out. Negative: for ever; 0: heals it.
func (f *Fleet) Cut(nodeID string, d time.Duration) {
	f.mu.Lock()
	a := f.agents[nodeID]
	if a == nil {
		a = newAgent(f, Node{ID: nodeID})
		f.agents[nodeID] = a
	}
	f.mu.Unlock()
	a.cut(d)
}

// save appends an agent's state to the state file.
func (f *Fleet) save(st *state) {
	if f.journal == nil {
		return
	}
	defer f.journal.Unlock()
	if f.journal.Lock() != nil {
		return
	}
	f.journal.Append(st) // a full disk is met again at the next call; the state in memory goes on
}

// Close breaks all connections and ends all timers.
func (f *Fleet) Close() error {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return nil
	}
	f.closed = true
	all := make([]*agent, 0, len(f.agents))
	for _, a := range f.agents {
		all = append(all, a)
	}
	f.mu.Unlock()
	for _, a := range all {
		a.quit()
	}
	if f.journal != nil {
		return f.journal.Close()
	}
	return nil
}

type agentKey struct{}

// timedOut is the error of a dial into a cut network.
func timedOut(id string) error {
	return &net.OpError{Op: "dial", Net: "tcp", Err: fmt.Errorf("node %s: %w", id, os.ErrDeadlineExceeded)}
}
