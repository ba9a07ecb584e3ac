package agentapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/skyloom/skyloom/api"
)

// Drain is POST /v1/drain: the answer to an autostop event.
type Drain struct {
	// Generation is the one of the event; another one is refused with KindConflict.
	Generation int64 `json:"generation"`
	// Undo makes the node take work again. Without it the caller says that it carries the stop out: the agent then
	// leaves it time for the hooks and ten minutes more before it acts alone. Repeating it starts that time anew.
	Undo bool `json:"undo,omitempty"`
}

// PeerLost is POST /v1/peers/lost on the head: the infra confirmed that a node is gone. Unfinished jobs with a process
// there end as FAILED_DRIVER. A cluster spec of a higher epoch forgets it.
type PeerLost struct {
	NodeID string `json:"node_id"`
	Reason string `json:"reason,omitempty"`
}

// JobList is the answer of GET /v1/jobs, by rising id.
type JobList struct {
	Jobs []api.Job `json:"jobs"`
}

// ErrStop, returned by the callback of Events, ends the stream without an error.
var ErrStop = errors.New("stop")

// maxReply bounds a plain reply, in bytes: more than the job table of a cluster with 100,000 jobs.
const maxReply = 256 << 20

// Client speaks to one agent. It is safe for concurrent use. A call whose ctx has no deadline waits as long as the
// connection lives.
type Client struct {
	http *http.Client
	tr   *http.Transport
	dial func(context.Context) (net.Conn, error)
}

// New makes a client that reaches the agent through dial.
func New(dial func(context.Context) (net.Conn, error)) *Client {
	tr := &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		MaxIdleConns:       2,
		IdleConnTimeout:    20 * time.Second,
		DisableCompression: true,
	}
	return &Client{http: &http.Client{Transport: tr}, tr: tr, dial: dial}
}

// NewUnix makes a client for an agent on this machine.
func NewUnix(socket string) *Client {
	return New(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	})
}

// Close drops idle connections. The client stays usable.
func (c *Client) Close() { c.tr.CloseIdleConnections() }

// Info tells who the agent is and how it fares.
func (c *Client) Info(ctx context.Context) (Info, error) {
	return call[Info](ctx, c, "GET", "/v1/info", nil)
}

// Configure tells the node of its cluster. Sending an epoch again is a no-op; a lower one is KindStaleEpoch.
func (c *Client) Configure(ctx context.Context, spec ClusterSpec) error {
	_, err := call[struct{}](ctx, c, "PUT", "/v1/cluster", spec)
	return err
}

// Submit queues a job on the head. The same Key gives the same job, also after its end and while draining.
// Errors: KindInvalid, KindUnfit, KindDraining, KindStaleEpoch, KindDiskFull, KindConflict (not the head, or not configured).
func (c *Client) Submit(ctx context.Context, spec JobSpec) (api.Job, error) {
	return call[api.Job](ctx, c, "POST", "/v1/jobs", spec)
}

// Jobs lists every job of the cluster, by rising id.
func (c *Client) Jobs(ctx context.Context) ([]api.Job, error) {
	list, err := call[JobList](ctx, c, "GET", "/v1/jobs", nil)
	return list.Jobs, err
}

// Job gives one job, or KindNotFound.
func (c *Client) Job(ctx context.Context, id int64) (api.Job, error) {
	return call[api.Job](ctx, c, "GET", jobPath(id), nil)
}

// JobByKey gives the job that was submitted with a key, or KindNotFound.
func (c *Client) JobByKey(ctx context.Context, key string) (api.Job, error) {
	list, err := call[JobList](ctx, c, "GET", "/v1/jobs?key="+url.QueryEscape(key), nil)
	if err != nil {
		return api.Job{}, err
	}
	if len(list.Jobs) == 0 {
		return api.Job{}, &Error{Kind: KindNotFound, Detail: "no job was submitted with key " + key, Status: http.StatusNotFound}
	}
	return list.Jobs[0], nil
}

// Cancel ends jobs. It answers once every process of theirs is gone; if ctx ends earlier the cancelling goes on.
func (c *Client) Cancel(ctx context.Context, spec CancelSpec) (CancelReply, error) {
	return call[CancelReply](ctx, c, "POST", "/v1/jobs/cancel", spec)
}

// SetAutostop sets the idle rule and answers the one in force: a lower generation changes nothing.
func (c *Client) SetAutostop(ctx context.Context, a Autostop) (Autostop, error) {
	return call[Autostop](ctx, c, "PUT", "/v1/autostop", a)
}

// Autostop gives the idle rule in force; nil if none was ever set.
func (c *Client) Autostop(ctx context.Context) (*Autostop, error) {
	return call[*Autostop](ctx, c, "GET", "/v1/autostop", nil)
}

// Drain answers an autostop event.
func (c *Client) Drain(ctx context.Context, d Drain) error {
	_, err := call[struct{}](ctx, c, "POST", "/v1/drain", d)
	return err
}

// RunHooks starts the hooks of an event (stop, down, preemption), once per key, and answers at once.
// KindConflict: the hooks of another event are running.
func (c *Client) RunHooks(ctx context.Context, event string, run HookRun) (HookState, error) {
	return call[HookState](ctx, c, "POST", "/v1/hooks/"+url.PathEscape(event), run)
}

// HookState tells how far the hooks of an event are, or KindNotFound if they were never run.
func (c *Client) HookState(ctx context.Context, event string) (HookState, error) {
	return call[HookState](ctx, c, "GET", "/v1/hooks/"+url.PathEscape(event), nil)
}

// HookLog reads what the hooks of an event printed so far.
func (c *Client) HookLog(ctx context.Context, event string) (io.ReadCloser, error) {
	return c.open(ctx, "GET", "/v1/hooks/"+url.PathEscape(event)+"/log", nil, "")
}

// Notice tells the node that it is taken away in so many seconds: an event is sent and the preemption hooks run.
func (c *Client) Notice(ctx context.Context, seconds int) error {
	_, err := call[struct{}](ctx, c, "POST", "/v1/notice", map[string]int{"seconds": seconds})
	return err
}

// PeerLost tells the head that a node is gone for good.
func (c *Client) PeerLost(ctx context.Context, p PeerLost) error {
	_, err := call[struct{}](ctx, c, "POST", "/v1/peers/lost", p)
	return err
}

// Ack says that the events up to seq are no longer needed.
func (c *Client) Ack(ctx context.Context, seq int64) error {
	_, err := call[struct{}](ctx, c, "POST", "/v1/events/ack", map[string]int64{"seq": seq})
	return err
}

// Events calls fn for each event after seq, in order, and waits for more. It returns when ctx ends, the connection
// breaks, or fn fails (nil if fn returned ErrStop). KindConflict means that seq is ahead of the agent's own count: its
// history began anew, so start again from 0.
func (c *Client) Events(ctx context.Context, after int64, fn func(Event) error) error {
	return c.EventsEvery(ctx, after, 0, fn)
}

// EventsEvery is Events with an agent that shows at least every beat (whole seconds) that it lives; the stream counts as
// broken after two and a half beats of silence. Zero: the agent's own 15 s, and a minute.
func (c *Client) EventsEvery(ctx context.Context, after int64, beat time.Duration, fn func(Event) error) error {
	return c.EventsAndLog(ctx, after, beat, LogFollow{}, fn)
}

// EventsAndLog is EventsEvery with the output of a job in between. An agent that knows no such thing sends none.
func (c *Client) EventsAndLog(ctx context.Context, after int64, beat time.Duration, log LogFollow, fn func(Event) error) error {
	path, limit := "/v1/events?after="+strconv.FormatInt(after, 10), eventSilence
	if s := int64(beat / time.Second); s > 0 {
		path += "&beat=" + strconv.FormatInt(s, 10)
		limit = beat * 5 / 2
	}
	switch {
	case log.Batches:
		path += fmt.Sprintf("&batches=1&log_every=%d", log.Every/time.Second)
		if len(log.Kept) > 0 {
			path += "&kept=" + log.Kept.String()
		}
	case log.JobID > 0:
		path += fmt.Sprintf("&log=%d&log_every=%d", log.JobID, log.Every/time.Second)
		for phase, off := range log.Offsets {
			path += fmt.Sprintf("&offset_%s=%d", url.QueryEscape(phase), off)
		}
	}
	// A server holds thousands of these: each has its connection and this goroutine, and none of what makes a connection fit for
	// other calls.
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	live := &liveReader{r: conn, limit: limit, silence: time.AfterFunc(limit, func() { conn.Close() })}
	defer live.silence.Stop()
	body, err := get(conn, live, path)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	}
	dec := json.NewDecoder(body) // skips the empty lines that show the agent lives
	for {
		var ev Event
		if err := dec.Decode(&ev); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("event stream: %w", err)
		}
		if err := fn(ev); err != nil {
			if errors.Is(err, ErrStop) {
				return nil
			}
			return err
		}
	}
}

// streamBuffer is the size in bytes of a stream's reader; an event is rarely larger.
const streamBuffer = 1 << 10

// get asks for a path over a connection of its own, and gives the reply's body if the agent agrees.
func get(w io.Writer, r io.Reader, path string) (io.Reader, error) {
	req, err := http.NewRequest("GET", "http://agent"+path, nil)
	if err != nil {
		return nil, err
	}
	if err := req.Write(w); err != nil {
		return nil, fmt.Errorf("event stream: %w", err)
	}
	resp, err := http.ReadResponse(bufio.NewReaderSize(r, streamBuffer), req)
	if err != nil {
		return nil, fmt.Errorf("event stream: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, ReadError(resp)
	}
	return resp.Body, nil
}

// eventSilence is how long an event stream may be silent: an agent shows every 15 s that it lives.
const eventSilence = time.Minute

// liveReader puts the end of a stream off with everything that arrives.
type liveReader struct {
	r       io.Reader
	limit   time.Duration
	silence *time.Timer
}

func (l *liveReader) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if n > 0 {
		l.silence.Reset(l.limit)
	}
	return n, err
}

// Logs reads a job's log on this node as a framed stream; see NewLogReader.
func (c *Client) Logs(ctx context.Context, id int64, q LogQuery) (io.ReadCloser, error) {
	v := url.Values{}
	for phase, off := range q.Offsets {
		v.Set("offset_"+phase, strconv.FormatInt(off, 10))
	}
	if q.Follow {
		v.Set("follow", "1")
	}
	if q.Tail > 0 {
		v.Set("tail", strconv.Itoa(q.Tail))
	}
	return c.open(ctx, "GET", jobPath(id)+"/logs?"+v.Encode(), nil, "")
}

// PlanFiles sends a manifest, what it has otherwise than to.Base, or with to.Known only its id (manifest is nil then), and
// learns which blobs the node lacks to bring the destination to its state. Agents that can't do the latter two answer
// KindInvalid. The
// destination travels in the query: dst, file=1, mirror=1, prune=1, now=1, place=1.
func (c *Client) PlanFiles(ctx context.Context, to FileApply, manifest io.Reader) (FilePlan, error) {
	v := url.Values{"dst": {to.Dst}}
	if to.File {
		v.Set("file", "1")
	}
	if to.Mirror {
		v.Set("mirror", "1")
	}
	if to.Prune {
		v.Set("prune", "1")
	}
	if to.Now {
		v.Set("now", "1")
	}
	if to.Place {
		v.Set("place", "1")
	}
	if to.Known {
		v.Set("known", "1")
	}
	if to.Base != "" {
		v.Set("base", to.Base)
	}
	if to.Known || to.Base != "" {
		v.Set("manifest", to.Manifest)
	}
	return upload[FilePlan](ctx, c, "POST", "/v1/files/plan?"+v.Encode(), manifest)
}

// SendBlobs sends a pack of blobs; see package filesync for its format. They wait for the apply, and peers may fetch them.
func (c *Client) SendBlobs(ctx context.Context, pack io.Reader) error {
	_, err := upload[struct{}](ctx, c, "PUT", "/v1/files/blobs", pack)
	return err
}

// PlaceBlobs sends blobs of a plan. If its destination was empty they are put in place as they arrive.
func (c *Client) PlaceBlobs(ctx context.Context, to FileApply, pack io.Reader) error {
	v := url.Values{"dst": {to.Dst}, "manifest": {to.Manifest}}
	_, err := upload[struct{}](ctx, c, "PUT", "/v1/files/blobs?"+v.Encode(), pack)
	return err
}

// FetchBlobs makes the node get blobs from another node of its cluster. KindNotFound: the agent knows no such call.
func (c *Client) FetchBlobs(ctx context.Context, f FileFetch) (FileFetched, error) {
	return call[FileFetched](ctx, c, "POST", "/v1/files/fetch", f)
}

// ApplyFiles brings a tree to the state of a manifest planned before, whose blobs were sent.
func (c *Client) ApplyFiles(ctx context.Context, a FileApply) (FileResult, error) {
	return call[FileResult](ctx, c, "POST", "/v1/files/apply", a)
}

// Upgrade puts another agent binary in place. Jobs live on; the agent is away for some 50 ms.
func (c *Client) Upgrade(ctx context.Context, sha256hex string, binary io.Reader) error {
	_, err := upload[struct{}](ctx, c, "POST", "/v1/upgrade?sha256="+url.QueryEscape(sha256hex), binary)
	return err
}

// SSHHost tells who the node's SSH server is. The first call makes its host key.
func (c *Client) SSHHost(ctx context.Context) (SSHHost, error) {
	return call[SSHHost](ctx, c, "GET", "/v1/ssh", nil)
}

// DialSSH opens a stream to the node's SSH server, on which a client logs in with one of the keys (each in the form
// TYPE BASE64). ctx bounds the opening, not the life of the stream.
func (c *Client) DialSSH(ctx context.Context, keys ...string) (io.ReadWriteCloser, error) {
	// The context of a request that was upgraded must not end before the stream does.
	live, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	req, err := http.NewRequestWithContext(live, "POST", "http://agent/v1/ssh", http.NoBody)
	if err != nil {
		cancel()
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", SSHProtocol)
	for _, k := range keys {
		req.Header.Add(SSHKeyHeader, k)
	}
	resp, err := c.http.Do(req)
	if err == nil && resp.StatusCode != http.StatusSwitchingProtocols {
		err = ReadError(resp)
		resp.Body.Close()
	}
	if err == nil && !stop() { // ctx ended meanwhile
		resp.Body.Close()
		err = ctx.Err()
	}
	if err != nil {
		cancel()
		return nil, err
	}
	return sshStream{resp.Body.(io.ReadWriteCloser), cancel}, nil // what a switched protocol gives
}

// sshStream is an upgraded connection.
type sshStream struct {
	io.ReadWriteCloser
	cancel context.CancelFunc
}

func (s sshStream) Close() error {
	err := s.ReadWriteCloser.Close()
	s.cancel()
	return err
}

func jobPath(id int64) string { return "/v1/jobs/" + strconv.FormatInt(id, 10) }

// IsKind says that an error is an agent's answer of that kind.
func IsKind(err error, kind string) bool {
	var e *Error
	return errors.As(err, &e) && e.Kind == kind
}

func call[T any](ctx context.Context, c *Client, method, path string, in any) (T, error) {
	var body io.Reader
	var out T
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return out, err
		}
		body = bytes.NewReader(b)
	}
	return decode[T](c.open(ctx, method, path, body, "application/json"))
}

func upload[T any](ctx context.Context, c *Client, method, path string, body io.Reader) (T, error) {
	return decode[T](c.open(ctx, method, path, body, "application/octet-stream"))
}

func decode[T any](body io.ReadCloser, err error) (T, error) {
	var out T
	if err != nil {
		return out, err
	}
	defer body.Close()
	b, err := io.ReadAll(io.LimitReader(body, maxReply))
	if err != nil {
		return out, err
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return out, nil
	}
	if err := json.Unmarshal(b, &out); err != nil {
		return out, fmt.Errorf("the agent's answer is not understood: %w", err)
	}
	return out, nil
}

// open sends a request and gives the body of a good answer; any other is an *Error.
func (c *Client) open(ctx context.Context, method, path string, body io.Reader, ctype string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, body)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", ctype)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 == 2 {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	return nil, ReadError(resp)
}

// ReadError makes the error of an answer outside 2xx.
func ReadError(resp *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	e := &Error{}
	if json.Unmarshal(b, e) != nil || e.Kind == "" {
		e = &Error{Kind: KindInternal, Detail: fmt.Sprintf("the agent answered %s: %.200s", resp.Status, b)}
		if resp.StatusCode == http.StatusNotFound {
			e.Kind = KindNotFound
		}
	}
	e.Status = resp.StatusCode
	return e
}
