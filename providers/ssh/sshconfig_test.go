package ssh

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func TestResolve(t *testing.T) {
	home := t.TempDir()
	os.MkdirAll(filepath.Join(home, ".ssh", "conf.d"), 0o700)
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(home, ".ssh", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("conf.d/inc", "Host inc\n  HostName 10.1.1.1\n")
	write("config", `# the user's
User everybody
Include conf.d/*
Host gpu-* !gpu-9
  HostName %h.example.com
  Port=2200
  IdentityFile "~/my keys/%r"
Host gpu-1
  User late
  ProxyJump bastion,user@two:23
Match host special exec "false"
  HostName never
Host box
  HostName 192.168.1.5
  IdentitiesOnly yes
  IdentityFile ~/.ssh/box
  IdentityAgent none
`)
	t.Setenv("SSH_AUTH_SOCK", "/agent")
	c := loadSSHConfig(home)
	def := func() (out []string) {
		for _, n := range defaultIdentities {
			out = append(out, filepath.Join(home, ".ssh", n))
		}
		return out
	}
	tests := []struct {
		host Host
		want target
	}{
		{Host{Name: "10.0.0.1"}, target{Name: "10.0.0.1", Addr: "10.0.0.1", Port: 22, User: "everybody", Identities: def(), AgentSock: "/agent"}},
		{Host{Name: "10.0.0.1", User: "u", Port: 5, IdentityFile: "~/k"}, target{Name: "10.0.0.1", Addr: "10.0.0.1", Port: 5, User: "u", Identities: []string{filepath.Join(home, "k")}, Only: true, AgentSock: "/agent"}},
		{Host{Name: "10.0.0.1", Password: "p"}, target{Name: "10.0.0.1", Addr: "10.0.0.1", Port: 22, User: "everybody", AgentSock: "/agent", Password: "p"}},
		{Host{Name: "inc"}, target{Name: "inc", Addr: "10.1.1.1", Port: 22, User: "everybody", Identities: def(), AgentSock: "/agent"}},
		{Host{Name: "gpu-1"}, target{Name: "gpu-1", Addr: "gpu-1.example.com", Port: 2200, User: "everybody", Identities: []string{filepath.Join(home, "my keys/everybody")}, AgentSock: "/agent",
			Jumps: []jump{{"", "bastion", 0}, {"user", "two", 23}}}},
		{Host{Name: "gpu-9"}, target{Name: "gpu-9", Addr: "gpu-9", Port: 22, User: "everybody", Identities: def(), AgentSock: "/agent"}},
		{Host{Name: "special"}, target{Name: "special", Addr: "special", Port: 22, User: "everybody", Identities: def(), AgentSock: "/agent"}},
		{Host{Name: "box"}, target{Name: "box", Addr: "192.168.1.5", Port: 22, User: "everybody", Identities: []string{filepath.Join(home, ".ssh/box")}, Only: true, AgentSock: "none"}},
		{Host{Name: "gpu-1", ProxyJump: "none"}, target{Name: "gpu-1", Addr: "gpu-1.example.com", Port: 2200, User: "everybody", Identities: []string{filepath.Join(home, "my keys/everybody")}, AgentSock: "/agent"}},
	}
	for _, tt := range tests {
		got, err := c.resolve(tt.host, home)
		if err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%+v:\ngot  %+v, %v\nwant %+v", tt.host, got, err, tt.want)
		}
	}
	if h, err := c.hop(jump{"", "box", 0}, home, target{User: "me", Identities: []string{"/k"}, Password: "p"}); err != nil || h.Addr != "192.168.1.5" || h.Password != "" {
		t.Errorf("a hop with a key of its own: %+v, %v", h, err)
	}
	if h, err := c.hop(jump{"", "elsewhere", 0}, home, target{User: "me", Identities: []string{"/k"}, Password: "p"}); err != nil || h.Identities[0] != "/k" || h.Password != "p" {
		t.Errorf("a hop without: %+v, %v", h, err)
	}
	if c := loadSSHConfig(filepath.Join(home, "nobody")); c.get("x", "hostname") != "" {
		t.Error("no file gives settings")
	}
}
