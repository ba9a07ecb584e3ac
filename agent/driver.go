package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/agent/durable"
	"github.com/skyloom/skyloom/api"
)

// Why a driver is told to leave off.
var (
	errCancelled  = errors.New("the job was cancelled")
	errRestarted  = errors.New("the cluster was stopped before the job ended")
	errShutdown   = errors.New("the agent is ending") // jobs live on
	errRankFailed = errors.New("another rank failed")
	errOrdered    = errors.New("the node had been told to end the job's processes")
)

// errLost says that a node of the job is gone for good.
type errLost struct {
	node   int
	reason string
}

func (e errLost) Error() string {
	return fmt.Sprintf("%s was lost: %s", api.NodeName(e.node), e.reason)
}

// suspectAfter is how long a node may be silent before the job's row says so.
const suspectAfter = 3 * time.Second

// driver brings one job through its stages over the nodes. Each stage is written before it is begun, and everything it
// asks of a node is idempotent, so that the driver of a restarted agent goes on where this one stood.
type driver struct {
	a      *Agent
	j      *jobState
	ctx    context.Context
	cancel context.CancelCauseFunc

	mu      sync.Mutex
	trouble map[int]string // by node: what keeps it from answering
}

// startDriver starts the driver of a placed job. The caller holds a.mu.
func (a *Agent) startDriver(j *jobState) {
	d := &driver{a: a, j: j, trouble: map[int]string{}}
	d.ctx, d.cancel = context.WithCancelCause(context.Background())
	j.driver = d
	a.drivers.Add(1)
	switch {
	case j.Row.Status.Terminal():
		d.cancel(errRestarted)
	case j.Cancel:
		d.cancel(errCancelled)
	default:
		for _, n := range j.nodes() {
			if why, gone := a.lost[j.Place.NodeIDs[n]]; gone {
				d.cancel(errLost{n, why})
			}
		}
	}
	go d.run()
}

func (d *driver) run() {
	a := d.a
	defer a.drivers.Done()
	o, settled := d.drive()
	if !settled {
		return
	}
	a.failpoint("before-finish")
	a.mu.Lock()
	b := &durable.Batch{}
	a.end(b, d.j, o)
	a.commit(b)
	row := d.j.Row
	a.mu.Unlock()
	a.failpoint("after-finish")
	a.wakeScheduler()
	if !d.tellAll(row) {
		return
	}
	a.mu.Lock()
	d.j.Stage, d.j.driver = stageDone, nil
	b = &durable.Batch{}
	b.Put(jobKey(row.ID), d.j.jobRecord)
	a.commit(b)
	a.mu.Unlock()
}

// drive gives the outcome; false: the agent ends, the job goes on.
func (d *driver) drive() (outcome, bool) {
	a, j := d.a, d.j
	a.mu.Lock()
	stage, over := j.Stage, j.Row.Status.Terminal()
	nodes := j.nodes()
	a.mu.Unlock()
	if over { // it was ended by decree, or its end is still to be told to the nodes
		return outcome{}, d.killAll(nodes) == nil
	}
	if stage == stagePlaced {
		if err := d.prepare(nodes); err != nil {
			return d.broken(nodes, err)
		}
		stage = stageRun
		if j.Setup {
			stage = stageSetup
		}
		d.enter(stage)
	}
	if stage == stageSetup {
		res, cause := d.phase(phaseSetup, nodes)
		if o, settled, done := d.judge(phaseSetup, nodes, res, cause); done {
			return o, settled
		}
		if !j.Run {
			return outcome{status: api.JobSucceeded}, true
		}
		if cause := context.Cause(d.ctx); cause != nil {
			return d.broken(nodes, cause)
		}
		stage = stageRun
		d.enter(stage)
	}
	a.mu.Lock()
	nodes = j.nodes()
	a.mu.Unlock()
	res, cause := d.phase(phaseRun, nodes)
	o, settled, done := d.judge(phaseRun, nodes, res, cause)
	if !done {
		o = outcome{status: api.JobSucceeded, codes: make([]int, len(nodes))}
		settled = true
	}
	return o, settled
}

// enter writes the stage and what the row shows of it.
func (d *driver) enter(s stage) {
	a := d.a
	a.mu.Lock()
	now := a.now()
	d.j.Stage = s
	d.j.Row.Reason = ""
	switch {
	case s == stageRun:
		d.j.Row.Status, d.j.Row.StartAt = api.JobRunning, &now
	case d.j.Run:
		d.j.Row.Status = api.JobSettingUp
	default: // a setup alone starts here
		d.j.Row.Status, d.j.Row.StartAt = api.JobSettingUp, &now
	}
	b := &durable.Batch{}
	a.rowChanged(b, d.j)
	a.commit(b)
	a.mu.Unlock()
	a.failpoint("after-stage")
}

// prepare gets every node ready; all of them are before anything starts anywhere.
func (d *driver) prepare(nodes []int) error {
	secrets, err := d.a.secrets(d.j)
	if err != nil {
		return fmt.Errorf("the job's secrets cannot be read: %w", err)
	}
	return d.each(d.ctx, nodes, func(ctx context.Context, n int) error {
		return d.retry(ctx, n, func(ctx context.Context, nd node) error {
			req, ok := d.request(n, secrets)
			if !ok {
				return errRestarted
			}
			_, err := nd.prepare(ctx, req)
			return err
		})
	})
}

// request makes what a node is asked to prepare; false if the job was ended by decree meanwhile.
func (d *driver) request(n int, secrets map[string]string) (partRequest, bool) {
	a, j := d.a, d.j
	a.mu.Lock()
	defer a.mu.Unlock()
	if j.spec == nil {
		return partRequest{}, false
	}
	c := a.cluster.Spec
	r := partRequest{
		JobID: j.Row.ID, Nonce: j.Nonce, Key: j.Row.Key, Epoch: a.epoch(), Name: j.Row.Name, NodeName: api.NodeName(n), Rank: -1,
		Nodes: j.Row.NumNodes, LogDir: j.LogDir, Workdir: j.spec.Workdir,
	}
	if j.Setup {
		r.Setup, r.SetupEnv = j.spec.Setup, setupEnv(j, j.spec, secrets, c, n)
	}
	if !j.Run {
		return r, true
	}
	for rank, s := range j.Place.Ranks {
		if s.Node == n {
			r.Rank, r.Run, r.Devices = rank, j.spec.Run, s.Devices
			r.RunLog = runLogName(rank, n, len(j.Place.NodeIDs))
			r.RunEnv = runEnv(j, j.spec, secrets, c, rank)
		}
	}
	return r, true
}

// phase runs a phase on nodes at once and ends it everywhere when it fails anywhere or the driver is told to leave off.
// The cause is nil, or why it was ended. Results stand in the order of nodes.
func (d *driver) phase(name string, nodes []int) ([]result, error) {
	ctx, stop := context.WithCancelCause(d.ctx)
	defer stop(nil)
	res := make([]result, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() {
			st, err := d.follow(ctx, n, name)
			switch {
			case errors.Is(err, errOrdered):
				res[i] = result{code: killedCode, ordered: true}
				stop(errRankFailed)
				return
			case err != nil:
				if ctx.Err() == nil {
					res[i].err = err
					stop(errRankFailed)
				}
				return
			}
			res[i] = resultOf(st.phase(name))
			switch {
			case st.Killed && !res[i].natural:
				res[i] = result{code: killedCode, ordered: true}
				stop(errRankFailed)
			case !res[i].natural || res[i].code != 0:
				res[i].first = time.Now()
				stop(errRankFailed)
			}
		})
	}
	wg.Wait()
	cause := context.Cause(ctx)
	if cause == nil || errors.Is(cause, errShutdown) {
		return res, cause
	}
	var mu sync.Mutex
	err := d.eachNode(nodes, func(i, n int) error {
		st, gone, err := d.kill(n)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		switch r := resultOf(st.phase(name)); {
		case res[i].first != (time.Time{}) || res[i].natural || res[i].err != nil:
		case gone:
			res[i] = result{code: killedCode, lost: true}
		case r.natural && st.phase(name).Ended:
			res[i] = r
		default:
			res[i] = result{code: killedCode}
		}
		return nil
	})
	if err != nil {
		return res, errShutdown
	}
	return res, cause
}

// follow starts a phase on a node and waits for its end.
func (d *driver) follow(ctx context.Context, n int, phase string) (partState, error) {
	var st partState
	err := d.retry(ctx, n, func(ctx context.Context, nd node) (err error) {
		st, err = nd.start(ctx, d.ref(), phase)
		return err
	})
	for err == nil && !st.phase(phase).Ended {
		if st.Killed || st.over() {
			return st, errOrdered
		}
		err = d.retry(ctx, n, func(ctx context.Context, nd node) (err error) {
			st, err = nd.await(ctx, d.ref(), st.Version)
			return err
		})
	}
	return st, err
}

// judge turns the results of a phase into an outcome. done is false if all went well and the job goes on.
func (d *driver) judge(phase string, nodes []int, res []result, cause error) (o outcome, settled, done bool) {
	if errors.Is(cause, errShutdown) {
		return o, false, true
	}
	return verdict(phase, nodes, res, cause), true, !allGood(res)
}

// broken gives the outcome of a job that could not be prepared.
func (d *driver) broken(nodes []int, err error) (outcome, bool) {
	if errors.Is(err, errShutdown) || d.killAll(nodes) != nil {
		return outcome{}, false
	}
	var lost errLost
	switch {
	case errors.Is(err, errCancelled):
		return outcome{status: api.JobCancelled, reason: "cancelled before its run started"}, true
	case errors.Is(err, errRestarted):
		return outcome{status: api.JobFailed, reason: errRestarted.Error()}, true
	case errors.As(err, &lost):
		return outcome{status: api.JobFailedDriver, reason: lost.Error()}, true
	}
	return outcome{status: api.JobFailedDriver, reason: "the job could not be started: " + err.Error()}, true
}

// killAll ends the job's processes on nodes; only the agent's own end stops it from trying.
func (d *driver) killAll(nodes []int) error {
	return d.eachNode(nodes, func(_, n int) error { _, _, err := d.kill(n); return err })
}

// kill ends the job's processes on one node. gone says that the node itself was lost meanwhile.
func (d *driver) kill(n int) (st partState, gone bool, err error) {
	ctx, cancel := d.a.context()
	defer cancel()
	err = d.retry(ctx, n, func(ctx context.Context, nd node) (err error) {
		st, err = nd.kill(ctx, d.ref(), d.a.cfg.KillGrace)
		return err
	})
	var lost errLost
	switch {
	case errors.As(err, &lost):
		return st, true, nil
	case ctx.Err() != nil:
		return st, false, errShutdown
	case agentapi.IsKind(err, agentapi.KindNotFound):
		return st, true, nil // the node has forgotten the job, or is another one
	}
	return st, false, err
}

// tellAll tells the nodes how the job ended; false if the agent ends before all know.
func (d *driver) tellAll(row api.Job) bool {
	d.a.mu.Lock()
	nodes := make([]int, 0, len(d.j.Place.NodeIDs))
	for n := range d.j.Place.NodeIDs {
		if d.j.Setup || slices.ContainsFunc(d.j.Place.Ranks, func(s slot) bool { return s.Node == n }) {
			nodes = append(nodes, n)
		}
	}
	d.a.mu.Unlock()
	ctx, cancel := d.a.context()
	defer cancel()
	d.eachNode(nodes, func(_, n int) error {
		return d.retry(ctx, n, func(ctx context.Context, nd node) error {
			return nd.finish(ctx, d.ref(), row.Status, row.Reason)
		})
	})
	return ctx.Err() == nil
}

func (d *driver) ref() partRef {
	d.a.mu.Lock()
	defer d.a.mu.Unlock()
	return partRef{JobID: d.j.Row.ID, Nonce: d.j.Nonce, Epoch: d.a.epoch()}
}

// each does f for nodes at once, ends the others at the first error, and gives that error (the cause, if d was cancelled).
func (d *driver) each(ctx context.Context, nodes []int, f func(context.Context, int) error) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() {
			if err := f(ctx, n); err != nil {
				stop(err)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// eachNode does f for nodes at once and gives one of the errors.
func (d *driver) eachNode(nodes []int, f func(i, n int) error) error {
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() { errs[i] = f(i, n) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// retry asks a node until it answers: an agent that restarts, a network that is cut for a while, a full disk are waited
// for, and the job's row says so. A refusal, the loss of the node or the end of ctx (with its cause) ends it.
func (d *driver) retry(ctx context.Context, n int, f func(context.Context, node) error) error {
	var since time.Time
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		nd, err := d.a.nodeOf(d.j, n)
		if err != nil {
			return err
		}
		err = f(ctx, nd)
		if err == nil {
			d.setTrouble(n, "")
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		wait, why := patience(err)
		if !wait {
			return err
		}
		if since.IsZero() {
			since = time.Now()
		}
		if why != "" || time.Since(since) > suspectAfter {
			if why == "" {
				why = fmt.Sprintf("does not answer since %s (%v)", d.a.now().Add(-time.Since(since)).Format("15:04:05"), shorten(err))
			}
			d.setTrouble(n, api.NodeName(n)+" "+why)
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
		case <-d.a.stop:
		}
		t.Stop()
	}
}

// patience says whether an error passes with time, and how a node in that state is spoken of.
func patience(err error) (wait bool, why string) {
	var e *agentapi.Error
	if errors.Is(err, errRestarted) {
		return false, ""
	}
	if !errors.As(err, &e) {
		return true, "" // the network
	}
	switch e.Kind {
	case agentapi.KindDiskFull, agentapi.KindConflict:
		return true, "waits: " + e.Detail
	case agentapi.KindStaleEpoch, agentapi.KindInternal:
		return true, ""
	}
	return false, ""
}

func shorten(err error) string {
	s := err.Error()
	if i := strings.LastIndex(s, ": "); i >= 0 {
		s = s[i+2:]
	}
	return s
}

// setTrouble shows in the row what keeps a node from answering.
func (d *driver) setTrouble(n int, what string) {
	d.mu.Lock()
	if d.trouble[n] == what {
		d.mu.Unlock()
		return
	}
	if what == "" {
		delete(d.trouble, n)
	} else {
		d.trouble[n] = what
	}
	var all []string
	for _, k := range slices.Sorted(maps.Keys(d.trouble)) {
		all = append(all, d.trouble[k])
	}
	d.mu.Unlock()
	a := d.a
	a.mu.Lock()
	defer a.mu.Unlock()
	text := strings.Join(all, "; ")
	if d.j.Row.Status.Terminal() || d.j.Row.Reason == text {
		return
	}
	d.j.Row.Reason = text
	b := &durable.Batch{}
	a.rowChanged(b, d.j)
	a.commit(b)
}
