package agent

import (
	"log/slog"
	"os/exec"
	"strings"
	"testing"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// TestImports holds what the binary may link.
func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", "github.com/skyloom/skyloom/cmd/sky-agent").Output()
	if err != nil {
		t.Fatal(err)
	}
	allowed := []string{
		"github.com/skyloom/skyloom/agent", "github.com/skyloom/skyloom/api", "github.com/skyloom/skyloom/cmd/sky-agent",
		"github.com/skyloom/skyloom/internal/filesync", "github.com/skyloom/skyloom/internal/artifact", "github.com/skyloom/skyloom/internal/failpoint", "github.com/skyloom/skyloom/internal/version",
		"golang.org/x/crypto/", "github.com/pkg/sftp", "github.com/kr/fs", "github.com/creack/pty", // of the SSH server
		"golang.org/x/sys/", "github.com/klauspost/compress", "github.com/google/uuid", // the last by api
	}
next:
	for dep := range strings.FieldsSeq(string(out)) {
		for _, a := range allowed {
			if strings.HasPrefix(dep, a) {
				continue next
			}
		}
		t.Errorf("sky-agent links %s", dep)
	}
}
