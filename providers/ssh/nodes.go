package ssh

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skyloom/skyloom/agent/sharedhost"
	"github.com/skyloom/skyloom/internal/failpoint"
	"github.com/skyloom/skyloom/providers"
)

// found is a node and the host that told of it.
type found struct {
	host *host
	node sharedhost.Node
}

// silences are the hosts that did not answer, and why.
type silences map[*host]error

func (s silences) String() string {
	var out []string
	for h, err := range s {
		out = append(out, h.Name+": "+err.Error())
	}
	slices.Sort(out)
	return strings.Join(out, "; ")
}

// listLimit is how long a listing waits for a host. It is short of what a dead connection takes to be noticed.
const listLimit = 8 * time.Second

func specOf(n sharedhost.Node) (s providers.NodeSpec, ok bool) {
	return s, json.Unmarshal(n.Spec, &s) == nil
}

// ask lists nodes under a tag: of one cluster on the hosts that its note names, else on every host.
func (p *Provider) ask(ctx context.Context, tag providers.Tag) ([]found, silences, error) {
	var hosts []*host
	if notes := p.matching(tag); tag.ClusterHash != "" && len(notes) > 0 && !p.o.Shared {
		seen := map[*link]bool{}
		for _, n := range notes {
			for _, h := range n.hosts() {
				x, err := p.now(h)
				if err != nil {
					return nil, nil, internal(err, "host %s", h.Name)
				}
				if !seen[x.link] {
					seen[x.link] = true
					hosts = append(hosts, x)
				}
			}
		}
	} else {
		all, err := p.every()
		if err != nil {
			return nil, nil, err
		}
		hosts = all
	}
	var mu sync.Mutex
	var out []found
	silent := silences{}
	each(hosts, func(_ int, h *host) {
		hctx, cancel := context.WithTimeout(ctx, listLimit)
		defer cancel()
		r, err := p.call(hctx, h, nil, sharedhost.VerbList, sharedhost.Request{Installation: tag.Installation, Hash: tag.ClusterHash})
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			silent[h] = err
			return
		}
		for _, n := range r.Nodes {
			out = append(out, found{h, n})
		}
	})
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	return out, silent, nil
}

// List returns every node under the tag. Nodes of hosts that do not answer are told as they were last known.
func (p *Provider) List(ctx context.Context, tag providers.Tag) ([]providers.Node, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if tag.ClusterHash != "" && p.isOver(tag.Installation, "/"+tag.ClusterHash) {
		return []providers.Node{}, nil
	}
	began := time.Now()
	answers, silent, err := p.ask(ctx, tag)
	if err != nil {
		return nil, internal(err, "list nodes")
	}
	out := []providers.Node{}
	told := map[string]bool{}
	stray := map[providers.ClusterRef]bool{}
	for _, f := range answers {
		ref := providers.ClusterRef{Installation: f.node.Installation, Name: f.node.Cluster, Hash: f.node.Hash}
		n := p.noteOf(ref)
		if n != nil && n.misplaced(f) {
			stray[ref] = true
			continue
		}
		p.found(ref, began)
		told[f.node.ID] = true
		at := f.host.Host
		if n != nil && n.Ranks[f.node.Rank] != nil {
			at = n.Ranks[f.node.Rank].Host
		}
		out = append(out, node(at, f.host.target.Addr, f.node))
	}
	for ref := range stray {
		go p.strays(context.WithoutCancel(ctx), ref)
	}
	for _, n := range p.matching(tag) {
		for _, x := range n.Ranks {
			h, err := p.now(x.Host)
			if err != nil || x.Node == nil || told[x.Node.ID] {
				continue
			}
			why, quiet := silent.of(h)
			if !quiet {
				continue // its host says that it is not there
			}
			last := *x.Node
			if !p.listed(x.Host) {
				last.State, last.Reason = sharedhost.StateGone, "its host "+x.Host.Name+" was taken out of the pools file, and does not answer"
				out = append(out, node(x.Host, x.Addr, last))
				continue
			}
			last.Reason = strings.TrimSuffix("as last known; host "+x.Host.Name+" does not answer: "+why.Error(), ".")
			out = append(out, node(x.Host, x.Addr, last))
		}
	}
	if tag.ClusterHash != "" && len(silent) > 0 && len(p.matching(tag)) == 0 {
		return nil, &providers.Error{Kind: providers.Internal, Scope: providers.ScopeCloud, Msg: "ssh: hosts that may have nodes of the cluster do not answer: " + silent.String(),
			Hint: "bring them back, or take them out of the pools file"}
	}
	p.remember(answers)
	return out, nil
}

func (s silences) of(h *host) (error, bool) {
	for x, err := range s {
		if x.link == h.link {
			return err, true
		}
	}
	return nil, false
}

// misplaced says that a node stands where another took its place meanwhile.
func (n *note) misplaced(f found) bool {
	x := n.Ranks[f.node.Rank]
	if x == nil || f.node.Token != n.Token {
		return false
	}
	if x.Host.Name == f.host.Name && x.Host.Pool == f.host.Pool {
		return false
	}
	return slices.ContainsFunc(n.Maybe, func(h Host) bool { return h.Name == f.host.Name && h.Pool == f.host.Pool })
}

// remember notes down what is now known of nodes, for the time when a host is silent.
func (p *Provider) remember(answers []found) {
	for _, f := range answers {
		ref := providers.ClusterRef{Installation: f.node.Installation, Name: f.node.Cluster, Hash: f.node.Hash}
		n := p.noteOf(ref)
		if n == nil {
			continue
		}
		x := n.Ranks[f.node.Rank]
		if x == nil || x.Node == nil || x.Node.ID != f.node.ID || x.Node.State == f.node.State && x.Node.Socket == f.node.Socket && x.Node.Port == f.node.Port {
			continue
		}
		p.mu.Lock()
		busy := p.locks[ref.NameOnCloud()] != nil
		p.mu.Unlock()
		if busy {
			continue // whoever works on it notes it down
		}
		y := *x
		m := f.node
		y.Node = &m
		n.Ranks[f.node.Rank] = &y
		if err := p.keep(n); err != nil {
			p.log.Warn("ssh: a node's state was not noted down", "node", m.ID, "err", err)
		}
	}
}

// strays removes nodes whose host fell silent while they were made, once it answers.
func (p *Provider) strays(ctx context.Context, ref providers.ClusterRef) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	unlock, err := p.lock(ctx, ref)
	if err != nil {
		return
	}
	defer unlock()
	n := p.noteOf(ref)
	if n == nil {
		return
	}
	var left []Host
	for _, m := range n.Maybe {
		h, err := p.now(m)
		if err == nil {
			_, err = p.call(ctx, h, nil, sharedhost.VerbDelete, sharedhost.Request{Installation: ref.Installation, Cluster: ref.Name, Hash: ref.Hash})
		}
		if err != nil && !notFound(err) {
			left = append(left, m)
		}
	}
	n.Maybe = left
	if err := p.keep(n); err != nil {
		p.log.Warn("ssh: strays", "cluster", ref.NameOnCloud(), "err", err)
	}
}

func notFound(err error) bool {
	var said *sharedhost.Error
	return errors.As(err, &said) && said.Kind == sharedhost.KindNotFound
}

// Delete ends nodes for good and removes their files. It answers once their processes are gone. A host that does not answer
// makes it fail: nobody knows then what runs there.
func (p *Provider) Delete(ctx context.Context, ref providers.ClusterRef, nodeIDs []string) (err error) {
	if err := checkRef(ref); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	unlock, err := p.lock(ctx, ref)
	if err != nil {
		return err
	}
	defer unlock()
	defer func() { p.notify(ref, err == nil || providers.Is(err, providers.NotFound)) }()
	return p.deleteLocked(ctx, ref, nodeIDs)
}

func (p *Provider) nothing(ref providers.ClusterRef, ids []string) error {
	what := "no nodes"
	if len(ids) > 0 {
		what = "no node " + strings.Join(ids, ", ")
	}
	return providers.Errorf(providers.NotFound, providers.ScopeCloud, "ssh: cluster %s has %s", ref.NameOnCloud(), what)
}

// members are the hosts to be asked for a cluster's nodes, with the ids that the request is about on each; ids are nil where
// any will do. Known says that the note tells them.
func (p *Provider) members(ref providers.ClusterRef, ids []string) (hosts []*host, n *note, err error) {
	if p.isOver(ref.Installation, ref.NameOnCloud()) {
		return nil, nil, p.nothing(ref, ids)
	}
	if n = p.noteOf(ref); n != nil && !p.o.Shared {
		seen := map[*link]bool{}
		add := func(h Host) error {
			x, err := p.now(h)
			if err == nil && !seen[x.link] {
				seen[x.link] = true
				hosts = append(hosts, x)
			}
			return err
		}
		for rank, x := range n.Ranks {
			if len(ids) == 0 || slices.Contains(ids, nodeID(ref, rank)) {
				if err := add(x.Host); err != nil {
					return nil, nil, internal(err, "host %s", x.Host.Name)
				}
			}
		}
		if len(ids) == 0 {
			for _, h := range n.Maybe {
				if err := add(h); err != nil {
					return nil, nil, internal(err, "host %s", h.Name)
				}
			}
		}
		if len(hosts) == 0 {
			return nil, nil, p.nothing(ref, ids)
		}
		return hosts, n, nil
	}
	hosts, err = p.every()
	return hosts, n, err
}

func (p *Provider) deleteLocked(ctx context.Context, ref providers.ClusterRef, ids []string) error {
	hosts, n, err := p.members(ref, ids)
	if err != nil {
		return err
	}
	errs := make([]error, len(hosts))
	each(hosts, func(i int, h *host) {
		_, errs[i] = p.call(ctx, h, nil, sharedhost.VerbDelete, sharedhost.Request{Installation: ref.Installation, Cluster: ref.Name, Hash: ref.Hash, IDs: ids})
	})
	if err := failpoint.Hit(fpFreed); err != nil {
		return internal(err, "delete %s", ref.NameOnCloud())
	}
	any := false
	var left []string
	var first error
	for i, err := range errs {
		if err == nil || notFound(err) {
			any = any || err == nil
			if n != nil {
				n.forget(p, hosts[i], ref, ids)
			}
			continue
		}
		var u *unreachable
		if n != nil && errors.As(err, &u) && !p.listed(hosts[i].Host) {
			p.log.Warn("ssh: a host that was taken out of the pools file does not answer: its nodes are given up", "host", hosts[i].Name, "cluster", ref.NameOnCloud())
			n.forget(p, hosts[i], ref, ids)
			continue
		}
		left = append(left, hosts[i].Name+": "+err.Error())
		if first == nil {
			first = err
		}
	}
	if n != nil {
		if err := p.keep(n); err != nil {
			return err
		}
	}
	if first != nil {
		if ctx.Err() != nil {
			return &providers.Error{Kind: providers.UnknownOutcome, Scope: providers.ScopeCloud, Msg: "ssh: the deletion of " + ref.NameOnCloud() + " goes on", Err: ctx.Err()}
		}
		slices.Sort(left)
		return &providers.Error{Kind: providers.Internal, Scope: providers.ScopeCloud, Hint: hint(first, "bring the host back, or take it out of the pools file if it is gone for good; `sky down --purge` gives up on it at once"),
			Msg: fmt.Sprintf("ssh: nodes of %s may be left on %d host(s): %s", ref.NameOnCloud(), len(left), strings.Join(left, "; "))}
	}
	if n == nil && len(ids) == 0 || n != nil && len(n.Ranks) == 0 && len(n.Maybe) == 0 {
		p.over(ref)
	}
	if !any {
		return p.nothing(ref, ids)
	}
	return nil
}

func hint(err error, def string) string {
	if h := hintOf(err); h != "" {
		return h
	}
	return def
}

// forget drops from a note what is gone from a host.
func (n *note) forget(p *Provider, h *host, ref providers.ClusterRef, ids []string) {
	for rank, x := range n.Ranks {
		if y, err := p.now(x.Host); err == nil && y.link == h.link && (len(ids) == 0 || slices.Contains(ids, nodeID(ref, rank))) {
			delete(n.Ranks, rank)
		}
	}
	if len(ids) == 0 {
		n.Maybe = slices.DeleteFunc(n.Maybe, func(m Host) bool {
			y, err := p.now(m)
			return err == nil && y.link == h.link
		})
	}
}

// Stop ends the nodes' processes and keeps their files; what they hold is given back.
func (p *Provider) Stop(ctx context.Context, ref providers.ClusterRef, nodeIDs []string) error {
	_, err := p.change(ctx, ref, nodeIDs, sharedhost.VerbStop, "", nil)
	return err
}

// Start brings stopped nodes back where their files are, if there is room; all or none.
func (p *Provider) Start(ctx context.Context, ref providers.ClusterRef, token string, src providers.AgentSource) ([]providers.Node, error) {
	return p.change(ctx, ref, nil, sharedhost.VerbStart, token, src)
}

func (p *Provider) change(ctx context.Context, ref providers.ClusterRef, ids []string, verb, token string, src providers.AgentSource) (nodes []providers.Node, err error) {
	if err := checkRef(ref); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	unlock, err := p.lock(ctx, ref)
	if err != nil {
		return nil, err
	}
	defer unlock()
	defer func() { p.notify(ref, err == nil || providers.Is(err, providers.NotFound)) }()
	hosts, n, err := p.members(ref, ids)
	if err != nil {
		return nil, err
	}
	req := sharedhost.Request{Installation: ref.Installation, Cluster: ref.Name, Hash: ref.Hash, IDs: ids, Token: token}
	replies := make([]sharedhost.Reply, len(hosts))
	errs := make([]error, len(hosts))
	each(hosts, func(i int, h *host) { replies[i], errs[i] = p.call(ctx, h, src, verb, req) })
	var out []providers.Node
	var woken []string
	for i, r := range replies {
		for _, x := range r.Nodes {
			at := hosts[i].Host
			if n != nil && n.Ranks[x.Rank] != nil {
				at = n.Ranks[x.Rank].Host
				m := x
				n.Ranks[x.Rank] = &noted{Host: at, Addr: hosts[i].target.Addr, Node: &m}
			}
			if !x.Adopted {
				woken = append(woken, x.ID)
			}
			out = append(out, node(at, hosts[i].target.Addr, x))
		}
	}
	err = p.verdict(ctx, ref, verb, hosts, errs)
	if err != nil && verb == sharedhost.VerbStart && len(woken) > 0 {
		// All or none.
		req.IDs, req.Token = woken, ""
		each(hosts, func(i int, h *host) {
			if errs[i] == nil {
				if _, err := p.call(context.WithoutCancel(ctx), h, nil, sharedhost.VerbStop, req); err != nil && !notFound(err) {
					p.log.Warn("ssh: a node that was started again goes on", "cluster", ref.NameOnCloud(), "host", h.Name, "err", err)
				}
			}
		})
		if n != nil {
			for _, x := range n.Ranks {
				if x.Node != nil && slices.Contains(woken, x.Node.ID) {
					x.Node.State = sharedhost.StateStopped
				}
			}
		}
	}
	if n != nil {
		if kerr := p.keep(n); kerr != nil && err == nil {
			err = kerr
		}
	}
	if err != nil {
		return nil, err
	}
	if len(out) == 0 {
		return nil, p.nothing(ref, ids)
	}
	slices.SortFunc(out, func(a, b providers.Node) int { return a.Rank - b.Rank })
	return out, nil
}

// verdict makes one error of what the hosts said.
func (p *Provider) verdict(ctx context.Context, ref providers.ClusterRef, verb string, hosts []*host, errs []error) error {
	var full, other []string
	var worst error
	kind := providers.Internal
	for i, err := range errs {
		var said *sharedhost.Error
		switch {
		case err == nil, notFound(err):
			continue
		case errors.As(err, &said) && (said.Kind == sharedhost.KindFull || said.Kind == sharedhost.KindUnfit || said.Kind == sharedhost.KindDisk):
			full = append(full, hosts[i].Name+": "+said.Msg)
			continue
		case errors.As(err, &said) && said.Kind == sharedhost.KindConflict:
			kind = providers.Conflict
		}
		other = append(other, hosts[i].Name+": "+err.Error())
		if worst == nil {
			worst = err
		}
	}
	slices.Sort(full)
	slices.Sort(other)
	switch {
	case len(full)+len(other) == 0:
		return nil
	case ctx.Err() != nil:
		return &providers.Error{Kind: providers.UnknownOutcome, Scope: providers.ScopeCloud, Msg: "ssh: the " + verb + " of " + ref.NameOnCloud() + " goes on", Err: ctx.Err()}
	case len(other) > 0:
		return &providers.Error{Kind: kind, Scope: providers.ScopeCloud, Msg: fmt.Sprintf("ssh: %s of %s: %s", verb, ref.NameOnCloud(), strings.Join(append(other, full...), "; ")),
			Hint: hint(worst, "`sky ssh up` tells the state of every host")}
	}
	return &providers.Error{Kind: providers.NoCapacity, Scope: providers.ScopeRegion,
		Msg:  fmt.Sprintf("ssh: %s gave its share back when it stopped, and there is no room for it now on its host(s), where its files are: %s", ref.Name, strings.Join(full, "; ")),
		Hint: "it stays stopped; start it again when a cluster that holds the share has ended (`sky start --retry-until-up` waits)"}
}
