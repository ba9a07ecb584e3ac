package agentapi

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
)

// CheckpointSpec is POST /v1/checkpoint: take a picture of a folder of a job on this node.
type CheckpointSpec struct {
	JobID int64 `json:"job_id"`
	// Epoch is that of the attempt: one that is over is refused with KindStaleEpoch.
	Epoch int64  `json:"epoch"`
	Path  string `json:"path"` // absolute, or below ~, or relative to the folder that commands run in
	// Signal is given to those processes of the job that handle it; without SIG. Command is run in the job's environment.
	Signal  string `json:"signal,omitempty"`
	Command string `json:"command,omitempty"`
	// Ended takes the picture also when the job has ended here.
	Ended bool `json:"ended,omitempty"`
	// Seconds bounds the whole; 0: a minute. After a spot notice it is the time that is left.
	Seconds int `json:"seconds,omitempty"`
}

// CheckpointReply tells what the folder held.
type CheckpointReply struct {
	ID        string   `json:"id"`       // of the manifest
	Manifest  []byte   `json:"manifest"` // encoded
	Files     int      `json:"files"`
	Bytes     int64    `json:"bytes"`
	Signalled int      `json:"signalled,omitempty"` // processes that got the signal
	Warnings  []string `json:"warnings,omitempty"`
	// Taken rises from picture to picture of a node: microseconds of its clock.
	Taken int64 `json:"taken,omitempty"`
}

// BlobsRead is POST /v1/files/read: the content of the picture last taken. The answer is a pack.
type BlobsRead struct {
	Manifest string   `json:"manifest"`
	Hashes   []string `json:"hashes"`
}

// Checkpoint takes a picture of a job's folder. Errors: KindNotFound (no such job or folder here), KindEnded (the job has ended),
// KindConflict (the folder never was quiet), KindStaleEpoch, KindInvalid.
func (c *Client) Checkpoint(ctx context.Context, s CheckpointSpec) (CheckpointReply, error) {
	return call[CheckpointReply](ctx, c, "POST", "/v1/checkpoint", s)
}

// ReadBlobs reads content of the picture last taken as a pack. KindNotFound: another one was taken since. A file that has
// changed since cuts the stream, which the reader of the pack notices.
func (c *Client) ReadBlobs(ctx context.Context, r BlobsRead) (io.ReadCloser, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	return c.open(ctx, "POST", "/v1/files/read", bytes.NewReader(b), "application/json")
}
