package faults

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/providers/memory"
	"github.com/skyloom/skyloom/tests/faults/world"
)

const (
	pending    = api.ManagedPending
	starting   = api.ManagedStarting
	running    = api.ManagedRunning
	recovering = api.ManagedRecovering
	cancelling = api.ManagedCancelling
	cancelled  = api.ManagedCancelled
	succeeded  = api.ManagedSucceeded
)

// Every state of a managed job, and every way from one to the next. It takes two minutes: back-off between rounds is real.
func TestManagedStates(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for back-off in real time")
	}
	w := world.NewReal(t, world.Options{Seed: 5, Cloud: memory.Config{CreateDelay: memory.Duration(1500 * time.Millisecond), DeleteLag: memory.Duration(time.Second)}})
	w.Acts.Home = t.TempDir()
	full := providers.Errorf(providers.NoCapacity, providers.ScopeCloud, "no capacity anywhere")
	auth := providers.Errorf(providers.AuthFailed, providers.ScopeCloud, "the key is not accepted")
	const (
		work  = "resources: {cpus: 2+, use_spot: true}\nrun: sleep 12\n" // long enough to be met running on a busy machine
		ages  = "resources: {cpus: 2+, use_spot: true}\nrun: sleep 36000\n"
		retry = "resources: {cpus: 2+, job_recovery: {max_restarts_on_errors: 1}}\nrun: sleep 2; exit 3\n"
	)
	type states = []api.ManagedStatus
	cases := []struct {
		name, text           string
		faults               []memory.Fault // of its cluster
		do                   func(m *world.Managed)
		want                 []states // of each task
		recoveries, restarts int
	}{
		{name: "succeeds", text: work, want: []states{{pending, starting, running, succeeded}}},
		{name: "nothing-to-run", text: "setup: echo hello\n", want: []states{{pending, succeeded}}},
		{name: "fails", text: "run: sleep 2; exit 3\n", want: []states{{pending, starting, running, api.ManagedFailed}}},
		{name: "setup-fails", text: "setup: exit 1\nrun: echo never\n", want: []states{{pending, starting, running, api.ManagedFailedSetup}}},
		{name: "never-fits", text: "resources: {cpus: 100000}\nrun: echo never\n", want: []states{{pending, starting, api.ManagedFailedPrechecks}}},
		{name: "refused", text: work, faults: []memory.Fault{{Err: auth, Times: -1}}, want: []states{{pending, starting, api.ManagedFailedPrechecks}}},
		{name: "preempted", text: work, do: func(m *world.Managed) { m.Take(0) }, want: []states{{pending, starting, running, recovering, running, succeeded}}, recoveries: 1},
		{name: "one-of-two-lost", text: "num_nodes: 2\n" + work, do: func(m *world.Managed) { m.Take(1) }, want: []states{{pending, starting, running, recovering, running, succeeded}}, recoveries: 1},
		{name: "restarted", text: retry, want: []states{{pending, starting, running, recovering, running, api.ManagedFailed}}, restarts: 1},
		{name: "no-room", text: work, faults: []memory.Fault{{Err: full}}, want: []states{{pending, starting, pending, starting, running, succeeded}}},
		{name: "no-room-again", text: work, faults: []memory.Fault{{Err: full, Skip: 1}}, do: func(m *world.Managed) {
			m.Take(0)
			m.Until("a next try", func(rows []api.ManagedJob) bool { return rows[0].NextRetry != nil })
		}, want: []states{{pending, starting, running, recovering, running, succeeded}}, recoveries: 1},
		{name: "refused-later", text: work, faults: []memory.Fault{{Err: auth, Skip: 1}}, do: func(m *world.Managed) {
			m.Take(0)
			m.Until("a next try, and why", func(rows []api.ManagedJob) bool {
				return rows[0].NextRetry != nil && rows[0].Status == recovering && strings.Contains(rows[0].Details, "credentials refused")
			})
		}, want: []states{{pending, starting, running, recovering, running, succeeded}}, recoveries: 1},
		{name: "cancelled-waiting", text: work, faults: []memory.Fault{{Err: full, Times: -1}}, do: func(m *world.Managed) {
			m.Until("a next try", func(rows []api.ManagedJob) bool { return rows[0].NextRetry != nil })
			m.Cancel()
		}, want: []states{{pending, starting, pending, cancelling, cancelled}}},
		{name: "cancelled-starting", text: ages, do: func(m *world.Managed) { m.Is(starting); m.Cancel() }, want: []states{{pending, starting, cancelling, cancelled}}},
		{name: "cancelled-running", text: ages, do: func(m *world.Managed) { m.Is(running); m.Cancel() }, want: []states{{pending, starting, running, cancelling, cancelled}}},
		{name: "cancelled-recovering", text: ages, faults: []memory.Fault{{Err: full, Skip: 1, Times: -1}}, do: func(m *world.Managed) {
			m.Take(0)
			m.Until("a next try", func(rows []api.ManagedJob) bool { return rows[0].NextRetry != nil })
			m.Cancel()
		}, want: []states{{pending, starting, running, recovering, cancelling, cancelled}}, recoveries: 1},
		{name: "pipeline", text: "name: p\n---\nname: one\nrun: sleep 2\n---\nname: two\nrun: sleep 2; exit 1\n---\nname: three\nrun: echo never\n",
			want: []states{{pending, starting, running, succeeded}, {pending, starting, running, api.ManagedFailed}, {pending, cancelled}}},
		{name: "group", text: "name: g\nexecution: parallel\nprimary_tasks: [one]\n---\nname: one\nrun: sleep 15\n---\nname: two\nrun: sleep 36000\n",
			want: []states{{pending, starting, running, succeeded}, {pending, starting, running, cancelling, cancelled}}},
	}
	jobs := make([]*world.Managed, len(cases))
	for i, c := range cases {
		name := c.name
		text := c.text
		if len(c.want) == 1 {
			text = "name: " + name + "\n" + text
		}
		id := int64(i + 1)
		for _, f := range c.faults {
			f.Call, f.Cluster = "create", fmt.Sprintf("%s-%d", name, id)
			w.Cloud.Script(f)
		}
		jobs[i] = w.StartJob(id, 0, 0, text)
	}
	done := make(chan int)
	for i, c := range cases {
		go func() {
			defer func() { done <- i }()
			if c.do != nil {
				c.do(jobs[i])
			}
		}()
	}
	for range cases {
		<-done
	}
	for i, c := range cases {
		rows := jobs[i].Ended()
		jobs[i].Close()
		for k, want := range c.want {
			if got := jobs[i].Seen[k]; !passed(got, want) {
				t.Errorf("%s, task %d: went through %v, want %v (%s)", c.name, k, got, want, rows[k].FailureReason)
			}
		}
		if rows[0].Recoveries != c.recoveries || rows[0].Restarts != c.restarts {
			t.Errorf("%s: %d recoveries and %d restarts, want %d and %d", c.name, rows[0].Recoveries, rows[0].Restarts, c.recoveries, c.restarts)
		}
		if st, why := rows[0].Status, rows[0].FailureReason; st != succeeded && why == "" {
			t.Errorf("%s: %s, and nobody says why", c.name, st)
		}
	}
	empty(t, w)
}

// passed says that the states seen are those that were wanted. The first, and that of being cancelled, may have passed before
// anybody looked.
func passed(got, want []api.ManagedStatus) bool {
	quick := slices.DeleteFunc(slices.Clone(want), func(s api.ManagedStatus) bool { return s == api.ManagedCancelling })
	return slices.Equal(got, want) || slices.Equal(got, want[1:]) || slices.Equal(got, quick) || slices.Equal(got, quick[1:])
}

// A cancel that races the job's own end: one of the two wins, for good, and nothing is left.
func TestManagedCancelRacesTheEnd(t *testing.T) {
	w := world.NewReal(t, world.Options{Seed: 6})
	w.Acts.Home = t.TempDir()
	var jobs []*world.Managed
	for i := range 10 {
		m := w.StartJob(int64(i+1), 0, 0, "name: race\nrun: sleep 2\n")
		jobs = append(jobs, m)
		time.AfterFunc(1800*time.Millisecond+time.Duration(i)*60*time.Millisecond, func() { _ = w.Client.CancelWorkflow(context.Background(), m.WorkflowID(), "") })
	}
	ends := map[api.ManagedStatus]int{}
	for _, m := range jobs {
		rows := m.Ended()
		ends[rows[0].Status]++
		if s := rows[0].Status; s != succeeded && s != cancelled {
			t.Errorf("job %d: %s", m.ID, s)
		}
		time.Sleep(100 * time.Millisecond)
		m.Close()
		for i, s := range m.Seen[0] {
			if s.Terminal() && i < len(m.Seen[0])-1 {
				t.Errorf("job %d left a terminal state: %v", m.ID, m.Seen[0])
			}
		}
	}
	t.Log(ends)
	empty(t, w)
}

// A job's nodes are taken away at each step of its life: it ends as it should, and each attempt's nodes are gone before the next begins.
func TestManagedPreemptedAtEachStep(t *testing.T) {
	if testing.Short() {
		t.Skip("runs in real time")
	}
	w := world.NewReal(t, world.Options{Seed: 7, Cloud: memory.Config{CreateDelay: memory.Duration(3 * time.Second), DeleteLag: memory.Duration(1500 * time.Millisecond)}})
	w.Acts.Home = t.TempDir()
	// When a job is where, by its row and its cluster's.
	provisioning := func(m *world.Managed) bool {
		rows, err := w.Store.ManagedJob(context.Background(), m.ID)
		return err == nil && rows[0].Status == starting && len(m.Nodes()) > 0
	}
	jobIs := func(want api.JobStatus) func(*world.Managed) bool {
		return func(m *world.Managed) bool { return m.ClusterJob() == want }
	}
	steps := []struct {
		name, text string
		at         func(*world.Managed) bool
		lost       bool
	}{
		{"provision", "run: sleep 1", provisioning, false},
		{"setup", "setup: sleep 12\nrun: sleep 1", jobIs(api.JobSettingUp), true},
		{"run", "run: sleep 12", jobIs(api.JobRunning), true},
		{"teardown", "run: sleep 1", jobIs(api.JobSucceeded), false},
	}
	done := make(chan bool)
	for i, s := range steps {
		m := w.StartJob(int64(i+1), 0, 0, fmt.Sprintf("name: %s\nresources: {cpus: 2+, use_spot: true}\n%s\n", s.name, s.text))
		go func() {
			defer func() { done <- true }()
			taken := false
			for end := time.Now().Add(3 * time.Minute); !taken && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
				if taken = s.at(m); taken {
					for _, n := range m.Nodes() {
						_ = w.Cloud.Preempt(context.Background(), n.Cluster, n.ID, 0) // it may be on its way out
					}
				}
			}
			row := m.Ended()[0]
			if row.Status != succeeded || s.lost != (row.Recoveries == 1) || !taken {
				t.Errorf("%s: %s after %d recoveries (%s); taken away: %v", s.name, row.Status, row.Recoveries, row.FailureReason, taken)
			}
		}()
	}
	for range steps {
		<-done
	}
	empty(t, w)
}

// A job that ends while nobody hears of it is not run again: neither when its node's network is cut meanwhile, nor when the server is away.
func TestManagedEndsUnheard(t *testing.T) {
	w := world.NewReal(t, world.Options{Seed: 8})
	w.Acts.Home = t.TempDir()
	cut := w.StartJob(1, 0, 0, "name: cut\nrun: sleep 8\n")
	cut.Is(running)
	w.Cloud.Cut(cut.Nodes()[0].ID, 12*time.Second)
	if row := cut.Ended()[0]; row.Status != succeeded || row.Attempt != 1 || row.Recoveries != 0 {
		t.Errorf("after a cut network: %+v", row)
	}
	away := w.StartJob(2, 0, 0, "name: away\nrun: sleep 8\n")
	away.Is(running)
	w.Restart()
	if row := away.Ended()[0]; row.Status != succeeded || row.Attempt != 1 || row.Recoveries != 0 {
		t.Errorf("after a restart of the server: %+v", row)
	}
	empty(t, w)
}

// Many jobs that are cancelled at once all end, with nothing left.
func TestManagedManyCancelled(t *testing.T) {
	w := world.NewReal(t, world.Options{Seed: 9})
	w.Acts.Home = t.TempDir()
	var jobs []*world.Managed
	for i := range 40 {
		jobs = append(jobs, w.StartJob(int64(i+1), i, 40, "name: many\nrun: sleep 36000\n"))
	}
	for _, m := range jobs {
		m.Cancel()
	}
	for _, m := range jobs {
		if row := m.Ended()[0]; row.Status != cancelled {
			t.Errorf("job %d: %s (%s)", m.ID, row.Status, row.FailureReason)
		}
	}
	empty(t, w)
}

// empty says that the infra holds nothing of ours any more, soon.
func empty(t *testing.T, w *world.World) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
		left, err := w.Cloud.List(context.Background(), providers.Tag{Installation: w.Store.Installation()})
		if err == nil && len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("nodes are left: %v %v", left, err)
		}
	}
}
