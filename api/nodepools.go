package api

import (
	"context"
)

// SSHBody is POST /api/v1/ssh/up and /api/v1/ssh/down: prepares the hosts of SSH node pools, or removes every trace from them.
type SSHBody struct {
	Base
	Pools []string `json:"pools,omitempty" doc:"none: all"`
}

// SSHPools is POST /api/v1/ssh_node_pools: a file of pools, which takes the place of those of the same names on the server.
type SSHPools struct {
	File    string `json:"file" doc:"its name, for messages"`
	Content string `json:"content" doc:"YAML"`
}

// SSHPoolNames is the answer.
type SSHPoolNames struct {
	Pools []string `json:"pools"`
}

// SSHResult is the result of `sky ssh up` and `sky ssh down`.
type SSHResult struct {
	RequestID string    `json:"request_id"`
	Hosts     []SSHNode `json:"hosts"`
}

// PublicPayload marks the type as free of secrets.
func (SSHResult) PublicPayload() {}

// SSHNode is how one host of a pool is.
type SSHNode struct {
	Pool         string  `json:"pool"`
	Host         string  `json:"host"`
	OK           bool    `json:"ok"`
	Reason       string  `json:"reason,omitempty" doc:"why it can't be used, or what works less well than it could"`
	Hint         string  `json:"hint,omitempty"`
	Arch         string  `json:"arch,omitempty"`
	CPUs         float64 `json:"cpus,omitempty"`
	MemoryGB     float64 `json:"memory_gb,omitempty"`
	FreeCPUs     float64 `json:"free_cpus,omitempty"`
	FreeMemoryGB float64 `json:"free_memory_gb,omitempty"`
	GPUs         string  `json:"gpus,omitempty"`
}

// SSHUp prepares the hosts of node pools.
func (c *Client) SSHUp(ctx context.Context, b *SSHBody) (*Ref, error) {
	return c.submit(ctx, "ssh/up", &b.Base, b)
}

// SSHDown removes every trace from the hosts of node pools.
func (c *Client) SSHDown(ctx context.Context, b *SSHBody) (*Ref, error) {
	return c.submit(ctx, "ssh/down", &b.Base, b)
}

// AddSSHPools takes a file of node pools to the server.
func (c *Client) AddSSHPools(ctx context.Context, b SSHPools) ([]string, error) {
	out := SSHPoolNames{}
	err := c.call(ctx, "POST", prefix+"/ssh_node_pools", nil, b, &out)
	return out.Pools, err
}
