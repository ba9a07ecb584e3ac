//go:build unix

package rig

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
)

// Server is a server's process. Whoever kills it, it is started again at once.
type Server struct {
	T       testing.TB
	Log     string                    // file that its output is appended to
	Addr    string                    // it listens here after each start
	HTTP    *http.Client              // reaches Addr; nil: http.DefaultClient
	Command func(start int) *exec.Cmd // makes the process of a start, counted from 1

	mu       sync.Mutex
	cmd      *exec.Cmd
	stopping bool
	gaveUp   bool          // it ended by itself
	held     chan struct{} // once dead it is not started again before this is closed
	deaths   int
	back     []time.Duration // from each death to the next healthy answer
	done     chan struct{}
}

// Start starts the server for the first time.
func (s *Server) Start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done, s.stopping = make(chan struct{}), false
	return s.start()
}

func (s *Server) start() error {
	cmd := s.Command(s.deaths + 1)
	log, err := os.OpenFile(s.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	fmt.Fprintf(log, "---- start %d\n", s.deaths+1)
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.cmd = cmd
	go s.supervise(cmd)
	return nil
}

// supervise starts the server again when it has died, and takes the time until it answers.
func (s *Server) supervise(cmd *exec.Cmd) {
	cmd.Wait()
	s.mu.Lock()
	held := s.held
	s.mu.Unlock()
	if held != nil {
		<-held
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		close(s.done)
		return
	}
	died := time.Now()
	s.deaths++
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
		s.T.Errorf("the server ended by itself: %v", cmd.ProcessState)
		s.gaveUp = true
		close(s.done)
		return
	}
	if err := s.start(); err != nil {
		s.T.Errorf("the server could not be started again: %v", err)
		s.gaveUp = true
		close(s.done)
		return
	}
	go func(n int) {
		for s.Health() != "healthy" {
			time.Sleep(10 * time.Millisecond)
			s.mu.Lock()
			stale := s.deaths != n || s.stopping
			s.mu.Unlock()
			if stale {
				return
			}
		}
		s.mu.Lock()
		s.back = append(s.back, time.Since(died))
		s.mu.Unlock()
	}(s.deaths)
}

// Health is what the server says of itself, "" if it does not answer.
func (s *Server) Health() string {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	h, err := api.NewClient("http://"+s.Addr, "", s.options(0)...).Health(ctx)
	if err != nil {
		return ""
	}
	if h.Status == "needs_auth" { // ready, and we said nothing
		return "healthy"
	}
	return h.Status
}

func (s *Server) options(patience time.Duration) []api.Option {
	out := []api.Option{api.WithPatience(patience)}
	if s.HTTP != nil {
		out = append(out, api.WithHTTPClient(s.HTTP))
	}
	return out
}

// Clients are two of the server's: a patient one, which outlives kills, and one that tries once.
func (s *Server) Clients(token string) (patient, hasty *api.Client) {
	return api.NewClient("http://"+s.Addr, token, s.options(Patience)...), api.NewClient("http://"+s.Addr, token, s.options(0)...)
}

// Healthy waits until the server answers.
func (s *Server) Healthy(limit time.Duration) {
	s.T.Helper()
	for end := time.Now().Add(limit); s.Health() != "healthy"; time.Sleep(20 * time.Millisecond) {
		s.mu.Lock()
		gone := s.gaveUp
		s.mu.Unlock()
		if gone || time.Now().After(end) {
			s.T.Fatalf("the server does not answer for %v\n%s", limit, Tail(s.Log, 40))
		}
	}
}

// Kill ends the server as kill -9 does. It waits for its death.
func (s *Server) Kill() {
	s.mu.Lock()
	cmd, before := s.cmd, s.deaths
	s.mu.Unlock()
	if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		s.T.Errorf("kill: %v", err)
		return
	}
	for n := before; n == before; time.Sleep(time.Millisecond) {
		n = s.Deaths()
	}
}

// Deaths counts how often it died.
func (s *Server) Deaths() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.deaths
}

// Away kills the server and keeps it dead until the function it returns is called.
func (s *Server) Away() (back func()) {
	s.mu.Lock()
	held := make(chan struct{})
	s.held = held
	cmd := s.cmd
	s.mu.Unlock()
	if err := cmd.Process.Kill(); err != nil {
		s.T.Errorf("kill: %v", err)
	}
	return sync.OnceFunc(func() {
		s.mu.Lock()
		s.held = nil
		s.mu.Unlock()
		close(held)
	})
}

// Running says that it was started and not stopped.
func (s *Server) Running() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cmd != nil && !s.stopping
}

// Stop ends the server as a person would. It may be started again.
func (s *Server) Stop() {
	s.mu.Lock()
	s.stopping = true
	cmd := s.cmd
	s.mu.Unlock()
	cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.done:
	case <-time.After(15 * time.Second):
		s.T.Errorf("the server does not end on SIGTERM")
		cmd.Process.Kill()
		<-s.done
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.back) > 0 {
		var sum, most time.Duration
		for _, d := range s.back {
			sum, most = sum+d, max(most, d)
		}
		s.T.Logf("%d deaths of the server; back after %v on average, %v at most", s.deaths, (sum / time.Duration(len(s.back))).Round(time.Millisecond), most.Round(time.Millisecond))
	}
}

// Tail gives the last lines of a log, without those of answered calls.
func Tail(path string, n int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := slices.DeleteFunc(strings.Split(strings.TrimRight(string(b), "\n"), "\n"), func(l string) bool { return strings.Contains(l, "msg=call ") })
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
