package ssh

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestParsePools(t *testing.T) {
	got, err := ParsePools("p.yaml", []byte(`
lab:
  user: ubuntu
  identity_file: ~/.ssh/lab
  password: x y
  hosts:
    - 10.0.0.1
    - gpu-box
    - {ip: 10.0.0.2, user: root, port: 2222, identity_file: /k, password: "z", proxy_jump: "me@bastion:22"}
cpu-only:
  hosts: ["fd00::1"]
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []Pool{
		{"lab", []Host{
			{Pool: "lab", Name: "10.0.0.1", User: "ubuntu", IdentityFile: "~/.ssh/lab", Password: "x y"},
			{Pool: "lab", Name: "gpu-box", User: "ubuntu", IdentityFile: "~/.ssh/lab", Password: "x y"},
			{Pool: "lab", Name: "10.0.0.2", User: "root", Port: 2222, IdentityFile: "/k", Password: "z", ProxyJump: "me@bastion:22"},
		}},
		{"cpu-only", []Host{{Pool: "cpu-only", Name: "fd00::1"}}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	for _, empty := range []string{"", "# nothing\n", "null\n"} {
		if got, err := ParsePools("p.yaml", []byte(empty)); err != nil || len(got) > 0 {
			t.Errorf("%q: %v, %v", empty, got, err)
		}
	}
}

func TestParsePoolsErrors(t *testing.T) {
	tests := []struct{ text, want string }{
		{"lab: 3\n", "p.yaml:1:6: lab: must be an object"},
		{"- a\n", "p.yaml:1:1: a pools file is an object"},
		{"lab: {user: x}\n", "p.yaml:1:6: lab.hosts: is missing"},
		{"lab:\n  hosts: []\n", "p.yaml:2:10: lab.hosts: must be a list"},
		{"lab:\n  hosts: 10.0.0.1\n", "p.yaml:2:10: lab.hosts: must be a list"},
		{"lab:\n  usr: x\n  hosts: [a]\n", `p.yaml:2:3: lab: unknown field "usr"; did you mean "user"?`},
		{"lab:\n  hosts:\n  - {user: x}\n", "p.yaml:3:5: lab.hosts[0].ip: is missing"},
		{"lab:\n  hosts:\n  - {ip: a, port: 99999}\n", `p.yaml:3:19: lab.hosts[0].port: "99999" is no port`},
		{"lab:\n  hosts:\n  - a\n  - a\n", "p.yaml:4:5: lab.hosts[1]: host a is listed twice (first at line 3)"},
		{"lab:\n  hosts:\n  - -oProxyCommand=x\n", "neither an address nor a name"},
		{"lab:\n  hosts:\n  - a b\n", "neither an address nor a name"},
		{"lab:\n  hosts:\n  - {ip: a, user: -x}\n", "no name of a user"},
		{"lab:\n  hosts:\n  - {ip: a, proxy_jump: 'a b'}\n", "no jump host"},
		{"lab:\n  hosts:\n  - [a]\n", "p.yaml:3:5: lab.hosts[0]: must be an address, or an object with ip"},
		{"a/b:\n  hosts: [a]\n", `"a/b" is no name for a pool`},
		{"a:\n  hosts: [a]\n---\nb:\n  hosts: [a]\n", "one document"},
		{"a:\n  hosts: [a\n", "p.yaml:"},
	}
	for _, tt := range tests {
		if _, err := ParsePools("p.yaml", []byte(tt.text)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %q", tt.text, err, tt.want)
		}
	}
}

func TestLoadPoolsFallsBack(t *testing.T) {
	home, user := t.TempDir(), t.TempDir()
	if p, err := LoadPools(home, user); err != nil || p.File != "" {
		t.Errorf("without a file: %+v, %v", p, err)
	}
	os.Mkdir(filepath.Join(user, ".sky"), 0o700)
	old := filepath.Join(user, ".sky", PoolsFile)
	os.WriteFile(old, []byte("a: {hosts: [x]}\n"), 0o600)
	if p, err := LoadPools(home, user); err != nil || p.File != old || len(p.Pools) != 1 {
		t.Errorf("%+v, %v", p, err)
	}
	own := filepath.Join(home, PoolsFile)
	os.WriteFile(own, []byte("b: {hosts: [x]}\n"), 0o600)
	if p, err := LoadPools(home, user); err != nil || p.File != own || p.Pools[0].Name != "b" {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestMergePools(t *testing.T) {
	home, user := t.TempDir(), t.TempDir()
	names, err := MergePools(home, user, "f.yaml", []byte("a: {hosts: [x]} # mine\nb: {hosts: [y]}\n"))
	if err != nil || !reflect.DeepEqual(names, []string{"a", "b"}) {
		t.Fatal(names, err)
	}
	if names, err = MergePools(home, user, "g.yaml", []byte("b:\n  password: secret\n  hosts: [z]\nc: {hosts: [w]}\n")); err != nil || !reflect.DeepEqual(names, []string{"b", "c"}) {
		t.Fatal(names, err)
	}
	p, err := LoadPools(home, user)
	if err != nil || !reflect.DeepEqual(p.Names(), []string{"a", "b", "c"}) || p.Pools[1].Hosts[0].Name != "z" || p.Pools[1].Hosts[0].Password != "secret" {
		t.Errorf("%+v, %v", p, err)
	}
	st, err := os.Stat(p.File)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the file, which holds passwords, is %v, %v", st.Mode(), err)
	}
	if b, _ := os.ReadFile(p.File); !strings.Contains(string(b), "# mine") {
		t.Errorf("comments are lost:\n%s", b)
	}
	for _, bad := range []string{"", "a: 3", "a: {hosts: [x]"} {
		if _, err := MergePools(home, user, "f.yaml", []byte(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	if after, _ := LoadPools(home, user); !reflect.DeepEqual(after, p) {
		t.Error("a bad file changed the pools")
	}
}

func FuzzParsePools(f *testing.F) {
	f.Add([]byte("a:\n  hosts: [x, {ip: y, port: 3}]\n  password: z\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		ps, err := ParsePools("f", b)
		if err == nil {
			for _, p := range ps {
				if len(p.Hosts) == 0 || !poolName.MatchString(p.Name) {
					t.Errorf("%q gave %+v", b, p)
				}
			}
		}
	})
}
