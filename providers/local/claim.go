package local

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/skyloom/skyloom/agent/claims"
	"github.com/skyloom/skyloom/agent/proctree"
	"github.com/skyloom/skyloom/providers"
)

// The records below Root tell which GPUs this folder's nodes hold. Other installations on the machine, of other users too, and nodes
// that a server brought up here by SSH are seen in the machine's ledger of claims, where nodes with GPUs stand as well. Their
// CPUs and memory are not claimed: nodes here share those.

// claimsLimit bounds the wait for the ledger; its holders need milliseconds.
const claimsLimit = 20 * time.Second

// ledger is the machine's ledger of claims, locked. Without one (l is nil) only this folder's own nodes are seen.
type ledger struct{ l *claims.Ledger }

// ledger opens the machine's ledger. If there can be none, it says so in the log.
func (p *Provider) ledger(ctx context.Context) ledger {
	ctx, cancel := context.WithTimeout(ctx, claimsLimit)
	defer cancel()
	dir, err := p.o.Claims, error(nil)
	if dir == "" {
		dir, err = claims.Dir()
	}
	if err == nil {
		var l *claims.Ledger
		if l, err = claims.Open(ctx, dir); err == nil {
			return ledger{l}
		}
	}
	p.log.Warn("local: GPUs that others on this machine hold are not seen", "err", err)
	return ledger{}
}

func (g ledger) close() {
	if g.l != nil {
		g.l.Close()
	}
}

// put writes down what nodes hold while holder lives, or what it starts.
func (g ledger) put(holder proctree.Proc, recs ...*record) error {
	for _, r := range recs {
		if g.l == nil || len(r.Devices) == 0 {
			continue
		}
		if err := g.l.Put(r.claim(holder)); err != nil {
			return internal(err, "claim the GPUs of node %s", r.ID)
		}
	}
	return nil
}

// release gives back what nodes hold.
func (g ledger) release(recs ...*record) error {
	for _, r := range recs {
		if g.l == nil || len(r.Devices) == 0 {
			continue
		}
		if err := g.l.Release(r.claim(proctree.Proc{})); err != nil {
			return internal(err, "release the GPUs of node %s", r.ID)
		}
	}
	return nil
}

// pick gives each of so many nodes devices that nobody holds. The ledger stays locked until it is closed, so that they can be claimed.
func (p *Provider) pick(ctx context.Context, m machine, all []*record, nodes int, s providers.NodeSpec) ([][]string, ledger, error) {
	var g ledger
	if devices(s) > 0 {
		g = p.ledger(ctx)
	}
	taken, err := g.taken(all)
	if err == nil {
		var out [][]string
		if out, err = pickGPUs(m, taken, nodes, s); err == nil {
			return out, g, nil
		}
	}
	g.close()
	return nil, ledger{}, err
}

// claim is what a node holds while its processes live; holder is one of them, or who starts them.
func (r *record) claim(holder proctree.Proc) claims.Claim {
	return claims.Claim{ID: r.ID, Installation: r.Cluster.Installation, Cluster: r.Cluster.Name, Hash: r.Cluster.Hash, Nodes: r.Nodes, User: r.User,
		GPUs: r.Devices, Dir: r.dir, Config: r.config(), Mark: r.mark(), Boot: claims.BootID(), Holder: holder, Isolated: r.Isolated, Since: time.Now().UTC()}
}

// changeClaim does f with the ledger, if the node has GPUs. What fails is a matter for the log: a claim counts while processes of
// its node live, whoever holds it.
func (p *Provider) changeClaim(r *record, f func(ledger) error) {
	if len(r.Devices) == 0 {
		return
	}
	g := p.ledger(context.Background())
	defer g.close()
	if err := f(g); err != nil {
		p.log.Warn("local: the claim of a node", "node", r.ID, "err", err)
	}
}

// taken tells who holds which devices: of all nodes of this folder those that shall run, and claims of others.
func (g ledger) taken(all []*record) (map[string]string, error) {
	taken := map[string]string{}
	own := map[string]bool{}
	for _, r := range all {
		own[r.dir] = true
		if r.Want != wantRunning {
			continue
		}
		for _, d := range r.Devices {
			taken[d] = r.Cluster.Name
		}
	}
	if g.l == nil {
		return taken, nil
	}
	live, err := g.l.Live()
	if err != nil {
		return nil, internal(err, "see which GPUs are free")
	}
	for _, c := range live {
		if own[c.Dir] {
			continue
		}
		for _, d := range c.GPUs {
			taken[d] = c.Cluster + " of another installation"
		}
	}
	return taken, nil
}

// pickGPUs gives each of so many nodes its devices, or says that some are taken.
func pickGPUs(m machine, taken map[string]string, nodes int, s providers.NodeSpec) ([][]string, error) {
	per := devices(s)
	out := make([][]string, nodes)
	if per == 0 {
		return out, nil
	}
	var free, holders []string
	for _, g := range m.gpus {
		if !strings.EqualFold(g.Name, s.Accelerator) {
			continue
		}
		if by := taken[g.ID]; by == "" {
			free = append(free, g.ID)
		} else if !slices.Contains(holders, by) {
			holders = append(holders, by)
		}
	}
	if len(free) < per*nodes {
		return nil, &providers.Error{Kind: providers.NoCapacity, Scope: providers.ScopeCloud,
			Msg:  fmt.Sprintf("local: %d × %s are asked for, %d are free; the rest is held by %s", per*nodes, s.Accelerator, len(free), strings.Join(holders, ", ")),
			Hint: "take down or stop a cluster that holds GPUs (`sky status`)"}
	}
	for i := range out {
		out[i], free = free[:per:per], free[per:]
	}
	return out, nil
}
