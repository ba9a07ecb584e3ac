package agentbin

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/skyloom/skyloom/providers"
)

const program = "sky-agent"

//go:embed all:bin
var embedded embed.FS

// Source finds agents. It is safe for use by many goroutines.
type Source struct {
	cacheDir   string
	files      fs.FS                        // holds bin/sky-agent-GOOS-GOARCH.zst
	executable func() (string, error)       // the running program
	lookPath   func(string) (string, error) // finds a program on the PATH
	mu         sync.Mutex                   // guards sums and keeps two from unpacking at once
	sums       map[string]sum               // by path
}

// sum is the hash of a file as it was when it had this size and time.
type sum struct {
	size  int64
	mtime time.Time
	hash  string
}

var _ providers.AgentSource = (*Source)(nil)

// New makes a source that unpacks carried agents below cacheDir, which is made (0700) when first needed.
func New(cacheDir string) *Source {
	return &Source{cacheDir: cacheDir, files: embedded, executable: os.Executable, lookPath: exec.LookPath, sums: map[string]sum{}}
}

// Path returns the agent's program for an operating system and architecture, and its SHA-256 in hex. Both empty mean
// this machine; an empty goos with an architecture means linux. For this machine the file beside the running
// executable comes first, then the PATH, then the one carried.
func (s *Source) Path(goos, goarch string) (string, string, error) {
	here := goos == "" && goarch == ""
	if goos == "" {
		goos = "linux"
	}
	if here {
		goos = runtime.GOOS
	}
	if goarch == "" {
		goarch = runtime.GOARCH
	}
	if goos == runtime.GOOS && goarch == runtime.GOARCH {
		if p := s.installed(); p != "" {
			h, err := s.hash(p)
			return p, h, err
		}
	}
	p, h, err := s.unpacked(goos, goarch)
	if errors.Is(err, fs.ErrNotExist) {
		where := "this program carries none"
		if goos == runtime.GOOS && goarch == runtime.GOARCH {
			where = "there is none beside this program or on the PATH, and this program carries none"
		}
		return "", "", &providers.Error{Kind: providers.Invalid, Scope: providers.ScopeCloud,
			Msg:  fmt.Sprintf("no %s program for %s/%s: %s", program, goos, goarch, where),
			Hint: "build it with `make build` and start the server from bin/"}
	}
	return p, h, err
}

// installed finds the agent installed on this machine, or "".
func (s *Source) installed() string {
	if exe, err := s.executable(); err == nil {
		if real, err := filepath.EvalSymlinks(exe); err == nil {
			exe = real
		}
		if p := filepath.Join(filepath.Dir(exe), program); isProgram(p) {
			return p
		}
	}
	if p, err := s.lookPath(program); err == nil {
		if abs, err := filepath.Abs(p); err == nil {
			return abs
		}
	}
	return ""
}

func isProgram(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular() && st.Mode().Perm()&0o111 != 0
}

// unpacked gives the carried agent, unpacking it unless the cache has it. The cache is an index file per packed
// content, which names the hash of the program, and one folder per program.
func (s *Source) unpacked(goos, goarch string) (string, string, error) {
	packed, err := fs.ReadFile(s.files, "bin/"+program+"-"+goos+"-"+goarch+".zst")
	if err != nil {
		return "", "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	ph := sha256.Sum256(packed)
	index := filepath.Join(s.cacheDir, hex.EncodeToString(ph[:])+".sha256")
	if b, err := os.ReadFile(index); err == nil {
		want := strings.TrimSpace(string(b))
		p := filepath.Join(s.cacheDir, want, program)
		if got, err := s.hashLocked(p); err == nil && got == want && isProgram(p) {
			return p, want, nil
		}
	}
	if err := os.MkdirAll(s.cacheDir, 0o700); err != nil {
		return "", "", fmt.Errorf("make the agent cache: %w", err)
	}
	tmp, err := os.CreateTemp(s.cacheDir, ".unpack-*")
	if err != nil {
		return "", "", fmt.Errorf("unpack the agent: %w", err)
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	h := sha256.New()
	zr, err := zstd.NewReader(bytes.NewReader(packed), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return "", "", fmt.Errorf("unpack the agent: %w", err)
	}
	defer zr.Close()
	if _, err := io.Copy(io.MultiWriter(tmp, h), zr); err != nil {
		return "", "", fmt.Errorf("unpack the agent into %s: %w", s.cacheDir, err)
	}
	if err := errors.Join(tmp.Chmod(0o755), tmp.Sync(), tmp.Close()); err != nil {
		return "", "", fmt.Errorf("unpack the agent into %s: %w", s.cacheDir, err)
	}
	hash := hex.EncodeToString(h.Sum(nil))
	dir := filepath.Join(s.cacheDir, hash)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", "", fmt.Errorf("unpack the agent: %w", err)
	}
	p := filepath.Join(dir, program)
	if err := os.Rename(tmp.Name(), p); err != nil {
		return "", "", fmt.Errorf("unpack the agent: %w", err)
	}
	if err := os.WriteFile(index, []byte(hash+"\n"), 0o600); err != nil {
		return "", "", fmt.Errorf("unpack the agent: %w", err)
	}
	return p, hash, nil
}

func (s *Source) hash(path string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hashLocked(path)
}

// hashLocked hashes a file once per size and modification time.
func (s *Source) hashLocked(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	if c, ok := s.sums[path]; ok && c.size == st.Size() && c.mtime.Equal(st.ModTime()) {
		return c.hash, nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	c := sum{size: st.Size(), mtime: st.ModTime(), hash: hex.EncodeToString(h.Sum(nil))}
	s.sums[path] = c
	return c.hash, nil
}
