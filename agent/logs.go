package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
)

// logPoll is how often a file that grows is looked at while someone follows it.
const logPoll = 100 * time.Millisecond

// logChunk is the most bytes of one frame.
const logChunk = 64 << 10

// logView is what a log stream sees of a job at one moment.
type logView struct {
	part   *partRecord // nil: this node has no part in it (yet)
	row    *api.Job    // nil: this is not the head
	status api.JobStatus
	reason string
	// over says that no more output will come on this node.
	over bool
	more <-chan struct{}
	pids map[string]int
}

func (a *Agent) viewLog(id int64) (v logView, known bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	v.more = a.changed
	v.pids = map[string]int{}
	if j := a.jobs[id]; j != nil {
		row := j.Row
		v.row, v.status, v.reason = &row, row.Status, row.Reason
		v.over = row.Status.Terminal()
		known = true
	}
	if p := a.parts[id]; p != nil && (v.row == nil || p.Nonce == a.jobs[id].Nonce) && p.LogDir != "" {
		rec := p.partRecord
		v.part, known = &rec, true
		if v.row == nil {
			v.status, v.reason, v.over = rec.Status, rec.Reason, rec.Status.Terminal()
		}
		for _, ph := range []string{phaseSetup, phaseRun} {
			v.pids[ph] = a.pid(&rec, ph)
			p.phase(ph).PID = v.pids[ph]
		}
	}
	return v, known
}

// logStream writes one job's log of this node as frames.
type logStream struct {
	a     *Agent
	id    int64
	q     agentapi.LogQuery
	w     io.Writer
	flush func()
	buf   []byte
	sent  time.Time // of the last frame
}

// streamLogs writes the framed log of a job's part on this node. Offsets count bytes of the raw file of a phase.
// A worker that is asked to follow a job it does not know waits: the head may place it here yet.
func (a *Agent) streamLogs(ctx context.Context, w io.Writer, flush func(), id int64, q agentapi.LogQuery) error {
	s := &logStream{a: a, id: id, q: q, w: w, flush: flush, buf: make([]byte, logChunk)}
	head := api.LogFrame{JobID: id, Rank: a.cfg.Rank, Node: api.NodeName(a.cfg.Rank)}
	v, known := a.viewLog(id)
	await := func(met func() bool) bool {
		flush()
		for q.Follow && !v.over && !met() {
			if !a.pause(ctx, v.more, keepAlive) || (!s.sent.IsZero() && s.idle(head, false) != nil) {
				return false
			}
			v, known = a.viewLog(id)
		}
		return true
	}
	if !await(func() bool { return known }) {
		return nil
	}
	if v.row != nil {
		head.JobName, head.Nodes = v.row.Name, v.row.NumNodes
	} else if v.part != nil {
		head.JobName, head.Nodes = v.part.Name, v.part.Nodes
	}
	if err := s.frame(head, nil); err != nil {
		return err
	}
	if !await(func() bool { return v.part != nil }) {
		return nil
	}
	if v.part != nil {
		start := s.starts(v.part)
		for _, phase := range []string{phaseSetup, phaseRun} {
			if ok, err := s.phase(ctx, phase, start[phase]); err != nil || !ok {
				return err
			}
		}
	}
	for {
		v, _ = a.viewLog(id)
		if v.over || !q.Follow {
			head.End, head.Status, head.Reason = true, v.status, v.reason
			err := s.frame(head, nil)
			flush()
			return err
		}
		flush()
		if err := s.idle(head, false); err != nil {
			return err
		}
		if !a.pause(ctx, v.more, keepAlive) {
			return nil
		}
	}
}

// freshPID is the process of a phase whose first output overtook the record of its start, which follows within
// milliseconds; 0 if it does not.
func (s *logStream) freshPID(p *partRecord, phase string) int {
	for range 20 {
		if pids, ok := s.a.handle(p, phase).Pids(); ok && pids.Child.PID != 0 {
			return pids.Child.PID
		}
		time.Sleep(time.Millisecond)
	}
	return 0
}

// phase writes what a phase has printed from an offset on, and what it still prints. False: the stream was cut.
func (s *logStream) phase(ctx context.Context, phase string, off int64) (bool, error) {
	var f *os.File
	defer func() {
		if f != nil {
			f.Close()
		}
	}()
	for {
		v, _ := s.a.viewLog(s.id)
		if v.part == nil || !has(v.part, phase) {
			return true, nil
		}
		// Whether it has ended is asked before the file is read to its end: nothing can come after that.
		ph := v.part.phase(phase)
		done := ph.Ended || v.part.over() || v.over || (v.part.Killed && !ph.Started)
		if f == nil {
			var err error
			if f, err = os.Open(s.a.logFile(v.part, phase)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return false, err
			}
		}
		sent := false
		for f != nil {
			n, err := f.ReadAt(s.buf, off)
			if n > 0 {
				if v.pids[phase] == 0 && !ph.Ended {
					v.pids[phase] = s.freshPID(v.part, phase)
				}
				fr := api.LogFrame{Rank: s.rank(v.part, phase), Node: v.part.NodeName, Phase: phase, PID: v.pids[phase], Offset: off, Len: n}
				if err := s.frame(fr, s.buf[:n]); err != nil {
					return false, err
				}
				off += int64(n)
				sent = true
			}
			if err == io.EOF {
				break
			}
			if err != nil {
				return false, err
			}
			if ctx.Err() != nil {
				return false, nil
			}
		}
		if done || !s.q.Follow {
			return true, nil
		}
		poll := keepAlive
		if ph.Started {
			poll = logPoll
		}
		beat := api.LogFrame{Rank: s.rank(v.part, phase), Node: v.part.NodeName, Phase: phase, Offset: off}
		if err := s.idle(beat, sent); err != nil {
			return false, err
		}
		if !s.a.pause(ctx, v.more, poll) {
			return false, nil
		}
	}
}

// rank is that of the job for its run, and that of the node for the setup, which has a rank on every node.
func (s *logStream) rank(p *partRecord, phase string) int {
	if phase == phaseSetup {
		return s.a.cfg.Rank
	}
	return p.Rank
}

// idle flushes what was sent, and sends an empty frame after a long silence to show that the stream lives.
func (s *logStream) idle(beat api.LogFrame, sent bool) error {
	if !sent && time.Since(s.sent) < keepAlive {
		return nil
	}
	if !sent {
		if err := s.frame(beat, nil); err != nil {
			return err
		}
	}
	s.flush()
	return nil
}

func has(p *partRecord, phase string) bool {
	return (phase == phaseSetup && p.HasSetup) || (phase == phaseRun && p.HasRun)
}

func (s *logStream) frame(f api.LogFrame, data []byte) error {
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	s.sent = time.Now()
	if _, err := s.w.Write(append(b, '\n')); err != nil {
		return err
	}
	if len(data) == 0 {
		return nil
	}
	_, err = s.w.Write(data)
	return err
}

// starts gives the offsets to read from: those asked for, or those of the last lines.
func (s *logStream) starts(p *partRecord) map[string]int64 {
	out := map[string]int64{phaseSetup: s.q.Offsets[phaseSetup], phaseRun: s.q.Offsets[phaseRun]}
	if s.q.Tail <= 0 || len(s.q.Offsets) > 0 {
		return out
	}
	left := s.q.Tail
	for _, phase := range []string{phaseRun, phaseSetup} {
		if !has(p, phase) {
			continue
		}
		f, err := os.Open(s.a.logFile(p, phase))
		if err != nil {
			continue
		}
		off, lines, err := tailOffset(f, left)
		f.Close()
		if err == nil {
			out[phase] = off
			left -= lines
		}
	}
	return out
}

// tailOffset gives where the last n lines of a file begin, and how many there are, reading from its end. A last line
// without a newline counts.
func tailOffset(f io.ReaderAt, n int) (off int64, lines int, err error) {
	size := int64(0)
	if st, ok := f.(interface{ Stat() (os.FileInfo, error) }); ok {
		fi, err := st.Stat()
		if err != nil {
			return 0, 0, err
		}
		size = fi.Size()
	}
	if n <= 0 || size == 0 {
		return size, 0, nil
	}
	buf := make([]byte, logChunk)
	end := size
	first := true
	for end > 0 {
		from := max(end-int64(len(buf)), 0)
		b := buf[:end-from]
		if _, err := f.ReadAt(b, from); err != nil && err != io.EOF {
			return 0, 0, err
		}
		if first {
			first = false
			if b[len(b)-1] == '\n' {
				b = b[:len(b)-1] // it closes the last line, and begins none
			}
		}
		for {
			i := bytes.LastIndexByte(b, '\n')
			if i < 0 {
				break
			}
			lines++
			if lines == n {
				return from + int64(i) + 1, n, nil
			}
			b = b[:i]
		}
		end = from
	}
	return 0, lines + 1, nil
}

// pause waits for a change, or for d if it is positive; false if ctx or the agent ended.
func (a *Agent) pause(ctx context.Context, more <-chan struct{}, d time.Duration) bool {
	var tick <-chan time.Time
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		tick = t.C
	}
	select {
	case <-more:
	case <-tick:
	case <-ctx.Done():
		return false
	case <-a.stop:
		return false
	}
	return true
}
