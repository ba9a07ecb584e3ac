package e2essh

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skyloom/skyloom/tests/lab"
)

// TestAllReduce runs examples/allreduce.yaml over four hosts: processes that find each other by the environment of a gang
// and add up a vector over sockets. Every rank has to come to the same sum, which is known beforehand.
func TestAllReduce(t *testing.T) {
	needLong(t)
	l := lab.New(t, lab.Options{Hosts: 4, Host: lab.HostSpec{CPUs: 4, MemoryMB: 8 << 10}})
	if _, err := l.Host(0).Run(t.Context(), "command -v python3"); err != nil {
		t.Skip("hosts have no python3 here")
	}
	s := newSite(t, l, "")
	b, err := os.ReadFile("../../examples/allreduce.yaml")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := filepath.Abs("../../examples/allreduce")
	if err != nil {
		t.Fatal(err)
	}
	const line = "workdir: examples/allreduce\n"
	if !strings.Contains(string(b), line) {
		t.Fatalf("examples/allreduce.yaml has no line %q", line)
	}
	task := s.task("allreduce.yaml", strings.Replace(string(b), line, "workdir: "+dir+"\n", 1))
	p := s.sky("launch", "-y", "-c", "ring", "--infra", "ssh/lab", task)
	right := func(p *printed, nodes, elements int) {
		t.Helper()
		sum := 0
		for i := range elements {
			sum += nodes * (nodes + 1) / 2 * (i % 1000)
		}
		for rank := range nodes {
			p.has(fmt.Sprintf("rank %d of %d: the sum of %d elements is right, %d in all", rank, nodes, elements, sum))
		}
	}
	right(p, 4, 1_000_000)
	t.Logf("launch: %v", p.took)
	// Again on what is there, with parts of unlike sizes; and on fewer nodes.
	right(s.sky("exec", "ring", "--env", "ELEMENTS=10007", task), 4, 10_007)
	right(s.sky("exec", "ring", "--env", "ELEMENTS=3", "--num-nodes", "3", task), 3, 3)
	// A rank that fails in the middle ends the others, which wait for it.
	s.fails("exec", "ring", "--env", "MASTER_PORT=29501", "--num-nodes", "4", `[ $SKYPILOT_NODE_RANK = 2 ] && exit 7; export MASTER_ADDR=$(echo "$SKYPILOT_NODE_IPS" | head -n1); cd ~/sky_workdir; exec python3 allreduce.py`).hasNot("is right")
	s.sky("queue", "ring").has("FAILED").hasNot("RUNNING")
	s.sky("down", "-y", "ring")
	s.empty("after down")
}
