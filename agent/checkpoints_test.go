package agent_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/filesync"
)

func TestCheckpoint(t *testing.T) {
	n := cluster(t, 1, quick)[0]
	dir := filepath.Join(n.cfg.Home, "ckpt")
	// The program saves when it is told to; its child would die of the signal.
	j := n.submit(agentapi.JobSpec{Epoch: 1, Envs: map[string]string{"SKYPILOT_CHECKPOINT_DIR": "~/ckpt"}, Run: `
mkdir -p "$SKYPILOT_CHECKPOINT_DIR"
trap 'echo saved >"$SKYPILOT_CHECKPOINT_DIR/state"' USR1
touch ready
while :; do sleep 0.05; done`})
	spec := agentapi.CheckpointSpec{JobID: j.ID, Epoch: 1, Path: "~/ckpt", Signal: "USR1", Seconds: 20}
	n.eventually("the program is ready", func() bool {
		r, err := n.api.Checkpoint(ctx(t), spec)
		return err == nil && r.Signalled == 1 && r.Files == 1
	})
	n.reaches(j.ID, api.JobRunning)
	spec.Signal, spec.Command = "", `echo by hand >"$SKYPILOT_CHECKPOINT_DIR/more"; echo told`
	r, err := n.api.Checkpoint(ctx(t), spec)
	if err != nil || r.Files != 2 || len(r.Warnings) > 0 {
		t.Fatalf("%+v %v", r, err)
	}
	m, err := filesync.Decode(bytes.NewReader(r.Manifest), filesync.Limits{})
	if err != nil || m.ID() != r.ID {
		t.Fatal(err, m.ID())
	}
	read := func(id string) (map[string]int64, error) {
		body, err := n.api.ReadBlobs(ctx(t), agentapi.BlobsRead{Manifest: id, Hashes: m.Hashes()})
		if err != nil {
			return nil, err
		}
		defer body.Close()
		got := map[string]int64{}
		_, err = filesync.ReadPack(ctx(t), body, filesync.PackLimits{}, func(h string, size int64, r io.Reader) error {
			got[h] = size
			return nil
		})
		return got, err
	}
	if got, err := read(r.ID); err != nil || len(got) != 2 {
		t.Fatal(got, err)
	}
	if _, err := read(strings.Repeat("0", 64)); !agentapi.IsKind(err, agentapi.KindNotFound) {
		t.Errorf("another manifest: %v", err)
	}
	// A file that changed since is not given out.
	if err := os.WriteFile(filepath.Join(dir, "more"), []byte("else else"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := read(r.ID); err == nil {
		t.Error("a changed file was sent")
	}
	refused := func(what, kind string, s agentapi.CheckpointSpec) {
		t.Helper()
		if _, err := n.api.Checkpoint(ctx(t), s); !agentapi.IsKind(err, kind) {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("no folder", agentapi.KindNotFound, agentapi.CheckpointSpec{JobID: j.ID, Epoch: 1, Path: "~/none"})
	refused("no job", agentapi.KindNotFound, agentapi.CheckpointSpec{JobID: 99, Epoch: 1, Path: "~/ckpt"})
	refused("the root", agentapi.KindInvalid, agentapi.CheckpointSpec{JobID: j.ID, Epoch: 1, Path: "/"})
	refused("an unknown signal", agentapi.KindInvalid, agentapi.CheckpointSpec{JobID: j.ID, Epoch: 1, Path: "~/ckpt", Signal: "NONE"})
	form(t, 2, n)
	refused("a stale epoch", agentapi.KindStaleEpoch, agentapi.CheckpointSpec{JobID: j.ID, Epoch: 1, Path: "~/ckpt"})
	if _, err := n.api.Cancel(ctx(t), agentapi.CancelSpec{JobIDs: []int64{j.ID}}); err != nil {
		t.Fatal(err)
	}
	refused("a job that has ended", agentapi.KindEnded, agentapi.CheckpointSpec{JobID: j.ID, Epoch: 2, Path: "~/ckpt"})
	if !strings.Contains(n.log(j.ID), "told") {
		t.Error("the command's output is not in the job's log")
	}
}

// TestCheckpointIsWhole saves a folder that is written to all the time: what comes out is never torn.
func TestCheckpointIsWhole(t *testing.T) {
	n := cluster(t, 1, quick)[0]
	j := n.submit(agentapi.JobSpec{Epoch: 1, Run: `mkdir -p ckpt; cd ckpt; i=0
while :; do i=$((i+1)); for f in a b c d; do echo $i >$f; sleep 0.01; done; [ $i -gt 25 ] && sleep 1; done`})
	n.reaches(j.ID, api.JobRunning)
	n.eventually("a whole picture", func() bool {
		r, err := n.api.Checkpoint(ctx(t), agentapi.CheckpointSpec{JobID: j.ID, Epoch: 1, Path: filepath.Join(n.cfg.Home, "ckpt")})
		if err != nil {
			return false
		}
		m, err := filesync.Decode(bytes.NewReader(r.Manifest), filesync.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if got := m.Hashes(); len(got) != 1 {
			t.Errorf("a torn picture: %d contents", len(got))
		}
		return true
	})
}

// TestCheckpointAwaitsTheSave asks programs whose saves take long: by then the old state has been quiet for a while, but it is
// not what was asked for.
func TestCheckpointAwaitsTheSave(t *testing.T) {
	for name, save := range map[string]string{
		"a file of another name is renamed late":    `echo new >state.tmp; sleep 1.5; mv state.tmp state`,
		"the file is written slowly under its name": `{ sleep 0.1; echo -n ne; sleep 1.5; echo w; } >state`,
		"the program is slow to begin":              `sleep 1; echo half >state; sleep 0.6; echo new >state`,
	} {
		t.Run(name, func(t *testing.T) {
			n := cluster(t, 1, quick)[0]
			j := n.submit(agentapi.JobSpec{Epoch: 1, Run: `mkdir -p ckpt; cd ckpt; exec 9>>log; echo old >state; touch stale.tmp
trap '` + save + `' USR1
touch ../ready
while :; do sleep 0.05; done`})
			n.eventually("the program is ready", func() bool {
				_, err := os.Stat(filepath.Join(n.cfg.Home, "ready"))
				return err == nil
			})
			dir := filepath.Join(n.cfg.Home, "ckpt")
			r, err := n.api.Checkpoint(ctx(t), agentapi.CheckpointSpec{JobID: j.ID, Epoch: 1, Path: dir, Signal: "USR1"})
			if err != nil || r.Signalled != 1 || len(r.Warnings) > 0 {
				t.Fatalf("%+v %v", r, err)
			}
			if b, err := os.ReadFile(filepath.Join(dir, "state")); err != nil || string(b) != "new\n" {
				t.Errorf("the folder was read when the state was %q (%v)", b, err)
			}
			again, err := n.api.Checkpoint(ctx(t), agentapi.CheckpointSpec{JobID: j.ID, Epoch: 1, Path: dir})
			if err != nil || again.ID != r.ID || again.Taken <= r.Taken {
				t.Errorf("%+v, then %+v %v", r, again, err)
			}
		})
	}
}

// TestCheckpointOfADeafProgram says that what was saved is not what the signal asked for.
func TestCheckpointOfADeafProgram(t *testing.T) {
	n := cluster(t, 1, quick)[0]
	j := n.submit(agentapi.JobSpec{Epoch: 1, Run: `mkdir -p ckpt; echo old >ckpt/state; trap : USR1; touch ready; while :; do sleep 0.05; done`})
	n.eventually("the program is ready", func() bool {
		_, err := os.Stat(filepath.Join(n.cfg.Home, "ready"))
		return err == nil
	})
	r, err := n.api.Checkpoint(ctx(t), agentapi.CheckpointSpec{JobID: j.ID, Epoch: 1, Path: filepath.Join(n.cfg.Home, "ckpt"), Signal: "USR1", Seconds: 4})
	if err != nil || r.Files != 1 || len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "nothing was written within 2s after signal USR1") {
		t.Errorf("%+v %v", r, err)
	}
}
