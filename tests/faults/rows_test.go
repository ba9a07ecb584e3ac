package faults

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/providers/memory"
	"github.com/skyloom/skyloom/tests/faults/world"
)

const (
	quick = "resources: {cpus: 2+}\nrun: echo hello\n"
	long  = "resources: {cpus: 2+}\nrun: sleep 36000\n"
	spot  = "resources: {cpus: 2+, use_spot: true}\nrun: sleep 36000\n"
)

// scenario runs one scripted scenario; what is left must then come to rest.
func scenario(t *testing.T, o world.Options, f func(t *testing.T, w *world.World)) {
	t.Helper()
	var story string
	world.Run(t, o, func(w *world.World) {
		f(w.T.(*testing.T), w)
		w.StopFaults()
		w.Converge(12*time.Hour, "c", "d")
		if w.T.Failed() {
			story = w.Story("c", "d")
		}
	})
	if t.Failed() {
		t.Log(story)
	}
}

func unknown(what string) error {
	return providers.Errorf(providers.UnknownOutcome, providers.ScopeZone, "%s: timed out", what)
}

// sets counts the sets of nodes that were ever made for a name, by token.
func sets(w *world.World, name string) int {
	tokens := map[string]bool{}
	for _, e := range w.Cloud.Ledger().Entries {
		if e.Owner.Name == name && !e.Stranger {
			tokens[e.Token] = true
		}
	}
	return len(tokens)
}

func mustHave(t *testing.T, lines []string, what string) {
	t.Helper()
	if !strings.Contains(strings.Join(lines, "\n"), what) {
		t.Errorf("the timeline does not tell of %q:\n%s", what, strings.Join(lines, "\n"))
	}
}

func TestFault01WorkerDiesAfterCreate(t *testing.T) {
	scenario(t, world.Options{}, func(t *testing.T, w *world.World) {
		w.Interrupt("Provision", 2) // made, and the answer lost, twice
		res := w.Result(w.Launch(api.LaunchBody{Cluster: "c", Task: quick}))
		if n := sets(w, "c"); n != 1 || res.JobID != 1 {
			t.Errorf("%d sets of nodes, job %d; want one each", n, res.JobID)
		}
	})
}

func TestFault02CreateTimesOutButSucceeded(t *testing.T) {
	scenario(t, world.Options{}, func(t *testing.T, w *world.World) {
		w.Cloud.Script(memory.Fault{Call: "create", Err: unknown("create"), AfterEffect: true})
		w.Result(w.Launch(api.LaunchBody{Cluster: "c", Task: quick}))
		l := w.Cloud.Ledger()
		if len(l.Entries) != 1 {
			t.Errorf("%d machines were made, want 1", len(l.Entries))
		}
	})
}

func TestFault03MachinesAreListedLate(t *testing.T) {
	cloud := memory.Config{VisibleAfter: memory.Duration(30 * time.Second)}
	t.Run("a launch goes through", func(t *testing.T) {
		scenario(t, world.Options{Cloud: cloud}, func(t *testing.T, w *world.World) {
			w.Result(w.Launch(api.LaunchBody{Cluster: "c", Task: long}))
			w.Done(w.Refresh("c"))
			if row, _ := w.Cluster("c"); row.Status != api.ClusterUp {
				t.Errorf("the cluster is %s (%s) while its nodes are not listed yet", row.Status, row.StatusReason)
			}
			w.Sleep(time.Minute)
			w.Reap()
			if row, _ := w.Cluster("c"); row.Status != api.ClusterUp || len(w.Cloud.Ledger().Alive()) != 1 {
				t.Errorf("the reaper took what is owned: %s", row.Status)
			}
		})
	})
	t.Run("down at once", func(t *testing.T) {
		scenario(t, world.Options{Cloud: cloud}, func(t *testing.T, w *world.World) {
			w.Result(w.Launch(api.LaunchBody{Cluster: "c", Task: long}))
			w.Done(w.Down("c"))
			// A delete by tag does not see them: they are gone at the latest with the reaper's next round.
			w.Sleep(5 * time.Minute)
			w.Reap()
			if n := len(w.Cloud.Ledger().Alive()); n > 0 {
				t.Errorf("%d machines live on after the reaper's round", n)
			}
		})
	})
}

func TestFault04OneOfEightNodesFails(t *testing.T) {
	scenario(t, world.Options{}, func(t *testing.T, w *world.World) {
		w.Cloud.Script(memory.Fault{Call: "create", Leave: 6})
		w.Result(w.Launch(api.LaunchBody{Cluster: "c", Task: "num_nodes: 8\n" + quick}))
		row, _ := w.Cluster("c")
		if row.Zone == "east-1a" || row.Nodes != 8 {
			t.Errorf("%d nodes in %s, want 8 in another zone", row.Nodes, row.Zone)
		}
		if n := len(w.Cloud.Ledger().Alive()); n != 8 {
			t.Errorf("%d machines live, want 8: the six of the first try must be gone", n)
		}
	})
}

func TestFault05DeleteLies(t *testing.T) {
	scenario(t, world.Options{Cloud: memory.Config{DeleteLag: memory.Duration(20 * time.Second)}}, func(t *testing.T, w *world.World) {
		w.Result(w.Launch(api.LaunchBody{Cluster: "c", Task: long}))
		w.Cloud.Script(memory.Fault{Call: "delete", Lost: true, Times: 3})
		w.Done(w.Down("c"))
		if n := len(w.Cloud.Ledger().Alive()); n > 0 {
			t.Errorf("the cluster is down and %d machines live", n)
		}
	})
}

func TestFault06DeletedBehindOurBack(t *testing.T) {
	scenario(t, world.Options{}, func(t *testing.T, w *world.World) {
		res := w.Result(w.Launch(api.LaunchBody{Cluster: "c", Task: long}))
		two := w.Result(w.Launch(api.LaunchBody{Cluster: "d", Task: "num_nodes: 2\n" + long}))
		c, _ := w.Cluster("c")
		d, _ := w.Cluster("d")
		w.Cloud.Kill(c.NodeNames[0])
		w.Cloud.Kill(d.NodeNames[1])
		w.Sleep(time.Minute)
		if _, ok := w.Cluster("c"); ok {
			t.Error("a cluster without nodes still has a row")
		}
		for _, j := range w.Jobs("c", res.Hash) {
			if !j.Status.Terminal() {
				t.Errorf("job %d of a cluster that is gone is %s", j.ID, j.Status)
			}
		}
		d, _ = w.Cluster("d")
		if d.Status != api.ClusterInit || d.InitKind != "unhealthy" || !strings.Contains(d.StatusReason, "node 1") {
			t.Errorf("a cluster that lost a node is %s (%s): %q", d.Status, d.InitKind, d.StatusReason)
		}
		for _, j := range w.Jobs("d", two.Hash) {
			if j.Status != api.JobFailedDriver {
				t.Errorf("the job on the lost node is %s", j.Status)
			}
		}
		mustHave(t, w.Events(store.EventFilter{Cluster: "c"}), "killed")
	})
}

func TestFault07LookAlike(t *testing.T) {
	scenario(t, world.Options{}, func(t *testing.T, w *world.World) {
		res := w.Result(w.Launch(api.LaunchBody{Cluster: "c", Task: long}))
		ref := providers.ClusterRef{Installation: w.Store.Installation(), Name: "c", Hash: res.Hash}
		strangers := []string{w.Cloud.AddStranger(ref), w.Cloud.AddStranger(providers.ClusterRef{Installation: "another", Name: "c", Hash: res.Hash})}
		w.Done(w.Refresh())
		w.Done(w.Stop("c"))
		w.Done(w.Start(api.StartBody{Cluster: "c"}))
		w.Sleep(2 * time.Minute)
		w.Reap()
		w.Done(w.Down("c"))
		w.Reap()
		for _, e := range w.Cloud.Ledger().Entries {
			if e.Stranger && !e.Died.IsZero() {
				t.Errorf("the stranger's machine %s was ended: %s", e.NodeID, e.Reason)
			}
		}
		if len(strangers) != 2 {
			t.Fatal("no strangers")
		}
	})
}

func TestFault08ErrorsByKind(t *testing.T) {
	limited := providers.Errorf(providers.RateLimited, providers.ScopeCloud, "too many requests")
	limited.After = 7 * time.Second
	for _, c := range []struct {
		name  string
		fault memory.Fault
		zone  string // where it ends up; empty: it fails
		says  string
		makes int // machines made in all
	}{
		{"no capacity in a zone: the next zone", memory.Fault{Err: providers.Errorf(providers.NoCapacity, providers.ScopeZone, "full")}, "east-1b", "", 1},
		{"no capacity in a region: the next region", memory.Fault{Err: providers.Errorf(providers.NoCapacity, providers.ScopeRegion, "full")}, "west-1a", "", 1},
		{"quota: the next region", memory.Fault{Err: providers.Errorf(providers.QuotaExceeded, providers.ScopeRegion, "quota")}, "west-1a", "", 1},
		{"bad credentials: stop and say", memory.Fault{Err: &providers.Error{Kind: providers.AuthFailed, Scope: providers.ScopeCloud, Msg: "key expired", Hint: "renew the key"}, Times: -1}, "", "credentials refused: key expired", 0},
		{"rate limit: the same again", memory.Fault{Err: limited, Times: 2}, "east-1a", "", 1},
		{"unknown outcome with effect: adopt", memory.Fault{Err: unknown("create"), AfterEffect: true}, "east-1a", "", 1},
		{"unknown outcome without effect: the same again", memory.Fault{Err: unknown("create")}, "east-1a", "", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			scenario(t, world.Options{}, func(t *testing.T, w *world.World) {
				c.fault.Call = "create"
				w.Cloud.Script(c.fault)
				begun := time.Now()
				r := w.Wait(w.Launch(api.LaunchBody{Cluster: "c", Task: quick}), time.Hour)
				if c.zone == "" {
					if r.Status != api.RequestFailed || r.Error == nil || r.Error.Hint == "" || !strings.Contains(fmt.Sprint(r.Error.Message, r.Error.Details), c.says) {
						t.Errorf("the launch is %s: %#v", r.Status, r.Error)
					}
				} else if row, ok := w.Cluster("c"); !ok || row.Status != api.ClusterUp || row.Zone != c.zone {
					t.Errorf("the launch is %s, the cluster %s in %s, want UP in %s: %v", r.Status, row.Status, row.Zone, c.zone, r.Error)
				}
				if n := len(w.Cloud.Ledger().Entries); n != c.makes {
					t.Errorf("%d machines were made, want %d", n, c.makes)
				}
				if c.fault.Err == limited && time.Since(begun) < 14*time.Second {
					t.Errorf("done after %s: it was to wait 7 s twice", time.Since(begun))
				}
			})
		})
	}
}

func TestFault09ServerDiesAtEachStepOfASubmit(t *testing.T) {
	for _, act := range []string{"Deliver", "Plan", "Provision", "Configure", "Submit", "Record", "Reply"} {
		t.Run(act, func(t *testing.T) {
			o := world.Options{}
			if act == "Configure" {
				o.Cloud.CreateDelay = memory.Duration(10 * time.Second)
			}
			scenario(t, o, func(t *testing.T, w *world.World) {
				w.Interrupt(act, 1)
				id := w.Launch(api.LaunchBody{Cluster: "c", Task: quick})
				res := w.Result(id)
				again := w.Result(w.Launch(api.LaunchBody{Base: api.Base{RequestID: id}, Cluster: "c", Task: quick}))
				if res != again || sets(w, "c") != 1 {
					t.Errorf("sent again it answers %+v, at first %+v; %d sets of nodes", again, res, sets(w, "c"))
				}
				w.Sleep(time.Minute)
				if jobs := w.Jobs("c", ""); len(jobs) != 1 {
					t.Errorf("%d jobs, want 1", len(jobs))
				}
			})
		})
	}
	t.Run("between the answer and the engine", func(t *testing.T) {
		scenario(t, world.Options{}, func(t *testing.T, w *world.World) {
			b := api.LaunchBody{Base: api.Base{RequestID: "7a3f0c52-51f0-4f4c-9d7e-000000000001", User: world.User}, Cluster: "c", Task: quick}
			w.Accept("launch", b.Base, "c", b)
			w.Sleep(time.Minute)
			w.Resume()
			w.Result(b.RequestID)
		})
	})
}

func TestFault14LongHistory(t *testing.T) {
	// An entity that continues as new nearly whenever it is idle, with requests all the while.
	scenario(t, world.Options{Rates: world.Rates{ContinueAsNew: 0.7}}, func(t *testing.T, w *world.World) {
		w.Result(w.Launch(api.LaunchBody{Cluster: "c", Task: quick}))
		var ids []string
		for i := range 30 {
			ids = append(ids, w.Exec(api.ExecBody{Cluster: "c", Task: quick}))
			if i%3 == 0 {
				w.Sleep(time.Second)
			}
		}
		jobs := map[int64]bool{}
		for _, id := range ids {
			jobs[w.Result(id).JobID] = true
		}
		if len(jobs) != 30 || w.Tally()["continued as new"] < 5 {
			t.Errorf("%d jobs from 30 requests; continued %d times", len(jobs), w.Tally()["continued as new"])
		}
	})
}

func TestFault15SignalsTwiceAndLate(t *testing.T) {
	scenario(t, world.Options{Seed: 3, Rates: world.Rates{Twice: 1, Late: 1, Unsure: 0.3}}, func(t *testing.T, w *world.World) {
		w.Result(w.Launch(api.LaunchBody{Cluster: "c", Task: quick}))
		w.Result(w.Exec(api.ExecBody{Cluster: "c", Task: quick}))
		w.Done(w.Stop("c"))
		w.Done(w.Start(api.StartBody{Cluster: "c"}))
		w.Result(w.Exec(api.ExecBody{Cluster: "c", Task: quick}))
		w.Sleep(2 * time.Minute)
		if row, _ := w.Cluster("c"); row.Status != api.ClusterUp {
			t.Errorf("a late copy of the stop stopped it again: %s", row.Status)
		}
		if jobs := w.Jobs("c", ""); len(jobs) != 3 || sets(w, "c") != 1 {
			t.Errorf("%d jobs and %d sets of nodes, want 3 and 1", len(jobs), sets(w, "c"))
		}
	})
}

func TestFault16HeadLosesItsNetwork(t *testing.T) {
	scenario(t, world.Options{}, func(t *testing.T, w *world.World) {
		res := w.Result(w.Launch(api.LaunchBody{Cluster: "c", Task: "run: sleep 120\n"}))
		row, _ := w.Cluster("c")
		w.Cloud.Cut(row.NodeNames[0], 10*time.Minute)
		w.Sleep(5 * time.Minute)
		if now, ok := w.Cluster("c"); !ok || now.Hash != row.Hash {
			t.Error("a cluster whose node the infra says runs was given up")
		}
		w.Sleep(10 * time.Minute)
		jobs := w.Jobs("c", res.Hash)
		if len(jobs) != 1 || jobs[0].Status != api.JobSucceeded {
			t.Errorf("the job that ended offline: %+v", jobs)
		}
	})
}

func TestFault19PreemptedAtEachStep(t *testing.T) {
	for _, at := range []time.Duration{0, 5 * time.Second, 15 * time.Second, 25 * time.Second, 60 * time.Second} {
		t.Run(at.String(), func(t *testing.T) {
			o := world.Options{Cloud: memory.Config{CreateDelay: memory.Duration(10 * time.Second), AgentDelay: memory.Duration(10 * time.Second)}}
			scenario(t, o, func(t *testing.T, w *world.World) {
				id := w.Launch(api.LaunchBody{Cluster: "c", Task: "num_nodes: 2\nsetup: sleep 10\n" + spot})
				w.Sleep(at + time.Millisecond)
				for _, e := range w.Cloud.Ledger().Alive() {
					w.Cloud.Kill(e.NodeID)
					break
				}
				r := w.Wait(id, time.Hour)
				if r.Status == api.RequestSucceeded {
					w.Sleep(2 * time.Minute)
					for _, j := range w.Jobs("c", "") {
						if row, _ := w.Cluster("c"); j.Status.Terminal() == (row.Status == api.ClusterUp) {
							t.Errorf("the job is %s on a cluster that is %s", j.Status, row.Status)
						}
					}
				}
				w.Done(w.Down("c"))
			})
		})
	}
}

func TestFault20HeadLost(t *testing.T) {
	scenario(t, world.Options{}, func(t *testing.T, w *world.World) {
		res := w.Result(w.Launch(api.LaunchBody{Cluster: "c", Task: "num_nodes: 2\n" + long}))
		row, _ := w.Cluster("c")
		w.Cloud.Kill(row.NodeNames[0])
		w.Sleep(time.Minute)
		row, _ = w.Cluster("c")
		if row.Status != api.ClusterInit || !strings.Contains(row.StatusReason, "node 0") {
			t.Errorf("a cluster without its head is %s: %q", row.Status, row.StatusReason)
		}
		if jobs := w.Jobs("c", res.Hash); len(jobs) != 1 || jobs[0].Status != api.JobFailedDriver {
			t.Errorf("the job on the lost head: %+v", jobs)
		}
		if r := w.Wait(w.Exec(api.ExecBody{Cluster: "c", Task: quick}), time.Hour); r.Status != api.RequestFailed || r.Error.Kind != api.ErrClusterNotUp {
			t.Errorf("exec on it: %s %v", r.Status, r.Error)
		}
		if r := w.Wait(w.Start(api.StartBody{Cluster: "c", RetryUntilUp: true}), time.Hour); r.Status != api.RequestFailed || r.Error.Hint == "" {
			t.Errorf("start of it must end and tell what to do: %s %+v", r.Status, r.Error)
		}
	})
}

func TestFault21RegionOut(t *testing.T) {
	scenario(t, world.Options{}, func(t *testing.T, w *world.World) {
		w.Result(w.Launch(api.LaunchBody{Cluster: "c", Task: long}))
		for _, z := range []string{"east-1a", "east-1b", "east-1c"} {
			w.Cloud.KillZone(z)
		}
		w.Sleep(time.Minute)
		if _, ok := w.Cluster("c"); ok {
			t.Error("the cluster in the dead region still has a row")
		}
		w.Result(w.Launch(api.LaunchBody{Cluster: "c", Task: long}))
		if row, _ := w.Cluster("c"); row.Region != "west-1" {
			t.Errorf("launched in %s", row.Region)
		}
	})
}

func TestFault23CancelAtEachStep(t *testing.T) {
	o := world.Options{Cloud: memory.Config{CreateDelay: memory.Duration(10 * time.Second), AgentDelay: memory.Duration(5 * time.Second)}}
	for _, at := range []time.Duration{0, time.Second, 9 * time.Second, 12 * time.Second, 15 * time.Second, 15200 * time.Millisecond, 20 * time.Second} {
		t.Run(at.String(), func(t *testing.T) {
			scenario(t, o, func(t *testing.T, w *world.World) {
				id := w.Launch(api.LaunchBody{Cluster: "c", Task: long})
				w.Sleep(at)
				w.Cancel(id)
				r := w.Wait(id, time.Hour)
				w.Sleep(time.Minute)
				_, there := w.Cluster("c")
				switch r.Status {
				case api.RequestCancelled:
					if there || len(w.Cloud.Ledger().Alive()) > 0 {
						t.Errorf("cancelled before it was up, and the cluster is there (%t) with %d machines", there, len(w.Cloud.Ledger().Alive()))
					}
				case api.RequestSucceeded:
					if !there {
						t.Error("the launch won the race, and there is no cluster")
					}
				default:
					t.Errorf("the launch is %s", r.Status)
				}
			})
		})
	}
}

func TestFault26And27Autostop(t *testing.T) {
	scenario(t, world.Options{}, func(t *testing.T, w *world.World) {
		idle := 1
		w.Result(w.Launch(api.LaunchBody{Cluster: "c", Task: "run: sleep 30\n", IdleMinutes: &idle}))
		w.Result(w.Launch(api.LaunchBody{Cluster: "d", Task: "run: sleep 30\n", IdleMinutes: &idle, Down: true}))
		w.Sleep(85 * time.Second)
		// Fresh work just before the deadline is not killed.
		res := w.Result(w.Exec(api.ExecBody{Cluster: "c", Task: "run: sleep 60\n"}))
		w.Sleep(70 * time.Second)
		for _, j := range w.Jobs("c", res.Hash) {
			if j.ID == res.JobID && j.Status != api.JobSucceeded {
				t.Errorf("the new job is %s", j.Status)
			}
		}
		if _, ok := w.Cluster("d"); ok {
			t.Error("the idle cluster is not down")
		}
		w.Sleep(2 * time.Minute)
		if row, _ := w.Cluster("c"); row.Status != api.ClusterStopped {
			t.Errorf("the idle cluster is %s", row.Status)
		}
	})
	t.Run("nobody answers", func(t *testing.T) {
		// The server can't be reached: the node stops all the same, and the server finds out.
		scenario(t, world.Options{}, func(t *testing.T, w *world.World) {
			idle := 1
			w.Result(w.Launch(api.LaunchBody{Cluster: "c", Task: "run: sleep 5\n", IdleMinutes: &idle}))
			row, _ := w.Cluster("c")
			w.Cloud.Cut(row.NodeNames[0], time.Hour)
			w.Sleep(10 * time.Minute)
			if row, _ = w.Cluster("c"); row.Status != api.ClusterStopped {
				t.Errorf("the cluster is %s", row.Status)
			}
			w.Cloud.Cut(row.NodeNames[0], 0)
			w.Done(w.Start(api.StartBody{Cluster: "c"}))
		})
	})
}

func TestFault32CredentialsExpire(t *testing.T) {
	scenario(t, world.Options{}, func(t *testing.T, w *world.World) {
		res := w.Result(w.Launch(api.LaunchBody{Cluster: "c", Task: "run: sleep 600\n"}))
		bad := providers.Errorf(providers.AuthFailed, providers.ScopeCloud, "key expired")
		w.Cloud.Script(memory.Fault{Call: "list", Err: bad, Times: 20}, memory.Fault{Call: "delete", Err: bad, Times: 5})
		w.Reap()
		r := w.Wait(w.Refresh("c"), time.Hour)
		if r.Status != api.RequestSucceeded {
			t.Errorf("refresh is %s: %v", r.Status, r.Error)
		}
		if row, _ := w.Cluster("c"); row.Status != api.ClusterUp {
			t.Errorf("the cluster is %s: nothing is known of it, so nothing may change", row.Status)
		}
		w.Done(w.Down("c"))
		if n := len(w.Cloud.Ledger().Alive()); n > 0 {
			t.Errorf("%d machines live on", n)
		}
		_ = res
	})
}

func TestFault33PlaceVanishesBetweenPlanAndCreate(t *testing.T) {
	scenario(t, world.Options{}, func(t *testing.T, w *world.World) {
		plan, err := w.Acts.Optimize(context.Background(), api.OptimizeBody{Task: quick})
		if err != nil {
			t.Fatal(err)
		}
		w.Cloud.Withdraw("east-1a", "")
		r := w.Wait(w.Launch(api.LaunchBody{Cluster: "c", Task: quick, PlanHash: plan.Hash}), time.Hour)
		if r.Status != api.RequestFailed || r.Error.Kind != api.ErrPlanChanged {
			t.Errorf("a plan that no longer stands was launched: %s %v", r.Status, r.Error)
		}
		// Without a confirmed plan it goes elsewhere; a place that vanishes in the midst is passed over.
		w.Cloud.Script(memory.Fault{Call: "create", Zone: "east-1b", Err: providers.Errorf(providers.Invalid, providers.ScopeZone, "not offered any more")})
		w.Result(w.Launch(api.LaunchBody{Cluster: "c", Task: quick}))
		if row, _ := w.Cluster("c"); row.Zone == "east-1a" || row.Zone == "east-1b" {
			t.Errorf("launched in %s", row.Zone)
		}
	})
}

func TestFault34TwoLaunchesAtOneQuota(t *testing.T) {
	o := world.Options{Cloud: memory.Config{Regions: []memory.Region{{Name: "r", Zones: []memory.Zone{{Name: "ra"}}}}, Quotas: []memory.Quota{{Region: "r", Nodes: 3}}}}
	scenario(t, o, func(t *testing.T, w *world.World) {
		a := w.Launch(api.LaunchBody{Cluster: "c", Task: "num_nodes: 2\n" + long})
		b := w.Launch(api.LaunchBody{Cluster: "d", Task: "num_nodes: 2\n" + long, RetryUntilUp: true})
		w.Sleep(time.Minute)
		ra, rb := w.Request(a), w.Request(b)
		if n := len(w.Cloud.Ledger().Alive()); n != 2 {
			t.Errorf("%d machines at a quota of 3 for two clusters of 2", n)
		}
		if (ra.Status == api.RequestSucceeded) == (rb.Status == api.RequestSucceeded) {
			t.Errorf("%s and %s: one of them can be", ra.Status, rb.Status)
		}
		if ra.Status != api.RequestSucceeded {
			return
		}
		if rb.Status != api.RequestWaiting || rb.NextRetry == nil || rb.StatusMsg == "" {
			t.Errorf("I11: the other one is %s, next try %v, because %q", rb.Status, rb.NextRetry, rb.StatusMsg)
		}
		w.Done(w.Down("c"))
		w.Done(b)
	})
}

func TestFault40OneClusterFailsForEver(t *testing.T) {
	scenario(t, world.Options{}, func(t *testing.T, w *world.World) {
		w.Cloud.Script(memory.Fault{Call: "list", Cluster: "d", Err: errors.New("broken"), Times: 200})
		d := w.Launch(api.LaunchBody{Cluster: "d", Task: long})
		w.Sleep(time.Second)
		down := w.Down("d")
		begun := time.Now()
		for range 5 {
			w.Result(w.Launch(api.LaunchBody{Cluster: "c", Task: quick}))
			w.Done(w.Down("c"))
		}
		if took := time.Since(begun); took > time.Minute {
			t.Errorf("the others took %s", took)
		}
		w.StopFaults()
		w.Wait(d, time.Hour)
		w.Wait(down, time.Hour)
	})
}
