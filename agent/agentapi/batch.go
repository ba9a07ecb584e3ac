package agentapi

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/skyloom/skyloom/api"
)

// JobBatch is POST /v1/batches on the head node: a job for each of some elements of an array.
type JobBatch struct {
	// Number makes it idempotent. Numbers rise: one that is not above all those taken before queues nothing.
	Number int64 `json:"number"`
	// Spec is what the jobs have in common: a run, and no setup. Each gets Key and TaskID with its element behind a slash or dash.
	Spec     JobSpec        `json:"spec"`
	Elements []BatchElement `json:"elements"`
}

// BatchElement is what one job of a batch has for itself.
type BatchElement struct {
	Index int               `json:"index"`
	Envs  map[string]string `json:"envs,omitempty"` // besides those of the spec
}

// BatchState is how the jobs of a batch stand: GET /v1/batches/{number}, KindNotFound if it was forgotten. Taking a batch is answered
// by it too, then without Jobs; a batch that was taken and forgotten has no First.
type BatchState struct {
	Number int64 `json:"number"`
	// First and Last are the numbers of its jobs, in the order of its elements.
	First int64 `json:"first,omitempty"`
	Last  int64 `json:"last,omitempty"`
	// Slots is how many of the jobs the cluster runs at once.
	Slots int `json:"slots,omitempty"`
	// Open is how many have not ended.
	Open int          `json:"open"`
	Jobs []ElementJob `json:"jobs,omitempty"`
}

// ElementJob is the job of one element.
type ElementJob struct {
	Index int     `json:"index"`
	Job   api.Job `json:"job"`
}

// Element says in an event which element of which batch a job is for.
type Element struct {
	Batch int64 `json:"batch"`
	Index int   `json:"index"`
}

// EventBatch tells that every job of a batch has ended.
const EventBatch EventType = "batch"

// SubmitBatch queues the jobs of a batch on the head, once. Errors are those of Submit.
func (c *Client) SubmitBatch(ctx context.Context, b JobBatch) (BatchState, error) {
	return call[BatchState](ctx, c, "POST", "/v1/batches", b)
}

// Batch tells how the jobs of a batch stand, or KindNotFound.
func (c *Client) Batch(ctx context.Context, number int64) (BatchState, error) {
	return call[BatchState](ctx, c, "GET", fmt.Sprintf("/v1/batches/%d", number), nil)
}

// ForgetBatches drops the batches up to a number whose jobs have all ended, with their logs, on every node. Repeatable: what is
// still ending is dropped by a later call.
func (c *Client) ForgetBatches(ctx context.Context, upTo int64) error {
	_, err := call[struct{}](ctx, c, "DELETE", fmt.Sprintf("/v1/batches/%d", upTo), nil)
	return err
}

// BatchLogs reads what the jobs of a range of numbers have printed on this node: their framed streams, one after the other, each
// begun by a frame that names the job and ended by an End frame; see NewLogReader. Jobs unknown here are passed over, and what is kept
// already of their runs; an agent that knows no such thing sends it all the same.
func (c *Client) BatchLogs(ctx context.Context, first, last int64, kept KeptOutput) (io.ReadCloser, error) {
	path := fmt.Sprintf("/v1/logs?first=%d&last=%d", first, last)
	if len(kept) > 0 {
		path += "&kept=" + kept.String()
	}
	return c.open(ctx, "GET", path, nil, "")
}

// BatchBytes is output of elements of a batch on this node: the bytes of the pieces stand in Data one after the other.
type BatchBytes struct {
	Batch  int64         `json:"batch"`
	Pieces []OutputPiece `json:"pieces"`
	Data   []byte        `json:"data"`
}

// OutputPiece is a part of the raw log of the run of an element's job.
type OutputPiece struct {
	Element int   `json:"element"`
	Rank    int   `json:"rank"` // of the job
	Offset  int64 `json:"offset"`
	Len     int64 `json:"len"`
}

// RunPhase is the phase of a job that OutputPiece and KeptOutput speak of: elements have no setup.
const RunPhase = "run"

// KeptOutput tells of elements how many bytes of their run's output need not be sent. As text it reads BATCH.INDEX:BYTES,…
type KeptOutput map[Element]int64

// String is fit for the query of an address.
func (k KeptOutput) String() string {
	parts := make([]string, 0, len(k))
	for e, n := range k {
		parts = append(parts, fmt.Sprintf("%d.%d:%d", e.Batch, e.Index, n))
	}
	slices.Sort(parts)
	return strings.Join(parts, ",")
}

// ParseKeptOutput reads what String wrote.
func ParseKeptOutput(text string) (KeptOutput, error) {
	out := KeptOutput{}
	if text == "" {
		return out, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		var e Element
		var n int64
		if _, err := fmt.Sscanf(part, "%d.%d:%d", &e.Batch, &e.Index, &n); err != nil || n < 0 {
			return nil, fmt.Errorf("%q does not read BATCH.INDEX:BYTES", part)
		}
		out[e] = n
	}
	return out, nil
}
