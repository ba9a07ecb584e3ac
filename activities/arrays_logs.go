package activities

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/providers"
)

// BatchLogs is where the logs of the batches of an array are kept: per batch and rank of the node a file with the output of all
// elements, one after the other, and beside it an index of LogPiece lines, which is written when the first is whole.
func BatchLogs(home string, job int64) string {
	return filepath.Join(filepath.Dir(LogDir(home, job, 0, 0)), "batches")
}

// BatchLogFile names the log of a batch on one node, and its index.
func BatchLogFile(dir string, batch int64, rank int) (log, index string) {
	base := filepath.Join(dir, fmt.Sprintf("%d-%d", batch, rank))
	return base + ".log", base + ".index"
}

// LogPiece is where the output of one element stands in the log of its batch.
type LogPiece struct {
	Element int    `json:"i"`
	Rank    int    `json:"r"` // of the job
	Phase   string `json:"p"`
	Offset  int64  `json:"o"` // bytes
	Len     int64  `json:"n"`
}

// keepBatchLogs copies what the elements of a batch have printed on every node. A log that is there is not fetched again.
func (a *Activities) keepBatchLogs(ctx context.Context, in SettleInput, st agentapi.BatchState) error {
	dir := BatchLogs(a.Home, in.Job)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	p, err := a.provider(in.Nodes.Provider)
	if err != nil {
		return err
	}
	elements := map[int64]int{}
	for _, e := range st.Jobs {
		elements[e.Job.ID] = e.Index
	}
	var errs []error
	for _, n := range in.Nodes.Nodes {
		if err := a.keepNodeBatch(ctx, p, n, dir, st, elements); err != nil {
			errs = append(errs, fmt.Errorf("node %d: %w", n.Rank, err))
		}
	}
	return errors.Join(errs...)
}

func (a *Activities) keepNodeBatch(ctx context.Context, p providers.Provider, n providers.Node, dir string, st agentapi.BatchState, elements map[int64]int) error {
	path, index := BatchLogFile(dir, st.Number, n.Rank)
	if _, err := os.Stat(index); err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	c, err := NodeClient(ctx, p, n)
	if err != nil {
		return err
	}
	defer c.Close()
	body, err := c.BatchLogs(ctx, st.First, st.Last)
	if err != nil {
		return err
	}
	defer body.Close()
	// Attempts of this activity may overlap: each has files of its own until they are whole.
	tmp, err := os.CreateTemp(dir, "part-*.tmp")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	w := bufio.NewWriterSize(tmp, 64<<10)
	pieces, err := copyBatch(w, body, elements)
	if err = errors.Join(err, w.Flush()); err != nil {
		return err
	}
	var lines []byte
	for _, piece := range pieces {
		b, err := json.Marshal(piece)
		if err != nil {
			return err
		}
		lines = append(append(lines, b...), '\n')
	}
	if len(pieces) > 0 {
		if err := os.Rename(tmp.Name(), path); err != nil {
			return err
		}
	}
	part := tmp.Name() + ".index"
	if err := os.WriteFile(part, lines, 0o600); err != nil {
		return err
	}
	return os.Rename(part, index)
}

// copyBatch writes the output of the jobs in a stream of streams, and tells where each stands.
func copyBatch(w io.Writer, body io.Reader, elements map[int64]int) (pieces []LogPiece, err error) {
	r := bufio.NewReaderSize(body, 64<<10)
	var at int64
	for {
		if _, err := r.Peek(1); err == io.EOF {
			return pieces, nil
		}
		one := agentapi.NewLogReader(r)
		element, known := 0, false
		for {
			h, data, err := one.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				return nil, err
			}
			if h.JobID > 0 {
				element, known = elements[h.JobID]
			}
			if h.Len == 0 || h.Phase == "" || !known {
				continue
			}
			n, err := io.Copy(w, data)
			if err != nil {
				return nil, err
			}
			if k := len(pieces); k > 0 && pieces[k-1].Element == element && pieces[k-1].Phase == h.Phase && pieces[k-1].Rank == h.Rank {
				pieces[k-1].Len += n
			} else {
				pieces = append(pieces, LogPiece{Element: element, Rank: h.Rank, Phase: h.Phase, Offset: at, Len: n})
			}
			at += n
		}
	}
}
