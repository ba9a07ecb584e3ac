package agent_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
)

func elements(n int) (out []agentapi.BatchElement) {
	for i := range n {
		out = append(out, agentapi.BatchElement{Index: 10 + i, Envs: map[string]string{"E": fmt.Sprint(10 + i)}})
	}
	return out
}

func (n *testNode) batch(number int64) agentapi.BatchState {
	n.t.Helper()
	st, err := n.api.Batch(ctx(n.t), number)
	if err != nil {
		n.t.Fatal(err)
	}
	return st
}

func TestBatch(t *testing.T) {
	nodes := cluster(t, 2)
	n := nodes[0]
	events := make(chan agentapi.Event, 100)
	ectx, stop := context.WithCancel(context.Background())
	defer stop()
	go n.api.Events(ectx, 0, func(ev agentapi.Event) error { events <- ev; return nil })
	// The ranks of an element wait for each other, since the first that fails would end one that has not printed yet.
	spec := agentapi.JobSpec{Key: "array", Epoch: 1, Run: `echo "$E of $SKYPILOT_TASK_ID" | tee -a ~/count
touch $MET/$E-$SKYPILOT_NODE_RANK; until [ -e $MET/$E-0 ] && [ -e $MET/$E-1 ]; do sleep 0.02; done
test $E != 12`, TaskID: "task", NumNodes: 2, Envs: map[string]string{"MET": t.TempDir()}, Secrets: map[string]string{"S": "hush"}}
	in := agentapi.JobBatch{Number: 5, Spec: spec, Elements: elements(4)}
	for range 2 {
		st, err := n.api.SubmitBatch(ctx(t), in)
		if err != nil || st.First != 1 || st.Last != 4 || st.Slots != 4 {
			t.Fatalf("%+v, %v", st, err)
		}
	}
	n.eventually("the batch ends", func() bool { return n.batch(5).Open == 0 })
	for _, e := range n.batch(5).Jobs {
		want := api.JobSucceeded
		if e.Index == 12 {
			want = api.JobFailed
		}
		if e.Job.Status != want {
			t.Errorf("element %d: %+v", e.Index, e.Job)
		}
	}
	ended := map[int]api.JobStatus{}
	for len(ended) < 5 {
		select {
		case ev := <-events:
			switch {
			case ev.Type == agentapi.EventBatch && len(ended) == 4:
				ended[-1] = ""
			case ev.Type == agentapi.EventJob && ev.Element == nil, ev.Type == agentapi.EventJob && ev.Job.Status == api.JobPending && ev.Job.Reason == "", ev.Type == agentapi.EventBatch:
				t.Errorf("event %+v", ev)
			case ev.Type == agentapi.EventJob && ev.Job.Status.Terminal():
				ended[ev.Element.Index] = ev.Job.Status
			}
		case <-time.After(time.Minute):
			t.Fatalf("told of %v", ended)
		}
	}
	n.eventually("the rank on the other node is told", func() bool {
		body, err := nodes[1].api.BatchLogs(ctx(t), 1, 4, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer body.Close()
		texts := readRange(t, body)
		return len(texts) == 4 && texts[3] == "12 of task-12\n"
	})
	// An agent that starts again knows its batches, and one that was taken is not taken again, also once it is forgotten.
	n.kill9()
	n.ready()
	if st := n.batch(5); len(st.Jobs) != 4 || st.Open != 0 {
		t.Errorf("after a restart: %+v", st)
	}
	n.eventually("the batch is forgotten", func() bool {
		if err := n.api.ForgetBatches(ctx(t), 5); err != nil {
			t.Fatal(err)
		}
		_, err := n.api.Batch(ctx(t), 5)
		return agentapi.IsKind(err, agentapi.KindNotFound)
	})
	if st, err := n.api.SubmitBatch(ctx(t), in); err != nil || st.First != 0 {
		t.Errorf("taken again: %+v, %v", st, err)
	}
	jobs, err := n.api.Jobs(ctx(t))
	if err != nil || len(jobs) != 0 {
		t.Errorf("left: %+v, %v", jobs, err)
	}
	for _, node := range nodes {
		if _, err := os.Stat(filepath.Join(node.cfg.Home, "sky_logs", "array", "5")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("logs are left on rank %d: %v", node.cfg.Rank, err)
		}
	}
	n.kill9()
	n.ready()
	next, err := n.api.SubmitBatch(ctx(t), agentapi.JobBatch{Number: 6, Spec: spec, Elements: elements(1)})
	if err != nil || next.First != 5 {
		t.Errorf("the next batch: %+v, %v", next, err)
	}
	n.reaches(5, api.JobSucceeded)
	if got := strings.Count(n.file("count"), "\n"); got != 5 {
		t.Errorf("%d runs on the head, want 5", got)
	}
}

// An agent that dies while a batch runs takes it up where it was.
func TestBatchOutlivesTheAgent(t *testing.T) {
	n := cluster(t, 1)[0]
	spec := agentapi.JobSpec{Key: "array", Epoch: 1, Run: "echo $E >> ~/count; sleep 0.3", TaskID: "task", CPUs: 2, Secrets: map[string]string{"S": "hush"}}
	if _, err := n.api.SubmitBatch(ctx(t), agentapi.JobBatch{Number: 1, Spec: spec, Elements: elements(6)}); err != nil {
		t.Fatal(err)
	}
	n.eventually("two have ended", func() bool { return n.batch(1).Open <= 4 })
	n.kill9()
	n.ready()
	n.eventually("all have ended", func() bool { return n.batch(1).Open == 0 })
	for _, e := range n.batch(1).Jobs {
		if e.Job.Status != api.JobSucceeded {
			t.Errorf("element %d: %+v", e.Index, e.Job)
		}
	}
	if got := strings.Count(n.file("count"), "\n"); got != 6 {
		t.Errorf("%d runs, want 6", got)
	}
}

// readRange reads the streams of several jobs, by the number of the job.
func readRange(t *testing.T, body io.Reader) map[int64]string {
	t.Helper()
	out := map[int64]string{}
	r := bufio.NewReaderSize(body, 64<<10)
	for {
		if _, err := r.Peek(1); err == io.EOF {
			return out
		}
		l := agentapi.NewLogReader(r)
		id, text, over := int64(0), "", false
		for {
			f, data, err := l.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if f.JobID > 0 {
				id = f.JobID
			}
			b, _ := io.ReadAll(data)
			text += string(b)
			over = f.End && f.Status.Terminal()
		}
		if over {
			out[id] = text
		}
	}
}
