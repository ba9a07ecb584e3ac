package chaos

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// process is one that belongs to a node of the instance.
type process struct {
	pid  int
	args []string
	node string // folder of its node below SKY_HOME/local, if its command line names it
	hash string // of its cluster, if its environment names it
}

// verb is what a process of the agent's program does: init, serve or job-shim; "" for others, such as jobs.
func (p process) verb() string {
	if len(p.args) > 1 && filepath.Base(p.args[0]) == "sky-agent" {
		return p.args[1]
	}
	return ""
}

// processes finds what really runs on the instance's nodes: by command line, or by an environment that names its home.
func (in *instance) processes() []process {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		in.t.Fatal(err)
	}
	root := filepath.Join(in.home, "local") + "/"
	var out []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		p := process{pid: pid, args: fields(pid, "cmdline")}
		if len(p.args) == 0 { // a zombie, or the kernel's
			continue
		}
		ours := false
		for _, a := range p.args {
			if i := strings.Index(a, root); i >= 0 {
				ours = true
				if rest := strings.Split(a[i+len(root):], "/"); len(rest) >= 2 && strings.HasPrefix(rest[1], "node") {
					p.node = filepath.Join(rest[0], rest[1])
				}
			}
		}
		for _, kv := range fields(pid, "environ") {
			if strings.HasPrefix(kv, "HOME="+root) {
				ours = true
			}
			if mark, ok := strings.CutPrefix(kv, "SKYLOOM_NODE="); ok {
				p.hash, _, _ = strings.Cut(mark, "/")
			}
		}
		if ours {
			out = append(out, p)
		}
	}
	return out
}

// fields reads a file of /proc that holds strings ended by zero bytes.
func fields(pid int, name string) []string {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), name))
	if err != nil || len(b) == 0 {
		return nil
	}
	return strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
}

// folders lists the nodes that have a folder, as cluster-on-cloud/nodeN.
func (in *instance) folders() []string {
	paths, _ := filepath.Glob(filepath.Join(in.home, "local", "*", "node*", "record.json"))
	var out []string
	for _, p := range paths {
		d := filepath.Dir(p)
		out = append(out, filepath.Join(filepath.Base(filepath.Dir(d)), filepath.Base(d)))
	}
	slices.Sort(out)
	return out
}
