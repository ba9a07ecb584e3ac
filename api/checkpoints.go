package api

import (
	"context"
	"strconv"
	"time"
)

// Checkpoint is a saved folder of a task of a managed job. It is complete: rows of others do not exist.
type Checkpoint struct {
	JobID   int64     `json:"job_id"`
	TaskID  int       `json:"task_id"`
	N       int       `json:"checkpoint" doc:"number within the task, from 1"`
	Attempt int       `json:"attempt" doc:"which saved it"`
	Ranks   int       `json:"ranks" doc:"nodes that are part of it"`
	Files   int       `json:"files"`
	Bytes   int64     `json:"bytes" doc:"of all files; content that did not change is kept once"`
	SavedAt time.Time `json:"saved_at"`
	Why     string    `json:"why" doc:"interval, notice, demand or end (of an attempt that was given up)"`
	// Manifests name the content, by rank.
	Manifests []string `json:"manifests"`
	// Where is the address of what tells of it in a bucket; empty: the server keeps it.
	Where string `json:"where,omitempty" doc:"address in the bucket that the task names; none: the server keeps it"`
	// Warnings are about the save that has just been made; they are not kept.
	Warnings []string `json:"warnings,omitempty" doc:"of the save just made, such as a program that did not write in time"`
	// Taken orders the pictures of an attempt, in microseconds of its head's clock.
	Taken int64 `json:"-"`
}

// CheckpointList is the answer of GET /api/v1/jobs/{id}/checkpoints.
type CheckpointList struct {
	Checkpoints []Checkpoint `json:"checkpoints" doc:"of all tasks, each from the newest"`
}

// Checkpoints lists what was saved of a managed job.
func (c *Client) Checkpoints(ctx context.Context, id int64) (*CheckpointList, error) {
	out := &CheckpointList{}
	return out, c.call(ctx, "GET", checkpointPath(id, "checkpoints"), nil, nil, out)
}

// SaveCheckpoints saves the folders of a managed job's running tasks now, and tells what stands afterwards.
func (c *Client) SaveCheckpoints(ctx context.Context, id int64) (*CheckpointList, error) {
	out := &CheckpointList{}
	return out, c.call(ctx, "POST", checkpointPath(id, "checkpoint"), nil, nil, out)
}

func checkpointPath(id int64, what string) string {
	return prefix + "/jobs/" + strconv.FormatInt(id, 10) + "/" + what
}
