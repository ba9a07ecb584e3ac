package cluster

import (
	"context"
	"fmt"
	"sync"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/follow"
	"github.com/skyloom/skyloom/cli/session"
)

// parallel is how many clusters are worked on at once.
const parallel = 16

// targets is which clusters a command acts on.
type targets struct {
	Names    []string
	All      bool
	AllUsers bool
	Yes      bool
	Async    bool
}

func (t *targets) check(verb string) error {
	if len(t.Names) == 0 && !t.All && !t.AllUsers {
		return session.Usagef("which clusters? Name them (globs work), or give -a for all of yours, -u for everybody's: sky %s CLUSTERS...", verb)
	}
	return nil
}

// batch is one operation on several clusters.
type batch struct {
	doing string // "Stopping"
	// skip tells why a cluster is left out, or "".
	skip func(api.Cluster) string
	// refuse tells why a cluster that was named can't take the operation, or "". With -a and -u it is left out.
	refuse func(api.Cluster) string
	// submit sends the request for one cluster.
	submit func(ctx context.Context, c *api.Client, cl api.Cluster) (*api.Ref, error)
	// after is called after success, before done.
	after func(ctx context.Context, c *api.Client, cl api.Cluster)
	// vanished is the message when the cluster has gone meanwhile and that is as good; nil: it is an error.
	vanished func(api.Cluster) string
	// launching means clusters too whose launch is under way but that no row tells of yet.
	launching bool
	// done is the message after success, "" for none.
	done func(cl api.Cluster, res api.OpResult) string
}

// run does the operation on the targets: asks, works in parallel, sums up. The exit code is 1 if any failed or a plain
// name was unknown.
func (b *batch) run(ctx context.Context, s *session.Session, t *targets) error {
	c, err := s.Client(ctx)
	if err != nil {
		return err
	}
	names := t.Names
	if t.All || t.AllUsers {
		if len(names) > 0 {
			s.IO.Warnf("Names are ignored since -a or -u is given.")
		}
		names = nil
	}
	sel, err := find(ctx, s, c, names, t.AllUsers)
	if err != nil {
		return err
	}
	if b.launching {
		if err := addLaunching(ctx, s, c, names, t.AllUsers, &sel); err != nil {
			return err
		}
	}
	tellMissing(s, sel)
	bad := sel.absent()
	var todo []api.Cluster
	for _, cl := range sel.clusters {
		if b.refuse != nil {
			if why := b.refuse(cl); why != "" {
				if names != nil {
					s.IO.Warnf("%s", why)
					bad = true
				}
				continue
			}
		}
		if why := b.skip(cl); why != "" {
			if names != nil {
				s.IO.Notef("%s", why)
			}
			continue
		}
		todo = append(todo, cl)
	}
	if len(todo) == 0 {
		if len(sel.clusters) == 0 && len(sel.missing) == 0 {
			s.IO.Notef("No existing clusters.")
		} else if names == nil && len(sel.clusters) > 0 {
			s.IO.Notef("Nothing to do.")
		}
		if bad {
			return session.Exit(1)
		}
		return nil
	}
	if !t.Yes {
		if err := s.IO.Require(fmt.Sprintf("%s %d cluster%s: %s. Proceed?", b.doing, len(todo), plural(len(todo)), nameList(todo))); err != nil {
			return err
		}
	}
	results := b.each(ctx, s, c, t, todo)
	if ctx.Err() != nil {
		return interruptedAll(s, c, results)
	}
	for _, r := range results {
		if r.err != nil {
			bad = true
			if len(todo) == 1 {
				return r.err
			}
		}
	}
	if len(todo) > 1 && !t.Async {
		b.summary(s, results)
	}
	if bad {
		return session.Exit(1)
	}
	return nil
}

// result is how it went on one cluster.
type result struct {
	cluster api.Cluster
	ref     *api.Ref
	err     error
}

func (b *batch) each(ctx context.Context, s *session.Session, c *api.Client, t *targets, todo []api.Cluster) []result {
	results := make([]result, len(todo))
	one := len(todo) == 1
	bar := func(string) {}
	if !one && !t.Async {
		live := s.IO.StartLive(s.Now)
		defer live.Close()
		bar = func(text string) { live.Update(text, false) }
	}
	bar(fmt.Sprintf("%s %d clusters", b.doing, len(todo)))
	var mu sync.Mutex
	finished := 0
	slots := make(chan struct{}, parallel)
	var wg sync.WaitGroup
	for i, cl := range todo {
		wg.Add(1)
		go func() {
			defer wg.Done()
			slots <- struct{}{}
			defer func() { <-slots }()
			r := result{cluster: cl}
			var msg string
			r.ref, msg, r.err = b.one(ctx, s, c, cl, t.Async, one)
			if b.vanished != nil && isKind(r.err, api.ErrClusterDoesNotExist) {
				msg, r.err = b.vanished(cl), nil
			}
			mu.Lock()
			defer mu.Unlock()
			results[i] = r
			finished++
			switch {
			case r.err != nil && !one && ctx.Err() == nil:
				s.IO.Notef("%s %s: %v", s.IO.ErrStyle(session.Red, "✗"), cl.Name, r.err)
			case r.err == nil && t.Async && r.ref != nil:
				follow.Submitted(s, c, r.ref)
			case r.err == nil && msg != "":
				s.IO.Notef("%s", msg)
			}
			bar(fmt.Sprintf("%s %d clusters: %d done", b.doing, len(todo), finished))
		}()
	}
	wg.Wait()
	return results
}

func (b *batch) one(ctx context.Context, s *session.Session, c *api.Client, cl api.Cluster, async, show bool) (*api.Ref, string, error) {
	ref, err := b.submit(ctx, c, cl)
	if err != nil || async {
		return ref, "", err
	}
	r, err := follow.Wait(ctx, s, c, ref, follow.Options{Quiet: !show})
	if err != nil {
		return ref, "", err
	}
	res, err := follow.Result[api.OpResult](r)
	if err != nil {
		return ref, "", err
	}
	for _, w := range res.Warnings {
		s.IO.Warnf("%s: %s", cl.Name, w)
	}
	if b.after != nil {
		b.after(ctx, c, cl)
	}
	return ref, b.done(cl, res), nil
}

func (b *batch) summary(s *session.Session, rs []result) {
	good, bad := 0, 0
	for _, r := range rs {
		if r.err == nil {
			good++
		} else {
			bad++
		}
	}
	s.IO.Notef("")
	s.IO.Notef("%s: %s %d  %s %d", b.doing, s.IO.ErrStyle(session.Green, "✓"), good, s.IO.ErrStyle(session.Red, "✗"), bad)
	for _, r := range rs {
		if r.err != nil {
			s.IO.Notef("  %s %s: %s", s.IO.ErrStyle(session.Red, "✗"), r.cluster.Name, firstLine(r.err.Error()))
		}
	}
}

// interruptedAll tells of the requests that go on after Ctrl-C.
func interruptedAll(s *session.Session, c *api.Client, rs []result) error {
	if len(rs) > 1 {
		for _, r := range rs {
			if r.ref != nil && r.err != nil {
				s.IO.Warnf("The request for %s goes on: %s", r.cluster.Name, r.ref.RequestID)
				follow.Hints(c, r.ref.RequestID, s.IO.Notef)
			}
		}
	}
	return session.Exit(follow.ExitInterrupted)
}

func firstLine(s string) string {
	for i, r := range s {
		if r == '\n' {
			return s[:i]
		}
	}
	return s
}
