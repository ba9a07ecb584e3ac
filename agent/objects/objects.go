package objects

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	// silence is how long a transfer may stand still, and how long a store may think before it answers.
	silence = 2 * time.Minute
	// tries is how often an object is begun anew, or gone on with, before it is given up.
	tries = 6
	// firstPause is waited after the first failure, and doubled each time.
	firstPause = 300 * time.Millisecond
)

// Error is what a store answered, or why it can't be reached.
type Error struct {
	Host   string
	Status int    // of HTTP; 0: it did not answer
	Code   string // of the store, such as AccessDenied
	Text   string
}

func (e *Error) Error() string {
	if e.Status == 0 {
		return fmt.Sprintf("%s can't be reached: %s", e.Host, e.Text)
	}
	return strings.TrimSpace(fmt.Sprintf("%s answers %d %s %s", e.Host, e.Status, e.Code, e.Text))
}

// passing says whether it may go better next time.
func (e *Error) passing() bool {
	return e.Status == 0 || e.Status >= 500 || e.Status == http.StatusRequestTimeout || e.Status == http.StatusTooManyRequests || e.Code == "RequestTimeout" || e.Code == "SlowDown"
}

// Client moves objects. It is safe for concurrent use; it holds no connection for long once it has nothing to do.
type Client struct {
	http    *http.Client
	silence time.Duration
	pause   time.Duration
}

// New makes a client with up to so many connections to a store.
func New(connections int) *Client {
	tr := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 15 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout:   15 * time.Second,
		ResponseHeaderTimeout: silence,
		MaxIdleConnsPerHost:   connections,
		IdleConnTimeout:       20 * time.Second,
		WriteBufferSize:       64 << 10,
		ReadBufferSize:        64 << 10,
		DisableCompression:    true,
	}
	return &Client{http: &http.Client{Transport: tr}, silence: silence, pause: firstPause}
}

// Close lets go of connections that are not in use.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Put sends an object of size bytes. open gives its bytes anew for each try; a reader that fails before its end leaves no object.
// What its errors are in the chain of, those of Put are; others are an *Error.
func (c *Client) Put(ctx context.Context, to string, size int64, open func() (io.ReadCloser, error)) error {
	return c.patiently(ctx, func() error {
		body, err := open()
		if err != nil {
			return err
		}
		defer body.Close()
		return c.put(ctx, to, size, body)
	})
}

func (c *Client) put(ctx context.Context, to string, size int64, body io.Reader) error {
	ctx, alive, stop := c.watched(ctx)
	defer stop()
	src := &source{r: body, alive: alive}
	var sent io.Reader = src
	if size == 0 {
		if _, err := io.Copy(io.Discard, src); err != nil {
			return err
		}
		sent = http.NoBody
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, to, sent)
	if err != nil {
		return errors.New("the URL of an object is not understood")
	}
	req.ContentLength = size
	resp, err := c.http.Do(req)
	if src.err != nil { // the reader's own reason counts, whatever became of the request
		if err == nil {
			drop(resp)
		}
		return src.err
	}
	if err != nil {
		return unreached(ctx, req, err)
	}
	defer drop(resp)
	if resp.StatusCode/100 != 2 {
		return refused(req, resp)
	}
	return nil
}

// Get reads an object of size bytes and hands it to take, once; where the connection breaks it goes on behind what was read.
// The errors of take are given back as they are; others are an *Error.
func (c *Client) Get(ctx context.Context, from string, size int64, take func(io.Reader) error) error {
	r := &object{ctx: ctx, c: c, from: from, size: size}
	defer r.close()
	err := take(r)
	if r.err != nil && !errors.Is(r.err, io.EOF) {
		return r.err
	}
	return err
}

// object reads one object over as many requests as it takes.
type object struct {
	ctx   context.Context
	c     *Client
	from  string
	size  int64
	at    int64
	body  io.ReadCloser
	alive func()
	stop  func()
	err   error
	fails int
}

func (o *object) Read(p []byte) (int, error) {
	for o.err == nil {
		if o.at == o.size {
			o.err = io.EOF
			break
		}
		if o.body == nil {
			if err := o.c.patiently(o.ctx, o.open); err != nil {
				o.err = err
				break
			}
		}
		n, err := o.body.Read(p[:min(int64(len(p)), o.size-o.at)])
		o.at += int64(n)
		if n > 0 {
			o.alive()
			o.fails = 0
			return n, nil
		}
		if err != nil {
			o.close()
			if o.fails++; o.fails >= tries {
				o.err = &Error{Host: hostOf(o.from), Text: "it breaks off again and again"}
			} else if o.ctx.Err() != nil {
				o.err = o.ctx.Err()
			}
		}
	}
	return 0, o.err
}

func (o *object) open() error {
	ctx, alive, stop := o.c.watched(o.ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, o.from, nil)
	if err != nil {
		stop()
		return errors.New("the URL of an object is not understood")
	}
	if o.at > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", o.at))
	}
	resp, err := o.c.http.Do(req)
	if err != nil {
		defer stop()
		return unreached(ctx, req, err)
	}
	want := http.StatusOK
	if o.at > 0 {
		want = http.StatusPartialContent
	}
	if resp.StatusCode != want {
		defer stop()
		defer drop(resp)
		return refused(req, resp)
	}
	o.body, o.alive, o.stop = resp.Body, alive, stop
	return nil
}

func (o *object) close() {
	if o.body != nil {
		o.body.Close()
		o.stop()
		o.body = nil
	}
}

// watched ends a request that stands still. alive puts that off.
func (c *Client) watched(ctx context.Context) (_ context.Context, alive, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	t := time.AfterFunc(c.silence, func() { cancel(errStill) })
	return ctx, func() { t.Reset(c.silence) }, func() { t.Stop(); cancel(nil) }
}

var errStill = errors.New("nothing moves")

// patiently tries again what may pass.
func (c *Client) patiently(ctx context.Context, do func() error) error {
	pause := c.pause
	for try := 1; ; try++ {
		err := do()
		var e *Error
		if err == nil || !errors.As(err, &e) || !e.passing() || try == tries {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
		pause *= 2
	}
}

// source remembers why a reader failed.
type source struct {
	r     io.Reader
	alive func()
	err   error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if n > 0 {
		s.alive()
	}
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

func hostOf(raw string) string {
	if u, err := url.Parse(raw); err == nil && u.Host != "" {
		return u.Host
	}
	return "the object store"
}

// unreached tells why there was no answer, without the URL that net/http puts into its errors.
func unreached(ctx context.Context, req *http.Request, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errStill) {
		err = cause
	} else if ctx.Err() != nil {
		return ctx.Err()
	}
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	return &Error{Host: req.URL.Host, Text: err.Error()}
}

// refused reads what the store says against it.
func refused(req *http.Request, resp *http.Response) error {
	e := &Error{Host: req.URL.Host, Status: resp.StatusCode}
	var said struct {
		Code, Message string
	}
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 16<<10))
	if xml.Unmarshal(b, &said) == nil {
		e.Code, e.Text = said.Code, said.Message
	}
	return e
}

// drop reads the rest of a short answer, so that the connection can be used again.
func drop(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 16<<10)
	resp.Body.Close()
}
