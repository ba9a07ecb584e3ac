package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sort"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/catalog"
	"github.com/skyloom/skyloom/internal/cluster"
	"github.com/skyloom/skyloom/internal/failpoint"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/internal/version"
	"github.com/skyloom/skyloom/internal/webhook"
	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/worker/engine"
	"github.com/skyloom/skyloom/worker/httpapi"
)

var (
	fpAcceptBefore = failpoint.Register("submit.before-start-workflow")
	fpAcceptAfter  = failpoint.Register("submit.after-start-workflow")
)

// backend answers the API's calls that need the engine or the infra.
type backend struct {
	acts     *activities.Activities
	store    *store.Store
	engine   *engine.Engine
	client   client.Client
	started  time.Time
	home     string
	shutdown func()
	saver    *saver
	hosts    webhook.Hosts // that may be told of jobs
	webhook  string        // the secret that signs
	flight   chan struct{} // of inFlight
}

// workflowOf names the workflow that carries out a kind of request.
var workflowOf = map[string]string{
	"launch": "Launch", "exec": "Exec", "start": "Start", "stop": "Stop", "down": "Down", "autostop": "Autostop",
	"cancel": "CancelJobs", "preempt": "Preempt", "check": "Check", "refresh": "Refresh",
	"ssh.up": "SSHUp", "ssh.down": "SSHDown",
}

// Submit starts the request's workflow. Idempotent: the engine refuses a second workflow of the id.
func (b *backend) Submit(ctx context.Context, kind string, base api.Base, name string, body any) (api.Ref, error) {
	if kind == "jobs.launch" {
		return b.submitJobs(ctx, body.(api.JobsLaunchBody), false)
	}
	wf, ok := workflowOf[kind]
	if !ok {
		return api.Ref{}, &api.Error{Kind: api.ErrNotSupported, Message: fmt.Sprintf("unknown kind of request %q", kind)}
	}
	if kind == "preempt" {
		// A cluster that a managed job owns has no workflow of its own to ask.
		if row, err := b.store.Cluster(ctx, name); err == nil && row.Owner != "" {
			wf = "PreemptOwned"
		}
	}
	if err := failpoint.Hit(fpAcceptBefore); err != nil {
		return api.Ref{}, err
	}
	summary := "sky " + kind
	if name != "" {
		summary += " " + name
	}
	_, err := b.client.ExecuteWorkflow(ctx, client.StartWorkflowOptions{
		ID: activities.RequestWorkflowID(base.RequestID), TaskQueue: activities.QueueMain, WorkflowTaskTimeout: activities.WorkflowTaskTimeout,
		WorkflowIDReusePolicy:                    enumspb.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE,
		WorkflowExecutionErrorWhenAlreadyStarted: true, EnableEagerStart: true,
		TypedSearchAttributes: activities.SearchAttributes("request", name, base.Workspace, base.User), StaticSummary: summary,
	}, wf, body)
	var dup *serviceerror.WorkflowExecutionAlreadyStarted
	if err != nil && !errors.As(err, &dup) {
		return api.Ref{}, &api.Error{Kind: api.ErrUnavailable, Message: "the workflow engine did not take the request: " + err.Error(), Hint: "send it again: the request id makes that safe"}
	}
	if err := failpoint.Hit(fpAcceptAfter); err != nil {
		return api.Ref{}, err
	}
	return api.Ref{RequestID: base.RequestID, Name: "sky." + kind, Cluster: name, Status: api.RequestPending}, nil
}

// resume hands requests that were accepted into the store, but may not have reached the engine before a crash, to the
// engine again; those whose workflow has ended without a word are closed.
func (b *backend) resume(ctx context.Context) error {
	open, err := b.store.OpenRequests(ctx)
	if err != nil {
		return err
	}
	for _, r := range open {
		if r.Kind == "jobs.launch" {
			if body, _, err := decodeBody(r.Kind, r.Body); err != nil {
				return err
			} else if _, err := b.submitJobs(ctx, body.(api.JobsLaunchBody), true); err != nil {
				var e *api.Error
				if !errors.As(err, &e) || e.Kind == api.ErrUnavailable {
					return err
				}
				// Refused now, after a change of the configuration perhaps: that ends it, and holds up no other.
				if err := b.store.FinishRequest(ctx, r.ID, api.RequestFailed, nil, e); err != nil {
					return err
				}
			}
			continue
		}
		id := activities.RequestWorkflowID(r.ID)
		d, err := b.client.DescribeWorkflowExecution(ctx, id, "")
		var missing *serviceerror.NotFound
		switch {
		case errors.As(err, &missing):
			if len(r.Body) == 0 {
				continue // a foreign parent's: it starts its own child again
			}
			body, base, err := decodeBody(r.Kind, r.Body)
			if err != nil {
				return err
			}
			if _, err := b.Submit(ctx, r.Kind, base, r.Cluster, body); err != nil {
				return err
			}
		case err != nil:
			return err
		default:
			b.settle(ctx, r, d.GetWorkflowExecutionInfo().GetStatus())
		}
	}
	return nil
}

// settle closes the row of a request whose workflow was ended from outside (terminated in the Web UI, for one).
func (b *backend) settle(ctx context.Context, r store.OpenRequest, status enumspb.WorkflowExecutionStatus) {
	switch status {
	case enumspb.WORKFLOW_EXECUTION_STATUS_TERMINATED, enumspb.WORKFLOW_EXECUTION_STATUS_TIMED_OUT:
		e := &api.Error{Kind: api.ErrCancelled, Message: "the request's workflow was ended from outside"}
		if err := b.store.FinishRequest(ctx, r.ID, api.RequestCancelled, nil, e); err != nil {
			b.acts.Log.Warn("request not closed", "request", r.ID, "error", err)
		}
	}
}

func decodeBody(kind string, raw []byte) (any, api.Base, error) {
	switch kind {
	case "launch":
		return decode(raw, func(b api.LaunchBody) api.Base { return b.Base })
	case "exec":
		return decode(raw, func(b api.ExecBody) api.Base { return b.Base })
	case "start":
		return decode(raw, func(b api.StartBody) api.Base { return b.Base })
	case "stop", "down":
		return decode(raw, func(b api.StopOrDownBody) api.Base { return b.Base })
	case "autostop":
		return decode(raw, func(b api.AutostopBody) api.Base { return b.Base })
	case "cancel":
		return decode(raw, func(b api.CancelBody) api.Base { return b.Base })
	case "preempt":
		return decode(raw, func(b api.PreemptBody) api.Base { return b.Base })
	case "check":
		return decode(raw, func(b api.CheckBody) api.Base { return b.Base })
	case "jobs.launch":
		return decode(raw, func(b api.JobsLaunchBody) api.Base { return b.Base })
	case "refresh":
		return decode(raw, func(b api.RefreshBody) api.Base { return b.Base })
	case "ssh.up", "ssh.down":
		return decode(raw, func(b api.SSHBody) api.Base { return b.Base })
	}
	return nil, api.Base{}, fmt.Errorf("unknown kind of request %q", kind)
}

func decode[T any](raw []byte, base func(T) api.Base) (any, api.Base, error) {
	var v T
	if err := json.Unmarshal(raw, &v); err != nil {
		return nil, api.Base{}, err
	}
	return v, base(v), nil
}

// CancelRequests asks the workflows of requests to end. It returns the ids of those that were active.
func (b *backend) CancelRequests(ctx context.Context, in api.CancelRequestsBody) ([]string, error) {
	ids := in.RequestIDs
	if in.All || in.AllUsers {
		f := store.RequestFilter{ActiveOnly: true}
		if !in.AllUsers {
			f.UserHash = in.UserHash
		}
		rows, err := b.store.Requests(ctx, f)
		if err != nil {
			return nil, err
		}
		ids = nil
		for _, r := range rows {
			ids = append(ids, r.ID)
		}
	}
	out := []string{}
	for _, id := range ids {
		row, err := b.store.Request(ctx, id)
		if err != nil {
			return out, err
		}
		if row.Status.Terminal() {
			continue
		}
		err = b.client.CancelWorkflow(ctx, activities.RequestWorkflowID(row.ID), "")
		var missing *serviceerror.NotFound
		if errors.As(err, &missing) {
			// It belongs to a foreign parent's child under another id, or ended just now.
			if row.Cluster != "" {
				if _, err := b.acts.CancelOp(ctx, row.Cluster, row.ID); err != nil {
					return out, err
				}
				out = append(out, row.ID)
			}
			continue
		}
		if err != nil {
			return out, err
		}
		out = append(out, row.ID)
	}
	return out, nil
}

// Optimize answers what a launch would choose now.
func (b *backend) Optimize(ctx context.Context, in api.OptimizeBody) (api.Plan, error) {
	return b.acts.Optimize(ctx, in)
}

// GPUs lists accelerators that can be rented, and what is free on infra with fixed machines.
func (b *backend) GPUs(ctx context.Context, f httpapi.GPUFilter) (api.GPUList, error) {
	infra, err := parseInfra(f.Infra)
	if err != nil {
		return api.GPUList{}, err
	}
	if infra = infra.Concrete(); infra.Cloud != "" {
		if _, err := b.acts.Providers.Get(infra.Cloud); err != nil {
			e := &api.Error{Kind: api.ErrInvalid, Message: err.Error()}
			var pe *providers.Error
			if errors.As(err, &pe) {
				e.Hint = pe.Hint
			}
			return api.GPUList{}, e
		}
	}
	_, offers, err := b.acts.Offers(ctx)
	if err != nil {
		return api.GPUList{}, err
	}
	var pools []providers.Pool
	for _, name := range b.acts.Enabled(ctx) {
		p, err := b.acts.Providers.Get(name)
		if err != nil {
			continue
		}
		if pooler := providers.FeaturesOf(p).Pools; pooler != nil {
			got, err := pooler.Pools(ctx)
			if err != nil {
				return api.GPUList{}, err
			}
			pools = append(pools, got...)
		}
	}
	region := f.Region
	if region == "" {
		region = infra.Region
	}
	return catalog.GPUList(offers, pools, catalog.Filter{Name: f.Name, Count: f.Quantity, Cloud: infra.Cloud, Region: region, AllRegions: f.AllRegions}), nil
}

// EnabledInfra lists the infra that can be used.
func (b *backend) EnabledInfra(ctx context.Context) []string { return b.acts.Enabled(ctx) }

// NodeClients gives clients of the agents of a cluster, by rank.
func (b *backend) NodeClients(ctx context.Context, name string) ([]httpapi.NodeClient, error) {
	row, err := b.store.Cluster(ctx, name)
	if errors.Is(err, store.ErrNotFound) {
		return nil, cluster.NoCluster(name)
	} else if err != nil {
		return nil, err
	}
	w, err := b.store.Watch(ctx, row.Hash)
	if errors.Is(err, store.ErrNotFound) {
		return nil, cluster.NotUp(row)
	} else if err != nil {
		return nil, err
	}
	var data activities.WatchRow
	if err := json.Unmarshal(w.Data, &data); err != nil {
		return nil, err
	}
	if data.Provisioning {
		return nil, cluster.NotUp(row)
	}
	p, err := b.acts.Providers.Get(data.Provider)
	if err != nil {
		return nil, err
	}
	var out []httpapi.NodeClient
	for _, n := range data.Nodes {
		c, err := activities.NodeClient(ctx, p, n)
		if err != nil {
			return nil, err
		}
		out = append(out, httpapi.NodeClient{Rank: n.Rank, Node: api.NodeName(n.Rank), Client: c})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Rank < out[j].Rank })
	return out, nil
}

// Info tells what a person or a foreign worker must know.
func (b *backend) Info() api.Info {
	auth := "API key of the instance, as `authorization: Bearer <key>`; the key is the content of token_file"
	if !b.engine.Embedded() {
		auth = "as configured under `temporal` in the server's config.yaml"
	}
	user := os.Getenv("USER")
	return api.Info{
		Health: api.Health{Product: api.Product, Status: "healthy", Version: version.Version, Commit: version.Commit, APIVersion: api.Version, Installation: b.store.Installation(), Features: activities.Features.Names()},
		PID:    os.Getpid(), Home: b.home, StartedAt: b.started, User: user,
		Temporal: api.EngineInfo{Address: b.engine.Address(), Namespace: b.engine.Namespace(), TaskQueue: activities.QueueMain, Embedded: b.engine.Embedded(), Auth: auth, TokenFile: b.engine.TokenFile()},
	}
}

// Shutdown ends the server.
func (b *backend) Shutdown() { b.shutdown() }
