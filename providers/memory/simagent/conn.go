package simagent

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"
)

// conn is a connection to an agent, as its client holds it. The agent's side has no goroutine of its own: what the client writes is
// served when it makes a request, and what the agent has to say is put into the reader's buffer. So ten thousand idle event
// streams cost their memory only.
type conn struct {
	agent *agent

	mu       sync.Mutex
	cond     sync.Cond
	in       []byte // written by the client, not served yet
	out      []byte // for the client to read
	serving  bool
	shut     error // of what the agent's side writes and the client reads; nil while it is open
	cancel   context.CancelFunc
	stream   bool // the rest of the connection is an event stream
	deadline time.Time
	timer    *time.Timer
}

// maxUnread is how many bytes of a request wait before the client's writes do.
const maxUnread = 256 << 10

func newConn(a *agent) *conn {
	c := &conn{agent: a}
	c.cond.L = &c.mu
	return c
}

// Read implements net.Conn.
func (c *conn) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.out) == 0 {
		switch {
		case c.shut != nil:
			return 0, c.shut
		case !c.deadline.IsZero() && !time.Now().Before(c.deadline):
			return 0, os.ErrDeadlineExceeded
		}
		c.cond.Wait()
	}
	n := copy(p, c.out)
	if c.out = c.out[n:]; len(c.out) == 0 {
		c.out = nil
	}
	return n, nil
}

// Write implements net.Conn.
func (c *conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.in) > maxUnread && c.shut == nil {
		c.cond.Wait()
	}
	if c.shut != nil {
		return 0, io.ErrClosedPipe
	}
	if c.stream {
		return len(p), nil // nobody reads on
	}
	c.in = append(c.in, p...)
	c.cond.Broadcast()
	if !c.serving && bytes.Contains(c.in, []byte("\r\n\r\n")) {
		c.serving = true
		go c.serve()
	}
	return len(p), nil
}

// Close implements net.Conn. The agent forgets the connection.
func (c *conn) Close() error {
	c.mu.Lock()
	if c.shut != nil {
		c.mu.Unlock()
		return nil
	}
	c.shut, c.in = io.EOF, nil
	cancel := c.cancel
	if c.timer != nil {
		c.timer.Stop()
	}
	c.cond.Broadcast()
	c.mu.Unlock()
	if cancel != nil {
		cancel()
	}
	c.agent.disconnect(c)
	return nil
}

// LocalAddr implements net.Conn.
func (c *conn) LocalAddr() net.Addr { return addr{} }

// RemoteAddr implements net.Conn.
func (c *conn) RemoteAddr() net.Addr { return addr{} }

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// SetWriteDeadline implements net.Conn; writes do not wait for long.
func (c *conn) SetWriteDeadline(time.Time) error { return nil }

// SetReadDeadline implements net.Conn.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
	if !t.IsZero() && c.shut == nil {
		c.timer = time.AfterFunc(time.Until(t), c.cond.Broadcast)
	}
	c.cond.Broadcast()
	return nil
}

type addr struct{}

func (addr) Network() string { return "simagent" }
func (addr) String() string  { return "simagent" }

// push puts bytes before the client; it says whether anybody is there to read them.
func (c *conn) push(b []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.shut != nil {
		return false
	}
	c.out = append(c.out, b...)
	c.cond.Broadcast()
	return true
}

// request reads what the client has written, and waits for the rest of a request.
type request struct{ c *conn }

// Read implements io.Reader.
func (r request) Read(p []byte) (int, error) {
	c := r.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.in) == 0 {
		if c.shut != nil {
			return 0, io.ErrUnexpectedEOF
		}
		c.cond.Wait()
	}
	n := copy(p, c.in)
	if c.in = c.in[n:]; len(c.in) == 0 {
		c.in = nil
	}
	c.cond.Broadcast()
	return n, nil
}

var readers = sync.Pool{New: func() any { return bufio.NewReader(nil) }}

// serve answers requests until none is there, or the connection has become a stream.
func (c *conn) serve() {
	br := readers.Get().(*bufio.Reader)
	br.Reset(request{c})
	defer func() {
		br.Reset(nil)
		readers.Put(br)
	}()
	for c.one(br) {
		c.mu.Lock()
		more := br.Buffered() > 0 || bytes.Contains(c.in, []byte("\r\n\r\n"))
		c.serving = more
		c.mu.Unlock()
		if !more {
			return
		}
	}
}

// one answers a request; it says whether another may follow.
func (c *conn) one(br *bufio.Reader) bool {
	req, err := http.ReadRequest(br)
	if err != nil {
		c.Close()
		return false
	}
	ctx, cancel := context.WithCancel(context.WithValue(context.Background(), agentKey{}, c.agent))
	defer cancel()
	c.mu.Lock()
	c.cancel = cancel
	gone := c.shut != nil
	c.mu.Unlock()
	if gone {
		return false
	}
	if req.URL.Path == "/v1/events" {
		return c.agent.stream(c, req.WithContext(ctx))
	}
	w := &answer{c: c, header: http.Header{}}
	c.agent.fleet.handler.ServeHTTP(w, req.WithContext(ctx))
	if _, err := io.Copy(io.Discard, req.Body); err != nil {
		c.Close()
		return false
	}
	return w.finish()
}

// answer writes a reply: with its length if it is whole at the end, in chunks if it was flushed before.
type answer struct {
	c       *conn
	header  http.Header
	status  int
	body    bytes.Buffer
	chunked bool
	broken  bool
}

// Header implements http.ResponseWriter.
func (w *answer) Header() http.Header { return w.header }

// WriteHeader implements http.ResponseWriter.
func (w *answer) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
}

// Write implements http.ResponseWriter.
func (w *answer) Write(p []byte) (int, error) {
	if w.broken {
		return 0, io.ErrClosedPipe
	}
	w.WriteHeader(http.StatusOK)
	return w.body.Write(p)
}

// FlushError sends what was written so far.
func (w *answer) FlushError() error {
	w.WriteHeader(http.StatusOK)
	var b bytes.Buffer
	if !w.chunked {
		w.chunked = true
		w.header.Set("Transfer-Encoding", "chunked")
		w.head(&b)
	}
	b.Write(piece(w.body.Bytes()))
	w.body.Reset()
	return w.send(b.Bytes())
}

func (w *answer) send(b []byte) error {
	if w.broken = w.broken || !w.c.push(b); w.broken {
		return io.ErrClosedPipe
	}
	return nil
}

func (w *answer) head(b *bytes.Buffer) {
	fmt.Fprintf(b, "HTTP/1.1 %d %s\r\n", w.status, http.StatusText(w.status))
	_ = w.header.Write(b) // to memory
	b.WriteString("\r\n")
}

// finish sends the rest.
func (w *answer) finish() bool {
	w.WriteHeader(http.StatusOK)
	if w.chunked {
		return w.send(append(piece(w.body.Bytes()), "0\r\n\r\n"...)) == nil
	}
	w.header.Set("Content-Length", strconv.Itoa(w.body.Len()))
	var b bytes.Buffer
	w.head(&b)
	b.Write(w.body.Bytes())
	return w.send(b.Bytes()) == nil
}

// piece encodes a part of a reply that has no length; nothing for nothing, which would end it.
func piece(p []byte) []byte {
	if len(p) == 0 {
		return nil
	}
	b := strconv.AppendInt(nil, int64(len(p)), 16)
	b = append(append(append(b, "\r\n"...), p...), "\r\n"...)
	return b
}
