package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/skyloom/skyloom/tests/lab"
)

// bigPool is how many hosts the lab has: eight for a gang, twenty for as many clusters at once, and fresh ones.
const bigPool, freshHosts = 20, 5

// ssh measures nodes on hosts of a lab, on this same machine, whose load is that of the server, the clients and all hosts.
func (b *bench) ssh() error {
	if err := lab.Available(); err != nil {
		b.row("nodes on hosts that are reached by SSH", "", "skipped: "+err.Error())
		return nil
	}
	l, err := lab.Start(context.Background(), lab.Options{Hosts: bigPool + freshHosts, Host: lab.HostSpec{CPUs: 8, MemoryMB: 16 << 10}})
	if err != nil {
		return err
	}
	defer l.Close()
	in, err := b.instance("local: {enabled: true}\n")
	if err != nil {
		return err
	}
	// The entries of ssh are written below a home of its own.
	in.start, in.env = l.Command, []string{"HOME=" + in.home, "SKYLOOM_NO_SSH_CONFIG=", "SSH_AUTH_SOCK="}
	in.http = &http.Client{Transport: &http.Transport{DialContext: l.Dialer()}}
	if err := os.WriteFile(filepath.Join(in.home, "ssh_node_pools.yaml"), []byte(pools(l)), 0o600); err != nil {
		return err
	}
	defer in.close()
	if err := in.serve(b.debug); err != nil {
		return err
	}
	for _, part := range []func(*instance, *lab.Lab) error{b.sshLaunch, b.sshGang, b.sshTunnel, b.sshMany} {
		if err := part(in, l); err != nil {
			return err
		}
	}
	return nil
}

// pools has one pool of many hosts, and some of a single one.
func pools(l *lab.Lab) string {
	var s strings.Builder
	for i, h := range l.Hosts() {
		switch {
		case i == 0:
			fmt.Fprintf(&s, "big:\n  user: %s\n  identity_file: %s\n  hosts:\n", h.User, l.KeyFile)
		case i >= bigPool:
			fmt.Fprintf(&s, "fresh%d:\n  user: %s\n  identity_file: %s\n  hosts:\n", i-bigPool, h.User, l.KeyFile)
		}
		fmt.Fprintf(&s, "    - %s\n", h.Addr)
	}
	return s.String()
}

// sshLaunch compares the launch on hosts that have nothing of ours with that on `local`, in turn.
func (b *bench) sshLaunch(in *instance, l *lab.Lab) error {
	if _, _, err := b.sky(in, "launch", "-y", "-c", "warm", "--infra", "local", "true"); err != nil {
		return err
	}
	var local, fresh, again, execs []time.Duration
	for i := range freshHosts {
		for _, m := range []struct {
			into *[]time.Duration
			args []string
		}{
			{&local, []string{"launch", "-y", "-c", fmt.Sprint("l", i), "--infra", "local", "true"}},
			{&fresh, []string{"launch", "-y", "-c", fmt.Sprint("f", i), "--infra", fmt.Sprint("ssh/fresh", i), "true"}},
			{&again, []string{"launch", "-y", "-c", fmt.Sprint("g", i), "--infra", fmt.Sprint("ssh/fresh", i), "true"}},
			{&execs, []string{"exec", fmt.Sprint("f", i), "true"}},
			{&execs, []string{"exec", fmt.Sprint("f", i), "true"}},
		} {
			_, took, err := b.sky(in, m.args...)
			if err != nil {
				return err
			}
			*m.into = append(*m.into, took)
		}
	}
	b.row("`sky launch` of `true` on a host with nothing of ours on it, beside `local` in the same run", "1 s more", fmt.Sprintf("%s, %s on `local`: %s more",
		secs(median(fresh)), secs(median(local)), secs(median(fresh)-median(local))))
	b.row("the same on a host that had a node before", "", secs(median(again)))
	b.row("`sky exec` of `true` on an UP cluster on SSH", "0.6 s", secs(median(execs)))
	pids, err := agentOf("/nodes", "f0")
	if err != nil {
		return err
	}
	share, err := b.idleShare(pids...)
	if err != nil {
		return err
	}
	b.row("the agent of an idle node on a host (all its processes): resident; share of a core", "20 MB; 0.5 %", fmt.Sprintf("%s; %.2f %%", memory(pids...), share))
	return nil
}

func (b *bench) sshGang(in *instance, l *lab.Lab) error {
	var times []time.Duration
	for i := range 3 {
		_, took, err := b.sky(in, "launch", "-y", "-c", fmt.Sprint("gang", i), "--infra", "ssh/big", "--num-nodes", "8", "true")
		if err != nil {
			return err
		}
		times = append(times, took)
		if _, _, err := b.sky(in, "down", "-y", fmt.Sprint("gang", i)); err != nil {
			return err
		}
	}
	b.row("launch of `true` on 8 nodes, on hosts with nothing on them / again", "6 s", fmt.Sprintf("%s / %s", secs(times[0]), secs(median(times[1:]))))
	return nil
}

// sshTunnel compares `ssh CLUSTER`, through the API, with an ssh to the same host.
func (b *bench) sshTunnel(in *instance, l *lab.Lab) error {
	if _, err := exec.LookPath("ssh"); err != nil {
		b.row("throughput of `ssh CLUSTER`", "", "skipped: there is no ssh")
		return nil
	}
	const size = 256 << 20
	plain := filepath.Join(in.home, "plain-ssh")
	if err := os.WriteFile(plain, []byte(l.SSHConfig()), 0o600); err != nil {
		return err
	}
	host := l.Host(bigPool).Name
	rate := func(args ...string) (float64, error) {
		var errs bytes.Buffer
		cmd := in.command("ssh", append(args, fmt.Sprintf("head -c %d /dev/zero", size))...)
		n := &counter{}
		cmd.Stdout, cmd.Stderr = n, &errs
		began := time.Now()
		err := cmd.Run()
		if err == nil && n.n != size {
			err = fmt.Errorf("%d bytes came", n.n)
		}
		if err != nil {
			return 0, fmt.Errorf("ssh %s: %w\n%s", strings.Join(args, " "), err, errs.String())
		}
		return size / time.Since(began).Seconds() / 1e6, nil
	}
	var direct, tunnel float64
	for range 3 { // in turn, the best of three
		d, err := rate("-F", plain, host)
		if err != nil {
			return err
		}
		t, err := rate("-F", filepath.Join(in.home, ".ssh", "config"), "f0")
		if err != nil {
			return err
		}
		direct, tunnel = max(direct, d), max(tunnel, t)
	}
	b.row("throughput of `ssh CLUSTER` through the API, beside an ssh to the host in the same run", "a third", fmt.Sprintf("%.0f MB/s, %.0f MB/s: %.2f of it", tunnel, direct, tunnel/direct))
	return nil
}

type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

// sshMany launches as many clusters at once as there are hosts in the pool. What it costs is counted in all processes: the
// clients, the server, and all that runs on the hosts, sshd among it.
func (b *bench) sshMany(in *instance, l *lab.Lab) error {
	before, err := b.allCPU(in, l)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var clients time.Duration
	var failed []error
	began := time.Now()
	for i := range bigPool {
		wg.Add(1)
		go func() {
			defer wg.Done()
			cpu, _, err := b.sky(in, "launch", "-y", "-c", fmt.Sprint("m", i), "--infra", "ssh/big", "true")
			mu.Lock()
			defer mu.Unlock()
			clients += cpu
			if err != nil {
				failed = append(failed, err)
			}
		}()
	}
	wg.Wait()
	took := time.Since(began)
	if len(failed) > 0 {
		fmt.Fprintln(os.Stderr, failed[0])
	}
	after, err := b.allCPU(in, l)
	if err != nil {
		return err
	}
	server, hosts := after.server-before.server, after.hosts-before.hosts
	b.row(fmt.Sprintf("%d launches of `true` at once on %d hosts: UP; wall; CPU of each in all processes (server, hosts, clients)", bigPool, bigPool), "all; 1 s of CPU",
		fmt.Sprintf("%d; %s; %s (%s, %s, %s)", bigPool-len(failed), secs(took), secs((server+hosts+clients)/bigPool), secs(server/bigPool), secs(hosts/bigPool), secs(clients/bigPool)))
	return nil
}

type spent struct{ server, hosts time.Duration }

func (b *bench) allCPU(in *instance, l *lab.Lab) (s spent, err error) {
	s.server = cpuOf(in.pid)
	for _, h := range l.Hosts() {
		u, err := h.Usage()
		if err != nil {
			return s, err
		}
		s.hosts += u.CPU
	}
	return s, nil
}
