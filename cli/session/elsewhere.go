package session

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/skyloom/skyloom/api"
)

// explainPatience is how long a server that gave an error may take to say what it is.
const explainPatience = 3 * time.Second

// Explain adds to the error of a command what a person needs to know if the server was chosen: where its address comes
// from if it can't be reached, and that it is another product's if it is. Any other error comes back as it is.
func (s *Session) Explain(ctx context.Context, err error) error {
	ep, from, eerr := s.endpoint()
	if eerr != nil || ep == "" {
		return err
	}
	back := "To use the server of this machine: sky api logout"
	if from == EnvEndpoint {
		back = "To use the server of this machine: unset " + EnvEndpoint
	}
	var gone *api.Unreachable
	var answer *api.Error
	switch {
	case errors.As(err, &gone) && gone.Endpoint == ep:
		return fmt.Errorf("%w\nIts address comes from %s. %s", err, from, back)
	case !errors.As(err, &answer), answer.Kind == api.ErrAuth:
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, explainPatience)
	defer cancel()
	h, herr := api.NewClient(ep, "", append(s.options(), api.WithPatience(0))...).Health(ctx)
	if herr == nil && h.Product == api.Product {
		return err
	}
	if herr != nil && !errors.As(herr, &answer) {
		return err
	}
	return fmt.Errorf("what answers at %s is no Skyloom server, but another product's (it said: %s)\nIts address comes from %s. %s", ep, said(err), from, back)
}

// said is what a server that isn't ours answered, in a line.
func said(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}
