package memory

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/providers/memory/internal/journal"
	"github.com/skyloom/skyloom/providers/memory/simagent"
)

// Reasons of a node's end.
const (
	ReasonPreempted = "preempted"
	ReasonKilled    = "killed"   // by nobody we know
	ReasonDeleted   = "deleted"  // as asked
	ReasonAutostop  = "autostop" // ended itself
)

// Cloud is the cloud. It is safe for use by many goroutines.
type Cloud struct {
	cfg     Config
	clock   Clock
	log     *slog.Logger
	journal *journal.Journal // nil without a state file

	mu       sync.Mutex
	machines map[string]*machine
	byHash   map[string][]*machine // by cluster hash, in the order of their creation
	tokens   map[string][]*machine // by token of the Create
	ledger   []Breach
	seq      int
	dirty    map[string]bool // machines changed since the last write
	changed  []*machine      // to tell watchers
	due      dueHeap
	disarm   func() bool
	armedFor time.Time
	watchers map[*watcher]bool
	script   script
	withdrew map[string]bool // "zone/type" no longer offered
	closed   bool

	agents *simagent.Fleet
}

var (
	_ providers.Provider     = (*Cloud)(nil)
	_ providers.Stopper      = (*Cloud)(nil)
	_ providers.Preempter    = (*Cloud)(nil)
	_ providers.Watcher      = (*Cloud)(nil)
	_ providers.QuotaChecker = (*Cloud)(nil)
	_ providers.Declarer     = (*Cloud)(nil)
)

// machine is one machine, dead or alive. Its state at a time is a function of these fields.
type machine struct {
	ID        string               `json:"id"`
	Seq       int                  `json:"seq"` // order of creation
	Rank      int                  `json:"rank"`
	Cluster   providers.ClusterRef `json:"cluster"`
	Token     string               `json:"token"`
	Spec      providers.NodeSpec   `json:"spec"`                 // zone and region filled in
	Nodes     int                  `json:"nodes"`                // of the set
	Asked     string               `json:"asked"`                // the spec of the request, as JSON
	BinarySHA string               `json:"binary_sha,omitempty"` // of the agent
	Stranger  bool                 `json:"stranger,omitempty"`
	IP        string               `json:"ip"`
	CreatedAt time.Time            `json:"created_at"`
	VisibleAt time.Time            `json:"visible_at"`
	RunningAt time.Time            `json:"running_at"`
	// StoppedAt is when a stop that was asked for is done; zero: none asked for.
	StoppedAt  time.Time  `json:"stopped_at,omitzero"`
	StopAsked  time.Time  `json:"stop_asked,omitzero"`
	StartToken string     `json:"start_token,omitempty"`
	DoomAt     time.Time  `json:"doom_at,omitzero"` // dies then
	Doom       string     `json:"doom,omitempty"`
	DiedAt     time.Time  `json:"died_at,omitzero"`
	Reason     string     `json:"reason,omitempty"`
	Unlisted   bool       `json:"unlisted,omitempty"` // dead and no longer in listings
	Bills      []Interval `json:"bills"`
}

// Interval is a time for which a machine is billed; To is zero while it runs on.
type Interval struct {
	From time.Time `json:"from"`
	To   time.Time `json:"to,omitzero"`
}

// Option changes how a cloud is made.
type Option func(*Cloud)

// WithClock makes the cloud and its agents live in another time.
func WithClock(k Clock) Option { return func(c *Cloud) { c.clock = k } }

// WithLogger gives the cloud a logger; it says what was created and what died, at Debug.
func WithLogger(l *slog.Logger) Option { return func(c *Cloud) { c.log = l } }

// New makes a cloud, or opens the one kept in the state file.
func New(cfg Config, opts ...Option) (*Cloud, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.Name == "" {
		cfg.Name = "memory"
	}
	if len(cfg.Regions) == 0 {
		cfg.Regions = defaultRegions()
	}
	if len(cfg.Types) == 0 {
		cfg.Types = defaultTypes()
	}
	c := &Cloud{cfg: cfg, clock: simagent.RealClock{}, log: slog.New(slog.DiscardHandler),
		machines: map[string]*machine{}, byHash: map[string][]*machine{}, tokens: map[string][]*machine{}, dirty: map[string]bool{},
		watchers: map[*watcher]bool{}, withdrew: map[string]bool{},
		script: script{seed: cfg.Seed, rates: cfg.Rates, counts: map[string]int{}, hits: map[string]int{}}}
	for _, o := range opts {
		o(c)
	}
	fo := simagent.Options{Clock: c.clock, JobDuration: time.Duration(cfg.JobDuration), SelfEnd: c.selfEnd}
	if cfg.StateFile != "" {
		fo.StateFile = cfg.StateFile + ".agents"
		j, err := journal.Open(cfg.StateFile)
		if err != nil {
			return nil, err
		}
		c.journal = j
	}
	fleet, err := simagent.NewFleet(fo)
	if err != nil {
		return nil, err
	}
	c.agents = fleet
	end := c.begin()
	end()
	return c, nil
}

// Close ends the timers, the agents' connections and the use of the state file. The machines live on in that file.
func (c *Cloud) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	if c.disarm != nil {
		c.disarm()
	}
	for w := range c.watchers {
		w.wake()
	}
	c.mu.Unlock()
	err := c.agents.Close()
	if c.journal != nil {
		err = errors.Join(err, c.journal.Close())
	}
	return err
}

// begin takes the lock and brings the state up to now; the function it returns writes what changed and tells watchers.
func (c *Cloud) begin() (end func()) {
	c.mu.Lock()
	if c.journal != nil {
		if err := c.journal.Lock(); err == nil {
			err = c.journal.Sync(c.load)
			if err != nil {
				c.log.Error("memory cloud: read the state file", "err", err)
			}
		} else {
			c.log.Error("memory cloud: lock the state file", "err", err)
		}
	}
	c.advance(c.clock.Now())
	return func() {
		c.write()
		c.arm()
		for _, m := range c.changed {
			for w := range c.watchers {
				w.add(m, c.node(m))
			}
		}
		c.changed = nil
		c.mu.Unlock()
	}
}

// write appends what changed to the state file, and compacts it once most of it is old.
func (c *Cloud) write() {
	defer clear(c.dirty)
	if c.journal == nil {
		return
	}
	defer c.journal.Unlock()
	lines := make([]any, 0, len(c.dirty))
	for id := range c.dirty {
		lines = append(lines, c.machines[id])
	}
	if err := c.journal.Append(lines...); err != nil {
		c.log.Error("memory cloud: write the state file", "err", err)
	}
	if c.journal.Lines() < 4*len(c.machines)+1000 {
		return
	}
	lines = lines[:0]
	for _, m := range c.machines {
		lines = append(lines, m)
	}
	if err := c.journal.Rewrite(lines...); err != nil {
		c.log.Error("memory cloud: compact the state file", "err", err)
	}
}

// load applies one line of the state file: a machine as it was written last.
func (c *Cloud) load(b []byte) error {
	m := new(machine)
	if err := json.Unmarshal(b, m); err != nil {
		return err
	}
	if old := c.machines[m.ID]; old != nil {
		if !old.DiedAt.IsZero() && m.DiedAt.IsZero() {
			return nil
		}
		*old = *m
		m = old
	} else {
		c.insert(m)
	}
	c.seq = max(c.seq, m.Seq)
	c.changed = append(c.changed, m)
	c.schedule(m)
	return nil
}

func (c *Cloud) insert(m *machine) {
	c.machines[m.ID] = m
	c.byHash[m.Cluster.Hash] = append(c.byHash[m.Cluster.Hash], m)
	if m.Token != "" {
		c.tokens[m.Token] = append(c.tokens[m.Token], m)
	}
}

func (c *Cloud) touch(m *machine) {
	c.dirty[m.ID] = true
	c.changed = append(c.changed, m)
	c.schedule(m)
}

func (m *machine) state(now time.Time) providers.NodeState {
	switch {
	case !m.DiedAt.IsZero():
		return providers.NodeGone
	case !m.StopAsked.IsZero() && m.StoppedAt.After(now):
		return providers.NodeStopping
	case !m.StopAsked.IsZero():
		return providers.NodeStopped
	case m.RunningAt.After(now):
		return providers.NodePending
	}
	return providers.NodeRunning
}

func (m *machine) alive() bool { return m.DiedAt.IsZero() }

// is says that the machine belongs to the cluster incarnation: by installation and hash, and never by its name.
func (m *machine) is(ref providers.ClusterRef) bool {
	return !m.Stranger && m.Cluster.Installation == ref.Installation && m.Cluster.Hash == ref.Hash
}

// node is the machine as the cloud tells it. The caller holds the lock.
func (c *Cloud) node(m *machine) providers.Node {
	now := c.clock.Now()
	handle, _ := json.Marshal(map[string]string{"id": m.ID})
	n := providers.Node{ID: m.ID, Rank: m.Rank, Cluster: m.Cluster, Token: m.Token, State: m.state(now), Reason: m.Reason, Spot: m.Spec.Spot,
		Region: m.Spec.Region, Zone: m.Spec.Zone, InternalIP: m.IP, CreatedAt: m.CreatedAt, Handle: handle, Resources: resourcesOf(m.Spec)}
	return n
}

func resourcesOf(s providers.NodeSpec) agentapi.NodeResources {
	r := agentapi.NodeResources{CPUs: s.CPUs, MemoryGB: s.MemoryGB, Accelerator: s.Accelerator, AcceleratorCount: s.AcceleratorCount}
	for i := 0; i < int(s.AcceleratorCount); i++ {
		r.DeviceIDs = append(r.DeviceIDs, fmt.Sprint(i))
	}
	return r
}

// Name is the word users write in `infra:`.
func (c *Cloud) Name() string { return c.cfg.Name }

// Declare names the features that are not interfaces.
func (c *Cloud) Declare(f *providers.Features) { f.Spot, f.Confirms = true, true }

// Check always succeeds, unless a fault says otherwise.
func (c *Cloud) Check(ctx context.Context) (providers.CheckReport, error) {
	defer c.begin()()
	if f := c.script.next(call{name: "check"}); f != nil && f.Err != nil {
		return providers.CheckReport{}, f.Err
	}
	n := 0
	for _, r := range c.cfg.Regions {
		n += len(r.Zones)
	}
	return providers.CheckReport{Capabilities: []string{"compute"},
		Details: []string{fmt.Sprintf("a simulated cloud: %d regions, %d zones, %d instance types", len(c.cfg.Regions), n, len(c.cfg.Types))}}, ctx.Err()
}

// Offers lists what can be rented.
func (c *Cloud) Offers(ctx context.Context, f providers.OfferFilter) ([]providers.Offer, error) {
	defer c.begin()()
	if ft := c.script.next(call{name: "offers", region: f.Region, zone: f.Zone}); ft != nil && ft.Err != nil {
		return nil, ft.Err
	}
	var out []providers.Offer
	for _, r := range c.cfg.Regions {
		if f.Region != "" && f.Region != r.Name {
			continue
		}
		for _, z := range r.Zones {
			if f.Zone != "" && f.Zone != z.Name {
				continue
			}
			for _, t := range c.cfg.Types {
				if f.InstanceType != "" && f.InstanceType != t.Name || f.Accelerator != "" && !strings.EqualFold(f.Accelerator, t.Accelerator) {
					continue
				}
				for _, spot := range []bool{false, true} {
					if f.Spot != nil && *f.Spot != spot || !c.offered(z.Name, t, spot) {
						continue
					}
					out = append(out, c.offer(r, z, t, spot))
				}
			}
		}
	}
	return out, ctx.Err()
}

func (c *Cloud) offered(zone string, t InstanceType, spot bool) bool {
	if spot && t.SpotPrice == 0 || c.withdrew[zone+"/"+t.Name] || c.withdrew[zone+"/"] {
		return false
	}
	if len(t.Zones) == 0 {
		return true
	}
	for _, z := range t.Zones {
		if z == zone {
			return true
		}
	}
	return false
}

func (c *Cloud) offer(r Region, z Zone, t InstanceType, spot bool) providers.Offer {
	o := providers.Offer{Provider: c.cfg.Name, InstanceType: t.Name, Region: r.Name, Zone: z.Name, CPUs: t.CPUs, MemoryGB: t.MemoryGB,
		Accelerator: t.Accelerator, AcceleratorCount: t.AcceleratorCount, DeviceMemGB: t.DeviceMemGB, Spot: spot, PricePerHour: t.Price, Arch: t.Arch}
	if spot {
		o.PricePerHour = t.SpotPrice
	}
	if r.PriceFactor != 0 {
		o.PricePerHour *= r.PriceFactor
	}
	if o.Arch == "" {
		o.Arch = "amd64"
	}
	if t.Accelerator != "" {
		o.Manufacturer = "NVIDIA"
	}
	return o
}

// Withdraw takes an instance type ("": all of them) out of a zone, as a cloud does between a plan and a create.
func (c *Cloud) Withdraw(zone, instanceType string) {
	defer c.begin()()
	c.withdrew[zone+"/"+instanceType] = true
}

// SetCapacity changes how many nodes of a type ("": of all types together) a zone can hold; negative: no limit.
func (c *Cloud) SetCapacity(zone, instanceType string, nodes int) {
	defer c.begin()()
	for i := range c.cfg.Regions {
		for j := range c.cfg.Regions[i].Zones {
			z := &c.cfg.Regions[i].Zones[j]
			if z.Name != zone {
				continue
			}
			m := map[string]int{}
			for k, v := range z.Capacity {
				m[k] = v
			}
			m[instanceType] = nodes
			if nodes < 0 {
				delete(m, instanceType)
			}
			z.Capacity = m
		}
	}
}
