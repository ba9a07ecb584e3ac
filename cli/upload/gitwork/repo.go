package gitwork

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Kind says what a ref is.
type Kind string

// Kinds of refs. The default branch is a Branch.
const (
	Branch Kind = "branch"
	Tag    Kind = "tag"
	Commit Kind = "commit"
)

// Repo is a remote repository, and how to get at it.
type Repo struct {
	URL string
	// Ref is a branch, tag or commit; empty: the default branch.
	Ref string
	// Token authenticates over http(s). Without one, git's own credential helpers do.
	Token string
	// SSHKey is the path of a private key for ssh. Without one, ssh's configuration and default keys serve.
	SSHKey string
	// Cache is the folder below which working folders are kept, and its helper script.
	Cache string
	// Environ is what git is given, besides what it must have.
	Environ []string
	// Git is the program; empty: "git" on the PATH.
	Git string
}

// Version is what a ref points to.
type Version struct {
	Commit string // full hash
	Kind   Kind
	Name   string // of the branch or tag; empty for a commit
}

// Folder is a working folder at one commit. It is kept from others until Close.
type Folder struct {
	Dir     string
	Version Version
	// Warnings are for the person: submodules that could not be fetched.
	Warnings []string
	unlock   func()
}

// Close lets others use the folder.
func (f *Folder) Close() { f.unlock() }

// unusedFor is how long a working folder is kept without being used.
const unusedFor = 30 * 24 * time.Hour

// Resolve asks the remote what the ref is now. A full hash is taken as it is: that it exists shows at CheckOut.
func (r *Repo) Resolve(ctx context.Context) (Version, error) {
	if err := r.check(); err != nil {
		return Version{}, err
	}
	if isHash(r.Ref) {
		return Version{Commit: strings.ToLower(r.Ref), Kind: Commit}, nil
	}
	out, err := r.run(ctx, "", append([]string{"ls-remote", "--symref", "--", r.URL}, patterns(r.Ref)...)...)
	if err != nil {
		return Version{}, err
	}
	if v, ok := pick(out, r.Ref); ok {
		return v, nil
	}
	if r.Ref == "" {
		return Version{}, r.failure("the repository has no commits", "push something to it first, or name a branch with ref")
	}
	if len(r.Ref) >= 4 && isHex(r.Ref) {
		return r.abbreviated(ctx)
	}
	return Version{}, r.unknownRef(ctx)
}

// patterns name what a ref may be at the remote.
func patterns(ref string) []string {
	switch {
	case ref == "":
		return []string{"HEAD"}
	case strings.HasPrefix(ref, "refs/"):
		return []string{ref, ref + "^{}"}
	}
	return []string{"refs/heads/" + ref, "refs/tags/" + ref, "refs/tags/" + ref + "^{}"}
}

// pick reads the answer of ls-remote. A branch wins over a tag of the same name, as with git clone --branch.
func pick(out, ref string) (Version, bool) {
	var best Version
	rank := 0
	head := ""
	sc := bufio.NewScanner(strings.NewReader(out))
	for sc.Scan() {
		left, name, ok := strings.Cut(sc.Text(), "\t")
		if !ok {
			continue
		}
		if target, sym := strings.CutPrefix(left, "ref: "); sym {
			if name == "HEAD" {
				head = strings.TrimPrefix(target, "refs/heads/")
			}
			continue
		}
		if !isHash(left) {
			continue
		}
		v, k := Version{Commit: left}, 0
		plain := strings.TrimSuffix(name, "^{}")
		if strings.HasPrefix(ref, "refs/") && plain != ref {
			continue
		}
		switch {
		case ref == "" && name == "HEAD":
			v.Kind, v.Name, k = Branch, head, 4
		case strings.HasPrefix(name, "refs/heads/"):
			v.Kind, v.Name, k = Branch, strings.TrimPrefix(name, "refs/heads/"), 3
		case strings.HasPrefix(name, "refs/tags/"):
			v.Kind, v.Name, k = Tag, strings.TrimPrefix(plain, "refs/tags/"), 1
			if plain != name { // what an annotated tag points to
				k = 2
			}
		case strings.HasPrefix(ref, "refs/") && name == ref: // a pull request, say
			v.Kind, k = Commit, 1
		}
		if (v.Name == ref || ref == "" || strings.HasPrefix(ref, "refs/")) && k > rank {
			best, rank = v, k
		}
	}
	return best, rank > 0
}

// abbreviated looks a short hash up, for which the whole history is needed.
func (r *Repo) abbreviated(ctx context.Context) (Version, error) {
	f, err := r.open(ctx)
	if err != nil {
		return Version{}, err
	}
	defer f.Close()
	if err := r.everything(ctx, f.Dir); err != nil {
		return Version{}, err
	}
	out, err := r.run(ctx, f.Dir, "rev-parse", "--verify", "--quiet", "--end-of-options", r.Ref+"^{commit}")
	if hash := strings.TrimSpace(out); err == nil && isHash(hash) {
		return Version{Commit: hash, Kind: Commit}, nil
	}
	return Version{}, r.unknownRef(ctx)
}

// CheckOut brings the version to a working folder of the cache. What is there already is not fetched again.
func (r *Repo) CheckOut(ctx context.Context, v Version) (_ *Folder, err error) {
	f, err := r.open(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	f.Version = v
	ready := f.Dir + ".ready"
	if at, err := os.ReadFile(ready); err == nil && string(at) == r.mark(v) {
		return f, nil
	}
	_ = os.Remove(ready)
	if err := r.fetch(ctx, f.Dir, v); err != nil {
		return nil, err
	}
	checkout := []string{"checkout", "-q", "--force", "--detach", v.Commit, "--"}
	if v.Kind == Branch && v.Name != "" {
		checkout = []string{"checkout", "-q", "--force", "-B", v.Name, v.Commit, "--"}
	}
	for _, args := range [][]string{checkout, {"clean", "-ffdxq"}} {
		if _, err := r.run(ctx, f.Dir, args...); err != nil {
			return nil, err
		}
	}
	if _, err := os.Stat(filepath.Join(f.Dir, ".gitmodules")); err == nil {
		if _, err := r.run(ctx, f.Dir, "submodule", "update", "--init", "--recursive", "--force", "--depth", "1"); err != nil {
			if ctx.Err() != nil {
				return nil, err
			}
			f.Warnings = append(f.Warnings, fmt.Sprintf("submodules are missing: %v", err))
			return f, nil // not ready: tried again the next time
		}
	}
	return f, os.WriteFile(ready, []byte(r.mark(v)), 0o600)
}

// mark is what a folder says of itself once it is as it has to be.
func (r *Repo) mark(v Version) string { return v.Commit + " " + string(v.Kind) + " " + v.Name + "\n" }

// open gives the working folder of this URL and ref, with a repository in it, kept from others.
func (r *Repo) open(ctx context.Context) (*Folder, error) {
	if err := os.MkdirAll(r.Cache, 0o700); err != nil {
		return nil, err
	}
	r.prune()
	sum := sha256.Sum256([]byte(r.URL + "\x00" + r.Ref))
	dir := filepath.Join(r.Cache, hex.EncodeToString(sum[:10]))
	unlock, err := lock(ctx, dir+".lock")
	if err != nil {
		return nil, err
	}
	now := time.Now()
	_ = os.Chtimes(dir+".lock", now, now)
	f := &Folder{Dir: dir, unlock: unlock}
	if err := r.initialise(ctx, dir); err != nil {
		unlock()
		return nil, err
	}
	return f, nil
}

func (r *Repo) initialise(ctx context.Context, dir string) error {
	if _, err := os.Stat(filepath.Join(dir, ".git", "HEAD")); err == nil {
		// What a git that was killed left would stop the next one; nobody else is here.
		locks, _ := filepath.Glob(filepath.Join(dir, ".git", "*.lock"))
		for _, l := range locks {
			_ = os.Remove(l)
		}
		return nil
	}
	_ = os.RemoveAll(dir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if _, err := r.run(ctx, dir, "init", "-q", "--template="); err != nil {
		return err
	}
	_, err := r.run(ctx, dir, "remote", "add", "origin", r.URL)
	return err
}

// fetch gets the commit if it is not there: that alone, else the ref, else all there is.
func (r *Repo) fetch(ctx context.Context, dir string, v Version) error {
	if r.has(ctx, dir, v.Commit) {
		return nil
	}
	_, first := r.run(ctx, dir, "fetch", "-q", "--force", "--no-tags", "--depth", "1", "origin", v.Commit)
	if first == nil && r.has(ctx, dir, v.Commit) {
		return nil
	}
	if v.Name != "" { // a server that gives no commits by hash
		ref := "refs/heads/" + v.Name
		if v.Kind == Tag {
			ref = "refs/tags/" + v.Name
		}
		if _, err := r.run(ctx, dir, "fetch", "-q", "--force", "--no-tags", "--depth", "1", "origin", ref); err == nil && r.has(ctx, dir, v.Commit) {
			return nil
		}
	}
	if f, ok := first.(*Error); ok && f.decided {
		return first
	}
	if err := r.everything(ctx, dir); err != nil {
		return err
	}
	if !r.has(ctx, dir, v.Commit) {
		return r.unknownRef(ctx)
	}
	return nil
}

func (r *Repo) has(ctx context.Context, dir, commit string) bool {
	_, err := r.run(ctx, dir, "cat-file", "-e", commit+"^{commit}")
	return err == nil
}

// everything fetches all branches and tags with their history.
func (r *Repo) everything(ctx context.Context, dir string) error {
	args := []string{"fetch", "-q", "--force", "origin", "+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"}
	if _, err := os.Stat(filepath.Join(dir, ".git", "shallow")); err == nil {
		args = append([]string{"fetch", "-q", "--force", "--unshallow"}, args[3:]...)
	}
	_, err := r.run(ctx, dir, args...)
	return err
}

// prune removes folders that nobody has used for long.
func (r *Repo) prune() {
	locks, _ := filepath.Glob(filepath.Join(r.Cache, "*.lock"))
	for _, l := range locks {
		fi, err := os.Stat(l)
		if err != nil || time.Since(fi.ModTime()) < unusedFor {
			continue
		}
		now, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		if unlock, err := lock(now, l); err == nil {
			_ = os.RemoveAll(strings.TrimSuffix(l, ".lock"))
			_ = os.Remove(strings.TrimSuffix(l, ".lock") + ".ready")
			unlock()
		}
		cancel()
	}
}

// check judges what the caller gave.
func (r *Repo) check() error {
	if r.URL == "" || strings.HasPrefix(r.URL, "-") || strings.ContainsAny(r.URL, "\x00\n") {
		return r.failure("the url is not one of a git repository", "write https://..., ssh://... or user@host:path")
	}
	if u, err := url.Parse(r.URL); err == nil && u.User != nil {
		if _, ok := u.User.Password(); ok {
			return &Error{Msg: "the url holds a password", Hint: "leave it out, and give it in the environment as GIT_TOKEN", decided: true}
		}
	}
	if strings.HasPrefix(r.Ref, "-") || strings.ContainsAny(r.Ref, " \t\n\x00~^:?*[\\") || strings.Contains(r.Ref, "..") {
		return r.failure(fmt.Sprintf("%q is not a branch, tag or commit", r.Ref), "")
	}
	if r.SSHKey != "" && r.overSSH() {
		if fi, err := os.Stat(r.SSHKey); err != nil || fi.IsDir() {
			return r.failure(fmt.Sprintf("the key %s (GIT_SSH_KEY_PATH) can't be read", r.SSHKey), "set it to the path of a private key")
		}
	}
	return nil
}

func (r *Repo) overSSH() bool {
	return strings.HasPrefix(r.URL, "ssh://") || !strings.Contains(r.URL, "://") && strings.Contains(r.URL, ":")
}

func isHex(s string) bool {
	return s != "" && strings.Trim(s, "0123456789abcdefABCDEF") == "" && len(s) <= 64
}

func isHash(s string) bool { return (len(s) == 40 || len(s) == 64) && isHex(s) }
