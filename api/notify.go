package api

import "context"

// WebhookSecret is the answer of GET /api/v1/jobs/webhook-secret.
type WebhookSecret struct {
	Secret string `json:"secret" doc:"what follows whsec_ is the base64 of the key"`
}

// WebhookSecret tells what signs the notifications of managed jobs.
func (c *Client) WebhookSecret(ctx context.Context) (*WebhookSecret, error) {
	out := &WebhookSecret{}
	return out, c.call(ctx, "GET", prefix+"/jobs/webhook-secret", nil, nil, out)
}
