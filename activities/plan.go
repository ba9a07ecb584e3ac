package activities

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/cluster"
	"github.com/skyloom/skyloom/internal/optimizer"
	"github.com/skyloom/skyloom/internal/recovery"
	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/task"
)

// Plan decides where a launch goes, at first and after each failed attempt. Idempotent: the hash
// it mints follows from the request and its round, and a secret too many goes with the cluster's.
func (a *Activities) Plan(ctx context.Context, in PlanInput) (PlanOutput, error) {
	out := PlanOutput{Now: time.Now(), Installation: a.Store.Installation(), Blocked: in.Blocked}
	if e, err := a.toldNo(ctx, in.RequestID); e != nil || err != nil {
		out.Error = e
		return out, err
	}
	t, e := a.checkTask(in.Body.Task, "", in.Body.FileMounts)
	if e != nil {
		out.Error = e
		return out, nil
	}
	out.Task = Summarize(t, in.Body)
	if in.Existing != nil {
		have := *in.Existing
		if in.Body.Resize {
			have.NumNodes = out.Task.NumNodes
		}
		out.Error = fits(t, have, false)
		return out, nil
	}
	if in.Body.Resize {
		out.Error = cluster.NoCluster(in.Body.Cluster)
		return out, nil
	}
	rank, err := a.ranking(ctx, t, out.Task.NumNodes)
	if err != nil {
		out.Error, out.Retry = &api.Error{Kind: api.ErrResourcesUnavailable, Message: "the infra could not be asked what it offers: " + err.Error()}, true
		return out, nil
	}
	rank.Needs = needs(out.Task.Autostop)
	res, err := optimizer.Rank(rank)
	if err != nil {
		out.Error = apiError(err)
		return out, nil
	}
	out.Plan = optimizer.Plan(res, out.Task.NumNodes)
	out.Plan.Notes = append(out.Plan.Notes, out.Task.Warnings...)
	if in.CheckHash && in.Body.PlanHash != "" && in.Body.PlanHash != out.Plan.Hash {
		out.Error = &api.Error{Kind: api.ErrPlanChanged, Message: "what was confirmed is no longer what would be launched: prices or places have changed", Hint: "launch again to see the new plan"}
		return out, nil
	}
	if len(in.Failures) > 0 && in.Last != nil {
		f := in.Failures[len(in.Failures)-1]
		d := optimizer.Decide(*in.Last, f.Kind, f.Scope)
		switch {
		case d.Move == optimizer.MoveRetry && in.Tries < 10, d.Move == optimizer.MoveResolve && in.Tries < 4:
			out.Choice, out.Same, out.Wait = in.Last, true, max(in.After, time.Second)
			out.Have = in.Last.Have(rank.Groups[in.Last.Group][in.Last.Request])
			return out, nil
		case len(d.Blocks) > 0:
			out.Blocked = append(out.Blocked, d.Blocks...)
		default:
			out.Blocked = append(out.Blocked, optimizer.GiveUp(*in.Last)...)
		}
	}
	blocked := out.Blocked
	if r := in.Recover; r != nil && in.Home == nil {
		blocked = append(append([]optimizer.Block(nil), blocked...), recovery.Blocks(r.Strategy, r.Round, r.Old, places(res.Choices))...)
	}
	left := optimizer.Unblocked(res.Choices, blocked)
	switch h := in.Home; {
	case h == nil:
	case h.Only:
		left = optimizer.Within(left, h.Place)
	default:
		left = optimizer.Nearest(left, h.Place)
	}
	if len(left) == 0 {
		out.Error, out.Retry = optimizer.Explain(in.Failures, res.Reasons), optimizer.WorthRetrying(in.Failures)
		// What has run already is not given up for a key that has expired meanwhile.
		out.Retry = out.Retry || in.Recover != nil && optimizer.AwaitsCredentials(in.Failures)
		return out, nil
	}
	out.Choice = &left[0]
	out.Have = out.Choice.Have(rank.Groups[out.Choice.Group][out.Choice.Request])
	if in.Mint {
		out.Hash = mint(out.Installation, in.RequestID, in.Round)
		if out.SecretRef, err = a.Secrets.Put(ctx, ClusterScope(out.Hash), randomHex(24)); err != nil {
			return out, err
		}
	}
	return out, nil
}

// mint makes the hash of an incarnation. It is the same if a workflow task is carried out anew: rows that the lost one wrote
// are then the new one's.
func mint(installation, request string, round int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "incarnation\x00%s\x00%s\x00%d", installation, request, round))
	return hex.EncodeToString(sum[:4])
}

// places are the regions in which there is a choice.
func places(choices []optimizer.Choice) []recovery.Place {
	var out []recovery.Place
	seen := map[recovery.Place]bool{}
	for _, c := range choices {
		p := recovery.Place{Cloud: c.Provider, Region: c.Spec.Region}
		if !seen[p] {
			seen[p] = true
			out = append(out, p)
		}
	}
	return out
}

// needs are the capabilities that a place must have for an idle rule.
func needs(idle *agentapi.Autostop) []string {
	if idle != nil && idle.IdleMinutes >= 0 && !idle.Down {
		return []string{optimizer.NeedStop}
	}
	return nil
}

// PlanDry is Plan for a look without a launch.
func (a *Activities) PlanDry(ctx context.Context, in DeliverInput, body api.LaunchBody) (PlanOutput, error) {
	if _, e := a.checkTask(body.Task, task.VerbLaunch, body.FileMounts); e != nil {
		return PlanOutput{Error: e}, nil
	}
	if e, err := a.checkFiles(body.FileMounts); e != nil || err != nil {
		return PlanOutput{Error: e}, err
	}
	return a.Plan(ctx, PlanInput{RequestID: in.Op.Key, Body: body, CheckHash: true})
}

// Optimize answers what a launch would choose now. It is not an activity: the API asks it directly.
func (a *Activities) Optimize(ctx context.Context, b api.OptimizeBody) (api.Plan, error) {
	t, e := ParseTask(b.Task)
	if e != nil {
		return api.Plan{}, e
	}
	if e := unknownWorkspace(b.Workspace); e != nil {
		return api.Plan{}, e
	}
	verb := task.VerbLaunch
	if b.Exec {
		verb = task.VerbExec
	} else if b.Managed {
		verb = task.VerbJobsLaunch
	}
	warnings, err := task.CheckSupported(t, verb, Features)
	if err != nil {
		return api.Plan{}, &api.Error{Kind: api.ErrNotSupported, Message: err.Error()}
	}
	if b.Cluster != "" {
		if err := task.ValidateClusterName(b.Cluster); err != nil {
			return api.Plan{}, invalid("cluster name: %v", err)
		}
		row, err := a.Store.Cluster(ctx, b.Cluster)
		switch {
		case err == nil && row.EverUp:
			have := haveOf(row)
			if b.Resize {
				row.Nodes = t.NumNodes
			}
			if e := fits(t, ExistingCluster{Row: row, Have: have, NumNodes: row.Nodes}, b.Exec); e != nil {
				return api.Plan{}, e
			}
			return api.Plan{Existing: true, NumNodes: row.Nodes, Status: row.Status, Notes: warnings,
				Candidates: []api.Candidate{{Infra: row.Cloud, Cloud: row.Cloud, Region: row.Region, Zone: row.Zone, InstanceType: row.InstanceType, Spot: row.Spot,
					CPUs: row.CPUs, MemoryGB: row.MemoryGB, Accelerators: row.Accelerators, PricePerHour: row.PricePerHour, Chosen: true}}}, nil
		case err == nil && b.Exec:
			return api.Plan{Existing: true, NumNodes: row.Nodes, Status: row.Status, Notes: warnings}, nil
		case b.Exec, b.Resize:
			return api.Plan{}, cluster.NoCluster(b.Cluster)
		}
	}
	in, err := a.ranking(ctx, t, t.NumNodes)
	if err != nil {
		return api.Plan{}, err
	}
	in.Needs = needs(Summarize(t, api.LaunchBody{IdleMinutes: b.IdleMinutes, Down: b.Down}).Autostop)
	res, err := optimizer.Rank(in)
	if err != nil {
		return api.Plan{}, apiError(err)
	}
	var note string
	if len(b.Group) > 1 {
		if res, note, err = a.beside(ctx, b.Group, in, res); err != nil {
			return api.Plan{}, apiError(err)
		}
	}
	p := optimizer.Plan(res, t.NumNodes)
	p.Notes = append(p.Notes, warnings...)
	if note != "" {
		p.Notes = append(p.Notes, note)
	}
	return p, nil
}

// haveOf is what a cluster offers, as far as its row tells.
func haveOf(row api.Cluster) task.Request {
	spec := providers.NodeSpec{InstanceType: row.InstanceType, Region: row.Region, Zone: row.Zone, CPUs: row.CPUs, MemoryGB: row.MemoryGB, Spot: row.Spot, Labels: row.Labels}
	if name, count, ok := strings.Cut(row.Accelerators, ":"); ok {
		spec.Accelerator = name
		if _, err := fmt.Sscanf(count, "%g", &spec.AcceleratorCount); err != nil {
			spec.AcceleratorCount = 1
		}
	}
	return cluster.HaveFor(row.Cloud, spec)
}

// fits tells whether a task may use an existing cluster.
func fits(t *task.Task, have ExistingCluster, exec bool) *api.Error {
	bad := task.FitTask(t, have.Have, have.NumNodes, task.FitOptions{Exec: exec})
	if len(bad) == 0 {
		return nil
	}
	return &api.Error{Kind: api.ErrResourcesMismatch, Message: fmt.Sprintf("the task does not fit the existing cluster %q (%s)", have.Row.Name, have.Row.ResourcesFull),
		Details: bad, Hint: "use another cluster name, or remove the cluster first: sky down " + have.Row.Name}
}

// Summarize tells a workflow what it must know of a task.
func Summarize(t *task.Task, b api.LaunchBody) TaskSummary {
	s := TaskSummary{Name: t.Name, NumNodes: max(t.NumNodes, 1), HasSetup: strings.TrimSpace(t.Setup) != "", HasRun: strings.TrimSpace(t.Run) != "",
		Redacted: string(t.Render(task.SecretsRedacted))}
	for _, h := range t.Config.Hooks {
		s.Hooks = append(s.Hooks, agentapi.Hook{Run: h.Run, Events: h.Events, Timeout: h.TimeoutSeconds})
	}
	if y := t.Autostop(); y != nil {
		s.Autostop = &agentapi.Autostop{IdleMinutes: max(y.IdleMinutes, 1), Down: y.Down, WaitFor: y.WaitFor}
		if !y.Enabled {
			s.Autostop.IdleMinutes = -1
		}
	}
	if b.IdleMinutes != nil || b.Down {
		if s.Autostop == nil {
			s.Autostop = &agentapi.Autostop{IdleMinutes: 1}
		}
		if b.IdleMinutes != nil {
			s.Autostop.IdleMinutes = max(*b.IdleMinutes, 1)
			if *b.IdleMinutes < 0 {
				s.Autostop.IdleMinutes = -1
			}
		}
		s.Autostop.Down = s.Autostop.Down || b.Down
	}
	if b.WaitFor != "" && s.Autostop != nil {
		s.Autostop.WaitFor = b.WaitFor
	}
	if warnings, err := task.CheckSupported(t, task.VerbLaunch, Features); err == nil {
		s.Warnings = warnings
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s\x00%d\x00", t.Setup, t.NumNodes)
	for _, f := range b.FileMounts {
		fmt.Fprintf(h, "%s\x00%s\x00", f.Dst, f.Source)
	}
	fmt.Fprintf(h, "%v", t.Candidates())
	s.ConfigHash = hex.EncodeToString(h.Sum(nil))[:16]
	return s
}

func apiError(err error) *api.Error {
	var e *api.Error
	if errors.As(err, &e) {
		return e
	}
	return &api.Error{Kind: api.ErrInternal, Message: err.Error()}
}

// Abilities tells what an infra can do. It depends on the program alone.
func (a *Activities) Abilities(ctx context.Context, provider string) (Abilities, error) {
	p, err := a.provider(provider)
	if err != nil {
		return Abilities{}, err
	}
	f := providers.FeaturesOf(p)
	return Abilities{Stop: f.Stop != nil, Preempt: f.Preempt != nil, SpotStop: f.SpotStop, Extend: f.Extend != nil}, nil
}
