package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
)

// Limits of what the client accepts from a server, in bytes.
const (
	maxJSON    = 256 << 20
	maxProblem = 1 << 20
)

// Client calls a server's HTTP API. Calls that meet a network failure or an overloaded server are repeated with
// back-off until the client's patience ends: every mutating call carries its request id, so repeating is harmless.
// It is safe for concurrent use.
type Client struct {
	mu       sync.RWMutex
	endpoint string
	token    string

	http      *http.Client
	patience  time.Duration
	reconnect func(ctx context.Context) (endpoint, token string, err error)
	notify    func(msg string)
	sleep     func(ctx context.Context, d time.Duration) error
	now       func() time.Time
	idle      time.Duration
	agent     string
}

// Option changes a Client.
type Option func(*Client)

// WithHTTPClient uses another HTTP client; it must not have a total timeout, since streams are long.
func WithHTTPClient(h *http.Client) Option { return func(c *Client) { c.http = h } }

// WithPatience sets how long a call is repeated while the server can't be reached. Default 30 s; 0 means one try.
func WithPatience(d time.Duration) Option { return func(c *Client) { c.patience = d } }

// WithReconnect is asked for the server's present address and token after a connection failed: a local server may
// have come back on another port. Its error ends the call.
func WithReconnect(f func(ctx context.Context) (endpoint, token string, err error)) Option {
	return func(c *Client) { c.reconnect = f }
}

// WithNotify gets a line for a person when a call has to wait for the server.
func WithNotify(f func(msg string)) Option { return func(c *Client) { c.notify = f } }

// WithSleep replaces the pause between tries; for tests.
func WithSleep(f func(ctx context.Context, d time.Duration) error) Option {
	return func(c *Client) { c.sleep = f }
}

// WithIdle sets after how much silence a stream is taken for dead and asked for again. Default 90 s; servers send a
// keep-alive comment at least every 30 s.
func WithIdle(d time.Duration) Option { return func(c *Client) { c.idle = d } }

// WithUserAgent sets the User-Agent header.
func WithUserAgent(s string) Option { return func(c *Client) { c.agent = s } }

// NewClient makes a client of the server at endpoint (http://host:port, no trailing path). An empty token sends none.
func NewClient(endpoint, token string, opts ...Option) *Client {
	c := &Client{
		endpoint: strings.TrimRight(endpoint, "/"),
		token:    token,
		http:     defaultHTTP(),
		patience: 30 * time.Second,
		sleep:    sleepContext,
		now:      time.Now,
		idle:     90 * time.Second,
		agent:    "skyloom",
	}
	for _, o := range opts {
		o(c)
	}
	return c
}

func defaultHTTP() *http.Client {
	t := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout: 10 * time.Second,
		MaxIdleConnsPerHost: 8,
		IdleConnTimeout:     60 * time.Second,
		ForceAttemptHTTP2:   true,
	}
	return &http.Client{Transport: t}
}

func sleepContext(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// Endpoint is the server's present address.
func (c *Client) Endpoint() string {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.endpoint
}

// NewRequestID makes an id for a mutating call.
func NewRequestID() string { return uuid.NewString() }

// Unreachable says that no connection to the server was had, to the end of the client's patience. Without an Endpoint
// Err says it all.
type Unreachable struct {
	Endpoint string
	Err      error
}

func (e *Unreachable) Error() string {
	if e.Endpoint == "" {
		return e.Err.Error()
	}
	return fmt.Sprintf("the server at %s can't be reached: %v", e.Endpoint, e.Err)
}

func (e *Unreachable) Unwrap() error { return e.Err }

// payload is a body that can be sent more than once.
type payload struct {
	open        func() (io.ReadCloser, error)
	size        int64 // -1: unknown
	contentType string
}

func jsonPayload(v any) (*payload, error) {
	if v == nil {
		return nil, nil
	}
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("the call can't be written as JSON: %w", err)
	}
	return bytesPayload(b, "application/json"), nil
}

func bytesPayload(b []byte, contentType string) *payload {
	return &payload{
		open:        func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil },
		size:        int64(len(b)),
		contentType: contentType,
	}
}

// try sends one request. The response's body is the caller's to close; a status of 400 or more is an error.
func (c *Client) try(ctx context.Context, method, path string, query url.Values, body *payload, accept string) (*http.Response, error) {
	c.mu.RLock()
	endpoint, token := c.endpoint, c.token
	c.mu.RUnlock()
	u := endpoint + path
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	var rd io.ReadCloser
	if body != nil {
		var err error
		if rd, err = body.open(); err != nil {
			return nil, &finalError{err}
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, u, nil)
	if err != nil {
		if rd != nil {
			rd.Close()
		}
		return nil, &finalError{fmt.Errorf("%q is no server address: %w", endpoint, err)}
	}
	var src *sourceReader
	if rd != nil {
		src = &sourceReader{rd: rd}
		req.Body, req.ContentLength = src, body.size
		if body.size == 0 {
			rd.Close()
			req.Body = http.NoBody
		}
		req.Header.Set("Content-Type", body.contentType)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	req.Header.Set(HeaderAPIVersion, strconv.Itoa(Version))
	req.Header.Set("User-Agent", c.agent)
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if src != nil && src.failed() != nil { // the source failed, not the network
			return nil, &finalError{src.failed()}
		}
		return nil, err
	}
	if v, err := strconv.Atoi(resp.Header.Get(HeaderAPIVersion)); err == nil && v < MinVersion {
		resp.Body.Close()
		return nil, &finalError{&Error{Kind: ErrNotSupported,
			Message: fmt.Sprintf("the server at %s speaks API version %d; this client needs %d or newer", endpoint, v, MinVersion),
			Hint:    "Upgrade the server. A local one: sky api stop, then sky api start."}}
	}
	if resp.StatusCode >= 300 {
		defer resp.Body.Close()
		perr := readProblem(resp)
		// A 503 that says anything else than "not now" (no resources, say) is an answer.
		if retryableStatus(resp.StatusCode) && perr.Kind == ErrUnavailable {
			return nil, &overloaded{err: perr, after: retryAfter(resp.Header.Get("Retry-After"))}
		}
		return nil, &finalError{perr}
	}
	return resp, nil
}

// do sends a request, repeating it while the server can't be reached or says that it is busy.
func (c *Client) do(ctx context.Context, method, path string, query url.Values, body *payload, accept string) (*http.Response, error) {
	w := c.newWait()
	for {
		resp, err := c.try(ctx, method, path, query, body, accept)
		if err == nil {
			return resp, nil
		}
		if err := w.next(ctx, err); err != nil {
			return nil, err
		}
	}
}

// finalError is an error that repeating won't cure.
type finalError struct{ err error }

func (e *finalError) Error() string { return e.err.Error() }
func (e *finalError) Unwrap() error { return e.err }

// overloaded is an answer that asks to come again.
type overloaded struct {
	err   error
	after time.Duration
}

func (e *overloaded) Error() string { return e.err.Error() }
func (e *overloaded) Unwrap() error { return e.err }

// sourceReader remembers a failure of the body's source, to tell it from one of the network.
type sourceReader struct {
	rd  io.ReadCloser
	mu  sync.Mutex
	err error
}

func (s *sourceReader) Read(p []byte) (int, error) {
	n, err := s.rd.Read(p)
	if err != nil && err != io.EOF {
		s.mu.Lock()
		s.err = err
		s.mu.Unlock()
	}
	return n, err
}

func (s *sourceReader) Close() error { return s.rd.Close() }

func (s *sourceReader) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func retryableStatus(code int) bool {
	return code == http.StatusTooManyRequests || code == http.StatusBadGateway ||
		code == http.StatusServiceUnavailable || code == http.StatusGatewayTimeout
}

func retryAfter(v string) time.Duration {
	if n, err := strconv.Atoi(v); err == nil && n >= 0 {
		return min(time.Duration(n)*time.Second, 30*time.Second)
	}
	return 0
}

// streamPatience is how long a reader waits for a server that was there before: an upgrade may take that long.
const streamPatience = 10 * time.Minute

// wait paces the tries of one call.
type wait struct {
	c        *Client
	start    time.Time
	patience time.Duration
	tries    int
	told     bool
}

func (c *Client) newWait() *wait { return &wait{c: c, start: c.now(), patience: c.patience} }

// reset forgets past failures: something arrived.
func (w *wait) reset() {
	w.start, w.tries, w.told = w.c.now(), 0, false
	if w.patience > 0 {
		w.patience = max(w.patience, streamPatience)
	}
}

// next pauses before another try, or returns the error to end with.
func (w *wait) next(ctx context.Context, err error) error {
	var final *finalError
	if errors.As(err, &final) {
		return final.err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var busy *overloaded
	isBusy := errors.As(err, &busy)
	end := func(cause error) error {
		if isBusy {
			return busy.err
		}
		return &Unreachable{Endpoint: w.c.Endpoint(), Err: trimURL(cause)}
	}
	if w.c.now().Sub(w.start) >= w.patience {
		return end(err)
	}
	pause := backoff(w.tries)
	w.tries++
	if isBusy {
		pause = max(pause, busy.after)
	} else if w.c.reconnect != nil {
		ep, tok, rerr := w.c.reconnect(ctx)
		if rerr != nil {
			return rerr
		}
		w.c.mu.Lock()
		w.c.endpoint, w.c.token = strings.TrimRight(ep, "/"), tok
		w.c.mu.Unlock()
	}
	if w.tries >= 4 && !w.told && w.c.notify != nil {
		w.told = true
		if isBusy {
			w.c.notify("The server is busy; trying again.")
		} else {
			w.c.notify("Lost the connection to the server; trying again.")
		}
	}
	return w.c.sleep(ctx, pause)
}

// backoff is 50 ms, doubling to 3 s, with jitter.
func backoff(tries int) time.Duration {
	d := 50 * time.Millisecond << min(tries, 6)
	d = min(d, 3*time.Second)
	return d/2 + rand.N(d/2+1)
}

// trimURL drops the method and address that net/http puts before its errors: the caller names the address itself.
func trimURL(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		return ue.Err
	}
	return err
}

// call does a JSON call: in is the body (nil for none), out receives the answer (nil to ignore it).
func (c *Client) call(ctx context.Context, method, path string, query url.Values, in, out any) error {
	body, err := jsonPayload(in)
	if err != nil {
		return err
	}
	return c.callRaw(ctx, method, path, query, body, out)
}

func (c *Client) callRaw(ctx context.Context, method, path string, query url.Values, body *payload, out any) error {
	w := c.newWait()
	for {
		resp, err := c.try(ctx, method, path, query, body, "application/json")
		if err == nil {
			err = decodeBody(resp, out)
		}
		if err == nil {
			return nil
		}
		if err := w.next(ctx, err); err != nil {
			return err
		}
	}
}

func decodeBody(resp *http.Response, out any) error {
	defer resp.Body.Close()
	if out == nil {
		_, err := io.Copy(io.Discard, io.LimitReader(resp.Body, maxJSON))
		return err
	}
	var buf bytes.Buffer
	if n := resp.ContentLength; n > 0 && n <= 16<<20 {
		buf.Grow(int(n) + bytes.MinRead)
	}
	if _, err := buf.ReadFrom(io.LimitReader(resp.Body, maxJSON+1)); err != nil {
		return err // cut in the middle: worth another try
	}
	b := buf.Bytes()
	if len(b) > maxJSON {
		return &finalError{fmt.Errorf("the server's answer is larger than %d MB", maxJSON>>20)}
	}
	if err := json.Unmarshal(b, out); err != nil {
		return &finalError{&Error{Kind: ErrInternal,
			Message: fmt.Sprintf("the answer of %s is not what the API promises: %v", resp.Request.URL.Redacted(), err),
			Hint:    "Is this address a Skyloom server? See: sky api info"}}
	}
	return nil
}
