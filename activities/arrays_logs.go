package activities

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/internal/batchlog"
	"github.com/skyloom/skyloom/providers"
)

// BatchLogs is where the logs of the batches of an array are kept, as internal/batchlog does.
func BatchLogs(home string, job int64) string {
	return filepath.Join(filepath.Dir(LogDir(home, job, 0, 0)), "batches")
}

const (
	// manyKept is from how many bytes on an agent is told that they are kept already; what is less may come twice.
	manyKept = 64 << 10
	// mostTold bounds of how many outputs it is told.
	mostTold = 200
	// gatherLog is how much of a batch's log is gathered before it is written, in bytes.
	gatherLog = 1 << 20
)

// KeptOutput tells an agent what need not be sent of the outputs of batches on its node: of the longest ones.
func KeptOutput(dir string, logs ...batchlog.ID) (agentapi.KeptOutput, error) {
	type one struct {
		e agentapi.Element
		n int64
	}
	var all []one
	for _, id := range logs {
		have, err := batchlog.Have(dir, id, manyKept)
		if err != nil {
			return nil, err
		}
		for o, n := range have {
			all = append(all, one{agentapi.Element{Batch: id.Batch, Index: o.Element}, n})
		}
	}
	slices.SortFunc(all, func(a, b one) int { return int(b.n/manyKept - a.n/manyKept) })
	out := agentapi.KeptOutput{}
	for _, o := range all[:min(len(all), mostTold)] {
		out[o.e] = o.n
	}
	return out, nil
}

// keepBatchLogs brings what is missing of what the elements of a batch have printed, on every node. A log that is whole is not
// fetched again; one that can't be brought to its end says so.
func (a *Activities) keepBatchLogs(ctx context.Context, in SettleInput, st agentapi.BatchState) error {
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
		w := batchlog.NewWriter(BatchLogs(a.Home, in.Job), batchlog.ID{Batch: st.Number, Rank: n.Rank})
		cut := ""
		if err := a.keepNodeBatch(ctx, p, n, w, in.Job, st, elements); err != nil {
			errs = append(errs, fmt.Errorf("node %d: %w", n.Rank, err))
			cut = cutReason(err)
		}
		if err := ctx.Err(); err != nil {
			return err // it is tried again
		}
		errs = append(errs, w.Finish(cut))
	}
	return errors.Join(errs...)
}

// closeBatchLogs leaves the logs of a batch as they are: its cluster is gone.
func (a *Activities) closeBatchLogs(in SettleInput) error {
	dir := BatchLogs(a.Home, in.Job)
	ids, err := batchlog.Growing(dir, in.Batch)
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range append(ids, batchlog.ID{Batch: in.Batch}) { // that of the head also if nothing was printed
		errs = append(errs, batchlog.NewWriter(dir, id).Finish(in.Lost))
	}
	return errors.Join(errs...)
}

func (a *Activities) keepNodeBatch(ctx context.Context, p providers.Provider, n providers.Node, w *batchlog.Writer, job int64, st agentapi.BatchState, elements map[int64]int) error {
	id := batchlog.ID{Batch: st.Number, Rank: n.Rank}
	dir := BatchLogs(a.Home, job)
	if batchlog.IsWhole(dir, id) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	c, err := NodeClient(ctx, p, n)
	if err != nil {
		return err
	}
	defer c.Close()
	kept, err := KeptOutput(dir, id)
	if err != nil {
		return err
	}
	body, err := c.BatchLogs(ctx, st.First, st.Last, kept)
	if err != nil {
		return err
	}
	defer body.Close()
	return copyBatch(w, body, elements)
}

// copyBatch keeps the output of the jobs in a stream of streams.
func copyBatch(w *batchlog.Writer, body io.Reader, elements map[int64]int) error {
	r := bufio.NewReaderSize(body, 64<<10)
	var outputs []batchlog.Output
	var gathered bytes.Buffer
	write := func() error {
		if len(outputs) == 0 {
			return nil
		}
		err := w.Append(outputs, &gathered)
		outputs = outputs[:0]
		gathered.Reset()
		return err
	}
	for {
		if _, err := r.Peek(1); err == io.EOF {
			return write()
		}
		one := agentapi.NewLogReader(r)
		element, known := 0, false
		for {
			h, data, err := one.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				return errors.Join(err, write())
			}
			if h.JobID > 0 {
				element, known = elements[h.JobID]
			}
			if h.Len == 0 || h.Phase == "" || !known {
				continue
			}
			n, err := io.Copy(&gathered, data)
			if err != nil {
				return err
			}
			outputs = append(outputs, batchlog.Output{Element: element, Rank: h.Rank, Phase: h.Phase, Offset: h.Offset, Len: n})
			if gathered.Len() >= gatherLog {
				if err := write(); err != nil {
					return err
				}
			}
		}
	}
}
