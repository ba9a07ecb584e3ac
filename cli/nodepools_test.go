package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/skyloom/skyloom/api"
)

func TestSSHUpDown(t *testing.T) {
	f := newFake(t)
	f.outcome.Result = json.RawMessage(`{"hosts":[{"pool":"lab","host":"a","ok":true,"cpus":8,"free_cpus":6,"memory_gb":32,"free_memory_gb":32,"gpus":"2 of 2 H100 free"},
		{"pool":"lab","host":"b","ok":false,"reason":"down","hint":"Turn it on."},{"pool":"other","host":"c","ok":true,"cpus":4,"free_cpus":4,"memory_gb":8,"free_memory_gb":8,"gpus":"no GPU","reason":"there is no sudo"}]}`)
	r := f.sky("", words("ssh up"))
	want := `Node pool: lab
HOST  STATUS  CPUS         MEMORY (GB)  GPUS              REASON
a     ready   6 of 8 free  32           2 of 2 H100 free  -
b     failed  -            -            -                 down
  b: Turn it on.

Node pool: other
HOST  STATUS  CPUS  MEMORY (GB)  GPUS    REASON
c     ready   4     8            no GPU  there is no sudo
`
	if r.code != 0 || r.out != want {
		t.Errorf("code %d, got\n%s\nwant\n%s", r.code, r.out, want)
	}
	if b := body[api.SSHBody](t, f, "ssh/up"); len(b.Pools) != 0 {
		t.Errorf("%+v", b)
	}
	if r = f.sky("", words("ssh up --infra ssh/lab --infra other -o json")); r.code != 0 || !strings.Contains(r.out, `"host": "a"`) {
		t.Errorf("%+v", r)
	}
	if b := body[api.SSHBody](t, f, "ssh/up"); !slices.Equal(b.Pools, []string{"lab", "other"}) {
		t.Errorf("%+v", b)
	}
	f.outcome.Result = json.RawMessage(`{"hosts":[{"pool":"lab","host":"b","ok":false,"reason":"down"}]}`)
	if r = f.sky("", words("ssh up")); r.code != 1 || !strings.Contains(r.err, "no host of pool lab can be used") {
		t.Errorf("%+v", r)
	}
	if r = f.sky("", words("ssh down --infra lab")); r.code != 1 || !strings.Contains(r.out, "b     not clean  down") || !strings.Contains(r.err, "1 host(s) of pool lab are not clean") {
		t.Errorf("%+v", r)
	}
	f.outcome.Result = json.RawMessage(`{"hosts":[{"pool":"lab","host":"a","ok":true}]}`)
	if r = f.sky("", words("ssh down")); r.code != 0 || !strings.Contains(r.out, "a     clean   -") {
		t.Errorf("%+v", r)
	}
	if r = f.sky("", words("ssh up lab")); r.code != 2 || !strings.Contains(r.err, "--infra") {
		t.Errorf("%+v", r)
	}
	if r = f.sky("", words("ssh up -f /no/such/file")); r.code != 1 || !strings.Contains(r.err, "/no/such/file") {
		t.Errorf("%+v", r)
	}
	file := filepath.Join(t.TempDir(), "p.yaml")
	if err := os.WriteFile(file, []byte("lab: {hosts: [a], password: secret}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.refuse["ssh_node_pools"] = &api.Error{Kind: api.ErrInvalid, Message: file + ":1:6: lab: wrong"}
	if r = f.sky("", append(words("ssh up -f"), file)); r.code != 1 || !strings.Contains(r.err, ":1:6: lab: wrong") {
		t.Errorf("%+v", r)
	}
	if b := body[api.SSHPools](t, f, "ssh_node_pools"); b.File != file || !strings.Contains(b.Content, "secret") {
		t.Errorf("%+v", b)
	}
	if slices.ContainsFunc(f.calls, func(c string) bool { return strings.Contains(c, "secret") }) {
		t.Error("the password is in an address")
	}
}
