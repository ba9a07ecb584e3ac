package upload

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/console"
	"github.com/skyloom/skyloom/cli/session"
	"github.com/skyloom/skyloom/internal/filesync"
	"github.com/skyloom/skyloom/task"
)

// store is a server's side of uploads.
type store struct {
	blobs  map[string][]byte
	puts   int
	before func(put int) // runs before a pack is read
	status int           // of packs, 0: good
}

func (st *store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/api/v1/manifests":
		m, err := filesync.Decode(r.Body, filesync.Limits{})
		if err != nil {
			http.Error(w, err.Error(), 400)
			return
		}
		out := api.ManifestReply{ID: m.ID(), Missing: []string{}}
		for _, h := range m.Hashes() {
			if _, ok := st.blobs[h]; !ok {
				out.Missing = append(out.Missing, h)
			}
		}
		_ = json.NewEncoder(w).Encode(out)
	case "/api/v1/blobs":
		st.puts++
		if st.before != nil {
			st.before(st.puts)
		}
		if st.status != 0 {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(st.status)
			io.WriteString(w, `{"type":"StorageFull","detail":"the server's disk is full","hint":"Free some space."}`)
			return
		}
		_, err := filesync.ReadPack(r.Context(), r.Body, filesync.PackLimits{}, func(h string, n int64, rd io.Reader) error {
			b, err := io.ReadAll(rd)
			if err == nil {
				st.blobs[h] = b
			}
			return err
		})
		if err != nil {
			panic(http.ErrAbortHandler)
		}
	}
}

func setup(t *testing.T) (*store, *api.Client, *session.Session, string) {
	t.Helper()
	st := &store{blobs: map[string][]byte{}}
	srv := httptest.NewServer(st)
	t.Cleanup(srv.Close)
	dir := t.TempDir()
	var out bytes.Buffer
	s := &session.Session{IO: &console.Console{In: strings.NewReader(""), Out: &out, Err: &out}, Now: time.Now,
		LookupEnv: func(string) (string, bool) { return "", false }, Dir: dir, UserHome: t.TempDir()}
	return st, api.NewClient(srv.URL, "", api.WithPatience(0)), s, dir
}

func put(t *testing.T, dir, name, text string) {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestUploadOnlyWhatIsMissing(t *testing.T) {
	st, c, s, dir := setup(t)
	put(t, dir, "w/a", "one")
	put(t, dir, "w/b", "two")
	tk := &task.Task{Workdir: &task.Workdir{Path: "w", Mirror: true}, NumNodes: 1}
	f, err := Upload(context.Background(), s, c, tk, Options{})
	if err != nil || len(f.Mounts) != 1 || !f.Mounts[0].Mirror || f.Mounts[0].Dst != WorkdirDst || len(st.blobs) != 2 || st.puts != 1 {
		t.Fatalf("%+v %v, %d blobs", f, err, len(st.blobs))
	}
	again, err := Upload(context.Background(), s, c, tk, Options{})
	if err != nil || st.puts != 1 || again.Mounts[0].Manifest != f.Mounts[0].Manifest {
		t.Fatal("sent twice", err)
	}
	put(t, dir, "w/c", "three")
	if _, err = Upload(context.Background(), s, c, tk, Options{}); err != nil || st.puts != 2 || len(st.blobs) != 3 {
		t.Fatal(err, st.puts)
	}
}

// A file that changes while it is sent is read anew; a folder that vanishes is an error that names it.
func TestSourceChanges(t *testing.T) {
	st, c, s, dir := setup(t)
	put(t, dir, "w/a", strings.Repeat("x", 1000))
	st.before = func(n int) {
		if n == 1 {
			st.blobs = map[string][]byte{}
			put(t, dir, "w/a", "changed")
		}
	}
	tk := &task.Task{Workdir: &task.Workdir{Path: "w"}}
	// The pack may be on its way already when the file changes; either way what arrives is consistent.
	f, err := Upload(context.Background(), s, c, tk, Options{})
	if err != nil || len(f.Mounts) != 1 {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "w")); err != nil {
		t.Fatal(err)
	}
	if _, err = Upload(context.Background(), s, c, tk, Options{}); err == nil || !strings.Contains(err.Error(), "w could not be brought to the server") {
		t.Fatal(err)
	}
}

// TestBusyFolder: files that are written to all the time keep nobody from launching.
func TestBusyFolder(t *testing.T) {
	st, c, s, dir := setup(t)
	var said bytes.Buffer
	s.IO.Err = &said
	put(t, dir, "w/still", "still")
	put(t, dir, "w/log", strings.Repeat("l", 300<<10))
	put(t, dir, "w/db", strings.Repeat("d", 300<<10))
	n := 0
	st.before = func(int) {
		n++
		put(t, dir, "w/db", strings.Repeat(fmt.Sprint(n%10), 300<<10))
		f, err := os.OpenFile(filepath.Join(dir, "w/log"), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer f.Close()
		f.WriteString("more\n")
	}
	f, err := Upload(context.Background(), s, c, &task.Task{Workdir: &task.Workdir{Path: "w"}}, Options{})
	if err != nil || len(f.Mounts) != 1 || len(st.blobs) < 3 {
		t.Fatalf("%+v, %v, %d blobs", f, err, len(st.blobs))
	}
	if n := strings.Count(said.String(), "w/log"); n > 1 {
		t.Errorf("said %d times: %s", n, said.String())
	}
}

// TestFolderVanishes: a folder that goes while it is sent is an error that says so.
func TestFolderVanishes(t *testing.T) {
	st, c, s, dir := setup(t)
	for _, name := range []string{"w/a", "w/b", "w/c"} { // more than fits between client and server
		put(t, dir, name, strings.Repeat(name, 3<<20))
	}
	st.before = func(int) { os.RemoveAll(filepath.Join(dir, "w")) }
	_, err := Upload(context.Background(), s, c, &task.Task{Workdir: &task.Workdir{Path: "w"}}, Options{})
	if err == nil || !strings.Contains(err.Error(), "w could not be brought to the server: it vanished meanwhile") {
		t.Fatal(err)
	}
}

func TestServerFull(t *testing.T) {
	st, c, s, dir := setup(t)
	st.status = 507
	put(t, dir, "w/a", "one")
	_, err := Upload(context.Background(), s, c, &task.Task{Workdir: &task.Workdir{Path: "w"}}, Options{})
	if err == nil || !strings.Contains(err.Error(), "disk is full") || !strings.Contains(err.Error(), "Free some space.") {
		t.Fatal(err)
	}
}

func TestGitCommit(t *testing.T) {
	dir := t.TempDir()
	a, b := strings.Repeat("a1", 20), strings.Repeat("b2", 20)
	if gitCommit(dir) != "" {
		t.Error("no repository, yet a commit")
	}
	put(t, dir, "r/.git/HEAD", "ref: refs/heads/main\n")
	put(t, dir, "r/.git/packed-refs", "# pack-refs\n"+a+" refs/heads/main\n")
	put(t, dir, "r/sub/deep/x", "")
	if got := gitCommit(filepath.Join(dir, "r", "sub", "deep")); got != a {
		t.Errorf("packed: %q", got)
	}
	put(t, dir, "r/.git/refs/heads/main", b+"\n")
	if got := gitCommit(filepath.Join(dir, "r")); got != b {
		t.Errorf("loose: %q", got)
	}
	put(t, dir, "r/.git/HEAD", a+"\n")
	if got := gitCommit(filepath.Join(dir, "r")); got != a {
		t.Errorf("detached: %q", got)
	}
	put(t, dir, "wt/.git", "gitdir: ../r/.git/worktrees/wt\n")
	put(t, dir, "r/.git/worktrees/wt/HEAD", "ref: refs/heads/main\n")
	put(t, dir, "r/.git/worktrees/wt/commondir", "../..\n")
	if got := gitCommit(filepath.Join(dir, "wt")); got != "" && got != b {
		t.Errorf("worktree: %q", got)
	}
	put(t, dir, "r/.git/HEAD", "rubbish\n")
	if got := gitCommit(filepath.Join(dir, "r")); got != "" {
		t.Errorf("rubbish: %q", got)
	}
}
