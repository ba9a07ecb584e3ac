//go:build linux

package sharedhost

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/skyloom/skyloom/agent/claims"
	"github.com/skyloom/skyloom/agent/durable"
	"github.com/skyloom/skyloom/internal/failpoint"
)

// create claims the share of a node and starts it. A node that is there under the same token is adopted as it is, and
// started if it never was.
func (h *host) create(ctx context.Context) (Node, error) {
	a := h.req.Create
	if a == nil || a.ID == "" || !safeName.MatchString(a.ID) || !safeName.MatchString(h.req.Hash) || h.req.Token == "" || h.req.Installation == "" || h.req.Cluster == "" {
		return Node{}, errorf(KindInvalid, "the call names no node, cluster or token")
	}
	root := h.root()
	if r, _, err := h.existing(); err == nil && r != nil {
		root = r.root()
	}
	unlock, err := h.lock(ctx, root, a.ID)
	if err != nil {
		return Node{}, err
	}
	defer unlock()
	r, adopted, err := h.existing()
	if err != nil {
		return Node{}, err
	}
	if adopted && (r.Want != wantRunning || r.Init.PID != 0 || r.findInit() != nil) {
		return h.told(r, true), nil
	}
	m, gpuErr := machine(ctx, h.root())
	want := claims.Want{CPUs: a.CPUs, MemoryGB: a.MemoryGB, Accelerator: a.Accelerator, AcceleratorCount: a.AcceleratorCount}
	if err := fits(m, want, gpuErr); err != nil {
		return Node{}, err
	}
	if !adopted {
		r = &record{ID: a.ID, Rank: a.Rank, Installation: h.req.Installation, Cluster: h.req.Cluster, Hash: h.req.Hash, Token: h.req.Token, Nodes: a.Nodes,
			User: a.User, Created: time.Now().UTC(), Spec: a.Spec, Ask: want, Tune: a.Tune, Env: a.Env, Want: wantRunning, Boot: claims.BootID(),
			dir: filepath.Join(h.root(), "nodes", a.ID)}
		for _, g := range m.GPUs {
			if want.AcceleratorCount > 0 && equalFold(g.Name, want.Accelerator) {
				r.Ask.Accelerator = g.Name
			}
		}
	}
	c, err := h.take(ctx, m, r)
	if err != nil {
		return Node{}, err
	}
	r.Devices = c.GPUs
	if err := failpoint.Hit(fpClaimed); err != nil {
		return Node{}, err
	}
	if err = h.bringUp(ctx, r, c, adopted); err != nil {
		// All or nothing: what this call made goes again.
		if !adopted {
			err = errors.Join(err, h.undo(r, c))
		}
		return Node{}, err
	}
	return h.told(r, false), nil
}

func equalFold(a, b string) bool { return bytes.EqualFold([]byte(a), []byte(b)) }

func (h *host) told(r *record, adopted bool) Node {
	n := r.node(r.state())
	n.Adopted = adopted
	return n
}

// existing finds the node in any root, and refuses what stands in the way.
func (h *host) existing() (*record, bool, error) {
	a := h.req.Create
	found, err := h.records(func(r *record) bool { return r.ID == a.ID })
	if err != nil || len(found) == 0 {
		return nil, false, err
	}
	r := found[0]
	switch {
	case r.Installation != h.req.Installation || r.Hash != h.req.Hash || r.Cluster != h.req.Cluster:
		return nil, false, errorf(KindConflict, "node %s is in use by another installation", r.ID)
	case r.Token != h.req.Token:
		return nil, false, errorf(KindConflict, "node %s was made under another token; delete it first", r.ID)
	case r.Nodes != a.Nodes || !sameJSON(r.Spec, a.Spec):
		return nil, false, errorf(KindConflict, "the token of node %s was used for another request", r.ID)
	}
	return r, true, nil
}

func sameJSON(a, b json.RawMessage) bool {
	var x, y bytes.Buffer
	return json.Compact(&x, a) == nil && json.Compact(&y, b) == nil && bytes.Equal(x.Bytes(), y.Bytes())
}

// fits refuses what the machine never has.
func fits(m claims.Machine, want claims.Want, gpuErr error) error {
	if want.CPUs <= 0 || want.MemoryGB <= 0 {
		return errorf(KindInvalid, "a node needs CPUs and memory")
	}
	_, err := claims.Fit(m, nil, want)
	var full *claims.Full
	if !errors.As(err, &full) {
		return err
	}
	switch n := claims.Devices(want); {
	case want.CPUs > m.CPUs+0.01:
		return errorf(KindUnfit, "it has %v CPUs, %v asked for", m.CPUs, want.CPUs)
	case want.MemoryGB > m.MemoryGB+0.01:
		return errorf(KindUnfit, "it has %v GB of memory, %v asked for", m.MemoryGB, want.MemoryGB)
	case gpuErr != nil:
		return errorf(KindUnfit, "its GPUs can't be told: %v", gpuErr)
	default:
		have := 0
		for _, g := range m.GPUs {
			if equalFold(g.Name, want.Accelerator) {
				have++
			}
		}
		return errorf(KindUnfit, "it has %d × %s, %d asked for", have, want.Accelerator, n)
	}
}

func (h *host) take(ctx context.Context, m claims.Machine, r *record) (claims.Claim, error) {
	l, err := claims.Open(ctx, h.claimsDir)
	if err != nil {
		return claims.Claim{}, err
	}
	defer l.Close()
	return l.Take(m, r.Ask, r.claim(h.req.LoginName))
}

// bringUp writes a node down and starts it.
func (h *host) bringUp(ctx context.Context, r *record, c claims.Claim, there bool) error {
	var err error
	if r.IP, err = address(h.req.Addr); err != nil {
		return err
	}
	if r.Socket, err = socketPath(r.root(), r.Hash, r.Rank); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(r.Socket), 0o700); err != nil {
		return durable.Full(err)
	}
	h.own(filepath.Dir(r.Socket))
	if h.req.TLS != nil {
		all, err := h.records(func(*record) bool { return true })
		if err != nil {
			return err
		}
		if r.Port, err = h.pickPort(r.IP, r.Port, all, r.ID); err != nil {
			return err
		}
	}
	if there {
		err = r.save()
	} else {
		err = h.makeFolder(r)
	}
	if err != nil {
		return err
	}
	if err := h.writeTLS(r); err != nil {
		return err
	}
	if err := failpoint.Hit(fpWritten); err != nil {
		return err
	}
	return h.spawn(r, c)
}

// makeFolder makes a node's folder with its record, whole or not at all.
func (h *host) makeFolder(r *record) error {
	trash := filepath.Join(r.root(), "trash")
	var tmp string
	var err error
	for range 20 { // another call may just sweep the empty trash away
		for _, d := range []string{trash, filepath.Dir(r.dir)} {
			if err = os.MkdirAll(d, 0o700); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("make the node's folder: %w", durable.Full(err))
			}
		}
		if tmp, err = os.MkdirTemp(trash, "new-"); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("make the node's folder: %w", durable.Full(err))
	}
	defer os.RemoveAll(tmp)
	for _, d := range []string{"home", "agent", "tmp"} {
		if err := os.Mkdir(filepath.Join(tmp, d), 0o700); err != nil {
			return fmt.Errorf("make the node's folder: %w", durable.Full(err))
		}
	}
	if err := durable.WriteJSON(filepath.Join(tmp, "record.json"), r); err != nil {
		return fmt.Errorf("write the node down: %w", err)
	}
	if err := os.Rename(tmp, r.dir); err != nil {
		return fmt.Errorf("make the node's folder: %w", durable.Full(err))
	}
	return nil
}

// undo removes what a failed create made.
func (h *host) undo(r *record, c claims.Claim) error {
	ctx := context.Background()
	if exists(r.dir) {
		return h.remove(ctx, r)
	}
	return h.release(ctx, c)
}

func (h *host) release(ctx context.Context, c claims.Claim) error {
	l, err := claims.Open(ctx, h.claimsDir)
	if err != nil {
		return err
	}
	defer l.Close()
	return l.Release(c)
}

// remove ends a node, gives back what it holds and removes all that is left of it.
func (h *host) remove(ctx context.Context, r *record) error {
	if err := r.end(ctx, 0); err != nil {
		return err
	}
	if err := failpoint.Hit(fpKilled); err != nil {
		return err
	}
	if err := h.release(ctx, r.claim("")); err != nil {
		return err
	}
	if err := failpoint.Hit(fpFreed); err != nil {
		return err
	}
	os.Remove(r.Socket)
	// From here on the node is not there; its files may take longer.
	trash := filepath.Join(r.root(), "trash")
	for try := range 20 {
		os.MkdirAll(trash, 0o700)
		gone := filepath.Join(trash, fmt.Sprintf("gone-%d-%d-%d", os.Getpid(), time.Now().UnixNano(), try))
		if err := os.Rename(r.dir, gone); err == nil || !exists(r.dir) {
			return nil
		}
	}
	// A full disk, say: the files go where they are.
	if err := removeAll(r.dir); err != nil {
		return fmt.Errorf("remove the folder of node %s: %w", r.ID, err)
	}
	return nil
}

// list tells the nodes of an installation, or of one of its clusters, and takes up what a killed call left half done.
func (h *host) list(ctx context.Context) ([]Node, error) {
	recs, err := h.records(func(r *record) bool {
		return r.Installation == h.req.Installation && (h.req.Hash == "" || r.Hash == h.req.Hash)
	})
	if err != nil {
		return nil, err
	}
	out := []Node{}
	for _, r := range recs {
		state, _ := r.state()
		switch state {
		case StateStopping:
			h.finish(ctx, r)
		case StateRunning:
			h.own(r.Socket) // the agent makes it anew when it starts
		}
		out = append(out, h.told(r, false))
	}
	return out, nil
}

// finish ends a node that shall not run and still does, and what outlived the init of a plain process tree, so that "gone"
// means that nothing of the node runs. A node that another call works on is left to it.
func (h *host) finish(ctx context.Context, r *record) {
	quick, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	unlock, err := h.lock(quick, r.root(), r.ID)
	cancel()
	if err != nil {
		return
	}
	defer unlock()
	now, err := readRecord(r.dir)
	if err != nil || now == nil {
		return
	}
	if state, _ := now.state(); state != StateStopping {
		return
	}
	grace := time.Duration(0)
	if now.Want == wantStopped {
		grace = stopGrace
	}
	if err := now.end(ctx, grace); err != nil {
		h.remark(err.Error())
		return
	}
	if now.Want == wantStopped {
		h.release(ctx, now.claim(""))
		return
	}
	now.Buried = true
	now.save()
	*r = *now
}

// eachLocked runs f on the cluster's nodes, each under its lock and as it then is.
func (h *host) eachLocked(ctx context.Context, f func(*record) error) error {
	recs, err := h.members()
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range recs {
		errs = append(errs, func() error {
			unlock, err := h.lock(ctx, r.root(), r.ID)
			if err != nil {
				return err
			}
			defer unlock()
			now, err := readRecord(r.dir)
			if err != nil || now == nil || !h.mine(now) {
				return err
			}
			return f(now)
		}())
	}
	return errors.Join(errs...)
}

func (h *host) delete(ctx context.Context) error {
	return h.eachLocked(ctx, func(r *record) error { return h.remove(ctx, r) })
}

// stop ends the nodes' processes, keeps their files and gives back what they hold.
func (h *host) stop(ctx context.Context) ([]Node, error) {
	var out []Node
	err := h.eachLocked(ctx, func(r *record) error {
		if state, _ := r.state(); state != StateGone {
			r.Want = wantStopped
			if err := r.save(); err != nil {
				return err
			}
			if err := r.end(ctx, stopGrace); err != nil {
				return err
			}
			if err := h.release(ctx, r.claim("")); err != nil {
				return err
			}
			os.Remove(r.Socket)
		}
		out = append(out, h.told(r, false))
		return nil
	})
	return out, err
}

// start claims a share again for stopped nodes and brings them back; running ones stay. Without a share a node stays
// stopped.
func (h *host) start(ctx context.Context) ([]Node, error) {
	m, gpuErr := machine(ctx, h.root())
	var out []Node
	err := h.eachLocked(ctx, func(r *record) error {
		state, reason := r.state()
		switch state {
		case StateGone:
			return errorf(KindConflict, "node %s is gone (%s) and can't be started", r.ID, reason)
		case StateRunning:
			out = append(out, h.told(r, true))
			return nil
		}
		if err := r.end(ctx, stopGrace); err != nil {
			return err
		}
		if err := fits(m, r.Ask, gpuErr); err != nil {
			return err
		}
		c, err := h.take(ctx, m, r)
		if err != nil {
			return err
		}
		r.Devices, r.Want, r.StartToken = c.GPUs, wantRunning, h.req.Token
		if h.req.TLS == nil && r.Port > 0 {
			// Keys stay as they are; the port may be taken meanwhile.
			all, err := h.records(func(*record) bool { return true })
			if err == nil {
				r.Port, err = h.pickPort(r.IP, r.Port, all, r.ID)
			}
			if err != nil {
				return errors.Join(err, h.halt(ctx, r))
			}
		}
		if err := h.bringUp(ctx, r, c, true); err != nil {
			return errors.Join(err, h.halt(ctx, r))
		}
		out = append(out, h.told(r, false))
		return nil
	})
	return out, err
}

// halt brings a node that could not be started back to stopped.
func (h *host) halt(ctx context.Context, r *record) error {
	r.Want = wantStopped
	return errors.Join(r.save(), r.end(ctx, 0), h.release(ctx, r.claim("")))
}
