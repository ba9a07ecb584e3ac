package worker

import (
	"context"
	"sync"
	"time"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
)

const (
	// gather is how long what a cluster tells of an array's elements is gathered before it is written.
	gather = 300 * time.Millisecond
	// gatherMost bounds what is gathered, in events.
	gatherMost = 500
)

// elementSink takes in the events of a cluster that runs elements of an array: many at a time, since each write, each move of the cursor and
// each acknowledgement costs as much as a hundred events.
type elementSink struct {
	w      *watcher
	one    *watch
	client *agentapi.Client

	mu     sync.Mutex
	told   map[int]api.ArrayElement // by index, the latest
	events int
	cursor int64 // of the last event that was taken
	kept   int64 // of the last one that was written and acknowledged: a stream that breaks is begun anew behind it
	stop   context.CancelFunc
	wake   chan struct{}
	done   chan struct{}
}

// elements makes the sink for the event stream of the head of a cluster of an array, which stands at cursor; nil for any other stream.
func (w *watcher) elements(ctx context.Context, c *agentapi.Client, one *watch, rank int, cursor int64) *elementSink {
	if one.row.Array == 0 || rank != 0 {
		return nil
	}
	ctx, stop := context.WithCancel(ctx)
	s := &elementSink{w: w, one: one, client: c, told: map[int]api.ArrayElement{}, cursor: cursor, kept: cursor, stop: stop, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go s.flushNow(ctx)
	return s
}

// close ends the sink, and tells from where its stream is to be begun anew; without a sink that is cursor.
func (s *elementSink) close(cursor int64) int64 {
	if s == nil {
		return cursor
	}
	s.stop()
	<-s.done
	return s.kept
}

// flushNow writes what was gathered a while after the first of it came.
func (s *elementSink) flushNow(ctx context.Context) {
	defer close(s.done)
	for {
		select {
		case <-s.wake:
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(gather):
		case <-ctx.Done():
			return
		}
		s.mu.Lock()
		if err := s.flush(ctx); err != nil && ctx.Err() == nil {
			s.w.log.Warn("what a cluster told of an array's elements was not written; trying again", "cluster", s.one.row.Name, "error", err)
			s.ring()
		}
		s.mu.Unlock()
	}
}

func (s *elementSink) ring() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// take gathers an event of an element; any other is carried on at once, after what was gathered before.
func (s *elementSink) take(ctx context.Context, ev agentapi.Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ev.Type == agentapi.EventJob && ev.Job != nil && ev.Element != nil {
		if shown(*ev.Job) {
			e := activities.ElementOf(ev.Element.Batch, ev.Element.Index, *ev.Job)
			e.Cluster, e.ClusterHash = s.one.row.Name, s.one.row.Ref.Hash
			if e.EndAt != nil && e.Status == api.ManagedRunning {
				e.Reason = undecided(*ev.Job)
			}
			s.told[e.Index] = e
		}
		s.events++
		s.cursor = ev.Seq
		if s.events >= gatherMost {
			return s.flush(ctx)
		}
		s.ring()
		return nil
	}
	if err := s.write(ctx); err != nil {
		return err
	}
	if ev.Type == agentapi.EventBatch {
		o := activities.Observed{Hash: s.one.row.Ref.Hash, Kind: activities.ObservedBatch, Batch: ev.Batch}
		if err := s.w.signal(ctx, s.one.row, o); err != nil {
			return err
		}
	} else if err := s.w.event(ctx, s.one, ev); err != nil {
		return err
	}
	s.cursor = ev.Seq
	s.events++
	return s.flush(ctx)
}

// shown says that an element's row tells of a state of its job: of one that was cancelled the settling tells soon.
func shown(j api.Job) bool {
	return j.Status == api.JobRunning || j.Status == api.JobSucceeded || j.Status.Terminal() && j.Status != api.JobCancelled && j.StartAt != nil
}

// undecided is what an element's row says of a run that has ended and not succeeded.
func undecided(j api.Job) string {
	why := j.Reason
	if why == "" {
		why = string(j.Status)
	}
	return "ended: " + why + "; what follows is decided with the rest of its batch"
}

// write brings what was gathered into the store.
func (s *elementSink) write(ctx context.Context) error {
	if len(s.told) == 0 {
		return nil
	}
	list := make([]api.ArrayElement, 0, len(s.told))
	for _, e := range s.told {
		list = append(list, e)
	}
	if err := s.w.store.PutElements(ctx, s.one.row.Array, list); err != nil {
		return err
	}
	clear(s.told)
	return nil
}

// flush writes what was gathered, and then lets the agent forget it.
func (s *elementSink) flush(ctx context.Context) error {
	if s.events == 0 {
		return nil
	}
	if err := s.write(ctx); err != nil {
		return err
	}
	if err := s.w.store.AdvanceCursor(ctx, s.one.row.Ref.Hash, s.one.fence, s.cursor); err != nil {
		return err
	}
	actx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := s.client.Ack(actx, s.cursor); err != nil {
		return err
	}
	s.events, s.kept = 0, s.cursor
	return nil
}
