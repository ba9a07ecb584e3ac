package workflows_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/cluster"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/providers/memory"
	"github.com/skyloom/skyloom/tests/faults/world"
)

const (
	quick = "resources: {cpus: 2+}\nrun: echo hello\n"
	long  = "resources: {cpus: 2+}\nrun: sleep 36000\n"
)

// in runs f in a world of fake time; what it leaves must come to rest.
func in(t *testing.T, o world.Options, f func(t *testing.T, w *world.World)) {
	t.Helper()
	var story string
	world.Run(t, o, func(w *world.World) {
		f(w.T.(*testing.T), w)
		w.StopFaults()
		w.Converge(8*time.Hour, "c", "d")
		if w.T.Failed() {
			story = w.Story("c", "d")
		}
	})
	if t.Failed() {
		t.Log(story)
	}
}

// signal sends a cluster's workflow a signal, past the request workflows.
func signal(t *testing.T, w *world.World, name, signal string, arg any) {
	t.Helper()
	if err := w.Client.SignalWorkflow(context.Background(), activities.ClusterWorkflowID(name), "", signal, arg); err != nil {
		t.Fatalf("signal %s to %s: %v", signal, name, err)
	}
}

func op(kind cluster.OpKind, key string, body any) cluster.Op {
	raw, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	return cluster.Op{Key: key, Kind: kind, Body: raw, User: world.User}
}

func noCapacity(times int) memory.Fault {
	return memory.Fault{Call: "create", Err: providers.Errorf(providers.NoCapacity, providers.ScopeCloud, "no capacity"), Times: times}
}

func status(w *world.World, name string) api.ClusterStatus {
	row, _ := w.Cluster(name)
	return row.Status
}

func TestAnOperationIsCarriedOutOncePerKey(t *testing.T) {
	in(t, world.Options{}, func(t *testing.T, w *world.World) {
		w.Result(w.Launch(api.LaunchBody{Cluster: "c", Task: quick}))
		id := uuid.NewString()
		exec := op(cluster.OpExec, id, api.ExecBody{Base: api.Base{RequestID: id}, Cluster: "c", Task: quick})
		for range 3 {
			signal(t, w, "c", activities.SignalOp, exec)
		}
		w.Sleep(5 * time.Minute) // the entity is no longer young
		signal(t, w, "c", activities.SignalOp, exec)
		w.Sleep(time.Minute)
		if jobs := w.Jobs("c", ""); len(jobs) != 2 {
			t.Errorf("%d jobs, want that of the launch and one more", len(jobs))
		}
	})
}

func TestCancelWhileProvisioning(t *testing.T) {
	in(t, world.Options{Cloud: memory.Config{CreateDelay: memory.Duration(time.Minute)}}, func(t *testing.T, w *world.World) {
		id := w.Launch(api.LaunchBody{Cluster: "c", Task: "num_nodes: 3\n" + long})
		w.Sleep(20 * time.Second)
		if n := len(w.Cloud.Ledger().Alive()); n != 3 {
			t.Fatalf("%d nodes are on their way, want 3", n)
		}
		begun := time.Now()
		w.Cancel(id)
		r := w.Wait(id, time.Minute)
		if r.Status != api.RequestCancelled {
			t.Errorf("the launch is %s", r.Status)
		}
		if took := r.FinishedAt.Sub(begun); took > 10*time.Second {
			t.Errorf("the cancel took %s: it must not wait for the nodes to come up", took)
		}
		if _, there := w.Cluster("c"); there || len(w.Cloud.Ledger().Alive()) > 0 {
			t.Errorf("a cluster that was never UP is left, with %d nodes", len(w.Cloud.Ledger().Alive()))
		}
	})
}

func TestDownWhileWaitingForCapacity(t *testing.T) {
	in(t, world.Options{}, func(t *testing.T, w *world.World) {
		w.Cloud.Script(noCapacity(-1))
		id := w.Launch(api.LaunchBody{Cluster: "c", Task: long, RetryUntilUp: true})
		w.Sleep(3 * time.Minute)
		r := w.Request(id)
		if r.Status != api.RequestWaiting || r.NextRetry == nil || r.NextRetry.Before(time.Now()) || !strings.Contains(r.StatusMsg, "no capacity") {
			t.Errorf("a launch that waits shows %s, next try %v, %q", r.Status, r.NextRetry, r.StatusMsg)
		}
		begun := time.Now()
		if took := w.Done(w.Down("c")).FinishedAt.Sub(begun); took > 5*time.Second {
			t.Errorf("the down took %s: it must not queue behind a launch that waits", took)
		}
		if r := w.Wait(id, time.Minute); r.Status != api.RequestCancelled || !strings.Contains(r.Error.Message, "sky down c") {
			t.Errorf("the launch is %s: %v", r.Status, r.Error)
		}
		if _, there := w.Cluster("c"); there {
			t.Error("the row is left")
		}
	})
}

func TestAWaitingLaunchHoldsNothing(t *testing.T) {
	in(t, world.Options{}, func(t *testing.T, w *world.World) {
		w.Cloud.Script(noCapacity(1))
		first := w.Launch(api.LaunchBody{Cluster: "c", Task: quick, RetryUntilUp: true})
		w.Sleep(5 * time.Second)
		second := w.Result(w.Launch(api.LaunchBody{Cluster: "c", Task: quick}))
		if w.Request(first).Status != api.RequestWaiting {
			t.Errorf("the first launch is %s", w.Request(first).Status)
		}
		if res := w.Result(first); res.Hash != second.Hash || res.JobID != 2 {
			t.Errorf("the first launch ended with %+v, the second had made %+v", res, second)
		}
	})
}

func TestCancelOfTheOnlyWaitingLaunchRemovesItsCluster(t *testing.T) {
	in(t, world.Options{}, func(t *testing.T, w *world.World) {
		w.Cloud.Script(noCapacity(-1))
		id := w.Launch(api.LaunchBody{Cluster: "c", Task: long, RetryUntilUp: true})
		other := w.Launch(api.LaunchBody{Cluster: "c", Task: long, RetryUntilUp: true})
		w.Sleep(10 * time.Second)
		w.Cancel(id)
		w.Wait(id, time.Minute)
		w.Sleep(10 * time.Second)
		if _, there := w.Cluster("c"); !there {
			t.Error("the cluster went though another launch waits for it")
		}
		w.Cancel(other)
		w.Wait(other, time.Minute)
		w.Sleep(10 * time.Second)
		if _, there := w.Cluster("c"); there {
			t.Error("the cluster stays though nobody launches it")
		}
	})
}

func TestExecRacesALaunch(t *testing.T) {
	in(t, world.Options{Cloud: memory.Config{CreateDelay: memory.Duration(30 * time.Second)}}, func(t *testing.T, w *world.World) {
		launch := w.Launch(api.LaunchBody{Cluster: "c", Task: quick})
		var execs []string
		for range 5 {
			execs = append(execs, w.Exec(api.ExecBody{Cluster: "c", Task: quick}))
		}
		hash := w.Result(launch).Hash
		for _, id := range execs {
			if res := w.Result(id); res.Hash != hash || res.JobID < 2 {
				t.Errorf("exec answered %+v", res)
			}
		}
	})
}

func TestExecBeforeTheLaunchIsThere(t *testing.T) {
	in(t, world.Options{}, func(t *testing.T, w *world.World) {
		// The launch is accepted, and its server dies before the engine has it.
		b := api.LaunchBody{Base: api.Base{RequestID: uuid.NewString(), User: world.User}, Cluster: "c", Task: quick}
		w.Accept("launch", b.Base, "c", b)
		exec := w.Exec(api.ExecBody{Cluster: "c", Task: quick})
		w.Sleep(10 * time.Second)
		w.Resume()
		w.Result(b.RequestID)
		w.Result(exec)
	})
}

func TestTwoLaunchesOfOneNameShareTheCluster(t *testing.T) {
	in(t, world.Options{Cloud: memory.Config{CreateDelay: memory.Duration(10 * time.Second)}}, func(t *testing.T, w *world.World) {
		a := w.Launch(api.LaunchBody{Cluster: "c", Task: quick})
		b := w.Launch(api.LaunchBody{Cluster: "c", Task: quick})
		big := w.Launch(api.LaunchBody{Cluster: "c", Task: "num_nodes: 4\n" + quick})
		ra, rb := w.Result(a), w.Result(b)
		if ra.Hash != rb.Hash || ra.Created == rb.Created || ra.JobID == rb.JobID {
			t.Errorf("%+v and %+v", ra, rb)
		}
		if r := w.Wait(big, time.Hour); r.Status != api.RequestFailed || r.Error.Kind != api.ErrResourcesMismatch {
			t.Errorf("a task that does not fit: %s %v", r.Status, r.Error)
		}
	})
}

func TestAutostopOfAStaleGenerationIsRefused(t *testing.T) {
	in(t, world.Options{}, func(t *testing.T, w *world.World) {
		idle := 5
		res := w.Result(w.Launch(api.LaunchBody{Cluster: "c", Task: quick, IdleMinutes: &idle}))
		w.Done(w.Autostop("c", 60, false))
		signal(t, w, "c", activities.SignalObserved, activities.Observed{Hash: res.Hash, Kind: activities.ObservedAutostop, Autostop: 1})
		signal(t, w, "c", activities.SignalObserved, activities.Observed{Hash: "another", Kind: activities.ObservedAutostop, Autostop: 2})
		w.Sleep(time.Minute)
		if s := status(w, "c"); s != api.ClusterUp {
			t.Errorf("an idle rule that is no longer set made the cluster %s", s)
		}
		w.Result(w.Exec(api.ExecBody{Cluster: "c", Task: quick}))
	})
}

func TestWorkThatComesWithTheAutostop(t *testing.T) {
	// Jobs keep coming just as the idle rule falls due: each is run, or refused before it was accepted.
	for _, early := range []time.Duration{-20 * time.Millisecond, 0, time.Millisecond, 20 * time.Millisecond, 500 * time.Millisecond} {
		t.Run(early.String(), func(t *testing.T) {
			in(t, world.Options{}, func(t *testing.T, w *world.World) {
				idle := 1
				w.Result(w.Launch(api.LaunchBody{Cluster: "c", Task: "run: sleep 10\n", IdleMinutes: &idle, Down: true}))
				row, _ := w.Cluster("c")
				jobs := w.Jobs("c", "")
				w.Sleep(time.Until(jobs[0].SubmittedAt.Add(70*time.Second + early)))
				id := w.Exec(api.ExecBody{Cluster: "c", Task: "run: sleep 100\n"})
				r := w.Wait(id, time.Hour)
				w.Sleep(3 * time.Minute)
				if r.Status != api.RequestSucceeded {
					return
				}
				for _, j := range w.Jobs("c", row.Hash) {
					if j.Key == id && j.Status != api.JobSucceeded {
						t.Errorf("a job that was accepted is %s: %s", j.Status, j.Reason)
					}
				}
			})
		})
	}
}

func TestLaunchThatMeetsAFinishingDown(t *testing.T) {
	// From just after the down was delivered to after its entity has closed, in steps.
	for _, after := range []time.Duration{20 * time.Millisecond, 50 * time.Millisecond, 900 * time.Millisecond, time.Second, 1050 * time.Millisecond, 1100 * time.Millisecond, 1200 * time.Millisecond, 3 * time.Second} {
		t.Run(after.String(), func(t *testing.T) {
			in(t, world.Options{Cloud: memory.Config{DeleteLag: memory.Duration(time.Second)}}, func(t *testing.T, w *world.World) {
				old := w.Result(w.Launch(api.LaunchBody{Cluster: "c", Task: long}))
				down := w.Down("c")
				w.Sleep(after)
				res := w.Result(w.Launch(api.LaunchBody{Cluster: "c", Task: long}))
				w.Done(down)
				if res.Hash == old.Hash || !res.Created {
					t.Errorf("the launch got %+v, down was %s", res, old.Hash)
				}
				w.Sleep(time.Minute)
				if s := status(w, "c"); s != api.ClusterUp {
					t.Errorf("the new cluster is %s", s)
				}
			})
		})
	}
}

func TestAStaleOperationDoesNotReachANewIncarnation(t *testing.T) {
	in(t, world.Options{}, func(t *testing.T, w *world.World) {
		w.Result(w.Launch(api.LaunchBody{Cluster: "c", Task: quick}))
		down := w.Down("c")
		w.Done(down)
		launch := w.Launch(api.LaunchBody{Cluster: "c", Task: long})
		w.Result(launch)
		// An attempt to deliver that was believed dead gets through after all.
		signal(t, w, "c", activities.SignalOp, op(cluster.OpDown, down, api.StopOrDownBody{Cluster: "c"}))
		w.Sleep(time.Minute)
		if s := status(w, "c"); s != api.ClusterUp {
			t.Errorf("an old down ended a new cluster: %s", s)
		}
	})
}

func TestWhatWaitsIsCarriedOverAContinueAsNew(t *testing.T) {
	in(t, world.Options{Rates: world.Rates{ContinueAsNew: 0.9}}, func(t *testing.T, w *world.World) {
		w.Cloud.Script(noCapacity(3))
		id := w.Launch(api.LaunchBody{Cluster: "c", Task: quick, RetryUntilUp: true})
		w.Result(id)
		if n := w.Tally()["continued as new"]; n == 0 {
			t.Error("it never continued as new: this proves nothing")
		}
		again := w.Result(w.Launch(api.LaunchBody{Base: api.Base{RequestID: id}, Cluster: "c", Task: quick, RetryUntilUp: true}))
		if again.JobID != 1 {
			t.Errorf("sent again it answers %+v", again)
		}
	})
	t.Run("a queue", func(t *testing.T) {
		in(t, world.Options{}, func(t *testing.T, w *world.World) {
			var ops []cluster.Op
			for i := range 3 {
				id := fmt.Sprintf("00000000-0000-4000-8000-00000000000%d", i)
				ops = append(ops, op(cluster.OpLaunch, id, api.LaunchBody{Base: api.Base{RequestID: id}, Cluster: "c", Task: quick}))
			}
			_, err := w.Client.SignalWithStartWorkflow(context.Background(), activities.ClusterWorkflowID("c"), activities.SignalOp, ops[2],
				activities.ClusterStartOptions("c", "", ""), activities.ClusterWorkflow, cluster.State{Name: "c", Queue: ops[:2]})
			if err != nil {
				t.Fatal(err)
			}
			w.Sleep(time.Minute)
			jobs := w.Jobs("c", "")
			if len(jobs) != 3 {
				t.Fatalf("%d jobs, want 3", len(jobs))
			}
			for _, j := range jobs { // newest first
				if want := ops[j.ID-1].Key; j.Key != want {
					t.Errorf("job %d is that of %s, want %s: the order is lost", j.ID, j.Key, want)
				}
			}
		})
	})
}

func TestACancelledEntityTakesItsClusterDown(t *testing.T) {
	in(t, world.Options{}, func(t *testing.T, w *world.World) {
		res := w.Result(w.Launch(api.LaunchBody{Cluster: "c", Task: long}))
		if err := w.Client.CancelWorkflow(context.Background(), activities.ClusterWorkflowID("c"), ""); err != nil {
			t.Fatal(err)
		}
		w.Sleep(time.Minute)
		if _, there := w.Cluster("c"); there || len(w.Cloud.Ledger().Alive()) > 0 {
			t.Error("the cluster is left")
		}
		for _, j := range w.Jobs("c", res.Hash) {
			if !j.Status.Terminal() {
				t.Errorf("its job is %s", j.Status)
			}
		}
	})
}

func TestStopOfAClusterThatWasNeverUp(t *testing.T) {
	in(t, world.Options{Cloud: memory.Config{CreateDelay: memory.Duration(time.Minute)}}, func(t *testing.T, w *world.World) {
		coming := w.Launch(api.LaunchBody{Cluster: "c", Task: long})
		w.Sleep(5 * time.Second)
		w.Cloud.Script(noCapacity(-1))
		waiting := w.Launch(api.LaunchBody{Cluster: "d", Task: long, RetryUntilUp: true})
		w.Sleep(5 * time.Second)
		for _, name := range []string{"c", "d"} {
			r := w.Wait(w.Stop(name), time.Minute)
			if r.Status == api.RequestFailed && r.Error.Kind != api.ErrClusterDoesNotExist {
				t.Errorf("stop of %s: %v", name, r.Error)
			}
			if _, there := w.Cluster(name); there {
				t.Errorf("%s is left", name)
			}
		}
		for _, id := range []string{coming, waiting} {
			if r := w.Wait(id, time.Minute); r.Status != api.RequestCancelled {
				t.Errorf("the launch of %s is %s", r.Cluster, r.Status)
			}
		}
	})
}

func TestStartWaitsAndHoldsNothing(t *testing.T) {
	in(t, world.Options{}, func(t *testing.T, w *world.World) {
		w.Result(w.Launch(api.LaunchBody{Cluster: "c", Task: quick}))
		w.Done(w.Stop("c"))
		w.Cloud.Script(memory.Fault{Call: "start", Err: providers.Errorf(providers.NoCapacity, providers.ScopeZone, "no capacity"), Times: -1})
		id := w.Start(api.StartBody{Cluster: "c", RetryUntilUp: true})
		w.Sleep(2 * time.Minute)
		if r := w.Request(id); r.Status != api.RequestWaiting || r.NextRetry == nil {
			t.Errorf("a start that waits shows %s, next try %v", r.Status, r.NextRetry)
		}
		if s := status(w, "c"); s != api.ClusterStopped {
			t.Errorf("meanwhile the cluster is %s", s)
		}
		begun := time.Now()
		if took := w.Done(w.Down("c")).FinishedAt.Sub(begun); took > 5*time.Second {
			t.Errorf("down took %s", took)
		}
		if r := w.Wait(id, time.Minute); r.Status != api.RequestCancelled {
			t.Errorf("the start is %s", r.Status)
		}
	})
}

// Nodes that take long to start are told what those are told that start at once: that the cluster comes back from STOPPED.
func TestSlowStartEndsWhatWasUnfinished(t *testing.T) {
	in(t, world.Options{Cloud: memory.Config{CreateDelay: memory.Duration(time.Minute)}}, func(t *testing.T, w *world.World) {
		w.Result(w.Launch(api.LaunchBody{Cluster: "c", Task: long}))
		row, _ := w.Cluster("c")
		w.Done(w.Stop("c"))
		w.Done(w.Start(api.StartBody{Cluster: "c"}))
		w.Sleep(time.Minute)
		if jobs := w.Jobs("c", row.Hash); len(jobs) != 1 || jobs[0].Status != api.JobFailed || !strings.Contains(jobs[0].Reason, "restarted") {
			t.Errorf("the cluster's jobs: %+v", jobs)
		}
	})
}

func TestACancelledSubmitToASilentNodeDoesNotRunLater(t *testing.T) {
	in(t, world.Options{}, func(t *testing.T, w *world.World) {
		w.Result(w.Launch(api.LaunchBody{Cluster: "c", Task: quick}))
		row, _ := w.Cluster("c")
		w.Interrupt("Submit", 1) // the job gets through, the answer does not
		id := w.Exec(api.ExecBody{Cluster: "c", Task: long})
		w.Sleep(20 * time.Millisecond)
		w.Cloud.Cut(row.NodeNames[0], 2*time.Minute)
		w.Sleep(10 * time.Second)
		w.Cancel(id)
		r := w.Wait(id, time.Hour)
		w.Sleep(time.Minute)
		for _, j := range w.Jobs("c", "") {
			if j.Key == id && (j.Status == api.JobCancelled) != (r.Status == api.RequestCancelled) {
				t.Errorf("the request is %s and its job %s", r.Status, j.Status)
			}
		}
	})
}

func TestRefusals(t *testing.T) {
	in(t, world.Options{}, func(t *testing.T, w *world.World) {
		w.Result(w.Launch(api.LaunchBody{Cluster: "c", Task: quick}))
		for _, c := range []struct {
			name string
			id   func() string // one after the other: a later down would cancel what waits
			kind string
		}{
			{"a task with an unknown field", func() string { return w.Launch(api.LaunchBody{Cluster: "d", Task: "ran: echo\n"}) }, api.ErrInvalid},
			{"a name with a path", func() string { return w.Launch(api.LaunchBody{Cluster: "../d", Task: quick}) }, api.ErrInvalid},
			{"a secret in clear", func() string {
				return w.Launch(api.LaunchBody{Cluster: "d", Task: "secrets: {TOKEN: hunter2}\n" + quick})
			}, api.ErrInvalid},
			{"files that were not uploaded", func() string { return w.Launch(api.LaunchBody{Cluster: "d", Task: "workdir: .\n" + quick}) }, api.ErrInvalid},
			{"more than there is", func() string { return w.Launch(api.LaunchBody{Cluster: "d", Task: "resources: {cpus: 10000}\n"}) }, api.ErrResourcesUnavailable},
			{"exec on nothing", func() string { return w.Exec(api.ExecBody{Cluster: "d", Task: quick}) }, api.ErrClusterDoesNotExist},
			{"down of nothing", func() string { return w.Down("d") }, api.ErrClusterDoesNotExist},
			{"a job that is not there", func() string { return w.CancelJobs("c", false, 99) }, api.ErrJobNotFound},
			{"preemption of what is not spot", func() string { return w.Preempt("c", 0, 0) }, api.ErrNotSupported},
		} {
			r := w.Wait(c.id(), time.Minute)
			if r.Status != api.RequestFailed || r.Error == nil || r.Error.Kind != c.kind {
				t.Errorf("%s: %s %v, want %s", c.name, r.Status, r.Error, c.kind)
			} else if strings.Contains(r.Error.Message+r.Error.Hint, "hunter2") {
				t.Errorf("%s: the error gives it away: %v", c.name, r.Error)
			}
		}
		if _, there := w.Cluster("d"); there || len(w.Cloud.Ledger().Entries) != 1 {
			t.Errorf("something was created: %d nodes in all", len(w.Cloud.Ledger().Entries))
		}
	})
}

func TestDryrunTouchesNothing(t *testing.T) {
	in(t, world.Options{}, func(t *testing.T, w *world.World) {
		res := w.Result(w.Launch(api.LaunchBody{Cluster: "c", Task: quick, Dryrun: true}))
		if res.Plan == nil || len(res.Plan.Candidates) == 0 {
			t.Errorf("no plan: %+v", res)
		}
		if _, there := w.Cluster("c"); there || len(w.Cloud.Ledger().Entries) > 0 {
			t.Error("a dry run made something")
		}
	})
}

func TestTheTimelineTellsWhy(t *testing.T) {
	in(t, world.Options{}, func(t *testing.T, w *world.World) {
		w.Cloud.Script(memory.Fault{Call: "create", Err: providers.Errorf(providers.QuotaExceeded, providers.ScopeRegion, "quota of vCPUs")})
		id := w.Launch(api.LaunchBody{Cluster: "c", Task: quick})
		w.Result(id)
		lines := strings.Join(w.Events(store.EventFilter{RequestID: id}), "\n")
		for _, want := range []string{"launching on memory (east-1a)", "quota of vCPUs", "launching on memory (west-1a)", "UP", "job 1 submitted"} {
			if !strings.Contains(lines, want) {
				t.Errorf("the timeline does not tell %q:\n%s", want, lines)
			}
		}
	})
}
