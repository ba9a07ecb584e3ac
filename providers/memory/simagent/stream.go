package simagent

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
)

// keepAlive is how often an idle event stream shows that the agent lives, if its reader does not say.
const keepAlive = 15 * time.Second

// stream is a reader of an agent's events.
type stream struct {
	c     *conn
	after int64
	beat  time.Duration
	due   time.Time // of the next sign of life; under the fleet's streamMu
}

// stream turns a connection into an event stream, in JSON lines. It gives false: no request follows. A reader that is ahead of the
// agent is refused, and may go on asking.
func (a *agent) stream(c *conn, r *http.Request) (more bool) {
	q := r.URL.Query()
	after, _ := strconv.ParseInt(q.Get("after"), 10, 64)
	s := &stream{c: c, after: after, beat: keepAlive}
	if n, err := strconv.Atoi(q.Get("beat")); err == nil && n > 0 {
		s.beat = time.Duration(n) * time.Second
	}
	defer a.begin()()
	if after > a.state.Seq {
		w := &answer{c: c, header: http.Header{}}
		refuse(w, fail(agentapi.KindConflict, "event %d is ahead of the last one, %d", after, a.state.Seq))
		return w.finish()
	}
	c.mu.Lock()
	c.stream = true
	c.mu.Unlock()
	w := &answer{c: c, header: http.Header{"Content-Type": {"application/x-ndjson"}}}
	if w.FlushError() != nil {
		return false
	}
	a.streams = append(a.streams, s)
	a.fleet.follow(s)
	a.feed(s)
	return false
}

// feed sends a reader the events that it has not got. The caller holds the lock.
func (a *agent) feed(s *stream) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	for _, ev := range a.state.Events {
		if ev.Seq > s.after && enc.Encode(ev) == nil {
			s.after = ev.Seq
		}
	}
	if b.Len() > 0 {
		s.c.push(piece(b.Bytes()))
	}
}

// follow shows a stream's reader from time to time that the agent lives. One goroutine does so for all streams, while there are any.
func (f *Fleet) follow(s *stream) {
	f.streamMu.Lock()
	defer f.streamMu.Unlock()
	s.due = time.Now().Add(s.beat)
	f.streams[s] = true
	switch {
	case len(f.streams) == 1:
		f.soonest = s.beat
		f.beating = time.AfterFunc(f.soonest, f.beat)
	case s.beat < f.soonest:
		f.soonest = s.beat
		f.beating.Reset(f.soonest)
	}
}

func (f *Fleet) unfollow(s *stream) {
	f.streamMu.Lock()
	defer f.streamMu.Unlock()
	delete(f.streams, s)
	if len(f.streams) == 0 && f.beating != nil {
		f.beating.Stop()
	}
}

// beat sends the signs of life that are due.
func (f *Fleet) beat() {
	f.streamMu.Lock()
	defer f.streamMu.Unlock()
	now := time.Now()
	next := now.Add(f.soonest)
	for s := range f.streams {
		if !s.due.After(now) {
			s.c.push([]byte("1\r\n\n\r\n"))
			s.due = now.Add(s.beat)
		}
		if s.due.Before(next) {
			next = s.due
		}
	}
	if len(f.streams) > 0 {
		f.beating.Reset(max(next.Sub(now), time.Second/2))
	}
}
