package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/skyloom/skyloom/internal/webhook"
	"github.com/skyloom/skyloom/tests/rig"
)

// hooks is a receiver of webhooks. It writes a line into hooks.txt for each post that it accepts: the id of the job, its
// task, the state, and whether the signature is right; "again" stands at the end of one that came before.
type hooks struct {
	addr, file string
	mu         sync.Mutex
	secrets    []string
	seen       map[string]bool
	srv        *http.Server
}

type hooksKey struct{}

// cmdHooks runs a receiver: "hooks addr" sets $HOOKS to the host and port it will have, "hooks up [SECRET...]" begins to
// accept, "hooks down" ends that: connections are refused.
func cmdHooks(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: hooks addr|up [SECRET...]|down")
	}
	h, _ := ts.Value(hooksKey{}).(*hooks)
	if h == nil {
		ts.Fatalf("hooks: no receiver")
	}
	switch args[0] {
	case "addr":
		addr, release, err := rig.ReserveAddr()
		ts.Check(err)
		ts.Defer(release)
		h.addr, h.file = addr, ts.MkAbs("hooks.txt")
		ts.Check(os.WriteFile(h.file, nil, 0o644))
		ts.Setenv("HOOKS", h.addr)
		ts.Defer(func() { h.down() })
	case "up":
		l, err := net.Listen("tcp", h.addr)
		ts.Check(err)
		h.mu.Lock()
		h.secrets, h.srv = args[1:], &http.Server{Handler: h}
		h.mu.Unlock()
		go func() { _ = h.srv.Serve(l) }()
	case "down":
		h.down()
	default:
		ts.Fatalf("hooks: unknown verb %q", args[0])
	}
}

func (h *hooks) down() {
	if h.srv != nil {
		_ = h.srv.Close()
	}
}

func (h *hooks) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	body, err := io.ReadAll(r.Body)
	var x struct {
		Type string `json:"type"`
		Data struct {
			Job  int64 `json:"job_id"`
			Task int   `json:"task_id"`
		} `json:"data"`
	}
	if err == nil {
		err = json.Unmarshal(body, &x)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	id := r.Header.Get("webhook-id")
	at, _ := strconv.ParseInt(r.Header.Get("webhook-timestamp"), 10, 64)
	sig := "unsigned"
	for i, s := range h.secrets {
		if want, err := webhook.Sign(s, id, time.Unix(at, 0), body); err == nil && want == r.Header.Get("webhook-signature") {
			sig = "signed" + strconv.Itoa(i)
		}
	}
	line := fmt.Sprintf("%d.%d %s %s", x.Data.Job, x.Data.Task, strings.TrimPrefix(x.Type, "job."), sig)
	if h.seen[id] {
		line += " again"
	}
	h.seen[id] = true
	f, err := os.OpenFile(h.file, os.O_APPEND|os.O_WRONLY, 0o644)
	if err == nil {
		_, err = fmt.Fprintln(f, line)
		_ = f.Close()
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}
