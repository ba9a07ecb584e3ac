package activities

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/cluster"
	"github.com/skyloom/skyloom/internal/failpoint"
	"github.com/skyloom/skyloom/internal/filesync"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/task"
	"github.com/skyloom/skyloom/worker/engine"
)

// Named points at which crash tests end the server.
var (
	fpDeliverBefore = failpoint.Register("request.before-deliver")
	fpDeliverAfter  = failpoint.Register("request.after-deliver")
	fpReplyBefore   = failpoint.Register("op.before-reply-row")
	fpReplyBetween  = failpoint.Register("op.between-row-and-reply")
	fpReplyAfter    = failpoint.Register("op.after-reply")
)

// WorkflowTaskTimeout bounds how long a killed worker's workflow task is waited for.
const WorkflowTaskTimeout = 5 * time.Second

// Deliver checks a request and hands its operation to the cluster's workflow. Idempotent: a request that has ended is
// answered from its row, and an entity knows the keys it has.
func (a *Activities) Deliver(ctx context.Context, in DeliverInput) (DeliverOutput, error) {
	row, err := a.Store.Request(ctx, in.Op.Key)
	switch {
	case err == nil && row.Status.Terminal():
		return DeliverOutput{Outcome: outcomeOf(row, in.Op.Kind)}, nil
	case errors.Is(err, store.ErrNotFound):
		if err := a.Store.Write(ctx, store.Batch{Creates: []store.NewRequest{{Request: in.Request, Kind: string(in.Op.Kind)}}}); err != nil {
			return DeliverOutput{}, err
		}
	case err != nil:
		return DeliverOutput{}, err
	}
	name := in.Cluster
	switch in.Op.Kind {
	case cluster.OpLaunch:
		var body api.LaunchBody
		if err := json.Unmarshal(in.Op.Body, &body); err != nil {
			return DeliverOutput{Error: invalid("launch: %v", err)}, nil
		}
		if name == "" {
			name = DefaultClusterName(in.Op.Key, in.Op.User)
		}
		t, e := a.checkTask(body.Task, task.VerbLaunch, body.FileMounts)
		if e == nil {
			e = checkSecrets(t, body.SecretRefs)
		}
		if e != nil {
			return DeliverOutput{Error: e}, nil
		}
		if e := unsupported(body); e != nil {
			return DeliverOutput{Error: e}, nil
		}
		if e, err := a.checkFiles(body.FileMounts); e != nil || err != nil {
			return DeliverOutput{Error: e}, err
		}
	case cluster.OpExec:
		var body api.ExecBody
		if err := json.Unmarshal(in.Op.Body, &body); err != nil {
			return DeliverOutput{Error: invalid("exec: %v", err)}, nil
		}
		t, e := a.checkTask(body.Task, task.VerbExec, body.FileMounts)
		if e == nil {
			e = checkSecrets(t, body.SecretRefs)
		}
		if e != nil {
			return DeliverOutput{Error: e}, nil
		}
		if e, err := a.checkFiles(body.FileMounts); e != nil || err != nil {
			return DeliverOutput{Error: e}, err
		}
	}
	if err := task.ValidateClusterName(name); err != nil {
		return DeliverOutput{Error: invalid("cluster name: %v", err)}, nil
	}
	if row, err := a.Store.Cluster(ctx, name); err == nil && row.Owner != "" {
		return DeliverOutput{Error: &api.Error{Kind: api.ErrNotSupported, Message: fmt.Sprintf("cluster %q belongs to a managed job (%s), which alone brings it up and takes it down", name, row.Owner),
			Hint: "see it with: sky jobs queue; end it with: sky jobs cancel"}}, nil
	}
	if err := a.Store.Write(ctx, store.Batch{Requests: []store.RequestUpdate{{ID: in.Op.Key, Status: api.RequestRunning, Cluster: name}}}); err != nil {
		return DeliverOutput{}, err
	}
	if err := failpoint.Hit(fpDeliverBefore); err != nil {
		return DeliverOutput{}, err
	}
	d, err := a.signalOp(ctx, name, in)
	if err != nil {
		return DeliverOutput{}, err
	}
	if err := failpoint.Hit(fpDeliverAfter); err != nil {
		return DeliverOutput{}, err
	}
	if d == NoCluster {
		// It may have been delivered by an attempt whose answer was lost, and have ended the entity.
		if o, err := a.Ended(ctx, in.Op.Key, in.Op.Kind); o != nil || err != nil {
			return DeliverOutput{Outcome: o}, err
		}
	}
	return DeliverOutput{Delivery: d, Cluster: name}, nil
}

// Ended tells how a request has ended; nil if it has not. It changes nothing.
func (a *Activities) Ended(ctx context.Context, key string, kind cluster.OpKind) (*cluster.Outcome, error) {
	row, err := a.Store.Request(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil || !row.Status.Terminal() {
		return nil, err
	}
	return outcomeOf(row, kind), nil
}

// signalOp reaches the entity; only a launch creates one, and a down whose cluster has a row but lost its workflow.
func (a *Activities) signalOp(ctx context.Context, name string, in DeliverInput) (Delivery, error) {
	id := ClusterWorkflowID(name)
	start := func(st cluster.State) (Delivery, error) {
		_, err := a.Engine.SignalWithStartWorkflow(ctx, id, SignalOp, in.Op, ClusterStartOptions(name, in.Workspace, in.Op.User), ClusterWorkflow, st)
		return Delivered, err
	}
	if in.Op.Kind == cluster.OpLaunch {
		return start(cluster.State{Name: name, Row: api.Cluster{Name: name}})
	}
	err := a.Engine.SignalWorkflow(ctx, id, "", SignalOp, in.Op)
	if err == nil {
		return Delivered, nil
	}
	var missing *serviceerror.NotFound
	if !errors.As(err, &missing) {
		return "", err
	}
	if in.Op.Kind == cluster.OpDown {
		if row, err := a.Store.Cluster(ctx, name); err == nil {
			st := cluster.State{Name: name, Row: row, Provider: row.Cloud, NumNodes: row.Nodes}
			st.Ref.Installation, st.Ref.Name, st.Ref.Hash = a.Store.Installation(), name, row.Hash
			return start(st)
		}
	}
	active, err := a.Store.Requests(ctx, store.RequestFilter{ActiveOnly: true, Cluster: name, Name: "sky.launch", Limit: 10})
	if err != nil {
		return "", err
	}
	for _, r := range active {
		if r.ID != in.Op.Key && !r.CreatedAt.After(in.Request.CreatedAt) {
			return TryAgain, nil
		}
	}
	return NoCluster, nil
}

// Ask hands a quiet operation to a cluster that exists. Idempotent: an entity knows the keys it has.
func (a *Activities) Ask(ctx context.Context, in DeliverInput) (DeliverOutput, error) {
	err := a.Engine.SignalWorkflow(ctx, ClusterWorkflowID(in.Cluster), "", SignalOp, in.Op)
	var missing *serviceerror.NotFound
	if errors.As(err, &missing) {
		return DeliverOutput{Delivery: NoCluster}, nil
	}
	return DeliverOutput{Delivery: Delivered}, err
}

// ClusterStartOptions are how an entity is started.
func ClusterStartOptions(name, workspace, user string) client.StartWorkflowOptions {
	return client.StartWorkflowOptions{
		ID: ClusterWorkflowID(name), TaskQueue: QueueMain, WorkflowTaskTimeout: WorkflowTaskTimeout,
		WorkflowIDReusePolicy: enumspb.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE,
		TypedSearchAttributes: SearchAttributes("cluster", name, workspace, user),
		StaticSummary:         "cluster " + name,
	}
}

// SearchAttributes are what the Web UI filters by. They are set once, at start.
func SearchAttributes(kind, name, workspace, user string) temporal.SearchAttributes {
	up := []temporal.SearchAttributeUpdate{engine.Kind.ValueSet(kind)}
	if name != "" {
		up = append(up, engine.Name.ValueSet(name))
	}
	if workspace != "" {
		up = append(up, engine.Workspace.ValueSet(workspace))
	}
	if user != "" {
		up = append(up, engine.User.ValueSet(user))
	}
	return temporal.NewSearchAttributes(up...)
}

// CancelOp asks the entity to cancel an operation. Idempotent: an entity that knows nothing of the key does nothing.
func (a *Activities) CancelOp(ctx context.Context, name, key string) (DeliverOutput, error) {
	if name == "" {
		name = DefaultClusterName(key, "")
	}
	err := a.Engine.SignalWorkflow(ctx, ClusterWorkflowID(name), "", SignalCancel, key)
	var missing *serviceerror.NotFound
	if errors.As(err, &missing) {
		o, err := a.Ended(ctx, key, "") // it may have ended the entity with its own end
		return DeliverOutput{Delivery: NoCluster, Outcome: o}, err
	}
	return DeliverOutput{Delivery: Delivered}, err
}

// Record writes rows. Idempotent: stale and repeated parts are skipped.
func (a *Activities) Record(ctx context.Context, in RecordInput) error {
	if err := a.Store.Write(ctx, in.Batch); err != nil {
		return err
	}
	if in.DropScope != "" {
		return a.Secrets.DeleteScope(ctx, in.DropScope)
	}
	return nil
}

// Reply ends a request: rows first, then the word to the workflow that waits. Idempotent: rows are guarded, and a
// second word is ignored. A workflow that is gone (its parent was terminated) is no error: the row tells the end.
func (a *Activities) Reply(ctx context.Context, in ReplyInput) error {
	if err := failpoint.Hit(fpReplyBefore); err != nil {
		return err
	}
	if err := a.Record(ctx, in.Record); err != nil {
		return err
	}
	if err := failpoint.Hit(fpReplyBetween); err != nil {
		return err
	}
	if in.ReplyTo == "" {
		return nil
	}
	err := a.Engine.SignalWorkflow(ctx, in.ReplyTo, "", SignalReply, in.Outcome)
	var missing *serviceerror.NotFound
	if err != nil && !errors.As(err, &missing) {
		return err
	}
	return failpoint.Hit(fpReplyAfter)
}

func outcomeOf(r api.Request, kind cluster.OpKind) *cluster.Outcome {
	o := &cluster.Outcome{Key: r.ID, Kind: kind, Result: r.Result, Error: r.Error, Cancelled: r.Status == api.RequestCancelled}
	if o.Error == nil && r.Status != api.RequestSucceeded {
		o.Error = &api.Error{Kind: api.ErrInternal, Message: "the request ended " + string(r.Status)}
	}
	return o
}

// toldNo is how a request has ended that was told to be cancelled or to have failed; nil: it was not. Nothing of it begins any
// more. A workflow whose last step was lost with its server takes that step once more, and may come to another end than it has told.
func (a *Activities) toldNo(ctx context.Context, key string) (*api.Error, error) {
	o, err := a.Ended(ctx, key, "")
	if o == nil || err != nil {
		return nil, err
	}
	return o.Error, nil
}

func invalid(format string, args ...any) *api.Error {
	return &api.Error{Kind: api.ErrInvalid, Message: fmt.Sprintf(format, args...)}
}

// DefaultClusterName names a cluster that the user did not: sky-<4 hex>-<user>.
func DefaultClusterName(requestID, user string) string {
	hex := requestID
	if len(hex) > 4 {
		hex = hex[:4]
	}
	clean := make([]rune, 0, len(user))
	for _, r := range user {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			clean = append(clean, r)
		case r >= 'A' && r <= 'Z':
			clean = append(clean, r+'a'-'A')
		}
	}
	if len(clean) == 0 {
		clean = []rune("user")
	}
	if len(clean) > 20 {
		clean = clean[:20]
	}
	return "sky-" + hex + "-" + string(clean)
}

// checkTask parses a task and refuses what this server can't do under a command, before anything is created. Without a
// command it was asked before.
func (a *Activities) checkTask(text, verb string, files []api.FileMount) (*task.Task, *api.Error) {
	t, e := ParseTask(text)
	if e != nil {
		return nil, e
	}
	if verb != "" {
		if _, err := task.CheckSupported(t, verb, Features); err != nil {
			return nil, &api.Error{Kind: api.ErrNotSupported, Message: err.Error(), Hint: "leave the field out, or wait for the release that brings it"}
		}
	}
	if len(t.ExtractSecrets()) > 0 {
		return nil, &api.Error{Kind: api.ErrInvalid, Message: "the task holds a secret in clear, which must not stand in a workflow's history",
			Hint: "submit it through the API or `sky launch`, which keep secrets apart, or name a secret by reference"}
	}
	have := map[string]bool{}
	for _, f := range files {
		have[f.Dst] = true
	}
	if t.Workdir != nil && !have[WorkdirDst] && verb != "" {
		what := "the folder's"
		if t.Workdir.IsGit() {
			what = "the repository's" // the client fetches it: its credentials stay where they are
		}
		return nil, &api.Error{Kind: api.ErrInvalid, Message: "workdir: " + what + " content was not uploaded", Hint: "use `sky launch`, which uploads it; a child workflow can name files uploaded before in `files`"}
	}
	for _, m := range t.FileMounts {
		if !have[m.Dst] {
			return nil, &api.Error{Kind: api.ErrInvalid, Message: fmt.Sprintf("file_mounts: %s: the source's content was not uploaded", m.Dst), Hint: "use `sky launch`, which uploads it; a child workflow can name files uploaded before in `files`"}
		}
	}
	return t, nil
}

// checkSecrets refuses secrets that have no value, before anything is created.
func checkSecrets(t *task.Task, refs map[string]string) *api.Error {
	for _, name := range sortedKeys(refs) {
		if err := task.ValidateEnvName(name); err != nil {
			return invalid("secrets: %v", err)
		}
	}
	if missing := t.UnresolvedSecrets(refs); len(missing) > 0 {
		return &api.Error{Kind: api.ErrInvalid, Message: "secrets without a value: " + strings.Join(missing, ", "), Hint: "give each with --secret NAME=VALUE"}
	}
	return nil
}

// checkFiles refuses content that is not kept here, before anything is created.
func (a *Activities) checkFiles(files []api.FileMount) (*api.Error, error) {
	for _, f := range files {
		if f.Dst == "" || strings.Contains(f.Dst, "\x00") {
			return invalid("files: %q is no destination", f.Dst), nil
		}
		kept, err := a.Artifacts.HasManifest(f.Manifest)
		switch {
		case errors.Is(err, filesync.ErrInvalid):
			return invalid("files: %s: %.80q is no manifest's id", f.Dst, f.Manifest), nil
		case err != nil:
			return nil, fmt.Errorf("the content of %s can't be looked up: %w", f.Dst, err)
		case !kept:
			return &api.Error{Kind: api.ErrNotFound, Message: fmt.Sprintf("the content of %s is not kept here", f.Dst), Hint: "upload it first, as `sky launch` does"}, nil
		}
	}
	return nil, nil
}

// WorkdirDst is where the workdir goes on every node.
const WorkdirDst = "~/sky_workdir"

// ParseTask parses the text of a single task.
func ParseTask(text string) (*task.Task, *api.Error) {
	f, err := task.Parse("task", []byte(text), task.ParseOptions{})
	if err != nil {
		return nil, &api.Error{Kind: api.ErrInvalid, Message: err.Error()}
	}
	if f.Kind != task.Single || len(f.Tasks) != 1 {
		return nil, &api.Error{Kind: api.ErrInvalid, Message: "several tasks in one file are a pipeline or job group", Hint: "pipelines and job groups are for `sky jobs launch`"}
	}
	return f.Tasks[0], nil
}

// unsupported refuses the flags of a launch whose effect comes later.
func unsupported(b api.LaunchBody) *api.Error {
	if b.CloneDiskFrom != "" {
		return &api.Error{Kind: api.ErrNotSupported, Message: "--clone-disk-from comes with the cloud providers of a later release"}
	}
	switch b.WaitFor {
	case "", "jobs_and_ssh", "jobs", "none":
	default: // the API refuses it; a foreign workflow's input comes here unread
		return invalid("wait_for must be jobs_and_ssh, jobs or none, not %q", b.WaitFor)
	}
	return unknownWorkspace(b.Workspace)
}

// unknownWorkspace refuses workspaces other than the one there is.
func unknownWorkspace(name string) *api.Error {
	if name == "" || name == "default" {
		return nil
	}
	return &api.Error{Kind: api.ErrNotSupported, Message: fmt.Sprintf("there is no workspace %q: workspaces come with a later release, until then there is only `default`", name),
		Hint: "leave --workspace and active_workspace out"}
}
