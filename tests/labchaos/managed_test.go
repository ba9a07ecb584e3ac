//go:build linux

package labchaos

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/artifact"
)

const (
	steps    = 80 // of a training
	inFlight = 8  // jobs at once
	program  = "/opt/train/train.sh"
)

// TestManagedJobs kills hosts and the server under managed jobs that train with checkpoints: each ends with the result of an
// undisturbed run, and no step before the last complete checkpoint is done twice.
func TestManagedJobs(t *testing.T) {
	if testing.Short() {
		t.Skip("minutes of faults")
	}
	t.Parallel()
	count, _ := number("SKYLOOM_LAB_JOBS", 20)
	kills, thorough := number("SKYLOOM_LAB_KILLS", 10)
	rng := seeded(t)
	text, err := os.ReadFile("../../examples/train/train.sh")
	if err != nil {
		t.Fatal(err)
	}
	want := undisturbed(t, string(text))
	l := hostsOf(t, 8, map[string]string{program: string(text)})
	s := open(t, l, "jobs", poolsOf(l, l.Hosts(), false), 46003)
	w := newWorld(t, s, paceOf(thorough), rng)
	f := &fleet{s: s, w: w}
	stopRows, stopHosts := s.Observe(), s.watchHosts(f.look)
	defer stopRows()
	defer stopHosts()
	var wg sync.WaitGroup
	next := make(chan int)
	for range inFlight {
		own := rand.New(rand.NewPCG(rng.Uint64(), 2))
		wg.Go(func() {
			for range next {
				f.one(own)
			}
		})
	}
	wg.Go(func() {
		defer close(next)
		// The jobs last as long as the faults: none comes before its share of these.
		for i := 0; i < count && !t.Failed(); i++ {
			for int(w.caused.Load())*count < (i-2*inFlight)*kills && !t.Failed() {
				time.Sleep(100 * time.Millisecond)
			}
			next <- i
		}
	})
	w.cause(kills)
	w.mend()
	began := time.Now()
	wg.Wait()
	t.Logf("the last job has ended %v after the last fault", time.Since(began).Round(time.Second))
	s.Healthy(time.Minute)
	s.settles(w)
	f.rowsStand()
	saved := f.checkpoints()
	f.ledgers()
	f.logs()
	stopHosts()
	stopRows()
	s.Stop()
	f.judge(want, saved)
}

// undisturbed is the result of the program by itself.
func undisturbed(t *testing.T, program string) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("sh", "-c", program)
	cmd.Dir, cmd.Env = dir, []string{"PATH=" + os.Getenv("PATH"), "LEDGER=" + filepath.Join(dir, "ledger"), fmt.Sprint("STEPS=", steps), "STEP_SECONDS=0"}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b, err := os.ReadFile(filepath.Join(dir, "ledger"))
	if err != nil {
		t.Fatal(err)
	}
	_, result, ok := strings.Cut(string(b), "result ")
	if !ok {
		t.Fatalf("no result in %q", b)
	}
	return strings.TrimSpace(result)
}

// fleet is the managed jobs of a run, and what the oracle knows of them.
type fleet struct {
	s *site
	w *world

	mu   sync.Mutex
	jobs []*training
}

// training is one job.
type training struct {
	request   string
	text      string // its task
	id        int64
	cancelled bool           // it was asked to be
	end       api.ManagedJob // its row when it had ended
	attempts  map[int]*attempt
	results   []string // more than one if an attempt came to its end on a host that was given up
	story     string
}

// took is how long the job was under way.
func (x *training) took() time.Duration {
	if x.end.EndAt == nil {
		return 0
	}
	return x.end.EndAt.Sub(x.end.SubmittedAt)
}

// attempt is what the ledgers tell of one.
type attempt struct {
	begins int
	hosts  map[string]bool
	steps  []int
}

// trainer is the task of a job that trains.
func trainer() string {
	return fmt.Sprintf(`name: train
resources: {infra: ssh/lab, cpus: 1, memory: 1}
checkpoint: {path: ~/ckpt, every: 2s, signal: USR1, keep: 100}
envs: {STEPS: "%d", STEP_SECONDS: "0.2"}
run: |
  echo "begin $SKYPILOT_MANAGED_JOB_ID $SKYPILOT_ATTEMPT" >> %s/ledger
  i=0
  while [ $i -lt %d ]; do
    i=$((i+1)); echo "line $SKYPILOT_MANAGED_JOB_ID $SKYPILOT_ATTEMPT $i"
    [ $i = 20 ] && LEDGER=%s/steps-$SKYPILOT_MANAGED_JOB_ID sh %s >&2
  done
  exit 0
`, steps, ledgerDir, lines, ledgerDir, program)
}

// one submits a job and waits for its end.
func (f *fleet) one(rng *rand.Rand) {
	t := f.s.t
	x := &training{request: api.NewRequestID(), text: trainer(), attempts: map[int]*attempt{}}
	if !f.submit(x) {
		return
	}
	if rng.IntN(4) == 0 && !f.submit(x) { // the same again (I7)
		return
	}
	f.mu.Lock()
	f.jobs = append(f.jobs, x)
	f.mu.Unlock()
	cancelAt := time.Time{}
	if rng.IntN(8) == 0 {
		cancelAt = time.Now().Add(time.Duration(rng.IntN(15_000)) * time.Millisecond)
	}
	for end := time.Now().Add(15 * time.Minute); ; time.Sleep(500 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		if !cancelAt.IsZero() && time.Now().After(cancelAt) && !x.cancelled {
			x.cancelled = true
			if _, err := f.s.Client.CancelManagedJobs(ctx, &api.JobsCancelBody{Base: api.Base{User: "chaos", UserHash: "c4a05c4a"}, JobIDs: []int64{x.id}}); err != nil {
				t.Errorf("job %d could not be cancelled: %v", x.id, err)
			}
		}
		rows, err := f.s.Client.ManagedJob(ctx, x.id)
		cancel()
		switch {
		case err != nil || len(rows) != 1:
			t.Errorf("job %d was acknowledged and has %d rows: %v", x.id, len(rows), err)
			return
		case rows[0].Status.Terminal():
			x.end, x.story = rows[0], f.story(x.id)
			if st := x.end.Status; st != api.ManagedSucceeded && !(x.cancelled && st == api.ManagedCancelled) {
				t.Errorf("job %d ended as %s: %s\n%s", x.id, st, x.end.FailureReason, f.story(x.id))
			}
			return
		case time.Now().After(end):
			t.Errorf("job %d is %s for ever: %s\n%s", x.id, rows[0].Status, rows[0].Details, f.story(x.id))
			return
		}
		if t.Failed() {
			return
		}
	}
}

// submit sends a job until it has a number; a second time it is the same.
func (f *fleet) submit(x *training) bool {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ref, err := f.s.Client.LaunchJobs(ctx, &api.JobsLaunchBody{Base: api.Base{RequestID: x.request, User: "chaos", UserHash: "c4a05c4a", Command: "sky jobs launch"}, Task: x.text})
	if err != nil || ref.RequestID != x.request {
		f.s.t.Errorf("submission %s was not taken: %v", x.request, err)
		return false
	}
	r, err := f.s.Client.WaitRequest(ctx, x.request)
	var res api.JobsLaunchResult
	if err == nil {
		err = json.Unmarshal(r.Result, &res)
	}
	if err != nil || len(res.JobIDs) != 1 || x.id != 0 && res.JobIDs[0] != x.id {
		f.s.t.Errorf("submission %s of job %d has the jobs %v: %v", x.request, x.id, res.JobIDs, err)
		return false
	}
	x.id = res.JobIDs[0]
	return true
}

func (f *fleet) story(id int64) string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	events, err := f.s.Client.ManagedEvents(ctx, id, 0, 0)
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for _, e := range events {
		fmt.Fprintf(&b, "  %s %s %s: %s\n", e.Time.Local().Format("15:04:05.000"), e.Kind, e.Step, e.Message)
	}
	return b.String()
}

// look sees that nothing of a job that has ended runs (I8), and one attempt of each other at most (I3).
func (f *fleet) look() {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	ended := map[string]api.ManagedStatus{}
	if list, err := f.s.Hasty.ManagedJobs(ctx, api.ManagedFilter{}); err == nil {
		for _, j := range list.Jobs {
			if j.Status.Terminal() {
				ended[fmt.Sprint(j.ID)] = j.Status
			}
		}
	}
	type place struct {
		attempt string
		m       *machine
	}
	runs := map[string]place{}
	for _, m := range f.w.machines() {
		gone, ghosts := f.w.missing(m)
		for _, p := range processesOf(f.s.t, m.Host) {
			id := p.Env("SKYPILOT_MANAGED_JOB_ID")
			if id == "" || p.verb() != "" || gone || ghosts[p.node()] {
				continue
			}
			if st := ended[id]; st != "" {
				f.s.t.Errorf("job %s is shown as %s and runs on %s: %v", id, st, m.Name, p)
			}
			at := place{p.Env("SKYPILOT_ATTEMPT"), m}
			// The hosts are looked at one after the other: an attempt that was seen a moment ago may have ended meanwhile, and given way.
			if other, seen := runs[id]; seen && other != at && f.runs(other.m, id, other.attempt) {
				f.s.t.Errorf("job %s runs as attempt %s on %s and as attempt %s on %s", id, other.attempt, other.m.Name, at.attempt, m.Name)
			}
			runs[id] = at
		}
	}
}

// runs says that an attempt of a job runs on a host that is not given up.
func (f *fleet) runs(m *machine, id, attempt string) bool {
	gone, ghosts := f.w.missing(m)
	return !gone && slices.ContainsFunc(processesOf(f.s.t, m.Host), func(p process) bool {
		return p.verb() == "" && p.Env("SKYPILOT_MANAGED_JOB_ID") == id && p.Env("SKYPILOT_ATTEMPT") == attempt && !ghosts[p.node()]
	})
}

// rowsStand checks that there is one row per submission, as its job ended (I2, I6, I7, I13).
func (f *fleet) rowsStand() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	list, err := f.s.Client.ManagedJobs(ctx, api.ManagedFilter{})
	if err != nil {
		f.s.t.Errorf("jobs: %v", err)
		return
	}
	rows := map[int64]api.ManagedJob{}
	for _, r := range list.Jobs {
		rows[r.ID] = r
	}
	for _, x := range f.jobs {
		if r := rows[x.id]; r.RequestID != x.request || r.Status != x.end.Status {
			f.s.t.Errorf("job %d of submission %s was %s, and is %s of %q", x.id, x.request, x.end.Status, r.Status, r.RequestID)
		}
		delete(rows, x.id)
	}
	for id, r := range rows {
		f.s.t.Errorf("job %d (%s) was asked for by nobody", id, r.RequestID)
	}
}

// checkpoints are all that were saved, by job.
func (f *fleet) checkpoints() map[int64][]api.Checkpoint {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out := map[int64][]api.Checkpoint{}
	for _, x := range f.jobs {
		l, err := f.s.Client.Checkpoints(ctx, x.id)
		if err != nil {
			f.s.t.Errorf("checkpoints of job %d: %v", x.id, err)
			continue
		}
		out[x.id] = l.Checkpoints
	}
	return out
}

// ledgers reads what the attempts wrote on the hosts.
func (f *fleet) ledgers() {
	byID := map[int64]*training{}
	for _, x := range f.jobs {
		byID[x.id] = x
	}
	of := func(id int64, n int, host string) *attempt {
		x := byID[id]
		if x == nil {
			f.s.t.Errorf("job %d ran on %s and nobody asked for it", id, host)
			return &attempt{hosts: map[string]bool{}}
		}
		a := x.attempts[n]
		if a == nil {
			a = &attempt{hosts: map[string]bool{}}
			x.attempts[n] = a
		}
		a.hosts[host] = true
		return a
	}
	for _, h := range f.s.lab.Hosts() {
		out, err := h.Run(context.Background(), "cat "+ledgerDir+"/ledger; grep -H . "+ledgerDir+"/steps-* || true")
		if err != nil {
			f.s.t.Errorf("ledgers of %s: %v", h.Name, err)
		}
		for line := range strings.Lines(out) {
			var id int64
			var n, step int
			if k, _ := fmt.Sscanf(line, "begin %d %d", &id, &n); k == 2 {
				of(id, n, h.Name).begins++
				continue
			}
			rest, _ := strings.CutPrefix(line, ledgerDir+"/steps-")
			name, rest, _ := strings.Cut(rest, ":")
			id, _ = strconv.ParseInt(name, 10, 64)
			if r, ok := strings.CutPrefix(rest, "result "); ok {
				if x := byID[id]; x != nil {
					x.results = append(x.results, strings.TrimSpace(r))
				}
			} else if k, _ := fmt.Sscan(rest, &n, &step); k == 2 {
				a := of(id, n, h.Name)
				a.steps = append(a.steps, step)
			}
		}
	}
}

// logs compares the logs that were kept with what the attempts printed (I5).
func (f *fleet) logs() {
	whole, read := 0, 0
	for _, x := range f.jobs {
		got, cut := map[int]*bytes.Buffer{}, map[int]string{}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		_, err := f.s.Client.ManagedLogs(ctx, x.id, api.ManagedLogFilter{}, func(c api.LogChunk) error {
			if c.Lost > 0 {
				f.s.t.Errorf("the log of attempt %d of job %d lacks %d bytes", c.Attempt, x.id, c.Lost)
			}
			if got[c.Attempt] == nil {
				got[c.Attempt] = &bytes.Buffer{}
			}
			got[c.Attempt].Write(c.Data)
			if c.Cut != "" {
				cut[c.Attempt] = c.Cut
			}
			return nil
		})
		cancel()
		if err != nil {
			f.s.t.Errorf("log of job %d: %v", x.id, err)
		}
		for n, text := range got {
			var own strings.Builder // without what the program says
			for line := range strings.Lines(text.String()) {
				if strings.HasPrefix(line, "line ") {
					own.WriteString(line)
				}
			}
			k, ok := counted(own.String(), fmt.Sprintf("line %d %d ", x.id, n))
			last := n == x.end.Attempt && x.end.Status == api.ManagedSucceeded
			if last && cut[n] != "" { // its host went away between its end and the reading, and the log says so
				f.s.t.Logf("the log of attempt %d of job %d is cut after line %d: %s", n, x.id, k, cut[n])
				last = false
			}
			if last {
				whole++
			}
			read++
			if !ok || last && k != lines {
				f.s.t.Errorf("the log of attempt %d of job %d (%s) is not what it printed (%d lines):\n%s", n, x.id, x.end.Status, k, text)
			}
		}
		if x.end.Status == api.ManagedSucceeded && got[x.end.Attempt] == nil {
			f.s.t.Errorf("job %d succeeded and its last attempt, %d, has no log", x.id, x.end.Attempt)
		}
	}
	f.s.t.Logf("%d logs of attempts read, %d of them of those that succeeded", read, whole)
}

// judge holds the ledgers against the results, and against what was saved. The server is down: its store is read.
func (f *fleet) judge(want string, saved map[int64][]api.Checkpoint) {
	t := f.s.t
	st, err := artifact.Open(filepath.Join(f.s.home, "artifacts"), artifact.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	attempts, again, points := 0, 0, 0
	for _, x := range f.jobs {
		if x.end.Status == api.ManagedSucceeded && len(x.results) == 0 || slices.ContainsFunc(x.results, func(r string) bool { return r != want }) {
			t.Errorf("job %d came to %q, undisturbed to %q", x.id, x.results, want)
		}
		did := map[int]bool{}
		for n, a := range x.attempts {
			attempts++
			if a.begins != 1 || len(a.hosts) != 1 || n < 1 || n > x.end.Attempt {
				t.Errorf("attempt %d of %d of job %d began %d times, on %v", n, x.end.Attempt, x.id, a.begins, a.hosts)
			}
			for i, k := range a.steps {
				if k != a.steps[0]+i {
					t.Errorf("attempt %d of job %d does step %d as number %d after %d", n, x.id, k, i, a.steps[0])
				}
				if did[k] {
					again++
				}
				did[k] = true
			}
		}
		if x.end.Status == api.ManagedSucceeded && len(did) != steps {
			t.Errorf("job %d succeeded with %d of %d steps", x.id, len(did), steps)
		}
		for _, c := range saved[x.id] {
			points++
			step, err := savedStep(st, c)
			if err != nil {
				t.Errorf("checkpoint %d of job %d: %v", c.N, x.id, err)
				continue
			}
			for n, a := range x.attempts {
				if n > c.Attempt && len(a.steps) > 0 && a.steps[0] <= step {
					t.Errorf("attempt %d of job %d begins with step %d, and attempt %d had saved step %d", n, x.id, a.steps[0], c.Attempt, step)
				}
			}
		}
	}
	recoveries := 0
	var slowest *training
	for _, x := range f.jobs {
		recoveries += x.end.Recoveries
		if slowest == nil || x.took() > slowest.took() {
			slowest = x
		}
	}
	t.Logf("%d jobs, %d recoveries, %d attempts that began, %d checkpoints, %d steps done again", len(f.jobs), recoveries, attempts, points, again)
	t.Logf("job %d took longest, %v:\n%s", slowest.id, slowest.took().Round(time.Second), slowest.story)
}

// savedStep reads the step from the state that a checkpoint holds.
func savedStep(st *artifact.Store, c api.Checkpoint) (int, error) {
	if len(c.Manifests) != 1 {
		return 0, fmt.Errorf("it has %d manifests", len(c.Manifests))
	}
	m, err := st.Manifest(c.Manifests[0])
	if err != nil {
		return 0, err
	}
	for _, e := range m.Entries {
		if e.Path != "state" {
			continue
		}
		r, _, err := st.Open(e.Hash)
		if err != nil {
			return 0, err
		}
		defer r.Close()
		b, err := io.ReadAll(r)
		if err != nil {
			return 0, err
		}
		var step int
		_, err = fmt.Sscan(string(b), &step)
		return step, err
	}
	return 0, nil // saved before the program had written anything
}
