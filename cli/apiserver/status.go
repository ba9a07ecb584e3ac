package apiserver

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/console"
	"github.com/skyloom/skyloom/cli/flags"
	"github.com/skyloom/skyloom/cli/follow"
	"github.com/skyloom/skyloom/cli/session"
	"github.com/skyloom/skyloom/cli/table"
)

// StatusOptions is `sky api status`.
type StatusOptions struct {
	Prefixes []string
	All      bool
	Limit    int // 0: no limit
	Cluster  string
	Verbose  bool
	Output   string
}

func itoa(n int) string { return strconv.Itoa(n) }

// NewStatus makes `sky api status`.
func NewStatus(s *session.Session, run func(context.Context, *session.Session, *StatusOptions) error) *cobra.Command {
	o := &StatusOptions{}
	if run == nil {
		run = Status
	}
	var limit string
	cmd := &cobra.Command{
		Use:               "status [PREFIXES...]",
		Short:             "List requests",
		Long:              "List requests that have not ended; with -a the finished ones too. Arguments are ids or their beginnings.",
		ValidArgsFunction: completeRequests(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Prefixes = args
			switch strings.ToLower(limit) {
			case "none", "all":
				o.Limit = 0
			default:
				n, err := strconv.Atoi(limit)
				if err != nil || n < 1 {
					return session.Usagef("--limit takes a number of at least 1, none or all, not %q", limit)
				}
				o.Limit = n
			}
			return run(cmd.Context(), s, o)
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&o.All, "all-status", "a", false, "finished requests too")
	fs.StringVarP(&limit, "limit", "l", "50", "at most `N` rows; none or all for no limit")
	fs.StringVarP(&o.Cluster, "cluster", "c", "", "only requests on cluster `NAME`")
	fs.BoolVarP(&o.Verbose, "verbose", "v", false, "more columns")
	flags.Output(fs, &o.Output)
	return cmd
}

// Status lists requests.
func Status(ctx context.Context, s *session.Session, o *StatusOptions) error {
	c, err := s.Client(ctx)
	if err != nil {
		return err
	}
	list, err := c.Requests(ctx, api.RequestFilter{All: o.All || len(o.Prefixes) > 0, Limit: o.Limit, Cluster: o.Cluster, IDs: o.Prefixes})
	if err != nil {
		return err
	}
	var missing []string
	for _, p := range o.Prefixes {
		hit := false
		for _, r := range list {
			hit = hit || strings.HasPrefix(r.ID, p)
		}
		if !hit {
			missing = append(missing, p)
		}
	}
	if o.Output == "json" {
		if list == nil {
			list = []api.Request{}
		}
		if err := s.PrintJSON(list); err != nil {
			return err
		}
	} else if len(list) == 0 && len(missing) == 0 {
		s.IO.Printf("No requests%s.\n", map[bool]string{false: " in progress"}[o.All])
	} else if len(list) > 0 {
		if err := statusTable(s.IO, list, o.Verbose, s.Now()).Print(s.IO.Out); err != nil {
			return err
		}
		if o.Limit > 0 && len(list) == o.Limit {
			s.IO.Notef("Only the newest %d; all of them: sky api status -l all", o.Limit)
		}
	}
	for _, m := range missing {
		s.IO.Warnf("Request %s not found.", m)
	}
	if len(missing) > 0 {
		return session.Exit(1)
	}
	return nil
}

func statusTable(io *console.Console, list []api.Request, verbose bool, now time.Time) *table.Table {
	head := []string{"ID", "User", "Name"}
	if verbose {
		head = append(head, "Cluster")
	}
	head = append(head, "Created", "Status")
	if verbose {
		head = append(head, "Message")
	}
	t := table.New(head...)
	t.Style = func(h string) string { return io.OutStyle(session.Bold, h) }
	for _, r := range list {
		id := follow.Short(r.ID)
		if verbose {
			id = r.ID
		}
		row := []any{id, r.User, r.Name}
		if verbose {
			row = append(row, r.Cluster)
		}
		row = append(row, table.Ago(now, r.CreatedAt), status(io, r.Status))
		if verbose {
			msg := r.StatusMsg
			if r.Error != nil && msg == "" {
				msg, _, _ = strings.Cut(r.Error.Message, "\n")
			}
			row = append(row, console.Cut(msg, 80))
		}
		t.Row(row...)
	}
	return t
}

func status(io *console.Console, st api.RequestStatus) string {
	style := session.Cyan
	switch st {
	case api.RequestSucceeded:
		style = session.Green
	case api.RequestFailed:
		style = session.Red
	case api.RequestCancelled, api.RequestWaiting:
		style = session.Yellow
	}
	return io.OutStyle(style, string(st))
}
