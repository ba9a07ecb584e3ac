package activities

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sort"
	"strings"
	"sync"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/artifact"
	"github.com/skyloom/skyloom/internal/bucket"
	"github.com/skyloom/skyloom/internal/optimizer"
	"github.com/skyloom/skyloom/internal/secret"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/task"
)

// Features is what task files may ask for and get.
var Features = task.NewFeatureSet(task.FeatureMirror, task.FeatureGitWorkdir, task.FeaturePorts, task.FeatureManagedJobs, task.FeaturePipelines, task.FeatureCheckpoint, task.FeatureSchedule, task.FeatureNotify, task.FeatureArray)

// Activities holds what the side effects need. One value serves every worker of a process.
type Activities struct {
	Store     *store.Store
	Artifacts *artifact.Store
	Buckets   *bucket.Registry // nil: there are none
	Secrets   *secret.Store
	Providers *providers.Registry
	Agent     providers.AgentSource
	Home      string // SKY_HOME; logs of managed jobs stand below it
	Engine    client.Client
	Log       *slog.Logger
	// Allowed narrows the infra that may be used; empty: all.
	Allowed []string
	// Limits bound how many managed jobs launch and run at once.
	Limits store.AdmissionLimits
	// LostAfter is how long a node may be silent before it counts as lost, where nothing can confirm it; 0: five minutes.
	LostAfter time.Duration
	// ReapAge is how old a node or a row must be before the reaper may take it for nobody's; 0: a minute.
	ReapAge time.Duration
	// SaveLast makes a checkpoint of an attempt that is given up, if it can; nil: there are none.
	SaveLast func(context.Context, NodesInput, WatchedCheckpoint)
	// Retention says how long ended things are kept.
	Retention store.Retention

	mu sync.Mutex
	// reaped is when the last round of the reaper that ended began, and reapRound counts them.
	reaped    time.Time
	reapRound uint32
	checked   time.Time
	checks    []api.InfraCheck
	// checking is closed when the check that runs has ended; nil: none runs.
	checking chan struct{}
}

// RequestScope is the scope of secrets that belong to a request.
func RequestScope(id string) string { return secret.RequestScope(id) }

// ClusterScope is the scope of secrets that belong to a cluster's incarnation.
func ClusterScope(hash string) string { return secret.ClusterScope(hash) }

// provider finds a provider, or says that the server has none of that name.
func (a *Activities) provider(name string) (providers.Provider, error) {
	p, err := a.Providers.Get(name)
	if err != nil {
		return nil, refuse(&api.Error{Kind: api.ErrNotSupported, Message: err.Error(), Hint: "the cluster's infra is not configured on this server"})
	}
	return p, nil
}

// refuse makes an error that no retry changes.
func refuse(e *api.Error) error {
	return temporal.NewApplicationErrorWithOptions(e.Message, e.Kind, temporal.ApplicationErrorOptions{NonRetryable: true, Details: []any{*e}})
}

// Checks tells which infra can be used. What is older than maxAge is asked anew; but whoever can do with what is a little
// old (maxAge above 0) gets that at once, and the asking goes on behind: a host that does not answer delays no listing.
func (a *Activities) Checks(ctx context.Context, maxAge time.Duration) []api.InfraCheck {
	a.mu.Lock()
	have, age, running := a.checks, time.Since(a.checked), a.checking
	switch {
	case have != nil && age < maxAge:
		a.mu.Unlock()
		return have
	case running == nil || maxAge <= 0:
		running = make(chan struct{})
		a.checking = running
		go a.check(context.WithoutCancel(ctx), running)
	}
	a.mu.Unlock()
	if have != nil && maxAge > 0 && age < checksUseful {
		return have
	}
	select {
	case <-running:
	case <-ctx.Done():
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.checks
}

// checksUseful is how old checks may be to be of any use.
const checksUseful = 10 * time.Minute

// check asks every infra at once.
func (a *Activities) check(ctx context.Context, done chan struct{}) {
	names := a.Providers.Names()
	out := make([]api.InfraCheck, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		out[i].Name = name
		if len(a.Allowed) > 0 && !containsFold(a.Allowed, name) {
			out[i].Reason, out[i].Hint = "not in allowed_clouds", "add it to allowed_clouds in config.yaml"
			continue
		}
		wg.Go(func() { a.checkOne(ctx, &out[i]) })
	}
	wg.Wait()
	a.mu.Lock()
	a.checks, a.checked = out, time.Now()
	if a.checking == done {
		a.checking = nil
	}
	a.mu.Unlock()
	close(done)
}

func (a *Activities) checkOne(ctx context.Context, c *api.InfraCheck) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	p, err := a.Providers.Get(c.Name)
	if err == nil {
		var rep providers.CheckReport
		rep, err = p.Check(ctx)
		c.Capabilities, c.Details = rep.Capabilities, rep.Details
	}
	if err != nil {
		c.Reason = err.Error()
		var pe *providers.Error
		if errors.As(err, &pe) {
			c.Hint = pe.Hint
		}
	}
	c.Enabled = err == nil
}

func containsFold(list []string, s string) bool {
	for _, v := range list {
		if strings.EqualFold(v, s) {
			return true
		}
	}
	return false
}

// Enabled lists the infra that can be used.
func (a *Activities) Enabled(ctx context.Context) []string {
	var out []string
	for _, c := range a.Checks(ctx, time.Minute) {
		if c.Enabled {
			out = append(out, c.Name)
		}
	}
	return out
}

// Offers gathers what the enabled infra offers.
func (a *Activities) Offers(ctx context.Context) (enabled []string, offers []providers.Offer, err error) {
	enabled = a.Enabled(ctx)
	var errs []error
	for _, name := range enabled {
		p, err := a.Providers.Get(name)
		if err != nil {
			continue
		}
		got, err := p.Offers(ctx, providers.OfferFilter{})
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
			continue
		}
		offers = append(offers, got...)
	}
	if len(offers) == 0 && len(errs) > 0 {
		return enabled, nil, errors.Join(errs...)
	}
	return enabled, offers, nil
}

// disabled says that a task names infra that the server knows and that is not enabled.
func (a *Activities) disabled(t *task.Task, enabled []string) bool {
	for _, g := range t.Candidates() {
		for _, r := range g {
			if r.Infra.Cloud == "" || containsFold(enabled, r.Infra.Cloud) {
				continue
			}
			if _, err := a.Providers.Get(r.Infra.Cloud); err == nil {
				return true
			}
		}
	}
	return false
}

// ranking is the optimizer's input for a task.
func (a *Activities) ranking(ctx context.Context, t *task.Task, numNodes int) (optimizer.Input, error) {
	enabled, offers, err := a.Offers(ctx)
	if a.disabled(t, enabled) {
		a.Checks(ctx, 0) // what is asked for may have been set up since
		enabled, offers, err = a.Offers(ctx)
	}
	if err != nil {
		return optimizer.Input{}, err
	}
	in := optimizer.Input{Groups: t.Candidates(), NumNodes: numNodes, Offers: offers, Enabled: enabled, Known: a.Providers.Names(),
		Fallback: map[string]bool{}, Lacks: map[string][]string{}, Defaults: map[string]optimizer.Defaults{}}
	for _, name := range enabled {
		p, err := a.Providers.Get(name)
		if err != nil {
			continue
		}
		f := providers.FeaturesOf(p)
		in.Fallback[name] = f.Fallback
		in.Lacks[name] = optimizer.LacksOf(f)
		if z := f.Sizes; z != (providers.Sizes{}) {
			in.Defaults[name] = optimizer.Defaults{CPUs: z.CPUs, MemoryPerCPU: z.MemoryPerCPU, CPUsPerAccelerator: z.CPUsPerAccelerator, MemoryPerCPUWithAccelerator: z.MemoryPerCPUWithAccelerator}
		}
	}
	return in, nil
}

// client gives a client of a node's agent. The caller closes it.
func (a *Activities) client(ctx context.Context, provider string, n providers.Node) (*agentapi.Client, error) {
	p, err := a.provider(provider)
	if err != nil {
		return nil, err
	}
	return NodeClient(ctx, p, n)
}

// NodeClient gives a client of a node's agent over the provider's transport. The caller closes it.
func NodeClient(ctx context.Context, p providers.Provider, n providers.Node) (*agentapi.Client, error) {
	t, err := p.Transport(ctx, n)
	if err != nil {
		return nil, err
	}
	return agentapi.New(t.DialAgent), nil
}

// head is the node of rank 0.
func head(nodes []providers.Node) (providers.Node, error) {
	for _, n := range nodes {
		if n.Rank == 0 {
			return n, nil
		}
	}
	return providers.Node{}, refuse(&api.Error{Kind: api.ErrClusterNotUp, Message: "the cluster has no head node"})
}

// headClient gives a client of the head node's agent.
func (a *Activities) headClient(ctx context.Context, provider string, nodes []providers.Node) (*agentapi.Client, error) {
	h, err := head(nodes)
	if err != nil {
		return nil, err
	}
	return a.client(ctx, provider, h)
}

// beat heartbeats until the returned function is called, so that a killed server is noticed within seconds. In a local
// activity it does nothing.
func beat(ctx context.Context) func() {
	if activity.GetInfo(ctx).IsLocalActivity {
		return func() {}
	}
	done := make(chan struct{})
	go func() {
		t := time.NewTicker(time.Second)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				activity.RecordHeartbeat(ctx)
			case <-done:
				return
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() { close(done) }
}

// say writes lines of a request's timeline from within an activity. A retried activity repeats none: the key holds the
// activity's own key and the line's number.
func (a *Activities) say(ctx context.Context, key string, n int, ev api.Event) {
	ev.Time = time.Now()
	if err := a.Store.Write(ctx, store.Batch{Events: []store.Event{{Key: fmt.Sprintf("%s/%d", key, n), Event: ev}}}); err != nil {
		a.Log.Warn("event not written", "error", err)
	}
}

func randomHex(n int) string {
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		panic(err)
	}
	return hex.EncodeToString(b)
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}
