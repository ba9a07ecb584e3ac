package store

import (
	"strconv"
	"sync"
)

// Topics of Subscribe.
const (
	AllTopic       = "all"          // any request, cluster, managed job or event
	WatchTopic     = "watches"      // a watch was put or removed
	ManagedTopic   = "managed-jobs" // any managed job's row
	AdmissionTopic = "admissions"   // a managed job asked for admission, was let in or made room
	WaitTopic      = "waits"        // what a managed job waited for has come
)

// RequestTopic is told of a request's status and events.
func RequestTopic(id string) string { return "request/" + id }

// ClusterTopic is told of a cluster's row, jobs and events.
func ClusterTopic(name string) string { return "cluster/" + name }

// JobTopic is told of a managed job's rows and events.
func JobTopic(id int64) string { return "job/" + strconv.FormatInt(id, 10) }

// hub tells subscribers of this process that something was committed.
type hub struct {
	mu   sync.Mutex
	subs map[string]map[chan struct{}]struct{}
}

// Subscribe returns a channel that becomes readable after a commit that touched one of the topics; several commits may
// show as one. Subscribe first, read the state then. It hears this process only: where several servers share a database,
// poll every second or so as well. Call cancel when done.
func (s *Store) Subscribe(topics ...string) (ch <-chan struct{}, cancel func()) {
	c := make(chan struct{}, 1)
	h := &s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.subs == nil {
		h.subs = map[string]map[chan struct{}]struct{}{}
	}
	for _, t := range topics {
		if h.subs[t] == nil {
			h.subs[t] = map[chan struct{}]struct{}{}
		}
		h.subs[t][c] = struct{}{}
	}
	return c, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, t := range topics {
			delete(h.subs[t], c)
			if len(h.subs[t]) == 0 {
				delete(h.subs, t)
			}
		}
	}
}

func (h *hub) publish(topics map[string]struct{}) {
	if len(topics) == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	all := false
	for t := range topics {
		all = all || (t != WatchTopic && t != AdmissionTopic && t != WaitTopic)
		h.tell(t)
	}
	if all {
		h.tell(AllTopic)
	}
}

func (h *hub) tell(topic string) {
	for c := range h.subs[topic] {
		select {
		case c <- struct{}{}:
		default: // it will look anyway
		}
	}
}
