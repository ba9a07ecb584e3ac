package ssh

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/skyloom/skyloom/agent/sharedhost"
	"github.com/skyloom/skyloom/providers"
)

var _ providers.HostKeeper = (*Provider)(nil)

// AddPools takes pools from a user's file into the server's.
func (p *Provider) AddPools(_ context.Context, file string, data []byte) ([]string, error) {
	if err := os.MkdirAll(p.o.Home, 0o700); err != nil {
		return nil, internal(err, "write the pools file")
	}
	names, err := MergePools(p.o.Home, p.o.UserHome, file, data)
	if err != nil {
		return nil, &providers.Error{Kind: providers.Invalid, Scope: providers.ScopeCloud, Msg: err.Error()}
	}
	p.refresh()
	return names, nil
}

// named gives the hosts of pools; none named: of all.
func (p *Provider) named(names []string) ([]*host, error) {
	p.refresh()
	pools, _, err := p.load()
	if err != nil {
		return nil, &providers.Error{Kind: providers.Invalid, Scope: providers.ScopeCloud, Msg: err.Error(), Hint: "correct the file"}
	}
	if len(names) == 0 {
		names = pools.Names()
	}
	if len(names) == 0 {
		return nil, &providers.Error{Kind: providers.Invalid, Scope: providers.ScopeCloud, Msg: "there are no SSH node pools",
			Hint: "list your machines in " + p.o.Home + "/" + PoolsFile + ", or name a file: sky ssh up -f FILE"}
	}
	var out []*host
	for _, n := range names {
		hosts, err := p.pool(n)
		if err != nil {
			return nil, err
		}
		out = append(out, hosts...)
	}
	return out, nil
}

// PrepareHosts checks hosts and brings them the agent's program.
func (p *Provider) PrepareHosts(ctx context.Context, pools []string) ([]providers.HostReport, error) {
	hosts, err := p.named(pools)
	if err != nil {
		return nil, err
	}
	out := make([]providers.HostReport, len(hosts))
	each(hosts, func(i int, h *host) {
		r := providers.HostReport{Pool: h.Pool, Host: h.Name}
		h.link.again()
		reply, err := p.call(ctx, h, nil, sharedhost.VerbProbe, sharedhost.Request{Fresh: true})
		if err != nil {
			r.Reason, r.Hint = err.Error(), hintOf(err)
		} else {
			n := reply.Info
			r.OK, r.Reason, r.Arch, r.CPUs, r.MemoryGB, r.FreeCPUs, r.FreeMemoryGB, r.GPUs = true, reply.Note, n.Arch, n.CPUs, n.MemoryGB, n.FreeCPUs, n.FreeMemoryGB, gpusOf(n)
			if n.GPUError != "" {
				r.Reason = strings.TrimPrefix(r.Reason+"; its GPUs can't be told: "+n.GPUError, "; ")
			}
			if noDisk(n) {
				r.OK, r.Reason = false, fmt.Sprintf("no space left on its disk (%.2f GB are free)", n.DiskFreeGB)
			} else if n.DiskFreeGB < lowDiskGB && !n.Untouched {
				r.Reason = strings.TrimPrefix(r.Reason+fmt.Sprintf("; only %.1f GB of its disk are free", n.DiskFreeGB), "; ")
			}
		}
		out[i] = r
	})
	return out, ctx.Err()
}

// Free space below which a host is warned about, and below which it can take no node.
const (
	lowDiskGB = 1
	noDiskGB  = 0.02
)

// CleanHosts removes every trace from hosts.
func (p *Provider) CleanHosts(ctx context.Context, installation string, pools []string) ([]providers.HostReport, error) {
	hosts, err := p.named(pools)
	if err != nil {
		return nil, err
	}
	// Asked on the hosts: what is only noted, of one that does not answer, is no reason to leave the others as they are.
	var mu sync.Mutex
	var mine []string
	each(hosts, func(_ int, h *host) {
		lctx, cancel := context.WithTimeout(ctx, listLimit)
		defer cancel()
		r, err := p.call(lctx, h, nil, sharedhost.VerbList, sharedhost.Request{Installation: installation})
		if err != nil {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		for _, n := range r.Nodes {
			if !slices.Contains(mine, n.Cluster) {
				mine = append(mine, n.Cluster)
			}
		}
	})
	if len(mine) > 0 {
		slices.Sort(mine)
		return nil, &providers.Error{Kind: providers.Conflict, Scope: providers.ScopeCloud, Msg: "clusters have nodes on these hosts: " + strings.Join(mine, ", "),
			Hint: "take them down first: sky down " + strings.Join(mine, " ")}
	}
	out := make([]providers.HostReport, len(hosts))
	each(hosts, func(i int, h *host) {
		r := providers.HostReport{Pool: h.Pool, Host: h.Name}
		h.link.again()
		reply, err := p.call(ctx, h, nil, sharedhost.VerbClean, sharedhost.Request{Installation: installation})
		switch {
		case err != nil:
			r.Reason, r.Hint = err.Error(), hintOf(err)
		case len(reply.Kept) > 0:
			r.Reason, r.Hint = "kept: "+strings.Join(reply.Kept, "; "), "take those clusters down on the server they belong to"
		default:
			r.OK, r.Reason = true, reply.Note
		}
		h.link.drop(nil)
		h.state.forget()
		out[i] = r
	})
	return out, ctx.Err()
}
