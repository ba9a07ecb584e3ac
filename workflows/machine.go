package workflows

import (
	"encoding/json"
	"fmt"
	"hash/crc32"
	"time"

	"go.temporal.io/sdk/workflow"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/cluster"
	"github.com/skyloom/skyloom/internal/optimizer"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/task"
)

// machine drives the cluster state machine from within a workflow: it keeps the row and the events, and brings up and
// takes down nodes. The entity has one; a managed job has one of its own.
type machine struct {
	st *cluster.State
	// outer is the workflow's context, which a cancel ends; root is the present coroutine's and goes on after it.
	outer, root workflow.Context
	prefix      string
	// halted says that the present operation was cancelled.
	halted func() bool
	// job and owner are of a managed job's cluster: its events bear the job's number, and its watcher tells the job's workflow.
	job   int64
	owner string
	// array says that the cluster runs elements of an array.
	array bool
	// checkpoint says what is saved of the attempt that runs; nil: nothing.
	checkpoint *activities.WatchedCheckpoint
	// log says whose log is kept while it runs; nil: nobody's.
	log *activities.WatchedLog
	*shared
}

// shared is what the views of a machine in different coroutines have in common.
type shared struct {
	// ready is set by the watcher's word that every node answers.
	ready bool
	// under holds the keys of the operations under way.
	under map[string]bool
	// removed says that an incarnation was taken down that never came up.
	removed bool
	// awaits says that nodes are awaited; mute is which of them has been silent for too long, and how.
	awaits bool
	mute   string
	// midway says that the launch had a place, and lost it before its nodes were ready.
	midway bool
}

// key makes a key that no other event or operation of the workflow has.
func (m *machine) key(what string) string {
	m.st.Events++
	return fmt.Sprintf("%s/%s/%d", m.prefix, what, m.st.Events)
}

// event makes a line of the timeline.
func (m *machine) event(op cluster.Op, kind api.EventKind, step, format string, args ...any) store.Event {
	message := fmt.Sprintf(format, args...)
	// The text is part of the key: a task carried out anew repeats no line, and loses none if it is led elsewhere.
	ev := store.Event{Key: fmt.Sprintf("%s/%08x", m.key("event"), crc32.ChecksumIEEE([]byte(message))), Event: api.Event{
		Time: workflow.Now(m.root), Cluster: m.st.Name, Hash: m.st.Ref.Hash, Kind: kind, Step: step, Message: message,
	}}
	if !op.Auto && !op.Quiet {
		ev.RequestID = op.Key
	}
	ev.JobID = m.job
	return ev
}

// row gives the next version of the cluster's row.
func (m *machine) row() api.Cluster {
	m.st.Row.Seq = m.nextSeq()
	m.st.Row.StatusUpdatedAt = workflow.Now(m.root)
	return m.st.Row
}

// nextSeq numbers the versions of the row: by the time of the workflow task, in microseconds, and on from there. Counting
// alone would not do: a task that is lost with its server is carried out anew, signals that came meanwhile may lead it
// elsewhere, and what it then writes must stand above what the lost one wrote.
func (m *machine) nextSeq() int64 {
	return max(m.st.Row.Seq+1, workflow.Now(m.root).UnixMicro())
}

// record writes rows; it is retried until the store takes them.
func (m *machine) record(summary string, b store.Batch) {
	m.write(local(m.root, summary), b)
}

func (m *machine) write(ctx workflow.Context, b store.Batch) {
	if err := workflow.ExecuteLocalActivity(ctx, acts.Record, activities.RecordInput{Batch: b}).Get(ctx, nil); err != nil {
		workflow.GetLogger(m.root).Warn("rows not written", "cluster", m.st.Name, "error", err)
	}
}

// describe tells the Web UI's reader where the cluster stands.
func (m *machine) describe() {
	r := m.st.Row
	if !m.st.Exists() {
		workflow.SetCurrentDetails(m.root, "no cluster")
		return
	}
	s := fmt.Sprintf("**%s** · %s · %s", r.Status, r.ResourcesFull, r.Cloud)
	if r.Step != "" {
		s += fmt.Sprintf("\n\nstep: %s, attempt %d", r.Step, r.Attempt)
	}
	if r.LastError != "" {
		s += "\n\nlast error: " + r.LastError
	}
	if r.NextRetry != nil {
		s += "\n\nnext try: " + r.NextRetry.UTC().Format(time.RFC3339)
	}
	workflow.SetCurrentDetails(m.root, s)
}

// nodes is the input of the activities on the cluster's nodes.
func (m *machine) nodes(op cluster.Op) activities.NodesInput {
	in := activities.NodesInput{Ref: m.st.Ref, Provider: m.st.Provider, Nodes: m.st.Nodes, NumNodes: m.st.NumNodes, EventKey: m.key("nodes")}
	if !op.Auto {
		in.RequestID = op.Key
	}
	return in
}

// adopt takes a place as the cluster's own.
func (m *machine) adopt(c optimizer.Choice, have task.Request, numNodes int) {
	m.st.Provider, m.st.Spec, m.st.NumNodes, m.st.Have = c.Provider, c.Spec, numNodes, have
	m.st.Row = cluster.RowFor(m.st.Row, c.Provider, c.Spec, numNodes)
	m.st.Row.NameOnCloud = m.st.Ref.NameOnCloud()
}

// bringUp makes the nodes of a new incarnation, place after place until one works. The error says why none did; again
// says that a later round may succeed. Nothing is left behind after an error.
func (m *machine) bringUp(ctx workflow.Context, op cluster.Op, in activities.PlanInput, plan activities.PlanOutput) (fail *api.Error, again bool) {
	round := in
	round.CheckHash, round.Mint = false, false
	tries := 0
	for {
		if plan.Choice == nil {
			return plan.Error, plan.Retry
		}
		if !plan.Same {
			m.st.Gen++
			m.st.Token = fmt.Sprintf("%s-%d", m.st.Ref.Hash, m.st.Gen)
			tries = 0
		}
		tries++
		m.st.Row.Attempt++
		m.adopt(*plan.Choice, plan.Have, plan.Task.NumNodes)
		m.st.Row.Status, m.st.Row.InitKind, m.st.Row.Step, m.st.Row.NextRetry = api.ClusterInit, "launching", "provision", nil
		m.st.Epoch++
		m.ready, m.mute = false, ""
		ev := m.event(op, api.EventStep, "provision", "launching on %s: %s", plan.Choice.Infra(), m.st.Row.ResourcesFull)
		ev.Attempt = m.st.Row.Attempt
		out := m.provision(op, ev, plan.Task, false)
		if out.Failure == nil && !out.Ready {
			out = m.awaitReady(ctx, op, plan.Task, out, false)
		}
		if m.halted() {
			m.remove(op, "the launch was cancelled")
			return cluster.Cancelled("the launch was cancelled"), false
		}
		if out.Failure == nil {
			m.st.Nodes = out.Nodes
			return nil, false
		}
		m.midway = m.midway || out.Failure.Midway || out.Failure.Kind == providers.UnknownOutcome
		m.st.Row.LastError = out.Failure.Message
		bad := m.event(op, api.EventError, "provision", "%s: %s", plan.Choice.Infra(), out.Failure.Message)
		bad.Attempt = m.st.Row.Attempt
		m.record("attempt failed", store.Batch{Clusters: []api.Cluster{m.row()}, Events: []store.Event{bad}})
		m.describe()

		round.Failures = append(round.Failures, *out.Failure)
		round.Blocked, round.Last, round.Tries, round.After = plan.Blocked, plan.Choice, tries, out.After
		next := activities.PlanOutput{}
		if err := workflow.ExecuteLocalActivity(local(m.root, "choose the next place"), acts.Plan, round).Get(m.root, &next); err != nil {
			m.remove(op, "the launch failed")
			return asError(err), false
		}
		next.Task = plan.Task
		plan = next
		if !plan.Same {
			m.cleanUp(op)
		}
		if plan.Wait > 0 {
			workflow.NewTimerWithOptions(ctx, plan.Wait, workflow.TimerOptions{Summary: "back off"}).Get(ctx, nil)
			if m.halted() {
				m.remove(op, "the launch was cancelled")
				return cluster.Cancelled("the launch was cancelled"), false
			}
		}
	}
}

// provisionInput is what every activity that brings nodes up or sets them up must know of the cluster.
func (m *machine) provisionInput(op cluster.Op) activities.ProvisionInput {
	return activities.ProvisionInput{RequestID: op.Key, Ref: m.st.Ref, NumNodes: m.st.NumNodes, Token: m.st.Token, Epoch: m.st.Epoch, SecretRef: m.st.SecretRef,
		User: m.st.Row.UserName, Choice: optimizer.Choice{Provider: m.st.Provider, Spec: m.st.Spec}}
}

// provision asks the infra for the nodes and sets up their agents.
func (m *machine) provision(op cluster.Op, ev store.Event, t activities.TaskSummary, restart bool) activities.ProvisionOutput {
	in := m.provisionInput(op)
	in.Restart, in.Beside = restart, restart && m.st.Row.Status != api.ClusterStopped
	in.Row, in.Events, in.EventKey, in.Autostop = m.row(), []store.Event{ev}, m.key("provision"), m.autostopFor(t)
	m.describe()
	var out activities.ProvisionOutput
	summary := fmt.Sprintf("bring up %d node(s) on %s", m.st.NumNodes, m.st.Provider)
	ctx := remote(m.root, activities.QueueProvision, summary, 2*time.Minute, 20*time.Minute)
	if err := workflow.ExecuteActivity(ctx, acts.Provision, in).Get(ctx, &out); err != nil {
		out.Failure = &optimizer.Failure{Choice: in.Choice, Kind: providers.Internal, Scope: providers.ScopeZone, Message: asError(err).Message}
	}
	return out
}

// autostopFor is the idle rule a cluster gets with a task; nil: none.
func (m *machine) autostopFor(t activities.TaskSummary) *agentapi.Autostop {
	if t.Autostop != nil {
		a := *t.Autostop
		a.Generation = m.st.Autostop.Generation + 1
		if t.Hooks != nil {
			a.Hooks = t.Hooks
		}
		m.st.Autostop = a
	} else if t.Hooks != nil {
		m.st.Autostop.Hooks = t.Hooks
		m.st.Autostop.Generation++
		if m.st.Autostop.Generation == 1 {
			m.st.Autostop.IdleMinutes = -1
		}
	}
	m.showAutostop()
	return m.idleRule()
}

// idleRule is the idle rule in force; nil: there never was one.
func (m *machine) idleRule() *agentapi.Autostop {
	if m.st.Autostop.Generation == 0 {
		return nil
	}
	a := m.st.Autostop
	return &a
}

func (m *machine) showAutostop() {
	m.st.Row.AutostopMinutes, m.st.Row.ToDown, m.st.Row.WaitFor = -1, false, ""
	if a := m.st.Autostop; a.Generation > 0 && a.IdleMinutes >= 0 {
		m.st.Row.AutostopMinutes, m.st.Row.ToDown, m.st.Row.WaitFor = a.IdleMinutes, a.Down, a.WaitFor
	}
}

// awaitReady waits for the watcher's word, then sets up the agents. Waiting costs nothing.
func (m *machine) awaitReady(ctx workflow.Context, op cluster.Op, t activities.TaskSummary, out activities.ProvisionOutput, restart bool) activities.ProvisionOutput {
	m.awaits, m.mute = true, ""
	defer func() { m.awaits = false }()
	m.st.Nodes = out.Nodes
	m.st.Row.Step = "wait for nodes"
	m.record("wait for the nodes", store.Batch{Clusters: []api.Cluster{m.row()}, Watches: []store.Watch{m.watch(true)},
		Events: []store.Event{m.event(op, api.EventStep, "provision", "%d node(s) accepted; waiting until they run", len(out.Nodes))}})
	ok, err := workflow.AwaitWithTimeout(ctx, provisionPatience, func() bool { return m.ready || m.mute != "" || m.halted() })
	if m.halted() || (err != nil && m.halted()) {
		return out
	}
	if m.mute != "" && !m.ready {
		out.Failure = &optimizer.Failure{Choice: optimizer.Choice{Provider: m.st.Provider, Spec: m.st.Spec}, Kind: providers.NoCapacity, Scope: providers.ScopeZone,
			Message: "nodes were lost before they were ready: " + m.mute, Midway: true}
		return out
	}
	if !ok {
		out.Failure = &optimizer.Failure{Choice: optimizer.Choice{Provider: m.st.Provider, Spec: m.st.Spec}, Kind: providers.NoCapacity, Scope: providers.ScopeZone,
			Message: fmt.Sprintf("nodes were accepted but did not run within %s", provisionPatience)}
		return out
	}
	in := m.provisionInput(op)
	in.Restart, in.Beside = restart, restart && m.st.Row.Status != api.ClusterStopped
	in.EventKey, in.Nodes, in.Autostop = m.key("configure"), out.Nodes, m.idleRule()
	actx := remote(m.root, activities.QueueProvision, "set up the agents", time.Minute, 10*time.Minute)
	var conf activities.ProvisionOutput
	if err := workflow.ExecuteActivity(actx, acts.Configure, in).Get(actx, &conf); err != nil {
		conf.Failure = &optimizer.Failure{Choice: in.Choice, Kind: providers.Internal, Scope: providers.ScopeZone, Message: asError(err).Message}
	}
	return conf
}

// silent takes note that a node which is awaited will not be ready.
func (m *machine) silent(o activities.Observed) {
	if m.awaits {
		m.mute = fmt.Sprintf("node %d %s", o.Rank, o.Message)
	}
}

// watch is the row by which the servers share out whom to watch.
func (m *machine) watch(provisioning bool) store.Watch {
	row := activities.WatchRow{Name: m.st.Name, Ref: m.st.Ref, Provider: m.st.Provider, Nodes: m.st.Nodes, NumNodes: m.st.NumNodes, Epoch: m.st.Epoch, Provisioning: provisioning, Workflow: m.owner, Jobs: m.job > 0, Checkpoint: m.checkpoint, Log: m.log}
	if m.array {
		row.Array = m.job
	}
	data := encode(row)
	return store.Watch{Hash: m.st.Ref.Hash, Cluster: m.st.Name, Data: data}
}

// up makes the row of a cluster whose nodes all run, and what goes with it.
func (m *machine) up(op cluster.Op, message string) store.Batch {
	now := workflow.Now(m.root)
	r := &m.st.Row
	r.Status, r.InitKind, r.StatusReason, r.Step, r.LastError, r.NextRetry, r.Attempt, r.EverUp = api.ClusterUp, "", "", "", "", nil, 0, true
	r.HeadIP, r.NodeIPs, r.NodeNames = "", nil, nil
	for _, n := range m.st.Nodes {
		r.NodeIPs = append(r.NodeIPs, n.InternalIP)
		r.NodeNames = append(r.NodeNames, n.ID)
		if n.Rank == 0 {
			r.HeadIP = n.InternalIP
			if n.ExternalIP != "" {
				r.HeadIP = n.ExternalIP
			}
		}
	}
	r.LastEvent = message
	m.st.Metered = true
	row := m.row()
	return store.Batch{
		Clusters: []api.Cluster{row},
		Watches:  []store.Watch{m.watch(false)},
		Events:   []store.Event{m.event(op, api.EventStatus, "", "%s", message)},
		UsageStarts: []store.UsageStart{{Hash: row.Hash, N: int(m.st.Epoch), Name: row.Name, User: row.UserName, UserHash: row.UserHash, Nodes: row.Nodes,
			PricePerHour: row.PricePerHour, ResourcesStr: row.ResourcesFull, Resources: resourcesOf(row), At: now}},
	}
}

func resourcesOf(r api.Cluster) map[string]any {
	res := map[string]any{"infra": r.Cloud, "cpus": r.CPUs, "memory": r.MemoryGB, "use_spot": r.Spot}
	if r.Region != "" {
		res["region"] = r.Region
	}
	if r.InstanceType != "" {
		res["instance_type"] = r.InstanceType
	}
	if r.Accelerators != "" {
		res["accelerators"] = r.Accelerators
	}
	return res
}

// cleanUp deletes what an attempt may have left, until the infra lists nothing of it.
func (m *machine) cleanUp(op cluster.Op) {
	if m.st.Provider == "" {
		return // no infra was asked yet
	}
	in := m.nodes(op)
	in.GiveUp = !m.halted() // a cancel is over when nothing runs any more
	in.Lost = in.GiveUp && m.mute != ""
	ctx := remote(m.root, activities.QueueProvision, "delete what the attempt left", 2*time.Minute, forever)
	if err := workflow.ExecuteActivity(ctx, acts.Deprovision, in).Get(ctx, nil); err != nil {
		workflow.GetLogger(m.root).Error("clean-up gave up; the reaper goes on", "cluster", m.st.Name, "error", err)
	}
	m.st.Nodes = nil
}

// removal is the batch that ends the cluster's row.
func (m *machine) removal(why string) store.Batch {
	now := workflow.Now(m.root)
	m.st.Row.Seq = m.nextSeq()
	hash := m.st.Row.Hash
	return store.Batch{
		Removals:  []store.Removal{{Name: m.st.Name, Hash: hash, Seq: m.st.Row.Seq, At: now}},
		EndJobs:   []store.EndJobs{{Hash: hash, Status: api.JobFailedDriver, Reason: why, At: now}},
		UsageEnds: []store.UsageEnd{{Hash: hash, At: now}},
		Unwatches: []string{hash},
		Events:    []store.Event{m.event(cluster.Op{Auto: true}, api.EventStatus, "", "TERMINATED: %s", why)},
	}
}

// remove takes down a cluster that never came up, row and all.
func (m *machine) remove(op cluster.Op, why string) {
	m.cleanUp(op)
	hash := m.st.Row.Hash
	in := activities.RecordInput{Batch: m.removal(why), DropScope: activities.ClusterScope(hash)}
	ctx := brief(m.root, "remove the row")
	if err := workflow.ExecuteLocalActivity(ctx, acts.Record, in).Get(ctx, nil); err != nil {
		workflow.GetLogger(m.root).Warn("row not removed; the reaper does it", "cluster", m.st.Name, "error", err)
	}
	m.st.Forget()
	m.removed = true
	m.describe()
}

func encode(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("workflows: encode %T: %v", v, err))
	}
	return b
}
