//go:build linux

package labchaos

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/tests/lab"
	"github.com/skyloom/skyloom/tests/rig"
)

const (
	hosts    = 5
	clusters = 4
	lines    = 60 // of output of each rank of a job
)

func clusterName(i int) string { return fmt.Sprint("c", i) }

// hostsOf makes a lab of hosts with a ledger.
func hostsOf(t *testing.T, cpus float64, files map[string]string) *lab.Lab {
	t.Helper()
	all := map[string]string{ledgerDir + "/ledger": ""}
	for path, text := range files {
		all[path] = text
	}
	return lab.New(t, lab.Options{Hosts: hosts, Host: lab.HostSpec{CPUs: cpus, MemoryMB: 16 << 10, Files: all}})
}

// script is the task of a request: each rank writes down when it begins, and prints lines that can be counted.
func (s *site) script(id string, j rig.Job) string {
	infra := s.infra
	if infra == "" {
		infra = "ssh/lab"
	}
	sleep := j.Sleep
	if sleep == "" {
		sleep = "0"
	}
	return fmt.Sprintf(`name: chaos
num_nodes: %d
resources: {infra: %s, cpus: 1, memory: 1}
envs: {KEY: %s}
run: |
  echo "begin $KEY $SKYPILOT_NODE_RANK $(date +%%s.%%N)" >> %s/ledger
  i=0
  while [ $i -lt %d ]; do
    i=$((i+1)); echo "line $KEY $SKYPILOT_NODE_RANK $i"
    [ $i = 20 ] && sleep %s
  done
  exit 0
`, max(j.Nodes, 1), infra, id, ledgerDir, lines, sleep)
}

// TestClusters makes hosts fail under clusters that are launched, used, stopped, started and taken down all the time.
func TestClusters(t *testing.T) {
	if testing.Short() {
		t.Skip("minutes of faults")
	}
	events, thorough := number("SKYLOOM_LAB_EVENTS", 20)
	rng := seeded(t)
	l := hostsOf(t, 6, nil)
	x := moveIn(t, l)
	s := open(t, l, "clusters", poolsOf(l, l.Hosts(), false), 46001)
	w := newWorld(t, s, paceOf(thorough), rng)
	s.others = map[string]bool{}
	for _, a := range x.asks {
		s.others[a.ID] = true
	}
	for _, name := range x.names {
		w.foreign[name] = true
	}
	stopRows, stopHosts := s.Observe(), s.watchHosts(func() { s.lookAtHosts(w, x) })
	defer stopRows()
	defer stopHosts()
	d := &drivers{s: s, files: s.Upload("content of a workdir"), ends: map[string]int{}, final: map[string]time.Time{}}
	var wg sync.WaitGroup
	for i := range clusters {
		own := rand.New(rand.NewPCG(rng.Uint64(), 2))
		wg.Go(func() { d.drive(clusterName(i), own) })
	}
	w.cause(events)
	w.mend()
	d.over.Store(true)
	wg.Wait()
	if t.Failed() {
		return
	}
	began := time.Now()
	s.Healthy(time.Minute)
	s.AllEnd()
	s.settles(w)
	t.Logf("everything has come to rest %v after the last fault", time.Since(began).Round(time.Millisecond))
	for i := range clusters {
		d.useful(clusterName(i))
	}
	s.settles(w)
	s.RequestsStand()
	d.ledgerBalances()
	stopHosts()
	stopRows()
	d.report()
	x.moveOut(w)
}

// drivers work on clusters, one each.
type drivers struct {
	s     *site
	files []api.FileMount
	over  atomic.Bool

	mu    sync.Mutex
	ends  map[string]int       // how requests ended
	final map[string]time.Time // by key: after this its job must not begin
	jobs  []*jobOf
	read  int // logs that were compared
}

// jobOf is a job that a request was told the number of.
type jobOf struct {
	ask  *rig.Ask
	id   int64
	hash string
	done bool // its log was read
}

// mayFail are errors that a fault on hosts may end a request with.
var mayFail = []string{api.ErrClusterDoesNotExist, api.ErrClusterNotUp, api.ErrResourcesUnavailable, api.ErrResourcesMismatch}

func (d *drivers) do(op, cluster string, j rig.Job, rng *rand.Rand) (*rig.Ask, *api.Request) {
	a := d.s.Ask(op, cluster, j, func(api.Request) error { return nil })
	a.Least = 0
	if rng.IntN(5) == 0 {
		d.s.Send(a, j) // the same again changes nothing (I7)
	}
	if rng.IntN(12) == 0 && a.Ranks > 0 {
		time.Sleep(time.Duration(rng.IntN(1500)) * time.Millisecond)
		d.s.CancelRequest(a)
	}
	r := d.s.Wait(a)
	if r == nil {
		return a, nil
	}
	how := op + " " + string(r.Status)
	d.mu.Lock()
	defer d.mu.Unlock()
	if r.Status == api.RequestFailed {
		how += " " + r.Error.Kind
		if !slices.Contains(mayFail, r.Error.Kind) {
			d.s.t.Errorf("%v failed: %v\n%s", a, r.Error, d.s.Story(a))
		}
	}
	d.ends[how]++
	if r.Status == api.RequestCancelled && a.Ranks > 0 {
		d.final[a.ID] = time.Now()
	}
	if r.Status == api.RequestSucceeded && a.Ranks > 0 {
		var res api.LaunchResult
		if err := json.Unmarshal(r.Result, &res); err != nil || res.JobID == 0 {
			d.s.t.Errorf("%v: its result %s names no job (%v)", a, r.Result, err)
			return a, r
		}
		d.jobs = append(d.jobs, &jobOf{ask: a, id: res.JobID, hash: res.Hash})
	}
	return a, r
}

func (d *drivers) drive(name string, rng *rand.Rand) {
	for !d.over.Load() && !d.s.t.Failed() {
		job := rig.Job{Nodes: 1 + rng.IntN(2), Sleep: fmt.Sprintf("%d.%d", rng.IntN(4), rng.IntN(10))}
		if rng.IntN(3) == 0 {
			job.Files = d.files
		}
		dice := rng.IntN(100)
		switch d.s.Status(name) {
		case "":
			d.do("launch", name, job, rng)
		case api.ClusterUp:
			switch {
			case dice < 45:
				job.Nodes = 1
				d.do("exec", name, job, rng)
			case dice < 65:
				d.cancel(name, rng)
			case dice < 75:
				d.do("stop", name, rig.Job{}, rng)
			case dice < 80:
				d.do("start", name, rig.Job{}, rng)
			case dice < 85:
				d.do("autostop", name, rig.Job{}, rng)
			case dice < 90:
				d.do("down", name, rig.Job{}, rng)
			default:
				job.Nodes = 1
				d.do("launch", name, job, rng)
			}
		default:
			d.do([]string{"start", "start", "down"}[rng.IntN(3)], name, rig.Job{}, rng)
		}
		d.look(name)
		time.Sleep(time.Duration(300+rng.IntN(700)) * time.Millisecond)
	}
}

// cancel starts a job that takes for ever, and cancels all.
func (d *drivers) cancel(name string, rng *rand.Rand) {
	d.do("exec", name, rig.Job{Sleep: "600"}, rng)
	time.Sleep(time.Duration(rng.IntN(1500)) * time.Millisecond)
	_, r := d.do("cancel", name, rig.Job{}, rng)
	if r == nil || r.Status != api.RequestSucceeded {
		return
	}
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, j := range d.jobs { // those of this cluster were all submitted before
		if _, ok := d.final[j.ask.ID]; !ok && j.ask.Cluster == name {
			d.final[j.ask.ID] = now
		}
	}
}

// look compares the logs of jobs that have ended with what they printed (I5), as far as the cluster answers.
func (d *drivers) look(name string) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	lists, err := d.s.Hasty.Jobs(ctx, api.JobFilter{Clusters: []string{name}, AllUsers: true})
	if err != nil {
		return
	}
	rows := map[string]api.Job{}
	for _, j := range lists.Clusters[name] {
		rows[j.Key] = j
	}
	d.mu.Lock()
	var todo []*jobOf
	for _, j := range d.jobs {
		if row, ok := rows[j.ask.ID]; ok && j.ask.Cluster == name && !j.done && row.Status.Terminal() {
			todo = append(todo, j)
		}
	}
	d.mu.Unlock()
	for _, j := range todo {
		row := rows[j.ask.ID]
		if row.ID != j.id || row.ClusterHash != j.hash {
			d.s.t.Errorf("%v was told job %d on %s; it is %d on %s", j.ask, j.id, j.hash, row.ID, row.ClusterHash)
		}
		if row.Status == api.JobSucceeded {
			j.ask.Least = 1
		}
		if d.logIsWhole(ctx, name, j, row) {
			j.done = true
		}
	}
}

// logIsWhole reads the log of a job that has ended. It says whether it could.
func (d *drivers) logIsWhole(ctx context.Context, name string, j *jobOf, row api.Job) bool {
	got := map[int]*strings.Builder{}
	_, err := d.s.Hasty.JobLogs(ctx, name, api.LogFilter{JobID: j.id}, func(c api.LogChunk) error {
		if c.Lost > 0 {
			d.s.t.Errorf("%v: the log of rank %d lacks %d bytes", j.ask, c.Rank, c.Lost)
		}
		if len(c.Data) > 0 {
			if got[c.Rank] == nil {
				got[c.Rank] = &strings.Builder{}
			}
			got[c.Rank].Write(c.Data)
		}
		return nil
	})
	if err != nil {
		return false
	}
	for rank := range j.ask.Ranks {
		node, text := rank, ""
		if rank < len(row.RunsOn) {
			node = row.RunsOn[rank]
		}
		if got[node] != nil {
			text = got[node].String()
		}
		switch n, ok := counted(text, fmt.Sprintf("line %s %d ", j.ask.ID, rank)); {
		case row.Status == api.JobSucceeded && text == "" && d.replaced(ctx, name, j.hash):
			d.s.t.Logf("%v: the log of rank %d of job %d went with the node that it ran on", j.ask, rank, j.id)
		case row.Status == api.JobSucceeded && (!ok || n != lines):
			d.s.t.Errorf("%v: job %d of %s is %s, and its log of rank %d is not what it printed (%d lines):\n%s", j.ask, j.id, name, row.Status, rank, n, text)
		case row.Status != api.JobSucceeded && !ok:
			d.s.t.Logf("%v: job %d of %s is %s (%s); its log of rank %d ends after line %d with %q", j.ask, j.id, name, row.Status, row.Reason, rank, n, text[max(0, len(text)-200):])
		}
	}
	d.mu.Lock()
	d.read++
	d.mu.Unlock()
	return true
}

// replaced says that a node of the cluster was lost and made anew, without what was on its disk.
func (d *drivers) replaced(ctx context.Context, name, hash string) bool {
	events, err := d.s.Hasty.Events(ctx, api.EventFilter{Cluster: name, Limit: 1000})
	return err == nil && slices.ContainsFunc(events, func(e api.Event) bool {
		return e.Hash == hash && strings.Contains(e.Message, "bringing the cluster back")
	})
}

// counted says how many lines a text has that begin with the prefix and are counted from 1, and that it has no others.
func counted(text, prefix string) (n int, ok bool) {
	for line := range strings.Lines(text) {
		if line != fmt.Sprintf("%s%d\n", prefix, n+1) {
			return n, false
		}
		n++
	}
	return n, true
}

// useful brings a cluster back after everything, uses it and takes it down (I16).
func (d *drivers) useful(name string) {
	s := d.s
	if st := s.Status(name); st != "" && st != api.ClusterUp {
		if _, r := s.Do("start", name, rig.Job{}, rig.Either(rig.Succeeds, rig.Fails(api.ErrClusterNotUp))); r != nil && r.Status != api.RequestSucceeded {
			s.Do("down", name, rig.Job{}, rig.Succeeds)
		}
	}
	op := "exec"
	if s.Status(name) == "" {
		op = "launch"
	}
	a, r := s.Do(op, name, rig.Job{}, rig.Succeeds)
	if r == nil || r.Status != api.RequestSucceeded {
		return
	}
	s.JobReaches(a, r, api.JobSucceeded)
	s.JobsEnd(time.Minute)
	d.look(name)
	s.Do("down", name, rig.Job{}, rig.Succeeds)
}

// ledgerBalances checks that each rank of each job began at most once, and none after its end was told (I3, I8).
func (d *drivers) ledgerBalances() {
	text := d.s.ledger()
	d.s.LedgerBalances(rig.Begun(d.foreignless(text)))
	for line := range strings.Lines(text) {
		var key string
		var rank int
		var at float64
		if n, _ := fmt.Sscanf(line, "begin %s %d %f", &key, &rank, &at); n != 3 {
			continue
		}
		if end, ok := d.final[key]; ok && at > float64(end.UnixMicro())/1e6 {
			d.s.t.Errorf("rank %d of job %s began %.1f s after it was cancelled", rank, key, at-float64(end.UnixMicro())/1e6)
		}
	}
}

// foreignless leaves out what the strangers wrote.
func (d *drivers) foreignless(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 1 && !d.s.others[f[1]] {
			b.WriteString(line)
		}
	}
	return b.String()
}

func (d *drivers) report() {
	var how []string
	for k, n := range d.ends {
		how = append(how, fmt.Sprintf("%d %s", n, k))
	}
	slices.Sort(how)
	d.s.t.Logf("%d requests, %d jobs, %d logs read: %s", len(d.s.Asks()), len(d.jobs), d.read, strings.Join(how, ", "))
}
