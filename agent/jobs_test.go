package agent_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
)

func TestRun(t *testing.T) {
	n := cluster(t, 1)[0]
	j := n.submit(agentapi.JobSpec{Run: "echo hello; echo there >&2; exit 3", Name: "greet"})
	if j.ID != 1 || j.Status != api.JobPending || !strings.HasPrefix(j.LogPath, "~/sky_logs/sky-") {
		t.Errorf("submitted row: %+v", j)
	}
	if got := n.log(1); got != "hello\nthere\n" {
		t.Errorf("log: %q", got)
	}
	j = n.reaches(1, api.JobFailed)
	if len(j.ExitCodes) != 1 || j.ExitCodes[0] != 3 || j.StartAt == nil || j.EndAt == nil || !strings.Contains(j.Reason, "code 3") {
		t.Errorf("ended row: %+v", j)
	}
	n.run("exit 0")
	n.reaches(2, api.JobSucceeded)
}

func TestEnvironment(t *testing.T) {
	n := cluster(t, 1, gpus(2))[0]
	j := n.submit(agentapi.JobSpec{
		Name: "env", User: "bob", Workdir: true, Accelerator: "a100", AcceleratorCount: 2,
		Envs:    map[string]string{"A": "1", "SKYPILOT_NUM_NODES": "shadowed", "SKYPILOT_NODE_RANK": "7"},
		Secrets: map[string]string{"S": "hush"},
		Setup:   "env | sort; pwd", Run: "env | sort; pwd",
	})
	setup, run, end := n.output(j.ID, agentapi.LogQuery{Follow: true})
	if !end.End || end.Status != api.JobSucceeded {
		t.Errorf("end frame: %+v", end)
	}
	task := strings.TrimPrefix(j.LogPath, "~/sky_logs/") + "_c_1"
	both := []string{
		"A=1", "S=hush", "HOME=" + n.cfg.Home, "SKYPILOT_USER=bob", "SKYPILOT_TASK_ID=" + task, n.cfg.Home + "/sky_workdir",
		`SKYPILOT_CLUSTER_INFO={"cluster_name":"c","cloud":"local","region":"local","zone":""}`,
	}
	for _, c := range []struct {
		name, out  string
		want, lack []string
	}{
		{"setup", setup, append([]string{"SKYPILOT_SETUP_NODE_RANK=0", "SKYPILOT_SETUP_NODE_IPS=10.0.0.1", "SKYPILOT_SETUP_NUM_GPUS_PER_NODE=2"}, both...),
			[]string{"CUDA_VISIBLE_DEVICES=", "SKYPILOT_NODE_IPS", "SKYPILOT_LEFT"}},
		{"run", run, append([]string{"SKYPILOT_NODE_RANK=0", "SKYPILOT_NODE_IPS=10.0.0.1", "SKYPILOT_NUM_NODES=shadowed", "SKYPILOT_NUM_GPUS_PER_NODE=2",
			"SKYPILOT_INTERNAL_JOB_ID=1", "CUDA_VISIBLE_DEVICES=0,1"}, both...), []string{"SKYPILOT_SETUP_", "SKYPILOT_LEFT"}},
	} {
		for _, w := range c.want {
			if !strings.Contains("\n"+c.out, "\n"+w+"\n") {
				t.Errorf("%s lacks %s:\n%s", c.name, w, c.out)
			}
		}
		for _, l := range c.lack {
			if strings.Contains(c.out, l) {
				t.Errorf("%s has %s", c.name, l)
			}
		}
	}
	if got := n.file(strings.TrimPrefix(j.LogPath, "~/") + "/tasks/run.log"); got != run {
		t.Errorf("run.log differs from the stream: %q", got)
	}
}

func TestSubmitIsIdempotent(t *testing.T) {
	n := cluster(t, 1)[0]
	spec := agentapi.JobSpec{Key: "same", Epoch: 1, Run: "echo once >> ~/count"}
	for range 3 {
		if j, err := n.api.Submit(ctx(t), spec); err != nil || j.ID != 1 {
			t.Fatalf("%+v, %v", j, err)
		}
	}
	n.reaches(1, api.JobSucceeded)
	n.kill9()
	if j, err := n.api.Submit(ctx(t), spec); err != nil || j.ID != 1 || j.Status != api.JobSucceeded {
		t.Fatalf("after the end: %+v, %v", j, err)
	}
	if j, err := n.api.JobByKey(ctx(t), "same"); err != nil || j.ID != 1 {
		t.Fatalf("by key: %+v, %v", j, err)
	}
	if got := n.file("count"); got != "once\n" {
		t.Errorf("ran: %q", got)
	}
}

func TestRefusals(t *testing.T) {
	head, worker := newNode(t, 0, gpus(1)), newNode(t, 1, gpus(1))
	run := agentapi.JobSpec{Key: "k", Epoch: 5, Run: "true"}
	if _, err := head.api.Submit(ctx(t), run); !agentapi.IsKind(err, agentapi.KindConflict) {
		t.Errorf("unconfigured: %v", err)
	}
	spec := form(t, 5, head, worker)
	spec.Epoch = 4
	if err := head.api.Configure(ctx(t), spec); !agentapi.IsKind(err, agentapi.KindStaleEpoch) {
		t.Errorf("lower epoch: %v", err)
	}
	if _, err := worker.api.Submit(ctx(t), run); !agentapi.IsKind(err, agentapi.KindConflict) {
		t.Errorf("worker: %v", err)
	}
	for _, c := range []struct {
		what, kind string
		change     func(*agentapi.JobSpec)
	}{
		{"old epoch", agentapi.KindStaleEpoch, func(s *agentapi.JobSpec) { s.Epoch = 4 }},
		{"no key", agentapi.KindInvalid, func(s *agentapi.JobSpec) { s.Key = "" }},
		{"nothing to run", agentapi.KindInvalid, func(s *agentapi.JobSpec) { s.Run = "" }},
		{"nodes", agentapi.KindUnfit, func(s *agentapi.JobSpec) { s.NumNodes = 3 }},
		{"accelerators", agentapi.KindUnfit, func(s *agentapi.JobSpec) { s.AcceleratorCount = 2 }},
		{"accelerator kind", agentapi.KindUnfit, func(s *agentapi.JobSpec) { s.Accelerator, s.AcceleratorCount = "H100", 1 }},
		{"fraction above one", agentapi.KindInvalid, func(s *agentapi.JobSpec) { s.AcceleratorCount = 1.5 }},
		{"cpus", agentapi.KindUnfit, func(s *agentapi.JobSpec) { s.CPUs = 5 }},
		{"variable name", agentapi.KindInvalid, func(s *agentapi.JobSpec) { s.Envs = map[string]string{"A=B": "c"} }},
		{"long value", agentapi.KindInvalid, func(s *agentapi.JobSpec) { s.Secrets = map[string]string{"A": strings.Repeat("x", 1<<17)} }},
		{"task id", agentapi.KindInvalid, func(s *agentapi.JobSpec) { s.TaskID = "../../etc" }},
	} {
		s := run
		c.change(&s)
		_, err := head.api.Submit(ctx(t), s)
		var e *agentapi.Error
		if !errors.As(err, &e) || e.Kind != c.kind || e.Status < 400 {
			t.Errorf("%s: %v (%+v)", c.what, err, e)
		}
	}
	if jobs, _ := head.api.Jobs(ctx(t)); len(jobs) != 0 {
		t.Errorf("refused jobs were queued: %v", jobs)
	}
	if _, err := head.api.Job(ctx(t), 9); !agentapi.IsKind(err, agentapi.KindNotFound) {
		t.Errorf("unknown job: %v", err)
	}
}

func TestQueueIsStrict(t *testing.T) {
	n := cluster(t, 1, gpus(2))[0]
	hold := "touch ~/up-$SKYPILOT_INTERNAL_JOB_ID; echo $CUDA_VISIBLE_DEVICES; while [ ! -e ~/go-$SKYPILOT_INTERNAL_JOB_ID ]; do sleep 0.02; done"
	want := func(count float64) agentapi.JobSpec { return agentapi.JobSpec{Run: hold, AcceleratorCount: count} }
	n.submit(want(0.5)) // 1: half of device 0
	n.submit(want(0.5)) // 2: the other half
	n.submit(want(2))   // 3: must wait
	n.submit(want(1))   // 4: would fit, but not before 3
	n.reaches(1, api.JobRunning)
	n.reaches(2, api.JobRunning)
	n.eventually("job 3 says why it waits", func() bool { return strings.Contains(n.job(3).Reason, "accelerators") })
	if j := n.job(4); j.Status != api.JobPending {
		t.Fatalf("job 4 overtook: %+v", j)
	}
	release(n, 1)
	release(n, 2)
	n.reaches(3, api.JobRunning)
	if j := n.job(4); j.Status != api.JobPending {
		t.Fatalf("job 4 overtook: %+v", j)
	}
	release(n, 3)
	n.reaches(4, api.JobRunning)
	release(n, 4)
	n.reaches(4, api.JobSucceeded)
	for id, dev := range map[int64]string{1: "0\n", 2: "0\n", 3: "0,1\n", 4: "0\n"} {
		if got := n.log(id); got != dev {
			t.Errorf("job %d saw devices %q, not %q", id, got, dev)
		}
	}
}

func TestCancel(t *testing.T) {
	t.Parallel()
	n := cluster(t, 1)[0]
	// A tree that ignores TERM, leaves its session, forks twice, and in part drops its environment.
	j := n.run(`trap "" TERM
setsid bash -c 'trap "" TERM; (bash -c "trap \"\" TERM; exec -a escaped-7f3a sleep 300" &) ; exec -a escaped-7f3a sleep 300' &
(setsid env -i bash -c 'trap "" TERM; exec -a escaped-7f3a sleep 300' &)
echo ready
sleep 300`)
	n.eventually("it runs", func() bool { return alive(t, "escaped-7f3a") >= 3 })
	blocked := n.submit(agentapi.JobSpec{Run: "true", CPUs: 4})
	reply, err := n.api.Cancel(ctx(t), agentapi.CancelSpec{JobIDs: []int64{j.ID, blocked.ID, 77}})
	if err != nil || len(reply.Cancelled) != 2 || len(reply.Unknown) != 1 {
		t.Fatalf("%+v, %v", reply, err)
	}
	if left := alive(t, "escaped-7f3a"); left != 0 {
		t.Errorf("%d processes are left", left)
	}
	n.reaches(j.ID, api.JobCancelled)
	n.reaches(blocked.ID, api.JobCancelled)
	if reply, err := n.api.Cancel(ctx(t), agentapi.CancelSpec{JobIDs: []int64{j.ID}}); err != nil || len(reply.Finished) != 1 {
		t.Errorf("again: %+v, %v", reply, err)
	}
}

func TestCancelRacesSuccess(t *testing.T) {
	n := cluster(t, 1)[0]
	for i := range 12 {
		j := n.run(fmt.Sprintf("sleep 0.0%d; exit 0", i))
		time.Sleep(time.Duration(i*3) * time.Millisecond)
		reply, err := n.api.Cancel(ctx(t), agentapi.CancelSpec{JobIDs: []int64{j.ID}})
		if err != nil {
			t.Fatal(err)
		}
		got := n.job(j.ID)
		if (got.Status == api.JobCancelled) != (len(reply.Cancelled) == 1) || !got.Status.Terminal() {
			t.Errorf("reply %+v, row %+v", reply, got)
		}
		time.Sleep(5 * time.Millisecond)
		if again := n.job(j.ID); again.Status != got.Status || again.Seq != got.Seq {
			t.Errorf("the terminal state changed: %+v, then %+v", got, again)
		}
	}
}

func TestEvents(t *testing.T) {
	n := cluster(t, 1)[0]
	n.submit(agentapi.JobSpec{Setup: "true", Run: "true"})
	read := func(after int64) (out []agentapi.Event) {
		t.Helper()
		c, cancel := context.WithTimeout(ctx(t), 10*time.Second)
		defer cancel()
		err := n.api.Events(c, after, func(e agentapi.Event) error {
			out = append(out, e)
			if e.Job != nil && e.Job.Status.Terminal() {
				return agentapi.ErrStop
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	evs := read(0)
	var seen []string
	last := int64(0)
	for _, e := range evs {
		if e.Seq <= last {
			t.Errorf("event %d after %d", e.Seq, last)
		}
		last = e.Seq
		if e.Job != nil {
			seen = append(seen, string(e.Job.Status))
			if e.Job.Seq != e.Seq {
				t.Errorf("row version %d in event %d", e.Job.Seq, e.Seq)
			}
		}
	}
	if got := strings.Join(seen, " "); got != "PENDING SETTING_UP RUNNING SUCCEEDED" {
		t.Errorf("statuses: %s", got)
	}
	n.kill9()
	if again := read(0); again[len(again)-1].Seq != last {
		t.Errorf("unacknowledged events are not kept over a restart")
	}
	if err := n.api.Ack(ctx(t), last); err != nil {
		t.Fatal(err)
	}
	n.kill9()
	n.run("true")
	for _, e := range read(0) {
		if e.Seq <= last {
			t.Errorf("event %d was acknowledged and came again", e.Seq)
		}
	}
	if err := n.api.Events(ctx(t), 1<<40, nil); !agentapi.IsKind(err, agentapi.KindConflict) {
		t.Errorf("cursor ahead: %v", err)
	}
}

func TestScriptSurroundings(t *testing.T) {
	n := cluster(t, 1, quick)[0]
	j := n.run("yes | head -1; echo ${PIPESTATUS[0]}; trap; read line || echo no input; sleep 300 & echo started")
	if got := n.log(j.ID); got != "y\n141\nno input\nstarted\n" {
		t.Errorf("%q", got)
	}
	n.reaches(j.ID, api.JobSucceeded) // what it left behind is ended
	if j := n.reaches(n.run("nosuchcommand").ID, api.JobFailed); !strings.Contains(j.Reason, "not found") {
		t.Errorf("%+v", j)
	}
}

// TestManySubmitters has eight clients queue jobs at once, some twice.
func TestManySubmitters(t *testing.T) {
	n := cluster(t, 1, quick)[0]
	const clients, each = 8, 12
	var wg sync.WaitGroup
	var mu sync.Mutex
	ids := map[int64]string{}
	for c := range clients {
		wg.Go(func() {
			for i := range each {
				key := fmt.Sprintf("%d-%d", c, i)
				var first int64
				for range 2 {
					j, err := n.api.Submit(ctx(t), agentapi.JobSpec{Key: key, Epoch: 1, Run: "echo " + key + " >> ~/ran"})
					if err != nil {
						t.Error(err)
						return
					}
					if first != 0 && j.ID != first {
						t.Errorf("key %s gave jobs %d and %d", key, first, j.ID)
					}
					first = j.ID
				}
				mu.Lock()
				ids[first] = key
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	n.eventually("all have ended", func() bool { return n.info().ActiveJobs == 0 })
	jobs, err := n.api.Jobs(ctx(t))
	if err != nil || len(jobs) != clients*each || len(ids) != clients*each {
		t.Fatalf("%d jobs, %d ids, %v", len(jobs), len(ids), err)
	}
	for i, j := range jobs {
		if j.ID != int64(i+1) || j.Status != api.JobSucceeded || j.Key != ids[j.ID] {
			t.Errorf("job %+v", j)
		}
	}
	if got := strings.Count(n.file("ran"), "\n"); got != clients*each {
		t.Errorf("%d ran", got)
	}
}
