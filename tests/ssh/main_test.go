package ssh

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// place is one SKY_HOME with a server and, once asked for, its cluster.
type place struct {
	root, bin, home string
	env             []string
	once            sync.Once
	err             error
}

var here *place

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if runtime.GOOS != "linux" {
		fmt.Println("skipped: the nodes of this machine are at their best on Linux")
		return 0
	}
	root, err := os.MkdirTemp("/var/tmp", "ss") // not below /tmp, which nodes have of their own
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer os.RemoveAll(root)
	here = &place{root: root, home: filepath.Join(root, "home")}
	defer here.close()
	return m.Run()
}

// hidden are programs that the nodes shall not have.
var hidden = map[string]bool{"rsync": true, "scp": true}

// thinPath makes a folder with links to all programs of the system but the hidden ones.
func thinPath(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for _, from := range []string{"/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"} {
		entries, err := os.ReadDir(from)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if !hidden[e.Name()] && !e.IsDir() {
				_ = os.Symlink(filepath.Join(from, e.Name()), filepath.Join(dir, e.Name()))
			}
		}
	}
	return nil
}

// open brings the server and the cluster up, once.
func open(t *testing.T) *place {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a server: seconds")
	}
	if _, err := exec.LookPath("ssh"); err != nil {
		t.Skip("there is no ssh here: apt-get install openssh-client")
	}
	here.once.Do(func() { here.err = here.up() })
	if here.err != nil {
		t.Fatal(here.err)
	}
	return here
}

func (p *place) up() error {
	if p.bin = os.Getenv("SKYLOOM_BIN"); p.bin == "" {
		p.bin = filepath.Join(p.root, "bin")
		for _, name := range []string{"sky", "sky-agent", "sky-server"} {
			cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", filepath.Join(p.bin, name), "github.com/skyloom/skyloom/cmd/"+name)
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("build %s: %w\n%s", name, err, out)
			}
		}
	}
	thin := filepath.Join(p.root, "thin")
	if err := thinPath(thin); err != nil {
		return err
	}
	sky := filepath.Join(p.home, ".skyloom")
	if err := os.MkdirAll(sky, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(sky, "config.yaml"), []byte("server: {web_ui: false}\n"), 0o600); err != nil {
		return err
	}
	p.env = []string{"PATH=" + p.bin + ":" + thin, "HOME=" + p.home, "SKY_HOME=" + sky, "USER=" + os.Getenv("USER"), "LANG=C.UTF-8", "NO_COLOR=1"}
	out, err := p.try(time.Minute, "", "sky", "launch", "-y", "-c", "dev", "--infra", "local", "--cpus", "1", "--num-nodes", "2", "--", "true")
	if err != nil {
		return fmt.Errorf("sky launch: %w\n%s", err, out)
	}
	if !strings.Contains(out, "ssh dev") {
		return fmt.Errorf("the launch does not tell of ssh:\n%s", out)
	}
	return nil
}

func (p *place) close() {
	if p.env == nil {
		return
	}
	for _, args := range [][]string{{"sky", "down", "-a", "-y"}, {"sky", "api", "stop"}} {
		if out, err := p.try(time.Minute, "", args...); err != nil {
			fmt.Printf("%v: %v\n%s", args, err, out)
		}
	}
}

// command is a program with the environment of the place. The clients' own are found by their whole path: they are not
// hidden from the user, only from the nodes.
func (p *place) command(ctx context.Context, args ...string) *exec.Cmd {
	bin := args[0]
	if bin == "sky" {
		bin = filepath.Join(p.bin, bin)
	} else if path, err := exec.LookPath(bin); err == nil {
		bin = path
	}
	cmd := exec.CommandContext(ctx, bin, args[1:]...)
	cmd.Env, cmd.Dir = append([]string(nil), p.env...), p.root
	cmd.WaitDelay = time.Second
	return cmd
}

// try runs a program and gives all that it printed.
func (p *place) try(limit time.Duration, in string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := p.command(ctx, args...)
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(in), &out, &out
	err := cmd.Run()
	return out.String(), err
}

// config is what each OpenSSH program gets: they look for the user's file in the home of the password database.
func (p *place) config() string { return filepath.Join(p.home, ".ssh", "config") }

// ssh runs ssh with the user's configuration.
func (p *place) ssh(in string, args ...string) (string, error) {
	return p.try(30*time.Second, in, append([]string{"ssh", "-F", p.config()}, args...)...)
}

// must runs ssh and fails the test if it does.
func (p *place) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := p.ssh("", args...)
	if err != nil {
		t.Fatalf("ssh %v: %v\n%s", args, err, out)
	}
	return out
}

// nodeHome is the home of a node, as this machine sees it.
func (p *place) nodeHome(t *testing.T, host string) string {
	t.Helper()
	return strings.TrimSpace(p.must(t, host, "pwd"))
}

func code(err error) int {
	if err == nil {
		return 0
	}
	if e, ok := err.(*exec.ExitError); ok {
		return e.ExitCode()
	}
	return -1
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("in vain: %s", what)
}

// background runs a program until the test ends.
func (p *place) background(t *testing.T, args ...string) io.WriteCloser {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := p.command(ctx, args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%v printed:\n%s", args, out.String())
		}
	})
	return in
}
