package cluster

import (
	"context"
	"encoding/json"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/console"
	"github.com/skyloom/skyloom/cli/flags"
	"github.com/skyloom/skyloom/cli/session"
	"github.com/skyloom/skyloom/cli/table"
)

// QueueOptions is `sky queue`.
type QueueOptions struct {
	Names        []string
	AllUsers     bool
	SkipFinished bool
	Output       string
}

// NewQueue makes `sky queue`.
func NewQueue(s *session.Session, run func(context.Context, *session.Session, *QueueOptions) error) *cobra.Command {
	o := &QueueOptions{}
	if run == nil {
		run = Queue
	}
	cmd := &cobra.Command{
		Use:               "queue [CLUSTERS...]",
		Short:             "Show the jobs of clusters",
		Long:              "Show the jobs of clusters, of all your clusters when none is named.",
		Example:           "  sky queue\n  sky queue mycluster -s\n  sky queue -o json",
		ValidArgsFunction: completeNames(s, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Names = args
			return run(cmd.Context(), s, o)
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&o.AllUsers, "all-users", "u", false, "jobs of all users")
	fs.BoolVarP(&o.SkipFinished, "skip-finished", "s", false, "only jobs that have not ended")
	flags.Output(fs, &o.Output)
	return cmd
}

// Queue shows jobs.
func Queue(ctx context.Context, s *session.Session, o *QueueOptions) error {
	c, err := s.Client(ctx)
	if err != nil {
		return err
	}
	sel, err := find(ctx, s, c, o.Names, o.AllUsers)
	if err != nil {
		return err
	}
	me := s.User().Hash
	lists := &api.JobLists{}
	if len(sel.clusters) > 0 {
		f := api.JobFilter{SkipFinished: o.SkipFinished, AllUsers: o.AllUsers}
		if !o.AllUsers {
			f.UserHash = me
		}
		for _, cl := range sel.clusters {
			f.Clusters = append(f.Clusters, cl.Name)
		}
		if lists, err = c.Jobs(ctx, f); err != nil {
			return err
		}
	}
	out := map[string][]api.Job{}
	for _, cl := range sel.clusters {
		if _, bad := lists.Errors[cl.Name]; bad {
			continue
		}
		jobs := []api.Job{}
		for _, j := range lists.Clusters[cl.Name] {
			mine := o.AllUsers || j.UserHash == "" || j.UserHash == me
			if mine && !(o.SkipFinished && j.Status.Terminal()) {
				jobs = append(jobs, j)
			}
		}
		sort.Slice(jobs, func(i, k int) bool { return jobs[i].ID > jobs[k].ID })
		out[cl.Name] = jobs
	}
	if o.Output == "json" {
		if err := s.PrintJSON(queueJSON(out)); err != nil {
			return err
		}
	} else {
		if len(sel.clusters) == 0 && len(o.Names) == 0 {
			s.IO.Printf("No existing clusters.\n")
		}
		first := true
		for _, cl := range sel.clusters {
			jobs, ok := out[cl.Name]
			if !ok {
				continue
			}
			if !first {
				s.IO.Printf("\n")
			}
			first = false
			s.IO.Printf("%s\n", s.IO.OutStyle(session.Bold, "Job queue of cluster "+cl.Name))
			if len(jobs) == 0 {
				s.IO.Printf("No jobs.\n")
				continue
			}
			if err := queueTable(s.IO, jobs, s.Now()).Print(s.IO.Out); err != nil {
				return err
			}
		}
	}
	for _, cl := range sel.clusters {
		if msg := lists.Errors[cl.Name]; msg != "" {
			s.IO.Warnf("The queue of cluster %s can't be read: %s", cl.Name, strings.ReplaceAll(msg, "\n", "\n  "))
		}
	}
	tellMissing(s, sel)
	if sel.absent() {
		return session.Exit(1)
	}
	return nil
}

// queueJSON gives each job the fields that are promised, null where unknown.
func queueJSON(m map[string][]api.Job) map[string][]map[string]any {
	out := map[string][]map[string]any{}
	for name, jobs := range m {
		rows := make([]map[string]any, 0, len(jobs))
		for _, j := range jobs {
			b, _ := json.Marshal(j)
			row := map[string]any{}
			_ = json.Unmarshal(b, &row)
			for _, k := range []string{"metadata", "links"} {
				if row[k] == nil {
					row[k] = map[string]any{}
				}
			}
			rows = append(rows, row)
		}
		out[name] = rows
	}
	return out
}

func queueTable(io *console.Console, jobs []api.Job, now time.Time) *table.Table {
	t := table.New("ID", "NAME", "USER", "SUBMITTED", "STARTED", "DURATION", "RESOURCES", "STATUS", "LOG", "GIT COMMIT")
	t.Style = func(h string) string { return io.OutStyle(session.Bold, h) }
	for _, j := range jobs {
		duration := "-"
		if j.StartAt != nil {
			end := now
			if j.EndAt != nil {
				end = *j.EndAt
			}
			duration = table.Span(end.Sub(*j.StartAt))
		}
		git := j.Metadata["git_commit"]
		if len(git) > 12 {
			git = git[:12]
		}
		t.Row(j.ID, j.Name, j.User, table.Ago(now, j.SubmittedAt), table.AgoPtr(now, j.StartAt), duration,
			j.Resources, jobStatus(io, j.Status), j.LogPath, git)
	}
	return t
}

func jobStatus(io *console.Console, st api.JobStatus) string {
	style := session.Cyan
	switch st {
	case api.JobSucceeded:
		style = session.Green
	case api.JobFailed, api.JobFailedDriver, api.JobFailedSetup:
		style = session.Red
	case api.JobCancelled:
		style = session.Yellow
	}
	return io.OutStyle(style, string(st))
}
