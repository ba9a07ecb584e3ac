package cluster

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/flags"
	"github.com/skyloom/skyloom/cli/follow"
	"github.com/skyloom/skyloom/cli/session"
	"github.com/skyloom/skyloom/cli/sshhosts"
	"github.com/skyloom/skyloom/cli/taskflags"
	"github.com/skyloom/skyloom/cli/upload"
	"github.com/skyloom/skyloom/task"
)

// LaunchOptions is `sky launch`.
type LaunchOptions struct {
	Entrypoint    []string
	Overrides     task.Overrides
	Cluster       string
	Dryrun        bool
	Detach        bool
	IdleMinutes   *int
	WaitFor       string
	Down          bool
	RetryUntilUp  bool
	Yes           bool
	NoSetup       bool
	CloneDiskFrom string
	Fast          bool
	Resize        bool
	Async         bool
}

// NewLaunch makes `sky launch`.
func NewLaunch(s *session.Session, run func(context.Context, *session.Session, *LaunchOptions) error) *cobra.Command {
	o := &LaunchOptions{}
	if run == nil {
		run = Launch
	}
	var docker bool
	cmd := &cobra.Command{
		Use:   "launch [ENTRYPOINT...]",
		Short: "Bring a cluster up and run a task on it",
		Long: `Bring a cluster up and run a task on it. ENTRYPOINT is a task file, or a command.

With -c a cluster of that name is used again if there is one. The plan shown at the
question is the plan launched. Ctrl-C stops the waiting, not the launch.

Exit code: that of the job, see sky logs --help; 1 if it could not be launched.`,
		Example: "  sky launch task.yaml\n  sky launch -c dev --infra local -- echo hello\n  sky launch -c train --gpus A100:8 -i 30 --down train.yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Entrypoint = args
			if docker {
				return session.Usagef("--docker was a local backend of old; use --infra local, and image_id: docker:IMAGE for a container")
			}
			if o.Resize && o.Cluster == "" {
				return session.Usagef("--resize needs -c CLUSTER")
			}
			return run(cmd.Context(), s, o)
		},
	}
	fs := cmd.Flags()
	fs.StringVarP(&o.Cluster, "cluster", "c", "", "the `NAME` of the cluster to use or create")
	fs.BoolVar(&o.Dryrun, "dryrun", false, "only show what would be chosen")
	addDetach(fs, &o.Detach)
	fs.BoolVar(&docker, "docker", false, "")
	fs.Lookup("docker").Hidden = true
	flags.Int(fs, &o.IdleMinutes, "idle-minutes-to-autostop", "i", -1, "stop the cluster after `MINUTES` of idleness")
	addWaitFor(fs, &o.WaitFor)
	fs.BoolVar(&o.Down, "down", false, "remove the cluster once all jobs are done; with -i after that idle time")
	fs.BoolVarP(&o.RetryUntilUp, "retry-until-up", "r", false, "try again until there is room somewhere")
	addYes(fs, &o.Yes)
	fs.BoolVar(&o.NoSetup, "no-setup", false, "skip the setup commands")
	fs.StringVar(&o.CloneDiskFrom, "clone-disk-from", "", "start from a copy of the disk of a stopped `CLUSTER` (experimental)")
	fs.StringVar(&o.CloneDiskFrom, "clone", "", "")
	fs.Lookup("clone").Hidden = true
	fs.BoolVar(&o.Fast, "fast", false, "skip provisioning and setup if the cluster is UP and unchanged (experimental)")
	fs.BoolVar(&o.Resize, "resize", false, "give cluster -c as many nodes as --num-nodes says; to take nodes away no job may run")
	taskflags.Add(cmd, &o.Overrides, true)
	addWorkspace(fs, s)
	addAsync(fs, &o.Async)
	completeFlag(cmd, s, "cluster")
	return cmd
}

func addDetach(fs *pflag.FlagSet, p *bool) {
	flags.Pair(fs, p, "detach-run", "d", false, "don't follow the job's log")
}

func completeFlag(cmd *cobra.Command, s *session.Session, flag string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, _ []string, inc string) ([]string, cobra.ShellCompDirective) {
		return s.Complete(cmd.Context(), "cluster_name", inc), cobra.ShellCompDirectiveNoFileComp
	})
}

var controllerName = regexp.MustCompile(`^sky-(jobs|serve|spot)-controller(-|$)`)

// checkCluster judges the name of a cluster to create or use.
func checkCluster(name string) error {
	if controllerName.MatchString(name) {
		return fmt.Errorf("the name %q is reserved for controllers\nChoose another one with -c.", name)
	}
	return task.ValidateClusterName(name)
}

// warnFileName asks back when a name looks like a file.
func warnFileName(s *session.Session, flag, name string, yes bool) error {
	if name == "" || !task.LooksLikeFile(name) {
		return nil
	}
	s.IO.Warnf("%s %s looks like a file; it is taken as a name.", flag, name)
	if yes {
		return nil
	}
	return s.IO.Require("Proceed?")
}

var notInNames = regexp.MustCompile(`[^a-z0-9-]+`)

// newClusterName makes a name up: sky-<4 hex>-<user>.
func newClusterName(s *session.Session) string {
	var b [2]byte
	_, _ = rand.Read(b[:])
	user := strings.Trim(notInNames.ReplaceAllString(strings.ToLower(s.User().Name), ""), "-")
	if len(user) > 20 {
		user = user[:20]
	}
	if user == "" {
		user = "user"
	}
	return "sky-" + hex.EncodeToString(b[:]) + "-" + user
}

// Launch brings a cluster up and runs a task.
func Launch(ctx context.Context, s *session.Session, o *LaunchOptions) error {
	if err := warnFileName(s, "-c", o.Cluster, o.Yes); err != nil {
		return err
	}
	if o.Cluster != "" {
		if err := checkCluster(o.Cluster); err != nil {
			return err
		}
	}
	if err := warnFileName(s, "-n", o.Overrides.Name, o.Yes); err != nil {
		return err
	}
	t, err := taskflags.Load(s, "launch", o.Entrypoint, &o.Overrides, o.Yes)
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
	if err := taskflags.Supported(s, t, "launch", s.Features); err != nil {
		return err
	}
	repo, err := upload.Resolve(ctx, s, t)
	if err != nil {
		return err
	}
	if o.Resize && o.Overrides.NumNodes == nil && t.NumNodes == 1 {
		return session.Usagef("--resize needs the number of nodes: --num-nodes N, or num_nodes in the task file")
	}
	text, secrets, err := taskflags.Text(t)
	if err != nil {
		return err
	}
	name := o.Cluster
	if name == "" {
		name = newClusterName(s)
	}
	l := &launch{s: s, c: c, o: o, t: t, name: name, text: text, secrets: secrets, repo: repo}
	return l.run(ctx)
}

// launch is one launch on its way.
type launch struct {
	s       *session.Session
	c       *api.Client
	o       *LaunchOptions
	t       *task.Task
	name    string
	text    string
	secrets map[string]string
	repo    *upload.Repository
	files   *upload.Files
	plan    *api.Plan
}

func (l *launch) run(ctx context.Context) error {
	base, err := l.s.Base()
	if err != nil {
		return err
	}
	for round := 0; ; round++ {
		l.plan, err = l.c.Optimize(ctx, &api.OptimizeBody{Task: l.text, Cluster: l.name, Config: base.Config, Workspace: base.Workspace, IdleMinutes: l.o.IdleMinutes, Down: l.o.Down, Resize: l.o.Resize})
		if err != nil && !(l.o.RetryUntilUp && isKind(err, api.ErrResourcesUnavailable)) {
			return err
		}
		if err != nil { // nothing now: the request waits for it
			l.plan = &api.Plan{NumNodes: l.t.NumNodes, Notes: []string{firstLine(err.Error()) + "; with --retry-until-up the server waits if that can change."}}
		}
		if round > 0 {
			l.s.IO.Warnf("The plan has changed meanwhile. The new one:")
		}
		if err := l.confirm(); err != nil {
			return err
		}
		if l.o.Dryrun {
			return nil
		}
		if l.files == nil {
			if l.files, err = upload.Upload(ctx, l.s, l.c, l.t, upload.Options{Repository: l.repo}); err != nil {
				return err
			}
		}
		err = l.submit(ctx)
		if !isKind(err, api.ErrPlanChanged) || round == 9 {
			return err
		}
	}
}

func isKind(err error, kind string) bool {
	var e *api.Error
	return errors.As(err, &e) && e.Kind == kind
}

// confirm shows the plan and asks.
func (l *launch) confirm() error {
	out := l.s.IO.Err
	if l.o.Dryrun {
		out = l.s.IO.Out
	}
	if err := PrintPlan(l.s, out, l.plan, l.o.Dryrun); err != nil {
		return err
	}
	if l.o.Dryrun {
		if l.plan.Existing {
			fmt.Fprintf(out, "Cluster %s (%s) would be used.\n", l.name, l.plan.Status)
		}
		fmt.Fprintln(out, "Dry run: nothing was launched.")
		return nil
	}
	if l.o.Yes {
		return nil
	}
	switch {
	case !l.plan.Existing:
		return l.s.IO.Require(fmt.Sprintf("Launching a new cluster %s. Proceed?", l.name))
	case l.o.Resize:
		return l.s.IO.Require(fmt.Sprintf("Resizing cluster %s to %d node(s). Proceed?", l.name, l.plan.NumNodes))
	case l.plan.Status == api.ClusterInit:
		return l.s.IO.Require(fmt.Sprintf("Bringing the unhealthy cluster %s back. Proceed?", l.name))
	case l.plan.Status == api.ClusterStopped:
		return l.s.IO.Require(fmt.Sprintf("Restarting the stopped cluster %s. Proceed?", l.name))
	}
	return nil
}

func (l *launch) submit(ctx context.Context) error {
	base, err := l.s.Base()
	if err != nil {
		return err
	}
	o := l.o
	b := &api.LaunchBody{
		Base: base, Task: l.text, Secrets: l.secrets, Cluster: l.name,
		RetryUntilUp: o.RetryUntilUp, IdleMinutes: o.IdleMinutes, WaitFor: o.WaitFor, Down: o.Down,
		NoSetup: o.NoSetup, Fast: o.Fast, Resize: o.Resize, CloneDiskFrom: o.CloneDiskFrom,
		FileMounts: l.files.Mounts, GitCommit: l.files.GitCommit,
	}
	if !o.Yes && !l.plan.Existing {
		b.PlanHash = l.plan.Hash // what was agreed to
	}
	ref, err := l.c.Launch(ctx, b)
	if err != nil {
		return err
	}
	if ref.Cluster != "" {
		l.name = ref.Cluster
	}
	if o.Async {
		follow.Submitted(l.s, l.c, ref)
		return nil
	}
	return finish(ctx, l.s, l.c, ref, l.name, l.plan.Hash, o.Detach)
}

// finish follows a launch or exec to its end, then the job's log, and exits with the job's code.
func finish(ctx context.Context, s *session.Session, c *api.Client, ref *api.Ref, name, shownPlan string, detach bool) error {
	r, err := follow.Wait(ctx, s, c, ref, follow.Options{ShownPlan: shownPlan, Plan: func(p *api.Plan) {
		var b strings.Builder
		if PrintPlan(s, &b, p, false) == nil {
			s.IO.Notef("%s", b.String())
		}
	}})
	if err != nil {
		return err
	}
	res, err := follow.Result[api.LaunchResult](r)
	if err != nil {
		return err
	}
	if res.Cluster != "" {
		name = res.Cluster
	}
	ssh := sshhosts.Up(ctx, s, c, name, res.Hash, ref.Name == "sky.exec")
	if res.JobID == 0 {
		s.IO.Notef("Run commands not specified or empty.")
		usefulCommands(s, name, 0, ssh())
		return nil
	}
	if detach {
		s.IO.Printf("Job submitted, ID: %d\n", res.JobID)
		usefulCommands(s, name, res.JobID, ssh())
		return nil
	}
	code, err := follow.Logs(ctx, s, c, name, follow.LogOptions{JobID: res.JobID, Follow: true})
	if err != nil {
		return err
	}
	if code != follow.ExitInterrupted {
		usefulCommands(s, name, res.JobID, ssh())
	}
	return session.Exit(code)
}

// usefulCommands tells what to do next.
func usefulCommands(s *session.Session, cluster string, job int64, ssh bool) {
	n := s.IO.Notef
	n("")
	n("%s", s.IO.ErrStyle(session.Bold, "Useful Commands"))
	if job > 0 {
		n("Job %d", job)
		n("  To cancel the job:      sky cancel %s %d", cluster, job)
		n("  To see its log:         sky logs %s %d", cluster, job)
		n("  To see the queue:       sky queue %s", cluster)
	}
	n("Cluster %s", cluster)
	if ssh {
		n("  To log in:              ssh %s", cluster)
	}
	n("  To submit a job:        sky exec %s yaml_file", cluster)
	n("  To see what happened:   sky events %s", cluster)
	n("  To stop the cluster:    sky stop %s", cluster)
	n("  To remove the cluster:  sky down %s", cluster)
}
