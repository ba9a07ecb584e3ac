// Package shell installs and prints completion scripts for shells. It touches only its own script, its own lines in the
// shell's start-up file, and nothing else.
package shell

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/cli/session"
)

// Shells that completion can be installed for.
var Shells = []string{"bash", "zsh", "fish", "auto"}

// marker begins each line that belongs to us in a start-up file.
const marker = "# sky shell completion"

// New makes `sky completion`.
func New(s *session.Session) *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish|powershell",
		Short: "Print the completion script for a shell",
		Long: `Print the completion script for a shell. To install it:
  sky --install-shell-completion auto`,
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return session.Usagef("exactly one shell: bash, zsh, fish or powershell")
			}
			return Script(cmd.Root(), args[0], s.IO.Out)
		},
	}
}

// Script writes the completion script for a shell.
func Script(root *cobra.Command, shell string, w io.Writer) error {
	switch shell {
	case "bash":
		return root.GenBashCompletionV2(w, true)
	case "zsh":
		if err := root.GenZshCompletion(w); err != nil {
			return err
		}
		_, err := io.WriteString(w, "compdef _sky sky\n")
		return err
	case "fish":
		return root.GenFishCompletion(w, true)
	case "powershell":
		return root.GenPowerShellCompletionWithDesc(w)
	}
	return session.Usagef("unknown shell %q; bash, zsh, fish and powershell can be completed", shell)
}

// resolve turns auto into the shell of $SHELL.
func resolve(s *session.Session, shell string) (string, error) {
	if shell == "auto" {
		shell = filepath.Base(s.Env("SHELL"))
		if shell != "bash" && shell != "zsh" && shell != "fish" {
			return "", fmt.Errorf("the shell %q (from $SHELL) can't be completed\nName one: bash, zsh or fish.", s.Env("SHELL"))
		}
	}
	if shell != "bash" && shell != "zsh" && shell != "fish" {
		return "", session.Usagef("must be one of %s, not %q", strings.Join(Shells, ", "), shell)
	}
	return shell, nil
}

// files are the script's place and the start-up file that loads it ("" where none is needed).
func files(s *session.Session, shell string) (script, rc string, err error) {
	if s.UserHome == "" {
		return "", "", errors.New("the home folder is not known; set HOME")
	}
	if shell == "fish" {
		return filepath.Join(s.UserHome, ".config", "fish", "completions", "sky.fish"), "", nil
	}
	home, err := s.Home()
	if err != nil {
		return "", "", err
	}
	return filepath.Join(home, ".sky-complete."+shell), filepath.Join(s.UserHome, "."+shell+"rc"), nil
}

// Install installs completion for a shell.
func Install(s *session.Session, root *cobra.Command, shell string) error {
	shell, err := resolve(s, shell)
	if err != nil {
		return err
	}
	if shell == "bash" {
		if err := checkBash(); err != nil {
			return err
		}
	}
	script, rc, err := files(s, shell)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := Script(root, shell, &b); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(script), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(script, b.Bytes(), 0o644); err != nil {
		return err
	}
	if rc != "" {
		old, err := os.ReadFile(rc)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		text := without(string(old))
		if text != "" && !strings.HasSuffix(text, "\n") {
			text += "\n"
		}
		q := session.Quote(script)
		text += fmt.Sprintf("[ -f %s ] && . %s  %s\n", q, q, marker)
		if err := os.WriteFile(rc, []byte(text), 0o644); err != nil {
			return err
		}
	}
	s.IO.Printf("Completion for %s is installed. It works in new shells; to have it here: source %s\n", shell, session.Quote(script))
	return nil
}

// Uninstall takes it away again.
func Uninstall(s *session.Session, shell string) error {
	shell, err := resolve(s, shell)
	if err != nil {
		return err
	}
	script, rc, err := files(s, shell)
	if err != nil {
		return err
	}
	if err := os.Remove(script); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if rc != "" {
		if old, err := os.ReadFile(rc); err == nil {
			if text := without(string(old)); text != string(old) {
				if err := os.WriteFile(rc, []byte(text), 0o644); err != nil {
					return err
				}
			}
		}
	}
	s.IO.Printf("Completion for %s is removed.\n", shell)
	return nil
}

// without drops our lines from a start-up file.
func without(text string) string {
	if !strings.Contains(text, marker) {
		return text
	}
	var out strings.Builder
	for _, line := range strings.SplitAfter(text, "\n") {
		if !strings.Contains(line, marker) {
			out.WriteString(line)
		}
	}
	return out.String()
}

func checkBash() error {
	out, err := exec.Command("bash", "-c", "echo ${BASH_VERSINFO[0]}").Output()
	if err != nil {
		return nil // not here; the script does no harm
	}
	if n, err := strconv.Atoi(strings.TrimSpace(string(out))); err == nil && n < 4 {
		return fmt.Errorf("completion needs bash 4 or newer; this one is version %d\nInstall a newer bash, or use zsh or fish.", n)
	}
	return nil
}
