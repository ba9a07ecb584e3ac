package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/skyloom/skyloom/cli/session"
	"github.com/skyloom/skyloom/task"
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
	"workspaces":        "workspaces come",
	"users":             "users and roles come",
	"recipes":           "stored recipes come",
	"batch":             "batch inference over pools comes",
	"local":             "Kubernetes on this machine comes",
	"debug-dump":        "debug dumps come",
	"status-kubernetes": "Kubernetes comes",
	"gpus label":        "Kubernetes comes",
}

// laterHints say what to use meanwhile.
var laterHints = map[string]string{
	"jobs pool":      "Until then: sky jobs launch gives each job a cluster of its own; --num-jobs makes many.",
	"jobs dashboard": "Until then: sky jobs queue, and sky dashboard for the workflows.",
	"serve":          "Until then: resources.ports of a task opens ports; their addresses: sky status --endpoints CLUSTER.",
	"batch":          "Until then: an array in a managed job runs many elements on a few clusters; see sky jobs launch --help.",
	"recipes":        "Until then: sky launch takes a task file or a command.",
	"storage":        "Until then: local files go to the nodes by workdir and file_mounts.",
	"volumes":        "Until then: local files go to the nodes by workdir and file_mounts.",
	"local":          "The infra of this machine needs no preparation: sky launch --infra local.",
}

// otherWords are what people call commands by elsewhere.
var otherWords = map[string][]string{
	"launch": {"run", "up", "create"},
	"status": {"list", "ls", "ps"},
	"down":   {"rm", "delete", "destroy", "terminate"},
	"cancel": {"kill"},
	"jobs":   {"spot"},
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

// flagError says what is wrong with a flag: which one may have been meant, and what to do with flags of the command that
// is to be run, which are taken for those of sky.
func flagError(cmd *cobra.Command, err error) error {
	msg := err.Error()
	given, unknown := strings.CutPrefix(msg, "unknown flag: --")
	if unknown {
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden {
				names = append(names, f.Name)
			}
		})
		if near := task.Suggest(given, names); near != "" {
			msg += "; did you mean --" + near + "?"
		}
	}
	words := cmd.Flags().Args()
	if takesEntrypoint(cmd) && (unknown || strings.HasPrefix(msg, "unknown shorthand flag")) && len(words) > 0 {
		if cmd.Name() == "exec" && !cmd.Flags().Changed("cluster") {
			words = words[1:]
		}
		if len(words) > 0 {
			msg += fmt.Sprintf("\nIf it belongs to the command that is to be run, put -- before that: %s ... -- %s ...", cmd.CommandPath(), words[0])
		}
	}
	return session.Usagef("%s", msg)
}

func takesEntrypoint(cmd *cobra.Command) bool { return strings.Contains(cmd.Use, "ENTRYPOINT") }
