package worker

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/config"
	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/providers/local"
	"github.com/skyloom/skyloom/providers/memory"
	"github.com/skyloom/skyloom/providers/ssh"
	"github.com/skyloom/skyloom/task"
)

// openInfra makes the providers that the configuration asks for. One line here registers one.
func openInfra(cfg *config.Config, home, installation string, agents providers.AgentSource, embedded bool, log *slog.Logger) (*infra, error) {
	in := &infra{}
	var ps []providers.Provider
	l := cfg.Local()
	// Nodes on this machine make no sense where several servers share an engine, unless asked for.
	if l.Enabled == nil && embedded || l.Enabled != nil && *l.Enabled {
		p, err := local.New(local.Options{Root: filepath.Join(home, "local"), Installation: installation, Agent: agents, CPUs: l.CPUs, MemoryGB: l.MemoryGB, Logger: log})
		if err != nil {
			return nil, err
		}
		ps, in.closers = append(ps, p), append(in.closers, p.Close)
	}
	if !cfg.Bool("ssh.disabled", false) {
		user, _ := os.UserHomeDir()
		p, err := ssh.New(ssh.Options{Home: home, UserHome: user, Agent: agents, Allowed: allowedPools(cfg), Shared: !embedded,
			ConnectTimeout: cfg.Duration("provision.ssh_timeout", 0), Logger: log})
		if err != nil {
			return nil, err
		}
		ps, in.closers = append(ps, p), append(in.closers, p.Close)
	}
	if section, on := cfg.MemoryProvider(); on {
		mc, err := memory.ParseConfig(section)
		if err != nil {
			return nil, err
		}
		if mc.StateFile == "" {
			mc.StateFile = filepath.Join(home, "memory-cloud.json")
		}
		p, err := memory.New(mc)
		if err != nil {
			return nil, err
		}
		ps, in.closers = append(ps, p), append(in.closers, p.Close)
	}
	in.registry = providers.NewRegistry(ps...)
	return in, nil
}

// allowedPools names the SSH node pools that may be used; nil: all.
func allowedPools(cfg *config.Config) []string {
	if _, set := cfg.Get("ssh.allowed_node_pools"); !set {
		return nil
	}
	return append([]string{}, cfg.Texts("ssh.allowed_node_pools")...)
}

// manifestsOf names the uploaded trees in a request's body.
func manifestsOf(body []byte) []string {
	var b struct {
		Files []api.FileMount `json:"files"`
	}
	if err := json.Unmarshal(body, &b); err != nil {
		return nil
	}
	var out []string
	for _, f := range b.Files {
		out = append(out, f.Manifest)
	}
	return out
}

// manifestsOfJobs names the uploaded trees in the body of a submission of managed jobs.
func manifestsOfJobs(body []byte) (out []string) {
	var b struct {
		Files map[int][]api.FileMount `json:"files"`
	}
	if err := json.Unmarshal(body, &b); err != nil {
		return nil
	}
	for _, files := range b.Files {
		for _, f := range files {
			out = append(out, f.Manifest)
		}
	}
	return out
}

func parseInfra(s string) (task.Infra, error) {
	if s == "" {
		return task.Infra{}, nil
	}
	i, err := task.ParseInfra(s)
	if err != nil {
		return i, &api.Error{Kind: api.ErrInvalid, Message: err.Error()}
	}
	return i, nil
}
