package httpapi

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/skyloom/skyloom/api"
)

// phases gives the order in which a rank's phases follow each other.
var phases = map[string]int{"setup": 1, "run": 2}

// offsets is, per phase of one rank, the next byte wanted.
type offsets map[string]int64

// wants says whether bytes of a phase are still to be sent, and from where. What comes before a phase that was begun
// is past: the reader has it, or asked for the last lines only.
func (o offsets) wants(phase string) (from int64, known, wanted bool) {
	if from, known = o[phase]; known {
		return from, true, true
	}
	for p := range o {
		if phases[p] > phases[phase] {
			return 0, false, false
		}
	}
	return 0, false, true
}

func (o offsets) copy() map[string]int64 {
	c := make(map[string]int64, len(o))
	for k, v := range o {
		c[k] = v
	}
	return c
}

// parseCursor reads "rank/phase:offset,…".
func parseCursor(s string) (map[int]offsets, error) {
	out := map[int]offsets{}
	if s == "" {
		return out, nil
	}
	for part := range strings.SplitSeq(s, ",") {
		rank, rest, ok1 := strings.Cut(part, "/")
		phase, off, ok2 := strings.Cut(rest, ":")
		r, err1 := strconv.Atoi(rank)
		n, err2 := strconv.ParseInt(off, 10, 64)
		if !ok1 || !ok2 || err1 != nil || err2 != nil || r < 0 || n < 0 || (phase != "" && phases[phase] == 0) {
			return nil, failure(api.ErrInvalid, "It reads RANK/PHASE:OFFSET,… such as 0/setup:120,0/run:4096", "the cursor %q is wrong", shorten(part))
		}
		if out[r] == nil {
			out[r] = offsets{}
		}
		out[r][phase] = n
	}
	return out, nil
}

// frameWriter writes frames of several ranks to one reader. Nothing is answered before the first frame, so that an
// error can still be a proper one.
type frameWriter struct {
	w     http.ResponseWriter
	rc    *http.ResponseController
	first api.LogFrame

	mu    sync.Mutex
	began bool
	held  bool // frames are flushed when there are many, or when flush is called
	last  time.Time
	err   error // the reader is gone
}

func newFrameWriter(w http.ResponseWriter, first api.LogFrame) *frameWriter {
	return &frameWriter{w: w, rc: http.NewResponseController(w), first: first}
}

// begin sends the frame that names the job.
func (f *frameWriter) begin() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.beginLocked()
}

func (f *frameWriter) beginLocked() error {
	if f.began || f.err != nil {
		return f.err
	}
	f.began = true
	f.w.Header().Set("Content-Type", api.LogMediaType)
	f.w.Header().Set("Cache-Control", "no-store")
	f.w.Header().Set("X-Accel-Buffering", "no")
	f.w.WriteHeader(http.StatusOK)
	return f.sendLocked(f.first, nil)
}

func (f *frameWriter) hasBegun() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.began
}

// gone is why nothing more can be sent, if so.
func (f *frameWriter) gone() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// frame sends one frame; its Len is set from data. A slow reader slows the agents down: nothing is buffered here.
func (f *frameWriter) frame(h api.LogFrame, data []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.beginLocked(); err != nil {
		return err
	}
	return f.sendLocked(h, data)
}

func (f *frameWriter) sendLocked(h api.LogFrame, data []byte) error {
	if f.err != nil {
		return f.err
	}
	h.Len = len(data)
	head, err := json.Marshal(h)
	if err != nil {
		return err
	}
	if _, f.err = f.w.Write(append(head, '\n')); f.err == nil && len(data) > 0 {
		_, f.err = f.w.Write(data)
	}
	if f.err == nil && !f.held {
		f.err = f.rc.Flush()
	}
	f.last = time.Now()
	return f.err
}

// gather has frames sent many at a time: who writes them calls flush when there is nothing more for now.
func (f *frameWriter) gather() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.held = true
}

// flush sends what was gathered.
func (f *frameWriter) flush() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.began && f.err == nil {
		f.err = f.rc.Flush()
	}
	return f.err
}

// keepAlive sends empty lines while nothing else is sent, until ctx ends.
func (f *frameWriter) keepAlive(ctx context.Context, every time.Duration) {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		f.mu.Lock()
		if f.began && f.err == nil && time.Since(f.last) >= every {
			if _, f.err = f.w.Write([]byte("\n")); f.err == nil {
				f.err = f.rc.Flush()
			}
		}
		f.mu.Unlock()
	}
}
