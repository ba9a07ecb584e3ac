package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/flags"
	"github.com/skyloom/skyloom/cli/follow"
	"github.com/skyloom/skyloom/cli/session"
)

// defaultTail is how many lines a following reader begins with.
const defaultTail = 1000

var hookEvents = []string{"stop", "preemption", "down"}

// LogsOptions is `sky logs`.
type LogsOptions struct {
	Cluster   string
	JobIDs    []int64
	Provision bool
	Worker    *int
	Hook      string // an event, or "any"
	SyncDown  bool
	Status    bool
	Follow    bool
	Tail      int
}

// NewLogs makes `sky logs`.
func NewLogs(s *session.Session, run func(context.Context, *session.Session, *LogsOptions) error) *cobra.Command {
	o := &LogsOptions{}
	if run == nil {
		run = Logs
	}
	var autostopHook bool
	cmd := &cobra.Command{
		Use:   "logs CLUSTER [JOB_IDS...]",
		Short: "Show the log of a job",
		Long: `Show the log of a job, of the latest one when none is given.

Exit code: 0 the job succeeded, 100 it failed, 101 it has not ended, 102 there is
no such job, 103 it was cancelled.`,
		Example: "  sky logs mycluster\n  sky logs mycluster 3 --no-follow\n  sky logs mycluster 1 2 --sync-down\n  sky logs mycluster --provision",
		ValidArgsFunction: func(cmd *cobra.Command, args []string, inc string) ([]string, cobra.ShellCompDirective) {
			return completeNames(s, 1)(cmd, args, inc)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return session.Usagef("which cluster? sky logs CLUSTER [JOB_IDS...]")
			}
			if autostopHook {
				s.IO.Warnf("--autostop is deprecated; use --hook stop.")
				o.Hook = "stop"
			}
			o.Cluster = args[0]
			rest := args[1:]
			if o.Hook == "any" && len(rest) > 0 && slices.Contains(hookEvents, rest[0]) { // --hook stop
				o.Hook, rest = rest[0], rest[1:]
			}
			if o.Hook != "" && o.Hook != "any" && !slices.Contains(hookEvents, o.Hook) {
				return session.Usagef("--hook takes one of %s", strings.Join(hookEvents, ", "))
			}
			ids, err := jobIDs(rest)
			if err != nil {
				return err
			}
			o.JobIDs = ids
			jobFlags := len(ids) > 0 || o.SyncDown || o.Status || cmd.Flags().Changed("tail")
			switch {
			case o.Worker != nil && !o.Provision:
				return session.Usagef("--worker goes with --provision")
			case o.Provision && o.Hook != "":
				return session.Usagef("--provision and --hook can't be combined")
			case (o.Provision || o.Hook != "") && jobFlags:
				return session.Usagef("--provision and --hook can't be combined with job ids, --sync-down, --status or --tail")
			case o.SyncDown && o.Status:
				return session.Usagef("--sync-down and --status can't be combined")
			case len(ids) > 1 && !o.SyncDown:
				return session.Usagef("several job ids go with --sync-down only; to follow one: sky logs %s %d", o.Cluster, ids[0])
			case o.Tail < -1:
				return session.Usagef("--tail must be -1 or more")
			}
			return run(cmd.Context(), s, o)
		},
	}
	fs := cmd.Flags()
	fs.BoolVar(&o.Provision, "provision", false, "the log of bringing the cluster up")
	flags.Int(fs, &o.Worker, "worker", "w", 1, "with --provision: the log of worker `N` (1 or more)")
	fs.StringVar(&o.Hook, "hook", "", "the log of a lifecycle hook: `stop|preemption|down`, or without a value whichever there is")
	fs.Lookup("hook").NoOptDefVal = "any"
	fs.BoolVar(&autostopHook, "autostop", false, "the same as --hook stop")
	fs.Lookup("autostop").Hidden = true
	fs.BoolVarP(&o.SyncDown, "sync-down", "s", false, "download logs to ~/sky_logs")
	fs.BoolVar(&o.Status, "status", false, "print the job's status and exit with its code")
	flags.Pair(fs, &o.Follow, "follow", "", true, "go on until the job ends")
	fs.IntVar(&o.Tail, "tail", -1, "begin with the last `N` lines of each node; 0 is all, -1 is 1000 when following and all otherwise")
	return cmd
}

func jobIDs(words []string) ([]int64, error) {
	var ids []int64
	for _, w := range words {
		n, err := strconv.ParseInt(w, 10, 64)
		if err != nil || n <= 0 || strings.TrimLeft(w, "0123456789") != "" {
			return nil, session.Usagef("%q is no job id; a job id is a number, see: sky queue", w)
		}
		ids = append(ids, n)
	}
	return ids, nil
}

// Logs shows or downloads logs.
func Logs(ctx context.Context, s *session.Session, o *LogsOptions) error {
	c, err := s.Client(ctx)
	if err != nil {
		return err
	}
	switch {
	case o.Provision:
		w := 0
		if o.Worker != nil {
			w = *o.Worker
		}
		return c.ProvisionLogs(ctx, o.Cluster, w, o.Follow, s.IO.Out)
	case o.Hook != "":
		ev := o.Hook
		if ev == "any" {
			ev = ""
		}
		return c.HookLogs(ctx, o.Cluster, ev, s.IO.Out)
	case o.Status:
		return logStatus(ctx, s, c, o)
	case o.SyncDown:
		return syncDown(ctx, s, c, o)
	}
	lo := follow.LogOptions{Follow: o.Follow, Tail: o.Tail}
	if len(o.JobIDs) > 0 {
		lo.JobID = o.JobIDs[0]
	}
	if o.Tail < 0 {
		lo.Tail = 0
		if o.Follow {
			lo.Tail = defaultTail
			lo.Note = fmt.Sprintf("Showing the last %d lines; all of it: --tail 0", defaultTail)
		}
	}
	code, err := follow.Logs(ctx, s, c, o.Cluster, lo)
	if err != nil {
		return err
	}
	return session.Exit(code)
}

// jobOf finds a job of a cluster, the latest when id is 0; nil when there is none.
func jobOf(ctx context.Context, c *api.Client, cluster string, id int64) (*api.Job, error) {
	lists, err := c.Jobs(ctx, api.JobFilter{Clusters: []string{cluster}, AllUsers: true})
	if err != nil {
		return nil, err
	}
	if msg := lists.Errors[cluster]; msg != "" {
		return nil, errors.New(msg)
	}
	jobs, ok := lists.Clusters[cluster]
	if !ok {
		if _, err := c.Cluster(ctx, cluster); err != nil {
			return nil, err
		}
	}
	var best *api.Job
	for i := range jobs {
		j := &jobs[i]
		if (id > 0 && j.ID == id) || (id == 0 && (best == nil || j.ID > best.ID)) {
			best = j
		}
	}
	return best, nil
}

func noSuchJob(s *session.Session, cluster string, id int64) error {
	if id == 0 {
		s.IO.Warnf("Cluster %s has no jobs.", cluster)
	} else {
		s.IO.Warnf("Job %d not found on cluster %s. The jobs there are: sky queue -u %s", id, cluster, cluster)
	}
	return session.Exit(api.ExitNotFound)
}

func logStatus(ctx context.Context, s *session.Session, c *api.Client, o *LogsOptions) error {
	var id int64
	if len(o.JobIDs) > 0 {
		id = o.JobIDs[0]
	}
	j, err := jobOf(ctx, c, o.Cluster, id)
	if err != nil {
		return err
	}
	if j == nil {
		return noSuchJob(s, o.Cluster, id)
	}
	s.IO.Printf("Job %d: %s\n", j.ID, jobStatus(s.IO, j.Status))
	return session.Exit(j.Status.ExitCode())
}

// syncDown writes the raw logs of jobs below ~/sky_logs, a file per rank and phase, named as on the cluster.
func syncDown(ctx context.Context, s *session.Session, c *api.Client, o *LogsOptions) error {
	ids := o.JobIDs
	if len(ids) == 0 {
		ids = []int64{0}
	}
	var missing error // what there is of the others is fetched
	for _, id := range ids {
		j, err := jobOf(ctx, c, o.Cluster, id)
		if err != nil {
			return err
		}
		if j == nil {
			missing = noSuchJob(s, o.Cluster, id)
			continue
		}
		dir, err := downloadLog(ctx, s, c, o.Cluster, j)
		if err != nil {
			return err
		}
		s.IO.Printf("Job %d logs: %s\n", j.ID, dir)
	}
	return missing
}

func downloadLog(ctx context.Context, s *session.Session, c *api.Client, cluster string, j *api.Job) (string, error) {
	name := filepath.Base(strings.TrimRight(j.LogPath, "/"))
	if name == "." || name == "/" || name == "" || strings.HasPrefix(name, "..") {
		name = fmt.Sprintf("%s-job-%d", cluster, j.ID)
	}
	dir := filepath.Join(s.UserHome, "sky_logs", cluster, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	files := map[string]*os.File{}
	nodes := max(j.NumNodes, 1)
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	_, err := c.JobLogs(ctx, cluster, api.LogFilter{JobID: j.ID}, func(ch api.LogChunk) error {
		if ch.Nodes > 0 {
			nodes = ch.Nodes
		}
		if ch.Cut != "" {
			s.IO.Warnf("The log of %s may be cut: %s.", ch.Node, ch.Cut)
		}
		if len(ch.Data) == 0 {
			return nil
		}
		fn := logFileName(ch.LogFrame, nodes)
		f := files[fn]
		if f == nil {
			var err error
			if f, err = os.Create(filepath.Join(dir, fn)); err != nil {
				return err
			}
			files[fn] = f
		}
		if ch.Lost > 0 {
			s.IO.Warnf("%d bytes of %s are no longer there.", ch.Lost, fn)
		}
		_, err := f.Write(ch.Data)
		return err
	})
	if err != nil {
		return "", err
	}
	if len(files) == 0 { // a job without output has an empty log, not none
		if err := os.WriteFile(filepath.Join(dir, logFileName(api.LogFrame{}, nodes)), nil, 0o644); err != nil {
			return "", err
		}
	}
	for _, f := range files {
		if err := f.Close(); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// logFileName is the name of a rank's log, as on the cluster.
func logFileName(f api.LogFrame, nodes int) string {
	node := filepath.Base(f.Node)
	if f.Node == "" {
		node = api.NodeName(f.Rank)
	}
	switch {
	case nodes <= 1 && f.Phase == "setup":
		return "setup.log"
	case nodes <= 1:
		return "run.log"
	case f.Phase == "setup":
		return fmt.Sprintf("setup-%d-%s.log", f.Rank, node)
	}
	return fmt.Sprintf("%d-%s.log", f.RankInJob(), node)
}
