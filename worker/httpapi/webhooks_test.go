package httpapi

import (
	"net/http"
	"testing"
)

func TestWebhookSecretNeedsTheToken(t *testing.T) {
	e := newEnv(t)
	if v, err := e.client().WebhookSecret(t.Context()); err != nil || v.Secret != "whsec_c2VjcmV0" {
		t.Error(v, err)
	}
	r, _ := e.send("GET", "/api/v1/jobs/webhook-secret", nil)
	if r.StatusCode != http.StatusUnauthorized {
		t.Error(r.Status)
	}
}
