package gitwork

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// origin is a remote repository of two commits on main, a branch, and two tags.
type origin struct {
	t    *testing.T
	work string
	url  string
	env  []string
}

func newOrigin(t *testing.T) *origin {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("git is not installed")
	}
	home := t.TempDir()
	o := &origin{t: t, work: filepath.Join(home, "origin"), env: append(slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "GIT_") }),
		"HOME="+home, "XDG_CONFIG_HOME="+home, "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=x", "GIT_AUTHOR_EMAIL=x@y", "GIT_COMMITTER_NAME=x", "GIT_COMMITTER_EMAIL=x@y")}
	o.url = "file://" + o.work
	os.MkdirAll(o.work, 0o755)
	o.git("init", "-q", "-b", "main")
	o.commit("first", map[string]string{"a.txt": "one", "sub/run.sh": "echo hi"})
	o.git("tag", "v1")
	o.git("branch", "dev/old")
	o.commit("second", map[string]string{"a.txt": "two", "b.txt": "new"})
	o.git("tag", "-a", "-m", "x", "v2")
	return o
}

func (o *origin) git(args ...string) string {
	o.t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir, cmd.Env = o.work, o.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		o.t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func (o *origin) commit(msg string, files map[string]string) {
	o.t.Helper()
	for name, text := range files {
		p := filepath.Join(o.work, name)
		os.MkdirAll(filepath.Dir(p), 0o755)
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			o.t.Fatal(err)
		}
	}
	o.git("add", "-A")
	o.git("commit", "-q", "-m", msg)
}

func (o *origin) repo(ref string) *Repo {
	return &Repo{URL: o.url, Ref: ref, Cache: filepath.Join(filepath.Dir(o.work), "cache"), Environ: o.env}
}

func bring(t *testing.T, r *Repo) (*Folder, Version) {
	t.Helper()
	v, err := r.Resolve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f, err := r.CheckOut(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	return f, v
}

func read(t *testing.T, f *Folder, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(f.Dir, name))
	if err != nil {
		return ""
	}
	return string(b)
}

func TestRefs(t *testing.T) {
	o := newOrigin(t)
	first, second := o.git("rev-parse", "v1"), o.git("rev-parse", "HEAD")
	for _, c := range []struct {
		ref  string
		want Version
		a    string
	}{
		{"", Version{second, Branch, "main"}, "two"},
		{"main", Version{second, Branch, "main"}, "two"},
		{"dev/old", Version{first, Branch, "dev/old"}, "one"},
		{"v1", Version{first, Tag, "v1"}, "one"},
		{"v2", Version{second, Tag, "v2"}, "two"}, // annotated: the commit, not the tag
		{"refs/tags/v2", Version{second, Tag, "v2"}, "two"},
		{"refs/heads/dev/old", Version{first, Branch, "dev/old"}, "one"},
		{first, Version{first, Commit, ""}, "one"},
		{first[:8], Version{first, Commit, ""}, "one"},
	} {
		t.Run("ref "+c.ref, func(t *testing.T) {
			f, v := bring(t, o.repo(c.ref))
			defer f.Close()
			if v != c.want {
				t.Errorf("%+v, not %+v", v, c.want)
			}
			if got := read(t, f, "a.txt"); got != c.a {
				t.Errorf("a.txt is %q", got)
			}
			if (read(t, f, "b.txt") != "") != (c.a == "two") {
				t.Error("b.txt is of another commit")
			}
			cmd := exec.Command("git", "-C", f.Dir, "rev-parse", "HEAD")
			cmd.Env = o.env
			if out, err := cmd.Output(); err != nil || strings.TrimSpace(string(out)) != c.want.Commit {
				t.Errorf("HEAD is %s %v", out, err)
			}
		})
	}
}

func TestUsedAgain(t *testing.T) {
	o := newOrigin(t)
	f, _ := bring(t, o.repo("main"))
	before, err := os.Stat(filepath.Join(f.Dir, "a.txt"))
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	f, _ = bring(t, o.repo("main"))
	if now, _ := os.Stat(filepath.Join(f.Dir, "a.txt")); now == nil || !os.SameFile(now, before) || !now.ModTime().Equal(before.ModTime()) {
		t.Error("an unchanged commit was checked out again")
	}
	os.WriteFile(filepath.Join(f.Dir, "left by a crash"), nil, 0o644)
	os.WriteFile(filepath.Join(f.Dir, ".git", "index.lock"), nil, 0o644)
	f.Close()

	o.git("rm", "-q", "b.txt")
	o.commit("third", map[string]string{"a.txt": "three"})
	f, v := bring(t, o.repo("main"))
	defer f.Close()
	if read(t, f, "a.txt") != "three" || v.Commit != o.git("rev-parse", "HEAD") {
		t.Errorf("the branch moved, and a.txt is %q", read(t, f, "a.txt"))
	}
	for _, gone := range []string{"b.txt", "left by a crash"} {
		if _, err := os.Stat(filepath.Join(f.Dir, gone)); err == nil {
			t.Errorf("%s is still there", gone)
		}
	}
	// While it is in use nobody else gets it.
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := o.repo("main").CheckOut(ctx, v); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a folder in use was handed out: %v", err)
	}
}

func TestSubmodule(t *testing.T) {
	o, inner := newOrigin(t), newOrigin(t)
	o.env = append(o.env, "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=protocol.file.allow", "GIT_CONFIG_VALUE_0=always")
	o.git("submodule", "add", "-q", inner.url, "lib")
	o.commit("with lib", nil)
	f, _ := bring(t, o.repo(""))
	if read(t, f, "lib/a.txt") != "two" || len(f.Warnings) > 0 {
		t.Errorf("lib/a.txt is %q; %v", read(t, f, "lib/a.txt"), f.Warnings)
	}
	f.Close()
	os.RemoveAll(inner.work)
	r := o.repo("")
	r.Cache = t.TempDir()
	f, _ = bring(t, r)
	defer f.Close()
	if len(f.Warnings) != 1 || read(t, f, "a.txt") != "two" {
		t.Errorf("a submodule that is gone: %q", f.Warnings)
	}
}

func TestErrors(t *testing.T) {
	o := newOrigin(t)
	for _, c := range []struct {
		name string
		repo *Repo
		want []string
	}{
		{"no git", &Repo{URL: o.url, Git: "git-that-is-not-there", Cache: t.TempDir()}, []string{"git is not installed", "workdir: FOLDER"}},
		{"unknown branch", o.repo("mian"), []string{`no branch, tag or commit "mian"`, `Did you mean "main"?`}},
		{"unknown commit", o.repo("abcdef1234"), []string{`no branch, tag or commit "abcdef1234"`}},
		{"no repository", &Repo{URL: "file:///not/there", Cache: t.TempDir(), Environ: o.env}, []string{"no such repository", "GIT_TOKEN"}},
		{"password", &Repo{URL: "https://me:hunter2@example.com/x.git", Cache: t.TempDir()}, []string{"holds a password", "GIT_TOKEN"}},
		{"option as ref", &Repo{URL: o.url, Ref: "--upload-pack=x", Cache: t.TempDir()}, []string{"not a branch, tag or commit"}},
		{"option as url", &Repo{URL: "--upload-pack=x", Cache: t.TempDir()}, []string{"not one of a git repository"}},
		{"key away", &Repo{URL: "git@example.com:x/y.git", SSHKey: "/not/there", Cache: t.TempDir()}, []string{"/not/there", "GIT_SSH_KEY_PATH"}},
		{"nobody listens", &Repo{URL: "http://127.0.0.1:1/x.git", Cache: t.TempDir(), Environ: o.env}, []string{"can't be reached", "network"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := c.repo.Resolve(t.Context())
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("%v", err)
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not say %q", err, w)
				}
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("a password is told: %s", err)
			}
		})
	}
	// A full hash that does not exist shows when it is fetched.
	r := o.repo(strings.Repeat("12", 20))
	v, err := r.Resolve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.CheckOut(t.Context(), v); err == nil || !strings.Contains(err.Error(), "no branch, tag or commit") {
		t.Errorf("%v", err)
	}
}

// TestToken serves the repository by git's own HTTP backend, to those who know the token.
func TestToken(t *testing.T) {
	o := newOrigin(t)
	path, err := exec.Command("git", "--exec-path").Output()
	backend := filepath.Join(strings.TrimSpace(string(path)), "git-http-backend")
	if _, serr := os.Stat(backend); err != nil || serr != nil {
		t.Skip("git has no http-backend here")
	}
	var users []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, pass, ok := r.BasicAuth()
		if !ok || pass != "t0ken-of-mine" {
			w.Header().Set("WWW-Authenticate", `Basic realm="git"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		users = append(users, user)
		h := &cgi.Handler{Path: backend, Env: []string{"GIT_PROJECT_ROOT=" + filepath.Dir(o.work), "GIT_HTTP_EXPORT_ALL=1"}, Stderr: os.Stderr}
		h.ServeHTTP(w, r)
	}))
	defer srv.Close()
	repo := func(token string) *Repo {
		r := o.repo("main")
		r.URL, r.Token = srv.URL+"/origin", token
		// A helper of the user's that writes down what it is told.
		r.Environ = append(slices.Clone(o.env), "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=credential.helper",
			"GIT_CONFIG_VALUE_0=!tee -a "+filepath.Join(filepath.Dir(o.work), "noted")+" >/dev/null;:", "GIT_TOKEN="+token)
		return r
	}
	f, _ := bring(t, repo("t0ken-of-mine"))
	f.Close()
	if len(users) == 0 || users[0] != "x-access-token" {
		t.Errorf("users %q", users)
	}
	for _, c := range []struct{ token, want string }{{"", "set GIT_TOKEN"}, {"wrong-token-x", "check that the token in GIT_TOKEN"}} {
		_, err := repo(c.token).Resolve(t.Context())
		if err == nil || !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(c.want)) || strings.Contains(err.Error(), "wrong-token-x") {
			t.Errorf("token %q: %v", c.token, err)
		}
	}
	// The token is nowhere on the disk.
	filepath.WalkDir(filepath.Dir(o.work), func(p string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if b, _ := os.ReadFile(p); bytes.Contains(b, []byte("t0ken-of-mine")) {
				t.Errorf("the token stands in %s", p)
			}
		}
		return nil
	})
}

// TestSSH has a program in ssh's place that runs what it is told here.
func TestSSH(t *testing.T) {
	o := newOrigin(t)
	dir := t.TempDir()
	args := filepath.Join(dir, "args")
	script := fmt.Sprintf("#!/bin/sh\necho \"$@\" >>%s\nwhile [ $# -gt 1 ]; do shift; done\nexec sh -c \"$1\"\n", args)
	if err := os.WriteFile(filepath.Join(dir, "ssh"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(dir, "a key")
	os.WriteFile(key, nil, 0o600)
	for _, c := range []struct {
		name, key, want string
	}{{"own key", key, "-i " + key + " -o IdentitiesOnly=yes -o BatchMode=yes"}, {"ssh's own ways", "", "-o BatchMode=yes"}} {
		os.Remove(args)
		r := o.repo("v1")
		r.URL, r.SSHKey = "me@example.com:"+o.work, c.key
		r.Environ = append(slices.Clone(o.env), "PATH="+dir+":"+os.Getenv("PATH"))
		f, _ := bring(t, r)
		if read(t, f, "a.txt") != "one" {
			t.Errorf("%s: %q", c.name, read(t, f, "a.txt"))
		}
		f.Close()
		if got, _ := os.ReadFile(args); !strings.Contains(string(got), c.want) || !strings.Contains(string(got), "me@example.com") {
			t.Errorf("%s: ssh was called with %s", c.name, got)
		}
	}
}

func TestExplain(t *testing.T) {
	r := &Repo{URL: "git@host.example:x/y.git", Token: "sesame"}
	for said, want := range map[string]string{
		"git@host.example: Permission denied (publickey).\nfatal: Could not read from remote repository.":                        "access was refused",
		"Host key verification failed.\nfatal: Could not read from remote repository.":                                           "ssh-keygen -R",
		"ERROR: Repository not found.\nfatal: Could not read from remote repository.":                                            "no such repository",
		"ssh: Could not resolve hostname host.example: Name or service not known\nfatal: Could not read from remote repository.": "ssh: Could not resolve hostname",
		"remote: HTTP Basic: Access denied sesame\nfatal: Authentication failed for 'https://host.example/'":                     "GIT_TOKEN",
		"fatal: unable to access 'https://host.example/': The requested URL returned error: 403":                                 "access was refused",
		"fatal: write error: No space left on device":                                                                            "disk of this machine is full",
		"warning: something\nfatal: something odd about sesame":                                                                  "fatal: something odd about ***",
	} {
		err := r.explain(said, errors.New("exit status 128"))
		if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "sesame") {
			t.Errorf("%q gives %q", said, err)
		}
	}
}
