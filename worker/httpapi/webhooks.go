package httpapi

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/skyloom/skyloom/api"
)

func (s *Server) webhookRoutes(h huma.API) {
	op := operation("GET", "/jobs/webhook-secret", "webhook-secret", managedTag, "What signs the notifications of managed jobs; needs the token")
	get(h, op, s, func(ctx context.Context, _ *empty) (api.WebhookSecret, error) {
		if accessOf(ctx) != accessToken {
			return api.WebhookSecret{}, problem(http.StatusForbidden, "the webhook secret is shown to holders of the token only", "Run: sky jobs webhook-secret")
		}
		v, err := s.be().WebhookSecret(ctx)
		return api.WebhookSecret{Secret: v}, err
	})
}
