package filesync

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"
)

// tree makes files below a new folder; a content "@x" makes a link to x, a path ending in / a folder.
func tree(t testing.TB, files map[string]string) string {
	t.Helper()
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for p, c := range files {
		write(t, root, p, c)
	}
	return root
}

func write(t testing.TB, root, p, content string) {
	t.Helper()
	full := filepath.Join(root, p)
	if strings.HasSuffix(p, "/") {
		if err := os.MkdirAll(full, 0o755); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		t.Fatal(err)
	}
	var err error
	if to, ok := strings.CutPrefix(content, "@"); ok {
		err = os.Symlink(to, full)
	} else {
		err = os.WriteFile(full, []byte(content), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func scanned(t testing.TB, root string) []string {
	t.Helper()
	tr, err := Scan(t.Context(), root, ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return paths(tr.Manifest)
}

// paths lists files and links, git's own apart.
func paths(m *Manifest) []string {
	var out []string
	for _, e := range m.Entries {
		if e.Kind != KindDir && !isGitPath(e.Path) && !strings.Contains(e.Path, "/.git/") {
			out = append(out, e.Path)
		}
	}
	return out
}

func same(t testing.TB, got []string, want ...string) {
	t.Helper()
	sort.Strings(want)
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Fatalf("got  %q\nwant %q", got, want)
	}
}

// gitEnv keeps the person's own git settings out of the tests.
func gitEnv(t testing.TB) {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("needs git")
	}
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CONFIG_HOME", filepath.Join(home, ".config"))
	t.Setenv("GIT_CONFIG_NOSYSTEM", "1")
}

func git(t testing.TB, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=t", "-c", "user.email=t@t", "-c", "protocol.file.allow=always"}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// TestGitPatterns compares with git itself.
func TestGitPatterns(t *testing.T) {
	gitEnv(t)
	files := []string{"a.log", "b.txt", "build/x", "build/keep.txt", "src/build/y", "src/a.log", "src/deep/er/c.o", "doc/frotz/z", "frotz", "foo/bar/baz",
		"x/foo/bar/baz", "[odd]", "sp ace", "trail ", "#hash", "!bang", "abc", "abd", "ab]", "a-c", "back\\slash", "A1", "UPPER", ".hidden/f", "many/a/b/c/d", "star*"}
	for _, rules := range []string{
		"*.log", "build/", "/build", "build", "*.log\n!src/*.log", "doc/frotz", "frotz", "frotz/", "**/foo/bar", "foo/**", "foo/**/baz", "/foo/*", "**/baz",
		"\\#hash", "#hash", "\\!bang", "ab[cd]", "ab[!c]", "ab[^c]", "a[-x]c", "ab[]]", "[[:upper:]]*", "sp\\ ace", "sp ace", "trail\\ ", "trail ", "back\\\\slash",
		"*\n!*.txt", "*\n!*/\n!*.txt", "build/*\n!build/keep.txt", "build\n!build/keep.txt", "src/**/c.o", "s?c", "?", "*", "a*c", "**", "/**/x", "many/**/d", "many/*/d",
		"star\\*", "\\[odd]", "[odd]", ".*", "foo//bar", "foo/bar/", "/foo/bar/baz", "*a*b*", "src/*.log\r\nabc\r", "", "!abc", "/", "//", "a**c", "deep/", "deep/er", "[a-",
	} {
		root := tree(t, nil)
		for _, f := range files {
			write(t, root, f, f)
		}
		git(t, root, "init", "-q")
		write(t, root, ".git/info/exclude", "") // whatever a template put there
		if err := os.WriteFile(filepath.Join(root, ".gitignore"), []byte(rules+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		want := git(t, root, "ls-files", "-z", "--others", "--exclude-standard")
		names := strings.Split(strings.TrimRight(want, "\x00"), "\x00")
		if want == "" {
			names = nil
		}
		sort.Strings(names)
		got := scanned(t, root)
		if len(names) == 0 { // everything ignored: nothing is left out
			names = append(append([]string{}, files...), ".gitignore")
			sort.Strings(names)
		}
		if fmt.Sprint(got) != fmt.Sprint(names) {
			t.Errorf("rules %q:\n got %q\n git %q", rules, got, names)
		}
	}
}

func TestGitRepository(t *testing.T) {
	gitEnv(t)
	root := tree(t, map[string]string{
		".gitignore": "*.log\n/out/\n", "a.log": "", "keep.log": "", "out/x": "", "out/kept": "", "src/.gitignore": "!b.log\n*.tmp\n", "src/b.log": "", "src/c.log": "",
		"src/d.tmp": "", "src/deep/e.tmp": "", "other/d.tmp": "", "excluded": "",
	})
	git(t, root, "init", "-q")
	git(t, root, "add", "-f", "keep.log", "out/kept", ".gitignore")
	write(t, root, ".git/info/exclude", "excluded\n")
	write(t, root, "../g/.git", "") // an unrelated broken repository beside it
	want := []string{".gitignore", "keep.log", "out/kept", "src/.gitignore", "src/b.log", "other/d.tmp"}
	same(t, scanned(t, root), want...)

	git(t, root, "update-index", "--index-version", "4")
	same(t, scanned(t, root), want...)
	git(t, root, "add", "-N", "src/b.log") // intent to add needs the extended entries of version 3
	git(t, root, "update-index", "--index-version", "2")
	same(t, scanned(t, root), want...)

	// A folder inside the repository obeys the rules above it.
	same(t, scanned(t, filepath.Join(root, "src")), ".gitignore", "b.log")

	// The user's own excludes count as well.
	home, _ := os.UserHomeDir()
	write(t, home, ".gitconfig", "[core]\n\texcludesFile = ~/mine\n")
	write(t, home, "mine", "other\n")
	same(t, scanned(t, root), ".gitignore", "keep.log", "out/kept", "src/.gitignore", "src/b.log")

	// .skyignore replaces all of it.
	write(t, root, ".skyignore", "# mine\n/out\nsrc/\n.git\n")
	same(t, scanned(t, root), ".gitignore", ".skyignore", "a.log", "excluded", "keep.log", "other/d.tmp")
}

func TestGitSubmodulesAndWorktrees(t *testing.T) {
	gitEnv(t)
	lib := tree(t, map[string]string{".gitignore": "*.o\n", "lib.c": ""})
	git(t, lib, "init", "-q")
	git(t, lib, "add", ".")
	git(t, lib, "commit", "-qm", "lib")
	root := tree(t, map[string]string{".gitignore": "*.log\nthird/\n", "main.c": "", "x.o": ""})
	git(t, root, "init", "-q")
	git(t, root, "submodule", "-q", "add", "-f", lib, "third/lib")
	write(t, root, "third/lib/x.o", "")
	write(t, root, "third/lib/x.log", "")
	write(t, root, "third/junk", "")
	same(t, scanned(t, root), ".gitignore", ".gitmodules", "main.c", "x.o", "third/lib/.git", "third/lib/.gitignore", "third/lib/lib.c", "third/lib/x.log")
	same(t, scanned(t, filepath.Join(root, "third/lib")), ".gitignore", "lib.c", "x.log")

	git(t, root, "add", ".gitignore", "main.c")
	git(t, root, "commit", "-qm", "all")
	side := filepath.Join(t.TempDir(), "side")
	git(t, root, "worktree", "add", "-q", side)
	write(t, side, "y.log", "")
	for _, p := range scanned(t, side) {
		if p == "y.log" {
			t.Fatal("the worktree's ignored file was sent")
		}
	}
}

func TestEverythingIgnored(t *testing.T) {
	gitEnv(t)
	root := tree(t, map[string]string{".gitignore": "data/\n", "data/a": "", "data/sub/b": ""})
	git(t, root, "init", "-q")
	tr, err := Scan(t.Context(), filepath.Join(root, "data"), ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	same(t, paths(tr.Manifest), "a", "sub/b")
	if len(tr.Warnings) != 1 || !strings.Contains(tr.Warnings[0], "ignores everything") {
		t.Fatalf("%q", tr.Warnings)
	}
}

func TestSkyignore(t *testing.T) {
	files := map[string]string{"a.pt": "", "d/a.pt": "", "d/e/a.pt": "", "logs/x": "", "d/logs/x": "", "d/foo/bar": "", "foo/bar": "", "keep.pt": "", "d/logs2": "", "q": ""}
	for rules, want := range map[string]string{
		"*.pt":                      "d/foo/bar d/logs/x d/logs2 foo/bar logs/x q",
		"/*.pt\n/logs":              "d/a.pt d/e/a.pt d/foo/bar d/logs/x d/logs2 foo/bar q",
		"logs\n*.pt\n!keep.pt":      "d/foo/bar d/logs2 foo/bar keep.pt q",
		"foo/bar\n*.pt\nlogs/\nq":   "d/logs2", // a slash in the middle does not tie it to the root
		"./d\n*.pt":                 "foo/bar logs/x q",
		"# *\n\n  \n*.pt\nd/\nfoo/": "logs/x q",
		"q/\n*.pt\nd\nfoo\nlogs":    "q",
		"*":                         "",
		"*\n!.skyignore":            ".skyignore",
	} {
		root := tree(t, files)
		write(t, root, ".skyignore", rules)
		exp := strings.Fields(want)
		if !strings.HasPrefix(rules, "*\n") && rules != "*" {
			exp = append(exp, ".skyignore")
		}
		t.Run(rules, func(t *testing.T) { same(t, scanned(t, root), exp...) })
	}
}

func TestMatchNameIsFast(t *testing.T) {
	// A backtracking matcher would not come back from this.
	if matchName(strings.Repeat("a*", 60)+"b", strings.Repeat("a", 5000)) {
		t.Fatal("matched")
	}
	ss := strings.Split(strings.Repeat("a/", 500)+"a", "/")
	ps := append(strings.Split(strings.Repeat("**/a/", 50), "/"), "b")
	if matchSegments(ps, ss) {
		t.Fatal("matched")
	}
}

func FuzzIgnore(f *testing.F) {
	f.Add("*.log\n!a/**/b\n[x-", "a/c/b")
	f.Fuzz(func(t *testing.T, rules, path string) {
		if checkPath(path) != nil {
			return
		}
		for _, ties := range []bool{true, false} {
			ps := parsePatterns("", rules, ties)
			ps.match(path, false)
		}
	})
}

func FuzzParseIndex(f *testing.F) {
	f.Add([]byte("DIRC\x00\x00\x00\x04\x00\x00\x00\x01"))
	f.Fuzz(func(t *testing.T, data []byte) { parseIndex(data) })
}
