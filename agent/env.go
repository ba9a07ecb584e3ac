package agent

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/skyloom/skyloom/agent/agentapi"
	"github.com/skyloom/skyloom/agent/shim"
	"github.com/skyloom/skyloom/agent/supervisor"
	"github.com/skyloom/skyloom/api"
)

// maxEnv is the longest "NAME=value" the kernel takes (MAX_ARG_STRLEN), its closing zero excluded.
const maxEnv = 128<<10 - 1

// runLogName is the name of a rank's log file.
func runLogName(rank, node, clusterNodes int) string {
	if clusterNodes == 1 {
		return "run.log"
	}
	return fmt.Sprintf("%d-%s.log", rank, api.NodeName(node))
}

// checkEnv refuses what cannot be an environment variable.
func checkEnv(vars map[string]string) error {
	for k, v := range vars {
		if k == "" || strings.ContainsAny(k, "=\x00") {
			return invalid("%q cannot be the name of an environment variable", k)
		}
		if strings.Contains(v, "\x00") {
			return invalid("the value of environment variable %s holds a zero byte", k)
		}
		if len(k)+1+len(v) > maxEnv {
			return invalid("environment variable %s is %d bytes long; the system takes %d at most: put the value into a file", k, len(v), maxEnv)
		}
	}
	return nil
}

// clusterInfo is SKYPILOT_CLUSTER_INFO.
func clusterInfo(c agentapi.ClusterSpec) string {
	b, _ := json.Marshal(struct {
		Name   string `json:"cluster_name"`
		Cloud  string `json:"cloud"`
		Region string `json:"region"`
		Zone   string `json:"zone"`
	}{c.Name, c.Cloud, c.Region, c.Zone})
	return string(b)
}

// gpusPerNode is SKYPILOT_NUM_GPUS_PER_NODE: rounded up; accelerators that are no GPUs do not count.
func gpusPerNode(name string, n float64) string {
	if strings.HasPrefix(strings.ToLower(name), "tpu") {
		return "0"
	}
	return strconv.Itoa(int(math.Ceil(n - slack)))
}

// userEnv is what both phases get besides their own variables: later ones shadow earlier ones.
func userEnv(env []string, j *jobState, spec *agentapi.JobSpec, secrets map[string]string, c agentapi.ClusterSpec) []string {
	for _, vars := range []map[string]string{spec.Envs, secrets} {
		for _, k := range slices.Sorted(maps.Keys(vars)) {
			env = append(env, k+"="+vars[k])
		}
	}
	user := spec.User
	if user == "" {
		user = c.UserName
	}
	return append(env,
		"SKYPILOT_TASK_ID="+j.TaskID,
		"SKYPILOT_CLUSTER_INFO="+clusterInfo(c),
		"SKYPILOT_USER="+user,
	)
}

// setupEnv is the environment of the setup on one node of the cluster.
func setupEnv(j *jobState, spec *agentapi.JobSpec, secrets map[string]string, c agentapi.ClusterSpec, node int) []string {
	ips := strings.Join(j.Place.IPs, "\n")
	return userEnv([]string{
		"SKYPILOT_SETUP_NODE_RANK=" + strconv.Itoa(node),
		"SKYPILOT_SETUP_NODE_IPS=" + ips,
		"SKYPILOT_SETUP_NUM_GPUS_PER_NODE=" + gpusPerNode(c.Resources.Accelerator, c.Resources.AcceleratorCount),
		"SKYPILOT_NUM_NODES=" + strconv.Itoa(len(j.Place.IPs)),
	}, j, spec, secrets, c)
}

// runEnv is the environment of one rank's run, its devices excepted. The user may shadow the first two variables, not
// the last three.
func runEnv(j *jobState, spec *agentapi.JobSpec, secrets map[string]string, c agentapi.ClusterSpec, rank int) []string {
	var ips []string
	for _, r := range j.Place.Ranks {
		ips = append(ips, j.Place.IPs[r.Node])
	}
	accel := spec.Accelerator
	if accel == "" {
		accel = c.Resources.Accelerator
	}
	env := userEnv([]string{
		"SKYPILOT_NODE_IPS=" + strings.Join(ips, "\n"),
		"SKYPILOT_NUM_NODES=" + strconv.Itoa(len(ips)),
	}, j, spec, secrets, c)
	return append(env,
		"SKYPILOT_NUM_GPUS_PER_NODE="+gpusPerNode(accel, spec.AcceleratorCount),
		"SKYPILOT_NODE_RANK="+strconv.Itoa(rank),
		"SKYPILOT_INTERNAL_JOB_ID="+strconv.FormatInt(j.Row.ID, 10),
	)
}

// baseEnv is what every script on the node starts from: the agent's own environment without what concerns only the
// agent, and HOME.
func baseEnv(home string) []string {
	var env []string
	has := map[string]bool{}
	for _, kv := range os.Environ() {
		k, _, _ := strings.Cut(kv, "=")
		switch {
		case strings.HasPrefix(k, "SKYLOOM_"), strings.HasPrefix(k, "SKYPILOT_"):
			continue
		case slices.Contains([]string{"SKY_HOME", "HOME", "PWD", "OLDPWD", "SHLVL", "_", "GOGC", "GOMEMLIMIT", "GOMAXPROCS", "GODEBUG", "CUDA_VISIBLE_DEVICES"}, k):
			continue
		}
		has[k] = true
		env = append(env, kv)
	}
	if !has["PATH"] {
		env = append(env, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	}
	return append(env, "HOME="+home)
}

// nodeEnv completes the environment of a phase on this node.
func (a *Agent) nodeEnv(env []string, phase string, p *partRecord) []string {
	out := baseEnv(a.cfg.Home)
	if devices := a.deviceIDs(); phase == phaseRun && len(devices) > 0 {
		var ids []string
		for _, d := range p.Devices {
			if d.Index < len(devices) {
				ids = append(ids, devices[d.Index])
			}
		}
		out = append(out, "CUDA_VISIBLE_DEVICES="+strings.Join(ids, ","))
	}
	out = append(out, env...)
	a.absoluteDirs(out)
	out = append(out, shim.MarkerEnv+"="+a.marker(p), supervisor.EnvNode+"="+NodeMark(a.cfg))
	return lastWins(out)
}

// deviceIDs are the names of this node's accelerators as CUDA_VISIBLE_DEVICES takes them.
func (a *Agent) deviceIDs() []string {
	if len(a.cfg.Resources.DeviceIDs) > 0 {
		return a.cfg.Resources.DeviceIDs
	}
	var out []string
	for i := range int(math.Ceil(a.cfg.Resources.AcceleratorCount - slack)) {
		out = append(out, strconv.Itoa(i))
	}
	return out
}

// marker finds every process of a part.
func (a *Agent) marker(p *partRecord) string {
	return fmt.Sprintf("%s-%d-%s-%d", a.cfg.ClusterHash, p.JobID, p.Nonce, a.cfg.Rank)
}

// lastWins keeps the last of each name, since programs differ in which one they take.
func lastWins(env []string) []string {
	last := make(map[string]int, len(env))
	for i, kv := range env {
		k, _, _ := strings.Cut(kv, "=")
		last[k] = i
	}
	out := make([]string, 0, len(last))
	for i, kv := range env {
		if k, _, _ := strings.Cut(kv, "="); last[k] == i {
			out = append(out, kv)
		}
	}
	return out
}
