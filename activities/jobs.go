package activities

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/failpoint"
	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/task"
)

var (
	fpSubmitBefore = failpoint.Register("job.before-submit")
	fpSubmitAfter  = failpoint.Register("job.after-submit")
	fpCancelAfter  = failpoint.Register("cancel.after-cancel")
)

// defaultCPUs is what a CPU-only job takes of a node, and noCPUs that of a job with nothing to run.
const (
	defaultCPUs = 0.5
	noCPUs      = -1
)

// Submit hands a job to the head node's agent, unless its request was told to have failed. Idempotent: the agent gives one job per key.
func (a *Activities) Submit(ctx context.Context, in SubmitInput) (SubmitOutput, error) {
	if e, err := a.toldNo(ctx, in.RequestID); e != nil || err != nil {
		return SubmitOutput{Error: e}, err
	}
	defer beat(ctx)()
	t, e := ParseTask(in.Task)
	if e != nil {
		return SubmitOutput{Error: e}, nil
	}
	secrets, e := a.secretsOf(ctx, t, in)
	if e != nil {
		return SubmitOutput{Error: e}, nil
	}
	spec := jobSpec(t, in, secrets)
	c, err := a.headClient(ctx, in.Provider, in.Nodes)
	if err != nil {
		return SubmitOutput{}, err
	}
	defer c.Close()
	if in.Autostop != nil {
		if _, err := c.SetAutostop(ctx, *in.Autostop); err != nil {
			return agentRefused(err, in.Ref.Name)
		}
	}
	if err := failpoint.Hit(fpSubmitBefore); err != nil {
		return SubmitOutput{}, err
	}
	job, err := c.Submit(ctx, spec)
	if err != nil {
		if e := a.headDown(ctx, err, in.Provider, in.Ref, in.Nodes); e != nil {
			return SubmitOutput{Error: e}, nil
		}
		return agentRefused(err, in.Ref.Name)
	}
	if err := failpoint.Hit(fpSubmitAfter); err != nil {
		return SubmitOutput{}, err
	}
	job.Cluster, job.ClusterHash = in.Ref.Name, in.Ref.Hash
	return SubmitOutput{Job: &job}, nil
}

// secretsOf checks that a task fits its cluster, and gives the values of its secrets.
func (a *Activities) secretsOf(ctx context.Context, t *task.Task, in SubmitInput) (map[string]string, *api.Error) {
	if bad := task.FitTask(t, in.Have, in.NumNodes, task.FitOptions{Exec: in.Exec}); len(bad) > 0 {
		return nil, &api.Error{Kind: api.ErrResourcesMismatch, Message: fmt.Sprintf("the task does not fit cluster %q", in.Ref.Name), Details: bad,
			Hint: "use another cluster, or ask for what this one has"}
	}
	secrets := map[string]string{}
	for _, name := range sortedKeys(in.SecretRefs) {
		v, err := a.Secrets.Get(ctx, in.SecretRefs[name])
		if err != nil {
			return nil, &api.Error{Kind: api.ErrNotFound, Message: fmt.Sprintf("secret %s is no longer kept: %v", name, err), Hint: "submit again with --secret " + name}
		}
		secrets[name] = v
	}
	if missing := t.UnresolvedSecrets(secrets); len(missing) > 0 {
		return nil, &api.Error{Kind: api.ErrInvalid, Message: fmt.Sprintf("secrets without a value: %v", missing), Hint: "give each with --secret NAME=VALUE"}
	}
	return secrets, nil
}

// jobSpec turns a task into a job for a cluster.
func jobSpec(t *task.Task, in SubmitInput, secrets map[string]string) agentapi.JobSpec {
	s := agentapi.JobSpec{
		Key: in.RequestID, Epoch: in.Epoch, Name: t.Name, User: in.User, UserHash: in.UserHash, NumNodes: max(t.NumNodes, 1),
		Run: t.Run, Workdir: true, Envs: t.Envs, Secrets: secrets, CPUs: defaultCPUs,
	}
	if in.Setup {
		s.Setup = t.Setup
	}
	if len(in.Envs) > 0 {
		envs := map[string]string{}
		for k, v := range t.Envs {
			envs[k] = v
		}
		for k, v := range in.Envs {
			envs[k] = v
		}
		s.Envs = envs
	}
	s.TaskID = in.TaskID
	if in.SetupOnly {
		s.Run = ""
	}
	if s.Run == "" {
		s.CPUs, s.NumNodes = noCPUs, 1
	}
	if in.GitCommit != "" {
		s.Metadata = map[string]string{"git_commit": in.GitCommit}
	}
	s.Resources = fmt.Sprintf("%dx[CPU:%g]", s.NumNodes, max(s.CPUs, 0))
	if acc := wanted(t, in.Have); acc != nil && s.Run != "" {
		s.Accelerator, s.AcceleratorCount = acc.Name, acc.Count
		s.Resources = fmt.Sprintf("%dx[%s:%s]", s.NumNodes, acc.Name, strconv.FormatFloat(acc.Count, 'g', -1, 64))
	}
	return s
}

// wanted is the accelerator a task asks for, under the name the cluster has it by.
func wanted(t *task.Task, have task.Request) *task.Accelerator {
	if have.Accelerator == nil {
		return nil
	}
	for _, group := range t.Candidates() {
		for _, r := range group {
			if r.Accelerator != nil && len(task.Fit(r, have, task.FitOptions{Exec: true})) == 0 {
				return &task.Accelerator{Name: have.Accelerator.Name, Count: r.Accelerator.Count}
			}
		}
	}
	return nil
}

// agentRefused tells what an agent said apart from an agent that can't be reached, which is tried again.
func agentRefused(err error, name string) (SubmitOutput, error) {
	var e *agentapi.Error
	if !errors.As(err, &e) {
		return SubmitOutput{}, err
	}
	switch e.Kind {
	case agentapi.KindUnfit:
		return SubmitOutput{Error: &api.Error{Kind: api.ErrResourcesMismatch, Message: e.Detail}}, nil
	case agentapi.KindDiskFull:
		return SubmitOutput{Error: &api.Error{Kind: api.ErrStorage, Message: e.Detail, Hint: "make room on the node: sky exec is not possible, but files can be removed by hand, or use a larger disk"}}, nil
	case agentapi.KindDraining:
		return SubmitOutput{Error: &api.Error{Kind: api.ErrAutostopping, Message: fmt.Sprintf("cluster %q is stopping itself (autostop) and takes no more jobs", name), Hint: "launch on it again, which waits until it has stopped: sky launch -c " + name}}, nil
	case agentapi.KindInvalid, agentapi.KindConflict, agentapi.KindStaleEpoch:
		return SubmitOutput{Error: &api.Error{Kind: api.ErrInvalid, Message: e.Detail}}, nil
	}
	return SubmitOutput{}, err
}

// CancelJobs cancels jobs on a cluster; it ends once their processes are gone. Idempotent: an ended job stays ended.
func (a *Activities) CancelJobs(ctx context.Context, in CancelInput) (CancelOutput, error) {
	defer beat(ctx)()
	c, err := a.headClient(ctx, in.Provider, in.Nodes)
	if err != nil {
		return CancelOutput{}, err
	}
	defer c.Close()
	spec := agentapi.CancelSpec{JobIDs: in.Body.JobIDs, All: in.Body.All || in.Body.AllUsers}
	if !in.Body.AllUsers {
		spec.UserHash = in.Body.UserHash
	}
	if len(spec.JobIDs) == 0 && !spec.All {
		spec.Latest = true
	}
	rep, err := c.Cancel(ctx, spec)
	if err != nil {
		var e *agentapi.Error
		if errors.As(err, &e) && e.Kind != agentapi.KindInternal {
			kind := api.ErrInvalid
			if e.Kind == agentapi.KindNotFound {
				kind = api.ErrJobNotFound
			}
			return CancelOutput{Error: &api.Error{Kind: kind, Message: e.Detail, Hint: "see the cluster's jobs: sky queue " + in.Ref.Name}}, nil
		}
		if e := a.headDown(ctx, err, in.Provider, in.Ref, in.Nodes); e != nil {
			return CancelOutput{Error: e}, nil
		}
		return CancelOutput{}, err
	}
	out := CancelOutput{JobIDs: rep.Cancelled}
	for _, id := range rep.Finished {
		out.Warnings = append(out.Warnings, fmt.Sprintf("job %d had ended already", id))
	}
	for _, id := range rep.Unknown {
		out.Warnings = append(out.Warnings, fmt.Sprintf("there is no job %d", id))
	}
	if len(rep.Unknown) > 0 && len(rep.Cancelled)+len(rep.Finished) == 0 {
		out.Error = &api.Error{Kind: api.ErrJobNotFound, Message: fmt.Sprintf("cluster %q has no job %s", in.Ref.Name, strings.Trim(strings.Join(strings.Fields(fmt.Sprint(rep.Unknown)), ", "), "[]")), Hint: "see its jobs: sky queue " + in.Ref.Name}
	}
	quick, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if jobs, err := c.Jobs(quick); err == nil {
		if err := a.Store.PutJobs(ctx, in.Ref.Name, in.Ref.Hash, jobs); err != nil {
			return out, err
		}
	}
	return out, failpoint.Hit(fpCancelAfter)
}

// submitLife is longer than an attempt of Submit lives: after that time a key that an agent does not know stays unknown.
const submitLife = 15 * time.Second

// Withdraw makes sure that a job whose submission has an unknown outcome does not run: the agent cancels it or has not
// got it, or its machine is gone. Until one of these is known for sure it goes on asking. Idempotent.
func (a *Activities) Withdraw(ctx context.Context, in WithdrawInput) error {
	defer beat(ctx)()
	p, err := a.provider(in.Provider)
	if err != nil {
		return err
	}
	h, err := head(in.Nodes)
	if err != nil {
		return nil
	}
	var unknownSince time.Time
	for pause := 200 * time.Millisecond; ; pause = min(pause*2, 5*time.Second) {
		done, unknown := a.revoke(ctx, p, h, in.Key)
		switch {
		case done:
			return nil
		case !unknown:
			unknownSince = time.Time{}
		case unknownSince.IsZero():
			unknownSince = time.Now()
		case time.Since(unknownSince) > submitLife:
			return nil
		}
		if !unknown && time.Since(h.CreatedAt) > fresh {
			if nodes, err := p.List(ctx, in.Ref.Tag()); err == nil && !runs(nodes, h.ID) {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the head node of cluster %q does not answer, so it is not known whether the job runs: %w", in.Ref.Name, ctx.Err())
		case <-time.After(pause):
		}
	}
}

// revoke cancels the job with a key. unknown says that the agent answered and knows of none.
func (a *Activities) revoke(ctx context.Context, p providers.Provider, n providers.Node, key string) (done, unknown bool) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	c, err := NodeClient(ctx, p, n)
	if err != nil {
		return false, false
	}
	defer c.Close()
	job, err := c.JobByKey(ctx, key)
	if agentapi.IsKind(err, agentapi.KindNotFound) {
		return false, true
	}
	if err != nil {
		return false, false
	}
	if !job.Status.Terminal() {
		_, err = c.Cancel(ctx, agentapi.CancelSpec{JobIDs: []int64{job.ID}})
	}
	return err == nil, false
}

// headDown says why a head that did not answer never will: the infra says that it does not run. nil: it may yet answer, or
// has answered.
func (a *Activities) headDown(ctx context.Context, err error, provider string, ref providers.ClusterRef, nodes []providers.Node) *api.Error {
	var answered *agentapi.Error
	if errors.As(err, &answered) || ctx.Err() != nil {
		return nil
	}
	h, err := head(nodes)
	if err != nil {
		return nil
	}
	p, err := a.provider(provider)
	if err != nil {
		return nil
	}
	quick, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	listed, err := p.List(quick, ref.Tag())
	if err != nil || runs(listed, h.ID) || time.Since(h.CreatedAt) < fresh && !slices.ContainsFunc(listed, func(n providers.Node) bool { return n.ID == h.ID }) {
		return nil
	}
	return &api.Error{Kind: api.ErrClusterNotUp, Message: fmt.Sprintf("the head node of cluster %q does not run", ref.Name), Hint: "see what became of it: sky status -r " + ref.Name}
}

// runs says that a node is listed as one on which processes may run.
func runs(nodes []providers.Node, id string) bool {
	for _, n := range nodes {
		if n.ID == id {
			return n.State != providers.NodeGone && n.State != providers.NodeStopped
		}
	}
	return false
}

// SetAutostop gives the head node its idle rule, or tells it to work on. Idempotent by generation.
func (a *Activities) SetAutostop(ctx context.Context, in AutostopInput) error {
	defer beat(ctx)()
	c, err := a.headClient(ctx, in.Provider, in.Nodes)
	if err != nil {
		return err
	}
	defer c.Close()
	if in.Undrain {
		err = c.Drain(ctx, agentapi.Drain{Generation: in.Autostop.Generation, Undo: true})
	} else {
		_, err = c.SetAutostop(ctx, in.Autostop)
	}
	var e *agentapi.Error
	if errors.As(err, &e) && e.Kind != agentapi.KindInternal {
		kind := api.ErrInvalid
		if e.Kind == agentapi.KindDraining {
			kind = api.ErrClusterNotUp
		}
		return refuse(&api.Error{Kind: kind, Message: e.Detail})
	}
	if err != nil {
		if down := a.headDown(ctx, err, in.Provider, in.Ref, in.Nodes); down != nil {
			return refuse(down)
		}
	}
	return err
}
