// Package events holds `sky events`: the timeline of what happened to a cluster or a request, and why.
package events

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/flags"
	"github.com/skyloom/skyloom/cli/follow"
	"github.com/skyloom/skyloom/cli/session"
)

// Options is `sky events`.
type Options struct {
	Target string // a cluster's name, or a request's id or its beginning
	Follow bool
	Limit  int // newest events; 0: all
	Output string
}

// New makes `sky events`.
func New(s *session.Session, run func(context.Context, *session.Session, *Options) error) *cobra.Command {
	o := &Options{}
	if run == nil {
		run = Run
	}
	cmd := &cobra.Command{
		Use:   "events CLUSTER|REQUEST",
		Short: "Show what happened to a cluster or a request, and why",
		Long: `Show the timeline of a cluster or a request: steps, attempts, errors, and when the next
try is. A request is named by its id or the beginning of it.`,
		Example: "  sky events mycluster\n  sky events 1f2e3d4c -f\n  sky events mycluster -o json",
		ValidArgsFunction: func(cmd *cobra.Command, args []string, inc string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			names := s.Complete(cmd.Context(), "cluster_name", inc)
			return append(names, s.Complete(cmd.Context(), "api_request", inc)...), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return session.Usagef("exactly one cluster or request: sky events CLUSTER|REQUEST")
			}
			if o.Limit < 0 {
				return session.Usagef("--limit must be 0 or more")
			}
			o.Target = args[0]
			return run(cmd.Context(), s, o)
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&o.Follow, "follow", "f", false, "go on with what happens from now on")
	fs.IntVarP(&o.Limit, "limit", "l", 0, "only the last `N`; 0 is all")
	flags.Output(fs, &o.Output)
	return cmd
}

var requestID = regexp.MustCompile(`^[0-9a-f]{4,8}(-[0-9a-f-]{0,28})?$`)

// Run shows events.
func Run(ctx context.Context, s *session.Session, o *Options) error {
	c, err := s.Client(ctx)
	if err != nil {
		return err
	}
	f, err := target(ctx, c, o.Target)
	if err != nil {
		return err
	}
	f.Limit = o.Limit
	list, err := c.Events(ctx, f)
	if err != nil {
		return err
	}
	if o.Output == "json" && !o.Follow {
		if list == nil {
			list = []api.Event{}
		}
		return s.PrintJSON(list)
	}
	p := NewPrinter(s, o.Output == "json")
	p.showRequest = f.Cluster != ""
	for _, e := range list {
		if err := p.Print(e); err != nil {
			return err
		}
		f.After = max(f.After, e.ID)
	}
	if !o.Follow {
		if len(list) == 0 {
			s.IO.Notef("No events.")
		}
		return nil
	}
	f.Limit = 0
	if f.Request != "" { // ends with the request
		_, err = c.FollowRequest(ctx, f.Request, f.After, p.Print)
	} else {
		err = c.FollowEvents(ctx, f, p.Print)
	}
	if ctx.Err() != nil {
		return session.Exit(follow.ExitInterrupted)
	}
	return err
}

// target tells a cluster from a request. What could be both is a cluster if there is one.
func target(ctx context.Context, c *api.Client, name string) (api.EventFilter, error) {
	if requestID.MatchString(name) {
		if len(name) < 36 {
			if _, err := c.Cluster(ctx, name); err == nil {
				return api.EventFilter{Cluster: name}, nil
			}
		}
		r, err := c.Request(ctx, name, 0)
		if err != nil {
			return api.EventFilter{}, err
		}
		return api.EventFilter{Request: r.ID}, nil
	}
	return api.EventFilter{Cluster: name}, nil
}

// Printer prints events one by one, a line each, or a JSON object each.
type Printer struct {
	s           *session.Session
	json        bool
	showRequest bool
	day         string
}

// NewPrinter makes a Printer of lines, or of JSON.
func NewPrinter(s *session.Session, json bool) *Printer { return &Printer{s: s, json: json} }

// Print prints one event.
func (p *Printer) Print(e api.Event) error {
	if p.json {
		enc := json.NewEncoder(p.s.IO.Out)
		enc.SetEscapeHTML(false)
		return enc.Encode(e)
	}
	if e.Kind == api.EventDone && e.Message == "" {
		return nil
	}
	t := e.Time.Local()
	if day := t.Format("2006-01-02"); day != p.day {
		p.day = day
		p.s.IO.Printf("%s\n", p.s.IO.OutStyle(session.Bold, day))
	}
	p.s.IO.Printf("%s\n", Line(p.s, e, p.showRequest))
	return nil
}

// Line is one event as a line: time, request, step, message, attempt, next try.
func Line(s *session.Session, e api.Event, showRequest bool) string {
	var b strings.Builder
	b.WriteString(s.IO.OutStyle(session.Dim, e.Time.Local().Format("15:04:05")))
	if showRequest {
		id := "        "
		if e.RequestID != "" {
			id = fmt.Sprintf("%-8s", follow.Short(e.RequestID))
		}
		b.WriteString("  " + s.IO.OutStyle(session.Dim, id))
	}
	what := e.Step
	if what == "" {
		what = string(e.Kind)
	}
	fmt.Fprintf(&b, "  %-10s  ", what)
	msg := strings.ReplaceAll(strings.TrimRight(e.Message, "\n"), "\n", "\n          ")
	switch e.Kind {
	case api.EventError:
		msg = s.IO.OutStyle(session.Red, msg)
	case api.EventRetry:
		msg = s.IO.OutStyle(session.Yellow, follow.RetryText(s.Now(), msg, e.NextRetry))
	}
	b.WriteString(msg)
	if attempt := fmt.Sprintf("attempt %d", e.Attempt); e.Attempt > 1 && !strings.Contains(msg, attempt) {
		b.WriteString(" (" + attempt + ")")
	}
	return b.String()
}
