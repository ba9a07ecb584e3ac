package config

import (
	"reflect"
	"strings"
	"testing"
)

func TestIdleSettings(t *testing.T) {
	c, err := Parse("c", []byte(`
api_server: {requests_retention_hours: 1, daemon_log_max_bytes: 5}
workspaces: {team: {private: true}}
rbac: {default_role: user}
kubernetes: {namespace: x, ports: null}
ssh: {allowed_node_pools: [a], provision_timeout: 3}
jobs: {limits: {running: 3}, controller: {resources: {cpus: 4}}}
server: {port: 1}
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"api_server.daemon_log_max_bytes", "jobs.controller", "kubernetes.namespace", "rbac.default_role", "ssh.provision_timeout", "workspaces"}
	if got := c.Idle(); !reflect.DeepEqual(got, want) {
		t.Errorf("%v", got)
	}
	if got := (*Config)(nil).Idle(); got != nil {
		t.Errorf("%v", got)
	}
}

func TestSettingsThatAreRefused(t *testing.T) {
	for text, want := range map[string]string{
		"db: 'postgres://x'":           "/f: db: a database of one's own comes with a later release",
		"admin_policy: my.Policy":      "/f: admin_policy: policies come with a later release",
		"admin_policy: null":           "",
		"jobs: {bucket: 's3://b'}\n":   "",
		"server: {log_level: debug}\n": "",
	} {
		c, err := Parse("/f", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		err = c.CheckServer()
		if (err == nil) != (want == "") || err != nil && !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestForServer(t *testing.T) {
	c := New(map[string]any{
		"api_server": map[string]any{"service_account_token": "sky_secret"}, "temporal": map[string]any{"api_key": "key"}, "db": "postgres://u:p@h/d",
		"jobs": map[string]any{"webhook_secret": "whsec_x", "bucket": "s3://b"}, "active_workspace": "w",
	})
	want := map[string]any{"jobs": map[string]any{"bucket": "s3://b"}, "active_workspace": "w"}
	if got := c.ForServer().Tree(); !reflect.DeepEqual(got, want) {
		t.Errorf("%v", got)
	}
	if c.Text("temporal.api_key", "") == "" {
		t.Error("the configuration itself was changed")
	}
}

func TestReferenceNamesEverySetting(t *testing.T) {
	text := string(Reference())
	for _, k := range Keys() {
		if k.Doc != "" && !strings.Contains(text, "| `"+k.Path+"`") {
			t.Errorf("%s is not in the reference", k.Path)
		}
	}
	for _, want := range []string{"| `server.idle_exit` ⁺ |", "| `rbac.default_role` ○ |", "`kubernetes`", "| `ssh.disabled` |"} {
		if !strings.Contains(text, want) {
			t.Errorf("the reference lacks %s", want)
		}
	}
}
