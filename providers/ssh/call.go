package ssh

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/skyloom/skyloom/agent/sharedhost"
	"github.com/skyloom/skyloom/providers"
)

// ready is a host that has our program, and what is known of it.
type ready struct {
	sha     string
	program string
	roots   []string // that may hold nodes; the first is for new ones
	uid     string
	arch    string
	addr    string // the host's own, by which we came in
	note    string // what works less well than it could
}

// shellLimit is how long a login shell may take to carry out a simple command.
const shellLimit = 15 * time.Second

func nonce() string {
	b := make([]byte, 8)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// look is a script for any Bourne shell that tells what a host is, and finds a folder that can be written to. It has no
// single quote and no line break, so that every login shell hands it on as it is.
const look = `echo; echo "<<skyloom NONCE"; echo "os=$(uname -s)"; echo "arch=$(uname -m)"; u=$(id -u); echo "uid=$u"; set -- $SSH_CONNECTION; echo "addr=$3"; ` +
	`umask 077; ok=; for r in "$HOME/.skyloom-host" "/var/tmp/skyloom-$u" "/tmp/skyloom-$u"; do case "$r" in /.skyloom-host) [ "$u" = 0 ] || continue;; esac; ` +
	`[ -d "$r/nodes" ] && echo "has=$r"; if [ -z "$ok" ]; then if [ -L "$r" ]; then echo "bad=$r is a link"; ` +
	`elif e=$( { mkdir -p "$r/bin" && { [ -O "$r" ] || { echo "$r belongs to another user"; false; }; } && chmod 700 "$r" && echo 0123456789 > "$r/.try" && rm -f "$r/.try"; } 2>&1 ); then ok=1; echo "root=$r"; ` +
	`[ -x "$r/bin/SHA/sky-agent" ] && echo "program=$r/bin/SHA/sky-agent"; else echo "bad=$r: $(echo $e)"; rm -f "$r/.try" 2>/dev/null; fi; fi; done; command -v gzip >/dev/null 2>&1 && echo "gzip=1"; echo "skyloom NONCE>>"`

// between finds an answer in what a shell printed.
func between(out, nonce string) (string, bool) {
	i := strings.LastIndex(out, sharedhost.Begin(nonce)+"\n")
	if i < 0 {
		return "", false
	}
	out = out[i+len(sharedhost.Begin(nonce))+1:]
	j := strings.Index(out, "\n"+sharedhost.End(nonce))
	if j < 0 {
		return "", false
	}
	return out[:j], true
}

// misbehaves tells of a shell that did not do what it was told.
func misbehaves(what, stdout, stderr string, code int, err error) error {
	said := oneLine(stderr)
	if said == "" {
		said = oneLine(stdout)
	}
	if len(said) > 300 {
		said = "…" + said[len(said)-300:]
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("its login shell did not %s in time; what its start-up files (.bashrc, .profile) do may hang", what)
	case err != nil:
		return fmt.Errorf("its login shell did not %s: %w", what, err)
	case said == "":
		return fmt.Errorf("its login shell did not %s: it ended with code %d and printed nothing", what, code)
	}
	return fmt.Errorf("its login shell did not %s: it ended with code %d and printed: %s", what, code, said)
}

// broughtUp brings our program to the host if it is not there, and tells what the host is. It is remembered for the life of
// the connection.
func (l *link) broughtUp(ctx context.Context, src providers.AgentSource) (*ready, error) {
	l.mu.Lock()
	r := l.ready
	l.mu.Unlock()
	if r != nil && src == nil {
		return r, nil
	}
	l.prepare.Lock()
	defer l.prepare.Unlock()
	l.mu.Lock()
	r = l.ready
	l.mu.Unlock()
	if r != nil {
		_, sha, err := program(src, r.arch)
		if src == nil || err == nil && sha == r.sha {
			return r, nil
		}
	}
	r, err := l.bring(ctx, src)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	if l.client != nil {
		l.ready = r
	}
	l.mu.Unlock()
	return r, nil
}

// architectures by what uname tells.
var architectures = map[string]string{"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}

func program(src providers.AgentSource, arch string) (path, sha string, err error) {
	goarch, ok := architectures[arch]
	if !ok {
		return "", "", fmt.Errorf("wrong architecture: it is a %s, the agent runs on x86_64 and aarch64", arch)
	}
	if src == nil {
		return "", "", errors.New("nobody says where the agent's program is")
	}
	if path, sha, err = src.Path("linux", goarch); err != nil {
		return "", "", fmt.Errorf("wrong architecture: it is a %s: %w", arch, err)
	}
	if len(sha) < 16 {
		return "", "", fmt.Errorf("%q is no hash of the agent's program", sha)
	}
	return path, sha, nil
}

func (l *link) bring(ctx context.Context, src providers.AgentSource) (*ready, error) {
	// Most hosts have the architecture of the one before; the look is for its program.
	_, sha, err := program(src, "x86_64")
	if err != nil {
		sha = strings.Repeat("0", 16)
	}
	facts, err := l.look(ctx, sha)
	if err != nil {
		return nil, err
	}
	if os := facts["os"]; len(os) > 0 && os[0] != "Linux" {
		return nil, fmt.Errorf("wrong system: it runs %s, nodes need Linux", os[0])
	}
	arch := first(facts["arch"])
	path, own, err := program(src, arch)
	if err != nil {
		return nil, err
	}
	if own != sha {
		if facts, err = l.look(ctx, own); err != nil {
			return nil, err
		}
	}
	if len(facts["root"]) == 0 {
		bad := strings.Join(facts["bad"], "; ")
		if strings.Contains(bad, "No space left") || strings.Contains(bad, "quota exceeded") {
			return nil, fmt.Errorf("no space left on its disk (%s)", bad)
		}
		return nil, fmt.Errorf("no folder can be written to (%s)", bad)
	}
	r := &ready{sha: own, program: first(facts["program"]), uid: first(facts["uid"]), arch: arch, addr: first(facts["addr"]), roots: []string{first(facts["root"])}}
	if bad := facts["bad"]; len(bad) > 0 {
		r.note = fmt.Sprintf("nodes are kept in %s (%s)", r.roots[0], strings.Join(bad, "; "))
	}
	for _, has := range facts["has"] {
		if has != r.roots[0] {
			r.roots = append(r.roots, has)
		}
	}
	if r.program == "" {
		if err := l.push(ctx, r, path, len(facts["gzip"]) > 0); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func first(s []string) string {
	if len(s) == 0 {
		return ""
	}
	return s[0]
}

// look asks the host what it is.
func (l *link) look(ctx context.Context, sha string) (map[string][]string, error) {
	n := nonce()
	script := strings.NewReplacer("NONCE", n, "SHA", sha[:16]).Replace(look)
	lctx, cancel := context.WithTimeout(ctx, shellLimit)
	defer cancel()
	stdout, stderr, code, err := l.run(lctx, "/bin/sh -c '"+script+"'", nil)
	if err != nil && ctx.Err() == nil && !errors.Is(err, context.DeadlineExceeded) {
		var u *unreachable
		if errors.As(err, &u) {
			return nil, err
		}
	}
	body, ok := between(stdout, n)
	if !ok {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, misbehaves("run a simple script", stdout, stderr, code, err)
	}
	facts := map[string][]string{}
	for line := range strings.SplitSeq(body, "\n") {
		if k, v, ok := strings.Cut(line, "="); ok {
			facts[k] = append(facts[k], v)
		}
	}
	return facts, nil
}

// pushLimit is how long the way of the program to a host may take.
const pushLimit = 3 * time.Minute

// near is a host that answers so fast that to press a program costs more than to send it.
const near = 150 * time.Millisecond

// push brings the program to the host: under another name first, so that whoever runs it finds it whole or not at all.
func (l *link) push(ctx context.Context, r *ready, path string, gz bool) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	l.mu.Lock()
	gz = gz && l.rtt > near
	l.mu.Unlock()
	var body io.Reader
	unpack := "cat"
	if gz {
		b, err := pressed(path, st)
		if err != nil {
			return err
		}
		body, unpack = bytes.NewReader(b), "gzip -dc"
	} else {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		body = f
	}
	n := nonce()
	dir := r.roots[0] + "/bin/" + r.sha[:16]
	script := `umask 077; echo; d=` + dir + `; f=$d/.new-` + n + `; e=$( { mkdir -p $d && ` + unpack + ` > $f && s=$(wc -c < $f) && { [ $s -eq ` + strconv.FormatInt(st.Size(), 10) +
		` ] || { echo "only $s bytes arrived"; false; }; } && chmod 700 $f && mv -f $f $d/sky-agent && $d/sky-agent version >/dev/null; } 2>&1 ); c=$?; ` +
		`[ $c = 0 ] || rm -f $f $d/sky-agent; echo "<<skyloom ` + n + `"; echo "code=$c"; echo "said=$(echo $e)"; echo "skyloom ` + n + `>>"`
	pctx, cancel := context.WithTimeout(ctx, pushLimit)
	defer cancel()
	stdout, stderr, code, err := l.run(pctx, "/bin/sh -c '"+script+"'", body)
	answer, ok := between(stdout, n)
	if !ok {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var u *unreachable
		if errors.As(err, &u) {
			return err
		}
		return misbehaves("take the agent's program", stdout, stderr, code, err)
	}
	lines := strings.SplitN(answer, "\n", 2)
	said := ""
	if len(lines) > 1 {
		said = strings.TrimPrefix(lines[1], "said=")
	}
	switch {
	case lines[0] == "code=0":
		r.program = dir + "/sky-agent"
		return nil
	case strings.Contains(said, "No space left"), strings.Contains(said, "quota exceeded"), strings.Contains(said, "only "):
		return fmt.Errorf("no space left on its disk for the agent's program (%s)", said)
	case strings.Contains(said, "xec format error"), strings.Contains(said, "cannot execute binary"):
		return fmt.Errorf("wrong architecture: it calls itself %s and can't run the program for that (%s)", r.arch, said)
	case strings.Contains(said, "ermission denied"):
		return fmt.Errorf("programs in %s may not run (%s); is it mounted noexec?", dir, said)
	}
	return fmt.Errorf("the agent's program can't be put in place: %s", said)
}

var pressing struct {
	sync.Mutex
	path string
	at   time.Time
	body []byte
}

// pressed is a program, compressed; the last one is kept.
func pressed(path string, st os.FileInfo) ([]byte, error) {
	pressing.Lock()
	defer pressing.Unlock()
	if pressing.path == path && pressing.at.Equal(st.ModTime()) {
		return pressing.body, nil
	}
	in, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err == nil {
		_, err = w.Write(in)
		err = errors.Join(err, w.Close())
	}
	if err != nil {
		return nil, err
	}
	pressing.path, pressing.at, pressing.body = path, st.ModTime(), b.Bytes()
	return pressing.body, nil
}

// quote makes one word of a Bourne or C shell's command line.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// silent is a call of which it is not known whether it took effect.
type silent struct{ err error }

func (e *silent) Error() string { return e.err.Error() }
func (e *silent) Unwrap() error { return e.err }

// call has the program on the host do something. The program is brought over if it is not there.
func (l *link) call(ctx context.Context, src providers.AgentSource, verb string, req sharedhost.Request) (sharedhost.Reply, error) {
	for try := 0; ; try++ {
		r, err := l.broughtUp(ctx, src)
		if err != nil {
			return sharedhost.Reply{}, err
		}
		req.Roots, req.Addr = r.roots, r.addr
		l.mu.Lock()
		req.SudoPassword = l.target.Password
		l.mu.Unlock()
		body, err := json.Marshal(req)
		if err != nil {
			return sharedhost.Reply{}, err
		}
		n := nonce()
		stdout, stderr, code, err := l.run(ctx, quote(r.program)+" host "+verb+" "+n, bytes.NewReader(append(body, '\n')))
		answer, ok := between(stdout, n)
		var reply sharedhost.Reply
		if ok {
			if err := json.Unmarshal([]byte(answer), &reply); err != nil {
				return reply, fmt.Errorf("its answer is not understood: %w", err)
			}
			if r.note != "" {
				reply.Note = strings.TrimPrefix(reply.Note+"; "+r.note, "; ")
			}
			if reply.Error != nil {
				return reply, reply.Error
			}
			return reply, nil
		}
		if ctx.Err() != nil {
			return reply, &silent{ctx.Err()}
		}
		var u *unreachable
		if errors.As(err, &u) {
			return reply, err
		}
		if err != nil {
			return reply, &silent{fmt.Errorf("the connection broke: %w", err)}
		}
		if code == 127 || code == 126 || strings.Contains(stderr, "No such file") || strings.Contains(stderr, "not found") {
			// Somebody took the host down: once more from the start.
			l.mu.Lock()
			l.ready = nil
			l.mu.Unlock()
			if try == 0 {
				continue
			}
		}
		return reply, misbehaves("run the agent's program", stdout, stderr, code, nil)
	}
}
