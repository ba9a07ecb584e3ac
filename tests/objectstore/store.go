//go:build unix

// Package objectstore runs a real object store that speaks the S3 protocol, for tests: VersityGW on a folder, as a process of its own
// on the loopback interface. It is built once for all tests, from a module of its own, so that the product depends on nothing of it.
package objectstore

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Region is that of every bucket.
const Region = "us-east-1"

// buildTime bounds the building of the store, which takes a minute or two on an idle machine with an empty cache.
const buildTime = 10 * time.Minute

// Store is a running store, with one account that owns everything and one that may do nothing.
type Store struct {
	URL string
	Dir string // Dir/data holds each bucket as a folder, each object as a file
	// Credentials is a file in the format of ~/.aws/credentials, with the profiles owner, guest and wrong (keys that are not valid).
	Credentials string

	t      testing.TB
	front  net.Listener // held all the time: nobody else gets the port while the store is away
	socket string       // where the process listens
	key    string
	cmd    *exec.Cmd
}

// Start runs a store until the test ends. It skips the test where the store can't be built.
func Start(t testing.TB) *Store {
	t.Helper()
	if testing.Short() {
		t.Skip("an object store is built for this, which takes a while at first")
	}
	s := &Store{t: t, Dir: t.TempDir(), key: rand.Text()}
	short, err := os.MkdirTemp("", "os") // a socket's path may not be long
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(short) })
	s.socket = filepath.Join(short, "s")
	if s.front, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.front.Close() })
	s.URL = "http://" + s.front.Addr().String()
	go s.serve()
	s.Credentials = filepath.Join(t.TempDir(), "credentials")
	text := ""
	for _, who := range []string{"owner", "guest", "wrong"} {
		key := s.key
		if who == "wrong" {
			key = "wrong" + key
		}
		text += fmt.Sprintf("[%s]\naws_access_key_id = %s\naws_secret_access_key = %s\n", who, strings.Replace(who, "wrong", "owner", 1), key)
	}
	if err := os.WriteFile(s.Credentials, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Run()
	t.Cleanup(s.Stop)
	return s
}

// Run starts the process, again after Stop, with what it held.
func (s *Store) Run() {
	s.t.Helper()
	bin := program(s.t)
	s.cmd = exec.Command(bin, "-dir", s.Dir, "-addr", s.socket, "-secret", s.key, "-region", Region)
	out, err := os.OpenFile(filepath.Join(s.Dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer out.Close()
	s.cmd.Stdout, s.cmd.Stderr = out, out
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if c, err := net.Dial("unix", s.socket); err == nil {
			c.Close()
			return
		}
		if time.Now().After(end) {
			b, _ := os.ReadFile(out.Name())
			s.t.Fatalf("the object store does not answer: %s", b)
		}
	}
}

// Stop ends the process.
func (s *Store) Stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	_ = os.Remove(s.socket)
	s.cmd = nil
}

// serve passes connections on to the process; while there is none they are closed at once.
func (s *Store) serve() {
	for {
		c, err := s.front.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			to, err := net.Dial("unix", s.socket)
			if err != nil {
				return
			}
			defer to.Close()
			go func() {
				defer c.Close()
				defer to.Close()
				_, _ = io.Copy(c, to)
			}()
			_, _ = io.Copy(to, c)
		}()
	}
}

// Bucket makes a bucket of the owner's. A folder is one: the store keeps no other record of it.
func (s *Store) Bucket(name string) {
	s.t.Helper()
	if err := os.MkdirAll(filepath.Join(s.Dir, "data", name), 0o755); err != nil {
		s.t.Fatal(err)
	}
}

// Objects gives the keys of a bucket's objects by what is in its folder, however the store was reached.
func (s *Store) Objects(bucket string) map[string]int64 {
	s.t.Helper()
	root := filepath.Join(s.Dir, "data", bucket)
	out := map[string]int64{}
	_ = filepath.Walk(root, func(path string, fi os.FileInfo, err error) error {
		if err != nil || fi.IsDir() {
			return nil
		}
		rel, err := filepath.Rel(root, path)
		if err == nil && !strings.HasPrefix(rel, ".sgwtmp") {
			out[filepath.ToSlash(rel)] = fi.Size()
		}
		return nil
	})
	return out
}

// program builds the store, once for all tests of a machine.
func program(t testing.TB) string {
	t.Helper()
	_, file, _, _ := runtime.Caller(0)
	src := filepath.Join(filepath.Dir(file), "gateway")
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	dir := filepath.Join(cache, "skyloom-tests")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "object-store")
	if newer(bin, filepath.Join(src, "main.go"), filepath.Join(src, "go.mod"), filepath.Join(src, "go.sum")) {
		return bin
	}
	ctx, cancel := context.WithTimeout(context.Background(), buildTime)
	defer cancel()
	began := time.Now()
	cmd := exec.CommandContext(ctx, "go", "build", "-C", src, "-ldflags=-s -w", "-o", bin+".new", ".")
	cmd.Env = append(os.Environ(), "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("the object store could not be built: %v\n%s", err, out)
	}
	if err := os.Rename(bin+".new", bin); err != nil {
		t.Fatal(err)
	}
	t.Logf("built the object store in %s", time.Since(began).Round(time.Second))
	return bin
}

// newer says that a file is there and as new as all others.
func newer(bin string, src ...string) bool {
	made, err := os.Stat(bin)
	if err != nil {
		return false
	}
	for _, s := range src {
		if fi, err := os.Stat(s); err != nil || fi.ModTime().After(made.ModTime()) {
			return false
		}
	}
	return true
}
