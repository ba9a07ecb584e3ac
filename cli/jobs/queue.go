package jobs

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/jobtable"
	"github.com/skyloom/skyloom/cli/session"
)

// QueueOptions is `sky jobs queue`.
type QueueOptions struct {
	Verbose      bool
	Limit        int
	All          bool
	SkipFinished bool
	Statuses     []api.ManagedStatus
	Since        *time.Time
	Before       *time.Time
	AllUsers     bool
	Output       string
	// Elements asks for those of an array instead; nil: for jobs.
	Elements *ElementsOptions
}

// defaultLimit is how many jobs are listed when nothing else is said.
const defaultLimit = 50

var statuses = api.ManagedStatuses

// foreign are states of the older product that no job has here; asking for them finds nothing.
var foreign = []api.ManagedStatus{"SUBMITTED", "WINDING_DOWN", "FAILED_CONTROLLER"}

// NewQueue makes `sky jobs queue`.
func NewQueue(s *session.Session, run func(context.Context, *session.Session, *QueueOptions) error) *cobra.Command {
	o := &QueueOptions{}
	if run == nil {
		run = Queue
	}
	var status listValue
	var since, after, before string
	var elements rangeValue
	cmd := &cobra.Command{
		Use:   "queue [JOB_ID --elements]",
		Short: "Show managed jobs",
		Long: `Show your managed jobs, the newest first, and what those that wait are waiting for.

Times are local: 2026-03-01, "2026-03-01 14:30", 03-01-2026. A status is any of
PENDING, STARTING, RUNNING, RECOVERING, CANCELLING, SUCCEEDED, CANCELLED, FAILED,
FAILED_SETUP, FAILED_PRECHECKS, FAILED_NO_RESOURCE.

With --elements: the elements of an array, each PENDING, RUNNING, SUCCEEDED, FAILED or
CANCELLED; --elements=17, --elements=0-99 and --elements=100- show a part of them.`,
		Example: "  sky jobs queue\n  sky jobs queue --status=RUNNING,PENDING -u\n  sky jobs queue --since 2d -v\n  sky jobs queue -a -o json\n  sky jobs queue 7 --elements --status=FAILED",
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			bare := false
			var array []string
			if elements != "" {
				array, args = args, nil
			}
			if o.Statuses, bare, err = statusFilter(status, args); err != nil {
				return err
			}
			if bare {
				s.IO.Warnf("-s without a state is deprecated; use --skip-finished.")
				o.SkipFinished = true
			}
			if since != "" && after != "" {
				return session.Usagef("--since and --after can't be combined")
			}
			if o.Limit < 1 {
				return session.Usagef("--limit must be 1 or more; all jobs: -a")
			}
			if since != "" {
				d, err := span(since)
				if err != nil {
					return err
				}
				at := s.Now().Add(-d)
				o.Since = &at
			}
			for _, t := range []struct {
				flag, text string
				to         **time.Time
			}{{"--after", after, &o.Since}, {"--before", before, &o.Before}} {
				if t.text != "" {
					if *t.to, err = moment(t.flag, t.text); err != nil {
						return err
					}
				}
			}
			if elements != "" {
				if o.Elements, err = elementsOf(o, string(elements), array); err != nil {
					return err
				}
			}
			return run(cmd.Context(), s, o)
		},
	}
	fs := cmd.Flags()
	fs.Var(&elements, "elements", "the elements of an array, all or those in a range: --elements=`FIRST-LAST`")
	fs.Lookup("elements").NoOptDefVal = allElements
	fs.BoolVarP(&o.Verbose, "verbose", "v", false, "more columns")
	fs.IntVarP(&o.Limit, "limit", "l", defaultLimit, "at most `N` jobs")
	refreshIgnored(fs)
	fs.BoolVar(&o.SkipFinished, "skip-finished", false, "only jobs that have not ended")
	fs.VarP(&status, "status", "s", "only jobs in these states: `S1,S2`; repeatable")
	fs.Lookup("status").NoOptDefVal = bareStatus
	fs.StringVar(&since, "since", "", "only jobs submitted in the last `DUR`: 30m, 48h, 7d, 2w; a bare number is seconds")
	fs.StringVar(&after, "after", "", "only jobs submitted at `TIME` or later")
	fs.StringVar(&before, "before", "", "only jobs submitted before `TIME`")
	fs.BoolVarP(&o.AllUsers, "all-users", "u", false, "jobs of all users")
	fs.BoolVarP(&o.All, "all", "a", false, "all jobs, however many")
	addOutput(fs, &o.Output)
	_ = cmd.RegisterFlagCompletionFunc("status", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		names := make([]string, len(statuses))
		for i, st := range statuses {
			names[i] = string(st)
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	})
	return cmd
}

// allElements stands for --elements without a value.
const allElements = "true"

// rangeValue is the value of a flag that may stand without one.
type rangeValue string

func (v *rangeValue) Set(s string) error { *v = rangeValue(s); return nil }
func (v *rangeValue) String() string     { return string(*v) }
func (v *rangeValue) Type() string       { return "bool" } // help then shows no value for the bare form

// bareStatus stands for -s without a value, which once was the short form of --skip-finished.
const bareStatus = "true"

// listValue gathers the values of a flag that may stand without one.
type listValue []string

func (l *listValue) Set(v string) error { *l = append(*l, v); return nil }
func (l *listValue) String() string     { return "" }
func (l *listValue) Type() string       { return "bool" } // help then shows no value for the bare form

// statusFilter reads the values of --status, and says whether it stood alone. Since it may, a value after a space arrives
// as a word.
func statusFilter(given, words []string) (out []api.ManagedStatus, alone bool, err error) {
	var names []string
	bare := 0
	for _, g := range given {
		if g == bareStatus {
			bare++
		} else {
			names = append(names, strings.Split(g, ",")...)
		}
	}
	if len(words) > 0 && bare < len(words) {
		return nil, false, session.Usagef("sky jobs queue takes no %q; see a single job with: sky jobs events ID", words[0])
	}
	for _, w := range words {
		names = append(names, strings.Split(w, ",")...)
	}
	for _, n := range names {
		st := api.ManagedStatus(strings.ToUpper(strings.TrimSpace(n)))
		if !slices.Contains(statuses, st) && !slices.Contains(foreign, st) {
			return nil, false, session.Usagef("--status: there is no state %q; the states are %s", n, strings.Trim(strings.Join(strings.Fields(fmt.Sprint(statuses)), ", "), "[]"))
		}
		out = append(out, st)
	}
	return out, bare > len(words), nil
}

var spanPattern = regexp.MustCompile(`^(\d{1,9})([smhdw]?)$`)

// span reads a duration such as 30m, 48h, 7d, 2w; a bare number is seconds.
func span(text string) (time.Duration, error) {
	m := spanPattern.FindStringSubmatch(strings.ToLower(strings.TrimSpace(text)))
	if m == nil {
		return 0, session.Usagef("--since: %q is no time; write 30m, 48h, 7d or 2w", text)
	}
	n, _ := strconv.Atoi(m[1])
	unit := map[string]time.Duration{"": time.Second, "s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour, "w": 7 * 24 * time.Hour}[m[2]]
	if n > int((100*365*24*time.Hour)/unit) {
		return 0, session.Usagef("--since: %q is too long ago", text)
	}
	return time.Duration(n) * unit, nil
}

var layouts = []string{"2006-01-02", "2006-01-02 15:04", "2006-01-02 15:04:05", "2006-01-02T15:04", "2006-01-02T15:04:05", "01-02-2006", "01-02-2006 15:04:05"}

// moment reads a local time.
func moment(flag, text string) (*time.Time, error) {
	for _, l := range layouts {
		if t, err := time.ParseInLocation(l, strings.TrimSpace(text), time.Local); err == nil {
			return &t, nil
		}
	}
	return nil, session.Usagef("%s: %q is no time; write 2026-03-01, \"2026-03-01 14:30\", 2026-03-01T14:30:00 or 03-01-2026", flag, text)
}

// Queue shows managed jobs.
func Queue(ctx context.Context, s *session.Session, o *QueueOptions) error {
	if o.Elements != nil {
		return Elements(ctx, s, o.Elements)
	}
	c, err := s.Client(ctx)
	if err != nil {
		return err
	}
	f := api.ManagedFilter{Statuses: o.Statuses, SkipFinished: o.SkipFinished, Since: o.Since, Before: o.Before, Limit: o.Limit, Full: o.Output == "json"}
	if o.All {
		f.Limit = 0
	}
	if !o.AllUsers {
		f.UserHash = s.User().Hash
	}
	f.Statuses = slices.DeleteFunc(slices.Clone(f.Statuses), func(st api.ManagedStatus) bool { return slices.Contains(foreign, st) })
	list := &api.ManagedList{}
	if len(f.Statuses) > 0 || len(o.Statuses) == 0 {
		if list, err = c.ManagedJobs(ctx, f); err != nil {
			return err
		}
	}
	if o.Output == "json" {
		return s.PrintJSON(jobtable.JSON(list.Jobs, s.Now()))
	}
	io := s.IO
	io.Printf("%s\n", io.OutStyle(session.Bold, "Managed jobs"))
	if text := jobtable.InProgress(io, list.Counts); text != "" {
		io.Printf("%s\n", text)
	}
	if len(list.Jobs) == 0 {
		if o.SkipFinished {
			io.Printf("No managed jobs in progress.\n")
		} else {
			io.Printf("No managed jobs.\n")
		}
		return nil
	}
	if err := jobtable.Table(io, list.Jobs, jobtable.Columns{Verbose: o.Verbose, AllUsers: o.AllUsers}, s.Now()).Print(io.Out); err != nil {
		return err
	}
	if shown := len(jobtable.ByJob(list.Jobs)); shown < list.Total {
		io.Printf("\nThese are the newest %d of %d jobs. All of them: sky jobs queue -a\n", shown, list.Total)
	}
	return nil
}
