package cluster

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/follow"
	"github.com/skyloom/skyloom/cli/session"
	"github.com/skyloom/skyloom/cli/taskflags"
	"github.com/skyloom/skyloom/cli/upload"
	"github.com/skyloom/skyloom/task"
)

// ExecOptions is `sky exec`.
type ExecOptions struct {
	Cluster    string
	Entrypoint []string
	Overrides  task.Overrides
	Detach     bool
	Async      bool
}

// NewExec makes `sky exec`.
func NewExec(s *session.Session, run func(context.Context, *session.Session, *ExecOptions) error) *cobra.Command {
	o := &ExecOptions{}
	if run == nil {
		run = Exec
	}
	var name string
	cmd := &cobra.Command{
		Use:   "exec CLUSTER ENTRYPOINT...",
		Short: "Run a task on a cluster that is up",
		Long: `Run a task or a command on a cluster that is UP. Only the workdir is synced and the run
commands are run; setup and file mounts are left alone.

Exit code: that of the job, see sky logs --help; 1 if it could not be submitted.`,
		Example:           "  sky exec mycluster task.yaml\n  sky exec mycluster -- python train.py --lr 0.1\n  sky exec mycluster --gpus A100:0.5 -d eval.yaml",
		ValidArgsFunction: completeNames(s, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if name == "" {
				if len(args) == 0 {
					return session.Usagef("which cluster? sky exec CLUSTER ENTRYPOINT...")
				}
				name, args = args[0], args[1:]
			}
			o.Cluster, o.Entrypoint = name, args
			if len(args) == 0 || strings.TrimSpace(strings.Join(args, "")) == "" {
				return session.Usagef("what is to run? sky exec CLUSTER ENTRYPOINT...")
			}
			return run(cmd.Context(), s, o)
		},
	}
	fs := cmd.Flags()
	fs.StringVarP(&name, "cluster", "c", "", "the `NAME` of the cluster")
	fs.Lookup("cluster").Hidden = true
	addDetach(fs, &o.Detach)
	taskflags.Add(cmd, &o.Overrides, false)
	addAsync(fs, &o.Async)
	completeFlag(cmd, s, "cluster")
	return cmd
}

// dropForExec clears what an exec can't change, and names it.
func dropForExec(o *task.Overrides) []string {
	var dropped []string
	for _, f := range []struct {
		flag  string
		value *string
	}{{"--cpus", &o.CPUs}, {"--memory", &o.Memory}, {"--disk-size", &o.DiskSize}, {"--disk-tier", &o.DiskTier}, {"--local-disk", &o.LocalDisk}} {
		if *f.value != "" {
			dropped = append(dropped, f.flag)
			*f.value = ""
		}
	}
	if len(o.Ports) > 0 {
		dropped = append(dropped, "--ports")
		o.Ports = nil
	}
	return dropped
}

// Exec runs a task on a cluster.
func Exec(ctx context.Context, s *session.Session, o *ExecOptions) error {
	if dropped := dropForExec(&o.Overrides); len(dropped) > 0 {
		s.IO.Warnf("Ignored by sky exec: %s.", strings.Join(dropped, ", "))
	}
	if err := task.ValidateClusterName(o.Cluster); err != nil {
		return notFound(o.Cluster)
	}
	if controllerName.MatchString(o.Cluster) {
		return session.Usagef("%s is a controller; tasks can't be run on it", o.Cluster)
	}
	t, err := taskflags.Load(s, "exec", o.Entrypoint, &o.Overrides, false)
	if err != nil {
		return err
	}
	c, err := s.Client(ctx)
	if err != nil {
		return err
	}
	if err := taskflags.Supported(s, t, "exec", s.Features); err != nil {
		return err
	}
	repo, err := upload.Resolve(ctx, s, t)
	if err != nil {
		return err
	}
	text, secrets, err := taskflags.Text(t)
	if err != nil {
		return err
	}
	base, err := s.Base()
	if err != nil {
		return err
	}
	b := &api.ExecBody{Base: base, Task: text, Secrets: secrets, Cluster: o.Cluster}
	if t.Workdir != nil {
		if _, err := c.Cluster(ctx, o.Cluster); err != nil { // nothing is sent for a cluster that isn't there
			return err
		}
		files, err := upload.Upload(ctx, s, c, t, upload.Options{WorkdirOnly: true, Repository: repo})
		if err != nil {
			return err
		}
		b.FileMounts, b.GitCommit = files.Mounts, files.GitCommit
	}
	ref, err := c.Exec(ctx, b)
	if err != nil {
		return err
	}
	if o.Async {
		follow.Submitted(s, c, ref)
		return nil
	}
	return finish(ctx, s, c, ref, o.Cluster, "", o.Detach)
}
