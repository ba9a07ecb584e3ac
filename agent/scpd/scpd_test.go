package scpd

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const envServe = "SKYLOOM_TEST_SCPD"

func TestMain(m *testing.M) {
	if os.Getenv(envServe) != "" {
		os.Exit(Run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// scp is the real client with this package at the far end: what it takes for ssh starts it.
func scp(t *testing.T, dir string, args ...string) (string, int) {
	t.Helper()
	bin, err := exec.LookPath("scp")
	if err != nil {
		t.Skip("there is no scp here: apt-get install openssh-client")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	fake := filepath.Join(dir, "ssh")
	script := fmt.Sprintf("#!/bin/sh\nfor last; do :; done\n%s=1 exec sh -c \"exec '%s' ${last#scp}\"\n", envServe, self)
	if err := os.WriteFile(fake, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, append([]string{"-O", "-S", fake}, args...)...)
	cmd.Dir = dir
	out, _ := cmd.CombinedOutput()
	return string(out), cmd.ProcessState.ExitCode()
}

func TestAgainstTheRealOne(t *testing.T) {
	dir := t.TempDir()
	data := bytes.Repeat([]byte("\x00\x01\n binary"), 50_000)
	at := time.Unix(1_400_000_000, 0)
	for _, f := range []string{"tree/one", "tree/sub/two three", "tree/empty"} {
		p := filepath.Join(dir, f)
		os.MkdirAll(filepath.Dir(p), 0o755)
		b := data
		if strings.HasSuffix(f, "empty") {
			b = nil
		}
		if err := os.WriteFile(p, b, 0o640); err != nil {
			t.Fatal(err)
		}
		os.Chtimes(p, at, at)
	}
	os.Chmod(filepath.Join(dir, "tree/sub"), 0o750)
	check := func(root string, times bool) {
		t.Helper()
		for _, f := range []string{"one", "sub/two three", "empty"} {
			p := filepath.Join(dir, root, f)
			want := data
			if f == "empty" {
				want = nil
			}
			b, err := os.ReadFile(p)
			if err != nil || !bytes.Equal(b, want) {
				t.Errorf("%s: %d bytes, %v", p, len(b), err)
				continue
			}
			st, _ := os.Stat(p)
			if st.Mode().Perm() != 0o640 || times && !st.ModTime().Equal(at) {
				t.Errorf("%s: %v %v", p, st.Mode(), st.ModTime())
			}
		}
		if st, err := os.Stat(filepath.Join(dir, root, "sub")); err != nil || st.Mode().Perm() != 0o750 {
			t.Errorf("%s/sub: %v", root, err)
		}
	}
	run := func(code int, text string, args ...string) {
		t.Helper()
		if out, got := scp(t, dir, args...); got != code || !strings.Contains(out, text) {
			t.Errorf("scp %q: %d, want %d with %q\n%s", args, got, code, text, out)
		}
	}
	run(0, "", "-r", "tree", "host:"+dir+"/up")
	check("up", false)
	run(0, "", "-r", "-p", "tree", "host:"+dir+"/up") // into it, since it is there now
	check("up/tree", true)
	run(0, "", "-r", "-p", "host:"+dir+"/up/tree", "down")
	check("down", true)
	run(0, "", "host:"+dir+"/tree/one", "host:"+dir+"/tree/empty", "up/")
	run(0, "", "tree/one", "tree/empty", "host:"+dir+"/down")
	run(0, "", "tree/empty", "host:"+dir+"/up/one") // shorter than what was there
	if st, err := os.Stat(filepath.Join(dir, "up/one")); err != nil || st.Size() != 0 {
		t.Errorf("%v", err)
	}
	run(1, "not a regular file", "host:"+dir+"/tree", "x")
	run(1, "no such file", "host:"+dir+"/nothing", "x")
	run(1, "no such file", "-r", "host:"+dir+"/nothing", "host:"+dir+"/tree", "down")
	check("down/tree", false)
	run(1, "no such file", "tree/one", "host:"+dir+"/no/such/folder")
	run(1, "No such directory", "tree/one", "tree/empty", "host:"+dir+"/tree/one")
}

func TestBadNames(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "target")
	os.Mkdir(target, 0o755)
	for _, name := range []string{"../evil", "..", ".", "", "a/b", "/evil"} {
		var out, errs bytes.Buffer
		in := "C0644 1 " + name + "\nx\x00"
		if code := Run([]string{"-t", target}, strings.NewReader(in), &out, &errs); code == 0 || !strings.Contains(out.String(), "\x01scp: ") {
			t.Errorf("%q: %d %q", name, code, out.String())
		}
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("something was written: %v", left)
	}
	var errs bytes.Buffer
	for _, args := range [][]string{{"a", "b"}, {"-t", "-Z", "x"}} {
		if code := Run(args, strings.NewReader(""), &bytes.Buffer{}, &errs); code != 1 || !strings.Contains(errs.String(), "openssh-client") {
			t.Errorf("%v: %d %s", args, code, errs.String())
		}
	}
}
