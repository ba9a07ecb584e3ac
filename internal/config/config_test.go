package config

import (
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/task"
)

// fakeEnv reads files from a map.
func fakeEnv(files, vars map[string]string) Env {
	return Env{
		Home: "/h/.skyloom", UserHome: "/h", Dir: "/p",
		Lookup: func(k string) (string, bool) { v, ok := vars[k]; return v, ok },
		ReadFile: func(p string) ([]byte, error) {
			if s, ok := files[p]; ok {
				return []byte(s), nil
			}
			return nil, &fs.PathError{Op: "open", Path: p, Err: fs.ErrNotExist}
		},
	}
}

func TestLoadClientLayers(t *testing.T) {
	const own, old, project = "/h/.skyloom/config.yaml", "/h/.sky/config.yaml", "/p/.sky.yaml"
	tests := []struct {
		name        string
		files, vars map[string]string
		flags       []string
		want        map[string]any
		wantErr     string
	}{
		{name: "nothing"},
		{name: "own file", files: map[string]string{own: "active_workspace: a", old: "active_workspace: b"}, want: map[string]any{"active_workspace": "a"}},
		{name: "old file where ours is absent", files: map[string]string{old: "active_workspace: b"}, want: map[string]any{"active_workspace": "b"}},
		{name: "project over user", files: map[string]string{own: "active_workspace: a\nnvidia_gpus: {disable_ecc: true}", project: "active_workspace: p"},
			want: map[string]any{"active_workspace": "p", "nvidia_gpus": map[string]any{"disable_ecc": true}}},
		{name: "flags over all", files: map[string]string{own: "active_workspace: a", project: "active_workspace: p"}, flags: []string{"active_workspace=f", "kubernetes.provision_timeout=600"},
			want: map[string]any{"active_workspace": "f", "kubernetes": map[string]any{"provision_timeout": 600}}},
		{name: "flag file", files: map[string]string{own: "active_workspace: a", "/p/c.yaml": "active_workspace: c"}, flags: []string{"c.yaml"}, want: map[string]any{"active_workspace": "c"}},
		{name: "variables", files: map[string]string{own: "active_workspace: a", "/x": "active_workspace: x", "/p/y": "jobs: {bucket: 's3://b'}"}, vars: map[string]string{"SKYPILOT_CONFIG": "/x", "SKYPILOT_PROJECT_CONFIG": "y"},
			want: map[string]any{"active_workspace": "x", "jobs": map[string]any{"bucket": "s3://b"}}},
		{name: "the more exact variable wins", files: map[string]string{"/x": "active_workspace: x", "/h/g": "active_workspace: g"}, vars: map[string]string{"SKYPILOT_CONFIG": "/x", "SKYPILOT_GLOBAL_CONFIG": "~/g"}, want: map[string]any{"active_workspace": "g"}},
		{name: "variable without a file", vars: map[string]string{"SKYPILOT_CONFIG": "/nope"}, wantErr: "SKYPILOT_CONFIG names the file /nope, which does not exist; correct it or unset it"},
		{name: "flag without a file", flags: []string{"nope.yaml"}, wantErr: "--config nope.yaml: neither a file that exists nor a setting like api_server.endpoint=URL"},
		{name: "two files", files: map[string]string{"/p/a": "", "/p/b": ""}, flags: []string{"a", "b"}, wantErr: "--config: only one file can be given"},
		{name: "file and setting", files: map[string]string{"/p/a": ""}, flags: []string{"a", "active_workspace=b"}, wantErr: "--config: a file and key=value settings can't be combined"},
		{name: "typed values", flags: []string{"kubernetes.allowed_contexts=[a, b]", "kubernetes.pricing.cpu=0.5", "gcp.labels={a: b}", "nvidia_gpus.disable_ecc=true", "aws.vpc_name=null", "jobs.bucket="},
			want: map[string]any{"kubernetes": map[string]any{"allowed_contexts": []any{"a", "b"}, "pricing": map[string]any{"cpu": 0.5}}, "gcp": map[string]any{"labels": map[string]any{"a": "b"}},
				"nvidia_gpus": map[string]any{"disable_ecc": true}, "aws": map[string]any{"vpc_name": nil}, "jobs": map[string]any{"bucket": ""}}},
		{name: "wrong flag", flags: []string{"active_workspce=b"}, wantErr: `--config: unknown setting "active_workspce"; did you mean "active_workspace"?`},
		{name: "unknown key", files: map[string]string{own: "active_workspace: a\nkubernets: {}\n"}, wantErr: `/h/.skyloom/config.yaml:2:1: unknown setting "kubernets"; did you mean "kubernetes"?`},
		{name: "unknown inner key", files: map[string]string{project: "temporal:\n  adress: x:1\n"}, wantErr: `/p/.sky.yaml:2:3: temporal: unknown setting "adress"; did you mean "address"?`},
		{name: "wrong types", files: map[string]string{project: "server: {port: a, idle_exit: soon}\napi_server: {endpoint: 'ftp://x'}\nlocal: 3\nallowed_clouds: [1]\n"}, wantErr: strings.Join([]string{
			"/p/.sky.yaml:1:16: server.port: must be a whole number", "/p/.sky.yaml:1:30: server.idle_exit: must be a duration like 30s, 10m or 2h", "/p/.sky.yaml:2:24: api_server.endpoint: must be an http or https address",
			"/p/.sky.yaml:3:8: local: must be an object with cpus, enabled, memory", "/p/.sky.yaml:4:17: allowed_clouds: must be text or a list of text"}, "\n")},
		{name: "plugins are free", files: map[string]string{own: "plugins: {x: {y: [1]}}"}, want: map[string]any{"plugins": map[string]any{"x": map[string]any{"y": []any{1}}}}},
		{name: "duplicate", files: map[string]string{own: "jobs: {}\njobs: {}\n"}, wantErr: `/h/.skyloom/config.yaml:2:1: key "jobs" is given twice (first at line 1); remove one`},
		{name: "two documents", files: map[string]string{own: "jobs: {}\n---\nserve: {}\n"}, wantErr: "/h/.skyloom/config.yaml:3: a configuration is one document; remove the --- lines"},
		{name: "text", files: map[string]string{own: "hello"}, wantErr: "/h/.skyloom/config.yaml:1:1: a configuration is an object (key: value)"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			c, err := LoadClient(fakeEnv(tc.files, tc.vars), tc.flags)
			if tc.wantErr != "" {
				if err == nil || err.Error() != tc.wantErr {
					t.Fatalf("got  %v\nwant %s", err, tc.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if want := tc.want; !reflect.DeepEqual(c.Tree(), want) && len(c.Tree())+len(want) > 0 {
				t.Errorf("got %v\nwant %v", c.Tree(), want)
			}
		})
	}
}

func TestMergeRules(t *testing.T) {
	parse := func(s string) *Config {
		c, err := Parse("c", []byte(s))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	base := parse("kubernetes: {allowed_contexts: [a], pod_config: {spec: {tolerations: [{key: x}], containers: [{name: c, env: [{name: A, value: '1'}]}]}}}")
	over := parse("kubernetes: {allowed_contexts: [b], pod_config: {spec: {tolerations: [{key: y}], containers: [{name: c, image: i, env: [{name: A, value: '2'}, {name: B}]}]}}}")
	before := base.Tree()
	want := parse("kubernetes: {allowed_contexts: [b], pod_config: {spec: {tolerations: [{key: x}, {key: y}], containers: [{name: c, image: i, env: [{name: A, value: '2'}, {name: B}]}]}}}")
	if got := base.Merge(over); !reflect.DeepEqual(got.Tree(), want.Tree()) {
		t.Errorf("got %v\nwant %v", got.Tree(), want.Tree())
	}
	if !reflect.DeepEqual(base.Tree(), before) {
		t.Error("merging changed the lower layer")
	}
}

func TestOverlayDropsWhatOnlyTheServerDecides(t *testing.T) {
	server := New(map[string]any{"api_server": map[string]any{"logs_retention_hours": 5}})
	client := New(map[string]any{
		"api_server": map[string]any{"endpoint": "http://x"}, "active_workspace": "w", "temporal": map[string]any{"address": "evil:1"},
		"jobs": map[string]any{"bucket": "s3://b", "controller": map[string]any{"consolidation_mode": true, "resources": map[string]any{}}},
	})
	got, dropped := server.Overlay(client)
	if want := []string{"api_server", "jobs.controller.consolidation_mode", "temporal"}; !reflect.DeepEqual(dropped, want) {
		t.Errorf("dropped %v", dropped)
	}
	if got.Int("api_server.logs_retention_hours", 0) != 5 || got.Endpoint() != "" || got.Text("active_workspace", "") != "w" || got.Text("jobs.bucket", "") != "s3://b" {
		t.Errorf("merged %v", got.Tree())
	}
	if client.Text("temporal.address", "") == "" {
		t.Error("the client's layer was changed")
	}
}

func TestNoRetentionIsNotForEver(t *testing.T) {
	c, err := Parse("c", []byte("api_server: {requests_retention_hours: 0, logs_retention_hours: -1}"))
	if err != nil {
		t.Fatal(err)
	}
	if r := c.Retention(); r.Requests != time.Minute || r.Logs >= 0 {
		t.Errorf("retention %+v", r)
	}
}

func TestSettings(t *testing.T) {
	c, err := Parse("c", []byte(`
api_server: {endpoint: "http://x:1/", requests_retention_hours: 0.5, logs_retention_hours: -1}
temporal: {address: "t:7233", namespace: n, api_key_file: /k, tls: {server_name: s}}
server: {port: 1234, idle_exit: 10m}
local: {enabled: false, cpus: 2, memory: 3.5}
health: {lost_after: 60}
allowed_clouds: [AWS, k8s]
memory_provider: true
`))
	if err != nil {
		t.Fatal(err)
	}
	tmp, err := c.Temporal()
	if err != nil || tmp.Address != "t:7233" || tmp.Namespace != "n" || !tmp.TLS.Enabled || tmp.TLS.ServerName != "s" {
		t.Errorf("temporal %+v %v", tmp, err)
	}
	if s := c.Server(); s.Port != 1234 || !s.PortSet || s.IdleExit != 10*time.Minute || !s.WebUI || s.LogLevel != "info" {
		t.Errorf("server %+v", s)
	}
	if r := c.Retention(); r.Requests != 30*time.Minute || r.Logs >= 0 || r.Events != 720*time.Hour {
		t.Errorf("retention %+v", r)
	}
	if l := c.Local(); l.Enabled == nil || *l.Enabled || l.CPUs != 2 || l.MemoryGB != 3.5 {
		t.Errorf("local %+v", l)
	}
	if h := c.Health(); h.LostAfter != time.Minute || h.SuspectAfter != 10*time.Second {
		t.Errorf("health %+v", h)
	}
	if _, on := c.MemoryProvider(); !on || c.Endpoint() != "http://x:1" || !reflect.DeepEqual(c.AllowedClouds(), []string{"aws", "kubernetes"}) {
		t.Errorf("%v", c.Tree())
	}
	var none *Config
	if d := none.Server(); d.Port != DefaultPort || d.PortSet {
		t.Errorf("defaults %+v", d)
	}
	for _, bad := range []string{"temporal: {api_key: x}", "temporal: {address: a, api_key: x, api_key_file: y}", "temporal: {address: a, tls: {cert_file: x}}"} {
		c, err := Parse("c", []byte(bad))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Temporal(); err == nil {
			t.Errorf("%s: no error", bad)
		}
	}
}

func TestTaskOverrides(t *testing.T) {
	f, err := task.Parse("t", []byte("config: {docker: {run_options: [x]}, kubernetes: {pod_config: {a: {b: 1}}}, hooks: [{run: x}]}"), task.ParseOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := TaskOverrides(f.Tasks[0])
	if err != nil || !reflect.DeepEqual(c.Texts("docker.run_options"), []string{"x"}) {
		t.Errorf("%v %v", c, err)
	}
	f, _ = task.Parse("t", []byte("config: {kubernetes: {namespace: x, pod_confg: {}}, db: x}"), task.ParseOptions{})
	_, err = TaskOverrides(f.Tasks[0])
	want := "config.db: can't be set from a task\nconfig.kubernetes.namespace: can't be set from a task\nconfig.kubernetes.pod_confg: can't be set from a task; did you mean \"kubernetes.pod_config\"?"
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

func TestServerFileWithDatabase(t *testing.T) {
	const own = "/h/.skyloom/config.yaml"
	if _, err := LoadServer(fakeEnv(map[string]string{own: "db: postgres://x\ntemporal: {address: a}"}, nil)); err != nil {
		t.Error(err)
	}
	if _, err := LoadServer(fakeEnv(map[string]string{own: "db: postgres://x\njobs: {bucket: b}"}, nil)); err == nil || !strings.Contains(err.Error(), "db is set") {
		t.Errorf("got %v", err)
	}
}

func TestHomeOf(t *testing.T) {
	for _, tc := range []struct{ sky, user, want string }{
		{"", "/h", "/h/.skyloom"}, {"/x/y/", "/h", "/x/y"}, {"~/z", "/h", "/h/z"}, {"~", "/h", "/h"}, {"", "", ""},
	} {
		got, err := HomeOf(tc.sky, tc.user)
		if filepath.ToSlash(got) != tc.want || (err != nil) != (tc.want == "") {
			t.Errorf("HomeOf(%q, %q) = %q, %v", tc.sky, tc.user, got, err)
		}
	}
	if got, _ := HomeOf("rel", "/h"); !filepath.IsAbs(got) {
		t.Errorf("relative: %q", got)
	}
}

func TestEditKeepsCommentsAndIsPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", FileName)
	if err := Edit(path, map[string]string{"api_server.endpoint": "http://a"}, nil); err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	os.WriteFile(path, []byte("# mine\njobs:\n  bucket: s3://b # keep\napi_server:\n  endpoint: http://a\n  service_account_token: sky_x\n"), 0o600)
	if err := Edit(path, map[string]string{"api_server.endpoint": "http://b"}, []string{"api_server.service_account_token", "nope.nope"}); err != nil {
		t.Fatal(err)
	}
	got, _ := os.ReadFile(path)
	if want := "# mine\njobs:\n  bucket: s3://b # keep\napi_server:\n  endpoint: http://b\n"; string(got) != want {
		t.Errorf("got\n%s", got)
	}
	if err := Edit(path, nil, []string{"api_server.endpoint", "jobs.bucket"}); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(path); strings.Contains(string(got), "api_server") {
		t.Errorf("got\n%s", got)
	}
	os.WriteFile(path, []byte("broken: ["), 0o600)
	if err := Edit(path, map[string]string{"api_server.endpoint": "http://b"}, nil); err == nil {
		t.Error("a broken file was edited")
	}
	if got, _ := os.ReadFile(path); string(got) != "broken: [" {
		t.Error("a broken file was changed")
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".config-*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

func TestEveryKeyIsDescribed(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range Keys() {
		if seen[k.Path] {
			t.Errorf("%s is listed twice", k.Path)
		}
		seen[k.Path] = true
		if _, cloud := cloudKeys[top(k.Path)]; k.Doc == "" && !cloud {
			t.Errorf("%s has no text", k.Path)
		}
	}
	for _, k := range task.ConfigOverridable {
		if !seen[k] {
			t.Errorf("%s may be set from a task but is not a setting", k)
		}
	}
	for _, k := range serverOnly {
		if tree().next[top(k)] == nil {
			t.Errorf("%s is dropped but is not a setting", k)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("api_server: {endpoint: http://x}\nkubernetes: {pod_config: {a: [1]}}"))
	f.Add([]byte("a: &a [*a]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("c", data)
		if err != nil {
			return
		}
		c.Merge(c).Server()
		if _, err := c.Temporal(); err == nil {
			c.Retention()
		}
	})
}
