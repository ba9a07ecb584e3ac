package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/agent/checkpoint"
	"github.com/skyloom/skyloom/agent/proctree"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/filesync"
)

// checkpointDir is the variable that tells a job where its checkpoints belong. It is made absolute on each node.
const checkpointDir = "SKYPILOT_CHECKPOINT_DIR"

// checkpointTime bounds a save that sets no time of its own.
const checkpointTime = time.Minute

// signalTime is how long a program that was given a signal has for its save.
const signalTime = 10 * time.Second

// pictures are the folders as last saved, by manifest. One save runs at a time.
type pictures struct {
	saving sync.Mutex
	mu     sync.Mutex
	last   *filesync.Tree
	id     string
	taken  int64 // of the picture last taken
}

func (a *Agent) checkpointRoutes(m *http.ServeMux) {
	handle(m, "POST /v1/checkpoint", with(func(s agentapi.CheckpointSpec, r *http.Request) (any, error) {
		return a.Checkpoint(r.Context(), s)
	}))
	m.HandleFunc("POST /v1/files/read", a.readBlobs)
}

// Checkpoint takes a picture of a folder of a job, after the job was told.
func (a *Agent) Checkpoint(ctx context.Context, s agentapi.CheckpointSpec) (agentapi.CheckpointReply, error) {
	var out agentapi.CheckpointReply
	t, err := a.target(agentapi.FileApply{Dst: s.Path, Mirror: true})
	if err != nil {
		return out, err
	}
	limit := checkpointTime
	if s.Seconds > 0 {
		limit = time.Duration(s.Seconds) * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	a.pictures.saving.Lock()
	defer a.pictures.saving.Unlock()
	p, err := a.checkpointed(s)
	if err != nil {
		return out, err
	}
	if !p.over() && !p.Killed {
		if err := a.announce(ctx, s, p, t.Dst, limit, &out); err != nil {
			return out, err
		}
	}
	defer a.files.lock(t.Dst)() // nothing is restored meanwhile
	if err := os.MkdirAll(a.path("hashes"), 0o700); err != nil {
		return out, diskError(err)
	}
	tree, err := checkpoint.Take(ctx, t.Dst, a.path("hashes"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return out, notFound("there is no folder %s on %s yet", t.Dst, api.NodeName(a.cfg.Rank))
	case errors.Is(err, checkpoint.ErrBusy):
		return out, conflict("%v", err)
	case err != nil:
		return out, fileError(err)
	}
	if _, err := a.checkpointed(s); err != nil { // meanwhile another attempt may have begun
		return out, err
	}
	if out.Manifest, err = tree.Manifest.Bytes(); err != nil {
		return out, err
	}
	out.ID = tree.Manifest.ID()
	out.Files, out.Bytes = tree.Manifest.Totals()
	out.Warnings = append(out.Warnings, tree.Warnings...)
	a.pictures.mu.Lock()
	defer a.pictures.mu.Unlock()
	a.pictures.last, a.pictures.id = tree, out.ID
	a.pictures.taken = max(a.pictures.taken+1, time.Now().UnixMicro())
	out.Taken = a.pictures.taken
	return out, nil
}

// checkpointed gives the part of a job that is to be saved, if it may be.
func (a *Agent) checkpointed(s agentapi.CheckpointSpec) (*partRecord, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s.Epoch < a.epoch() {
		return nil, staleEpoch(s.Epoch, a.epoch())
	}
	p := a.parts[s.JobID]
	switch {
	case p == nil || p.Epoch > s.Epoch:
		return nil, notFound("job %d does not run on %s", s.JobID, api.NodeName(a.cfg.Rank))
	case !s.Ended && (p.over() || p.Killed):
		return nil, &agentapi.Error{Kind: agentapi.KindEnded, Detail: fmt.Sprintf("job %d has ended on %s", s.JobID, api.NodeName(a.cfg.Rank))}
	}
	rec := p.partRecord
	return &rec, nil
}

// announce gives the job its signal and runs the command.
func (a *Agent) announce(ctx context.Context, s agentapi.CheckpointSpec, p *partRecord, dir string, limit time.Duration, out *agentapi.CheckpointReply) error {
	h := a.handle(p, phaseRun)
	if s.Signal != "" {
		sig, ok := checkpoint.Signal(s.Signal)
		if !ok {
			return invalid("this node knows no signal %q", s.Signal)
		}
		if pids, ok := h.Pids(); ok && !p.Run.Ended && pids.Child.Alive() {
			procs := func() []proctree.Proc { return append(proctree.Descendants(pids.Child), pids.Child) }
			before, within := checkpoint.Before(dir, procs()), min(signalTime, limit/2)
			if out.Signalled = checkpoint.Send(procs(), sig); out.Signalled > 0 {
				if missing := before.Await(ctx, procs, within); missing != checkpoint.SavedAll {
					out.Warnings = append(out.Warnings, fmt.Sprintf("%s within %s after signal %s", missing, within, s.Signal))
				}
			}
		}
	}
	if s.Command != "" {
		spec, err := h.Spec()
		if err != nil {
			return notFound("job %d has no command on %s", s.JobID, api.NodeName(a.cfg.Rank))
		}
		cctx, cancel := context.WithTimeout(ctx, limit*3/4) // the rest is for reading the folder
		defer cancel()
		if err := checkpoint.Run(cctx, s.Command, spec.Env, spec.Cwd, spec.Log); err != nil {
			out.Warnings = append(out.Warnings, err.Error()) // what is in the folder is saved all the same
		}
	}
	return nil
}

// readBlobs sends content of the picture last taken.
func (a *Agent) readBlobs(w http.ResponseWriter, r *http.Request) {
	var in agentapi.BlobsRead
	if err := json.NewDecoder(io.LimitReader(r.Body, maxBody)).Decode(&in); err != nil {
		fail(w, invalid("the body is not understood: %v", err))
		return
	}
	a.pictures.mu.Lock()
	tree, id := a.pictures.last, a.pictures.id
	a.pictures.mu.Unlock()
	if tree == nil || id != in.Manifest {
		fail(w, notFound("manifest %.12s is not the one that was saved last: save again", in.Manifest))
		return
	}
	w.Header().Set("Content-Type", filesync.PackMediaType)
	if err := filesync.WritePack(r.Context(), w, tree, in.Hashes, filesync.PackOptions{Raw: true}); err != nil {
		a.log.Info("a checkpoint was not sent", "error", err)
		panic(http.ErrAbortHandler) // the reader must see that it is not whole
	}
}

// absoluteDirs makes the paths in variables that name folders and files of the node absolute.
func (a *Agent) absoluteDirs(env []string) {
	for i, kv := range env {
		for _, name := range []string{checkpointDir, hostsFile} {
			if dir, ok := strings.CutPrefix(kv, name+"="); ok && dir != "" {
				if t, err := a.target(agentapi.FileApply{Dst: dir}); err == nil {
					env[i] = name + "=" + t.Dst
				}
			}
		}
	}
}
