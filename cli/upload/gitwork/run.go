package gitwork

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/skyloom/skyloom/task"
)

// dropped are variables that would send git elsewhere, as when sky is called from one of git's own hooks.
var dropped = map[string]bool{"GIT_DIR": true, "GIT_WORK_TREE": true, "GIT_INDEX_FILE": true, "GIT_OBJECT_DIRECTORY": true, "GIT_ALTERNATE_OBJECT_DIRECTORIES": true,
	"GIT_COMMON_DIR": true, "GIT_NAMESPACE": true, "GIT_PREFIX": true, "GIT_TOKEN": true, "LC_ALL": true, "LANGUAGE": true, "GIT_TERMINAL_PROMPT": true}

// settings of every call: nothing of the user's that would change the files or run something, no waiting for ever.
var settings = []string{"core.hooksPath=" + os.DevNull, "core.autocrlf=false", "core.fsmonitor=false", "gc.auto=0", "maintenance.auto=false", "advice.detachedHead=false",
	"http.lowSpeedLimit=1000", "http.lowSpeedTime=60"}

const (
	askpassName = "askpass.sh"
	// askpass answers git's questions about one host, and no other.
	askpass = `#!/bin/sh
# Answers git's questions from the environment.
case "$1" in
*"//$SKYLOOM_GIT_HOST'"*|*"//$SKYLOOM_GIT_HOST/"*|*"@$SKYLOOM_GIT_HOST'"*|*"@$SKYLOOM_GIT_HOST/"*) ;;
*) exit 1 ;;
esac
case "$1" in
Username*) printf '%s\n' "$SKYLOOM_GIT_USER" ;;
*) printf '%s\n' "$SKYLOOM_GIT_TOKEN" ;;
esac
`
)

// run calls git in dir, and gives what it prints.
func (r *Repo) run(ctx context.Context, dir string, args ...string) (string, error) {
	git := r.Git
	if git == "" {
		git = "git"
	}
	path, err := exec.LookPath(git)
	if err != nil {
		return "", &Error{Msg: "git is not installed on this machine, and a git workdir needs it", Hint: "install git, or clone the repository by other means and use workdir: FOLDER", decided: true}
	}
	var all []string
	for _, s := range settings {
		all = append(all, "-c", s)
	}
	env, err := r.environ(&all)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, path, append(all, args...)...)
	cmd.Dir, cmd.Env = dir, env
	if dir == "" {
		cmd.Dir = r.Cache // not in a repository of the user's, whose settings would count
		if err := os.MkdirAll(r.Cache, 0o700); err != nil {
			return "", err
		}
	}
	cmd.WaitDelay = 2 * time.Second
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		return "", r.explain(errs.String(), err)
	}
	return out.String(), nil
}

// environ is git's environment; it adds settings that go with it.
func (r *Repo) environ(settings *[]string) ([]string, error) {
	var env []string
	sshSet := false
	for _, kv := range r.Environ {
		k, _, _ := strings.Cut(kv, "=")
		if dropped[k] {
			continue
		}
		sshSet = sshSet || k == "GIT_SSH_COMMAND" || k == "GIT_SSH"
		env = append(env, kv)
	}
	env = append(env, "LC_ALL=C", "GIT_TERMINAL_PROMPT=0", "GCM_INTERACTIVE=never", "GIT_CEILING_DIRECTORIES="+r.Cache)
	switch {
	case r.SSHKey != "":
		env = append(env, "GIT_SSH_COMMAND=ssh -i "+shellQuote(r.SSHKey)+" -o IdentitiesOnly=yes"+sshOptions)
	case !sshSet:
		env = append(env, "GIT_SSH_COMMAND=ssh"+sshOptions)
	}
	if u, err := url.Parse(r.URL); r.Token != "" && err == nil && (u.Scheme == "https" || u.Scheme == "http") {
		script := filepath.Join(r.Cache, askpassName)
		if b, err := os.ReadFile(script); err != nil || string(b) != askpass {
			if err := writeScript(script); err != nil {
				return nil, err
			}
		}
		// Without this git would hand the token to the user's credential helpers, of which some write it down.
		*settings = append(*settings, "-c", "credential.helper=")
		env = append(env, "GIT_ASKPASS="+script, "SKYLOOM_GIT_HOST="+u.Host, "SKYLOOM_GIT_USER="+tokenUser(u), "SKYLOOM_GIT_TOKEN="+r.Token)
	}
	return env, nil
}

// sshOptions: ssh asks nothing, takes new hosts and refuses changed ones, and does not wait for ever.
const sshOptions = " -o BatchMode=yes -o StrictHostKeyChecking=accept-new -o ConnectTimeout=20"

// tokenUser is the name that goes with a token: where the host does not care, one that says what it is.
func tokenUser(u *url.URL) string {
	switch name := u.User.Username(); {
	case name != "":
		return name
	case strings.HasSuffix(u.Hostname(), "bitbucket.org"):
		return "x-token-auth"
	case strings.Contains(u.Hostname(), "gitlab"):
		return "oauth2"
	}
	return "x-access-token"
}

func writeScript(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".askpass-*")
	if err != nil {
		return err
	}
	_, err = f.WriteString(askpass)
	if err == nil {
		err = f.Chmod(0o700)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// Error is what went wrong with a repository.
type Error struct {
	Msg     string
	Hint    string
	decided bool // trying another way is of no use
}

func (e *Error) Error() string {
	if e.Hint == "" {
		return e.Msg
	}
	hint := strings.ToUpper(e.Hint[:1]) + e.Hint[1:]
	if !strings.HasSuffix(hint, "?") {
		hint += "."
	}
	return e.Msg + "\n" + hint
}

func (r *Repo) failure(msg, hint string) *Error {
	return &Error{Msg: fmt.Sprintf("%s: %s", r.shown(), msg), Hint: hint, decided: true}
}

// shown is the URL for people, without what may be secret in it.
func (r *Repo) shown() string {
	if u, err := url.Parse(r.URL); err == nil && u.User != nil {
		return u.Redacted()
	}
	return r.URL
}

// explain turns what git said into what to do. The texts are those of git and ssh in the C locale.
func (r *Repo) explain(said string, err error) error {
	if r.Token != "" {
		said = strings.ReplaceAll(said, r.Token, "***")
	}
	low := strings.ToLower(said)
	has := func(texts ...string) bool {
		for _, t := range texts {
			if strings.Contains(low, t) {
				return true
			}
		}
		return false
	}
	switch {
	case has("host key verification failed", "remote host identification has changed"):
		return r.failure("the host's key is not the known one", "if the host was really changed, remove its old key: ssh-keygen -R HOST")
	case has("repository not found", "does not appear to be a git repository", "' not found", "does not exist", "returned error: 404"):
		hint := "check the url; a private repository needs GIT_TOKEN (https) or a key (ssh)"
		return r.failure("there is no such repository, or it may not be read", hint)
	case has("permission denied (", "no such identity", "too many authentication failures", "load key"):
		hint := "give a key that may read it with GIT_SSH_KEY_PATH, or in ~/.ssh/config"
		if r.SSHKey != "" {
			hint = "check that the key " + r.SSHKey + " (GIT_SSH_KEY_PATH) may read it, and has no passphrase or is held by ssh-agent"
		}
		return r.failure("access was refused", hint)
	case has("authentication failed", "could not read username", "could not read password", "access denied", "terminal prompts disabled", "invalid username or", "returned error: 401", "returned error: 403"):
		hint := "set GIT_TOKEN in your environment to a token that may read it"
		if r.Token != "" {
			hint = "check that the token in GIT_TOKEN is valid and may read it"
		}
		return r.failure("access was refused", hint)
	case has("could not resolve host", "connection refused", "connection timed out", "timed out", "network is unreachable", "no route to host", "failed to connect", "couldn't connect", "connection reset"):
		return r.failure("the host can't be reached: "+lastLine(said), "check the url and the network")
	case has("no space left"):
		return r.failure("the disk of this machine is full", "make room below "+r.Cache)
	}
	msg := lastLine(said)
	if msg == "" {
		msg = err.Error()
	}
	e := r.failure(msg, "")
	e.decided = false
	return e
}

// lastLine is the last line that git meant for people.
func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		l := strings.TrimSpace(lines[i])
		if strings.HasPrefix(l, "fatal: Could not read from remote") {
			continue // what came before says why
		}
		if strings.HasPrefix(l, "fatal:") || strings.HasPrefix(l, "error:") || strings.HasPrefix(l, "ssh:") {
			return l
		}
	}
	return strings.TrimSpace(lines[len(lines)-1])
}

// unknownRef says that the ref is not there, and what may be meant.
func (r *Repo) unknownRef(ctx context.Context) error {
	e := r.failure(fmt.Sprintf("it has no branch, tag or commit %q", r.Ref), "check ref; commits must have been pushed")
	out, err := r.run(ctx, "", "ls-remote", "--heads", "--tags", "--refs", "--", r.URL)
	var own *Error
	if errors.As(err, &own) && own.decided {
		return own
	}
	var names []string
	for line := range strings.SplitSeq(out, "\n") {
		if _, ref, ok := strings.Cut(line, "\t"); ok && len(names) < 5000 {
			names = append(names, strings.TrimPrefix(strings.TrimPrefix(ref, "refs/heads/"), "refs/tags/"))
		}
	}
	if near := task.Suggest(r.Ref, names); near != "" {
		e.Hint = fmt.Sprintf("did you mean %q?", near)
	}
	return e
}
