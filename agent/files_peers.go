package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/internal/filesync"
)

// A peer that sends nothing for peerSilence is given up; the server then sends what it did not.
const peerSilence = 15 * time.Second

// peerBlobs is POST /v1/peer/blobs: a peer asks for blobs of this node's spool. The answer is a pack of those that are
// there.
type peerBlobs struct {
	Hashes []string `json:"hashes"`
}

func (a *Agent) peerFileRoutes(m *http.ServeMux) {
	m.HandleFunc("POST /v1/peer/blobs", func(w http.ResponseWriter, r *http.Request) {
		if !a.trusted(r) {
			fail(w, conflict("the peer does not know this cluster's secret, or this node was not told of its cluster yet"))
			return
		}
		var in peerBlobs
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&in); err != nil {
			fail(w, invalid("the list of blobs is not understood: %v", err))
			return
		}
		spool, err := a.blobs()
		if err != nil {
			fail(w, err)
			return
		}
		lacks, err := spool.Has(r.Context(), in.Hashes)
		if err != nil {
			fail(w, fileError(err))
			return
		}
		w.Header().Set("Content-Type", filesync.PackMediaType)
		passed := func(blobs int, _ int64) {
			if blobs > 0 { // a part of the answer is on its way
				a.failpoint("files-passing-on")
			}
		}
		// An error cuts the stream, which the peer sees.
		if err := filesync.WritePack(r.Context(), w, spool, minus(in.Hashes, lacks), filesync.PackOptions{Raw: true, Trusted: true, Progress: passed}); err != nil {
			a.log.Warn("files were not passed on to a peer", "error", err)
		}
	})
}

// minus gives the hashes that are not among some.
func minus(all, some []string) []string {
	if len(some) == 0 {
		return all
	}
	gone := make(map[string]bool, len(some))
	for _, h := range some {
		gone[h] = true
	}
	out := make([]string, 0, len(all))
	for _, h := range all {
		if !gone[h] {
			out = append(out, h)
		}
	}
	return out
}

// FetchBlobs gets blobs from a peer's spool. Trouble with the peer is part of the answer; trouble with this node's disk is
// an error.
func (a *Agent) FetchBlobs(ctx context.Context, f agentapi.FileFetch) (agentapi.FileFetched, error) {
	spool, err := a.blobs()
	if err != nil {
		return agentapi.FileFetched{}, err
	}
	var out agentapi.FileFetched
	if err := a.fetch(ctx, f, spool.PutPack); err != nil {
		if agentapi.IsKind(fileError(err), agentapi.KindDiskFull) {
			return out, fileError(err)
		}
		if ctx.Err() != nil {
			return out, ctx.Err()
		}
		out.Trouble = err.Error()
	}
	if out.Missing, err = spool.Has(ctx, f.Hashes); err != nil {
		return out, fileError(err)
	}
	return out, nil
}

// liveReader puts the end of a silent stream off with everything that arrives.
type liveReader struct {
	r       io.Reader
	silence *time.Timer
}

func (l liveReader) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if n > 0 {
		l.silence.Reset(peerSilence)
	}
	return n, err
}

func (a *Agent) fetch(ctx context.Context, f agentapi.FileFetch, take func(context.Context, io.Reader, filesync.PackLimits) (filesync.PackStats, error)) error {
	peer, secret, err := a.peer(f.NodeID)
	if err != nil {
		return err
	}
	body, err := json.Marshal(peerBlobs{f.Hashes})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(peerSilence, func() { cancel(fmt.Errorf("the peer was silent for %s", peerSilence)) })
	defer silence.Stop()
	req, err := http.NewRequestWithContext(ctx, "POST", peer.base+"/v1/peer/blobs", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set(headerSecret, secret)
	resp, err := peer.Do(req)
	if err == nil {
		defer resp.Body.Close()
		if resp.StatusCode/100 != 2 {
			return agentapi.ReadError(resp)
		}
		_, err = take(ctx, liveReader{resp.Body, silence}, filesync.PackLimits{})
	}
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	return err
}

// peer finds another node of the cluster.
func (a *Agent) peer(id string) (*peerClient, string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cluster != nil {
		for _, p := range a.cluster.Spec.Nodes {
			if p.NodeID == id && id != a.cfg.NodeID {
				return a.peers.client(a, p.Addr), a.cluster.Spec.Secret, nil
			}
		}
	}
	return nil, "", notFound("node %s is no peer of this one", id)
}
