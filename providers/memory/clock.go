package memory

import (
	"sort"
	"sync"
	"time"

	"github.com/skyloom/skyloom/providers/memory/simagent"
)

// Clock is the time a cloud and its agents live in.
type Clock = simagent.Clock

// FakeClock is a clock that moves only when told to.
type FakeClock struct {
	mu    sync.Mutex
	now   time.Time
	seq   int
	funcs map[int]fakeTimer
}

type fakeTimer struct {
	at  time.Time
	seq int
	f   func()
}

// NewFakeClock makes a clock that stands at t.
func NewFakeClock(t time.Time) *FakeClock { return &FakeClock{now: t, funcs: map[int]fakeTimer{}} }

// Now is the time the clock stands at.
func (c *FakeClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// AfterFunc calls f from Advance once the clock has passed d from now.
func (c *FakeClock) AfterFunc(d time.Duration, f func()) (stop func() bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seq++
	id := c.seq
	c.funcs[id] = fakeTimer{at: c.now.Add(d), seq: id, f: f}
	return func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		_, there := c.funcs[id]
		delete(c.funcs, id)
		return there
	}
}

// Advance moves the clock by d and calls what falls due on the way, in order, each at its own time.
func (c *FakeClock) Advance(d time.Duration) {
	c.mu.Lock()
	end := c.now.Add(d)
	for {
		var due []fakeTimer
		for _, t := range c.funcs {
			if !t.at.After(end) {
				due = append(due, t)
			}
		}
		if len(due) == 0 {
			break
		}
		sort.Slice(due, func(i, j int) bool {
			if due[i].at.Equal(due[j].at) {
				return due[i].seq < due[j].seq
			}
			return due[i].at.Before(due[j].at)
		})
		t := due[0]
		delete(c.funcs, t.seq)
		if t.at.After(c.now) {
			c.now = t.at
		}
		c.mu.Unlock()
		t.f()
		c.mu.Lock()
	}
	c.now = end
	c.mu.Unlock()
}
