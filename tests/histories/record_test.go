package histories

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/api/temporalproto"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/providers/memory"
	"github.com/skyloom/skyloom/tests/faults/world"
	"github.com/skyloom/skyloom/workflows"
)

const (
	quick = "resources: {cpus: 2+}\nrun: echo hello\n"
	long  = "resources: {cpus: 2+}\nrun: sleep 36000\n"
	spot  = "resources: {cpus: 2+, use_spot: true}\nrun: sleep 36000\n"
)

// shortHistory is the limit under which the story of a cluster that continues as new is recorded and replayed.
const shortHistory = 60

// TestRecord records the histories anew. It takes about two minutes, since some stories wait.
func TestRecord(t *testing.T) {
	if os.Getenv("SKYLOOM_RECORD") == "" {
		t.Skip("set SKYLOOM_RECORD=1 to record the histories anew")
	}
	t.Run("plain", recordPlain)
	t.Run("short", recordContinued)
	t.Run("managed", recordManaged)
	t.Run("groups", recordGroups)
	t.Run("arrays", recordArrays)
	t.Run("after", recordAfter)
	t.Run("scheduled", recordScheduled)
}

func recordPlain(t *testing.T) {
	w := world.NewReal(t, world.Options{Seed: 1, Cloud: memory.Config{CreateDelay: memory.Duration(300 * time.Millisecond)}})
	full := providers.Errorf(providers.NoCapacity, providers.ScopeZone, "no capacity")
	request := func(name, id string) { save(t, w, name, activities.RequestWorkflowID(id), "") }
	owner := func(name, cluster string) { save(t, w, name, activities.ClusterWorkflowID(cluster), "") }

	// One cluster's life, with most kinds of requests.
	launch := w.Launch(api.LaunchBody{Cluster: "life", Task: "num_nodes: 2\n" + quick})
	w.Result(launch)
	request("launch-new", launch)
	again := w.Launch(api.LaunchBody{Cluster: "life", Task: quick})
	w.Result(again)
	request("launch-reuse", again)
	exec := w.Exec(api.ExecBody{Cluster: "life", Task: long})
	w.Result(exec)
	request("exec", exec)
	cancel := w.CancelJobs("life", true)
	w.Done(cancel)
	request("cancel-jobs", cancel)
	auto := w.Autostop("life", 30, false)
	w.Done(auto)
	request("autostop", auto)
	refresh := w.Refresh("life")
	w.Done(refresh)
	request("refresh", refresh)
	stop := w.Stop("life")
	w.Done(stop)
	request("stop", stop)
	start := w.Start(api.StartBody{Cluster: "life"})
	w.Done(start)
	request("start", start)
	missing := w.Exec(api.ExecBody{Cluster: "nowhere", Task: quick})
	w.Wait(missing, time.Minute)
	request("exec-refused", missing)
	down := w.Down("life")
	w.Done(down)
	request("down", down)
	time.Sleep(time.Second)
	owner("cluster-life", "life")

	check := w.Check()
	w.Done(check)
	request("check", check)
	save(t, w, "reaper", w.Reap(), "")

	// A launch that fails over, one that finds nothing, one that waits and is served, one that waits and is cancelled.
	w.Cloud.Script(memory.Fault{Call: "create", Cluster: "over", Err: full}, memory.Fault{Call: "create", Cluster: "over", Err: providers.Errorf(providers.UnknownOutcome, providers.ScopeZone, "timed out"), AfterEffect: true})
	over := w.Launch(api.LaunchBody{Cluster: "over", Task: quick})
	w.Result(over)
	request("launch-failover", over)
	owner("cluster-failover", "over")
	none := memory.Fault{Call: "create", Err: providers.Errorf(providers.NoCapacity, providers.ScopeCloud, "no capacity anywhere")}
	none.Cluster = "none"
	w.Cloud.Script(none)
	failed := w.Launch(api.LaunchBody{Cluster: "none", Task: quick})
	w.Wait(failed, time.Minute)
	request("launch-failed", failed)
	none.Cluster = "late"
	w.Cloud.Script(none)
	late := w.Launch(api.LaunchBody{Cluster: "late", Task: quick, RetryUntilUp: true})
	none.Cluster, none.Times = "never", -1
	w.Cloud.Script(none)
	never := w.Launch(api.LaunchBody{Cluster: "never", Task: quick, RetryUntilUp: true})
	midway := w.Launch(api.LaunchBody{Cluster: "midway", Task: quick})
	w.Cancel(midway)
	w.Wait(midway, time.Minute)
	request("launch-cancelled", midway)
	owner("cluster-launch-cancelled", "midway")
	w.Cancel(never)
	w.Wait(never, time.Minute)
	request("launch-cancelled-waiting", never)

	// Preemption, and an idle rule that its node asks to have carried out.
	w.Result(w.Launch(api.LaunchBody{Cluster: "spot", Task: "num_nodes: 2\n" + spot}))
	preempt := w.Preempt("spot", 1, 0)
	w.Done(preempt)
	request("preempt", preempt)
	time.Sleep(2 * time.Second)
	owner("cluster-preempted", "spot")
	idle := 1
	w.Result(w.Launch(api.LaunchBody{Cluster: "idle", Task: quick, IdleMinutes: &idle, Down: true}))
	end := time.Now().Add(2 * time.Minute)
	for _, there := w.Cluster("idle"); there && time.Now().Before(end); _, there = w.Cluster("idle") {
		time.Sleep(time.Second)
	}
	time.Sleep(time.Second)
	owner("cluster-autodown", "idle")
	w.Result(late)
	request("launch-retry-until-up", late)
	owner("cluster-waited", "late")
	w.StopFaults()
	w.Converge(3*time.Minute, "over", "late", "never", "midway", "spot", "idle")
}

// recordContinued records a cluster that continues as new with an operation in its queue.
func recordContinued(t *testing.T) {
	was := workflows.HistoryLimit
	workflows.HistoryLimit = shortHistory
	w := world.NewReal(t, world.Options{Seed: 2})
	t.Cleanup(func() { workflows.HistoryLimit = was })
	w.Result(w.Launch(api.LaunchBody{Cluster: "c", Task: quick}))
	id := activities.ClusterWorkflowID("c")
	first := runOf(t, w, id)
	for range 100 {
		if runOf(t, w, id) != first {
			break
		}
		w.Result(w.Exec(api.ExecBody{Cluster: "c", Task: quick}))
	}
	w.Done(w.Down("c"))
	time.Sleep(time.Second)
	save(t, w, "cluster-continued-1", id, first)
	save(t, w, "cluster-continued-2", id, "")
	w.Converge(time.Minute, "c")
}

func runOf(t *testing.T, w *world.World, id string) string {
	t.Helper()
	d, err := w.Client.DescribeWorkflowExecution(context.Background(), id, "")
	if err != nil {
		t.Fatal(err)
	}
	return d.GetWorkflowExecutionInfo().GetExecution().GetRunId()
}

// save writes a workflow's history.
func save(t *testing.T, w *world.World, name, id, run string) {
	t.Helper()
	// A request's row ends a moment before its workflow does: wait for that.
	time.Sleep(300 * time.Millisecond)
	h, err := w.History(id, run)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if err := os.WriteFile(filepath.Join("testdata", name+".json"), encode(t, h), 0o644); err != nil {
		t.Fatal(err)
	}
}

// encode writes a history as JSON, an event a line, without what tells of the machine it was recorded on.
func encode(t *testing.T, h *historypb.History) []byte {
	t.Helper()
	var b bytes.Buffer
	b.WriteString("{\"events\":[\n")
	for i, ev := range h.Events {
		line, err := temporalproto.CustomJSONMarshalOptions{}.Marshal(ev)
		if err != nil {
			t.Fatal(err)
		}
		line = sticky.ReplaceAll(line, []byte(`"name":"sticky",$1"kind":"TASK_QUEUE_KIND_STICKY"`))
		b.Write(line)
		if i < len(h.Events)-1 {
			b.WriteByte(',')
		}
		b.WriteByte('\n')
	}
	b.WriteString("]}\n")
	return b.Bytes()
}

// sticky is the queue of one worker's own: its name holds the host's.
var sticky = regexp.MustCompile(`"name":\s*"[^"]*",(\s*)"kind":\s*"TASK_QUEUE_KIND_STICKY"`)

// files lists the recorded histories.
func files(t *testing.T) []string {
	t.Helper()
	fs, err := filepath.Glob("testdata/*.json")
	if err != nil {
		t.Fatal(err)
	}
	return fs
}

func storyOf(file string) string { return strings.TrimSuffix(filepath.Base(file), ".json") }
