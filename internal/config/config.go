package config

import (
	"sort"
	"strings"
)

// Config is a tree of settings. The zero value and nil are empty. It is not changed after it was made.
type Config struct {
	tree    map[string]any
	sources []string // files and flags it was made of, lowest first
}

// New makes a Config of plain values; it does not check them.
func New(tree map[string]any) *Config { return &Config{tree: copyMap(tree)} }

// Sources lists the files and flags that went into the config, the lowest first.
func (c *Config) Sources() []string { return append([]string(nil), c.sources...) }

// Tree is a copy of all settings as plain values.
func (c *Config) Tree() map[string]any { return copyMap(c.tree) }

// Get returns the value at a dotted path like "api_server.endpoint". ok is false when nothing was set there.
func (c *Config) Get(path string) (value any, ok bool) { return c.GetKeys(strings.Split(path, ".")...) }

// GetKeys is Get for keys that may hold dots themselves.
func (c *Config) GetKeys(keys ...string) (value any, ok bool) {
	if c == nil {
		return nil, false
	}
	value = any(c.tree)
	for _, k := range keys {
		m, isMap := value.(map[string]any)
		if !isMap {
			return nil, false
		}
		if value, ok = m[k]; !ok {
			return nil, false
		}
	}
	return copyValue(value), true
}

// Text is the text at path, or def.
func (c *Config) Text(path, def string) string {
	if s, ok := get[string](c, path); ok {
		return s
	}
	return def
}

// Int is the whole number at path, or def.
func (c *Config) Int(path string, def int) int {
	if n, ok := get[int](c, path); ok {
		return n
	}
	return def
}

// Number is the number at path, or def.
func (c *Config) Number(path string, def float64) float64 {
	switch n, _ := c.Get(path); n := n.(type) {
	case int:
		return float64(n)
	case float64:
		return n
	}
	return def
}

// Bool is the truth value at path, or def.
func (c *Config) Bool(path string, def bool) bool {
	if b, ok := get[bool](c, path); ok {
		return b
	}
	return def
}

// Texts is the list of text at path; a single text counts as a list of one.
func (c *Config) Texts(path string) []string {
	v, _ := c.Get(path)
	switch v := v.(type) {
	case string:
		return []string{v}
	case []any:
		var out []string
		for _, e := range v {
			if s, ok := e.(string); ok {
				out = append(out, s)
			}
		}
		return out
	}
	return nil
}

// Map is the object at path, or nil.
func (c *Config) Map(path string) map[string]any {
	m, _ := get[map[string]any](c, path)
	return m
}

func get[V any](c *Config, path string) (V, bool) {
	v, _ := c.Get(path)
	x, ok := v.(V)
	return x, ok
}

// Merge lays over on top of c and returns the result; both stay as they are. Maps merge key by key and lists are
// replaced, except lists inside a pod_config, which are appended, with entries of the same name merged.
func (c *Config) Merge(over *Config) *Config {
	if c == nil {
		c = &Config{}
	}
	if over == nil {
		over = &Config{}
	}
	return &Config{
		tree:    mergeMaps(c.tree, over.tree, false),
		sources: append(append([]string(nil), c.sources...), over.sources...),
	}
}

func mergeMaps(base, over map[string]any, inPod bool) map[string]any {
	out := copyMap(base)
	for k, v := range over {
		pod := inPod || k == "pod_config"
		old, there := out[k]
		switch {
		case !there:
			out[k] = copyValue(v)
		default:
			out[k] = mergeValues(old, v, pod)
		}
	}
	return out
}

func mergeValues(old, v any, inPod bool) any {
	oldMap, a := old.(map[string]any)
	newMap, b := v.(map[string]any)
	if a && b {
		return mergeMaps(oldMap, newMap, inPod)
	}
	oldList, a := old.([]any)
	newList, b := v.([]any)
	if a && b && inPod {
		return mergePodLists(oldList, newList)
	}
	return copyValue(v)
}

// mergePodLists appends; an entry with the name of an existing one (a container, a volume, a variable) is merged into it.
func mergePodLists(base, over []any) []any {
	out := copyValue(base).([]any)
	for _, e := range over {
		m, isMap := e.(map[string]any)
		at := -1
		if name, ok := m["name"].(string); isMap && ok {
			for i, have := range out {
				if h, ok := have.(map[string]any); ok && h["name"] == name {
					at = i
				}
			}
		}
		if at < 0 {
			out = append(out, copyValue(e))
			continue
		}
		out[at] = mergeMaps(out[at].(map[string]any), m, true)
	}
	return out
}

func copyMap(m map[string]any) map[string]any {
	out := make(map[string]any, len(m))
	for k, v := range m {
		out[k] = copyValue(v)
	}
	return out
}

func copyValue(v any) any {
	switch v := v.(type) {
	case map[string]any:
		return copyMap(v)
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = copyValue(e)
		}
		return out
	}
	return v
}

// serverOnly are the settings that a client can't change on the server.
var serverOnly = []string{
	"api_server", "allowed_clouds", "workspaces", "workspace_config", "rbac", "db", "daemons", "metrics", "admin_policy",
	"jobs.controller.consolidation_mode", "serve.controller.consolidation_mode",
	"jobs.controller.controller_logs_gc_retention_hours", "jobs.controller.task_logs_gc_retention_hours", "slurm.cluster_configs",
	"temporal", "server", "local", "memory_provider", "health", "jobs.webhook_secret", "jobs.webhook_hosts", "jobs.limits", "buckets",
}

// ForServer is what of a client's settings travels to a server: not what only the server decides, which may hold addresses
// and secrets that are nobody else's business.
func (c *Config) ForServer() *Config {
	rest, _ := c.withoutServers()
	return rest
}

// withoutServers leaves out what only the server decides, and names it.
func (c *Config) withoutServers() (rest *Config, dropped []string) {
	rest = &Config{tree: copyMap(c.tree), sources: c.sources}
	for _, path := range serverOnly {
		if rest.remove(strings.Split(path, ".")) {
			dropped = append(dropped, path)
		}
	}
	sort.Strings(dropped)
	return rest, dropped
}

// Overlay lays a client's settings over the server's own and returns the result, with the dotted paths of the client's
// settings that were left out because only the server decides them.
func (c *Config) Overlay(client *Config) (merged *Config, dropped []string) {
	if client == nil {
		return c.Merge(nil), nil
	}
	rest, dropped := client.withoutServers()
	return c.Merge(rest), dropped
}

// remove deletes a path and tells whether it was there.
func (c *Config) remove(keys []string) bool {
	m := c.tree
	for _, k := range keys[:len(keys)-1] {
		next, ok := m[k].(map[string]any)
		if !ok {
			return false
		}
		m = next
	}
	last := keys[len(keys)-1]
	_, ok := m[last]
	delete(m, last)
	return ok
}
