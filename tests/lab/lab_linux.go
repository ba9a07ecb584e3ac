package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	gateway   = "10.77.0.1"
	bridge    = "br0" // the network that the switch is on too
	backstage = "br1" // the network of the hosts behind others: the switch has no address on it
	maxHosts  = 200
)

// Lab is a set of hosts and the switch that joins them. Its methods may be called from any goroutine.
type Lab struct {
	KeyFile string // private key that opens every host (but those with NoKey), mode 0600

	id        string
	dir       string // below runDir
	scratch   string // on disk
	publicKey string
	log       func(string, ...any)
	lock      *os.File
	closed    sync.Once
	closeErr  error

	sw      *thread  // a thread in the switch's network
	ns      *os.File // the switch's network namespace
	nl      *netlink // speaks to it
	bridges map[string]int

	mu    sync.Mutex
	hosts []*Host
}

// New starts a lab for a test and ends it with the test. Where there can be none the test is skipped, with the reason;
// with SKYLOOM_LAB=require in the environment it fails.
func New(t testing.TB, o Options) *Lab {
	t.Helper()
	if o.Log == nil {
		o.Log = t.Logf
	}
	refuse := t.Skipf
	if os.Getenv("SKYLOOM_LAB") == "require" {
		refuse = t.Fatalf
	}
	if err := install(context.Background(), o.Log); err != nil {
		refuse("lab: openssh-server could not be installed: %v", err)
	}
	if err := Available(); err != nil {
		refuse("lab: %v", err)
	}
	l, err := Start(context.Background(), o)
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, h := range l.Hosts() {
				t.Logf("console of %s:\n%s", h.Name, lastLines(h.Console(), 15))
			}
		}
		if err := l.Close(); err != nil {
			t.Errorf("lab: %v", err)
		}
	})
	return l
}

// Start makes a lab and boots its hosts, all at once. The caller closes it.
func Start(ctx context.Context, o Options) (*Lab, error) {
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	if err := install(ctx, o.Log); err != nil {
		return nil, err
	}
	if err := Available(); err != nil {
		return nil, err
	}
	// The runtime tries out pidfds once, with a child process. That must not happen on a thread whose next child is to
	// be the first process of a host.
	if p, err := os.FindProcess(os.Getpid()); err == nil {
		_ = p.Release()
	}
	specs := o.Specs
	if len(specs) == 0 {
		for range o.Hosts {
			specs = append(specs, o.Host)
		}
	}
	l := &Lab{id: fmt.Sprintf("%d-%s", os.Getpid(), randomHex(4)), log: o.Log, bridges: map[string]int{}}
	if err := l.start(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	if err := l.add(ctx, specs); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (l *Lab) start() (err error) {
	if l.dir, l.lock, err = enroll(l.id, l.log); err != nil {
		return fmt.Errorf("folder of the lab: %w", err)
	}
	if l.scratch, err = os.MkdirTemp("", scratchPrefix); err != nil {
		return err
	}
	if err := os.Symlink(l.scratch, filepath.Join(l.dir, scratchLink)); err != nil {
		return err
	}
	private, public, err := newKey("lab")
	if err != nil {
		return err
	}
	l.publicKey, l.KeyFile = public, filepath.Join(l.scratch, "id_ed25519")
	if err := errors.Join(os.WriteFile(l.KeyFile, []byte(private), 0o600), os.WriteFile(l.KeyFile+".pub", []byte(public), 0o644)); err != nil {
		return err
	}
	l.sw, err = newThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if l.ns, err = os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())); err != nil {
			return err
		}
		if l.nl, err = openNetlink(); err != nil {
			return err
		}
		// So that what goes nowhere is refused at once, as by a router, and not dropped.
		_ = os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)
		for _, b := range []string{bridge, backstage} {
			if err := l.nl.addBridge(b); err != nil {
				return err
			}
			if l.bridges[b], err = l.nl.index(b); err != nil {
				return err
			}
		}
		return errors.Join(l.nl.setLink("lo", true, 0), l.nl.addAddr(bridge, net.ParseIP(gateway), 24))
	})
	return wrap(err, "the lab's switch")
}

// Add boots one more host.
func (l *Lab) Add(s HostSpec) (*Host, error) {
	if err := l.add(context.Background(), []HostSpec{s}); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.hosts[len(l.hosts)-1], nil
}

// AddAll boots more hosts, all at once.
func (l *Lab) AddAll(specs ...HostSpec) error { return l.add(context.Background(), specs) }

// add makes hosts of the specs and boots them at once.
func (l *Lab) add(ctx context.Context, specs []HostSpec) error {
	l.mu.Lock()
	var fresh []*Host
	for _, s := range specs {
		n := len(l.hosts) + 1
		s, err := s.filled(n)
		if err == nil && n > maxHosts {
			err = fmt.Errorf("a lab has at most %d hosts", maxHosts)
		}
		if err == nil && l.byName(s.Name) != nil {
			err = fmt.Errorf("there is a host %s already", s.Name)
		}
		if err != nil {
			l.mu.Unlock()
			return err
		}
		h := newHost(l, n, s)
		l.hosts, fresh = append(l.hosts, h), append(fresh, h)
	}
	for _, h := range fresh {
		if b := h.Spec.Behind; b != "" && l.byName(b) == nil {
			l.mu.Unlock()
			return fmt.Errorf("host %s is behind %s, which is not in the lab", h.Name, b)
		}
	}
	var jumps []*Host
	for _, h := range l.hosts {
		for _, other := range fresh {
			if other.Spec.Behind == h.Name {
				jumps = append(jumps, h)
				break
			}
		}
	}
	l.mu.Unlock()
	if err := each(jumps, (*Host).becomeJump); err != nil {
		return err
	}
	return each(fresh, func(h *Host) error {
		if err := h.create(); err != nil {
			return err
		}
		return h.boot(ctx)
	})
}

// each runs f for all hosts at once and joins the errors.
func each(hosts []*Host, f func(*Host) error) error {
	errs := make([]error, len(hosts))
	var wg sync.WaitGroup
	for i, h := range hosts {
		wg.Go(func() { errs[i] = f(h) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Hosts are all hosts, in the order they were named in, terminated ones too.
func (l *Lab) Hosts() []*Host {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]*Host(nil), l.hosts...)
}

// Host is the i-th host, from 0.
func (l *Lab) Host(i int) *Host { return l.Hosts()[i] }

// ByName is the host of that name, nil if there is none.
func (l *Lab) ByName(name string) *Host {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.byName(name)
}

func (l *Lab) byName(name string) *Host {
	for _, h := range l.hosts {
		if h.Name == name {
			return h
		}
	}
	return nil
}

// Gateway is the switch's address, as the hosts see it: what listens there or on 0.0.0.0 in the switch's network can be
// reached from them.
func (l *Lab) Gateway() string { return gateway }

// Dir is a folder on disk for what belongs to the lab; it is removed with it.
func (l *Lab) Dir() string { return l.scratch }

// NetNS is a path to the switch's network namespace, good as long as this process lives: nsenter --net=PATH.
func (l *Lab) NetNS() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), l.ns.Fd()) }

// Command is a program to run in the switch's network, and in nothing else of the lab: it sees the machine's files and
// processes. The process that Start makes is the program itself.
func (l *Lab) Command(name string, args ...string) *exec.Cmd {
	return l.CommandContext(context.Background(), name, args...)
}

// CommandContext is Command with a context, as exec.CommandContext has it.
func (l *Lab) CommandContext(ctx context.Context, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + l.NetNS(), "--", name}, args...)...)
}

// Do runs f on a thread in the switch's network. Sockets that f makes belong there; those of goroutines it starts do not.
func (l *Lab) Do(f func() error) error { return inNet(int(l.ns.Fd()), f) }

// Dial connects from the switch's network: to hosts, or to what listens on the switch (its 127.0.0.1 is not the machine's).
// The address must be numeric.
func (l *Lab) Dial(ctx context.Context, network, addr string) (c net.Conn, err error) {
	return dialIn(ctx, int(l.ns.Fd()), network, addr)
}

func dialIn(ctx context.Context, ns int, network, addr string) (c net.Conn, err error) {
	err = inNet(ns, func() (err error) {
		var d net.Dialer
		c, err = d.DialContext(ctx, network, addr)
		return err
	})
	return c, err
}

// Dialer is Dial as a value, as for http.Transport.DialContext.
func (l *Lab) Dialer() func(ctx context.Context, network, addr string) (net.Conn, error) {
	return l.Dial
}

// Listen listens in the switch's network; hosts reach it at Gateway.
func (l *Lab) Listen(network, addr string) (ln net.Listener, err error) {
	err = l.Do(func() (err error) {
		ln, err = net.Listen(network, addr)
		return err
	})
	return ln, err
}

// Close ends all hosts and removes everything of the lab.
func (l *Lab) Close() error {
	l.closed.Do(func() {
		errs := []error{each(l.Hosts(), (*Host).Terminate)}
		l.nl.close()
		l.sw.close()
		if l.ns != nil {
			l.ns.Close()
		}
		if l.dir != "" {
			unlock, err := lockFile(filepath.Join(runDir, "lock"))
			if err == nil {
				err = discard(l.id)
				unlock()
			}
			errs = append(errs, err)
		}
		if l.lock != nil {
			l.lock.Close()
		}
		l.closeErr = errors.Join(errs...)
	})
	return l.closeErr
}
