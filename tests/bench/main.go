// Command bench prints the performance table with the figures reached on this machine. Run it by `make bench`, which builds the
// programs first. It measures CPU time and memory of our own processes from /proc, and so runs on Linux only. Nothing fails on a time.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/skyloom/skyloom/api"
)

func main() {
	bin := flag.String("bin", "bin", "folder with sky, sky-server and sky-agent")
	clusters := flag.Int("clusters", 1000, "idle clusters for the listing and the idle server")
	ops := flag.Int("ops", 200, "execs and launches to average over")
	idle := flag.Duration("idle", 20*time.Second, "how long an idle process is looked at")
	files := flag.Int("files", 0, "measure only the sync of a tree of so many files")
	only := flag.String("only", "", "measure only this step: version, local, files, lab, ssh, many, jobs or arrays")
	var z sizes
	flag.StringVar(&z.parts, "parts", "", "measure only these parts of jobs: life, burst, slow, steady, real; comma-separated")
	flag.IntVar(&z.steady, "jobs-steady", 10_000, "managed jobs that run")
	flag.IntVar(&z.lives, "jobs-lives", 500, "managed jobs whose life is measured")
	flag.IntVar(&z.burst, "jobs-burst", 1000, "managed jobs submitted and cancelled at once")
	flag.IntVar(&z.slow, "jobs-slow", 1000, "managed jobs on a slow cloud")
	flag.IntVar(&z.local, "jobs-real", 500, "managed jobs with real agents, of about 40 MB each")
	flag.IntVar(&z.elements, "elements", 10_000, "elements of the array")
	settle := flag.Duration("settle", time.Minute, "how long what was begun is left alone before an idle server is looked at")
	flag.DurationVar(&z.idle, "jobs-idle", 5*time.Minute, "how long running jobs are looked at; the reaper comes round every 5 minutes")
	flag.StringVar(&z.config, "config", "", "added to the configuration of the servers of jobs, such as: temporal: {address: 127.0.0.1:17233}")
	flag.StringVar(&z.with, "with", "", "processes whose CPU counts as the server's in jobs, with their children: PID,PID")
	profiles := flag.String("profile", "", "folder for CPU and memory profiles of the server, of the steps that take them")
	flag.Parse()
	if runtime.GOOS != "linux" {
		fmt.Fprintln(os.Stderr, "bench: reads /proc, and so needs Linux")
		os.Exit(1)
	}
	dir, err := filepath.Abs(*bin)
	if err == nil {
		b := &bench{bin: dir, clusters: *clusters, ops: *ops, idle: *idle, files: *files, only: *only, sizes: z, settle: *settle, profiles: *profiles, debug: *profiles != ""}
		err = b.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type bench struct {
	bin           string
	clusters, ops int
	files         int
	only          string
	idle, settle  time.Duration
	sizes         sizes
	profiles      string
	debug         bool
	rows          [][3]string
}

func (b *bench) row(what, most, got string) {
	b.rows = append(b.rows, [3]string{what, most, got})
	fmt.Printf("| %s | %s | %s |\n", what, most, got)
}

func (b *bench) run() error {
	load, _ := os.ReadFile("/proc/loadavg")
	fmt.Printf("%d cores; load before: %s\n", runtime.NumCPU(), strings.TrimSpace(string(load)))
	fmt.Println("| what | at most | reached |\n|---|---|---|")
	if b.files > 0 && b.only == "" {
		b.only = "files"
	}
	for _, step := range []struct {
		name string
		do   func() error
	}{{"version", b.version}, {"local", b.local}, {"files", b.fileSyncs}, {"lab", b.labSyncs}, {"ssh", b.ssh}, {"many", b.many}, {"jobs", b.jobs}, {"arrays", b.arrays}} {
		if b.only != "" && b.only != step.name {
			continue
		}
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

func (b *bench) version() error {
	cpu, _, err := b.average(20, nil, "--version")
	if err != nil {
		return err
	}
	b.row("`sky --version`, CPU; `sky` on disk", "20 ms; 16 MB", fmt.Sprintf("%s; %s", ms(cpu), size(filepath.Join(b.bin, "sky"))))
	return nil
}

// local measures what runs on this machine.
func (b *bench) local() error {
	in, err := b.instance("local: {enabled: true}\n")
	if err != nil {
		return err
	}
	defer in.close()
	// Nothing runs yet: the first launch starts the server.
	_, cold, err := b.sky(in, "launch", "-y", "-c", "cold", "true")
	if err != nil {
		return err
	}
	if err := in.connect(); err != nil {
		return err
	}
	var warm []time.Duration
	for i := range 5 {
		_, d, err := b.sky(in, "launch", "-y", "-c", fmt.Sprintf("warm%d", i), "true")
		if err != nil {
			return err
		}
		warm = append(warm, d)
	}
	b.row("`sky launch` of `true` on a new one-node local cluster, server running / nothing running", "2 s / 5 s", fmt.Sprintf("%s / %s", secs(median(warm)), secs(cold)))
	var execs []time.Duration
	for range 10 {
		_, d, err := b.sky(in, "exec", "cold", "true")
		if err != nil {
			return err
		}
		execs = append(execs, d)
	}
	b.row("`sky exec` of `true` on an UP local cluster, to exit", "0.5 s", secs(median(execs)))

	agent, err := agentOf(in.home+"/local", "cold")
	if err != nil {
		return err
	}
	share, err := b.idleShare(agent...)
	if err != nil {
		return err
	}
	b.row("`sky-agent` (both its processes): resident; on disk; idle share of a core", "20 MB; 16 MB; 0.5 %", fmt.Sprintf("%s; %s; %.2f %%", memory(agent...), size(filepath.Join(b.bin, "sky-agent")), share))

	before := cpuOf(in.pid)
	lost, err := b.execStorm(in, "cold")
	if err != nil {
		return err
	}
	perExec := (cpuOf(in.pid) - before) / time.Duration(b.ops)
	b.row(fmt.Sprintf("%d `exec --async` to one cluster from 8 clients at once", b.ops), "none lost, doubled or refused", lost)
	before = cpuOf(in.pid)
	if err := b.launches(in, "l", b.ops, "local"); err != nil {
		return err
	}
	perLaunch := (cpuOf(in.pid) - before) / time.Duration(b.ops)
	b.row(fmt.Sprintf("CPU of `sky-server` per `exec` / per launch, over %d of them", b.ops), "100 ms / 250 ms", fmt.Sprintf("%s / %s", ms(perExec), ms(perLaunch)))
	_, _, err = b.sky(in, "down", "-a", "-y")
	return err
}

// execStorm submits jobs from eight clients at once, and says what became of them.
func (b *bench) execStorm(in *instance, cluster string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	start, err := in.client.Jobs(ctx, api.JobFilter{Clusters: []string{cluster}})
	if err != nil {
		return "", err
	}
	had := len(start.Clusters[cluster])
	var wg sync.WaitGroup
	errs := make(chan error, b.ops)
	for c := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := c; i < b.ops; i += 8 {
				body := api.ExecBody{Base: api.Base{RequestID: api.NewRequestID()}, Task: "run: 'true'", Cluster: cluster}
				if _, err := in.client.Exec(ctx, &body); err != nil {
					errs <- err
					continue
				}
				r, err := in.client.WaitRequest(ctx, body.RequestID)
				if err != nil {
					errs <- err
				} else if r.Status != api.RequestSucceeded {
					errs <- fmt.Errorf("request %s: %s", r.ID, r.Status)
				}
			}
		}()
	}
	wg.Wait()
	close(errs)
	refused := len(errs)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
		lists, err := in.client.Jobs(ctx, api.JobFilter{Clusters: []string{cluster}})
		if err != nil {
			return "", err
		}
		keys, open := map[string]int{}, 0
		for _, j := range lists.Clusters[cluster] {
			keys[j.Key]++
			if !j.Status.Terminal() {
				open++
			}
		}
		if open == 0 || time.Now().After(deadline) {
			n := len(lists.Clusters[cluster]) - had
			return fmt.Sprintf("%d jobs, %d keys, %d refused, %d open", n, len(keys)-had, refused, open), nil
		}
	}
}

// launches makes clusters, a few at a time.
func (b *bench) launches(in *instance, prefix string, n int, infra string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	errs := make(chan error, n)
	for c := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := c; i < n; i += 8 {
				body := api.LaunchBody{Base: api.Base{RequestID: api.NewRequestID(), UserHash: "bench", User: "bench"}, Task: "resources: {infra: " + infra + "}\nrun: 'true'", Cluster: fmt.Sprintf("%s%d", prefix, i)}
				if _, err := in.client.Launch(ctx, &body); err != nil {
					errs <- err
					return
				}
				r, err := in.client.WaitRequest(ctx, body.RequestID)
				if err == nil && r.Status != api.RequestSucceeded {
					err = fmt.Errorf("launch %s: %s: %v", body.Cluster, r.Status, r.Error)
				}
				if err != nil {
					errs <- err
					return
				}
			}
		}()
	}
	wg.Wait()
	close(errs)
	return <-errs
}

// many measures the server with nothing known, and with many idle clusters of the simulated cloud.
func (b *bench) many() error {
	in, err := b.instance("local: {enabled: false}\nmemory_provider: {enabled: true}\n")
	if err != nil {
		return err
	}
	defer in.close()
	if _, _, err := b.sky(in, "api", "start"); err != nil {
		return err
	}
	if err := in.connect(); err != nil {
		return err
	}
	time.Sleep(5 * time.Second)
	share, err := b.idleShare(in.pid)
	if err != nil {
		return err
	}
	nothing := fmt.Sprintf("%s, %.2f %%", memory(in.pid), share)
	if err := b.launches(in, "m", b.clusters, "memory"); err != nil {
		return err
	}
	time.Sleep(b.settle) // what the launches have left to do in the background is done
	if share, err = b.idleShare(in.pid); err != nil {
		return err
	}
	b.row(fmt.Sprintf("`sky-server` with nothing known / %d idle clusters", b.clusters), "250 MB, 1.5 % of a core / 350 MB, 4 %", fmt.Sprintf("%s / %s, %.2f %%", nothing, memory(in.pid), share))
	cpu, wall, err := b.average(10, in, "status", "-u")
	if err != nil {
		return err
	}
	b.row(fmt.Sprintf("`sky status`, %d clusters known: wall; CPU in `sky`", b.clusters), "60 ms; 30 ms", fmt.Sprintf("%s; %s", ms(wall), ms(cpu)))
	return nil
}
