package api

import "context"

// NoticeCounts tells what became of the notifications of a job.
type NoticeCounts struct {
	Delivered int `json:"delivered" doc:"accepted by their receivers"`
	Dropped   int `json:"dropped" doc:"given up, since they were not accepted for 24 hours"`
	Waiting   int `json:"waiting" doc:"still to be accepted"`
}

// WebhookSecret is the answer of GET /api/v1/jobs/webhook-secret.
type WebhookSecret struct {
	Secret string `json:"secret" doc:"what follows whsec_ is the base64 of the key"`
}

// WebhookSecret tells what signs the notifications of managed jobs.
func (c *Client) WebhookSecret(ctx context.Context) (*WebhookSecret, error) {
	out := &WebhookSecret{}
	return out, c.call(ctx, "GET", prefix+"/jobs/webhook-secret", nil, nil, out)
}
