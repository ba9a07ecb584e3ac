package agentapi

import "context"

// HostsFile is where a node keeps the addresses of the tasks of its group, in the form of hosts(5).
const HostsFile = "~/.sky/jobgroup_hosts"

// Hosts is PUT /v1/hosts: the names by which the nodes of other tasks are known on this node. It replaces what was told before.
type Hosts struct {
	Epoch int64       `json:"epoch"` // one that is over is refused with KindStaleEpoch
	Hosts []HostEntry `json:"hosts"`
}

// HostEntry is a name and its address.
type HostEntry struct {
	Name string `json:"name"`
	IP   string `json:"ip"`
}

// SetHosts tells a node names of other nodes. Idempotent. KindNotFound: the agent knows no such call.
func (c *Client) SetHosts(ctx context.Context, h Hosts) error {
	_, err := call[struct{}](ctx, c, "PUT", "/v1/hosts", h)
	return err
}
