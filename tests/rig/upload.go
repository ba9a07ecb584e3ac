//go:build unix

package rig

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"

	"github.com/skyloom/skyloom/api"
	"github.com/skyloom/skyloom/internal/filesync"
)

// Upload brings a small tree to the server, to be synced.
func (l *Load) Upload(content string) []api.FileMount {
	l.T.Helper()
	dir := l.T.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "data.txt"), []byte(content), 0o600); err != nil {
		l.T.Fatal(err)
	}
	ctx := context.Background()
	tree, err := filesync.Scan(ctx, dir, filesync.ScanOptions{})
	if err != nil {
		l.T.Fatal(err)
	}
	encoded, err := tree.Manifest.Bytes()
	if err != nil {
		l.T.Fatal(err)
	}
	for {
		rep, err := l.Client.PutManifest(ctx, encoded)
		if err != nil {
			l.T.Fatal(err)
		}
		if len(rep.Missing) == 0 {
			return []api.FileMount{{Dst: "~/data", Manifest: rep.ID, Source: dir}}
		}
		err = l.Client.PutBlobs(ctx, func() (io.ReadCloser, error) {
			var buf bytes.Buffer
			err := filesync.WritePack(ctx, &buf, tree, rep.Missing, filesync.PackOptions{})
			return io.NopCloser(&buf), err
		})
		if err != nil {
			l.T.Fatal(err)
		}
	}
}
