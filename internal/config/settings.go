package config

import (
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/skyloom/skyloom/task"
	"github.com/skyloom/skyloom/task/yamldoc"
)

// Temporal says which engine to use.
type Temporal struct {
	Address    string // host:port; empty: the embedded engine
	Namespace  string
	APIKey     string
	APIKeyFile string
	TLS        TLS
}

// TLS secures the way to an external engine.
type TLS struct {
	Enabled                               bool
	CAFile, CertFile, KeyFile, ServerName string
}

// Temporal returns the settings of the engine.
func (c *Config) Temporal() (Temporal, error) {
	t := Temporal{
		Address: c.Text("temporal.address", ""), Namespace: c.Text("temporal.namespace", "default"),
		APIKey: c.Text("temporal.api_key", ""), APIKeyFile: c.Text("temporal.api_key_file", ""),
		TLS: TLS{
			CAFile: c.Text("temporal.tls.ca_file", ""), CertFile: c.Text("temporal.tls.cert_file", ""), KeyFile: c.Text("temporal.tls.key_file", ""),
			ServerName: c.Text("temporal.tls.server_name", ""),
		},
	}
	given := t.TLS != TLS{} || t.APIKey != "" || t.APIKeyFile != ""
	t.TLS.Enabled = c.Bool("temporal.tls.enabled", given)
	switch {
	case t.Address == "" && given:
		return t, fmt.Errorf("temporal: address is missing; without it the embedded engine is used, which takes no key and no certificate")
	case t.APIKey != "" && t.APIKeyFile != "":
		return t, fmt.Errorf("temporal: api_key and api_key_file can't be combined")
	case (t.TLS.CertFile == "") != (t.TLS.KeyFile == ""):
		return t, fmt.Errorf("temporal.tls: cert_file and key_file belong together")
	}
	return t, nil
}

// Server is how the local server runs.
type Server struct {
	Port     int           // 46580 by default
	PortSet  bool          // set by the user: no other port is taken instead
	IdleExit time.Duration // 0: never
	WebUI    bool
	LogLevel string
}

// DefaultPort is where a local server listens unless it is taken.
const DefaultPort = 46580

// Server returns the settings of the local server.
func (c *Config) Server() Server {
	_, set := c.Get("server.port")
	return Server{
		Port: c.Int("server.port", DefaultPort), PortSet: set, IdleExit: c.Duration("server.idle_exit", 0),
		WebUI: c.Bool("server.web_ui", true), LogLevel: c.Text("server.log_level", "info"),
	}
}

// Retention is how long finished things are kept; negative means for ever.
type Retention struct {
	Requests, Logs, Events, DebugEvents, TerminalEvents, Attempts time.Duration
}

// Retention returns how long finished things are kept.
func (c *Config) Retention() Retention {
	hours := func(key string, def float64) time.Duration {
		h := c.Number("api_server."+key, def)
		if h < 0 {
			return -1
		}
		if h > 1e6 {
			h = 1e6
		}
		return max(time.Duration(h*float64(time.Hour)), time.Minute) // 0 is not for ever

	}
	return Retention{
		Requests: hours("requests_retention_hours", 24), Logs: hours("logs_retention_hours", 720), Events: hours("cluster_event_retention_hours", 720),
		DebugEvents: hours("cluster_debug_event_retention_hours", 720), TerminalEvents: hours("cluster_terminal_event_retention_hours", 720),
		Attempts: hours("launch_attempt_retention_hours", 720),
	}
}

// Local is this machine as infra.
type Local struct {
	Enabled  *bool   // nil: decided by the server
	CPUs     float64 // 0: those of the machine
	MemoryGB float64 // 0: that of the machine
}

// Local returns the settings of this machine as infra.
func (c *Config) Local() Local {
	l := Local{CPUs: c.Number("local.cpus", 0), MemoryGB: c.Number("local.memory", 0)}
	if b, ok := get[bool](c, "local.enabled"); ok {
		l.Enabled = &b
	}
	return l
}

// MemoryProvider returns the settings of the simulated infra, and whether it is on.
func (c *Config) MemoryProvider() (settings map[string]any, on bool) {
	switch v, _ := c.Get("memory_provider"); v := v.(type) {
	case bool:
		return nil, v
	case map[string]any:
		on, said := v["enabled"].(bool)
		return v, on || !said
	}
	return nil, false
}

// Health is when a silent node stops counting as alive.
type Health struct{ SuspectAfter, LostAfter time.Duration }

// Health returns when a silent node stops counting as alive.
func (c *Config) Health() Health {
	return Health{SuspectAfter: c.Duration("health.suspect_after", 10*time.Second), LostAfter: c.Duration("health.lost_after", 5*time.Minute)}
}

// Endpoint is the address of the server to talk to; empty means the local one.
func (c *Config) Endpoint() string { return strings.TrimRight(c.Text("api_server.endpoint", ""), "/") }

// ServiceAccountToken is the token for that server, or empty.
func (c *Config) ServiceAccountToken() string { return c.Text("api_server.service_account_token", "") }

// ActiveWorkspace is the workspace of a command, and whether it was chosen.
func (c *Config) ActiveWorkspace() (name string, chosen bool) {
	s := c.Text("active_workspace", "")
	return s, s != ""
}

// AllowedClouds lists the infra that may be used; nil means all.
func (c *Config) AllowedClouds() []string {
	var out []string
	for _, s := range c.Texts("allowed_clouds") {
		if s = strings.ToLower(s); s == "k8s" {
			s = "kubernetes"
		}
		out = append(out, s)
	}
	return out
}

// TaskOverrides checks the config section of a task, without hooks, and returns it as a layer between the project's and
// the flags'. Only the keys of task.ConfigOverridable may stand there.
func TaskOverrides(t *task.Task) (*Config, error) {
	var errs yamldoc.ErrorList
	var walk func(prefix string, m map[string]any)
	walk = func(prefix string, m map[string]any) {
		names := make([]string, 0, len(m))
		for k := range m {
			names = append(names, k)
		}
		sort.Strings(names)
		for _, k := range names {
			path := prefix + k
			exact, below := overridable(path)
			inner, isMap := m[k].(map[string]any)
			switch {
			case exact:
			case below && isMap:
				walk(path+".", inner)
			case below:
				errs = append(errs, &yamldoc.Error{Field: "config." + path, Msg: "must be an object"})
			default:
				errs = append(errs, &yamldoc.Error{Field: "config." + path, Msg: "can't be set from a task" + yamldoc.DidYouMean(path, task.ConfigOverridable)})
			}
		}
	}
	walk("", t.Config.Overrides)
	if err := errs.Err(); err != nil {
		return nil, err
	}
	return &Config{tree: copyMap(t.Config.Overrides), sources: []string{"the task's config section"}}, nil
}

// overridable tells whether a path may be set from a task, or holds such paths.
func overridable(path string) (exact, below bool) {
	for _, k := range task.ConfigOverridable {
		exact = exact || k == path
		below = below || strings.HasPrefix(k, path+".")
	}
	return exact, below
}
