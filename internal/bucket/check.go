package bucket

import (
	"bytes"
	"context"
	"crypto/rand"
	"time"
)

const (
	// checkTime bounds a check: somebody waits for it.
	checkTime = 25 * time.Second
	// checkUseful is how long a check that went well speaks for the next ones.
	checkUseful = time.Minute
)

// check is one that runs, or went well a moment ago.
type check struct {
	done  chan struct{}
	err   error
	ended time.Time
}

// Check tries whether objects can be written, listed, read and deleted below an address, with one tiny object that it removes. A
// result that is good lasts a minute. Its errors are an *Error.
func (r *Registry) Check(ctx context.Context, text string) error {
	a, err := Parse(text)
	if err != nil {
		return err
	}
	key := a.String()
	r.mu.Lock()
	c := r.checks[key]
	if c != nil && !c.ended.IsZero() && (c.err != nil || time.Since(c.ended) > checkUseful) {
		c = nil
	}
	if c == nil {
		c = &check{done: make(chan struct{})}
		r.checks[key] = c
		go func() {
			err := r.try(context.WithoutCancel(ctx), a)
			r.mu.Lock()
			c.err, c.ended = err, time.Now()
			r.mu.Unlock()
			close(c.done)
		}()
	}
	r.mu.Unlock()
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *Registry) try(ctx context.Context, a Address) error {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	b, err := r.Open(ctx, a)
	if err != nil {
		return err
	}
	name := a.Join("skyloom-check-" + rand.Text())
	want := []byte("Written to see whether checkpoints can be kept here. It can be deleted.\n")
	if err := b.Put(ctx, name.Key, "text/plain", want); err != nil {
		return err
	}
	found := false
	err = b.List(ctx, name.Key, func(o Object) { found = found || o.Key == name.Key && o.Size == int64(len(want)) })
	var got []byte
	if err == nil {
		got, err = b.Get(ctx, name.Key, 1<<10)
	}
	if derr := b.Delete(ctx, name.Key); err == nil {
		err = derr
	}
	if err == nil && (!found || !bytes.Equal(got, want)) {
		err = &Error{Kind: KindBusy, Address: b.base, Text: "what is written to it is not what is read from it right afterwards", Hint: "checkpoints need a store that is consistent; caches in front of it are none"}
	}
	return err
}
