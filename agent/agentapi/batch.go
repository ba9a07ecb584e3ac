package agentapi

import (
	"context"
	"fmt"
	"io"

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
// begun by a frame that names the job and ended by an End frame; see NewLogReader. Jobs unknown here are passed over.
func (c *Client) BatchLogs(ctx context.Context, first, last int64) (io.ReadCloser, error) {
	return c.open(ctx, "GET", fmt.Sprintf("/v1/logs?first=%d&last=%d", first, last), nil, "")
}
