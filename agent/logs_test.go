package agent_test

import (
	"crypto/sha256"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
)

func TestLogs(t *testing.T) {
	n := cluster(t, 1, quick)[0]
	j := n.submit(agentapi.JobSpec{Setup: "echo s1; echo s2; echo s3", Run: "echo r1; echo r2; printf 'no newline'"})
	n.reaches(j.ID, api.JobSucceeded)
	for _, c := range []struct {
		name       string
		q          agentapi.LogQuery
		setup, run string
	}{
		{"all", agentapi.LogQuery{}, "s1\ns2\ns3\n", "r1\nr2\nno newline"},
		{"followed to the end", agentapi.LogQuery{Follow: true}, "s1\ns2\ns3\n", "r1\nr2\nno newline"},
		{"offsets", agentapi.LogQuery{Offsets: map[string]int64{"setup": 6, "run": 4}}, "s3\n", "2\nno newline"},
		{"offset at the end", agentapi.LogQuery{Follow: true, Offsets: map[string]int64{"setup": 9, "run": 16}}, "", ""},
		{"tail within run", agentapi.LogQuery{Tail: 2}, "", "r2\nno newline"},
		{"tail into setup", agentapi.LogQuery{Tail: 4}, "s3\n", "r1\nr2\nno newline"},
		{"tail beyond", agentapi.LogQuery{Tail: 400}, "s1\ns2\ns3\n", "r1\nr2\nno newline"},
	} {
		setup, run, end := n.output(j.ID, c.q)
		if setup != c.setup || run != c.run || !end.End || end.Status != api.JobSucceeded || end.JobID != j.ID {
			t.Errorf("%s: %q %q %+v", c.name, setup, run, end)
		}
	}
	if _, err := n.api.Logs(ctx(t), 99, agentapi.LogQuery{}); !agentapi.IsKind(err, agentapi.KindNotFound) {
		t.Errorf("unknown job: %v", err)
	}
	if _, err := n.api.Logs(ctx(t), j.ID, agentapi.LogQuery{Offsets: map[string]int64{"run": -1}}); err != nil && !agentapi.IsKind(err, agentapi.KindInvalid) {
		t.Errorf("negative offset: %v", err)
	}
}

// TestLogBytes follows a stream of long lines and bytes that are no text, over a restart of the agent.
func TestLogBytes(t *testing.T) {
	n := cluster(t, 1, quick)[0]
	j := n.run(`for i in 1 2 3 4; do head -c 1000003 /dev/zero | tr '\0' "\\37$i"; sleep 0.1; done; printf '\0\377\n'; echo end`)
	want := sha256.New()
	total := int64(4*1000003 + 3 + 4)
	for i := range 4 {
		want.Write([]byte(strings.Repeat(string([]byte{0o371 + byte(i)}), 1000003)))
	}
	want.Write([]byte("\x00\xff\nend\n"))
	got := sha256.New()
	off := int64(0)
	for round := 0; ; round++ {
		body, err := n.api.Logs(ctx(t), j.ID, agentapi.LogQuery{Follow: true, Offsets: map[string]int64{"run": off}})
		if err != nil {
			t.Fatal(err)
		}
		r := agentapi.NewLogReader(body)
		ended := false
		for {
			f, data, err := r.Next()
			if err != nil {
				ended = err == io.EOF
				break
			}
			if f.Phase == "run" && f.Offset != off {
				t.Fatalf("offset %d, expected %d", f.Offset, off)
			}
			k, err := io.Copy(got, data)
			off += k
			if err != nil {
				break
			}
			if round == 0 && off > 1<<20 {
				break
			}
		}
		body.Close()
		if ended {
			break
		}
		if round == 0 {
			n.kill9()
		}
	}
	if off != total || fmt.Sprintf("%x", got.Sum(nil)) != fmt.Sprintf("%x", want.Sum(nil)) {
		t.Errorf("%d of %d bytes, or others", off, total)
	}
}
