package store

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
)

// clock is a hand-moved clock.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Date(2025, 3, 1, 12, 0, 0, 0, time.UTC)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
	return c.t
}

func open(t testing.TB) (*Store, *clock) {
	t.Helper()
	c := newClock()
	s, err := Open(context.Background(), filepath.Join(t.TempDir(), "state", "read model?#%.db"), Options{Now: c.now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, c
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestOpenTwice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d", "s.db")
	a, err := Open(t.Context(), path, Options{})
	must(t, err)
	b, err := Open(t.Context(), path, Options{}) // a second server on the same file
	must(t, err)
	if a.Installation() == "" || a.Installation() != b.Installation() {
		t.Fatalf("%q, %q", a.Installation(), b.Installation())
	}
	must(t, a.SetSetting(t.Context(), "k", "1"))
	must(t, b.SetSetting(t.Context(), "k", "2"))
	if v, ok, err := a.Setting(t.Context(), "k"); v != "2" || !ok || err != nil {
		t.Fatal(v, ok, err)
	}
	if v, err := a.SettingOnce(t.Context(), "k", "3"); v != "2" || err != nil {
		t.Fatal(v, err)
	}
	if _, ok, err := a.Setting(t.Context(), "none"); ok || err != nil {
		t.Fatal(ok, err)
	}
	must(t, a.Close())
	must(t, a.Close())
	must(t, b.Close())
	if err := a.SetSetting(t.Context(), "k", "4"); !errors.Is(err, errClosed) {
		t.Fatal(err)
	}
	for p, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700} {
		if fi, err := os.Stat(p); err != nil || fi.Mode().Perm() != want {
			t.Fatalf("%s: %v %v", p, fi.Mode(), err)
		}
	}
}

func TestSchemaRefusals(t *testing.T) {
	ctx := t.Context()
	base := len(migrations)
	newer := append(append([]migration{}, migrations...), migration{version: base + 1, tag: "skyloom-x", compat: 1, sql: "CREATE TABLE extra (a TEXT)"},
		migration{version: base + 2, tag: "skyloom-y", compat: base + 2, sql: "CREATE TABLE extra2 (a TEXT)"})
	openAt := func(path string, n int) error {
		s, err := Open(ctx, path, Options{migrations: newer[:n]})
		if err == nil {
			must(t, s.PutCluster(ctx, api.Cluster{Name: "c", Hash: "h", Seq: 1}))
			must(t, s.Close())
		}
		return err
	}
	path := filepath.Join(t.TempDir(), "s.db")
	must(t, openAt(path, base))
	must(t, openAt(path, base+1))
	if _, err := os.Stat(fmt.Sprintf("%s.before-schema-%d", path, base+1)); err != nil {
		t.Fatalf("no backup before the change: %v", err)
	}
	must(t, openAt(path, base)) // the step is additive: both versions may run
	must(t, openAt(path, base+2))
	var se *SchemaError
	if err := openAt(path, base); !errors.As(err, &se) || se.Found != base+2 || se.Want != base || !strings.Contains(err.Error(), "newer version") || !strings.Contains(err.Error(), path) {
		t.Fatalf("%v", err)
	}

	other := append([]migration{}, migrations...)
	other[0].tag = "someone-else"
	if _, err := Open(ctx, path, Options{migrations: other}); !errors.As(err, &se) || !strings.Contains(err.Error(), "another program") {
		t.Fatalf("%v", err)
	}

	foreign := filepath.Join(t.TempDir(), "f.db")
	db, err := sql.Open("sqlite", foreign)
	must(t, err)
	_, err = db.Exec("CREATE TABLE albums (x)")
	must(t, err)
	must(t, db.Close())
	if _, err := Open(ctx, foreign, Options{}); !errors.As(err, &se) || !strings.Contains(err.Error(), "another program") {
		t.Fatalf("%v", err)
	}

	// A step that fails leaves the database as it was.
	broken := append(append([]migration{}, migrations...), migration{version: base + 1, tag: "b", compat: 1, sql: "CREATE TABLE half (a TEXT); CREATE TABEL oops"})
	path = filepath.Join(t.TempDir(), "s.db")
	must(t, openAt(path, base))
	if _, err := Open(ctx, path, Options{migrations: broken}); err == nil {
		t.Fatal("a broken step passed")
	}
	must(t, openAt(path, base+1))
}

// TestUpgrade: a database of the first schema is read and written on.
func TestUpgrade(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	s, err := Open(t.Context(), path, Options{migrations: migrations[:1]})
	must(t, err)
	must(t, s.update(t.Context(), true, func(x *txn) error {
		for _, q := range []string{`INSERT INTO clusters (name, hash, seq, status, user_hash, workspace, launched, summary, task_yaml) VALUES ('c', 'h', 1, 'UP', 'u', 'w', 0, '{"name":"c","cluster_hash":"h"}', '')`,
			`INSERT INTO events (key, at, cluster, hash, request_id, kind, data) VALUES ('k', 1, 'c', 'h', '', 'step', '{"message":"m"}')`} {
			if _, err := x.exec(q); err != nil {
				return err
			}
		}
		return nil
	}))
	must(t, s.Close())
	s, err = Open(t.Context(), path, Options{})
	must(t, err)
	defer s.Close()
	if cs, err := s.Clusters(t.Context(), ClusterFilter{SkipManaged: true}); err != nil || len(cs) != 1 || cs[0].Hash != "h" {
		t.Fatalf("%+v %v", cs, err)
	}
	must(t, s.PutCluster(t.Context(), api.Cluster{Name: "c", Hash: "h", Seq: 2}))
	must(t, s.AppendEvents(t.Context(), Event{Event: api.Event{Cluster: "c", JobID: 4}}))
	if es, err := s.Events(t.Context(), EventFilter{Cluster: "c"}); err != nil || len(es) != 2 || es[1].JobID != 4 {
		t.Fatalf("%+v %v", es, err)
	}
}

func TestCorrupt(t *testing.T) {
	ctx := t.Context()
	var ce *CorruptError
	path := filepath.Join(t.TempDir(), "s.db")
	must(t, os.WriteFile(path, []byte(strings.Repeat("this is not a database ", 500)), 0o600))
	if _, err := Open(ctx, path, Options{}); !errors.As(err, &ce) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "backup") {
		t.Fatalf("%v", err)
	}
	path = filepath.Join(t.TempDir(), "s.db")
	s, err := Open(ctx, path, Options{})
	must(t, err)
	for i := range 300 {
		must(t, s.AppendEvents(ctx, Event{Key: fmt.Sprint(i), Event: api.Event{Message: strings.Repeat("x", 500), RequestID: "r"}}))
	}
	must(t, s.Close())
	data, err := os.ReadFile(path)
	must(t, err)
	for i := 20 * 4096; i < 40*4096 && i < len(data); i++ {
		data[i] = 0xa5
	}
	must(t, os.WriteFile(path, data, 0o600))
	if _, err := Open(ctx, path, Options{}); !errors.As(err, &ce) {
		t.Fatalf("%v", err)
	}
}

func TestBackup(t *testing.T) {
	s, _ := open(t)
	must(t, s.PutCluster(t.Context(), api.Cluster{Name: "c", Hash: "h", Seq: 1}))
	to := filepath.Join(t.TempDir(), "copy.db")
	must(t, s.Backup(t.Context(), to))
	if err := s.Backup(t.Context(), to); err == nil {
		t.Fatal("a backup was overwritten")
	}
	if fi, err := os.Stat(to); err != nil || fi.Mode().Perm() != 0o600 {
		t.Fatal(fi.Mode(), err)
	}
	c, err := Open(t.Context(), to, Options{})
	must(t, err)
	defer c.Close()
	if _, err := c.Cluster(t.Context(), "c"); err != nil || c.Installation() != s.Installation() {
		t.Fatal(err)
	}
}

func TestFullDisk(t *testing.T) {
	s, _ := open(t)
	must(t, s.update(t.Context(), false, func(x *txn) error { return x.row("PRAGMA page_count").Scan(new(int)) }))
	must(t, s.update(t.Context(), false, func(x *txn) error { return x.row("PRAGMA max_page_count = 1").Scan(new(int)) })) // as low as it goes
	big := strings.Repeat("x", 1<<16)
	err := s.AppendEvents(t.Context(), Event{Event: api.Event{Message: big}})
	var fe *FullError
	if !errors.As(err, &fe) || !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "disk is full") {
		t.Fatalf("%v", err)
	}
	must(t, s.update(t.Context(), false, func(x *txn) error { return x.row("PRAGMA max_page_count = 100000").Scan(new(int)) }))
	must(t, s.AppendEvents(t.Context(), Event{Event: api.Event{Message: big}})) // it heals
}

// TestGroupCommit: writes that share a transaction fail and succeed each for themselves.
func TestGroupCommit(t *testing.T) {
	s, _ := open(t)
	entered, gate := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		must(t, s.update(t.Context(), false, func(*txn) error { close(entered); <-gate; return nil })) // holds the writer while the rest queues up
	})
	<-entered
	boom := errors.New("boom")
	errs := make([]error, 100)
	for i := range errs {
		wg.Go(func() {
			errs[i] = s.update(t.Context(), i%7 == 0, func(x *txn) error {
				if err := x.appendEvent(Event{Key: fmt.Sprint(i), Event: api.Event{Message: fmt.Sprint(i)}}); err != nil {
					return err
				}
				switch i % 10 {
				case 3:
					return boom
				case 4:
					panic("boom")
				}
				return nil
			})
		})
	}
	for len(s.w.jobs) < 90 {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithCancel(t.Context())
	dropped := make(chan error, 1)
	go func() { dropped <- s.AppendEvents(ctx, Event{Key: "dropped"}) }()
	cancel()
	if err := <-dropped; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	close(gate)
	wg.Wait()
	es, err := s.Events(t.Context(), EventFilter{})
	must(t, err)
	if len(es) != 80 {
		t.Fatalf("%d events", len(es))
	}
	for i, err := range errs {
		switch i % 10 {
		case 3:
			if !errors.Is(err, boom) {
				t.Fatalf("%d: %v", i, err)
			}
		case 4:
			if err == nil || !strings.Contains(err.Error(), "panic") {
				t.Fatalf("%d: %v", i, err)
			}
		default:
			if err != nil {
				t.Fatalf("%d: %v", i, err)
			}
		}
	}
}

func TestSubscribe(t *testing.T) {
	s, _ := open(t)
	ctx := t.Context()
	req, stopReq := s.Subscribe(RequestTopic("r"), ClusterTopic("c"))
	other, stopOther := s.Subscribe(RequestTopic("x"))
	all, stopAll := s.Subscribe(AllTopic)
	watch, stopWatch := s.Subscribe(WatchTopic)
	told := func(ch <-chan struct{}) bool {
		select {
		case <-ch:
			return true
		default:
			return false
		}
	}
	must(t, s.AppendEvents(ctx, Event{Key: "1", Event: api.Event{RequestID: "r"}}))
	if !told(req) || !told(all) || told(other) || told(watch) || told(req) {
		t.Fatal("event of the request")
	}
	must(t, s.AppendEvents(ctx, Event{Key: "1", Event: api.Event{RequestID: "r"}}))
	if told(req) {
		t.Fatal("a repeated event woke the reader")
	}
	must(t, s.PutCluster(ctx, api.Cluster{Name: "c", Hash: "h", Seq: 1}))
	if !told(req) || !told(all) {
		t.Fatal("cluster row")
	}
	must(t, s.PutWatch(ctx, Watch{Hash: "h", Cluster: "c"}))
	if !told(watch) || told(all) {
		t.Fatal("watch")
	}
	_ = s.Write(ctx, Batch{Events: []Event{{Key: "2", Event: api.Event{RequestID: "r"}}}, Clusters: []api.Cluster{{}}})
	if told(req) {
		t.Fatal("a write that failed woke the reader")
	}
	for _, stop := range []func(){stopReq, stopOther, stopAll, stopWatch} {
		stop()
	}
	if len(s.hub.subs) != 0 {
		t.Fatal("subscriptions are left")
	}
}

// TestOpenRace: several servers start on a fresh folder at once.
func TestOpenRace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	stores := make([]*Store, 6)
	var wg sync.WaitGroup
	for i := range stores {
		wg.Go(func() {
			var err error
			if stores[i], err = Open(t.Context(), path, Options{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i, s := range stores {
		if s == nil {
			continue
		}
		if s.Installation() != stores[0].Installation() {
			t.Error("two installation ids")
		}
		must(t, s.SetSetting(t.Context(), fmt.Sprint(i), "x"))
		must(t, s.Close())
	}
}

// TestKilled runs this test binary as a server that acknowledges requests until it is killed: all of them are there.
func TestKilled(t *testing.T) {
	if path := os.Getenv("STORE_TEST_KILLED"); path != "" {
		s, err := Open(context.Background(), path, Options{})
		must(t, err)
		for i := 0; ; i++ {
			id := fmt.Sprintf("request-%d", i)
			_, _, err := s.CreateRequest(context.Background(), newRequest(id))
			must(t, err)
			fmt.Println("ack", id)
		}
	}
	path := filepath.Join(t.TempDir(), "s.db")
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
	cmd.Env = append(os.Environ(), "STORE_TEST_KILLED="+path)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	var acked []string
	sc := bufio.NewScanner(out)
	for sc.Scan() {
		if id, ok := strings.CutPrefix(sc.Text(), "ack "); ok {
			acked = append(acked, id)
		}
		if len(acked) == 50 {
			must(t, cmd.Process.Kill())
		}
	}
	_ = cmd.Wait()
	if len(acked) < 50 {
		t.Fatalf("it ended after %d requests", len(acked))
	}
	s, err := Open(t.Context(), path, Options{})
	must(t, err)
	defer s.Close()
	for _, id := range acked {
		if _, existed, err := s.CreateRequest(t.Context(), newRequest(id)); err != nil || !existed {
			t.Fatalf("%s was acknowledged and is lost: %v", id, err)
		}
	}
}
