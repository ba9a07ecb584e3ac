package rsyncd

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// envServe makes this test's own program the far end that the real rsync starts.
const envServe = "SKYLOOM_TEST_RSYNCD"

func TestMain(m *testing.M) {
	if os.Getenv(envServe) != "" {
		os.Exit(Run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// real is rsync with this package at the far end.
type real struct {
	t     *testing.T
	bin   string
	shell string
	dir   string // of both sides
	flags []string
}

// newReal finds the real rsync; SKYLOOM_TEST_RSYNC names another one.
func newReal(t *testing.T, flags ...string) *real {
	t.Helper()
	bin := os.Getenv("SKYLOOM_TEST_RSYNC")
	if bin == "" {
		var err error
		if bin, err = exec.LookPath("rsync"); err != nil {
			t.Skip("there is no rsync here: apt-get install rsync")
		}
	}
	r := &real{t: t, bin: bin, dir: t.TempDir(), flags: flags}
	r.shell = filepath.Join(r.dir, "rsh")
	script := fmt.Sprintf("#!/bin/sh\n# HOST COMMAND...\nshift\n%s=1 exec sh -c \"$*\"\n", envServe)
	if err := os.WriteFile(r.shell, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return r
}

// try runs rsync and gives all that it printed and its exit code.
func (r *real) try(args ...string) (string, int) {
	r.t.Helper()
	self, err := os.Executable()
	if err != nil {
		r.t.Fatal(err)
	}
	cmd := exec.Command(r.bin, append(append([]string{"-e", r.shell, "--rsync-path=" + self}, r.flags...), args...)...)
	cmd.Dir = r.dir
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	done := make(chan error, 1)
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	go func() { done <- cmd.Wait() }()
	select {
	case <-done:
	case <-time.After(60 * time.Second):
		cmd.Process.Kill()
		<-done
		r.t.Fatalf("rsync %v hangs:\n%s", args, out.String())
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

func (r *real) must(args ...string) string {
	r.t.Helper()
	out, code := r.try(args...)
	if code != 0 {
		r.t.Fatalf("rsync %v: exit code %d\n%s", args, code, out)
	}
	return out
}

func (r *real) path(elem ...string) string { return filepath.Join(append([]string{r.dir}, elem...)...) }

func (r *real) write(name, content string) string {
	r.t.Helper()
	p := r.path(name)
	os.MkdirAll(filepath.Dir(p), 0o755)
	if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
		r.t.Fatal(err)
	}
	return p
}

func (r *real) read(name string) string {
	b, err := os.ReadFile(r.path(name))
	if err != nil {
		return "(" + err.Error() + ")"
	}
	return string(b)
}

// tree makes a tree with everything in it.
func (r *real) tree(name string, files int) string {
	r.t.Helper()
	root := r.path(name)
	rnd := rand.New(rand.NewPCG(1, uint64(files)))
	src := rand.NewChaCha8([32]byte{byte(files)})
	for i := range files {
		size := []int{0, 1, 100, 5000, 40000, 200000}[rnd.IntN(6)]
		if files > 500 {
			size %= 7000
		}
		b := make([]byte, size)
		src.Read(b)
		p := filepath.Join(root, fmt.Sprintf("d%d/e.%d", i%7, i%3), fmt.Sprintf("file %d", i))
		if i%10 == 0 {
			p = filepath.Join(root, fmt.Sprintf("top%d", i))
			b = bytes.Repeat([]byte("text that packs well\n"), size/20)
		}
		os.MkdirAll(filepath.Dir(p), 0o755)
		if err := os.WriteFile(p, b, os.FileMode([]int{0o644, 0o600, 0o755, 0o440}[i%4])); err != nil {
			r.t.Fatal(err)
		}
		at := time.Unix(1_500_000_000+int64(i)*1000, int64(i)*1000)
		os.Chtimes(p, at, at)
	}
	for _, d := range []string{"empty", "d0.x", "d0/deep/er/still", "ünï \\ \"quoted\" $HOME `x`"} {
		os.MkdirAll(filepath.Join(root, d), 0o755)
	}
	os.WriteFile(filepath.Join(root, "ünï \\ \"quoted\" $HOME `x`", "a*b?[c]\nnewline"), []byte("odd"), 0o644)
	os.WriteFile(filepath.Join(root, strings.Repeat("long", 60)), []byte("long name"), 0o644)
	os.Symlink("top0", filepath.Join(root, "link"))
	os.Symlink("../outside", filepath.Join(root, "d0/dangling"))
	os.Chmod(filepath.Join(root, "empty"), 0o750)
	old := time.Unix(1_400_000_000, 0)
	os.Chtimes(filepath.Join(root, "empty"), old, old)
	link := unix.Timespec{Sec: 1_300_000_000}
	unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(root, "link"), []unix.Timespec{link, link}, unix.AT_SYMLINK_NOFOLLOW)
	return root
}

// listing describes a tree: names, kinds, modes, times, contents.
func listing(root string, times bool) string {
	var lines []string
	filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(root, p)
		if err != nil {
			lines = append(lines, rel+" "+err.Error())
			return nil
		}
		st, _ := os.Lstat(p)
		line := fmt.Sprintf("%q %v", rel, st.Mode())
		if times {
			line += fmt.Sprint(" ", st.ModTime().Unix())
		}
		switch {
		case st.Mode().IsRegular():
			b, _ := os.ReadFile(p)
			line += fmt.Sprintf(" %d %x", len(b), sha256.Sum256(b))
		case st.Mode()&os.ModeSymlink != 0:
			l, _ := os.Readlink(p)
			line += " -> " + l
		}
		lines = append(lines, line)
		return nil
	})
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

func same(t *testing.T, got, want string) {
	t.Helper()
	g, w := strings.Split(listing(got, true), "\n"), strings.Split(listing(want, true), "\n")
	have := map[string]bool{}
	for _, l := range g {
		have[l] = true
	}
	n := 0
	for _, l := range w {
		if !have[l] {
			if n++; n < 6 {
				t.Errorf("missing: %s", l)
			}
		}
		delete(have, l)
	}
	for l := range have {
		if n++; n < 12 {
			t.Errorf("too much: %s", l)
		}
	}
}

var protocols = []string{"31", "30", "29"}

func TestBothWays(t *testing.T) {
	for _, proto := range protocols {
		for _, flags := range []string{"-a", "-az", "-aHc", "-aR"} {
			t.Run(proto+flags, func(t *testing.T) {
				r := newReal(t, "--protocol="+proto, flags)
				src := r.tree("src", 60)
				if strings.Contains(flags, "H") {
					os.Link(filepath.Join(src, "top0"), filepath.Join(src, "d1", "hard"))
					os.Link(filepath.Join(src, "top0"), filepath.Join(src, "a-hard"))
				}
				from, at := "src/", ""
				if strings.Contains(flags, "R") {
					from, at = "./src/", "src"
				}
				r.must(from, "host:"+r.path("up")+"/")
				same(t, r.path("up", at), src)
				if strings.Contains(flags, "R") {
					r.must("host:"+r.path(".")+"/./src/", "down/")
				} else {
					r.must("host:"+r.path("src")+"/", "down/")
					if out := r.must("-i", "host:"+r.path("src")+"/", "down/"); out != "" {
						t.Errorf("the second time: %s", out)
					}
				}
				same(t, r.path("down", at), src)
				out := r.must("-i", from, "host:"+r.path("up")+"/")
				out = strings.TrimPrefix(out, ".d..t...... ./\n") // with -R that is the folder of this test
				if out != "" {
					t.Errorf("the second time up: %s", out)
				}
				for _, dir := range []string{"up", "down"} {
					if !strings.Contains(flags, "H") {
						continue
					}
					a, _ := os.Stat(r.path(dir, "top0"))
					b, _ := os.Stat(r.path(dir, "d1", "hard"))
					c, _ := os.Stat(r.path(dir, "a-hard"))
					if !os.SameFile(a, b) || !os.SameFile(a, c) {
						t.Errorf("%s: not the same file any more", dir)
					}
				}
			})
		}
	}
}

func TestThousandFiles(t *testing.T) {
	r := newReal(t, "-a")
	src := r.tree("src", 1000)
	r.must("src/", "host:"+r.path("up"))
	same(t, r.path("up"), src)
	r.must("host:"+r.path("up")+"/", "down")
	same(t, r.path("down"), src)
}

func TestDelete(t *testing.T) {
	for _, how := range []string{"--delete", "--delete-before", "--delete-after", "--delete-delay", "--delete-excluded"} {
		t.Run(how, func(t *testing.T) {
			for _, way := range []string{"up", "down"} {
				r := newReal(t, "-a", how, "--exclude=*.keep", "--exclude=/cache/", "-v")
				for _, f := range []string{"src/a", "src/d/b", "src/x.keep", "dst/a", "dst/gone", "dst/d/gone2", "dst/olddir/deep/x", "dst/mine.keep", "dst/olddir2/y.keep", "dst/cache/z"} {
					r.write(f, f)
				}
				from, to := "src/", "host:"+r.path("dst")
				if way == "down" {
					from, to = "host:"+r.path("src")+"/", "dst"
				}
				out := r.must(from, to)
				if !strings.Contains(out, "deleting gone") || !strings.Contains(out, "deleting olddir/") {
					t.Errorf("%s: %s", way, out)
				}
				var left []string
				filepath.WalkDir(r.path("dst"), func(p string, d fs.DirEntry, err error) error {
					if !d.IsDir() {
						rel, _ := filepath.Rel(r.path("dst"), p)
						left = append(left, rel)
					}
					return nil
				})
				want := "a cache/z d/b mine.keep olddir2/y.keep"
				if how == "--delete-excluded" {
					want = "a d/b"
				}
				if got := strings.Join(left, " "); got != want {
					t.Errorf("%s: left %s, want %s", way, got, want)
				}
			}
		})
	}
}

func TestFilters(t *testing.T) {
	files := []string{"a.txt", "a.log", "d/b.txt", "d/b.log", "d/sub/c.txt", "node_modules/x/y", "d/node_modules/z", "build/out", "d/build/out", "keep.log", "sp ace", "[x]", "x"}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--exclude=*.log"}, "[x] a.txt build/out d/b.txt d/build/out d/node_modules/z d/sub/c.txt node_modules/x/y sp ace x"},
		{[]string{"--include=keep.log", "--exclude=*.log", "--exclude=node_modules"}, "[x] a.txt build/out d/b.txt d/build/out d/sub/c.txt keep.log sp ace x"},
		{[]string{"--exclude=/build", "--exclude=d/sub", "--exclude=[[]x]"}, "a.log a.txt d/b.log d/b.txt d/build/out d/node_modules/z keep.log node_modules/x/y sp ace x"},
		{[]string{"--include=*/", "--include=*.txt", "--exclude=*"}, "a.txt d/b.txt d/sub/c.txt"},
		{[]string{"--include=/d/***", "--exclude=*"}, "d/b.log d/b.txt d/build/out d/node_modules/z d/sub/c.txt"},
		{[]string{"--exclude=**/c.txt", "--exclude=node_modules/", "--exclude=?.txt"}, "[x] a.log build/out d/b.log d/build/out keep.log sp ace x"},
		{[]string{"--filter=-s a.*", "--filter=P x"}, "[x] build/out d/b.log d/b.txt d/build/out d/node_modules/z d/sub/c.txt keep.log node_modules/x/y sp ace x"},
	} {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			r := newReal(t, append([]string{"-am"}, tt.args...)...)
			for _, f := range files {
				r.write("src/"+f, f)
			}
			// What the real one does decides.
			if out, err := exec.Command(r.bin, append(append([]string{}, r.flags...), r.path("src")+"/", r.path("local"))...).CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			r.must("host:"+r.path("src")+"/", "down")
			same(t, r.path("down"), r.path("local"))
			var got []string
			filepath.WalkDir(r.path("down"), func(p string, d fs.DirEntry, err error) error {
				if !d.IsDir() {
					rel, _ := filepath.Rel(r.path("down"), p)
					got = append(got, rel)
				}
				return nil
			})
			if s := strings.Join(got, " "); s != tt.want {
				t.Errorf("got  %s\nwant %s", s, tt.want)
			}
		})
	}
}

func TestDestinations(t *testing.T) {
	for _, tt := range []struct {
		name  string
		src   []string // besides the folder many/ and the file one
		args  []string
		want  map[string]string
		code  int
		error string
	}{
		{name: "file to file", args: []string{"one", "host:DIR/new"}, want: map[string]string{"new": "1"}},
		{name: "file over file", args: []string{"one", "host:DIR/old"}, want: map[string]string{"old": "1"}},
		{name: "file into folder", args: []string{"one", "host:DIR/dir"}, want: map[string]string{"dir/one": "1"}},
		{name: "file into new folder", args: []string{"one", "host:DIR/fresh/"}, want: map[string]string{"fresh/one": "1"}},
		{name: "folder itself", args: []string{"-r", "many", "host:DIR/dir"}, want: map[string]string{"dir/many/a": "a", "dir/many/b": "b"}},
		{name: "folder's contents", args: []string{"-r", "many/", "host:DIR/fresh"}, want: map[string]string{"fresh/a": "a"}},
		{name: "no parent", args: []string{"one", "host:DIR/no/such/x"}, code: 3, error: "No such file|no such file"},
		{name: "mkpath", args: []string{"--mkpath", "one", "host:DIR/no/such/x"}, want: map[string]string{"no/such/x": "1"}},
		{name: "several into a file", args: []string{"-r", "many/", "host:DIR/old"}, code: 3, error: "must be a folder"},
		{name: "file from", args: []string{"host:DIR/../one", "back"}, want: map[string]string{"../back": "1"}},
		{name: "several from", args: []string{"-r", "host:DIR/../one", "host:DIR/../many", "back"}, want: map[string]string{"../back/one": "1", "../back/many/a": "a"}},
		{name: "nothing there", args: []string{"host:DIR/nothing", "back"}, code: 23, error: "link_stat"},
		{name: "some there", args: []string{"host:DIR/nothing", "host:DIR/../one", "back/"}, code: 23, want: map[string]string{"../back/one": "1"}, error: "link_stat"},
		{name: "blanks", args: []string{"one", "host:DIR/a b/"}, want: map[string]string{"a b/one": "1"}},
		{name: "secluded", args: []string{"-s", "one", "host:DIR/a 'b/"}, want: map[string]string{"a 'b/one": "1"}},
		{name: "wildcard", args: []string{"host:DIR/../man*/?", "back/"}, want: map[string]string{"../back/a": "a", "../back/b": "b"}},
		{name: "secluded wildcard", args: []string{"-s", "host:DIR/../man*/?", "back/"}, want: map[string]string{"../back/a": "a", "../back/b": "b"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newReal(t)
			r.write("one", "1")
			r.write("many/a", "a")
			r.write("many/b", "b")
			r.write("there/old", "old")
			os.Mkdir(r.path("there/dir"), 0o755)
			var args []string
			for _, a := range tt.args {
				args = append(args, strings.Replace(a, "DIR", r.path("there"), 1))
			}
			out, code := r.try(args...)
			if code != tt.code {
				t.Errorf("exit code %d, want %d\n%s", code, tt.code, out)
			}
			hit := tt.error == ""
			for e := range strings.SplitSeq(tt.error, "|") {
				hit = hit || strings.Contains(out, e)
			}
			if !hit {
				t.Errorf("no %q in\n%s", tt.error, out)
			}
			for f, want := range tt.want {
				if got := r.read("there/" + f); got != want {
					t.Errorf("%s is %q, want %q\n%s", f, got, want, out)
				}
			}
		})
	}
}

func TestOptions(t *testing.T) {
	t.Run("dry run", func(t *testing.T) {
		r := newReal(t, "-ani", "--delete")
		r.write("src/new/x", "1")
		r.write("dst/gone", "1")
		for _, args := range [][]string{{"src/", "host:" + r.path("dst")}, {"host:" + r.path("src") + "/", "dst"}} {
			out := r.must(args...)
			if !strings.Contains(out, "+++++++++ new/x") || !strings.Contains(out, "*deleting   gone") || !strings.Contains(out, "+++++++++ new/\n") {
				t.Errorf("%v: %s", args, out)
			}
		}
		if r.read("dst/gone") != "1" || exists(r.path("dst/new")) || !exists(r.path("dst")) {
			t.Error("a dry run changed something")
		}
	})
	t.Run("update and existing", func(t *testing.T) {
		r := newReal(t, "-a")
		old, now := time.Unix(1e9, 0), time.Unix(1.5e9, 0)
		for f, at := range map[string]time.Time{"src/newer": now, "dst/newer": old, "src/older": old, "dst/older": now, "src/fresh": now} {
			os.Chtimes(r.write(f, "of "+f), at, at)
		}
		r.must("-u", "--existing", "src/", "host:"+r.path("dst"))
		if r.read("dst/newer") != "of src/newer" || r.read("dst/older") != "of dst/older" || exists(r.path("dst/fresh")) {
			t.Error(listing(r.path("dst"), false))
		}
		r.must("--ignore-existing", "src/", "host:"+r.path("dst"))
		if r.read("dst/older") != "of dst/older" || r.read("dst/fresh") != "of src/fresh" {
			t.Error(listing(r.path("dst"), false))
		}
	})
	t.Run("checksum", func(t *testing.T) {
		r := newReal(t, "-ac")
		at := time.Unix(1e9, 0)
		for _, f := range []string{"src/x", "dst/x", "down/x"} {
			os.Chtimes(r.write(f, f[:3]), at, at)
		}
		r.must("src/", "host:"+r.path("dst"))
		r.must("host:"+r.path("src")+"/", "down")
		if r.read("dst/x") != "src" || r.read("down/x") != "src" {
			t.Error("a change that only the contents show was missed")
		}
	})
	t.Run("backup, inplace, remove-source-files", func(t *testing.T) {
		r := newReal(t, "-a")
		r.write("src/x", "new")
		p := r.write("dst/x", "old and longer")
		before, _ := os.Stat(p)
		r.must("--inplace", "src/", "host:"+r.path("dst"))
		after, _ := os.Stat(p)
		if r.read("dst/x") != "new" || !os.SameFile(before, after) {
			t.Error("not in place")
		}
		r.write("src/x", "newest")
		r.must("-b", "--remove-source-files", "src/", "host:"+r.path("dst"))
		if r.read("dst/x") != "newest" || r.read("dst/x~") != "new" || exists(r.path("src/x")) {
			t.Error(listing(r.dir, false))
		}
		r.must("--remove-source-files", "host:"+r.path("dst")+"/", "down")
		if r.read("down/x") != "newest" || exists(r.path("dst/x")) {
			t.Error(listing(r.dir, false))
		}
	})
	t.Run("links", func(t *testing.T) {
		r := newReal(t, "-a")
		r.write("src/real/x", "1")
		os.Symlink("real", r.path("src/link"))
		os.Symlink("/etc/hostname", r.path("src/unsafe"))
		r.must("-L", "--exclude=unsafe", "host:"+r.path("src")+"/", "down")
		if st, err := os.Lstat(r.path("down/link")); err != nil || !st.IsDir() {
			t.Errorf("-L: %v", err)
		}
		r.must("--safe-links", "src/", "host:"+r.path("up"))
		if _, err := os.Lstat(r.path("up/unsafe")); err == nil {
			t.Error("--safe-links: an unsafe link")
		}
		// A folder in the way of a link, and the other way round.
		os.RemoveAll(r.path("up/link"))
		r.write("up/link/inside", "1")
		out, code := r.try("src/", "host:"+r.path("up"))
		if code != 23 || !strings.Contains(out, "--force") {
			t.Errorf("%d %s", code, out)
		}
		r.must("--force", "src/", "host:"+r.path("up"))
		if l, _ := os.Readlink(r.path("up/link")); l != "real" {
			t.Errorf("link to %q", l)
		}
	})
	t.Run("modes without -p", func(t *testing.T) {
		r := newReal(t, "-rt")
		os.Chmod(r.write("src/x", "1"), 0o777)
		os.Chmod(r.write("src/y", "1"), 0o600)
		os.Chmod(r.write("dst/y", "0"), 0o640)
		r.must("src/", "host:"+r.path("dst"))
		x, _ := os.Stat(r.path("dst/x"))
		y, _ := os.Stat(r.path("dst/y"))
		if x.Mode().Perm() != os.FileMode(0o777&^umask()) || y.Mode().Perm() != 0o640 {
			t.Errorf("%v %v", x.Mode(), y.Mode())
		}
	})
	t.Run("devices and owners", func(t *testing.T) {
		r := newReal(t, "-a")
		r.write("src/x", "1")
		if err := unix.Mkfifo(r.path("src/fifo"), 0o600); err != nil {
			t.Skip(err)
		}
		if os.Geteuid() == 0 {
			os.Chown(r.path("src/x"), 1, 12345)
			unix.Mknod(r.path("src/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3)))
		}
		for _, proto := range protocols {
			r.must("--protocol="+proto, "src/", "host:"+r.path("up"+proto))
			r.must("--protocol="+proto, "host:"+r.path("src")+"/", "down"+proto)
			for _, d := range []string{"up", "down"} {
				same(t, r.path(d+proto), r.path("src"))
				if st, err := statOf(r.path(d+proto, "x"), false); err != nil || os.Geteuid() == 0 && (st.Uid != 1 || st.Gid != 12345) {
					t.Errorf("%s: owner %d:%d, %v", d, st.Uid, st.Gid, err)
				}
			}
		}
	})
	t.Run("list", func(t *testing.T) {
		r := newReal(t)
		r.write("src/some/x", "12345")
		out := r.must("host:" + r.path("src") + "/")
		if !strings.Contains(out, " some\n") || strings.Contains(out, "/x") {
			t.Errorf("%s", out)
		}
		if out = r.must("-r", "host:"+r.path("src")+"/"); !strings.Contains(out, "5 ") || !strings.Contains(out, " some/x\n") {
			t.Errorf("%s", out)
		}
	})
	t.Run("statistics", func(t *testing.T) {
		r := newReal(t, "-av", "--stats", "--progress")
		r.write("src/x", strings.Repeat("x", 100000))
		for _, args := range [][]string{{"src/", "host:" + r.path("dst")}, {"host:" + r.path("src") + "/", "down"}} {
			if out := r.must(args...); !strings.Contains(out, "Total file size: 100,000 bytes") || !strings.Contains(out, "100%") || !strings.Contains(out, "\nx\n") {
				t.Errorf("%s", out)
			}
		}
	})
}

func exists(p string) bool { _, err := os.Lstat(p); return err == nil }

func TestRefused(t *testing.T) {
	r := newReal(t)
	r.write("src/x", "1")
	for arg, want := range map[string]string{
		"-aX": "extended attributes", "-aA": "access control lists", "--append": "appending", "--link-dest=/x": "--link-dest",
		"-aF": "filter files", "--zc=zstd": "zlib",
	} {
		args := []string{"-r", arg, "host:" + r.path("src") + "/", "down"}
		if strings.HasPrefix(arg, "--append") || strings.HasPrefix(arg, "--link-dest") || strings.HasPrefix(arg, "--fake") {
			args = []string{"-r", arg, "src/", "host:" + r.path("up")}
		}
		if arg == "--zc=zstd" {
			args = append([]string{"-z"}, args...)
		}
		out, code := r.try(args...)
		if strings.Contains(out, "not supported") || strings.Contains(out, "unknown option") {
			continue // by this client already
		}
		if code == 0 || !strings.Contains(out, want) || !strings.Contains(out, "built into") && arg != "--zc=zstd" {
			t.Errorf("%s: %d %s", arg, code, out)
		}
	}
	if _, code := r.try("--version"); code != 0 {
		t.Error("the client itself")
	}
	var errs bytes.Buffer
	if code := Run([]string{"-a", "x", "y"}, strings.NewReader(""), &bytes.Buffer{}, &errs); code != exitSyntax || !strings.Contains(errs.String(), "install rsync") {
		t.Errorf("without --server: %d %s", code, errs.String())
	}
}

func TestUnreadable(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("nothing is unreadable for root")
	}
	r := newReal(t, "-a")
	os.Chmod(r.write("src/secret", "1"), 0)
	r.write("src/open", "1")
	out, code := r.try("host:"+r.path("src")+"/", "down")
	if code != 23 || !strings.Contains(out, "secret") || r.read("down/open") != "1" {
		t.Errorf("%d %s", code, out)
	}
}
