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
	addr    string   // the host's own, by which we came in
	note    string   // what works less well than it could
	dirs    []string // folders of ours, with a program or without
}

// shellLimit is how long a login shell may take to carry out a simple command.
const shellLimit = 10 * time.Second

func nonce() string {
	b := make([]byte, 8)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// The folders that may be ours on a host, in the order in which they are tried.
const roots = `"$HOME/.skyloom-host" "/var/tmp/skyloom-$u" "/tmp/skyloom-$u"`

// look is a script for any Bourne shell that tells what a host is and what of ours is there. It writes nothing. Like all
// scripts here it has no single quote and no line break, so that every login shell hands it on as it is.
const look = `echo; echo "<<skyloom NONCE"; echo "os=$(uname -s)"; echo "arch=$(uname -m)"; u=$(id -u); echo "uid=$u"; set -- $SSH_CONNECTION; echo "addr=$3"; ` +
	`for r in ` + roots + `; do [ -d "$r" ] && [ -O "$r" ] && [ ! -L "$r" ] || continue; echo "dir=$r"; [ -d "$r/nodes" ] && echo "has=$r"; ` +
	`[ -x "$r/bin/SHA/sky-agent" ] && echo "program=$r"; done; command -v gzip >/dev/null 2>&1 && echo "gzip=1"; echo "skyloom NONCE>>"`

// hardware is a script that tells what a host has, for one that has nothing of ours.
const hardware = `echo; echo "<<skyloom NONCE"; echo "cpus=$(grep -c ^processor /proc/cpuinfo)"; while read k v x; do [ "$k" = MemTotal: ] && echo "memory=$v"; done < /proc/meminfo; ` +
	`if command -v nvidia-smi >/dev/null 2>&1; then if g=$(nvidia-smi --query-gpu=name,memory.total,uuid --format=csv,noheader,nounits 2>&1); then echo "$g" | while read -r x; do echo "gpu=$x"; done; ` +
	`else echo "gpuerror=$(echo $g)"; fi; fi; for f in /var/tmp/skyloom-claims/*.json; do [ -r "$f" ] && echo "claim=$(cat "$f")"; done; echo "skyloom NONCE>>"`

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
	case errors.Is(err, errCut):
		return err
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("its login shell did not %s in time; what its start-up files (.bashrc, .profile) do may hang", what)
	case err != nil:
		return fmt.Errorf("its login shell did not %s: %w", what, err)
	case said == "":
		return fmt.Errorf("its login shell did not %s: it ended with code %d and printed nothing", what, code)
	}
	return fmt.Errorf("its login shell did not %s: it ended with code %d and printed: %s", what, code, said)
}

// broughtUp tells what a host is, and brings our program there if it is not (with put) or if nodes are there that an older
// one made. What is known of a host with the program is remembered for the life of the connection.
func (l *link) broughtUp(ctx context.Context, src providers.AgentSource, put bool) (*ready, error) {
	select {
	case l.prepare <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-l.prepare }()
	l.mu.Lock()
	r := l.ready
	l.mu.Unlock()
	if r != nil {
		if _, sha, err := program(src, r.arch); err == nil && sha == r.sha {
			return r, nil
		}
	}
	r, err := l.bring(ctx, src, put)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	if l.client != nil && r.program != "" {
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

// bring looks at a host and, if put is set, brings the program over where it is not there.
func (l *link) bring(ctx context.Context, src providers.AgentSource, put bool) (*ready, error) {
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
	r := &ready{sha: own, uid: first(facts["uid"]), arch: arch, addr: first(facts["addr"]), dirs: facts["dir"]}
	if root := first(facts["program"]); root != "" {
		r.use(root)
	} else if put || len(facts["has"]) > 0 {
		if err := l.push(ctx, r, path, len(facts["gzip"]) > 0); err != nil {
			return nil, err
		}
	}
	for _, has := range facts["has"] {
		if len(r.roots) == 0 || has != r.roots[0] {
			r.roots = append(r.roots, has)
		}
	}
	return r, nil
}

// use says where on the host the program is.
func (r *ready) use(root string) {
	r.program, r.roots = root+"/bin/"+r.sha[:16]+"/sky-agent", []string{root}
	if !strings.HasSuffix(root, "/"+sharedhost.RootName) {
		r.note = "nodes are kept in " + root + ", since the home folder can't be used"
	}
}

func first(s []string) string {
	if len(s) == 0 {
		return ""
	}
	return s[0]
}

// look asks the host what it is.
func (l *link) look(ctx context.Context, sha string) (map[string][]string, error) {
	return l.facts(ctx, look, sha)
}

// facts runs a script that prints facts.
func (l *link) facts(ctx context.Context, script, sha string) (map[string][]string, error) {
	n := nonce()
	script = strings.NewReplacer("NONCE", n, "SHA", sha[:16]).Replace(script)
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
	return factsOf(body), nil
}

// factsOf reads lines of name=value.
func factsOf(body string) map[string][]string {
	facts := map[string][]string{}
	for line := range strings.SplitSeq(body, "\n") {
		if k, v, ok := strings.Cut(line, "="); ok {
			facts[k] = append(facts[k], v)
		}
	}
	return facts
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
	// The first folder that can be written to is taken; what comes on the input goes there.
	script := `umask 077; echo; u=$(id -u); bad=; root=; for r in ` + roots + `; do [ "$r" = /.skyloom-host ] && [ "$u" != 0 ] && continue; ` +
		`if e=$( { { [ ! -L "$r" ] || { echo "$r is a link"; false; }; } && mkdir -p "$r/bin/SHA" && { [ -O "$r" ] || { echo "$r belongs to another user"; false; }; } && chmod 700 "$r" && ` +
		`echo 0123456789 > "$r/.try" && rm -f "$r/.try"; } 2>&1 ); then root=$r; break; fi; bad="$bad; $(echo $e)"; [ -O "$r" ] && rm -f "$r/.try" 2>/dev/null; done; ` +
		`c=1; e="no folder can be written to$bad"; if [ -n "$root" ]; then d=$root/bin/SHA; f=$d/.new-NONCE; e=$( { UNPACK > "$f" && s=$(wc -c < "$f") && ` +
		`{ [ $s -eq SIZE ] || { echo "only $s bytes arrived"; false; }; } && chmod 700 "$f" && mv -f "$f" "$d/sky-agent" && "$d/sky-agent" version >/dev/null; } 2>&1 ); c=$?; ` +
		`[ $c = 0 ] || rm -f "$f" "$d/sky-agent"; [ $c = 0 ] || rmdir "$d" "$root/bin" "$root" 2>/dev/null; fi; ` +
		`echo "<<skyloom NONCE"; echo "code=$c"; echo "root=$root"; echo "bad=$bad"; echo "said=$(echo $e)"; echo "skyloom NONCE>>"`
	script = strings.NewReplacer("NONCE", n, "SHA", r.sha[:16], "UNPACK", unpack, "SIZE", strconv.FormatInt(st.Size(), 10)).Replace(script)
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
	facts := factsOf(answer)
	said, dir := first(facts["said"]), first(facts["root"])+"/bin"
	switch {
	case first(facts["code"]) == "0":
		r.use(first(facts["root"]))
		if bad := strings.Trim(first(facts["bad"]), "; "); bad != "" && r.note != "" {
			r.note += " (" + bad + ")"
		}
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

// puts says that a verb may bring the program to a host that has nothing of ours.
func puts(verb string, req sharedhost.Request) bool {
	return verb == sharedhost.VerbCreate || verb == sharedhost.VerbStart || verb == sharedhost.VerbProbe && req.Fresh
}

// call has the program on the host do something. A host that has nothing of ours is left as it is, unless the call is to
// make something there: what there is to say of it can be said without.
func (l *link) call(ctx context.Context, src providers.AgentSource, verb string, req sharedhost.Request) (sharedhost.Reply, error) {
	for try := 0; ; try++ {
		r, err := l.broughtUp(ctx, src, puts(verb, req))
		if err != nil {
			return sharedhost.Reply{}, err
		}
		if r.program == "" {
			return l.untouched(ctx, r, verb)
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
		if errors.Is(err, errCut) {
			return reply, &silent{err}
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
