package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/cli/apiserver"
	"github.com/skyloom/skyloom/cli/cluster"
	"github.com/skyloom/skyloom/cli/dashboard"
	"github.com/skyloom/skyloom/cli/docgen"
	"github.com/skyloom/skyloom/cli/events"
	"github.com/skyloom/skyloom/cli/infra"
	"github.com/skyloom/skyloom/cli/jobs"
	"github.com/skyloom/skyloom/cli/nodepools"
	"github.com/skyloom/skyloom/cli/session"
	"github.com/skyloom/skyloom/cli/shell"
	"github.com/skyloom/skyloom/cli/sshproxy"
	"github.com/skyloom/skyloom/internal/version"
)

// later names the commands that come with later releases, and what they are for.
var later = map[string]string{
	"jobs pool":         "pools come",
	"jobs dashboard":    "its page in the dashboard comes",
	"serve":             "services come",
	"storage":           "storage comes",
	"volumes":           "volumes come",
	"volume":            "volumes come",
	"workspace":         "workspaces come",
	"local":             "Kubernetes on this machine comes",
	"debug-dump":        "debug dumps come",
	"status-kubernetes": "Kubernetes comes",
	"gpus label":        "Kubernetes comes",
}

// laterHints say what to use meanwhile.
var laterHints = map[string]string{
	"jobs pool":      "Until then: sky jobs launch gives each job a cluster of its own; --num-jobs makes many.",
	"jobs dashboard": "Until then: sky jobs queue, and sky dashboard for the workflows.",
	"storage":        "Until then: local files go to the nodes by workdir and file_mounts.",
	"volumes":        "Until then: local files go to the nodes by workdir and file_mounts.",
	"local":          "The infra of this machine needs no preparation: sky launch --infra local.",
}

func laterError(name, what string) error {
	msg := fmt.Sprintf("sky %s: %s with a later release; this one does clusters and managed jobs.", name, what)
	if hint := laterHints[name]; hint != "" {
		msg += "\n" + hint
	}
	return fmt.Errorf("%s", msg)
}

// knownCommand refuses a first word that names no command, before flags are looked at.
func knownCommand(root *cobra.Command, args []string) error {
	if len(args) == 0 || strings.HasPrefix(args[0], "-") || args[0] == "help" || args[0] == cobra.ShellCompRequestCmd || args[0] == cobra.ShellCompNoDescRequestCmd {
		return nil
	}
	for n := range min(len(args), 2) {
		name := strings.Join(args[:n+1], " ")
		if what, ok := later[name]; ok {
			return laterError(name, what)
		}
	}
	if cmd, _, err := root.Find(args[:1]); err == nil && cmd != root {
		return nil
	}
	msg := fmt.Sprintf("sky has no command %q", args[0])
	if near := root.SuggestionsFor(args[0]); len(near) > 0 {
		msg += "; did you mean " + strings.Join(near, ", ") + "?"
	}
	return session.Usagef("%s", msg)
}

func printVersion(s *session.Session) { s.IO.Printf("skyloom, version %s\n", version.Version) }
func printCommit(s *session.Session)  { s.IO.Printf("skyloom, commit %s\n", version.Commit) }

// NewRoot makes the tree of commands, in the order in which help lists them.
func NewRoot(s *session.Session) *cobra.Command {
	var showVersion, showCommit bool
	var install, uninstall string
	root := &cobra.Command{
		Use:           "sky",
		Short:         "Run tasks on any infra, durably",
		Long:          "sky runs tasks on clusters on any infra. What it starts survives crashes of everything but the task.",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case showVersion:
				printVersion(s)
				return nil
			case showCommit:
				printCommit(s)
				return nil
			case install != "":
				return shell.Install(s, cmd, install)
			case uninstall != "":
				return shell.Uninstall(s, uninstall)
			}
			return session.Group(cmd, args)
		},
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	cobra.EnableCommandSorting = false
	fs := root.Flags()
	fs.SortFlags = false
	fs.BoolVarP(&showVersion, "version", "v", false, "print the version")
	fs.BoolVarP(&showCommit, "commit", "c", false, "print the commit it was built from")
	fs.StringVar(&install, "install-shell-completion", "", "install completion for `bash|zsh|fish|auto`")
	fs.StringVar(&uninstall, "uninstall-shell-completion", "", "remove completion for `bash|zsh|fish|auto`")

	root.AddCommand(
		cluster.NewLaunch(s, nil),
		cluster.NewExec(s, nil),
		cluster.NewStatus(s, nil),
		cluster.NewQueue(s, nil),
		cluster.NewLogs(s, nil),
		cluster.NewCancel(s, nil),
		cluster.NewStop(s, nil),
		cluster.NewStart(s, nil),
		cluster.NewDown(s, nil),
		cluster.NewAutostop(s, nil),
		cluster.NewPreempt(s, nil),
		jobs.New(s),
		events.New(s, nil),
		infra.NewCheck(s, nil),
		infra.NewGPUs(s, nil),
		infra.NewShowGPUs(s, nil),
		cluster.NewCostReport(s, nil),
		apiserver.New(s),
		dashboard.New(s, nil),
		shell.New(s),
		nodepools.New(s, nil),
		sshproxy.New(s, nil),
		&cobra.Command{
			Use:   "version",
			Short: "Print the version",
			RunE:  func(cmd *cobra.Command, args []string) error { printVersion(s); return nil },
		},
		newDocsGen(),
	)
	root.SetHelpCommand(&cobra.Command{Use: "help [COMMAND]", Short: "Help on a command", Hidden: true, Run: func(cmd *cobra.Command, args []string) {
		target, _, err := cmd.Root().Find(args)
		if err != nil || target == nil {
			target = cmd.Root()
		}
		_ = target.Help()
	}})
	root.SetIn(s.IO.In)
	root.SetOut(s.IO.Out)
	root.SetErr(s.IO.Err)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return session.Usagef("%v", err) })
	eachCommand(root, func(c *cobra.Command) {
		c.Flags().SortFlags = false
		c.DisableFlagsInUseLine = true
		c.SuggestionsMinimumDistance = 2
		c.InitDefaultHelpFlag()
		if f := c.Flags().Lookup("help"); f != nil {
			f.Usage = "show this help"
		}
	})
	return root
}

func eachCommand(c *cobra.Command, f func(*cobra.Command)) {
	f(c)
	for _, sub := range c.Commands() {
		eachCommand(sub, f)
	}
}

func newDocsGen() *cobra.Command {
	return &cobra.Command{
		Use:    "docs-gen DIR",
		Short:  "Write the command reference",
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return session.Usagef("exactly one folder")
			}
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(args[0], "commands.md"), docgen.Render(cmd.Root()), 0o644)
		},
	}
}
