package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/skyloom/skyloom/api"
)

// instance is a server of its own, with a home of its own.
type instance struct {
	home   string
	ended  chan struct{} // closed when a server that is our child has ended; nil: the first command starts it
	bin    string
	pid    int
	client *api.Client

	start func(name string, args ...string) *exec.Cmd // nil: on this machine
	env   []string                                    // of all its programs, after what they have anyhow
	http  *http.Client                                // nil: the usual one
}

// command is a program of the instance's, with its environment.
func (in *instance) command(name string, args ...string) *exec.Cmd {
	start := in.start
	if start == nil {
		start = exec.Command
	}
	cmd := start(name, args...)
	cmd.Env = append(append(os.Environ(), "SKY_HOME="+in.home), in.env...)
	return cmd
}

func (b *bench) instance(config string) (*instance, error) {
	home, err := os.MkdirTemp("", "skyloom-bench-")
	if err != nil {
		return nil, err
	}
	return &instance{home: home, bin: b.bin, env: []string{"SKYLOOM_NO_SSH_CONFIG=1"}}, os.WriteFile(filepath.Join(home, "config.yaml"), []byte(config), 0o600)
}

// serve starts the server as a child, and waits until it answers; debug lets it be profiled.
func (in *instance) serve(debug bool) error {
	log, err := os.Create(filepath.Join(in.home, "server.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	server := in.command(filepath.Join(in.bin, "sky-server"))
	if debug {
		server.Args = append(server.Args, "--debug")
	}
	server.Stdout, server.Stderr = log, log
	if err := server.Start(); err != nil {
		return err
	}
	in.ended = make(chan struct{})
	go func() {
		defer close(in.ended)
		_ = server.Wait() // it is told to stop, and its log says what else happened
	}()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if err = in.connect(); err == nil {
			if _, err = in.client.Health(context.Background()); err == nil {
				return nil
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the server does not answer: %w", err)
		}
	}
}

// connect reads where the running server answers.
func (in *instance) connect() error {
	raw, err := os.ReadFile(filepath.Join(in.home, "server.json"))
	if err != nil {
		return err
	}
	var at struct {
		URL string `json:"url"`
		PID int    `json:"pid"`
	}
	if err := json.Unmarshal(raw, &at); err != nil {
		return err
	}
	token, err := os.ReadFile(filepath.Join(in.home, "token"))
	if err != nil {
		return err
	}
	var options []api.Option
	if in.http != nil {
		options = append(options, api.WithHTTPClient(in.http))
	}
	in.pid, in.client = at.PID, api.NewClient(at.URL, strings.TrimSpace(string(token)), options...)
	return nil
}

func (in *instance) close() {
	for _, args := range [][]string{{"down", "-a", "-u", "-y"}, {"api", "stop"}} {
		if out, err := in.command(filepath.Join(in.bin, "sky"), args...).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "clean-up: sky %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	if in.ended != nil {
		<-in.ended
	}
	if err := os.RemoveAll(in.home); err != nil {
		fmt.Fprintln(os.Stderr, "clean-up:", err)
	}
}

// sky runs the program and gives its CPU time and how long it took.
func (b *bench) sky(in *instance, args ...string) (cpu, wall time.Duration, err error) {
	cmd := exec.Command(filepath.Join(b.bin, "sky"), args...)
	if in != nil {
		cmd = in.command(cmd.Path, args...)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	start := time.Now()
	err = cmd.Run()
	wall = time.Since(start)
	if err != nil {
		return 0, wall, fmt.Errorf("sky %s: %w\n%s", strings.Join(args, " "), err, out.String())
	}
	return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), wall, nil
}

func (b *bench) average(n int, in *instance, args ...string) (cpu, wall time.Duration, err error) {
	var cpus, walls []time.Duration
	for range n {
		c, w, err := b.sky(in, args...)
		if err != nil {
			return 0, 0, err
		}
		cpus, walls = append(cpus, c), append(walls, w)
	}
	return mean(cpus), median(walls), nil
}

// cpuOf is the CPU time a process has used, from /proc (hundredths of a second).
func cpuOf(pid int) time.Duration {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+2:]))
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// children are the processes that a process has started and that run.
func children(pid int) (out []int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		raw, err := os.ReadFile(path)
		if err != nil {
			continue // it has just ended
		}
		f := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+2:]))
		if len(f) > 1 && f[1] == strconv.Itoa(pid) {
			if n, err := strconv.Atoi(strings.Split(path, "/")[2]); err == nil {
				out = append(out, n)
			}
		}
	}
	return out
}

// idleShare is what processes that nobody asks for anything use, in per cent of a core.
func (b *bench) idleShare(pids ...int) (float64, error) {
	sum := func() (d time.Duration) {
		for _, p := range pids {
			d += cpuOf(p)
		}
		return d
	}
	before := sum()
	time.Sleep(b.idle)
	return float64(sum()-before) / float64(b.idle) * 100, nil
}

// memory is the resident memory of processes that belong together: pages that they share, such as their program's, count once
// (the proportional set size of /proc/PID/smaps_rollup).
func memory(pids ...int) string { return fmt.Sprintf("%d MB", (pss(pids...)+512)/1024) }

// pss is that size in KiB.
func pss(pids ...int) (kb int) {
	for _, pid := range pids {
		raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		for _, line := range strings.Split(string(raw), "\n") {
			if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
				n, _ := strconv.Atoi(strings.Fields(rest)[0])
				kb += n
			}
		}
	}
	return kb
}

// profile writes a CPU profile of the server for up to half a minute from now, and one of its memory when stop is called. It does
// nothing without -profile.
func (b *bench) profile(in *instance, name string) (stop func()) {
	if b.profiles == "" {
		return func() {}
	}
	get := func(kind, query string) {
		token, err := os.ReadFile(filepath.Join(in.home, "token"))
		if err == nil {
			req, _ := http.NewRequest("GET", in.client.Endpoint()+"/debug/pprof/"+kind+"?"+query, nil)
			req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
			var resp *http.Response
			if resp, err = http.DefaultClient.Do(req); err == nil {
				defer resp.Body.Close()
				var raw []byte
				if raw, err = io.ReadAll(resp.Body); err == nil {
					err = os.WriteFile(filepath.Join(b.profiles, name+"."+kind), raw, 0o644)
				}
			}
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "bench: profile:", err)
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		get("profile", "seconds=30")
	}()
	return func() {
		<-done
		get("heap", "gc=1")
		get("goroutine", "")
	}
}

// agentOf finds the processes of the agents of the nodes in a folder whose names begin with that of their cluster: those
// that supervise, and those that serve.
func agentOf(nodes, cluster string) ([]int, error) {
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, path := range procs {
		raw, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(raw, []byte("sky-agent")) || !bytes.Contains(raw, []byte(nodes+"/"+cluster+"-")) {
			continue
		}
		if pid, err := strconv.Atoi(strings.Split(path, "/")[2]); err == nil {
			pids = append(pids, pid)
		}
	}
	if len(pids) == 0 {
		return nil, fmt.Errorf("no agent of cluster %s found", cluster)
	}
	return pids, nil
}

func size(path string) string {
	fi, err := os.Stat(path)
	if err != nil {
		return "?"
	}
	return fmt.Sprintf("%.1f MB", float64(fi.Size())/1e6)
}

func median(d []time.Duration) time.Duration {
	sort.Slice(d, func(i, j int) bool { return d[i] < d[j] })
	return d[len(d)/2]
}

func mean(d []time.Duration) (m time.Duration) {
	for _, v := range d {
		m += v
	}
	return m / time.Duration(len(d))
}

func ms(d time.Duration) string   { return fmt.Sprintf("%.0f ms", float64(d)/1e6) }
func secs(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }
