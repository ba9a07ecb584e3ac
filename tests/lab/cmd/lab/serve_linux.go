package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/skyloom/skyloom/tests/lab"
)

// holder is the process that the hosts live and die with.
type holder struct {
	l    *lab.Lab
	mu   sync.Mutex // held by up
	down func()
}

func serve() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	l, err := lab.Start(ctx, lab.Options{Log: func(f string, a ...any) { fmt.Fprintf(os.Stderr, f+"\n", a...) }})
	if err != nil {
		return err
	}
	defer l.Close()
	_ = os.Remove(socket)
	ln, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	defer ln.Close()
	if err := os.Chmod(socket, 0o600); err != nil {
		return err
	}
	fmt.Println("ready")
	if null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0); err == nil { // who started us goes away
		for _, fd := range []int{1, 2} {
			_ = syscall.Dup3(int(null.Fd()), fd, 0)
		}
		null.Close()
	}
	ctx, cancel := context.WithCancel(ctx)
	h := &holder{l: l, down: cancel}
	var wg sync.WaitGroup
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				cancel()
				return
			}
			wg.Go(func() { h.answer(ctx, c) })
		}
	}()
	<-ctx.Done()
	ln.Close()
	err = l.Close()
	wg.Wait()
	return err
}

func (h *holder) answer(ctx context.Context, c net.Conn) {
	defer c.Close()
	var q request
	if json.NewDecoder(c).Decode(&q) != nil || len(q.Args) == 0 {
		return
	}
	if q.Args[0] == "down" {
		h.down() // no more requests
		reply(c, "", h.l.Close())
		return
	}
	out, err := h.do(ctx, q)
	reply(c, out, err)
}

func reply(c net.Conn, out string, err error) {
	a := answer{Out: out}
	if ee := (*lab.ExitError)(nil); errors.As(err, &ee) {
		a.Err = "exit " + strconv.Itoa(ee.Code)
	} else if err != nil {
		a.Err = err.Error()
	}
	_ = json.NewEncoder(c).Encode(a)
}

func (h *holder) do(ctx context.Context, q request) (string, error) {
	switch q.Args[0] {
	case "up":
		return h.up(q)
	case "list":
		return h.list(), nil
	case "netns":
		return h.l.NetNS(), nil
	case "ssh-config":
		return h.l.SSHConfig(), nil
	case "ssh-config-file":
		p := filepath.Join(h.l.Dir(), "ssh_config")
		return p, os.WriteFile(p, []byte(h.l.SSHConfig()), 0o600)
	case "pools":
		name := "lab"
		if len(q.Args) > 1 {
			name = q.Args[1]
		}
		return h.l.PoolsYAML(name), nil
	}
	if len(q.Args) < 2 {
		return "", fmt.Errorf("lab %s of which host? lab list names them, lab help tells the commands", q.Args[0])
	}
	host := h.l.ByName(q.Args[1])
	if host == nil {
		return "", fmt.Errorf("there is no host %s: lab list names them", q.Args[1])
	}
	switch q.Args[0] {
	case "cut":
		return "", host.Cut()
	case "join":
		return "", host.Join()
	case "kill":
		return "", host.Kill()
	case "boot":
		return "", host.Boot()
	case "reboot":
		return "", host.Reboot()
	case "recreate":
		return "", host.Recreate()
	case "fill":
		return "", host.FillDisk()
	case "free":
		return "", host.FreeDisk()
	case "slow":
		if len(q.Args) == 3 {
			if n, err := strconv.ParseInt(q.Args[2], 10, 64); err == nil {
				return "", host.Slow(n)
			}
		}
		return "", errors.New("slow takes a host and bytes a second: lab slow h1 1000000")
	case "run":
		return host.Run(ctx, strings.Join(q.Args[2:], " "))
	case "ps":
		ps, err := host.Processes()
		var b strings.Builder
		for _, p := range ps {
			fmt.Fprintln(&b, p)
		}
		return b.String(), err
	case "changes":
		c, err := host.Changes()
		return strings.Join(append(c, ""), "\n"), err
	}
	return "", fmt.Errorf("there is no command %s: lab help", q.Args[0])
}

// up makes hosts until there are as many as wanted.
func (h *holder) up(q request) (string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var specs []lab.HostSpec
	for range q.Want - len(h.l.Hosts()) {
		specs = append(specs, q.Spec)
	}
	err := h.l.AddAll(specs...)
	return h.list(), err
}

func (h *holder) list() string {
	var b strings.Builder
	for _, host := range h.l.Hosts() {
		state := "down"
		var load string
		if host.Up() {
			state = "up"
			ps, _ := host.Processes()
			u, _ := host.Usage()
			load = fmt.Sprintf("  %d processes, %.1f MB, %.2f CPU s", len(ps), u.MemoryMB, u.CPU.Seconds())
		}
		fmt.Fprintf(&b, "%-12s %-12s %-10s %s%s\n", host.Name, host.Addr, host.User, state, load)
	}
	return b.String()
}
