package jobs

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/session"
	"github.com/skyloom/skyloom/cli/table"
)

// CheckpointsOptions is `sky jobs checkpoints`, and `sky jobs checkpoint`, which saves first.
type CheckpointsOptions struct {
	JobID  int64
	Save   bool
	Output string
}

// NewCheckpoints makes `sky jobs checkpoints`.
func NewCheckpoints(s *session.Session, run func(context.Context, *session.Session, *CheckpointsOptions) error) *cobra.Command {
	return checkpointCommand(s, run, &CheckpointsOptions{}, &cobra.Command{
		Use:   "checkpoints JOB_ID",
		Short: "List what was saved of a managed job",
		Long: `List the checkpoints of a managed job, the newest first. Each is complete; a task that is
recovered starts with the newest one.`,
		Example: "  sky jobs checkpoints 7\n  sky jobs checkpoints 7 -o json",
	})
}

// NewCheckpoint makes `sky jobs checkpoint`.
func NewCheckpoint(s *session.Session, run func(context.Context, *session.Session, *CheckpointsOptions) error) *cobra.Command {
	return checkpointCommand(s, run, &CheckpointsOptions{Save: true}, &cobra.Command{
		Use:   "checkpoint JOB_ID",
		Short: "Save a checkpoint of a managed job now",
		Long: `Save the checkpoints of a managed job's running tasks now. It returns once they are
durable. The task file says what is saved, with its field checkpoint.`,
		Example: "  sky jobs checkpoint 7",
	})
}

func checkpointCommand(s *session.Session, run func(context.Context, *session.Session, *CheckpointsOptions) error, o *CheckpointsOptions, cmd *cobra.Command) *cobra.Command {
	if run == nil {
		run = Checkpoints
	}
	cmd.ValidArgsFunction = completeJob(s, 1)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return session.Usagef("exactly one managed job: sky jobs %s JOB_ID", cmd.Name())
		}
		ids, err := api.ParseIDs(args[0])
		if err != nil || len(ids) != 1 {
			return session.Usagef("%q is no job id; a job id is a number, see: sky jobs queue", args[0])
		}
		o.JobID = ids[0]
		return run(cmd.Context(), s, o)
	}
	addOutput(cmd.Flags(), &o.Output)
	return cmd
}

// Checkpoints lists the checkpoints of a managed job, or saves and shows what stands then.
func Checkpoints(ctx context.Context, s *session.Session, o *CheckpointsOptions) error {
	c, err := s.Client(ctx)
	if err != nil {
		return err
	}
	ask := c.Checkpoints
	if o.Save {
		ask = c.SaveCheckpoints
	}
	list, err := ask(ctx, o.JobID)
	if err != nil {
		return notFound(s, err)
	}
	if o.Output == "json" {
		if list.Checkpoints == nil {
			list.Checkpoints = []api.Checkpoint{}
		}
		return s.PrintJSON(list.Checkpoints)
	}
	for _, k := range list.Checkpoints {
		for _, w := range k.Warnings {
			s.IO.Warnf("checkpoint %d: %s", k.N, w)
		}
	}
	if len(list.Checkpoints) == 0 {
		s.IO.Printf("No checkpoints.\n")
		return nil
	}
	t := table.New("TASK", "CHECKPOINT", "SAVED", "WHY", "ATTEMPT", "NODES", "FILES", "SIZE")
	for _, k := range list.Checkpoints {
		t.Row(k.TaskID, k.N, table.Ago(s.Now(), k.SavedAt), k.Why, k.Attempt, k.Ranks, k.Files, sizeText(k.Bytes))
	}
	if err := t.Print(s.IO.Out); err != nil {
		return err
	}
	folders := []string{}
	for _, k := range list.Checkpoints {
		if folder, _, ok := strings.Cut(k.Where, "/checkpoints/"); ok && !slices.Contains(folders, folder) {
			folders = append(folders, folder)
		}
	}
	if len(folders) > 0 {
		s.IO.Printf("Kept in %s\n", strings.Join(folders, ", "))
	}
	return nil
}

func sizeText(n int64) string {
	v, unit := float64(n), 0
	for units := 4; v >= 1000 && unit < units; unit++ {
		v /= 1000
	}
	if unit == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %cB", v, "kMGT"[unit-1])
}
