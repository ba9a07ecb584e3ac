package cli

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/skyloom/skyloom/cli/apiserver"
	"github.com/skyloom/skyloom/cli/cluster"
	"github.com/skyloom/skyloom/cli/dashboard"
	"github.com/skyloom/skyloom/cli/docgen"
	"github.com/skyloom/skyloom/cli/events"
	"github.com/skyloom/skyloom/cli/flags"
	"github.com/skyloom/skyloom/cli/infra"
	"github.com/skyloom/skyloom/cli/jobs"
	"github.com/skyloom/skyloom/cli/nodepools"
	"github.com/skyloom/skyloom/cli/session"
	"github.com/skyloom/skyloom/cli/shell"
	"github.com/skyloom/skyloom/cli/sshproxy"
	"github.com/skyloom/skyloom/internal/version"
)

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
			RunE: func(cmd *cobra.Command, args []string) error {
				if len(args) > 0 {
					return session.Usagef("sky version takes no arguments (got %q)", args[0])
				}
				printVersion(s)
				return nil
			},
		},
		newDocsGen(),
	)
	root.SetHelpCommand(&cobra.Command{Use: "help [COMMAND]", Short: "Help on a command", Hidden: true, RunE: func(cmd *cobra.Command, args []string) error {
		if err := knownCommand(cmd.Root(), args); err != nil {
			return err
		}
		target, _, err := cmd.Root().Find(args)
		if err != nil || target == nil {
			target = cmd.Root()
		}
		return target.Help()
	}})
	root.SetIn(s.IO.In)
	root.SetOut(s.IO.Out)
	root.SetErr(s.IO.Err)
	root.SetFlagErrorFunc(flagError)
	for _, c := range root.Commands() {
		c.SuggestFor = otherWords[c.Name()]
	}
	completing := len(s.Args) > 0 && strings.HasPrefix(s.Args[0], cobra.ShellCompRequestCmd)
	eachCommand(root, func(c *cobra.Command) {
		if c.Runnable() && !c.HasSubCommands() && !withoutConfig[c.Name()] {
			flags.Config(c.Flags(), &s.ConfigFlags)
		}
		if completing {
			completeChoices(c)
		}
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

// withoutConfig are the commands that no configuration changes, or that change it themselves.
var withoutConfig = map[string]bool{"version": true, "completion": true, "docs-gen": true, "ssh-proxy": true, "login": true, "logout": true}

// completeChoices completes the values of flags that take one of some words, which their help names: a|b|c.
func completeChoices(c *cobra.Command) {
	c.Flags().VisitAll(func(f *pflag.Flag) {
		words, _ := pflag.UnquoteUsage(f)
		if strings.Contains(words, "|") && !strings.ContainsAny(words, "[]:,") {
			_ = c.RegisterFlagCompletionFunc(f.Name, cobra.FixedCompletions(strings.Split(words, "|"), cobra.ShellCompDirectiveNoFileComp))
		}
	})
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
