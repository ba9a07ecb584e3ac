package activities

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/failpoint"
	"github.com/skyloom/skyloom/internal/filesync"
	"github.com/skyloom/skyloom/providers"
)

var fpSyncMiddle = failpoint.Register("sync.before-apply")

// SyncFiles brings trees to every node by content: a node says what it lacks, gets just that, and puts it in place.
// Idempotent: what is in place is not sent again.
func (a *Activities) SyncFiles(ctx context.Context, in SyncInput) (SyncOutput, error) {
	defer beat(ctx)()
	p, err := a.provider(in.Provider)
	if err != nil {
		return SyncOutput{}, err
	}
	var out SyncOutput
	line := 0
	for _, f := range in.Files {
		m, err := a.Artifacts.Manifest(f.Manifest)
		if errors.Is(err, fs.ErrNotExist) {
			return SyncOutput{Error: &api.Error{Kind: api.ErrNotFound, Message: fmt.Sprintf("the content of %s is no longer kept", f.Dst), Hint: "launch again: it is uploaded anew"}}, nil
		} else if err != nil {
			return SyncOutput{}, err
		}
		files, size := m.Totals()
		what := f.Dst
		if f.Source != "" {
			what = f.Source + " → " + f.Dst
		}
		a.say(ctx, in.EventKey, line, api.Event{Cluster: in.Cluster, Hash: in.Ref.Hash, RequestID: in.RequestID, Kind: api.EventStep, Step: "sync", Message: fmt.Sprintf("syncing %s (%d files, %s)", what, files, bytesText(size))})
		line++
		encoded, err := m.Bytes()
		if err != nil {
			return SyncOutput{}, err
		}
		results := make([]agentapi.FileResult, len(in.Nodes))
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(8)
		for i, n := range in.Nodes {
			g.Go(func() error {
				r, err := a.syncNode(gctx, p, n, f, encoded)
				if err != nil {
					return &nodeError{rank: n.Rank, err: err}
				}
				results[i] = r
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			if e := fileError(err, f.Dst); e != nil {
				return SyncOutput{Error: e}, nil
			}
			return SyncOutput{}, err
		}
		for i, r := range results {
			out.Written += r.Written
			out.Bytes += r.Bytes
			for _, w := range r.Warnings {
				a.say(ctx, in.EventKey, line, api.Event{Cluster: in.Cluster, Hash: in.Ref.Hash, RequestID: in.RequestID, Kind: api.EventOutput, Step: "sync", Message: fmt.Sprintf("node %d: %s", in.Nodes[i].Rank, w)})
				line++
			}
		}
	}
	return out, nil
}

type nodeError struct {
	rank int
	err  error
}

func (e *nodeError) Error() string { return fmt.Sprintf("node %d: %v", e.rank, e.err) }
func (e *nodeError) Unwrap() error { return e.err }

func (a *Activities) syncNode(ctx context.Context, p providers.Provider, n providers.Node, f api.FileMount, manifest []byte) (agentapi.FileResult, error) {
	c, err := NodeClient(ctx, p, n)
	if err != nil {
		return agentapi.FileResult{}, err
	}
	defer c.Close()
	apply := agentapi.FileApply{Manifest: f.Manifest, Dst: f.Dst, File: f.File, Mirror: f.Mirror}
	plan, err := c.PlanFiles(ctx, apply, bytes.NewReader(manifest))
	if err != nil {
		return agentapi.FileResult{}, err
	}
	if len(plan.Missing) > 0 {
		if err := c.SendBlobs(ctx, filesync.NewPackBody(ctx, a.Artifacts, plan.Missing, filesync.PackOptions{Raw: true, Trusted: true})); err != nil {
			return agentapi.FileResult{}, err
		}
	}
	if err := failpoint.Hit(fpSyncMiddle); err != nil {
		return agentapi.FileResult{}, err
	}
	return c.ApplyFiles(ctx, apply)
}

// fileError tells a user's fault or a full disk from trouble that a retry may mend.
func fileError(err error, dst string) *api.Error {
	var e *agentapi.Error
	if errors.As(err, &e) {
		switch e.Kind {
		case agentapi.KindDiskFull:
			return &api.Error{Kind: api.ErrStorage, Message: fmt.Sprintf("%s: %v", dst, err), Hint: "make room on the node, sync less (see .skyignore), or use a larger disk"}
		case agentapi.KindInvalid, agentapi.KindConflict:
			return &api.Error{Kind: api.ErrInvalid, Message: fmt.Sprintf("%s: %v", dst, err)}
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return &api.Error{Kind: api.ErrNotFound, Message: fmt.Sprintf("%s: content is missing from the artifact store: %v", dst, err), Hint: "launch again: it is uploaded anew"}
	}
	if errors.Is(err, syscall.ENOSPC) {
		return &api.Error{Kind: api.ErrStorage, Message: fmt.Sprintf("%s: %v", dst, err)}
	}
	return nil
}

func bytesText(n int64) string {
	switch {
	case n < 1<<10:
		return fmt.Sprintf("%d B", n)
	case n < 1<<20:
		return fmt.Sprintf("%.1f KB", float64(n)/(1<<10))
	case n < 1<<30:
		return fmt.Sprintf("%.1f MB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.2f GB", float64(n)/(1<<30))
}
