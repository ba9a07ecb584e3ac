package main

import (
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
	const rounds, bytes = 3, 100_000_000
	for _, nodes := range []int{1, 4} {
		var all syncTimes
		var big []time.Duration
		for round := range rounds {
			tree := filepath.Join(in.home, fmt.Sprintf("tree-%d-%d", nodes, round))
			if err := makeTree(tree, files, bytes); err != nil {
				return err
			}
			one := tree + "-one"
			if err := makeTree(one, 1, bytes); err != nil {
				return err
			}
			name := fmt.Sprintf("files%d-%d", nodes, round)
			if _, _, err := b.sky(in, "launch", "-y", "-d", "-c", name, "--num-nodes", strconv.Itoa(nodes)); err != nil {
				return err
			}
			if err := b.syncRound(in, name, tree, nodes, &all); err != nil {
				return err
			}
			_, took, err := b.sky(in, "exec", "-d", name, "--workdir", one, "true")
			if err != nil {
				return err
			}
			big = append(big, took)
		}
		first := median(all.rsync)
		b.row(fmt.Sprintf("sync of %d files, 100 MB, to %d node(s): first / unchanged / one changed; × the first `rsync -a` (%s)", files, nodes, secs(first)), "1 / 0.3 / 0.3",
			fmt.Sprintf("%s / %s / %s; %s / %s / %s", secs(median(all.first)), secs(median(all.same)), secs(median(all.changed)),
				ratio(median(all.first), first), ratio(median(all.same), first), ratio(median(all.changed), first)))
		b.row(fmt.Sprintf("the same bytes as one file, to %d node(s)", nodes), "", secs(median(big)))
	}
	return nil
}

type syncTimes struct{ rsync, first, same, changed []time.Duration }

func (b *bench) syncRound(in *instance, cluster, tree string, nodes int, all *syncTimes) error {
	start := time.Now()
	var wg sync.WaitGroup
	errs := make([]error, nodes)
	for i := range nodes {
		wg.Add(1)
		go func() {
			defer wg.Done()
			out, err := exec.Command("rsync", "-a", tree+"/", fmt.Sprintf("%s-r%d/", tree, i)).CombinedOutput()
			if err != nil {
				errs[i] = fmt.Errorf("rsync: %w\n%s", err, out)
			}
		}()
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	all.rsync = append(all.rsync, time.Since(start))
	for _, into := range []*[]time.Duration{&all.first, &all.same, &all.changed} {
		if into == &all.changed {
			if err := os.WriteFile(filepath.Join(tree, "d0000", "f000000"), []byte("changed"), 0o644); err != nil {
				return err
			}
		}
		_, took, err := b.sky(in, "exec", "-d", cluster, "--workdir", tree, "true")
		if err != nil {
			return err
		}
		*into = append(*into, took)
	}
	return nil
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
