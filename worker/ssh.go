package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/cluster"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/providers"
)

// sshAskTime bounds how long one node is asked for its host key when a whole cluster's are wanted.
const sshAskTime = 5 * time.Second

// sshCluster is what reaching the SSH servers of a cluster needs.
type sshCluster struct {
	name     string
	data     activities.WatchRow
	provider providers.Provider
}

// findSSH finds a cluster whose nodes can be reached.
func (b *backend) findSSH(ctx context.Context, name string) (sshCluster, error) {
	c := sshCluster{name: name}
	row, err := b.store.Cluster(ctx, name)
	if errors.Is(err, store.ErrNotFound) {
		return c, cluster.NoCluster(name)
	} else if err != nil {
		return c, err
	}
	w, err := b.store.Watch(ctx, row.Hash)
	if errors.Is(err, store.ErrNotFound) {
		return c, cluster.NotUp(row)
	} else if err != nil {
		return c, err
	}
	if err := json.Unmarshal(w.Data, &c.data); err != nil {
		return c, err
	}
	if c.data.Provisioning {
		return c, cluster.NotUp(row)
	}
	c.provider, err = b.acts.Providers.Get(c.data.Provider)
	return c, err
}

func hostOf(n providers.Node) api.SSHHost {
	h := api.SSHHost{Rank: n.Rank, Node: api.NodeName(n.Rank), IP: n.ExternalIP}
	if h.IP == "" {
		h.IP = n.InternalIP
	}
	return h
}

// sshPin is what the server keeps of a node's SSH server.
type sshPin struct {
	HostKey string `json:"host_key"`
	User    string `json:"user"`
}

// pin gives the host key that a node has to show: the one it showed first since the cluster's last bring-up. It is kept
// among the secrets of the incarnation, though it is none, and goes with them. The first to write it wins, also among
// several servers.
func (b *backend) pin(ctx context.Context, c sshCluster, n providers.Node, client *agentapi.Client) (sshPin, error) {
	var p sshPin
	ref := c.data.Ref
	id := fmt.Sprintf("ssh-host/%s/%d/%s", ref.Hash, c.data.Epoch, n.ID)
	kept, err := b.store.GetSecret(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		h, err := client.SSHHost(ctx)
		if err != nil {
			return p, sshTrouble(c, n, err)
		}
		fresh, _ := json.Marshal(sshPin{h.HostKey, h.User})
		if err := b.store.PutSecret(ctx, id, activities.ClusterScope(ref.Hash), fresh); err != nil {
			return p, err
		}
		if kept, err = b.store.GetSecret(ctx, id); err != nil {
			return p, err
		}
	} else if err != nil {
		return p, err
	}
	return p, json.Unmarshal(kept, &p)
}

// sshTrouble tells why a node's SSH server is not reached.
func sshTrouble(c sshCluster, n providers.Node, err error) error {
	var e *agentapi.Error
	switch {
	case agentapi.IsKind(err, agentapi.KindNotFound):
		return &api.Error{Kind: api.ErrNotSupported, Message: fmt.Sprintf("the agent of %s of cluster %s has no SSH server: it is older than this server", api.NodeName(n.Rank), c.name),
			Hint: "Renew it: sky start -f " + c.name}
	case agentapi.IsKind(err, agentapi.KindInvalid):
		return &api.Error{Kind: api.ErrInvalid, Message: err.Error()}
	case errors.As(err, &e):
		return &api.Error{Kind: api.ErrUnavailable, Message: fmt.Sprintf("the agent of %s of cluster %s answered: %s", api.NodeName(n.Rank), c.name, e.Detail), Hint: "See: sky events " + c.name}
	}
	return &api.Error{Kind: api.ErrUnavailable, Message: fmt.Sprintf("the agent of %s of cluster %s can't be reached: %v", api.NodeName(n.Rank), c.name, err),
		Hint: "See how it is: sky status -r " + c.name}
}

// SSHHosts tells of the SSH servers of a cluster's nodes, by rank.
func (b *backend) SSHHosts(ctx context.Context, name string) (api.SSHHosts, error) {
	c, err := b.findSSH(ctx, name)
	if err != nil {
		return api.SSHHosts{}, err
	}
	out := api.SSHHosts{Cluster: name, Hash: c.data.Ref.Hash, Hosts: make([]api.SSHHost, len(c.data.Nodes))}
	ask, cancel := context.WithTimeout(ctx, sshAskTime)
	defer cancel()
	var wg sync.WaitGroup
	slots := make(chan struct{}, 16)
	for _, n := range c.data.Nodes {
		if n.Rank < 0 || n.Rank >= len(out.Hosts) {
			return out, fmt.Errorf("cluster %s has %d nodes, and one of rank %d", name, len(out.Hosts), n.Rank)
		}
		out.Hosts[n.Rank] = hostOf(n)
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			client, err := activities.NodeClient(ask, c.provider, n)
			if err != nil {
				return
			}
			defer client.Close()
			p, err := b.pin(ask, c, n, client)
			if err != nil {
				b.acts.Log.Info("ssh: a node's host key is not known", "cluster", name, "node", n.Rank, "error", err)
				return
			}
			out.Hosts[n.Rank].HostKey, out.Hosts[n.Rank].User = p.HostKey, p.User
		})
	}
	wg.Wait()
	return out, ctx.Err()
}

// DialSSH opens a stream to a node's SSH server, for a login with the key.
func (b *backend) DialSSH(ctx context.Context, name string, rank int, key string) (io.ReadWriteCloser, api.SSHHost, error) {
	c, err := b.findSSH(ctx, name)
	if err != nil {
		return nil, api.SSHHost{}, err
	}
	for _, n := range c.data.Nodes {
		if n.Rank != rank {
			continue
		}
		host := hostOf(n)
		client, err := activities.NodeClient(ctx, c.provider, n)
		if err != nil {
			return nil, host, sshTrouble(c, n, err)
		}
		p, err := b.pin(ctx, c, n, client)
		if err != nil {
			client.Close()
			return nil, host, err
		}
		host.HostKey, host.User = p.HostKey, p.User
		conn, err := client.DialSSH(ctx, key)
		client.Close() // what lies idle; the stream stays
		if err != nil {
			return nil, host, sshTrouble(c, n, err)
		}
		return conn, host, nil
	}
	return nil, api.SSHHost{}, &api.Error{Kind: api.ErrNotFound, Message: fmt.Sprintf("cluster %s has no node %d; it has %d, counted from 0", name, rank, len(c.data.Nodes))}
}
