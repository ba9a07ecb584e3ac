package store

import (
	"strconv"
	"strings"
	"sync"
)

// Topics of Subscribe.
const (
	AllTopic       = "all"          // any request, cluster, managed job or event
	WatchTopic     = "watches"      // a watch was put or removed
	ManagedTopic   = "managed-jobs" // any managed job's row
	AdmissionTopic = "admissions"   // a managed job asked for admission, was let in or made room
	WaitTopic      = "waits"        // what a managed job waited for has come
	NoticeTopic    = "notices"      // a change of state is to be posted
)

// RequestTopic is told of a request's status and events.
func RequestTopic(id string) string { return "request/" + id }

// ClusterTopic is told of a cluster's row, jobs and events.
func ClusterTopic(name string) string { return "cluster/" + name }

// JobTopic is told of a managed job's rows and events.
func JobTopic(id int64) string { return "job/" + strconv.FormatInt(id, 10) }

// watchTopic is told of one watch; it reaches those who asked for WatchChanges only.
const watchTopic = "watch/"

// WatchChanges gathers which watches were put or removed, so that the reader of many need not read them all.
type WatchChanges struct {
	// C becomes readable when there is something to take.
	C <-chan struct{}

	mu     sync.Mutex
	bell   chan struct{}
	hashes map[string]struct{}
}

// Take gives the hashes of the watches that changed since the last call.
func (c *WatchChanges) Take() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]string, 0, len(c.hashes))
	for h := range c.hashes {
		out = append(out, h)
	}
	clear(c.hashes)
	return out
}

func (c *WatchChanges) add(hash string) {
	c.mu.Lock()
	c.hashes[hash] = struct{}{}
	c.mu.Unlock()
	select {
	case c.bell <- struct{}{}:
	default:
	}
}

// WatchChanges tells of watches that this process puts or removes from now on. Call cancel when done.
func (s *Store) WatchChanges() (c *WatchChanges, cancel func()) {
	c = &WatchChanges{bell: make(chan struct{}, 1), hashes: map[string]struct{}{}}
	c.C = c.bell
	h := &s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.watches == nil {
		h.watches = map[*WatchChanges]struct{}{}
	}
	h.watches[c] = struct{}{}
	return c, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.watches, c)
	}
}

// hub tells subscribers of this process that something was committed.
type hub struct {
	mu   sync.Mutex
	subs map[string]map[chan struct{}]struct{}
	// watches are told of single watches.
	watches map[*WatchChanges]struct{}
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
		if hash, ok := strings.CutPrefix(t, watchTopic); ok {
			for c := range h.watches {
				c.add(hash)
			}
			continue
		}
		all = all || (t != WatchTopic && t != AdmissionTopic && t != WaitTopic && t != NoticeTopic)
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
