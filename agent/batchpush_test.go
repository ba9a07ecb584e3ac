package agent_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
)

// batchOutput gathers what a reader of events gets of the elements of arrays.
type batchOutput struct {
	mu    sync.Mutex
	text  map[agentapi.Element]string
	count int
}

func (p *batchOutput) take(t *testing.T, ev agentapi.Event) {
	if ev.Type != agentapi.EventLog {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count++
	if ev.Seq != 0 || ev.Output == nil || ev.Log != nil {
		t.Errorf("%+v", ev)
		return
	}
	data := ev.Output.Data
	for _, piece := range ev.Output.Pieces {
		e := agentapi.Element{Batch: ev.Output.Batch, Index: piece.Element}
		if int(piece.Offset) != len(p.text[e]) {
			t.Errorf("%+v of %+v; there are %d bytes", piece, e, len(p.text[e]))
		}
		p.text[e] += string(data[:piece.Len])
		data = data[piece.Len:]
	}
	if len(data) > 0 {
		t.Errorf("%d bytes are nobody's", len(data))
	}
}

func (p *batchOutput) of(batch int64, element int) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text[agentapi.Element{Batch: batch, Index: element}]
}

func TestBatchPush(t *testing.T) {
	n := cluster(t, 1)[0]
	read := func(kept agentapi.KeptOutput) (got *batchOutput, stop func()) {
		got = &batchOutput{text: map[agentapi.Element]string{}}
		for e, k := range kept {
			got.text[e] = strings.Repeat("?", int(k))
		}
		c, cancel := context.WithCancel(ctx(t))
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = n.api.EventsAndLog(c, 0, 0, agentapi.LogFollow{Batches: true, Every: time.Second, Kept: kept}, func(ev agentapi.Event) error {
				got.take(t, ev)
				return nil
			})
		}()
		return got, func() { cancel(); <-done }
	}
	got, stop := read(nil)
	spec := agentapi.JobSpec{Key: "array", Epoch: 1, Run: "echo begun $E; until [ -e ~/go ]; do sleep 0.05; done; echo ended $E", TaskID: "task", CPUs: 1}
	if _, err := n.api.SubmitBatch(ctx(t), agentapi.JobBatch{Number: 3, Spec: spec, Elements: elements(2)}); err != nil {
		t.Fatal(err)
	}
	n.eventually("the first lines", func() bool { return got.of(3, 10) == "begun 10\n" && got.of(3, 11) == "begun 11\n" })
	// Jobs that are no elements are not told of.
	j := n.submit(agentapi.JobSpec{Epoch: 1, Run: "echo plain"})
	touch(t, n, "go")
	n.eventually("the last lines", func() bool { return got.of(3, 10) == "begun 10\nended 10\n" && got.of(3, 11) == "begun 11\nended 11\n" })
	n.eventually("the plain job", func() bool { return n.job(j.ID).Status.Terminal() })
	stop()
	// Another reader gets what is not kept yet.
	got, stop = read(agentapi.KeptOutput{{Batch: 3, Index: 10}: 9})
	n.eventually("the rest", func() bool {
		return strings.HasSuffix(got.of(3, 10), "?ended 10\n") && got.of(3, 11) == "begun 11\nended 11\n"
	})
	stop()
	body, err := n.api.BatchLogs(ctx(t), 1, 2, agentapi.KeptOutput{{Batch: 3, Index: 10}: 9})
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if texts := readRange(t, body); texts[1] != "ended 10\n" || texts[2] != "begun 11\nended 11\n" {
		t.Errorf("%v", texts)
	}
}

func TestKeptOutputAsText(t *testing.T) {
	k := agentapi.KeptOutput{{Batch: 1, Index: 2}: 70000, {Batch: 10, Index: 0}: 5}
	if k.String() != "1.2:70000,10.0:5" {
		t.Error(k.String())
	}
	back, err := agentapi.ParseKeptOutput(k.String())
	if err != nil || len(back) != 2 || back[agentapi.Element{Batch: 10}] != 5 {
		t.Errorf("%v %v", back, err)
	}
	for _, bad := range []string{"x", "1:2", "1.2:-3", ","} {
		if _, err := agentapi.ParseKeptOutput(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
