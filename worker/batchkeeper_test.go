package worker

import (
	"log/slog"
	"os"
	"testing"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/internal/batchlog"
)

// TestBatchKeeper keeps what a node pushes of an array's elements, once, until the batch is settled.
func TestBatchKeeper(t *testing.T) {
	w := &watcher{home: t.TempDir(), log: slog.New(slog.DiscardHandler), running: map[string]*watch{}}
	if w.batchesOf(&watch{}, 0) != nil {
		t.Error("a cluster of no array is followed")
	}
	var none *batchKeeper
	none.take(&agentapi.BatchBytes{})
	k := w.batchesOf(&watch{row: activities.WatchRow{Array: 7}}, 1)
	if q := k.follow(); !q.Batches || q.Every != batchPeriodLeast || len(q.Kept) != 0 || q.JobID != 0 {
		t.Errorf("%+v", q)
	}
	long := string(make([]byte, 70<<10))
	push := func(batch int64, data string, pieces ...agentapi.OutputPiece) {
		k.take(&agentapi.BatchBytes{Batch: batch, Pieces: pieces, Data: []byte(data)})
	}
	push(1, long+"x", agentapi.OutputPiece{Element: 3, Len: int64(len(long))}, agentapi.OutputPiece{Element: 4, Len: 1})
	push(1, "xy", agentapi.OutputPiece{Element: 4, Len: 2}) // told again by a node that was asked anew
	push(1, "y", agentapi.OutputPiece{Element: 4, Len: -1})
	push(1, "far", agentapi.OutputPiece{Element: 4, Offset: 100, Len: 3})
	push(2, "z", agentapi.OutputPiece{Element: 9, Len: 1})
	if q := k.follow(); len(q.Kept) != 1 || q.Kept[agentapi.Element{Batch: 1, Index: 3}] != int64(len(long)) {
		t.Errorf("%v", q.Kept)
	}
	id := batchlog.ID{Batch: 1, Rank: 1}
	b, err := os.ReadFile(id.Path(k.dir))
	if err != nil || string(b) != long+"xy" {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if err := batchlog.NewWriter(k.dir, id).Finish(""); err != nil {
		t.Fatal(err)
	}
	push(1, "late", agentapi.OutputPiece{Element: 4, Offset: 2, Len: 4})
	if q := k.follow(); len(q.Kept) != 0 || k.failed {
		t.Errorf("%+v, %v", q, k.failed)
	}
	if b, _ := os.ReadFile(id.Path(k.dir)); string(b) != long+"xy" {
		t.Errorf("%d bytes", len(b))
	}
}
