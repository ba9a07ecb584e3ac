package filesync

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
)

// gitRepo is what the scan needs to know of a git working tree: where it starts, and which files are tracked (a tracked
// file is never ignored, whatever the patterns say).
type gitRepo struct {
	top    string // absolute path of the working tree
	gitDir string
	global []patterns // user's and repository's own exclude files, weakest first

	once    sync.Once
	tracked []string // sorted
}

// findRepo looks for the working tree that holds dir.
func findRepo(dir string) *gitRepo {
	for {
		if r := repoAt(dir); r != nil {
			return r
		}
		up := filepath.Dir(dir)
		if up == dir {
			return nil
		}
		dir = up
	}
}

// repoAt opens the working tree whose top is dir: a clone, a submodule or a linked worktree.
func repoAt(dir string) *gitRepo {
	dot := filepath.Join(dir, ".git")
	fi, err := os.Lstat(dot)
	if err != nil {
		return nil
	}
	git := dot
	if fi.Mode().IsRegular() {
		text, err := os.ReadFile(dot)
		if err != nil {
			return nil
		}
		to, ok := strings.CutPrefix(strings.TrimSpace(string(text)), "gitdir:")
		if !ok {
			return nil
		}
		if git = strings.TrimSpace(to); !filepath.IsAbs(git) {
			git = filepath.Join(dir, git)
		}
	}
	if fi, err := os.Stat(git); err != nil || !fi.IsDir() {
		return nil
	}
	if _, err := os.Stat(filepath.Join(git, "HEAD")); err != nil {
		return nil
	}
	r := &gitRepo{top: dir, gitDir: git}
	common := git
	if text, err := os.ReadFile(filepath.Join(git, "commondir")); err == nil {
		if common = strings.TrimSpace(string(text)); !filepath.IsAbs(common) {
			common = filepath.Join(git, common)
		}
	}
	for _, f := range []string{userExcludes(), filepath.Join(common, "info", "exclude")} {
		if text, err := os.ReadFile(f); err == nil {
			r.global = append(r.global, parsePatterns("", string(text), true))
		}
	}
	return r
}

// userExcludes is git's core.excludesFile or its default place.
func userExcludes() string {
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	conf := os.Getenv("XDG_CONFIG_HOME")
	if conf == "" {
		conf = filepath.Join(home, ".config")
	}
	for _, f := range []string{filepath.Join(home, ".gitconfig"), filepath.Join(conf, "git", "config")} {
		text, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		section := ""
		for line := range strings.SplitSeq(string(text), "\n") {
			line = strings.TrimSpace(line)
			if strings.HasPrefix(line, "[") {
				section = strings.ToLower(line)
				continue
			}
			key, val, ok := strings.Cut(line, "=")
			if !ok || section != "[core]" || !strings.EqualFold(strings.TrimSpace(key), "excludesfile") {
				continue
			}
			val = strings.Trim(strings.TrimSpace(val), `"`)
			if rest, ok := strings.CutPrefix(val, "~/"); ok {
				val = filepath.Join(home, rest)
			}
			return val
		}
	}
	return filepath.Join(conf, "git", "ignore")
}

// isTracked says whether path (relative to the top) is in the index, or holds something that is.
func (r *gitRepo) isTracked(path string) bool {
	r.once.Do(func() {
		if data, err := os.ReadFile(filepath.Join(r.gitDir, "index")); err == nil {
			r.tracked = parseIndex(data)
			sort.Strings(r.tracked)
		}
	})
	i := sort.SearchStrings(r.tracked, path)
	if i < len(r.tracked) && r.tracked[i] == path {
		return true
	}
	i = sort.SearchStrings(r.tracked, path+"/")
	return i < len(r.tracked) && strings.HasPrefix(r.tracked[i], path+"/")
}

// parseIndex lists the paths of a git index of version 2 to 4 (format: gitformat-index in git's documentation, SHA-1
// object ids). What can't be read counts as not tracked.
func parseIndex(data []byte) []string {
	if len(data) < 12 || string(data[:4]) != "DIRC" {
		return nil
	}
	version := binary.BigEndian.Uint32(data[4:])
	count := binary.BigEndian.Uint32(data[8:])
	if version < 2 || version > 4 {
		return nil
	}
	var out []string
	last := ""
	pos := 12
	for range count {
		const fixed = 62 // ten stat words, object id, flags
		if pos+fixed > len(data) {
			return out
		}
		name := pos + fixed
		if data[pos+60]&0x40 != 0 && version >= 3 {
			name += 2
		}
		if version == 4 {
			strip, n := offsetVarint(data[min(name, len(data)):])
			if n == 0 || strip > uint64(len(last)) {
				return out
			}
			name += n
			end := bytes.IndexByte(data[name:], 0)
			if end < 0 {
				return out
			}
			last = last[:len(last)-int(strip)] + string(data[name:name+end])
			pos = name + end + 1
		} else {
			if name > len(data) {
				return out
			}
			end := bytes.IndexByte(data[name:], 0)
			if end < 0 {
				return out
			}
			last = string(data[name : name+end])
			// Entries are padded with one to eight NULs to a multiple of eight bytes.
			pos += (name + end - pos + 8) &^ 7
		}
		out = append(out, last)
	}
	return out
}

// offsetVarint is git's variable-width encoding of the index's version 4; n is 0 if it is cut.
func offsetVarint(b []byte) (v uint64, n int) {
	for i, c := range b {
		if i > 9 {
			return 0, 0
		}
		if i > 0 {
			v++
		}
		v = v<<7 | uint64(c&0x7f)
		if c&0x80 == 0 {
			return v, i + 1
		}
	}
	return 0, 0
}
