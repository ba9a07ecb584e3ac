package local

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/agent/gpus"
	"github.com/skyloom/skyloom/providers"
)

// Region is the one region there is.
const Region = "local"

// Options of the provider.
type Options struct {
	Root         string // folder of everything it keeps, such as SKY_HOME/local
	Installation string // whose nodes are looked after when the provider opens; empty: all
	// Agent is what Check looks for, and the default of Create and Start.
	Agent providers.AgentSource
	// CPUs and MemoryGB replace what the machine has; GPUs what nvidia-smi tells (empty but not nil: none).
	CPUs, MemoryGB float64
	GPUs           []gpus.GPU
	// Claims is the folder of the machine's ledger of claims; empty: the one that all its users share.
	Claims string
	// NoIsolation makes plain process trees even as root.
	NoIsolation bool
	// Tune changes an agent's configuration before its node starts.
	Tune   func(*agentapi.NodeConfig)
	Logger *slog.Logger
}

// Provider is the provider. It is safe for use by many goroutines, and by several processes on one Root.
type Provider struct {
	o    Options
	root string
	log  *slog.Logger

	mu      sync.Mutex
	closed  chan struct{}
	bells   map[chan struct{}]bool
	timers  map[string]*time.Timer // notices that run, by node
	busy    map[string]bool        // clusters that are being finished in the background
	flat    bool                   // namespaces were refused
	machine *machine
}

var (
	_ providers.Provider  = (*Provider)(nil)
	_ providers.Stopper   = (*Provider)(nil)
	_ providers.Preempter = (*Provider)(nil)
	_ providers.Watcher   = (*Provider)(nil)
	_ providers.Pooler    = (*Provider)(nil)
	_ providers.Declarer  = (*Provider)(nil)
)

// New opens the provider on a folder, and takes up what another process left half done there.
func New(o Options) (*Provider, error) {
	root, err := filepath.Abs(o.Root)
	if err != nil || o.Root == "" {
		return nil, providers.Errorf(providers.Invalid, providers.ScopeCloud, "local: %q is no folder for the nodes", o.Root)
	}
	if real, err := filepath.EvalSymlinks(root); err == nil {
		root = real // the same path for every process, and the real length
	}
	for _, d := range []string{root, filepath.Join(root, "locks"), filepath.Join(root, "trash")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("local: make the nodes' folder: %w", err)
		}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Provider{o: o, root: root, log: o.Logger, closed: make(chan struct{}), bells: map[chan struct{}]bool{},
		timers: map[string]*time.Timer{}, busy: map[string]bool{}}
	p.sweep()
	recs, err := p.records("")
	if err != nil {
		return nil, err
	}
	p.observe(slices.DeleteFunc(recs, func(r *record) bool { return o.Installation != "" && r.Cluster.Installation != o.Installation }), newTable())
	return p, nil
}

// Close ends the watches and the timers of notices, never a node. A notice that runs is carried out by the next
// provider on this folder.
func (p *Provider) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.closed:
		return nil
	default:
	}
	close(p.closed)
	for _, t := range p.timers {
		t.Stop()
	}
	return nil
}

// Name is the word users write in `infra:`.
func (p *Provider) Name() string { return "local" }

// Declare names the features that are not interfaces.
func (p *Provider) Declare(f *providers.Features) {
	f.Spot, f.Fallback, f.MachineLocal, f.Confirms = true, true, true, true
}

// Check tells whether nodes can be made here, and how well they are kept apart.
func (p *Provider) Check(ctx context.Context) (providers.CheckReport, error) {
	if runtime.GOOS == "windows" {
		return providers.CheckReport{}, providers.Errorf(providers.Unsupported, providers.ScopeCloud, "local nodes need Linux or macOS")
	}
	m := p.hardware(ctx)
	r := providers.CheckReport{Capabilities: []string{"compute"}}
	if p.o.Agent != nil {
		path, _, err := p.o.Agent.Path("", "")
		if err != nil {
			return providers.CheckReport{}, err
		}
		r.Details = append(r.Details, "agent: "+path)
	}
	r.Details = append(r.Details, fmt.Sprintf("%v CPUs, %.1f GB of memory, %s", m.cpus, m.memoryGB, describe(m.gpus)))
	switch {
	case p.isolates() && cgroupMount() != "":
		r.Details = append(r.Details, "each node has its own PID and mount namespaces and cgroup")
	case p.isolates():
		r.Details = append(r.Details, "each node has its own PID and mount namespaces")
	default:
		r.Details = append(r.Details, "each node is a process tree; run the server as root on Linux to keep nodes apart by namespaces")
	}
	r.Details = append(r.Details, Note)
	return r, ctx.Err()
}

// Note is the warning that goes with every offer.
const Note = "CPUs and memory of this machine are not reserved between clusters; GPUs are"

func (p *Provider) isolates() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return canIsolate() && !p.o.NoIsolation && !p.flat
}

// Transport gives the way to a node's agent: its unix socket.
func (p *Provider) Transport(ctx context.Context, n providers.Node) (providers.Transport, error) {
	h, err := parseHandle(n)
	if err != nil {
		return nil, err
	}
	return transport{h.Socket}, ctx.Err()
}

// sweep removes what a killed process left in the trash or half written, and programs that no node runs any more.
func (p *Provider) sweep() {
	old, _ := filepath.Glob(filepath.Join(p.root, "trash", "*"))
	for _, d := range old {
		// Younger ones may be another process's, which is writing a node there.
		if st, err := os.Stat(d); err == nil && (strings.HasPrefix(filepath.Base(d), "gone-") || time.Since(st.ModTime()) > 10*time.Minute) {
			removeAll(d)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	p.forgetSockets(ctx)
	recs, err := p.records("")
	if err != nil {
		return
	}
	used := map[string]bool{}
	for _, r := range recs {
		used[filepath.Dir(r.Program)] = true
	}
	programs, _ := filepath.Glob(filepath.Join(p.root, "bin", "*"))
	for _, d := range programs {
		if st, err := os.Stat(d); err == nil && !used[d] && time.Since(st.ModTime()) > time.Hour {
			os.RemoveAll(d)
		}
	}
}

// notify rings every watch.
func (p *Provider) notify() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for b := range p.bells {
		select {
		case b <- struct{}{}:
		default:
		}
	}
}

// internal makes an error of ours that a retry may cure.
func internal(err error, format string, args ...any) error {
	var pe *providers.Error
	if errors.As(err, &pe) {
		return err
	}
	return &providers.Error{Kind: providers.Internal, Scope: providers.ScopeCloud, Msg: "local: " + fmt.Sprintf(format, args...), Err: err}
}
