package jobs

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/cli/session"
)

// WebhookSecretOptions is `sky jobs webhook-secret`.
type WebhookSecretOptions struct {
	Output string
}

// NewWebhookSecret makes `sky jobs webhook-secret`.
func NewWebhookSecret(s *session.Session, run func(context.Context, *session.Session, *WebhookSecretOptions) error) *cobra.Command {
	o := &WebhookSecretOptions{}
	if run == nil {
		run = ShowWebhookSecret
	}
	cmd := &cobra.Command{
		Use:   "webhook-secret",
		Short: "Show what signs the notifications of managed jobs",
		Long: `Show the secret that signs what sky jobs launch --notify URL posts. Receivers check it as
the Standard Webhooks specification says: webhook-signature is "v1," and the base64 of
HMAC-SHA256 over webhook-id, webhook-timestamp and body, joined by dots; the key is the
base64 after whsec_. Setting jobs.webhook_secret in the server's config.yaml replaces it.`,
		Example: "  sky jobs webhook-secret",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return session.Usagef("sky jobs webhook-secret takes no arguments")
			}
			return run(cmd.Context(), s, o)
		},
	}
	addOutput(cmd.Flags(), &o.Output)
	return cmd
}

// ShowWebhookSecret prints the secret.
func ShowWebhookSecret(ctx context.Context, s *session.Session, o *WebhookSecretOptions) error {
	c, err := s.Client(ctx)
	if err != nil {
		return err
	}
	v, err := c.WebhookSecret(ctx)
	if err != nil {
		return err
	}
	if o.Output == "json" {
		return s.PrintJSON(v)
	}
	s.IO.Printf("%s\n", v.Secret)
	return nil
}
