package local

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/skyloom/skyloom/agent/durable"
	"github.com/skyloom/skyloom/agent/proctree"
	"github.com/skyloom/skyloom/internal/failpoint"
	"github.com/skyloom/skyloom/providers"
)

// program brings the agent's program to a place of its own below Root, named by its content, and returns its path: what
// nodes run must not change or vanish when the server is upgraded.
func (p *Provider) program(src providers.AgentSource) (string, error) {
	if src == nil {
		src = p.o.Agent
	}
	if src == nil {
		return "", providers.Errorf(providers.Invalid, providers.ScopeCloud, "local: nobody says where the agent's program is")
	}
	from, sha, err := src.Path("", "")
	if err != nil {
		return "", err
	}
	if len(sha) < 16 {
		return "", providers.Errorf(providers.Invalid, providers.ScopeCloud, "local: %q is no hash of the agent's program %s", sha, from)
	}
	path := filepath.Join(p.root, "bin", sha[:16], "sky-agent")
	if _, err := os.Stat(path); err == nil {
		os.Chtimes(filepath.Dir(path), time.Time{}, time.Now()) // sweep takes no program that was asked for lately
		return path, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", internal(err, "install the agent's program")
	}
	in, err := os.Open(from)
	if err != nil {
		return "", internal(err, "read the agent's program")
	}
	defer in.Close()
	tmp, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return "", internal(err, "install the agent's program")
	}
	defer os.Remove(tmp.Name())
	_, err = io.Copy(tmp, in)
	if err = errors.Join(err, tmp.Chmod(0o755), tmp.Close()); err != nil {
		return "", internal(err, "install the agent's program")
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return "", internal(err, "install the agent's program")
	}
	return path, nil
}

// spawn starts a node's init, detached, as well kept apart as this machine allows. The record says before that it is
// about to start, and after which process it is.
func (p *Provider) spawn(r *record, agent string) error {
	r.SpawnedAt, r.Boot, r.Init, r.Program, r.Buried = time.Now().UTC(), bootID(), proctree.Proc{}, agent, false
	type way struct{ namespaces, cgroup bool }
	ways := []way{{false, true}, {false, false}}
	if p.isolates() {
		ways = append([]way{{true, true}, {true, false}}, ways...)
	}
	var last error
	for _, w := range ways {
		var group *os.File
		r.Cgroup = ""
		if w.cgroup {
			if group = openCgroup(r); group == nil {
				continue
			}
			r.Cgroup = group.Name()
		}
		err := p.start(r, agent, w.namespaces, group)
		if group != nil {
			group.Close()
		}
		if err == nil {
			if !w.namespaces && p.isolates() {
				p.mu.Lock()
				p.flat = true
				p.mu.Unlock()
				p.log.Warn("local: namespaces are refused here, nodes are plain process trees", "err", last)
			}
			return nil
		}
		last = err
		removeCgroup(r.Cgroup)
		// What a kernel or a container forbids; anything else fails in every way.
		if !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOSYS) && !errors.Is(err, syscall.EBUSY) &&
			!errors.Is(err, syscall.EACCES) && !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EOPNOTSUPP) {
			break
		}
	}
	return internal(last, "start node %s", r.ID)
}

func (p *Provider) start(r *record, agent string, namespaces bool, group *os.File) error {
	if err := durable.WriteJSON(r.config(), p.nodeConfig(r, namespaces)); err != nil {
		return err
	}
	r.Isolated = namespaces
	os.Remove(filepath.Join(r.agentDir(), "ended.json"))
	if err := r.save(); err != nil {
		return err
	}
	logFile, err := os.OpenFile(filepath.Join(r.dir, "init.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer logFile.Close()
	var cmd *exec.Cmd
	for try := 0; ; try++ {
		cmd = exec.Command(agent, "init", "--config", r.config())
		cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = "/", environment(r), logFile, logFile
		cmd.SysProcAttr = attributes(namespaces, group)
		err := cmd.Start()
		if err == nil {
			break
		}
		// A program just written is busy as long as a child forked meanwhile, by any goroutine, has not come to its exec.
		if !errors.Is(err, syscall.ETXTBSY) || try == 100 {
			return fmt.Errorf("run %s: %w", agent, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := failpoint.Hit(fpSpawned); err != nil {
		p.log.Warn("local: after the start of a node", "err", err)
	}
	if proc, ok := proctree.Find(cmd.Process.Pid); ok {
		r.Init = proc
	} else {
		r.Init = proctree.Proc{PID: cmd.Process.Pid}
	}
	r.StartingAt = time.Time{}
	go p.reap(cmd, r.Init)
	p.changeClaim(r, func(g ledger) error { return g.put(r.Init, r) }) // it hangs on the node from now on
	if err := r.save(); err != nil {
		p.log.Warn("local: the node runs, its process is found by its command line", "node", r.ID, "err", err)
	}
	return nil
}

// reap waits for a child of ours, so that no zombie stays, and tells the watches.
func (p *Provider) reap(cmd *exec.Cmd, proc proctree.Proc) {
	awaitExit(nil, proc) // holds no thread, unlike Wait
	cmd.Wait()
	p.notify()
}

// inherited are the server's variables that a node gets: how this machine is set up, and nothing that may be secret.
var inherited = []string{"PATH", "LANG", "LANGUAGE", "TZ", "SHELL", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR",
	"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy"}

// environment is what the node's init starts with.
func environment(r *record) []string {
	env := []string{"HOME=" + filepath.Join(r.dir, "home"), "SKYLOOM_NODE=" + r.mark()}
	name := "root"
	if os.Getuid() != 0 {
		if name = os.Getenv("USER"); name == "" {
			name = fmt.Sprint(os.Getuid())
		}
	}
	env = append(env, "USER="+name, "LOGNAME="+name)
	for _, k := range inherited {
		if v, ok := os.LookupEnv(k); ok {
			env = append(env, k+"="+v)
		}
	}
	for _, kv := range os.Environ() {
		if strings.HasPrefix(kv, "LC_") {
			env = append(env, kv)
		}
	}
	return append(env, agentFailpoints()...)
}
