package cli

import (
	"os/exec"
	"strings"
	"testing"
)

// sky is thin: what it links of this module is listed here, and what it must never link is refused by name.
func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "github.com/skyloom/skyloom/cmd/sky").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	const module = "github.com/skyloom/skyloom/"
	own := []string{"cmd/sky", "cli", "api", "task", "internal/config", "internal/daemon", "internal/filesync", "internal/sshconfig", "internal/version"}
	forbidden := []string{"go.temporal.io/", "github.com/temporalio/", "google.golang.org/grpc", "google.golang.org/protobuf", "cloud.google.com/",
		"github.com/aws/", "github.com/Azure/", "k8s.io/", "sigs.k8s.io/", "modernc.org/", "github.com/danielgtaylor/huma", "golang.org/x/crypto/ssh", "github.com/coder/websocket", "github.com/jackc/"}
	for _, p := range strings.Fields(string(out)) {
		for _, f := range forbidden {
			if strings.HasPrefix(p, f) {
				t.Errorf("sky links %s", p)
			}
		}
		if p == "database/sql" {
			t.Errorf("sky links %s", p)
		}
		rest, ours := strings.CutPrefix(p, module)
		if !ours {
			continue
		}
		ok := false
		for _, o := range own {
			ok = ok || rest == o || strings.HasPrefix(rest, o+"/")
		}
		if !ok {
			t.Errorf("sky links %s of this module, which is not on the list", rest)
		}
	}
}
