package objects

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// A store that misbehaves on command; real ones are met in agent, internal/bucket and tests/train.
type bad struct {
	data  []byte
	cut   atomic.Int32 // answers that break off half way
	fail  atomic.Int32 // answers of 503
	still atomic.Bool  // nothing is read or answered
	asked atomic.Int32
	got   atomic.Value
}

func (b *bad) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.asked.Add(1)
	switch {
	case b.still.Load():
		io.Copy(io.Discard, r.Body) // or it would not be seen that the other side has gone
		<-r.Context().Done()
	case b.fail.Add(-1) >= 0:
		w.WriteHeader(http.StatusServiceUnavailable)
		io.WriteString(w, "<Error><Code>SlowDown</Code><Message>slower</Message></Error>")
	case r.URL.Path == "/denied":
		w.WriteHeader(http.StatusForbidden)
		io.WriteString(w, "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>")
	case r.Method == http.MethodPut:
		body, err := io.ReadAll(r.Body)
		if err == nil {
			b.got.Store(body)
		}
	case b.cut.Add(-1) >= 0:
		w.Header().Set("Content-Length", "1000000")
		if r.Header.Get("Range") != "" {
			w.WriteHeader(http.StatusPartialContent)
		}
		w.Write(b.data[:len(b.data)/4])
		panic(http.ErrAbortHandler)
	default:
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b.data))
	}
}

func start(t *testing.T) (*bad, *Client, string) {
	b := &bad{data: bytes.Repeat([]byte("0123456789"), 10_000)}
	s := httptest.NewServer(b)
	t.Cleanup(s.Close)
	c := New(2)
	c.pause = time.Millisecond
	t.Cleanup(c.Close)
	return b, c, s.URL
}

func TestGet(t *testing.T) {
	b, c, url := start(t)
	get := func(path string, size int64) ([]byte, error) {
		var data []byte
		err := c.Get(t.Context(), url+path, size, func(r io.Reader) (err error) {
			data, err = io.ReadAll(r)
			return err
		})
		return data, err
	}
	size := int64(len(b.data))
	b.fail.Store(tries - 1)
	if data, err := get("/x", size); err != nil || !bytes.Equal(data, b.data) {
		t.Errorf("%d bytes %v", len(data), err)
	}
	b.cut.Store(1) // the first answer ends after a quarter: the second begins there
	if data, err := get("/x", size); err != nil || !bytes.Equal(data, b.data) {
		t.Errorf("cut: %d bytes %v", len(data), err)
	}
	b.fail.Store(tries)
	var e *Error
	if _, err := get("/x?X-Amz-Signature=secret", size); !errors.As(err, &e) || e.Status != 503 || e.Code != "SlowDown" || strings.Contains(err.Error(), "secret") {
		t.Errorf("busy: %v", err)
	}
	b.fail.Store(0)
	asked := b.asked.Load()
	if _, err := get("/denied?X-Amz-Signature=secret", size); !errors.As(err, &e) || e.Code != "AccessDenied" || !strings.Contains(err.Error(), "expired") || b.asked.Load() != asked+1 {
		t.Errorf("denied: %v after %d", err, b.asked.Load()-asked)
	}
	mine := errors.New("the disk is full")
	if err := c.Get(t.Context(), url+"/x", size, func(io.Reader) error { return mine }); !errors.Is(err, mine) {
		t.Error(err)
	}
}

func TestPut(t *testing.T) {
	b, c, url := start(t)
	opened := 0
	whole := func() (io.ReadCloser, error) {
		opened++
		return io.NopCloser(bytes.NewReader(b.data)), nil
	}
	b.fail.Store(2)
	if err := c.Put(t.Context(), url+"/x", int64(len(b.data)), whole); err != nil || opened != 3 || !bytes.Equal(b.got.Load().([]byte), b.data) {
		t.Errorf("opened %d times: %v", opened, err)
	}
	if err := c.Put(t.Context(), url+"/x", 0, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(nil)), nil }); err != nil || len(b.got.Load().([]byte)) != 0 {
		t.Error(err)
	}
	b.got.Store([]byte("before"))
	changed := errors.New("it has changed")
	err := c.Put(t.Context(), url+"/x", int64(len(b.data)), func() (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(bytes.NewReader(b.data[:5000]), failing{changed})), nil
	})
	if !errors.Is(err, changed) || string(b.got.Load().([]byte)) != "before" {
		t.Errorf("%v; %d bytes arrived", err, len(b.got.Load().([]byte)))
	}
}

// TestStill gives a store up that says nothing, and one that is not there; neither error tells the URL.
func TestStill(t *testing.T) {
	b, c, url := start(t)
	b.still.Store(true)
	c.silence = 20 * time.Millisecond
	var e *Error
	err := c.Put(t.Context(), url+"/x?X-Amz-Signature=secret", 3, func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("abc")), nil })
	if !errors.As(err, &e) || !strings.Contains(err.Error(), "nothing moves") || strings.Contains(err.Error(), "secret") {
		t.Errorf("still: %v", err)
	}
	err = c.Get(t.Context(), "http://127.0.0.1:1/x?X-Amz-Signature=secret", 3, func(r io.Reader) error { _, err := io.ReadAll(r); return err })
	if !errors.As(err, &e) || e.Status != 0 || strings.Contains(err.Error(), "secret") {
		t.Errorf("not there: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Get(ctx, url+"/x", 3, func(r io.Reader) error { _, err := io.ReadAll(r); return err }); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
