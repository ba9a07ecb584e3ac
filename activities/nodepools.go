package activities

import (
	"context"
	"errors"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/providers"
)

// poolInfra is the infra that `sky ssh` is about.
const poolInfra = "ssh"

func (a *Activities) hosts() (providers.HostKeeper, error) {
	p, err := a.provider(poolInfra)
	if err != nil {
		return nil, refuse(&api.Error{Kind: api.ErrNotSupported, Message: "SSH node pools are disabled on this server", Hint: "set ssh.disabled to false in config.yaml"})
	}
	if k := providers.FeaturesOf(p).Hosts; k != nil {
		return k, nil
	}
	return nil, refuse(&api.Error{Kind: api.ErrNotSupported, Message: p.Name() + " has no hosts to look after"})
}

// said makes what a user can do about an error final; other errors are worth another try.
func said(err error) error {
	var pe *providers.Error
	if errors.As(err, &pe) && (pe.Kind == providers.Invalid || pe.Kind == providers.Conflict || pe.Kind == providers.Unsupported) {
		kind := api.ErrInvalid
		if pe.Kind == providers.Conflict {
			kind = api.ErrConflict
		}
		return refuse(&api.Error{Kind: kind, Message: pe.Error(), Hint: pe.Hint})
	}
	return err
}

func reports(hosts []providers.HostReport) (out api.SSHResult) {
	out.Hosts = []api.SSHNode{}
	for _, h := range hosts {
		out.Hosts = append(out.Hosts, api.SSHNode(h))
	}
	return out
}

// PreparePools checks the hosts of node pools and brings there what nodes need. Idempotent: a host that is ready stays so.
func (a *Activities) PreparePools(ctx context.Context, body api.SSHBody) (api.SSHResult, error) {
	defer beat(ctx)()
	k, err := a.hosts()
	if err != nil {
		return api.SSHResult{}, err
	}
	hosts, err := k.PrepareHosts(ctx, body.Pools)
	if err != nil {
		return api.SSHResult{}, said(err)
	}
	a.recheck(ctx, poolInfra)
	return reports(hosts), nil
}

// CleanPools removes every trace from the hosts of node pools. Idempotent: a clean host stays so.
func (a *Activities) CleanPools(ctx context.Context, body api.SSHBody) (api.SSHResult, error) {
	defer beat(ctx)()
	k, err := a.hosts()
	if err != nil {
		return api.SSHResult{}, err
	}
	hosts, err := k.CleanHosts(ctx, a.Store.Installation(), body.Pools)
	if err != nil {
		return api.SSHResult{}, said(err)
	}
	a.recheck(ctx, poolInfra)
	return reports(hosts), nil
}

// recheck asks one infra again whether it can be used.
func (a *Activities) recheck(ctx context.Context, name string) {
	if len(a.Allowed) > 0 && !containsFold(a.Allowed, name) {
		return
	}
	c := api.InfraCheck{Name: name}
	a.checkOne(ctx, &c)
	a.mu.Lock()
	defer a.mu.Unlock()
	fresh := append([]api.InfraCheck(nil), a.checks...)
	for i := range fresh {
		if fresh[i].Name == name {
			fresh[i] = c
		}
	}
	a.checks = fresh
}

// AddPools takes pools from a user's file. It is not an activity: the API calls it directly, since the file may hold
// passwords, which must not enter a workflow's history.
func (a *Activities) AddPools(ctx context.Context, p api.SSHPools) ([]string, error) {
	k, err := a.hosts()
	if err != nil {
		return nil, &api.Error{Kind: api.ErrNotSupported, Message: err.Error()}
	}
	names, err := k.AddPools(ctx, p.File, []byte(p.Content))
	var pe *providers.Error
	if errors.As(err, &pe) && pe.Kind == providers.Invalid {
		return nil, &api.Error{Kind: api.ErrInvalid, Message: pe.Error(), Hint: pe.Hint}
	}
	return names, err
}
