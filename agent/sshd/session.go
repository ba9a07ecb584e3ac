package sshd

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
)

// Bounds of what a client may set in a session's environment.
const (
	maxEnvVars  = 256
	maxEnvBytes = 128 << 10
)

// The payloads of RFC 4254, 6.2 to 6.10.
type (
	ptyRequest struct {
		Term                string
		Cols, Rows          uint32
		WidthPix, HeightPix uint32
		Modes               string
	}
	windowChange struct{ Cols, Rows, WidthPix, HeightPix uint32 }
	envRequest   struct{ Name, Value string }
	execRequest  struct{ Command string }
	exitStatus   struct{ Status uint32 }
	exitSignal   struct {
		Signal     string
		CoreDumped bool
		Message    string
		Language   string
	}
)

// session is one channel of type session: a shell, a command or a file transfer.
type session struct {
	c    *connection
	ch   ssh.Channel
	gone chan struct{} // closed when the client closed the channel, or is gone

	env     []string
	envSize int
	term    *terminal // nil: none was asked for
	started bool

	counted sync.Once // taken from the server's count, at the client's end or the program's

	mu  sync.Mutex
	pid int // of the process, once started and until waited for
}

// begun counts the session as long as both its client and its program are there.
func (s *session) begun() {
	s.c.s.sessions.Add(1)
	go func() {
		<-s.gone
		s.ended()
	}()
}

func (s *session) ended() { s.counted.Do(func() { s.c.s.sessions.Add(-1) }) }

func (c *connection) session(nc ssh.NewChannel) {
	ch, reqs, err := nc.Accept()
	if err != nil {
		return
	}
	s := &session{c: c, ch: ch, gone: make(chan struct{})}
	for r := range reqs {
		ok := s.request(r)
		if r.WantReply {
			r.Reply(ok, nil)
		}
	}
	close(s.gone)
	if s.term != nil {
		s.term.hangUp()
	}
}

// request carries out one request and says whether it was understood.
func (s *session) request(r *ssh.Request) bool {
	switch r.Type {
	case "env":
		var e envRequest
		return ssh.Unmarshal(r.Payload, &e) == nil && s.setEnv(e.Name, e.Value)
	case "pty-req":
		var p ptyRequest
		if s.started || s.term != nil || ssh.Unmarshal(r.Payload, &p) != nil {
			return false
		}
		t, err := openTerminal(p)
		if err != nil {
			s.c.s.o.Log.Warn("ssh: no terminal", "error", err)
			return false
		}
		s.term = t
		return true
	case "window-change":
		var w windowChange
		if s.term == nil || ssh.Unmarshal(r.Payload, &w) != nil {
			return false
		}
		return s.term.resize(w) == nil
	case "signal":
		var name struct{ Name string }
		return ssh.Unmarshal(r.Payload, &name) == nil && s.signal(name.Name)
	case "shell":
		return s.start("")
	case "exec":
		var e execRequest
		return ssh.Unmarshal(r.Payload, &e) == nil && s.start(e.Command)
	case "subsystem":
		var name struct{ Name string }
		return ssh.Unmarshal(r.Payload, &name) == nil && name.Name == "sftp" && s.sftp()
	}
	return false
}

// setEnv takes a variable from the client. What would change who or where the session is stays as it is.
func (s *session) setEnv(name, value string) bool {
	if name == "" || strings.ContainsAny(name, "=\x00") || strings.Contains(value, "\x00") || s.started {
		return false
	}
	if strings.HasPrefix(name, "SKYLOOM_") || strings.HasPrefix(name, "LD_") || slices.Contains([]string{"HOME", "USER", "LOGNAME", "SHELL", "PATH"}, name) {
		return false
	}
	if s.envSize += len(name) + len(value) + 2; len(s.env) >= maxEnvVars || s.envSize > maxEnvBytes {
		return false
	}
	s.env = append(s.env, name+"="+value)
	return true
}

// environment is what the session's program starts from. Later entries win.
func (s *session) environment() []string {
	o, user := s.c.s.o, s.c.s.user
	ip := o.IP
	if ip == "" {
		ip = "127.0.0.1"
	}
	// The client's own address is not known here: it came through a tunnel.
	env := append(o.Env(), "USER="+user.name, "LOGNAME="+user.name, "SHELL="+user.shell,
		"SSH_CLIENT=127.0.0.1 0 22", "SSH_CONNECTION=127.0.0.1 0 "+ip+" 22")
	env = append(env, s.env...)
	if s.term != nil {
		env = append(env, "TERM="+s.term.term, "SSH_TTY="+s.term.tty.Name())
	}
	return env
}

var signals = map[string]syscall.Signal{
	"ABRT": syscall.SIGABRT, "ALRM": syscall.SIGALRM, "FPE": syscall.SIGFPE, "HUP": syscall.SIGHUP, "ILL": syscall.SIGILL, "INT": syscall.SIGINT,
	"KILL": syscall.SIGKILL, "PIPE": syscall.SIGPIPE, "QUIT": syscall.SIGQUIT, "SEGV": syscall.SIGSEGV, "TERM": syscall.SIGTERM,
	"USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2,
}

func signalName(sig syscall.Signal) string {
	for name, s := range signals {
		if s == sig {
			return name
		}
	}
	return fmt.Sprintf("SIG%d@skyloom", int(sig))
}

// signal sends a signal to the session's process group.
func (s *session) signal(name string) bool {
	sig, ok := signals[name]
	s.mu.Lock()
	defer s.mu.Unlock()
	return ok && s.pid > 0 && syscall.Kill(-s.pid, sig) == nil
}

// command is what to run: the login shell, or a command by it.
func (s *session) command(line string) *exec.Cmd {
	user := s.c.s.user
	cmd := exec.Command(user.shell)
	cmd.Env = s.environment()
	cmd.Dir = s.c.s.o.Home
	if line == "" {
		cmd.Args = []string{"-" + user.shell[strings.LastIndexByte(user.shell, '/')+1:]}
		return cmd
	}
	if tool, ok := toolOf(line); ok {
		if _, err := os.Stat("/bin/sh"); err == nil { // it reads no files of the user's that may print something
			cmd.Path, cmd.Args = "/bin/sh", []string{"sh", "-c", line}
			if s.c.s.o.Tool != "" && !onPath(tool, cmd.Env) {
				cmd.Args[2] = "exec " + quote(s.c.s.o.Tool) + " " + strings.TrimLeft(line, " ")
			}
			return cmd
		}
	}
	cmd.Args = []string{user.shell, "-c", line}
	return cmd
}

// toolOf says whether a command is the far end of an rsync or scp, and of which.
func toolOf(line string) (string, bool) {
	f := strings.Fields(line)
	switch {
	case len(f) > 1 && f[0] == "rsync" && f[1] == "--server":
		return "rsync", true
	case len(f) > 1 && f[0] == "scp":
		for _, a := range f[1:] {
			if a == "-t" || a == "-f" {
				return "scp", true
			}
			if !strings.HasPrefix(a, "-") {
				break
			}
		}
	}
	return "", false
}

// onPath looks for a program on the PATH of an environment.
func onPath(name string, env []string) bool {
	path := ""
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = v
		}
	}
	for dir := range strings.SplitSeq(path, ":") {
		if dir == "" {
			continue
		}
		if st, err := os.Stat(dir + "/" + name); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return true
		}
	}
	return false
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// start runs the shell or a command.
func (s *session) start(line string) bool {
	if s.started {
		return false
	}
	s.started = true
	cmd := s.command(line)
	var err error
	if s.term != nil {
		err = s.runTerminal(cmd)
	} else {
		err = s.runPipes(cmd)
	}
	if err != nil {
		s.c.s.o.Log.Warn("ssh: a session cannot start", "error", err)
		fmt.Fprintf(s.ch.Stderr(), "sky: %s cannot be started on this node: %v\r\n", cmd.Path, err)
		go s.exit(127, nil)
	}
	return true
}

// spawn starts the process in a session of its own.
func (s *session) spawn(cmd *exec.Cmd, attr *syscall.SysProcAttr) error {
	attr.Setsid = true
	cmd.SysProcAttr = attr
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return err
	}
	s.pid = cmd.Process.Pid
	s.begun()
	return nil
}

// wait waits for the process.
func (s *session) wait(cmd *exec.Cmd) *os.ProcessState {
	cmd.Wait()
	s.mu.Lock()
	s.pid = 0
	s.mu.Unlock()
	return cmd.ProcessState
}

// runTerminal runs a program on the session's terminal.
func (s *session) runTerminal(cmd *exec.Cmd) error {
	t := s.term
	cmd.Stdin, cmd.Stdout, cmd.Stderr = t.tty, t.tty, t.tty
	err := s.spawn(cmd, &syscall.SysProcAttr{Setctty: true, Ctty: 0})
	t.tty.Close()
	if err != nil {
		return err
	}
	go pump(t.master, s.ch)
	go func() {
		drained := make(chan struct{})
		go func() {
			pump(s.ch, t.master) // ends with an error once nobody holds the terminal any more
			close(drained)
		}()
		state := s.wait(cmd) // takes the terminal away from whatever else is on it
		<-drained
		t.hangUp()
		s.ended()
		s.exit(0, state)
	}()
	return nil
}

// runPipes runs a program with pipes for its streams.
func (s *session) runPipes(cmd *exec.Cmd) error {
	var ours, theirs []*os.File
	fail := func(err error) error {
		for _, f := range append(ours, theirs...) {
			f.Close()
		}
		return err
	}
	for i := range 3 {
		r, w, err := os.Pipe()
		if err != nil {
			return fail(err)
		}
		if i == 0 {
			ours, theirs = append(ours, w), append(theirs, r)
		} else {
			ours, theirs = append(ours, r), append(theirs, w)
		}
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs[0], theirs[1], theirs[2]
	if err := s.spawn(cmd, &syscall.SysProcAttr{}); err != nil {
		return fail(err)
	}
	for _, f := range theirs {
		f.Close()
	}
	in, out, errs := ours[0], ours[1], ours[2]
	go func() {
		pump(in, s.ch)
		in.Close()
	}()
	over := make(chan struct{})
	go func() { // a client that left reads no more: whoever still writes learns it
		select {
		case <-s.gone:
			in.Close()
			out.Close()
			errs.Close()
		case <-over:
		}
	}()
	var copied sync.WaitGroup
	copied.Go(func() { pump(s.ch, out); out.Close() })
	copied.Go(func() { pump(s.ch.Stderr(), errs); errs.Close() })
	go func() {
		state := s.wait(cmd)
		copied.Wait() // as long as anything holds the streams, as under any SSH server
		close(over)
		in.Close()
		s.ended()
		s.exit(0, state)
	}()
	return nil
}

// exit tells how the program ended, and closes the channel.
func (s *session) exit(code int, state *os.ProcessState) {
	if state != nil {
		if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			s.ch.SendRequest("exit-signal", false, ssh.Marshal(exitSignal{Signal: signalName(ws.Signal()), CoreDumped: ws.CoreDump()}))
			s.ch.CloseWrite()
			s.ch.Close()
			return
		}
		code = state.ExitCode()
	}
	s.ch.SendRequest("exit-status", false, ssh.Marshal(exitStatus{uint32(code)}))
	s.ch.CloseWrite()
	s.ch.Close()
}

// sftpChannel is a channel that its server closes only when it gives up.
type sftpChannel struct {
	io.ReadWriter
	s *session
}

func (c sftpChannel) Close() error {
	c.s.exit(1, nil)
	return nil
}

// sftp serves the file transfer protocol on the channel.
func (s *session) sftp() bool {
	if s.started {
		return false
	}
	s.started = true
	srv, err := sftp.NewServer(sftpChannel{s.ch, s}, sftp.WithServerWorkingDirectory(s.c.s.o.Home), sftp.WithAllocator())
	if err != nil {
		s.c.s.o.Log.Warn("ssh: sftp", "error", err)
		return false
	}
	s.begun()
	go func() {
		err := srv.Serve() // closes the files that were left open
		s.ended()
		code := 0
		if err != nil && !errors.Is(err, os.ErrClosed) && err.Error() != "EOF" {
			s.c.s.o.Log.Debug("ssh: sftp ended", "error", err)
			code = 1
		}
		s.exit(code, nil)
	}()
	return true
}
