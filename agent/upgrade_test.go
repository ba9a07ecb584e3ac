package agent_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
)

func sum(b []byte) string { s := sha256.Sum256(b); return hex.EncodeToString(s[:]) }

func TestUpgrade(t *testing.T) {
	t.Parallel()
	n := cluster(t, 1, quick)[0]
	old, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	if n.info().BinarySHA != sum(old) {
		t.Error("the agent does not know its own binary")
	}
	j := n.run("echo x >> ~/ran; while [ ! -e ~/go-1 ]; do sleep 0.02; done; exit 3")
	n.eventually("it runs", func() bool { return n.file("ran") != "" })
	if err := n.api.Upgrade(ctx(t), sum(old), bytes.NewReader(old)); err != nil {
		t.Errorf("the same binary: %v", err)
	}
	broken := append([]byte("#!/bin/sh\nexit 1\n"), old[:100]...)
	if err := n.api.Upgrade(ctx(t), sum(broken), bytes.NewReader(broken)); !agentapi.IsKind(err, agentapi.KindInvalid) {
		t.Errorf("a binary that does not run: %v", err)
	}
	other := append(bytes.Clone(old), "another build"...)
	if err := n.api.Upgrade(ctx(t), sum(old[1:]), bytes.NewReader(other)); !agentapi.IsKind(err, agentapi.KindInvalid) {
		t.Errorf("a wrong hash: %v", err)
	}
	before := n.info().PID
	if err := n.api.Upgrade(ctx(t), sum(other), bytes.NewReader(other)); err != nil {
		t.Fatal(err)
	}
	n.eventually("the other binary runs", func() bool {
		i, err := n.api.Info(ctx(t))
		return err == nil && i.PID != before && i.BinarySHA == sum(other)
	})
	if row := n.job(j.ID); row.Status != api.JobRunning {
		t.Errorf("row: %+v", row)
	}
	release(n, 1)
	if row := n.reaches(j.ID, api.JobFailed); row.ExitCodes[0] != 3 || n.file("ran") != "x\n" {
		t.Errorf("row: %+v", row)
	}
	// A binary in place that dies at once is given up for the one before.
	if err := os.WriteFile(filepath.Join(n.cfg.Dir, "bin", "bad"), []byte("#!/bin/sh\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(n.cfg.Dir, "bin", "bad"), filepath.Join(n.cfg.Dir, "bin", "sky-agent")); err != nil {
		t.Fatal(err)
	}
	n.kill9()
	n.reaches(n.run("true").ID, api.JobSucceeded)
}
