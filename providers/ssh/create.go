package ssh

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"sync"
	"time"

	"github.com/skyloom/skyloom/agent/sharedhost"
	"github.com/skyloom/skyloom/internal/failpoint"
	"github.com/skyloom/skyloom/providers"
)

// Moments at which a server may be killed.
var (
	fpNoted = failpoint.Register("ssh.create-after-note") // it is noted where nodes will be, none is made
	fpMade  = failpoint.Register("ssh.create-after-make") // nodes are made, that is not noted
	fpFreed = failpoint.Register("ssh.delete-after-free") // nodes are gone, that is not noted
)

// hedge is how long hosts are waited for before others are asked too.
const hedge = 700 * time.Millisecond

// Create brings up all nodes of a cluster, each on a host of its own, or none. A retry by the same token goes to the hosts
// that the first try noted down.
func (p *Provider) Create(ctx context.Context, req providers.CreateRequest) ([]providers.Node, error) {
	return p.create(ctx, req, req.AllRanks(), false)
}

// Extend makes nodes of further ranks on hosts that have none of the cluster, all or none.
func (p *Provider) Extend(ctx context.Context, req providers.CreateRequest, ranks []int) ([]providers.Node, error) {
	if err := req.CheckRanks(ranks); err != nil {
		return nil, err
	}
	return p.create(ctx, req, ranks, true)
}

func (p *Provider) create(ctx context.Context, req providers.CreateRequest, ranks []int, beside bool) (nodes []providers.Node, err error) {
	if err := p.valid(req); err != nil {
		return nil, err
	}
	hosts, err := p.pool(req.Spec.Region)
	if err != nil {
		return nil, err
	}
	unlock, err := p.lock(ctx, req.Cluster)
	if err != nil {
		return nil, err
	}
	defer unlock()
	defer func() { p.notify(req.Cluster, err == nil) }()
	n, err := p.existing(ctx, req, ranks, beside)
	if err != nil {
		return nil, err
	}
	b := &bringUp{p: p, ctx: ctx, req: req, ranks: ranks, beside: beside, n: n, hosts: hosts, failed: map[*link]bool{}}
	return b.run()
}

func (p *Provider) valid(req providers.CreateRequest) error {
	bad := func(format string, args ...any) error {
		return &providers.Error{Kind: providers.Invalid, Scope: providers.ScopeCloud, Msg: "ssh: " + fmt.Sprintf(format, args...), Hint: "`sky check ssh -v` tells what the pools' hosts have"}
	}
	s := req.Spec
	if err := checkRef(req.Cluster); err != nil {
		return err
	}
	switch {
	case req.Token == "" || req.NumNodes < 1 || req.NumNodes > 1000:
		return bad("create needs a token and 1 to 1000 nodes (got %d)", req.NumNodes)
	case s.InstanceType != "":
		return bad("there is no instance type %q: a node is a part of a host", s.InstanceType)
	case s.Zone != "":
		return bad("pools have no zones (asked for %q)", s.Zone)
	case s.ImageID != "":
		return bad("nodes run no images (asked for %q)", s.ImageID)
	case s.Spot:
		return bad("hosts are never spot machines")
	case s.CPUs <= 0 || s.MemoryGB <= 0:
		return bad("a node needs CPUs and memory (got %v and %v GB)", s.CPUs, s.MemoryGB)
	}
	return nil
}

// existing gives the note of an earlier call with this token, or a new one, and refuses what stands in the way.
func (p *Provider) existing(ctx context.Context, req providers.CreateRequest, ranks []int, beside bool) (*note, error) {
	conflict := func(format string, args ...any) error {
		return &providers.Error{Kind: providers.Conflict, Scope: providers.ScopeCloud, Msg: "ssh: " + fmt.Sprintf(format, args...), Hint: "delete the old nodes first"}
	}
	n := p.noteOf(req.Cluster)
	if n == nil && p.o.Shared && !p.isOver(req.Cluster.Installation, req.Cluster.NameOnCloud()) {
		var err error
		if n, err = p.discover(ctx, req.Cluster); err != nil {
			return nil, err
		}
	}
	switch {
	case n == nil && beside:
		return nil, p.nothing(req.Cluster, nil)
	case n == nil:
		n = &note{Ref: req.Cluster, Token: req.Token, Nodes: req.NumNodes, Spec: req.Spec, User: req.User, Created: time.Now().UTC(), Ranks: map[int]*noted{}}
	case beside:
		for _, rank := range ranks {
			if x := n.Ranks[rank]; x != nil && x.Node != nil && x.Node.Token != req.Token {
				return nil, conflict("cluster %s has node %s, made under another token", req.Cluster.NameOnCloud(), x.Node.ID)
			}
		}
		if n.Authority == nil && len(ranks) < req.NumNodes {
			return nil, &providers.Error{Kind: providers.Unsupported, Scope: providers.ScopeCloud, Msg: "ssh: cluster " + req.Cluster.NameOnCloud() + " was made with one node, which can't be reached by others",
				Hint: "make a new cluster of the size you need"}
		}
		n.Nodes = req.NumNodes
	case n.Token != req.Token:
		return nil, conflict("cluster %s has nodes made under another token", req.Cluster.NameOnCloud())
	case n.Nodes != req.NumNodes || string(asked(n.Spec)) != string(asked(req.Spec)):
		return nil, conflict("token %s was used for another request, for %d nodes of %s", req.Token, n.Nodes, req.Cluster.NameOnCloud())
	}
	if n.Authority == nil && req.NumNodes > 1 {
		a, err := newAuthority(req.Cluster.Name)
		if err != nil {
			return nil, internal(err, "make the cluster's keys")
		}
		n.Authority = a
	}
	return n, nil
}

// discover finds a cluster on the hosts themselves; nil if it is on none. It is for servers that share no notes.
func (p *Provider) discover(ctx context.Context, ref providers.ClusterRef) (*note, error) {
	found, silent, err := p.ask(ctx, ref.Tag())
	if err != nil {
		return nil, err
	}
	n := &note{Ref: ref, Ranks: map[int]*noted{}, Created: time.Now().UTC()}
	for _, f := range found {
		if f.node.Cluster != ref.Name {
			continue
		}
		x := f.node
		n.Token, n.Nodes, n.User = x.Token, x.Nodes, x.User
		n.Ranks[x.Rank] = &noted{Host: f.host.Host, Addr: f.host.target.Addr, Node: &x}
		if s, ok := specOf(x); ok {
			n.Spec = s
		}
	}
	if len(n.Ranks) == 0 {
		return nil, nil
	}
	if len(silent) > 0 {
		p.log.Warn("ssh: not every host could be asked for nodes of a cluster", "cluster", ref.NameOnCloud(), "silent", silent.String())
	}
	return n, nil
}

// bringUp is one create.
type bringUp struct {
	p     *Provider
	ctx   context.Context
	req   providers.CreateRequest
	ranks []int
	// beside says that the cluster has other nodes.
	beside bool
	n      *note
	hosts  []*host

	failed map[*link]bool // hosts that have said no
	why    reasons
	fresh  []int // ranks that this call made
	unfit  int   // hosts that never can
	down   int
	// contended are hosts that were full with claims of gangs that are being made too, with the first in rank of these.
	contended map[*host]string
	yields    int       // how often this create gave way
	waits     time.Time // for others to give way, since when
	expected  []func()  // each takes back what this create is expected to take of a host
}

func (b *bringUp) run() ([]providers.Node, error) {
	defer b.expectNothing()
	b.p.begins(b.req.Cluster)
	var again []attempt
	for _, rank := range b.ranks {
		x := b.n.Ranks[rank]
		if x == nil {
			continue
		}
		h, err := b.p.now(x.Host)
		if err != nil {
			return nil, internal(err, "host %s", x.Host.Name)
		}
		again = append(again, attempt{rank, h})
	}
	if len(again) > 0 {
		if err := b.make(again); err != nil {
			return nil, err
		}
	}
	for {
		var missing []int
		for _, rank := range b.ranks {
			if b.n.Ranks[rank] == nil {
				missing = append(missing, rank)
			}
		}
		if len(missing) == 0 {
			return b.done()
		}
		found := b.prepare(len(missing))
		if b.ctx.Err() != nil {
			return nil, internal(b.ctx.Err(), "create %s", b.req.Cluster.NameOnCloud())
		}
		if len(found) < len(missing) {
			if b.contend() {
				continue
			}
			return nil, b.giveUp()
		}
		var tries []attempt
		for i, h := range found {
			tries = append(tries, attempt{missing[i], h})
			b.n.Ranks[missing[i]] = &noted{Host: h.Host, Addr: h.target.Addr}
		}
		if err := b.p.keep(b.n); err != nil {
			return nil, err
		}
		if err := failpoint.Hit(fpNoted); err != nil {
			return nil, internal(err, "create %s", b.req.Cluster.NameOnCloud())
		}
		if err := b.make(tries); err != nil {
			return nil, err
		}
	}
}

func (b *bringUp) done() ([]providers.Node, error) {
	if err := failpoint.Hit(fpMade); err != nil {
		return nil, internal(err, "create %s", b.req.Cluster.NameOnCloud())
	}
	if err := b.p.keep(b.n); err != nil {
		return nil, err
	}
	var out []providers.Node
	for _, rank := range b.ranks {
		x := b.n.Ranks[rank]
		out = append(out, node(x.Host, x.Addr, *x.Node))
	}
	if len(b.n.Maybe) > 0 {
		go b.p.strays(context.WithoutCancel(b.ctx), b.req.Cluster)
	}
	return out, nil
}

// taken are the hosts that have a node of the cluster, or may have.
func (b *bringUp) taken() map[*link]bool {
	out := map[*link]bool{}
	for _, h := range b.n.hosts() {
		if x, err := b.p.now(h); err == nil {
			out[x.link] = true
		}
	}
	return out
}

// prepare finds hosts, as many as are needed, that answer and have our program. More are asked when some let wait.
func (b *bringUp) prepare(need int) []*host {
	taken := b.taken()
	var pick []*host
	var cands []candidate
	for _, h := range b.hosts {
		if taken[h.link] || b.failed[h.link] {
			continue
		}
		taken[h.link] = true // a machine of two names counts once
		info, _, err, when, _ := h.state.snapshot()
		if time.Since(when) > fresh {
			err = nil
		}
		pick, cands = append(pick, h), append(cands, candidate{h.Name, info, err, h.state.awaited()})
	}
	try, never := order(cands, b.req.Spec)
	for i, h := range pick {
		if why, ok := never[i]; ok {
			b.refuse(h, why, true)
		}
	}
	type answer struct {
		i   int
		err error
	}
	answers := make(chan answer, len(try))
	next, open := 0, 0
	ask := func(n int) {
		for ; n > 0 && next < len(try); n-- {
			i := try[next]
			next++
			open++
			b.expected = append(b.expected, pick[i].state.expect(b.req.Spec))
			go func() {
				_, err := pick[i].link.broughtUp(b.ctx, b.agent(), true)
				answers <- answer{i, err}
			}()
		}
	}
	ask(need)
	var got []int
	timer := time.NewTimer(hedge)
	defer timer.Stop()
	for len(got) < need && open > 0 {
		select {
		case a := <-answers:
			open--
			switch {
			case a.err == nil:
				got = append(got, a.i)
			case b.ctx.Err() != nil:
				return nil
			default:
				pick[a.i].state.fail(a.err)
				b.refuse(pick[a.i], a.err.Error(), false)
				b.down++
				ask(1)
			}
		case <-timer.C:
			ask(need - len(got))
			timer.Reset(hedge)
		case <-b.ctx.Done():
			return nil
		}
	}
	sort.Ints(got) // ranks follow the order of the file
	var out []*host
	for _, i := range got {
		out = append(out, pick[i])
	}
	return out
}

func (b *bringUp) expectNothing() {
	for _, f := range b.expected {
		f()
	}
	b.expected = nil
}

func (b *bringUp) agent() providers.AgentSource {
	if b.req.Agent != nil {
		return b.req.Agent
	}
	return b.p.o.Agent
}

func (b *bringUp) refuse(h *host, why string, never bool) {
	if b.failed[h.link] {
		return
	}
	b.failed[h.link] = true
	b.why.add(h.Name, why)
	if never {
		b.unfit++
	}
}

// attempt is a rank on a host.
type attempt struct {
	rank int
	host *host
}

// make has hosts make their nodes, all at once. Ranks whose host says no are free again afterwards.
func (b *bringUp) make(tries []attempt) error {
	type result struct {
		reply sharedhost.Reply
		sent  bool
		err   error
	}
	results := make([]result, len(tries))
	var wg sync.WaitGroup
	for i, a := range tries {
		wg.Go(func() { results[i].reply, results[i].sent, results[i].err = b.one(a) })
	}
	wg.Wait()
	var fatal error
	for i, a := range tries {
		r := results[i]
		known := b.n.Ranks[a.rank] != nil && b.n.Ranks[a.rank].Node != nil
		var said *sharedhost.Error
		switch {
		case r.err == nil && len(r.reply.Nodes) == 1:
			n := r.reply.Nodes[0]
			b.n.Ranks[a.rank] = &noted{Host: a.host.Host, Addr: a.host.target.Addr, Node: &n}
			if !n.Adopted {
				b.fresh = append(b.fresh, a.rank)
			}
		case errors.As(r.err, &said):
			switch said.Kind {
			case sharedhost.KindConflict:
				fatal = &providers.Error{Kind: providers.Conflict, Scope: providers.ScopeCloud, Msg: "ssh: host " + a.host.Name + ": " + said.Msg, Hint: "delete the old nodes first"}
			case sharedhost.KindInvalid:
				fatal = providers.Errorf(providers.Invalid, providers.ScopeCloud, "ssh: host %s: %s", a.host.Name, said.Msg)
			}
			delete(b.n.Ranks, a.rank)
			b.refuse(a.host, said.Msg, said.Kind == sharedhost.KindUnfit)
			if rival := rivalOf(r.reply.Info); said.Kind == sharedhost.KindFull && rival != "" {
				if b.contended == nil {
					b.contended = map[*host]string{}
				}
				b.contended[a.host] = rival
			}
		case known:
			// The node was made by an earlier try: where its host is silent nobody knows what it does.
			fatal = &providers.Error{Kind: providers.UnknownOutcome, Scope: providers.ScopeCloud, Msg: fmt.Sprintf("ssh: host %s, which has node %d, does not answer", a.host.Name, a.rank), Err: r.err}
		case b.ctx.Err() != nil:
			fatal = &providers.Error{Kind: providers.UnknownOutcome, Scope: providers.ScopeCloud, Msg: "ssh: host " + a.host.Name + " was asked to make a node and has not answered", Err: b.ctx.Err()}
		default:
			if r.err == nil {
				r.err = errors.New("its answer names no node")
			}
			delete(b.n.Ranks, a.rank)
			if r.sent {
				b.n.Maybe = append(b.n.Maybe, a.host.Host)
			}
			b.refuse(a.host, "it fell silent: "+r.err.Error(), false)
			b.down++
		}
	}
	if err := b.p.keep(b.n); err != nil && fatal == nil {
		fatal = err
	}
	return fatal
}

// one has one host make its node, again if it falls silent meanwhile. Sent says that it may have been made.
func (b *bringUp) one(a attempt) (r sharedhost.Reply, sent bool, err error) {
	s := b.req.Spec
	req := sharedhost.Request{Installation: b.req.Cluster.Installation, Cluster: b.req.Cluster.Name, Hash: b.req.Cluster.Hash, Token: b.req.Token,
		Create: &sharedhost.Create{ID: nodeID(b.req.Cluster, a.rank), Rank: a.rank, Nodes: b.req.NumNodes, User: b.req.User, Spec: asked(s), CPUs: s.CPUs, MemoryGB: s.MemoryGB,
			Accelerator: s.Accelerator, AcceleratorCount: s.AcceleratorCount, Tune: b.p.o.Tune, Env: b.p.o.Env}}
	if b.n.Authority != nil {
		keys, err := b.n.Authority.issue(nodeID(b.req.Cluster, a.rank))
		if err != nil {
			return r, false, err
		}
		req.TLS = keys
	}
	for try := 0; ; try++ {
		r, err = b.p.call(b.ctx, a.host, b.req.Agent, sharedhost.VerbCreate, req)
		var said *sharedhost.Error
		var quiet *silent
		sent = sent || errors.As(err, &quiet)
		if err == nil || errors.As(err, &said) || try == 2 || b.ctx.Err() != nil {
			return r, sent, err
		}
		select {
		case <-b.ctx.Done():
		case <-time.After(dialAgain):
		}
	}
}

// release removes what this create made, and forgets what it noted down.
func (b *bringUp) release() error {
	ref := b.req.Cluster
	var err error
	if len(b.fresh) > 0 {
		var ids []string
		for _, rank := range b.fresh {
			ids = append(ids, nodeID(ref, rank))
		}
		if err = b.p.deleteLocked(context.WithoutCancel(b.ctx), ref, ids); providers.Is(err, providers.NotFound) {
			err = nil
		}
	}
	if b.n = b.p.noteOf(ref); b.n == nil {
		b.p.over(ref)
	}
	return err
}

// giveUp removes what this call made and says why there is no room.
func (b *bringUp) giveUp() error {
	if err := b.release(); err != nil {
		b.p.log.Warn("ssh: nodes of a create that failed are left for now", "cluster", b.req.Cluster.NameOnCloud(), "err", err)
	}
	// The hosts that said nothing: they would take a node, or are known to be full.
	for _, h := range b.hosts {
		if b.failed[h.link] {
			continue
		}
		b.failed[h.link] = true
		why := "it could take one"
		if info, _, _, _, _ := h.state.snapshot(); info != nil && !room(info, b.req.Spec) {
			why = full(info, b.req.Spec)
		}
		b.why.add(h.Name, why)
	}
	kind := providers.NoCapacity
	if b.down == 0 && b.unfit == len(b.hosts) {
		kind = providers.Invalid
	}
	one := "node"
	if b.req.NumNodes > 1 {
		one = fmt.Sprintf("%d nodes", b.req.NumNodes)
	}
	msg := fmt.Sprintf("ssh/%s has no room for %s of %s", b.req.Spec.Region, one, describe(b.req.Spec))
	if len(b.hosts) < b.req.NumNodes {
		msg = fmt.Sprintf("ssh/%s has %d host(s), %d nodes need as many", b.req.Spec.Region, len(b.hosts), b.req.NumNodes)
	}
	if s := b.why.String(); s != "" {
		msg += ": " + s
	}
	return &providers.Error{Kind: kind, Scope: providers.ScopeRegion, Msg: msg, Hint: "`sky ssh up --infra " + b.req.Spec.Region + "` tells the state of every host; `sky status` which clusters hold what"}
}

func describe(s providers.NodeSpec) string {
	d := fmt.Sprintf("%v CPUs and %v GB of memory", s.CPUs, s.MemoryGB)
	if n := devices(s); n > 0 {
		d += fmt.Sprintf(" with %s:%d", s.Accelerator, n)
	}
	return d
}
