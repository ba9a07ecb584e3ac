package config

import (
	"fmt"
	"net/url"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/skyloom/skyloom/task"
	"github.com/skyloom/skyloom/task/yamldoc"
)

// kind is what a setting takes.
type kind int

const (
	free     kind = iota // anything
	text                 // text
	texts                // text or a list of text
	whole                // whole number
	number               // number
	truth                // true or false
	object               // object with anything in it
	list                 // list of anything
	duration             // 30s, 10m, 2h, 7d or seconds
	address              // http or https URL
)

// Key is one setting.
type Key struct {
	Path    string // dotted
	Doc     string
	Default string
	Ours    bool // not part of the compatible surface
	Idle    bool // accepted, but this version does nothing with it
	kind    kind
}

// idle are the settings that are accepted and do nothing yet; a name covers all below it. Those of infra that this version
// does not know are added to them.
var idle = []string{
	"api_server.cluster_debug_event_retention_hours", "api_server.launch_attempt_retention_hours", "api_server.daemon_log_max_bytes",
	"workspaces", "workspace_config", "rbac", "jobs.controller", "jobs.bucket", "jobs.force_disable_cloud_bucket", "jobs.status_check", "serve",
	"docker", "nvidia_gpus", "provision.install_conda", "logs", "daemons", "metrics", "dashboard", "plugins", "data",
}

// liveInfra are the settings of infra that count.
var liveInfra = map[string]Key{
	"ssh.allowed_node_pools": {Default: "all", Doc: "SSH node pools that may be used.", kind: texts},
	"ssh.disabled":           {Default: "false", Doc: "Leave the SSH node pools alone.", kind: truth},
}

func isIdle(path string) bool {
	if _, infra := cloudKeys[top(path)]; infra {
		return liveInfra[path].Doc == ""
	}
	return slices.ContainsFunc(idle, func(p string) bool { return path == p || strings.HasPrefix(path, p+".") })
}

// keys is the table of settings. It drives checking, suggestions and the reference. A path ending in "" lets anything
// through below it.
var keys = sync.OnceValue(buildKeys)

func buildKeys() []Key {
	var out []Key
	add := func(k kind, path, def, doc string) {
		out = append(out, Key{Path: path, Default: def, Doc: doc, kind: k})
	}
	own := func(k kind, path, def, doc string) {
		out = append(out, Key{Path: path, Default: def, Doc: doc, kind: k, Ours: true})
	}
	add(address, "api_server.endpoint", "the local server", "Address of the server to talk to.")
	add(text, "api_server.service_account_token", "", "Token of a service account (sky_...).")
	add(number, "api_server.requests_retention_hours", "24", "How long finished requests are kept; negative: for ever.")
	add(number, "api_server.logs_retention_hours", "720", "How long logs are kept; negative: for ever.")
	add(number, "api_server.cluster_event_retention_hours", "720", "How long events of clusters are kept; negative: for ever.")
	add(number, "api_server.cluster_debug_event_retention_hours", "720", "How long debug events are kept; negative: for ever.")
	add(number, "api_server.cluster_terminal_event_retention_hours", "720", "How long events of removed clusters are kept; negative: for ever.")
	add(number, "api_server.launch_attempt_retention_hours", "720", "How long attempts of launches are kept; negative: for ever.")
	add(whole, "api_server.daemon_log_max_bytes", "134217728", "Size at which the server's log is rotated; 0: never.")
	add(texts, "allowed_clouds", "all that are enabled", "Infra that may be used.")
	add(text, "admin_policy", "", "Policy that sees every launch: http or https URL. A server of this version refuses it: nothing would be asked.")
	add(text, "active_workspace", "default", "Workspace of the commands.")
	add(object, "workspaces", "", "Settings of each workspace.")
	add(text, "workspace_config.read_access", "", "Who may read private workspaces: allowed_users or all.")
	add(text, "rbac.default_role", "admin", "Role of new users: admin, user or viewer.")
	add(truth, "rbac.restrict_config_to_admins", "true", "Only admins read the server's configuration.")
	add(object, "rbac.roles", "", "Extra permissions of roles.")
	add(text, "db", "SQLite in SKY_HOME", "URL of the server's database. A server of this version refuses it: it has its own.")
	for _, s := range []string{"jobs", "serve"} {
		add(object, s+".controller", "", "Accepted; there is no controller here.")
		add(text, s+".bucket", "", "Bucket for intermediate files.")
		add(truth, s+".force_disable_cloud_bucket", "false", "Never use a bucket for intermediate files.")
	}
	add(number, "jobs.status_check.min_elapsed_seconds", "", "How long a status check may fail before a job counts as unhealthy.")
	add(whole, "jobs.status_check.min_retries", "", "How often it may fail before that.")
	own(text, "jobs.webhook_secret", "made for the installation", "What signs notifications of managed jobs: whsec_ and base64, or any text; see sky jobs webhook-secret.")
	own(texts, "jobs.webhook_hosts", "all but link-local addresses", "Hosts that may be told of managed jobs: names, *.names, addresses, ranges; with ! in front refused.")
	own(object, "jobs.limits", "", "How many managed jobs run at once, in all and per infra.")
	add(texts, "docker.run_options", "", "Extra options of docker run.")
	add(truth, "nvidia_gpus.disable_ecc", "false", "Turn off ECC on NVIDIA GPUs.")
	add(number, "provision.ssh_timeout", "10", "Seconds to wait for one SSH connection.")
	add(truth, "provision.install_conda", "true", "Accepted; nothing is installed on nodes.")
	add(object, "logs", "", "Where logs of nodes are sent.")
	add(object, "daemons", "", "Accepted; see the schedules of the server.")
	add(object, "metrics.prometheus", "", "Where Prometheus is found.")
	add(list, "dashboard.external_links", "", "Links shown on the pages of clusters and jobs.")
	add(object, "plugins", "", "Settings of plugins.")
	add(truth, "data.mount_cached.sequential_upload", "false", "Deprecated.")
	for cloud, names := range cloudKeys {
		for _, n := range strings.Fields(names) {
			path := cloud + "." + n
			add(liveInfra[path].kind, path, liveInfra[path].Default, liveInfra[path].Doc)
		}
	}
	own(text, "temporal.address", "the embedded engine", "host:port of an external Temporal.")
	own(text, "temporal.namespace", "default", "Namespace there.")
	own(text, "temporal.api_key", "", "API key; better in a file.")
	own(text, "temporal.api_key_file", "", "File that holds the API key; it is read again when it changes.")
	own(text, "temporal.tls.ca_file", "the system's", "Certificates that the engine's is checked against.")
	own(text, "temporal.tls.cert_file", "", "Certificate of this server (mTLS).")
	own(text, "temporal.tls.key_file", "", "Its private key.")
	own(text, "temporal.tls.server_name", "the host of the address", "Name in the engine's certificate.")
	own(truth, "temporal.tls.enabled", "true when any other tls setting or an API key is given", "Use TLS.")
	own(whole, "server.port", "46580", "Port on 127.0.0.1; when it is taken another one is used, unless this is set.")
	own(duration, "server.idle_exit", "0s (never)", "A server with the embedded engine ends when there was nothing to do for so long: no call, no open request, no cluster that runs, no managed job or schedule. The next command starts it again.")
	own(truth, "server.web_ui", "true", "Serve the engine's Web UI under /temporal/.")
	own(text, "server.log_level", "info", "debug, info, warn or error.")
	own(truth, "local.enabled", "true, unless several servers share an engine", "Use this machine as infra.")
	own(number, "local.cpus", "those of the machine", "CPUs offered by this machine.")
	own(number, "local.memory", "that of the machine", "GB of memory offered by this machine.")
	own(object, "buckets", "", "How buckets are reached, by the kind of their address (s3, gs, r2, …) or by one bucket's (s3://name): endpoint, region, profile, credentials_file, path_style.")
	own(duration, "health.suspect_after", "10s", "Silence after which a node is suspect.")
	own(duration, "health.lost_after", "5m", "Silence after which a node that nothing can confirm counts as lost.")
	own(object, "memory_provider", "off", "Simulated infra, for tests.")
	for i := range out {
		out[i].Idle = isIdle(out[i].Path)
	}
	sort.SliceStable(out, func(i, j int) bool { return top(out[i].Path) < top(out[j].Path) })
	return out
}

// cloudKeys are the settings of infra, which belong to its providers; only their names are checked here.
var cloudKeys = map[string]string{
	"aws":        common + "vpc_names vpc_name subnet_names use_ssm security_group_name disk_encrypted ssh_user prioritize_reservations specific_reservations post_provision_runcmd enforce_tags",
	"gcp":        common + "vpc_name subnet_names force_enable_external_ips prioritize_reservations specific_reservations managed_instance_group enable_gvnic enable_gpu_direct placement_policy",
	"azure":      common + "resource_group_vm storage_account vpc_name subnet_names",
	"kubernetes": common + "allowed_contexts context_configs namespace allowed_nodes ports networking provision_timeout autoscaler pod_config custom_metadata kueue quota dws high_availability post_provision_runcmd apt_mirrors set_pod_resource_limits pricing auto_mounts enable_docker rdma max_inline_command_length",
	"ssh":        common + "allowed_node_pools pod_config provision_timeout custom_metadata context_configs",
	"slurm":      common + "allowed_clusters provision_timeout submit_as_user username_map pricing sbatch_options quota gpu_partition_map cpu_partition container_mounts prometheus cluster_configs",
	"oci":        common + "region_configs",
	"nebius":     common + "tenant_id domain use_static_ip_address use_personal_pricing disk_encrypted security_group_name region_configs",
	"vast":       common + "datacenter_only create_instance_kwargs",
	"lambda":     common, "runpod": common, "do": common, "fluidstack": common, "paperspace": common, "cudo": common, "ibm": common, "scp": common,
	"vsphere": common, "primeintellect": common, "hyperbolic": common, "seeweb": common, "shadeform": common, "yotta": common, "mithril": common, "verda": common,
}

const common = "labels use_internal_ips ssh_proxy_command remote_identity capabilities disabled "

// Keys lists all settings by section, for the reference.
func Keys() []Key { return append([]Key(nil), keys()...) }

func top(path string) string {
	s, _, _ := strings.Cut(path, ".")
	return s
}

// branch is the table as a tree.
type branch struct {
	names []string // of the children, in the order of the table
	next  map[string]*branch
	leaf  *Key
}

var tree = sync.OnceValue(buildTree)

func buildTree() *branch {
	root := &branch{}
	keys := keys()
	for i := range keys {
		at := root
		for _, part := range strings.Split(keys[i].Path, ".") {
			if at.next[part] == nil {
				if at.next == nil {
					at.next = map[string]*branch{}
				}
				at.next[part] = &branch{}
				at.names = append(at.names, part)
			}
			at = at.next[part]
		}
		at.leaf = &keys[i]
	}
	return root
}

// check refuses unknown keys and wrong types.
func check(file string, root *yaml.Node) error {
	c := &checker{file: file}
	c.object(root, nil, tree())
	return c.errs.Err()
}

type checker struct {
	file string
	errs yamldoc.ErrorList
}

func (c *checker) fail(n *yaml.Node, path []string, format string, args ...any) {
	c.errs = append(c.errs, &yamldoc.Error{File: c.file, Line: n.Line, Column: n.Column, Field: strings.Join(path, "."), Msg: fmt.Sprintf(format, args...)})
}

func (c *checker) object(n *yaml.Node, path []string, at *branch) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		next := at.next[key.Value]
		if next == nil {
			name := key.Value
			if len(name) > 60 {
				name = name[:57] + "..."
			}
			c.fail(key, path, "unknown setting %q%s", name, yamldoc.DidYouMean(key.Value, at.names))
			continue
		}
		sub := append(append([]string(nil), path...), key.Value)
		switch {
		case yamldoc.IsNull(value):
		case next.leaf != nil:
			c.value(value, sub, next.leaf)
		case value.Kind != yaml.MappingNode:
			c.fail(value, sub, "must be an object with %s", strings.Join(sorted(next.names), ", "))
		default:
			c.object(value, sub, next)
		}
	}
}

func sorted(in []string) []string {
	out := append([]string(nil), in...)
	sort.Strings(out)
	return out
}

func (c *checker) value(n *yaml.Node, path []string, k *Key) {
	v := yamldoc.Plain(n)
	ok, want := true, ""
	switch k.kind {
	case text:
		_, ok = v.(string)
		want = "text"
	case texts:
		ok, want = isTexts(v), "text or a list of text"
	case whole:
		_, ok = v.(int)
		want = "a whole number"
	case number:
		_, isInt := v.(int)
		_, isFloat := v.(float64)
		ok, want = isInt || isFloat, "a number"
	case truth:
		_, ok = v.(bool)
		want = "true or false"
	case list:
		_, ok = v.([]any)
		want = "a list"
	case object:
		if _, ok = v.(map[string]any); k.Path == "memory_provider" {
			_, isBool := v.(bool)
			ok = ok || isBool
		}
		want = "an object"
	case duration:
		if s, isText := v.(string); isText {
			_, err := task.ParseDuration(s)
			ok = err == nil
		} else {
			n, isInt := v.(int)
			ok = isInt && n >= 0
		}
		want = "a duration like 30s, 10m or 2h"
	case address:
		s, _ := v.(string)
		u, err := url.Parse(s)
		ok = err == nil && u.Host != "" && (u.Scheme == "http" || u.Scheme == "https")
		want = "an http or https address"
	}
	if !ok {
		c.fail(n, path, "must be %s", want)
		return
	}
	c.bounds(n, path, k, v)
}

// bounds checks values of settings that have more than a type.
func (c *checker) bounds(n *yaml.Node, path []string, k *Key, v any) {
	words := map[string][]string{
		"server.log_level": {"debug", "info", "warn", "error"}, "rbac.default_role": {"admin", "user", "viewer"}, "workspace_config.read_access": {"allowed_users", "all"},
	}[k.Path]
	if s, ok := v.(string); ok && words != nil {
		for _, w := range words {
			if s == w {
				return
			}
		}
		c.fail(n, path, "must be one of %s%s", strings.Join(words, ", "), yamldoc.DidYouMean(s, words))
	}
	positive := k.Path == "local.cpus" || k.Path == "local.memory" || k.Path == "provision.ssh_timeout"
	switch v := v.(type) {
	case int:
		if k.Path == "server.port" && (v < 0 || v > 65535) {
			c.fail(n, path, "must be a port from 1 to 65535, or 0 for any")
		}
		if positive && v <= 0 {
			c.fail(n, path, "must be more than 0")
		}
	case float64:
		if positive && v <= 0 {
			c.fail(n, path, "must be more than 0")
		}
	}
}

func isTexts(v any) bool {
	switch v := v.(type) {
	case string:
		return true
	case []any:
		for _, e := range v {
			if _, ok := e.(string); !ok {
				return false
			}
		}
		return true
	}
	return false
}

// Duration is the duration at path, or def.
func (c *Config) Duration(path string, def time.Duration) time.Duration {
	switch v, _ := c.Get(path); v := v.(type) {
	case int:
		return time.Duration(v) * time.Second
	case string:
		if d, err := task.ParseDuration(v); err == nil {
			return d
		}
	}
	return def
}
