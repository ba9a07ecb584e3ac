//go:build linux

package sharedhost

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/skyloom/skyloom/agent/claims"
	"github.com/skyloom/skyloom/agent/durable"
)

const (
	upMark      = "skyloom: up"
	requestMark = "skyloom: request"
)

const (
	// sudoWait is how long sudo may take to make us root.
	sudoWait = 5 * time.Second
	// sudoAgain is how long a sudo that failed is not tried again, so that not each call waits for one that hangs.
	sudoAgain = 5 * time.Minute
)

// sudoFailure is what is remembered of a sudo that failed.
type sudoFailure struct {
	Boot string    `json:"boot"`
	At   time.Time `json:"at"`
	Why  string    `json:"why"`
	With bool      `json:"with_password"`
}

// elevate has the call carried out as root by sudo. If root can't be had it gives false and why; nothing was done then.
func elevate(verb, nonce string, req Request) (done bool, why string) {
	memory := filepath.Join(req.Roots[0], "sudo.json")
	var last sudoFailure
	if durable.ReadJSON(memory, &last) == nil && last.Boot == claims.BootID() && last.With == (req.SudoPassword != "") {
		if age := time.Since(last.At); age > 0 && age < sudoAgain {
			return false, last.Why
		}
	}
	done, why = sudo(verb, nonce, req)
	if !done {
		durable.WriteJSON(memory, sudoFailure{claims.BootID(), time.Now(), why, req.SudoPassword != ""})
	}
	return done, why
}

func sudo(verb, nonce string, req Request) (done bool, why string) {
	const without = "; nodes run as the login's user, without namespaces and limits of their own"
	path, err := exec.LookPath("sudo")
	if err != nil {
		return false, "there is no sudo" + without
	}
	self, err := os.Executable()
	if err != nil {
		return false, err.Error()
	}
	args := []string{"-n", self, "host", verb, nonce, "up"}
	if req.SudoPassword != "" {
		args = append([]string{"-S", "-p", ""}, args[1:]...)
	}
	cmd := exec.Command(path, args...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return false, err.Error()
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return false, err.Error()
	}
	said := &lockedBuffer{}
	cmd.Stderr = said
	if err := cmd.Start(); err != nil {
		return false, fmt.Sprintf("sudo does not start: %v%s", err, without)
	}
	if req.SudoPassword != "" {
		io.WriteString(stdin, req.SudoPassword+"\n")
	}
	up := make(chan error, 1)
	r := bufio.NewReader(out)
	go func() {
		for {
			line, err := r.ReadString('\n')
			if strings.TrimRight(line, "\r\n") == upMark {
				up <- nil
				return
			}
			if err != nil {
				up <- err
				return
			}
		}
	}()
	select {
	case err = <-up:
	case <-time.After(sudoWait):
		// It may be root's, and not ours to kill: left alone, it ends with our end of its pipes.
		cmd.Process.Kill()
		return false, fmt.Sprintf("sudo does not answer within %v%s", sudoWait, without)
	}
	if err != nil {
		stdin.Close()
		cmd.Wait()
		text := strings.TrimSpace(said.String())
		if i := strings.LastIndexByte(text, '\n'); i >= 0 && strings.Contains(text[:i], "sudo:") {
			text = strings.TrimSpace(text[i+1:])
		}
		if text == "" {
			text = "it says nothing"
		}
		return false, "sudo fails: " + text + without
	}
	req.SudoPassword = ""
	b, err := json.Marshal(req)
	if err == nil {
		_, err = stdin.Write(append([]byte(requestMark+"\n"), append(b, '\n')...))
	}
	stdin.Close()
	if err == nil {
		_, err = io.Copy(os.Stdout, r)
	}
	if werr := cmd.Wait(); err == nil {
		err = werr
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "sky-agent host %s as root: %v: %s\n", verb, err, said)
	}
	return true, ""
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.b.Len() > 4096 {
		return len(p), nil
	}
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
