package apiserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/session"
	"github.com/skyloom/skyloom/internal/config"
)

// LoginOptions is `sky api login`.
type LoginOptions struct {
	Endpoint  string
	Token     string
	Relogin   bool
	NoBrowser bool
}

// NewLogin makes `sky api login`.
func NewLogin(s *session.Session, run func(context.Context, *session.Session, *LoginOptions) error) *cobra.Command {
	o := &LoginOptions{}
	if run == nil {
		run = Login
	}
	cmd := &cobra.Command{
		Use:   "login",
		Short: "Use an API server elsewhere",
		Long: `Use an API server elsewhere: its address, and a token if given, are kept in the user's
configuration file.`,
		Example: "  sky api login -e https://sky.example.com --token sky_...",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, args []string) error { return run(cmd.Context(), s, o) },
	}
	fs := cmd.Flags()
	fs.StringVarP(&o.Endpoint, "endpoint", "e", "", "the `URL` of the server")
	fs.StringVarP(&o.Token, "token", "t", "", "a service account's token, `sky_...`")
	fs.StringVar(&o.Token, "service-account-token", "", "")
	fs.Lookup("service-account-token").Hidden = true
	fs.BoolVar(&o.Relogin, "relogin", false, "log in anew even if the present login is good")
	fs.BoolVar(&o.NoBrowser, "no-browser", false, "don't open a browser")
	return cmd
}

// userFile is the configuration file to edit. Where only the older product's file is in effect, our own is made from
// it, so that its settings stay in effect.
func userFile(s *session.Session) (string, error) {
	env, err := s.ConfigEnv()
	if err != nil {
		return "", err
	}
	for _, name := range []string{"SKYPILOT_GLOBAL_CONFIG", "SKYPILOT_CONFIG"} {
		if v := s.Env(name); v != "" {
			if !filepath.IsAbs(v) {
				v = filepath.Join(s.Dir, v)
			}
			return v, nil
		}
	}
	path, exists := env.UserFile()
	own := filepath.Join(env.Home, config.FileName)
	if !exists || path == own {
		return own, os.MkdirAll(env.Home, 0o700)
	}
	data, err := os.ReadFile(path)
	if err == nil {
		err = os.MkdirAll(env.Home, 0o700)
	}
	if err == nil {
		err = os.WriteFile(own, data, 0o600)
	}
	if err != nil {
		return "", fmt.Errorf("%s could not be copied to %s: %w", path, own, err)
	}
	s.IO.Notef("Copied the settings of %s to %s.", path, own)
	return own, nil
}

// Login stores the address of a server.
func Login(ctx context.Context, s *session.Session, o *LoginOptions) error {
	if o.Endpoint == "" && s.IO.InTTY {
		var err error
		if o.Endpoint, err = s.IO.Ask("Address of the API server (https://...): "); err != nil {
			return err
		}
	}
	if o.Endpoint == "" {
		return session.Usagef("which server? sky api login -e URL")
	}
	ep, err := session.CheckEndpoint(o.Endpoint, "--endpoint")
	if err != nil {
		return session.Usagef("%v", err)
	}
	token := o.Token
	if token == "" {
		token = s.Env(session.EnvToken)
	}
	if token != "" && !strings.HasPrefix(token, "sky_") && o.Token != "" {
		return session.Usagef("--token: a service account's token begins with sky_")
	}
	c := api.NewClient(ep, token, api.WithPatience(2*time.Second))
	h, err := c.Health(ctx)
	var answer *api.Error
	if err != nil && !errors.As(err, &answer) {
		return fmt.Errorf("no Skyloom server answers at %s: %w", ep, err)
	}
	if err != nil || h.Product != api.Product {
		return fmt.Errorf("what answers at %s is no Skyloom server\nIs it another product's? The address is not stored.", ep)
	}
	if h.APIVersion < api.MinVersion {
		return fmt.Errorf("the server at %s is too old (API version %d; this client needs %d or newer)", ep, h.APIVersion, api.MinVersion)
	}
	if _, err := c.Info(ctx); err != nil {
		var ae *api.Error
		if errors.As(err, &ae) && ae.Kind == api.ErrAuth {
			if token == "" {
				return fmt.Errorf("the server at %s wants a login\nGive a token: sky api login -e %s --token sky_...", ep, ep)
			}
			return fmt.Errorf("the server at %s refuses the token\nAsk its administrator for a new one.", ep)
		}
		return err
	}
	path, err := userFile(s)
	if err != nil {
		return err
	}
	set, unset := map[string]string{"api_server.endpoint": ep}, []string(nil)
	if o.Token != "" {
		set["api_server.service_account_token"] = o.Token
	} else {
		unset = []string{"api_server.service_account_token"}
	}
	if err := config.Edit(path, set, unset); err != nil {
		return err
	}
	s.IO.Printf("Using the API server at %s (version %s).\n", ep, h.Version)
	s.IO.Notef("Stored in %s. Back to the local server: sky api logout", path)
	if env := s.Env(session.EnvEndpoint); env != "" && env != ep {
		s.IO.Warnf("%s=%s is set and goes before it.", session.EnvEndpoint, env)
	}
	return nil
}

// NewLogout makes `sky api logout`.
func NewLogout(s *session.Session, run func(context.Context, *session.Session) error) *cobra.Command {
	if run == nil {
		run = Logout
	}
	return &cobra.Command{
		Use:   "logout",
		Short: "Go back to the local API server",
		Long:  "Forget the address and the token of a server elsewhere.",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, args []string) error { return run(cmd.Context(), s) },
	}
}

// Logout forgets the stored server.
func Logout(ctx context.Context, s *session.Session) error {
	cfg, err := s.Config()
	if err != nil {
		return err
	}
	_, had := cfg.Get("api_server.endpoint")
	_, hadToken := cfg.Get("api_server.service_account_token")
	if !had && !hadToken {
		s.IO.Printf("Not logged in to a server elsewhere.\n")
		return nil
	}
	path, err := userFile(s)
	if err != nil {
		return err
	}
	if err := config.Edit(path, nil, []string{"api_server.endpoint", "api_server.service_account_token"}); err != nil {
		return err
	}
	s.IO.Printf("Logged out. Commands use the local API server again.\n")
	if env := s.Env(session.EnvEndpoint); env != "" {
		s.IO.Warnf("%s=%s is still set.", session.EnvEndpoint, env)
	}
	return nil
}
