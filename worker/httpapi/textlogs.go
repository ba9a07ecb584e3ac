package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/store"
)

// textWriter writes a plain text stream; nothing is answered before the first write.
type textWriter struct {
	w     http.ResponseWriter
	began bool
}

func (t *textWriter) begin() {
	if t.began {
		return
	}
	t.began = true
	t.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	t.w.Header().Set("Cache-Control", "no-store")
	t.w.Header().Set("X-Accel-Buffering", "no")
	t.w.WriteHeader(http.StatusOK)
}

func (t *textWriter) Write(p []byte) (int, error) {
	t.begin()
	n, err := t.w.Write(p)
	if err == nil {
		err = http.NewResponseController(t.w).Flush()
	}
	return n, err
}

type provisionQuery struct {
	Name   string `path:"name" maxLength:"200"`
	Worker int    `query:"worker" minimum:"0" doc:"only what concerns worker N; 0: everything"`
	Follow bool   `query:"follow" doc:"go on until the cluster is up, or is not to be"`
}

// notProvision are the steps that happen on a cluster that is up.
var notProvision = map[string]bool{"submit": true, "cancel": true, "autostop": true, "preempt": true, "exec": true}

// provisionLogs tells a cluster's bring-up from its timeline.
func (s *Server) provisionLogs(w http.ResponseWriter, r *http.Request, in *provisionQuery) error {
	ctx, cancel := s.streamContext(r.Context())
	defer cancel()
	c, err := s.cluster(ctx, in.Name)
	if err != nil {
		return err
	}
	if in.Worker > 0 && c.Nodes > 0 && in.Worker >= c.Nodes {
		return failure(api.ErrNotFound, "", "cluster %s has no worker %d: it has %d node(s), the head among them", c.Name, in.Worker, c.Nodes)
	}
	told, stop := s.o.Store.Subscribe(store.ClusterTopic(c.Name))
	defer stop()
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	out := &textWriter{w: w}
	out.begin()
	f := store.EventFilter{Cluster: c.Name, Hash: c.Hash, Limit: eventPage}
	for {
		now, cerr := s.o.Store.Cluster(ctx, c.Name)
		for {
			evs, err := s.o.Store.Events(ctx, f)
			if err != nil {
				return s.cutText(ctx, out, err)
			}
			var b bytes.Buffer
			for _, e := range evs {
				f.After = e.ID
				if !notProvision[e.Step] && (in.Worker == 0 || concerns(e, in.Worker)) {
					b.WriteString(provisionLine(e))
				}
			}
			if b.Len() > 0 {
				if _, err := out.Write(b.Bytes()); err != nil {
					return nil
				}
			}
			if len(evs) < eventPage {
				break
			}
		}
		if !in.Follow || cerr != nil || now.Hash != c.Hash || now.Status != api.ClusterInit {
			return nil
		}
		select {
		case <-told:
		case <-poll.C:
		case <-ctx.Done():
			return s.cutText(ctx, out, ctx.Err())
		}
	}
}

// cutText breaks a text stream off, so that its reader sees that it is not whole.
func (s *Server) cutText(ctx context.Context, out *textWriter, err error) error {
	if !out.began {
		return err
	}
	if ctx.Err() == nil {
		s.log.Error("a text stream was cut", "err", err)
	}
	panic(http.ErrAbortHandler)
}

// concerns says whether an event's data names a node's rank.
func concerns(e api.Event, rank int) bool {
	var d struct {
		Rank  *int  `json:"rank"`
		Node  *int  `json:"node"`
		Ranks []int `json:"ranks"`
	}
	if len(e.Data) == 0 || json.Unmarshal(e.Data, &d) != nil {
		return false
	}
	for _, r := range d.Ranks {
		if r == rank {
			return true
		}
	}
	return (d.Rank != nil && *d.Rank == rank) || (d.Node != nil && *d.Node == rank)
}

func provisionLine(e api.Event) string {
	var b strings.Builder
	b.WriteString(e.Time.UTC().Format("2006-01-02 15:04:05"))
	if e.Step != "" {
		fmt.Fprintf(&b, " [%s]", e.Step)
	}
	if e.Attempt > 1 {
		fmt.Fprintf(&b, " attempt %d:", e.Attempt)
	}
	if e.Kind == api.EventError {
		b.WriteString(" error:")
	}
	b.WriteString(" " + strings.ReplaceAll(strings.TrimSpace(e.Message), "\n", "\n    "))
	if e.NextRetry != nil {
		b.WriteString(" (next try " + e.NextRetry.UTC().Format("15:04:05") + ")")
	}
	return b.String() + "\n"
}

type hookQuery struct {
	Name  string `path:"name" maxLength:"200"`
	Event string `query:"event" enum:",stop,preemption,down" doc:"none: whichever there is"`
}

// hookLogs passes on what the hooks printed on the head.
func (s *Server) hookLogs(w http.ResponseWriter, r *http.Request, in *hookQuery) error {
	ctx, cancel := s.streamContext(r.Context())
	defer cancel()
	c, err := s.cluster(ctx, in.Name)
	if err != nil {
		return err
	}
	nodes, err := s.nodes(ctx, c)
	if err != nil {
		return err
	}
	defer closeClients(nodes)
	events := []string{"stop", "preemption", "down"}
	if in.Event != "" {
		events = []string{in.Event}
	}
	for _, ev := range events {
		body, err := nodes[0].Client.HookLog(ctx, ev)
		if agentapi.IsKind(err, agentapi.KindNotFound) {
			continue
		}
		if err != nil {
			return unreachable(c.Name, err)
		}
		defer body.Close()
		out := &textWriter{w: w}
		out.begin()
		if _, err := io.CopyBuffer(out, body, make([]byte, 32<<10)); err != nil {
			return s.cutText(ctx, out, err)
		}
		return nil
	}
	if in.Event != "" {
		return failure(api.ErrNotFound, "", "no %s hook has run on cluster %s", in.Event, c.Name)
	}
	return failure(api.ErrNotFound, "", "no lifecycle hook has run on cluster %s", c.Name)
}

type serverLogQuery struct {
	Tail   int  `query:"tail" minimum:"0" maximum:"10000000" doc:"only the last lines; 0: everything"`
	Follow bool `query:"follow"`
}

// serverLog passes on the server's own log file.
func (s *Server) serverLog(w http.ResponseWriter, r *http.Request, in *serverLogQuery) error {
	ctx, cancel := s.streamContext(r.Context())
	defer cancel()
	f, err := os.Open(s.o.LogPath)
	if errors.Is(err, fs.ErrNotExist) {
		return failure(api.ErrNotFound, "A server started by hand in a terminal logs there.", "this server keeps no log file")
	}
	if err != nil {
		return err
	}
	defer func() { f.Close() }()
	if in.Tail > 0 {
		if err := seekTail(f, in.Tail); err != nil {
			return err
		}
	}
	out := &textWriter{w: w}
	out.begin()
	buf := make([]byte, 32<<10)
	if !in.Follow { // up to where it ends now
		st, err := f.Stat()
		pos, serr := f.Seek(0, io.SeekCurrent)
		if err = errors.Join(err, serr); err == nil {
			_, err = io.CopyBuffer(out, io.LimitReader(f, st.Size()-pos), buf)
		}
		if err != nil {
			return s.cutText(ctx, out, err)
		}
		return nil
	}
	for {
		// Without the file's own WriterTo, which would take another way around the flushes.
		if _, err := io.CopyBuffer(out, struct{ io.Reader }{f}, buf); err != nil {
			return s.cutText(ctx, out, err)
		}
		select {
		case <-time.After(250 * time.Millisecond):
		case <-ctx.Done():
			return nil
		}
		if nf := reopened(f, s.o.LogPath); nf != nil {
			f.Close()
			f = nf
		}
	}
}

// reopened gives the file anew if it was rotated, and starts a truncated one from its beginning.
func reopened(f *os.File, path string) *os.File {
	old, err1 := f.Stat()
	cur, err2 := os.Stat(path)
	if err1 != nil || err2 != nil {
		return nil
	}
	if !os.SameFile(old, cur) {
		nf, err := os.Open(path)
		if err != nil {
			return nil
		}
		return nf
	}
	if pos, err := f.Seek(0, io.SeekCurrent); err == nil && pos > cur.Size() {
		_, _ = f.Seek(0, io.SeekStart)
	}
	return nil
}

// seekTail puts a file at the start of its last n lines, reading backwards in blocks.
func seekTail(f io.ReadSeeker, n int) error {
	const block = 32 << 10
	pos, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	buf := make([]byte, block)
	for end := true; pos > 0; {
		size := min(pos, block)
		pos -= size
		if _, err := f.Seek(pos, io.SeekStart); err != nil {
			return err
		}
		b := buf[:size]
		if _, err := io.ReadFull(f, b); err != nil {
			return err
		}
		for i := len(b) - 1; i >= 0; i-- {
			if b[i] != '\n' {
				end = false
				continue
			}
			if end { // the line end at the end of the file ends no further line
				end = false
				continue
			}
			if n--; n == 0 {
				_, err := f.Seek(pos+int64(i)+1, io.SeekStart)
				return err
			}
		}
	}
	_, err = f.Seek(0, io.SeekStart)
	return err
}
