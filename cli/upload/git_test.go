package upload

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/task"
)

func gitOrigin(t *testing.T) (url, commit string) {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("git is not installed")
	}
	dir := filepath.Join(t.TempDir(), "origin")
	t.Setenv("GIT_CONFIG_GLOBAL", "/dev/null")
	for _, args := range [][]string{{"init", "-q", "-b", "main", dir}, {"-C", dir, "-c", "user.name=x", "-c", "user.email=x@y", "commit", "-q", "--allow-empty", "-m", "x"}, {"-C", dir, "tag", "v1"}} {
		if out, err := exec.Command("git", args...).CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	out, err := exec.Command("git", "-C", dir, "rev-parse", "HEAD").Output()
	if err != nil {
		t.Fatal(err)
	}
	return "file://" + dir, strings.TrimSpace(string(out))
}

func TestGitWorkdir(t *testing.T) {
	url, commit := gitOrigin(t)
	_, c, s, _ := setup(t)
	for _, tc := range []struct {
		name string
		task task.Task
		want map[string]string
	}{
		{"default branch", task.Task{Workdir: &task.Workdir{URL: url}}, map[string]string{"GIT_URL": url, "GIT_BRANCH": "main", "GIT_COMMIT_HASH": commit, "GIT_TAG": ""}},
		{"tag", task.Task{Workdir: &task.Workdir{URL: url, Ref: "v1"}}, map[string]string{"GIT_TAG": "v1", "GIT_BRANCH": "", "GIT_COMMIT_HASH": commit}},
		{"commit", task.Task{Workdir: &task.Workdir{URL: url, Ref: commit}}, map[string]string{"GIT_TAG": "", "GIT_BRANCH": "", "GIT_COMMIT_HASH": commit}},
		{"the task's own", task.Task{Workdir: &task.Workdir{URL: url}, Envs: map[string]string{"GIT_BRANCH": "mine"}}, map[string]string{"GIT_BRANCH": "mine", "GIT_COMMIT_HASH": commit}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			repo, err := Resolve(t.Context(), s, &tc.task)
			if err != nil {
				t.Fatal(err)
			}
			for k, want := range tc.want {
				if got := tc.task.Envs[k]; got != want {
					t.Errorf("%s=%q, not %q", k, got, want)
				}
			}
			files, err := Upload(t.Context(), s, c, &tc.task, Options{Repository: repo})
			if err != nil {
				t.Fatal(err)
			}
			if files.GitCommit != commit || len(files.Mounts) != 1 || files.Mounts[0].Dst != WorkdirDst || !files.Mounts[0].Prune || files.Mounts[0].Mirror {
				t.Errorf("%+v", files)
			}
		})
	}
	if repo, err := Resolve(t.Context(), s, &task.Task{Workdir: &task.Workdir{Path: "."}}); repo != nil || err != nil {
		t.Errorf("a folder is no repository: %v %v", repo, err)
	}
	_, err := Resolve(t.Context(), s, &task.Task{Workdir: &task.Workdir{URL: url, Ref: "v2"}})
	if e, ok := err.(*api.Error); !ok || e.Kind != api.ErrGit || !strings.Contains(e.Message, `"v2"`) {
		t.Errorf("%v", err)
	}
}

// TestGitVariable: the task's own secret counts more than its environment, and that more than the person's.
func TestGitVariable(t *testing.T) {
	_, _, s, _ := setup(t)
	look := s.LookupEnv
	s.LookupEnv = func(k string) (string, bool) {
		if k == envGitToken {
			return "of the person", true
		}
		return look(k)
	}
	tk := &task.Task{}
	var got []string
	got = append(got, variable(s, tk, envGitToken))
	tk.Envs = map[string]string{envGitToken: "of the task"}
	got = append(got, variable(s, tk, envGitToken))
	tk.Secrets = map[string]task.Secret{envGitToken: {Value: "secret", Inline: true}}
	got = append(got, variable(s, tk, envGitToken))
	if want := []string{"of the person", "of the task", "secret"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}
