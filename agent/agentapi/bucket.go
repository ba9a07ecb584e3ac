package agentapi

import "context"

// BlobPut is a file of the picture last taken, or a part of one, and where it is to be PUT. The URL carries its own permission.
type BlobPut struct {
	Hash   string `json:"hash"` // of the whole file
	Offset int64  `json:"offset,omitempty"`
	Size   int64  `json:"size"` // bytes
	Part   bool   `json:"part,omitempty"`
	URL    string `json:"url"`
}

// BlobsPut is POST /v1/checkpoint/put: send content of the picture last taken to an object store.
type BlobsPut struct {
	JobID    int64     `json:"job_id"`
	Epoch    int64     `json:"epoch"`
	Ended    bool      `json:"ended,omitempty"` // as for the picture
	Manifest string    `json:"manifest"`
	Puts     []BlobPut `json:"puts"`
}

// BlobGet is a blob, and from where it is to be got.
type BlobGet struct {
	Hash string `json:"hash"`
	Size int64  `json:"size"` // bytes
	URL  string `json:"url"`
}

// BlobsGet is POST /v1/files/get: get blobs of a plan from an object store. They are checked, and wait for the apply.
type BlobsGet struct {
	Gets []BlobGet `json:"gets"`
}

// PutBlobs has the node send content to an object store; it answers once all of it is there. Errors: KindNotFound (another picture
// was taken since), KindStaleEpoch, KindConflict (the job has ended, or a file has changed since the picture), KindBucket. What was
// sent before an error stays.
func (c *Client) PutBlobs(ctx context.Context, p BlobsPut) error {
	_, err := call[struct{}](ctx, c, "POST", "/v1/checkpoint/put", p)
	return err
}

// GetBlobs has the node get blobs from an object store. Errors: KindBucket, KindDiskFull. What arrived before an error stays.
func (c *Client) GetBlobs(ctx context.Context, g BlobsGet) error {
	_, err := call[struct{}](ctx, c, "POST", "/v1/files/get", g)
	return err
}
