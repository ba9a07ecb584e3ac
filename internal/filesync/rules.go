package filesync

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// ignoreRules are the rules in force in one folder of a scan. A nil value ignores nothing.
type ignoreRules struct {
	repo *gitRepo // nil with a .skyignore
	// prefix leads from the repository's top to the scanned root or to the folder where a nested repository starts; cut
	// is that folder, relative to the root.
	prefix, cut string
	sets        []patterns // weakest first
	ignored     bool       // the folder itself is ignored: only tracked files stay
}

// rulesFor loads the rules of a scan: root's .skyignore, else those of the git repository around root.
func rulesFor(root string) (*ignoreRules, error) {
	text, err := os.ReadFile(filepath.Join(root, ".skyignore"))
	if err == nil {
		return &ignoreRules{sets: []patterns{parsePatterns("", string(text), false)}}, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, &PathError{Op: "read", Path: filepath.Join(root, ".skyignore"), Err: err, Hint: "make it a readable text file"}
	}
	repo := findRepo(root)
	if repo == nil {
		return nil, nil
	}
	r := &ignoreRules{repo: repo, sets: append([]patterns(nil), repo.global...)}
	rel, err := filepath.Rel(repo.top, root)
	if err != nil {
		return nil, nil
	}
	if rel != "." {
		r.prefix = filepath.ToSlash(rel)
	}
	// Ignore files above the root; the root's own is read on entering it.
	at, dir := repo.top, ""
	for part := range strings.SplitSeq(r.prefix, "/") {
		if part == "" {
			break
		}
		if r.sets, err = addGitignore(r.sets, at, dir); err != nil {
			return nil, err
		}
		at = filepath.Join(at, part)
		dir = strings.TrimPrefix(dir+"/"+part, "/")
		if ignored, _ := matchSets(r.sets, dir, true); ignored {
			r.ignored = true
		}
	}
	return r, nil
}

func addGitignore(sets []patterns, full, dir string) ([]patterns, error) {
	f := filepath.Join(full, ".gitignore")
	if fi, err := os.Lstat(f); err != nil || !fi.Mode().IsRegular() {
		return sets, nil
	}
	text, err := os.ReadFile(f)
	if err != nil {
		return nil, readErr(f, err)
	}
	ps := parsePatterns(dir, string(text), true)
	if len(ps.list) == 0 {
		return sets, nil
	}
	return append(sets[:len(sets):len(sets)], ps), nil
}

func matchSets(sets []patterns, path string, dir bool) (ignored, decided bool) {
	for i := len(sets) - 1; i >= 0; i-- {
		if ignored, decided = sets[i].match(path, dir); decided {
			return ignored, true
		}
	}
	return false, false
}

// enter gives the rules inside the folder dir (relative to the root; full is its place on disk).
func (r *ignoreRules) enter(full, dir string) (*ignoreRules, error) {
	if r == nil || r.repo == nil || baseOf(dir) == ".git" || strings.Contains("/"+dir+"/", "/.git/") {
		return r, nil
	}
	next := *r
	if dir != "" && full != r.repo.top {
		if nested := repoAt(full); nested != nil { // a submodule or a repository of its own: its own rules only
			next = ignoreRules{repo: nested, cut: dir, sets: nested.global}
		}
	}
	sets, err := addGitignore(next.sets, full, next.inRepo(dir))
	if err != nil {
		return nil, err
	}
	next.sets = sets
	return &next, nil
}

// inRepo turns a path relative to the root into one relative to the repository's top.
func (r *ignoreRules) inRepo(p string) string {
	if r.cut != "" {
		p = strings.TrimPrefix(strings.TrimPrefix(p, r.cut), "/")
	}
	switch {
	case r.prefix == "":
		return p
	case p == "":
		return r.prefix
	}
	return r.prefix + "/" + p
}

// ignores decides about one path relative to the root. An ignored folder is entered all the same if it holds tracked
// files.
func (r *ignoreRules) ignores(p string, dir bool) (ignored, descend bool) {
	if r == nil {
		return false, true
	}
	if r.repo == nil {
		ignored, _ = matchSets(r.sets, p, dir)
		return ignored, !ignored
	}
	name := baseOf(p)
	if name == ".git" || strings.Contains(p, ".git/") && strings.Contains("/"+p, "/.git/") {
		return false, true
	}
	q := r.inRepo(p)
	ignored = r.ignored
	if !ignored {
		ignored, _ = matchSets(r.sets, q, dir)
	}
	if !ignored {
		return false, true
	}
	if r.repo.isTracked(q) {
		return dir, true
	}
	return true, false
}

// below gives the rules for what lies in a folder, given the verdict on the folder itself.
func (r *ignoreRules) below(ignored bool) *ignoreRules {
	if r == nil || !ignored || r.ignored {
		return r
	}
	next := *r
	next.ignored = true
	return &next
}
