package agentbin

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/klauspost/compress/zstd"

	"github.com/skyloom/skyloom/providers"
)

func pack(t *testing.T, content string) *fstest.MapFile {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &fstest.MapFile{Data: w.EncodeAll([]byte(content), nil)}
}

func sumOf(s string) string { h := sha256.Sum256([]byte(s)); return hex.EncodeToString(h[:]) }

// bare is a source on a machine with nothing installed.
func bare(t *testing.T, files fstest.MapFS) *Source {
	s := New(filepath.Join(t.TempDir(), "cache"))
	s.files = files
	dir := t.TempDir()
	s.executable = func() (string, error) { return filepath.Join(dir, "sky-server"), nil }
	s.lookPath = func(string) (string, error) { return "", errors.New("not there") }
	return s
}

func TestUnpack(t *testing.T) {
	s := bare(t, fstest.MapFS{"bin/sky-agent-linux-arm64.zst": pack(t, "arm program")})
	p, h, err := s.Path("linux", "arm64")
	if err != nil {
		t.Fatal(err)
	}
	if h != sumOf("arm program") {
		t.Errorf("hash %s", h)
	}
	if b, _ := os.ReadFile(p); string(b) != "arm program" {
		t.Errorf("content %q", b)
	}
	for _, d := range []string{s.cacheDir, filepath.Dir(p)} {
		if st, _ := os.Stat(d); st.Mode().Perm() != 0o700 {
			t.Errorf("%s is %v", d, st.Mode())
		}
	}
	if st, _ := os.Stat(p); st.Mode().Perm()&0o111 == 0 {
		t.Errorf("not executable: %v", st.Mode())
	}

	// A second source on the same cache does not unpack again, unless the file was damaged.
	again := New(s.cacheDir)
	again.files, again.executable, again.lookPath = s.files, s.executable, s.lookPath
	before, _ := os.Stat(p)
	if p2, _, err := again.Path("", "arm64"); runtime.GOARCH != "arm64" && (err != nil || p2 != p) {
		t.Errorf("second: %s %v", p2, err)
	}
	if after, _ := os.Stat(p); !os.SameFile(before, after) {
		t.Error("unpacked again")
	}
	os.WriteFile(p, []byte("damaged"), 0o755)
	third := New(s.cacheDir)
	third.files, third.executable, third.lookPath = s.files, s.executable, s.lookPath
	if _, h, err := third.Path("linux", "arm64"); err != nil || h != sumOf("arm program") {
		t.Errorf("damaged: %s %v", h, err)
	}
	if b, _ := os.ReadFile(p); string(b) != "arm program" {
		t.Errorf("still damaged: %q", b)
	}
}

func TestThisMachine(t *testing.T) {
	s := bare(t, fstest.MapFS{"bin/sky-agent-" + runtime.GOOS + "-" + runtime.GOARCH + ".zst": pack(t, "carried")})
	if _, h, err := s.Path("", ""); err != nil || h != sumOf("carried") {
		t.Fatalf("carried: %s %v", h, err)
	}
	onPath := filepath.Join(t.TempDir(), program)
	os.WriteFile(onPath, []byte("on path"), 0o755)
	s.lookPath = func(string) (string, error) { return onPath, nil }
	if p, h, err := s.Path("", ""); err != nil || p != onPath || h != sumOf("on path") {
		t.Fatalf("on path: %s %s %v", p, h, err)
	}
	exe, _ := s.executable()
	beside := filepath.Join(filepath.Dir(exe), program)
	os.WriteFile(beside, []byte("beside"), 0o755)
	os.WriteFile(exe, []byte("server"), 0o755)
	if _, h, err := s.Path(runtime.GOOS, runtime.GOARCH); err != nil || h != sumOf("beside") {
		t.Fatalf("beside: %s %v", h, err)
	}
	// A new build in the same place is noticed.
	os.WriteFile(beside, []byte("beside, newer"), 0o755)
	if _, h, _ := s.Path("", ""); h != sumOf("beside, newer") {
		t.Errorf("stale hash %s", h)
	}
}

func TestMissing(t *testing.T) {
	s := bare(t, fstest.MapFS{})
	for _, c := range [][2]string{{"", ""}, {"linux", "riscv64"}} {
		_, _, err := s.Path(c[0], c[1])
		var pe *providers.Error
		if !errors.As(err, &pe) || pe.Kind != providers.Invalid || !strings.Contains(pe.Hint, "make build") {
			t.Errorf("%v: %v", c, err)
		}
	}
	if _, err := os.Stat(s.cacheDir); !os.IsNotExist(err) {
		t.Error("cache folder made for nothing")
	}
}

func TestEmbedded(t *testing.T) {
	if b, err := embedded.ReadFile("bin/README"); err != nil || len(b) == 0 {
		t.Fatal(err)
	}
}
