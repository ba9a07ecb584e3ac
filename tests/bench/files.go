package main

import (
	"bytes"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// fileSyncs measures how a tree of small files, and the same bytes in one file, come to one node and to four: the whole of
// `sky exec -d --workdir`, beside as many `rsync -a` to folders on the same disk. Each round has a tree of its own, new
// clusters, and nothing is deleted before the end, since a disk that has just deleted many files makes new ones slowly.
func (b *bench) fileSyncs() error {
	files := b.files
	if files <= 0 {
		files = 10_000
	}
	if _, err := exec.LookPath("rsync"); err != nil {
		b.row("sync of many files", "", "skipped: rsync is not installed")
		return nil
	}
	in, err := b.instance("local: {enabled: true}\n")
	if err != nil {
		return err
	}
	defer in.close()
	if _, _, err := b.sky(in, "api", "start"); err != nil {
		return err
	}
	const rounds, total = 3, 100_000_000
	for _, nodes := range []int{1, 4} {
		var big []time.Duration
		all := &syncs{in: in, nodes: nodes, cpu: func() time.Duration { return cpuOfAll(in.home) },
			rsync: func(tree string, node int) *exec.Cmd {
				return exec.Command("rsync", "-a", tree+"/", fmt.Sprintf("%s-r%d/", tree, node))
			}}
		for round := range rounds {
			tree := filepath.Join(in.home, fmt.Sprintf("tree-%d-%d", nodes, round))
			if err := makeTree(tree, files, total); err != nil {
				return err
			}
			one := tree + "-one"
			if err := makeTree(one, 1, total); err != nil {
				return err
			}
			cluster := fmt.Sprintf("files%d-%d", nodes, round)
			if _, _, err := b.sky(in, "launch", "-y", "-d", "-c", cluster, "--num-nodes", strconv.Itoa(nodes)); err != nil {
				return err
			}
			if err := b.syncRound(all, cluster, tree); err != nil {
				return err
			}
			_, took, err := b.sky(in, "exec", "-d", cluster, "--workdir", one, "true")
			if err != nil {
				return err
			}
			big = append(big, took)
		}
		b.row(fmt.Sprintf("sync of %d files, 100 MB, to %d node(s): first / unchanged / one changed; × the first `rsync -a` (%s)", files, nodes, secs(median(all.times[0]))), "1 / 0.3 / 0.3", all.String())
		b.row("CPU of all processes for that; × that of the `rsync -a`", "", all.cpuText())
		b.row(fmt.Sprintf("the same bytes as one file, to %d node(s)", nodes), "", secs(median(big)))
	}
	return nil
}

// syncs are the times of some rounds.
type syncs struct {
	in    *instance
	nodes int
	// rsync copies a tree to a node.
	rsync func(tree string, node int) *exec.Cmd
	// cpu is what server and nodes used so far.
	cpu func() time.Duration
	// Of rsync, the first sync, an unchanged one, and one of one changed file.
	times, cpus [4][]time.Duration
}

func (s *syncs) String() string { return threeOf(s.times) }

func (s *syncs) cpuText() string {
	return threeOf(s.cpus) + " (rsync: " + secs(median(s.cpus[0])) + ")"
}

func threeOf(d [4][]time.Duration) string {
	rsync, first, same, changed := median(d[0]), median(d[1]), median(d[2]), median(d[3])
	return fmt.Sprintf("%s / %s / %s; %s / %s / %s", secs(first), secs(same), secs(changed), ratio(first, rsync), ratio(same, rsync), ratio(changed, rsync))
}

func (b *bench) syncRound(s *syncs, cluster, tree string) error {
	start, before := time.Now(), s.cpu()
	var wg sync.WaitGroup
	errs, used := make([]error, s.nodes), make([]time.Duration, s.nodes)
	for i := range s.nodes {
		wg.Add(1)
		go func() {
			defer wg.Done()
			cmd := s.rsync(tree, i)
			out, err := cmd.CombinedOutput()
			if err != nil {
				errs[i] = fmt.Errorf("rsync: %w\n%s", err, out)
				return
			}
			used[i] = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
		}()
	}
	wg.Wait()
	s.times[0] = append(s.times[0], time.Since(start))
	cpu := s.cpu() - before
	for i := range s.nodes {
		if errs[i] != nil {
			return errs[i]
		}
		cpu += used[i]
	}
	s.cpus[0] = append(s.cpus[0], cpu)
	for k := 1; k < 4; k++ {
		if k == 3 {
			if err := os.WriteFile(filepath.Join(tree, "d0000", "f000000"), []byte("changed"), 0o644); err != nil {
				return err
			}
		}
		before := s.cpu()
		cpu, took, err := b.sky(s.in, "exec", "-d", cluster, "--workdir", tree, "true")
		if err != nil {
			return err
		}
		s.times[k], s.cpus[k] = append(s.times[k], took), append(s.cpus[k], cpu+s.cpu()-before)
	}
	return nil
}

// cpuOfAll is the CPU time of the processes that have a home in their command line or environment: server and agents.
func cpuOfAll(home string) (d time.Duration) {
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		for _, name := range []string{"cmdline", "environ"} {
			raw, _ := os.ReadFile(filepath.Join(p, name))
			if bytes.Contains(raw, []byte(home)) {
				if pid, err := strconv.Atoi(filepath.Base(p)); err == nil {
					d += cpuOf(pid)
				}
				break
			}
		}
	}
	return d
}

// makeTree makes a folder of n files of bytes in all, a hundred to a subfolder, with content that does not compress.
func makeTree(root string, n, bytes int) error {
	each := bytes / n
	buf := make([]byte, each)
	for i := range n {
		dir := filepath.Join(root, fmt.Sprintf("d%04d", i/100))
		if i%100 == 0 {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
		}
		for j := 0; j < each; j += 8 {
			v := rand.Uint64()
			for k := j; k < min(j+8, each); k++ {
				buf[k] = byte(v >> (8 * (k - j)))
			}
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%06d", i)), buf, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func ratio(d, of time.Duration) string { return fmt.Sprintf("%.2f", float64(d)/float64(of)) }
