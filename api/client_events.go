package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// maxSSELine is the longest line of an event stream, in bytes.
const maxSSELine = 4 << 20

// EventFilter selects events of a timeline.
type EventFilter struct {
	Cluster string
	Request string // id or prefix
	After   int64  // cursor: only events after it
	Limit   int    // the last so many, or with After the first so many; 0: all
}

// maxEvents is the longest list of events a server gives at once.
const maxEvents = 100_000

func (f EventFilter) query() url.Values {
	q := url.Values{}
	setString(q, "cluster", f.Cluster)
	setString(q, "request", f.Request)
	if f.After > 0 {
		q.Set("after", strconv.FormatInt(f.After, 10))
	}
	if f.Limit > 0 {
		q.Set("limit", strconv.Itoa(f.Limit))
	}
	return q
}

// Events lists events, oldest first.
func (c *Client) Events(ctx context.Context, f EventFilter) ([]Event, error) {
	var raw json.RawMessage
	if f.Limit == 0 {
		f.Limit = maxEvents
	}
	if err := c.call(ctx, "GET", prefix+"/events", f.query(), nil, &raw); err != nil {
		return nil, err
	}
	var list []Event
	if json.Unmarshal(raw, &list) == nil {
		return list, nil
	}
	wrapped := struct {
		Events []Event `json:"events"`
	}{}
	if err := json.Unmarshal(raw, &wrapped); err != nil {
		return nil, fmt.Errorf("the server's list of events is not what the API promises: %w", err)
	}
	return wrapped.Events, nil
}

// FollowEvents hands fn each event as it comes, oldest first, each once, over cut connections and server restarts. It
// ends with ctx, with an error of fn, or when the server refuses.
func (c *Client) FollowEvents(ctx context.Context, f EventFilter, fn func(Event) error) error {
	q := f.query()
	q.Set("follow", "true")
	return c.followSSE(ctx, prefix+"/events", q, f.After, fn)
}

// errDone ends a stream of events from inside.
var errDone = errors.New("done")

// FollowRequest hands fn each event of a request after the cursor, each once, and returns the request as it ended. The
// last event (kind done) is not handed on. It survives cut connections and restarts of the server.
func (c *Client) FollowRequest(ctx context.Context, id string, after int64, fn func(Event) error) (*Request, error) {
	var last *Request
	q := url.Values{"follow": {"true"}}
	err := c.followSSE(ctx, prefix+"/requests/"+url.PathEscape(id)+"/events", q, after, func(e Event) error {
		if e.Kind != EventDone {
			return fn(e)
		}
		r := &Request{}
		if len(e.Data) > 0 && json.Unmarshal(e.Data, r) == nil && r.ID != "" && r.Status.Terminal() {
			last = r
		}
		return errDone
	})
	if err != nil && !errors.Is(err, errDone) {
		return nil, err
	}
	if last != nil {
		return last, nil
	}
	return c.WaitRequest(ctx, id)
}

// followSSE reads a stream of server-sent events and asks again from the last id when it breaks.
func (c *Client) followSSE(ctx context.Context, path string, q url.Values, after int64, fn func(Event) error) error {
	w := c.newWait()
	cursor := after
	for {
		if cursor > 0 {
			q.Set("after", strconv.FormatInt(cursor, 10))
		}
		err := c.readSSE(ctx, path, q, func(e Event) error {
			w.reset()
			if e.ID > 0 && e.ID <= cursor && e.Kind != EventDone {
				return nil
			}
			if err := fn(e); err != nil {
				return &finalError{err}
			}
			cursor = max(cursor, e.ID)
			return nil
		})
		if err == nil {
			err = io.ErrUnexpectedEOF // a follower is only done when it says so
		}
		if err := w.next(ctx, err); err != nil {
			return err
		}
	}
}

func (c *Client) readSSE(ctx context.Context, path string, q url.Values, fn func(Event) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := c.try(ctx, "GET", path, q, nil, "text/event-stream")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, stop := c.guard(resp, cancel)
	defer stop()
	r := bufio.NewReaderSize(body, 32<<10)
	var id string
	var data []byte
	for {
		line, err := readLine(r, maxSSELine)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		switch {
		case line == "":
			if len(data) == 0 {
				id = ""
				continue
			}
			var e Event
			if err := json.Unmarshal(data, &e); err != nil {
				return &finalError{fmt.Errorf("the server sent an event that can't be read: %w", err)}
			}
			if n, err := strconv.ParseInt(id, 10, 64); err == nil && e.ID == 0 {
				e.ID = n
			}
			id, data = "", nil
			if err := fn(e); err != nil {
				return err
			}
		case strings.HasPrefix(line, ":"): // keep-alive
		default:
			field, value, _ := strings.Cut(line, ":")
			value = strings.TrimPrefix(value, " ")
			switch field {
			case "id":
				id = value
			case "data":
				if len(data)+len(value) > maxSSELine {
					return &finalError{errors.New("the server sent an event that is too long")}
				}
				if data != nil {
					data = append(data, '\n')
				}
				data = append(data, value...)
			}
		}
	}
}

// guard cancels a stream on which nothing arrives for the client's idle time: the peer is gone without a word.
func (c *Client) guard(resp *http.Response, cancel context.CancelFunc) (io.Reader, func()) {
	t := time.AfterFunc(c.idle, cancel)
	return &guarded{r: resp.Body, t: t, d: c.idle}, func() { t.Stop() }
}

type guarded struct {
	r io.Reader
	t *time.Timer
	d time.Duration
}

func (g *guarded) Read(p []byte) (int, error) {
	n, err := g.r.Read(p)
	if n > 0 {
		g.t.Reset(g.d)
	}
	return n, err
}

// readLine reads up to a line end (LF or CRLF), which it drops. A last line without an end is an error: it was cut.
func readLine(r *bufio.Reader, limit int) (string, error) {
	var buf []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(buf)+len(part) > limit {
			return "", &finalError{errors.New("the server sent a line that is too long")}
		}
		buf = append(buf, part...)
		if err == bufio.ErrBufferFull {
			continue
		}
		if err != nil {
			if err == io.EOF && len(buf) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return "", err
		}
		return strings.TrimSuffix(strings.TrimSuffix(string(buf), "\n"), "\r"), nil
	}
}
