package api

import (
	"context"
	"net/url"
	"time"
)

// ScheduleSpec says when a schedule submits managed jobs.
type ScheduleSpec struct {
	Cron     string `json:"cron" doc:"five fields: minute, hour, day of month, month, day of week; or @hourly, @daily, @weekly, @monthly, @yearly"`
	Timezone string `json:"timezone,omitempty" doc:"a name like Europe/Berlin; UTC if empty"`
	// Overlap is what happens when the jobs of the last firing still run.
	Overlap        ScheduleOverlap `json:"overlap,omitempty" enum:"skip,buffer_one,buffer_all,cancel_other,allow_all"`
	CatchUpSeconds int64           `json:"catch_up_seconds,omitempty" doc:"firings that were missed, while no server ran, are made up for if they are this recent; 0: an hour"`
	Paused         bool            `json:"paused,omitempty"`
}

// ScheduleOverlap is what a schedule does when the jobs of its last firing still run.
type ScheduleOverlap string

// Overlap policies.
const (
	OverlapSkip        ScheduleOverlap = "skip"         // this firing is left out
	OverlapBufferOne   ScheduleOverlap = "buffer_one"   // one firing waits for the end of the last
	OverlapBufferAll   ScheduleOverlap = "buffer_all"   // all firings wait for the end of those before them
	OverlapCancelOther ScheduleOverlap = "cancel_other" // the jobs that still run are cancelled first
	OverlapAllowAll    ScheduleOverlap = "allow_all"    // they run side by side
)

// Overlaps are all policies.
var Overlaps = []ScheduleOverlap{OverlapSkip, OverlapBufferOne, OverlapBufferAll, OverlapCancelOther, OverlapAllowAll}

// DefaultCatchUp is how old a missed firing may be that is made up for, unless the schedule says otherwise.
const DefaultCatchUp = time.Hour

// JobSchedule is a row of `sky jobs schedules ls`.
type JobSchedule struct {
	ID   int64  `json:"schedule_id"`
	Name string `json:"name"`
	ScheduleSpec
	Note      string    `json:"note,omitempty" doc:"why it is paused"`
	User      string    `json:"user_name"`
	UserHash  string    `json:"user_hash"`
	Workspace string    `json:"workspace,omitempty"`
	NumJobs   int       `json:"num_jobs"`
	RequestID string    `json:"request_id"`
	Command   string    `json:"entrypoint,omitempty"`
	CreatedAt time.Time `json:"created_at"`
	// Next are the next firings, none while it is paused; Last those that were, the newest first.
	Next []time.Time      `json:"next_firings"`
	Last []ScheduleFiring `json:"last_firings"`
	// Skipped counts firings left out since the last one still ran, Missed those that were too old to be made up for.
	Skipped int64 `json:"skipped"`
	Missed  int64 `json:"missed"`
}

// ScheduleFiring is a firing of a schedule.
type ScheduleFiring struct {
	At     time.Time `json:"at" doc:"when it was due"`
	JobIDs []int64   `json:"job_ids"`
}

// JobScheduleList is the answer of GET /api/v1/jobs/schedules.
type JobScheduleList struct {
	Schedules []JobSchedule `json:"schedules" doc:"by number"`
}

// Changes of schedules.
const (
	SchedulePause    = "pause"
	ScheduleResume   = "resume"
	ScheduleDelete   = "delete"
	ScheduleTrigger  = "trigger"  // fire once, now
	ScheduleBackfill = "backfill" // fire for the times that were due from From to To
)

// MostBackfilled is for how many times of the past a schedule fires at one call.
const MostBackfilled = 400

// SchedulesChangeBody is POST /api/v1/jobs/schedules.
type SchedulesChangeBody struct {
	IDs    []int64 `json:"schedule_ids" minItems:"1" maxItems:"1000"`
	Action string  `json:"action" enum:"pause,resume,delete,trigger,backfill"`
	Note   string  `json:"note,omitempty" maxLength:"500" doc:"of pause and resume"`
	// RequestID makes trigger and backfill repeatable: the same id fires once.
	RequestID string `json:"request_id,omitempty" maxLength:"100" doc:"of trigger and backfill: the same id fires once"`
	// From and To are of backfill, both included.
	From *time.Time `json:"from,omitempty"`
	To   *time.Time `json:"to,omitempty"`
	// Overlap, of trigger and backfill, is used instead of the schedule's own; a backfill without one lets all wait for each other.
	Overlap ScheduleOverlap `json:"overlap,omitempty" enum:"skip,buffer_one,buffer_all,cancel_other,allow_all"`
}

// SchedulesChangeReply lists what was changed.
type SchedulesChangeReply struct {
	IDs []int64 `json:"schedule_ids"`
	// Firings are, of a backfill, the times for which the schedule fires.
	Firings []time.Time `json:"firings,omitempty"`
}

// Schedules lists schedules of managed jobs, of one user unless userHash is empty.
func (c *Client) Schedules(ctx context.Context, userHash string, ids ...int64) (*JobScheduleList, error) {
	q := url.Values{}
	setString(q, "user_hash", userHash)
	setString(q, "ids", FormatIDs(ids))
	out := &JobScheduleList{}
	return out, c.call(ctx, "GET", prefix+"/jobs/schedules", q, nil, out)
}

// ChangeSchedules pauses, resumes or deletes schedules, or has them fire. It is done when this returns, or the firings are under way; an
// unknown schedule changes nothing.
func (c *Client) ChangeSchedules(ctx context.Context, b *SchedulesChangeBody) (*SchedulesChangeReply, error) {
	out := &SchedulesChangeReply{}
	return out, c.call(ctx, "POST", prefix+"/jobs/schedules", nil, b, out)
}
