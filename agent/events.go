package agent

import (
	"context"
	"encoding/json"
	"io"
	"sort"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/agent/durable"
)

// maxEvents is how many unacknowledged events are kept before older ones of the same job are dropped.
const maxEvents = 10_000

// keepAlive is the longest silence of an event stream.
const keepAlive = 15 * time.Second

// addEvent numbers an event and puts it into the batch (a batch of its own if nil). The caller holds a.mu.
func (a *Agent) addEvent(b *durable.Batch, ev agentapi.Event) {
	own := b == nil
	if own {
		b = &durable.Batch{}
	}
	a.meta.LastEvent++
	ev.Seq, ev.Time = a.meta.LastEvent, a.now()
	if ev.Job != nil {
		row := *ev.Job
		ev.Job = &row
	}
	b.Put(eventKey(ev.Seq), ev)
	a.events = append(a.events, ev)
	if len(a.events) > a.coalesceAt {
		a.coalesce(b)
	}
	if own {
		a.commit(b)
	}
	a.notify()
}

// rowChanged gives a job's row its next version, and puts row and event into the batch. The caller holds a.mu.
func (a *Agent) rowChanged(b *durable.Batch, j *jobState) {
	j.Row.Seq = a.meta.LastEvent + 1
	ev := agentapi.Event{Type: agentapi.EventJob, Job: &j.Row}
	if j.Batch > 0 {
		ev.Element = &agentapi.Element{Batch: j.Batch, Index: j.Element}
	}
	a.addEvent(b, ev)
	b.Put(jobKey(j.Row.ID), j.jobRecord)
}

// coalesce keeps of each job only the newest event, and of the others the newest thousand.
func (a *Agent) coalesce(b *durable.Batch) {
	seen := map[int64]bool{}
	others := 0
	var kept []agentapi.Event
	for i := len(a.events) - 1; i >= 0; i-- {
		ev := a.events[i]
		keep := false
		if ev.Job != nil {
			keep = !seen[ev.Job.ID]
			seen[ev.Job.ID] = true
		} else {
			others++
			keep = others <= 1000
		}
		if keep {
			kept = append(kept, ev)
		} else {
			b.Delete(eventKey(ev.Seq))
		}
	}
	sort.Slice(kept, func(i, j int) bool { return kept[i].Seq < kept[j].Seq })
	a.events = kept
	a.coalesceAt = max(maxEvents, 2*len(kept))
}

// Ack forgets events up to seq.
func (a *Agent) Ack(seq int64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	seq = min(seq, a.meta.LastEvent)
	if seq <= a.meta.Acked {
		return nil
	}
	a.meta.Acked = seq
	i := sort.Search(len(a.events), func(i int) bool { return a.events[i].Seq > seq })
	a.events = append([]agentapi.Event(nil), a.events[i:]...)
	b := &durable.Batch{}
	b.Put(keyMeta, a.meta)
	a.commit(b)
	return nil
}

// after gives the events after seq, and a channel that tells of more.
func (a *Agent) after(seq int64, limit int) ([]agentapi.Event, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	i := sort.Search(len(a.events), func(i int) bool { return a.events[i].Seq > seq })
	evs := a.events[i:]
	if len(evs) > limit {
		evs = evs[:limit]
	}
	return append([]agentapi.Event(nil), evs...), a.changed
}

// streamEvents writes events after seq to w until ctx ends; flush is called whenever there is nothing more to send. What push
// has of a job's log goes between them.
func (a *Agent) streamEvents(ctx context.Context, w io.Writer, flush func(), seq int64, every time.Duration, push pusher) error {
	enc := json.NewEncoder(w)
	flush()
	var look <-chan time.Time
	if push != nil {
		t := time.NewTicker(push.looks())
		defer t.Stop()
		look = t.C
	}
	beat := time.NewTimer(every)
	defer beat.Stop()
	for {
		evs, more := a.after(seq, 256)
		if len(evs) > 0 {
			// Sent means durable. On a disk in trouble it is sent all the same: exit records tell it again after a crash.
			if err := a.journal.Sync(); err != nil {
				a.log.Warn("events are sent before they are safe", "error", err)
			}
			for _, ev := range evs {
				if err := enc.Encode(ev); err != nil {
					return err
				}
				seq = ev.Seq
			}
			flush()
			beat.Reset(every)
			continue
		}
		sent := false
		if push != nil {
			var err error
			if sent, err = push.push(enc); err != nil {
				return err
			}
		}
		if sent {
			flush()
			beat.Reset(every)
			continue
		}
		select {
		case <-more:
		case <-look:
		case <-beat.C:
			if _, err := io.WriteString(w, "\n"); err != nil {
				return err
			}
			flush()
			beat.Reset(every)
		case <-ctx.Done():
			return nil
		case <-a.stop:
			return nil
		}
	}
}
