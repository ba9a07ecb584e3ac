// Package jobtable shows managed jobs as rows: for `sky jobs queue` and for the section of `sky status`. It keeps no
// state and makes no calls.
package jobtable

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/console"
	"github.com/skyloom/skyloom/cli/session"
	"github.com/skyloom/skyloom/cli/table"
)

// Columns say what a table shows beyond the usual.
type Columns struct {
	Verbose  bool
	AllUsers bool
}

// widest cell of what a job waits for, where it is not asked for.
const detailsWidth = 70

// Table makes the table of jobs, whose rows come with the newest job first and its tasks in order.
func Table(io *console.Console, rows []api.ManagedJob, c Columns, now time.Time) *table.Table {
	workspaces, waits, notified := map[string]bool{}, false, false
	for _, r := range rows {
		notified = notified || r.Notices != nil
		workspaces[r.Workspace] = true
		waits = waits || why(r, now) != "" && !r.Status.Terminal()
	}
	showWS := c.Verbose || len(workspaces) > 1
	head := []string{"ID", "TASK"}
	if showWS {
		head = append(head, "WORKSPACE")
	}
	head = append(head, "NAME")
	if c.AllUsers {
		head = append(head, "USER")
		if c.Verbose {
			head = append(head, "USER_ID")
		}
	}
	head = append(head, "REQUESTED", "SUBMITTED", "TOT. DURATION", "JOB DURATION", "#RECOVERIES", "STATUS", "PROGRESS", "POOL")
	if c.Verbose {
		head = append(head, "WORKER_CLUSTER", "WORKER_JOB_ID", "STARTED", "INFRA", "RESOURCES", "SCHED. STATE", "DETAILS", "GIT_COMMIT")
		if notified {
			head = append(head, "NOTIFIED")
		}
	} else if waits {
		head = append(head, "DETAILS")
	}
	t := table.New(head...)
	t.Style = func(h string) string { return io.OutStyle(session.Bold, h) }
	row := func(id, task, name, status string, r api.ManagedJob) {
		cells := []any{id, task}
		if showWS {
			cells = append(cells, r.Workspace)
		}
		cells = append(cells, name)
		if c.AllUsers {
			cells = append(cells, r.User)
			if c.Verbose {
				cells = append(cells, r.UserHash)
			}
		}
		total := time.Duration(0)
		if !r.SubmittedAt.IsZero() {
			end := now
			if r.EndAt != nil {
				end = *r.EndAt
			}
			total = end.Sub(r.SubmittedAt)
		}
		cells = append(cells, r.Resources, table.Ago(now, r.SubmittedAt), table.Span(total), table.Span(Ran(r, now)), r.Recoveries, status, Progress(r), "")
		if c.Verbose {
			job := ""
			if r.ClusterJobID > 0 {
				job = fmt.Sprint(r.ClusterJobID)
			}
			git := r.Metadata["git_commit"]
			if len(git) > 12 {
				git = git[:12]
			}
			cells = append(cells, r.Cluster, job, table.AgoPtr(now, r.StartAt), r.Infra, r.ClusterRes, Schedule(r), why(r, now), git)
			if notified {
				cells = append(cells, Notified(r.Notices))
			}
		} else if waits {
			text := ""
			if !r.Status.Terminal() {
				text = console.Cut(why(r, now), detailsWidth)
			}
			cells = append(cells, text)
		}
		t.Row(cells...)
	}
	for _, job := range ByJob(rows) {
		id := fmt.Sprint(job[0].ID)
		if len(job) == 1 && job[0].NumTasks <= 1 {
			row(id, "", job[0].Name, Status(io, job[0].Status), job[0])
			continue
		}
		sum, current := whole(job)
		status := Status(io, sum.Status)
		if !sum.Status.Terminal() {
			status += fmt.Sprintf(" (task: %d)", current)
		}
		row(id, "", sum.Name, status, sum)
		auxiliaries := false
		for _, r := range job {
			auxiliaries = auxiliaries || (r.Group && !r.Primary)
		}
		for _, r := range job {
			name := r.TaskName
			if auxiliaries && r.Primary {
				name += " [P]"
			}
			row(" ↳", fmt.Sprint(r.TaskID), name, Status(io, r.Status), r)
		}
	}
	return t
}

// ByJob groups rows by their job, in the order in which they come.
func ByJob(rows []api.ManagedJob) [][]api.ManagedJob {
	var out [][]api.ManagedJob
	for i, r := range rows {
		if i == 0 || rows[i-1].ID != r.ID {
			out = append(out, nil)
		}
		out[len(out)-1] = append(out[len(out)-1], r)
	}
	return out
}

// whole is a job of several tasks as one row, and the task that its state comes from.
func whole(job []api.ManagedJob) (sum api.ManagedJob, current int) {
	status, decisive := api.ManagedState(job)
	sum = api.ManagedJob{ID: job[0].ID, Notices: job[0].Notices, NumTasks: len(job), Name: job[0].Name, Status: status, User: job[0].User, UserHash: job[0].UserHash, Workspace: job[0].Workspace,
		SubmittedAt: job[0].SubmittedAt, Metadata: job[0].Metadata}
	over := true
	for _, r := range job {
		sum.Recoveries += r.Recoveries
		sum.RunSeconds += r.RunSeconds
		if r.StartAt != nil && (sum.StartAt == nil || r.StartAt.Before(*sum.StartAt)) {
			sum.StartAt = r.StartAt
		}
		if r.RunningSince != nil && (sum.RunningSince == nil || r.RunningSince.Before(*sum.RunningSince)) {
			sum.RunningSince = r.RunningSince
		}
		over = over && r.Status.Terminal()
		if r.EndAt != nil && (sum.EndAt == nil || r.EndAt.After(*sum.EndAt)) {
			sum.EndAt = r.EndAt
		}
	}
	if !over {
		sum.EndAt = nil
	}
	return sum, decisive.TaskID
}

// Ran is how long a task has run, over all attempts, up to now.
func Ran(r api.ManagedJob, now time.Time) time.Duration {
	d := time.Duration(r.RunSeconds * float64(time.Second))
	if r.RunningSince != nil && !r.Status.Terminal() {
		d += max(0, now.Sub(*r.RunningSince))
	}
	return d
}

// Progress is how many elements of an array have ended, "" for any other job.
func Progress(r api.ManagedJob) string {
	if r.Array == nil {
		return ""
	}
	n := r.Array.Counts
	text := fmt.Sprintf("%d/%d", n[api.ManagedSucceeded]+n[api.ManagedFailed]+n[api.ManagedCancelled], r.Array.Count)
	if f := n[api.ManagedFailed]; f > 0 {
		text += fmt.Sprintf(" (%d failed)", f)
	}
	return text
}

// Notified says what became of a job's notifications, "" if nobody is told.
func Notified(n *api.NoticeCounts) string {
	if n == nil {
		return ""
	}
	text := fmt.Sprint(n.Delivered)
	if n.Dropped > 0 {
		text += fmt.Sprintf(", %d dropped", n.Dropped)
	}
	if n.Waiting > 0 {
		text += fmt.Sprintf(", %d waiting", n.Waiting)
	}
	return text
}

// ElementCounts says how many elements of an array are in which state.
func ElementCounts(counts map[api.ManagedStatus]int) string {
	var parts []string
	for _, st := range []api.ManagedStatus{api.ManagedPending, api.ManagedRunning, api.ManagedSucceeded, api.ManagedFailed, api.ManagedCancelled} {
		if n := counts[st]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, st))
		}
	}
	return strings.Join(parts, ", ")
}

// why says what a job waits for, or why it ended as it did.
func why(r api.ManagedJob, now time.Time) string {
	text := r.Details
	if r.Status.Terminal() {
		text = r.FailureReason
	}
	text = strings.TrimSpace(text)
	if r.NextRetry != nil && !r.Status.Terminal() {
		next := "tries again now"
		if d := r.NextRetry.Sub(now); d > time.Second {
			next = "tries again in " + table.Span(d)
		}
		if text == "" {
			return next
		}
		text = next + ": " + text
	}
	return text
}

// Schedule is where a task stands in the queue for launches.
func Schedule(r api.ManagedJob) string {
	switch {
	case r.Status.Terminal():
		return "DONE"
	case r.NextRetry != nil:
		return "ALIVE_BACKOFF"
	case r.Status == api.ManagedPending:
		return "WAITING"
	case r.Status == api.ManagedStarting:
		return "LAUNCHING"
	case r.Status == api.ManagedRecovering && r.Details != "":
		return "ALIVE_WAITING"
	case r.Status == api.ManagedRecovering:
		return "LAUNCHING"
	}
	return "ALIVE"
}

// Status paints a state.
func Status(io *console.Console, st api.ManagedStatus) string {
	style := session.Cyan
	switch st {
	case api.ManagedSucceeded, api.ManagedRunning:
		style = session.Green
	case api.ManagedFailed, api.ManagedFailedSetup, api.ManagedFailedPrechecks, api.ManagedFailedNoResource:
		style = session.Red
	case api.ManagedCancelled, api.ManagedCancelling, api.ManagedRecovering:
		style = session.Yellow
	}
	return io.OutStyle(style, string(st))
}

// inProgress are the states of jobs that have not ended, in the order in which they are told.
var inProgress = []api.ManagedStatus{api.ManagedPending, api.ManagedStarting, api.ManagedRunning, api.ManagedRecovering, api.ManagedCancelling}

// InProgress says how many tasks are in which state, "" if all have ended.
func InProgress(io *console.Console, counts map[api.ManagedStatus]int) string {
	var parts []string
	for _, st := range inProgress {
		if n := counts[st]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, Status(io, st)))
		}
	}
	if len(parts) == 0 {
		return ""
	}
	return "In progress tasks: " + strings.Join(parts, ", ")
}

// promised are the fields that each JSON record has, null where nothing is known.
var promised = []string{"failure_reason", "details", "current_cluster_name", "cluster_hash", "cluster_resources", "cluster_resources_full", "cloud", "region", "zone", "infra",
	"workspace", "priority_class", "user_yaml", "entrypoint", "metadata", "controller_pid", "pool", "pool_hash", "job_id_on_pool_cluster", "accelerators", "labels", "links", "node_names",
	"execution", "batch_total_batches", "batch_completed_batches", "internal_external_ips", "internal_services", "exit_codes", "next_retry", "notices"}

// JSON gives each row the fields that are promised.
func JSON(rows []api.ManagedJob, now time.Time) []map[string]any {
	out := make([]map[string]any, 0, len(rows))
	for _, r := range rows {
		b, _ := json.Marshal(r)
		m := map[string]any{}
		_ = json.Unmarshal(b, &m)
		m["job_duration"] = Ran(r, now).Seconds()
		m["schedule_state"] = Schedule(r)
		m["is_batch"], m["is_job_group"], m["is_primary_in_job_group"] = false, r.Group, nil
		if r.Group {
			m["is_primary_in_job_group"] = r.Primary
			m["execution"] = "parallel"
		} else if r.NumTasks > 1 {
			m["execution"] = "serial"
		}
		if r.ClusterRes != "" {
			m["cluster_resources_full"] = r.ClusterRes
		}
		for _, k := range promised {
			if _, ok := m[k]; !ok {
				m[k] = nil
			}
		}
		out = append(out, m)
	}
	return out
}
