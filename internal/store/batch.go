package store

import (
	"context"

	"github.com/skyloom/skyloom/api"
)

// Batch is what one step of a workflow tells the world, written in one transaction. Stale and repeated parts are skipped.
type Batch struct {
	// Durable waits until the batch is on disk; set by itself if there are Creates.
	Durable bool
	// Creates are rows of requests that did not come through the API. An id that exists is skipped.
	Creates     []NewRequest
	Clusters    []api.Cluster
	Jobs        []JobsUpdate
	EndJobs     []EndJobs
	ManagedJobs []api.ManagedJob
	// NoticeStreams come before ManagedJobs: they are told of the states written here.
	NoticeStreams []NoticeStream
	// ManagedFiles come after ManagedJobs: a job that has ended keeps nothing.
	ManagedFiles []ManagedFiles
	UsageStarts  []UsageStart
	UsageEnds    []UsageEnd
	Watches      []Watch
	Unwatches    []string // hashes
	Removals     []Removal
	Requests     []RequestUpdate
	Events       []Event
}

// Write applies a batch in one transaction, all or nothing. Removals come after the rows they follow; events come last, so
// that whoever is told of one sees the state it speaks of.
func (s *Store) Write(ctx context.Context, b Batch) error {
	return s.update(ctx, b.Durable || len(b.Creates) > 0, func(t *txn) error { return t.write(b) })
}

func (t *txn) write(b Batch) error {
	for _, v := range b.Creates {
		if _, err := t.createRequest(v); err != nil {
			return err
		}
	}
	return firstErr(
		each(b.Clusters, t.putCluster),
		each(b.Jobs, t.putJobs),
		each(b.EndJobs, t.endJobs),
		each(b.NoticeStreams, t.putStream),
		each(b.ManagedJobs, t.putManaged),
		each(b.ManagedFiles, t.keepFiles),
		each(b.UsageStarts, t.usageStart),
		each(b.UsageEnds, t.usageEnd),
		each(b.Watches, t.putWatch),
		each(b.Unwatches, t.deleteWatch),
		each(b.Removals, func(r Removal) error { return t.removeCluster(r, nil) }),
		each(b.Requests, t.setRequest),
		each(b.Events, t.appendEvent),
	)
}

func each[T any](xs []T, f func(T) error) func() error {
	return func() error {
		for _, x := range xs {
			if err := f(x); err != nil {
				return err
			}
		}
		return nil
	}
}

func firstErr(fs ...func() error) error {
	for _, f := range fs {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}
