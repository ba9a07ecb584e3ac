package chaos

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/filesync"
	"github.com/skyloom/skyloom/tests/rig"
)

// script is the task of a request: each rank writes down when it begins and when it has done its work.
func (in *instance) script(id string, j rig.Job) string {
	var s strings.Builder
	fmt.Fprintf(&s, "name: chaos\nnum_nodes: %d\nenvs:\n  KEY: %s\nrun: |\n", max(j.Nodes, 1), id)
	fmt.Fprintf(&s, "  echo \"begin $KEY $SKYPILOT_NODE_RANK\" >> %s\n", in.ledger)
	if j.Sleep != "" {
		fmt.Fprintf(&s, "  sleep %s\n", j.Sleep)
	}
	fmt.Fprintf(&s, "  echo \"end $KEY $SKYPILOT_NODE_RANK\" >> %s\n", in.ledger)
	return s.String()
}

// upload brings a small tree to the server, to be synced.
func (in *instance) upload(content string) []api.FileMount {
	in.t.Helper()
	dir := in.t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "data.txt"), []byte(content), 0o600); err != nil {
		in.t.Fatal(err)
	}
	ctx := context.Background()
	tree, err := filesync.Scan(ctx, dir, filesync.ScanOptions{})
	if err != nil {
		in.t.Fatal(err)
	}
	encoded, err := tree.Manifest.Bytes()
	if err != nil {
		in.t.Fatal(err)
	}
	for {
		rep, err := in.Client.PutManifest(ctx, encoded)
		if err != nil {
			in.t.Fatal(err)
		}
		if len(rep.Missing) == 0 {
			return []api.FileMount{{Dst: "~/data", Manifest: rep.ID, Source: dir}}
		}
		err = in.Client.PutBlobs(ctx, func() (io.ReadCloser, error) {
			var buf bytes.Buffer
			err := filesync.WritePack(ctx, &buf, tree, rep.Missing, filesync.PackOptions{})
			return io.NopCloser(&buf), err
		})
		if err != nil {
			in.t.Fatal(err)
		}
	}
}
