package proctree_test

import (
	"os/exec"
	"testing"

	"github.com/skyloom/skyloom/agent/proctree"
)

// Who asks what runs below nothing must not be told of the whole machine.
func TestDescendantsOfNothing(t *testing.T) {
	if d := proctree.Descendants(proctree.Proc{}); len(d) > 0 {
		t.Fatalf("below no process there are %v", d)
	}
	cmd := exec.Command("/bin/sh", "-c", "sleep 300 & wait")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, ok := proctree.Find(cmd.Process.Pid)
	if !ok {
		t.Fatal("the shell is not there")
	}
	for len(proctree.Descendants(p)) == 0 {
		if !p.Alive() {
			t.Fatal("the shell has ended")
		}
	}
	below := proctree.Descendants(p)
	if other := (proctree.Proc{PID: p.PID, Start: p.Start + 1}); p.Start != 0 && len(proctree.Descendants(other)) > 0 {
		t.Error("another process of the same number has the first one's descendants")
	}
	cmd.Process.Kill()
	cmd.Wait()
	if d := proctree.Descendants(p); len(d) > 0 {
		t.Errorf("below one that has ended there are %v", d)
	}
	for _, q := range below {
		q.Signal(9)
	}
}
