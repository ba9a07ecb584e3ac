// Command sky-agent runs on each node of a cluster.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/skyloom/skyloom/agent"
	"github.com/skyloom/skyloom/agent/rsyncd"
	"github.com/skyloom/skyloom/agent/scpd"
	"github.com/skyloom/skyloom/agent/sharedhost"
	"github.com/skyloom/skyloom/agent/shim"
	"github.com/skyloom/skyloom/agent/supervisor"
	"github.com/skyloom/skyloom/internal/failpoint"
	"github.com/skyloom/skyloom/internal/version"
)

const usage = `sky-agent runs on the nodes of a cluster; sky-server starts it there.

  sky-agent init --config node.json     root of the node's processes: keeps the agent running
  sky-agent serve --config node.json    the agent proper; started by init
  sky-agent job-shim --spec FILE        runs one script of a job; started by serve
  sky-agent host VERB NONCE             on a shared host: claims, nodes; called by sky-server over SSH
  sky-agent rsync|scp ...               the far end of a user's rsync or scp; started by serve
  sky-agent version
`

func main() {
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	verb := ""
	if len(args) > 0 {
		verb = args[0]
	}
	switch verb {
	case "version", "--version":
		fmt.Println("sky-agent", version.Version)
		return 0
	case "rsync": // on nodes that have none: the far end of a user's rsync
		debug.SetGCPercent(200)
		return rsyncd.Run(args[1:], os.Stdin, os.Stdout, os.Stderr)
	case "scp":
		return scpd.Run(args[1:], os.Stdin, os.Stdout, os.Stderr)
	case "init", "serve", "job-shim":
		flag := "--config"
		if verb == "job-shim" {
			flag = "--spec"
		}
		if len(args) != 3 || args[1] != flag {
			fmt.Fprintf(os.Stderr, "sky-agent %s: give it %s FILE and nothing else\n", verb, flag)
			return 2
		}
		if verb == "job-shim" {
			runtime.GOMAXPROCS(2)
			return shim.Run(args[2])
		}
		return node(verb, args[2])
	case "host":
		runtime.GOMAXPROCS(2)
		return sharedhost.Main(args[1:])
	case "help", "-h", "--help":
		fmt.Print(usage)
		return 0
	}
	fmt.Fprint(os.Stderr, usage)
	return 2
}

func node(verb, file string) int {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil)).With("part", verb)
	file, err := filepath.Abs(file) // init starts serve from another folder
	if err != nil {
		fmt.Fprintln(os.Stderr, "sky-agent:", err)
		return 1
	}
	cfg, err := agent.LoadConfig(file)
	if err != nil {
		fmt.Fprintln(os.Stderr, "sky-agent:", err)
		return 1
	}
	if verb == "init" {
		runtime.GOMAXPROCS(2)
		return supervisor.Run(supervisor.Options{
			ConfigFile: file, Dir: cfg.Dir, NodeMark: agent.NodeMark(cfg), Isolated: cfg.Isolated, TmpDir: cfg.TmpDir, CgroupRoot: cfg.CgroupRoot,
			PowerOff: cfg.SelfEnd == "poweroff", Log: log,
		})
	}
	if err := failpoint.Check(); err != nil {
		log.Warn("failpoints", "error", err)
	}
	// A node's memory belongs to its jobs: collect early, and give back.
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(64 << 20)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGPIPE) // not ignored, lest jobs inherit that
	a, err := agent.Open(cfg, log)
	if err != nil {
		log.Error("the agent cannot start", "error", err)
		return 1
	}
	code, err := a.Run(ctx)
	if err != nil {
		log.Error("the agent ended", "error", err)
		if code == 0 {
			code = 1
		}
	}
	return code
}
