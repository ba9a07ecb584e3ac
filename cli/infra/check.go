package infra

import (
	"context"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/flags"
	"github.com/skyloom/skyloom/cli/follow"
	"github.com/skyloom/skyloom/cli/session"
)

// CheckOptions is `sky check`.
type CheckOptions struct {
	Clouds    []string
	Verbose   bool
	Workspace string
	Output    string
}

// NewCheck makes `sky check`.
func NewCheck(s *session.Session, run func(context.Context, *session.Session, *CheckOptions) error) *cobra.Command {
	o := &CheckOptions{}
	if run == nil {
		run = Check
	}
	cmd := &cobra.Command{
		Use:     "check [INFRA...]",
		Short:   "See which infra can be used",
		Long:    "See which infra can be used, and what is missing for the rest.",
		Example: "  sky check\n  sky check local aws -v\n  sky check -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, a := range args { // of aws/us-east-1 or ssh/POOL the infra
				name, _, _ := strings.Cut(strings.ToLower(a), "/")
				if name == "k8s" {
					name = "kubernetes"
				}
				if !slices.Contains(o.Clouds, name) {
					o.Clouds = append(o.Clouds, name)
				}
			}
			return run(cmd.Context(), s, o)
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&o.Verbose, "verbose", "v", false, "say more about each")
	fs.StringVarP(&o.Workspace, "workspace", "w", "", "only for the workspace `NAME` (default all)")
	flags.Output(fs, &o.Output)
	return cmd
}

// Check asks which infra can be used.
func Check(ctx context.Context, s *session.Session, o *CheckOptions) error {
	c, err := s.Client(ctx)
	if err != nil {
		return err
	}
	b, err := s.Base()
	if err != nil {
		return err
	}
	b.Workspace = o.Workspace
	ref, err := c.Check(ctx, &api.CheckBody{Base: b, Clouds: o.Clouds, Verbose: o.Verbose})
	if err != nil {
		return err
	}
	r, err := follow.Wait(ctx, s, c, ref, follow.Options{})
	if err != nil {
		return err
	}
	res, err := follow.Result[api.CheckResult](r)
	if err != nil {
		return err
	}
	if o.Output == "json" {
		enabled := map[string]map[string][]string{}
		for ws, m := range res.Enabled {
			if o.Workspace == "" || ws == o.Workspace {
				enabled[ws] = m
			}
		}
		return s.PrintJSON(enabled)
	}
	printCheck(s, o, &res)
	s.IO.Printf("\nUsing Skyloom API server: %s\n", c.Endpoint())
	return nil
}

func printCheck(s *session.Session, o *CheckOptions, res *api.CheckResult) {
	io := s.IO
	var enabled []string
	for _, i := range res.Infras {
		mark, state := io.OutStyle(session.Red, "✗"), "disabled"
		if i.Enabled {
			mark, state = io.OutStyle(session.Green, "✓"), "enabled"
			enabled = append(enabled, i.Name)
			if len(i.Capabilities) > 0 {
				state += " [" + strings.Join(i.Capabilities, ", ") + "]"
			}
		}
		io.Printf("%s %s: %s\n", mark, io.OutStyle(session.Bold, i.Name), state)
		if i.Reason != "" && (!i.Enabled || o.Verbose) {
			io.Printf("    %s\n", indent(i.Reason))
		}
		if i.Hint != "" && (!i.Enabled || o.Verbose) {
			io.Printf("    %s\n", indent(i.Hint))
		}
		if o.Verbose {
			for _, d := range i.Details {
				io.Printf("    %s\n", indent(d))
			}
		}
	}
	io.Printf("\n")
	if len(enabled) == 0 {
		io.Printf("%s\n", io.OutStyle(session.Yellow, "No infra can be used."))
		return
	}
	io.Printf("Enabled infra: %s\n", strings.Join(enabled, ", "))
}

func indent(s string) string { return strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n    ") }
