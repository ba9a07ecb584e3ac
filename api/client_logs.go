package api

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"sort"
	"strconv"
	"strings"
)

// Limits of a framed log stream, in bytes.
const (
	maxFrameHeader = 64 << 10
	maxFrame       = 64 << 20
)

// LogFilter selects the log of a job.
type LogFilter struct {
	JobID  int64 // 0: the latest
	Follow bool
	Tail   int // lines per node; 0: all
}

// LogChunk is a piece of the raw log of one rank and phase, in order and without overlap.
type LogChunk struct {
	LogFrame        // Offset and Len are those of Data
	Data     []byte // valid during the call only
	// Lost is how many bytes before Data the server no longer has.
	Lost int64
}

// LogEnd tells how a log ended.
type LogEnd struct {
	JobID   int64
	JobName string
	Status  JobStatus // the job's, when the server closed the stream
	Reason  string
}

// JobLogs hands fn the log of a job, piece by piece, and returns when the server says that it is complete (Follow: the
// job has ended). Calls without data name the job and its nodes (the first one), or a node whose log can't be had to its
// end (Cut). When the connection is cut it asks again
// from where it was, so that no byte is repeated or lost.
func (c *Client) JobLogs(ctx context.Context, cluster string, f LogFilter, fn func(LogChunk) error) (*LogEnd, error) {
	s := &logReader{fn: fn, at: map[string]int64{}, cuts: map[string]bool{}, end: &LogEnd{JobID: f.JobID}}
	w := c.newWait()
	s.progress = w.reset
	for {
		q := url.Values{}
		if s.end.JobID > 0 {
			q.Set("job_id", strconv.FormatInt(s.end.JobID, 10))
		}
		q.Set("follow", strconv.FormatBool(f.Follow))
		if cur := s.cursor(); cur != "" {
			q.Set("cursor", cur)
		} else if f.Tail > 0 {
			q.Set("tail", strconv.Itoa(f.Tail))
		}
		done, err := c.readLog(ctx, prefix+"/clusters/"+url.PathEscape(cluster)+"/logs", q, s)
		if done {
			return s.end, nil
		}
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		if err := w.next(ctx, err); err != nil {
			return s.end, err
		}
	}
}

// logReader keeps, over several connections, how far each rank and phase was read.
type logReader struct {
	fn       func(LogChunk) error
	progress func()
	at       map[string]int64 // "rank/phase" → next byte wanted; of a managed job "task.attempt@rank/phase"
	cuts     map[string]bool  // which ends were told
	attempts map[int]int      // of a managed job: by task, the attempt that is read; nil otherwise
	array    *arrayPlace      // of an array
	end      *LogEnd
	began    bool
	buf      []byte
}

func (s *logReader) cursor() string {
	if s.array != nil {
		return s.array.cursor()
	}
	parts := make([]string, 0, len(s.at))
	for k, v := range s.at {
		parts = append(parts, k+":"+strconv.FormatInt(v, 10))
	}
	for task, attempt := range s.attempts { // also where no byte was read yet
		parts = append(parts, fmt.Sprintf("%d.%d@", task, attempt))
	}
	sort.Strings(parts)
	return strings.Join(parts, ",")
}

// read handles one connection. done means that the server closed the log properly.
func (s *logReader) read(r *bufio.Reader) (done bool, err error) {
	for {
		line, err := readLine(r, maxFrameHeader)
		if err == io.EOF {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if line == "" { // keep-alive
			continue
		}
		var f LogFrame
		if err := json.Unmarshal([]byte(line), &f); err != nil || f.Len < 0 || f.Len > maxFrame || f.Offset < 0 {
			return false, &finalError{fmt.Errorf("the server sent a log frame that can't be read: %.80q", line)}
		}
		if f.JobID > 0 {
			s.end.JobID = f.JobID
			if f.JobName != "" {
				s.end.JobName = f.JobName
			}
		}
		_, fresh := s.place(f)
		told := fmt.Sprintf("%d.%d/%d", f.Task, f.Attempt, f.Rank)
		if news := f.Cut != "" && s.cuts != nil && !s.cuts[told]; f.Len == 0 && !f.End && (!s.began || fresh || news) {
			if news {
				s.cuts[told] = true
			}
			s.began = true
			if err := s.fn(LogChunk{LogFrame: f}); err != nil {
				return false, &finalError{err}
			}
		}
		if f.Batch > 0 && f.Len == 0 {
			if err := s.batch(f); err != nil {
				return false, err
			}
		}
		if err := s.data(r, f); err != nil {
			return false, err
		}
		if f.End {
			s.end.Status, s.end.Reason = f.Status, f.Reason
			return true, nil
		}
	}
}

func (s *logReader) data(r *bufio.Reader, f LogFrame) error {
	if f.Len == 0 {
		return nil
	}
	key, _ := s.place(f)
	key += strconv.Itoa(f.Rank) + "/" + f.Phase
	at, first := s.at, f.Offset
	if f.Element != nil {
		at, key, first = s.element(f)
	}
	want, known := at[key]
	off, left := first, int64(f.Len)
	if s.buf == nil {
		s.buf = make([]byte, 32<<10)
	}
	for left > 0 {
		n, err := r.Read(s.buf[:min(left, int64(len(s.buf)))])
		if n > 0 {
			s.progress()
			p := s.buf[:n]
			left -= int64(n)
			start := off
			off += int64(n)
			if known && start < want { // seen before
				skip := min(want-start, int64(n))
				p, start = p[skip:], start+skip
			}
			if len(p) > 0 {
				c := LogChunk{LogFrame: f, Data: p}
				c.Offset, c.Len = f.Offset+start-first, len(p)
				if known && start > want && f.Batch == 0 {
					c.Lost = start - want
				}
				if err := s.fn(c); err != nil {
					return &finalError{err}
				}
				want, known = off, true
				at[key] = off
			}
		}
		if err == io.EOF && left > 0 {
			return io.ErrUnexpectedEOF
		}
		if err != nil && err != io.EOF {
			return err
		}
	}
	return nil
}

// copyText writes a text stream to w as it comes. A resumable one always starts at the same byte: after a cut it is
// asked for again, and what was written is skipped.
func (c *Client) copyText(ctx context.Context, path string, q url.Values, resumable bool, w io.Writer) error {
	pace := c.newWait()
	var written int64
	for {
		resp, err := c.try(ctx, "GET", path, q, nil, "text/plain")
		if err == nil {
			var n int64
			err = skip(resp.Body, written)
			if err == nil {
				sink := &sinkWriter{w: w}
				n, err = io.Copy(sink, resp.Body)
				if sink.err != nil {
					err = &finalError{sink.err}
				}
			}
			resp.Body.Close()
			if err == nil {
				return nil
			}
			written += n
			if n > 0 {
				pace.reset()
			}
			if !resumable && ctx.Err() == nil {
				return fmt.Errorf("the connection to the server was cut: %w", err)
			}
		}
		if err := pace.next(ctx, err); err != nil {
			return err
		}
	}
}

// skip drops n bytes; a stream that ends before is not at fault here.
func skip(r io.Reader, n int64) error {
	_, err := io.CopyN(io.Discard, r, n)
	if err == io.EOF {
		return nil
	}
	return err
}

// sinkWriter tells a failed writer from a failed connection.
type sinkWriter struct {
	w   io.Writer
	err error
}

func (s *sinkWriter) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	if err != nil {
		s.err = err
	}
	return n, err
}

// ProvisionLogs copies the provision log of a cluster; worker 0 is the whole cluster's, N ≥ 1 that of one worker.
func (c *Client) ProvisionLogs(ctx context.Context, cluster string, worker int, follow bool, w io.Writer) error {
	q := url.Values{}
	if worker > 0 {
		q.Set("worker", strconv.Itoa(worker))
	}
	setBool(q, "follow", follow)
	return c.copyText(ctx, prefix+"/clusters/"+url.PathEscape(cluster)+"/provision_logs", q, true, w)
}

// HookLogs copies the log of a lifecycle hook: event is stop, preemption, down, or "" for whichever there is.
func (c *Client) HookLogs(ctx context.Context, cluster, event string, w io.Writer) error {
	q := url.Values{}
	setString(q, "event", event)
	return c.copyText(ctx, prefix+"/clusters/"+url.PathEscape(cluster)+"/hook_logs", q, true, w)
}

// ServerLog copies the server's own log; tail 0 is all of it.
func (c *Client) ServerLog(ctx context.Context, tail int, follow bool, w io.Writer) error {
	q := url.Values{}
	if tail > 0 {
		q.Set("tail", strconv.Itoa(tail))
	}
	setBool(q, "follow", follow)
	return c.copyText(ctx, prefix+"/server-log", q, false, w)
}
