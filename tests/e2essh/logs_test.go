package e2essh

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/tests/e2essh/noise"
	"github.com/skyloom/skyloom/tests/lab"
)

// noiseMB is how much a job prints: 64 MB, or a gigabyte with the long tests, or what SKYLOOM_LOG_MB says.
func noiseMB(t *testing.T) int64 {
	if v := os.Getenv("SKYLOOM_LOG_MB"); v != "" {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < 8 {
			t.Fatalf("SKYLOOM_LOG_MB=%q is no number from 8 on", v)
		}
		return n
	}
	if long {
		return 1024
	}
	return 64
}

// digest is what came, or has to come: how much, and its hash.
type digest struct {
	hash.Hash
	n atomic.Int64
}

func newDigest() *digest { return &digest{Hash: sha256.New()} }

func (d *digest) Write(p []byte) (int, error) {
	d.Hash.Write(p)
	d.n.Add(int64(len(p)))
	return len(p), nil
}

func (d *digest) String() string { return fmt.Sprintf("%d bytes, %x", d.n.Load(), d.Sum(nil)) }

// shown writes what `sky logs` shows of a log of one node: each line after the prefix. A carriage return begins a line too.
type shown struct {
	w      io.Writer
	prefix string
	last   byte // 0 at the beginning
}

func (s *shown) Write(p []byte) (int, error) {
	var out bytes.Buffer
	for _, c := range p {
		if s.last == 0 && out.Len() == 0 || s.last == '\n' || s.last == '\r' && c != '\n' {
			out.WriteString(s.prefix)
		}
		out.WriteByte(c)
		if s.last = c; c == 0 {
			s.last = ' '
		}
	}
	s.w.Write(out.Bytes())
	return len(p), nil
}

// client is the API of the site's server, also after it came back on another port.
func (s *site) client() *api.Client {
	read := func() (url, token string, err error) {
		var at struct {
			URL string `json:"url"`
		}
		raw, err := os.ReadFile(filepath.Join(s.home, "server.json"))
		if err == nil {
			err = json.Unmarshal(raw, &at)
		}
		if err != nil {
			return "", "", err
		}
		b, err := os.ReadFile(filepath.Join(s.home, "token"))
		return at.URL, strings.TrimSpace(string(b)), err
	}
	url, token, err := read()
	if err != nil {
		s.Fatal(err)
	}
	where := func(context.Context) (string, string, error) {
		if url, token, err := read(); err == nil {
			return url, token, nil
		}
		return url, token, nil // it has stopped, and will be back
	}
	return api.NewClient(url, token, api.WithHTTPClient(&http.Client{Transport: &http.Transport{DialContext: s.lab.Dialer()}}), api.WithReconnect(where), api.WithPatience(5*time.Minute))
}

// TestLogs has a job print what is hard on logs, and three readers follow it, one of them slowly, while the server is killed
// under them, and later stopped and started. Each has to get every byte once.
func TestLogs(t *testing.T) {
	size := noiseMB(t) << 20
	l := lab.New(t, lab.Options{Hosts: 1, Host: lab.HostSpec{CPUs: 4, MemoryMB: 12 << 10, DiskMB: 8 << 10}})
	s := newSite(t, l, "")
	work := filepath.Join(s.home, "work")
	if out, err := exec.Command("go", "build", "-ldflags", "-s -w", "-o", filepath.Join(work, "noise"), "github.com/skyloom/skyloom/tests/e2essh/noise/cmd/noise").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s.sky("launch", "-y", "-d", "-c", "loud", "--infra", "ssh/lab", "--memory", "8", "--name", "loud", "--workdir", work, fmt.Sprintf("exec ./noise %d /tmp/go", size))
	c := s.client()

	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	readers := map[string]*digest{"a program": newDigest(), "a slow program": newDigest(), "sky logs": newDigest()}
	failed := make(chan error, len(readers))
	var pid atomic.Int64
	follow := func(name string, pause time.Duration) {
		d, rest := readers[name], int64(0)
		end, err := c.JobLogs(ctx, "loud", api.LogFilter{JobID: 1, Follow: true}, func(ch api.LogChunk) error {
			if ch.Lost > 0 {
				return fmt.Errorf("%d bytes were lost before %d", ch.Lost, ch.Offset)
			}
			pid.Store(int64(ch.PID))
			d.Write(ch.Data)
			if rest += int64(len(ch.Data)); rest > 4<<20 {
				rest = 0
				time.Sleep(pause)
			}
			return nil
		})
		if err == nil && end.Status != api.JobSucceeded {
			err = fmt.Errorf("the job ended as %s (%s)", end.Status, end.Reason)
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", name, err)
		}
		failed <- err
	}
	go follow("a program", 0)
	go follow("a slow program", 30*time.Millisecond)
	go func() {
		cmd := l.CommandContext(ctx, filepath.Join(binDir, "sky"), "logs", "loud", "1", "--tail", "0")
		var said bytes.Buffer
		cmd.Env, cmd.Stdout, cmd.Stderr = s.env(), readers["sky logs"], &said
		err := cmd.Run()
		if err != nil {
			err = fmt.Errorf("sky logs: %w\n%s", err, said.String())
		}
		failed <- err
	}()
	all := func(n int64) func() bool {
		return func() bool {
			if len(failed) > 0 { // on a fast machine one may have all of it before a slow one has half
				err := <-failed
				if err != nil {
					t.Fatal(err)
				}
				failed <- err
			}
			for _, d := range readers {
				if d.n.Load() < n {
					return false
				}
			}
			return true
		}
	}
	s.until(5*time.Minute, "all read", all(size/16))
	s.kill()
	s.start()
	s.until(5*time.Minute, "all read on", all(size/4))
	if _, err := l.Host(0).Run(ctx, "for d in /home/ubuntu/.skyloom-host/nodes/*/tmp; do touch $d/go; done"); err != nil {
		t.Fatal(err)
	}
	s.until(5*time.Minute, "all have the first half", all(size/2+size/16))
	s.cmd.Process.Signal(syscall.SIGTERM)
	s.cmd.Wait()
	s.start()
	for range readers {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}

	whole, lines := newDigest(), newDigest()
	view := &shown{w: lines, prefix: fmt.Sprintf("(loud, pid=%d) ", pid.Load())}
	noise.New(size).WriteTo(io.MultiWriter(whole, view))
	if view.last != '\n' {
		lines.Write([]byte("\n")) // a line that is left open is ended
	}
	for name, d := range readers {
		want := whole
		if name == "sky logs" {
			want = lines
		}
		if d.String() != want.String() {
			t.Errorf("%s got %v, want %v", name, d, want)
		}
	}
	// And as a file.
	s.sky("logs", "loud", "1", "--sync-down")
	files, _ := filepath.Glob(filepath.Join(s.home, "sky_logs", "loud", "*", "run.log"))
	if len(files) != 1 {
		t.Fatalf("downloaded: %v", files)
	}
	f, err := os.Open(files[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := newDigest()
	if _, err := io.Copy(got, f); err != nil || got.String() != whole.String() {
		t.Errorf("the file has %v (%v), want %v", got, err, whole)
	}
}
