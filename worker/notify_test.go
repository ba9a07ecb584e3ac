package worker

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/config"
	"github.com/skyloom/skyloom/internal/secret"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/internal/webhook"
)

// receiver writes down what is posted to it, and answers as it is told.
type receiver struct {
	*httptest.Server
	mu    sync.Mutex
	seen  []string // job and state, of what was accepted
	ids   map[string]int
	sigs  map[string]bool // keys that signed
	down  bool
	keys  []string
	wrong []string
}

func newReceiver(t *testing.T, keys ...string) *receiver {
	r := &receiver{ids: map[string]int{}, sigs: map[string]bool{}, keys: keys}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, _ := io.ReadAll(req.Body)
	r.mu.Lock()
	defer r.mu.Unlock()
	id := req.Header.Get("webhook-id")
	r.ids[id]++
	if r.down {
		w.WriteHeader(503)
		return
	}
	var at int64
	fmt.Sscan(req.Header.Get("webhook-timestamp"), &at)
	signed := false
	for _, k := range r.keys {
		if sig, _ := webhook.Sign(k, id, time.Unix(at, 0), body); sig == req.Header.Get("webhook-signature") {
			signed, r.sigs[k] = true, true
		}
	}
	var x struct {
		Type string
		Data api.ManagedJob
	}
	if err := json.Unmarshal(body, &x); err != nil || !signed {
		r.wrong = append(r.wrong, fmt.Sprintf("%s signed=%v %v", body, signed, err))
	}
	r.seen = append(r.seen, fmt.Sprintf("%d %s", x.Data.ID, strings.TrimPrefix(x.Type, "job.")))
}

func (r *receiver) set(down bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down = down
}

func (r *receiver) story() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.seen, ", ")
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("in vain: " + what)
		}
	}
}

func notifyStore(t *testing.T) (*store.Store, *secret.Store) {
	t.Helper()
	dir := t.TempDir()
	st, err := store.Open(context.Background(), filepath.Join(dir, "sky.db"), store.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	ring, err := secret.LoadRing(filepath.Join(dir, "ring.json"))
	if err != nil {
		t.Fatal(err)
	}
	return st, secret.New(st, ring)
}

func TestNotifier(t *testing.T) {
	st, keys := notifyStore(t)
	ctx := context.Background()
	const main, own = "whsec_bWFpbg==", "own key"
	ref, err := keys.Put(ctx, secret.JobsScope("req"), own)
	if err != nil {
		t.Fatal(err)
	}
	well, ill := newReceiver(t, main, own), newReceiver(t, main, own)
	ill.set(true)
	log := slog.New(slog.DiscardHandler)
	start := func() (stop func()) {
		n := newNotifier(st, keys, &activities.Activities{Store: st, Secrets: keys, Log: log}, webhook.Hosts{}, main, "embedded", log)
		run, cancel := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() { defer close(done); n.run(run) }()
		return func() { cancel(); <-done }
	}
	to := func(job int64, r *receiver, ref string) store.NoticeStream {
		return store.NoticeStream{JobID: job, TaskID: -1, URL: r.URL + "/hook", Host: strings.TrimPrefix(r.URL, "http://"), SecretRef: ref}
	}
	seq := map[int64]int64{}
	put := func(job int64, states ...api.ManagedStatus) {
		t.Helper()
		for _, s := range states {
			seq[job]++
			if err := st.PutManagedJobs(ctx, api.ManagedJob{ID: job, Status: s, Seq: seq[job], RequestID: "req"}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, s := range []store.NoticeStream{to(1, well, ""), to(2, ill, ""), to(3, ill, ref)} {
		if err := st.Write(ctx, store.Batch{NoticeStreams: []store.NoticeStream{s}}); err != nil {
			t.Fatal(err)
		}
	}
	stop := start()
	put(2, api.ManagedPending, api.ManagedRunning)
	put(3, api.ManagedPending)
	put(1, api.ManagedPending, api.ManagedStarting, api.ManagedRunning)
	eventually(t, "job 1's story", func() bool { return well.story() == "1 pending, 1 starting, 1 running" })
	eventually(t, "attempts", func() bool { ill.mu.Lock(); defer ill.mu.Unlock(); return len(ill.ids) >= 2 })
	eventually(t, "a word of the refusal", func() bool {
		evs, err := st.Events(ctx, store.EventFilter{JobID: 2})
		return err == nil && len(evs) == 1
	})
	// The jobs end and the server does, before the receiver is back.
	stop()
	put(2, api.ManagedSucceeded)
	put(3, api.ManagedFailed)
	put(1, api.ManagedSucceeded)
	acts := &activities.Activities{Store: st, Secrets: keys}
	if err := acts.CloseJob(ctx, "req"); err != nil {
		t.Fatal(err)
	}
	if _, err := keys.Get(ctx, ref); err != nil {
		t.Fatalf("the key that signs what is left is gone: %v", err)
	}
	ill.set(false)
	stop = start()
	defer func() { stop() }()
	eventually(t, "what was kept", func() bool {
		s := ill.story()
		return strings.Count(s, ",") == 4 && strings.Index(s, "2 pending") < strings.Index(s, "2 running") && strings.Index(s, "2 running") < strings.Index(s, "2 succeeded") &&
			strings.Contains(s, "3 pending") && strings.Index(s, "3 pending") < strings.Index(s, "3 failed")
	})
	eventually(t, "job 1's end", func() bool { return well.story() == "1 pending, 1 starting, 1 running, 1 succeeded" })
	eventually(t, "the key to be dropped", func() bool { _, err := keys.Get(ctx, ref); return err != nil })
	ill.mu.Lock()
	defer ill.mu.Unlock()
	if len(ill.wrong)+len(well.wrong) > 0 || !ill.sigs[main] || !ill.sigs[own] {
		t.Errorf("%v %v %v", ill.wrong, well.wrong, ill.sigs)
	}
	twice := 0
	for _, n := range ill.ids {
		if n > 1 {
			twice++
		}
	}
	if len(ill.ids) != 5 || twice == 0 {
		t.Errorf("%v: a notice keeps its id", ill.ids)
	}
	evs, err := st.Events(ctx, store.EventFilter{JobID: 2})
	if err != nil || len(evs) != 2 || !strings.Contains(evs[0].Message, "does not accept notifications: HTTP 503") || !strings.Contains(evs[1].Message, "accepts notifications again") {
		t.Errorf("%+v %v", evs, err)
	}
}

func TestNotifierDropsAndCounts(t *testing.T) {
	st, keys := notifyStore(t)
	ctx := context.Background()
	ill := newReceiver(t, "k")
	ill.set(true)
	log := slog.New(slog.DiscardHandler)
	n := newNotifier(st, keys, &activities.Activities{Store: st, Secrets: keys, Log: log}, webhook.Hosts{}, "k", "embedded", log)
	n.keep = -time.Second // everything is too old
	s := store.NoticeStream{JobID: 1, TaskID: -1, URL: ill.URL, Host: strings.TrimPrefix(ill.URL, "http://")}
	if err := st.Write(ctx, store.Batch{NoticeStreams: []store.NoticeStream{s}, ManagedJobs: []api.ManagedJob{{ID: 1, Status: api.ManagedPending, Seq: 1}}}); err != nil {
		t.Fatal(err)
	}
	run, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); n.run(run) }()
	defer func() { cancel(); <-done }()
	dropped := func() (all []string) {
		evs, err := st.Events(ctx, store.EventFilter{JobID: 1, Kinds: []api.EventKind{api.EventError}})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range evs {
			all = append(all, e.Message)
		}
		return all
	}
	eventually(t, "the first to be dropped", func() bool { d := dropped(); return len(d) == 1 && strings.Contains(d[0], "1 so far") })
	// What comes next is told in its turn, since the receiver may be back.
	ill.set(false)
	if err := st.PutManagedJobs(ctx, api.ManagedJob{ID: 1, Status: api.ManagedRunning, Seq: 2}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the second", func() bool { return ill.story() == "1 running" })
}

func TestWebhookSecret(t *testing.T) {
	st, keys := notifyStore(t)
	ctx := context.Background()
	conf := func(yaml string) *config.Config {
		c, err := config.Parse("config.yaml", []byte(yaml))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	a, err := webhookSecret(ctx, conf(""), st, keys)
	if err != nil || !strings.HasPrefix(a, "whsec_") {
		t.Fatal(a, err)
	}
	if b, err := webhookSecret(ctx, conf(""), st, keys); err != nil || b != a {
		t.Error(b, err)
	}
	if b, err := webhookSecret(ctx, conf("jobs: {webhook_secret: mine}"), st, keys); err != nil || b != "mine" {
		t.Error(b, err)
	}
	if _, err := webhookSecret(ctx, conf("jobs: {webhook_secret: 'whsec_!'}"), st, keys); err == nil || !strings.Contains(err.Error(), "jobs.webhook_secret") {
		t.Error(err)
	}
	if _, err := WebhookHosts(conf("jobs: {webhook_hosts: ['*.example.com', '!10.0.0.0/8']}")); err != nil {
		t.Error(err)
	}
	if _, err := WebhookHosts(conf("jobs: {webhook_hosts: 'http://x'}")); err == nil {
		t.Error("taken")
	}
}

// A receiver that takes posts and never answers holds up no other one, however many jobs tell it.
func TestNotifierIsNotHeldUp(t *testing.T) {
	st, keys := notifyStore(t)
	ctx := context.Background()
	hung := make(chan struct{})
	var mu sync.Mutex
	most, now := 0, 0
	dead := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		now++
		most = max(most, now)
		mu.Unlock()
		<-hung // also once the poster has given up: what it posts then is not counted
		mu.Lock()
		now--
		mu.Unlock()
	}))
	defer dead.Close()
	defer close(hung)
	well := newReceiver(t, "k")
	var batch store.Batch
	add := func(job int64, url string) {
		batch.NoticeStreams = append(batch.NoticeStreams, store.NoticeStream{JobID: job, TaskID: -1, URL: url, Host: strings.TrimPrefix(url, "http://")})
		batch.ManagedJobs = append(batch.ManagedJobs, api.ManagedJob{ID: job, Status: api.ManagedPending, Seq: 1})
	}
	for job := int64(1); job <= 500; job++ {
		add(job, dead.URL)
	}
	for job := int64(501); job <= 520; job++ {
		add(job, well.URL)
	}
	if err := st.Write(ctx, batch); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	n := newNotifier(st, keys, &activities.Activities{Store: st, Secrets: keys, Log: log}, webhook.Hosts{}, "k", "embedded", log)
	run, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	begun := time.Now()
	go func() { defer close(done); n.run(run) }()
	eventually(t, "all of the others", func() bool { return strings.Count(well.story(), "pending") == 20 })
	t.Logf("20 notifications past a dead receiver of 500 took %s", time.Since(begun).Round(time.Millisecond))
	mu.Lock()
	at, took := most, time.Since(begun)
	mu.Unlock()
	cancel()
	<-done
	if at > postsPerHost && took < webhook.Timeout {
		t.Errorf("%d posts at once to one host", at)
	}
}
