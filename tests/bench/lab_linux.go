package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/skyloom/skyloom/tests/lab"
)

// labSyncs measures the sync of a tree of small files to hosts of a lab, beside as many `rsync -a` over ssh.
func (b *bench) labSyncs() error {
	files := b.files
	if files <= 0 {
		files = 10_000
	}
	what := "the same to 4 hosts of the lab: × four `rsync -a` over ssh"
	if err := lab.Available(); err != nil {
		b.row(what, "", "skipped: "+err.Error())
		return nil
	}
	if _, err := exec.LookPath("rsync"); err != nil {
		b.row(what, "", "skipped: rsync is not installed")
		return nil
	}
	const nodes, rounds, bytes = 4, 3, 100_000_000
	l, err := lab.Start(context.Background(), lab.Options{Hosts: nodes, Host: lab.HostSpec{CPUs: 4, MemoryMB: 8 << 10}})
	if err != nil {
		return err
	}
	defer l.Close()
	in, err := b.instance("local: {enabled: false}\n")
	if err != nil {
		return err
	}
	defer in.close()
	in.start, in.http = l.Command, &http.Client{Transport: &http.Transport{DialContext: l.Dialer()}}
	if err := os.WriteFile(filepath.Join(in.home, "ssh_node_pools.yaml"), []byte(l.PoolsYAML("lab")), 0o600); err != nil {
		return err
	}
	if err := in.serve(b.debug); err != nil {
		return err
	}
	sshConfig := filepath.Join(in.home, "ssh_config")
	if err := os.WriteFile(sshConfig, []byte(l.SSHConfig()), 0o600); err != nil {
		return err
	}
	s := &syncs{in: in, nodes: nodes,
		rsync: func(tree string, node int) *exec.Cmd {
			return l.Command("rsync", "-a", "-e", "ssh -F "+sshConfig, tree+"/", fmt.Sprintf("%s:%s/", l.Host(node).Name, filepath.Base(tree)))
		},
		cpu: func() (d time.Duration) {
			for _, h := range l.Hosts() {
				if u, err := h.Usage(); err == nil {
					d += u.CPU
				}
			}
			return d + cpuOf(in.pid)
		}}
	for round := range rounds {
		name := fmt.Sprint("lab", round)
		if _, _, err := b.sky(in, "launch", "-y", "-d", "-r", "-c", name, "--infra", "ssh/lab", "--num-nodes", fmt.Sprint(nodes), "--cpus", "1+", "--memory", "1+"); err != nil {
			return err
		}
		tree := filepath.Join(in.home, "tree-"+name)
		if err := makeTree(tree, files, bytes); err != nil {
			return err
		}
		if err := b.syncRound(s, name, tree); err != nil {
			return err
		}
		if _, _, err := b.sky(in, "down", "-y", name); err != nil {
			return err
		}
		for _, h := range l.Hosts() {
			if out, err := h.Run(context.Background(), "rm -rf "+h.Home+"/tree-*"); err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
		}
	}
	b.row(what, "1 / 0.3 / 0.3", s.String())
	b.row("CPU of all processes for that; × that of the `rsync -a`", "", s.cpuText())
	return nil
}
