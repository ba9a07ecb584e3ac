package httpapi

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/arrays"
	"github.com/skyloom/skyloom/internal/batchlog"
	"github.com/skyloom/skyloom/internal/store"
)

// arrayEnv is a server with the array 7 of ten elements.
type arrayEnv struct {
	*env
	t   *testing.T
	seq int64
}

func newArrayEnv(t *testing.T) *arrayEnv {
	e := &arrayEnv{env: newEnv(t), t: t}
	e.be.batches = filepath.Join(t.TempDir(), "batches")
	e.put(api.ManagedRunning, "")
	return e
}

func (e *arrayEnv) put(st api.ManagedStatus, reason string) {
	e.seq++
	e.putManaged(api.ManagedJob{ID: 7, NumTasks: 1, Name: "sweep", Status: st, FailureReason: reason, Seq: e.seq, Array: &api.ArrayProgress{Count: 10}})
}

// print keeps output of elements of a batch: "3:text" is of element 3.
func (e *arrayEnv) print(batch int64, rank int, at map[int]int64, texts ...string) {
	e.t.Helper()
	var outs []batchlog.Output
	var data string
	for _, text := range texts {
		var i int
		fmt.Sscanf(text, "%d:", &i)
		_, text, _ = strings.Cut(text, ":")
		outs = append(outs, batchlog.Output{Element: i, Rank: rank, Phase: "run", Offset: at[i], Len: int64(len(text))})
		at[i] += int64(len(text))
		data += text
	}
	if err := batchlog.NewWriter(e.be.batches, batchlog.ID{Batch: batch, Rank: rank}).Append(outs, strings.NewReader(data)); err != nil {
		e.t.Fatal(err)
	}
}

func (e *arrayEnv) running(batch int64, elements ...int) {
	e.t.Helper()
	var list []api.ArrayElement
	for _, i := range elements {
		list = append(list, api.ArrayElement{Index: i, Batch: batch, Status: api.ManagedRunning})
	}
	if err := e.st.PutElements(e.t.Context(), 7, list); err != nil {
		e.t.Fatal(err)
	}
}

// settle ends a batch: its log is whole, and its elements are as said.
func (e *arrayEnv) settle(batch int64, st api.ManagedStatus, elements ...int) {
	e.t.Helper()
	if err := batchlog.NewWriter(e.be.batches, batchlog.ID{Batch: batch}).Finish(""); err != nil {
		e.t.Fatal(err)
	}
	if _, err := e.st.SettleBatch(e.t.Context(), 7, batch, arrays.Of(elements...), nil, func(r store.ElementRow, _ bool) store.ElementRow {
		r.Status = st
		return r
	}); err != nil {
		e.t.Fatal(err)
	}
}

func (e *arrayEnv) log(c *api.Client, f api.ManagedLogFilter) (text string, end *api.ManagedLogEnd) {
	e.t.Helper()
	end, err := c.ManagedLogs(e.t.Context(), 7, f, func(ch api.LogChunk) error {
		switch {
		case ch.Lost > 0:
			e.t.Errorf("lost %d bytes", ch.Lost)
		case ch.Element != nil && len(ch.Data) > 0:
			text += fmt.Sprintf("%d.%d/%d:%s", *ch.Element, ch.Attempt, ch.Rank, ch.Data)
		case len(ch.Data) > 0:
			text += fmt.Sprintf("%s %d:%s", ch.Phase, ch.Attempt, ch.Data)
		}
		return nil
	})
	if err != nil {
		e.t.Errorf("%+v: %v", f, err)
	}
	return text, end
}

// whole is a client whose connections break all the time.
func (e *arrayEnv) cut(after int64) *api.Client {
	return api.NewClient(cutter(e.t, e.url, after), testToken, api.WithPatience(time.Minute), api.WithSleep(func(context.Context, time.Duration) error { return nil }))
}

func TestArrayLogByElement(t *testing.T) {
	e := newArrayEnv(t)
	at := map[int]int64{}
	e.running(1, 0, 1, 2)
	e.print(1, 0, at, "1:b1\n", "0:a1\n", "1:b2\n")
	e.settle(1, api.ManagedPending, 0, 1, 2)
	e.running(2, 1, 5)
	e.print(2, 0, map[int]int64{}, "5:five\n", "1:again\n", "5:more\n")
	e.print(2, 1, map[int]int64{}, "5:from the other node\n")
	e.be.setups = []int{3}
	e.be.stored = keptLogs{"0.3": {"0-setup": "no such package\n"}}.open
	all := "0.1/0:a1\n1.1/0:b1\nb2\n1.2/0:again\n5.1/0:five\nmore\n5.1/1:from the other node\n"
	for _, c := range []struct {
		f      api.ManagedLogFilter
		want   string
		status api.ManagedStatus
	}{
		{api.ManagedLogFilter{}, "setup 3:no such package\n" + all, api.ManagedRunning},
		{api.ManagedLogFilter{Elements: &[2]int{1, 4}}, "1.1/0:b1\nb2\n1.2/0:again\n", api.ManagedRunning},
		{api.ManagedLogFilter{Elements: &[2]int{6, -1}}, "", api.ManagedPending},
		{api.ManagedLogFilter{Elements: &[2]int{0, -1}, Tail: 1}, "0.1/0:a1\n1.2/0:again\n5.1/0:more\n5.1/1:from the other node\n", api.ManagedRunning},
	} {
		if got, end := e.log(e.client(), c.f); got != c.want || end.Status != c.status {
			t.Errorf("%+v: got\n%s%+v; want\n%s%s", c.f, got, end, c.want, c.status)
		}
	}
	for _, bad := range [][2]string{{"first=10", "has 10 elements"}, {"first=3&last=2", "no range"}, {"first=1&element=2", "one element or a range"}} {
		resp, body := e.call("GET", "/api/v1/jobs/7/logs?"+bad[0], "")
		if resp.StatusCode < 400 || !strings.Contains(body, bad[1]) {
			t.Errorf("%s: %d %s", bad[0], resp.StatusCode, body)
		}
	}
	resp, body := e.call("GET", "/api/v1/jobs/7/logs?follow=true&batches=x", "")
	if strings.Contains(body, `"end":true`) {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	e.putManaged(api.ManagedJob{ID: 8, NumTasks: 1, Name: "p", Status: api.ManagedSucceeded, Seq: 1})
	resp, body = e.call("GET", "/api/v1/jobs/8/logs?first=0", "")
	e.refused(resp, body, 400, api.ErrInvalid, "is no array")
}

// A log that is read over connections which break: no byte twice, none lost.
func TestArrayLogResumes(t *testing.T) {
	e := newArrayEnv(t)
	want := ""
	for i := range 10 {
		e.running(int64(i/3+1), i)
		at := map[int]int64{}
		line := fmt.Sprintf("%d:%s\n", i, strings.Repeat(fmt.Sprint(i), 300))
		e.print(int64(i/3+1), 0, at, line, line)
		want += strings.Repeat(strings.Repeat(fmt.Sprint(i), 300)+"\n", 2)
	}
	for i := range 4 {
		e.settle(int64(i+1), api.ManagedSucceeded, arraysOf(i*3, min(i*3+2, 9))...)
	}
	e.put(api.ManagedSucceeded, "")
	for _, follow := range []bool{false, true} {
		text := ""
		end, err := e.cut(900).ManagedLogs(t.Context(), 7, api.ManagedLogFilter{Follow: follow}, func(ch api.LogChunk) error {
			text += string(ch.Data)
			if len(ch.Data) > 0 && (ch.Element == nil || fmt.Sprint(*ch.Element) != strings.TrimSpace(string(ch.Data))[:1]) {
				t.Errorf("%+v %q", ch.LogFrame, ch.Data)
			}
			return nil
		})
		if err != nil || end.Status != api.ManagedSucceeded || text != want {
			t.Errorf("follow %v: %d bytes, want %d; %+v %v", follow, len(text), len(want), end, err)
		}
	}
}

func arraysOf(from, to int) (out []int) {
	arrays.Range(from, to).All(func(i int) bool { out = append(out, i); return true })
	return out
}

func TestArrayLogFollowed(t *testing.T) {
	e := newArrayEnv(t)
	type res struct {
		text string
		end  *api.ManagedLogEnd
	}
	lines := make(chan string, 100)
	follow := func(f api.ManagedLogFilter) chan res {
		done := make(chan res, 1)
		f.Follow = true
		go func() {
			text := ""
			end, err := e.client().ManagedLogs(t.Context(), 7, f, func(ch api.LogChunk) error {
				if len(ch.Data) > 0 {
					text += fmt.Sprintf("%d.%d:%s", *ch.Element, ch.Attempt, ch.Data)
					lines <- string(ch.Data)
				}
				return nil
			})
			if err != nil {
				t.Errorf("%+v: %v", f, err)
			}
			done <- res{text, end}
		}()
		return done
	}
	await := func(want string) {
		t.Helper()
		select {
		case got := <-lines:
			if got != want {
				t.Fatalf("got %q, want %q", got, want)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("%q did not come", want)
		}
	}
	at := map[int]int64{}
	all := follow(api.ManagedLogFilter{})
	e.running(1, 3, 4)
	e.print(1, 0, at, "3:three\n")
	await("three\n")
	e.print(1, 0, at, "4:four\n")
	await("four\n")
	// Two elements: what was before is shown first, and it ends with them.
	some := follow(api.ManagedLogFilter{Elements: &[2]int{3, 4}})
	await("three\n")
	await("four\n")
	// With a tail it begins with those that run.
	tail := follow(api.ManagedLogFilter{Elements: &[2]int{4, 4}, Tail: 1})
	await("four\n")
	e.settle(1, api.ManagedSucceeded, 3, 4)
	if r := <-some; r.text != "3.1:three\n4.1:four\n" || r.end.Status != api.ManagedSucceeded {
		t.Errorf("%+v %+v", r, r.end)
	}
	if r := <-tail; r.text != "4.1:four\n" || r.end.Status != api.ManagedSucceeded {
		t.Errorf("%+v %+v", r, r.end)
	}
	e.running(2, 5)
	e.settle(2, api.ManagedPending, 5)
	// What it prints may come before the row that says that it runs again.
	e.print(3, 0, map[int]int64{}, "5:last words\n")
	await("last words\n")
	e.running(3, 5)
	e.settle(3, api.ManagedFailed, 5)
	e.put(api.ManagedFailed, "1 of 10 elements failed: 5")
	if r := <-all; r.text != "3.1:three\n4.1:four\n5.2:last words\n" || r.end.Status != api.ManagedFailed || r.end.Reason != "1 of 10 elements failed: 5" {
		t.Errorf("%+v %+v", r, r.end)
	}
}
