package task

import (
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"
	"pgregory.net/rapid"

	"github.com/skyloom/skyloom/task/yamldoc"
)

// awkwardText are values that a careless writer of YAML gets wrong.
var awkwardText = []string{
	"", " ", "\n", "a\n", "a\n\n", "\na", " a", "a ", "a\n  b\n", "  a\nb", "a\r\nb", "a\tb", "\ta", "a: b", "a #b", "#a", "- a", "? a", "null", "~", "true", "yes", "No", "on", "y",
	"1", "010", "0x1f", "1e3", "1_000", ".5", "1:30", "2024-01-01", ".inf", "<<", "=", "!a", "&a", "*a", "@a", "`a", "%a", "'a'", "\"a\"", "{a}", "[a]", "a,b", "é", "日本", "😀", "\u0085", "\u2028",
	"\ufeffa", "\x01", "\x7f", "\x1b[0m", "|", ">", "a\\b", "--- a", "...", "---", "a\n---\nb", "a\n...\nb\n", "$A ${B}", "a\n\tb\n", "a \nb", strings.Repeat("x ", 200), "0b1", "0o7", "+1", "-", ":", "a:", "secrets:A",
}

func anyText() *rapid.Generator[string] {
	return rapid.OneOf(rapid.SampledFrom(awkwardText), rapid.StringMatching(`[ -~\n]{0,30}`), rapid.StringOfN(rapid.Rune(), 0, 12, -1)).Filter(func(s string) bool { return !strings.Contains(s, "\x00") && !strings.Contains(s, "\ufffd") })
}

func script() *rapid.Generator[string] { return anyText() }

func envMap() *rapid.Generator[map[string]string] {
	return rapid.MapOfN(rapid.StringMatching(`[A-Z_][A-Z0-9_]{0,6}`), anyText(), 0, 4)
}

func nilIfEmpty[V any](m map[string]V) map[string]V {
	if len(m) == 0 {
		return nil
	}
	return m
}

func maybe[V any](t *rapid.T, name string, g *rapid.Generator[V]) *V {
	if rapid.Bool().Draw(t, name+"?") {
		return ptr(g.Draw(t, name))
	}
	return nil
}

func orZero[V any](t *rapid.T, name string, g *rapid.Generator[V]) V {
	if p := maybe(t, name, g); p != nil {
		return *p
	}
	var zero V
	return zero
}

func drawInfra(t *rapid.T) Infra {
	i, err := ParseInfra(rapid.SampledFrom([]string{"*", "aws", "gcp/us-central1", "*/r", "*/*/z", "aws/*/z", "k8s/a/b", "ssh/pool", "slurm/c/p", "local"}).Draw(t, "infra"))
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func drawAccelerators(t *rapid.T) Accelerators {
	list := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"H100:8", "H100:1", "A100-80GB:0.5", "16GB+:2", "nvidia:16GB:1", "L4:1"}), 0, 3, rapid.ID[string]).Draw(t, "acc")
	var text string
	switch {
	case len(list) == 0:
		return Accelerators{}
	case rapid.Bool().Draw(t, "ordered"):
		text = "['" + strings.Join(list, "', '") + "']"
	default:
		text = "{'" + strings.Join(list, "': null, '") + "': null}"
	}
	var n yaml.Node
	if err := yaml.Unmarshal([]byte(text), &n); err != nil {
		t.Fatal(err)
	}
	var r Resources
	readAccelerators(val{newParser(""), n.Content[0], ""}, &r)
	return r.Accelerators
}

func drawResources(t *rapid.T, inner bool) Resources {
	port := rapid.IntRange(1, 65535)
	gb := rapid.SampledFrom([]float64{0.5, 1, 4, 16, 1024})
	r := Resources{
		InstanceType: orZero(t, "itype", rapid.SampledFrom([]string{"m5.large", "1", "yes"})), DiskSizeGB: orZero(t, "disk", rapid.IntRange(1, 5000)),
		DiskTier: orZero(t, "tier", rapid.SampledFrom(diskTiers)), NetworkTier: orZero(t, "net", rapid.SampledFrom(networkTiers)),
		MaxHourlyCost: orZero(t, "cost", gb), UseSpot: maybe(t, "spot", rapid.Bool()), CPUs: CPUs{N: orZero(t, "cpus", gb)},
		Labels: nilIfEmpty(rapid.MapOfN(rapid.StringMatching(`[a-z./-]{1,8}`), anyText(), 0, 2).Draw(t, "labels")),
	}
	r.CPUs.AtLeast = r.CPUs.N > 0 && rapid.Bool().Draw(t, "+")
	if rapid.Bool().Draw(t, "memory?") {
		r.Memory = Memory{GB: gb.Draw(t, "memory"), AtLeast: rapid.Bool().Draw(t, "m+"), PerCPU: rapid.Bool().Draw(t, "mx")}
	}
	if rapid.Bool().Draw(t, "infra?") {
		r.Infra = drawInfra(t)
	}
	if rapid.Bool().Draw(t, "ports?") {
		for i, n := 0, rapid.IntRange(1, 4).Draw(t, "nports"); i < n; i++ {
			from := port.Draw(t, "from")
			r.Ports = r.Ports.Union(Ports{{from, min(65535, from+rapid.IntRange(0, 5).Draw(t, "span"))}})
		}
	}
	if rapid.Bool().Draw(t, "image?") {
		r.Images = rapid.SampledFrom([]map[string]string{{"": "docker:a/b:c"}, {"docker": "x", "r": "ami"}, {"r": "ami-1"}}).Draw(t, "image")
	}
	if rapid.Bool().Draw(t, "ldisk?") {
		r.LocalDisk = &LocalDisk{Mode: rapid.SampledFrom([]string{"nvme", "ssd"}).Draw(t, "mode"), SizeGB: gb.Draw(t, "lsize"), AtLeast: rapid.Bool().Draw(t, "l+")}
	}
	if inner {
		return r
	}
	r.Accelerators = drawAccelerators(t)
	r.Priority = maybe(t, "prio", rapid.IntRange(-1000, 1000))
	if rapid.Bool().Draw(t, "autostop?") {
		r.Autostop = rapid.SampledFrom([]*Autostop{{}, {Enabled: true, IdleMinutes: 5}, {Enabled: true, IdleMinutes: 60, Down: true, WaitFor: "none"}}).Draw(t, "autostop")
	}
	if rapid.Bool().Draw(t, "recovery?") {
		r.JobRecovery = rapid.SampledFrom([]*JobRecovery{{Strategy: "NONE"}, {}, {MaxRestartsOnErrors: 3, RecoverOnExitCodes: []int{1, 33}}, {Strategy: "FAILOVER", Extra: map[string]any{"x": nil, "y": map[string]any{}, "z": []any{1, "a", 1.5, true}}}}).Draw(t, "recovery")
		if reflect.DeepEqual(r.JobRecovery, &JobRecovery{}) {
			r.JobRecovery = nil
		}
	}
	if n := rapid.IntRange(0, 2).Draw(t, "alternatives"); n > 0 {
		var list []Resources
		for i := 0; i < n; i++ {
			list = append(list, drawResources(t, true))
		}
		if rapid.Bool().Draw(t, "any_of") {
			r.AnyOf = list
		} else {
			r.Ordered = list
		}
	}
	return r
}

func drawTask(t *rapid.T) *Task {
	task := &Task{
		Name: orZero(t, "name", rapid.SampledFrom([]string{"a", "a-b", "1", "no", "1.5", "x--y", "007"})), NumNodes: rapid.IntRange(1, 5).Draw(t, "nodes"),
		Setup: script().Draw(t, "setup"), Run: script().Draw(t, "run"), Envs: nilIfEmpty(envMap().Draw(t, "envs")), EventCallback: script().Draw(t, "callback"),
		APIServerAccess: maybe(t, "access", rapid.Bool()), Resources: drawResources(t, false),
	}
	secrets := map[string]Secret{}
	for k, v := range envMap().Draw(t, "secrets") {
		secrets[k] = rapid.SampledFrom([]Secret{{Value: v, Inline: true}, {}, {Ref: "global." + k}}).Draw(t, "secret")
	}
	task.Secrets = nilIfEmpty(secrets)
	switch rapid.IntRange(0, 3).Draw(t, "workdir") {
	case 1:
		task.Workdir = &Workdir{Path: rapid.SampledFrom([]string{".", "~/x y", "null", "12", "./a#b"}).Draw(t, "path")}
	case 2:
		task.Workdir = &Workdir{Path: ".", Mirror: true}
	case 3:
		task.Workdir = &Workdir{URL: "ssh://git@h/x.git", Ref: orZero(t, "ref", rapid.SampledFrom([]string{"main", "1234567", "1e5"}))}
	}
	for _, dst := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"/a", "/b c", "rel", "~/x", "true"}), 0, 3, rapid.ID[string]).Draw(t, "mounts") {
		m := rapid.SampledFrom([]FileMount{{Src: "./x"}, {Src: "s3://b/k"}, {Storage: &Storage{Name: "n"}}, {Storage: &Storage{Name: "n", Source: []string{"a", "b"}, SourceIsList: true, Mode: "COPY", Persistent: ptr(false)}},
			{Storage: &Storage{Source: []string{"gs://b"}, Mode: "MOUNT_CACHED", Type: "DATASET_RO", Config: map[string]any{"mount_cached": map[string]any{"transfers": 3, "vfs_cache_max_size": "10G"}}}}}).Draw(t, "mount")
		m.Dst = dst
		task.FileMounts = append(task.FileMounts, m)
	}
	for _, dst := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"/v", "~/w"}), 0, 2, rapid.ID[string]).Draw(t, "volumes") {
		v := rapid.SampledFrom([]VolumeMount{{Name: "v"}, {Name: "v", SubPath: "a/b"}, {Ephemeral: &EphemeralVolume{SizeGB: 3, Type: "k8s-pvc", Config: map[string]any{"access_mode": "x"}}}}).Draw(t, "volume")
		v.Dst = dst
		task.Volumes = append(task.Volumes, v)
	}
	if rapid.Bool().Draw(t, "hooks?") {
		task.Config = Config{Hooks: []Hook{{Run: "save\n", Events: []string{"stop", "down"}, TimeoutSeconds: 60}}, Overrides: map[string]any{"docker": map[string]any{"run_options": []any{"a", "1"}}}}
	}
	if rapid.Bool().Draw(t, "ours?") {
		task.Checkpoint = &Checkpoint{Path: "~/c", Every: 90 * time.Second, Keep: 2, Scope: "all"}
		task.Array = &Array{Values: map[string][]string{"A": {"1", "x", ""}, "B_": {"true"}}, Parallel: 2}
		task.Schedule = &Schedule{Cron: "0 3 * * *", Timezone: orZero(t, "tz", rapid.Just("Europe/Berlin"))}
		task.Notify = []Notify{{URL: "https://a.example/x?y=1"}, {URL: "http://b.example", Events: []string{"failed"}}}
	}
	switch rapid.IntRange(0, 2).Draw(t, "serving") {
	case 1:
		task.Pool = &Pool{MinWorkers: ptr(0), MaxWorkers: ptr(3), UpscaleDelaySec: ptr(0.5)}
	case 2:
		task.Service = &Service{ReadinessProbe: Probe{Path: "/h", PostData: `{"a": [1]}`, Headers: map[string]string{"A": "1"}}, Policy: &ReplicaPolicy{MinReplicas: 1, MaxReplicas: ptr(2), TargetQPSPerReplica: 1.5}}
	}
	return task
}

func sortMounts(t *Task) {
	for i := 1; i < len(t.FileMounts); i++ {
		for j := i; j > 0 && t.FileMounts[j].Dst < t.FileMounts[j-1].Dst; j-- {
			t.FileMounts[j], t.FileMounts[j-1] = t.FileMounts[j-1], t.FileMounts[j]
		}
	}
	if len(t.Volumes) == 2 && t.Volumes[1].Dst < t.Volumes[0].Dst {
		t.Volumes[0], t.Volumes[1] = t.Volumes[1], t.Volumes[0]
	}
}

// TestRenderRoundTrip: a valid task, rendered and parsed, is the same task, and its rendering obeys the schema.
func TestRenderRoundTrip(t *testing.T) {
	schema := loadSchema(t)
	valid := 0
	rapid.Check(t, func(rt *rapid.T) {
		task := drawTask(rt)
		sortMounts(task)
		for _, simplify := range []func(){ // what was drawn need not go together: give way until it does
			func() { task.Service, task.Pool = nil, nil },
			func() { task.Resources.override(func(r *Resources) { r.Images = nil }) },
			func() { task.Resources.AnyOf, task.Resources.Ordered = nil, nil },
		} {
			if task.Validate() != nil {
				simplify()
			}
		}
		if task.Validate() != nil {
			return
		}
		valid++
		text := task.Render(SecretsInline)
		f, err := Parse("t.yaml", text, ParseOptions{})
		if err != nil {
			rt.Fatalf("%v\n%s", err, text)
		}
		f.Tasks[0].src = nil
		if !reflect.DeepEqual(f.Tasks[0], task) {
			rt.Fatalf("another task:\n%s\n got %+v\nwant %+v", text, f.Tasks[0], task)
		}
		if got := f.Tasks[0].Render(SecretsInline); string(got) != string(text) {
			rt.Fatalf("another rendering:\n%s\n%s", text, got)
		}
		if msg := schema.check(text); msg != "" {
			rt.Fatalf("the schema refuses it: %s\n%s", msg, text)
		}
		if len(task.Candidates()) == 0 {
			rt.Fatal("no candidates")
		}
		for k, s := range task.Secrets {
			if s.Inline && len(s.Value) > 12 && strings.Contains(string(task.Render(SecretsRedacted)), s.Value) && !strings.Contains(fmt.Sprint(task.Envs, task.Setup, task.Run), s.Value) {
				rt.Fatalf("%s shows", k)
			}
		}
	})
	if valid < 50 {
		t.Errorf("only %d of the drawn tasks were valid", valid)
	}
}

// validator checks a document against the part of JSON Schema that Schema uses.
type validator struct{ root map[string]any }

func loadSchema(t *testing.T) validator {
	t.Helper()
	var v validator
	if err := json.Unmarshal(Schema(), &v.root); err != nil {
		t.Fatal(err)
	}
	return v
}

func (v validator) check(text []byte) string {
	docs, err := yamldoc.Load("", text)
	if err != nil || len(docs) != 1 {
		return fmt.Sprint("not one document: ", err)
	}
	return v.match(v.root, yamldoc.Plain(docs[0]), "$")
}

func (v validator) match(schema map[string]any, x any, at string) string {
	if ref, ok := schema["$ref"].(string); ok {
		def, ok := v.root["definitions"].(map[string]any)[strings.TrimPrefix(ref, "#/definitions/")].(map[string]any)
		if !ok {
			return at + ": dangling " + ref
		}
		return v.match(def, x, at)
	}
	if options, ok := schema["anyOf"].([]any); ok {
		var msgs []string
		for _, a := range options {
			msg := v.match(a.(map[string]any), x, at)
			if msg == "" {
				msgs = nil
				break
			}
			msgs = append(msgs, msg)
		}
		if msgs != nil {
			return strings.Join(msgs, " | ")
		}
	}
	if want := schema["type"]; want != nil && !typeMatches(want, x) {
		return fmt.Sprintf("%s: %T is not %v", at, x, want)
	}
	if enum, ok := schema["enum"].([]any); ok {
		found := false
		for _, e := range enum {
			found = found || e == x
		}
		if !found {
			return fmt.Sprintf("%s: %v is not in %v", at, x, enum)
		}
	}
	switch x := x.(type) {
	case string:
		if p, ok := schema["pattern"].(string); ok && !regexp.MustCompile(p).MatchString(x) {
			return fmt.Sprintf("%s: %q does not match %s", at, x, p)
		}
	case int:
		return v.bounds(schema, float64(x), at)
	case float64:
		return v.bounds(schema, x, at)
	case []any:
		if items, ok := schema["items"].(map[string]any); ok {
			for i, e := range x {
				if msg := v.match(items, e, fmt.Sprintf("%s[%d]", at, i)); msg != "" {
					return msg
				}
			}
		}
	case map[string]any:
		props, _ := schema["properties"].(map[string]any)
		for k, e := range x {
			if p, ok := props[k].(map[string]any); ok {
				if msg := v.match(p, e, at+"."+k); msg != "" {
					return msg
				}
				continue
			}
			switch extra := schema["additionalProperties"].(type) {
			case bool:
				if !extra {
					return at + ": unknown " + k
				}
			case map[string]any:
				if msg := v.match(extra, e, at+"."+k); msg != "" {
					return msg
				}
			}
		}
	}
	return ""
}

func (v validator) bounds(schema map[string]any, x float64, at string) string {
	for key, bad := range map[string]func(float64) bool{"minimum": func(b float64) bool { return x < b }, "maximum": func(b float64) bool { return x > b }, "exclusiveMinimum": func(b float64) bool { return x <= b }} {
		if b, ok := schema[key].(float64); ok && bad(b) {
			return fmt.Sprintf("%s: %v breaks %s %v", at, x, key, b)
		}
	}
	return ""
}

func typeMatches(want, x any) bool {
	if list, ok := want.([]any); ok {
		for _, w := range list {
			if typeMatches(w, x) {
				return true
			}
		}
		return false
	}
	switch x := x.(type) {
	case nil:
		return want == "null"
	case string:
		return want == "string"
	case bool:
		return want == "boolean"
	case int:
		return want == "integer" || want == "number"
	case float64:
		return want == "number" || want == "integer" && x == math.Trunc(x)
	case []any:
		return want == "array"
	case map[string]any:
		return want == "object"
	}
	return false
}

func TestSchemaRefusesWhatTheParserRefuses(t *testing.T) {
	schema := loadSchema(t)
	for _, text := range []string{"nam: x", "num_nodes: many", "num_nodes: 0", "resources: {accelerator: x}", "run: [[1]]", "resources: {disk_tier: fast}", "service: {replicas: -1}", "config: {hooks: [{run: 1}]}", "checkpoint: {pth: x}"} {
		if schema.check([]byte(text)) == "" {
			t.Errorf("%s: accepted", text)
		}
		if _, err := Parse("t", []byte(text), ParseOptions{}); err == nil {
			t.Errorf("%s: parsed", text)
		}
	}
	for _, text := range []string{"{}", "envs: {A: 1, B: null}", "resources: {cpus: 4, ports: [80, '90-91']}", "pool: {workers: 1}\nfile_mounts: {/a: b}", "resources:\nrun:"} {
		if msg := schema.check([]byte(text)); msg != "" {
			t.Errorf("%s: %s", text, msg)
		}
	}
}

func TestReferenceNamesEveryField(t *testing.T) {
	text := string(ReferenceFor(NewFeatureSet()))
	for _, s := range sections() {
		for _, r := range s.rows {
			if !r.hidden && (!strings.Contains(text, "| `"+r.name+"`") || r.doc == "" || r.forms == "") {
				t.Errorf("%s.%s is not described", s.title, r.name)
			}
		}
	}
	if !strings.Contains(text, "*Not supported yet: opening ports.*") || strings.Contains(string(Reference()), "Not supported yet") {
		t.Error("notes on features")
	}
}
