package nodepools

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/flags"
	"github.com/skyloom/skyloom/cli/follow"
	"github.com/skyloom/skyloom/cli/session"
	"github.com/skyloom/skyloom/cli/table"
)

// Options of `sky ssh up` and `sky ssh down`.
type Options struct {
	Down   bool
	Pools  []string
	File   string
	Async  bool
	Output string
}

// New makes `sky ssh`.
func New(s *session.Session, run func(context.Context, *session.Session, *Options) error) *cobra.Command {
	if run == nil {
		run = Run
	}
	cmd := &cobra.Command{
		Use:   "ssh",
		Short: "Prepare and clean machines of your own (SSH node pools)",
		Long: `Prepare and clean machines of your own: the hosts of the pools in ssh_node_pools.yaml.
To log in to a node of a cluster use plain ssh: ssh CLUSTER.`,
		RunE: session.Group,
	}
	up := verb(s, run, false, "up", "Check the hosts of node pools and prepare them", "  sky ssh up\n  sky ssh up --infra lab\n  sky ssh up -f pools.yaml",
		`Check the hosts of node pools and prepare them: each is logged in to, gets the agent's
program, and tells what it has. Nothing else is installed. It may be repeated at any time.`)
	down := verb(s, run, true, "down", "Remove every trace from the hosts of node pools", "  sky ssh down --infra lab",
		`Remove every trace from the hosts of node pools. Clusters there must be taken down first.
The pools stay in the file; the next launch prepares the hosts again.`)
	cmd.AddCommand(up, down)
	return cmd
}

func verb(s *session.Session, run func(context.Context, *session.Session, *Options) error, isDown bool, use, short, example, long string) *cobra.Command {
	o := &Options{Down: isDown}
	var pools []string
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long, Example: example,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return session.Usagef("sky ssh %s takes no arguments (got %q); name a pool with --infra", use, args[0])
			}
			o.Pools = nil
			for _, p := range pools {
				p = strings.TrimPrefix(p, "ssh/")
				if p == "" || strings.Contains(p, "/") {
					return session.Usagef("--infra %q is no pool", p)
				}
				o.Pools = append(o.Pools, p)
			}
			return run(cmd.Context(), s, o)
		},
	}
	fs := cmd.Flags()
	fs.StringSliceVar(&pools, "infra", nil, "only the pool `POOL` (default all); repeatable")
	if !isDown {
		fs.StringVarP(&o.File, "file", "f", "", "take the pools of `FILE` to the server first")
	}
	fs.BoolVar(&o.Async, "async", false, "return once the request is accepted")
	flags.Output(fs, &o.Output)
	return cmd
}

// Run prepares or cleans hosts.
func Run(ctx context.Context, s *session.Session, o *Options) error {
	c, err := s.Client(ctx)
	if err != nil {
		return err
	}
	b, err := s.Base()
	if err != nil {
		return err
	}
	if o.File != "" {
		text, err := os.ReadFile(o.File)
		if err != nil {
			return fmt.Errorf("the file of pools can't be read: %w", err)
		}
		name, err := filepath.Abs(o.File)
		if err != nil {
			name = o.File
		}
		names, err := c.AddSSHPools(ctx, api.SSHPools{File: name, Content: string(text)})
		if err != nil {
			return err
		}
		if len(o.Pools) == 0 {
			o.Pools = names
		}
	}
	submit := c.SSHUp
	if o.Down {
		submit = c.SSHDown
	}
	ref, err := submit(ctx, &api.SSHBody{Base: b, Pools: o.Pools})
	if err != nil {
		return err
	}
	if o.Async {
		follow.Submitted(s, c, ref)
		return nil
	}
	r, err := follow.Wait(ctx, s, c, ref, follow.Options{})
	if err != nil {
		return err
	}
	res, err := follow.Result[api.SSHResult](r)
	if err != nil {
		return err
	}
	if o.Output == "json" {
		if err := s.PrintJSON(res.Hosts); err != nil {
			return err
		}
	} else {
		print(s, o, &res)
	}
	return verdict(o, &res)
}

func print(s *session.Session, o *Options, res *api.SSHResult) {
	for i := 0; i < len(res.Hosts); {
		pool := res.Hosts[i].Pool
		if i > 0 {
			s.IO.Printf("\n")
		}
		s.IO.Printf("%s\n", s.IO.OutStyle(session.Bold, "Node pool: "+pool))
		t := table.New("HOST", "STATUS", "CPUS", "MEMORY (GB)", "GPUS", "REASON")
		if o.Down {
			t = table.New("HOST", "STATUS", "REASON")
		}
		var hints []string
		for ; i < len(res.Hosts) && res.Hosts[i].Pool == pool; i++ {
			h := res.Hosts[i]
			if h.Hint != "" && !slices.Contains(hints, h.Host+": "+h.Hint) {
				hints = append(hints, h.Host+": "+h.Hint)
			}
			reason := h.Reason
			if reason == "" {
				reason = "-"
			}
			switch {
			case o.Down && h.OK:
				t.Row(h.Host, "clean", reason)
			case o.Down:
				t.Row(h.Host, "not clean", reason)
			case h.OK:
				t.Row(h.Host, "ready", part(h.FreeCPUs, h.CPUs), part(h.FreeMemoryGB, h.MemoryGB), h.GPUs, reason)
			default:
				t.Row(h.Host, "failed", "-", "-", "-", reason)
			}
		}
		_ = t.Print(s.IO.Out)
		for _, h := range hints {
			s.IO.Printf("  %s\n", h)
		}
	}
}

func part(free, all float64) string {
	if free >= all-0.01 {
		return table.Number(all)
	}
	return fmt.Sprintf("%s of %s free", strconv.FormatFloat(math.Round(free*100)/100, 'f', -1, 64), table.Number(all))
}

// verdict is an error if a pool has no host that can be used, or a host is not clean.
func verdict(o *Options, res *api.SSHResult) error {
	good, bad := map[string]int{}, map[string]int{}
	var pools []string
	for _, h := range res.Hosts {
		if !slices.Contains(pools, h.Pool) {
			pools = append(pools, h.Pool)
		}
		if h.OK {
			good[h.Pool]++
		} else {
			bad[h.Pool]++
		}
	}
	for _, p := range pools {
		switch {
		case o.Down && bad[p] > 0:
			return fmt.Errorf("%d host(s) of pool %s are not clean", bad[p], p)
		case !o.Down && good[p] == 0:
			return fmt.Errorf("no host of pool %s can be used", p)
		}
	}
	return nil
}
