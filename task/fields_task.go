package task

import (
	"fmt"
	"regexp"
	"sort"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// Bounds of config.hooks.
const (
	maxHooks     = 32
	maxHookBytes = 16384
)

var hookEvents = []string{"stop", "preemption", "down"}

var (
	taskObject   *object[Task]
	hookObject   *object[Hook]
	configObject *object[Config]
	managedForm  *object[ManagedSecret]
)

var (
	envName   = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`)
	secretRef = regexp.MustCompile(`^(?:(?:personal|workspace|global)\.)?([a-zA-Z_][a-zA-Z0-9_]*)$`)
)

func buildTask() {
	hookObject = &object[Hook]{
		title: "config.hooks[]", doc: "A command on the head node before the cluster ends.",
		fields: []field[Hook]{
			textField("run", "Shell command, at most 16384 bytes; needed.", func(h *Hook) *string { return &h.Run }),
			{
				name: "events", forms: "list of `stop`, `preemption`, `down`", def: "all three", doc: "What it runs before.", schema: jsList(jsWords(hookEvents...)),
				read: func(v val, h *Hook) {
					v.items(func(_ int, c val) {
						if s, ok := c.oneOf(hookEvents...); ok && !contains(h.Events, s) {
							h.Events = append(h.Events, s)
						}
					})
				},
				write: func(h *Hook) any { return h.Events },
			},
			intField("timeout", "Seconds it may take.", 1, maxInt, func(h *Hook) *int { return &h.TimeoutSeconds }).defaults("3600"),
		},
	}
	configObject = &object[Config]{
		title: "config", doc: "Overrides of the configuration for this task, and lifecycle hooks.", open: true,
		other: func(v val, key string, c *Config) {
			if c.Overrides == nil {
				c.Overrides = map[string]any{}
			}
			c.Overrides[key] = v.plain()
		},
		rest: func(c *Config) map[string]any { return c.Overrides },
		fields: []field[Config]{{
			name: "hooks", forms: "list of objects", doc: "Commands run on the head node before the cluster is stopped, preempted or removed; at most 32.", schema: jsList(jsRef("config.hooks[]")),
			read: readHooks, write: func(c *Config) any { return writeList(hookObject, c.Hooks) },
		}},
	}
	managedForm = &object[ManagedSecret]{
		title: "managed_secrets[].NAME", doc: "How a managed secret is delivered.",
		fields: []field[ManagedSecret]{textField("mount_path", "File (mode 0600) that holds the secret.", func(m *ManagedSecret) *string { return &m.MountPath })},
	}
	hints := map[string]string{}
	for _, f := range resourceFields() {
		for _, n := range append(f.alias, f.name) {
			hints[n] = `it belongs under "resources"`
		}
	}
	delete(hints, "volumes")
	hints["hooks"] = `it belongs under "config"`
	hints["command"] = `the command stands under "run"`
	hints["env"] = `did you mean "envs"?`
	hints["experimental"] = `what was under experimental.config_overrides stands under "config"`
	taskObject = &object[Task]{title: "", doc: "A task file is YAML. All fields are optional.", fields: taskFields(), hints: hints}
}

func taskFields() []field[Task] {
	return []field[Task]{
		textField("name", "Name of the task: letters and digits, joined by single or double `.`, `_` or `-`.", func(t *Task) *string { return &t.Name }),
		{
			name: "workdir", forms: "local folder, `{path, mirror}`, or `{url, ref}`", doc: "Folder that goes to `~/sky_workdir` of every node at every launch and exec; commands run there.", schema: jsOr(jsText(), jsRef("workdir")),
			read: readWorkdir, write: writeWorkdir,
		},
		intField("num_nodes", "Nodes of the cluster: one head, the rest workers.", 1, 100_000, func(t *Task) *int { return &t.NumNodes }).defaults("1").with(func(f *field[Task]) {
			f.write = func(t *Task) any {
				if t.NumNodes <= 1 {
					return nil
				}
				return t.NumNodes
			}
		}),
		{
			name: "resources", forms: "object", def: "a CPU node", doc: "What one node needs.", schema: jsRef("resources"),
			read: func(v val, t *Task) {
				resourcesObject.read(v, &t.Resources)
				afterResources(v, &t.Resources)
			},
			write: func(t *Task) any { return writeObject(resourcesObject, &t.Resources) },
		},
		{
			name: "envs", forms: "map of name to value; null means it must be given with `--env`", doc: "Environment of setup and run. Values are text as written.", schema: jsTextMap(),
			read: readEnvs, write: func(t *Task) any { return textMap(t.Envs) },
		},
		{
			name: "secrets", forms: "map of name to value or null, or list of `secrets:NAME`", doc: "As envs, but never shown. Null, or a `secrets:` entry, refers to a secret that is given at launch.", schema: jsOr(jsTextMap(), jsTexts()),
			read: readSecrets, write: writeSecrets,
		},
		{
			name: "managed_secrets", forms: "list of `NAME` or `{NAME: {mount_path: P}}`", doc: "Secrets from the server's provider, as environment or as files of mode 0600.", schema: jsList(jsOr(jsText(), jsMap())), later: []Feature{FeatureManagedSecrets},
			read: readManagedSecrets, write: writeManagedSecrets,
		},
		{
			name: "file_mounts", forms: "map of path on the node to local path, bucket URL or object", doc: "Files and buckets put on every node.", schema: jsMapOf(jsOr(jsText(), jsRef("file_mounts.*"))),
			read: readFileMounts, write: writeFileMounts,
		},
		{
			name: "volumes", forms: "map of path on the node to volume name or object", doc: "Volumes mounted on the nodes.", schema: jsMapOf(jsOr(jsText(), jsRef("volumes.*"))), later: []Feature{FeatureVolumes},
			read: readVolumes, write: writeVolumes,
		},
		scriptField("setup", "Shell commands run on every node at launch.", func(t *Task) *string { return &t.Setup }),
		scriptField("run", "Shell commands of the job, run on every node of the task. Without it a launch only brings the cluster up.", func(t *Task) *string { return &t.Run }),
		{
			name: "service", forms: "object", doc: "Makes the task a replicated service; not with pool.", schema: jsRef("service"), later: []Feature{FeatureServe},
			read: func(v val, t *Task) {
				t.Service = &Service{}
				serviceObject.read(v, t.Service)
				checkService(v, t.Service)
			},
			write: func(t *Task) any { return keepEmpty(t.Service != nil, writeObject(serviceObject, t.Service)) },
		},
		{
			name: "pool", forms: "object", doc: "Makes the task a pool of workers; not with service.", schema: jsRef("pool"), later: []Feature{FeaturePools},
			read: func(v val, t *Task) {
				t.Pool = &Pool{}
				poolObject.read(v, t.Pool)
				checkPool(v, t.Pool)
			},
			write: func(t *Task) any { return writeObject(poolObject, t.Pool) },
		},
		{
			name: "config", forms: "object", doc: "Overrides of the configuration for this task, and lifecycle hooks.", schema: jsRef("config"),
			read:  func(v val, t *Task) { configObject.read(v, &t.Config) },
			write: func(t *Task) any { return writeObject(configObject, &t.Config) },
		},
		boolPtrField("api_server_access", "Let a managed job call the server. A server for one machine gives no access.", func(t *Task) **bool { return &t.APIServerAccess }).defaults("true"),
		textField("event_callback", "Shell command run when the state of a managed job changes.", func(t *Task) *string { return &t.EventCallback }).needs(FeatureEventCallback),
		dataField("inputs", "Where the input lies and its size in GB; helps to choose a place.", func(t *Task) **DataSize { return &t.Inputs }),
		dataField("outputs", "Where the output goes and its size in GB; helps to choose a place.", func(t *Task) **DataSize { return &t.Outputs }),
		field[Task]{
			name: "checkpoint", forms: "folder, or object", doc: "Saves a folder of the node, so that a recovered job goes on where it was.", schema: jsOr(jsText(), jsRef("checkpoint")),
			read: readCheckpoint, write: func(t *Task) any { return writeObject(checkpointObject, t.Checkpoint) },
		}.own().needs(FeatureCheckpoint),
		field[Task]{
			name: "array", forms: "count, or object", doc: "Runs the job once for each element.", schema: jsOr(jsRange(1, MaxArrayElements), jsRef("array")),
			read: readArray, write: func(t *Task) any { return writeObject(arrayObject, t.Array) },
		}.own().needs(FeatureArray),
		field[Task]{
			name: "schedule", forms: "cron text, or object", doc: "Starts the job again and again.", schema: jsOr(jsText(), jsRef("schedule")),
			read: readSchedule, write: writeSchedule,
		}.own().needs(FeatureSchedule),
		field[Task]{
			name: "notify", forms: "URL, object, or list of them", doc: "Posts changes of state to web addresses.", schema: jsOr(jsText(), jsRef("notify[]"), jsList(jsOr(jsText(), jsRef("notify[]")))),
			read: readNotify, write: func(t *Task) any { return writeList(notifyObject, t.Notify) },
		}.own().needs(FeatureNotify),
		{name: "_metadata", hidden: true, read: func(val, *Task) {}},
		{name: "_user_specified_yaml", hidden: true, read: func(val, *Task) {}},
		{name: "file_mounts_mapping", hidden: true, read: func(val, *Task) {}},
		{name: "volume_mounts", hidden: true, read: func(val, *Task) {}},
	}
}

// keepEmpty renders a section that is there but empty as {}.
func keepEmpty(there bool, o any) any {
	if there && o == nil {
		return omap{}
	}
	return o
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

func scriptField(name, doc string, at func(*Task) *string) field[Task] {
	return field[Task]{
		name: name, doc: doc, forms: "text, or list of lines", schema: jsOr(jsText(), jsTexts()),
		read: func(v val, t *Task) {
			if v.n.Kind == yaml.SequenceNode {
				lines, _ := v.texts()
				*at(t) = strings.Join(lines, "\n")
				return
			}
			if s, ok := v.str(); ok {
				*at(t) = s
			}
		},
		write: func(t *Task) any { return optional(*at(t)) },
	}
}

func dataField(name, doc string, at func(*Task) **DataSize) field[Task] {
	return field[Task]{
		name: name, doc: doc, forms: "map with one `url: GB`", schema: js{"type": "object", "additionalProperties": jsNum(), "minProperties": 1, "maxProperties": 1},
		read: func(v val, t *Task) {
			n := 0
			v.each(func(key string, kv, c val) {
				if n++; n == 2 {
					kv.fail("must have exactly one entry, url: size in GB")
				}
				if size, ok := c.number(0, false); ok {
					*at(t) = &DataSize{URL: key, SizeGB: size}
				}
			})
			if n == 0 {
				v.fail("must have exactly one entry, url: size in GB")
			}
		},
		write: func(t *Task) any {
			if d := *at(t); d != nil {
				return omap{{d.URL, d.SizeGB}}
			}
			return nil
		},
	}
}

// checkEnv says what is wrong with a name and its value, or nothing.
func checkEnv(name, value string) string {
	switch {
	case !envName.MatchString(name):
		return fmt.Sprintf("%q is not an environment name (letters, digits and _, not starting with a digit)", clip(name))
	case strings.ContainsRune(value, 0):
		return fmt.Sprintf("the value of %s holds a NUL byte", name)
	case !utf8.ValidString(value):
		return fmt.Sprintf("the value of %s is not UTF-8 text", name)
	}
	return ""
}

func readEnvs(v val, t *Task) {
	t.Envs = map[string]string{}
	v.each(func(key string, kv, c val) {
		if msg := checkEnv(key, ""); msg != "" {
			kv.fail("%s", msg)
			return
		}
		if c.isNull() {
			v.p.required[key] = c
			return
		}
		if s, ok := c.text(); ok {
			t.Envs[key] = s
		}
	})
}

const refPrefix = "secrets:"

func readSecrets(v val, t *Task) {
	t.Secrets = map[string]Secret{}
	add := func(c val, name string, s Secret) {
		if _, twice := t.Secrets[name]; twice {
			c.fail("%s is given twice", name)
		}
		t.Secrets[name] = s
	}
	ref := func(c val, text string) {
		name := strings.TrimPrefix(text, refPrefix)
		m := secretRef.FindStringSubmatch(name)
		if m == nil {
			c.fail("%q does not name a managed secret; write secrets:NAME, or secrets:personal.NAME, workspace.NAME or global.NAME", clip(text))
			return
		}
		add(c, m[1], Secret{Ref: name})
	}
	if v.n.Kind == yaml.SequenceNode {
		v.items(func(_ int, c val) {
			s, ok := c.str()
			switch {
			case !ok:
			case !strings.HasPrefix(s, refPrefix):
				c.fail("an entry of a list must start with %q; a secret with a value is written as a map, NAME: value", refPrefix)
			default:
				ref(c, s)
			}
		})
		return
	}
	v.each(func(key string, kv, c val) {
		switch {
		case strings.HasPrefix(key, refPrefix) && !c.isNull():
			kv.fail("%q refers to a managed secret and takes no value", clip(key))
		case strings.HasPrefix(key, refPrefix):
			ref(kv, key)
		case c.isNull():
			if msg := checkEnv(key, ""); msg != "" {
				kv.fail("%s", msg)
				return
			}
			add(kv, key, Secret{})
		default:
			if msg := checkEnv(key, ""); msg != "" {
				kv.fail("%s", msg)
				return
			}
			if c.n.Kind != yaml.ScalarNode { // the value must not reach a message
				c.fail("must be a single value")
				return
			}
			add(kv, key, Secret{Value: c.n.Value, Inline: true})
		}
	})
}

func writeSecrets(t *Task) any {
	var out omap
	for _, name := range sortedKeys(t.Secrets) {
		switch s := t.Secrets[name]; {
		case s.Inline:
			out = append(out, entry{name, s.Value})
		case s.Ref != "":
			out = append(out, entry{refPrefix + s.Ref, null{}})
		default:
			out = append(out, entry{name, null{}})
		}
	}
	return out.orNil()
}

func readManagedSecrets(v val, t *Task) {
	v.items(func(_ int, c val) {
		var m ManagedSecret
		if c.n.Kind == yaml.MappingNode {
			if len(c.n.Content) != 2 {
				c.fail("must be NAME or {NAME: {mount_path: P}}")
				return
			}
			c.each(func(key string, _, inner val) {
				m.Name = key
				if !inner.isNull() {
					managedForm.read(inner, &m)
				}
			})
		} else {
			s, ok := c.str()
			if !ok {
				return
			}
			m.Name = strings.TrimPrefix(s, refPrefix)
		}
		if !secretRef.MatchString(m.Name) {
			c.fail("%q does not name a managed secret", clip(m.Name))
			return
		}
		t.ManagedSecrets = append(t.ManagedSecrets, m)
	})
}

func writeManagedSecrets(t *Task) any {
	var out []any
	for _, m := range t.ManagedSecrets {
		if m.MountPath == "" {
			out = append(out, m.Name)
		} else {
			out = append(out, omap{{m.Name, omap{{"mount_path", m.MountPath}}}})
		}
	}
	if out == nil {
		return nil
	}
	return out
}

func readHooks(v val, c *Config) {
	v.items(func(i int, e val) {
		if i == maxHooks {
			e.fail("at most %d hooks are allowed", maxHooks)
		}
		if i >= maxHooks {
			return
		}
		var h Hook
		hookObject.read(e, &h)
		if len(h.Run) == 0 || len(h.Run) > maxHookBytes {
			e.fail("run must have 1 to %d bytes", maxHookBytes)
		}
		if h.TimeoutSeconds == 0 {
			h.TimeoutSeconds = DefaultHookTimeoutSec
		}
		if len(h.Events) == 0 {
			h.Events = append([]string(nil), hookEvents...)
		}
		sort.Slice(h.Events, func(i, j int) bool { return eventRank(h.Events[i]) < eventRank(h.Events[j]) })
		c.Hooks = append(c.Hooks, h)
	})
}

func eventRank(s string) int {
	for i, e := range hookEvents {
		if e == s {
			return i
		}
	}
	return len(hookEvents)
}
