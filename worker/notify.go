package worker

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"sync"
	"time"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/config"
	"github.com/skyloom/skyloom/internal/secret"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/internal/version"
	"github.com/skyloom/skyloom/internal/webhook"
)

const (
	// noticesKept is how long a notification that is not accepted is tried again.
	noticesKept = 24 * time.Hour
	// noticeLease is longer than an attempt lasts.
	noticeLease = 3 * webhook.Timeout
	// posts bounds the posts under way, and postsPerHost those to one host: one that does not answer holds up few others. A
	// host whose last post failed gets one at a time.
	posts        = 64
	postsPerHost = 4
	// webhookScope is the scope of the installation's webhook secret, and webhookSetting where its reference stands.
	webhookScope   = "webhooks"
	webhookSetting = "webhook_secret_ref"
)

// notifier posts the changes of state of managed jobs to whom their owners named.
type notifier struct {
	store  *store.Store
	keys   *secret.Store
	acts   *activities.Activities
	sender *webhook.Sender
	secret string // that signs, unless a stream has its own
	owner  string
	log    *slog.Logger
	keep   time.Duration

	mu     sync.Mutex
	flying map[string]string // stream to its host
	failed map[string]bool   // hosts whose last post failed
	landed chan struct{}     // a post has ended
	wg     sync.WaitGroup
}

// WebhookHosts reads the rule which hosts may be told of jobs.
func WebhookHosts(c *config.Config) (webhook.Hosts, error) {
	h, err := webhook.ParseHosts(c.Texts("jobs.webhook_hosts"))
	if err != nil {
		return h, fmt.Errorf("jobs.webhook_hosts: %w", err)
	}
	return h, nil
}

// webhookSecret is the configured secret, or the one that was made for this installation.
func webhookSecret(ctx context.Context, c *config.Config, st *store.Store, keys *secret.Store) (string, error) {
	if s := c.Text("jobs.webhook_secret", ""); s != "" {
		_, err := webhook.Sign(s, "", time.Now(), nil)
		if err != nil {
			return "", fmt.Errorf("jobs.webhook_secret: %w", err)
		}
		return s, nil
	}
	ref, ok, err := st.Setting(ctx, webhookSetting)
	if err != nil {
		return "", err
	}
	if !ok {
		mine, err := keys.Put(ctx, webhookScope, webhook.NewSecret())
		if err != nil {
			return "", err
		}
		if ref, err = st.SettingOnce(ctx, webhookSetting, mine); err != nil {
			return "", err
		}
		if ref != mine { // another server was first
			if err := keys.Delete(ctx, mine); err != nil {
				return "", err
			}
		}
	}
	return keys.Get(ctx, ref)
}

func newNotifier(st *store.Store, keys *secret.Store, acts *activities.Activities, hosts webhook.Hosts, secret, owner string, log *slog.Logger) *notifier {
	return &notifier{store: st, keys: keys, acts: acts, sender: webhook.NewSender(hosts, "Skyloom-Webhooks/"+version.Version), secret: secret, owner: owner, log: log, keep: noticesKept,
		flying: map[string]string{}, failed: map[string]bool{}, landed: make(chan struct{}, 1)}
}

func streamKey(job int64, n int) string { return fmt.Sprintf("%d/%d", job, n) }

// run posts until ctx ends, and then waits for the posts under way.
func (w *notifier) run(ctx context.Context) {
	defer w.wg.Wait()
	changed, stop := w.store.Subscribe(store.NoticeTopic)
	defer stop()
	for ctx.Err() == nil {
		if err := w.dispatch(ctx); err != nil && ctx.Err() == nil {
			w.log.Warn("notifications", "error", err)
		}
		pause := 15 * time.Second // for what other servers on this database have written
		if next, err := w.store.NextNotice(ctx); err == nil && !next.IsZero() {
			// What is due and was not taken waits for a post to end, here or elsewhere.
			if pause = min(pause, time.Until(next)); pause <= 0 {
				pause = time.Second
			}
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-t.C:
		case <-changed:
		case <-w.landed:
		}
		t.Stop()
	}
}

// dispatch begins posts until nothing is due or there is no room. Each round takes from hosts that have room, so that the
// streams of one that has none do not hide the others.
func (w *notifier) dispatch(ctx context.Context) error {
	for {
		w.mu.Lock()
		room := posts - len(w.flying)
		at := map[string]int{}
		for _, host := range w.flying {
			at[host]++
		}
		var busy []string
		for host, n := range at {
			if n >= w.room(host) {
				busy = append(busy, host)
			}
		}
		w.mu.Unlock()
		if room <= 0 {
			return nil
		}
		due, err := w.store.DueNotices(ctx, w.owner, noticeLease, room, 1, busy, func(job int64, n int) bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.flying[streamKey(job, n)] != ""
		})
		if err != nil || len(due) == 0 {
			return err
		}
		for _, n := range due {
			key := streamKey(n.Stream.JobID, n.Stream.N)
			w.mu.Lock()
			w.flying[key] = n.Stream.Host
			w.mu.Unlock()
			w.wg.Go(func() {
				w.post(ctx, n)
				w.mu.Lock()
				delete(w.flying, key)
				w.mu.Unlock()
				select {
				case w.landed <- struct{}{}:
				default:
				}
			})
		}
	}
}

// room is how many posts may be under way to a host. The caller holds the lock.
func (w *notifier) room(host string) int {
	if w.failed[host] {
		return 1
	}
	return postsPerHost
}

// post tries a notice once and writes down how that went. A server that ends or dies in between leaves it undelivered, and
// it is posted again under the same id.
func (w *notifier) post(ctx context.Context, n store.Notice) {
	err := w.send(ctx, n)
	if ctx.Err() != nil {
		return
	}
	w.mu.Lock()
	if err == nil {
		delete(w.failed, n.Stream.Host)
	} else {
		w.failed[n.Stream.Host] = true
	}
	w.mu.Unlock()
	if err == nil {
		if err := w.store.NoticeDelivered(ctx, n); err != nil {
			w.log.Warn("notification delivered but not noted", "job", n.Stream.JobID, "error", err)
		}
	} else {
		d, ferr := w.store.NoticeFailed(ctx, n, err.Error(), time.Now().Add(webhook.Backoff(n.Stream.JobID, n.Tries+1)), w.keep)
		if ferr != nil {
			w.log.Warn("notification failed", "job", n.Stream.JobID, "error", ferr)
		}
		if d.Count == 0 {
			return
		}
		w.log.Warn("notifications dropped", "job", n.Stream.JobID, "host", n.Stream.Host, "count", d.Count, "error", err)
	}
	if n.Stream.SecretRef == "" {
		return
	}
	// The job's secrets were kept for this.
	rows, err := w.store.ManagedJob(ctx, n.Stream.JobID)
	if err == nil && rows[0].RequestID != "" {
		err = w.acts.CloseJob(ctx, rows[0].RequestID)
	}
	if err != nil {
		w.log.Warn("secrets of notifications not dropped", "job", n.Stream.JobID, "error", err)
	}
}

func (w *notifier) send(ctx context.Context, n store.Notice) error {
	key := w.secret
	if n.Stream.SecretRef != "" {
		var err error
		if key, err = w.keys.Get(ctx, n.Stream.SecretRef); err != nil {
			return fmt.Errorf("the secret that signs is not to be had: %w", err)
		}
	}
	id := fmt.Sprintf("msg_%s_%d", w.store.Installation(), n.ID)
	return w.sender.Send(ctx, webhook.Message{ID: id, URL: n.Stream.URL, Body: n.Data}, key)
}

// checkNotify refuses a submission that names hosts which may not be told. (What names resolve to is judged when they are
// connected to.)
func (b *backend) checkNotify(spec activities.ManagedSpec) error {
	for _, s := range spec.Notify {
		u, err := url.Parse(s.URL)
		if err == nil {
			err = b.hosts.Check(u.Hostname())
		}
		if err != nil {
			return &api.Error{Kind: api.ErrInvalid, Message: "notify: " + err.Error(), Hint: "the server's configuration decides which hosts may be told of jobs: jobs.webhook_hosts"}
		}
	}
	return nil
}

// WebhookSecret is what signs notifications, unless a task names a secret of its own.
func (b *backend) WebhookSecret(context.Context) (string, error) { return b.webhook, nil }
