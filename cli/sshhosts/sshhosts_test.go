package sshhosts

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/console"
	"github.com/skyloom/skyloom/cli/session"
	"github.com/skyloom/skyloom/internal/sshconfig"
)

// newSession is a person with a home of their own, at a server.
func newSession(t *testing.T, home, server string, env ...string) (*session.Session, *bytes.Buffer) {
	t.Helper()
	var errs bytes.Buffer
	vars := map[string]string{session.EnvEndpoint: server}
	for i := 0; i < len(env); i += 2 {
		vars[env[i]] = env[i+1]
	}
	return &session.Session{IO: &console.Console{In: strings.NewReader(""), Out: &errs, Err: &errs}, Now: time.Now, Dir: home, UserHome: home,
		LookupEnv: func(k string) (string, bool) { v, ok := vars[k]; return v, ok }, LoadConfig: session.LoadConfig}, &errs
}

func entries(t *testing.T, home string) string {
	t.Helper()
	cs, err := sshconfig.At(filepath.Join(home, ".skyloom")).Read()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for name, c := range cs {
		s := name + "=" + c.Hash
		for _, h := range c.Hosts {
			s += "," + h.IP + "/" + h.User + "/" + h.HostKey
		}
		out = append(out, s)
	}
	sort.Strings(out)
	return strings.Join(out, " ")
}

func TestSeen(t *testing.T) {
	home := t.TempDir()
	s, errs := newSession(t, home, "https://one")
	up := func(name, hash string, nodes int) api.Cluster {
		return api.Cluster{Name: name, Hash: hash, Status: api.ClusterUp, Nodes: nodes, HeadIP: "1.1.1.1", NodeIPs: []string{"10.0.0.1", "10.0.0.2"}[:nodes]}
	}
	stopped := api.Cluster{Name: "b", Hash: "b1", Status: api.ClusterStopped, Nodes: 1}
	Seen(s, []api.Cluster{stopped}, []string{"x"}, true)
	if _, err := os.Stat(filepath.Join(home, ".ssh")); err == nil {
		t.Error("a user without clusters got an ssh configuration")
	}
	for _, tt := range []struct {
		name       string
		listed     []api.Cluster
		missing    []string
		everything bool
		want       string
	}{
		{"those that are up", []api.Cluster{up("a", "a1", 2), stopped, up("c", "c1", 1)}, nil, false, "a=a1,1.1.1.1//,10.0.0.2// c=c1,1.1.1.1//"},
		{"not listed stays", []api.Cluster{up("a", "a1", 2)}, nil, false, "a=a1,1.1.1.1//,10.0.0.2// c=c1,1.1.1.1//"},
		{"another incarnation", []api.Cluster{up("a", "a2", 1)}, nil, false, "a=a2,1.1.1.1// c=c1,1.1.1.1//"},
		{"asked for and missing", nil, []string{"c", "never"}, false, "a=a2,1.1.1.1//"},
		{"starting again", []api.Cluster{{Name: "a", Hash: "a2", Status: api.ClusterInit}}, nil, false, ""},
		{"once more", []api.Cluster{up("a", "a2", 1), up("d", "d1", 1)}, nil, false, "a=a2,1.1.1.1// d=d1,1.1.1.1//"},
		{"everything was listed", []api.Cluster{up("d", "d1", 1)}, nil, true, "d=d1,1.1.1.1//"},
	} {
		Seen(s, tt.listed, tt.missing, tt.everything)
		if got := entries(t, home); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
	other, _ := newSession(t, home, "https://two")
	Seen(other, []api.Cluster{up("e", "e1", 1)}, []string{"d"}, true)
	Gone(other, "d")
	if got := entries(t, home); got != "d=d1,1.1.1.1// e=e1,1.1.1.1//" {
		t.Errorf("another server's entries: %s", got)
	}
	b, _ := os.ReadFile(filepath.Join(home, ".skyloom", "ssh", "config"))
	if !strings.Contains(string(b), "--server https://two --node 0 e\n") {
		t.Errorf("the server is not named:\n%s", b)
	}
	Gone(s, "d")
	if got := entries(t, home); got != "e=e1,1.1.1.1//" {
		t.Errorf("after stop: %s", got)
	}
	if errs.Len() > 0 {
		t.Errorf("said: %s", errs)
	}
}

func TestUp(t *testing.T) {
	answer := any(api.SSHHosts{Cluster: "dev", Hash: "h1", Hosts: []api.SSHHost{{IP: "1.2.3.4", User: "ana", HostKey: "ssh-ed25519 K0"}, {Rank: 1, IP: "1.2.3.5", User: "ana"}}})
	status, calls := 200, 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls++
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(answer)
	}))
	defer srv.Close()
	home := t.TempDir()
	s, errs := newSession(t, home, srv.URL)
	c := api.NewClient(srv.URL, "", api.WithPatience(0))
	ctx := context.Background()
	const want = "dev=h1,1.2.3.4/ana/ssh-ed25519 K0,1.2.3.5/ana/"
	if !Up(ctx, s, c, "dev", "h1", true)() || entries(t, home) != want {
		t.Fatalf("%s, said %s", entries(t, home), errs)
	}
	if !Up(ctx, s, c, "dev", "h1", true)() || calls != 1 {
		t.Errorf("%d calls for a cluster that is known", calls)
	}
	if !Up(ctx, s, c, "dev", "h1", false)() || calls != 2 {
		t.Errorf("%d calls after a launch", calls)
	}
	// A listing knows less, and takes nothing away.
	Seen(s, []api.Cluster{{Name: "dev", Hash: "h1", Status: api.ClusterUp, Nodes: 2, HeadIP: "9.9.9.9"}}, nil, true)
	if got := entries(t, home); got != want {
		t.Errorf("%s", got)
	}
	b, err := os.ReadFile(filepath.Join(home, ".ssh", "config"))
	if err != nil || !strings.Contains(string(b), "Include") {
		t.Errorf("%q, %v", b, err)
	}
	// An older server, and a cluster that has gone again: no word.
	status, answer = 404, api.Problem{Type: api.ErrNotFound, Detail: "there is no such address on this server"}
	if Up(ctx, s, c, "dev", "h2", false)() || errs.Len() > 0 {
		t.Errorf("said %s", errs)
	}
	status, answer = 500, api.Problem{Type: api.ErrInternal, Detail: "boom"}
	if Up(ctx, s, c, "dev", "h2", false)() || !strings.Contains(errs.String(), "ssh is not set up for clusters: boom") {
		t.Errorf("said %s", errs)
	}
	off, errs := newSession(t, t.TempDir(), srv.URL, EnvOff, "1")
	if before := calls; Up(ctx, off, c, "dev", "", false)() || calls != before {
		t.Error("it was switched off")
	}
	Seen(off, []api.Cluster{{Name: "dev", Status: api.ClusterUp}}, nil, true)
	Gone(off, "dev")
	if _, err := os.Stat(filepath.Join(off.UserHome, ".ssh")); err == nil || errs.Len() > 0 {
		t.Errorf("it was switched off; said %s", errs)
	}
}
