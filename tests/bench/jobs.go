package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/skyloom/skyloom/api"
)

// sizes are how many managed jobs the parts of the table are measured with.
type sizes struct {
	parts, config, with               string
	steady, lives, burst, slow, local int
	elements                          int
	idle                              time.Duration
}

func (s sizes) wants(part string) bool {
	return s.parts == "" || strings.Contains(","+s.parts+",", ","+part+",")
}

// jobs measures managed jobs: on the simulated cloud, unless a row says otherwise.
func (b *bench) jobs() error {
	for _, part := range []struct {
		name string
		do   func() error
	}{{"life", b.jobLife}, {"burst", b.jobBurst}, {"slow", b.jobsSlow}, {"steady", b.jobsSteady}, {"real", b.jobsReal}} {
		if !b.sizes.wants(part.name) {
			continue
		}
		if err := part.do(); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return nil
}

const memoryOnly = "local: {enabled: false}\nmemory_provider: {enabled: true}\n"

// running is a server that has settled, with its client.
func (b *bench) running(config string) (*instance, error) {
	in, err := b.instance(config + b.sizes.config + "\n")
	if err != nil {
		return nil, err
	}
	if err := in.serve(b.debug); err != nil {
		in.close()
		return nil, err
	}
	time.Sleep(3 * time.Second)
	return in, nil
}

// used is the CPU time of the server, and of what works for it.
func (b *bench) used(in *instance) time.Duration {
	sum := cpuOf(in.pid)
	for _, word := range strings.Split(b.sizes.with, ",") {
		pid, err := strconv.Atoi(word)
		if err != nil {
			continue
		}
		sum += cpuOf(pid)
		for _, child := range children(pid) {
			sum += cpuOf(child)
		}
	}
	return sum
}

// submitted is what came of submissions from several clients at once.
type submitted struct {
	ids     []int64
	refused int
	why     error
	began   time.Time
	took    time.Duration
}

// submitJobs sends n submissions of count jobs each, from eight clients at once.
func submitJobs(ctx context.Context, in *instance, n, count int, infra, rest string) submitted {
	out := submitted{began: time.Now()}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for c := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := c; i < n; i += 8 {
				body := api.JobsLaunchBody{Base: api.Base{RequestID: api.NewRequestID(), UserHash: "bench", User: "bench"}, Name: fmt.Sprintf("j%d", i), NumJobs: count,
					Task: fmt.Sprintf("resources: {infra: %s}\n%s", infra, rest)}
				var res api.JobsLaunchResult
				_, err := in.client.LaunchJobs(ctx, &body)
				if err == nil {
					var r *api.Request
					if r, err = in.client.WaitRequest(ctx, body.RequestID); err == nil {
						err = json.Unmarshal(r.Result, &res)
					}
				}
				mu.Lock()
				if err != nil {
					out.refused, out.why = out.refused+count, err
				}
				out.ids = append(out.ids, res.JobIDs...)
				mu.Unlock()
			}
		}()
	}
	wg.Wait()
	out.took = time.Since(out.began)
	return out
}

// distinct says how many numbers there are and how many were given twice.
func (s submitted) distinct() (n, twice int) {
	seen := map[int64]bool{}
	for _, id := range s.ids {
		if seen[id] {
			twice++
		}
		seen[id] = true
	}
	return len(seen), twice
}

func (s submitted) check() error {
	if s.why != nil {
		return fmt.Errorf("%d submissions refused, such as: %w", s.refused, s.why)
	}
	return nil
}

// until waits for as long as it takes (two hours at most) until the jobs' states satisfy ok.
func until(ctx context.Context, in *instance, ok func(map[api.ManagedStatus]int) bool) (map[api.ManagedStatus]int, error) {
	for deadline := time.Now().Add(2 * time.Hour); ; time.Sleep(250 * time.Millisecond) {
		list, err := in.client.ManagedJobs(ctx, api.ManagedFilter{Limit: 1})
		if err != nil {
			return nil, err
		}
		if ok(list.Counts) {
			return list.Counts, nil
		}
		if time.Now().After(deadline) {
			return list.Counts, fmt.Errorf("after two hours the jobs are %v", list.Counts)
		}
	}
}

func ended(c map[api.ManagedStatus]int) (n int) {
	for s, k := range c {
		if s.Terminal() {
			n += k
		}
	}
	return n
}

// jobLife measures what a job costs from its submission until its cluster is gone.
func (b *bench) jobLife() error {
	in, err := b.running(memoryOnly)
	if err != nil {
		return err
	}
	defer in.close()
	ctx := context.Background()
	n := b.sizes.lives
	warm := submitJobs(ctx, in, 8, 1, "memory", "run: sleep 2")
	if err := warm.check(); err != nil {
		return err
	}
	if _, err := until(ctx, in, func(c map[api.ManagedStatus]int) bool { return ended(c) == 8 }); err != nil {
		return err
	}
	stop := b.profile(in, "life")
	before, start := b.used(in), time.Now()
	sub := submitJobs(ctx, in, n, 1, "memory", "run: sleep 2")
	if err := sub.check(); err != nil {
		return err
	}
	counts, err := until(ctx, in, func(c map[api.ManagedStatus]int) bool { return ended(c) == n+8 })
	if err != nil {
		return err
	}
	each, took := (b.used(in)-before)/time.Duration(n), time.Since(start)
	stop()
	b.row(fmt.Sprintf("a managed job's whole life, over %d: CPU in server and engine", n), "110 ms", fmt.Sprintf("%s (%.1f jobs/s; %d succeeded)", ms(each), float64(n)/took.Seconds(), counts[api.ManagedSucceeded]-8))
	return nil
}

// jobBurst measures many submissions at once, a lost node among many jobs, and the cancel of all.
func (b *bench) jobBurst() error {
	in, err := b.running(memoryOnly)
	if err != nil {
		return err
	}
	defer in.close()
	ctx := context.Background()
	n := b.sizes.burst
	stop := b.profile(in, "burst")
	before := b.used(in)
	sub := submitJobs(ctx, in, n, 1, "memory, use_spot: true", "run: sleep 1000000")
	stop()
	first, err := firstCluster(ctx, in, sub)
	if err != nil {
		return err
	}
	given, twice := sub.distinct()
	list, err := in.client.ManagedJobs(ctx, api.ManagedFilter{Limit: 1})
	if err != nil {
		return err
	}
	b.row(fmt.Sprintf("burst of %d submissions from 8 clients: accepted; first cluster requested", n), "30/s, none lost or doubled; 1 s",
		fmt.Sprintf("%.0f/s, %d refused, %d lost, %d doubled; %s", float64(n)/sub.took.Seconds(), sub.refused, n-sub.refused-given, twice+max(list.Total-given, 0), secs(first)))
	if err := sub.check(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
	if _, err := until(ctx, in, func(c map[api.ManagedStatus]int) bool { return c[api.ManagedRunning] == given }); err != nil {
		return err
	}
	b.row(fmt.Sprintf("the same until all %d run; CPU per job", n), "", fmt.Sprintf("%s; %s", secs(time.Since(sub.began)), ms((b.used(in)-before)/time.Duration(n))))
	if err := b.loss(ctx, in, fmt.Sprintf("%d running jobs: a node is preempted → recovery started", given), sub.ids); err != nil {
		return err
	}
	return b.cancelAll(ctx, in, given)
}

// firstCluster is the time from the first submission to the first request for nodes.
func firstCluster(ctx context.Context, in *instance, sub submitted) (time.Duration, error) {
	var first time.Time
	for id := int64(1); id <= 8; id++ {
		evs, err := in.client.ManagedEvents(ctx, id, 0, 100)
		if err != nil {
			return 0, err
		}
		for _, e := range evs {
			if e.Step == "provision" && (first.IsZero() || e.Time.Before(first)) {
				first = e.Time
			}
		}
	}
	if first.IsZero() {
		return 0, errors.New("no cluster was requested for the first jobs")
	}
	return max(first.Sub(sub.began), 0), nil
}

// loss takes the nodes of some jobs away, one after the other, and measures until their recovery has begun.
func (b *bench) loss(ctx context.Context, in *instance, what string, ids []int64) error {
	var all []time.Duration
	for i := range min(5, len(ids)) {
		id := ids[i*len(ids)/5%len(ids)]
		rows, err := in.client.ManagedJob(ctx, id)
		if err != nil {
			return err
		}
		evs, err := in.client.ManagedEvents(ctx, id, 0, 1000)
		if err != nil {
			return err
		}
		after := evs[len(evs)-1].ID
		start := time.Now()
		body := api.PreemptBody{Base: api.Base{RequestID: api.NewRequestID()}, Cluster: rows[0].Cluster}
		if _, err := in.client.Preempt(ctx, &body); err != nil {
			return err
		}
		for found := false; !found; time.Sleep(20 * time.Millisecond) {
			if evs, err = in.client.ManagedEvents(ctx, id, after, 100); err != nil {
				return err
			}
			for _, e := range evs {
				if strings.HasPrefix(e.Message, "RECOVERING") && !found {
					found = true
					all = append(all, e.Time.Sub(start))
				}
			}
			if time.Since(start) > 5*time.Minute {
				return fmt.Errorf("job %d was not recovered", id)
			}
		}
	}
	if len(all) > 0 {
		b.row(what, "5 s", fmt.Sprintf("%s (the slowest of %d: %s)", secs(median(all)), len(all), secs(all[len(all)-1])))
	}
	return nil
}

// cancelAll cancels every job and waits until all are CANCELLED and no cluster is left.
func (b *bench) cancelAll(ctx context.Context, in *instance, n int) error {
	list, err := in.client.ManagedJobs(ctx, api.ManagedFilter{SkipFinished: true})
	if err != nil {
		return err
	}
	stop := b.profile(in, "cancel")
	before, start := b.used(in), time.Now()
	rep, err := in.client.CancelManagedJobs(ctx, &api.JobsCancelBody{Base: api.Base{RequestID: api.NewRequestID(), UserHash: "bench"}, AllUsers: true})
	if err != nil {
		return err
	}
	accepted := time.Since(start)
	if _, err := until(ctx, in, func(c map[api.ManagedStatus]int) bool { return c[api.ManagedCancelled] == n }); err != nil {
		return err
	}
	took := time.Since(start)
	stop()
	left := 0
	for _, j := range list.Jobs {
		if j.Cluster == "" {
			continue
		}
		if _, err := in.client.Cluster(ctx, j.Cluster); err == nil {
			left++
		}
	}
	b.row(fmt.Sprintf("cancel of %d jobs: accepted / all CANCELLED; clusters left", n), "60 s; 0", fmt.Sprintf("%s / %s; %d (%d accepted, %s of CPU each)", secs(accepted), secs(took), left, len(rep.Cancelled), ms((b.used(in)-before)/time.Duration(max(n, 1)))))
	return nil
}

// jobsSlow measures what launches that take long do to an exec elsewhere.
func (b *bench) jobsSlow() error {
	n := b.sizes.slow
	in, err := b.running(fmt.Sprintf("local: {enabled: true}\nmemory_provider: {enabled: true, create_delay: 10m}\njobs: {limits: {launching: %d}}\n", n))
	if err != nil {
		return err
	}
	defer in.close()
	ctx := context.Background()
	if _, _, err := b.sky(in, "launch", "-y", "-c", "here", "--infra", "local", "true"); err != nil {
		return err
	}
	execs := func() (time.Duration, error) {
		var all []time.Duration
		for range 15 {
			_, d, err := b.sky(in, "exec", "here", "true")
			if err != nil {
				return 0, err
			}
			all = append(all, d)
		}
		return median(all), nil
	}
	idle, err := execs()
	if err != nil {
		return err
	}
	sub := submitJobs(ctx, in, n, 1, "memory", "run: sleep 1000000")
	if err := sub.check(); err != nil {
		return err
	}
	if _, err := until(ctx, in, func(c map[api.ManagedStatus]int) bool { return c[api.ManagedStarting] == n }); err != nil {
		return err
	}
	during, err := execs() // the clouds are still being asked
	if err != nil {
		return err
	}
	for quiet := false; !quiet; {
		before := b.used(in)
		time.Sleep(5 * time.Second)
		quiet = b.used(in)-before < time.Second/2
	}
	stop := b.profile(in, "slow")
	share, err := b.idleShare(in.pid)
	if err != nil {
		return err
	}
	stop()
	busy, err := execs()
	if err != nil {
		return err
	}
	b.row(fmt.Sprintf("%d jobs provisioning on a cloud that takes 10 min: an `exec` elsewhere, before / while nodes are asked for / while they are awaited", n), "within 2 ×",
		fmt.Sprintf("%s / %s / %s (%.2f ×); the server then takes %.1f %% of a core", secs(idle), secs(during), secs(busy), float64(busy)/float64(idle), share))
	return b.cancelAll(ctx, in, n)
}

// jobsSteady measures many jobs that run, and nothing happens.
func (b *bench) jobsSteady() error {
	in, err := b.running(memoryOnly)
	if err != nil {
		return err
	}
	defer in.close()
	n := b.sizes.steady
	ctx := context.Background()
	sub, err := b.fill(ctx, in, n, "memory, use_spot: true")
	if err != nil {
		return err
	}
	stop := b.profile(in, "steady")
	before, start := b.used(in), time.Now()
	time.Sleep(b.sizes.idle) // long enough for a round of the reaper
	share := float64(b.used(in)-before) / float64(time.Since(start)) * 100
	stop()
	b.row(fmt.Sprintf("%d running jobs, steady: share of a core; memory", n), "20 %; 1.3 GB", fmt.Sprintf("%.1f %%; %s", share, memory(in.pid)))
	for _, q := range []struct {
		name string
		args []string
	}{{"sky jobs queue", []string{"jobs", "queue", "-u"}}, {"sky jobs queue -a", []string{"jobs", "queue", "-u", "-a"}}} {
		cpu, wall, err := b.average(5, in, q.args...)
		if err != nil {
			return err
		}
		b.row(fmt.Sprintf("`%s` of %d jobs: wall; CPU in `sky`", q.name, n), "0.3 s", fmt.Sprintf("%s; %s", secs(wall), ms(cpu)))
	}
	if err := b.loss(ctx, in, fmt.Sprintf("%d running jobs: a node is preempted → recovery started", n), sub.ids); err != nil {
		return err
	}
	return b.cancelAll(ctx, in, n)
}

// fill brings up n jobs that run on, and waits until nothing more happens.
func (b *bench) fill(ctx context.Context, in *instance, n int, infra string) (submitted, error) {
	batch := min(n, 100)
	start, before := time.Now(), b.used(in)
	sub := submitJobs(ctx, in, n/batch, batch, infra, "run: sleep 1000000")
	if err := sub.check(); err != nil {
		return sub, err
	}
	if n%batch > 0 {
		rest := submitJobs(ctx, in, 1, n%batch, infra, "run: sleep 1000000")
		if err := rest.check(); err != nil {
			return sub, err
		}
		sub.ids = append(sub.ids, rest.ids...)
	}
	if _, err := until(ctx, in, func(c map[api.ManagedStatus]int) bool { return c[api.ManagedRunning] == n }); err != nil {
		return sub, err
	}
	fmt.Fprintf(os.Stderr, "bench: %d jobs run after %s, for %s of CPU each\n", n, secs(time.Since(start)), ms((b.used(in)-before)/time.Duration(n)))
	time.Sleep(b.settle)
	return sub, nil
}

// jobsReal measures jobs with real agents on this machine, beside as many with simulated ones.
func (b *bench) jobsReal() error {
	n := b.sizes.local
	each := func(config, infra string) (share, kb float64, err error) {
		in, err := b.running(config)
		if err != nil {
			return 0, 0, err
		}
		defer in.close()
		ctx := context.Background()
		time.Sleep(b.settle / 4)
		share0, err := b.idleShare(in.pid)
		if err != nil {
			return 0, 0, err
		}
		kb0 := pss(in.pid)
		if _, err := b.fill(ctx, in, n, infra); err != nil {
			return 0, 0, err
		}
		stop := b.profile(in, "real-"+infra)
		if share, err = b.idleShare(in.pid); err != nil {
			return 0, 0, err
		}
		stop()
		share, kb = share-share0, float64(pss(in.pid)-kb0)/float64(n)
		_, err = in.client.CancelManagedJobs(ctx, &api.JobsCancelBody{Base: api.Base{RequestID: api.NewRequestID(), UserHash: "bench"}, AllUsers: true})
		if err == nil {
			_, err = until(ctx, in, func(c map[api.ManagedStatus]int) bool { return c[api.ManagedCancelled] == n })
		}
		return share, kb, err
	}
	simShare, simKB, err := each(memoryOnly, "memory")
	if err != nil {
		return err
	}
	share, kb, err := each("local: {enabled: true}\n", "local")
	if err != nil {
		return err
	}
	b.row(fmt.Sprintf("%d running jobs with real agents on `local` / with simulated ones: share of a core per 1,000 jobs; memory of the server per job", n), "the same within 20 %",
		fmt.Sprintf("%.2f %% / %.2f %%; %.0f kB / %.0f kB", share*1000/float64(n), simShare*1000/float64(n), kb, simKB))
	return nil
}
