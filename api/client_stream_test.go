package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

func sendEvent(w io.Writer, e Event) {
	b, _ := json.Marshal(e)
	fmt.Fprintf(w, "id: %d\ndata: %s\n\n", e.ID, b)
}

// The stream is cut after each event, and in the middle of each; every event comes once.
func TestFollowRequestOverCuts(t *testing.T) {
	const total = 20
	conns := 0
	c := quick(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conns++
		after, _ := strconv.ParseInt(r.URL.Query().Get("after"), 10, 64)
		if r.URL.Path != "/api/v1/requests/r1/events" || r.URL.Query().Get("follow") != "true" {
			t.Errorf("%s", r.URL)
		}
		io.WriteString(w, ": keep-alive\n\n")
		if conns%5 == 0 && after > 0 { // a server that repeats the last one
			after--
		}
		for n := after + 1; n <= total; n++ {
			sendEvent(w, Event{ID: n, Kind: EventStep, Message: fmt.Sprint("m", n)})
			switch (n + int64(conns)) % 3 {
			case 0:
				fmt.Fprintf(w, "id: %d\ndata: {\"id\":", n+1)
				w.(http.Flusher).Flush()
				cut()
			case 1:
				return // a clean end without "done" is a cut too
			}
		}
		sendEvent(w, Event{ID: total + 1, Kind: EventDone, Data: json.RawMessage(`{"request_id":"r1","status":"SUCCEEDED"}`)})
	}))
	var got []string
	r, err := c.FollowRequest(context.Background(), "r1", 0, func(e Event) error { got = append(got, e.Message); return nil })
	if err != nil || r.Status != RequestSucceeded {
		t.Fatal(r, err)
	}
	if len(got) != total || got[0] != "m1" || got[total-1] != "m20" || conns < 5 {
		t.Fatalf("%d connections, %v", conns, got)
	}
}

// A done event without the request in it makes the client ask for it.
func TestFollowRequestAsksForTheResult(t *testing.T) {
	c := quick(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/events") {
			sendEvent(w, Event{ID: 1, Kind: EventDone})
			return
		}
		io.WriteString(w, `{"request_id":"r1","status":"FAILED","error":{"type":"Invalid","message":"bad"}}`)
	}))
	r, err := c.FollowRequest(context.Background(), "r1", 0, func(Event) error { t.Error("done is not handed on"); return nil })
	if err != nil || r.Error == nil || r.Error.Message != "bad" {
		t.Fatal(r, err)
	}
}

func TestFollowErrors(t *testing.T) {
	c := quick(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		writeProblem(w, 404, Problem{Type: ErrNotFound, Detail: "no such request"})
	}))
	if _, err := c.FollowRequest(context.Background(), "zz", 0, nil); err == nil || err.Error() != "no such request" {
		t.Fatal(err)
	}
	c = quick(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "data: {\n\n") }))
	if _, err := c.FollowRequest(context.Background(), "zz", 0, nil); err == nil || !strings.Contains(err.Error(), "can't be read") {
		t.Fatal(err)
	}
	c = quick(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "data: "+strings.Repeat("x", maxSSELine+10))
	}))
	if _, err := c.FollowRequest(context.Background(), "zz", 0, nil); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Fatal(err)
	}
	want := errors.New("printer broke")
	c = quick(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { sendEvent(w, Event{ID: 1, Kind: EventStep}) }))
	if _, err := c.FollowRequest(context.Background(), "zz", 0, func(Event) error { return want }); !errors.Is(err, want) {
		t.Fatal(err)
	}
}

// A stream on which nothing arrives is taken for dead and asked for again.
func TestSilentStreamIsAskedForAgain(t *testing.T) {
	n := 0
	c := quick(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n++; n == 1 {
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return
		}
		sendEvent(w, Event{ID: 1, Kind: EventDone, Data: json.RawMessage(`{"request_id":"r1","status":"CANCELLED"}`)})
	}), WithIdle(30*time.Millisecond))
	r, err := c.FollowRequest(context.Background(), "r1", 0, nil)
	if err != nil || r.Status != RequestCancelled || n < 2 {
		t.Fatal(r, n, err)
	}
}

func TestEventsList(t *testing.T) {
	for _, body := range []string{`[{"id":1},{"id":2}]`, `{"events":[{"id":1},{"id":2}]}`} {
		c := quick(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if q := r.URL.Query(); q.Get("cluster") != "a" || q.Get("limit") != "100000" || q.Has("follow") {
				t.Errorf("%s", r.URL)
			}
			io.WriteString(w, body)
		}))
		list, err := c.Events(context.Background(), EventFilter{Cluster: "a"})
		if err != nil || len(list) != 2 || list[1].ID != 2 {
			t.Fatal(list, err)
		}
	}
}

// logServer serves the logs of three ranks and cuts each connection after some bytes.
type logServer struct {
	t      *testing.T
	logs   map[string][]byte // rank/phase
	rng    *rand.Rand
	conns  int
	budget func() int // bytes before the connection is cut; < 0: never
}

func (s *logServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.conns++
	q := r.URL.Query()
	if s.conns > 1 && s.logs["0/run"] != nil && q.Get("job_id") != "7" {
		s.t.Errorf("asked again for job %q, not the one it had", q.Get("job_id"))
	}
	at := map[string]int{}
	if cur := q.Get("cursor"); cur != "" {
		for _, p := range strings.Split(cur, ",") {
			k, v, _ := strings.Cut(p, ":")
			at[k], _ = strconv.Atoi(v)
		}
		if q.Get("tail") != "" {
			s.t.Error("tail together with a cursor")
		}
	}
	w.Header().Set("Content-Type", LogMediaType)
	out := &budgeted{w: w, left: s.budget()}
	head, _ := json.Marshal(LogFrame{JobID: 7, JobName: "train", Nodes: 3})
	out.Write(append(head, '\n'))
	for {
		var open []string
		for k, v := range s.logs {
			if at[k] < len(v) {
				open = append(open, k)
			}
		}
		if len(open) == 0 {
			break
		}
		k := open[s.rng.Intn(len(open))]
		rank, phase, _ := strings.Cut(k, "/")
		f := LogFrame{Phase: phase, PID: 10, Offset: int64(at[k])}
		f.Rank, _ = strconv.Atoi(rank)
		n := 1 + s.rng.Intn(min(50, len(s.logs[k])-at[k]))
		if back := s.rng.Intn(4); back == 0 && at[k] > 3 { // overlaps what was sent
			f.Offset -= 3
			n += 3
		}
		f.Len = n
		h, _ := json.Marshal(f)
		out.Write(append(append(h, '\n'), s.logs[k][f.Offset:int(f.Offset)+n]...))
		at[k] = int(f.Offset) + n
		if s.rng.Intn(10) == 0 {
			out.Write([]byte("\n")) // keep-alive
		}
	}
	end, _ := json.Marshal(LogFrame{End: true, Status: JobFailed, Reason: "exit code 3"})
	out.Write(append(end, '\n'))
}

type budgeted struct {
	w    http.ResponseWriter
	left int
}

func (b *budgeted) Write(p []byte) (int, error) {
	if b.left >= 0 && len(p) > b.left {
		b.w.Write(p[:b.left])
		b.w.(http.Flusher).Flush()
		cut()
	}
	if b.left >= 0 {
		b.left -= len(p)
	}
	return b.w.Write(p)
}

func TestJobLogsOverCuts(t *testing.T) {
	for seed := range int64(20) {
		rng := rand.New(rand.NewSource(seed))
		s := &logServer{t: t, rng: rng, logs: map[string][]byte{}}
		for _, k := range []string{"0/setup", "0/run", "1/run", "2/run"} {
			b := make([]byte, 300+rng.Intn(500))
			rng.Read(b) // logs are bytes, not text
			s.logs[k] = b
		}
		s.budget = func() int { return 100 + rng.Intn(700) }
		c := quick(t, s)
		got := map[string]*bytes.Buffer{}
		first := true
		end, err := c.JobLogs(context.Background(), "a", LogFilter{Follow: true, Tail: 10}, func(ch LogChunk) error {
			if first && (ch.Nodes != 3 || ch.JobName != "train" || len(ch.Data) > 0) {
				t.Errorf("first chunk %+v", ch)
			}
			first = false
			k := fmt.Sprintf("%d/%s", ch.Rank, ch.Phase)
			if len(ch.Data) == 0 {
				return nil
			}
			if got[k] == nil {
				got[k] = &bytes.Buffer{}
			}
			if int64(got[k].Len()) != ch.Offset || ch.Len != len(ch.Data) || ch.Lost != 0 {
				t.Errorf("%s: offset %d after %d bytes, lost %d", k, ch.Offset, got[k].Len(), ch.Lost)
			}
			got[k].Write(ch.Data)
			return nil
		})
		if err != nil || end.Status != JobFailed || end.Reason != "exit code 3" || end.JobID != 7 || end.JobName != "train" {
			t.Fatal(seed, end, err)
		}
		for k, v := range s.logs {
			if got[k] == nil || !bytes.Equal(got[k].Bytes(), v) {
				t.Fatalf("seed %d: the log %s differs after %d connections", seed, k, s.conns)
			}
		}
		if s.conns < 2 {
			t.Fatalf("seed %d: never cut", seed)
		}
	}
}

func TestJobLogsGap(t *testing.T) {
	n := 0
	c := quick(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", LogMediaType)
		if n++; n == 1 {
			io.WriteString(w, `{"rank":0,"phase":"run","offset":0,"len":3}`+"\nabc")
			w.(http.Flusher).Flush()
			cut()
		}
		io.WriteString(w, `{"rank":0,"phase":"run","offset":10,"len":2}`+"\nyz"+`{"end":true,"status":"SUCCEEDED"}`+"\n")
	}))
	var lost int64
	var text string
	_, err := c.JobLogs(context.Background(), "a", LogFilter{JobID: 1}, func(ch LogChunk) error {
		lost += ch.Lost
		text += string(ch.Data)
		return nil
	})
	if err != nil || lost != 7 || text != "abcyz" {
		t.Fatal(lost, text, err)
	}
}

func TestJobLogsHostile(t *testing.T) {
	for _, body := range []string{"{\n", `{"len":-1}` + "\n", `{"len":999999999999}` + "\n", `{"offset":-5}` + "\n", strings.Repeat("x", maxFrameHeader+10)} {
		n := 0
		c := quick(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n++
			w.Header().Set("Content-Type", LogMediaType)
			io.WriteString(w, body)
		}))
		if _, err := c.JobLogs(context.Background(), "a", LogFilter{}, func(LogChunk) error { return nil }); err == nil || n != 1 {
			t.Fatalf("%.40q: %v after %d tries", body, err, n)
		}
	}
	c := quick(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") }))
	if _, err := c.JobLogs(context.Background(), "a", LogFilter{}, nil); err == nil || !strings.Contains(err.Error(), "text/plain") {
		t.Fatal(err)
	}
	c = quick(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		writeProblem(w, 404, Problem{Type: ErrJobNotFound, Detail: "no job 9"})
	}))
	_, err := c.JobLogs(context.Background(), "a", LogFilter{JobID: 9}, nil)
	var e *Error
	if !errors.As(err, &e) || e.Kind != ErrJobNotFound {
		t.Fatal(err)
	}
}

// A text log that is cut goes on where it was.
func TestProvisionLogsResume(t *testing.T) {
	text := strings.Repeat("0123456789\n", 500)
	n := 0
	c := quick(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n++
		if stop := n * 1000; stop < len(text) {
			io.WriteString(w, text[:stop])
			w.(http.Flusher).Flush()
			cut()
		}
		io.WriteString(w, text)
	}))
	var b strings.Builder
	if err := c.ProvisionLogs(context.Background(), "a", 0, true, &b); err != nil || b.String() != text || n != 6 {
		t.Fatal(b.Len(), n, err)
	}
}
