package api

import (
	"context"
	"net/url"
	"strconv"
	"time"
)

// ArrayProgress is what the row of an array tells of its elements.
type ArrayProgress struct {
	Count    int `json:"count" doc:"elements in all"`
	Parallel int `json:"parallel" doc:"clusters used at the same time, at most"`
	Clusters int `json:"clusters" doc:"clusters that run elements now"`
	// Counts holds PENDING, RUNNING, SUCCEEDED, FAILED and CANCELLED; those with none are left out.
	Counts map[ManagedStatus]int `json:"counts" doc:"elements by state"`
}

// ArrayElement is one element of an array.
type ArrayElement struct {
	Index  int           `json:"index" doc:"from 0"`
	Status ManagedStatus `json:"status" doc:"PENDING, RUNNING, SUCCEEDED, FAILED or CANCELLED"`
	// Values are the element's environment, if the array has values.
	Values       map[string]string `json:"values,omitempty"`
	Attempt      int               `json:"attempt" doc:"how often it was handed to a cluster"`
	Restarts     int               `json:"restart_count" doc:"after errors of the user's code"`
	ExitCodes    []int             `json:"exit_codes,omitempty" doc:"by rank, of the latest attempt"`
	Reason       string            `json:"reason,omitempty" doc:"why it failed, or runs again"`
	StartAt      *time.Time        `json:"start_at,omitempty"`
	EndAt        *time.Time        `json:"end_at,omitempty"`
	Cluster      string            `json:"cluster_name,omitempty" doc:"where it runs, or ran last"`
	ClusterHash  string            `json:"cluster_hash,omitempty"`
	ClusterJobID int64             `json:"cluster_job_id,omitempty"`
	Batch        int64             `json:"batch,omitempty"`
}

// ElementList is the answer of GET /api/v1/jobs/{id}/elements.
type ElementList struct {
	Elements []ArrayElement `json:"elements" doc:"by rising index"`
	// Next is where the list goes on, if the limit cut it: ask again with first.
	Next   *int                  `json:"next,omitempty" doc:"the first element that was not looked at"`
	Counts map[ManagedStatus]int `json:"counts" doc:"elements by state, whatever the filter says"`
}

// ElementFilter selects elements of an array.
type ElementFilter struct {
	Statuses []ManagedStatus
	// First and Last bound the index; Last below 0: to the end.
	First, Last int
	Limit       int // so many; 0: all
}

// Elements lists elements of an array. A job that is no array is an *Error of kind ErrInvalid.
func (c *Client) Elements(ctx context.Context, id int64, f ElementFilter) (*ElementList, error) {
	q := url.Values{}
	for _, s := range f.Statuses {
		q.Add("status", string(s))
	}
	if f.First > 0 {
		q.Set("first", strconv.Itoa(f.First))
	}
	if f.Last >= 0 {
		q.Set("last", strconv.Itoa(f.Last))
	}
	if f.Limit > 0 {
		q.Set("limit", strconv.Itoa(f.Limit))
	}
	out := &ElementList{}
	return out, c.call(ctx, "GET", managedPath(id, "elements"), q, nil, out)
}
