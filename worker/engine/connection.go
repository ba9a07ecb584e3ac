package engine

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"go.temporal.io/api/serviceerror"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// maxMessage bounds what the engine may send us: a page of history is at most a few MB.
const maxMessage = 64 << 20

// dialFrontend prepares a connection that adds our API key to each call. It does not connect yet.
func dialFrontend(address string, tlsConfig *tls.Config, apiKey func(context.Context) (string, error)) (*grpc.ClientConn, error) {
	transport := insecure.NewCredentials()
	if tlsConfig != nil {
		transport = credentials.NewTLS(tlsConfig.Clone())
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
	}
	if apiKey != nil {
		options = append(options, grpc.WithUnaryInterceptor(withAPIKey(apiKey)))
	}
	conn, err := grpc.NewClient("passthrough:///"+address, options...)
	if err != nil {
		return nil, fmt.Errorf("engine: connect to %s: %w", address, err)
	}
	return conn, nil
}

// withAPIKey replaces whatever authorization the caller's context carries: the engine knows nobody but us.
func withAPIKey(apiKey func(context.Context) (string, error)) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		key, err := apiKey(ctx)
		if err != nil {
			return err
		}
		md, _ := metadata.FromOutgoingContext(ctx)
		md = md.Copy()
		if md == nil {
			md = metadata.MD{}
		}
		md.Delete("authorization")
		if key != "" {
			md.Set("authorization", "Bearer "+key)
		}
		return invoke(metadata.NewOutgoingContext(ctx, md), method, req, reply, cc, opts...)
	}
}

// permanent marks an error that waiting does not cure.
type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

// retry calls do until it succeeds, fails for good, or ctx ends.
func (e *Engine) retry(ctx context.Context, do func(context.Context) error) error {
	wait := 10 * time.Millisecond
	for {
		attempt, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := do(attempt)
		cancel()
		if err == nil {
			return nil
		}
		switch code := serviceerror.ToStatus(err).Code(); {
		case code == codes.PermissionDenied || code == codes.Unauthenticated:
			return fmt.Errorf("workflow engine at %s: %w: it does not accept our API key or client certificate", e.address, err)
		case isPermanent(err):
			return fmt.Errorf("workflow engine at %s: %w", e.address, err)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("workflow engine at %s is not ready: %w (last answer: %w)", e.address, ctx.Err(), err)
		case <-timer.C:
		}
		wait = min(wait*2, time.Second)
	}
}

func isPermanent(err error) bool {
	var p permanent
	if errors.As(err, &p) {
		return true
	}
	return serviceerror.ToStatus(err).Code() == codes.Unimplemented
}

// statusOf is nil for a nil error: serviceerror.FromStatus then gives nil too.
func statusOf(err error) *status.Status {
	s, _ := status.FromError(err)
	return s
}
