package upload

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/cli/session"
	"github.com/skyloom/skyloom/cli/taskflags"
	"github.com/skyloom/skyloom/cli/upload/gitwork"
	"github.com/skyloom/skyloom/task"
)

// Environment that a git workdir reads, and that its task is given.
const (
	envGitToken  = "GIT_TOKEN"
	envGitSSHKey = "GIT_SSH_KEY_PATH"

	envGitURL    = "GIT_URL"
	envGitBranch = "GIT_BRANCH"
	envGitTag    = "GIT_TAG"
	envGitCommit = "GIT_COMMIT_HASH"
)

// Repository is the git repository that a task has as its workdir, at the commit that its ref had when it was asked for.
type Repository struct {
	repo    *gitwork.Repo
	version gitwork.Version
	shown   string
}

// Resolve looks the git workdir of a task up and tells the task of it in its environment. It comes before the task is put
// into words for the server. Nil: the task has no git workdir.
func Resolve(ctx context.Context, s *session.Session, t *task.Task) (*Repository, error) {
	if !t.Workdir.IsGit() {
		return nil, nil
	}
	home, err := s.Home()
	if err != nil {
		return nil, err
	}
	r := &Repository{shown: t.Workdir.URL, repo: &gitwork.Repo{URL: t.Workdir.URL, Ref: t.Workdir.Ref, Cache: filepath.Join(home, "cache", "git"), Environ: s.Environ}}
	if t.Workdir.Ref != "" {
		r.shown += " at " + t.Workdir.Ref
	}
	r.repo.Token = variable(s, t, envGitToken)
	if key := variable(s, t, envGitSSHKey); key != "" {
		if r.repo.SSHKey, err = taskflags.FS(s).Abs(key); err != nil {
			return nil, err
		}
	}
	live := s.IO.StartLive(s.Now)
	defer live.Close()
	live.Update("Asking "+r.shown, false)
	if r.version, err = r.repo.Resolve(ctx); err != nil {
		live.Fail()
		return nil, gitError(err)
	}
	envs := map[string]string{envGitURL: t.Workdir.URL, envGitCommit: r.version.Commit}
	switch r.version.Kind {
	case gitwork.Branch:
		envs[envGitBranch] = r.version.Name
	case gitwork.Tag:
		envs[envGitTag] = r.version.Name
	}
	if t.Envs == nil {
		t.Envs = map[string]string{}
	}
	for k, v := range envs {
		if _, own := t.Envs[k]; !own && v != "" {
			t.Envs[k] = v
		}
	}
	return r, nil
}

// variable is what a task is given under a name, or what the person has in the environment.
func variable(s *session.Session, t *task.Task, name string) string {
	if v := t.Secrets[name]; v.Inline {
		return v.Value
	}
	if v := t.Envs[name]; v != "" {
		return v
	}
	return s.Env(name)
}

func gitError(err error) error {
	var e *gitwork.Error
	if errors.As(err, &e) {
		return &api.Error{Kind: api.ErrGit, Message: "workdir: " + e.Msg, Hint: e.Hint}
	}
	return fmt.Errorf("workdir: %w", err)
}

// bring fetches the repository's files and uploads them as a folder.
func (u *uploader) bring(ctx context.Context, r *Repository) (*api.FileMount, error) {
	live := u.s.IO.StartLive(u.s.Now)
	live.Update("Fetching "+r.shown, false)
	folder, err := r.repo.CheckOut(ctx, r.version)
	if err != nil {
		live.Fail()
		live.Close()
		return nil, gitError(err)
	}
	defer folder.Close()
	live.Close()
	for _, w := range folder.Warnings {
		u.s.IO.Warnf("%s", w)
	}
	m, err := u.one(ctx, folder.Dir, r.shown)
	if err != nil {
		return nil, err
	}
	m.Dst, m.Prune, m.Source = WorkdirDst, true, r.shown
	return m, nil
}
