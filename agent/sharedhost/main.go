//go:build linux

package sharedhost

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/skyloom/skyloom/agent/claims"
	"github.com/skyloom/skyloom/agent/durable"
)

// callLimit bounds a call; a node that ends slowly takes up to half a minute.
const callLimit = 2 * time.Minute

// Main carries out `sky-agent host ARGS` and gives the exit code: 0 also for an answer that is an error.
//
//	host VERB NONCE [up]     a Request on stdin; "up" is set by the call itself when it became root
//	host dial NONCE SOCKET
//	host sweep ROOT
func Main(args []string) int {
	switch {
	case len(args) == 3 && args[0] == VerbDial:
		return dial(args[1], args[2])
	case len(args) == 2 && args[0] == VerbSweep:
		sweep(args[1])
		return 0
	case len(args) == 2 || len(args) == 3 && args[2] == "up":
		return call(args[0], args[1], len(args) == 3)
	}
	fmt.Fprintln(os.Stderr, "sky-agent host: it is called by sky-server, see its documentation")
	return 2
}

func call(verb, nonce string, up bool) int {
	syscall.Umask(0o077)
	if up {
		// Whoever made us root waits for this before it sends anything.
		fmt.Println(upMark)
		if err := skipTo(os.Stdin, requestMark); err != nil {
			return 1
		}
	}
	var req Request
	if err := json.NewDecoder(os.Stdin).Decode(&req); err != nil {
		return answer(nonce, Reply{Error: errorf(KindInvalid, "the request can't be read: %v", err)})
	}
	if !up {
		req.Login, req.LoginName = os.Getuid(), loginName()
		if req.Fresh && len(req.Roots) > 0 {
			os.Remove(filepath.Join(req.Roots[0], "sudo.json"))
		}
		if os.Geteuid() != 0 && !req.Plain {
			done, note := elevate(verb, nonce, req)
			if done {
				return 0
			}
			req.Plain = true
			return perform(verb, nonce, req, note)
		}
	}
	return perform(verb, nonce, req, "")
}

func loginName() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return os.Getenv("USER")
}

func perform(verb, nonce string, req Request, note string) int {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	h, err := newHost(req)
	if err != nil {
		return answer(nonce, Reply{Error: asError(err)})
	}
	h.note = note
	if req.Fresh {
		os.Remove(filepath.Join(h.root(), "gpus.json"))
	}
	var r Reply
	switch verb {
	case VerbProbe:
		r.Info, err = h.info(ctx)
	case VerbList:
		if r.Nodes, err = h.list(ctx); err == nil {
			r.Info, err = h.info(ctx)
		}
	case VerbCreate:
		var n Node
		if n, err = h.create(ctx); err == nil {
			r.Nodes = []Node{n}
		}
		h.tidy()
	case VerbStart:
		r.Nodes, err = h.start(ctx)
	case VerbStop:
		r.Nodes, err = h.stop(ctx)
	case VerbDelete:
		err = h.delete(ctx)
		h.tidy()
	case VerbClean:
		r.Kept, err = h.clean(ctx)
	default:
		err = errorf(KindInvalid, "unknown verb %q", verb)
	}
	switch verb {
	case VerbCreate, VerbStart, VerbStop, VerbDelete:
		r.Info, _ = h.info(ctx) // what is left, for the caller's next choice
	}
	r.Error, r.Note = asError(err), h.note
	return answer(nonce, r)
}

// answer writes a reply between the caller's marks.
func answer(nonce string, r Reply) int {
	b, err := json.Marshal(r)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Printf("\n%s\n%s\n%s\n", Begin(nonce), b, End(nonce))
	return 0
}

// asError makes the error of a reply.
func asError(err error) *Error {
	var e *Error
	var full *claims.Full
	switch {
	case err == nil:
		return nil
	case errors.As(err, &full):
		return &Error{KindFull, full.Reason}
	case errors.Is(err, durable.ErrFull), errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return &Error{KindDisk, "no space left on its disk: " + err.Error()}
	case errors.As(err, &e):
		return e
	}
	return &Error{KindInternal, err.Error()}
}

// skipTo reads lines until one is the mark. It reads byte by byte: what follows is the next reader's.
func skipTo(r io.Reader, mark string) error {
	var line []byte
	var b [1]byte
	for {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return err
		}
		if b[0] != '\n' {
			line = append(line, b[0])
			continue
		}
		if string(line) == mark {
			return nil
		}
		line = line[:0]
	}
}

// clean removes everything of a root, unless nodes are left there; those it names.
func (h *host) clean(ctx context.Context) (kept []string, err error) {
	recs, err := h.records(func(*record) bool { return true })
	if err != nil {
		return nil, err
	}
	busy := map[string]bool{}
	for _, r := range recs {
		busy[r.root()] = true
		whose := "this server"
		if r.Installation != h.req.Installation {
			whose = "another server"
		}
		state, _ := r.state()
		kept = append(kept, fmt.Sprintf("node %s of cluster %s (%s, of %s)", r.ID, r.Cluster, state, whose))
	}
	for _, root := range h.req.Roots {
		if busy[root] {
			sweep(root)
			continue
		}
		if err := removeAll(root); err != nil {
			return kept, fmt.Errorf("remove %s: %w", root, err)
		}
	}
	if len(recs) == 0 {
		removeAll(fmt.Sprintf("/tmp/skyloom-s-%d", h.req.Login))
	}
	slices.Sort(kept)
	// The ledger goes with its last claim.
	l, err := claims.Open(ctx, h.claimsDir)
	if err != nil {
		return kept, err
	}
	_, err = l.Live()
	l.Close()
	return kept, err
}
