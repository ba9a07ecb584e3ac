package ssh

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/skyloom/skyloom/providers"
)

const (
	connectTimeout = 10 * time.Second // to one host or hop, unless configured
	keepAlive      = 5 * time.Second  // between signs of life of a connection in use
	silence        = 10 * time.Second // after which a connection counts as dead
	restAfter      = 5 * time.Minute  // an idle connection is closed
	dialAgain      = time.Second      // a host that could not be reached is not dialled again for so long
	maxSessions    = 8                // commands at once on one connection; sshd allows 10 unless told otherwise
)

// unreachable is a host that can't be talked to.
type unreachable struct {
	host string
	err  error
	auth bool
}

func (e *unreachable) Error() string { return oneLine(e.err.Error()) }
func (e *unreachable) Unwrap() error { return e.err }

// network holds one connection per host.
type network struct {
	dial    func(ctx context.Context, network, addr string) (net.Conn, error)
	pins    *pins
	home    string // the user's
	timeout time.Duration

	mu     sync.Mutex
	links  map[string]*link
	closed bool
}

func (n *network) link(t target, hops []target) *link {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.links[t.key()]
	if l == nil {
		l = newLink(n)
		n.links[t.key()] = l
	}
	l.mu.Lock()
	l.target, l.hops = t, hops // a password may have changed
	l.mu.Unlock()
	return l
}

func (n *network) close() {
	n.mu.Lock()
	n.closed = true
	links := n.links
	n.links = map[string]*link{}
	n.mu.Unlock()
	for _, l := range links {
		l.drop(nil)
	}
}

// link is the one connection to a host, made when needed.
type link struct {
	net      *network
	sessions chan struct{}

	mu       sync.Mutex
	target   target
	hops     []target
	client   *ssh.Client
	gone     chan struct{} // closed with the client
	dialing  chan struct{}
	err      error
	failedAt time.Time
	used     time.Time
	open     int           // streams and commands
	rtt      time.Duration // of the handshake's last answer, roughly
	spare    []*link       // connections for streams that need a command each
	// refusals counts sockets that sshd would not connect to and the program did; bridgedUntil is how long sshd is not asked.
	refusals     int
	bridgedUntil time.Time
	ready        *ready
	room         int           // sessions that sshd was seen to allow; 0: not known to be fewer than maxSessions
	running      int           // sessions that are open
	prepare      chan struct{} // held by whoever brings the host's program over
}

func newLink(n *network) *link {
	return &link{net: n, sessions: make(chan struct{}, maxSessions), prepare: make(chan struct{}, 1)}
}

// connect gives the living connection, or makes it. Callers share one attempt.
func (l *link) connect(ctx context.Context) (*ssh.Client, error) {
	for {
		l.mu.Lock()
		switch {
		case l.client != nil:
			c := l.client
			l.used = time.Now()
			l.mu.Unlock()
			return c, nil
		case l.dialing == nil && l.err != nil && time.Since(l.failedAt) < dialAgain:
			err := l.err
			l.mu.Unlock()
			return nil, err
		case l.dialing == nil:
			l.dialing = make(chan struct{})
			go l.establish(l.dialing, l.target, l.hops)
		}
		wait := l.dialing
		l.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, &unreachable{host: l.target.Name, err: fmt.Errorf("no connection yet: %w", ctx.Err())}
		case <-wait:
			l.mu.Lock()
			c, err := l.client, l.err
			l.mu.Unlock()
			if c != nil || err != nil {
				return c, err
			}
		}
	}
}

func (l *link) establish(done chan struct{}, t target, hops []target) {
	ctx, cancel := context.WithTimeout(context.Background(), l.net.timeout*time.Duration(1+len(hops)))
	defer cancel()
	began := time.Now()
	c, err := l.net.reach(ctx, t, hops)
	l.net.mu.Lock() // never taken while l.mu is held
	closed := l.net.closed
	l.net.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	defer close(done)
	l.dialing = nil
	if err == nil && closed {
		c.Close()
		err = errors.New("the server is ending")
	}
	if err != nil {
		var u *unreachable
		if !errors.As(err, &u) {
			err = &unreachable{host: t.Name, err: err}
		}
		l.err, l.failedAt = err, time.Now()
		return
	}
	l.client, l.err, l.gone, l.used, l.rtt = c, nil, make(chan struct{}), time.Now(), time.Since(began)
	go l.keep(c, l.gone)
}

// reach dials a host, over its hops.
func (n *network) reach(ctx context.Context, t target, hops []target) (*ssh.Client, error) {
	var through *ssh.Client
	var chain []*ssh.Client
	fail := func(err error) (*ssh.Client, error) {
		for _, c := range chain {
			c.Close()
		}
		return nil, err
	}
	for i, h := range append(append([]target(nil), hops...), t) {
		var conn net.Conn
		var err error
		addr := net.JoinHostPort(h.Addr, strconv.Itoa(h.Port))
		hctx, cancel := context.WithTimeout(ctx, n.timeout)
		if through == nil {
			conn, err = n.dial(hctx, "tcp", addr)
		} else {
			conn, err = through.DialContext(hctx, "tcp", addr)
		}
		if err == nil {
			var c *ssh.Client
			if c, err = n.handshake(hctx, conn, addr, h); err == nil {
				chain, through = append(chain, c), c
			}
		}
		cancel()
		if err != nil {
			what := explain(err, h, addr, n.timeout)
			var u *unreachable
			auth := errors.As(err, &u) && u.auth
			if i < len(hops) {
				what = fmt.Errorf("jump host %s: %w", h.Name, what)
			} else if i > 0 && !auth {
				what = fmt.Errorf("behind jump host %s: %w", hops[i-1].Name, what)
			}
			return fail(&unreachable{host: t.Name, err: what, auth: auth})
		}
	}
	if len(chain) > 1 {
		last := chain[len(chain)-1]
		go func() { // the way goes with its end
			last.Wait()
			for _, c := range chain[:len(chain)-1] {
				c.Close()
			}
		}()
	}
	return through, nil
}

// explain makes a network's error one that people understand.
func explain(err error, t target, addr string, limit time.Duration) error {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		if dns.IsNotFound {
			return fmt.Errorf("its name %s is not known", t.Addr)
		}
		return fmt.Errorf("its name %s is not known (%w)", t.Addr, err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("nothing listens at %s (connection refused)", addr)
	case errors.Is(err, context.DeadlineExceeded), os.IsTimeout(err):
		return fmt.Errorf("down or cut off: %s does not answer within %v", addr, limit)
	}
	return err
}

func (n *network) handshake(ctx context.Context, conn net.Conn, addr string, t target) (*ssh.Client, error) {
	cb, algorithms, err := n.pins.check(t)
	if err != nil {
		conn.Close()
		return nil, err
	}
	cred := gather(t)
	defer cred.close()
	conf := &ssh.ClientConfig{User: t.User, Auth: cred.methods, HostKeyCallback: cb, HostKeyAlgorithms: algorithms, Timeout: n.timeout}
	type result struct {
		c   *ssh.Client
		err error
	}
	done := make(chan result, 1)
	go func() {
		sc, chans, reqs, err := ssh.NewClientConn(conn, addr, conf)
		if err != nil {
			conn.Close()
			done <- result{err: err}
			return
		}
		done <- result{c: ssh.NewClient(sc, chans, reqs)}
	}()
	select {
	case <-ctx.Done():
		conn.Close()
		go func() {
			if r := <-done; r.c != nil {
				r.c.Close()
			}
		}()
		return nil, ctx.Err()
	case r := <-done:
		switch {
		case r.err == nil:
			return r.c, nil
		case strings.Contains(r.err.Error(), "unable to authenticate"):
			return nil, &unreachable{host: t.Name, auth: true, err: errors.New(cred.refused(t))}
		}
		var ck *changedKey
		if errors.As(r.err, &ck) {
			return nil, ck
		}
		return nil, fmt.Errorf("%s speaks no SSH that we do: %w", addr, r.err)
	}
}

// keep watches over a connection until it is gone.
func (l *link) keep(c *ssh.Client, gone chan struct{}) {
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	t := time.NewTicker(keepAlive)
	defer t.Stop()
	var asked chan error
	var since time.Time
	for {
		select {
		case err := <-ended:
			l.drop(c)
			_ = err
			return
		case err := <-asked:
			asked = nil
			if err != nil {
				c.Close()
			}
		case <-t.C:
			l.mu.Lock()
			idle := l.open == 0 && time.Since(l.used) > restAfter
			l.mu.Unlock()
			switch {
			case idle, asked != nil && time.Since(since) > silence:
				c.Close()
			case asked == nil:
				ch := make(chan error, 1)
				asked, since = ch, time.Now()
				go func() {
					_, _, err := c.SendRequest("keepalive@openssh.com", true, nil)
					ch <- err
				}()
			}
		}
	}
}

// drop forgets a connection (nil: whichever there is).
func (l *link) drop(c *ssh.Client) {
	l.mu.Lock()
	old := l.client
	if old == nil || c != nil && old != c {
		l.mu.Unlock()
		return
	}
	l.client, l.ready = nil, nil
	close(l.gone)
	spare := l.spare
	l.spare = nil
	l.mu.Unlock()
	old.Close()
	for _, s := range spare {
		s.drop(nil)
	}
}

// again lets the next call look at the host anew, and dial at once.
func (l *link) again() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err, l.ready, l.refusals, l.bridgedUntil = nil, nil, 0, time.Time{}
}

// lost is closed when the present connection ends; nil if there is none.
func (l *link) lost() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.client == nil {
		return nil
	}
	return l.gone
}

func (l *link) use(by int) {
	l.mu.Lock()
	l.open += by
	l.used = time.Now()
	l.mu.Unlock()
}

var errFull = errors.New("sshd allows no more sessions on this connection")

// session opens a session, waiting for a free one unless told not to.
func (l *link) session(ctx context.Context, impatient bool) (s *ssh.Session, free func(), err error) {
	select {
	case l.sessions <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	l.use(1)
	free = sync.OnceFunc(func() { l.use(-1); <-l.sessions })
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, 500*time.Millisecond) {
		c, err := l.connect(ctx)
		if err != nil {
			free()
			return nil, nil, err
		}
		type opened struct {
			s   *ssh.Session
			err error
		}
		ch := make(chan opened, 1)
		go func() {
			s, err := c.NewSession()
			ch <- opened{s, err}
		}()
		var o opened
		if o, err = patiently(ctx, l, ch); err != nil {
			go func() {
				if o := <-ch; o.s != nil {
					o.s.Close()
				}
			}()
			free()
			return nil, nil, err
		}
		if o.err == nil {
			l.mu.Lock()
			l.running++
			l.mu.Unlock()
			inner := free
			return o.s, sync.OnceFunc(func() {
				l.mu.Lock()
				l.running--
				l.mu.Unlock()
				inner()
			}), nil
		}
		var full *ssh.OpenChannelError
		if !errors.As(o.err, &full) {
			l.drop(c) // the connection died meanwhile
		} else {
			l.mu.Lock()
			l.room = max(l.running, 1)
			l.mu.Unlock()
			if impatient {
				free()
				return nil, nil, errFull
			}
		}
		select {
		case <-ctx.Done():
			free()
			return nil, nil, fmt.Errorf("it opens no session: %w", o.err)
		case <-time.After(pause):
		}
	}
}

// output is what a command printed, bounded.
type output struct {
	stdout, stderr bytes.Buffer
	limit          int
	mu             sync.Mutex
}

type outputPart struct {
	o *output
	b *bytes.Buffer
}

func (p outputPart) Write(b []byte) (int, error) {
	p.o.mu.Lock()
	defer p.o.mu.Unlock()
	if room := p.o.limit - p.b.Len(); room < len(b) {
		if room > 0 {
			p.b.Write(b[:room])
		}
		return len(b), nil
	}
	p.b.Write(b)
	return len(b), nil
}

// run carries out one command line. An exit code other than 0 is no error here.
func (l *link) run(ctx context.Context, command string, stdin io.Reader) (stdout, stderr string, code int, err error) {
	s, free, err := l.session(ctx, false)
	if err != nil {
		return "", "", -1, err
	}
	defer free()
	defer s.Close()
	o := &output{limit: 16 << 20}
	s.Stdout, s.Stderr = outputPart{o, &o.stdout}, outputPart{o, &o.stderr}
	if stdin != nil {
		s.Stdin = stdin
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(command) }()
	ended, err := patiently(ctx, l, done)
	if err == nil {
		err = ended
	} else {
		s.Close()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	stdout, stderr = o.stdout.String(), o.stderr.String()
	var exit *ssh.ExitError
	if errors.As(err, &exit) {
		return stdout, stderr, exit.ExitStatus(), nil
	}
	if err != nil {
		return stdout, stderr, -1, err
	}
	return stdout, stderr, 0, nil
}

const (
	lookAfter = 2 * time.Second // a command that takes longer may be one on a dead host
	lookFor   = 5 * time.Second // what a living host takes at most to show that it lives
)

// errCut is a host that went away in the middle of something.
var errCut = errors.New("down or cut off: it has stopped answering")

// patiently waits for what a host is to answer, and sees to it that one that has gone away is noticed soon.
func patiently[T any](ctx context.Context, l *link, answer <-chan T) (v T, err error) {
	t := time.NewTicker(lookAfter)
	defer t.Stop()
	for {
		select {
		case v = <-answer:
			return v, nil
		case <-ctx.Done():
			return v, ctx.Err()
		case <-t.C:
			if !l.lives(lookFor) {
				l.drop(nil)
				return v, errCut
			}
		}
	}
}

// lives says that the host answers on the connection there is.
func (l *link) lives(within time.Duration) bool {
	l.mu.Lock()
	c := l.client
	l.mu.Unlock()
	if c == nil {
		return false
	}
	answered := make(chan error, 1)
	go func() {
		_, _, err := c.SendRequest("keepalive@openssh.com", true, nil)
		answered <- err
	}()
	select {
	case err := <-answered:
		return err == nil
	case <-time.After(within):
		return false
	}
}

// internal makes an error of ours that a retry may cure.
func internal(err error, format string, args ...any) error {
	var pe *providers.Error
	if errors.As(err, &pe) {
		return err
	}
	return &providers.Error{Kind: providers.Internal, Scope: providers.ScopeCloud, Msg: "ssh: " + fmt.Sprintf(format, args...), Hint: hintOf(err), Err: err}
}
