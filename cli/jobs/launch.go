package jobs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/cluster"
	"github.com/skyloom/skyloom/cli/flags"
	"github.com/skyloom/skyloom/cli/follow"
	"github.com/skyloom/skyloom/cli/session"
	"github.com/skyloom/skyloom/cli/taskflags"
	"github.com/skyloom/skyloom/cli/upload"
	"github.com/skyloom/skyloom/task"
)

// LaunchOptions is `sky jobs launch`.
type LaunchOptions struct {
	Entrypoint []string
	Overrides  task.Overrides
	NumJobs    *int
	After      []string
	Schedule   ScheduleFlags
	Notify     []string
	Detach     bool
	Async      bool
	Yes        bool
}

// NewLaunch makes `sky jobs launch`.
func NewLaunch(s *session.Session, run func(context.Context, *session.Session, *LaunchOptions) error) *cobra.Command {
	o := &LaunchOptions{}
	if run == nil {
		run = Launch
	}
	var name, pool string
	cmd := &cobra.Command{
		Use:   "launch [ENTRYPOINT...]",
		Short: "Submit a managed job",
		Long: `Submit a managed job. ENTRYPOINT is a task file, or a command. A file of several
documents is a pipeline, whose tasks run in order, or a job group, whose tasks run at
once.

The job goes on whatever happens to this command, to your machine and to the server.
When there is no room it waits; sky jobs queue says for what.

Exit code: that of the job, see sky jobs logs --help; 0 with -d, --async or several
jobs; 1 if it could not be submitted.`,
		Example: "  sky jobs launch -n train train.yaml\n  sky jobs launch --gpus A100:8 --use-spot -d train.yaml\n  sky jobs launch --num-jobs 8 -- python sweep.py\n  sky jobs launch --after 7:ok eval.yaml\n  sky jobs launch --schedule \"0 3 * * *\" --schedule-timezone Europe/Berlin report.yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Entrypoint = args
			if pool != "" {
				return poolsLater()
			}
			if name != "" {
				if o.Overrides.Name != "" && o.Overrides.Name != name {
					return session.Usagef("--name and --cluster name the same thing; give one of them")
				}
				o.Overrides.Name = name
			}
			after, err := conditions(o.After)
			if err != nil {
				return err
			}
			o.After = after
			return run(cmd.Context(), s, o)
		},
	}
	fs := cmd.Flags()
	fs.StringVarP(&name, "cluster", "c", "", "the same as --name")
	fs.Lookup("cluster").Hidden = true
	fs.StringVar(&o.Overrides.JobRecovery, "job-recovery", "", "what happens when the infra takes the cluster away: `EAGER_NEXT_REGION|FAILOVER|none`")
	flags.Int(fs, &o.NumJobs, "num-jobs", "", 1, "submit `N` jobs, each on a cluster of its own, told apart by SKYPILOT_JOB_RANK")
	fs.StringArrayVar(&o.After, "after", nil, "begin once job `ID[:ok|:any]` has ended: ok (default) if it succeeded, any however it ended; repeatable")
	o.Schedule.add(fs)
	fs.StringArrayVar(&o.Notify, "notify", nil, "post changes of state to an http or https `URL`, signed; repeatable; see sky jobs webhook-secret")
	flags.Pair(fs, &o.Detach, "detach-run", "d", false, "don't follow the job's log")
	addPool(fs, &pool)
	addYes(fs, &o.Yes)
	taskflags.Add(cmd, &o.Overrides, true)
	fs.StringVarP(&s.Workspace, "workspace", "w", "", "the `NAME` of the workspace to work in")
	flags.Pair(fs, &o.Async, "async", "", false, "return once the server has the request")
	return cmd
}

// conditions reads --after: repeated, or a list with commas.
func conditions(given []string) ([]string, error) {
	var all []string
	for _, list := range given {
		for c := range strings.SplitSeq(list, ",") {
			all = append(all, strings.TrimSpace(c))
		}
	}
	on, err := api.ParseAfter(all)
	if err != nil {
		return nil, session.Usagef("--after: %v", err)
	}
	var out []string
	for _, a := range on {
		out = append(out, a.String())
	}
	return out, nil
}

// Launch submits managed jobs.
func Launch(ctx context.Context, s *session.Session, o *LaunchOptions) error {
	if n := o.Overrides.Name; n != "" && task.LooksLikeFile(n) {
		s.IO.Warnf("-n %s looks like a file; it is taken as a name.", n)
		if !o.Yes {
			if err := s.IO.Require("Proceed?"); err != nil {
				return err
			}
		}
	}
	f, err := taskflags.LoadFile(s, task.VerbJobsLaunch, o.Entrypoint, &o.Overrides, o.Yes)
	if err != nil {
		return err
	}
	if _, err := s.Config(); err != nil {
		return err
	}
	c, err := s.Client(ctx)
	if err != nil {
		return err
	}
	if err := taskflags.FileSupported(s, f, task.VerbJobsLaunch, s.Features); err != nil {
		return err
	}
	repos := make([]*upload.Repository, len(f.Tasks))
	for i, t := range f.Tasks {
		if repos[i], err = upload.Resolve(ctx, s, t); err != nil {
			return err
		}
	}
	text, secrets, err := taskflags.FileText(f)
	if err != nil {
		return err
	}
	b := &api.JobsLaunchBody{Task: text, Name: f.Name, NumJobs: 1, Secrets: secrets, After: o.After, Notify: o.Notify, FileMounts: map[int][]api.FileMount{}}
	if o.NumJobs != nil {
		b.NumJobs = *o.NumJobs
	}
	if b.Schedule, err = o.Schedule.spec(f); err != nil {
		return err
	}
	if b.Schedule != nil && len(o.After) > 0 {
		return session.Usagef("--after can't be combined with a schedule: each firing would wait for the same jobs")
	}
	if b.Name == "" {
		b.Name = f.Tasks[0].Name
	}
	if b.Base, err = s.Base(); err != nil {
		return err
	}
	if err := confirm(ctx, s, c, o, f, b); err != nil {
		return err
	}
	for i, t := range f.Tasks {
		files, err := upload.Upload(ctx, s, c, t, upload.Options{Repository: repos[i]})
		if err != nil {
			return err
		}
		if len(files.Mounts) > 0 {
			b.FileMounts[i] = files.Mounts
		}
		if b.GitCommit == "" {
			b.GitCommit = files.GitCommit
		}
	}
	ref, err := c.LaunchJobs(ctx, b)
	if err != nil {
		return err
	}
	if o.Async {
		follow.Submitted(s, c, ref)
		return nil
	}
	r, err := follow.Wait(ctx, s, c, ref, follow.Options{})
	if err != nil {
		return err
	}
	res, err := follow.Result[api.JobsLaunchResult](r)
	if err != nil {
		return err
	}
	if res.Schedule != nil {
		scheduled(s, *res.Schedule)
		return nil
	}
	if a := f.Tasks[0].Array; a != nil && len(res.JobIDs) == 1 {
		s.IO.Notef("An array of %d elements. Each one: sky jobs queue %d --elements; its log: sky jobs logs %d --element N", a.Elements(), res.JobIDs[0], res.JobIDs[0])
	}
	return submitted(ctx, s, c, o, res.JobIDs)
}

// confirm shows where each task would go now, and asks.
func confirm(ctx context.Context, s *session.Session, c *api.Client, o *LaunchOptions, f *task.File, b *api.JobsLaunchBody) error {
	said := map[string]bool{}
	var group []string // tasks that go to one place
	if f.Kind == task.JobGroup {
		for _, t := range f.Tasks {
			if strings.TrimSpace(t.Run) != "" {
				group = append(group, string(t.Render(task.SecretsReferenced)))
			}
		}
	}
	for i, t := range f.Tasks {
		p, err := c.Optimize(ctx, &api.OptimizeBody{Task: string(t.Render(task.SecretsReferenced)), Config: b.Config, Workspace: b.Workspace, Managed: true, Group: group})
		var ae *api.Error
		if errors.As(err, &ae) && ae.Kind == api.ErrResourcesUnavailable {
			line, _, _ := strings.Cut(ae.Message, "\n")
			p, err = &api.Plan{NumNodes: t.NumNodes, Notes: []string{line + "; the job waits until that changes."}}, nil
		}
		if err != nil {
			return err
		}
		if len(f.Tasks) > 1 {
			title := fmt.Sprintf("Task %d", i)
			if t.Name != "" {
				title += " (" + t.Name + ")"
			}
			s.IO.Notef("%s", s.IO.ErrStyle(session.Bold, title))
		}
		p.Notes = slices.DeleteFunc(p.Notes, func(n string) bool { // what holds for all tasks is said once
			before := said[n]
			said[n] = true
			return before
		})
		if err := cluster.PrintPlan(s, s.IO.Err, p, false); err != nil {
			return err
		}
	}
	if o.Yes {
		return nil
	}
	what := "a managed job"
	if b.NumJobs > 1 {
		what = fmt.Sprintf("%d managed jobs", b.NumJobs)
	}
	if b.Name != "" {
		what += " " + session.Quote(b.Name)
	}
	if b.Schedule != nil {
		return s.IO.Require(fmt.Sprintf("Scheduling %s (%s). Proceed?", what, scheduleWords(*b.Schedule)))
	}
	return s.IO.Require(fmt.Sprintf("Launching %s. Proceed?", what))
}

// submitted tells of the jobs, and follows the log of a single one.
func submitted(ctx context.Context, s *session.Session, c *api.Client, o *LaunchOptions, ids []int64) error {
	if len(ids) == 0 {
		return errors.New("the server took the request and named no job\nSee: sky jobs queue")
	}
	if len(ids) > 1 {
		s.IO.Printf("Managed jobs submitted, IDs: %s (%d jobs)\n", api.FormatIDs(ids), len(ids))
		hints(s, ids)
		return nil
	}
	if o.Detach {
		s.IO.Printf("Managed job submitted, ID: %d\n", ids[0])
		hints(s, ids)
		return nil
	}
	s.IO.Notef("Managed job submitted, ID: %d", ids[0])
	if len(o.After) > 0 {
		s.IO.Notef("It begins after %s; its log follows then.", strings.Join(o.After, ", "))
	}
	code, err := tail(ctx, s, c, ids[0], api.ManagedLogFilter{Follow: true})
	if err != nil {
		return err
	}
	if code != follow.ExitInterrupted {
		hints(s, ids)
	}
	return session.Exit(code)
}

// hints say what to do next.
func hints(s *session.Session, ids []int64) {
	n := s.IO.Notef
	list, one := api.FormatIDs(ids), ids[0]
	n("")
	n("%s", s.IO.ErrStyle(session.Bold, "Useful Commands"))
	n("  To see the queue:       sky jobs queue")
	n("  To see a job's log:     sky jobs logs %d", one)
	n("  To see what happened:   sky jobs events %d", one)
	n("  To cancel:              sky jobs cancel %s", list)
}
