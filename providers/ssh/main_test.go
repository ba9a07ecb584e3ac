package ssh

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skyloom/skyloom/providers"
	"github.com/skyloom/skyloom/providers/providertest"
	"github.com/skyloom/skyloom/tests/lab"
)

// agentFile is a real agent, built for these tests.
type agentFile struct{ path, sha string }

func (a agentFile) Path(goos, goarch string) (string, string, error) {
	if goarch != "amd64" && goarch != "" {
		return "", "", providers.Errorf(providers.Invalid, providers.ScopeCloud, "no sky-agent program for %s/%s", goos, goarch)
	}
	return a.path, a.sha, nil
}

var theAgent agentFile

const installation = "test-installation"

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "sky-agent-*")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		theAgent.path = filepath.Join(dir, "sky-agent")
		if out, err := exec.Command("go", "build", "-ldflags", "-s -w", "-o", theAgent.path, "github.com/skyloom/skyloom/cmd/sky-agent").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build the agent: %v\n%s", err, out)
			return 1
		}
		b, _ := os.ReadFile(theAgent.path)
		sum := sha256.Sum256(b)
		theAgent.sha = hex.EncodeToString(sum[:])
		// The tests wait for hosts more than they compute.
		flag.Parse()
		if err := flag.Set("test.parallel", "4"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// labOf makes hosts for a test, or skips it.
func labOf(t *testing.T, o lab.Options) *lab.Lab {
	t.Helper()
	if err := lab.Available(); err != nil {
		t.Skip(err)
	}
	return lab.New(t, o)
}

// open makes a provider with one pool, "lab", of all hosts of a lab.
func open(t *testing.T, l *lab.Lab, change func(*Options)) *Provider {
	t.Helper()
	home := t.TempDir()
	if err := os.WriteFile(filepath.Join(home, PoolsFile), []byte(l.PoolsYAML("lab")), 0o600); err != nil {
		t.Fatal(err)
	}
	return openAt(t, l, home, change)
}

func openAt(t *testing.T, l *lab.Lab, home string, change func(*Options)) *Provider {
	t.Helper()
	o := Options{Home: home, UserHome: filepath.Join(home, "user"), Agent: theAgent, Dial: l.Dialer(), Poll: 300 * time.Millisecond, Logger: logger(t)}
	if change != nil {
		change(&o)
	}
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func logger(t *testing.T) *slog.Logger {
	if !testing.Verbose() {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

func hostOfNode(t *testing.T, l *lab.Lab, n providers.Node) *lab.Host {
	t.Helper()
	for _, h := range l.Hosts() {
		if h.Addr == n.ExternalIP {
			return h
		}
	}
	t.Fatalf("no host has address %s", n.ExternalIP)
	return nil
}

func harness(t *testing.T, l *lab.Lab) providertest.Harness {
	p := open(t, l, nil)
	return providertest.Harness{Provider: p, Agent: theAgent, Installation: installation,
		Settle: func() { time.Sleep(50 * time.Millisecond) },
		Kill: func(t *testing.T, n providers.Node) {
			h := hostOfNode(t, l, n)
			killInit(t, h, n.ID)
		},
		Reopen: func(t *testing.T) providers.Provider {
			p.Close()
			return openAt(t, l, p.o.Home, nil)
		},
	}
}

var skips = map[string]string{
	"CreateUnknownOutcome": "faults of hosts are made on the lab, in tests of their own",
	"ErrorKinds":           "faults of hosts are made on the lab, in tests of their own",
	"DelayedVisibility":    "hosts tell of their nodes at once",
}

func TestSuite(t *testing.T) {
	t.Parallel()
	l := labOf(t, lab.Options{Hosts: 4, Host: lab.HostSpec{CPUs: 8, MemoryMB: 16 << 10}})
	providertest.Run(t, providertest.Options{New: func(t *testing.T) providertest.Harness { return harness(t, l) }, Skips: skips})
}

// killInit kills the init of a node on its host.
func killInit(t *testing.T, h *lab.Host, id string) {
	t.Helper()
	ps, err := h.Processes()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range ps {
		if len(p.Args) > 3 && p.Args[1] == "init" && strings.HasSuffix(p.Args[3], "/"+id+"/node.json") && p.PPID != 0 {
			if out, err := h.Run(context.Background(), fmt.Sprint("kill -9 ", p.PID)); err != nil {
				t.Fatalf("kill %s: %v %s", id, err, out)
			}
			return
		}
	}
	t.Fatalf("no init of %s runs on %s", id, h.Name)
}
