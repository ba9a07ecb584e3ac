package activities

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/providers"
)

// ReapOutput tells what a round of the reaper found.
type ReapOutput struct {
	Checked int      `json:"checked"` // nodes looked at
	Deleted []string `json:"deleted,omitempty"`
	Woken   []string `json:"woken,omitempty"`   // clusters told to look at their nodes
	Removed []string `json:"removed,omitempty"` // rows whose workflow is gone
	Ended   []int64  `json:"ended,omitempty"`   // managed jobs whose workflow is gone
	Errors  []string `json:"errors,omitempty"`
}

// PublicPayload marks the type as free of secrets.
func (ReapOutput) PublicPayload() {}

// young says that something is too new for the reaper to judge: what belongs to it may not be written yet.
func (a *Activities) young(t time.Time) bool {
	age := a.ReapAge
	if age == 0 {
		age = time.Minute
	}
	return time.Since(t) < age
}

// Reap compares what the infra holds under our installation's tag with what workflows own, both ways. Idempotent.
func (a *Activities) Reap(ctx context.Context) (ReapOutput, error) {
	defer beat(ctx)()
	began := time.Now()
	var out ReapOutput
	type group struct {
		p     providers.Provider
		ref   providers.ClusterRef
		nodes []providers.Node
	}
	groups := map[string]*group{}
	answered := map[string]bool{}
	for _, name := range a.Providers.Names() {
		p, err := a.Providers.Get(name)
		if err != nil {
			continue
		}
		nodes, err := p.List(ctx, providers.Tag{Installation: a.Store.Installation()})
		if err != nil {
			out.Errors = append(out.Errors, fmt.Sprintf("%s: %v", name, err))
			continue
		}
		answered[name] = true
		for _, n := range nodes {
			if n.Cluster.Installation != a.Store.Installation() {
				continue // never ours to judge
			}
			out.Checked++
			g := groups[n.Cluster.Hash]
			if g == nil {
				g = &group{p: p, ref: n.Cluster}
				groups[n.Cluster.Hash] = g
			}
			g.nodes = append(g.nodes, n)
		}
	}
	rows, err := a.Store.Clusters(ctx, store.ClusterFilter{})
	if err != nil {
		return out, err
	}
	jobs, err := a.openJobs(ctx)
	if err != nil {
		return out, err
	}
	book, err := a.openLedger(ctx, rows, len(jobs))
	if err != nil {
		return out, err
	}
	left := map[string]string{} // who owned what may be left, by incarnation
	for _, hash := range sortedKeys(groups) {
		g := groups[hash]
		if book.balances(hash, g.nodes) {
			continue
		}
		owner := a.ownerOf(ctx, g.ref.Name, hash)
		owned, err := book.owned(ctx, g.ref.Name, hash)
		if err != nil {
			out.Errors = append(out.Errors, fmt.Sprintf("%s: %v", g.ref.Name, err))
			left[hash] = owner
			continue
		}
		if owned.Hash != hash {
			left[hash] = owner
		}
		known := map[string]bool{}
		for _, n := range owned.Nodes {
			known[n.ID] = true
		}
		var ids []string
		for _, n := range g.nodes {
			if a.young(n.CreatedAt) || owned.Hash == hash && (known[n.ID] || n.Token == owned.Token) {
				continue
			}
			ids = append(ids, n.ID)
		}
		if len(ids) == 0 {
			continue
		}
		if owned.Hash != hash {
			ids = nil // all of the incarnation
		}
		if err := g.p.Delete(ctx, g.ref, ids); err != nil && !providers.Is(err, providers.NotFound) {
			out.Errors = append(out.Errors, fmt.Sprintf("%s: %v", g.ref.NameOnCloud(), err))
			continue
		}
		if still, err := g.p.List(ctx, g.ref.Tag()); err == nil && len(still) == 0 {
			delete(left, hash)
		}
		out.Deleted = append(out.Deleted, g.ref.NameOnCloud())
		a.Log.Warn("reaper deleted nodes that nobody owns", "cluster", g.ref.NameOnCloud(), "infra", g.p.Name(), "nodes", len(g.nodes))
		a.say(ctx, "reap/"+hash, 0, api.Event{Cluster: g.ref.Name, Hash: hash, Kind: api.EventError, Step: "reap", Message: fmt.Sprintf("%d node(s) that no cluster owns were deleted", len(g.nodes))})
	}
	for _, r := range rows {
		if groups[r.Hash] != nil && book.balances(r.Hash, groups[r.Hash].nodes) {
			continue
		}
		if a.young(r.StatusUpdatedAt) {
			left[r.Hash] = r.Owner
			continue
		}
		owned, err := book.owned(ctx, r.Name, r.Hash)
		if err != nil {
			out.Errors = append(out.Errors, fmt.Sprintf("%s: %v", r.Name, err))
			left[r.Hash] = r.Owner
			continue
		}
		switch {
		case owned.Hash != r.Hash && !answered[r.Cloud]:
			left[r.Hash] = r.Owner
		case owned.Hash != r.Hash && answered[r.Cloud]:
			// The workflow is gone, or has another incarnation: the row tells of nothing.
			err := a.Store.Write(ctx, store.Batch{Removals: []store.Removal{{Name: r.Name, Hash: r.Hash, Seq: r.Seq + 1_000_000, At: time.Now()}},
				EndJobs:   []store.EndJobs{{Hash: r.Hash, Status: api.JobFailedDriver, Reason: "the cluster's workflow had ended", At: time.Now()}},
				UsageEnds: []store.UsageEnd{{Hash: r.Hash, At: time.Now()}}, Unwatches: []string{r.Hash}})
			if err != nil {
				return out, err
			}
			out.Removed = append(out.Removed, r.Name)
			if err := a.Secrets.DeleteScope(ctx, ClusterScope(r.Hash)); err != nil {
				out.Errors = append(out.Errors, err.Error())
			}
		case owned.Hash == r.Hash && r.Status == api.ClusterUp && answered[r.Cloud] && a.odd(groups[r.Hash] != nil, func() []providers.Node { return groups[r.Hash].nodes }, owned):
			err := a.Engine.SignalWorkflow(ctx, a.ownerOf(ctx, r.Name, r.Hash), "", SignalObserved, Observed{Hash: r.Hash, Kind: ObservedNodes})
			var missing *serviceerror.NotFound
			if err != nil && !errors.As(err, &missing) {
				return out, err
			}
			out.Woken = append(out.Woken, r.Name)
		}
	}
	if err := a.endJobs(ctx, jobs, book, left, &out); err != nil {
		return out, err
	}
	if len(out.Errors) == 0 {
		a.mu.Lock()
		a.reaped = began
		a.mu.Unlock()
	}
	return out, nil
}

// odd says that the infra's listing is not what an UP cluster should have.
func (a *Activities) odd(listed bool, nodes func() []providers.Node, owned Owned) bool {
	if !listed {
		return true
	}
	running := map[string]bool{}
	for _, n := range nodes() {
		running[n.ID] = n.State == providers.NodeRunning
	}
	for _, n := range owned.Nodes {
		if !running[n.ID] {
			return true
		}
	}
	return false
}

// ownerOf is the workflow that owns an incarnation: as its row says, which is written before the infra is asked for a node.
func (a *Activities) ownerOf(ctx context.Context, name, hash string) string {
	if row, _, err := a.Store.ClusterByHash(ctx, hash); err == nil && row.Owner != "" {
		return row.Owner
	}
	return ClusterWorkflowID(name)
}

// owned asks the owner of an incarnation what it owns. A workflow that does not run owns nothing.
func (a *Activities) owned(ctx context.Context, name, hash string) (Owned, error) {
	var o Owned
	id := a.ownerOf(ctx, name, hash)
	d, err := a.Engine.DescribeWorkflowExecution(ctx, id, "")
	var missing *serviceerror.NotFound
	if errors.As(err, &missing) {
		return o, nil
	}
	if err != nil {
		return o, err
	}
	if d.GetWorkflowExecutionInfo().GetStatus() != enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING {
		return o, nil
	}
	v, err := a.Engine.QueryWorkflow(ctx, id, "", QueryState)
	if err != nil {
		return o, fmt.Errorf("ask workflow %s what it owns: %w", id, err)
	}
	if err := v.Get(&o); err != nil {
		return o, err
	}
	for _, other := range o.Others {
		if other.Hash == hash {
			return other, nil
		}
	}
	return o, nil
}

// Check asks every infra whether it can be used.
func (a *Activities) Check(ctx context.Context, body api.CheckBody) (api.CheckResult, error) {
	defer beat(ctx)()
	res := api.CheckResult{Enabled: map[string]map[string][]string{"default": {}}}
	for _, want := range body.Clouds {
		if _, err := a.Providers.Get(want); err != nil {
			var pe *providers.Error
			e := &api.Error{Kind: api.ErrInvalid, Message: err.Error()}
			if errors.As(err, &pe) {
				e.Hint = pe.Hint
			}
			return res, refuse(e)
		}
	}
	for _, c := range a.Checks(ctx, 0) {
		if len(body.Clouds) > 0 && !containsFold(body.Clouds, c.Name) {
			continue
		}
		if !body.Verbose {
			c.Details = nil
		}
		res.Infras = append(res.Infras, c)
		if c.Enabled {
			res.Enabled["default"][c.Name] = c.Capabilities
		}
	}
	return res, nil
}

// Targets lists the clusters a refresh is for.
func (a *Activities) Targets(ctx context.Context, body api.RefreshBody) ([]string, error) {
	f := store.ClusterFilter{Names: body.Clusters}
	if !body.AllUsers && len(body.Clusters) == 0 {
		f.UserHash = body.UserHash
	}
	rows, err := a.Store.Clusters(ctx, f)
	if err != nil {
		return nil, err
	}
	out := []string{}
	for _, r := range rows {
		out = append(out, r.Name)
	}
	return out, nil
}

// Open makes the row of a request that has no cluster of its own. Idempotent: an ended request stays ended.
func (a *Activities) Open(ctx context.Context, r api.Request, kind string) error {
	return a.Store.Write(ctx, store.Batch{Creates: []store.NewRequest{{Request: r, Kind: kind}}, Requests: []store.RequestUpdate{{ID: r.ID, Status: api.RequestRunning}}})
}

// EncodeResult is the JSON of a request's result.
func EncodeResult(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}
