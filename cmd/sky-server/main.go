// Command sky-server is the server of Skyloom: API, workflow workers, embedded engine, watcher.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/internal/config"
	"github.com/skyloom/skyloom/internal/store"
	"github.com/skyloom/skyloom/internal/version"
	"github.com/skyloom/skyloom/worker"
	"github.com/skyloom/skyloom/worker/codec"
)

func main() {
	if err := root().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "sky-server:", err)
		os.Exit(1)
	}
}

func root() *cobra.Command {
	var addr string
	var debugging bool
	c := &cobra.Command{
		Use:           "sky-server",
		Short:         "The Skyloom server. `sky` starts it by itself; run it by hand to watch it work.",
		Version:       version.Version,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// The heap is small and short-lived garbage is most of it: a soft limit keeps the collector ahead of it.
			if os.Getenv("GOGC") == "" {
				debug.SetGCPercent(60)
			}
			env, err := config.OSEnv()
			if err != nil {
				return err
			}
			cfg, err := config.LoadServer(env)
			if err != nil {
				return err
			}
			if err := cfg.CheckServer(); err != nil {
				return err
			}
			var level slog.Level
			if err := level.UnmarshalText([]byte(cfg.Server().LogLevel)); err != nil {
				level = slog.LevelInfo
			}
			log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
			slog.SetDefault(log)
			if names := cfg.Idle(); len(names) > 0 {
				log.Warn("settings that this version accepts and does nothing with", "settings", strings.Join(names, ", "), "files", strings.Join(cfg.Sources(), ", "))
			}
			ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return worker.Run(ctx, worker.Options{Home: env.Home, Config: cfg, Addr: addr, Debug: debugging, Log: log})
		},
	}
	c.Flags().StringVar(&addr, "addr", "", "address to listen on (default 127.0.0.1 and the configured port)")
	c.Flags().BoolVar(&debugging, "debug", false, "serve profiles under /debug/pprof/")
	c.AddCommand(rotate(), backup(), failpoints())
	return c
}

func rotate() *cobra.Command {
	return &cobra.Command{
		Use: "rotate-keys", Short: "Make a new key for what is written into workflow histories; old ones still read what they wrote", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			home, err := config.Home()
			if err != nil {
				return err
			}
			ring, err := codec.LoadRing(filepath.Join(home, "keys", "payloads.json"))
			if err != nil {
				return err
			}
			id, err := ring.Rotate()
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "New key %s; a running server takes it at its next start.\n", id)
			return nil
		},
	}
}

func backup() *cobra.Command {
	return &cobra.Command{
		Use: "backup FILE", Short: "Write a consistent copy of the server's database to FILE while it runs", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			home, err := config.Home()
			if err != nil {
				return err
			}
			s, err := store.Open(cmd.Context(), filepath.Join(home, "sky.db"), store.Options{})
			if err != nil {
				return err
			}
			defer s.Close()
			return s.Backup(cmd.Context(), args[0])
		},
	}
}
