package worker

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/skyloom/skyloom/activities"
	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/store"
)

func keepLog(t *testing.T, home string, job int64, attempt int, name, text string) string {
	t.Helper()
	dir := activities.LogDir(home, job, 0, attempt)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestStoredLog(t *testing.T) {
	b := &backend{home: t.TempDir()}
	if logs, err := b.StoredLog(t.Context(), 1, 0, 1); err != nil || len(logs) != 0 {
		t.Fatal(logs, err)
	}
	for _, name := range []string{"0-run.log", "12-setup.log", "0-setup.tmp", "complete", "x-run.log", "3.cut"} {
		keepLog(t, b.home, 1, 2, name, "text of "+name)
	}
	logs, err := b.StoredLog(t.Context(), 1, 0, 2)
	if err != nil || len(logs) != 3 || logs[0].Rank != 0 || logs[0].Phase != "run" || logs[1].Rank != 12 || logs[1].Phase != "setup" ||
		logs[2].Rank != 3 || logs[2].Cut != "text of 3.cut" {
		t.Fatalf("%+v %v", logs, err)
	}
	f, err := logs[1].Open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if text, err := io.ReadAll(f); err != nil || string(text) != "text of 12-setup.log" {
		t.Fatal(string(text), err)
	}
}

func TestCollectLogs(t *testing.T) {
	home := t.TempDir()
	st, err := store.Open(t.Context(), filepath.Join(home, "s.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if err := collectLogs(t.Context(), st, home); err != nil {
		t.Fatal(err)
	}
	if err := st.PutManagedJobs(t.Context(), api.ManagedJob{ID: 1, Status: api.ManagedSucceeded, Seq: 1}); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-48 * time.Hour)
	for id := range int64(4) {
		dir := filepath.Dir(filepath.Dir(keepLog(t, home, id, 1, "0-run.log", "x")))
		if id != 3 {
			if err := os.Chtimes(dir, old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := collectLogs(t.Context(), st, home); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[int64]bool{0: false, 1: true, 2: false, 3: true} { // listed, or young
		if _, err := os.Stat(activities.LogDir(home, id, 0, 1)); (err == nil) != want {
			t.Errorf("%d: %v", id, err)
		}
	}
}

// TestNodeLog keeps what a node pushes: repeated and overlapping pieces change nothing, and no gap is ever left.
func TestNodeLog(t *testing.T) {
	w := &watcher{home: t.TempDir(), log: slog.New(slog.DiscardHandler), running: map[string]*watch{}}
	one := &watch{row: activities.WatchRow{Log: &activities.WatchedLog{Job: 7, Task: 1, Attempt: 2, ClusterJob: 3}}}
	if l := w.logOf(&watch{}, 0); l.follow().JobID != 0 {
		t.Error("the log of no job is followed")
	}
	l := w.logOf(one, 4)
	if f := l.follow(); f.JobID != 3 || f.Every < logPeriodLeast || len(f.Offsets) != 0 {
		t.Errorf("%+v", f)
	}
	piece := func(off int64, text string) {
		l.take(&agentapi.LogBytes{JobID: 3, Phase: "run", Offset: off, Data: []byte(text)})
	}
	piece(0, "abc")
	piece(0, "abc")
	piece(2, "cde")
	l.take(&agentapi.LogBytes{JobID: 4, Phase: "run", Offset: 5, Data: []byte("of another job")})
	l.take(&agentapi.LogBytes{JobID: 3, Phase: "../run", Data: []byte("elsewhere")})
	if f := l.follow(); f.Offsets["run"] != 5 || len(f.Offsets) != 1 {
		t.Errorf("%+v", f)
	}
	piece(9, "a gap")
	piece(5, "f") // it is asked for anew first
	if f := l.follow(); f.Offsets["run"] != 5 {
		t.Errorf("%+v", f)
	}
	piece(5, "f")
	b := &backend{home: w.home}
	logs, err := b.StoredLog(t.Context(), 7, 1, 2)
	if err != nil || len(logs) != 1 || logs[0].Rank != 4 {
		t.Fatalf("%+v %v", logs, err)
	}
	f, err := logs[0].Open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if text, _ := io.ReadAll(f); string(text) != "abcdef" {
		t.Errorf("%q", text)
	}
	if few, many := logPeriod(1), logPeriod(10_000); few > 11*time.Second || many != logPeriodMost {
		t.Error(few, many)
	}
}
