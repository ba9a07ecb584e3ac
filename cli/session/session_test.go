package session

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/skyloom/skyloom/task"
)

func testSession(t *testing.T, env map[string]string, args ...string) *Session {
	t.Helper()
	home := t.TempDir()
	return &Session{Args: args, LookupEnv: func(k string) (string, bool) { v, ok := env[k]; return v, ok }, Dir: home, UserHome: home, LoadConfig: LoadConfig}
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// The environment goes before the configuration; without either the server is local.
func TestEndpoint(t *testing.T) {
	s := testSession(t, nil)
	if ep, err := s.Endpoint(); ep != "" || err != nil {
		t.Error(ep, err)
	}
	s = testSession(t, nil)
	writeFile(t, filepath.Join(s.UserHome, ".skyloom", "config.yaml"), "api_server: {endpoint: 'https://sky.test/', service_account_token: sky_a}\n")
	ep, err := s.Endpoint()
	tok, terr := s.token(ep)
	if ep != "https://sky.test" || err != nil || tok != "sky_a" || terr != nil {
		t.Error(ep, err, tok, terr)
	}
	s.LookupEnv = func(k string) (string, bool) {
		v, ok := map[string]string{EnvEndpoint: "http://127.0.0.1:1", EnvToken: "sky_b"}[k]
		return v, ok
	}
	ep, _ = s.Endpoint()
	tok, _ = s.token(ep)
	if ep != "http://127.0.0.1:1" || tok != "sky_b" {
		t.Error(ep, tok)
	}
	// A server of this machine that is named by its address takes the token of SKY_HOME; others never see it.
	s = testSession(t, nil)
	writeFile(t, filepath.Join(s.UserHome, ".skyloom", "token"), "local-token\n")
	for ep, want := range map[string]string{"http://127.0.0.1:9": "local-token", "http://localhost:9": "local-token", "https://sky.test": "", "http://10.0.0.1": ""} {
		if tok, err := s.token(ep); tok != want || err != nil {
			t.Errorf("%s: %q %v", ep, tok, err)
		}
	}
	for _, bad := range []string{"sky.test", "ftp://x", "http://", "://"} {
		if _, err := CheckEndpoint(bad, "x"); err == nil {
			t.Errorf("%q passes", bad)
		}
	}
}

func TestHome(t *testing.T) {
	s := testSession(t, nil)
	if h, err := s.Home(); err != nil || h != filepath.Join(s.UserHome, ".skyloom") {
		t.Error(h, err)
	}
	s = testSession(t, map[string]string{"SKY_HOME": "/x/y/"})
	if h, err := s.Home(); err != nil || h != "/x/y" {
		t.Error(h, err)
	}
	s = testSession(t, nil)
	s.UserHome = ""
	if _, err := s.Home(); err == nil || !strings.Contains(err.Error(), "SKY_HOME") {
		t.Error(err)
	}
}

func TestUser(t *testing.T) {
	s := testSession(t, map[string]string{EnvUser: `CORP\ana`})
	id := s.User()
	if id.Name != "ana" || len(id.Hash) != 8 || id.Hash != s.User().Hash {
		t.Errorf("%+v", id)
	}
	if other := testSession(t, map[string]string{EnvUser: "bob"}).User(); other.Hash == id.Hash {
		t.Error("two users, one hash")
	}
	if id := testSession(t, map[string]string{EnvUserID: "cafe"}).User(); id.Hash != "cafe" || id.Name == "" {
		t.Errorf("%+v", id)
	}
}

func TestBase(t *testing.T) {
	s := testSession(t, nil, "launch")
	writeFile(t, filepath.Join(s.UserHome, ".skyloom", "config.yaml"), "api_server: {service_account_token: sky_a}\nallowed_clouds: [aws]\ntemporal: {address: 'h:1', api_key: key}\njobs: {webhook_secret: whsec_a, bucket: 's3://b'}\n")
	s.ConfigFlags = []string{"provision.ssh_timeout=5"}
	s.Workspace = "team"
	b, err := s.Base()
	if err != nil || b.Workspace != "team" || len(b.RequestID) != 36 {
		t.Errorf("%+v %v", b, err)
	}
	// What only the server decides does not travel: it may be an address or a secret of another server.
	if want := map[string]any{"active_workspace": "team", "jobs": map[string]any{"bucket": "s3://b"}, "provision": map[string]any{"ssh_timeout": 5}}; !reflect.DeepEqual(b.Config, want) {
		t.Errorf("%v", b.Config)
	}
	if again, _ := s.Base(); again.RequestID == b.RequestID {
		t.Error("two requests, one id")
	}
}

func TestCommandLine(t *testing.T) {
	for _, tc := range [][2]string{
		{"launch -c dev task.yaml", "sky launch -c dev task.yaml"},
		{"launch --secret A=b --secret=C=d --secret E x", "sky launch --secret 'A=<redacted>' --secret='C=<redacted>' --secret E x"},
		{"api login --token sky_x -e u", "sky api login --token '<redacted>' -e u"},
		{"api login -t sky_x", "sky api login -t '<redacted>'"},
	} {
		got := testSession(t, nil, strings.Fields(tc[0])...).CommandLine()
		if strings.ReplaceAll(got, "'", "") != strings.ReplaceAll(tc[1], "'", "") {
			t.Errorf("%q, want %q", got, tc[1])
		}
	}
	if got := testSession(t, nil, "exec", "c", "echo $HOME; it's").CommandLine(); got != `sky exec c 'echo $HOME; it'\''s'` {
		t.Error(got)
	}
}

// --config lies over the task's own config section.
func TestRaiseFlags(t *testing.T) {
	s := testSession(t, nil)
	s.ConfigFlags = []string{"kubernetes.provision_timeout=7", "docker.run_options=x"}
	f, err := task.Parse("t.yaml", []byte("config:\n  kubernetes: {provision_timeout: 3}\nrun: x\n"), task.ParseOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.RaiseFlags(f.Tasks[0]); err != nil {
		t.Fatal(err)
	}
	o := f.Tasks[0].Config.Overrides
	if k, _ := o["kubernetes"].(map[string]any); k["provision_timeout"] != 7 || o["docker"] != nil {
		t.Errorf("%v", o)
	}
}

func TestErrors(t *testing.T) {
	var u *UsageError
	if !errors.As(Usagef("x %d", 1), &u) || u.Msg != "x 1" {
		t.Error(u)
	}
	if Exit(0) != nil {
		t.Error("code 0 is no error")
	}
}
