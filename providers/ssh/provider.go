package ssh

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skyloom/skyloom/agent/sharedhost"
	"github.com/skyloom/skyloom/providers"
)

// Options of the provider.
type Options struct {
	// Home is SKY_HOME: pools, pinned host keys and notes are below it. UserHome is where .ssh/config and .sky are.
	Home, UserHome string
	// Agent is the program that hosts get, unless a request brings another.
	Agent providers.AgentSource
	// Allowed names the pools that may be used; nil: all.
	Allowed []string
	// ConnectTimeout is for one host or hop; 0: ten seconds. Poll is how often a watch asks a host; 0: 15 seconds.
	ConnectTimeout, Poll time.Duration
	// Shared says that other servers work on the same clusters without sharing Home.
	Shared bool
	// Dial opens connections; nil: the machine's network.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Plain makes nodes of the login's user even where root can be had. Tune is laid over the agents' configurations, Env
	// added to what nodes start with.
	Plain  bool
	Tune   json.RawMessage
	Env    []string
	Logger *slog.Logger
}

// Provider is the provider. It is safe for use by many goroutines.
type Provider struct {
	o   Options
	log *slog.Logger
	net *network

	mu     sync.Mutex
	pools  loaded
	states map[string]*state // by connection
	notes  map[string]*note  // by cluster's name and hash
	ended  map[string]time.Time
	locks  map[string]*lock
	bells  map[*bell]bool
}

var (
	_ providers.Provider = (*Provider)(nil)
	_ providers.Stopper  = (*Provider)(nil)
	_ providers.Watcher  = (*Provider)(nil)
	_ providers.Pooler   = (*Provider)(nil)
	_ providers.Declarer = (*Provider)(nil)
)

// New opens the provider.
func New(o Options) (*Provider, error) {
	if o.Home == "" || !filepath.IsAbs(o.Home) {
		return nil, providers.Errorf(providers.Invalid, providers.ScopeCloud, "ssh: %q is no folder for the provider's notes", o.Home)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.ConnectTimeout <= 0 {
		o.ConnectTimeout = connectTimeout
	}
	if o.Poll <= 0 {
		o.Poll = 15 * time.Second
	}
	if o.Dial == nil {
		o.Dial = (&net.Dialer{}).DialContext
	}
	p := &Provider{o: o, log: o.Logger, states: map[string]*state{}, notes: map[string]*note{}, ended: map[string]time.Time{}, locks: map[string]*lock{},
		bells: map[*bell]bool{},
		net:   &network{dial: o.Dial, pins: &pins{file: filepath.Join(o.Home, "ssh", "known_hosts_pools")}, home: o.UserHome, timeout: o.ConnectTimeout, links: map[string]*link{}}}
	if err := p.loadNotes(); err != nil {
		return nil, err
	}
	return p, nil
}

// Close ends the connections, never a node.
func (p *Provider) Close() error {
	p.net.close()
	return nil
}

// Name is the word users write in `infra:`.
func (p *Provider) Name() string { return "ssh" }

// Declare names the features that are not interfaces. A host that is silent confirms nothing.
func (p *Provider) Declare(f *providers.Features) {
	f.HostNetwork = true
	f.Sizes = providers.Sizes{CPUs: 2, MemoryPerCPU: 2, CPUsPerAccelerator: 4, MemoryPerCPUWithAccelerator: 4}
}

// host is a machine of a pool and the way to it.
type host struct {
	Host
	target target
	link   *link
	state  *state
}

// state is what is known of a host.
type state struct {
	mu    sync.Mutex
	info  *sharedhost.Info
	at    time.Time
	note  string
	err   error // of the last try; nil: it went well
	when  time.Time
	asked bool // after it failed: an answer is awaited
	// expected are what creates that are going on may take of it.
	expected map[*providers.NodeSpec]bool
}

// ask notes whether a host that failed is being asked again; false if that was so before.
func (s *state) ask(now bool) (changed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed = s.asked != now
	s.asked = now
	return changed
}

// expect notes that a create is about to take a share of the host, until undo is called.
func (s *state) expect(spec providers.NodeSpec) (undo func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.expected == nil {
		s.expected = map[*providers.NodeSpec]bool{}
	}
	s.expected[&spec] = true
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.expected, &spec)
	}
}

// awaited gives what creates that are going on may take.
func (s *state) awaited() (out []providers.NodeSpec) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for x := range s.expected {
		out = append(out, *x)
	}
	return out
}

func (s *state) learn(r sharedhost.Reply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err, s.when, s.note = nil, time.Now(), r.Note
	if r.Info != nil {
		s.info, s.at = r.Info, time.Now()
	}
}

func (s *state) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err, s.when = err, time.Now()
}

// forget drops what is known of a host.
func (s *state) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.info, s.at, s.note, s.err, s.when = nil, time.Time{}, "", nil, time.Time{}
}

func (s *state) snapshot() (info *sharedhost.Info, at time.Time, err error, when time.Time, note string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.info, s.at, s.err, s.when, s.note
}

// loaded is the pools file and the SSH configuration as last read.
type loaded struct {
	pools Pools
	conf  *sshConfig
	err   error
	path  string
	stamp string
	at    time.Time
}

// fileStamp tells one state of a file from another.
func fileStamp(path string) string {
	st, err := os.Stat(path)
	if err != nil {
		return ""
	}
	return fmt.Sprint(st.ModTime().UnixNano(), " ", st.Size())
}

func (p *Provider) load() (Pools, *sshConfig, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.pools.at.IsZero() && time.Since(p.pools.at) < time.Second {
		return p.pools.pools, p.pools.conf, p.pools.err
	}
	path := poolsPath(p.o.Home, p.o.UserHome)
	stamp := path + fileStamp(path) + fileStamp(filepath.Join(p.o.UserHome, ".ssh", "config"))
	if p.pools.conf == nil || stamp != p.pools.stamp || time.Since(p.pools.at) > time.Minute {
		p.pools = loaded{stamp: stamp, conf: loadSSHConfig(p.o.UserHome)}
		p.pools.pools, p.pools.err = LoadPools(p.o.Home, p.o.UserHome)
		if p.o.Allowed != nil {
			p.pools.pools.Pools = slices.DeleteFunc(p.pools.pools.Pools, func(x Pool) bool { return !slices.Contains(p.o.Allowed, x.Name) })
		}
	}
	p.pools.at = time.Now()
	return p.pools.pools, p.pools.conf, p.pools.err
}

// refresh has the pools file read again at once.
func (p *Provider) refresh() {
	p.mu.Lock()
	p.pools.at = time.Time{}
	p.mu.Unlock()
}

// hostOf finds the way to a host.
func (p *Provider) hostOf(conf *sshConfig, h Host) (*host, error) {
	t, err := conf.resolve(h, p.o.UserHome)
	if err != nil {
		return nil, err
	}
	var hops []target
	for _, j := range t.Jumps {
		hop, err := conf.hop(j, p.o.UserHome, t)
		if err != nil {
			return nil, err
		}
		hops = append(hops, hop)
	}
	p.mu.Lock()
	s := p.states[t.key()]
	if s == nil {
		s = &state{}
		p.states[t.key()] = s
	}
	p.mu.Unlock()
	return &host{Host: h, target: t, link: p.net.link(t, hops), state: s}, nil
}

// pool finds a pool and the ways to its hosts.
func (p *Provider) pool(name string) ([]*host, error) {
	pools, conf, err := p.load()
	if err != nil {
		return nil, &providers.Error{Kind: providers.Invalid, Scope: providers.ScopeCloud, Msg: "ssh", Err: err, Hint: "correct the file"}
	}
	pl, ok := pools.Pool(name)
	if !ok {
		hint := "there are no pools: write " + filepath.Join(p.o.Home, PoolsFile)
		if names := pools.Names(); len(names) > 0 {
			hint = "pools: " + strings.Join(names, ", ")
		}
		return nil, &providers.Error{Kind: providers.Invalid, Scope: providers.ScopeRegion, Msg: fmt.Sprintf("ssh: there is no node pool %q", name), Hint: hint}
	}
	var out []*host
	for _, h := range pl.Hosts {
		x, err := p.hostOf(conf, h)
		if err != nil {
			return nil, internal(err, "host %s", h.Name)
		}
		out = append(out, x)
	}
	return out, nil
}

// every gives all hosts there are: of the pools, and those that notes name. Two names of one connection count once.
func (p *Provider) every() ([]*host, error) {
	pools, conf, err := p.load()
	if err != nil {
		// A file that is being edited must not make nodes vanish.
		p.log.Warn("ssh: the pools file is not understood", "err", err)
	}
	var all []Host
	for _, pl := range pools.Pools {
		all = append(all, pl.Hosts...)
	}
	all = append(all, p.notedHosts(providers.Tag{})...)
	var out []*host
	seen := map[*link]bool{}
	for _, h := range all {
		x, err := p.hostOf(conf, h)
		if err != nil {
			p.log.Warn("ssh: host left out", "host", h.Name, "err", err)
			continue
		}
		if !seen[x.link] {
			seen[x.link] = true
			out = append(out, x)
		}
	}
	return out, nil
}

// now gives a host as the pools file has it at present; one that was taken out of it as it was noted down.
func (p *Provider) now(h Host) (*host, error) {
	pools, conf, _ := p.load()
	if pl, ok := pools.Pool(h.Pool); ok {
		for _, x := range pl.Hosts {
			if x.Name == h.Name {
				h = x
			}
		}
	}
	return p.hostOf(conf, h)
}

// listed says that a host stands in the pools file at present.
func (p *Provider) listed(h Host) bool {
	pools, _, err := p.load()
	if err != nil {
		return true // a file that is being edited takes no host out
	}
	pl, ok := pools.Pool(h.Pool)
	return ok && slices.ContainsFunc(pl.Hosts, func(x Host) bool { return x.Name == h.Name })
}

// call has a host do something and remembers how that went.
func (p *Provider) call(ctx context.Context, h *host, src providers.AgentSource, verb string, req sharedhost.Request) (sharedhost.Reply, error) {
	if src == nil {
		src = p.o.Agent
	}
	req.Plain = p.o.Plain
	r, err := h.link.call(ctx, src, verb, req)
	var answered *sharedhost.Error
	switch {
	case err == nil, errors.As(err, &answered):
		h.state.learn(r)
	case ctx.Err() == nil:
		h.state.fail(err)
	}
	return r, err
}

// each does something with many hosts at once.
func each(hosts []*host, f func(i int, h *host)) {
	var wg sync.WaitGroup
	room := make(chan struct{}, 64)
	for i, h := range hosts {
		wg.Add(1)
		room <- struct{}{}
		go func() {
			defer func() { <-room; wg.Done() }()
			f(i, h)
		}()
	}
	wg.Wait()
}

// lock is a mutex that a context can give up waiting for.
type lock struct {
	ch    chan struct{}
	users int
}

func (p *Provider) lock(ctx context.Context, ref providers.ClusterRef) (unlock func(), err error) {
	name := ref.NameOnCloud()
	p.mu.Lock()
	l := p.locks[name]
	if l == nil {
		l = &lock{ch: make(chan struct{}, 1)}
		p.locks[name] = l
	}
	l.users++
	p.mu.Unlock()
	leave := func() {
		p.mu.Lock()
		if l.users--; l.users == 0 {
			delete(p.locks, name)
		}
		p.mu.Unlock()
	}
	select {
	case l.ch <- struct{}{}:
		return func() { <-l.ch; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, internal(ctx.Err(), "another operation on %s is going on", name)
	}
}

// bell wakes a watch.
type bell struct {
	ring    chan struct{}
	changed map[providers.ClusterRef]bool // since it was last looked at
	all     bool                          // something is not as the notes have it
}

// notify rings every watch: something was done to a cluster. Where it went well, the notes tell what its nodes do now.
func (p *Provider) notify(ref providers.ClusterRef, well bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for b := range p.bells {
		b.changed[ref] = true
		b.all = b.all || !well
		select {
		case b.ring <- struct{}{}:
		default:
		}
	}
}

// answered takes what a bell rang for.
func (p *Provider) answered(b *bell) (changed map[providers.ClusterRef]bool, all bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	changed, all = b.changed, b.all || p.o.Shared
	b.changed, b.all = map[providers.ClusterRef]bool{}, false
	return changed, all
}

// handle is the provider's own part of a node.
type handle struct {
	Host    Host   `json:"host"`
	Socket  string `json:"socket"`
	Program string `json:"program"`
	Dir     string `json:"dir"`
}

// Transport gives the way to a node's agent: its socket, through the connection to the host.
func (p *Provider) Transport(ctx context.Context, n providers.Node) (providers.Transport, error) {
	var h handle
	if err := json.Unmarshal(n.Handle, &h); err != nil || h.Socket == "" || h.Host.Name == "" {
		return nil, providers.Errorf(providers.Invalid, providers.ScopeCloud, "ssh: node %s has no usable handle %q", n.ID, n.Handle)
	}
	x, err := p.now(h.Host)
	if err != nil {
		return nil, internal(err, "host %s", h.Host.Name)
	}
	return transport{x, h}, ctx.Err()
}

type transport struct {
	host *host
	h    handle
}

func (t transport) DialAgent(ctx context.Context) (net.Conn, error) {
	c, err := t.host.link.dialSocket(ctx, t.h.Program, t.h.Socket)
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", t.host.Name, err)
	}
	return c, nil
}

func (t transport) Close() error { return nil }

// node tells a node of a host as the core has it.
func node(h Host, addr string, n sharedhost.Node) providers.Node {
	raw, _ := json.Marshal(handle{Host: h, Socket: n.Socket, Program: n.Program, Dir: n.Dir})
	out := providers.Node{ID: n.ID, Rank: n.Rank, Cluster: providers.ClusterRef{Installation: n.Installation, Name: n.Cluster, Hash: n.Hash}, Token: n.Token,
		State: providers.NodeState(n.State), Reason: n.Reason, Region: h.Pool, InternalIP: n.IP, ExternalIP: addr, CreatedAt: n.Created,
		AgentAddr: "unix:" + n.Socket, Resources: n.Resources, Handle: raw}
	var spec providers.NodeSpec
	if json.Unmarshal(n.Spec, &spec) == nil && spec.Region != "" {
		out.Region = spec.Region
	}
	if n.Port > 0 {
		out.AgentAddr = "https://" + net.JoinHostPort(n.IP, fmt.Sprint(n.Port))
	}
	return out
}
