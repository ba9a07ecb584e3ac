package activities

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/arrays"
	"github.com/skyloom/skyloom/internal/cluster"
	"github.com/skyloom/skyloom/internal/failpoint"
	"github.com/skyloom/skyloom/internal/recovery"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/task"
)

var (
	fpBatchBefore  = failpoint.Register("batch.before-submit")
	fpBatchAfter   = failpoint.Register("batch.after-submit")
	fpSettleBefore = failpoint.Register("batch.before-settle")
	fpSettleAfter  = failpoint.Register("batch.after-settle")
)

// ArrayRule is what the task file says of an array.
type ArrayRule struct {
	Count    int `json:"count"`
	Parallel int `json:"parallel"`
}

// DefaultParallel is how many clusters an array uses whose file does not say.
const DefaultParallel = 10

// arrayRule reads a task's array, and refuses what does not go with one.
func arrayRule(f *task.File, t *task.Task) (*ArrayRule, *api.Error) {
	if t.Array == nil {
		return nil, nil
	}
	switch {
	case f.Kind != task.Single:
		return nil, notYet("an array can't be part of a pipeline or a job group", "submit it as a job of its own")
	case t.Checkpoint != nil:
		return nil, notYet("checkpoint is not possible with array: many elements share a node", "let each element write what it must keep to a bucket")
	}
	r := &ArrayRule{Count: t.Array.Elements(), Parallel: t.Array.Parallel}
	if r.Parallel == 0 {
		r.Parallel = DefaultParallel
	}
	r.Parallel = min(r.Parallel, r.Count)
	return r, nil
}

func notYet(message, hint string) *api.Error {
	return &api.Error{Kind: api.ErrNotSupported, Message: message, Hint: hint}
}

// laneBits is where the number of a cluster of an array begins in its admission.
const laneBits = 36

// LaneAdmission is under which number the n-th cluster of an array asks for admission: the first as its job, the others behind
// all jobs of the same precedence.
func LaneAdmission(job int64, n int) int64 { return int64(n)<<laneBits | job }

// AdmissionJob is the job that an admission is for.
func AdmissionJob(admission int64) int64 { return admission & (1<<laneBits - 1) }

// HandInput gives elements of an array to a cluster.
type HandInput struct {
	Job      int64       `json:"job"`
	Batch    int64       `json:"batch"`
	Count    int         `json:"count"` // of the whole array
	Elements arrays.Set  `json:"elements"`
	Submit   SubmitInput `json:"submit"`
}

// HandOutput tells how many elements the cluster runs at once. With an error nothing was queued.
type HandOutput struct {
	Slots int        `json:"slots,omitempty"`
	Error *api.Error `json:"error,omitempty"`
}

// HandOut queues a job for each element of a batch. Idempotent: the agent takes a batch's number once.
func (a *Activities) HandOut(ctx context.Context, in HandInput) (HandOutput, error) {
	defer beat(ctx)()
	t, e := ParseTask(in.Submit.Task)
	if e != nil {
		return HandOutput{Error: e}, nil
	}
	secrets, e := a.secretsOf(ctx, t, in.Submit)
	if e != nil {
		return HandOutput{Error: e}, nil
	}
	in.Submit.Setup = false
	b := agentapi.JobBatch{Number: in.Batch, Spec: jobSpec(t, in.Submit, secrets)}
	b.Spec.Key = fmt.Sprintf("array/%d/%d", in.Job, in.Batch)
	tries := map[int]int{}
	if len(in.Elements) > 0 {
		from, to := in.Elements[0].From, in.Elements[len(in.Elements)-1].To
		if err := a.Store.EachElement(ctx, in.Job, from, to, func(r store.ElementRow) bool { tries[r.Index] = r.Attempt; return true }); err != nil {
			return HandOutput{}, err
		}
	}
	count := strconv.Itoa(in.Count)
	in.Elements.All(func(i int) bool {
		env := map[string]string{"SKYPILOT_ARRAY_INDEX": strconv.Itoa(i), "SKYPILOT_ARRAY_COUNT": count, "SKYPILOT_ATTEMPT": strconv.Itoa(tries[i] + 1)}
		if t.Array != nil {
			for k, v := range t.Array.Element(i) {
				env[k] = v
			}
		}
		b.Elements = append(b.Elements, agentapi.BatchElement{Index: i, Envs: env})
		return true
	})
	c, err := a.headClient(ctx, in.Submit.Provider, in.Submit.Nodes)
	if err != nil {
		return HandOutput{}, err
	}
	defer c.Close()
	if err := failpoint.Hit(fpBatchBefore); err != nil {
		return HandOutput{}, err
	}
	st, err := c.SubmitBatch(ctx, b)
	if err != nil {
		out, err := agentRefused(err, in.Submit.Ref.Name)
		return HandOutput{Error: out.Error}, err
	}
	return HandOutput{Slots: st.Slots}, failpoint.Hit(fpBatchAfter)
}

// SettleInput ends a batch.
type SettleInput struct {
	Job      int64           `json:"job"`
	Batch    int64           `json:"batch"`
	Elements arrays.Set      `json:"elements"`
	Nodes    NodesInput      `json:"nodes"`
	Policy   recovery.Policy `json:"policy"`
	// Lost is why the cluster is gone: only what was heard of it counts.
	Lost string `json:"lost,omitempty"`
	// Cancel ends what still runs.
	Cancel bool `json:"cancel,omitempty"`
	// Look asks the infra whether it is to blame for what failed.
	Look bool `json:"look,omitempty"`
}

// SettleOutput tells what became of the elements.
type SettleOutput struct {
	store.BatchOutcome
	// Open: the batch has not ended. Doubt: something failed, so the infra must be asked; nothing was decided.
	// Silent: the cluster does not answer.
	Open   bool `json:"open,omitempty"`
	Doubt  bool `json:"doubt,omitempty"`
	Silent bool `json:"silent,omitempty"`
	// LostWith is what the infra says of a cluster that is not whole.
	LostWith string `json:"lost_with,omitempty"`
}

// Settle ends a batch: it keeps the logs of its elements, decides what follows for each, writes that down, and lets the cluster forget
// them. Idempotent: the store decides a batch once, and a cluster forgets it only after that.
func (a *Activities) Settle(ctx context.Context, in SettleInput) (SettleOutput, error) {
	defer beat(ctx)()
	if in.Lost != "" {
		if err := a.closeBatchLogs(in); err != nil {
			a.Log.Warn("logs of a lost batch were not closed", "job", in.Job, "batch", in.Batch, "error", err)
		}
		return a.settle(ctx, in, nil, in.Lost)
	}
	c, st, err := a.askBatch(ctx, in)
	if c != nil {
		defer c.Close()
	}
	var said *agentapi.Error
	switch {
	case err != nil && !errors.As(err, &said):
		return SettleOutput{Silent: true}, nil
	case agentapi.IsKind(err, agentapi.KindNotFound):
		// It was settled, and forgotten; or it never came there.
		return a.settle(ctx, in, nil, "")
	case err != nil:
		return SettleOutput{}, err
	case in.Cancel && st.Open > 0:
		if st, err = cancelBatch(ctx, c, st); err != nil {
			return SettleOutput{}, err
		}
	case st.Open > 0:
		return SettleOutput{Open: true}, nil
	}
	lost := ""
	if !in.Cancel && anyFailed(st) {
		if !in.Look {
			return SettleOutput{Doubt: true}, nil
		}
		select {
		case <-time.After(settleFailure):
		case <-ctx.Done():
			return SettleOutput{}, ctx.Err()
		}
		seen, err := a.Inspect(ctx, in.Nodes)
		if err != nil {
			return SettleOutput{}, err
		}
		if seen.Verdict != cluster.VerdictUp {
			lost = "the cluster is not whole: " + seen.Reason
		}
	}
	if err := a.keepBatchLogs(ctx, in, st); err != nil {
		a.Log.Warn("logs of a batch were not kept", "job", in.Job, "batch", in.Batch, "error", err)
	}
	if err := failpoint.Hit(fpSettleBefore); err != nil {
		return SettleOutput{}, err
	}
	out, err := a.settle(ctx, in, st.Jobs, lost)
	if err != nil {
		return out, err
	}
	out.LostWith = lost
	if err := failpoint.Hit(fpSettleAfter); err != nil {
		return SettleOutput{}, err
	}
	if err := c.ForgetBatches(ctx, in.Batch); err != nil {
		a.Log.Warn("a cluster keeps a batch that is settled", "job", in.Job, "batch", in.Batch, "error", err) // the next one's takes it along
	}
	return out, nil
}

// askBatch asks a cluster how a batch stands; twice, since an agent may be starting again.
func (a *Activities) askBatch(ctx context.Context, in SettleInput) (c *agentapi.Client, st agentapi.BatchState, err error) {
	for n := range 2 {
		if n > 0 {
			select {
			case <-time.After(500 * time.Millisecond):
			case <-ctx.Done():
				return nil, st, ctx.Err()
			}
		}
		if c, err = a.headClient(ctx, in.Nodes.Provider, in.Nodes.Nodes); err != nil {
			continue
		}
		patience := time.Second
		if in.Look {
			patience = 10 * time.Second
		}
		quick, cancel := context.WithTimeout(ctx, patience)
		st, err = c.Batch(quick, in.Batch)
		cancel()
		var said *agentapi.Error
		if err == nil || errors.As(err, &said) {
			return c, st, err
		}
		c.Close()
	}
	return nil, st, err
}

// cancelBatch ends the jobs of a batch and waits until nothing of them is left.
func cancelBatch(ctx context.Context, c *agentapi.Client, st agentapi.BatchState) (agentapi.BatchState, error) {
	var ids []int64
	for id := st.First; id <= st.Last; id++ {
		ids = append(ids, id)
	}
	if _, err := c.Cancel(ctx, agentapi.CancelSpec{JobIDs: ids}); err != nil {
		return st, err
	}
	return c.Batch(ctx, st.Number)
}

func anyFailed(st agentapi.BatchState) bool {
	for _, e := range st.Jobs {
		if e.Job.Status.Terminal() && e.Job.Status != api.JobSucceeded {
			return true
		}
	}
	return false
}

// settle decides over the elements. Without jobs only what was heard before is known.
func (a *Activities) settle(ctx context.Context, in SettleInput, jobs []agentapi.ElementJob, lost string) (SettleOutput, error) {
	ended := map[int]api.ArrayElement{}
	status := map[int]api.JobStatus{}
	for _, e := range jobs {
		if !e.Job.Status.Terminal() {
			continue
		}
		el := ElementOf(in.Batch, e.Index, e.Job)
		el.Cluster, el.ClusterHash = in.Nodes.Ref.Name, in.Nodes.Ref.Hash
		ended[e.Index], status[e.Index] = el, e.Job.Status
	}
	now := time.Now().UTC()
	out, err := a.Store.SettleBatch(ctx, in.Job, in.Batch, in.Elements, ended, func(row store.ElementRow, heard bool) store.ElementRow {
		try := arrays.Try{Restarts: row.Restarts, Returns: row.Returns, Cancelled: in.Cancel}
		switch st := status[row.Index]; {
		case heard && (row.Status == api.ManagedSucceeded || st == api.JobSucceeded):
			try.Ending.Status = api.JobSucceeded
		case st != "":
			try.Ending = recovery.Ending{Status: st, ExitCodes: row.ExitCodes, Reason: row.Reason, Lost: lost != ""}
		default:
			try.Unfinished = true
			try.Ending = recovery.Ending{Lost: true, Reason: lost}
		}
		v := arrays.Decide(in.Policy, try)
		row.Status, row.Reason = v.Status, v.Reason
		if v.Counts {
			row.Restarts++
		}
		if v.Return {
			row.Returns++
		}
		if v.Status.Terminal() && row.EndAt == nil {
			row.EndAt = &now
		}
		return row
	})
	return SettleOutput{BatchOutcome: out}, err
}

// ElementOf is what a job of a batch tells of its element: RUNNING, or SUCCEEDED. Whether it has failed is for the settling to say.
func ElementOf(batch int64, index int, job api.Job) api.ArrayElement {
	e := api.ArrayElement{Index: index, Batch: batch, Status: api.ManagedRunning, ExitCodes: job.ExitCodes, Reason: job.Reason, StartAt: job.StartAt, EndAt: job.EndAt,
		Cluster: job.Cluster, ClusterHash: job.ClusterHash, ClusterJobID: job.ID}
	if job.Status == api.JobSucceeded {
		e.Status = api.ManagedSucceeded
	}
	return e
}

// LookInput asks how a cluster of an array stands.
type LookInput struct {
	Nodes   NodesInput `json:"nodes"`
	Batches []int64    `json:"batches"` // that it was given
	Lost    string     `json:"lost,omitempty"`
	// LostRanks are the nodes that are silent; empty: the head.
	LostRanks []int `json:"lost_ranks,omitempty"`
}

// LookOutput tells why a cluster must be given up, or which of its batches have ended.
type LookOutput struct {
	Lost  string  `json:"lost,omitempty"`
	Ended []int64 `json:"ended,omitempty"`
}

// LookAtLane tells whether a cluster is whole, and how far its batches are. It changes nothing.
func (a *Activities) LookAtLane(ctx context.Context, in LookInput) (LookOutput, error) {
	defer beat(ctx)()
	seen, err := a.Inspect(ctx, in.Nodes)
	if err != nil {
		return LookOutput{}, err
	}
	if seen.Verdict != cluster.VerdictUp {
		return LookOutput{Lost: cmp.Or(seen.Reason, "the cluster is not whole")}, nil
	}
	out := LookOutput{}
	c, err := a.headClient(ctx, in.Nodes.Provider, in.Nodes.Nodes)
	if err == nil {
		defer c.Close()
		for _, n := range in.Batches {
			quick, cancel := context.WithTimeout(ctx, 3*time.Second)
			st, berr := c.Batch(quick, n)
			cancel()
			var said *agentapi.Error
			switch {
			case berr == nil && st.Open == 0, agentapi.IsKind(berr, agentapi.KindNotFound):
				out.Ended = append(out.Ended, n)
			case berr != nil && !errors.As(berr, &said):
				err = berr
			}
		}
	}
	if in.Lost != "" && (err != nil || a.anySilent(ctx, in.Nodes, in.LostRanks)) {
		return LookOutput{Lost: in.Lost}, nil
	}
	return out, nil
}
